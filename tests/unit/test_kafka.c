/* SPDX-License-Identifier: Apache-2.0 */
/* Kafka: what is pure. How topics and agents become names, what is finished out of order and its text in a commit, and what is wrong with a
 * URL. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/kafka/names.h"
#include "../../backends/kafka/offsets.h"
#include "../../backends/kafka/settings.h"
#include "../../proto/task.h"
#include "../lib/suite.h"

/* -- names ----------------------------------------------------------------------------------------------------------- */

static bool is_legal(const char *s) {
        size_t n = strlen(s);
        return n > 0 && n <= KAFKA_NAME_MAX && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n &&
                strcmp(s, ".") != 0 && strcmp(s, "..") != 0;
}

static void name_is(const char *topic, size_t len, const char *expected) {
        char name[KAFKA_NAME_MAX + 1];
        struct om_buf back = OM_BUF_INIT;
        struct kafka_named read;
        ck_assert(kafka_name(name, "", KAFKA_LOG, (struct om_span){ topic, len }, OM_SPAN_NONE));
        ck_assert_str_eq(name, expected);
        ck_assert(kafka_name_read(name, "", &read) && kafka_name_decode(&back, read.topic));
        ck_assert_int_eq(read.kind, KAFKA_LOG);
        ck_assert(!kafka_name_is_cut(read.topic));
        ck_assert(kafka_name_is_of(&read, (struct om_span){ topic, len }));
        ck_assert(om_span_eq(om_buf_span(&back), (struct om_span){ topic, len }));
        om_buf_deinit(&back);
}

START_TEST(test_topics_are_the_names_that_other_programs_use) {
        name_is("greet", 5, "greet");
        name_is("orders.eu-new_1", 15, "orders.eu-new_1");
}
END_TEST

START_TEST(test_what_a_name_cannot_hold_is_escaped_and_comes_back) {
        name_is("a b", 3, "a-.20b");
        name_is(".a..b.", 6, "-.2Ea.-.2Eb-.2E");
        name_is("a-.b", 4, "a-.2D.b");
        name_is("gr\xc3\xbc\xc3\x9f", 6, "gr-.C3-.BC-.C3-.9F");
}
END_TEST

START_TEST(test_any_topic_and_agent_make_legal_names_that_read_back) {
        char topic[60], agent[60], name[KAFKA_NAME_MAX + 1];
        unsigned x = 1;
        for (unsigned round = 0; round < 5000; round++) {
                size_t n[2] = { 1 + round % 20, 1 + round / 7 % 20 };
                for (size_t i = 0; i < 20; i++) {
                        x = x * 1103515245u + 12345u;
                        topic[i] = round % 2 ? (char) (x >> 16) : "..-a_ "[(x >> 16) % 6];
                        agent[i] = round % 3 ? (char) (x >> 20) : "-..b~"[(x >> 20) % 5];
                }
                struct om_span t = { topic, n[0] }, a = { agent, n[1] };
                struct om_buf bt = OM_BUF_INIT, ba = OM_BUF_INIT;
                struct kafka_named read;
                ck_assert(kafka_name(name, "x", round % 2 ? KAFKA_RETRY : KAFKA_DEAD, t, a));
                ck_assert_msg(is_legal(name), "%s", name);
                ck_assert(kafka_name_read(name, "x", &read) && kafka_name_decode(&bt, read.topic) && kafka_name_decode(&ba, read.agent));
                ck_assert_int_eq(read.kind, round % 2 ? KAFKA_RETRY : KAFKA_DEAD);
                ck_assert(kafka_name_is_of(&read, t) && !kafka_name_is_of(&read, OM_SPAN("another")));
                ck_assert_msg(om_span_eq(om_buf_span(&bt), t) && om_span_eq(om_buf_span(&ba), a), "%s", name);
                om_buf_deinit(&bt);
                om_buf_deinit(&ba);
                ck_assert(!kafka_name_read(name, "y", &read));
        }
}
END_TEST

