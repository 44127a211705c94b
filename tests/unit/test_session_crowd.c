/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many sessions, some of which misbehave: what they hold together is bounded, one that is quiet hardly waits for those that are not, and
 * who does not finish a frame is ended. On socketpairs, on a real loop and a whole core with a fake bus and a fake storage.
 */
#include <arpa/inet.h>
#include <check.h>
#include <malloc.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../daemon/metrics.h"
#include "../lib/fake_core.h"
#include "../lib/suite.h"

enum { CROWD_MAX = 200, TOTAL_BYTES = 1 << 20, FRAME_BYTES = 64 << 10 };
static const char ping[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}", pong[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}";

static int quiet, crowd[CROWD_MAX];
static unsigned n_crowd;

static void set_up(void) {
        struct rlimit files = { 4096, 4096 };

        setrlimit(RLIMIT_NOFILE, &files);
        fake_set_up();
        quiet = fake_connect();
        n_crowd = 0;
}

static void come(unsigned n) {
        while (n-- > 0)
                crowd[n_crowd++] = fake_connect();
}

static void go(void) {
        while (n_crowd > 0)
                close(crowd[--n_crowd]);
}

static void tear_down(void) {
        close(quiet);
        go();
        fake_tear_down();
}

static size_t allocated(void) {
        struct mallinfo2 m = mallinfo2();

        return m.uordblks + m.hblkhd;
}

static void expect_pong(void) {
        client_send(quiet, ping);
        ck_assert_str_eq(client_read(quiet), pong);
}

/* As much as its socket takes. */
static void fill(int fd, const char *data, size_t len) {
        for (size_t at = 0;;) {
                ssize_t n = send(fd, data + at, len - at, MSG_NOSIGNAL);

                if (n < 0)
                        return;
                at = (at + (size_t) n) % len;
        }
}

static void put_frames(struct om_buf *b, const char *body, unsigned n) {
        uint32_t len = htonl((uint32_t) strlen(body));

        while (n-- > 0) {
                om_buf_put(b, &len, 4);
                om_buf_puts(b, body);
        }
}

static uint64_t frames(void) { return om_metrics_daemon(fake.core->metrics)->frames_in; }

/* -- time ---------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_quiet_client_is_served_before_those_that_ask_without_end) {
        struct om_buf b = OM_BUF_INIT;
        uint64_t before;
        char c;

        put_frames(&b, "{\"jsonrpc\":\"2.0\",\"method\":\"ping\"}", 100);
        come(200);
        for (unsigned i = 0; i < n_crowd; i++)
                fill(crowd[i], b.data, b.len);
        /* Each has had its first turn, and has more. */
        for (int i = 0; i < 300; i++)
                om_loop_run_once(fake.loop, false);
        before = frames();
        client_send(quiet, ping);
        while (recv(quiet, &c, 1, MSG_PEEK) < 0)
                om_loop_run_once(fake.loop, false);
        ck_assert_uint_lt(frames() - before, 10000);
        ck_assert_str_eq(client_read(quiet), pong);
        /* They were not forgotten: all is handled in the end. */
        for (before = 0; frames() > before;) {
                before = frames();
                for (int i = 0; i < 100; i++)
                        om_loop_run_once(fake.loop, false);
        }
        ck_assert_uint_gt(before, 200 * 1000);
        om_buf_deinit(&b);
}
END_TEST

static void ask_topics(int fd, unsigned n) {
        while (n-- > 0)
                client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"bus.topics\"}");
        fake_turn();
}

START_TEST(test_one_with_many_calls_waiting_does_not_hold_up_another) {
        unsigned released = 0;
        char c;

        mem.faults.query_hold = true;
        come(1);
        ask_topics(crowd[0], 300);
        ask_topics(quiet, 1);
        ck_assert_uint_lt(mem_held(), 300);
        while (recv(quiet, &c, 1, MSG_PEEK) < 0) {
                mem_release_topics(0, 0);
                released++;
                fake_turn();
        }
        ck_assert_uint_lt(released, 100);
        while (mem_held() > 0) {
                mem_release_topics(0, 0);
                released++;
                fake_turn();
        }
        ck_assert_uint_eq(released, 301);
}
END_TEST

