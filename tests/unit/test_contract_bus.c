/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract of bus.h, the same cases over every bus: three in memory that work on the loop, on a thread of their own and on a worker,
 * the embedded one, and real servers that a script starts for each case. One line in `urls` adds another. Each case checks the rules of
 * operations on its way: done() comes once, on the loop, and not before the call has returned; deliveries come neither before want() nor
 * from within a call.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "../../backends/registry.h"
#include "../../daemon/loop.h"
#include "../../proto/json_scan.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"
#include "../lib/test_bus.h"

static const char *const urls[] = {
        /* %s: a fresh folder; server:NAME: one of tests/servers */
        "test-loop:",
        "test-thread:",
        "test-worker:",
        "local:%s",
        "local:%s?durability=memory",
        "server:redis",
        "server:nats",
        "server:nats:shared",

#ifndef __SANITIZE_THREAD__ /* it does not see the C11 threads of librdkafka, and crashes in them; RabbitMQ is too slow under it */
        "server:rabbitmq",
        "server:kafka",
#endif

};
/* of the archive, so that sanitizers and debuggers see them */
extern const struct om_bus_ops om_redis_bus_ops, om_nats_bus_ops, om_rabbitmq_bus_ops, om_kafka_bus_ops;
enum { N_URLS = sizeof(urls) / sizeof(urls[0]), GOT_MAX = 4096 };

static struct om_loop *loop;
static const struct om_bus_ops *ops;
static struct om_bus *bus;
static char *folder;
static const char *url;
static struct om_test_server *server;
static pthread_t loop_thread;
static bool in_call; /* the bus is being called: nothing may come back */
static int n_states;
static enum om_bus_state state;

/* A group as the core serves it. */
struct group {
        struct om_bus_sub *sub;
        struct om_delivery *got[GOT_MAX];
        int n, wanted, revoked;
};

static void check_here(void) {
        ck_assert(pthread_equal(loop_thread, pthread_self()));
        ck_assert_msg(!in_call, "the bus called back from within a call");
}

static void on_deliver(void *core, struct om_delivery *const *deliveries, size_t n) {
        struct group *g = core;
        check_here();
        ck_assert_msg(g->sub, "a delivery before subscribe() had completed, or after unsubscribe()");
        for (size_t i = 0; i < n; i++) {
                ck_assert_ptr_eq(deliveries[i]->sub, g->sub);
                ck_assert(!deliveries[i]->gone);
                g->got[g->n++] = deliveries[i];
        }
        ck_assert_msg(g->n <= g->wanted, "%d deliveries where %d are wanted", g->n, g->wanted);
}
static void on_revoked(void *core, struct om_delivery *const *deliveries, size_t n) {
        struct group *g = core;
        check_here();
        for (size_t i = 0; i < n; i++)
                ck_assert(deliveries[i]->gone);
        g->revoked += (int) n;
}
static void on_expired(void *core, uint64_t n) { check_here(); }
static void on_state(void *core, enum om_bus_state now, const struct om_error *error) {
        check_here();
        state = now;
        n_states++;
}
static const struct om_bus_events events = { on_deliver, on_revoked, on_expired, on_state };

static void turn(void) { om_loop_run_once(loop, true); }

static void on_time(evutil_socket_t fd, short what, void *arg) { *(int *) arg = 1; }
static void rest(int ms) {
        int over = 0;
        struct timeval tv = { ms / 1000, (ms % 1000) * 1000 };
        event_base_once(om_loop_base(loop), -1, EV_TIMEOUT, on_time, &over, &tv);
        while (!over)
                turn();
}

/* -- operations ---------------------------------------------------------------------------------------------------- */

struct answer {
        int completions, status;
        struct om_error error;
};
#define WAITING(type)               \
        struct {                    \
                type op;            \
                struct answer wait; \
        }
#define DONE(name, type)                                                               \
        static void name(struct om_op *op, int status, const struct om_error *error) { \
                complete(&((WAITING(type) *) (void *) op)->wait, status, error);       \
        }

