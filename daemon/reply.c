/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session writes: replies, notifications, and sending them.
 *
 * Frames are appended straight to the session's output buffer, which is sent once, at the end of the turn, after everybody else's turn ends
 * (they write too). Only when the socket did not take all is it watched for room.
 *
 * What is always true:
 *   - one reply or notification is being written at a time, in the daemon as a whole: begin and end stand in one function, and nothing that
 *     may write stands between them. A frame written into another would be a broken connection with no trace of the reason, hence the
 *     assertions;
 *   - unsent output is bounded: above session_output_bytes, or its share of what all may hold when that is less (session_memory.c), the
 *     session is read no further and gets no deliveries, and when it is above by a whole frame as well, large replies become an error
 * `limit`. What is left are small replies of at most OM_IN_FLIGHT requests;
 *   - a session is above its limit until less than half of it is unsent, so that it is not stopped and started for every frame;
 *   - a buffer whose allocation failed is cut somewhere: the session is closed, since its framing is lost;
 *   - no function here closes a session while its caller runs: that happens a turn later.
 *
 * Requests come from a free list: at the pace of the hot path nothing is allocated. Called by methods, dispatch, watch. Loop thread.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <utlist.h>

#include "dispatch.h"
#include "session_internal.h"
#include "watch.h"

#include "../proto/frame.h"

/* -- sending ------------------------------------------------------------------------------------------------------- */

size_t om_session_unsent(const struct om_session *s) { return s->out.len - s->out_sent; }

/* While it is above the limit, each byte that the socket takes starts the time anew after which it counts as stalled. */
static void watch_for_stall(struct om_session *s, bool progress) {
        if (!s->above || s->hurried)
                return;
        if (progress || s->timer != OM_TIMER_STALL)
                om_session_set_timer(s, OM_TIMER_STALL, s->core->settings->stalled_client_ms);
}

/* Output has been appended, or has left. */
static void note_level(struct om_session *s) {
        size_t unsent = om_session_unsent(s), limit = om_session_output_limit(s);

        om_session_count(s);
        if (unsent > limit) {
                s->above = true;
                watch_for_stall(s, false); /* its socket may be full already, and then nothing else happens to it */
        } else if (s->above && unsent <= limit / 2) {
                s->above = false;
                if (!s->hurried)
                        om_session_set_timer(s, OM_TIMER_NONE, 0);
                om_session_time_frame(s);
                om_session_resume(s);
                if (s->state == OM_SESSION_OPEN && s->core->dispatch)
                        om_dispatch_session_ready(s->core->dispatch, s);
                if (s->state == OM_SESSION_OPEN && s->core->watch)
                        om_watch_session_ready(s->core->watch, s);
        }
}

void om_session_flush(struct om_session *s) {
        size_t unsent = om_session_unsent(s);
        ssize_t n = 0;

        s->writable = false;
        if (unsent > 0) {
                do
                        n = send(s->fd, s->out.data + s->out_sent, unsent, MSG_NOSIGNAL | MSG_DONTWAIT);
                while (n < 0 && errno == EINTR);
                if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
                        om_session_close(s, NULL); /* gone: its input says so too */
                        return;
                }
                if (n < 0)
                        n = 0;
                s->pool->counters->bytes_out += (uint64_t) n;
                s->out_sent += (size_t) n;
        }
        if (om_session_unsent(s) == 0) {
                event_del(&s->ev_write);
                s->out_sent = 0;
                s->out.len = 0;
                om_session_spare_put(s->pool, &s->out);
                note_level(s);
                om_session_finish(s);
                return;
        }
        /* What has been sent is dropped when that is the larger part: each byte is then moved at most once. */
        if (s->out_sent > s->out.len / 2) {
                om_buf_consume(&s->out, s->out_sent);
                s->out_sent = 0;
        }
        event_add(&s->ev_write, NULL);
        watch_for_stall(s, n > 0);
        note_level(s);
}

void om_session_on_writable(evutil_socket_t fd, short what, void *ctx) {
        struct om_session *s = ctx;

        if (om_session_turn_has_time(s->pool)) {
                om_session_flush(s);
                return;
        }
        event_del(&s->ev_write);
        s->writable = true;
        om_session_enter_line(s, OM_LINE_FRESH);
}

