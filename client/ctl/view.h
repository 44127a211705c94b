/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_VIEW_H
#define OM_CTL_VIEW_H
/*
 * How an answer is shown, in each --format: a view names the columns, and the rest follows.
 *
 *   table    for people: times as "3 min ago", sizes and durations with units, states in colour
 *   json     the daemon's answer, indented; every byte of a task's content as it is
 *   compact  one line a record, the same columns, parted by tabs, no titles, raw values: for cut and awk
 *   tree     the whole answer as a tree
 *
 * Everything is appended to ctl->out. Thread: one.
 */
#include "ctl.h"

enum view_kind {
        VIEW_TEXT,
        VIEW_ID, /* as text; cut last */
        VIEW_NUMBER,
        VIEW_TIME,    /* Unix time */
        VIEW_MS,      /* a duration in milliseconds */
        VIEW_SECONDS, /* a duration in seconds */
        VIEW_SIZE,    /* bytes */
        VIEW_STATUS,  /* a word that has a colour */
        VIEW_YES,     /* true: the column's title as a word; false: nothing */
        VIEW_JSON,    /* any value */
        VIEW_LIST,    /* an array of strings, parted by commas; of objects: their names */
        VIEW_BAD,     /* a number that is red when it is not 0 */
};

struct view_column {
        const char *title; /* NULL ends the columns */
        const char *path;  /* in the record: "error.message" */
        enum view_kind kind;
};

/* Elements of the array (or the one object) at `array` ("" for the answer itself) of the answer `text`. `empty` is said when there are
 * none. */
void view_list(struct ctl *ctl, struct om_span text, const char *array, const struct view_column *columns, const char *empty);
/* After a list on a terminal: says so when the answer has a cursor, so that nobody takes a page for all there is. */
void view_more(struct ctl *ctl, struct om_span text);
/* One record: a line for each column that is there. */
void view_record(struct ctl *ctl, struct om_span text, const struct view_column *columns);
/* Where json, tree (and with `compact` NULL only these) are wanted, writes the answer and returns true. With compact columns these too. */
bool view_plain(struct ctl *ctl, struct om_span text, const char *array, const struct view_column *compact);

/* One value as text for people, or raw; *ret_style gets the colour of states. */
void view_put_value(struct ctl *ctl, struct om_buf *b, struct om_json_value v, const struct view_column *column, enum ctl_style *ret_style);
void view_put_raw(struct om_buf *b, struct om_json_value v);
enum ctl_style view_status_style(struct om_json_value v);

/* The answer as JSON (indented on its own lines), or as a tree (tree.c). */
void view_put_json(struct ctl *ctl, struct om_json_value v);
void view_put_tree(struct ctl *ctl, struct om_json_value v);

#endif
