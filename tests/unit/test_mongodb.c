/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MongoDB's own: what a URL says, documents, errors, and on a real server of its protocol what the contract of storages does not ask:
 * search, the sweeper, queries of people, a server that is silent.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../backends/mongodb/store_state.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

extern const struct om_store_ops om_mongodb_store_ops;
static struct om_test_server *plain;

/* -- what a URL says --------------------------------------------------------------------------------------------------- */

static int read_url(const char *text, struct om_mongo_settings *s, struct om_error *e) {
        struct om_url *url;
        mongoc_init();
        ck_assert_int_eq(om_url_parse(text, &url, e), 0);
        int r = om_mongo_settings_read(s, url, e);
        om_url_free(url);
        return r;
}

START_TEST(test_parts_and_options_of_a_url_reach_libmongoc) {
        struct om_mongo_settings s;
        struct om_error e;
        ck_assert_msg(read_url("mongodb://u%40x:p%2Fw@h1:27018,h2/data?authSource=admin&replicaSet=r&answer_timeout=3s&sweep_interval=1s",
                              &s, &e) == 0,
                "%s", e.message);
        ck_assert_str_eq(mongoc_uri_get_username(s.uri), "u@x");
        ck_assert_str_eq(mongoc_uri_get_password(s.uri), "p/w");
        ck_assert_str_eq(mongoc_uri_get_auth_source(s.uri), "admin");
        ck_assert_str_eq(mongoc_uri_get_replica_set(s.uri), "r");
        ck_assert_str_eq(s.database, "data");
        ck_assert_int_eq(mongoc_uri_get_hosts(s.uri)->port, 27018);
        ck_assert_int_eq(mongoc_uri_get_option_as_int32(s.uri, "socketTimeoutMS", 0), 3000);
        ck_assert_int_eq(s.sweep_interval_ms, 1000);
        ck_assert(s.majority && s.journal && mongoc_uri_get_option_as_bool(s.uri, "retryWrites", false));
        om_mongo_settings_free(&s);
        ck_assert_int_eq(read_url("mongodb://h?w=1&journal=false&retryWrites=false&tls=true", &s, &e), 0);
        ck_assert(!s.majority && !s.journal && s.tls && !mongoc_uri_get_option_as_bool(s.uri, "retryWrites", true));
        ck_assert_str_eq(s.database, "omnidaemon");
        om_mongo_settings_free(&s);
}
END_TEST

static void refused(const char *url, const char *word) {
        struct om_mongo_settings s;
        struct om_error e;
        ck_assert_msg(read_url(url, &s, &e) == -EINVAL, "%s is taken", url);
        ck_assert_msg(strstr(e.message, word) && !strstr(e.message, "geheim"), "%s: %s", url, e.message);
}

START_TEST(test_wrong_options_are_named) {
        refused("mongodb://u:geheim@h/d?connectionz=2", "connections");
        refused("mongodb://u:geheim@h/d?tlsCAfil=x", "tlsCAFile");
        refused("mongodb://u:geheim@h/d?connections=1", "connections");
        refused("mongodb://u:geheim@h/d?w=0", "w=0");
        refused("mongodb://u:geheim@h/d?collection_prefix=a$b", "collection_prefix");
}
END_TEST

