/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The embedded bus through its contract: what it promises while it runs and across a close. test_local_bus_faults.c has what goes wrong.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../lib/bus_user.h"
#include "../lib/suite.h"

extern const struct om_bus_ops om_local_bus_ops;

static char folder[64], url[200];
static struct bus_user u;

static void open_with(const char *options) {
        snprintf(url, sizeof url, "local:%s/bus?%s", folder, options);
        ck_assert_msg(bus_open(&u, &om_local_bus_ops, url, folder) == 0, "%s", u.error.message);
}
static void reopen(void) {
        bus_close(&u);
        ck_assert_msg(bus_open(&u, &om_local_bus_ops, url, folder) == 0, "%s", u.error.message);
}
static void set_up(void) {
        strcpy(folder, "/tmp/omni-test-local-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        open_with("durability=memory");
}
static void tear_down(void) {
        char command[100];

        bus_close(&u);
        snprintf(command, sizeof command, "rm -rf %s", folder);
        ck_assert_int_eq(system(command), 0);
}
/* Another set of options, on what is there. */
static void reopen_with(const char *options) {
        bus_close(&u);
        open_with(options);
}

static struct bus_group *serve(const char *topic, const char *agent) {
        struct bus_group *g = bus_serve(&u, topic, agent, OM_START_DEFAULT, 0);

        ck_assert_msg(g != NULL, "%s", u.error.message);
        return g;
}
static int change(enum om_bus_change_type type, const char *topic, const char *agent, bool letters, uint64_t *ret_n) {
        struct om_bus_change c = { .type = type, .topic = om_span_of(topic), .agent = om_span_of(agent), .delete_dead_letters = letters };
        int r = bus_change(&u, &c);

        if (ret_n)
                *ret_n = c.ret_n;
        return r;
}
static void expect(struct bus_group *g, int first, int n) {
        ck_assert_uint_eq(bus_take(g, (unsigned) n, 3000), n);
        for (int i = 0; i < n; i++)
                ck_assert_int_eq(bus_content(g->got[g->n_got - (size_t) n + (size_t) i]), first + i);
}
static void expect_nothing(struct bus_group *g) { ck_assert_uint_eq(bus_take(g, 1, 30), 0); }
static void ack_all(struct bus_group *g) { ck_assert_int_eq(bus_settle(g, 0, g->n_got, OM_ACK, 0), 0); }
#define DEPTH(topic) (bus_topic(&u, topic).depth)

/* -- groups -------------------------------------------------------------------------------------------------------- */

START_TEST(test_a_task_reaches_its_group_and_is_gone_after_the_ack) {
        struct bus_group *g = serve("t", "a");

        ck_assert(g->created);
        ck_assert_int_eq(bus_put_many(&u, "t", 7, 1), 0);
        expect(g, 7, 1);
        ck_assert_uint_eq(g->got[0]->attempt, 1);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").leased, 1);
        ack_all(g);
        ck_assert_uint_eq(DEPTH("t"), 0);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").finished, 1);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").leased, 0);
        bus_unserve(g);
}
END_TEST

START_TEST(test_tasks_published_before_the_first_group_wait_for_it_and_a_later_group_starts_after) {
        struct bus_group *a, *b;

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 10), 0);
        ck_assert_uint_eq(DEPTH("t"), 10);
        reopen();
        a = serve("t", "a");
        b = serve("t", "b");
        ck_assert_int_eq(bus_put_many(&u, "t", 10, 1), 0);
        expect(a, 0, 11);
        expect(b, 10, 1);
        expect_nothing(b);
        ack_all(a);
        ck_assert_uint_eq(DEPTH("t"), 1);
        ack_all(b);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(a);
        bus_unserve(b);
}
END_TEST

START_TEST(test_start_first_new_and_time_override) {
        struct bus_group *a, *b, *c, *d;
        int64_t between;

        a = bus_serve(&u, "t", "a", OM_START_NEW, 0);
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 5), 0);
        bus_run(&u, 20);
        between = om_now_ms();
        ck_assert_int_eq(bus_put_many(&u, "t", 5, 5), 0);
        b = bus_serve(&u, "t", "b", OM_START_FIRST, 0);
        c = bus_serve(&u, "t", "c", OM_START_TIME, between);
        d = bus_serve(&u, "t", "d", OM_START_NEW, 0);
        ck_assert_uint_eq(bus_group_row(&u, "t", "b").lag, 10);
        ck_assert_uint_eq(bus_group_row(&u, "t", "c").lag, 5);
        expect(b, 0, 10);
        expect(c, 5, 5);
        expect_nothing(d);
        expect(a, 0, 10);
        ack_all(b);
        ack_all(a);
        ck_assert_uint_eq(DEPTH("t"), 5);
        ack_all(c);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(a);
        bus_unserve(b);
        bus_unserve(c);
        bus_unserve(d);
}
END_TEST

