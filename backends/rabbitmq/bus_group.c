/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups: made where there is none, served by consumers, left again.
 *
 * A group is new to the broker when the directory has none. It then claims the topic's holding queue, or has a queue declared and bound,
 * gets what it starts with out of the log, and is put into the directory; what others claimed first is theirs (bus_directory.c).
 *
 * Consumers. Quorum queues take a consumer's prefetch when it begins and do not change it: where the core wants more, or much less, the
 * consumer is cancelled and another takes its place. What the first has brought and is not settled does not count for the second, so what
 * is at hand may exceed for a while what is wanted; it waits here. A group's front queue has a consumer of its own.
 *
 * Always true: a consumer is in `consumers` until the broker has said that it is cancelled, so that what was on its way has an owner.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { LANES_MAX = 100, PREFETCH_MAX = 65535, LIMBO_MS = 3000, FEW_MORE = 64 };

/* -- lanes --------------------------------------------------------------------------------------------------------- */

static void lane_lost(struct lane *lane) {
        struct om_bus *b = lane->bus;
        struct consumer *c, *tmp;

        lane->epoch++;
        HASH_ITER (hh, b->consumers, c, tmp) {
                if (c->lane != lane)
                        continue;
                HASH_DEL(b->consumers, c);
                if (c->sub)
                        LL_DELETE(c->sub->consumers, c);
                free(c);
        }
        for (struct om_bus_sub *s = b->subs; s; s = s->next)
                if (s->lane == lane)
                        rmq_sub_limbo(s);
}

static void lane_back(struct lane *lane) {
        for (struct om_bus_sub *s = lane->bus->subs; s; s = s->next)
                if (s->lane == lane) {
                        if (s->limbo_until_ms)
                                rmq_limbo_from(s, om_clock_ms() + LIMBO_MS);
                        rmq_sub_tune(s);
                }
}

static void on_closed(void *ctx, int status, const struct om_error *e) {
        struct lane *lane = ctx;

        om_host_log(lane->bus->host, OM_LOG_WARNING, "%s", e->message);
        lane_lost(lane);
        lane_back(lane);
}

static void on_cancelled(void *ctx, struct om_span tag);

static const struct rmq_channel_events lane_events = { .delivered = rmq_on_delivered, .closed = on_closed, .cancelled = on_cancelled };

struct lane *rmq_lane_take(struct om_bus *b) {
        struct lane *lane, *least = NULL;

        LL_FOREACH (b->lanes, lane)
                if (!least || lane->n_subs < least->n_subs)
                        least = lane;
        if ((!least || least->n_subs) && b->n_lanes < LANES_MAX && (lane = calloc(1, sizeof *lane))) {
                lane->bus = b;
                lane->epoch = 1;
                lane->channel = rmq_channel_new(b->main, false, &lane_events, lane);
                if (lane->channel) {
                        LL_PREPEND(b->lanes, lane);
                        b->n_lanes++;
                        least = lane;
                } else
                        free(lane);
        }
        if (least)
                least->n_subs++;
        return least;
}

void rmq_lanes_free(struct om_bus *b) {
        struct lane *lane, *next;
        struct consumer *c, *tmp;

        LL_FOREACH_SAFE(b->lanes, lane, next)
        free(lane);
        HASH_ITER (hh, b->consumers, c, tmp) {
                HASH_DEL(b->consumers, c);
                free(c);
        }
}

void rmq_subs_down(struct om_bus *b) {
        struct lane *lane;

        LL_FOREACH (b->lanes, lane)
                lane_lost(lane);
}

void rmq_subs_up(struct om_bus *b) {
        struct lane *lane;

        LL_FOREACH (b->lanes, lane)
                lane_back(lane);
}

/* -- consumers ----------------------------------------------------------------------------------------------------- */

static struct consumer *consumer_by(struct om_bus *b, uint64_t tag) {
        struct consumer *c = NULL;

        HASH_FIND(hh, b->consumers, &tag, sizeof tag, c);
        return c;
}

struct consumer *rmq_consumer_of(struct om_bus *b, struct om_span name) {
        char text[24];

