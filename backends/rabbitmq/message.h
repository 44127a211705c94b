/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RABBITMQ_MESSAGE_H
#define OM_RABBITMQ_MESSAGE_H
/*
 * A task as a message, and a message as a task's record. Pure; thread: any.
 *
 * The body is the record, or, raw, the content alone. As properties go along: message-id (the task's id), timestamp, priority,
 * correlation-id, content-type, delivery-mode 2; as headers the task's own, `traceparent`, with `cloudevents` the attributes of CloudEvents
 * (named as its binding for AMQP has them, cloudEvents:id …), and what is ours:
 *
 *     omni-topic     the topic; what a headers exchange goes by
 *     omni-time      when it was published, in ms since 1970
 *     omni-attempt   attempts before; on what waits for a retry or was given back
 *     omni-due       not to be handed out before this, in ms since 1970
 *     omni-expires   not to be handed out after this
 *
 * What another program sent becomes a task: JSON is its content, and what is no JSON a string; message-id, correlation-id, `traceparent`
 * and the other headers are kept.
 */
#include "../../proto/task.h"
#include "settings.h"
#include "wire.h"

struct rmq_props {
        amqp_basic_properties_t p;
        struct rmq_table table;
        struct om_arena arena;
};
/* Of a task that is published now. */
void rmq_props_of_task(struct rmq_props *ret, const struct rmq_settings *s, const struct om_task *t);
/* Of a record that is moved: `attempts` before, not before `due_ms` or after `expires_ms` (0: none of it). */
void rmq_props_of_move(struct rmq_props *ret, struct om_span id, uint32_t attempts, int64_t due_ms, int64_t expires_ms);
/* To be called when all is there, once: the table is the properties' headers. */
void rmq_props_close(struct rmq_props *p);
void rmq_props_deinit(struct rmq_props *p);

struct rmq_meta { /* what the headers say */
        uint32_t attempts;
        int64_t time_ms, due_ms, expires_ms;
        bool counted; /* by the broker: a quorum queue */
};
struct rmq_meta rmq_meta_of(const amqp_basic_properties_t *p);
/* The record: `body` itself where it is one of this topic (NULL: of any), or made in `arena`. `id` is set to the id in it, in the body or
 * in the arena. Absent: out of memory. */
struct om_span rmq_record(struct om_span body, const amqp_basic_properties_t *p, const char *topic, struct om_span routing_key,
        struct om_arena *arena, struct om_span *ret_id);

#endif
