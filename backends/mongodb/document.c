/* SPDX-License-Identifier: Apache-2.0 */
/* Entries, documents and JSON: see document.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../proto/json_scan.h"
#include "document.h"

enum { DEPTH = 70, MEMBERS_MAX = 2000, DOC_TEXT_MAX = 4 << 20, JSON_DEPTH = 1000 };

const char *om_mongo_name(enum om_store_kind kind) {
        static const char *const names[] = { [OM_STORE_AGENTS] = "agents",
                [OM_STORE_RESULTS] = "results",
                [OM_STORE_METRICS] = "metrics",
                [OM_STORE_CONFIG] = "config",
                [OM_STORE_KEYS] = "keys" };

        return names[kind];
}

static void put_part(struct om_buf *b, struct om_span part) {
        for (size_t i = 0; i < part.len; i++) {
                char c = part.p[i];

                if (c == '%' || c == '/' || c == 0)
                        om_buf_printf(b, "%%%02X", (unsigned) c);
                else
                        om_buf_putc(b, c);
        }
}

void om_mongo_id(struct om_buf *b, enum om_store_kind kind, struct om_span key, struct om_span name) {
        if (kind != OM_STORE_AGENTS && kind != OM_STORE_RESULTS) {
                om_buf_put_span(b, key);
                return;
        }
        put_part(b, key);
        om_buf_putc(b, '/');
        put_part(b, name);
}

void om_mongo_place(char out[OM_MONGO_PLACE], int64_t saved_ms, uint64_t seq, uint32_t writer) {
        snprintf(out, OM_MONGO_PLACE, "%012" PRIx64 ".%016" PRIx64 ".%08" PRIx32, (uint64_t) (saved_ms < 0 ? 0 : saved_ms) & 0xffffffffffff,
                seq, writer);
}

/* -- JSON to BSON -------------------------------------------------------------------------------------------------------- */

struct names {
        struct om_span *all;
        size_t n, size;
};

static bool is_new(struct names *names, struct om_span name) {
        for (size_t i = 0; i < names->n; i++)
                if (om_span_eq(names->all[i], name))
                        return false;
        if (names->n == names->size) {
                struct om_span *more = realloc(names->all, (names->size * 2 + 16) * sizeof *more);

                if (!more)
                        return false;
                names->all = more;
                names->size = names->size * 2 + 16;
        }
        names->all[names->n++] = name;
        return true;
}

/* A name as the server takes it; see document.h. */
static struct om_span field_name(struct om_arena *arena, struct om_json_value v) {
        struct om_span raw = om_json_string(v, arena), name;
        struct om_buf b = OM_BUF_INIT;

