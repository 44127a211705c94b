/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PostgreSQL's own: what a URL says, keys as the server's text, and on the real server what the contract of storages does not ask: search,
 * plans, the sweeper, migrations, queries of people, and a server that is short of connections, silent, or replaced by its standby.
 */
#include <check.h>
#include <errno.h>
#include <libpq-fe.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../backends/postgresql/errors.h"
#include "../../backends/postgresql/session.h"
#include "../../backends/postgresql/store_state.h"
#include "../../proto/json_scan.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

extern const struct om_store_ops om_postgresql_store_ops;
static struct om_test_server *plain, *pair, *small; /* small: NULL where there can be none */

/* -- what a URL says --------------------------------------------------------------------------------------------------- */

static int read_url(const char *text, struct om_pg_settings *s, struct om_error *e) {
        struct om_url *url;
        ck_assert_int_eq(om_url_parse(text, &url, e), 0);
        int r = om_pg_settings_read(s, url, e);
        om_url_free(url);
        return r;
}

static void says(const char *url, const char *keyword, const char *value) {
        struct om_pg_settings s;
        struct om_error e;
        ck_assert_msg(read_url(url, &s, &e) == 0, "%s: %s", url, e.message);
        const char *found = om_pg_setting(&s, keyword);
        ck_assert_msg(value ? found && strcmp(found, value) == 0 : !found, "%s: %s is %s", url, keyword, found ? found : "not there");
        om_pg_settings_free(&s);
}

START_TEST(test_parts_and_parameters_of_a_url_reach_libpq) {
        const char *all = "postgres://u%40x:p%2Fw@h1:5433,h2/d%20b?sslmode=require&options=-c%20geqo%3Doff";
        says(all, "host", "h1,h2");
        says(all, "port", "5433,");
        says(all, "user", "u@x");
        says(all, "password", "p/w");
        says(all, "dbname", "d b");
        says(all, "sslmode", "require");
        says(all, "options", "-c geqo=off");
        says(all, "target_session_attrs", "read-write");
        says("postgresql:///d?host=/run/postgresql", "host", "/run/postgresql");
        says("postgresql://h/d?sslrootcert=/ca.pem", "sslmode", "verify-full");
        says("postgresql://h/d?sslrootcert=/ca.pem&sslmode=verify-ca", "sslmode", "verify-ca");
        says("postgresql://h/d", "sslmode", NULL);
        says("postgresql://h/d?target_session_attrs=any&keepalives_idle=5", "keepalives_idle", "5");
}
END_TEST

static void refused(const char *url, const char *word) {
        struct om_pg_settings s;
        struct om_error e;
        ck_assert_msg(read_url(url, &s, &e) == -EINVAL, "%s is taken", url);
        ck_assert_msg(strstr(e.message, word) && !strstr(e.message, "geheim"), "%s: %s", url, e.message);
}

START_TEST(test_wrong_parameters_are_named) {
        refused("postgresql://u:geheim@h/d?connectons=2", "connections");
        refused("postgresql://u:geheim@h/d?sslmod=require", "sslmode");
        refused("postgresql://u:geheim@h/d?connections=0", "connections");
        refused("postgresql://u:geheim@h/d?schema=", "schema");
        refused("postgresql://u:geheim@h/d?schema=pg_mine", "schema");
        refused("postgresql://u:geheim@h/d?target_session_attrs=standby", "target_session_attrs");
        refused("postgresql://u:geheim@h/d?synchronous_commit=perhaps", "synchronous_commit");
        refused("postgresql://u:geheim@h/d?client_encoding=LATIN1", "client_encoding");
        refused("postgresql://u:geheim@h/d?connect_timeout=soon", "connect_timeout");
}
END_TEST

/* -- keys as the server's text ------------------------------------------------------------------------------------------ */

static struct om_buf encoded(struct om_span key) {
        struct om_buf b = OM_BUF_INIT;
        om_pg_key_encode(&b, key);
        ck_assert(om_buf_ok(&b) && !memchr(om_buf_span(&b).p, 0, b.len));
        return b;
}

static int compare(struct om_span a, struct om_span b) {
        size_t n = a.len < b.len ? a.len : b.len;
        int r = n ? memcmp(a.p, b.p, n) : 0;
        return r ? (r > 0) - (r < 0) : (a.len > b.len) - (a.len < b.len);
}

START_TEST(test_any_key_is_a_text_that_reads_back_and_sorts_as_it_does) {
        struct om_arena arena = { 0 };
        unsigned x = 1;
        for (int round = 0; round < 20000; round++) {
                char bytes[2][6];
                struct om_span key[2];
                struct om_buf text[2];
                for (int k = 0; k < 2; k++) {
                        size_t len = (x = x * 1103515245u + 12345u) >> 16 & 0xffff;
                        len %= sizeof(bytes[k]) + 1;
                        for (size_t i = 0; i < len; i++) {
                                x = x * 1103515245u + 12345u;
                                bytes[k][i] = "\0\1\2az"[(x >> 16) % 5];
                        }
                        key[k] = (struct om_span){ bytes[k], len };
                        text[k] = encoded(key[k]);
                        ck_assert(om_span_eq(om_pg_key_decode(om_buf_span(&text[k]), &arena), key[k]));
                }
                ck_assert_int_eq(compare(key[0], key[1]), compare(om_buf_span(&text[0]), om_buf_span(&text[1])));
                om_buf_deinit(&text[0]);
                om_buf_deinit(&text[1]);
        }
        om_arena_deinit(&arena);
}
END_TEST

