/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions on socketpairs, on a real loop and a whole core with a fake bus and a fake storage: framing, pipelining, limits, half close, a
 * reader that does not read, and what an idle connection costs.
 */
#include <arpa/inet.h>
#include <check.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

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

static void expect(const char *body) { ck_assert_str_eq(client_read(fd), body); }

static void expect_has(const char *part) {
        const char *body = client_read(fd);

        ck_assert_ptr_nonnull(body);
        ck_assert_msg(strstr(body, part), "%s\nlacks %s", body, part);
}

/* -- frames and envelopes ------------------------------------------------------------------------------------------ */

START_TEST(test_a_request_is_answered_with_its_id) {
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":\"a\\u0031\",\"method\":\"ping\"}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":\"a\\u0031\",\"result\":{}}");
}
END_TEST

START_TEST(test_what_is_no_request_is_answered_and_the_connection_goes_on) {
        client_send(fd, "{");
        expect_has("\"id\":null,\"error\":{\"code\":-32700");
        client_send(fd, "[]");
        expect_has("\"id\":null,\"error\":{\"code\":-32600");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}");
        expect_has("\"id\":7,\"error\":{\"code\":-32600");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pimg\"}");
        expect_has("did you mean \\\"ping\\\"");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":1}}");
        expect_has("\"code\":-32602");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}");
}
END_TEST

START_TEST(test_a_notification_is_never_answered) {
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"ping\"}");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"no.such\"}");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"params\":{\"x\":1}}");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"params\":[]}");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
        ck_assert(client_quiet(fd));
}
END_TEST

static void expect_broken(const void *header, const char *kind) {
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}");
        client_send_raw(fd, header, 4);
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
        const char *body = client_read(fd);
        ck_assert_msg(body && strstr(body, "\"id\":null,\"error\":{\"code\":-32600") && strstr(body, kind), "%s", body);
        ck_assert(client_at_end(fd));
        /* It is gone soon, whether or not the client goes too. */
        fake_run_ms(1300);
        ck_assert_uint_eq(fake.core->n_sessions, 0);
}

START_TEST(test_an_empty_frame_ends_the_connection_with_an_error) { expect_broken("\0\0\0\0", "\"kind\":\"invalid\""); }
END_TEST
START_TEST(test_a_frame_above_the_limit_ends_the_connection_with_an_error) { expect_broken("\xff\xff\xff\xff", "\"kind\":\"limit\""); }
END_TEST

START_TEST(test_frames_in_pieces_of_one_byte_are_put_together) {
        struct om_buf b = OM_BUF_INIT;
        uint32_t len;

        /* A frame of 300 KiB, larger than one read, and a small one behind it. */
        om_buf_put(&b, "\0\0\0\0", 4);
        om_buf_lit(&b, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"");
        for (int i = 0; i < 300 << 10; i++)
                om_buf_putc(&b, ' ');
        om_buf_putc(&b, '}');
        len = htonl((uint32_t) b.len - 4);
        memcpy(b.data, &len, 4);
        om_buf_put(&b, "\0\0\0\x28", 4);
        om_buf_lit(&b, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}");
        for (size_t i = 0; i < b.len; i++) {
                client_send_raw(fd, b.data + i, 1);
                if (i < 1000 || i % 64 == 0 || i > b.len - 60) /* not after each: a frame has its time, and sanitizers take theirs */
                        om_loop_run_once(fake.loop, false);
        }
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}");
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_a_frame_as_large_as_allowed_is_taken_and_one_byte_more_is_not) {
        size_t max = fake.settings.max_frame_bytes = 1 << 20;
        struct om_buf b = OM_BUF_INIT;
        uint32_t len = htonl((uint32_t) max);

        om_buf_put(&b, &len, 4);
        om_buf_lit(&b, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"");
        while (b.len < max + 3)
                om_buf_putc(&b, ' ');
        om_buf_putc(&b, '}');
        client_send_raw(fd, b.data, b.len);
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
        om_buf_deinit(&b);
        len = htonl((uint32_t) max + 1);
        client_send_raw(fd, &len, 4);
        expect_has("\"kind\":\"limit\"");
        ck_assert(client_at_end(fd));
}
END_TEST

