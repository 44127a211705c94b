/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is the JSON storage's own: its files. Reopening, the Python OmniDaemon's folder, torn and damaged journals, hands that edit, a death
 * at any moment, a full or broken disk, and compaction under writes. What every storage does is in test_contract_store.c.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../backends/journal.h"
#include "../../backends/json/record.h"
#include "../../backends/json/table.h"
#include "../../proto/json_scan.h"
#include "../../daemon/log.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

static char *folder;

static void set_up(void) { folder = test_folder(); }
static void tear_down(void) { test_folder_remove(folder); }

static int try_open(struct user *u, const char *options) {
        char url[300];
        snprintf(url, sizeof(url), "json:%s%s", folder, options);
        return user_open(u, url);
}

static void open_it(struct user *u, const char *options) {
        ck_assert_msg(try_open(u, options) == 0, "%s", u->error.message);
        ck_assert_msg(u->state == OM_STORE_READY, "%s", u->state_error.message);
}

/* -- opening again ------------------------------------------------------------------------------------------------- */

static void write_some(struct user *u) {
        struct om_store_entry agent = { .key = OM_SPAN("greet"),
                .name = OM_SPAN("one"),
                .value = OM_SPAN("{\"name\": \"one\", \"n\":1e400}") },
                              odd = { .key = OM_SPAN("greet"), .name = OM_SPAN("two"), .value = OM_SPAN("[2]") },
                              setting = { .key = OM_SPAN("k"), .value = OM_SPAN("{\"b\":\n1,\"a\":1.0}") },
                              metric = { .topic = OM_SPAN("greet"),
                                      .saved_ms = 1500,
                                      .value = OM_SPAN("{\"topic\":\"greet\",\"agent\":\"one\",\"saved_at\":1.5}") };
        ck_assert_int_eq(user_put(u, OM_STORE_AGENTS, &agent), 0);
        ck_assert_int_eq(user_put(u, OM_STORE_AGENTS, &odd), 0);
        ck_assert_int_eq(user_put(u, OM_STORE_CONFIG, &setting), 0);
        ck_assert_int_eq(user_put(u, OM_STORE_METRICS, &metric), 0);
        ck_assert_int_eq(user_put(u, OM_STORE_METRICS, &metric), 0);
        ck_assert_int_eq(user_result(u, "t", "one", "{\"agent\":\"one\", \"x\":\"\\u00e9\"}", 1795425242137, 0), 0);
        ck_assert_int_eq(user_result(u, "t", "two", "{\"line\":\n\"break\"}", 1795425242137, 4102444800123), 0);
        ck_assert_int_eq(user_result(u, "t", "three", "3", 1795425242136, 0), 0);
        ck_assert_int_eq(user_result(u, "gone", "one", "1", 1000, 0), 0);
        ck_assert_int_eq(user_delete(u, OM_STORE_RESULTS, "gone", NULL), 1);
        ck_assert_int_eq(user_put_if_absent(u, "key", "\"mine\"", 4102444800000, NULL), 1);
}

static void check_some(struct user *u) {
        struct om_store_entry e;
        const char *there = "";
        struct om_store_list list = { .kind = OM_STORE_METRICS };
        ck_assert_str_eq(user_value(u, OM_STORE_AGENTS, "greet", "one"), "{\"name\": \"one\", \"n\":1e400}");
        ck_assert_str_eq(user_value(u, OM_STORE_AGENTS, "greet", "two"), "[2]");
        ck_assert_str_eq(user_value(u, OM_STORE_CONFIG, "k", NULL), "{\"b\":\n1,\"a\":1.0}");
        ck_assert_str_eq(user_value(u, OM_STORE_RESULTS, "t", "one"), "{\"agent\":\"one\", \"x\":\"\\u00e9\"}");
        ck_assert_str_eq(user_value(u, OM_STORE_RESULTS, "t", "three"), "3");
        ck_assert_str_eq(user_value(u, OM_STORE_RESULTS, "gone", NULL), "none");
        ck_assert_int_eq(user_get(u, OM_STORE_RESULTS, OM_SPAN("t"), OM_SPAN_NONE, &e), 0);
        ck_assert_str_eq(e.value.p, "{\"line\":\n\"break\"}");
        ck_assert_str_eq(e.name.p, "two");
        ck_assert_str_eq(e.topic.p, "greet");
        ck_assert_str_eq(e.status.p, "completed");
        ck_assert_int_eq(e.saved_ms, 1795425242137);
        ck_assert_int_eq(e.expires_ms, 4102444800123);
        ck_assert_int_eq(user_put_if_absent(u, "key", "1", 0, &there), 0);
        ck_assert_str_eq(there, "\"mine\"");
        ck_assert_int_eq(user_list(u, &list), 0);
        ck_assert_uint_eq(list.n, 2);
        ck_assert_int_eq(list.entries[0].saved_ms, 1500);
        ck_assert_str_eq(list.entries[0].topic.p, "greet");
        ck_assert_ptr_null(list.entries[0].name.p); /* a metric has none, whatever its value says, and whatever it was read from */
}

