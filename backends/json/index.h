/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FILE_INDEX_H
#define OM_FILE_INDEX_H
/*
 * What the JSON storage knows of one file without reading it: for each entry its key, its times, the agent, topic and status it is found
 * by, and where its value stands. Values are not in memory. With keys of 36 bytes an entry takes about 140 bytes.
 *
 * Two ways to an entry: by key (a hash table), and in order (a skip list, Pugh 1990, with links back at its lowest level). The order is
 * (time, sequence); the time counts in files whose lists are newest first by when things were saved, in the others the sequence alone does,
 * which an entry keeps when it is replaced, so that a walk neither misses nor repeats it.
 *
 * Thread: the storage's worker.
 */
#include <stdio.h>

#include "../../proto/hash.h"
#include "../store.h"

enum { OM_FILE_LEVELS = 12 };

/* What many entries have in common, once for all of them. */
struct om_file_label {
        UT_hash_handle hh;
        uint32_t refs;
        uint32_t lens[3]; /* of name, topic, status, which follow; the hash's key begins here */
        char text[];
};

struct om_file_entry {
        struct om_file_entry *bucket_next, *older;
        struct om_file_label *label;
        int64_t saved_ms, expires_ms; /* expires_ms 0: never */
        uint64_t sequence;
        uint64_t place; /* OM_FILE_PLACE() */
        uint32_t length;
        uint16_t key_len;
        uint8_t height;
        struct om_file_entry *newer[]; /* `height` of them; then the key */
};

/* Where a value stands: which of a table's open files, and the offset in it. */
#define OM_FILE_PLACE(slot, offset) ((uint64_t) (offset) << 2 | (slot))
static inline unsigned om_file_slot(const struct om_file_entry *e) { return (unsigned) (e->place & 3); }
static inline uint64_t om_file_offset(const struct om_file_entry *e) { return e->place >> 2; }

struct om_file_index {
        bool by_time;      /* the order is by saved_ms first */
        bool name_in_hash; /* (key, name) is looked up, and a key has many names: agents of a topic */
        bool nameless;     /* a key has no names: settings, keys */
        bool keyless;      /* every entry is its own: metrics, which are nameless too */
        struct om_file_entry **buckets;
        size_t n_buckets, n;
        struct om_file_entry *first[OM_FILE_LEVELS], *last[OM_FILE_LEVELS];
        struct om_file_label *labels, *recent; /* the one that was asked for last: mostly it is asked for again */
        uint64_t live_bytes;                   /* about what the entries take in a file */
        uint64_t dice;                         /* random bits that no entry's height has used yet, two for each of n_dice */
        unsigned n_dice;
};

int om_file_index_reserve(
        struct om_file_index *x, uint64_t n);      /* room for n entries in all, so that adding them moves nothing; 0, -ENOMEM */
void om_file_index_clear(struct om_file_index *x); /* frees every entry; the kind of index stays */

struct om_span om_file_key(const struct om_file_entry *e);
struct om_span om_file_name(const struct om_file_entry *e); /* absent when empty; so are the next two */
struct om_span om_file_topic(const struct om_file_entry *e);
struct om_span om_file_status(const struct om_file_entry *e);
static inline bool om_file_alive(const struct om_file_entry *e, int64_t now_ms) { return e->expires_ms == 0 || e->expires_ms > now_ms; }

/* Adds, or replaces what has this key (and name). `meta` gives all but the value; its spans are copied. 0 or -ENOMEM, and nothing changed.
 */
int om_file_index_put(struct om_file_index *x, const struct om_store_entry *meta, uint64_t sequence, uint64_t place, uint32_t length);
/* The same for what is known to have a key (and name) that no entry has. */
int om_file_index_add(struct om_file_index *x, const struct om_store_entry *meta, uint64_t sequence, uint64_t place, uint32_t length);
void om_file_index_remove(struct om_file_index *x, struct om_file_entry *e);

/* The entry of (key, name); the newest of a key that is alive; any entry of a key, to go on from with _next_of_key(). NULL: none. */
struct om_file_entry *om_file_index_find(const struct om_file_index *x, struct om_span key, struct om_span name);
struct om_file_entry *om_file_index_newest(const struct om_file_index *x, struct om_span key, int64_t now_ms);
struct om_file_entry *om_file_index_of_key(const struct om_file_index *x, struct om_span key);
struct om_file_entry *om_file_index_next_of_key(const struct om_file_index *x, const struct om_file_entry *e);

/* Whether another entry than `except` has this place in the order: no two may. */
bool om_file_index_taken(const struct om_file_index *x, int64_t saved_ms, uint64_t sequence, const struct om_file_entry *except);

/* The newest entry before (time, sequence), the oldest one behind it. */
struct om_file_entry *om_file_index_before(const struct om_file_index *x, int64_t time_ms, uint64_t sequence);
struct om_file_entry *om_file_index_after(const struct om_file_index *x, int64_t time_ms, uint64_t sequence);
static inline int64_t om_file_time(const struct om_file_index *x, const struct om_file_entry *e) { return x->by_time ? e->saved_ms : 0; }
static inline bool om_file_is_newer(const struct om_file_index *x, const struct om_file_entry *a, const struct om_file_entry *b) {
        int64_t p = om_file_time(x, a), q = om_file_time(x, b);
        return p != q ? p > q : a->sequence > b->sequence;
}

#endif
