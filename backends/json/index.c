/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of one file of the JSON storage: index.h says what it holds.
 *
 * Always true: an entry stands in exactly one bucket (none where the index is keyless) and once in the list; `last[level]` is the newest
 * entry that reaches that level, so that what comes in order of time is added without a search.
 */
#include <errno.h>
#include <stdlib.h>

#include "index.h"

/* -- labels -------------------------------------------------------------------------------------------------------- */

static bool is_label(const struct om_file_label *l, const struct om_span parts[3]) {
        const char *p = l->text;
        for (int i = 0; i < 3; p += l->lens[i++])
                if (l->lens[i] != parts[i].len || (parts[i].len && memcmp(p, parts[i].p, parts[i].len) != 0))
                        return false;
        return true;
}

static struct om_file_label *label_get(struct om_file_index *x, const struct om_store_entry *meta) {
        const struct om_span parts[3] = { meta->name, meta->topic, meta->status };
        size_t len = parts[0].len + parts[1].len + parts[2].len;
        struct om_file_label *l = x->recent;
        if (l && is_label(l, parts)) {
                l->refs++;
                return l;
        }
        struct om_file_label *fresh = malloc(sizeof(*fresh) + len);
        if (!fresh)
                return NULL;
        char *p = fresh->text;
        for (int i = 0; i < 3; i++) {
                fresh->lens[i] = (uint32_t) parts[i].len;
                if (parts[i].len)
                        p = (char *) memcpy(p, parts[i].p, parts[i].len) + parts[i].len;
        }
        unsigned key_bytes = (unsigned) (sizeof(fresh->lens) + len);
        HASH_FIND(hh, x->labels, fresh->lens, key_bytes, l);
        if (l) {
                free(fresh);
        } else {
                l = fresh;
                l->refs = 0;
                HASH_ADD_KEYPTR(hh, x->labels, l->lens, key_bytes, l);
                if (!l->hh.tbl) {
                        free(l);
                        return NULL;
                }
        }
        l->refs++;
        x->recent = l;
        return l;
}

static void label_put(struct om_file_index *x, struct om_file_label *l) {
        if (--l->refs > 0)
                return;
        HASH_DEL(x->labels, l);
        if (x->recent == l)
                x->recent = NULL;
        free(l);
}

static struct om_span label_part(const struct om_file_entry *e, int part) {
        const char *p = e->label->text;
        for (int i = 0; i < part; i++)
                p += e->label->lens[i];
        return e->label->lens[part] ? (struct om_span){ p, e->label->lens[part] } : OM_SPAN_NONE;
}

struct om_span om_file_name(const struct om_file_entry *e) {
        return label_part(e, 0);
}
struct om_span om_file_topic(const struct om_file_entry *e) {
        return label_part(e, 1);
}
struct om_span om_file_status(const struct om_file_entry *e) {
        return label_part(e, 2);
}

struct om_span om_file_key(const struct om_file_entry *e) {
        return (struct om_span){ (const char *) &e->newer[e->height], e->key_len };
}

/* -- by key -------------------------------------------------------------------------------------------------------- */

/* Eight bytes at a step: a result's key is hashed five times on its way into the file. */
static uint64_t mix(uint64_t h, struct om_span s) {
        for (size_t step; s.len; s.p += step, s.len -= step) {
                uint64_t word = 0;
                step = s.len < sizeof word ? s.len : sizeof word;
                memcpy(&word, s.p, step);
                h = (h ^ word) * 0x9e3779b97f4a7c15u;
                h ^= h >> 32;
        }
        return h;
}

static size_t bucket_of(const struct om_file_index *x, struct om_span key, struct om_span name) {
        uint64_t h = mix(0xcbf29ce484222325u, key);
        if (x->name_in_hash)
                h = mix(h * 31, name);
        return (size_t) ((h ^ h >> 29) & (x->n_buckets - 1));
}

static int grow(struct om_file_index *x, size_t n) {
        size_t old_n = x->n_buckets;
        struct om_file_entry **old = x->buckets, **buckets = calloc(n, sizeof(struct om_file_entry *));
        if (!buckets)
                return -ENOMEM;
        x->buckets = buckets;
        x->n_buckets = n;
        for (size_t i = 0; i < old_n; i++)
                for (struct om_file_entry *e = old[i], *next; e; e = next) {
                        size_t b = bucket_of(x, om_file_key(e), om_file_name(e));
                        next = e->bucket_next;
                        e->bucket_next = buckets[b];
                        buckets[b] = e;
                }
        free(old);
        return 0;
}

int om_file_index_reserve(struct om_file_index *x, uint64_t n) {
        size_t buckets = 64;
        if (x->keyless || n > SIZE_MAX / 4)
                return x->keyless ? 0 : -ENOMEM;
        while (buckets < n)
                buckets *= 2;
        return buckets > x->n_buckets ? grow(x, buckets) : 0;
}

