/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop: libevent's event base, a queue of posts from any thread, and what is to happen at the end of a turn.
 *
 * One turn, in this order:
 *
 *     wait ─▶ events that are ready ─▶ posts that have come ─▶ turn ends ─▶ wait …
 *
 * What is always true:
 *   - events are touched on the loop's thread only, so the event base has no locks; the way in for other threads is om_host_post();
 *   - posts run in the order of posting. A post made while posts run has its turn in the next one, so "free it one turn later" is a post;
 *   - the turn ends run after all of that, and those that they ask for run too, before the loop waits. Nothing gathered stays behind;
 *   - a post makes a system call only where the loop waits, or is about to. The eventfd is edge-triggered: it is never read, each write is
 *     a new edge;
 *   - there is no timer of the loop's own: it wakes when something happens.
 *
 * Turns are made by hand with EVLOOP_ONCE rather than by event priorities: libevent runs an event of lower priority only after a wait that
 * finds nothing of a higher one ready, which under load is never.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <event2/event_struct.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"
#include "worker.h"

struct om_loop {
        struct om_host host; /* first: a host is a loop */
        struct event *wake;
        int wake_fd;
        bool stopped;
        char *state_dir;

        struct om_turn_end *ends, **ends_tail;

        pthread_mutex_t lock; /* guards `posts` and `asleep` */
        struct om_post *posts, **posts_tail;
        bool asleep;        /* the loop waits or is about to, and nobody has woken it yet */
        atomic_uint wakers; /* threads between deciding to wake the loop and having done so */
};

/* -- posts --------------------------------------------------------------------------------------------------------- */

