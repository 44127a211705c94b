/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serving a group: making or finding it, leaving it, and making it again where the server has lost it.
 *
 * Always true: whether a group is the first of its topic is decided by the server, in the script that makes it, so two that race are not
 * both the first; a sub is freed when nothing that refers to it is under way; after unsubscribe() no event names it. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

void om_redis_sub_hold(struct om_bus_sub *s) { s->refs++; }

static void sub_free(struct om_bus_sub *s) {
        om_redis_sub_let_go(s);
        if (s->due)
                event_free(s->due);
        om_redis_bus_names_deinit(&s->names);
        free(s);
}

void om_redis_sub_release(struct om_bus_sub *s) {
        if (--s->refs == 0)
                sub_free(s);
}

bool om_redis_sub_send(struct om_bus_sub *s, struct om_redis_cmd *c, om_redis_done_fn *done) {
        struct om_error e;

        if (om_redis_send(s->bus->redis, c, done, s, &e) < 0)
                return false;
        om_redis_sub_hold(s);
        return true;
}

/* -- serving --------------------------------------------------------------------------------------------------------- */

struct subscribe {
        struct work w; /* first */
        struct om_bus_sub *sub;
        bool created, ok;
};

static void take_last(struct om_bus_sub *s, const struct om_redis_reply *reply, size_t at) {
        snprintf(s->last, sizeof s->last, "%.*s", OM_PRI(om_redis_at(reply, at)->text));
        snprintf(s->last_again, sizeof s->last_again, "%.*s", OM_PRI(om_redis_at(reply, at + 1)->text));
}

static void subscribe_end(struct work *w) {
        struct subscribe *m = (struct subscribe *) w;
        struct om_bus_subscribe *op = (struct om_bus_subscribe *) w->op;
        struct om_bus_sub *s = m->sub;
        struct om_bus *b = w->bus;

        if (w->status < 0 || !op || b->closed) {
                om_redis_sub_release(s);
                return;
        }
        op->ret_sub = s;
        op->ret_created = m->created;
        DL_APPEND(b->subs, s);
        om_redis_bus_sweep_arm(b);
        if (!m->created)
                om_redis_sub_takeover(s);
        om_redis_sub_due(s, 0);
}

static void on_subscribed(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct subscribe *m = ctx;

        if (status < 0)
                om_redis_work_fail(&m->w, status == -ENOENT ? -EAGAIN : status, error);
        else {
                m->created = om_redis_int(om_redis_at(reply, 0), 0) == 1;
                take_last(m->sub, reply, 1);
        }
        om_redis_work_release(&m->w);
}

static void on_due_time(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus_sub *s = ctx;
        int64_t at = s->due_at_ms;

        s->sick = false;
        if (at != INT64_MAX) { /* the event may come a little before its time, or much: it had another reason */
                s->due_at_ms = INT64_MAX;
                om_redis_sub_due(s, at - om_clock_ms());
        }
        om_redis_bus_pump_soon(s->bus);
}

static struct om_bus_sub *sub_new(struct om_bus *b, const struct om_bus_subscribe *op) {
        struct om_bus_sub *s = calloc(1, sizeof *s);

        if (!s)
                return NULL;
        s->bus = b;
        s->core = op->core;
        s->refs = 1;
        s->due_at_ms = INT64_MAX;
        s->entry_bytes = 1024;
        s->reclaim_ms = op->reclaim_idle_ms > 0 ? op->reclaim_idle_ms : RECLAIM_MS;
        if (s->reclaim_ms < LEASE_MS)
                s->reclaim_ms = LEASE_MS;
        strcpy(s->last, "0-0");
        strcpy(s->last_again, "0-0");
        s->due = evtimer_new(b->host->base, on_due_time, s);
        if (!s->due || om_redis_bus_names_make(&s->names, op->topic, op->agent) < 0) {
                sub_free(s);
                return NULL;
        }
        return s;
}