START_TEST(test_everything_is_there_after_opening_again_and_again) {
        struct user u;
        open_it(&u, "");
        write_some(&u);
        check_some(&u);
        user_close(&u);
        for (int i = 0; i < 3; i++) {
                open_it(&u, "");
                check_some(&u);
                if (i == 1) { /* so that a file is written from a file */
                        struct om_store_entry more = { .key = OM_SPAN("more"), .value = OM_SPAN("1") };
                        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &more), 0);
                        ck_assert_int_eq(user_result(&u, "more", "one", "1", 1, 0), 0);
                        ck_assert_int_eq(
                                user_put(&u, OM_STORE_AGENTS, &(struct om_store_entry){ .key = OM_SPAN("m"), .value = OM_SPAN("{}") }), 0);
                }
                user_close(&u);
        }
}
END_TEST

START_TEST(test_after_a_clean_stop_there_are_files_and_no_journals) {
        static const char *const names[] = { "agents", "results", "metrics", "config", "keys" };
        struct user u;
        char name[64];
        struct om_error e = OM_ERROR_INIT;
        open_it(&u, "");
        ck_assert(!test_file_exists(folder, "results.json")); /* nothing was written: nothing is there */
        write_some(&u);
        ck_assert(test_file_exists(folder, "results.journal"));
        user_close(&u);
        for (int i = 0; i < 5; i++) {
                size_t len;
                snprintf(name, sizeof(name), "%s.journal", names[i]);
                ck_assert(!test_file_exists(folder, name));
                snprintf(name, sizeof(name), "%s.json", names[i]);
                char *text = test_read_file(folder, name, &len);
                ck_assert_ptr_nonnull(text);
                ck_assert_msg(om_json_check((struct om_span){ text, len }, 100, &e) == 0, "%s: %s", name, e.message);
                free(text);
        }
        char *results = test_read_file(folder, "results.json", NULL);
        ck_assert_ptr_nonnull(strstr(results, "{\n  \"t\": {\n    \"task_id\": \"t\",\n    \"result\": {\"line\":\n\"break\"},\n"));
        ck_assert_ptr_nonnull(strstr(results, "    \"saved_at\": 1795425242.137"));
        ck_assert_ptr_nonnull(strstr(results, "    \"earlier\": [\n"));
        free(results);
}
END_TEST

