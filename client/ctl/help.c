/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --help at each level: how it is called, what it does, its options, examples. Made from the table of commands, so that it cannot be out of
 * step. On a terminal the lines are as long as it is wide (at most 100 columns), in a pipe 80.
 */
#include "help.h"
#include "text.h"

#include <stdio.h>
#include <string.h>

enum { WIDTH = 80, WIDTH_MAX = 100, OPTION_COLUMN = 28 };

const struct help_code help_exit_codes[] = {
        { CTL_OK, "done" },
        { CTL_FAILED, "the daemon refused, the task failed, or something broke on the way" },
        { CTL_USAGE, "the command line is wrong, or --yes is missing" },
        { CTL_NO_DAEMON, "no daemon answers at the socket" },
        { CTL_NOT_FOUND, "there is no such task, agent, topic, key" },
        { CTL_TIMEOUT, "it did not come in time" },
        { CTL_DENIED, "not allowed for this user" },
        { CTL_UNAVAILABLE, "a server is away or something is full: the same may work later" },
        { 0, NULL },
};

const struct help_code help_run_codes[] = {
        { 0, "the task is done; standard output is its result" },
        { 100, "the task fails for good: no retry" },
        { 0, NULL },
};

/* Appends words of `text`, broken to fit, each line behind `indent` spaces; the first one starts at column `at`. */
static void put_wrapped(struct om_buf *b, const char *text, unsigned indent, unsigned at, unsigned width) {
        unsigned column = at;
        bool start = true;

        while (*text) {
                size_t len = strcspn(text, " \n");
                unsigned w = text_width((struct om_span){ text, len });

                if (!start && column + 1 + w > width) {
                        om_buf_putc(b, '\n');
                        text_put_spaces(b, indent);
                        column = indent;
                        start = true;
                }
                if (!start) {
                        om_buf_putc(b, ' ');
                        column++;
                }
                om_buf_put(b, text, len);
                column += w;
                start = false;
                text += len;
                if (text[0] == '\n' && text[1] == '\n') {
                        om_buf_puts(b, "\n\n");
                        text_put_spaces(b, indent);
                        column = indent;
                        start = true;
                        text += 2;
                } else if (*text) {
                        text++;
                }
        }
        om_buf_putc(b, '\n');
}

static void put_title(struct ctl *ctl, struct om_buf *b, const char *title) {
        om_buf_putc(b, '\n');
        ctl_style(ctl, b, STYLE_HEAD);
        om_buf_puts(b, title);
        ctl_style_end(ctl, b);
        om_buf_putc(b, '\n');
}

/* "name" in a column, what it is beside it. */
static void put_entry(struct ctl *ctl, struct om_buf *b, struct om_span name, const char *text, unsigned column, unsigned width) {
        unsigned w = text_width(name);

        text_put_spaces(b, 2);
        ctl_style(ctl, b, STYLE_NAME);
        om_buf_put_span(b, name);
        ctl_style_end(ctl, b);
        if (w + 4 > column) {
                om_buf_putc(b, '\n');
                text_put_spaces(b, column);
        } else {
                text_put_spaces(b, column - 2 - w);
        }
        put_wrapped(b, text, column, column, width);
}

void help_put_option(struct om_buf *b, const struct option *o) {
        if (o->letter) {
                om_buf_printf(b, "-%c, ", o->letter);
        }
        om_buf_printf(b, "--%s", o->name);
        if (o->value) {
                om_buf_printf(b, o->flags & OPT_MAYBE ? "[=%s]" : " %s", o->value);
        }
}

void help_put_usage(struct om_buf *b, const struct command *c) {
        bool options = false;

        om_buf_puts(b, c->path);
        for (const struct option *o = c->options; o && o->name; o++) {
                if (!(o->flags & OPT_POSITION) && (o->flags & OPT_REQUIRED)) {
                        om_buf_printf(b, " --%s %s", o->name, o->value);
                } else {
                        options |= !(o->flags & OPT_POSITION);
                }
        }
        om_buf_puts(b, options ? " [OPTIONS]" : "");
        for (const struct option *o = c->options; o && o->name; o++) {
                if (o->flags & OPT_POSITION) {
                        bool many = o->flags & OPT_REPEAT && !strchr(o->value, ' ');

                        om_buf_printf(b, o->flags & OPT_REQUIRED ? " %s%s%s" : " [%s%s%s]", c->flags & CMD_PROGRAM ? "-- " : "", o->value,
                                many ? "…" : "");
                }
        }
}

static unsigned help_width(const struct ctl *ctl) {
        return !ctl->width ? WIDTH : ctl->width > WIDTH_MAX ? WIDTH_MAX : ctl->width < 40 ? 40 : ctl->width;
}

