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
 *     let it in when it went on, and take the member as it is now for another daemon's of that name: it is made anew then. Else another
 *     daemon does have that name, which somebody must mend: the bus fails.
 *
 * Loop thread, but for run() of calls.
 */
#include <unistd.h>

#include "admin.h"

enum { GATHER_MS = 10, GATHER_MAX_MS = 1000, BUSY_MS = 5, CHECK_MS = 1000, POLL_S = 3600 };

static const struct timeval poll_interval = { POLL_S, 0 };
static struct timeval in_ms(int64_t ms) { return (struct timeval){ ms / 1000, ms % 1000 * 1000 }; }

/* -- what is ours ---------------------------------------------------------------------------------------------------------- */

struct load_item {
        uint32_t slot, term;
        bool has_start, found;
        int64_t start;
        char kname[KAFKA_NAME_MAX + 1], log[KAFKA_NAME_MAX + 1];
        int32_t p;
        bool anew; /* the log is not the one of which something is committed */
        struct kafka_state state;
};
struct load {
        struct call call; /* first */
        size_t n;
        bool recover; /* a transaction of our life before may be open */
        struct load_item items[];
};

/* Where the group starts, as who made it wrote. Waits for it: it may be writing. */
static int read_start(struct om_bus *b, struct load_item *item, struct om_error *e) {
        static const char *const properties[][2] = { { "enable.auto.commit", "false" }, { "auto.offset.reset", "earliest" },
                { "fetch.wait.max.ms", "100" }, { NULL, NULL } };
        rd_kafka_t *rk = kafka_handle(b, HANDLE_CALL, properties, e);
        rd_kafka_topic_t *t = rk ? rd_kafka_topic_new(rk, item->kname, NULL) : NULL;
        rd_kafka_message_t *m = NULL;
        int64_t by = om_clock_ms() + PROPAGATION_MS;

        if (t && rd_kafka_consume_start(t, item->p, RD_KAFKA_OFFSET_BEGINNING) == 0) {
                do {
                        if (m)
                                rd_kafka_message_destroy(m);
                        m = rd_kafka_consume(t, item->p, 500);
                } while (om_clock_ms() < by && (!m || m->err));
                rd_kafka_consume_stop(t, item->p);
        }
        if (m && !m->err && m->key_len == sizeof KAFKA_START_KEY - 1 && memcmp(m->key, KAFKA_START_KEY, m->key_len) == 0 && m->len < 20) {
                char text[24];

                snprintf(text, sizeof text, "%.*s", (int) m->len, (const char *) m->payload);
                item->start = atoll(text);
        } else
                item->start = 0; /* what the topic still holds was not finished by this group */
        item->has_start = true;
        if (m)
                rd_kafka_message_destroy(m);
        if (t)
                rd_kafka_topic_destroy(t);
        if (rk)
                rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        return rk ? 0 : -EINVAL;
}

/*
 * A log that ends before what the group has finished is another one of that name, made since, or one that has lost its end: its offsets say
 * nothing of what was finished, and the group begins with all that it holds. (One that has grown beyond that place since is not told from
 * the old one: Kafka's offsets have no more to go by.) Of a log that was cut in front the group begins with what is left.
 */
static void check_logs(struct om_bus *b, struct load *l) {
        rd_kafka_topic_partition_list_t *ends = rd_kafka_topic_partition_list_new((int) l->n), *begins;
        struct om_error ignored; /* then they are taken for what they were */
        int end = 0, begin = 0;
        bool known;

        for (size_t i = 0; i < l->n; i++)
                if (!rd_kafka_topic_partition_list_find(ends, l->items[i].log, l->items[i].p))
                        rd_kafka_topic_partition_list_add(ends, l->items[i].log, l->items[i].p);
        begins = rd_kafka_topic_partition_list_copy(ends);
        known = kafka_watermarks(b, ends, begins, CHECK_MS, &ignored) == 0;
        for (size_t i = 0; i < l->n && known; i++) {
                struct load_item *item = &l->items[i];
                struct kafka_position *log = &item->state.at[KAFKA_AT_LOG];
                const rd_kafka_topic_partition_t *to = kafka_in_list(ends, item->log, item->p, &end);
                const rd_kafka_topic_partition_t *from = kafka_in_list(begins, item->log, item->p, &begin);

                if (!to || !from || to->err || from->err || to->offset < 0 || from->offset < 0)
                        continue;
                item->anew = to->offset < (item->found ? log->track.low : item->start);
                if (!item->found && (item->anew || item->start < from->offset))
                        item->start = from->offset;
                else if (!item->found)
                        continue;
                else if (item->anew) {
                        kafka_track_deinit(&log->track);
                        free(log->marks);
                        *log = (struct kafka_position){ .track.low = from->offset, .next = from->offset };
                } else if (from->offset > log->track.low) {
                        kafka_track_done(&log->track, log->track.low, from->offset);
                        if (log->next < from->offset)
                                log->next = from->offset;
                }
        }
        rd_kafka_topic_partition_list_destroy(ends);
        rd_kafka_topic_partition_list_destroy(begins);
}

