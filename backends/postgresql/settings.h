/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_SETTINGS_H
#define OM_PG_SETTINGS_H
/*
 * What a postgresql URL says: ours, and what libpq is told. Every keyword that this libpq knows may stand in the URL.
 *
 * Always true: after om_pg_settings_take() nothing points into the URL; messages name the part to mend and hold no password.
 */
#include "../options.h"

enum { OM_PG_PASSED = 18 }; /* rows of libpq's keywords in the table of options */

struct om_pg_settings {
        int64_t connections;
        const char *schema; /* ours after taking, as is `language` */
        const char *language;
        int synchronous_commit; /* place in om_pg_commits */
        int64_t sweep_interval_ms, max_metrics, answer_timeout_ms;
        const char *passed[OM_PG_PASSED]; /* of the table alone; libpq's come from the URL's parameters */

        /* For PQconnectStartParams: n of each and a NULL. */
        char **keywords, **values;
        size_t n;
        int64_t connect_timeout_ms; /* of one host */
        char *where;                /* for messages: "database d at h:5432" */
};

extern const char *const om_pg_commits[];
extern const struct om_option om_pg_options[];

/* Reads the URL. -EINVAL with `e`, and nothing to free; else om_pg_settings_free(). */
int om_pg_settings_read(struct om_pg_settings *s, struct om_url *url, struct om_error *e);
void om_pg_settings_free(struct om_pg_settings *s);
/* The value of libpq's keyword; NULL: not given. */
const char *om_pg_setting(const struct om_pg_settings *s, const char *keyword);

#endif
