/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_HOST_H
#define OM_HOST_H
/*
 * What the daemon lends a backend: the loop, worker threads, a way back from any thread, a log, a clock, and the shape of an
 * operation. This is all that a backend sees of the daemon.
 *
 * The rules of an operation, the same for every entry of bus.h and store.h that takes a `struct om_op`:
 *
 *   - It is called on the loop thread, and completes on the loop thread.
 *   - A return < 0 refuses it: `error` is filled, done() is never called. -ENOBUFS: too much is in flight; the core tries
 *     again after a completion. -EAGAIN: the server is away.
 *   - A return of 0 accepts it: done() is called exactly once, and never before the call has returned.
 *   - Inputs are borrowed until the call returns, so what is needed later is copied; outputs and the op itself belong to the
 *     backend from a return of 0 until done(), and to the core again in done(), which may free them.
 *   - om_op_cancel() asks for an early end. It never swallows the completion: done() comes with -ECANCELED, or with the
 *     outcome where that was faster. What was sent may still take effect.
 *   - Deadlines are the core's: it cancels. A backend has none of its own, except for connecting.
 *   - Objects that a library may still call back about are freed one turn later, through om_host_post().
 *
 * Threads exchange bytes and structs of this header, never a tree. om_host_post() is the one way onto the loop.
 */
#include "../proto/buf.h"
#include "../proto/error.h"

#define OM_BACKEND_ABI 3u

/* Before the definition of a module's `const struct om_bus_ops om_NAME_bus_ops` or `const struct om_store_ops om_NAME_store_ops`, which is
 * all that a module exports. */
#define OM_MODULE __attribute__((visibility("default")))

struct event_base;
struct evdns_base;

enum om_level { OM_LOG_ERROR = 3, OM_LOG_WARNING = 4, OM_LOG_NOTICE = 5, OM_LOG_INFO = 6, OM_LOG_DEBUG = 7 }; /* as syslog(3) */

/* -- operations ---------------------------------------------------------------------------------------------------- */

struct om_op;
/* status: 0, or a negative errno with `error` filled. `error` lives during the call. Loop thread. */
typedef void om_op_done_fn(struct om_op *op, int status, const struct om_error *error);

struct om_op {
        om_op_done_fn *done;            /* the core's */
        void (*cancel)(struct om_op *); /* the backend's, set before it returns 0; NULL: cannot be hurried */
        void *backend;                  /* the backend's, while it has the op */
};
static inline void om_op_cancel(struct om_op *op) {
        if (op->cancel)
                op->cancel(op);
}

/* What became of one item of a batch. Written by the backend before done(…, 0). */
struct om_outcome {
        int status;      /* 0 or a negative errno */
        bool duplicate;  /* a publish whose idempotency key was known: `id` is the first task's */
        char id[208];    /* with duplicate: that id, zero-terminated */
        const char *why; /* with status < 0: static text, or text in the batch's arena */
};

/* -- the way back to the loop -------------------------------------------------------------------------------------- */

/* Embedded in what is sent; belongs to the loop from the post until fn is called, which may free it. */
struct om_post {
        void (*fn)(struct om_post *post);
        struct om_post *next;
};

/* -- worker threads ------------------------------------------------------------------------------------------------ */

struct om_worker;
/* Something for a worker to do; embedded in what the backend sends. */
struct om_work {
        struct om_work *next;
};
/*
 * One turn, on the worker's thread. `list` is all that was submitted since the last turn, oldest first (NULL when only the time has come);
 * one turn can thus share one commit, one fsync, one round trip. Returns in how many milliseconds it must be called again
 * even if nothing is submitted; -1: not before something is.
 */
typedef int om_worker_turn_fn(void *ctx, struct om_work *list);

/* -- the host ------------------------------------------------------------------------------------------------------ */

struct om_host;
struct om_host_ops {
        unsigned abi; /* OM_BACKEND_ABI */

        /* Has post->fn called on the loop thread, in order of posting. Any thread; cannot fail; a system call only where the loop sleeps.
         */
        void (*post)(struct om_host *host, struct om_post *post);

        /* One line into the daemon's log, which redacts passwords in URLs. Any thread. */
        void (*log)(struct om_host *host, enum om_level level, const char *text);

        /* Starts a thread named `name` (at most 15 characters) that calls turn(ctx, …). 0, or -errno with `e` filled. Loop thread. */
        int (*worker_new)(
                struct om_host *host, const char *name, om_worker_turn_fn *turn, void *ctx, struct om_worker **ret, struct om_error *e);
        /* Hands over work; never blocks. Loop thread. */
        void (*worker_submit)(struct om_worker *w, struct om_work *work);
        /* Ends the thread after all that was submitted has had its turn, then calls stopped->fn on the loop and frees the worker. Does not
         * block. Nothing is submitted after. Loop thread. */
        void (*worker_stop)(struct om_worker *w, struct om_post *stopped);
};

struct om_host {
        const struct om_host_ops *ops;
        struct event_base *base; /* the loop; touch events on its thread only */
        struct evdns_base *dns;  /* may be NULL until a backend that needs names asks; resolves without blocking */
        const char *state_dir;   /* where embedded backends keep files unless their URL says otherwise; exists */
};

static inline void om_host_post(struct om_host *host, struct om_post *post) { host->ops->post(host, post); }
void om_host_log(struct om_host *host, enum om_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* -- small things that every backend needs (host.c) ---------------------------------------------------------------- */

int64_t om_now_ms(void);   /* wall clock, Unix milliseconds: what is stored. Any thread */
int64_t om_clock_ms(void); /* monotonic, milliseconds: what is waited for. Any thread */
uint64_t om_clock_ns(void);

/* Exponential backoff with jitter: base·2ⁿ, at most max, of which a random half is taken off ("equal jitter": the delay is uniform in
 * [d/2, d]). `n` counts from 0. Any thread. */
int64_t om_backoff_ms(int64_t base_ms, int64_t max_ms, unsigned n);
uint64_t om_random_u64(void); /* fast, not for secrets; any thread */

/* mkdir -p with mode 0700 for what it makes. 0 or -errno with `e` naming the part that failed. Blocks. */
int om_mkdirs(const char *path, struct om_error *e);

#endif
