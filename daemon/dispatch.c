/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dispatcher: its groups from the first registration to the last lease, the end of a turn, and the end of all.
 *
 * Always true:
 *   - a group is in the table from its first registration until it has no subscription, no registration waiting and no lease; then the
 * bus's subscription ends. The group on the bus stays;
 *   - the bus is asked once for a group, however many workers register; who comes while that is under way waits for it;
 *   - groups are looked at, ended and freed at the end of a turn only, so a pointer to one is good for the whole turn;
 *   - once it has stopped no group has a subscription of the bus: that is closed next, and it frees them.
 *
 * The end of a turn, in this order: what is to be settled and published goes to the bus; deliveries that came are handed out and the bus
 * told what is wanted; frames are written; groups that are over go.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <utlist.h>

#include "dispatch_internal.h"

struct om_end { /* one om_dispatch_end() */
        struct om_dispatch *d;
        struct om_post *done; /* NULL: told */
        struct om_deadline deadline;
        unsigned open; /* groups that are not over yet */
};
struct om_end_link {
        struct om_end_link *next;
        struct om_end *end;
};

/* -- groups -------------------------------------------------------------------------------------------------------- */

enum { GROUP_NAME_MAX = OM_TOPIC_MAX + 1 + OM_NAME_MAX };

static size_t group_key(char key[GROUP_NAME_MAX], struct om_span topic, struct om_span agent) {
        if (topic.len > OM_TOPIC_MAX || agent.len > OM_NAME_MAX)
                return 0;
        memcpy(key, topic.p, topic.len);
        key[topic.len] = 0x1f; /* stands in no name */
        memcpy(key + topic.len + 1, agent.p, agent.len);
        return topic.len + 1 + agent.len;
}

static struct om_group *group_find(struct om_dispatch *d, struct om_span topic, struct om_span agent) {
        char key[GROUP_NAME_MAX];
        size_t len = group_key(key, topic, agent);
        struct om_group *g = NULL;

        if (len)
                HASH_FIND(hh, d->groups, key, len, g);
        return g;
}

static struct om_group *group_new(struct om_dispatch *d, const struct om_registration *r) {
        size_t len = r->topic.len + 1 + r->name.len;
        struct om_group *g = calloc(1, sizeof *g + GROUP_NAME_MAX + 1);

        if (!g)
                return NULL;
        g->d = d;
        group_key(g->name, r->topic, r->name);
        g->topic = (struct om_span){ g->name, r->topic.len };
        g->agent = (struct om_span){ g->name + r->topic.len + 1, r->name.len };
        g->config = r->config;
        g->topic_metrics = om_metrics_topic(d->core->metrics, g->topic);
        g->agent_metrics = om_metrics_agent(d->core->metrics, g->topic, g->agent);
        HASH_ADD(hh, d->groups, name, len, g);
        if (!g->hh.tbl) {
                free(g);
                return NULL;
        }
        return g;
}

static void group_free(struct om_group *g) {
        HASH_DEL(g->d->groups, g);
        if (g->reclaim_timer)
                event_free(g->reclaim_timer);
        free(g);
}

void om_group_touch(struct om_group *g) {
        if (g->in_turn)
                return;
        g->in_turn = true;
        g->turn_next = g->d->turn_groups;
        g->d->turn_groups = g;
        om_dispatch_turn(g->d);
}

static void group_credit(struct om_group *g) {
        struct om_subscription *sub;

        DL_FOREACH2(g->subs, sub, group_next) om_subscription_credit(sub);
        om_group_touch(g);
}

static void group_refuse(struct om_group *g, const struct om_error *e) {
        while (g->pending)
                om_subscription_refuse(g->pending, e);
}

static void group_unsubscribe(struct om_group *g) {
        if (g->bus_sub)
                g->d->core->bus_ops->unsubscribe(g->bus_sub);
        g->bus_sub = NULL;
        g->wanted = 0;
        om_leases_unpromise(g);
}

static bool has_stopped(const struct om_dispatch *d) { return d->stopping && !d->stopped; }

