/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task.ack, task.fail, task.extend: params in, dispatch_finish.c does the rest. A request of wrong shape is refused as a whole before
 * anything is done; what is wrong with one delivery is its own affair. Called by session_read.c. Loop thread.
 */
#include <errno.h>

#include "dispatch_internal.h"
#include "methods.h"
#include "methods_task.h"

enum { ERROR_MESSAGE_MAX = 64 << 10 };

struct acked {
        int64_t number;
        struct om_span result, publish;
};

static int read_number(struct om_json_value v, const char *where, int64_t *ret, struct om_error *e) {
        if (v.type != OM_JSON_NUMBER || om_json_int64(v, ret) < 0)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: must be the integer of a task.deliver", where);
        return 0;
}

static int read_acked(struct om_json *j, size_t i, struct acked *ret, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "delivery", .types = OM_JSON_NUMBER, .required = true },
                { .name = "result", .types = OM_JSON_ANY },
                { .name = "publish", .types = OM_JSON_ARRAY },
                { .name = NULL },
        };
        char where[40];
        int r = om_json_members_at(j, "params.deliveries[]", members, e);

        if (r == 0)
                r = read_number(members[0].value, "delivery", &ret->number, e);
        if (r < 0) {
                snprintf(where, sizeof where, "the %zuth of deliveries", i + 1);
                om_error_prefix(e, "%s", where);
                return r;
        }
        ret->result = members[1].value.type ? members[1].value.text : OM_SPAN_NONE;
        ret->publish = members[2].value.type ? members[2].value.text : OM_SPAN_NONE;
        return 0;
}

/* Reads an array of up to OM_BATCH_MAX deliveries: of objects into `acked`, or, where that is NULL, of integers into `numbers`. */
static int read_deliveries(struct om_span params, struct acked *acked, int64_t *numbers, size_t *ret_n, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "deliveries", .types = OM_JSON_ARRAY, .required = true },
                { .name = NULL },
        };
        struct om_json_value v;
        struct om_json j;
        size_t n = 0;
        int r = om_json_members(params, "params", members, e);

        if (r < 0)
                return r;
        om_json_init_valid(&j, members[0].value.text);
        om_json_enter_array(&j);
        for (; om_json_next_element(&j) > 0; n++) {
                if (n == OM_BATCH_MAX)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "deliveries: at most %d at once", OM_BATCH_MAX);
                if (acked && om_json_peek(&j) != OM_JSON_OBJECT)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "deliveries[%zu]: must be an object with `delivery`", n);
                if (!acked && om_json_value(&j, &v) != 0)
                        return om_json_fault(&j, "deliveries", e);
                r = acked ? read_acked(&j, n, &acked[n], e) : read_number(v, "deliveries", &numbers[n], e);
                if (r < 0)
                        return r;
        }
        if (n == 0)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "deliveries: empty");
        *ret_n = n;
        return 0;
}

void om_task_ack(struct om_request *req, struct om_span params) {
        struct om_dispatch *d = req->core->dispatch;
        struct acked acked[OM_BATCH_MAX];
        struct om_error e = OM_ERROR_INIT;
        struct om_ack *ack;
        size_t n;

        if (read_deliveries(params, acked, NULL, &n, &e) < 0) {
                om_request_error(req, &e);
                return;
        }
        ack = om_ack_new(d, req, n > 1);
        if (!ack)
                return;
        for (size_t i = 0; i < n; i++)
                om_dispatch_ack(d, ack, acked[i].number, acked[i].result, acked[i].publish);
        om_ack_release(ack);
}

void om_task_extend(struct om_request *req, struct om_span params) {
        struct om_dispatch *d = req->core->dispatch;
        int64_t numbers[OM_BATCH_MAX];
        struct om_error e = OM_ERROR_INIT;
        struct om_ack *ack;
        size_t n;

        if (read_deliveries(params, NULL, numbers, &n, &e) < 0) {
                om_request_error(req, &e);
                return;
        }
        ack = om_ack_new(d, req, n > 1);
        if (!ack)
                return;
        for (size_t i = 0; i < n; i++)
                om_dispatch_extend(d, ack, numbers[i]);
        om_ack_release(ack);
}

static int read_fail(struct om_span params, struct om_arena *arena, int64_t *number, struct om_fail *fail, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "delivery", .types = OM_JSON_NUMBER, .required = true },
                { .name = "error", .types = OM_JSON_OBJECT, .required = true },
                { .name = "retry", .types = OM_JSON_BOOL },
                { .name = "delay_ms", .types = OM_JSON_NUMBER },
                { .name = NULL },
        };
        struct om_json_member error[] = {
                { .name = "message", .types = OM_JSON_STRING, .required = true },
                { .name = "type", .types = OM_JSON_STRING },
                { .name = NULL },
        };
        int r = om_json_members(params, "params", members, e);

        *fail = (struct om_fail){ .type = OM_SPAN("error"), .retry = true, .delay_ms = -1 };
        if (r == 0)
                r = read_number(members[0].value, "delivery", number, e);
        if (r == 0)
                r = om_json_members(members[1].value.text, "params.error", error, e);
        if (r == 0)
                r = om_param_text(&error[0], ERROR_MESSAGE_MAX, arena, &fail->message, e);
        if (r == 0)
                r = om_param_name(&error[1], arena, &fail->type, e);
        if (r == 0)
                r = om_param_int(&members[3], 0, OM_DELAY_MAX_MS, &fail->delay_ms, e);
        if (r == 0)
                om_param_bool(&members[2], &fail->retry);
        return r;
}

void om_task_fail(struct om_request *req, struct om_span params) {
        struct om_dispatch *d = req->core->dispatch;
        struct om_arena arena = { 0 };
        struct om_error e = OM_ERROR_INIT;
        struct om_fail fail;
        struct om_ack *ack;
        int64_t number;

        if (read_fail(params, &arena, &number, &fail, &e) < 0) {
                om_request_error(req, &e);
        } else if ((ack = om_ack_new(d, req, false))) {
                om_dispatch_fail(d, ack, number, &fail);
                om_ack_release(ack);
        }
        om_arena_deinit(&arena);
}
