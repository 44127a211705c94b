/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hash slots: CRC-16/XMODEM (polynomial 0x1021, initial value 0) of the key, or of what stands in its first pair of braces when that is not
 * empty, modulo 16384 (Redis Cluster specification, "Key distribution model" and "Hash tags"). No state; any thread.
 */
#include <stdio.h>

#include "link.h"

static unsigned crc16(const char *p, size_t n) {
        unsigned crc = 0;

        while (n--) {
                crc ^= (unsigned) (unsigned char) *p++ << 8;
                for (int i = 0; i < 8; i++)
                        crc = crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1;
                crc &= 0xffff;
        }
        return crc;
}

static struct om_span hashed(struct om_span key) {
        const char *open = key.len ? memchr(key.p, '{', key.len) : NULL;
        const char *close = open ? memchr(open + 1, '}', (size_t) (key.p + key.len - open - 1)) : NULL;

        return close && close > open + 1 ? (struct om_span){ open + 1, (size_t) (close - open - 1) } : key;
}

unsigned om_redis_slot(struct om_span key) {
        struct om_span part = hashed(key);

        return crc16(part.p, part.len) & 16383;
}

void om_redis_tag(struct om_buf *b, struct om_span key) {
        struct om_span part = hashed(key);
        char text[24];
        unsigned n = 0, slot = om_redis_slot(key);

        om_buf_putc(b, '{');
        if (part.len && !memchr(part.p, '}', part.len)) {
                om_buf_put_span(b, part);
        } else {
                /* A brace in the key would end the tag early: the first number that falls into the same slot stands for it. */
                do
                        snprintf(text, sizeof text, "%u", n++);
                while (crc16(text, strlen(text)) % 16384 != slot);
                om_buf_puts(b, text);
        }
        om_buf_putc(b, '}');
}
