/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session reads: bytes, frames, requests.
 *
 * One readv(2) a turn takes what the socket has into the pool's scratch buffer, where whole frames are handled in place; only the beginning
 * of a frame that is not whole yet is copied, into a buffer of the session's own, and the next readv() puts the rest of that frame right
 * behind it, so that no byte is moved twice and a frame that comes byte by byte costs no more than its bytes.
 *
 * What is always true:
 *   - what `in` grows to is bounded by twice what the client really sent, whatever length its frames claim;
 *   - one session handles at most OM_FRAMES_PER_TURN frames and one read in a turn; then the others have theirs;
 *   - a session whose input is held back (too many requests unanswered, too much output unsent) is not read; frames that were read already
 *     wait in `in`;
 *   - a method may close the session that it was called for: the buffer that holds its frame stays until the next turn.
 *
 * Called by the loop and by session.c. Loop thread.
 */
#include <errno.h>
#include <sys/uio.h>

#include "../proto/frame.h"
#include "session_internal.h"

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
                        om_session_on_unframable(s, &e);
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

bool om_session_work_off(struct om_session *s, unsigned *budget) {
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
                om_session_set_more(s);
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
                if (missing(s) == 0 && !om_session_work_off(s, budget)) {
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
                om_session_set_more(s);
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
                om_session_on_end_of_input(s);
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

void om_session_on_readable(evutil_socket_t fd, short what, void *ctx) {
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
                om_session_set_more(s);
}
