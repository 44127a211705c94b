/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a command line by the table of commands.
 *
 * Words are taken from left to right. Until a command is found, words without a dash walk down the table ("task", "publish") and options
 * are the global ones; from then on words fill the command's positions. What is wrong is said with the name that was probably meant.
 * Nothing is copied: values point into argv.
 */
#include "args.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES_MAX = 128 }; /* names that may be offered for a mistyped one: more than any table has */

struct parser {
        struct args *a;
        struct om_error *e;
        char path[128];   /* the words of the command so far */
        bool options_end; /* behind `--` */
        bool program;     /* all that follows is a program's */
};

/* -- the table ----------------------------------------------------------------------------------------------------- */

/* Whether `word` is one of the names in `names`, which are parted by '|'. */
static bool among(const char *names, const char *word) {
        size_t len = strlen(word);

        for (const char *p = names; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL) {
                if (strncmp(p, word, len) == 0 && (p[len] == '\0' || p[len] == '|')) {
                        return true;
                }
        }
        return false;
}

const struct command *args_find(const struct command *commands, const char *path) {
        for (const struct command *c = commands; c->path; c++) {
                if (strcmp(c->path, path) == 0 || among(c->also, path)) {
                        return c;
                }
        }
        return NULL;
}

bool args_in_group(const char *path, const char *group) {
        size_t len = strlen(group);

        return len == 0 || (strncmp(path, group, len) == 0 && (path[len] == '\0' || path[len] == ' '));
}

/* The word with which `path` goes on below `group`; NULL when it is not a child of it. Points into `path`. */
static const char *child_word(const char *path, const char *group) {
        size_t len = strlen(group);
        const char *rest;

        if (!args_in_group(path, group) || path[len] == '\0') {
                return NULL;
        }
        rest = path + len + (len > 0);
        return strchr(rest, ' ') ? NULL : rest;
}

static int unknown_command(struct parser *p, const char *word) {
        const char *names[NAMES_MAX + 1], *near;
        size_t n = 0;

        for (const struct command *c = p->a->commands; c->path && n < NAMES_MAX; c++) {
                const char *child = child_word(c->path, p->path);

                if (child && !(c->flags & CMD_HIDDEN)) {
                        names[n++] = child;
                }
        }
        names[n] = NULL;
        near = om_nearest(word, names);
        if (near) {
                return om_error_set(p->e, OM_INVALID, "no command \"%s%s%s\"; did you mean \"%s%s%s\"?", p->path, *p->path ? " " : "", word,
                        p->path, *p->path ? " " : "", near);
        }
        for (const struct command *c = p->a->commands; c->path; c++) { /* `omnictl publish` */
                const char *last = strrchr(c->path, ' ');

                if (last && strcmp(last + 1, word) == 0 && !(c->flags & CMD_HIDDEN)) {
                        return om_error_set(p->e, OM_INVALID, "no command \"%s\"; did you mean \"%s\"?", word, c->path);
                }
        }
        return om_error_set(p->e, OM_INVALID, "no command \"%s%s%s\"", p->path, *p->path ? " " : "", word);
}

/* -- values -------------------------------------------------------------------------------------------------------- */

/* "2.5k" with a table of units; the number must be finite and not negative. */
struct unit {
        const char *name;
        double factor;
};
static int parse_with_unit(const char *text, const struct unit *units, int64_t *ret) {
        char *end;
        double number;

        if (*text < '0' || *text > '9') {
                return -EINVAL;
        }
        number = strtod(text, &end);
        for (const struct unit *u = units; u->name; u++) {
                if (strcmp(end, u->name) == 0) {
                        number = number * u->factor + 0.5;
                        if (!isfinite(number) || number >= 9e18) {
                                return -ERANGE;
                        }
                        *ret = (int64_t) number;
                        return 0;
                }
        }
        return -EINVAL;
}

int args_parse_time(const char *text, int64_t *ret_ms) {
        static const struct unit units[] = { { "", 1000 }, { "ms", 1 }, { "s", 1000 }, { "m", 60e3 }, { "min", 60e3 }, { "h", 3600e3 },
                { "d", 86400e3 }, { NULL, 0 } };
        return parse_with_unit(text, units, ret_ms);
}

