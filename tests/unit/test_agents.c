/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Agents and what the storage keeps of them, and the methods that show it, over a fake bus and a fake storage that goes away and comes
 * back.
 */
#include <check.h>
#include <stdio.h>
#include <unistd.h>

#include "../../daemon/dispatch.h"
#include "../lib/fake_core.h"
#include "../lib/suite.h"

#define SETTING "_subscription_active:group:t:a"

static int fd;

static void set_up(void) {
        fake_set_up();
        fd = fake_connect();
}

static void set_up_with_language(void) {
        mem_can_query();
        set_up();
}

static void tear_down(void) {
        close(fd);
        fake_tear_down();
}

static const char *ask(const char *method, const char *params) {
        char body[2000];

        snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\",\"params\":%s}", method, params);
        client_send(fd, body);
        return client_read(fd);
}

static void expect_has(const char *body, const char *part) {
        ck_assert_ptr_nonnull(body);
        ck_assert_int_eq(om_json_check(om_span_of(body), 20, NULL), 0);
        ck_assert_msg(strstr(body, part), "%s\nlacks %s", body, part);
}

static void register_agent(const char *more) {
        char params[500];

        snprintf(params, sizeof params, "{\"name\":\"a\",\"topic\":\"t\"%s}", more);
        expect_has(ask("agent.register", params), "\"group\":\"group:t:a\"");
}

static const char *record(void) { return mem_stored(OM_STORE_AGENTS, "t", "a"); }

/* -- registering --------------------------------------------------------------------------------------------------- */

START_TEST(test_a_registration_saves_the_agents_record_with_the_config_in_force) {
        register_agent(
                ",\"description\":\"greets\",\"tools\":[ \"x\" ],\"config\":{\"prefetch\":5,\"callback_name\":\"cb\",\"start\":\"first\"}");
        expect_has(record(),
                "{\"name\":\"a\",\"topic\":\"t\",\"callback_name\":\"cb\",\"description\":\"greets\",\"tools\":[ \"x\" ],\"config\":"
                "{\"prefetch\":5,\"dlq_retry_limit\":3,\"retry_backoff_ms\":1000,\"retry_backoff_max_ms\":60000,"
                "\"reclaim_idle_ms\":0,\"start\":\"first\",\"save_results\":true},\"created_at\":");
        ck_assert_str_eq(mem_stored(OM_STORE_CONFIG, SETTING, ""), "true");
}
END_TEST

START_TEST(test_a_second_registration_keeps_created_at_and_writes_nothing_when_nothing_changed) {
        mem_store(OM_STORE_AGENTS, "t", "a", "{ \"name\": \"a\", \"created_at\": 12.5, \"agent_id\": 1 }");
        register_agent("");
        expect_has(record(), "\"created_at\":12.5}");
        mem.entries = 0;
        register_agent("");
        ck_assert_uint_eq(mem.entries, 0);
        register_agent(",\"config\":{\"prefetch\":7}");
        ck_assert_uint_eq(mem.entries, 1);
        expect_has(record(), "\"prefetch\":7");
        expect_has(record(), "\"created_at\":12.5}");
}
END_TEST

START_TEST(test_wrong_registrations_are_refused_and_say_what_is_wrong) {
        static const char *const wrong[][2] = {
                { "{\"topic\":\"t\"}", "name" },
                { "{\"name\":\"a\"}", "topic" },
                { "{\"name\":\"\",\"topic\":\"t\"}", "name" },
                { "{\"name\":\"a\",\"topic\":\"omni-dlq:x\"}", "topic" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"confg\":{}}", "config" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"prefetch\":0}}", "prefetch" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"prefetch\":1001}}", "prefetch" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"prefetch\":1.5}}", "prefetch" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"dlq_retry_limit\":-1}}", "dlq_retry_limit" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"start\":\"last\"}}", "start" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"start\":-5}}", "start" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"config\":{\"save_results\":1}}", "save_results" },
                { "{\"name\":\"a\",\"topic\":\"t\",\"tools\":{}}", "tools" },
        };

        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
                const char *body = ask("agent.register", wrong[i][0]);

                expect_has(body, "\"code\":-32602");
                expect_has(body, wrong[i][1]);
        }
        expect_has(ask("agent.register", "{\"name\":\"a\",\"topic\":\"t.*\"}"), "\"kind\":\"unsupported\"");
        ck_assert_ptr_null(record());
}
END_TEST

