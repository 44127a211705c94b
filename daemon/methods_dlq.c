/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlq.*: dead letters, seen and moved. The bus does all of it; here are params and results. Loop thread.
 */
#include <errno.h>

#include "methods.h"

/* -- looking ------------------------------------------------------------------------------------------------------- */

static void put_letter(struct om_buf *b, const struct om_dead_letter *letter) {
        om_buf_lit(b, "{\"id\":");
        om_buf_json_span(b, letter->id);
        om_buf_lit(b, ",\"task\":");
        om_buf_put_span(b, letter->record);
        om_buf_lit(b, ",\"error\":{\"message\":");
        om_buf_json_span(b, letter->error.p ? letter->error : OM_SPAN(""));
        om_put_member(b, "type", letter->error_type);
        om_buf_lit(b, "},\"attempts\":");
        om_buf_u64(b, letter->attempts);
        om_put_member(b, "worker", letter->worker);
        om_buf_lit(b, ",\"failed_at\":");
        om_buf_json_time(b, letter->failed_ms);
        om_buf_putc(b, '}');
}

static void put_letter_row(struct om_buf *b, const struct om_call *c, size_t i) { put_letter(b, &c->query.dead[i]); }

static void on_listed(struct om_call *c, int status, const struct om_error *e) {
        om_call_put_page(c, status, e, "dead_letters", put_letter_row);
}

static void on_got(struct om_call *c, int status, const struct om_error *e) {
        struct om_error none;
        struct om_buf *b;

        if (status == 0 && c->query.n == 0) {
                status = om_error_set(&none, OM_NOT_FOUND, "no dead letter \"%.*s\" of agent \"%.*s\" on topic \"%.*s\"",
                        OM_PRI(c->query.ids[0]), OM_PRI(c->query.agent), OM_PRI(c->query.topic));
                e = &none;
        }
        b = om_call_begin(c, status, e);
        if (!b)
                return;
        put_letter(b, &c->query.dead[0]);
        om_call_end(c);
}

static int read_list(struct om_call *c, struct om_span params, struct om_error *e) {
        enum { TOPIC, AGENT, LIMIT, CURSOR, N };
        struct om_json_member m[N + 1] = {
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [AGENT] = { "agent", OM_JSON_STRING, true },
                [LIMIT] = { "limit", OM_JSON_NUMBER },
                [CURSOR] = { "cursor", OM_JSON_STRING },
        };
        int r;

        c->query.type = OM_QUERY_DEAD;
        if ((r = om_json_members(params, "params", m, e)) == 0 && (r = om_param_topic(&m[TOPIC], &c->arena, &c->query.topic, e)) == 0 &&
                (r = om_param_name(&m[AGENT], &c->arena, &c->query.agent, e)) == 0 &&
                (r = om_param_limit(&m[LIMIT], &c->query.limit, e)) == 0)
                r = om_param_cursor(&m[CURSOR], &c->arena, &c->query.cursor, e);
        return r;
}

static int read_get(struct om_call *c, struct om_span params, struct om_error *e) {
        enum { TOPIC, AGENT, ID, N };
        struct om_json_member m[N + 1] = {
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [AGENT] = { "agent", OM_JSON_STRING, true },
                [ID] = { "id", OM_JSON_STRING, true },
        };
        struct om_span *id = om_arena_alloc(&c->arena, sizeof *id);
        int r;

        if (!id)
                return om_error_set_errno(e, ENOMEM, "dlq.get");
        c->query.type = OM_QUERY_DEAD;
        c->query.ids = id;
        c->query.n_ids = 1;
        c->query.limit = 1;
        if ((r = om_json_members(params, "params", m, e)) == 0 && (r = om_param_topic(&m[TOPIC], &c->arena, &c->query.topic, e)) == 0 &&
                (r = om_param_name(&m[AGENT], &c->arena, &c->query.agent, e)) == 0)
                r = om_param_name(&m[ID], &c->arena, id, e);
        return r;
}

static void dlq_list(struct om_request *req, struct om_span params) { om_call_for(req, params, OM_CALL_BUS_QUERY, read_list, on_listed); }
static void dlq_get(struct om_request *req, struct om_span params) { om_call_for(req, params, OM_CALL_BUS_QUERY, read_get, on_got); }

/* -- moving -------------------------------------------------------------------------------------------------------- */

static void on_changed(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b = om_call_begin(c, status, e);

        if (!b)
                return;
        om_buf_puts(b, c->change.type == OM_CHANGE_REPLAY_DEAD ? "{\"replayed\":" : "{\"purged\":");
        om_buf_u64(b, c->change.ret_n);
        om_buf_putc(b, '}');
        om_call_end(c);
}

static int read_ids(struct om_call *c, struct om_json_value array, struct om_error *e) {
        struct om_span *ids = om_arena_alloc(&c->arena, OM_BATCH_MAX * sizeof *ids);
        struct om_json_member m = { "ids[]", OM_JSON_STRING, true, { 0 } };
        struct om_json j;
        size_t n = 0;
        int r;

        if (!ids)
                return om_error_set_errno(e, ENOMEM, "ids");
        om_json_init_valid(&j, array.text);
        om_json_enter_array(&j);
        while (om_json_next_element(&j) == 1) {
                if (n == OM_BATCH_MAX)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "ids: more than %d; send them in parts", OM_BATCH_MAX);
                if (om_json_value(&j, &m.value) < 0 || m.value.type != OM_JSON_STRING)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "ids[%zu]: must be a string", n);
                r = om_param_name(&m, &c->arena, &ids[n], e);
                if (r < 0)
                        return r;
                n++;
        }
        if (n == 0)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "ids: empty; name some, or give \"all\": true instead");
        c->change.ids = ids;
        c->change.n_ids = n;
        return 0;
}

static int read_change(struct om_call *c, struct om_span params, enum om_bus_change_type type, struct om_error *e) {
        enum { TOPIC, AGENT, IDS, ALL, N };
        struct om_json_member m[N + 1] = {
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [AGENT] = { "agent", OM_JSON_STRING, true },
                [IDS] = { "ids", OM_JSON_ARRAY },
                [ALL] = { "all", OM_JSON_BOOL },
        };
        bool all = false;
        int r;

        c->change.type = type;
        if ((r = om_json_members(params, "params", m, e)) < 0 || (r = om_param_topic(&m[TOPIC], &c->arena, &c->change.topic, e)) < 0 ||
                (r = om_param_name(&m[AGENT], &c->arena, &c->change.agent, e)) < 0)
                return r;
        om_param_bool(&m[ALL], &all);
        /* No ids means all to the bus: that must have been said. */
        if (all == (m[IDS].value.type != 0))
                return om_error_set_code(
                        e, OM_CODE_PARAMS, OM_INVALID, "params: give either \"ids\", an array of dead letters, or \"all\": true");
        return all ? 0 : read_ids(c, m[IDS].value, e);
}

static int read_replay(struct om_call *c, struct om_span params, struct om_error *e) {
        return read_change(c, params, OM_CHANGE_REPLAY_DEAD, e);
}
static int read_purge(struct om_call *c, struct om_span params, struct om_error *e) {
        return read_change(c, params, OM_CHANGE_PURGE_DEAD, e);
}

static void dlq_replay(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_BUS_CHANGE, read_replay, on_changed);
}
static void dlq_purge(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_BUS_CHANGE, read_purge, on_changed);
}

const struct om_method om_dlq_methods[] = {
        { "dlq.list", dlq_list },
        { "dlq.get", dlq_get },
        { "dlq.replay", dlq_replay },
        { "dlq.purge", dlq_purge },
        { NULL, NULL },
};
