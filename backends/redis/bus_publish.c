/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: an XADD for each task, all of a turn in one pipeline; a script where an idempotency key or a limit must hold together with
 * it.
 *
 * Always true: a task's outcome is 0 only after the server has answered its XADD, and, where the URL asks for it, WAIT or WAITAOF has said
 * that enough replicas or disks have it. An idempotency key and its task are set by one script, so neither is ever there without the other.
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bus_state.h"

struct publish;
struct publish_item {
        struct publish *publish;
        struct om_redis_node *node; /* of its WAIT */
        int status;                 /* 1: nothing known yet */
        bool duplicate;
        char *text; /* why, or with `duplicate` the first one's id */
};
struct publish_wait {
        struct publish *publish;
        struct om_redis_node *node;
};
struct publish {
        struct work w; /* first */
        struct publish_wait *waits;
        size_t n_waits;
        size_t n;
        struct publish_item all[];
};

static void set_why(struct publish_item *item, int status, const char *why) {
        item->status = status;
        free(item->text);
        item->text = strdup(why);
}

/* The texts of outcomes live until done() has returned, as the work does. */
static void publish_end(struct work *w) {
        struct publish *p = (struct publish *) w;
        struct om_bus_publish *op = (struct om_bus_publish *) w->op;

        for (size_t i = 0; op && i < p->n; i++) {
                struct om_outcome *o = &op->outcomes[i];
                const struct publish_item *item = &p->all[i];

                *o = (struct om_outcome){ .status = item->status > 0 ? -EIO : item->status, .duplicate = item->duplicate };
                if (item->duplicate && item->text)
                        snprintf(o->id, sizeof o->id, "%s", item->text);
                if (o->status < 0)
                        o->why = item->text;
        }
}

static void publish_free(struct work *w) {
        struct publish *p = (struct publish *) w;

        for (size_t i = 0; i < p->n; i++)
                free(p->all[i].text);
        free(p->waits);
}

static void on_added(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct publish_item *item = ctx;
        struct publish *p = item->publish;
        struct om_span word = om_redis_at(reply, 0)->text;

        if (status < 0) {
                set_why(item, status, error->message);
        } else if (reply->type != OM_REDIS_ARRAY || om_span_is(word, "ok")) {
                item->status = 0;
        } else if (om_span_is(word, "dup")) {
                struct om_span id = om_redis_at(reply, 1)->text;

                item->status = 0;
                item->duplicate = true;
                item->text = strndup(id.p ? id.p : "", id.len);
        } else {
                set_why(item, -ENOBUFS,
                        "redis: the topic is full (max_topic_tasks of the URL): its groups have not finished what it holds");
        }
        om_redis_work_release(&p->w);
}

static void on_waited(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct publish_wait *wait = ctx;
        struct publish *p = wait->publish;
        struct om_bus *b = p->w.bus;
        char lacks[OM_REDIS_SHORT_MAX], why[OM_REDIS_SHORT_MAX + 80];

        if (status == 0 && om_redis_wait_enough(b, reply, lacks)) {
                om_redis_work_release(&p->w);
                return;
        }
        if (status == 0) {
                om_redis_bus_is_short(b, wait->node, lacks);
                snprintf(why, sizeof why, "redis: it is published, but after %lld ms (wait_timeout_ms) %s",
                        (long long) b->settings.wait_timeout_ms, lacks);
        }
        for (size_t i = 0; i < p->n; i++) {
                struct publish_item *item = &p->all[i];

                if (item->node != wait->node || item->status < 0 || item->duplicate)
                        continue;
                set_why(item, -EAGAIN, status < 0 ? error->message : why);
        }
        om_redis_work_release(&p->w);
}

/* After all that went to a server: what it has by now must be safe. */
static void add_waits(struct publish *p) {
        struct om_bus *b = p->w.bus;
        const struct bus_settings *s = &b->settings;

        if ((!s->wait_replicas && !s->wait_fsync) || !p->n)
                return;
        p->waits = calloc(p->n, sizeof *p->waits);
        for (size_t i = 0; i < p->n && p->waits; i++) {
                struct publish_wait *wait = &p->waits[p->n_waits];
                struct om_error e;
                bool known = p->all[i].status < 0;
                int r;

                for (size_t k = 0; k < p->n_waits && !known; k++)
                        known = p->waits[k].node == p->all[i].node;
                if (known)
                        continue;
                *wait = (struct publish_wait){ p, p->all[i].node };
                p->n_waits++;
                r = om_redis_send_node(wait->node, om_redis_wait_cmd(b, s->wait_timeout_ms), on_waited, wait, &e);
                om_redis_work_hold(&p->w);
                if (r < 0)
                        on_waited(wait, r, NULL, &e);
        }
}

