/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks, beyond the vectors (test_vectors.c): the parts as they were read, the record as it is written, ids that never repeat, and
 * hostile and mutated tasks.
 */
#include "../../proto/task.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define ALL_MEMBERS                                                                                                                       \
        "{\"id\":\"i\",\"topic\":\"t\\u00e9\",\"payload\":{\"content\": {\"a\" :1e400} ,\"webhook\":{\"url\":\"u\"},\"reply_to\":\"r\"}," \
        "\"created_at\":1795425242.1375,\"tenant_id\":\"te\",\"correlation_id\":\"co\",\"causation_id\":\"ca\",\"source\":\"so\","        \
        "\"traceparent\":\"tr\",\"delivery_attempts\":4294967295,\"headers\":{ \"h\":\"v\\n\" },\"key\":\"k\\\"\",\"priority\":9,"        \
        "\"ttl_ms\":31622400000,\"delay_ms\":5,\"idempotency_key\":\"ik\"}"

static void check_all_members(const struct om_task *t) {
        ck_assert(om_span_is(t->id, "i") && om_span_is(t->topic, "t\xc3\xa9") && om_span_is(t->key, "k\""));
        ck_assert(om_span_is(t->content, "{\"a\" :1e400}") && om_span_is(t->webhook, "{\"url\":\"u\"}") && om_span_is(t->reply_to, "r"));
        ck_assert(om_span_is(t->created_at, "1795425242.1375") && t->created_ms == 1795425242138);
        ck_assert(om_span_is(t->tenant_id, "te") && om_span_is(t->correlation_id, "co") && om_span_is(t->causation_id, "ca"));
        ck_assert(om_span_is(t->source, "so") && om_span_is(t->traceparent, "tr") && om_span_is(t->idempotency_key, "ik"));
        ck_assert(om_span_is(t->headers, "{ \"h\":\"v\\n\" }"));
        ck_assert(t->delivery_attempts == 4294967295 && t->priority == 9 && t->ttl_ms == OM_DELAY_MAX_MS && t->delay_ms == 5);
}

START_TEST(test_every_member_is_found_and_survives_the_record) {
        struct om_task t, again;
        struct om_error e = OM_ERROR_INIT;
        struct om_buf b = OM_BUF_INIT;
        ck_assert_msg(om_task_parse(OM_SPAN(ALL_MEMBERS), "task", &t, &e) == 0, "%s", e.message);
        check_all_members(&t);
        om_task_write(&b, &t);
        om_task_deinit(&t);
        ck_assert_msg(om_task_parse(om_buf_span(&b), "record", &again, &e) == 0, "%s", e.message);
        check_all_members(&again);
        om_task_deinit(&again);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_a_record_leaves_out_what_is_absent) {
        struct om_task t;
        struct om_buf b = OM_BUF_INIT;
        ck_assert_int_eq(om_task_parse(OM_SPAN("{\"payload\":{\"content\":null},\"topic\":\"a\",\"key\":null}"), "task", &t, NULL), 0);
        ck_assert(!t.id.p && !t.key.p && !t.headers.p && !t.webhook.p && !t.reply_to.p && !t.created_at.p && t.created_ms == 0);
        t.id = OM_SPAN("i");
        t.created_ms = 1795425242137;
        om_task_write(&b, &t);
        ck_assert(
                om_span_is(om_buf_span(&b), "{\"id\":\"i\",\"topic\":\"a\",\"payload\":{\"content\":null},\"created_at\":1795425242.137}"));
        om_task_deinit(&t);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_a_refused_task_needs_no_freeing_and_names_the_field) {
        static const struct {
                const char *task, *message;
        } cases[] = {
                { "{\"topic\":\"a\",\"payload\":{\"content\":1},\"prority\":1}",
                        "tasks[3]: unknown member \"prority\"; did you mean \"priority\"?" },
                { "{\"topic\":\"a\",\"payload\":{\"contnet\":1}}",
                        "tasks[3].payload: unknown member \"contnet\"; did you mean \"content\"?" },
                { "{\"topic\":\"a\",\"payload\":{}}", "tasks[3].payload: \"content\" is missing" },
                { "{\"topic\":\"a\",\"payload\":1}", "tasks[3]: \"payload\" must be an object, not a number" },
                { "{\"topic\":\"\\u0061:dlq\",\"payload\":{\"content\":1}}",
                        "tasks[3].topic must not contain \":dlq\", which names dead letters" },
                { "{\"topic\":\"a\",\"payload\":{\"content\":1,\"reply_to\":\"\"}}", "tasks[3].payload.reply_to must not be empty" },
                { "{\"topic\":\"a\",\"payload\":{\"content\":1},\"k\\u0065y\":\"\\u0061\\n\"}",
                        "tasks[3].key must not contain control characters" },
                { "{\"topic\":\"a\",\"payload\":{\"content\":1},\"priority\":10}",
                        "tasks[3].priority must be an integer from 0 to 9, not 10" },
                { "{\"topic\":\"a\",\"payload\":{\"content\":1},\"headers\":{\"a\":1}}",
                        "tasks[3].headers: \"a\" must be a string, not a number" },
                { "{\"topic\":\"a\",\"payload\":{\"content\":1},\"created_at\":1e300}",
                        "tasks[3].created_at must be Unix time in seconds, from 0 to 253402300799" },
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                struct om_task t;
                struct om_error e = OM_ERROR_INIT;
                ck_assert_int_eq(om_task_parse(om_span_of(cases[i].task), "tasks[3]", &t, &e), -EINVAL);
                ck_assert_str_eq(e.message, cases[i].message);
                ck_assert_int_eq(e.code, OM_CODE_PARAMS);
                ck_assert_ptr_null(t.arena.chunks);
                ck_assert_int_eq(om_task_parse(om_span_of(cases[i].task), "tasks[3]", &t, NULL), -EINVAL);
        }
}
END_TEST

