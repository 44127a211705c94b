/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry, and health. The reading threads', but for where an operation begins and is given back.
 *
 * What has expired is stepped over here, by the clock that the promise goes by, so the server's filters do not know of it.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

int om_mongo_not_ours(struct om_mongo_job *j, int r) {
        return r == -ENOMEM
                ? om_error_set_errno(&j->error, ENOMEM, "MongoDB")
                : om_error_set(&j->error, OM_INTERNAL, "MongoDB: %s: a document in %s%s is none of OmniDaemon's: it has no text",
                          j->store->settings.where, j->store->settings.collection_prefix, om_mongo_name(j->kind));
}

/* -- one --------------------------------------------------------------------------------------------------------------- */

struct get {
        struct om_mongo_job j; /* first */
        struct om_store_get *op;
        struct om_span key, name;
        struct om_store_entry entry;
};

static void get_run(struct om_mongo_thread *t, struct om_mongo_job *j) {
        struct get *g = (struct get *) j;
        bool newest = j->kind == OM_STORE_RESULTS && !g->name.p, found = false;
        mongoc_collection_t *c = om_mongo_collection(t->store, t->client, j->kind);
        bson_t find = BSON_INITIALIZER, *opts = newest ? BCON_NEW("sort", "{", "place", BCON_INT32(-1), "}") : NULL;
        struct om_buf id = OM_BUF_INIT;
        bson_error_t why = { 0 };
        mongoc_cursor_t *cursor;
        const bson_t *doc;
        int r = 0;

        om_mongo_id(&id, j->kind, g->key, g->name);
        if (newest)
                bson_append_utf8(&find, "task_id", -1, g->key.p, (int) g->key.len);
        else
                bson_append_utf8(&find, "_id", -1, om_buf_span(&id).p, (int) id.len);
        cursor = mongoc_collection_find_with_opts(c, &find, opts, NULL);
        while (r == 0 && !found && mongoc_cursor_next(cursor, &doc)) {
                r = om_mongo_entry(doc, j->kind, &j->out, &g->entry);
                found = r == 0 && !om_mongo_is_expired(&g->entry);
        }
        if (mongoc_cursor_error(cursor, &why))
                om_mongo_fail(j, &why, "reading");
        else if (r < 0)
                j->status = om_mongo_not_ours(j, r);
        else if (!found)
                j->status = om_error_set(&j->error, OM_NOT_FOUND, "there is no such entry");
        mongoc_cursor_destroy(cursor);
        bson_destroy(&find);
        bson_destroy(opts);
        om_buf_deinit(&id);
        mongoc_collection_destroy(c);
}

static void get_give(struct om_mongo_job *j) {
        struct get *g = (struct get *) j;

        g->op->entry = g->entry;
        g->op->arena = j->out;
        j->out = (struct om_arena){ 0 };
}

int om_mongo_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        struct get *g;
        int r;

        if (op->kind == OM_STORE_METRICS)
                return om_error_set(e, OM_INVALID, "MongoDB: metrics are listed, not read one by one");
        r = om_mongo_job_new(s, &op->op, sizeof *g, op->key.len + op->name.len, &g, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->entry = (struct om_store_entry){ 0 };
        g->op = op;
        g->j.kind = op->kind;
        g->j.run = get_run;
        g->j.give = get_give;
        if (om_mongo_keep(&g->j, op->key, &g->key) && om_mongo_keep(&g->j, op->name, &g->name)) {
                om_mongo_submit(&g->j, false);
                return 0;
        }
        om_mongo_fail_memory(&g->j);
        om_mongo_finish(&g->j);
        return 0;
}

/* -- health ------------------------------------------------------------------------------------------------------------ */

enum { COUNT_WITHIN_MS = 1000 };

struct health {
        struct om_mongo_job j; /* first */
        struct om_store_health *op;
        struct om_span info;
};

/* A field of a reply as JSON text, or what to say without it. */
static void put_field(struct om_buf *b, const bson_t *reply, const char *path, const char *name) {
        bson_iter_t i, field;

        if (!bson_iter_init(&i, reply) || !bson_iter_find_descendant(&i, path, &field))
                return;
        om_buf_printf(b, ",\"%s\":", name);
        om_mongo_put_json(b, &field);
}

