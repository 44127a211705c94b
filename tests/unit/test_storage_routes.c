/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of marks, the comparing of values, and the routes over two real JSON storages: what goes where, what comes back, and what the
 * second storage holds after each kind of write.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../daemon/storage_internal.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

static char folder[64], path[128], one[100], two[100];
static struct om_loop *loop;

static void set_up(void) {
        struct om_error e;

        snprintf(folder, sizeof folder, "/tmp/omni-routes-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        snprintf(path, sizeof path, "%s/marks", folder);
        snprintf(one, sizeof one, "json:%s/one", folder);
        snprintf(two, sizeof two, "json:%s/two", folder);
        ck_assert_int_eq(om_loop_new(&loop, folder, &e), 0);
}

static void tear_down(void) {
        char command[100];

        om_loop_free(loop);
        snprintf(command, sizeof command, "rm -rf %s", folder);
        ck_assert_int_eq(system(command), 0);
}

/* -- the file of marks --------------------------------------------------------------------------------------------- */

static char seen[2000];

static void note(void *ctx, const struct om_queue_record *record) {
        size_t at = strlen(seen);

        snprintf(seen + at, sizeof seen - at, "%d %s %.*s%s%.*s %lld;", (int) record->op, om_store_kind_names[record->kind],
                (int) record->key.len, record->key.p ? record->key.p : "", record->name.p ? "/" : "", (int) record->name.len,
                record->name.p ? record->name.p : "", (long long) record->at_ms);
}

struct wait_queue {
        struct om_queue_wait wait; /* first */
        struct om_post closed;
        int n, status;
        bool is_closed;
};

static void on_written(struct om_queue_wait *w, int status, const struct om_error *e) {
        ((struct wait_queue *) w)->n++;
        ((struct wait_queue *) w)->status = status;
}

static void on_closed(struct om_post *post) {
        ((struct wait_queue *) (void *) ((char *) post - offsetof(struct wait_queue, closed)))->is_closed = true;
}

static struct om_queue *open_queue(bool *ret_damaged) {
        struct om_queue *q = NULL;
        struct om_error e = OM_ERROR_INIT;

        seen[0] = '\0';
        ck_assert_msg(om_queue_open(om_loop_host(loop), path, note, NULL, ret_damaged, &q, &e) == 0, "%s", e.message);
        return q;
}

static int sync_queue(struct om_queue *q) {
        struct wait_queue w = { .wait = { .fn = on_written } };

        om_queue_sync(q, &w.wait);
        ck_assert_int_eq(w.n, 0);
        while (!w.n)
                om_loop_run_once(loop, true);
        return w.status;
}

static void close_queue(struct om_queue *q) {
        struct wait_queue w = { .closed = { .fn = on_closed } };

        om_queue_close(q, &w.closed);
        while (!w.is_closed)
                om_loop_run_once(loop, true);
        om_queue_free(q);
}

static void add(struct om_queue *q, enum om_queue_op op, enum om_store_kind kind, const char *key, const char *name, int64_t at_ms) {
        om_queue_add(
                q, &(struct om_queue_record){ .op = op, .kind = kind, .key = om_span_of(key), .name = om_span_of(name), .at_ms = at_ms });
}

static void fill_queue(void) {
        bool damaged;
        struct om_queue *q = open_queue(&damaged);

        add(q, OM_QUEUE_MARK, OM_STORE_CONFIG, "a \"b\"\n", NULL, 0);
        ck_assert_int_eq(sync_queue(q), 0);
        add(q, OM_QUEUE_MARK, OM_STORE_RESULTS, "id", "agent", 0);
        add(q, OM_QUEUE_MARK, OM_STORE_RESULTS, NULL, NULL, 0);
        add(q, OM_QUEUE_PROGRESS, OM_STORE_RESULTS, NULL, NULL, 17);
        ck_assert_int_eq(sync_queue(q), 0);
        close_queue(q);
}
#define FILLED "0 config a \"b\"\n 0;0 results id/agent 0;0 results  0;1 results  17;"

START_TEST(test_marks_come_back_in_order_and_the_file_is_the_owners_alone) {
        struct stat st;
        bool damaged = true;

        fill_queue();
        ck_assert_int_eq(stat(path, &st), 0);
        ck_assert_uint_eq(st.st_mode & 0777, 0600);
        close_queue(open_queue(&damaged));
        ck_assert_str_eq(seen, FILLED);
        ck_assert(!damaged);
}
END_TEST

START_TEST(test_a_tail_cut_at_any_byte_loses_only_what_was_not_synced_and_is_no_damage) {
        bool damaged;
        struct stat st;
        off_t whole, first = 0;

        fill_queue();
        ck_assert_int_eq(stat(path, &st), 0);
        whole = st.st_size;
        for (off_t len = whole - 1; len > whole / 2; len -= 7) {
                ck_assert_int_eq(truncate(path, len), 0);
                close_queue(open_queue(&damaged));
                ck_assert_msg(!damaged, "cut to %ld", (long) len);
                ck_assert_msg(strncmp(seen, FILLED, strlen(seen)) == 0 && strlen(seen) < strlen(FILLED), "%s", seen);
                ck_assert_int_eq(stat(path, &st), 0);
                ck_assert_int_le(st.st_size, len);
                first = st.st_size;
        }
        ck_assert_int_gt(first, 0);
}
END_TEST

START_TEST(test_damage_before_what_was_synced_is_told) {
        bool damaged = false;
        int fd;

        fill_queue();
        fd = open(path, O_RDWR);
        ck_assert_int_eq(pwrite(fd, "#", 1, 40), 1);
        close(fd);
        close_queue(open_queue(&damaged));
        ck_assert(damaged);
}
END_TEST

START_TEST(test_a_rewrite_leaves_what_is_added_between_its_ends) {
        bool damaged;
        struct om_queue *q;

        fill_queue();
        q = open_queue(&damaged);
        om_queue_rewrite_begin(q);
        add(q, OM_QUEUE_MARK, OM_STORE_KEYS, "k", NULL, 0);
        om_queue_rewrite_end(q);
        ck_assert_int_eq(sync_queue(q), 0);
        add(q, OM_QUEUE_CLEAN, OM_STORE_METRICS, NULL, NULL, 0);
        ck_assert_int_eq(sync_queue(q), 0);
        close_queue(q);
        close_queue(open_queue(&damaged));
        ck_assert_str_eq(seen, "0 keys k 0;2 metrics  0;");
        ck_assert(!damaged);
}
END_TEST

/* -- values -------------------------------------------------------------------------------------------------------- */

START_TEST(test_values_are_the_same_whatever_their_spelling) {
        static const char *const same[][2] = { { "{\"a\":1,\"b\":[true,null]}", "{ \"b\" : [ true , null ], \"a\" : 1.0 }" },
                { "\"\\u00e4\\n\"", "\"\xc3\xa4\\u000a\"" }, { "1e2", "100" }, { "[]", "[ ]" }, { "{}", "{ }" },
                { "12345678901234567890123", "12345678901234567890123" } };
        static const char *const different[][2] = { { "{\"a\":1}", "{\"a\":1,\"b\":2}" }, { "{\"a\":1,\"b\":2}", "{\"a\":1}" },
                { "{\"a\":1}", "{\"b\":1}" }, { "[1,2]", "[2,1]" }, { "[1]", "[1,1]" }, { "[1,1]", "[1]" }, { "1", "\"1\"" },
                { "true", "false" }, { "null", "0" }, { "\"a\"", "\"b\"" }, { "{\"a\":{\"b\":1}}", "{\"a\":{\"b\":2}}" }, { "1", "" },
                { "x", "y" } };

        for (size_t i = 0; i < sizeof same / sizeof *same; i++)
                ck_assert_msg(same_value(om_span_of(same[i][0]), om_span_of(same[i][1])), "%s %s", same[i][0], same[i][1]);
        for (size_t i = 0; i < sizeof different / sizeof *different; i++)
                ck_assert_msg(
                        !same_value(om_span_of(different[i][0]), om_span_of(different[i][1])), "%s %s", different[i][0], different[i][1]);
}
END_TEST

/* -- the routes over two JSON storages ----------------------------------------------------------------------------- */

static struct user u;
static struct om_settings settings;

static void on_state(void *ctx, enum om_store_state state, const struct om_error *e) { u.state = state; }
static const struct om_store_events events = { .state = on_state };

static int open_routes(const char *results, const char *backup, struct om_error *e) {
        int r;

        settings = (struct om_settings){ .storage_url = one,
                .result_storage_url = (char *) (uintptr_t) results,
                .storage_backup_url = (char *) (uintptr_t) backup,
                .storage_queue_bytes = 1 << 20,
                .call_timeout_ms = 5000 };
        u = (struct user){ .thread = pthread_self() };
        ck_assert_int_eq(om_loop_new(&u.loop, folder, e), 0);
        r = om_routes_open(om_loop_host(u.loop), &settings, &events, NULL, &u.ops, &u.store, e);
        while (r == 0 && u.state != OM_STORE_READY)
                om_loop_run_once(u.loop, true);
        if (r < 0)
                om_loop_free(u.loop);
        return r;
}

static void open_or_fail(const char *results, const char *backup) {
        struct om_error e = OM_ERROR_INIT;

        ck_assert_msg(open_routes(results, backup, &e) == 0, "%s", e.message);
}

/* Until the second storage has everything. */
static void settle(void) {
        const struct mirror *m = ((struct routes *) u.store)->mirror;

        while (!mirror_is_clean(m))
                om_loop_run_once(u.loop, true);
}

static const char *value_in(const char *url, enum om_store_kind kind, const char *key, const char *name) {
        static char value[200];
        struct user other;

        ck_assert_int_eq(user_open(&other, url), 0);
        snprintf(value, sizeof value, "%s", user_value(&other, kind, key, name));
        user_close(&other);
        return value;
}

static void put_config(const char *key, const char *value) {
        struct om_store_entry entry = { .key = om_span_of(key), .value = om_span_of(value), .saved_ms = om_now_ms() };

        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &entry), 0);
}

