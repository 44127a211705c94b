/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_SESSION_H
#define OM_PG_SESSION_H
/*
 * A connection as a thread of its own makes it: names resolved, TLS and login done, the session's settings, the schema as new as this
 * program. What libpq does there may block (getaddrinfo, files of passwords and services); everything else waits with a deadline, and ends
 * early when the abort descriptor becomes readable.
 *
 * Thread: a worker's; the connection is handed over as a whole.
 */
#include <libpq-fe.h>

#include "settings.h"

struct om_pg_wait {
        int abort_fd;        /* readable: give up */
        int64_t deadline_ms; /* of om_clock_ms() */
};

/* The first host that will do. 0 and *ret, which is the caller's; or an errno with `e`. */
int om_pg_connect(const struct om_pg_settings *s, struct om_pg_wait *w, PGconn **ret, struct om_error *e);
/* Connects, sets the session up, and makes or upgrades the schema. */
int om_pg_session(const struct om_pg_settings *s, struct om_pg_wait *w, PGconn **ret, struct om_error *e);

/* One statement with text parameters; n < 0: a script of several without any. `doing` NULL: it is a query that a person
 * wrote. 0 and *ret (PQclear; NULL: nobody wants it). */
int om_pg_exec(PGconn *conn, const struct om_pg_wait *w, const char *doing, const char *sql, int n, const char *const *values,
        PGresult **ret, struct om_error *e);
/* Waits until the answer to what was sent may be taken without blocking. 0, -ECANCELED, -ETIMEDOUT, -EAGAIN. */
int om_pg_await(PGconn *conn, const struct om_pg_wait *w, struct om_error *e);

/* schema.c: the migrations, numbered from 1; a NULL ends them. */
extern const char *const om_pg_migrations[];
int om_pg_migrate(PGconn *conn, const struct om_pg_settings *s, const struct om_pg_wait *w, struct om_error *e);

#endif