START_TEST(test_two_groups_each_get_all_of_a_thousand_in_order) {
        struct bus_group *a = serve("t", "a"), *b = serve("t", "b");

        for (int i = 0; i < 10; i++)
                ck_assert_int_eq(bus_put_many(&u, "t", i * 100, 100), 0);
        expect(a, 0, 1000);
        expect(b, 0, 1000);
        /* one from its end, the other from its beginning, with a restart between */
        while (a->n_got)
                ck_assert_int_eq(bus_settle(a, a->n_got - 1, 1, OM_ACK, 0), 0);
        ck_assert_int_eq(bus_settle(b, 0, 500, OM_ACK, 0), 0);
        ck_assert_uint_eq(DEPTH("t"), 500);
        ck_assert_uint_eq(bus_group_row(&u, "t", "b").leased, 500);
        bus_unserve(a);
        bus_unserve(b);
        reopen();
        a = serve("t", "a");
        b = serve("t", "b");
        ck_assert(!a->created);
        expect_nothing(a);
        expect(b, 500, 500);
        ck_assert_uint_eq(b->got[0]->attempt, 1); /* given back by unsubscribe(): not counted */
        ack_all(b);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(a);
        bus_unserve(b);
}
END_TEST

START_TEST(test_a_group_that_was_just_given_up_can_be_served_at_once) {
        for (int i = 0; i < 200; i++) {
                struct bus_group *g = serve("t", "a");

                ck_assert_int_eq(bus_put_many(&u, "t", i, 1), 0);
                expect(g, i, 1);
                ack_all(g);
                u.ops->unsubscribe(g->sub); /* and not waited for */
                bus_forget(g);
        }
}
END_TEST

START_TEST(test_no_more_than_wanted_is_handed_out) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 100), 0);
        expect(g, 0, 5);
        bus_run(&u, 30);
        ck_assert_uint_eq(g->n_ever, 5);
        for (int i = 0; i < 50; i++)
                u.ops->want(g->sub, 3);
        bus_run(&u, 30);
        ck_assert_uint_ge(g->n_ever, 8);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").lag, 100 - g->n_ever);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_group_given_up_and_taken_up_in_one_turn_is_served) {
        struct bus_group *g = serve("t", "a");

        for (int i = 0; i < 300; i++) { /* often enough that both are in one turn of the bus */
                struct bus_group *old = g;

                ck_assert_int_eq(bus_put_many(&u, "t", i, 1), 0);
                u.ops->unsubscribe(old->sub);
                g = serve("t", "a");
                ck_assert(!g->created);
                expect(g, i, 1);
                ack_all(g);
                bus_forget(old);
        }
        bus_unserve(g);
}
END_TEST

/* -- verdicts ------------------------------------------------------------------------------------------------------ */

START_TEST(test_a_retry_comes_back_when_due_with_the_attempt_counted_and_holds_up_nobody) {
        struct bus_group *g = serve("t", "a");
        int64_t due;

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 3), 0);
        expect(g, 0, 1);
        due = om_now_ms() + 150;
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, due), 0);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").retrying, 1);
        expect(g, 1, 2);
        ack_all(g);
        ck_assert_uint_eq(bus_take(g, 1, 2000), 1);
        ck_assert_int_ge(om_now_ms(), due);
        ck_assert_int_eq(bus_content(g->got[0]), 0);
        ck_assert_uint_eq(g->got[0]->attempt, 2);
        ack_all(g);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(g);
}
END_TEST

