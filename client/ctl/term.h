/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_TERM_H
#define OM_CTL_TERM_H
/*
 * The terminal: its size, a screen of its own for what is redrawn, single keys, and putting everything back however the program ends.
 *
 * term_enter() switches to the alternate screen; whatever ends the program then (return, exit, SIGINT, SIGTERM, SIGHUP, SIGQUIT) switches
 * back, shows the cursor and restores the line settings. SIGKILL cannot be helped. One thread; state is the process's, as the terminal is.
 */
#include <stdbool.h>
#include <stdint.h>

/* Columns and rows of the terminal at descriptor `fd`; 0 when it is none or does not say. COLUMNS and LINES in the environment win. */
unsigned term_columns(int fd);
unsigned term_rows(int fd);

/* Takes the terminal at standard output: alternate screen, no cursor; with `keys` also single keys without echo from standard input. */
void term_enter(bool keys);
void term_leave(void);
/* Draws a whole frame over the former one without flicker: lines as they are in `text`, cut to the rows there are. */
void term_draw(const char *text, unsigned long len);
/* Waits for a key (its byte), at most timeout_ms: 0 when none came, -1 at the end of input. Arrow keys come as TERM_UP, TERM_DOWN … */
enum { TERM_UP = 256, TERM_DOWN, TERM_PAGE_UP, TERM_PAGE_DOWN, TERM_RESIZED };
int term_key(int64_t timeout_ms);

/* A clock that only goes forward, in seconds. */
double term_seconds(void);
/* Unix time in seconds. */
double term_now(void);

#endif
