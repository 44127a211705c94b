/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop and its workers: order of posts, the end of a turn, what a worker is handed, how it ends, and that an idle loop sleeps.
 * Run it with SANITIZE=thread as well: half of what is tested here is who touches what.
 */
#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <event2/event_struct.h>

#include "../../daemon/loop.h"
#include "../lib/suite.h"

static char folder[64];
static struct om_loop *loop;
static struct om_host *host;

static void set_up(void) {
        struct om_error e = OM_ERROR_INIT;

        strcpy(folder, "/tmp/omni-test-loop-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        ck_assert_msg(om_loop_new(&loop, folder, &e) == 0, "%s", e.message);
        host = om_loop_host(loop);
}

static void tear_down(void) {
        om_loop_free(loop);
        rmdir(folder);
}

/* -- posts --------------------------------------------------------------------------------------------------------- */

enum { THREADS = 4, POSTS = 5000 };
struct numbered {
        struct om_post post;
        unsigned thread, number;
};
static unsigned next_of[THREADS], n_arrived;
static bool out_of_order, wrong_thread;
static pthread_t loop_thread;

static void on_numbered(struct om_post *post) {
        struct numbered *n = (struct numbered *) post;

        out_of_order |= next_of[n->thread]++ != n->number;
        wrong_thread |= !pthread_equal(pthread_self(), loop_thread);
        free(n);
        if (++n_arrived == THREADS * POSTS)
                om_loop_stop(loop);
}

static void *post_many(void *arg) {
        for (unsigned i = 0; i < POSTS; i++) {
                struct numbered *n = calloc(1, sizeof *n);

                n->post.fn = on_numbered;
                n->thread = (unsigned) (uintptr_t) arg;
                n->number = i;
                om_host_post(host, &n->post);
        }
        return NULL;
}

START_TEST(test_posts_of_many_threads_arrive_once_each_in_order_on_the_loop) {
        pthread_t threads[THREADS];

        memset(next_of, 0, sizeof next_of);
        n_arrived = 0;
        out_of_order = wrong_thread = false;
        loop_thread = pthread_self();
        for (uintptr_t i = 0; i < THREADS; i++)
                ck_assert_int_eq(pthread_create(&threads[i], NULL, post_many, (void *) i), 0);
        ck_assert_int_eq(om_loop_run(loop), 0);
        for (unsigned i = 0; i < THREADS; i++)
                pthread_join(threads[i], NULL);
        ck_assert_uint_eq(n_arrived, THREADS * POSTS);
        ck_assert(!out_of_order);
        ck_assert(!wrong_thread);
}
END_TEST

static unsigned n_first, n_second;
static struct om_post first_post, second_post;
static void on_second(struct om_post *post) { n_second++; }
static void on_first(struct om_post *post) {
        n_first++;
        om_host_post(host, &second_post);
}

START_TEST(test_a_post_made_by_a_post_runs_in_the_next_turn) {
        n_first = n_second = 0;
        first_post.fn = on_first;
        second_post.fn = on_second;
        om_host_post(host, &first_post);
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_first, 1);
        ck_assert_uint_eq(n_second, 0);
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_second, 1);
}
END_TEST

START_TEST(test_posts_that_wait_when_the_loop_is_freed_are_run) {
        n_first = n_second = 0;
        first_post.fn = on_first;
        second_post.fn = on_second;
        om_host_post(host, &first_post);
        om_loop_free(loop);
        loop = NULL;
        ck_assert_uint_eq(n_first, 1);
        ck_assert_uint_eq(n_second, 1);
}
END_TEST

/* -- the end of a turn --------------------------------------------------------------------------------------------- */

static char story[64];
static void tell(char c) { strncat(story, (char[2]){ c, 0 }, sizeof story - strlen(story) - 1); }

static struct om_turn_end end_a, end_b;
static void on_end_b(struct om_turn_end *t) { tell('B'); }
static void on_end_a(struct om_turn_end *t) {
        tell('A');
        om_loop_at_turn_end(loop, &end_b);
}
static void on_story_post(struct om_post *post) { tell('p'); }
static struct om_post story_post = { .fn = on_story_post };

