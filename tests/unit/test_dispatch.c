/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dispatcher, through real sessions over socket pairs, on a bus and a storage in memory that write down the order of effects and fail
 * on demand (tests/lib/mem_backends.c). One thread: each wait turns the loop by hand.
 */
#include <check.h>
#include <jansson.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../daemon/dispatch.h"
#include "../../daemon/log.h"
#include "../../daemon/metrics.h"
#include "../../proto/frame.h"
#include "../lib/memory_backends.h"
#include "../lib/suite.h"

static struct om_loop *loop;
static struct om_core *core;
static struct om_settings settings;
static char state_dir[64];

/* -- the daemon's side --------------------------------------------------------------------------------------------- */

static void turns(int n) {
        while (n--)
                om_loop_run_once(loop, false);
}

static void start_with(unsigned capabilities) {
        struct om_error e = OM_ERROR_INIT;

        om_log_open(OM_LOG_STDERR, OM_LOG_ERROR);
        mem_use(capabilities);
        strcpy(state_dir, "/tmp/om-dispatch-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(state_dir));
        settings = (struct om_settings){
                .event_bus_url = (char *) "membus:",
                .storage_url = (char *) "memstore:",
                .max_connections = 100,
                .max_frame_bytes = 1 << 20,
                .prefetch = 10,
                .dlq_retry_limit = 3,
                .retry_backoff_ms = 1000,
                .retry_backoff_max_ms = 60000,
                .result_ttl_ms = 86400000,
                .idempotency_window_ms = 86400000,
                .publish_timeout_ms = 200,
                .call_timeout_ms = 200,
                .stop_grace_ms = 300,
                .stalled_client_ms = 30000,
                .session_output_bytes = 256 << 10,
                .slow_client_ms = 30000,
                .session_total_bytes = 256 << 20,
                .metrics_interval_ms = 60000,
        };
        ck_assert_int_eq(om_loop_new(&loop, state_dir, &e), 0);
        ck_assert_msg(om_core_new(loop, &settings, NULL, &core, &e) == 0, "%s", e.message);
        turns(5);
}
static void start(void) { start_with(0); }

static void end(void) {
        om_core_free(core);
        om_loop_free(loop);
        rmdir(state_dir);
        core = NULL;
}

/* -- a client's side ----------------------------------------------------------------------------------------------- */

struct client {
        int fd;
        int last_id;
        char in[4 << 20];
        size_t len;
        json_t *seen[4096]; /* messages that nobody asked for yet */
        size_t n_seen;
};

static struct client *connect_client(void) {
        struct client *c = calloc(1, sizeof *c);
        int fds[2];

        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        ck_assert_int_eq(om_session_new(core, fds[0], NULL), 0);
        c->fd = fds[1];
        return c;
}
static void disconnect(struct client *c) {
        if (c->fd >= 0)
                close(c->fd);
        for (size_t i = 0; i < c->n_seen; i++)
                json_decref(c->seen[i]);
        free(c);
        if (core)
                turns(8);
}

static void send_text(struct client *c, const char *text) {
        uint32_t len = (uint32_t) strlen(text);
        unsigned char head[4] = { (unsigned char) (len >> 24), (unsigned char) (len >> 16), (unsigned char) (len >> 8),
                (unsigned char) len };
        size_t done = 0;

        ck_assert_int_eq(write(c->fd, head, 4), 4);
        while (done < len) {
                ssize_t n = write(c->fd, text + done, len - done);

                if (n > 0)
                        done += (size_t) n;
                turns(1);
        }
}

static void take_in(struct client *c) {
        ssize_t n = read(c->fd, c->in + c->len, sizeof c->in - c->len);
        struct om_span body;
        size_t at = 0;

        if (n > 0)
                c->len += (size_t) n;
        while (om_frame_peek(c->in + at, c->len - at, OM_FRAME_MAX_DEFAULT, &body, NULL) == 1) {
                json_t *message = json_loadb(body.p, body.len, 0, NULL);

                ck_assert_msg(message != NULL, "no JSON: %.*s", (int) (body.len < 2000 ? body.len : 2000), body.p);
                ck_assert_uint_lt(c->n_seen, 4096);
                c->seen[c->n_seen++] = message;
                at += 4 + body.len;
        }
        memmove(c->in, c->in + at, c->len - at);
        c->len -= at;
}

static const char *method_of(json_t *message) { return json_string_value(json_object_get(message, "method")); }

/* The next message with that id (method NULL) or method; NULL when none came within ms. The caller's. */
static json_t *receive(struct client *c, int id, const char *method, int ms) {
        int64_t until = om_clock_ms() + ms;

        for (;;) {
                for (size_t i = 0; i < c->n_seen; i++) {
                        json_t *m = c->seen[i];
                        const char *name = method_of(m);

                        if (method ? !name || strcmp(name, method) != 0 : name || json_integer_value(json_object_get(m, "id")) != id)
                                continue;
                        memmove(&c->seen[i], &c->seen[i + 1], (--c->n_seen - i) * sizeof *c->seen);
                        return m;
                }
                if (om_clock_ms() >= until)
                        return NULL;
                turns(1);
                take_in(c);
        }
}

static int request(struct client *c, const char *method, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int request(struct client *c, const char *method, const char *format, ...) {
        struct om_buf b = OM_BUF_INIT;
        char *params;
        va_list args;

        va_start(args, format);
        ck_assert_int_ge(vasprintf(&params, format, args), 0);
        va_end(args);
        om_buf_printf(&b, "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"%s\",\"params\":%s}", ++c->last_id, method, params);
        om_buf_putc(&b, '\0');
        send_text(c, b.data);
        om_buf_deinit(&b);
        free(params);
        return c->last_id;
}
/* The result, borrowed from the reply in *keep. */
static json_t *result_of(struct client *c, int id, json_t **keep) {
        *keep = receive(c, id, NULL, 3000);
        ck_assert_msg(*keep != NULL, "no reply");
        json_t *result = json_object_get(*keep, "result");
        if (!result) {
                char *text = json_dumps(*keep, 0);
                ck_abort_msg("an error: %s", text);
        }
        return result;
}
static void expect_ok(struct client *c, int id) {
        json_t *keep;

        result_of(c, id, &keep);
        json_decref(keep);
}
static void expect_error(struct client *c, int id, const char *kind) {
        json_t *reply = receive(c, id, NULL, 3000);
        const char *got;

        ck_assert_msg(reply != NULL, "no reply");
        got = json_string_value(json_object_get(json_object_get(json_object_get(reply, "error"), "data"), "kind"));
        ck_assert_msg(got && strcmp(got, kind) == 0, "expected %s: %s", kind, json_dumps(reply, 0));
        json_decref(reply);
}
static void serve(struct client *c, const char *topic, const char *agent, const char *config) {
        expect_ok(c, request(c, "agent.register", "{\"name\":\"%s\",\"topic\":\"%s\",\"config\":%s}", agent, topic, config));
}
static void publish(struct client *c, const char *topic, const char *id) {
        expect_ok(c,
                request(c, "task.publish", "{\"task\":{\"id\":\"%s\",\"topic\":\"%s\",\"payload\":{\"content\":{\"n\":\"%s\"}}}}", id,
                        topic, id));
}
/* Waits until n tasks have come; their delivery numbers. Checks that there were no more. */
struct got {
        int n;
        int delivery[1100], attempt[1100];
        char id[1100][64];
};
static void collect(struct client *c, struct got *got, int n) {
        int ms = 2000;

        got->n = 0;
        for (;;) {
                json_t *m = receive(c, 0, "task.deliver", got->n < n ? ms : 20), *task;
                size_t i;

                if (!m)
                        break;
                json_array_foreach(json_object_get(json_object_get(m, "params"), "tasks"), i, task) {
                        got->delivery[got->n] = (int) json_integer_value(json_object_get(task, "delivery"));
                        got->attempt[got->n] = (int) json_integer_value(json_object_get(task, "attempt"));
                        snprintf(got->id[got->n], sizeof got->id[0], "%s", json_string_value(json_object_get(task, "id")));
                        got->n++;
                }
                json_decref(m);
        }
        ck_assert_int_eq(got->n, n);
}
static struct got got;

/* -- the way of a task --------------------------------------------------------------------------------------------- */

START_TEST(test_a_published_task_is_delivered_saved_and_acknowledged_in_this_order) {
        struct client *c = connect_client();
        json_t *keep, *record;

        serve(c, "greet", "greeter", "{}");
        publish(c, "greet", "t1");
        collect(c, &got, 1);
        ck_assert_int_eq(got.delivery[0], 1);
        ck_assert_int_eq(got.attempt[0], 1);
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1,\"result\":{\"a\":1.50}}]}"));
        ck_assert(mem_before("put t1;", "ack t1;"));
        record = result_of(c, request(c, "task.get", "{\"id\":\"t1\"}"), &keep);
        ck_assert_str_eq(json_string_value(json_object_get(record, "status")), "completed");
        ck_assert_str_eq(json_string_value(json_object_get(record, "agent")), "greeter");
        ck_assert_str_eq(json_string_value(json_object_get(json_object_get(record, "content"), "n")), "t1");
        json_decref(keep);
        disconnect(c);
}
END_TEST