/* A length alone must not cost its size in memory. */
START_TEST(test_a_large_length_that_nothing_follows_costs_little) {
        size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
        int others[50];

        for (int i = 0; i < 50; i++) {
                others[i] = fake_connect();
                client_send_raw(others[i], "\x00\xff\x00\x00{", 5);
        }
        fake_turn();
        ck_assert_uint_lt(mallinfo2().uordblks + mallinfo2().hblkhd, before + 50 * 160 * 1024);
        for (int i = 0; i < 50; i++)
                close(others[i]);
}
END_TEST

/* -- pipelining ---------------------------------------------------------------------------------------------------- */

START_TEST(test_ten_thousand_pipelined_requests_are_answered_in_order_of_completion) {
        struct om_buf b = OM_BUF_INIT;
        char body[100], wanted[100];

        for (int i = 0; i < 10000; i++) {
                int n = snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"ping\"}", i);
                uint32_t len = htonl((uint32_t) n);

                om_buf_put(&b, &len, 4);
                om_buf_puts(&b, body);
        }
        /* All that the socket takes before anything is read, so that frames wait in the session for its next turn. */
        size_t at = 0;
        for (int i = 0; i < 10000;) {
                ssize_t n = send(fd, b.data + at, b.len - at, MSG_NOSIGNAL);

                if (n > 0)
                        at += (size_t) n;
                fake_turn();
                snprintf(wanted, sizeof wanted, "{\"jsonrpc\":\"2.0\",\"id\":%d,\"result\":{}}", i);
                expect(wanted);
                i++;
        }
        om_buf_deinit(&b);
        ck_assert(client_quiet(fd));
}
END_TEST

static void ask_topics(int id) {
        char body[100];

        snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"bus.topics\"}", id);
        client_send(fd, body);
}

START_TEST(test_replies_may_come_out_of_order) {
        mem.faults.query_hold = true;
        ask_topics(1);
        ask_topics(2);
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"ping\"}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{}}");
        ck_assert_uint_eq(mem_held(), 2);
        mem_release_topics(1, 0);
        expect("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"topics\":[]}}");
        mem_release_topics(0, 0);
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"topics\":[]}}");
}
END_TEST

START_TEST(test_above_the_in_flight_limit_nothing_more_is_read_until_some_are_answered) {
        mem.faults.query_hold = true;
        for (int i = 0; i < OM_IN_FLIGHT; i++) {
                ask_topics(i);
                if (i % 100 == 0)
                        fake_turn();
        }
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":\"last\",\"method\":\"ping\"}");
        ck_assert(client_quiet(fd));
        ck_assert_uint_ge(mem_held(), 1);
        mem_release_topics(0, 0);
        expect("{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"topics\":[]}}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":\"last\",\"result\":{}}");
        for (int i = 1; i < OM_IN_FLIGHT; i++) {
                mem_release_topics(0, 0);
                fake_turn();
        }
        for (int i = 1; i < OM_IN_FLIGHT; i++)
                ck_assert_ptr_nonnull(client_read(fd));
}
END_TEST

START_TEST(test_a_busy_session_does_not_starve_another) {
        struct om_buf b = OM_BUF_INIT;
        int other = fake_connect();

        for (int i = 0; i < 4000; i++) {
                om_buf_put(&b, "\0\0\0\x21", 4);
                om_buf_lit(&b, "{\"jsonrpc\":\"2.0\",\"method\":\"ping\"}");
        }
        ck_assert_int_gt(send(fd, b.data, b.len, MSG_NOSIGNAL), 40000);
        client_send(other, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}");
        om_loop_run_once(fake.loop, false);
        char c;
        ck_assert_int_eq(recv(other, &c, 1, MSG_PEEK), 1);
        close(other);
        om_buf_deinit(&b);
}
END_TEST

