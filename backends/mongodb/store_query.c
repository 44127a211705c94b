/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage.query: an aggregation pipeline that people write, `[{"$match":…}, …]` over results, or over another collection of the storage:
 * `{"collection":"metrics","pipeline":[…]}`. It has a thread and a connection of its own, for as long as it runs, so that neither a long
 * query nor a large answer meets the storage's own work; the server ends it after timeout_ms.
 *
 * A pipeline can write by $out and $merge only, and run code by $function, $accumulator and $where. Those are refused at any depth,
 * wherever they stand as a name, and a stage of the first level is one of those that are known to read. Extended JSON ({"$date":…}) is
 * taken.
 */
#include <errno.h>
#include <stdlib.h>

#include "../../proto/json_scan.h"
#include "store_state.h"

enum { QUERIES_MAX = 4, DEPTH = 60, FIELDS_MAX = 1000, GRACE_MS = 500 };

struct query {
        struct om_mongo_job j; /* first */
        struct om_work work;
        struct om_post finished, stopped;
        struct om_worker *worker;
        struct om_store_query *op;
        struct om_span text, answer;
        size_t limit;
        int64_t timeout_ms;
};

/* -- what is asked: any thread -------------------------------------------------------------------------------------------- */

static bool is_among(const char *name, const char *const *names) {
        for (; *names; names++)
                if (strcmp(name, *names) == 0)
                        return true;
        return false;
}

/* The name of something that is not for reading, at any depth; NULL: there is none. */
static const char *find_refused(bson_iter_t *i, unsigned depth) {
        static const char *const refused[] = { "$out", "$merge", "$function", "$accumulator", "$where", NULL };

        while (bson_iter_next(i)) {
                const char *name = bson_iter_key(i);
                bson_iter_t inner;

                if (is_among(name, refused))
                        return name;
                if ((BSON_ITER_HOLDS_DOCUMENT(i) || BSON_ITER_HOLDS_ARRAY(i)) && depth < 2 * DEPTH && bson_iter_recurse(i, &inner) &&
                        (name = find_refused(&inner, depth + 1)))
                        return name;
        }
        return NULL;
}

static int check_stages(bson_iter_t *pipeline, struct om_error *e) {
        static const char *const stages[] = { "$addFields", "$bucket", "$bucketAuto", "$collStats", "$count", "$densify", "$documents",
                "$facet", "$fill", "$geoNear", "$graphLookup", "$group", "$indexStats", "$limit", "$lookup", "$match", "$project",
                "$redact", "$replaceRoot", "$replaceWith", "$sample", "$set", "$setWindowFields", "$skip", "$sort", "$sortByCount",
                "$unionWith", "$unset", "$unwind", NULL };
        bson_iter_t stage;

        while (bson_iter_next(pipeline))
                if (!BSON_ITER_HOLDS_DOCUMENT(pipeline) || !bson_iter_recurse(pipeline, &stage) || !bson_iter_next(&stage))
                        return om_error_set(e, OM_INVALID, "MongoDB: the query: a stage is an object: {\"$match\":{…}}");
                else if (!is_among(bson_iter_key(&stage), stages))
                        return om_error_set(e, OM_INVALID, "MongoDB: the query: \"%.60s\" is no stage that is known to read%s%s",
                                bson_iter_key(&stage), om_nearest(bson_iter_key(&stage), stages) ? "; did you mean " : "",
                                om_nearest(bson_iter_key(&stage), stages) ? om_nearest(bson_iter_key(&stage), stages) : "");
        return 0;
}

static int kind_of(const bson_iter_t *field, enum om_store_kind *ret, struct om_error *e) {
        const char *name = BSON_ITER_HOLDS_UTF8(field) ? bson_iter_utf8(field, NULL) : "";

        for (int kind = OM_STORE_AGENTS; kind <= OM_STORE_KEYS; kind++)
                if (strcmp(name, om_mongo_name((enum om_store_kind) kind)) == 0) {
                        *ret = (enum om_store_kind) kind;
                        return 0;
                }
        return om_error_set(e, OM_INVALID, "MongoDB: the query: collection is one of agents, results, metrics, config, keys");
}

