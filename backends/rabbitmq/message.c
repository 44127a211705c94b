/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks as messages and back: see message.h. */
#include "../host.h"
#include "message.h"

enum { HEADERS_BYTES_MAX = 64 << 10, HEADERS_MAX = 64 };

/* -- out ------------------------------------------------------------------------------------------------------------- */

static void set_short(amqp_bytes_t *to, amqp_flags_t flag, amqp_basic_properties_t *p, struct om_span text) {
        if (!text.p || text.len > RMQ_SHORT_MAX)
                return;
        *to = rmq_bytes(text);
        p->_flags |= flag;
}

static void init(struct rmq_props *r, struct om_span id) {
        memset(&r->p, 0, sizeof r->p);
        r->table.n = 0;
        r->arena = (struct om_arena){ 0 };
        r->p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
        r->p.delivery_mode = AMQP_DELIVERY_PERSISTENT;
        set_short(&r->p.content_type, AMQP_BASIC_CONTENT_TYPE_FLAG, &r->p, OM_SPAN("application/json"));
        set_short(&r->p.message_id, AMQP_BASIC_MESSAGE_ID_FLAG, &r->p, id);
}

/* The task's own headers, as far as a frame has room for them; the record has them all. */
static void put_task_headers(struct rmq_props *r, struct om_span headers) {
        struct om_json j;
        struct om_json_value key, value;
        size_t bytes = 0;

        om_json_init_valid(&j, headers);
        if (om_json_enter_object(&j) < 0)
                return;
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &value) == 0) {
                struct om_span name = om_json_string(key, &r->arena), text = OM_SPAN_NONE;

                if (value.type == OM_JSON_STRING)
                        text = om_json_string(value, &r->arena);
                bytes += key.text.len + value.text.len;
                if (!name.p || !text.p || bytes > HEADERS_BYTES_MAX || r->table.n >= HEADERS_MAX)
                        continue;
                /* Those that begin so steer the broker or us. */
                if (name.len >= 2 && (memcmp(name.p, "x-", 2) == 0 || (name.len >= 5 && memcmp(name.p, "omni-", 5) == 0)))
                        continue;
                if (om_span_is(name, "CC") || om_span_is(name, "BCC"))
                        continue;
                rmq_table_span(&r->table, name, text);
        }
}

static void put_cloudevents(struct rmq_props *r, const struct om_task *t) {
        rmq_table_text(&r->table, "cloudEvents:specversion", OM_SPAN("1.0"));
        rmq_table_text(&r->table, "cloudEvents:id", t->id);
        rmq_table_text(&r->table, "cloudEvents:type", t->topic);
        rmq_table_text(&r->table, "cloudEvents:source", t->source.p ? t->source : OM_SPAN("omnidaemon"));
}

void rmq_props_of_task(struct rmq_props *r, const struct rmq_settings *s, const struct om_task *t) {
        int64_t now = t->created_ms;

        init(r, t->id);
        r->p._flags |= AMQP_BASIC_TIMESTAMP_FLAG;
        r->p.timestamp = (uint64_t) (now > 0 ? now / 1000 : 0);
        set_short(&r->p.correlation_id, AMQP_BASIC_CORRELATION_ID_FLAG, &r->p, t->correlation_id);
        if (t->priority) {
                r->p._flags |= AMQP_BASIC_PRIORITY_FLAG;
                r->p.priority = t->priority;
        }
        rmq_table_text(&r->table, "omni-topic", t->topic);
        if (t->traceparent.p)
                rmq_table_text(&r->table, "traceparent", t->traceparent);
        if (s->cloudevents)
                put_cloudevents(r, t);
        if (t->headers.p)
                put_task_headers(r, t->headers);
}

void rmq_props_of_move(struct rmq_props *r, struct om_span id, uint32_t attempts, int64_t due_ms, int64_t expires_ms) {
        init(r, id);
        rmq_table_int(&r->table, "omni-attempt", attempts);
        if (due_ms)
                rmq_table_int(&r->table, "omni-due", due_ms);
        if (expires_ms)
                rmq_table_int(&r->table, "omni-expires", expires_ms);
}

