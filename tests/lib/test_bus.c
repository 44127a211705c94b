/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bus in memory, the plainest that keeps the contract of bus.h, without any capability: lists, walked from end to end. One core, three
 * fronts (front.h). It is what a test of the contract is tested with, and a model of what any bus does.
 *
 * Who touches what: topics, groups and copies of tasks are the front's, where jobs run one at a time; subs, and deliveries once they were
 * handed over, are the loop's. A delivery made by a job reaches the loop with that job's end.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/registry.h"
#include "front.h"
#include "test_bus.h"

struct task {
        struct task *next; /* of its topic, in publish order */
        uint64_t sequence;
        struct om_arena arena;
        struct om_span record;
};

/* Where a task stands for a group, from its first delivery until it is finished. */
enum held_state { OUT, WAITING, DEAD, GONE /* its group was deleted */ };
struct held {
        struct held *next; /* of its group, oldest first */
        struct task *task;
        enum held_state state;
        uint32_t attempt;
        int64_t due_ms; /* WAITING */
        struct om_arena arena;
        struct om_dead_letter letter; /* DEAD */
};

struct group {
        struct group *next;
        struct topic *topic;
        char agent[OM_NAME_MAX + 1];
        uint64_t cursor; /* sequence of the last task that was taken */
        struct held *held;
        struct om_bus_sub *sub; /* who serves it; NULL: nobody */
        unsigned want;
        uint64_t finished;
};

struct topic {
        struct topic *next;
        char name[OM_TOPIC_MAX + 1];
        struct task *tasks;
        struct group *groups;
        uint64_t published;
};

struct om_bus_sub {
        struct om_bus *bus;
        void *core;
        struct group *group; /* the front's */
        bool ended;          /* the loop's: no events any more */
};

struct delivery {
        struct om_delivery delivery; /* first */
        struct delivery *next;       /* of the job that made it; then of the bus, while it is out */
        struct held *held;
        struct group *group;
        struct om_arena arena;
};

struct om_bus {
        struct om_host *host;
        const struct om_bus_events *events;
        void *core;
        struct front *front;
        struct topic *topics;  /* the front's */
        struct group *deleted; /* the front's: deliveries may still point to them */
        struct delivery *out;  /* the loop's: handed over, not settled */
        struct event *retries; /* the loop's: when the next task is due */
        struct om_post ready, stopped;
        struct om_op *closing;
};

enum type { PUBLISH, SUBSCRIBE, UNSUBSCRIBE, WANT, DUE, SETTLE, QUERY, CHANGE };

struct job {
        struct front_job job; /* first */
        struct om_bus *bus;
        enum type type;
        struct om_op *op; /* NULL: no operation */
        atomic_bool cancelled;
        struct om_arena arena;
        struct om_span topic, agent, cursor, *ids;
        size_t n_ids;
        struct om_bus_sub *sub;
        unsigned want;
        struct input { /* a task, or what settles one */
                struct om_span topic, record;
                struct om_dead_letter letter;
        } * inputs;
        int result;
        struct om_error error;
        struct delivery *made, **made_end; /* to be handed over */
        struct group *deleted;             /* its deliveries are revoked */
        int64_t next_due_ms;               /* INT64_MAX: nothing waits */
};

/* -- the core ------------------------------------------------------------------------------------------------------ */

static struct topic *topic_find(struct om_bus *b, struct om_span name, bool make) {
        struct topic **link = &b->topics;
        for (; *link; link = &(*link)->next)
                if (om_span_is(name, (*link)->name))
                        return *link;
        if (!make)
                return NULL;
        *link = calloc(1, sizeof(**link));
        memcpy((*link)->name, name.p, name.len);
        return *link;
}

static struct group *group_find(struct topic *t, struct om_span agent) {
        for (struct group *g = t ? t->groups : NULL; g; g = g->next)
                if (om_span_is(agent, g->agent))
                        return g;
        return NULL;
}

static void held_remove(struct group *g, struct held *h) {
        struct held **link = &g->held;
        while (*link != h)
                link = &(*link)->next;
        *link = h->next;
        om_arena_deinit(&h->arena);
        free(h);
}

static void task_remove(struct task **link) {
        struct task *task = *link;
        *link = task->next;
        om_arena_deinit(&task->arena);
        free(task);
}

