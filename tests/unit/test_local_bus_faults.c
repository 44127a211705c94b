/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The embedded bus when things go wrong: death at any moment, a full map, a full disk, a sync that fails, a second daemon.
 *
 * The oracle of the deaths: a child publishes, acknowledges and dead-letters through the contract, and tells each verdict through a pipe
 * only after its completion. The parent kills it at a random moment, opens the folder itself, and compares: every task that was
 * acknowledged to the publisher and not told as finished must still be there, exactly once; at most what was under way may differ.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
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
}
static void tear_down(void) {
        char command[100];

        snprintf(command, sizeof command, "rm -rf %s", folder);
        ck_assert_int_eq(system(command), 0);
}
static void open_bus(void) { ck_assert_msg(bus_open(&u, &om_local_bus_ops, url, folder) == 0, "%s", u.error.message); }
static struct bus_group *serve(const char *topic, const char *agent) {
        struct bus_group *g = bus_serve(&u, topic, agent, OM_START_DEFAULT, 0);

        ck_assert_msg(g != NULL, "%s", u.error.message);
        return g;
}

/* -- one daemon a folder ------------------------------------------------------------------------------------------- */

START_TEST(test_a_second_open_is_refused_and_names_the_folder_and_the_holder) {
        struct bus_user second;
        char pid[32];

        open_bus();
        ck_assert_int_lt(bus_open(&second, &om_local_bus_ops, url, folder), 0);
        snprintf(pid, sizeof pid, "%ld", (long) getpid());
        ck_assert_ptr_nonnull(strstr(second.error.message, folder));
        ck_assert_ptr_nonnull(strstr(second.error.message, pid));
        bus_close(&u);
        open_bus();
        bus_close(&u);
}
END_TEST

START_TEST(test_bad_urls_are_refused_by_name) {
        static const char *const bad[] = { "local://host/x", "local:?durability=sometimes", "local:?durabillity=always",
                "local:/dev/null/x" };

        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
                ck_assert_int_lt(bus_open(&u, &om_local_bus_ops, bad[i], folder), 0);
                ck_assert_str_ne(u.error.message, "");
        }
}
END_TEST

START_TEST(test_a_damaged_file_is_refused_and_left_alone) {
        char command[200], file[120];
        FILE *f;

        snprintf(command, sizeof command, "mkdir -p %s/bus", folder);
        ck_assert_int_eq(system(command), 0);
        snprintf(file, sizeof file, "%s/bus/data.mdb", folder);
        f = fopen(file, "w");
        for (int i = 0; i < 20000; i++)
                fputc(i % 251, f);
        fclose(f);
        ck_assert_int_lt(bus_open(&u, &om_local_bus_ops, url, folder), 0);
        ck_assert_ptr_nonnull(strstr(u.error.message, folder));
}
END_TEST

/* -- growth -------------------------------------------------------------------------------------------------------- */

START_TEST(test_the_map_grows_while_tasks_are_out) {
        enum { KB = 200, TASKS = 1200 };
        struct bus_group *g;
        char *json = malloc(KB * 1024 + 200);
        int n;

        open_bus();
        g = serve("t", "a");
        n = sprintf(json, "{\"topic\":\"t\",\"payload\":{\"content\":1,\"webhook\":\"");
        memset(json + n, 'x', KB * 1024);
        strcpy(json + n + KB * 1024, "\"}}");
        for (int i = 0; i < TASKS; i++) { /* 240 MB: the first map holds 64 */
                ck_assert_int_eq(bus_put(&u, json, NULL), 0);
                if (i == 10)
                        ck_assert_uint_eq(bus_take(g, 5, 1000), 5);
        }
        ck_assert_int_eq(bus_settle(g, 0, 5, OM_ACK, 0), 0);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, TASKS - 5);
        bus_unserve(g);
        bus_close(&u);
        open_bus();
        ck_assert_uint_eq(bus_topic(&u, "t").depth, TASKS - 5);
        bus_close(&u);
        free(json);
}
END_TEST

/* The first commits of a turn find the map full, as if what was needed had been misjudged. */
static int n_full;
static int full_commit(MDB_txn *txn) {
        if (n_full > 0) {
                n_full--;
                mdb_txn_abort(txn);
                return MDB_MAP_FULL;
        }
        return mdb_txn_commit(txn);
}