static void on_readable(evutil_socket_t fd, short what, void *ctx) {
        char c;

        ck_assert_int_eq(read(fd, &c, 1), 1);
        tell(c);
        om_loop_at_turn_end(loop, &end_a);
        om_loop_at_turn_end(loop, &end_a);
        if (c == '1')
                om_host_post(host, &story_post);
}

START_TEST(test_the_end_of_a_turn_comes_once_after_all_ready_events_and_posts) {
        struct event *events[2];
        int pipes[2][2];

        story[0] = 0;
        end_a = (struct om_turn_end){ .fn = on_end_a };
        end_b = (struct om_turn_end){ .fn = on_end_b };
        for (int i = 0; i < 2; i++) {
                ck_assert_int_eq(pipe(pipes[i]), 0);
                events[i] = event_new(om_loop_base(loop), pipes[i][0], EV_READ | EV_PERSIST, on_readable, NULL);
                event_add(events[i], NULL);
                ck_assert_int_eq(write(pipes[i][1], i ? "2" : "1", 1), 1);
        }
        om_loop_run_once(loop, true);
        ck_assert_msg(strcmp(story, "12pAB") == 0 || strcmp(story, "21pAB") == 0, "%s", story);
        for (int i = 0; i < 2; i++) {
                event_free(events[i]);
                close(pipes[i][0]);
                close(pipes[i][1]);
        }
}
END_TEST

START_TEST(test_a_socket_that_is_always_readable_does_not_put_off_the_end_of_a_turn) {
        struct event *ev;
        int fds[2];

        story[0] = 0;
        end_a = (struct om_turn_end){ .fn = on_end_a };
        end_b = (struct om_turn_end){ .fn = on_end_b };
        ck_assert_int_eq(pipe(fds), 0);
        ck_assert_int_eq(write(fds[1], "xyz", 3), 3);
        ev = event_new(om_loop_base(loop), fds[0], EV_READ | EV_PERSIST, on_readable, NULL);
        event_add(ev, NULL);
        for (int i = 0; i < 3; i++)
                om_loop_run_once(loop, true);
        ck_assert_str_eq(story, "xAByABzAB");
        event_free(ev);
        close(fds[0]);
        close(fds[1]);
}
END_TEST

START_TEST(test_a_turn_end_asked_for_outside_a_turn_does_not_wait_for_an_event) {
        story[0] = 0;
        end_b = (struct om_turn_end){ .fn = on_end_b };
        om_loop_at_turn_end(loop, &end_b);
        om_loop_run_once(loop, true); /* would wait for ever */
        ck_assert_str_eq(story, "B");
}
END_TEST

/* -- sleeping ------------------------------------------------------------------------------------------------------ */

static void on_stop_timer(evutil_socket_t fd, short what, void *ctx) { om_loop_stop(loop); }

START_TEST(test_an_idle_loop_does_not_wake_up) {
        struct timeval half_second = { 0, 500000 };
        struct rusage before, after;
        struct event *timer = evtimer_new(om_loop_base(loop), on_stop_timer, NULL);

        evtimer_add(timer, &half_second);
        getrusage(RUSAGE_THREAD, &before);
        om_loop_run(loop);
        getrusage(RUSAGE_THREAD, &after);
        ck_assert_int_le(after.ru_nvcsw - before.ru_nvcsw, 2);
        event_free(timer);
}
END_TEST

/* -- workers ------------------------------------------------------------------------------------------------------- */

struct numbered_work {
        struct om_work work;
        unsigned number;
};
struct counted {
        struct om_post stopped;
        struct om_post done;
        unsigned expected, n_turns, n_idle_turns, wait_ms;
        bool disorder, signals_open, is_stopped;
        char name[16];
};

