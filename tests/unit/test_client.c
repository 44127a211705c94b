/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libomniclient against a daemon that follows a script: what is sent, what is made of the answers, and what happens when the connection
 * ends at the worst moment or the daemon sends rubbish. Against the real daemon: tests/integration/test_client_daemon.c.
 */
#include "../../client/c/omniclient.h"
#include "../lib/fake_daemon.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static omni_client *client_of(struct fake *f) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = fake_path(f);
        options.call_timeout_ms = 10000;
        options.reconnect_min_ms = 2;
        options.reconnect_max_ms = 20;
        omni_client *c = NULL;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        return c;
}

static int64_t now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

#define TASK(delivery, content)                                                                                                     \
        "{\"delivery\":" #delivery ",\"attempt\":1,\"id\":\"t" #delivery "\",\"topic\":\"greet\",\"payload\":{\"content\":" content \
        "},\"created_at\":1.5}"
#define DELIVER(subscription, tasks) \
        "{\"jsonrpc\":\"2.0\",\"method\":\"task.deliver\",\"params\":{\"subscription\":" #subscription ",\"tasks\":[" tasks "]}}"

/* -- clients ------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_missing_daemon_is_named_with_what_to_do) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = "/tmp/no/such/omnidaemon.sock";
        options.connect_timeout_ms = 0;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        ck_assert_str_eq(omni_strerror(c), "");
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), -ENOENT);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "no OmniDaemon at /tmp/no/such/omnidaemon.sock: start one with `omnidaemond`"));
        ck_assert_int_eq(omni_connect(c, 0), -ENOENT);
        ck_assert_int_eq(omni_connect(c, 30), -ENOENT);
        omni_free(c);
}
END_TEST

START_TEST(test_connect_timeout_bounds_the_wait_for_a_daemon) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = "/tmp/no/such/omnidaemon.sock";
        options.connect_timeout_ms = 100;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        int64_t start = now_ms();
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), -ENOENT);
        ck_assert_int_ge(now_ms() - start, 95);
        ck_assert_int_le(now_ms() - start, 3000);
        omni_free(c);
}
END_TEST

START_TEST(test_a_path_that_no_socket_can_have_fails_at_once) {
        char path[300];
        memset(path, 'x', sizeof(path));
        path[0] = '/';
        path[sizeof(path) - 1] = '\0';
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = path;
        options.connect_timeout_ms = -1;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), -EINVAL);
        omni_free(c);
}
END_TEST

START_TEST(test_wrong_options_are_refused) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        omni_client *c;
        options.size = 0;
        ck_assert_int_eq(omni_new(&options, &c), -EINVAL);
        options = (omni_client_options) OMNI_CLIENT_OPTIONS_INIT;
        options.client_name = "a\nb";
        ck_assert_int_eq(omni_new(&options, &c), -EINVAL);
        ck_assert_int_eq(omni_new(NULL, &c), 0);
        omni_free(c);
        omni_free(NULL);
        ck_assert_str_eq(omni_strerror(NULL), "out of memory");
        ck_assert_int_gt(strlen(omni_version()), 0);
}
END_TEST

static void script_other_protocol(struct fake *f) {
        fake_accept(f);
        fake_expect(f, "hello");
        fake_error(f, "unsupported", "protocol 1 is not spoken here; 2 and 3 are");
        ck_assert_ptr_null(fake_read(f));
}

START_TEST(test_a_daemon_of_another_protocol_is_refused_with_its_words) {
        struct fake *f = fake_start(script_other_protocol, NULL);
        omni_client *c = client_of(f);
        ck_assert_int_eq(omni_connect(c, 0), -EPROTO);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "2 and 3 are"));
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_two_calls_out_of_order(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "health");
        long first = fake_id(f);
        fake_expect(f, "config.get");
        fake_reply(f, "{\"key\":\"k\",\"value\":[1, 2]}");
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"status\":\"ready\"}}", first);
        fake_read(f);
}

struct heard {
        int n, status;
        char text[300];
};

static void hear(omni_client *c, int status, const char *result, size_t len, const char *error, void *user) {
        struct heard *h = user;
        h->n++;
        h->status = status;
        if (status == 0)
                ck_assert_uint_eq(strlen(result), len);
        snprintf(h->text, sizeof(h->text), "%s", status == 0 ? result : error);
}

START_TEST(test_answers_find_their_calls_in_any_order) {
        struct fake *f = fake_start(script_two_calls_out_of_order, NULL);
        omni_client *c = client_of(f);
        struct heard h = { 0 };
        char *result;
        size_t len;
        ck_assert_int_eq(omni_call_async(c, "health", NULL, hear, &h), 0);
        ck_assert_int_eq(omni_call(c, "config.get", "{\"key\":\"k\"}", &result, &len), 0);
        ck_assert_str_eq(result, "{\"key\":\"k\",\"value\":[1, 2]}");
        ck_assert_uint_eq(len, strlen(result));
        free(result);
        ck_assert_int_eq(omni_flush(c, 5000), 0);
        ck_assert_int_eq(h.n, 1);
        ck_assert_str_eq(h.text, "{\"status\":\"ready\"}");
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_all_kinds(struct fake *f) {
        static const char *const kinds[] = { "invalid", "not_found", "exists", "denied", "unsupported", "unavailable", "timeout", "limit",
                "conflict", "internal" };
        fake_meet(f);
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
                fake_expect(f, "config.set");
                fake_error(f, kinds[i], "words");
        }
        fake_read(f);
}

START_TEST(test_each_kind_of_error_has_its_errno) {
        static const int errnos[] = { EINVAL, ENOENT, EEXIST, EACCES, EOPNOTSUPP, EAGAIN, ETIMEDOUT, ENOBUFS, ESTALE, EIO };
        struct fake *f = fake_start(script_all_kinds, NULL);
        omni_client *c = client_of(f);
        for (size_t i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++) {
                ck_assert_int_eq(omni_call(c, "config.set", "{\"key\":\"a\",\"value\":1}", NULL, NULL), -errnos[i]);
                ck_assert_str_eq(omni_strerror(c), "words");
        }
        omni_free(c);
        fake_finish(f);
}
END_TEST

START_TEST(test_calls_that_are_wrong_are_refused_without_a_daemon) {
        omni_client *c;
        ck_assert_int_eq(omni_new(NULL, &c), 0);
        ck_assert_int_eq(omni_call(c, "ping", "{", NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_call(c, "ping", "[]", NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_call(c, "ping", "{}}", NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_call(c, NULL, NULL, NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_call(c, "agent.register", "{}", NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, "", "1", NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, "omni-dlq:x", "1", NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, "t", "{\"a\":}", NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, "t", "1}", NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, "t", NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, NULL, "1", NULL), -EINVAL);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = "t";
        task.content = "1";
        task.headers = "[1]";
        ck_assert_int_eq(omni_publish(c, &task, NULL), -EINVAL);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "headers"));
        ck_assert_int_eq(omni_agent_register(c, NULL, NULL, NULL, NULL), -EINVAL);
        omni_free(c);
}
END_TEST

/* -- a connection that ends ---------------------------------------------------------------------------------------- */

static void script_break_during_call(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "health"); /* reads: asked again */
        fake_meet(f);
        fake_expect(f, "health");
        fake_reply(f, "{\"status\":\"ready\"}");
        fake_expect(f, "dlq.purge"); /* acts: the outcome is unknown */
        fake_close(f);
        fake_meet(f);
        fake_read(f);
}

