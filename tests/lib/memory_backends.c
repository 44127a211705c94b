/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bus and a storage in memory, for tests of the core. Simple and slow on purpose: lists, and a post for each completion.
 *
 * What it keeps true, so that the tests may rely on it: nothing completes before its call has returned; a delivery is out until a settle
 * that names it completes with 0 or -ESTALE; effects are written to the log in the order in which they happen. Loop thread.
 */
#include "memory_backends.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/registry.h"
#include "../../proto/task.h"

struct mem mem;

/* -- the log ------------------------------------------------------------------------------------------------------- */

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...) {
        va_list args;
        int n;

        va_start(args, format);
        n = vsnprintf(mem.log + mem.log_len, sizeof mem.log - mem.log_len, format, args);
        va_end(args);
        if (n > 0 && mem.log_len + (size_t) n < sizeof mem.log)
                mem.log_len += (size_t) n;
}
void mem_log_clear(void) {
        mem.log_len = 0;
        mem.log[0] = '\0';
}
bool mem_logged(const char *text) { return strstr(mem.log, text) != NULL; }
bool mem_before(const char *first, const char *then) {
        const char *a = strstr(mem.log, first), *b = strstr(mem.log, then);

        return a && b && a < b;
}

/* -- completions --------------------------------------------------------------------------------------------------- */

enum what { PUBLISH, SETTLE, PUT, QUERY, OTHER };
struct pending {
        struct om_post post; /* first */
        struct pending *next;
        struct om_op *op;
        enum what what;
        int status;
        bool held, posted;
        void (*effect)(struct om_op *op); /* when it completes with 0 */
};
static struct pending *held;
static struct om_host *host;

static void complete(struct om_post *post) {
        struct pending *p = (struct pending *) post;
        struct om_op *op = p->op;
        struct om_error e = OM_ERROR_INIT;
        int status = p->status;

        if (status == 0)
                p->effect(op);
        else
                om_error_set_errno(&e, status, "mem");
        free(p);
        op->done(op, status, &e);
}
static void send_off(struct pending *p) {
        p->held = false;
        om_host_post(host, &p->post);
}
static void unhold(struct pending *p) {
        for (struct pending **q = &held; *q; q = &(*q)->next)
                if (*q == p) {
                        *q = p->next;
                        break;
                }
}
static void cancel(struct om_op *op) {
        struct pending *p = op->backend;

        mem.cancels++;
        if (!p->held)
                return;
        unhold(p);
        p->status = -ECANCELED;
        send_off(p);
}
static void start(struct om_op *op, enum what what, bool hold, int status, void (*effect)(struct om_op *op)) {
        struct pending *p = calloc(1, sizeof *p);

        *p = (struct pending){ .post = { .fn = complete }, .op = op, .what = what, .status = status, .effect = effect };
        op->backend = p;
        op->cancel = mem.faults.no_cancel ? NULL : cancel;
        if (!hold) {
                send_off(p);
                return;
        }
        p->held = true;
        struct pending **q = &held;
        while (*q)
                q = &(*q)->next;
        *q = p;
}
void mem_release(void) {
        struct pending *p;

        mem.faults.publish_hold = mem.faults.settle_hold = mem.faults.put_hold = mem.faults.query_hold = mem.faults.subscribe_hold = false;
        while ((p = held)) {
                held = p->next;
                send_off(p);
        }
}
unsigned mem_held(void) {
        unsigned n = 0;

        for (struct pending *p = held; p; p = p->next)
                n++;
        return n;
}
static void no_effect(struct om_op *op) {}

/* -- the bus ------------------------------------------------------------------------------------------------------- */

struct entry {                       /* one task for one group */
        struct om_delivery delivery; /* first */
        struct entry *next;
        char id[OM_NAME_MAX + 1];
        struct om_post post;
        int64_t due_ms;
        bool out;
        struct om_bus_sub *group;
        char record[];
};
struct om_bus_sub {
        struct om_bus_sub *next;
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
        struct entry *queue;
        void *core;
        unsigned want, dead;
        bool served, posted;
        struct om_post post;
};
struct task {
        struct task *next;
        char topic[OM_TOPIC_MAX + 1];
        char record[];
};
struct om_bus {
        struct om_bus_sub *groups;
        struct task *log;
        const struct om_bus_events *events;
        void *core;
        struct om_post ready;
};
static struct om_bus *bus;

