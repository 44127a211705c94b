/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of results and metrics, newest first.
 *
 * Results stand in two indexes: the newest of each task in p:results:index, the other agents' in p:results:earlier. A page is read in
 * rounds: the next places of both after the cursor, merged; then the records there, in one write; then what is wanted of them is kept,
 * until the page is full. The cursor is the last place that was looked at: score, whether it was an earlier one, id and agent. A record
 * that moves from the one index to the other, because another agent has saved a newer one, keeps its score and id and so its place: it is
 * not met again, nor missed.
 *
 * Always true:
 *   - a page is bounded in entries (PAGE_MAX), bytes (OM_REDIS_PAGE_BYTES, one entry may exceed it), and in what is looked at for it: after
 *     LOOKED_AT places that are not wanted it ends with what there is, and a cursor;
 *   - a place without a record is handed to the sweep, and a record that cannot be read is skipped and logged: one bad key does not take
 * the list away.
 *
 * Called by the core through store.c's table. Loop thread.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "store_state.h"

enum { ROUND = 256, LOOKED_AT = 20000 };

/* A place in the lists. */
struct place {
        double score;
        bool earlier;
        struct om_span id, agent; /* agent: of an earlier one, or of the record that was read */
        struct om_span member;
        /* what was read there */
        struct om_store_entry entry;
        int64_t pttl_ms;
        bool there, unread, later, alone;
};

struct list {
        struct om_store_list *op;
        struct om_span key, name, topic, status;
        int64_t since_ms, until_ms;
        size_t limit, bytes, looked_at;
        struct place at; /* the last one that was looked at */
        bool begun;
        struct place *ours[2]; /* of this round: p:results:index, p:results:earlier */
        size_t n_ours[2];
        struct place **round;
        size_t n_round;
        struct om_arena memory; /* of this round */
        size_t round_bytes;
        bool logged, end;
        char stream_id[48]; /* metrics: the last one that was looked at */
};

static void round_begin(struct om_redis_job *job);

static bool wanted(const struct list *l, const struct om_store_entry *entry, int64_t now) {
        return !om_redis_expired(entry, now) && (!l->key.p || om_span_eq(entry->key, l->key)) &&
                (!l->name.p || om_span_eq(entry->name, l->name)) && (!l->topic.p || om_span_eq(entry->topic, l->topic)) &&
                (!l->status.p || om_span_eq(entry->status, l->status)) && (!l->since_ms || entry->saved_ms >= l->since_ms) &&
                (!l->until_ms || entry->saved_ms < l->until_ms);
}

static bool full(const struct list *l) { return l->op->n >= l->limit || l->bytes > OM_REDIS_PAGE_BYTES; }

static void take(struct om_redis_job *job, const struct om_store_entry *entry) {
        struct list *l = job->data;

        if (om_redis_entry_copy(&l->op->arena, entry, &l->op->entries[l->op->n]) < 0) {
                om_redis_job_no_memory(job);
                return;
        }
        l->op->n++;
        l->bytes += entry->value.len;
}

static void unreadable(struct om_redis_job *job, const struct om_error *e) {
        struct list *l = job->data;

        if (!l->logged)
                om_host_log(job->store->host, OM_LOG_WARNING, "a list leaves out what cannot be read: %s", e->message);
        l->logged = true;
}

/* -- the cursor: SCORE:e:LENGTH:ID AGENT, or SCORE:n:… --------------------------------------------------------------- */

static void cursor_put(struct om_redis_job *job, const struct place *at) {
        struct list *l = job->data;
        struct om_buf b = OM_BUF_INIT;

        om_buf_printf(&b, "%.17g:%c:%zu:", at->score, at->earlier ? 'e' : 'n', at->id.len);
        om_buf_put_span(&b, at->id);
        om_buf_put_span(&b, at->agent);
        if (om_buf_ok(&b))
                l->op->next_cursor = om_arena_copy(&l->op->arena, om_buf_span(&b));
        if (!l->op->next_cursor.p)
                om_redis_job_no_memory(job);
        om_buf_deinit(&b);
}

static int bad_cursor(struct om_error *e) { return om_error_set(e, OM_INVALID, "this cursor is none that the storage gave"); }