static void put_options(struct ctl *ctl, struct om_buf *b, const struct option *options, bool positions, const char *title) {
        bool any = false;

        for (const struct option *o = options; o && o->name; o++) {
                struct om_buf name = OM_BUF_INIT, text = OM_BUF_INIT;

                if (!!(o->flags & OPT_POSITION) != positions || (o->flags & OPT_HIDDEN)) {
                        continue;
                }
                if (!any) {
                        put_title(ctl, b, title);
                        any = true;
                }
                if (positions) {
                        om_buf_puts(&name, o->value);
                } else {
                        help_put_option(&name, o);
                }
                om_buf_puts(&text, o->help);
                if (positions && !(o->flags & OPT_REPEAT)) {
                        om_buf_printf(&text, " (or --%s)", o->name);
                }
                if (ctl_text(&text)) {
                        put_entry(ctl, b, om_buf_span(&name), text.data, OPTION_COLUMN, help_width(ctl));
                }
                om_buf_deinit(&name);
                om_buf_deinit(&text);
        }
}

static void put_examples(struct ctl *ctl, struct om_buf *b, const struct command *c) {
        if (!c->examples) {
                return;
        }
        put_title(ctl, b, "Examples");
        for (const struct example *e = c->examples; e->command; e++) {
                ctl_style(ctl, b, STYLE_DIM);
                om_buf_printf(b, "  # %s", e->what);
                ctl_style_end(ctl, b);
                om_buf_printf(b, "\n  %s %s\n", ctl->program, e->command);
        }
}

static void put_command(struct ctl *ctl, struct om_buf *b, const struct command *c) {
        om_buf_printf(b, "Usage: %s ", ctl->program);
        help_put_usage(b, c);
        om_buf_puts(b, "\n\n");
        put_wrapped(b, c->about ? c->about : c->summary, 0, 0, help_width(ctl));
        if (c->also && strcmp(c->also, c->path) != 0) {
                om_buf_printf(b, "\nAlso: %s %s\n", ctl->program, c->also);
        }
        put_options(ctl, b, c->options, true, "Arguments");
        put_options(ctl, b, c->options, false, "Options");
        put_examples(ctl, b, c);
        om_buf_printf(b, "\nOptions for all commands, and exit codes: %s --help\n", ctl->program);
}

/* The commands below `group`, each with its summary; groups as a whole when `group` is "". */
static void put_commands(struct ctl *ctl, struct om_buf *b, const char *group) {
        size_t len = strlen(group);

        for (const struct command *c = ctl_commands; c->path; c++) {
                bool below = len ? args_in_group(c->path, group) && c->path[len] : !strchr(c->path, ' ');

                if (below && !(c->flags & CMD_HIDDEN)) {
                        put_entry(ctl, b, om_span_of(c->path), c->summary, 22, help_width(ctl));
                }
        }
}

static void put_codes(struct ctl *ctl, struct om_buf *b, const struct help_code *codes) {
        for (const struct help_code *c = codes; c->meaning; c++) {
                char number[8];

                snprintf(number, sizeof(number), "%d", c->code);
                put_entry(ctl, b, om_span_of(number), c->meaning, 7, help_width(ctl));
        }
}

static void put_program(struct ctl *ctl, struct om_buf *b) {
        om_buf_printf(
                b, "%s looks into OmniDaemon and steers it.\n\nUsage: %s COMMAND [OPTIONS] [ARGUMENTS]\n", ctl->program, ctl->program);
        put_title(ctl, b, "Commands");
        put_commands(ctl, b, "");
        put_options(ctl, b, ctl_global_options, false, "Options for all commands");
        put_title(ctl, b, "Exit codes");
        put_codes(ctl, b, help_exit_codes);
        put_title(ctl, b, "Examples");
        om_buf_printf(b,
                "  %s agent run --topic words --name counter -- wc -w &\n  %s task publish --topic words --text --wait \"to be or not\"\n  "
                "%s health\n",
                ctl->program, ctl->program, ctl->program);
        om_buf_printf(b, "\n\"%s COMMAND --help\" says more about each.\n", ctl->program);
}

void help_put(struct ctl *ctl, struct om_buf *b, const struct command *c) {
        if (!c) {
                put_program(ctl, b);
        } else if (c->run) {
                put_command(ctl, b, c);
        } else {
                om_buf_printf(b, "Usage: %s %s COMMAND\n", ctl->program, c->path);
                put_title(ctl, b, c->summary);
                put_commands(ctl, b, c->path);
                om_buf_printf(b, "\n\"%s COMMAND --help\" says more about each, with examples.\n", ctl->program);
        }
}

int cmd_help(struct ctl *ctl) {
        struct om_buf path = OM_BUF_INIT;
        const struct command *c = NULL;
        size_t n = args_count(&ctl->args, "command");
        int r = 0;

        for (size_t i = 0; i < n; i++) {
                om_buf_printf(&path, "%s%s", i ? " " : "", args_nth(&ctl->args, "command", i));
        }
        if (n) {
                const char *text = ctl_text(&path);

                c = text ? args_find(ctl_commands, text) : NULL;
                r = c ? 0 : ctl_usage(ctl, "no command \"%s\"", text ? text : "");
        }
        if (r == 0) {
                help_put(ctl, &ctl->out, c);
        }
        om_buf_deinit(&path);
        return r;
}
