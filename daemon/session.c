/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: how they begin and end, and what they share. What they read is in session_read.c, what they write in reply.c.
 *
 * What is always true:
 *   - an idle session has no memory but its struct, and no timer;
 *   - whoever closes a session may be anywhere in the call stack above it: its memory, and the buffer that holds the frame being handled,
 *     stay until the next turn.
 *
 * Called by the loop, by the listener (om_session_new), by core.c (the pool). Loop thread.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>

#include "dispatch.h"
#include "log.h"
#include "session_internal.h"
#include "watch.h"

static struct timeval timeval_of_ms(int64_t ms) { return (struct timeval){ .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 }; }

/* -- spare buffers ------------------------------------------------------------------------------------------------- */

void om_session_spare_put(struct om_session_pool *p, struct om_buf *b) {
        if (b->cap == 0 || b->cap > OM_SPARE_BYTES || b->failed || p->n_spares == OM_SPARES) {
                om_buf_deinit(b);
                return;
        }
        om_buf_clear(b);
        p->spares[p->n_spares++] = *b;
        *b = (struct om_buf) OM_BUF_INIT;
}

void om_session_spare_take(struct om_session_pool *p, struct om_buf *b) {
        if (b->cap == 0 && p->n_spares > 0)
                *b = p->spares[--p->n_spares];
}

/* -- the pool's work of the next turn ------------------------------------------------------------------------------ */

void om_session_want_work(struct om_session_pool *p) {
        if (p->posted)
                return;
        p->posted = true;
        om_host_post(p->core->host, &p->work);
}

static void free_dead(struct om_session_pool *p) {
        struct om_session *s;

        while ((s = p->dead)) {
                DL_DELETE(p->dead, s);
                om_buf_deinit(&s->in);
                om_buf_deinit(&s->out);
                free(s->name);
                free(s);
        }
}

/* -- the end of a session ------------------------------------------------------------------------------------------ */

/* Tells those who look on. */
static void announce(struct om_session *s, enum om_event event) {
        struct om_watch *watch = s->core->watch;
        struct om_buf detail = OM_BUF_INIT;

        if (!watch || !(om_watch_mask(watch) & event))
                return;
        om_buf_printf(&detail, ",\"pid\":%ld,\"uid\":%ld,\"client\":", (long) s->peer.pid, (long) s->peer.uid);
        om_buf_json_span(&detail, om_span_of(om_session_name(s)));
        if (om_buf_ok(&detail))
                om_watch_emit(watch, event, &(struct om_watch_event){ .detail = om_buf_span(&detail) });
        om_buf_deinit(&detail);
}

/* Dispatch and watch let go of it: when it is closed, and before that when it is ending in a hurry, and then at both: a request that was
 * under way may have given it a subscription in between. */
static void detach(struct om_session *s) {
        if (s->core->dispatch)
                om_dispatch_session_closed(s->core->dispatch, s);
        if (s->core->watch)
                om_watch_session_closed(s->core->watch, s);
        if (!s->detached)
                announce(s, OM_EVENT_DISCONNECT);
        s->detached = true;
}

void om_session_close(struct om_session *s, const char *reason) {
        struct om_session_pool *p = s->pool;
        struct om_request *req;

        if (s->state == OM_SESSION_CLOSED)
                return;
        if (reason)
                om_log(OM_LOG_NOTICE, "connection of %s (pid %ld, uid %ld) closed: %s", om_session_name(s), (long) s->peer.pid,
                        (long) s->peer.uid, reason);
        s->state = OM_SESSION_CLOSED;
        event_del(&s->ev_read);
        event_del(&s->ev_write);
        om_session_set_timer(s, OM_TIMER_NONE, 0);
        s->reading = false;
        detach(s);
        while ((req = s->requests)) {
                DL_DELETE(s->requests, req);
                req->session = NULL;
        }
        s->in_flight = 0;
        om_session_uncount(s);
        close(s->fd);
        s->fd = -1;
        om_session_leave_line(s);
        if (s->dirty) {
                s->dirty = false;
                DL_DELETE2(p->dirty, s, dirty_prev, dirty_next);
        }
        DL_DELETE(s->core->sessions, s);
        s->core->n_sessions--;
        DL_APPEND(p->dead, s);
        om_session_want_work(p);
}

bool om_session_peer_gone(const struct om_session *s) {
        struct pollfd pfd = { .fd = s->fd };

        return poll(&pfd, 1, 0) > 0 && (pfd.revents & (POLLHUP | POLLERR)) != 0;
}