/* -- ends ---------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_client_that_half_closes_still_gets_its_answers) {
        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        shutdown(fd, SHUT_WR);
        ck_assert(client_quiet(fd));
        ck_assert_uint_eq(fake.core->n_sessions, 1);
        mem_release_topics(0, 0);
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"topics\":[]}}");
        ck_assert(client_at_end(fd));
        ck_assert_uint_eq(fake.core->n_sessions, 0);
}
END_TEST

START_TEST(test_a_client_that_goes_after_half_closing_is_noticed) {
        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        shutdown(fd, SHUT_WR);
        fake_turn();
        ck_assert_uint_eq(fake.core->n_sessions, 1);
        close(fd);
        fake_turn();
        ck_assert_uint_eq(fake.core->n_sessions, 0);
        mem_release_topics(0, 0);
        fake_turn();
        fd = fake_connect();
}
END_TEST

static bool timer_over;
static void on_timer(evutil_socket_t unused, short what, void *ctx) { timer_over = true; }

START_TEST(test_a_half_closed_connection_does_not_keep_the_loop_busy) {
        struct event *timer = event_new(om_loop_base(fake.loop), -1, 0, on_timer, NULL);
        struct timeval tv = { .tv_usec = 50000 };
        unsigned wake_ups = 0;

        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        shutdown(fd, SHUT_WR);
        fake_turn();
        timer_over = false;
        event_add(timer, &tv);
        for (; !timer_over; wake_ups++)
                om_loop_run_once(fake.loop, true);
        event_free(timer);
        ck_assert_uint_le(wake_ups, 3);
        mem_release_topics(0, 0);
}
END_TEST

START_TEST(test_a_request_whose_client_is_gone_is_finished_without_an_answer) {
        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        close(fd);
        fake_turn();
        ck_assert_uint_eq(fake.core->n_sessions, 0);
        mem_release_topics(0, 3);
        fake_turn();
        fd = fake_connect();
}
END_TEST

START_TEST(test_a_client_that_dies_in_the_middle_of_a_frame_loses_that_frame_only) {
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}");
        client_send_raw(fd, "\0\0\1\0{\"json", 10);
        shutdown(fd, SHUT_WR);
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
        ck_assert(client_at_end(fd));
}
END_TEST

/* -- output -------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_reader_that_does_not_read_is_bounded_and_ended) {
        int64_t start = om_clock_ms();

        mem.faults.query_hold = true;
        for (int i = 0; i < 60; i++)
                ask_topics(i);
        fake_turn();
        /* 60 replies of 170 KB: far more than a socket takes. */
        for (int i = 0; i < 60; i++)
                mem_release_topics(0, 1000);
        fake_turn();
        /* Nothing more is read from it now. */
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bus.topics\"}");
        fake_turn();
        ck_assert_uint_eq(mem_held(), 0);
        ck_assert_uint_eq(fake.core->n_sessions, 1);
        while (fake.core->n_sessions > 0 && om_clock_ms() < start + 5000)
                fake_run_ms(10);
        ck_assert_uint_eq(fake.core->n_sessions, 0);
        ck_assert_int_ge(om_clock_ms() - start, 190);
}
END_TEST

START_TEST(test_a_reader_that_does_not_read_gets_errors_for_large_replies_above_its_bound) {
        const char *body;
        unsigned n_limit = 0, n_ok = 0;

        fake.settings.max_frame_bytes = 1 << 20;
        fake.settings.stalled_client_ms = 60000;
        mem.faults.query_hold = true;
        for (int i = 0; i < 60; i++)
                ask_topics(i);
        fake_turn();
        for (int i = 0; i < 60; i++)
                mem_release_topics(0, 1000);
        fake_turn();
        for (int i = 0; i < 60; i++) {
                body = client_read(fd);
                ck_assert_ptr_nonnull(body);
                n_limit += strstr(body, "\"kind\":\"limit\"") != NULL;
                n_ok += strstr(body, "\"result\"") != NULL;
        }
        ck_assert_uint_gt(n_limit, 20);
        ck_assert_uint_gt(n_ok, 5);
        /* It reads again: all is well. */
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}");
}
END_TEST

