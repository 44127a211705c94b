/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a group starts, and what it had before a restart.
 *
 * Always true:
 *   - an attachment's `base` makes log.in_total − base − finished the number of rows that it has not finished, so a publish touches no
 *     attachment;
 *   - a log's `depth` counts the rows that some attachment needs, or, without any, those that wait for a first group;
 *   - a group is loaded (its unfinished rows between floor and mark are held again) when it is first served or looked at, not at start.
 *
 * What an interrupted attempt counts: a row below the mark without a pend row was handed out once before the death, so it comes back with
 * attempt 2. Of rows with one key only the first can have been out; the others were parked and come back as they were.
 *
 * Bus thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

/* -- starting ------------------------------------------------------------------------------------------------------ */

/* The first row of a lane that was published at or after `ms`, by halving; `end` when there is none. */
static int lane_at_time(MDB_cursor *c, struct log *l, uint8_t lane, int64_t ms, uint64_t *ret) {
        uint64_t low = 0, high = l->next_seq;

        while (low < high) {
                uint64_t mid = low + (high - low) / 2, seq;
                uint8_t key[ROW_KEY];
                MDB_val k = val(key, sizeof key), v;
                struct row row;
                int r;

                row_key(key, l->id, lane, mid);
                r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE);
                if (r && r != MDB_NOTFOUND)
                        return r;
                if (r == MDB_NOTFOUND || memcmp(k.mv_data, key, 5) != 0) {
                        high = mid;
                        continue;
                }
                seq = rd64((uint8_t *) k.mv_data + 5);
                r = row_read(&v, &row);
                if (r)
                        return r;
                if (row.published_ms >= ms)
                        high = mid;
                else
                        low = seq + 1;
        }
        *ret = low;
        return 0;
}

/* Counts a lane's rows from `from` on, and those that nobody needs yet. */
static int lane_count(struct om_bus *b, MDB_cursor *c, struct log *l, uint8_t lane, uint64_t from, uint64_t *n, uint64_t *n_new) {
        uint8_t key[ROW_KEY];
        MDB_val k = val(key, sizeof key), v;
        int r;

        row_key(key, l->id, lane, from);
        for (r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE); !r; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                bool needed = false;

                if (k.mv_size != ROW_KEY || memcmp(k.mv_data, key, 5) != 0)
                        break;
                ++*n;
                if (l->n_attaches)
                        r = row_needed(b, b->txn, l, NULL, lane, rd64((uint8_t *) k.mv_data + 5), &needed);
                if (r)
                        return r;
                *n_new += !needed;
        }
        return r == MDB_NOTFOUND ? 0 : r;
}

int attach_start(struct om_bus *b, struct group *g, struct log *l, enum om_start start, int64_t start_ms, struct attach **ret) {
        bool first = l->n_attaches == 0, plain;
        uint64_t from[LANES], n = 0, n_new = 0, at_least;
        int r = 0;

        if (start == OM_START_DEFAULT && !first)
                start = OM_START_NEW;
        at_least = start == OM_START_NEW ? l->next_seq : start == OM_START_DEFAULT ? l->orphan_floor : 0;
        for (unsigned i = 0; i < LANES; i++)
                from[i] = at_least;
        /* The usual cases need no look at the rows. */
        plain = start == OM_START_NEW || (at_least == 0 && start != OM_START_TIME && l->rows == l->depth && (first || l->rows == 0));
        if (plain)
                n = start == OM_START_NEW ? 0 : l->rows;
        for (uint8_t i = 0; i < LANES && !r && !plain; i++) {
                if (!(l->lanes & 1u << i))
                        continue;
                if (start == OM_START_TIME)
                        r = lane_at_time(b->rows, l, i, start_ms, &from[i]);
                if (!r)
                        r = lane_count(b, b->rows, l, i, from[i], &n, &n_new);
        }
        if (!r)
                r = attach_make(b, l, g, at_least, n, ret);
        if (r)
                return r;
        for (unsigned i = 0; i < LANES; i++) {
                struct lane *ln = &(*ret)->lanes[i];

                ln->floor = ln->mark = ln->handed = ln->cursor = from[i];
        }
        l->depth = first ? n : l->depth + n_new;
        log_dirty(b, l);
        return 0;
}

