/* SPDX-License-Identifier: Apache-2.0 */
/* Widths, cutting, escaping, and numbers for people: see text.h. */
#include "text.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <time.h>
#include <wchar.h>

uint32_t text_char(const char *p, size_t n, size_t *ret_len) {
        const unsigned char *s = (const unsigned char *) p;
        static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
        uint32_t c = s[0];
        size_t len = c < 0x80 ? 1 : c >= 0xf0 && c < 0xf8 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 0;

        *ret_len = 1;
        if (len == 1) {
                return c;
        }
        if (len == 0 || len > n || c >= 0xf8) {
                return 0xfffd;
        }
        c &= 0x7fu >> len;
        for (size_t i = 1; i < len; i++) {
                if ((s[i] & 0xc0) != 0x80) {
                        return 0xfffd;
                }
                c = c << 6 | (s[i] & 0x3f);
        }
        if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
                return 0xfffd;
        }
        *ret_len = len;
        return c;
}

/* The C library knows widths only in a UTF-8 locale; C.UTF-8 is always there, and used for this one question. */
static int width_utf8(uint32_t c) {
        static locale_t utf8;
        static bool tried;
        locale_t old;
        int w;

        if (!tried) {
                tried = true;
                utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t) 0);
        }
        if (!utf8) {
                return 1;
        }
        old = uselocale(utf8);
        w = wcwidth((wchar_t) c);
        uselocale(old);
        return w;
}

unsigned text_char_width(uint32_t c) {
        int w = c < 0x7f ? 1 : width_utf8(c);
        return w < 0 ? 1 : (unsigned) w;
}

bool text_char_safe(uint32_t c) {
        if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {
                return false;
        }
        /* soft hyphen; marks and overrides of direction; line and paragraph separators; invisible operators; byte order mark; tags */
        return !(c == 0xad || c == 0x61c || c == 0x200b || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
                (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) || (c >= 0xe0000 && c <= 0xe007f));
}

unsigned text_width(struct om_span s) {
        unsigned width = 0;
        size_t len;

        for (size_t i = 0; i < s.len; i += len) {
                width += text_char_width(text_char(s.p + i, s.len - i, &len));
        }
        return width;
}

