/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking in: topics, groups, what is held, dead letters, health; and the sweep, which deletes what all groups have finished.
 *
 * The brokers are asked on the worker; what this daemon serves is told to it as it is now. The answer is made in memory of our own, which
 * becomes the query's when it completes.
 *
 * Loop thread, but for run() of calls.
 */
#include "admin.h"
#include "look.h"

enum { SWEEP_MS = 5000, SWEEP_REST = 10 /* times what one took */, HELD_LIMIT = 1000 };

struct query {
        struct job job; /* first */
        struct call call;
        struct om_bus_query *op;
        enum om_bus_query_type type;
        struct om_span topic, agent, cursor, *ids;
        size_t limit, n_ids;
        struct snapshot *snap;
        struct om_arena in, out;
        size_t n, cap;
        union {
                struct om_bus_topic_row *topics;
                struct om_bus_group_row *groups;
                struct om_bus_held_row *held;
                struct om_dead_letter *dead;
                void *rows;
        };
        struct om_span next_cursor, info;
        /* of the walk */
        const char *source;
        size_t wanted;
        bool no_memory;
        const struct seen_topic *seen_topic;
        const struct kafka_track *track;
        const char *name;
        int part;
};

static void *rows_new(struct query *q, size_t n, size_t size) {
        q->rows = om_arena_alloc(&q->out, (n + 1) * size);
        q->no_memory |= !q->rows;
        return q->rows;
}

static struct om_span printed(struct query *q, const char *format, ...) __attribute__((format(printf, 2, 3)));
static struct om_span printed(struct query *q, const char *format, ...) {
        char text[400];
        va_list args;
        struct om_span s;

        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        s = om_arena_copy(&q->out, om_span_of(text));
        q->no_memory |= !s.p;
        return s;
}

/* -- topics and groups ------------------------------------------------------------------------------------------------------ */

static void topics_run(struct query *q, struct seen *s) {
        rows_new(q, s->n_topics, sizeof *q->topics);
        for (size_t i = 0; i < s->n_topics && !q->no_memory; i++) {
                struct seen_topic *t = &s->topics[i];
                struct om_bus_topic_row *row;

                if (q->cursor.p && strncmp(t->kname, q->cursor.p, q->cursor.len + 1) <= 0)
                        continue;
                if (q->limit && q->n == q->limit) {
                        q->next_cursor = printed(q, "%s", s->topics[i - 1].kname);
                        break;
                }
                row = &q->topics[q->n++];
                *row = (struct om_bus_topic_row){ .topic = om_arena_copy(&q->out, t->topic), .groups = (uint32_t) t->n_groups };
                row->depth = kafka_depth(t);
                for (int p = 0; p < t->n_parts; p++)
                        row->published += (uint64_t) t->high[p];
        }
}

static int groups_run(struct query *q, struct seen *s, struct om_error *e) {
        rows_new(q, s->n_groups, sizeof *q->groups);
        for (size_t i = 0; i < s->n_groups && !q->no_memory; i++) {
                struct om_bus_group_row *row = &q->groups[q->n++];
                char kname[KAFKA_NAME_MAX + 1];
                struct dead_topic *dead;
                int r;

                *row = kafka_group_row(&s->groups[i]);
                kafka_name_dead_of(kname, q->job.bus->settings.prefix, s->groups[i].kname);
                if (kafka_seen_dead(s, kname)) {
                        r = kafka_dead_scan(q->job.bus, kname, &dead, e);
                        if (r < 0)
                                return r;
                        row->dead = dead->n;
                }
                row->topic = om_arena_copy(&q->out, row->topic);
                row->agent = om_arena_copy(&q->out, row->agent);
        }
        return 0;
}

/* -- what is held ------------------------------------------------------------------------------------------------------------- */

