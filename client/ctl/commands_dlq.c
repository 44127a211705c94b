/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlq list|show|replay|purge.
 *
 * The protocol asks for one group's dead letters; `dlq list` without an agent asks which groups have any and lists each of them, with
 * `topic` and `agent` put in front of the members of each dead letter.
 */
#include "doc.h"
#include "view.h"

#include <inttypes.h>
#include <stdlib.h>

enum { LIST_LIMIT = 20 };

static const struct view_column list_columns[] = {
        { "TOPIC", "topic", VIEW_TEXT },
        { "AGENT", "agent", VIEW_TEXT },
        { "DEAD LETTER", "id", VIEW_ID },
        { "TASK", "task.id", VIEW_ID },
        { "ATTEMPTS", "attempts", VIEW_NUMBER },
        { "FAILED", "failed_at", VIEW_TIME },
        { "ERROR", "error.message", VIEW_TEXT },
        { NULL, NULL, 0 },
};
static const struct view_column record_columns[] = {
        { "DEAD LETTER", "id", VIEW_ID },
        { "TASK", "task.id", VIEW_ID },
        { "ERROR", "error.message", VIEW_TEXT },
        { "ERROR TYPE", "error.type", VIEW_TEXT },
        { "ATTEMPTS", "attempts", VIEW_NUMBER },
        { "WORKER", "worker", VIEW_TEXT },
        { "FAILED", "failed_at", VIEW_TIME },
        { "PUBLISHED", "task.created_at", VIEW_TIME },
        { "CONTENT", "task.payload.content", VIEW_JSON },
        { NULL, NULL, 0 },
};

/* Appends one group's dead letters to the array in `all`, each with its topic and agent in front. */
static int add_group(struct ctl *ctl, struct om_json_value topic, struct om_json_value agent, int64_t limit, struct om_buf *all) {
        struct om_buf params = OM_BUF_INIT, page = OM_BUF_INIT;
        struct doc_each each;
        const char *text;
        int r;

        om_buf_printf(&params, "\"topic\":%.*s,\"agent\":%.*s", OM_PRI(topic.text), OM_PRI(agent.text));
        text = ctl_text(&params);
        r = text ? ctl_call_pages(ctl, "dlq.list", text, "dead_letters", limit, NULL, &page) : CTL_FAILED;
        each = doc_each(doc_get(doc_root(om_buf_span(&page)), "dead_letters"));
        while (r == 0 && doc_next(&each)) {
                if (all->data[all->len - 1] != '[') {
                        om_buf_putc(all, ',');
                }
                om_buf_printf(all, "{%s,", params.data);
                om_buf_put(all, each.value.text.p + 1, each.value.text.len - 1);
        }
        om_buf_deinit(&params);
        om_buf_deinit(&page);
        return r;
}

/* Those of all groups, of a topic or of all topics, that have any. */
static int add_groups(struct ctl *ctl, const char *topic, int64_t limit, struct om_buf *all) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call_text(ctl, "bus.groups", "topic", topic, &answer, &text);

        if (r == 0) {
                struct doc_each group = doc_each(doc_get(doc_root(text), "groups"));

                while (r == 0 && doc_next(&group)) {
                        if (doc_number(doc_get(group.value, "dead"), 0) > 0) {
                                r = add_group(ctl, doc_get(group.value, "topic"), doc_get(group.value, "agent"), limit, all);
                        }
                }
        }
        free(answer);
        return r;
}