START_TEST(test_folder_of_the_python_one_opens) {
        static const char agents[] =
                "{\n  \"greet\": [\n    {\n      \"name\": \"greeter\",\n      \"tools\": [],\n      \"topic\": \"greet\"\n    }\n  ]\n}";
        static const char results[] =
                "{\n  \"7d0f\": {\n    \"task_id\": \"7d0f\",\n    \"result\": {\n      \"content\": {\"a\": 1},\n      \"topic\": "
                "\"greet\",\n"
                "      \"runner_id\": \"r\",\n      \"status\": \"completed\",\n      \"result\": \"caf\\u00e9\"\n    },\n"
                "    \"saved_at\": 1795425242.1371,\n    \"expires_at\": 4102444800.5\n  },\n  \"old\": {\"task_id\": \"old\", \"result\": "
                "1, "
                "\"saved_at\": 1.0, \"expires_at\": 2.0}\n}";
        static const char metrics[] = "[\n  {\n    \"topic\": \"greet\",\n    \"event\": \"task_processed\",\n    \"timestamp\": 5.0,\n    "
                                      "\"saved_at\": 6.25\n  }\n]";
        static const char config[] = "{\n  \"_omnidaemon_start_time\": 1795425242.1,\n  \"x\": null\n}";
        struct user u;
        struct om_store_entry e;
        test_write_file(folder, "agents.json", agents, sizeof(agents) - 1);
        test_write_file(folder, "results.json", results, sizeof(results) - 1);
        test_write_file(folder, "metrics.json", metrics, sizeof(metrics) - 1);
        test_write_file(folder, "config.json", config, sizeof(config) - 1);
        for (int round = 0; round < 2; round++) {
                open_it(&u, "");
                ck_assert_int_eq(user_get(&u, OM_STORE_RESULTS, OM_SPAN("7d0f"), OM_SPAN_NONE, &e), 0);
                ck_assert_str_eq(e.topic.p, "greet");
                ck_assert_str_eq(e.status.p, "completed");
                ck_assert_ptr_null(e.name.p);
                ck_assert_int_eq(e.saved_ms, 1795425242137);
                ck_assert_int_eq(e.expires_ms, 4102444800500);
                ck_assert_ptr_nonnull(strstr(e.value.p, "\"result\": \"caf\\u00e9\"\n"));
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "old", NULL), "none");
                ck_assert_ptr_nonnull(strstr(user_value(&u, OM_STORE_AGENTS, "greet", "greeter"), "\"tools\": []"));
                ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "x", NULL), "null");
                struct om_store_list list = { .kind = OM_STORE_METRICS, .topic = OM_SPAN("greet") };
                ck_assert_int_eq(user_list(&u, &list), 0);
                ck_assert_uint_eq(list.n, 1);
                ck_assert_int_eq(list.entries[0].saved_ms, 6250);
                if (round == 0) {
                        ck_assert_int_eq(user_result(&u, "8", "a", "8", 8000, 0), 0);
                        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS,
                                                 &(struct om_store_entry){
                                                         .key = OM_SPAN("a"), .name = OM_SPAN("b"), .value = OM_SPAN("{\"name\":\"b\"}") }),
                                0);
                }
                user_close(&u);
        }
}
END_TEST

static const struct {
        const char *file, *text, *where;
} edited[] = {
        { "config.json", "{\n  \"a\": 1,\n  \"b\": 02\n}\n", "/config.json, line 3, column 9" },
        { "config.json", "{\n  \"a\": 1,\n  \"a\": 2\n}\n", "/config.json, line 3, column 3: this key stands there twice" },
        { "config.json", "[]", "/config.json, line 1, column 1: not an object" },
        { "results.json", "{\n  \"t\": {\"result\": 1, \"saved_at\": \"yesterday\"}\n}",
                "/results.json, line 2, column 34: not a time in seconds" },
        { "results.json", "{\"t\": 5}", "/results.json, line 1, column 7: not an object" },
        { "results.json", "{\"t\": {}}", "an entry without result" },
        { "results.json", "{\"t\": {\"result\": 1", "/results.json, line 1, column " },
        { "agents.json", "{\"greet\": {}}", "/agents.json, line 1, column 11" },
        { "agents.json", "{\"greet\": [1]}", "an agent that is not an object" },
        { "metrics.json", "[1,]", "/metrics.json, line 1, column 4" },
        { "keys.json", "{} x", "/keys.json, line 1, column 4" },
};
START_TEST(test_file_that_a_hand_broke_is_named_with_line_and_column_and_left_alone) {
        struct user u;
        test_write_file(folder, edited[_i].file, edited[_i].text, strlen(edited[_i].text));
        ck_assert_int_eq(try_open(&u, ""), 0);
        ck_assert_int_eq(u.state, OM_STORE_FAILED);
        ck_assert_msg(strstr(u.state_error.message, edited[_i].where), "%s", u.state_error.message);
        ck_assert_int_eq(user_result(&u, "t", "a", "1", 1, 0), -EAGAIN);
        unsigned before = u.states;
        char *text = test_read_file(folder, edited[_i].file, NULL);
        ck_assert_str_eq(text, edited[_i].text);
        free(text);
        char path[300];
        snprintf(path, sizeof(path), "%s/%s", folder, edited[_i].file);
        ck_assert_int_eq(unlink(path), 0); /* it is mended: the daemon goes on by itself */
        while (u.states == before)
                om_loop_run_once(u.loop, true);
        ck_assert_int_eq(u.state, OM_STORE_READY);
        ck_assert_int_eq(user_result(&u, "t", "a", "1", 1, 0), 0);
        user_close(&u);
}
END_TEST

/* -- journals ------------------------------------------------------------------------------------------------------ */

