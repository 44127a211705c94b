/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: their life, and what they read. What they write is in reply.c.
 *
 * Reading. One readv(2) a turn takes what the socket has into the pool's scratch buffer, where whole frames are handled in place; only the
 * beginning of a frame that is not whole yet is copied, into a buffer of the session's own, and the next readv() puts the rest of that
 * frame right behind it, so that no byte is moved twice and a frame that comes byte by byte costs no more than its bytes.
 *
 * What is always true:
 *   - an idle session has no memory but its struct, and no timer;
 *   - what `in` grows to is bounded by twice what the client really sent, whatever length its frames claim;
 *   - one session handles at most OM_FRAMES_PER_TURN frames and one read in a turn; then the others have theirs;
 *   - a session whose input is held back (too many requests unanswered, too much output unsent) is not read; frames that were read already
 *     wait in `in`;
 *   - whoever closes a session may be anywhere in the call stack above it: its memory, and the buffer that holds the frame being handled,
 *     stay until the next turn.
 *
 * Called by the loop, by the listener (om_session_new), by core.c (the pool). Loop thread.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utlist.h>

#include "dispatch.h"
#include "log.h"
#include "session_internal.h"
#include "watch.h"

#include "../proto/frame.h"

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

static void want_work(struct om_session_pool *p) {
        if (p->posted)
                return;
        p->posted = true;
        om_host_post(p->core->host, &p->work);
}

static void set_more(struct om_session *s) {
        if (s->more)
                return;
        s->more = true;
        s->pool->n_more++;
        DL_APPEND2(s->pool->more, s, more_prev, more_next);
        want_work(s->pool);
}

static void unset_more(struct om_session *s) {
        if (!s->more)
                return;
        s->more = false;
        s->pool->n_more--;
        DL_DELETE2(s->pool->more, s, more_prev, more_next);
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
        event_del(&s->ev_timer);
        s->reading = false;
        detach(s);
        while ((req = s->requests)) {
                DL_DELETE(s->requests, req);
                req->session = NULL;
        }
        s->in_flight = 0;
        close(s->fd);
        s->fd = -1;
        unset_more(s);
        if (s->dirty) {
                s->dirty = false;
                DL_DELETE2(p->dirty, s, dirty_prev, dirty_next);
        }
        DL_DELETE(s->core->sessions, s);
        s->core->n_sessions--;
        DL_APPEND(p->dead, s);
        want_work(p);
}

/* Whether the client has closed both directions: nobody will read an answer. */
static bool peer_gone(const struct om_session *s) {
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
                set_more(s);
}

void om_session_doom(struct om_session *s, const char *reason) {
        if (s->state == OM_SESSION_CLOSED)
                return;
        s->state = OM_SESSION_ENDING;
        s->doomed = reason;
        om_buf_deinit(&s->out);
        s->out_sent = 0;
        set_more(s);
}

static void on_ending_event(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;

        if (peer_gone(s))
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
                unset_more(s);
                event_del(&s->ev_read);
                event_del(&s->ev_write);
                event_assign(&s->ev_read, base, s->fd, EV_READ | EV_ET | EV_PERSIST, on_ending_event, s);
                event_assign(&s->ev_write, base, s->fd, EV_WRITE | EV_ET | EV_PERSIST, om_session_on_writable, s);
                event_add(&s->ev_read, NULL);
                if (writing)
                        event_add(&s->ev_write, NULL);
                s->reading = false;
        }
        if (s->hurried) {
                struct timeval tv = timeval_of_ms(OM_LINGER_MS);

                event_add(&s->ev_timer, &tv);
        }
}

static void on_end_of_input(struct om_session *s) {
        if (peer_gone(s)) {
                om_session_close(s, NULL);
                return;
        }
        /* Its answers still go out, those that it waits for included, which may take a day; its leases do not wait for that. */
        begin_ending(s, false);
        if (s->core->dispatch)
                om_dispatch_session_mute(s->core->dispatch, s);
        om_session_finish(s);
}

static void on_unframable(struct om_session *s, const struct om_error *e) {
        om_log(OM_LOG_NOTICE, "%s (pid %ld, uid %ld): %s; closing", om_session_name(s), (long) s->peer.pid, (long) s->peer.uid, e->message);
        om_session_put_error(s, OM_SPAN_NONE, e);
        if (s->state == OM_SESSION_CLOSED)
                return;
        s->broken = true;
        begin_ending(s, true);
        detach(s);
}

