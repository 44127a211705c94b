/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry, lists, and health.
 *
 * A cursor of results and metrics is the place of the last row that was given, MICROSECONDS.NUMBER; of settings and keys the last key; of
 * agents LENGTH:TOPIC NAME with the topic's length. Lists by name begin at a key: behind K comes K and a byte 1, since no text of the
 * server has a zero byte.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "errors.h"
#include "store_state.h"

/* -- one --------------------------------------------------------------------------------------------------------------- */

struct get {
        struct om_pg_job j; /* first */
        struct om_store_get *op;
        enum om_store_kind kind;
        struct om_arena arena;
        struct om_span key, name;
};

static void get_free(struct om_job *job) {
        struct get *g = (struct get *) (void *) job;

        om_arena_deinit(&g->arena);
        free(g);
}

static int get_fill(struct om_pg_request *r, struct om_pg_params *params) {
        const struct get *g = OM_PG_JOB_OF(r, const struct get);

        om_pg_put_key(params, g->key);
        if (g->kind == OM_STORE_AGENTS || (g->kind == OM_STORE_RESULTS && g->name.p))
                om_pg_put_key(params, g->name);
        if (g->kind == OM_STORE_RESULTS || g->kind == OM_STORE_KEYS)
                om_pg_put_time(params, om_now_ms());
        return 0;
}

static bool is_expired(const struct om_store_entry *e) { return e->expires_ms && e->expires_ms <= om_now_ms(); }

static void get_answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct get *g = OM_PG_JOB_OF(r, struct get);
        struct om_error none;

        if (status == 0 && !om_job_is_cancelled(&g->j.job)) {
                if (PQntuples(res) > 0 && om_pg_entry(res, 0, &g->op->arena, &g->op->entry) < 0) {
                        om_pg_job_no_memory(&g->j);
                        return;
                }
                if (PQntuples(res) == 0 || is_expired(&g->op->entry)) {
                        g->op->entry = (struct om_store_entry){ 0 };
                        status = om_error_set(&none, OM_NOT_FOUND, "there is no such entry");
                        e = &none;
                }
        }
        om_pg_job_over(&g->j, status, e);
}

static unsigned get_statement(const struct om_store_get *op) {
        switch (op->kind) {
        case OM_STORE_AGENTS:
                return OM_PG_GET_AGENT;
        case OM_STORE_RESULTS:
                return op->name.p ? OM_PG_GET_RESULT : OM_PG_GET_NEWEST;
        case OM_STORE_KEYS:
                return OM_PG_GET_KEY;
        default:
                return OM_PG_GET_CONFIG;
        }
}

int om_pg_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        struct get *g;
        int r;

        if (op->kind == OM_STORE_METRICS)
                return om_error_set(e, OM_INVALID, "PostgreSQL: metrics are listed, not read one by one");
        r = om_pg_job_new(s, &op->op, sizeof *g, op->key.len + op->name.len, get_free, &g, e);
        if (r < 0)
                return r;
        s->jobs.in_call = true;
        op->arena = (struct om_arena){ 0 };
        op->entry = (struct om_store_entry){ 0 };
        g->op = op;
        g->kind = op->kind;
        g->key = om_arena_copy(&g->arena, op->key);
        g->name = om_arena_copy(&g->arena, op->name);
        g->j.req.statement = get_statement(op);
        g->j.req.fill = get_fill;
        g->j.req.answer = get_answer;
        g->j.req.doing = "reading";
        if (!g->key.p || (op->name.p && !g->name.p))
                om_pg_job_no_memory(&g->j);
        else
                om_pg_job_send(&g->j, false);
        s->jobs.in_call = false;
        return 0;
}

/* -- lists ------------------------------------------------------------------------------------------------------------- */

struct list {
        struct om_pg_job j; /* first */
        struct om_store_list *op;
        struct om_store_list in; /* its inputs, in the arena */
        struct om_arena arena;
        size_t limit;
        /* Where it begins: by place, or by key. */
        int64_t micros, seq;
        struct om_span from_key, from_name, until_key;
};