START_TEST(test_a_long_where_is_cut_and_not_overrun) {
        struct om_task t;
        struct om_error e = OM_ERROR_INIT;
        char where[1000];
        memset(where, 'w', sizeof where - 1);
        where[sizeof where - 1] = '\0';
        ck_assert_int_eq(om_task_parse(OM_SPAN("{\"topic\":\"a\",\"payload\":{\"content\":1,\"reply_to\":\"\"}}"), where, &t, &e), -EINVAL);
        ck_assert_int_eq(om_task_parse(OM_SPAN("{\"topic\":\"\",\"payload\":{\"content\":1}}"), where, &t, &e), -EINVAL);
        ck_assert_int_eq(om_task_parse(OM_SPAN("{\"topic\":\"a\",\"payload\":{}}"), where, &t, &e), -EINVAL);
        ck_assert_uint_lt(strlen(e.message), sizeof e.message);
}
END_TEST

START_TEST(test_created_at_is_kept_as_written_and_read_in_milliseconds) {
        static const struct {
                const char *text;
                int64_t ms;
        } cases[] = { { "0", 0 }, { "1", 1000 }, { "1795425242.137", 1795425242137 }, { "1795425242.1374999", 1795425242137 },
                { "1.5e0", 1500 }, { "253402300799", 253402300799000 }, { "253402300799.999", 253402300799999 } };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                char text[200];
                struct om_task t;
                snprintf(text, sizeof text, "{\"topic\":\"a\",\"payload\":{\"content\":1},\"created_at\":%s}", cases[i].text);
                ck_assert_int_eq(om_task_parse(om_span_of(text), "task", &t, NULL), 0);
                ck_assert(om_span_is(t.created_at, cases[i].text));
                ck_assert_int_eq(t.created_ms, cases[i].ms);
                om_task_deinit(&t);
        }
}
END_TEST

