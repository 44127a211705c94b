/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls: see call.h. A call is in one of these lists or in none:
 *
 *   out      a backend has it; done() is still to come
 *   waiting  for room: one line for the bus and one for the storage, so that one does not hold up the other
 *   none     posted: its failure is on the way to done(); or the caller's
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "call_line.h"
#include "log.h"

enum { MINE /* the caller's */, WAITING, OUT, POSTED };
enum { BUS, STORE, RESULTS, N_SIDES }; /* results may have a storage of their own: a slow one is in nobody else's way */
enum { ARENA_BYTES = 2 << 10 };        /* what a call's arena comes to, about */

struct om_calls {
        struct om_core *core;
        struct om_call *out;
        struct om_call_line waiting[N_SIDES];
        unsigned n_out[N_SIDES];
        unsigned n_open; /* started and not done yet, posted ones included */
        bool stopping;
        struct om_post *stopped;
};

static int side_of(const struct om_call *c) {
        enum om_store_kind kind = OM_STORE_CONFIG;

        if (c->type <= OM_CALL_BUS_SUBSCRIBE)
                return BUS;
        if (c->type == OM_CALL_STORE_PUT)
                kind = c->put.kind;
        else if (c->type == OM_CALL_STORE_GET)
                kind = c->get.kind;
        else if (c->type == OM_CALL_STORE_LIST)
                kind = c->list.kind;
        else if (c->type == OM_CALL_STORE_DELETE)
                kind = c->remove.kind;
        return kind == OM_STORE_RESULTS ? RESULTS : STORE;
}

static void free_output(struct om_call *c) {
        switch (c->type) {
        case OM_CALL_BUS_QUERY:
                om_arena_deinit(&c->query.arena);
                break;
        case OM_CALL_STORE_GET:
                om_arena_deinit(&c->get.arena);
                break;
        case OM_CALL_STORE_LIST:
                om_arena_deinit(&c->list.arena);
                break;
        case OM_CALL_STORE_PUT_IF_ABSENT:
                om_arena_deinit(&c->put_if_absent.arena);
                break;
        case OM_CALL_STORE_HEALTH:
                om_arena_deinit(&c->health.arena);
                break;
        case OM_CALL_STORE_QUERY:
                om_arena_deinit(&c->store_query.arena);
                break;
        default:
                break;
        }
}

void om_call_reset(struct om_call *c, enum om_call_type type, om_call_done_fn *done) {
        size_t from = offsetof(struct om_call, op), to = offsetof(struct om_call, started_ns);

        free_output(c);
        memset((char *) c + from, 0, to - from);
        c->type = type;
        c->done = done;
        c->status = 0;
        c->timed_out = false;
        c->timeout_ms = 0;
}

struct om_call *om_call_new(struct om_core *core, struct om_request *req, enum om_call_type type, om_call_done_fn *done) {
        struct om_call *c = calloc(1, sizeof *c);

        if (!c) {
                struct om_error e;

                om_error_set_errno(&e, ENOMEM, "the request");
                om_request_error(req, &e);
                return NULL;
        }
        c->core = core;
        c->req = req;
        c->type = type;
        c->done = done;
        if (req) {
                c->serial = req->session ? om_session_serial(req->session) : 0;
                om_request_takes(req, sizeof *c + ARENA_BYTES);
        }
        return c;
}

struct om_span om_call_copy(struct om_call *c, struct om_span s) {
        struct om_span copy = s.p ? om_arena_copy(&c->arena, s) : s;

        c->no_memory |= s.p && !copy.p;
        return copy;
}

struct om_span om_call_keep(struct om_call *c, struct om_buf *b) {
        struct om_span copy = OM_SPAN_NONE;

        if (om_buf_ok(b))
                copy = om_call_copy(c, om_buf_span(b));
        else
                c->no_memory = true;
        om_buf_deinit(b);
        return copy;
}

void om_call_free(struct om_call *c) {
        if (!c)
                return;
        free_output(c);
        om_arena_deinit(&c->arena);
        om_request_done(c->req);
        free(c->rows);
        free(c->error);
        free(c);
}

