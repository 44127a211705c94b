/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_BUF_H
#define OM_BUF_H
/*
 * A growing byte buffer, the JSON that is written into it, and an arena.
 *
 * Writing is how the daemon and the clients make frames: no tree is built, text is appended. An allocation that fails
 * sets `failed` and every later append does nothing, so that a writer checks once, at the end (om_buf_ok).
 *
 * Thread: any, one at a time.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A piece of somebody else's bytes. Not zero-terminated. {NULL, 0} is "absent"; {non-NULL, 0} is empty. */
struct om_span {
        const char *p;
        size_t len;
};
#define OM_SPAN(literal) ((struct om_span){ (literal), sizeof(literal) - 1 })
#define OM_SPAN_NONE ((struct om_span){ NULL, 0 })
static inline struct om_span om_span_of(const char *text) { /* of a zero-terminated string; NULL gives absent */
        return (struct om_span){ text, text ? strlen(text) : 0 };
}
static inline bool om_span_eq(struct om_span a, struct om_span b) { return a.len == b.len && (a.len == 0 || memcmp(a.p, b.p, a.len) == 0); }
static inline bool om_span_is(struct om_span a, const char *text) { return om_span_eq(a, om_span_of(text)); }
/* For printf: "%.*s", OM_PRI(span) */
#define OM_PRI(span) (int) (span).len, (span).p ? (span).p : ""

struct om_buf {
        char *data;
        size_t len, cap;
        bool failed; /* an allocation failed; the content is cut somewhere */
};
#define OM_BUF_INIT \
        { NULL, 0, 0, false }

void om_buf_deinit(struct om_buf *b);              /* frees; the struct is as after OM_BUF_INIT */
void om_buf_clear(struct om_buf *b);               /* empties, keeps the memory, resets `failed` */
void om_buf_shrink(struct om_buf *b, size_t keep); /* when empty and larger than `keep` bytes: gives the memory back */
void om_buf_consume(struct om_buf *b, size_t n);   /* drops n bytes from the front (moves the rest) */
bool om_buf_grow(struct om_buf *b, size_t n);      /* for those below: room for n more bytes, or `failed` is set */
/* Makes room for n more bytes. Returns where they go, or NULL (and `failed` is set). Growth is geometric. */
static inline char *om_buf_reserve(struct om_buf *b, size_t n) {
        if (b->failed || ((b->cap - b->len < n || !b->data) && !om_buf_grow(b, n)))
                return NULL;
        return b->data + b->len;
}
char *om_buf_fit(struct om_buf *b, size_t n); /* the same, with no room to spare: for what is known to be the end */
static inline bool om_buf_ok(const struct om_buf *b) { return !b->failed; }
static inline struct om_span om_buf_span(const struct om_buf *b) { return (struct om_span){ b->data ? b->data : "", b->len }; }

/* Inline, as is om_buf_reserve(): most of what is put is a literal or a few bytes, and frames are made of hundreds of such puts. */
static inline void om_buf_put(struct om_buf *b, const void *data, size_t n) {
        char *to = n ? om_buf_reserve(b, n) : NULL;
        if (!to)
                return;
        memcpy(to, data, n);
        b->len += n;
}
static inline void om_buf_put_span(struct om_buf *b, struct om_span s) { om_buf_put(b, s.p, s.len); }
static inline void om_buf_putc(struct om_buf *b, char c) { om_buf_put(b, &c, 1); }
static inline void om_buf_puts(struct om_buf *b, const char *text) { om_buf_put(b, text, strlen(text)); }
#define om_buf_lit(b, literal) om_buf_put((b), (literal), sizeof(literal) - 1)
void om_buf_printf(struct om_buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void om_buf_u64(struct om_buf *b, uint64_t value); /* decimal */
void om_buf_i64(struct om_buf *b, int64_t value);

/* JSON. A string is written with quotes; `"`, `\`, and control characters are escaped, all else goes out as it is. What is
 * not UTF-8 becomes U+FFFD. A double is the shortest text that reads back the same; not finite becomes null. */
void om_buf_json_string(struct om_buf *b, const char *data, size_t n);
static inline void om_buf_json_span(struct om_buf *b, struct om_span s) { om_buf_json_string(b, s.p, s.len); }
void om_buf_json_double(struct om_buf *b, double value);
/* Unix time in milliseconds as seconds with three decimals: the `created_at`, `timestamp` … of PROTOCOL.md. */
void om_buf_json_time(struct om_buf *b, int64_t ms);

/* An arena: memory that is given back all at once. Zero-initialised is empty. */
struct om_arena {
        struct om_arena_chunk *chunks;
        size_t used_bytes; /* of the newest chunk */
};
void *om_arena_alloc(struct om_arena *a, size_t n); /* 16-byte aligned; NULL when out of memory */
struct om_span om_arena_copy(
        struct om_arena *a, struct om_span s); /* zero-terminated copy; absent stays absent, absent too when out of memory */
void om_arena_deinit(struct om_arena *a);

#endif
