/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Redis storage: names and texts without a server; several agents' results on one task, walks, expiry and what others write on a real
 * one and on a cluster. What every storage must do is in test_contract_store.c, what the Python OmniDaemon itself writes and reads in
 * tests/integration/test_python_redis.py.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../backends/redis/store_state.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

extern const struct om_store_ops om_redis_store_ops;

/* -- without a server ------------------------------------------------------------------------------------------------ */

START_TEST(test_members_keep_the_order_of_ids_and_come_back) {
        static const struct om_span ids[] = { { "", 0 }, { "\0", 1 }, { "\0\0", 2 }, { "\0\1", 2 }, { "\0a", 2 }, { "\1", 1 },
                { "\1\0", 2 }, { "\1\1", 2 }, { "\1\2", 2 }, { "\2", 1 }, { "a", 1 }, { "a\0", 2 }, { "a\0b", 3 }, { "a\1", 2 },
                { "a\2", 2 }, { "ab", 2 }, { "b", 1 } };
        enum { N = sizeof ids / sizeof *ids };
        struct om_arena arena = { 0 };
        struct om_buf last = OM_BUF_INIT, b = OM_BUF_INIT;

        for (size_t i = 0; i < N; i++)
                for (int agent = 0; agent < 2; agent++) {
                        struct om_span name = agent ? OM_SPAN("zz\0\1") : OM_SPAN(""), id, back;

                        om_buf_clear(&b);
                        om_redis_member_put(&b, ids[i], name);
                        ck_assert_int_eq(om_redis_member_read(om_buf_span(&b), &arena, &id, &back), 0);
                        ck_assert_msg(om_span_eq(id, ids[i]) && om_span_eq(back, name), "member %zu comes back as another", i);
                        size_t n = last.len < b.len ? last.len : b.len;
                        int order = n ? memcmp(last.data, b.data, n) : 0;
                        ck_assert_msg(order < 0 || (order == 0 && last.len < b.len), "member %zu is not after the one before", i);
                        om_buf_clear(&last);
                        om_buf_put_span(&last, om_buf_span(&b));
                }
        struct om_span id, agent;
        ck_assert_int_eq(om_redis_member_read(OM_SPAN("without"), &arena, &id, &agent), -EINVAL);
        ck_assert_int_eq(om_redis_member_read(OM_SPAN("a\1\3\0b"), &arena, &id, &agent), -EINVAL);
        ck_assert_int_eq(om_redis_member_read(OM_SPAN("a\1\0b"), &arena, &id, &agent), -EINVAL);
        om_buf_deinit(&b);
        om_buf_deinit(&last);
        om_arena_deinit(&arena);
}
END_TEST

START_TEST(test_records_say_what_they_are_and_keep_their_bytes) {
        const char *value = "{ \"agent\":\"wrong\", \"n\" : 1.50, \"big\":12345678901234567890123 }";
        struct om_store_entry entry = { .key = OM_SPAN("a\"b"),
                .name = OM_SPAN("\xc3\xa9"),
                .topic = OM_SPAN("t"),
                .status = OM_SPAN("completed"),
                .value = om_span_of(value),
                .expires_ms = 1795511642130 },
                              back;
        struct om_arena arena = { 0 };
        struct om_buf b = OM_BUF_INIT;
        struct om_error e;

        om_redis_record_put(&b, &entry, 1795425242131001);
        om_buf_putc(&b, 0);
        ck_assert_str_eq(b.data,
                "{\"task_id\": \"a\\\"b\", \"agent\": \"\xc3\xa9\", \"topic\": \"t\", \"status\": \"completed\", \"saved_at\": "
                "1795425242.131001, "
                "\"expires_at\": 1795511642.130, \"result\": { \"agent\":\"wrong\", \"n\" : 1.50, \"big\":12345678901234567890123 }}");
        b.len--;
        ck_assert_int_eq(om_redis_record_read(OM_SPAN("k"), om_buf_span(&b), entry.key, -1, &arena, &back, &e), 0);
        ck_assert(om_span_eq(back.key, entry.key) && om_span_eq(back.name, entry.name) && om_span_is(back.topic, "t"));
        ck_assert(om_span_is(back.status, "completed") && om_span_eq(back.value, entry.value));
        ck_assert_int_eq(back.saved_ms, 1795425242131);
        ck_assert_int_eq(back.expires_ms, 1795511642130);
        om_buf_deinit(&b);
        om_arena_deinit(&arena);
}
END_TEST

