/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handing out: from what is ready and from the logs, as much as each group wants.
 *
 * Always true:
 *   - only what is committed is handed out: this runs after the commit, on a reader of it;
 *   - lane by lane, ready ones before new ones (they are older), so priorities hold and a lane keeps its order;
 *   - a row whose time is over is not handed out; sweep.c ends it, and the lane waits for that turn;
 *   - a group with nothing new has no active attachment, so a turn costs nothing for groups that it is not about;
 *   - what a cursor passes is in the memory's lists until it is finished. The mark that the disk learns of it, at the latest MARK_DELAY_MS
 *     later, lets a death count the interrupted attempt without a write for each delivery.
 *
 * Bus thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

enum { MARK_DELAY_MS = 50, SLAB_MAX = 64 << 10 };

void attach_activate(struct attach *at) {
        struct group *g = at->group;

        g->lanes |= at->log->lanes;
        if (at->active || at->dying)
                return;
        at->active = true;
        at->active_next = NULL;
        if (g->active)
                g->active_last->active_next = at;
        else
                g->active = at;
        g->active_last = at;
}

void group_wake(struct om_bus *b, struct group *g) {
        if (g->queued || !g->sub || g->sub->want == 0)
                return;
        g->queued = true;
        g->fill_next = b->fill;
        b->fill = g;
}

void log_wake(struct om_bus *b, struct log *l) {
        for (struct attach *at = l->attaches; at; at = at->log_next) {
                attach_activate(at);
                group_wake(b, at->group);
        }
}

/* -- deliveries ---------------------------------------------------------------------------------------------------- */

static struct local_delivery *delivery_new(struct om_bus *b, struct om_span record, unsigned more) {
        size_t size = (sizeof(struct local_delivery) + record.len + 15) & ~(size_t) 15;
        struct slab *s = b->slab;
        struct local_delivery *d;

        if (!s || s->cap - s->used < size) {
                size_t cap = size * (more < 256 ? more + 1 : 256);

                if (cap > SLAB_MAX)
                        cap = size > SLAB_MAX ? size : SLAB_MAX;
                s = aligned_alloc(16, (sizeof *s + 15 + cap) & ~(size_t) 15);
                if (!s)
                        return NULL;
                s->refs = 0;
                s->used = 0;
                s->cap = cap;
                b->slab = s;
        }
        d = (struct local_delivery *) (void *) (s->data + s->used);
        memset(d, 0, sizeof *d);
        d->slab = s;
        d->d.record = (struct om_span){ memcpy((char *) (d + 1), record.p, record.len), record.len };
        s->used += size;
        s->refs++;
        return d;
}

void delivery_unlink(struct local_delivery *d) {
        struct om_bus_sub *s = d->d.sub;

        if (d->prev)
                d->prev->next = d->next;
        else
                s->out = d->next;
        if (d->next)
                d->next->prev = d->prev;
        d->prev = d->next = NULL;
        s->n_out--;
}

static void remember_redelivered(struct om_bus *b, struct held *h) {
        if (h->redelivered_slot)
                return;
        if (b->n_redelivered == b->redelivered_cap) {
                size_t cap = b->redelivered_cap ? b->redelivered_cap * 2 : 64;
                struct held **more = reallocarray(b->redelivered, cap, sizeof *more);

                if (!more)
                        return; /* a death would not count this attempt; nothing else is lost */
                b->redelivered = more;
                b->redelivered_cap = cap;
        }
        b->redelivered[b->n_redelivered++] = h;
        h->redelivered_slot = b->n_redelivered;
}

static void marks_later(struct om_bus *b) {
        if (b->marks_due == INT64_MAX)
                b->marks_due = om_clock_ms() + MARK_DELAY_MS;
}

void held_is_out(struct om_bus *b, struct held *h) {
        struct lane *ln = &h->at->lanes[h->id.lane];

        if (h->has_pend) {
                remember_redelivered(b, h);
                marks_later(b);
        }
        if (h->id.seq >= ln->handed)
                ln->handed = h->id.seq + 1;
        if (ln->handed > ln->mark) {
                attach_dirty(b, h->at);
                marks_later(b);
        }
}

static int hand_out(struct om_bus *b, struct om_bus_sub *s, struct held *h, struct om_span record) {
        struct local_delivery *d = delivery_new(b, record, s->want);

        if (!d)
                return ENOMEM;
        s->batch = news_batch(b, s, false, s->batch);
        if (!s->batch) {
                if (--d->slab->refs == 0) {
                        free(d->slab);
                        b->slab = NULL;
                }
                return ENOMEM;
        }
        held_unqueue(b, h);
        h->state = HELD_LEASED;
        h->at->group->leased++;
        h->delivery = d;
        d->d.sub = s;
        d->d.attempt = h->attempts + 1;
        d->held = h;
        d->id = h->id;
        d->attempts = h->attempts;
        d->key = h->key;
        d->next = s->out;
        if (s->out)
                s->out->prev = d;
        s->out = d;
        s->n_out++;
        s->batch->items[s->batch->n++] = &d->d;
        s->want--;
        s->sent++;
        held_is_out(b, h);
        return 0;
}

/* -- filling ------------------------------------------------------------------------------------------------------- */