        if (name.len < 2 || name.len >= sizeof text || name.p[0] != 'c')
                return NULL;
        snprintf(text, sizeof text, "%.*s", (int) name.len - 1, name.p + 1);
        return consumer_by(b, strtoull(text, NULL, 10));
}

/* The core has it. One whose consumer is gone is counted by none. */
void rmq_consumer_hold(struct delivery *d) {
        struct consumer *c = d->held ? NULL : consumer_by(d->bus, d->consumer);

        if (!c)
                return;
        d->held = true;
        c->held++;
        c->settling += d->settling > 0;
}

void rmq_consumer_release(struct delivery *d) {
        struct consumer *c = d->held ? consumer_by(d->bus, d->consumer) : NULL;

        d->held = false;
        if (!c)
                return;
        c->held--;
        c->settling -= d->settling > 0;
}

void rmq_consumer_settling(struct delivery *d, int change) {
        struct consumer *c = d->held ? consumer_by(d->bus, d->consumer) : NULL;

        if (c)
                c->settling += (unsigned) change;
}

static void forget(struct consumer *c) {
        struct om_bus *b = c->lane->bus;

        HASH_DEL(b->consumers, c);
        if (c->sub)
                LL_DELETE(c->sub->consumers, c);
        free(c);
        rmq_close_on(b);
}

struct told { /* whom an answer is about, by number: it may be gone by then */
        struct om_bus *bus;
        uint64_t tag;
};

static struct consumer *told_of(struct told *told) { return consumer_by(told->bus, told->tag); }

static struct told *told_new(struct consumer *c) {
        struct told *told = malloc(sizeof *told);

        if (told)
                *told = (struct told){ c->lane->bus, c->tag };
        return told;
}

static void cancel_done(void *ctx, const struct rmq_answer *answer) {
        struct told *told = ctx;
        struct consumer *c = told_of(told);
        struct om_bus_sub *s = c ? c->sub : NULL;

        free(told);
        if (!c || answer->status < 0)
                return;
        forget(c);
        if (s)
                rmq_sub_tune(s);
}

static void cancel_now(struct consumer *c) {
        amqp_basic_cancel_t m = { .nowait = 0 };
        char tag[24];
        struct told *told = told_new(c);

        snprintf(tag, sizeof tag, "c%llu", (unsigned long long) c->tag);
        m.consumer_tag = rmq_text(tag);
        if (!told || rmq_call(c->lane->channel, AMQP_BASIC_CANCEL_METHOD, &m, cancel_done, told) < 0)
                free(told);
}

/* One that has not begun is cancelled when it has: a channel of RabbitMQ 3.10 crashes on a cancel that overtakes a quorum queue's answer.
 */
static void cancel(struct consumer *c) {
        c->cancelling = true;
        if (c->began)
                cancel_now(c);
}

/* A queue that is not there: the group was deleted by hand. The topic's queues are made again when it is next published to. */
static void consumed(void *ctx, const struct rmq_answer *answer) {
        struct told *told = ctx;
        struct consumer *c = told_of(told);

        if (c && answer->status < 0 && answer->status != -EAGAIN) {
                om_host_log(told->bus->host, OM_LOG_WARNING, "group %s of topic %s: %s", c->group->agent, c->group->topic->name,
                        answer->error->message);
                rmq_topic_lost(c->group->topic);
                forget(c);
        } else if (c && answer->status == 0) {
                c->began = true;
                if (c->cancelling)
                        cancel_now(c);
                else if (c->sub)
                        rmq_sub_tune(c->sub);
        }
        free(told);
}