START_TEST(test_calls_that_wait_for_the_bus_leave_room_at_the_storage) {
        mem.faults.query_hold = true;
        come(1);
        ask_topics(crowd[0], 300);
        client_send(quiet, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"config.list\"}");
        ck_assert_ptr_nonnull(strstr(client_read(quiet), "\"id\":3,\"result\""));
}
END_TEST

/* -- memory -------------------------------------------------------------------------------------------------------- */

START_TEST(test_the_more_do_not_read_the_less_waits_for_each) {
        struct om_buf b = OM_BUF_INIT;
        size_t before;

        put_frames(&b, ping, 100);
        fake.settings.session_total_bytes = TOTAL_BYTES;
        fake.settings.max_frame_bytes = FRAME_BYTES;
        fake.settings.stalled_client_ms = 60000;
        come(40);
        expect_pong();
        before = allocated();
        for (int i = 0; i < 30; i++) {
                for (unsigned k = 0; k < n_crowd; k++)
                        fill(crowd[k], b.data, b.len);
                for (int k = 0; k < 50; k++)
                        om_loop_run_once(fake.loop, false);
        }
        ck_assert_uint_lt(allocated() - before, TOTAL_BYTES + (TOTAL_BYTES >> 2));
        /* Nobody was ended for it. */
        ck_assert_uint_eq(fake.core->n_sessions, n_crowd + 1);
        expect_pong();
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_when_too_much_is_held_those_with_most_are_ended) {
        char *half = calloc(1, FRAME_BYTES);
        size_t before;
        unsigned left;

        half[2] = (char) (FRAME_BYTES >> 8) - 1;
        half[3] = (char) 0xff;
        fake.settings.session_total_bytes = TOTAL_BYTES;
        fake.settings.max_frame_bytes = FRAME_BYTES;
        come(100);
        expect_pong();
        before = allocated();
        for (unsigned i = 0; i < n_crowd; i++) {
                /* One of ten has more of its frame sent than the others. */
                send(crowd[i], half, i % 10 == 0 ? FRAME_BYTES / 2 : FRAME_BYTES / 8, MSG_NOSIGNAL);
                fake_turn();
        }
        fake_run_ms(50);
        left = fake.core->n_sessions - 1;
        ck_assert_uint_le(allocated() - before, TOTAL_BYTES + (TOTAL_BYTES >> 2));
        ck_assert_uint_ge(left, 80);
        ck_assert_uint_lt(left, 100);
        for (unsigned i = 0; i < n_crowd; i++) {
                char c;

                if (i % 10 != 0)
                        ck_assert_msg(recv(crowd[i], &c, 1, 0) < 0, "one with little was ended");
        }
        expect_pong();
        free(half);
}
END_TEST

START_TEST(test_requests_of_clients_that_are_gone_count_until_they_are_done) {
        mem.faults.query_hold = true;
        fake.settings.session_total_bytes = TOTAL_BYTES;
        fake.settings.max_frame_bytes = FRAME_BYTES;
        come(1);
        for (int i = 0; i < 40; i++) {
                for (int k = 0; k < 20; k++)
                        client_send(crowd[0], "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"bus.topics\"}");
                fake_turn();
                go();
                come(1);
        }
        /* Half of the total is taken, so each gets only a few requests accepted. */
        size_t before = allocated();
        for (int k = 0; k < 20; k++)
                client_send(crowd[0], "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"bus.topics\"}");
        fake_turn();
        ck_assert_uint_lt(allocated() - before, 40 << 10);
        while (mem_held() > 0) {
                mem_release_topics(0, 0);
                fake_turn();
        }
        for (int k = 0; k < 20; k++)
                ck_assert_ptr_nonnull(client_read(crowd[0]));
}
END_TEST

/* -- frames that do not end ---------------------------------------------------------------------------------------- */

