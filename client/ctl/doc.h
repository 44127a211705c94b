/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_DOC_H
#define OM_CTL_DOC_H
/*
 * Reading what the daemon answered, and writing JSON again.
 *
 * No tree is made: a value is a span of the answer's text, which the library has checked. So numbers of any size, the order of members and
 * every escape come out as they came in, and an answer with a hundred thousand records costs its text and nothing more. Looking a member up
 * walks over the object. Thread: any.
 */
#include "../../proto/json_scan.h"

struct ctl;

/* `text` is valid JSON. */
struct om_json_value doc_root(struct om_span text);
/* The member at a path of names ("error.message"); type 0 when it is not there. */
struct om_json_value doc_get(struct om_json_value v, const char *path);
/* There, and not null. */
bool doc_there(struct om_json_value v);

/* The elements of an array or the members of an object; of anything else nothing. */
struct doc_each {
        struct om_json json;
        bool object, end;
        struct om_json_value key, value;
};
struct doc_each doc_each(struct om_json_value v);
bool doc_next(struct doc_each *each);
size_t doc_count(struct om_json_value v);

double doc_number(struct om_json_value v, double otherwise);
int64_t doc_int(struct om_json_value v, int64_t otherwise);
bool doc_true(struct om_json_value v);
bool doc_is(struct om_json_value v, const char *string);
/* A string decoded; the text of anything else as it is; empty when not there. */
struct om_span doc_text(struct om_json_value v, struct om_arena *arena);
bool doc_scalar(struct om_json_value v);

enum {
        DOC_SAFE = 1 << 0, /* what must not reach a terminal is written as \uXXXX: the same JSON */
};
/* On one line, without white space between values. */
void doc_put_line(struct om_buf *b, struct om_json_value v, unsigned flags);
/* Over several lines, indented by two; names in colour where `ctl` has colour on (NULL: none). No newline at the end. */
void doc_put_pretty(struct om_buf *b, struct om_json_value v, unsigned flags, struct ctl *ctl, unsigned indent);

#endif