START_TEST(test_retries_and_their_count_survive_a_restart) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 2), 0);
        for (unsigned i = 1; i <= 3; i++) {
                expect(g, 0, 1);
                ck_assert_uint_eq(g->got[0]->attempt, i);
                ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, om_now_ms() - 1), 0);
        }
        bus_unserve(g);
        reopen();
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").lag, 2);
        g = serve("t", "a");
        expect(g, 0, 2);
        ck_assert_uint_eq(g->got[0]->attempt, 4);
        ck_assert_uint_eq(g->got[1]->attempt, 1);
        ack_all(g);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_release_comes_back_at_once_uncounted) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 3), 0);
        expect(g, 0, 3);
        ck_assert_int_eq(bus_settle(g, 0, 3, OM_RELEASE, 0), 0);
        reopen();
        bus_forget(g);
        g = serve("t", "a");
        expect(g, 0, 3);
        for (int i = 0; i < 3; i++)
                ck_assert_uint_eq(g->got[i]->attempt, 1);
        ack_all(g);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_delivery_interrupted_by_a_close_counts_as_an_attempt) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 2), 0);
        expect(g, 0, 1);
        bus_run(&u, 120); /* the mark reaches the disk by itself */
        reopen();
        bus_forget(g);
        g = serve("t", "a");
        expect(g, 0, 2);
        ck_assert_uint_eq(g->got[0]->attempt, 2);
        ck_assert_uint_eq(g->got[1]->attempt, 1);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, 1), 0);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 1), 0);
        expect(g, 0, 1);
        ck_assert_uint_eq(g->got[0]->attempt, 3);
        bus_run(&u, 120);
        reopen(); /* a retry that was out is counted too */
        bus_forget(g);
        g = serve("t", "a");
        expect(g, 0, 1);
        ck_assert_uint_eq(g->got[0]->attempt, 4);
        bus_unserve(g);
}
END_TEST

START_TEST(test_outputs_of_an_ack_are_published_with_it) {
        static const char *const outputs[] = { "{\"topic\":\"out\",\"payload\":{\"content\":1}}",
                "{\"topic\":\"out\",\"payload\":{\"content\":2}}" };
        struct bus_group *g = serve("t", "a"), *out = serve("out", "b");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 1), 0);
        expect(g, 0, 1);
        ck_assert_int_eq(bus_ack_publishing(g, 0, outputs, 2), 0);
        ck_assert_uint_eq(DEPTH("t"), 0);
        expect(out, 1, 2);
        bus_unserve(g);
        bus_unserve(out);
}
END_TEST

START_TEST(test_outputs_that_do_not_fit_leave_the_task_with_its_worker) {
        static const char *const outputs[] = { "{\"topic\":\"out\",\"payload\":{\"content\":1}}",
                "{\"topic\":\"out\",\"payload\":{\"content\":2}}" };
        struct bus_group *g;

        reopen_with("durability=memory&max_bytes=300");
        g = serve("t", "a");
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 1), 0);
        expect(g, 0, 1);
        ck_assert_int_eq(bus_ack_publishing(g, 0, outputs, 2), -ENOBUFS);
        ck_assert_uint_eq(DEPTH("out"), 0);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").leased, 1);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_full_bus_refuses_and_works_again_when_there_is_room) {
        struct bus_group *g;

        reopen_with("durability=memory&max_topic_bytes=1000");
        g = serve("t", "a");
        while (bus_put_many(&u, "t", 0, 1) == 0)
                ck_assert_uint_lt(DEPTH("t"), 100);
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 1), -ENOBUFS);
        ck_assert_int_eq(bus_put_many(&u, "other", 0, 1), 0);
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        ack_all(g);
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 1), 0);
        bus_unserve(g);
}
END_TEST

/* -- dead letters -------------------------------------------------------------------------------------------------- */

static size_t letters(const char *topic, const char *agent, size_t limit, char *ret_first_id) {
        struct om_bus_query q = { .type = OM_QUERY_DEAD, .topic = om_span_of(topic), .agent = om_span_of(agent), .limit = limit };
        int r = bus_query(&u, &q);

        if (r)
                return (size_t) r;
        for (size_t i = 0; i < q.n; i++) {
                ck_assert(om_span_is(q.dead[i].error, "it broke"));
                ck_assert(om_span_is(q.dead[i].error_type, "Broken"));
                ck_assert(om_span_is(q.dead[i].worker, "w1"));
                ck_assert_uint_eq(q.dead[i].attempts, 3);
                ck_assert_int_eq(q.dead[i].failed_ms, 12345);
                ck_assert_ptr_nonnull(memmem(q.dead[i].record.p, q.dead[i].record.len, "\"content\":", 10));
        }
        if (ret_first_id && q.n)
                snprintf(ret_first_id, 24, "%s", q.dead[0].id.p);
        ck_assert(!limit || q.n <= limit);
        om_arena_deinit(&q.arena);
        return q.n;
}

