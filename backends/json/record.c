/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes and reads what a journal's records say.
 *
 * Opening reads every record of a journal, and nearly all are puts in exactly the form that this file writes. Those are read in one pass
 * that looks for what it expects, and does not check again, byte by byte, what the checksum says is as it was written: a value was checked
 * when it came. Whatever is not in that form is read as any JSON is, and one that says more than this version knows is refused by the
 * caller.
 */
#include <errno.h>

#include "../../proto/json_scan.h"
#include "../../proto/text.h"
#include "../journal.h"
#include "record.h"

enum { DEPTH = 256 };

/* -- writing ------------------------------------------------------------------------------------------------------- */

/* `name` with what stands around it in a record: `,"name":`. */
static void put_text(struct om_buf *b, struct om_span name, struct om_span text) {
        if (!text.p)
                return;
        om_buf_put_span(b, name);
        om_buf_json_span(b, text);
}

void om_file_record_put(struct om_buf *b, const struct om_store_entry *entry, uint64_t sequence, uint64_t synced, size_t *ret_value) {
        size_t mark = om_journal_begin(b);
        om_buf_lit(b, "{\"op\":\"put\"");
        put_text(b, OM_SPAN(",\"key\":"), entry->key);
        put_text(b, OM_SPAN(",\"name\":"), entry->name);
        put_text(b, OM_SPAN(",\"topic\":"), entry->topic);
        put_text(b, OM_SPAN(",\"status\":"), entry->status);
        om_buf_lit(b, ",\"saved\":");
        om_buf_i64(b, entry->saved_ms);
        om_buf_lit(b, ",\"expires\":");
        om_buf_i64(b, entry->expires_ms);
        om_buf_lit(b, ",\"seq\":");
        om_buf_u64(b, sequence);
        om_buf_lit(b, ",\"value\":");
        *ret_value = b->len;
        om_buf_put_span(b, entry->value);
        om_buf_putc(b, '}');
        om_journal_end(b, mark, synced);
}

void om_file_record_delete(struct om_buf *b, struct om_span key, struct om_span name, uint64_t synced) {
        size_t mark = om_journal_begin(b);
        om_buf_lit(b, "{\"op\":\"delete\"");
        put_text(b, OM_SPAN(",\"key\":"), key);
        put_text(b, OM_SPAN(",\"name\":"), name);
        om_buf_putc(b, '}');
        om_journal_end(b, mark, synced);
}

void om_file_record_held(struct om_buf *b, uint64_t inode, uint64_t size) {
        size_t mark = om_journal_begin(b);
        om_buf_printf(b, "{\"op\":\"held\",\"inode\":%llu,\"size\":%llu}", (unsigned long long) inode, (unsigned long long) size);
        om_journal_end(b, mark, 0);
}

/* -- reading our own form ------------------------------------------------------------------------------------------ */

struct form {
        const char *p, *end;
};

static bool is_next(struct form *f, const char *text, size_t len) {
        if ((size_t) (f->end - f->p) < len || memcmp(f->p, text, len) != 0)
                return false;
        f->p += len;
        return true;
}
#define is_literal(f, text) is_next((f), (text), sizeof(text) - 1)

/* A string without escapes, behind its opening quote. */
static bool plain_text(struct form *f, struct om_span *ret) {
        const char *quote = om_text_skip_plain(f->p, f->end);
        if (quote == f->end || *quote != '"')
                return false;
        *ret = (struct om_span){ f->p, (size_t) (quote - f->p) };
        f->p = quote + 1;
        return true;
}

/* Up to 18 digits, which cannot overflow. */
static bool number(struct form *f, int64_t *ret) {
        const char *start = f->p;
        int64_t value = 0;
        for (; f->p < f->end && *f->p >= '0' && *f->p <= '9'; f->p++) {
                if (f->p - start == 18)
                        return false;
                value = value * 10 + (*f->p - '0');
        }
        *ret = value;
        return f->p > start;
}

