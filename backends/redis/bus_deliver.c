/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deliveries: an entry of a stream becomes a record and a delivery, waits in the group's backlog until the core wants it, and is handed
 * over.
 *
 * Always true:
 *   - a delivery in `by_id` is pending on the server under our consumer's name, as far as we know, and is in the backlog or with the core;
 *   - what is in the backlog for longer than a moment goes back: another daemon may have a worker;
 *   - an entry that is no task becomes a dead letter, with what is wrong with it, and the core never sees it;
 *   - the attempt of what was never out before is 1; of all else it is what `retry_counts` says, and one more.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

enum { BACKLOG_MS = 100, DELIVER_AT_ONCE = 128 };

void om_redis_delivery_free(struct bus_delivery *d) {
        struct om_bus_sub *s = d->delivery.sub;

        if (d->listed)
                HASH_DEL(s->by_id, d);
        free(d);
}

void om_redis_sub_let_go(struct om_bus_sub *s) {
        struct bus_delivery *d, *tmp;

        DL_FOREACH_SAFE (s->backlog, d, tmp)
                om_redis_delivery_free(d);
        DL_FOREACH_SAFE (s->out, d, tmp)
                om_redis_delivery_free(d);
        s->backlog = s->out = NULL;
}

bool om_redis_sub_knows(struct om_bus_sub *s, const char *id) {
        struct bus_delivery *d;

        HASH_FIND_STR(s->by_id, id, d);
        return d;
}

/* -- what is no task ------------------------------------------------------------------------------------------------- */

struct broken {
        struct om_bus_sub *sub;
        bool again;
        char id[ID_MAX];
};

static void on_broken_acked(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_sub_release(ctx);
}

static void on_broken_kept(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct broken *k = ctx;
        struct om_bus_sub *s = k->sub;
        struct om_redis_cmd *c;

        if (status == 0) { /* else it stays pending, and is found again by a takeover */
                c = om_redis_script_new(&om_redis_script_ack, 2);
                om_redis_key(c, k->again ? s->names.again : s->names.stream);
                om_redis_key(c, s->names.stats);
                om_redis_arg(c, s->names.group);
                om_redis_arg_int(c, k->again);
                om_redis_arg_text(c, k->id);
                om_redis_sub_send(s, c, on_broken_acked);
        }
        free(k);
        om_redis_sub_release(s);
}

static void bury(struct om_bus_sub *s, bool again, const char *id, struct om_span raw, const struct om_error *why) {
        const struct om_dead_letter letter = { .error = om_span_of(why->message),
                .error_type = OM_SPAN("not_a_task"),
                .worker = OM_SPAN(""),
                .attempts = 1,
                .failed_ms = om_now_ms() };
        struct broken *k = calloc(1, sizeof *k);
        struct om_buf data = OM_BUF_INIT;
        struct om_redis_cmd *c;
        struct om_error e;
        char name[ID_MAX + 3];

        if (!k)
                return;
        *k = (struct broken){ .sub = s, .again = again };
        snprintf(k->id, sizeof k->id, "%s", id);
        snprintf(name, sizeof name, "%s%s", again ? "r:" : "", id);
        om_redis_bus_letter_write(&data, s->names.topic, again ? s->names.again : s->names.stream, id, &letter, raw);
        c = om_redis_script_new(&om_redis_script_dead, 2);
        om_redis_key(c, s->names.dead);
        om_redis_key(c, s->names.dead_ids);
        om_redis_arg_text(c, name);
        om_redis_arg(c, om_buf_span(&data));
        om_buf_deinit(&data);
        if (om_redis_send(s->bus->redis, c, on_broken_kept, k, &e) < 0) {
                free(k);
                return;
        }
        om_redis_sub_hold(s);
        om_host_log(s->bus->host, OM_LOG_WARNING, "redis: entry %s of %.*s is no task and goes to the dead letters of %.*s: %s", id,
                OM_PRI(s->names.stream), OM_PRI(s->names.group), why->message);
}

/* -- taking ---------------------------------------------------------------------------------------------------------- */

struct lookup {
        struct om_bus_sub *sub;
        struct bus_delivery *delivery;
};

static void queue(struct om_bus_sub *s, struct bus_delivery *d) {
        struct om_bus *b = s->bus;
        struct timeval tv = { .tv_usec = BACKLOG_MS * 1000 };

        DL_APPEND(s->backlog, d);
        s->n_backlog++;
        if (s->ended) {
                om_redis_sub_give_back(s);
                return;
        }
        om_redis_bus_pump_soon(b);
        if (!evtimer_pending(b->idle_backlog, NULL))
                event_add(b->idle_backlog, &tv);
}

static void on_counted(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct lookup *k = ctx;
        struct om_bus_sub *s = k->sub;
        struct bus_delivery *d = k->delivery;
        int64_t n = status < 0 ? -1 : om_redis_int(reply, 0);

        free(k);
        s->n_coming--;
        if (n < 0)
                om_redis_delivery_free(d); /* it is pending still, and is found again: by recovering, or by a takeover */
        else {
                d->delivery.attempt = (uint32_t) (n < UINT32_MAX ? n : UINT32_MAX - 1) + 1;
                queue(s, d);
        }
        om_redis_sub_release(s);
}

