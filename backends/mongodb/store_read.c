/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry, lists, and health. The reading threads', but for where an operation begins and is given back.
 *
 * A cursor of results and metrics is the `place` of the last entry that was given, of the others its _id: each is the order of the list.
 * What has expired is stepped over here, by the clock that the promise goes by, so the server's filters do not know of it.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

enum { PAGE = 1000, PAGE_MAX = 10000, PAGE_BYTES = 16 << 20 };

static bool is_expired(const struct om_store_entry *e) { return e->expires_ms && e->expires_ms <= om_now_ms(); }

static int not_ours(struct om_mongo_job *j, int r) {
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
                found = r == 0 && !is_expired(&g->entry);
        }
        if (mongoc_cursor_error(cursor, &why))
                om_mongo_fail(j, &why, "reading");
        else if (r < 0)
                j->status = not_ours(j, r);
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

/* -- lists ------------------------------------------------------------------------------------------------------------- */

struct list {
        struct om_mongo_job j; /* first */
        struct om_store_list *op;
        struct om_store_list in; /* its inputs, in the arena */
        struct om_store_entry *entries;
        size_t n, limit;
        struct om_span next;
};

static void equal(bson_t *find, const char *field, struct om_span value) {
        if (value.p)
                bson_append_utf8(find, field, -1, value.p, (int) value.len);
}

/* A word in a JSON text, as a regular expression that is nothing but that word. */
static void put_word(struct om_buf *b, struct om_span word) {
        struct om_buf json = OM_BUF_INIT;

        om_buf_json_span(&json, word);
        for (size_t i = 1; i + 1 < json.len; i++) {
                if (strchr("\\^$.|?*+()[]{}", json.data[i]))
                        om_buf_putc(b, '\\');
                om_buf_putc(b, json.data[i]);
        }
        om_buf_putc(b, 0);
        om_buf_deinit(&json);
}

static bool next_word(struct om_span *rest, struct om_span *ret) {
        while (rest->len && strchr(" \t\r\n", *rest->p))
                rest->p++, rest->len--;
        *ret = (struct om_span){ rest->p, 0 };
        while (ret->len < rest->len && !strchr(" \t\r\n", rest->p[ret->len]))
                ret->len++;
        rest->p += ret->len;
        rest->len -= ret->len;
        return ret->len > 0;
}

/* All words must be there. With the server's index each is a phrase, as only those are all wanted. */
static void put_words(bson_t *find, const struct om_store *s, struct om_span text) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span word;
        bson_t search, all, one, in;
        uint32_t n = 0;

        if (atomic_load(&s->text)) {
                while (next_word(&text, &word)) {
                        om_buf_puts(&b, n++ ? " \"" : "\"");
                        for (size_t i = 0; i < word.len; i++)
                                om_buf_putc(&b, word.p[i] == '"' || word.p[i] == '\\' ? ' ' : word.p[i]);
                        om_buf_putc(&b, '"');
                }
                BSON_APPEND_DOCUMENT_BEGIN(find, "$text", &search);
                bson_append_utf8(&search, "$search", -1, om_buf_span(&b).p, (int) b.len);
                bson_append_document_end(find, &search);
        } else {
                BSON_APPEND_ARRAY_BEGIN(find, "$or", &in); /* of one: $and may be the filter's */
                BSON_APPEND_DOCUMENT_BEGIN(&in, "0", &one);
                BSON_APPEND_ARRAY_BEGIN(&one, "$and", &all);
                while (next_word(&text, &word)) {
                        char room[16];
                        const char *key;
                        bson_t has;

                        om_buf_clear(&b);
                        put_word(&b, word);
                        bson_uint32_to_string(n++, &key, room, sizeof room);
                        bson_append_document_begin(&all, key, -1, &has);
                        BSON_APPEND_REGEX(&has, "text", om_buf_ok(&b) ? b.data : "", "i");
                        bson_append_document_end(&all, &has);
                }
                bson_append_array_end(&one, &all);
                bson_append_document_end(&in, &one);
                bson_append_array_end(find, &in);
        }
        om_buf_deinit(&b);
}