int args_parse_size(const char *text, int64_t *ret_bytes) {
        static const struct unit units[] = { { "", 1 }, { "B", 1 }, { "k", 1024 }, { "K", 1024 }, { "KiB", 1024 }, { "M", 1 << 20 },
                { "MiB", 1 << 20 }, { "G", 1 << 30 }, { "GiB", 1 << 30 }, { NULL, 0 } };
        return parse_with_unit(text, units, ret_bytes);
}

static const char *shown(const struct option *o, char *buffer, size_t size) {
        if (o->flags & OPT_POSITION) {
                snprintf(buffer, size, "%s", o->value);
        } else {
                snprintf(buffer, size, "--%s", o->name);
        }
        return buffer;
}

static int check_number(struct parser *p, const struct option *o, const char *name, const char *text, int64_t *ret) {
        const char *what = o->type == OPT_TIME ? "a time (2, 500ms, 10s, 3min, 1h, 2d)" : "a size in bytes (4096, 64k, 1M)";
        char *end;
        int r = 0;

        if (o->type == OPT_INT) {
                what = "a whole number";
                errno = 0;
                *ret = strtoll(text, &end, 10);
                r = (end == text || *end || errno || *text == ' ') ? -EINVAL : 0;
        } else {
                r = o->type == OPT_TIME ? args_parse_time(text, ret) : args_parse_size(text, ret);
        }
        if (r < 0) {
                return om_error_set(p->e, OM_INVALID, "%s is %s, not \"%s\"", name, what, text);
        }
        if (*ret < o->min || (o->max && *ret > o->max)) {
                const char *unit = o->type == OPT_TIME ? " ms" : o->type == OPT_SIZE ? " bytes" : "";

                if (!o->max) {
                        return om_error_set(p->e, OM_INVALID, "%s is at least %lld%s, not %s", name, (long long) o->min, unit, text);
                }
                return om_error_set(p->e, OM_INVALID, "%s is between %lld and %lld%s, not %s", name, (long long) o->min, (long long) o->max,
                        unit, text);
        }
        return 0;
}

static int check_choice(struct parser *p, const struct option *o, const char *name, const char *text, int64_t *ret) {
        const char *near;
        char all[300] = "";

        for (size_t i = 0; o->choices[i]; i++) {
                if (strcmp(o->choices[i], text) == 0) {
                        *ret = (int64_t) i;
                        return 0;
                }
                snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s", i ? ", " : "", o->choices[i]);
        }
        near = om_nearest(text, o->choices);
        if (near) {
                return om_error_set(p->e, OM_INVALID, "%s is one of %s, not \"%s\"; did you mean \"%s\"?", name, all, text, near);
        }
        return om_error_set(p->e, OM_INVALID, "%s is one of %s, not \"%s\"", name, all, text);
}

static int add(struct parser *p, const struct option *o, const char *text, bool named) {
        struct args *a = p->a;
        struct arg *more, arg = { .option = o, .text = text, .named = named };
        char buffer[64];
        const char *name = shown(o, buffer, sizeof(buffer));
        int r = 0;

        if (text) {
                switch (o->type) {
                case OPT_INT:
                case OPT_TIME:
                case OPT_SIZE:
                        r = check_number(p, o, name, text, &arg.number);
                        break;
                case OPT_CHOICE:
                        r = check_choice(p, o, name, text, &arg.number);
                        break;
                case OPT_TEXT:
                        if (!*text && !(o->flags & OPT_REPEAT)) {
                                r = om_error_set(p->e, OM_INVALID, "%s is empty", name);
                        }
                        break;
                case OPT_FLAG:
                        break;
                }
        }
        if (r < 0) {
                return r;
        }
        more = realloc(a->v, (a->n + 1) * sizeof(*a->v));
        if (!more) {
                return -ENOMEM;
        }
        a->v = more;
        a->v[a->n++] = arg;
        return 0;
}

/* -- options ------------------------------------------------------------------------------------------------------- */

static const struct option *find_exact(const struct option *table, const char *name, size_t len) {
        char word[64];

        if (!table || len >= sizeof(word)) {
                return NULL;
        }
        memcpy(word, name, len);
        word[len] = '\0';
        for (const struct option *o = table; o->name; o++) {
                if (strcmp(o->name, word) == 0 || among(o->also, word)) {
                        return o;
                }
        }
        return NULL;
}

/* By a beginning that only one option has. *ret_n counts those that have it. */
static const struct option *find_short(const struct option *table, const char *name, size_t len, int *ret_n) {
        const struct option *found = NULL;

        for (const struct option *o = table; o && o->name; o++) {
                if (strncmp(o->name, name, len) == 0 && !(o->flags & OPT_HIDDEN)) {
                        found = o;
                        ++*ret_n;
                }
        }
        return found;
}

