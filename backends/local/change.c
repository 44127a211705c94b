/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting groups and topics, replaying and purging dead letters, seeking.
 *
 * Always true:
 *   - a name is free again in the commit that deletes it; what it held goes in slices (jobs.c), and the change completes after the last;
 *   - a dead letter given back is deleted from the dead letters and put into the group's private log in one transaction;
 *   - seeking is a new attachment where the group shall start, and the death of the old one, in one transaction. What is out is revoked.
 *   - a deleted group whose dead letters were kept stays as a record without a log, until they are purged or the group is made again.
 *
 * Bus thread, inside the transaction.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

static int refuse(struct msg_change *m, enum om_kind kind, const char *what) {
        m->m.status = om_error_set(&m->m.error, kind, "%s: topic \"%.*s\", agent \"%.*s\"", what, OM_PRI(m->topic), OM_PRI(m->agent));
        return 0;
}

static void group_unserve(struct group *g) {
        if (g->sub)
                g->sub->group = NULL;
        g->sub = NULL;
}

static int group_delete(struct om_bus *b, struct group *g, bool letters, uint64_t *n) {
        struct log *l = NULL;
        int r = 0;

        if (g->private_log)
                HASH_FIND(hh_id, b->logs, &g->private_log, sizeof g->private_log, l);
        while (g->attaches && !r) {
                *n += attach_remaining(g->attaches);
                r = attach_kill(b, g->attaches);
        }
        if (!r && l)
                r = log_kill(b, l);
        if (r)
                return r;
        group_unserve(g);
        g->private_log = 0;
        g->deleted = true;
        group_dirty(b, g);
        return letters || g->dead == 0 ? group_kill(b, g) : 0;
}

static int delete_group(struct om_bus *b, struct msg_change *m) {
        struct group *g = group_find(b, m->topic, m->agent);

        if (!g || (g->deleted && !m->delete_dead_letters))
                return refuse(m, OM_NOT_FOUND, "no such group");
        if (g->deleted) /* only its dead letters are left */
                return group_kill(b, g);
        return group_delete(b, g, m->delete_dead_letters, &m->n_slice);
}

static int delete_topic(struct om_bus *b, struct msg_change *m) {
        struct log *l = log_find(b, m->topic);
        struct group *g, *tmp;
        bool found = l != NULL;
        uint64_t n = 0;
        int r = 0;

        if (l)
                m->n_slice = l->depth + l->delayed;
        HASH_ITER (hh_name, b->group_names, g, tmp) {
                if (g->topic_len != m->topic.len || memcmp(g->topic, m->topic.p, g->topic_len) != 0)
                        continue;
                found |= !g->deleted || m->delete_dead_letters;
                if (!g->deleted)
                        r = group_delete(b, g, m->delete_dead_letters, &n);
                else if (m->delete_dead_letters)
                        r = group_kill(b, g);
                if (r)
                        return r;
        }
        while (l && l->attaches && !r) /* of patterns */
                r = attach_kill(b, l->attaches);
        if (!r && l)
                r = log_kill(b, l);
        return found || r ? r : refuse(m, OM_NOT_FOUND, "no such topic");
}

static int seek(struct om_bus *b, struct msg_change *m) {
        struct group *g = group_find(b, m->topic, m->agent);
        enum om_start start = m->start == OM_START_DEFAULT ? OM_START_FIRST : m->start;
        struct attach *next, *fresh;
        int r;

        if (!g || g->deleted)
                return refuse(m, OM_NOT_FOUND, "no such group");
        for (struct attach *at = g->attaches; at; at = next) {
                next = at->group_next;
                if (at->log->private)
                        continue;
                r = attach_start(b, g, at->log, start, m->start_ms, &fresh); /* goes before `at` on the list */
                if (!r)
                        r = attach_kill(b, at);
                if (r)
                        return r;
                m->n_slice += attach_remaining(fresh);
        }
        group_wake(b, g);
        return 0;
}

/* -- dead letters -------------------------------------------------------------------------------------------------- */

static bool letter_number(struct om_span id, uint64_t *ret) {
        *ret = 0;
        if (id.len == 0 || id.len > 19)
                return false;
        for (size_t i = 0; i < id.len; i++) {
                if (id.p[i] < '0' || id.p[i] > '9')
                        return false;
                *ret = *ret * 10 + (uint64_t) (id.p[i] - '0');
        }
        return true;
}