START_TEST(test_times_keep_their_milliseconds_and_ends_are_infinite) {
        static const int64_t times[] = { 0, 1, -1, 999, 1000, 946684800000, 1795425242131, 253402300799999, -62135596800000 };
        for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++)
                ck_assert_int_eq(om_pg_ms_of(om_pg_micros_of(times[i])), times[i]);
        ck_assert_int_eq(om_pg_micros_of(INT64_MAX), INT64_MAX);
        ck_assert_int_eq(om_pg_micros_of(INT64_MIN), INT64_MIN);
}
END_TEST

/* -- the real server ---------------------------------------------------------------------------------------------------- */

static char schema[32];

static void url_of(const struct om_test_server *server, const char *more, char *url, size_t size) {
        const char *text = om_test_server_value(server, "store_url"), *hole = strstr(text, "{case}");
        snprintf(schema, sizeof(schema), "t%ld", (long) getpid());
        snprintf(url, size, "%.*s%s%s", (int) (hole - text), text, schema, more);
}

static void open_it(struct user *u, const char *more) {
        char url[1000];
        url_of(plain, more, url, sizeof(url));
        ck_assert_msg(user_open(u, url) == 0, "%s: %s", url, u->error.message);
        ck_assert_msg(u->state == OM_STORE_READY, "%s", u->state_error.message);
}

static void until_ready(struct user *u) {
        for (int tries = 0; u->state != OM_STORE_READY; tries++) {
                ck_assert_msg(tries < 200, "%s", u->state_error.message);
                user_sleep(u, 50);
        }
}

/* Another client of the same database, in the storage's schema. */
static PGconn *stranger(void) {
        char url[1000], *end, path[100];
        url_of(plain, "", url, sizeof(url));
        if ((end = strchr(url, '?')))
                *end = 0;
        PGconn *c = PQconnectdb(url);
        ck_assert_msg(PQstatus(c) == CONNECTION_OK, "%s", PQerrorMessage(c));
        snprintf(path, sizeof(path), "SET search_path = %s; SET client_min_messages = error", schema);
        PQclear(PQexec(c, path));
        return c;
}

static char *ask(PGconn *c, const char *sql) {
        PGresult *res = PQexec(c, sql);
        ck_assert_msg(PQresultStatus(res) == PGRES_TUPLES_OK || PQresultStatus(res) == PGRES_COMMAND_OK, "%s: %s", sql, PQerrorMessage(c));
        struct om_buf b = OM_BUF_INIT;
        for (int i = 0; i < PQntuples(res); i++)
                om_buf_printf(&b, "%s%s", i ? "\n" : "", PQgetvalue(res, i, 0));
        om_buf_putc(&b, 0);
        PQclear(res);
        return b.data;
}

static void is(PGconn *c, const char *sql, const char *expected) {
        char *text = ask(c, sql);
        ck_assert_msg(strcmp(text, expected) == 0, "%s: %s", sql, text);
        free(text);
}

static void put(struct user *u, const char *id, const char *value) {
        struct om_store_entry e = { .key = om_span_of(id),
                .name = OM_SPAN("a"),
                .topic = OM_SPAN("t"),
                .status = OM_SPAN("completed"),
                .value = om_span_of(value),
                .saved_ms = om_now_ms() };
        ck_assert_msg(user_put(u, OM_STORE_RESULTS, &e) == 0, "%s", u->error.message);
}

/* The ids found, newest first, parted by commas. */
static const char *found(struct user *u, const char *text, const char *filter) {
        static char ids[1000];
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .text = om_span_of(text), .filter = om_span_of(filter), .limit = 2 };
        size_t n = 0;
        ids[0] = 0;
        do {
                ck_assert_msg(user_list(u, &list) == 0, "%s", u->error.message);
                for (size_t i = 0; i < list.n; i++)
                        n += (size_t) snprintf(ids + n, sizeof(ids) - n, "%s%s", n ? "," : "", list.entries[i].key.p);
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        return ids;
}

START_TEST(test_results_are_found_by_words_and_by_what_they_contain) {
        struct user u;
        open_it(&u, "");
        put(&u, "1", "{\"status\":\"completed\",\"result\":{\"greeting\":\"hello world\",\"n\":1}}");
        put(&u, "2", "{\"status\":\"failed\",\"error\":\"the Invoice 4711 is missing\\nline two\"}");
        put(&u, "3", "{\"status\":\"completed\",\"result\":{\"greeting\":\"hello moon\",\"list\":[1,{\"deep\":true}]}}");
        put(&u, "4", "{\"status\":\"completed\",\"result\":\"caf\\u00e9 \\\"hello\\\"\"}");
        ck_assert_str_eq(found(&u, "hello", NULL), "4,3,1");
        ck_assert_str_eq(found(&u, "hello -moon", NULL), "4,1");
        ck_assert_str_eq(found(&u, "\"hello world\"", NULL), "1");
        ck_assert_str_eq(found(&u, "invoice 4711", NULL), "2");
        ck_assert_str_eq(found(&u, "line", NULL), "2");
        ck_assert_str_eq(found(&u, "café", NULL), "4");
        ck_assert_str_eq(found(&u, "moon or invoice", NULL), "3,2");
        ck_assert_str_eq(found(&u, "nothing", NULL), "");
        ck_assert_str_eq(found(&u, "'; drop table results; --", NULL), "");
        ck_assert_str_eq(found(&u, NULL, "{\"status\":\"completed\"}"), "4,3,1");
        ck_assert_str_eq(found(&u, NULL, "{\"result\":{\"list\":[{\"deep\":true}]}}"), "3");
        ck_assert_str_eq(found(&u, "hello", "{\"result\":{\"n\":1.0}}"), "1");
        put(&u, "1", "{\"result\":\"rewritten\"}");
        ck_assert_str_eq(found(&u, "world", NULL), "");
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .filter = OM_SPAN("{\"a\":\"\\u0000\"}") };
        ck_assert_int_eq(user_list(&u, &list), -EINVAL);
        user_close(&u);
}
END_TEST

