/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libomniclient against the real daemon: publish, serve, settle, and go on through restarts and kills.
 */
#include "../../client/c/omniclient.h"
#include "../lib/daemon_proc.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct om_test_daemon *daemon_;

static omni_client *client_new(void) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = om_test_daemon_socket(daemon_);
        options.connect_timeout_ms = 30000;
        options.call_timeout_ms = 60000;
        options.reconnect_max_ms = 100;
        omni_client *c;
        ck_assert_int_eq(omni_new(&options, &c), 0);
        return c;
}

static void start(void) { daemon_ = om_test_daemon_start(NULL, NULL, NULL); }
static void stop(void) {
        om_test_daemon_stop(daemon_);
        daemon_ = NULL;
}

#define OK(call) ck_assert_msg((call) >= 0, #call ": %s", omni_strerror(c))

static omni_agent *serve(omni_client *c, const char *topic, const char *name, omni_handler_fn *handler, void *user) {
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        omni_agent *a;
        options.topic = topic;
        options.name = name;
        options.retry_backoff_ms = 10;
        options.retry_backoff_max_ms = 20;
        OK(omni_agent_register(c, &options, handler, user, &a));
        return a;
}

/* -- handlers ------------------------------------------------------------------------------------------------------ */

struct count {
        int seen, stop_at, attempt;
        char id[OMNI_ID_SIZE];
        char content[200];
};

static void ack_and_count(omni_agent *agent, omni_task *task, void *user) {
        struct count *n = user;
        n->attempt = omni_task_attempt(task);
        snprintf(n->id, sizeof(n->id), "%s", omni_task_id(task));
        snprintf(n->content, sizeof(n->content), "%s", omni_task_content(task, NULL));
        ck_assert_int_eq(omni_task_ack(task, "{\"greeting\": \"hello\"}", OMNI_STR), 0);
        if (++n->seen == n->stop_at)
                omni_stop(omni_agent_client(agent));
}

START_TEST(test_a_task_goes_from_publisher_to_handler_and_its_result_back) {
        omni_client *c = client_new();
        struct count n = { .stop_at = 1 };
        char id[OMNI_ID_SIZE], *record;
        serve(c, "greet", "greeter", ack_and_count, &n);
        OK(omni_publish_json(c, "greet", "{ \"n\" : 12345678901234567890, \"n\":1 }", id));
        OK(omni_run(c));
        ck_assert_str_eq(n.id, id);
        ck_assert_str_eq(n.content, "{ \"n\" : 12345678901234567890, \"n\":1 }");
        ck_assert_int_eq(n.attempt, 1);
        OK(omni_result_get(c, id, "greeter", 10000, &record, NULL));
        ck_assert_ptr_nonnull(strstr(record, "\"greeting\""));
        ck_assert_ptr_nonnull(strstr(record, "\"completed\""));
        free(record);
        ck_assert_int_eq(omni_result_get(c, "no-such-task", NULL, 0, &record, NULL), -ENOENT);
        ck_assert_int_eq(omni_result_get(c, "no-such-task", NULL, 30, &record, NULL), -ETIMEDOUT);
        omni_free(c);
}
END_TEST

START_TEST(test_the_daemon_understands_every_option_that_the_library_sends) {
        omni_client *c = client_new(), *publisher = client_new(); /* on c, the handler's omni_stop() would end a publish */
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        struct count n = { .stop_at = 1 };
        omni_agent *a;
        options.topic = "all";
        options.name = "a";
        options.description = "says \"hello\"";
        options.tools = "[\"x\", {}]";
        options.worker = "w-1";
        options.prefetch = 3;
        options.dlq_retry_limit = 2;
        options.retry_backoff_ms = 100;
        options.retry_backoff_max_ms = 200;
        options.reclaim_idle_ms = 60000;
        options.start = "first";
        options.config = "{\"save_results\": true, \"callback_name\": \"cb\"}";
        OK(omni_agent_register(c, &options, ack_and_count, &n, &a));
        ck_assert_str_eq(omni_agent_group(a), "group:all:a");
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = "all";
        task.content = "null";
        task.id = "my-own-id";
        task.idempotency_key = "once";
        task.reply_to = "back";
        task.correlation_id = "co";
        task.causation_id = "ca";
        task.source = "s";
        task.tenant_id = "acme";
        task.traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        task.headers = "{\"h\":\"v\"}";
        char id[OMNI_ID_SIZE];
        ck_assert_msg(omni_publish(publisher, &task, id) == 0, "%s", omni_strerror(publisher));
        ck_assert_str_eq(id, "my-own-id");
        task.id = "another";
        ck_assert_int_eq(omni_publish(publisher, &task, id), 1);
        ck_assert_str_eq(id, "my-own-id");
        OK(omni_run(c));
        ck_assert_int_eq(n.seen, 1);
        char *agents;
        OK(omni_call(c, "agent.get", "{\"topic\":\"all\",\"name\":\"a\"}", &agents, NULL));
        ck_assert_ptr_nonnull(strstr(agents, "says \\\"hello\\\""));
        free(agents);
        OK(omni_agent_unregister(a));
        omni_free(publisher);
        omni_free(c);
}
END_TEST