static void put_idempotency_key(struct om_redis_cmd *c, struct om_span stream, const struct om_task *t) {
        struct om_buf key = OM_BUF_INIT;

        om_redis_tag(&key, stream);
        om_buf_lit(&key, "omni-idem:");
        om_buf_put_span(&key, t->topic);
        om_buf_putc(&key, ':');
        om_buf_put_span(&key, t->idempotency_key);
        om_redis_key(c, om_buf_span(&key));
        om_buf_deinit(&key);
}

static void floor_text(const struct om_bus *b, char *out, size_t size) {
        out[0] = 0;
        if (b->settings.retention_ms)
                snprintf(out, size, "%lld-0", (long long) (om_now_ms() - b->settings.retention_ms));
}

static struct om_redis_cmd *publish_cmd(const struct om_bus *b, const struct om_task *t, struct om_span stream, struct om_span data) {
        const struct bus_settings *s = &b->settings;
        bool keyed = t->idempotency_key.p && s->idempotency_window_ms > 0;
        struct om_redis_cmd *c;
        char floor[32];

        if (!keyed && !s->max_topic_tasks) {
                c = om_redis_cmd_new("XADD");
                om_redis_hurry(c);
                om_redis_key(c, stream);
                if (s->maxlen) {
                        om_redis_arg_text(c, "MAXLEN");
                        om_redis_arg_text(c, "~");
                        om_redis_arg_int(c, s->maxlen);
                }
                om_redis_arg_text(c, "*");
                om_redis_arg_text(c, "data");
                om_redis_arg(c, data);
                return c;
        }
        c = om_redis_script_new(&om_redis_script_publish, keyed ? 2 : 1);
        om_redis_hurry(c);
        om_redis_key(c, stream);
        if (keyed)
                put_idempotency_key(c, stream, t);
        om_redis_arg(c, data);
        om_redis_arg(c, t->id);
        om_redis_arg_int(c, s->idempotency_window_ms);
        om_redis_arg_int(c, s->max_topic_tasks);
        om_redis_arg_int(c, s->maxlen);
        floor_text(b, floor, sizeof floor);
        om_redis_arg_text(c, floor);
        return c;
}

int om_redis_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        struct om_buf data = OM_BUF_INIT, stream = OM_BUF_INIT;
        struct publish *p;
        int r;

        p = om_redis_work_begin(b, &op->op, sizeof *p + op->n * sizeof *p->all, op->n, publish_end, &r, e);
        if (!p)
                return r;
        p->w.free = publish_free;
        p->n = op->n;
        for (size_t i = 0; i < op->n; i++) {
                const struct om_task *t = op->tasks[i].task;
                struct publish_item *item = &p->all[i];
                struct om_error why = OM_ERROR_INIT;
                const char *lacks;

                item->publish = p;
                item->status = 1;
                om_buf_clear(&data);
                om_buf_clear(&stream);
                om_redis_bus_form_write(&data, t);
                om_redis_bus_topic_stream(&stream, t->topic);
                if (b->settings.wait_replicas || b->settings.wait_fsync)
                        item->node = om_redis_node_of(b->redis, om_buf_span(&stream));
                lacks = item->node ? om_redis_bus_short_of(b, item->node) : NULL;
                if (lacks)
                        r = om_error_set(&why, OM_UNAVAILABLE, "%s", lacks);
                else if (!om_buf_ok(&data) || !om_buf_ok(&stream))
                        r = om_error_set_errno(&why, ENOMEM, "redis: a task");
                else
                        r = om_redis_send(b->redis, publish_cmd(b, t, om_buf_span(&stream), om_buf_span(&data)), on_added, item, &why);
                if (r < 0)
                        set_why(item, r, why.message);
                else
                        om_redis_work_hold(&p->w);
        }
        om_buf_deinit(&data);
        om_buf_deinit(&stream);
        add_waits(p);
        return om_redis_work_called(&p->w);
}