/* Reads the text: `{"pipeline":[…]}` around what may be the pipeline alone. */
static int read_query(struct om_span text, bson_t *ret, enum om_store_kind *ret_kind, struct om_error *e) {
        struct om_buf b = OM_BUF_INIT;
        struct om_json j;
        bson_error_t why = { 0 };
        bson_iter_t i, inner;
        const char *refused;
        bool pipeline = false;
        int r;

        *ret_kind = OM_STORE_RESULTS;
        bson_init(ret);
        if (om_json_check(text, DEPTH, e) < 0) {
                om_error_prefix(e, "MongoDB: the query, an aggregation pipeline ([{\"$match\":{…}}])");
                return -EINVAL;
        }
        om_json_init_valid(&j, text);
        bool alone = om_json_peek(&j) == OM_JSON_ARRAY;
        om_buf_printf(&b, "%s%.*s%s", alone ? "{\"pipeline\":" : "", OM_PRI(text), alone ? "}" : "");
        bson_destroy(ret);
        if (!om_buf_ok(&b) || !bson_init_from_json(ret, om_buf_span(&b).p, (ssize_t) b.len, &why)) {
                bson_init(ret);
                om_buf_deinit(&b);
                return om_error_set(e, OM_INVALID, "MongoDB: the query: %.200s", why.message);
        }
        om_buf_deinit(&b);
        if (bson_iter_init(&i, ret) && (refused = find_refused(&i, 0)))
                return om_error_set(e, OM_DENIED, "MongoDB: the query: %s: storage.query only reads, and runs no code", refused);
        if (!bson_iter_init(&i, ret))
                return om_error_set(e, OM_INVALID, "MongoDB: the query cannot be read");
        for (r = 0; r == 0 && bson_iter_next(&i);) {
                if (strcmp(bson_iter_key(&i), "collection") == 0)
                        r = kind_of(&i, ret_kind, e);
                else if (strcmp(bson_iter_key(&i), "pipeline") == 0 && BSON_ITER_HOLDS_ARRAY(&i) && bson_iter_recurse(&i, &inner)) {
                        pipeline = true;
                        r = check_stages(&inner, e);
                } else
                        r = om_error_set(e, OM_INVALID,
                                "MongoDB: the query: \"%.60s\": it is [STAGE, …] or {\"collection\":NAME,\"pipeline\":[STAGE, …]}",
                                bson_iter_key(&i));
        }
        return r == 0 && !pipeline ? om_error_set(e, OM_INVALID, "MongoDB: the query has no pipeline") : r;
}

/* The pipeline of the query with a limit behind it. */
static void put_pipeline(bson_t *to, const bson_t *query, size_t limit) {
        bson_iter_t i, stage;
        bson_t list, last;
        uint32_t n = 0;
        char room[16];
        const char *key;

        BSON_APPEND_ARRAY_BEGIN(to, "pipeline", &list);
        if (bson_iter_init_find(&i, query, "pipeline") && bson_iter_recurse(&i, &stage))
                while (bson_iter_next(&stage)) {
                        bson_uint32_to_string(n++, &key, room, sizeof room);
                        bson_append_iter(&list, key, -1, &stage);
                }
        bson_uint32_to_string(n, &key, room, sizeof room);
        BSON_APPEND_DOCUMENT_BEGIN(&list, key, &last);
        BSON_APPEND_INT64(&last, "$limit", (int64_t) limit + 1);
        bson_append_document_end(&list, &last);
        bson_append_array_end(to, &list);
}

/* -- the answer: the query's thread ------------------------------------------------------------------------------------------ */