START_TEST(test_a_frame_that_does_not_end_in_time_ends_the_connection) {
        int64_t start = om_clock_ms();
        const char *body;

        fake.settings.slow_client_ms = 100;
        come(1);
        client_send(crowd[0], ping);
        ck_assert_str_eq(client_read(crowd[0]), pong);
        client_send_raw(crowd[0], "\0\0\0\x28{\"json", 10);
        body = client_read(crowd[0]);
        ck_assert_msg(body && strstr(body, "\"id\":null,\"error\"") && strstr(body, "\"kind\":\"timeout\""), "%s", body);
        ck_assert_int_ge(om_clock_ms() - start, 90);
        ck_assert(client_at_end(crowd[0]));
        expect_pong();
}
END_TEST

START_TEST(test_bytes_that_come_slowly_do_not_make_the_time_longer) {
        static const char frame[] = "\0\0\0\x28{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}";
        unsigned sent = 0;

        fake.settings.slow_client_ms = 100;
        come(1);
        while (client_quiet(crowd[0]) && sent < sizeof frame - 2) {
                client_send_raw(crowd[0], &frame[sent++], 1);
                fake_run_ms(10);
        }
        ck_assert_uint_lt(sent, 30);
        ck_assert_ptr_nonnull(strstr(client_read(crowd[0]), "\"kind\":\"timeout\""));
}
END_TEST

START_TEST(test_whoever_finishes_its_frames_is_left_alone) {
        int64_t end = om_clock_ms() + 500;

        fake.settings.slow_client_ms = 100;
        come(1);
        while (om_clock_ms() < end) {
                client_send_raw(quiet, "\0\0\0\x28{\"json", 10);
                fake_run_ms(20);
                client_send_raw(quiet, "rpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}", 34);
                ck_assert_str_eq(client_read(quiet), pong);
        }
        /* Nor is one that says nothing. */
        ck_assert(client_quiet(crowd[0]));
        ck_assert_uint_eq(fake.core->n_sessions, 2);
}
END_TEST

START_TEST(test_time_in_which_nothing_is_read_does_not_count) {
        fake.settings.slow_client_ms = 50;
        mem.faults.query_hold = true;
        ask_topics(quiet, OM_IN_FLIGHT / 2);
        ask_topics(quiet, OM_IN_FLIGHT / 2);
        /* It is held back, in the middle of a frame. */
        client_send_raw(quiet, "\0\0\0\x28{\"json", 10);
        fake_run_ms(200);
        client_send_raw(quiet, "rpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}", 34);
        for (int i = 0; i < OM_IN_FLIGHT; i++) {
                mem_release_topics(0, 0);
                fake_turn();
        }
        for (int i = 0; i < OM_IN_FLIGHT + 1; i++)
                ck_assert_msg(strstr(client_read(quiet), "\"result\""), "ended");
}
END_TEST

int main(void) {
        Suite *suite = suite_create("session_crowd");
        TCase *c = tcase_create("crowd");

        tcase_add_checked_fixture(c, set_up, tear_down);
        tcase_set_timeout(c, 60);
        tcase_add_test(c, test_a_quiet_client_is_served_before_those_that_ask_without_end);
        tcase_add_test(c, test_one_with_many_calls_waiting_does_not_hold_up_another);
        tcase_add_test(c, test_calls_that_wait_for_the_bus_leave_room_at_the_storage);
        tcase_add_test(c, test_the_more_do_not_read_the_less_waits_for_each);
        tcase_add_test(c, test_when_too_much_is_held_those_with_most_are_ended);
        tcase_add_test(c, test_requests_of_clients_that_are_gone_count_until_they_are_done);
        tcase_add_test(c, test_a_frame_that_does_not_end_in_time_ends_the_connection);
        tcase_add_test(c, test_bytes_that_come_slowly_do_not_make_the_time_longer);
        tcase_add_test(c, test_whoever_finishes_its_frames_is_left_alone);
        tcase_add_test(c, test_time_in_which_nothing_is_read_does_not_count);
        suite_add_tcase(suite, c);
        return om_test_main(suite);
}