static int cursor_read(struct list *l, struct om_redis_job *job, struct om_span text, struct om_error *e) {
        struct om_span copy = om_redis_job_keep(job, text);
        char *end, kind;
        unsigned long long len;

        if (!copy.p)
                return -ENOMEM;
        l->at.score = strtod(copy.p, &end);
        if (end == copy.p || isnan(l->at.score) || end[0] != ':' || (end[1] != 'e' && end[1] != 'n') || end[2] != ':' || end[3] < '0' ||
                end[3] > '9')
                return bad_cursor(e);
        kind = end[1];
        len = strtoull(end + 3, &end, 10);
        if (end[0] != ':' || len > (size_t) (copy.p + copy.len - end - 1))
                return bad_cursor(e);
        l->at.earlier = kind == 'e';
        l->at.id = (struct om_span){ end + 1, (size_t) len };
        l->at.agent = (struct om_span){ end + 1 + len, (size_t) (copy.p + copy.len - end - 1) - (size_t) len };
        l->begun = true;
        return 0;
}

/* -- a round: places ------------------------------------------------------------------------------------------------- */

static int compare_text(struct om_span a, struct om_span b) {
        int r = a.len && b.len ? memcmp(a.p, b.p, a.len < b.len ? a.len : b.len) : 0;

        return r ? r : (a.len > b.len) - (a.len < b.len);
}

/* Whether `a` comes before `b`: newest first, then the greater id, then the newest record of the task. */
static bool before(const struct place *a, const struct place *b) {
        int r;

        if (a->score != b->score)
                return a->score > b->score;
        r = compare_text(a->id, b->id);
        return r ? r > 0 : !a->earlier && b->earlier;
}

static void on_places(
        struct om_redis_job *job, size_t earlier, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct list *l = job->data;
        struct place *places = om_arena_alloc(&l->memory, (reply->n / 2 + 1) * sizeof *places), *p;
        size_t n = 0;

        if (!places) {
                om_redis_job_no_memory(job);
                return;
        }
        for (size_t i = 0; i + 1 < reply->n; i += 2) {
                p = &places[n];
                *p = (struct place){ .score = strtod(om_redis_at(reply, i + 1)->text.p, NULL), .earlier = earlier, .pttl_ms = -1 };
                p->member = p->id = om_arena_copy(&l->memory, om_redis_at(reply, i)->text);
                if (!p->id.p || (earlier && om_redis_member_read(p->member, &l->memory, &p->id, &p->agent) == -ENOMEM)) {
                        om_redis_job_no_memory(job);
                        return;
                }
                if (earlier && !p->agent.p)
                        continue; /* not one of ours */
                /* It was in the other index when it was given. */
                if (earlier && l->begun && !l->at.earlier && p->score == l->at.score && om_span_eq(p->id, l->at.id) &&
                        om_span_eq(p->agent, l->at.agent))
                        continue;
                n++;
        }
        l->ours[earlier] = places;
        l->n_ours[earlier] = n;
}

static void ask_places(struct om_redis_job *job, bool earlier, size_t n) {
        const struct list *l = job->data;
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_page, 1);
        struct om_buf member = OM_BUF_INIT;
        char score[40];

        snprintf(score, sizeof score, "%.17g", l->at.score);
        if (earlier) {
                om_redis_member_put(&member, l->at.id, l->at.agent);
                if (!l->at.earlier && l->begun && member.len) { /* all of this task are still to come */
                        member.len -= l->at.agent.len;
                        member.data[member.len - 1] = 1;
                }
        } else {
                om_buf_put_span(&member, l->at.id);
        }
        om_redis_key(c, om_redis_key_index(job->store, earlier));
        om_redis_arg_text(c, score);
        om_redis_arg(c, om_buf_span(&member));
        om_redis_arg_int(c, (int64_t) n);
        om_buf_deinit(&member);
        om_redis_job_send(job, c, om_redis_key_index(job->store, earlier), on_places, earlier);
}

/* -- a round: records ------------------------------------------------------------------------------------------------ */

static void on_record(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct list *l = job->data;
        struct place *p = l->round[i];
        struct om_error e;
        struct om_span text;
        int r;

        if (reply->type != OM_REDIS_STRING)
                return;
        p->there = true;
        if (i > 0 && l->round_bytes > OM_REDIS_PAGE_BYTES) {
                p->later = true; /* the page ends before it, and the next one begins with it */
                return;
        }
        l->round_bytes += reply->text.len;
        text = om_arena_copy(&l->memory, reply->text);
        r = text.p ? om_redis_record_read(om_redis_key_result(job->store, p->id), text, p->id, -1, &l->memory, &p->entry, &e) : -ENOMEM;
        if (r == -EINVAL) {
                p->unread = true;
                unreadable(job, &e);
        } else if (r < 0) {
                om_redis_job_no_memory(job);
        }
}

