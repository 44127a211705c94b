/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credit and handing out: what a group may ask its bus for, and which subscription gets what came.
 *
 * Always true:
 *   - a subscription's credit is what it may be given now: its prefetch less what it holds; 0 while its group is paused or ending, the
 * daemon stopping, or its session not taking deliveries. The group's credit is their sum, kept as it changes, so nothing walks all workers;
 *   - the bus is told a new want at the end of a turn, and only where it differs from what it knows by now;
 *   - those with credit stand in a list and are served from its head and put back at its end: deliveries of one turn are spread evenly over
 *     them, and who was served last is served last again. Those that let a lease run out stand behind all others until they show a sign of
 *     life: what a hung worker lost shall not come back to it while somebody else can take it;
 *   - deliveries of one turn for one subscription leave in one frame of about FRAME_BYTES, or in several. Between frames it is asked
 *     whether the session still takes them; what it does not take goes back to the head of the queue.
 *
 * Loop thread.
 */
#include <errno.h>

#include "dispatch_internal.h"

enum { FRAME_BYTES = 1 << 20 };

/* -- credit -------------------------------------------------------------------------------------------------------- */

static void free_remove(struct om_group *g, struct om_subscription *sub) {
        if (g->free_suspects == sub)
                g->free_suspects = sub->free_next;
        *(sub->free_prev ? &sub->free_prev->free_next : &g->free_first) = sub->free_next;
        *(sub->free_next ? &sub->free_next->free_prev : &g->free_last) = sub->free_prev;
        sub->free_prev = sub->free_next = NULL;
        g->n_free--;
}

/* Behind all others of its sort: suspects stand behind those that are none. */
static void free_append(struct om_group *g, struct om_subscription *sub) {
        sub->free_next = sub->suspect ? NULL : g->free_suspects;
        sub->free_prev = sub->free_next ? sub->free_next->free_prev : g->free_last;
        *(sub->free_prev ? &sub->free_prev->free_next : &g->free_first) = sub;
        *(sub->free_next ? &sub->free_next->free_prev : &g->free_last) = sub;
        if (sub->suspect && !g->free_suspects)
                g->free_suspects = sub;
        g->n_free++;
}

void om_subscription_suspect(struct om_subscription *sub, bool suspect) {
        if (sub->suspect == suspect)
                return;
        if (sub->credit)
                free_remove(sub->group, sub);
        sub->suspect = suspect;
        if (sub->credit)
                free_append(sub->group, sub);
}

void om_subscription_credit(struct om_subscription *sub) {
        struct om_group *g = sub->group;
        unsigned credit = 0;

        if (g->state == OM_GROUP_SERVING && !g->paused && !g->d->stopping && !sub->registering && !sub->ended && !sub->blocked &&
                sub->held < sub->prefetch)
                credit = sub->prefetch - sub->held;
        if (credit == sub->credit)
                return;
        if (!sub->credit)
                free_append(g, sub);
        else if (!credit)
                free_remove(g, sub);
        g->credit = g->credit - sub->credit + credit;
        sub->credit = credit;
        om_group_touch(g);
}

/* -- handing out --------------------------------------------------------------------------------------------------- */

static void give(struct om_group *g, struct om_subscription *sub, unsigned n) {
        while (n-- && g->waiting.first) {
                struct om_lease *lease = g->waiting.first;

                if (om_lease_give(lease, sub) < 0) { /* out of memory */
                        om_lease_release(lease);
                        continue;
                }
                om_lease_unlink(&g->waiting, lease);
                om_lease_hold(lease);
        }
        om_subscription_turn(sub);
        om_subscription_credit(sub);
}

static void hand_out(struct om_group *g) {
        unsigned share = g->n_free ? (g->waiting.n + g->n_free - 1) / g->n_free : 0;

        while (g->waiting.first && g->free_first) {
                struct om_subscription *sub = g->free_first;

                if (!om_session_can_deliver(sub->client->session)) {
                        sub->blocked = true;
                        om_subscription_credit(sub);
                        continue;
                }
                give(g, sub, share < sub->credit ? share : sub->credit);
                if (sub->credit) {
                        free_remove(g, sub);
                        free_append(g, sub);
                }
        }
}

/* What nobody here could take even if every session took deliveries goes back: another daemon may have workers. */
static void hand_back(struct om_group *g) {
        unsigned room = 0;

        if (g->state == OM_GROUP_SERVING && !g->paused && !g->d->stopping && g->prefetch > g->n_leased)
                room = g->prefetch - g->n_leased;
        while (g->waiting.n > room)
                om_lease_release(g->waiting.last);
}

void om_group_deliver(struct om_group *g) {
        unsigned want;

        hand_out(g);
        hand_back(g);
        if (!g->bus_sub)
                return;
        want = om_leases_promise(g, g->credit > g->waiting.n ? g->credit - g->waiting.n : 0);
        if (want == g->wanted)
                return;
        g->wanted = want;
        g->d->core->bus_ops->want(g->bus_sub, want);
}

/* -- frames -------------------------------------------------------------------------------------------------------- */

static void write_task(struct om_buf *b, struct om_lease *lease, uint64_t now_ns) {
        const struct om_delivery *delivery = lease->delivery;

        om_buf_lit(b, "{\"delivery\":");
        om_buf_u64(b, lease->number);
        om_buf_lit(b, ",\"attempt\":");
        om_buf_u64(b, delivery->attempt);
        om_buf_putc(b, ',');
        om_buf_put(b, delivery->record.p + 1, delivery->record.len - 1);
        lease->delivered_ns = now_ns;
}

