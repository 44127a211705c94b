/* SPDX-License-Identifier: Apache-2.0 */
/* Making a connection, off the loop: see session.h. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "../host.h"
#include "errors.h"
#include "session.h"

enum { SERVER_OLDEST = 120000, CHECKS_CLIENT = 140000, SETUP_TIMEOUT_MS = 10000 };

/* -- waiting --------------------------------------------------------------------------------------------------------- */

static int wait_for(int fd, short events, const struct om_pg_wait *w, struct om_error *e) {
        for (;;) {
                struct pollfd fds[2] = { { .fd = fd, .events = events }, { .fd = w->abort_fd, .events = POLLIN } };
                int64_t left = w->deadline_ms - om_clock_ms();
                int r = left > 0 ? poll(fds, 2, left > 60000 ? 60000 : (int) left) : 0;

                if (r < 0 && errno != EINTR)
                        return om_error_set_errno(e, errno, "PostgreSQL: poll");
                if (fds[1].revents) {
                        om_error_set(e, OM_UNAVAILABLE, "PostgreSQL: cancelled");
                        return -ECANCELED;
                }
                if (r > 0)
                        return 0;
                if (om_clock_ms() >= w->deadline_ms)
                        return om_error_set(e, OM_TIMEOUT, "PostgreSQL: no answer in time");
        }
}

static int lost(PGconn *conn, struct om_error *e) { return om_pg_result_error(NULL, conn, "talking to the server", e); }

int om_pg_await(PGconn *conn, const struct om_pg_wait *w, struct om_error *e) {
        for (;;) {
                int unsent = PQflush(conn), r;

                if (unsent < 0)
                        return lost(conn, e);
                if (!unsent && !PQisBusy(conn))
                        return 0;
                r = wait_for(PQsocket(conn), (short) (POLLIN | (unsent ? POLLOUT : 0)), w, e);
                if (r < 0)
                        return r;
                if (!PQconsumeInput(conn))
                        return lost(conn, e);
        }
}