START_TEST(test_a_language_finds_inflected_words) {
        struct user u;
        open_it(&u, "&language=english");
        put(&u, "1", "{\"error\":\"the runners were running\"}");
        ck_assert_str_eq(found(&u, "run", NULL), "1");
        ck_assert_str_eq(found(&u, "runner", NULL), "1");
        user_close(&u);
}
END_TEST

START_TEST(test_what_jsonb_cannot_hold_comes_back_as_it_was_and_spoils_no_batch) {
        static char number[200100] = "[1e";
        const char *const values[] = { "{\"b\":1,\"a\":1,\"b\":2.50}", "\"\\u0000\"", "{\"x\":\"\\ud800\"}", number, "1E400",
                "{\"ok\":\"findable\"}" };
        enum { N = sizeof(values) / sizeof(values[0]) };
        struct om_store_entry entries[N];
        struct om_outcome outcomes[N];
        char ids[N][8];
        struct user u;
        memset(number + 3, '9', 10);
        strcpy(number + 13, "]");
        open_it(&u, "");
        for (int i = 0; i < N; i++) {
                snprintf(ids[i], sizeof(ids[i]), "%d", i);
                entries[i] = (struct om_store_entry){
                        .key = om_span_of(ids[i]), .name = OM_SPAN("a"), .value = om_span_of(values[i]), .saved_ms = 1000
                };
        }
        ck_assert_int_eq(user_put_many(&u, OM_STORE_RESULTS, entries, N, outcomes), 0);
        for (int i = 0; i < N; i++) {
                ck_assert_int_eq(outcomes[i].status, 0);
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, ids[i], "a"), values[i]);
        }
        ck_assert_str_eq(found(&u, "findable", NULL), "5");
        PGconn *c = stranger();
        is(c, "SELECT string_agg(task_id, ',' ORDER BY task_id) FROM results WHERE doc IS NULL", "1,2,3");
        PQfinish(c);
        user_close(&u);
}
END_TEST

START_TEST(test_a_value_with_more_words_than_the_server_indexes_is_kept_and_found_by_its_beginning) {
        enum { SIZE = 6 << 20 };
        struct om_buf b = OM_BUF_INIT;
        struct user u;
        om_buf_lit(&b, "[\"beginning\"");
        for (unsigned i = 0; b.len < SIZE; i++)
                om_buf_printf(&b, ",\"w%ux%u\"", i, i * 7919u);
        om_buf_lit(&b, ",\"theend\"]");
        om_buf_putc(&b, 0);
        open_it(&u, "");
        put(&u, "1", b.data);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "1", NULL), b.data);
        ck_assert_str_eq(found(&u, "beginning", NULL), "1");
        ck_assert_str_eq(found(&u, "theend", NULL), "");
        ck_assert_str_eq(found(&u, NULL, "[\"theend\"]"), "1");
        om_buf_deinit(&b);
        user_close(&u);
}
END_TEST

/* -- plans -------------------------------------------------------------------------------------------------------------- */

/* The plan of a statement for these values; of one that stays prepared the generic plan, which it comes to whatever its values. */
static void plan_has(PGconn *c, unsigned statement, const char *arguments, const char *index) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_printf(&b, "PREPARE p AS %s", om_pg_statement(statement));
        om_buf_putc(&b, 0);
        free(ask(c, b.data));
        free(ask(c,
                om_pg_is_planned_anew(statement) ? "SET plan_cache_mode = force_custom_plan" : "SET plan_cache_mode = force_generic_plan"));
        om_buf_clear(&b);
        om_buf_printf(&b, "EXPLAIN EXECUTE p(%s)", arguments);
        om_buf_putc(&b, 0);
        char *plan = ask(c, b.data);
        ck_assert_msg(strstr(plan, index) && !strstr(plan, "Seq Scan on results") && !strstr(plan, "Seq Scan on keys") &&
                        !strstr(plan, "Seq Scan on config") && !strstr(plan, "Seq Scan on metrics"),
                "statement %u does not use %s:\n%s", statement, index, plan);
        free(plan);
        free(ask(c, "DEALLOCATE p"));
        om_buf_deinit(&b);
}