/* After the frame: who watches may be the very session that it is written to. */
static void count_delivered(struct om_subscription *sub, struct om_lease *lease) {
        const struct om_group *g = sub->group;
        struct om_watch *w = g->d->core->watch;

        for (; lease != sub->fresh && !sub->ended; lease = lease->sub_next) {
                if (g->topic_metrics)
                        g->topic_metrics->delivered++;
                if (om_watch_mask(w) & OM_EVENT_DELIVER)
                        om_watch_emit(w, OM_EVENT_DELIVER,
                                &(struct om_watch_event){
                                        .topic = g->topic, .agent = g->agent, .id = om_record_id(lease->delivery->record) });
        }
}

static void write_frame(struct om_subscription *sub, struct om_buf *b) {
        struct om_lease *lease = sub->fresh;
        uint64_t now_ns = om_clock_ns();
        size_t start = b->len;

        om_buf_lit(b, "{\"subscription\":");
        om_buf_i64(b, sub->number);
        om_buf_lit(b, ",\"tasks\":[");
        while (lease) {
                if (lease != sub->fresh)
                        om_buf_putc(b, ',');
                write_task(b, lease, now_ns);
                lease = lease->sub_next;
                if (lease && b->len - start + lease->delivery->record.len > FRAME_BYTES)
                        break;
        }
        om_buf_lit(b, "]}");
        sub->fresh = lease;
}

/* The session takes no more: the rest waits for others, in its old order. */
static void take_back_fresh(struct om_subscription *sub) {
        struct om_group *g = sub->group;

        while (sub->fresh) {
                struct om_lease *lease = sub->leases_last;

                om_lease_unhold(lease);
                om_lease_take(lease);
                lease->state = OM_LEASE_WAITING;
                om_lease_prepend(&g->waiting, lease);
        }
        om_group_touch(g);
}

static void write_revoked(struct om_subscription *sub) {
        struct om_buf *b = om_session_begin(sub->client->session, "task.revoked");

        if (b) {
                om_buf_lit(b, "{\"subscription\":");
                om_buf_i64(b, sub->number);
                om_buf_lit(b, ",\"deliveries\":[");
                om_buf_put_span(b, om_buf_span(&sub->revoked));
                om_buf_lit(b, "]}");
                om_session_end(sub->client->session);
        }
        om_buf_deinit(&sub->revoked);
}

void om_subscription_write(struct om_subscription *sub) {
        struct om_session *s = sub->client->session;
        struct om_lease *first;
        struct om_buf *b;

        if (sub->revoked.len)
                write_revoked(sub);
        while (sub->fresh && !sub->ended) {
                if (!om_session_can_deliver(s)) {
                        sub->blocked = true;
                        take_back_fresh(sub);
                        om_subscription_credit(sub);
                        return;
                }
                b = om_session_begin(s, "task.deliver");
                if (!b)
                        return; /* it is closing, and its leases with it */
                first = sub->fresh;
                write_frame(sub, b);
                if (om_session_end(s) < 0)
                        return;
                count_delivered(sub, first);
        }
        om_metrics_changed(sub->group->d->core->metrics);
}

void om_subscription_revoke(struct om_subscription *sub, const struct om_lease *lease) {
        if (!lease->delivered_ns)
                return;
        if (sub->revoked.len)
                om_buf_putc(&sub->revoked, ',');
        om_buf_u64(&sub->revoked, lease->number);
        om_subscription_turn(sub);
}

/* -- the bus's events ---------------------------------------------------------------------------------------------- */

static void on_deliver(void *sub_core, struct om_delivery *const *deliveries, size_t n) {
        struct om_group *g = sub_core;
        size_t max = om_record_max(g->d->core);

        g->wanted -= n < g->wanted ? (unsigned) n : g->wanted;
        for (size_t i = 0; i < n; i++) {
                struct om_lease *lease = om_lease_new(g, deliveries[i]);

                if (!lease) {
                        om_log(OM_LOG_ERROR,
                                "more tasks of %.*s than were wanted, and no memory: one stays with the bus until its lease there is over",
                                OM_PRI(g->topic));
                        continue;
                }
                om_lease_append(&g->waiting, lease);
                if (deliveries[i]->record.len > max)
                        om_lease_unfit(lease, "too_large", "the task is larger than a frame may be (MAX_FRAME_BYTES)");
        }
        if (g->agent_metrics)
                g->agent_metrics->received += n;
        om_group_touch(g);
}

static void on_revoked(void *sub_core, struct om_delivery *const *deliveries, size_t n) {
        for (size_t i = 0; i < n; i++) {
                struct om_lease *lease = deliveries[i]->core;

                /* One that is being settled finds out by itself. */
                if (!lease || (lease->state != OM_LEASE_HELD && lease->state != OM_LEASE_WAITING))
                        continue;
                if (lease->sub)
                        om_subscription_revoke(lease->sub, lease);
                om_lease_release(lease);
        }
}

static void on_expired(void *sub_core, uint64_t n) {
        struct om_group *g = sub_core;
        struct om_watch *w = g->d->core->watch;
        char detail[40];
        int len;

        if (g->topic_metrics)
                g->topic_metrics->expired += n;
        om_metrics_changed(g->d->core->metrics);
        if (!(om_watch_mask(w) & OM_EVENT_EXPIRED))
                return;
        len = snprintf(detail, sizeof detail, ",\"n\":%llu", (unsigned long long) n);
        om_watch_emit(
                w, OM_EVENT_EXPIRED, &(struct om_watch_event){ .topic = g->topic, .agent = g->agent, .detail = { detail, (size_t) len } });
}

const struct om_bus_events om_dispatch_events = {
        .deliver = on_deliver,
        .revoked = on_revoked,
        .expired = on_expired,
};