void om_call_fail(struct om_call *c, const struct om_error *e) {
        struct om_request *req = c->req;

        c->req = NULL;
        om_request_error(req, e);
        om_call_free(c);
}

void om_call_ok(struct om_call *c) {
        struct om_request *req = c->req;

        c->req = NULL;
        om_request_ok(req);
        om_call_free(c);
}

void om_call_end(struct om_call *c) {
        struct om_request *req = c->req;

        c->req = NULL;
        om_request_end(req);
        om_call_free(c);
}

struct om_buf *om_call_begin(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b;

        if (status < 0) {
                om_call_fail(c, e);
                return NULL;
        }
        b = om_request_begin(c->req);
        if (!b)
                om_call_free(c);
        return b;
}

/* -- going out ----------------------------------------------------------------------------------------------------- */

static void completed(struct om_call *c, int status, const struct om_error *e);

static void on_done(struct om_op *op, int status, const struct om_error *e) {
        struct om_call *c = (void *) ((char *) op - offsetof(struct om_call, op));
        struct om_calls *calls = c->core->calls;

        DL_DELETE(calls->out, c);
        calls->n_out[side_of(c)]--;
        completed(c, status, e);
}

static int send_op(struct om_call *c, struct om_error *e) {
        const struct om_bus_ops *bus = c->core->bus_ops;
        const struct om_store_ops *store = c->core->store_ops;

        if (side_of(c) == BUS ? !c->core->bus : !c->core->store)
                return om_error_set(e, OM_UNAVAILABLE, "the %s is closed: the daemon is stopping", side_of(c) == BUS ? "bus" : "storage");
        c->op.done = on_done;
        switch (c->type) {
        case OM_CALL_BUS_QUERY:
                return bus->query(c->core->bus, &c->query, e);
        case OM_CALL_BUS_CHANGE:
                return bus->change(c->core->bus, &c->change, e);
        case OM_CALL_BUS_SUBSCRIBE:
                return bus->subscribe(c->core->bus, &c->subscribe, e);
        case OM_CALL_STORE_PUT:
                return store->put(c->core->store, &c->put, e);
        case OM_CALL_STORE_GET:
                return store->get(c->core->store, &c->get, e);
        case OM_CALL_STORE_LIST:
                return store->list(c->core->store, &c->list, e);
        case OM_CALL_STORE_DELETE:
                return store->remove(c->core->store, &c->remove, e);
        case OM_CALL_STORE_PUT_IF_ABSENT:
                return store->put_if_absent(c->core->store, &c->put_if_absent, e);
        case OM_CALL_STORE_HEALTH:
                return store->health(c->core->store, &c->health, e);
        case OM_CALL_STORE_QUERY:
                return store->query(c->core->store, &c->store_query, e);
        case OM_CALL_NONE:
                break;
        }
        return om_error_set(e, OM_INTERNAL, "a call of no type");
}

static void on_failed(struct om_post *post) {
        struct om_call *c = (void *) ((char *) post - offsetof(struct om_call, post));
        struct om_error fallback = OM_ERROR_INIT;

        if (!c->error)
                om_error_set_errno(&fallback, c->status, "the request");
        completed(c, c->status, c->error ? c->error : &fallback);
}

/* Has done() come with a failure, not before the loop is back at the posts. */
static void fail_later(struct om_call *c, int status, const struct om_error *e) {
        c->state = POSTED;
        c->status = status;
        free(c->error);
        c->error = malloc(sizeof *c->error);
        if (c->error)
                *c->error = *e;
        c->post.fn = on_failed;
        om_host_post(c->core->host, &c->post);
}

/* Sends it. False: there is no room, it is the caller's to keep. */
static bool try_send(struct om_call *c) {
        struct om_calls *calls = c->core->calls;
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (calls->n_out[side_of(c)] >= OM_CALLS_MAX)
                return false;
        c->started_ns = om_clock_ns();
        r = send_op(c, &e);
        if (r == -ENOBUFS)
                return false;
        if (r < 0) {
                fail_later(c, r, &e);
                return true;
        }
        c->state = OUT;
        DL_APPEND(calls->out, c);
        calls->n_out[side_of(c)]++;
        return true;
}