static void complete(struct answer *w, int status, const struct om_error *error) {
        check_here();
        ck_assert_msg(++w->completions == 1, "done() twice");
        w->status = status;
        if (status == 0)
                return;
        w->error = *error;
        fprintf(stderr, "%s: %s\n", url, error->message); /* shown where the case fails by it */
}
DONE(publish_done, struct om_bus_publish)
DONE(subscribe_done, struct om_bus_subscribe)
DONE(settle_done, struct om_bus_settle)
DONE(query_done, struct om_bus_query)
DONE(change_done, struct om_bus_change)
DONE(close_done, struct om_op)

/* Calls, and waits for the completion. */
#define CALL(w, entry)                                                     \
        ({                                                                 \
                struct om_error call_error = OM_ERROR_INIT;                \
                in_call = true;                                            \
                int call_result = ops->entry(bus, &(w).op, &call_error);   \
                in_call = false;                                           \
                ck_assert_msg(call_result == 0, "%s", call_error.message); \
                while (!(w).wait.completions)                              \
                        turn();                                            \
                (w).wait.status;                                           \
        })

static void open_nth(int i) {
        char url_text[300];
        struct om_url *parsed;
        struct om_bus *opened;
        struct om_error e = OM_ERROR_INIT;
        const char *hole = strchr(urls[i], '%');
        url = urls[i];
        folder = test_folder();
        if (strncmp(urls[i], "server:", 7) == 0) {
                char dir[300];
                snprintf(dir, sizeof(dir), "%s/server", folder);
                server = om_test_server_start(urls[i] + 7, dir);
                snprintf(url_text, sizeof(url_text), "%s", om_test_server_value(server, "bus_url"));
                while ((hole = strstr(url_text, "{case}"))) /* the server is the case's own */
                        memcpy(url_text + (hole - url_text), "a-case", 6);
        } else if (hole)
                snprintf(url_text, sizeof(url_text), "%.*s%s%s", (int) (hole - urls[i]), urls[i], folder, hole + 2);
        else
                snprintf(url_text, sizeof(url_text), "%s", urls[i]);
        loop_thread = pthread_self();
        n_states = 0;
        ck_assert_int_eq(om_url_parse(url_text, &parsed, &e), 0);
        ck_assert_msg(om_registry_bus(parsed, "EVENT_BUS_URL", &ops, &e) == 0, "%s", e.message);
        ck_assert_int_eq(om_loop_new(&loop, folder, &e), 0);
        in_call = true;
        ck_assert_msg(ops->open(om_loop_host(loop), parsed, &events, NULL, &opened, &e) == 0, "%s", e.message);
        in_call = false;
        bus = opened;
        om_url_free(parsed);
        while (!n_states || state == OM_BUS_CONNECTING)
                turn();
        ck_assert_int_eq(state, OM_BUS_READY);
}

static void close_it(void) {
        WAITING(struct om_op) w = { .op.done = close_done };
        CALL(w, close);
        ck_assert_int_eq(w.wait.status, 0);
        ops->destroy(bus);
        om_loop_free(loop);
        om_test_server_stop(server);
        server = NULL;
        test_folder_remove(folder);
}

/* A task "topic/number". Its texts are overwritten once it was published: inputs are borrowed until the call returns. */
static int publish(const char *topic, int number, int n) {
        char record[64][128], id[64][16], name[64];
        struct om_task tasks[64];
        struct om_bus_task items[64];
        struct om_outcome outcomes[64];
        struct om_error e = OM_ERROR_INIT;
        WAITING(struct om_bus_publish) w = { .op = { .op.done = publish_done, .tasks = items, .n = (size_t) n, .outcomes = outcomes } };
        memset(tasks, 0, sizeof(tasks));
        snprintf(name, sizeof(name), "%s", topic);
        for (int i = 0; i < n; i++) {
                snprintf(id[i], sizeof(id[i]), "%d", number + i);
                snprintf(record[i], sizeof(record[i]), "{\"id\":\"%d\",\"topic\":\"%s\",\"payload\":{\"content\":%d}}", number + i, topic,
                        number + i);
                tasks[i].id = om_span_of(id[i]);
                tasks[i].topic = om_span_of(name);
                tasks[i].content = om_span_of(id[i]);
                tasks[i].created_ms = om_now_ms();
                items[i] = (struct om_bus_task){ &tasks[i], om_span_of(record[i]) };
        }
        in_call = true;
        int r = ops->publish(bus, &w.op, &e);
        in_call = false;
        memset(record, '#', sizeof(record));
        memset(id, '#', sizeof(id));
        memset(name, '#', sizeof(name));
        ck_assert_msg(r == 0, "%s", e.message);
        while (!w.wait.completions)
                turn();
        for (int i = 0; i < n && w.wait.status == 0; i++)
                ck_assert_int_eq(outcomes[i].status, 0);
        return w.wait.status;
}