START_TEST(test_a_task_published_before_the_first_agent_is_waiting_for_it) {
        struct client *c = connect_client();

        publish(c, "early", "t1");
        serve(c, "early", "late", "{}");
        collect(c, &got, 1);
        disconnect(c);
}
END_TEST

START_TEST(test_two_groups_each_get_every_task) {
        struct client *a = connect_client(), *b = connect_client();

        serve(a, "t", "one", "{}");
        serve(b, "t", "two", "{}");
        for (int i = 0; i < 5; i++)
                publish(a, "t", (char[]){ 'x', (char) ('0' + i), 0 });
        collect(a, &got, 5);
        collect(b, &got, 5);
        disconnect(a);
        disconnect(b);
}
END_TEST

START_TEST(test_workers_of_a_group_share_and_the_bus_is_asked_once) {
        struct client *a = connect_client(), *b = connect_client();
        int ra, rb;

        ra = request(a, "agent.register", "{\"name\":\"n\",\"topic\":\"t\"}");
        rb = request(b, "agent.register", "{\"name\":\"n\",\"topic\":\"t\"}");
        expect_ok(a, ra);
        expect_ok(b, rb);
        ck_assert_uint_eq(mem.subscribes, 1);
        expect_ok(a,
                request(a, "task.publish",
                        "{\"tasks\":[{\"topic\":\"t\",\"payload\":{\"content\":1}},{\"topic\":\"t\",\"payload\":{\"content\":2}},"
                        "{\"topic\":\"t\",\"payload\":{\"content\":3}},{\"topic\":\"t\",\"payload\":{\"content\":4}}]}"));
        collect(a, &got, 2);
        collect(b, &got, 2);
        disconnect(a);
        disconnect(b);
}
END_TEST

START_TEST(test_credit_is_never_exceeded) {
        struct client *c = connect_client();

        serve(c, "t", "n", "{\"prefetch\":5}");
        for (int i = 0; i < 12; i++)
                publish(c, "t", (char[]){ 'x', (char) ('a' + i), 0 });
        collect(c, &got, 5);
        ck_assert_uint_eq(mem.max_out, 5);
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1},{\"delivery\":2}]}"));
        collect(c, &got, 2);
        ck_assert_int_eq(got.delivery[0], 6);
        ck_assert_uint_eq(mem.max_out, 5);
        disconnect(c);
}
END_TEST

START_TEST(test_a_closed_connection_gives_its_tasks_to_another_worker_counted) {
        struct client *a = connect_client(), *b;

        serve(a, "t", "n", "{}");
        publish(a, "t", "t1");
        publish(a, "t", "t2");
        collect(a, &got, 2);
        b = connect_client();
        serve(b, "t", "n", "{}");
        disconnect(a);
        collect(b, &got, 2);
        ck_assert_int_eq(got.attempt[0], 2);
        disconnect(b);
}
END_TEST

