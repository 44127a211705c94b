/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One key is brought over: read from the source, then put into the target or deleted there. A key without name stands for all names that
 * were deleted under it: each one that the target still has is a key of its own then. Metrics, which have no keys, go by their time.
 *
 * Always true: a key is busy from here to its end; what fails is dirty again, unless the target will never have it.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "../backends/journal.h"
#include "storage_internal.h"

/* -- one key is brought over --------------------------------------------------------------------------------------- */

struct sync {
        union { /* first */
                struct om_op op;
                struct om_store_get get;
                struct om_store_put put;
                struct om_store_delete remove;
                struct om_store_list list;
        };
        struct mirror *m;
        struct key *key;
        struct part *part;
        struct om_deadline deadline;
        struct om_arena arena; /* what was read */
        struct om_store_entry entry;
        struct om_outcome outcome;
        struct om_span cursor;
};

static void sync_free(struct sync *s) {
        struct mirror *m = s->m;

        m->n_sync--;
        om_arena_deinit(&s->arena);
        free(s);
}

/* 0: the target has it, as the source had it when it was read. */
static void sync_end(struct sync *s, int status, const struct om_error *e) {
        struct mirror *m = s->m;
        struct key *k = s->key;

        mirror_give(m, k, status < 0);
        k->epoch = m->epoch;
        if (status < 0 && s->part == m->target && is_refusal(status) && status != -ENOBUFS) {
                mirror_refuse(m, k, status, e ? e->message : NULL);
        } else if (status < 0) {
                if (status != -ENOBUFS || s->part->n_out == 0)
                        mirror_trouble(m, s->part, status, e);
        } else {
                m->n_synced++;
                mirror_worked(m);
        }
        sync_free(s);
        mirror_settle(m, k);
        routes_changed(m->r);
        mirror_pump(m);
}

static int sync_submit(
        struct sync *s, struct part *p, int (*call)(struct sync *s, struct part *p, struct om_error *e), om_op_done_fn *done) {
        struct om_error e = OM_ERROR_INIT;
        int status;

        s->part = p;
        status = s->m->stopping ? -ECANCELED : part_check(p, &e);
        if (status == 0) {
                s->op.done = done;
                status = call(s, p, &e);
        }
        if (status == 0) {
                mirror_op_begun(s->m, p, &s->deadline, &s->op);
        } else {
                sync_end(s, status, &e);
        }
        return status;
}

static int call_get(struct sync *s, struct part *p, struct om_error *e) { return p->ops->get(p->store, &s->get, e); }
static int call_put(struct sync *s, struct part *p, struct om_error *e) { return p->ops->put(p->store, &s->put, e); }
static int call_remove(struct sync *s, struct part *p, struct om_error *e) { return p->ops->remove(p->store, &s->remove, e); }
static int call_list(struct sync *s, struct part *p, struct om_error *e) { return p->ops->list(p->store, &s->list, e); }

static void on_written(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct om_error mine = OM_ERROR_INIT;

        mirror_op_done(s->m, s->part, &s->deadline);
        if (status == 0 && s->outcome.status < 0) {
                status = s->outcome.status;
                om_error_set(&mine, om_kind_of_errno(status), "%s", s->outcome.why ? s->outcome.why : strerror(-status));
                e = &mine;
        }
        sync_end(s, status, e);
}

static void on_read(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct key *k = s->key;
        enum om_store_kind kind = (enum om_store_kind) k->kind;

        mirror_op_done(s->m, s->part, &s->deadline);
        if (status < 0 && status != -ENOENT) {
                om_arena_deinit(&s->get.arena);
                sync_end(s, status, e);
                return;
        }
        if (status == -ENOENT) {
                om_arena_deinit(&s->get.arena);
                s->remove = (struct om_store_delete){ .kind = kind, .key = key_key(k), .name = key_name(k) };
                sync_submit(s, s->m->target, call_remove, on_written);
                return;
        }
        s->arena = s->get.arena;
        s->entry = s->get.entry;
        s->entry.key = key_key(k);
        s->put = (struct om_store_put){ .kind = kind, .entries = &s->entry, .n = 1, .outcomes = &s->outcome };
        sync_submit(s, s->m->target, call_put, on_written);
}
/* -- what was deleted with all of its names ------------------------------------------------------------------------ */