static const char *why_weak(struct om_store *s, bool is_volatile) {
        if (atomic_load(&s->ferret))
                return "FerretDB does not tell whether what it acknowledges is synced";
        if (is_volatile)
                return "the server's storage engine keeps everything in memory";
        if (!s->settings.majority)
                return "w in the URL is not majority: what the primary alone has is lost when another takes over";
        return s->settings.journal ? NULL : "journal=false in the URL: what is not in the journal is lost with the server";
}

static void health_run(struct om_mongo_thread *t, struct om_mongo_job *j) {
        struct om_store *s = t->store;
        struct health *h = (struct health *) j;
        bson_t *hello = BCON_NEW("hello", BCON_INT32(1)), *status = BCON_NEW("serverStatus", BCON_INT32(1)), said, engine;
        struct om_buf b = OM_BUF_INIT;
        bson_error_t why = { 0 }, ignored;
        int64_t began_ms = om_clock_ms();
        bool is_volatile = false;
        bson_iter_t i, field;

        if (!mongoc_client_command_simple(t->client, s->settings.database, hello, NULL, &said, &why)) {
                om_mongo_fail(j, &why, "health");
                goto out;
        }
        /* Only who may monitor is told of the engine. */
        mongoc_client_command_simple(t->client, "admin", status, NULL, &engine, &ignored);
        if (bson_iter_init(&i, &engine) && bson_iter_find_descendant(&i, "storageEngine.persistent", &field))
                is_volatile = !bson_iter_as_bool(&field);
        om_buf_lit(&b, "{\"version\":");
        om_buf_json_span(&b, om_span_of(s->version));
        om_buf_printf(&b, ",\"server\":\"%s\"", atomic_load(&s->ferret) ? "FerretDB" : "MongoDB");
        om_buf_printf(&b, ",\"durability\":\"%s\"", why_weak(s, is_volatile) ? "weak" : "strong");
        if (why_weak(s, is_volatile)) {
                om_buf_lit(&b, ",\"why\":");
                om_buf_json_span(&b, om_span_of(why_weak(s, is_volatile)));
        }
        om_buf_printf(&b, ",\"write_concern\":{\"majority\":%s,\"journal\":%s}", s->settings.majority ? "true" : "false",
                s->settings.journal ? "true" : "false");
        om_buf_lit(&b, ",\"database\":");
        om_buf_json_span(&b, om_span_of(s->settings.database));
        put_field(&b, &said, "setName", "replica_set");
        put_field(&b, &said, "primary", "primary");
        put_field(&b, &engine, "storageEngine.name", "engine");
        om_buf_printf(&b, ",\"expiry\":\"%s\",\"search\":\"%s\"", atomic_load(&s->ttl) ? "TTL indexes" : "sweeper",
                atomic_load(&s->text) ? "text index" : "regular expression");
        /* Each is a way there and back: far away, the answer is due before the last has been counted. */
        for (int kind = OM_STORE_AGENTS; kind <= OM_STORE_KEYS && !j->status && om_clock_ms() - began_ms < COUNT_WITHIN_MS; kind++) {
                mongoc_collection_t *c = om_mongo_collection(s, t->client, (enum om_store_kind) kind);
                int64_t n = mongoc_collection_estimated_document_count(c, NULL, NULL, NULL, &why);

                mongoc_collection_destroy(c);
                if (n < 0)
                        om_mongo_fail(j, &why, "health");
                om_buf_printf(&b, ",\"%s\":%lld", om_mongo_name((enum om_store_kind) kind), (long long) n);
        }
        om_buf_putc(&b, '}');
        h->info = om_buf_ok(&b) ? om_arena_copy(&j->out, om_buf_span(&b)) : OM_SPAN_NONE;
        if (!h->info.p)
                om_mongo_fail_memory(j);
        bson_destroy(&engine);
out:
        bson_destroy(&said);
        bson_destroy(hello);
        bson_destroy(status);
        om_buf_deinit(&b);
}

static void health_give(struct om_mongo_job *j) {
        struct health *h = (struct health *) j;

        h->op->info = h->info;
        h->op->arena = j->out;
        j->out = (struct om_arena){ 0 };
}

int om_mongo_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        struct health *h;
        int r = om_mongo_job_new(s, &op->op, sizeof *h, 64, &h, e);

        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        h->op = op;
        h->j.run = health_run;
        h->j.give = health_give;
        om_mongo_submit(&h->j, false);
        return 0;
}
