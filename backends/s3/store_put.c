/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing entries.
 *
 *   metrics                          the object, under a name that nobody else has
 *   agents, settings                 the object, on the condition that it is what we last saw, or that there is none
 *   results        its place in t/ ──▶ the object, on the condition that there is none ──▶ the place of the one before is deleted
 *                     condition fails ──▶ who has written it? ──▶ ourselves, by a try that seemed to fail: done
 *                                                              ──▶ somebody else: again, on the condition that it is still that
 *
 * Always true:
 *   - an outcome is 0 only when S3 has acknowledged the object, and for a result its place before it;
 *   - a write that is repeated because nobody knew whether it had come through never replaces what another daemon wrote after it: each has
 * a token with the time in it, by the server's clock;
 *   - writes of one name take effect in the order in which they were asked for (store_lock.c).
 *
 * Loop thread.
 */
#include "store_write.h"

enum { TRIES_MAX = 20 };

static void place(struct s3_write *w);
static void object(struct s3_write *w);

void s3_write_token(struct om_store *s, char out[static S3_TOKEN_MAX], uint64_t *ret_version) {
        uint64_t version = s3_store_version(s);

        snprintf(out, S3_TOKEN_MAX, "%016llx-%016llx", (unsigned long long) version, (unsigned long long) om_random_u64());
        if (ret_version)
                *ret_version = version;
}

int s3_write_init(struct s3_write *w, struct om_store *s, enum om_store_kind kind, const struct om_store_entry *entry) {
        struct om_store_entry known = *entry;

        w->store = s;
        w->kind = kind;
        if (!known.key.p && kind != OM_STORE_METRICS)
                known.key = OM_SPAN("");
        if (kind == OM_STORE_METRICS && !known.expires_ms && s->settings.metrics_ttl_ms)
                known.expires_ms = om_now_ms() + s->settings.metrics_ttl_ms;
        if ((kind == OM_STORE_AGENTS || kind == OM_STORE_RESULTS) && !known.name.p)
                known.name = OM_SPAN("");
        s3_record_put(&w->body, &known);
        known.value.p = NULL; /* its length is what the place tells */
        if (!om_buf_ok(&w->body) || !om_entry_copy(&w->arena, &known, &w->entry))
                return -ENOMEM;
        w->entry.value.len = entry->value.len;
        snprintf(w->expires, sizeof w->expires, "%lld", (long long) known.expires_ms);
        if (kind != OM_STORE_METRICS)
                s3_entry_name(w->name, kind, known.key, known.name);
        return 0;
}

void s3_write_clear(struct s3_write *w) {
        s3_upload_clear(&w->up);
        s3_call_clear(&w->call);
        om_buf_deinit(&w->body);
        om_arena_deinit(&w->arena);
}

static void over(struct s3_write *w, int status, const struct om_error *e) {
        struct om_error copy = e ? *e : (struct om_error) OM_ERROR_INIT;

        if (status == 0 && w->entry.expires_ms)
                s3_sweep_due(w->store);
        if (w->locked)
                s3_lock_drop(w->store, &w->lock);
        w->locked = false;
        w->done(w, status, &copy);
}

static void fresh(struct s3_write *w, const char *method, const char *name, void (*done)(struct s3_call *, int, const struct om_error *)) {
        s3_call_clear(&w->call);
        w->call = (struct s3_call){ .client = &w->store->primary, .method = method, .name = name, .done = done, .ctx = w };
}

/* -- after it -------------------------------------------------------------------------------------------------------------------- */

static void place_dropped(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_write *w = c->ctx;

        if (status < 0) /* lists step over it */
                om_host_log(w->store->host, OM_LOG_DEBUG, "S3: a place of a result is left for the sweep: %s", e->message);
        over(w, 0, NULL);
}

static void drop_place(struct s3_write *w, const char *index) {
        fresh(w, "DELETE", index, place_dropped);
        s3_call_start(&w->call);
}

static void written(struct s3_write *w) {
        if (w->kind == OM_STORE_RESULTS && w->old_index[0] && strcmp(w->old_index, w->index) != 0)
                drop_place(w, w->old_index);
        else
                over(w, 0, NULL);
}

/* -- the object ------------------------------------------------------------------------------------------------------------------ */