START_TEST(test_an_agent_is_served_while_the_storage_is_away_and_saved_when_it_is_back) {
        mem_store_state(OM_STORE_CONNECTING);
        register_agent(",\"description\":\"d\"");
        ck_assert_ptr_null(record());
        mem_store_state(OM_STORE_READY);
        fake_turn();
        expect_has(record(), "\"description\":\"d\"");
        ck_assert_str_eq(mem_stored(OM_STORE_CONFIG, SETTING, ""), "true");
}
END_TEST

START_TEST(test_a_pause_that_the_storage_knew_takes_effect_when_it_is_back) {
        mem_store(OM_STORE_CONFIG, SETTING, "", "false");
        mem_store_state(OM_STORE_CONNECTING);
        expect_has(ask("agent.register", "{\"name\":\"a\",\"topic\":\"t\"}"), "\"paused\":false");
        mem_store_state(OM_STORE_READY);
        fake_turn();
        expect_has(ask("agent.get", "{\"topic\":\"t\",\"name\":\"a\"}"), "\"paused\":true");
        expect_has(ask("agent.register", "{\"name\":\"a\",\"topic\":\"t\"}"), "\"paused\":true");
}
END_TEST

START_TEST(test_what_a_storage_that_is_there_refuses_is_offered_again) {
        mem.faults.store_away = true; /* it fails, and does not say that it is away */
        register_agent("");
        ck_assert_ptr_null(record());
        mem.faults.store_away = false;
        fake_run_ms(3300);
        ck_assert_ptr_nonnull(record());
}
END_TEST

START_TEST(test_an_agent_that_was_deleted_meanwhile_is_not_saved_again) {
        mem_store_state(OM_STORE_CONNECTING);
        register_agent("");
        mem.faults.store_away = false; /* the core does not know yet */
        expect_has(ask("agent.delete", "{\"topic\":\"t\",\"name\":\"a\"}"), "agent.ended");
        expect_has(client_read(fd), "\"result\":{}");
        mem_store_state(OM_STORE_READY);
        fake_turn();
        ck_assert_ptr_null(record());
}
END_TEST

START_TEST(test_a_client_that_goes_while_it_registers_leaves_no_worker) {
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"agent.register\",\"params\":{\"name\":\"a\",\"topic\":\"t\"}}");
        om_loop_run_once(fake.loop, false);
        close(fd);
        fake_turn();
        unsigned workers, leased;
        om_dispatch_count(fake.core->dispatch, OM_SPAN("t"), OM_SPAN("a"), &workers, &leased);
        ck_assert_uint_eq(workers, 0);
        fd = fake_connect();
}
END_TEST

/* -- looking, pausing, deleting ------------------------------------------------------------------------------------ */

START_TEST(test_agents_are_listed_with_workers_and_pauses) {
        register_agent("");
        mem_store(OM_STORE_AGENTS, "t", "b", "{\"name\":\"b\",\"description\":\"old\",\"created_at\":5}");
        mem_store(OM_STORE_AGENTS, "u", "c", "{}");
        mem_store(OM_STORE_CONFIG, "_subscription_active:group:t:b", "", "false");
        const char *body = ask("agent.list", "{}");
        expect_has(body, "\"name\":\"a\",\"topic\":\"t\",\"group\":\"group:t:a\"");
        expect_has(body, "\"paused\":false,\"workers\":1,\"leased\":0}");
        expect_has(body,
                "{\"name\":\"b\",\"topic\":\"t\",\"group\":\"group:t:b\",\"callback_name\":null,\"description\":\"old\",\"tools\":[],"
                "\"config\":{},\"created_at\":5,\"paused\":true,\"workers\":0,\"leased\":0}");
        expect_has(body, "\"name\":\"c\"");
        ck_assert_ptr_null(strstr(ask("agent.list", "{\"topic\":\"t\"}"), "\"name\":\"c\""));
        expect_has(ask("agent.get", "{\"topic\":\"t\",\"name\":\"zz\"}"), "\"kind\":\"not_found\"");
}
END_TEST