static void copy(char *to, size_t size, struct om_span from) { snprintf(to, size, "%.*s", OM_PRI(from)); }

static void pump(struct om_bus_sub *g);
static void deliver_post(struct om_post *post) {
        struct om_bus_sub *g = (void *) ((char *) post - offsetof(struct om_bus_sub, post));
        struct om_delivery *list[64];
        size_t n = 0;

        g->posted = false;
        for (struct entry *e = g->queue; e && n < 64 && g->served && g->want; e = e->next) {
                if (e->out || e->due_ms > om_now_ms())
                        continue;
                e->out = true;
                e->delivery.sub = g;
                e->delivery.gone = false;
                e->delivery.core = NULL;
                list[n++] = &e->delivery;
                g->want--;
                mem.out++;
        }
        if (mem.out > mem.max_out)
                mem.max_out = mem.out;
        if (n)
                bus->events->deliver(g->core, list, n);
        if (n == 64)
                pump(g);
}
static void pump(struct om_bus_sub *g) {
        if (g->posted || !g->served)
                return;
        g->posted = true;
        g->post.fn = deliver_post;
        om_host_post(host, &g->post);
}
static void enqueue(struct om_bus_sub *g, const char *record, const char *id) {
        struct entry *e = calloc(1, sizeof *e + strlen(record) + 1), **p = &g->queue;

        strcpy(e->record, record);
        snprintf(e->id, sizeof e->id, "%s", id);
        e->delivery.record = om_span_of(e->record);
        e->delivery.attempt = 1;
        e->group = g;
        while (*p)
                p = &(*p)->next;
        *p = e;
        pump(g);
}
static void publish_one(const struct om_bus_task *t) {
        struct task *copy_of = calloc(1, sizeof *copy_of + t->record.len + 1), **p = &bus->log;
        char id[OM_NAME_MAX + 1];

        memcpy(copy_of->record, t->record.p, t->record.len);
        copy(copy_of->topic, sizeof copy_of->topic, t->task->topic);
        copy(id, sizeof id, t->task->id);
        while (*p)
                p = &(*p)->next;
        *p = copy_of;
        note("publish %s;", id);
        for (struct om_bus_sub *g = bus->groups; g; g = g->next)
                if (strcmp(g->topic, copy_of->topic) == 0)
                        enqueue(g, copy_of->record, id);
}

/* What was borrowed is copied; it takes effect when it completes. */
struct kept {
        struct kept *next;
        struct om_op *op;
        size_t n;
        struct om_bus_task *tasks;
        struct om_task *parts;
        char **texts;
};
static struct kept *kept_list;
static void keep(struct om_op *op, const struct om_bus_task *tasks, size_t n) {
        struct kept *k = calloc(1, sizeof *k);

        *k = (struct kept){ .next = kept_list, .op = op, .n = n };
        k->tasks = calloc(n, sizeof *k->tasks);
        k->parts = calloc(n, sizeof *k->parts);
        k->texts = calloc(n, sizeof *k->texts);
        for (size_t i = 0; i < n; i++) {
                k->texts[i] = strndup(tasks[i].record.p, tasks[i].record.len);
                if (om_task_parse(om_span_of(k->texts[i]), "record", &k->parts[i], NULL) < 0)
                        abort();
                /* The parts that the core says are those of the record. */
                if (!om_span_eq(k->parts[i].id, tasks[i].task->id) || !om_span_eq(k->parts[i].topic, tasks[i].task->topic) ||
                        !om_span_eq(k->parts[i].content, tasks[i].task->content) || !om_span_eq(k->parts[i].key, tasks[i].task->key))
                        abort();
                k->tasks[i] = (struct om_bus_task){ .task = &k->parts[i], .record = om_span_of(k->texts[i]) };
        }
        kept_list = k;
}
static void unkeep(struct om_op *op, bool effect) {
        struct kept *mine = NULL, *k;

        for (struct kept **p = &kept_list; *p;) { /* newest first: turned around */
                k = *p;
                if (k->op != op) {
                        p = &k->next;
                        continue;
                }
                *p = k->next;
                k->next = mine;
                mine = k;
        }
        while ((k = mine)) {
                mine = k->next;
                for (size_t i = 0; i < k->n; i++) {
                        if (effect)
                                publish_one(&k->tasks[i]);
                        om_task_deinit(&k->parts[i]);
                        free(k->texts[i]);
                }
                free(k->tasks);
                free(k->parts);
                free(k->texts);
                free(k);
        }
}

