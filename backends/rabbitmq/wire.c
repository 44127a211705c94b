/* SPDX-License-Identifier: Apache-2.0 */
/* Frames and tables: see wire.h. Content is put together a channel, as frames of channels may come mixed. */
#include <errno.h>
#include <event2/buffer.h>
#include <stdlib.h>

#include "wire.h"

enum { HEAD = 7, TAIL = 1, FRAME_END = 0xCE };

enum { WANTS_METHOD, WANTS_HEADER, WANTS_BODY };
struct rmq_in_channel {
        int state;
        struct om_buf method, header, body;
        uint64_t left; /* of the body */
};

static uint16_t get_16(const unsigned char *p) { return (uint16_t) (p[0] << 8 | p[1]); }
static uint32_t get_32(const unsigned char *p) { return (uint32_t) get_16(p) << 16 | get_16(p + 2); }
static uint64_t get_64(const unsigned char *p) { return (uint64_t) get_32(p) << 32 | get_32(p + 4); }
static void set_16(char *p, unsigned v) {
        p[0] = (char) (v >> 8);
        p[1] = (char) v;
}
static void set_32(char *p, uint32_t v) {
        set_16(p, v >> 16);
        set_16(p + 2, v & 0xffff);
}

/* -- in -------------------------------------------------------------------------------------------------------------- */

void rmq_in_init(struct rmq_in *in, size_t message_max) {
        *in = (struct rmq_in){ .frame_max = RMQ_FRAME_MAX, .message_max = message_max };
        init_amqp_pool(&in->pool, 4096);
}

void rmq_in_deinit(struct rmq_in *in) {
        for (size_t i = 0; i < in->n_channels; i++)
                if (in->channels[i]) {
                        om_buf_deinit(&in->channels[i]->method);
                        om_buf_deinit(&in->channels[i]->header);
                        om_buf_deinit(&in->channels[i]->body);
                        free(in->channels[i]);
                }
        free(in->channels);
        empty_amqp_pool(&in->pool);
        *in = (struct rmq_in){ .n_channels = 0 };
}

static int bad(struct rmq_in *in, int status, const char *fault) {
        in->fault = fault;
        return status;
}

static struct rmq_in_channel *channel_of(struct rmq_in *in, unsigned number) {
        if (number >= in->n_channels) {
                size_t n = number < 16 ? 16 : RMQ_CHANNEL_MAX + 1;
                struct rmq_in_channel **more = reallocarray(in->channels, n, sizeof(struct rmq_in_channel *));

                if (!more)
                        return NULL;
                memset(more + in->n_channels, 0, (n - in->n_channels) * sizeof(struct rmq_in_channel *));
                in->channels = more;
                in->n_channels = n;
        }
        if (!in->channels[number])
                in->channels[number] = calloc(1, sizeof(struct rmq_in_channel));
        return in->channels[number];
}

static bool has_content(amqp_method_number_t id) {
        return id == AMQP_BASIC_DELIVER_METHOD || id == AMQP_BASIC_GET_OK_METHOD || id == AMQP_BASIC_RETURN_METHOD;
}

static int decode_method(struct rmq_in *in, struct om_span payload, struct rmq_event *ret) {
        ret->id = get_32((const unsigned char *) payload.p);
        if (amqp_decode_method(ret->id, &in->pool, rmq_bytes((struct om_span){ payload.p + 4, payload.len - 4 }), &ret->method) < 0)
                return bad(in, -EPROTO, "a method that cannot be read");
        return 1;
}

static int take_method(struct rmq_in *in, struct rmq_in_channel *c, struct om_span payload, struct rmq_event *ret) {
        if (payload.len < 4)
                return bad(in, -EPROTO, "a method's frame that is too short");
        if (c->state != WANTS_METHOD)
                return bad(in, -EPROTO, "a method where a message's content is expected");
        if (!has_content(get_32((const unsigned char *) payload.p)))
                return decode_method(in, payload, ret);
        om_buf_clear(&c->method);
        om_buf_put_span(&c->method, payload);
        c->state = WANTS_HEADER;
        return om_buf_ok(&c->method) ? 0 : -ENOMEM;
}

/* All of it is there. */
static int take_content(struct rmq_in *in, struct rmq_in_channel *c, struct rmq_event *ret) {
        struct om_span header = om_buf_span(&c->header);
        int r = decode_method(in, om_buf_span(&c->method), ret);

        c->state = WANTS_METHOD;
        if (r < 0)
                return r;
        if (amqp_decode_properties(
                    AMQP_BASIC_CLASS, &in->pool, rmq_bytes((struct om_span){ header.p + 12, header.len - 12 }), (void **) &ret->props) < 0)
                return bad(in, -EPROTO, "properties that cannot be read");
        ret->body = &c->body;
        return 1;
}

