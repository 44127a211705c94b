/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of store.h, the same cases over three storages in memory that work on the loop, on a thread of their own and on a worker,
 * over the JSON storage, and over real servers. One line in `urls` adds another that needs none, one in `systems` one that does. The rules
 * of operations (once, on the loop, never before the return) are checked by store_user.c in each case.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../proto/json_scan.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"
#include "../lib/test_store.h"

static const char *const urls[] = { /* %s: a fresh folder */
        "test-loop:", "test-thread:", "test-worker:", "json:%s", "json:%s?durability=interval&compact_min_bytes=4096"
};
static const char *const systems[] = { "redis", "redis:cluster", "nats", "nats:cluster", "postgresql", "s3", "mongodb" };
enum { N_PLAIN = sizeof(urls) / sizeof(urls[0]), N_SYSTEMS = sizeof(systems) / sizeof(systems[0]), N_URLS = N_PLAIN + N_SYSTEMS };

extern const struct om_store_ops om_redis_store_ops, om_nats_store_ops, om_postgresql_store_ops, om_s3_store_ops, om_mongodb_store_ops;
static struct om_test_server *servers[N_SYSTEMS];
static char *folder;

/* A server's URL, its "{case}" replaced by what is this process's alone: each test is one. */
static void server_url(const struct om_test_server *server, char *url, size_t size) {
        const char *text = om_test_server_value(server, "store_url"), *hole = strstr(text, "{case}");
        snprintf(url, size, "%.*st%ld%s", (int) (hole - text), text, (long) getpid(), hole + strlen("{case}"));
}

static void open_nth(struct user *u, int i) {
        char url[1000];
        folder = test_folder();
        const char *hole = i < N_PLAIN ? strchr(urls[i], '%') : NULL;
        if (i >= N_PLAIN)
                server_url(servers[i - N_PLAIN], url, sizeof(url));
        else if (hole)
                snprintf(url, sizeof(url), "%.*s%s%s", (int) (hole - urls[i]), urls[i], folder, hole + 2);
        else
                snprintf(url, sizeof(url), "%s", urls[i]);
        ck_assert_msg(user_open(u, url) == 0, "%s: %s", url, u->error.message);
        while (u->state == OM_STORE_CONNECTING) { /* a cluster that has just begun may take more than one try */
                u->states = 0;
                user_turn(u, (const int *) &u->states);
        }
        ck_assert_int_eq(u->state, OM_STORE_READY);
}

static bool is_on(int i, const char *system) { return i >= N_PLAIN && strcmp(systems[i - N_PLAIN], system) == 0; }
/* Those in memory, and FerretDB, look at everything for a page. */
static bool reads_all(int i) { return i < 3 || is_on(i, "mongodb"); }

static void close_it(struct user *u) {
        user_close(u);
        test_folder_remove(folder);
}

static struct om_store_entry agent(const char *topic, const char *name, const char *value) {
        return (struct om_store_entry){ .key = om_span_of(topic), .name = om_span_of(name), .value = om_span_of(value), .saved_ms = 1000 };
}

START_TEST(test_agents_are_added_replaced_read_listed_and_deleted) {
        struct user u;
        struct om_store_list list = { .kind = OM_STORE_AGENTS };
        struct om_store_entry a = agent("greet", "one", "{\"name\":\"one\",\"v\":1}"), b = agent("greet", "two", "{\"name\":\"two\"}"),
                              c = agent("other", "one", "{\"name\":\"one\"}"), a2 = agent("greet", "one", "{\"name\":\"one\",\"v\":2}");
        open_nth(&u, _i);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &a), 0);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &b), 0);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &c), 0);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &a2), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "greet", "one"), "{\"name\":\"one\",\"v\":2}");
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 3);
        list.key = OM_SPAN("greet");
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 2);
        ck_assert_int_eq(user_delete(&u, OM_STORE_AGENTS, "greet", "one"), 1);
        ck_assert_int_eq(user_delete(&u, OM_STORE_AGENTS, "greet", "one"), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "greet", "one"), "none");
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "other", "one"), "{\"name\":\"one\"}");
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &a), 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_AGENTS, "greet", NULL), 2);
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "other", "one"), "{\"name\":\"one\"}");
        close_it(&u);
}
END_TEST

