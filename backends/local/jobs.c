/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting much, in slices.
 *
 * Deleting a group, a topic or many dead letters marks its objects dying, in the commit that takes their names away; then their rows go, at
 * most SLICE_ROWS a commit, while other work shares the commits. The change completes after its last slice. After a death the marks on the
 * disk start the jobs again.
 *
 * Always true: what is dying is invisible to everybody but its job; jobs run in the order attachments, logs, groups, so that no record
 * points to one that is gone; every slice leaves the counters right.
 *
 * Bus thread, inside the transaction; jobs_committed() after its commit.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

int job_add(struct om_bus *b, enum job_type type, struct log *l, struct attach *at, struct group *g, struct msg_change *msg) {
        struct job *j = calloc(1, sizeof *j);

        if (!j)
                return ENOMEM;
        j->type = type;
        j->serial = b->next_serial++;
        j->log = l;
        j->attach = at;
        j->group = g;
        j->msg = msg;
        *b->jobs_end = j;
        b->jobs_end = &j->next;
        return 0;
}

bool jobs_block_start(struct om_bus *b) {
        for (struct job *j = b->jobs; j; j = j->next)
                if (j->type == JOB_ATTACH || j->type == JOB_PURGE_GROUP)
                        return true;
        return false;
}

int attach_kill(struct om_bus *b, struct attach *at) {
        uint64_t floors[LANES];

        for (unsigned i = 0; i < LANES; i++)
                floors[i] = lane_floor(&at->lanes[i]);
        group_revoke(b, at->group, at);
        attach_forget(b, at);
        for (unsigned i = 0; i < LANES; i++) {
                struct lane *ln = &at->lanes[i];

                ln->floor = ln->cursor = ln->mark = ln->handed = floors[i];
        }
        at->end = at->log->next_seq;
        attach_unlink(b, at);
        attach_dies(b, at);
        attach_dirty(b, at);
        /* What comes now waits for the next first group; what was open for the last one does not. */
        if (!at->log->n_attaches && !at->log->dying) {
                at->log->orphan_floor = at->log->next_seq;
                log_dirty(b, at->log);
        }
        return job_add(b, JOB_ATTACH, NULL, at, NULL, NULL);
}

int log_kill(struct om_bus *b, struct log *l) {
        log_unname(b, l);
        l->dying = true;
        log_dirty(b, l);
        if (b->last_log == l)
                b->last_log = NULL;
        return job_add(b, JOB_LOG, l, NULL, NULL, NULL);
}

int group_kill(struct om_bus *b, struct group *g) {
        if (g->purge)
                return 0;
        if (g->hh_name.tbl)
                HASH_DELETE(hh_name, b->group_names, g);
        g->hh_name.tbl = NULL;
        g->deleted = g->purge = true;
        group_dirty(b, g);
        return job_add(b, JOB_PURGE_GROUP, NULL, NULL, g, NULL);
}

/* Deletes what begins with the prefix. *ret_end: nothing is left. */
static int delete_prefix(struct om_bus *b, enum table t, const void *prefix, size_t len, unsigned *budget, bool *ret_end) {
        MDB_cursor *c;
        int r = mdb_cursor_open(b->txn, b->t[t], &c);

        if (r)
                return r;
        *ret_end = false;
        while (*budget) {
                MDB_val k = val(prefix, len), v;

                r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE);
                if (r == MDB_NOTFOUND || (!r && (k.mv_size < len || memcmp(k.mv_data, prefix, len) != 0))) {
                        *ret_end = true;
                        r = 0;
                        break;
                }
                if (!r)
                        r = mdb_cursor_del(c, 0);
                if (r)
                        break;
                --*budget;
        }
        mdb_cursor_close(c);
        return r;
}

/* -- an attachment ------------------------------------------------------------------------------------------------- */

/* The rows of a lane that this attachment had not finished: who needs none of them any more gives them up. 1: the lane is done. */
static int attach_lane(struct om_bus *b, struct attach *at, uint8_t lane, unsigned *budget) {
        struct lane *ln = &at->lanes[lane];
        struct log *l = at->log;

        while (*budget) {
                uint8_t key[ROW_KEY], mark[ROW_KEY];
                MDB_val k = val(key, sizeof key), v, done;
                struct row row;
                bool needed, was_done;
                uint64_t seq;
                int r;

                row_key(key, l->id, lane, ln->floor);
                r = mdb_cursor_get(b->rows, &k, &v, MDB_SET_RANGE);
                if (r == MDB_NOTFOUND || (!r && (k.mv_size != ROW_KEY || memcmp(k.mv_data, key, 5) != 0)))
                        return 1;
                if (r)
                        return r;
                seq = rd64((uint8_t *) k.mv_data + 5);
                if (seq >= at->end)
                        return 1;
                --*budget;
                row_key(mark, at->id, lane, seq);
                r = at->n_done ? t_get(b, b->txn, T_DONE, mark, sizeof mark, &done) : MDB_NOTFOUND;
                was_done = !r;
                if (r && r != MDB_NOTFOUND)
                        return r;
                r = row_read(&v, &row);
                if (!r)
                        r = row_needed(b, b->txn, l, at, lane, seq, &needed);
                if (!r && !needed && !was_done) {
                        l->depth--;
                        log_dirty(b, l);
                        if (!b->settings.retention_ms || l->private)
                                r = row_delete(b, l, lane, seq, v.mv_size, row.expires_ms);
                        else
                                kept_later(b);
                }
                if (r)
                        return r;
                ln->floor = ln->cursor = ln->mark = ln->handed = seq + 1;
                attach_dirty(b, at);
        }
        return 0;
}