static int take_header(struct rmq_in *in, struct rmq_in_channel *c, struct om_span payload, struct rmq_event *ret) {
        const unsigned char *p = (const unsigned char *) payload.p;

        if (c->state != WANTS_HEADER || payload.len < 14 || get_16(p) != AMQP_BASIC_CLASS)
                return bad(in, -EPROTO, "a content header that nothing led up to");
        c->left = get_64(p + 4);
        if (c->left > in->message_max)
                return bad(in, -EMSGSIZE, "a message is larger than max_message_bytes of the URL allows");
        om_buf_clear(&c->header);
        om_buf_clear(&c->body);
        om_buf_put_span(&c->header, payload);
        if (!om_buf_ok(&c->header) || (c->left && !om_buf_fit(&c->body, c->left)))
                return -ENOMEM;
        c->state = WANTS_BODY;
        return c->left ? 0 : take_content(in, c, ret);
}

static int take_body(struct rmq_in *in, struct rmq_in_channel *c, struct om_span payload, struct rmq_event *ret) {
        if (c->state != WANTS_BODY || payload.len > c->left)
                return bad(in, -EPROTO, "a message's body that is longer than was said");
        om_buf_put_span(&c->body, payload);
        c->left -= payload.len;
        return c->left ? 0 : take_content(in, c, ret);
}

static int take_frame(struct rmq_in *in, unsigned type, unsigned channel, struct om_span payload, struct rmq_event *ret) {
        struct rmq_in_channel *c;

        *ret = (struct rmq_event){ .channel = (uint16_t) channel };
        if (type == AMQP_FRAME_HEARTBEAT)
                return 1;
        if (channel > RMQ_CHANNEL_MAX)
                return bad(in, -EPROTO, "a channel that nobody opened");
        c = channel_of(in, channel);
        if (!c)
                return -ENOMEM;
        switch (type) {
        case AMQP_FRAME_METHOD:
                return take_method(in, c, payload, ret);
        case AMQP_FRAME_HEADER:
                return take_header(in, c, payload, ret);
        case AMQP_FRAME_BODY:
                return take_body(in, c, payload, ret);
        default:
                return bad(in, -EPROTO, "a frame of no known type");
        }
}

int rmq_in_next(struct rmq_in *in, struct evbuffer *bytes, struct rmq_event *ret) {
        for (;;) {
                size_t have = evbuffer_get_length(bytes);
                const unsigned char *p = have >= HEAD ? evbuffer_pullup(bytes, HEAD) : NULL;
                uint32_t len;
                int r;

                if (have < HEAD)
                        return 0;
                if (!p)
                        return -ENOMEM;
                len = get_32(p + 3);
                if (len > in->frame_max - HEAD - TAIL)
                        return bad(in, -EPROTO, "a frame that is longer than was agreed on");
                if (have < HEAD + (size_t) len + TAIL)
                        return 0;
                p = evbuffer_pullup(bytes, (ssize_t) (HEAD + (size_t) len + TAIL));
                if (!p)
                        return -ENOMEM;
                if (p[HEAD + len] != FRAME_END)
                        return bad(in, -EPROTO, "a frame without its end");
                in->taken = HEAD + (size_t) len + TAIL;
                r = take_frame(in, p[0], get_16(p + 1), (struct om_span){ (const char *) p + HEAD, len }, ret);
                if (r)
                        return r;
                rmq_in_done(in, bytes);
        }
}

void rmq_in_done(struct rmq_in *in, struct evbuffer *bytes) {
        evbuffer_drain(bytes, in->taken);
        in->taken = 0;
        recycle_amqp_pool(&in->pool);
}

/* -- out ------------------------------------------------------------------------------------------------------------- */

static void put_head(struct om_buf *b, unsigned type, unsigned channel, size_t len) {
        char head[HEAD];

        head[0] = (char) type;
        set_16(head + 1, channel);
        set_32(head + 3, (uint32_t) len);
        om_buf_put(b, head, HEAD);
}

/* Closes a frame whose payload was written behind its head, which began at `start`. */
static void put_end(struct om_buf *b, size_t start) {
        if (om_buf_ok(b))
                set_32(b->data + start + 3, (uint32_t) (b->len - start - HEAD));
        om_buf_putc(b, (char) FRAME_END);
}

int rmq_put_method(struct om_buf *b, uint16_t channel, amqp_method_number_t id, void *method) {
        size_t start = b->len;

        for (size_t room = 512;; room = RMQ_FRAME_MAX - HEAD - TAIL - 4) {
                char number[4], *to;
                int n;

                put_head(b, AMQP_FRAME_METHOD, channel, 0);
                set_32(number, id);
                om_buf_put(b, number, 4);
                to = om_buf_reserve(b, room);
                if (!to)
                        return -ENOMEM;
                n = amqp_encode_method(id, method, (amqp_bytes_t){ room, to });
                if (n >= 0) {
                        b->len += (size_t) n;
                        put_end(b, start);
                        return om_buf_ok(b) ? 0 : -ENOMEM;
                }
                b->len = start;
                if (room > 512)
                        return -E2BIG;
        }
}

