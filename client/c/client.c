/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client, and its turns.
 *
 * One turn is: what waits goes out, what has arrived is read, what is due is done; and, in the outermost call only, the user's functions
 * are called, and what they made goes out. A blocking call takes turns until its answer is there; omni_process() takes one that does not
 * wait. Whoever is called by the user's functions (depth > 0) serves the socket but calls nobody: see internal.h.
 *
 * omni_stop() and omni_wakeup() touch an atomic and an eventfd, nothing else: that is why any thread and any signal handler may call them.
 */
#include "internal.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

int64_t omc_now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int omc_fail(omni_client *c, int status, const char *format, ...) {
        char text[sizeof(c->error.message)];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args); /* first: the arguments may point into the old text */
        va_end(args);
        memcpy(c->error.message, text, sizeof(text));
        c->error.kind = om_kind_of_errno(status);
        return status;
}

int omc_fail_error(omni_client *c, int status, const struct om_error *e) {
        if (e != &c->error)
                c->error = *e;
        return status;
}

void omc_copy_options(void *ours, size_t size, const void *theirs) {
        size_t given = 0;
        if (theirs)
                memcpy(&given, theirs, sizeof(given)); /* each options struct begins with its size */
        if (given == 0)
                return;
        memcpy(ours, theirs, given < size ? given : size);
        memcpy(ours, &size, sizeof(size));
}

/* -- making and freeing -------------------------------------------------------------------------------------------- */

static int take_options(omni_client *c, const omni_client_options *options) {
        omni_client_options o = OMNI_CLIENT_OPTIONS_INIT;
        if (options && options->size == 0)
                return -EINVAL;
        omc_copy_options(&o, sizeof(o), options);
        if (o.reconnect_min_ms < 1)
                o.reconnect_min_ms = 1;
        if (o.reconnect_max_ms < o.reconnect_min_ms)
                o.reconnect_max_ms = o.reconnect_min_ms;
        if (o.pending_max == 0 || o.buffer_max == 0 || o.connect_timeout_ms < -1 || o.call_timeout_ms < -1)
                return -EINVAL;
        struct om_error e;
        const char *name = o.client_name;
        if (name && om_name_check(om_span_of(name), "client_name", &e) < 0)
                return -EINVAL;
        if (!name) {
                name = program_invocation_short_name;
                if (om_name_check(om_span_of(name), "client_name", &e) < 0)
                        name = "libomniclient";
        }
        c->options = o;
        c->options.client_name = strdup(name);
        c->options.socket_path = o.socket_path ? strdup(o.socket_path) : NULL;
        return c->options.client_name && (!o.socket_path || c->options.socket_path) ? 0 : -ENOMEM;
}

static int open_descriptors(omni_client *c) {
        c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (c->epoll_fd < 0 || c->wake_fd < 0)
                return -errno;
        struct epoll_event event = { .events = EPOLLIN, .data.fd = c->wake_fd };
        return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->wake_fd, &event) < 0 ? -errno : 0;
}

static void free_all(omni_client *c);

int omni_new(const omni_client_options *options, omni_client **ret) {
        omni_client *c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        c->pid = getpid();
        c->epoll_fd = c->wake_fd = c->socket_fd = -1;
        c->frame_max = OM_FRAME_MAX_DEFAULT;
        c->batch_max = OMC_BATCH_BEFORE_HELLO;
        c->prefetch_max = 1000;
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        c->jitter = (uint64_t) t.tv_nsec ^ (uint64_t) c->pid << 32;
        omc_list_init(&c->calls);
        omc_list_init(&c->later);
        omc_list_init(&c->events);
        omc_list_init(&c->ready);
        omc_list_init(&c->spare);
        omc_list_init(&c->agents);
        c->unsent = &c->calls;
        int r = take_options(c, options);
        if (r == 0)
                r = open_descriptors(c);
        if (r < 0) {
                free_all(c);
                return r;
        }
        *ret = c;
        return 0;
}

static void free_calls(omni_client *c, struct omc_link *list) {
        while (!omc_list_empty(list)) {
                struct omc_call *call = omc_of(struct omc_call, link, list->next);
                omc_call_take(c, call);
                omc_unlink(&call->link);
                om_buf_deinit(&call->frame);
                free(call->entries);
                free(call);
        }
}