static void send_waiting(struct om_calls *calls) {
        struct om_call *c;

        for (int side = 0; side < N_SIDES; side++)
                while ((c = om_call_line_next(&calls->waiting[side])))
                        if (!try_send(c)) {
                                om_call_line_put_back(&calls->waiting[side], c);
                                break;
                        }
}

static int64_t deadline_ms(const struct om_call *c) { return c->timeout_ms ? c->timeout_ms : c->core->settings->call_timeout_ms; }

static void timed_out(const struct om_call *c, struct om_error *e) {
        om_error_set(e, OM_TIMEOUT, "the %s did not answer within %lld ms%s", side_of(c) == BUS ? "bus" : "storage",
                (long long) deadline_ms(c), c->timeout_ms ? "" : " (CALL_TIMEOUT)");
}

static void on_deadline(evutil_socket_t fd, short what, void *ctx) {
        struct om_call *c = ctx;
        int side = side_of(c);
        struct om_error e;

        c->timed_out = true;
        if (c->state == WAITING) {
                om_error_set(&e, OM_LIMIT, "the %s had no room within %lld ms: too much is in flight", side == BUS ? "bus" : "storage",
                        (long long) deadline_ms(c));
                om_call_line_remove(&c->core->calls->waiting[side], c);
                fail_later(c, -ENOBUFS, &e);
        } else if (c->state == OUT) {
                /* The completion still comes. When it cannot be hurried, the client need not wait for it. */
                if (c->op.cancel) {
                        om_op_cancel(&c->op);
                } else if (c->req) {
                        timed_out(c, &e);
                        om_request_error(c->req, &e);
                        c->req = NULL;
                }
        }
}

void om_call_start(struct om_call *c) {
        struct om_calls *calls = c->core->calls;
        int64_t ms = deadline_ms(c);
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
        int side = side_of(c);
        struct om_error e;

        calls->n_open++;
        event_assign(&c->deadline, om_loop_base(c->core->loop), -1, 0, on_deadline, c);
        if (event_add(&c->deadline, &tv) < 0)
                c->no_memory = true;
        if (c->no_memory) {
                c->no_memory = false;
                fail_later(c, om_error_set_errno(&e, ENOMEM, "a call to bus or storage"), &e);
        } else if (calls->stopping) {
                om_error_set(&e, OM_UNAVAILABLE, "the daemon is stopping");
                fail_later(c, -EAGAIN, &e);
        } else if (!om_call_line_is_empty(&calls->waiting[side]) || !try_send(c)) {
                c->state = WAITING;
                c->started_ns = om_clock_ns();
                om_call_line_put(&calls->waiting[side], c);
        }
}

static void stopped_when_empty(struct om_calls *calls) {
        struct om_post *stopped = calls->stopped;

        if (!stopped || calls->n_open > 0)
                return;
        calls->stopped = NULL;
        om_host_post(calls->core->host, stopped);
}

static void completed(struct om_call *c, int status, const struct om_error *e) {
        struct om_calls *calls = c->core->calls;
        struct om_error late;

        event_del(&c->deadline);
        c->state = MINE;
        if (c->timed_out && status == -ECANCELED) {
                timed_out(c, &late);
                status = -ETIMEDOUT;
                e = &late;
        } else if (status == -ECANCELED && calls->stopping) {
                om_error_set(&late, OM_UNAVAILABLE, "the daemon is stopping");
                status = -EAGAIN;
                e = &late;
        }
        c->done(c, status, e);
        calls->n_open--;
        send_waiting(calls);
        stopped_when_empty(calls);
}

/* -- all pages of a list ------------------------------------------------------------------------------------------- */

static bool gather(struct om_call *c) {
        struct om_store_list *list = &c->list;
        size_t wanted = c->n_rows + list->n;
        struct om_store_entry *rows;

        if (wanted > c->max_rows) {
                wanted = wanted > 2 * c->max_rows ? wanted : 2 * c->max_rows;
                rows = realloc(c->rows, wanted * sizeof *rows);
                if (!rows)
                        return false;
                c->rows = rows;
                c->max_rows = wanted;
        }
        for (size_t i = 0; i < list->n; i++) {
                const struct om_store_entry *from = &list->entries[i];
                struct om_store_entry *to = &c->rows[c->n_rows];

                *to = *from;
                to->key = om_call_copy(c, from->key);
                to->name = om_call_copy(c, from->name);
                to->value = om_call_copy(c, from->value);
                to->topic = to->status = OM_SPAN_NONE;
                if ((from->key.p && !to->key.p) || (from->name.p && !to->name.p) || (from->value.p && !to->value.p))
                        return false;
                c->n_rows++;
        }
        return true;
}