static void look_up(struct om_bus_sub *s, struct bus_delivery *d, bool recount) {
        struct lookup *k = calloc(1, sizeof *k);
        struct om_redis_cmd *c;
        struct om_error e;

        if (!k) {
                om_redis_delivery_free(d);
                return;
        }
        *k = (struct lookup){ s, d };
        c = om_redis_cmd_new(recount ? "HINCRBY" : "HGET");
        om_redis_key(c, s->names.counts);
        om_redis_arg_text(c, d->id);
        if (recount)
                om_redis_arg_int(c, 1);
        if (om_redis_send(s->bus->redis, c, on_counted, k, &e) < 0) {
                free(k);
                om_redis_delivery_free(d);
                return;
        }
        s->n_coming++;
        om_redis_sub_hold(s);
}

static void on_nudge_acked(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_sub_release(ctx);
}

/* Word that something is due. */
static void take_nudge(struct om_bus_sub *s, const char *id) {
        struct om_redis_cmd *c = om_redis_cmd_new("XACK");

        om_redis_key(c, s->names.again);
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, id);
        om_redis_sub_send(s, c, on_nudge_acked);
        c = om_redis_cmd_new("XDEL");
        om_redis_key(c, s->names.again);
        om_redis_arg_text(c, id);
        om_redis_sub_send(s, c, on_nudge_acked);
        om_redis_sub_due(s, 0);
}

void om_redis_sub_take(struct om_bus_sub *s, const struct om_redis_reply *entry, bool again, uint32_t attempt, bool recount) {
        const struct om_redis_reply *fields = om_redis_at(entry, 1);
        struct om_span id = om_redis_at(entry, 0)->text, data = om_redis_field(fields, "data")->text;
        struct om_buf record = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        struct bus_delivery *d;
        char name[ID_MAX + 3];

        if (!id.len || id.len >= ID_MAX)
                return;
        snprintf(name, sizeof name, "%s%.*s", again ? "r:" : "", OM_PRI(id));
        if (fields->type != OM_REDIS_ARRAY) {
                om_error_set(&e, OM_NOT_FOUND, "the entry was deleted from the stream");
                bury(s, again, name + (again ? 2 : 0), OM_SPAN(""), &e);
                return;
        }
        if (again && !data.p && om_redis_field(fields, "due")->text.p) {
                take_nudge(s, name + 2);
                return;
        }
        if (om_redis_sub_knows(s, name))
                return;
        if (!data.p)
                om_error_set(&e, OM_INVALID, "the entry has no field \"data\"");
        if (!data.p || om_redis_bus_form_read(data, s->names.topic, name + (again ? 2 : 0), &record, &e) < 0) {
                bury(s, again, name + (again ? 2 : 0), data.p ? data : OM_SPAN(""), &e);
                om_buf_deinit(&record);
                return;
        }
        d = om_buf_ok(&record) ? calloc(1, sizeof *d + record.len) : NULL;
        if (d) {
                memcpy(d->record, record.data, record.len);
                d->delivery = (struct om_delivery){ .sub = s, .record = { d->record, record.len }, .attempt = attempt };
                d->again = again;
                strcpy(d->id, name);
                d->renewed_ms = om_clock_ms();
                HASH_ADD_STR(s->by_id, id, d);
                d->listed = d->hh.tbl;
                if (!d->listed) { /* pending still, and found again by a sweep */
                        free(d);
                        om_buf_deinit(&record);
                        return;
                }
                s->entry_bytes = (s->entry_bytes * 7 + record.len) / 8 + 1;
                if (attempt)
                        queue(s, d);
                else
                        look_up(s, d, recount);
        }
        om_buf_deinit(&record);
}

/* -- handing over ---------------------------------------------------------------------------------------------------- */

void om_redis_sub_deliver(struct om_bus_sub *s) {
        struct om_delivery *batch[DELIVER_AT_ONCE];
        size_t n = 0;

        while (s->backlog && s->want && n < DELIVER_AT_ONCE && !s->ended) {
                struct bus_delivery *d = s->backlog;

                DL_DELETE(s->backlog, d);
                s->n_backlog--;
                s->want--;
                d->with_core = true;
                DL_APPEND(s->out, d);
                batch[n++] = &d->delivery;
        }
        if (n)
                s->bus->events->deliver(s->core, batch, n);
        if (s->backlog && s->want && !s->ended)
                om_redis_bus_pump_soon(s->bus);
}

/* -- giving back ----------------------------------------------------------------------------------------------------- */

static void on_given_back(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;

        if (status < 0 && !s->ended)
                om_redis_sub_recover(s); /* they are ours still */
        om_redis_sub_release(s);
}

void om_redis_sub_give_back(struct om_bus_sub *s) {
        struct bus_delivery *d, *tmp;

        DL_FOREACH_SAFE (s->backlog, d, tmp) {
                DL_DELETE(s->backlog, d);
                om_redis_sub_send(s, om_redis_bus_park_cmd(s, d->again, delivery_entry(d), d->id, -1), on_given_back);
                om_redis_delivery_free(d);
        }
        s->n_backlog = 0;
}

void om_redis_bus_on_idle_backlog(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct om_bus_sub *s;

        DL_FOREACH (b->subs, s)
                if (s->backlog && !s->want)
                        om_redis_sub_give_back(s);
}