START_TEST(test_reads_are_repeated_after_a_reconnect_and_others_are_not) {
        struct fake *f = fake_start(script_break_during_call, NULL);
        omni_client *c = client_of(f);
        char *result;
        ck_assert_int_eq(omni_call(c, "health", NULL, &result, NULL), 0);
        ck_assert_str_eq(result, "{\"status\":\"ready\"}");
        free(result);
        ck_assert_int_eq(omni_call(c, "dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\",\"all\":true}", NULL, NULL), -ECONNRESET);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "outcome is unknown"));
        ck_assert_int_eq(omni_connect(c, 5000), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_publish_twice(struct fake *f) {
        char *first;
        fake_meet(f);
        first = strdup(fake_expect(f, "task.publish"));
        fake_mute(f, true);
        fake_close(f);
        poll(NULL, 0, 30); /* away for a while: there is nothing to wait for */
        fake_mute(f, false);
        fake_meet(f);
        ck_assert_str_eq(fake_expect(f, "task.publish"), first);
        free(first);
        fake_reply(f, "{\"results\":[{\"id\":\"x\",\"duplicate\":true}]}");
        fake_read(f);
}

START_TEST(test_a_publish_without_answer_is_sent_again_as_the_same_task) {
        struct fake *f = fake_start(script_publish_twice, NULL);
        omni_client *c = client_of(f);
        char id[OMNI_ID_SIZE];
        ck_assert_int_eq(omni_publish_json(c, "greet", "{\"a\":1}", id), 1);
        ck_assert_str_eq(id, "x");
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_cut_frames(struct fake *f) {
        for (size_t cut = 1; cut < 40; cut += 7) {
                char whole[100] = "\0\0\0\x27{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}   ";
                fake_meet(f);
                fake_expect(f, "ping");
                fake_raw(f, whole, cut);
        }
        fake_meet(f);
        fake_expect(f, "ping");
        fake_reply(f, "{}");
        fake_read(f);
}

START_TEST(test_frames_cut_off_anywhere_are_dropped) {
        struct fake *f = fake_start(script_cut_frames, NULL);
        omni_client *c = client_of(f);
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_dribble(struct fake *f) {
        char body[100];
        fake_meet(f);
        fake_expect(f, "ping");
        snprintf(body, sizeof(body), "{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"slow\":true}}", fake_id(f));
        unsigned char h[4] = { 0, 0, 0, (unsigned char) strlen(body) };
        for (int i = 0; i < 4; i++)
                fake_raw(f, &h[i], 1), poll(NULL, 0, 1);
        for (const char *p = body; *p; p++)
                fake_raw(f, p, 1), poll(NULL, 0, 1);
        fake_read(f);
}

START_TEST(test_frames_that_come_byte_by_byte_are_whole) {
        struct fake *f = fake_start(script_dribble, NULL);
        omni_client *c = client_of(f);
        char *result;
        ck_assert_int_eq(omni_call(c, "ping", NULL, &result, NULL), 0);
        ck_assert_str_eq(result, "{\"slow\":true}");
        free(result);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_never_answers(struct fake *f) {
        fake_meet(f);
        while (fake_read(f))
                ;
}

START_TEST(test_an_answer_that_does_not_come_times_out) {
        struct fake *f = fake_start(script_never_answers, NULL);
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = fake_path(f);
        options.call_timeout_ms = 40;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), -ETIMEDOUT);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "may or may not"));
        ck_assert_int_eq(omni_call(c, "config.set", "{}", NULL, NULL), -ETIMEDOUT);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = "t";
        task.content = "1";
        ck_assert_int_eq(omni_publish_async(c, &task, NULL, NULL), 0);
        ck_assert_int_eq(omni_flush(c, 40), -ETIMEDOUT);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_late_answer(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "config.set");
        long late = fake_id(f);
        fake_expect(f, "ping");
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{}}", late);
        fake_reply(f, "{}");
        fake_read(f);
}

START_TEST(test_an_answer_that_comes_too_late_does_no_harm) {
        struct fake *f = fake_start(script_late_answer, NULL);
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = fake_path(f);
        options.call_timeout_ms = 50;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        ck_assert_int_eq(omni_call(c, "config.set", "{}", NULL, NULL), -ETIMEDOUT);
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

/* -- rubbish ------------------------------------------------------------------------------------------------------- */

static const struct {
        const char *name, *body;
} rubbish[] = {
        { "not JSON", "this is not JSON" },
        { "an array", "[]" },
        { "no version", "{\"id\":2,\"result\":{}}" },
        { "result and error", "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{},\"error\":{}}" },
        { "neither", "{\"jsonrpc\":\"2.0\",\"id\":2}" },
        { "an unknown id", "{\"jsonrpc\":\"2.0\",\"id\":77777,\"result\":{}}" },
        { "a string as id", "{\"jsonrpc\":\"2.0\",\"id\":\"2\",\"result\":{}}" },
        { "a negative id", "{\"jsonrpc\":\"2.0\",\"id\":-2,\"result\":{}}" },
        { "a huge id", "{\"jsonrpc\":\"2.0\",\"id\":99999999999999999999999999,\"result\":{}}" },
        { "null as id",
                "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"what?\",\"data\":{\"kind\":\"invalid\"}}}" },
        { "a request", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}" },
        { "a delivery to nobody", DELIVER(9, TASK(1, "1")) },
        { "a delivery without params", "{\"jsonrpc\":\"2.0\",\"method\":\"task.deliver\"}" },
        { "a delivery of no array", "{\"jsonrpc\":\"2.0\",\"method\":\"task.deliver\",\"params\":{\"subscription\":1,\"tasks\":{}}}" },
        { "a revocation of strings",
                "{\"jsonrpc\":\"2.0\",\"method\":\"task.revoked\",\"params\":{\"subscription\":1,\"deliveries\":[\"x\"]}}" },
        { "an end of nothing", "{\"jsonrpc\":\"2.0\",\"method\":\"agent.ended\",\"params\":{}}" },
        { "bytes that are no UTF-8", "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":\"\xff\xfe\"}" },
        { "too deep", NULL },
        { "a length of nothing", NULL },
        { "a length of 4 GiB", NULL },
};

static void script_rubbish(struct fake *f) {
        int i = *(int *) fake_user(f);
        fake_meet(f);
        fake_expect(f, "ping");
        if (rubbish[i].body) {
                fake_send(f, "%s", rubbish[i].body);
        } else if (!strcmp(rubbish[i].name, "too deep")) {
                char deep[201];
                memset(deep, '[', 200);
                deep[200] = '\0';
                fake_send(f, "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":%s", deep);
        } else {
                fake_raw(f, strstr(rubbish[i].name, "4 GiB") ? "\xff\xff\xff\xff" : "\0\0\0\0", 4);
        }
        fake_read(f);
}

START_TEST(test_rubbish_is_a_protocol_error_and_no_crash) {
        struct fake *f = fake_start(script_rubbish, &_i);
        omni_client *c = client_of(f);
        ck_assert_msg(omni_call(c, "ping", NULL, NULL, NULL) == -EPROTO, "%s: %s", rubbish[_i].name, omni_strerror(c));
        ck_assert_msg(strstr(omni_strerror(c), "broke the protocol"), "%s: %s", rubbish[_i].name, omni_strerror(c));
        omni_free(c);
        fake_finish(f);
}
END_TEST

static const char *const bad_tasks[] = {
        "7",
        "{}",
        "{\"delivery\":\"1\",\"id\":\"x\",\"topic\":\"t\",\"payload\":{\"content\":1}}",
        "{\"delivery\":-1,\"id\":\"x\",\"topic\":\"t\",\"payload\":{\"content\":1}}",
        "{\"delivery\":1.5,\"id\":\"x\",\"topic\":\"t\",\"payload\":{\"content\":1}}",
        "{\"delivery\":1,\"id\":\"x\",\"topic\":\"t\",\"payload\":{}}",
        "{\"delivery\":1,\"id\":\"x\",\"topic\":\"t\",\"payload\":[]}",
        "{\"delivery\":1,\"id\":\"x\",\"topic\":\"t\"}",
        "{\"delivery\":1,\"id\":7,\"topic\":\"t\",\"payload\":{\"content\":1}}",
        "{\"delivery\":1,\"topic\":\"t\",\"payload\":{\"content\":1}}",
        "{\"delivery\":1,\"id\":\"x\",\"topic\":\"t\",\"payload\":{\"content\":1},\"headers\":\"x\"}",
};

static void script_bad_task(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"group:greet:greeter\"}");
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"method\":\"task.deliver\",\"params\":{\"subscription\":1,\"tasks\":[%s]}}",
                bad_tasks[*(int *) fake_user(f)]);
        fake_read(f);
}

