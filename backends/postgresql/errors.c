/* SPDX-License-Identifier: Apache-2.0 */
/* SQLSTATEs (https://www.postgresql.org/docs/15/errcodes-appendix.html) and libpq's messages: see errors.h. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "errors.h"

enum { MESSAGE_MAX = 300 };

static const struct {
        const char *state; /* or its first characters */
        enum om_kind kind;
        const char *hint;
} meanings[] = {
        { "28P01", OM_DENIED, "the password (or the user) in the URL is wrong" },
        { "28000", OM_DENIED,
                "the server lets this user not in from here: user and database in the URL, pg_hba.conf on the server; with TLS, sslmode "
                "and sslcert" },
        { "3D000", OM_NOT_FOUND, "the database in the URL does not exist: createdb, or another name" },
        { "3F000", OM_NOT_FOUND, "the schema of the URL is gone" },
        { "42501", OM_DENIED,
                "the user in the URL lacks a privilege: it must own the schema (GRANT CREATE ON DATABASE, or make the schema for it), and "
                "use its tables" },
        { "53300", OM_UNAVAILABLE, "the server has no connection left: raise its max_connections, or lower `connections` in the URL" },
        { "53100", OM_UNAVAILABLE, "the server's disk is full" },
        { "53200", OM_UNAVAILABLE, "the server is out of memory" },
        { "53", OM_UNAVAILABLE, "the server lacks resources" },
        { "57014", OM_TIMEOUT, "the server is busy, or somebody holds a lock (answer_timeout in the URL)" },
        { "57P03", OM_UNAVAILABLE, NULL },
        { "57", OM_UNAVAILABLE, NULL },
        { "08", OM_UNAVAILABLE, NULL },
        { "25006", OM_UNAVAILABLE,
                "the server takes no writes (a standby, or default_transaction_read_only): name the primary, or all hosts with "
                "target_session_attrs=read-write" },
        { "40", OM_UNAVAILABLE, NULL },
        { "55P03", OM_UNAVAILABLE, "somebody holds a lock" },
        { "55006", OM_UNAVAILABLE, NULL },
        { "42P01", OM_UNAVAILABLE, "a table of the storage is gone; it is made anew" },
        { "26000", OM_UNAVAILABLE,
                "prepared statements are lost between here and the server: a pooler must keep sessions (pool_mode=session)" },
        { "42704", OM_INVALID, NULL },
        { "42", OM_INVALID, NULL },
        { "22", OM_INVALID, NULL },
        { "54", OM_LIMIT, NULL },
        { "0A", OM_UNSUPPORTED, NULL },
        { "XX001", OM_INTERNAL, "the server's data are damaged" },
        { "58", OM_UNAVAILABLE, "the server has an error of its disk or system" },
};

const char *om_pg_state(const PGresult *res) {
        const char *state = res ? PQresultErrorField(res, PG_DIAG_SQLSTATE) : NULL;

        return state ? state : "";
}

static bool begins(const char *state, const char *prefix) { return strncmp(state, prefix, strlen(prefix)) == 0; }

bool om_pg_is_of_value(const char *state) { return begins(state, "22") || begins(state, "54") || begins(state, "23"); }
bool om_pg_is_passing(const char *state) { return strcmp(state, "40001") == 0 || strcmp(state, "40P01") == 0; }
bool om_pg_ends_connection(const char *state) {
        return begins(state, "57P") || begins(state, "08") || strcmp(state, "25006") == 0 || strcmp(state, "42P01") == 0 ||
                strcmp(state, "26000") == 0 || strcmp(state, "3F000") == 0;
}

/* One line, without what VERBOSE adds (LOCATION: …) and white space at the ends. */
static void one_line(const char *from, char *to, size_t size) {
        size_t n = 0;

        for (bool gap = false; from && *from && n + 3 < size; from++) {
                if (*from == '\n' && (begins(from + 1, "LOCATION:") || !from[1]))
                        break;
                if (isspace((unsigned char) *from)) {
                        gap = n > 0;
                        continue;
                }
                if (gap)
                        to[n++] = ' ';
                gap = false;
                to[n++] = *from;
        }
        to[n] = 0;
}

/* `begin`: where or at what it happened; "" where the message says it. */
static int set(enum om_kind kind, const char *begin, const char *message, const char *hint, struct om_error *e) {
        return om_error_set(e, kind, "PostgreSQL: %s%s%s%s%s", begin, begin[0] ? ": " : "", message, hint ? "; " : "", hint ? hint : "");
}