        if (!raw.p)
                return raw;
        for (size_t i = 0; i < raw.len; i++)
                if (raw.p[i] == '.')
                        om_buf_lit(&b, "\xef\xbc\x8e");
                else if (raw.p[i] == '$' && i == 0)
                        om_buf_lit(&b, "\xef\xbc\x84");
                else if (raw.p[i] == 0)
                        om_buf_lit(&b, "\xe2\x90\x80");
                else
                        om_buf_putc(&b, raw.p[i]);
        name = om_buf_ok(&b) ? om_arena_copy(arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        return name;
}

static int put_value(bson_t *to, struct om_span key, struct om_json *j, struct om_arena *arena, unsigned depth);

static int put_members(bson_t *to, struct om_json *j, struct om_arena *arena, unsigned depth) {
        struct names names = { 0 };
        struct om_json_value key, skipped;
        int r = om_json_enter_object(j);

        while (r == 0 && (r = om_json_next_key(j, &key)) == 1) {
                struct om_span name = field_name(arena, key);

                if (!name.p || names.n >= MEMBERS_MAX)
                        r = -E2BIG;
                else if (is_new(&names, name))
                        r = put_value(to, name, j, arena, depth);
                else
                        r = om_json_value(j, &skipped) < 0 ? -EINVAL : 0;
        }
        free(names.all);
        return r;
}

static int put_elements(bson_t *to, struct om_json *j, struct om_arena *arena, unsigned depth) {
        int r = om_json_enter_array(j);

        for (uint32_t i = 0; r == 0 && (r = om_json_next_element(j)) == 1; i++) {
                char room[16];
                const char *key;
                size_t len = bson_uint32_to_string(i, &key, room, sizeof room);

                r = put_value(to, (struct om_span){ key, len }, j, arena, depth);
        }
        return r;
}

static bool put_number(bson_t *to, struct om_span key, struct om_json_value v) {
        int64_t integer;
        double number;

        if (om_json_int64(v, &integer) == 0)
                return integer >= INT32_MIN && integer <= INT32_MAX ? bson_append_int32(to, key.p, (int) key.len, (int32_t) integer)
                                                                    : bson_append_int64(to, key.p, (int) key.len, integer);
        if (om_json_double(v, &number) == 0)
                return bson_append_double(to, key.p, (int) key.len, number);
        return bson_append_utf8(to, key.p, (int) key.len, v.text.p, (int) v.text.len);
}

static bool put_scalar(bson_t *to, struct om_span key, struct om_json_value v, struct om_arena *arena) {
        struct om_span text;

        switch (v.type) {
        case OM_JSON_NULL:
                return bson_append_null(to, key.p, (int) key.len);
        case OM_JSON_TRUE:
        case OM_JSON_FALSE:
                return bson_append_bool(to, key.p, (int) key.len, v.type == OM_JSON_TRUE);
        case OM_JSON_NUMBER:
                return put_number(to, key, v);
        default:
                text = om_json_string(v, arena);
                return text.p && bson_append_utf8(to, key.p, (int) key.len, text.p, (int) text.len);
        }
}

/* The value that comes next. 0, -EINVAL: no JSON, -E2BIG: too deep or too wide for a document. */
static int put_value(bson_t *to, struct om_span key, struct om_json *j, struct om_arena *arena, unsigned depth) {
        enum om_json_type type = om_json_peek(j);
        struct om_json_value v;
        bson_t inner;
        int r;

        if (depth > DEPTH)
                return -E2BIG;
        if (type == OM_JSON_OBJECT) {
                if (!bson_append_document_begin(to, key.p, (int) key.len, &inner))
                        return -E2BIG;
                r = put_members(&inner, j, arena, depth + 1);
                return bson_append_document_end(to, &inner) ? r : -E2BIG;
        }
        if (type == OM_JSON_ARRAY) {
                if (!bson_append_array_begin(to, key.p, (int) key.len, &inner))
                        return -E2BIG;
                r = put_elements(&inner, j, arena, depth + 1);
                return bson_append_array_end(to, &inner) ? r : -E2BIG;
        }
        r = om_json_value(j, &v);
        if (r == 0 && !put_scalar(to, key, v, arena))
                r = -E2BIG;
        return r;
}

/* -- documents ------------------------------------------------------------------------------------------------------------ */

static bool put_text(bson_t *to, const char *key, struct om_span text) {
        return !text.p || bson_append_utf8(to, key, -1, text.p, (int) text.len);
}

static bool put_fields(bson_t *to, enum om_store_kind kind, const struct om_store_entry *e, const char *place, struct om_span id) {
        bool ok = true;

        if (kind != OM_STORE_METRICS)
                ok = put_text(to, "_id", id);
        if (kind == OM_STORE_AGENTS)
                ok = ok && put_text(to, "topic", e->key) && put_text(to, "agent", e->name);
        if (kind == OM_STORE_RESULTS)
                ok = ok && put_text(to, "task_id", e->key) && put_text(to, "agent", e->name);
        if (om_mongo_is_by_time(kind))
                ok = ok && put_text(to, "topic", e->topic) && put_text(to, "status", e->status) && put_text(to, "place", om_span_of(place));
        ok = ok && BSON_APPEND_DATE_TIME(to, "saved_at", e->saved_ms);
        if (e->expires_ms)
                ok = ok && BSON_APPEND_DATE_TIME(to, "expires_at", e->expires_ms);
        return ok && put_text(to, "text", e->value);
}

static bool is_utf8(struct om_span text) { return !text.p || bson_utf8_validate(text.p, text.len, true); }

const char *om_mongo_document(
        bson_t *to, enum om_store_kind kind, const struct om_store_entry *e, const char *place, struct om_span id, bool plain) {
        static const char too_large[] = "MongoDB holds at most 16 MiB in a document";
        struct om_arena arena = { 0 };
        struct om_json j;
        bson_t doc;
        int r = -E2BIG;

        if (e->value.len > OM_MONGO_DOCUMENT_MAX)
                return too_large;
        if (!is_utf8(e->key) || !is_utf8(e->name) || !is_utf8(e->topic) || !is_utf8(e->status))
                return "its key is no UTF-8";
        if (om_json_check(e->value, JSON_DEPTH, NULL) < 0)
                return "its value is no JSON";
        if (!put_fields(to, kind, e, place, id) || to->len > OM_MONGO_DOCUMENT_MAX)
                return too_large;
        if (plain || e->value.len > DOC_TEXT_MAX)
                return NULL;
        om_json_init_valid(&j, e->value);
        bson_init(&doc);
        r = put_value(&doc, OM_SPAN("doc"), &j, &arena, 0);
        if (r == 0 && doc.len + to->len <= OM_MONGO_DOCUMENT_MAX)
                bson_concat(to, &doc);
        bson_destroy(&doc);
        om_arena_deinit(&arena);
        return NULL;
}

static int take(const bson_iter_t *i, struct om_arena *arena, struct om_span *ret) {
        uint32_t len;
        const char *text;

        if (!BSON_ITER_HOLDS_UTF8(i))
                return -EIO;
        text = bson_iter_utf8(i, &len);
        *ret = om_arena_copy(arena, (struct om_span){ text, len });
        return ret->p ? 0 : -ENOMEM;
}

int om_mongo_entry(const bson_t *doc, enum om_store_kind kind, struct om_arena *arena, struct om_store_entry *ret) {
        bool by_key = kind == OM_STORE_CONFIG || kind == OM_STORE_KEYS;
        bson_iter_t i;
        int r = 0;

        *ret = (struct om_store_entry){ 0 };
        if (!bson_iter_init(&i, doc))
                return -EIO;
        while (r == 0 && bson_iter_next(&i)) {
                const char *name = bson_iter_key(&i);

                if (strcmp(name, "text") == 0)
                        r = take(&i, arena, &ret->value);
                else if (strcmp(name, by_key ? "_id" : kind == OM_STORE_RESULTS ? "task_id" : kind == OM_STORE_AGENTS ? "topic" : "") == 0)
                        r = take(&i, arena, &ret->key);
                else if (strcmp(name, "agent") == 0)
                        r = take(&i, arena, &ret->name);
                else if (strcmp(name, "topic") == 0)
                        r = take(&i, arena, &ret->topic);
                else if (strcmp(name, "status") == 0)
                        r = take(&i, arena, &ret->status);
                else if (strcmp(name, "saved_at") == 0 && BSON_ITER_HOLDS_DATE_TIME(&i))
                        ret->saved_ms = bson_iter_date_time(&i);
                else if (strcmp(name, "expires_at") == 0 && BSON_ITER_HOLDS_DATE_TIME(&i))
                        ret->expires_ms = bson_iter_date_time(&i);
        }
        return r == 0 && !ret->value.p ? -EIO : r;
}

/* -- filters -------------------------------------------------------------------------------------------------------------- */

/* One condition on the field at `path`: a scalar is equal, or is in the array there; of an array each element is. */
static int put_condition(bson_t *all, uint32_t *n, struct om_buf *path, struct om_json *j, struct om_arena *arena, unsigned depth);

static int put_test(bson_t *all, uint32_t *n, const struct om_buf *path, const char *operator, struct om_json * j, struct om_arena *arena) {
        char room[16];
        const char *key;
        bson_t one, test;
        int r;

        bson_uint32_to_string((*n)++, &key, room, sizeof room);
        if (!bson_append_document_begin(all, key, -1, &one) || !bson_append_document_begin(&one, path->data, (int) path->len, &test))
                return -E2BIG;
        if (j) {
                r = put_value(&test, om_span_of(operator), j, arena, 0);
                BSON_APPEND_BOOL(&test, "$exists", true); /* null is not what is not there */
        } else {
                BSON_APPEND_UTF8(&test, "$type", operator);
                r = 0;
        }
        bson_append_document_end(&one, &test);
        bson_append_document_end(all, &one);
        return r;
}

static int put_object_condition(bson_t *all, uint32_t *n, struct om_buf *path, struct om_json *j, struct om_arena *arena, unsigned depth) {
        struct om_json_value key;
        size_t mark = path->len;
        bool any = false;
        int r = om_json_enter_object(j);

        while (r == 0 && (r = om_json_next_key(j, &key)) == 1) {
                struct om_span name = field_name(arena, key);

                any = true;
                om_buf_putc(path, '.');
                om_buf_put_span(path, name);
                r = name.p && om_buf_ok(path) ? put_condition(all, n, path, j, arena, depth + 1) : -ENOMEM;
                path->len = mark;
        }
        return r == 0 && !any && depth ? put_test(all, n, path, "object", NULL, arena) : r;
}

static int put_condition(bson_t *all, uint32_t *n, struct om_buf *path, struct om_json *j, struct om_arena *arena, unsigned depth) {
        enum om_json_type type = om_json_peek(j);
        bool any = false;
        int r;

        if (depth > DEPTH)
                return -E2BIG;
        if (type == OM_JSON_OBJECT)
                return put_object_condition(all, n, path, j, arena, depth);
        if (type != OM_JSON_ARRAY)
                return put_test(all, n, path, "$eq", j, arena);
        r = om_json_enter_array(j);
        while (r == 0 && (r = om_json_next_element(j)) == 1) {
                any = true;
                r = put_condition(all, n, path, j, arena, depth + 1);
        }
        return r == 0 && !any ? put_test(all, n, path, "array", NULL, arena) : r;
}

int om_mongo_filter(bson_t *to, struct om_span json, struct om_error *e) {
        struct om_buf path = OM_BUF_INIT;
        struct om_arena arena = { 0 };
        struct om_json j;
        uint32_t n = 0;
        bson_t all;
        int r;

        om_json_init(&j, json, DEPTH);
        if (om_json_check(json, DEPTH, e) < 0 || om_json_peek(&j) != OM_JSON_OBJECT)
                return om_error_set(e, OM_INVALID, "MongoDB: the filter is a JSON object that records must contain");
        bson_init(&all);
        om_buf_lit(&path, "doc");
        r = put_condition(&all, &n, &path, &j, &arena, 0);
        if (r == 0 && n > 0)
                BSON_APPEND_ARRAY(to, "$and", &all);
        bson_destroy(&all);
        om_buf_deinit(&path);
        om_arena_deinit(&arena);
        return r < 0 ? om_error_set(e, OM_INVALID, "MongoDB: the filter is too deep or too large") : 0;
}

/* -- BSON to JSON ---------------------------------------------------------------------------------------------------------- */

static void put_date(struct om_buf *b, int64_t ms) {
        time_t seconds = (time_t) (ms / 1000 - (ms % 1000 < 0));
        struct tm tm;
        char text[40];

        if (!gmtime_r(&seconds, &tm) || strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm) == 0) {
                om_buf_i64(b, ms);
                return;
        }
        om_buf_printf(b, "\"%s.%03dZ\"", text, (int) (ms - (int64_t) seconds * 1000));
}

