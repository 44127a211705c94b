/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The records of logs, groups and attachments, as bytes.
 *
 * Numbers are big-endian and of fixed width; a name is what is left at the end. Reading checks every length, so a damaged record is told as
 * MDB_CORRUPTED and harms nothing. An attachment writes only lanes that are not as they were at its start: one lane is the usual case.
 *
 * Bus thread.
 */
#include <errno.h>

#include "state.h"

/* A record being written: fits the largest, an attachment with all lanes. */
struct record {
        uint8_t bytes[768];
        size_t n;
};
static void w8(struct record *r, uint8_t v) { r->bytes[r->n++] = v; }
static void w16(struct record *r, uint16_t v) {
        w8(r, (uint8_t) (v >> 8));
        w8(r, (uint8_t) v);
}
static void w32(struct record *r, uint32_t v) {
        be32(r->bytes + r->n, v);
        r->n += 4;
}
static void w64(struct record *r, uint64_t v) {
        be64(r->bytes + r->n, v);
        r->n += 8;
}
static void wbytes(struct record *r, const char *p, size_t n) {
        memcpy(r->bytes + r->n, p, n);
        r->n += n;
}

/* A record being read; `bad` once it was too short. */
struct reading {
        const uint8_t *p;
        size_t n;
        bool bad;
};
static const uint8_t *take(struct reading *r, size_t n) {
        static const uint8_t zeros[8];
        const uint8_t *p = r->p;

        if (r->n < n) {
                r->bad = true;
                r->n = 0;
                return zeros;
        }
        r->p += n;
        r->n -= n;
        return p;
}
static uint8_t r8(struct reading *r) { return *take(r, 1); }
static uint16_t r16(struct reading *r) {
        const uint8_t *p = take(r, 2);

        return (uint16_t) (p[0] << 8 | p[1]);
}
static uint32_t r32(struct reading *r) { return rd32(take(r, 4)); }
static uint64_t r64(struct reading *r) { return rd64(take(r, 8)); }
static void rbytes(struct reading *r, char *to, size_t n, size_t max) {
        if (n > max || n > r->n) {
                r->bad = true;
                return;
        }
        memcpy(to, take(r, n), n);
        to[n] = '\0';
}

/* Neighbours mostly: a cursor that stands on the page searches that page, where mdb_put() would come down from the root. */
static int record_put(MDB_cursor *c, const uint8_t key[4], const struct record *r) {
        MDB_val k = val(key, 4), v = val(r->bytes, r->n);

        return mdb_cursor_put(c, &k, &v, 0);
}

enum { LOG_DYING = 1, LOG_PRIVATE = 2 };
enum { GROUP_PATTERN = 1, GROUP_DELETED = 2, GROUP_PURGE = 4 };
enum { ATTACH_DYING = 1 };

int log_write(MDB_cursor *c, const struct log *l) {
        struct record r = { .n = 0 };
        uint8_t key[4];

        w8(&r, (uint8_t) ((l->dying ? LOG_DYING : 0) | (l->private ? LOG_PRIVATE : 0)));
        w16(&r, l->lanes);
        w64(&r, l->next_seq);
        w64(&r, l->in_total);
        w64(&r, l->published);
        w64(&r, l->rows);
        w64(&r, l->depth);
        w64(&r, l->delayed);
        w64(&r, l->bytes);
        w64(&r, l->orphan_floor);
        w64(&r, (uint64_t) l->created_ms);
        wbytes(&r, l->name, l->name_len);
        be32(key, l->id);
        return record_put(c, key, &r);
}

int log_read(struct log *l, MDB_val key, MDB_val v) {
        struct reading r = { v.mv_data, v.mv_size, key.mv_size != 4 };
        uint8_t flags;

        if (r.bad)
                return MDB_CORRUPTED;
        l->id = rd32(key.mv_data);
        flags = r8(&r);
        l->dying = flags & LOG_DYING;
        l->private = flags & LOG_PRIVATE;
        l->lanes = r16(&r);
        l->next_seq = r64(&r);
        l->in_total = r64(&r);
        l->published = r64(&r);
        l->rows = r64(&r);
        l->depth = r64(&r);
        l->delayed = r64(&r);
        l->bytes = r64(&r);
        l->orphan_floor = r64(&r);
        l->created_ms = (int64_t) r64(&r);
        l->name_len = r.n;
        rbytes(&r, l->name, r.n, OM_TOPIC_MAX);
        for (unsigned i = 0; i < LANES; i++)
                l->lane_end[i] = l->lanes & 1u << i ? l->next_seq : 0;
        return r.bad ? MDB_CORRUPTED : 0;
}

