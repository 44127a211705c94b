/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of methods, and what methods share: reading params and writing pieces of results. Called by session_read.c and the methods_*.c.
 * Loop thread.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "../backends/registry.h"
#include "methods.h"

/* -- lookup -------------------------------------------------------------------------------------------------------- */

static const struct om_method *const tables[] = { om_task_methods, om_agent_methods, om_bus_methods, om_dlq_methods, om_storage_methods,
        om_migrate_methods, om_config_methods, om_health_methods };
enum { N_TABLES = sizeof tables / sizeof *tables, SLOTS = 256 };

/* Open addressing, filled at the first look; there are about sixty methods. */
static const struct om_method *slots[SLOTS];
static const char *names[SLOTS + 1];

static unsigned hash(struct om_span name) {
        uint32_t h = 2166136261u; /* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/ */

        for (size_t i = 0; i < name.len; i++)
                h = (h ^ (unsigned char) name.p[i]) * 16777619u;
        return (h ^ h >> 16) % SLOTS;
}

static void fill(void) {
        size_t n = 0;

        for (size_t t = 0; t < N_TABLES; t++)
                for (const struct om_method *m = tables[t]; m->name && n < SLOTS / 2; m++) {
                        unsigned at = hash(om_span_of(m->name));

                        while (slots[at])
                                at = (at + 1) % SLOTS;
                        slots[at] = m;
                        names[n++] = m->name;
                }
}

const struct om_method *om_method_find(struct om_span name) {
        if (!names[0])
                fill();
        for (unsigned at = hash(name); slots[at]; at = (at + 1) % SLOTS)
                if (om_span_is(name, slots[at]->name))
                        return slots[at];
        return NULL;
}

const char *om_method_nearest(struct om_span name) {
        char word[64];

        if (name.len >= sizeof word)
                return NULL;
        memcpy(word, name.p, name.len);
        word[name.len] = '\0';
        if (!names[0])
                fill();
        return om_nearest(word, names);
}

/* -- params -------------------------------------------------------------------------------------------------------- */

static int wrong(struct om_error *e, int r) {
        if (e && r == -EINVAL)
                e->code = OM_CODE_PARAMS;
        return r;
}

static int decode(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        struct om_span text = om_json_string(m->value, arena);

        if (text.p && !m->value.escaped)
                text = om_arena_copy(arena, text); /* it outlives the frame */
        if (!text.p)
                return om_error_set_errno(e, ENOMEM, "%s", m->name);
        *ret = text;
        return 0;
}

static bool absent(const struct om_json_member *m) { return m->value.type == 0; }

int om_param_name(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        int r;

        if (absent(m))
                return 0;
        r = decode(m, arena, ret, e);
        return r < 0 ? r : wrong(e, om_name_check(*ret, m->name, e));
}

int om_param_topic(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        int r;

        if (absent(m))
                return 0;
        r = decode(m, arena, ret, e);
        return r < 0 ? r : wrong(e, om_topic_check(*ret, m->name, e));
}

int om_param_text(const struct om_json_member *m, size_t max, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        int r;

        if (absent(m))
                return 0;
        r = decode(m, arena, ret, e);
        if (r == 0 && ret->len > max)
                r = om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: %zu bytes, at most %zu are allowed", m->name, ret->len, max);
        return r;
}

int om_param_cursor(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        int r = om_param_text(m, 1024, arena, ret, e);

        if (r == 0 && !absent(m) && ret->len == 0)
                r = om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: empty; leave it out to begin at the beginning", m->name);
        return r;
}

int om_param_key(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        int r = om_param_text(m, OM_STORE_KEY_MAX, arena, ret, e);

        if (r < 0 || absent(m))
                return r;
        if (ret->len == 0)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: empty", m->name);
        for (size_t i = 0; i < ret->len; i++)
                if ((unsigned char) ret->p[i] < 0x20 || ret->p[i] == 0x7f)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: a control character at byte %zu", m->name, i);
        return 0;
}

int om_param_int(const struct om_json_member *m, int64_t min, int64_t max, int64_t *ret, struct om_error *e) {
        int64_t value;
        int r;

        if (absent(m))
                return 0;
        r = om_json_int64(m->value, &value);
        if (r < 0 || value < min || value > max)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: must be an integer from %lld to %lld", m->name,
                        (long long) min, (long long) max);
        *ret = value;
        return 0;
}

int om_param_limit(const struct om_json_member *m, size_t *ret, struct om_error *e) {
        int64_t value = 100;
        int r = om_param_int(m, 1, 1000, &value, e);

        if (r == 0)
                *ret = (size_t) value;
        return r;
}