START_TEST(test_records_of_the_python_one_are_read_by_what_stands_in_them) {
        const char *text = "{\"task_id\": \"t\", \"result\": {\"agent\": \"gr\\u00fc\\u00dfer\", \"topic\": \"greet\", \"status\": "
                           "\"completed\", \"result\": null}, "
                           "\"saved_at\": 1795425242.1314235}";
        struct om_store_entry back;
        struct om_arena arena = { 0 };
        struct om_error e;

        ck_assert_int_eq(om_redis_record_read(OM_SPAN("k"), om_span_of(text), OM_SPAN("t"), 60000, &arena, &back, &e), 0);
        ck_assert(om_span_is(back.name,
                          "gr\xc3\xbc\xc3\x9f"
                          "er") &&
                om_span_is(back.topic, "greet") && om_span_is(back.status, "completed"));
        ck_assert_int_eq(back.saved_ms, 1795425242131);
        ck_assert_int_le(llabs(back.expires_ms - om_now_ms() - 60000), 1000);
        static const char *const bad[] = { "", "1", "[]", "{}", "{\"result\"", "{\"result\":}", "{\"result\":NaN}", "{\"result\":1} x",
                "{\"result\":1", "null" };
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
                ck_assert_int_eq(
                        om_redis_record_read(OM_SPAN("omni:result:t"), om_span_of(bad[i]), OM_SPAN("t"), -1, &arena, &back, &e), -EINVAL);
                ck_assert_ptr_nonnull(strstr(e.message, "omni:result:t"));
        }
        om_arena_deinit(&arena);
}
END_TEST

