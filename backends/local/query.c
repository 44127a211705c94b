/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking in: topics, groups, what a topic holds, dead letters, health.
 *
 * Always true: answers are of the last commit, and come after everything that was asked before them. Counts are kept, not counted, so
 * topics and groups cost nothing by how much they hold. Everything that is returned is in the query's arena.
 *
 * Bus thread, after the commit.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "state.h"

/* An answer is made in memory whole: what asks for more gets a cursor. */
enum { PAGE_MAX = 100000 };

static struct om_span number(struct om_arena *a, uint64_t n) {
        char text[24];
        int len = snprintf(text, sizeof text, "%" PRIu64, n);

        return om_arena_copy(a, (struct om_span){ text, (size_t) len });
}

/* A cursor that we gave out: a number, "" and absent meaning the beginning. */
static bool cursor_number(struct om_span text, uint64_t *ret) {
        *ret = 0;
        for (size_t i = 0; i < text.len; i++) {
                if (i >= 19 || text.p[i] < '0' || text.p[i] > '9')
                        return false;
                *ret = *ret * 10 + (uint64_t) (text.p[i] - '0');
        }
        return true;
}

static int compare_spans(struct om_span a, struct om_span b) {
        int r = memcmp(a.p, b.p, a.len < b.len ? a.len : b.len);

        return r ? r : a.len < b.len ? -1 : a.len > b.len;
}

/* -- topics -------------------------------------------------------------------------------------------------------- */

static int compare_logs(const void *a, const void *b) {
        const struct log *l = *(const struct log *const *) a, *m = *(const struct log *const *) b;

        return compare_spans((struct om_span){ l->name, l->name_len }, (struct om_span){ m->name, m->name_len });
}

/* By name; the cursor is the last name of the page before. */
static int query_topics(struct om_bus *b, struct msg_query *m, struct om_bus_query *q) {
        struct log **all = calloc(HASH_CNT(hh_name, b->topics) + 1, sizeof *all), *l, *tmp;
        size_t n = 0;

        if (!all)
                return ENOMEM;
        HASH_ITER (hh_name, b->topics, l, tmp) {
                struct om_span name = { l->name, l->name_len };

                if ((m->topic.p && !om_span_eq(m->topic, name)) || (m->cursor.p && compare_spans(name, m->cursor) <= 0))
                        continue;
                all[n++] = l;
        }
        qsort(all, n, sizeof(struct log *), compare_logs);
        if (q->limit && n > q->limit) {
                n = q->limit;
                q->next_cursor = om_arena_copy(&q->arena, (struct om_span){ all[n - 1]->name, all[n - 1]->name_len });
        }
        q->topics = om_arena_alloc(&q->arena, (n + 1) * sizeof *q->topics);
        for (size_t i = 0; q->topics && i < n; i++)
                q->topics[q->n++] = (struct om_bus_topic_row){
                        .topic = om_arena_copy(&q->arena, (struct om_span){ all[i]->name, all[i]->name_len }),
                        .depth = all[i]->depth,
                        .delayed = all[i]->delayed,
                        .published = all[i]->published,
                        .groups = all[i]->n_attaches,
                };
        free(all);
        return q->topics ? 0 : ENOMEM;
}

/* -- groups -------------------------------------------------------------------------------------------------------- */

static int compare_groups(const void *a, const void *b) {
        const struct group *g = *(const struct group *const *) a, *h = *(const struct group *const *) b;
        int r = compare_spans((struct om_span){ g->topic, g->topic_len }, (struct om_span){ h->topic, h->topic_len });

        return r ? r : compare_spans((struct om_span){ g->agent, g->agent_len }, (struct om_span){ h->agent, h->agent_len });
}