START_TEST(test_many_tasks_are_published_and_handled_each_once) {
        enum { N = 5000 };
        omni_client *c = client_new();
        omni_publish_options *tasks = calloc(N, sizeof(*tasks));
        omni_publish_result *results = calloc(N, sizeof(*results));
        struct count n = { .stop_at = N };
        for (int i = 0; i < N; i++) {
                tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                tasks[i].topic = "many";
                tasks[i].content = "{\"a\":1}";
        }
        int64_t published = omni_publish_many(c, tasks, N, results);
        ck_assert_msg(published == N, "%lld: %s", (long long) published, omni_strerror(c));
        serve(c, "many", "worker", ack_and_count, &n);
        OK(omni_run(c));
        ck_assert_int_eq(n.seen, N);
        char *groups;
        OK(omni_call(c, "bus.groups", "{\"topic\":\"many\"}", &groups, NULL));
        ck_assert_msg(strstr(groups, "\"leased\":0") && strstr(groups, "\"lag\":0"), "%s", groups);
        free(groups);
        free(tasks);
        free(results);
        omni_free(c);
}
END_TEST

static void fail_twice(omni_agent *agent, omni_task *task, void *user) {
        struct count *n = user;
        n->seen++;
        if (omni_task_attempt(task) < 3) {
                ck_assert_int_eq(omni_task_fail(task, "not yet", "Early", 5, 0), 0);
                return;
        }
        n->attempt = omni_task_attempt(task);
        ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_a_failed_task_comes_back_with_its_attempt_counted) {
        omni_client *c = client_new();
        struct count n = { 0 };
        serve(c, "retry", "r", fail_twice, &n);
        OK(omni_publish_json(c, "retry", "1", NULL));
        OK(omni_run(c));
        ck_assert_int_eq(n.seen, 3);
        ck_assert_int_eq(n.attempt, 3);
        omni_free(c);
}
END_TEST

static void fail_for_good(omni_agent *agent, omni_task *task, void *user) {
        ck_assert_int_eq(omni_task_fail(task, "never", "Hopeless", -1, OMNI_FAIL_NO_RETRY), 0);
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_a_task_failed_for_good_is_a_dead_letter) {
        omni_client *c = client_new();
        serve(c, "dead", "d", fail_for_good, NULL);
        OK(omni_publish_json(c, "dead", "1", NULL));
        OK(omni_run(c));
        char *list;
        OK(omni_call(c, "dlq.list", "{\"topic\":\"dead\",\"agent\":\"d\"}", &list, NULL));
        ck_assert_msg(strstr(list, "\"never\"") && strstr(list, "\"Hopeless\""), "%s", list);
        free(list);
        omni_free(c);
}
END_TEST

/* A task stands deeper in what the daemon sends than in its publish. */
START_TEST(test_content_nested_to_the_limit_is_delivered_and_read_as_a_dead_letter) {
        enum { DEPTH = 60 }; /* the limit is 64; body, params, task, payload are around it */
        omni_client *c = client_new();
        char content[2 * DEPTH + 1], params[400], *list;
        memset(content, '[', DEPTH);
        memset(content + DEPTH, ']', DEPTH);
        content[2 * DEPTH] = '\0';
        serve(c, "deep", "d", fail_for_good, NULL);
        snprintf(params, sizeof(params), "{\"task\":{\"topic\":\"deep\",\"payload\":{\"content\":%s}}}", content);
        OK(omni_call(c, "task.publish", params, NULL, NULL));
        OK(omni_run(c));
        OK(omni_call(c, "dlq.list", "{\"topic\":\"deep\",\"agent\":\"d\"}", &list, NULL));
        ck_assert_ptr_nonnull(strstr(list, content));
        free(list);
        omni_free(c);
}
END_TEST

static void settled(omni_client *c, int status, const char *error, void *user) {
        *(int *) user = status;
        omni_stop(c);
}