struct answer {
        struct om_arena arena;
        struct om_span columns[FIELDS_MAX];
        size_t n_columns, n_rows, size, bytes;
        bson_t **rows;
        bool truncated;
};

static bool has_column(const struct answer *a, const char *name) {
        for (size_t i = 0; i < a->n_columns; i++)
                if (om_span_is(a->columns[i], name))
                        return true;
        return false;
}

static bool add_row(struct answer *a, const bson_t *doc, size_t limit) {
        bson_iter_t i;

        if (a->n_rows == limit || a->bytes + doc->len > OM_STORE_QUERY_BYTES_MAX) {
                a->truncated = true;
                return false;
        }
        if (a->n_rows == a->size) {
                bson_t **more = realloc(a->rows, (a->size * 2 + 64) * sizeof *more);

                if (!more)
                        return false;
                a->rows = more;
                a->size = a->size * 2 + 64;
        }
        a->rows[a->n_rows++] = bson_copy(doc);
        a->bytes += doc->len;
        if (bson_iter_init(&i, doc))
                while (bson_iter_next(&i))
                        if (!has_column(a, bson_iter_key(&i))) {
                                if (a->n_columns == FIELDS_MAX)
                                        a->truncated = true;
                                else
                                        a->columns[a->n_columns++] = om_arena_copy(&a->arena, om_span_of(bson_iter_key(&i)));
                        }
        return true;
}

static void put_answer(struct om_buf *b, const struct answer *a) {
        om_buf_lit(b, "{\"columns\":[");
        for (size_t i = 0; i < a->n_columns; i++) {
                om_buf_puts(b, i ? "," : "");
                om_buf_json_span(b, a->columns[i]);
        }
        om_buf_lit(b, "],\"rows\":[");
        for (size_t r = 0; r < a->n_rows; r++) {
                om_buf_puts(b, r ? ",[" : "[");
                for (size_t i = 0; i < a->n_columns; i++) {
                        bson_iter_t field;

                        om_buf_puts(b, i ? "," : "");
                        if (a->columns[i].p && bson_iter_init_find(&field, a->rows[r], a->columns[i].p))
                                om_mongo_put_json(b, &field);
                        else
                                om_buf_lit(b, "null");
                }
                om_buf_putc(b, ']');
        }
        om_buf_printf(b, "],\"truncated\":%s}", a->truncated ? "true" : "false");
}

static void read_rows(struct query *q, mongoc_cursor_t *cursor) {
        struct answer *a = calloc(1, sizeof *a);
        struct om_buf b = OM_BUF_INIT;
        bson_error_t why = { 0 };
        const bson_t *doc;

        while (a && mongoc_cursor_next(cursor, &doc) && add_row(a, doc, q->limit)) {
        }
        if (mongoc_cursor_error(cursor, &why)) {
                uint32_t code = om_mongo_code(&why);

                q->j.status = om_mongo_error(&q->j.store->settings, &why, "the query", &q->j.error);
                if (code && code != OM_MONGO_UNAUTHORIZED && code != OM_MONGO_MAX_TIME && !om_mongo_is_away(&why))
                        q->j.status = om_error_set(&q->j.error, OM_INVALID, "MongoDB: the query: %.300s", why.message);
                else if (why.domain == MONGOC_ERROR_STREAM)
                        q->j.status =
                                om_error_set(&q->j.error, OM_TIMEOUT, "MongoDB: the query: the server gave no answer: %.200s", why.message);
        } else if (a) {
                put_answer(&b, a);
                q->answer = om_buf_ok(&b) ? om_arena_copy(&q->j.out, om_buf_span(&b)) : OM_SPAN_NONE;
        }
        if (q->j.status == 0 && !q->answer.p)
                om_mongo_fail_memory(&q->j);
        om_buf_deinit(&b);
        for (size_t i = 0; a && i < a->n_rows; i++)
                bson_destroy(a->rows[i]);
        if (a) {
                om_arena_deinit(&a->arena);
                free(a->rows);
        }
        free(a);
}

