/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_NAMES_H
#define OM_KAFKA_NAMES_H
/*
 * How topics and agents are written as names of Kafka topics. Pure; thread: any.
 *
 * A Kafka topic's name is made of letters, digits, `.`, `_` and `-`, at most 249. With PREFIX "x" (without one, the "x." is not there), T
 * and A a topic and an agent as below:
 *
 *   x.T                   a topic: the same name, so that other programs' topics are topics of ours and the other way round
 *   x.omni-retry..T..A    the group of agent A: what waits for it alone (retries that do not fit elsewhere, replayed dead letters), and, by
 *                         being there, that the group is; as many partitions as T, and who is given one of them serves T's
 *   x.omni-dlq..T..A      its dead letters
 *   x.omni-wake           nothing that is kept: messages to it end a fetch that waits
 *   x.omni-names          the whole of names that were cut: compacted (bus_names.c)
 *
 * What a name cannot hold is written -.XX (hexadecimal), and so are a `.` at either end or behind another `.`, and the `-` of a "-." that
 * the topic itself has. So `..` is never in T or A and parts them. A name that would be too long is cut and ends with the mark
 * `-._` and a hash of the whole.
 */
#include "../../proto/buf.h"

enum {
        KAFKA_NAME_MAX = 249,   /* of Kafka */
        KAFKA_TOPIC_PART = 200, /* of T in a topic's name */
        KAFKA_GROUP_PART = 96,  /* of T and of A in a group's */
};

void kafka_name_encode(struct om_buf *b, struct om_span text, size_t max);
/* The text again. False where this is no name that kafka_name_encode() makes; of one that was cut the rest is not known, and it stands as
 * it is. */
bool kafka_name_decode(struct om_buf *b, struct om_span name);

enum kafka_kind { KAFKA_LOG, KAFKA_RETRY, KAFKA_DEAD, KAFKA_WAKE, KAFKA_NAMES };
/* Zero-terminated, in `out`. `agent` for KAFKA_RETRY and KAFKA_DEAD, neither for KAFKA_WAKE and KAFKA_NAMES. False: out of memory. */
bool kafka_name(char out[KAFKA_NAME_MAX + 1], const char *prefix, enum kafka_kind kind, struct om_span topic, struct om_span agent);
/* What it is that has this name under the prefix; topic and agent as they are written, in the name. False: another program's, or of another
 * prefix. Without a prefix, every other name is a topic. */
struct kafka_named {
        enum kafka_kind kind;
        struct om_span topic, agent;
};
bool kafka_name_read(const char *name, const char *prefix, struct kafka_named *ret);
/* The name of the same group's dead letters. */
void kafka_name_dead_of(char out[KAFKA_NAME_MAX + 1], const char *prefix, const char *retry);
bool kafka_name_is_cut(struct om_span written);
/* Whether this is the topic, or is of it. */
bool kafka_name_is_of(const struct kafka_named *n, struct om_span topic);
/* What is written of its topic in the names of groups: the same for a topic and its groups. Zero-terminated. The name of a topic may be
 * whole where that of its groups is cut. False: out of memory. */
bool kafka_name_group_part(const struct kafka_named *n, char out[KAFKA_GROUP_PART + 1]);

#endif
