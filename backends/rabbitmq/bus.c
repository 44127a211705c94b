/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bus on RabbitMQ as the core sees it. How the promises of bus.h are kept, in RabbitMQ's words (bus_state.h has the layout):
 *
 *   B1  publish completes with the publisher confirm: each quorum queue has the message on the disks of a majority. `mandatory` shows what
 *       was routed nowhere.
 *   B2  an ack has completed when the broker has answered a call that follows it on its channel. AMQP has no confirm of acks: one that a
 *       broker loses by dying right then comes as one more delivery.
 *   B3  a topic has a holding queue from its first task on, and the first group works from it. A later group is bound when subscribe()
 *       completes; with `start` it gets a copy of what the topic's log has.
 *   B4  queues drop nothing; one that is full refuses (x-overflow=reject-publish). Where message_ttl_ms is set, that is what was asked for.
 *   B5  consumers' prefetch is what the core wants and what it has.
 *   B6  x-delivery-count of quorum queues, plus a header of ours on what was put back by us.
 *   B7  a letter is confirmed before its message is acknowledged.
 *   B8  queues are in order; what comes back is in the front queue, and is served first. No keys.
 *
 * Connections. Two: a broker with an alarm stops reading from connections that publish, and what is consumed and acknowledged must go on.
 * On `main` are consumers, acks, and what is declared and asked; on `pub` all that is published.
 *
 * librabbitmq encodes and decodes; its sockets are not used. They block, some calls without an end when the peer is silent, and serve
 * heartbeats only within calls. Here bytes come and go by events on the loop (link.c), as on every other connection.
 *
 * Leases. A broker gives a task to another when the connection that it went to ends, so a daemon that dies is succeeded at once, and there
 * is nothing to extend. When the connection breaks and the daemon lives, it takes up what comes again (bus_deliver.c).
 *
 * Loop thread.
 */
#include <event2/dns.h>

#include "bus_state.h"

enum { CLOSE_MS = 2000 };

/* -- the end of a turn ------------------------------------------------------------------------------------------------- */

static void on_turn(struct om_post *post) {
        struct om_bus *b = (void *) ((char *) post - offsetof(struct om_bus, turn_post));

        b->turn_posted = false;
        rmq_sync_acks(b);
        rmq_hand_out_all(b);
}

void rmq_turn(struct om_bus *b) {
        if (b->turn_posted)
                return;
        b->turn_posted = true;
        b->turn_post.fn = on_turn;
        om_host_post(b->host, &b->turn_post);
}

/* -- up and down --------------------------------------------------------------------------------------------------- */

int rmq_bus_refuse(struct om_bus *b, struct om_error *e) {
        if (b->state == OM_BUS_READY)
                return 0;
        if (e)
                *e = b->reason;
        return om_error_set(e, OM_UNAVAILABLE, "%s", b->reason.message);
}

static void is_away(struct om_bus *b, const struct om_error *e) {
        bool same = b->state == OM_BUS_CONNECTING && strcmp(b->reason.message, e->message) == 0;

        b->state = OM_BUS_CONNECTING;
        b->reason = *e;
        if (!same && !b->closing)
                b->events->state(b->core, OM_BUS_CONNECTING, e);
}

/* Blocked is not away: consuming goes on, and a publish is told why not. Silent is. */
void rmq_bus_check(struct om_bus *b) {
        const char *refuses = rmq_confirm_refuses(b);
        bool away = !b->main_up || !b->pub_up || !b->loaded || (refuses && !rmq_link_is_blocked(b->pub));
        struct om_error e = OM_ERROR_INIT;

        if (b->closing)
                return;
        if (!away && b->state != OM_BUS_READY) {
                b->state = OM_BUS_READY;
                rmq_subs_up(b);
                b->events->state(b->core, OM_BUS_READY, NULL);
        } else if (away && refuses && b->main_up && b->pub_up) {
                om_error_set(&e, OM_UNAVAILABLE, "%s (%s)", refuses, rmq_link_where(b->pub));
                is_away(b, &e);
        }
}

void rmq_bus_ready(struct om_bus *b) {
        b->loaded = true;
        rmq_link_works(b->main);
        rmq_link_works(b->pub);
        rmq_bus_check(b);
}

void rmq_bus_fail(struct om_bus *b, const struct om_error *e) { rmq_link_fail(b->main, e); }

