/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session reads: bytes, frames, requests.
 *
 * A readv(2) takes what the socket has, or the session's share, into the pool's scratch buffer, where whole frames are handled in place;
 * only the beginning of a frame that is not whole yet is copied, into a buffer of the session's own, and the next readv() puts the rest of
 * that frame right behind it, so that no byte is moved twice and a frame that comes byte by byte costs no more than its bytes.
 *
 * What is always true:
 *   - what `in` grows to is bounded by twice what the client really sent, and a read, whatever length its frames claim;
 *   - one session handles a bounded number of frames and makes one read at a time; then the others have theirs (session_turn.c);
 *   - a session whose input is held back (too many requests unanswered, too much output unsent) is not read; frames that were read already
 *     wait in `in`. Its going is watched for all the same: what waits for a day must not keep a client that has gone;
 *   - a frame that has begun is whole after slow_client_ms, or the session ends; time in which the daemon does not read does not count;
 *   - a method may close the session that it was called for: the buffer that holds its frame stays until the next turn.
 *
 * Called by the loop and by session.c. Loop thread.
 */
#include <errno.h>
#include <sys/uio.h>

#include "../proto/frame.h"
#include "session_internal.h"

/* One that has been halted goes on when it is clearly below the limit. */
static bool has_many_requests(const struct om_session *s) {
        size_t limit;

        if (s->in_flight >= OM_IN_FLIGHT)
                return true;
        if (s->request_bytes <= OM_LEAST_REQUESTS * (size_t) OM_REQUEST_BYTES / 2)
                return false;
        limit = om_session_request_limit(s->pool);
        return s->request_bytes > (s->halted ? limit / 2 : limit);
}

bool om_session_held(const struct om_session *s) { return s->above || s->pool->quiet || has_many_requests(s); }

static bool halt(struct om_session *s) {
        s->halted = om_session_held(s);
        return s->halted;
}

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
        req = om_request_new(s, rpc.id, rpc.type == OM_RPC_NOTIFICATION, body.len);
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

        while (at < len && s->state == OM_SESSION_OPEN && *budget > 0 && !halt(s)) {
                r = om_frame_peek(data + at, len - at, max, &body, &e);
                if (r == 0)
                        break;
                if (r < 0) {
                        om_session_on_unframable(s, &e);
                        break;
                }
                --*budget;
                s->n_frames++;
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

/* Whether `in` has only the beginning of a frame. */
static bool mid_frame(const struct om_session *s) { return s->in.len > 0 && missing(s) > 0; }

/* Handles the frames that wait in `in`, at most *budget. True when there is nothing left, or only the beginning of a frame. */
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
        s->unread = true;
        if (!om_session_held(s))
                om_session_enter_line(s, OM_LINE_BUSY);
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
        if (!keep(s, data + part, n - part) || missing(s) > 0)
                return;
        s->unread = true;
        if (!om_session_held(s))
                om_session_enter_line(s, OM_LINE_BUSY);
}

/* The rest of the frame begun goes right behind its beginning; what it takes at most doubles by one read, so that a length alone costs
 * nothing. The number of bytes; < 0: no memory. */
static ssize_t make_room(struct om_session *s, size_t share, struct iovec *ret) {
        size_t want = missing(s), step = s->in.len > OM_LEAST_READ_BYTES ? s->in.len : OM_LEAST_READ_BYTES;

        if (want > step)
                want = step;
        if (want > share)
                want = share;
        *ret = (struct iovec){ om_buf_fit(&s->in, want), want };
        return ret->iov_base ? (ssize_t) want : -ENOMEM;
}

static void read_once(struct om_session *s, unsigned *budget) {
        size_t share = om_session_turn_read_bytes(s->pool), asked = share, direct = 0;
        struct iovec iov[2] = { { NULL, 0 }, { s->pool->scratch, share } };
        ssize_t n;

        s->unread = false;
        if (s->in.len > 0) {
                n = make_room(s, share, &iov[0]);
                if (n < 0) {
                        om_session_close(s, "out of memory");
                        return;
                }
                direct = (size_t) n;
                iov[1].iov_len = direct < missing(s) ? 0 : share - direct;
                asked = direct + iov[1].iov_len;
        }
        do
                n = readv(s->fd, iov, 2);
        while (n < 0 && errno == EINTR);
        if (n == 0) {
                om_session_on_end_of_input(s);
                return;
        }
        if (n < 0) {
                if (errno != EAGAIN && errno != EWOULDBLOCK)
                        om_session_close(s, NULL); /* reset: as good as closed */
                return;
        }
        s->pool->counters->bytes_in += (uint64_t) n;
        s->unread = (size_t) n == asked;
        if (s->in.len > 0) {
                if ((size_t) n < direct)
                        direct = (size_t) n;
                s->in.len += direct;
                n -= (ssize_t) direct;
        }
        take_in(s, s->pool->scratch, (size_t) n, budget);
}