static void publish_effect(struct om_op *op) {
        struct om_bus_publish *p = (struct om_bus_publish *) op;

        note("batch PUBLISH %zu;", p->n);
        for (size_t i = 0; i < p->n; i++)
                p->outcomes[i].status = 0;
        unkeep(op, true);
}
static int bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        if (mem.faults.publish_refuse)
                return om_error_set_errno(e, mem.faults.publish_refuse, "mem publish"), mem.faults.publish_refuse;
        mem.publishes++;
        if (mem.faults.publish_fail == 0)
                keep(&op->op, op->tasks, op->n);
        start(&op->op, PUBLISH, mem.faults.publish_hold, mem.faults.publish_fail, publish_effect);
        return 0;
}

static int bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        struct om_bus_sub *g;

        mem.subscribes++;
        for (g = b->groups; g; g = g->next)
                if (om_span_is(op->topic, g->topic) && om_span_is(op->agent, g->agent))
                        break;
        op->ret_created = !g;
        if (!g) {
                bool first = true;

                for (struct om_bus_sub *o = b->groups; o; o = o->next)
                        first = first && !om_span_is(op->topic, o->topic);
                g = calloc(1, sizeof *g);
                copy(g->topic, sizeof g->topic, op->topic);
                copy(g->agent, sizeof g->agent, op->agent);
                g->next = b->groups;
                b->groups = g;
                for (struct task *t = first ? b->log : NULL; t; t = t->next) {
                        struct om_task parts;

                        if (strcmp(t->topic, g->topic) != 0)
                                continue;
                        om_task_parse(om_span_of(t->record), "record", &parts, NULL);
                        char id[OM_NAME_MAX + 1];
                        copy(id, sizeof id, parts.id);
                        enqueue(g, t->record, id);
                        om_task_deinit(&parts);
                }
        }
        g->core = op->core;
        g->served = true;
        g->want = 0;
        op->ret_sub = g;
        start(&op->op, OTHER, mem.faults.subscribe_hold, 0, no_effect);
        return 0;
}
static void bus_unsubscribe(struct om_bus_sub *g) {
        mem.unsubscribes++;
        if (!bus)
                abort(); /* it is gone, and the subscription with it */
        for (struct entry *e = g->queue; e; e = e->next)
                if (e->out)
                        note("LEASED AT UNSUBSCRIBE %s;", e->id);
        g->served = false;
        g->want = 0;
}
static void bus_want(struct om_bus_sub *g, unsigned n) {
        g->want = n;
        note("want %s %u;", g->agent, n);
        pump(g);
}

