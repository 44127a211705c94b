/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logs, groups and attachments: what they are in memory, their records on disk, and how one becomes the other.
 *
 * Always true: memory is the disk plus what the transaction under way has changed; every change marks its object dirty and model_flush()
 * writes each dirty object once, at the end of the transaction. So a batch of a thousand tasks of one topic writes the topic once.
 * When a transaction fails, all of it is forgotten and read again; what is with the core is found again through the subs' lists of
 * deliveries.
 *
 * Starting reads these records and the first key of four tables; tasks are not read, however many there are.
 *
 * Bus thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

/* -- dirty --------------------------------------------------------------------------------------------------------- */

void log_dirty(struct om_bus *b, struct log *l) {
        if (l->dirty)
                return;
        l->dirty = true;
        l->dirty_next = b->dirty_logs;
        b->dirty_logs = l;
}
void group_dirty(struct om_bus *b, struct group *g) {
        if (g->dirty)
                return;
        g->dirty = true;
        g->dirty_next = b->dirty_groups;
        b->dirty_groups = g;
}
void attach_dirty(struct om_bus *b, struct attach *at) {
        if (at->dirty)
                return;
        at->dirty = true;
        at->dirty_next = b->dirty_attaches;
        b->dirty_attaches = at;
}

/* Moves the lane's floor up to its first unfinished row and takes out the done marks that it passed. */
static int lane_settle(struct om_bus *b, struct attach *at, unsigned i) {
        struct lane *lane = &at->lanes[i];
        uint64_t floor = lane_floor(lane);
        uint8_t from[ROW_KEY];
        MDB_cursor *c;
        MDB_val k, v;
        int r;

        if (lane->handed > lane->mark)
                lane->mark = lane->handed;
        if (floor == lane->floor)
                return 0;
        lane->floor = floor;
        if (lane->mark < floor)
                lane->mark = floor;
        if (!at->n_done)
                return 0;
        r = mdb_cursor_open(b->txn, b->t[T_DONE], &c);
        if (r)
                return r;
        row_key(from, at->id, (uint8_t) i, 0);
        k = val(from, ROW_KEY);
        for (r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE); !r; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                if (memcmp(k.mv_data, from, 5) != 0 || rd64((uint8_t *) k.mv_data + 5) >= floor)
                        break;
                r = mdb_cursor_del(c, 0);
                if (r)
                        break;
                at->n_done--;
        }
        mdb_cursor_close(c);
        return r == MDB_NOTFOUND ? 0 : r;
}

static int flush_attaches(struct om_bus *b) {
        MDB_cursor *c;
        int r = b->dirty_attaches ? mdb_cursor_open(b->txn, b->t[T_ATTACHES], &c) : 0;

        if (r || !b->dirty_attaches)
                return r;
        for (struct attach *at; !r && (at = b->dirty_attaches);) {
                for (unsigned i = 0; i < LANES && !r && !at->dying; i++)
                        r = lane_settle(b, at, i);
                if (!r && !at->gone)
                        r = attach_write(c, at);
                if (r)
                        break;
                at->dirty = false;
                b->dirty_attaches = at->dirty_next;
        }
        mdb_cursor_close(c);
        return r;
}

static int flush_groups(struct om_bus *b) {
        int r = 0;

        for (struct group *g; !r && (g = b->dirty_groups);) {
                r = g->gone ? 0 : group_write(b, g);
                if (r)
                        break;
                g->dirty = false;
                b->dirty_groups = g->dirty_next;
        }
        return r;
}

static int flush_logs(struct om_bus *b) {
        MDB_cursor *c;
        int r = b->dirty_logs ? mdb_cursor_open(b->txn, b->t[T_LOGS], &c) : 0;

        if (r || !b->dirty_logs)
                return r;
        for (struct log *l; !r && (l = b->dirty_logs);) {
                r = l->gone ? 0 : log_write(c, l);
                if (r)
                        break;
                l->dirty = false;
                b->dirty_logs = l->dirty_next;
        }
        mdb_cursor_close(c);
        return r;
}