int om_param_time(const struct om_json_member *m, int64_t *ret_ms, struct om_error *e) {
        double seconds;

        if (absent(m))
                return 0;
        /* Up to the year 5138: as milliseconds well within 53 bits. */
        if (om_json_double(m->value, &seconds) < 0 || seconds < 0 || seconds > 1e11)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: must be a Unix time in seconds", m->name);
        *ret_ms = (int64_t) llround(seconds * 1000);
        return 0;
}

void om_param_bool(const struct om_json_member *m, bool *ret) {
        if (!absent(m))
                *ret = m->value.type == OM_JSON_TRUE;
}

int om_object_get(struct om_span object, const char *name, struct om_json_value *ret) {
        struct om_json_value key, value;
        struct om_json j;

        om_json_init_valid(&j, object);
        if (om_json_enter_object(&j) < 0)
                return 0;
        while (om_json_next_key(&j, &key) == 1) {
                if (om_json_value(&j, &value) < 0)
                        return 0;
                if (om_json_string_is(key, name)) {
                        *ret = value;
                        return 1;
                }
        }
        return 0;
}

/* -- results ------------------------------------------------------------------------------------------------------- */

void om_put_member(struct om_buf *b, const char *name, struct om_span value) {
        om_buf_lit(b, ",\"");
        om_buf_puts(b, name);
        om_buf_lit(b, "\":");
        if (value.p)
                om_buf_json_span(b, value);
        else
                om_buf_lit(b, "null");
}

void om_put_facts(struct om_buf *b, struct om_span object) {
        struct om_json_value key, value;
        struct om_json j;

        om_json_init_valid(&j, object);
        if (!object.p || om_json_enter_object(&j) < 0)
                return;
        while (om_json_next_key(&j, &key) == 1 && om_json_value(&j, &value) == 0) {
                om_buf_putc(b, ',');
                om_buf_put_span(b, key.text);
                om_buf_putc(b, ':');
                om_buf_put_span(b, value.text);
        }
}

void om_call_put_page(struct om_call *c, int status, const struct om_error *e, const char *name, om_put_row_fn *put_row) {
        bool query = c->type == OM_CALL_BUS_QUERY;
        struct om_span asked = query ? c->query.cursor : c->list.cursor, next;
        struct om_error bad;
        struct om_buf *b;
        size_t n;

        if (status == -EINVAL && asked.p) {
                /* Only the backend can tell whether it gave the cursor. */
                om_error_set_code(&bad, OM_CODE_PARAMS, OM_INVALID, "cursor: %s", e->message);
                e = &bad;
        }
        b = om_call_begin(c, status, e);
        if (!b)
                return;
        n = query ? c->query.n : c->list.n;
        next = query ? c->query.next_cursor : c->list.next_cursor;
        om_buf_lit(b, "{\"");
        om_buf_puts(b, name);
        om_buf_lit(b, "\":[");
        for (size_t i = 0; i < n; i++) {
                if (i > 0)
                        om_buf_putc(b, ',');
                put_row(b, c, i);
        }
        om_buf_putc(b, ']');
        if (next.p)
                om_put_member(b, "cursor", next);
        om_buf_putc(b, '}');
        om_call_end(c);
}

int om_storage_must(const struct om_core *core, unsigned capability, const char *what, struct om_error *e) {
        struct om_buf others = OM_BUF_INIT;
        int r;

        if (core->store_ops->capabilities & capability)
                return 0;
        for (const struct om_backend_entry *entry = om_stores; entry->name; entry++)
                if (entry->store && (entry->store->capabilities & capability))
                        om_buf_printf(&others, "%s%s", others.len ? ", " : "", entry->name);
        r = om_error_set(e, OM_UNSUPPORTED, "the storage \"%s\" has no %s%s%.*s; `omnictl backends` shows which have",
                core->store_ops->name, what, others.len ? "; these have: " : "", OM_PRI(om_buf_span(&others)));
        om_buf_deinit(&others);
        return r;
}

static void put_word(struct om_buf *b, const char *word, bool *first) {
        om_buf_puts(b, *first ? "\"" : ",\"");
        om_buf_puts(b, word);
        om_buf_putc(b, '"');
        *first = false;
}

void om_put_capabilities(struct om_buf *b, unsigned bus_capabilities, unsigned store_capabilities) {
        /* by bit, as in bus.h */
        static const char *const words[] = { "priority", "ttl", "delay", "keys", "patterns", "dedupe", "exactly_once", "replay",
                "configure" };
        bool first = true;

        for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
                if (bus_capabilities & 1u << i)
                        put_word(b, words[i], &first);
        if (store_capabilities & OM_STORE_SEARCH)
                put_word(b, "search", &first);
        if (store_capabilities & OM_STORE_QUERY)
                put_word(b, "query", &first);
}