struct om_file_entry *om_file_index_find(const struct om_file_index *x, struct om_span key, struct om_span name) {
        if (!x->n_buckets)
                return NULL;
        for (struct om_file_entry *e = x->buckets[bucket_of(x, key, name)]; e; e = e->bucket_next)
                if (om_span_eq(om_file_key(e), key) && om_span_eq(om_file_name(e), name))
                        return e;
        return NULL;
}

struct om_file_entry *om_file_index_of_key(const struct om_file_index *x, struct om_span key) {
        struct om_file_entry *e = NULL;
        if (x->name_in_hash)
                e = x->first[0];
        else if (x->n_buckets)
                e = x->buckets[bucket_of(x, key, OM_SPAN_NONE)];
        while (e && !om_span_eq(om_file_key(e), key))
                e = x->name_in_hash ? e->newer[0] : e->bucket_next;
        return e;
}

struct om_file_entry *om_file_index_next_of_key(const struct om_file_index *x, const struct om_file_entry *from) {
        struct om_span key = om_file_key(from);
        struct om_file_entry *e = x->name_in_hash ? from->newer[0] : from->bucket_next;
        while (e && !om_span_eq(om_file_key(e), key))
                e = x->name_in_hash ? e->newer[0] : e->bucket_next;
        return e;
}

struct om_file_entry *om_file_index_newest(const struct om_file_index *x, struct om_span key, int64_t now_ms) {
        struct om_file_entry *newest = NULL;
        for (struct om_file_entry *e = om_file_index_of_key(x, key); e; e = om_file_index_next_of_key(x, e))
                if (om_file_alive(e, now_ms) && (!newest || om_file_is_newer(x, e, newest)))
                        newest = e;
        return newest;
}

/* -- in order ------------------------------------------------------------------------------------------------------ */

/* For each level the newest entry before (time, sequence); NULL: the beginning. */
static void predecessors(const struct om_file_index *x, int64_t time_ms, uint64_t sequence, struct om_file_entry *ret[OM_FILE_LEVELS]) {
        struct om_file_entry *at = NULL;
        for (int level = OM_FILE_LEVELS - 1; level >= 0; level--) {
                for (;;) {
                        struct om_file_entry *next = at ? at->newer[level] : x->first[level];
                        if (!next || om_file_time(x, next) > time_ms || (om_file_time(x, next) == time_ms && next->sequence >= sequence))
                                break;
                        at = next;
                }
                ret[level] = at;
        }
}

struct om_file_entry *om_file_index_before(const struct om_file_index *x, int64_t time_ms, uint64_t sequence) {
        struct om_file_entry *before[OM_FILE_LEVELS];
        predecessors(x, time_ms, sequence, before);
        return before[0];
}

struct om_file_entry *om_file_index_after(const struct om_file_index *x, int64_t time_ms, uint64_t sequence) {
        struct om_file_entry *before[OM_FILE_LEVELS];
        predecessors(x, time_ms, sequence + 1, before);
        return before[0] ? before[0]->newer[0] : x->first[0];
}

static void list_insert(struct om_file_index *x, struct om_file_entry *e) {
        struct om_file_entry *before[OM_FILE_LEVELS], *newest = x->last[0];
        if (!newest || om_file_is_newer(x, e, newest))
                memcpy(before, x->last, sizeof(before));
        else
                predecessors(x, om_file_time(x, e), e->sequence, before);
        for (int level = 0; level < e->height; level++) {
                struct om_file_entry **link = before[level] ? &before[level]->newer[level] : &x->first[level];
                e->newer[level] = *link;
                *link = e;
                if (!e->newer[level])
                        x->last[level] = e;
        }
        e->older = before[0];
        if (e->newer[0])
                e->newer[0]->older = e;
}

static void list_remove(struct om_file_index *x, struct om_file_entry *e) {
        struct om_file_entry *before[OM_FILE_LEVELS];
        predecessors(x, om_file_time(x, e), e->sequence, before);
        for (int level = 0; level < e->height; level++) {
                *(before[level] ? &before[level]->newer[level] : &x->first[level]) = e->newer[level];
                if (x->last[level] == e)
                        x->last[level] = before[level];
        }
        if (e->newer[0])
                e->newer[0]->older = e->older;
}

bool om_file_index_taken(const struct om_file_index *x, int64_t saved_ms, uint64_t sequence, const struct om_file_entry *except) {
        int64_t time_ms = x->by_time ? saved_ms : 0;
        const struct om_file_entry *e = x->last[0];

        if (!e || om_file_time(x, e) < time_ms || (om_file_time(x, e) == time_ms && e->sequence < sequence))
                return false; /* behind all: the usual case */
        e = om_file_index_after(x, time_ms, sequence - 1);
        return e && e != except && e->sequence == sequence && om_file_time(x, e) == time_ms;
}

/* -- changing ------------------------------------------------------------------------------------------------------ */