int model_flush(struct om_bus *b) {
        int r = b->oom ? ENOMEM : redelivered_flush(b);

        if (!r)
                r = flush_attaches(b);
        if (!r)
                r = flush_groups(b);
        if (!r)
                r = flush_logs(b);
        if (!r && b->meta_dirty) {
                uint8_t ids[20];

                be32(ids, b->next_log);
                be32(ids + 4, b->next_group);
                be32(ids + 8, b->next_attach);
                be64(ids + 12, b->next_delayed);
                r = t_put(b, T_META, "ids", 3, ids, sizeof ids);
                b->meta_dirty = r != 0;
        }
        return r;
}

/* -- finding and making -------------------------------------------------------------------------------------------- */

struct log *log_find(struct om_bus *b, struct om_span name) {
        struct log *l;

        HASH_FIND(hh_name, b->topics, name.p, name.len, l);
        return l;
}

struct group *group_by_id(struct om_bus *b, uint32_t id) {
        struct group *g;

        HASH_FIND(hh_id, b->groups, &id, sizeof id, g);
        return g;
}

struct group *group_find(struct om_bus *b, struct om_span topic, struct om_span agent) {
        char name[sizeof((struct group *) 0)->name];
        struct group *g;

        if (topic.len > OM_TOPIC_MAX || agent.len > OM_NAME_MAX)
                return NULL;
        memcpy(name, topic.p, topic.len);
        name[topic.len] = '\0';
        memcpy(name + topic.len + 1, agent.p, agent.len);
        HASH_FIND(hh_name, b->group_names, name, topic.len + 1 + agent.len, g);
        return g;
}

/* uthash keeps the table as it was when it has no memory: the handle's `tbl` says so. */
static int log_index(struct om_bus *b, struct log *l) {
        HASH_ADD(hh_id, b->logs, id, sizeof l->id, l);
        if (!l->hh_id.tbl)
                return ENOMEM;
        if (l->name_len && !l->dying) {
                HASH_ADD_KEYPTR(hh_name, b->topics, l->name, l->name_len, l);
                if (!l->hh_name.tbl)
                        return ENOMEM;
        }
        return 0;
}

static int group_index(struct om_bus *b, struct group *g) {
        HASH_ADD(hh_id, b->groups, id, sizeof g->id, g);
        if (!g->hh_id.tbl)
                return ENOMEM;
        if (!g->purge) {
                HASH_ADD_KEYPTR(hh_name, b->group_names, g->name, group_name_len(g), g);
                if (!g->hh_name.tbl)
                        return ENOMEM;
        }
        if (g->pattern) {
                g->pattern_next = b->patterns;
                b->patterns = g;
        }
        return 0;
}

void attach_dies(struct om_bus *b, struct attach *at) {
        at->dying = true;
        at->log_next = at->log->dying_attaches;
        at->log->dying_attaches = at;
}

static int attach_index(struct om_bus *b, struct attach *at) {
        HASH_ADD(hh_id, b->attach_ids, id, sizeof at->id, at);
        if (!at->hh_id.tbl)
                return ENOMEM;
        if (at->dying) {
                attach_dies(b, at);
                return 0;
        }
        at->log_next = at->log->attaches;
        at->log->attaches = at;
        at->log->n_attaches++;
        at->group_next = at->group->attaches;
        at->group->attaches = at;
        return 0;
}

static int log_new(struct om_bus *b, struct om_span name, bool private, struct log **ret) {
        struct log *l = calloc(1, sizeof *l);
        int r;

        if (!l)
                return ENOMEM;
        l->id = b->next_log++;
        b->meta_dirty = true;
        l->private = private;
        l->created_ms = b->now_ms;
        l->name_len = name.len;
        if (name.len)
                memcpy(l->name, name.p, name.len);
        r = log_index(b, l);
        if (r) { /* the transaction fails, and the reload frees what is indexed */
                if (!l->hh_id.tbl)
                        free(l);
                return r;
        }
        log_dirty(b, l);
        *ret = l;
        return 0;
}