static void consume(struct om_bus_sub *s, bool front, unsigned prefetch) {
        struct om_bus *b = s->bus;
        struct consumer *c = calloc(1, sizeof *c);
        struct told *told;
        char queue[QUEUE_NAME_MAX], tag[24];
        amqp_basic_qos_t qos = { .prefetch_count = (uint16_t) prefetch };
        amqp_basic_consume_t m = { .ticket = 0 };

        if (!c)
                return;
        *c = (struct consumer){ .tag = ++b->last_tag, .sub = s, .group = s->group, .lane = s->lane, .front = front, .prefetch = prefetch };
        HASH_ADD(hh, b->consumers, tag, sizeof c->tag, c);
        if (!c->hh.tbl) {
                free(c);
                return;
        }
        LL_PREPEND(s->consumers, c);
        snprintf(tag, sizeof tag, "c%llu", (unsigned long long) c->tag);
        if (front)
                rmq_queue_name(queue, s->group->topic, s->group, QUEUE_FRONT, 0);
        else
                snprintf(queue, sizeof queue, "%s", s->group->queue);
        m.queue = rmq_text(queue);
        m.consumer_tag = rmq_text(tag);
        told = told_new(c);
        if (!told || rmq_call(s->lane->channel, AMQP_BASIC_QOS_METHOD, &qos, NULL, NULL) < 0 ||
                rmq_call(s->lane->channel, AMQP_BASIC_CONSUME_METHOD, &m, consumed, told) < 0) {
                free(told);
                forget(c); /* the link is down: made again with it */
        }
}

static void cancel_all(struct om_bus_sub *s, bool front) {
        struct consumer *c;

        LL_FOREACH (s->consumers, c)
                if (c->front == front && !c->cancelling)
                        cancel(c);
}

/*
 * How many more may come is a consumer's prefetch less what the core has of it, and a prefetch cannot be changed: the consumer is cancelled
 * and another made, for which what came of the one before does not count. What that is settles by and by and the core wants as many again,
 * so the new prefetch has some of them on top: as many as are wanted, and FEW_MORE at least. No more, or what nobody wants would lie here.
 */
static void tune_one(struct om_bus_sub *s, bool front) {
        unsigned others, more, prefetch, slack;
        struct consumer *c;

        LL_FOREACH (s->consumers, c)
                if (c->front == front)
                        break;
        if (c && c->cancelling)
                return;
        others = s->n_given - (c ? c->held : 0);
        more = s->want > FEW_MORE ? s->want : FEW_MORE;
        prefetch = s->want ? s->want + (others < more ? others : more) : 0;
        if (prefetch > PREFETCH_MAX)
                prefetch = PREFETCH_MAX;
        if (!c) {
                if (prefetch)
                        consume(s, front, prefetch);
                return;
        }
        slack = (c->prefetch + 1) / 2 < FEW_MORE ? (c->prefetch + 1) / 2 : FEW_MORE;
        if (slack < prefetch)
                slack = prefetch;
        /* What is being settled is wanted again in a moment, or was already. */
        if ((c->held - c->settling + s->want > c->prefetch && c->prefetch < PREFETCH_MAX) || c->prefetch >= c->held + prefetch + slack ||
                (!s->want && s->n_given <= s->n_settling))
                cancel(c); /* and another when it is */
}

void rmq_sub_tune(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;

        if (b->state != OM_BUS_READY || !rmq_link_is_up(b->main) || !s->group->listed)
                return;
        if (s->group->front)
                tune_one(s, true);
        tune_one(s, false);
        if (!s->want && s->n_given <= s->n_settling)
                rmq_sub_return_waiting(s);
}

void rmq_group_changed(struct group *g) {
        if (g->sub)
                rmq_sub_tune(g->sub);
}

/* By the broker: the queue was deleted, or its leader is gone. The latter is tried again at once; what is not there says so. */
static void on_cancelled(void *ctx, struct om_span tag) {
        struct lane *lane = ctx;
        struct consumer *c = rmq_consumer_of(lane->bus, tag);
        struct om_bus_sub *s = c ? c->sub : NULL;

        if (!c)
                return;
        forget(c);
        if (s)
                rmq_sub_tune(s);
}

void rmq_bus_want(struct om_bus_sub *s, unsigned n) {
        s->want = n;
        if (s->waiting)
                rmq_sub_dirty(s);
        rmq_sub_tune(s);
}

/* -- subscribing ----------------------------------------------------------------------------------------------------- */