START_TEST(test_unknown_keys_are_not_found_in_every_kind) {
        struct user u;
        struct om_store_entry e;
        open_nth(&u, _i);
        for (int kind = OM_STORE_AGENTS; kind <= OM_STORE_CONFIG; kind++) {
                if (kind == OM_STORE_METRICS)
                        continue;
                ck_assert_int_eq(user_get(&u, (enum om_store_kind) kind, OM_SPAN("nowhere"), OM_SPAN("nobody"), &e), -ENOENT);
                ck_assert_int_eq(u.error.kind, OM_NOT_FOUND);
                ck_assert_int_eq(user_delete(&u, (enum om_store_kind) kind, "nowhere", NULL), 0);
        }
        close_it(&u);
}
END_TEST

START_TEST(test_result_without_agent_is_the_newest_of_two) {
        struct user u;
        struct om_store_entry e;
        open_nth(&u, _i);
        ck_assert_int_eq(user_result(&u, "t", "one", "{\"agent\":\"one\"}", 1000, 0), 0);
        ck_assert_int_eq(user_result(&u, "t", "two", "{\"agent\":\"two\"}", 2000, 0), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t", NULL), "{\"agent\":\"two\"}");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t", "one"), "{\"agent\":\"one\"}");
        ck_assert_int_eq(user_result(&u, "t", "one", "{\"again\":true}", 2000, 0), 0); /* the same millisecond: the last written is newer */
        ck_assert_int_eq(user_get(&u, OM_STORE_RESULTS, OM_SPAN("t"), OM_SPAN_NONE, &e), 0);
        ck_assert_str_eq(e.value.p, "{\"again\":true}");
        ck_assert_str_eq(e.name.p, "one");
        ck_assert_str_eq(e.topic.p, "greet");
        ck_assert_str_eq(e.status.p, "completed");
        ck_assert_int_eq(e.saved_ms, 2000);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", "one"), 1);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t", NULL), "{\"agent\":\"two\"}");
        close_it(&u);
}
END_TEST

START_TEST(test_result_is_there_until_its_expiry_and_never_after) {
        struct user u;
        open_nth(&u, _i);
        int64_t now = om_now_ms(), expires = now + 200;
        ck_assert_int_eq(user_result(&u, "t", "a", "{}", now, expires), 0);
        ck_assert_int_eq(user_result(&u, "u", "a", "1", now, 0), 0);
        for (;;) {
                int64_t before = om_now_ms();
                const char *value = user_value(&u, OM_STORE_RESULTS, "t", NULL);
                int64_t after = om_now_ms();
                if (after < expires)
                        ck_assert_str_eq(value, "{}");
                if (before >= expires) {
                        ck_assert_str_eq(value, "none");
                        break;
                }
                user_sleep(&u, 5);
        }
        struct om_store_list list = { .kind = OM_STORE_RESULTS };
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 1);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", NULL), 0);
        close_it(&u);
}
END_TEST

START_TEST(test_cursor_walks_all_once_newest_first_while_more_are_written) {
        enum { N = 10000, PAGE = 97 };
        struct user u;
        static bool seen[N];
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .limit = PAGE };
        char id[32];
        int64_t last = INT64_MAX;
        int found = 0, extra = 0, n = _i < 3 || is_on(_i, "s3") ? 2000 : reads_all(_i) ? 1000 : N;
        memset(seen, 0, sizeof(seen));
        open_nth(&u, _i);
        struct om_store_entry *entries = calloc(N, sizeof(*entries));
        struct om_outcome *outcomes = calloc(N, sizeof(*outcomes));
        char(*ids)[16] = calloc(N, sizeof(*ids));
        for (int i = 0; i < n; i++) {
                snprintf(ids[i], sizeof(ids[i]), "%d", i);
                entries[i] = (struct om_store_entry){
                        .key = om_span_of(ids[i]), .name = OM_SPAN("a"), .value = OM_SPAN("{}"), .saved_ms = 1000 + i / 7
                };
        }
        for (int i = 0; i < n; i += 1000)
                ck_assert_int_eq(user_put_many(&u, OM_STORE_RESULTS, entries + i, 1000, outcomes), 0);
        do {
                ck_assert_msg(user_list(&u, &list) == 0, "%s", u.error.message);
                ck_assert(list.n == PAGE || !list.next_cursor.p);
                for (size_t i = 0; i < list.n; i++) {
                        int number = atoi(list.entries[i].key.p);
                        ck_assert_int_le(list.entries[i].saved_ms, last);
                        last = list.entries[i].saved_ms;
                        ck_assert(!seen[number]);
                        seen[number] = true;
                        found++;
                }
                snprintf(id, sizeof(id), "extra-%d", extra++);
                ck_assert_int_eq(user_result(&u, id, "a", "{}", 900000, 0), 0);
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        ck_assert_int_eq(found, n);
        free(entries);
        free(outcomes);
        free(ids);
        close_it(&u);
}
END_TEST

