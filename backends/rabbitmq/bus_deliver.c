/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages on their way to the core.
 *
 * Always true:
 *   - what came is a delivery in exactly one list of the sub that serves its group: `waiting` until the core wants it, `early` until it is
 *     due, `out` while the core has it. What nobody serves, is over its ttl or is long before its time goes on at once (bus_settle.c);
 *   - when a channel is lost the broker gives out anew what was delivered on it. The core is not told: each of `out` is stale until its
 *     message comes again, on a new channel, and is then the same delivery; one that has not come LIMBO_MS after the channel is back went
 *     to somebody else, and is revoked. So a broker that restarts, or takes back what was worked on for longer than its consumer_timeout,
 *     takes nothing from a worker;
 *   - the core gets what one turn of the loop brought as one array a group.
 *
 * Loop thread.
 */
#include "bus_state.h"

static void arm(struct om_bus *b, int64_t at_ms, int64_t now_ms) {
        int64_t ms = at_ms > now_ms ? at_ms - now_ms : 0;
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 }, is;
        struct timeval now, left;

        if (event_pending(b->due_timer, EV_TIMEOUT, &is)) {
                evutil_gettimeofday(&now, NULL);
                evutil_timersub(&is, &now, &left);
                if (evutil_timercmp(&left, &tv, <=))
                        return;
        }
        event_add(b->due_timer, &tv);
}

bool rmq_delivery_is_stale(const struct delivery *d) { return d->epoch != d->lane->epoch; }

void rmq_delivery_free(struct delivery *d) {
        struct om_bus_sub *s = d->sub;

        d->over = true;
        rmq_consumer_release(d);
        if (s && d->given) {
                DL_DELETE(s->out, d);
                s->n_given--;
                d->sub = NULL;
        }
        if (d->settling)
                return;
        om_buf_deinit(&d->body);
        om_arena_deinit(&d->arena);
        free(d);
}

/* -- handing out ----------------------------------------------------------------------------------------------------- */

void rmq_sub_dirty(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;

        if (!s->dirty) {
                s->dirty = true;
                LL_PREPEND2(b->dirty, s, dirty_next);
        }
        rmq_turn(b);
}

static void hand_out(struct om_bus_sub *s) {
        struct om_delivery *batch[256];
        struct delivery *d;
        size_t n = 0;

        while (n < 256 && s->want && (d = s->waiting)) {
                DL_DELETE(s->waiting, d);
                DL_APPEND(s->out, d);
                d->given = true;
                rmq_consumer_hold(d);
                s->want--;
                s->n_given++;
                batch[n++] = &d->delivery;
        }
        if (s->want && s->waiting)
                rmq_sub_dirty(s);
        if (n)
                s->bus->events->deliver(s->core, batch, n);
}

void rmq_hand_out_all(struct om_bus *b) {
        struct om_bus_sub *list = b->dirty, *s;

        b->dirty = NULL;
        for (s = list; s; s = s->dirty_next)
                s->dirty = false;
        /* The core may end serving another group while it is told: it is looked for among those there are. */
        while ((s = list)) {
                struct om_bus_sub *there;

                list = s->dirty_next;
                DL_FOREACH (b->subs, there)
                        if (there == s)
                                break;
                if (there)
                        hand_out(s);
        }
}

static void put_waiting(struct om_bus_sub *s, struct delivery *d) {
        struct delivery *at = NULL;

        if (d->front)
                DL_FOREACH (s->waiting, at)
                        if (!at->front)
                                break;
        if (at)
                DL_PREPEND_ELEM(s->waiting, at, d);
        else
                DL_APPEND(s->waiting, d);
        if (s->want)
                rmq_sub_dirty(s);
}

/* -- what comes ------------------------------------------------------------------------------------------------------ */

/* One that the core has from before the channel was lost. */
static bool adopted(struct om_bus_sub *s, struct delivery *d) {
        struct delivery *old;
        bool more = false;

        if (!s->limbo_until_ms)
                return false;
        DL_FOREACH (s->out, old) {
                if (!rmq_delivery_is_stale(old) || old->delivery.gone)
                        continue;
                more = true;
                if (old->front != d->front || !om_span_eq(old->id, d->id))
                        continue;
                rmq_consumer_release(old);
                old->lane = d->lane;
                old->epoch = d->epoch;
                old->tag = d->tag;
                old->consumer = d->consumer;
                rmq_consumer_hold(old);
                rmq_delivery_free(d);
                return true;
        }
        if (!more)
                s->limbo_until_ms = 0;
        return false;
}

static void sort_in(struct delivery *d) {
        struct om_bus_sub *s = d->sub;
        struct group *g = d->group;
        int64_t now = om_now_ms();

        if (g->since_ms && d->meta.time_ms && d->meta.time_ms < g->since_ms) {
                rmq_delivery_return(d, GIVE_UP);
        } else if (d->meta.expires_ms && d->meta.expires_ms <= now) {
                g->expired++;
                rmq_delivery_return(d, GIVE_UP);
                if (s)
                        s->bus->events->expired(s->core, 1);
        } else if (d->meta.due_ms > now && rmq_level(d->meta.due_ms - now)) {
                rmq_delivery_return(d, GIVE_LATER);
        } else if (!s) {
                rmq_delivery_return(d, GIVE_BACK);
        } else if (d->meta.due_ms > now) {
                DL_APPEND(s->early, d);
                arm(s->bus, d->meta.due_ms, now);
        } else
                put_waiting(s, d);
}

static struct delivery *delivery_new(struct lane *lane, struct consumer *c, struct rmq_event *ev) {
        const amqp_basic_deliver_t *m = ev->method;
        struct delivery *d = calloc(1, sizeof *d);
        const struct topic *t = c->group->topic;

