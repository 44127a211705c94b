/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What time ends.
 *
 * Four tables have entries that come due: delayed, ttl, dedupe_time, and rows kept for retention_ms. The earliest time of each is known, so
 * an idle bus sleeps until then, or for ever. Each sweep does at most SLICE_ROWS in one transaction and leaves the rest to the next turn.
 *
 * Always true of the ttl: as long as a row that expires is there, so is an entry that finds it. A task that is with a worker when its time
 * is over stays until it is settled; a retry or release of it expires then.
 *
 * Bus thread, inside the transaction.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

enum { LEASED_AGAIN_MS = 10000 };

/* -- time to live -------------------------------------------------------------------------------------------------- */

/* Ends the row for one attachment. *ret_stays when it cannot yet: it is with a worker. */
static int expire_for(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, size_t size, int64_t expires_ms, bool *ret_stays) {
        struct held *h = held_find(b, at->id, lane, seq);
        uint8_t key[ROW_KEY];
        MDB_val v;
        int r;

        if (h) {
                if (h->state != HELD_LEASED)
                        return held_expire(b, h);
                *ret_stays = true;
                return 0;
        }
        if (seq < lane_floor(&at->lanes[lane]))
                return 0;
        if (at->n_done) {
                row_key(key, at->id, lane, seq);
                r = t_get(b, b->txn, T_DONE, key, sizeof key, &v);
                if (r != MDB_NOTFOUND)
                        return r;
        } else if (seq < at->lanes[lane].cursor) {
                return 0; /* finished in this transaction */
        }
        at->group->expired++;
        group_dirty(b, at->group);
        sub_expired(b, at->group, 1);
        return row_finish(b, at, lane, seq, NULL, size, expires_ms);
}

static int expire_row(struct om_bus *b, struct log *l, uint8_t lane, uint64_t seq, bool *ret_stays) {
        struct attach *next;
        uint8_t key[ROW_KEY];
        struct row row;
        size_t size;
        MDB_val v;
        bool needed;
        int r;

        row_key(key, l->id, lane, seq);
        r = t_get(b, b->txn, T_ROWS, key, sizeof key, &v);
        if (!r)
                r = row_read(&v, &row);
        if (r)
                return r;
        size = v.mv_size;
        for (struct attach *at = l->attaches; at; at = next) {
                next = at->log_next;
                r = expire_for(b, at, lane, seq, size, row.expires_ms, ret_stays);
                if (r)
                        return r;
        }
        r = t_get(b, b->txn, T_ROWS, key, sizeof key, &v);
        if (r || *ret_stays)
                return r == MDB_NOTFOUND ? 0 : r;
        /* Nobody has it out: if nobody needs it, nothing that could replay it is lost. */
        r = row_needed(b, b->txn, l, NULL, lane, seq, &needed);
        if (r)
                return r;
        *ret_stays = needed; /* by one that is dying: its job comes first */
        if (needed)
                return 0;
        if (!l->n_attaches && seq >= l->orphan_floor)
                l->depth--;
        return row_delete(b, l, lane, seq, size, row.expires_ms);
}

static int ttl_sweep(struct om_bus *b, bool *ret_more) {
        uint8_t key[8 + ROW_KEY];
        MDB_cursor *c;
        MDB_val k, v;
        int r = mdb_cursor_open(b->txn, b->t[T_TTL], &c);

        if (r)
                return r;
        b->due_ttl = INT64_MAX;
        for (unsigned n = 0; !r; n++) {
                bool stays = false;
                struct log *l;
                uint32_t id;

                r = mdb_cursor_get(c, &k, &v, MDB_FIRST);
                if (r)
                        break;
                if (k.mv_size != sizeof key) {
                        r = MDB_CORRUPTED;
                        break;
                }
                memcpy(key, k.mv_data, sizeof key);
                if ((int64_t) rd64(key) > b->now_ms || n == SLICE_ROWS) {
                        b->due_ttl = (int64_t) rd64(key);
                        *ret_more |= b->due_ttl <= b->now_ms;
                        break;
                }
                id = rd32(key + 8);
                HASH_FIND(hh_id, b->logs, &id, sizeof id, l);
                r = t_del(b, T_TTL, key, sizeof key);
                if (!r && l && !l->dying)
                        r = expire_row(b, l, key[12], rd64(key + 13), &stays);
                if (r == MDB_NOTFOUND)
                        r = 0;
                if (!r && stays) {
                        be64(key, (uint64_t) b->now_ms + LEASED_AGAIN_MS);
                        r = t_put(b, T_TTL, key, sizeof key, "", 0);
                }
                if (!r && l && !l->dying)
                        log_wake(b, l);
        }
        mdb_cursor_close(c);
        return r == MDB_NOTFOUND ? 0 : r;
}

