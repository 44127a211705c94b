/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands in the keys: the text of a result, the hash of an agent, a metric of the stream.
 *
 * A result is {"task_id", "result", "saved_at"} as the Python OmniDaemon writes it, with "agent", "topic", "status" and "expires_at" of
 * ours before the record, which stands there byte for byte. Where ours are missing they are taken from the record, which has them too.
 *
 * An agent is a hash of name, callback_name, tools (JSON), description, config (JSON), topic, created_at. The whole object as it was
 * registered is kept beside these, in `omnidaemon:value`, and holds as long as `omnidaemon:created_at` is what created_at says: the Python
 * one writes its own fields with a time of its own, and from then on they are the agent.
 *
 * What others wrote is checked before it is used. Loop thread.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "../../proto/json_scan.h"
#include "store_state.h"

enum { DEPTH = 200 }; /* a record nested to the wire's limit, and what stands around it */
#define VALUE "omnidaemon:value"
#define VALUE_OF "omnidaemon:created_at"

/* -- times ----------------------------------------------------------------------------------------------------------- */

void om_redis_time_put(struct om_buf *b, int64_t us) {
        om_buf_printf(b, "%s%lld.%06lld", us < 0 ? "-" : "", (long long) llabs(us / 1000000), (long long) llabs(us % 1000000));
}

/* Seconds as a number. */
static bool time_read(struct om_json_value v, int64_t *ret_ms) {
        double seconds;
        int64_t us;

        if (v.type != OM_JSON_NUMBER || om_json_double(v, &seconds) < 0 || fabs(seconds) > 9e12)
                return false;
        us = llround(seconds * 1e6);
        *ret_ms = us >= 0 ? us / 1000 : -((999 - us) / 1000);
        return true;
}

/* -- results --------------------------------------------------------------------------------------------------------- */

static void put_member(struct om_buf *b, const char *name, struct om_span text) {
        if (!text.p)
                return;
        om_buf_printf(b, ", \"%s\": ", name);
        om_buf_json_span(b, text);
}

void om_redis_record_put(struct om_buf *b, const struct om_store_entry *entry, int64_t saved_us) {
        om_buf_lit(b, "{\"task_id\": ");
        om_buf_json_span(b, entry->key);
        put_member(b, "agent", entry->name);
        put_member(b, "topic", entry->topic);
        put_member(b, "status", entry->status);
        om_buf_lit(b, ", \"saved_at\": ");
        om_redis_time_put(b, saved_us);
        if (entry->expires_ms > 0) {
                om_buf_lit(b, ", \"expires_at\": ");
                om_buf_json_time(b, entry->expires_ms);
        }
        om_buf_lit(b, ", \"result\": ");
        om_buf_put_span(b, entry->value);
        om_buf_putc(b, '}');
}

bool om_redis_expired(const struct om_store_entry *entry, int64_t now_ms) { return entry->expires_ms > 0 && entry->expires_ms <= now_ms; }

static int take_text(struct om_json_value v, struct om_arena *arena, struct om_span *ret) {
        if (ret->p || v.type != OM_JSON_STRING)
                return 0;
        *ret = om_json_string(v, arena);
        return ret->p ? 0 : -ENOMEM;
}

/* agent, topic and status of an object, those that nobody has said yet; and when a metric was saved. */
static int take_labels(struct om_span object, bool times, struct om_arena *arena, struct om_store_entry *entry) {
        struct om_json_value name, v;
        struct om_json j;
        int r = 0;

        om_json_init_valid(&j, object);
        if (om_json_enter_object(&j) < 0)
                return 0;
        while (r == 0 && om_json_next_key(&j, &name) > 0 && om_json_value(&j, &v) == 0) {
                if (om_json_string_is(name, "agent"))
                        r = take_text(v, arena, &entry->name);
                else if (om_json_string_is(name, "topic"))
                        r = take_text(v, arena, &entry->topic);
                else if (om_json_string_is(name, "status"))
                        r = take_text(v, arena, &entry->status);
                else if (times && (om_json_string_is(name, "saved_at") || (om_json_string_is(name, "timestamp") && !entry->saved_ms)))
                        time_read(v, &entry->saved_ms);
        }
        return r;
}

