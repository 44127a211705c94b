/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verdicts and leases.
 *
 *     ack        XACK, many in one script                                      release   parked as due at once; somebody is woken
 *     retry      retry_counts = attempt, then parked until it is due           dead      XADD to the dead letters, then XACK
 *
 * Parked means: pending under the consumer "omnidaemon:retry", with its due time in the group's zset, both by one script. A daemon that
 * dies between the steps of a retry leaves it pending under its own name, with the attempt counted: it is taken over. One that dies between
 * the steps of a dead letter leaves it in both places, and the same step done again finds the letter there by the entry's id.
 *
 * Always true: an outcome is 0 only after the last step was answered; a delivery whose settlement was sent and not answered is `uncertain`,
 * and "nothing to settle" then means that it had held. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

struct settle;
struct settle_item {
        struct settle *settle;
        struct bus_delivery *delivery;
        enum om_verdict verdict;
        int64_t due_ms;
        int status; /* 1: nothing known yet */
        char *why;
        bool grouped;                /* in an ack's script */
        struct om_redis_cmd *letter; /* what keeps the dead letter, until it is sent */
};
/* Acknowledgements of one stream, in one script. */
struct settle_acks {
        struct settle *settle;
        struct om_bus_sub *sub;
        bool again;
        size_t n, first; /* items[order[first]] … */
};
struct settle {
        struct work w; /* first */
        size_t n, n_acks;
        struct settle_acks *acks;
        size_t *order;
        struct settle_item items[];
};

static void set_status(struct settle_item *item, int status, const char *why) {
        item->status = status;
        free(item->why);
        item->why = why ? strdup(why) : NULL;
}

static const char not_ours[] = "the lease is over: the bus has given the task to somebody else, or its group was deleted";

/* The server had nothing to settle. */
static void set_gone(struct settle_item *item) {
        if (item->delivery->uncertain)
                set_status(item, 0, NULL);
        else
                set_status(item, -ESTALE, not_ours);
}

static void set_failed(struct settle_item *item, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        if (status == -ENOENT) { /* NOGROUP */
                set_gone(item);
                return;
        }
        if (!reply)
                item->delivery->uncertain = true;
        set_status(item, status, error->message);
}

static void settle_end(struct work *w) {
        struct settle *m = (struct settle *) w;
        struct om_bus_settle *op = (struct om_bus_settle *) w->op;

        for (size_t i = 0; i < m->n; i++) {
                struct settle_item *item = &m->items[i];
                struct bus_delivery *d = item->delivery;
                struct om_bus_sub *sub = d->delivery.sub;

                d->settling--;
                if (!op) /* cancelled: the core still has them all, and does not know what became of them */
                        d->uncertain = true;
                else
                        op->items[i].outcome = (struct om_outcome){ .status = item->status > 0 ? -EIO : item->status, .why = item->why };
                if (op && (item->status == 0 || item->status == -ESTALE)) {
                        DL_DELETE(sub->out, d);
                        d->finished = true;
                }
                if (d->finished && !d->settling)
                        om_redis_delivery_free(d);
                om_redis_sub_release(sub);
        }
        w->status = 0;
}

static void settle_free(struct work *w) {
        struct settle *m = (struct settle *) w;

        for (size_t i = 0; i < m->n; i++)
                free(m->items[i].why), om_redis_cmd_free(m->items[i].letter);
        free(m->acks);
        free(m->order);
}

static bool item_send(struct settle_item *item, struct om_redis_cmd *c, om_redis_done_fn *done) {
        struct om_error e;
        int r = om_redis_send(item->settle->w.bus->redis, c, done, item, &e);

        if (r < 0) {
                set_status(item, r, e.message);
                return false;
        }
        om_redis_work_hold(&item->settle->w);
        return true;
}

/* -- ack ------------------------------------------------------------------------------------------------------------- */

static void on_count_dropped(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_work_release(ctx);
}

/* The attempts of what is finished are no longer counted; losing that step costs a field of a hash. */
static void drop_count(struct settle_item *item) {
        struct om_bus_sub *s = item->delivery->delivery.sub;
        struct om_redis_cmd *c;
        struct om_error e;

        if (item->delivery->delivery.attempt <= 1)
                return;
        c = om_redis_cmd_new("HDEL");
        om_redis_key(c, s->names.counts);
        om_redis_arg_text(c, item->delivery->id);
        if (om_redis_send(s->bus->redis, c, on_count_dropped, &item->settle->w, &e) == 0)
                om_redis_work_hold(&item->settle->w);
}

