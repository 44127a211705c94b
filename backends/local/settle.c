/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verdicts: finished, later, at once, dead; and what finishing a row means on the disk.
 *
 * Always true:
 *   - a verdict and all that belongs to it (an ack's outputs, a dead letter) are in one transaction;
 *   - a row that nobody else needs goes with the verdict: with one group an ack is one delete. Where others need it, or retention keeps it,
 *     the attachment's floor says that it is finished, or a done mark where an older row is still open;
 *   - a verdict that cannot be taken (outputs into a full topic) leaves the delivery as it was, with the core.
 *
 * Bus thread, inside the transaction; settle_committed() after its commit.
 */
#include <errno.h>

#include "state.h"

static int attach_needs(struct om_bus *b, MDB_txn *txn, struct attach *at, uint8_t lane, uint64_t seq, bool *ret) {
        uint8_t key[ROW_KEY];
        MDB_val v;
        int r;

        *ret = seq >= lane_floor(&at->lanes[lane]) && (!at->dying || seq < at->end);
        if (!*ret || !at->n_done)
                return 0;
        row_key(key, at->id, lane, seq);
        r = t_get(b, txn, T_DONE, key, sizeof key, &v);
        *ret = r == MDB_NOTFOUND;
        return *ret ? 0 : r;
}

/* One that is dying counts as well: its job has the last word on what it had open, so that each row leaves `depth` once. */
int row_needed(struct om_bus *b, MDB_txn *txn, struct log *l, struct attach *but, uint8_t lane, uint64_t seq, bool *ret) {
        struct attach *lists[] = { l->attaches, l->dying_attaches };

        *ret = false;
        for (int i = 0; i < 2; i++)
                for (struct attach *at = lists[i]; at; at = at->log_next) {
                        int r = at == but ? 0 : attach_needs(b, txn, at, lane, seq, ret);

                        if (r || *ret)
                                return r;
                }
        return 0;
}

int pend_put(struct om_bus *b, struct held *h, uint32_t attempts, int64_t due_ms) {
        uint8_t key[ROW_KEY], v[12];

        row_key(key, h->at->id, (uint8_t) h->id.lane, h->id.seq);
        be32(v, attempts);
        be64(v + 4, (uint64_t) due_ms);
        if (!h->has_pend) {
                h->has_pend = true;
                h->at->n_pend++;
        }
        attach_dirty(b, h->at);
        return t_put(b, T_PEND, key, sizeof key, v, sizeof v);
}

static int pend_delete(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq) {
        uint8_t key[ROW_KEY];
        MDB_val k = val(key, sizeof key);
        int r;

        row_key(key, at->id, lane, seq);
        r = mdb_del(b->txn, b->t[T_PEND], &k, NULL);
        if (!r)
                at->n_pend--;
        return r == MDB_NOTFOUND ? 0 : r;
}

int row_finish(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, struct held *h, size_t size, int64_t expires_ms) {
        struct log *l = at->log;
        bool pend = h ? h->has_pend : at->n_pend > 0, needed;
        int r = row_needed(b, b->txn, l, at, lane, seq, &needed);

        if (!r && pend)
                r = pend_delete(b, at, lane, seq);
        if (r)
                return r;
        if (h)
                held_free(b, h);
        at->finished++;
        attach_dirty(b, at);
        if (!needed) {
                l->depth--;
                log_dirty(b, l);
                if (!b->settings.retention_ms || l->private)
                        return row_delete(b, l, lane, seq, size, expires_ms);
                kept_later(b);
        }
        if (seq >= lane_floor(&at->lanes[lane])) {
                uint8_t key[ROW_KEY];

                row_key(key, at->id, lane, seq);
                at->n_done++;
                r = t_put(b, T_DONE, key, sizeof key, "", 0);
        }
        return r;
}

/* -- dead letters -------------------------------------------------------------------------------------------------- */

enum { LETTER_HEAD = 4 + 8 + 8 + 1 + 4 + 4 + 4 };

static int letter_put(struct om_bus *b, struct group *g, const struct held *h, const struct om_dead_letter *d) {
        uint8_t k[12] = { 0 }, *p;
        MDB_val mk = val(k, sizeof k), mv;
        int r;

        be32(k, g->id);
        be64(k + 4, g->dlq_next++);
        mv = val(NULL, LETTER_HEAD + d->error.len + d->error_type.len + d->worker.len + d->record.len);
        r = mdb_put(b->txn, b->t[T_DEAD], &mk, &mv, MDB_RESERVE);
        if (r)
                return r;
        p = mv.mv_data;
        be32(p, d->attempts);
        be64(p + 4, (uint64_t) d->failed_ms);
        be64(p + 12, h->key);
        p[20] = (uint8_t) h->id.lane;
        be32(p + 21, (uint32_t) d->error.len);
        be32(p + 25, (uint32_t) d->error_type.len);
        be32(p + 29, (uint32_t) d->worker.len);
        p += LETTER_HEAD;
        for (int i = 0; i < 4; i++) {
                struct om_span s = i == 0 ? d->error : i == 1 ? d->error_type : i == 2 ? d->worker : d->record;

                if (s.len)
                        memcpy(p, s.p, s.len);
                p += s.len;
        }
        g->dead++;
        group_dirty(b, g);
        return 0;
}

int letter_read(const MDB_val *v, struct om_dead_letter *ret, uint64_t *ret_key, uint8_t *ret_lane) {
        const uint8_t *p = v->mv_data;
        const char *text = (const char *) p + LETTER_HEAD;
        uint64_t error, type, worker;

        if (v->mv_size < LETTER_HEAD)
                return MDB_CORRUPTED;
        error = rd32(p + 21);
        type = rd32(p + 25);
        worker = rd32(p + 29);
        if (LETTER_HEAD + error + type + worker > v->mv_size)
                return MDB_CORRUPTED;
        memset(ret, 0, sizeof *ret);
        ret->attempts = rd32(p);
        ret->failed_ms = (int64_t) rd64(p + 4);
        *ret_key = rd64(p + 12);
        *ret_lane = p[20] < LANES ? p[20] : LANES - 1;
        ret->error = (struct om_span){ text, error };
        ret->error_type = (struct om_span){ text + error, type };
        ret->worker = (struct om_span){ text + error + type, worker };
        ret->record = (struct om_span){ text + error + type + worker, v->mv_size - LETTER_HEAD - error - type - worker };
        return 0;
}

/* -- verdicts ------------------------------------------------------------------------------------------------------ */

int held_release(struct om_bus *b, struct held *h) {
        int r = pend_put(b, h, h->attempts, 0);

        if (!r)
                held_ready(b, h);
        return r;
}

int held_expire(struct om_bus *b, struct held *h) {
        struct group *g = h->at->group;

        g->expired++;
        group_dirty(b, g);
        sub_expired(b, g, 1);
        return row_finish(b, h->at, (uint8_t) h->id.lane, h->id.seq, h, h->size, h->expires_ms);
}

static int finish(struct om_bus *b, struct held *h) {
        struct group *g = h->at->group;

        g->finished++;
        group_dirty(b, g);
        b->commit_tasks++;
        return row_finish(b, h->at, (uint8_t) h->id.lane, h->id.seq, h, h->size, h->expires_ms);
}

static int settle_one(struct om_bus *b, struct settle_item *item) {
        struct local_delivery *d = item->delivery;
        struct held *h = d->held;
        int r = 0;

        item->status = 0;
        item->why = NULL;
        if (!h) {
                item->status = -ESTALE;
                item->why = "the bus gave this task to somebody else";
                return 0;
        }
        if (item->verdict == OM_ACK && item->n_outputs)
                item->status = publish_allowed(b, item->outputs, item->n_outputs, &item->why);
        if (item->status)
                return 0;
        d->held = NULL;
        h->delivery = NULL;
        switch (item->verdict) {
        case OM_ACK:
                for (size_t i = 0; i < item->n_outputs && !r; i++)
                        r = publish_one(b, &item->outputs[i], NULL);
                return r ? r : finish(b, h);
        case OM_DEAD:
                r = letter_put(b, h->at->group, h, &item->letter);
                return r ? r : finish(b, h);
        case OM_RETRY:
        case OM_RELEASE:
                if (h->expires_ms && h->expires_ms <= b->now_ms)
                        return held_expire(b, h);
                if (item->verdict == OM_RELEASE)
                        return held_release(b, h);
                h->attempts++;
                r = pend_put(b, h, h->attempts, item->due_ms);
                return r ? r : held_retry(b, h, item->due_ms);
        }
        return EINVAL;
}

int settle_apply(struct om_bus *b, struct msg_settle *m) {
        for (size_t i = 0; i < m->n; i++) {
                int r = settle_one(b, &m->items[i]);

                if (r)
                        return r;
        }
        return 0;
}

void settle_committed(struct om_bus *b, struct msg_settle *m) {
        for (size_t i = 0; i < m->n; i++)
                if (m->items[i].status == 0 || m->items[i].status == -ESTALE)
                        delivery_unlink(m->items[i].delivery);
}
