/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The storage on PostgreSQL: `postgresql://USER@HOST/DATABASE`. The tables are schema.c's. This file opens it, keeps its connections, and
 * closes it.
 *
 * How it keeps the promises of store.h:
 *   S1  a write completes with its transaction's commit; whether that survives the server is what `durability` in its health says;
 *   S2  what expires says when in its row, and is not read after it, by the clock of the daemon that reads; the sweeper deletes it later;
 *   S3  INSERT … ON CONFLICT on a unique index;  S4  a cursor holds the place itself, in an order that an index has;
 *   S5  what is not there is an answer without rows.
 *
 * Writes go by the first connection that is up, in the order in which they came, and those that wait go together in one statement: one
 * commit for all. Reads go by the others. Connections are made by a worker, one after the other; the second and further ones when the
 * first is up.
 *
 * Loop thread.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "errors.h"
#include "session.h"
#include "store_state.h"

enum { OPS_MAX = 4096, BYTES_MAX = 128 << 20, BACKOFF_MS = 100, BACKOFF_MAX_MS = 2000 };

enum slot_state {
        SLOT_IDLE,       /* waits for its timer, or for the first one to be up */
        SLOT_CONNECTING, /* the worker has it */
        SLOT_UP,
};
struct om_pg_slot {
        struct om_work work; /* first */
        struct om_post made;
        struct om_store *store;
        struct om_pg_link *link;
        enum slot_state state;
        struct event *timer;
        unsigned attempts;
        /* the worker's, while CONNECTING */
        PGconn *conn;
        int status;
        struct om_error error;
        char said[sizeof((struct om_error *) 0)->message]; /* the last failure that was logged */
};

static void check_closed(struct om_store *s);

/* -- jobs ------------------------------------------------------------------------------------------------------------- */

static void free_job(struct om_job *j) { free(j); }

static bool is_dropped(const struct om_pg_request *r) {
        const struct om_pg_job *j = OM_PG_JOB_OF(r, const struct om_pg_job);

        return !j->own && om_job_is_cancelled(&j->job);
}

int om_pg_job_new(
        struct om_store *s, struct om_op *op, size_t size, size_t bytes, void (*free_it)(struct om_job *), void *ret, struct om_error *e) {
        struct om_pg_job *j;
        int r;

        if (s->n_up == 0) {
                if (e)
                        *e = s->why;
                return om_error_set(e, OM_UNAVAILABLE, "%s", s->why.message);
        }
        r = om_job_admit(&s->jobs, OPS_MAX, BYTES_MAX, bytes, "PostgreSQL", e);
        if (r < 0) {
                for (int64_t i = 0; i < s->settings.connections; i++)
                        om_pg_link_drop(s->slots[i].link);
                r = om_job_admit(&s->jobs, OPS_MAX, BYTES_MAX, bytes, "PostgreSQL", e);
        }
        if (r < 0)
                return r;
        j = calloc(1, size);
        if (!j)
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        j->store = s;
        j->own = !op;
        j->req.dropped = is_dropped;
        om_job_begin(&s->jobs, &j->job, op, bytes, free_it ? free_it : free_job);
        *(void **) ret = j;
        return 0;
}

static struct om_pg_link *writer(const struct om_store *s) {
        for (int64_t i = 0; i < s->settings.connections; i++)
                if (s->slots[i].state == SLOT_UP)
                        return s->slots[i].link;
        return NULL;
}
const struct om_pg_link *om_pg_writer(const struct om_store *s) { return writer(s); }

/* Of the others the one with the least to do. */
static struct om_pg_link *reader(const struct om_store *s) {
        struct om_pg_link *best = NULL, *first = writer(s);

        for (int64_t i = 0; i < s->settings.connections; i++) {
                struct om_pg_link *l = s->slots[i].link;

                if (s->slots[i].state == SLOT_UP && l != first && (!best || om_pg_link_load(l) < om_pg_link_load(best)))
                        best = l;
        }
        return best ? best : first;
}

void om_pg_job_send(struct om_pg_job *j, bool first) {
        struct om_pg_link *l = j->writes ? writer(j->store) : reader(j->store);
        struct om_error e = j->store->why;

        if (!l) {
                e.kind = OM_UNAVAILABLE;
                j->req.answer(&j->req, -EAGAIN, "", NULL, &e);
        } else if (first)
                om_pg_link_add_first(l, &j->req);
        else
                om_pg_link_add(l, &j->req);
}

void om_pg_job_over(struct om_pg_job *j, int status, const struct om_error *e) {
        struct om_store *s = j->store;

        om_job_over(&j->job, status, e);
        if (s->closing)
                check_closed(s);
}

void om_pg_job_no_memory(struct om_pg_job *j) {
        struct om_error e;
        int r = om_error_set_errno(&e, ENOMEM, "PostgreSQL");

        om_pg_job_over(j, r, &e);
}