static bool subscribe(struct group *g, const char *topic, const char *agent, enum om_start start) {
        WAITING(struct om_bus_subscribe)
        w = { .op = { .op.done = subscribe_done, .topic = om_span_of(topic), .agent = om_span_of(agent), .start = start, .core = g } };
        *g = (struct group){ .n = 0 };
        ck_assert_int_eq(CALL(w, subscribe), 0);
        g->sub = w.op.ret_sub;
        ck_assert_ptr_nonnull(g->sub);
        return w.op.ret_created;
}

static void want(struct group *g, int n) {
        g->wanted = g->n + n;
        in_call = true;
        ops->want(g->sub, (unsigned) n);
        in_call = false;
}

static void get(struct group *g, int n) {
        while (g->n < n)
                turn();
}

static int number_of(const struct om_delivery *d) {
        char record[200]; /* a span has no end of its own */
        int number = -1;
        snprintf(record, sizeof record, "%.*s", OM_PRI(d->record));
        ck_assert_int_eq(sscanf(record, "{\"id\":\"%d\"", &number), 1);
        return number;
}

static int settle_n(struct om_delivery **deliveries, int n, enum om_verdict verdict, int64_t due_ms) {
        struct om_settlement items[64];
        struct om_dead_letter letters[64];
        WAITING(struct om_bus_settle) w = { .op = { .op.done = settle_done, .items = items, .n = (size_t) n } };
        memset(items, 0, sizeof(items));
        for (int i = 0; i < n; i++) {
                letters[i] = (struct om_dead_letter){ .record = deliveries[i]->record,
                        .error = OM_SPAN("it broke"),
                        .error_type = OM_SPAN("Broken"),
                        .worker = OM_SPAN("w1"),
                        .attempts = deliveries[i]->attempt,
                        .failed_ms = 12345 };
                items[i] = (struct om_settlement){
                        .delivery = deliveries[i], .verdict = verdict, .due_ms = due_ms, .letter = verdict == OM_DEAD ? &letters[i] : NULL
                };
        }
        ck_assert_int_eq(CALL(w, settle), 0);
        for (int i = 1; i < n; i++)
                ck_assert_int_eq(items[i].outcome.status, items[0].outcome.status);
        return items[0].outcome.status;
}
static int settle(struct om_delivery *d, enum om_verdict verdict, int64_t due_ms) { return settle_n(&d, 1, verdict, due_ms); }

static void unsubscribe(struct group *g) {
        in_call = true;
        ops->unsubscribe(g->sub);
        in_call = false;
        g->sub = NULL;
}

/* A server may be too busy to say: asked again for a while. */
static struct om_bus_group_row row_of(const char *topic, const char *agent) {
        WAITING(struct om_bus_query) w;
        struct om_bus_group_row row = { .lag = UINT64_MAX };
        int64_t until = om_clock_ms() + 10000;
        int status;
        do {
                memset(&w, 0, sizeof(w));
                w.op.op.done = query_done;
                w.op.type = OM_QUERY_GROUPS;
                w.op.topic = om_span_of(topic);
                status = CALL(w, query);
        } while (status == -EAGAIN && om_clock_ms() < until);
        ck_assert_int_eq(status, 0);
        for (size_t i = 0; i < w.op.n; i++)
                if (om_span_is(w.op.groups[i].agent, agent))
                        row = w.op.groups[i];
        om_arena_deinit(&w.op.arena);
        return row;
}

