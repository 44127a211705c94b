/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The membership in the consumer group: which partitions of the groups' retry topics are this daemon's, and what becomes of them when that
 * changes.
 *
 * Always true:
 *   - b->assigned is what the consumer group has given us. Of a group that we serve those partitions are loading, running or leaving; all
 *     others are idle;
 *   - a partition that goes to another daemon is let go of after what is out was settled, or rebalance_grace_ms;
 *   - one that was taken from us (the library also says so where a commit met a rebalance) is suspended. When it is given to us again and
 *     nobody has committed for it meanwhile, it goes on where it was; else it is let go of;
 *   - a member that was fenced is of no use any more. Where it has once asked to join without an answer, a broker that was frozen may have
 *     let it in when it went on, and take the member as it is now for another daemon's of that name: it is made anew then. So it is once
 *     of a daemon that has just started, for its life before may have asked. Else another daemon does have that name, which somebody must
 *     mend: the bus fails.
 *
 * Loop thread, but for run() of calls.
 */
#include <unistd.h>

#include "bus_state.h"

enum { GATHER_MS = 10, GATHER_MAX_MS = 1000, BUSY_MS = 5, JUST_STARTED_MS = 30000, POLL_S = 3600 };

static const struct timeval poll_interval = { POLL_S, 0 };
static struct timeval in_ms(int64_t ms) { return (struct timeval){ ms / 1000, ms % 1000 * 1000 }; }

/* -- what is ours ---------------------------------------------------------------------------------------------------------- */

/* What is ours of a group may be a partition that was added after we began to serve it. */
static void grow(struct om_bus *b, const rd_kafka_topic_partition_list_t *list) {
        for (int i = 0; i < list->cnt; i++) {
                struct group *g = NULL;

                HASH_FIND_STR(b->groups, list->elems[i].topic, g);
                if (g && list->elems[i].partition >= g->n_parts && kafka_group_add_parts(g, list->elems[i].partition + 1) < 0)
                        om_host_log(b->host, OM_LOG_ERROR, "Kafka: no memory for a partition more of %s: it waits until a daemon starts",
                                g->kname);
        }
}

/* Of these, what is of groups that we serve is loaded. */
static void take(struct om_bus *b, const rd_kafka_topic_partition_list_t *list, const struct group *only) {
        struct part **parts = calloc((size_t) list->cnt + 1, sizeof(struct part *));
        size_t n = 0;

        for (int i = 0; parts && i < list->cnt; i++) {
                struct group *g = NULL;

                HASH_FIND_STR(b->groups, list->elems[i].topic, g);
                if (g && (!only || only == g) && list->elems[i].partition < g->n_parts) {
                        struct part *p = g->parts[list->elems[i].partition];

                        if (p->state == PART_IDLE || (p->state == PART_SUSPENDED && !p->resuming))
                                parts[n++] = p;
                }
        }
        if (n)
                kafka_parts_load(b, parts, n);
        free(parts);
}

void kafka_member_take(struct om_bus *b, const struct group *g) {
        if (!event_pending(b->poll_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->poll_timer, &poll_interval);
        grow(b, b->assigned);
        take(b, b->assigned, g);
}

/* -- the membership ---------------------------------------------------------------------------------------------------------- */

static void answer(rd_kafka_t *rk, bool assign) {
        rd_kafka_topic_partition_list_t *none = rd_kafka_topic_partition_list_new(0);
        rd_kafka_error_t *error = assign ? rd_kafka_incremental_assign(rk, none) : rd_kafka_incremental_unassign(rk, none);

        if (error)
                rd_kafka_error_destroy(error);
        rd_kafka_topic_partition_list_destroy(none);
}

static struct part *assigned_part(struct om_bus *b, const rd_kafka_topic_partition_t *tp) {
        struct group *g = NULL;

        HASH_FIND_STR(b->groups, tp->topic, g);
        return g && tp->partition < g->n_parts ? g->parts[tp->partition] : NULL;
}

/* Leaving groups of which nothing is ours any more end. */
static void reap(struct om_bus *b) {
        struct group *g, *next;

        HASH_ITER (hh, b->groups, g, next) {
                bool idle = g->leaving && !g->sub;

                for (int i = 0; i < g->n_parts && idle; i++)
                        idle = g->parts[i]->state == PART_IDLE;
                if (idle)
                        kafka_group_free(g);
        }
}

/* The others have these now. */
static void drop_suspended(struct om_bus *b) {
        for (struct group *g = b->groups; g; g = g->hh.next)
                for (int i = 0; i < g->n_parts; i++)
                        if (g->parts[i]->state == PART_SUSPENDED && !rd_kafka_topic_partition_list_find(b->assigned, g->kname, i))
                                kafka_part_lose(g->parts[i]);
}

static void revoked(struct om_bus *b, bool lost) {
        for (int i = 0; i < b->revoking->cnt; i++) {
                const rd_kafka_topic_partition_t *tp = &b->revoking->elems[i];
                struct part *p = assigned_part(b, tp);

                if (p && lost)
                        kafka_part_suspend(p);
                else if (p)
                        kafka_part_lose(p);
                rd_kafka_topic_partition_list_del(b->assigned, tp->topic, tp->partition);
        }
        rd_kafka_topic_partition_list_destroy(b->revoking);
        b->revoking = NULL;
        event_del(b->revoke_timer);
        answer(b->member, false);
        reap(b);
}

void kafka_revoke_check(struct om_bus *b) {
        bool late = b->revoking && om_clock_ms() >= b->revoke_by_ms;
        bool ready = true;

        for (int i = 0; b->revoking && i < b->revoking->cnt; i++) {
                struct part *p = assigned_part(b, &b->revoking->elems[i]);

                if (!p || (p->state != PART_RUNNING && p->state != PART_LEAVING))
                        continue;
                if (p->n_leased && !late)
                        ready = false;
                else if (!p->clean) {
                        p->clean = p->dirty = true;
                        ready = false;
                        kafka_commit_soon(b);
                } else if (p->dirty || p->in_commit)
                        ready = false;
        }
        if (b->revoking && (ready || om_clock_ms() >= b->revoke_by_ms + 2000))
                revoked(b, false);
}

static void on_revoke_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct timeval tv = in_ms(2000);

        kafka_revoke_check(b);
        if (b->revoking)
                evtimer_add(b->revoke_timer, &tv);
}