START_TEST(test_list_steps_over_what_was_deleted) {
        enum { N = 1200, UNTIL = 1111 };
        struct user u;
        char id[16];
        int next = N - 1, from = reads_all(_i) && _i >= N_PLAIN ? 1000 : 70, kept = from + 50;
        open_nth(&u, _i);
        struct om_store_entry *entries = calloc(N, sizeof(*entries));
        struct om_outcome *outcomes = calloc(N, sizeof(*outcomes));
        char(*ids)[16] = calloc(N, sizeof(*ids));
        for (int i = 0; i < N; i++) {
                snprintf(ids[i], sizeof(ids[i]), "%d", i);
                entries[i] = (struct om_store_entry){
                        .key = om_span_of(ids[i]), .name = OM_SPAN("a"), .value = OM_SPAN("{}"), .saved_ms = 1000 + i
                };
        }
        ck_assert_int_eq(user_put_many(&u, OM_STORE_RESULTS, entries, N, outcomes), 0);
        for (int i = from; i < UNTIL; i++)
                if (i != kept) {
                        snprintf(id, sizeof(id), "%d", i);
                        ck_assert_msg(user_delete(&u, OM_STORE_RESULTS, id, NULL) == 1, "%s: %s", id, u.error.message);
                }
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .limit = 60 };
        do {
                ck_assert_msg(user_list(&u, &list) == 0, "%s", u.error.message);
                for (size_t i = 0; i < list.n; i++, next--) {
                        next = next < UNTIL && next > kept ? kept : next < kept && next >= from ? from - 1 : next;
                        ck_assert_int_eq(atoi(list.entries[i].key.p), next);
                }
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        ck_assert_int_eq(next, -1);
        free(entries);
        free(outcomes);
        free(ids);
        close_it(&u);
}
END_TEST

START_TEST(test_list_filters_by_topic_agent_status_and_time) {
        struct user u;
        char id[16];
        open_nth(&u, _i);
        for (int i = 0; i < 40; i++) {
                struct om_store_entry e = { .key = (snprintf(id, sizeof(id), "%d", i), om_span_of(id)),
                        .name = om_span_of(i & 1 ? "odd" : "even"),
                        .topic = om_span_of(i & 2 ? "x" : "y"),
                        .status = om_span_of(i & 4 ? "completed" : "failed"),
                        .value = OM_SPAN("0"),
                        .saved_ms = 1000 + i };
                ck_assert_int_eq(user_put(&u, OM_STORE_RESULTS, &e), 0);
        }
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .name = OM_SPAN("odd") };
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 20);
        list.topic = OM_SPAN("x");
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 10);
        list.status = OM_SPAN("failed");
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 5);
        ck_assert_str_eq(list.entries[0].key.p, "35");
        list = (struct om_store_list){ .kind = OM_STORE_RESULTS, .since_ms = 1010, .until_ms = 1013 };
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 3);
        ck_assert_str_eq(list.entries[0].key.p, "12");
        ck_assert_str_eq(list.entries[2].key.p, "10");
        close_it(&u);
}
END_TEST

START_TEST(test_list_of_keys_alone_has_the_same_keys) {
        struct user u;
        char id[16];
        struct om_store_list all = { .kind = OM_STORE_RESULTS, .limit = 7 },
                             keys = { .kind = OM_STORE_RESULTS, .limit = 7, .keys_only = true };
        open_nth(&u, _i);
        for (int i = 0; i < 10; i++) {
                struct om_store_entry e = { .key = (snprintf(id, sizeof(id), "%d/%d", i, i), om_span_of(id)),
                        .name = OM_SPAN("agent"),
                        .topic = OM_SPAN("t"),
                        .status = OM_SPAN("completed"),
                        .value = OM_SPAN("0"),
                        .saved_ms = 1000 + i,
                        .expires_ms = 4102444800000 };
                ck_assert_int_eq(user_put(&u, OM_STORE_RESULTS, &e), 0);
        }
        ck_assert_int_eq(user_list(&u, &all), 0);
        ck_assert_int_eq(user_list(&u, &keys), 0);
        ck_assert_uint_eq(keys.n, 7);
        ck_assert(keys.next_cursor.p);
        for (size_t i = 0; i < keys.n; i++) {
                const struct om_store_entry *a = &all.entries[i], *b = &keys.entries[i];
                ck_assert(om_span_eq(a->key, b->key) && om_span_eq(a->name, b->name));
                ck_assert(a->saved_ms == b->saved_ms && a->expires_ms == b->expires_ms && (!b->value.p || om_span_eq(a->value, b->value)));
        }
        close_it(&u);
}
END_TEST

