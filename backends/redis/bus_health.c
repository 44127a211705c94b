/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the servers promise: whether "acknowledged" means "on a disk", and why not where it does not (durable.h). Every server that has keys
 * is asked. Where another may take over, what it has not got yet is lost with the first: that is weak too, unless wait_replicas has
 * publishes wait for it. Loop thread.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bus_state.h"
#include "durable.h"

struct health {
        struct work w; /* first */
        struct om_arena arena;
        struct om_span info; /* of the first server */
        size_t n_servers;
        bool replicas;
        char why[OM_REDIS_WHY_MAX];
};

static void take(struct health *h, enum om_redis_durable question, int status, const struct om_redis_reply *reply) {
        om_redis_durable_take(question, status == 0 ? reply : NULL, h->why); /* a user who may not ask is no failure */
        om_redis_work_release(&h->w);
}

static void on_info(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct health *h = ctx;

        if (status < 0) {
                om_redis_work_fail(&h->w, status, error);
                om_redis_work_release(&h->w);
                return;
        }
        if (!h->info.p)
                h->info = om_arena_copy(&h->arena, reply->text);
        h->replicas |= !om_span_is(om_redis_info(reply->text, "connected_slaves"), "0");
        take(h, OM_REDIS_DURABLE_INFO, status, reply);
}

static void on_fsync(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        take(ctx, OM_REDIS_DURABLE_FSYNC, status, reply);
}

static void on_rights(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        take(ctx, OM_REDIS_DURABLE_RIGHTS, status, reply);
}

static void put(struct om_buf *b, const char *name, struct om_span value) {
        om_buf_putc(b, ',');
        om_buf_json_span(b, om_span_of(name));
        om_buf_putc(b, ':');
        om_buf_json_span(b, value.p ? value : OM_SPAN(""));
}

static void put_number(struct om_buf *b, const char *name, int64_t value) {
        om_buf_putc(b, ',');
        om_buf_json_span(b, om_span_of(name));
        om_buf_putc(b, ':');
        om_buf_i64(b, value);
}

static int64_t number(struct om_span s) { return s.p ? strtoll(s.p, NULL, 10) : 0; }

static void why_weak(struct health *h) {
        const struct bus_settings *s = &h->w.bus->settings;

        if (s->maxlen)
                snprintf(h->why, sizeof h->why, "maxlen of the URL drops tasks that nobody has handled");
        else if (!h->why[0] && h->replicas && s->redis.mode != OM_REDIS_SINGLE && !s->wait_replicas)
                snprintf(h->why, sizeof h->why,
                        "a replica that takes over may lack what its primary had acknowledged last: set wait_replicas in the URL to the "
                        "number of "
                        "replicas that a primary has");
}

static void health_end(struct work *w) {
        static const char *const modes[] = {
                [OM_REDIS_SINGLE] = "single", [OM_REDIS_CLUSTER] = "cluster", [OM_REDIS_SENTINEL] = "sentinel"
        };
        struct health *h = (struct health *) w;
        struct om_bus_query *op = (struct om_bus_query *) w->op;
        const struct om_redis_settings *s = &w->bus->settings.redis;
        struct om_buf b = OM_BUF_INIT;

        if (!op || w->status < 0)
                return;
        why_weak(h);
        om_buf_lit(&b, "{\"durability\":");
        om_buf_puts(&b, h->why[0] ? "\"weak\"" : "\"strong\"");
        if (h->why[0])
                put(&b, "why", om_span_of(h->why));
        put(&b, "url", om_span_of(s->redacted));
        put(&b, "mode", om_span_of(modes[s->mode]));
        put_number(&b, "servers", (int64_t) h->n_servers);
        put(&b, "version", om_redis_info(h->info, "redis_version"));
        put(&b, "role", om_redis_info(h->info, "role"));
        put_number(&b, "replicas", number(om_redis_info(h->info, "connected_slaves")));
        put_number(&b, "memory_bytes", number(om_redis_info(h->info, "used_memory")));
        put_number(&b, "max_memory_bytes", number(om_redis_info(h->info, "maxmemory")));
        put_number(&b, "clients", number(om_redis_info(h->info, "connected_clients")));
        put(&b, "consumer", om_span_of(w->bus->consumer));
        om_buf_putc(&b, '}');
        op->info = om_arena_copy(&op->arena, om_buf_span(&b));
        om_buf_deinit(&b);
}

static void health_free(struct work *w) { om_arena_deinit(&((struct health *) w)->arena); }

int om_redis_bus_query_health(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        static om_redis_done_fn *const done[OM_REDIS_DURABLE_N] = {
                [OM_REDIS_DURABLE_INFO] = on_info, [OM_REDIS_DURABLE_FSYNC] = on_fsync, [OM_REDIS_DURABLE_RIGHTS] = on_rights
        };
        struct om_redis_node *node;
        struct health *h;
        int r;

        h = om_redis_work_begin(b, &op->op, sizeof *h, 0, health_end, &r, e);
        if (!h)
                return r;
        h->w.free = health_free;
        for (; (node = om_redis_node_at(b->redis, h->n_servers)); h->n_servers++)
                for (enum om_redis_durable q = 0; q < OM_REDIS_DURABLE_N; q++)
                        om_redis_work_send_node(&h->w, node, om_redis_durable_cmd(q), done[q]);
        return om_redis_work_called(&h->w);
}
