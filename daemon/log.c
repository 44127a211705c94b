/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: each message is composed, has its secrets taken out and its control characters made visible, and leaves in one write.
 *
 * What is always true:
 *   - no password of a URL passes here: om_url_redact() sees every message, whoever wrote it;
 *   - a line is a line: a message cannot forge a second one, nor steer a terminal. Newlines, other control characters and bytes that are
 *     not UTF-8 are written as \n, \t, \xNN;
 *   - lines of different threads never mix: each is one write() or one datagram to the journal;
 *   - a reader of standard error that stops reading does not stop the daemon: lines are dropped, counted, and the count is told when there
 * is room again.
 *
 * In the journal, a message has PRIORITY and SYSLOG_IDENTIFIER and no time of ours. On standard error a line is "TIME LEVEL MESSAGE": the
 * time of day and colours on a terminal, UTC in RFC 3339 elsewhere. Any thread.
 */
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include <time.h>
#include <unistd.h>

#include "../backends/url.h"
#include "log.h"

/* What is longer is somebody's data, not a message; and below PIPE_BUF a write to a pipe that poll() finds writable does not block. */
enum { MESSAGE_MAX = 3072, FULL_WAIT_MS = 100 };

/* Set by om_log_open(), before there are other threads; the level by om_log_set_level() at any time. */
static bool to_journal, colour, terminal;
static atomic_int threshold = OM_LOG_INFO;
static atomic_uint n_lost; /* lines that standard error did not take */

/* Whether standard error is the journal's stream: systemd.exec(5), $JOURNAL_STREAM, "device:inode". */
static bool stderr_is_journal(void) {
        const char *text = getenv("JOURNAL_STREAM");
        unsigned long long device, inode;
        struct stat st;

        if (!text || sscanf(text, "%llu:%llu", &device, &inode) != 2 || fstat(STDERR_FILENO, &st) < 0)
                return false;
        return st.st_dev == device && st.st_ino == inode;
}

void om_log_open(enum om_log_target target, enum om_level max_level) {
        const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");

        to_journal = target == OM_LOG_JOURNAL || (target == OM_LOG_AUTO && stderr_is_journal());
        /* sd_journal_sendv() reports success where no journal runs: the line would be lost. */
        to_journal = to_journal && access("/run/systemd/journal/socket", W_OK) == 0;
        terminal = isatty(STDERR_FILENO);
        colour = terminal && !(no_colour && *no_colour) && term && strcmp(term, "dumb") != 0;
        om_log_set_level(max_level);
}

void om_log_set_level(enum om_level max_level) { atomic_store_explicit(&threshold, (int) max_level, memory_order_relaxed); }

bool om_log_enabled(enum om_level level) { return (int) level <= atomic_load_explicit(&threshold, memory_order_relaxed); }

/* -- one line ------------------------------------------------------------------------------------------------------ */

/* Length of the UTF-8 character at p, 0 when it is none (RFC 3629) or is a control character. */
static size_t printable(const unsigned char *p, size_t len) {
        static const unsigned char second_min[5] = { 0, 0, 0x80, 0x80, 0x80 };
        size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 1;

        if (n == 1)
                return p[0] >= 0x20 && p[0] < 0x7f;
        if (p[0] > 0xf4 || n > len || p[1] < second_min[n])
                return 0;
        for (size_t i = 1; i < n; i++)
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
        if ((p[0] == 0xc2 && p[1] < 0xa0) || (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f))
                return 0; /* C1 controls, overlong, surrogates */
        if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
                return 0; /* overlong, above U+10FFFF */
        return n;
}

static void put_escaped(struct om_buf *out, const char *text, size_t len) {
        const unsigned char *p = (const unsigned char *) text;

        for (size_t i = 0, n; i < len; i += n) {
                n = printable(p + i, len - i);
                if (n > 0) {
                        om_buf_put(out, text + i, n);
                        continue;
                }
                n = 1;
                if (p[i] == '\n')
                        om_buf_lit(out, "\\n");
                else if (p[i] == '\t')
                        om_buf_lit(out, "\\t");
                else
                        om_buf_printf(out, "\\x%02x", p[i]);
        }
}