START_TEST(test_a_slow_reader_gets_everything) {
        mem.faults.query_hold = true;
        for (int i = 0; i < 10; i++)
                ask_topics(i);
        fake_turn();
        for (int i = 0; i < 10; i++)
                mem_release_topics(0, 1000);
        for (int i = 0; i < 10; i++) {
                char wanted[40];
                const char *body;

                fake_run_ms(30);
                body = client_read(fd);
                snprintf(wanted, sizeof wanted, "{\"jsonrpc\":\"2.0\",\"id\":%d,", i);
                ck_assert_msg(body && strncmp(body, wanted, strlen(wanted)) == 0, "%.60s", body);
                ck_assert_str_eq(body + strlen(body) - 4, "}]}}");
        }
}
END_TEST

START_TEST(test_a_reply_above_the_frame_limit_becomes_an_error) {
        fake.settings.max_frame_bytes = 4096;
        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        mem_release_topics(0, 1000);
        expect_has("\"id\":1,\"error\":{\"code\":-32000");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}");
        expect("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}");
}
END_TEST

/* -- what it costs ------------------------------------------------------------------------------------------------- */

START_TEST(test_a_thousand_idle_connections_cost_at_most_8_kib_each) {
        enum { N = 1000 };
        static int fds[N];
        struct rlimit files = { 4096, 4096 };
        size_t before, after;

        setrlimit(RLIMIT_NOFILE, &files);
        before = mallinfo2().uordblks + mallinfo2().hblkhd;
        for (int i = 0; i < N; i++) {
                fds[i] = fake_connect();
                client_send(fds[i], "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\",\"params\":{\"client\":\"idle\"}}");
                ck_assert_ptr_nonnull(client_read(fds[i]));
        }
        after = mallinfo2().uordblks + mallinfo2().hblkhd;
        printf("an idle connection costs %zu bytes\n", (after - before) / N);
        ck_assert_uint_le((after - before) / N, 8192);
        for (int i = 0; i < N; i++)
                close(fds[i]);
        /* Their ends have a slice of each turn, too. */
        for (int i = 0; i < 1000 && fake.core->n_sessions > 1; i++)
                fake_turn();
        ck_assert_uint_eq(fake.core->n_sessions, 1);
}
END_TEST

/* -- calls --------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_call_that_the_bus_has_no_room_for_goes_out_later) {
        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        mem.faults.query_refuse = 1;
        ask_topics(2);
        fake_turn();
        ck_assert_uint_eq(mem_held(), 1);
        mem_release_topics(0, 0);
        expect("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"topics\":[]}}");
        ck_assert_uint_eq(mem_held(), 1);
        mem_release_topics(0, 0);
        expect("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"topics\":[]}}");
}
END_TEST

START_TEST(test_a_call_is_cancelled_at_its_deadline) {
        fake.settings.call_timeout_ms = 20;
        mem.faults.query_hold = true;
        ask_topics(1);
        expect_has("\"kind\":\"timeout\"");
        ck_assert_uint_eq(mem_held(), 0);
}
END_TEST

START_TEST(test_a_call_that_cannot_be_cancelled_is_answered_at_its_deadline) {
        fake.settings.call_timeout_ms = 20;
        mem.faults.query_hold = mem.faults.no_cancel = true;
        ask_topics(1);
        expect_has("\"kind\":\"timeout\"");
        ck_assert_uint_eq(mem_held(), 1);
        mem_release_topics(0, 1);
        ck_assert(client_quiet(fd));
}
END_TEST

/* -- stopping ------------------------------------------------------------------------------------------------------ */

static bool stopped;
static void on_stopped(struct om_post *post) { stopped = true; }