START_TEST(test_a_turn_that_finds_the_map_full_is_applied_again_and_once) {
        struct bus_group *g, *other;
        struct om_bus_change c = { .type = OM_CHANGE_REPLAY_DEAD, .topic = OM_SPAN("t"), .agent = OM_SPAN("a") };

        open_bus();
        g = serve("t", "a");
        om_local_commit = full_commit;
        n_full = 3;
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 10), 0);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, 10);
        n_full = 1;
        other = serve("t", "b");
        ck_assert_uint_eq(bus_take(g, 10, 1000), 10);
        n_full = 2;
        ck_assert_int_eq(bus_settle(g, 0, 3, OM_ACK, 0), 0);
        n_full = 2;
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, om_now_ms() + 60000), 0);
        n_full = 2;
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_DEAD, 0), 0);
        n_full = 2;
        ck_assert_int_eq(bus_change(&u, &c), 0);
        ck_assert_uint_eq(c.ret_n, 2);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").leased, 4);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").retrying, 1);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").lag, 2);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").finished, 5);
        n_full = 1;
        ck_assert_int_eq(bus_settle(g, 0, 4, OM_ACK, 0), 0);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, 1);
        n_full = 1;
        bus_unserve(other);
        bus_unserve(g);
        om_local_commit = mdb_txn_commit;
        bus_close(&u);
}
END_TEST

/* -- a disk that fails --------------------------------------------------------------------------------------------- */

static int n_good, n_bad, bad_code;
static int bad_commit(MDB_txn *txn) {
        if (n_good > 0) {
                n_good--;
        } else if (n_bad > 0) {
                n_bad--;
                mdb_txn_abort(txn);
                return bad_code;
        }
        return mdb_txn_commit(txn);
}

START_TEST(test_after_a_failed_sync_nothing_was_acknowledged_and_what_is_out_stays_out) {
        struct bus_group *g;

        open_bus();
        g = serve("t", "a");
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 10), 0);
        ck_assert_uint_eq(bus_take(g, 6, 1000), 6);
        ck_assert_int_eq(bus_settle(g, 0, 1, OM_RETRY, om_now_ms() + 60000), 0);
        om_local_commit = bad_commit;
        n_bad = 1;
        bad_code = EIO;
        ck_assert_int_eq(bus_put_many(&u, "t", 10, 5), -EAGAIN);
        ck_assert_uint_eq(u.n_failed, 1);
        bus_run(&u, 50);
        ck_assert_int_eq(u.state, OM_BUS_READY);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, 10);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").leased, 5);
        ck_assert_uint_eq(bus_group_row(&u, "t", "a").retrying, 1);
        n_bad = 1;
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), -EAGAIN); /* still ours: the same again works */
        bus_run(&u, 50);
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), 0);
        ck_assert_uint_eq(bus_take(g, 100, 50), 4);
        for (size_t i = 0; i < g->n_got; i++)
                ck_assert_uint_eq(g->got[i]->attempt, 1);
        ck_assert_int_eq(bus_settle(g, 0, g->n_got, OM_ACK, 0), 0);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, 1);
        ck_assert_uint_eq(g->n_revoked, 0);
        bus_unserve(g);
        om_local_commit = mdb_txn_commit;
        bus_close(&u);
}
END_TEST

START_TEST(test_while_the_disk_stays_full_calls_fail_at_once_and_work_again_when_there_is_room) {
        struct bus_group *g;
        int64_t t0;

        open_bus();
        g = serve("t", "a");
        ck_assert_int_eq(bus_put_many(&u, "t", 0, 3), 0);
        ck_assert_uint_eq(bus_take(g, 2, 1000), 2);
        om_local_commit = bad_commit;
        n_bad = 3; /* the publish, and two trials */
        bad_code = ENOSPC;
        ck_assert_int_eq(bus_put_many(&u, "t", 3, 1), -EAGAIN);
        ck_assert_int_eq(u.state, OM_BUS_FAILED);
        ck_assert_ptr_nonnull(strstr(u.error.message, "No space left"));
        t0 = om_clock_ms();
        ck_assert_int_eq(bus_put_many(&u, "t", 3, 1), -EAGAIN);
        ck_assert_int_lt(om_clock_ms() - t0, 50);
        for (int i = 0; i < 200 && u.state != OM_BUS_READY; i++)
                bus_run(&u, 10);
        ck_assert_int_eq(u.state, OM_BUS_READY);
        ck_assert_int_eq(n_bad, 0);
        ck_assert_int_eq(bus_put_many(&u, "t", 3, 1), 0);
        ck_assert_int_eq(bus_settle(g, 0, 2, OM_ACK, 0), 0);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, 2);
        ck_assert_uint_eq(bus_take(g, 5, 30), 2);
        bus_unserve(g);
        om_local_commit = mdb_txn_commit;
        bus_close(&u);
}
END_TEST

