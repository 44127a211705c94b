/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks and dead letters as the Python OmniDaemon writes them into streams, and as we do.
 *
 *     task    {"content":…,"webhook":…,"reply_to":…,"topic":…,"task_id":…,"correlation_id":…,"causation_id":…,"source":…,
 *              "delivery_attempts":0,"created_at":1795425242.13}          absent: null. Ours adds what it has: "tenant_id", "headers" …
 *     letter  {"topic":…,"original_stream":…,"original_id":…,"failed_message":{a task},"error":…,"retry_count":3,"failed_at":…}
 *             ours adds "error_type", "worker", "attempts"
 *
 * Always true: the bytes of `content` go through as they are, both ways; what we write we read as the same task; a member that is not as
 * it should be is left out rather than the task refused, unless it is the content. Tested by tests/fuzz/fuzz_redis.c. No state; any thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <math.h>

#include "bus_state.h"

enum { DEPTH_MAX = 64 };

/* -- writing --------------------------------------------------------------------------------------------------------- */

static void put_text(struct om_buf *b, struct om_span label, struct om_span value) {
        om_buf_put_span(b, label);
        if (value.p)
                om_buf_json_span(b, value);
        else
                om_buf_lit(b, "null");
}
static void put_more_text(struct om_buf *b, struct om_span label, struct om_span value) {
        if (value.p)
                put_text(b, label, value);
}
static void put_more_int(struct om_buf *b, struct om_span label, int64_t value) {
        if (!value)
                return;
        om_buf_put_span(b, label);
        om_buf_i64(b, value);
}

void om_redis_bus_form_write(struct om_buf *b, const struct om_task *t) {
        om_buf_lit(b, "{\"content\":");
        om_buf_put_span(b, t->content);
        om_buf_lit(b, ",\"webhook\":");
        om_buf_put_span(b, t->webhook.p ? t->webhook : OM_SPAN("null"));
        put_text(b, OM_SPAN(",\"reply_to\":"), t->reply_to);
        put_text(b, OM_SPAN(",\"topic\":"), t->topic);
        put_text(b, OM_SPAN(",\"task_id\":"), t->id);
        put_text(b, OM_SPAN(",\"correlation_id\":"), t->correlation_id);
        put_text(b, OM_SPAN(",\"causation_id\":"), t->causation_id);
        put_text(b, OM_SPAN(",\"source\":"), t->source);
        om_buf_lit(b, ",\"delivery_attempts\":");
        om_buf_u64(b, t->delivery_attempts);
        om_buf_lit(b, ",\"created_at\":");
        if (t->created_at.p)
                om_buf_put_span(b, t->created_at);
        else
                om_buf_json_time(b, t->created_ms);
        put_more_text(b, OM_SPAN(",\"tenant_id\":"), t->tenant_id);
        put_more_text(b, OM_SPAN(",\"traceparent\":"), t->traceparent);
        if (t->headers.p) {
                om_buf_lit(b, ",\"headers\":");
                om_buf_put_span(b, t->headers);
        }
        put_more_text(b, OM_SPAN(",\"key\":"), t->key);
        put_more_int(b, OM_SPAN(",\"priority\":"), t->priority);
        put_more_int(b, OM_SPAN(",\"ttl_ms\":"), t->ttl_ms);
        put_more_int(b, OM_SPAN(",\"delay_ms\":"), t->delay_ms);
        put_more_text(b, OM_SPAN(",\"idempotency_key\":"), t->idempotency_key);
        om_buf_putc(b, '}');
}

/* -- reading --------------------------------------------------------------------------------------------------------- */

enum {
        CONTENT,
        WEBHOOK,
        REPLY_TO,
        TASK_ID,
        CORRELATION_ID,
        CAUSATION_ID,
        SOURCE,
        ATTEMPTS,
        CREATED_AT,
        TENANT_ID,
        TRACEPARENT,
        HEADERS,
        KEY,
        PRIORITY,
        TTL_MS,
        DELAY_MS,
        IDEMPOTENCY_KEY,
        N_TASK
};
static const char *const task_names[N_TASK] = { "content", "webhook", "reply_to", "task_id", "correlation_id", "causation_id", "source",
        "delivery_attempts", "created_at", "tenant_id", "traceparent", "headers", "key", "priority", "ttl_ms", "delay_ms",
        "idempotency_key" };