static uint64_t depth_of(const char *topic) {
        WAITING(struct om_bus_query) w = { .op = { .op.done = query_done, .type = OM_QUERY_TOPICS, .topic = om_span_of(topic) } };
        ck_assert_int_eq(CALL(w, query), 0);
        uint64_t depth = w.op.n ? w.op.topics[0].depth : 0;
        om_arena_deinit(&w.op.arena);
        return depth;
}

static int change(enum om_bus_change_type type, const char *topic, const char *agent, uint64_t *ret_n) {
        WAITING(struct om_bus_change)
        w = { .op = { .op.done = change_done, .type = type, .topic = om_span_of(topic), .agent = om_span_of(agent) } };
        int r = CALL(w, change);
        *ret_n = w.op.ret_n;
        return r;
}

/* -- cases --------------------------------------------------------------------------------------------------------- */

START_TEST(test_first_group_gets_what_was_published_before_it_in_order) {
        static struct group g;
        open_nth(_i);
        for (int i = 0; i < 60; i += 20)
                ck_assert_int_eq(publish("greet", i, 20), 0);
        ck_assert_uint_eq(depth_of("greet"), 60);
        ck_assert(subscribe(&g, "greet", "one", OM_START_DEFAULT));
        rest(30);
        ck_assert_int_eq(g.n, 0); /* nothing before want() */
        want(&g, 100);
        get(&g, 60);
        for (int i = 0; i < 60; i++) {
                ck_assert_int_eq(number_of(g.got[i]), i);
                ck_assert_uint_eq(g.got[i]->attempt, 1);
        }
        ck_assert_int_eq(settle_n(g.got, 60, OM_ACK, 0), 0);
        ck_assert_uint_eq(row_of("greet", "one").finished, 60);
        ck_assert_uint_eq(depth_of("greet"), 0);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_later_group_starts_after_it_came_unless_it_says_otherwise) {
        static struct group one, two, all;
        open_nth(_i);
        ck_assert_int_eq(publish("greet", 0, 5), 0);
        subscribe(&one, "greet", "one", OM_START_DEFAULT);
        subscribe(&two, "greet", "two", OM_START_DEFAULT);
        subscribe(&all, "greet", "all", OM_START_FIRST);
        ck_assert_int_eq(publish("greet", 5, 1), 0);
        want(&one, 10);
        want(&two, 10);
        want(&all, 10);
        get(&one, 6);
        get(&two, 1);
        get(&all, 6);
        rest(30);
        ck_assert_int_eq(two.n, 1);
        ck_assert_int_eq(number_of(two.got[0]), 5);
        settle_n(one.got, 6, OM_ACK, 0);
        settle_n(all.got, 6, OM_ACK, 0);
        ck_assert_uint_eq(depth_of("greet"), 1); /* held for `two` */
        settle_n(two.got, 1, OM_ACK, 0);
        ck_assert_uint_eq(depth_of("greet"), 0);
        unsubscribe(&one);
        unsubscribe(&two);
        unsubscribe(&all);
        close_it();
}
END_TEST

