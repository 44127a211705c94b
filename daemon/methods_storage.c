/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage.health, storage.clear and storage.query. Loop thread.
 */
#include <errno.h>

#include "agents.h"
#include "methods.h"

/* -- storage.health ------------------------------------------------------------------------------------------------ */

static void put_storage(struct om_buf *b, struct om_core *core, bool up) {
        om_buf_lit(b, "{\"name\":");
        om_buf_json_span(b, om_span_of(core->store_ops->name));
        om_put_member(b, "url", om_span_of(core->store_url));
        om_buf_puts(b, up ? ",\"status\":\"up\"" : ",\"status\":\"down\"");
}

/* A storage that is away is an answer here, no failure. */
static void on_health(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b = om_request_begin(c->req);

        if (b) {
                put_storage(b, c->core, status == 0);
                if (status == 0) {
                        om_buf_lit(b, ",\"latency_ms\":");
                        om_buf_json_double(b, (double) (om_clock_ns() - c->started_ns) / 1e6);
                        om_put_facts(b, c->health.info);
                } else {
                        om_buf_lit(b, ",\"latency_ms\":null");
                        om_put_member(b, "error", om_span_of(e->message));
                        if (c->health.info.p) /* the other storages' */
                                om_put_facts(b, c->health.info);
                }
                om_buf_putc(b, '}');
        }
        om_call_end(c);
}

static int read_nothing(struct om_call *c, struct om_span params, struct om_error *e) {
        struct om_json_member m[] = { { NULL } };

        return om_json_members(params, "params", m, e);
}

static void storage_health(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_STORE_HEALTH, read_nothing, on_health);
}

/* -- storage.clear ------------------------------------------------------------------------------------------------- */

static const struct {
        const char *name;
        enum om_store_kind kind;
} kinds[] = { { "agents", OM_STORE_AGENTS }, { "results", OM_STORE_RESULTS }, { "metrics", OM_STORE_METRICS },
        { "config", OM_STORE_CONFIG } };
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* One kind after the other; in the arena of the call. */
struct clearing {
        unsigned at, end;
        uint64_t n[N_KINDS];
        bool done[N_KINDS];
};

static void on_cleared(struct om_call *c, int status, const struct om_error *e);

static void clear_next(struct om_call *c) {
        const struct clearing *clearing = c->data;

        om_call_reset(c, OM_CALL_STORE_DELETE, on_cleared);
        c->remove.kind = kinds[clearing->at].kind;
        om_call_start(c);
}

static void on_cleared(struct om_call *c, int status, const struct om_error *e) {
        struct clearing *clearing = c->data;
        const char *comma = "";
        struct om_buf *b;

        if (status < 0) {
                om_call_fail(c, e);
                return;
        }
        clearing->n[clearing->at] = c->remove.ret_n;
        clearing->done[clearing->at] = true;
        if (c->remove.kind == OM_STORE_CONFIG)
                om_agents_read_paused(c->core->agents); /* with its setting gone a group is not paused */
        if (++clearing->at < clearing->end) {
                clear_next(c);
                return;
        }
        b = om_request_begin(c->req);
        if (b) {
                om_buf_lit(b, "{\"cleared\":{");
                for (unsigned i = 0; i < N_KINDS; i++) {
                        if (!clearing->done[i])
                                continue;
                        om_buf_printf(b, "%s\"%s\":%llu", comma, kinds[i].name, (unsigned long long) clearing->n[i]);
                        comma = ",";
                }
                om_buf_lit(b, "}}");
        }
        om_call_end(c);
}

static int read_what(struct om_span what, struct clearing *clearing, struct om_error *e) {
        memset(clearing, 0, sizeof *clearing);
        if (om_span_is(what, "all")) {
                clearing->end = N_KINDS;
                return 0;
        }
        for (unsigned i = 0; i < N_KINDS; i++)
                if (om_span_is(what, kinds[i].name)) {
                        clearing->at = i;
                        clearing->end = i + 1;
                        return 0;
                }
        return om_error_set_code(
                e, OM_CODE_PARAMS, OM_INVALID, "what: \"%.*s\"; must be agents, results, metrics, config or all", OM_PRI(what));
}

static void storage_clear(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "what", OM_JSON_STRING, true }, { NULL } };
        struct om_call *c = om_call_new(req->core, req, OM_CALL_NONE, NULL);
        struct clearing *clearing = c ? om_arena_alloc(&c->arena, sizeof *clearing) : NULL;
        struct om_span what = OM_SPAN_NONE;
        struct om_error e = OM_ERROR_INIT;

        if (!c)
                return;
        if (!clearing)
                om_error_set_errno(&e, ENOMEM, "storage.clear");
        if (!clearing || om_json_members(params, "params", m, &e) < 0 || om_param_name(&m[0], &c->arena, &what, &e) < 0 ||
                read_what(what, clearing, &e) < 0) {
                om_call_fail(c, &e);
                return;
        }
        c->data = clearing;
        clear_next(c);
}

/* -- storage.query ------------------------------------------------------------------------------------------------- */

enum { QUERY_TEXT_MAX = 64 << 10, QUERY_ROWS = 100, QUERY_TIMEOUT_MAX_MS = 3600000, QUERY_GRACE_MS = 1000 };

static void on_query(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b = om_call_begin(c, status, e);

        if (!b)
                return;
        om_buf_put_span(b, c->store_query.answer);
        om_call_end(c);
}

static int read_query(struct om_call *c, struct om_span params, struct om_error *e) {
        struct om_json_member m[] = {
                { .name = "query", .types = OM_JSON_STRING, .required = true },
                { .name = "limit", .types = OM_JSON_NUMBER },
                { .name = "timeout_ms", .types = OM_JSON_NUMBER },
                { .name = NULL },
        };
        int64_t limit = QUERY_ROWS, timeout_ms = c->core->settings->call_timeout_ms;
        int r = om_json_members(params, "params", m, e);

        if (r == 0)
                r = om_storage_must(c->core, OM_STORE_QUERY, "query language", e);
        if (r == 0)
                r = om_param_text(&m[0], QUERY_TEXT_MAX, &c->arena, &c->store_query.text, e);
        if (r == 0)
                r = om_param_int(&m[1], 1, OM_STORE_QUERY_ROWS_MAX, &limit, e);
        if (r == 0)
                r = om_param_int(&m[2], 1, QUERY_TIMEOUT_MAX_MS, &timeout_ms, e);
        c->store_query.limit = (size_t) limit;
        c->store_query.timeout_ms = timeout_ms;
        /* The storage itself stops the query, which leaves its connection of use; this is for one that does not answer. */
        c->timeout_ms = timeout_ms + QUERY_GRACE_MS;
        return r;
}

static void storage_query(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_STORE_QUERY, read_query, on_query);
}

const struct om_method om_storage_methods[] = {
        { "storage.health", storage_health },
        { "storage.clear", storage_clear },
        { "storage.query", storage_query },
        { NULL, NULL },
};