int log_make(struct om_bus *b, struct om_span name, struct log **ret) {
        int r;

        if (name.len == 0 || name.len > OM_TOPIC_MAX)
                return EINVAL;
        r = log_new(b, name, false, ret);
        /* A topic made later belongs to every pattern that matches, from its first task on. */
        for (struct group *g = b->patterns; g && !r; g = g->pattern_next) {
                struct attach *at;

                if (!g->deleted && om_topic_matches((struct om_span){ g->topic, g->topic_len }, name))
                        r = attach_make(b, *ret, g, 0, 0, &at);
        }
        return r;
}

int log_make_private(struct om_bus *b, struct group *g, struct log **ret) {
        struct attach *at;
        int r = log_new(b, OM_SPAN_NONE, true, ret);

        if (r)
                return r;
        g->private_log = (*ret)->id;
        group_dirty(b, g);
        return attach_make(b, *ret, g, 0, 0, &at);
}

int group_make(struct om_bus *b, struct om_span topic, struct om_span agent, struct group **ret) {
        struct group *g = calloc(1, sizeof *g);
        int r;

        if (!g)
                return ENOMEM;
        g->id = b->next_group++;
        b->meta_dirty = true;
        g->topic_len = topic.len;
        memcpy(g->topic, topic.p, topic.len);
        g->agent_len = agent.len;
        memcpy(g->agent, agent.p, agent.len);
        g->pattern = om_topic_is_pattern(topic);
        g->created_ms = b->now_ms;
        g->loaded = true; /* nothing of it is on the disk yet */
        group_set_name(g);
        r = group_index(b, g);
        if (r) {
                if (!g->hh_id.tbl)
                        free(g);
                return r;
        }
        group_dirty(b, g);
        *ret = g;
        return 0;
}

int attach_make(struct om_bus *b, struct log *l, struct group *g, uint64_t start, uint64_t remaining, struct attach **ret) {
        struct attach *at = calloc(1, sizeof *at);
        int r;

        if (!at)
                return ENOMEM;
        at->id = b->next_attach++;
        b->meta_dirty = true;
        at->log = l;
        at->group = g;
        at->start = start;
        at->base = l->in_total - remaining;
        for (unsigned i = 0; i < LANES; i++)
                at->lanes[i].floor = at->lanes[i].mark = at->lanes[i].handed = at->lanes[i].cursor = start;
        r = attach_index(b, at);
        if (r) {
                if (!at->hh_id.tbl)
                        free(at);
                return r;
        }
        attach_dirty(b, at);
        attach_activate(at);
        *ret = at;
        return 0;
}

void log_unname(struct om_bus *b, struct log *l) {
        if (l->hh_name.tbl)
                HASH_DELETE(hh_name, b->topics, l);
        l->hh_name.tbl = NULL;
}

void attach_unlink(struct om_bus *b, struct attach *at) {
        for (struct attach **p = &at->log->attaches; *p; p = &(*p)->log_next)
                if (*p == at) {
                        *p = at->log_next;
                        at->log->n_attaches--;
                        break;
                }
        for (struct attach **p = &at->group->attaches; *p; p = &(*p)->group_next)
                if (*p == at) {
                        *p = at->group_next;
                        break;
                }
        if (at->active) {
                struct group *g = at->group;
                struct attach *last = NULL;

                for (struct attach **p = &g->active; *p;)
                        if (*p == at) {
                                *p = at->active_next;
                        } else {
                                last = *p;
                                p = &(*p)->active_next;
                        }
                g->active_last = last;
                at->active = false;
        }
}

/* -- loading ------------------------------------------------------------------------------------------------------- */

