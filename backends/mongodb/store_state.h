/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_MONGO_STORE_STATE_H
#define OM_MONGO_STORE_STATE_H
/*
 * What the files of the MongoDB storage share: the store, its threads, and a job, which is an operation on its way to a thread and back.
 *
 * A job is made, and completed, on the loop. Between om_mongo_submit() and its `give` it belongs to one thread, which touches nothing of
 * the operation: inputs were copied, outputs are in the job until `give` hands them over. So an operation that is cancelled completes at
 * once, whatever its thread waits for.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "../job.h"
#include "document.h"
#include "errors.h"

struct om_mongo_thread;
struct om_mongo_job {
        struct om_job job; /* first */
        struct om_work work;
        struct om_post back;
        struct om_store *store;
        struct om_mongo_thread *thread;
        /* On the thread. Many: with those behind it in the list that have the same `many`. NULL: `run` alone. */
        void (*run)(struct om_mongo_thread *t, struct om_mongo_job *j);
        void (*many)(struct om_mongo_thread *t, struct om_mongo_job **jobs, size_t n);
        void (*give)(struct om_mongo_job *j); /* on the loop, after status 0, when the operation still waits; may set status */
        void (*cancel_job)(struct om_op *op); /* job.h's */
        atomic_bool cancelled;
        enum om_store_kind kind;
        struct om_arena in, out;
        int status;
        struct om_error error;
};

/* A cursor of the server's that stands between two pages of a walk: its current document is the next page's first. */
struct om_mongo_kept {
        mongoc_cursor_t *cursor; /* NULL: none */
        enum om_store_kind kind;
        uint64_t id;     /* drawn anew for each page: in the list's cursor, and so no other walk's; the lowest byte is its thread's place */
        int64_t used_ms; /* by om_clock_ms() */
};

enum { OM_MONGO_KEPT = 4 };
struct om_mongo_thread {
        struct om_store *store;
        struct om_worker *worker;
        struct om_post stopped;
        mongoc_client_t *client; /* its own, from the pool; NULL: none yet */
        size_t load;             /* jobs given to it; the loop's */
        struct om_mongo_kept kept[OM_MONGO_KEPT];
        struct om_work leave;
};

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct om_mongo_settings settings;
        struct om_jobs jobs;
        enum om_store_state state;
        struct om_error why; /* not ready because */

        struct om_mongo_thread *threads; /* settings.connections of them: the first writes */
        struct om_mongo_thread admin;    /* connects, looks after the server when it was away, sweeps */
        struct om_work check;            /* for the admin: look whether the server is back */
        bool checking;                   /* given to it, and not answered */
        mongoc_client_pool_t *pool;      /* made by the admin before `up` is set for the first time */
        atomic_bool up;
        atomic_bool ttl, text; /* the server expires by itself; has an index for words. Set before `up` */
        atomic_bool ferret;    /* it is FerretDB. Set before `up` */
        char version[64];      /* set before the first `up`; of FerretDB that of the MongoDB that it is like */
        /* the admin's */
        unsigned attempts;
        int64_t check_at_ms, sweep_at_ms; /* by om_clock_ms(); 0: not */
        /* the writing thread's */
        uint64_t seq;
        uint32_t writer;
        int64_t metrics_until_trim;
        bool known[OM_STORE_KEYS + 1]; /* of a kind: what was written last was there already, so it is replaced, not inserted */
        size_t bulk;                   /* how many documents go at once */

        size_t queries;
        struct om_op *closing;
        struct om_post close_post;
        size_t stopped;
        bool ending;
};

/* A new job for an operation, or the refusal: not ready, or too much under way. Its inputs are copied into `in`. */
int om_mongo_job_new(struct om_store *s, struct om_op *op, size_t size, size_t bytes, void *ret, struct om_error *e);
/* Gives it to the writing thread or to the one that reads and has the least to do. */
void om_mongo_submit(struct om_mongo_job *j, bool writes);
/* To this one, by its place among all; where there is no such reading thread, as om_mongo_submit(). */
void om_mongo_submit_to(struct om_mongo_job *j, size_t thread);
/* The job has ended: on the thread; or refused for want of memory, on the loop. */
void om_mongo_finish(struct om_mongo_job *j);
/* The job failed: fills its error, and where the server is away has it looked after. Its thread. */
void om_mongo_fail(struct om_mongo_job *j, const bson_error_t *why, const char *doing);
void om_mongo_fail_memory(struct om_mongo_job *j);
/* A document that was read is none of ours, or there was no memory for it: -ENOMEM; fills the job's error and returns it. */
int om_mongo_not_ours(struct om_mongo_job *j, int r);
static inline bool om_mongo_is_expired(const struct om_store_entry *e) { return e->expires_ms && e->expires_ms <= om_now_ms(); }
/* The collection of a kind; the caller's: mongoc_collection_destroy(). */
mongoc_collection_t *om_mongo_collection(struct om_store *s, mongoc_client_t *client, enum om_store_kind kind);
/* Copies into `in`; false: out of memory. */
bool om_mongo_keep(struct om_mongo_job *j, struct om_span from, struct om_span *to);

/* Deletes what the filter finds, by batches; false with `why`. Any thread. */
bool om_mongo_delete(mongoc_collection_t *c, const bson_t *filter, uint64_t *ret_n, bson_error_t *why);
/* Of the sweeper: false, with `why`, where the server is away. */
bool om_mongo_sweep(struct om_store *s, mongoc_client_t *client, bson_error_t *why);
/* Deletes the oldest metrics beyond max_metrics. Failures are left to the next time. */
void om_mongo_trim(struct om_store *s, mongoc_client_t *client);

/* Gives up the cursors that the thread keeps, those that were last used before then (om_clock_ms()). Its thread. */
void om_mongo_drop_kept(struct om_mongo_thread *t, int64_t before_ms);

int om_mongo_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e);
int om_mongo_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e);
int om_mongo_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e);
int om_mongo_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e);
int om_mongo_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e);
int om_mongo_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e);
int om_mongo_store_query(struct om_store *s, struct om_store_query *op, struct om_error *e);

#endif