START_TEST(test_a_dead_task_is_in_the_dead_letters_and_replay_gives_it_back_to_that_group_alone) {
        struct bus_group *a = serve("t", "a"), *b = serve("t", "b");
        struct om_span one;
        struct om_bus_change c = { .type = OM_CHANGE_REPLAY_DEAD, .topic = OM_SPAN("t"), .agent = OM_SPAN("a"), .ids = &one, .n_ids = 1 };
        char id[24];
        uint64_t n;

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 4), 0);
        expect(a, 0, 4);
        expect(b, 0, 4);
        ack_all(b);
        ck_assert_int_eq(bus_settle(a, 0, 3, OM_DEAD, 0), 0);
        ack_all(a);
        ck_assert_uint_eq(DEPTH("t"), 0);
        reopen();
        bus_forget(a);
        bus_forget(b);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").dead, 3);
        ck_assert_uint_eq(letters("t", "a", 2, id), 2);
        ck_assert_uint_eq(letters("t", "a", 0, id), 3);
        ck_assert_int_eq((int) letters("t", "nobody", 0, id), -ENOENT);
        a = serve("t", "a");
        b = serve("t", "b");
        one = om_span_of(id);
        ck_assert_int_eq(bus_change(&u, &c), 0);
        ck_assert_uint_eq(c.ret_n, 1);
        expect(a, 0, 1);
        ck_assert_uint_eq(a->got[0]->attempt, 1);
        ck_assert_int_eq(bus_settle(a, 0, 1, OM_RETRY, 1), 0);
        ck_assert_int_eq(change(OM_CHANGE_REPLAY_DEAD, "t", "a", false, &n), 0);
        ck_assert_uint_eq(n, 2);
        ck_assert_uint_eq(bus_take(a, 3, 2000), 3);
        expect_nothing(b);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").dead, 0);
        ck_assert_int_eq(bus_settle(a, 0, 1, OM_DEAD, 0), 0);
        ack_all(a);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").lag, 0);
        ck_assert_int_eq(change(OM_CHANGE_PURGE_DEAD, "t", "a", false, &n), 0);
        ck_assert_uint_eq(n, 1);
        ck_assert_uint_eq(letters("t", "a", 0, NULL), 0);
        bus_unserve(a);
        bus_unserve(b);
}
END_TEST

START_TEST(test_dead_letters_are_listed_in_pages) {
        struct bus_group *a = serve("t", "a");
        struct om_bus_query q = { .type = OM_QUERY_DEAD, .topic = OM_SPAN("t"), .agent = OM_SPAN("a"), .limit = 7 };
        char cursor[32];
        size_t n = 0, pages = 0;

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 50), 0);
        expect(a, 0, 50);
        ck_assert_int_eq(bus_settle(a, 0, 50, OM_DEAD, 0), 0);
        for (;;) {
                ck_assert_int_eq(bus_query(&u, &q), 0);
                n += q.n;
                pages++;
                if (!q.next_cursor.p)
                        break;
                snprintf(cursor, sizeof cursor, "%s", q.next_cursor.p);
                om_arena_deinit(&q.arena);
                q.cursor = om_span_of(cursor);
        }
        om_arena_deinit(&q.arena);
        ck_assert_uint_eq(n, 50);
        ck_assert_uint_eq(pages, 8);
        bus_unserve(a);
}
END_TEST

/* -- keys, priorities, patterns, time ------------------------------------------------------------------------------ */

static void put_keyed(int content, const char *key) {
        char json[200];

        snprintf(json, sizeof json, "{\"topic\":\"t\",\"key\":\"%s\",\"payload\":{\"content\":%d}}", key, content);
        ck_assert_int_eq(bus_put(&u, json, NULL), 0);
}

START_TEST(test_of_one_key_one_task_is_out_at_a_time_and_in_order) {
        struct bus_group *g = serve("t", "a");

        for (int i = 0; i < 6; i++)
                put_keyed(i, i % 2 ? "odd" : "even");
        expect(g, 0, 2);
        expect_nothing(g);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, om_now_ms() + 100), 0); /* 0: its key waits with it */
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        expect(g, 3, 1);
        ack_all(g);
        expect(g, 5, 1);
        ack_all(g);
        ck_assert_uint_eq(bus_take(g, 5, 1000 / 2), 1);
        ck_assert_int_eq(bus_content(g->got[0]), 0);
        ack_all(g);
        expect(g, 2, 1);
        bus_unserve(g);
        reopen();
        g = serve("t", "a");
        expect(g, 2, 1);
        expect_nothing(g);
        ack_all(g);
        expect(g, 4, 1);
        ck_assert_uint_eq(g->got[0]->attempt, 1);
        ack_all(g);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(g);
}
END_TEST

