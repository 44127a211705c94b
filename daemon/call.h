/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CALL_H
#define OM_CALL_H
/*
 * A call: one operation of the bus or the storage that is made for a request (or for the daemon itself), with what every such operation
 * needs and nobody should write twice:
 *
 *   - the core's deadline (call_timeout_ms): when it is over the operation is cancelled and fails as `timeout`;
 *   - room: at most OM_CALLS_MAX are out at the bus, at the storage, and at the storage for results, since each may hold a page of rows;
 * the others, and those that a backend refused with -ENOBUFS, wait and go out as others complete, those of one connection in order, a
 * connection with many behind one with few (call_line.c). Waiting counts towards the deadline;
 *   - one way to fail: done() gets the status, and om_call_fail() answers the request with the error.
 *
 * Always true: after om_call_start() done() is called exactly once and never before om_call_start() returned, also when the backend
 * refused. In done() the call is the caller's again: it starts another operation with it (om_call_reset, om_call_start) or frees it
 * (om_call_end, om_call_fail, om_call_free).
 *
 * It suits what is asked now and then. The hot path (publish, settle, results) batches by itself; it tells om_calls_kick() when one of its
 * operations completed, since that is when a backend has room again.
 *
 * Loop thread.
 */
#include <event2/event_struct.h>

#include "session.h"

enum { OM_CALLS_MAX = 64 };

enum om_call_type {
        OM_CALL_NONE,
        OM_CALL_BUS_QUERY,
        OM_CALL_BUS_CHANGE,
        OM_CALL_BUS_SUBSCRIBE,
        OM_CALL_STORE_PUT,
        OM_CALL_STORE_GET,
        OM_CALL_STORE_LIST,
        OM_CALL_STORE_DELETE,
        OM_CALL_STORE_PUT_IF_ABSENT,
        OM_CALL_STORE_HEALTH,
        OM_CALL_STORE_QUERY,
};

struct om_call;
/* status: 0, or a negative errno with `e` filled; `e` lives during the call. */
typedef void om_call_done_fn(struct om_call *c, int status, const struct om_error *e);

struct om_call {
        struct om_core *core;
        struct om_request *req; /* owned; NULL: nobody waits */
        om_call_done_fn *done;
        void *data;            /* the caller's */
        struct om_arena arena; /* for inputs: they must live until done() */
        enum om_call_type type;
        int64_t timeout_ms; /* of the operation; 0: CALL_TIMEOUT */
        union {
                struct om_op op;
                struct om_bus_query query;
                struct om_bus_change change;
                struct om_bus_subscribe subscribe;
                struct om_store_put put;
                struct om_store_get get;
                struct om_store_list list;
                struct om_store_delete remove;
                struct om_store_put_if_absent put_if_absent;
                struct om_store_health health;
                struct om_store_query store_query;
        };
        uint64_t started_ns; /* of the operation; for latency */

        /* What om_call_collect() gathered; the spans are in `arena`. */
        struct om_store_entry *rows;
        size_t n_rows, max_rows;
        om_call_done_fn *after;    /* collected, put */
        struct om_store_entry one; /* of om_call_put_one() */
        struct om_outcome one_outcome;

        /* call.c's */
        int state, status;
        uint64_t serial; /* of the connection that asked; 0: the daemon itself */
        bool is_first;   /* where it stands in its line */
        bool is_counted; /* among its connection's */
        bool timed_out;
        bool no_memory; /* an input could not be copied (an absent one can mean "all"), or the deadline not be set */
        struct om_call *next, *prev;
        struct event deadline;
        struct om_post post;
        struct om_error *error;
};

/* Makes a call; fill the operation's inputs (zero now), then start it. Takes req (may be NULL). NULL: out of memory, and the request has
 * been answered. */
struct om_call *om_call_new(struct om_core *core, struct om_request *req, enum om_call_type type, om_call_done_fn *done);
/* Makes the call ready for another operation: frees what the last one returned; req, data and arena stay. */
void om_call_reset(struct om_call *c, enum om_call_type type, om_call_done_fn *done);
/* A copy in the call's arena; absent stays absent. Out of memory: absent too, and om_call_start() fails with -ENOMEM instead of asking. */
struct om_span om_call_copy(struct om_call *c, struct om_span s);
/* The same of what a buffer has gathered; frees the buffer. */
struct om_span om_call_keep(struct om_call *c, struct om_buf *b);
void om_call_start(struct om_call *c);
/* The beginning of most requests: makes the call, lets read() fill its inputs from the params, and starts it; or answers with the error
 * that read() returned. */
typedef int om_call_read_fn(struct om_call *c, struct om_span params, struct om_error *e);
void om_call_for(struct om_request *req, struct om_span params, enum om_call_type type, om_call_read_fn *read, om_call_done_fn *done);
/* For OM_CALL_STORE_LIST: starts it, and again with each cursor it returns, until all pages are in `rows`; then done(). Rows of an earlier
 * collection are dropped. */
void om_call_collect(struct om_call *c);

/* Resets the call and writes one entry, whose spans must live until done(); saved_ms is set here. The entry's own outcome, when it failed,
 * is done()'s status. */
void om_call_put_one(struct om_call *c, enum om_store_kind kind, const struct om_store_entry *entry, om_call_done_fn *done);

/* The end of most requests, with what done() was given: om_request_begin(), or NULL when the operation failed or nobody listens; then the
 * request has been answered and the call is gone. om_call_end() stands in the same function. */
struct om_buf *om_call_begin(struct om_call *c, int status, const struct om_error *e);

/* The ways to finish. Each frees the call. */
void om_call_fail(struct om_call *c, const struct om_error *e); /* answers the request with the error */
void om_call_ok(struct om_call *c);                             /* answers {} */
void om_call_end(struct om_call *c);                            /* ends the reply begun */
void om_call_free(struct om_call *c);                           /* a request that is still there goes unanswered; NULL-safe */

/* -- for the core and for those who call backends themselves ------------------------------------------------------- */
struct om_calls;
int om_calls_new(struct om_core *core, struct om_calls **ret);
void om_calls_free(struct om_calls *calls); /* none is under way by now */
/* An operation of somebody else completed: what waits for room is tried again. Cheap. */
void om_calls_kick(struct om_core *core);
/* From now on calls fail as `unavailable`; those under way are cancelled; `done` is posted when the last has completed. */
void om_calls_stop(struct om_calls *calls, struct om_post *done);

#endif