static void subscribed(struct om_call *c, int status, const struct om_error *e) {
        struct om_group *g = c->data;
        bool created = c->subscribe.ret_created;
        struct om_error stopping;

        g->subscribing = NULL;
        if (status == 0)
                g->bus_sub = c->subscribe.ret_sub;
        if (status == 0 && has_stopped(g->d)) {
                group_unsubscribe(g);
                status = om_error_set(&stopping, OM_UNAVAILABLE, "the daemon is stopping");
                e = &stopping;
        }
        if (status < 0)
                group_refuse(g, e);
        om_call_free(c);
        g->wanted = 0;
        om_group_touch(g);
        if (g->state != OM_GROUP_SUBSCRIBING)
                return; /* deleted meanwhile */
        g->state = status == 0 ? OM_GROUP_SERVING : OM_GROUP_NEW;
        for (; g->pending; created = false)
                om_subscription_serve(g->pending, created);
}

static void group_subscribe(struct om_group *g) {
        struct om_call *c = om_call_new(g->d->core, NULL, OM_CALL_BUS_SUBSCRIBE, subscribed);
        struct om_error e = OM_ERROR_INIT;

        if (!c) {
                om_error_set_errno(&e, ENOMEM, "agent.register");
                group_refuse(g, &e);
                return;
        }
        g->state = OM_GROUP_SUBSCRIBING;
        g->subscribing = c;
        c->data = g;
        c->subscribe.topic = g->topic;
        c->subscribe.agent = g->agent;
        c->subscribe.start = g->config.start;
        c->subscribe.start_ms = g->config.start_ms;
        c->subscribe.reclaim_idle_ms = g->config.reclaim_idle_ms ? g->config.reclaim_idle_ms : g->d->core->settings->reclaim_idle_ms;
        c->subscribe.core = g;
        om_call_start(c);
}

static void end_tell(struct om_end *end) {
        if (end->done)
                om_host_post(end->d->core->host, end->done);
        end->done = NULL;
}

/* The bus does not take back what was leased: who waits shall hear what it says of the rest. The groups end when it is there again. */
static void end_late(struct om_deadline *dl) { end_tell((void *) ((char *) dl - offsetof(struct om_end, deadline))); }

static void end_over(struct om_end *end) {
        om_deadline_stop(&end->d->call_deadlines, &end->deadline);
        end_tell(end);
        free(end);
}

static void ends_tell(struct om_group *g) {
        struct om_end_link *link;

        while ((link = g->ends)) {
                g->ends = link->next;
                if (--link->end->open == 0)
                        end_over(link->end);
                free(link);
        }
}

/* Nothing holds it any more. */
static bool group_is_over(const struct om_group *g) {
        return !g->subscribing && !g->n_leases && !g->n_subs && (g->state == OM_GROUP_ENDING || !g->pending);
}

static void group_check(struct om_group *g) {
        if (g->in_turn || !group_is_over(g))
                return; /* if it was touched again, the next round looks at it */
        group_unsubscribe(g);
        ends_tell(g);
        if (g->pending)
                group_subscribe(g);
        else
                group_free(g);
}

/* -- registering --------------------------------------------------------------------------------------------------- */

static int register_check(struct om_dispatch *d, const struct om_registration *r, struct om_client *c, struct om_error *e) {
        const struct om_bus_ops *ops = d->core->bus_ops;

        if (d->stopping)
                return om_error_set(e, OM_UNAVAILABLE, "the daemon is stopping");
        if (!c)
                return om_error_set_errno(e, ENOMEM, "agent.register");
        if (c->n_subs >= OM_SUBSCRIPTIONS_MAX)
                return om_error_set(e, OM_LIMIT, "a connection serves at most %d subscriptions", OM_SUBSCRIPTIONS_MAX);
        if (om_topic_is_pattern(r->topic) && !(ops->capabilities & OM_BUS_PATTERNS))
                return om_error_set(
                        e, OM_UNSUPPORTED, "the bus \"%s\" has no patterns: \"%.*s\" must be a topic", ops->name, OM_PRI(r->topic));
        return 0;
}