START_TEST(test_no_more_is_delivered_than_is_wanted) {
        static struct group g;
        open_nth(_i);
        ck_assert_int_eq(publish("greet", 0, 20), 0);
        subscribe(&g, "greet", "one", OM_START_DEFAULT);
        for (int n = 0; n < 20; n += 4) {
                want(&g, 4);
                get(&g, n + 4);
                rest(10); /* on_deliver() says where there are more */
        }
        settle_n(g.got, 20, OM_ACK, 0);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_retry_comes_back_when_due_with_the_attempt_counted_and_holds_nothing_up) {
        static struct group g;
        open_nth(_i);
        subscribe(&g, "greet", "one", OM_START_DEFAULT);
        want(&g, 10);
        ck_assert_int_eq(publish("greet", 1, 1), 0);
        get(&g, 1);
        int64_t due = om_now_ms() + 600;
        ck_assert_int_eq(settle(g.got[0], OM_RETRY, due), 0);
        ck_assert_uint_eq(row_of("greet", "one").retrying, 1);
        ck_assert_int_eq(publish("greet", 2, 1), 0);
        get(&g, 2);
        unsigned again = number_of(g.got[1]) == 1 ? 1 : 2; /* on a slow machine it may be due before the new one is there */
        if (again == 1)
                ck_assert_int_ge(om_now_ms(), due);
        get(&g, 3);
        ck_assert_int_ge(om_now_ms(), due);
        ck_assert_int_eq(number_of(g.got[again]), 1);
        ck_assert_int_eq(number_of(g.got[3 - again]), 2);
        ck_assert_uint_eq(g.got[again]->attempt, 2);
        ck_assert_int_eq(settle(g.got[again], OM_RELEASE, 0), 0);
        get(&g, 4);
        ck_assert_uint_eq(g.got[3]->attempt, 2); /* released: not counted */
        settle(g.got[3 - again], OM_ACK, 0);
        settle(g.got[3], OM_ACK, 0);
        ck_assert_uint_eq(row_of("greet", "one").finished, 2);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_dead_letters_are_listed_replayed_and_purged) {
        static struct group g;
        uint64_t n;
        open_nth(_i);
        WAITING(struct om_bus_query)
        w = { .op = { .op.done = query_done, .type = OM_QUERY_DEAD, .topic = OM_SPAN("greet"), .agent = OM_SPAN("one") } };
        ck_assert_int_eq(CALL(w, query), -ENOENT);
        om_arena_deinit(&w.op.arena);
        subscribe(&g, "greet", "one", OM_START_DEFAULT);
        want(&g, 10);
        ck_assert_int_eq(publish("greet", 0, 3), 0);
        get(&g, 3);
        ck_assert_int_eq(settle_n(g.got, 3, OM_DEAD, 0), 0);
        ck_assert_uint_eq(row_of("greet", "one").dead, 3);
        w.wait = (struct answer){ 0 };
        w.op.arena = (struct om_arena){ 0 };
        w.op.limit = 2;
        ck_assert_int_eq(CALL(w, query), 0);
        ck_assert_uint_eq(w.op.n, 2);
        ck_assert(om_span_is(w.op.dead[0].error, "it broke"));
        ck_assert(om_span_is(w.op.dead[0].error_type, "Broken"));
        ck_assert(om_span_is(w.op.dead[0].worker, "w1"));
        ck_assert_uint_eq(w.op.dead[0].attempts, 1);
        ck_assert_int_eq(w.op.dead[0].failed_ms, 12345);
        ck_assert_ptr_nonnull(memmem(w.op.dead[0].record.p, w.op.dead[0].record.len, "\"id\":\"0\"", 8));
        ck_assert_ptr_nonnull(w.op.next_cursor.p);
        struct om_arena first = w.op.arena;
        w.op.arena = (struct om_arena){ 0 };
        w.wait = (struct answer){ 0 };
        w.op.cursor = w.op.next_cursor;
        ck_assert_int_eq(CALL(w, query), 0);
        ck_assert_uint_eq(w.op.n, 1);
        ck_assert_ptr_nonnull(memmem(w.op.dead[0].record.p, w.op.dead[0].record.len, "\"id\":\"2\"", 8));
        ck_assert_ptr_null(w.op.next_cursor.p);
        WAITING(struct om_bus_change)
        one = { .op = { .op.done = change_done,
                        .type = OM_CHANGE_REPLAY_DEAD,
                        .topic = OM_SPAN("greet"),
                        .agent = OM_SPAN("one"),
                        .ids = &w.op.dead[0].id,
                        .n_ids = 1 } };
        ck_assert_int_eq(CALL(one, change), 0);
        ck_assert_uint_eq(one.op.ret_n, 1);
        om_arena_deinit(&first);
        om_arena_deinit(&w.op.arena);
        get(&g, 4);
        ck_assert_int_eq(number_of(g.got[3]), 2);
        ck_assert_uint_eq(g.got[3]->attempt, 1); /* anew */
        settle(g.got[3], OM_ACK, 0);
        ck_assert_int_eq(change(OM_CHANGE_PURGE_DEAD, "greet", "one", &n), 0);
        ck_assert_uint_eq(n, 2);
        ck_assert_uint_eq(row_of("greet", "one").dead, 0);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_group_stays_when_nobody_serves_it) {
        static struct group g;
        open_nth(_i);
        ck_assert(subscribe(&g, "greet", "one", OM_START_DEFAULT));
        unsubscribe(&g);
        ck_assert_int_eq(publish("greet", 0, 3), 0);
        ck_assert(!subscribe(&g, "greet", "one", OM_START_NEW)); /* start is for new groups */
        want(&g, 10);
        get(&g, 3);
        settle_n(g.got, 3, OM_ACK, 0);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_unsubscribe_with_deliveries_on_their_way_loses_none) {
        static struct group g;
        open_nth(_i);
        ck_assert_int_eq(publish("greet", 0, 30), 0);
        for (int round = 0; round < 5; round++) {
                subscribe(&g, "greet", "one", OM_START_DEFAULT);
                want(&g, 10);
                unsubscribe(&g); /* on_deliver() says when something comes after it */
        }
        rest(30);
        subscribe(&g, "greet", "one", OM_START_DEFAULT);
        want(&g, 30);
        get(&g, 30);
        bool seen[30] = { false };
        for (int i = 0; i < 30; i++) {
                ck_assert(!seen[number_of(g.got[i])]);
                seen[number_of(g.got[i])] = true;
                ck_assert_uint_eq(g.got[i]->attempt, 1); /* nobody had them */
        }
        settle_n(g.got, 30, OM_ACK, 0);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_deleting_a_group_revokes_what_is_out_and_starts_clean_after) {
        static struct group g, other;
        uint64_t n;
        open_nth(_i);
        subscribe(&g, "greet", "one", OM_START_DEFAULT);
        subscribe(&other, "greet", "other", OM_START_DEFAULT);
        want(&g, 2);
        want(&other, 10);
        ck_assert_int_eq(publish("greet", 0, 5), 0);
        get(&g, 2);
        get(&other, 5);
        ck_assert_int_eq(change(OM_CHANGE_DELETE_GROUP, "greet", "one", &n), 0);
        while (g.revoked < 2)
                turn();
        ck_assert_int_eq(settle_n(g.got, 2, OM_ACK, 0), -ESTALE);
        unsubscribe(&g);
        ck_assert_int_eq(settle_n(other.got, 5, OM_ACK, 0), 0);
        ck_assert_uint_eq(depth_of("greet"), 0);
        ck_assert(subscribe(&g, "greet", "one", OM_START_DEFAULT));
        want(&g, 10);
        ck_assert_int_eq(publish("greet", 9, 1), 0);
        get(&g, 1);
        get(&other, 6);
        ck_assert_int_eq(number_of(g.got[0]), 9);
        settle(g.got[0], OM_ACK, 0);
        settle(other.got[5], OM_ACK, 0);
        unsubscribe(&g);
        unsubscribe(&other);
        close_it();
}
END_TEST