static int not_ours(struct om_span key, const char *why, struct om_error *e) {
        return om_error_set(e, OM_INVALID, "key %.*s holds no result: %s; another program uses the same names, or somebody has edited it",
                (int) (key.len < 200 ? key.len : 200), key.p, why);
}

int om_redis_record_read(struct om_span key, struct om_span text, struct om_span id, int64_t pttl_ms, struct om_arena *arena,
        struct om_store_entry *ret, struct om_error *e) {
        struct om_json_value name, v;
        struct om_json j;
        int more, r = 0;

        *ret = (struct om_store_entry){ .key = id };
        om_json_init(&j, text, DEPTH);
        if (om_json_enter_object(&j) < 0)
                return not_ours(key, "no JSON object", e);
        while (r == 0 && (more = om_json_next_key(&j, &name)) > 0) {
                if (om_json_value(&j, &v) < 0)
                        return not_ours(key, j.fault ? j.fault : "nested too deep", e);
                if (om_json_string_is(name, "result"))
                        ret->value = v.text;
                else if (om_json_string_is(name, "saved_at"))
                        time_read(v, &ret->saved_ms);
                else if (om_json_string_is(name, "expires_at"))
                        time_read(v, &ret->expires_ms);
                else if (om_json_string_is(name, "agent"))
                        r = take_text(v, arena, &ret->name);
                else if (om_json_string_is(name, "topic"))
                        r = take_text(v, arena, &ret->topic);
                else if (om_json_string_is(name, "status"))
                        r = take_text(v, arena, &ret->status);
        }
        if (r == 0 && (more < 0 || om_json_finish(&j) < 0))
                return not_ours(key, j.fault ? j.fault : "nested too deep", e);
        if (r == 0 && !ret->value.p)
                return not_ours(key, "it has no `result`", e);
        if (r == 0 && (!ret->name.p || !ret->topic.p || !ret->status.p))
                r = take_labels(ret->value, false, arena, ret);
        if (!ret->expires_ms && pttl_ms > 0)
                ret->expires_ms = om_now_ms() + pttl_ms;
        return r < 0 ? om_error_set_errno(e, r, "the storage") : 0;
}

int om_redis_entry_copy(struct om_arena *to, const struct om_store_entry *from, struct om_store_entry *ret) {
        const struct om_span *in[] = { &from->key, &from->name, &from->value, &from->topic, &from->status };
        struct om_span *out[] = { &ret->key, &ret->name, &ret->value, &ret->topic, &ret->status };

        *ret = *from;
        for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
                *out[i] = om_arena_copy(to, *in[i]);
                if (in[i]->p && !out[i]->p)
                        return -ENOMEM;
        }
        return 0;
}

/* -- agents ---------------------------------------------------------------------------------------------------------- */

struct fields {
        struct om_span callback_name, description; /* texts */
        struct om_span tools, config, created_at;  /* JSON */
};

static int take_fields(struct om_span value, struct om_arena *arena, struct fields *f) {
        struct om_json_value name, v;
        struct om_json j;
        int r = 0;

        om_json_init_valid(&j, value);
        if (om_json_enter_object(&j) < 0)
                return 0;
        while (r == 0 && om_json_next_key(&j, &name) > 0 && om_json_value(&j, &v) == 0) {
                if (om_json_string_is(name, "callback_name"))
                        r = take_text(v, arena, &f->callback_name);
                else if (om_json_string_is(name, "description"))
                        r = take_text(v, arena, &f->description);
                else if (om_json_string_is(name, "tools"))
                        f->tools = v.text;
                else if (om_json_string_is(name, "config"))
                        f->config = v.text;
                else if (om_json_string_is(name, "created_at") && v.type == OM_JSON_NUMBER)
                        f->created_at = v.text;
        }
        return r;
}

static void field(struct om_redis_cmd *c, const char *name, struct om_span value, const char *otherwise) {
        om_redis_arg_text(c, name);
        om_redis_arg(c, value.p ? value : om_span_of(otherwise));
}