/* -- turns --------------------------------------------------------------------------------------------------------- */

void om_session_time_frame(struct om_session *s) {
        if (s->state != OM_SESSION_OPEN || s->timer > OM_TIMER_FRAME)
                return;
        if (!mid_frame(s)) {
                om_session_set_timer(s, OM_TIMER_NONE, 0);
        } else if (s->timer == OM_TIMER_NONE || s->timed_frame != s->n_frames) {
                s->timed_frame = s->n_frames;
                om_session_set_timer(s, OM_TIMER_FRAME, s->core->settings->slow_client_ms);
        }
}

/* The time of the frame begun is over, and all has been read that is there. */
static void end_slow(struct om_session *s) {
        struct om_error e = OM_ERROR_INIT;

        s->overdue = false;
        if (s->state != OM_SESSION_OPEN || s->unread || om_session_held(s) || !mid_frame(s) || s->timed_frame != s->n_frames)
                return;
        om_error_set(&e, OM_TIMEOUT, "frame: begun, and not whole after %.1f s (SLOW_CLIENT): %zu bytes have come, %zu or more are missing",
                (double) s->core->settings->slow_client_ms / 1e3, s->in.len, missing(s));
        om_session_on_unframable(s, &e);
}

static void stop_reading(struct om_session *s) {
        event_del(&s->ev_read);
        s->reading = false;
}

static void go_on_reading(struct om_session *s) {
        if (s->reading)
                return;
        event_del(&s->ev_read);
        event_assign(&s->ev_read, om_loop_base(s->core->loop), s->fd, EV_READ | EV_PERSIST, om_session_on_readable, s);
        s->reading = event_add(&s->ev_read, NULL) == 0;
}

/* The client has closed its own side or both; the event for that would wake the loop for ever. It is looked at again after a while, and so
 * on: what it sent before it went is still done as long as it goes forward, and one that stands still for that long with its client gone is
 * over. (An edge-triggered event would tell the two apart, but cannot stand beside the one for writing.) */
static void on_closed_side(evutil_socket_t fd, short what, void *ctx) {
        static const struct timeval a_while = { OM_LINGER_MS / 1000, OM_LINGER_MS % 1000 * 1000 };
        struct om_session *s = ctx;

        if (fd < 0 && om_session_peer_gone(s)) {
                om_session_close(s, NULL);
        } else if (fd >= 0) {
                event_del(&s->ev_read);
                event_assign(&s->ev_read, om_loop_base(s->core->loop), -1, EV_PERSIST, on_closed_side, s);
                event_add(&s->ev_read, &a_while);
        }
}

/* Instead of reading, while it is held back. */
static void await_going(struct om_session *s) {
        stop_reading(s);
        event_assign(&s->ev_read, om_loop_base(s->core->loop), s->fd, EV_CLOSED | EV_PERSIST, on_closed_side, s);
        event_add(&s->ev_read, NULL);
}

/* It has been served: where it goes from here. */
static void settle(struct om_session *s) {
        om_session_count(s);
        if (s->overdue)
                end_slow(s);
        om_session_time_frame(s);
        if (s->state != OM_SESSION_OPEN || s->line != OM_LINE_NONE)
                return;
        if (halt(s)) {
                if (!s->reading)
                        await_going(s);
        } else if (s->unread) {
                om_session_enter_line(s, OM_LINE_BUSY);
        } else {
                go_on_reading(s);
        }
}

void om_session_on_readable(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;
        unsigned budget = om_session_turn_frames(s->pool);

        if (s->line != OM_LINE_NONE || s->state != OM_SESSION_OPEN) {
                stop_reading(s);
        } else if (halt(s)) {
                await_going(s);
        } else if (!om_session_turn_has_time(s->pool)) {
                stop_reading(s);
                om_session_enter_line(s, OM_LINE_FRESH);
        } else {
                read_once(s, &budget);
                settle(s);
        }
}

void om_session_serve(struct om_session *s) {
        unsigned budget = om_session_turn_frames(s->pool);

        if (s->writable)
                om_session_flush(s);
        if (s->state == OM_SESSION_ENDING)
                om_session_finish(s);
        if (s->state != OM_SESSION_OPEN)
                return;
        if (!halt(s)) {
                if (s->in.len == 0 || mid_frame(s))
                        read_once(s, &budget);
                else
                        work_off(s, &budget);
        }
        settle(s);
}

void om_session_resume(struct om_session *s) {
        if (s->state != OM_SESSION_OPEN || halt(s))
                return;
        go_on_reading(s);
        if (s->in.len > 0 && missing(s) == 0)
                om_session_enter_line(s, OM_LINE_FRESH);
}