START_TEST(test_higher_priorities_go_first_and_each_keeps_its_order) {
        static const int priorities[] = { 0, 5, 9, 0, 5, 9, 1 }, order[] = { 2, 5, 1, 4, 6, 0, 3 };
        struct bus_group *g = serve("t", "a");
        char json[200];

        for (int i = 0; i < 7; i++) {
                snprintf(json, sizeof json, "{\"topic\":\"t\",\"priority\":%d,\"payload\":{\"content\":%d}}", priorities[i], i);
                ck_assert_int_eq(bus_put(&u, json, NULL), 0);
        }
        ck_assert_uint_eq(bus_take(g, 7, 1000), 7);
        for (int i = 0; i < 7; i++)
                ck_assert_int_eq(bus_content(g->got[i]), order[i]);
        ck_assert_int_eq(bus_settle(g, 0, 7, OM_RELEASE, 0), 0);
        ck_assert_uint_eq(bus_take(g, 7, 1000), 7);
        for (int i = 0; i < 7; i++)
                ck_assert_int_eq(bus_content(g->got[i]), order[i]);
        ack_all(g);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(g);
}
END_TEST

START_TEST(test_what_a_topic_holds_is_listed_oldest_first_through_all_priorities) {
        struct om_bus_query q = { .type = OM_QUERY_HELD, .topic = OM_SPAN("t"), .limit = 4 };
        char json[200], cursor[32];
        int next = 0;

        for (int i = 0; i < 10; i++) {
                snprintf(json, sizeof json, "{\"topic\":\"t\",\"priority\":%d,\"payload\":{\"content\":%d}}", (i * 7) % 10, i);
                ck_assert_int_eq(bus_put(&u, json, NULL), 0);
        }
        for (;;) {
                ck_assert_int_eq(bus_query(&u, &q), 0);
                for (size_t i = 0; i < q.n; i++) {
                        struct om_delivery d = { .record = q.held[i].record };

                        ck_assert_int_eq(bus_content(&d), next++);
                }
                if (!q.next_cursor.p)
                        break;
                snprintf(cursor, sizeof cursor, "%s", q.next_cursor.p);
                om_arena_deinit(&q.arena);
                q.cursor = om_span_of(cursor);
        }
        om_arena_deinit(&q.arena);
        ck_assert_int_eq(next, 10);
}
END_TEST

START_TEST(test_a_pattern_gets_the_topics_that_match_also_those_made_later) {
        struct bus_group *one, *many;

        ck_assert_int_eq(bus_put_many(&u, "orders.eu", 1, 1), 0);
        ck_assert_int_eq(bus_put_many(&u, "orders.eu.fr", 2, 1), 0);
        ck_assert_int_eq(bus_put_many(&u, "bills.eu", 3, 1), 0);
        one = serve("orders.*", "a");
        many = serve("orders.#", "a");
        expect(one, 1, 1);
        expect(many, 2, 1); /* orders.eu had a group already */
        ck_assert_int_eq(bus_put_many(&u, "orders.us", 4, 1), 0);
        expect(one, 4, 1);
        expect(many, 4, 1);
        ck_assert_int_eq(bus_settle(one, 0, 2, OM_ACK, 0), 0);
        ck_assert_int_eq(bus_settle(many, 0, 2, OM_ACK, 0), 0);
        ck_assert_uint_eq(DEPTH("orders.us"), 0);
        bus_unserve(one);
        bus_unserve(many);
        reopen();
        ck_assert_int_eq(bus_put_many(&u, "orders.x", 5, 1), 0);
        one = serve("orders.*", "a");
        expect(one, 5, 1);
        ack_all(one);
        ck_assert_uint_eq(DEPTH("orders.x"), 1); /* for orders.# */
        ck_assert_int_eq(change(OM_CHANGE_DELETE_GROUP, "orders.#", "a", false, NULL), 0);
        ck_assert_uint_eq(DEPTH("orders.x"), 0);
        bus_unserve(one);
}
END_TEST

