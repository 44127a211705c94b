/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The methods of tasks: their table, and those that ask the storage for result records. task.publish is in methods_publish.c; ack, fail and
 * extend are in methods_ack.c. Called by session_read.c. Loop thread.
 */
#include <errno.h>

#include "methods.h"
#include "methods_task.h"
#include "results.h"

enum { WAIT_MAX_MS = 86400000, SEARCH_TEXT_MAX = 4096, FILTER_MAX = 64 << 10 };

static void task_get(struct om_request *req, struct om_span params) {
        struct om_json_member members[] = {
                { .name = "id", .types = OM_JSON_STRING, .required = true },
                { .name = "agent", .types = OM_JSON_STRING },
                { .name = "wait_ms", .types = OM_JSON_NUMBER },
                { .name = NULL },
        };
        struct om_span id = OM_SPAN_NONE, agent = OM_SPAN_NONE;
        struct om_arena arena = { 0 };
        struct om_error e = OM_ERROR_INIT;
        int64_t wait_ms = 0;
        int r = om_json_members(params, "params", members, &e);

        if (r == 0)
                r = om_param_name(&members[0], &arena, &id, &e);
        if (r == 0)
                r = om_param_name(&members[1], &arena, &agent, &e);
        if (r == 0)
                r = om_param_int(&members[2], 0, WAIT_MAX_MS, &wait_ms, &e);
        if (r == 0)
                om_results_get(req->core->results, req, id, agent, wait_ms);
        else
                om_request_error(req, &e);
        om_arena_deinit(&arena);
}

/* -- lists --------------------------------------------------------------------------------------------------------- */

static void put_task_row(struct om_buf *b, const struct om_call *c, size_t i) { om_buf_put_span(b, c->list.entries[i].value); }

static void listed(struct om_call *c, int status, const struct om_error *e) { om_call_put_page(c, status, e, "tasks", put_task_row); }

static int read_status(const struct om_json_member *m, struct om_span *ret, struct om_error *e) {
        if (!m->value.type)
                return 0;
        *ret = om_json_string_is(m->value, "completed") ? OM_SPAN("completed")
                : om_json_string_is(m->value, "failed") ? OM_SPAN("failed")
                                                        : OM_SPAN_NONE;
        return ret->p ? 0 : om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "status: must be \"completed\" or \"failed\"");
}

static int read_list(struct om_call *c, struct om_span params, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "limit", .types = OM_JSON_NUMBER },
                { .name = "cursor", .types = OM_JSON_STRING },
                { .name = "topic", .types = OM_JSON_STRING },
                { .name = "agent", .types = OM_JSON_STRING },
                { .name = "status", .types = OM_JSON_STRING },
                { .name = "since", .types = OM_JSON_NUMBER },
                { .name = "until", .types = OM_JSON_NUMBER },
                { .name = NULL },
        };
        int r = om_json_members(params, "params", members, e);

        c->list.kind = OM_STORE_RESULTS;
        if (r == 0)
                r = om_param_limit(&members[0], &c->list.limit, e);
        if (r == 0)
                r = om_param_cursor(&members[1], &c->arena, &c->list.cursor, e);
        if (r == 0)
                r = om_param_topic(&members[2], &c->arena, &c->list.topic, e);
        if (r == 0)
                r = om_param_name(&members[3], &c->arena, &c->list.name, e);
        if (r == 0)
                r = read_status(&members[4], &c->list.status, e);
        if (r == 0)
                r = om_param_time(&members[5], &c->list.since_ms, e);
        if (r == 0)
                r = om_param_time(&members[6], &c->list.until_ms, e);
        return r;
}

static void task_list(struct om_request *req, struct om_span params) { om_call_for(req, params, OM_CALL_STORE_LIST, read_list, listed); }

/* -- search -------------------------------------------------------------------------------------------------------- */

static int read_search(struct om_call *c, struct om_span params, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "text", .types = OM_JSON_STRING },
                { .name = "filter", .types = OM_JSON_OBJECT },
                { .name = "limit", .types = OM_JSON_NUMBER },
                { .name = "cursor", .types = OM_JSON_STRING },
                { .name = NULL },
        };
        int r = om_json_members(params, "params", members, e);

        c->list.kind = OM_STORE_RESULTS;
        if (r == 0)
                r = om_storage_must(c->core, OM_STORE_SEARCH, "search", e);
        if (r == 0 && !members[0].value.type && !members[1].value.type)
                r = om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "params: `text` or `filter` must be there");
        if (r == 0)
                r = om_param_text(&members[0], SEARCH_TEXT_MAX, &c->arena, &c->list.text, e);
        if (r == 0 && members[1].value.type) {
                if (members[1].value.text.len > FILTER_MAX)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "filter: larger than %d bytes", FILTER_MAX);
                c->list.filter = om_call_copy(c, members[1].value.text);
        }
        if (r == 0)
                r = om_param_limit(&members[2], &c->list.limit, e);
        if (r == 0)
                r = om_param_cursor(&members[3], &c->arena, &c->list.cursor, e);
        return r;
}

static void task_search(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_STORE_LIST, read_search, listed);
}

/* -- delete -------------------------------------------------------------------------------------------------------- */

static void deleted(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b = om_call_begin(c, status, e);

        if (!b)
                return;
        om_buf_lit(b, "{\"deleted\":");
        om_buf_u64(b, c->remove.ret_n);
        om_buf_putc(b, '}');
        om_call_end(c);
}

static int read_delete(struct om_call *c, struct om_span params, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "id", .types = OM_JSON_STRING, .required = true },
                { .name = NULL },
        };
        int r = om_json_members(params, "params", members, e);

        c->remove.kind = OM_STORE_RESULTS;
        return r < 0 ? r : om_param_name(&members[0], &c->arena, &c->remove.key, e);
}

static void task_delete(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_STORE_DELETE, read_delete, deleted);
}

const struct om_method om_task_methods[] = {
        { "task.publish", om_task_publish },
        { "task.get", task_get },
        { "task.list", task_list },
        { "task.search", task_search },
        { "task.delete", task_delete },
        { "task.ack", om_task_ack },
        { "task.fail", om_task_fail },
        { "task.extend", om_task_extend },
        { NULL, NULL },
};
