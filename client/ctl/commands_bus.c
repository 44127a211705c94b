/* SPDX-License-Identifier: Apache-2.0 */
/* bus topics|groups|inspect|stats. */
#include "doc.h"
#include "table.h"
#include "view.h"

#include <inttypes.h>
#include <stdlib.h>

static const struct view_column topic_columns[] = {
        { "TOPIC", "topic", VIEW_ID },
        { "TASKS", "depth", VIEW_NUMBER },
        { "DELAYED", "delayed", VIEW_NUMBER },
        { "PUBLISHED", "published", VIEW_NUMBER },
        { "GROUPS", "groups", VIEW_NUMBER },
        { NULL, NULL, 0 },
};
static const struct view_column group_columns[] = {
        { "TOPIC", "topic", VIEW_ID },
        { "AGENT", "agent", VIEW_ID },
        { "WORKERS", "workers", VIEW_NUMBER },
        { "LAG", "lag", VIEW_NUMBER },
        { "LEASED", "leased", VIEW_NUMBER },
        { "RETRYING", "retrying", VIEW_NUMBER },
        { "DEAD", "dead", VIEW_BAD },
        { "FINISHED", "finished", VIEW_NUMBER },
        { "EXPIRED", "expired", VIEW_NUMBER },
        { "PAUSED", "paused", VIEW_YES },
        { NULL, NULL, 0 },
};
static const struct view_column entry_columns[] = {
        { "ENTRY", "entry", VIEW_ID },
        { "ID", "task.id", VIEW_ID },
        { "PUBLISHED", "task.created_at", VIEW_TIME },
        { "KEY", "task.key", VIEW_TEXT },
        { "CONTENT", "task.payload.content", VIEW_JSON },
        { NULL, NULL, 0 },
};

/* Pages of an array, by --limit and --all, shown as a list. */
static int list(
        struct ctl *ctl, const char *method, const char *array, int64_t limit, const struct view_column *columns, const char *empty) {
        struct om_buf params = OM_BUF_INIT, all = OM_BUF_INIT;
        const char *text;
        int r;

        ctl_put_text(&params, "topic", args_text(&ctl->args, "topic"));
        text = params.len ? ctl_text(&params) : "";
        limit = args_has(&ctl->args, "all") ? INT64_MAX : args_number(&ctl->args, "limit", limit);
        r = text ? ctl_call_pages(ctl, method, text, array, limit, args_text(&ctl->args, "cursor"), &all) : CTL_FAILED;
        if (r == 0) {
                view_list(ctl, om_buf_span(&all), array, columns, empty);
        }
        if (r == 0) {
                view_more(ctl, om_buf_span(&all));
        }
        om_buf_deinit(&params);
        om_buf_deinit(&all);
        return r;
}

int cmd_bus_topics(struct ctl *ctl) { return list(ctl, "bus.topics", "topics", 100, topic_columns, "No topics yet."); }

int cmd_bus_inspect(struct ctl *ctl) { return list(ctl, "bus.inspect", "entries", 20, entry_columns, "No tasks on it."); }

int cmd_bus_groups(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call_text(ctl, "bus.groups", "topic", args_text(&ctl->args, "topic"), &answer, &text);

        if (r == 0) {
                view_list(ctl, text, "groups", group_columns, "No groups yet.");
        }
        free(answer);
        return r;
}

/* -- a topic's own settings ------------------------------------------------------------------------------------------ */

static const struct view_column configure_columns[] = { { "TOPIC", "topic", VIEW_TEXT }, { "PARTITIONS", "partitions", VIEW_NUMBER },
        { "KEPT FOR REPLAY, MS", "retention_ms", VIEW_NUMBER }, { NULL, NULL, 0 } };

int cmd_bus_configure(struct ctl *ctl) {
        struct om_buf params = OM_BUF_INIT;
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r;

        om_buf_lit(&params, "{\"topic\":");
        om_buf_json_span(&params, om_span_of(args_text(&ctl->args, "topic")));
        if (args_has(&ctl->args, "partitions")) {
                om_buf_printf(&params, ",\"partitions\":%lld", (long long) args_number(&ctl->args, "partitions", 1));
        }
        if (args_has(&ctl->args, "retention")) {
                om_buf_printf(&params, ",\"retention_ms\":%lld", (long long) args_number(&ctl->args, "retention", 0));
        }
        om_buf_putc(&params, '}');
        r = ctl_call_buf(ctl, "bus.configure", &params, &answer, &text);
        if (r == 0) {
                view_record(ctl, text, configure_columns);
        }
        free(answer);
        return r;
}