START_TEST(test_names_too_long_are_cut_and_stay_apart) {
        char topic[OM_TOPIC_MAX], one[KAFKA_NAME_MAX + 1], two[KAFKA_NAME_MAX + 1];
        char prefix[41];
        memset(prefix, 'p', 40);
        prefix[40] = 0;
        for (int fill = 0; fill < 3; fill++) {
                memset(topic, " a."[fill], sizeof topic);
                ck_assert(kafka_name(
                        one, prefix, KAFKA_RETRY, (struct om_span){ topic, sizeof topic }, (struct om_span){ topic, sizeof topic }));
                topic[sizeof topic - 1] = 'b';
                ck_assert(kafka_name(
                        two, prefix, KAFKA_RETRY, (struct om_span){ topic, sizeof topic }, (struct om_span){ topic, sizeof topic }));
                ck_assert_msg(is_legal(one) && is_legal(two), "%s", one);
                ck_assert_str_ne(one, two);
                ck_assert(kafka_name(one, prefix, KAFKA_LOG, (struct om_span){ topic, sizeof topic }, OM_SPAN_NONE));
                ck_assert_msg(is_legal(one), "%s", one);
        }
}
END_TEST

/* A group's topic part is cut at fewer characters than its topic's name. */
START_TEST(test_a_topic_and_its_groups_are_known_for_the_same_when_cut) {
        char text[OM_TOPIC_MAX], name[KAFKA_NAME_MAX + 1], dead[KAFKA_NAME_MAX + 1];
        char part[KAFKA_GROUP_PART + 1], group_part[KAFKA_GROUP_PART + 1];
        struct kafka_named log, retry;
        bool cut = false, group_cut = false;
        memset(text, 'a', sizeof text);
        for (size_t n = 1; n <= sizeof text; n++) {
                struct om_span topic = { text, n };
                text[n - 1] = "aa-.a "[n % 6];
                ck_assert(kafka_name(name, "x", KAFKA_LOG, topic, OM_SPAN_NONE) && kafka_name_read(name, "x", &log));
                ck_assert(kafka_name_is_of(&log, topic) && kafka_name_group_part(&log, part));
                ck_assert(n == 1 || !kafka_name_is_of(&log, (struct om_span){ text, n - 1 }));
                cut = kafka_name_is_cut(log.topic);
                ck_assert(kafka_name(name, "x", KAFKA_RETRY, topic, topic) && kafka_name_read(name, "x", &retry));
                ck_assert(kafka_name_is_of(&retry, topic) && kafka_name_group_part(&retry, group_part));
                ck_assert_str_eq(part, group_part);
                group_cut = kafka_name_is_cut(retry.topic);
                ck_assert_int_eq(kafka_name_is_cut(retry.agent), group_cut);
                kafka_name_dead_of(dead, "x", name);
                ck_assert(kafka_name(name, "x", KAFKA_DEAD, topic, topic));
                ck_assert_str_eq(dead, name);
        }
        ck_assert(cut && group_cut);
}
END_TEST

START_TEST(test_names_of_other_prefixes_and_of_kafka_are_not_ours) {
        struct kafka_named n;
        ck_assert(!kafka_name_read("__consumer_offsets", "", &n));
        ck_assert(!kafka_name_read("x.omni-retry..t..a", "", &n));
        ck_assert(!kafka_name_read("x.omni-wake", "", &n));
        ck_assert(!kafka_name_read("xy.t", "x", &n));
        ck_assert(kafka_name_read("omni-wake", "", &n) && n.kind == KAFKA_WAKE);
        ck_assert(kafka_name_read("x.omni-names", "x", &n) && n.kind == KAFKA_NAMES);
}
END_TEST

/* -- what is finished ------------------------------------------------------------------------------------------------- */

/* Against one flag an offset, through any order of finishing and taking back. */
START_TEST(test_finished_offsets_are_as_a_flag_each_would_say) {
        enum { N = 200 };
        unsigned x = 7;
        for (int round = 0; round < 300; round++) {
                bool done[N + 8] = { false };
                struct kafka_track t = { .low = 0 };
                for (int step = 0; step < 150; step++) {
                        x = x * 1103515245u + 12345u;
                        int64_t at = x >> 16 & 127, len = (x >> 10 & 7) + 1;
                        if (step % 5 == 4) {
                                ck_assert(kafka_track_undo(&t, at));
                                done[at] = false;
                        } else {
                                ck_assert(kafka_track_done(&t, at, at + len));
                                for (int64_t i = at; i < at + len; i++)
                                        done[i] = true;
                        }
                        uint64_t above = 0;
                        int64_t low = 0;
                        while (low < N && done[low])
                                low++;
                        for (int64_t i = 0; i < N; i++) {
                                if (kafka_track_is_done(&t, i) != done[i])
                                        ck_abort_msg("offset %lld", (long long) i);
                                above += i > low && done[i];
                        }
                        ck_assert_int_eq(t.low, low);
                        ck_assert_uint_eq(kafka_track_above(&t), above);
                }
                kafka_track_deinit(&t);
        }
}
END_TEST

