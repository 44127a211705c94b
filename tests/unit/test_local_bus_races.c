/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The embedded bus when calls meet in one turn, and when a turn has to be undone: what was told to the core, what is on its way, and who
 * still waits for a delivery. The commit of a turn is held up until the calls of the next one are all in.
 */
#include <check.h>
#include <errno.h>
#include <lmdb.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../lib/bus_user.h"
#include "../lib/suite.h"

extern const struct om_bus_ops om_local_bus_ops;
extern int (*om_local_commit)(MDB_txn *txn);

static char folder[64], url[200];
static struct bus_user u;

static void set_up(void) {
        strcpy(folder, "/tmp/omni-test-local-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        snprintf(url, sizeof url, "local:%s/bus?durability=memory", folder);
        ck_assert_msg(bus_open(&u, &om_local_bus_ops, url, folder) == 0, "%s", u.error.message);
}
static void tear_down(void) {
        char command[100];

        om_local_commit = mdb_txn_commit;
        bus_close(&u);
        snprintf(command, sizeof command, "rm -rf %s", folder);
        ck_assert_int_eq(system(command), 0);
}
static struct bus_group *serve(const char *topic, const char *agent) {
        struct bus_group *g = bus_serve(&u, topic, agent, OM_START_DEFAULT, 0);

        ck_assert_msg(g != NULL, "%s", u.error.message);
        return g;
}

/* -- a turn that waits --------------------------------------------------------------------------------------------- */

static sem_t entered, leave;
static atomic_int n_held;
static int held_commit(MDB_txn *txn) {
        if (atomic_fetch_sub(&n_held, 1) == 1) {
                sem_post(&entered);
                sem_wait(&leave);
        }
        return mdb_txn_commit(txn);
}
static void hold_next_commit(void) {
        sem_init(&entered, 0, 0);
        sem_init(&leave, 0, 0);
        atomic_store(&n_held, 1);
        om_local_commit = held_commit;
}

struct call {
        union {
                struct om_op op; /* each of them begins with it */
                struct om_bus_change change;
                struct om_bus_settle settle;
        };
        bool done;
        int status;
};
static void on_done(struct om_op *op, int status, const struct om_error *e) {
        struct call *c = (struct call *) op;

        (void) e;
        c->done = true;
        c->status = status;
}
static void start_change(struct call *c, enum om_bus_change_type type, const char *topic, const char *agent) {
        struct om_error e = OM_ERROR_INIT;

        c->change = (struct om_bus_change){ .type = type, .topic = om_span_of(topic), .agent = om_span_of(agent) };
        c->op.done = on_done;
        ck_assert_int_eq(u.ops->change(u.bus, &c->change, &e), 0);
}
static void start_settle(struct call *c, struct om_settlement *item) {
        struct om_error e = OM_ERROR_INIT;

        c->settle = (struct om_bus_settle){ .items = item, .n = 1 };
        c->op.done = on_done;
        ck_assert_int_eq(u.ops->settle(u.bus, &c->settle, &e), 0);
}

/* -- what the core holds ------------------------------------------------------------------------------------------- */

START_TEST(test_a_delivery_taken_back_and_settled_in_one_turn_is_told_once_and_freed_once) {
        struct bus_group *g = serve("t", "a");
        struct call dummy = { 0 }, seek = { 0 }, settle = { 0 };
        struct om_settlement item = { .verdict = OM_ACK };

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 1), 0);
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        item.delivery = g->got[0];
        g->n_got = 0;
        hold_next_commit();
        start_change(&dummy, OM_CHANGE_SEEK, "t", "nobody");
        sem_wait(&entered);
        start_change(&seek, OM_CHANGE_SEEK, "t", "a");
        start_settle(&settle, &item);
        sem_post(&leave);
        ck_assert(bus_until(&u, &settle.done, 5000));
        ck_assert(bus_until(&u, &seek.done, 5000));
        ck_assert_int_eq(settle.status, 0);
        ck_assert_int_eq(item.outcome.status, -ESTALE);
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_ACK, 0), 0);
        bus_unserve(g);
}
END_TEST

