/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection's side of the dispatcher: its subscriptions, from registering to the end of either.
 *
 * Always true:
 *   - a session has a client from its first registration (or its first wait for a result) until it is closed;
 *   - a subscription is in its client's list, and either in its group's list, or, while the bus makes the group, in the pending one;
 *   - one that ends while it has frames to write in this turn is freed at the end of the turn.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "dispatch_internal.h"

struct om_client *om_client_find(struct om_session *s) {
        return s ? *om_session_dispatch_slot(s) : NULL;
}

struct om_client *om_client_of(struct om_dispatch *d, struct om_session *s) {
        void **slot = om_session_dispatch_slot(s);
        struct om_client *c = *slot;

        if (c)
                return c;
        c = calloc(1, sizeof *c);
        if (!c)
                return NULL;
        c->session = s;
        c->d = d;
        *slot = c;
        DL_APPEND(d->clients, c);
        return c;
}

void om_client_free(struct om_client *c) {
        DL_DELETE(c->d->clients, c);
        *om_session_dispatch_slot(c->session) = NULL;
        free(c->buckets);
        free(c);
}

void om_subscription_turn(struct om_subscription *sub) {
        struct om_dispatch *d = sub->group->d;

        if (sub->in_turn)
                return;
        sub->in_turn = true;
        sub->turn_next = d->turn_subs;
        d->turn_subs = sub;
        om_dispatch_turn(d);
}

/* -- registering --------------------------------------------------------------------------------------------------- */

struct om_subscription *om_subscription_new(
        struct om_client *c, struct om_group *g, const struct om_registration *r, struct om_request *req) {
        struct om_subscription *sub = calloc(1, sizeof *sub);
        struct om_span worker = r->worker.p ? r->worker : om_span_of(om_session_name(c->session));

        if (!sub)
                return NULL;
        sub->client = c;
        sub->group = g;
        sub->registering = req;
        sub->number = ++c->last_subscription;
        sub->prefetch = r->config.prefetch;
        memcpy(sub->worker, worker.p, worker.len <= OM_NAME_MAX ? worker.len : OM_NAME_MAX);
        DL_APPEND2(c->subs, sub, client_prev, client_next);
        c->n_subs++;
        DL_APPEND2(g->pending, sub, group_prev, group_next);
        return sub;
}

static void announce(struct om_subscription *sub) {
        struct om_group *g = sub->group;
        struct om_watch *w = g->d->core->watch;
        struct om_buf detail = OM_BUF_INIT;

        if (!(om_watch_mask(w) & OM_EVENT_REGISTER))
                return;
        om_buf_lit(&detail, ",\"worker\":");
        om_buf_json_span(&detail, om_span_of(sub->worker));
        if (om_buf_ok(&detail))
                om_watch_emit(w, OM_EVENT_REGISTER,
                        &(struct om_watch_event){ .topic = g->topic, .agent = g->agent, .detail = om_buf_span(&detail) });
        om_buf_deinit(&detail);
}

void om_subscription_serve(struct om_subscription *sub, bool created) {
        struct om_group *g = sub->group;
        struct om_request *req = sub->registering;
        struct om_buf name = OM_BUF_INIT, *b;

        DL_DELETE2(g->pending, sub, group_prev, group_next);
        DL_APPEND2(g->subs, sub, group_prev, group_next);
        g->n_subs++;
        g->prefetch += sub->prefetch;
        sub->registering = NULL;
        announce(sub);

        b = om_request_begin(req);
        if (b) {
                om_group_name(&name, g->topic, g->agent);
                om_buf_lit(b, "{\"subscription\":");
                om_buf_i64(b, sub->number);
                om_buf_lit(b, ",\"group\":");
                om_buf_json_span(b, om_buf_span(&name));
                om_buf_puts(b, created ? ",\"created\":true" : ",\"created\":false");
                om_buf_puts(b, g->paused ? ",\"paused\":true}" : ",\"paused\":false}");
                om_buf_deinit(&name);
                om_request_end(req);
        } else {
                om_request_done(req);
        }
        om_subscription_credit(sub);
        om_group_touch(g);
}

/* -- ending -------------------------------------------------------------------------------------------------------- */

static void subscription_free(struct om_subscription *sub) {
        om_buf_deinit(&sub->revoked);
        free(sub);
}

void om_subscription_swept(struct om_subscription *sub) { subscription_free(sub); }

static void unlink_sub(struct om_subscription *sub) {
        struct om_client *c = sub->client;
        struct om_group *g = sub->group;

        DL_DELETE2(c->subs, sub, client_prev, client_next);
        c->n_subs--;
        if (sub->registering) {
                DL_DELETE2(g->pending, sub, group_prev, group_next);
        } else {
                DL_DELETE2(g->subs, sub, group_prev, group_next);
                g->n_subs--;
                g->prefetch -= sub->prefetch;
        }
        om_group_touch(g);
}

void om_subscription_refuse(struct om_subscription *sub, const struct om_error *e) {
        struct om_request *req = sub->registering;

        unlink_sub(sub);
        om_request_error(req, e);
        subscription_free(sub);
}

/* What the client never saw goes back uncounted, whatever the reason. */
static void end_leases(struct om_subscription *sub, enum om_verdict verdict) {
        struct om_lease *next;

        for (struct om_lease *lease = sub->leases; lease; lease = next) {
                next = lease->sub_next;
                if (lease->state == OM_LEASE_FINISHING)
                        om_lease_take(lease); /* is carried out all the same */
                else if (verdict == OM_RELEASE || !lease->delivered_ns)
                        om_lease_release(lease);
                else
                        om_lease_lost(lease, "worker_lost", "the worker's connection closed");
        }
}

void om_subscription_end(struct om_subscription *sub, enum om_verdict verdict) {
        struct om_request *req = sub->registering;

        unlink_sub(sub);
        if (req) {
                om_request_done(req);
                subscription_free(sub);
                return;
        }
        sub->ended = true;
        om_subscription_credit(sub);
        end_leases(sub, verdict);
        if (!sub->in_turn)
                subscription_free(sub);
}

int om_dispatch_unregister(struct om_dispatch *d, struct om_session *s, int64_t subscription) {
        struct om_client *c = om_client_find(s);
        struct om_subscription *sub = NULL;

        if (c)
                DL_SEARCH_SCALAR2(c->subs, sub, number, subscription, client_next);
        if (!sub || sub->registering)
                return -ENOENT;
        om_subscription_end(sub, OM_RELEASE);
        return 0;
}

void om_dispatch_session_closed(struct om_dispatch *d, struct om_session *s) {
        struct om_client *c = om_client_find(s);

        if (!c)
                return;
        om_results_client_closed(d->core->results, c);
        while (c->subs)
                om_subscription_end(c->subs, OM_RETRY);
        om_client_free(c);
}

void om_dispatch_session_mute(struct om_dispatch *d, struct om_session *s) {
        struct om_client *c = om_client_find(s);
        struct om_error e;

        om_error_set(&e, OM_CONFLICT, "the connection ended its input before the agent was registered");
        while (c && c->subs)
                if (c->subs->registering)
                        om_subscription_refuse(c->subs, &e);
                else
                        om_subscription_end(c->subs, OM_RETRY);
}

void om_dispatch_session_ready(struct om_dispatch *d, struct om_session *s) {
        struct om_client *c = om_client_find(s);
        struct om_subscription *sub;

        if (c)
                DL_FOREACH2(c->subs, sub, client_next) {
                        sub->blocked = false;
                        om_subscription_credit(sub);
                }
}