void kafka_rebalanced(rd_kafka_t *rk, rd_kafka_resp_err_t err, rd_kafka_topic_partition_list_t *list, void *opaque) {
        struct om_bus *b = opaque;
        struct timeval tv = in_ms(b->settings.rebalance_grace_ms);

        atomic_store(&b->joining, false);
        if (!b->member_closed)
                kafka_commit_soon(b);
        om_host_log(b->host, OM_LOG_DEBUG, "Kafka: rebalance: %s %d partitions%s", rd_kafka_err2name(err), list->cnt,
                rd_kafka_assignment_lost(rk) ? ", lost" : "");
        if (err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
                answer(rk, true);
                if (b->member_closed)
                        return;
                for (int i = 0; i < list->cnt; i++)
                        if (!rd_kafka_topic_partition_list_find(b->assigned, list->elems[i].topic, list->elems[i].partition))
                                rd_kafka_topic_partition_list_add(b->assigned, list->elems[i].topic, list->elems[i].partition);
                grow(b, list);
                take(b, list, NULL);
                drop_suspended(b);
                return;
        }
        if (b->member_closed) {
                answer(rk, false);
                return;
        }
        if (b->revoking)
                rd_kafka_topic_partition_list_destroy(b->revoking);
        b->revoking = rd_kafka_topic_partition_list_copy(list);
        if (err != RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS || rd_kafka_assignment_lost(rk)) {
                revoked(b, true);
                return;
        }
        for (int i = 0; i < list->cnt; i++) {
                struct part *p = assigned_part(b, &list->elems[i]);

                if (p && p->state == PART_RUNNING)
                        p->state = PART_LEAVING;
        }
        b->revoke_by_ms = om_clock_ms() + b->settings.rebalance_grace_ms;
        evtimer_add(b->revoke_timer, &tv);
        kafka_revoke_check(b);
}

static void renew_run(struct call *c) {
        struct om_bus *b = c->bus;

        if (b->member) {
                rd_kafka_queue_destroy(b->member_queue);
                rd_kafka_destroy_flags(b->member, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
                b->member = NULL;
        }
        atomic_store(&b->join_unanswered, false); /* what it was still to be told is no answer either */
        c->status = kafka_member(b, &c->error);
        if (c->status < 0)
                usleep(100000);
}

static void renew_done(struct call *c) {
        struct om_bus *b = c->bus;

        if (c->status < 0 && kafka_call(b, WORKER_MEMBER, c, &c->error) == 0)
                return;
        b->renewing = false;
        if (!b->closing)
                kafka_subscription_soon(b);
}

static void renew(struct om_bus *b) {
        struct om_error e;

        b->renewing = b->renewed = true;
        b->renewal.run = renew_run;
        b->renewal.done = renew_done;
        atomic_store(&b->joining, false);
        event_del(b->revoke_timer);
        if (b->revoking)
                rd_kafka_topic_partition_list_destroy(b->revoking);
        b->revoking = NULL;
        rd_kafka_topic_partition_list_destroy(b->assigned);
        b->assigned = rd_kafka_topic_partition_list_new(16);
        b->committing = false; /* its answer goes with the handle */
        for (struct group *g = b->groups; g; g = g->hh.next)
                for (int i = 0; i < g->n_parts; i++) {
                        struct part *p = g->parts[i];

                        if (p->in_commit && !p->in_txn)
                                kafka_commit_done(b, p, false);
                        if (g->leaving)
                                kafka_part_lose(p);
                        else
                                kafka_part_suspend(p);
                }
        reap(b);
        if (kafka_call(b, WORKER_MEMBER, &b->renewal, &e) < 0)
                kafka_give_up(b, b->member);
}

static void is_fatal(struct om_bus *b) {
        char why[400];
        bool life_before = !b->renewed && om_clock_ms() - b->opened_ms < JUST_STARTED_MS;

        if (rd_kafka_fatal_error(b->member, why, sizeof why) != RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID ||
                (!atomic_load(&b->join_unanswered) && !life_before)) {
                kafka_give_up(b, b->member);
                return;
        }
        om_host_log(b->host, OM_LOG_NOTICE,
                "Kafka: the consumer group took this daemon for two, as it may when brokers leave a request to join unanswered: it joins "
                "again");
        renew(b);
}

void kafka_member_poll(struct om_bus *b) {
        rd_kafka_message_t *m;

        while (!b->member_closed && !b->renewing && b->member && (m = rd_kafka_consumer_poll(b->member, 0))) {
                if (m->err == RD_KAFKA_RESP_ERR__FATAL) {
                        rd_kafka_message_destroy(m);
                        if (b->state != OM_BUS_FAILED)
                                is_fatal(b);
                        return;
                }
                if (m->err && m->err != RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) {
                        struct om_error e = OM_ERROR_INIT;

                        kafka_error(m->err, rd_kafka_message_errstr(m), "the consumer group", &e);
                        om_host_log(b->host, OM_LOG_WARNING, "%s", e.message);
                }
                rd_kafka_message_destroy(m);
        }
}

/* The library takes a consumer that is not polled for dead, and we only poll when it says something. */
static void on_poll_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;

        kafka_member_poll(b);
        evtimer_add(b->poll_timer, &poll_interval);
}