START_TEST(test_results_go_to_their_own_storage_and_all_else_does_not) {
        open_or_fail(two, NULL);
        put_config("a", "1");
        ck_assert_int_eq(user_result(&u, "id", "agent", "{\"x\":1}", om_now_ms(), 0), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "a", NULL), "1");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "id", NULL), "{\"x\":1}");
        user_close(&u);
        ck_assert_str_eq(value_in(one, OM_STORE_CONFIG, "a", NULL), "1");
        ck_assert_str_eq(value_in(one, OM_STORE_RESULTS, "id", NULL), "none");
        ck_assert_str_eq(value_in(two, OM_STORE_RESULTS, "id", NULL), "{\"x\":1}");
        ck_assert_str_eq(value_in(two, OM_STORE_CONFIG, "a", NULL), "none");
}
END_TEST

START_TEST(test_a_backup_gets_each_kind_of_write_and_delete) {
        const char *there = NULL;

        open_or_fail(NULL, two);
        put_config("a", "1");
        put_config("a", "2");
        put_config("b", "3");
        ck_assert_int_eq(user_delete(&u, OM_STORE_CONFIG, "b", NULL), 1);
        ck_assert_int_eq(user_result(&u, "x", "p", "{\"x\":1}", om_now_ms(), 0), 0);
        ck_assert_int_eq(user_result(&u, "x", "q", "{\"x\":2}", om_now_ms() + 1, 0), 0);
        ck_assert_int_eq(user_result(&u, "y", "p", "{\"y\":1}", om_now_ms(), 0), 0);
        settle();
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "x", NULL), 2);
        ck_assert_int_eq(user_put_if_absent(&u, "k", "1", 0, &there), 1);
        ck_assert_int_eq(user_put_if_absent(&u, "k", "2", 0, &there), 0);
        settle();
        user_close(&u);
        ck_assert_str_eq(value_in(two, OM_STORE_CONFIG, "a", NULL), "2");
        ck_assert_str_eq(value_in(two, OM_STORE_CONFIG, "b", NULL), "none");
        ck_assert_str_eq(value_in(two, OM_STORE_RESULTS, "x", "p"), "none");
        ck_assert_str_eq(value_in(two, OM_STORE_RESULTS, "x", "q"), "none");
        ck_assert_str_eq(value_in(two, OM_STORE_RESULTS, "y", "p"), "{\"y\":1}");
        ck_assert_str_eq(value_in(two, OM_STORE_KEYS, "k", NULL), "1");
}
END_TEST