struct subscribe {
        struct om_job job; /* first */
        struct om_bus_subscribe *op;
        struct om_bus *bus;
        struct topic *topic;
        char agent[OM_NAME_MAX + 1], queue[QUEUE_NAME_MAX];
        void *core;
        enum om_start start;
        int64_t start_ms;
        bool created, claims;
        struct wait wait;
        uint64_t before, held, copied; /* tasks of the log, of the holding queue */
        struct counting counting;
        struct browse browse;
        struct copy *copies;
        unsigned copying;
        int status;
        const char *why;
};

static void subscribe_free(struct om_job *j) {
        struct subscribe *m = (struct subscribe *) j;

        rmq_count_deinit(&m->counting);
        free(m);
}

static void over(struct subscribe *m, int status, const struct om_error *e) { om_job_over(&m->job, status, e); }

static void no_memory(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;

        over(m, om_error_set_errno(&e, ENOMEM, "RabbitMQ"), &e);
}

static void attach(struct subscribe *m, struct group *g) {
        struct om_bus *b = m->bus;
        struct om_bus_sub *s;

        if (om_job_is_cancelled(&m->job)) {
                over(m, 0, NULL);
                return;
        }
        s = calloc(1, sizeof *s);
        if (s)
                s->lane = rmq_lane_take(b);
        if (!s || !s->lane) {
                free(s);
                no_memory(m);
                return;
        }
        s->bus = b;
        s->core = m->core;
        s->group = g;
        g->sub = s;
        DL_APPEND(b->subs, s);
        m->op->ret_sub = s;
        m->op->ret_created = m->created;
        over(m, 0, NULL);
}

static void begin(struct subscribe *m);

static void group_listed(void *ctx, int status, const struct om_error *e) {
        struct subscribe *m = ctx;
        struct group *g = rmq_group_find(m->topic, om_span_of(m->agent));

        if (status < 0)
                over(m, status, e);
        else if (g && g->listed) {
                m->created = true;
                attach(m, g);
        } else
                begin(m); /* another was first to claim the holding queue, or the topic is gone */
}

static void list(struct subscribe *m, uint64_t from) {
        struct om_buf text = OM_BUF_INIT;

        om_buf_lit(&text, "\"e\":\"group\",\"topic\":");
        om_buf_json_span(&text, om_span_of(m->topic->name));
        om_buf_lit(&text, ",\"agent\":");
        om_buf_json_span(&text, om_span_of(m->agent));
        om_buf_lit(&text, ",\"queue\":");
        om_buf_json_span(&text, om_span_of(m->queue));
        om_buf_printf(&text, ",\"from\":%llu,\"since\":%lld", (unsigned long long) from,
                m->claims && m->start == OM_START_TIME ? (long long) m->start_ms : 0LL);
        if (om_buf_ok(&text))
                rmq_directory_add(m->bus, om_buf_span(&text), group_listed, m);
        else
                no_memory(m);
        om_buf_deinit(&text);
}

/* -- what a later group starts with ---------------------------------------------------------------------------------- */

struct copy {                   /* of a task of the log, on its way into the group's queue */
        struct publication pub; /* first */
        struct subscribe *m;
        char id[RMQ_SHORT_MAX + 1];
};

static void copied_all(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;

        if (m->status < 0)
                over(m, om_error_set(&e, om_kind_of_errno(m->status), "%s", m->why), &e);
        else
                list(m, m->before > m->copied ? m->before - m->copied : 0);
}

static void copy_one_less(struct subscribe *m) {
        if (--m->copying == 0)
                copied_all(m);
}

static void copy_done(struct publication *p, int status, const char *why) {
        struct copy *copy = (struct copy *) p;
        struct subscribe *m = copy->m;

        if (status < 0 && m->status == 0) {
                m->status = status;
                m->why = why;
        }
        rmq_publication_deinit(p);
        free(copy);
        copy_one_less(m);
}