START_TEST(test_a_pause_is_kept_in_the_storage) {
        register_agent("");
        expect_has(ask("agent.pause", "{\"topic\":\"t\",\"name\":\"a\"}"), "\"result\":{}");
        ck_assert_str_eq(mem_stored(OM_STORE_CONFIG, SETTING, ""), "false");
        expect_has(ask("bus.groups", "{}"), "\"groups\":[]");
        expect_has(ask("agent.resume", "{\"topic\":\"t\",\"name\":\"a\"}"), "\"result\":{}");
        ck_assert_str_eq(mem_stored(OM_STORE_CONFIG, SETTING, ""), "true");
        expect_has(ask("agent.pause", "{\"topic\":\"t\",\"name\":\"b\"}"), "\"kind\":\"not_found\"");
}
END_TEST

START_TEST(test_deleting_an_agent_ends_its_workers_and_removes_record_and_setting) {
        register_agent("");
        client_send(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"agent.delete\",\"params\":{\"topic\":\"t\",\"name\":\"a\"}}");
        expect_has(client_read(fd), "\"method\":\"agent.ended\"");
        expect_has(client_read(fd), "\"result\":{}");
        ck_assert_ptr_null(record());
        ck_assert_ptr_null(mem_stored(OM_STORE_CONFIG, SETTING, ""));
}
END_TEST

START_TEST(test_deleting_a_topic_removes_all_its_agents) {
        mem_store(OM_STORE_AGENTS, "t", "a", "{}");
        mem_store(OM_STORE_AGENTS, "t", "b", "{}");
        mem_store(OM_STORE_AGENTS, "t", "c", "{}");
        mem_store(OM_STORE_AGENTS, "u", "c", "{}");
        mem_store(OM_STORE_CONFIG, "_subscription_active:group:t:c", "", "false");
        expect_has(ask("topic.delete", "{\"topic\":\"t\",\"delete_dead_letters\":true}"), "{\"tasks\":1,\"agents\":3}");
        ck_assert_ptr_null(mem_stored(OM_STORE_AGENTS, "t", NULL));
        ck_assert_ptr_nonnull(mem_stored(OM_STORE_AGENTS, "u", "c"));
        ck_assert_ptr_null(mem_stored(OM_STORE_CONFIG, "_subscription_active:group:t:c", ""));
}
END_TEST

/* -- settings, storage, health ------------------------------------------------------------------------------------- */

START_TEST(test_settings_are_set_listed_and_deleted) {
        expect_has(ask("config.set", "{\"key\":\"a/\\u0062..\",\"value\":{\"x\":[1, 2]}}"), "\"result\":{}");
        expect_has(ask("config.get", "{\"key\":\"a/b..\"}"), "{\"key\":\"a/b..\",\"value\":{\"x\":[1, 2]}}");
        expect_has(ask("config.set", "{\"key\":\"n\",\"value\":null}"), "\"result\":{}");
        expect_has(ask("config.get", "{\"key\":\"n\"}"), "\"value\":null");
        expect_has(ask("config.set", "{\"key\":\"m\",\"value\":1}"), "\"result\":{}");
        expect_has(ask("config.list", "{}"), "{\"config\":{\"a/b..\":{\"x\":[1, 2]},\"n\":null,\"m\":1}}");
        expect_has(ask("config.list", "{\"prefix\":\"a/\"}"), "{\"config\":{\"a/b..\":{\"x\":[1, 2]}}}");
        expect_has(ask("config.delete", "{\"key\":\"n\"}"), "{\"deleted\":true}");
        expect_has(ask("config.delete", "{\"key\":\"n\"}"), "{\"deleted\":false}");
        expect_has(ask("config.get", "{\"key\":\"n\"}"), "\"kind\":\"not_found\"");
        expect_has(ask("config.set", "{\"key\":\"m\"}"), "\"code\":-32602");
        expect_has(ask("config.set", "{\"key\":\"\",\"value\":1}"), "\"code\":-32602");
        expect_has(ask("config.set", "{\"key\":\"_subscription_active:x\",\"value\":true}"), "\"kind\":\"denied\"");
        expect_has(ask("config.delete", "{\"key\":\"_x\"}"), "\"kind\":\"denied\"");
}
END_TEST