START_TEST(test_a_half_closed_connection_that_waits_for_a_result_gives_its_tasks_to_another_worker) {
        struct client *a = connect_client(), *b = connect_client();
        json_t *reply;
        int ack, waits;

        serve(a, "t", "n", "{}");
        publish(a, "t", "t1");
        publish(a, "t", "t2");
        collect(a, &got, 2);
        serve(b, "t", "n", "{}");
        mem.faults.put_hold = true;
        ack = request(a, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}");
        waits = request(a, "task.get", "{\"id\":\"t2\",\"wait_ms\":60000}");
        ck_assert_int_eq(shutdown(a->fd, SHUT_WR), 0); /* it can neither ack nor fail the other one any more */
        collect(b, &got, 1);
        ck_assert_str_eq(got.id[0], "t2");
        ck_assert_int_eq(got.attempt[0], 2);
        mem_release();
        expect_ok(a, ack);
        mem.faults.put_hold = false;
        expect_ok(b, request(b, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        expect_ok(a, waits);
        ck_assert_ptr_null(reply = receive(a, 0, "task.deliver", 20));
        json_decref(reply);
        disconnect(a);
        disconnect(b);
}
END_TEST

START_TEST(test_a_task_that_kills_its_workers_ends_in_the_dead_letters) {
        for (int i = 1; i <= 3; i++) {
                struct client *c = connect_client();

                serve(c, "t", "n", "{\"dlq_retry_limit\":2}");
                if (i == 1)
                        publish(c, "t", "t1");
                collect(c, &got, 1);
                ck_assert_int_eq(got.attempt[0], i);
                disconnect(c);
        }
        turns(10);
        ck_assert_uint_eq(mem_dead("t", "n"), 1);
        ck_assert(mem_before("put t1;", "dead t1;"));
        ck_assert(mem_logged("letter worker_lost"));
}
END_TEST

START_TEST(test_what_a_client_never_saw_goes_back_uncounted_on_unregister) {
        struct client *a = connect_client();

        serve(a, "t", "n", "{}");
        publish(a, "t", "t1");
        collect(a, &got, 1);
        expect_ok(a, request(a, "agent.unregister", "{\"subscription\":1}"));
        turns(5);
        ck_assert(mem_logged("release t1;"));
        expect_error(a, request(a, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"), "conflict");
        serve(a, "t", "n", "{}");
        collect(a, &got, 1);
        ck_assert_int_eq(got.attempt[0], 1);
        ck_assert_int_eq(got.delivery[0], 2);
        disconnect(a);
}
END_TEST

/* -- the end of a lease -------------------------------------------------------------------------------------------- */

START_TEST(test_an_ack_after_the_lease_is_a_conflict_and_a_number_never_given_is_not_found) {
        struct client *c = connect_client();

        serve(c, "t", "n", "{}");
        expect_error(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"), "not_found");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        expect_error(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":2}]}"), "not_found");
        expect_error(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":0}]}"), "not_found");
        expect_error(c, request(c, "task.extend", "{\"deliveries\":[99]}"), "not_found");
        expect_ok(c, request(c, "task.extend", "{\"deliveries\":[1]}"));
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        expect_error(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"), "conflict");
        expect_error(c, request(c, "task.fail", "{\"delivery\":1,\"error\":{\"message\":\"x\"}}"), "conflict");
        expect_error(c, request(c, "task.extend", "{\"deliveries\":[1]}"), "conflict");
        disconnect(c);
}
END_TEST

START_TEST(test_two_acks_of_one_delivery_in_a_turn_acknowledge_once) {
        struct client *c = connect_client();
        int first, second;

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        first = request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1},{\"delivery\":1}]}");
        second = request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}");
        expect_error(c, first, "conflict");
        expect_error(c, second, "conflict");
        ck_assert(mem_logged("ack t1;"));
        disconnect(c);
}
END_TEST

START_TEST(test_an_idle_worker_loses_the_lease_and_its_late_ack_is_a_conflict) {
        struct client *a = connect_client(), *b;
        json_t *revoked;

        serve(a, "t", "n", "{\"reclaim_idle_ms\":60}");
        publish(a, "t", "t1");
        collect(a, &got, 1);
        expect_ok(a, request(a, "agent.pause", "{\"topic\":\"t\",\"name\":\"n\"}"));
        revoked = receive(a, 0, "task.revoked", 2000);
        ck_assert_ptr_nonnull(revoked);
        ck_assert_int_eq(json_integer_value(json_array_get(json_object_get(json_object_get(revoked, "params"), "deliveries"), 0)), 1);
        json_decref(revoked);
        expect_error(a, request(a, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"), "conflict");
        turns(5);
        ck_assert(mem_logged("retry t1;"));
        b = connect_client();
        disconnect(a);
        disconnect(b);
}
END_TEST

START_TEST(test_extend_keeps_the_lease) {
        struct client *c = connect_client();
        int64_t until;

        serve(c, "t", "n", "{\"reclaim_idle_ms\":150}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        for (until = om_clock_ms() + 500; om_clock_ms() < until;) {
                expect_ok(c, request(c, "task.extend", "{\"deliveries\":[1]}"));
                usleep(20000);
                turns(1);
        }
        ck_assert(!mem_logged("retry t1;"));
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        disconnect(c);
}
END_TEST

START_TEST(test_what_the_bus_takes_back_is_revoked_and_settled_away) {
        struct client *c = connect_client();
        json_t *revoked;

        serve(c, "t", "n", "{\"prefetch\":1}");
        publish(c, "t", "t1");
        publish(c, "t", "t2");
        collect(c, &got, 1);
        mem_revoke("t1");
        revoked = receive(c, 0, "task.revoked", 1000);
        ck_assert_ptr_nonnull(revoked);
        json_decref(revoked);
        collect(c, &got, 1);
        ck_assert_str_eq(got.id[0], "t2");
        expect_error(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"), "conflict");
        ck_assert(mem_logged("stale t1;"));
        disconnect(c);
}
END_TEST

/* -- failing ------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_failed_task_comes_back_with_the_next_attempt_then_is_dead_with_its_record) {
        struct client *c = connect_client();
        json_t *keep, *record;

        serve(c, "t", "n", "{\"dlq_retry_limit\":1}");
        publish(c, "t", "t1");
        for (int i = 1; i <= 2; i++) {
                collect(c, &got, 1);
                ck_assert_int_eq(got.attempt[0], i);
                expect_ok(c,
                        request(c, "task.fail", "{\"delivery\":%d,\"error\":{\"message\":\"no\",\"type\":\"ValueError\"},\"delay_ms\":0}",
                                got.delivery[0]));
        }
        ck_assert(mem_before("retry t1;", "dead t1;"));
        ck_assert(mem_before("put t1;", "dead t1;"));
        ck_assert(mem_logged("letter ValueError"));
        record = result_of(c, request(c, "task.get", "{\"id\":\"t1\",\"agent\":\"n\"}"), &keep);
        ck_assert_str_eq(json_string_value(json_object_get(record, "status")), "failed");
        ck_assert_str_eq(json_string_value(json_object_get(record, "error")), "no");
        ck_assert_int_eq(json_integer_value(json_object_get(record, "attempts")), 2);
        json_decref(keep);
        disconnect(c);
}
END_TEST

START_TEST(test_retry_false_goes_to_the_dead_letters_at_once) {
        struct client *c = connect_client();

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        expect_ok(c, request(c, "task.fail", "{\"delivery\":1,\"error\":{\"message\":\"no\"},\"retry\":false}"));
        ck_assert_uint_eq(mem_dead("t", "n"), 1);
        disconnect(c);
}
END_TEST

/* -- outputs ------------------------------------------------------------------------------------------------------- */

static void ack_with_outputs(struct client *c) {
        serve(c, "in", "n", "{}");
        expect_ok(c,
                request(c, "task.publish",
                        "{\"task\":{\"id\":\"t1\",\"topic\":\"in\",\"correlation_id\":\"corr\",\"tenant_id\":\"ten\",\"payload\":{"
                        "\"content\":0,"
                        "\"reply_to\":\"replies\"}}}"));
        collect(c, &got, 1);
        mem_log_clear();
        expect_ok(c,
                request(c, "task.ack",
                        "{\"deliveries\":[{\"delivery\":1,\"result\":{\"r\":1},\"publish\":[{\"id\":\"o1\",\"topic\":\"out\",\"payload\":{"
                        "\"content\":"
                        "1}},{\"topic\":\"out\",\"payload\":{\"content\":2}}]}]}"));
}

START_TEST(test_outputs_are_on_the_bus_before_the_ack_and_after_the_result) {
        struct client *c = connect_client();
        json_t *m, *task;

        ack_with_outputs(c);
        ck_assert(mem_before("put t1;", "publish o1;"));
        ck_assert(mem_before("publish o1;", "ack t1;"));
        ck_assert(mem_logged("batch PUBLISH 3;"));
        serve(c, "replies", "r", "{}");
        m = receive(c, 0, "task.deliver", 2000);
        ck_assert_ptr_nonnull(m);
        task = json_array_get(json_object_get(json_object_get(m, "params"), "tasks"), 0);
        ck_assert_str_eq(json_string_value(json_object_get(task, "causation_id")), "t1");
        ck_assert_str_eq(json_string_value(json_object_get(task, "correlation_id")), "corr");
        ck_assert_str_eq(json_string_value(json_object_get(task, "tenant_id")), "ten");
        ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(json_object_get(task, "payload"), "content"), "r")), 1);
        ck_assert_int_eq((int) strlen(json_string_value(json_object_get(task, "id"))), OM_ID_LEN);
        ck_assert_int_eq(json_string_value(json_object_get(task, "id"))[14], '8');
        json_decref(m);
        disconnect(c);
}
END_TEST

