/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of objects: see store_state.h. What is true: two entries of a kind never share one (for long keys: up to a hash of 128 bits); no
 * part between slashes is longer than 255 bytes, which servers that keep objects as files need; the order of names in t/ and m/ is newest
 * first.
 */
#include "store_state.h"

enum { KEY_MAX = 92, AGENT_MAX = 64, ALONE_MAX = 200, CUT = 33 };

static const char letters[KINDS] = {
        [OM_STORE_AGENTS] = 'a', [OM_STORE_RESULTS] = 'r', [OM_STORE_METRICS] = 'm', [OM_STORE_CONFIG] = 'c', [OM_STORE_KEYS] = 'k'
};

static bool has_names(enum om_store_kind kind) { return kind == OM_STORE_AGENTS || kind == OM_STORE_RESULTS; }

/* Without memory it is a name of nothing that there is. */
static void text_of(char *out, struct om_buf *b) {
        snprintf(out, S3_NAME_MAX, "%.*s", om_buf_ok(b) ? (int) b->len : 1, om_buf_ok(b) && b->data ? b->data : "-");
        om_buf_deinit(b);
}

void s3_entry_name(char out[static S3_NAME_MAX], enum om_store_kind kind, struct om_span key, struct om_span name) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_printf(&b, "%c/", letters[kind]);
        om_safe_name(&b, key, has_names(kind) ? KEY_MAX : ALONE_MAX);
        if (has_names(kind)) {
                om_buf_putc(&b, '.');
                om_safe_name(&b, name, AGENT_MAX);
        } else if (!key.len)
                om_buf_putc(&b, '=');
        text_of(out, &b);
}

bool s3_entry_read(const char *rest, struct om_buf *key, struct om_buf *name) {
        const char *dot = strchr(rest, '.');

        return dot && om_safe_name_read(key, (struct om_span){ rest, (size_t) (dot - rest) }) &&
                om_safe_name_read(name, om_span_of(dot + 1)) && om_buf_ok(key) && om_buf_ok(name);
}

void s3_kind_prefix(char out[static S3_NAME_MAX], enum om_store_kind kind, struct om_span key) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_printf(&b, "%c/", letters[kind]);
        if (key.p && has_names(kind)) {
                om_safe_name(&b, key, KEY_MAX);
                om_buf_putc(&b, '.');
        } else if (key.p) { /* a longer one was cut: what is sure is what stands before its hash */
                om_safe_name(&b, key, 4 * OM_STORE_KEY_MAX);
                if (b.len > 2 + ALONE_MAX - CUT)
                        b.len = 2 + ALONE_MAX - CUT;
        }
        text_of(out, &b);
}

/* FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/). */
uint32_t s3_name_hash(struct om_span text) {
        uint32_t h = 0x811c9dc5u;

        for (size_t i = 0; i < text.len; i++)
                h = (h ^ (unsigned char) text.p[i]) * 0x01000193u;
        return h;
}

/* -- places in time ------------------------------------------------------------------------------------------------------------- */

static char place_letter(enum om_store_kind kind) { return kind == OM_STORE_RESULTS ? 't' : 'm'; }

static uint64_t inverted(int64_t ms) { return ~(uint64_t) (ms > 0 ? ms : 0); }

void s3_index_name(
        char out[static S3_NAME_MAX], enum om_store_kind kind, const struct om_store_entry *e, uint64_t version, const char *rest) {
        int n = snprintf(out, S3_NAME_MAX, "%c/%016llx%016llx.%012llx.%08x%08x%08x.%08zx.%s", place_letter(kind),
                (unsigned long long) inverted(e->saved_ms), ~(unsigned long long) version,
                (unsigned long long) e->expires_ms & 0xffffffffffffull, s3_name_hash(e->topic), s3_name_hash(e->name),
                s3_name_hash(e->status), e->value.len & 0xffffffff, rest);

        if (n >= S3_NAME_MAX)
                out[S3_NAME_MAX - 1] = 0;
}

void s3_index_until(char out[static S3_NAME_MAX], enum om_store_kind kind, int64_t until_ms) {
        snprintf(out, S3_NAME_MAX, "%c/%016llx~", place_letter(kind), (unsigned long long) inverted(until_ms));
}

static bool hex_field(const char **p, int digits, char end, uint64_t *ret) {
        static const char all[] = "0123456789abcdef";
        uint64_t n = 0;

        for (int i = 0; i < digits; i++) {
                const char *at = **p ? strchr(all, **p) : NULL;

                if (!at)
                        return false;
                n = n << 4 | (uint64_t) (at - all);
                (*p)++;
        }
        *ret = n;
        return !end || *(*p)++ == end;
}

bool s3_index_read(const char *name, struct s3_index *ret) {
        uint64_t saved, version, expires, topic, agent, status, size;
        const char *p = name + 2;

        if ((name[0] != 't' && name[0] != 'm') || name[1] != '/')
                return false;
        if (!hex_field(&p, 16, 0, &saved) || !hex_field(&p, 16, '.', &version) || !hex_field(&p, 12, '.', &expires) ||
                !hex_field(&p, 8, 0, &topic) || !hex_field(&p, 8, 0, &agent) || !hex_field(&p, 8, '.', &status) ||
                !hex_field(&p, 8, '.', &size))
                return false;
        *ret = (struct s3_index){ (int64_t) (~saved), (int64_t) expires, ~version, (uint32_t) topic, (uint32_t) agent, (uint32_t) status,
                (size_t) size, p };
        return true;
}

const char *s3_entry_fault(const struct om_store_entry *entry) {
        if (entry->key.len > OM_STORE_KEY_MAX || entry->name.len > OM_STORE_KEY_MAX)
                return "a key or name is longer than 1024 bytes";
        return NULL;
}