static void put_times(bson_t *find, const struct list *l) {
        char place[OM_MONGO_PLACE], until[OM_MONGO_PLACE];
        struct om_span below = l->in.cursor;
        bson_t at;

        if (l->in.until_ms) {
                om_mongo_place(until, l->in.until_ms, 0, 0);
                if (!below.p || strcmp(until, below.p) < 0)
                        below = om_span_of(until);
        }
        if (!below.p && !l->in.since_ms)
                return;
        BSON_APPEND_DOCUMENT_BEGIN(find, "place", &at);
        if (l->in.since_ms) {
                om_mongo_place(place, l->in.since_ms, 0, 0);
                BSON_APPEND_UTF8(&at, "$gte", place);
        }
        if (below.p)
                bson_append_utf8(&at, "$lt", -1, below.p, (int) below.len);
        bson_append_document_end(find, &at);
}

/* Where lists by name begin. */
static void put_names(bson_t *find, const struct list *l) {
        struct om_span prefix = l->in.kind == OM_STORE_CONFIG ? l->in.name : OM_SPAN_NONE;
        bson_t at;

        if (l->in.kind == OM_STORE_AGENTS)
                equal(find, "topic", l->in.key);
        if (!l->in.cursor.p && !prefix.p)
                return;
        BSON_APPEND_DOCUMENT_BEGIN(find, "_id", &at);
        if (l->in.cursor.p)
                bson_append_utf8(&at, "$gt", -1, l->in.cursor.p, (int) l->in.cursor.len);
        else
                bson_append_utf8(&at, "$gte", -1, prefix.p, (int) prefix.len);
        bson_append_document_end(find, &at);
}

static int put_find(bson_t *find, struct list *l) {
        const struct om_store_list *in = &l->in;
        int r = 0;

        if (!om_mongo_is_by_time(in->kind)) {
                put_names(find, l);
                return 0;
        }
        equal(find, "topic", in->topic);
        equal(find, "status", in->status);
        put_times(find, l);
        if (in->kind == OM_STORE_METRICS)
                return 0;
        equal(find, "task_id", in->key);
        equal(find, "agent", in->name);
        if (in->text.p)
                put_words(find, l->j.store, in->text);
        if (in->filter.p)
                r = om_mongo_filter(find, in->filter, &l->j.error);
        return r;
}

static bool begins(struct om_span text, struct om_span prefix) {
        return text.len >= prefix.len && memcmp(text.p, prefix.p, prefix.len) == 0;
}

/* The cursor behind this document. */
static struct om_span cursor_behind(struct list *l, const bson_t *doc) {
        bson_iter_t i;
        uint32_t len;

        if (!bson_iter_init_find(&i, doc, om_mongo_is_by_time(l->in.kind) ? "place" : "_id") || !BSON_ITER_HOLDS_UTF8(&i))
                return OM_SPAN_NONE;
        const char *text = bson_iter_utf8(&i, &len);
        return om_arena_copy(&l->j.out, (struct om_span){ text, len });
}

static int take_page(struct list *l, mongoc_cursor_t *cursor) {
        size_t size = 0, bytes = 0;
        struct om_span last = OM_SPAN_NONE;
        const bson_t *doc;

        while (mongoc_cursor_next(cursor, &doc)) {
                struct om_store_entry e;
                int r = om_mongo_entry(doc, l->in.kind, &l->j.out, &e);

                if (r < 0)
                        return r;
                if (is_expired(&e))
                        continue;
                if (l->in.kind == OM_STORE_CONFIG && l->in.name.p && !begins(e.key, l->in.name))
                        break;
                if (l->n == l->limit || bytes > PAGE_BYTES) {
                        l->next = last;
                        break;
                }
                if (l->n == size) {
                        struct om_store_entry *more = om_arena_alloc(&l->j.out, (size = size * 2 + 64) * sizeof *more);

                        if (!more)
                                return -ENOMEM;
                        if (l->n)
                                memcpy(more, l->entries, l->n * sizeof *more);
                        l->entries = more;
                }
                l->entries[l->n++] = e;
                bytes += e.value.len;
                last = cursor_behind(l, doc);
                if (!last.p)
                        return -EIO;
        }
        return 0;
}