START_TEST(test_a_delayed_task_comes_when_due_also_across_a_restart) {
        struct bus_group *g = serve("t", "a");
        int64_t t0 = om_now_ms();

        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"delay_ms\":400,\"payload\":{\"content\":1}}", NULL), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"delay_ms\":200,\"payload\":{\"content\":0}}", NULL), 0);
        ck_assert_uint_eq(bus_topic(&u, "t").delayed, 2);
        ck_assert_uint_eq(DEPTH("t"), 0);
        expect(g, 0, 1);
        ck_assert_int_ge(om_now_ms() - t0, 200);
        ck_assert_int_le(om_now_ms() - t0, 250 + 100);
        ack_all(g);
        bus_unserve(g);
        reopen();
        g = serve("t", "a");
        expect(g, 1, 1);
        ck_assert_int_ge(om_now_ms() - t0, 400);
        ck_assert_uint_eq(bus_topic(&u, "t").delayed, 0);
        ack_all(g);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_task_past_its_ttl_is_not_delivered_and_counted) {
        struct bus_group *a = serve("t", "a"), *b = serve("t", "b");

        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"ttl_ms\":100,\"payload\":{\"content\":0}}", NULL), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"ttl_ms\":100,\"payload\":{\"content\":1}}", NULL), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"ttl_ms\":60000,\"payload\":{\"content\":2}}", NULL), 0);
        expect(a, 0, 2);
        ck_assert_int_eq(bus_settle(a, 1, 1, OM_RETRY, om_now_ms() + 5000), 0);
        bus_run(&u, 200);
        ck_assert_uint_eq(b->n_expired, 2);
        ck_assert_uint_eq(a->n_expired, 1); /* 0 is with a worker still */
        ck_assert_uint_eq(DEPTH("t"), 2);
        ck_assert_int_eq(bus_settle(a, 0, 1, OM_RETRY, om_now_ms()), 0);
        bus_run(&u, 20);
        ck_assert_uint_eq(a->n_expired, 2);
        expect(a, 2, 1);
        expect(b, 2, 1);
        ack_all(a);
        ack_all(b);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").expired, 2);
        ck_assert_uint_eq(bus_group_row(&u, "t", "b").expired, 2);
        ck_assert_uint_eq(bus_group_row(&u, "t", "b").finished, 1);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(a);
        bus_unserve(b);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"alone\",\"ttl_ms\":50,\"payload\":{\"content\":0}}", NULL), 0);
        bus_run(&u, 120);
        ck_assert_uint_eq(DEPTH("alone"), 0);
}
END_TEST

START_TEST(test_an_idempotency_key_makes_one_task_per_topic_within_its_window) {
        static const char first[] = "{\"id\":\"first\",\"topic\":\"t\",\"idempotency_key\":\"k\",\"payload\":{\"content\":0}}";
        static const char again[] = "{\"id\":\"again\",\"topic\":\"t\",\"idempotency_key\":\"k\",\"payload\":{\"content\":0}}";
        static const char other[] = "{\"id\":\"other\",\"topic\":\"t2\",\"idempotency_key\":\"k\",\"payload\":{\"content\":0}}";
        struct om_outcome o;

        reopen_with("durability=memory&idempotency_window_ms=300");
        ck_assert_int_eq(bus_put(&u, first, &o), 0);
        ck_assert(!o.duplicate);
        ck_assert_int_eq(bus_put(&u, again, &o), 0);
        ck_assert(o.duplicate);
        ck_assert_str_eq(o.id, "first");
        ck_assert_int_eq(bus_put(&u, other, &o), 0);
        ck_assert(!o.duplicate);
        reopen();
        ck_assert_int_eq(bus_put(&u, again, &o), 0);
        ck_assert(o.duplicate);
        ck_assert_uint_eq(DEPTH("t"), 1);
        ck_assert_uint_eq(bus_topic(&u, "t").published, 1);
        bus_run(&u, 350);
        ck_assert_int_eq(bus_put(&u, again, &o), 0);
        ck_assert(!o.duplicate);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_TOPIC, "t", NULL, true, NULL), 0);
        ck_assert_int_eq(bus_put(&u, again, &o), 0);
        ck_assert(!o.duplicate);
}
END_TEST

/* -- replay -------------------------------------------------------------------------------------------------------- */

START_TEST(test_kept_tasks_can_be_replayed_from_the_first_and_from_a_time_and_go_when_old) {
        struct om_bus_change c = { .type = OM_CHANGE_SEEK, .topic = OM_SPAN("t"), .agent = OM_SPAN("a"), .start = OM_START_FIRST };
        struct bus_group *g;
        int64_t between;

        reopen_with("durability=memory&retention_ms=1500");
        g = serve("t", "a");
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 5), 0);
        bus_run(&u, 20);
        between = om_now_ms();
        ck_assert_int_eq(bus_put_many(&u, "t", 5, 5), 0);
        expect(g, 0, 10);
        ack_all(g);
        ck_assert_uint_eq(DEPTH("t"), 0);
        reopen();
        bus_forget(g);
        g = serve("t", "a");
        expect_nothing(g);
        ck_assert_int_eq(bus_change(&u, &c), 0);
        ck_assert_uint_eq(c.ret_n, 10);
        ck_assert_uint_eq(DEPTH("t"), 10);
        expect(g, 0, 7);
        c.start = OM_START_TIME;
        c.start_ms = between;
        ck_assert_int_eq(bus_change(&u, &c), 0);
        bus_run(&u, 5);
        ck_assert_uint_eq(c.ret_n, 5);
        ck_assert_uint_eq(g->n_revoked, 7);
        ck_assert_uint_eq(DEPTH("t"), 5);
        ck_assert_int_eq(bus_settle(g, 0, 7, OM_ACK, 0), -ESTALE);
        expect(g, 5, 5);
        ack_all(g);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_run(&u, 1900);
        c.start = OM_START_FIRST;
        ck_assert_int_eq(bus_change(&u, &c), 0);
        ck_assert_uint_eq(c.ret_n, 0);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(g);
}
END_TEST

