/* SPDX-License-Identifier: Apache-2.0 */
/* storage health|clear|query and config get|set|list|delete. */
#include "doc.h"
#include "input.h"
#include "table.h"
#include "text.h"
#include "view.h"
#include "../../proto/rpc.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { FACTS_MAX = 40 }; /* of a storage that are shown */

/* "journal_bytes" is shown as "JOURNAL". */
static const char *title_of(struct om_span key, bool bytes, struct om_arena *arena) {
        char *title = om_arena_alloc(arena, key.len + 1);
        size_t len = key.len - (bytes ? sizeof("_bytes") - 1 : 0);

        if (!title) {
                return key.p;
        }
        for (size_t i = 0; i < len; i++) {
                title[i] = (char) (key.p[i] == '_' ? ' ' : toupper((unsigned char) key.p[i]));
        }
        title[len] = '\0';
        return title;
}

/* Where there are several: each, and how the second one follows. */
static void put_others(struct ctl *ctl, struct om_span text) {
        static const struct view_column part[] = { { "ROLE", "role", VIEW_TEXT }, { "NAME", "name", VIEW_TEXT },
                { "STATUS", "status", VIEW_STATUS }, { "LATENCY", "latency_ms", VIEW_MS }, { "URL", "url", VIEW_TEXT },
                { "ERROR", "error", VIEW_TEXT }, { NULL, NULL, 0 } };
        static const struct view_column mirror[] = { { "SECOND STORAGE", "mirror.role", VIEW_TEXT }, { "PHASE", "mirror.phase", VIEW_TEXT },
                { "CHANGES WAITING", "mirror.queued", VIEW_NUMBER }, { "THEY TAKE", "mirror.queue_bytes", VIEW_SIZE },
                { "OF AT MOST", "mirror.queue_limit_bytes", VIEW_SIZE }, { "BROUGHT OVER", "mirror.synced", VIEW_NUMBER },
                { "FAILURES", "mirror.failures", VIEW_BAD }, { "REFUSED", "mirror.refused", VIEW_BAD },
                { "FAILING SINCE", "mirror.failing_since", VIEW_TIME }, { "ERROR", "mirror.error", VIEW_TEXT }, { NULL, NULL, 0 } };

        om_buf_putc(&ctl->out, '\n');
        view_list(ctl, text, "parts", part, "");
        if (doc_there(doc_get(doc_root(text), "mirror"))) {
                om_buf_putc(&ctl->out, '\n');
                view_record(ctl, text, mirror);
        }
}

/* What every storage says, then the storage's own facts under their own names. */
static void put_health(struct ctl *ctl, struct om_span text) {
        static const struct view_column first[] = { { "NAME", "name", VIEW_TEXT }, { "STATUS", "status", VIEW_STATUS },
                { "URL", "url", VIEW_TEXT }, { "LATENCY", "latency_ms", VIEW_MS }, { NULL, NULL, 0 } };
        struct view_column all[FACTS_MAX + 1];
        struct doc_each each = doc_each(doc_root(text));
        struct om_arena arena = { 0 };
        size_t n = 0;

        for (; first[n].title; n++) {
                all[n] = first[n];
        }
        while (ctl->format == FORMAT_TABLE && n < FACTS_MAX && doc_next(&each)) {
                struct om_span key = om_arena_copy(&arena, doc_text(each.key, &arena));
                bool bytes = key.p && key.len > 6 && strcmp(key.p + key.len - 6, "_bytes") == 0;

                if (key.p && !strchr(key.p, '.') && strcmp(key.p, "name") != 0 && strcmp(key.p, "status") != 0 &&
                        strcmp(key.p, "url") != 0 && strcmp(key.p, "latency_ms") != 0 && doc_scalar(each.value)) {
                        all[n++] = (struct view_column){ title_of(key, bytes, &arena), key.p, bytes ? VIEW_SIZE : VIEW_TEXT };
                }
        }
        all[n] = (struct view_column){ NULL, NULL, 0 };
        view_record(ctl, text, all);
        om_arena_deinit(&arena);
        if (ctl->format == FORMAT_TABLE && doc_there(doc_get(doc_root(text), "parts"))) {
                put_others(ctl, text);
        }
}