void om_dispatch_register(struct om_dispatch *d, const struct om_registration *r, struct om_request *req) {
        struct om_client *c = req->session ? om_client_of(d, req->session) : NULL;
        struct om_error e = OM_ERROR_INIT;
        struct om_group *g;
        struct om_subscription *sub;

        if (!req->session) {
                om_request_done(req);
                return;
        }
        if (register_check(d, r, c, &e) < 0) {
                om_request_error(req, &e);
                return;
        }
        g = group_find(d, r->topic, r->name);
        if (!g)
                g = group_new(d, r);
        sub = g ? om_subscription_new(c, g, r, req) : NULL;
        if (!sub) {
                om_error_set_errno(&e, ENOMEM, "agent.register");
                om_request_error(req, &e);
                if (g)
                        om_group_touch(g);
                return;
        }
        g->config = r->config;
        if (g->reclaim_armed) {
                event_del(g->reclaim_timer);
                g->reclaim_armed = false;
        }
        om_group_reclaim_arm(g);
        if (g->paused != r->paused) {
                g->paused = r->paused;
                group_credit(g);
        }
        if (g->state == OM_GROUP_SERVING)
                om_subscription_serve(sub, false);
        else if (g->state == OM_GROUP_NEW)
                group_subscribe(g);
}

/* -- looking and steering ------------------------------------------------------------------------------------------ */

void om_dispatch_pause(struct om_dispatch *d, struct om_span topic, struct om_span agent, bool paused) {
        struct om_group *g = group_find(d, topic, agent);

        if (!g || g->paused == paused)
                return;
        g->paused = paused;
        group_credit(g);
}

void om_dispatch_count(struct om_dispatch *d, struct om_span topic, struct om_span agent, unsigned *ret_workers, unsigned *ret_leased) {
        const struct om_group *g = group_find(d, topic, agent);

        *ret_workers = g ? g->n_subs : 0;
        *ret_leased = g ? g->n_leased : 0;
}

unsigned om_dispatch_groups(struct om_dispatch *d) { return HASH_COUNT(d->groups); }

static void sub_tell_ended(struct om_subscription *sub, const char *reason) {
        struct om_buf *b = om_session_begin(sub->client->session, "agent.ended");

        if (!b)
                return;
        om_buf_lit(b, "{\"subscription\":");
        om_buf_i64(b, sub->number);
        om_buf_lit(b, ",\"reason\":");
        om_buf_json_span(b, om_span_of(reason));
        om_buf_putc(b, '}');
        om_session_end(sub->client->session);
}

static void group_end(struct om_group *g, struct om_end *end, const char *reason) {
        struct om_end_link *link = calloc(1, sizeof *link);
        struct om_error e;

        if (link) {
                *link = (struct om_end_link){ .next = g->ends, .end = end };
                g->ends = link;
                end->open++;
        }
        om_error_set(&e, OM_UNAVAILABLE, "the agent is being deleted: register again");
        if (g->state != OM_GROUP_ENDING)
                group_refuse(g, &e);
        g->state = OM_GROUP_ENDING;
        while (g->subs) {
                struct om_subscription *sub = g->subs;

                sub_tell_ended(sub, reason);
                om_subscription_end(sub, OM_RELEASE);
        }
        om_group_touch(g);
}

void om_dispatch_end(struct om_dispatch *d, struct om_span topic, struct om_span agent, const char *reason, struct om_post *done) {
        struct om_end *end = calloc(1, sizeof *end);
        struct om_group *g, *tmp;

        if (!end) {
                om_host_post(d->core->host, done);
                return;
        }
        *end = (struct om_end){ .d = d, .done = done };
        HASH_ITER (hh, d->groups, g, tmp) {
                if (om_span_eq(g->topic, topic) && (!agent.p || om_span_eq(g->agent, agent)))
                        group_end(g, end, reason);
        }
        if (end->open == 0)
                end_over(end);
        else
                om_deadline_start(&d->call_deadlines, &end->deadline, d->core->settings->call_timeout_ms, end_late);
}

/* -- the end of a turn --------------------------------------------------------------------------------------------- */

static void stop_check(struct om_dispatch *d);

static void turn_end(struct om_turn_end *t) {
        struct om_dispatch *d = (void *) ((char *) t - offsetof(struct om_dispatch, turn_end));
        struct om_subscription *sub;
        struct om_group *over = NULL, *g;

        om_settle_flush(d);
        om_publish_flush(d);

        /* One at a time: a group that is touched while it is looked at is looked at again. */
        while ((g = d->turn_groups)) {
                d->turn_groups = g->turn_next;
                g->in_turn = false;
                om_group_deliver(g);
                if (group_is_over(g) && !g->in_check) {
                        g->in_check = true;
                        g->check_next = over;
                        over = g;
                }
        }
        while ((sub = d->turn_subs)) {
                d->turn_subs = sub->turn_next;
                sub->in_turn = false;
                if (sub->ended)
                        om_subscription_swept(sub);
                else
                        om_subscription_write(sub);
        }
        while ((g = over)) {
                over = g->check_next;
                g->in_check = false;
                group_check(g);
        }
        if (d->stopping)
                stop_check(d);
}