int group_write(struct om_bus *b, const struct group *g) {
        struct record r = { .n = 0 };
        uint8_t key[4];

        w8(&r, (uint8_t) ((g->pattern ? GROUP_PATTERN : 0) | (g->deleted ? GROUP_DELETED : 0) | (g->purge ? GROUP_PURGE : 0)));
        w32(&r, g->private_log);
        w64(&r, g->finished);
        w64(&r, g->expired);
        w64(&r, g->dead);
        w64(&r, g->dlq_next);
        w64(&r, (uint64_t) g->created_ms);
        w16(&r, (uint16_t) g->topic_len);
        wbytes(&r, g->topic, g->topic_len);
        wbytes(&r, g->agent, g->agent_len);
        be32(key, g->id);
        return t_put(b, T_GROUPS, key, 4, r.bytes, r.n);
}

void group_set_name(struct group *g) {
        memcpy(g->name, g->topic, g->topic_len);
        g->name[g->topic_len] = '\0';
        memcpy(g->name + g->topic_len + 1, g->agent, g->agent_len);
}

int group_read(struct group *g, MDB_val key, MDB_val v) {
        struct reading r = { v.mv_data, v.mv_size, key.mv_size != 4 };
        uint8_t flags;

        if (r.bad)
                return MDB_CORRUPTED;
        g->id = rd32(key.mv_data);
        flags = r8(&r);
        g->pattern = flags & GROUP_PATTERN;
        g->deleted = flags & GROUP_DELETED;
        g->purge = flags & GROUP_PURGE;
        g->private_log = r32(&r);
        g->finished = r64(&r);
        g->expired = r64(&r);
        g->dead = r64(&r);
        g->dlq_next = r64(&r);
        g->created_ms = (int64_t) r64(&r);
        g->topic_len = r16(&r);
        rbytes(&r, g->topic, g->topic_len, OM_TOPIC_MAX);
        g->agent_len = r.n;
        rbytes(&r, g->agent, r.n, OM_NAME_MAX);
        if (r.bad)
                return MDB_CORRUPTED;
        group_set_name(g);
        return 0;
}

int attach_write(MDB_cursor *c, const struct attach *at) {
        struct record r = { .n = 0 };
        uint16_t lanes = 0;
        uint8_t key[4];

        for (unsigned i = 0; i < LANES; i++)
                if (at->lanes[i].floor != at->start || at->lanes[i].mark != at->start)
                        lanes |= (uint16_t) (1u << i);
        w8(&r, at->dying ? ATTACH_DYING : 0);
        w32(&r, at->group->id);
        w32(&r, at->log->id);
        w64(&r, at->base);
        w64(&r, at->finished);
        w64(&r, at->n_done);
        w64(&r, at->n_pend);
        w64(&r, at->start);
        w64(&r, at->end);
        w16(&r, lanes);
        for (unsigned i = 0; i < LANES; i++)
                if (lanes & 1u << i) {
                        w64(&r, at->lanes[i].floor);
                        w64(&r, at->lanes[i].mark);
                }
        be32(key, at->id);
        return record_put(c, key, &r);
}

int attach_read(struct attach *at, MDB_val key, MDB_val v, uint32_t *ret_group, uint32_t *ret_log) {
        struct reading r = { v.mv_data, v.mv_size, key.mv_size != 4 };
        uint16_t lanes;

        if (r.bad)
                return MDB_CORRUPTED;
        at->id = rd32(key.mv_data);
        at->dying = r8(&r) & ATTACH_DYING;
        *ret_group = r32(&r);
        *ret_log = r32(&r);
        at->base = r64(&r);
        at->finished = r64(&r);
        at->n_done = r64(&r);
        at->n_pend = r64(&r);
        at->start = r64(&r);
        at->end = r64(&r);
        lanes = r16(&r);
        for (unsigned i = 0; i < LANES; i++) {
                struct lane *lane = &at->lanes[i];

                lane->floor = lane->mark = at->start;
                if (lanes & 1u << i) {
                        lane->floor = r64(&r);
                        lane->mark = r64(&r);
                }
                lane->cursor = lane->floor;
                lane->handed = lane->mark;
        }
        return r.bad ? MDB_CORRUPTED : 0;
}
