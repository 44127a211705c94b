/* SPDX-License-Identifier: Apache-2.0 */
/* Names on the brokers: see names.h. What is true: encoding is injective (for names that are cut: up to a hash of 64 bits), and what it
 * makes is always legal. */
#include <stdio.h>

#include "names.h"

static const char hex[] = "0123456789ABCDEF";

static bool plain(unsigned char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

/* FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/). */
static uint64_t fnv(struct om_span s) {
        uint64_t h = 0xcbf29ce484222325u;

        for (size_t i = 0; i < s.len; i++)
                h = (h ^ (unsigned char) s.p[i]) * 0x100000001b3u;
        return h;
}

void kafka_name_encode(struct om_buf *b, struct om_span text, size_t max) {
        enum { HASH_LEN = 3 + 16 };
        size_t start = b->len;

        for (size_t i = 0; i < text.len; i++) {
                unsigned char c = (unsigned char) text.p[i];
                bool edge = c == '.' && (i == 0 || i + 1 == text.len || text.p[i - 1] == '.');
                bool mark = c == '-' && i + 1 < text.len && text.p[i + 1] == '.';

                if (plain(c) && !edge && !mark)
                        om_buf_putc(b, (char) c);
                else
                        om_buf_put(b, (char[]){ '-', '.', hex[c >> 4], hex[c & 15] }, 4);
        }
        if (om_buf_ok(b) && b->len - start > max) {
                b->len = start + max - HASH_LEN;
                while (b->len > start && (b->data[b->len - 1] == '.' || b->data[b->len - 1] == '-'))
                        b->len--; /* no mark that is cut in half, no `..` */
                om_buf_printf(b, "-._%016llx", (unsigned long long) fnv(text));
        }
}

static int hex_value(char c) {
        const char *at = c ? strchr(hex, c) : NULL;

        return at ? (int) (at - hex) : -1;
}

bool kafka_name_decode(struct om_buf *b, struct om_span name) {
        for (size_t i = 0; i < name.len; i++) {
                int high, low;

                if (name.p[i] != '-' || i + 1 >= name.len || name.p[i + 1] != '.') {
                        om_buf_putc(b, name.p[i]);
                        continue;
                }
                if (i + 2 < name.len && name.p[i + 2] == '_') {
                        om_buf_put(b, name.p + i, name.len - i);
                        return true;
                }
                if (i + 3 >= name.len || (high = hex_value(name.p[i + 2])) < 0 || (low = hex_value(name.p[i + 3])) < 0)
                        return false;
                om_buf_putc(b, (char) (high << 4 | low));
                i += 3;
        }
        return true;
}

static const char *const kinds[] = { "", "omni-retry..", "omni-dlq..", "omni-wake" };

bool kafka_name(char out[KAFKA_NAME_MAX + 1], const char *prefix, enum kafka_kind kind, struct om_span topic, struct om_span agent) {
        struct om_buf b = OM_BUF_INIT;
        bool ok;

        if (*prefix)
                om_buf_printf(&b, "%s.", prefix);
        om_buf_puts(&b, kinds[kind]);
        if (kind != KAFKA_WAKE)
                kafka_name_encode(&b, topic, kind == KAFKA_LOG ? KAFKA_TOPIC_PART : KAFKA_GROUP_PART);
        if (kind == KAFKA_RETRY || kind == KAFKA_DEAD) {
                om_buf_lit(&b, "..");
                kafka_name_encode(&b, agent, KAFKA_GROUP_PART);
        }
        ok = om_buf_ok(&b);
        if (ok)
                snprintf(out, KAFKA_NAME_MAX + 1, "%.*s", (int) b.len, b.data);
        om_buf_deinit(&b);
        return ok;
}

bool kafka_name_read(const char *name, const char *prefix, enum kafka_kind *ret_kind, struct om_buf *topic, struct om_buf *agent) {
        size_t n = strlen(prefix);
        const char *part;

        if (n && (strncmp(name, prefix, n) != 0 || name[n] != '.'))
                return false;
        name += n ? n + 1 : 0;
        if (strcmp(name, kinds[KAFKA_WAKE]) == 0) {
                *ret_kind = KAFKA_WAKE;
                return true;
        }
        for (enum kafka_kind k = KAFKA_RETRY; k <= KAFKA_DEAD; k++) {
                size_t len = strlen(kinds[k]);

                if (strncmp(name, kinds[k], len) != 0)
                        continue;
                part = strstr(name + len, "..");
                *ret_kind = k;
                return part && kafka_name_decode(topic, (struct om_span){ name + len, (size_t) (part - name) - len }) &&
                        kafka_name_decode(agent, om_span_of(part + 2));
        }
        *ret_kind = KAFKA_LOG;
        /* `..` is in no topic's name: that is a group of another prefix. */
        return strncmp(name, "__", 2) != 0 && !strstr(name, "..") && !strstr(name, ".omni-wake") &&
                kafka_name_decode(topic, om_span_of(name)) && topic->len > 0;
}