void om_session_finish(struct om_session *s) {
        if (s->doomed) {
                om_session_close(s, s->doomed);
                return;
        }
        if (s->state != OM_SESSION_ENDING || s->in_flight > 0 || om_session_unsent(s) > 0)
                return;
        if (!s->broken) {
                om_session_close(s, NULL);
                return;
        }
        /* The client learns by the end of input that this was all. It is not waited for longer than the linger time. */
        if (!s->shut) {
                s->shut = true;
                shutdown(s->fd, SHUT_WR);
        }
}

void om_session_finish_later(struct om_session *s) {
        if (s->state != OM_SESSION_CLOSED)
                om_session_enter_line(s, OM_LINE_FRESH);
}

void om_session_doom(struct om_session *s, const char *reason) {
        if (s->state == OM_SESSION_CLOSED)
                return;
        s->state = OM_SESSION_ENDING;
        s->doomed = reason;
        om_buf_deinit(&s->out);
        s->out_sent = 0;
        om_session_count(s);
        om_session_enter_line(s, OM_LINE_BUSY);
}

static void on_ending_event(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;

        if (om_session_peer_gone(s))
                om_session_close(s, NULL);
}

/* From now on nothing is read. The descriptor is watched for the client's going only, edge-triggered: end of input is a state that would
 * wake the loop for ever. */
static void begin_ending(struct om_session *s, bool hurried) {
        struct event_base *base = om_loop_base(s->core->loop);
        bool writing;

        if (s->state == OM_SESSION_CLOSED)
                return;
        writing = event_pending(&s->ev_write, EV_WRITE, NULL);
        if (s->state == OM_SESSION_ENDING) {
                s->hurried |= hurried;
        } else {
                s->state = OM_SESSION_ENDING;
                s->hurried = hurried;
                om_session_leave_line(s);
                event_del(&s->ev_read);
                event_del(&s->ev_write);
                event_assign(&s->ev_read, base, s->fd, EV_READ | EV_ET | EV_PERSIST, on_ending_event, s);
                event_assign(&s->ev_write, base, s->fd, EV_WRITE | EV_ET | EV_PERSIST, om_session_on_writable, s);
                event_add(&s->ev_read, NULL);
                if (writing)
                        event_add(&s->ev_write, NULL);
                s->reading = false;
        }
        if (s->hurried)
                om_session_set_timer(s, OM_TIMER_LINGER, OM_LINGER_MS);
        else if (s->timer == OM_TIMER_FRAME)
                om_session_set_timer(s, OM_TIMER_NONE, 0);
}

void om_session_on_end_of_input(struct om_session *s) {
        if (om_session_peer_gone(s)) {
                om_session_close(s, NULL);
                return;
        }
        /* Its answers still go out, those that it waits for included, which may take a day; its leases do not wait for that. */
        begin_ending(s, false);
        if (s->core->dispatch)
                om_dispatch_session_mute(s->core->dispatch, s);
        om_session_finish(s);
}

void om_session_on_unframable(struct om_session *s, const struct om_error *e) {
        om_log(OM_LOG_NOTICE, "%s (pid %ld, uid %ld): %s; closing", om_session_name(s), (long) s->peer.pid, (long) s->peer.uid, e->message);
        om_session_put_error(s, OM_SPAN_NONE, e);
        if (s->state == OM_SESSION_CLOSED)
                return;
        s->broken = true;
        begin_ending(s, true);
        detach(s);
}

/* -- time ---------------------------------------------------------------------------------------------------------- */

void om_session_set_timer(struct om_session *s, enum om_session_timer timer, int64_t ms) {
        struct timeval tv = timeval_of_ms(ms);

        if (timer != OM_TIMER_NONE)
                event_add(&s->ev_timer, &tv);
        else if (s->timer != OM_TIMER_NONE)
                event_del(&s->ev_timer);
        s->timer = timer;
}

/* Thousands may come due in the same moment: each is ended when it is its turn. */
static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;
        enum om_session_timer timer = s->timer;

        s->timer = OM_TIMER_NONE;
        if (timer == OM_TIMER_LINGER) {
                om_session_close(s, NULL);
        } else if (timer == OM_TIMER_STALL && s->above) {
                om_session_doom(s, "it does not read what it is sent");
        } else if (timer == OM_TIMER_FRAME) {
                s->overdue = true;
                om_session_enter_line(s, OM_LINE_BUSY);
        }
}

/* -- the next turn ------------------------------------------------------------------------------------------------- */

static void on_work(struct om_post *post) {
        struct om_session_pool *p = (void *) ((char *) post - offsetof(struct om_session_pool, work));

        p->posted = false;
        free_dead(p);
        if (p->freed) {
                free(p);
                return;
        }
        if (p->shedding)
                om_session_shed(p);
        om_session_serve_lines(p);
        if (p->drained && !p->core->sessions) {
                struct om_post *drained = p->drained;

                p->drained = NULL;
                om_host_post(p->core->host, drained);
        }
}

/* -- beginning ----------------------------------------------------------------------------------------------------- */

