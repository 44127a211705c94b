/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks into logs: limits, idempotency keys, delays, times to live.
 *
 * Always true:
 *   - a plain task is one put of its row; what is the same for a batch (counters of the topic) is written once, by model_flush();
 *   - a log holds only what is ready: a task with a delay waits in the table `delayed`, ordered by when it is due, and gets its place in
 *     the log's order then;
 *   - a task with a ttl has an entry in the table `ttl` as long as its row is there, so that time alone finds it;
 *   - an idempotency key counts for its topic for idempotency_window_ms. The table is keyed by a hash; the text decides. A topic that was
 *     deleted and made again has forgotten, because the hash is of the log's id, not of its name.
 *
 * Bus thread, inside the transaction.
 */
#include <errno.h>

#include "state.h"

int row_read(const MDB_val *v, struct row *ret) {
        const uint8_t *p = v->mv_data, *end = p + v->mv_size;
        uint8_t flags;

        if (v->mv_size < 9)
                return MDB_CORRUPTED;
        flags = *p++;
        ret->published_ms = (int64_t) rd64(p);
        p += 8;
        ret->expires_ms = 0;
        ret->key = 0;
        if (flags & ROW_EXPIRES) {
                if (end - p < 8)
                        return MDB_CORRUPTED;
                ret->expires_ms = (int64_t) rd64(p);
                p += 8;
        }
        if (flags & ROW_KEYED) {
                if (end - p < 8)
                        return MDB_CORRUPTED;
                ret->key = rd64(p);
                p += 8;
        }
        ret->record = (struct om_span){ (const char *) p, (size_t) (end - p) };
        return 0;
}

static void ttl_key(uint8_t key[8 + ROW_KEY], int64_t expires_ms, const struct log *l, uint8_t lane, uint64_t seq) {
        be64(key, (uint64_t) expires_ms);
        row_key(key + 8, l->id, lane, seq);
}

int row_put(struct om_bus *b, struct log *l, uint8_t lane, int64_t published_ms, int64_t expires_ms, uint64_t key, struct om_span record) {
        uint64_t seq = l->next_seq;
        uint8_t k[ROW_KEY], ttl[8 + ROW_KEY], *p;
        MDB_val mk, mv;
        int r;

        row_key(k, l->id, lane, seq);
        mk = val(k, sizeof k);
        mv = val(NULL, 9 + (expires_ms ? 8u : 0u) + (key ? 8u : 0u) + record.len);
        if (memcmp(k, b->top_row, ROW_KEY) > 0) { /* the table's end: no search, and pages are filled */
                r = mdb_cursor_put(b->rows, &mk, &mv, MDB_RESERVE | MDB_APPEND);
                memcpy(b->top_row, k, ROW_KEY);
        } else {
                r = mdb_cursor_put(b->rows, &mk, &mv, MDB_RESERVE);
        }
        if (r)
                return r;
        p = mv.mv_data;
        *p++ = (uint8_t) ((expires_ms ? ROW_EXPIRES : 0) | (key ? ROW_KEYED : 0));
        be64(p, (uint64_t) published_ms);
        p += 8;
        if (expires_ms) {
                be64(p, (uint64_t) expires_ms);
                p += 8;
        }
        if (key) {
                be64(p, key);
                p += 8;
        }
        memcpy(p, record.p, record.len);
        if (expires_ms) {
                ttl_key(ttl, expires_ms, l, lane, seq);
                r = t_put(b, T_TTL, ttl, sizeof ttl, "", 0);
                if (expires_ms < b->due_ttl)
                        b->due_ttl = expires_ms;
        }
        l->next_seq++;
        l->in_total++;
        l->rows++;
        l->depth++;
        l->bytes += mv.mv_size;
        b->bytes += mv.mv_size;
        l->lanes |= (uint16_t) (1u << lane);
        l->lane_end[lane] = seq + 1;
        log_dirty(b, l);
        log_wake(b, l);
        b->commit_tasks++;
        return r;
}

int row_delete(struct om_bus *b, struct log *l, uint8_t lane, uint64_t seq, size_t size, int64_t expires_ms) {
        uint8_t k[ROW_KEY], ttl[8 + ROW_KEY];
        MDB_val mk, mv;
        int r;

        row_key(k, l->id, lane, seq);
        mk = val(k, sizeof k);
        r = mdb_cursor_get(b->rows, &mk, &mv, MDB_SET);
        if (r == MDB_NOTFOUND)
                return 0;
        if (!r)
                r = mdb_cursor_del(b->rows, 0);
        if (r)
                return r;
        l->rows--;
        l->bytes -= size;
        b->bytes -= size;
        log_dirty(b, l);
        if (!expires_ms)
                return 0;
        ttl_key(ttl, expires_ms, l, lane, seq);
        return t_del(b, T_TTL, ttl, sizeof ttl);
}