/* More walks than a storage may keep a place for, in turns; none misses what was there when it began, though the one before did not see it.
 */
START_TEST(test_walks_that_may_meet_what_was_miss_nothing) {
        enum { WALKS = 6, FIRST = 30, MORE = 5 };
        struct user u;
        struct om_store_list walks[WALKS];
        bool seen[WALKS][FIRST + WALKS * MORE] = { { false } };
        char cursors[WALKS][200];
        int n = FIRST, until[WALKS];
        open_nth(&u, _i);
        for (int i = 0; i < FIRST; i++) {
                char id[16];
                snprintf(id, sizeof(id), "%d", i);
                ck_assert_int_eq(user_result(&u, id, "a", "{}", 100000 - i, 0), 0);
        }
        for (int left = WALKS, turn = 0; left > 0; turn++) {
                left = WALKS;
                for (int w = 0; w < WALKS; w++) {
                        struct om_store_list *list = &walks[w];
                        if (turn == 0) {
                                until[w] = n;
                                *list = (struct om_store_list){ .kind = OM_STORE_RESULTS, .limit = 7, .stale_ok = true };
                        } else if (!list->cursor.p) {
                                left--;
                                continue;
                        }
                        ck_assert_int_eq(user_list(&u, list), 0);
                        for (size_t i = 0; i < list->n; i++) {
                                int id = atoi(list->entries[i].key.p);
                                ck_assert_msg(!seen[w][id], "walk %d met %d twice", w, id);
                                seen[w][id] = true;
                        }
                        if (list->next_cursor.p) {
                                ck_assert_uint_lt(list->next_cursor.len, sizeof(cursors[w]));
                                memcpy(cursors[w], list->next_cursor.p, list->next_cursor.len);
                                list->cursor = (struct om_span){ cursors[w], list->next_cursor.len };
                        } else {
                                list->cursor = OM_SPAN_NONE;
                        }
                        for (int i = 0; turn == 0 && i < MORE; i++, n++) { /* older than all, so they come last */
                                char id[16];
                                snprintf(id, sizeof(id), "%d", n);
                                ck_assert_int_eq(user_result(&u, id, "a", "{}", 100000 - n, 0), 0);
                        }
                }
        }
        for (int w = 0; w < WALKS; w++)
                for (int id = 0; id < until[w]; id++)
                        ck_assert_msg(seen[w][id], "walk %d missed %d", w, id);
        close_it(&u);
}
END_TEST

START_TEST(test_clearing_one_kind_leaves_the_others) {
        struct user u;
        struct om_store_entry setting = { .key = OM_SPAN("k"), .value = OM_SPAN("1") };
        open_nth(&u, _i);
        for (int i = 0; i < 10; i++) {
                char id[16];
                snprintf(id, sizeof(id), "%d", i);
                ck_assert_int_eq(user_result(&u, id, "a", "{}", 1000 + i, 0), 0);
        }
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &setting), 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, NULL, NULL), 10);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, NULL, NULL), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "3", NULL), "none");
        ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "k", NULL), "1");
        ck_assert_int_eq(user_result(&u, "3", "a", "{}", 1000, 0), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "3", NULL), "{}");
        close_it(&u);
}
END_TEST

