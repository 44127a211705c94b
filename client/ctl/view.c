/* SPDX-License-Identifier: Apache-2.0 */
/* Answers in each format: see view.h. */
#include "view.h"
#include "doc.h"
#include "table.h"
#include "text.h"

#include <ctype.h>
#include <stdlib.h>

enum { COLUMNS_MAX = 32 };

/* -- values -------------------------------------------------------------------------------------------------------- */

enum ctl_style view_status_style(struct om_json_value v) {
        static const struct {
                const char *word;
                enum ctl_style style;
        } words[] = { { "up", STYLE_GOOD }, { "ready", STYLE_GOOD }, { "running", STYLE_GOOD }, { "completed", STYLE_GOOD },
                { "strong", STYLE_NONE }, { "weak", STYLE_WARN }, { "degraded", STYLE_WARN }, { "stopping", STYLE_WARN },
                { "paused", STYLE_WARN }, { "down", STYLE_BAD }, { "failed", STYLE_BAD } };

        for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
                if (doc_is(v, words[i].word)) {
                        return words[i].style;
                }
        }
        return STYLE_NONE;
}

static void put_text(struct om_buf *b, struct om_json_value v) {
        struct om_arena arena = { 0 };

        om_buf_put_span(b, doc_text(v, &arena));
        om_arena_deinit(&arena);
}

static void put_list(struct om_buf *b, struct om_json_value v) {
        struct doc_each each = doc_each(v);
        bool first = true;

        if (doc_scalar(v)) {
                put_text(b, v);
                return;
        }
        while (doc_next(&each)) {
                struct om_json_value name = doc_get(each.value, "name");

                om_buf_puts(b, first ? "" : ", ");
                first = false;
                if (doc_scalar(name) || doc_scalar(each.value)) {
                        put_text(b, name.type ? name : each.value);
                } else {
                        doc_put_line(b, each.value, 0);
                }
        }
}

static void put_lower(struct om_buf *b, const char *text) {
        for (; *text; text++) {
                om_buf_putc(b, (char) tolower((unsigned char) *text));
        }
}

void view_put_value(
        struct ctl *ctl, struct om_buf *b, struct om_json_value v, const struct view_column *column, enum ctl_style *ret_style) {
        double number = doc_number(v, -1);
        bool numeric = v.type == OM_JSON_NUMBER;

        *ret_style = STYLE_NONE;
        if (!doc_there(v)) {
                return;
        }
        switch (column->kind) {
        case VIEW_STATUS:
                *ret_style = view_status_style(v);
                put_text(b, v);
                break;
        case VIEW_BAD:
                *ret_style = numeric && number > 0 ? STYLE_BAD : STYLE_NONE;
                put_text(b, v);
                break;
        case VIEW_TIME:
                numeric ? text_put_ago(b, number, ctl->now) : put_text(b, v);
                break;
        case VIEW_MS:
                numeric ? text_put_duration(b, number / 1000, ctl->ascii) : put_text(b, v);
                break;
        case VIEW_SECONDS:
                numeric ? text_put_duration(b, number, ctl->ascii) : put_text(b, v);
                break;
        case VIEW_SIZE:
                numeric ? text_put_size(b, number) : put_text(b, v);
                break;
        case VIEW_YES:
                if (doc_true(v)) {
                        *ret_style = STYLE_WARN;
                        put_lower(b, column->title);
                }
                break;
        case VIEW_JSON:
                doc_put_line(b, v, 0);
                break;
        case VIEW_LIST:
                put_list(b, v);
                break;
        case VIEW_TEXT:
        case VIEW_ID:
        case VIEW_NUMBER:
                if (doc_scalar(v)) {
                        put_text(b, v);
                } else {
                        doc_put_line(b, v, 0);
                }
                break;
        }
}

void view_put_raw(struct om_buf *b, struct om_json_value v) {
        if (v.type == OM_JSON_STRING) {
                struct om_arena arena = { 0 };

                text_put_field(b, doc_text(v, &arena));
                om_arena_deinit(&arena);
        } else if (doc_there(v)) {
                doc_put_line(b, v, DOC_SAFE);
        }
}

/* -- formats ------------------------------------------------------------------------------------------------------- */

void view_put_json(struct ctl *ctl, struct om_json_value v) {
        doc_put_pretty(&ctl->out, v, ctl->out_tty ? DOC_SAFE : 0, ctl, 0);
        om_buf_putc(&ctl->out, '\n');
}

static void put_compact(struct ctl *ctl, struct om_json_value record, const struct view_column *columns) {
        for (const struct view_column *c = columns; c->title; c++) {
                if (c != columns) {
                        om_buf_putc(&ctl->out, '\t');
                }
                view_put_raw(&ctl->out, doc_get(record, c->path));
        }
        om_buf_putc(&ctl->out, '\n');
}

bool view_plain(struct ctl *ctl, struct om_span text, const char *array, const struct view_column *compact) {
        struct om_json_value root = doc_root(text);

        switch (ctl->format) {
        case FORMAT_JSON:
                view_put_json(ctl, root);
                return true;
        case FORMAT_TREE:
                view_put_tree(ctl, root);
                return true;
        case FORMAT_COMPACT:
                if (compact && array) {
                        struct doc_each each = doc_each(doc_get(root, array));

                        while (doc_next(&each)) {
                                put_compact(ctl, each.value, compact);
                        }
                        return true;
                }
                if (compact) {
                        put_compact(ctl, root, compact);
                        return true;
                }
                return false;
        case FORMAT_TABLE:
        case FORMAT_CSV:
                break;
        }
        return false;
}

