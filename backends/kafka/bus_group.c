/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups that this daemon serves, and which of their partitions are its own.
 *
 * Always true:
 *   - a group is on the brokers when its retry topic is. Who makes it writes into each partition where the group starts in the topic's,
 * before subscribe() completes; who owns a partition for which nothing was committed yet starts there;
 *   - b->assigned is what the consumer group has given us. Of a group that we serve those partitions are loading, running or leaving; all
 *     others are idle;
 *   - a partition that goes to another daemon is let go of after what is out was settled, or rebalance_grace_ms;
 *   - one that was taken from us (the library also says so where a commit met a rebalance) is suspended. When it is given to us again and
 *     nobody has committed for it meanwhile, it goes on where it was; else it is let go of.
 *
 * Loop thread, but for run() of calls.
 */
#include <unistd.h>

#include "bus_state.h"

enum { SUBSCRIBE_MS = 10, LINGER_MS = 300, RECLAIM_DEFAULT_MS = 180000, PROPAGATION_MS = 5000, POLL_S = 3600 };

static const struct timeval poll_interval = { POLL_S, 0 };
static struct timeval in_ms(int64_t ms) { return (struct timeval){ ms / 1000, ms % 1000 * 1000 }; }

/* -- objects ------------------------------------------------------------------------------------------------------------- */

struct group *kafka_group_find(struct om_bus *b, struct om_span topic, struct om_span agent) {
        char kname[KAFKA_NAME_MAX + 1];
        struct group *g = NULL;

        if (kafka_name(kname, b->settings.prefix, KAFKA_RETRY, topic, agent))
                HASH_FIND_STR(b->groups, kname, g);
        return g;
}

static unsigned free_lane(struct om_bus *b, const char *log) {
        for (unsigned lane = 0;; lane++) {
                struct group *g = b->groups;

                while (g && (g->lane != lane || strcmp(g->log, log) != 0))
                        g = g->hh.next;
                if (!g)
                        return lane;
        }
}

static void on_linger(evutil_socket_t fd, short what, void *ctx) {
        struct group *g = ctx;

        if (!g->sub)
                kafka_group_leave_now(g);
}

static void drop_parts(struct group *g) {
        for (int i = 0; i < g->n_parts; i++) {
                HASH_DEL(g->bus->parts_by_slot, g->parts[i]);
                free(g->parts[i]);
        }
        free(g->parts);
        g->parts = NULL;
        g->n_parts = 0;
}

/* Until it has so many. -ENOMEM: it has some of them. */
static int add_parts(struct group *g, int n) {
        struct om_bus *b = g->bus;
        struct part **parts = g->n_parts < n ? reallocarray(g->parts, (size_t) n, sizeof(struct part *)) : g->parts;

        if (!parts)
                return -ENOMEM;
        g->parts = parts;
        while (g->n_parts < n) {
                struct part *p = calloc(1, sizeof *p);

                if (!p)
                        return -ENOMEM;
                p->group = g;
                p->p = g->n_parts;
                p->slot = b->next_slot++;
                HASH_ADD(hh, b->parts_by_slot, slot, sizeof p->slot, p);
                if (!p->hh.tbl) {
                        free(p);
                        return -ENOMEM;
                }
                g->parts[g->n_parts++] = p;
        }
        return 0;
}

static struct group *group_new(struct om_bus *b, struct om_span topic, struct om_span agent, int n_parts) {
        struct group *g = calloc(1, sizeof *g);

        if (!g)
                return NULL;
        g->bus = b;
        snprintf(g->topic, sizeof g->topic, "%.*s", OM_PRI(topic));
        snprintf(g->agent, sizeof g->agent, "%.*s", OM_PRI(agent));
        g->linger = evtimer_new(b->host->base, on_linger, g);
        if (!g->linger || !kafka_name(g->kname, b->settings.prefix, KAFKA_RETRY, topic, agent) ||
                !kafka_name(g->log, b->settings.prefix, KAFKA_LOG, topic, OM_SPAN_NONE) || add_parts(g, n_parts) < 0) {
                drop_parts(g);
                if (g->linger)
                        event_free(g->linger);
                free(g);
                return NULL;
        }
        g->lane = free_lane(b, g->log);
        HASH_ADD_STR(b->groups, kname, g);
        if (!g->hh.tbl) {
                drop_parts(g);
                event_free(g->linger);
                free(g);
                return NULL;
        }
        return g;
}