/* Frees without telling anybody. Closing descriptors is all that happens outside the process's own memory: safe in a fork's child. */
static void free_all(omni_client *c) {
        if (c->open_publish)
                omc_append(&c->spare, &c->open_publish->link);
        if (c->open_ack)
                omc_append(&c->spare, &c->open_ack->link);
        while (!omc_list_empty(&c->agents))
                omc_agent_free(omc_of(omni_agent, link, c->agents.next));
        free_calls(c, &c->calls);
        free_calls(c, &c->later);
        free_calls(c, &c->events);
        free_calls(c, &c->spare);
        om_buf_deinit(&c->in);
        if (c->socket_fd >= 0)
                close(c->socket_fd);
        if (c->epoll_fd >= 0)
                close(c->epoll_fd);
        if (c->wake_fd >= 0)
                close(c->wake_fd);
        free((char *) c->options.client_name);
        free((char *) c->options.socket_path);
        free(c);
}

static int run_events(omni_client *c) {
        int done = 0;
        while (!omc_list_empty(&c->events)) {
                struct omc_call *call = omc_of(struct omc_call, link, c->events.next);
                omc_call_take(c, call);
                omc_event_run(c, call);
                done++;
        }
        return done;
}

void omni_free(omni_client *c) {
        if (!c)
                return;
        if (c->depth) {
                omc_fail(c, -EBUSY, "omni_free() is not allowed from a handler: use omni_stop(), and free after omni_run()");
                return;
        }
        omc_default_forget(c);
        if (c->pid == getpid()) {
                omc_close_batches(c);
                omc_send(c); /* acks made in the last turn */
                c->on_connection = NULL;
                omc_disconnect(c, -ECANCELED, "the client was freed");
                c->depth++; /* what callbacks ask for now is refused or never sent, and must not start a turn */
                run_events(c);
                c->depth--;
        }
        free_all(c);
}

const char *omni_strerror(omni_client *c) { return c ? c->error.message : "out of memory"; }
const char *omni_version(void) { return OM_VERSION; }

void omni_on_connection(omni_client *c, omni_connection_fn *fn, void *user) {
        c->on_connection = fn;
        c->on_connection_user = user;
}

void omni_on_notification(omni_client *c, omni_notification_fn *fn, void *user) {
        c->on_notification = fn;
        c->on_notification_user = user;
}

/* -- a turn -------------------------------------------------------------------------------------------------------- */

void omni_wakeup(omni_client *c) {
        int saved = errno;
        uint64_t one = 1;
        ssize_t n = write(c->wake_fd, &one, sizeof(one)); /* full: it is readable already */
        (void) n;
        errno = saved;
}

void omni_stop(omni_client *c) {
        atomic_store(&c->stop, 1);
        omni_wakeup(c);
}

static int64_t sooner(int64_t a, int64_t b) { return a < 0 ? b : b < 0 || a < b ? a : b; }

/* When something is due: of omc_now_ms(), -1 for never. */
static int64_t next_due(omni_client *c) {
        int64_t due = -1;
        if (c->state == OMC_AWAY && c->wanted)
                due = c->retry_at_ms;
        if (c->state != OMC_UP) /* do_due() does nothing of the rest either: a time that has passed would wake us without end */
                return due;
        for (struct omc_link *l = c->later.next; l != &c->later; l = l->next)
                due = sooner(due, omc_of(struct omc_call, link, l)->due_ms);
        for (struct omc_link *l = c->agents.next; l != &c->agents; l = l->next) {
                const omni_agent *a = omc_of(omni_agent, link, l);
                if (a->extend_at_ms)
                        due = sooner(due, a->extend_at_ms);
                else if (a->extend_every_ms && a->held && a->active)
                        due = sooner(due, 0);
        }
        return due;
}

/* Something to do without waiting for anything. */
static bool work_waits(const omni_client *c) {
        if (c->depth == 0 && (!omc_list_empty(&c->events) || (!omc_list_empty(&c->ready) && !c->winding_up)))
                return true;
        if (c->open_publish || c->open_ack)
                return c->state == OMC_UP || c->state == OMC_IDLE;
        if (c->state == OMC_IDLE)
                return c->wanted;
        return c->state == OMC_UP && c->unsent != &c->calls && !c->watch_out;
}

/* Waits for the descriptors at most timeout_ms, and takes the wake-up. */
static void wait_for_io(omni_client *c, int64_t timeout_ms) {
        struct epoll_event events[2];
        int n = epoll_wait(c->epoll_fd, events, 2, timeout_ms < 0 ? -1 : timeout_ms > 60000 ? 60000 : (int) timeout_ms);
        for (int i = 0; i < n; i++) {
                if (events[i].data.fd != c->wake_fd)
                        continue;
                uint64_t count;
                ssize_t r = read(c->wake_fd, &count, sizeof(count));
                c->woken = true;
                (void) r;
        }
}