static int fill_ready(struct om_bus *b, struct group *g, unsigned lane) {
        struct held *next;

        for (struct held *h = g->ready[lane]; h && g->sub->want; h = next) {
                uint8_t key[ROW_KEY];
                struct row row;
                MDB_val v;
                int r;

                next = h->q_next;
                if (h->expires_ms && h->expires_ms <= b->now_ms)
                        continue;
                row_key(key, h->at->log->id, (uint8_t) lane, h->id.seq);
                r = t_get(b, b->reader, T_ROWS, key, sizeof key, &v);
                if (!r)
                        r = row_read(&v, &row);
                if (!r)
                        r = hand_out(b, g->sub, h, row.record);
                if (r)
                        return r;
        }
        return 0;
}

static int is_done(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, bool *ret) {
        uint8_t key[ROW_KEY];
        MDB_val v;
        int r = 0;

        *ret = false;
        if (at->n_done) {
                row_key(key, at->id, lane, seq);
                r = t_get(b, b->reader, T_DONE, key, sizeof key, &v);
                *ret = r == 0;
        }
        return r == MDB_NOTFOUND ? 0 : r;
}

/* One row under the cursor: handed out, parked, or stepped over. 1: the scan of the lane ends here. */
static int scan_row(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, const MDB_val *v) {
        struct group *g = at->group;
        struct held *h;
        struct row row;
        bool done, busy;
        int r = row_read(v, &row);

        if (!r)
                r = is_done(b, at, lane, seq, &done);
        if (r || done)
                return r;
        if (row.expires_ms && row.expires_ms <= b->now_ms)
                return 1;
        busy = row.key && key_busy(g, row.key);
        if (busy && g->n_parked >= PARKED_MAX)
                return 1;
        h = held_new(b, at, lane, seq, &row, v->mv_size);
        if (!h)
                return ENOMEM;
        r = busy ? key_park(h) : key_hold(h);
        if (!r && !busy)
                r = hand_out(b, g->sub, h, row.record);
        if (r)
                held_free(b, h);
        return r;
}

static int scan_lane(struct om_bus *b, MDB_cursor *c, struct attach *at, uint8_t lane) {
        struct lane *ln = &at->lanes[lane];
        struct om_bus_sub *s = at->group->sub;
        uint8_t key[ROW_KEY];
        MDB_val k = val(key, sizeof key), v;
        int r;

        row_key(key, at->log->id, lane, ln->cursor);
        for (r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE); !r && s->want; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                uint64_t seq;

                if (k.mv_size != ROW_KEY || memcmp(k.mv_data, key, 5) != 0) {
                        r = MDB_NOTFOUND;
                        break;
                }
                seq = rd64((uint8_t *) k.mv_data + 5);
                r = scan_row(b, at, lane, seq, &v);
                if (r)
                        return r == 1 ? 0 : r;
                ln->cursor = seq + 1;
        }
        if (r == MDB_NOTFOUND) {
                ln->cursor = at->log->lane_end[lane];
                r = 0;
        }
        return r;
}

/* Mostly one: tasks of other priorities than the usual one are few. */
static bool has_more(const struct attach *at) {
        for (unsigned lanes = at->log->lanes; lanes; lanes &= lanes - 1) {
                unsigned i = (unsigned) __builtin_ctz(lanes);

                if (at->lanes[i].cursor < at->log->lane_end[i])
                        return true;
        }
        return false;
}

/* Of those that were looked at, up to `stop`: without anything before their cursors they go off the list, else behind the others, so that
 * each of a pattern's has its turn. Those that were not cost nothing, be they thousands. */
static void prune_active(struct group *g, struct attach *stop) {
        struct attach *at = g->active, *next;

        g->active = stop;
        if (!stop)
                g->active_last = NULL;
        for (; at != stop; at = next) {
                next = at->active_next;
                at->active = false;
                if (has_more(at))
                        attach_activate(at);
        }
}

static int fill_group(struct om_bus *b, MDB_cursor *c, struct group *g) {
        struct attach *at = g->active;
        int r = 0;

        for (uint8_t lane = 0; lane < LANES && g->sub->want && !r; lane++) {
                r = fill_ready(b, g, lane);
                if (!(g->lanes & 1u << lane) || !g->sub->want || r)
                        continue;
                for (at = g->active; at && g->sub->want && !r; at = at->active_next)
                        if (at->lanes[lane].cursor < at->log->lane_end[lane])
                                r = scan_lane(b, c, at, lane);
        }
        prune_active(g, g->sub->want && !r ? NULL : at);
        return r;
}

/* What could not be filled stays on the list for the next turn, which is soon. */
int fill(struct om_bus *b) {
        struct group *again = NULL, *g;
        MDB_cursor *c = NULL;
        int r, worst = 0;

        if (!b->fill)
                return 0;
        r = reader_begin(b);
        if (r)
                return r;
        worst = mdb_cursor_open(b->reader, b->t[T_ROWS], &c);
        while (c && (g = b->fill)) {
                b->fill = g->fill_next;
                g->queued = false;
                r = g->sub && g->sub->want ? fill_group(b, c, g) : 0;
                if (r) { /* nobody else would wake it; the others have theirs all the same */
                        worst = r;
                        g->queued = true;
                        g->fill_next = again;
                        again = g;
                }
        }
        if (c) {
                b->fill = again;
                mdb_cursor_close(c);
        }
        reader_end(b);
        b->slab = NULL;
        return worst;
}