static int load_table(struct om_bus *b, MDB_txn *txn, enum table t, int (*each)(struct om_bus *, MDB_val, MDB_val)) {
        MDB_cursor *c;
        MDB_val k, v;
        int r = mdb_cursor_open(txn, b->t[t], &c);

        if (r)
                return r;
        for (r = mdb_cursor_get(c, &k, &v, MDB_FIRST); !r; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                r = each(b, k, v);
                if (r)
                        break;
        }
        mdb_cursor_close(c);
        return r == MDB_NOTFOUND ? 0 : r;
}

static int load_log(struct om_bus *b, MDB_val k, MDB_val v) {
        struct log *l = calloc(1, sizeof *l);
        int r = l ? log_read(l, k, v) : ENOMEM;

        if (!r)
                r = log_index(b, l);
        if (r) {
                if (l && !l->hh_id.tbl)
                        free(l);
                return r;
        }
        b->bytes += l->bytes;
        return 0;
}

static int load_group(struct om_bus *b, MDB_val k, MDB_val v) {
        struct group *g = calloc(1, sizeof *g);
        int r = g ? group_read(g, k, v) : ENOMEM;

        if (!r)
                r = group_index(b, g);
        if (r && g && !g->hh_id.tbl)
                free(g);
        return r;
}

static int load_attach(struct om_bus *b, MDB_val k, MDB_val v) {
        struct attach *at = calloc(1, sizeof *at);
        uint32_t group, log;
        int r = at ? attach_read(at, k, v, &group, &log) : ENOMEM;

        if (!r) {
                HASH_FIND(hh_id, b->logs, &log, sizeof log, at->log);
                at->group = group_by_id(b, group);
                if (!at->log || !at->group)
                        r = MDB_CORRUPTED;
        }
        if (!r)
                r = attach_index(b, at);
        if (r) {
                if (at && !at->hh_id.tbl)
                        free(at);
                return r;
        }
        if (at->dying)
                return job_add(b, JOB_ATTACH, NULL, at, NULL, NULL);
        attach_activate(at);
        return 0;
}

/* In the order in which they can end: attachments (queued by now), logs, groups. */
static int load_jobs(struct om_bus *b) {
        struct group *g, *tmp;
        struct log *l, *ltmp;
        int r = 0;

        HASH_ITER (hh_id, b->logs, l, ltmp)
                if (l->dying && !r)
                        r = job_add(b, JOB_LOG, l, NULL, NULL, NULL);
        HASH_ITER (hh_id, b->groups, g, tmp)
                if (g->purge && !r)
                        r = job_add(b, JOB_PURGE_GROUP, NULL, NULL, g, NULL);
        return r;
}

static int load_all(struct om_bus *b, MDB_txn *txn) {
        MDB_cursor *c;
        MDB_val k, v;
        int r = t_get(b, txn, T_META, "ids", 3, &v);

        b->next_log = b->next_group = b->next_attach = 1;
        b->next_delayed = 0;
        if (!r && v.mv_size == 20) {
                b->next_log = rd32(v.mv_data);
                b->next_group = rd32((uint8_t *) v.mv_data + 4);
                b->next_attach = rd32((uint8_t *) v.mv_data + 8);
                b->next_delayed = rd64((uint8_t *) v.mv_data + 12);
        } else if (r != MDB_NOTFOUND) {
                return r ? r : MDB_CORRUPTED;
        }
        r = load_table(b, txn, T_LOGS, load_log);
        if (!r)
                r = load_table(b, txn, T_GROUPS, load_group);
        if (!r)
                r = load_table(b, txn, T_ATTACHES, load_attach);
        if (!r)
                r = load_jobs(b);
        if (r)
                return r;
        r = mdb_cursor_open(txn, b->t[T_ROWS], &c);
        if (r)
                return r;
        memset(b->top_row, 0, sizeof b->top_row);
        r = mdb_cursor_get(c, &k, &v, MDB_LAST);
        if (!r && k.mv_size == ROW_KEY)
                memcpy(b->top_row, k.mv_data, ROW_KEY);
        mdb_cursor_close(c);
        if (r && r != MDB_NOTFOUND)
                return r;
        return sweep_load(b, txn);
}

