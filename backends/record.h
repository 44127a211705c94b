/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RECORD_H
#define OM_RECORD_H
/*
 * Between a task's record and a message of a broker that other programs use too: which headers a message carries, whether a message is a
 * record of ours, and the record that another program's message becomes.
 *
 * Thread: any.
 */
#include "../proto/task.h"

/* Whether the bytes are a record as om_task_write() makes it, of this topic (NULL: of any). */
bool om_record_is(struct om_span data, const char *topic);

struct om_record_header {
        struct om_span name, value;
};

/* Calls `put` for each header that a message of this task has: traceparent, the task's own, and with `cloudevents` the attributes of
 * CloudEvents 1.0 (https://github.com/cloudevents/spec), their names begun by ce_prefix ("ce-", "ce_"). Spans are borrowed during the call.
 * A header of the task's named as one of CloudEvents' is left to the task. -ENOMEM, or what `put` returned below 0. */
int om_record_headers(const struct om_task *t, bool cloudevents, const char *ce_prefix,
        int (*put)(void *ctx, struct om_span name, struct om_span value), void *ctx);

/* Another program's message. */
struct om_record_foreign {
        struct om_span id;    /* absent: `place` */
        struct om_span place; /* what names the message on the bus */
        struct om_span topic;
        struct om_span data;
        int64_t created_ms; /* 0: now */
        struct om_span source, traceparent;
        const struct om_record_header *headers;
        size_t n_headers;
};
/* Its record: JSON is the content, and what is none is a string (absent data: null). Bytes that are no UTF-8 become U+FFFD. In `arena`;
 * absent when out of memory. */
struct om_span om_record_make(const struct om_record_foreign *f, struct om_arena *arena);

#endif
