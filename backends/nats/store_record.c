/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Subjects and envelopes of the storage: see store_state.h. An envelope is one JSON object, the value last, so that what lists look at is
 * found first:
 *
 *   {"key":"…","name":"…","saved_ms":1,"expires_ms":2,"topic":"…","status":"…","value":…}
 *   {…,"generation":"5c1e…","parts":20,"size":10485760}
 *
 * What is true: what nats_envelope_put() writes reads back the same; what another program has put there is refused, never misread. Pure.
 */
#include "store_state.h"

enum store_stream nats_stream_of(enum om_store_kind kind) {
        return kind == OM_STORE_RESULTS ? IN_RESULTS : kind == OM_STORE_METRICS ? IN_METRICS : IN_MAIN;
}

static const char letters[] = {
        [OM_STORE_AGENTS] = 'a', [OM_STORE_RESULTS] = 'r', [OM_STORE_METRICS] = 'm', [OM_STORE_CONFIG] = 'c', [OM_STORE_KEYS] = 'k'
};

static bool has_names(enum om_store_kind kind) { return kind == OM_STORE_AGENTS || kind == OM_STORE_RESULTS; }

static void put_token(struct om_buf *b, struct om_span text) {
        om_buf_putc(b, '.');
        if (text.len)
                nats_name_encode(b, text);
        else
                om_buf_putc(b, '=');
}

/* ".K.N", and a wildcard where something is left open. */
static void put_place(struct om_buf *b, enum om_store_kind kind, struct om_span key, struct om_span name, bool one) {
        if (!key.p && !one) {
                om_buf_lit(b, ".>");
                return;
        }
        put_token(b, key);
        if (!has_names(kind))
                return;
        if (name.p || one)
                put_token(b, name);
        else
                om_buf_lit(b, ".*");
}

/* Without memory the subject is of nothing that there is. */
static void text_of(char *out, struct om_buf *b) {
        snprintf(out, SUBJECT_MAX, "%.*s", om_buf_ok(b) ? (int) b->len : 1, om_buf_ok(b) && b->data ? b->data : "-");
        om_buf_deinit(b);
}

void nats_entry_subject(
        char out[static SUBJECT_MAX], const struct om_store *s, enum om_store_kind kind, struct om_span key, struct om_span name) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_printf(&b, "$KV.%s", s->bucket);
        if (kind == OM_STORE_RESULTS)
                om_buf_lit(&b, "_results");
        else if (kind == OM_STORE_METRICS)
                om_buf_lit(&b, "_metrics");
        else
                om_buf_printf(&b, ".%c", letters[kind]);
        put_place(&b, kind, key, name, false);
        text_of(out, &b);
}

void nats_parts_subject(char out[static SUBJECT_MAX], const struct om_store *s, enum om_store_kind kind, struct om_span key,
        struct om_span name, const char *generation, unsigned i) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_printf(&b, "$KV.%s_parts.%c", s->bucket, letters[kind]);
        put_place(&b, kind, key, name, generation != NULL);
        if (generation)
                om_buf_printf(&b, ".%s.%u", generation, i);
        else if (key.p)
                om_buf_lit(&b, ".>");
        text_of(out, &b);
}

const char *nats_entry_fault(const struct om_store_entry *entry) {
        return entry->key.len > OM_STORE_KEY_MAX || entry->name.len > OM_STORE_KEY_MAX ? "a key or name is longer than 1024 bytes" : NULL;
}

/* -- envelopes --------------------------------------------------------------------------------------------------------- */

static void put_member(struct om_buf *b, const char *name, struct om_span text) {
        if (!text.p)
                return;
        om_buf_printf(b, ",\"%s\":", name);
        om_buf_json_span(b, text);
}

void nats_envelope_put(struct om_buf *b, const struct om_store_entry *entry, const char *generation, unsigned n_parts) {
        om_buf_printf(b, "{\"saved_ms\":%lld", (long long) entry->saved_ms);
        put_member(b, "key", entry->key);
        put_member(b, "name", entry->name);
        if (entry->expires_ms)
                om_buf_printf(b, ",\"expires_ms\":%lld", (long long) entry->expires_ms);
        put_member(b, "topic", entry->topic);
        put_member(b, "status", entry->status);
        if (n_parts)
                om_buf_printf(b, ",\"generation\":\"%s\",\"parts\":%u,\"size\":%zu}", generation, n_parts, entry->value.len);
        else {
                om_buf_lit(b, ",\"value\":");
                om_buf_put_span(b, entry->value);
                om_buf_putc(b, '}');
        }
}

static bool text_member(struct om_json_value v, struct om_arena *arena, struct om_span *ret) {
        if (v.type == OM_JSON_STRING)
                *ret = om_json_string(v, arena);
        return v.type != OM_JSON_STRING || ret->p;
}

static int64_t number_member(struct om_json_value v) {
        int64_t n = 0;

        return v.type == OM_JSON_NUMBER && om_json_int64(v, &n) == 0 ? n : 0;
}

int nats_envelope_read(struct om_span text, struct om_arena *arena, struct envelope *ret) {
        enum { SAVED, KEY, NAME, EXPIRES, TOPIC, STATUS, GENERATION, PARTS, SIZE, VALUE };
        struct om_json_member m[] = { { "saved_ms", OM_JSON_NUMBER, true }, { "key", OM_JSON_STRING }, { "name", OM_JSON_STRING },
                { "expires_ms", OM_JSON_NUMBER }, { "topic", OM_JSON_STRING }, { "status", OM_JSON_STRING },
                { "generation", OM_JSON_STRING }, { "parts", OM_JSON_NUMBER }, { "size", OM_JSON_NUMBER }, { "value", OM_JSON_ANY },
                { NULL } };
        struct om_span generation = OM_SPAN_NONE;
        struct om_store_entry *e = &ret->entry;

        *ret = (struct envelope){ .n_parts = 0 };
        if (om_json_check(text, DEPTH, NULL) < 0 || om_json_members(text, "envelope", m, NULL) < 0)
                return -EINVAL;
        if (!text_member(m[KEY].value, arena, &e->key) || !text_member(m[NAME].value, arena, &e->name) ||
                !text_member(m[TOPIC].value, arena, &e->topic) || !text_member(m[STATUS].value, arena, &e->status) ||
                !text_member(m[GENERATION].value, arena, &generation))
                return -ENOMEM;
        e->saved_ms = number_member(m[SAVED].value);
        e->expires_ms = number_member(m[EXPIRES].value);
        ret->n_parts = (unsigned) number_member(m[PARTS].value);
        ret->size = (size_t) number_member(m[SIZE].value);
        if (!ret->n_parts != (m[VALUE].value.type != 0) || ret->n_parts > PARTS_MAX || generation.len >= sizeof ret->generation)
                return -EINVAL;
        snprintf(ret->generation, sizeof ret->generation, "%.*s", OM_PRI(generation));
        if (!ret->n_parts)
                e->value = m[VALUE].value.text;
        return 0;
}