int group_start(struct om_bus *b, struct group *g, enum om_start start, int64_t start_ms) {
        struct om_span topic = { g->topic, g->topic_len };
        struct log *l, *tmp;
        struct attach *at;
        int r = 0;

        if (!g->pattern) {
                l = log_find(b, topic);
                if (!l)
                        r = log_make(b, topic, &l);
                return r ? r : attach_start(b, g, l, start, start_ms, &at);
        }
        HASH_ITER (hh_name, b->topics, l, tmp) {
                bool there = false;

                for (at = g->attaches; at; at = at->group_next)
                        there |= at->log == l;
                if (!there && om_topic_matches(topic, (struct om_span){ l->name, l->name_len }))
                        r = attach_start(b, g, l, start, start_ms, &at);
                if (r)
                        return r;
        }
        return 0;
}

/* -- loading ------------------------------------------------------------------------------------------------------- */

struct loading {
        struct om_bus *b;
        MDB_txn *txn;
        MDB_cursor *rows;
        struct local_delivery **out; /* sorted by id */
        size_t n_out;
};

static int compare_ids(const struct held_id *a, const struct held_id *b) {
        if (a->attach != b->attach)
                return a->attach < b->attach ? -1 : 1;
        if (a->lane != b->lane)
                return a->lane < b->lane ? -1 : 1;
        return a->seq < b->seq ? -1 : a->seq > b->seq;
}
static int compare_deliveries(const void *a, const void *b) {
        return compare_ids(&(*(struct local_delivery *const *) a)->id, &(*(struct local_delivery *const *) b)->id);
}
static int compare_id_delivery(const void *id, const void *d) { return compare_ids(id, &(*(struct local_delivery *const *) d)->id); }

static int pend_get(struct loading *ld, struct attach *at, uint8_t lane, uint64_t seq, bool *ret, uint32_t *attempts, int64_t *due) {
        uint8_t key[ROW_KEY];
        MDB_val v;
        int r;

        *ret = false;
        if (!at->n_pend)
                return 0;
        row_key(key, at->id, lane, seq);
        r = t_get(ld->b, ld->txn, T_PEND, key, sizeof key, &v);
        if (r)
                return r == MDB_NOTFOUND ? 0 : r;
        if (v.mv_size != 12)
                return MDB_CORRUPTED;
        *ret = true;
        *attempts = rd32(v.mv_data);
        *due = (int64_t) rd64((uint8_t *) v.mv_data + 4);
        return 0;
}

/* A row between floor and mark (or above, when it is with the core): held again, in the state that it was in. */
static int load_row(struct loading *ld, struct attach *at, uint8_t lane, uint64_t seq, const MDB_val *v) {
        struct held_id id = { at->id, lane, seq };
        struct local_delivery **out;
        uint32_t attempts = 0;
        int64_t due = 0;
        struct held *h;
        struct row row;
        bool pend, busy;
        int r = row_read(v, &row);

        if (!r)
                r = pend_get(ld, at, lane, seq, &pend, &attempts, &due);
        if (r)
                return r;
        h = held_new(ld->b, at, lane, seq, &row, v->mv_size);
        if (!h)
                return ENOMEM;
        h->has_pend = pend;
        busy = row.key && key_busy(at->group, row.key);
        out = ld->n_out ? bsearch(&id, ld->out, ld->n_out, sizeof *ld->out, compare_id_delivery) : NULL;
        if (out) {
                h->attempts = (*out)->attempts;
                h->state = HELD_LEASED;
                h->delivery = *out;
                (*out)->held = h;
                at->group->leased++;
                held_is_out(ld->b, h); /* the disk may not know yet */
                return key_hold(h);
        }
        h->attempts = pend ? attempts : seq < at->lanes[lane].mark && !busy ? 1 : 0;
        if (busy)
                return key_park(h);
        r = key_hold(h);
        if (!r && due > ld->b->now_ms)
                return held_retry(ld->b, h, due);
        if (!r)
                held_ready(ld->b, h);
        return r;
}

