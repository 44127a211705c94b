/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames: a length, big-endian, and a body (PROTOCOL.md, "Frames").
 *
 * Always true: the reader looks at no byte past what it is given and trusts no length before it is held against the limit;
 * the writer never leaves a half-made frame in a buffer when it says that there was none.
 *
 * Called by the daemon's sessions and by the clients, for every message. Thread: any.
 */
#include "frame.h"

#include <errno.h>

int om_frame_peek(const char *data, size_t len, size_t max_bytes, struct om_span *ret_body, struct om_error *e) {
        if (len < OM_FRAME_HEADER) {
                *ret_body = OM_SPAN_NONE;
                return 0;
        }
        const unsigned char *h = (const unsigned char *) data;
        size_t body = (size_t) h[0] << 24 | (size_t) h[1] << 16 | (size_t) h[2] << 8 | h[3];
        if (body == 0)
                return om_error_set_code(e, OM_CODE_REQUEST, OM_INVALID, "frame: a length of 0; a body is one JSON object");
        if (body > max_bytes) {
                om_error_set_code(
                        e, OM_CODE_REQUEST, OM_LIMIT, "frame: a length of %zu bytes; frame_bytes, the limit, is %zu", body, max_bytes);
                return -EMSGSIZE;
        }
        if (len - OM_FRAME_HEADER < body) {
                *ret_body = (struct om_span){ NULL, body };
                return 0;
        }
        *ret_body = (struct om_span){ data + OM_FRAME_HEADER, body };
        return 1;
}

size_t om_frame_begin(struct om_buf *b) {
        size_t mark = b->len;
        om_buf_put(b, "\0\0\0", OM_FRAME_HEADER);
        return mark;
}

int om_frame_end(struct om_buf *b, size_t mark, size_t max_bytes) {
        if (b->failed)
                return -ENOMEM;
        size_t body = b->len - mark - OM_FRAME_HEADER;
        if (body > max_bytes || body > UINT32_MAX || body == 0) {
                b->len = mark;
                return body == 0 ? -EINVAL : -EMSGSIZE;
        }
        unsigned char *h = (unsigned char *) b->data + mark;
        h[0] = (unsigned char) (body >> 24);
        h[1] = (unsigned char) (body >> 16);
        h[2] = (unsigned char) (body >> 8);
        h[3] = (unsigned char) body;
        return 0;
}
