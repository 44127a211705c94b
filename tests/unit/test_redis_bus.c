/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the bus on Redis does beside the contract (test_contract_bus.c), on a real server: the Python OmniDaemon's form, trimming, limits,
 * what a dead daemon leaves, a group that the server forgot, and what its health says.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../lib/bus_user.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

extern const struct om_bus_ops om_redis_bus_ops;

static char *folder;
static struct om_test_server *server;
static struct bus_user u;

static void begin(const char *parameters) {
        char dir[300], url[300];
        folder = test_folder();
        snprintf(dir, sizeof(dir), "%s/server", folder);
        server = om_test_server_start("redis", dir);
        snprintf(url, sizeof(url), "%s%s", om_test_server_value(server, "bus_url"), parameters);
        ck_assert_msg(bus_open(&u, &om_redis_bus_ops, url, folder) == 0, "%s", u.error.message);
}
static void end(void) {
        bus_close(&u);
        om_test_server_stop(server);
        test_folder_remove(folder);
}

/* What redis-cli says; valid until the next. */
static const char *cli(const char *arguments) {
        static char text[4096];
        char command[2000];
        const char *port = strrchr(om_test_server_value(server, "bus_url"), ':');
        snprintf(command, sizeof(command), "redis-cli -p %d %s", atoi(port + 1), arguments);
        FILE *f = popen(command, "r");
        ck_assert_ptr_nonnull(f);
        size_t n = fread(text, 1, sizeof(text) - 1, f);
        pclose(f);
        while (n && text[n - 1] == '\n')
                n--;
        text[n] = 0;
        return text;
}

START_TEST(test_task_is_written_as_python_reads_it_and_read_as_python_writes_it) {
        begin("");
        ck_assert_int_eq(bus_put(&u,
                                 "{\"id\":\"i1\",\"topic\":\"greet\",\"payload\":{\"content\":{\"b\":1,\"a\":1e400},\"reply_to\":\"back\"},"
                                 "\"created_at\":12.5,\"source\":\"s\",\"tenant_id\":\"t\"}",
                                 NULL),
                0);
        ck_assert_ptr_nonnull(strstr(cli("xrange omni-stream:greet - +"),
                "{\"content\":{\"b\":1,\"a\":1e400},\"webhook\":null,\"reply_to\":\"back\",\"topic\":\"greet\",\"task_id\":\"i1\","
                "\"correlation_id\":null,\"causation_id\":null,\"source\":\"s\",\"delivery_attempts\":0,\"created_at\":12.5,\"tenant_id\":"
                "\"t\"}"));
        cli("xadd omni-stream:greet '*' data '{\"content\": [1, 2], \"webhook\": null, \"reply_to\": null, \"topic\": \"greet\", "
            "\"task_id\": "
            "\"p1\", \"correlation_id\": \"c\", \"delivery_attempts\": 0, \"created_at\": 1795425242.13, \"new\": {}}'");
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_uint_eq(bus_take(g, 2, 5000), 2);
        ck_assert(om_span_is(g->got[0]->record,
                "{\"id\":\"i1\",\"topic\":\"greet\",\"payload\":{\"content\":{\"b\":1,\"a\":1e400},\"reply_to\":\"back\"},\"created_at\":"
                "12.5,"
                "\"tenant_id\":\"t\",\"source\":\"s\"}"));
        ck_assert(om_span_is(g->got[1]->record,
                "{\"id\":\"p1\",\"topic\":\"greet\",\"payload\":{\"content\":[1, "
                "2]},\"created_at\":1795425242.13,\"correlation_id\":\"c\"}"));
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), 0);
        bus_unserve(g);
        end();
}
END_TEST

START_TEST(test_entry_that_is_no_task_goes_to_the_dead_letters) {
        begin("");
        cli("xadd omni-stream:greet '*' data '{\"content\": NaN}'");
        cli("xadd omni-stream:greet '*' other 1");
        ck_assert_int_eq(bus_put_many(&u, "greet", 7, 1), 0);
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        ck_assert_int_eq(bus_content(g->got[0]), 7);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        for (int i = 0; i < 50 && bus_group_row(&u, "greet", "one").dead < 2; i++)
                bus_run(&u, 20);
        ck_assert_uint_eq(bus_group_row(&u, "greet", "one").dead, 2);
        ck_assert_uint_eq(bus_group_row(&u, "greet", "one").leased, 0);
        ck_assert_ptr_nonnull(strstr(cli("xrange omni-dlq:group:greet:one - +"), "not_a_task"));
        bus_unserve(g);
        end();
}
END_TEST

