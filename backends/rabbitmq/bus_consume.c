/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The consumers that bring what a group is served, and the channels that they live on.
 *
 * Quorum queues take a consumer's prefetch when it begins and do not change it: where the core wants more, or much less, the consumer is
 * cancelled and another takes its place. What the first has brought and is not settled does not count for the second, so what is at hand
 * may exceed for a while what is wanted; it waits here. A group's front queue has a consumer of its own.
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

/* Nobody is served any more: what the consumers still bring is nobody's and goes back. */
void rmq_sub_part(struct om_bus_sub *s) {
        struct consumer *c, *next;

        LL_FOREACH_SAFE(s->consumers, c, next) {
                if (!c->cancelling && !s->bus->closing)
                        cancel(c);
                c->sub = NULL;
        }
}

void rmq_sub_revoke(struct om_bus_sub *s) {
        cancel_all(s, true);
        cancel_all(s, false);
        rmq_sub_revoke_all(s);
}