/* Writes n results in a child that is killed, so that a journal is left. */
static void leave_journal_with(const char *options, int n) {
        pid_t child = fork();
        if (child == 0) {
                struct user u;
                open_it(&u, options);
                for (int i = 0; i < n; i++) {
                        char id[16], value[64];
                        snprintf(id, sizeof(id), "t%d", i);
                        snprintf(value, sizeof(value), "{\"n\":%d,\"text\":\"two\\nlines\"}", i);
                        if (user_result(&u, id, "a", value, 1000 + i, 0) < 0)
                                _exit(1);
                }
                kill(getpid(), SIGKILL);
        }
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
}

static void leave_journal(int n) { leave_journal_with("", n); }

START_TEST(test_journal_cut_at_any_byte_of_its_last_line_loses_that_line_alone) {
        size_t len, start;
        struct user u;
        leave_journal(4);
        char *journal = test_read_file(folder, "results.journal", &len);
        ck_assert_ptr_nonnull(journal);
        for (start = len - 1; journal[start - 1] != '\n'; start--)
                ;
        for (size_t cut = start; cut <= len; cut++) {
                test_write_file(folder, "results.journal", journal, cut);
                open_it(&u, "");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t2", NULL), "{\"n\":2,\"text\":\"two\\nlines\"}");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t3", NULL), cut == len ? "{\"n\":3,\"text\":\"two\\nlines\"}" : "none");
                ck_assert_int_eq(user_result(&u, "t9", "a", "9", 1, 0), 0);
                user_close(&u);
                open_it(&u, "");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t2", NULL), "{\"n\":2,\"text\":\"two\\nlines\"}");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t9", NULL), "9");
                user_close(&u);
                char path[300];
                snprintf(path, sizeof(path), "%s/results.json", folder);
                unlink(path);
        }
        free(journal);
}
END_TEST

START_TEST(test_power_cut_without_durability_loses_a_tail_and_the_storage_opens) {
        size_t len;
        struct user u;
        leave_journal_with("?durability=memory", 3);
        leave_journal_with("?durability=memory", 3); /* finds the first one's, which was never synced */
        char *journal = test_read_file(folder, "results.journal", &len);
        ck_assert_ptr_nonnull(journal);
        memset(journal, 0, 200); /* a page that was not written, before ones that were */
        test_write_file(folder, "results.journal", journal, len);
        open_it(&u, "?durability=memory");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t0", NULL), "none");
        user_close(&u);
        free(journal);
}
END_TEST

START_TEST(test_damage_in_the_middle_of_a_journal_is_an_error_that_names_the_line) {
        size_t len;
        struct user u;
        leave_journal(6);
        char *journal = test_read_file(folder, "results.journal", &len), *second = strchr(journal, '\n') + 1;
        char *third = strchr(second, '\n') + 1, where[64];
        for (char *p = second; p < third; p += 7) {
                *p ^= 0x20;
                test_write_file(folder, "results.journal", journal, len);
                ck_assert_int_eq(try_open(&u, ""), 0);
                ck_assert_int_eq(u.state, OM_STORE_FAILED);
                snprintf(where, sizeof(where), "/results.journal, line 2 (byte %zu)", (size_t) (second - journal) + 1);
                ck_assert_msg(strstr(u.state_error.message, where), "%s", u.state_error.message);
                user_close(&u);
                size_t after;
                char *same = test_read_file(folder, "results.journal", &after);
                ck_assert_uint_eq(after, len);
                ck_assert_int_eq(memcmp(same, journal, len), 0);
                free(same);
                *p ^= 0x20;
        }
        free(journal);
}
END_TEST

START_TEST(test_random_bytes_in_a_journal_never_harm) {
        size_t len;
        struct user u;
        leave_journal(5);
        char *journal = test_read_file(folder, "results.journal", &len), *copy = malloc(len);
        for (int round = 0; round < 60; round++) {
                memcpy(copy, journal, len);
                for (int i = 0; i < 3; i++)
                        copy[om_random_u64() % len] = (char) om_random_u64();
                test_write_file(folder, "results.journal", copy, om_random_u64() % len + 1);
                ck_assert_int_eq(try_open(&u, ""), 0);
                user_close(&u);
                char path[300];
                snprintf(path, sizeof(path), "%s/results.json", folder);
                unlink(path);
        }
        free(journal);
        free(copy);
}
END_TEST