static int load_lane(struct loading *ld, struct attach *at, uint8_t lane) {
        struct lane *ln = &at->lanes[lane];
        uint64_t limit = ln->mark;
        uint8_t key[ROW_KEY], mark[ROW_KEY];
        MDB_val k = val(key, sizeof key), v, done;
        int r;

        for (size_t i = 0; i < ld->n_out; i++)
                if (ld->out[i]->id.attach == at->id && ld->out[i]->id.lane == lane && ld->out[i]->id.seq >= limit)
                        limit = ld->out[i]->id.seq + 1;
        row_key(key, at->log->id, lane, ln->floor);
        for (r = mdb_cursor_get(ld->rows, &k, &v, MDB_SET_RANGE); !r; r = mdb_cursor_get(ld->rows, &k, &v, MDB_NEXT)) {
                uint64_t seq;

                if (k.mv_size != ROW_KEY || memcmp(k.mv_data, key, 5) != 0)
                        break;
                seq = rd64((uint8_t *) k.mv_data + 5);
                if (seq >= limit)
                        break;
                if (at->n_done) {
                        row_key(mark, at->id, lane, seq);
                        r = t_get(ld->b, ld->txn, T_DONE, mark, sizeof mark, &done);
                        if (!r)
                                continue;
                        if (r != MDB_NOTFOUND)
                                return r;
                }
                r = load_row(ld, at, lane, seq, &v);
                if (r)
                        return r;
        }
        if (r && r != MDB_NOTFOUND)
                return r;
        if (ln->cursor < limit)
                ln->cursor = limit;
        return 0;
}

static int load_deliveries(struct loading *ld, struct group *g) {
        if (!g->sub || !g->sub->n_out)
                return 0;
        ld->out = calloc(g->sub->n_out, sizeof *ld->out);
        if (!ld->out)
                return ENOMEM;
        for (struct local_delivery *d = g->sub->out; d; d = d->next) {
                if (!d->id.attach) /* revoked before */
                        continue;
                ld->out[ld->n_out++] = d;
                if (d->key) { /* busy even before its row is met */
                        struct key_queue *q = key_get(g, d->key, true);

                        if (!q)
                                return ENOMEM;
                        q->busy = true;
                }
        }
        qsort(ld->out, ld->n_out, sizeof *ld->out, compare_deliveries);
        return 0;
}

/* Deliveries whose rows are gone: the core is told, and their keys are free. */
static void revoke_lost(struct loading *ld, struct group *g) {
        for (size_t i = 0; i < ld->n_out; i++) {
                struct local_delivery *d = ld->out[i];
                struct key_queue *q = d->key ? key_get(g, d->key, false) : NULL;

                if (d->held)
                        continue;
                if (q && !q->holder)
                        key_release(ld->b, g, d->key);
                d->id.attach = 0;
                g->sub->batch = news_batch(ld->b, g->sub, true, g->sub->batch);
                if (g->sub->batch)
                        g->sub->batch->items[g->sub->batch->n++] = &d->d;
        }
}

int group_load(struct om_bus *b, MDB_txn *txn, struct group *g) {
        struct loading ld = { .b = b, .txn = txn };
        int r;

        if (g->loaded)
                return 0;
        g->loaded = true;
        r = load_deliveries(&ld, g);
        if (!r)
                r = mdb_cursor_open(txn, b->t[T_ROWS], &ld.rows);
        for (struct attach *at = g->attaches; at && !r; at = at->group_next)
                for (uint8_t i = 0; i < LANES && !r; i++)
                        if (at->log->lanes & 1u << i)
                                r = load_lane(&ld, at, i);
        if (!r)
                revoke_lost(&ld, g);
        if (ld.rows)
                mdb_cursor_close(ld.rows);
        free(ld.out);
        return r;
}

void group_revoke(struct om_bus *b, struct group *g, struct attach *only) {
        struct om_bus_sub *s = g->sub;

        if (!s)
                return;
        for (struct local_delivery *d = s->out; d; d = d->next) {
                if (!d->held || (only && d->id.attach != only->id)) /* without a held it was settled in this turn */
                        continue;
                d->held->delivery = NULL;
                d->held = NULL;
                d->id.attach = 0;
                s->batch = news_batch(b, s, true, s->batch);
                if (s->batch)
                        s->batch->items[s->batch->n++] = &d->d;
        }
}