static void on_acked(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct settle_acks *a = ctx;
        struct settle *m = a->settle;
        int64_t n = status < 0 ? 0 : om_redis_int(reply, 0);

        for (size_t i = 0; i < a->n; i++) {
                struct settle_item *item = &m->items[m->order[a->first + i]];

                if (status < 0) {
                        set_failed(item, status, reply, error);
                        continue;
                }
                /* Of several, which ones were finished by somebody else before cannot be told, and makes no difference: they are finished.
                 */
                if (n == 0)
                        set_gone(item);
                else
                        set_status(item, 0, NULL);
                if (n)
                        drop_count(item);
        }
        if (n)
                om_redis_bus_trim_later(m->w.bus, a->sub->names.stream, (unsigned) n);
        om_redis_work_release(&m->w);
}

static void send_acks(struct settle *m, struct settle_acks *a) {
        struct om_bus_sub *s = a->sub;
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_ack, 2);
        struct om_error e;
        int r;

        om_redis_key(c, a->again ? s->names.again : s->names.stream);
        om_redis_key(c, s->names.stats);
        om_redis_arg(c, s->names.group);
        om_redis_arg_int(c, a->again);
        for (size_t i = 0; i < a->n; i++)
                om_redis_arg_text(c, delivery_entry(m->items[m->order[a->first + i]].delivery));
        r = om_redis_send(m->w.bus->redis, c, on_acked, a, &e);
        if (r == 0) {
                om_redis_work_hold(&m->w);
                return;
        }
        for (size_t i = 0; i < a->n; i++)
                set_status(&m->items[m->order[a->first + i]], r, e.message);
}

/* Those of one stream stand together in `order`. */
static int gather_acks(struct settle *m) {
        size_t at = 0;

        if (!m->n)
                return 0;
        m->order = calloc(m->n, sizeof *m->order);
        m->acks = calloc(m->n, sizeof *m->acks);
        if (!m->order || !m->acks)
                return -ENOMEM;
        for (size_t i = 0; i < m->n; i++) {
                const struct bus_delivery *first = m->items[i].delivery;
                struct settle_acks *a;

                if (m->items[i].verdict != OM_ACK || m->items[i].grouped || m->items[i].status <= 0)
                        continue;
                a = &m->acks[m->n_acks++];
                *a = (struct settle_acks){ .settle = m, .sub = first->delivery.sub, .again = first->again, .first = at };
                for (size_t k = i; k < m->n && a->n < IDS_AT_ONCE; k++) {
                        struct settle_item *item = &m->items[k];

                        if (item->verdict != OM_ACK || item->grouped || item->status <= 0 || item->delivery->delivery.sub != a->sub ||
                                item->delivery->again != a->again)
                                continue;
                        item->grouped = true;
                        m->order[at++] = k;
                        a->n++;
                }
        }
        return 0;
}

/* -- retry and release ----------------------------------------------------------------------------------------------- */

struct om_redis_cmd *om_redis_bus_park_cmd(
        const struct om_bus_sub *s, bool again, const char *entry, const char *member, int64_t delay_ms) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_park, 3);

        om_redis_key(c, again ? s->names.again : s->names.stream);
        om_redis_key(c, s->names.due);
        om_redis_key(c, s->names.again);
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, s->bus->consumer);
        om_redis_arg_text(c, om_redis_bus_retry_consumer);
        om_redis_arg_text(c, member);
        om_redis_arg_text(c, entry);
        om_redis_arg_int(c, delay_ms);
        return c;
}

static void on_parked(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct settle_item *item = ctx;
        struct om_bus_sub *s = item->delivery->delivery.sub;
        int64_t n = status < 0 ? 0 : om_redis_int(reply, 0);

        if (status < 0)
                set_failed(item, status, reply, error);
        else if (n == 1)
                set_status(item, 0, NULL);
        else
                set_gone(item);
        if (n && item->delivery->listed) { /* it may come again before the rest of this settlement is through */
                HASH_DEL(s->by_id, item->delivery);
                item->delivery->listed = false;
        }
        if (n)
                om_redis_sub_due(s, item->verdict == OM_RETRY ? item->due_ms - om_now_ms() : 0);
        om_redis_work_release(&item->settle->w);
}