static void on_pttl(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct list *l = job->data;

        l->round[i]->pttl_ms = om_redis_int(reply, -1);
}

/* An earlier record counts only with the newest one of its task. */
static void on_newest(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct list *l = job->data;

        l->round[i]->alone = om_redis_int(reply, 0) == 0;
}

static void round_end(struct om_redis_job *job) {
        struct list *l = job->data;
        int64_t now = om_now_ms();
        bool cut;
        size_t i;

        for (i = 0; i < l->n_round && job->status == 0 && !full(l) && !l->round[i]->later; i++) {
                struct place *p = l->round[i];

                l->looked_at++;
                if (!p->there || p->alone)
                        om_redis_sweep_add(job->store, p->earlier, p->member);
                if (p->there && !p->alone && !p->unread) {
                        if (!p->entry.expires_ms && p->pttl_ms > 0)
                                p->entry.expires_ms = now + p->pttl_ms + 1;
                        if (wanted(l, &p->entry, now))
                                take(job, &p->entry);
                        if (!p->earlier)
                                p->agent = p->entry.name;
                }
                l->at = *p;
                l->begun = true;
        }
        cut = i < l->n_round && l->round[i]->later && l->op->n > 0;
        l->end = l->end && i == l->n_round;
        l->at.id = om_redis_job_keep(job, l->at.id);
        l->at.agent = om_redis_job_keep(job, l->at.agent);
        om_arena_deinit(&l->memory);
        om_redis_sweep_found(job->store);
        if (job->status < 0 || l->end)
                return;
        if (cut || full(l) || l->looked_at >= LOOKED_AT)
                cursor_put(job, &l->at);
        else
                round_begin(job);
}

static enum om_redis_more more_records(struct om_redis_job *job) {
        struct list *l = job->data;
        struct om_store *s = job->store;
        size_t i = job->at;
        const struct place *p;
        struct om_redis_cmd *c;

        if (i >= l->n_round)
                return OM_REDIS_NO_MORE;
        job->at++;
        p = l->round[i];
        if (p->earlier) {
                c = om_redis_cmd_new("HGET");
                om_redis_key(c, om_redis_key_earlier(s, p->id));
                om_redis_arg(c, p->agent);
                om_redis_job_send(job, c, om_redis_key_earlier(s, p->id), on_record, i);
                c = om_redis_cmd_new("EXISTS");
                om_redis_key(c, om_redis_key_result(s, p->id));
                om_redis_job_send(job, c, om_redis_key_result(s, p->id), on_newest, i);
                return OM_REDIS_SENT;
        }
        c = om_redis_cmd_new("GET");
        om_redis_key(c, om_redis_key_result(s, p->id));
        om_redis_job_send(job, c, om_redis_key_result(s, p->id), on_record, i);
        c = om_redis_cmd_new("PTTL");
        om_redis_key(c, om_redis_key_result(s, p->id));
        om_redis_job_send(job, c, om_redis_key_result(s, p->id), on_pttl, i);
        return OM_REDIS_SENT;
}

/* Merges what both indexes gave, as far as it is sure that nothing comes between. */
static void round_read(struct om_redis_job *job) {
        struct list *l = job->data;
        size_t n = l->limit - l->op->n + 1, at[2] = { 0, 0 };

        n = n < ROUND ? n : ROUND;
        l->round = om_arena_alloc(&l->memory, (n + 1) * sizeof(struct place *));
        if (!l->round) {
                om_redis_job_no_memory(job);
                return;
        }
        for (l->n_round = 0; l->n_round < n; l->n_round++) {
                struct place *a = at[0] < l->n_ours[0] ? &l->ours[0][at[0]] : NULL, *b = at[1] < l->n_ours[1] ? &l->ours[1][at[1]] : NULL,
                             *p;

                if (!a && !b)
                        break;
                p = !b || (a && before(a, b)) ? a : b;
                if (l->since_ms && p->score < (double) l->since_ms / 1000 - 0.01)
                        break;
                at[p == b]++;
                l->round[l->n_round] = p;
        }
        l->end = l->n_round < n;
        job->at = 0;
        job->more = more_records;
        job->next = round_end;
}

static void round_begin(struct om_redis_job *job) {
        struct list *l = job->data;
        size_t n = l->limit - l->op->n + 1;

        l->round_bytes = 0;
        n = (n < ROUND ? n : ROUND) + 1; /* one may be what was given already */
        job->next = round_read;
        ask_places(job, false, n);
        ask_places(job, true, n);
}