/* -- documents ---------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_value_comes_back_as_it_was_whatever_bson_can_hold) {
        static const char *const values[] = { "1e400", "18446744073709551616", "-0.0", "1.50", "{\"b\":1,\"a\":2,\"b\":3}",
                "{\"$set\":{\"a.b\":1}}", "{\"\":[],\"x\\u0000y\":\"\\u0000\"}", "\"\\u00e9\"", " [1 , 2]", "null" };
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
                struct om_arena arena = { 0 };
                struct om_store_entry e = { .key = OM_SPAN("k/%"), .name = OM_SPAN("a\0b"), .value = om_span_of(values[i]) }, back;
                bson_t doc = BSON_INITIALIZER;
                bson_iter_t it;
                ck_assert_ptr_null(om_mongo_document(&doc, OM_STORE_RESULTS, &e, "p", OM_SPAN("id"), false));
                ck_assert(bson_iter_init_find(&it, &doc, "doc"));
                ck_assert_int_eq(om_mongo_entry(&doc, OM_STORE_RESULTS, &arena, &back), 0);
                ck_assert(om_span_eq(back.key, e.key) && om_span_eq(back.name, e.name) && om_span_eq(back.value, e.value));
                bson_destroy(&doc);
                om_arena_deinit(&arena);
        }
}
END_TEST

static void shows(const char *value, const char *want) {
        struct om_store_entry e = { .key = OM_SPAN("k"), .value = om_span_of(value) };
        bson_t doc = BSON_INITIALIZER;
        struct om_buf b = OM_BUF_INIT;
        bson_iter_t it;
        ck_assert_ptr_null(om_mongo_document(&doc, OM_STORE_CONFIG, &e, "", e.key, false));
        ck_assert(bson_iter_init_find(&it, &doc, "doc"));
        om_mongo_put_json(&b, &it);
        om_buf_putc(&b, 0);
        ck_assert_str_eq(b.data, want);
        om_buf_deinit(&b);
        bson_destroy(&doc);
}

START_TEST(test_doc_is_near_what_it_cannot_say) {
        shows("{\"a\":[1,2.5,true,null,\"x\"]}", "{\"a\":[1,2.5,true,null,\"x\"]}");
        shows("1e400", "\"1e400\"");
        shows("9223372036854775807", "9223372036854775807");
        shows("{\"b\":1,\"b\":2}", "{\"b\":1}");
        shows("{\"$set\":{\"a.b\":1}}",
                "{\"\xef\xbc\x84set\":{\"a\xef\xbc\x8e"
                "b\":1}}");
}
END_TEST

START_TEST(test_ids_are_unambiguous) {
        struct om_buf a = OM_BUF_INIT, b = OM_BUF_INIT;
        om_mongo_id(&a, OM_STORE_AGENTS, OM_SPAN("x/y"), OM_SPAN("z"));
        om_mongo_id(&b, OM_STORE_AGENTS, OM_SPAN("x"), OM_SPAN("y/z"));
        ck_assert(om_span_is(om_buf_span(&a), "x%2Fy/z") && om_span_is(om_buf_span(&b), "x/y%2Fz"));
        om_buf_deinit(&a);
        om_buf_deinit(&b);
}
END_TEST

/* -- errors --------------------------------------------------------------------------------------------------------------- */

START_TEST(test_errors_of_the_server_have_their_kind_and_name_the_setting) {
        static const struct {
                uint32_t domain, code;
                const char *message;
                enum om_kind kind;
                const char *word;
        } all[] = {
                { MONGOC_ERROR_SERVER, 13, "not authorized", OM_DENIED, "readWrite" },
                { MONGOC_ERROR_SERVER, 18, "Authentication failed.", OM_DENIED, "password" },
                { MONGOC_ERROR_CLIENT, MONGOC_ERROR_CLIENT_AUTHENTICATE, "Failed to authenticate", OM_DENIED, "authSource" },
                { MONGOC_ERROR_SERVER, 14031, "OutOfDiskSpace", OM_UNAVAILABLE, "disk" },
                { MONGOC_ERROR_SERVER, 50, "operation exceeded time limit", OM_TIMEOUT, "time" },
                { MONGOC_ERROR_SERVER, 10107, "not primary", OM_UNAVAILABLE, "replicaSet" },
                { MONGOC_ERROR_SERVER_SELECTION, 13053, "[TLS handshake failed: certificate verify failed (18)]", OM_INVALID, "tlsCAFile" },
                { MONGOC_ERROR_SERVER_SELECTION, 13053, "[Failed to resolve 'h']", OM_UNAVAILABLE, "host" },
        };
        struct om_mongo_settings s = { .where = (char *) "database d at h" };
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
                bson_error_t why = { .domain = all[i].domain, .code = all[i].code };
                struct om_error e;
                snprintf(why.message, sizeof why.message, "%s", all[i].message);
                ck_assert_int_eq(om_mongo_error(&s, &why, "saving", &e), om_kind_errno(all[i].kind));
                ck_assert_msg(strstr(e.message, all[i].word), "%s", e.message);
        }
}
END_TEST

/* -- on the real server ------------------------------------------------------------------------------------------------------ */

static void open_more(struct user *u, const char *more) { /* a database of its own */
        static int opened;
        char url[1000];
        const char *text = om_test_server_value(plain, "store_url"), *hole = strstr(text, "{case}");
        snprintf(url, sizeof url, "%.*sm%ld-%d%s%s", (int) (hole - text), text, (long) getpid(), ++opened, hole + strlen("{case}"), more);
        ck_assert_msg(user_open(u, url) == 0, "%s", u->error.message);
        ck_assert_msg(u->state == OM_STORE_READY, "%s", u->state_error.message);
}

struct query {
        struct om_store_query query; /* first */
        struct wait wait;
};
static void query_done(struct om_op *op, int status, const struct om_error *e) {
        struct query *q = (struct query *) (void *) op;
        q->wait.status = status;
        if (status < 0)
                q->wait.error = *e;
        q->wait.completions++;
}
static int ask(struct user *u, const char *text, size_t limit, struct query *q) {
        *q = (struct query){ .query = { .op = { .done = query_done }, .text = om_span_of(text), .timeout_ms = 20000, .limit = limit } };
        q->wait.user = u;
        int r = u->ops->query(u->store, &q->query, &u->error);
        if (r < 0)
                return r;
        user_turn(u, &q->wait.completions);
        if (q->wait.status < 0)
                u->error = q->wait.error;
        return q->wait.status;
}

