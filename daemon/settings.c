/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the settings: flags, then environment, then file, each keeping a text for a row unless a higher level has one; what follows from
 * others is made (settings_compose.c); at last every row's text is parsed into its field of struct om_settings.
 *
 * What is always true:
 *   - a struct om_settings is whole or does not exist: every field has a checked value;
 *   - every value knows where it came from, and an error names that place;
 *   - an empty value in environment or file is an unset one; an empty flag is a mistake;
 *   - a reload reads the same flags and environment again with the file as it is now, and a row that is not reloadable keeps its value.
 *
 * Called by main.c, on the loop thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

#include "settings_table.h"

static const char service_file[] = "/etc/omnidaemon/omnidaemond.conf", env_file[] = ".env";

/* -- what settings*.c share ----------------------------------------------------------------------------------------------- */

const char *om_settings_format(struct om_settings_more *m, const char *format, ...) {
        va_list ap;
        char *text = NULL;
        int n;

        va_start(ap, format);
        n = vasprintf(&text, format, ap);
        va_end(ap);
        if (n < 0)
                return NULL;
        struct om_span copy = om_arena_copy(&m->arena, (struct om_span){ text, (size_t) n });
        free(text);
        return copy.p;
}

void om_settings_note(struct om_settings_more *m, const char *format, ...) {
        va_list ap;
        char *text = NULL;
        int n;

        va_start(ap, format);
        n = vasprintf(&text, format, ap);
        va_end(ap);
        if (n >= 0)
                om_buf_put(&m->notes, text, (size_t) n + 1);
        free(text);
}

const char *om_settings_next_note(const struct om_settings *s, const char *at) {
        const struct om_buf *notes = &om_more(s)->notes;

        at = at ? at + strlen(at) + 1 : notes->data;
        return at && at < notes->data + notes->len && om_buf_ok(notes) ? at : NULL;
}

const char *om_settings_getenv(const struct om_settings_more *m, const char *name) {
        size_t len = strlen(name);

        for (char **v = m->env; v && *v; v++)
                if (strncmp(*v, name, len) == 0 && (*v)[len] == '=')
                        return (*v)[len + 1] ? *v + len + 1 : NULL;
        return NULL;
}

int om_settings_keep(struct om_settings_more *m, enum om_setting_id id, enum om_level_of_setting level, const char *text,
        const char *source, struct om_error *e) {
        struct om_setting_value *v = &m->values[id];

        if (level < v->level)
                return 0;
        text = om_arena_copy(&m->arena, om_span_of(text)).p;
        if (!text || !source)
                return om_error_set_errno(e, ENOMEM, "settings");
        v->level = level;
        v->text = text;
        v->source = source;
        return 0;
}

int om_settings_find(const char *name, bool *ret_alias) {
        for (int i = 0; i < OM_SETTINGS; i++) {
                const struct om_setting *s = &om_settings_table[i];

                *ret_alias = s->alias && strcmp(s->alias, name) == 0;
                if (*ret_alias || strcmp(s->option.name, name) == 0)
                        return i;
        }
        return -1;
}

const char *om_settings_flag(enum om_setting_id id, char out[48]) {
        const char *name = om_settings_table[id].option.name;
        size_t n = 0;

        out[n++] = '-';
        out[n++] = '-';
        for (; *name && n < 47; name++)
                out[n++] = *name == '_' ? '-' : (char) (*name | ('A' <= *name && *name <= 'Z' ? 0x20 : 0));
        out[n] = 0;
        return out;
}

/* -- names that are no settings ------------------------------------------------------------------------------------ */

/* One letter wrong, missing, too many, or two swapped. */
static bool one_slip(const char *a, const char *b) {
        while (*a && *a == *b) {
                a++;
                b++;
        }
        if (!*a && !*b)
                return false;
        return (*a && *b && strcmp(a + 1, b + 1) == 0) || (*a && strcmp(a + 1, b) == 0) || (*b && strcmp(a, b + 1) == 0) ||
                (a[0] && a[1] && b[0] && a[0] == b[1] && a[1] == b[0] && strcmp(a + 2, b + 2) == 0);
}