static const char *mode_of(enum om_start start) {
        return start == OM_START_FIRST ? "first" : start == OM_START_NEW ? "new" : start == OM_START_TIME ? "time" : "default";
}

int om_redis_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        struct om_redis_cmd *c;
        struct subscribe *m;
        int r;

        m = om_redis_work_begin(b, &op->op, sizeof *m, 0, subscribe_end, &r, e);
        if (!m)
                return r;
        m->sub = sub_new(b, op);
        if (!m->sub) {
                /* nothing was sent yet: refused after all */
                b->n_ops--;
                free(m);
                return om_error_set_errno(e, ENOMEM, "redis: a group");
        }
        c = om_redis_script_new(&om_redis_script_subscribe, 2);
        om_redis_key(c, m->sub->names.stream);
        om_redis_key(c, m->sub->names.again);
        om_redis_arg(c, m->sub->names.group);
        om_redis_arg_text(c, mode_of(op->start));
        om_redis_arg_int(c, op->start_ms);
        om_redis_work_send(&m->w, c, on_subscribed);
        return om_redis_work_called(&m->w);
}

/* -- leaving --------------------------------------------------------------------------------------------------------- */

static void on_left(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) { om_redis_sub_release(ctx); }

void om_redis_bus_unsubscribe(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;
        struct om_redis_cmd *c;

        s->ended = true;
        s->want = 0;
        event_del(s->due);
        om_redis_sub_forget(s);
        DL_DELETE(b->subs, s);
        om_redis_sub_give_back(s);
        if (!s->deleted) {
                c = om_redis_script_new(&om_redis_script_leave, 2);
                om_redis_key(c, s->names.stream);
                om_redis_key(c, s->names.again);
                om_redis_arg(c, s->names.group);
                om_redis_arg_text(c, b->consumer);
                om_redis_sub_send(s, c, on_left);
        }
        om_redis_sub_release(s);
}

/* -- mending --------------------------------------------------------------------------------------------------------- */

void om_redis_sub_drop_deliveries(struct om_bus_sub *s, bool revoke) {
        struct om_delivery **gone = NULL;
        struct bus_delivery *d, *tmp;
        size_t n = 0, count = 0;

        DL_FOREACH_SAFE (s->backlog, d, tmp) {
                DL_DELETE(s->backlog, d);
                om_redis_delivery_free(d);
        }
        s->n_backlog = 0;
        DL_COUNT(s->out, d, count);
        if (count)
                gone = calloc(count, sizeof(struct om_delivery *));
        DL_FOREACH_SAFE (s->out, d, tmp) {
                if (d->delivery.gone)
                        continue;
                d->delivery.gone = true;
                if (gone)
                        gone[n++] = &d->delivery;
        }
        if (n && revoke && !s->ended)
                s->bus->events->revoked(s->core, gone, n);
        free(gone);
}

static void on_repaired(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;

        if (status == 0) {
                take_last(s, reply, 0);
                om_host_log(s->bus->host, OM_LOG_WARNING, "redis: the server had lost the group %.*s; it was made again, from %s on",
                        OM_PRI(s->names.group), s->last);
                s->reading = false;
                s->dry = false;
                om_redis_sub_due(s, 0);
                om_redis_bus_pump_soon(s->bus);
        } else {
                s->reading = false; /* tried again with the next read */
                s->dry = true;
                om_redis_sub_sick(s, status, error);
        }
        om_redis_sub_release(s);
}

void om_redis_sub_repair(struct om_bus_sub *s) {
        struct om_redis_cmd *c;

        if (s->ended || s->deleted)
                return;
        c = om_redis_script_new(&om_redis_script_repair, 3);
        om_redis_key(c, s->names.stream);
        om_redis_key(c, s->names.again);
        om_redis_key(c, s->names.due);
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, s->last);
        om_redis_arg_text(c, s->last_again);
        om_redis_arg_text(c, om_redis_bus_retry_consumer);
        s->reading = true;
        if (!om_redis_sub_send(s, c, on_repaired))
                s->reading = false;
}
