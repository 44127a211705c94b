/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for replicas and disks (wait_replicas, wait_fsync), and what follows where they are missing.
 *
 * A task that too few replicas have is on its server all the same; who was told that it failed, and publishes it again, doubles it. So
 * always true: once a server lacked replicas nothing more is sent to it, and a publish is refused at once, until a question of ours found
 * enough of them there. Such a question holds that connection up for PROBE_MS at most. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

enum { PROBE_MS = 20, AGAIN_MS = 100 };

struct bus_shortage {
        struct bus_shortage *next;
        struct om_bus *bus;
        struct om_redis_node *node;
        struct event *again;
        char why[OM_REDIS_SHORT_MAX];
};

struct om_redis_cmd *om_redis_wait_cmd(const struct om_bus *b, int64_t ms) {
        const struct bus_settings *s = &b->settings;
        struct om_redis_cmd *c = om_redis_cmd_new(s->wait_fsync ? "WAITAOF" : "WAIT");

        if (s->wait_fsync)
                om_redis_arg_int(c, 1);
        om_redis_arg_int(c, s->wait_replicas);
        om_redis_arg_int(c, ms);
        om_redis_patience(c, ms);
        om_redis_hurry(c);
        return c;
}

bool om_redis_wait_enough(const struct om_bus *b, const struct om_redis_reply *reply, char why[OM_REDIS_SHORT_MAX]) {
        const struct bus_settings *s = &b->settings;
        int64_t disk = s->wait_fsync ? om_redis_int(om_redis_at(reply, 0), 0) : 1;
        int64_t replicas = s->wait_fsync ? om_redis_int(om_redis_at(reply, 1), 0) : om_redis_int(reply, 0);

        if (disk >= 1 && replicas >= s->wait_replicas)
                return true;
        snprintf(why, OM_REDIS_SHORT_MAX, "only %lld of %lld replicas%s have what is published (wait_replicas of the URL)",
                (long long) replicas, (long long) s->wait_replicas, disk < 1 ? ", and not the server's own disk," : "");
        return false;
}

static struct bus_shortage *shortage_of(const struct om_bus *b, const struct om_redis_node *node) {
        struct bus_shortage *s;

        LL_FOREACH (b->shortages, s)
                if (s->node == node)
                        break;
        return s;
}

const char *om_redis_bus_short_of(const struct om_bus *b, const struct om_redis_node *node) {
        const struct bus_shortage *s = shortage_of(b, node);

        return s ? s->why : NULL;
}

static void shortage_free(struct bus_shortage *s) {
        LL_DELETE(s->bus->shortages, s);
        event_free(s->again);
        free(s);
}

static void ask_again(struct bus_shortage *s) {
        if (!s->bus->closed)
                event_add(s->again, &(struct timeval){ .tv_usec = AGAIN_MS * 1000 });
}

static void on_probed(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct bus_shortage *s = ctx;
        char why[OM_REDIS_SHORT_MAX];

        if (status < 0 || !om_redis_wait_enough(s->bus, reply, why)) {
                ask_again(s);
                return;
        }
        om_host_log(s->bus->host, OM_LOG_NOTICE, "event bus redis: redis %s: enough replicas again, publishing goes on",
                om_redis_node_name(s->node));
        shortage_free(s);
}

static void probe(evutil_socket_t fd, short what, void *ctx) {
        struct bus_shortage *s = ctx;
        struct om_error e;

        if (om_redis_send_node(s->node, om_redis_wait_cmd(s->bus, PROBE_MS), on_probed, s, &e) < 0)
                ask_again(s);
}

void om_redis_bus_is_short(struct om_bus *b, struct om_redis_node *node, const char *why) {
        struct bus_shortage *s = shortage_of(b, node);

        if (s || b->closed)
                return;
        s = calloc(1, sizeof *s);
        if (s)
                s->again = evtimer_new(b->host->base, probe, s);
        if (!s || !s->again) {
                free(s); /* the next publish finds out for itself */
                return;
        }
        s->bus = b;
        s->node = node;
        snprintf(s->why, sizeof s->why, "redis %s: not published: %s", om_redis_node_name(node), why);
        LL_PREPEND(b->shortages, s);
        om_host_log(
                b->host, OM_LOG_WARNING, "event bus redis: redis %s: %s; publishing to it waits for them", om_redis_node_name(node), why);
        ask_again(s);
}

void om_redis_bus_shortages_free(struct om_bus *b) {
        while (b->shortages)
                shortage_free(b->shortages);
}