/* Takes one out, back into the private log or for good. */
static int letter_take(struct om_bus *b, struct msg_change *m, struct group *g, struct log *to, const uint8_t key[12], const MDB_val *v) {
        struct om_dead_letter letter;
        struct om_buf copy = OM_BUF_INIT;
        uint64_t task_key;
        uint8_t lane;
        int r = letter_read(v, &letter, &task_key, &lane);

        if (!r && to) {
                om_buf_put_span(&copy, letter.record); /* its page may change while the row is put */
                r = om_buf_ok(&copy) ? row_put(b, to, lane, b->now_ms, 0, task_key, om_buf_span(&copy)) : ENOMEM;
        }
        if (!r)
                r = t_del(b, T_DEAD, key, 12);
        om_buf_deinit(&copy);
        if (r)
                return r;
        g->dead--;
        group_dirty(b, g);
        m->n_slice++;
        return 0;
}

static int private_log(struct om_bus *b, struct group *g, struct log **ret) {
        *ret = NULL;
        if (g->private_log)
                HASH_FIND(hh_id, b->logs, &g->private_log, sizeof g->private_log, *ret);
        return *ret ? 0 : log_make_private(b, g, ret);
}

/* A deleted group without dead letters has nothing left to stay for. */
static int drop_empty(struct om_bus *b, struct group *g) { return g->deleted && g->dead == 0 ? group_kill(b, g) : 0; }

int letters_slice(struct om_bus *b, struct job *j, unsigned *budget) {
        struct msg_change *m = j->msg;
        struct group *g = group_by_id(b, m->group_id);
        struct log *to = NULL;
        uint8_t key[12];
        MDB_cursor *c;
        MDB_val k = val(key, sizeof key), v;
        int r = 0;

        j->finished = true;
        if (!g || g->purge || (g->deleted && m->what == OM_CHANGE_REPLAY_DEAD)) /* deleted meanwhile */
                return 0;
        if (m->what == OM_CHANGE_REPLAY_DEAD)
                r = private_log(b, g, &to);
        if (!r)
                r = mdb_cursor_open(b->txn, b->t[T_DEAD], &c);
        if (r)
                return r;
        m->slice_id = m->next_id;
        for (;;) {
                uint8_t found[12];

                be32(key, g->id);
                be64(key + 4, m->slice_id);
                k = val(key, sizeof key);
                r = mdb_cursor_get(c, &k, &v, MDB_SET_RANGE);
                if (r || k.mv_size != 12 || memcmp(k.mv_data, key, 4) != 0 || rd64((uint8_t *) k.mv_data + 4) >= m->end_id)
                        break;
                if (*budget == 0) {
                        j->finished = false;
                        break;
                }
                --*budget;
                memcpy(found, k.mv_data, sizeof found);
                m->slice_id = rd64(found + 4) + 1;
                r = letter_take(b, m, g, to, found, &v);
                if (r)
                        break;
        }
        mdb_cursor_close(c);
        if (r && r != MDB_NOTFOUND)
                return r;
        return j->finished ? drop_empty(b, g) : 0;
}

static int letters(struct om_bus *b, struct msg_change *m) {
        bool replay = m->what == OM_CHANGE_REPLAY_DEAD;
        struct group *g = group_find(b, m->topic, m->agent);
        struct log *to = NULL;
        int r = 0;

        if (!g || (g->deleted && replay))
                return refuse(m, OM_NOT_FOUND, g ? "the group is deleted; register the agent again, then replay" : "no such group");
        m->group_id = g->id;
        if (m->n_ids == 0) {
                m->next_id = m->slice_id = 0;
                m->end_id = g->dlq_next;
                return job_add(b, JOB_LETTERS, NULL, NULL, NULL, m);
        }
        if (replay)
                r = private_log(b, g, &to);
        for (size_t i = 0; i < m->n_ids && !r; i++) {
                uint8_t key[12];
                uint64_t n;
                MDB_val v;

                if (!letter_number(m->ids[i], &n))
                        continue;
                be32(key, g->id);
                be64(key + 4, n);
                r = t_get(b, b->txn, T_DEAD, key, sizeof key, &v);
                if (r == MDB_NOTFOUND) {
                        r = 0;
                        continue;
                }
                if (!r)
                        r = letter_take(b, m, g, to, key, &v);
        }
        return r ? r : drop_empty(b, g);
}

int change_apply(struct om_bus *b, struct msg_change *m) {
        m->m.status = 0;
        m->n = m->n_slice = 0;
        switch (m->what) {
        case OM_CHANGE_DELETE_GROUP:
                return delete_group(b, m);
        case OM_CHANGE_DELETE_TOPIC:
                return delete_topic(b, m);
        case OM_CHANGE_REPLAY_DEAD:
        case OM_CHANGE_PURGE_DEAD:
                return letters(b, m);
        case OM_CHANGE_SEEK:
                return seek(b, m);
        case OM_CHANGE_CONFIGURE: /* refused by local_change() */
                break;
        }
        return EINVAL;
}
