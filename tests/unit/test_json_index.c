/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index that the JSON storage keeps beside a large file (backends/json/index_file.h): opening by it finds what opening by the JSON
 * finds, it is believed only beside the very file it was written for, and whatever becomes of it, nothing is lost but time.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../backends/json/table.h"
#include "../../daemon/log.h"
#include "../../proto/json_scan.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

enum { TASKS = 4000 }; /* two agents each: more than a block of the index */

static char *folder;

static void set_up(void) { folder = test_folder(); }
static void tear_down(void) { test_folder_remove(folder); }

static void open_it(struct user *u) {
        char url[300];
        snprintf(url, sizeof(url), "json:%s?durability=memory", folder);
        ck_assert_msg(user_open(u, url) == 0, "%s", u->error.message);
}

/* Results of all shapes, and keys; closed, so that they are in files with an index each. */
static void write_many(void) {
        struct user u;
        char id[64], value[200], topic[32];
        open_it(&u);
        ck_assert_int_eq(u.state, OM_STORE_READY);
        for (int i = 0; i < 2 * TASKS; i++) {
                snprintf(id, sizeof(id), "task %d of them \xc3\xa9\"\\", i % TASKS);
                snprintf(topic, sizeof(topic), "topic%d", i % 5);
                snprintf(value, sizeof(value), "{\"n\":%d, \"filling\":\n\"%0*d\"}", i, i % 90, 0);
                struct om_store_entry e = { .key = om_span_of(id),
                        .name = i < TASKS ? OM_SPAN("first") : OM_SPAN("second"),
                        .topic = i % 3 ? om_span_of(topic) : OM_SPAN_NONE,
                        .status = i % 7 ? OM_SPAN("completed") : OM_SPAN("failed"),
                        .saved_ms = 1795425242137 + i / 4,
                        .expires_ms = i % 2 ? 4102444800123 : 0,
                        .value = om_span_of(value) };
                ck_assert_int_eq(user_put(&u, OM_STORE_RESULTS, &e), 0);
                ck_assert_int_eq(user_put_if_absent(&u, id, "[\"mine\"]", 4102444800000, NULL), i < TASKS);
        }
        user_close(&u);
}

/* All that the storage says of its results and keys, as a text. */
static char *tell(struct user *u) {
        struct om_buf b = OM_BUF_INIT;
        enum om_store_kind kinds[] = { OM_STORE_RESULTS, OM_STORE_KEYS };
        for (int k = 0; k < 2; k++) {
                struct om_store_list list = { .kind = kinds[k], .limit = 1000 };
                size_t n = 0;
                do {
                        list.cursor = list.next_cursor;
                        list.next_cursor = OM_SPAN_NONE;
                        list.n = 0;
                        ck_assert_int_eq(user_list(u, &list), 0);
                        for (size_t i = 0; i < list.n; i++, n++) {
                                const struct om_store_entry *e = &list.entries[i];
                                om_buf_printf(&b, "%.*s|%.*s|%.*s|%.*s|%lld|%lld|%.*s\n", OM_PRI(e->key), OM_PRI(e->name), OM_PRI(e->topic),
                                        OM_PRI(e->status), (long long) e->saved_ms, (long long) e->expires_ms, OM_PRI(e->value));
                        }
                } while (list.next_cursor.p);
                ck_assert_uint_eq(n, k == 0 ? 2 * TASKS : TASKS);
        }
        om_buf_putc(&b, '\0');
        ck_assert(om_buf_ok(&b));
        return b.data;
}

static char *opened_and_told(void) {
        struct user u;
        open_it(&u);
        ck_assert_msg(u.state == OM_STORE_READY, "%s", u.state_error.message);
        char *text = tell(&u);
        user_close(&u);
        return text;
}

static void path_of(char *path, const char *name) { snprintf(path, PATH_MAX, "%s/%s", folder, name); }

/* Breaks a quote of results.json, whose size stays; the time of change too, if wanted. */
static void break_json(bool keep_time) {
        char path[PATH_MAX];
        struct stat st;
        path_of(path, "results.json");
        int fd = open(path, O_RDWR);
        ck_assert_int_eq(fstat(fd, &st), 0);
        ck_assert_int_eq(pwrite(fd, "}", 1, 4), 1);
        struct timespec times[] = { st.st_atim, st.st_mtim };
        if (!keep_time)
                times[1].tv_nsec ^= 1;
        ck_assert_int_eq(futimens(fd, times), 0);
        close(fd);
}

START_TEST(test_opening_by_the_index_finds_what_opening_by_the_json_finds) {
        char path[PATH_MAX];
        write_many();
        ck_assert(test_file_exists(folder, "results.index") && test_file_exists(folder, "keys.index"));
        ck_assert(!test_file_exists(folder, "results.index.tmp"));
        char *by_index = opened_and_told();
        path_of(path, "results.index");
        ck_assert_int_eq(unlink(path), 0);
        path_of(path, "keys.index");
        ck_assert_int_eq(unlink(path), 0);
        char *by_json = opened_and_told();
        ck_assert_str_eq(by_index, by_json);
        free(by_index);
        free(by_json);
}
END_TEST