START_TEST(test_only_what_all_groups_have_finished_is_trimmed) {
        begin("");
        struct bus_group *one = bus_serve(&u, "greet", "one", OM_START_FIRST, 0), *two = bus_serve(&u, "greet", "two", OM_START_FIRST, 0);
        cli("xgroup create omni-stream:greet group:greet:python 0"); /* the Python one's, who reads nothing */
        ck_assert_int_eq(bus_put_many(&u, "greet", 0, 10), 0);
        ck_assert_uint_eq(bus_take(one, 10, 5000), 10);
        ck_assert_uint_eq(bus_take(two, 10, 5000), 10);
        ck_assert_int_eq(bus_settle(one, 0, 10, OM_ACK, 0), 0);
        ck_assert_int_eq(bus_settle(two, 0, 5, OM_ACK, 0), 0);
        bus_run(&u, 1300);
        ck_assert_str_eq(cli("xlen omni-stream:greet"), "10");
        cli("xgroup destroy omni-stream:greet group:greet:python");
        ck_assert_int_eq(bus_settle(two, 0, 1, OM_ACK, 0), 0);
        bus_run(&u, 1300);
        ck_assert_str_eq(cli("xlen omni-stream:greet"), "4");
        ck_assert_int_eq(bus_settle(two, 0, 4, OM_ACK, 0), 0);
        bus_run(&u, 1300);
        ck_assert_str_eq(cli("xlen omni-stream:greet"), "0");
        ck_assert_uint_eq(bus_topic(&u, "greet").published, 10);
        bus_unserve(one);
        bus_unserve(two);
        end();
}
END_TEST

START_TEST(test_full_topic_refuses_until_tasks_are_finished) {
        begin("?max_topic_tasks=5");
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 0, 5), 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 5, 1), -ENOBUFS);
        ck_assert_uint_eq(bus_take(g, 2, 5000), 2);
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 5, 2), 0); /* room is made when it is wanted */
        ck_assert_int_eq(bus_put_many(&u, "greet", 7, 1), -ENOBUFS);
        bus_unserve(g);
        end();
}
END_TEST

START_TEST(test_group_that_the_server_forgot_is_made_again) {
        begin("");
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 0, 2), 0);
        ck_assert_uint_eq(bus_take(g, 2, 5000), 2);
        cli("flushall");
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), -ESTALE);
        ck_assert_int_eq(bus_put_many(&u, "greet", 2, 1), 0);
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        ck_assert_int_eq(bus_content(g->got[0]), 2);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        bus_unserve(g);
        end();
}
END_TEST

START_TEST(test_retries_are_counted_where_python_counts_them_and_releases_are_not) {
        begin("");
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 1, 1), 0);
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RELEASE, 0), 0);
        ck_assert_uint_eq(bus_group_row(&u, "greet", "one").lag, 1);
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 1);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, om_now_ms() + 100), 0);
        ck_assert_str_eq(cli("hvals retry_counts:group:greet:one"), "1");
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 2);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        ck_assert_str_eq(cli("hlen retry_counts:group:greet:one"), "0");
        bus_unserve(g);
        end();
}
END_TEST

/* A consumer that shows no sign of life: reclaim_idle_ms of bus_serve() is the default of three minutes, so it is made to look idle for
 * longer. */
START_TEST(test_what_a_dead_daemon_held_is_taken_over_with_the_attempt_counted) {
        begin("");
        ck_assert_int_eq(bus_put_many(&u, "greet", 1, 2), 0);
        cli("xgroup create omni-stream:greet group:greet:one 0");
        cli("xreadgroup group group:greet:one omnidaemon:gone:x:y count 2 streams omni-stream:greet '>'");
        char claim[200], first[64];
        ck_assert_int_eq(sscanf(cli("--raw xpending omni-stream:greet group:greet:one - + 1"), "%63s", first), 1);
        snprintf(claim, sizeof(claim), "xclaim omni-stream:greet group:greet:one omnidaemon:gone:x:y 0 %s idle 200000 justid", first);
        cli(claim);
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert(!g->created);
        ck_assert_uint_eq(bus_take(g, 2, 500), 1); /* the other one is leased still */
        ck_assert_int_eq(bus_content(g->got[0]), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 2);
        ck_assert_uint_eq(bus_group_row(&u, "greet", "one").leased, 2);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        bus_unserve(g);
        end();
}
END_TEST

/* The name is kept in the state folder, so the next life of a daemon need not wait until it looks dead. */
START_TEST(test_daemon_takes_at_once_what_it_held_in_an_earlier_life) {
        begin("");
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 1, 1), 0);
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        bus_close(&u); /* without a word about what is out */
        bus_forget(g);
        ck_assert_int_eq(bus_open(&u, &om_redis_bus_ops, om_test_server_value(server, "bus_url"), folder), 0);
        g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_uint_eq(bus_take(g, 1, 5000), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 2);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        bus_unserve(g);
        end();
}
END_TEST