/* -- undone turns -------------------------------------------------------------------------------------------------- */

static int n_full;
static int full_commit(MDB_txn *txn) {
        if (n_full > 0) {
                n_full--;
                mdb_txn_abort(txn);
                return MDB_MAP_FULL;
        }
        return mdb_txn_commit(txn);
}

START_TEST(test_a_group_made_again_keeps_its_new_server_when_a_turn_is_undone) {
        struct bus_group *old = serve("t", "a"), *fresh;
        struct om_bus_change c = { .type = OM_CHANGE_DELETE_GROUP, .topic = OM_SPAN("t"), .agent = OM_SPAN("a") };

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 1), 0);
        ck_assert_uint_eq(bus_take(old, 1, 1000), 1);
        ck_assert_int_eq(bus_settle(old, 0, 1, OM_DEAD, 0), 0);
        ck_assert_int_eq(bus_change(&u, &c), 0); /* the dead letter keeps the record of the group */
        fresh = serve("t", "a");
        om_local_commit = full_commit;
        n_full = 1;
        ck_assert_int_eq(bus_put_many(&u, "t", 1, 1), 0);
        ck_assert_uint_eq(bus_take(fresh, 1, 1000), 1);
        ck_assert_int_eq(bus_settle(fresh, 0, 1, OM_ACK, 0), 0);
        bus_unserve(old);
        bus_unserve(fresh);
}
END_TEST

/* What a child does, until it dies with everything out. */
static void die_in_a_child(void (*run)(void)) {
        int status;
        pid_t pid;

        bus_close(&u);
        pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                if (bus_open(&u, &om_local_bus_ops, url, folder) == 0)
                        run();
                kill(getpid(), SIGKILL);
        }
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status));
        ck_assert_int_eq(WTERMSIG(status), SIGKILL);
        ck_assert_int_eq(bus_open(&u, &om_local_bus_ops, url, folder), 0);
}

static void first_attempt_and_an_undone_turn(void) {
        struct bus_group *g = bus_serve(&u, "t", "a", OM_START_DEFAULT, 0);

        om_local_commit = full_commit;
        if (bus_put_many(&u, "t", 0, 1) < 0 || bus_take(g, 1, 1000) != 1)
                _exit(1);
        n_full = 1;
        if (bus_put_many(&u, "u", 0, 1) < 0)
                _exit(2);
        bus_run(&u, 200);
}
START_TEST(test_a_first_attempt_that_a_death_ended_is_counted_after_an_undone_turn) {
        struct bus_group *g;

        die_in_a_child(first_attempt_and_an_undone_turn);
        g = serve("t", "a");
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 2);
        bus_unserve(g);
}
END_TEST

static void second_attempt_and_an_undone_turn(void) {
        struct bus_group *g = bus_serve(&u, "t", "a", OM_START_DEFAULT, 0);

        om_local_commit = full_commit;
        if (bus_put_many(&u, "t", 0, 1) < 0 || bus_take(g, 1, 1000) != 1 || bus_settle(g, 0, 1, OM_RETRY, om_now_ms()) < 0 ||
                bus_take(g, 1, 1000) != 1)
                _exit(1);
        n_full = 1;
        if (bus_put_many(&u, "u", 0, 1) < 0)
                _exit(2);
        bus_run(&u, 200);
}
START_TEST(test_a_second_attempt_that_a_death_ended_is_counted_after_an_undone_turn) {
        struct bus_group *g;

        die_in_a_child(second_attempt_and_an_undone_turn);
        g = serve("t", "a");
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 3);
        bus_unserve(g);
}
END_TEST

/* -- memory that is not there -------------------------------------------------------------------------------------- */

