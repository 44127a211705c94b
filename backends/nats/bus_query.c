/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions: topics, groups, what a topic holds, dead letters, health. What each row is made of:
 *
 *   topic    published is the stream's last sequence number, as a log holds nothing else; in a shared stream what is there and what is
 * counted as gone; depth is nats_survey_depth()
 *   group    lag is what the consumer has not been given, and what it was given but nobody had (releases, replays); leased what this daemon
 * has out; retrying the rest of what is not acknowledged: of several daemons, the leases of the others are counted there finished is what
 * the log got since the group began, less what is not finished
 *
 * Loop thread.
 */
#include "bus_state.h"

struct query {
        struct job job; /* first */
        enum om_bus_query_type type;
        struct survey survey;
        struct fetch fetch;
        struct om_arena arena; /* becomes the op's */
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
        char stream[STREAM_NAME_MAX];
        const char *filter;
        uint64_t cursor, last;
        size_t limit, n, cap;
        union {
                struct om_bus_held_row *held;
                struct om_dead_letter *dead;
        };
        uint64_t *ids;
        size_t n_ids, at;
        struct nats_request req;
};
enum { BATCH = 256 };

static void query_free(struct om_job *j) {
        struct query *q = (struct query *) j;

        nats_survey_free(&q->survey);
        om_arena_deinit(&q->arena);
        free(q->ids);
        free(q);
}

/* The op, to be filled; NULL when it was cancelled. */
static struct om_bus_query *op_of(struct query *q) { return (struct om_bus_query *) q->job.base.op; }

static void over(struct query *q, int status, const struct om_error *e) {
        struct om_bus_query *op = op_of(q);

        if (op && status == 0) {
                op->arena = q->arena;
                q->arena = (struct om_arena){ 0 };
        }
        om_job_over(&q->job.base, status, e);
}

static void no_memory(struct query *q) {
        struct om_error e;

        over(q, om_error_set_errno(&e, ENOMEM, "NATS"), &e);
}

/* -- topics and groups ----------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
        return strcmp((*(struct found_topic *const *) a)->topic, (*(struct found_topic *const *) b)->topic);
}

static void topics_found(struct query *q) {
        struct survey *s = &q->survey;
        struct om_bus_query *op = op_of(q);
        struct om_bus_topic_row *rows = om_arena_alloc(&q->arena, (s->n + 1) * sizeof *rows);
        size_t n = 0, i = 0, limit = q->limit ? q->limit : SIZE_MAX;

        if (!rows || !op) {
                no_memory(q);
                return;
        }
        if (s->n)
                qsort(s->topics, s->n, sizeof(struct found_topic *), by_name);
        while (q->agent[0] && i < s->n && strcmp(s->topics[i]->topic, q->agent) <= 0) /* the cursor is the last name */
                i++;
        for (; i < s->n && n < limit; i++) {
                const struct found_topic *t = s->topics[i];

                rows[n++] = (struct om_bus_topic_row){ .topic = om_arena_copy(&q->arena, om_span_of(t->topic)),
                        .depth = nats_survey_depth(t),
                        .published = t->published,
                        .groups = (uint32_t) t->n_groups };
        }
        op->topics = rows;
        op->n = n;
        op->next_cursor = i < s->n && n ? rows[n - 1].topic : OM_SPAN_NONE;
        over(q, 0, NULL);
}

/* What this daemon has out of a group: of the log, and of the replays; those that were released before and are out again. */
static void count_out(struct om_bus *b, const char *topic, const char *agent, uint64_t *ret_log, uint64_t *ret_again, uint64_t *ret_rel) {
        *ret_log = *ret_again = *ret_rel = 0;
        for (struct om_bus_sub *s = b->subs; s; s = s->next) {
                if (strcmp(s->topic->name, topic) != 0 || strcmp(s->agent, agent) != 0)
                        continue;
                for (struct delivery *d = s->out; d; d = d->next) {
                        *(d->again ? ret_again : ret_log) += 1;
                        *ret_rel += d->has_rel && !d->again;
                }
        }
}

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

/* All that is counted of a group: of a pattern's, over its topics. */
static void add_group(struct om_bus_group_row *row, const struct found_topic *t, const struct found_group *g) {
        uint64_t waiting = g->released < g->unacked ? g->released : g->unacked;

        row->lag += g->pending + waiting;
        row->retrying += g->unacked - waiting;
        row->finished += less(less(t->published + 1, g->start ? g->start : 1), g->pending + g->unacked);
        row->dead = g->dead;
}