static void never_called(omni_agent *agent, omni_task *task, void *user) { ck_abort_msg("a handler was called"); }

static omni_agent *greeter(omni_client *c, omni_handler_fn *handler, void *user) {
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "greet";
        options.name = "greeter";
        omni_agent *a = NULL;
        int r = omni_agent_register(c, &options, handler, user, &a);
        ck_assert_msg(r == 0, "register: %d %s", r, omni_strerror(c));
        return a;
}

START_TEST(test_a_bad_task_is_a_protocol_error) {
        struct fake *f = fake_start(script_bad_task, &_i);
        omni_client *c = client_of(f);
        greeter(c, never_called, NULL);
        ck_assert_int_eq(omni_run(c), -EPROTO);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_too_many_tasks(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        for (int i = 1; i < 20; i++)
                fake_send(f, DELIVER(1, "{\"delivery\":%d,\"id\":\"x\",\"topic\":\"t\",\"payload\":{\"content\":1}}"), i);
        while (fake_read(f))
                ;
}

static void hold(omni_agent *agent, omni_task *task, void *user) { ++*(int *) user; }

START_TEST(test_more_tasks_than_prefetch_are_a_protocol_error) {
        struct fake *f = fake_start(script_too_many_tasks, NULL);
        omni_client *c = client_of(f);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "t";
        options.name = "a";
        options.prefetch = 5;
        int n = 0;
        ck_assert_int_eq(omni_agent_register(c, &options, hold, &n, NULL), 0);
        ck_assert_int_eq(omni_run(c), -EPROTO);
        ck_assert_int_le(n, 5);
        omni_free(c);
        fake_finish(f);
}
END_TEST

/* -- agents -------------------------------------------------------------------------------------------------------- */

static void script_one_task(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        ck_assert(fake_has(f, "\"name\":\"greeter\",\"topic\":\"greet\""));
        ck_assert(fake_has(f, "\"worker\":"));
        fake_reply(f, "{\"subscription\":1,\"group\":\"group:greet:greeter\",\"created\":true,\"paused\":false}");
        fake_send(f,
                DELIVER(1,
                        "{\"delivery\":17,\"attempt\":2,\"id\":\"a\\u0062c\",\"topic\":\"greet\",\"payload\":{\"content\":{ \"n\" : "
                        "12345678901234567890 },\"reply_to\":\"back\",\"webhook\":{\"url\":\"u\"}},\"created_at\":12.5,\"priority\":4,"
                        "\"key\":\"k\",\"headers\":{\"a\":\"b\"},\"tenant_id\":null,\"correlation_id\":\"co\",\"causation_id\":\"ca\","
                        "\"source\":\"s\",\"traceparent\":\"00-x\",\"unknown\":[1]}"));
        fake_expect(f, "task.ack");
        ck_assert(fake_has(f, "{\"deliveries\":[{\"delivery\":17,\"result\":{\"ok\": 1}}]}"));
        fake_reply(f, "{}");
        fake_read(f);
}

static void look_at_everything(omni_agent *agent, omni_task *task, void *user) {
        size_t n;
        ck_assert_str_eq(omni_task_id(task), "abc");
        ck_assert_str_eq(omni_task_topic(task), "greet");
        ck_assert_str_eq(omni_task_content(task, &n), "{ \"n\" : 12345678901234567890 }");
        ck_assert_uint_eq(n, strlen(omni_task_content(task, NULL)));
        ck_assert_ptr_nonnull(strstr(omni_task_json(task, &n), "\"unknown\":[1]"));
        ck_assert_uint_eq(n, strlen(omni_task_json(task, NULL)));
        ck_assert_str_eq(omni_task_key(task), "k");
        ck_assert_str_eq(omni_task_reply_to(task), "back");
        ck_assert_str_eq(omni_task_webhook(task), "{\"url\":\"u\"}");
        ck_assert_str_eq(omni_task_headers(task), "{\"a\":\"b\"}");
        ck_assert_str_eq(omni_task_correlation_id(task), "co");
        ck_assert_str_eq(omni_task_causation_id(task), "ca");
        ck_assert_str_eq(omni_task_source(task), "s");
        ck_assert_ptr_null(omni_task_tenant_id(task));
        ck_assert_str_eq(omni_task_traceparent(task), "00-x");
        ck_assert(omni_task_created_at(task) == 12.5);
        ck_assert_int_eq(omni_task_attempt(task), 2);
        ck_assert_int_eq(omni_task_priority(task), 4);
        ck_assert_int_eq(omni_task_lost(task), 0);
        ck_assert_ptr_eq(omni_task_agent(task), agent);
        ck_assert_str_eq(omni_agent_name(agent), "greeter");
        ck_assert_str_eq(omni_agent_topic(agent), "greet");
        ck_assert_str_eq(omni_agent_group(agent), "group:greet:greeter");
        ck_assert_int_eq(omni_agent_active(agent), 1);
        ck_assert_int_eq(omni_task_ack(task, "{\"ok\": 1}", OMNI_STR), 0);
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_an_agent_gets_a_task_as_it_was_published_and_acks_it) {
        struct fake *f = fake_start(script_one_task, NULL);
        omni_client *c = client_of(f);
        greeter(c, look_at_everything, NULL);
        ck_assert_int_eq(omni_run(c), 0); /* the ack is answered before it returns */
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_acks_of_one_turn(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2") "," TASK(3, "3")));
        fake_expect(f, "task.publish"); /* what handlers published comes before their acks */
        ck_assert(fake_has(f, "\"content\":1") && fake_has(f, "\"content\":2") && fake_has(f, "\"content\":3"));
        fake_reply(f, "{\"results\":[{\"id\":\"1\"},{\"id\":\"2\"},{\"id\":\"3\"}]}");
        fake_expect(f, "task.ack");
        ck_assert(fake_has(f, "[{\"delivery\":1},{\"delivery\":2},{\"delivery\":3}]"));
        fake_reply(f, "{}");
        fake_read(f);
}

/* Keeps tasks until there are `n` of them: what one handler does is one turn, however slow the machine is. */
struct kept {
        omni_task *tasks[4];
        int n;
};

static void publish_and_ack(omni_agent *agent, omni_task *task, void *user) {
        struct kept *kept = user;
        kept->tasks[kept->n++] = task;
        for (int i = 0; i < 3 && kept->n == 3; i++) {
                omni_publish_options out = OMNI_PUBLISH_OPTIONS_INIT;
                out.topic = "next";
                out.content = omni_task_content(kept->tasks[i], NULL);
                ck_assert_int_eq(omni_publish_async(omni_agent_client(agent), &out, NULL, NULL), 0);
                ck_assert_int_eq(omni_task_ack(kept->tasks[i], NULL, 0), 0);
                omni_stop(omni_agent_client(agent));
        }
}

START_TEST(test_acks_of_one_turn_travel_together_behind_the_publishes) {
        struct fake *f = fake_start(script_acks_of_one_turn, NULL);
        omni_client *c = client_of(f);
        struct kept kept = { .n = 0 };
        greeter(c, publish_and_ack, &kept);
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_reconnect_with_task_held(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "\"held\"")));
        fake_expect(f, "ping"); /* the handler has it */
        fake_reply(f, "{}");
        fake_meet(f);
        fake_expect(f, "agent.register"); /* by itself */
        fake_reply(f, "{\"subscription\":5,\"group\":\"g\"}");
        fake_send(f, DELIVER(5, TASK(1, "\"again\"")));
        fake_expect(f, "task.ack");
        fake_reply(f, "{}");
        fake_read(f);
}

