/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon on a PostgreSQL storage, beside libpq alone in pipeline mode with the same statements on the same server, each of them
 * a transaction, as many under way as the daemon is given.
 *
 * Where many writes are under way the daemon makes one transaction of what waits: that, not its speed, is why it may be the faster one.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_LIBPQ
#include "../../backends/postgresql/codec.h"
#include "../../backends/postgresql/statements.h"

enum { UNDER_WAY = 64, ROWS = 100 /* of a statement that saves results */, ROWS_UNDER_WAY = 4 };

static char folder[64], store_url[300];
static struct om_test_server *server;

static void server_start(void) {
        folder_new(folder);
        server = om_test_server_start("postgresql", folder);
        const char *url = om_test_server_value(server, "store_url"), *hole = strstr(url, "{case}");
        snprintf(store_url, sizeof(store_url), "%.*sbench%s", (int) (hole - url), url, hole + strlen("{case}"));
        setenv("STORAGE_URL", store_url, 1);
}

static void server_stop(void) {
        unsetenv("STORAGE_URL");
        om_test_server_stop(server);
        folder_remove(folder);
}

/* -- libpq alone: the daemon has made the tables ------------------------------------------------------------------------------ */

static PGconn *connect_to(void) {
        char url[300], *parameters;
        snprintf(url, sizeof(url), "%s", store_url);
        if ((parameters = strchr(url, '?')))
                *parameters = 0;
        PGconn *c = PQconnectdb(url);
        PGresult *res = PQexec(c, "SET search_path = bench, pg_temp; SET client_min_messages = error; SET jit = off");
        if (PQresultStatus(res) != PGRES_COMMAND_OK)
                die("libpq", PQerrorMessage(c));
        PQclear(res);
        return c;
}

struct native {
        unsigned statement;
        long total;
        int under_way;
        void (*fill)(struct om_pg_params *p, long i);
        double *us; /* NULL: not timed; else one at a time */
};

static void send_one(PGconn *c, const struct native *n, long i) {
        struct om_pg_params p = { .bytes = OM_BUF_INIT };
        const char *values[OM_PG_PARAMS_MAX];
        int formats[OM_PG_PARAMS_MAX];
        n->fill(&p, i);
        for (int k = 0; k < p.n; k++) {
                values[k] = p.length[k] < 0 ? NULL : p.bytes.data + p.offset[k];
                formats[k] = 1;
        }
        if (!PQsendQueryPrepared(c, "s", p.n, values, p.length, formats, 1) || !PQpipelineSync(c))
                die("libpq", PQerrorMessage(c));
        om_pg_params_free(&p);
}

/* Waits for more, and counts the transactions that have ended. */
static long answers(PGconn *c) {
        struct pollfd fd = { .fd = PQsocket(c), .events = POLLIN };
        long ended = 0;
        if (PQflush(c) > 0)
                fd.events |= POLLOUT;
        poll(&fd, 1, -1);
        if (!PQconsumeInput(c))
                die("libpq", PQerrorMessage(c));
        for (int empty = 0; empty < 2 && !PQisBusy(c);) {
                PGresult *res = PQgetResult(c);
                ExecStatusType status = PQresultStatus(res);
                empty = res ? 0 : empty + 1;
                ended += res && status == PGRES_PIPELINE_SYNC;
                if (res && status != PGRES_PIPELINE_SYNC && status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
                        die("libpq", PQresultErrorMessage(res));
                PQclear(res);
        }
        return ended;
}

static double native_seconds(const struct native *n) {
        PGconn *c = connect_to();
        PQclear(PQprepare(c, "s", om_pg_statement(n->statement), 0, NULL));
        PQsetnonblocking(c, 1);
        PQenterPipelineMode(c);
        double start = now_s(), sent_at = start;
        for (long sent = 0, done = 0; done < n->total;) {
                for (; sent < n->total && sent - done < n->under_way; sent++) {
                        sent_at = now_s();
                        send_one(c, n, sent);
                }
                long ended = answers(c);
                if (n->us && ended)
                        n->us[done] = (now_s() - sent_at) * 1e6;
                done += ended;
        }
        double seconds = now_s() - start;
        PQfinish(c);
        return seconds;
}

static void fill_get(struct om_pg_params *p, long i) {
        char key[32];
        snprintf(key, sizeof(key), "k%ld", i % KEYS);
        om_pg_put_text(p, om_span_of(key));
}

static struct om_span column_text(int column, long i, char text[64], const char *record) {
        switch (column) {
        case 0:
                snprintf(text, 64, "k%ld", i);
                return om_span_of(text);
        case 4:
                return om_span_of(record);
        default:
                return column < 4 ? OM_SPAN("agent") : OM_SPAN_NONE;
        }
}

static void fill_rows(struct om_pg_params *p, long first, long n, const char *value) {
        char text[64];
        for (int column = 0; column < 5; column++) {
                om_pg_array_begin(p, OM_PG_TEXT, (size_t) n);
                for (long i = first; i < first + n; i++)
                        om_pg_array_text(p, column_text(column, i, text, value));
                om_pg_array_end(p);
        }
        om_pg_array_begin(p, OM_PG_BOOL, (size_t) n);
        for (long i = 0; i < n; i++)
                om_pg_array_bool(p, false);
        om_pg_array_end(p);
        for (int column = 0; column < 2; column++) {
                om_pg_array_begin(p, OM_PG_TIME, (size_t) n);
                for (long i = 0; i < n; i++)
                        om_pg_array_time(p, 1800000000000);
                om_pg_array_end(p);
        }
}

static void fill_set(struct om_pg_params *p, long i) { fill_rows(p, i % KEYS, 1, value_text()); }

static void fill_results(struct om_pg_params *p, long i) {
        static char record[RECORD_BYTES + 100];
        if (!record[0]) /* as the daemon's: the task with its content, and what became of it */
                snprintf(record, sizeof(record),
                        "{\"task_id\":\"7d0f1e9a-5b7c-4c4e-9d53-3f1d2b8a9c10\",\"topic\":\"whole\",\"content\":%s,\"status\":"
                        "\"completed\"}",
                        value_text());
        fill_rows(p, i * ROWS, ROWS, record);
}

/* -- the daemon ---------------------------------------------------------------------------------------------------------------- */

static double alone(bool writes, long total, int under_way, double *us) {
        struct native n = { writes ? OM_PG_PUT_CONFIG : OM_PG_GET_CONFIG, total, under_way, writes ? fill_set : fill_get, us };
        return native_seconds(&n);
}

void case_postgresql(void) {
        long results = scaled(50000) / ROWS * ROWS;
        struct daemon d;
        server_start();
        daemon_start(&d, "local:bus?durability=memory"); /* which makes the tables */
        settings_rates(&d, "pg", alone, UNDER_WAY, scaled(20000));
        figure("pg_native_results",
                (double) results /
                        native_seconds(&(struct native){ OM_PG_PUT_RESULTS, results / ROWS, ROWS_UNDER_WAY, fill_results, NULL }));
        figure("pg_results", (double) results / whole_way_seconds(&d, "whole", 1, true, results));
        daemon_stop(&d);
        server_stop();
}

void case_postgresql_latency(void) {
        struct daemon d;
        server_start();
        daemon_start(&d, "local:bus?durability=memory");
        settings_latencies(&d, "pg", alone, scaled(2000));
        daemon_stop(&d);
        server_stop();
}
#else
void case_postgresql_latency(void) {}
void case_postgresql(void) { figure_missing("pg_native_set", "built without libpq; packaging/install-deps.sh postgresql installs it"); }
#endif