START_TEST(test_a_file_that_cannot_grow_leaves_the_old_tasks_intact) {
        struct rlimit small = { 1 << 20, RLIM_INFINITY }, before;
        struct bus_group *g;
        int stored = 0, r;

        signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &before);
        open_bus();
        g = serve("t", "a");
        small.rlim_max = before.rlim_max;
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
        while ((r = bus_put_many(&u, "t", stored, 100)) == 0)
                stored += 100;
        ck_assert_int_eq(r, -EAGAIN);
        ck_assert_int_gt(stored, 0);
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
        for (int i = 0; i < 300 && u.state != OM_BUS_READY; i++)
                bus_run(&u, 10);
        ck_assert_int_eq(u.state, OM_BUS_READY);
        ck_assert_uint_eq(bus_topic(&u, "t").depth, stored);
        ck_assert_int_eq(bus_put_many(&u, "t", stored, 100), 0);
        ck_assert_uint_eq(bus_take(g, (unsigned) stored + 100, 3000), stored + 100);
        for (int i = 0; i < stored + 100; i++)
                ck_assert_int_eq(bus_content(g->got[i]), i);
        ck_assert_int_eq(bus_settle(g, 0, g->n_got, OM_ACK, 0), 0);
        bus_unserve(g);
        bus_close(&u);
}
END_TEST

/* -- death --------------------------------------------------------------------------------------------------------- */

enum { KILLS = 40, BATCH = 20 };
enum told { PUBLISHING = 'p', PUBLISHED = 'P', FINISHING = 'f', FINISHED = 'F' };
struct word {
        int what, content; /* no padding: it is written whole */
};

static void tell(int fd, char what, int content) {
        struct word w = { what, content };

        if (write(fd, &w, sizeof w) != sizeof w)
                _exit(1);
}

/* Publishes from `next` on, and settles what comes: most are acknowledged with an output, some retried, some buried. Until it is killed. */
static void child(int fd, int next) {
        struct bus_group *g;

        open_bus();
        g = serve("t", "a");
        for (;; next += BATCH) {
                for (int i = 0; i < BATCH; i++)
                        tell(fd, PUBLISHING, next + i);
                if (bus_put_many(&u, "t", next, BATCH) != 0)
                        _exit(2);
                for (int i = 0; i < BATCH; i++)
                        tell(fd, PUBLISHED, next + i);
                bus_take(g, BATCH, 20);
                while (g->n_got) {
                        int content = bus_content(g->got[0]);
                        char output[100];
                        const char *outputs[] = { output };

                        if (content % 7 == 3 && g->got[0]->attempt < 3) {
                                if (bus_settle(g, 0, 1, OM_RETRY, om_now_ms() + 1) != 0)
                                        _exit(3);
                                continue;
                        }
                        tell(fd, FINISHING, content);
                        snprintf(output, sizeof output, "{\"topic\":\"out\",\"payload\":{\"content\":%d}}", content);
                        if ((content % 5 == 0 ? bus_settle(g, 0, 1, OM_DEAD, 0) : bus_ack_publishing(g, 0, outputs, 1)) != 0)
                                _exit(4);
                        tell(fd, FINISHED, content);
                }
        }
}

enum { MAX = 400000 };
static char state[MAX];    /* the last that was told of each */
static unsigned seen[MAX]; /* where it is found: waiting + dead + out */

static void hear(int fd, int *max) {
        struct word w;

        while (read(fd, &w, sizeof w) == sizeof w) {
                ck_assert_int_lt(w.content, MAX);
                state[w.content] = w.what;
                *max = w.content >= *max ? w.content + 1 : *max;
        }
}

static void count_held(const char *topic, const char *agent) {
        struct om_bus_query q = { .type = agent ? OM_QUERY_DEAD : OM_QUERY_HELD, .topic = om_span_of(topic), .agent = om_span_of(agent) };
        int r = bus_query(&u, &q);

        ck_assert(r == 0 || r == -ENOENT);
        for (size_t i = 0; i < q.n; i++) {
                struct om_delivery d = { .record = agent ? q.dead[i].record : q.held[i].record };

                seen[bus_content(&d)]++;
        }
        om_arena_deinit(&q.arena);
}