void rmq_props_close(struct rmq_props *r) {
        if (!r->table.n)
                return;
        r->p.headers = rmq_table(&r->table);
        r->p._flags |= AMQP_BASIC_HEADERS_FLAG;
}

void rmq_props_deinit(struct rmq_props *r) { om_arena_deinit(&r->arena); }

/* -- in -------------------------------------------------------------------------------------------------------------- */

static bool has(const amqp_basic_properties_t *p, amqp_flags_t flag) { return (p->_flags & flag) != 0; }

struct rmq_meta rmq_meta_of(const amqp_basic_properties_t *p) {
        struct rmq_meta m = { .attempts = 0 };
        int64_t n;

        if (has(p, AMQP_BASIC_TIMESTAMP_FLAG) && p->timestamp < INT64_MAX / 1000)
                m.time_ms = (int64_t) p->timestamp * 1000;
        if (!has(p, AMQP_BASIC_HEADERS_FLAG))
                return m;
        if (rmq_field_int(rmq_table_get(&p->headers, "omni-attempt"), &n) && n > 0 && n < INT32_MAX)
                m.attempts = (uint32_t) n;
        m.counted = rmq_field_int(rmq_table_get(&p->headers, "x-delivery-count"), &n);
        if (m.counted && n > 0 && n < INT32_MAX)
                m.attempts += (uint32_t) n;
        rmq_field_int(rmq_table_get(&p->headers, "omni-time"), &m.time_ms);
        rmq_field_int(rmq_table_get(&p->headers, "omni-due"), &m.due_ms);
        rmq_field_int(rmq_table_get(&p->headers, "omni-expires"), &m.expires_ms);
        return m;
}

static bool is_record(struct om_span body, const char *topic, struct om_arena *arena, struct om_span *ret_id) {
        struct om_task task;
        bool ok;

        if (body.len < 8 || memcmp(body.p, "{\"id\":\"", 7) != 0 || om_json_check(body, 64, NULL) < 0)
                return false;
        if (om_task_parse(body, "task", &task, NULL) < 0)
                return false;
        ok = task.id.p && task.topic.p && (!topic || om_span_is(task.topic, topic));
        if (ok)
                *ret_id = om_arena_copy(arena, task.id);
        om_task_deinit(&task);
        return ok && ret_id->p;
}

static void put_text(struct om_buf *b, const char *member, struct om_span text) {
        if (!text.p || !text.len || text.len > OM_NAME_MAX)
                return;
        om_buf_printf(b, ",\"%s\":", member);
        om_buf_json_span(b, text);
}

static struct om_span header_text(const amqp_basic_properties_t *p, const char *name) {
        const amqp_field_value_t *v = has(p, AMQP_BASIC_HEADERS_FLAG) ? rmq_table_get(&p->headers, name) : NULL;

        return v && (v->kind == AMQP_FIELD_KIND_UTF8 || v->kind == AMQP_FIELD_KIND_BYTES) ? rmq_span(v->value.bytes) : OM_SPAN_NONE;
}

static struct om_span cloudevent(const amqp_basic_properties_t *p, const char *attribute) {
        char name[64] = "cloudEvents:";
        struct om_span text;

        strncat(name, attribute, sizeof name - 16);
        text = header_text(p, name);
        name[11] = '_'; /* the binding has both */
        return text.p ? text : header_text(p, name);
}

/* Those whose values are texts, numbers or truths; each a text in the task. */
static bool put_value(struct om_buf *b, const amqp_field_value_t *v) {
        int64_t n;

        if (v->kind == AMQP_FIELD_KIND_UTF8 || v->kind == AMQP_FIELD_KIND_BYTES) {
                om_buf_json_span(b, rmq_span(v->value.bytes));
                return true;
        }
        if (v->kind == AMQP_FIELD_KIND_BOOLEAN)
                om_buf_puts(b, v->value.boolean ? "\"true\"" : "\"false\"");
        else if (rmq_field_int(v, &n))
                om_buf_printf(b, "\"%lld\"", (long long) n);
        else
                return false;
        return true;
}