void view_list(struct ctl *ctl, struct om_span text, const char *array, const struct view_column *columns, const char *empty) {
        struct om_json_value list = doc_get(doc_root(text), array), one = list.type == OM_JSON_OBJECT ? list : (struct om_json_value){ 0 };
        struct doc_each each = doc_each(list);
        struct table_column titles[COLUMNS_MAX];
        struct table table;
        size_t n = 0, rows = 0;

        if (view_plain(ctl, text, array, columns)) {
                return;
        }
        for (; columns[n].title && n < COLUMNS_MAX; n++) {
                enum view_kind kind = columns[n].kind;

                titles[n] = (struct table_column){ .title = columns[n].title,
                        .right = kind == VIEW_NUMBER || kind == VIEW_BAD || kind == VIEW_MS || kind == VIEW_SECONDS || kind == VIEW_SIZE,
                        .keep = kind == VIEW_ID || kind == VIEW_TIME || kind == VIEW_STATUS };
        }
        table_init(&table, titles, n);
        for (; one.type ? rows == 0 : doc_next(&each); rows++) {
                struct om_json_value record = one.type ? one : each.value;

                for (size_t i = 0; i < n; i++) {
                        struct om_buf cell = OM_BUF_INIT;
                        enum ctl_style style;

                        view_put_value(ctl, &cell, doc_get(record, columns[i].path), &columns[i], &style);
                        table_add(&table, om_buf_span(&cell), style);
                        table.failed |= cell.failed;
                        om_buf_deinit(&cell);
                }
        }
        if (rows) {
                table_put(ctl, &ctl->out, &table, ctl->width);
        } else if (!ctl->quiet) {
                ctl_style(ctl, &ctl->out, STYLE_DIM);
                om_buf_puts(&ctl->out, empty);
                ctl_style_end(ctl, &ctl->out);
                om_buf_putc(&ctl->out, '\n');
        }
        table_deinit(&table);
}

/* A value that is an object or a long array stands over several lines, below its name. */
static void put_field(struct ctl *ctl, const struct view_column *c, struct om_json_value v, unsigned title_width) {
        struct om_buf cell = OM_BUF_INIT, safe = OM_BUF_INIT;
        enum ctl_style style;
        unsigned width = text_width(om_span_of(c->title));

        ctl_style(ctl, &ctl->out, STYLE_HEAD);
        om_buf_puts(&ctl->out, c->title);
        ctl_style_end(ctl, &ctl->out);
        text_put_spaces(&ctl->out, title_width - width + 2);
        if (c->kind == VIEW_JSON && !doc_scalar(v)) {
                doc_put_pretty(&ctl->out, v, DOC_SAFE, ctl, title_width + 2);
        } else {
                view_put_value(ctl, &cell, v, c, &style);
                text_put_safe(&safe, om_buf_span(&cell));
                ctl_style(ctl, &ctl->out, style);
                om_buf_put_span(&ctl->out, om_buf_span(&safe));
                ctl_style_end(ctl, &ctl->out);
                if (c->kind == VIEW_TIME && v.type == OM_JSON_NUMBER) {
                        om_buf_puts(&ctl->out, "  ");
                        ctl_style(ctl, &ctl->out, STYLE_DIM);
                        text_put_date(&ctl->out, doc_number(v, 0));
                        ctl_style_end(ctl, &ctl->out);
                }
        }
        om_buf_putc(&ctl->out, '\n');
        ctl->out.failed |= cell.failed | safe.failed;
        om_buf_deinit(&cell);
        om_buf_deinit(&safe);
}

/* Whether a record's field is worth a line. null is, where any value may stand: a result can be null. */
static bool worth_a_line(struct om_json_value v, enum view_kind kind) {
        switch (v.type) {
        case OM_JSON_NULL:
                return kind == VIEW_JSON;
        case OM_JSON_FALSE:
                return kind != VIEW_YES;
        case OM_JSON_ARRAY:
                return kind != VIEW_LIST || doc_count(v) > 0;
        default:
                return v.type != 0;
        }
}

void view_record(struct ctl *ctl, struct om_span text, const struct view_column *columns) {
        struct om_json_value root = doc_root(text);
        unsigned title_width = 0;

        if (view_plain(ctl, text, NULL, columns)) {
                return;
        }
        for (const struct view_column *c = columns; c->title; c++) {
                unsigned w = text_width(om_span_of(c->title));

                title_width = worth_a_line(doc_get(root, c->path), c->kind) && w > title_width ? w : title_width;
        }
        for (const struct view_column *c = columns; c->title; c++) {
                struct om_json_value v = doc_get(root, c->path);

                if (worth_a_line(v, c->kind)) {
                        put_field(ctl, c, v, title_width);
                }
        }
}

void view_more(struct ctl *ctl, struct om_span text) {
        if (ctl->format == FORMAT_TABLE && ctl->out_tty && !ctl->quiet && doc_there(doc_get(doc_root(text), "cursor"))) {
                ctl_style(ctl, &ctl->out, STYLE_DIM);
                om_buf_puts(&ctl->out, "There are more: --limit N, or --all.");
                ctl_style_end(ctl, &ctl->out);
                om_buf_putc(&ctl->out, '\n');
        }
}