static void on_page(struct om_call *c, int status, const struct om_error *e) {
        struct om_store_list again = { .kind = c->list.kind,
                .key = c->list.key,
                .name = c->list.name,
                .topic = c->list.topic,
                .status = c->list.status,
                .since_ms = c->list.since_ms,
                .until_ms = c->list.until_ms,
                .limit = c->list.limit,
                .stale_ok = true };
        om_call_done_fn *collected = c->after;
        struct om_error oom;

        if (status == 0 && !gather(c)) {
                status = om_error_set_errno(&oom, ENOMEM, "the list");
                e = &oom;
        }
        again.cursor = status == 0 ? om_call_copy(c, c->list.next_cursor) : OM_SPAN_NONE;
        if (!again.cursor.p) {
                collected(c, status, e);
                return;
        }
        om_call_reset(c, OM_CALL_STORE_LIST, on_page);
        c->list = again;
        om_call_start(c);
}

void om_call_collect(struct om_call *c) {
        c->after = c->done;
        c->done = on_page;
        c->n_rows = 0;
        c->list.stale_ok = true; /* all of it as it was when it was asked for */
        om_call_start(c);
}

void om_call_for(struct om_request *req, struct om_span params, enum om_call_type type, om_call_read_fn *read, om_call_done_fn *done) {
        struct om_call *c = om_call_new(req->core, req, type, done);
        struct om_error e = OM_ERROR_INIT;

        if (!c)
                return;
        if (read(c, params, &e) < 0)
                om_call_fail(c, &e);
        else
                om_call_start(c);
}

/* -- one entry ----------------------------------------------------------------------------------------------------- */

static void on_put(struct om_call *c, int status, const struct om_error *e) {
        struct om_error failed;

        if (status == 0 && c->one_outcome.status < 0) {
                status = c->one_outcome.status;
                om_error_set(&failed, om_kind_of_errno(status), "the storage refused the entry: %s",
                        c->one_outcome.why ? c->one_outcome.why : strerror(-status));
                e = &failed;
        }
        c->after(c, status, e);
}

void om_call_put_one(struct om_call *c, enum om_store_kind kind, const struct om_store_entry *entry, om_call_done_fn *done) {
        om_call_reset(c, OM_CALL_STORE_PUT, on_put);
        c->after = done;
        c->one = *entry;
        c->one.saved_ms = om_now_ms();
        c->one_outcome = (struct om_outcome){ 0 };
        c->put.kind = kind;
        c->put.entries = &c->one;
        c->put.n = 1;
        c->put.outcomes = &c->one_outcome;
        om_call_start(c);
}

/* -- for the core -------------------------------------------------------------------------------------------------- */

void om_calls_kick(struct om_core *core) { send_waiting(core->calls); }

int om_calls_new(struct om_core *core, struct om_calls **ret) {
        struct om_calls *calls = calloc(1, sizeof *calls);

        if (!calls)
                return -ENOMEM;
        calls->core = core;
        *ret = calls;
        return 0;
}

void om_calls_free(struct om_calls *calls) { free(calls); }

void om_calls_stop(struct om_calls *calls, struct om_post *done) {
        struct om_call *c, *next;
        struct om_error e;

        calls->stopping = true;
        calls->stopped = done;
        om_error_set(&e, OM_UNAVAILABLE, "the daemon is stopping");
        for (int side = 0; side < N_SIDES; side++)
                while ((c = om_call_line_next(&calls->waiting[side])))
                        fail_later(c, -EAGAIN, &e);
        DL_FOREACH_SAFE (calls->out, c, next)
                om_op_cancel(&c->op);
        stopped_when_empty(calls);
}