void om_session_flush_turn(struct om_turn_end *t) {
        struct om_session_pool *p = (void *) ((char *) t - offsetof(struct om_session_pool, flush));
        struct om_session *s;

        /* Once more to the end of the queue: the turn ends of others may write. */
        if (!p->second_pass) {
                p->second_pass = true;
                om_loop_at_turn_end(p->core->loop, t);
                return;
        }
        p->second_pass = false;
        while ((s = p->dirty)) {
                DL_DELETE2(p->dirty, s, dirty_prev, dirty_next);
                s->dirty = false;
                om_session_flush(s);
        }
}

static void set_dirty(struct om_session *s) {
        /* When the socket is full already its event sends what has been appended. */
        if (s->dirty || event_pending(&s->ev_write, EV_WRITE, NULL))
                return;
        s->dirty = true;
        DL_APPEND2(s->pool->dirty, s, dirty_prev, dirty_next);
        om_loop_at_turn_end(s->core->loop, &s->pool->flush);
}

/* A frame has been appended; `r` is what ending it returned. */
static int appended(struct om_session *s, int r) {
        if (r == -ENOMEM || !om_buf_ok(&s->out)) {
                om_session_doom(s, "out of memory");
                return -ENOMEM;
        }
        if (r < 0)
                return r;
        s->pool->counters->frames_out++;
        set_dirty(s);
        note_level(s);
        return 0;
}

/* -- requests ------------------------------------------------------------------------------------------------------ */

struct om_request *om_request_new(struct om_session *s, struct om_span id, bool notification, size_t body_bytes) {
        struct om_session_pool *p = s->pool;
        struct om_request *req = p->spare_requests;

        if (req) {
                p->spare_requests = req->next;
                p->n_spare_requests--;
        } else {
                req = malloc(sizeof *req);
                if (!req)
                        return NULL;
        }
        req->session = s;
        req->core = s->core;
        req->method = NULL;
        req->notification = notification;
        req->id_len = id.p ? (uint16_t) id.len : 0;
        memcpy(req->id, id.p ? id.p : "", req->id_len);
        req->bytes = (uint32_t) (OM_REQUEST_BYTES + body_bytes);
        DL_APPEND(s->requests, req);
        s->in_flight++;
        s->request_bytes += req->bytes;
        return req;
}

void om_request_takes(struct om_request *req, size_t bytes) {
        req->bytes += (uint32_t) bytes;
        if (req->session)
                req->session->request_bytes += bytes;
        else
                req->core->pool->orphan_bytes += bytes;
}

void om_request_done(struct om_request *req) {
        struct om_session_pool *p;
        struct om_session *s;

        if (!req)
                return;
        p = req->core->pool;
        s = req->session;
        if (s) {
                DL_DELETE(s->requests, req);
                s->in_flight--;
                s->request_bytes -= req->bytes;
                om_session_count(s);
        } else {
                om_session_uncount_orphan(p, req);
        }
        if (p->n_spare_requests < OM_SPARE_REQUESTS) {
                req->next = p->spare_requests;
                p->spare_requests = req;
                p->n_spare_requests++;
        } else {
                free(req);
        }
        if (s && s->halted)
                om_session_resume(s);
        if (s && s->state == OM_SESSION_ENDING && s->in_flight == 0)
                om_session_finish_later(s);
}

static struct om_span id_of(const struct om_request *req) { return (struct om_span){ req->id, req->id_len }; }

struct om_buf *om_request_begin(struct om_request *req) {
        struct om_session *s = req ? req->session : NULL;

        if (!s || req->notification || s->state == OM_SESSION_CLOSED || s->doomed)
                return NULL;
        assert(!s->pool->writing);
        om_session_spare_take(s->pool, &s->out);
        s->pool->writing = s;
        s->pool->mark = om_rpc_begin_result(&s->out, id_of(req));
        return &s->out;
}

