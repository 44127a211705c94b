/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_STORE_STATE_H
#define OM_PG_STORE_STATE_H
/*
 * What the files of the storage share. Loop thread.
 *
 *   store.c         opening, the connections, states, closing, ops   store_put.c     writing entries; put_if_absent
 *   store_read.c    reading one, lists, health                       store_remove.c  deleting, clearing, the sweeper
 *   store_query.c   storage.query, on a thread and a connection of its own
 *   link.c          a connection on the loop                         session.c, schema.c   making one, on a worker
 *   statements.c    the SQL                                          codec.c, errors.c     binary values; SQLSTATEs
 */
#include "../job.h"
#include "link.h"
#include "statements.h"

struct om_pg_slot;

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct om_pg_settings settings;
        enum om_store_state state;
        struct om_error why; /* while it is not ready */
        struct om_jobs jobs;
        struct om_pg_slot *slots; /* settings.connections of them */
        unsigned n_up;
        struct om_worker *connector;
        int abort_fd; /* readable from close on: workers end */
        struct event *sweep_timer;
        unsigned sweeps, queries; /* under way */
        struct om_op *closing;
        bool forced, ended;
        struct om_post closed_post, check_post;
        bool checking;
};

/* Something under way: first in what each file has for its operation. */
struct om_pg_job {
        struct om_job job;
        struct om_pg_request req;
        struct om_store *store;
        bool writes; /* goes by the connection for writes, in order */
        bool own;    /* no operation's */
};
#define OM_PG_JOB_OF(request, type) ((type *) (void *) ((char *) (request) -offsetof(struct om_pg_job, req)))

/* Memory of `size` for a job with this op, if there is room and the server is there; free_it is free() without one. */
int om_pg_job_new(
        struct om_store *s, struct om_op *op, size_t size, size_t bytes, void (*free_it)(struct om_job *), void *ret, struct om_error *e);
/* Sends its request, now or when the connection is free; `first`: again, before what waits. */
void om_pg_job_send(struct om_pg_job *j, bool first);
void om_pg_job_over(struct om_pg_job *j, int status, const struct om_error *e);
void om_pg_job_no_memory(struct om_pg_job *j);

int om_pg_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e);
int om_pg_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e);
int om_pg_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e);
int om_pg_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e);
int om_pg_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e);
int om_pg_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e);
int om_pg_store_query(struct om_store *s, struct om_store_query *op, struct om_error *e);
void om_pg_sweep(struct om_store *s);

enum { OM_PG_PAGE = 100, OM_PG_PAGE_MAX = 10000, OM_PG_PAGE_BYTES = 16 << 20 };

/* Any one that is up, the one for writes say, for health; NULL: none. */
const struct om_pg_link *om_pg_writer(const struct om_store *s);

#endif
