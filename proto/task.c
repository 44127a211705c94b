/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks: what may stand in one, and the record that a bus keeps (PROTOCOL.md, "Tasks").
 *
 * Always true: what om_task_parse() accepts, om_task_write() writes as a task that om_task_parse() accepts again and finds
 * equal; `content`, `headers` and `webhook` go from one to the other as bytes. Every message names the field with its path.
 *
 * Called for each task published, acknowledged with outputs, or read from a bus; on any thread. topic.c has the rules of
 * topics and names, task_id.c makes ids.
 */
#include "task.h"
#include "text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

#define CREATED_MAX 253402300800.0 /* the first second of the year 10000 */

/* A string member by the rule of names, or of topics. Absent members are left alone. */
static int take_text(
        struct om_task *t, const char *where, const struct om_json_member *m, bool topic, struct om_span *ret, struct om_error *e) {
        if (!m->value.type)
                return 0;
        struct om_span s = om_json_string(m->value, &t->arena);
        if (!s.p)
                return om_error_set(e, OM_INTERNAL, "%s: out of memory", where);
        /* checked twice only when wrong: the path is made for the message */
        if ((topic ? om_topic_check(s, m->name, NULL) : om_name_check(s, m->name, NULL)) < 0) {
                char path[OM_JSON_WHERE_MAX];
                om_json_where(path, where, m->name);
                return topic ? om_topic_check(s, path, e) : om_name_check(s, path, e);
        }
        *ret = s;
        return 0;
}

static int take_int(const char *where, const struct om_json_member *m, int64_t min, int64_t max, int64_t *ret, struct om_error *e) {
        if (!m->value.type)
                return 0;
        int64_t value;
        if (om_json_int64(m->value, &value) < 0 || value < min || value > max) {
                size_t shown = om_text_cut(m->value.text.p, m->value.text.len, 40);
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s.%s must be an integer from %lld to %lld, not %.*s%s", where,
                        m->name, (long long) min, (long long) max, (int) shown, m->value.text.p, shown < m->value.text.len ? "…" : "");
        }
        *ret = value;
        return 0;
}

static int take_created(struct om_task *t, const char *where, const struct om_json_member *m, struct om_error *e) {
        double seconds;
        if (!m->value.type)
                return 0;
        if (om_json_double(m->value, &seconds) < 0 || seconds < 0 || seconds >= CREATED_MAX)
                return om_error_set_code(
                        e, OM_CODE_PARAMS, OM_INVALID, "%s.%s must be Unix time in seconds, from 0 to 253402300799", where, m->name);
        t->created_at = m->value.text;
        t->created_ms = llround(seconds * 1000);
        return 0;
}

static int take_headers(struct om_task *t, const char *where, const struct om_json_member *m, struct om_error *e) {
        struct om_json j;
        struct om_json_value key, v;
        int r;
        if (!m->value.type)
                return 0;
        om_json_init_valid(&j, m->value.text);
        r = om_json_enter_object(&j);
        while (r >= 0 && (r = om_json_next_key(&j, &key)) > 0) {
                r = om_json_value(&j, &v);
                if (r == 0 && v.type != OM_JSON_STRING) {
                        struct om_span name = om_json_inner(key);
                        size_t shown = om_text_cut(name.p, name.len, 60);
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s.headers: \"%.*s%s\" must be a string, not %s", where,
                                (int) shown, name.p, shown < name.len ? "…" : "", om_json_type_name(v.type));
                }
        }
        if (r < 0) {
                om_json_fault(&j, where, e);
                return -EINVAL;
        }
        t->headers = m->value.text;
        return 0;
}

enum { CONTENT, WEBHOOK, REPLY_TO, N_PAYLOAD };

static int take_payload(struct om_task *t, const char *where, const struct om_json_member *m, struct om_error *e) {
        char path[OM_JSON_WHERE_MAX];
        t->content = m[CONTENT].value.text;
        t->webhook = m[WEBHOOK].value.text;
        if (!m[REPLY_TO].value.type)
                return 0;
        om_json_where(path, where, "payload");
        return take_text(t, path, &m[REPLY_TO], true, &t->reply_to, e);
}

enum {
        ID,
        TOPIC,
        PAYLOAD,
        CREATED_AT,
        TENANT_ID,
        CORRELATION_ID,
        CAUSATION_ID,
        SOURCE,
        TRACEPARENT,
        DELIVERY_ATTEMPTS,
        HEADERS,
        KEY,
        PRIORITY,
        TTL_MS,
        DELAY_MS,
        IDEMPOTENCY_KEY,
        N_MEMBERS
};

static int take_members(struct om_task *t, const char *where, const struct om_json_member *m, struct om_error *e) {
        const struct {
                int member;
                struct om_span *ret;
        } texts[] = {
                { ID, &t->id },
                { TENANT_ID, &t->tenant_id },
                { CORRELATION_ID, &t->correlation_id },
                { CAUSATION_ID, &t->causation_id },
                { SOURCE, &t->source },
                { TRACEPARENT, &t->traceparent },
                { KEY, &t->key },
                { IDEMPOTENCY_KEY, &t->idempotency_key },
        };
        int64_t attempts = 0, priority = 0;
        int r = take_text(t, where, &m[TOPIC], true, &t->topic, e);
        for (size_t i = 0; r == 0 && i < sizeof texts / sizeof texts[0]; i++)
                r = take_text(t, where, &m[texts[i].member], false, texts[i].ret, e);
        if (r < 0 || (r = take_payload(t, where, m[PAYLOAD].inside, e)) < 0 || (r = take_created(t, where, &m[CREATED_AT], e)) < 0 ||
                (r = take_headers(t, where, &m[HEADERS], e)) < 0 ||
                (r = take_int(where, &m[DELIVERY_ATTEMPTS], 0, UINT32_MAX, &attempts, e)) < 0 ||
                (r = take_int(where, &m[PRIORITY], 0, OM_PRIORITY_MAX, &priority, e)) < 0 ||
                (r = take_int(where, &m[TTL_MS], 1, OM_DELAY_MAX_MS, &t->ttl_ms, e)) < 0 ||
                (r = take_int(where, &m[DELAY_MS], 0, OM_DELAY_MAX_MS, &t->delay_ms, e)) < 0)
                return r;
        t->delivery_attempts = (uint32_t) attempts;
        t->priority = (uint8_t) priority;
        return 0;
}