START_TEST(test_clearing_a_kind_clears_it_in_the_backup_and_keeps_what_comes_after) {
        struct om_store_list list = { .kind = OM_STORE_METRICS };
        struct om_store_entry metric = { .value = OM_SPAN("{\"n\":1}") };

        open_or_fail(NULL, two);
        for (int i = 0; i < 20; i++) {
                char key[20];

                snprintf(key, sizeof key, "k%d", i);
                put_config(key, "1");
                metric.saved_ms = 1700000000000 + i;
                ck_assert_int_eq(user_put(&u, OM_STORE_METRICS, &metric), 0);
        }
        settle();
        ck_assert_int_eq(user_delete(&u, OM_STORE_CONFIG, NULL, NULL), 20);
        ck_assert_int_eq(user_delete(&u, OM_STORE_METRICS, NULL, NULL), 20);
        put_config("after", "2");
        metric.saved_ms = 1700000001000;
        ck_assert_int_eq(user_put(&u, OM_STORE_METRICS, &metric), 0);
        settle();
        user_close(&u);
        ck_assert_str_eq(value_in(two, OM_STORE_CONFIG, "k3", NULL), "none");
        ck_assert_str_eq(value_in(two, OM_STORE_CONFIG, "after", NULL), "2");
        ck_assert_int_eq(user_open(&u, two), 0);
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 1);
        user_close(&u);
}
END_TEST