/* The names of members may be what a storage's own language steers by. */
START_TEST(test_results_of_any_shape_come_back_as_they_were) {
        static const char *const values[] = { "{\"b\":1,\"a\":2,\"\":3,\"A\":4}", "{\"content\":{\"\":{\"\":null}}}",
                "{\"$set\":{\"a.b\":1,\"$\":[]}}", "{\"a\":1,\"a\":2}", "{\"__proto__\":{},\"_id\":5,\"place\":\"x\"}", "[{\"\":[]}]",
                "\"\\u0000\"" };
        struct user u;
        char id[16];
        enum { N = sizeof(values) / sizeof(values[0]) };
        open_nth(&u, _i);
        for (int again = 0; again < 2; again++) {
                for (size_t i = 0; i < N; i++) {
                        snprintf(id, sizeof(id), "%zu", i);
                        ck_assert_int_eq(user_result(&u, id, "a", values[i], 1000, 0), 0);
                }
                for (size_t i = 0; i < N; i++) {
                        snprintf(id, sizeof(id), "%zu", i);
                        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, id, "a"), values[i]);
                }
        }
        close_it(&u);
}
END_TEST

START_TEST(test_settings_of_every_json_type_come_back_as_they_were) {
        static const char *const values[] = { "null", "true", "\"\"", "\"\\u00e9\\n\"", "1e400", "18446744073709551617", "-0.0", "[]", "{}",
                "{ \"a\" : [1,\n 2],\t\"a\":2}", "[[[[[[[[[[1]]]]]]]]]]" };
        struct user u;
        char key[32];
        enum { N = sizeof(values) / sizeof(values[0]) };
        open_nth(&u, _i);
        for (size_t i = 0; i < N; i++) {
                snprintf(key, sizeof(key), "a.%zu", i);
                struct om_store_entry e = { .key = om_span_of(key), .value = om_span_of(values[i]) };
                ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        }
        struct om_store_entry other = { .key = OM_SPAN("b"), .value = OM_SPAN("1") };
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &other), 0);
        for (size_t i = 0; i < N; i++) {
                snprintf(key, sizeof(key), "a.%zu", i);
                ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, key, NULL), values[i]);
        }
        struct om_store_list list = { .kind = OM_STORE_CONFIG, .name = OM_SPAN("a.") };
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, N);
        ck_assert_int_eq(user_delete(&u, OM_STORE_CONFIG, "a.0", NULL), 1);
        ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "a.0", NULL), "none");
        close_it(&u);
}
END_TEST

START_TEST(test_keys_may_be_any_text) {
        static const char *const keys[] = { ":", "a/b/../..", "..", "%2F%", " ", "\"quoted\"", "'; DROP TABLE results; --", "^.*$", "🦊",
                "é\n\t\\", "a*b?[c]", "$set", "." };
        struct user u;
        struct om_store_entry e;
        char longest[OM_STORE_KEY_MAX + 2], value[32];
        open_nth(&u, _i);
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
                snprintf(value, sizeof(value), "%zu", i);
                ck_assert_int_eq(user_result(&u, keys[i], keys[i], value, 1000, 0), 0);
                e = (struct om_store_entry){ .key = om_span_of(keys[i]), .value = om_span_of(value) };
                ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        }
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
                snprintf(value, sizeof(value), "%zu", i);
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, keys[i], keys[i]), value);
                ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, keys[i], NULL), value);
        }
        struct om_span zero = { "a\0b", 3 };
        e = (struct om_store_entry){ .key = zero, .name = OM_SPAN("n"), .value = OM_SPAN("7"), .saved_ms = 1 };
        ck_assert_int_eq(user_put(&u, OM_STORE_RESULTS, &e), 0);
        ck_assert_int_eq(user_get(&u, OM_STORE_RESULTS, zero, OM_SPAN_NONE, &e), 0);
        ck_assert(om_span_eq(e.key, zero));
        memset(longest, 'k', sizeof(longest));
        longest[OM_STORE_KEY_MAX + 1] = 0;
        ck_assert_int_eq(user_result(&u, longest, "a", "1", 1, 0), -EINVAL);
        longest[OM_STORE_KEY_MAX] = 0;
        ck_assert_int_eq(user_result(&u, longest, "a", "1", 1, 0), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, longest, NULL), "1");
        close_it(&u);
}
END_TEST

START_TEST(test_values_of_one_byte_and_of_ten_million) {
        enum { BIG = 10 << 20 };
        struct user u;
        struct om_store_entry e;
        char *big = malloc(BIG + 1);
        memset(big, 'x', BIG);
        big[0] = big[BIG - 1] = '"';
        big[BIG] = 0;
        open_nth(&u, _i);
        ck_assert_int_eq(user_result(&u, "big", "a", big, 1, 0), 0);
        ck_assert_int_eq(user_result(&u, "small", "a", "1", 1, 0), 0);
        ck_assert_int_eq(user_get(&u, OM_STORE_RESULTS, OM_SPAN("big"), OM_SPAN_NONE, &e), 0);
        ck_assert(om_span_eq(e.value, om_span_of(big)));
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "small", NULL), "1");
        free(big);
        close_it(&u);
}
END_TEST

