/* SPDX-License-Identifier: Apache-2.0 */
/*
 * omnictl: looks into OmniDaemon and steers it.
 *
 * Reads the command line by the table (commands.c), runs the command, writes what it has to say to standard output; with --watch again and
 * again. One thread. The name it was called by (omnictl, omnidaemon) is the name it gives itself.
 */
#include "ctl.h"
#include "help.h"
#include "term.h"
#include "text.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CALL_TIMEOUT_MS = 30000, WATCH_MS = 2000 };

/* ASCII lines only where the environment asks for a locale without UTF-8: one that says nothing (a bare container) has a UTF-8 terminal. */
static bool wants_ascii(void) {
        const char *names[] = { "LC_ALL", "LC_CTYPE", "LANG" };

        for (size_t i = 0; i < 3; i++) {
                const char *value = getenv(names[i]);

                if (value && *value) {
                        return !strcasestr(value, "utf-8") && !strcasestr(value, "utf8");
                }
        }
        return false;
}

/* `agent run --timeout` is about the program, not about calls. */
static int64_t call_timeout_ms(const struct args *a) {
        for (const struct option *o = a->command ? a->command->options : NULL; o && o->name; o++) {
                if (strcmp(o->name, "timeout") == 0) {
                        return CALL_TIMEOUT_MS;
                }
        }
        return args_number(a, "timeout", CALL_TIMEOUT_MS);
}

static void set_up_output(struct ctl *ctl) {
        const char *no_color = getenv("NO_COLOR"), *kind = getenv("TERM");
        bool color = !args_has(&ctl->args, "no-color") && !(no_color && *no_color) && !(kind && strcmp(kind, "dumb") == 0);

        ctl->out_tty = isatty(STDOUT_FILENO);
        ctl->err_tty = isatty(STDERR_FILENO);
        ctl->color = color && ctl->out_tty;
        ctl->err_color = color && ctl->err_tty;
        ctl->ascii = wants_ascii();
        ctl->width = term_columns(STDOUT_FILENO);
        ctl->format_given = args_has(&ctl->args, "format");
        ctl->format = (enum ctl_format) args_number(&ctl->args, "format", ctl->out_tty ? FORMAT_TABLE : FORMAT_JSON);
        ctl->quiet = args_has(&ctl->args, "quiet");
        ctl->yes = args_has(&ctl->args, "yes");
        ctl->timeout_ms = call_timeout_ms(&ctl->args);
        ctl->watch_ms = args_has(&ctl->args, "watch") ? args_number(&ctl->args, "watch", WATCH_MS) : 0;
        ctl->now = term_now();
}

/* --watch: a frame, a pause, the next. On a terminal each is drawn over the former; in a pipe they follow each other, tables parted by a
 * line with the time. A daemon that is away is said so in the frame, and waited for. */
static int run_watching(struct ctl *ctl) {
        int r;

        if (ctl->out_tty) {
                term_enter(true);
        }
        for (;;) {
                struct om_buf head = OM_BUF_INIT;
                int key;

                ctl->now = term_now();
                ctl->width = term_columns(STDOUT_FILENO);
                text_put_clock(&head, ctl->now);
                if (ctl->out_tty) {
                        ctl_style(ctl, &ctl->out, STYLE_DIM);
                        om_buf_printf(&ctl->out, "%s %s  every %g s  %.8s  q ends", ctl->program, ctl->args.command->path,
                                (double) ctl->watch_ms / 1000, ctl_text(&head) ? head.data : "");
                        ctl_style_end(ctl, &ctl->out);
                        om_buf_puts(&ctl->out, "\n\n");
                } else if (ctl->format == FORMAT_TABLE || ctl->format == FORMAT_TREE) {
                        om_buf_printf(&ctl->out, "--- %.8s\n", ctl_text(&head) ? head.data : "");
                }
                om_buf_deinit(&head);
                r = ctl->args.command->run(ctl);
                if (ctl->out_tty) {
                        term_draw(ctl->out.data, ctl->out.len);
                        om_buf_clear(&ctl->out);
                } else if (ctl_flush(ctl)) {
                        return CTL_OK; /* nobody reads any more */
                }
                if (r == CTL_USAGE) {
                        return r;
                }
                do {
                        key = term_key(ctl->watch_ms);
                } while (key > 0 && key != 'q' && key != TERM_RESIZED && key != ' ');
                if (key == 'q' || key < 0) {
                        return CTL_OK;
                }
        }
}

static int run(struct ctl *ctl) {
        const struct command *c = ctl->args.command;
        int r;

        if (args_has(&ctl->args, "version")) {
                om_buf_printf(&ctl->out, "%s %s\n", ctl->program, omni_version());
                return ctl_flush(ctl);
        }
        if (ctl->args.help || !c) {
                help_put(ctl, &ctl->out, c);
                r = ctl_flush(ctl);
                return ctl->args.help || r ? r : CTL_USAGE;
        }
        if (!c->run) {
                help_put(ctl, &ctl->out, c);
                ctl_flush(ctl);
                return CTL_USAGE;
        }
        if (ctl->format == FORMAT_CSV && !(c->flags & CMD_CSV)) {
                return ctl_usage(ctl, "--format csv is for storage query; compact is for cut and awk");
        }
        if (ctl->watch_ms) {
                return c->flags & CMD_READS ? run_watching(ctl) : ctl_usage(ctl, "--watch is for commands that only read");
        }
        r = c->run(ctl);
        return ctl_flush(ctl) && r == 0 ? CTL_FAILED : r;
}

int main(int argc, char *argv[]) {
        const char *name = argc > 0 && argv[0] && *argv[0] ? argv[0] : "omnictl";
        struct ctl ctl = { .program = strrchr(name, '/') ? strrchr(name, '/') + 1 : name };
        struct om_error e = OM_ERROR_INIT;
        int r;

        r = args_parse(argc > 1 ? argc - 1 : 0, argv + 1, ctl_commands, ctl_global_options, &ctl.args, &e);
        set_up_output(&ctl);
        if (r == -ENOMEM) {
                r = ctl_fail(&ctl, CTL_FAILED, "out of memory");
        } else if (r < 0 && !ctl.args.help) {
                r = ctl_usage(&ctl, "%s", e.message);
        } else {
                r = run(&ctl);
        }
        term_leave();
        omni_free(ctl.client);
        args_deinit(&ctl.args);
        om_buf_deinit(&ctl.out);
        return r;
}
