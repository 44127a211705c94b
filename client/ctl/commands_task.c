/* SPDX-License-Identifier: Apache-2.0 */
/* task get|list|search|delete: results. `task publish` is publish.c. */
#include "doc.h"
#include "term.h"
#include "view.h"
#include "../../proto/rpc.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WAIT_MS = 30000, LIST_LIMIT = 20 };

static const struct view_column list_columns[] = {
        { "ID", "task_id", VIEW_ID },
        { "TOPIC", "topic", VIEW_TEXT },
        { "AGENT", "agent", VIEW_TEXT },
        { "STATUS", "status", VIEW_STATUS },
        { "WHEN", "timestamp", VIEW_TIME },
        { "RESULT", "result", VIEW_JSON },
        { "ERROR", "error", VIEW_TEXT },
        { NULL, NULL, 0 },
};
static const struct view_column record_columns[] = {
        { "ID", "task_id", VIEW_ID },
        { "TOPIC", "topic", VIEW_TEXT },
        { "AGENT", "agent", VIEW_TEXT },
        { "STATUS", "status", VIEW_STATUS },
        { "RESULT", "result", VIEW_JSON },
        { "ERROR", "error", VIEW_TEXT },
        { "ERROR TYPE", "error_type", VIEW_TEXT },
        { "ATTEMPTS", "attempts", VIEW_NUMBER },
        { "WORKER", "worker", VIEW_TEXT },
        { "CREATED", "created_at", VIEW_TIME },
        { "DONE", "timestamp", VIEW_TIME },
        { "CORRELATION", "correlation_id", VIEW_TEXT },
        { "CAUSED BY", "causation_id", VIEW_TEXT },
        { "SOURCE", "source", VIEW_TEXT },
        { "TENANT", "tenant_id", VIEW_TEXT },
        { "REPLY TO", "reply_to", VIEW_TEXT },
        { "CONTENT", "content", VIEW_JSON },
        { NULL, NULL, 0 },
};

int cmd_task_get(struct ctl *ctl) {
        const struct args *a = &ctl->args;
        int64_t wait_ms = args_has(a, "wait") ? args_number(a, "wait", WAIT_MS) : 0;
        char *record = NULL;
        size_t len = 0;
        int r = ctl_connect(ctl);

        if (r) {
                return r;
        }
        r = omni_result_get(ctl->client, args_text(a, "id"), args_text(a, "agent"), wait_ms, &record, &len);
        if (r < 0) {
                return ctl_report(ctl, r, omni_strerror(ctl->client));
        }
        struct om_span text = { record, len };
        if (args_has(a, "result-only")) {
                struct om_json_value root = doc_root(text), status = doc_get(root, "status");

                if (doc_is(status, "failed")) {
                        struct om_arena arena = { 0 };
                        struct om_span why = doc_text(doc_get(root, "error"), &arena);

                        r = ctl_fail(ctl, CTL_FAILED, "the task failed: %.*s", OM_PRI(why));
                        om_arena_deinit(&arena);
                } else {
                        view_put_json(ctl, doc_get(root, "result"));
                }
        } else {
                view_record(ctl, text, record_columns);
        }
        free(record);
        return r;
}

/* A Unix time, or how long ago: what the protocol wants is a Unix time. */
static int put_time(struct ctl *ctl, struct om_buf *params, const char *name) {
        const char *text = args_text(&ctl->args, name);
        int64_t ago_ms;
        char *end;

        if (!text) {
                return 0;
        }
        double when = strtod(text, &end);
        if (*end != '\0' || when < 1e8) { /* a bare number that is no date of this age counts seconds */
                if (args_parse_time(text, &ago_ms) < 0) {
                        return ctl_usage(ctl, "--%s is a Unix time or how long ago (90s, 10min, 2h, 1d), not \"%s\"", name, text);
                }
                when = term_now() - (double) ago_ms / 1000;
        }
        if (!isfinite(when) || when >= 1e12) {
                return ctl_usage(ctl, "--%s: \"%s\" is out of range", name, text);
        }
        om_buf_printf(params, "%s\"%s\":%.3f", params->len ? "," : "", name, when);
        return 0;
}

