/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_NAMES_H
#define OM_NATS_NAMES_H
/*
 * How topics and agents are written as subjects and as names of streams and consumers. Pure; thread: any.
 *
 * A subject (https://docs.nats.io/nats-concepts/subjects) is tokens parted by dots; spaces, control characters, `*` and `>` have a meaning
 * of their own. A topic's dots part tokens too, so that other programs subscribe to `omni.t.orders.*` as they would expect. What a subject
 * cannot hold is written %XX, and so is a dot that would make an empty token.
 *
 * A name (of a stream or a durable consumer) may not hold dots, and is a folder on the server's disk: letters, digits, `-` and `_` stay, a
 * dot becomes `+`, all else =XX. A name that would be too long is cut and ends with `~` and a hash of the whole.
 */
#include "../../proto/buf.h"

enum {
        NATS_NAME_MAX = 110, /* of one encoded name: two of them with what we put around stay below the server's 255 */
};

void nats_subject_encode(struct om_buf *b, struct om_span topic);
/* The topic again. False where this is no subject that nats_subject_encode() makes. */
bool nats_subject_decode(struct om_buf *b, struct om_span subject);
/* Whether all that a subject says, with its wildcards, is among what a filter with `*` and `>` says. */
bool nats_subject_covers(struct om_span filter, struct om_span subject);
void nats_name_encode(struct om_buf *b, struct om_span text);

/* "$JS.ACK.STREAM.CONSUMER.DELIVERED.STREAMSEQ.CONSUMERSEQ.TIME.PENDING", what a delivered message is answered to; newer servers put
 * DOMAIN.ACCOUNTHASH before the stream, and may put more behind. */
struct nats_ack {
        struct om_span stream, consumer;
        uint64_t delivered, stream_seq, consumer_seq;
        int64_t time_ns;
};
bool nats_ack_parse(struct om_span reply, struct nats_ack *ret);

#endif
