/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_ADMIN_H
#define OM_KAFKA_ADMIN_H
/*
 * What is asked of the brokers about one topic or a few: how they are configured, what stands in them; and what is changed there. All of it
 * blocks: on the worker of calls only.
 */
#include "bus_state.h"

/* A question of the admin interface: init, the library's call with `options` and `queue`, wait, deinit. */
struct admin_ask {
        rd_kafka_queue_t *queue;
        rd_kafka_AdminOptions_t *options;
        rd_kafka_event_t *answer;
};
void kafka_ask_init(struct admin_ask *a, rd_kafka_t *rk, rd_kafka_admin_op_t op);
int kafka_ask_wait(struct admin_ask *a, const char *what, struct om_error *e); /* 0: the answer is there, maybe with errors in it */
void kafka_ask_deinit(struct admin_ask *a);

/* How long what is finished of each topic is kept, ms: its own retention, or the URL's (topic_config.c). `ret` is filled in any case. */
int kafka_retentions(struct om_bus *b, char (*knames)[KAFKA_NAME_MAX + 1], size_t n, int64_t *ret, struct om_error *e);
int kafka_retention_set(struct om_bus *b, const char *kname, int64_t ms, struct om_error *e);

/* How many partitions a topic has, once the brokers know at least `least`. */
int kafka_partitions_of(struct om_bus *b, const char *kname, int least, struct om_error *e);
int kafka_grow_topic(struct om_bus *b, const char *kname, int n, struct om_error *e); /* to n partitions */
/* Where a group that starts so begins in each of a topic's n partitions. */
int kafka_find_offsets(struct om_bus *b, const char *log, int n, enum om_start start, int64_t start_ms, int64_t *ret, struct om_error *e);

/* Calls fn for the messages of a partition, from ≤ offset < to, until it returns false. */
int kafka_read(struct om_bus *b, const char *kname, int32_t p, int64_t from, int64_t to, bool (*fn)(void *ctx, const rd_kafka_message_t *m),
        void *ctx, struct om_error *e);
/* A partition's entry, NULL: there is none. *at: where it is looked for first, and the next one then: who asks in the order of the list
 * goes along it once. */
const rd_kafka_topic_partition_t *kafka_in_list(const rd_kafka_topic_partition_list_t *list, const char *kname, int32_t p, int *at);
/* Waits for as long where one of the topics is not there. */
int kafka_watermarks(
        struct om_bus *b, rd_kafka_topic_partition_list_t *ends, rd_kafka_topic_partition_list_t *begins, int ms, struct om_error *e);
int kafka_bounds(struct om_bus *b, const char *kname, int64_t *ret_low, int64_t *ret_high, struct om_error *e); /* of partition 0 */
int kafka_delete_topics(struct om_bus *b, const char *const *knames, size_t n, size_t *ret_deleted, struct om_error *e);
int kafka_delete_records(struct om_bus *b, rd_kafka_topic_partition_list_t *before, struct om_error *e);

/* The whole of a name that was cut, NULL: not known. `read`: what others have written since is read for it. */
struct whole_name {
        UT_hash_handle hh;
        char kname[KAFKA_NAME_MAX + 1], topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
};
const struct whole_name *kafka_whole_name(struct om_bus *b, const char *kname, bool read);
void kafka_whole_name_note(struct om_bus *b, const char *kname, struct om_span topic, struct om_span agent); /* written if it was cut */

/* Dead letters of one group, brought up to what its topic holds now. */
struct dead_entry {
        UT_hash_handle hh;
        char place[48];
        int64_t offset;
        struct dead_entry *prev, *next; /* by offset */
};
struct dead_topic {
        UT_hash_handle hh;
        char kname[KAFKA_NAME_MAX + 1];
        int64_t next; /* up to here it was read */
        struct dead_entry *by_place, *list;
        size_t n;
};
int kafka_dead_scan(struct om_bus *b, const char *kname, struct dead_topic **ret, struct om_error *e);
/* A message as a dead letter; spans in the arena. False: it is none. */
bool kafka_letter_read(const rd_kafka_message_t *m, struct om_arena *arena, struct om_dead_letter *ret);

#endif