static int group_row(struct om_bus *b, struct om_bus_query *q, struct group *g) {
        uint64_t remaining = 0, pend = 0;
        int r = 0;

        for (struct attach *at = g->attaches; at; at = at->group_next) {
                remaining += attach_remaining(at);
                pend += at->n_pend;
        }
        if (pend && !g->loaded) /* what waits for a retry is only known by looking */
                r = group_load(b, b->reader, g);
        if (r)
                return r;
        q->groups[q->n++] = (struct om_bus_group_row){
                .topic = om_arena_copy(&q->arena, (struct om_span){ g->topic, g->topic_len }),
                .agent = om_arena_copy(&q->arena, (struct om_span){ g->agent, g->agent_len }),
                .lag = remaining - g->leased - g->retrying,
                .leased = g->leased,
                .retrying = g->retrying,
                .dead = g->dead,
                .finished = g->finished,
                .expired = g->expired,
        };
        return 0;
}

static int query_groups(struct om_bus *b, struct msg_query *m, struct om_bus_query *q) {
        struct group **all = calloc(HASH_CNT(hh_name, b->group_names) + 1, sizeof *all), *g, *tmp;
        size_t n = 0;
        int r = 0;

        if (!all)
                return ENOMEM;
        HASH_ITER (hh_name, b->group_names, g, tmp)
                if (!g->deleted && (!m->topic.p || om_span_eq(m->topic, (struct om_span){ g->topic, g->topic_len })))
                        all[n++] = g;
        qsort(all, n, sizeof(struct group *), compare_groups);
        if (q->limit && n > q->limit)
                n = q->limit;
        q->groups = om_arena_alloc(&q->arena, (n + 1) * sizeof *q->groups);
        if (!q->groups)
                r = ENOMEM;
        for (size_t i = 0; i < n && !r; i++)
                r = group_row(b, q, all[i]);
        free(all);
        return r;
}

/* -- what a topic holds -------------------------------------------------------------------------------------------- */

/* All lanes of a log at once: each has a cursor at its next row, and the lowest number is the oldest. */
struct lanes {
        MDB_cursor *cursors[LANES];
        uint64_t at[LANES]; /* UINT64_MAX: the lane is over */
        uint8_t prefix[LANES][5];
};

/* 0 with at[i] set, from what the cursor's last move came to. */
static int lane_at(struct lanes *s, unsigned i, int r, const MDB_val *k) {
        s->at[i] = UINT64_MAX;
        if (!r && k->mv_size == ROW_KEY && memcmp(k->mv_data, s->prefix[i], 5) == 0)
                s->at[i] = rd64((uint8_t *) k->mv_data + 5);
        return r == MDB_NOTFOUND ? 0 : r;
}

static int lanes_open(struct om_bus *b, struct lanes *s, const struct log *l, uint64_t from) {
        int r = 0;

        for (uint8_t i = 0; i < LANES && !r; i++) {
                uint8_t key[ROW_KEY];
                MDB_val k = val(key, sizeof key), v;

                s->at[i] = UINT64_MAX;
                if (!(l->lanes & 1u << i))
                        continue;
                row_key(key, l->id, i, from);
                memcpy(s->prefix[i], key, 5);
                r = mdb_cursor_open(b->reader, b->t[T_ROWS], &s->cursors[i]);
                if (!r)
                        r = lane_at(s, i, mdb_cursor_get(s->cursors[i], &k, &v, MDB_SET_RANGE), &k);
        }
        return r;
}

/* Copies the oldest row into the answer and steps over it. */
static int lanes_take(struct lanes *s, unsigned i, struct om_bus_query *q) {
        struct om_bus_held_row *to = &q->held[q->n];
        MDB_val k, v;
        struct row row;
        int r = mdb_cursor_get(s->cursors[i], &k, &v, MDB_GET_CURRENT);

        if (!r)
                r = row_read(&v, &row);
        if (r)
                return r;
        to->id = number(&q->arena, s->at[i]);
        to->record = om_arena_copy(&q->arena, row.record);
        if (!to->id.p || !to->record.p)
                return ENOMEM;
        q->n++;
        return lane_at(s, i, mdb_cursor_get(s->cursors[i], &k, &v, MDB_NEXT), &k);
}