static void list_free(struct om_job *job) {
        struct list *l = (struct list *) (void *) job;

        om_arena_deinit(&l->arena);
        free(l);
}

static bool is_by_place(enum om_store_kind kind) { return kind == OM_STORE_RESULTS || kind == OM_STORE_METRICS; }

static int list_fill(struct om_pg_request *r, struct om_pg_params *params) {
        const struct list *l = OM_PG_JOB_OF(r, const struct list);
        const struct om_span filters[] = { l->in.topic, l->in.name, l->in.status, l->in.text, l->in.filter };

        om_pg_put_int(params, (int64_t) l->limit + 1);
        om_pg_put_int(params, OM_PG_PAGE_BYTES);
        if (is_by_place(l->in.kind)) {
                om_pg_put_micros(params, l->micros);
                om_pg_put_int(params, l->seq);
                om_pg_put_time(params, l->in.since_ms ? l->in.since_ms : OM_PG_NEVER);
                om_pg_put_time(params, om_now_ms());
                for (size_t i = 0; i < (l->in.kind == OM_STORE_RESULTS ? 5 : 1); i++)
                        if (filters[i].p)
                                i < 3 ? om_pg_put_key(params, filters[i]) : om_pg_put_text(params, filters[i]);
                return 0;
        }
        om_pg_put_text(params, l->from_key);
        if (l->in.kind == OM_STORE_AGENTS) {
                om_pg_put_text(params, l->from_name);
                om_pg_put_key(params, l->in.name);
        } else if (l->in.kind == OM_STORE_CONFIG)
                om_pg_put_text(params, l->until_key);
        else
                om_pg_put_time(params, om_now_ms());
        return 0;
}

/* The cursor behind row `last`, in the operation's arena. */
static int set_cursor(struct list *l, const PGresult *res, int last) {
        const struct om_store_entry *e = &l->op->entries[l->op->n - 1];
        struct om_buf b = OM_BUF_INIT;

        if (is_by_place(l->in.kind))
                om_buf_printf(
                        &b, "%lld.%lld", (long long) om_pg_micros(res, last, OM_PG_SAVED), (long long) om_pg_int(res, last, OM_PG_SEQ));
        else if (l->in.kind == OM_STORE_AGENTS) {
                om_buf_printf(&b, "%zu:", e->key.len);
                om_buf_put_span(&b, e->key);
                om_buf_put_span(&b, e->name);
        } else
                om_buf_put_span(&b, e->key);
        l->op->next_cursor = om_buf_ok(&b) ? om_arena_copy(&l->op->arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        return l->op->next_cursor.p ? 0 : -ENOMEM;
}

static int take_rows(struct list *l, const PGresult *res) {
        int n = PQntuples(res), last = -1, r = 0;
        bool more = n > 0 && om_pg_int(res, 0, OM_PG_FOUND) > n;

        l->op->entries = om_arena_alloc(&l->op->arena, ((size_t) n + 1) * sizeof *l->op->entries);
        if (!l->op->entries)
                return -ENOMEM;
        for (int i = 0; i < n && r == 0; i++) {
                r = om_pg_entry(res, i, &l->op->arena, &l->op->entries[l->op->n]);
                if (r == 0 && !is_expired(&l->op->entries[l->op->n])) {
                        l->op->n++;
                        last = i;
                }
        }
        /* All of a page expired while it was on its way: so has what is older, or the walk begins anew. */
        return r == 0 && more && last >= 0 ? set_cursor(l, res, last) : r;
}

static void list_answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct list *l = OM_PG_JOB_OF(r, struct list);

        if (status == 0 && !om_job_is_cancelled(&l->j.job) && take_rows(l, res) < 0) {
                om_pg_job_no_memory(&l->j);
                return;
        }
        om_pg_job_over(&l->j, status, e);
}

/* -- where a list begins --------------------------------------------------------------------------------------------------- */

