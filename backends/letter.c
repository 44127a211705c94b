/* SPDX-License-Identifier: Apache-2.0 */
/* Dead letters as JSON: see letter.h. */
#include "letter.h"

void om_letter_write(struct om_buf *b, const struct om_dead_letter *l, struct om_span record) {
        om_buf_lit(b, "{\"error\":");
        om_buf_json_span(b, l->error);
        om_buf_lit(b, ",\"error_type\":");
        om_buf_json_span(b, l->error_type);
        om_buf_lit(b, ",\"worker\":");
        om_buf_json_span(b, l->worker);
        om_buf_printf(b, ",\"attempts\":%u,\"failed_ms\":%lld,\"record\":", l->attempts, (long long) l->failed_ms);
        om_buf_put_span(b, l->record.p ? l->record : record);
        om_buf_putc(b, '}');
}

static int64_t number(struct om_json_value v) {
        int64_t n;

        return v.type && om_json_int64(v, &n) == 0 && n >= 0 ? n : 0;
}

bool om_letter_read(struct om_span text, struct om_arena *arena, struct om_dead_letter *ret) {
        struct om_json_member m[] = { { .name = "error", .types = OM_JSON_STRING }, { .name = "error_type", .types = OM_JSON_STRING },
                { .name = "worker", .types = OM_JSON_STRING }, { .name = "attempts", .types = OM_JSON_NUMBER },
                { .name = "failed_ms", .types = OM_JSON_NUMBER }, { .name = "record", .types = OM_JSON_OBJECT, .required = true },
                { .name = NULL } };

        if (om_json_check(text, 64, NULL) < 0 || om_json_members(text, "letter", m, NULL) < 0)
                return false;
        *ret = (struct om_dead_letter){ .record = m[5].value.text,
                .error = m[0].value.type ? om_json_string(m[0].value, arena) : OM_SPAN(""),
                .error_type = m[1].value.type ? om_json_string(m[1].value, arena) : OM_SPAN(""),
                .worker = m[2].value.type ? om_json_string(m[2].value, arena) : OM_SPAN(""),
                .attempts = (uint32_t) number(m[3].value),
                .failed_ms = number(m[4].value) };
        return ret->error.p && ret->error_type.p && ret->worker.p;
}