static bool held_one(void *ctx, const rd_kafka_message_t *m) {
        struct query *q = ctx;
        struct om_bus_held_row *row;
        int64_t until;

        if (q->track ? kafka_track_is_done(q->track, m->offset) || m->offset == 0
                     : kafka_done_by_all(q->seen_topic, q->part, m->offset, &until))
                return true;
        if (q->n == q->limit) {
                q->next_cursor = printed(q, "%s %d %lld", q->source, q->part, (long long) m->offset);
                return false;
        }
        row = &q->held[q->n++];
        row->id = printed(q, "%s%d:%lld", q->track ? "r" : "", q->part, (long long) m->offset);
        row->record = kafka_message_record(m, q->name, true, &q->out);
        if (m->payload && row->record.p == (const char *) m->payload)
                row->record = om_arena_copy(&q->out, row->record);
        q->no_memory |= !row->record.p;
        return !q->no_memory;
}

/* A cursor says where to go on: name of the Kafka topic, partition, offset. */
static int held_run(struct query *q, struct seen *s, struct om_error *e) {
        char at[KAFKA_NAME_MAX + 1] = "";
        int at_part = 0, r = 0;
        long long from = 0;
        bool skip;

        q->limit = q->limit ? q->limit : HELD_LIMIT;
        rows_new(q, q->limit, sizeof *q->held);
        if (q->cursor.p) {
                char text[KAFKA_NAME_MAX + 60];

                snprintf(text, sizeof text, "%.*s", OM_PRI(q->cursor));
                if (sscanf(text, "%249s %d %lld", at, &at_part, &from) != 3)
                        return om_error_set(e, OM_INVALID, "cursor: not one of ours");
        }
        skip = at[0] != 0;
        q->name = q->topic.p; /* zero-terminated: a copy */
        for (size_t i = 0; i < s->n_topics && !r && !q->next_cursor.p && !q->no_memory; i++) {
                struct seen_topic *t = &s->topics[i];

                q->seen_topic = t;
                q->source = t->kname;
                q->track = NULL;
                for (q->part = 0; q->part < t->n_parts && !r && !q->next_cursor.p; q->part++) {
                        int64_t low = kafka_finished_below(t, q->part);
                        bool here = skip && strcmp(at, t->kname) == 0 && q->part == at_part;

                        if (skip && !here)
                                continue;
                        skip = false;
                        low = here ? from : low > t->low[q->part] ? low : t->low[q->part];
                        r = kafka_read(q->job.bus, t->kname, q->part, low, t->high[q->part], held_one, q, e);
                }
        }
        for (size_t i = 0; i < s->n_groups && !r && !q->next_cursor.p && !q->no_memory; i++) {
                struct seen_group *g = &s->groups[i];

                q->source = g->kname;
                for (q->part = 0; q->part < g->n_parts && !r && !q->next_cursor.p; q->part++) {
                        struct seen_part *p = &g->parts[q->part];
                        bool here = skip && strcmp(at, g->kname) == 0 && q->part == at_part;
                        int64_t low = p->state.at[KAFKA_AT_RETRY].track.low;

                        if (skip && !here)
                                continue;
                        skip = false;
                        q->track = &p->state.at[KAFKA_AT_RETRY].track;
                        low = here ? from : low > p->retry_low ? low : p->retry_low;
                        if (low == 0)
                                low = 1;
                        r = kafka_read(q->job.bus, g->kname, q->part, low, p->retry_high, held_one, q, e);
                }
        }
        return r;
}

/* -- dead letters --------------------------------------------------------------------------------------------------------------- */

struct letters {
        struct query *q;
        struct dead_entry *next; /* what is looked for */
};

static bool wanted(const struct query *q, const struct dead_entry *entry) {
        char id[24];

        if (!q->ids)
                return true;
        snprintf(id, sizeof id, "%lld", (long long) entry->offset);
        for (size_t i = 0; i < q->n_ids; i++)
                if (om_span_is(q->ids[i], id))
                        return true;
        return false;
}

static bool letter_one(void *ctx, const rd_kafka_message_t *m) {
        struct letters *l = ctx;
        struct query *q = l->q;

        while (l->next && (l->next->offset < m->offset || !wanted(q, l->next)))
                l->next = l->next->next;
        if (!l->next)
                return false;
        if (l->next->offset != m->offset)
                return true;
        if (q->limit && q->n == q->limit) {
                q->next_cursor = printed(q, "%lld", (long long) m->offset);
                return false;
        }
        if (kafka_letter_read(m, &q->out, &q->dead[q->n]))
                q->n++;
        l->next = l->next->next;
        return l->next != NULL;
}

