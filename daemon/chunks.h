/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CHUNKS_H
#define OM_CHUNKS_H
/*
 * Text that grows and never moves: a list of large pieces, filled one after the other. Records of one batch are written straight into it,
 * and spans into it stay valid until om_chunks_clear(). Zero-initialised is empty. Any thread, one at a time.
 */
#include "../proto/buf.h"

struct om_chunk;
struct om_chunks {
        struct om_chunk *newest;
        size_t bytes; /* written, in all chunks */
};

/* The buffer to append to: at most `bound` bytes may be written before the next call. NULL when out of memory. */
struct om_buf *om_chunks_room(struct om_chunks *c, size_t bound);
/* A zero-terminated copy. Absent stays absent, and is absent when out of memory. */
struct om_span om_chunks_copy(struct om_chunks *c, struct om_span s);
/* Empties; keeps one chunk of the usual size for the next batch. */
void om_chunks_clear(struct om_chunks *c);
void om_chunks_deinit(struct om_chunks *c);

#endif