/* Only deliveries are allocated this way. */
static atomic_int n_no_memory;
void *aligned_alloc(size_t alignment, size_t size) {
        void *p;

        if (atomic_load(&n_no_memory) > 0 && atomic_fetch_sub(&n_no_memory, 1) > 0)
                return NULL;
        return posix_memalign(&p, alignment, size) ? NULL : p;
}

START_TEST(test_a_group_that_could_not_be_filled_for_want_of_memory_is_filled_soon_after) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put_many(&u, "t", 0, 3), 0);
        atomic_store(&n_no_memory, 1);
        ck_assert_uint_eq(bus_take(g, 3, 2000), 3); /* it wants once, and nothing else happens */
        for (int i = 0; i < 3; i++)
                ck_assert_int_eq(bus_content(g->got[i]), i);
        ck_assert_int_eq(bus_settle(g, 0, 3, OM_ACK, 0), 0);
        bus_unserve(g);
}
END_TEST

/* -- attempts ------------------------------------------------------------------------------------------------------ */

START_TEST(test_a_task_that_waited_for_its_key_and_was_never_out_begins_with_its_first_attempt_after_a_restart) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"key\":\"k\",\"payload\":{\"content\":0}}", NULL), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"key\":\"k\",\"payload\":{\"content\":1}}", NULL), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"payload\":{\"content\":2}}", NULL), 0);
        ck_assert_uint_eq(bus_take(g, 2, 1000), 2);
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), 0);
        bus_unserve(g);
        bus_close(&u);
        ck_assert_int_eq(bus_open(&u, &om_local_bus_ops, url, folder), 0);
        g = serve("t", "a");
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        ck_assert_int_eq(bus_content(g->got[0]), 1);
        ck_assert_uint_eq(g->got[0]->attempt, 1);
        bus_unserve(g);
}
END_TEST

START_TEST(test_a_task_of_another_priority_that_waits_for_its_key_begins_with_its_first_attempt_after_a_restart) {
        struct bus_group *g = serve("t", "a");

        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"key\":\"k\",\"payload\":{\"content\":0}}", NULL), 0);
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"key\":\"k\",\"priority\":5,\"payload\":{\"content\":1}}", NULL), 0);
        ck_assert_int_eq(bus_put(&u, "{\"topic\":\"t\",\"priority\":5,\"payload\":{\"content\":2}}", NULL), 0);
        ck_assert_uint_eq(bus_take(g, 1, 1000), 1);
        bus_unserve(g);
        bus_close(&u);
        ck_assert_int_eq(bus_open(&u, &om_local_bus_ops, url, folder), 0);
        g = serve("t", "a");
        bus_take(g, 3, 100);
        for (size_t i = 0; i < g->n_got; i++)
                ck_assert_uint_eq(g->got[i]->attempt, 1);
        ck_assert_uint_eq(g->n_got, 2);
        bus_unserve(g);
}
END_TEST

int main(void) {
        Suite *s = suite_create("local_bus_races");
        TCase *t = tcase_create("races");

        suite_add_tcase(s, t);
        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_set_timeout(t, 60);
        tcase_add_test(t, test_a_delivery_taken_back_and_settled_in_one_turn_is_told_once_and_freed_once);
        tcase_add_test(t, test_a_group_made_again_keeps_its_new_server_when_a_turn_is_undone);
        tcase_add_test(t, test_a_first_attempt_that_a_death_ended_is_counted_after_an_undone_turn);
        tcase_add_test(t, test_a_second_attempt_that_a_death_ended_is_counted_after_an_undone_turn);
        tcase_add_test(t, test_a_group_that_could_not_be_filled_for_want_of_memory_is_filled_soon_after);
        tcase_add_test(t, test_a_task_that_waited_for_its_key_and_was_never_out_begins_with_its_first_attempt_after_a_restart);
        tcase_add_test(t, test_a_task_of_another_priority_that_waits_for_its_key_begins_with_its_first_attempt_after_a_restart);
        return om_test_main(s);
}