static int dead_run(struct query *q, struct om_error *e) {
        char kname[KAFKA_NAME_MAX + 1];
        struct om_bus *b = q->job.bus;
        struct dead_topic *t;
        struct seen s;
        struct letters l = { q, NULL };
        char group[KAFKA_NAME_MAX + 1];
        bool there, dead;
        char from[24] = "0";
        int r;

        if (!kafka_name(kname, b->settings.prefix, KAFKA_DEAD, q->topic, q->agent) ||
                !kafka_name(group, b->settings.prefix, KAFKA_RETRY, q->topic, q->agent))
                return om_error_set_errno(e, ENOMEM, "Kafka");
        r = kafka_look_names(b, kafka_is_topic, &q->topic, &s, e);
        if (r < 0)
                return r;
        dead = kafka_seen_dead(&s, kname);
        there = kafka_seen_group(&s, group) != NULL;
        kafka_seen_deinit(&s);
        if (!dead)
                return there
                        ? 0
                        : om_error_set(e, OM_NOT_FOUND, "there is no group of \"%.*s\" on \"%.*s\"", OM_PRI(q->agent), OM_PRI(q->topic));
        r = kafka_dead_scan(b, kname, &t, e);
        if (r < 0 || !t->list)
                return r;
        if (!rows_new(q, q->limit && q->limit < t->n ? q->limit : t->n, sizeof *q->dead))
                return 0;
        if (q->cursor.p)
                snprintf(from, sizeof from, "%.*s", OM_PRI(q->cursor));
        l.next = t->list;
        while (l.next && (l.next->offset < atoll(from) || !wanted(q, l.next)))
                l.next = l.next->next;
        return l.next ? kafka_read(b, kname, 0, l.next->offset, t->list->prev->offset + 1, letter_one, &l, e) : 0;
}

/* -- health ------------------------------------------------------------------------------------------------------------------------ */

/* What the brokers are set to, by which "acknowledged" is as true as it is. */
static void broker_settings(struct om_bus *b, int32_t id, int64_t *ret_isr, int64_t *ret_flush) {
        char name[16];
        rd_kafka_ConfigResource_t *broker;
        struct admin_ask ask;
        size_t n = 0, n_entries = 0;

        snprintf(name, sizeof name, "%d", (int) id);
        broker = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_BROKER, name);
        kafka_ask_init(&ask, b->asker, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
        rd_kafka_DescribeConfigs(b->asker, &broker, 1, ask.options, ask.queue);
        if (kafka_ask_wait(&ask, "asking how a broker is configured", NULL) == 0) {
                const rd_kafka_ConfigResource_t **r =
                        rd_kafka_DescribeConfigs_result_resources(rd_kafka_event_DescribeConfigs_result(ask.answer), &n);
                const rd_kafka_ConfigEntry_t **entries = n ? rd_kafka_ConfigResource_configs(r[0], &n_entries) : NULL;

                for (size_t i = 0; i < n_entries; i++) {
                        const char *value = rd_kafka_ConfigEntry_value(entries[i]);

                        if (value && strcmp(rd_kafka_ConfigEntry_name(entries[i]), "min.insync.replicas") == 0)
                                *ret_isr = atoll(value);
                        if (value && strcmp(rd_kafka_ConfigEntry_name(entries[i]), "log.flush.interval.messages") == 0)
                                *ret_flush = atoll(value);
                }
        }
        kafka_ask_deinit(&ask);
        rd_kafka_ConfigResource_destroy(broker);
}