void rmq_put_heartbeat(struct om_buf *b) {
        size_t start = b->len;

        put_head(b, AMQP_FRAME_HEARTBEAT, 0, 0);
        put_end(b, start);
}

static int put_header(struct om_buf *b, uint16_t channel, size_t frame_max, const amqp_basic_properties_t *props, size_t body) {
        size_t start = b->len, room = frame_max - HEAD - TAIL - 12;
        char fixed[12] = { 0 }, *to;
        int n;

        put_head(b, AMQP_FRAME_HEADER, channel, 0);
        set_16(fixed, AMQP_BASIC_CLASS);
        set_32(fixed + 4, (uint32_t) ((uint64_t) body >> 32));
        set_32(fixed + 8, (uint32_t) body);
        om_buf_put(b, fixed, sizeof fixed);
        to = om_buf_reserve(b, 1024);
        if (!to)
                return -ENOMEM;
        n = amqp_encode_properties(AMQP_BASIC_CLASS, (void *) props, (amqp_bytes_t){ 1024, to });
        if (n < 0 && (to = om_buf_reserve(b, room)))
                n = amqp_encode_properties(AMQP_BASIC_CLASS, (void *) props, (amqp_bytes_t){ room, to });
        if (n < 0)
                return to ? -E2BIG : -ENOMEM;
        b->len += (size_t) n;
        put_end(b, start);
        return 0;
}

int rmq_put_publish(struct om_buf *b, uint16_t channel, size_t frame_max, struct om_span exchange, struct om_span key, bool mandatory,
        const amqp_basic_properties_t *props, struct om_span body) {
        amqp_basic_publish_t method = { .exchange = rmq_bytes(exchange), .routing_key = rmq_bytes(key), .mandatory = mandatory };
        size_t most = frame_max - HEAD - TAIL, before = b->len;
        int r = rmq_put_method(b, channel, AMQP_BASIC_PUBLISH_METHOD, &method);

        if (r == 0)
                r = put_header(b, channel, frame_max, props, body.len);
        if (r < 0) {
                b->len = before;
                return r;
        }
        for (size_t at = 0; at < body.len; at += most) {
                struct om_span part = { body.p + at, body.len - at < most ? body.len - at : most };

                put_head(b, AMQP_FRAME_BODY, channel, part.len);
                om_buf_put_span(b, part);
                om_buf_putc(b, (char) FRAME_END);
        }
        return om_buf_ok(b) ? 0 : -ENOMEM;
}

/* -- tables ---------------------------------------------------------------------------------------------------------- */

static amqp_field_value_t *add(struct rmq_table *t, struct om_span key, char kind) {
        amqp_table_entry_t *e = &t->entries[t->n];

        if (t->n == RMQ_TABLE_MAX || key.len > RMQ_SHORT_MAX)
                return NULL;
        t->n++;
        e->key = rmq_bytes(key);
        e->value.kind = (uint8_t) kind;
        return &e->value;
}

void rmq_table_span(struct rmq_table *t, struct om_span key, struct om_span value) {
        amqp_field_value_t *v = add(t, key, AMQP_FIELD_KIND_UTF8);

        if (v)
                v->value.bytes = rmq_bytes(value);
}

void rmq_table_text(struct rmq_table *t, const char *key, struct om_span value) { rmq_table_span(t, om_span_of(key), value); }

void rmq_table_int(struct rmq_table *t, const char *key, int64_t value) {
        amqp_field_value_t *v = add(t, om_span_of(key), AMQP_FIELD_KIND_I64);

        if (v)
                v->value.i64 = value;
}

void rmq_table_bool(struct rmq_table *t, const char *key, bool value) {
        amqp_field_value_t *v = add(t, om_span_of(key), AMQP_FIELD_KIND_BOOLEAN);

        if (v)
                v->value.boolean = value;
}

const amqp_field_value_t *rmq_table_get(const amqp_table_t *t, const char *key) {
        for (int i = 0; i < t->num_entries; i++)
                if (om_span_is(rmq_span(t->entries[i].key), key))
                        return &t->entries[i].value;
        return NULL;
}

bool rmq_field_int(const amqp_field_value_t *v, int64_t *ret) {
        if (!v)
                return false;
        switch (v->kind) {
        case AMQP_FIELD_KIND_I8:
                *ret = (int) v->value.i8;
                return true;
        case AMQP_FIELD_KIND_U8:
                *ret = v->value.u8;
                return true;
        case AMQP_FIELD_KIND_I16:
                *ret = v->value.i16;
                return true;
        case AMQP_FIELD_KIND_U16:
                *ret = v->value.u16;
                return true;
        case AMQP_FIELD_KIND_I32:
                *ret = v->value.i32;
                return true;
        case AMQP_FIELD_KIND_U32:
                *ret = v->value.u32;
                return true;
        case AMQP_FIELD_KIND_I64:
                *ret = v->value.i64;
                return true;
        case AMQP_FIELD_KIND_U64:
                *ret = (int64_t) v->value.u64;
                return true;
        default:
                return false;
        }
}