static void entry_remove(struct entry *e) {
        for (struct entry **p = &e->group->queue; *p; p = &(*p)->next)
                if (*p == e) {
                        *p = e->next;
                        break;
                }
        free(e);
}
static void due(struct om_post *post) {
        struct entry *e = (void *) ((char *) post - offsetof(struct entry, post));

        pump(e->group);
}
static void settle_item(struct om_settlement *s) {
        struct entry *e = (struct entry *) s->delivery;
        static const char *const words[] = { "ack", "retry", "release", "dead" };

        s->outcome.status = 0;
        s->outcome.why = NULL;
        if (e->delivery.gone) {
                s->outcome.status = -ESTALE;
        } else if (mem.faults.settle_outcome && (!mem.faults.settle_outcome_id || strcmp(mem.faults.settle_outcome_id, e->id) == 0)) {
                s->outcome.status = mem.faults.settle_outcome;
                if (s->outcome.status != -ESTALE)
                        return;
        }
        mem.out--;
        if (s->outcome.status == -ESTALE) {
                note("stale %s;", e->id);
                entry_remove(e);
                return;
        }
        note("%s %s;", words[s->verdict], e->id);
        if (s->verdict == OM_DEAD) {
                e->group->dead++;
                note("letter %.*s %.*s %u;", OM_PRI(s->letter->error_type), OM_PRI(s->letter->worker), s->letter->attempts);
        }
        if (s->verdict == OM_ACK || s->verdict == OM_DEAD) {
                entry_remove(e);
                return;
        }
        e->out = false;
        e->delivery.attempt += s->verdict == OM_RETRY;
        e->due_ms = s->verdict == OM_RETRY ? s->due_ms : 0;
        if (e->due_ms > om_now_ms() + 60000)
                e->due_ms = INT64_MAX;
        e->post.fn = due;
        om_host_post(host, &e->post);
}
static void settle_effect(struct om_op *op) {
        struct om_bus_settle *s = (struct om_bus_settle *) op;

        note("batch SETTLE %zu;", s->n);
        unkeep(op, true);
        for (size_t i = 0; i < s->n; i++)
                settle_item(&s->items[i]);
}
static int bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        if (mem.faults.settle_refuse)
                return om_error_set_errno(e, mem.faults.settle_refuse, "mem settle"), mem.faults.settle_refuse;
        mem.settles++;
        for (size_t i = 0; i < op->n && !mem.faults.settle_fail; i++)
                if (op->items[i].n_outputs)
                        keep(&op->op, op->items[i].outputs, op->items[i].n_outputs);
        start(&op->op, SETTLE, mem.faults.settle_hold, mem.faults.settle_fail, settle_effect);
        return 0;
}
static int away(struct om_error *e) { return om_error_set(e, OM_UNAVAILABLE, "mem: away"); }
static int bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        if (mem.faults.query_refuse) {
                mem.faults.query_refuse--;
                return om_error_set(e, OM_LIMIT, "mem: full");
        }
        if (op->type == OM_QUERY_HEALTH && !mem.bus_health)
                return away(e);
        if (op->type == OM_QUERY_HEALTH)
                op->info = om_arena_copy(&op->arena, om_span_of(mem.bus_health));
        start(&op->op, QUERY, op->type == OM_QUERY_TOPICS && mem.faults.query_hold, 0, no_effect);
        return 0;
}
void mem_release_topics(unsigned i, unsigned n_topics) {
        static char name[100];
        struct pending *p = held;
        struct om_bus_query *op;

        for (; p && (p->what != QUERY || i > 0); p = p->next)
                i -= p->what == QUERY;
        if (!p)
                abort();
        op = (struct om_bus_query *) p->op;
        memset(name, 'x', sizeof name);
        op->topics = om_arena_alloc(&op->arena, (n_topics + 1) * sizeof *op->topics);
        op->n = n_topics;
        for (unsigned t = 0; t < n_topics; t++)
                op->topics[t] = (struct om_bus_topic_row){ .topic = { name, sizeof name } };
        unhold(p);
        send_off(p);
}
static int bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        op->ret_n = 1;
        start(&op->op, OTHER, false, 0, no_effect);
        return 0;
}

static int bus_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        if (held)
                abort(); /* no operation of the core is under way */
        start(op, OTHER, false, 0, no_effect);
        return 0;
}
static void bus_destroy(struct om_bus *b) {
        struct om_bus_sub *g;
        struct task *t;

        while ((g = b->groups)) {
                b->groups = g->next;
                while (g->queue)
                        entry_remove(g->queue);
                free(g);
        }
        while ((t = b->log)) {
                b->log = t->next;
                free(t);
        }
        free(b);
        bus = NULL;
}
static void bus_is_ready(struct om_post *post) { mem_bus_state(OM_BUS_READY); }
void mem_bus_state(enum om_bus_state state) {
        struct om_error e = OM_ERROR_INIT;

        if (state != OM_BUS_READY)
                away(&e);
        bus->events->state(bus->core, state, &e);
}
static int bus_open(
        struct om_host *h, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        host = h;
        bus = calloc(1, sizeof *bus);
        bus->events = events;
        bus->core = core;
        bus->ready.fn = bus_is_ready;
        om_host_post(h, &bus->ready);
        *ret = bus;
        return 0;
}