int om_pg_exec(PGconn *conn, const struct om_pg_wait *w, const char *doing, const char *sql, int n, const char *const *values,
        PGresult **ret, struct om_error *e) {
        PGresult *kept = NULL, *res;
        int r = 0;

        if (!(n < 0 ? PQsendQuery(conn, sql) : PQsendQueryParams(conn, sql, n, NULL, values, NULL, NULL, 0)))
                return lost(conn, e);
        for (;;) {
                int waited = om_pg_await(conn, w, e);
                ExecStatusType status;

                if (waited < 0) {
                        PQclear(kept);
                        return waited;
                }
                res = PQgetResult(conn);
                if (!res)
                        break;
                status = PQresultStatus(res);
                if (r == 0 && status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
                        r = doing ? om_pg_result_error(res, conn, doing, e) : om_pg_query_error(res, conn, e);
                PQclear(kept);
                kept = res;
        }
        if (ret && r == 0)
                *ret = kept;
        else
                PQclear(kept);
        return r;
}

/* -- one host -------------------------------------------------------------------------------------------------------- */

static void ignore_notice(void *ctx, const PGresult *res) {}

static int poll_until_connected(PGconn *conn, const struct om_pg_settings *s, struct om_pg_wait *w, struct om_error *e) {
        PostgresPollingStatusType status = PGRES_POLLING_WRITING;

        while (status != PGRES_POLLING_OK) {
                int r;

                if (status == PGRES_POLLING_FAILED)
                        return om_pg_connect_error(conn, s, e);
                r = wait_for(PQsocket(conn), status == PGRES_POLLING_READING ? POLLIN : POLLOUT, w, e);
                if (r == -ETIMEDOUT)
                        return om_error_set(e, OM_UNAVAILABLE, "PostgreSQL: %s: no answer within %lld ms (connect_timeout)", s->where,
                                (long long) s->connect_timeout_ms);
                if (r < 0)
                        return r;
                status = PQconnectPoll(conn);
        }
        return 0;
}

/* keywords as they are, or with one host of several in place of all. */
static int connect_host(const struct om_pg_settings *s, struct om_pg_wait *w, const char *const *keywords, const char *const *values,
        PGconn **ret, struct om_error *e) {
        PGconn *conn;
        int r;

        w->deadline_ms = om_clock_ms() + s->connect_timeout_ms;
        conn = PQconnectStartParams(keywords, values, 0);
        if (!conn)
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        PQsetNoticeReceiver(conn, ignore_notice, NULL);
        PQsetErrorVerbosity(conn, PQERRORS_VERBOSE); /* the state stands nowhere else */
        if (PQstatus(conn) == CONNECTION_BAD)
                r = om_pg_connect_error(conn, s, e);
        else
                r = poll_until_connected(conn, s, w, e);
        if (r == 0 && PQsetnonblocking(conn, 1) < 0)
                r = lost(conn, e);
        if (r < 0)
                PQfinish(conn);
        else {
                PQsetErrorVerbosity(conn, PQERRORS_DEFAULT);
                *ret = conn;
        }
        return r;
}

/* -- several hosts: libpq alone would wait for ever for the first that is silent -------------------------------------- */

static char *part(const char *list, size_t n) {
        for (; list && n; n--) {
                list = strchr(list, ',');
                list = list ? list + 1 : NULL;
        }
        return list ? strndup(list, strcspn(list, ",")) : NULL;
}

static size_t count(const char *list) {
        size_t n = list && *list ? 1 : 0;

        for (; list && *list; list++)
                n += *list == ',';
        return n;
}

static const char *option(const PQconninfoOption *all, const char *keyword) {
        for (; all && all->keyword; all++)
                if (strcmp(all->keyword, keyword) == 0)
                        return all->val && *all->val ? all->val : NULL;
        return NULL;
}

static int connect_nth(
        const struct om_pg_settings *s, struct om_pg_wait *w, const PQconninfoOption *all, size_t i, PGconn **ret, struct om_error *e) {
        static const char *const names[] = { "host", "hostaddr", "port" };
        const char **keywords = calloc(s->n + 4, sizeof *keywords), **values = calloc(s->n + 4, sizeof *values);
        char *mine[3] = { NULL };
        size_t n = s->n;
        int r = keywords && values ? 0 : om_error_set_errno(e, ENOMEM, "PostgreSQL");

        for (size_t k = 0; r == 0 && k < s->n; k++) {
                keywords[k] = s->keywords[k];
                values[k] = s->values[k];
        }
        for (size_t k = 0; r == 0 && k < 3; k++) {
                const char *list = option(all, names[k]);

                mine[k] = count(list) > 1 ? part(list, i) : list ? strdup(list) : NULL;
                if (mine[k]) { /* the last of a name counts */
                        keywords[n] = names[k];
                        values[n++] = mine[k];
                }
        }
        if (r == 0)
                r = connect_host(s, w, keywords, values, ret, e);
        for (size_t k = 0; k < 3; k++)
                free(mine[k]);
        free(keywords);
        free(values);
        return r;
}

/* What is in force, the environment and the service file included: only libpq knows. */
static PQconninfoOption *in_force(const struct om_pg_settings *s) {
        PGconn *conn = PQconnectStartParams((const char *const *) s->keywords, (const char *const *) s->values, 0);
        PQconninfoOption *all = conn ? PQconninfo(conn) : NULL;

        PQfinish(conn);
        return all;
}

int om_pg_connect(const struct om_pg_settings *s, struct om_pg_wait *w, PGconn **ret, struct om_error *e) {
        const char *hosts = om_pg_setting(s, "host"), *service = om_pg_setting(s, "service"), *env = getenv("PGHOST");
        PQconninfoOption *all = service || count(hosts) > 1 || getenv("PGSERVICE") || (!hosts && env && strchr(env, ',')) ||
                        count(om_pg_setting(s, "hostaddr")) > 1
                ? in_force(s)
                : NULL;
        size_t n_hosts = count(option(all, "host")), n_addresses = count(option(all, "hostaddr"));
        size_t n = n_hosts > n_addresses ? n_hosts : n_addresses;
        struct om_error first = OM_ERROR_INIT;
        int r = -EAGAIN;

        if (n < 2)
                r = connect_host(s, w, (const char *const *) s->keywords, (const char *const *) s->values, ret, e);
        for (size_t i = 0; n > 1 && i < n && r < 0 && r != -ECANCELED; i++) {
                r = connect_nth(s, w, all, i, ret, e);
                if (r < 0 && (!first.kind || (first.kind == OM_UNAVAILABLE && e->kind != OM_UNAVAILABLE)))
                        first = *e; /* one that can be mended says more than one that is away */
        }
        if (r < 0 && first.kind && e)
                *e = first;
        PQconninfoFree(all);
        return r;
}

/* -- the session ------------------------------------------------------------------------------------------------------ */

static int check_server(PGconn *conn, const struct om_pg_settings *s, struct om_error *e) {
        const char *encoding = PQparameterStatus(conn, "server_encoding");

        if (PQserverVersion(conn) < SERVER_OLDEST)
                return om_error_set(e, OM_UNSUPPORTED, "PostgreSQL: %s: the server is version %d.%d; 12 or newer is needed", s->where,
                        PQserverVersion(conn) / 10000, PQserverVersion(conn) % 10000);
        if (encoding && strcmp(encoding, "UTF8") != 0)
                return om_error_set(e, OM_UNSUPPORTED,
                        "PostgreSQL: %s: the database has the encoding %s; make one with createdb --encoding=UTF8 --template=template0",
                        s->where, encoding);
        return 0;
}

static int set_up(PGconn *conn, const struct om_pg_settings *s, const struct om_pg_wait *w, struct om_error *e) {
        char timeout[32];
        const char *values[] = { s->schema, om_pg_commits[s->synchronous_commit], s->language, timeout };
        int r;

        snprintf(timeout, sizeof timeout, "%lld", (long long) s->answer_timeout_ms);
        /* The schema alone is searched (and the server's own): what others put into `public` is never taken for ours. A statement that
         * somebody's lock holds up ends by itself, and with its connection. */
        r = om_pg_exec(conn, w, "setting the session up (`language` in the URL names a text search configuration)",
                "SELECT set_config('search_path', quote_ident($1) || ', pg_temp', false), set_config('synchronous_commit', $2, false),"
                " set_config('default_text_search_config', ($3::regconfig)::text, false), set_config('client_min_messages', 'error', "
                "false),"
                " set_config('statement_timeout', $4, false), set_config('lock_timeout', '0', false),"
                " set_config('idle_in_transaction_session_timeout', '60s', false), set_config('default_transaction_isolation', 'read "
                "committed', false),"
                " set_config('jit', 'off', false), set_config('DateStyle', 'ISO', false), set_config('bytea_output', 'hex', false)",
                4, values, NULL, e);
        if (r == 0 && PQserverVersion(conn) >= CHECKS_CLIENT)
                r = om_pg_exec(conn, w, "setting the session up", "SELECT set_config('client_connection_check_interval', '5s', false)", 0,
                        NULL, NULL, e);
        return r;
}

int om_pg_session(const struct om_pg_settings *s, struct om_pg_wait *w, PGconn **ret, struct om_error *e) {
        PGconn *conn = NULL;
        int r = om_pg_connect(s, w, &conn, e);

        if (r < 0)
                return r;
        w->deadline_ms = om_clock_ms() + SETUP_TIMEOUT_MS;
        r = check_server(conn, s, e);
        if (r == 0)
                r = set_up(conn, s, w, e);
        if (r == 0) {
                w->deadline_ms = om_clock_ms() + SETUP_TIMEOUT_MS;
                r = om_pg_migrate(conn, s, w, e);
        }
        if (r < 0)
                PQfinish(conn);
        else
                *ret = conn;
        return r;
}
