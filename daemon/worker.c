/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker thread: a queue, a condition to sleep on, and the backend's turn().
 *
 * What is always true:
 *   - the loop thread never waits for a worker: the lock is held for a few stores at a time, by either side, never across turn();
 *   - all that was submitted since the last turn is handed over as one list, oldest first, so that one commit or one fsync carries it;
 *   - a submit makes a system call only where the thread sleeps;
 *   - the thread's last act is a post to the loop, which joins it, tells the backend, and frees the worker. Nothing of a worker is touched
 *     by its thread after that post.
 *
 * Signals are blocked in the thread: they are the loop's. Waiting is on CLOCK_MONOTONIC: setting the wall clock neither hurries nor delays
 * a turn.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "worker.h"

/* Address space, not memory: what is not touched costs nothing. LMDB, TLS handshakes and JSON to OM_DEPTH_MAX run on it. */
enum { STACK_BYTES = 1 << 20 };

struct om_worker {
        struct om_host *host;
        om_worker_turn_fn *turn;
        void *ctx;
        pthread_t thread;

        pthread_mutex_t lock; /* guards what follows, up to `stopping` */
        pthread_cond_t wake;
        struct om_work *head, **tail;
        bool asleep; /* the thread waits, and nobody has signalled it yet */
        bool stopping;

        struct om_post gone; /* posted by the thread at its end */
        struct om_post *stopped;
        char name[16];
};

static struct timespec after_ms(int ms) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += ms / 1000;
        t.tv_nsec += (long) (ms % 1000) * 1000000L;
        if (t.tv_nsec >= 1000000000L) {
                t.tv_sec++;
                t.tv_nsec -= 1000000000L;
        }
        return t;
}

/* Sleeps until there is work, the time has come (ms < 0: it never does), or the end. False: the end, and nothing is left to do. */
static bool wait_for_work(struct om_worker *w, int ms, struct om_work **ret_list) {
        struct timespec due = { 0 };
        bool go_on;

        if (ms > 0)
                due = after_ms(ms);
        pthread_mutex_lock(&w->lock);
        while (!w->head && !w->stopping && ms != 0) {
                w->asleep = true;
                if (ms < 0)
                        pthread_cond_wait(&w->wake, &w->lock);
                else if (pthread_cond_timedwait(&w->wake, &w->lock, &due) == ETIMEDOUT)
                        break;
        }
        w->asleep = false;
        *ret_list = w->head;
        w->head = NULL;
        w->tail = &w->head;
        go_on = *ret_list || !w->stopping;
        pthread_mutex_unlock(&w->lock);
        return go_on;
}

static void *worker_main(void *arg) {
        struct om_worker *w = arg;
        struct om_work *list;
        int ms = -1;

        pthread_setname_np(pthread_self(), w->name);
        while (wait_for_work(w, ms, &list))
                ms = w->turn(w->ctx, list);
        om_host_post(w->host, &w->gone);
        return NULL;
}

/* Loop thread: the thread has done all but return. */
static void worker_gone(struct om_post *post) {
        struct om_worker *w = (void *) ((char *) post - offsetof(struct om_worker, gone));
        struct om_post *stopped = w->stopped;

        pthread_join(w->thread, NULL);
        pthread_cond_destroy(&w->wake);
        pthread_mutex_destroy(&w->lock);
        free(w);
        stopped->fn(stopped);
}

/* Starts the thread with every signal blocked. Returns a positive errno, as pthread_create() does. */
static int start_thread(struct om_worker *w) {
        pthread_attr_t attr;
        sigset_t all, before;
        int r;

        r = pthread_attr_init(&attr);
        if (r != 0)
                return r;
        pthread_attr_setstacksize(&attr, STACK_BYTES);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_create(&w->thread, &attr, worker_main, w);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
        return r;
}

int om_worker_new(struct om_host *host, const char *name, om_worker_turn_fn *turn, void *ctx, struct om_worker **ret, struct om_error *e) {
        struct om_worker *w = calloc(1, sizeof *w);
        pthread_condattr_t attr;
        int r;

        if (!w)
                return om_error_set_errno(e, ENOMEM, "thread %s", name);
        w->host = host;
        w->turn = turn;
        w->ctx = ctx;
        w->tail = &w->head;
        w->gone.fn = worker_gone;
        snprintf(w->name, sizeof w->name, "%s", name);
        pthread_mutex_init(&w->lock, NULL);
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&w->wake, &attr);
        pthread_condattr_destroy(&attr);

        r = start_thread(w);
        if (r != 0) {
                pthread_cond_destroy(&w->wake);
                pthread_mutex_destroy(&w->lock);
                free(w);
                return om_error_set_errno(e, r, "thread %s", name);
        }
        *ret = w;
        return 0;
}

void om_worker_submit(struct om_worker *w, struct om_work *work) {
        bool signal;

        work->next = NULL;
        pthread_mutex_lock(&w->lock);
        *w->tail = work;
        w->tail = &work->next;
        signal = w->asleep;
        w->asleep = false;
        pthread_mutex_unlock(&w->lock);
        if (signal)
                pthread_cond_signal(&w->wake);
}

void om_worker_stop(struct om_worker *w, struct om_post *stopped) {
        pthread_mutex_lock(&w->lock);
        w->stopped = stopped;
        w->stopping = true;
        w->asleep = false;
        pthread_mutex_unlock(&w->lock);
        pthread_cond_signal(&w->wake); /* freeing is the loop's, in a later turn: w is still there */
}