static bool remembers(const struct s3_write *w) { return w->kind == OM_STORE_AGENTS || w->kind == OM_STORE_CONFIG; }

static void remember(struct s3_write *w, const char *etag) {
        if (remembers(w))
                snprintf(s3_store_etag(w->store, w->name), S3_ETAG_MAX, "%s", etag);
}

static void seen(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_write *w = c->ctx;
        char token[S3_TOKEN_MAX];

        w->etag[0] = w->old_index[0] = 0;
        if (status == -ENOENT) {
                object(w);
                return;
        }
        if (status < 0) {
                over(w, status, e);
                return;
        }
        s3_meta(c, "write", token, sizeof token);
        s3_meta(c, "index", w->old_index, sizeof w->old_index);
        s3_call_etag(c, w->etag);
        remember(w, w->etag);
        if (strcmp(token, w->token) == 0) {
                w->old_index[0] = 0;
                written(w);
        } else if (w->up.repeated && strcmp(token, w->token) > 0) { /* ours was there, and has been replaced; or might as well have been */
                if (w->kind == OM_STORE_RESULTS)
                        drop_place(w, w->index);
                else
                        over(w, 0, NULL);
        } else
                object(w);
}

static void object_written(struct s3_upload *u, int status, const struct om_error *e) {
        struct s3_write *w = u->ctx;
        struct om_error mine;
        bool other = status == -ESTALE || (status == -ENOENT && u->if_match);

        if (status == 0) {
                remember(w, u->etag);
                written(w);
        } else if (other && ++w->tries < TRIES_MAX) {
                remember(w, "");
                fresh(w, "HEAD", w->name, seen);
                s3_call_start(&w->call);
        } else if (other)
                over(w, om_error_set(&mine, OM_UNAVAILABLE, "S3: others write it all the time; ask again"), &mine);
        else
                over(w, status, e);
}

static void object(struct s3_write *w) {
        s3_upload_clear(&w->up);
        w->up = (struct s3_upload){
                .client = &w->store->primary, .name = w->name, .body = om_buf_span(&w->body), .done = object_written, .ctx = w
        };
        if (w->kind != OM_STORE_METRICS) {
                w->up.if_match = w->etag[0] ? w->etag : NULL;
                w->up.if_none_match = !w->etag[0];
        }
        w->up.metadata[w->up.n_metadata++] = (struct s3_pair){ "x-amz-meta-omni-expires", w->expires };
        w->up.metadata[w->up.n_metadata++] = (struct s3_pair){ "x-amz-meta-omni-write", w->token };
        if (w->kind == OM_STORE_RESULTS)
                w->up.metadata[w->up.n_metadata++] = (struct s3_pair){ "x-amz-meta-omni-index", w->index };
        w->up.tagging = s3_rules_tagging(w->store, w->entry.expires_ms);
        s3_upload_start(&w->up);
}

/* -- before it -------------------------------------------------------------------------------------------------------------------- */

static void placed(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_write *w = c->ctx;

        if (status < 0)
                over(w, status, e);
        else
                object(w);
}

static void place(struct s3_write *w) {
        const char *tagging = s3_rules_tagging(w->store, w->entry.expires_ms);

        fresh(w, "PUT", w->index, placed);
        w->call.body = OM_SPAN("");
        if (tagging) {
                s3_call_header(&w->call, "x-amz-tagging", tagging);
                w->call.action = S3_TAGGED_PUT;
        }
        s3_call_start(&w->call);
}

static void granted(struct s3_lock *l) {
        struct s3_write *w = CONTAINER(l, struct s3_write, lock);
        struct om_error e;
        uint64_t version;

        if (om_job_is_cancelled(w->job)) {
                om_error_set(&e, OM_UNAVAILABLE, "cancelled");
                over(w, -ECANCELED, &e);
                return;
        }
        s3_write_token(w->store, w->token, &version);
        if (remembers(w))
                snprintf(w->etag, sizeof w->etag, "%s", s3_store_etag(w->store, w->name));
        if (w->kind == OM_STORE_RESULTS) {
                s3_index_name(w->index, w->kind, &w->entry, version, w->name + strlen("r/"));
                place(w);
        } else
                object(w);
}