START_TEST(test_prefixes_that_cannot_be_are_refused_by_name) {
        static const char *const bad[] = { "redis://h?prefix=", "redis://h?prefix=a%7Bb", "redis://h?prefix=%7B%7D",
                "redis://h?prefix=a%0Ab" };
        struct user u;

        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
                ck_assert_int_eq(user_open(&u, bad[i]), -EINVAL);
                ck_assert_ptr_nonnull(strstr(u.error.message, "prefix"));
        }
        ck_assert_int_eq(user_open(&u, "redis://h?max_metrics=0"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(u.error.message, "max_metrics"));
        ck_assert_int_eq(user_open(&u, "redis://h?prefx=a"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(u.error.message, "did you mean prefix"));
}
END_TEST

static struct om_redis_reply text_reply(const char *text) {
        return (struct om_redis_reply){ .type = OM_REDIS_STRING, .text = om_span_of(text) };
}

/* What the questions say of a server with these answers; NULL: it refuses to tell. */
static const char *why(const char *info, const char *fsync, const char *commands) {
        static char text[OM_REDIS_WHY_MAX];
        struct om_redis_reply i = text_reply(info), names[2] = { text_reply("appendfsync"), text_reply("commands") };
        struct om_redis_reply values[2] = { text_reply(fsync ? fsync : ""), text_reply(commands ? commands : "") };
        struct om_redis_reply *pairs[2][2] = { { &names[0], &values[0] }, { &names[1], &values[1] } };
        struct om_redis_reply answers[2] = { { .type = OM_REDIS_ARRAY, .elements = pairs[0], .n = 2 },
                { .type = OM_REDIS_ARRAY, .elements = pairs[1], .n = 2 } };

        text[0] = 0;
        om_redis_durable_take(OM_REDIS_DURABLE_INFO, &i, text);
        om_redis_durable_take(OM_REDIS_DURABLE_FSYNC, fsync ? &answers[0] : NULL, text);
        om_redis_durable_take(OM_REDIS_DURABLE_RIGHTS, commands ? &answers[1] : NULL, text);
        return text;
}

START_TEST(test_a_server_that_may_forget_is_told_with_what_to_mend) {
        const char *good = "aof_enabled:1\r\naof_last_write_status:ok\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";

        ck_assert_str_eq(why(good, "always", "+@all"), "");
        ck_assert_str_eq(why(good, "always", NULL), "");
        ck_assert_ptr_nonnull(strstr(why("aof_enabled:0\r\n", "always", "+@all"), "appendonly"));
        ck_assert_ptr_nonnull(strstr(why("aof_enabled:1\r\naof_last_write_status:err\r\n", "always", "+@all"), "cannot write"));
        ck_assert_ptr_nonnull(strstr(why(good, "everysec", "+@all"), "appendfsync everysec"));
        ck_assert_ptr_nonnull(strstr(why(good, NULL, "+@all"), "CONFIG GET"));
        ck_assert_ptr_nonnull(
                strstr(why("aof_enabled:1\r\nmaxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n", "always", "+@all"), "allkeys-lru"));
        ck_assert_ptr_nonnull(strstr(why(good, "always", "-@all"), "user default off"));
}
END_TEST

/* -- on servers ------------------------------------------------------------------------------------------------------- */

static const char *const systems[] = { "redis", "redis:cluster" };
enum { N_SYSTEMS = 2 };
static struct om_test_server *servers[N_SYSTEMS];
static char tag[40];
static int at; /* the system of this test */

static void open_on(struct user *u, int i) {
        const char *text = om_test_server_value(servers[i], "store_url"), *hole = strstr(text, "{case}");
        char url[1000];

        at = i;
        snprintf(tag, sizeof tag, "p%ld", (long) getpid());
        snprintf(url, sizeof url, "%.*s%s%s", (int) (hole - text), text, tag, hole + strlen("{case}"));
        ck_assert_msg(user_open(u, url) == 0 && u->state == OM_STORE_READY, "%s: %s", url, u->error.message);
}

enum { TEXT_MAX = 4096 };
struct text {
        struct text *last;
        char text[TEXT_MAX];
};
extern struct text *texts;
struct text *texts; /* what cli() and listed() gave out, as long as the test; seen from outside, so that it is not thought unused */

static char *text_new(void) {
        struct text *t = calloc(1, sizeof *t);

        t->last = texts;
        texts = t;
        return t->text;
}

/* redis-cli with these arguments, on the whole cluster where it is one; what it prints, in memory of the process. %p in it is the prefix.
 */
static char *cli(const char *arguments) {
        const char *colon = strrchr(om_test_server_value(servers[at], "bus_url"), ':');
        char *command, *out = text_new();
        struct om_buf b = OM_BUF_INIT;

        for (const char *p = arguments; *p; p++)
                if (p[0] == '%' && p[1] == 'p') {
                        om_buf_puts(&b, tag);
                        p++;
                } else {
                        om_buf_putc(&b, *p);
                }
        om_buf_putc(&b, 0);
        ck_assert_int_gt(asprintf(&command, "redis-cli %s -p %d %s", at ? "-c" : "", atoi(colon + 1), b.data), 0);
        FILE *f = popen(command, "r");
        ck_assert_ptr_nonnull(f);
        size_t n = fread(out, 1, TEXT_MAX - 1, f);
        ck_assert_int_eq(pclose(f), 0);
        if (n && out[n - 1] == '\n')
                out[n - 1] = 0;
        free(command);
        om_buf_deinit(&b);
        return out;
}

static int64_t keep(struct user *u, const char *id, const char *agent, int64_t saved_ms, int64_t expires_ms) {
        char value[64];

        snprintf(value, sizeof value, "{\"of\":\"%s\"}", agent);
        ck_assert_int_eq(user_result(u, id, agent, value, saved_ms, expires_ms), 0);
        return saved_ms;
}

static void must_have(struct user *u, const char *id, const char *agent, const char *of) {
        char value[64];

        snprintf(value, sizeof value, of ? "{\"of\":\"%s\"}" : "none", of);
        ck_assert_str_eq(user_value(u, OM_STORE_RESULTS, id, agent), value);
}

/* "b@30 a@20 …" of the task's records in the list. */
static char *listed(struct user *u) {
        struct om_store_list list = { .kind = OM_STORE_RESULTS };
        char *text = text_new();

        ck_assert_int_eq(user_list(u, &list), 0);
        for (size_t i = 0; i < list.n; i++)
                sprintf(text + strlen(text), "%s%s@%lld", i ? " " : "", list.entries[i].name.p, (long long) list.entries[i].saved_ms);
        return text;
}

START_TEST(test_every_agents_result_is_kept_and_the_newest_moves_up_when_one_goes) {
        struct user u;

        open_on(&u, _i);
        keep(&u, "t", "a", 20, 0);
        keep(&u, "t", "b", 30, 0);
        keep(&u, "t", "c", 10, 0); /* older than what is there */
        ck_assert_str_eq(listed(&u), "b@30 a@20 c@10");
        must_have(&u, "t", NULL, "b");
        must_have(&u, "t", "a", "a");
        must_have(&u, "t", "c", "c");
        keep(&u, "t", "a", 40, 0);
        ck_assert_str_eq(listed(&u), "a@40 b@30 c@10");
        must_have(&u, "t", NULL, "a");
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", "nobody"), 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", "a"), 1);
        ck_assert_str_eq(listed(&u), "b@30 c@10");
        must_have(&u, "t", NULL, "b");
        must_have(&u, "t", "a", NULL);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", "c"), 1);
        ck_assert_str_eq(listed(&u), "b@30");
        keep(&u, "t", "c", 50, 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", NULL), 2);
        ck_assert_str_eq(listed(&u), "");
        must_have(&u, "t", NULL, NULL);
        ck_assert_str_eq(cli("exists %p:result:t"), "0");
        ck_assert_str_eq(cli("zcard %p:results:index"), "0");
        ck_assert_str_eq(cli("zcard %p:results:earlier"), "0");
        keep(&u, "t", "a", 60, 0);
        keep(&u, "t", "b", 70, 0);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, NULL, NULL), 2);
        keep(&u, "t", "a", 80, 0);
        ck_assert_str_eq(listed(&u), "a@80");
        user_close(&u);
}
END_TEST

