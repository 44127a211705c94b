/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Redis storage: `redis://…`, `redis+cluster://…`, `redis+sentinel://…` (conn.h). The keys are the Python OmniDaemon's, so both work on
 * one server, each seeing what the other wrote (store_keys.c, store_record.c). Needs Redis 6.2 or newer. This file opens and closes it.
 *
 * How it keeps the promises of store.h:
 *   S1  a write completes when the server has answered it; whether that survives the server is what `durability` in its health says;
 *   S2  results have a native time to live, to the millisecond; the earlier results of a task, where several agents had it, live as long as
 *       the newest does and say themselves when they expire. A result that the Python one saves takes the place of the newest, as it does
 * in the Python one: it keeps one result a task. What ours saves keeps the Python one's; S3  SET NX; S4  results by place in a sorted set,
 * metrics by stream id, names by name (store_list.c, store_names.c); a cursor holds the place itself, nothing is kept for it; S5  what is
 * not there is a nil reply, and nothing else is taken for one. Several daemons may use it at once: every change is one command or one
 * script, and may be repeated.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

static const struct om_option options[] = {
        OM_REDIS_OPTIONS(struct om_redis_store_settings, redis),
        { "prefix", OM_OPTION_STRING, offsetof(struct om_redis_store_settings, prefix), "omni", NULL, 0, 0,
                "What the names of its keys begin with; the Python OmniDaemon's REDIS_KEY_PREFIX." },
        { "max_metrics", OM_OPTION_INT, offsetof(struct om_redis_store_settings, max_metrics), "100000", NULL, 1, 1000000000,
                "About how many metrics are kept; the oldest go." },
        { NULL },
};

/* -- states ---------------------------------------------------------------------------------------------------------- */

static void on_state(void *ctx, enum om_redis_state state, const struct om_error *error) {
        struct om_store *s = ctx;
        bool mend = error && error->kind != OM_OK && error->kind != OM_UNAVAILABLE; /* waiting will not help */

        if (s->closing)
                return;
        s->state = state == OM_REDIS_READY ? OM_STORE_READY : mend ? OM_STORE_FAILED : OM_STORE_CONNECTING;
        s->why = error ? *error : (struct om_error) OM_ERROR_INIT;
        s->events->state(s->core, s->state, s->state == OM_STORE_READY ? NULL : &s->why);
}

static void on_moved(void *ctx) { ((struct om_store *) ctx)->moves++; }

static const struct om_redis_events redis_events = { .state = on_state, .moved = on_moved };

/* -- opening and closing --------------------------------------------------------------------------------------------- */

static void store_free(struct om_store *s) {
        if (!s)
                return;
        om_redis_free(s->redis);
        om_redis_sweep_free(s);
        om_redis_settings_free(&s->settings.redis);
        free((char *) s->settings.prefix);
        om_buf_deinit(&s->scratch);
        free(s);
}

static int read_settings(struct om_store *s, struct om_url *url, struct om_error *e) {
        struct om_redis_store_settings *settings = &s->settings;
        int r = om_options_read(options, url, settings, e);
        const char *prefix = settings->prefix;

        settings->prefix = NULL;
        if (r == 0)
                r = om_redis_prefix_check(prefix, e);
        if (r == 0) {
                settings->prefix = strdup(prefix);
                r = settings->prefix ? om_redis_settings_take(&settings->redis, url, e) : om_error_set_errno(e, ENOMEM, "the storage");
        }
        return r;
}

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        struct om_store *s = calloc(1, sizeof *s);
        int r;

        if (!s)
                return om_error_set_errno(e, ENOMEM, "the storage");
        s->host = host;
        s->events = events;
        s->core = core;
        s->stalled_end = &s->stalled;
        s->state = OM_STORE_CONNECTING;
        r = read_settings(s, url, e);
        if (r == 0 && om_redis_sweep_new(s) < 0)
                r = om_error_set_errno(e, ENOMEM, "the storage");
        s->apart = s->settings.redis.mode == OM_REDIS_CLUSTER && r == 0 && !strchr(s->settings.prefix, '{');
        if (r == 0)
                r = om_redis_new(host, &s->settings.redis, &redis_events, s, &s->redis, e);
        if (r < 0) {
                store_free(s);
                return r;
        }
        *ret = s;
        return 0;
}

static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        op->cancel = NULL;
        s->closing = op;
        s->state = OM_STORE_CONNECTING;
        om_error_set(&s->why, OM_UNAVAILABLE, "the storage is closing");
        om_redis_close_when_idle(s);
        return 0;
}

OM_MODULE const struct om_store_ops om_redis_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "redis",
        .schemes = (const char *const[]){ "redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel",
                "redis+unix", NULL },
        .doc = "Redis keys, shared with the Python OmniDaemon",
        .capabilities = OM_STORE_TTL | OM_STORE_SHARED,
        .options = options,
        .open = store_open,
        .put = om_redis_store_put,
        .get = om_redis_store_get,
        .list = om_redis_store_list,
        .remove = om_redis_store_remove,
        .put_if_absent = om_redis_store_put_if_absent,
        .health = om_redis_store_health,
        .close = store_close,
        .destroy = store_free,
};