/* -- retention ----------------------------------------------------------------------------------------------------- */

static int64_t kept_interval(struct om_bus *b) {
        int64_t ms = b->settings.retention_ms / 10;

        return ms < 20 ? 20 : ms > 60000 ? 60000 : ms;
}
void kept_later(struct om_bus *b) {
        if (b->due_kept > b->now_ms + kept_interval(b))
                b->due_kept = b->now_ms + kept_interval(b);
}

/* Deletes from a lane's beginning what nobody needs and is old enough; stops at the first row that stays. When that one is only too young,
 * *due is when it is not; when somebody needs it, finishing it looks here again (kept_later). */
static int kept_lane(struct om_bus *b, struct log *l, uint8_t lane, unsigned *budget, int64_t *due) {
        uint8_t key[ROW_KEY];
        int r = 0;

        while (!r && *budget) {
                MDB_val k = val(key, sizeof key), v;
                struct row row;
                bool needed;
                uint64_t seq;

                row_key(key, l->id, lane, 0);
                r = mdb_cursor_get(b->rows, &k, &v, MDB_SET_RANGE);
                if (r || k.mv_size != ROW_KEY || memcmp(k.mv_data, key, 5) != 0)
                        break;
                seq = rd64((uint8_t *) k.mv_data + 5);
                r = row_read(&v, &row);
                if (!r && row.published_ms + b->settings.retention_ms > b->now_ms) {
                        int64_t when = row.published_ms + b->settings.retention_ms;

                        *due = when < *due ? when : *due;
                        break;
                }
                if (!r)
                        r = row_needed(b, b->txn, l, NULL, lane, seq, &needed);
                if (r || needed || (!l->n_attaches && seq >= l->orphan_floor))
                        break;
                --*budget;
                r = row_delete(b, l, lane, seq, v.mv_size, row.expires_ms);
        }
        return r == MDB_NOTFOUND ? 0 : r;
}

static int kept_sweep(struct om_bus *b, bool *ret_more) {
        unsigned budget = SLICE_ROWS;
        int64_t due = INT64_MAX;
        struct log *l, *tmp;
        int r = 0;

        HASH_ITER (hh_id, b->logs, l, tmp) {
                for (uint8_t i = 0; i < LANES && !r && !l->dying && l->rows > l->depth; i++)
                        if (l->lanes & 1u << i)
                                r = kept_lane(b, l, i, &budget, &due);
                if (r)
                        return r;
        }
        b->due_kept = budget ? due : b->now_ms;
        *ret_more |= budget == 0;
        return 0;
}

/* -- all of them --------------------------------------------------------------------------------------------------- */

static int first_time(struct om_bus *b, MDB_txn *txn, enum table t, int64_t *ret) {
        MDB_cursor *c;
        MDB_val k, v;
        int r = mdb_cursor_open(txn, b->t[t], &c);

        *ret = INT64_MAX;
        if (r)
                return r;
        r = mdb_cursor_get(c, &k, &v, MDB_FIRST);
        if (!r && k.mv_size >= 8)
                *ret = (int64_t) rd64(k.mv_data);
        mdb_cursor_close(c);
        return r == MDB_NOTFOUND ? 0 : r;
}

int sweep_load(struct om_bus *b, MDB_txn *txn) {
        struct log *l, *tmp;
        int r = first_time(b, txn, T_DELAYED, &b->due_delayed);

        if (!r)
                r = first_time(b, txn, T_TTL, &b->due_ttl);
        if (!r)
                r = first_time(b, txn, T_DEDUPE_TIME, &b->due_dedupe);
        b->due_kept = INT64_MAX;
        if (b->settings.retention_ms)
                HASH_ITER (hh_id, b->logs, l, tmp)
                        if (l->rows > l->depth)
                                kept_later(b);
        return r;
}

int64_t sweep_next(struct om_bus *b) {
        int64_t t = b->due_delayed;

        t = b->due_ttl < t ? b->due_ttl : t;
        t = b->due_dedupe < t ? b->due_dedupe : t;
        return b->due_kept < t ? b->due_kept : t;
}

bool sweep_due(struct om_bus *b) { return sweep_next(b) <= b->now_ms; }

int sweep_apply(struct om_bus *b) {
        bool more = false;
        int r = 0;

        if (b->due_delayed <= b->now_ms)
                r = delayed_move(b, &more);
        if (!r && b->due_ttl <= b->now_ms)
                r = ttl_sweep(b, &more);
        if (!r && b->due_dedupe <= b->now_ms)
                r = dedupe_sweep(b, &more);
        if (!r && b->due_kept <= b->now_ms)
                r = kept_sweep(b, &more);
        return r;
}