START_TEST(test_what_is_deleted_by_the_newest_key_alone_is_gone_with_all_its_records) {
        struct user u;

        open_on(&u, _i);
        keep(&u, "t", "a", 20, 0);
        keep(&u, "t", "b", 30, 0);
        cli("del %p:result:t"); /* as the Python one does */
        must_have(&u, "t", "a", NULL);
        ck_assert_str_eq(listed(&u), "");
        keep(&u, "t", "c", 40, 0);
        ck_assert_str_eq(listed(&u), "c@40");
        must_have(&u, "t", "a", NULL);
        user_close(&u);
}
END_TEST

START_TEST(test_each_record_ends_at_its_own_time_whichever_is_the_newest) {
        struct user u;
        int64_t now = om_now_ms();

        open_on(&u, _i);
        keep(&u, "t", "long", now - 20, now + 600000);
        keep(&u, "t", "short", now - 10, now + 300);
        keep(&u, "u", "short", now - 20, now + 300);
        keep(&u, "u", "long", now - 10, now + 600000);
        keep(&u, "v", "short", now - 20, now + 300);
        keep(&u, "v", "ever", now - 10, 0);
        must_have(&u, "t", NULL, "short");
        while (om_now_ms() < now + 300)
                user_sleep(&u, 5);
        must_have(&u, "t", NULL, "long");
        must_have(&u, "t", "short", NULL);
        must_have(&u, "u", NULL, "long");
        must_have(&u, "u", "short", NULL);
        must_have(&u, "v", NULL, "ever");
        struct om_store_list list = { .kind = OM_STORE_RESULTS };
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 3);
        ck_assert_int_gt(atoi(cli("pttl %p:result:t")), 300000);
        ck_assert_str_eq(cli("pttl %p:result:v"), "-1");
        user_close(&u);
}
END_TEST

