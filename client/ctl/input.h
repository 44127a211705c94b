/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_INPUT_H
#define OM_CTL_INPUT_H
/* Reading what is to be published: whole files, and lines. Never more in memory than one task can be. Blocks. Thread: one. */
#include "../../proto/buf.h"

#define INPUT_MAX ((size_t) 16 << 20) /* a frame holds no more */

/* Appends a whole file ("-": standard input). 0; -EFBIG above INPUT_MAX; -errno. */
int input_read_file(const char *path, struct om_buf *b);

struct input_lines {
        int fd;
        struct om_buf b;
        size_t start, scanned; /* the next line begins; no newline before */
        uint64_t number;       /* of the line last returned, from 1 */
        uint64_t bytes;        /* read so far */
        bool end;
};
/* 0 or -errno. "-": standard input. */
int input_lines_open(struct input_lines *in, const char *path);
void input_lines_close(struct input_lines *in);
/* 1: the next line, without its newline (LF or CRLF), valid until the next call; 0: the end; -EFBIG, -errno. */
int input_lines_next(struct input_lines *in, struct om_span *ret);

/* Whether it is UTF-8 without zero bytes. */
bool input_is_text(struct om_span s);

#endif