/* An object's members by name; unknown ones are stepped over, of repeated ones the last counts, as in Python. */
static int members(struct om_span text, const char *const *names, size_t n, struct om_json_value *values, struct om_error *e) {
        struct om_json_value key, v;
        struct om_json j;
        int r;

        memset(values, 0, n * sizeof *values);
        om_json_init(&j, text, DEPTH_MAX);
        r = om_json_enter_object(&j);
        while (r == 0 && (r = om_json_next_key(&j, &key)) > 0) {
                r = om_json_value(&j, &v);
                for (size_t i = 0; r == 0 && i < n; i++)
                        if (om_json_string_is(key, names[i]))
                                values[i] = v;
        }
        if (r == 0)
                r = om_json_finish(&j);
        return r < 0 ? (om_json_fault(&j, "data", e), -EINVAL) : 0;
}

static struct om_span text_of(struct om_json_value v, struct om_arena *arena, bool is_name) {
        struct om_span s = v.type == OM_JSON_STRING ? om_json_string(v, arena) : OM_SPAN_NONE;

        return s.p && is_name && om_name_check(s, "", NULL) < 0 ? OM_SPAN_NONE : s;
}

static int64_t int_of(struct om_json_value v, int64_t max) {
        int64_t n = 0;

        return v.type == OM_JSON_NUMBER && om_json_int64(v, &n) == 0 && n > 0 && n <= max ? n : 0;
}

static bool headers_are_texts(struct om_span object) {
        struct om_json_value key, v;
        struct om_json j;
        int r;

        om_json_init_valid(&j, object);
        r = om_json_enter_object(&j);
        while (r == 0 && (r = om_json_next_key(&j, &key)) > 0) {
                r = om_json_value(&j, &v);
                if (r == 0 && v.type != OM_JSON_STRING)
                        return false;
        }
        return r == 0;
}

static void take_task(struct om_task *t, const struct om_json_value *v, struct om_arena *a) {
        double seconds;

        t->content = v[CONTENT].text;
        if (v[WEBHOOK].type == OM_JSON_STRING || v[WEBHOOK].type == OM_JSON_OBJECT)
                t->webhook = v[WEBHOOK].text;
        t->reply_to = text_of(v[REPLY_TO], a, false);
        if (t->reply_to.p && om_topic_check(t->reply_to, "", NULL) < 0)
                t->reply_to = OM_SPAN_NONE;
        t->id = text_of(v[TASK_ID], a, true);
        t->correlation_id = text_of(v[CORRELATION_ID], a, true);
        t->causation_id = text_of(v[CAUSATION_ID], a, true);
        t->source = text_of(v[SOURCE], a, true);
        t->tenant_id = text_of(v[TENANT_ID], a, true);
        t->traceparent = text_of(v[TRACEPARENT], a, true);
        t->key = text_of(v[KEY], a, true);
        t->idempotency_key = text_of(v[IDEMPOTENCY_KEY], a, true);
        if (v[HEADERS].type == OM_JSON_OBJECT && headers_are_texts(v[HEADERS].text))
                t->headers = v[HEADERS].text;
        t->delivery_attempts = (uint32_t) int_of(v[ATTEMPTS], UINT32_MAX);
        t->priority = (uint8_t) int_of(v[PRIORITY], OM_PRIORITY_MAX);
        t->ttl_ms = int_of(v[TTL_MS], OM_DELAY_MAX_MS);
        t->delay_ms = int_of(v[DELAY_MS], OM_DELAY_MAX_MS);
        if (v[CREATED_AT].type == OM_JSON_NUMBER && om_json_double(v[CREATED_AT], &seconds) == 0 && seconds >= 0 &&
                seconds < 253402300800.0)
                t->created_at = v[CREATED_AT].text;
}

int om_redis_bus_form_read(struct om_span data, struct om_span topic, const char *entry, struct om_buf *record, struct om_error *e) {
        struct om_json_value v[N_TASK];
        struct om_task t = { 0 };
        struct om_arena arena = { 0 };
        char id[ID_MAX + 8];
        int r = members(data, task_names, N_TASK, v, e);

        if (r < 0)
                return r;
        if (!v[CONTENT].type)
                return om_error_set(e, OM_INVALID, "data: \"content\" is missing");
        take_task(&t, v, &arena);
        t.topic = topic;
        if (!t.id.p) {
                snprintf(id, sizeof id, "redis-%.*s", ID_MAX, entry);
                t.id = om_span_of(id);
        }
        if (!t.created_at.p)
                t.created_ms = strtoll(entry, NULL, 10); /* an entry's id begins with the time at which it was added */
        om_task_write(record, &t);
        om_arena_deinit(&arena);
        return 0;
}