START_TEST(test_seeking_to_new_drops_what_waits_for_this_group_alone) {
        struct om_bus_change c = { .type = OM_CHANGE_SEEK, .topic = OM_SPAN("t"), .agent = OM_SPAN("a"), .start = OM_START_NEW };
        struct bus_group *a = serve("t", "a"), *b = serve("t", "b");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 10), 0);
        expect(b, 0, 4);
        ack_all(b);
        ck_assert_uint_eq(DEPTH("t"), 10);
        ck_assert_int_eq(bus_change(&u, &c), 0);
        ck_assert_uint_eq(DEPTH("t"), 6);
        expect_nothing(a);
        expect(b, 4, 6);
        ack_all(b);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(a);
        bus_unserve(b);
}
END_TEST

/* -- deleting ------------------------------------------------------------------------------------------------------ */

START_TEST(test_deleting_a_group_drops_what_waits_for_it_alone_and_making_it_again_starts_clean) {
        struct bus_group *a = serve("t", "a"), *b = serve("t", "b");
        uint64_t n;

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 10), 0);
        expect(a, 0, 3);
        ck_assert_int_eq(bus_settle(a, 0, 1, OM_DEAD, 0), 0);
        expect(b, 0, 5);
        ack_all(b);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_GROUP, "t", "a", false, &n), 0);
        ck_assert_uint_eq(n, 9);
        bus_run(&u, 5);
        ck_assert_uint_eq(a->n_revoked, 2);
        ck_assert_int_eq(bus_settle(a, 0, 2, OM_ACK, 0), -ESTALE);
        bus_unserve(a);
        ck_assert_uint_eq(DEPTH("t"), 5);
        ck_assert_uint_eq(bus_topic(&u, "t").groups, 1);
        ck_assert_uint_eq(letters("t", "a", 0, NULL), 1);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_GROUP, "t", "a", false, &n), -ENOENT);
        a = serve("t", "a");
        ck_assert(a->created);
        expect_nothing(a);
        ck_assert_uint_eq(letters("t", "a", 0, NULL), 1);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_GROUP, "t", "a", true, &n), 0);
        ck_assert_int_eq((int) letters("t", "a", 0, NULL), -ENOENT);
        bus_unserve(a);
        expect(b, 5, 5);
        ack_all(b);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(b);
}
END_TEST

START_TEST(test_deleting_the_last_group_leaves_nothing_for_the_next_first_one) {
        struct bus_group *a = serve("t", "a");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 10), 0);
        bus_unserve(a);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_GROUP, "t", "a", false, NULL), 0);
        ck_assert_int_eq(bus_put_many(&u, "t", 10, 2), 0);
        ck_assert_uint_eq(DEPTH("t"), 2);
        a = serve("t", "b");
        expect(a, 10, 2);
        ack_all(a);
        ck_assert_uint_eq(DEPTH("t"), 0);
        bus_unserve(a);
}
END_TEST

START_TEST(test_a_large_topic_is_deleted_in_slices_while_others_go_on) {
        struct om_bus_change c = { .type = OM_CHANGE_DELETE_TOPIC, .topic = OM_SPAN("big") };
        struct bus_group *g = serve("big", "a");
        uint64_t n;

        for (int i = 0; i < 30; i++)
                ck_assert_int_eq(bus_put_many(&u, "big", 0, 1000), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"big\",\"delay_ms\":100000,\"payload\":{\"content\":1}}", NULL), 0);
        expect(g, 0, 10);
        bus_unserve(g);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_TOPIC, "big", NULL, false, &n), 0);
        ck_assert_uint_eq(n, 30001);
        ck_assert_int_eq(bus_change(&u, &c), -ENOENT);
        ck_assert_uint_eq(bus_group_row(&u, "big", "a").lag, 0);
        g = serve("big", "a");
        ck_assert(g->created);
        expect_nothing(g);
        ck_assert_int_eq(bus_put_many(&u, "big", 5, 1), 0);
        expect(g, 5, 1);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_thousand_topics_with_two_groups_each_survive_a_restart) {
        char topic[32];

        for (int i = 0; i < 1000; i++) {
                snprintf(topic, sizeof topic, "t%d", i);
                bus_unserve(serve(topic, "a"));
                bus_unserve(serve(topic, "b"));
                ck_assert_int_eq(bus_put_many(&u, topic, i, 2), 0);
        }
        reopen();
        for (int i = 0; i < 1000; i += 37) {
                struct bus_group *g;

                snprintf(topic, sizeof topic, "t%d", i);
                ck_assert_uint_eq(bus_topic(&u, topic).groups, 2);
                g = serve(topic, "b");
                expect(g, i, 2);
                ack_all(g);
                bus_unserve(g);
                ck_assert_uint_eq(bus_group_row(&u, topic, "a").lag, 2);
                ck_assert_uint_eq(bus_group_row(&u, topic, "b").lag, 0);
        }
}
END_TEST