static void put_time(struct om_buf *out) {
        struct timespec now;
        struct tm tm;
        char text[32];

        clock_gettime(CLOCK_REALTIME, &now);
        if (terminal) {
                localtime_r(&now.tv_sec, &tm);
                strftime(text, sizeof text, "%H:%M:%S", &tm);
                om_buf_printf(out, "%s.%03ld ", text, now.tv_nsec / 1000000);
        } else {
                gmtime_r(&now.tv_sec, &tm);
                strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
                om_buf_printf(out, "%s.%03ldZ ", text, now.tv_nsec / 1000000);
        }
}

static void put_level(struct om_buf *out, enum om_level level) {
        static const struct {
                const char *word, *colour;
        } looks[] = {
                [OM_LOG_ERROR] = { "error  ", "\033[1;31m" },
                [OM_LOG_WARNING] = { "warning", "\033[33m" },
                [OM_LOG_NOTICE] = { "notice ", "\033[1m" },
                [OM_LOG_INFO] = { "info   ", "" },
                [OM_LOG_DEBUG] = { "debug  ", "\033[2m" },
        };

        if (colour && looks[level].colour && *looks[level].colour)
                om_buf_printf(out, "%s%s\033[0m ", looks[level].colour, looks[level].word);
        else
                om_buf_printf(out, "%s ", looks[level].word);
}

/* Whether standard error takes a line now. It is waited for a little, once; while lines are being lost it is not. */
static bool stderr_has_room(void) {
        struct pollfd fd = { .fd = STDERR_FILENO, .events = POLLOUT };

        return poll(&fd, 1, atomic_load_explicit(&n_lost, memory_order_relaxed) ? 0 : FULL_WAIT_MS) == 1 && (fd.revents & POLLOUT);
}

static void put_line(struct om_buf *line, enum om_level level, const char *message, size_t len) {
        put_time(line);
        put_level(line, level);
        put_escaped(line, message, len);
        om_buf_putc(line, '\n');
}

static void write_stderr(enum om_level level, const char *message, size_t len) {
        struct om_buf lines = OM_BUF_INIT;
        unsigned lost;
        ssize_t n;

        if (!stderr_has_room()) {
                atomic_fetch_add_explicit(&n_lost, 1, memory_order_relaxed);
                return;
        }
        lost = atomic_exchange_explicit(&n_lost, 0, memory_order_relaxed);
        if (lost > 0) {
                char text[80];
                int text_len = snprintf(text, sizeof text, "%u log lines were lost: nobody read standard error", lost);

                put_line(&lines, OM_LOG_WARNING, text, (size_t) text_len);
        }
        put_line(&lines, level, message, len);
        if (om_buf_ok(&lines)) {
                do
                        n = write(STDERR_FILENO, lines.data, lines.len);
                while (n < 0 && errno == EINTR);
        }
        om_buf_deinit(&lines);
}

static int send_journal(enum om_level level, const struct om_buf *message) {
        char priority[] = "PRIORITY=6", identifier[] = "SYSLOG_IDENTIFIER=omnidaemond";
        struct iovec fields[3];

        priority[sizeof priority - 2] = (char) ('0' + level);
        fields[0] = (struct iovec){ message->data, message->len };
        fields[1] = (struct iovec){ priority, sizeof priority - 1 };
        fields[2] = (struct iovec){ identifier, sizeof identifier - 1 };
        return sd_journal_sendv(fields, 3);
}

static void send_line(enum om_level level, const char *message, size_t len) {
        struct om_buf field = OM_BUF_INIT;
        bool sent = false;

        if (to_journal) {
                om_buf_lit(&field, "MESSAGE=");
                put_escaped(&field, message, len);
                sent = om_buf_ok(&field) && send_journal(level, &field) == 0;
                om_buf_deinit(&field);
        }
        if (!sent)
                write_stderr(level, message, len);
}

void om_log(enum om_level level, const char *format, ...) {
        struct om_buf clean = OM_BUF_INIT;
        char text[MESSAGE_MAX];
        int saved_errno = errno, n;
        va_list ap;

        if (!om_log_enabled(level))
                return;
        va_start(ap, format);
        n = vsnprintf(text, sizeof text, format, ap);
        va_end(ap);
        if (n >= (int) sizeof text)
                n = (int) sizeof text - 1;
        if (n > 0)
                om_url_redact(&clean, text, (size_t) n);
        if (om_buf_ok(&clean) && clean.len > 0)
                send_line(level, clean.data, clean.len);
        om_buf_deinit(&clean);
        errno = saved_errno;
}

void om_log_error(enum om_level level, const struct om_error *e, const char *context) {
        om_log(level, "%s%s%s", context ? context : "", context ? ": " : "", e->message);
}
