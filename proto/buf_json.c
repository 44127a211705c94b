/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON written into a buffer: strings, numbers, times.
 *
 * Always true: what is appended is a whole JSON value by RFC 8259, whatever bytes or numbers came in, in any locale of the
 * process. Bytes that are not UTF-8 come from command lines and environment variables, not from the wire; they become
 * U+FFFD, because a frame must be UTF-8.
 *
 * Called by whoever makes frames and records. Thread: any, one at a time for each buffer.
 */
#include "buf.h"
#include "locale_c.h"
#include "text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char hex[] = "0123456789abcdef";

/* The escape of `"`, `\` or a control character. */
static void put_escape(struct om_buf *b, char c) {
        char two[2] = { '\\', c };
        switch (c) {
        case '"':
        case '\\':
                break;
        case '\n':
                two[1] = 'n';
                break;
        case '\r':
                two[1] = 'r';
                break;
        case '\t':
                two[1] = 't';
                break;
        case '\b':
                two[1] = 'b';
                break;
        case '\f':
                two[1] = 'f';
                break;
        default: {
                char six[6] = { '\\', 'u', '0', '0', hex[(c >> 4) & 15], hex[c & 15] };
                om_buf_put(b, six, sizeof six);
                return;
        }
        }
        om_buf_put(b, two, sizeof two);
}

void om_buf_json_string(struct om_buf *b, const char *data, size_t n) {
        const char *p = data, *end = data ? data + n : data;
        char *to = om_buf_reserve(b, n + 2);
        if (!to)
                return;
        if (n && om_text_skip_plain(p, end) == end) { /* most are, and short */
                to[0] = to[n + 1] = '"';
                memcpy(to + 1, data, n);
                b->len += n + 2;
                return;
        }
        om_buf_putc(b, '"');
        while (p < end) {
                const char *run = p;
                size_t len = 1;
                /* plain bytes and whole characters go out together */
                while ((p = om_text_skip_plain(p, end)) < end && (signed char) *p < 0 && (len = om_text_utf8(p, end)) > 0)
                        p += len;
                om_buf_put(b, run, (size_t) (p - run));
                if (p == end)
                        break;
                if (len == 0)
                        om_buf_lit(b, "\xef\xbf\xbd");
                else
                        put_escape(b, *p);
                p++;
        }
        om_buf_putc(b, '"');
}

/* Takes out what %g writes and JSON does not need: the sign and the leading zeros of the exponent ("1e+05", "1e-07"). */
static size_t tidy_exponent(char *text) {
        char *e = strchr(text, 'e');
        if (!e)
                return strlen(text);
        char *to = e + 1, *from = e + 1;
        if (*from == '+')
                from++;
        else if (*from == '-')
                *to++ = *from++;
        while (*from == '0' && from[1])
                from++;
        memmove(to, from, strlen(from) + 1);
        return strlen(text);
}

void om_buf_json_double(struct om_buf *b, double value) {
        if (!isfinite(value)) {
                om_buf_lit(b, "null");
                return;
        }
        char text[32];
        locale_t c = om_locale_c(), before = c ? uselocale(c) : (locale_t) 0;
        /* 15 digits always survive, and %g leaves off their zeros, so nothing shorter is missed; a denormal has fewer */
        for (int digits = fabs(value) < 2.2250738585072014e-308 ? 1 : 15; digits <= 17; digits++) {
                snprintf(text, sizeof text, "%.*g", digits, value);
                if (strtod(text, NULL) == value)
                        break;
        }
        if (c)
                uselocale(before);
        om_buf_put(b, text, tidy_exponent(text));
}

void om_buf_json_time(struct om_buf *b, int64_t ms) {
        uint64_t size = ms < 0 ? -(uint64_t) ms : (uint64_t) ms;
        if (ms < 0)
                om_buf_putc(b, '-');
        om_buf_u64(b, size / 1000);
        unsigned rest = (unsigned) (size % 1000);
        char fraction[4] = { '.', (char) ('0' + rest / 100), (char) ('0' + rest / 10 % 10), (char) ('0' + rest % 10) };
        om_buf_put(b, fraction, sizeof fraction);
}