START_TEST(test_statements_use_the_indexes) {
#define FROM_NOW "101, 16777216, 'infinity', 9223372036854775807, '-infinity', now()"
        struct user u;
        open_it(&u, "");
        PGconn *c = stranger();
        free(ask(c,
                "INSERT INTO results SELECT 'task-' || i, 'agent-' || i % 700, 'topic-' || i % 900, CASE WHEN i % 100 = 0 THEN 'failed' "
                "ELSE "
                "'completed' END,"
                " v, v::jsonb, now() - i * interval '1 second', now() + i * interval '1 second', i, words_of(v, v::jsonb)"
                " FROM (SELECT i, json_build_object('n', i, 'text', 'word' || i % 5000)::text AS v FROM generate_series(1, 20000) AS i) AS "
                "x"));
        free(ask(c, "INSERT INTO keys SELECT 'k' || i, '1', now() + i * interval '1 second' FROM generate_series(1, 20000) AS i"));
        free(ask(c, "INSERT INTO config SELECT 'k' || i, '1', '1', now() FROM generate_series(1, 20000) AS i"));
        free(ask(c,
                "INSERT INTO metrics SELECT i, 'topic-' || i % 900, NULL, '{}', '{}', now() - i * interval '1 second', NULL FROM "
                "generate_series(1, 20000) AS i"));
        free(ask(c, "ANALYZE results, keys, config, metrics"));
        plan_has(c, OM_PG_GET_RESULT, "'task-7', 'agent-7', now()", "results_pkey");
        plan_has(c, OM_PG_GET_NEWEST, "'task-7', now()", "results_pkey");
        plan_has(c, OM_PG_GET_CONFIG, "'k7'", "config_pkey");
        plan_has(c, OM_PG_GET_KEY, "'k7', now()", "keys_pkey");
        plan_has(c, OM_PG_LIST_RESULTS, FROM_NOW, "results_newest");
        plan_has(c, OM_PG_LIST_RESULTS + OM_PG_BY_TOPIC, FROM_NOW ", 'topic-7'", "results_topic");
        plan_has(c, OM_PG_LIST_RESULTS + OM_PG_BY_AGENT, FROM_NOW ", 'agent-7'", "results_agent");
        plan_has(c, OM_PG_LIST_RESULTS + OM_PG_BY_STATUS, FROM_NOW ", 'failed'", "results_status");
        plan_has(c, OM_PG_LIST_RESULTS + OM_PG_BY_WORDS, FROM_NOW ", 'word17'", "results_words");
        plan_has(c, OM_PG_LIST_RESULTS + OM_PG_BY_DOC, FROM_NOW ", '{\"n\":17}'", "results_doc");
        plan_has(c, OM_PG_LIST_CONFIG, "101, 16777216, 'k19', 'k2'", "config_pkey");
        plan_has(c, OM_PG_LIST_KEYS, "101, 16777216, 'k19', now()", "keys_pkey");
        plan_has(c, OM_PG_LIST_METRICS, FROM_NOW, "metrics_newest");
        plan_has(c, OM_PG_LIST_TOPIC_METRICS, FROM_NOW ", 'topic-7'", "metrics_topic");
        plan_has(c, OM_PG_DELETE_RESULTS, "'task-7', now()", "results_pkey");
        plan_has(c, OM_PG_SWEEP_RESULTS, "now()", "results_expiry");
        plan_has(c, OM_PG_SWEEP_KEYS, "now()", "keys_expiry");
        PQfinish(c);
        user_close(&u);
}
END_TEST

/* -- the sweeper -------------------------------------------------------------------------------------------------------- */

START_TEST(test_the_sweeper_deletes_what_has_expired_and_waits_for_nobody) {
        struct user u;
        char id[16];
        int64_t now = om_now_ms();
        open_it(&u, "&sweep_interval=100ms&max_metrics=5");
        for (int i = 0; i < 20; i++) {
                snprintf(id, sizeof(id), "%d", i);
                ck_assert_int_eq(user_result(&u, id, "a", "{}", now, i < 10 ? now + 5000 : 0), 0);
                struct om_store_entry metric = { .topic = OM_SPAN("t"), .value = OM_SPAN("{}"), .saved_ms = now + i };
                ck_assert_int_eq(user_put(&u, OM_STORE_METRICS, &metric), 0);
        }
        ck_assert_int_eq(user_put_if_absent(&u, "claimed", "1", now + 5000, NULL), 1);
        PGconn *c = stranger();
        free(ask(c, "BEGIN"));
        is(c, "SELECT task_id FROM results WHERE task_id = '3' FOR UPDATE", "3"); /* somebody holds one */
        for (int tries = 0; tries < 600; tries++) {
                PGconn *looking = stranger();
                char *left = ask(looking,
                        "SELECT (SELECT string_agg(task_id, ',') FROM results WHERE expires_at IS NOT NULL) || ' ' || (SELECT count(*) "
                        "FROM keys) || ' ' || (SELECT count(*) FROM metrics)");
                bool done = strcmp(left, "3 0 5") == 0;
                PQfinish(looking);
                free(left);
                if (done)
                        break;
                ck_assert_int_lt(tries, 599);
                user_sleep(&u, 50);
        }
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "3", NULL), "none"); /* there, and expired */
        free(ask(c, "COMMIT"));
        PQfinish(c);
        user_close(&u);
}
END_TEST

