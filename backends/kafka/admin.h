/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_ADMIN_H
#define OM_KAFKA_ADMIN_H
/*
 * What is asked of the brokers to look in and to change: which topics and groups there are, how far they are, what stands in a topic. All
 * of it blocks: on the worker of calls only.
 */
#include "bus_state.h"

struct seen_part {
        int64_t log_low, log_high, retry_low, retry_high;
        bool known; /* the group has committed, or this daemon serves it */
        struct kafka_state state;
};
struct seen_group {
        char kname[KAFKA_NAME_MAX + 1];  /* first */
        char part[KAFKA_GROUP_PART + 1]; /* kafka_name_group_part() */
        struct om_span topic, agent;     /* in the arena */
        int n_parts;
        struct seen_part *parts;
        struct seen_group *next; /* of its topic */
};
struct seen_topic {
        char kname[KAFKA_NAME_MAX + 1]; /* first */
        char part[KAFKA_GROUP_PART + 1];
        struct om_span topic;
        int n_parts;
        int64_t *low, *high;
        struct seen_group *groups;
        size_t n_groups;
};
/* What this daemon knows better than the brokers: taken on the loop before the call. */
struct snapshot {
        char kname[KAFKA_NAME_MAX + 1];
        int32_t p;
        char *text;
        size_t len;
        struct snapshot *next;
};
struct snapshot *kafka_snapshot(struct om_bus *b, struct om_span topic);
void kafka_snapshot_free(struct snapshot *s);

/* Each kind in the order of its names. */
struct seen {
        struct om_arena arena;
        struct seen_topic *topics;
        size_t n_topics;
        struct seen_group *groups;
        size_t n_groups;
        char (*dead)[KAFKA_NAME_MAX + 1]; /* dead-letter topics */
        size_t n_dead;
        bool names; /* there is a topic of names */
};
typedef bool kafka_wanted_fn(const void *ctx, const struct kafka_named *n);
bool kafka_is_topic(const void *ctx, const struct kafka_named *n); /* ctx: struct om_span, the one; or any */
/* The topics that are wanted, and their groups. All that is wanted is asked for at once: that takes as many requests as one does. */
int kafka_look(
        struct om_bus *b, kafka_wanted_fn *wanted, const void *ctx, const struct snapshot *snap, struct seen *ret, struct om_error *e);
int kafka_look_names(
        struct om_bus *b, kafka_wanted_fn *wanted, const void *ctx, struct seen *ret, struct om_error *e); /* no offsets, no text */
void kafka_seen_name(struct om_bus *b, struct seen *s); /* topics and agents as text: kafka_look() has done that */
bool kafka_seen_dead(const struct seen *s, const char *kname);
struct seen_topic *kafka_seen_topic(const struct seen *s, const char *kname); /* or NULL */
struct seen_group *kafka_seen_group(const struct seen *s, const char *kname); /* or NULL */
void kafka_seen_deinit(struct seen *s);
struct om_bus_group_row kafka_group_row(const struct seen_group *g);
/* Below this all groups of the topic have finished; −1: nobody can say, or there is none. */
int64_t kafka_finished_below(const struct seen_topic *t, int part);
/* Whether all groups have finished the offset; *ret_until: up to where that is so. */
bool kafka_done_by_all(const struct seen_topic *t, int part, int64_t offset, int64_t *ret_until);
uint64_t kafka_depth(const struct seen_topic *t);

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
int kafka_watermarks(struct om_bus *b, rd_kafka_topic_partition_list_t *ends, rd_kafka_topic_partition_list_t *begins, struct om_error *e);
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
