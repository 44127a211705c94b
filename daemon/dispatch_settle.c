/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settlements: what one turn decided about deliveries goes to the bus as one batch.
 *
 * Always true:
 *   - a lease in a batch is in no list of its group; the batch answers for it exactly once, through om_lease_settled();
 *   - batches leave in the order in which they were filled. One that the bus has no room for stays, and those behind it;
 *   - a batch that takes longer than call_timeout_ms is cancelled; what then became of it is unknown, and settling again is harmless.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "dispatch_internal.h"

struct om_settle_batch {
        struct om_bus_settle op; /* first: an op is its batch */
        struct om_dispatch *d;
        struct om_settle_batch *next;
        struct om_deadline deadline;
        struct om_lease **leases; /* as op.items */
        size_t cap;
};

static void batch_free(struct om_settle_batch *b) {
        free(b->op.items);
        free(b->leases);
        free(b);
}

static struct om_settle_batch *batch_gathering(struct om_dispatch *d) {
        struct om_settle_batch *b = d->settling;

        if (b)
                return b;
        b = d->free_settles;
        if (b)
                d->free_settles = b->next;
        else
                b = calloc(1, sizeof *b);
        if (!b)
                return NULL;
        b->d = d;
        b->next = NULL;
        b->op.n = 0;
        d->settling = b;
        return b;
}

static void batch_recycle(struct om_settle_batch *b) {
        struct om_dispatch *d = b->d;

        b->next = d->free_settles;
        d->free_settles = b;
        om_dispatch_turn(d);
}

static int batch_grow(struct om_settle_batch *b) {
        size_t cap = b->cap ? b->cap * 2 : 64;
        struct om_settlement *items = reallocarray(b->op.items, cap, sizeof *items);
        struct om_lease **leases;

        if (!items)
                return -ENOMEM;
        b->op.items = items;
        leases = reallocarray(b->leases, cap, sizeof *leases);
        if (!leases)
                return -ENOMEM;
        b->leases = leases;
        b->cap = cap;
        return 0;
}

void om_settle(struct om_lease *lease) {
        struct om_dispatch *d = lease->group->d;
        struct om_settle_batch *b = batch_gathering(d);
        const struct om_outputs *o = lease->outputs;
        struct om_settlement *item;
        struct om_error e;

        lease->stage = OM_STAGE_SETTLE;
        if (!b || (b->op.n == b->cap && batch_grow(b) < 0)) {
                om_lease_settled(lease, om_error_set_errno(&e, ENOMEM, "a settlement"), &e);
                return;
        }
        b->leases[b->op.n] = lease;
        item = &b->op.items[b->op.n++];
        item->delivery = lease->delivery;
        item->verdict = lease->verdict;
        item->due_ms = lease->due_ms;
        item->letter = lease->verdict == OM_DEAD ? &lease->note->letter : NULL;
        item->outputs = lease->verdict == OM_ACK && o ? o->bus_tasks : NULL;
        item->n_outputs = item->outputs ? o->n : 0;
        om_dispatch_turn(d);
}

/* One answer for all of a batch: it never reached the bus, or nobody knows. */
static void batch_failed(struct om_settle_batch *b, int status, const struct om_error *e) {
        size_t n = b->op.n;

        for (size_t i = 0; i < n; i++)
                om_lease_settled(b->leases[i], status, e);
        batch_recycle(b);
}

static void batch_done(struct om_op *op, int status, const struct om_error *error) {
        struct om_settle_batch *b = (struct om_settle_batch *) op;
        struct om_dispatch *d = b->d;
        struct om_error e = OM_ERROR_INIT;

        d->n_settles_sent--;
        om_deadline_stop(&d->call_deadlines, &b->deadline);
        om_room(d);
        if (status == -ECANCELED) {
                status = om_error_set(&e, OM_TIMEOUT, "the bus did not confirm within %lld ms; the task may come again",
                        (long long) d->core->settings->call_timeout_ms);
                error = &e;
        }
        if (status < 0) {
                batch_failed(b, status, error);
                return;
        }
        for (size_t i = 0; i < b->op.n; i++) {
                const struct om_outcome *outcome = &b->op.items[i].outcome;

                if (outcome->status < 0)
                        om_error_set(&e, om_kind_of_errno(outcome->status), "%s",
                                outcome->why                         ? outcome->why
                                        : outcome->status == -ESTALE ? "the lease is over: the bus has given the task to somebody else"
                                                                     : strerror(-outcome->status));
                om_lease_settled(b->leases[i], outcome->status, &e);
        }
        batch_recycle(b);
}

/* 0; -ENOBUFS: kept for later. */
static int batch_send(struct om_settle_batch *b) {
        struct om_dispatch *d = b->d;
        struct om_error e = OM_ERROR_INIT;
        int r;

        for (size_t i = 0; i < b->op.n; i++) {
                b->op.items[i].outcome.status = 0;
                b->op.items[i].outcome.why = NULL;
        }
        b->op.op = (struct om_op){ .done = batch_done };
        r = d->core->bus_ops->settle(d->core->bus, &b->op, &e);
        if (r == 0) {
                d->n_settles_sent++;
                om_deadline_start_op(&d->call_deadlines, &b->deadline, d->core->settings->call_timeout_ms, &b->op.op);
                return 0;
        }
        if (r == -ENOBUFS && d->n_settles_sent + d->n_publishes_sent > 0)
                return r;
        if (e.kind == OM_OK)
                om_error_set_errno(&e, r, "the bus");
        batch_failed(b, r, &e);
        return 0;
}

void om_room(struct om_dispatch *d) {
        d->publish_held = d->settle_held = false;
        om_dispatch_turn(d);
        om_calls_kick(d->core);
}

void om_settle_flush(struct om_dispatch *d) {
        struct om_settle_batch *b = d->settling;

        if (b && b->op.n) {
                d->settling = NULL;
                *(d->settle_queue ? &d->settle_last->next : &d->settle_queue) = b;
                d->settle_last = b;
        }
        while ((b = d->settle_queue) && !d->settle_held) {
                d->settle_queue = b->next;
                b->next = NULL;
                if (batch_send(b) == -ENOBUFS) {
                        b->next = d->settle_queue;
                        d->settle_queue = b;
                        if (!b->next)
                                d->settle_last = b;
                        d->settle_held = true;
                }
        }
}

void om_settle_deinit(struct om_dispatch *d) {
        struct om_settle_batch *next;

        if (d->settling)
                batch_free(d->settling);
        for (struct om_settle_batch *b = d->settle_queue; b; b = next) {
                next = b->next;
                batch_free(b);
        }
        for (struct om_settle_batch *b = d->free_settles; b; b = next) {
                next = b->next;
                batch_free(b);
        }
        d->settling = d->settle_queue = d->free_settles = NULL;
}