/* Frees tasks that every group has finished; those of a topic without groups wait for the first. */
static void collect(struct topic *t) {
        for (struct task **link = &t->tasks, *task; (task = *link) && t->groups;) {
                bool needed = false;
                for (struct group *g = t->groups; g && !needed; g = g->next) {
                        needed = g->cursor < task->sequence;
                        for (struct held *h = g->held; h && !needed; h = h->next)
                                needed = h->task == task;
                }
                if (needed) {
                        link = &task->next;
                        continue;
                }
                task_remove(link);
        }
}

static struct held *next_for(struct group *g, int64_t now) {
        for (struct held *h = g->held; h; h = h->next)
                if (h->state == WAITING && h->due_ms <= now)
                        return h;
        for (struct task *t = g->topic->tasks; t; t = t->next) {
                if (t->sequence <= g->cursor)
                        continue;
                struct held *h = calloc(1, sizeof(*h)), **link = &g->held;
                h->task = t;
                h->attempt = 1;
                g->cursor = t->sequence;
                while (*link)
                        link = &(*link)->next;
                return *link = h;
        }
        return NULL;
}

/* Makes deliveries for all that is wanted and there. */
static void pump(struct job *job) {
        int64_t now = om_now_ms();
        job->next_due_ms = INT64_MAX;
        for (struct topic *t = job->bus->topics; t; t = t->next)
                for (struct group *g = t->groups; g; g = g->next) {
                        struct held *h;
                        while (g->sub && g->want && (h = next_for(g, now))) {
                                struct delivery *d = calloc(1, sizeof(*d));
                                h->state = OUT;
                                d->held = h;
                                d->group = g;
                                d->delivery.sub = g->sub;
                                d->delivery.attempt = h->attempt;
                                d->delivery.record = om_arena_copy(&d->arena, h->task->record);
                                *job->made_end = d;
                                job->made_end = &d->next;
                                g->want--;
                        }
                        for (h = g->held; h; h = h->next)
                                if (h->state == WAITING && h->due_ms > now && h->due_ms < job->next_due_ms)
                                        job->next_due_ms = h->due_ms;
                }
}

static int run_publish(struct om_bus *b, struct job *job) {
        struct om_bus_publish *op = (struct om_bus_publish *) job->op;
        for (size_t i = 0; i < op->n; i++) {
                struct topic *t = topic_find(b, job->inputs[i].topic, true);
                struct task *task = calloc(1, sizeof(*task)), **link = &t->tasks;
                task->sequence = ++t->published;
                task->record = om_arena_copy(&task->arena, job->inputs[i].record);
                while (*link)
                        link = &(*link)->next;
                *link = task;
                op->outcomes[i] = (struct om_outcome){ 0 };
        }
        return 0;
}

static int run_subscribe(struct om_bus *b, struct job *job) {
        struct om_bus_subscribe *op = (struct om_bus_subscribe *) job->op;
        struct topic *t = topic_find(b, job->topic, true);
        struct group *g = group_find(t, job->agent);
        op->ret_created = !g;
        if (!g) {
                bool first = !t->groups;
                g = calloc(1, sizeof(*g));
                g->topic = t;
                memcpy(g->agent, job->agent.p, job->agent.len);
                g->cursor = op->start == OM_START_FIRST || (op->start == OM_START_DEFAULT && first) ? 0 : t->published;
                g->next = t->groups;
                t->groups = g;
        }
        g->sub = job->sub;
        g->want = 0;
        job->sub->group = g;
        op->ret_sub = job->sub;
        return 0;
}

static void settle_one(struct om_settlement *s, struct input *in) {
        struct delivery *d = (struct delivery *) s->delivery;
        struct held *h = d->held;
        struct group *g = d->group;
        s->outcome = (struct om_outcome){ .status = h->state == GONE ? -ESTALE : 0 };
        if (h->state == GONE)
                return;
        if (s->verdict == OM_ACK) {
                g->finished++;
                held_remove(g, h);
        } else if (s->verdict == OM_DEAD) {
                h->state = DEAD;
                h->letter = in->letter;
                h->letter.record = om_arena_copy(&h->arena, in->letter.record);
                h->letter.error = om_arena_copy(&h->arena, in->letter.error);
                h->letter.error_type = om_arena_copy(&h->arena, in->letter.error_type);
                h->letter.worker = om_arena_copy(&h->arena, in->letter.worker);
        } else {
                h->state = WAITING;
                h->attempt += s->verdict == OM_RETRY;
                h->due_ms = s->verdict == OM_RETRY ? s->due_ms : 0;
        }
        collect(g->topic);
}