static bool copy_it(struct browse *w, struct rmq_event *ev, uint64_t place, uint64_t tag) {
        struct subscribe *m = w->ctx;
        struct rmq_meta meta = rmq_meta_of(ev->props);
        struct rmq_props props = { .p = *ev->props };
        struct copy *copy;
        struct om_span id = ev->props->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ? rmq_span(ev->props->message_id) : OM_SPAN("");

        if (m->start == OM_START_TIME && meta.time_ms < m->start_ms)
                return true;
        copy = calloc(1, sizeof *copy);
        if (!copy) {
                m->status = -ENOMEM;
                m->why = "out of memory";
                return false;
        }
        copy->m = m;
        snprintf(copy->id, sizeof copy->id, "%.*s", OM_PRI(id));
        copy->pub.done = copy_done;
        m->copying++;
        m->copied++;
        /* its headers as they are: nothing is added, and so nothing is closed */
        if (rmq_publication_init(&copy->pub, m->bus, OM_SPAN(""), om_span_of(m->queue), copy->id, &props, om_buf_span(ev->body)) == 0)
                rmq_publication_send(&copy->pub);
        else
                copy_done(&copy->pub, -ENOMEM, "out of memory");
        return m->status == 0;
}

static void browse_ended(struct browse *w) { copy_one_less(w->ctx); }

static void browsed(struct browse *w, int status, const struct om_error *e) {
        struct subscribe *m = w->ctx;

        if (status < 0 && m->status == 0) {
                m->status = status;
                m->why = "RabbitMQ: the topic's log cannot be read";
        }
        rmq_browse_end(w, browse_ended);
}

static void later_counted(struct counting *c) {
        struct subscribe *m = c->ctx;

        if (c->status < 0) {
                over(m, c->status, &c->error);
                return;
        }
        if (m->start != OM_START_FIRST && m->start != OM_START_TIME) {
                list(m, m->before);
                return;
        }
        m->browse = (struct browse){ .bus = m->bus, .log = true, .end = m->before, .each = copy_it, .done = browsed, .ctx = m };
        rmq_log_name(m->browse.queue, m->topic);
        m->copying = 1;
        rmq_browse_start(&m->browse);
}

static void later_bound(void *ctx, const struct rmq_answer *answer) {
        struct subscribe *m = ctx;
        if (answer->status < 0) {
                over(m, answer->status, answer->error);
                return;
        }
        if (m->topic->pattern || !m->bus->settings.log) {
                list(m, 0);
                return;
        }
        m->counting.done = later_counted;
        if (rmq_count_log(&m->counting, m->topic, &m->before) < 0)
                no_memory(m);
        else
                rmq_count_start(&m->counting);
}

static void later_declared(void *ctx, const struct rmq_answer *answer) {
        struct subscribe *m = ctx;

        if (answer->status < 0 && !strstr(answer->error->message, "inequivalent"))
                over(m, answer->status, answer->error);
        else if (rmq_bind(m->bus, m->topic, m->queue, later_bound, m) < 0)
                no_memory(m);
}

static void later_group(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;
        struct group *g = rmq_group_get(m->topic, om_span_of(m->agent));

        if (!g) {
                no_memory(m);
                return;
        }
        if ((m->start == OM_START_FIRST || m->start == OM_START_TIME) && (!m->bus->settings.log || m->topic->pattern)) {
                over(m,
                        om_error_set(&e, OM_UNSUPPORTED, "RabbitMQ: a later group starts in the past by the topic's log: %s",
                                m->topic->pattern ? "a pattern has none" : "set log=true in the URL"),
                        &e);
                return;
        }
        snprintf(m->queue, sizeof m->queue, "%s.g.%s.%s", m->bus->settings.prefix, m->topic->nt, g->na);
        if (rmq_declare_group_queue(m->bus, m->queue, later_declared, m) < 0)
                no_memory(m);
}

/* -- the first group -------------------------------------------------------------------------------------------------- */

static void first_counted(struct counting *c) {
        struct subscribe *m = c->ctx;

        if (c->status < 0)
                over(m, c->status, &c->error);
        else
                list(m, m->before > m->held ? m->before - m->held : 0);
}

static void first_count(struct subscribe *m) {
        m->counting.done = first_counted;
        if (rmq_count_add(&m->counting, m->queue, &m->held) < 0 || rmq_count_log(&m->counting, m->topic, &m->before) < 0)
                no_memory(m);
        else
                rmq_count_start(&m->counting);
}