static int list(struct ctl *ctl, const char *method, struct om_buf *params, const char *empty) {
        int64_t limit = args_has(&ctl->args, "all") ? INT64_MAX : args_number(&ctl->args, "limit", LIST_LIMIT);
        struct om_buf all = OM_BUF_INIT;
        const char *text = params->len ? ctl_text(params) : "";
        int r = text ? ctl_call_pages(ctl, method, text, "tasks", limit, args_text(&ctl->args, "cursor"), &all) : CTL_FAILED;

        if (r == 0) {
                view_list(ctl, om_buf_span(&all), "tasks", list_columns, empty);
        }
        if (r == 0) {
                view_more(ctl, om_buf_span(&all));
        }
        om_buf_deinit(&all);
        om_buf_deinit(params);
        return r;
}

int cmd_task_list(struct ctl *ctl) {
        struct om_buf params = OM_BUF_INIT;
        int r;

        ctl_put_text(&params, "topic", args_text(&ctl->args, "topic"));
        ctl_put_text(&params, "agent", args_text(&ctl->args, "agent"));
        ctl_put_text(&params, "status", args_text(&ctl->args, "status"));
        r = put_time(ctl, &params, "since");
        r = r ? r : put_time(ctl, &params, "until");
        if (r) {
                om_buf_deinit(&params);
                return r;
        }
        return list(ctl, "task.list", &params, "No results.");
}

int cmd_task_search(struct ctl *ctl) {
        struct om_buf params = OM_BUF_INIT;

        const char *filter = args_text(&ctl->args, "filter");
        struct om_error e = OM_ERROR_INIT;

        if (!args_has(&ctl->args, "text") && !filter) {
                return ctl_usage(ctl, "say what to search for: TEXT, or --filter FILTER");
        }
        if (filter && om_json_check(om_span_of(filter), OM_DEPTH_MAX - 4, &e) < 0) {
                return ctl_usage(ctl, "FILTER: %s; a JSON object such as '{\"status\":\"failed\"}'", e.message);
        }
        ctl_put_text(&params, "text", args_text(&ctl->args, "text"));
        ctl_put_raw(&params, "filter", filter);
        return list(ctl, "task.search", &params, "Nothing found.");
}

int cmd_task_delete(struct ctl *ctl) {
        size_t n = args_count(&ctl->args, "id");
        int64_t deleted = 0;
        int r = n == 1 ? ctl_confirm(ctl, "Delete the results of task %s?", args_text(&ctl->args, "id"))
                       : ctl_confirm(ctl, "Delete the results of %zu tasks?", n);

        for (size_t i = 0; r == 0 && i < n; i++) {
                struct om_buf params = OM_BUF_INIT;
                struct om_span text = OM_SPAN_NONE;
                char *answer = NULL;

                om_buf_putc(&params, '{');
                ctl_put_text(&params, "id", args_nth(&ctl->args, "id", i));
                om_buf_putc(&params, '}');
                r = ctl_call_buf(ctl, "task.delete", &params, &answer, &text);
                if (r == 0) {
                        deleted += doc_int(doc_get(doc_root(text), "deleted"), 0);
                }
                free(answer);
        }
        if (r == 0 && deleted == 0) {
                return ctl_fail(ctl, CTL_NOT_FOUND, "no result of %s", n == 1 ? args_text(&ctl->args, "id") : "these tasks");
        }
        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                om_buf_printf(&ctl->out, "{\"deleted\":%" PRId64 "}\n", deleted);
        } else if (r == 0) {
                ctl_say(ctl, "Deleted %" PRId64 " result%s.", deleted, deleted == 1 ? "" : "s");
        }
        return r;
}
