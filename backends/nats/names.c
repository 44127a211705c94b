/* SPDX-License-Identifier: Apache-2.0 */
/* Names on the server: see names.h. What is true: encoding is injective (for names that are cut: up to a hash of 128 bits), and what it
 * makes is always a legal subject token or name. */
#include <stdio.h>

#include "../safe_name.h"
#include "names.h"

static const char hex[] = "0123456789ABCDEF";

static void put_escaped(struct om_buf *b, char mark, unsigned char c) {
        char text[3] = { mark, hex[c >> 4], hex[c & 15] };

        om_buf_put(b, text, sizeof text);
}

void nats_subject_encode(struct om_buf *b, struct om_span topic) {
        for (size_t i = 0; i < topic.len; i++) {
                unsigned char c = (unsigned char) topic.p[i];
                bool empty_token = c == '.' && (i == 0 || i + 1 == topic.len || topic.p[i - 1] == '.');

                if (c <= ' ' || c == 0x7f || c == '*' || c == '>' || c == '%' || empty_token)
                        put_escaped(b, '%', c);
                else
                        om_buf_putc(b, (char) c);
        }
}

static int hex_value(char c) {
        const char *at = c ? strchr(hex, c) : NULL;

        return at ? (int) (at - hex) : -1;
}

bool nats_subject_decode(struct om_buf *b, struct om_span subject) {
        for (size_t i = 0; i < subject.len; i++) {
                int high, low;

                if (subject.p[i] != '%') {
                        om_buf_putc(b, subject.p[i]);
                        continue;
                }
                if (i + 2 >= subject.len || (high = hex_value(subject.p[i + 1])) < 0 || (low = hex_value(subject.p[i + 2])) < 0)
                        return false;
                om_buf_putc(b, (char) (high << 4 | low));
                i += 2;
        }
        return true;
}

static struct om_span first_token(struct om_span s) {
        const char *dot = memchr(s.p, '.', s.len);

        return (struct om_span){ s.p, dot ? (size_t) (dot - s.p) : s.len };
}

bool nats_subject_covers(struct om_span filter, struct om_span subject) {
        while (filter.len && subject.len) {
                struct om_span f = first_token(filter), s = first_token(subject);

                if (om_span_is(f, ">"))
                        return true;
                if (!om_span_eq(f, s) && (!om_span_is(f, "*") || om_span_is(s, ">")))
                        return false;
                if (f.len == filter.len || s.len == subject.len)
                        return f.len == filter.len && s.len == subject.len;
                filter = (struct om_span){ filter.p + f.len + 1, filter.len - f.len - 1 };
                subject = (struct om_span){ subject.p + s.len + 1, subject.len - s.len - 1 };
        }
        return false;
}

void nats_name_encode(struct om_buf *b, struct om_span text) { om_safe_name(b, text, NATS_NAME_MAX); }

static bool number(struct om_span s, uint64_t *ret) {
        uint64_t n = 0;

        for (size_t i = 0; i < s.len; i++) {
                if (s.p[i] < '0' || s.p[i] > '9' || n > UINT64_MAX / 10 - 1)
                        return false;
                n = n * 10 + (uint64_t) (s.p[i] - '0');
        }
        *ret = n;
        return s.len > 0;
}

bool nats_ack_parse(struct om_span reply, struct nats_ack *ret) {
        struct om_span token[12];
        size_t n = 0, start = 0, first;
        uint64_t time_ns;

        for (size_t i = 0; i <= reply.len && n < 12; i++) {
                if (i < reply.len && reply.p[i] != '.')
                        continue;
                token[n++] = (struct om_span){ reply.p + start, i - start };
                start = i + 1;
        }
        if (n < 9 || n == 10 || !om_span_is(token[0], "$JS") || !om_span_is(token[1], "ACK"))
                return false;
        first = n == 9 ? 2 : 4;
        ret->stream = token[first];
        ret->consumer = token[first + 1];
        if (!number(token[first + 2], &ret->delivered) || !number(token[first + 3], &ret->stream_seq) ||
                !number(token[first + 4], &ret->consumer_seq) || !number(token[first + 5], &time_ns))
                return false;
        ret->time_ns = (int64_t) time_ns;
        return true;
}