START_TEST(test_a_large_file_is_not_read_to_be_opened) {
        struct user u;
        char id[64], value[200];
        write_many();
        break_json(true);
        open_it(&u);
        ck_assert_msg(u.state == OM_STORE_READY, "%s", u.state_error.message);
        snprintf(value, sizeof(value), "{\"n\":%d, \"filling\":\n\"%0*d\"}", 2 * TASKS - 1, (2 * TASKS - 1) % 90, 0);
        snprintf(id, sizeof(id), "task %d of them \xc3\xa9\"\\", TASKS - 1);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, id, "second"), value);
        user_close(&u);
}
END_TEST

START_TEST(test_a_file_that_was_changed_is_read_and_its_index_not_believed) {
        struct user u;
        write_many();
        break_json(false);
        open_it(&u);
        ck_assert_int_eq(u.state, OM_STORE_FAILED);
        ck_assert_msg(strstr(u.state_error.message, "results.json, line 2, column 4"), "%s", u.state_error.message);
        user_close(&u);
}
END_TEST

/* The same change of results.json would go unseen if the damaged index were believed, and is reported since it is not. */
START_TEST(test_a_damaged_index_is_not_believed) {
        size_t len;
        write_many();
        char *index = test_read_file(folder, "results.index", &len);
        char *before = opened_and_told();
        for (int i = 0; i < 20; i++) {
                size_t at = i < 10 ? len * (size_t) i / 10 : len - 1 - (size_t) (i - 10) * 7;
                char kept = index[at];
                bool cut = i % 3 == 0;
                index[at] = (char) (kept ^ 1 << i % 8);
                test_write_file(folder, "results.index", index, cut ? at : len);
                index[at] = kept;
                char *after = opened_and_told();
                ck_assert_str_eq(before, after);
                free(after);
        }
        index[len / 2] ^= 16;
        test_write_file(folder, "results.index", index, len);
        break_json(true);
        struct user u;
        open_it(&u);
        ck_assert_int_eq(u.state, OM_STORE_FAILED);
        user_close(&u);
        free(before);
        free(index);
}
END_TEST

START_TEST(test_what_was_written_after_the_index_is_there_too) {
        struct user u;
        write_many();
        open_it(&u);
        ck_assert_int_eq(user_result(&u, "new", "a", "1", 1795425242137, 0), 0);
        ck_assert_int_eq(user_result(&u, "task 7 of them \xc3\xa9\"\\", "first", "\"replaced\"", 1795425300000, 0), 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "task 8 of them \xc3\xa9\"\\", NULL), 2);
        for (int pass = 0; pass < 3; pass++) {
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "new", "a"), "1");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "task 7 of them \xc3\xa9\"\\", NULL), "\"replaced\"");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "task 8 of them \xc3\xa9\"\\", NULL), "none");
                ck_assert_str_eq(user_value(&u, OM_STORE_KEYS, "task 8 of them \xc3\xa9\"\\", NULL), "[\"mine\"]");
                user_close(&u);
                open_it(&u);
        }
        user_close(&u);
}
END_TEST

static ssize_t write_but_no_index(int fd, const void *data, size_t len, off_t offset) {
        char name[64], path[PATH_MAX];
        snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
        ssize_t n = readlink(name, path, sizeof(path) - 1);
        path[n > 0 ? n : 0] = '\0';
        if (!strstr(path, ".index.tmp"))
                return pwrite(fd, data, len, offset);
        errno = ENOSPC;
        return -1;
}

START_TEST(test_an_index_that_finds_no_room_is_left_out) {
        write_many();
        char *before = opened_and_told();
        om_file_write = write_but_no_index;
        struct user u;
        open_it(&u);
        ck_assert_int_eq(user_put_if_absent(&u, "one more", "1", 0, NULL), 1);
        ck_assert_int_eq(user_delete(&u, OM_STORE_KEYS, "one more", NULL), 1);
        ck_assert_int_eq(user_result(&u, "one more", "a", "1", 1, 0), 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "one more", NULL), 1);
        user_close(&u);
        om_file_write = pwrite;
        static const char *const names[] = { "results.index", "keys.index", "results.index.tmp", "keys.index.tmp", "results.journal" };
        for (int i = 0; i < 5; i++)
                ck_assert_msg(!test_file_exists(folder, names[i]), "%s", names[i]);
        char *after = opened_and_told();
        ck_assert_str_eq(before, after);
        free(before);
        free(after);
}
END_TEST

START_TEST(test_a_file_that_became_small_has_no_index) {
        struct user u;
        write_many();
        open_it(&u);
        for (int i = 0; i < TASKS; i++) {
                char id[64];
                snprintf(id, sizeof(id), "task %d of them \xc3\xa9\"\\", i);
                ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, id, NULL), 2);
        }
        user_close(&u);
        ck_assert(!test_file_exists(folder, "results.index"));
        ck_assert(test_file_exists(folder, "keys.index"));
}
END_TEST

int main(void) {
        om_log_open(OM_LOG_STDERR, (enum om_level) 0);
        Suite *s = suite_create("json index");
        TCase *t = tcase_create("index");
        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_add_test(t, test_opening_by_the_index_finds_what_opening_by_the_json_finds);
        tcase_add_test(t, test_a_large_file_is_not_read_to_be_opened);
        tcase_add_test(t, test_a_file_that_was_changed_is_read_and_its_index_not_believed);
        tcase_add_test(t, test_a_damaged_index_is_not_believed);
        tcase_add_test(t, test_what_was_written_after_the_index_is_there_too);
        tcase_add_test(t, test_an_index_that_finds_no_room_is_left_out);
        tcase_add_test(t, test_a_file_that_became_small_has_no_index);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