static void end_group(struct query *q, struct om_bus_group_row *row, uint64_t again, const char *topic, const char *agent) {
        uint64_t out, out_again, out_released, retrying = row->retrying;

        count_out(q->job.bus, topic, agent, &out, &out_again, &out_released);
        /* Of what is not acknowledged this daemon has some out; those of them that had been released wait no more. */
        row->lag = less(row->lag, out_released) + less(again, out_again);
        row->retrying = less(retrying, less(out, out_released));
        row->leased = out + out_again;
}

static void groups_found(struct query *q) {
        struct survey *s = &q->survey;
        struct om_bus_query *op = op_of(q);
        struct om_bus_group_row *rows;
        const struct found_group **of; /* the first of each row */
        size_t n = 0, k;

        for (size_t i = 0; i < s->n; i++)
                n += s->topics[i]->n_groups;
        rows = om_arena_alloc(&q->arena, (n + 1) * sizeof *rows);
        of = om_arena_alloc(&q->arena, (n + 1) * sizeof(struct found_group *));
        if (!rows || !of || !op) {
                no_memory(q);
                return;
        }
        n = 0;
        for (size_t i = 0; i < s->n; i++)
                for (size_t j = 0; j < s->topics[i]->n_groups; j++) {
                        const struct found_group *g = &s->topics[i]->groups[j];
                        const char *topic = g->pattern ? g->pattern : s->topics[i]->topic;

                        if (q->topic[0] && strcmp(q->topic, topic) != 0)
                                continue;
                        for (k = 0; k < n && !(g->pattern && of[k]->pattern && nats_group_is(of[k], g->pattern, g->agent)); k++)
                                ;
                        if (k == n) {
                                of[n] = g;
                                rows[n++] = (struct om_bus_group_row){ .topic = om_arena_copy(&q->arena, om_span_of(topic)),
                                        .agent = om_arena_copy(&q->arena, om_span_of(g->agent)) };
                        }
                        add_group(&rows[k], s->topics[i], g);
                }
        for (k = 0; k < n; k++)
                end_group(q, &rows[k], of[k]->again, rows[k].topic.p, of[k]->agent);
        op->groups = rows;
        op->n = n;
        over(q, 0, NULL);
}

/* -- messages -------------------------------------------------------------------------------------------------------- */

static bool room(struct query *q, size_t size) {
        void *rows;
        size_t cap = q->cap ? q->cap * 2 : 64;

        if (q->n < q->cap)
                return true;
        rows = om_arena_alloc(&q->arena, cap * size);
        if (!rows)
                return false;
        if (q->n)
                memcpy(rows, q->held, q->n * size);
        q->held = rows;
        q->cap = cap;
        return true;
}

static bool put_row(struct query *q, natsMsg *msg, uint64_t seq) {
        struct om_span data = { natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) };

        if (q->type == OM_QUERY_DEAD) {
                if (!room(q, sizeof q->dead[0]) || !nats_letter_read(data, seq, &q->arena, &q->dead[q->n]))
                        return false;
        } else {
                struct om_span record;
                char id[24];

                if (!room(q, sizeof q->held[0]))
                        return false;
                record = nats_message_record(msg, nats_topic_get(q->job.bus, om_span_of(q->topic)), q->stream, seq, &q->arena);
                snprintf(id, sizeof id, "%llu", (unsigned long long) seq);
                q->held[q->n] = (struct om_bus_held_row){ om_arena_copy(&q->arena, om_span_of(id)),
                        record.p == data.p ? om_arena_copy(&q->arena, record) : record };
        }
        q->n++;
        q->last = seq;
        return true;
}

static bool each(struct fetch *f, natsMsg *msg, uint64_t seq) { return put_row(f->ctx, msg, seq); }

static void rows_done(struct query *q, bool more) {
        struct om_bus_query *op = op_of(q);
        char text[24];

        if (op) {
                op->held = q->held;
                op->n = q->n;
                snprintf(text, sizeof text, "%llu", (unsigned long long) q->last);
                op->next_cursor = more && q->n ? om_arena_copy(&q->arena, om_span_of(text)) : OM_SPAN_NONE;
        }
        over(q, 0, NULL);
}

static void fetch_on(struct query *q) {
        size_t left = q->limit ? q->limit - q->n : BATCH;

        nats_fetch_start(&q->fetch, q->job.bus, q->stream, q->filter, q->cursor, left < BATCH ? left : BATCH);
}