static int query_held(struct om_bus *b, struct msg_query *m, struct om_bus_query *q) {
        struct log *l = log_find(b, m->topic);
        struct lanes lanes = { 0 };
        uint64_t from;
        size_t cap;
        int r;

        if (!l) {
                m->m.status = om_error_set(&m->m.error, OM_NOT_FOUND, "no such topic: \"%.*s\"", OM_PRI(m->topic));
                return 0;
        }
        if (!cursor_number(m->cursor, &from)) {
                m->m.status = om_error_set(&m->m.error, OM_INVALID, "cursor: not one that this bus gave out");
                return 0;
        }
        cap = q->limit && q->limit < PAGE_MAX ? q->limit : PAGE_MAX;
        if (cap > l->rows)
                cap = (size_t) l->rows;
        q->held = om_arena_alloc(&q->arena, (cap + 1) * sizeof *q->held);
        if (!q->held)
                return ENOMEM;
        r = lanes_open(b, &lanes, l, from);
        while (!r) {
                unsigned oldest = 0;

                for (unsigned i = 1; i < LANES; i++)
                        oldest = lanes.at[i] < lanes.at[oldest] ? i : oldest;
                if (lanes.at[oldest] == UINT64_MAX)
                        break;
                if (q->n == cap) {
                        q->next_cursor = number(&q->arena, lanes.at[oldest]);
                        break;
                }
                r = lanes_take(&lanes, oldest, q);
        }
        for (unsigned i = 0; i < LANES; i++)
                if (lanes.cursors[i])
                        mdb_cursor_close(lanes.cursors[i]);
        return r;
}

/* -- dead letters -------------------------------------------------------------------------------------------------- */

static int put_letter(struct om_bus_query *q, struct om_dead_letter *to, uint64_t n, const MDB_val *v) {
        struct om_dead_letter letter;
        uint64_t key;
        uint8_t lane;
        int r = letter_read(v, &letter, &key, &lane);

        if (r)
                return r;
        *to = letter;
        to->id = number(&q->arena, n);
        to->record = om_arena_copy(&q->arena, letter.record);
        to->error = om_arena_copy(&q->arena, letter.error);
        to->error_type = om_arena_copy(&q->arena, letter.error_type);
        to->worker = om_arena_copy(&q->arena, letter.worker);
        return to->id.p && to->record.p && to->error.p && to->error_type.p && to->worker.p ? 0 : ENOMEM;
}

static int letters_by_id(struct om_bus *b, struct msg_query *m, struct om_bus_query *q, struct group *g) {
        q->dead = om_arena_alloc(&q->arena, m->n_ids * sizeof *q->dead);
        if (!q->dead)
                return ENOMEM;
        for (size_t i = 0; i < m->n_ids; i++) {
                uint8_t key[12];
                uint64_t n;
                MDB_val v;
                int r;

                if (m->ids[i].len == 0 || !cursor_number(m->ids[i], &n))
                        continue;
                be32(key, g->id);
                be64(key + 4, n);
                r = t_get(b, b->reader, T_DEAD, key, sizeof key, &v);
                if (r == MDB_NOTFOUND)
                        continue;
                if (!r)
                        r = put_letter(q, &q->dead[q->n], n, &v);
                if (r)
                        return r;
                q->n++;
        }
        return 0;
}

static int query_dead(struct om_bus *b, struct msg_query *m, struct om_bus_query *q) {
        struct group *g = group_find(b, m->topic, m->agent);
        uint8_t key[12];
        MDB_cursor *c;
        MDB_val k = val(key, sizeof key), v;
        uint64_t from;
        size_t cap;
        int r;

        if (!g) {
                m->m.status = om_error_set(
                        &m->m.error, OM_NOT_FOUND, "no such group: topic \"%.*s\", agent \"%.*s\"", OM_PRI(m->topic), OM_PRI(m->agent));
                return 0;
        }
        if (m->n_ids)
                return letters_by_id(b, m, q, g);
        if (!cursor_number(m->cursor, &from)) {
                m->m.status = om_error_set(&m->m.error, OM_INVALID, "cursor: not one that this bus gave out");
                return 0;
        }
        cap = q->limit && q->limit < PAGE_MAX ? q->limit : PAGE_MAX;
        if (cap > g->dead)
                cap = (size_t) g->dead;
        q->dead = om_arena_alloc(&q->arena, (cap + 1) * sizeof *q->dead);
        if (!q->dead)
                return ENOMEM;
        r = mdb_cursor_open(b->reader, b->t[T_DEAD], &c);
        if (r)
                return r;
        be32(key, g->id);
        be64(key + 4, from);
        for (r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE); !r; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                if (k.mv_size != 12 || rd32(k.mv_data) != g->id)
                        break;
                if (q->n == cap) {
                        q->next_cursor = number(&q->arena, rd64((uint8_t *) k.mv_data + 4));
                        break;
                }
                r = put_letter(q, &q->dead[q->n], rd64((uint8_t *) k.mv_data + 4), &v);
                if (r)
                        break;
                q->n++;
        }
        mdb_cursor_close(c);
        return r == MDB_NOTFOUND ? 0 : r;
}

