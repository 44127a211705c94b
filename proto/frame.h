/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FRAME_H
#define OM_FRAME_H
/*
 * Frames: 4 bytes, unsigned, big-endian, the length of the body; then the body (PROTOCOL.md, "Frames").
 *
 * The reader works on a contiguous piece of memory and copies nothing; the writer reserves the four bytes in a buffer and
 * fills them in at the end. Thread: any.
 */
#include "buf.h"
#include "error.h"

enum { OM_FRAME_HEADER = 4 };
#define OM_FRAME_MAX_DEFAULT ((size_t) 16 << 20) /* bytes of body; told in `hello` as limits.frame_bytes */

/*
 * Looks at the frame that starts at `data`.
 * 1: it is whole; *ret_body is its body (in `data`), and it takes OM_FRAME_HEADER + ret_body->len bytes.
 * 0: more bytes are needed; ret_body->len is the body's length once the header is there, else 0; p is NULL.
 * -EINVAL: a body of no bytes. -EMSGSIZE: longer than max_bytes. Both fill `e`; the connection cannot go on.
 */
int om_frame_peek(const char *data, size_t len, size_t max_bytes, struct om_span *ret_body, struct om_error *e);

/* Starts a frame at the end of `b`; returns its mark for om_frame_end(). */
size_t om_frame_begin(struct om_buf *b);
/* Fills in the length. -EMSGSIZE (and the frame is taken out again) when the body is above max_bytes; -ENOMEM when b->failed. */
int om_frame_end(struct om_buf *b, size_t mark, size_t max_bytes);

#endif
