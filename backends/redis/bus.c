/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bus on Redis streams, shared with the Python OmniDaemon: a topic is a stream, a group a consumer group of it.
 *
 * How the promises of bus.h are kept:
 *   B1  a publish is answered when XADD was (WAIT, WAITAOF by the URL); whether that is on a disk is the server's setting, and `health`
 * says it. B2  a verdict is answered when its last command was. Until then the entry is pending, under a name that dies with us. B3  the
 * script that makes a group looks whether there is another one. B4  a topic is trimmed by a script below the lowest entry that some group
 * has not finished (not so with `maxlen`, which is Python's way). B5  no more is read than is wanted; a read that brings from both of a
 * group's streams may bring more, which waits for a moment and goes back. B6  retry_counts:{group} has the attempts; it never expires. B7
 * a dead letter is kept before the entry is acknowledged, and recognised by the entry's id when that is done again. B8  streams are read in
 * order. There are no keys. A daemon that dies leaves what it held pending under its own name: its next life takes it up at once (the name
 * is kept in the state folder, under a lock), the others after reclaim_idle_ms; those who live show it by XCLAIM … JUSTID.
 *
 * Loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>
#include <utlist.h>

#include "bus_state.h"

static const char *const schemes[] = { "redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel",
        "redis+unix", NULL };
static const struct om_option options[] = {
        OM_REDIS_OPTIONS(struct bus_settings, redis),
        { "retention_ms", OM_OPTION_MS, offsetof(struct bus_settings, retention_ms), "0", NULL, 0, 0,
                "How long finished tasks are kept for replay; 0 forgets them at once." },
        { "max_topic_tasks", OM_OPTION_INT, offsetof(struct bus_settings, max_topic_tasks), "0", NULL, 0, 0,
                "Tasks that one topic may hold; above it a publish is refused. 0: no limit but the server's memory." },
        { "maxlen", OM_OPTION_INT, offsetof(struct bus_settings, maxlen), "0", NULL, 0, 0,
                "Trims each topic to about so many tasks whether they were handled or not, as the Python OmniDaemon does. 0: never." },
        { "idempotency_window_ms", OM_OPTION_MS, offsetof(struct bus_settings, idempotency_window_ms), "24h", NULL, 0, 0,
                "How long an idempotency key is remembered; 0: not at all." },
        { "wait_replicas", OM_OPTION_INT, offsetof(struct bus_settings, wait_replicas), "0", NULL, 0, 100,
                "A publish is answered only when so many replicas have it (WAIT). While they are missing nothing is published." },
        { "wait_fsync", OM_OPTION_BOOL, offsetof(struct bus_settings, wait_fsync), "false", NULL, 0, 0,
                "A publish is answered only when it is in the append-only files, synced, of the server and of wait_replicas (WAITAOF, "
                "Redis 7.2)." },
        { "wait_timeout_ms", OM_OPTION_MS, offsetof(struct bus_settings, wait_timeout_ms), "1s", NULL, 1, 600000,
                "How long WAIT and WAITAOF may take; after it a publish fails with `unavailable`, though it may be there." },
        { .name = NULL },
};

/* -- the name -------------------------------------------------------------------------------------------------------- */

static void random_text(char *out, size_t n) {
        static const char letters[] = "abcdefghijkmnpqrstuvwxyz23456789";
        uint64_t r = om_random_u64();

        for (size_t i = 0; i < n; i++, r >>= 5)
                out[i] = letters[r & 31];
        out[n] = 0;
}

/* Ours over restarts: kept in a file that is locked while we live. Where that cannot be, a name for this life. */
static void name_it(struct om_bus *b) {
        char path[4096], id[16] = "", host[64] = "";
        ssize_t n = 0;

        if (gethostname(host, sizeof host - 1) < 0 || !host[0])
                strcpy(host, "host");
        if (snprintf(path, sizeof path, "%s/redis-consumer", b->host->state_dir) < (int) sizeof path)
                b->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (b->lock_fd >= 0 && flock(b->lock_fd, LOCK_EX | LOCK_NB) < 0) {
                close(b->lock_fd);
                b->lock_fd = -1;
        }
        if (b->lock_fd >= 0)
                n = pread(b->lock_fd, id, 8, 0);
        for (ssize_t i = 0; i < n; i++)
                if ((id[i] < 'a' || id[i] > 'z') && (id[i] < '0' || id[i] > '9'))
                        n = 0;
        if (n != 8) {
                random_text(id, 8);
                if (b->lock_fd >= 0 && pwrite(b->lock_fd, id, 8, 0) != 8)
                        om_host_log(b->host, OM_LOG_WARNING, "redis: cannot keep our name in %s", path);
        }
        id[8] = 0;
        snprintf(b->name, sizeof b->name, "omnidaemon:%s:%s:", host, id);
        random_text(id, 8);
        snprintf(b->consumer, sizeof b->consumer, "%s%s", b->name, id);
}

/* -- state ----------------------------------------------------------------------------------------------------------- */

static void on_state(void *ctx, enum om_redis_state state, const struct om_error *error) {
        struct om_bus *b = ctx;

        if (b->closed)
                return;
        if (state == OM_REDIS_READY)
                om_redis_bus_pump_soon(b);
        b->events->state(b->core, state == OM_REDIS_READY ? OM_BUS_READY : OM_BUS_CONNECTING, error);
}

static void on_moved(void *ctx) {
        struct om_bus *b = ctx;

        if (!b->closed)
                om_redis_bus_moved(b);
}

static void on_node_ready(void *ctx, struct om_redis_node *node) {
        struct om_bus *b = ctx;
        struct om_bus_sub *s;

        if (b->closed)
                return;
        DL_FOREACH (b->subs, s) {
                if (om_redis_node_of(b->redis, s->names.stream) != node)
                        continue;
                s->dry = s->sick = false;
                om_redis_sub_recover(s);
                om_redis_sub_due(s, 0);
        }
        om_redis_bus_pump_soon(b);
}

static const struct om_redis_events redis_events = { on_state, on_moved, on_node_ready };

/* -- opening and closing --------------------------------------------------------------------------------------------- */

static void bus_free(struct om_bus *b) {
        struct event *const events[] = { b->sweep, b->idle_backlog, b->trim_timer };

        for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
                if (events[i])
                        event_free(events[i]);
        om_redis_bus_trims_free(b);
        om_redis_settings_free(&b->settings.redis);
        if (b->lock_fd >= 0)
                close(b->lock_fd);
        free(b);
}

static int bus_open(
        struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        struct om_bus *b = calloc(1, sizeof *b);
        int r;

        if (!b)
                return om_error_set_errno(e, ENOMEM, "redis");
        b->host = host;
        b->events = events;
        b->core = core;
        b->lock_fd = -1;
        b->pump.fn = om_redis_bus_pump;
        b->sweep = evtimer_new(host->base, om_redis_bus_on_sweep, b);
        b->idle_backlog = evtimer_new(host->base, om_redis_bus_on_idle_backlog, b);
        b->trim_timer = evtimer_new(host->base, om_redis_bus_on_trim, b);
        r = b->sweep && b->idle_backlog && b->trim_timer ? 0 : om_error_set_errno(e, ENOMEM, "redis");
        if (r == 0)
                r = om_options_read(options, url, &b->settings, e);
        if (r == 0)
                r = om_redis_settings_take(&b->settings.redis, url, e);
        if (r == 0) {
                name_it(b);
                r = om_redis_new(host, &b->settings.redis, &redis_events, b, &b->redis, e);
        }
        if (r < 0) {
                bus_free(b);
                return r;
        }
        *ret = b;
        return 0;
}

static void on_closed(struct om_post *post) {
        struct om_bus *b = (void *) ((char *) post - offsetof(struct om_bus, pump));
        struct om_op *op = b->closing;

        op->done(op, 0, NULL);
}

static void close_now(struct om_bus *b) {
        b->closed = true;
        event_del(b->sweep);
        event_del(b->idle_backlog);
        event_del(b->trim_timer);
        om_redis_bus_readers_stop(b);
        om_redis_free(b->redis); /* what is under way ends within */
        b->redis = NULL;
        om_redis_bus_readers_free(b);
        om_redis_bus_shortages_free(b);
        b->pump.fn = on_closed;
        if (!b->pumping)
                om_host_post(b->host, &b->pump);
}

/* What was given back and left at the end goes out before the connection does: it is in the same pipeline as a last PING. */
static void on_last_answer(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus *b = ctx;

        if (!b->closed)
                close_now(b);
}

static int bus_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        struct om_error why;

        op->cancel = NULL;
        b->closing = op;
        if (om_redis_ready(b->redis) && om_redis_send(b->redis, om_redis_cmd_new("PING"), on_last_answer, b, &why) == 0)
                return 0;
        close_now(b);
        return 0;
}

static void bus_destroy(struct om_bus *b) {
        struct om_bus_sub *s, *tmp;

        DL_FOREACH_SAFE (b->subs, s, tmp) {
                DL_DELETE(b->subs, s);
                om_redis_sub_release(s); /* those that the core left served */
        }
        bus_free(b);
}

OM_MODULE const struct om_bus_ops om_redis_bus_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "redis",
        .schemes = schemes,
        .doc = "Redis streams, shared with the Python OmniDaemon",
        .capabilities = OM_BUS_DEDUPE | OM_BUS_REPLAY,
        .options = options,
        .lease_ms = LEASE_MS,
        .open = bus_open,
        .publish = om_redis_bus_publish,
        .subscribe = om_redis_bus_subscribe,
        .unsubscribe = om_redis_bus_unsubscribe,
        .want = om_redis_bus_want,
        .settle = om_redis_bus_settle,
        .extend = om_redis_bus_extend,
        .query = om_redis_bus_query,
        .change = om_redis_bus_change,
        .close = bus_close,
        .destroy = bus_destroy,
};
