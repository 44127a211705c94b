/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage.query: SQL that people write, on a connection and a thread of its own, so that neither a long query nor what it leaves in its
 * session meets the storage's own work.
 *
 * The server itself refuses writes: the transaction is READ ONLY. It ends with the connection, the statement after timeout_ms, and soon
 * where the client went away. A query that gives rows is read through a cursor, one row more than wanted, row by row: no answer is larger
 * in memory than what is given back and a row. EXPLAIN and SHOW have no cursor and few rows.
 *
 * What a superuser may do by functions alone (read files of the server, end others' sessions) no transaction forbids: the daemon's user
 * should be none.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../../proto/json_scan.h"
#include "errors.h"
#include "session.h"
#include "store_state.h"

enum { QUERIES_MAX = 4, DEPTH = 60 /* of a value in the answer */, GRACE_MS = 500 };

struct query {
        struct om_pg_job j; /* first; its request is not used */
        struct om_work work;
        struct om_post finished, stopped;
        struct om_worker *worker;
        struct om_store_query *op;
        void (*cancel_job)(struct om_op *op); /* job.h's */
        char *text;
        size_t limit;
        int64_t timeout_ms;
        int abort_fd;
        /* the thread's, until it has ended */
        struct om_buf out;
        size_t n;
        bool truncated;
        int status;
        struct om_error error;
};

static void query_free(struct om_job *job) {
        struct query *q = (struct query *) (void *) job;

        if (q->abort_fd >= 0)
                close(q->abort_fd);
        om_buf_deinit(&q->out);
        free(q->text);
        free(q);
}

/* -- values as JSON: the query's thread --------------------------------------------------------------------------------- */

/* Of pg_type.dat: these numbers are fixed. */
enum {
        T_BOOL = 16,
        T_INT8 = 20,
        T_INT2 = 21,
        T_INT4 = 23,
        T_OID = 26,
        T_JSON = 114,
        T_FLOAT4 = 700,
        T_FLOAT8 = 701,
        T_NUMERIC = 1700,
        T_JSONB = 3802
};

static void put_value(struct om_buf *b, const PGresult *res, int row, int column) {
        struct om_span text = om_pg_text(res, row, column);

        if (!text.p) {
                om_buf_lit(b, "null");
                return;
        }
        switch (PQftype(res, column)) {
        case T_BOOL:
                om_buf_puts(b, text.p[0] == 't' ? "true" : "false");
                return;
        case T_INT2:
        case T_INT4:
        case T_INT8:
        case T_OID:
        case T_FLOAT4:
        case T_FLOAT8:
        case T_NUMERIC: /* NaN and Infinity are no JSON */
        case T_JSON:
        case T_JSONB:
                if (om_json_check(text, DEPTH, NULL) == 0) {
                        om_buf_put_span(b, text);
                        return;
                }
                break;
        default:
                break;
        }
        om_buf_json_span(b, text);
}

static void put_columns(struct om_buf *b, const PGresult *res) {
        om_buf_lit(b, "{\"columns\":[");
        for (int i = 0; i < PQnfields(res); i++) {
                if (i)
                        om_buf_putc(b, ',');
                om_buf_json_span(b, om_span_of(PQfname(res, i)));
        }
        om_buf_lit(b, "],\"rows\":[");
}

/* True when there is no room for more. */
static bool put_row(struct query *q, const PGresult *res, int row) {
        size_t mark = q->out.len;

        if (q->n >= q->limit) {
                q->truncated = true;
                return true;
        }
        om_buf_puts(&q->out, q->n ? ",[" : "[");
        for (int i = 0; i < PQnfields(res); i++) {
                if (i)
                        om_buf_putc(&q->out, ',');
                put_value(&q->out, res, row, i);
        }
        om_buf_putc(&q->out, ']');
        if (q->out.len > OM_STORE_QUERY_BYTES_MAX) {
                q->out.len = mark;
                q->truncated = true;
                return true;
        }
        q->n++;
        return false;
}

/* -- running it: the query's thread --------------------------------------------------------------------------------------- */

/* Past white space and comments. */
static const char *first_word(const char *p) {
        for (;;) {
                p += strspn(p, " \t\r\n\f(");
                if (strncmp(p, "--", 2) == 0)
                        p += strcspn(p, "\n");
                else if (strncmp(p, "/*", 2) == 0 && strstr(p + 2, "*/"))
                        p = strstr(p + 2, "*/") + 2;
                else
                        return p;
        }
}

static bool begins_with(const char *text, const char *const *words) {
        const char *word = first_word(text);

        for (; *words; words++) {
                size_t n = strlen(*words);

                if (strncasecmp(word, *words, n) == 0 && !isalnum((unsigned char) word[n]) && word[n] != '_')
                        return true;
        }
        return false;
}

/* Of what gives rows some has a cursor. The rest is told before the server calls it a fault of syntax. */
static const char *const with_cursor[] = { "select", "with", "values", "table", NULL },
                         *const without_cursor[] = { "explain", "show", NULL };

static int read_rows(struct query *q, PGconn *conn, const struct om_pg_wait *w) {
        PGresult *res;
        bool full = false, named = false;

        for (;;) {
                int r = om_pg_await(conn, w, &q->error);

                if (r < 0)
                        return r;
                res = PQgetResult(conn);
                if (!res)
                        return om_buf_ok(&q->out) ? 0 : om_error_set_errno(&q->error, ENOMEM, "PostgreSQL");
                if (PQresultStatus(res) != PGRES_SINGLE_TUPLE && PQresultStatus(res) != PGRES_TUPLES_OK) {
                        r = om_pg_query_error(res, conn, &q->error);
                        PQclear(res);
                        return r;
                }
                if (!named)
                        put_columns(&q->out, res);
                named = true;
                for (int i = 0; i < PQntuples(res) && !full; i++)
                        full = put_row(q, res, i);
                PQclear(res);
                if (full && q->out.len > OM_STORE_QUERY_BYTES_MAX / 2)
                        return 0; /* what else comes may be long: the connection is closed anyway */
        }
}

static int run_on(struct query *q, PGconn *conn, const struct om_pg_wait *w) {
        char number[32], fetch[64];
        const char *timeout[] = { number };
        struct om_buf declare = OM_BUF_INIT;
        const char *sql = q->text;
        int r;

        if (!begins_with(q->text, with_cursor) && !begins_with(q->text, without_cursor))
                return om_error_set(
                        &q->error, OM_INVALID, "PostgreSQL: the query: it only reads: SELECT, WITH, VALUES, TABLE, EXPLAIN or SHOW");
        snprintf(number, sizeof number, "%lld", (long long) q->timeout_ms);
        snprintf(fetch, sizeof fetch, "FETCH FORWARD %zu FROM om_query", q->limit + 1);
        r = om_pg_exec(conn, w, "the query", "BEGIN TRANSACTION READ ONLY", 0, NULL, NULL, &q->error);
        if (r == 0)
                r = om_pg_exec(conn, w, "the query", "SELECT set_config('statement_timeout', $1, true)", 1, timeout, NULL, &q->error);
        if (r == 0 && begins_with(q->text, with_cursor)) {
                om_buf_puts(&declare, "DECLARE om_query NO SCROLL CURSOR FOR ");
                om_buf_puts(&declare, q->text);
                om_buf_putc(&declare, 0);
                r = om_buf_ok(&declare) ? om_pg_exec(conn, w, NULL, declare.data, 0, NULL, NULL, &q->error)
                                        : om_error_set_errno(&q->error, ENOMEM, "PostgreSQL");
                sql = fetch;
        }
        om_buf_deinit(&declare);
        if (r == 0 && (!PQsendQueryParams(conn, sql, 0, NULL, NULL, NULL, NULL, 0) || !PQsetSingleRowMode(conn)))
                r = om_pg_query_error(NULL, conn, &q->error);
        return r < 0 ? r : read_rows(q, conn, w);
}

/* Of the names in the text those of the storage's tables are found without their schema. */
static int prepare_session(struct query *q, PGconn *conn, const struct om_pg_wait *w) {
        const char *schema[] = { q->j.store->settings.schema };
        int r = om_pg_exec(conn, w, "setting the query's session up",
                "SELECT set_config('search_path', quote_ident($1) || ', pg_temp', false), set_config('client_min_messages', "
                "'error', false),"
                " set_config('DateStyle', 'ISO', false)",
                1, schema, NULL, &q->error);

        /* PostgreSQL 14 and newer: a query whose client is gone ends. */
        if (r == 0 && PQserverVersion(conn) >= 140000)
                r = om_pg_exec(conn, w, "setting the query's session up",
                        "SELECT set_config('client_connection_check_interval', '1s', false)", 0, NULL, NULL, &q->error);
        return r;
}

static int turn(void *ctx, struct om_work *list) {
        struct query *q = ctx;
        struct om_pg_wait w = { .abort_fd = q->abort_fd };
        int64_t started = om_clock_ms();
        PGconn *conn = NULL;

        if (!list)
                return -1;
        q->status = om_pg_connect(&q->j.store->settings, &w, &conn, &q->error);
        w.deadline_ms = started + q->timeout_ms + GRACE_MS;
        if (q->status == 0)
                q->status = prepare_session(q, conn, &w);
        if (q->status == 0)
                q->status = run_on(q, conn, &w);
        PQfinish(conn);
        om_buf_puts(&q->out, q->truncated ? "],\"truncated\":true}" : "],\"truncated\":false}");
        om_host_post(q->j.store->host, &q->finished);
        return -1;
}

/* -- the loop -------------------------------------------------------------------------------------------------------------- */

static void stopped(struct om_post *post) {
        struct query *q = (void *) ((char *) post - offsetof(struct query, stopped));

        q->j.store->queries--;
        if (q->status == 0 && !om_job_is_cancelled(&q->j.job)) {
                q->op->answer = om_buf_ok(&q->out) ? om_arena_copy(&q->op->arena, om_buf_span(&q->out)) : OM_SPAN_NONE;
                if (!q->op->answer.p)
                        q->status = om_error_set_errno(&q->error, ENOMEM, "PostgreSQL");
        }
        om_pg_job_over(&q->j, q->status, &q->error);
}

static void finished(struct om_post *post) {
        struct query *q = (void *) ((char *) post - offsetof(struct query, finished));

        q->j.store->host->ops->worker_stop(q->worker, &q->stopped);
}

/* Its thread ends soon; the op ends now. */
static void query_cancel(struct om_op *op) {
        struct query *q = op->backend;

        eventfd_write(q->abort_fd, 1);
        q->cancel_job(op);
}

int om_pg_store_query(struct om_store *s, struct om_store_query *op, struct om_error *e) {
        struct query *q;
        int r;

        if (memchr(op->text.p, 0, op->text.len))
                return om_error_set(e, OM_INVALID, "PostgreSQL: the query: a zero byte");
        if (s->queries >= QUERIES_MAX)
                return om_error_set(e, OM_LIMIT, "PostgreSQL: %d queries are running; wait for one", QUERIES_MAX);
        r = om_pg_job_new(s, &op->op, sizeof *q, op->text.len, query_free, &q, e);
        if (r < 0)
                return r;
        s->jobs.in_call = true;
        op->arena = (struct om_arena){ 0 };
        op->answer = OM_SPAN_NONE;
        q->cancel_job = op->op.cancel;
        op->op.cancel = query_cancel;
        q->op = op;
        q->limit = op->limit;
        q->timeout_ms = op->timeout_ms;
        q->finished.fn = finished;
        q->stopped.fn = stopped;
        q->text = strndup(op->text.p, op->text.len);
        q->abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (!q->text || q->abort_fd < 0)
                om_pg_job_no_memory(&q->j);
        else if ((r = s->host->ops->worker_new(s->host, "om-pg-query", turn, q, &q->worker, &q->error)) < 0)
                om_pg_job_over(&q->j, r, &q->error);
        else {
                s->queries++;
                s->host->ops->worker_submit(q->worker, &q->work);
        }
        s->jobs.in_call = false;
        return 0;
}
