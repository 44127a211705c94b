/* SPDX-License-Identifier: Apache-2.0 */
/*
 * put_if_absent: the object, if there is none ──▶ there is: read it ──▶ expired: the object, if that is still there
 *                                                             ──▶ ourselves, by a try that seemed to fail: stored
 *
 * Always true: one of many wins, because the server decides. Loop thread.
 */
#include "store_write.h"

enum { TRIES_MAX = 20 };

struct claim {
        struct om_job job; /* first */
        struct om_store *store;
        struct om_store_put_if_absent *op;
        struct s3_lock lock;
        struct s3_upload up;
        struct s3_load load;
        struct om_buf body;
        char name[S3_NAME_MAX], token[S3_TOKEN_MAX], expires[24], etag[S3_ETAG_MAX];
        int64_t expires_ms;
        unsigned tries;
};

static void claim(struct claim *c);

static void claim_free(struct om_job *j) {
        struct claim *c = (struct claim *) j;
        struct om_store *s = c->store;

        s3_upload_clear(&c->up);
        s3_load_clear(&c->load);
        om_buf_deinit(&c->body);
        free(c);
        s3_store_is_closed(s);
}

static void over(struct claim *c, int status, const struct om_error *e) {
        struct om_error copy = e ? *e : (struct om_error) OM_ERROR_INIT;

        s3_lock_drop(c->store, &c->lock);
        om_job_over(&c->job, status, &copy);
}

static void stored(struct claim *c) {
        if (c->expires_ms)
                s3_sweep_due(c->store);
        if (!om_job_is_cancelled(&c->job))
                c->op->ret_stored = true;
        over(c, 0, NULL);
}

static void read_other(struct s3_load *l, int status, const struct om_error *e) {
        struct claim *c = l->ctx;
        struct om_error mine;

        if (status == 0 && strcmp(l->token, c->token) == 0) {
                stored(c);
                return;
        }
        if (status == -ENOENT || (status == 0 && om_entry_expired(&l->entry, om_now_ms()))) {
                snprintf(c->etag, sizeof c->etag, "%s", status == 0 ? l->etag : "");
                if (++c->tries < TRIES_MAX)
                        claim(c);
                else
                        over(c, om_error_set(&mine, OM_UNAVAILABLE, "S3: the key changes hands all the time; ask again"), &mine);
                return;
        }
        if (status == -EINVAL)
                status = om_error_set(&mine, OM_INTERNAL, "S3: the key is there, and not of this storage's making"), e = &mine;
        if (status == 0 && !om_job_is_cancelled(&c->job)) {
                c->op->ret_value = om_arena_copy(&c->op->arena, l->entry.value);
                if (!c->op->ret_value.p)
                        status = om_error_set_errno(&mine, ENOMEM, "S3"), e = &mine;
        }
        over(c, status, e);
}

static void claimed(struct s3_upload *u, int status, const struct om_error *e) {
        struct claim *c = u->ctx;

        if (status == 0)
                stored(c);
        else if (status == -ESTALE || status == -ENOENT) {
                s3_load_clear(&c->load);
                c->load = (struct s3_load){ .client = &c->store->primary, .done = read_other, .ctx = c };
                snprintf(c->load.name, sizeof c->load.name, "%s", c->name);
                s3_load_start(&c->load);
        } else
                over(c, status, e);
}

static void claim(struct claim *c) {
        s3_upload_clear(&c->up);
        c->up = (struct s3_upload){
                .client = &c->store->primary, .name = c->name, .body = om_buf_span(&c->body), .done = claimed, .ctx = c
        };
        c->up.if_match = c->etag[0] ? c->etag : NULL;
        c->up.if_none_match = !c->etag[0];
        c->up.metadata[c->up.n_metadata++] = (struct s3_pair){ "x-amz-meta-omni-expires", c->expires };
        c->up.metadata[c->up.n_metadata++] = (struct s3_pair){ "x-amz-meta-omni-write", c->token };
        c->up.tagging = s3_rules_tagging(c->store, c->expires_ms);
        s3_upload_start(&c->up);
}

static void granted(struct s3_lock *l) {
        struct claim *c = CONTAINER(l, struct claim, lock);
        struct om_error e;

        if (!om_job_is_cancelled(&c->job)) {
                claim(c);
                return;
        }
        om_error_set(&e, OM_UNAVAILABLE, "cancelled");
        over(c, -ECANCELED, &e);
}

int s3_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct om_store_entry entry = { .key = op->key, .value = op->value, .saved_ms = om_now_ms(), .expires_ms = op->expires_ms };
        size_t bytes = op->value.len + sizeof(struct claim);
        const char *fault = s3_entry_fault(&entry);
        int r = s3_store_admit(s, bytes, false, e);
        struct claim *c;

        if (r < 0)
                return r;
        if (fault)
                return om_error_set(e, OM_INVALID, "%s", fault);
        c = calloc(1, sizeof *c);
        if (c)
                s3_record_put(&c->body, &entry);
        if (!c || !om_buf_ok(&c->body)) {
                free(c);
                return om_error_set_errno(e, ENOMEM, "S3");
        }
        op->ret_stored = false;
        op->arena = (struct om_arena){ 0 };
        op->ret_value = OM_SPAN_NONE;
        c->store = s;
        c->op = op;
        c->expires_ms = op->expires_ms;
        snprintf(c->expires, sizeof c->expires, "%lld", (long long) op->expires_ms);
        s3_entry_name(c->name, OM_STORE_KEYS, op->key, OM_SPAN_NONE);
        s3_write_token(s, c->token, NULL);
        c->lock.kind = OM_STORE_KEYS;
        c->lock.granted = granted;
        om_job_begin(&s->jobs, &c->job, &op->op, bytes, claim_free);
        s3_lock_take(s, &c->lock, c->name);
        return 0;
}