static int settled_status;

static void hand_on(omni_agent *agent, omni_task *task, void *user) {
        omni_publish_options out[2] = { OMNI_PUBLISH_OPTIONS_INIT, OMNI_PUBLISH_OPTIONS_INIT };
        out[0].topic = out[1].topic = "stage2";
        out[0].content = "1";
        out[1].content = omni_task_content(task, NULL);
        ck_assert_int_eq(omni_task_ack_publish(task, "\"split\"", OMNI_STR, out, 2, settled, &settled_status), 0);
}

START_TEST(test_outputs_of_an_ack_are_published) {
        omni_client *c = client_new();
        struct count n = { .stop_at = 2 };
        settled_status = 77;
        serve(c, "stage1", "one", hand_on, NULL);
        OK(omni_publish_json(c, "stage1", "[2]", NULL));
        OK(omni_run(c));
        ck_assert_int_eq(settled_status, 0);
        serve(c, "stage2", "two", ack_and_count, &n);
        OK(omni_run(c));
        ck_assert_int_eq(n.seen, 2);
        omni_free(c);
}
END_TEST

static void publish_inside(omni_agent *agent, omni_task *task, void *user) {
        omni_client *c = omni_agent_client(agent);
        int *depth = user;
        ck_assert_int_eq((*depth)++, 0);
        OK(omni_publish_json(c, "inner", "1", NULL));
        char *health;
        OK(omni_call(c, "health", NULL, &health, NULL));
        free(health);
        (*depth)--;
        OK(omni_task_ack(task, NULL, 0));
}

START_TEST(test_handlers_may_block_on_the_same_client) {
        omni_client *c = client_new();
        int depth = 0;
        struct count n = { .stop_at = 20 };
        serve(c, "outer", "o", publish_inside, &depth);
        serve(c, "inner", "i", ack_and_count, &n);
        for (int i = 0; i < 20; i++)
                OK(omni_publish_json(c, "outer", "1", NULL));
        OK(omni_run(c));
        ck_assert_int_eq(n.seen, 20);
        omni_free(c);
}
END_TEST

START_TEST(test_what_the_daemon_refuses_has_errno_and_words) {
        omni_client *c = client_new();
        ck_assert_int_eq(omni_call(c, "no.such.method", NULL, NULL, NULL), -EOPNOTSUPP);
        ck_assert_int_eq(omni_call(c, "task.get", "{\"idd\":\"x\"}", NULL, NULL), -EINVAL);
        ck_assert_int_eq(omni_call(c, "config.get", "{\"key\":\"none\"}", NULL, NULL), -ENOENT);
        ck_assert_int_gt(strlen(omni_strerror(c)), 5);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = "t";
        task.content = "1";
        task.priority = 99;
        ck_assert_int_eq(omni_publish(c, &task, NULL), -EINVAL);
        ck_assert_int_eq(omni_publish_json(c, "t", "1", NULL), 0); /* the connection goes on */
        omni_free(c);
}
END_TEST

/* -- the daemon goes and comes ------------------------------------------------------------------------------------- */

START_TEST(test_client_and_agent_survive_restarts) {
        omni_client *c = client_new();
        struct count n = { .stop_at = 1 };
        omni_agent *a = serve(c, "again", "a", ack_and_count, &n);
        for (int i = 0; i < 3; i++) {
                n.seen = 0;
                if (i == 1)
                        om_test_daemon_kill9(daemon_), om_test_daemon_up(daemon_);
                if (i == 2)
                        om_test_daemon_restart(daemon_);
                OK(omni_publish_json(c, "again", "1", NULL));
                OK(omni_run(c));
                ck_assert_int_eq(n.seen, 1);
                ck_assert_int_eq(omni_agent_active(a), 1);
        }
        omni_free(c);
}
END_TEST

static void hold(omni_agent *agent, omni_task *task, void *user) {
        omni_task **held = user;
        if (*held) {
                ck_assert_int_eq(omni_task_lost(*held), 1);
                ck_assert_int_eq(omni_task_ack(*held, NULL, 0), -ESTALE);
                ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        }
        *held = *held ? NULL : task;
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_a_task_held_over_a_kill_is_delivered_again) {
        omni_client *c = client_new();
        omni_task *held = NULL;
        serve(c, "held", "h", hold, &held);
        OK(omni_publish_json(c, "held", "1", NULL));
        OK(omni_run(c));
        ck_assert_ptr_nonnull(held);
        om_test_daemon_kill9(daemon_);
        om_test_daemon_up(daemon_);
        OK(omni_run(c));
        ck_assert_ptr_null(held);
        omni_free(c);
}
END_TEST