/* -- migrations --------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_schema_of_the_version_before_is_upgraded_with_what_it_holds) {
        char sql[200];
        struct user u;
        char url[1000];
        url_of(plain, "", url, sizeof(url));
        PGconn *c = stranger();
        snprintf(sql, sizeof(sql), "CREATE SCHEMA %s", schema);
        free(ask(c, sql));
        free(ask(c,
                "CREATE TABLE schema_version (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now()); INSERT INTO "
                "schema_version VALUES (1)"));
        free(ask(c, om_pg_migrations[0]));
        free(ask(c,
                "INSERT INTO results VALUES ('old', 'a', 't', 'completed', '{\"text\":\"treasure\"}', '{\"text\":\"treasure\"}', now(), "
                "NULL, 1)"));
        open_it(&u, "");
        is(c, "SELECT string_agg(version::text, ',' ORDER BY version) FROM schema_version", "1,2");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "old", NULL), "{\"text\":\"treasure\"}");
        ck_assert_str_eq(found(&u, "treasure", NULL), "old");
        user_close(&u);
        free(ask(c, "INSERT INTO schema_version VALUES (999)"));
        PQfinish(c);
        ck_assert_int_eq(user_open(&u, url), 0);
        ck_assert_int_eq(u.state, OM_STORE_FAILED);
        ck_assert_msg(strstr(u.state_error.message, "999") && strstr(u.state_error.message, schema), "%s", u.state_error.message);
        user_close(&u);
}
END_TEST

/* Opens without waiting: several at once. */
static void start_opening(struct user *u, const char *text, const struct om_store_events *events) {
        struct om_url *url;
        *u = (struct user){ .thread = pthread_self() };
        ck_assert_int_eq(om_url_parse(text, &url, &u->error), 0);
        ck_assert_int_eq(om_registry_store(url, "STORAGE_URL", &u->ops, &u->error), 0);
        ck_assert_int_eq(om_loop_new(&u->loop, "/tmp", &u->error), 0);
        ck_assert_int_eq(u->ops->open(om_loop_host(u->loop), url, events, u, &u->store, &u->error), 0);
        om_url_free(url);
}

static void note_state(void *core, enum om_store_state state, const struct om_error *error) {
        struct user *u = core;
        u->state = state;
        u->states++;
        if (error)
                u->state_error = *error;
}

START_TEST(test_of_many_that_start_at_once_one_makes_the_schema) {
        enum { N = 6 };
        static const struct om_store_events events = { note_state };
        struct user users[N];
        char url[1000];
        url_of(plain, "&connections=1", url, sizeof(url));
        for (int i = 0; i < N; i++)
                start_opening(&users[i], url, &events);
        for (int i = 0; i < N; i++) {
                user_turn(&users[i], (const int *) &users[i].states);
                ck_assert_msg(users[i].state == OM_STORE_READY, "%s", users[i].state_error.message);
        }
        PGconn *c = stranger();
        is(c, "SELECT count(*)::text FROM schema_version", "2");
        PQfinish(c);
        for (int i = 0; i < N; i++)
                user_close(&users[i]);
}
END_TEST

/* -- claims of several daemons ------------------------------------------------------------------------------------------ */

struct claiming {
        struct om_store_put_if_absent op; /* first */
        struct wait wait;
};

static void claimed(struct om_op *op, int status, const struct om_error *error) {
        struct claiming *c = (struct claiming *) (void *) op;
        c->wait.status = status;
        c->wait.completions++;
}

START_TEST(test_of_several_daemons_one_gets_a_key_and_one_an_expired_one) {
        enum { DAEMONS = 3, ROUNDS = 40 };
        struct user users[DAEMONS];
        for (int i = 0; i < DAEMONS; i++)
                open_it(&users[i], "&connections=2");
        for (int round = 0; round < ROUNDS; round++) {
                struct claiming c[DAEMONS];
                char key[16];
                int winners = 0;
                snprintf(key, sizeof(key), "k%d", round / 2); /* the second time it is there, and has expired */
                memset(c, 0, sizeof(c));
                for (int i = 0; i < DAEMONS; i++) {
                        c[i].op = (struct om_store_put_if_absent){ .op.done = claimed,
                                .key = om_span_of(key),
                                .value = OM_SPAN("1"),
                                .expires_ms = round % 2 ? om_now_ms() + 100000 : om_now_ms() + 1 };
                        ck_assert_int_eq(users[i].ops->put_if_absent(users[i].store, &c[i].op, &users[i].error), 0);
                }
                for (int i = 0; i < DAEMONS; i++)
                        while (!c[i].wait.completions)
                                for (int k = 0; k < DAEMONS; k++)
                                        om_loop_run_once(users[k].loop, false);
                for (int i = 0; i < DAEMONS; i++) {
                        ck_assert_int_eq(c[i].wait.status, 0);
                        winners += c[i].op.ret_stored;
                        om_arena_deinit(&c[i].op.arena);
                }
                if (round % 2)
                        ck_assert_int_eq(winners, 1);
                else
                        ck_assert_int_ge(winners, 1); /* it lives for a millisecond */
                user_sleep(&users[0], 5);
        }
        for (int i = 0; i < DAEMONS; i++)
                user_close(&users[i]);
}
END_TEST

/* -- queries of people -------------------------------------------------------------------------------------------------- */

struct asking {
        struct om_store_query op; /* first */
        struct wait wait;
};

static void asked(struct om_op *op, int status, const struct om_error *error) {
        struct asking *a = (struct asking *) (void *) op;
        a->wait.completions++;
        a->wait.status = status;
        if (error)
                a->wait.error = *error;
}

static int query(struct user *u, const char *text, size_t limit, int64_t timeout_ms, bool cancel, char **ret) {
        struct asking a = { .op = { .op.done = asked, .text = om_span_of(text), .limit = limit, .timeout_ms = timeout_ms },
                .wait.user = u };
        int r = u->ops->query(u->store, &a.op, &u->error);
        if (r == 0 && cancel)
                om_op_cancel(&a.op.op);
        r = user_finish(u, &a.wait, r);
        if (ret)
                *ret = r == 0 ? strdup(a.op.answer.p) : NULL;
        ck_assert(r < 0 || om_json_check(a.op.answer, 64, NULL) == 0);
        om_arena_deinit(&a.op.arena);
        return r;
}