/* Each mutation that is still JSON is parsed; what is accepted must give a record that is a task again, and the same one. */
START_TEST(test_mutated_tasks_are_refused_or_survive_the_record) {
        static const char task[] = ALL_MEMBERS;
        size_t n = sizeof task - 1;
        unsigned seed = 7, accepted = 0, refused = 0;
        for (int i = 0; i < 60000; i++) {
                char *copy = malloc(n);
                struct om_span text = { copy, n };
                memcpy(copy, task, n);
                for (int k = 0; k <= i % 2; k++) {
                        seed = seed * 1103515245 + 12345;
                        copy[(seed >> 8) % n] = "\"{}[],:01e.-ax\\\x7f\xc3"[(seed >> 20) % 17];
                }
                struct om_task t, again;
                struct om_error e = OM_ERROR_INIT;
                struct om_buf one = OM_BUF_INIT, two = OM_BUF_INIT;
                if (om_json_check(text, 64, NULL) == 0) {
                        if (om_task_parse(text, "task", &t, &e) < 0) {
                                refused++;
                                if (strncmp(e.message, "task", 4) != 0)
                                        ck_abort_msg("%s", e.message);
                        } else {
                                accepted++;
                                om_task_write(&one, &t);
                                if (om_json_check(om_buf_span(&one), 64, &e) < 0 ||
                                        om_task_parse(om_buf_span(&one), "record", &again, &e) < 0)
                                        ck_abort_msg("%s: %.*s", e.message, OM_PRI(om_buf_span(&one)));
                                om_task_write(&two, &again);
                                if (!om_span_eq(om_buf_span(&one), om_buf_span(&two)) || !om_span_eq(t.content, again.content))
                                        ck_abort_msg("another task: %.*s", OM_PRI(text));
                                om_task_deinit(&t);
                                om_task_deinit(&again);
                        }
                }
                om_buf_deinit(&one);
                om_buf_deinit(&two);
                free(copy);
        }
        ck_assert_uint_ge(accepted, 1000);
        ck_assert_uint_ge(refused, 1000);
}
END_TEST

START_TEST(test_names_are_200_bytes_at_most) {
        char name[202];
        struct om_error e = OM_ERROR_INIT;
        memset(name, 'n', sizeof name);
        ck_assert_int_eq(om_name_check((struct om_span){ name, 200 }, "name", &e), 0);
        ck_assert_int_eq(om_name_check((struct om_span){ name, 201 }, "name", &e), -EINVAL);
        ck_assert_str_eq(e.message, "name has 201 bytes; at most 200 are allowed");
        ck_assert_int_eq(om_name_check(OM_SPAN_NONE, "name", &e), -EINVAL);
        ck_assert_int_eq(om_name_check(OM_SPAN(""), "name", &e), -EINVAL);
        ck_assert_int_eq(om_name_check(OM_SPAN("omni-dlq:a:dlq"), "name", &e), 0); /* only topics have that rule */
        ck_assert_int_eq(om_name_check(OM_SPAN("a\xff"), "name", &e), -EINVAL);
        ck_assert_str_eq(e.message, "name is not UTF-8");
}
END_TEST

START_TEST(test_a_hostile_pattern_takes_no_time) {
        char pattern[200], topic[200];
        for (int i = 0; i < 198; i += 2) {
                memcpy(pattern + i, "#.", 2);
                memcpy(topic + i, "a.", 2);
        }
        pattern[198] = 'x';
        topic[198] = 'y';
        for (int i = 0; i < 1000; i++)
                ck_assert(!om_topic_matches((struct om_span){ pattern, 199 }, (struct om_span){ topic, 199 }));
        ck_assert(om_topic_matches((struct om_span){ pattern, 197 }, (struct om_span){ topic, 199 }));
}
END_TEST

START_TEST(test_groups_are_named_as_on_every_bus) {
        struct om_buf b = OM_BUF_INIT;
        om_group_name(&b, OM_SPAN("orders"), OM_SPAN("greeter"));
        ck_assert(om_span_is(om_buf_span(&b), "group:orders:greeter"));
        om_buf_deinit(&b);
}
END_TEST

/* -- ids ----------------------------------------------------------------------------------------------------------- */

typedef char id_text[OM_ID_LEN + 1];

static int compare_ids(const void *a, const void *b) { return strcmp(a, b); }

static size_t count_repeats(id_text *ids, size_t n) {
        size_t repeats = 0;
        qsort(ids, n, sizeof *ids, compare_ids);
        for (size_t i = 1; i < n; i++)
                repeats += strcmp(ids[i - 1], ids[i]) == 0;
        return repeats;
}