void kafka_group_free(struct group *g) {
        struct om_bus *b = g->bus;

        for (int i = 0; i < g->n_parts; i++)
                kafka_part_lose(g->parts[i]);
        drop_parts(g);
        HASH_DEL(b->groups, g);
        event_free(g->linger);
        free(g->starts);
        free(g);
}

/* -- what is ours ---------------------------------------------------------------------------------------------------------- */

struct load_item {
        uint32_t slot, term;
        bool has_start, found;
        int64_t start;
        char kname[KAFKA_NAME_MAX + 1];
        int32_t p;
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
        rd_kafka_t *rk = kafka_handle(b, RD_KAFKA_CONSUMER, properties, e);
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
                        if (kafka_part_start(p, &item->state, &c->error) < 0)
                                om_host_log(b->host, OM_LOG_ERROR, "%s", c->error.message);
                        continue;
                }
                kafka_state_deinit(&item->state);
                if (p && left++ != i) /* asked for again */
                        l->items[left - 1] = *item;
        }
        if (left) {
                for (size_t i = 0; i < left; i++)
                        l->items[i].state = (struct kafka_state){ .owner = 0 };
                l->n = left;
                if (kafka_call(b, WORKER_CALLS, c, &c->error) == 0)
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
                if (parts[i]->p < g->n_starts) {
                        l->items[i].has_start = true;
                        l->items[i].start = g->starts[parts[i]->p];
                }
        }
        if (kafka_call(b, WORKER_CALLS, &l->call, &e) < 0)
                free(l);
}

