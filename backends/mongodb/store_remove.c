/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting, clearing, the sweeper, and the end of old metrics. The threads'.
 *
 * What can be much is deleted in batches, by _id, so that no statement takes longer than an answer may. What had expired is deleted first
 * and not counted.
 */
#include <errno.h>

#include "store_state.h"

enum { BATCH = 5000 };

static int64_t deleted_of(const bson_t *reply) {
        bson_iter_t i;

        return bson_iter_init_find(&i, reply, "deletedCount") ? bson_iter_as_int64(&i) : 0;
}

static bool delete_now(mongoc_collection_t *c, const bson_t *filter, uint64_t *n, bson_error_t *why) {
        bson_t reply;
        bool ok = mongoc_collection_delete_many(c, filter, NULL, &reply, why);

        *n += (uint64_t) deleted_of(&reply);
        bson_destroy(&reply);
        return ok;
}

/* The _ids of a batch, as a filter; how many. */
static size_t find_batch(mongoc_collection_t *c, const bson_t *filter, bson_t *ret, bson_error_t *why) {
        bson_t *opts = BCON_NEW("projection", "{", "_id", BCON_BOOL(true), "}", "limit", BCON_INT64(BATCH)), in, list;
        mongoc_cursor_t *cursor = mongoc_collection_find_with_opts(c, filter, opts, NULL);
        const bson_t *doc;
        bson_iter_t i;
        uint32_t n = 0;

        bson_init(ret);
        bson_append_document_begin(ret, "_id", 3, &in);
        bson_append_array_begin(&in, "$in", 3, &list);
        while (mongoc_cursor_next(cursor, &doc)) {
                char room[16];
                const char *key;

                if (!bson_iter_init_find(&i, doc, "_id"))
                        continue;
                bson_uint32_to_string(n++, &key, room, sizeof room);
                bson_append_iter(&list, key, -1, &i);
        }
        bson_append_array_end(&in, &list);
        bson_append_document_end(ret, &in);
        mongoc_cursor_error(cursor, why);
        mongoc_cursor_destroy(cursor);
        bson_destroy(opts);
        return n;
}

bool om_mongo_delete(mongoc_collection_t *c, const bson_t *filter, uint64_t *ret_n, bson_error_t *why) {
        for (;;) {
                bson_t batch;
                size_t n = find_batch(c, filter, &batch, why);
                bool ok = !why->domain && (n == 0 || delete_now(c, &batch, ret_n, why));

                bson_destroy(&batch);
                if (!ok || n < BATCH)
                        return ok;
        }
}

/* -- the operation ------------------------------------------------------------------------------------------------------- */

struct removal {
        struct om_mongo_job j; /* first */
        struct om_store_delete *op;
        struct om_span key, name;
        uint64_t n;
};

static void put_filter(bson_t *find, const struct removal *m) {
        struct om_buf id = OM_BUF_INIT;
        const char *field = "_id";
        struct om_span value = m->key;

        if (m->name.p) {
                om_mongo_id(&id, m->j.kind, m->key, m->name);
                value = om_buf_span(&id);
        } else if (m->j.kind == OM_STORE_RESULTS || m->j.kind == OM_STORE_AGENTS)
                field = m->j.kind == OM_STORE_RESULTS ? "task_id" : "topic";
        if (m->key.p)
                bson_append_utf8(find, field, -1, value.p, (int) value.len);
        om_buf_deinit(&id);
}

/* One document, by its _id alone: there are servers that look at every document when more is asked for. */
static bool remove_one(mongoc_collection_t *c, const bson_t *find, uint64_t *ret_n, bson_error_t *why) {
        bson_t *opts = BCON_NEW("projection", "{", "expires_at", BCON_BOOL(true), "}");
        mongoc_cursor_t *cursor = mongoc_collection_find_with_opts(c, find, opts, NULL);
        bool expired = false, ok;
        const bson_t *doc;
        bson_iter_t i;

        if (mongoc_cursor_next(cursor, &doc) && bson_iter_init_find(&i, doc, "expires_at"))
                expired = BSON_ITER_HOLDS_DATE_TIME(&i) && bson_iter_date_time(&i) <= om_now_ms();
        ok = !mongoc_cursor_error(cursor, why) && delete_now(c, find, ret_n, why);
        if (expired)
                *ret_n = 0;
        mongoc_cursor_destroy(cursor);
        bson_destroy(opts);
        return ok;
}

