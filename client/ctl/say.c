/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What omnictl says: on standard error for people, on standard output for whoever asked. Messages may hold what a daemon, a file name or a
 * task said, so control characters in them are made visible. Colour is sparing: states, names and titles.
 */
#include "ctl.h"
#include "text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One line on standard error, in one write, so that lines of several programs do not mix. */
__attribute__((format(printf, 2, 0))) static void put_error_line(const char *prefix, const char *format, va_list args) {
        struct om_buf line = OM_BUF_INIT;
        char *text = NULL;

        if (vasprintf(&text, format, args) < 0) {
                return;
        }
        om_buf_puts(&line, prefix);
        text_put_safe(&line, om_span_of(text));
        om_buf_putc(&line, '\n');
        if (om_buf_ok(&line)) {
                fwrite(line.data, 1, line.len, stderr);
        }
        om_buf_deinit(&line);
        free(text);
}

__attribute__((format(printf, 2, 0))) static void put_prefixed(struct ctl *ctl, const char *format, va_list args) {
        char prefix[64];

        snprintf(prefix, sizeof(prefix), "%.40s: ", ctl->program);
        put_error_line(prefix, format, args);
}

int ctl_fail(struct ctl *ctl, int code, const char *format, ...) {
        va_list args;

        va_start(args, format);
        put_prefixed(ctl, format, args);
        va_end(args);
        return code;
}

int ctl_usage(struct ctl *ctl, const char *format, ...) {
        const char *path = ctl->args.command ? ctl->args.command->path : NULL;
        va_list args;

        va_start(args, format);
        put_prefixed(ctl, format, args);
        va_end(args);
        fprintf(stderr, "Try \"%s%s%s --help\".\n", ctl->program, path ? " " : "", path ? path : "");
        return CTL_USAGE;
}

void ctl_note(struct ctl *ctl, const char *format, ...) {
        va_list args;

        if (!ctl->quiet) {
                va_start(args, format);
                put_error_line("", format, args);
                va_end(args);
        }
}

void ctl_say(struct ctl *ctl, const char *format, ...) {
        char *text = NULL;
        va_list args;

        va_start(args, format);
        if (!ctl->quiet && vasprintf(&text, format, args) >= 0) {
                text_put_safe(&ctl->out, om_span_of(text));
                om_buf_putc(&ctl->out, '\n');
                free(text);
        }
        va_end(args);
}

int ctl_confirm(struct ctl *ctl, const char *format, ...) {
        char answer[64] = "", *text = NULL;
        struct om_buf safe = OM_BUF_INIT;
        va_list args;
        int r;

        if (ctl->yes) {
                return 0;
        }
        va_start(args, format);
        r = vasprintf(&text, format, args);
        va_end(args);
        if (r < 0) {
                return ctl_fail(ctl, CTL_FAILED, "out of memory");
        }
        if (!isatty(STDIN_FILENO) || !ctl->err_tty) {
                r = ctl_fail(ctl, CTL_USAGE, "%s There is no terminal to ask on: say --yes.", text);
                free(text);
                return r;
        }
        text_put_safe(&safe, om_span_of(text));
        fprintf(stderr, "%.*s [y/N] ", OM_PRI(om_buf_span(&safe)));
        om_buf_deinit(&safe);
        free(text);
        if (!fgets(answer, sizeof(answer), stdin)) {
                fputc('\n', stderr);
        }
        if (strcasecmp(answer, "y\n") == 0 || strcasecmp(answer, "yes\n") == 0) {
                return 0;
        }
        return ctl_fail(ctl, CTL_FAILED, "nothing was done");
}

int ctl_flush(struct ctl *ctl) {
        size_t done = 0;
        int r = 0;

        if (!om_buf_ok(&ctl->out)) {
                r = ctl_fail(ctl, CTL_FAILED, "out of memory");
        }
        while (r == 0 && done < ctl->out.len) {
                ssize_t n = write(STDOUT_FILENO, ctl->out.data + done, ctl->out.len - done);

                if (n >= 0) {
                        done += (size_t) n;
                } else if (errno != EINTR) {
                        /* A reader that has seen enough (`| head`) is no fault to complain about. */
                        r = errno == EPIPE ? CTL_FAILED : ctl_fail(ctl, CTL_FAILED, "cannot write to standard output: %s", strerror(errno));
                }
        }
        om_buf_clear(&ctl->out);
        return r;
}

/* -- colour -------------------------------------------------------------------------------------------------------- */

void ctl_style(struct ctl *ctl, struct om_buf *b, enum ctl_style style) {
        static const char *const codes[] = { [STYLE_NONE] = NULL,
                [STYLE_HEAD] = "\033[1m",
                [STYLE_DIM] = "\033[2m",
                [STYLE_GOOD] = "\033[32m",
                [STYLE_WARN] = "\033[33m",
                [STYLE_BAD] = "\033[31m",
                [STYLE_NAME] = "\033[36m" };

        ctl->last_sgr = NULL;
        if (ctl->color && codes[style]) {
                om_buf_puts(b, codes[style]);
                ctl->last_sgr = "\033[0m";
        }
}

void ctl_style_end(struct ctl *ctl, struct om_buf *b) {
        if (ctl->last_sgr) {
                om_buf_puts(b, ctl->last_sgr);
        }
        ctl->last_sgr = NULL;
}