START_TEST(test_publishes_under_way_are_bounded_cancellable_and_complete_once_each) {
        enum { N = 12000 };
        static WAITING(struct om_bus_publish) w[N];
        static struct om_outcome outcomes[N];
        static struct group g;
        int refused = 0, taken = 0, ok = 0;
        open_nth(_i);
        subscribe(&g, "greet", "one", OM_START_DEFAULT);
        for (int i = 0; i < N; i++) {
                char id[16], record[128];
                struct om_error e = OM_ERROR_INIT;
                snprintf(id, sizeof(id), "%d", i);
                snprintf(record, sizeof(record), "{\"id\":\"%d\",\"topic\":\"greet\",\"payload\":{\"content\":%d}}", i, i);
                struct om_task task = { .id = om_span_of(id), .topic = OM_SPAN("greet"), .content = om_span_of(id), .created_ms = 1 };
                struct om_bus_task item = { &task, om_span_of(record) };
                memset(&w[i], 0, sizeof(w[i]));
                w[i].op = (struct om_bus_publish){ .op.done = publish_done, .tasks = &item, .n = 1, .outcomes = &outcomes[i] };
                in_call = true;
                int r = ops->publish(bus, &w[i].op, &e);
                in_call = false;
                ck_assert(r == 0 || r == -ENOBUFS);
                refused += r < 0;
                if (r == 0) {
                        taken++;
                        if (i % 3 == 0) {
                                in_call = true;
                                om_op_cancel(&w[i].op.op);
                                in_call = false;
                        }
                } else
                        w[i].wait.completions = -1;
        }
        ck_assert_msg(refused > 0, "nothing bounds what is in flight");
        for (int i = 0; i < N; i++) {
                if (w[i].wait.completions < 0)
                        continue;
                while (!w[i].wait.completions)
                        turn();
                ck_assert_msg(
                        w[i].wait.status == 0 || (i % 3 == 0 && w[i].wait.status == -ECANCELED), "%d: %s", i, w[i].wait.error.message);
                ok += w[i].wait.status == 0;
        }
        ck_assert_int_gt(ok, taken / 2);
        uint64_t lag = row_of("greet", "one").lag;
        ck_assert_uint_ge(lag, (uint64_t) ok); /* what was cancelled may have been published */
        ck_assert_uint_le(lag, (uint64_t) taken);
        unsubscribe(&g);
        close_it();
}
END_TEST