static void load_run(struct call *c) {
        struct load *l = (struct load *) c;
        struct om_bus *b = c->bus;
        rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int) l->n);
        rd_kafka_resp_err_t err;

        for (size_t i = 0; i < l->n; i++)
                rd_kafka_topic_partition_list_add(list, l->items[i].kname, l->items[i].p);
        if (l->recover)
                kafka_txn_recover(b);
        l->recover = false;
        err = rd_kafka_committed(b->member, list, ADMIN_MS);
        if (err) {
                c->status = kafka_error(err, NULL, "reading what is committed", &c->error);
                usleep(100000);
        }
        for (int i = 0; !c->status && i < list->cnt; i++) {
                struct load_item *item = &l->items[i];
                const rd_kafka_topic_partition_t *tp = rd_kafka_topic_partition_list_find(list, item->kname, item->p);

                if (!tp || tp->err)
                        c->status = kafka_error(tp ? tp->err : RD_KAFKA_RESP_ERR__FAIL, NULL, "reading what is committed", &c->error);
                else if (tp->offset >= 0 && kafka_state_unpack((struct om_span){ tp->metadata, tp->metadata_size }, &item->state) == 0)
                        item->found = true;
                else if (!item->has_start)
                        c->status = read_start(b, item, &c->error);
        }
        rd_kafka_topic_partition_list_destroy(list);
        if (!c->status)
                check_logs(b, l);
}

static struct part *part_of(struct om_bus *b, const struct load_item *item) {
        struct part *p = NULL;

        HASH_FIND(hh, b->parts_by_slot, &item->slot, sizeof item->slot, p);
        return p && p->term == item->term && (p->state == PART_LOADING || p->resuming) ? p : NULL;
}

static void load_done(struct call *c) {
        struct load *l = (struct load *) c;
        struct om_bus *b = c->bus;
        size_t left = 0;

        for (size_t i = 0; i < l->n; i++) {
                struct load_item *item = &l->items[i];
                struct part *p = b->closing ? NULL : part_of(b, item);

                if (p && c->status == 0 && p->resuming) {
                        if (item->found && item->state.owner == b->owner && !item->state.clean) {
                                kafka_part_resume(p);
                                kafka_state_deinit(&item->state);
                                continue;
                        }
                        kafka_part_lose(p);
                }
                if (p && c->status == 0) {
                        if (!item->found) {
                                item->state.clean = true;
                                item->state.at[KAFKA_AT_LOG].track.low = item->state.at[KAFKA_AT_LOG].next = item->start;
                        }
                        if (item->anew)
                                om_host_log(b->host, OM_LOG_WARNING,
                                        "Kafka: the topic %s [%d] was deleted and made anew, or has lost its end: agent %s begins with all "
                                        "that it "
                                        "holds",
                                        p->group->log, (int) p->p, p->group->agent);
                        if (kafka_part_start(p, &item->state, &c->error) < 0)
                                om_host_log(b->host, OM_LOG_ERROR, "%s", c->error.message);
                        continue;
                }
                kafka_state_deinit(&item->state);
                if (p && left++ != i) /* asked for again */
                        l->items[left - 1] = *item;
        }
        if (left) {
                for (size_t i = 0; i < left; i++) {
                        l->items[i].state = (struct kafka_state){ .owner = 0 };
                        l->items[i].found = l->items[i].anew = false;
                }
                l->n = left;
                if (kafka_call(b, WORKER_MEMBER, c, &c->error) == 0)
                        return;
        }
        free(l);
        kafka_pump_soon(b);
}

static void load(struct om_bus *b, struct part **parts, size_t n) {
        struct load *l = calloc(1, sizeof *l + n * sizeof l->items[0]);
        struct om_error e;

        if (!l)
                return;
        l->n = n;
        l->recover = b->recover && !b->txn;
        b->recover = false;
        l->call.run = load_run;
        l->call.done = load_done;
        for (size_t i = 0; i < n; i++) {
                struct group *g = parts[i]->group;

                if (parts[i]->state == PART_SUSPENDED)
                        parts[i]->resuming = true;
                else
                        parts[i]->state = PART_LOADING;
                l->items[i] = (struct load_item){ .slot = parts[i]->slot, .term = ++parts[i]->term, .p = parts[i]->p };
                memcpy(l->items[i].kname, g->kname, sizeof g->kname);
                memcpy(l->items[i].log, g->log, sizeof g->log);
                if (parts[i]->p < g->n_starts) {
                        l->items[i].has_start = true;
                        l->items[i].start = g->starts[parts[i]->p];
                }
        }
        if (kafka_call(b, WORKER_MEMBER, &l->call, &e) < 0)
                free(l);
}

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
                load(b, parts, n);
        free(parts);
}

void kafka_member_find_again(struct om_bus *b) {
        struct part **parts = calloc(HASH_COUNT(b->parts_by_slot) + 1, sizeof(struct part *));
        size_t n = 0;

        b->any_astray = !parts;
        for (struct part *p = b->parts_by_slot; parts && p; p = p->hh.next)
                if (p->astray && (p->state == PART_RUNNING || p->state == PART_LEAVING)) {
                        if (p->state == PART_RUNNING)
                                parts[n++] = p;
                        kafka_part_lose(p);
                }
        if (n)
                load(b, parts, n);
        free(parts);
}

void kafka_member_log_anew(struct om_bus *b, const char *log) {
        for (struct part *p = b->parts_by_slot; p; p = p->hh.next)
                if (strcmp(p->group->log, log) == 0)
                        p->astray = b->any_astray = true;
        kafka_pump_soon(b);
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

        b->renewing = true;
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

        if (rd_kafka_fatal_error(b->member, why, sizeof why) != RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID || !atomic_load(&b->join_unanswered)) {
                kafka_give_up(b, b->member);
                return;
        }
        om_host_log(b->host, OM_LOG_NOTICE,
                "Kafka: the consumer group took this daemon for two, after a request to join that the brokers left unanswered: it joins "
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