static int health_run(struct query *q, struct om_error *e) {
        struct om_bus *b = q->job.bus;
        const struct rd_kafka_metadata *md = NULL;
        rd_kafka_resp_err_t err = rd_kafka_metadata(b->asker, 0, NULL, &md, ADMIN_MS);
        struct om_buf out = OM_BUF_INIT;
        int64_t isr = 1, flush = 0;
        int brokers;

        if (err)
                return kafka_error(err, NULL, b->where, e);
        brokers = md->broker_cnt;
        if (brokers)
                broker_settings(b, md->brokers[0].id, &isr, &flush);
        rd_kafka_metadata_destroy(md);
        om_buf_printf(&out, "{\"durability\":\"%s\"", isr >= 2 || flush == 1 ? "strong" : "weak");
        if (isr < 2 && flush != 1)
                om_buf_lit(&out,
                        ",\"why\":\"min.insync.replicas is 1 and log.flush.interval.messages is not: what one broker has acknowledged may "
                        "be lost when "
                        "its machine loses power\"");
        om_buf_printf(&out, ",\"brokers\":%d,\"min_insync_replicas\":%lld,\"server\":", brokers, (long long) isr);
        om_buf_json_span(&out, om_span_of(b->where));
        om_buf_lit(&out, ",\"consumer_group\":");
        om_buf_json_span(&out, om_span_of(b->group_id));
        om_buf_lit(&out, ",\"instance\":");
        om_buf_json_span(&out, om_span_of(b->instance));
        om_buf_printf(&out, ",\"client\":\"librdkafka %s\"}", rd_kafka_version_str());
        q->info = om_buf_ok(&out) ? om_arena_copy(&q->out, om_buf_span(&out)) : OM_SPAN_NONE;
        q->no_memory |= !q->info.p;
        om_buf_deinit(&out);
        return 0;
}

/* -- a query ------------------------------------------------------------------------------------------------------------------------ */

static void query_run(struct call *c) {
        struct query *q = CONTAINER(c, struct query, call);
        struct seen s;

        if (q->type == OM_QUERY_HEALTH)
                c->status = health_run(q, &c->error);
        else if (q->type == OM_QUERY_DEAD)
                c->status = dead_run(q, &c->error);
        else {
                c->status = kafka_look(c->bus, kafka_is_topic, &q->topic, q->snap, &s, &c->error);
                if (c->status < 0)
                        return;
                if (q->type == OM_QUERY_TOPICS)
                        topics_run(q, &s);
                else if (q->type == OM_QUERY_GROUPS)
                        c->status = groups_run(q, &s, &c->error);
                else
                        c->status = held_run(q, &s, &c->error);
                kafka_seen_deinit(&s);
        }
        if (!c->status && q->no_memory)
                c->status = om_error_set_errno(&c->error, ENOMEM, "Kafka");
}

static void query_done(struct call *c) {
        struct query *q = CONTAINER(c, struct query, call);

        if (!job_is_cancelled(&q->job) && c->status == 0) {
                q->op->arena = q->out;
                q->out = (struct om_arena){ NULL, 0 };
                q->op->n = q->n;
                q->op->next_cursor = q->next_cursor;
                q->op->info = q->info;
                if (q->type == OM_QUERY_TOPICS)
                        q->op->topics = q->topics;
                else if (q->type == OM_QUERY_GROUPS)
                        q->op->groups = q->groups;
                else if (q->type == OM_QUERY_HELD)
                        q->op->held = q->held;
                else
                        q->op->dead = q->dead;
        }
        kafka_job_over(&q->job, c->status, &c->error);
}

static void query_free(struct om_job *j) {
        struct query *q = (struct query *) j;

        kafka_snapshot_free(q->snap);
        om_arena_deinit(&q->in);
        om_arena_deinit(&q->out);
        free(q);
}