START_TEST(test_killed_at_any_moment_every_task_is_in_exactly_one_place) {
        int max = 0;

        srand((unsigned) getpid());
        for (int kill_no = 0; kill_no < KILLS; kill_no++) {
                struct om_bus_group_row row;
                uint64_t waiting = 0;
                int fds[2], status;
                pid_t pid;

                ck_assert_int_eq(pipe(fds), 0);
                ck_assert_int_eq(fcntl(fds[1], F_SETPIPE_SZ, 1 << 20) > 0, 1);
                pid = fork();
                if (pid == 0)
                        child(fds[1], max);
                close(fds[1]);
                usleep((useconds_t) (20000 + rand() % 60000));
                kill(pid, SIGKILL);
                ck_assert_int_eq(waitpid(pid, &status, 0), pid);
                ck_assert_msg(WIFSIGNALED(status), "the child ended by itself: %d", WEXITSTATUS(status));
                hear(fds[0], &max);
                close(fds[0]);

                open_bus();
                memset(seen, 0, sizeof seen);
                count_held("t", NULL);
                for (int i = 0; i < max; i++)
                        waiting += seen[i];
                ck_assert_uint_eq(bus_topic(&u, "t").depth, waiting); /* the counters agree with the rows */
                row = bus_group_row(&u, "t", "a");
                ck_assert_uint_eq(row.lag + row.retrying, waiting);
                ck_assert_uint_eq(row.leased, 0);
                count_held("t", "a");
                count_held("out", NULL);
                for (int i = 0; i < max; i++) {
                        if (state[i] == PUBLISHING) /* under way when it died: there or not, but whole */
                                ck_assert_msg(seen[i] <= 1, "task %d is there %u times", i, seen[i]);
                        else if (state[i])
                                ck_assert_msg(seen[i] == 1, "task %d (%c) is in %u places", i, state[i], seen[i]);
                        if (state[i] == PUBLISHING)
                                state[i] = seen[i] ? PUBLISHED : 0;
                }
                bus_close(&u);
        }
        ck_assert_int_gt(max, KILLS * BATCH);
}
END_TEST

START_TEST(test_a_large_deletion_that_was_killed_is_finished_by_the_next_start) {
        struct om_bus_change c = { .type = OM_CHANGE_DELETE_TOPIC, .topic = OM_SPAN("big") };
        int status;
        pid_t pid;

        open_bus();
        bus_unserve(serve("big", "a"));
        for (int i = 0; i < 40; i++)
                ck_assert_int_eq(bus_put_many(&u, "big", 0, 1000), 0);
        ck_assert_int_eq(bus_put_many(&u, "keep", 0, 10), 0);
        bus_close(&u);
        pid = fork();
        if (pid == 0) {
                open_bus();
                om_local_commit = bad_commit;
                n_good = 3; /* the fourth commit of the deletion never comes */
                n_bad = 1000000;
                bad_code = EIO;
                bus_change(&u, &c);
                _exit(0);
        }
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        open_bus();
        ck_assert_uint_eq(bus_topic(&u, "big").depth, 0);
        ck_assert_uint_eq(bus_topic(&u, "keep").depth, 10);
        ck_assert_int_eq(bus_put_many(&u, "big", 0, 3), 0);
        for (int i = 0; i < 100; i++) {
                struct om_bus_query q = { .type = OM_QUERY_HEALTH };
                bool clean;

                ck_assert_int_eq(bus_query(&u, &q), 0);
                clean = strstr(q.info.p, "\"deleting\":0") != NULL;
                om_arena_deinit(&q.arena);
                if (clean)
                        break;
                ck_assert_int_lt(i, 99);
                bus_run(&u, 10);
        }
        ck_assert_uint_eq(bus_topic(&u, "big").depth, 3);
        bus_close(&u);
}
END_TEST

int main(void) {
        Suite *s = suite_create("local_bus_faults");
        TCase *t = tcase_create("faults");

        suite_add_tcase(s, t);
        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_set_timeout(t, 120);
        tcase_add_test(t, test_a_second_open_is_refused_and_names_the_folder_and_the_holder);
        tcase_add_test(t, test_bad_urls_are_refused_by_name);
        tcase_add_test(t, test_a_damaged_file_is_refused_and_left_alone);
        tcase_add_test(t, test_the_map_grows_while_tasks_are_out);
        tcase_add_test(t, test_a_turn_that_finds_the_map_full_is_applied_again_and_once);
        tcase_add_test(t, test_after_a_failed_sync_nothing_was_acknowledged_and_what_is_out_stays_out);
        tcase_add_test(t, test_while_the_disk_stays_full_calls_fail_at_once_and_work_again_when_there_is_room);
        tcase_add_test(t, test_a_file_that_cannot_grow_leaves_the_old_tasks_intact);
        tcase_add_test(t, test_killed_at_any_moment_every_task_is_in_exactly_one_place);
        tcase_add_test(t, test_a_large_deletion_that_was_killed_is_finished_by_the_next_start);
        return om_test_main(s);
}