struct held {
        omni_task *task;
        int ups, downs;
};

static void hold_first(omni_agent *agent, omni_task *task, void *user) {
        struct held *h = user;
        if (!strcmp(omni_task_content(task, NULL), "\"held\"")) {
                h->task = task;
                omni_call_async(omni_agent_client(agent), "ping", NULL, NULL, NULL);
                return;
        }
        ck_assert_int_eq(omni_task_lost(h->task), 1);
        ck_assert_str_eq(omni_task_content(h->task, NULL), "\"held\"");
        ck_assert_int_eq(omni_task_extend(h->task), -ESTALE);
        ck_assert_int_eq(omni_task_ack(h->task, NULL, 0), -ESTALE);
        ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        omni_stop(omni_agent_client(agent));
}

static void count_connections(omni_client *c, int up, const char *reason, void *user) {
        struct held *h = user;
        if (up) {
                h->ups++;
        } else {
                h->downs++;
                ck_assert_ptr_nonnull(strstr(reason, "closed"));
        }
}

START_TEST(test_agents_register_again_and_held_tasks_are_lost_after_a_reconnect) {
        struct fake *f = fake_start(script_reconnect_with_task_held, NULL);
        omni_client *c = client_of(f);
        struct held h = { 0 };
        omni_on_connection(c, count_connections, &h);
        greeter(c, hold_first, &h);
        ck_assert_int_eq(omni_run(c), 0);
        ck_assert_int_eq(h.ups, 2);
        ck_assert_int_eq(h.downs, 1);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_ack_unanswered(struct fake *f) { /* its end closes the connection */
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1")));
        fake_expect(f, "task.ack");
}

static void stop_when_settled(omni_client *c, int status, const char *error, void *user) {
        *(int *) user = status;
        omni_stop(c);
}

static void ack_and_ask(omni_agent *agent, omni_task *task, void *user) {
        ck_assert_int_eq(omni_task_ack_publish(task, "1", OMNI_STR, NULL, 0, stop_when_settled, user), 0);
}

START_TEST(test_an_ack_without_answer_is_stale_after_the_connection_ends) {
        struct fake *f = fake_start(script_ack_unanswered, NULL);
        omni_client *c = client_of(f);
        int status = 77;
        greeter(c, ack_and_ask, &status);
        ck_assert_int_eq(omni_run(c), 0);
        ck_assert_int_eq(status, -ESTALE);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_ack_errors(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2") "," TASK(3, "3") "," TASK(4, "4")));
        fake_expect(f, "task.ack");
        /* 1 is done; 2 is over; 3 must wait; 4 is refused */
        fake_send(f,
                "{\"jsonrpc\":\"2.0\",\"id\":%ld,\"error\":{\"code\":-32000,\"message\":\"over\",\"data\":{\"kind\":\"conflict\","
                "\"deliveries\":[2,3,4]}}}",
                fake_id(f));
        int acks = 0, fails = 0;
        while (acks < 4 || fails < 1) {
                ck_assert_ptr_nonnull(fake_read(f));
                if (fake_has(f, "task.fail")) {
                        ck_assert(fake_has(f, "\"delivery\":4") && fake_has(f, "too big"));
                        fails++;
                        fake_reply(f, "{}");
                } else if (fake_has(f, "[{\"delivery\":2,\"result\":2}]")) {
                        fake_error(f, "conflict", "over");
                        acks++;
                } else if (fake_has(f, "[{\"delivery\":3,\"result\":3}]")) {
                        static int tries;
                        if (tries++ == 0)
                                fake_error(f, "unavailable", "the bus is away");
                        else
                                fake_reply(f, "{}");
                        acks++;
                } else if (fake_has(f, "[{\"delivery\":4,\"result\":4}]")) {
                        fake_error(f, "limit", "too big");
                        acks++;
                } else {
                        ck_abort_msg("%s", fake_has(f, "") ? "another request" : "the end");
                }
        }
        fake_read(f);
}

struct outcomes {
        int n, status[5];
};
static struct outcomes outcomes;

static void keep_outcome(omni_client *c, int status, const char *error, void *user) {
        outcomes.status[(intptr_t) user] = status;
        if (++outcomes.n == 4)
                omni_stop(c);
}

static void ack_with_content(omni_agent *agent, omni_task *task, void *user) {
        struct kept *kept = user;
        kept->tasks[kept->n++] = task;
        for (int i = 0; i < 4 && kept->n == 4; i++) {
                const char *content = omni_task_content(kept->tasks[i], NULL);
                void *number = (void *) (intptr_t) atoi(content);
                ck_assert_int_eq(omni_task_ack_publish(kept->tasks[i], content, OMNI_STR, NULL, 0, keep_outcome, number), 0);
        }
}

START_TEST(test_each_ack_of_a_refused_batch_has_its_own_outcome) {
        struct fake *f = fake_start(script_ack_errors, NULL);
        omni_client *c = client_of(f);
        memset(&outcomes, 0, sizeof(outcomes));
        struct kept kept = { .n = 0 };
        greeter(c, ack_with_content, &kept);
        ck_assert_int_eq(omni_run(c), 0);
        ck_assert_int_eq(outcomes.status[1], 0);
        ck_assert_int_eq(outcomes.status[2], -ESTALE);
        ck_assert_int_eq(outcomes.status[3], 0);
        ck_assert_int_eq(outcomes.status[4], -ENOBUFS);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_bad_result(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2")));
        int fails = 0;
        for (int i = 0; i < 2; i++) {
                ck_assert_ptr_nonnull(fake_read(f));
                if (fake_has(f, "task.fail")) {
                        ck_assert(fake_has(f, "\"delivery\":1,\"error\":{\"message\":\"result"));
                        fails++;
                } else {
                        ck_assert(fake_has(f, "[{\"delivery\":2}]"));
                }
                fake_reply(f, "{}");
        }
        ck_assert_int_eq(fails, 1);
        fake_read(f);
}

static void ack_badly(omni_agent *agent, omni_task *task, void *user) {
        if (++*(int *) user == 1) {
                ck_assert_int_eq(omni_task_ack(task, "{\"a\":1,}", OMNI_STR), -EINVAL);
                return;
        }
        ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_a_result_that_is_not_json_fails_its_task_only) {
        struct fake *f = fake_start(script_bad_result, NULL);
        omni_client *c = client_of(f);
        int n = 0;
        greeter(c, ack_badly, &n);
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_fail(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1")));
        fake_expect(f, "task.fail");
        ck_assert(fake_has(
                f, "{\"delivery\":1,\"error\":{\"message\":\"no \\\"x\\\"\",\"type\":\"Missing\"},\"retry\":false,\"delay_ms\":50}"));
        fake_reply(f, "{}");
        fake_read(f);
}

static void fail_it(omni_agent *agent, omni_task *task, void *user) {
        ck_assert_int_eq(omni_task_fail(task, "no \"x\"", "Missing", 50, OMNI_FAIL_NO_RETRY), 0);
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_a_failure_carries_its_reason) {
        struct fake *f = fake_start(script_fail, NULL);
        omni_client *c = client_of(f);
        greeter(c, fail_it, NULL);
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_outputs(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2")));
        int fails = 0;
        for (int i = 0; i < 2; i++) {
                ck_assert_ptr_nonnull(fake_read(f));
                if (fake_has(f, "task.fail")) {
                        fails++;
                } else {
                        ck_assert(fake_has(f,
                                "{\"delivery\":1,\"result\":7,\"publish\":[{\"id\":\"o1\",\"topic\":\"x\",\"payload\":{\"content\":[1]}},"
                                "{\"id\":\"o2\",\"topic\":\"y\",\"payload\":{\"content\":[2]}}]}"));
                }
                fake_reply(f, "{}");
        }
        ck_assert_int_eq(fails, 1);
        fake_read(f);
}

static void ack_with_outputs(omni_agent *agent, omni_task *task, void *user) {
        omni_publish_options out[2] = { OMNI_PUBLISH_OPTIONS_INIT, OMNI_PUBLISH_OPTIONS_INIT };
        out[0].id = "o1", out[0].topic = "x", out[0].content = "[1]";
        out[1].id = "o2", out[1].topic = "y", out[1].content = "[2]";
        if (++*(int *) user == 1) {
                ck_assert_int_eq(omni_task_ack_publish(task, "7", 1, out, 2, NULL, NULL), 0);
                return;
        }
        out[1].topic = "omni-dlq:no";
        ck_assert_int_eq(omni_task_ack_publish(task, "7", 1, out, 2, NULL, NULL), -EINVAL);
        ck_assert_ptr_nonnull(strstr(omni_strerror(omni_agent_client(agent)), "output 1"));
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_outputs_travel_with_the_ack) {
        struct fake *f = fake_start(script_outputs, NULL);
        omni_client *c = client_of(f);
        int n = 0;
        greeter(c, ack_with_outputs, &n);
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_revoked(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        ck_assert(fake_has(f, "\"reclaim_idle_ms\":60"));
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1")));
        for (int i = 0; i < 3; i++) {
                fake_expect(f, "task.extend");
                ck_assert(fake_has(f, "{\"deliveries\":[1]}"));
        }
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"method\":\"task.revoked\",\"params\":{\"subscription\":1,\"deliveries\":[1, 99]}}");
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"method\":\"later.version\",\"params\":{\"of\":\"the daemon\"}}");
        fake_read(f);
}

static void keep_task(omni_agent *agent, omni_task *task, void *user) { *(omni_task **) user = task; }

static void stop_at_notice(omni_client *c, const char *method, const char *params, size_t len, void *user) {
        ck_assert_str_eq(method, "later.version");
        ck_assert_str_eq(params, "{\"of\":\"the daemon\"}");
        ck_assert_uint_eq(len, strlen(params));
        omni_stop(c);
}

START_TEST(test_held_tasks_are_extended_until_they_are_revoked) {
        struct fake *f = fake_start(script_revoked, NULL);
        omni_client *c = client_of(f);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "t";
        options.name = "a";
        options.reclaim_idle_ms = 60;
        omni_task *task = NULL;
        omni_on_notification(c, stop_at_notice, NULL);
        ck_assert_int_eq(omni_agent_register(c, &options, keep_task, &task, NULL), 0);
        ck_assert_int_eq(omni_run(c), 0);
        ck_assert_ptr_nonnull(task);
        ck_assert_int_eq(omni_task_lost(task), 1);
        ck_assert_int_eq(omni_task_fail(task, "x", NULL, -1, 0), -ESTALE);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_extend_in_handler(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1")));
        fake_expect(f, "task.extend");
        __sync_fetch_and_add((int *) fake_user(f), 1); /* while the handler still runs: it waits for this */
        fake_expect(f, "task.ack");
        fake_reply(f, "{}");
        fake_read(f);
}

static void extend_and_wait(omni_agent *agent, omni_task *task, void *user) {
        ck_assert_int_eq(omni_task_extend(task), 0);
        while (!__sync_fetch_and_add((int *) user, 0))
                poll(NULL, 0, 1);
        ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_extend_goes_out_while_the_handler_runs) {
        int seen = 0;
        struct fake *f = fake_start(script_extend_in_handler, &seen);
        omni_client *c = client_of(f);
        greeter(c, extend_and_wait, &seen);
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_agent_deleted(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"method\":\"agent.ended\",\"params\":{\"subscription\":1,\"reason\":\"deleted by ann\"}}");
        fake_read(f);
}

START_TEST(test_run_ends_when_the_last_agent_was_deleted) {
        struct fake *f = fake_start(script_agent_deleted, NULL);
        omni_client *c = client_of(f);
        omni_agent *a = greeter(c, never_called, NULL);
        ck_assert_int_eq(omni_run(c), -ENOENT);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "deleted by ann"));
        ck_assert_int_eq(omni_agent_active(a), 0);
        ck_assert_int_eq(omni_agent_unregister(a), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_register_refused(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_error(f, "denied", "greet is not for you");
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_error(f, "unavailable", "the bus is away");
        fake_expect(f, "agent.register"); /* tried again */
        fake_error(f, "denied", "not any more");
        fake_read(f);
}

START_TEST(test_a_refused_registration_is_told) {
        struct fake *f = fake_start(script_register_refused, NULL);
        omni_client *c = client_of(f);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "greet";
        options.name = "greeter";
        ck_assert_int_eq(omni_agent_register(c, &options, never_called, NULL, NULL), -EACCES);
        ck_assert_str_eq(omni_strerror(c), "greet is not for you");
        greeter(c, never_called, NULL);
        ck_assert_int_eq(omni_run(c), -EACCES);
        ck_assert_str_eq(omni_strerror(c), "not any more");
        omni_free(c);
        fake_finish(f);
}
END_TEST

START_TEST(test_the_options_of_an_agent_become_its_config) {
        omni_client_options co = OMNI_CLIENT_OPTIONS_INIT;
        co.socket_path = "/tmp/no/such";
        co.connect_timeout_ms = 0;
        omni_client *c;
        ck_assert_int_eq(omni_new(&co, &c), 0);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "t";
        options.name = "a";
        options.tools = "{}";
        ck_assert_int_eq(omni_agent_register(c, &options, never_called, NULL, NULL), -EINVAL);
        options.tools = "[]";
        options.start = "yesterday";
        ck_assert_int_eq(omni_agent_register(c, &options, never_called, NULL, NULL), -EINVAL);
        options.start = "17.5";
        options.config = "[]";
        ck_assert_int_eq(omni_agent_register(c, &options, never_called, NULL, NULL), -EINVAL);
        options.config = " { } ";
        ck_assert_int_eq(omni_agent_register(c, &options, never_called, NULL, NULL), -ENOENT);
        omni_free(c);
}
END_TEST

static void script_config(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        ck_assert(fake_has(f,
                "\"config\":{ \"prefetch\":3,\"dlq_retry_limit\":0,\"retry_backoff_ms\":5,\"retry_backoff_max_ms\":6,"
                "\"start\":17.5,\"save_results\":false }}"));
        ck_assert(fake_has(f, "\"description\":\"d\",\"tools\":[1],\"worker\":\"w\""));
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_expect(f, "agent.unregister");
        fake_reply(f, "{}");
        fake_read(f);
}

START_TEST(test_all_options_of_an_agent_are_sent) {
        struct fake *f = fake_start(script_config, NULL);
        omni_client *c = client_of(f);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "t";
        options.name = "a";
        options.description = "d";
        options.tools = "[1]";
        options.worker = "w";
        options.prefetch = 3;
        options.dlq_retry_limit = 0;
        options.retry_backoff_ms = 5;
        options.retry_backoff_max_ms = 6;
        options.start = "17.5";
        options.config = " {\"save_results\":false } ";
        omni_agent *a;
        ck_assert_int_eq(omni_agent_register(c, &options, never_called, NULL, &a), 0);
        ck_assert_int_eq(omni_agent_unregister(a), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

/* -- from inside handlers ------------------------------------------------------------------------------------------ */

static void script_publish_in_handler(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2")));
        for (int i = 0; i < 2; i++) {
                fake_expect(f, "task.publish");
                fake_send(f, "{\"jsonrpc\":\"2.0\",\"method\":\"watch.event\",\"params\":{\"n\":%d}}", i);
                if (i == 0)
                        fake_send(f, DELIVER(1, TASK(3, "3"))); /* must not be handled under the first handler */
                fake_reply(f, "{\"results\":[{\"id\":\"p%d\"}]}", i);
                fake_expect(f, "task.ack");
                fake_reply(f, "{}");
        }
        fake_expect(f, "task.publish");
        fake_reply(f, "{\"results\":[{\"id\":\"p3\"}]}");
        fake_expect(f, "task.ack");
        fake_reply(f, "{}");
        fake_read(f);
}

static int handlers_running, handled, notices;

static void publish_in_handler(omni_agent *agent, omni_task *task, void *user) {
        omni_client *c = omni_agent_client(agent);
        char id[OMNI_ID_SIZE];
        ck_assert_int_eq(handlers_running++, 0);
        ck_assert_int_eq(omni_publish_json(c, "next", "1", id), 0);
        ck_assert_int_eq(id[0], 'p');
        ck_assert_int_eq(omni_run(c), -EBUSY);
        ck_assert_int_eq(omni_run_once(c, 0), -EBUSY);
        ck_assert_int_eq(omni_process(c), -EBUSY);
        omni_free(c); /* refused */
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "omni_free()"));
        ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        ck_assert_int_eq(omni_flush(c, 5000), 0);
        handlers_running--;
        if (++handled == 3)
                omni_stop(c);
}

static void count_notice(omni_client *c, const char *method, const char *params, size_t len, void *user) {
        ck_assert_int_eq(handlers_running, 0);
        notices++;
}

START_TEST(test_a_handler_may_block_and_no_other_handler_runs_meanwhile) {
        struct fake *f = fake_start(script_publish_in_handler, NULL);
        omni_client *c = client_of(f);
        handled = notices = handlers_running = 0;
        omni_on_notification(c, count_notice, NULL);
        greeter(c, publish_in_handler, NULL);
        ck_assert_int_eq(omni_run(c), 0);
        ck_assert_int_eq(handled, 3);
        ck_assert_int_eq(notices, 2);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_unregister_in_handler(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2")));
        fake_expect(f, "agent.unregister");
        fake_send(f, DELIVER(1, TASK(3, "3"))); /* crossed on the way: dropped */
        fake_reply(f, "{}");
        fake_read(f);
}

static void unregister_in_handler(omni_agent *agent, omni_task *task, void *user) {
        omni_client *c = omni_agent_client(agent);
        ck_assert_int_eq(++*(int *) user, 1);
        ck_assert_int_eq(omni_agent_unregister(agent), 0);
        omni_stop(c);
}

START_TEST(test_an_agent_may_be_unregistered_by_its_own_handler) {
        struct fake *f = fake_start(script_unregister_in_handler, NULL);
        omni_client *c = client_of(f);
        int n = 0;
        greeter(c, unregister_in_handler, &n);
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_break_in_handler(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_send(f, DELIVER(1, TASK(1, "1") "," TASK(2, "2")));
        fake_expect(f, "task.publish");
        fake_meet(f);
        fake_expect(f, "agent.register");
        fake_reply(f, "{\"subscription\":1,\"group\":\"g\"}");
        fake_expect(f, "task.publish");
        fake_reply(f, "{\"results\":[{\"id\":\"p\"}]}");
        fake_send(f, DELIVER(1, TASK(1, "9")));
        fake_expect(f, "task.ack");
        ck_assert(fake_has(f, "\"result\":9"));
        fake_reply(f, "{}");
        fake_read(f);
}

static void publish_over_a_break(omni_agent *agent, omni_task *task, void *user) {
        omni_client *c = omni_agent_client(agent);
        if (++*(int *) user == 1) {
                ck_assert_int_eq(omni_publish_json(c, "next", "1", NULL), 0);
                ck_assert_int_eq(omni_task_lost(task), 1);
                ck_assert_int_eq(omni_task_ack(task, NULL, 0), -ESTALE);
                return;
        }
        /* Task 2 of the first connection was never handled: nobody had seen it. */
        ck_assert_str_eq(omni_task_content(task, NULL), "9");
        ck_assert_int_eq(omni_task_ack(task, "9", 1), 0);
        omni_stop(c);
}

START_TEST(test_a_connection_that_ends_inside_a_handler_is_made_again_there) {
        struct fake *f = fake_start(script_break_in_handler, NULL);
        omni_client *c = client_of(f);
        int n = 0;
        greeter(c, publish_over_a_break, &n);
        ck_assert_int_eq(omni_run(c), 0);
        ck_assert_int_eq(n, 2);
        omni_free(c);
        fake_finish(f);
}
END_TEST

/* -- publishing ---------------------------------------------------------------------------------------------------- */

static void script_publish_many(struct fake *f) {
        fake_meet(f);
        int left = 1000;
        while (left > 0) {
                fake_expect(f, "task.publish");
                size_t size = 1 << 20, at = 0;
                char *results = malloc(size);
                int n = 0;
                for (const char *p = fake_body(f); (p = strstr(p, "\"content\":")); n++) {
                        int value = atoi(p + 10);
                        at += (size_t) snprintf(results + at, size - at, "%s", n ? "," : "");
                        if (value % 100 == 7)
                                at += (size_t) snprintf(results + at, size - at,
                                        "{\"error\":{\"code\":-32000,\"message\":\"no %d\",\"data\":{\"kind\":\"denied\"}}}", value);
                        else
                                at += (size_t) snprintf(results + at, size - at, "{\"id\":\"i%d\"%s}", value,
                                        value % 100 == 8 ? ",\"duplicate\":true" : "");
                        p++;
                }
                left -= n;
                fake_reply(f, "{\"results\":[%s]}", results);
                free(results);
        }
        fake_read(f);
}

START_TEST(test_many_publishes_each_have_their_result) {
        enum { N = 1000 };
        struct fake *f = fake_start(script_publish_many, NULL);
        omni_client *c = client_of(f);
        omni_publish_options *tasks = calloc(N + 1, sizeof(*tasks));
        omni_publish_result *results = calloc(N + 1, sizeof(*results));
        char(*contents)[8] = calloc(N, sizeof(*contents));
        for (int i = 0; i < N; i++) {
                tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                tasks[i].topic = "many";
                tasks[i].content = contents[i];
                snprintf(contents[i], sizeof(contents[i]), "%d", i);
        }
        tasks[N] = tasks[0];
        tasks[N].content = "{"; /* refused here, the others go on */
        ck_assert_int_eq(omni_publish_many(c, tasks, N + 1, results), N - 10);
        for (int i = 0; i < N; i++) {
                char id[20];
                snprintf(id, sizeof(id), "i%d", i);
                ck_assert_int_eq(results[i].status, i % 100 == 7 ? -EACCES : i % 100 == 8);
                ck_assert_str_eq(results[i].id, i % 100 == 7 ? "" : id);
        }
        ck_assert_int_eq(results[N].status, -EINVAL);
        ck_assert_str_eq(results[7].error, "no 7");
        ck_assert_int_eq(omni_publish_many(c, NULL, 0, NULL), 0);
        free(tasks);
        free(results);
        free(contents);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_async(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "task.publish");
        ck_assert(fake_has(f, "\"content\":\"first\"") && fake_has(f, "\"content\":\"second\""));
        ck_assert(fake_has(f,
                "\"payload\":{\"content\":\"second\",\"reply_to\":\"r\",\"webhook\":\"http://x\"},\"key\":\"k\","
                "\"idempotency_key\":\"i\",\"correlation_id\":\"co\",\"causation_id\":\"ca\",\"source\":\"s\",\"tenant_id\":\"acme\","
                "\"traceparent\":\"tr\",\"headers\":{\"h\":\"v\"},\"priority\":9,\"ttl_ms\":1,\"delay_ms\":2}"));
        fake_reply(f, "{\"results\":[{\"id\":\"1\"},{\"error\":{\"code\":-32000,\"message\":\"full\",\"data\":{\"kind\":\"limit\"}}}]}");
        fake_expect(f, "task.publish");
        fake_error(f, "unavailable", "stopping");
        fake_expect(f, "task.publish");
        fake_reply(f, "{\"results\":[]}");
        fake_expect(f, "task.publish");
        fake_reply(f, "{\"results\":[{\"id\":7}]}");
        fake_read(f);
}

static void keep_published(omni_client *c, int status, const char *id, const char *error, void *user) {
        struct heard *h = user;
        h->n++;
        h->status = status;
        snprintf(h->text, sizeof(h->text), "%s", status < 0 ? error : id);
}

START_TEST(test_publishes_of_one_turn_travel_together_and_are_told_apart) {
        struct fake *f = fake_start(script_async, NULL);
        omni_client *c = client_of(f);
        struct heard first = { 0 }, second = { 0 };
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = "t";
        task.content = "\"first\"";
        ck_assert_int_eq(omni_publish_async(c, &task, keep_published, &first), 0);
        task.content = "{";
        ck_assert_int_eq(omni_publish_async(c, &task, keep_published, &second), -EINVAL);
        task.content = "\"second\" ";
        task.content_len = 8;
        task.reply_to = "r", task.webhook = "\"http://x\"", task.key = "k", task.idempotency_key = "i", task.correlation_id = "co";
        task.causation_id = "ca", task.source = "s", task.tenant_id = "acme", task.traceparent = "tr", task.headers = "{\"h\":\"v\"}";
        task.priority = 9, task.ttl_ms = 1, task.delay_ms = 2;
        ck_assert_int_eq(omni_publish_async(c, &task, keep_published, &second), 0);
        ck_assert_int_eq(first.n, 0);
        ck_assert_int_eq(omni_flush(c, 5000), 0);
        ck_assert_int_eq(first.n, 1);
        ck_assert_int_eq(first.status, 0);
        ck_assert_str_eq(first.text, "1");
        ck_assert_int_eq(second.n, 1);
        ck_assert_int_eq(second.status, -ENOBUFS);
        ck_assert_str_eq(second.text, "full");
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), -EAGAIN);
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), -EPROTO);
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), -EPROTO);
        omni_free(c);
        fake_finish(f);
}
END_TEST

START_TEST(test_queues_are_bounded_while_the_daemon_is_away) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = "/tmp/no/such";
        options.buffer_max = 1 << 20;
        options.pending_max = 50;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        char content[1002];
        memset(content, 'x', sizeof(content));
        content[0] = content[1000] = '"';
        content[1001] = '\0';
        task.topic = "t";
        task.content = content;
        struct heard h = { 0 };
        int n = 0;
        while (omni_publish_async(c, &task, keep_published, &h) == 0)
                ck_assert_int_lt(++n, 2000);
        ck_assert_int_gt(n, 800);
        int calls = 0;
        omni_client *d;
        ck_assert_int_eq(omni_new(&options, &d), 0);
        while (omni_call_async(d, "ping", NULL, NULL, NULL) == 0)
                ck_assert_int_lt(++calls, 100);
        ck_assert_int_eq(calls, 50);
        omni_free(d);
        omni_free(c); /* tells each that it is cancelled */
        ck_assert_int_eq(h.n, n);
        ck_assert_int_eq(h.status, -ECANCELED);
}
END_TEST