int model_load(struct om_bus *b) {
        int r = reader_begin(b);

        if (r)
                return r;
        r = load_all(b, b->reader);
        reader_end(b);
        return r;
}

static void group_free_held(struct om_bus *b, struct group *g) {
        struct key_queue *q, *tmp;

        for (unsigned i = 0; i < LANES; i++)
                g->ready[i] = g->ready_last[i] = NULL;
        HASH_ITER (hh, g->keys, q, tmp) {
                HASH_DEL(g->keys, q);
                free(q);
        }
}

void group_free(struct om_bus *b, struct group *g) {
        if (g->sub)
                g->sub->group = NULL;
        if (g->hh_name.tbl)
                HASH_DELETE(hh_name, b->group_names, g);
        HASH_DELETE(hh_id, b->groups, g);
        for (struct group **p = &b->patterns; *p; p = &(*p)->pattern_next)
                if (*p == g) {
                        *p = g->pattern_next;
                        break;
                }
        for (struct group **p = &b->fill; *p; p = &(*p)->fill_next)
                if (*p == g) {
                        *p = g->fill_next;
                        break;
                }
        group_free_held(b, g);
        free(g);
}

void log_free(struct om_bus *b, struct log *l) {
        log_unname(b, l);
        HASH_DELETE(hh_id, b->logs, l);
        free(l);
}

void attach_free(struct om_bus *b, struct attach *at) {
        for (struct attach **p = &at->log->dying_attaches; at->dying && *p; p = &(*p)->log_next)
                if (*p == at) {
                        *p = at->log_next;
                        break;
                }
        HASH_DELETE(hh_id, b->attach_ids, at);
        free(at);
}

void model_free(struct om_bus *b) {
        struct held *h, *htmp;
        struct attach *at, *atmp;
        struct group *g, *gtmp;
        struct log *l, *ltmp;

        HASH_ITER (hh, b->helds, h, htmp) {
                HASH_DEL(b->helds, h);
                if (h->delivery)
                        h->delivery->held = NULL;
                free(h);
        }
        while ((h = b->free_helds)) {
                b->free_helds = h->next;
                free(h);
        }
        b->n_free_helds = 0;
        b->n_heap = 0;
        b->n_redelivered = 0;
        HASH_ITER (hh_id, b->attach_ids, at, atmp) {
                HASH_DELETE(hh_id, b->attach_ids, at);
                free(at);
        }
        HASH_CLEAR(hh_name, b->group_names);
        HASH_ITER (hh_id, b->groups, g, gtmp) {
                HASH_DELETE(hh_id, b->groups, g);
                group_free_held(b, g);
                free(g);
        }
        b->patterns = NULL;
        b->fill = NULL;
        HASH_CLEAR(hh_name, b->topics);
        HASH_ITER (hh_id, b->logs, l, ltmp) {
                HASH_DELETE(hh_id, b->logs, l);
                free(l);
        }
        while (b->jobs) {
                struct job *j = b->jobs;

                b->jobs = j->next;
                free(j);
        }
        b->jobs_end = &b->jobs;
        b->dirty_logs = NULL;
        b->dirty_groups = NULL;
        b->dirty_attaches = NULL;
        b->meta_dirty = false;
        b->last_log = NULL;
        b->bytes = 0;
        for (struct om_bus_sub *s = b->subs; s; s = s->next)
                s->group = NULL;
}

int model_reload(struct om_bus *b) {
        int r;

        model_free(b);
        r = reader_begin(b);
        if (r)
                return r;
        r = load_all(b, b->reader);
        for (struct om_bus_sub *s = b->subs; s && !r; s = s->next) {
                struct group *g = group_by_id(b, s->group_id);

                /* The newest come first: of a group that was deleted under its server and made again, that is the one. */
                if (!g || g->deleted || g->sub)
                        continue;
                s->group = g;
                g->sub = s;
                r = group_load(b, b->reader, g);
                group_wake(b, g);
        }
        reader_end(b);
        return r;
}