static const struct option *own_options(const struct args *a) { return a->command ? a->command->options : NULL; }

static int unknown_option(struct parser *p, const char *name, size_t len) {
        const struct option *tables[] = { own_options(p->a), p->a->globals };
        const char *names[NAMES_MAX + 1], *near;
        char word[64], of[160];
        size_t n = 0;

        for (size_t t = 0; t < 2; t++) {
                for (const struct option *o = tables[t]; o && o->name && n < NAMES_MAX; o++) {
                        if (!(o->flags & OPT_HIDDEN)) {
                                names[n++] = o->name;
                        }
                }
        }
        names[n] = NULL;
        snprintf(word, sizeof(word), "%.*s", (int) (len < 60 ? len : 60), name);
        snprintf(of, sizeof(of), "%s%s%s", *p->path ? " \"" : "", p->path, *p->path ? "\" has" : "");
        near = om_nearest(word, names);
        if (near) {
                return om_error_set(p->e, OM_INVALID, "%s no option --%s; did you mean --%s?", *p->path ? of + 1 : "there is", word, near);
        }
        return om_error_set(p->e, OM_INVALID, "%s no option --%s", *p->path ? of + 1 : "there is", word);
}

/* An option whose value may be left out: the next word is its value where it reads as a time. Returns how many words were used. */
static int take_maybe(struct parser *p, const struct option *o, int n, char *const words[]) {
        int64_t number;
        bool next = n > 1 && args_parse_time(words[1], &number) == 0;
        int r = add(p, o, next ? words[1] : NULL, true);

        return r < 0 ? r : 1 + next;
}

/* `--name`, `--name=value`; the value may be the next word. Returns how many words were used. */
static int take_long(struct parser *p, int n, char *const words[]) {
        const char *name = words[0] + 2, *equals = strchr(name, '=');
        size_t len = equals ? (size_t) (equals - name) : strlen(name);
        const struct option *o = find_exact(own_options(p->a), name, len);
        int found = 0, r;

        if (!o) {
                o = find_exact(p->a->globals, name, len);
        }
        if (!o && len > 0) {
                const struct option *own = find_short(own_options(p->a), name, len, &found);
                const struct option *global = find_short(p->a->globals, name, len, &found);

                o = found == 1 ? (own ? own : global) : NULL;
                if (found > 1) {
                        return om_error_set(p->e, OM_INVALID, "--%.*s could mean several options; write more of it", (int) len, name);
                }
        }
        if (!o) {
                return unknown_option(p, name, len);
        }
        if (o->type == OPT_FLAG) {
                if (equals) {
                        return om_error_set(p->e, OM_INVALID, "--%s takes no value", o->name);
                }
                r = add(p, o, NULL, true);
                return r < 0 ? r : 1;
        }
        if (equals) {
                r = add(p, o, equals + 1, true);
                return r < 0 ? r : 1;
        }
        if (o->flags & OPT_MAYBE) {
                return take_maybe(p, o, n, words);
        }
        if (n < 2) {
                return om_error_set(p->e, OM_INVALID, "--%s needs a value: --%s %s", o->name, o->name, o->value);
        }
        r = add(p, o, words[1], true);
        return r < 0 ? r : 2;
}

static const struct option *find_letter(const struct args *a, char letter) {
        const struct option *tables[] = { own_options(a), a->globals };

        for (size_t t = 0; t < 2; t++) {
                for (const struct option *o = tables[t]; o && o->name; o++) {
                        if (o->letter == letter) {
                                return o;
                        }
                }
        }
        return NULL;
}

/* `-q`, `-qy`, `-t words`, `-twords`. Returns how many words were used. */
static int take_letters(struct parser *p, int n, char *const words[]) {
        for (const char *c = words[0] + 1; *c; c++) {
                const struct option *o = find_letter(p->a, *c);
                int r;

                if (!o) {
                        return om_error_set(p->e, OM_INVALID, "no option -%c; an argument that begins with \"-\" stands behind \"--\"", *c);
                }
                if (o->type == OPT_FLAG) {
                        r = add(p, o, NULL, true);
                        if (r < 0) {
                                return r;
                        }
                        continue;
                }
                if ((o->flags & OPT_MAYBE) && !c[1]) {
                        return take_maybe(p, o, n, words);
                }
                if (c[1]) {
                        r = add(p, o, c + 1, true);
                        return r < 0 ? r : 1;
                }
                if (n < 2) {
                        return om_error_set(p->e, OM_INVALID, "-%c needs a value: -%c %s", *c, *c, o->value);
                }
                r = add(p, o, words[1], true);
                return r < 0 ? r : 2;
        }
        return 1;
}