static int read_place(struct list *l, struct om_error *e) {
        const struct om_span c = l->in.cursor;
        long long micros, seq;
        int end = 0;

        l->micros = OM_PG_EVER;
        l->seq = INT64_MAX;
        if (c.p && (sscanf(c.p, "%lld.%lld%n", &micros, &seq, &end) != 2 || (size_t) end != c.len))
                return om_error_set(e, OM_INVALID, "\"%.40s\" is none of this storage's", c.p);
        if (c.p) {
                l->micros = micros;
                l->seq = seq;
        }
        if (l->in.until_ms && om_pg_micros_of(l->in.until_ms) < l->micros) { /* before all that was saved then */
                l->micros = om_pg_micros_of(l->in.until_ms);
                l->seq = INT64_MIN;
        }
        return 0;
}

/* A key as the server has it, in the arena; with `end` behind it. */
static struct om_span encode(struct list *l, struct om_span key, const char *end) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span text;

        om_pg_key_encode(&b, key);
        om_buf_puts(&b, end);
        text = om_buf_ok(&b) ? om_arena_copy(&l->arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        return text;
}

/* With a byte 1: nothing stands between a key and that. */
static struct om_span behind(struct list *l, struct om_span key) { return encode(l, key, "\1"); }

/* The first key behind all that begin with the prefix, as UTF-8: its last character raised by one. Without one: behind all keys. */
static struct om_span behind_prefix(struct list *l, struct om_span prefix) {
        enum { LONGEST = 2 * OM_STORE_KEY_MAX + 8 };
        char *p = om_arena_alloc(&l->arena, (prefix.len > LONGEST ? prefix.len : LONGEST) + 8);
        size_t len = prefix.len;

        if (!p)
                return OM_SPAN_NONE;
        while (len > 0) {
                size_t at = len - 1;
                uint32_t c;

                while (at > 0 && ((unsigned char) prefix.p[at] & 0xc0) == 0x80)
                        at--;
                c = (unsigned char) prefix.p[at];
                c = c < 0x80 ? c : c < 0xe0 ? c & 0x1f : c < 0xf0 ? c & 0x0f : c & 0x07;
                for (size_t i = at + 1; i < len; i++)
                        c = c << 6 | ((unsigned char) prefix.p[i] & 0x3f);
                c = c == 0xd7ff ? 0xe000 : c + 1;
                if (c <= 0x10ffff) {
                        memcpy(p, prefix.p, at);
                        if (c < 0x80)
                                p[at++] = (char) c;
                        else if (c < 0x800) {
                                p[at++] = (char) (0xc0 | c >> 6);
                                p[at++] = (char) (0x80 | (c & 0x3f));
                        } else if (c < 0x10000) {
                                p[at++] = (char) (0xe0 | c >> 12);
                                p[at++] = (char) (0x80 | (c >> 6 & 0x3f));
                                p[at++] = (char) (0x80 | (c & 0x3f));
                        } else {
                                p[at++] = (char) (0xf0 | c >> 18);
                                p[at++] = (char) (0x80 | (c >> 12 & 0x3f));
                                p[at++] = (char) (0x80 | (c >> 6 & 0x3f));
                                p[at++] = (char) (0x80 | (c & 0x3f));
                        }
                        return (struct om_span){ p, at };
                }
                len = at;
        }
        for (len = 0; len + 4 <= LONGEST; len += 4)
                memcpy(p + len, "\xf4\x8f\xbf\xbf", 4);
        return (struct om_span){ p, len };
}

static int read_agent_cursor(struct list *l, struct om_error *e) {
        struct om_span c = l->in.cursor;
        char *end = NULL;
        unsigned long len = c.p ? strtoul(c.p, &end, 10) : 0;

        l->from_key = l->from_name = OM_SPAN("");
        if (c.p) {
                size_t head = (size_t) (end - c.p) + 1;

                if (*end != ':' || head > c.len || len > c.len - head)
                        return om_error_set(e, OM_INVALID, "\"%.40s\" is none of this storage's", c.p);
                l->from_key = encode(l, (struct om_span){ c.p + head, len }, "");
                l->from_name = behind(l, (struct om_span){ c.p + head + len, c.len - head - len });
        }
        if (l->in.key.p)
                l->from_key = encode(l, l->in.key, "");
        return l->from_key.p && l->from_name.p ? 0 : om_error_set_errno(e, ENOMEM, "PostgreSQL");
}