START_TEST(test_journal_that_its_file_holds_is_not_replayed_and_one_that_it_does_not_is) {
        struct user u;
        struct stat st;
        char path[300];
        struct om_store_list list = { .kind = OM_STORE_METRICS };
        static const char held[] = "[\n  {\"n\":1}\n]\n";
        for (int in_place = 0; in_place < 2; in_place++) {
                struct om_buf b = OM_BUF_INIT;
                size_t value;
                test_write_file(folder, "metrics.json", held, sizeof(held) - 1);
                snprintf(path, sizeof(path), "%s/metrics.json", folder);
                ck_assert_int_eq(stat(path, &st), 0);
                struct om_store_entry metric = { .value = OM_SPAN("{\"n\":1}") };
                om_file_record_put(&b, &metric, 1, 0, &value);
                size_t mark = om_journal_begin(&b);
                om_buf_printf(&b, "{\"op\":\"held\",\"inode\":%llu,\"size\":%llu}", (unsigned long long) st.st_ino + !in_place,
                        (unsigned long long) st.st_size);
                om_journal_end(&b, mark, 0);
                test_write_file(folder, "metrics.journal.old", b.data, b.len);
                om_buf_deinit(&b);
                open_it(&u, "");
                ck_assert_int_eq(user_list(&u, &list), 0);
                ck_assert_uint_eq(list.n, in_place ? 1 : 2);
                user_close(&u);
                ck_assert(!test_file_exists(folder, "metrics.journal.old"));
        }
}
END_TEST

/* -- death at any moment ------------------------------------------------------------------------------------------- */

struct told {
        uint32_t batch;
        uint32_t metrics;
};

/* Writes for ever: a new result, a replaced one, a deleted one, a metric, each batch reported through `fd` once it is acknowledged. */
static void write_until_killed(int fd, uint32_t from) {
        struct user u;
        open_it(&u, "?compact_min_bytes=4096");
        for (uint32_t i = from;; i++) {
                char id[32], value[200];
                snprintf(id, sizeof(id), "new-%u", i);
                snprintf(value, sizeof(value), "{\"n\":%u,\"pad\":\"%0120d\"}", i, 0);
                struct told told = { i, i };
                struct om_store_entry metric = { .value = om_span_of(value), .saved_ms = 1 };
                char other[32];
                snprintf(other, sizeof(other), "%u", i);
                if (user_result(&u, id, "a", value, 1000 + i, 0) < 0 || user_result(&u, "same", "a", other, 1000 + i, 0) < 0 ||
                        user_put(&u, OM_STORE_METRICS, &metric) < 0)
                        _exit(1);
                snprintf(id, sizeof(id), "new-%u", i - 50);
                if (i >= 50 && user_delete(&u, OM_STORE_RESULTS, id, NULL) < 0)
                        _exit(1);
                om_arena_deinit(&u.arena);
                u.arena = (struct om_arena){ 0 };
                if (write(fd, &told, sizeof(told)) != sizeof(told))
                        _exit(1);
        }
}

static void check_after_death(struct told last) {
        struct user u;
        char id[32], value[200];
        open_it(&u, "?compact_min_bytes=4096");
        uint32_t same = (uint32_t) atoi(user_value(&u, OM_STORE_RESULTS, "same", NULL));
        ck_assert_msg(same == last.batch || same == last.batch + 1, "same is %u, acknowledged %u", same, last.batch);
        for (uint32_t i = 1; i <= last.batch; i++) {
                snprintf(id, sizeof(id), "new-%u", i);
                snprintf(value, sizeof(value), "{\"n\":%u,\"pad\":\"%0120d\"}", i, 0);
                const char *there = user_value(&u, OM_STORE_RESULTS, id, NULL);
                if (i + 50 <= last.batch)
                        ck_assert_msg(strcmp(there, "none") == 0, "%s was deleted", id);
                else if (i + 50 > last.batch + 1)
                        ck_assert_msg(strcmp(there, value) == 0, "%s: %s", id, there);
        }
        struct om_store_list list = { .kind = OM_STORE_METRICS, .limit = 10000 };
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_msg(list.n == last.metrics || list.n == last.metrics + 1, "%zu metrics, acknowledged %u", list.n, last.metrics);
        user_close(&u);
}