static void script_results(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "task.get");
        ck_assert(fake_has(f, "{\"id\":\"x\",\"agent\":\"a\",\"wait_ms\":"));
        fake_meet(f);
        fake_expect(f, "task.get");
        fake_reply(f, "{\"task_id\":\"x\",\"status\":\"completed\"}");
        fake_expect(f, "task.get");
        ck_assert(!fake_has(f, "wait_ms"));
        fake_error(f, "not_found", "no result for task y");
        fake_expect(f, "task.get");
        fake_error(f, "timeout", "no result for task y within 5 ms");
        fake_read(f);
}

START_TEST(test_waiting_for_a_result_survives_a_restart) {
        struct fake *f = fake_start(script_results, NULL);
        omni_client *c = client_of(f);
        char *record;
        ck_assert_int_eq(omni_result_get(c, "x", "a", 5000, &record, NULL), 0);
        ck_assert_str_eq(record, "{\"task_id\":\"x\",\"status\":\"completed\"}");
        free(record);
        ck_assert_int_eq(omni_result_get(c, "y", NULL, 0, &record, NULL), -ENOENT);
        ck_assert_int_eq(omni_result_get(c, "y", NULL, 5, &record, NULL), -ETIMEDOUT);
        omni_free(c);
        fake_finish(f);
}
END_TEST