static void park(struct settle_item *item) {
        const struct bus_delivery *d = item->delivery;
        int64_t delay = item->due_ms - om_now_ms();

        if (item->verdict == OM_RELEASE)
                delay = -1;
        else if (delay < 1)
                delay = 1;
        item_send(item, om_redis_bus_park_cmd(d->delivery.sub, d->again, delivery_entry(d), d->id, delay), on_parked);
}

static void on_attempt_counted(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct settle_item *item = ctx;

        if (status < 0)
                set_failed(item, status, reply, error);
        else
                park(item);
        om_redis_work_release(&item->settle->w);
}

/* Set, not incremented: done twice it is the same. */
static void count_attempt(struct settle_item *item) {
        const struct bus_delivery *d = item->delivery;
        struct om_redis_cmd *c = om_redis_cmd_new("HSET");

        om_redis_key(c, d->delivery.sub->names.counts);
        om_redis_arg_text(c, d->id);
        om_redis_arg_int(c, d->delivery.attempt);
        item_send(item, c, on_attempt_counted);
}

/* -- dead ------------------------------------------------------------------------------------------------------------ */

static void on_dead_acked(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct settle_item *item = ctx;

        if (status < 0)
                set_failed(item, status, reply, error);
        else {
                set_status(item, 0, NULL); /* where somebody else finished it meanwhile, the letter is there all the same */
                drop_count(item);
                om_redis_bus_trim_later(item->settle->w.bus, item->delivery->delivery.sub->names.stream, 1);
        }
        om_redis_work_release(&item->settle->w);
}

static void on_letter_kept(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct settle_item *item = ctx;
        const struct bus_delivery *d = item->delivery;
        const struct om_bus_sub *s = d->delivery.sub;
        struct om_redis_cmd *c;

        if (status < 0) {
                set_failed(item, status, reply, error);
        } else {
                c = om_redis_script_new(&om_redis_script_ack, 2);
                om_redis_key(c, delivery_key(d));
                om_redis_key(c, s->names.stats);
                om_redis_arg(c, s->names.group);
                om_redis_arg_int(c, d->again);
                om_redis_arg_text(c, delivery_entry(d));
                item_send(item, c, on_dead_acked);
        }
        om_redis_work_release(&item->settle->w);
}

/* A lease that is over must not make a letter: the task is somebody else's by now. */
static void on_still_ours(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct settle_item *item = ctx;
        struct om_redis_cmd *c = item->letter;

        if (status < 0) {
                set_failed(item, status, reply, error);
        } else if (!om_span_is(om_redis_at(om_redis_at(reply, 0), 1)->text, item->settle->w.bus->consumer)) {
                set_gone(item);
        } else {
                item->letter = NULL;
                item_send(item, c, on_letter_kept);
        }
        om_redis_work_release(&item->settle->w);
}

static void kill_it(struct settle_item *item, const struct om_dead_letter *letter) {
        const struct bus_delivery *d = item->delivery;
        const struct om_bus_sub *s = d->delivery.sub;
        struct om_dead_letter whole = *letter;
        struct om_buf data = OM_BUF_INIT;
        struct om_redis_cmd *c;

        if (!whole.record.p)
                whole.record = d->delivery.record;
        om_redis_bus_letter_write(&data, s->names.topic, delivery_key(d), delivery_entry(d), &whole, OM_SPAN(""));
        c = om_redis_script_new(&om_redis_script_dead, 2);
        om_redis_key(c, s->names.dead);
        om_redis_key(c, s->names.dead_ids);
        om_redis_arg_text(c, d->id);
        om_redis_arg(c, om_buf_span(&data));
        if (!om_buf_ok(&data)) {
                om_redis_cmd_free(c);
                c = NULL;
        }
        om_buf_deinit(&data);
        item->letter = c;
        c = om_redis_cmd_new("XPENDING");
        om_redis_key(c, delivery_key(d));
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, delivery_entry(d));
        om_redis_arg_text(c, delivery_entry(d));
        om_redis_arg_int(c, 1);
        item_send(item, c, on_still_ours);
}

/* -- the call -------------------------------------------------------------------------------------------------------- */

static void begin(struct settle_item *item, const struct om_settlement *s) {
        switch (s->verdict) {
        case OM_ACK:
                break;
        case OM_RETRY:
                count_attempt(item);
                break;
        case OM_RELEASE:
                park(item);
                break;
        case OM_DEAD:
                kill_it(item, s->letter);
                break;
        }
}