/* -- states ----------------------------------------------------------------------------------------------------------- */

static void set_state(struct om_store *s, enum om_store_state state, const struct om_error *e) {
        bool same = s->state == state && (state == OM_STORE_READY || strcmp(s->why.message, e->message) == 0);

        s->state = state;
        s->why = state == OM_STORE_READY ? (struct om_error) OM_ERROR_INIT : *e;
        if (!same && !s->closing)
                s->events->state(s->core, state, state == OM_STORE_READY ? NULL : e);
}

/* Waiting will not help where the server is there and says no. */
static enum om_store_state state_of(const struct om_error *e) {
        return e->kind == OM_UNAVAILABLE || e->kind == OM_TIMEOUT ? OM_STORE_CONNECTING : OM_STORE_FAILED;
}

/* -- connections ------------------------------------------------------------------------------------------------------ */

static void connect_slot(struct om_pg_slot *slot) {
        struct om_store *s = slot->store;

        if (slot->state != SLOT_IDLE || s->closing || (s->n_up == 0 && slot != s->slots))
                return;
        slot->state = SLOT_CONNECTING;
        s->host->ops->worker_submit(s->connector, &slot->work);
}

static void connect_after(struct om_pg_slot *slot, int64_t ms) {
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        if (!slot->store->closing)
                event_add(slot->timer, &tv);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) { connect_slot(ctx); }

/* The worker's thread: one connection after the other. */
static int connect_turn(void *ctx, struct om_work *list) {
        struct om_store *s = ctx;

        while (list) {
                struct om_pg_slot *slot = (struct om_pg_slot *) (void *) list;
                struct om_pg_wait w = { .abort_fd = s->abort_fd };

                list = list->next;
                slot->error = (struct om_error) OM_ERROR_INIT;
                slot->conn = NULL;
                slot->status = om_pg_session(&s->settings, &w, &slot->conn, &slot->error);
                om_host_post(s->host, &slot->made);
        }
        return -1;
}

static void failed(struct om_pg_slot *slot) {
        struct om_store *s = slot->store;

        slot->state = SLOT_IDLE;
        if (s->n_up == 0)
                set_state(s, state_of(&slot->error), &slot->error);
        else if (strcmp(slot->said, slot->error.message) != 0) {
                om_host_log(s->host, OM_LOG_WARNING, "one of the connections to PostgreSQL is missing: %s", slot->error.message);
                snprintf(slot->said, sizeof slot->said, "%s", slot->error.message);
        }
        connect_after(slot, om_backoff_ms(BACKOFF_MS, BACKOFF_MAX_MS, slot->attempts++));
}

static void made(struct om_post *post) {
        struct om_pg_slot *slot = (void *) ((char *) post - offsetof(struct om_pg_slot, made));
        struct om_store *s = slot->store;

        if (slot->status == 0 && s->closing) {
                PQfinish(slot->conn);
                slot->state = SLOT_IDLE;
                return;
        }
        if (slot->status == 0)
                slot->status = om_pg_link_use(slot->link, slot->conn, &slot->error);
        slot->conn = NULL;
        if (slot->status < 0) {
                failed(slot);
                return;
        }
        slot->state = SLOT_UP;
        slot->attempts = 0;
        slot->said[0] = 0;
        if (s->n_up++ == 0) {
                set_state(s, OM_STORE_READY, NULL);
                for (int64_t i = 0; i < s->settings.connections; i++)
                        connect_slot(&s->slots[i]);
        }
}

static void down(void *ctx, struct om_pg_link *link, const struct om_error *e) {
        struct om_store *s = ctx;

        for (int64_t i = 0; i < s->settings.connections; i++)
                if (s->slots[i].link == link && s->slots[i].state == SLOT_UP) {
                        s->slots[i].state = SLOT_IDLE;
                        s->n_up--;
                        connect_after(&s->slots[i], 1);
                }
        if (s->n_up == 0)
                set_state(s, state_of(e), e);
}

static void unsent(void *ctx, struct om_pg_request *r, const struct om_error *e) {
        om_pg_job_send(OM_PG_JOB_OF(r, struct om_pg_job), false);
}

/* -- opening ---------------------------------------------------------------------------------------------------------- */

static void on_sweep(evutil_socket_t fd, short what, void *ctx) { om_pg_sweep(ctx); }

static void store_free(struct om_store *s) {
        if (!s)
                return;
        for (int64_t i = 0; s->slots && i < s->settings.connections; i++) {
                om_pg_link_free(s->slots[i].link);
                if (s->slots[i].timer)
                        event_free(s->slots[i].timer);
        }
        if (s->sweep_timer)
                event_free(s->sweep_timer);
        if (s->abort_fd >= 0)
                close(s->abort_fd);
        free(s->slots);
        om_pg_settings_free(&s->settings);
        free(s);
}

