/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The terminal: see term.h. What puts it back is called from signal handlers too, so it makes only calls that are allowed there (write,
 * tcsetattr, sigaction, raise); what it needs stands in static variables that are set before the handlers are.
 */
#include "term.h"

#include "../../proto/buf.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
enum { N_SIGNALS = sizeof(signals) / sizeof(*signals) };

static struct {
        volatile sig_atomic_t entered, resized;
        bool keys;
        struct termios saved;
        struct sigaction old[N_SIGNALS], old_winch;
} term;

static unsigned from_environment(const char *name) {
        const char *text = getenv(name);
        long n = text ? strtol(text, NULL, 10) : 0;
        return n > 0 && n < 10000 ? (unsigned) n : 0;
}

unsigned term_columns(int fd) {
        struct winsize size;

        if (!isatty(fd)) {
                return 0;
        }
        if (from_environment("COLUMNS")) {
                return from_environment("COLUMNS");
        }
        return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

unsigned term_rows(int fd) {
        struct winsize size;

        if (!isatty(fd)) {
                return 0;
        }
        if (from_environment("LINES")) {
                return from_environment("LINES");
        }
        return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_row ? size.ws_row : 24;
}

double term_seconds(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

double term_now(void) {
        struct timespec t;

        clock_gettime(CLOCK_REALTIME, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static void put(const char *text, size_t len) {
        while (len > 0) {
                ssize_t n = write(STDOUT_FILENO, text, len);

                if (n < 0 && errno != EINTR) {
                        return;
                }
                if (n > 0) {
                        text += n;
                        len -= (size_t) n;
                }
        }
}

static void restore(void) {
        static const char leave[] = "\033[?25h\033[?1049l";

        if (!term.entered) {
                return;
        }
        term.entered = 0;
        put(leave, sizeof(leave) - 1);
        if (term.keys) {
                tcsetattr(STDIN_FILENO, TCSANOW, &term.saved);
        }
}

/* Puts the terminal back, then lets the signal do what it does without us, so that the shell sees how we ended. */
static void on_signal(int number) {
        int saved = errno;

        restore();
        signal(number, SIG_DFL);
        raise(number);
        errno = saved;
}

static void on_resize(int number) {
        (void) number;
        term.resized = 1;
}

void term_enter(bool keys) {
        static const char enter[] = "\033[?1049h\033[?25l\033[H\033[2J";
        struct sigaction action = { .sa_handler = on_signal };
        static bool registered;

        if (term.entered) {
                return;
        }
        term.keys = keys && isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &term.saved) == 0;
        if (!registered) {
                registered = true;
                atexit(term_leave);
        }
        sigfillset(&action.sa_mask);
        for (size_t i = 0; i < N_SIGNALS; i++) {
                sigaction(signals[i], &action, &term.old[i]);
        }
        action.sa_handler = on_resize;
        sigaction(SIGWINCH, &action, &term.old_winch);
        term.entered = 1;
        put(enter, sizeof(enter) - 1);
        if (term.keys) {
                struct termios raw = term.saved;

                raw.c_lflag &= ~(tcflag_t) (ICANON | ECHO);
                raw.c_cc[VMIN] = 1;
                raw.c_cc[VTIME] = 0;
                tcsetattr(STDIN_FILENO, TCSANOW, &raw);
        }
}

void term_leave(void) {
        if (!term.entered) {
                return;
        }
        restore();
        for (size_t i = 0; i < N_SIGNALS; i++) {
                sigaction(signals[i], &term.old[i], NULL);
        }
        sigaction(SIGWINCH, &term.old_winch, NULL);
}

void term_draw(const char *text, unsigned long len) {
        struct om_buf b = OM_BUF_INIT;
        unsigned rows = term_rows(STDOUT_FILENO), row = 0;
        const char *end = text + len;

        om_buf_puts(&b, "\033[H");
        while (text < end && (rows == 0 || row < rows)) {
                const char *line_end = memchr(text, '\n', (size_t) (end - text));
                size_t n = (size_t) ((line_end ? line_end : end) - text);

                om_buf_puts(&b, row++ ? "\r\n" : "");
                om_buf_put(&b, text, n);
                om_buf_puts(&b, "\033[K");
                text += n + 1;
        }
        om_buf_puts(&b, "\033[J");
        if (om_buf_ok(&b)) {
                put(b.data, b.len);
        }
        om_buf_deinit(&b);
}

/* What follows an escape; a lone Escape is the key 27. */
static int escape_sequence(void) {
        struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
        char s[8];
        ssize_t n = poll(&p, 1, 20) > 0 ? read(STDIN_FILENO, s, sizeof(s) - 1) : 0;

        if (n >= 2 && (s[0] == '[' || s[0] == 'O')) {
                switch (s[1]) {
                case 'A':
                        return TERM_UP;
                case 'B':
                        return TERM_DOWN;
                case '5':
                        return TERM_PAGE_UP;
                case '6':
                        return TERM_PAGE_DOWN;
                default:
                        return 0;
                }
        }
        return 27;
}

int term_key(int64_t timeout_ms) {
        struct pollfd p = { .fd = term.keys ? STDIN_FILENO : -1, .events = POLLIN };
        unsigned char c;
        int r;

        if (term.resized) {
                term.resized = 0;
                return TERM_RESIZED;
        }
        r = poll(&p, 1, timeout_ms > 1000000 ? 1000000 : (int) timeout_ms);
        if (term.resized) {
                term.resized = 0;
                return TERM_RESIZED;
        }
        if (r <= 0) {
                return 0;
        }
        if (read(STDIN_FILENO, &c, 1) <= 0) {
                return -1;
        }
        return c == 27 ? escape_sequence() : c;
}