static void on_listed(struct om_op *op, int status, const struct om_error *e);

static void list_names(struct sync *s) {
        s->list = (struct om_store_list){ .kind = (enum om_store_kind) s->key->kind, .key = key_key(s->key), .cursor = s->cursor };
        sync_submit(s, s->m->target, call_list, on_listed);
}

/* Each name that the target has under it is a key to be synced. */
static int take_name(struct mirror *m, enum om_store_kind kind, struct om_span key, struct om_span name) {
        struct key *k = mirror_key(m, kind, key, name.p ? name : OM_SPAN(""), true);

        if (!k)
                return -ENOMEM;
        k->epoch = m->epoch;
        mirror_mark(m, k);
        mirror_dirty(m, k);
        return 0;
}

static void on_listed(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct om_span next = OM_SPAN_NONE;

        mirror_op_done(s->m, s->part, &s->deadline);
        for (size_t i = 0; status == 0 && i < s->list.n; i++)
                if (om_span_eq(s->list.entries[i].key, key_key(s->key)))
                        status = take_name(s->m, s->list.kind, s->list.entries[i].key, s->list.entries[i].name);
        if (status == 0 && s->list.next_cursor.p) {
                next = om_arena_copy(&s->arena, s->list.next_cursor);
                status = next.p ? 0 : -ENOMEM;
        }
        om_arena_deinit(&s->list.arena);
        s->cursor = next;
        if (status == 0 && next.p)
                list_names(s);
        else
                sync_end(s, status, e);
}

/* Results are asked for the newest, again and again, which costs little; where that one stays, all are listed. */
static void on_newest(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct om_span name = s->get.entry.name.p ? s->get.entry.name : OM_SPAN("");
        uint64_t met = 0;

        mirror_op_done(s->m, s->part, &s->deadline);
        if (status == 0) {
                met = (uint64_t) om_crc32(name.p, name.len) | UINT64_C(1) << 32;
                status = take_name(s->m, OM_STORE_RESULTS, key_key(s->key), name);
        }
        om_arena_deinit(&s->get.arena);
        if (status == 0 && met == s->key->asked) {
                list_names(s);
                return;
        }
        s->key->asked = met;
        if (status == 0)
                mirror_dirty(s->m, s->key); /* again, behind that one */
        sync_end(s, status == -ENOENT ? 0 : status, e);
}

/* -- beginning ----------------------------------------------------------------------------------------------------- */

int sync_begin(struct mirror *m, struct key *k) {
        struct sync *s = calloc(1, sizeof *s);
        enum om_store_kind kind = (enum om_store_kind) k->kind;

        if (!s)
                return -ENOMEM;
        mirror_take(m, k);
        s->m = m;
        s->key = k;
        m->n_sync++;
        if (k->has_name || (kind != OM_STORE_AGENTS && kind != OM_STORE_RESULTS)) {
                s->get = (struct om_store_get){ .kind = kind, .key = key_key(k), .name = key_name(k) };
                return sync_submit(s, source_of(m->r, kind), call_get, on_read);
        }
        if (kind == OM_STORE_AGENTS) {
                list_names(s);
                return 0;
        }
        s->get = (struct om_store_get){ .kind = kind, .key = key_key(k) };
        return sync_submit(s, m->target, call_get, on_newest);
}

/* -- metrics ------------------------------------------------------------------------------------------------------- */

static void metrics_over(struct mirror *m, void *ctx, int status) {
        struct key *k = ctx;

        mirror_give(m, k, status < 0);
        k->epoch = m->epoch;
        if (status >= 0)
                m->n_synced++;
        mirror_settle(m, k);
        routes_changed(m->r);
        mirror_pump(m);
}

void sync_begin_metrics(struct mirror *m) {
        struct key *k = m->metrics_line;

        mirror_take(m, k);
        if (metrics_sync(m, NULL, 0, strtoll(key_key(k).p, NULL, 10), metrics_over, k) < 0) {
                mirror_give(m, k, true);
                mirror_settle(m, k);
        }
}