static void both_up(struct om_bus *b) {
        if (!b->main_up || !b->pub_up || b->closing)
                return;
        rmq_directory_up(b);
        if (b->loaded)
                rmq_bus_ready(b);
}

static void main_up(void *ctx) {
        struct om_bus *b = ctx;

        b->main_up = true;
        both_up(b);
}

static void pub_up(void *ctx) {
        struct om_bus *b = ctx;

        b->pub_up = true;
        rmq_confirm_up(b);
        both_up(b);
}

static void main_down(void *ctx, const struct om_error *e) {
        struct om_bus *b = ctx;
        bool was_up = b->main_up;

        b->main_up = false;
        rmq_directory_down(b);
        is_away(b, e);
        if (!was_up)
                return;
        rmq_subs_down(b);
        rmq_browse_down(b);
        rmq_needs_down(b);
}

static void pub_down(void *ctx, const struct om_error *e) {
        struct om_bus *b = ctx;

        b->pub_up = false;
        is_away(b, e);
        rmq_confirm_down(b, e);
}

static void main_blocked(void *ctx, bool blocked, const char *reason) {} /* nothing is published on it */

static void pub_blocked(void *ctx, bool blocked, const char *reason) {
        struct om_bus *b = ctx;

        om_host_log(b->host, blocked ? OM_LOG_WARNING : OM_LOG_NOTICE, "RabbitMQ at %s %s: %s", rmq_link_where(b->pub),
                blocked ? "takes no messages" : "takes messages again", blocked ? reason : "the alarm is over");
        rmq_confirm_blocked(b);
        rmq_bus_check(b);
}

static const struct rmq_link_events main_events = { main_up, main_down, main_blocked }, pub_events = { pub_up, pub_down, pub_blocked };

/* -- opening ------------------------------------------------------------------------------------------------------- */

static void bus_free(struct om_bus *b) {
        rmq_link_free(b->main);
        rmq_link_free(b->pub);
        rmq_confirm_free(b);
        rmq_lanes_free(b);
        rmq_directory_free(b);
        rmq_count_free(b);
        rmq_browse_free(b);
        om_tls_free(b->tls);
        if (b->own_dns)
                evdns_base_free(b->own_dns, 0);
        if (b->due_timer)
                event_free(b->due_timer);
        rmq_settings_free(&b->settings);
        free(b);
}

static struct evdns_base *dns_of(struct om_bus *b) {
        if (b->host->dns)
                return b->host->dns;
        b->own_dns = evdns_base_new(b->host->base, EVDNS_BASE_DISABLE_WHEN_INACTIVE);
        if (b->own_dns) /* a machine without it resolves what /etc/hosts and numbers say */
                evdns_base_resolv_conf_parse(b->own_dns, DNS_OPTIONS_ALL, "/etc/resolv.conf");
        return b->own_dns;
}

static int open_links(struct om_bus *b, struct om_error *e) {
        const struct om_tls_settings tls = rmq_tls(&b->settings);
        struct evdns_base *dns = dns_of(b);
        int r = dns ? 0 : om_error_set_errno(e, ENOMEM, "RabbitMQ: names");

        if (r == 0 && b->settings.tls)
                r = om_tls_new(&tls, &b->tls, e);
        if (r == 0)
                r = rmq_link_new(b->host, dns, &b->settings, b->tls, "omnidaemond", &main_events, b, &b->main, e);
        if (r == 0)
                r = rmq_link_new(b->host, dns, &b->settings, b->tls, "omnidaemond, publishing", &pub_events, b, &b->pub, e);
        if (r < 0)
                return r;
        b->control = rmq_channel_new(b->main, true, NULL, NULL);
        b->counter = rmq_channel_new(b->main, true, NULL, NULL);
        if (!b->control || !b->counter || rmq_confirm_open(b) < 0 || rmq_directory_open(b) < 0 || rmq_browse_open(b) < 0 ||
                rmq_count_open(b) < 0)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        return 0;
}

static int bus_open(
        struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        struct om_bus *b = calloc(1, sizeof *b);
        int r;

        if (!b)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        b->host = b->jobs.host = host;
        b->events = events;
        b->core = core;
        b->state = OM_BUS_CONNECTING;
        om_error_set(&b->reason, OM_UNAVAILABLE, "RabbitMQ: connecting");
        b->due_timer = evtimer_new(host->base, rmq_on_due_timer, b);
        r = b->due_timer ? om_options_read(rmq_options, url, &b->settings, e) : om_error_set_errno(e, ENOMEM, "RabbitMQ");
        if (r == 0)
                r = rmq_settings_take(&b->settings, url, e);
        if (r == 0)
                r = open_links(b, e);
        if (r < 0) {
                bus_free(b);
                return r;
        }
        *ret = b;
        return 0;
}