int kafka_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        struct query *q;
        int r = kafka_job_admit(b, 0, e);

        if (r < 0)
                return r;
        q = calloc(1, sizeof *q);
        if (!q)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        q->op = op;
        q->type = op->type;
        q->limit = op->limit;
        q->topic = om_arena_copy(&q->in, op->topic);
        q->agent = om_arena_copy(&q->in, op->agent);
        q->cursor = om_arena_copy(&q->in, op->cursor);
        q->n_ids = op->n_ids;
        if (op->n_ids && (q->ids = om_arena_alloc(&q->in, op->n_ids * sizeof *q->ids)))
                for (size_t i = 0; i < op->n_ids; i++)
                        q->ids[i] = om_arena_copy(&q->in, op->ids[i]);
        if (op->type != OM_QUERY_HEALTH && op->type != OM_QUERY_DEAD)
                q->snap = kafka_snapshot(b, q->topic);
        q->call.run = query_run;
        q->call.done = query_done;
        kafka_job_begin(b, &q->job, &op->op, 0, query_free);
        r = kafka_call(b, WORKER_CALLS, &q->call, e);
        if (r < 0)
                kafka_job_over(&q->job, r, e);
        return 0;
}

/* -- the sweep ------------------------------------------------------------------------------------------------------------------------ */

struct sweep {
        struct call call; /* first */
        int64_t begun_ms;
        size_t n;
        struct swept {
                char part[KAFKA_GROUP_PART + 1]; /* first; kafka_name_group_part() */
                char topic[OM_TOPIC_MAX + 1];
                int more; /* partitions that the topic has, where a group of it has fewer; or 0 */
        } * topics;
};

static int by_part(const void *a, const void *b) { return strcmp(a, b); }

static struct swept *swept(const struct sweep *w, const char *part) { return bsearch(part, w->topics, w->n, sizeof w->topics[0], by_part); }

static bool is_swept(const void *ctx, const struct kafka_named *n) {
        char part[KAFKA_GROUP_PART + 1];

        return !kafka_name_group_part(n, part) || swept(ctx, part); /* without memory the look fails */
}

/* Where what is younger than its topic's retention begins, of those that have one. NULL: nobody says. */
static rd_kafka_topic_partition_list_t *retained(struct om_bus *b, const struct seen *s, const int64_t *retentions) {
        rd_kafka_topic_partition_list_t *times = rd_kafka_topic_partition_list_new(16);

        for (size_t i = 0; i < s->n_topics; i++)
                for (int p = 0; p < s->topics[i].n_parts && retentions[i]; p++)
                        rd_kafka_topic_partition_list_add(times, s->topics[i].kname, p)->offset = om_now_ms() - retentions[i];
        if (times->cnt && rd_kafka_offsets_for_times(b->asker, times, ADMIN_MS)) {
                rd_kafka_topic_partition_list_destroy(times);
                return NULL;
        }
        return times;
}

static void sweep_seen(struct sweep *w, const struct seen *s, rd_kafka_topic_partition_list_t *before) {
        char(*knames)[KAFKA_NAME_MAX + 1] = calloc(s->n_topics + 1, sizeof knames[0]);
        int64_t *retentions = calloc(s->n_topics + 1, sizeof(int64_t));
        rd_kafka_topic_partition_list_t *times = NULL;
        int at = 0;

        for (size_t i = 0; knames && i < s->n_topics; i++)
                memcpy(knames[i], s->topics[i].kname, sizeof knames[0]);
        if (knames && retentions) {
                kafka_retentions(w->call.bus, knames, s->n_topics, retentions, &w->call.error); /* who may not ask has the URL's for all */
                times = retained(w->call.bus, s, retentions);
        }
        for (size_t i = 0; times && i < s->n_topics; i++)
                for (int p = 0; p < s->topics[i].n_parts; p++) {
                        const struct seen_topic *t = &s->topics[i];
                        const rd_kafka_topic_partition_t *tp = retentions[i] ? kafka_in_list(times, t->kname, p, &at) : NULL;
                        int64_t to = kafka_finished_below(t, p);

                        if (tp && tp->offset >= 0 && tp->offset < to) /* none: all is older */
                                to = tp->offset;
                        if (to > t->low[p] && to <= t->high[p])
                                rd_kafka_topic_partition_list_add(before, t->kname, p)->offset = to;
                }
        if (times)
                rd_kafka_topic_partition_list_destroy(times);
        free(knames);
        free(retentions);
}