static struct om_span dead_id(struct om_arena *a, const struct held *h) {
        char text[24];
        snprintf(text, sizeof(text), "%llu", (unsigned long long) h->task->sequence);
        return om_arena_copy(a, om_span_of(text));
}

static bool is_asked(const struct job *job, const struct held *h) {
        struct om_arena a = { 0 };
        bool asked = job->n_ids == 0;
        for (size_t i = 0; i < job->n_ids && !asked; i++)
                asked = om_span_eq(job->ids[i], dead_id(&a, h));
        om_arena_deinit(&a);
        return h->state == DEAD && asked;
}

static void count_group(struct group *g, struct om_bus_group_row *row) {
        for (struct task *t = g->topic->tasks; t; t = t->next)
                row->lag += t->sequence > g->cursor;
        for (struct held *h = g->held; h; h = h->next) {
                row->leased += h->state == OUT;
                row->retrying += h->state == WAITING;
                row->dead += h->state == DEAD;
        }
        row->finished = g->finished;
}

static int run_dead(struct om_bus *b, struct job *job, struct om_bus_query *op) {
        struct group *g = group_find(topic_find(b, job->topic, false), job->agent);
        uint64_t after = job->cursor.p ? strtoull(job->cursor.p, NULL, 10) : 0;
        if (!g)
                return om_error_set(&job->error, OM_NOT_FOUND, "no such group");
        op->dead = om_arena_alloc(&op->arena, (g->topic->published + 1) * sizeof(op->dead[0]));
        for (struct held *h = g->held; h; h = h->next) {
                if (!is_asked(job, h) || h->task->sequence <= after)
                        continue;
                if (op->limit && op->n == op->limit) {
                        op->next_cursor = op->dead[op->n - 1].id;
                        break;
                }
                struct om_dead_letter *l = &op->dead[op->n++];
                *l = h->letter;
                l->id = dead_id(&op->arena, h);
                l->record = om_arena_copy(&op->arena, h->letter.record);
                l->error = om_arena_copy(&op->arena, h->letter.error);
                l->error_type = om_arena_copy(&op->arena, h->letter.error_type);
                l->worker = om_arena_copy(&op->arena, h->letter.worker);
        }
        return 0;
}

static int run_query(struct om_bus *b, struct job *job) {
        struct om_bus_query *op = (struct om_bus_query *) job->op;
        enum { ROWS = 256 };
        if (op->type == OM_QUERY_DEAD)
                return run_dead(b, job, op);
        if (op->type == OM_QUERY_HEALTH) {
                op->info = om_arena_copy(&op->arena, OM_SPAN("{\"durability\":\"memory\"}"));
                return 0;
        }
        if (op->type == OM_QUERY_TOPICS)
                op->topics = om_arena_alloc(&op->arena, ROWS * sizeof(op->topics[0]));
        else
                op->groups = om_arena_alloc(&op->arena, ROWS * sizeof(op->groups[0]));
        for (struct topic *t = b->topics; t; t = t->next) {
                if (job->topic.p && !om_span_is(job->topic, t->name))
                        continue;
                struct om_bus_topic_row row = { .topic = om_arena_copy(&op->arena, om_span_of(t->name)), .published = t->published };
                for (struct task *task = t->tasks; task; task = task->next)
                        row.depth++;
                for (struct group *g = t->groups; g; g = g->next, row.groups++)
                        if (op->type == OM_QUERY_GROUPS) {
                                struct om_bus_group_row *r = &op->groups[op->n++];
                                *r = (struct om_bus_group_row){ .topic = row.topic,
                                        .agent = om_arena_copy(&op->arena, om_span_of(g->agent)) };
                                count_group(g, r);
                        }
                if (op->type == OM_QUERY_TOPICS)
                        op->topics[op->n++] = row;
        }
        return 0;
}

