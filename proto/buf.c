/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The byte buffer and the arena; buf_json.c writes JSON into the buffer.
 *
 * Always true: len <= cap; data is NULL exactly when cap is 0; after a failed allocation `failed` is set, what was written
 * before is intact, and appending does nothing until om_buf_clear().
 *
 * Called by whoever makes frames, records, keys. Thread: any, one at a time for each buffer.
 */
#include "buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUF_FIRST = 256 }; /* bytes of a buffer's first allocation: most frames are smaller */

void om_buf_deinit(struct om_buf *b) {
        free(b->data);
        *b = (struct om_buf) OM_BUF_INIT;
}

void om_buf_clear(struct om_buf *b) {
        b->len = 0;
        b->failed = false;
}

void om_buf_shrink(struct om_buf *b, size_t keep) {
        if (b->len == 0 && b->cap > keep) {
                free(b->data);
                b->data = NULL;
                b->cap = 0;
        }
}

void om_buf_consume(struct om_buf *b, size_t n) {
        if (n >= b->len) {
                b->len = 0;
                return;
        }
        if (n > 0) {
                memmove(b->data, b->data + n, b->len - n);
                b->len -= n;
        }
}

static bool resize(struct om_buf *b, size_t cap) {
        char *data = realloc(b->data, cap);

        if (!data) {
                b->failed = true;
                return false;
        }
        b->data = data;
        b->cap = cap;
        return true;
}

bool om_buf_grow(struct om_buf *b, size_t n) {
        size_t need, cap = b->cap ? b->cap : BUF_FIRST;
        if (__builtin_add_overflow(b->len, n, &need) || need > SIZE_MAX / 2) {
                b->failed = true;
                return false;
        }
        while (cap < need)
                cap *= 2;
        return resize(b, cap);
}

char *om_buf_fit(struct om_buf *b, size_t n) {
        size_t need;

        if (b->failed)
                return NULL;
        if (__builtin_add_overflow(b->len, n, &need) || need > SIZE_MAX / 2) {
                b->failed = true;
                return NULL;
        }
        if ((need > b->cap || !b->data) && !resize(b, need > BUF_FIRST ? need : BUF_FIRST))
                return NULL;
        return b->data + b->len;
}

void om_buf_printf(struct om_buf *b, const char *format, ...) {
        va_list ap, again;
        va_start(ap, format);
        va_copy(again, ap);
        char small[256];
        int n = vsnprintf(small, sizeof small, format, ap);
        if (n < 0)
                b->failed = true; /* only a conversion that the format should not hold, or more than INT_MAX bytes */
        else if ((size_t) n < sizeof small)
                om_buf_put(b, small, (size_t) n);
        else {
                char *to = om_buf_reserve(b, (size_t) n + 1);
                if (to) {
                        vsnprintf(to, (size_t) n + 1, format, again);
                        b->len += (size_t) n;
                }
        }
        va_end(again);
        va_end(ap);
}

static const char hundred[] = /* two digits each */
        "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
        "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";

void om_buf_u64(struct om_buf *b, uint64_t value) {
        char digits[20], *p = digits + sizeof digits;
        for (; value >= 100; value /= 100) /* two at a time: times have thirteen digits, and a result four times */
                memcpy(p -= 2, hundred + 2 * (value % 100), 2);
        if (value >= 10)
                memcpy(p -= 2, hundred + 2 * value, 2);
        else
                *--p = (char) ('0' + value);
        om_buf_put(b, p, (size_t) (digits + sizeof digits - p));
}

void om_buf_i64(struct om_buf *b, int64_t value) {
        if (value < 0)
                om_buf_putc(b, '-');
        om_buf_u64(b, value < 0 ? -(uint64_t) value : (uint64_t) value);
}

/* -- the arena ----------------------------------------------------------------------------------------------------- */

struct om_arena_chunk {
        struct om_arena_chunk *next; /* older */
        size_t size;                 /* of `bytes` */
        _Alignas(16) char bytes[];
};

enum { ARENA_ALIGN = 16, ARENA_FIRST = 1024 - sizeof(struct om_arena_chunk), ARENA_GROWTH_MAX = 64 * 1024 };

void *om_arena_alloc(struct om_arena *a, size_t n) {
        if (n > SIZE_MAX / 2)
                return NULL;
        size_t need = (n + ARENA_ALIGN - 1) & ~(size_t) (ARENA_ALIGN - 1);
        struct om_arena_chunk *c = a->chunks;
        if (!c || c->size - a->used_bytes < need) {
                size_t size = c && c->size < ARENA_GROWTH_MAX ? 2 * c->size : c ? ARENA_GROWTH_MAX : ARENA_FIRST;
                if (size < need)
                        size = need;
                c = malloc(sizeof *c + size);
                if (!c)
                        return NULL;
                c->size = size;
                c->next = a->chunks;
                a->chunks = c;
                a->used_bytes = 0;
        }
        void *p = c->bytes + a->used_bytes;
        a->used_bytes += need;
        return p;
}

struct om_span om_arena_copy(struct om_arena *a, struct om_span s) {
        if (!s.p || s.len == SIZE_MAX)
                return OM_SPAN_NONE;
        char *p = om_arena_alloc(a, s.len + 1);
        if (!p)
                return OM_SPAN_NONE;
        memcpy(p, s.p, s.len);
        p[s.len] = '\0';
        return (struct om_span){ p, s.len };
}

void om_arena_deinit(struct om_arena *a) {
        while (a->chunks) {
                struct om_arena_chunk *older = a->chunks->next;
                free(a->chunks);
                a->chunks = older;
        }
        a->used_bytes = 0;
}