int cmd_storage_health(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call(ctl, "storage.health", NULL, &answer, &text);

        if (r == 0) {
                put_health(ctl, text);
                r = doc_is(doc_get(doc_root(text), "status"), "down") ? CTL_FAILED : 0;
        }
        free(answer);
        return r;
}

static int clear(struct ctl *ctl, const char *what) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_confirm(ctl, "Delete %s%s from the storage for ever?", strcmp(what, "all") == 0 ? "" : "all ",
                strcmp(what, "all") == 0 ? "everything" : what);

        if (r) {
                return r;
        }
        r = ctl_call_text(ctl, "storage.clear", "what", what, &answer, &text);
        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, doc_root(text));
        } else if (r == 0 && !ctl->quiet) {
                struct doc_each each = doc_each(doc_get(doc_root(text), "cleared"));
                const char *gap = "Deleted ";

                while (doc_next(&each)) {
                        om_buf_puts(&ctl->out, gap);
                        view_put_raw(&ctl->out, each.value);
                        om_buf_putc(&ctl->out, ' ');
                        view_put_raw(&ctl->out, each.key);
                        gap = ", ";
                }
                om_buf_puts(&ctl->out, *gap == 'D' ? "Nothing to delete.\n" : ".\n");
        }
        free(answer);
        return r;
}

int cmd_storage_clear(struct ctl *ctl) { return clear(ctl, args_text(&ctl->args, "what")); }

int cmd_storage_clear_agents(struct ctl *ctl) { return clear(ctl, "agents"); }

int cmd_storage_clear_results(struct ctl *ctl) { return clear(ctl, "results"); }

int cmd_storage_clear_metrics(struct ctl *ctl) { return clear(ctl, "metrics"); }

int cmd_storage_clear_all(struct ctl *ctl) { return clear(ctl, "all"); }

/* -- queries ------------------------------------------------------------------------------------------------------- */

enum { QUERY_COLUMNS_MAX = 32 /* as wide as a table can be */, QUERY_GRACE_MS = 2000 };

/* A field of RFC 4180: quoted where it must be. null is nothing, an empty text is "". */
static void put_csv(struct om_buf *b, struct om_json_value v) {
        struct om_arena arena = { 0 };
        struct om_span text = doc_text(v, &arena);
        bool quote = v.type == OM_JSON_STRING && text.len == 0;

        for (size_t i = 0; i < text.len && !quote; i++) {
                quote = strchr(",\"\r\n", text.p[i]) || (text.p[i] == ' ' && (i == 0 || i == text.len - 1));
        }
        if (doc_there(v) && quote) {
                om_buf_putc(b, '"');
                for (size_t i = 0; i < text.len; i++) {
                        om_buf_puts(b, text.p[i] == '"' ? "\"" : "");
                        om_buf_putc(b, text.p[i]);
                }
                om_buf_putc(b, '"');
        } else if (doc_there(v)) {
                om_buf_put_span(b, text);
        }
        om_arena_deinit(&arena);
}

/* One line of columns or of a row. */
static void put_line(struct ctl *ctl, struct om_json_value row) {
        struct doc_each each = doc_each(row);
        const char *gap = "";

        while (doc_next(&each)) {
                om_buf_puts(&ctl->out, gap);
                gap = ctl->format == FORMAT_CSV ? "," : "\t";
                ctl->format == FORMAT_CSV ? put_csv(&ctl->out, each.value) : view_put_raw(&ctl->out, each.value);
        }
        om_buf_puts(&ctl->out, ctl->format == FORMAT_CSV ? "\r\n" : "\n");
}

static void put_lines(struct ctl *ctl, struct om_json_value root) {
        struct doc_each rows = doc_each(doc_get(root, "rows"));

        if (ctl->format == FORMAT_CSV) {
                put_line(ctl, doc_get(root, "columns"));
        }
        while (doc_next(&rows)) {
                put_line(ctl, rows.value);
        }
}