START_TEST(test_a_stop_tells_clients_and_answers_what_is_open) {
        struct om_post post = { .fn = on_stopped };

        stopped = false;
        mem.faults.query_hold = true;
        ask_topics(1);
        fake_turn();
        om_core_stop(fake.core, &post);
        expect("{\"jsonrpc\":\"2.0\",\"method\":\"daemon.stopping\",\"params\":{\"grace_ms\":50}}");
        expect_has("\"id\":1,\"error\":{\"code\":-32000,\"message\":\"the daemon is stopping\",\"data\":{\"kind\":\"unavailable\"}}");
        ck_assert(client_at_end(fd));
        while (!stopped)
                om_loop_run_once(fake.loop, true);
        ck_assert_uint_eq(fake.core->n_sessions, 0);
}
END_TEST

static void free_stopped(void) {
        close(fd);
        om_core_free(fake.core);
        fake.core = NULL;
        om_loop_free(fake.loop);
        rmdir(fake.folder);
}

int main(void) {
        Suite *suite = suite_create("session");
        TCase *frames = tcase_create("frames"), *pipelining = tcase_create("pipelining"), *ends = tcase_create("ends"),
              *output = tcase_create("output"), *cost = tcase_create("cost"), *calls = tcase_create("calls"), *stop = tcase_create("stop");
        TCase *all[] = { frames, pipelining, ends, output, cost, calls };

        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
                tcase_add_checked_fixture(all[i], set_up, tear_down);
                tcase_set_timeout(all[i], 60);
                suite_add_tcase(suite, all[i]);
        }
        tcase_add_test(frames, test_a_request_is_answered_with_its_id);
        tcase_add_test(frames, test_what_is_no_request_is_answered_and_the_connection_goes_on);
        tcase_add_test(frames, test_a_notification_is_never_answered);
        tcase_add_test(frames, test_an_empty_frame_ends_the_connection_with_an_error);
        tcase_add_test(frames, test_a_frame_above_the_limit_ends_the_connection_with_an_error);
        tcase_add_test(frames, test_frames_in_pieces_of_one_byte_are_put_together);
        tcase_add_test(frames, test_a_frame_as_large_as_allowed_is_taken_and_one_byte_more_is_not);
        tcase_add_test(frames, test_a_large_length_that_nothing_follows_costs_little);
        tcase_add_test(pipelining, test_ten_thousand_pipelined_requests_are_answered_in_order_of_completion);
        tcase_add_test(pipelining, test_replies_may_come_out_of_order);
        tcase_add_test(pipelining, test_above_the_in_flight_limit_nothing_more_is_read_until_some_are_answered);
        tcase_add_test(pipelining, test_a_busy_session_does_not_starve_another);
        tcase_add_test(ends, test_a_client_that_half_closes_still_gets_its_answers);
        tcase_add_test(ends, test_a_client_that_goes_after_half_closing_is_noticed);
        tcase_add_test(ends, test_a_half_closed_connection_does_not_keep_the_loop_busy);
        tcase_add_test(ends, test_a_request_whose_client_is_gone_is_finished_without_an_answer);
        tcase_add_test(ends, test_a_client_that_dies_in_the_middle_of_a_frame_loses_that_frame_only);
        tcase_add_test(output, test_a_reader_that_does_not_read_is_bounded_and_ended);
        tcase_add_test(output, test_a_reader_that_does_not_read_gets_errors_for_large_replies_above_its_bound);
        tcase_add_test(output, test_a_slow_reader_gets_everything);
        tcase_add_test(output, test_a_reply_above_the_frame_limit_becomes_an_error);
        tcase_add_test(cost, test_a_thousand_idle_connections_cost_at_most_8_kib_each);
        tcase_add_test(calls, test_a_call_that_the_bus_has_no_room_for_goes_out_later);
        tcase_add_test(calls, test_a_call_is_cancelled_at_its_deadline);
        tcase_add_test(calls, test_a_call_that_cannot_be_cancelled_is_answered_at_its_deadline);
        tcase_add_checked_fixture(stop, set_up, free_stopped);
        tcase_add_test(stop, test_a_stop_tells_clients_and_answers_what_is_open);
        suite_add_tcase(suite, stop);

        return om_test_main(suite);
}