/* While a walk goes on another agent saves newer results of all tasks: those of the first are met once each all the same. */
START_TEST(test_a_walk_meets_each_record_once_though_newer_ones_of_its_task_come) {
        enum { N = 60, PAGE = 7 };
        struct user u;
        bool seen[N] = { false };
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .limit = PAGE, .name = OM_SPAN_NONE };
        char id[16];
        int pages = 0;

        open_on(&u, _i);
        for (int i = 0; i < N; i++) {
                snprintf(id, sizeof id, "%d", i);
                keep(&u, id, "a", 1000 + i / 3, 0);
        }
        do {
                ck_assert_int_eq(user_list(&u, &list), 0);
                for (size_t i = 0; i < list.n; i++) {
                        int number = atoi(list.entries[i].key.p);

                        if (strcmp(list.entries[i].name.p, "a") != 0)
                                continue;
                        ck_assert_msg(!seen[number], "record %d is met twice", number);
                        seen[number] = true;
                }
                if (++pages == 1 || pages == 3)
                        for (int i = 0; i < N; i++) {
                                snprintf(id, sizeof id, "%d", i);
                                keep(&u, id, pages == 1 ? "b" : "c", 100000 * pages + i, 0);
                        }
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        for (int i = 0; i < N; i++)
                ck_assert_msg(seen[i], "record %d is missed", i);
        user_close(&u);
}
END_TEST

START_TEST(test_thousands_saved_in_one_millisecond_are_walked_once_each) {
        enum { N = 2500, PAGE = 97 };
        static bool seen[N];
        static struct om_store_entry entries[N];
        static struct om_outcome outcomes[N];
        static char ids[N][16];
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .limit = PAGE };
        struct user u;
        int found = 0;

        open_on(&u, _i);
        for (int i = 0; i < N; i++) {
                snprintf(ids[i], sizeof ids[i], "%d", i);
                entries[i] =
                        (struct om_store_entry){ .key = om_span_of(ids[i]), .name = OM_SPAN("a"), .value = OM_SPAN("1"), .saved_ms = 1000 };
        }
        ck_assert_int_eq(user_put_many(&u, OM_STORE_RESULTS, entries, N, outcomes), 0);
        do {
                ck_assert_int_eq(user_list(&u, &list), 0);
                ck_assert(list.n == PAGE || !list.next_cursor.p);
                for (size_t i = 0; i < list.n; i++, found++) {
                        ck_assert(!seen[atoi(list.entries[i].key.p)]);
                        seen[atoi(list.entries[i].key.p)] = true;
                }
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        ck_assert_int_eq(found, N);
        list = (struct om_store_list){ .kind = OM_STORE_RESULTS, .cursor = OM_SPAN("nonsense") };
        ck_assert_int_eq(user_list(&u, &list), -EINVAL);
        list = (struct om_store_list){ .kind = OM_STORE_METRICS, .cursor = OM_SPAN("1-1 COUNT 1") };
        ck_assert_int_eq(user_list(&u, &list), -EINVAL);
        user_close(&u);
}
END_TEST

static void expiring(struct user *u, int n, int64_t expires) {
        char id[32];

        for (int i = 0; i < n; i++) {
                snprintf(id, sizeof id, "old-%d", i);
                keep(u, id, "a", 1000 + i, expires);
                if (i % 10 == 0)
                        keep(u, id, "b", 2000 + i, expires);
        }
        while (om_now_ms() < expires)
                user_sleep(u, 5);
}