static void loop_post(struct om_host *host, struct om_post *post) {
        struct om_loop *l = (struct om_loop *) host;
        static const uint64_t one = 1;
        bool wake;

        post->next = NULL;
        pthread_mutex_lock(&l->lock);
        *l->posts_tail = post;
        l->posts_tail = &post->next;
        wake = l->asleep;
        if (wake) {
                l->asleep = false;
                atomic_fetch_add_explicit(&l->wakers, 1, memory_order_relaxed);
        }
        pthread_mutex_unlock(&l->lock);
        if (!wake)
                return;
        while (write(l->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
                ;
        atomic_fetch_sub_explicit(&l->wakers, 1, memory_order_release);
}

/* The edge alone is what is wanted: the posts are taken after the events. */
static void on_wake(evutil_socket_t fd, short what, void *ctx) {}

/* Tells posters that the loop is about to wait, unless something has been posted already: then false. */
static bool fall_asleep(struct om_loop *l) {
        bool may_wait;

        pthread_mutex_lock(&l->lock);
        may_wait = !l->posts;
        l->asleep = may_wait;
        pthread_mutex_unlock(&l->lock);
        return may_wait;
}

static bool run_posts(struct om_loop *l) {
        struct om_post *list, *next;

        pthread_mutex_lock(&l->lock);
        l->asleep = false;
        list = l->posts;
        l->posts = NULL;
        l->posts_tail = &l->posts;
        pthread_mutex_unlock(&l->lock);

        for (struct om_post *p = list; p; p = next) {
                next = p->next;
                p->fn(p);
        }
        return list;
}

/* -- turns --------------------------------------------------------------------------------------------------------- */

void om_loop_at_turn_end(struct om_loop *l, struct om_turn_end *t) {
        if (t->queued)
                return;
        t->queued = true;
        t->next = NULL;
        *l->ends_tail = t;
        l->ends_tail = &t->next;
}

void om_loop_forget_turn_end(struct om_loop *l, struct om_turn_end *t) {
        struct om_turn_end **p = &l->ends;

        while (*p && *p != t)
                p = &(*p)->next;
        if (!*p)
                return;
        *p = t->next;
        if (!*p)
                l->ends_tail = p;
        t->queued = false;
}

static void run_turn_ends(struct om_loop *l) {
        struct om_turn_end *t;

        while ((t = l->ends)) {
                l->ends = t->next;
                if (!l->ends)
                        l->ends_tail = &l->ends;
                t->queued = false;
                t->fn(t); /* may ask again, and may free t */
        }
}

static int run_turn(struct om_loop *l, bool block) {
        /* A turn end that was asked for from outside a turn, say before the first, must not wait for an event. */
        bool wait = block && !l->ends && fall_asleep(l);
        int r = event_base_loop(l->host.base, EVLOOP_ONCE | (wait ? 0 : EVLOOP_NONBLOCK));

        run_posts(l);
        run_turn_ends(l);
        return r < 0 ? -EIO : 0;
}

int om_loop_run_once(struct om_loop *l, bool block) { return run_turn(l, block); }

int om_loop_run(struct om_loop *l) {
        int r = 0;

        while (!l->stopped && r == 0)
                r = run_turn(l, true);
        l->stopped = false;
        return r;
}

void om_loop_stop(struct om_loop *l) { l->stopped = true; }

/* -- making and ending --------------------------------------------------------------------------------------------- */

static void loop_log(struct om_host *host, enum om_level level, const char *text) { om_log(level, "%s", text); }

static const struct om_host_ops host_ops = {
        .abi = OM_BACKEND_ABI,
        .post = loop_post,
        .log = loop_log,
        .worker_new = om_worker_new,
        .worker_submit = om_worker_submit,
        .worker_stop = om_worker_stop,
};

static struct event_base *new_base(void) {
        struct event_config *config = event_config_new();
        struct event_base *base = NULL;

        if (config && event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK) == 0)
                base = event_base_new_with_config(config);
        if (config)
                event_config_free(config);
        return base;
}

/* Sets timers and takes them back: the base keeps the room for them. */
static int reserve_timers(struct event_base *base) {
        struct event timers[OM_LOOP_TIMERS];
        static const struct timeval never = { .tv_sec = 1000000 };
        int n = 0, r = 0;

        for (; n < OM_LOOP_TIMERS && r == 0; n++) {
                event_assign(&timers[n], base, -1, 0, on_wake, NULL);
                r = event_add(&timers[n], &never);
        }
        while (n > 0)
                event_del(&timers[--n]);
        return r;
}

int om_loop_new(struct om_loop **ret, const char *state_dir, struct om_error *e) {
        struct om_loop *l = NULL;
        int r;

        r = om_mkdirs(state_dir, e);
        if (r < 0)
                return r;
        l = calloc(1, sizeof *l);
        if (!l)
                return om_error_set_errno(e, ENOMEM, "the event loop");
        l->wake_fd = -1;
        l->posts_tail = &l->posts;
        l->ends_tail = &l->ends;
        pthread_mutex_init(&l->lock, NULL);
        atomic_init(&l->wakers, 0);
        l->host.ops = &host_ops;

        l->state_dir = strdup(state_dir);
        l->host.state_dir = l->state_dir;
        l->host.base = new_base();
        if (!l->state_dir || !l->host.base || reserve_timers(l->host.base) < 0) {
                r = om_error_set_errno(e, ENOMEM, "the event loop");
                goto failed;
        }
        l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (l->wake_fd < 0) {
                r = om_error_set_errno(e, errno, "eventfd");
                goto failed;
        }
        l->wake = event_new(l->host.base, l->wake_fd, EV_READ | EV_PERSIST | EV_ET, on_wake, l);
        if (!l->wake || event_add(l->wake, NULL) < 0) {
                r = om_error_set_errno(e, ENOMEM, "the event loop");
                goto failed;
        }
        *ret = l;
        return 0;
failed:
        om_loop_free(l);
        return r;
}

void om_loop_free(struct om_loop *l) {
        if (!l)
                return;
        /* What was to be freed a turn later. */
        while (run_posts(l) || l->ends)
                run_turn_ends(l);
        /* A thread whose last post has run already may still be about to wake the loop. */
        while (atomic_load_explicit(&l->wakers, memory_order_acquire) > 0)
                sched_yield();
        if (l->wake)
                event_free(l->wake);
        if (l->wake_fd >= 0)
                close(l->wake_fd);
        if (l->host.base)
                event_base_free(l->host.base);
        pthread_mutex_destroy(&l->lock);
        free(l->state_dir);
        free(l);
}

struct om_host *om_loop_host(struct om_loop *l) {
        return &l->host;
}
struct event_base *om_loop_base(struct om_loop *l) {
        return l->host.base;
}
