/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions: `omnictl __complete WORDS…` prints candidates for the last word, one a line with a tab and what it is; the shells' scripts
 * (completion_scripts.c) only ask it. Candidates come from the table of commands, and from the running daemon where a value is a topic, an
 * agent or a setting: that one is given a third of a second. A line ":files" or ":programs" leaves it to the shell.
 */
#include "ctl.h"
#include "doc.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>

enum { DAEMON_MS = 300 };

struct completion {
        struct ctl *ctl;
        struct args line;   /* what stands before the last word */
        const char *before; /* printed in front of each value: "--format=" */
        size_t before_len;
        const char *word; /* what the last word has so far, without `before` */
};

static void put(struct completion *c, struct om_span candidate, const char *what) {
        size_t len = strlen(c->word);

        if (candidate.len < len || memcmp(candidate.p, c->word, len) != 0) {
                return;
        }
        om_buf_put(&c->ctl->out, c->before, c->before_len);
        text_put_safe(&c->ctl->out, candidate);
        om_buf_printf(&c->ctl->out, "\t%s\n", what);
}

/* -- the daemon's -------------------------------------------------------------------------------------------------- */

/* The members named `member` of the elements of `array` in the answer of a method; with `array` of an object its keys. */
static void put_from_daemon(struct completion *c, const char *method, const char *params, const char *array, const char *member) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        omni_client *client = NULL;
        char *answer = NULL;
        size_t len = 0;

        options.socket_path = args_text(&c->line, "socket");
        options.connect_timeout_ms = 0;
        options.call_timeout_ms = DAEMON_MS;
        if (omni_new(&options, &client) == 0 && omni_connect(client, 0) == 0 && omni_call(client, method, params, &answer, &len) >= 0) {
                struct doc_each each = doc_each(doc_get(doc_root((struct om_span){ answer, len }), array));
                struct om_arena arena = { 0 };

                while (doc_next(&each)) {
                        put(c, doc_text(each.object ? each.key : doc_get(each.value, member), &arena), "");
                }
                om_arena_deinit(&arena);
        }
        free(answer);
        omni_free(client);
}

static void put_agents(struct completion *c) {
        struct om_buf params = OM_BUF_INIT;

        om_buf_putc(&params, '{');
        ctl_put_text(&params, "topic", args_text(&c->line, "topic"));
        om_buf_putc(&params, '}');
        if (ctl_text(&params)) {
                put_from_daemon(c, "agent.list", params.data, "agents", "name");
        }
        om_buf_deinit(&params);
}

/* -- the table's --------------------------------------------------------------------------------------------------- */

static void put_commands(struct completion *c, const char *group) {
        size_t len = strlen(group);

        for (const struct command *k = ctl_commands; k->path; k++) {
                const char *word = k->path + len + (len > 0);

                if ((k->flags & CMD_HIDDEN) || !args_in_group(k->path, group) || strlen(k->path) <= len || strchr(word, ' ')) {
                        continue;
                }
                put(c, om_span_of(word), k->summary);
        }
}

static void put_value(struct completion *c, const struct option *o) {
        for (size_t i = 0; o->choices && o->choices[i]; i++) {
                put(c, om_span_of(o->choices[i]), "");
        }
        switch (o->offer) {
        case OFFER_FILES:
                om_buf_puts(&c->ctl->out, ":files\n");
                break;
        case OFFER_PROGRAMS:
                om_buf_puts(&c->ctl->out, ":programs\n");
                break;
        case OFFER_COMMANDS:
                put_commands(c, "");
                break;
        case OFFER_TOPICS:
                put_from_daemon(c, "bus.topics", "{\"limit\":1000}", "topics", "topic");
                break;
        case OFFER_AGENTS:
                put_agents(c);
                break;
        case OFFER_KEYS:
                put_from_daemon(c, "config.list", "{}", "config", NULL);
                break;
        case OFFER_NOTHING:
                break;
        }
}

static void put_options(struct completion *c, const struct option *table, bool required_only) {
        for (const struct option *o = table; o && o->name; o++) {
                struct om_buf name = OM_BUF_INIT;
                bool used = args_has(&c->line, o->name) && !(o->flags & OPT_REPEAT);

                if (!(o->flags & (OPT_HIDDEN | OPT_POSITION)) && !used && (!required_only || (o->flags & OPT_REQUIRED))) {
                        om_buf_printf(&name, "--%s", o->name);
                        put(c, om_buf_span(&name), o->help);
                }
                om_buf_deinit(&name);
        }
}

/* The option that a word names exactly: "--topic", "-t". NULL: none. */
static const struct option *named(const struct args *a, const char *word, size_t len) {
        const struct option *tables[] = { a->command ? a->command->options : NULL, ctl_global_options };

        for (size_t t = 0; t < 2; t++) {
                for (const struct option *o = tables[t]; o && o->name; o++) {
                        bool is_long = len > 2 && word[1] == '-' && strlen(o->name) == len - 2 && memcmp(o->name, word + 2, len - 2) == 0;

                        if (is_long || (len == 2 && o->letter && word[1] == o->letter)) {
                                return o;
                        }
                }
        }
        return NULL;
}

static const struct option *free_position(const struct args *a) {
        for (const struct option *o = a->command ? a->command->options : NULL; o && o->name; o++) {
                if ((o->flags & OPT_POSITION) && ((o->flags & OPT_REPEAT) || !args_has(a, o->name))) {
                        return o;
                }
        }
        return NULL;
}

static void complete_word(struct completion *c, const char *previous, bool options_end) {
        const struct command *k = c->line.command;
        const struct option *o = NULL;
        const char *equals;

        if (!options_end && previous && previous[0] == '-' && previous[1]) {
                o = named(&c->line, previous, strlen(previous));
                if (o && o->value && !(o->flags & OPT_MAYBE)) {
                        put_value(c, o);
                        return;
                }
        }
        if (!options_end && c->word[0] == '-') {
                equals = strchr(c->word, '=');
                o = equals ? named(&c->line, c->word, (size_t) (equals - c->word)) : NULL;
                if (o) {
                        c->before = c->word;
                        c->before_len = (size_t) (equals - c->word) + 1;
                        c->word = equals + 1;
                        put_value(c, o);
                } else if (!equals) {
                        put_options(c, k ? k->options : NULL, false);
                        put_options(c, ctl_global_options, false);
                }
                return;
        }
        if (!k || !k->run) {
                put_commands(c, k ? k->path : "");
                return;
        }
        if (!options_end) {
                put_options(c, k->options, true); /* what it cannot do without */
        }
        o = free_position(&c->line);
        if (o) {
                put_value(c, o);
        }
}

int cmd_complete(struct ctl *ctl) {
        size_t n = args_count(&ctl->args, "words");
        struct completion c = { .ctl = ctl, .before = "", .word = n ? args_nth(&ctl->args, "words", n - 1) : "" };
        char **words = calloc(n + 1, sizeof(*words));
        struct om_error e = OM_ERROR_INIT;
        bool options_end = false;

        if (!words) {
                return CTL_FAILED;
        }
        for (size_t i = 0; i + 1 < n; i++) {
                words[i] = (char *) args_nth(&ctl->args, "words", i);
                options_end |= strcmp(words[i], "--") == 0;
        }
        (void) args_parse(
                n ? (int) n - 1 : 0, words, ctl_commands, ctl_global_options, &c.line, &e); /* it is not finished: faults are no matter */
        complete_word(&c, n > 1 ? words[n - 2] : NULL, options_end);
        args_deinit(&c.line);
        free(words);
        return 0;
}
