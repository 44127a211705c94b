/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RABBITMQ_WIRE_H
#define OM_RABBITMQ_WIRE_H
/*
 * AMQP 0-9-1 as bytes: frames out of a stream and into a buffer (specification, section 2.3 and 4.2). librabbitmq encodes and decodes
 * methods, properties and tables; its sockets, which block, are not used. Pure; thread: any.
 *
 * What holds: nothing that a peer sends makes us read outside of it or keep more than frame_max for a frame and message_max for a
 * message's body; what breaks the protocol is -EPROTO with a text that says what.
 */
#include <amqp.h>
#include <amqp_framing.h>

#include "../../proto/buf.h"

struct evbuffer;

enum {
        RMQ_FRAME_MIN = 4096, /* before anything was negotiated */
        RMQ_FRAME_MAX = 131072,
        RMQ_CHANNEL_MAX = 2047,
        RMQ_SHORT_MAX = 255, /* of names and of a property's text */
};

static inline amqp_bytes_t rmq_bytes(struct om_span s) { return (amqp_bytes_t){ s.len, (void *) s.p }; }
static inline amqp_bytes_t rmq_text(const char *text) { return rmq_bytes(om_span_of(text)); }
static inline struct om_span rmq_span(amqp_bytes_t b) { return (struct om_span){ b.bytes ? b.bytes : "", b.len }; }

/* -- in -------------------------------------------------------------------------------------------------------------- */

struct rmq_in_channel;
struct rmq_in {
        size_t frame_max, message_max;
        amqp_pool_t pool; /* of what is decoded */
        struct rmq_in_channel **channels;
        size_t n_channels;
        size_t taken;      /* bytes of the frame that is being looked at */
        const char *fault; /* after -EPROTO or -EMSGSIZE; static */
};
/* What came: a method, or one with its content when all of it is there. Valid until rmq_in_done(). */
struct rmq_event {
        uint16_t channel;
        amqp_method_number_t id; /* 0: a heartbeat */
        void *method;            /* amqp_…_t of the id */
        amqp_basic_properties_t *props;
        struct om_buf *body; /* of content; who wants it takes it, and leaves OM_BUF_INIT */
};
void rmq_in_init(struct rmq_in *in, size_t message_max);
void rmq_in_deinit(struct rmq_in *in);
/* The next of what `bytes` hold. 1; 0: not all of it is there; -EPROTO, -EMSGSIZE or -ENOMEM, after which the stream is of no use. */
int rmq_in_next(struct rmq_in *in, struct evbuffer *bytes, struct rmq_event *ret);
void rmq_in_done(struct rmq_in *in, struct evbuffer *bytes);

/* -- out ------------------------------------------------------------------------------------------------------------- */

#define RMQ_HEADER "AMQP\0\0\11\1"
enum { RMQ_HEADER_LEN = 8 };

/* A method's frame. 0, -ENOMEM (the buffer has failed), -E2BIG: it does not fit into one. */
int rmq_put_method(struct om_buf *b, uint16_t channel, amqp_method_number_t id, void *method);
void rmq_put_heartbeat(struct om_buf *b);
/* basic.publish with its content. -E2BIG: the properties do not fit into a frame. */
int rmq_put_publish(struct om_buf *b, uint16_t channel, size_t frame_max, struct om_span exchange, struct om_span key, bool mandatory,
        const amqp_basic_properties_t *props, struct om_span body);

/* -- tables ---------------------------------------------------------------------------------------------------------- */

/* A table that is being made, of few entries; keys and texts are borrowed. What is beyond its room is left out. */
enum { RMQ_TABLE_MAX = 96 };
struct rmq_table {
        amqp_table_entry_t entries[RMQ_TABLE_MAX];
        int n;
};
void rmq_table_text(struct rmq_table *t, const char *key, struct om_span value);
void rmq_table_span(struct rmq_table *t, struct om_span key, struct om_span value);
void rmq_table_int(struct rmq_table *t, const char *key, int64_t value);
void rmq_table_bool(struct rmq_table *t, const char *key, bool value);
static inline amqp_table_t rmq_table(struct rmq_table *t) { return (amqp_table_t){ t->n, t->entries }; }

const amqp_field_value_t *rmq_table_get(const amqp_table_t *t, const char *key); /* NULL: none */
bool rmq_field_int(const amqp_field_value_t *v, int64_t *ret);                   /* of any of the integer kinds */

#endif