/* A column of numbers stands to the right: of which the first row that has a value decides. */
static bool is_numeric(struct om_json_value rows, size_t column) {
        struct doc_each each = doc_each(rows);

        while (doc_next(&each)) {
                struct doc_each cells = doc_each(each.value);

                for (size_t i = 0; i <= column && doc_next(&cells); i++) {
                }
                if (doc_there(cells.value)) {
                        return cells.value.type == OM_JSON_NUMBER;
                }
        }
        return false;
}

static void put_query_table(struct ctl *ctl, struct om_json_value root) {
        struct om_json_value names = doc_get(root, "columns"), rows = doc_get(root, "rows");
        struct doc_each each = doc_each(names);
        struct om_arena arena = { 0 };
        size_t n = doc_count(names), at = 0;
        struct table_column *columns = om_arena_alloc(&arena, (n + 1) * sizeof(*columns));
        struct table table;

        for (; columns && doc_next(&each); at++) {
                struct om_buf safe = OM_BUF_INIT;
                struct om_span name;

                text_put_safe(&safe, doc_text(each.value, &arena));
                name = om_arena_copy(&arena, om_buf_span(&safe));
                om_buf_deinit(&safe);
                columns[at] = (struct table_column){ .title = name.p ? name.p : "", .right = is_numeric(rows, at) };
        }
        table_init(&table, columns, columns ? n : 0);
        for (each = doc_each(rows); columns && doc_next(&each);) {
                struct doc_each cells = doc_each(each.value);

                while (doc_next(&cells)) {
                        struct om_buf line = OM_BUF_INIT;

                        doc_scalar(cells.value)
                                ? om_buf_put_span(&line, doc_there(cells.value) ? doc_text(cells.value, &arena) : OM_SPAN(""))
                                : doc_put_line(&line, cells.value, 0);
                        table_add(&table, om_buf_span(&line), STYLE_NONE);
                        table.failed |= line.failed;
                        om_buf_deinit(&line);
                }
        }
        if (doc_count(rows) == 0) {
                ctl_say(ctl, "No rows.");
        } else {
                table_put(ctl, &ctl->out, &table, ctl->width);
        }
        table_deinit(&table);
        om_arena_deinit(&arena);
}

int cmd_storage_query(struct ctl *ctl) {
        const char *query = args_text(&ctl->args, "query");
        struct om_buf input = OM_BUF_INIT, params = OM_BUF_INIT;
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = strcmp(query, "-") == 0 ? input_read_file("-", &input) : 0;

        query = input.len ? ctl_text(&input) : query;
        if (r < 0) {
                return ctl_usage(ctl, "QUERY: %s", strerror(-r));
        }
        om_buf_putc(&params, '{');
        ctl_put_text(&params, "query", query);
        ctl_put_int(&params, "limit", args_number(&ctl->args, "limit", 100));
        ctl->timeout_ms += ctl->client ? 0 : QUERY_GRACE_MS; /* the client's own: the storage ends the query first, and says so */
        ctl_put_int(&params, "timeout_ms", ctl->timeout_ms - QUERY_GRACE_MS);
        om_buf_putc(&params, '}');
        r = ctl_call_buf(ctl, "storage.query", &params, &answer, &text);
        if (r == 0 && (ctl->format == FORMAT_CSV || ctl->format == FORMAT_COMPACT)) {
                put_lines(ctl, doc_root(text));
        } else if (r == 0 && ctl->format == FORMAT_TABLE && doc_count(doc_get(doc_root(text), "columns")) > QUERY_COLUMNS_MAX) {
                view_put_tree(ctl, doc_root(text));
        } else if (r == 0 && !view_plain(ctl, text, NULL, NULL)) {
                put_query_table(ctl, doc_root(text));
        }
        if (r == 0 && ctl->format != FORMAT_JSON && doc_true(doc_get(doc_root(text), "truncated"))) {
                ctl_note(ctl, "There are more rows: --limit N (at most 10000).");
        }
        free(answer);
        om_buf_deinit(&input);
        return r;
}

/* -- settings ------------------------------------------------------------------------------------------------------ */

