/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text that grows and never moves. Each chunk is a buffer whose memory was reserved before anything was written into it; a piece that might
 * not fit opens a new chunk instead of growing the old one. Called by the dispatcher and by results.c, for batches.
 */
#include <stdlib.h>

#include "chunks.h"

enum { CHUNK_BYTES = 64 << 10 };

struct om_chunk {
        struct om_chunk *older;
        size_t counted; /* bytes of `text` that om_chunks.bytes has seen */
        struct om_buf text;
};

static void chunk_free(struct om_chunk *chunk) {
        om_buf_deinit(&chunk->text);
        free(chunk);
}

static struct om_chunk *chunk_new(size_t bytes) {
        struct om_chunk *chunk = calloc(1, sizeof *chunk);

        if (!chunk)
                return NULL;
        if (!om_buf_reserve(&chunk->text, bytes)) {
                chunk_free(chunk);
                return NULL;
        }
        return chunk;
}

struct om_buf *om_chunks_room(struct om_chunks *c, size_t bound) {
        struct om_chunk *chunk = c->newest;

        if (chunk) {
                c->bytes += chunk->text.len - chunk->counted;
                chunk->counted = chunk->text.len;
        }
        if (!chunk || chunk->text.failed || chunk->text.cap - chunk->text.len < bound) {
                chunk = chunk_new(bound > CHUNK_BYTES ? bound : CHUNK_BYTES);
                if (!chunk)
                        return NULL;
                chunk->older = c->newest;
                c->newest = chunk;
        }
        return &chunk->text;
}

struct om_span om_chunks_copy(struct om_chunks *c, struct om_span s) {
        struct om_buf *b;
        size_t at;

        if (!s.p)
                return s;
        b = om_chunks_room(c, s.len + 1);
        if (!b)
                return OM_SPAN_NONE;
        at = b->len;
        om_buf_put(b, s.p, s.len);
        om_buf_putc(b, '\0');
        return (struct om_span){ b->data + at, s.len };
}

void om_chunks_clear(struct om_chunks *c) {
        struct om_chunk *keep = NULL, *older;

        for (struct om_chunk *chunk = c->newest; chunk; chunk = older) {
                older = chunk->older;
                if (keep || chunk->text.cap > 2 * CHUNK_BYTES) {
                        chunk_free(chunk);
                        continue;
                }
                keep = chunk;
        }
        if (keep) {
                om_buf_clear(&keep->text);
                keep->older = NULL;
                keep->counted = 0;
        }
        c->newest = keep;
        c->bytes = 0;
}

void om_chunks_deinit(struct om_chunks *c) {
        struct om_chunk *older;

        for (struct om_chunk *chunk = c->newest; chunk; chunk = older) {
                older = chunk->older;
                chunk_free(chunk);
        }
        *c = (struct om_chunks){ 0 };
}