static void put_escaped(struct om_buf *b, uint32_t c) {
        static const char named[] = { ['\a'] = 'a', ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\v'] = 'v', ['\f'] = 'f', ['\r'] = 'r' };

        if (c < sizeof(named) && named[c]) {
                om_buf_putc(b, '\\');
                om_buf_putc(b, named[c]);
        } else {
                om_buf_printf(b, c < 0x80 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        }
}

static void put_checked(struct om_buf *b, struct om_span s, bool field) {
        size_t len;

        for (size_t i = 0; i < s.len; i += len) {
                uint32_t c = text_char(s.p + i, s.len - i, &len);

                if (!text_char_safe(c)) {
                        put_escaped(b, c);
                } else if (c == 0xfffd && len == 1) {
                        om_buf_puts(b, "\xef\xbf\xbd");
                } else {
                        if (field && c == '\\') {
                                om_buf_putc(b, '\\');
                        }
                        om_buf_put(b, s.p + i, len);
                }
        }
}

void text_put_safe(struct om_buf *b, struct om_span s) { put_checked(b, s, false); }

void text_put_field(struct om_buf *b, struct om_span s) { put_checked(b, s, true); }

unsigned text_put_cut(struct om_buf *b, struct om_span s, unsigned width, bool ascii) {
        unsigned full = text_width(s), dots = ascii ? 3 : 1, used = 0;
        size_t i = 0, len;

        if (full <= width) {
                om_buf_put_span(b, s);
                return full;
        }
        if (width < dots) {
                text_put_spaces(b, width);
                return width;
        }
        while (i < s.len) {
                unsigned w = text_char_width(text_char(s.p + i, s.len - i, &len));

                if (used + w > width - dots) {
                        break;
                }
                used += w;
                i += len;
        }
        om_buf_put(b, s.p, i);
        om_buf_puts(b, ascii ? "..." : "…");
        return used + dots;
}

void text_put_spaces(struct om_buf *b, size_t n) {
        char *p = om_buf_reserve(b, n);

        if (p) {
                memset(p, ' ', n);
                b->len += n;
        }
}

/* -- numbers for people -------------------------------------------------------------------------------------------- */

/* Local time; false for what no calendar has. */
static bool local(double when, struct tm *ret) {
        time_t t = when > 0 && when < 2.5e11 ? (time_t) when : 0;
        return localtime_r(&t, ret) != NULL;
}

void text_put_date(struct om_buf *b, double when) {
        struct tm tm;
        char text[64];

        om_buf_puts(b, local(when, &tm) && strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm) ? text : "?");
}

void text_put_clock(struct om_buf *b, double when) {
        struct tm tm;
        char text[64];

        om_buf_puts(b, local(when, &tm) && strftime(text, sizeof(text), "%H:%M:%S", &tm) ? text : "?");
        om_buf_printf(b, ".%03d", (int) ((when - floor(when)) * 1000) % 1000);
}

void text_put_ago(struct om_buf *b, double when, double now) {
        double s = now - when;
        const char *in = s < 0 ? "in " : "", *ago = s < 0 ? "" : " ago";

        if (!isfinite(s)) {
                om_buf_puts(b, "?");
                return;
        }
        s = fabs(s);
        if (s < 1) {
                om_buf_puts(b, "now");
        } else if (s < 60) {
                om_buf_printf(b, "%s%d s%s", in, (int) s, ago);
        } else if (s < 3600) {
                om_buf_printf(b, "%s%d min%s", in, (int) (s / 60), ago);
        } else if (s < 2 * 86400) {
                om_buf_printf(b, "%s%d h%s", in, (int) (s / 3600), ago);
        } else if (s < 30 * 86400.0) {
                om_buf_printf(b, "%s%d days%s", in, (int) (s / 86400), ago);
        } else {
                text_put_date(b, when);
        }
}

void text_put_duration(struct om_buf *b, double s, bool ascii) {
        if (!isfinite(s) || s < 0) {
                om_buf_puts(b, "?");
        } else if (s == 0) {
                om_buf_puts(b, "0 ms");
        } else if (s < 0.001) {
                om_buf_printf(b, "%.0f %ss", s * 1e6, ascii ? "u" : "µ");
        } else if (s < 0.01) {
                om_buf_printf(b, "%.1f ms", s * 1e3);
        } else if (s < 1) {
                om_buf_printf(b, "%.0f ms", s * 1e3);
        } else if (s < 10) {
                om_buf_printf(b, "%.1f s", s);
        } else if (s < 120) {
                om_buf_printf(b, "%.0f s", s);
        } else if (s < 2 * 3600) {
                om_buf_printf(b, "%.0f min", floor(s / 60));
        } else if (s < 2 * 86400) {
                om_buf_printf(b, "%.0f h %.0f min", floor(s / 3600), floor(fmod(s, 3600) / 60));
        } else {
                om_buf_printf(b, "%.0f days", floor(s / 86400));
        }
}

void text_put_size(struct om_buf *b, double bytes) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
        size_t u = 0;

        while (bytes >= 1023.5 && u + 1 < sizeof(units) / sizeof(*units)) {
                bytes /= 1024;
                u++;
        }
        om_buf_printf(b, u > 0 && bytes < 9.95 ? "%.1f %s" : "%.0f %s", bytes, units[u]);
}

void text_put_rate(struct om_buf *b, double r) {
        if (!isfinite(r)) {
                om_buf_puts(b, "?");
        } else if (r == 0) {
                om_buf_puts(b, "0");
        } else if (r < 9.95) {
                om_buf_printf(b, "%.1f", r);
        } else if (r < 9999.5) {
                om_buf_printf(b, "%.0f", r);
        } else if (r < 1e6) {
                om_buf_printf(b, "%.1fk", r / 1e3);
        } else {
                om_buf_printf(b, "%.1fM", r / 1e6);
        }
}
