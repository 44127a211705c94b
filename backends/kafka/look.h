/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_LOOK_H
#define OM_KAFKA_LOOK_H
/*
 * Looking in: which topics and groups there are, and how far they are. Asks the brokers, and so blocks: on the worker of calls only, but
 * for the snapshot.
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

#endif