static int count_turn(void *ctx, struct om_work *list) {
        struct counted *c = ctx;
        struct om_work *next;
        sigset_t blocked;

        c->n_turns++;
        c->n_idle_turns += !list;
        pthread_sigmask(SIG_SETMASK, NULL, &blocked);
        c->signals_open |= !sigismember(&blocked, SIGTERM) || !sigismember(&blocked, SIGHUP);
        pthread_getname_np(pthread_self(), c->name, sizeof c->name);
        for (; list; list = next) {
                next = list->next;
                c->disorder |= ((struct numbered_work *) list)->number != c->expected++;
                free(list);
        }
        if (c->wait_ms > 0 && c->n_idle_turns < 3)
                return (int) c->wait_ms;
        if (c->wait_ms > 0 && c->n_idle_turns == 3)
                om_host_post(host, &c->done);
        return -1;
}

static void on_stopped(struct om_post *post) {
        ((struct counted *) post)->is_stopped = true;
        om_loop_stop(loop);
}

static void on_done(struct om_post *post) { om_loop_stop(loop); }

static struct om_worker *start(struct counted *c) {
        struct om_error e = OM_ERROR_INIT;
        struct om_worker *w = NULL;

        c->stopped.fn = on_stopped;
        c->done.fn = on_done;
        ck_assert_msg(host->ops->worker_new(host, "counter", count_turn, c, &w, &e) == 0, "%s", e.message);
        return w;
}

static void submit(struct om_worker *w, unsigned number) {
        struct numbered_work *work = calloc(1, sizeof *work);

        work->number = number;
        host->ops->worker_submit(w, &work->work);
}

START_TEST(test_a_worker_does_all_that_was_submitted_in_order_before_it_ends) {
        struct counted c = { .wait_ms = 0 };
        struct om_worker *w = start(&c);

        for (unsigned i = 0; i < 20000; i++)
                submit(w, i);
        host->ops->worker_stop(w, &c.stopped);
        om_loop_run(loop);
        ck_assert(c.is_stopped);
        ck_assert_uint_eq(c.expected, 20000);
        ck_assert(!c.disorder);
        ck_assert_uint_le(c.n_turns, 20000);
        ck_assert_uint_eq(c.n_idle_turns, 0);
        ck_assert(!c.signals_open);
        ck_assert_str_eq(c.name, "counter");
}
END_TEST

START_TEST(test_a_worker_without_work_ends_at_once) {
        struct counted c = { .wait_ms = 0 };
        struct om_worker *w = start(&c);

        host->ops->worker_stop(w, &c.stopped);
        om_loop_run(loop);
        ck_assert(c.is_stopped);
        ck_assert_uint_eq(c.n_turns, 0);
}
END_TEST

START_TEST(test_a_worker_is_called_again_when_the_time_that_it_asked_for_has_come) {
        struct counted c = { .wait_ms = 10 };
        struct om_worker *w = start(&c);
        int64_t began = om_clock_ms();

        submit(w, 0);
        om_loop_run(loop); /* until the third idle turn */
        ck_assert_int_ge(om_clock_ms() - began, 30);
        host->ops->worker_stop(w, &c.stopped);
        om_loop_run(loop);
        ck_assert_uint_eq(c.n_turns, 4);
}
END_TEST

START_TEST(test_a_long_wait_of_a_worker_does_not_hold_up_its_end) {
        struct counted c = { .wait_ms = 600000 };
        struct om_worker *w = start(&c);
        int64_t began = om_clock_ms();

        submit(w, 0);
        host->ops->worker_stop(w, &c.stopped);
        om_loop_run(loop);
        ck_assert(c.is_stopped);
        ck_assert_int_lt(om_clock_ms() - began, 5000);
}
END_TEST

/* Work goes to the worker and comes back as a post, one at a time: the way of every operation of an embedded backend. */
struct ping {
        struct om_work work;
        struct om_post post;
        struct om_worker *worker;
        unsigned left;
};
static int ping_turn(void *ctx, struct om_work *list) {
        if (list)
                om_host_post(host, &((struct ping *) list)->post);
        return -1;
}
static void on_pong(struct om_post *post) {
        struct ping *p = (void *) ((char *) post - offsetof(struct ping, post));

        if (--p->left == 0)
                om_loop_stop(loop);
        else
                host->ops->worker_submit(p->worker, &p->work);
}

