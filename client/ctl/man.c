/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The man page, from the table of commands: `omnictl __man > packaging/man/omnictl.1`. A test compares that file with what this prints.
 */
#include "help.h"

#include <string.h>

/* Text for troff: backslashes and hyphens are escaped, a line never begins with a control character. */
static void put_text(struct om_buf *b, const char *text) {
        bool start = true;

        for (; *text; text++) {
                if (text[0] == '\n' && text[1] == '\n') {
                        om_buf_puts(b, "\n.PP\n");
                        text++;
                        start = true;
                        continue;
                }
                if (start && (*text == '.' || *text == '\'')) {
                        om_buf_puts(b, "\\&");
                }
                start = *text == '\n';
                if (*text == '\\') {
                        om_buf_puts(b, "\\e");
                } else if (*text == '-') {
                        om_buf_puts(b, "\\-");
                } else if (*text == '\'') {
                        om_buf_puts(b, "\\(aq");
                } else if (strncmp(text, "…", 3) == 0) {
                        om_buf_puts(b, "...");
                        text += 2;
                } else {
                        om_buf_putc(b, *text);
                }
        }
        om_buf_putc(b, '\n');
}

static void put_bold(struct om_buf *b, struct om_buf *text) {
        om_buf_puts(b, ".B ");
        if (ctl_text(text)) {
                put_text(b, text->data);
        }
        om_buf_deinit(text);
}

static void put_options(struct om_buf *b, const struct option *options) {
        for (const struct option *o = options; o && o->name; o++) {
                struct om_buf name = OM_BUF_INIT;

                if (o->flags & OPT_HIDDEN) {
                        continue;
                }
                om_buf_puts(b, ".TP\n");
                if (o->flags & OPT_POSITION) {
                        om_buf_puts(&name, o->value);
                } else {
                        help_put_option(&name, o);
                }
                put_bold(b, &name);
                put_text(b, o->help);
        }
}

static void put_command(struct om_buf *b, const struct command *c) {
        struct om_buf usage = OM_BUF_INIT;

        om_buf_puts(b, ".SS ");
        put_text(b, c->path);
        om_buf_puts(&usage, "omnictl ");
        help_put_usage(&usage, c);
        put_bold(b, &usage);
        om_buf_puts(b, ".PP\n");
        put_text(b, c->about ? c->about : c->summary);
        if (c->also) {
                om_buf_puts(b, ".PP\nAlso: ");
                put_text(b, c->also);
        }
        put_options(b, c->options);
        for (const struct example *e = c->examples; e && e->command; e++) {
                om_buf_puts(b, e == c->examples ? ".PP\nExamples:\n.PP\n.nf\n" : "");
                om_buf_puts(b, "    # ");
                put_text(b, e->what);
                om_buf_puts(b, "    omnictl ");
                put_text(b, e->command);
        }
        om_buf_puts(b, c->examples ? ".fi\n" : "");
}

static void put_codes(struct om_buf *b, const struct help_code *codes) {
        for (const struct help_code *c = codes; c->meaning; c++) {
                om_buf_printf(b, ".TP\n.B %d\n", c->code);
                put_text(b, c->meaning);
        }
}

static void put_variable(struct om_buf *b, const char *name, const char *text) {
        om_buf_printf(b, ".TP\n.B %s\n", name);
        put_text(b, text);
}

int cmd_man(struct ctl *ctl) {
        struct om_buf *b = &ctl->out;

        om_buf_puts(b, ".\\\" Made by `omnictl __man` from its table of commands.\n");
        om_buf_printf(b, ".TH OMNICTL 1 \"\" \"OmniDaemon %s\" \"OmniDaemon\"\n", omni_version());
        om_buf_puts(b, ".SH NAME\nomnictl, omnidaemon \\- look into OmniDaemon and steer it\n");
        om_buf_puts(
                b, ".SH SYNOPSIS\n.B omnictl\n.I COMMAND\n[OPTIONS] [ARGUMENTS]\n.PP\n.B omnidaemon\n.I COMMAND\n[OPTIONS] [ARGUMENTS]\n");
        om_buf_puts(b, ".SH DESCRIPTION\n");
        put_text(b,
                "Publishes tasks and shows their results, shows agents, topics, dead letters and metrics, changes settings, and makes any "
                "program an agent. "
                "It talks to omnidaemond through its socket. On a terminal it prints tables for people, in a pipe JSON.");
        om_buf_puts(b, ".PP\n");
        put_text(b,
                "Options may stand before, between and behind arguments; \"--\" ends them. Arguments can be given by name too: --topic "
                "TOPIC. Times are a number of "
                "seconds, or have a unit: 500ms, 10s, 3min, 2h, 1d. Sizes are bytes, or have a unit: 64k, 1M, 1G.");
        om_buf_puts(b, ".SH OPTIONS FOR ALL COMMANDS\n");
        put_options(b, ctl_global_options);
        om_buf_puts(b, ".SH COMMANDS\n");
        for (const struct command *c = ctl_commands; c->path; c++) {
                if (c->run && !(c->flags & CMD_HIDDEN)) {
                        put_command(b, c);
                }
        }
        om_buf_puts(b, ".SH EXIT STATUS\n");
        put_codes(b, help_exit_codes);
        om_buf_puts(b, ".PP\nOf a program that\n.B omnictl agent run\nruns:\n");
        put_codes(b, help_run_codes);
        om_buf_puts(b, ".TP\n.B any other\n");
        put_text(b, "the task fails with what the program wrote on standard error, and is tried again while retries are left");
        om_buf_puts(b, ".SH ENVIRONMENT\n");
        put_variable(b, "OMNIDAEMON_SOCKET", "the daemon's socket");
        put_variable(b, "NO_COLOR", "set and not empty: no colour");
        put_variable(b, "COLUMNS, LINES", "the terminal's size, where it is not the terminal's own");
        om_buf_puts(b, ".SH FILES\n");
        put_variable(b, "$XDG_RUNTIME_DIR/omnidaemon/omnidaemon.sock", "the socket of a user's daemon");
        put_variable(b, "/run/omnidaemon/omnidaemon.sock", "the socket of the system's daemon");
        om_buf_puts(b, ".SH SEE ALSO\n.BR omnidaemond (8)\n");
        return 0;
}
