/* SPDX-License-Identifier: Apache-2.0 */
/* Files and lines: see input.h. */
#include "input.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 64 << 10 };

static int open_input(const char *path) {
        int fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

/* Reads once. The number of bytes, 0 at the end, -errno. */
static ssize_t read_chunk(int fd, struct om_buf *b) {
        char *to = om_buf_reserve(b, CHUNK);
        ssize_t n;

        if (!to) {
                return -ENOMEM;
        }
        do {
                n = read(fd, to, CHUNK);
        } while (n < 0 && errno == EINTR);
        if (n < 0) {
                return -errno;
        }
        b->len += (size_t) n;
        return n;
}

int input_read_file(const char *path, struct om_buf *b) {
        int fd = open_input(path);
        ssize_t n;

        if (fd < 0) {
                return fd;
        }
        do {
                n = b->len > INPUT_MAX ? -EFBIG : read_chunk(fd, b);
        } while (n > 0);
        close(fd);
        return (int) n;
}

int input_lines_open(struct input_lines *in, const char *path) {
        *in = (struct input_lines){ .fd = open_input(path) };
        return in->fd < 0 ? in->fd : 0;
}

void input_lines_close(struct input_lines *in) {
        if (in->fd >= 0) {
                close(in->fd);
        }
        in->fd = -1;
        om_buf_deinit(&in->b);
}

int input_lines_next(struct input_lines *in, struct om_span *ret) {
        for (;;) {
                const char *from = in->b.data ? in->b.data + in->start : "";
                size_t left = in->b.len - in->start;
                const char *end = left > in->scanned ? memchr(from + in->scanned, '\n', left - in->scanned) : NULL;
                ssize_t n;

                if (end || (in->end && left)) {
                        size_t len = end ? (size_t) (end - from) : left;

                        in->start += len + (end != NULL);
                        in->scanned = 0;
                        in->number++;
                        *ret = (struct om_span){ from, len - (len && from[len - 1] == '\r') };
                        return 1;
                }
                if (in->end) {
                        return 0;
                }
                in->scanned = left;
                if (left > INPUT_MAX) {
                        in->number++;
                        return -EFBIG;
                }
                om_buf_consume(&in->b, in->start);
                in->start = 0;
                n = read_chunk(in->fd, &in->b);
                if (n < 0) {
                        return (int) n;
                }
                in->bytes += (size_t) n;
                in->end = n == 0;
        }
}

bool input_is_text(struct om_span s) {
        size_t len;

        for (size_t i = 0; i < s.len; i += len) {
                uint32_t c = text_char(s.p + i, s.len - i, &len);

                if (c == 0 || (c == 0xfffd && len == 1)) {
                        return false;
                }
        }
        return true;
}