static void put_inner(struct om_buf *b, const bson_iter_t *field, bool names) {
        bson_iter_t i;
        bool any = false;

        om_buf_putc(b, names ? '{' : '[');
        if (bson_iter_recurse(field, &i))
                while (bson_iter_next(&i)) {
                        if (any)
                                om_buf_putc(b, ',');
                        any = true;
                        if (names) {
                                om_buf_json_span(b, om_span_of(bson_iter_key(&i)));
                                om_buf_putc(b, ':');
                        }
                        om_mongo_put_json(b, &i);
                }
        om_buf_putc(b, names ? '}' : ']');
}

static void put_decimal(struct om_buf *b, const bson_iter_t *field) {
        char text[BSON_DECIMAL128_STRING];
        bson_decimal128_t decimal;

        bson_iter_decimal128(field, &decimal);
        bson_decimal128_to_string(&decimal, text);
        if (om_json_check(om_span_of(text), 1, NULL) == 0)
                om_buf_puts(b, text);
        else
                om_buf_json_span(b, om_span_of(text));
}

/* What JSON has no type for, as libbson's extended JSON. */
static void put_other(struct om_buf *b, const bson_iter_t *field) {
        bson_t one;
        char *text;
        size_t len;

        bson_init(&one);
        bson_append_iter(&one, "v", 1, field);
        text = bson_as_relaxed_extended_json(&one, &len);
        bson_destroy(&one);
        if (text && len > 9) /* { "v" : … } */
                om_buf_put(b, text + 8, len - 10);
        else
                om_buf_lit(b, "null");
        bson_free(text);
}

