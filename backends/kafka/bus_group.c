/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups that this daemon serves: opened (bus_open.c), served, left.
 *
 * Always true: a group is on the brokers when its retry topic is. Who makes it writes into each partition where the group starts in the
 * topic's, before subscribe() completes; who owns a partition for which nothing was committed yet starts there.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { LINGER_MS = 300, RECLAIM_DEFAULT_MS = 180000 };

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
int kafka_group_add_parts(struct group *g, int n) {
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
                !kafka_name(g->log, b->settings.prefix, KAFKA_LOG, topic, OM_SPAN_NONE) || kafka_group_add_parts(g, n_parts) < 0) {
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

/* -- serving ------------------------------------------------------------------------------------------------------------------ */

struct subscribing {
        struct job job; /* first */
        struct opening opening;
        struct om_bus_subscribe *op;
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
        void *core;
        int64_t reclaim_idle_ms;
        int left, failed;
        struct send *sends;
};

static void subscribing_free(struct om_job *j) {
        struct subscribing *s = (struct subscribing *) j;

        free(s->opening.starts);
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
                s->op->ret_created = s->opening.made;
        }
        kafka_job_over(&s->job, 0, NULL);
}

static void is_made(struct subscribing *s) {
        struct om_bus *b = s->job.bus;
        struct om_error e = OM_ERROR_INIT;
        struct group *g = kafka_group_find(b, om_span_of(s->topic), om_span_of(s->agent));

        if (!b->renewing && kafka_member(b, &e) < 0) {
                kafka_job_over(&s->job, -EINVAL, &e);
                return;
        }
        if (!g && !(g = group_new(b, om_span_of(s->topic), om_span_of(s->agent), s->opening.n_parts))) {
                om_error_set_errno(&e, ENOMEM, "Kafka");
                kafka_job_over(&s->job, -ENOMEM, &e);
                return;
        }
        if (s->opening.made) {
                free(g->starts);
                g->starts = s->opening.starts;
                g->n_starts = s->opening.n_parts;
                s->opening.starts = NULL;
        }
        kafka_subscription_soon(b);
        kafka_member_take(b, g);
        serve(s, g);
}

static void start_sent(struct send *send, int status, const char *why) {
        struct subscribing *s = send->ctx;

        if (status < 0 && !s->failed) {
                s->failed = status;
                om_error_set(&s->job.job.error, OM_UNAVAILABLE, "Kafka: where the group starts cannot be written to %s: %s",
                        s->opening.retry->kname, why ? why : "");
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
        int n = s->opening.n_parts;

        s->sends = calloc((size_t) n, sizeof *s->sends);
        s->left = n + 1;
        for (int i = 0; s->sends && i < n; i++) {
                struct send *send = &s->sends[i];
                char text[24];

                snprintf(text, sizeof text, "%lld", (long long) s->opening.starts[i]);
                *send = (struct send){ .bus = s->job.bus,
                        .topic = s->opening.retry,
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

static void opened(struct opening *o) {
        struct subscribing *s = CONTAINER(o, struct subscribing, opening);

        if (o->status < 0)
                kafka_job_over(&s->job, o->status, &o->error);
        else if (o->made)
                write_starts(s);
        else
                is_made(s);
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
        s->reclaim_idle_ms = op->reclaim_idle_ms;
        snprintf(s->topic, sizeof s->topic, "%.*s", OM_PRI(op->topic));
        snprintf(s->agent, sizeof s->agent, "%.*s", OM_PRI(op->agent));
        s->opening = (struct opening){ .log = kafka_topic_get(b, KAFKA_LOG, op->topic, OM_SPAN_NONE),
                .retry = kafka_topic_get(b, KAFKA_RETRY, op->topic, op->agent),
                .agent = s->agent,
                .start = op->start,
                .start_ms = op->start_ms,
                .done = opened };
        if (!s->opening.log || !s->opening.retry) {
                free(s);
                return om_error_set_errno(e, ENOMEM, "Kafka");
        }
        kafka_job_begin(b, &s->job, &op->op, 0, subscribing_free);
        g = kafka_group_find(b, op->topic, op->agent);
        if (g && !g->sub) {
                serve(s, g);
                return 0;
        }
        kafka_open(b, &s->opening);
        return 0;
}

void kafka_bus_unsubscribe(struct om_bus_sub *s) {
        struct group *g = s->group;

        struct om_bus *b = g ? g->bus : s->bus;

        DL_DELETE(b->subs, s);
        kafka_revoked_except(b, NULL, s);
        if (g) {
                const struct timeval tv = { .tv_usec = LINGER_MS * 1000 };

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

/* -- closing --------------------------------------------------------------------------------------------------------------------- */

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