/* Ends the reply; -EMSGSIZE when it may not go out, with `e` saying why: then it has been taken back. */
static int end_reply(struct om_session *s, struct om_error *e) {
        size_t max = (size_t) s->core->settings->max_frame_bytes, mark = s->pool->mark, len;
        int r = om_rpc_end(&s->out, mark, max);

        if (r == -EMSGSIZE) {
                om_error_set(e, OM_LIMIT, "the result is larger than a frame may be (limits.frame_bytes, %zu bytes); ask for less", max);
                return r;
        }
        if (r < 0)
                return r;
        len = s->out.len - mark;
        if (len > OM_SMALL_REPLY_BYTES && om_session_unsent(s) > om_session_output_limit(s) + max) {
                s->out.len = mark;
                om_error_set(e, OM_LIMIT, "this connection has %zu bytes unread; read them, then ask again", om_session_unsent(s));
                return -EMSGSIZE;
        }
        return 0;
}

void om_request_end(struct om_request *req) {
        struct om_session *s = req ? req->session : NULL;
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (s && s->pool->writing == s && !req->notification) {
                s->pool->writing = NULL;
                r = end_reply(s, &e);
                if (r == -EMSGSIZE) {
                        om_request_error(req, &e);
                        return;
                }
                appended(s, r);
        }
        om_request_done(req);
}

void om_request_ok(struct om_request *req) {
        struct om_buf *b = om_request_begin(req);

        if (b)
                om_buf_lit(b, "{}");
        om_request_end(req);
}

void om_session_put_error(struct om_session *s, struct om_span id, const struct om_error *e) {
        assert(!s->pool->writing);
        s->pool->counters->errors++;
        if (s->state == OM_SESSION_CLOSED || s->doomed)
                return;
        om_session_spare_take(s->pool, &s->out);
        om_rpc_put_error(&s->out, id, e);
        appended(s, 0);
}

void om_request_error(struct om_request *req, const struct om_error *e) {
        if (!req)
                return;
        if (req->session && !req->notification)
                om_session_put_error(req->session, id_of(req), e);
        else
                req->core->pool->counters->errors++;
        om_request_done(req);
}

void om_request_error_data(struct om_request *req, const struct om_error *e, struct om_span members) {
        struct om_session *s = req->session;
        struct om_buf *b;
        size_t mark;

        if (!s || req->notification || s->state == OM_SESSION_CLOSED || !members.p) {
                om_request_error(req, e);
                return;
        }
        s->pool->counters->errors++;
        om_session_spare_take(s->pool, &s->out);
        b = &s->out;
        mark = om_frame_begin(b);
        om_buf_lit(b, "{\"jsonrpc\":\"2.0\",\"id\":");
        om_buf_put_span(b, id_of(req));
        om_buf_lit(b, ",\"error\":");
        om_rpc_put_error_object(b, e);
        b->len -= b->failed ? 0 : 2; /* the ends of data and error */
        om_buf_put_span(b, members);
        om_buf_lit(b, "}}}");
        appended(s, om_frame_end(b, mark, SIZE_MAX));
        om_request_done(req);
}

/* -- notifications ------------------------------------------------------------------------------------------------- */

struct om_buf *om_session_begin(struct om_session *s, const char *method) {
        if (s->state != OM_SESSION_OPEN)
                return NULL;
        assert(!s->pool->writing);
        om_session_spare_take(s->pool, &s->out);
        s->pool->writing = s;
        s->pool->mark = om_rpc_begin_notification(&s->out, method);
        return &s->out;
}

int om_session_end(struct om_session *s) {
        size_t max = (size_t) s->core->settings->max_frame_bytes + OM_NOTIFICATION_SLACK;

        s->pool->writing = NULL;
        return appended(s, om_rpc_end(&s->out, s->pool->mark, max));
}

int om_session_append(struct om_session *s, struct om_span frames, unsigned n) {
        assert(!s->pool->writing);
        if (s->state != OM_SESSION_OPEN)
                return -ENOTCONN;
        om_session_spare_take(s->pool, &s->out);
        om_buf_put_span(&s->out, frames);
        s->pool->counters->frames_out += n - 1;
        return appended(s, 0);
}

bool om_session_can_deliver(const struct om_session *s) { return s->state == OM_SESSION_OPEN && !s->above; }
