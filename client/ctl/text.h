/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_TEXT_H
#define OM_CTL_TEXT_H
/*
 * Text for a terminal: how wide it is, where to cut it, and what must not get there as it is.
 *
 * What stands in tasks was written by anybody. Control characters (C0, DEL, C1), what turns the writing direction, and invisible
 * characters are shown as escapes, so that no task can move the cursor, clear the screen or hide text. Widths are those of the C library
 * for UTF-8, whatever the locale. Thread: one.
 */
#include "../../proto/buf.h"

/* Decodes the character at `p`; *ret_len is its length (1 for a byte that is no UTF-8, and the character is then U+FFFD). n > 0. */
uint32_t text_char(const char *p, size_t n, size_t *ret_len);
/* Columns that a character takes: 0, 1 or 2. */
unsigned text_char_width(uint32_t c);
/* Whether a character may reach a terminal as it is. */
bool text_char_safe(uint32_t c);

/* Columns of text that is safe already. */
unsigned text_width(struct om_span s);
/* Appends `s` with what is not safe escaped: \n, \t, \x1b, \u202e; a backslash stays. Not UTF-8 becomes U+FFFD. */
void text_put_safe(struct om_buf *b, struct om_span s);
/* The same for one field of a line: a backslash is doubled, so that a program can undo it. */
void text_put_field(struct om_buf *b, struct om_span s);
/* Appends as much of safe text as fits into `width` columns, ending with "…" (ASCII: "...") where something was left out. Returns the
 * columns. */
unsigned text_put_cut(struct om_buf *b, struct om_span s, unsigned width, bool ascii);
void text_put_spaces(struct om_buf *b, size_t n);

/* "now", "12 s ago", "3 min ago", "2 h ago", "5 days ago", a date when longer ago; "in 3 min" for the future. */
void text_put_ago(struct om_buf *b, double when, double now);
/* "2026-11-23 14:31:05", local time. */
void text_put_date(struct om_buf *b, double when);
/* "14:31:05.123", local time. */
void text_put_clock(struct om_buf *b, double when);
/* "850 µs", "12 ms", "3.2 s", "4 min", "2 h 5 min", "3 days". */
void text_put_duration(struct om_buf *b, double seconds, bool ascii);
/* "312 B", "3.1 KiB", "16 MiB". */
void text_put_size(struct om_buf *b, double bytes);
/* "0", "0.4", "12", "1520", "23.4k": a rate, short. */
void text_put_rate(struct om_buf *b, double per_second);

#endif