static void sweep_run(struct call *c) {
        struct sweep *w = (struct sweep *) c;
        rd_kafka_topic_partition_list_t *before;
        struct seen s;

        /* What is not committed may be taken back: no snapshot. */
        if (kafka_look(c->bus, is_swept, w, NULL, &s, &c->error) < 0)
                return;
        before = rd_kafka_topic_partition_list_new(16);
        sweep_seen(w, &s, before);
        for (size_t i = 0; i < s.n_topics; i++)
                for (const struct seen_group *g = s.topics[i].groups; g; g = g->next)
                        if (g->n_parts < s.topics[i].n_parts)
                                swept(w, g->part)->more = s.topics[i].n_parts;
        for (size_t k = 0; k < s.n_groups; k++)
                for (int p = 0; p < s.groups[k].n_parts; p++) {
                        const struct seen_part *part = &s.groups[k].parts[p];
                        int64_t to = part->state.at[KAFKA_AT_RETRY].track.low;

                        if (part->known && to > part->retry_low + 100 && to <= part->retry_high)
                                rd_kafka_topic_partition_list_add(before, s.groups[k].kname, p)->offset = to;
                }
        if (before->cnt)
                c->status = kafka_delete_records(c->bus, before, &c->error);
        rd_kafka_topic_partition_list_destroy(before);
        kafka_seen_deinit(&s);
}

static void sweep_done(struct call *c) {
        struct sweep *w = (struct sweep *) c;

        bool denied = c->status < 0 && c->error.kind == OM_DENIED;

        c->bus->sweeping = false;
        c->bus->sweep_ms = om_clock_ms() - w->begun_ms;
        om_host_log(c->bus->host, OM_LOG_DEBUG, "Kafka: %zu topics swept at once", w->n);
        if (c->status < 0)
                om_host_log(c->bus->host, denied && !c->bus->undeleted ? OM_LOG_WARNING : OM_LOG_INFO, "%s", c->error.message);
        c->bus->undeleted = denied;
        for (size_t i = 0; i < w->n; i++)
                if (w->topics[i].more && !c->bus->closing && !c->bus->ending)
                        kafka_catch_up(c->bus, w->topics[i].topic, w->topics[i].more);
        free(w->topics);
        free(w);
}

void kafka_on_sweep_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct kafka_named named;
        struct sweep *w;
        size_t n = 0;

        if (b->closing || b->ending)
                return;
        if (b->state != OM_BUS_READY || b->sweeping) {
                kafka_sweep_soon(b);
                return;
        }
        w = calloc(1, sizeof *w);
        for (struct group *g = b->groups; g; g = g->hh.next)
                n += g->unswept;
        if (w && n && (w->topics = calloc(n, sizeof w->topics[0]))) {
                for (struct group *g = b->groups; g; g = g->hh.next)
                        if (g->unswept) {
                                g->unswept = false;
                                if (kafka_name_read(g->kname, b->settings.prefix, &named) &&
                                        kafka_name_group_part(&named, w->topics[w->n].part))
                                        memcpy(w->topics[w->n++].topic, g->topic, sizeof g->topic);
                        }
                qsort(w->topics, w->n, sizeof w->topics[0], by_part);
                n = w->n;
                w->n = 0;
                for (size_t i = 0; i < n; i++) /* one of each */
                        if (!w->n || by_part(&w->topics[w->n - 1], &w->topics[i]) != 0)
                                w->topics[w->n++] = w->topics[i];
                w->begun_ms = om_clock_ms();
                w->call.run = sweep_run;
                w->call.done = sweep_done;
                b->sweeping = kafka_call(b, WORKER_CALLS, &w->call, &w->call.error) == 0;
        }
        if (!b->sweeping && w) {
                free(w->topics);
                free(w);
        }
}

void kafka_sweep_soon(struct om_bus *b) {
        int64_t ms = b->sweep_ms * SWEEP_REST > SWEEP_MS ? b->sweep_ms * SWEEP_REST : SWEEP_MS;

        if (!event_pending(b->sweep_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->sweep_timer, (&(struct timeval){ ms / 1000, ms % 1000 * 1000 }));
}