/* Kills the daemon over and over while another thread publishes: whatever was answered must be there. */
static volatile int killing;

static void *killer(void *unused) {
        for (int i = 0; i < 5; i++) {
                poll(NULL, 0, 40 + i * 13);
                om_test_daemon_kill9(daemon_);
                om_test_daemon_up(daemon_);
        }
        __atomic_store_n(&killing, 0, __ATOMIC_SEQ_CST);
        return NULL;
}

struct seen {
        int n, wanted;
        unsigned char *times;
};

static void mark(omni_agent *agent, omni_task *task, void *user) {
        struct seen *s = user;
        int i = atoi(omni_task_content(task, NULL));
        ck_assert(i >= 0 && i < s->wanted);
        if (!s->times[i]++)
                s->n++;
        ck_assert_int_eq(omni_task_ack(task, NULL, 0), 0);
        if (s->n == s->wanted)
                omni_stop(omni_agent_client(agent));
}

START_TEST(test_no_publish_is_lost_while_the_daemon_is_killed_again_and_again) {
        omni_client *c = client_new();
        pthread_t thread;
        int n = 0;
        char content[20];
        killing = 1;
        ck_assert_int_eq(pthread_create(&thread, NULL, killer, NULL), 0);
        while (__atomic_load_n(&killing, __ATOMIC_SEQ_CST)) {
                omni_publish_options tasks[20];
                omni_publish_result results[20];
                char contents[20][20];
                for (int i = 0; i < 20; i++) {
                        tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                        snprintf(contents[i], sizeof(contents[i]), "%d", n + i);
                        tasks[i].topic = "kills";
                        tasks[i].content = contents[i];
                }
                int64_t published = omni_publish_many(c, tasks, 20, results);
                ck_assert_msg(published == 20, "%lld: %s", (long long) published, omni_strerror(c));
                n += 20;
                snprintf(content, sizeof(content), "%d", n);
                ck_assert_msg(omni_publish_json(c, "kills", content, NULL) == 0, "%s", omni_strerror(c));
                n++;
        }
        pthread_join(thread, NULL);
        struct seen seen = { .wanted = n, .times = calloc((size_t) n + 1, 1) };
        serve(c, "kills", "k", mark, &seen);
        OK(omni_run(c));
        ck_assert_int_eq(seen.n, n);
        free(seen.times);
        omni_free(c);
}
END_TEST

START_TEST(test_idempotency_keys_publish_once_though_the_daemon_is_killed) {
        omni_client *c = client_new();
        pthread_t thread;
        int n = 0;
        killing = 1;
        ck_assert_int_eq(pthread_create(&thread, NULL, killer, NULL), 0);
        while (__atomic_load_n(&killing, __ATOMIC_SEQ_CST)) {
                omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
                char content[20], key[20];
                snprintf(content, sizeof(content), "%d", n);
                snprintf(key, sizeof(key), "key-%d", n++);
                task.topic = "once";
                task.content = content;
                task.idempotency_key = key;
                int r = omni_publish(c, &task, NULL);
                ck_assert_msg(r == 0 || r == 1, "%d: %s", r, omni_strerror(c));
        }
        pthread_join(thread, NULL);
        struct seen seen = { .wanted = n, .times = calloc((size_t) n + 1, 1) };
        serve(c, "once", "o", mark, &seen);
        OK(omni_run(c));
        for (int i = 0; i < n; i++)
                ck_assert_int_eq(seen.times[i], 1);
        free(seen.times);
        omni_free(c);
}
END_TEST

/* -- two workers --------------------------------------------------------------------------------------------------- */

static void hold_only(omni_agent *agent, omni_task *task, void *user) {
        *(int *) user += 1;
        omni_stop(omni_agent_client(agent));
}

START_TEST(test_tasks_of_a_client_that_is_freed_go_to_another) {
        omni_client *first = client_new(), *c = client_new();
        int held = 0;
        struct count n = { .stop_at = 1 };
        serve(first, "share", "s", hold_only, &held);
        OK(omni_publish_json(c, "share", "1", NULL));
        ck_assert_int_eq(omni_run(first), 0);
        ck_assert_int_eq(held, 1);
        serve(c, "share", "s", ack_and_count, &n);
        omni_free(first);
        OK(omni_run(c));
        ck_assert_int_eq(n.seen, 1);
        ck_assert_int_eq(n.attempt, 2); /* the loss counts */
        omni_free(c);
}
END_TEST

