/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows that a group has met and not finished: the lists they are on, keys, retries.
 *
 * Always true:
 *   - a held is on its lane's list (by seq, so that the lane's floor is the first one's), in the hash by id, and in exactly the place that
 *     its state names: the ready list, a delivery, the heap of retries, or its key's queue;
 *   - of the helds with one key in a group, at most one is not parked. When it is finished the first parked one becomes ready;
 *   - retries of all groups share one heap, so that the next timer is its top, however many groups there are.
 *
 * Bus thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

enum { FREE_HELDS_MAX = 1024 };

struct held *held_find(struct om_bus *b, uint32_t attach, uint8_t lane, uint64_t seq) {
        struct held_id id = { attach, lane, seq };
        struct held *h;

        HASH_FIND(hh, b->helds, &id, sizeof id, h);
        return h;
}

struct held *held_new(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, const struct row *row, size_t size) {
        struct lane *ln = &at->lanes[lane];
        struct held *h = b->free_helds;

        if (h) {
                b->free_helds = h->next;
                b->n_free_helds--;
                memset(h, 0, sizeof *h);
        } else {
                h = calloc(1, sizeof *h);
                if (!h)
                        return NULL;
        }
        h->id.attach = at->id;
        h->id.lane = lane;
        h->id.seq = seq;
        HASH_ADD(hh, b->helds, id, sizeof h->id, h);
        if (!h->hh.tbl) {
                free(h);
                return NULL;
        }
        h->at = at;
        h->size = (uint32_t) size;
        h->expires_ms = row->expires_ms;
        h->key = row->key;
        h->prev = ln->last;
        if (ln->last)
                ln->last->next = h;
        else
                ln->first = h;
        ln->last = h;
        return h;
}

/* -- keys ---------------------------------------------------------------------------------------------------------- */

struct key_queue *key_get(struct group *g, uint64_t key, bool make) {
        struct key_queue *q;

        HASH_FIND(hh, g->keys, &key, sizeof key, q);
        if (q || !make)
                return q;
        q = calloc(1, sizeof *q);
        if (!q)
                return NULL;
        q->key = key;
        HASH_ADD(hh, g->keys, key, sizeof q->key, q);
        if (!q->hh.tbl) {
                free(q);
                return NULL;
        }
        return q;
}

bool key_busy(struct group *g, uint64_t key) {
        struct key_queue *q = key ? key_get(g, key, false) : NULL;

        return q && q->busy;
}

int key_hold(struct held *h) {
        struct key_queue *q;

        if (!h->key)
                return 0;
        q = key_get(h->at->group, h->key, true);
        if (!q)
                return ENOMEM;
        q->busy = true;
        q->holder = h;
        return 0;
}

int key_park(struct held *h) {
        struct group *g = h->at->group;
        struct key_queue *q = key_get(g, h->key, true);

        if (!q)
                return ENOMEM;
        held_unqueue(NULL, h);
        h->state = HELD_PARKED;
        h->q_prev = q->last;
        h->q_next = NULL;
        if (q->last)
                q->last->q_next = h;
        else
                q->first = h;
        q->last = h;
        q->busy = true;
        g->n_parked++;
        return 0;
}

/* The one that was out is finished: the next of the key is ready, or the key is forgotten. */
void key_release(struct om_bus *b, struct group *g, uint64_t key) {
        struct key_queue *q = key_get(g, key, false);
        struct held *h;

        if (!q)
                return;
        h = q->first;
        q->holder = h;
        if (h) {
                held_ready(b, h);
                return;
        }
        HASH_DEL(g->keys, q);
        free(q);
}

/* -- the heap of retries ------------------------------------------------------------------------------------------- */

static void heap_set(struct om_bus *b, size_t i, struct held *h) {
        b->heap[i] = h;
        h->heap_index = i;
}

static void heap_up(struct om_bus *b, size_t i, struct held *h) {
        while (i > 0 && b->heap[(i - 1) / 2]->due_ms > h->due_ms) {
                heap_set(b, i, b->heap[(i - 1) / 2]);
                i = (i - 1) / 2;
        }
        heap_set(b, i, h);
}

static void heap_down(struct om_bus *b, size_t i, struct held *h) {
        for (;;) {
                size_t child = 2 * i + 1;

                if (child >= b->n_heap)
                        break;
                if (child + 1 < b->n_heap && b->heap[child + 1]->due_ms < b->heap[child]->due_ms)
                        child++;
                if (b->heap[child]->due_ms >= h->due_ms)
                        break;
                heap_set(b, i, b->heap[child]);
                i = child;
        }
        heap_set(b, i, h);
}

static void heap_remove(struct om_bus *b, struct held *h) {
        struct held *last = b->heap[--b->n_heap];
        size_t i = h->heap_index;

        if (last == h)
                return;
        if (last->due_ms < h->due_ms)
                heap_up(b, i, last);
        else
                heap_down(b, i, last);
}