START_TEST(test_a_list_takes_what_has_expired_out_of_the_index) {
        struct user u;

        open_on(&u, _i);
        int64_t expires = om_now_ms() + 5000;
        expiring(&u, 200, expires);
        keep(&u, "alive", "a", 1, 0);
        ck_assert_int_ge(atoi(cli("zcard %p:results:index")), 200);
        while (atoi(cli("zcard %p:results:index")) + atoi(cli("zcard %p:results:earlier")) > 1) {
                ck_assert_msg(om_now_ms() < expires + 10000, "the index is not cleaned: %s and %s", cli("zcard %p:results:index"),
                        cli("zcard %p:results:earlier"));
                ck_assert_str_eq(listed(&u), "a@1");
                user_sleep(&u, 5);
        }
        ck_assert_str_eq(cli("zrange %p:results:index 0 -1"), "alive");
        user_close(&u);
}
END_TEST

START_TEST(test_writes_alone_take_what_has_expired_out_of_the_index) {
        struct user u;
        char id[32];

        open_on(&u, _i);
        expiring(&u, 200, om_now_ms() + 1500);
        for (int i = 0; i < 2000; i++) {
                snprintf(id, sizeof id, "new-%d", i % 50);
                keep(&u, id, "a", 5000 + i, 0);
        }
        user_sleep(&u, 50);
        ck_assert_int_eq(atoi(cli("zcard %p:results:index")), 50);
        ck_assert_int_eq(atoi(cli("zcard %p:results:earlier")), 0);
        user_close(&u);
}
END_TEST

START_TEST(test_keys_of_others_are_named_and_spoil_no_list) {
        struct user u;
        struct om_store_entry e = { .key = OM_SPAN("mine"), .name = OM_SPAN("a"), .value = OM_SPAN("1"), .saved_ms = 5 };
        struct om_store_entry both[2] = { { .key = OM_SPAN("list"), .name = OM_SPAN("a"), .value = OM_SPAN("1"), .saved_ms = 6 }, e };
        struct om_outcome outcomes[2];

        open_on(&u, _i);
        cli("rpush %p:result:list x");
        cli("rpush %p:config:list x");
        cli("set %p:result:text notjson");
        cli("zadd %p:results:index 100 text 101 gone");
        ck_assert_int_eq(user_get(&u, OM_STORE_RESULTS, OM_SPAN("text"), OM_SPAN_NONE, &e), -EINVAL);
        ck_assert_ptr_nonnull(strstr(u.error.message, ":result:text"));
        ck_assert_int_eq(user_get(&u, OM_STORE_CONFIG, OM_SPAN("list"), OM_SPAN_NONE, &e), -EINVAL);
        ck_assert_ptr_nonnull(strstr(u.error.message, ":config:list"));
        ck_assert_int_eq(user_put_many(&u, OM_STORE_RESULTS, both, 2, outcomes), 0);
        ck_assert_int_eq(outcomes[0].status, -EINVAL);
        ck_assert_int_eq(outcomes[1].status, 0);
        ck_assert_str_eq(listed(&u), "a@5");
        user_close(&u);
}
END_TEST

START_TEST(test_an_agent_that_the_python_one_has_written_over_is_its_own) {
        struct user u;
        const char *mine = "{\"name\":\"a\", \"topic\":\"t\",\"tools\":[1.50],\"own\":true,\"created_at\":1795425242.131}";
        struct om_store_entry e = { .key = OM_SPAN("t"), .name = OM_SPAN("a"), .value = om_span_of(mine), .saved_ms = 1 };

        open_on(&u, _i);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &e), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "t", "a"), mine);
        ck_assert_str_eq(cli("hget %p:agent:t:a tools"), "[1.50]");
        ck_assert_str_eq(cli("hget %p:agent:t:a config"), "{}");
        ck_assert_str_eq(cli("smembers %p:topics"), "t");
        cli("hset %p:agent:t:a tools '[\"x\"]' description said created_at 1795425243.5");
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "t", "a"),
                "{\"name\":\"a\",\"topic\":\"t\",\"callback_name\":\"\",\"description\":\"said\",\"tools\":[\"x\"],\"config\":{},\"created_"
                "at\":1795425243.5}");
        cli("hset %p:agent:t:a tools nonsense created_at nonsense");
        ck_assert_str_eq(user_value(&u, OM_STORE_AGENTS, "t", "a"),
                "{\"name\":\"a\",\"topic\":\"t\",\"callback_name\":\"\",\"description\":\"said\",\"tools\":[],\"config\":{},\"created_at\":"
                "0}");
        ck_assert_int_eq(user_delete(&u, OM_STORE_AGENTS, "t", "a"), 1);
        ck_assert_str_eq(cli("smembers %p:topics"), "");
        user_close(&u);
}
END_TEST