static void do_due(omni_client *c, int64_t now) {
        omc_connect_if_due(c, now);
        if (c->state != OMC_UP)
                return;
        for (struct omc_link *l = c->later.next, *next; l != &c->later; l = next) {
                next = l->next;
                struct omc_call *call = omc_of(struct omc_call, link, l);
                if (call->due_ms <= now)
                        omc_call_again(c, call);
        }
        omc_extend_due(c, now);
}

/* The user's functions, for the outermost call, in the order in which things came as far as it shows: what was answered before the next
 * task is handled. Handlers stop after OMC_TURN_MS, so that what they made goes out meanwhile. */
static int call_users(omni_client *c, int64_t now) {
        if (c->depth)
                return 0;
        int done = run_events(c);
        while (!omc_list_empty(&c->ready) && !c->winding_up) {
                omni_task *t = omc_of(omni_task, ready, c->ready.next);
                omni_agent *a = t->agent;
                omc_finish_frame(c);
                omc_unlink(&t->ready);
                c->depth++;
                a->handler(a, t, a->user); /* after this, neither may be touched */
                c->depth--;
                done += 1 + run_events(c);
                if (omc_now_ms() - now >= OMC_TURN_MS || atomic_load(&c->stop))
                        break;
        }
        return done;
}

/* One turn, waiting at most timeout_ms (-1: until something happens). How many of the user's functions were called, or negative. */
static int turn(omni_client *c, int64_t timeout_ms) {
        int64_t now = omc_now_ms();
        omc_close_batches(c);
        do_due(c, now);
        omc_send(c);
        int64_t due = next_due(c);
        if (due >= 0)
                timeout_ms = sooner(timeout_ms, due > now ? due - now : 0);
        if (work_waits(c) || c->broken)
                timeout_ms = 0;
        wait_for_io(c, timeout_ms);
        int r = omc_receive(c);
        if (r < 0)
                return omc_fail(c, r, "%s", c->away.message);
        now = omc_now_ms();
        do_due(c, now);
        int done = call_users(c, now);
        omc_close_batches(c);
        omc_send(c);
        return done;
}

/* -- waiting ------------------------------------------------------------------------------------------------------- */

int64_t omc_deadline(const omni_client *c) { return c->options.call_timeout_ms < 0 ? -1 : omc_now_ms() + c->options.call_timeout_ms; }

/* Whether omni_stop() ends this call; the outermost one takes it. */
static bool stopped(omni_client *c) {
        if (!atomic_load(&c->stop))
                return false;
        if (c->depth == 0)
                atomic_store(&c->stop, 0);
        return true;
}

/* Why to go on without a connection is in vain; 0 when it is not. */
static int hopeless(const omni_client *c) {
        bool for_good = c->away_status == -EPROTO || c->away_status == -EINVAL || (c->away_status == -EACCES && !c->ever_up);
        return c->state == OMC_AWAY && for_good ? c->away_status : 0;
}

static bool has_acks(const omni_client *c) {
        for (const struct omc_link *l = c->calls.next; l != &c->calls; l = l->next) {
                const struct omc_call *call = omc_of(struct omc_call, link, l);
                if (call->type == OMC_ACK || call->type == OMC_FAIL)
                        return true;
        }
        return c->open_ack;
}

static bool satisfied(const omni_client *c, const struct omc_waiter *w) {
        switch (w->want) {
        case OMC_ANSWERS:
                return w->left <= w->enough;
        case OMC_CONNECTED:
                return c->state == OMC_UP;
        case OMC_QUIET:
                return omc_list_empty(&c->calls) && omc_list_empty(&c->later) && !c->open_publish && !c->open_ack;
        case OMC_SETTLED:
                return c->state != OMC_UP || !has_acks(c);
        }
        return true;
}