START_TEST(test_what_was_acknowledged_survives_kill_9_at_any_moment) {
        struct told last = { 0, 0 }, next;
        for (int round = 0; round < 12; round++) {
                int fds[2];
                ck_assert_int_eq(pipe(fds), 0);
                pid_t child = fork();
                if (child == 0)
                        write_until_killed(fds[1], last.batch + 1);
                close(fds[1]);
                int64_t end = om_clock_ms() + (int64_t) (om_random_u64() % 150) + 20;
                while (om_clock_ms() < end && read(fds[0], &next, sizeof(next)) == sizeof(next))
                        last = next;
                kill(child, SIGKILL);
                ck_assert_int_eq(waitpid(child, NULL, 0), child);
                while (read(fds[0], &next, sizeof(next)) == sizeof(next))
                        last = next;
                close(fds[0]);
                /* Looked at in a child, killed too: what is looked at must not be what a clean stop has put right. */
                pid_t reader = fork();
                if (reader == 0) {
                        struct user u;
                        open_it(&u, "?compact_min_bytes=4096");
                        uint32_t same = (uint32_t) atoi(user_value(&u, OM_STORE_RESULTS, "same", NULL));
                        _exit(same == last.batch || same == last.batch + 1 ? 0 : 1);
                }
                int status;
                ck_assert_int_eq(waitpid(reader, &status, 0), reader);
                ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
                check_after_death(last);
                /* What was under way at the death may have happened: begin after it. */
                struct user u;
                open_it(&u, "");
                struct om_store_list list = { .kind = OM_STORE_METRICS, .limit = 10000 };
                ck_assert_int_eq(user_list(&u, &list), 0);
                last.metrics = (uint32_t) list.n;
                uint32_t same = (uint32_t) atoi(user_value(&u, OM_STORE_RESULTS, "same", NULL));
                user_delete(&u, OM_STORE_METRICS, NULL, NULL);
                user_delete(&u, OM_STORE_RESULTS, NULL, NULL);
                user_close(&u);
                ck_assert_uint_ge(same, last.batch);
                last = (struct told){ 0, 0 };
        }
}
END_TEST

/* -- compaction ---------------------------------------------------------------------------------------------------- */

START_TEST(test_compaction_under_writes_keeps_every_last_word) {
        enum { KEYS = 400, ROUNDS = 60 };
        struct user u;
        static int last[KEYS][2];
        char id[16], value[600];
        struct stat st;
        char path[300];
        memset(last, 0, sizeof(last));
        open_it(&u, "?compact_min_bytes=4096&durability=memory");
        for (int round = 1; round <= ROUNDS; round++)
                for (int i = 0; i < KEYS; i++) {
                        int key = (int) (om_random_u64() % KEYS), agent = (int) (om_random_u64() & 1);
                        snprintf(id, sizeof(id), "k%d", key);
                        if (om_random_u64() % 10 == 0) {
                                user_delete(&u, OM_STORE_RESULTS, id, NULL);
                                last[key][0] = last[key][1] = 0;
                                continue;
                        }
                        last[key][agent] = round * KEYS + i;
                        snprintf(value, sizeof(value), "{\"n\":%d,\"pad\":\"%0500d\"}", last[key][agent], 0);
                        ck_assert_int_eq(user_result(&u, id, agent ? "b" : "a", value, 1000 + (int64_t) (om_random_u64() % 50), 0), 0);
                }
        for (int pass = 0; pass < 2; pass++) {
                for (int key = 0; key < KEYS; key++)
                        for (int agent = 0; agent < 2; agent++) {
                                snprintf(id, sizeof(id), "k%d", key);
                                snprintf(value, sizeof(value), "{\"n\":%d,\"pad\":\"%0500d\"}", last[key][agent], 0);
                                ck_assert_str_eq(
                                        user_value(&u, OM_STORE_RESULTS, id, agent ? "b" : "a"), last[key][agent] ? value : "none");
                        }
                if (pass == 0) {
                        user_close(&u);
                        snprintf(path, sizeof(path), "%s/results.json", folder);
                        ck_assert_int_eq(stat(path, &st), 0);
                        ck_assert_int_lt(st.st_size, 2 * KEYS * 900);
                        open_it(&u, "");
                }
        }
        user_close(&u);
}
END_TEST

START_TEST(test_only_the_newest_metrics_are_kept) {
        struct user u;
        open_it(&u, "?max_metrics=10&compact_min_bytes=4096");
        for (int pass = 0; pass < 3; pass++) {
                for (int i = 0; i < 100; i++) {
                        char value[64];
                        snprintf(value, sizeof(value), "{\"n\":%d,\"saved_at\":%d}", i, 1000 + i);
                        struct om_store_entry e = { .value = om_span_of(value), .saved_ms = (1000 + i + 1000 * pass) * 1000 };
                        ck_assert_int_eq(user_put(&u, OM_STORE_METRICS, &e), 0);
                }
                struct om_store_list list = { .kind = OM_STORE_METRICS };
                ck_assert_int_eq(user_list(&u, &list), 0);
                ck_assert_uint_eq(list.n, 10);
                ck_assert_ptr_nonnull(strstr(list.entries[0].value.p, "\"n\":99"));
                user_close(&u);
                open_it(&u, "?max_metrics=10&compact_min_bytes=4096");
        }
        user_close(&u);
}
END_TEST