/* What is ours of a group may be a partition that was added after we began to serve it. */
static void grow(struct om_bus *b, const rd_kafka_topic_partition_list_t *list) {
        for (int i = 0; i < list->cnt; i++) {
                struct group *g = NULL;

                HASH_FIND_STR(b->groups, list->elems[i].topic, g);
                if (g && list->elems[i].partition >= g->n_parts && add_parts(g, list->elems[i].partition + 1) < 0)
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

void kafka_member_poll(struct om_bus *b) {
        rd_kafka_message_t *m;

        while (!b->member_closed && b->member && (m = rd_kafka_consumer_poll(b->member, 0))) {
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

static void on_subscribe_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        rd_kafka_topic_partition_list_t *list;

        if (b->closing || !b->member)
                return;
        list = rd_kafka_topic_partition_list_new((int) HASH_COUNT(b->groups) + 1);
        for (struct group *g = b->groups; g; g = g->hh.next)
                if (!g->leaving)
                        rd_kafka_topic_partition_list_add(list, g->kname, RD_KAFKA_PARTITION_UA);
        if (list->cnt)
                rd_kafka_subscribe(b->member, list);
        else
                rd_kafka_unsubscribe(b->member);
        rd_kafka_topic_partition_list_destroy(list);
        reap(b);
}

void kafka_subscription_soon(struct om_bus *b) {
        struct timeval tv = in_ms(SUBSCRIBE_MS);

        if (!event_pending(b->subscribe_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->subscribe_timer, &tv);
}

/* -- serving ------------------------------------------------------------------------------------------------------------------ */

struct subscribing {
        struct job job; /* first */
        struct topic_wait wait;
        struct call call;
        struct om_bus_subscribe *op;
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1], kname[KAFKA_NAME_MAX + 1];
        struct topic *log, *retry;
        void *core;
        enum om_start start;
        int64_t start_ms, reclaim_idle_ms;
        int n_parts, left, failed;
        bool made;
        int64_t *starts;
        struct send *sends;
};

static void subscribing_free(struct om_job *j) {
        struct subscribing *s = (struct subscribing *) j;

        free(s->starts);
        free(s->sends);
        free(s);
}

static void serve(struct subscribing *s, struct group *g) {
        struct om_bus_sub *sub = calloc(1, sizeof *sub);
        struct om_error e;

        if (!sub) {
                om_error_set_errno(&e, ENOMEM, "Kafka");
                kafka_job_over(&s->job, -ENOMEM, &e);
                return;
        }
        sub->group = g;
        sub->core = s->core;
        g->sub = sub;
        g->reclaim_idle_ms = s->reclaim_idle_ms > 0 ? s->reclaim_idle_ms : RECLAIM_DEFAULT_MS;
        DL_APPEND(g->bus->subs, sub);
        event_del(g->linger);
        if (g->leaving) { /* it stays */
                g->leaving = false;
                for (int i = 0; i < g->n_parts; i++)
                        if (g->parts[i]->state == PART_LEAVING &&
                                !(g->bus->revoking && rd_kafka_topic_partition_list_find(g->bus->revoking, g->kname, i))) {
                                g->parts[i]->state = PART_RUNNING;
                                g->parts[i]->clean = false;
                        }
                kafka_subscription_soon(g->bus);
        }
        if (job_is_cancelled(&s->job))
                kafka_bus_unsubscribe(sub);
        else {
                s->op->ret_sub = sub;
                s->op->ret_created = s->made;
        }
        kafka_job_over(&s->job, 0, NULL);
}

static void is_made(struct subscribing *s) {
        struct om_bus *b = s->job.bus;
        struct om_error e = OM_ERROR_INIT;
        struct group *g = kafka_group_find(b, om_span_of(s->topic), om_span_of(s->agent));

        if (kafka_member(b, &e) < 0) {
                kafka_job_over(&s->job, -EINVAL, &e);
                return;
        }
        if (!g && !(g = group_new(b, om_span_of(s->topic), om_span_of(s->agent), s->n_parts))) {
                om_error_set_errno(&e, ENOMEM, "Kafka");
                kafka_job_over(&s->job, -ENOMEM, &e);
                return;
        }
        if (s->made) {
                free(g->starts);
                g->starts = s->starts;
                g->n_starts = s->n_parts;
                s->starts = NULL;
        }
        kafka_subscription_soon(b);
        if (!event_pending(b->poll_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->poll_timer, &poll_interval);
        grow(b, b->assigned);
        take(b, b->assigned, g);
        serve(s, g);
}

static void start_sent(struct send *send, int status, const char *why) {
        struct subscribing *s = send->ctx;

        if (status < 0 && !s->failed) {
                s->failed = status;
                om_error_set(&s->job.job.error, OM_UNAVAILABLE, "Kafka: where the group starts cannot be written to %s: %s", s->kname,
                        why ? why : "");
        }
}
static void start_free(struct send *send) {
        struct subscribing *s = send->ctx;

        if (--s->left)
                return;
        if (s->failed)
                kafka_job_over(&s->job, s->failed, &s->job.job.error);
        else
                is_made(s);
}

static void write_starts(struct subscribing *s) {
        s->sends = calloc((size_t) s->n_parts, sizeof *s->sends);
        s->left = s->n_parts + 1;
        for (int i = 0; s->sends && i < s->n_parts; i++) {
                struct send *send = &s->sends[i];
                char text[24];

                snprintf(text, sizeof text, "%lld", (long long) s->starts[i]);
                *send = (struct send){ .bus = s->job.bus,
                        .topic = s->retry,
                        .partition = i,
                        .value = strdup(text),
                        .len = strlen(text),
                        .key = strdup(KAFKA_START_KEY),
                        .key_len = sizeof KAFKA_START_KEY - 1,
                        .done = start_sent,
                        .free = start_free,
                        .ctx = s };
                kafka_send(send);
        }
        if (!s->sends) {
                s->left = 1;
                s->failed = om_error_set_errno(&s->job.job.error, ENOMEM, "Kafka");
        }
        start_free(&(struct send){ .ctx = s });
}

static void open_done(struct call *c) {
        struct subscribing *s = CONTAINER(c, struct subscribing, call);

        if (c->status < 0)
                kafka_job_over(&s->job, c->status, &c->error);
        else if (s->made) {
                s->retry->state = TOPIC_THERE;
                write_starts(s);
        } else
                is_made(s);
}

/* -- opening a group, on a worker --------------------------------------------------------------------------------------------- */

/* How many partitions a topic has, once the brokers know at least `least`. */
int kafka_partitions_of(struct om_bus *b, rd_kafka_topic_t *t, int least, struct om_error *e) {
        int64_t by = om_clock_ms() + PROPAGATION_MS;
        const struct rd_kafka_metadata *md;

        for (;;) {
                rd_kafka_resp_err_t err = rd_kafka_metadata(b->producer, 0, t, &md, ADMIN_MS);
                int n = 0;

                if (!err) {
                        err = md->topic_cnt ? md->topics[0].err : RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
                        n = err ? 0 : md->topics[0].partition_cnt;
                        rd_kafka_metadata_destroy(md);
                }
                if (n >= least)
                        return n;
                if (om_clock_ms() >= by)
                        return err ? kafka_error(err, NULL, rd_kafka_topic_name(t), e)
                                   : om_error_set(e, OM_UNAVAILABLE, "Kafka: %s has not got its partitions", rd_kafka_topic_name(t));
                usleep(10000);
        }
}

int kafka_grow_topic(struct om_bus *b, const char *kname, int n, struct om_error *e) {
        char why[200];
        rd_kafka_NewPartitions_t *more = rd_kafka_NewPartitions_new(kname, (size_t) n, why, sizeof why);
        rd_kafka_queue_t *q = rd_kafka_queue_new(b->producer);
        rd_kafka_event_t *ev;
        size_t count;
        int r = 0;

        if (!more) {
                rd_kafka_queue_destroy(q);
                return om_error_set(e, OM_INVALID, "Kafka: %s", why);
        }
        rd_kafka_CreatePartitions(b->producer, &more, 1, NULL, q);
        ev = rd_kafka_queue_poll(q, ADMIN_MS);
        if (!ev || rd_kafka_event_error(ev))
                r = kafka_error(ev ? rd_kafka_event_error(ev) : RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, "more partitions", e);
        else {
                const rd_kafka_topic_result_t **t =
                        rd_kafka_CreatePartitions_result_topics(rd_kafka_event_CreatePartitions_result(ev), &count);

                if (count)
                        r = kafka_error(rd_kafka_topic_result_error(t[0]), rd_kafka_topic_result_error_string(t[0]), "more partitions", e);
        }
        if (ev)
                rd_kafka_event_destroy(ev);
        rd_kafka_queue_destroy(q);
        rd_kafka_NewPartitions_destroy(more);
        return r;
}

/* Whether the topic has another group. */
static int has_groups(struct om_bus *b, const struct subscribing *s, bool *ret, struct om_error *e) {
        const struct rd_kafka_metadata *md;
        rd_kafka_resp_err_t err = rd_kafka_metadata(b->producer, 1, NULL, &md, ADMIN_MS);
        char prefix[KAFKA_NAME_MAX + 1];
        size_t n;

        if (err)
                return kafka_error(err, NULL, "asking for the groups", e);
        if (!kafka_name(prefix, b->settings.prefix, KAFKA_RETRY, om_span_of(s->topic), OM_SPAN_NONE)) {
                rd_kafka_metadata_destroy(md);
                return om_error_set_errno(e, ENOMEM, "Kafka");
        }
        n = strlen(prefix);
        *ret = false;
        for (int i = 0; i < md->topic_cnt; i++)
                *ret |= strncmp(md->topics[i].topic, prefix, n) == 0 && strcmp(md->topics[i].topic, s->kname) != 0;
        rd_kafka_metadata_destroy(md);
        return 0;
}

/* What is said of a topic of which not all have heard yet. */
static bool is_new(rd_kafka_resp_err_t err) {
        return err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION || err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
                err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART || err == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
                err == RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
}

int kafka_find_offsets(struct om_bus *b, const char *log, int n, enum om_start start, int64_t start_ms, int64_t *ret, struct om_error *e) {
        rd_kafka_topic_partition_list_t *times = NULL;
        int64_t by = om_clock_ms() + PROPAGATION_MS;
        rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;

        if (start == OM_START_TIME) {
                times = rd_kafka_topic_partition_list_new(n);
                for (int i = 0; i < n; i++)
                        rd_kafka_topic_partition_list_add(times, log, i)->offset = start_ms;
                err = rd_kafka_offsets_for_times(b->producer, times, ADMIN_MS);
        }
        for (int i = 0; i < n && !err; i++) {
                int64_t low, high;

                while ((err = rd_kafka_query_watermark_offsets(b->producer, log, i, &low, &high, ADMIN_MS)) && is_new(err) &&
                        om_clock_ms() < by)
                        usleep(10000);
                ret[i] = start == OM_START_FIRST ? low : high;
                if (times) {
                        const rd_kafka_topic_partition_t *tp = rd_kafka_topic_partition_list_find(times, log, i);

                        if (tp && !tp->err && tp->offset >= 0)
                                ret[i] = tp->offset;
                }
        }
        if (times)
                rd_kafka_topic_partition_list_destroy(times);
        return err ? kafka_error(err, NULL, "asking for offsets", e) : 0;
}

static void open_run(struct call *c) {
        struct subscribing *s = CONTAINER(c, struct subscribing, call);
        struct om_bus *b = c->bus;
        struct making m = { .kname = s->kname, .kind = KAFKA_RETRY };
        bool others = false;
        int has;

        s->n_parts = kafka_partitions_of(b, s->log->rkt, 1, &c->error);
        if (s->n_parts < 0) {
                c->status = s->n_parts;
                return;
        }
        m.partitions = s->n_parts;
        c->status = kafka_make_topics(b, &m, 1, &c->error);
        if (!c->status && m.status) {
                c->status = m.status;
                c->error = m.error;
        }
        if (c->status)
                return;
        s->made = m.made;
        has = kafka_partitions_of(b, s->retry->rkt, m.made ? s->n_parts : 1, &c->error);
        if (has < 0 || (has < s->n_parts && (has = kafka_grow_topic(b, s->kname, s->n_parts, &c->error)) < 0)) {
                c->status = has;
                return;
        }
        if (!s->made)
                return;
        if (s->start == OM_START_DEFAULT) {
                c->status = has_groups(b, s, &others, &c->error);
                s->start = others ? OM_START_NEW : OM_START_FIRST;
        }
        s->starts = calloc((size_t) s->n_parts, sizeof(int64_t));
        if (!s->starts)
                c->status = om_error_set_errno(&c->error, ENOMEM, "Kafka");
        if (!c->status)
                c->status = kafka_find_offsets(b, s->log->kname, s->n_parts, s->start, s->start_ms, s->starts, &c->error);
}

static void log_there(struct topic_wait *w, int status, const struct om_error *e) {
        struct subscribing *s = CONTAINER(w, struct subscribing, wait);
        struct om_error error;

        s->call.run = open_run;
        s->call.done = open_done;
        if (status < 0)
                kafka_job_over(&s->job, status, e);
        else if ((status = kafka_call(s->job.bus, WORKER_CALLS, &s->call, &error)) < 0)
                kafka_job_over(&s->job, status, &error);
}

int kafka_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        struct subscribing *s;
        struct group *g;
        int r = kafka_job_admit(b, 0, e);

        if (r < 0)
                return r;
        s = calloc(1, sizeof *s);
        if (!s)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        s->op = op;
        s->core = op->core;
        s->start = op->start;
        s->start_ms = op->start_ms;
        s->reclaim_idle_ms = op->reclaim_idle_ms;
        snprintf(s->topic, sizeof s->topic, "%.*s", OM_PRI(op->topic));
        snprintf(s->agent, sizeof s->agent, "%.*s", OM_PRI(op->agent));
        s->log = kafka_topic_get(b, KAFKA_LOG, op->topic, OM_SPAN_NONE);
        s->retry = kafka_topic_get(b, KAFKA_RETRY, op->topic, op->agent);
        if (!s->log || !s->retry) {
                free(s);
                return om_error_set_errno(e, ENOMEM, "Kafka");
        }
        memcpy(s->kname, s->retry->kname, sizeof s->kname);
        kafka_job_begin(b, &s->job, &op->op, 0, subscribing_free);
        g = kafka_group_find(b, op->topic, op->agent);
        if (g && !g->sub) {
                serve(s, g);
                return 0;
        }
        s->wait.fn = log_there;
        kafka_topic_need(s->log, &s->wait);
        return 0;
}

void kafka_bus_unsubscribe(struct om_bus_sub *s) {
        struct group *g = s->group;

        struct om_bus *b = g ? g->bus : s->bus;

        DL_DELETE(b->subs, s);
        kafka_revoked_except(b, NULL, s);
        if (g) {
                struct timeval tv = in_ms(LINGER_MS);

                g->sub = NULL;
                evtimer_add(g->linger, &tv); /* who stops serving often begins again at once */
                kafka_sub_forget(s);
        }
        free(s->fresh);
        free(s);
}

void kafka_group_leave_now(struct group *g) {
        struct om_bus *b = g->bus;

        g->leaving = true;
        for (int i = 0; i < g->n_parts; i++) {
                struct part *p = g->parts[i];

                if (p->state == PART_RUNNING) {
                        p->state = PART_LEAVING;
                        p->clean = p->dirty = true;
                }
        }
        kafka_commit_soon(b);
        kafka_subscription_soon(b);
}

void kafka_group_gone(struct group *g) {
        struct om_bus *b = g->bus;

        for (int i = 0; i < g->n_parts; i++)
                kafka_part_lose(g->parts[i]);
        if (g->sub) {
                g->sub->bus = b;
                g->sub->group = NULL; /* the core lets go of it */
                kafka_sub_forget(g->sub);
        }
        g->sub = NULL;
        kafka_group_free(g);
        kafka_subscription_soon(b);
}

/* -- opening and closing ------------------------------------------------------------------------------------------------------- */

int kafka_group_timers(struct om_bus *b, struct om_error *e) {
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

/* All that is ours is let go of in order: said by one more commit, for which the brokers have a second. */
void kafka_groups_close(struct om_bus *b) {
        b->ending_by_ms = om_clock_ms() + (b->state == OM_BUS_READY ? 1500 : 0);
        b->ending = true;
        for (struct group *g = b->groups; g; g = g->hh.next) {
                event_del(g->linger);
                for (int i = 0; i < g->n_parts; i++)
                        if (g->parts[i]->state == PART_RUNNING || g->parts[i]->state == PART_LEAVING) {
                                g->parts[i]->state = PART_LEAVING;
                                g->parts[i]->clean = g->parts[i]->dirty = true;
                        }
        }
        event_del(b->subscribe_timer);
        event_del(b->revoke_timer);
        kafka_commit_soon(b);
}

void kafka_groups_free(struct om_bus *b) {
        struct group *g, *next;

        event_del(b->poll_timer);
        event_del(b->commit_timer);
        event_del(b->sweep_timer);
        event_del(b->wake_timer);
        while (b->subs)
                kafka_bus_unsubscribe(b->subs);
        HASH_ITER (hh, b->groups, g, next)
                kafka_group_free(g);
        if (b->revoking)
                rd_kafka_topic_partition_list_destroy(b->revoking);
        b->revoking = NULL;
        rd_kafka_topic_partition_list_destroy(b->assigned);
        b->assigned = NULL;
}
