/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FUZZ_PIECES_H
#define OM_FUZZ_PIECES_H
/*
 * Inputs that are a script: pieces, each begun by the byte 0xff, which no UTF-8 text has, and a letter that says what to do with the bytes
 * up to the next piece. What stands before the first piece is skipped. So a text editor can nearly write them, a fuzzer that copies pieces
 * around keeps them whole, and one that flips bytes meets what is in them.
 */
#include <string.h>

#include "../../proto/buf.h"

struct pieces {
        const uint8_t *p, *end;
};

static inline struct pieces pieces_of(const uint8_t *data, size_t size) {
        const uint8_t *first = size ? memchr(data, 0xff, size) : NULL;
        return (struct pieces){ first ? first : data + size, data + size };
}

/* The next piece's letter (0 at the end) and its bytes. */
static inline uint8_t pieces_next(struct pieces *s, struct om_span *ret) {
        if (s->end - s->p < 2)
                return 0;
        uint8_t letter = s->p[1];
        const uint8_t *from = s->p + 2, *to = memchr(from, 0xff, (size_t) (s->end - from));
        s->p = to ? to : s->end;
        *ret = (struct om_span){ (const char *) from, (size_t) (s->p - from) };
        return letter ? letter : ' ';
}

#endif