int om_settings_unknown(struct om_settings_more *m, const char *name, bool strict, bool warn, const char *where, struct om_error *e) {
        const char *names[2 * OM_SETTINGS + 16], *near = NULL;
        size_t n = 0;

        for (const struct om_foreign_name *f = om_foreign_names; f->name; f++) {
                if (strcmp(f->name, name) == 0) {
                        if (f->note)
                                om_settings_note(m, "%s: %s: %s", where, name, f->note);
                        return 0;
                }
                names[n++] = f->name;
        }
        for (size_t i = 0; i < OM_SETTINGS; i++) {
                names[n++] = om_settings_table[i].option.name;
                if (om_settings_table[i].alias)
                        names[n++] = om_settings_table[i].alias;
        }
        names[n] = NULL;
        for (size_t i = 0; i < n && !near; i++)
                near = one_slip(name, names[i]) ? names[i] : NULL;
        if (!strict && !near && strncmp(name, "OMNIDAEMON_", strlen("OMNIDAEMON_")) != 0)
                return 0;
        if (!near)
                near = om_nearest(name, names);
        if (warn) {
                om_settings_note(
                        m, "%s: unknown setting %s%s%s%s", where, name, near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
                return 0;
        }
        if (near)
                return om_error_set(e, OM_INVALID, "%s: unknown setting %.80s; did you mean %s?", where, name, near);
        return om_error_set(e, OM_INVALID, "%s: unknown setting %.80s; omnidaemond --help lists them", where, name);
}

/* -- flags --------------------------------------------------------------------------------------------------------- */

static int unknown_flag(const char *word, size_t len, struct om_error *e) {
        static const char *const others[] = { "--config", "--check", "--help", "--version", "--print-conf", "--print-man" };
        char flags[OM_SETTINGS][48], name[64];
        const char *names[OM_SETTINGS + sizeof others / sizeof *others + 1], *near;
        size_t n = 0;

        for (size_t i = 0; i < OM_SETTINGS; i++)
                names[n++] = om_settings_flag((enum om_setting_id) i, flags[i]);
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
                names[n++] = others[i];
        names[n] = NULL;
        snprintf(name, sizeof name, "%.*s", (int) (len < sizeof name ? len : sizeof name - 1), word);
        near = om_nearest(name, names);
        if (near)
                return om_error_set(e, OM_INVALID, "unknown flag %s; did you mean %s?", name, near);
        return om_error_set(e, OM_INVALID, "unknown %s %s; omnidaemond --help lists the flags", *name == '-' ? "flag" : "argument", name);
}

/* One of those without a value. */
static bool switch_flag(struct om_flags *f, const char *word) {
        const struct {
                const char *word;
                bool *flag;
        } switches[] = {
                { "--help", &f->help },
                { "-h", &f->help },
                { "--version", &f->version },
                { "-V", &f->version },
                { "--check", &f->check },
                { "--print-conf", &f->print_conf },
                { "--print-man", &f->print_man },
                { "--print-backends", &f->print_backends },
        };

        for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
                if (strcmp(switches[i].word, word) == 0)
                        return *switches[i].flag = true;
        return false;
}

static int flag_id(const char *word, size_t len) {
        char flag[48];

        for (int i = 0; i < OM_SETTINGS; i++)
                if (strlen(om_settings_flag((enum om_setting_id) i, flag)) == len && memcmp(flag, word, len) == 0)
                        return i;
        return -1;
}

/* `--name value` and `--name=value`. */
static int read_flags(struct om_settings_more *m, struct om_error *e) {
        for (int i = 1; i < m->argc; i++) {
                const char *word = m->argv[i], *equals = strchr(word, '='), *value;
                size_t len = equals ? (size_t) (equals - word) : strlen(word);
                bool config = len == strlen("--config") && memcmp(word, "--config", len) == 0;
                int id = flag_id(word, len), r;

                if (switch_flag(&m->flags, word))
                        continue;
                if (id < 0 && !config)
                        return unknown_flag(word, len, e);
                value = equals ? equals + 1 : i + 1 < m->argc ? m->argv[++i] : NULL;
                if (!value || !*value)
                        return om_error_set(e, OM_INVALID, "%.*s: its value is missing", (int) len, word);
                if (config) {
                        m->flags.config_path = value;
                        continue;
                }
                r = om_settings_keep(m, (enum om_setting_id) id, OM_FROM_FLAG, value, "flag", e);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* -- environment --------------------------------------------------------------------------------------------------- */

static int read_environment(struct om_settings_more *m, struct om_error *e) {
        for (char **v = m->env; v && *v; v++) {
                const char *equals = strchr(*v, '=');
                char name[128];
                bool alias;
                int id, r;

                if (!equals || (size_t) (equals - *v) >= sizeof name)
                        continue;
                memcpy(name, *v, (size_t) (equals - *v));
                name[equals - *v] = 0;
                if (name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")])
                        continue; /* no setting is called so, and a note of it could be several lines */
                id = om_settings_find(name, &alias);
                if (id < 0) {
                        om_settings_unknown(m, name, false, true, "environment", NULL);
                        continue;
                }
                const char *other = om_settings_table[id].alias;
                if (!equals[1] || (!alias && other && om_settings_getenv(m, other)))
                        continue;
                r = om_settings_keep(m, (enum om_setting_id) id, OM_FROM_ENVIRONMENT, equals + 1,
                        alias ? om_settings_format(m, "environment, %s", name) : "environment", e);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* -- which file, and whether we are a service ---------------------------------------------------------------------- */

static bool started_by_service_manager(const struct om_settings_more *m) {
        const char *pid = om_settings_getenv(m, "SYSTEMD_EXEC_PID");

        return (pid && strtol(pid, NULL, 10) == (long) getpid()) || om_settings_getenv(m, "NOTIFY_SOCKET");
}

static void choose_file(struct om_settings_more *m) {
        m->strict_file = true;
        m->file = m->flags.config_path;
        if (!m->file)
                m->file = om_settings_getenv(m, "OMNIDAEMON_CONFIG");
        if (!m->file && m->service && access(service_file, F_OK) == 0)
                m->file = service_file;
        if (!m->file && !m->service && om_settings_is_file(env_file)) {
                m->file = env_file;
                m->strict_file = false;
        }
}

/* -- texts into fields --------------------------------------------------------------------------------------------- */

static int parse_octal(const struct om_option *o, const char *text, int64_t *ret, struct om_error *e) {
        size_t digits = strspn(text, "01234567");
        long mode = strtol(text, NULL, 8);

        if (digits == 0 || digits > 5 || text[digits] || mode < o->min || mode > o->max)
                return om_error_set(e, OM_INVALID, "%s: \"%.60s\" is not a file mode in octal, 0 to 0777, as 0660", o->name, text);
        *ret = mode;
        return 0;
}

/* Words that other programs use for the levels of a log, so that a LOG_LEVEL of theirs in the environment does not stop us. */
static const char *other_word(enum om_setting_id id, const char *text) {
        static const char *const words[][2] = { { "warn", "warning" }, { "err", "error" }, { "critical", "error" }, { "crit", "error" },
                { "fatal", "error" }, { "trace", "debug" } };

        for (size_t i = 0; id == OM_SET_LOG_LEVEL && i < sizeof words / sizeof *words; i++)
                if (strcasecmp(words[i][0], text) == 0)
                        return words[i][1];
        return text;
}

static int parse_value(struct om_settings *s, enum om_setting_id id, struct om_error *e) {
        const struct om_setting *row = &om_settings_table[id];
        const struct om_setting_value *v = &om_more(s)->values[id];
        void *field;
        int choice, r;

        if (row->option.offset == OM_NO_FIELD || !v->text)
                return 0;
        field = (char *) s + row->option.offset;
        if (row->octal)
                return parse_octal(&row->option, v->text, field, e);
        if (row->option.type != OM_OPTION_ENUM)
                return om_option_parse(&row->option, v->text, field, e);
        r = om_option_parse(&row->option, other_word(id, v->text), &choice, e);
        if (r == 0)
                *(const char **) field = row->option.choices[choice];
        return r;
}

static int parse_values(struct om_settings *s, struct om_error *e) {
        for (int i = 0; i < OM_SETTINGS; i++) {
                const struct om_setting_value *v = &om_more(s)->values[i];
                int r = parse_value(s, (enum om_setting_id) i, e);

                if (r < 0) {
                        if (v->level > OM_FROM_DEFAULT)
                                om_error_prefix(e, "%s", v->source);
                        return r;
                }
        }
        return 0;
}

/* -- all of it ----------------------------------------------------------------------------------------------------- */

static struct om_settings *new_settings(int argc, char **argv, char **env) {
        struct om_settings *s = calloc(1, sizeof *s);
        struct om_settings_more *m = calloc(1, sizeof *m);

        if (!s || !m) {
                free(s);
                free(m);
                return NULL;
        }
        s->more = m;
        m->argc = argc;
        m->argv = argv;
        m->env = env;
        m->service = started_by_service_manager(m);
        return s;
}

static int read_all(struct om_settings *s, struct om_error *e) {
        struct om_settings_more *m = om_more(s);
        int r;

        r = read_environment(m, e);
        if (r < 0)
                return r;
        choose_file(m);
        r = om_settings_read_file(m, e);
        if (r < 0)
                return r;
        r = om_settings_compose(m, e);
        if (r < 0)
                return r;
        return parse_values(s, e);
}

int om_settings_read(int argc, char **argv, char **env, struct om_flags *ret_flags, struct om_settings **ret, struct om_error *e) {
        struct om_settings *s = new_settings(argc, argv, env);
        struct om_settings_more *m;
        int r;

        if (!s)
                return om_error_set_errno(e, ENOMEM, "settings");
        m = om_more(s);
        r = read_flags(m, e);
        if (r < 0)
                goto out;
        if (!m->flags.help && !m->flags.version && !m->flags.print_conf && !m->flags.print_man) {
                r = read_all(s, e);
                if (r < 0)
                        goto out;
                *ret = s;
                s = NULL;
        } else {
                *ret = NULL;
        }
        *ret_flags = m->flags;
out:
        om_settings_free(s);
        return r;
}

void om_settings_free(struct om_settings *s) {
        if (!s)
                return;
        om_arena_deinit(&om_more(s)->arena);
        om_buf_deinit(&om_more(s)->notes);
        free(s->more);
        free(s);
}

void om_settings_swap(struct om_settings *a, struct om_settings *b) {
        struct om_settings t = *a;

        *a = *b;
        *b = t;
}

const char *om_settings_source(const struct om_settings *s, const char *name) {
        bool alias;
        int id = om_settings_find(name, &alias);

        return id >= 0 ? om_more(s)->values[id].source : NULL;
}

const char *om_settings_file(const struct om_settings *s) { return om_more(s)->file; }
bool om_settings_service(const struct om_settings *s) { return om_more(s)->service; }

/* -- reload -------------------------------------------------------------------------------------------------------- */

static bool same_text(const char *a, const char *b) { return a == b || (a && b && strcmp(a, b) == 0); }

/* Whether a row with a field has another value now; 10s and 10000 are one. */
static bool changed(const struct om_settings *a, const struct om_settings *b, const struct om_setting *row) {
        const char *field_a = (const char *) a + row->option.offset, *field_b = (const char *) b + row->option.offset;

        if (row->option.type == OM_OPTION_STRING || row->option.type == OM_OPTION_ENUM)
                return !same_text(*(char *const *) (const void *) field_a, *(char *const *) (const void *) field_b);
        return memcmp(field_a, field_b, sizeof(int64_t)) != 0;
}

/* Puts the old value of a row back into the new settings. */
static int keep_old(const struct om_settings *now, struct om_settings *next, enum om_setting_id id, struct om_error *e) {
        const struct om_setting_value *old = &om_more(now)->values[id];
        struct om_setting_value *v = &om_more(next)->values[id];
        const char *text = om_arena_copy(&om_more(next)->arena, om_span_of(old->text)).p;
        const char *source = om_arena_copy(&om_more(next)->arena, om_span_of(old->source)).p;

        if (old->text && (!text || !source))
                return om_error_set_errno(e, ENOMEM, "settings");
        *v = (struct om_setting_value){ .level = old->level, .text = text, .source = source, .used = old->used };
        memset((char *) next + om_settings_table[id].option.offset, 0, sizeof(void *));
        return parse_value(next, id, e);
}

int om_settings_reload(
        const struct om_settings *now, struct om_settings **ret, const char ***ret_changed, const char ***ret_restart, struct om_error *e) {
        const struct om_settings_more *m = om_more(now);
        const char **took = calloc(OM_SETTINGS + 1, sizeof *took), **restart = calloc(OM_SETTINGS + 1, sizeof *restart);
        struct om_settings *next = NULL;
        struct om_flags flags;
        size_t n_took = 0, n_restart = 0;
        int r;

        r = took && restart ? om_settings_read(m->argc, m->argv, m->env, &flags, &next, e) : om_error_set_errno(e, ENOMEM, "settings");
        for (int i = 0; r == 0 && i < OM_SETTINGS; i++) {
                const struct om_setting *row = &om_settings_table[i];

                if (row->option.offset == OM_NO_FIELD || !changed(now, next, row))
                        continue;
                if (row->reloadable)
                        took[n_took++] = row->option.name;
                else
                        restart[n_restart++] = row->option.name;
                if (!row->reloadable)
                        r = keep_old(now, next, (enum om_setting_id) i, e);
        }
        if (r < 0) {
                om_settings_free(next);
                free(took);
                free(restart);
                return r;
        }
        *ret = next;
        *ret_changed = took;
        *ret_restart = restart;
        return 0;
}