static int run_change(struct om_bus *b, struct job *job) {
        struct om_bus_change *op = (struct om_bus_change *) job->op;
        struct topic *t = topic_find(b, job->topic, false);
        struct group *g = group_find(t, job->agent);
        if (op->type != OM_CHANGE_DELETE_GROUP && op->type != OM_CHANGE_REPLAY_DEAD && op->type != OM_CHANGE_PURGE_DEAD)
                return om_error_set(&job->error, OM_UNSUPPORTED, "the test bus cannot");
        if (!g)
                return om_error_set(&job->error, OM_NOT_FOUND, "no such group");
        if (op->type == OM_CHANGE_DELETE_GROUP) {
                struct group **link = &t->groups;
                while (*link != g)
                        link = &(*link)->next;
                *link = g->next;
                op->ret_n = 1;
                if (g->sub)
                        g->sub->group = NULL;
                for (struct held *h = g->held; h; h = h->next)
                        h->state = GONE;
                g->next = b->deleted;
                b->deleted = g;
                job->deleted = g;
                collect(t);
                while (!t->groups && t->tasks) /* what was there waited for this group alone */
                        task_remove(&t->tasks);
                return 0;
        }
        for (struct held *h = g->held, *next; h; h = next) {
                next = h->next;
                if (!is_asked(job, h))
                        continue;
                op->ret_n++;
                if (op->type == OM_CHANGE_PURGE_DEAD) {
                        held_remove(g, h);
                        continue;
                }
                h->state = WAITING;
                h->attempt = 1;
                h->due_ms = 0;
        }
        collect(t);
        return 0;
}

static void run_unsubscribe(struct job *job) {
        struct group *g = job->sub->group;
        if (g && g->sub == job->sub)
                g->sub = NULL;
}

static int run_one(struct om_bus *b, struct job *job) {
        if (atomic_load(&job->cancelled))
                return om_error_set_errno(&job->error, ECANCELED, "cancelled");
        switch (job->type) {
        case PUBLISH:
                return run_publish(b, job);
        case SUBSCRIBE:
                return run_subscribe(b, job);
        case UNSUBSCRIBE:
                run_unsubscribe(job);
                return 0;
        case WANT:
                if (job->sub->group)
                        job->sub->group->want = job->want;
                return 0;
        case DUE:
                return 0;
        case SETTLE:
                for (size_t i = 0; i < ((struct om_bus_settle *) job->op)->n; i++)
                        settle_one(&((struct om_bus_settle *) job->op)->items[i], &job->inputs[i]);
                return 0;
        case QUERY:
                return run_query(b, job);
        case CHANGE:
                return run_change(b, job);
        }
        return -EINVAL;
}

static void run(struct front_job *f) {
        struct job *job = (struct job *) f;
        job->result = run_one(job->bus, job);
        pump(job);
}

/* -- back on the loop ---------------------------------------------------------------------------------------------- */

static struct job *job_new(struct om_bus *b, enum type type, struct om_op *op);

static void delivery_free(struct delivery *d) {
        om_arena_deinit(&d->arena);
        free(d);
}

static void unlink_out(struct om_bus *b, struct delivery *d) {
        struct delivery **link = &b->out;
        while (*link && *link != d)
                link = &(*link)->next;
        if (*link)
                *link = d->next;
}

static void hand_over(struct om_bus *b, struct delivery *made) {
        for (struct delivery *d = made, *next; d; d = next) {
                next = d->next;
                struct om_delivery *one = &d->delivery;
                d->next = b->out;
                b->out = d;
                b->events->deliver(one->sub->core, &one, 1);
        }
}

/* The sub ended while they were on their way: they go back by a settlement of our own. */
static void give_back(struct om_bus *b, struct job *made_by) {
        for (struct delivery **link = &made_by->made, *d; (d = *link);) {
                if (!d->delivery.sub->ended) {
                        link = &d->next;
                        continue;
                }
                *link = d->next;
                struct job *job = job_new(b, SETTLE, NULL);
                struct om_bus_settle *settle = om_arena_alloc(&job->arena, sizeof(*settle));
                *settle = (struct om_bus_settle){ .items = om_arena_alloc(&job->arena, sizeof(struct om_settlement)), .n = 1 };
                settle->items[0] = (struct om_settlement){ .delivery = &d->delivery, .verdict = OM_RELEASE };
                job->op = &settle->op;
                job->inputs = om_arena_alloc(&job->arena, sizeof(job->inputs[0]));
                front_submit_always(b->front, &job->job);
        }
}

static void revoke(struct om_bus *b, struct group *g) {
        for (struct delivery *d = b->out; d; d = d->next) {
                struct om_delivery *one = &d->delivery;
                if (d->group != g || one->gone)
                        continue;
                one->gone = true;
                if (!one->sub->ended)
                        b->events->revoked(one->sub->core, &one, 1);
        }
}

