/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_TABLE_H
#define OM_CTL_TABLE_H
/*
 * A table for people: columns aligned by display width, numbers to the right, fitted into the terminal by cutting the widest column.
 * A column in which nothing stands is left out. Thread: one.
 */
#include "ctl.h"

struct table_column {
        const char *title;
        bool right; /* numbers */
        bool keep;  /* cut last: an id is of use only as a whole */
};

struct table_cell {
        struct om_span text; /* safe for a terminal; in the table's arena or static */
        unsigned width;
        enum ctl_style style;
};

struct table {
        const struct table_column *columns;
        size_t n_columns;
        struct table_cell *cells; /* row by row */
        size_t n_cells, cap;
        bool failed; /* out of memory */
        struct om_arena arena;
};

void table_init(struct table *t, const struct table_column *columns, size_t n_columns);
void table_deinit(struct table *t);
/* Adds the next cell, row by row. `text` is copied, and made safe for a terminal. */
void table_add(struct table *t, struct om_span text, enum ctl_style style);
/* Appends the table, each line ended. `width`: columns to fit into, 0 for no limit. */
void table_put(struct ctl *ctl, struct om_buf *b, struct table *t, unsigned width);
/* What table_put() would make of the columns: out[i] columns wide, 0 where left out. For tests, and for callers that draw by themselves. */
void table_fit(const struct table *t, unsigned width, unsigned *out);

#endif