int om_task_parse_at(struct om_json *j, const char *where, struct om_task *ret, struct om_error *e) {
        struct om_json_member payload[N_PAYLOAD + 1] = {
                [CONTENT] = { "content", OM_JSON_ANY, true },
                [WEBHOOK] = { "webhook", OM_JSON_STRING | OM_JSON_OBJECT, false },
                [REPLY_TO] = { "reply_to", OM_JSON_STRING, false },
                { NULL },
        };
        struct om_json_member m[N_MEMBERS + 1] = {
                [ID] = { "id", OM_JSON_STRING, false },
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [PAYLOAD] = { "payload", OM_JSON_OBJECT, true, .inside = payload },
                [CREATED_AT] = { "created_at", OM_JSON_NUMBER, false },
                [TENANT_ID] = { "tenant_id", OM_JSON_STRING, false },
                [CORRELATION_ID] = { "correlation_id", OM_JSON_STRING, false },
                [CAUSATION_ID] = { "causation_id", OM_JSON_STRING, false },
                [SOURCE] = { "source", OM_JSON_STRING, false },
                [TRACEPARENT] = { "traceparent", OM_JSON_STRING, false },
                [DELIVERY_ATTEMPTS] = { "delivery_attempts", OM_JSON_NUMBER, false },
                [HEADERS] = { "headers", OM_JSON_OBJECT, false },
                [KEY] = { "key", OM_JSON_STRING, false },
                [PRIORITY] = { "priority", OM_JSON_NUMBER, false },
                [TTL_MS] = { "ttl_ms", OM_JSON_NUMBER, false },
                [DELAY_MS] = { "delay_ms", OM_JSON_NUMBER, false },
                [IDEMPOTENCY_KEY] = { "idempotency_key", OM_JSON_STRING, false },
                { NULL },
        };
        memset(ret, 0, sizeof *ret);
        int r = om_json_members_at(j, where, m, e);
        if (r == 0)
                r = take_members(ret, where, m, e);
        if (r < 0)
                om_task_deinit(ret);
        return r;
}

int om_task_parse(struct om_span object, const char *where, struct om_task *ret, struct om_error *e) {
        struct om_json j;
        om_json_init_valid(&j, object);
        return om_task_parse_at(&j, where, ret, e);
}

void om_task_deinit(struct om_task *t) {
        om_arena_deinit(&t->arena);
        memset(t, 0, sizeof *t);
}

/* -- the record ---------------------------------------------------------------------------------------------------- */

/* `label` is the comma, the name and the colon. */
static void put_text(struct om_buf *b, struct om_span label, struct om_span value) {
        if (!value.p)
                return;
        om_buf_put_span(b, label);
        om_buf_json_span(b, value);
}

static void put_raw(struct om_buf *b, struct om_span label, struct om_span json) {
        if (!json.p)
                return;
        om_buf_put_span(b, label);
        om_buf_put_span(b, json);
}

static void put_int(struct om_buf *b, struct om_span label, int64_t value) {
        if (value == 0)
                return;
        om_buf_put_span(b, label);
        om_buf_i64(b, value);
}

void om_task_write(struct om_buf *b, const struct om_task *t) {
        /* room at once for what nearly every task is: names without escapes */
        if (!om_buf_reserve(b, t->content.len + t->headers.len + t->webhook.len + 512))
                return;
        om_buf_lit(b, "{\"id\":");
        om_buf_json_span(b, t->id);
        om_buf_lit(b, ",\"topic\":");
        om_buf_json_span(b, t->topic);
        om_buf_lit(b, ",\"payload\":{\"content\":");
        om_buf_put_span(b, t->content);
        put_raw(b, OM_SPAN(",\"webhook\":"), t->webhook);
        put_text(b, OM_SPAN(",\"reply_to\":"), t->reply_to);
        om_buf_lit(b, "},\"created_at\":");
        if (t->created_at.p)
                om_buf_put_span(b, t->created_at);
        else
                om_buf_json_time(b, t->created_ms);
        put_text(b, OM_SPAN(",\"tenant_id\":"), t->tenant_id);
        put_text(b, OM_SPAN(",\"correlation_id\":"), t->correlation_id);
        put_text(b, OM_SPAN(",\"causation_id\":"), t->causation_id);
        put_text(b, OM_SPAN(",\"source\":"), t->source);
        put_text(b, OM_SPAN(",\"traceparent\":"), t->traceparent);
        put_int(b, OM_SPAN(",\"delivery_attempts\":"), t->delivery_attempts);
        put_raw(b, OM_SPAN(",\"headers\":"), t->headers);
        put_text(b, OM_SPAN(",\"key\":"), t->key);
        put_int(b, OM_SPAN(",\"priority\":"), t->priority);
        put_int(b, OM_SPAN(",\"ttl_ms\":"), t->ttl_ms);
        put_int(b, OM_SPAN(",\"delay_ms\":"), t->delay_ms);
        put_text(b, OM_SPAN(",\"idempotency_key\":"), t->idempotency_key);
        om_buf_putc(b, '}');
}