int cmd_dlq_list(struct ctl *ctl) {
        const char *topic = args_text(&ctl->args, "topic"), *agent = args_text(&ctl->args, "agent");
        int64_t limit = args_has(&ctl->args, "all") ? INT64_MAX : args_number(&ctl->args, "limit", LIST_LIMIT);
        struct om_buf all = OM_BUF_INIT, names = OM_BUF_INIT;
        int r;

        om_buf_puts(&all, "{\"dead_letters\":[");
        if (topic && agent) {
                om_buf_putc(&names, '[');
                om_buf_json_span(&names, om_span_of(topic));
                om_buf_putc(&names, ',');
                om_buf_json_span(&names, om_span_of(agent));
                om_buf_putc(&names, ']');
                struct doc_each name = doc_each(doc_root(om_buf_span(&names)));
                doc_next(&name);
                struct om_json_value first = name.value;
                doc_next(&name);
                r = add_group(ctl, first, name.value, limit, &all);
        } else {
                r = agent ? ctl_usage(ctl, "say the agent's topic as well") : add_groups(ctl, topic, limit, &all);
        }
        om_buf_puts(&all, "]}");
        if (r == 0) {
                view_list(ctl, om_buf_span(&all), "dead_letters", list_columns, "No dead letters.");
        }
        om_buf_deinit(&all);
        om_buf_deinit(&names);
        return r;
}

static void put_group(struct ctl *ctl, struct om_buf *params) {
        om_buf_putc(params, '{');
        ctl_put_text(params, "topic", args_text(&ctl->args, "topic"));
        ctl_put_text(params, "agent", args_text(&ctl->args, "agent"));
}

int cmd_dlq_show(struct ctl *ctl) {
        struct om_buf params = OM_BUF_INIT;
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r;

        put_group(ctl, &params);
        ctl_put_text(&params, "id", args_text(&ctl->args, "id"));
        om_buf_putc(&params, '}');
        r = ctl_call_buf(ctl, "dlq.get", &params, &answer, &text);
        if (r == 0) {
                view_record(ctl, text, record_columns);
        }
        free(answer);
        return r;
}

/* The ids that were named, or all. */
static int act(struct ctl *ctl, const char *method, const char *member, const char *done) {
        struct om_buf params = OM_BUF_INIT;
        size_t n = args_count(&ctl->args, "id");
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r;

        put_group(ctl, &params);
        if (n) {
                om_buf_puts(&params, ",\"ids\":[");
                for (size_t i = 0; i < n; i++) {
                        om_buf_puts(&params, i ? "," : "");
                        om_buf_json_span(&params, om_span_of(args_nth(&ctl->args, "id", i)));
                }
                om_buf_putc(&params, ']');
        } else {
                om_buf_puts(&params, ",\"all\":true");
        }
        om_buf_putc(&params, '}');
        r = ctl_call_buf(ctl, method, &params, &answer, &text);
        if (r == 0) {
                int64_t count = doc_int(doc_get(doc_root(text), member), 0);

                if (ctl->format_given && ctl->format == FORMAT_JSON) {
                        view_put_json(ctl, doc_root(text));
                } else {
                        ctl_say(ctl, "%s %" PRId64 " dead letter%s.", done, count, count == 1 ? "" : "s");
                }
                r = n && count == 0 ? ctl_fail(ctl, CTL_NOT_FOUND, "no such dead letter") : 0;
        }
        free(answer);
        return r;
}

static int check_which(struct ctl *ctl) {
        bool ids = args_count(&ctl->args, "id") > 0, all = args_has(&ctl->args, "all");

        if (ids == all) {
                return ctl_usage(ctl, ids ? "say ids or --all, not both" : "say which: ids (dlq list shows them), or --all");
        }
        return 0;
}

int cmd_dlq_replay(struct ctl *ctl) {
        int r = check_which(ctl);
        return r ? r : act(ctl, "dlq.replay", "replayed", "Replayed");
}

int cmd_dlq_purge(struct ctl *ctl) {
        size_t n = args_count(&ctl->args, "id");
        int r = check_which(ctl);

        if (r == 0 && n) {
                r = ctl_confirm(ctl, "Delete %zu dead letter%s of %s on %s for ever?", n, n == 1 ? "" : "s", args_text(&ctl->args, "agent"),
                        args_text(&ctl->args, "topic"));
        } else if (r == 0) {
                r = ctl_confirm(ctl, "Delete all dead letters of %s on %s for ever?", args_text(&ctl->args, "agent"),
                        args_text(&ctl->args, "topic"));
        }
        return r ? r : act(ctl, "dlq.purge", "purged", "Deleted");
}