START_TEST(test_settings_are_walked_by_name_once_each_while_others_come_and_go) {
        enum { N = 700 };
        struct user u;
        char key[32], last[32] = "";
        struct om_store_list list = { .kind = OM_STORE_CONFIG, .limit = 64, .name = OM_SPAN("k*") };
        int found = 0, pages = 0;

        open_on(&u, _i);
        for (int i = 0; i < N; i++) {
                struct om_store_entry e = { .key = (snprintf(key, sizeof key, "k*%d", i), om_span_of(key)), .value = OM_SPAN("1") };
                ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
                e.key = (snprintf(key, sizeof key, "kx%d", i), om_span_of(key));
                if (i < 10)
                        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        }
        do {
                ck_assert_int_eq(user_list(&u, &list), 0);
                for (size_t i = 0; i < list.n; i++) {
                        ck_assert_str_lt(last, list.entries[i].key.p);
                        snprintf(last, sizeof last, "%s", list.entries[i].key.p);
                        ck_assert(strncmp(last, "k*", 2) == 0);
                        found += strncmp(last, "k*new", 5) != 0;
                }
                struct om_store_entry e = { .key = (snprintf(key, sizeof key, "k*new%d", pages++), om_span_of(key)),
                        .value = OM_SPAN("1") };
                ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        ck_assert_int_eq(found, N);
        user_close(&u);
}
END_TEST

START_TEST(test_subscriptions_are_found_through_their_agents) {
        struct user u;
        struct om_store_list list = { .kind = OM_STORE_CONFIG, .name = OM_SPAN("_subscription_active:") };
        struct om_store_entry a = { .key = OM_SPAN("t"), .name = OM_SPAN("a"), .value = OM_SPAN("{}") },
                              b = { .key = OM_SPAN("t"), .name = OM_SPAN("b"), .value = OM_SPAN("{}") };

        open_on(&u, _i);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &a), 0);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &b), 0);
        cli("set %p:config:_subscription_active:group:t:b false");
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 1);
        ck_assert_str_eq(list.entries[0].key.p, "_subscription_active:group:t:b");
        ck_assert_str_eq(list.entries[0].value.p, "false");
        user_close(&u);
}
END_TEST

START_TEST(test_a_page_is_bounded_in_bytes) {
        enum { N = 6, SIZE = 6 << 20 };
        struct user u;
        struct om_store_list list = { .kind = OM_STORE_RESULTS, .limit = 100 }, settings = { .kind = OM_STORE_CONFIG, .limit = 100 };
        char *value = malloc(SIZE + 1), id[16];
        size_t found = 0;

        open_on(&u, _i);
        memset(value, 'v', SIZE);
        value[0] = value[SIZE - 1] = '"';
        value[SIZE] = 0;
        for (int i = 0; i < N; i++) {
                struct om_store_entry e = { .key = (snprintf(id, sizeof id, "%d", i), om_span_of(id)), .value = om_span_of(value) };
                ck_assert_int_eq(user_result(&u, id, "a", value, 1000 + i, 0), 0);
                ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        }
        do {
                ck_assert_int_eq(user_list(&u, &list), 0);
                ck_assert_uint_ge(list.n, 1);
                ck_assert_uint_le(list.n, 3);
                found += list.n;
                list.cursor = list.next_cursor;
        } while (list.cursor.p);
        ck_assert_uint_eq(found, N);
        found = 0;
        do {
                ck_assert_int_eq(user_list(&u, &settings), 0);
                ck_assert(settings.n >= 1 && (at || settings.n <= 3)); /* of a cluster what is before the last one is on its way already */
                found += settings.n;
                settings.cursor = settings.next_cursor;
        } while (settings.cursor.p);
        ck_assert_uint_eq(found, N);
        free(value);
        user_close(&u);
}
END_TEST