/* -- states -------------------------------------------------------------------------------------------------------- */

void held_unqueue(struct om_bus *b, struct held *h) {
        struct group *g = h->at->group;
        struct key_queue *q;

        switch (h->state) {
        case HELD_READY:
                if (h->q_prev)
                        h->q_prev->q_next = h->q_next;
                else
                        g->ready[h->id.lane] = h->q_next;
                if (h->q_next)
                        h->q_next->q_prev = h->q_prev;
                else
                        g->ready_last[h->id.lane] = h->q_prev;
                break;
        case HELD_RETRY:
                heap_remove(b, h);
                g->retrying--;
                break;
        case HELD_PARKED:
                q = key_get(g, h->key, false);
                if (h->q_prev)
                        h->q_prev->q_next = h->q_next;
                else
                        q->first = h->q_next;
                if (h->q_next)
                        h->q_next->q_prev = h->q_prev;
                else
                        q->last = h->q_prev;
                g->n_parked--;
                break;
        case HELD_LEASED:
                g->leased--;
                break;
        case HELD_LOOSE:
                break;
        }
        h->q_prev = h->q_next = NULL;
        h->state = HELD_LOOSE;
}

/* Onto the ready list of its lane, in the log's order. */
void held_ready(struct om_bus *b, struct held *h) {
        struct group *g = h->at->group;
        unsigned lane = h->id.lane;
        struct held *after;

        held_unqueue(b, h);
        h->state = HELD_READY;
        after = g->ready_last[lane];
        while (after && after->id.seq > h->id.seq)
                after = after->q_prev;
        h->q_prev = after;
        h->q_next = after ? after->q_next : g->ready[lane];
        if (h->q_next)
                h->q_next->q_prev = h;
        else
                g->ready_last[lane] = h;
        if (after)
                after->q_next = h;
        else
                g->ready[lane] = h;
        group_wake(b, g);
}

int held_retry(struct om_bus *b, struct held *h, int64_t due_ms) {
        if (b->n_heap == b->heap_cap) {
                size_t cap = b->heap_cap ? b->heap_cap * 2 : 64;
                struct held **heap = reallocarray(b->heap, cap, sizeof *heap);

                if (!heap)
                        return ENOMEM;
                b->heap = heap;
                b->heap_cap = cap;
        }
        held_unqueue(b, h);
        h->state = HELD_RETRY;
        h->due_ms = due_ms;
        h->at->group->retrying++;
        b->n_heap++;
        heap_up(b, b->n_heap - 1, h);
        return 0;
}

void retries_due(struct om_bus *b) {
        while (b->n_heap && b->heap[0]->due_ms <= b->now_ms)
                held_ready(b, b->heap[0]);
}

void held_not_redelivered(struct om_bus *b, struct held *h) {
        if (h->redelivered_slot)
                b->redelivered[h->redelivered_slot - 1] = NULL;
        h->redelivered_slot = 0;
}

void held_free(struct om_bus *b, struct held *h) {
        struct attach *at = h->at;
        struct lane *ln = &at->lanes[h->id.lane];
        struct key_queue *q = h->key ? key_get(at->group, h->key, false) : NULL;
        bool holder = q && q->holder == h;

        held_unqueue(b, h);
        if (h->prev)
                h->prev->next = h->next;
        else
                ln->first = h->next;
        if (h->next)
                h->next->prev = h->prev;
        else
                ln->last = h->prev;
        held_not_redelivered(b, h);
        if (h->delivery)
                h->delivery->held = NULL;
        HASH_DEL(b->helds, h);
        if (holder)
                key_release(b, at->group, h->key);
        if (b->n_free_helds < FREE_HELDS_MAX) {
                h->next = b->free_helds;
                b->free_helds = h;
                b->n_free_helds++;
        } else {
                free(h);
        }
}

void attach_forget(struct om_bus *b, struct attach *at) {
        for (unsigned i = 0; i < LANES; i++)
                while (at->lanes[i].last) /* from behind, so that no key is handed on to one that goes next */
                        held_free(b, at->lanes[i].last);
}

/* What went out again after a retry or a release: its pend row counts the attempt that is out, so that a death counts it too. */
int redelivered_flush(struct om_bus *b) {
        for (size_t i = 0; i < b->n_redelivered; i++) {
                struct held *h = b->redelivered[i];
                int r;

                if (!h)
                        continue;
                h->redelivered_slot = 0;
                b->redelivered[i] = NULL;
                if (h->state != HELD_LEASED || !h->has_pend)
                        continue;
                r = pend_put(b, h, h->attempts + 1, 0);
                if (r)
                        return r;
        }
        b->n_redelivered = 0;
        return 0;
}