START_TEST(test_work_goes_to_a_worker_and_back_one_at_a_time) {
        struct counted c = { .wait_ms = 0 };
        struct ping p = { .post.fn = on_pong, .left = 5000 };
        struct om_error e = OM_ERROR_INIT;
        uint64_t began;

        c.stopped.fn = on_stopped;
        ck_assert_int_eq(host->ops->worker_new(host, "ping", ping_turn, &p, &p.worker, &e), 0);
        began = om_clock_ns();
        host->ops->worker_submit(p.worker, &p.work);
        om_loop_run(loop);
        ck_assert_uint_eq(p.left, 0);
        printf("loop to worker and back: %.1f us\n", (double) (om_clock_ns() - began) / 5000 / 1000);
        host->ops->worker_stop(p.worker, &c.stopped);
        om_loop_run(loop);
        ck_assert(c.is_stopped);
}
END_TEST

static bool no_memory;
static void *allocate(size_t n) { return no_memory ? NULL : malloc(n); }
static void *allocate_anew(void *p, size_t n) { return no_memory ? NULL : realloc(p, n); }

static void on_timer(evutil_socket_t fd, short what, void *ctx) { ++*(int *) ctx; }

START_TEST(test_the_daemons_own_timers_can_be_set_without_memory) {
        struct event timers[OM_LOOP_TIMERS];
        static const struct timeval soon = { .tv_usec = 1000 };
        struct om_error e = OM_ERROR_INIT;
        struct om_loop *l;
        int fired = 0;

        event_set_mem_functions(allocate, allocate_anew, free);
        ck_assert_int_eq(om_loop_new(&l, folder, &e), 0);
        no_memory = true;
        for (int i = 0; i < OM_LOOP_TIMERS; i++) {
                event_assign(&timers[i], om_loop_base(l), -1, 0, on_timer, &fired);
                ck_assert_int_eq(event_add(&timers[i], &soon), 0);
        }
        no_memory = false;
        while (fired < OM_LOOP_TIMERS)
                om_loop_run_once(l, true);
        om_loop_free(l);
}
END_TEST

START_TEST(test_a_state_folder_that_cannot_be_made_is_named) {
        struct om_error e = OM_ERROR_INIT;
        struct om_loop *other = NULL;

        ck_assert_int_lt(om_loop_new(&other, "/proc/nowhere/state", &e), 0);
        ck_assert_ptr_null(other);
        ck_assert_ptr_nonnull(strstr(e.message, "/proc/nowhere"));
}
END_TEST

int main(void) {
        Suite *s = suite_create("loop");
        TCase *t = tcase_create("loop");

        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_add_test(t, test_posts_of_many_threads_arrive_once_each_in_order_on_the_loop);
        tcase_add_test(t, test_a_post_made_by_a_post_runs_in_the_next_turn);
        tcase_add_test(t, test_posts_that_wait_when_the_loop_is_freed_are_run);
        tcase_add_test(t, test_the_end_of_a_turn_comes_once_after_all_ready_events_and_posts);
        tcase_add_test(t, test_a_socket_that_is_always_readable_does_not_put_off_the_end_of_a_turn);
        tcase_add_test(t, test_a_turn_end_asked_for_outside_a_turn_does_not_wait_for_an_event);
        tcase_add_test(t, test_an_idle_loop_does_not_wake_up);
        tcase_add_test(t, test_a_worker_does_all_that_was_submitted_in_order_before_it_ends);
        tcase_add_test(t, test_a_worker_without_work_ends_at_once);
        tcase_add_test(t, test_a_worker_is_called_again_when_the_time_that_it_asked_for_has_come);
        tcase_add_test(t, test_a_long_wait_of_a_worker_does_not_hold_up_its_end);
        tcase_add_test(t, test_work_goes_to_a_worker_and_back_one_at_a_time);
        tcase_add_test(t, test_the_daemons_own_timers_can_be_set_without_memory);
        tcase_add_test(t, test_a_state_folder_that_cannot_be_made_is_named);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