/* -- words without a dash ------------------------------------------------------------------------------------------ */

/* The first position that nothing has filled, or the one that repeats. */
static const struct option *free_position(const struct args *a) {
        for (const struct option *o = own_options(a); o && o->name; o++) {
                if ((o->flags & OPT_POSITION) && ((o->flags & OPT_REPEAT) || !args_has(a, o->name))) {
                        return o;
                }
        }
        return NULL;
}

static int take_word(struct parser *p, const char *word) {
        struct args *a = p->a;

        if (!a->command || !a->command->run) {
                const struct command *c;
                char full[256];

                snprintf(full, sizeof(full), "%s%s%.80s", p->path, *p->path ? " " : "", word);
                c = args_find(a->commands, full);
                if (!c) {
                        return unknown_command(p, word);
                }
                a->command = c;
                snprintf(p->path, sizeof(p->path), "%s", c->path);
                return 0;
        }
        const struct option *o = free_position(a);
        if (!o) {
                return om_error_set(p->e, OM_INVALID, "\"%s\" is one argument too many for \"%s\"", word, p->path);
        }
        if (a->command->flags & CMD_PROGRAM) {
                p->program = true;
        }
        return add(p, o, word, false);
}

static int check_required(struct parser *p) {
        char buffer[64];

        for (const struct option *o = own_options(p->a); o && o->name; o++) {
                if ((o->flags & OPT_REQUIRED) && !args_has(p->a, o->name)) {
                        const char *name = shown(o, buffer, sizeof(buffer));

                        return om_error_set(p->e, OM_INVALID, "%s is missing%s%s", name, o->flags & OPT_POSITION ? ": " : "",
                                o->flags & OPT_POSITION ? o->help : "");
                }
        }
        return 0;
}

int args_parse(
        int n, char *const words[], const struct command *commands, const struct option *globals, struct args *ret, struct om_error *e) {
        struct parser p = { .a = ret, .e = e };

        *ret = (struct args){ .commands = commands, .globals = globals };
        for (int i = 0; i < n;) {
                const char *w = words[i];
                int used = 1;

                if (!p.options_end && !p.program && strcmp(w, "--") == 0) {
                        p.options_end = true;
                } else if (!p.options_end && !p.program && w[0] == '-' && w[1]) {
                        used = w[1] == '-' ? take_long(&p, n - i, words + i) : take_letters(&p, n - i, words + i);
                } else {
                        int r = take_word(&p, w);

                        used = r < 0 ? r : 1;
                }
                if (used < 0) {
                        ret->help = ret->help || args_has(ret, "help");
                        return used;
                }
                i += used;
        }
        ret->help = args_has(ret, "help");
        return ret->help || !ret->command || !ret->command->run ? 0 : check_required(&p);
}

void args_deinit(struct args *a) {
        free(a->v);
        a->v = NULL;
        a->n = 0;
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

static const struct arg *last(const struct args *a, const char *name) {
        for (size_t i = a->n; i > 0; i--) {
                if (strcmp(a->v[i - 1].option->name, name) == 0) {
                        return &a->v[i - 1];
                }
        }
        return NULL;
}

bool args_has(const struct args *a, const char *name) { return last(a, name) != NULL; }

const char *args_text(const struct args *a, const char *name) {
        const struct arg *arg = last(a, name);
        return arg ? arg->text : NULL;
}

int64_t args_number(const struct args *a, const char *name, int64_t otherwise) {
        const struct arg *arg = last(a, name);
        return arg && arg->text ? arg->number : otherwise;
}

const char *args_nth(const struct args *a, const char *name, size_t i) {
        for (size_t k = 0; k < a->n; k++) {
                if (strcmp(a->v[k].option->name, name) == 0 && i-- == 0) {
                        return a->v[k].text;
                }
        }
        return NULL;
}

size_t args_count(const struct args *a, const char *name) {
        size_t n = 0;

        for (size_t k = 0; k < a->n; k++) {
                n += strcmp(a->v[k].option->name, name) == 0;
        }
        return n;
}