/* -- idempotency keys ---------------------------------------------------------------------------------------------- */

enum { DEDUPE_KEY = 16 };

static void dedupe_key(uint8_t key[DEDUPE_KEY], const struct log *l, struct om_span text) {
        be64(key, hash64(text.p, text.len, l->id));
        be64(key + 8, hash64(text.p, text.len, ~(uint64_t) l->id));
}

/* The id of the first task with this key: 0 and *ret_id, MDB_NOTFOUND, or another code. */
static int dedupe_get(struct om_bus *b, const uint8_t key[DEDUPE_KEY], const struct log *l, struct om_span text, struct om_span *ret_id) {
        MDB_val v;
        const uint8_t *p;
        size_t id_len;
        int r = t_get(b, b->txn, T_DEDUPE, key, DEDUPE_KEY, &v);

        if (r)
                return r;
        p = v.mv_data;
        if (v.mv_size < 13 || v.mv_size < 13u + p[12])
                return MDB_CORRUPTED;
        id_len = p[12];
        if ((int64_t) rd64(p) <= b->now_ms || rd32(p + 8) != l->id || v.mv_size != 13 + id_len + text.len ||
                memcmp(p + 13 + id_len, text.p, text.len) != 0)
                return MDB_NOTFOUND;
        *ret_id = (struct om_span){ (const char *) p + 13, id_len };
        return 0;
}

static int dedupe_put(struct om_bus *b, const uint8_t key[DEDUPE_KEY], const struct log *l, struct om_span text, struct om_span id) {
        int64_t expires = b->now_ms + b->settings.idempotency_window_ms;
        uint8_t v[13 + 255 + OM_NAME_MAX], t[8 + DEDUPE_KEY];
        int r;

        if (id.len > 207 || text.len > OM_NAME_MAX)
                return EINVAL;
        be64(v, (uint64_t) expires);
        be32(v + 8, l->id);
        v[12] = (uint8_t) id.len;
        memcpy(v + 13, id.p, id.len);
        memcpy(v + 13 + id.len, text.p, text.len);
        r = t_put(b, T_DEDUPE, key, DEDUPE_KEY, v, 13 + id.len + text.len);
        if (r)
                return r;
        be64(t, (uint64_t) expires);
        memcpy(t + 8, key, DEDUPE_KEY);
        if (expires < b->due_dedupe)
                b->due_dedupe = expires;
        return t_put(b, T_DEDUPE_TIME, t, sizeof t, "", 0);
}

int dedupe_sweep(struct om_bus *b, bool *ret_more) {
        MDB_cursor *c;
        MDB_val k, v;
        unsigned n = 0;
        int r = mdb_cursor_open(b->txn, b->t[T_DEDUPE_TIME], &c);

        if (r)
                return r;
        b->due_dedupe = INT64_MAX;
        for (r = mdb_cursor_get(c, &k, &v, MDB_FIRST); !r; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                int64_t due = (int64_t) rd64(k.mv_data);
                uint8_t key[DEDUPE_KEY];

                if (due > b->now_ms || n++ == SLICE_ROWS) {
                        b->due_dedupe = due;
                        *ret_more |= due <= b->now_ms;
                        break;
                }
                memcpy(key, (uint8_t *) k.mv_data + 8, DEDUPE_KEY);
                r = mdb_cursor_del(c, 0);
                if (r)
                        break;
                r = t_get(b, b->txn, T_DEDUPE, key, DEDUPE_KEY, &v);
                if (!r && v.mv_size >= 8 && (int64_t) rd64(v.mv_data) <= b->now_ms) /* not one that was written anew since */
                        r = t_del(b, T_DEDUPE, key, DEDUPE_KEY);
                if (r && r != MDB_NOTFOUND)
                        break;
        }
        mdb_cursor_close(c);
        return r == MDB_NOTFOUND ? 0 : r;
}

/* -- delays -------------------------------------------------------------------------------------------------------- */

enum { DELAYED_HEAD = 4 + 1 + 8 + 8 + 8 };

static int delayed_put(struct om_bus *b, struct log *l, const struct publish_item *item, int64_t expires_ms) {
        uint8_t k[16] = { 0 }, *p;
        MDB_val mk = val(k, sizeof k), mv = val(NULL, DELAYED_HEAD + item->record.len);
        int64_t due = b->now_ms + item->delay_ms;
        int r;

        be64(k, (uint64_t) due);
        be64(k + 8, b->next_delayed++);
        b->meta_dirty = true;
        r = mdb_put(b->txn, b->t[T_DELAYED], &mk, &mv, MDB_RESERVE);
        if (r)
                return r;
        p = mv.mv_data;
        be32(p, l->id);
        p[4] = item->lane;
        be64(p + 5, (uint64_t) b->now_ms);
        be64(p + 13, (uint64_t) expires_ms);
        be64(p + 21, item->key);
        memcpy(p + DELAYED_HEAD, item->record.p, item->record.len);
        l->delayed++;
        log_dirty(b, l);
        if (due < b->due_delayed)
                b->due_delayed = due;
        b->commit_tasks++;
        return 0;
}

