/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_ERRORS_H
#define OM_PG_ERRORS_H
/*
 * What the server's and libpq's errors mean, for machines and for people: a kind, the server's own words, and the setting to mend.
 * Messages hold no password: libpq's do not. Thread: any.
 */
#include <libpq-fe.h>
#include <stdbool.h>

#include "../../proto/error.h"
#include "settings.h"

/* The state of a failed result, five characters; "" where it has none. */
const char *om_pg_state(const PGresult *res);
/* Fills `e` for a failed result (NULL: of the connection) and returns its errno. `doing`: "saving". */
int om_pg_result_error(const PGresult *res, const PGconn *conn, const char *doing, struct om_error *e);
/* The same of a query that a person wrote: what is wrong with it is theirs to mend. */
int om_pg_query_error(const PGresult *res, const PGconn *conn, struct om_error *e);
/* Why a connection could not be made. */
int om_pg_connect_error(const PGconn *conn, const struct om_pg_settings *s, struct om_error *e);

/* The value, not the moment or the place, is at fault: it would fail again, and others in the same statement would not. */
bool om_pg_is_of_value(const char *state);
/* Trying again right away is what the server asks for: a deadlock, a serialization failure. */
bool om_pg_is_passing(const char *state);
/* The connection is of no use after this: the server goes away, became a standby, or lost our tables or statements. */
bool om_pg_ends_connection(const char *state);

#endif