static void answers(struct user *u, const char *text, const char *expected) {
        char *answer;
        ck_assert_msg(query(u, text, 3, 5000, false, &answer) == 0, "%s: %s", text, u->error.message);
        ck_assert_msg(strcmp(answer, expected) == 0, "%s: %s", text, answer);
        free(answer);
}

START_TEST(test_a_query_gives_columns_rows_and_whether_there_are_more) {
        struct user u;
        open_it(&u, "");
        put(&u, "1", "{\"b\":1,\"a\":[1.50]}");
        answers(&u, "select task_id, value::json as v from results",
                "{\"columns\":[\"task_id\",\"v\"],\"rows\":[[\"1\",{\"b\":1,\"a\":[1.50]}]],\"truncated\":false}");
        answers(&u, "select i from generate_series(1, 3) i", "{\"columns\":[\"i\"],\"rows\":[[1],[2],[3]],\"truncated\":false}");
        answers(&u, " -- a remark\n/* another */ with x as (select generate_series(1, 1000000) i) select i from x",
                "{\"columns\":[\"i\"],\"rows\":[[1],[2],[3]],\"truncated\":true}");
        answers(&u, "select null, true, 1.50, 'NaN'::float8, 'é\"', '2026-01-02'::date, array[1,2], 9223372036854775807 as big where true",
                "{\"columns\":[\"?column?\",\"?column?\",\"?column?\",\"float8\",\"?column?\",\"date\",\"array\",\"big\"],\"rows\":[[null,"
                "true,"
                "1.50,\"NaN\",\"é\\\"\","
                "\"2026-01-02\",\"{1,2}\",9223372036854775807]],\"truncated\":false}");
        answers(&u, "select 1 as a where false", "{\"columns\":[\"a\"],\"rows\":[],\"truncated\":false}");
        answers(&u, "show transaction_read_only", "{\"columns\":[\"transaction_read_only\"],\"rows\":[[\"on\"]],\"truncated\":false}");
        char *answer;
        ck_assert_int_eq(query(&u, "select repeat('x', 1 << 20) from generate_series(1, 100)", 1000, 20000, false, &answer), 0);
        ck_assert(strlen(answer) < OM_STORE_QUERY_BYTES_MAX + 100 && strstr(answer, "\"truncated\":true"));
        free(answer);
        ck_assert_int_eq(query(&u, "explain select * from results", 100, 5000, false, &answer), 0);
        ck_assert_msg(strstr(answer, "results"), "%s", answer);
        free(answer);
        user_close(&u);
}
END_TEST

START_TEST(test_no_query_writes_whatever_it_says) {
        static const char *const writes[] = { "delete from results", "insert into config values ('k', '1', '1', now())",
                "drop table results", "select nextval('write_order')", "with d as (delete from results returning 1) select * from d",
                "truncate results", "select 1; delete from results", "commit; delete from results", "set transaction read write",
                "copy results to stdout", "rollback", "explain analyze delete from results", "declare x cursor for select 1",
                "select * from results for update", "create table mine (i int)", "vacuum", "do $$ begin delete from results; end $$", "",
                "call nothing()", "select set_config('transaction_read_only', 'off', true)" };
        struct user u;
        open_it(&u, "");
        put(&u, "1", "{}");
        for (size_t i = 0; i < sizeof(writes) / sizeof(writes[0]); i++) {
                int r = query(&u, writes[i], 10, 5000, false, NULL);
                ck_assert_msg(r < 0 && r != -EIO && u.error.message[0], "%s: %d %s", writes[i], r, u.error.message);
        }
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "1", NULL), "{}");
        PGconn *c = stranger();
        is(c, "SELECT count(*)::text FROM config", "0");
        is(c, "SELECT last_value::text FROM write_order", "1");
        PQfinish(c);
        user_close(&u);
}
END_TEST

START_TEST(test_a_query_that_is_wrong_slow_or_cancelled_says_so) {
        struct user u;
        open_it(&u, "");
        ck_assert_int_eq(query(&u, "select nothing from nowhere", 10, 5000, false, NULL), -EINVAL);
        ck_assert_msg(strstr(u.error.message, "nowhere"), "%s", u.error.message);
        int64_t start = om_clock_ms();
        ck_assert_int_eq(query(&u, "select pg_sleep(60)", 10, 300, false, NULL), -ETIMEDOUT);
        ck_assert_int_eq(query(&u, "select pg_sleep(60)", 10, 60000, true, NULL), -ECANCELED);
        ck_assert_int_lt(om_clock_ms() - start, 20000);
        put(&u, "1", "{}"); /* the storage's own connections are as they were */
        user_close(&u);
}
END_TEST

/* -- a server in trouble ------------------------------------------------------------------------------------------------- */

START_TEST(test_with_fewer_connections_than_wanted_it_works_and_with_none_it_says_why) {
        struct user u;
        char url[1000];
        om_test_server_do(plain, "sql ALTER ROLE omni CONNECTION LIMIT 1");
        url_of(plain, "&connections=3", url, sizeof(url));
        ck_assert_msg(user_open(&u, url) == 0, "%s: %s", url, u.error.message);
        until_ready(&u); /* the server may count connections of the case before for a moment */
        put(&u, "1", "{}");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "1", NULL), "{}");
        struct user late;
        url_of(plain, "", url, sizeof(url));
        ck_assert_int_eq(user_open(&late, url), 0);
        ck_assert_int_eq(late.state, OM_STORE_CONNECTING);
        ck_assert_msg(strstr(late.state_error.message, "connections"), "%s", late.state_error.message);
        ck_assert_int_eq(user_result(&late, "2", "a", "{}", 1, 0), -EAGAIN);
        om_test_server_do(plain, "sql ALTER ROLE omni CONNECTION LIMIT -1");
        until_ready(&late);
        put(&late, "2", "{}");
        user_close(&late);
        user_close(&u);
}
END_TEST

