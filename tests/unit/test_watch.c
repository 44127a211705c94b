/* SPDX-License-Identifier: Apache-2.0 */
/* Watchers: what they see, what they lose, and what they cost when there is none. */
#include <check.h>
#include <stdio.h>
#include <unistd.h>

#include "../../daemon/watch.h"
#include "../lib/fake_core.h"
#include "../lib/suite.h"

static int fd;

static void set_up(void) {
        fake_set_up();
        fd = fake_connect();
}

static void tear_down(void) {
        close(fd);
        fake_tear_down();
}

static void emit(enum om_event event, const char *topic, const char *id) {
        om_watch_emit(fake.core->watch, event,
                &(struct om_watch_event){ .topic = om_span_of(topic), .id = om_span_of(id), .detail = OM_SPAN(",\"attempt\":1") });
}

static void watch(const char *params, const char *reply) {
        char body[200];

        snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.watch\",\"params\":%s}", params);
        client_send(fd, body);
        ck_assert_str_eq(client_read(fd), reply);
}

static void expect_has(const char *part) {
        const char *body = client_read(fd);

        ck_assert_ptr_nonnull(body);
        ck_assert_msg(strstr(body, part), "%s\nlacks %s", body, part);
        ck_assert_int_eq(om_json_check(om_span_of(body), 10, NULL), 0);
}

START_TEST(test_nobody_watching_is_a_mask_of_zero) {
        ck_assert_uint_eq(om_watch_mask(fake.core->watch), 0);
        watch("{\"events\":[\"ack\",\"fail\"]}", "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"watch\":1}}");
        ck_assert_uint_eq(om_watch_mask(fake.core->watch), OM_EVENT_ACK | OM_EVENT_FAIL);
        close(fd);
        fake_turn();
        ck_assert_uint_eq(om_watch_mask(fake.core->watch), 0);
        fd = fake_connect();
}
END_TEST

START_TEST(test_a_watcher_sees_the_events_and_the_topic_that_it_asked_for) {
        watch("{\"events\":[\"ack\"],\"topic\":\"t\"}", "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"watch\":1}}");
        emit(OM_EVENT_PUBLISH, "t", "1");
        emit(OM_EVENT_ACK, "u", "2");
        emit(OM_EVENT_ACK, "t", "3");
        expect_has("\"params\":{\"watch\":1,\"event\":\"ack\",\"at\":");
        ck_assert(client_quiet(fd));
}
END_TEST

START_TEST(test_without_events_all_are_seen) {
        watch("{}", "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"watch\":1}}");
        emit(OM_EVENT_DEAD_LETTER, "t", "1");
        expect_has("\"event\":\"dead_letter\"");
        close(fake_connect());
        expect_has("\"event\":\"connect\"");
        expect_has("\"event\":\"disconnect\"");
}
END_TEST

START_TEST(test_wrong_events_are_refused) {
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.watch\",\"params\":{\"events\":[\"akk\"]}}");
        expect_has("\"code\":-32602");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.watch\",\"params\":{\"events\":[]}}");
        expect_has("\"code\":-32602");
}
END_TEST

START_TEST(test_watches_of_a_connection_are_bounded) {
        for (int i = 0; i < 16; i++) {
                client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.watch\"}");
                expect_has("\"result\"");
        }
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.watch\"}");
        expect_has("\"kind\":\"limit\"");
}
END_TEST

START_TEST(test_a_watcher_that_does_not_keep_up_is_told_how_many_it_lost) {
        unsigned long long seen = 0, lost = 0, n;
        const char *body, *at;
        enum { N = 20000 };

        fake.settings.stalled_client_ms = 60000;
        watch("{\"events\":[\"ack\"]}", "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"watch\":1}}");
        for (int i = 0; i < N; i++) {
                emit(OM_EVENT_ACK, "a-topic-with-a-long-name", "some-id");
                if (i % 100 == 0)
                        fake_turn();
        }
        while (seen + lost < N) {
                body = client_read(fd);
                at = strstr(body, "\"event\":\"lost\"");
                n = 0;
                if (at) {
                        ck_assert_int_eq(sscanf(strstr(at, "\"n\":"), "\"n\":%llu", &n), 1);
                        ck_assert_uint_gt(n, 0);
                }
                lost += n;
                seen += at == NULL;
        }
        ck_assert_uint_gt(lost, 0);
        ck_assert_uint_gt(seen, 1000);
        ck_assert_uint_eq(seen + lost, N);
        /* and it goes on */
        emit(OM_EVENT_ACK, "t", "last");
        expect_has("\"id\":\"last\"");
}
END_TEST

int main(void) {
        Suite *suite = suite_create("watch");
        TCase *all = tcase_create("watch");

        tcase_add_checked_fixture(all, set_up, tear_down);
        tcase_add_test(all, test_nobody_watching_is_a_mask_of_zero);
        tcase_add_test(all, test_a_watcher_sees_the_events_and_the_topic_that_it_asked_for);
        tcase_add_test(all, test_without_events_all_are_seen);
        tcase_add_test(all, test_wrong_events_are_refused);
        tcase_add_test(all, test_watches_of_a_connection_are_bounded);
        tcase_add_test(all, test_a_watcher_that_does_not_keep_up_is_told_how_many_it_lost);
        suite_add_tcase(suite, all);
        return om_test_main(suite);
}