/* The timer runs while output is stuck above its limit, and while a session is ending in a hurry. */
static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;

        if (s->hurried)
                om_session_close(s, NULL);
        else if (s->above)
                om_session_close(s, "it does not read what it is sent");
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

bool om_session_held(const struct om_session *s) { return s->in_flight >= OM_IN_FLIGHT || s->above || s->pool->quiet; }

static void handle_body(struct om_session *s, struct om_span body) {
        struct om_daemon_metrics *counters = s->pool->counters;
        struct om_error e = OM_ERROR_INIT;
        struct om_request *req;
        const char *near;
        struct om_rpc rpc;
        int r;

        counters->frames_in++;
        r = om_rpc_parse(body, &rpc, &e);
        if (r == 0 && (rpc.type == OM_RPC_RESULT || rpc.type == OM_RPC_ERROR))
                r = om_error_set_code(
                        &e, OM_CODE_REQUEST, OM_INVALID, "a reply; a client sends requests and notifications, with a \"method\"");
        if (r < 0) {
                /* Only with wrong params is it known that it was a notification; that is never answered. */
                if (e.code == OM_CODE_PARAMS && !rpc.id.p)
                        counters->errors++;
                else
                        om_session_put_error(s, rpc.id, &e);
                return;
        }

        counters->requests++;
        req = om_request_new(s, rpc.id, rpc.type == OM_RPC_NOTIFICATION);
        if (!req) {
                om_session_close(s, "out of memory");
                return;
        }
        req->method = om_method_find(rpc.method);
        if (req->method) {
                req->method->fn(req, rpc.params.p ? rpc.params : OM_SPAN("{}"));
                return;
        }
        near = om_method_nearest(rpc.method);
        om_error_set_code(&e, OM_CODE_METHOD, OM_UNSUPPORTED, "no method \"%.*s\"%s%s%s", rpc.method.len > 100 ? 100 : (int) rpc.method.len,
                rpc.method.p, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        om_request_error(req, &e);
}

/* Handles the whole frames at `data`, as many as may be now; returns how many bytes they took. */
static size_t handle_frames(struct om_session *s, const char *data, size_t len, unsigned *budget) {
        size_t max = (size_t) s->core->settings->max_frame_bytes, at = 0;
        struct om_error e = OM_ERROR_INIT;
        struct om_span body;
        int r;

        while (at < len && s->state == OM_SESSION_OPEN && *budget > 0 && !om_session_held(s)) {
                r = om_frame_peek(data + at, len - at, max, &body, &e);
                if (r == 0)
                        break;
                if (r < 0) {
                        on_unframable(s, &e);
                        break;
                }
                --*budget;
                at += OM_FRAME_HEADER + body.len;
                handle_body(s, body);
        }
        return at;
}

/* How many bytes the frame begun in `in` still lacks (its header's first, before that is whole). 0: it is whole, or cannot be framed. */
static size_t missing(const struct om_session *s) {
        struct om_span body;

        if (s->in.len < OM_FRAME_HEADER)
                return OM_FRAME_HEADER - s->in.len;
        if (om_frame_peek(s->in.data, s->in.len, (size_t) s->core->settings->max_frame_bytes, &body, NULL) != 0)
                return 0;
        return OM_FRAME_HEADER + body.len - s->in.len;
}

/* Works off what waits in `in`. True when there is nothing left, or only the beginning of a frame. */
static bool work_off(struct om_session *s, unsigned *budget) {
        size_t done = handle_frames(s, s->in.data, s->in.len, budget);

        if (s->state != OM_SESSION_OPEN)
                return false;
        om_buf_consume(&s->in, done);
        if (s->in.len == 0)
                om_session_spare_put(s->pool, &s->in);
        if (s->in.len == 0 || missing(s) > 0)
                return true;
        /* Whole frames are left: the turn's share is used up, or the session is held back (then om_session_resume() goes on). */
        if (!om_session_held(s))
                set_more(s);
        return false;
}

static bool keep(struct om_session *s, const char *data, size_t n) {
        om_session_spare_take(s->pool, &s->in);
        om_buf_put(&s->in, data, n);
        if (om_buf_ok(&s->in))
                return true;
        om_session_close(s, "out of memory");
        return false;
}

/* n bytes have come into the scratch buffer; `in` may hold the beginning of a frame. */
static void take_in(struct om_session *s, const char *data, size_t n, unsigned *budget) {
        size_t part;

        while (s->in.len > 0) {
                part = missing(s);
                if (part > n)
                        part = n;
                if (part > 0) {
                        if (!keep(s, data, part))
                                return;
                        data += part;
                        n -= part;
                }
                if (missing(s) == 0 && !work_off(s, budget)) {
                        if (s->state == OM_SESSION_OPEN && n > 0)
                                keep(s, data, n);
                        return;
                }
                if (n == 0)
                        return;
        }

        part = handle_frames(s, data, n, budget);
        if (s->state != OM_SESSION_OPEN || part == n)
                return;
        if (keep(s, data + part, n - part) && missing(s) == 0 && !om_session_held(s))
                set_more(s);
}

static void read_once(struct om_session *s, unsigned *budget) {
        struct iovec iov[2] = { { NULL, 0 }, { s->pool->scratch, OM_SCRATCH_BYTES } };
        ssize_t n;

        if (s->in.len > 0) {
                /* The rest of the frame begun goes right behind its beginning, as far as its buffer may grow by now. */
                size_t step = s->in.len > OM_IN_STEP_BYTES ? s->in.len : OM_IN_STEP_BYTES;

                iov[0].iov_len = missing(s);
                if (iov[0].iov_len > step) {
                        iov[0].iov_len = step;
                        iov[1].iov_len = 0;
                }
                iov[0].iov_base = om_buf_reserve(&s->in, iov[0].iov_len);
                if (!iov[0].iov_base) {
                        om_session_close(s, "out of memory");
                        return;
                }
        }
        do
                n = readv(s->fd, iov, 2);
        while (n < 0 && errno == EINTR);
        if (n == 0) {
                on_end_of_input(s);
                return;
        }
        if (n < 0) {
                if (errno != EAGAIN && errno != EWOULDBLOCK)
                        om_session_close(s, NULL); /* reset: as good as closed */
                return;
        }
        s->pool->counters->bytes_in += (uint64_t) n;
        if (s->in.len > 0) {
                size_t direct = (size_t) n < iov[0].iov_len ? (size_t) n : iov[0].iov_len;

                s->in.len += direct;
                n -= (ssize_t) direct;
        }
        take_in(s, s->pool->scratch, (size_t) n, budget);
}

static void on_readable(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;
        unsigned budget = OM_FRAMES_PER_TURN;

        if (s->more || s->state != OM_SESSION_OPEN)
                return; /* its share of this turn comes with the pool's work */
        if (om_session_held(s)) {
                event_del(&s->ev_read);
                s->reading = false;
                return;
        }
        read_once(s, &budget);
}

void om_session_resume(struct om_session *s) {
        if (s->state != OM_SESSION_OPEN || om_session_held(s))
                return;
        if (!s->reading && event_add(&s->ev_read, NULL) == 0)
                s->reading = true;
        if (s->in.len > 0 && missing(s) == 0)
                set_more(s);
}

static void on_work(struct om_post *post) {
        struct om_session_pool *p = (void *) ((char *) post - offsetof(struct om_session_pool, work));
        struct om_session *s;

        p->posted = false;
        free_dead(p);
        if (p->freed) {
                free(p);
                return;
        }
        /* Each that is on the list now; those with still more are appended and wait for the next turn. */
        for (unsigned n = p->n_more; n > 0 && (s = p->more); n--) {
                unsigned budget = OM_FRAMES_PER_TURN;

                unset_more(s);
                if (s->state == OM_SESSION_ENDING)
                        om_session_finish(s);
                else if (!om_session_held(s))
                        work_off(s, &budget);
        }
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
        event_assign(&s->ev_read, base, fd, EV_READ | EV_PERSIST, on_readable, s);
        event_assign(&s->ev_write, base, fd, EV_WRITE | EV_PERSIST, om_session_on_writable, s);
        event_assign(&s->ev_timer, base, -1, 0, on_timer, s);
        if (event_add(&s->ev_read, NULL) < 0) {
                close(fd);
                free(s);
                return -ENOMEM;
        }
        s->reading = true;
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
        want_work(p);
}

void om_session_pool_free(struct om_session_pool *p) {
        struct om_request *req;

        if (!p)
                return;
        while (p->core->sessions)
                om_session_close(p->core->sessions, NULL);
        free_dead(p);
        om_loop_forget_turn_end(p->core->loop, &p->flush);
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
struct om_core *om_session_core(const struct om_session *s) {
        return s->core;
}
uint64_t om_session_serial(const struct om_session *s) { return s->serial; }
const struct om_peer *om_session_peer(const struct om_session *s) { return &s->peer; }
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