/* -- disks --------------------------------------------------------------------------------------------------------- */

static _Atomic int full, broken;
static ssize_t write_or_full(int fd, const void *data, size_t len, off_t offset) {
        if (!full)
                return pwrite(fd, data, len, offset);
        if (len > 10 && full == 1) { /* some of it fits: the rest must go again */
                full = 2;
                return pwrite(fd, data, len / 2, offset);
        }
        full = 1;
        errno = ENOSPC;
        return -1;
}
static int sync_or_break(int fd) {
        if (!broken)
                return fdatasync(fd);
        errno = EIO;
        return -1;
}

START_TEST(test_full_disk_is_a_typed_error_and_old_data_stays) {
        struct user u;
        om_file_write = write_or_full;
        open_it(&u, "?compact_min_bytes=4096");
        ck_assert_int_eq(user_result(&u, "a", "x", "1", 1, 0), 0);
        for (int i = 0; i < 20; i++) {
                full = 1;
                ck_assert_int_eq(user_result(&u, "b", "x", "2", 2, 0), -ENOBUFS);
                ck_assert_int_eq(u.error.kind, OM_LIMIT);
                ck_assert_msg(strstr(u.error.message, folder), "%s", u.error.message);
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "a", NULL), "1");
                ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "b", NULL), "none");
                ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "a", NULL), -ENOBUFS);
                full = 0;
                ck_assert_int_eq(user_result(&u, "c", "x", "3", 3, 0), 0);
        }
        ck_assert_int_eq(u.state, OM_STORE_READY);
        full = 1; /* and at the stop: the journals stay */
        user_close(&u);
        full = 0;
        ck_assert(test_file_exists(folder, "results.journal"));
        open_it(&u, "");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "a", NULL), "1");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "b", NULL), "none");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "c", NULL), "3");
        user_close(&u);
        om_file_write = pwrite;
}
END_TEST

START_TEST(test_compaction_that_finds_no_room_leaves_everything_readable) {
        struct user u;
        char id[16], value[300];
        om_file_write = write_or_full;
        open_it(&u, "?compact_min_bytes=1M&durability=memory");
        snprintf(value, sizeof(value), "\"%0200d\"", 7);
        for (int i = 0; i < 6000; i++) {
                snprintf(id, sizeof(id), "%d", i);
                int r = user_result(&u, id, "a", value, i, 0);
                full = 0;
                ck_assert_msg(r == 0 || r == -ENOBUFS, "%s", u.error.message);
                if (r < 0)
                        ck_assert_int_eq(user_result(&u, id, "a", value, i, 0), 0);
                full = i % 100 == 99; /* now and then it is full in whatever comes next, a compaction's slice too */
        }
        full = 0;
        for (int pass = 0; pass < 2; pass++) {
                for (int i = 0; i < 6000; i += 7) {
                        snprintf(id, sizeof(id), "%d", i);
                        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, id, NULL), value);
                }
                user_close(&u);
                open_it(&u, "");
        }
        user_close(&u);
        om_file_write = pwrite;
}
END_TEST

START_TEST(test_failed_sync_is_never_believed_and_the_storage_recovers_from_disk) {
        struct user u;
        om_file_sync = sync_or_break;
        open_it(&u, "");
        ck_assert_int_eq(user_result(&u, "a", "x", "1", 1, 0), 0);
        broken = 1;
        unsigned before = u.states;
        ck_assert_int_eq(user_result(&u, "b", "x", "2", 2, 0), -EAGAIN);
        ck_assert_int_eq(u.error.kind, OM_UNAVAILABLE);
        while (u.states == before)
                om_loop_run_once(u.loop, true);
        ck_assert_int_eq(u.state, OM_STORE_FAILED);
        ck_assert_int_eq(user_result(&u, "c", "x", "3", 3, 0), -EAGAIN);
        broken = 0;
        while (u.state != OM_STORE_READY)
                om_loop_run_once(u.loop, true);
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "a", NULL), "1");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "b", NULL), "none"); /* it was refused, so it has not happened */
        ck_assert_int_eq(user_result(&u, "b", "x", "4", 4, 0), 0);
        user_close(&u);
        open_it(&u, "");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "b", NULL), "4");
        user_close(&u);
        om_file_sync = fdatasync;
}
END_TEST