START_TEST(test_health_is_an_object_that_says_how_durable) {
        struct om_error e = OM_ERROR_INIT;
        open_nth(_i);
        WAITING(struct om_bus_query) w = { .op = { .op.done = query_done, .type = OM_QUERY_HEALTH } };
        ck_assert_int_eq(CALL(w, query), 0);
        ck_assert_msg(om_json_check(w.op.info, 8, &e) == 0, "%s", e.message);
        ck_assert_ptr_nonnull(memmem(w.op.info.p, w.op.info.len, "\"durability\":", 13));
        om_arena_deinit(&w.op.arena);
        close_it();
}
END_TEST

int main(void) {
        Suite *s = suite_create("contract of buses");
        TCase *t = tcase_create("every bus");
        test_buses_register();
        om_registry_add_bus(&om_kafka_bus_ops);
        om_registry_add_bus(&om_nats_bus_ops);
        om_registry_add_bus(&om_rabbitmq_bus_ops);
        om_registry_add_bus(&om_redis_bus_ops);
        tcase_set_timeout(t, 180);
        tcase_add_loop_test(t, test_first_group_gets_what_was_published_before_it_in_order, 0, N_URLS);
        tcase_add_loop_test(t, test_later_group_starts_after_it_came_unless_it_says_otherwise, 0, N_URLS);
        tcase_add_loop_test(t, test_no_more_is_delivered_than_is_wanted, 0, N_URLS);
        tcase_add_loop_test(t, test_retry_comes_back_when_due_with_the_attempt_counted_and_holds_nothing_up, 0, N_URLS);
        tcase_add_loop_test(t, test_dead_letters_are_listed_replayed_and_purged, 0, N_URLS);
        tcase_add_loop_test(t, test_group_stays_when_nobody_serves_it, 0, N_URLS);
        tcase_add_loop_test(t, test_unsubscribe_with_deliveries_on_their_way_loses_none, 0, N_URLS);
        tcase_add_loop_test(t, test_deleting_a_group_revokes_what_is_out_and_starts_clean_after, 0, N_URLS);
        tcase_add_loop_test(t, test_publishes_under_way_are_bounded_cancellable_and_complete_once_each, 0, N_URLS);
        tcase_add_loop_test(t, test_health_is_an_object_that_says_how_durable, 0, N_URLS);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