static void fetch_done(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct query *q = f->ctx;

        if (status < 0) {
                over(q, status, e);
                return;
        }
        if (more && (!q->limit || q->n < q->limit) && !f->enough && !om_job_is_cancelled(&q->job.base)) {
                q->cursor = q->last + 1;
                fetch_on(q);
                return;
        }
        rows_done(q, more);
}

static void fetch_rows(struct query *q) {
        q->fetch.each = each;
        q->fetch.done = fetch_done;
        q->fetch.ctx = q;
        fetch_on(q);
}

static void held_found(struct query *q) {
        const struct found_topic *t = q->survey.n ? q->survey.topics[0] : NULL;
        const struct topic *of = t ? nats_topic_get(q->job.bus, om_span_of(t->topic)) : NULL;

        if (!t) {
                rows_done(q, false);
                return;
        }
        if (!of) {
                no_memory(q);
                return;
        }
        q->filter = nats_topic_filter(of);
        snprintf(q->stream, sizeof q->stream, "%s", t->stream);
        if (t->n_groups && t->lowest.n && q->cursor <= t->lowest.seq)
                q->cursor = t->lowest.seq + 1; /* what is below is kept for replay, or not swept yet */
        fetch_rows(q);
}

/* -- dead letters ---------------------------------------------------------------------------------------------------- */

bool nats_letter_read(struct om_span data, uint64_t seq, struct om_arena *arena, struct om_dead_letter *ret) {
        char id[24];

        if (!nats_json_ok(data))
                return false;
        data = om_arena_copy(arena, data);
        snprintf(id, sizeof id, "%llu", (unsigned long long) seq);
        *ret = (struct om_dead_letter){ .id = om_arena_copy(arena, om_span_of(id)),
                .record = nats_json_get(data, "record"),
                .error = nats_json_text(data, "error", arena),
                .error_type = nats_json_text(data, "error_type", arena),
                .worker = nats_json_text(data, "worker", arena),
                .attempts = (uint32_t) nats_json_u64(data, "attempts"),
                .failed_ms = (int64_t) nats_json_u64(data, "failed_ms") };
        return ret->record.p != NULL;
}

static void next_id(struct query *q);

static void id_came(struct nats_request *r, const struct nats_reply *reply) {
        struct query *q = r->ctx;
        struct om_error e = OM_ERROR_INIT;

        if (reply->status == 0 && reply->code == 0)
                put_row(q, reply->msg, q->ids[q->at - 1]);
        else if (reply->status < 0 && reply->status != -ENOENT) {
                over(q, nats_error(reply, "reading a dead letter", &e), &e);
                return;
        }
        next_id(q);
}

static void next_id(struct query *q) {
        struct om_error e;
        char body[48];
        int r;

        while (q->at < q->n_ids && !q->ids[q->at])
                q->at++; /* no id that we give */
        if (q->at == q->n_ids) {
                rows_done(q, false);
                return;
        }
        snprintf(body, sizeof body, "{\"seq\":%llu}", (unsigned long long) q->ids[q->at++]);
        r = nats_call(q->job.bus->link, &q->req, id_came, q, om_span_of(body), "DIRECT.GET.%s", q->stream);
        if (r < 0)
                over(q, om_error_set_errno(&e, r, "NATS"), &e);
}

static void group_known(struct query *q) {
        if (q->n_ids)
                next_id(q);
        else
                fetch_rows(q);
}

static void dead_found(struct query *q) {
        struct om_buf na = OM_BUF_INIT, nt = OM_BUF_INIT;
        struct om_error e;
        bool known = false, listed, all;

        for (size_t n = 0; n < q->survey.n; n++)
                for (size_t i = 0; i < q->survey.topics[n]->n_groups; i++)
                        known |= nats_group_is(&q->survey.topics[n]->groups[i], q->topic, q->agent);
        nats_name_encode(&nt, om_span_of(q->topic));
        nats_name_encode(&na, om_span_of(q->agent));
        om_buf_putc(&nt, 0);
        om_buf_putc(&na, 0);
        if (!om_buf_ok(&nt) || !om_buf_ok(&na)) {
                om_buf_deinit(&nt);
                om_buf_deinit(&na);
                no_memory(q);
                return;
        }
        nats_group_stream(q->stream, sizeof q->stream, q->job.bus, 'd', nt.data, na.data);
        om_buf_deinit(&nt);
        om_buf_deinit(&na);
        listed = memmem(q->survey.dead.p, q->survey.dead.len, q->stream, strlen(q->stream)) != NULL;
        all = nats_json_u64(q->survey.dead, "total") <= nats_json_u64(q->survey.dead, "limit");
        /* A group that was deleted leaves its letters readable. One that never had any has no stream, and through a leaf node nobody says
         * so. */
        if (!known && !listed)
                over(q, om_error_set(&e, OM_NOT_FOUND, "no group %s on topic %s", q->agent, q->topic), &e);
        else if (!listed && all)
                rows_done(q, false);
        else
                group_known(q);
}