static struct om_bus_ops mem_bus_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "membus",
        .schemes = (const char *const[]){ "membus", NULL },
        .doc = "for tests",
        .open = bus_open,
        .publish = bus_publish,
        .subscribe = bus_subscribe,
        .unsubscribe = bus_unsubscribe,
        .want = bus_want,
        .settle = bus_settle,
        .query = bus_query,
        .change = bus_change,
        .close = bus_close,
        .destroy = bus_destroy,
};

static struct om_bus_sub *group(const char *topic, const char *agent) {
        for (struct om_bus_sub *g = bus->groups; g; g = g->next)
                if (strcmp(g->topic, topic) == 0 && strcmp(g->agent, agent) == 0)
                        return g;
        return NULL;
}
unsigned mem_waiting(const char *topic, const char *agent) {
        const struct om_bus_sub *g = group(topic, agent);
        unsigned n = 0;

        for (const struct entry *e = g ? g->queue : NULL; e; e = e->next)
                n += !e->out;
        return n;
}
unsigned mem_dead(const char *topic, const char *agent) { return group(topic, agent) ? group(topic, agent)->dead : 0; }
void mem_revoke(const char *task_id) {
        for (struct om_bus_sub *g = bus->groups; g; g = g->next)
                for (struct entry *e = g->queue; e; e = e->next)
                        if (e->out && strcmp(e->id, task_id) == 0) {
                                struct om_delivery *one = &e->delivery;

                                one->gone = true;
                                bus->events->revoked(g->core, &one, 1);
                                return;
                        }
}

/* -- the storage --------------------------------------------------------------------------------------------------- */

struct thing {
        struct thing *next;
        enum om_store_kind kind;
        char *key, *name, *value;
        int64_t expires_ms;
};
struct om_store {
        struct thing *things; /* oldest first */
        const struct om_store_events *events;
        void *core;
        struct om_post ready;
};
static struct om_store *store;

static char *text(struct om_span s) { return strndup(s.p ? s.p : "", s.len); }

static void thing_free(struct thing *t) {
        free(t->key);
        free(t->name);
        free(t->value);
        free(t);
}
/* An absent key, an absent name: any. */
static bool matches(const struct thing *t, enum om_store_kind kind, struct om_span key, struct om_span name) {
        return t->kind == kind && (!key.p || om_span_is(key, t->key)) && (!name.p || om_span_is(name, t->name));
}
/* The newest. */
static struct thing *find(enum om_store_kind kind, struct om_span key, struct om_span name) {
        struct thing *found = NULL;

        for (struct thing *t = store->things; t; t = t->next)
                if (matches(t, kind, key, name))
                        found = t;
        return found;
}
static uint64_t remove_all(enum om_store_kind kind, struct om_span key, struct om_span name) {
        uint64_t n = 0;

        for (struct thing **p = &store->things; *p;) {
                struct thing *t = *p;

                if (!matches(t, kind, key, name)) {
                        p = &t->next;
                        continue;
                }
                *p = t->next;
                thing_free(t);
                n++;
        }
        return n;
}
static void add(enum om_store_kind kind, struct om_span key, struct om_span name, struct om_span value) {
        struct thing *t = calloc(1, sizeof *t), **p = &store->things;

        *t = (struct thing){ .kind = kind, .key = text(key), .name = text(name), .value = text(value) };
        if (kind != OM_STORE_METRICS)
                remove_all(kind, om_span_of(t->key), om_span_of(t->name));
        while (*p)
                p = &(*p)->next;
        *p = t;
}
const char *mem_stored(enum om_store_kind kind, const char *key, const char *name) {
        const struct thing *t = find(kind, om_span_of(key), name ? om_span_of(name) : OM_SPAN_NONE);

        return t ? t->value : NULL;
}
void mem_store(enum om_store_kind kind, const char *key, const char *name, const char *value) {
        add(kind, om_span_of(key), om_span_of(name), om_span_of(value));
}
struct put_copy {
        struct put_copy *next;
        struct om_op *op;
        struct thing *things; /* in order */
};
static struct put_copy *put_copies;