static bool read_form(struct om_span json, struct om_store_entry *ret, int64_t *ret_sequence) {
        struct form f = { json.p, json.p + json.len };
        struct om_json j;
        struct om_json_value v;
        if (!is_literal(&f, "{\"op\":\"put\"") || (is_literal(&f, ",\"key\":\"") && !plain_text(&f, &ret->key)) ||
                (is_literal(&f, ",\"name\":\"") && !plain_text(&f, &ret->name)) ||
                (is_literal(&f, ",\"topic\":\"") && !plain_text(&f, &ret->topic)) ||
                (is_literal(&f, ",\"status\":\"") && !plain_text(&f, &ret->status)) || !is_literal(&f, ",\"saved\":") ||
                !number(&f, &ret->saved_ms) || !is_literal(&f, ",\"expires\":") || !number(&f, &ret->expires_ms) ||
                !is_literal(&f, ",\"seq\":") || !number(&f, ret_sequence) || !is_literal(&f, ",\"value\":") || f.p == f.end)
                return false;
        /* The value, and nothing behind it. */
        om_json_init_valid(&j, (struct om_span){ f.p, (size_t) (f.end - f.p) - 1 });
        if (om_json_value(&j, &v) < 0 || om_json_finish(&j) < 0)
                return false;
        ret->value = v.text;
        return true;
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

static int read_any(struct om_span json, struct om_arena *arena, struct om_store_entry *ret, int64_t *ret_sequence) {
        enum { OP, KEY, NAME, TOPIC, STATUS, SAVED, EXPIRES, SEQUENCE, VALUE };
        struct om_json_member m[] = { { "op", OM_JSON_STRING, true }, { "key", OM_JSON_STRING }, { "name", OM_JSON_STRING },
                { "topic", OM_JSON_STRING }, { "status", OM_JSON_STRING }, { "saved", OM_JSON_NUMBER }, { "expires", OM_JSON_NUMBER },
                { "seq", OM_JSON_NUMBER }, { "value", OM_JSON_ANY }, { NULL } };
        struct om_span *fields[] = { &ret->key, &ret->name, &ret->topic, &ret->status };
        uint64_t inode, size;
        if (om_json_check(json, DEPTH, NULL) < 0)
                return OM_FILE_RECORD_UNKNOWN;
        if (om_json_members(json, "", m, NULL) < 0)
                return om_file_record_is_held(json, &inode, &size) ? OM_FILE_RECORD_HELD : OM_FILE_RECORD_UNKNOWN;
        for (int i = 0; i < 4; i++) {
                if (!m[KEY + i].value.type)
                        continue;
                *fields[i] = om_json_string(m[KEY + i].value, arena);
                if (!fields[i]->p)
                        return -ENOMEM;
        }
        ret->value = m[VALUE].value.text;
        if (om_json_string_is(m[OP].value, "delete"))
                return OM_FILE_RECORD_DELETE;
        return om_json_string_is(m[OP].value, "put") && ret->value.p && om_json_int64(m[SEQUENCE].value, ret_sequence) == 0 &&
                        om_json_int64(m[SAVED].value, &ret->saved_ms) == 0 && om_json_int64(m[EXPIRES].value, &ret->expires_ms) == 0
                ? OM_FILE_RECORD_PUT
                : OM_FILE_RECORD_UNKNOWN;
}

int om_file_record_read(struct om_span json, struct om_arena *arena, struct om_store_entry *ret, uint64_t *ret_sequence) {
        int64_t sequence = 0;
        *ret = (struct om_store_entry){ 0 };
        int r = OM_FILE_RECORD_PUT;
        if (!read_form(json, ret, &sequence)) {
                *ret = (struct om_store_entry){ 0 };
                r = read_any(json, arena, ret, &sequence);
        }
        *ret_sequence = (uint64_t) sequence;
        return r == OM_FILE_RECORD_PUT && sequence <= 0 ? OM_FILE_RECORD_UNKNOWN : r;
}

bool om_file_record_is_held(struct om_span json, uint64_t *ret_inode, uint64_t *ret_size) {
        struct om_json_member m[] = { { "op", OM_JSON_STRING, true }, { "inode", OM_JSON_NUMBER, true }, { "size", OM_JSON_NUMBER, true },
                { NULL } };
        int64_t inode, size;
        if (om_json_check(json, DEPTH, NULL) < 0 || om_json_members(json, "", m, NULL) < 0 || !om_json_string_is(m[0].value, "held") ||
                om_json_int64(m[1].value, &inode) < 0 || om_json_int64(m[2].value, &size) < 0)
                return false;
        *ret_inode = (uint64_t) inode;
        *ret_size = (uint64_t) size;
        return true;
}