START_TEST(test_health_tells_durability_and_path) {
        struct om_bus_query q = { .type = OM_QUERY_HEALTH };

        ck_assert_int_eq(bus_query(&u, &q), 0);
        ck_assert_ptr_nonnull(strstr(q.info.p, "\"durability\":\"weak\""));
        ck_assert_ptr_nonnull(strstr(q.info.p, folder));
        om_arena_deinit(&q.arena);
        reopen_with("");
        ck_assert_int_eq(bus_query(&u, &q), 0);
        ck_assert_ptr_nonnull(strstr(q.info.p, "\"durability\":\"strong\""));
        ck_assert_int_eq(om_json_check(q.info, 4, NULL), 0);
        om_arena_deinit(&q.arena);
}
END_TEST

int main(void) {
        Suite *s = suite_create("local_bus");
        TCase *t = tcase_create("contract");

        suite_add_tcase(s, t);
        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_set_timeout(t, 60);
        tcase_add_test(t, test_a_task_reaches_its_group_and_is_gone_after_the_ack);
        tcase_add_test(t, test_tasks_published_before_the_first_group_wait_for_it_and_a_later_group_starts_after);
        tcase_add_test(t, test_start_first_new_and_time_override);
        tcase_add_test(t, test_two_groups_each_get_all_of_a_thousand_in_order);
        tcase_add_test(t, test_a_group_that_was_just_given_up_can_be_served_at_once);
        tcase_add_test(t, test_no_more_than_wanted_is_handed_out);
        tcase_add_test(t, test_a_group_given_up_and_taken_up_in_one_turn_is_served);
        tcase_add_test(t, test_a_retry_comes_back_when_due_with_the_attempt_counted_and_holds_up_nobody);
        tcase_add_test(t, test_retries_and_their_count_survive_a_restart);
        tcase_add_test(t, test_a_release_comes_back_at_once_uncounted);
        tcase_add_test(t, test_a_delivery_interrupted_by_a_close_counts_as_an_attempt);
        tcase_add_test(t, test_outputs_of_an_ack_are_published_with_it);
        tcase_add_test(t, test_outputs_that_do_not_fit_leave_the_task_with_its_worker);
        tcase_add_test(t, test_a_full_bus_refuses_and_works_again_when_there_is_room);
        tcase_add_test(t, test_a_dead_task_is_in_the_dead_letters_and_replay_gives_it_back_to_that_group_alone);
        tcase_add_test(t, test_dead_letters_are_listed_in_pages);
        tcase_add_test(t, test_of_one_key_one_task_is_out_at_a_time_and_in_order);
        tcase_add_test(t, test_higher_priorities_go_first_and_each_keeps_its_order);
        tcase_add_test(t, test_what_a_topic_holds_is_listed_oldest_first_through_all_priorities);
        tcase_add_test(t, test_a_pattern_gets_the_topics_that_match_also_those_made_later);
        tcase_add_test(t, test_a_delayed_task_comes_when_due_also_across_a_restart);
        tcase_add_test(t, test_a_task_past_its_ttl_is_not_delivered_and_counted);
        tcase_add_test(t, test_an_idempotency_key_makes_one_task_per_topic_within_its_window);
        tcase_add_test(t, test_kept_tasks_can_be_replayed_from_the_first_and_from_a_time_and_go_when_old);
        tcase_add_test(t, test_seeking_to_new_drops_what_waits_for_this_group_alone);
        tcase_add_test(t, test_deleting_a_group_drops_what_waits_for_it_alone_and_making_it_again_starts_clean);
        tcase_add_test(t, test_deleting_the_last_group_leaves_nothing_for_the_next_first_one);
        tcase_add_test(t, test_a_large_topic_is_deleted_in_slices_while_others_go_on);
        tcase_add_test(t, test_a_thousand_topics_with_two_groups_each_survive_a_restart);
        tcase_add_test(t, test_health_tells_durability_and_path);
        return om_test_main(s);
}