int om_redis_agent_put(struct om_redis_cmd *c, const struct om_store_entry *entry) {
        struct om_arena arena = { 0 };
        struct om_buf now = OM_BUF_INIT;
        struct fields f = { .tools = OM_SPAN_NONE };
        int r = take_fields(entry->value, &arena, &f);

        if (!f.created_at.p) {
                om_buf_json_time(&now, entry->saved_ms);
                f.created_at = om_buf_span(&now);
        }
        field(c, "name", entry->name, "");
        field(c, "callback_name", f.callback_name, "");
        field(c, "tools", f.tools, "[]");
        field(c, "description", f.description, "");
        field(c, "config", f.config, "{}");
        field(c, "topic", entry->key, "");
        field(c, "created_at", f.created_at, "0");
        field(c, VALUE, entry->value, "null");
        field(c, VALUE_OF, f.created_at, "0");
        r = r == 0 && !om_buf_ok(&now) ? -ENOMEM : r;
        om_buf_deinit(&now);
        om_arena_deinit(&arena);
        return r;
}

static void put_json(struct om_buf *b, const char *name, struct om_span text, const char *otherwise) {
        bool valid = text.len && om_json_check(text, DEPTH, NULL) == 0;

        om_buf_puts(b, name);
        om_buf_put_span(b, valid ? text : om_span_of(otherwise));
}

/* The object of an agent that the Python one registered. */
static struct om_span compose(const struct om_redis_reply *hash, struct om_span topic, struct om_span name, struct om_arena *arena) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span value = OM_SPAN_NONE, created = om_redis_field(hash, "created_at")->text;
        struct om_json_value v;
        struct om_json j;
        double seconds;

        om_json_init(&j, created, 1);
        if (om_json_value(&j, &v) < 0 || om_json_finish(&j) < 0 || v.type != OM_JSON_NUMBER || om_json_double(v, &seconds) < 0)
                created = OM_SPAN("0");
        om_buf_lit(&b, "{\"name\":");
        om_buf_json_span(&b, name);
        om_buf_lit(&b, ",\"topic\":");
        om_buf_json_span(&b, topic);
        om_buf_lit(&b, ",\"callback_name\":");
        om_buf_json_span(&b, om_redis_field(hash, "callback_name")->text);
        om_buf_lit(&b, ",\"description\":");
        om_buf_json_span(&b, om_redis_field(hash, "description")->text);
        put_json(&b, ",\"tools\":", om_redis_field(hash, "tools")->text, "[]");
        put_json(&b, ",\"config\":", om_redis_field(hash, "config")->text, "{}");
        om_buf_lit(&b, ",\"created_at\":");
        om_buf_put_span(&b, created);
        om_buf_putc(&b, '}');
        if (om_buf_ok(&b))
                value = om_arena_copy(arena, om_buf_span(&b));
        om_buf_deinit(&b);
        return value;
}

int om_redis_agent_read(
        const struct om_redis_reply *hash, struct om_span topic, struct om_span name, struct om_arena *arena, struct om_store_entry *ret) {
        struct om_span value = om_redis_field(hash, VALUE)->text, created = om_redis_field(hash, "created_at")->text;

        if (!om_span_eq(om_redis_field(hash, "name")->text, name) || !om_span_eq(om_redis_field(hash, "topic")->text, topic) ||
                hash->n == 0)
                return -ENOENT;
        *ret = (struct om_store_entry){ .key = om_arena_copy(arena, topic), .name = om_arena_copy(arena, name) };
        ret->topic = ret->key;
        if (value.len && om_span_eq(om_redis_field(hash, VALUE_OF)->text, created) && om_json_check(value, DEPTH, NULL) == 0)
                ret->value = om_arena_copy(arena, value);
        else
                ret->value = compose(hash, ret->key, ret->name, arena);
        return ret->key.p && ret->name.p && ret->value.p ? 0 : -ENOMEM;
}

/* -- metrics --------------------------------------------------------------------------------------------------------- */

int om_redis_metric_read(const struct om_redis_reply *row, struct om_arena *arena, struct om_store_entry *ret) {
        struct om_span id = om_redis_at(row, 0)->text, value = om_redis_field(om_redis_at(row, 1), "data")->text;
        int r;

        *ret = (struct om_store_entry){ .value = value };
        if (!value.len || om_json_check(value, DEPTH, NULL) < 0)
                return -EINVAL;
        r = take_labels(value, true, arena, ret);
        for (size_t i = 0; !ret->saved_ms && i < id.len && id.p[i] >= '0' && id.p[i] <= '9' && i < 15; i++)
                ret->saved_ms = ret->saved_ms * 10 + (id.p[i] - '0');
        return r;
}
