/* SPDX-License-Identifier: Apache-2.0 */
/* Laying out a table: see table.h. Two spaces part the columns; a title is never a reason to cut a cell. */
#include "table.h"
#include "text.h"

#include <stdlib.h>

enum {
        GAP = 2,          /* spaces between columns */
        COLUMN_MIN = 8,   /* a column that is cut keeps so much */
        COLUMNS_MAX = 32, /* more than any table of ours has */
};

void table_init(struct table *t, const struct table_column *columns, size_t n_columns) {
        *t = (struct table){ .columns = columns, .n_columns = n_columns < COLUMNS_MAX ? n_columns : COLUMNS_MAX };
}

void table_deinit(struct table *t) {
        om_arena_deinit(&t->arena);
        free(t->cells);
        t->cells = NULL;
        t->n_cells = t->cap = 0;
}

void table_add(struct table *t, struct om_span text, enum ctl_style style) {
        struct om_buf safe = OM_BUF_INIT;
        struct om_span copy;

        if (t->n_cells == t->cap) {
                size_t cap = t->cap ? 2 * t->cap : 64;
                struct table_cell *more = realloc(t->cells, cap * sizeof(*more));

                if (!more) {
                        t->failed = true;
                        return;
                }
                t->cells = more;
                t->cap = cap;
        }
        text_put_safe(&safe, text);
        copy = om_arena_copy(&t->arena, om_buf_span(&safe));
        t->failed |= safe.failed || !copy.p;
        om_buf_deinit(&safe);
        if (!copy.p) {
                copy = OM_SPAN("");
        }
        t->cells[t->n_cells++] = (struct table_cell){ copy, text_width(copy), style };
}

static unsigned total_width(const unsigned *widths, size_t n) {
        unsigned total = 0, used = 0;

        for (size_t i = 0; i < n; i++) {
                total += widths[i];
                used += widths[i] > 0;
        }
        return total + (used ? GAP * (used - 1) : 0);
}

/* Takes `excess` columns off, each time one from the widest that may be cut. */
static unsigned cut_widest(const struct table *t, unsigned *widths, unsigned excess, bool keepers) {
        while (excess > 0) {
                size_t widest = t->n_columns;

                for (size_t i = 0; i < t->n_columns; i++) {
                        if (widths[i] > COLUMN_MIN && (keepers || !t->columns[i].keep) && !t->columns[i].right &&
                                (widest == t->n_columns || widths[i] > widths[widest])) {
                                widest = i;
                        }
                }
                if (widest == t->n_columns) {
                        break;
                }
                widths[widest]--;
                excess--;
        }
        return excess;
}

void table_fit(const struct table *t, unsigned width, unsigned *out) {
        for (size_t i = 0; i < t->n_columns; i++) {
                out[i] = 0;
                for (size_t k = i; k < t->n_cells; k += t->n_columns) {
                        out[i] = t->cells[k].width > out[i] ? t->cells[k].width : out[i];
                }
                if (out[i]) {
                        unsigned title = text_width(om_span_of(t->columns[i].title));

                        out[i] = title > out[i] ? title : out[i];
                }
        }
        unsigned total = total_width(out, t->n_columns);
        if (width && total > width) {
                cut_widest(t, out, cut_widest(t, out, total - width, false), true);
        }
}

static void put_cell(struct ctl *ctl, struct om_buf *b, struct om_span text, enum ctl_style style, unsigned width, bool right, bool last) {
        struct om_buf cut = OM_BUF_INIT;
        unsigned used = text_put_cut(&cut, text, width, ctl->ascii);

        if (right) {
                text_put_spaces(b, width - used);
        }
        ctl_style(ctl, b, style);
        om_buf_put_span(b, om_buf_span(&cut));
        ctl_style_end(ctl, b);
        if (!last) {
                text_put_spaces(b, (right ? 0 : width - used) + GAP);
        }
        b->failed |= cut.failed;
        om_buf_deinit(&cut);
}

void table_put(struct ctl *ctl, struct om_buf *b, struct table *t, unsigned width) {
        unsigned widths[COLUMNS_MAX];
        size_t last = 0;

        b->failed |= t->failed;
        table_fit(t, width, widths);
        for (size_t i = 0; i < t->n_columns; i++) {
                last = widths[i] ? i : last;
        }
        for (size_t i = 0; i < t->n_columns; i++) {
                if (widths[i] && t->n_cells) {
                        put_cell(ctl, b, om_span_of(t->columns[i].title), STYLE_HEAD, widths[i], t->columns[i].right, i == last);
                }
        }
        if (t->n_cells) {
                om_buf_putc(b, '\n');
        }
        for (size_t k = 0; k + t->n_columns <= t->n_cells; k += t->n_columns) {
                for (size_t i = 0; i < t->n_columns; i++) {
                        if (widths[i]) {
                                put_cell(ctl, b, t->cells[k + i].text, t->cells[k + i].style, widths[i], t->columns[i].right, i == last);
                        }
                }
                while (b->len && b->data[b->len - 1] == ' ') { /* empty cells at the end */
                        b->len--;
                }
                om_buf_putc(b, '\n');
        }
}
