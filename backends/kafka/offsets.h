/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_OFFSETS_H
#define OM_KAFKA_OFFSETS_H
/*
 * What is finished of a partition, though it is not finished in order, and how this is written into the metadata of a commit. Pure; thread:
 * any.
 *
 * Kafka remembers one offset for a group in a partition. Ours stays below the lowest task that is not finished; what is finished above it,
 * and which attempt the others are at, goes along as text (a commit's metadata, at most `offset.metadata.max.bytes` of the brokers, 4096
 * unless they say otherwise).
 *
 * The text: "o1:", then in base64 (RFC 4648, section 5, without padding) a row of numbers, each LEB128 (7 bits a byte, low ones first):
 * owner, finished, clean, then for the log and for the retries: low, next − low, the number of runs and for each its distance from the end
 * of the one before (or from low) and its length, the number of marks and for each its offset − low, attempts · 2 + waiting, and, waiting,
 * the time that it is due.
 */
#include "../../proto/buf.h"

enum { KAFKA_METADATA_MAX = 4000 };

struct kafka_run {
        int64_t from, to; /* finished: from ≤ offset < to */
};
struct kafka_track {
        int64_t low;            /* all below is finished, and this is not */
        struct kafka_run *runs; /* above it, ascending, with something open before each */
        size_t n, cap;
};
void kafka_track_deinit(struct kafka_track *t);
bool kafka_track_is_done(const struct kafka_track *t, int64_t offset);
bool kafka_track_done(struct kafka_track *t, int64_t from, int64_t to); /* false: out of memory, nothing has changed */
bool kafka_track_undo(struct kafka_track *t, int64_t offset);           /* it is open again; false: out of memory */
uint64_t kafka_track_above(const struct kafka_track *t);                /* how many are finished above low */

struct kafka_mark {
        int64_t offset;
        uint32_t attempts; /* begun */
        bool waiting;      /* nobody has it; else it was with a worker */
        int64_t due_ms;    /* waiting: not before; Unix milliseconds, 0: now */
};
struct kafka_position {
        struct kafka_track track;
        int64_t next; /* from here on nothing was handed out */
        struct kafka_mark *marks;
        size_t n_marks;
};
enum { KAFKA_AT_LOG, KAFKA_AT_RETRY };
struct kafka_state {
        uint64_t owner;    /* which daemon it was */
        uint64_t finished; /* since the group is */
        bool clean;        /* it let go in order: what was with its workers is free */
        struct kafka_position at[2];
};
void kafka_state_deinit(struct kafka_state *s);
/* Appends the text. Marks that would make it longer than `max` are left out: those tasks count as begun once. Returns how long it would be
 * without any marks. */
size_t kafka_state_pack(struct om_buf *b, const struct kafka_state *s, size_t max);
/* -EINVAL: not such a text; -ENOMEM. `ret` is filled by success only. */
int kafka_state_unpack(struct om_span text, struct kafka_state *ret);

#endif