int omc_wait(omni_client *c, struct omc_waiter *w, int64_t deadline_ms, int64_t away_ms) {
        int64_t away_since = omc_now_ms();
        uint64_t attempts = c->attempts;
        bool last_try = false;
        c->wanted = true;
        if (c->state == OMC_AWAY)
                c->retry_at_ms = away_since; /* somebody needs it now */
        while (!satisfied(c, w)) {
                int64_t now = omc_now_ms(), timeout = deadline_ms < 0 ? -1 : deadline_ms - now;
                if (stopped(c))
                        return omc_fail(c, -ECANCELED, "stopped by omni_stop()");
                if (deadline_ms >= 0 && timeout <= 0 && c->state == OMC_AWAY && c->attempts > attempts)
                        return omc_fail(c, c->away_status, "%s", c->away.message);
                if (deadline_ms >= 0 && timeout <= 0)
                        return omc_fail(c, -ETIMEDOUT, "no answer in time");
                if (c->state == OMC_UP) {
                        away_since = -1;
                        last_try = false;
                } else if (c->attempts > attempts) {
                        if (away_since < 0)
                                away_since = now;
                        int64_t left = away_ms < 0 ? INT64_MAX : away_since + away_ms - now;
                        bool over = left <= 0 && c->state == OMC_AWAY;
                        if (hopeless(c) || (over && last_try))
                                return omc_fail(c, c->away_status, "%s", c->away.message);
                        if (over) { /* the backoff may have slept over its coming */
                                last_try = true;
                                c->retry_at_ms = now;
                        } else if (left > 0 && left < INT64_MAX) {
                                timeout = sooner(timeout, left);
                        }
                }
                int r = turn(c, timeout);
                if (r < 0 && !satisfied(c, w))
                        return r;
        }
        return 0;
}

int omni_connect(omni_client *c, int64_t timeout_ms) {
        struct omc_waiter w = { .want = OMC_CONNECTED };
        int64_t now = omc_now_ms();
        if (timeout_ms < 0)
                return omc_wait(c, &w, -1, -1);
        if (timeout_ms > 0)
                return omc_wait(c, &w, now + timeout_ms, -1);
        return omc_wait(c, &w, omc_deadline(c), c->options.connect_timeout_ms);
}

int omni_flush(omni_client *c, int64_t timeout_ms) {
        struct omc_waiter w = { .want = OMC_QUIET };
        if (satisfied(c, &w))
                return 0;
        int r = omc_wait(c, &w, timeout_ms < 0 ? -1 : omc_now_ms() + timeout_ms, -1);
        return r < 0 && c->state == OMC_AWAY && r == c->away_status && !hopeless(c) ? -ETIMEDOUT : r;
}

/* -- serving ------------------------------------------------------------------------------------------------------- */

static int not_from_handler(omni_client *c, const char *function) {
        return c->depth ? omc_fail(c, -EBUSY, "%s is not allowed from a handler or callback", function) : 0;
}

/* After omni_stop(): what the handlers have settled is told to the daemon, and its answer awaited. */
static void wind_up(omni_client *c) {
        struct omc_waiter w = { .want = OMC_SETTLED };
        c->winding_up = true;
        omc_wait(c, &w, omc_deadline(c), 0);
        c->winding_up = false;
}

int omni_run(omni_client *c) {
        int r = not_from_handler(c, "omni_run()");
        if (r < 0)
                return r;
        c->wanted = true;
        while (!stopped(c)) {
                r = hopeless(c);
                if (r < 0)
                        return omc_fail(c, r, "%s", c->away.message);
                r = omc_agents_over(c);
                if (r >= 0)
                        r = turn(c, -1);
                if (r < 0)
                        return r;
        }
        wind_up(c);
        return 0;
}

int omni_run_once(omni_client *c, int64_t timeout_ms) {
        int r = not_from_handler(c, "omni_run_once()");
        if (r < 0)
                return r;
        int64_t deadline = timeout_ms < 0 ? -1 : omc_now_ms() + timeout_ms;
        c->wanted = true;
        for (;;) {
                if (stopped(c))
                        return omc_fail(c, -ECANCELED, "stopped by omni_stop()");
                r = omc_agents_over(c);
                if (r < 0)
                        return r;
                int64_t left = deadline < 0 ? -1 : deadline - omc_now_ms();
                r = turn(c, deadline < 0 ? -1 : left > 0 ? left : 0);
                bool woken = c->woken;
                c->woken = false;
                if (r < 0)
                        return r;
                if (r > 0)
                        return 1;
                if (atomic_load(&c->stop))
                        continue;
                if (woken || (deadline >= 0 && omc_now_ms() >= deadline))
                        return 0;
        }
}

int omni_process(omni_client *c) {
        int r = not_from_handler(c, "omni_process()");
        if (r < 0)
                return r;
        r = turn(c, 0);
        c->woken = false;
        return r;
}

int omni_fd(omni_client *c) { return c->epoll_fd; }
short omni_events(omni_client *c) { return POLLIN; }

int64_t omni_timeout_ms(omni_client *c) {
        if (work_waits(c))
                return 0;
        int64_t due = next_due(c), now = omc_now_ms();
        return due < 0 ? -1 : due > now ? due - now : 0;
}