START_TEST(test_state_reads_back_from_its_text) {
        struct kafka_mark marks[] = { { 1002, 3, true, 1795425242000 }, { 1005, 2, false, 0 }, { 1009, 0, true, 0 } };
        struct kafka_state s = { .owner = 0xfedcba9876543210u, .finished = 12345, .clean = true }, back;
        struct om_buf text = OM_BUF_INIT;
        s.at[0].track.low = 1001;
        s.at[0].next = 1020;
        s.at[0].marks = marks;
        s.at[0].n_marks = 3;
        s.at[1].track.low = 1;
        s.at[1].next = 1;
        ck_assert(kafka_track_done(&s.at[0].track, 1003, 1005) && kafka_track_done(&s.at[0].track, 1010, 1011));
        ck_assert_uint_le(kafka_state_pack(&text, &s, KAFKA_METADATA_MAX), KAFKA_METADATA_MAX);
        ck_assert_int_eq(kafka_state_unpack(om_buf_span(&text), &back), 0);
        ck_assert(back.owner == s.owner && back.finished == s.finished && back.clean);
        ck_assert(back.at[0].track.low == 1001 && back.at[0].next == 1020 && back.at[0].track.n == 2 && back.at[0].n_marks == 3);
        ck_assert(kafka_track_is_done(&back.at[0].track, 1004) && !kafka_track_is_done(&back.at[0].track, 1005));
        for (int i = 0; i < 3; i++)
                ck_assert(back.at[0].marks[i].offset == marks[i].offset && back.at[0].marks[i].attempts == marks[i].attempts &&
                        back.at[0].marks[i].waiting == marks[i].waiting && back.at[0].marks[i].due_ms == marks[i].due_ms);
        kafka_state_deinit(&back);
        kafka_track_deinit(&s.at[0].track);
        om_buf_deinit(&text);
}
END_TEST

START_TEST(test_marks_that_do_not_fit_are_left_out_and_runs_never) {
        enum { N = 3000 };
        struct kafka_state s = { .owner = 1 }, back;
        struct om_buf text = OM_BUF_INIT;
        s.at[0].marks = calloc(N, sizeof(struct kafka_mark));
        for (int i = 0; i < N; i++)
                s.at[0].marks[s.at[0].n_marks++] = (struct kafka_mark){ i * 2, 2, true, 1795425242000 };
        for (int i = 0; i < 500; i++)
                ck_assert(kafka_track_done(&s.at[0].track, i * 2 + 1, i * 2 + 2));
        s.at[0].next = 2 * N;
        kafka_state_pack(&text, &s, KAFKA_METADATA_MAX);
        ck_assert_uint_le(text.len, KAFKA_METADATA_MAX + 100);
        ck_assert_int_eq(kafka_state_unpack(om_buf_span(&text), &back), 0);
        ck_assert_uint_eq(back.at[0].track.n, 500);
        ck_assert_uint_gt(back.at[0].n_marks, 10);
        ck_assert_uint_lt(back.at[0].n_marks, N);
        kafka_state_deinit(&back);
        free(s.at[0].marks);
        kafka_track_deinit(&s.at[0].track);
        om_buf_deinit(&text);
}
END_TEST

START_TEST(test_no_other_text_is_taken_for_a_state) {
        static const char *const bad[] = { "", "o1:", "o2:AAAAAAAAAAAAAAA", "hello", "o1:A", "o1:____________",
                "o1:AAAAAAAAAAAAAAAAAAAAAAAA" };
        struct kafka_state s;
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                ck_assert_msg(kafka_state_unpack(om_span_of(bad[i]), &s) == -EINVAL, "%s", bad[i]);
}
END_TEST