static void removal_run(struct om_mongo_thread *t, struct om_mongo_job *j) {
        struct removal *m = (struct removal *) j;
        bool one = m->key.p && (m->name.p || j->kind > OM_STORE_RESULTS);
        mongoc_collection_t *c = om_mongo_collection(t->store, t->client, j->kind);
        bson_error_t why = { 0 };
        bson_t find, expired, at;
        uint64_t gone = 0;
        bool ok = true;

        bson_init(&find);
        put_filter(&find, m);
        if (!one && (j->kind == OM_STORE_RESULTS || j->kind == OM_STORE_KEYS)) {
                bson_copy_to(&find, &expired);
                BSON_APPEND_DOCUMENT_BEGIN(&expired, "expires_at", &at);
                BSON_APPEND_DATE_TIME(&at, "$lte", om_now_ms());
                bson_append_document_end(&expired, &at);
                ok = m->key.p ? delete_now(c, &expired, &gone, &why) : om_mongo_delete(c, &expired, &gone, &why);
                bson_destroy(&expired);
        }
        ok = ok &&
                (one                       ? remove_one(c, &find, &m->n, &why)
                                : m->key.p ? delete_now(c, &find, &m->n, &why)
                                           : om_mongo_delete(c, &find, &m->n, &why));
        if (!ok)
                om_mongo_fail(j, &why, "deleting");
        bson_destroy(&find);
        mongoc_collection_destroy(c);
}

static void removal_give(struct om_mongo_job *j) { ((struct removal *) j)->op->ret_n = ((struct removal *) j)->n; }

int om_mongo_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        struct removal *m;
        int r;

        if (op->kind == OM_STORE_METRICS && op->key.p)
                return om_error_set(e, OM_INVALID, "MongoDB: metrics are deleted all at once");
        r = om_mongo_job_new(s, &op->op, sizeof *m, op->key.len + op->name.len, &m, e);
        if (r < 0)
                return r;
        op->ret_n = 0;
        m->op = op;
        m->j.kind = op->kind;
        m->j.run = removal_run;
        m->j.give = removal_give;
        if (om_mongo_keep(&m->j, op->key, &m->key) && (op->kind > OM_STORE_RESULTS || om_mongo_keep(&m->j, op->name, &m->name))) {
                om_mongo_submit(&m->j, true);
                return 0;
        }
        om_mongo_fail_memory(&m->j);
        om_mongo_finish(&m->j);
        return 0;
}

/* -- the sweeper --------------------------------------------------------------------------------------------------------- */

bool om_mongo_sweep(struct om_store *s, mongoc_client_t *client, bson_error_t *why) {
        static const enum om_store_kind kinds[] = { OM_STORE_RESULTS, OM_STORE_KEYS, OM_STORE_METRICS };
        bson_t find, at;
        bool ok = true;

        bson_init(&find);
        BSON_APPEND_DOCUMENT_BEGIN(&find, "expires_at", &at);
        BSON_APPEND_DATE_TIME(&at, "$lte", om_now_ms());
        bson_append_document_end(&find, &at);
        for (size_t i = 0; ok && i < sizeof kinds / sizeof *kinds; i++) {
                mongoc_collection_t *c = om_mongo_collection(s, client, kinds[i]);
                uint64_t n = 0;

                ok = om_mongo_delete(c, &find, &n, why);
                mongoc_collection_destroy(c);
        }
        bson_destroy(&find);
        return ok;
}

void om_mongo_trim(struct om_store *s, mongoc_client_t *client) {
        mongoc_collection_t *c = om_mongo_collection(s, client, OM_STORE_METRICS);
        bson_t *opts = BCON_NEW("sort", "{", "place", BCON_INT32(-1), "}", "skip", BCON_INT64(s->settings.max_metrics), "limit",
                BCON_INT64(1), "projection", "{", "place", BCON_BOOL(true), "}");
        bson_error_t why = { 0 };
        bson_t all = BSON_INITIALIZER, old, at;
        mongoc_cursor_t *cursor = mongoc_collection_find_with_opts(c, &all, opts, NULL);
        const bson_t *doc;
        bson_iter_t i;
        uint64_t n = 0;

        if (mongoc_cursor_next(cursor, &doc) && bson_iter_init_find(&i, doc, "place") && BSON_ITER_HOLDS_UTF8(&i)) {
                bson_init(&old);
                BSON_APPEND_DOCUMENT_BEGIN(&old, "place", &at);
                BSON_APPEND_UTF8(&at, "$lte", bson_iter_utf8(&i, NULL));
                bson_append_document_end(&old, &at);
                om_mongo_delete(c, &old, &n, &why);
                bson_destroy(&old);
        }
        mongoc_cursor_destroy(cursor);
        bson_destroy(&all);
        bson_destroy(opts);
        mongoc_collection_destroy(c);
}