START_TEST(test_put_if_absent_has_one_winner_among_many) {
        enum { N = 32 };
        struct user u;
        const char *there = "";
        int winners = 0;
        open_nth(&u, _i);
        for (int i = 0; i < N; i++) {
                char value[32];
                snprintf(value, sizeof(value), "%d", i);
                int r = user_put_if_absent(&u, "k", value, 0, &there);
                ck_assert_int_ge(r, 0);
                winners += r;
                if (!r)
                        ck_assert_str_eq(there, "0");
        }
        ck_assert_int_eq(winners, 1);
        int64_t expires = om_now_ms() + 100;
        ck_assert_int_eq(user_put_if_absent(&u, "short", "1", expires, NULL), 1);
        ck_assert_int_eq(user_put_if_absent(&u, "short", "2", expires, NULL), om_now_ms() >= expires);
        while (om_now_ms() < expires)
                user_sleep(&u, 10);
        ck_assert_int_eq(user_put_if_absent(&u, "short", "3", 0, NULL), 1);
        close_it(&u);
}
END_TEST

START_TEST(test_writes_under_way_are_bounded_and_none_is_lost) {
        enum { N = 6000 };
        struct user u;
        struct user_put *puts = calloc(N, sizeof(*puts));
        char id[32], value[32];
        int refused = 0;
        open_nth(&u, _i);
        for (int i = 0; i < N;) {
                struct om_store_entry e = { .key = (snprintf(id, sizeof(id), "%d", i), om_span_of(id)),
                        .name = OM_SPAN("a"),
                        .value = (snprintf(value, sizeof(value), "{\"n\":%d}", i), om_span_of(value)),
                        .saved_ms = 1000 };
                int r = user_put_start(&u, &puts[i], OM_STORE_RESULTS, &e);
                memset(id, '#', sizeof(id)); /* inputs are borrowed until the call returns, and not longer */
                memset(value, '#', sizeof(value));
                if (r == -ENOBUFS) {
                        refused++;
                        om_loop_run_once(u.loop, true);
                        continue;
                }
                ck_assert_int_eq(r, 0);
                i++;
        }
        for (int i = 0; i < N; i++) {
                ck_assert_int_eq(user_finish(&u, &puts[i].wait, 0), 0);
                ck_assert_int_eq(puts[i].outcome.status, 0);
        }
        ck_assert_msg(refused > 0, "nothing bounds what is in flight");
        for (int i = 0; i < N; i += 41) {
                snprintf(id, sizeof(id), "%d", i);
                snprintf(value, sizeof(value), "{\"n\":%d}", i);
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, id, "a"), value);
        }
        free(puts);
        close_it(&u);
}
END_TEST

START_TEST(test_cancelled_operation_still_completes_once) {
        enum { N = 300 };
        struct user u;
        static struct user_put puts[N];
        int cancelled = 0;
        open_nth(&u, _i);
        for (int i = 0; i < N; i++) {
                char id[16];
                snprintf(id, sizeof(id), "%d", i);
                struct om_store_entry e = { .key = om_span_of(id), .value = OM_SPAN("{}"), .saved_ms = 1 };
                ck_assert_int_eq(user_put_start(&u, &puts[i], OM_STORE_RESULTS, &e), 0);
        }
        for (int i = 0; i < N; i++)
                om_op_cancel(&puts[i].put.op);
        for (int i = 0; i < N; i++) {
                int r = user_finish(&u, &puts[i].wait, 0);
                ck_assert(r == 0 || r == -ECANCELED);
                cancelled += r == -ECANCELED;
        }
        for (int i = 0; i < N; i++) { /* what was cancelled may have taken effect; what completed has */
                char id[16];
                snprintf(id, sizeof(id), "%d", i);
                const char *value = user_value(&u, OM_STORE_RESULTS, id, NULL);
                if (puts[i].wait.status == 0)
                        ck_assert_str_eq(value, "{}");
        }
        if (_i == 0) /* on the loop nothing has begun when the cancel comes */
                ck_assert_int_eq(cancelled, N);
        close_it(&u);
}
END_TEST