START_TEST(test_with_exactly_once_outputs_are_part_of_the_settlement) {
        struct client *c;

        end();
        start_with(OM_BUS_EXACTLY_ONCE);
        c = connect_client();
        ack_with_outputs(c);
        ck_assert(mem_before("put t1;", "batch SETTLE 1;"));
        ck_assert(mem_before("batch SETTLE 1;", "publish o1;"));
        ck_assert(!mem_logged("batch PUBLISH"));
        disconnect(c);
}
END_TEST

START_TEST(test_a_repeated_ack_publishes_under_the_same_ids) {
        struct client *c = connect_client();
        const char *ack = "{\"deliveries\":[{\"delivery\":1,\"publish\":[{\"topic\":\"out\",\"payload\":{\"content\":2}}]}]}";
        char *first, *second;

        serve(c, "in", "n", "{}");
        publish(c, "in", "t1");
        collect(c, &got, 1);
        mem.faults.settle_fail = -EAGAIN;
        expect_error(c, request(c, "task.ack", "%s", ack), "unavailable");
        mem.faults.settle_fail = 0;
        expect_ok(c, request(c, "task.ack", "%s", ack));
        first = strstr(mem.log, "batch PUBLISH 1;publish ");
        first = strstr(first + 10, "batch PUBLISH 1;publish ");
        ck_assert_ptr_nonnull(first);
        second = strstr(first + 10, "batch PUBLISH 1;publish ");
        ck_assert_ptr_nonnull(second);
        ck_assert_int_eq(strncmp(first + 24, second + 24, OM_ID_LEN), 0);
        disconnect(c);
}
END_TEST

START_TEST(test_a_bad_output_changes_nothing_and_the_lease_goes_on) {
        struct client *c = connect_client();

        serve(c, "in", "n", "{}");
        publish(c, "in", "t1");
        collect(c, &got, 1);
        expect_error(c,
                request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1,\"publish\":[{\"topic\":\"\",\"payload\":{\"content\":2}}]}]}"),
                "invalid");
        expect_error(c,
                request(c, "task.ack",
                        "{\"deliveries\":[{\"delivery\":1,\"publish\":[{\"topic\":\"o\",\"key\":\"k\",\"payload\":{\"content\":2}}]}]}"),
                "unsupported");
        ck_assert_uint_eq(mem.puts, 0);
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        disconnect(c);
}
END_TEST

/* -- faults at each step ------------------------------------------------------------------------------------------- */

START_TEST(test_a_fault_at_any_step_of_an_ack_leaves_the_lease_and_a_repeat_succeeds) {
        struct client *c = connect_client();
        const char *ack = "{\"deliveries\":[{\"delivery\":1,\"publish\":[{\"topic\":\"out\",\"payload\":{\"content\":2}}]}]}";
        static const struct mem_faults none;

        serve(c, "in", "n", "{}");
        publish(c, "in", "t1");
        collect(c, &got, 1);
        for (int step = 0; step < 9; step++) {
                mem.faults.put_refuse = step == 0 ? -EAGAIN : 0;
                mem.faults.put_fail = step == 1 ? -EIO : 0;
                mem.faults.put_outcome = step == 2 ? -EIO : 0;
                mem.faults.publish_refuse = step == 3 ? -EAGAIN : 0;
                mem.faults.publish_fail = step == 4 ? -EIO : 0;
                mem.faults.settle_refuse = step == 5 ? -EAGAIN : 0;
                mem.faults.settle_fail = step == 6 ? -EIO : 0;
                mem.faults.settle_outcome = step == 7 ? -EIO : 0;
                mem.faults.put_hold = step == 8;
                expect_error(c, request(c, "task.ack", "%s", ack),
                        step == 8                                     ? "timeout"
                                : step == 0 || step == 3 || step == 5 ? "unavailable"
                                                                      : "internal");
                ck_assert(!mem_logged("ack t1;"));
        }
        mem.faults = none;
        expect_ok(c, request(c, "task.ack", "%s", ack));
        ck_assert(mem_logged("ack t1;"));
        disconnect(c);
}
END_TEST

START_TEST(test_an_error_in_the_middle_of_a_batch_names_the_deliveries_that_failed) {
        struct client *c = connect_client();
        json_t *reply, *data;
        int id;

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        publish(c, "t", "t2");
        publish(c, "t", "t3");
        collect(c, &got, 3);
        mem.faults.settle_outcome = -ESTALE;
        mem.faults.settle_outcome_id = "t2";
        id = request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1},{\"delivery\":2},{\"delivery\":77},{\"delivery\":3}]}");
        reply = receive(c, id, NULL, 2000);
        data = json_object_get(json_object_get(reply, "error"), "data");
        ck_assert_str_eq(json_string_value(json_object_get(data, "kind")), "not_found"); /* 77 was known at once */
        data = json_object_get(data, "deliveries");
        ck_assert_uint_eq(json_array_size(data), 2);
        ck_assert_int_eq(json_integer_value(json_array_get(data, 0)), 77);
        ck_assert_int_eq(json_integer_value(json_array_get(data, 1)), 2);
        json_decref(reply);
        ck_assert(mem_logged("ack t1;") && mem_logged("stale t2;") && mem_logged("ack t3;"));
        ck_assert(mem_logged("batch PUT 3;") && mem_logged("batch SETTLE 3;"));
        disconnect(c);
}
END_TEST