START_TEST(test_ids_are_random_uuids) {
        enum { N = 20000 };
        id_text *ids = malloc(N * sizeof *ids);
        unsigned wrong = 0, ones = 0;
        for (int i = 0; i < N; i++) {
                om_task_id_new(ids[i]);
                for (int k = 0; k < OM_ID_LEN; k++) {
                        bool dash = k == 8 || k == 13 || k == 18 || k == 23;
                        wrong += dash ? ids[i][k] != '-' : !strchr("0123456789abcdef", ids[i][k]) || !ids[i][k];
                }
                wrong += ids[i][14] != '4' || !strchr("89ab", ids[i][19]) || ids[i][OM_ID_LEN] != '\0';
                ones += (unsigned) (strtol((char[]){ ids[i][i % 8], '\0' }, NULL, 16) & 1);
        }
        ck_assert_uint_eq(wrong, 0);
        ck_assert_uint_ge(ones, N * 45 / 100);
        ck_assert_uint_le(ones, N * 55 / 100);
        ck_assert_uint_eq(count_repeats(ids, N), 0);
        free(ids);
}
END_TEST

static void *make_ids(void *p) {
        id_text *ids = p;
        for (int i = 0; i < 2000; i++)
                om_task_id_new(ids[i]);
        return NULL;
}

START_TEST(test_threads_never_make_the_same_id) {
        id_text *ids = malloc(8 * 2000 * sizeof *ids);
        pthread_t threads[8];
        for (int i = 0; i < 8; i++)
                ck_assert_int_eq(pthread_create(&threads[i], NULL, make_ids, ids + i * 2000), 0);
        for (int i = 0; i < 8; i++)
                pthread_join(threads[i], NULL);
        ck_assert_uint_eq(count_repeats(ids, 8 * 2000), 0);
        free(ids);
}
END_TEST

START_TEST(test_a_forked_process_never_makes_its_parents_ids) {
        enum { CHILDREN = 4, EACH = 300 };
        id_text *ids = malloc((CHILDREN + 1) * EACH * sizeof *ids), first;
        size_t n = 0;
        om_task_id_new(first); /* so that there is a stock to share by mistake */
        for (int c = 0; c < CHILDREN; c++) {
                int ends[2];
                ck_assert_int_eq(pipe(ends), 0);
                pid_t pid = fork();
                ck_assert_int_ge(pid, 0);
                if (pid == 0) {
                        for (int i = 0; i < EACH; i++) {
                                id_text id;
                                om_task_id_new(id);
                                if (write(ends[1], id, sizeof id) != sizeof id)
                                        _exit(1);
                        }
                        _exit(0);
                }
                close(ends[1]);
                for (int i = 0; i < EACH; i++)
                        ck_assert_int_eq(read(ends[0], ids[n++], sizeof *ids), sizeof *ids);
                close(ends[0]);
                int status;
                ck_assert_int_eq(waitpid(pid, &status, 0), pid);
                ck_assert_int_eq(status, 0);
        }
        for (int i = 0; i < EACH; i++)
                om_task_id_new(ids[n++]);
        ck_assert_uint_eq(count_repeats(ids, n), 0);
        free(ids);
}
END_TEST

int main(void) {
        Suite *s = suite_create("task");
        TCase *c = tcase_create("task");
        tcase_set_timeout(c, 60);
        tcase_add_test(c, test_every_member_is_found_and_survives_the_record);
        tcase_add_test(c, test_a_record_leaves_out_what_is_absent);
        tcase_add_test(c, test_a_refused_task_needs_no_freeing_and_names_the_field);
        tcase_add_test(c, test_a_long_where_is_cut_and_not_overrun);
        tcase_add_test(c, test_created_at_is_kept_as_written_and_read_in_milliseconds);
        tcase_add_test(c, test_mutated_tasks_are_refused_or_survive_the_record);
        tcase_add_test(c, test_names_are_200_bytes_at_most);
        tcase_add_test(c, test_a_hostile_pattern_takes_no_time);
        tcase_add_test(c, test_groups_are_named_as_on_every_bus);
        tcase_add_test(c, test_ids_are_random_uuids);
        tcase_add_test(c, test_threads_never_make_the_same_id);
        tcase_add_test(c, test_a_forked_process_never_makes_its_parents_ids);
        suite_add_tcase(s, c);
        return om_test_main(s);
}