static void answers(struct user *u, const char *text, size_t limit, const char *want) {
        struct query q;
        ck_assert_msg(ask(u, text, limit, &q) == 0, "%s: %s", text, u->error.message);
        ck_assert_str_eq(q.query.answer.p, want);
        om_arena_deinit(&q.query.arena);
}
static void answers_not(struct user *u, const char *text, enum om_kind kind, const char *word) {
        struct query q;
        ck_assert_msg(ask(u, text, 10, &q) < 0, "%s is answered", text);
        ck_assert_msg(u->error.kind == kind && strstr(u->error.message, word), "%s: %s", text, u->error.message);
}

static void save_two(struct user *u) {
        ck_assert_int_eq(
                user_result(u, "t1", "a",
                        "{\"agent\":\"a\",\"n\":1,\"in\":{\"list\":[1,{\"x\":2}],\"nothing\":null},\"note\":\"An Invoice (paid)\"}", 1000,
                        0),
                0);
        ck_assert_int_eq(user_result(u, "t2", "b", "{\"agent\":\"b\",\"n\":2,\"in\":{},\"note\":\"other\"}", 2000, 0), 0);
}

START_TEST(test_queries_read_and_nothing_else) {
        struct user u;
        open_more(&u, "");
        save_two(&u);
        answers(&u, "[{\"$group\":{\"_id\":\"$agent\",\"n\":{\"$sum\":\"$doc.n\"}}},{\"$sort\":{\"_id\":1}}]", 10,
                "{\"columns\":[\"_id\",\"n\"],\"rows\":[[\"a\",1],[\"b\",2]],\"truncated\":false}");
        answers(&u, "[{\"$sort\":{\"task_id\":1}},{\"$project\":{\"_id\":0,\"task_id\":1}}]", 1,
                "{\"columns\":[\"task_id\"],\"rows\":[[\"t1\"]],\"truncated\":true}");
        answers(&u, "{\"collection\":\"agents\",\"pipeline\":[]}", 1, "{\"columns\":[],\"rows\":[],\"truncated\":false}");
        answers_not(&u, "[{\"$out\":\"agents\"}]", OM_DENIED, "$out");
        answers_not(&u, "[{\"$facet\":{\"x\":[{\"$merge\":{\"into\":\"agents\"}}]}}]", OM_DENIED, "$merge");
        answers_not(&u, "[{\"$lookup\":{\"from\":\"x\",\"pipeline\":[{\"\\u0024out\":\"y\"}],\"as\":\"z\"}}]", OM_DENIED, "$out");
        answers_not(&u, "[{\"$match\":{\"$where\":\"1\"}}]", OM_DENIED, "$where");
        answers_not(&u, "[{\"$mach\":{}}]", OM_INVALID, "$match");
        answers_not(&u, "[{\"$match\":", OM_INVALID, "pipeline");
        answers_not(&u, "{\"collection\":\"users\",\"pipeline\":[]}", OM_INVALID, "collection");
        user_close(&u);
}
END_TEST

static size_t finds(struct user *u, const char *text, const char *filter) {
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .text = om_span_of(text), .filter = om_span_of(filter) };
        ck_assert_msg(user_list(u, &list) == 0, "%s", u->error.message);
        return list.n;
}

START_TEST(test_results_are_found_by_words_and_by_what_they_contain) {
        struct user u;
        open_more(&u, "");
        save_two(&u);
        ck_assert_uint_eq(finds(&u, "invoice", NULL), 1);
        ck_assert_uint_eq(finds(&u, "invoice (PAID)", NULL), 1);
        ck_assert_uint_eq(finds(&u, "invoice other", NULL), 0);
        ck_assert_uint_eq(finds(&u, "in.oice", NULL), 0);
        ck_assert_uint_eq(finds(&u, NULL, "{\"n\":2}"), 1);
        ck_assert_uint_eq(finds(&u, NULL, "{}"), 2);
        ck_assert_uint_eq(finds(&u, NULL, "{\"in\":{\"list\":[1]}}"), 1);
        ck_assert_uint_eq(finds(&u, NULL, "{\"in\":{\"list\":[3]}}"), 0);
        ck_assert_uint_eq(finds(&u, NULL, "{\"in\":{\"nothing\":null}}"), 1);
        ck_assert_uint_eq(finds(&u, "other", "{\"n\":1}"), 0);
        user_close(&u);
}
END_TEST