static int read_names(struct list *l, struct om_error *e) {
        struct om_span prefix = l->in.kind == OM_STORE_CONFIG && l->in.name.p ? l->in.name : OM_SPAN("");

        if (l->in.kind == OM_STORE_AGENTS)
                return read_agent_cursor(l, e);
        l->from_key = l->in.cursor.p ? behind(l, l->in.cursor) : encode(l, prefix, "");
        l->until_key = behind_prefix(l, encode(l, prefix, ""));
        return l->from_key.p && l->until_key.p ? 0 : om_error_set_errno(e, ENOMEM, "PostgreSQL");
}

static unsigned list_statement(const struct om_store_list *in) {
        switch (in->kind) {
        case OM_STORE_AGENTS:
                return in->key.p ? OM_PG_LIST_TOPIC_AGENTS : OM_PG_LIST_AGENTS;
        case OM_STORE_METRICS:
                return in->topic.p ? OM_PG_LIST_TOPIC_METRICS : OM_PG_LIST_METRICS;
        case OM_STORE_CONFIG:
                return OM_PG_LIST_CONFIG;
        case OM_STORE_KEYS:
                return OM_PG_LIST_KEYS;
        case OM_STORE_RESULTS:
                break;
        }
        return OM_PG_LIST_RESULTS + (in->topic.p ? OM_PG_BY_TOPIC : 0u) + (in->name.p ? OM_PG_BY_AGENT : 0u) +
                (in->status.p ? OM_PG_BY_STATUS : 0u) + (in->text.p ? OM_PG_BY_WORDS : 0u) + (in->filter.p ? OM_PG_BY_DOC : 0u);
}

static int keep_inputs(struct list *l, const struct om_store_list *op, struct om_error *e) {
        const struct om_span *in[] = { &op->key, &op->name, &op->topic, &op->status, &op->cursor, &op->text, &op->filter };
        struct om_span *out[] = { &l->in.key, &l->in.name, &l->in.topic, &l->in.status, &l->in.cursor, &l->in.text, &l->in.filter };

        l->in.kind = op->kind;
        l->in.since_ms = op->since_ms;
        l->in.until_ms = op->until_ms;
        for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
                *out[i] = om_arena_copy(&l->arena, *in[i]);
                if (in[i]->p && !out[i]->p)
                        return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        }
        l->limit = op->limit ? op->limit : OM_PG_PAGE;
        l->limit = l->limit < OM_PG_PAGE_MAX ? l->limit : OM_PG_PAGE_MAX;
        return 0;
}

int om_pg_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct om_error bad;
        struct list *l;
        int r = om_pg_job_new(s, &op->op, sizeof *l, op->text.len + op->filter.len + 512, list_free, &l, e);

        if (r < 0)
                return r;
        s->jobs.in_call = true;
        op->arena = (struct om_arena){ 0 };
        op->entries = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        l->op = op;
        r = keep_inputs(l, op, &bad);
        if (r == 0)
                r = is_by_place(op->kind) ? read_place(l, &bad) : read_names(l, &bad);
        l->j.req.statement = list_statement(&l->in);
        l->j.req.fill = list_fill;
        l->j.req.answer = list_answer;
        l->j.req.doing = op->filter.p ? "searching (the filter must be JSON that JSONB can hold)" : "listing";
        if (r < 0)
                om_pg_job_over(&l->j, r, &bad);
        else
                om_pg_job_send(&l->j, false);
        s->jobs.in_call = false;
        return 0;
}

/* -- health ------------------------------------------------------------------------------------------------------------ */