START_TEST(test_a_notified_ack_is_repeated_by_the_daemon) {
        struct client *c = connect_client();
        int64_t until = om_clock_ms() + 3000;

        settings.call_timeout_ms = 2000;
        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        mem.faults.put_fail = -EAGAIN;
        send_text(c, "{\"jsonrpc\":\"2.0\",\"method\":\"task.ack\",\"params\":{\"deliveries\":[{\"delivery\":1,\"result\":\"kept\"}]}}");
        turns(10);
        ck_assert_uint_ge(mem.puts, 1);
        mem.faults.put_fail = 0;
        while (!mem_logged("ack t1;") && om_clock_ms() < until)
                turns(1);
        ck_assert(mem_before("put t1;", "ack t1;"));
        disconnect(c);
}
END_TEST

START_TEST(test_leases_of_a_lost_worker_are_settled_when_the_bus_is_back) {
        struct client *c = connect_client();

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        mem.faults.settle_refuse = -EAGAIN;
        mem_bus_state(OM_BUS_CONNECTING);
        disconnect(c);
        ck_assert(!mem_logged("retry t1;"));
        mem.faults.settle_refuse = 0;
        mem_bus_state(OM_BUS_READY);
        turns(5);
        ck_assert(mem_logged("retry t1;"));
}
END_TEST

START_TEST(test_a_connection_that_closes_during_its_ack_does_not_undo_it) {
        struct client *c = connect_client();

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        mem.faults.put_hold = true;
        request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}");
        turns(3);
        disconnect(c);
        mem_release();
        turns(8);
        ck_assert(mem_logged("ack t1;"));
        ck_assert(!mem_logged("retry t1;"));
}
END_TEST

/* -- publishing ---------------------------------------------------------------------------------------------------- */

START_TEST(test_publishes_of_one_turn_are_one_batch_and_keep_their_order) {
        struct client *c = connect_client();
        int ids[20];

        for (int i = 0; i < 20; i++) {
                struct om_buf b = OM_BUF_INIT;

                om_buf_lit(&b, "0000");
                om_buf_printf(&b,
                        "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"task.publish\",\"params\":{\"task\":{\"id\":\"p%02d\",\"topic\":\"t\","
                        "\"payload\":{"
                        "\"content\":%d}}}}",
                        ids[i] = ++c->last_id, i, i);
                b.data[0] = b.data[1] = 0;
                b.data[2] = (char) ((b.len - 4) >> 8);
                b.data[3] = (char) (b.len - 4);
                ck_assert_int_eq(write(c->fd, b.data, b.len), (int) b.len);
                om_buf_deinit(&b);
        }
        for (int i = 0; i < 20; i++)
                expect_ok(c, ids[i]);
        ck_assert_uint_eq(mem.publishes, 1);
        ck_assert(mem_before("publish p00;", "publish p01;"));
        ck_assert(mem_before("publish p18;", "publish p19;"));
        disconnect(c);
}
END_TEST

START_TEST(test_bad_tasks_of_a_batch_are_errors_in_place) {
        struct client *c = connect_client();
        json_t *keep, *results;

        results = json_object_get(result_of(c,
                                          request(c, "task.publish",
                                                  "{\"tasks\":[{\"id\":\"a\",\"topic\":\"t\",\"payload\":{\"content\":1}},{\"topic\":\"t\"}"
                                                  ",{\"id\":\"b\",\"topic\":\"t\","
                                                  "\"payload\":{\"content\":null}},{\"id\":\"c\",\"topic\":\"t\",\"key\":\"k\",\"payload\":"
                                                  "{\"content\":1}}]}"),
                                          &keep),
                "results");
        ck_assert_uint_eq(json_array_size(results), 4);
        ck_assert_str_eq(json_string_value(json_object_get(json_array_get(results, 0), "id")), "a");
        ck_assert_ptr_nonnull(
                strstr(json_string_value(json_object_get(json_object_get(json_array_get(results, 1), "error"), "message")), "tasks[1]"));
        ck_assert_str_eq(json_string_value(json_object_get(json_array_get(results, 2), "id")), "b");
        ck_assert_ptr_nonnull(
                strstr(json_string_value(json_object_get(json_object_get(json_array_get(results, 3), "error"), "message")), "key"));
        json_decref(keep);
        expect_error(c, request(c, "task.publish", "{\"tasks\":[]}"), "invalid");
        expect_error(c, request(c, "task.publish", "{}"), "invalid");
        expect_error(c, request(c, "task.publish", "{\"tusk\":{}}"), "invalid");
        json_t *all = receive(c, request(c, "task.publish", "{\"tasks\":[{\"topic\":\"t\"}]}"), NULL, 1000);
        ck_assert_ptr_nonnull(json_object_get(json_array_get(json_object_get(json_object_get(all, "result"), "results"), 0), "error"));
        json_decref(all);
        disconnect(c);
}
END_TEST

START_TEST(test_a_bus_without_room_is_tried_again_after_a_completion) {
        struct client *c = connect_client();
        int first, second;

        mem.faults.publish_hold = true;
        first = request(c, "task.publish", "{\"task\":{\"id\":\"a\",\"topic\":\"t\",\"payload\":{\"content\":1}}}");
        turns(3);
        mem.faults.publish_refuse = -ENOBUFS;
        second = request(c, "task.publish", "{\"task\":{\"id\":\"b\",\"topic\":\"t\",\"payload\":{\"content\":1}}}");
        turns(5);
        ck_assert_uint_eq(mem.publishes, 1);
        mem.faults.publish_refuse = 0;
        mem_release();
        expect_ok(c, first);
        expect_ok(c, second);
        ck_assert(mem_before("publish a;", "publish b;"));
        disconnect(c);
}
END_TEST

START_TEST(test_a_publish_that_the_bus_does_not_confirm_times_out_and_is_cancelled) {
        struct client *c = connect_client();

        mem.faults.publish_hold = true;
        expect_error(c, request(c, "task.publish", "{\"task\":{\"topic\":\"t\",\"payload\":{\"content\":1}}}"), "timeout");
        ck_assert_uint_eq(mem.cancels, 1);
        mem_release();
        disconnect(c);
}
END_TEST

