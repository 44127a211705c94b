/* SPDX-License-Identifier: Apache-2.0 */
/* See bus_user.h. Loop thread: the test's own. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/url.h"
#include "bus_user.h"

/* -- the loop ------------------------------------------------------------------------------------------------------ */

static void on_tick(evutil_socket_t fd, short what, void *ctx) {
        (void) fd;
        (void) what;
        (void) ctx;
}

static bool run_until(struct bus_user *u, bool (*over)(void *), void *ctx, int ms) {
        int64_t end = om_clock_ms() + ms;
        struct timeval tick = { 0, 2000 };
        struct event *timer = event_new(om_loop_base(u->loop), -1, EV_PERSIST, on_tick, NULL);

        event_add(timer, &tick);
        while (!over(ctx) && om_clock_ms() < end)
                om_loop_run_once(u->loop, true);
        event_free(timer);
        return over(ctx);
}

static bool flag_set(void *ctx) { return *(const bool *) ctx; }
static bool never(void *ctx) {
        (void) ctx;
        return false;
}
bool bus_until(struct bus_user *u, const bool *flag, int ms) { return run_until(u, flag_set, (void *) (uintptr_t) flag, ms); }
void bus_run(struct bus_user *u, int ms) { run_until(u, never, NULL, ms); }

/* -- completions --------------------------------------------------------------------------------------------------- */

struct waiting {
        struct bus_user *u;
        bool done, returned;
        int status;
};
static struct waiting *current; /* one call at a time */

static void on_done(struct om_op *op, int status, const struct om_error *error) {
        struct waiting *w = current;

        (void) op;
        ck_assert_msg(w && !w->done, "completed twice");
        ck_assert_msg(w->returned, "completed before the call returned");
        w->done = true;
        w->status = status;
        if (status)
                w->u->error = *error;
}

static int finish(struct waiting *w, int r) {
        w->returned = true;
        if (r < 0) {
                current = NULL;
                return r;
        }
        ck_assert_msg(bus_until(w->u, &w->done, 30000), "no completion");
        current = NULL;
        return w->status;
}
static struct waiting *begin(struct waiting *w, struct bus_user *u) {
        *w = (struct waiting){ .u = u };
        ck_assert_ptr_null(current);
        current = w;
        return w;
}

/* -- opening ------------------------------------------------------------------------------------------------------- */

static void on_state(void *core, enum om_bus_state state, const struct om_error *error) {
        struct bus_user *u = core;

        u->state = state;
        u->n_failed += state == OM_BUS_FAILED;
        if (error)
                u->error = *error;
}
static void on_deliver(void *core, struct om_delivery *const *d, size_t n) {
        struct bus_group *g = core;

        if (g->n_got + n > g->cap) {
                g->cap = (g->n_got + n) * 2;
                g->got = realloc(g->got, g->cap * sizeof(struct om_delivery *));
        }
        memcpy(g->got + g->n_got, d, n * sizeof(struct om_delivery *));
        g->n_got += n;
        g->n_ever += (unsigned) n;
}
static void on_revoked(void *core, struct om_delivery *const *d, size_t n) {
        for (size_t i = 0; i < n; i++)
                ck_assert(d[i]->gone);
        ((struct bus_group *) core)->n_revoked += (unsigned) n;
}
static void on_expired(void *core, uint64_t n) { ((struct bus_group *) core)->n_expired += (unsigned) n; }
static const struct om_bus_events events = { on_deliver, on_revoked, on_expired, on_state };

static bool is_ready(void *ctx) { return ((struct bus_user *) ctx)->state == OM_BUS_READY; }

int bus_open(struct bus_user *u, const struct om_bus_ops *ops, const char *url_text, const char *state_dir) {
        struct om_url *url = NULL;
        int r;

        memset(u, 0, sizeof *u);
        u->ops = ops;
        ck_assert_int_eq(om_loop_new(&u->loop, state_dir, &u->error), 0);
        u->host = om_loop_host(u->loop);
        r = om_url_parse(url_text, &url, &u->error);
        if (r == 0)
                r = ops->open(u->host, url, &events, u, &u->bus, &u->error);
        om_url_free(url);
        if (r < 0) {
                om_loop_free(u->loop);
                return r;
        }
        ck_assert_msg(u->state == OM_BUS_CONNECTING, "state() was called from within open()");
        ck_assert_msg(run_until(u, is_ready, u, 30000), "never ready");
        return 0;
}

