/* SPDX-License-Identifier: Apache-2.0 */
/* Names for a server's queues and streams: see safe_name.h. */
#include <ctype.h>

#include "safe_name.h"

/* FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), from a basis of one's own. */
static uint64_t fnv(struct om_span s, uint64_t h) {
        for (size_t i = 0; i < s.len; i++)
                h = (h ^ (unsigned char) s.p[i]) * 0x100000001b3u;
        return h;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

bool om_safe_name_read(struct om_buf *b, struct om_span name) {
        for (size_t i = 0; i < name.len; i++) {
                unsigned char c = (unsigned char) name.p[i];
                int high, low;

                if (isalnum(c) || c == '-' || c == '_')
                        om_buf_putc(b, (char) c);
                else if (c == '+')
                        om_buf_putc(b, '.');
                else if (c == '=' && name.len - i > 2 && (high = hex_digit(name.p[i + 1])) >= 0 && (low = hex_digit(name.p[i + 2])) >= 0) {
                        om_buf_putc(b, (char) (high << 4 | low));
                        i += 2;
                } else
                        return false;
        }
        return true;
}

void om_safe_name(struct om_buf *b, struct om_span text, size_t max) {
        enum { HASH_LEN = 1 + 32 };
        size_t start = b->len;

        for (size_t i = 0; i < text.len; i++) {
                unsigned char c = (unsigned char) text.p[i];

                if (isalnum(c) || c == '-' || c == '_')
                        om_buf_putc(b, (char) c);
                else if (c == '.')
                        om_buf_putc(b, '+');
                else
                        om_buf_printf(b, "=%02X", c);
        }
        if (om_buf_ok(b) && b->len - start > max) {
                b->len = start + max - HASH_LEN;
                om_buf_printf(b, "~%016llx%016llx", (unsigned long long) fnv(text, 0xcbf29ce484222325u),
                        (unsigned long long) fnv(text, 0x6c62272e07bb0142u));
        }
}
