/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: their memory, their numbers, and the signs of life that keep them.
 *
 * Always true:
 *   - a lease is HELD or FINISHING if and only if it is in its client's table under its number, in its subscription's list, and counted in
 *     the subscription's `held` and the group's `n_leased`;
 *   - it is HELD if and only if it is in its group's held list, oldest sign of life first;
 *   - for each task that a bus may still hand over, being told that it is wanted, a lease is there: none arrives that cannot be taken;
 *   - a timer runs only while something is leased that could run out: per group for reclaim_idle_ms, one for the bus's own lease.
 *
 * Called by the dispatcher's other files. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "dispatch_internal.h"

enum { SLAB_LEASES = 128, EXTEND_AT_ONCE = 512, FIRST_BUCKETS = 16 };

struct om_lease_slab {
        struct om_lease_slab *next;
        struct om_lease leases[SLAB_LEASES];
};

/* -- memory -------------------------------------------------------------------------------------------------------- */

static int slab_add(struct om_dispatch *d) {
        struct om_lease_slab *slab = calloc(1, sizeof *slab);

        if (!slab)
                return -ENOMEM;
        slab->next = d->slabs;
        d->slabs = slab;
        d->n_slots += SLAB_LEASES;
        for (int i = SLAB_LEASES - 1; i >= 0; i--) {
                slab->leases[i].next = d->free_leases;
                d->free_leases = &slab->leases[i];
        }
        return 0;
}

static void extend_arm(struct om_dispatch *d) {
        int64_t ms = d->core->bus_ops->lease_ms / 3;
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        if (d->extend_armed || ms <= 0)
                return;
        d->extend_armed = event_add(d->extend_timer, &tv) == 0;
}

unsigned om_leases_promise(struct om_group *g, unsigned n) {
        struct om_dispatch *d = g->d;
        unsigned more = n > g->promised ? n - g->promised : 0, room;

        while ((room = d->n_slots - d->n_leases - d->promised) < more)
                if (slab_add(d) < 0) {
                        n = g->promised + room;
                        more = room;
                        om_starved(d);
                        break;
                }
        g->promised += more;
        d->promised += more;
        return n;
}

void om_leases_unpromise(struct om_group *g) {
        g->d->promised -= g->promised;
        g->promised = 0;
}

struct om_lease *om_lease_new(struct om_group *g, struct om_delivery *delivery) {
        struct om_dispatch *d = g->d;
        struct om_lease *lease;

        if (!d->free_leases && slab_add(d) < 0)
                return NULL;
        lease = d->free_leases;
        d->free_leases = lease->next;
        *lease = (struct om_lease){ .delivery = delivery, .group = g, .state = OM_LEASE_WAITING };
        delivery->core = lease;
        g->n_leases++;
        d->n_leases++;
        if (g->promised) {
                g->promised--;
                d->promised--;
        }
        extend_arm(d);
        return lease;
}

void om_lease_free(struct om_lease *lease) {
        struct om_group *g = lease->group;
        struct om_dispatch *d = g->d;

        free(lease->note);
        om_outputs_free(lease->outputs);
        lease->note = NULL;
        lease->outputs = NULL;
        lease->state = OM_LEASE_FREE;
        lease->next = d->free_leases;
        d->free_leases = lease;
        g->n_leases--;
        d->n_leases--;
        om_group_touch(g);
}

void om_leases_deinit(struct om_dispatch *d) {
        struct om_lease_slab *next;

        for (struct om_lease_slab *slab = d->slabs; slab; slab = next) {
                next = slab->next;
                for (size_t i = 0; i < SLAB_LEASES; i++) {
                        free(slab->leases[i].note);
                        om_outputs_free(slab->leases[i].outputs);
                }
                free(slab);
        }
        d->slabs = NULL;
        d->free_leases = NULL;
        d->n_slots = 0;
        if (d->extend_timer)
                event_free(d->extend_timer);
}

/* -- numbers ------------------------------------------------------------------------------------------------------- */

static int buckets_grow(struct om_client *c) {
        size_t n = c->n_buckets ? c->n_buckets * 2 : FIRST_BUCKETS;
        struct om_lease **buckets = calloc(n, sizeof *buckets), *next;

        if (!buckets)
                return -ENOMEM;
        for (size_t i = 0; i < c->n_buckets; i++)
                for (struct om_lease *lease = c->buckets[i]; lease; lease = next) {
                        next = lease->bucket_next;
                        lease->bucket_next = buckets[lease->number & (n - 1)];
                        buckets[lease->number & (n - 1)] = lease;
                }
        free(c->buckets);
        c->buckets = buckets;
        c->n_buckets = n;
        return 0;
}

/* Numbers are given in order, so neighbours lie in different buckets and a chain is as long as the table is full. */
static int number_add(struct om_client *c, struct om_lease *lease) {
        struct om_lease **bucket;

        if (c->n_leases >= c->n_buckets && buckets_grow(c) < 0 && !c->n_buckets)
                return -ENOMEM;
        lease->number = ++c->last_number;
        bucket = &c->buckets[lease->number & (c->n_buckets - 1)];
        lease->bucket_next = *bucket;
        *bucket = lease;
        c->n_leases++;
        return 0;
}

static void number_remove(struct om_client *c, struct om_lease *lease) {
        struct om_lease **p = &c->buckets[lease->number & (c->n_buckets - 1)];

        while (*p != lease)
                p = &(*p)->bucket_next;
        *p = lease->bucket_next;
        c->n_leases--;
}