static void list_run(struct om_mongo_thread *t, struct om_mongo_job *j) {
        struct list *l = (struct list *) j;
        bool by_time = om_mongo_is_by_time(j->kind);
        mongoc_collection_t *c = om_mongo_collection(t->store, t->client, j->kind);
        bson_t find = BSON_INITIALIZER,
               *opts = BCON_NEW("sort", "{", by_time ? "place" : "_id", BCON_INT32(by_time ? -1 : 1), "}", "batchSize",
                       BCON_INT32((int32_t) l->limit + 1), "maxTimeMS", BCON_INT64(t->store->settings.answer_timeout_ms), "projection", "{",
                       "doc", BCON_BOOL(false), "}");
        bson_error_t why = { 0 };
        mongoc_cursor_t *cursor;
        int r = put_find(&find, l);

        if (r < 0)
                j->status = r;
        else {
                cursor = mongoc_collection_find_with_opts(c, &find, opts, NULL);
                r = take_page(l, cursor);
                if (mongoc_cursor_error(cursor, &why))
                        om_mongo_fail(j, &why, "listing");
                else if (r < 0)
                        j->status = not_ours(j, r);
                mongoc_cursor_destroy(cursor);
        }
        bson_destroy(&find);
        bson_destroy(opts);
        mongoc_collection_destroy(c);
}

static void list_give(struct om_mongo_job *j) {
        struct list *l = (struct list *) j;

        l->op->entries = l->entries;
        l->op->n = l->n;
        l->op->next_cursor = l->next;
        l->op->arena = j->out;
        j->out = (struct om_arena){ 0 };
}

static bool keep_inputs(struct list *l, const struct om_store_list *op) {
        const struct om_span *in[] = { &op->key, &op->name, &op->topic, &op->status, &op->cursor, &op->text, &op->filter };
        struct om_span *out[] = { &l->in.key, &l->in.name, &l->in.topic, &l->in.status, &l->in.cursor, &l->in.text, &l->in.filter };

        l->in.kind = op->kind;
        l->in.since_ms = op->since_ms;
        l->in.until_ms = op->until_ms;
        for (size_t i = 0; i < sizeof in / sizeof *in; i++)
                if (!om_mongo_keep(&l->j, *in[i], out[i]))
                        return false;
        l->limit = op->limit ? op->limit : PAGE;
        l->limit = l->limit < PAGE_MAX ? l->limit : PAGE_MAX;
        return true;
}

/* A place is 12.16.8 hexadecimal digits. */
static bool is_place(struct om_span c) {
        if (c.len != 38)
                return false;
        for (size_t i = 0; i < c.len; i++)
                if (i == 12 || i == 29 ? c.p[i] != '.' : !strchr("0123456789abcdef", c.p[i]) || !c.p[i])
                        return false;
        return true;
}

int om_mongo_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct list *l;
        int r;

        if (op->cursor.p &&
                (om_mongo_is_by_time(op->kind) ? !is_place(op->cursor) : !bson_utf8_validate(op->cursor.p, op->cursor.len, true)))
                return om_error_set(e, OM_INVALID, "\"%.*s\" is none of this storage's", (int) (op->cursor.len < 40 ? op->cursor.len : 40),
                        op->cursor.p);
        r = om_mongo_job_new(s, &op->op, sizeof *l, op->text.len + op->filter.len + 512, &l, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->n = 0;
        op->entries = NULL;
        op->next_cursor = OM_SPAN_NONE;
        l->op = op;
        l->j.kind = op->kind;
        l->j.run = list_run;
        l->j.give = list_give;
        if (keep_inputs(l, op)) {
                om_mongo_submit(&l->j, false);
                return 0;
        }
        om_mongo_fail_memory(&l->j);
        om_mongo_finish(&l->j);
        return 0;
}

/* -- health ------------------------------------------------------------------------------------------------------------ */

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
        if (s->ferret)
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
        om_buf_printf(&b, ",\"server\":\"%s\"", s->ferret ? "FerretDB" : "MongoDB");
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
        for (int kind = OM_STORE_AGENTS; kind <= OM_STORE_KEYS && !j->status; kind++) {
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