START_TEST(test_a_publish_is_refused_at_once_while_the_bus_is_away) {
        struct client *c = connect_client();

        mem_bus_state(OM_BUS_CONNECTING);
        expect_error(c, request(c, "task.publish", "{\"task\":{\"topic\":\"t\",\"payload\":{\"content\":1}}}"), "unavailable");
        mem_bus_state(OM_BUS_READY);
        publish(c, "t", "t1");
        disconnect(c);
}
END_TEST

static json_t *publish_key(struct client *c, const char *id, json_t **keep) {
        return result_of(c,
                request(c, "task.publish",
                        "{\"task\":{\"id\":\"%s\",\"topic\":\"t\",\"idempotency_key\":\"k\",\"payload\":{\"content\":1}}}", id),
                keep);
}

START_TEST(test_an_idempotency_key_publishes_once_on_a_bus_that_has_none) {
        struct client *c = connect_client();
        json_t *keep, *result;

        result = publish_key(c, "a", &keep);
        ck_assert_str_eq(json_string_value(json_object_get(result, "id")), "a");
        ck_assert_ptr_null(json_object_get(result, "duplicate"));
        json_decref(keep);
        result = publish_key(c, "b", &keep);
        ck_assert_str_eq(json_string_value(json_object_get(result, "id")), "a");
        ck_assert(json_is_true(json_object_get(result, "duplicate")));
        json_decref(keep);
        ck_assert(!mem_logged("publish b;"));
        disconnect(c);
}
END_TEST

#define WITH_KEY(id) "{\"id\":\"" id "\",\"topic\":\"t\",\"idempotency_key\":\"k\",\"payload\":{\"content\":1}}"

/* In one request, and in two: who comes second gets the first one's outcome, and nothing else of its batch waits for that. */
START_TEST(test_publishes_with_one_key_at_once_are_one_task) {
        struct client *c = connect_client();
        json_t *keep, *result;
        int first = request(c, "task.publish", "{\"task\":" WITH_KEY("a") "}");
        int second = request(c, "task.publish",
                "{\"tasks\":[" WITH_KEY("b") ",{\"id\":\"c\",\"topic\":\"t\",\"payload\":{\"content\":1}}," WITH_KEY("d") "]}");

        result = result_of(c, first, &keep);
        ck_assert_str_eq(json_string_value(json_object_get(result, "id")), "a");
        json_decref(keep);
        result = json_object_get(result_of(c, second, &keep), "results");
        for (size_t i = 0; i < 3; i++) {
                json_t *one = json_array_get(result, i);

                ck_assert_str_eq(json_string_value(json_object_get(one, "id")), i == 1 ? "c" : "a");
                ck_assert_int_eq(json_is_true(json_object_get(one, "duplicate")), i != 1);
        }
        json_decref(keep);
        ck_assert(mem_logged("publish a;") && mem_logged("publish c;") && !mem_logged("publish b;") && !mem_logged("publish d;"));
        disconnect(c);
}
END_TEST

START_TEST(test_who_waits_for_a_publish_with_its_key_that_fails_is_told_to_publish_again) {
        struct client *c = connect_client();
        json_t *keep;

        mem.faults.publish_fail = -EIO;
        int first = request(c, "task.publish", "{\"task\":" WITH_KEY("a") "}");
        int second = request(c, "task.publish", "{\"task\":" WITH_KEY("b") "}");
        expect_error(c, first, "internal");
        expect_error(c, second, "unavailable");
        mem.faults.publish_fail = 0;
        ck_assert_str_eq(json_string_value(json_object_get(publish_key(c, "b", &keep), "id")), "a");
        json_decref(keep);
        disconnect(c);
}
END_TEST

START_TEST(test_a_key_whose_first_publish_failed_is_published_under_the_first_id) {
        struct client *c = connect_client();
        json_t *keep, *result;

        mem.faults.publish_fail = -EIO;
        expect_error(c,
                request(c, "task.publish",
                        "{\"task\":{\"id\":\"a\",\"topic\":\"t\",\"idempotency_key\":\"k\",\"payload\":{\"content\":1}}}"),
                "internal");
        mem.faults.publish_fail = 0;
        result = publish_key(c, "b", &keep);
        ck_assert_str_eq(json_string_value(json_object_get(result, "id")), "a");
        ck_assert_ptr_null(json_object_get(result, "duplicate"));
        ck_assert(mem_logged("publish a;"));
        json_decref(keep);
        disconnect(c);
}
END_TEST

/* -- results ------------------------------------------------------------------------------------------------------- */

START_TEST(test_who_waits_for_a_result_is_woken_when_it_is_saved) {
        struct client *c = connect_client(), *w = connect_client();
        int any, mine, other;
        json_t *keep;

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        expect_error(w, request(w, "task.get", "{\"id\":\"t1\"}"), "not_found");
        any = request(w, "task.get", "{\"id\":\"t1\",\"wait_ms\":5000}");
        mine = request(w, "task.get", "{\"id\":\"t1\",\"agent\":\"n\",\"wait_ms\":5000}");
        other = request(w, "task.get", "{\"id\":\"t1\",\"agent\":\"m\",\"wait_ms\":100}");
        turns(5);
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1,\"result\":7}]}"));
        ck_assert_int_eq(json_integer_value(json_object_get(result_of(w, any, &keep), "result")), 7);
        json_decref(keep);
        ck_assert_int_eq(json_integer_value(json_object_get(result_of(w, mine, &keep), "result")), 7);
        json_decref(keep);
        expect_error(w, other, "timeout");
        request(w, "task.get", "{\"id\":\"never\",\"wait_ms\":86400000}");
        turns(5);
        disconnect(w);
        disconnect(c);
}
END_TEST

START_TEST(test_results_are_listed_and_deleted_and_search_names_the_storage) {
        struct client *c = connect_client();
        json_t *keep;

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        ck_assert_uint_eq(json_array_size(json_object_get(result_of(c, request(c, "task.list", "{}"), &keep), "tasks")), 1);
        json_decref(keep);
        ck_assert_int_eq(
                json_integer_value(json_object_get(result_of(c, request(c, "task.delete", "{\"id\":\"t1\"}"), &keep), "deleted")), 1);
        json_decref(keep);
        expect_error(c, request(c, "task.search", "{\"text\":\"x\"}"), "unsupported");
        disconnect(c);
}
END_TEST