/* -- stopping ------------------------------------------------------------------------------------------------------ */

/* Done when nothing is with the bus and the storage; what is parked then waits for a bus that does not come. */
static void stop_check(struct om_dispatch *d) {
        struct om_group *g, *tmp;

        if (!d->stopped || d->n_publishes)
                return;
        if (d->draining ? d->n_leases != d->parked.n : d->n_leases != 0)
                return;
        event_del(d->grace_timer);
        d->draining = true;
        om_parked_drop(d);
        HASH_ITER (hh, d->groups, g, tmp)
                group_unsubscribe(g);
        om_host_post(d->core->host, d->stopped);
        d->stopped = NULL;
}

static void on_grace(evutil_socket_t fd, short what, void *ctx) {
        struct om_dispatch *d = ctx;
        struct om_group *g, *tmp;

        d->draining = true;
        HASH_ITER (hh, d->groups, g, tmp) {
                while (g->held.first)
                        om_lease_release(g->held.first);
        }
        om_dispatch_turn(d);
}

void om_dispatch_stop(struct om_dispatch *d, int64_t grace_ms, struct om_post *done) {
        struct timeval tv = { .tv_sec = grace_ms / 1000, .tv_usec = grace_ms % 1000 * 1000 };
        struct om_group *g, *tmp;

        d->stopping = true;
        d->stopped = done;
        HASH_ITER (hh, d->groups, g, tmp)
                group_credit(g);
        event_add(d->grace_timer, &tv);
        om_dispatch_turn(d);
}

/* -- making and freeing -------------------------------------------------------------------------------------------- */

void om_dispatch_bus_state(struct om_dispatch *d, enum om_bus_state state) {
        if (state == OM_BUS_READY && d->parked.first)
                om_parked_run(d);
}

int om_dispatch_new(struct om_core *core, struct om_dispatch **ret) {
        struct om_dispatch *d = calloc(1, sizeof *d);
        struct event_base *base = om_loop_base(core->loop);

        if (!d)
                return -ENOMEM;
        d->core = core;
        d->turn_end.fn = turn_end;
        d->grace_timer = evtimer_new(base, on_grace, d);
        if (!d->grace_timer || om_deadlines_init(&d->publish_deadlines, base) < 0 || om_deadlines_init(&d->call_deadlines, base) < 0 ||
                om_leases_init(d) < 0 || om_finish_init(d) < 0) {
                om_dispatch_free(d);
                return -ENOMEM;
        }
        *ret = d;
        return 0;
}

/* Without a word to the bus, which is closed: what was leased comes again. */
static void client_forget(struct om_client *c) {
        om_results_client_closed(c->d->core->results, c);
        while (c->subs) {
                struct om_subscription *sub = c->subs;

                while (sub->leases)
                        om_lease_take(sub->leases);
                om_subscription_end(sub, OM_RELEASE);
        }
        om_client_free(c);
}

void om_dispatch_free(struct om_dispatch *d) {
        struct om_group *g, *tmp;
        struct om_subscription *sub;

        if (!d)
                return;
        while (d->clients)
                client_forget(d->clients);
        while ((sub = d->turn_subs)) {
                d->turn_subs = sub->turn_next;
                om_subscription_swept(sub);
        }
        HASH_ITER (hh, d->groups, g, tmp) {
                ends_tell(g);
                group_free(g);
        }
        om_publish_deinit(d);
        om_settle_deinit(d);
        om_publish_calls_deinit(d);
        om_finish_deinit(d);
        om_leases_deinit(d);
        om_deadlines_deinit(&d->publish_deadlines);
        om_deadlines_deinit(&d->call_deadlines);
        if (d->grace_timer)
                event_free(d->grace_timer);
        om_loop_forget_turn_end(d->core->loop, &d->turn_end);
        free(d);
}
