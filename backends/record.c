/* SPDX-License-Identifier: Apache-2.0 */
/* Records and messages: see record.h. */
#include <errno.h>
#include <strings.h>

#include "host.h"
#include "record.h"

bool om_record_is(struct om_span data, const char *topic) {
        struct om_task task;
        bool ok;

        if (data.len < 8 || memcmp(data.p, "{\"id\":\"", 7) != 0 || om_json_check(data, 64, NULL) < 0)
                return false;
        if (om_task_parse(data, "task", &task, NULL) < 0)
                return false;
        ok = task.id.p && (!topic || om_span_is(task.topic, topic));
        om_task_deinit(&task);
        return ok;
}

/* -- out ------------------------------------------------------------------------------------------------------------ */

static int put_task_headers(struct om_span headers, int (*put)(void *ctx, struct om_span name, struct om_span value), void *ctx) {
        struct om_arena arena = { 0 };
        struct om_json_value key, value;
        struct om_json j;
        int r = 0;

        om_json_init_valid(&j, headers);
        if (om_json_enter_object(&j) < 0)
                return 0;
        while (r == 0 && om_json_next_key(&j, &key) > 0 && om_json_value(&j, &value) == 0) {
                struct om_span name = om_json_string(key, &arena), text = OM_SPAN_NONE;

                if (value.type == OM_JSON_STRING)
                        text = om_json_string(value, &arena);
                if (value.type == OM_JSON_STRING && (!name.p || !text.p))
                        r = -ENOMEM;
                else if (text.p)
                        r = put(ctx, name, text);
        }
        om_arena_deinit(&arena);
        return r;
}

int om_record_headers(const struct om_task *t, bool cloudevents, const char *ce_prefix,
        int (*put)(void *ctx, struct om_span name, struct om_span value), void *ctx) {
        const struct {
                const char *name;
                struct om_span value;
        } attributes[] = { { "specversion", OM_SPAN("1.0") }, { "id", t->id }, { "type", t->topic },
                { "source", t->source.p ? t->source : OM_SPAN("omnidaemon") }, { "datacontenttype", OM_SPAN("application/json") } };
        char name[40];
        int r = 0;

        if (t->traceparent.p)
                r = put(ctx, OM_SPAN("traceparent"), t->traceparent);
        for (size_t i = 0; cloudevents && r == 0 && i < sizeof(attributes) / sizeof(attributes[0]); i++) {
                size_t n = strlen(ce_prefix);

                memcpy(name, ce_prefix, n);
                memcpy(name + n, attributes[i].name, strlen(attributes[i].name) + 1);
                r = put(ctx, om_span_of(name), attributes[i].value);
        }
        if (r == 0 && t->headers.p)
                r = put_task_headers(t->headers, put, ctx);
        return r;
}

/* -- in ------------------------------------------------------------------------------------------------------------- */

static void put_text(struct om_buf *b, const char *member, struct om_span value) {
        if (!value.len || value.len > OM_NAME_MAX)
                return;
        om_buf_printf(b, ",\"%s\":", member);
        om_buf_json_span(b, value);
}

static void put_headers(struct om_buf *b, const struct om_record_foreign *f) {
        size_t written = 0;

        for (size_t i = 0; i < f->n_headers; i++) {
                size_t k = 0;

                while (k < i && !om_span_eq(f->headers[k].name, f->headers[i].name))
                        k++;
                if (k < i) /* a name that was there: an object has it once */
                        continue;
                om_buf_puts(b, written++ ? "," : ",\"headers\":{");
                om_buf_json_span(b, f->headers[i].name);
                om_buf_putc(b, ':');
                om_buf_json_span(b, f->headers[i].value);
        }
        if (written)
                om_buf_putc(b, '}');
}

struct om_span om_record_make(const struct om_record_foreign *f, struct om_arena *arena) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span copy = OM_SPAN_NONE;

        om_buf_lit(&b, "{\"id\":");
        om_buf_json_span(&b, f->id.len && f->id.len <= OM_NAME_MAX ? f->id : f->place);
        om_buf_lit(&b, ",\"topic\":");
        om_buf_json_span(&b, f->topic);
        om_buf_lit(&b, ",\"payload\":{\"content\":");
        if (!f->data.p)
                om_buf_lit(&b, "null");
        else if (f->data.len && om_json_check(f->data, 60, NULL) == 0)
                om_buf_put_span(&b, f->data);
        else
                om_buf_json_span(&b, f->data);
        om_buf_lit(&b, "},\"created_at\":");
        om_buf_json_time(&b, f->created_ms > 0 ? f->created_ms : om_now_ms());
        put_text(&b, "source", f->source);
        put_text(&b, "traceparent", f->traceparent);
        put_headers(&b, f);
        om_buf_putc(&b, '}');
        if (om_buf_ok(&b))
                copy = om_arena_copy(arena, om_buf_span(&b));
        om_buf_deinit(&b);
        return copy;
}
