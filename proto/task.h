/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_TASK_H
#define OM_TASK_H
/*
 * A task's shape: what may stand in it, and its record.
 *
 * A task comes from a client as JSON; om_task_parse() checks it and finds its parts without copying. om_task_write() makes
 * the *record*: the JSON object that a bus keeps and an agent receives, with id and created_at filled in, absent fields left
 * out and the bytes of `content`, `headers` and `webhook` as they came. Reading a record again gives the same task.
 *
 * Thread: any.
 */
#include "json_scan.h"

enum {
        OM_TOPIC_MAX = 200,  /* bytes of a topic */
        OM_NAME_MAX = 200,   /* bytes of an agent's name, a key, an idempotency key, an id, a tenant, a source … */
        OM_PRIORITY_MAX = 9, /* 9 is served first; 0 is the default */
        OM_ID_LEN = 36,      /* characters of an id that we make: a UUID, version 4 (RFC 9562) */
};
#define OM_DELAY_MAX_MS ((int64_t) 366 * 24 * 3600 * 1000) /* of delay_ms and ttl_ms */

struct om_task {
        /* decoded strings; absent (p == NULL) where the task had none */
        struct om_span id, topic, key, idempotency_key, correlation_id, causation_id, source, tenant_id, traceparent, reply_to;
        /* raw JSON */
        struct om_span content;    /* always there */
        struct om_span webhook;    /* a string or an object */
        struct om_span headers;    /* an object of strings */
        struct om_span created_at; /* the number as it was written */
        int64_t created_ms;        /* the same in milliseconds since 1970; 0 where absent */
        int64_t ttl_ms, delay_ms;  /* 0: none */
        uint32_t delivery_attempts;
        uint8_t priority;
        struct om_arena arena; /* strings that had escapes */
};

/* Reads and checks a task: an object that om_json_* has accepted. `where` begins the messages ("task", "tasks[3]"). On failure
 * nothing needs freeing. The spans point into `object` or into the task's arena: om_task_deinit() before either goes. */
int om_task_parse(struct om_span object, const char *where, struct om_task *ret, struct om_error *e);
/* The same of what comes next in a text that was checked: the position is behind it then, and anywhere after an error. */
int om_task_parse_at(struct om_json *j, const char *where, struct om_task *ret, struct om_error *e);
void om_task_deinit(struct om_task *t);

/* Appends the record. `t->id` and `t->topic` are set by now; created_ms is written where created_at is absent. */
void om_task_write(struct om_buf *b, const struct om_task *t);

/* A topic to publish to: not empty, at most OM_TOPIC_MAX bytes of UTF-8, no control characters, does not start with "omni-dlq:", does
 * not contain ":dlq". `what` names the field in the message. */
int om_topic_check(struct om_span topic, const char *what, struct om_error *e);
/* An agent's name or another short identifier: not empty, at most OM_NAME_MAX bytes, no control characters. */
int om_name_check(struct om_span name, const char *what, struct om_error *e);

/* Patterns, for buses that have them: topics are words parted by dots, `*` stands for one word, `#` for none or more (as in AMQP 0-9-1's
 * topic exchange). A topic with neither as a whole word is no pattern. */
bool om_topic_is_pattern(struct om_span topic);
bool om_topic_matches(struct om_span pattern, struct om_span topic);

/* A fresh id: OM_ID_LEN characters and a zero byte. Random from getrandom(2), fetched in blocks; thread-local. */
void om_task_id_new(char ret_id[OM_ID_LEN + 1]);
/* "group:{topic}:{agent}", the group's name on every bus (the Python OmniDaemon's). */
void om_group_name(struct om_buf *b, struct om_span topic, struct om_span agent);

#endif