START_TEST(test_save_results_false_saves_nothing_on_success) {
        struct client *c = connect_client();

        serve(c, "t", "n", "{\"save_results\":false}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        ck_assert_uint_eq(mem.puts, 0);
        ck_assert(mem_logged("ack t1;"));
        disconnect(c);
}
END_TEST

/* -- groups -------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_paused_group_gets_nothing_until_it_is_resumed) {
        struct client *c = connect_client();
        struct om_span t = OM_SPAN("t"), n = OM_SPAN("n");

        serve(c, "t", "n", "{}");
        om_dispatch_pause(core->dispatch, t, n, true);
        publish(c, "t", "t1");
        collect(c, &got, 0);
        ck_assert_uint_eq(mem_waiting("t", "n"), 1);
        om_dispatch_pause(core->dispatch, t, n, false);
        collect(c, &got, 1);
        disconnect(c);
}
END_TEST

static bool ended;
static void on_ended(struct om_post *post) { ended = true; }

START_TEST(test_a_group_deleted_while_tasks_are_leased_ends_cleanly) {
        struct client *c = connect_client();
        struct om_post done = { .fn = on_ended };
        json_t *m;

        ended = false;
        serve(c, "t", "n", "{\"prefetch\":2}");
        publish(c, "t", "t1");
        publish(c, "t", "t2");
        publish(c, "t", "t3");
        collect(c, &got, 2);
        mem.faults.put_hold = true;
        int ack = request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}");
        turns(3);
        om_dispatch_end(core->dispatch, OM_SPAN("t"), OM_SPAN("n"), "deleted", &done);
        turns(5);
        ck_assert(!ended); /* the ack is still being carried out */
        m = receive(c, 0, "agent.ended", 1000);
        ck_assert_ptr_nonnull(m);
        json_decref(m);
        int again = request(c, "agent.register", "{\"name\":\"n\",\"topic\":\"t\"}");
        turns(5);
        mem_release();
        expect_ok(c, ack);
        turns(8);
        ck_assert(ended);
        ck_assert_uint_eq(mem.unsubscribes, 1);
        ck_assert(!mem_logged("LEASED AT UNSUBSCRIBE"));
        ck_assert(mem_logged("release t2;"));
        expect_ok(c, again);
        collect(c, &got, 2);
        disconnect(c);
        turns(8);
        ck_assert_uint_eq(om_dispatch_groups(core->dispatch), 0);
        ck_assert_uint_eq(mem.unsubscribes, 2);
}
END_TEST

START_TEST(test_a_deletion_while_the_bus_is_away_is_answered_and_the_group_ends_when_it_is_back) {
        struct client *c = connect_client();
        json_t *reply;

        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        mem.faults.settle_refuse = -EAGAIN;
        mem_bus_state(OM_BUS_CONNECTING);
        reply = receive(c, request(c, "agent.delete", "{\"topic\":\"t\",\"name\":\"n\"}"), NULL, 3000);
        ck_assert_msg(reply != NULL, "no reply");
        json_decref(reply);
        ck_assert_uint_eq(c->n_seen, 1); /* the reply has been taken: agent.ended is left */
        ck_assert_uint_eq(om_dispatch_groups(core->dispatch), 1);
        mem.faults.settle_refuse = 0;
        mem_bus_state(OM_BUS_READY);
        turns(8);
        ck_assert(mem_logged("release t1;"));
        ck_assert_uint_eq(om_dispatch_groups(core->dispatch), 0);
        disconnect(c);
}
END_TEST

START_TEST(test_a_slow_reader_is_given_a_bounded_amount_and_others_get_the_rest) {
        struct client *slow = connect_client(), *c = connect_client();
        char *big = malloc(100001);
        int n = 0;
        json_t *m;

        memset(big, 'x', 100000);
        big[100000] = '\0';
        serve(slow, "t", "n", "{\"prefetch\":100}");
        for (int i = 0; i < 40; i++)
                expect_ok(c, request(c, "task.publish", "{\"task\":{\"topic\":\"t\",\"payload\":{\"content\":\"%s\"}}}", big));
        serve(c, "t", "n", "{\"prefetch\":100}");
        while ((m = receive(c, 0, "task.deliver", 300))) {
                n += (int) json_array_size(json_object_get(json_object_get(m, "params"), "tasks"));
                json_decref(m);
        }
        /* The slow one has what its socket and 256 KiB of output hold, about a dozen. */
        ck_assert_int_ge(n, 20);
        ck_assert_int_lt(n, 40);
        free(big);
        disconnect(slow);
        disconnect(c);
}
END_TEST

/* -- stopping ------------------------------------------------------------------------------------------------------ */

START_TEST(test_a_stop_waits_for_what_is_leased_and_takes_its_ack) {
        struct client *c = connect_client();
        struct om_post done = { .fn = on_ended };

        ended = false;
        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        core->stopping = true;
        om_dispatch_stop(core->dispatch, 5000, &done);
        turns(5);
        ck_assert(!ended);
        expect_error(c, request(c, "task.publish", "{\"task\":{\"topic\":\"t\",\"payload\":{\"content\":1}}}"), "unavailable");
        expect_ok(c, request(c, "task.ack", "{\"deliveries\":[{\"delivery\":1}]}"));
        turns(5);
        ck_assert(ended);
        ck_assert(mem_logged("ack t1;"));
        disconnect(c);
}
END_TEST

START_TEST(test_after_the_grace_what_is_leased_is_released_uncounted) {
        struct client *c = connect_client();
        struct om_post done = { .fn = on_ended };
        int64_t until = om_clock_ms() + 3000;

        ended = false;
        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        core->stopping = true;
        om_dispatch_stop(core->dispatch, 100, &done);
        while (!ended && om_clock_ms() < until)
                turns(1);
        ck_assert(ended);
        ck_assert(mem_logged("release t1;"));
        ck_assert(!mem_logged("retry t1;"));
        disconnect(c);
}
END_TEST

START_TEST(test_a_stop_ends_although_the_bus_is_away) {
        struct client *c = connect_client();
        struct om_post done = { .fn = on_ended };
        int64_t until = om_clock_ms() + 3000;

        ended = false;
        serve(c, "t", "n", "{}");
        publish(c, "t", "t1");
        collect(c, &got, 1);
        mem_bus_state(OM_BUS_CONNECTING);
        mem.faults.settle_refuse = -EAGAIN;
        core->stopping = true;
        om_dispatch_stop(core->dispatch, 100, &done);
        while (!ended && om_clock_ms() < until)
                turns(1);
        ck_assert(ended);
        disconnect(c);
}
END_TEST

START_TEST(test_a_registration_that_the_bus_answers_while_the_daemon_stops_is_refused_and_ended) {
        struct client *c = connect_client();
        struct om_post done = { .fn = on_ended };
        int64_t until = om_clock_ms() + 3000;
        int id;

        ended = false;
        mem.faults.subscribe_hold = mem.faults.no_cancel = true;
        id = request(c, "agent.register", "{\"name\":\"n\",\"topic\":\"t\"}");
        turns(5);
        ck_assert_uint_eq(mem_held(), 1);
        om_core_stop(core, &done);
        turns(10); /* it waits for the bus */
        ck_assert(!ended);
        ck_assert_uint_eq(mem.unsubscribes, 0);
        mem_release();
        expect_error(c, id, "unavailable");
        ck_assert_uint_eq(mem.unsubscribes, 1);
        while (!ended && om_clock_ms() < until)
                turns(1);
        ck_assert(ended);
        disconnect(c);
}
END_TEST