static void put_effect(struct om_op *op) {
        struct om_store_put *p = (struct om_store_put *) op;
        size_t i = 0;

        if (p->kind == OM_STORE_RESULTS)
                note("batch PUT %zu;", p->n);
        for (struct put_copy **q = &put_copies; *q; q = &(*q)->next) {
                struct put_copy *c = *q;
                struct thing *t;

                if (c->op != op)
                        continue;
                while ((t = c->things)) {
                        c->things = t->next;
                        p->outcomes[i].status = mem.faults.put_outcome;
                        p->outcomes[i++].why = NULL;
                        if (!mem.faults.put_outcome) {
                                if (t->kind == OM_STORE_RESULTS)
                                        note("put %s;", t->key);
                                add(t->kind, om_span_of(t->key), om_span_of(t->name), om_span_of(t->value));
                                mem.entries++;
                        }
                        thing_free(t);
                }
                *q = c->next;
                free(c);
                return;
        }
}
static int store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        int fail = op->kind == OM_STORE_RESULTS ? mem.faults.put_fail : 0;

        if (mem.faults.store_away)
                return away(e);
        if (op->kind == OM_STORE_RESULTS && mem.faults.put_refuse)
                return om_error_set_errno(e, mem.faults.put_refuse, "mem put"), mem.faults.put_refuse;
        mem.puts += op->kind == OM_STORE_RESULTS;
        if (!fail) {
                struct put_copy *c = calloc(1, sizeof *c);
                struct thing **tail = &c->things;

                c->op = &op->op;
                for (size_t i = 0; i < op->n; i++) {
                        struct thing *t = calloc(1, sizeof *t);

                        *t = (struct thing){ .kind = op->kind,
                                .key = text(op->entries[i].key),
                                .name = text(op->entries[i].name),
                                .value = text(op->entries[i].value) };
                        *tail = t;
                        tail = &t->next;
                }
                c->next = put_copies;
                put_copies = c;
        }
        start(&op->op, PUT, op->kind == OM_STORE_RESULTS && mem.faults.put_hold, fail, put_effect);
        return 0;
}
static struct om_store_entry entry_of(const struct thing *t, struct om_arena *arena) {
        return (struct om_store_entry){ .key = om_arena_copy(arena, om_span_of(t->key)),
                .name = om_arena_copy(arena, om_span_of(t->name)),
                .value = om_arena_copy(arena, om_span_of(t->value)) };
}
static int store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        const struct thing *t = find(op->kind, op->key, op->name);

        if (mem.faults.store_away)
                return away(e);
        if (t)
                op->entry = entry_of(t, &op->arena);
        start(&op->op, OTHER, false, t ? 0 : -ENOENT, no_effect);
        return 0;
}
/* Pages of two, so that cursors are met. Settings are asked for by the beginning of their keys. */
static void list_effect(struct om_op *op) {
        struct om_store_list *l = (struct om_store_list *) op;
        bool config = l->kind == OM_STORE_CONFIG;
        int from = l->cursor.p ? atoi(l->cursor.p) : 0, at = 0;
        struct thing *t = store->things;
        char cursor[24];

        l->entries = om_arena_alloc(&l->arena, 2 * sizeof *l->entries);
        for (; t && l->n < 2; t = t->next)
                if (at++ >= from && matches(t, l->kind, l->key, config ? OM_SPAN_NONE : l->name) &&
                        (!config || !l->name.p || strncmp(t->key, l->name.p, l->name.len) == 0))
                        l->entries[l->n++] = entry_of(t, &l->arena);
        snprintf(cursor, sizeof cursor, "%d", at);
        if (t)
                l->next_cursor = om_arena_copy(&l->arena, om_span_of(cursor));
}
static int store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        if (mem.faults.store_away)
                return away(e);
        start(&op->op, OTHER, false, 0, list_effect);
        return 0;
}
static void delete_effect(struct om_op *op) {
        struct om_store_delete *d = (struct om_store_delete *) op;

        d->ret_n = remove_all(d->kind, d->key, d->name);
}
static int store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        if (mem.faults.store_away)
                return away(e);
        start(&op->op, OTHER, false, 0, delete_effect);
        return 0;
}
static void put_if_absent_effect(struct om_op *op) {
        struct om_store_put_if_absent *p = (struct om_store_put_if_absent *) op;
        const struct thing *t = find(OM_STORE_KEYS, p->key, OM_SPAN_NONE);

        p->ret_stored = !t;
        if (t)
                p->ret_value = om_arena_copy(&p->arena, om_span_of(t->value));
        else
                add(OM_STORE_KEYS, p->key, OM_SPAN_NONE, p->value);
}
static int store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        if (mem.faults.store_away)
                return away(e);
        start(&op->op, OTHER, false, 0, put_if_absent_effect);
        return 0;
}
static int store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        if (mem.faults.store_away || !mem.store_health)
                return away(e);
        op->info = om_arena_copy(&op->arena, om_span_of(mem.store_health));
        start(&op->op, OTHER, false, 0, no_effect);
        return 0;
}
static int store_query(struct om_store *s, struct om_store_query *op, struct om_error *e) {
        struct om_buf b = OM_BUF_INIT;

        if (mem.faults.store_away)
                return away(e);
        mem.query_limit = op->limit;
        mem.query_timeout_ms = op->timeout_ms;
        om_buf_lit(&b, "{\"columns\":[\"text\"],\"rows\":[[");
        om_buf_json_span(&b, op->text);
        om_buf_lit(&b, "]],\"truncated\":false}");
        op->answer = om_arena_copy(&op->arena, om_buf_span(&b));
        om_buf_deinit(&b);
        start(&op->op, OTHER, false, 0, no_effect);
        return 0;
}
static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        start(op, OTHER, false, 0, no_effect);
        return 0;
}
static void store_destroy(struct om_store *s) {
        struct thing *t;

        while ((t = s->things)) {
                s->things = t->next;
                thing_free(t);
        }
        free(s);
        store = NULL;
}
void mem_store_state(enum om_store_state state) {
        struct om_error e = OM_ERROR_INIT;

        mem.faults.store_away = state != OM_STORE_READY;
        if (mem.faults.store_away)
                away(&e);
        store->events->state(store->core, state, &e);
}
static void store_is_ready(struct om_post *post) { mem_store_state(OM_STORE_READY); }
static int store_open(struct om_host *h, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        host = h;
        store = calloc(1, sizeof *store);
        store->events = events;
        store->core = core;
        store->ready.fn = store_is_ready;
        om_host_post(h, &store->ready);
        *ret = store;
        return 0;
}
static struct om_store_ops mem_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "memstore",
        .schemes = (const char *const[]){ "memstore", NULL },
        .doc = "for tests",
        .open = store_open,
        .put = store_put,
        .get = store_get,
        .list = store_list,
        .remove = store_remove,
        .put_if_absent = store_put_if_absent,
        .health = store_health,
        .close = store_close,
        .destroy = store_destroy,
};

static bool can_query;

void mem_use(unsigned bus_capabilities) {
        static bool registered;

        memset(&mem, 0, sizeof mem);
        mem.bus_health = mem.store_health = "{\"durability\":\"strong\"}";
        mem_bus_ops.capabilities = bus_capabilities;
        mem_store_ops.capabilities = can_query ? OM_STORE_QUERY : 0;
        mem_store_ops.query = can_query ? store_query : NULL;
        if (!registered) {
                om_registry_add_bus(&mem_bus_ops);
                om_registry_add_store(&mem_store_ops);
        }
        registered = true;
}

void mem_can_query(void) { can_query = true; }