START_TEST(test_batch_with_a_bad_entry_saves_the_others) {
        struct user u;
        char longest[OM_STORE_KEY_MAX + 2];
        struct om_outcome outcomes[3];
        memset(longest, 'k', sizeof(longest));
        struct om_store_entry entries[3] = { { .key = OM_SPAN("a"), .value = OM_SPAN("1"), .saved_ms = 1 },
                { .key = { longest, OM_STORE_KEY_MAX + 1 }, .value = OM_SPAN("2"), .saved_ms = 2 },
                { .key = OM_SPAN("c"), .value = OM_SPAN("3"), .saved_ms = 3 } };
        open_nth(&u, _i);
        ck_assert_int_eq(user_put_many(&u, OM_STORE_RESULTS, entries, 3, outcomes), 0);
        ck_assert_int_eq(outcomes[0].status, 0);
        ck_assert_int_eq(outcomes[1].status, -EINVAL);
        ck_assert_ptr_nonnull(outcomes[1].why);
        ck_assert_int_eq(outcomes[2].status, 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "c", NULL), "3");
        close_it(&u);
}
END_TEST

START_TEST(test_metrics_are_appended_and_read_newest_first_by_topic) {
        struct user u;
        struct om_store_list list = { .kind = OM_STORE_METRICS, .topic = OM_SPAN("x"), .limit = 3 };
        open_nth(&u, _i);
        for (int i = 0; i < 20; i++) {
                char value[64];
                snprintf(value, sizeof(value), "{\"topic\":\"%s\",\"n\":%d}", i & 1 ? "x" : "y", i);
                struct om_store_entry e = { .value = om_span_of(value), .topic = om_span_of(i & 1 ? "x" : "y"), .saved_ms = 1000 };
                ck_assert_int_eq(user_put(&u, OM_STORE_METRICS, &e), 0);
        }
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 3);
        ck_assert_str_eq(list.entries[0].value.p, "{\"topic\":\"x\",\"n\":19}");
        ck_assert_str_eq(list.entries[2].value.p, "{\"topic\":\"x\",\"n\":15}");
        ck_assert_int_eq(user_delete(&u, OM_STORE_METRICS, NULL, NULL), 20);
        close_it(&u);
}
END_TEST

static void put_metrics(struct user *u, int64_t from_ms, int n) {
        for (int i = 0; i < n; i++) {
                char value[64];
                snprintf(value, sizeof(value), "{\"saved_at\":%.3f}", (double) (from_ms + i) / 1000); /* where Redis has the time */
                struct om_store_entry e = { .value = om_span_of(value), .topic = OM_SPAN("x"), .saved_ms = from_ms + i };
                ck_assert_int_eq(user_put(u, OM_STORE_METRICS, &e), 0);
        }
}

static void ck_span(struct user *u, int64_t since_ms, int64_t until_ms, unsigned n) {
        struct om_store_list list = { .kind = OM_STORE_METRICS, .since_ms = since_ms, .until_ms = until_ms, .limit = 1000 };
        ck_assert_int_eq(user_list(u, &list), 0);
        ck_assert_uint_eq(list.n, n);
        for (size_t i = 0; i < list.n; i++)
                ck_assert(list.entries[i].saved_ms >= since_ms && list.entries[i].saved_ms < until_ms);
}

/* Asked again, a storage may know where not to look. */
START_TEST(test_metrics_of_a_span_are_found_as_often_as_it_is_asked_for) {
        struct user u;
        open_nth(&u, _i);
        put_metrics(&u, 100000, 150);
        put_metrics(&u, 900000, 150);
        put_metrics(&u, 100150, 20);
        for (int i = 0; i < 2; i++) {
                ck_span(&u, 100000, 200000, 170);
                ck_span(&u, 900010, 900020, 10);
                ck_span(&u, 500000, 600000, 0);
        }
        put_metrics(&u, 100170, 3);
        put_metrics(&u, 500000, 1);
        ck_span(&u, 100000, 200000, 173);
        ck_span(&u, 500000, 600000, 1);
        user_delete(&u, OM_STORE_METRICS, NULL, NULL);
        put_metrics(&u, 100000, 70);
        for (int i = 0; i < 2; i++)
                ck_span(&u, 100000, 200000, 70);
        close_it(&u);
}
END_TEST