/* -- health ---------------------------------------------------------------------------------------------------------- */

static void health_came(struct nats_request *r, const struct nats_reply *reply) {
        struct query *q = r->ctx;
        struct om_bus *b = q->job.bus;
        struct om_bus_query *op = op_of(q);
        const struct nats_settings *c = &b->settings.c;
        struct om_error e = OM_ERROR_INIT;
        struct om_buf t = OM_BUF_INIT;
        const char *why = nats_settings_weak(c);
        int status = nats_error(reply, "asking for health", &e);

        if (status < 0) {
                over(q, status, &e);
                return;
        }
        om_buf_printf(&t, "{\"durability\":\"%s\"", why ? "weak" : "strong");
        if (why) {
                om_buf_lit(&t, ",\"why\":");
                om_buf_json_span(&t, om_span_of(why));
        }
        om_buf_lit(&t, ",\"servers\":");
        om_buf_json_span(&t, om_span_of(nats_link_where(b->link)));
        om_buf_printf(&t, ",\"cluster\":%s,\"replicas\":%lld,\"storage\":\"%s\",\"streams\":%llu,\"consumers\":%llu,\"stored_bytes\":%llu",
                b->clustered ? "true" : "false", (long long) c->replicas, nats_storages[c->storage],
                (unsigned long long) nats_json_u64(reply->data, "streams"), (unsigned long long) nats_json_u64(reply->data, "consumers"),
                (unsigned long long) nats_json_u64(reply->data, "storage") + nats_json_u64(reply->data, "memory"));
        if (b->shared) {
                om_buf_lit(&t, ",\"stream\":");
                om_buf_json_span(&t, om_span_of(b->shared->name));
        }
        om_buf_putc(&t, '}');
        if (op)
                op->info = om_buf_ok(&t) ? om_arena_copy(&q->arena, om_buf_span(&t)) : OM_SPAN_NONE;
        om_buf_deinit(&t);
        over(q, 0, NULL);
}

/* -- the entry ------------------------------------------------------------------------------------------------------- */

static void surveyed(struct survey *s) {
        struct query *q = s->ctx;

        if (s->status < 0) {
                over(q, s->status, &s->error);
                return;
        }
        switch (q->type) {
        case OM_QUERY_TOPICS:
                topics_found(q);
                break;
        case OM_QUERY_GROUPS:
                groups_found(q);
                break;
        case OM_QUERY_HELD:
                held_found(q);
                break;
        default:
                dead_found(q);
        }
}

int nats_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        struct query *q;
        int r = nats_job_admit(b, sizeof *q, e);

        if (r < 0)
                return r;
        q = calloc(1, sizeof *q);
        if (q && op->n_ids)
                q->ids = calloc(op->n_ids, sizeof q->ids[0]);
        if (!q || (op->n_ids && !q->ids)) {
                free(q);
                return om_error_set_errno(e, ENOMEM, "NATS");
        }
        q->type = op->type;
        q->limit = op->limit;
        q->n_ids = op->n_ids;
        for (size_t i = 0; i < op->n_ids; i++)
                q->ids[i] = nats_number_of(op->ids[i]);
        q->cursor = nats_number_of(op->cursor) + 1;
        snprintf(q->topic, sizeof q->topic, "%.*s", OM_PRI(op->topic));
        snprintf(q->agent, sizeof q->agent, "%.*s", OM_PRI(op->type == OM_QUERY_TOPICS ? op->cursor : op->agent));
        op->arena = (struct om_arena){ 0 };
        op->n = 0;
        op->next_cursor = op->info = OM_SPAN_NONE;
        nats_job_begin(b, &q->job, &op->op, sizeof *q, query_free);
        if (op->type != OM_QUERY_HEALTH) {
                nats_survey_start(&q->survey, b, op->topic, surveyed, q);
                return 0;
        }
        r = nats_call(b->link, &q->req, health_came, q, OM_SPAN_NONE, "INFO");
        if (r < 0) {
                om_error_set_errno(e, r, "NATS");
                over(q, r, e);
        }
        return 0;
}