static void arm(struct om_bus *b, int64_t due_ms) {
        if (due_ms == INT64_MAX || b->closing)
                return;
        int64_t ms = due_ms - om_now_ms();
        ms = ms < 0 ? 0 : ms + 1;
        struct timeval tv = { ms / 1000, (ms % 1000) * 1000 };
        event_add(b->retries, &tv);
}

static void on_due(evutil_socket_t fd, short what, void *arg) {
        struct om_bus *b = arg;
        if (b->closing)
                return;
        front_submit_always(b->front, &job_new(b, DUE, NULL)->job);
}

static void job_free(struct job *job) {
        om_arena_deinit(&job->arena);
        free(job);
}

static void settled(struct om_bus *b, struct om_bus_settle *op) {
        for (size_t i = 0; i < op->n; i++) {
                unlink_out(b, (struct delivery *) op->items[i].delivery);
                delivery_free((struct delivery *) op->items[i].delivery);
        }
}

static void done(struct front_job *f) {
        struct job *job = (struct job *) f;
        struct om_bus *b = job->bus;
        if (job->type == SETTLE && job->result == 0)
                settled(b, (struct om_bus_settle *) job->op);
        if (job->deleted)
                revoke(b, job->deleted);
        if (job->type == SUBSCRIBE && job->result < 0)
                free(job->sub);
        arm(b, job->next_due_ms);
        bool ours = job->type == SETTLE && !job->op->done;
        if (job->op && !ours)
                job->op->done(job->op, job->result, &job->error);
        give_back(b, job);
        hand_over(b, job->made);
        if (job->type == UNSUBSCRIBE)
                free(job->sub);
        job_free(job);
        if (b->closing && front_count(b->front) == 0)
                front_stop(b->front, &b->stopped);
}

/* -- the contract -------------------------------------------------------------------------------------------------- */

static void cancel(struct om_op *op) { atomic_store(&((struct job *) op->backend)->cancelled, true); }

static struct job *job_new(struct om_bus *b, enum type type, struct om_op *op) {
        struct job *job = calloc(1, sizeof(*job));
        job->job.run = run;
        job->job.done = done;
        job->bus = b;
        job->type = type;
        job->op = op;
        job->made_end = &job->made;
        return job;
}

static int submit(struct job *job, struct om_error *e) {
        int r = front_submit(job->bus->front, &job->job);
        if (r < 0) {
                job_free(job);
                return om_error_set(e, OM_LIMIT, "too much in flight");
        }
        job->op->cancel = cancel;
        job->op->backend = job;
        return 0;
}

static int bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        struct job *job = job_new(b, PUBLISH, &op->op);
        job->inputs = om_arena_alloc(&job->arena, (op->n + 1) * sizeof(job->inputs[0]));
        for (size_t i = 0; i < op->n; i++)
                job->inputs[i] = (struct input){ .topic = om_arena_copy(&job->arena, op->tasks[i].task->topic),
                        .record = om_arena_copy(&job->arena, op->tasks[i].record) };
        return submit(job, e);
}

static int bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        struct om_bus_sub *sub = calloc(1, sizeof(*sub));
        struct job *job = job_new(b, SUBSCRIBE, &op->op);
        sub->bus = b;
        sub->core = op->core;
        job->sub = sub;
        job->topic = om_arena_copy(&job->arena, op->topic);
        job->agent = om_arena_copy(&job->arena, op->agent);
        int r = submit(job, e);
        if (r < 0)
                free(sub);
        return r;
}

static void bus_unsubscribe(struct om_bus_sub *sub) {
        struct job *job = job_new(sub->bus, UNSUBSCRIBE, NULL);
        sub->ended = true;
        job->sub = sub;
        front_submit_always(sub->bus->front, &job->job);
}

static void bus_want(struct om_bus_sub *sub, unsigned n) {
        struct job *job = job_new(sub->bus, WANT, NULL);
        job->sub = sub;
        job->want = n;
        front_submit_always(sub->bus->front, &job->job);
}