static void purged(void *ctx, const struct rmq_answer *answer) {
        struct subscribe *m = ctx;

        if (answer->status < 0)
                over(m, answer->status, answer->error);
        else
                first_count(m);
}

static void first_group(struct subscribe *m) {
        amqp_queue_purge_t purge = { .queue = rmq_text(m->queue) };

        m->claims = true;
        snprintf(m->queue, sizeof m->queue, "%s", m->topic->hold);
        purge.queue = rmq_text(m->queue);
        if (m->start == OM_START_NEW) {
                if (rmq_call(m->bus->control, AMQP_QUEUE_PURGE_METHOD, &purge, purged, m) < 0)
                        no_memory(m);
        } else if (m->topic->generation == 0 || !m->bus->settings.log)
                list(m, 0);
        else
                first_count(m);
}

/* A queue of another program's has one group: more would take tasks from each other. */
static void foreign_group(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;
        struct group *g;

        DL_FOREACH (m->topic->groups, g)
                if (g->listed) {
                        over(m,
                                om_error_set(&e, OM_UNSUPPORTED,
                                        "RabbitMQ: the queue %.100s is served by the agent %.60s already, and gives a task once only",
                                        m->topic->name + 6, g->agent),
                                &e);
                        return;
                }
        snprintf(m->queue, sizeof m->queue, "%s", m->topic->name + 6);
        list(m, 0);
}

static void begin(struct subscribe *m) {
        struct group *g = rmq_group_find(m->topic, om_span_of(m->agent));

        m->claims = false;
        m->copied = m->before = m->held = 0;
        m->counting.n = 0;
        if (g && g->listed)
                attach(m, g);
        else if (m->topic->foreign)
                foreign_group(m);
        else if (m->topic->hold[0] && !m->topic->owner)
                first_group(m);
        else
                later_group(m);
}

static void topic_there(struct wait *w, int status, const struct om_error *e) {
        struct subscribe *m = (void *) ((char *) w - offsetof(struct subscribe, wait));

        if (status < 0)
                over(m, status, e);
        else
                begin(m);
}

int rmq_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        int r = rmq_admit(b, 0, e);
        struct topic *t;
        struct subscribe *m;

        if (r < 0)
                return r;
        if (om_topic_is_pattern(op->topic) && b->settings.exchange_type != RMQ_TOPIC)
                return om_error_set(e, OM_UNSUPPORTED, "RabbitMQ: patterns need an exchange of the type topic; exchange_type is %s",
                        rmq_exchange_types[b->settings.exchange_type]);
        t = rmq_topic_get(b, op->topic);
        m = calloc(1, sizeof *m);
        if (!t || !m || op->agent.len > OM_NAME_MAX) {
                free(m);
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        }
        m->op = op;
        m->bus = b;
        m->topic = t;
        m->core = op->core;
        m->start = op->start;
        m->start_ms = op->start_ms;
        memcpy(m->agent, op->agent.p, op->agent.len);
        m->counting.bus = b;
        m->counting.ctx = m;
        m->wait.fn = topic_there;
        om_job_begin(&b->jobs, &m->job, &op->op, 0, subscribe_free);
        rmq_topic_need(t, &m->wait);
        return 0;
}

/* -- the end ----------------------------------------------------------------------------------------------------------- */

void rmq_bus_unsubscribe(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;
        struct consumer *c, *next;

        DL_DELETE(b->subs, s);
        if (s->dirty)
                LL_DELETE2(b->dirty, s, dirty_next);
        if (s->group->sub == s)
                s->group->sub = NULL;
        s->lane->n_subs--;
        LL_FOREACH_SAFE(s->consumers, c, next) {
                if (!c->cancelling && !b->closing)
                        cancel(c);
                c->sub = NULL;
        }
        rmq_sub_leave(s);
        free(s);
}

void rmq_sub_revoke(struct om_bus_sub *s) {
        cancel_all(s, true);
        cancel_all(s, false);
        rmq_sub_revoke_all(s);
}