struct health {
        struct om_pg_job j; /* first */
        struct om_store_health *op;
};

static int health_fill(struct om_pg_request *r, struct om_pg_params *params) { return 0; }

enum { H_VERSION, H_COMMIT, H_FSYNC, H_PAGES, H_MAX, H_STANDBY, H_SCHEMA, H_AGENTS, H_RESULTS, H_METRICS, H_BYTES, H_DATABASE };

static const char *why_weak(const PGresult *res) {
        if (strcmp(PQgetvalue(res, 0, H_FSYNC), "on") != 0)
                return "fsync is off on the server: a power cut can destroy the database";
        if (strcmp(PQgetvalue(res, 0, H_COMMIT), "off") == 0)
                return "synchronous_commit is off: what was acknowledged in the last moments before a crash of the server is lost";
        if (strcmp(PQgetvalue(res, 0, H_PAGES), "on") != 0)
                return "full_page_writes is off on the server: a power cut can tear pages";
        return NULL;
}

static void put_text(struct om_buf *b, const char *name, const char *text) {
        om_buf_printf(b, ",\"%s\":", name);
        om_buf_json_span(b, om_span_of(text));
}

static void put_number(struct om_buf *b, const char *name, const char *digits) {
        om_buf_printf(b, ",\"%s\":%lld", name, strtoll(digits, NULL, 10));
}

static struct om_span facts(const struct om_store *s, const PGresult *res, struct om_arena *arena) {
        const struct om_pg_link *link = om_pg_writer(s);
        const char *why = why_weak(res), *tls = link ? om_pg_link_tls(link) : NULL;
        struct om_buf b = OM_BUF_INIT;
        struct om_span text;

        om_buf_lit(&b, "{\"version\":");
        om_buf_json_span(&b, om_span_of(PQgetvalue(res, 0, H_VERSION)));
        put_text(&b, "durability", why ? "weak" : "strong");
        if (why)
                put_text(&b, "why", why);
        put_text(&b, "server", link ? om_pg_link_host(link) : s->settings.where);
        put_text(&b, "database", PQgetvalue(res, 0, H_DATABASE));
        put_text(&b, "schema", s->settings.schema);
        put_number(&b, "schema_version", PQgetvalue(res, 0, H_SCHEMA));
        put_text(&b, "tls", tls ? tls : "none");
        put_text(&b, "synchronous_commit", PQgetvalue(res, 0, H_COMMIT));
        om_buf_printf(&b, ",\"connections\":%u", s->n_up);
        put_number(&b, "max_connections", PQgetvalue(res, 0, H_MAX));
        put_number(&b, "agents", PQgetvalue(res, 0, H_AGENTS));
        put_number(&b, "results", PQgetvalue(res, 0, H_RESULTS));
        put_number(&b, "metrics", PQgetvalue(res, 0, H_METRICS));
        put_number(&b, "stored_bytes", PQgetvalue(res, 0, H_BYTES));
        om_buf_putc(&b, '}');
        text = om_buf_ok(&b) ? om_arena_copy(arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        return text;
}

static void health_answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct health *h = OM_PG_JOB_OF(r, struct health);

        if (status == 0 && !om_job_is_cancelled(&h->j.job)) {
                h->op->info = facts(h->j.store, res, &h->op->arena);
                if (!h->op->info.p) {
                        om_pg_job_no_memory(&h->j);
                        return;
                }
        }
        om_pg_job_over(&h->j, status, e);
}

int om_pg_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        struct health *h;
        int r = om_pg_job_new(s, &op->op, sizeof *h, 0, NULL, &h, e);

        if (r < 0)
                return r;
        s->jobs.in_call = true;
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        h->op = op;
        h->j.req.statement = OM_PG_HEALTH;
        h->j.req.fill = health_fill;
        h->j.req.answer = health_answer;
        h->j.req.doing = "asking for health";
        om_pg_job_send(&h->j, false);
        s->jobs.in_call = false;
        return 0;
}