START_TEST(test_clearing_tells_how_many_of_each_kind_there_were) {
        mem_store(OM_STORE_RESULTS, "1", "a", "{}");
        mem_store(OM_STORE_RESULTS, "2", "a", "{}");
        mem_store(OM_STORE_CONFIG, "k", "", "1");
        expect_has(ask("storage.clear", "{\"what\":\"results\"}"), "{\"cleared\":{\"results\":2}}");
        expect_has(ask("storage.clear", "{\"what\":\"all\"}"), "{\"cleared\":{\"agents\":0,\"results\":0,\"metrics\":0,\"config\":1}}");
        expect_has(ask("storage.clear", "{\"what\":\"everything\"}"), "\"code\":-32602");
}
END_TEST

START_TEST(test_a_query_is_refused_where_the_storage_has_no_language) {
        expect_has(ask("storage.query", "{\"query\":\"select 1\"}"), "\"kind\":\"unsupported\"");
}
END_TEST

START_TEST(test_a_query_reaches_a_storage_that_has_a_language) {
        expect_has(ask("storage.query", "{\"query\":\"select \\\"a\\\"\"}"),
                "\"result\":{\"columns\":[\"text\"],\"rows\":[[\"select \\\"a\\\"\"]],\"truncated\":false}");
        ck_assert_uint_eq(mem.query_limit, 100);
        expect_has(ask("storage.query", "{\"query\":\"x\",\"limit\":7,\"timeout_ms\":1234}"), "\"truncated\"");
        ck_assert_uint_eq(mem.query_limit, 7);
        ck_assert_int_eq(mem.query_timeout_ms, 1234);
        expect_has(ask("storage.query", "{\"query\":\"x\",\"limit\":10001}"), "\"code\":-32602");
        expect_has(ask("storage.query", "{\"query\":\"x\",\"timeout_ms\":0}"), "\"code\":-32602");
        expect_has(ask("hello", "{}"), "\"query\"]");
        mem.faults.store_away = true;
        expect_has(ask("storage.query", "{\"query\":\"x\"}"), "\"kind\":\"unavailable\"");
}
END_TEST

START_TEST(test_health_tells_what_is_wrong) {
        expect_has(ask("health", "{}"), "{\"status\":\"running\",\"reasons\":[]");
        register_agent("");
        expect_has(ask("health", "{}"), "{\"status\":\"ready\",\"reasons\":[]");
        mem.bus_health = "{\"durability\":\"weak\",\"why\":\"no \\\"fsync\\\"\",\"path\":\"/x\"}";
        const char *body = ask("health", "{}");
        expect_has(body, "{\"status\":\"degraded\",\"reasons\":[\"the event bus's durability is weak: no \\\"fsync\\\"\"]");
        expect_has(body, "\"path\":\"/x\"");
        mem.bus_health = "{}";
        mem_store_state(OM_STORE_CONNECTING);
        expect_has(ask("health", "{}"), "{\"status\":\"degraded\",\"reasons\":[\"the storage is away: mem: away\"]");
        expect_has(ask("storage.health", "{}"), "\"status\":\"down\"");
        mem.bus_health = NULL;
        expect_has(ask("health", "{}"), "{\"status\":\"down\",\"reasons\":[\"the event bus is away: mem: away\",");
}
END_TEST