START_TEST(test_a_connection_whose_server_is_silent_is_given_up) {
        struct user u;
        struct user_put p;
        struct om_store_entry e = { .key = OM_SPAN("1"), .name = OM_SPAN("a"), .value = OM_SPAN("{}"), .saved_ms = 1 };
        open_it(&u, "&answer_timeout=1s&connections=2&connect_timeout=2");
        put(&u, "0", "{}");
        om_test_server_do(plain, "pause");
        int started = user_put_start(&u, &p, OM_STORE_RESULTS, &e);
        ck_assert_int_eq(user_finish(&u, &p.wait, started), -EAGAIN);
        ck_assert_msg(strstr(u.error.message, "answer_timeout"), "%s", u.error.message);
        om_test_server_do(plain, "resume");
        for (int tries = 0; user_result(&u, "2", "a", "{}", 1, 0) < 0; tries++) {
                ck_assert_int_lt(tries, 200);
                user_sleep(&u, 50);
        }
        user_close(&u);
}
END_TEST

START_TEST(test_a_statement_that_a_lock_holds_up_ends_and_those_behind_it_go_on) {
        struct user u;
        struct om_store_entry e = { .key = OM_SPAN("k"), .value = OM_SPAN("1"), .saved_ms = 1 };
        open_it(&u, "&answer_timeout=1s&connections=1");
        PGconn *c = stranger();
        free(ask(c, "BEGIN"));
        free(ask(c, "LOCK TABLE config IN EXCLUSIVE MODE"));
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), -ETIMEDOUT);
        ck_assert_msg(strstr(u.error.message, "answer_timeout"), "%s", u.error.message);
        put(&u, "1", "{}"); /* on the same connection */
        ck_assert_int_eq(u.states, 1);
        free(ask(c, "COMMIT"));
        PQfinish(c);
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        user_close(&u);
}
END_TEST

START_TEST(test_closing_while_connecting_and_while_a_query_runs_ends_soon) {
        static const struct om_store_events events = { note_state };
        struct user u;
        struct asking a = { .op = { .op.done = asked, .text = OM_SPAN("select pg_sleep(60)"), .limit = 1, .timeout_ms = 60000 } };
        char url[1000];
        int64_t start = om_clock_ms();
        open_it(&u, "");
        a.wait.user = &u;
        ck_assert_int_eq(u.ops->query(u.store, &a.op, &u.error), 0);
        om_op_cancel(&a.op.op); /* as the core does */
        user_close(&u);
        ck_assert_int_eq(a.wait.completions, 1);
        om_test_server_do(plain, "pause");
        url_of(plain, "", url, sizeof(url));
        start_opening(&u, url, &events);
        user_sleep(&u, 200);
        user_close(&u);
        om_test_server_do(plain, "resume");
        ck_assert_int_lt(om_clock_ms() - start, 15000);
}
END_TEST

/* The disk of its tables; that of its log is another, for without that one a server does not even run. */
START_TEST(test_a_full_disk_is_told_and_what_was_acknowledged_is_there_when_it_has_room_again) {
        struct user u;
        char url[1000], id[16], *value = malloc(100001);
        int n = 0, r = 0;
        if (!small) {
                printf("# skipped: a small disk needs root\n");
                ck_assert_msg(!getenv("REQUIRE"), "a small disk needs root");
                free(value);
                return;
        }
        for (int i = 0; i < 100000; i++) /* nothing that the server could compress */
                value[i] = (char) ('0' + om_random_u64() % 10);
        value[0] = '1';
        value[100000] = 0;
        url_of(small, "", url, sizeof(url));
        ck_assert_int_eq(user_open(&u, url), 0);
        ck_assert_msg(u.state == OM_STORE_READY, "%s", u.state_error.message);
        om_test_server_do(small, "fill");
        for (; n < 3000 && r == 0; n += r == 0) {
                snprintf(id, sizeof(id), "%d", n);
                r = user_result(&u, id, "a", value, 1, 0);
        }
        ck_assert_int_eq(r, -EAGAIN);
        ck_assert_msg(strstr(u.error.message, "disk is full"), "%s", u.error.message);
        om_test_server_do(small, "free");
        for (int tries = 0; user_result(&u, "after", "a", value, 1, 0) < 0; tries++) {
                ck_assert_int_lt(tries, 200);
                user_sleep(&u, 50);
        }
        for (int i = 0; i < n; i++) {
                snprintf(id, sizeof(id), "%d", i);
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, id, "a"), value);
        }
        free(value);
        user_close(&u);
}
END_TEST

START_TEST(test_a_user_without_rights_on_the_database_needs_only_a_schema_of_its_own) {
        struct user u;
        char sql[200], url[1000], *who;
        url_of(plain, "", url, sizeof(url));
        ck_assert((who = strstr(url, "//omni:")) != NULL);
        memcpy(who, "//poor:", 7);
        ck_assert_int_eq(user_open(&u, url), 0);
        ck_assert_int_eq(u.state, OM_STORE_FAILED);
        ck_assert_msg(strstr(u.state_error.message, "privilege"), "%s", u.state_error.message);
        user_close(&u);
        snprintf(sql, sizeof(sql), "sql CREATE SCHEMA %s AUTHORIZATION poor", schema);
        om_test_server_do(plain, sql);
        ck_assert_int_eq(user_open(&u, url), 0);
        ck_assert_msg(u.state == OM_STORE_READY, "%s", u.state_error.message);
        put(&u, "1", "{}");
        user_close(&u);
}
END_TEST