static int set_by_state(const char *state, const char *message, const char *begin, struct om_error *e) {
        enum om_kind kind = OM_UNAVAILABLE;
        const char *hint = NULL;

        for (size_t i = 0; state[0] && i < sizeof meanings / sizeof *meanings; i++)
                if (begins(state, meanings[i].state)) {
                        kind = meanings[i].kind;
                        hint = meanings[i].hint;
                        break;
                }
        return set(kind, begin, message, hint, e);
}

int om_pg_result_error(const PGresult *res, const PGconn *conn, const char *doing, struct om_error *e) {
        char text[MESSAGE_MAX];
        const char *primary = res ? PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY) : NULL;

        one_line(primary                                    ? primary
                        : res && *PQresultErrorMessage(res) ? PQresultErrorMessage(res)
                        : conn                              ? PQerrorMessage(conn)
                                                            : "",
                text, sizeof text);
        return set_by_state(om_pg_state(res), text[0] ? text : "the connection ended", doing, e);
}

int om_pg_query_error(const PGresult *res, const PGconn *conn, struct om_error *e) {
        const char *state = om_pg_state(res), *hint = res ? PQresultErrorField(res, PG_DIAG_MESSAGE_HINT) : NULL;
        int r = om_pg_result_error(res, conn, "the query", e);
        char text[MESSAGE_MAX], advice[MESSAGE_MAX];

        if (begins(state, "57014"))
                return om_error_set(e, OM_TIMEOUT, "PostgreSQL: the query took longer than it may (timeout_ms)");
        if (!state[0] || begins(state, "57") || begins(state, "08") || begins(state, "53") || begins(state, "58") || begins(state, "XX"))
                return r;
        one_line(PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY), text, sizeof text);
        one_line(hint, advice, sizeof advice);
        if (begins(state, "25006"))
                return om_error_set(e, OM_DENIED, "PostgreSQL: the query: %s; storage.query only reads", text);
        return om_error_set(
                e, begins(state, "42501") ? OM_DENIED : OM_INVALID, "PostgreSQL: the query: %s%s%s", text, advice[0] ? "; " : "", advice);
}

/* The state in a message of VERBOSE: "FATAL:  28P01: …", whatever the language. */
static void find_state(const char *text, char state[6]) {
        state[0] = 0;
        for (const char *p = text; (p = strstr(p, ": ")); p++) {
                const char *q = p + strspn(p, ": ");
                size_t n = strspn(q, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ");

                if (n == 5 && q[5] == ':' && strcspn(q, "0123456789") < 5) { /* not FATAL */
                        memcpy(state, q, 5);
                        state[5] = 0;
                        return;
                }
        }
}

/* What fails before the server says anything has no state. */
static const char *local_hint(const char *text, enum om_kind *kind) {
        static const struct {
                const char *words;
                enum om_kind kind;
                const char *hint;
        } hints[] = {
                { "no password supplied", OM_DENIED, "the URL needs a password (or passfile)" },
                { "root certificate file", OM_INVALID, "sslrootcert in the URL names the authority's file" },
                { "certificate verify failed", OM_INVALID, "the server's certificate is not signed by sslrootcert, or not valid now" },
                { "does not match host name", OM_INVALID, "the certificate is another host's: the host in the URL" },
                { "does not support SSL", OM_INVALID, "the server has no TLS: sslmode in the URL" },
                { "certificate", OM_INVALID, "sslcert, sslkey and sslrootcert in the URL" },
                { "private key", OM_INVALID, "sslkey in the URL" },
                { "service", OM_INVALID, NULL },
                { "invalid sslmode", OM_INVALID, NULL },
                { "invalid port", OM_INVALID, NULL },
                { "invalid", OM_INVALID, NULL },
                { "session is read-only", OM_UNAVAILABLE, "no host of the URL takes writes (target_session_attrs)" },
                { "in hot standby", OM_UNAVAILABLE, "no host of the URL is the primary (target_session_attrs)" },
                { "could not translate host name", OM_UNAVAILABLE, "the host in the URL" },
        };

        for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
                if (strstr(text, hints[i].words)) {
                        *kind = hints[i].kind;
                        return hints[i].hint;
                }
        return NULL;
}

int om_pg_connect_error(const PGconn *conn, const struct om_pg_settings *s, struct om_error *e) {
        char text[MESSAGE_MAX], state[6];
        enum om_kind kind = OM_UNAVAILABLE;
        const char *hint, *begin;

        one_line(conn ? PQerrorMessage(conn) : "out of memory", text, sizeof text);
        find_state(text, state);
        begin = begins(text, "connection to server") ? "" : s->where;
        if (state[0])
                return set_by_state(state, text, begin, e);
        hint = local_hint(text, &kind);
        return set(kind, begin, text[0] ? text : "no connection", hint, e);
}
