/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SESSION_H
#define OM_SESSION_H
/*
 * A client's connection: frames in, frames out, and the requests that are not answered yet.
 *
 * Always true:
 *   - an idle session holds no buffers: input is read into the loop's shared buffer, and only the tail of an unfinished frame is copied;
 *   - what all sessions hold together is bounded by session_total_bytes (session_memory.c), what they take of a turn by a slice of it
 *     (session_turn.c): one that asks little hardly notices the others;
 *   - a frame that has begun is whole after slow_client_ms, or the session is closed, with a line in the log;
 *   - output of one turn leaves in one system call; above session_output_bytes of unsent output the session is read no further and gets no
 * deliveries; if its socket then takes nothing for stalled_client_ms it is closed, with a line in the log;
 *   - at most OM_IN_FLIGHT requests are unanswered; further ones wait in the socket;
 *   - a request is answered exactly once, or never when it was a notification or its session is gone.
 *
 * Loop thread.
 */
#include "core.h"

struct om_session_pool;

enum { OM_IN_FLIGHT = 1024, OM_BATCH_MAX = 1000, OM_PREFETCH_MAX = 1000, OM_SUBSCRIPTIONS_MAX = 256 };

struct om_peer {
        pid_t pid;
        uid_t uid;
        gid_t gid;
};

/* One request that is being worked on. A method owns it until it calls one of the reply functions, which free it. */
struct om_request {
        struct om_session *session; /* NULL once the session is gone: replying is then only freeing */
        struct om_core *core;
        const struct om_method *method;
        struct om_request *next, *prev; /* the session's list */
        bool notification;
        uint16_t id_len;
        uint32_t bytes; /* what it is counted as while it is not answered */
        char id[256];
};

/* The connection is `fd`, non-blocking; the session takes it, also when it fails. 0 or -errno. `ret` may be NULL. */
int om_session_new(struct om_core *core, int fd, struct om_session **ret);
/* Closes it; its requests lose their session, its leases end. `reason` goes into the log when not NULL. Safe from anywhere: the memory goes
 * a turn later. */
void om_session_close(struct om_session *s, const char *reason);

/* Replying. begin: returns the buffer, positioned at the value of `result`; NULL for a request whose answer goes nowhere (then only
 * om_request_done(req)). The pair begin–end must stand in one function, nothing else may write to the session between them. */
struct om_buf *om_request_begin(struct om_request *req);
void om_request_end(struct om_request *req); /* ends the reply begun, frees req; a reply above the frame limit becomes an error `limit` */
void om_request_ok(struct om_request *req);  /* {} */
void om_request_error(struct om_request *req, const struct om_error *e);
/* The same with more members in `data`: raw JSON that begins with a comma (`,"deliveries":[1,2]`), or absent. */
void om_request_error_data(struct om_request *req, const struct om_error *e, struct om_span members);
void om_request_done(struct om_request *req); /* frees it without an answer */
/* Whoever keeps more for it than its body says so: it counts towards what its session holds, until it is answered. */
void om_request_takes(struct om_request *req, size_t bytes);

/* Notifications to the client: begin returns the buffer at the value of `params`, NULL when the session is closing. end sends it at the end
 * of the turn: 0; -EMSGSIZE: above the frame limit, nothing is sent; -ENOMEM: the session is closed, in the next turn. */
struct om_buf *om_session_begin(struct om_session *s, const char *method);
int om_session_end(struct om_session *s);
/* n whole frames that were composed elsewhere. 0; -ENOTCONN: the session is closing; -ENOMEM: it is, from now on. */
int om_session_append(struct om_session *s, struct om_span frames, unsigned n);
/* Whether deliveries may be written now; when false, om_dispatch_session_ready() will be called when they may again. */
bool om_session_can_deliver(const struct om_session *s);

/* Whether the client can still send: not closed, nor at the end of its input. */
bool om_session_is_open(const struct om_session *s);

/* For others' state on a session. */
uint64_t om_session_serial(const struct om_session *s);  /* never used twice in a run */
const char *om_session_name(const struct om_session *s); /* client's name from hello, or "pid N" */
int om_session_set_name(struct om_session *s, struct om_span name);
void **om_session_dispatch_slot(struct om_session *s); /* dispatch.c's */
void **om_session_watch_slot(struct om_session *s);    /* watch.c's */

/* -- all sessions (the core's) ------------------------------------------------------------------------------------- */

/* What sessions share: the reading buffer, spare buffers, free requests, the lists of who has output. */
int om_session_pool_new(struct om_core *core, struct om_session_pool **ret);
/* Closes what is open. */
void om_session_pool_free(struct om_session_pool *p);
/* A notification to every client; `params` is JSON. */
void om_session_pool_tell(struct om_session_pool *p, const char *method, struct om_span params);
/* Nothing more is read from any. */
void om_session_pool_quiet(struct om_session_pool *p);
/* Nothing more is read; each session is closed once its output is out, at the latest after a second; then `done` is posted. New ones are
 * closed at once. */
void om_session_pool_drain(struct om_session_pool *p, struct om_post *done);

/* -- methods (methods.c) ------------------------------------------------------------------------------------------- */
typedef void om_method_fn(
        struct om_request *req, struct om_span params); /* params: a checked object, "{}" when absent; borrowed until return */
struct om_method {
        const char *name;
        om_method_fn *fn;
};
extern const struct om_method om_task_methods[], om_agent_methods[], om_bus_methods[], om_dlq_methods[], om_storage_methods[],
        om_migrate_methods[], om_config_methods[], om_health_methods[];
const struct om_method *om_method_find(struct om_span name);
const char *om_method_nearest(struct om_span name);

#endif