/* -- closing ----------------------------------------------------------------------------------------------------------- */

static void is_closed(struct om_post *post) {
        struct om_bus *b = (void *) ((char *) post - offsetof(struct om_bus, closed_post));

        b->close_op->done(b->close_op, 0, NULL);
}

static void link_closed(void *ctx) {
        struct om_bus *b = ctx;

        if (--b->open_links)
                return;
        b->closed_post.fn = is_closed;
        om_host_post(b->host, &b->closed_post);
}

static void close_links(struct om_bus *b) {
        b->open_links = 2;
        event_del(b->due_timer);
        rmq_link_close(b->main, link_closed);
        rmq_link_close(b->pub, link_closed);
}

static void on_close_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;

        if (!b->open_links)
                close_links(b);
}

/* What was on its way to a group that is not served any more goes back uncounted first, if the broker lets it. */
void rmq_close_on(struct om_bus *b) {
        struct timeval now = { 0, 0 };

        if (b->closing && !b->open_links && !b->returning && !b->consumers)
                event_add(b->due_timer, &now);
}

static int bus_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        struct timeval most = { CLOSE_MS / 1000, CLOSE_MS % 1000 * 1000 };

        op->cancel = NULL;
        b->close_op = op;
        b->closing = true;
        event_free(b->due_timer);
        b->due_timer = evtimer_new(b->host->base, on_close_timer, b);
        if (!b->due_timer) {
                om_error_set_errno(e, ENOMEM, "RabbitMQ");
                b->closing = false;
                return -ENOMEM;
        }
        event_add(b->due_timer, &most);
        if (b->state != OM_BUS_READY)
                event_active(b->due_timer, EV_TIMEOUT, 0);
        else
                rmq_close_on(b);
        return 0;
}

static void bus_destroy(struct om_bus *b) {
        while (b->subs)
                rmq_bus_unsubscribe(b->subs);
        bus_free(b);
}

/* -- the contract -------------------------------------------------------------------------------------------------- */

/* What completes at once within these completes by a post. */
#define ENTRY(name, type)                                                                         \
        static int enter_##name(struct om_bus *b, struct om_bus_##type *op, struct om_error *e) { \
                int r;                                                                            \
                                                                                                  \
                b->jobs.in_call = true;                                                           \
                r = rmq_bus_##name(b, op, e);                                                     \
                b->jobs.in_call = false;                                                          \
                return r;                                                                         \
        }
ENTRY(publish, publish)
ENTRY(subscribe, subscribe)
ENTRY(settle, settle)
ENTRY(query, query)
ENTRY(change, change)

static void enter_unsubscribe(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;

        b->jobs.in_call = true;
        rmq_bus_unsubscribe(s);
        b->jobs.in_call = false;
}

extern OM_MODULE const struct om_bus_ops om_rabbitmq_bus_ops;
static unsigned capabilities_of(const struct om_bus *b) {
        return om_rabbitmq_bus_ops.capabilities | (b->settings.queue_type == RMQ_CLASSIC ? OM_BUS_PRIORITY : 0u);
}

static const char *const schemes[] = { "amqp", "amqps", NULL };
OM_MODULE const struct om_bus_ops om_rabbitmq_bus_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "rabbitmq",
        .schemes = schemes,
        .doc = "RabbitMQ: a topic exchange, a quorum queue a group; patterns, delays, existing exchanges and queues.",
        .capabilities = OM_BUS_TTL | OM_BUS_DELAY | OM_BUS_PATTERNS | OM_BUS_REPLAY,
        .options = rmq_options,
        .lease_ms = 0,
        .open = bus_open,
        .publish = enter_publish,
        .subscribe = enter_subscribe,
        .unsubscribe = enter_unsubscribe,
        .want = rmq_bus_want,
        .settle = enter_settle,
        .extend = NULL,
        .query = enter_query,
        .change = enter_change,
        .close = bus_close,
        .destroy = bus_destroy,
        .capabilities_of = capabilities_of,
};