static int job_attach(struct om_bus *b, struct job *j, unsigned *budget) {
        struct attach *at = j->attach;
        uint8_t id[4];
        bool end = true;
        int r = 0;

        for (uint8_t i = 0; i < LANES && !at->log->dying; i++) {
                if (!(at->log->lanes & 1u << i))
                        continue;
                r = attach_lane(b, at, i, budget);
                if (r != 1)
                        return r;
        }
        be32(id, at->id);
        r = delete_prefix(b, T_PEND, id, sizeof id, budget, &end);
        if (!r && end)
                r = delete_prefix(b, T_DONE, id, sizeof id, budget, &end);
        if (!r && end) {
                r = t_del(b, T_ATTACHES, id, sizeof id);
                at->gone = true;
                j->finished = true;
        }
        return r;
}

/* -- a log --------------------------------------------------------------------------------------------------------- */

/* Its tasks that wait for their time are all over that table: each slice looks at some of it. */
static int log_delayed(struct om_bus *b, struct job *j, unsigned *budget) {
        MDB_cursor *c;
        MDB_val k = val(j->at, sizeof j->at), v;
        int r = mdb_cursor_open(b->txn, b->t[T_DELAYED], &c);

        if (r)
                return r;
        for (r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE); !r && *budget; r = mdb_cursor_get(c, &k, &v, MDB_NEXT)) {
                --*budget;
                memcpy(j->at, k.mv_data, k.mv_size < sizeof j->at ? k.mv_size : sizeof j->at);
                if (v.mv_size < 4 || rd32(v.mv_data) != j->log->id)
                        continue;
                r = mdb_cursor_del(c, 0);
                if (r)
                        break;
                j->log->delayed--;
        }
        mdb_cursor_close(c);
        if (r == MDB_NOTFOUND) {
                j->log->delayed = 0;
                r = 0;
        }
        return r;
}

static int job_log(struct om_bus *b, struct job *j, unsigned *budget) {
        struct log *l = j->log;
        uint8_t id[4];
        bool end;
        int r;

        be32(id, l->id);
        r = delete_prefix(b, T_ROWS, id, sizeof id, budget, &end);
        if (!r && end && l->delayed)
                r = log_delayed(b, j, budget);
        log_dirty(b, l);
        if (!r && end && !l->delayed) {
                r = t_del(b, T_LOGS, id, sizeof id);
                b->bytes -= l->bytes;
                l->bytes = 0;
                l->gone = true;
                j->finished = true;
        }
        return r;
}

static int job_group(struct om_bus *b, struct job *j, unsigned *budget) {
        uint8_t id[4];
        bool end;
        int r;

        be32(id, j->group->id);
        r = delete_prefix(b, T_DEAD, id, sizeof id, budget, &end);
        if (!r && end) {
                r = t_del(b, T_GROUPS, id, sizeof id);
                j->group->gone = true;
                j->finished = true;
        }
        return r;
}

/* -- all of them --------------------------------------------------------------------------------------------------- */

int jobs_slice(struct om_bus *b) {
        unsigned budget = SLICE_ROWS;
        int r = 0;

        for (struct job *j = b->jobs; j && budget && !r; j = j->next) {
                switch (j->type) {
                case JOB_ATTACH:
                        r = job_attach(b, j, &budget);
                        break;
                case JOB_LOG:
                        r = job_log(b, j, &budget);
                        break;
                case JOB_PURGE_GROUP:
                        r = job_group(b, j, &budget);
                        break;
                case JOB_LETTERS:
                        r = letters_slice(b, j, &budget);
                        break;
                }
                if (!j->finished)
                        break;
        }
        return r;
}

void jobs_committed(struct om_bus *b) {
        struct msg **p = &b->waiters;

        while (b->jobs && b->jobs->finished) {
                struct job *j = b->jobs;

                b->jobs = j->next;
                if (!b->jobs)
                        b->jobs_end = &b->jobs;
                if (j->attach)
                        attach_free(b, j->attach);
                if (j->log)
                        log_free(b, j->log);
                if (j->type == JOB_PURGE_GROUP)
                        group_free(b, j->group);
                free(j);
        }
        while (*p) {
                struct msg *m = *p;
                struct msg_change *c = (struct msg_change *) m;

                c->n += c->n_slice;
                c->n_slice = 0;
                c->next_id = c->slice_id;
                if (b->jobs && b->jobs->serial <= m->serial) {
                        p = &m->next;
                        continue;
                }
                *p = m->next;
                msg_done(b, m, 0);
        }
}