START_TEST(test_health_counts_and_names_the_prefix) {
        struct user u;
        struct om_store_entry a = { .key = OM_SPAN("t"), .name = OM_SPAN("a"), .value = OM_SPAN("{}") };

        open_on(&u, _i);
        ck_assert_int_eq(user_put(&u, OM_STORE_AGENTS, &a), 0);
        keep(&u, "t", "a", 1, 0);
        keep(&u, "t", "b", 2, 0);
        const char *health = user_health(&u);
        ck_assert_ptr_nonnull(strstr(health, "\"agents\":1,\"results\":2,\"metrics\":0"));
        ck_assert_ptr_nonnull(strstr(health, tag));
        ck_assert_ptr_nonnull(strstr(health, _i ? "\"durability\":\"weak\",\"why\":\"a replica" : "\"durability\":\"strong\""));
        ck_assert_ptr_nonnull(strstr(health, _i ? "\"mode\":\"cluster\",\"servers\":3" : "\"mode\":\"single\",\"servers\":1"));
        user_close(&u);
}
END_TEST

int main(void) {
        Suite *s = suite_create("redis storage");
        TCase *t = tcase_create("formats"), *r = tcase_create("servers");
        char *dir = strdup("/tmp/omni-test-XXXXXX"), of[PATH_MAX];
        int status;

        om_registry_add_store(&om_redis_store_ops);
        tcase_add_test(t, test_members_keep_the_order_of_ids_and_come_back);
        tcase_add_test(t, test_records_say_what_they_are_and_keep_their_bytes);
        tcase_add_test(t, test_records_of_the_python_one_are_read_by_what_stands_in_them);
        tcase_add_test(t, test_prefixes_that_cannot_be_are_refused_by_name);
        tcase_add_test(t, test_a_server_that_may_forget_is_told_with_what_to_mend);
        tcase_add_loop_test(r, test_every_agents_result_is_kept_and_the_newest_moves_up_when_one_goes, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_what_is_deleted_by_the_newest_key_alone_is_gone_with_all_its_records, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_each_record_ends_at_its_own_time_whichever_is_the_newest, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_a_walk_meets_each_record_once_though_newer_ones_of_its_task_come, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_thousands_saved_in_one_millisecond_are_walked_once_each, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_a_list_takes_what_has_expired_out_of_the_index, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_writes_alone_take_what_has_expired_out_of_the_index, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_keys_of_others_are_named_and_spoil_no_list, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_an_agent_that_the_python_one_has_written_over_is_its_own, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_settings_are_walked_by_name_once_each_while_others_come_and_go, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_subscriptions_are_found_through_their_agents, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_a_page_is_bounded_in_bytes, 0, N_SYSTEMS);
        tcase_add_loop_test(r, test_health_counts_and_names_the_prefix, 0, N_SYSTEMS);
        tcase_set_timeout(r, 60);
        suite_add_tcase(s, t);
        suite_add_tcase(s, r);
        if (!mkdtemp(dir))
                return 1;
        for (int i = 0; i < N_SYSTEMS; i++) {
                snprintf(of, sizeof of, "%s/%d", dir, i);
                servers[i] = om_test_server_start(systems[i], of);
        }
        status = om_test_main(s);
        for (int i = 0; i < N_SYSTEMS; i++)
                om_test_server_stop(servers[i]);
        test_folder_remove(dir);
        return status;
}