void bus_close(struct bus_user *u) {
        struct waiting w;
        struct om_op op = { .done = on_done };

        begin(&w, u);
        ck_assert_int_eq(finish(&w, u->ops->close(u->bus, &op, &u->error)), 0);
        u->ops->destroy(u->bus);
        om_loop_free(u->loop);
}

/* -- publishing ---------------------------------------------------------------------------------------------------- */

struct made {
        struct om_task task;
        struct om_buf json, record;
        char id[OM_ID_LEN + 1];
};

static void make(struct made *m, struct om_bus_task *t, const char *json) {
        struct om_error e = OM_ERROR_INIT;

        memset(m, 0, sizeof *m);
        om_buf_puts(&m->json, json);
        ck_assert_msg(om_task_parse(om_buf_span(&m->json), "task", &m->task, &e) == 0, "%s", e.message);
        if (!m->task.id.p) {
                om_task_id_new(m->id);
                m->task.id = om_span_of(m->id);
        }
        m->task.created_ms = om_now_ms();
        om_task_write(&m->record, &m->task);
        t->task = &m->task;
        t->record = om_buf_span(&m->record);
}
static void unmake(struct made *m) {
        om_task_deinit(&m->task);
        om_buf_deinit(&m->json);
        om_buf_deinit(&m->record);
}

static int publish(struct bus_user *u, struct om_bus_task *tasks, size_t n, struct om_outcome *outcomes) {
        struct om_bus_publish op = { .op.done = on_done, .tasks = tasks, .n = n, .outcomes = outcomes };
        struct waiting w;

        begin(&w, u);
        return finish(&w, u->ops->publish(u->bus, &op, &u->error));
}

int bus_put(struct bus_user *u, const char *json, struct om_outcome *ret) {
        struct om_outcome outcome;
        struct om_bus_task task;
        struct made m;
        int r;

        ret = ret ? ret : &outcome;
        make(&m, &task, json);
        r = publish(u, &task, 1, ret);
        unmake(&m);
        return r ? r : ret->status;
}

int bus_put_many(struct bus_user *u, const char *topic, int from, int n) {
        struct om_outcome *outcomes = calloc((size_t) n, sizeof *outcomes);
        struct om_bus_task *tasks = calloc((size_t) n, sizeof *tasks);
        struct made *made = calloc((size_t) n, sizeof *made);
        char json[400];
        int r;

        for (int i = 0; i < n; i++) {
                snprintf(json, sizeof json, "{\"topic\":\"%s\",\"payload\":{\"content\":%d}}", topic, from + i);
                make(&made[i], &tasks[i], json);
        }
        r = publish(u, tasks, (size_t) n, outcomes);
        for (int i = 0; i < n; i++) {
                r = r ? r : outcomes[i].status;
                unmake(&made[i]);
        }
        free(made);
        free(tasks);
        free(outcomes);
        return r;
}

/* -- groups -------------------------------------------------------------------------------------------------------- */

struct bus_group *bus_serve(struct bus_user *u, const char *topic, const char *agent, enum om_start start, int64_t start_ms) {
        struct bus_group *g = calloc(1, sizeof *g);
        struct om_bus_subscribe op = {
                .op.done = on_done, .topic = om_span_of(topic), .agent = om_span_of(agent), .start = start, .start_ms = start_ms, .core = g
        };
        struct waiting w;

        g->u = u;
        begin(&w, u);
        if (finish(&w, u->ops->subscribe(u->bus, &op, &u->error)) < 0) {
                free(g);
                return NULL;
        }
        g->sub = op.ret_sub;
        g->created = op.ret_created;
        return g;
}

void bus_forget(struct bus_group *g) {
        free(g->got);
        free(g);
}

void bus_unserve(struct bus_group *g) {
        struct om_bus_query q = { .type = OM_QUERY_HEALTH };

        g->u->ops->unsubscribe(g->sub);
        bus_query(g->u, &q);
        om_arena_deinit(&q.arena);
        bus_forget(g);
}

static struct {
        struct bus_group *g;
        size_t n;
} wanted;
static bool has_got(void *ctx) {
        (void) ctx;
        return wanted.g->n_got >= wanted.n;
}