static bool is_ours(struct om_span name) {
        return (name.len >= 2 && memcmp(name.p, "x-", 2) == 0) || (name.len >= 5 && memcmp(name.p, "omni-", 5) == 0) ||
                om_span_is(name, "traceparent");
}

static void put_headers(struct om_buf *b, const amqp_basic_properties_t *p) {
        int written = 0;

        if (!has(p, AMQP_BASIC_HEADERS_FLAG))
                return;
        for (int i = 0; i < p->headers.num_entries; i++) {
                struct om_span name = rmq_span(p->headers.entries[i].key);
                size_t before = b->len;
                bool again = false;

                for (int k = 0; k < i; k++) /* a table may hold a key twice, an object not */
                        again |= om_span_eq(name, rmq_span(p->headers.entries[k].key));
                if (again || is_ours(name))
                        continue;
                om_buf_puts(b, written ? "," : ",\"headers\":{");
                om_buf_json_span(b, name);
                om_buf_putc(b, ':');
                if (put_value(b, &p->headers.entries[i].value))
                        written++;
                else
                        b->len = before;
        }
        if (written)
                om_buf_putc(b, '}');
}

static void put_id(struct om_buf *b, const amqp_basic_properties_t *p) {
        struct om_span id = has(p, AMQP_BASIC_MESSAGE_ID_FLAG) ? rmq_span(p->message_id) : cloudevent(p, "id");
        char fresh[OM_ID_LEN + 1];

        om_buf_lit(b, "{\"id\":");
        if (om_name_check(id, "id", NULL) == 0) {
                om_buf_json_span(b, id);
                return;
        }
        om_task_id_new(fresh);
        om_buf_json_string(b, fresh, OM_ID_LEN);
}

static struct om_span made_record(
        struct om_span body, const amqp_basic_properties_t *p, struct om_span topic, int64_t time_ms, struct om_arena *arena) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span copy = OM_SPAN_NONE;

        put_id(&b, p);
        om_buf_lit(&b, ",\"topic\":");
        om_buf_json_span(&b, topic);
        om_buf_lit(&b, ",\"payload\":{\"content\":");
        if (body.len && om_json_check(body, 60, NULL) == 0)
                om_buf_put_span(&b, body);
        else
                om_buf_json_span(&b, body);
        om_buf_lit(&b, "},\"created_at\":");
        om_buf_json_time(&b, time_ms ? time_ms : om_now_ms());
        if (has(p, AMQP_BASIC_CORRELATION_ID_FLAG))
                put_text(&b, "correlation_id", rmq_span(p->correlation_id));
        put_text(&b, "source", cloudevent(p, "source"));
        put_text(&b, "traceparent", header_text(p, "traceparent"));
        put_headers(&b, p);
        om_buf_putc(&b, '}');
        if (om_buf_ok(&b))
                copy = om_arena_copy(arena, om_buf_span(&b));
        om_buf_deinit(&b);
        return copy;
}

struct om_span rmq_record(struct om_span body, const amqp_basic_properties_t *p, const char *topic, struct om_span routing_key,
        struct om_arena *arena, struct om_span *ret_id) {
        struct om_span record;

        *ret_id = OM_SPAN_NONE;
        if (is_record(body, topic, arena, ret_id))
                return body;
        record = made_record(body, p, topic ? om_span_of(topic) : routing_key, rmq_meta_of(p).time_ms, arena);
        if (record.p && !is_record(record, NULL, arena, ret_id)) {
                /* A text that is no UTF-8, in a header or as the topic: the content alone, then. */
                static const amqp_basic_properties_t none = { ._flags = 0 };

                record = made_record(body, &none, topic ? om_span_of(topic) : OM_SPAN("unknown"), 0, arena);
                if (record.p)
                        is_record(record, NULL, arena, ret_id);
        }
        return record;
}