START_TEST(test_second_daemon_on_a_folder_is_refused_and_told_who_has_it) {
        struct user u, second;
        char pid[32];
        open_it(&u, "");
        ck_assert_int_eq(try_open(&second, ""), -EAGAIN);
        snprintf(pid, sizeof(pid), "process %ld", (long) getpid());
        ck_assert_msg(strstr(second.error.message, pid) && strstr(second.error.message, folder), "%s", second.error.message);
        user_close(&u);
        open_it(&u, "");
        user_close(&u);
}
END_TEST

static const char *const wrong[][2] = { { "json:/proc/nowhere", "/proc/nowhere" }, { "json:/dev/null", "/dev/null" },
        { "json://host/x", "json:DIR" }, { "json:/tmp?durability=perhaps", "durability" }, { "json:/tmp?compat=1", "unknown parameter" } };
START_TEST(test_settings_that_can_never_work_are_refused_by_name) {
        struct user u;
        ck_assert_int_lt(user_open(&u, wrong[_i][0]), 0);
        ck_assert_msg(strstr(u.error.message, wrong[_i][1]), "%s", u.error.message);
}
END_TEST

START_TEST(test_expired_results_leave_the_file_and_the_memory) {
        struct user u;
        char id[16];
        open_it(&u, "?compact_min_bytes=4096&durability=memory");
        int64_t now = om_now_ms();
        for (int i = 0; i < 2000; i++) {
                snprintf(id, sizeof(id), "%d", i);
                ck_assert_int_eq(user_result(&u, id, "a", "\"0123456789\"", now, i % 100 ? now + 1 : now + 3600000), 0);
        }
        user_close(&u);
        open_it(&u, "");
        const char *health = user_health(&u);
        ck_assert_msg(strstr(health, "\"results\":20,"), "%s", health);
        ck_assert_msg(strstr(health, "\"version\":\"" OM_VERSION "\""), "%s", health);
        user_close(&u);
        char *text = test_read_file(folder, "results.json", NULL);
        ck_assert_ptr_null(strstr(text, "\"1\": {"));
        ck_assert_ptr_nonnull(strstr(text, "\"100\": {"));
        free(text);
}
END_TEST

int main(void) {
        om_log_open(OM_LOG_STDERR, (enum om_level) 0); /* what is logged here is meant to be */
        Suite *s = suite_create("json storage");
        TCase *t = tcase_create("files");
        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_add_test(t, test_everything_is_there_after_opening_again_and_again);
        tcase_add_test(t, test_after_a_clean_stop_there_are_files_and_no_journals);
        tcase_add_test(t, test_folder_of_the_python_one_opens);
        tcase_add_loop_test(
                t, test_file_that_a_hand_broke_is_named_with_line_and_column_and_left_alone, 0, sizeof(edited) / sizeof(edited[0]));
        tcase_add_test(t, test_journal_cut_at_any_byte_of_its_last_line_loses_that_line_alone);
        tcase_add_test(t, test_power_cut_without_durability_loses_a_tail_and_the_storage_opens);
        tcase_add_test(t, test_damage_in_the_middle_of_a_journal_is_an_error_that_names_the_line);
        tcase_add_test(t, test_random_bytes_in_a_journal_never_harm);
        tcase_add_test(t, test_journal_that_its_file_holds_is_not_replayed_and_one_that_it_does_not_is);
        tcase_add_test(t, test_what_was_acknowledged_survives_kill_9_at_any_moment);
        tcase_add_test(t, test_compaction_under_writes_keeps_every_last_word);
        tcase_add_test(t, test_only_the_newest_metrics_are_kept);
        tcase_add_test(t, test_full_disk_is_a_typed_error_and_old_data_stays);
        tcase_add_test(t, test_compaction_that_finds_no_room_leaves_everything_readable);
        tcase_add_test(t, test_failed_sync_is_never_believed_and_the_storage_recovers_from_disk);
        tcase_add_test(t, test_second_daemon_on_a_folder_is_refused_and_told_who_has_it);
        tcase_add_loop_test(t, test_settings_that_can_never_work_are_refused_by_name, 0, sizeof(wrong) / sizeof(wrong[0]));
        tcase_add_test(t, test_expired_results_leave_the_file_and_the_memory);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