        if (!d)
                return NULL;
        d->bus = lane->bus;
        d->sub = c->sub;
        d->group = c->group;
        d->lane = lane;
        d->epoch = lane->epoch;
        d->tag = m->delivery_tag;
        d->consumer = c->tag;
        d->front = c->front;
        d->meta = rmq_meta_of(ev->props);
        if (!d->meta.counted && m->redelivered)
                d->meta.attempts++; /* as much as a classic queue says */
        d->body = *ev->body;
        *ev->body = (struct om_buf) OM_BUF_INIT;
        d->delivery.sub = c->sub;
        d->delivery.attempt = d->meta.attempts + 1;
        d->delivery.record =
                rmq_record(om_buf_span(&d->body), ev->props, t->pattern ? NULL : t->name, rmq_span(m->routing_key), &d->arena, &d->id);
        if (d->delivery.record.p && d->id.p)
                return d;
        rmq_delivery_free(d);
        return NULL;
}

void rmq_on_delivered(void *ctx, struct rmq_event *ev) {
        struct lane *lane = ctx;
        const amqp_basic_deliver_t *m = ev->method;
        struct consumer *c = rmq_consumer_of(lane->bus, rmq_span(m->consumer_tag));
        struct delivery *d = c ? delivery_new(lane, c, ev) : NULL;

        if (!d) { /* out of memory, or of nobody: it comes again */
                amqp_basic_nack_t nack = { .delivery_tag = m->delivery_tag, .requeue = 1 };

                rmq_cast(lane->channel, AMQP_BASIC_NACK_METHOD, &nack);
                return;
        }
        if (!d->sub || !adopted(d->sub, d))
                sort_in(d);
}

/* -- time -------------------------------------------------------------------------------------------------------------- */

static void revoke(struct om_bus_sub *s, bool stale_only) {
        struct om_delivery **list;
        struct delivery *d;
        size_t n = 0, i = 0;

        DL_COUNT(s->out, d, n);
        list = n ? calloc(n, sizeof(struct om_delivery *)) : NULL;
        DL_FOREACH (s->out, d) {
                if (!list || d->delivery.gone || (stale_only && !rmq_delivery_is_stale(d)))
                        continue;
                d->delivery.gone = true;
                list[i++] = &d->delivery;
        }
        if (i)
                s->bus->events->revoked(s->core, list, i);
        free(list);
}

void rmq_on_due_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct om_bus_sub *s, *next_sub;
        int64_t now = om_now_ms(), clock = om_clock_ms(), next = INT64_MAX;

        DL_FOREACH_SAFE (b->subs, s, next_sub) {
                struct delivery *d, *tmp;

                DL_FOREACH_SAFE (s->early, d, tmp) {
                        if (d->meta.due_ms <= now) {
                                DL_DELETE(s->early, d);
                                put_waiting(s, d);
                        } else if (d->meta.due_ms < next)
                                next = d->meta.due_ms;
                }
                if (s->limbo_until_ms && s->limbo_until_ms <= clock) {
                        s->limbo_until_ms = 0;
                        revoke(s, true);
                } else if (s->limbo_until_ms && s->limbo_until_ms != INT64_MAX && now + s->limbo_until_ms - clock < next)
                        next = now + s->limbo_until_ms - clock;
        }
        if (next != INT64_MAX)
                arm(b, next, now);
}

/* -- a channel is lost, and back --------------------------------------------------------------------------------------- */

static void drop(struct delivery **list) {
        struct delivery *d, *tmp;

        DL_FOREACH_SAFE (*list, d, tmp) {
                DL_DELETE(*list, d);
                rmq_delivery_free(d);
        }
}

void rmq_sub_limbo(struct om_bus_sub *s) {
        drop(&s->waiting);
        drop(&s->early);
        s->limbo_until_ms = s->out ? INT64_MAX : 0;
}

void rmq_limbo_from(struct om_bus_sub *s, int64_t until_ms) {
        s->limbo_until_ms = until_ms;
        arm(s->bus, om_now_ms() + until_ms - om_clock_ms(), om_now_ms());
}

/* -- ends -------------------------------------------------------------------------------------------------------------- */

static void give_back(struct delivery **list, enum give_up how) {
        struct delivery *d, *tmp;

        DL_FOREACH_SAFE (*list, d, tmp) {
                DL_DELETE(*list, d);
                rmq_delivery_return(d, how);
        }
}

void rmq_sub_return_waiting(struct om_bus_sub *s) {
        give_back(&s->waiting, GIVE_BACK);
        give_back(&s->early, GIVE_LATER);
}

void rmq_sub_leave(struct om_bus_sub *s) {
        struct delivery *d, *tmp;

        if (s->bus->closing) {
                drop(&s->waiting);
                drop(&s->early);
        } else
                rmq_sub_return_waiting(s);
        DL_FOREACH_SAFE (s->out, d, tmp) {
                DL_DELETE(s->out, d);
                d->sub = NULL;
        }
}

void rmq_sub_revoke_all(struct om_bus_sub *s) {
        struct delivery *d;

        give_back(&s->waiting, GIVE_UP);
        give_back(&s->early, GIVE_UP);
        DL_FOREACH (s->out, d) {
                amqp_basic_ack_t ack = { .delivery_tag = d->tag };

                if (!rmq_delivery_is_stale(d) && !d->settling && !d->delivery.gone)
                        rmq_cast(d->lane->channel, AMQP_BASIC_ACK_METHOD, &ack);
        }
        revoke(s, false);
}
