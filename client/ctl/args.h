/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_ARGS_H
#define OM_CTL_ARGS_H
/*
 * The command line: what commands there are is a table (commands.c), and this reads a command line by it. --help, the completions and the
 * man page are made from the same table (help.c, complete.c, man.c), so that none of them can say something else.
 *
 * An argument by position is an option that may also stand without its name: `agent get greet greeter` and `agent get --topic greet --name
 * greeter` are the same. Options may stand before, between and after arguments; `--` ends them. A long option may be shortened as far as it
 * is clear which is meant.
 */
#include "../../proto/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_type {
        OPT_FLAG,
        OPT_TEXT,
        OPT_INT,    /* within min and max */
        OPT_TIME,   /* 2, 0.5, 500ms, 10s, 3min, 2h, 1d: milliseconds; a bare number counts seconds */
        OPT_SIZE,   /* 4096, 64k, 1M, 1G: bytes, powers of 1024 */
        OPT_CHOICE, /* one of `choices` */
};

enum {
        OPT_POSITION = 1 << 0, /* may stand without its name, in the order of the table */
        OPT_REQUIRED = 1 << 1,
        OPT_REPEAT = 1 << 2, /* may stand several times; as the last position: takes all that is left */
        OPT_MAYBE = 1 << 3, /* its value may be left out: --watch, --watch=2, --watch 2 (only what reads as a time is taken as its value) */
        OPT_HIDDEN = 1 << 4, /* works, but is not shown: names of the Python OmniDaemon */
};

/* What the shell may offer as a value. */
enum option_offer { OFFER_NOTHING, OFFER_FILES, OFFER_COMMANDS, OFFER_TOPICS, OFFER_AGENTS, OFFER_KEYS, OFFER_PROGRAMS };

struct option {
        const char *name;  /* without dashes; NULL ends a table */
        const char *also;  /* another name for it, or NULL */
        char letter;       /* 0: none */
        const char *value; /* what stands for its value in the help; NULL for a flag */
        enum option_type type;
        unsigned flags;
        int64_t min, max; /* of OPT_INT, OPT_TIME (ms), OPT_SIZE; max 0: none */
        const char *const *choices;
        const char *help;
        enum option_offer offer;
};

struct example {
        const char *command; /* without the program's name */
        const char *what;
};

enum {
        CMD_READS = 1 << 0,    /* changes nothing: --watch is allowed */
        CMD_DESTROYS = 1 << 1, /* asks, or needs --yes */
        CMD_HIDDEN = 1 << 2,
        CMD_CSV = 1 << 4,     /* knows --format csv */
        CMD_PROGRAM = 1 << 3, /* the first argument without a name ends the options: the rest is a program's */
};

struct ctl;
struct command {
        const char *path;    /* "task publish"; NULL ends the table */
        const char *also;    /* another path for it, or NULL */
        const char *summary; /* one line; with run == NULL: of a group of commands */
        const char *about;   /* what it does, in paragraphs; NULL: the summary says it all */
        const struct option *options;
        const struct example *examples; /* ended by NULL */
        unsigned flags;
        int (*run)(struct ctl *ctl);
};

struct arg {
        const struct option *option;
        const char *text; /* NULL: no value */
        int64_t number;   /* of OPT_INT, OPT_TIME, OPT_SIZE; the index of OPT_CHOICE */
        bool named;       /* it stood with its name */
};

struct args {
        const struct command *commands; /* the table */
        const struct option *globals;
        const struct command *command; /* what is to be run; a group (run == NULL) when only that was named; NULL: nothing */
        struct arg *v;
        size_t n;
        bool help; /* --help, -h */
};

/*
 * Reads the words after the program's name. 0; -EINVAL with `e` saying what is wrong and what is near; -ENOMEM. The words are borrowed for
 * as long as `ret` lives. With --help anywhere before `--`, what is missing is no fault. `ret->command` says how far it got, failure or
 * not.
 */
int args_parse(
        int n, char *const words[], const struct command *commands, const struct option *globals, struct args *ret, struct om_error *e);
void args_deinit(struct args *a);

/* By the option's name. The last one given counts. */
bool args_has(const struct args *a, const char *name);
const char *args_text(const struct args *a, const char *name);                  /* NULL when absent */
int64_t args_number(const struct args *a, const char *name, int64_t otherwise); /* otherwise: absent, or given without a value */
/* The i-th value of an option that repeats; NULL behind the last. */
const char *args_nth(const struct args *a, const char *name, size_t i);
size_t args_count(const struct args *a, const char *name);

/* The command with that path ("task publish"), or one of its other names; NULL. */
const struct command *args_find(const struct command *commands, const char *path);
/* Whether `path` begins with the words of `group` ("task publish" in "task", anything in ""). */
bool args_in_group(const char *path, const char *group);

int args_parse_time(const char *text, int64_t *ret_ms);
int args_parse_size(const char *text, int64_t *ret_bytes);

#endif
