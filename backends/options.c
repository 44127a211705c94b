/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a backend's settings from a URL by its table; the daemon reads its own settings with the same om_option_parse().
 *
 * Always true: a field is written only when its text was wholly understood, every number is within its range, and a parameter that nobody
 * knows is refused with the nearest name that is known. No state; any thread.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "options.h"

struct unit {
        const char *name;
        int64_t factor;
};
static const struct unit durations[] = { { "", 1 }, { "ms", 1 }, { "s", 1000 }, { "m", 60000 }, { "h", 3600000 }, { "d", 86400000 },
        { NULL } };
static const struct unit sizes[] = { { "", 1 }, { "K", 1 << 10 }, { "M", 1 << 20 }, { "G", 1 << 30 }, { "T", (int64_t) 1 << 40 },
        { NULL } };
static const struct unit plain[] = { { "", 1 }, { NULL } };

/* A decimal integer and one of the units. -EINVAL, -ERANGE. */
static int parse_number(const char *text, const struct unit *units, int64_t *ret) {
        const char *digits = *text == '-' ? text + 1 : text;
        if (!isdigit((unsigned char) *digits))
                return -EINVAL;
        char *end;
        errno = 0;
        long long n = strtoll(text, &end, 10);
        int range = errno == ERANGE;
        for (const struct unit *u = units; u->name; u++) {
                if (strcasecmp(end, u->name) != 0)
                        continue;
                int64_t product;
                if (range || __builtin_mul_overflow((int64_t) n, u->factor, &product))
                        return -ERANGE;
                *ret = product;
                return 0;
        }
        return -EINVAL;
}

static int parse_in_range(
        const struct om_option *o, const char *text, const struct unit *units, const char *what, void *ret, struct om_error *e) {
        int64_t value, min = o->min, max = o->max;
        if (min == 0 && max == 0)
                max = INT64_MAX;
        int r = parse_number(text, units, &value);
        if (r == -EINVAL)
                return om_error_set(e, OM_INVALID, "%s: \"%.60s\" is not %s", o->name, text, what);
        if (r < 0 || value < min || value > max) {
                if (max == INT64_MAX)
                        return om_error_set(e, OM_INVALID, "%s: %.60s is out of range; at least %" PRId64, o->name, text, min);
                return om_error_set(e, OM_INVALID, "%s: %.60s is out of range; %" PRId64 " to %" PRId64, o->name, text, min, max);
        }
        *(int64_t *) ret = value;
        return 0;
}

static int parse_bool(const struct om_option *o, const char *text, bool *ret, struct om_error *e) {
        static const char *const yes[] = { "true", "yes", "on", "1" }, *const no[] = { "false", "no", "off", "0" };
        for (size_t i = 0; i < 4; i++) {
                if (strcasecmp(text, yes[i]) == 0) {
                        *ret = true;
                        return 0;
                }
                if (strcasecmp(text, no[i]) == 0) {
                        *ret = false;
                        return 0;
                }
        }
        return om_error_set(e, OM_INVALID, "%s: \"%.60s\" is not true or false", o->name, text);
}

/* "a, b, c" of a NULL-terminated list, cut where the room ends. */
static const char *join(const char *const *names, char *out, size_t size) {
        size_t n = 0;
        out[0] = 0;
        for (; *names && n < size; names++)
                n += (size_t) snprintf(out + n, size - n, "%s%s", n ? ", " : "", *names);
        return out;
}

static int parse_choice(const struct om_option *o, const char *text, int *ret, struct om_error *e) {
        for (int i = 0; o->choices[i]; i++)
                if (strcasecmp(text, o->choices[i]) == 0) {
                        *ret = i;
                        return 0;
                }
        char known[300];
        join(o->choices, known, sizeof(known));
        const char *near = om_nearest(text, o->choices);
        return om_error_set(e, OM_INVALID, "%s: \"%.60s\" is not one of %s%s%s%s", o->name, text, known, near ? "; did you mean " : "",
                near ? near : "", near ? "?" : "");
}

int om_option_parse(const struct om_option *o, const char *text, void *ret, struct om_error *e) {
        switch (o->type) {
        case OM_OPTION_STRING:
                *(const char **) ret = text;
                return 0;
        case OM_OPTION_BOOL:
                return parse_bool(o, text, ret, e);
        case OM_OPTION_INT:
                return parse_in_range(o, text, plain, "an integer", ret, e);
        case OM_OPTION_MS:
                return parse_in_range(o, text, durations, "a duration: milliseconds, or a number with ms, s, m, h or d, as 10s", ret, e);
        case OM_OPTION_BYTES:
                return parse_in_range(o, text, sizes, "a size: bytes, or a number with K, M, G or T, as 16M", ret, e);
        case OM_OPTION_ENUM:
                return parse_choice(o, text, ret, e);
        }
        return om_error_set(e, OM_INTERNAL, "%s: its table has no such type", o->name);
}

static int refuse_unknown(const struct om_option *table, const struct om_url *u, struct om_error *e) {
        size_t n = 0;
        while (table && table[n].name)
                n++;
        const char **names = calloc(n + 1, sizeof(*names));
        if (!names)
                return om_error_set_errno(e, ENOMEM, "cannot read the parameters of a URL");
        for (size_t i = 0; i < n; i++)
                names[i] = table[i].name;
        int r = 0;
        for (size_t i = 0; i < u->n_params && r == 0; i++) {
                if (u->params[i].used)
                        continue;
                char known[300];
                const char *name = u->params[i].name, *near = om_nearest(name, names);
                if (n == 0)
                        r = om_error_set(e, OM_INVALID, "unknown parameter \"%.60s\" in %s: URL; it takes none", name, u->scheme);
                else if (near)
                        r = om_error_set(e, OM_INVALID, "unknown parameter \"%.60s\" in %s: URL; did you mean %s?", name, u->scheme, near);
                else
                        r = om_error_set(e, OM_INVALID, "unknown parameter \"%.60s\" in %s: URL; known: %s", name, u->scheme,
                                join(names, known, sizeof(known)));
        }
        free(names);
        return r;
}

/* "NAME.*": the backend takes all that begin so from the URL itself. */
static bool is_family(const struct om_option *o) {
        size_t n = strlen(o->name);
        return n > 2 && strcmp(o->name + n - 2, ".*") == 0;
}

static void claim_family(const struct om_option *o, struct om_url *u) {
        size_t n = strlen(o->name) - 1;
        for (size_t i = 0; i < u->n_params; i++)
                if (strncmp(u->params[i].name, o->name, n) == 0 && u->params[i].name[n])
                        u->params[i].used = true;
}

int om_options_read(const struct om_option *table, struct om_url *u, void *settings, struct om_error *e) {
        for (const struct om_option *o = table; o && o->name; o++) {
                if (is_family(o)) {
                        claim_family(o, u);
                        continue;
                }
                const char *text = om_url_param(u, o->name);
                if (!text)
                        text = o->default_text;
                void *field = (char *) settings + o->offset;
                if (!text && o->type != OM_OPTION_STRING)
                        return om_error_set(e, OM_INVALID, "%s: must be given in the %s: URL", o->name, u->scheme);
                int r = om_option_parse(o, text, field, e);
                if (r < 0)
                        return r;
        }
        return refuse_unknown(table, u, e);
}