/* -- stats --------------------------------------------------------------------------------------------------------- */

static const struct view_column stats_columns[] = {
        { "TOPIC, AGENT", "", VIEW_TEXT },
        { "TASKS", "depth", VIEW_NUMBER },
        { "DELAYED", "delayed", VIEW_NUMBER },
        { "PUBLISHED", "published", VIEW_NUMBER },
        { "WORKERS", "workers", VIEW_NUMBER },
        { "LAG", "lag", VIEW_NUMBER },
        { "LEASED", "leased", VIEW_NUMBER },
        { "RETRYING", "retrying", VIEW_NUMBER },
        { "DEAD", "dead", VIEW_BAD },
        { "FINISHED", "finished", VIEW_NUMBER },
        { "PAUSED", "paused", VIEW_YES },
        { NULL, NULL, 0 },
};
enum { STATS_COLUMNS = sizeof(stats_columns) / sizeof(*stats_columns) - 1 };

static void add_row(
        struct ctl *ctl, struct table *t, const char *before, struct om_json_value name, enum ctl_style style, struct om_json_value v) {
        for (size_t i = 0; i < STATS_COLUMNS; i++) {
                struct om_buf cell = OM_BUF_INIT;
                enum ctl_style cell_style = style;

                if (i == 0) {
                        struct om_arena arena = { 0 };

                        om_buf_puts(&cell, before);
                        om_buf_put_span(&cell, doc_text(name, &arena));
                        om_arena_deinit(&arena);
                } else {
                        struct om_json_value field = doc_get(v, stats_columns[i].path);

                        if (doc_scalar(field)) {
                                view_put_value(ctl, &cell, field, &stats_columns[i], &cell_style);
                        }
                }
                table_add(t, om_buf_span(&cell), cell_style);
                t->failed |= cell.failed;
                om_buf_deinit(&cell);
        }
}

static void put_stats(struct ctl *ctl, struct om_json_value root) {
        struct doc_each topic = doc_each(doc_get(root, "topics"));
        struct table_column titles[STATS_COLUMNS];
        struct table table;
        size_t rows = 0;

        for (size_t i = 0; i < STATS_COLUMNS; i++) {
                titles[i] =
                        (struct table_column){ .title = stats_columns[i].title, .right = i > 0 && i + 1 < STATS_COLUMNS, .keep = i > 0 };
        }
        table_init(&table, titles, STATS_COLUMNS);
        for (; doc_next(&topic); rows++) {
                struct doc_each group = doc_each(doc_get(topic.value, "groups"));
                size_t n = doc_count(doc_get(topic.value, "groups")), i = 0;

                add_row(ctl, &table, "", doc_get(topic.value, "topic"), STYLE_NAME, topic.value);
                while (doc_next(&group)) {
                        bool last = ++i == n;

                        add_row(ctl, &table,
                                ctl->ascii     ? (last ? "`- " : "|- ")
                                        : last ? "└─ "
                                               : "├─ ",
                                doc_get(group.value, "agent"), STYLE_NONE, group.value);
                }
        }
        if (rows > 1) {
                struct om_json_value label = doc_root(OM_SPAN("\"total\""));

                add_row(ctl, &table, "", label, STYLE_HEAD, doc_get(root, "totals"));
        }
        if (rows) {
                table_put(ctl, &ctl->out, &table, ctl->width);
        } else {
                ctl_say(ctl, "No topics yet. Publish a task: %s task publish --topic TOPIC CONTENT", ctl->program);
        }
        table_deinit(&table);
}

int cmd_bus_stats(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call_text(ctl, "bus.stats", "topic", args_text(&ctl->args, "topic"), &answer, &text);

        if (r == 0 && ctl->format == FORMAT_COMPACT) {
                struct doc_each topic = doc_each(doc_get(doc_root(text), "topics"));

                while (doc_next(&topic)) { /* a line a group, as bus groups prints them */
                        view_list(ctl, topic.value.text, "groups", group_columns, "");
                }
        } else if (r == 0 && !view_plain(ctl, text, NULL, NULL)) {
                put_stats(ctl, doc_root(text));
        }
        free(answer);
        return r;
}