START_TEST(test_unregistering_gives_tasks_back_uncounted) {
        omni_client *c = client_new();
        int held = 0;
        struct count n = { .stop_at = 1 };
        omni_agent *a = serve(c, "back", "b", hold_only, &held);
        OK(omni_publish_json(c, "back", "1", NULL));
        OK(omni_run(c));
        OK(omni_agent_unregister(a));
        serve(c, "back", "b", ack_and_count, &n);
        OK(omni_run(c));
        ck_assert_int_eq(n.attempt, 1);
        omni_free(c);
}
END_TEST

START_TEST(test_deleting_an_agent_ends_its_run) {
        omni_client *c = client_new(), *other = client_new();
        struct count n = { 0 };
        serve(c, "gone", "g", ack_and_count, &n);
        ck_assert_int_eq(omni_call(other, "agent.delete", "{\"topic\":\"gone\",\"name\":\"g\"}", NULL, NULL), 0);
        ck_assert_int_eq(omni_run(c), -ENOENT);
        omni_free(other);
        omni_free(c);
}
END_TEST

START_TEST(test_a_lease_is_extended_while_the_client_is_served) {
        omni_client *c = client_new();
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        struct count n = { 0 };
        int held = 0;
        options.topic = "slow";
        options.name = "s";
        options.reclaim_idle_ms = 300;
        OK(omni_agent_register(c, &options, hold_only, &held, NULL));
        OK(omni_publish_json(c, "slow", "1", NULL));
        OK(omni_run(c));
        for (int i = 0; i < 5; i++) /* five leases long */
                ck_assert_int_eq(omni_run_once(c, 300), 0);
        ck_assert_int_eq(held, 1);
        ck_assert_int_eq(n.seen, 0);
        omni_free(c);
}
END_TEST

START_TEST(test_a_lease_that_nobody_extends_is_lost) {
        omni_client *c = client_new();
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        omni_task *held = NULL;
        options.topic = "idle";
        options.name = "i";
        options.reclaim_idle_ms = 200;
        options.retry_backoff_ms = 0;
        options.manual_extend = 1;
        OK(omni_agent_register(c, &options, hold, &held, NULL));
        OK(omni_publish_json(c, "idle", "1", NULL));
        OK(omni_run(c)); /* holds it */
        OK(omni_run(c)); /* the same task again: the first is lost by then */
        ck_assert_ptr_null(held);
        omni_free(c);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("libomniclient and omnidaemond");
        TCase *work = tcase_create("working"), *ends = tcase_create("the daemon goes and comes"), *leases = tcase_create("leases");
        tcase_add_test(work, test_a_task_goes_from_publisher_to_handler_and_its_result_back);
        tcase_add_test(work, test_the_daemon_understands_every_option_that_the_library_sends);
        tcase_add_test(work, test_many_tasks_are_published_and_handled_each_once);
        tcase_add_test(work, test_a_failed_task_comes_back_with_its_attempt_counted);
        tcase_add_test(work, test_a_task_failed_for_good_is_a_dead_letter);
        tcase_add_test(work, test_content_nested_to_the_limit_is_delivered_and_read_as_a_dead_letter);
        tcase_add_test(work, test_outputs_of_an_ack_are_published);
        tcase_add_test(work, test_handlers_may_block_on_the_same_client);
        tcase_add_test(work, test_what_the_daemon_refuses_has_errno_and_words);
        tcase_add_test(ends, test_client_and_agent_survive_restarts);
        tcase_add_test(ends, test_a_task_held_over_a_kill_is_delivered_again);
        tcase_add_test(ends, test_no_publish_is_lost_while_the_daemon_is_killed_again_and_again);
        tcase_add_test(ends, test_idempotency_keys_publish_once_though_the_daemon_is_killed);
        tcase_add_test(leases, test_tasks_of_a_client_that_is_freed_go_to_another);
        tcase_add_test(leases, test_unregistering_gives_tasks_back_uncounted);
        tcase_add_test(leases, test_deleting_an_agent_ends_its_run);
        tcase_add_test(leases, test_a_lease_is_extended_while_the_client_is_served);
        tcase_add_test(leases, test_a_lease_that_nobody_extends_is_lost);
        TCase *all[] = { work, ends, leases };
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
                tcase_add_checked_fixture(all[i], start, stop);
                tcase_set_timeout(all[i], 60);
                suite_add_tcase(suite, all[i]);
        }
        return om_test_main(suite);
}