int om_redis_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        struct settle *m;
        int r = 0;

        for (size_t i = 0; i < op->n; i++)
                if ((unsigned) op->items[i].verdict > OM_DEAD || (op->items[i].verdict == OM_DEAD && !op->items[i].letter))
                        return om_error_set(e, OM_INVALID, "redis: not a verdict");
        m = om_redis_work_begin(b, &op->op, sizeof *m + op->n * sizeof m->items[0], 0, settle_end, &r, e);
        if (!m)
                return r;
        m->w.free = settle_free;
        m->n = op->n;
        for (size_t i = 0; i < op->n; i++) {
                struct settle_item *item = &m->items[i];

                *item = (struct settle_item){ .settle = m,
                        .delivery = (struct bus_delivery *) op->items[i].delivery,
                        .verdict = op->items[i].verdict,
                        .due_ms = op->items[i].due_ms,
                        .status = 1 };
                item->delivery->settling++;
                om_redis_sub_hold(item->delivery->delivery.sub);
                if (item->delivery->delivery.gone)
                        set_status(item, -ESTALE, not_ours);
                else
                        begin(item, &op->items[i]);
        }
        if (gather_acks(m) < 0)
                for (size_t i = 0; i < m->n; i++)
                        if (m->items[i].verdict == OM_ACK)
                                set_status(&m->items[i], -ENOMEM, "out of memory");
        for (size_t i = 0; i < m->n_acks; i++)
                send_acks(m, &m->acks[i]);
        return om_redis_work_called(&m->w);
}

/* -- leases ---------------------------------------------------------------------------------------------------------- */

struct extension {
        struct om_bus_sub *sub;
        bool again;
};

static void on_extended(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct extension *x = ctx;
        struct om_bus_sub *s = x->sub;
        struct om_delivery **gone = status == 0 && reply->n ? calloc(reply->n, sizeof(struct om_delivery *)) : NULL;
        size_t n = 0;

        for (size_t i = 0; gone && i < reply->n; i++) {
                struct bus_delivery *d;
                char name[ID_MAX + 3];

                snprintf(name, sizeof name, "%s%.*s", x->again ? "r:" : "", OM_PRI(om_redis_at(reply, i)->text));
                HASH_FIND_STR(s->by_id, name, d);
                if (!d || !d->with_core || d->delivery.gone || d->settling) /* what is being settled finds out by itself */
                        continue;
                d->delivery.gone = true;
                gone[n++] = &d->delivery;
        }
        if (n && !s->ended)
                s->bus->events->revoked(s->core, gone, n);
        free(gone);
        if (status == -ENOENT && !s->reading)
                om_redis_sub_repair(s);
        free(x);
        om_redis_sub_release(s);
}

/* Of one group and one of its streams; marks them done. */
static void extend_group(struct om_bus_sub *s, bool again, struct om_delivery *const *deliveries, size_t n, int64_t now) {
        struct extension *x = calloc(1, sizeof *x);
        struct om_redis_cmd *c = x ? om_redis_script_new(&om_redis_script_extend, 1) : NULL;
        struct om_error e;

        if (!x)
                return;
        *x = (struct extension){ s, again };
        om_redis_key(c, again ? s->names.again : s->names.stream);
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, s->bus->consumer);
        for (size_t i = 0; i < n; i++) {
                struct bus_delivery *d = (struct bus_delivery *) deliveries[i];

                if (d->delivery.sub != s || d->again != again || d->renewed_ms == now || d->delivery.gone)
                        continue;
                d->renewed_ms = now;
                om_redis_arg_text(c, delivery_entry(d));
        }
        if (om_redis_send(s->bus->redis, c, on_extended, x, &e) < 0)
                free(x);
        else
                om_redis_sub_hold(s);
}

void om_redis_bus_extend(struct om_bus *b, struct om_delivery *const *deliveries, size_t n) {
        enum { RENEW_MAX_MS = 15000 };
        int64_t now = om_clock_ms();

        if (!om_redis_ready(b->redis))
                return;
        for (size_t i = 0; i < n; i++) {
                struct bus_delivery *d = (struct bus_delivery *) deliveries[i];
                struct om_bus_sub *s = d->delivery.sub;
                int64_t every = s->reclaim_ms / 4 < RENEW_MAX_MS ? s->reclaim_ms / 4 : RENEW_MAX_MS;

                if (d->delivery.gone || d->renewed_ms == now || now - d->renewed_ms < every)
                        continue;
                extend_group(s, d->again, deliveries + i, n - i, now);
        }
}