int om_session_new(struct om_core *core, int fd, struct om_session **ret) {
        struct event_base *base = om_loop_base(core->loop);
        struct ucred cred = { .pid = 0, .uid = (uid_t) -1, .gid = (gid_t) -1 };
        socklen_t cred_len = sizeof cred;
        struct om_session *s;

        if (core->pool->quiet) {
                close(fd);
                return -ECONNABORTED;
        }
        s = calloc(1, sizeof *s);
        if (!s) {
                close(fd);
                return -ENOMEM;
        }
        s->core = core;
        s->pool = core->pool;
        s->fd = fd;
        s->serial = ++s->pool->next_serial;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) == 0)
                s->peer = (struct om_peer){ .pid = cred.pid, .uid = cred.uid, .gid = cred.gid };
        else
                s->peer = (struct om_peer){ .uid = (uid_t) -1, .gid = (gid_t) -1 };
        event_assign(&s->ev_read, base, fd, EV_READ | EV_PERSIST, om_session_on_readable, s);
        event_assign(&s->ev_write, base, fd, EV_WRITE | EV_PERSIST, om_session_on_writable, s);
        event_assign(&s->ev_timer, base, -1, 0, on_timer, s);
        if (event_add(&s->ev_read, NULL) < 0) {
                close(fd);
                free(s);
                return -ENOMEM;
        }
        s->reading = true;
        om_session_limit_socket(s);
        DL_APPEND(core->sessions, s);
        core->n_sessions++;
        s->pool->counters->connections++;
        announce(s, OM_EVENT_CONNECT);
        if (ret)
                *ret = s;
        return 0;
}

/* -- the pool ------------------------------------------------------------------------------------------------------ */

int om_session_pool_new(struct om_core *core, struct om_session_pool **ret) {
        struct om_session_pool *p = calloc(1, sizeof *p);

        if (!p)
                return -ENOMEM;
        p->scratch = malloc(OM_SCRATCH_BYTES);
        if (!p->scratch) {
                free(p);
                return -ENOMEM;
        }
        p->core = core;
        p->counters = core->metrics ? om_metrics_daemon(core->metrics) : &p->own_counters;
        p->flush.fn = om_session_flush_turn;
        p->turn_over.fn = om_session_turn_over;
        p->work.fn = on_work;
        *ret = p;
        return 0;
}

void om_session_pool_tell(struct om_session_pool *p, const char *method, struct om_span params) {
        struct om_session *s, *next;
        struct om_buf *b;

        DL_FOREACH_SAFE (p->core->sessions, s, next) {
                b = om_session_begin(s, method);
                if (!b)
                        continue;
                om_buf_put_span(b, params);
                om_session_end(s);
        }
}

void om_session_pool_quiet(struct om_session_pool *p) { p->quiet = true; }

void om_session_pool_drain(struct om_session_pool *p, struct om_post *done) {
        struct om_session *s, *next;

        p->quiet = true;
        p->drained = done;
        DL_FOREACH_SAFE (p->core->sessions, s, next) {
                begin_ending(s, true);
                detach(s);
                om_session_finish(s);
        }
        om_session_want_work(p);
}

void om_session_pool_free(struct om_session_pool *p) {
        struct om_request *req;

        if (!p)
                return;
        while (p->core->sessions)
                om_session_close(p->core->sessions, NULL);
        free_dead(p);
        om_loop_forget_turn_end(p->core->loop, &p->flush);
        om_loop_forget_turn_end(p->core->loop, &p->turn_over);
        while ((req = p->spare_requests)) {
                p->spare_requests = req->next;
                free(req);
        }
        while (p->n_spares > 0)
                om_buf_deinit(&p->spares[--p->n_spares]);
        free(p->scratch);
        p->scratch = NULL;
        /* The loop may still have its post; it then goes with that. */
        if (p->posted)
                p->freed = true;
        else
                free(p);
}

/* -- what others know of a session --------------------------------------------------------------------------------- */

bool om_session_is_open(const struct om_session *s) { return s->state == OM_SESSION_OPEN; }
uint64_t om_session_serial(const struct om_session *s) { return s->serial; }
void **om_session_dispatch_slot(struct om_session *s) { return &s->dispatch; }
void **om_session_watch_slot(struct om_session *s) { return &s->watch; }

const char *om_session_name(const struct om_session *s) {
        static char pid[32]; /* loop thread: good until the next call */

        if (s->name)
                return s->name;
        snprintf(pid, sizeof pid, "pid %ld", (long) s->peer.pid);
        return pid;
}

int om_session_set_name(struct om_session *s, struct om_span name) {
        char *copy = strndup(name.p, name.len);

        if (!copy)
                return -ENOMEM;
        free(s->name);
        s->name = copy;
        return 0;
}
