/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes of one name take effect in the order in which they were asked for, though requests overtake each other: each waits for the one
 * before it. What is of a whole kind (clear) waits for all writes of that kind before it, and those after it wait for it.
 */
#include "store_state.h"

/* FNV-1a of 64 bits. */
static uint64_t hash_of(const char *name) {
        uint64_t h = 0xcbf29ce484222325u;

        for (; *name; name++)
                h = (h ^ (unsigned char) *name) * 0x100000001b3u;
        return h;
}

void s3_locks_init(struct s3_locks *locks) {
        for (size_t i = 0; i < LOCK_BUCKETS; i++)
                TAILQ_INIT(&locks->buckets[i]);
        TAILQ_INIT(&locks->waiting);
        TAILQ_INIT(&locks->ready);
        locks->whole = NULL;
        locks->n = 0;
}

static void grant(struct s3_locks *locks, struct s3_lock *l) {
        l->held = true;
        TAILQ_INSERT_TAIL(&locks->ready, l, ready);
}

/* One after the other: who is told may drop its own at once, and thousands may stand behind it. */
static void tell(struct s3_locks *locks) {
        struct s3_lock *l;

        if (locks->telling)
                return;
        locks->telling = true;
        while ((l = TAILQ_FIRST(&locks->ready))) {
                TAILQ_REMOVE(&locks->ready, l, ready);
                l->granted(l);
        }
        locks->telling = false;
}

static void enter(struct s3_locks *locks, struct s3_lock *l) {
        struct s3_lock_list *bucket = &locks->buckets[l->hash % LOCK_BUCKETS];
        struct s3_lock *other;
        bool first = true;

        TAILQ_FOREACH(other, bucket, link)
        first &= other->hash != l->hash;
        TAILQ_INSERT_TAIL(bucket, l, link);
        locks->n++;
        if (first)
                grant(locks, l);
}

/* Those behind one of the whole kind, until the next such. */
static void go_on(struct s3_locks *locks) {
        struct s3_lock *l;

        while (!locks->whole && (l = TAILQ_FIRST(&locks->waiting))) {
                if (l->whole && locks->n)
                        return;
                TAILQ_REMOVE(&locks->waiting, l, link);
                if (l->whole) {
                        locks->whole = l;
                        grant(locks, l);
                } else
                        enter(locks, l);
        }
}

void s3_lock_take(struct om_store *s, struct s3_lock *l, const char *name) {
        struct s3_locks *locks = &s->locks[l->kind];

        l->held = false;
        l->hash = name ? hash_of(name) : 0;
        TAILQ_INSERT_TAIL(&locks->waiting, l, link);
        go_on(locks);
        tell(locks);
}

void s3_lock_drop(struct om_store *s, struct s3_lock *l) {
        struct s3_locks *locks = &s->locks[l->kind];
        struct s3_lock *next;

        l->held = false;
        if (l->whole)
                locks->whole = NULL;
        else {
                for (next = TAILQ_NEXT(l, link); next && next->hash != l->hash;)
                        next = TAILQ_NEXT(next, link);
                TAILQ_REMOVE(&locks->buckets[l->hash % LOCK_BUCKETS], l, link);
                locks->n--;
                if (next)
                        grant(locks, next);
        }
        go_on(locks);
        tell(locks);
}

char *s3_store_etag(struct om_store *s, const char *name) {
        uint64_t h = hash_of(name);
        size_t i = h % ETAGS;

        if (s->etags[i].hash != h) {
                s->etags[i].hash = h;
                s->etags[i].etag[0] = 0;
        }
        return s->etags[i].etag;
}