START_TEST(test_health_is_an_object_that_says_how_durable) {
        struct user u;
        struct om_json j;
        struct om_json_value key, value;
        bool durability = false;
        open_nth(&u, _i);
        const char *text = user_health(&u);
        ck_assert_int_eq(om_json_check(om_span_of(text), 8, &u.error), 0);
        om_json_init_valid(&j, om_span_of(text));
        ck_assert_int_eq(om_json_enter_object(&j), 0);
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &value) == 0)
                durability |= om_json_string_is(key, "durability");
        ck_assert(durability);
        close_it(&u);
}
END_TEST

/* -- one system at a time, for each fills the machine: its server runs while its cases do ---------------------------------------- */

static char *servers_folder;
static size_t at; /* of systems: test cases of Check run in the order in which they were added */

static void start_server(void) {
        char dir[PATH_MAX];
        snprintf(dir, sizeof(dir), "%s/%zu", servers_folder, at);
        servers[at] = om_test_server_start(systems[at], dir);
}
static void stop_server(void) { om_test_server_stop(servers[at++]); }

static void add_cases(TCase *t, int first, int end) {
        tcase_set_timeout(t, 60);
        tcase_add_loop_test(t, test_agents_are_added_replaced_read_listed_and_deleted, first, end);
        tcase_add_loop_test(t, test_unknown_keys_are_not_found_in_every_kind, first, end);
        tcase_add_loop_test(t, test_result_without_agent_is_the_newest_of_two, first, end);
        tcase_add_loop_test(t, test_result_is_there_until_its_expiry_and_never_after, first, end);
        tcase_add_loop_test(t, test_cursor_walks_all_once_newest_first_while_more_are_written, first, end);
        tcase_add_loop_test(t, test_list_steps_over_what_was_deleted, first, end);
        tcase_add_loop_test(t, test_list_filters_by_topic_agent_status_and_time, first, end);
        tcase_add_loop_test(t, test_list_of_keys_alone_has_the_same_keys, first, end);
        tcase_add_loop_test(t, test_walks_that_may_meet_what_was_miss_nothing, first, end);
        tcase_add_loop_test(t, test_clearing_one_kind_leaves_the_others, first, end);
        tcase_add_loop_test(t, test_results_of_any_shape_come_back_as_they_were, first, end);
        tcase_add_loop_test(t, test_settings_of_every_json_type_come_back_as_they_were, first, end);
        tcase_add_loop_test(t, test_keys_may_be_any_text, first, end);
        tcase_add_loop_test(t, test_values_of_one_byte_and_of_ten_million, first, end);
        tcase_add_loop_test(t, test_put_if_absent_has_one_winner_among_many, first, end);
        tcase_add_loop_test(t, test_writes_under_way_are_bounded_and_none_is_lost, first, end);
        tcase_add_loop_test(t, test_cancelled_operation_still_completes_once, first, end);
        tcase_add_loop_test(t, test_batch_with_a_bad_entry_saves_the_others, first, end);
        tcase_add_loop_test(t, test_metrics_are_appended_and_read_newest_first_by_topic, first, end);
        tcase_add_loop_test(t, test_metrics_of_a_span_are_found_as_often_as_it_is_asked_for, first, end);
        tcase_add_loop_test(t, test_health_is_an_object_that_says_how_durable, first, end);
}

int main(void) {
        Suite *s = suite_create("contract of storages");
        TCase *t = tcase_create("embedded storages");
        test_stores_register();
        om_registry_add_store(&om_redis_store_ops); /* of the archive, so that sanitizers and debuggers see it */
        om_registry_add_store(&om_nats_store_ops);
        om_registry_add_store(&om_postgresql_store_ops);
        om_registry_add_store(&om_s3_store_ops);
        om_registry_add_store(&om_mongodb_store_ops);
        servers_folder = strdup("/tmp/omni-test-XXXXXX");
        if (!mkdtemp(servers_folder))
                return 1;
        add_cases(t, 0, N_PLAIN);
        suite_add_tcase(s, t);
        for (int i = 0; i < N_SYSTEMS; i++) {
                t = tcase_create(systems[i]);
                tcase_add_unchecked_fixture(t, start_server, stop_server);
                add_cases(t, N_PLAIN + i, N_PLAIN + i + 1);
                suite_add_tcase(s, t);
        }
        int status = om_test_main(s);
        test_folder_remove(servers_folder);
        return status;
}