void om_mongo_put_json(struct om_buf *b, const bson_iter_t *field) {
        char oid[25];
        uint32_t len;
        const char *text;

        switch (bson_iter_type(field)) {
        case BSON_TYPE_DOUBLE:
                om_buf_json_double(b, bson_iter_double(field));
                return;
        case BSON_TYPE_UTF8:
                text = bson_iter_utf8(field, &len);
                om_buf_json_string(b, text, len);
                return;
        case BSON_TYPE_DOCUMENT:
        case BSON_TYPE_ARRAY:
                put_inner(b, field, bson_iter_type(field) == BSON_TYPE_DOCUMENT);
                return;
        case BSON_TYPE_BOOL:
                om_buf_puts(b, bson_iter_bool(field) ? "true" : "false");
                return;
        case BSON_TYPE_INT32:
        case BSON_TYPE_INT64:
                om_buf_i64(b, bson_iter_as_int64(field));
                return;
        case BSON_TYPE_DATE_TIME:
                put_date(b, bson_iter_date_time(field));
                return;
        case BSON_TYPE_OID:
                bson_oid_to_string(bson_iter_oid(field), oid);
                om_buf_json_span(b, om_span_of(oid));
                return;
        case BSON_TYPE_DECIMAL128:
                put_decimal(b, field);
                return;
        case BSON_TYPE_NULL:
        case BSON_TYPE_UNDEFINED:
                om_buf_lit(b, "null");
                return;
        default:
                put_other(b, field);
        }
}