size_t bus_take(struct bus_group *g, unsigned n, int ms) {
        size_t before = g->n_got;

        g->u->ops->want(g->sub, n);
        wanted.g = g;
        wanted.n = before + n;
        run_until(g->u, has_got, NULL, ms);
        g->u->ops->want(g->sub, 0);
        return g->n_got - before;
}

int bus_content(const struct om_delivery *d) {
        static const char name[] = "\"content\":";
        const char *p = memmem(d->record.p, d->record.len, name, sizeof name - 1);

        ck_assert_ptr_nonnull(p);
        return atoi(p + sizeof name - 1);
}

static int settle(struct bus_user *u, struct om_settlement *items, size_t n) {
        struct om_bus_settle op = { .op.done = on_done, .items = items, .n = n };
        struct waiting w;
        int r;

        begin(&w, u);
        r = finish(&w, u->ops->settle(u->bus, &op, &u->error));
        for (size_t i = 0; i < n && !r; i++)
                r = items[i].outcome.status;
        return r;
}

static void drop(struct bus_group *g, size_t from, size_t n) {
        memmove(g->got + from, g->got + from + n, (g->n_got - from - n) * sizeof(struct om_delivery *));
        g->n_got -= n;
}

int bus_settle(struct bus_group *g, size_t from, size_t n, enum om_verdict verdict, int64_t due_ms) {
        struct om_settlement *items = calloc(n + 1, sizeof *items);
        struct om_dead_letter letter = {
                .error = OM_SPAN("it broke"), .error_type = OM_SPAN("Broken"), .worker = OM_SPAN("w1"), .attempts = 3, .failed_ms = 12345
        };
        int r;

        for (size_t i = 0; i < n; i++) {
                items[i].delivery = g->got[from + i];
                items[i].verdict = verdict;
                items[i].due_ms = due_ms;
                items[i].letter = verdict == OM_DEAD ? &letter : NULL;
        }
        r = settle(g->u, items, n);
        if (r == 0 || r == -ESTALE)
                drop(g, from, n);
        free(items);
        return r;
}

int bus_ack_publishing(struct bus_group *g, size_t at, const char *const *jsons, size_t n) {
        struct om_bus_task *tasks = calloc(n, sizeof *tasks);
        struct made *made = calloc(n, sizeof *made);
        struct om_settlement item = { .delivery = g->got[at], .verdict = OM_ACK, .outputs = tasks, .n_outputs = n };
        int r;

        for (size_t i = 0; i < n; i++)
                make(&made[i], &tasks[i], jsons[i]);
        r = settle(g->u, &item, 1);
        if (r == 0 || r == -ESTALE)
                drop(g, at, 1);
        for (size_t i = 0; i < n; i++)
                unmake(&made[i]);
        free(made);
        free(tasks);
        return r;
}

/* -- looking in and changing --------------------------------------------------------------------------------------- */

int bus_query(struct bus_user *u, struct om_bus_query *q) {
        struct waiting w;

        q->op.done = on_done;
        begin(&w, u);
        return finish(&w, u->ops->query(u->bus, q, &u->error));
}

struct om_bus_topic_row bus_topic(struct bus_user *u, const char *topic) {
        struct om_bus_query q = { .type = OM_QUERY_TOPICS, .topic = om_span_of(topic) };
        struct om_bus_topic_row row = { 0 };

        ck_assert_int_eq(bus_query(u, &q), 0);
        ck_assert_uint_le(q.n, 1);
        if (q.n)
                row = q.topics[0];
        row.topic = OM_SPAN_NONE;
        om_arena_deinit(&q.arena);
        return row;
}

struct om_bus_group_row bus_group_row(struct bus_user *u, const char *topic, const char *agent) {
        struct om_bus_query q = { .type = OM_QUERY_GROUPS, .topic = om_span_of(topic) };
        struct om_bus_group_row row = { 0 };

        ck_assert_int_eq(bus_query(u, &q), 0);
        for (size_t i = 0; i < q.n; i++)
                if (om_span_is(q.groups[i].agent, agent))
                        row = q.groups[i];
        row.topic = row.agent = OM_SPAN_NONE;
        om_arena_deinit(&q.arena);
        return row;
}

int bus_change(struct bus_user *u, struct om_bus_change *c) {
        struct waiting w;

        c->op.done = on_done;
        begin(&w, u);
        return finish(&w, u->ops->change(u->bus, c, &u->error));
}