static int make_slots(struct om_store *s, struct om_error *e) {
        const struct om_pg_link_owner owner = { down, unsent, s };
        int r = 0;

        s->slots = calloc((size_t) s->settings.connections, sizeof *s->slots);
        if (!s->slots)
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        for (int64_t i = 0; r == 0 && i < s->settings.connections; i++) {
                struct om_pg_slot *slot = &s->slots[i];

                slot->store = s;
                slot->made.fn = made;
                slot->timer = event_new(s->host->base, -1, 0, on_timer, slot);
                r = slot->timer ? om_pg_link_new(s->host, &s->settings, &owner, &slot->link, e)
                                : om_error_set_errno(e, ENOMEM, "PostgreSQL");
        }
        return r;
}

static int start(struct om_store *s, struct om_error *e) {
        struct timeval tv = { .tv_sec = s->settings.sweep_interval_ms / 1000, .tv_usec = s->settings.sweep_interval_ms % 1000 * 1000 };
        int r = make_slots(s, e);

        if (r < 0)
                return r;
        s->abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (s->abort_fd < 0)
                return om_error_set_errno(e, errno, "PostgreSQL: eventfd");
        s->sweep_timer = event_new(s->host->base, -1, EV_PERSIST, on_sweep, s);
        if (!s->sweep_timer || event_add(s->sweep_timer, &tv) < 0)
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        return s->host->ops->worker_new(s->host, "om-postgresql", connect_turn, s, &s->connector, e);
}

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        struct om_store *s = calloc(1, sizeof *s);
        int r;

        if (!s)
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        s->host = host;
        s->events = events;
        s->core = core;
        s->abort_fd = -1;
        s->jobs.host = host;
        r = om_pg_settings_read(&s->settings, url, e);
        if (r == 0)
                r = start(s, e);
        if (r < 0) {
                store_free(s);
                return r;
        }
        om_error_set(&s->why, OM_UNAVAILABLE, "PostgreSQL: %s: connecting", s->settings.where);
        connect_slot(s->slots);
        *ret = s;
        return 0;
}

/* -- closing ---------------------------------------------------------------------------------------------------------- */

static void is_closed(struct om_post *post) {
        struct om_store *s = (void *) ((char *) post - offsetof(struct om_store, closed_post));
        struct om_op *op = s->closing;

        op->done(op, 0, NULL);
}

/* No job is left: the connections end, then the worker. */
static void end(struct om_store *s) {
        struct om_error e;

        s->ended = true;
        om_error_set(&e, OM_UNAVAILABLE, "PostgreSQL: the storage is closing");
        for (int64_t i = 0; i < s->settings.connections; i++) {
                event_del(s->slots[i].timer);
                om_pg_link_end(s->slots[i].link, &e);
        }
        event_del(s->sweep_timer);
        eventfd_write(s->abort_fd, 1);
        s->host->ops->worker_stop(s->connector, &s->closed_post);
}

static void on_check(struct om_post *post) {
        struct om_store *s = (void *) ((char *) post - offsetof(struct om_store, check_post));
        struct om_error e;

        s->checking = false;
        if (s->ended)
                return;
        if (s->forced && s->jobs.n > 0) {
                om_error_set(&e, OM_UNAVAILABLE, "PostgreSQL: the storage is closing");
                eventfd_write(s->abort_fd, 1);
                for (int64_t i = 0; i < s->settings.connections; i++)
                        om_pg_link_end(s->slots[i].link, &e);
        }
        if (!s->ended && s->jobs.n == 0)
                end(s);
}

static void check_closed(struct om_store *s) {
        if (s->checking || s->ended)
                return;
        s->checking = true;
        om_host_post(s->host, &s->check_post);
}

/* The core's patience is over: what the server still owes is given up. */
static void close_cancel(struct om_op *op) {
        struct om_store *s = op->backend;

        s->forced = true;
        check_closed(s);
}

static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        op->backend = s;
        op->cancel = close_cancel;
        s->closing = op;
        s->closed_post.fn = is_closed;
        s->check_post.fn = on_check;
        check_closed(s);
        return 0;
}

OM_MODULE const struct om_store_ops om_postgresql_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "postgresql",
        .schemes = (const char *const[]){ "postgresql", "postgres", NULL },
        .doc = "PostgreSQL tables with JSONB and full-text search",
        .capabilities = OM_STORE_TTL | OM_STORE_SEARCH | OM_STORE_SHARED | OM_STORE_QUERY,
        .options = om_pg_options,
        .open = store_open,
        .put = om_pg_store_put,
        .get = om_pg_store_get,
        .list = om_pg_store_list,
        .remove = om_pg_store_remove,
        .put_if_absent = om_pg_store_put_if_absent,
        .health = om_pg_store_health,
        .query = om_pg_store_query,
        .close = store_close,
        .destroy = store_free,
};