START_TEST(test_all_that_was_acknowledged_is_there_when_the_standby_takes_over) {
        struct user u;
        char url[1000], id[16];
        int n = 0;
        url_of(pair, "", url, sizeof(url));
        ck_assert_int_eq(user_open(&u, url), 0);
        ck_assert_msg(u.state == OM_STORE_READY, "%s", u.state_error.message);
        for (; n < 200; n++) {
                snprintf(id, sizeof(id), "%d", n);
                ck_assert_msg(user_result(&u, id, "a", "{}", 1, 0) == 0, "%s", u.error.message);
        }
        om_test_server_do(pair, "failover");
        om_test_server_do(pair, "sql 2 ALTER SYSTEM RESET synchronous_standby_names");
        for (int tries = 0; user_result(&u, "after", "a", "{}", 1, 0) < 0; tries++) {
                ck_assert_int_lt(tries, 200);
                user_sleep(&u, 50);
        }
        for (int i = 0; i < n; i++) {
                snprintf(id, sizeof(id), "%d", i);
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, id, "a"), "{}");
        }
        user_close(&u);
}
END_TEST

START_TEST(test_health_says_how_durable_and_where) {
        struct user u;
        open_it(&u, "&synchronous_commit=off");
        const char *health = user_health(&u);
        ck_assert_msg(strstr(health, "\"durability\":\"weak\"") && strstr(health, "synchronous_commit is off") && !strstr(health, "secret"),
                "%s", health);
        user_close(&u);
        open_it(&u, "");
        put(&u, "1", "{}");
        health = user_health(&u);
        ck_assert_msg(
                strstr(health, "\"durability\":\"strong\"") && strstr(health, "\"results\":1") && strstr(health, schema), "%s", health);
        user_close(&u);
}
END_TEST

int main(void) {
        Suite *s = suite_create("PostgreSQL");
        TCase *t = tcase_create("alone"), *r = tcase_create("on a real server");
        om_registry_add_store(&om_postgresql_store_ops);
        tcase_add_test(t, test_parts_and_parameters_of_a_url_reach_libpq);
        tcase_add_test(t, test_wrong_parameters_are_named);
        tcase_add_test(t, test_any_key_is_a_text_that_reads_back_and_sorts_as_it_does);
        tcase_add_test(t, test_times_keep_their_milliseconds_and_ends_are_infinite);
        suite_add_tcase(s, t);
        tcase_add_test(r, test_results_are_found_by_words_and_by_what_they_contain);
        tcase_add_test(r, test_a_language_finds_inflected_words);
        tcase_add_test(r, test_what_jsonb_cannot_hold_comes_back_as_it_was_and_spoils_no_batch);
        tcase_add_test(r, test_a_value_with_more_words_than_the_server_indexes_is_kept_and_found_by_its_beginning);
        tcase_add_test(r, test_statements_use_the_indexes);
        tcase_add_test(r, test_the_sweeper_deletes_what_has_expired_and_waits_for_nobody);
        tcase_add_test(r, test_a_schema_of_the_version_before_is_upgraded_with_what_it_holds);
        tcase_add_test(r, test_of_many_that_start_at_once_one_makes_the_schema);
        tcase_add_test(r, test_of_several_daemons_one_gets_a_key_and_one_an_expired_one);
        tcase_add_test(r, test_a_query_gives_columns_rows_and_whether_there_are_more);
        tcase_add_test(r, test_no_query_writes_whatever_it_says);
        tcase_add_test(r, test_a_query_that_is_wrong_slow_or_cancelled_says_so);
        tcase_add_test(r, test_health_says_how_durable_and_where);
        tcase_add_test(r, test_with_fewer_connections_than_wanted_it_works_and_with_none_it_says_why);
        tcase_add_test(r, test_a_connection_whose_server_is_silent_is_given_up);
        tcase_add_test(r, test_a_statement_that_a_lock_holds_up_ends_and_those_behind_it_go_on);
        tcase_add_test(r, test_closing_while_connecting_and_while_a_query_runs_ends_soon);
        tcase_add_test(r, test_a_full_disk_is_told_and_what_was_acknowledged_is_there_when_it_has_room_again);
        tcase_add_test(r, test_a_user_without_rights_on_the_database_needs_only_a_schema_of_its_own);
        tcase_add_test(r, test_all_that_was_acknowledged_is_there_when_the_standby_takes_over);
        suite_add_tcase(s, r);
        tcase_set_timeout(r, 60);
        char *dir = strdup("/tmp/omni-test-XXXXXX"), of[PATH_MAX];
        if (!mkdtemp(dir))
                return 1;
        snprintf(of, sizeof(of), "%s/plain", dir);
        plain = om_test_server_start("postgresql", of);
        snprintf(of, sizeof(of), "%s/pair", dir);
        pair = om_test_server_start("postgresql:pair", of);
        snprintf(of, sizeof(of), "%s/small", dir);
        if (geteuid() == 0)
                small = om_test_server_start("postgresql:small", of);
        int status = om_test_main(s);
        om_test_server_stop(plain);
        om_test_server_stop(pair);
        om_test_server_stop(small);
        test_folder_remove(dir);
        return status;
}