/* -- health -------------------------------------------------------------------------------------------------------- */

static int query_health(struct om_bus *b, struct om_bus_query *q) {
        static const char *const names[] = { "always", "interval", "memory" };
        struct om_buf out = OM_BUF_INIT;
        unsigned deleting = 0;

        om_buf_lit(&out, "{\"path\":");
        om_buf_json_string(&out, b->path, strlen(b->path));
        if (b->settings.durability == DURABILITY_ALWAYS)
                om_buf_lit(&out, ",\"durability\":\"strong\"");
        else if (b->settings.durability == DURABILITY_INTERVAL)
                om_buf_printf(&out,
                        ",\"durability\":\"weak\",\"why\":\"durability=interval: a power cut loses up to %" PRId64
                        " ms, and may damage the file\"",
                        b->settings.sync_interval_ms);
        else
                om_buf_lit(&out, ",\"durability\":\"weak\",\"why\":\"durability=memory: a power cut loses everything\"");
        om_buf_printf(&out, ",\"sync\":\"%s\",\"file_bytes\":%" PRIu64 ",\"map_bytes\":%zu,\"task_bytes\":%" PRIu64,
                names[b->settings.durability], env_used_bytes(b), b->map_bytes, b->bytes);
        om_buf_printf(&out, ",\"topics\":%u,\"groups\":%u,\"commits\":%" PRIu64, HASH_CNT(hh_name, b->topics),
                HASH_CNT(hh_name, b->group_names), b->commits);
        for (struct job *j = b->jobs; j; j = j->next)
                deleting++;
        om_buf_printf(&out, ",\"deleting\":%u", deleting);
        om_buf_printf(&out, ",\"last_commit_us\":%" PRIu64 ",\"tasks_per_commit\":%.1f}", b->last_commit_ns / 1000,
                b->commits ? (double) b->commit_tasks / (double) b->commits : 0.0);
        if (om_buf_ok(&out))
                q->info = om_arena_copy(&q->arena, om_buf_span(&out));
        om_buf_deinit(&out);
        return q->info.p ? 0 : ENOMEM;
}

void query_run(struct om_bus *b, struct msg_query *m) {
        struct om_bus_query *q = (struct om_bus_query *) m->m.op; /* ours until done() */
        int r;

        q->n = 0;
        q->next_cursor = q->info = OM_SPAN_NONE;
        if (b->failed && q->type != OM_QUERY_HEALTH) {
                m->m.status = om_error_set(&m->m.error, OM_UNAVAILABLE, "embedded bus in %s: not available", b->path);
                return;
        }
        r = b->failed ? 0 : reader_begin(b);
        if (!r) {
                switch (q->type) {
                case OM_QUERY_TOPICS:
                        r = query_topics(b, m, q);
                        break;
                case OM_QUERY_GROUPS:
                        r = query_groups(b, m, q);
                        break;
                case OM_QUERY_HELD:
                        r = query_held(b, m, q);
                        break;
                case OM_QUERY_DEAD:
                        r = query_dead(b, m, q);
                        break;
                case OM_QUERY_HEALTH:
                        r = query_health(b, q);
                        break;
                }
                reader_end(b);
        }
        if (r) {
                env_error(&m->m.error, b, r, "cannot read");
                m->m.error.kind = OM_INTERNAL;
                m->m.status = -EIO;
        }
}