/* Puts into their logs what is due. */
int delayed_move(struct om_bus *b, bool *ret_more) {
        struct om_buf copy = OM_BUF_INIT;
        MDB_cursor *c;
        MDB_val k, v;
        unsigned n = 0;
        int r = mdb_cursor_open(b->txn, b->t[T_DELAYED], &c);

        if (r)
                return r;
        b->due_delayed = INT64_MAX;
        for (r = mdb_cursor_get(c, &k, &v, MDB_FIRST); !r; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                int64_t due = (int64_t) rd64(k.mv_data);
                const uint8_t *p;
                struct log *l;
                uint32_t id;

                if (due > b->now_ms || n++ == SLICE_ROWS) {
                        b->due_delayed = due;
                        *ret_more |= due <= b->now_ms;
                        break;
                }
                if (v.mv_size < DELAYED_HEAD) {
                        r = MDB_CORRUPTED;
                        break;
                }
                om_buf_clear(&copy); /* a page of the map may move while another table is written */
                om_buf_put(&copy, v.mv_data, v.mv_size);
                if (!om_buf_ok(&copy)) {
                        r = ENOMEM;
                        break;
                }
                p = (const uint8_t *) copy.data;
                id = rd32(p);
                HASH_FIND(hh_id, b->logs, &id, sizeof id, l);
                r = mdb_cursor_del(c, 0);
                if (!r && l && !l->dying) {
                        l->delayed--;
                        r = row_put(b, l, p[4] < LANES ? p[4] : LANES - 1, (int64_t) rd64(p + 5), (int64_t) rd64(p + 13), rd64(p + 21),
                                (struct om_span){ copy.data + DELAYED_HEAD, copy.len - DELAYED_HEAD });
                }
                if (r)
                        break;
        }
        mdb_cursor_close(c);
        om_buf_deinit(&copy);
        return r == MDB_NOTFOUND ? 0 : r;
}

/* -- publishing ---------------------------------------------------------------------------------------------------- */

int publish_allowed(struct om_bus *b, const struct publish_item *items, size_t n, const char **ret_why) {
        uint64_t all = 0;

        for (size_t i = 0; i < n; i++) {
                struct log *l = b->settings.max_topic_bytes ? log_find(b, items[i].topic) : NULL;

                all += items[i].record.len;
                if (b->settings.max_topic_bytes && (l ? l->bytes : 0) + all > (uint64_t) b->settings.max_topic_bytes) {
                        *ret_why = "the topic is full (max_topic_bytes of the embedded bus)";
                        return -ENOBUFS;
                }
        }
        if (b->settings.max_bytes && b->bytes + all > (uint64_t) b->settings.max_bytes) {
                *ret_why = "the bus is full (max_bytes of the embedded bus)";
                return -ENOBUFS;
        }
        return 0;
}

int publish_one(struct om_bus *b, const struct publish_item *item, struct om_outcome *outcome) {
        struct log *l = b->last_log;
        int64_t expires = item->ttl_ms ? b->now_ms + item->ttl_ms : 0;
        uint8_t key[DEDUPE_KEY];
        struct om_span id;
        int r = 0;

        if (!l || l->name_len != item->topic.len || memcmp(l->name, item->topic.p, item->topic.len) != 0)
                l = log_find(b, item->topic);
        if (!l)
                r = log_make(b, item->topic, &l);
        if (r)
                return r;
        b->last_log = l;
        if (item->idempotency_key.p && b->settings.idempotency_window_ms) {
                dedupe_key(key, l, item->idempotency_key);
                r = dedupe_get(b, key, l, item->idempotency_key, &id);
                if (!r) {
                        if (outcome) {
                                outcome->duplicate = true;
                                memcpy(outcome->id, id.p, id.len);
                                outcome->id[id.len] = '\0';
                        }
                        return 0;
                }
                if (r == MDB_NOTFOUND)
                        r = dedupe_put(b, key, l, item->idempotency_key, item->id);
                if (r)
                        return r;
        }
        l->published++;
        if (item->delay_ms > 0)
                return delayed_put(b, l, item, expires);
        return row_put(b, l, item->lane, b->now_ms, expires, item->key, item->record);
}

int publish_apply(struct om_bus *b, struct msg_publish *m) {
        for (size_t i = 0; i < m->n; i++) {
                struct om_outcome *o = &m->outcomes[i];
                int r;

                o->status = 0;
                o->duplicate = false;
                o->id[0] = '\0';
                o->why = NULL;
                o->status = publish_allowed(b, &m->items[i], 1, &o->why);
                if (o->status)
                        continue;
                r = publish_one(b, &m->items[i], o);
                if (r)
                        return r;
        }
        return 0;
}