static int call_key(struct ctl *ctl, const char *method, const char *value, char **ret, struct om_span *ret_text) {
        struct om_buf params = OM_BUF_INIT;

        om_buf_putc(&params, '{');
        ctl_put_text(&params, "key", args_text(&ctl->args, "key"));
        ctl_put_raw(&params, "value", value);
        om_buf_putc(&params, '}');
        return ctl_call_buf(ctl, method, &params, ret, ret_text);
}

int cmd_config_get(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = call_key(ctl, "config.get", NULL, &answer, &text);

        if (r == 0) {
                struct om_json_value value = doc_get(doc_root(text), "value");

                if (ctl->format == FORMAT_COMPACT) {
                        view_put_raw(&ctl->out, value);
                        om_buf_putc(&ctl->out, '\n');
                } else if (ctl->format == FORMAT_TREE) {
                        view_put_tree(ctl, value);
                } else {
                        view_put_json(ctl, value);
                }
        }
        free(answer);
        return r;
}

int cmd_config_set(struct ctl *ctl) {
        const char *value = args_text(&ctl->args, "value");
        struct om_buf quoted = OM_BUF_INIT;
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r;

        if (args_has(&ctl->args, "text") || om_json_check(om_span_of(value), OM_DEPTH_MAX - 4, NULL) < 0) {
                om_buf_json_span(&quoted, om_span_of(value));
                value = ctl_text(&quoted);
        }
        r = value ? call_key(ctl, "config.set", value, &answer, &text) : ctl_fail(ctl, CTL_FAILED, "out of memory");
        if (r == 0) {
                ctl_say(ctl, "%s = %s", args_text(&ctl->args, "key"), value);
        }
        free(answer);
        om_buf_deinit(&quoted);
        return r;
}

int cmd_config_list(struct ctl *ctl) {
        static const struct table_column columns[] = { { .title = "KEY", .keep = true }, { .title = "VALUE" } };
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call_text(ctl, "config.list", "prefix", args_text(&ctl->args, "prefix"), &answer, &text);

        if (r == 0) {
                struct om_json_value config = doc_get(doc_root(text), "config");
                struct doc_each each = doc_each(config);
                struct table table;

                table_init(&table, columns, 2);
                if (ctl->format == FORMAT_JSON) {
                        view_put_json(ctl, config);
                        each.end = true;
                } else if (ctl->format == FORMAT_TREE) {
                        view_put_tree(ctl, config);
                        each.end = true;
                }
                while (doc_next(&each)) {
                        if (ctl->format == FORMAT_COMPACT) {
                                view_put_raw(&ctl->out, each.key);
                                om_buf_putc(&ctl->out, '\t');
                                view_put_raw(&ctl->out, each.value);
                                om_buf_putc(&ctl->out, '\n');
                        } else if (args_has(&ctl->args, "prefix") || each.key.text.p[1] != '_') {
                                struct om_arena arena = { 0 };
                                struct om_buf line = OM_BUF_INIT;

                                table_add(&table, doc_text(each.key, &arena), STYLE_NAME);
                                doc_put_line(&line, each.value, 0);
                                table_add(&table, om_buf_span(&line), STYLE_NONE);
                                om_buf_deinit(&line);
                                om_arena_deinit(&arena);
                        }
                }
                if (ctl->format == FORMAT_TABLE && table.n_cells == 0) {
                        ctl_say(ctl, "No settings.");
                }
                table_put(ctl, &ctl->out, &table, ctl->width);
                table_deinit(&table);
        }
        free(answer);
        return r;
}

int cmd_config_delete(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_confirm(ctl, "Delete the setting %s?", args_text(&ctl->args, "key"));

        r = r ? r : call_key(ctl, "config.delete", NULL, &answer, &text);
        if (r == 0 && !doc_true(doc_get(doc_root(text), "deleted"))) {
                r = ctl_fail(ctl, CTL_NOT_FOUND, "no setting \"%s\"", args_text(&ctl->args, "key"));
        } else if (r == 0) {
                ctl_say(ctl, "Deleted %s.", args_text(&ctl->args, "key"));
        }
        free(answer);
        return r;
}