/* -- loops, stopping ----------------------------------------------------------------------------------------------- */

static void script_loop(struct fake *f) {
        fake_meet(f);
        fake_expect(f, "task.publish");
        fake_reply(f, "{\"results\":[{\"id\":\"1\"}]}");
        fake_meet(f); /* the descriptor stays the same */
        fake_expect(f, "ping");
        fake_reply(f, "{}");
        fake_read(f);
}

START_TEST(test_a_callers_own_loop_serves_the_client) {
        struct fake *f = fake_start(script_loop, NULL);
        omni_client *c = client_of(f);
        struct heard published = { 0 }, ping = { 0 };
        int fd = omni_fd(c);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = "t";
        task.content = "1";
        ck_assert_int_eq(omni_publish_async(c, &task, keep_published, &published), 0);
        ck_assert_int_eq(omni_timeout_ms(c), 0);
        bool asked = false;
        int turns = 0;
        while (!ping.n && ++turns < 500) {
                struct pollfd p = { .fd = fd, .events = omni_events(c) };
                int64_t timeout = omni_timeout_ms(c);
                poll(&p, 1, timeout < 0 || timeout > 1000 ? 1000 : (int) timeout);
                ck_assert_int_ge(omni_process(c), 0);
                if (published.n && !asked) {
                        asked = true;
                        ck_assert_int_eq(omni_call_async(c, "ping", NULL, hear, &ping), 0);
                }
        }
        ck_assert_int_eq(published.status, 0);
        ck_assert_int_eq(ping.n, 1);
        ck_assert_int_eq(omni_fd(c), fd);
        ck_assert_int_lt(turns, 200); /* it waits, it does not spin */
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void *stop_soon(void *client) {
        poll(NULL, 0, 30);
        omni_stop(client);
        return NULL;
}

static void *wake_soon(void *client) {
        poll(NULL, 0, 30);
        omni_wakeup(client);
        return NULL;
}

START_TEST(test_stop_and_wakeup_come_from_other_threads) {
        struct fake *f = fake_start(script_never_answers, NULL);
        omni_client *c = client_of(f);
        pthread_t thread;
        pthread_create(&thread, NULL, stop_soon, c);
        ck_assert_int_eq(omni_run(c), 0);
        pthread_join(thread, NULL);
        pthread_create(&thread, NULL, stop_soon, c);
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), -ECANCELED);
        pthread_join(thread, NULL);
        pthread_create(&thread, NULL, wake_soon, c);
        ck_assert_int_eq(omni_run_once(c, -1), 0);
        pthread_join(thread, NULL);
        ck_assert_int_eq(omni_run_once(c, 5), 0);
        omni_stop(c);
        ck_assert_int_eq(omni_run_once(c, -1), -ECANCELED);
        omni_stop(c); /* before the run: it returns at once */
        ck_assert_int_eq(omni_run(c), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static omni_client *signalled;
/* NOLINTNEXTLINE(bugprone-signal-handler): omni_stop() is made for this. */
static void on_alarm(int number) { omni_stop(signalled); }

START_TEST(test_stop_comes_from_a_signal_handler) {
        struct fake *f = fake_start(script_never_answers, NULL);
        omni_client *c = signalled = client_of(f);
        signal(SIGALRM, on_alarm);
        ualarm(30000, 0);
        ck_assert_int_eq(omni_run(c), 0);
        signal(SIGALRM, SIG_DFL);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void script_ping_twice(struct fake *f) {
        fake_meet(f);
        for (int i = 0; i < 2; i++) {
                fake_expect(f, "ping");
                fake_reply(f, "{}");
        }
        ck_assert_ptr_null(fake_read(f));
}

START_TEST(test_freeing_in_a_forks_child_leaves_the_parents_connection_alone) {
        static struct fake *f; /* the child's copy is not lost when it ends */
        f = fake_start(script_ping_twice, NULL);
        omni_client *c = client_of(f);
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), 0);
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) {
                omni_free(c);
                _exit(0);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        ck_assert_int_eq(omni_call(c, "ping", NULL, NULL, NULL), 0);
        omni_free(c);
        fake_finish(f);
}
END_TEST

