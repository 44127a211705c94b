/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Following a primary through sentinels (Redis documentation, "Sentinel clients"): one of them is asked who is primary, and then tells by
 * subscription when that changes. The primary's own word (ROLE) is asked before it is used.
 *
 * Always true: one sentinel at a time is connected; where it fails or does not know, the next one is asked, with backoff. A primary that
 * does not answer makes us ask anew. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "client.h"

enum { ASK_BASE_MS = 100, ASK_MAX_MS = 2000 };

/* Subscribed, a sentinel takes no questions: a fresh connection does. */
static void on_time(evutil_socket_t fd, short what, void *ctx) {
        struct om_redis *r = ctx;

        if (om_redis_link_ready(r->sentinel))
                om_redis_link_next(r->sentinel);
}

void om_redis_sentinel_ask(struct om_redis *r) {
        struct timeval tv = { 0 };
        int64_t ms;

        if (!r->sentinel || evtimer_pending(r->sentinel_timer, NULL))
                return;
        ms = om_backoff_ms(ASK_BASE_MS, ASK_MAX_MS, r->sentinel_tries < 8 ? r->sentinel_tries : 8);
        r->sentinel_tries++;
        tv.tv_sec = ms / 1000;
        tv.tv_usec = ms % 1000 * 1000;
        event_add(r->sentinel_timer, &tv);
}

void om_redis_sentinel_found(struct om_redis *r) { r->sentinel_tries = 0; }

static void follow(struct om_redis *r, struct om_span host, int64_t port) {
        struct om_redis_node *node = r->nodes[0];
        char *copy;
        bool same;

        if (!host.len || host.len > 255 || port < 1 || port > UINT16_MAX || memchr(host.p, 0, host.len))
                return;
        same = om_span_is(host, node->address.host) && node->address.port == (uint16_t) port;
        if (same) {
                om_redis_node_go(node, false);
                return;
        }
        copy = strndup(host.p, host.len);
        if (!copy)
                return;
        free(node->address.host);
        node->address.host = copy;
        node->address.port = (uint16_t) port;
        om_redis_node_go(node, true);
        if (r->events->moved)
                r->events->moved(r->ctx);
}

/* "message" "+switch-master" "SERVICE OLDHOST OLDPORT NEWHOST NEWPORT" */
static void on_push(void *ctx, const struct om_redis_reply *reply) {
        struct om_redis *r = ctx;
        struct om_span text = om_redis_at(reply, 2)->text, words[5];
        size_t n = 0;

        if (!om_span_is(om_redis_at(reply, 0)->text, "message") || !text.p)
                return;
        for (const char *p = text.p, *end = p + text.len; p < end && n < 5;) {
                const char *space = memchr(p, ' ', (size_t) (end - p)), *stop = space ? space : end;

                words[n++] = (struct om_span){ p, (size_t) (stop - p) };
                p = stop + 1;
        }
        if (n == 5 && om_span_is(words[0], r->settings->service))
                follow(r, words[3], strtol(words[4].p, NULL, 10));
}

static void unknown(struct om_redis *r, const struct om_error *why) {
        struct om_error e;

        if (why)
                e = *why;
        else
                om_error_set(&e, OM_UNAVAILABLE,
                        "redis sentinel %s knows no primary \"%s\": mend the URL's path, redis+sentinel://HOST/SERVICE",
                        om_redis_link_name(r->sentinel), r->settings->service);
        om_redis_sentinel_ask(r);
        om_redis_told(r, false, &e);
}

static void on_address(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis *r = c->owner;

        om_redis_cmd_free(c);
        if (!reply || r->dead)
                return; /* the link has failed, and goes on to the next */
        if (status < 0 || reply->type != OM_REDIS_ARRAY || reply->n < 2)
                unknown(r, status < 0 ? error : NULL);
        else
                follow(r, om_redis_at(reply, 0)->text, om_redis_int(om_redis_at(reply, 1), 0));
}

static void on_subscribed(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_cmd_free(c);
}

static void put(struct om_redis *r, struct om_redis_cmd *c, om_redis_answer_fn *answer) {
        struct om_error e;

        if (!c)
                return;
        c->answer = answer;
        c->owner = r;
        if (om_redis_link_send(r->sentinel, c, &e) < 0)
                om_redis_cmd_free(c);
}

static void on_state(void *ctx, enum om_redis_state state, const struct om_error *error) {
        struct om_redis *r = ctx;
        struct om_redis_cmd *c;

        if (state != OM_REDIS_READY) {
                if (!r->ready)
                        om_redis_told(r, false, error);
                return;
        }
        c = om_redis_cmd_new("SENTINEL");
        om_redis_arg_text(c, "get-master-addr-by-name");
        om_redis_arg_text(c, r->settings->service);
        put(r, c, on_address);
        c = om_redis_cmd_new("SUBSCRIBE"); /* the sentinel takes both in one turn: no change falls between them */
        om_redis_arg_text(c, "+switch-master");
        put(r, c, on_subscribed);
}

int om_redis_sentinel_start(struct om_redis *r, struct om_error *e) {
        const struct om_redis_link_config config = {
                .host = r->host,
                .dns = r->dns,
                .settings = r->settings,
                .tls = r->tls,
                .user = r->settings->sentinel_user,
                .password = r->settings->sentinel_password,
                .state = on_state,
                .push = on_push,
                .ctx = r,
        };
        int status;

        r->sentinel_timer = evtimer_new(r->host->base, on_time, r);
        if (!r->sentinel_timer)
                return om_error_set_errno(e, ENOMEM, "redis: sentinels");
        status = om_redis_link_new(&config, &r->sentinel, e);
        if (status == 0)
                om_redis_link_go(r->sentinel, r->settings->hosts, r->settings->n_hosts, false);
        return status;
}

void om_redis_sentinel_stop(struct om_redis *r) {
        om_redis_link_free(r->sentinel);
        r->sentinel = NULL;
        if (r->sentinel_timer)
                event_free(r->sentinel_timer);
        r->sentinel_timer = NULL;
}