START_TEST(test_a_cursor_of_somebody_else_is_refused) {
        struct om_store_list list = { .kind = OM_STORE_CONFIG, .cursor = OM_SPAN("123.4") };

        open_or_fail(NULL, NULL);
        put_config("a", "1");
        ck_assert_int_eq(user_list(&u, &list), -EINVAL);
        user_close(&u);
}
END_TEST

START_TEST(test_a_backup_that_is_the_storage_itself_is_refused) {
        struct om_error e = OM_ERROR_INIT;

        ck_assert_int_eq(open_routes(NULL, one, &e), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "STORAGE_BACKUP_URL"));
}
END_TEST

int main(void) {
        Suite *suite = suite_create("storage routes");
        TCase *marks = tcase_create("marks"), *values = tcase_create("values"), *routes = tcase_create("routes");

        tcase_add_checked_fixture(marks, set_up, tear_down);
        tcase_add_checked_fixture(routes, set_up, tear_down);
        tcase_set_timeout(routes, 60);
        tcase_add_test(marks, test_marks_come_back_in_order_and_the_file_is_the_owners_alone);
        tcase_add_test(marks, test_a_tail_cut_at_any_byte_loses_only_what_was_not_synced_and_is_no_damage);
        tcase_add_test(marks, test_damage_before_what_was_synced_is_told);
        tcase_add_test(marks, test_a_rewrite_leaves_what_is_added_between_its_ends);
        tcase_add_test(values, test_values_are_the_same_whatever_their_spelling);
        tcase_add_test(routes, test_results_go_to_their_own_storage_and_all_else_does_not);
        tcase_add_test(routes, test_a_backup_gets_each_kind_of_write_and_delete);
        tcase_add_test(routes, test_clearing_a_kind_clears_it_in_the_backup_and_keeps_what_comes_after);
        tcase_add_test(routes, test_a_cursor_of_somebody_else_is_refused);
        tcase_add_test(routes, test_a_backup_that_is_the_storage_itself_is_refused);
        suite_add_tcase(suite, marks);
        suite_add_tcase(suite, values);
        suite_add_tcase(suite, routes);
        return om_test_main(suite);
}