/* What an entry takes in a file beside its key and value: names of members, times, quotes. */
enum { AROUND = 160 };

static uint64_t bytes_of(const struct om_file_entry *e) { return (uint64_t) e->length + e->key_len + AROUND; }

/* 0 to 3. Each number of om_random_u64() costs a system call (it looks for a fork), and an entry needs a few bits of it only. */
static unsigned two_bits(struct om_file_index *x) {
        unsigned bits;
        if (x->n_dice == 0) {
                x->dice = om_random_u64();
                x->n_dice = 32;
        }
        bits = x->dice & 3;
        x->dice >>= 2;
        x->n_dice--;
        return bits;
}

static uint8_t random_height(struct om_file_index *x) { /* a quarter of each level reaches the next */
        uint8_t height = 1;
        while (height < OM_FILE_LEVELS && two_bits(x) == 0)
                height++;
        return height;
}

static struct om_file_entry *entry_new(struct om_file_index *x, const struct om_store_entry *meta) {
        uint8_t height = random_height(x);
        struct om_file_entry *e = malloc(sizeof(*e) + height * sizeof(e->newer[0]) + meta->key.len);
        if (!e)
                return NULL;
        e->height = height;
        e->key_len = (uint16_t) meta->key.len;
        if (meta->key.len)
                memcpy(&e->newer[height], meta->key.p, meta->key.len);
        e->label = label_get(x, meta);
        if (!e->label) {
                free(e);
                return NULL;
        }
        return e;
}

static void fill(struct om_file_index *x, struct om_file_entry *e, const struct om_store_entry *meta, uint64_t place, uint32_t length) {
        e->saved_ms = meta->saved_ms;
        e->expires_ms = meta->expires_ms;
        e->place = place;
        e->length = length;
        x->live_bytes += bytes_of(e);
}

/* Replaces what stands there and keeps its place in the order. */
static int put_in_place(
        struct om_file_index *x, struct om_file_entry *e, const struct om_store_entry *meta, uint64_t place, uint32_t length) {
        struct om_file_label *label = label_get(x, meta);
        if (!label)
                return -ENOMEM;
        label_put(x, e->label);
        e->label = label;
        x->live_bytes -= bytes_of(e);
        fill(x, e, meta, place, length);
        return 0;
}

/* A new entry instead of `old`, if there is one. */
static int add(struct om_file_index *x, struct om_file_entry *old, const struct om_store_entry *meta, uint64_t sequence, uint64_t place,
        uint32_t length) {
        if (x->n >= x->n_buckets && !x->keyless && grow(x, x->n_buckets ? x->n_buckets * 2 : 64) < 0)
                return -ENOMEM;
        struct om_file_entry *e = entry_new(x, meta);
        if (!e)
                return -ENOMEM;
        if (old)
                om_file_index_remove(x, old);
        e->sequence = sequence;
        fill(x, e, meta, place, length);
        if (!x->keyless) {
                size_t b = bucket_of(x, meta->key, meta->name);
                e->bucket_next = x->buckets[b];
                x->buckets[b] = e;
        }
        list_insert(x, e);
        x->n++;
        return 0;
}

int om_file_index_put(struct om_file_index *x, const struct om_store_entry *meta, uint64_t sequence, uint64_t place, uint32_t length) {
        struct om_store_entry kept = *meta;
        /* What NAME.json has no place for is not kept here either: what is listed before a reopening is listed after it. */
        if (x->nameless)
                kept.name = OM_SPAN_NONE;
        if (x->keyless)
                kept.key = OM_SPAN_NONE;
        struct om_file_entry *old = x->keyless ? NULL : om_file_index_find(x, kept.key, kept.name);
        if (old && !x->by_time)
                return put_in_place(x, old, &kept, place, length);
        return add(x, old, &kept, sequence, place, length);
}

int om_file_index_add(struct om_file_index *x, const struct om_store_entry *meta, uint64_t sequence, uint64_t place, uint32_t length) {
        return add(x, NULL, meta, sequence, place, length);
}

void om_file_index_remove(struct om_file_index *x, struct om_file_entry *e) {
        if (!x->keyless) {
                struct om_file_entry **link = &x->buckets[bucket_of(x, om_file_key(e), om_file_name(e))];
                while (*link != e)
                        link = &(*link)->bucket_next;
                *link = e->bucket_next;
        }
        list_remove(x, e);
        x->live_bytes -= bytes_of(e);
        x->n--;
        label_put(x, e->label);
        free(e);
}

void om_file_index_clear(struct om_file_index *x) {
        for (struct om_file_entry *e = x->first[0], *next; e; e = next) {
                next = e->newer[0];
                label_put(x, e->label);
                free(e);
        }
        free(x->buckets);
        *x = (struct om_file_index){
                .by_time = x->by_time, .name_in_hash = x->name_in_hash, .nameless = x->nameless, .keyless = x->keyless
        };
}