static void run_query(struct query *q) {
        struct om_store *s = q->j.store;
        mongoc_uri_t *uri = mongoc_uri_copy(s->settings.uri);
        mongoc_client_t *client;
        mongoc_collection_t *c;
        mongoc_cursor_t *cursor;
        enum om_store_kind kind;
        bson_t query, pipeline = BSON_INITIALIZER, *opts = BCON_NEW("maxTimeMS", BCON_INT64(q->timeout_ms));

        mongoc_uri_set_option_as_int32(uri, MONGOC_URI_SOCKETTIMEOUTMS, (int32_t) (q->timeout_ms + GRACE_MS));
        client = mongoc_client_new_from_uri(uri);
        if (read_query(q->text, &query, &kind, &q->j.error) < 0 || !client)
                q->j.status = om_error_set(&q->j.error, OM_UNAVAILABLE, "MongoDB: %s: no connection for the query", s->settings.where);
        else {
                mongoc_client_set_error_api(client, MONGOC_ERROR_API_VERSION_2);
                put_pipeline(&pipeline, &query, q->limit);
                c = om_mongo_collection(s, client, kind);
                cursor = mongoc_collection_aggregate(c, MONGOC_QUERY_NONE, &pipeline, opts, NULL);
                read_rows(q, cursor);
                mongoc_cursor_destroy(cursor);
                mongoc_collection_destroy(c);
        }
        bson_destroy(&query);
        bson_destroy(&pipeline);
        bson_destroy(opts);
        if (client)
                mongoc_client_destroy(client);
        mongoc_uri_destroy(uri);
}

/* -- its way ---------------------------------------------------------------------------------------------------------------- */

static int query_turn(void *ctx, struct om_work *list) {
        struct query *q = ctx;

        if (list) {
                run_query(q);
                om_host_post(q->j.store->host, &q->finished);
        }
        return -1;
}

static void on_finished(struct om_post *post) {
        struct query *q = (void *) ((char *) post - offsetof(struct query, finished));

        q->j.store->host->ops->worker_stop(q->worker, &q->stopped);
}

static void on_stopped(struct om_post *post) {
        struct query *q = (void *) ((char *) post - offsetof(struct query, stopped));

        q->j.store->queries--;
        q->j.back.fn(&q->j.back);
}

static void query_give(struct om_mongo_job *j) {
        struct query *q = (struct query *) j;

        q->op->answer = q->answer;
        q->op->arena = j->out;
        j->out = (struct om_arena){ 0 };
}

int om_mongo_store_query(struct om_store *s, struct om_store_query *op, struct om_error *e) {
        enum om_store_kind kind;
        struct query *q;
        bson_t read;
        int r = read_query(op->text, &read, &kind, e);

        bson_destroy(&read);
        if (r < 0)
                return r;
        if (s->queries >= QUERIES_MAX)
                return om_error_set(e, OM_LIMIT, "MongoDB: %d queries are under way", QUERIES_MAX);
        r = om_mongo_job_new(s, &op->op, sizeof *q, op->text.len, &q, e);
        if (r < 0)
                return r;
        s->queries++;
        op->arena = (struct om_arena){ 0 };
        op->answer = OM_SPAN_NONE;
        q->op = op;
        q->limit = op->limit;
        q->timeout_ms = op->timeout_ms;
        q->j.give = query_give;
        q->finished.fn = on_finished;
        q->stopped.fn = on_stopped;
        if (!om_mongo_keep(&q->j, op->text, &q->text))
                om_mongo_fail_memory(&q->j);
        else
                q->j.status = s->host->ops->worker_new(s->host, "om-mongo-query", query_turn, q, &q->worker, &q->j.error);
        if (q->j.status == 0)
                s->host->ops->worker_submit(q->worker, &q->work);
        else
                om_host_post(s->host, &q->stopped); /* counted off there */
        return 0;
}