START_TEST(test_what_has_expired_is_swept_away) {
        struct user u;
        struct query q;
        open_more(&u, "?sweep_interval=200ms");
        ck_assert_int_eq(user_result(&u, "t", "a", "{}", om_now_ms(), om_now_ms() + 50), 0);
        ck_assert_int_eq(user_result(&u, "u", "a", "{}", om_now_ms(), 0), 0);
        for (int64_t until = om_clock_ms() + 30000;;) {
                ck_assert_int_eq(ask(&u, "[{\"$project\":{\"_id\":1}}]", 10, &q), 0);
                bool swept = strcmp(q.query.answer.p, "{\"columns\":[\"_id\"],\"rows\":[[\"u/a\"]],\"truncated\":false}") == 0;
                om_arena_deinit(&q.query.arena);
                if (swept)
                        break;
                ck_assert_int_lt(om_clock_ms(), until);
                user_sleep(&u, 50);
        }
        user_close(&u);
}
END_TEST

START_TEST(test_a_silent_server_holds_no_operation_that_is_given_up_and_is_found_again) {
        struct user u;
        struct user_put put = { 0 };
        struct om_store_entry e = { .key = OM_SPAN("k"), .value = OM_SPAN("1") };
        open_more(&u, "?answer_timeout=1s&serverSelectionTimeoutMS=1000&connectTimeoutMS=1000");
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        om_test_server_do(plain, "pause");
        int started = user_put_start(&u, &put, OM_STORE_CONFIG, &e);
        ck_assert_int_eq(started, 0);
        om_op_cancel(&put.put.op);
        ck_assert_int_eq(user_finish(&u, &put.wait, started), -ECANCELED);
        while (u.state == OM_STORE_READY) { /* one answer's time, then it is known to be away */
                int r = user_put(&u, OM_STORE_CONFIG, &e);
                ck_assert_msg(r < 0 && u.error.kind == OM_UNAVAILABLE, "%d %s", r, u.error.message);
        }
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), -EAGAIN);
        om_test_server_do(plain, "resume");
        for (int64_t until = om_clock_ms() + 20000; u.state != OM_STORE_READY; user_sleep(&u, 10))
                ck_assert_int_lt(om_clock_ms(), until);
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        user_close(&u);
}
END_TEST

START_TEST(test_a_value_above_16_mib_is_refused_and_those_beside_it_are_saved) {
        struct user u;
        size_t n = 17 << 20;
        char *large = malloc(n);
        memset(large, 'x', n);
        large[0] = large[n - 1] = '"';
        struct om_store_entry e[] = { { .key = OM_SPAN("a"), .value = OM_SPAN("1") }, { .key = OM_SPAN("b"), .value = { large, n } },
                { .key = OM_SPAN("c"), .value = OM_SPAN("3") } };
        struct om_outcome o[3];
        open_more(&u, "");
        ck_assert_int_eq(user_put_many(&u, OM_STORE_CONFIG, e, 3, o), 0);
        ck_assert_int_eq(o[0].status, 0);
        ck_assert(o[1].status < 0 && strstr(o[1].why, "16 MiB"));
        ck_assert_int_eq(o[2].status, 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "c", NULL), "3");
        user_close(&u);
        free(large);
}
END_TEST

int main(void) {
        Suite *s = suite_create("MongoDB");
        TCase *t = tcase_create("by itself"), *real = tcase_create("on the real server");
        om_registry_add_store(&om_mongodb_store_ops);
        tcase_add_test(t, test_parts_and_options_of_a_url_reach_libmongoc);
        tcase_add_test(t, test_wrong_options_are_named);
        tcase_add_test(t, test_a_value_comes_back_as_it_was_whatever_bson_can_hold);
        tcase_add_test(t, test_doc_is_near_what_it_cannot_say);
        tcase_add_test(t, test_ids_are_unambiguous);
        tcase_add_test(t, test_errors_of_the_server_have_their_kind_and_name_the_setting);
        tcase_add_test(real, test_queries_read_and_nothing_else);
        tcase_add_test(real, test_results_are_found_by_words_and_by_what_they_contain);
        tcase_add_test(real, test_what_has_expired_is_swept_away);
        tcase_add_test(real, test_a_silent_server_holds_no_operation_that_is_given_up_and_is_found_again);
        tcase_add_test(real, test_a_value_above_16_mib_is_refused_and_those_beside_it_are_saved);
        suite_add_tcase(s, t);
        suite_add_tcase(s, real);
        tcase_set_timeout(real, 60);
        char *dir = strdup("/tmp/omni-test-XXXXXX");
        if (!mkdtemp(dir))
                return 1;
        plain = om_test_server_start("mongodb", dir);
        int status = om_test_main(s);
        om_test_server_stop(plain);
        test_folder_remove(dir);
        return status;
}