static void *get_default(void *unused) { return omni_default(); }

START_TEST(test_the_default_client_is_one_for_all_threads_and_made_from_the_environment) {
        setenv("OMNIDAEMON_CALL_TIMEOUT_MS", "soon", 1);
        ck_assert_ptr_null(omni_default());
        ck_assert_int_eq(errno, EINVAL);
        setenv("OMNIDAEMON_CALL_TIMEOUT_MS", "1000", 1);
        setenv("OMNIDAEMON_CONNECT_TIMEOUT_MS", "0", 1);
        setenv("OMNIDAEMON_SOCKET", "/tmp/no/such/from-the-environment", 1);
        setenv("OMNIDAEMON_CLIENT_NAME", "tester", 1);
        pthread_t threads[4];
        void *got[4];
        for (int i = 0; i < 4; i++)
                pthread_create(&threads[i], NULL, get_default, NULL);
        for (int i = 0; i < 4; i++)
                pthread_join(threads[i], &got[i]);
        for (int i = 1; i < 4; i++)
                ck_assert_ptr_eq(got[0], got[i]);
        omni_client *c = omni_default();
        ck_assert_ptr_eq(c, got[0]);
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), -ENOENT);
        ck_assert_ptr_nonnull(strstr(omni_strerror(c), "from-the-environment"));
        omni_free(c);
        ck_assert_ptr_nonnull(omni_default()); /* a new one; freed at exit */
}
END_TEST

