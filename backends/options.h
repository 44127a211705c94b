/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_OPTIONS_H
#define OM_OPTIONS_H
/*
 * A backend's own settings: one table (name, type, default, doc) that reads a URL's parameters, and prints `omnictl backends` and the
 * manual. A parameter that the table lacks is an error that offers the nearest name.
 */
#include "url.h"

enum om_option_type {
        OM_OPTION_STRING, /* char *; the URL's */
        OM_OPTION_BOOL,   /* bool: true false yes no on off 1 0 */
        OM_OPTION_INT,    /* int64_t, between min and max */
        OM_OPTION_MS,     /* int64_t milliseconds: a number, or one with ms, s, m, h, d */
        OM_OPTION_BYTES,  /* int64_t bytes: a number, or one with K, M, G, T (powers of 1024) */
        OM_OPTION_ENUM,   /* int: place in `choices` */
};
struct om_option {
        const char *name; /* NULL ends the table. "rdkafka.*": any parameter that begins so; the backend reads them from the URL itself */
        enum om_option_type type;
        size_t offset; /* of the field in the backend's struct of settings */
        const char *default_text;
        const char *const *choices; /* OM_OPTION_ENUM: NULL-terminated */
        int64_t min, max;           /* OM_OPTION_INT, _MS, _BYTES; both 0: not negative */
        const char *doc;            /* one sentence */
};
/* Fills `settings` from defaults and from the URL's parameters. -EINVAL with `e` naming the parameter, its value and what it may be.
 * Strings point into `u` or into the table. */
int om_options_read(const struct om_option *table, struct om_url *u, void *settings, struct om_error *e);
/* Reads one value as its type; `ret` points to the field. The daemon's own settings use it too. -EINVAL with `e`: "NAME: …". */
int om_option_parse(const struct om_option *o, const char *text, void *ret, struct om_error *e);

#endif