/* -- settings ----------------------------------------------------------------------------------------------------------- */

static int apply(const char *text, struct om_error *e, rd_kafka_conf_t **ret) {
        struct om_url *url;
        struct kafka_settings s;
        int r = om_url_parse(text, &url, e);
        if (r < 0)
                return r;
        r = om_options_read(kafka_options, url, &s, e);
        if (!r)
                r = kafka_settings_apply(&s, url, ret, e);
        om_url_free(url);
        return r;
}

START_TEST(test_wrong_urls_name_what_to_mend) {
        static const char *const wrong[][2] = { { "kafka://h/path", "path" }, { "kafka://u@h", "password" },
                { "kafka://h?tls_ca_file=/dev/null", "tls=true" }, { "kafka://h?tls=true&tls_ca_file=/nonexistent", "tls_ca_file" },
                { "kafka://h?tls=true&tls_cert_file=/dev/null", "tls_key_file" }, { "kafka://h?prefix=a/b", "prefix" },
                { "kafka://h?sasl=digest", "sasl" }, { "kafka://h?rdkafka.no.such.thing=1", "rdkafka.no.such.thing" },
                { "kafka://h?rdkafka.linger.ms=soon", "rdkafka.linger.ms" }, { "kafka://h?partitions=0", "partitions" },
                { "kafka://h?replica=3", "replicas" } };
        rd_kafka_conf_t *c = NULL;
        for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
                struct om_error e = OM_ERROR_INIT;
                ck_assert_msg(apply(wrong[i][0], &e, &c) == -EINVAL, "%s", wrong[i][0]);
                ck_assert_msg(strstr(e.message, wrong[i][1]), "%s: %s", wrong[i][0], e.message);
        }
}
END_TEST

static void property_is(rd_kafka_conf_t *c, const char *name, const char *expected) {
        char value[200];
        size_t size = sizeof value;
        ck_assert_int_eq(rd_kafka_conf_get(c, name, value, &size), RD_KAFKA_CONF_OK);
        ck_assert_str_eq(value, expected);
}

START_TEST(test_urls_become_properties_of_the_library) {
        struct om_error e = OM_ERROR_INIT;
        rd_kafka_conf_t *c = NULL;
        ck_assert_msg(
                apply("kafka://u:p%20w@one:1,two,[::1]:3?sasl=scram-sha-512&tls=yes&rdkafka.linger.ms=7&rdkafka.client.id=me", &e, &c) == 0,
                "%s", e.message);
        property_is(c, "bootstrap.servers", "one:1,two:9092,[::1]:3");
        property_is(c, "security.protocol", "sasl_ssl");
        property_is(c, "sasl.mechanisms", "SCRAM-SHA-512");
        property_is(c, "sasl.username", "u");
        property_is(c, "sasl.password", "p w");
        property_is(c, "linger.ms", "7");
        property_is(c, "client.id", "me");
        rd_kafka_conf_destroy(c);
}
END_TEST

int main(void) {
        Suite *s = suite_create("kafka");
        TCase *t = tcase_create("names, offsets, settings");
        tcase_add_test(t, test_topics_are_the_names_that_other_programs_use);
        tcase_add_test(t, test_what_a_name_cannot_hold_is_escaped_and_comes_back);
        tcase_add_test(t, test_any_topic_and_agent_make_legal_names_that_read_back);
        tcase_add_test(t, test_names_too_long_are_cut_and_stay_apart);
        tcase_add_test(t, test_a_topic_and_its_groups_are_known_for_the_same_when_cut);
        tcase_add_test(t, test_names_of_other_prefixes_and_of_kafka_are_not_ours);
        tcase_add_test(t, test_finished_offsets_are_as_a_flag_each_would_say);
        tcase_add_test(t, test_state_reads_back_from_its_text);
        tcase_add_test(t, test_marks_that_do_not_fit_are_left_out_and_runs_never);
        tcase_add_test(t, test_no_other_text_is_taken_for_a_state);
        tcase_add_test(t, test_wrong_urls_name_what_to_mend);
        tcase_add_test(t, test_urls_become_properties_of_the_library);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