int main(void) {
        Suite *suite = suite_create("libomniclient");
        TCase *clients = tcase_create("clients"), *ends = tcase_create("connections that end"), *bad = tcase_create("rubbish"),
              *agents = tcase_create("agents"), *nested = tcase_create("inside handlers"), *publishing = tcase_create("publishing"),
              *loops = tcase_create("loops");
        tcase_add_test(clients, test_a_missing_daemon_is_named_with_what_to_do);
        tcase_add_test(clients, test_connect_timeout_bounds_the_wait_for_a_daemon);
        tcase_add_test(clients, test_a_path_that_no_socket_can_have_fails_at_once);
        tcase_add_test(clients, test_wrong_options_are_refused);
        tcase_add_test(clients, test_a_daemon_of_another_protocol_is_refused_with_its_words);
        tcase_add_test(clients, test_answers_find_their_calls_in_any_order);
        tcase_add_test(clients, test_each_kind_of_error_has_its_errno);
        tcase_add_test(clients, test_calls_that_are_wrong_are_refused_without_a_daemon);
        tcase_add_test(ends, test_reads_are_repeated_after_a_reconnect_and_others_are_not);
        tcase_add_test(ends, test_a_publish_without_answer_is_sent_again_as_the_same_task);
        tcase_add_test(ends, test_frames_cut_off_anywhere_are_dropped);
        tcase_add_test(ends, test_frames_that_come_byte_by_byte_are_whole);
        tcase_add_test(ends, test_an_answer_that_does_not_come_times_out);
        tcase_add_test(ends, test_an_answer_that_comes_too_late_does_no_harm);
        tcase_add_loop_test(bad, test_rubbish_is_a_protocol_error_and_no_crash, 0, (int) (sizeof(rubbish) / sizeof(rubbish[0])));
        tcase_add_loop_test(bad, test_a_bad_task_is_a_protocol_error, 0, (int) (sizeof(bad_tasks) / sizeof(bad_tasks[0])));
        tcase_add_test(bad, test_more_tasks_than_prefetch_are_a_protocol_error);
        tcase_add_test(agents, test_an_agent_gets_a_task_as_it_was_published_and_acks_it);
        tcase_add_test(agents, test_acks_of_one_turn_travel_together_behind_the_publishes);
        tcase_add_test(agents, test_agents_register_again_and_held_tasks_are_lost_after_a_reconnect);
        tcase_add_test(agents, test_an_ack_without_answer_is_stale_after_the_connection_ends);
        tcase_add_test(agents, test_each_ack_of_a_refused_batch_has_its_own_outcome);
        tcase_add_test(agents, test_a_result_that_is_not_json_fails_its_task_only);
        tcase_add_test(agents, test_a_failure_carries_its_reason);
        tcase_add_test(agents, test_outputs_travel_with_the_ack);
        tcase_add_test(agents, test_held_tasks_are_extended_until_they_are_revoked);
        tcase_add_test(agents, test_extend_goes_out_while_the_handler_runs);
        tcase_add_test(agents, test_run_ends_when_the_last_agent_was_deleted);
        tcase_add_test(agents, test_a_refused_registration_is_told);
        tcase_add_test(agents, test_the_options_of_an_agent_become_its_config);
        tcase_add_test(agents, test_all_options_of_an_agent_are_sent);
        tcase_add_test(nested, test_a_handler_may_block_and_no_other_handler_runs_meanwhile);
        tcase_add_test(nested, test_an_agent_may_be_unregistered_by_its_own_handler);
        tcase_add_test(nested, test_a_connection_that_ends_inside_a_handler_is_made_again_there);
        tcase_add_test(publishing, test_many_publishes_each_have_their_result);
        tcase_add_test(publishing, test_publishes_of_one_turn_travel_together_and_are_told_apart);
        tcase_add_test(publishing, test_queues_are_bounded_while_the_daemon_is_away);
        tcase_add_test(publishing, test_waiting_for_a_result_survives_a_restart);
        tcase_add_test(loops, test_a_callers_own_loop_serves_the_client);
        tcase_add_test(loops, test_stop_and_wakeup_come_from_other_threads);
        tcase_add_test(loops, test_stop_comes_from_a_signal_handler);
        tcase_add_test(loops, test_freeing_in_a_forks_child_leaves_the_parents_connection_alone);
        tcase_add_test(loops, test_the_default_client_is_one_for_all_threads_and_made_from_the_environment);
        TCase *all[] = { clients, ends, bad, agents, nested, publishing, loops };
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
                tcase_set_timeout(all[i], 30);
                suite_add_tcase(suite, all[i]);
        }
        return om_test_main(suite);
}
