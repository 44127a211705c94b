/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry, and deleting. A task's results are read one agent after the other where none is named: there are few, and the newest
 * is the one that was saved last, of those that have not expired.
 *
 * Deleting purges the subject. How many there were is what the purge says, but for results: those that have expired may still be there and
 * are not counted, so they are looked at first. A whole kind is counted by its purge.
 *
 * Loop thread.
 */
#include "store_state.h"

/* -- all results of a task, or the one entry --------------------------------------------------------------------------- */

struct walk {
        struct load load;
        char subject[SUBJECT_MAX];
        bool many;
        void (*each)(struct walk *w); /* of those that have not expired, in the order in which they were saved */
        void (*done)(struct walk *w, int status, const struct om_error *e);
        void *ctx;
};

static void walk_came(struct load *l, int status, const struct om_error *e) {
        struct walk *w = l->ctx;
        uint64_t seq = l->seq;

        if (status == 0 && !om_entry_expired(&l->envelope.entry, om_now_ms()))
                w->each(w);
        if (!w->many || (status < 0 && status != -EINVAL)) {
                w->done(w, status == -ENOENT || status == -EINVAL ? 0 : status, e);
                return;
        }
        nats_load_free(l);
        *l = (struct load){ .store = l->store, .kind = l->kind, .whole = l->whole, .done = walk_came, .ctx = w };
        nats_load_next(l, w->subject, seq + 1);
}

static void walk_start(struct walk *w, struct om_store *s, enum om_store_kind kind, struct om_span key, struct om_span name, bool whole) {
        w->many = kind == OM_STORE_RESULTS && !name.p;
        w->load = (struct load){ .store = s, .kind = kind, .whole = whole, .done = walk_came, .ctx = w };
        nats_entry_subject(w->subject, s, kind, key, name);
        if (w->many)
                nats_load_next(&w->load, w->subject, 1);
        else
                nats_load_subject(&w->load, w->subject);
}

/* -- reading ----------------------------------------------------------------------------------------------------------- */

struct get {
        struct job job; /* first */
        struct om_store_get *op;
        struct walk walk;
        struct om_arena arena; /* the newest so far */
        struct om_store_entry best;
        bool found, no_memory;
};

static void get_free(struct om_job *j) {
        struct get *g = (struct get *) j;

        nats_load_free(&g->walk.load);
        om_arena_deinit(&g->arena);
        free(g);
}

static void get_each(struct walk *w) {
        struct get *g = w->ctx;
        struct om_store_entry *entry = &w->load.envelope.entry;

        if (g->found && entry->saved_ms < g->best.saved_ms)
                return;
        om_arena_deinit(&g->arena);
        g->arena = (struct om_arena){ 0 };
        g->found = om_entry_copy(&g->arena, entry, &g->best);
        g->no_memory |= !g->found;
}

static void get_done(struct walk *w, int status, const struct om_error *e) {
        struct get *g = w->ctx;
        struct om_error mine;

        if (status == 0 && g->no_memory)
                status = om_error_set_errno(&mine, ENOMEM, "NATS"), e = &mine;
        else if (status == 0 && !g->found)
                status = om_error_set(&mine, OM_NOT_FOUND, "there is none"), e = &mine;
        if (status == 0 && !om_job_is_cancelled(&g->job.base)) {
                g->op->arena = g->arena;
                g->op->entry = g->best;
                g->arena = (struct om_arena){ 0 };
        }
        om_job_over(&g->job.base, status, e);
}

int nats_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        int r = nats_store_admit(s, 1024, e);
        struct get *g = r == 0 ? calloc(1, sizeof *g) : NULL;

        if (r < 0)
                return r;
        if (!g)
                return om_error_set_errno(e, ENOMEM, "NATS");
        op->arena = (struct om_arena){ 0 };
        g->op = op;
        g->walk.ctx = g;
        g->walk.each = get_each;
        g->walk.done = get_done;
        nats_store_begin(s, &g->job, &op->op, 1024, get_free);
        walk_start(&g->walk, s, op->kind, op->key.p ? op->key : OM_SPAN(""),
                op->kind == OM_STORE_AGENTS && !op->name.p ? OM_SPAN("") : op->name, true);
        return 0;
}

/* -- deleting ---------------------------------------------------------------------------------------------------------- */

struct removal {
        struct job job; /* first */
        struct om_store_delete *op;
        enum om_store_kind kind;
        struct walk walk;
        struct nats_request req;
        char subject[SUBJECT_MAX], parts[SUBJECT_MAX];
        bool counted;
        uint64_t n;
};

static void removal_free(struct om_job *j) {
        nats_load_free(&((struct removal *) j)->walk.load);
        free(j);
}

static void removal_over(struct removal *m, int status, const struct om_error *e) {
        if (!om_job_is_cancelled(&m->job.base))
                m->op->ret_n = m->n;
        om_job_over(&m->job.base, status, e);
}

static void purged(struct nats_request *r, const struct nats_reply *reply) {
        struct removal *m = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "deleting", &e);

        if (status == 0 && !m->counted)
                m->n = nats_json_u64(reply->data, "purged");
        if (status == 0 && m->job.store->has_parts)
                nats_parts_drop(m->job.store, m->parts, 0);
        removal_over(m, status, &e);
}

static void purge(struct removal *m) {
        struct om_store *s = m->job.store;
        char stream[BUCKET_MAX + 16], body[SUBJECT_MAX + 20];
        struct om_error e;
        int r;

        nats_stream_name(stream, sizeof stream, s, nats_stream_of(m->kind));
        snprintf(body, sizeof body, "{\"filter\":\"%s\"}", m->subject);
        r = nats_call(s->link, &m->req, purged, m, om_span_of(body), "STREAM.PURGE.%s", stream);
        if (r < 0)
                removal_over(m, nats_unsent(r, &e), &e);
}

static void count_each(struct walk *w) { ((struct removal *) w->ctx)->n++; }

static void counted(struct walk *w, int status, const struct om_error *e) {
        struct removal *m = w->ctx;

        if (status < 0)
                removal_over(m, status, e);
        else
                purge(m);
}

int nats_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        int r = nats_store_admit(s, 1024, e);
        struct removal *m = r == 0 ? calloc(1, sizeof *m) : NULL;

        if (r < 0)
                return r;
        if (!m)
                return om_error_set_errno(e, ENOMEM, "NATS");
        op->ret_n = 0;
        m->op = op;
        m->kind = op->kind;
        nats_entry_subject(m->subject, s, op->kind, op->key, op->name);
        nats_parts_subject(m->parts, s, op->kind, op->key, op->name, NULL, 0);
        nats_store_begin(s, &m->job, &op->op, 1024, removal_free);
        if (op->kind == OM_STORE_RESULTS && op->key.p) {
                m->counted = true;
                m->walk.ctx = m;
                m->walk.each = count_each;
                m->walk.done = counted;
                walk_start(&m->walk, s, op->kind, op->key, op->name, false);
        } else
                purge(m);
        return 0;
}