static int bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        struct job *job = job_new(b, SETTLE, &op->op);
        job->inputs = om_arena_alloc(&job->arena, (op->n + 1) * sizeof(job->inputs[0]));
        for (size_t i = 0; i < op->n; i++) {
                const struct om_dead_letter *l = op->items[i].letter;
                job->inputs[i] = (struct input){ 0 };
                if (!l)
                        continue;
                job->inputs[i].letter = *l;
                job->inputs[i].letter.record = om_arena_copy(&job->arena, l->record);
                job->inputs[i].letter.error = om_arena_copy(&job->arena, l->error);
                job->inputs[i].letter.error_type = om_arena_copy(&job->arena, l->error_type);
                job->inputs[i].letter.worker = om_arena_copy(&job->arena, l->worker);
        }
        return submit(job, e);
}

static void copy_ids(struct job *job, const struct om_span *ids, size_t n) {
        job->n_ids = n;
        job->ids = om_arena_alloc(&job->arena, (n + 1) * sizeof(ids[0]));
        for (size_t i = 0; i < n; i++)
                job->ids[i] = om_arena_copy(&job->arena, ids[i]);
}

static int bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        struct job *job = job_new(b, QUERY, &op->op);
        op->arena = (struct om_arena){ 0 };
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        job->topic = om_arena_copy(&job->arena, op->topic);
        job->agent = om_arena_copy(&job->arena, op->agent);
        job->cursor = om_arena_copy(&job->arena, op->cursor);
        copy_ids(job, op->ids, op->n_ids);
        return submit(job, e);
}

static int bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        struct job *job = job_new(b, CHANGE, &op->op);
        op->ret_n = 0;
        job->topic = om_arena_copy(&job->arena, op->topic);
        job->agent = om_arena_copy(&job->arena, op->agent);
        copy_ids(job, op->ids, op->n_ids);
        return submit(job, e);
}

static void ready(struct om_post *post) {
        struct om_bus *b = (void *) ((char *) post - offsetof(struct om_bus, ready));
        b->events->state(b->core, OM_BUS_READY, NULL);
}

static void stopped(struct om_post *post) {
        struct om_bus *b = (void *) ((char *) post - offsetof(struct om_bus, stopped));
        b->closing->done(b->closing, 0, NULL);
}

static int open_kind(enum front_kind kind, struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core,
        struct om_bus **ret, struct om_error *e) {
        struct om_bus *b = calloc(1, sizeof(*b));
        int r = om_options_read(NULL, url, NULL, e);
        if (r == 0)
                r = front_new(kind, host, &b->front, e);
        if (r < 0) {
                free(b);
                return r;
        }
        b->host = host;
        b->events = events;
        b->core = core;
        b->retries = evtimer_new(host->base, on_due, b);
        b->ready.fn = ready;
        b->stopped.fn = stopped;
        om_host_post(host, &b->ready);
        *ret = b;
        return 0;
}

static int bus_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        b->closing = op;
        if (front_count(b->front) == 0)
                front_stop(b->front, &b->stopped);
        /* else when the last of what has no completion (an unsubscribe, say) is done */
        return 0;
}

static void groups_free(struct group *g) {
        for (struct group *next; g; g = next) {
                next = g->next;
                while (g->held)
                        held_remove(g, g->held);
                free(g);
        }
}

static void bus_destroy(struct om_bus *b) {
        for (struct topic *t = b->topics, *next; t; t = next) {
                next = t->next;
                groups_free(t->groups);
                while (t->tasks)
                        task_remove(&t->tasks);
                free(t);
        }
        groups_free(b->deleted);
        event_free(b->retries);
        front_free(b->front);
        free(b);
}

#define OPEN(kind, front)                                                                                                \
        static int open_##kind(struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, \
                struct om_bus **ret, struct om_error *e) {                                                               \
                return open_kind(front, host, url, events, core, ret, e);                                                \
        }
OPEN(loop, FRONT_LOOP)
OPEN(thread, FRONT_THREAD)
OPEN(worker, FRONT_WORKER)

#define OPS(kind)                                                                                                                          \
        {                                                                                                                                  \
                .abi = OM_BACKEND_ABI, .name = "test-" #kind, .schemes = (const char *const[]){ "test-" #kind, NULL }, .doc = "for tests", \
                .open = open_##kind, .publish = bus_publish, .subscribe = bus_subscribe, .unsubscribe = bus_unsubscribe, .want = bus_want, \
                .settle = bus_settle, .query = bus_query, .change = bus_change, .close = bus_close, .destroy = bus_destroy                 \
        }
static const struct om_bus_ops ops[] = { OPS(loop), OPS(thread), OPS(worker) };

void test_buses_register(void) {
        for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
                om_registry_add_bus(&ops[i]);
}
