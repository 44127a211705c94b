/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry: the object of its name; for a result without an agent those of the task's names, of which the newest counts. What has
 * expired is not there. Where the primary cannot be reached, all of it once more at the replica.
 *
 * Loop thread.
 */
#include "store_state.h"

/* -- one object ------------------------------------------------------------------------------------------------------------------- */

void s3_meta(const struct s3_call *c, const char *name, char *out, size_t size) {
        char header[60];
        struct om_span value;

        snprintf(header, sizeof header, "x-amz-meta-omni-%s", name);
        value = s3_http_header(&c->req, header);
        snprintf(out, size, "%.*s", OM_PRI(value));
}

static void loaded(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_load *l = c->ctx;
        struct om_error mine;

        if (status == 0) {
                s3_meta(c, "write", l->token, sizeof l->token);
                s3_meta(c, "index", l->index, sizeof l->index);
                s3_call_etag(c, l->etag);
                status = s3_record_read(om_buf_span(&c->req.answer), &l->arena, &l->entry);
                if (status == -EINVAL)
                        om_error_set(&mine, OM_INVALID, "S3: %s/%s%s is not of this storage's making", l->client->place.bucket,
                                l->client->place.prefix, l->name);
                else if (status < 0)
                        om_error_set_errno(&mine, ENOMEM, "S3");
                e = &mine;
        } else if (status == -EINVAL) /* the server's, not the object's */
                status = -EIO;
        l->done(l, status, e);
}

void s3_load_start(struct s3_load *l) {
        l->call = (struct s3_call){
                .client = l->client, .method = "GET", .name = l->name, .max_bytes = OBJECT_MAX, .done = loaded, .ctx = l
        };
        s3_call_start(&l->call);
}

void s3_load_clear(struct s3_load *l) {
        s3_call_clear(&l->call);
        om_arena_deinit(&l->arena);
}

/* -- the operation ---------------------------------------------------------------------------------------------------------------- */

struct get {
        struct om_job job; /* first */
        struct om_store *store;
        struct s3_client *client;
        struct om_store_get *op;
        enum om_store_kind kind;
        char name[S3_NAME_MAX]; /* or what the names begin with */
        bool newest;
        struct s3_page page;
        struct s3_load *loads;
        size_t n_loads, open;
        int status;
        struct om_error error;
};

static void begin(struct get *g);

static void loads_free(struct get *g) {
        for (size_t i = 0; i < g->n_loads; i++)
                s3_load_clear(&g->loads[i]);
        free(g->loads);
        g->loads = NULL;
        g->n_loads = 0;
}

static void get_free(struct om_job *j) {
        struct get *g = (struct get *) j;
        struct om_store *s = g->store;

        loads_free(g);
        s3_page_clear(&g->page);
        free(g);
        s3_store_is_closed(s);
}

static void over(struct get *g, int status, const struct om_error *e) {
        struct om_error copy = e ? *e : (struct om_error) OM_ERROR_INIT;

        if (s3_store_falls_back(g->store, &g->client, status)) {
                loads_free(g);
                begin(g);
                return;
        }
        om_job_over(&g->job, status, &copy);
}

static bool newer(const struct s3_load *a, const struct s3_load *b) {
        if (a->entry.saved_ms != b->entry.saved_ms)
                return a->entry.saved_ms > b->entry.saved_ms;
        return strcmp(a->token, b->token) > 0;
}

static void choose(struct get *g) {
        const struct s3_load *best = NULL;
        struct om_error e;
        int status = g->status;

        for (size_t i = 0; i < g->n_loads && status == 0; i++) {
                const struct s3_load *l = &g->loads[i];

                if (l->entry.value.p && !om_entry_expired(&l->entry, om_now_ms()) && (!best || newer(l, best)))
                        best = l;
        }
        if (status == 0 && !best)
                status = om_error_set(&g->error, OM_NOT_FOUND, "not found");
        else if (status == 0 && !om_job_is_cancelled(&g->job) && !om_entry_copy(&g->op->arena, &best->entry, &g->op->entry))
                status = om_error_set_errno(&g->error, ENOMEM, "S3");
        e = g->error;
        over(g, status, &e);
}

static void one_came(struct s3_load *l, int status, const struct om_error *e) {
        struct get *g = l->ctx;

        if (status < 0)
                l->entry.value.p = NULL;
        if (status < 0 && status != -ENOENT && (status != -EINVAL || !g->newest)) {
                g->status = status == -EINVAL ? om_kind_errno(OM_INTERNAL) : status;
                g->error = *e;
        }
        if (--g->open == 0)
                choose(g);
}

static void load_all(struct get *g, size_t n) {
        struct om_error e;

        g->loads = calloc(n ? n : 1, sizeof g->loads[0]);
        if (!g->loads) {
                over(g, om_error_set_errno(&e, ENOMEM, "S3"), &e);
                return;
        }
        g->n_loads = n;
        g->open = n + 1;
        for (size_t i = 0; i < n; i++) {
                struct s3_load *l = &g->loads[i];

                *l = (struct s3_load){ .client = g->client, .done = one_came, .ctx = g };
                snprintf(l->name, sizeof l->name, "%s", g->newest ? g->page.names[i].name : g->name);
                s3_load_start(l);
        }
        if (--g->open == 0)
                choose(g);
}

static void named(struct s3_page *p, int status, const struct om_error *e) {
        struct get *g = p->ctx;

        if (status < 0)
                over(g, status, e);
        else
                load_all(g, p->n);
}

static void begin(struct get *g) {
        g->status = 0;
        if (!g->newest) {
                load_all(g, 1);
                return;
        }
        s3_page_clear(&g->page);
        g->page = (struct s3_page){ .client = g->client, .limit = 100, .done = named, .ctx = g };
        snprintf(g->page.prefix, sizeof g->page.prefix, "%s", g->name);
        s3_page_start(&g->page);
}

int s3_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        int r = s3_store_admit(s, 4096, true, e);
        struct om_span key = op->key.p ? op->key : OM_SPAN("");
        struct get *g;

        if (r < 0)
                return r;
        g = calloc(1, sizeof *g);
        if (!g)
                return om_error_set_errno(e, ENOMEM, "S3");
        op->arena = (struct om_arena){ 0 };
        op->entry = (struct om_store_entry){ .saved_ms = 0 };
        g->store = s;
        g->client = s3_store_reader(s);
        g->op = op;
        g->kind = op->kind;
        g->newest = op->kind == OM_STORE_RESULTS && !op->name.p;
        if (g->newest)
                s3_kind_prefix(g->name, op->kind, key);
        else
                s3_entry_name(g->name, op->kind, key, op->name);
        om_job_begin(&s->jobs, &g->job, &op->op, 4096, get_free);
        begin(g);
        return 0;
}