START_TEST(test_many_tasks_go_their_way_in_batches) {
        struct client *c = connect_client();
        struct om_buf b = OM_BUF_INIT;

        serve(c, "t", "n", "{\"prefetch\":1000}");
        for (int round = 0; round < 5; round++) {
                om_buf_clear(&b);
                om_buf_lit(&b, "{\"tasks\":[");
                for (int i = 0; i < 1000; i++)
                        om_buf_printf(&b, "%s{\"topic\":\"t\",\"payload\":{\"content\":%d}}", i ? "," : "", i);
                om_buf_lit(&b, "]}");
                om_buf_putc(&b, '\0');
                expect_ok(c, request(c, "task.publish", "%s", b.data));
                collect(c, &got, 1000);
                om_buf_clear(&b);
                om_buf_lit(&b, "{\"deliveries\":[");
                for (int i = 0; i < 1000; i++)
                        om_buf_printf(&b, "%s{\"delivery\":%d,\"result\":%d}", i ? "," : "", got.delivery[i], i);
                om_buf_lit(&b, "]}");
                om_buf_putc(&b, '\0');
                mem_log_clear();
                expect_ok(c, request(c, "task.ack", "%s", b.data));
                ck_assert(mem_logged("batch PUT 1000;"));
                ck_assert(mem_logged("batch SETTLE 1000;"));
        }
        ck_assert_uint_eq(mem.out, 0);
        om_buf_deinit(&b);
        disconnect(c);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("dispatch");
        TCase *t = tcase_create("dispatch");

        tcase_add_checked_fixture(t, start, end);
        tcase_set_timeout(t, 60);
        tcase_add_test(t, test_a_published_task_is_delivered_saved_and_acknowledged_in_this_order);
        tcase_add_test(t, test_a_task_published_before_the_first_agent_is_waiting_for_it);
        tcase_add_test(t, test_two_groups_each_get_every_task);
        tcase_add_test(t, test_workers_of_a_group_share_and_the_bus_is_asked_once);
        tcase_add_test(t, test_credit_is_never_exceeded);
        tcase_add_test(t, test_a_closed_connection_gives_its_tasks_to_another_worker_counted);
        tcase_add_test(t, test_a_half_closed_connection_that_waits_for_a_result_gives_its_tasks_to_another_worker);
        tcase_add_test(t, test_a_task_that_kills_its_workers_ends_in_the_dead_letters);
        tcase_add_test(t, test_what_a_client_never_saw_goes_back_uncounted_on_unregister);
        tcase_add_test(t, test_an_ack_after_the_lease_is_a_conflict_and_a_number_never_given_is_not_found);
        tcase_add_test(t, test_two_acks_of_one_delivery_in_a_turn_acknowledge_once);
        tcase_add_test(t, test_an_idle_worker_loses_the_lease_and_its_late_ack_is_a_conflict);
        tcase_add_test(t, test_extend_keeps_the_lease);
        tcase_add_test(t, test_what_the_bus_takes_back_is_revoked_and_settled_away);
        tcase_add_test(t, test_a_failed_task_comes_back_with_the_next_attempt_then_is_dead_with_its_record);
        tcase_add_test(t, test_retry_false_goes_to_the_dead_letters_at_once);
        tcase_add_test(t, test_outputs_are_on_the_bus_before_the_ack_and_after_the_result);
        tcase_add_test(t, test_with_exactly_once_outputs_are_part_of_the_settlement);
        tcase_add_test(t, test_a_repeated_ack_publishes_under_the_same_ids);
        tcase_add_test(t, test_a_bad_output_changes_nothing_and_the_lease_goes_on);
        tcase_add_test(t, test_a_fault_at_any_step_of_an_ack_leaves_the_lease_and_a_repeat_succeeds);
        tcase_add_test(t, test_an_error_in_the_middle_of_a_batch_names_the_deliveries_that_failed);
        tcase_add_test(t, test_a_notified_ack_is_repeated_by_the_daemon);
        tcase_add_test(t, test_leases_of_a_lost_worker_are_settled_when_the_bus_is_back);
        tcase_add_test(t, test_a_connection_that_closes_during_its_ack_does_not_undo_it);
        tcase_add_test(t, test_publishes_of_one_turn_are_one_batch_and_keep_their_order);
        tcase_add_test(t, test_bad_tasks_of_a_batch_are_errors_in_place);
        tcase_add_test(t, test_a_bus_without_room_is_tried_again_after_a_completion);
        tcase_add_test(t, test_a_publish_that_the_bus_does_not_confirm_times_out_and_is_cancelled);
        tcase_add_test(t, test_a_publish_is_refused_at_once_while_the_bus_is_away);
        tcase_add_test(t, test_an_idempotency_key_publishes_once_on_a_bus_that_has_none);
        tcase_add_test(t, test_publishes_with_one_key_at_once_are_one_task);
        tcase_add_test(t, test_who_waits_for_a_publish_with_its_key_that_fails_is_told_to_publish_again);
        tcase_add_test(t, test_a_key_whose_first_publish_failed_is_published_under_the_first_id);
        tcase_add_test(t, test_who_waits_for_a_result_is_woken_when_it_is_saved);
        tcase_add_test(t, test_results_are_listed_and_deleted_and_search_names_the_storage);
        tcase_add_test(t, test_save_results_false_saves_nothing_on_success);
        tcase_add_test(t, test_a_paused_group_gets_nothing_until_it_is_resumed);
        tcase_add_test(t, test_a_group_deleted_while_tasks_are_leased_ends_cleanly);
        tcase_add_test(t, test_a_deletion_while_the_bus_is_away_is_answered_and_the_group_ends_when_it_is_back);
        tcase_add_test(t, test_a_slow_reader_is_given_a_bounded_amount_and_others_get_the_rest);
        tcase_add_test(t, test_a_stop_waits_for_what_is_leased_and_takes_its_ack);
        tcase_add_test(t, test_after_the_grace_what_is_leased_is_released_uncounted);
        tcase_add_test(t, test_a_stop_ends_although_the_bus_is_away);
        tcase_add_test(t, test_a_registration_that_the_bus_answers_while_the_daemon_stops_is_refused_and_ended);
        tcase_add_test(t, test_many_tasks_go_their_way_in_batches);
        suite_add_tcase(suite, t);
        return om_test_main(suite);
}