START_TEST(test_hello_tells_what_is_there) {
        const char *body = ask("hello", "{\"client\":\"me\",\"protocol\":1}");
        expect_has(body, "\"capabilities\":[\"priority\",\"keys\"]");
        expect_has(body, "\"bus\":{\"name\":\"membus\",\"url\":\"membus:\"}");
        expect_has(body, "\"limits\":{\"frame_bytes\":16777216,\"depth\":64,\"batch\":1000,\"prefetch\":1000,\"in_flight\":1024}");
        expect_has(ask("hello", "{\"protocol\":2}"), "\"kind\":\"unsupported\"");
        /* The list of backends is the program's: tests/integration/test_modules.py. */
        expect_has(ask("backends", "{}"), "the modules cannot be listed");
}
END_TEST

START_TEST(test_dead_letters_are_moved_by_ids_or_all_never_by_silence) {
        expect_has(ask("dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\"}"), "\"code\":-32602");
        expect_has(ask("dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\",\"ids\":[]}"), "\"code\":-32602");
        expect_has(ask("dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\",\"ids\":[\"1\"],\"all\":true}"), "\"code\":-32602");
        expect_has(ask("dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\",\"ids\":[1]}"), "\"code\":-32602");
        expect_has(ask("dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\",\"all\":false}"), "\"code\":-32602");
        expect_has(ask("dlq.purge", "{\"topic\":\"t\",\"agent\":\"a\",\"ids\":[\"1\"]}"), "{\"purged\":1}");
        expect_has(ask("dlq.replay", "{\"topic\":\"t\",\"agent\":\"a\",\"all\":true}"), "{\"replayed\":1}");
        expect_has(ask("dlq.get", "{\"topic\":\"t\",\"agent\":\"a\",\"id\":\"1\"}"), "\"kind\":\"not_found\"");
        expect_has(ask("dlq.list", "{\"topic\":\"t\",\"agent\":\"a\",\"limit\":1001}"), "\"code\":-32602");
}
END_TEST

int main(void) {
        Suite *suite = suite_create("agents");
        TCase *all = tcase_create("agents"), *language = tcase_create("a storage with a language");

        tcase_add_checked_fixture(all, set_up, tear_down);
        tcase_set_timeout(all, 60);
        tcase_add_test(all, test_a_registration_saves_the_agents_record_with_the_config_in_force);
        tcase_add_test(all, test_a_second_registration_keeps_created_at_and_writes_nothing_when_nothing_changed);
        tcase_add_test(all, test_wrong_registrations_are_refused_and_say_what_is_wrong);
        tcase_add_test(all, test_an_agent_is_served_while_the_storage_is_away_and_saved_when_it_is_back);
        tcase_add_test(all, test_a_pause_that_the_storage_knew_takes_effect_when_it_is_back);
        tcase_add_test(all, test_what_a_storage_that_is_there_refuses_is_offered_again);
        tcase_add_test(all, test_an_agent_that_was_deleted_meanwhile_is_not_saved_again);
        tcase_add_test(all, test_a_client_that_goes_while_it_registers_leaves_no_worker);
        tcase_add_test(all, test_agents_are_listed_with_workers_and_pauses);
        tcase_add_test(all, test_a_pause_is_kept_in_the_storage);
        tcase_add_test(all, test_deleting_an_agent_ends_its_workers_and_removes_record_and_setting);
        tcase_add_test(all, test_deleting_a_topic_removes_all_its_agents);
        tcase_add_test(all, test_settings_are_set_listed_and_deleted);
        tcase_add_test(all, test_clearing_tells_how_many_of_each_kind_there_were);
        tcase_add_test(all, test_a_query_is_refused_where_the_storage_has_no_language);
        tcase_add_test(all, test_health_tells_what_is_wrong);
        tcase_add_test(all, test_hello_tells_what_is_there);
        tcase_add_test(all, test_dead_letters_are_moved_by_ids_or_all_never_by_silence);
        suite_add_tcase(suite, all);
        tcase_add_checked_fixture(language, set_up_with_language, tear_down);
        tcase_add_test(language, test_a_query_reaches_a_storage_that_has_a_language);
        suite_add_tcase(suite, language);
        return om_test_main(suite);
}
