/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting.
 *
 *   one           what is it? ──▶ the object ──▶ of a result: its place in t/
 *   a task's      their names ──▶ one after the other
 *   a topic's, a whole kind     names, a page at a time ──▶ deleted together; results first, then all places
 *
 * Always true: a result goes before its place, so that there is never one that no list shows; what has expired is deleted and not counted.
 *
 * Loop thread.
 */
#include "store_state.h"

struct removal {
        struct om_job job; /* first */
        struct om_store *store;
        struct om_store_delete *op;
        enum om_store_kind kind;
        struct s3_lock lock;
        struct s3_page page;
        size_t at; /* one after the other: of the page's names */
        struct s3_call call;
        struct s3_drop drop;
        char name[S3_NAME_MAX], index[S3_NAME_MAX];
        bool by_name, places; /* one after the other; the second round of clearing results */
        uint64_t n, n_results;
        int64_t expires_ms;
};

static void next_one(struct removal *m);

static void removal_free(struct om_job *j) {
        struct removal *m = (struct removal *) j;
        struct om_store *s = m->store;

        s3_page_clear(&m->page);
        s3_call_clear(&m->call);
        s3_drop_clear(&m->drop);
        free(m);
        s3_store_is_closed(s);
}

static void over(struct removal *m, int status, const struct om_error *e) {
        struct om_error copy = e ? *e : (struct om_error) OM_ERROR_INIT;

        if (m->lock.held)
                s3_lock_drop(m->store, &m->lock);
        if (!om_job_is_cancelled(&m->job))
                m->op->ret_n = m->n;
        om_job_over(&m->job, status, &copy);
}

static void request(struct removal *m, const char *method, const char *name, void (*done)(struct s3_call *, int, const struct om_error *)) {
        s3_call_clear(&m->call);
        m->call = (struct s3_call){ .client = &m->store->primary, .method = method, .name = name, .done = done, .ctx = m };
        s3_call_start(&m->call);
}

/* -- one ---------------------------------------------------------------------------------------------------------------------------- */

static void one_over(struct removal *m) {
        s3_lock_drop(m->store, &m->lock);
        if (m->at < m->page.n)
                next_one(m);
        else
                over(m, 0, NULL);
}

static void place_deleted(struct s3_call *c, int status, const struct om_error *e) {
        one_over(c->ctx);
} /* a place that is left is nobody's */

static void deleted(struct s3_call *c, int status, const struct om_error *e) {
        struct removal *m = c->ctx;

        if (status < 0 && status != -ENOENT) {
                over(m, status, e);
                return;
        }
        m->n += !m->expires_ms || m->expires_ms > om_now_ms();
        s3_store_etag(m->store, m->name)[0] = 0;
        if (m->index[0])
                request(m, "DELETE", m->index, place_deleted);
        else
                one_over(m);
}

static void looked(struct s3_call *c, int status, const struct om_error *e) {
        struct removal *m = c->ctx;
        char expires[24];

        if (status == -ENOENT)
                one_over(m);
        else if (status < 0)
                over(m, status, e);
        else {
                s3_meta(c, "expires", expires, sizeof expires);
                s3_meta(c, "index", m->index, sizeof m->index);
                m->expires_ms = strtoll(expires, NULL, 10);
                request(m, "DELETE", m->name, deleted);
        }
}

/* Before its turn: then nothing is deleted. */
static bool was_cancelled(struct removal *m) {
        struct om_error e;

        if (!om_job_is_cancelled(&m->job))
                return false;
        om_error_set(&e, OM_UNAVAILABLE, "cancelled");
        over(m, -ECANCELED, &e);
        return true;
}

static void one_granted(struct s3_lock *l) {
        struct removal *m = CONTAINER(l, struct removal, lock);

        if (was_cancelled(m))
                return;
        m->index[0] = 0;
        request(m, "HEAD", m->name, looked);
}

static void one(struct removal *m) {
        m->lock.granted = one_granted;
        s3_lock_take(m->store, &m->lock, m->name);
}

static void next_one(struct removal *m) {
        snprintf(m->name, sizeof m->name, "%s", m->page.names[m->at++].name);
        one(m);
}

/* -- many --------------------------------------------------------------------------------------------------------------------------- */

static void next_page(struct removal *m) { s3_page_start(&m->page); }

static void page_dropped(struct s3_drop *d, int status, const struct om_error *e) {
        struct removal *m = d->ctx;

        if (status < 0)
                over(m, status, e);
        else if (m->page.more)
                next_page(m);
        else if (m->kind == OM_STORE_RESULTS && !m->places) {
                m->places = true;
                m->n_results = m->n;
                m->n = 0;
                m->page.after[0] = 0;
                snprintf(m->page.prefix, sizeof m->page.prefix, "t/");
                next_page(m);
        } else {
                if (m->places && m->n > m->n_results) /* places that were left by somebody who died */
                        m->n = m->n_results;
                over(m, 0, NULL);
        }
}

static void named(struct s3_page *p, int status, const struct om_error *e) {
        struct removal *m = p->ctx;
        struct s3_index index;

        if (status < 0) {
                over(m, status, e);
                return;
        }
        if (m->by_name) {
                if (p->n)
                        next_one(m);
                else
                        over(m, 0, NULL);
                return;
        }
        for (size_t i = 0; i < p->n; i++) {
                s3_drop_add(&m->drop, p->names[i].name);
                m->n += !s3_index_read(p->names[i].name, &index) || !index.expires_ms || index.expires_ms > om_now_ms();
        }
        if (p->n)
                snprintf(p->after, sizeof p->after, "%s", p->names[p->n - 1].name);
        s3_drop_start(&m->drop);
}

static void all_granted(struct s3_lock *l) {
        struct removal *m = CONTAINER(l, struct removal, lock);

        if (was_cancelled(m))
                return;
        memset(m->store->etags, 0, sizeof m->store->etags);
        next_page(m);
}

int s3_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        int r = s3_store_admit(s, sizeof(struct removal), false, e);
        bool has_names = op->kind == OM_STORE_AGENTS || op->kind == OM_STORE_RESULTS;
        struct removal *m;

        if (r < 0)
                return r;
        m = calloc(1, sizeof *m);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "S3");
        op->ret_n = 0;
        m->store = s;
        m->op = op;
        m->kind = op->kind;
        m->lock.kind = op->kind;
        m->page = (struct s3_page){ .client = &s->primary, .done = named, .ctx = m };
        m->drop = (struct s3_drop){ .client = &s->primary, .done = page_dropped, .ctx = m };
        om_job_begin(&s->jobs, &m->job, &op->op, sizeof *m, removal_free);
        if (op->key.p && (op->name.p || !has_names)) {
                s3_entry_name(m->name, op->kind, op->key, op->name);
                one(m);
                return 0;
        }
        if (op->kind == OM_STORE_METRICS)
                snprintf(m->page.prefix, sizeof m->page.prefix, "m/");
        else
                s3_kind_prefix(m->page.prefix, op->kind, op->key);
        m->by_name = op->kind == OM_STORE_RESULTS && op->key.p;
        if (m->by_name)
                next_page(m);
        else {
                m->lock.whole = true;
                m->lock.granted = all_granted;
                s3_lock_take(s, &m->lock, NULL);
        }
        return 0;
}