int om_lease_find(struct om_session *s, int64_t number, struct om_lease **ret, struct om_error *e) {
        struct om_client *c = om_client_find(s);

        if (!c || number < 1 || (uint64_t) number > c->last_number)
                return om_error_set(e, OM_NOT_FOUND, "no delivery %lld was given to this connection", (long long) number);
        for (struct om_lease *lease = c->buckets[(uint64_t) number & (c->n_buckets - 1)]; lease; lease = lease->bucket_next)
                if (lease->number == (uint64_t) number) {
                        *ret = lease;
                        return 0;
                }
        return om_error_set(e, OM_CONFLICT, "the lease of delivery %lld is over", (long long) number);
}

/* -- who has it ---------------------------------------------------------------------------------------------------- */

int om_lease_give(struct om_lease *lease, struct om_subscription *sub) {
        int r = number_add(sub->client, lease);

        if (r < 0)
                return r;
        lease->sub = sub;
        lease->sub_next = NULL;
        lease->sub_prev = sub->leases_last;
        *(sub->leases_last ? &sub->leases_last->sub_next : &sub->leases) = lease;
        sub->leases_last = lease;
        if (!sub->fresh)
                sub->fresh = lease;
        sub->held++;
        lease->group->n_leased++;
        return 0;
}

void om_lease_take(struct om_lease *lease) {
        struct om_subscription *sub = lease->sub;

        if (!sub)
                return;
        number_remove(sub->client, lease);
        if (sub->fresh == lease)
                sub->fresh = lease->sub_next;
        *(lease->sub_prev ? &lease->sub_prev->sub_next : &sub->leases) = lease->sub_next;
        *(lease->sub_next ? &lease->sub_next->sub_prev : &sub->leases_last) = lease->sub_prev;
        lease->sub_prev = lease->sub_next = NULL;
        lease->sub = NULL;
        sub->held--;
        lease->group->n_leased--;
        om_subscription_credit(sub);
}

void om_lease_hold(struct om_lease *lease) {
        lease->state = OM_LEASE_HELD;
        lease->touched_ms = om_clock_ms();
        om_lease_append(&lease->group->held, lease);
        om_group_reclaim_arm(lease->group);
}

void om_lease_unhold(struct om_lease *lease) { om_lease_unlink(&lease->group->held, lease); }

void om_lease_touch(struct om_lease *lease) {
        om_subscription_suspect(lease->sub, false);
        om_lease_unlink(&lease->group->held, lease);
        om_lease_hold(lease);
}

/* -- running out --------------------------------------------------------------------------------------------------- */

static int64_t reclaim_in_ms(const struct om_group *g, int64_t now) {
        int64_t left = g->held.first->touched_ms + g->config.reclaim_idle_ms - now;

        return left > 0 ? left : 0;
}

static void on_reclaim(evutil_socket_t fd, short what, void *ctx) {
        struct om_group *g = ctx;
        int64_t now = om_clock_ms();
        char message[80];

        g->reclaim_armed = false;
        if (g->config.reclaim_idle_ms <= 0)
                return;
        snprintf(message, sizeof message, "no sign of life from the worker for %lld ms", (long long) g->config.reclaim_idle_ms);
        while (g->held.first && reclaim_in_ms(g, now) == 0) {
                struct om_lease *lease = g->held.first;

                om_subscription_revoke(lease->sub, lease);
                om_subscription_suspect(lease->sub, true);
                om_lease_lost(lease, "lease_expired", message);
        }
        om_group_reclaim_arm(g);
}

/* Set lazily: signs of life only move leases to the end of the list; the timer looks at the first when it fires. */
void om_group_reclaim_arm(struct om_group *g) {
        struct timeval tv;
        int64_t ms;

        if (g->reclaim_armed || g->config.reclaim_idle_ms <= 0 || !g->held.first)
                return;
        if (!g->reclaim_timer)
                g->reclaim_timer = evtimer_new(om_loop_base(g->d->core->loop), on_reclaim, g);
        if (!g->reclaim_timer)
                return;
        ms = reclaim_in_ms(g, om_clock_ms()) + 1;
        tv = (struct timeval){ .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
        g->reclaim_armed = event_add(g->reclaim_timer, &tv) == 0;
}

/* Keeps the bus's own leases of all that this daemon has, held by a worker or not: while the daemon lives nobody else shall get them. */
static void on_extend(evutil_socket_t fd, short what, void *ctx) {
        struct om_dispatch *d = ctx;
        struct om_delivery *deliveries[EXTEND_AT_ONCE];
        size_t n = 0;

        d->extend_armed = false;
        for (struct om_lease_slab *slab = d->slabs; slab; slab = slab->next)
                for (size_t i = 0; i < SLAB_LEASES; i++) {
                        if (slab->leases[i].state == OM_LEASE_FREE || slab->leases[i].delivery->gone)
                                continue;
                        deliveries[n++] = slab->leases[i].delivery;
                        if (n == EXTEND_AT_ONCE) {
                                d->core->bus_ops->extend(d->core->bus, deliveries, n);
                                n = 0;
                        }
                }
        if (n)
                d->core->bus_ops->extend(d->core->bus, deliveries, n);
        if (d->n_leases)
                extend_arm(d);
}

int om_leases_init(struct om_dispatch *d) {
        d->extend_timer = evtimer_new(om_loop_base(d->core->loop), on_extend, d);
        return d->extend_timer ? 0 : -ENOMEM;
}
