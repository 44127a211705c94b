/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records: see record.h.
 *
 *   {"key":"…","name":"…","saved_ms":1,"expires_ms":2,"topic":"…","status":"…","value":…}
 *
 * What is true: what is put reads back the same, the value byte for byte; what another program has put there is refused, never misread.
 */
#include <errno.h>

#include "../../proto/json_scan.h"
#include "record.h"

enum { DEPTH = 80 };

static void put_member(struct om_buf *b, const char *name, struct om_span text) {
        if (!text.p)
                return;
        om_buf_printf(b, "\"%s\":", name);
        om_buf_json_span(b, text);
        om_buf_putc(b, ',');
}

void s3_record_put(struct om_buf *b, const struct om_store_entry *entry) {
        om_buf_putc(b, '{');
        put_member(b, "key", entry->key);
        put_member(b, "name", entry->name);
        om_buf_printf(b, "\"saved_ms\":%lld,", (long long) entry->saved_ms);
        if (entry->expires_ms)
                om_buf_printf(b, "\"expires_ms\":%lld,", (long long) entry->expires_ms);
        put_member(b, "topic", entry->topic);
        put_member(b, "status", entry->status);
        om_buf_lit(b, "\"value\":");
        om_buf_put_span(b, entry->value);
        om_buf_putc(b, '}');
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

int s3_record_read(struct om_span text, struct om_arena *arena, struct om_store_entry *ret) {
        enum { SAVED, VALUE, KEY, NAME, EXPIRES, TOPIC, STATUS };
        struct om_json_member m[] = { { "saved_ms", OM_JSON_NUMBER, true }, { "value", OM_JSON_ANY, true }, { "key", OM_JSON_STRING },
                { "name", OM_JSON_STRING }, { "expires_ms", OM_JSON_NUMBER }, { "topic", OM_JSON_STRING }, { "status", OM_JSON_STRING },
                { NULL } };

        *ret = (struct om_store_entry){ .saved_ms = 0 };
        if (om_json_check(text, DEPTH, NULL) < 0 || om_json_members(text, "record", m, NULL) < 0)
                return -EINVAL;
        if (!text_member(m[KEY].value, arena, &ret->key) || !text_member(m[NAME].value, arena, &ret->name) ||
                !text_member(m[TOPIC].value, arena, &ret->topic) || !text_member(m[STATUS].value, arena, &ret->status))
                return -ENOMEM;
        ret->saved_ms = number_member(m[SAVED].value);
        ret->expires_ms = number_member(m[EXPIRES].value);
        ret->value = m[VALUE].value.text;
        return 0;
}