void s3_write_start(struct s3_write *w) {
        if (w->kind == OM_STORE_METRICS) {
                uint64_t version;

                s3_write_token(w->store, w->token, &version);
                s3_index_name(w->name, w->kind, &w->entry, version, strchr(w->token, '-') + 1);
                object(w);
                return;
        }
        w->lock.kind = w->kind;
        w->lock.granted = granted;
        w->locked = true;
        s3_lock_take(w->store, &w->lock, w->name);
}

/* -- a batch ----------------------------------------------------------------------------------------------------------------------- */

struct put_item {
        struct s3_write write;
        struct put *put;
        int status;
        const char *why;
};
struct put {
        struct om_job job; /* first */
        struct om_store *store;
        struct om_outcome *outcomes;
        size_t n, left, n_failed;
        int status; /* of the last that failed */
        struct om_error error;
        struct put_item items[];
};

static const char *why_of(int status) {
        switch (status) {
        case -EAGAIN:
                return "S3: the server cannot be reached or cannot serve now; it may have been saved";
        case -ENOBUFS:
                return "S3: the bucket or the server is full: make room, or raise its quota";
        case -EACCES:
                return "S3: access denied: the policy must allow s3:PutObject";
        case -ENOMEM:
                return "out of memory";
        default:
                return "S3: the server refuses it; the log of the daemon says why";
        }
}

static void put_free(struct om_job *j) {
        struct put *p = (struct put *) j;
        struct om_store *s = p->store;

        for (size_t i = 0; i < p->n; i++)
                s3_write_clear(&p->items[i].write);
        free(p);
        s3_store_is_closed(s);
}

static void one_less(struct put *p) {
        if (--p->left)
                return;
        if (!om_job_is_cancelled(&p->job))
                for (size_t i = 0; i < p->n; i++) {
                        p->outcomes[i].status = p->items[i].status;
                        p->outcomes[i].why = p->items[i].why;
                }
        /* What became of all of them is told in words; of some, by each outcome. */
        if (p->n && p->n_failed == p->n)
                om_job_over(&p->job, p->status, &p->error);
        else {
                if (p->n_failed && p->status != -EINVAL)
                        om_host_log(p->store->host, OM_LOG_WARNING, "%s", p->error.message);
                om_job_over(&p->job, 0, NULL);
        }
}

static void item_over(struct put_item *it, int status, const struct om_error *e) {
        struct put *p = it->put;

        it->status = status;
        it->why = status < 0 ? why_of(status) : NULL;
        if (status < 0) {
                p->n_failed++;
                p->status = status;
                p->error = *e;
        }
        one_less(p);
}

static void item_written(struct s3_write *w, int status, const struct om_error *e) { item_over(w->ctx, status, e); }

static void put_one(struct put_item *it, struct om_store *s, enum om_store_kind kind, const struct om_store_entry *entry) {
        const char *fault = s3_entry_fault(entry);
        struct om_error e;

        if (fault) {
                item_over(it, om_error_set(&e, OM_INVALID, "%s", fault), &e);
                it->why = fault;
                return;
        }
        it->write.done = item_written;
        it->write.ctx = it;
        it->write.job = &it->put->job;
        if (s3_write_init(&it->write, s, kind, entry) < 0)
                item_over(it, om_error_set_errno(&e, ENOMEM, "S3"), &e);
        else
                s3_write_start(&it->write);
}

int s3_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        size_t bytes = 0;
        struct put *p;
        int r;

        for (size_t i = 0; i < op->n; i++)
                bytes += op->entries[i].value.len + sizeof(struct put_item);
        r = s3_store_admit(s, bytes, false, e);
        if (r < 0)
                return r;
        p = calloc(1, sizeof *p + op->n * sizeof p->items[0]);
        if (!p)
                return om_error_set_errno(e, ENOMEM, "S3");
        p->store = s;
        p->outcomes = op->outcomes;
        p->n = op->n;
        p->left = op->n + 1;
        om_job_begin(&s->jobs, &p->job, &op->op, bytes, put_free);
        for (size_t i = 0; i < op->n; i++) {
                p->outcomes[i] = (struct om_outcome){ .status = 0 };
                p->items[i].put = p;
        }
        for (size_t i = 0; i < op->n; i++)
                put_one(&p->items[i], s, op->kind, &op->entries[i]);
        one_less(p);
        return 0;
}