START_TEST(test_seeking_starts_a_group_again_and_retention_keeps_what_is_finished) {
        begin("?retention_ms=1h");
        struct bus_group *g = bus_serve(&u, "greet", "one", OM_START_DEFAULT, 0);
        ck_assert_int_eq(bus_put_many(&u, "greet", 0, 3), 0);
        ck_assert_uint_eq(bus_take(g, 3, 5000), 3);
        ck_assert_int_eq(bus_settle(g, 0, 3, OM_ACK, 0), 0);
        bus_run(&u, 1300);
        ck_assert_uint_eq(bus_topic(&u, "greet").depth, 0);
        struct om_bus_change c = { .type = OM_CHANGE_SEEK, .topic = OM_SPAN("greet"), .agent = OM_SPAN("one"), .start = OM_START_FIRST };
        ck_assert_int_eq(bus_change(&u, &c), 0);
        ck_assert_uint_eq(c.ret_n, 3);
        ck_assert_uint_eq(bus_take(g, 3, 5000), 3);
        ck_assert_int_eq(bus_content(g->got[0]), 0);
        ck_assert_int_eq(bus_settle(g, 0, 3, OM_ACK, 0), 0);
        bus_unserve(g);
        end();
}
END_TEST

/* Only the first finds out by publishing; then nothing is sent, and so doubled by who tries again, until the replica is there. */
START_TEST(test_while_replicas_are_missing_publishes_fail_and_add_nothing) {
        begin("?wait_replicas=1&wait_timeout_ms=50");
        struct om_outcome outcome;
        char dir[300];
        for (int i = 0; i < 5; i++)
                ck_assert_int_eq(bus_put(&u, "{\"topic\":\"greet\",\"payload\":{\"content\":1}}", &outcome), -EAGAIN);
        ck_assert_str_eq(cli("xlen omni-stream:greet"), "1");
        snprintf(dir, sizeof(dir), "%s/replica", folder);
        struct om_test_server *replica = om_test_server_start("redis", dir);
        const char *primary = strrchr(om_test_server_value(server, "bus_url"), ':') + 1;
        char command[600];
        snprintf(command, sizeof(command), "redis-cli -p %d replicaof 127.0.0.1 %d >/dev/null",
                atoi(strrchr(om_test_server_value(replica, "bus_url"), ':') + 1), atoi(primary));
        ck_assert_int_eq(system(command), 0);
        int r = -EAGAIN;
        for (int i = 0; i < 200 && r == -EAGAIN; i++) {
                r = bus_put(&u, "{\"topic\":\"greet\",\"payload\":{\"content\":1}}", &outcome);
                bus_run(&u, 50);
        }
        ck_assert_int_eq(r, 0);
        ck_assert_int_ge(atoi(cli("xlen omni-stream:greet")), 2); /* more where the replica was slower than wait_timeout_ms at first */
        om_test_server_stop(replica);
        end();
}
END_TEST

START_TEST(test_health_knows_weak_from_strong) {
        begin("");
        struct om_bus_query q = { .type = OM_QUERY_HEALTH };
        ck_assert_int_eq(bus_query(&u, &q), 0);
        ck_assert_ptr_nonnull(memmem(q.info.p, q.info.len, "\"durability\":\"strong\"", 21));
        om_arena_deinit(&q.arena);
        cli("config set appendfsync everysec");
        q = (struct om_bus_query){ .type = OM_QUERY_HEALTH };
        ck_assert_int_eq(bus_query(&u, &q), 0);
        ck_assert_ptr_nonnull(memmem(q.info.p, q.info.len, "\"durability\":\"weak\"", 19));
        ck_assert_ptr_nonnull(memmem(q.info.p, q.info.len, "appendfsync everysec", 20));
        om_arena_deinit(&q.arena);
        end();
}
END_TEST

int main(void) {
        Suite *s = suite_create("the bus on Redis");
        TCase *t = tcase_create("bus");
        tcase_set_timeout(t, 60);
        tcase_add_test(t, test_task_is_written_as_python_reads_it_and_read_as_python_writes_it);
        tcase_add_test(t, test_entry_that_is_no_task_goes_to_the_dead_letters);
        tcase_add_test(t, test_only_what_all_groups_have_finished_is_trimmed);
        tcase_add_test(t, test_full_topic_refuses_until_tasks_are_finished);
        tcase_add_test(t, test_group_that_the_server_forgot_is_made_again);
        tcase_add_test(t, test_retries_are_counted_where_python_counts_them_and_releases_are_not);
        tcase_add_test(t, test_daemon_takes_at_once_what_it_held_in_an_earlier_life);
        tcase_add_test(t, test_what_a_dead_daemon_held_is_taken_over_with_the_attempt_counted);
        tcase_add_test(t, test_seeking_starts_a_group_again_and_retention_keeps_what_is_finished);
        tcase_add_test(t, test_while_replicas_are_missing_publishes_fail_and_add_nothing);
        tcase_add_test(t, test_health_knows_weak_from_strong);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
