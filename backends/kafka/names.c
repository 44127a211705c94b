/* SPDX-License-Identifier: Apache-2.0 */
/* Names on the brokers: see names.h. What is true: encoding is injective (for names that are cut: up to a hash of 64 bits), and what it
 * makes is always legal. */
#include <stdio.h>

#include "names.h"

enum { HASH_LEN = 3 + 16 };

static const char hex[] = "0123456789ABCDEF";

#define CUT "-._"

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

/* No mark that is cut in half, no `..`. */
static size_t cut_at(const char *text, size_t n) {
        while (n > 0 && (text[n - 1] == '.' || text[n - 1] == '-'))
                n--;
        return n;
}

void kafka_name_encode(struct om_buf *b, struct om_span text, size_t max) {
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
                b->len = start + cut_at(b->data + start, max - HASH_LEN);
                om_buf_printf(b, CUT "%016llx", (unsigned long long) fnv(text));
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

bool kafka_name_is_cut(struct om_span written) {
        return written.len > HASH_LEN && memcmp(written.p + written.len - HASH_LEN, CUT, sizeof CUT - 1) == 0;
}

bool kafka_name_is_of(const struct kafka_named *n, struct om_span topic) {
        struct om_buf b = OM_BUF_INIT;
        bool is;

        if (!n->topic.p)
                return false;
        kafka_name_encode(&b, topic, n->kind == KAFKA_LOG ? KAFKA_TOPIC_PART : KAFKA_GROUP_PART);
        is = om_buf_ok(&b) && om_span_eq(om_buf_span(&b), n->topic);
        om_buf_deinit(&b);
        return is;
}

bool kafka_name_group_part(const struct kafka_named *n, char out[KAFKA_GROUP_PART + 1]) {
        struct om_buf text = OM_BUF_INIT, part = OM_BUF_INIT;
        bool ok = true;

        if (n->kind != KAFKA_LOG)
                om_buf_put_span(&part, n->topic);
        else if (kafka_name_is_cut(n->topic)) { /* the hash is there already */
                om_buf_put(&part, n->topic.p, cut_at(n->topic.p, KAFKA_GROUP_PART - HASH_LEN));
                om_buf_put(&part, n->topic.p + n->topic.len - HASH_LEN, HASH_LEN);
        } else {
                kafka_name_decode(&text, n->topic);
                ok = om_buf_ok(&text);
                kafka_name_encode(&part, om_buf_span(&text), KAFKA_GROUP_PART);
        }
        ok = ok && om_buf_ok(&part) && part.len <= KAFKA_GROUP_PART;
        if (ok)
                snprintf(out, KAFKA_GROUP_PART + 1, "%.*s", OM_PRI(om_buf_span(&part)));
        om_buf_deinit(&text);
        om_buf_deinit(&part);
        return ok;
}

static const char *const kinds[] = { "", "omni-retry..", "omni-dlq..", "omni-wake", "omni-names" };

static bool is_one(enum kafka_kind kind) { return kind == KAFKA_WAKE || kind == KAFKA_NAMES; }

bool kafka_name(char out[KAFKA_NAME_MAX + 1], const char *prefix, enum kafka_kind kind, struct om_span topic, struct om_span agent) {
        struct om_buf b = OM_BUF_INIT;
        bool ok;

        if (*prefix)
                om_buf_printf(&b, "%s.", prefix);
        om_buf_puts(&b, kinds[kind]);
        if (!is_one(kind))
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

void kafka_name_dead_of(char out[KAFKA_NAME_MAX + 1], const char *prefix, const char *retry) {
        size_t n = *prefix ? strlen(prefix) + 1 : 0;

        snprintf(out, KAFKA_NAME_MAX + 1, "%.*s%s%s", (int) n, retry, kinds[KAFKA_DEAD], retry + n + strlen(kinds[KAFKA_RETRY]));
}

/* What decodes, so that it was made by us or could have been. */
static bool is_written(struct om_span part) {
        struct om_buf text = OM_BUF_INIT;
        bool ok = kafka_name_decode(&text, part);

        om_buf_deinit(&text);
        return ok && part.len > 0;
}

bool kafka_name_read(const char *name, const char *prefix, struct kafka_named *ret) {
        size_t n = strlen(prefix);
        const char *part;

        if (n && (strncmp(name, prefix, n) != 0 || name[n] != '.'))
                return false;
        name += n ? n + 1 : 0;
        *ret = (struct kafka_named){ .topic = OM_SPAN_NONE, .agent = OM_SPAN_NONE };
        for (enum kafka_kind k = KAFKA_WAKE; k <= KAFKA_NAMES; k++)
                if (strcmp(name, kinds[k]) == 0) {
                        ret->kind = k;
                        return true;
                }
        for (enum kafka_kind k = KAFKA_RETRY; k <= KAFKA_DEAD; k++) {
                size_t len = strlen(kinds[k]);

                if (strncmp(name, kinds[k], len) != 0)
                        continue;
                part = strstr(name + len, "..");
                ret->kind = k;
                ret->topic = (struct om_span){ name + len, part ? (size_t) (part - name) - len : 0 };
                ret->agent = om_span_of(part ? part + 2 : "");
                return is_written(ret->topic) && is_written(ret->agent);
        }
        ret->kind = KAFKA_LOG;
        ret->topic = om_span_of(name);
        /* `..` is in no topic's name: that is a group of another prefix. */
        return strncmp(name, "__", 2) != 0 && !strstr(name, "..") && !strstr(name, ".omni-wake") && !strstr(name, ".omni-names") &&
                is_written(ret->topic);
}