/*
 * A new subscription is a new generation of the consumer group, and the library's work for one grows with the square of its topics; while
 * it works the next subscription waits for it. So groups are gathered, the longer the more the library has to do.
 */
static void subscribe_run(struct call *c) {
        struct om_bus *b = c->bus;
        int64_t begun = om_clock_ms();

        if (b->subscribing_to->cnt)
                rd_kafka_subscribe(b->member, b->subscribing_to);
        else
                rd_kafka_unsubscribe(b->member);
        b->subscribe_ms = om_clock_ms() - begun;
}

static void subscribe_done(struct call *c) {
        struct om_bus *b = c->bus;

        rd_kafka_topic_partition_list_destroy(b->subscribing_to);
        b->subscribing_to = NULL;
        if (b->closing)
                return;
        if (b->subscribe_ms > BUSY_MS)
                b->gather_ms = b->gather_ms * 2 < GATHER_MAX_MS ? b->gather_ms * 2 : GATHER_MAX_MS;
        else
                b->gather_ms = b->gather_ms / 2 > GATHER_MS ? b->gather_ms / 2 : GATHER_MS;
        reap(b);
        if (b->subscribe_again)
                kafka_subscription_soon(b);
        b->subscribe_again = false;
}

static void on_subscribe_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct om_error e;

        if (b->closing || b->renewing || !b->member)
                return;
        if (b->subscribing_to) {
                b->subscribe_again = true;
                return;
        }
        b->subscribing_to = rd_kafka_topic_partition_list_new((int) HASH_COUNT(b->groups) + 1);
        for (struct group *g = b->groups; g; g = g->hh.next)
                if (!g->leaving)
                        rd_kafka_topic_partition_list_add(b->subscribing_to, g->kname, RD_KAFKA_PARTITION_UA);
        b->subscribe.run = subscribe_run;
        b->subscribe.done = subscribe_done;
        if (kafka_call(b, WORKER_MEMBER, &b->subscribe, &e) == 0)
                return;
        om_host_log(b->host, OM_LOG_ERROR, "%s", e.message);
        rd_kafka_topic_partition_list_destroy(b->subscribing_to);
        b->subscribing_to = NULL;
        b->gather_ms = GATHER_MAX_MS;
        kafka_subscription_soon(b);
}

void kafka_subscription_soon(struct om_bus *b) {
        struct timeval tv = in_ms(b->gather_ms);

        if (!event_pending(b->subscribe_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->subscribe_timer, &tv);
}

/* -- timers ---------------------------------------------------------------------------------------------------------------------- */

int kafka_member_timers(struct om_bus *b, struct om_error *e) {
        b->gather_ms = GATHER_MS;
        b->assigned = rd_kafka_topic_partition_list_new(16);
        b->poll_timer = evtimer_new(b->host->base, on_poll_timer, b);
        b->subscribe_timer = evtimer_new(b->host->base, on_subscribe_timer, b);
        b->revoke_timer = evtimer_new(b->host->base, on_revoke_timer, b);
        b->commit_timer = evtimer_new(b->host->base, kafka_on_commit_timer, b);
        b->sweep_timer = evtimer_new(b->host->base, kafka_on_sweep_timer, b);
        b->wake_timer = evtimer_new(b->host->base, kafka_on_wake_timer, b);
        if (!b->wake_timer || !b->sweep_timer || !b->poll_timer || !b->subscribe_timer || !b->revoke_timer || !b->commit_timer)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        return 0;
}