/* -- dead letters ---------------------------------------------------------------------------------------------------- */

enum { L_FAILED_MESSAGE, L_ERROR, L_RETRY_COUNT, L_FAILED_AT, L_ERROR_TYPE, L_WORKER, L_ATTEMPTS, N_LETTER };
static const char *const letter_names[N_LETTER] = { "failed_message", "error", "retry_count", "failed_at", "error_type", "worker",
        "attempts" };

void om_redis_bus_letter_write(struct om_buf *b, struct om_span topic, struct om_span stream, const char *entry,
        const struct om_dead_letter *l, struct om_span raw) {
        struct om_task t;

        put_text(b, OM_SPAN("{\"topic\":"), topic);
        put_text(b, OM_SPAN(",\"original_stream\":"), stream);
        put_text(b, OM_SPAN(",\"original_id\":"), om_span_of(entry));
        om_buf_lit(b, ",\"failed_message\":");
        if (l->record.p && om_task_parse(l->record, "task", &t, NULL) == 0) {
                om_redis_bus_form_write(b, &t);
                om_task_deinit(&t);
        } else {
                om_buf_json_span(b, l->record.p ? l->record : raw);
        }
        put_text(b, OM_SPAN(",\"error\":"), l->error);
        om_buf_lit(b, ",\"retry_count\":");
        om_buf_u64(b, l->attempts ? l->attempts - 1 : 0);
        om_buf_lit(b, ",\"failed_at\":");
        om_buf_json_time(b, l->failed_ms);
        put_text(b, OM_SPAN(",\"error_type\":"), l->error_type);
        put_text(b, OM_SPAN(",\"worker\":"), l->worker);
        om_buf_lit(b, ",\"attempts\":");
        om_buf_u64(b, l->attempts);
        om_buf_putc(b, '}');
}

static struct om_span failed_message(struct om_json_value v, struct om_arena *arena) {
        if (v.type == OM_JSON_STRING) /* the JSON of the JSON */
                return om_json_string(v, arena);
        return v.type ? v.text : OM_SPAN_NONE;
}

struct om_span om_redis_bus_letter_task(struct om_span data, struct om_arena *arena) {
        struct om_json_value v[N_LETTER];

        return members(data, letter_names, N_LETTER, v, NULL) < 0 ? OM_SPAN_NONE : failed_message(v[L_FAILED_MESSAGE], arena);
}

int om_redis_bus_letter_read(struct om_span data, struct om_span topic, struct om_arena *arena, struct om_dead_letter *ret) {
        struct om_json_value v[N_LETTER];
        struct om_buf record = OM_BUF_INIT;
        struct om_span task;
        double seconds = 0;
        int64_t n;

        if (members(data, letter_names, N_LETTER, v, NULL) < 0)
                return -EINVAL;
        *ret = (struct om_dead_letter){
                .error = om_arena_copy(arena, text_of(v[L_ERROR], arena, false)),
                .error_type = om_arena_copy(arena, text_of(v[L_ERROR_TYPE], arena, false)),
                .worker = om_arena_copy(arena, text_of(v[L_WORKER], arena, false)),
        };
        n = int_of(v[L_ATTEMPTS], UINT32_MAX);
        ret->attempts = n ? (uint32_t) n : (uint32_t) int_of(v[L_RETRY_COUNT], UINT32_MAX - 1) + 1;
        if (v[L_FAILED_AT].type == OM_JSON_NUMBER && om_json_double(v[L_FAILED_AT], &seconds) == 0 && fabs(seconds) < 1e12)
                ret->failed_ms = llround(seconds * 1000);
        task = failed_message(v[L_FAILED_MESSAGE], arena);
        if (!task.p || om_redis_bus_form_read(task, topic, "0", &record, NULL) < 0) {
                /* What was no task is shown as what it is: a text. */
                struct om_buf text = OM_BUF_INIT;
                struct om_task t = { .id = OM_SPAN("unreadable"), .topic = topic };

                om_buf_clear(&record);
                om_buf_json_span(&text, task.p ? task : OM_SPAN(""));
                t.content = om_buf_span(&text);
                om_task_write(&record, &t);
                om_buf_deinit(&text);
        }
        ret->record = om_buf_ok(&record) ? om_arena_copy(arena, om_buf_span(&record)) : OM_SPAN_NONE;
        om_buf_deinit(&record);
        return ret->record.p ? 0 : -ENOMEM;
}