/* -- metrics --------------------------------------------------------------------------------------------------------- */

static void metrics_begin(struct om_redis_job *job);

static void on_metrics(struct om_redis_job *job, size_t n, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct list *l = job->data;
        struct om_store_entry entry;
        size_t i;

        for (i = 0; i < reply->n && job->status == 0 && !full(l); i++) {
                const struct om_redis_reply *row = om_redis_at(reply, i);
                int r = om_redis_metric_read(row, &l->memory, &entry);

                snprintf(l->stream_id, sizeof l->stream_id, "%.*s", OM_PRI(om_redis_at(row, 0)->text));
                l->looked_at++;
                if (r == -ENOMEM)
                        om_redis_job_no_memory(job);
                else if (r == 0 && wanted(l, &entry, 0))
                        take(job, &entry);
        }
        om_arena_deinit(&l->memory);
        if (job->status < 0 || (i == reply->n && reply->n < n))
                return;
        if (full(l) || l->looked_at >= LOOKED_AT) {
                l->op->next_cursor = om_arena_copy(&l->op->arena, om_span_of(l->stream_id));
                if (!l->op->next_cursor.p)
                        om_redis_job_no_memory(job);
        } else {
                metrics_begin(job);
        }
}

static void metrics_begin(struct om_redis_job *job) {
        const struct list *l = job->data;
        size_t n = l->limit - l->op->n + 1;
        struct om_redis_cmd *c = om_redis_cmd_new("XREVRANGE");
        char from[64];

        n = n < ROUND ? n : ROUND;
        snprintf(from, sizeof from, l->stream_id[0] ? "(%s" : "+", l->stream_id);
        om_redis_key(c, om_redis_key_metrics(job->store));
        om_redis_arg_text(c, from);
        om_redis_arg_text(c, "-");
        om_redis_arg_text(c, "COUNT");
        om_redis_arg_int(c, (int64_t) n);
        om_redis_job_send(job, c, om_redis_key_metrics(job->store), on_metrics, n);
}

static int metrics_cursor(struct list *l, struct om_span cursor, struct om_error *e) {
        for (size_t i = 0; i < cursor.len; i++)
                if (!((cursor.p[i] >= '0' && cursor.p[i] <= '9') || (cursor.p[i] == '-' && i)))
                        return bad_cursor(e);
        if (cursor.len >= sizeof l->stream_id)
                return bad_cursor(e);
        snprintf(l->stream_id, sizeof l->stream_id, "%.*s", OM_PRI(cursor));
        return 0;
}

/* -- the beginning --------------------------------------------------------------------------------------------------- */

static void list_free(struct om_redis_job *job) {
        struct list *l = job->data;

        om_arena_deinit(&l->memory);
}

int om_redis_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct om_redis_job *job;
        struct list *l;
        int r;

        if (op->kind != OM_STORE_RESULTS && op->kind != OM_STORE_METRICS)
                return om_redis_list_names(s, op, e);
        r = om_redis_job_new(s, &op->op, sizeof *l, 0, &job, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        l = job->data;
        job->release = list_free;
        l->op = op;
        l->limit = op->limit == 0 ? OM_REDIS_PAGE : op->limit < OM_REDIS_PAGE_MAX ? op->limit : OM_REDIS_PAGE_MAX;
        l->since_ms = op->since_ms;
        l->until_ms = op->until_ms;
        op->entries = om_arena_alloc(&op->arena, (l->limit + 1) * sizeof op->entries[0]);
        if (!op->entries)
                om_redis_job_no_memory(job);
        l->key = om_redis_job_keep(job, op->key);
        l->name = om_redis_job_keep(job, op->name);
        l->topic = om_redis_job_keep(job, op->topic);
        l->status = om_redis_job_keep(job, op->status);
        l->at = (struct place){ .score = op->until_ms ? (double) op->until_ms / 1000 : INFINITY, .id = OM_SPAN(""), .agent = OM_SPAN("") };
        if (op->kind == OM_STORE_RESULTS)
                r = op->cursor.p ? cursor_read(l, job, op->cursor, &job->error) : 0;
        else
                r = op->cursor.p ? metrics_cursor(l, op->cursor, &job->error) : 0;
        if (r < 0 && job->status == 0)
                job->status = r;
        if (job->status == 0)
                (op->kind == OM_STORE_RESULTS ? round_begin : metrics_begin)(job);
        return om_redis_job_start(job, e);
}
