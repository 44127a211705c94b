/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection: where the daemon is, meeting it, bytes out and in, and the end.
 *
 * Always true:
 *   - the socket never blocks; epoll watches it for writing only while it has refused bytes;
 *   - nothing but `hello` goes out before the daemon has answered it, so that its limits are known and a daemon of another protocol is sent
 *     nothing that it could misread; then agents register, then goes what waited, in its order;
 *   - a frame that is cut off by the end of the connection is dropped as a whole on both sides;
 *   - whatever the daemon sends, it is read through the checks of proto/: a fault ends the connection with -EPROTO and a text.
 *
 * When the connection ends, what can be repeated stays queued, tasks held become lost, and everything else is told (omc_disconnect).
 */
#include "internal.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* -- where the daemon is ------------------------------------------------------------------------------------------- */

/* PROTOCOL.md, "Socket". Asked anew at each attempt: the daemon of a user may come into being meanwhile. */
static int find_socket(omni_client *c, struct om_error *e) {
        char path[4096];
        const char *found = c->options.socket_path, *dir;
        if (!found || !*found)
                found = getenv("OMNIDAEMON_SOCKET");
        if ((!found || !*found) && (dir = getenv("XDG_RUNTIME_DIR")) && *dir) {
                int n = snprintf(path, sizeof(path), "%s/omnidaemon/omnidaemon.sock", dir);
                if (n > 0 && (size_t) n < sizeof(path) && access(path, F_OK) == 0)
                        found = path;
        }
        if (!found || !*found)
                found = "/run/omnidaemon/omnidaemon.sock";
        if (strlen(found) >= sizeof(c->path)) {
                c->path[0] = '\0';
                return om_error_set(e, OM_INVALID, "the socket's path has %zu bytes; %zu is the most that the system takes: %.200s",
                        strlen(found), sizeof(c->path) - 1, found);
        }
        snprintf(c->path, sizeof(c->path), "%s", found);
        return 0;
}

static int open_socket(omni_client *c, struct om_error *e) {
        int r = find_socket(c, e);
        if (r < 0)
                return r;
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        memcpy(address.sun_path, c->path, strlen(c->path) + 1);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return om_error_set_errno(e, errno, "socket");
        if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0) {
                int error = errno;
                close(fd);
                if (error == ENOENT || error == ECONNREFUSED) {
                        om_error_set(
                                e, OM_UNAVAILABLE, "no OmniDaemon at %s: start one with `omnidaemond`, or set OMNIDAEMON_SOCKET", c->path);
                        return -error;
                }
                if (error == EACCES || error == EPERM) {
                        om_error_set(e, OM_DENIED, "not allowed to connect to %s: be a member of the socket's group", c->path);
                        return -EACCES;
                }
                om_error_set_errno(e, error, "connecting to %s", c->path); /* EAGAIN: its queue of connections is full */
                return -error;
        }
        struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
        if (epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
                r = om_error_set_errno(e, errno, "epoll_ctl");
                close(fd);
                return r;
        }
        c->socket_fd = fd;
        c->watch_out = false;
        c->broken = false;
        return 0;
}

/* -- meeting ------------------------------------------------------------------------------------------------------- */

static void take_limit(struct om_span limits, const char *name, int64_t low, int64_t high, size_t *ret) {
        struct om_json_value v;
        int64_t n;
        if (limits.p && omc_get(limits, name, OM_JSON_NUMBER, &v) && om_json_int64(v, &n) == 0 && n > 0)
                *ret = (size_t) (n < low ? low : n > high ? high : n);
}

static void done_hello(omni_client *c, struct omc_call *call, struct om_span answer) {
        int status = call->status;
        struct om_error e = call->error;
        omc_call_free(c, call);
        if (c->state != OMC_MEET)
                return; /* the connection ended */
        if (status < 0) {
                if (status == -EOPNOTSUPP)
                        status = -EPROTO; /* it speaks another version, and says which */
                omc_disconnect(c, status, "%s", e.message);
                return;
        }
        struct om_json_value v;
        int64_t protocol;
        if (!omc_get(answer, "protocol", OM_JSON_NUMBER, &v) || om_json_int64(v, &protocol) < 0 || protocol != OMC_PROTOCOL) {
                omc_disconnect(c, -EPROTO, "what listens at %s does not speak version %d of the protocol", c->path, OMC_PROTOCOL);
                return;
        }
        struct om_span limits = OM_SPAN_NONE;
        if (omc_get(answer, "limits", OM_JSON_OBJECT, &v))
                limits = v.text;
        take_limit(limits, "frame_bytes", 4096, INT32_MAX, &c->frame_max);
        take_limit(limits, "batch", 1, 100000, &c->batch_max);
        take_limit(limits, "prefetch", 1, 100000, &c->prefetch_max);
        c->state = OMC_UP;
        c->ever_up = true;
        c->failures = 0;
        c->away_status = 0;
        omc_agents_register(c);
        if (c->on_connection) {
                struct omc_call *change = omc_call_new(c, OMC_CHANGE);
                if (change)
                        omc_event_add(c, change);
        }
}

static void connect_failed(omni_client *c, int status, const struct om_error *e) {
        c->state = OMC_AWAY;
        c->away_status = status;
        c->away = *e;
        /* min · 2^n, at most max; half of it fixed, half random, so that many clients do not come back as one. */
        int64_t wait = c->options.reconnect_min_ms;
        for (unsigned i = 0; i < c->failures && wait < c->options.reconnect_max_ms; i++)
                wait *= 2;
        if (wait > c->options.reconnect_max_ms)
                wait = c->options.reconnect_max_ms;
        c->failures++;
        c->jitter = c->jitter * 6364136223846793005u + 1442695040888963407u;
        c->retry_at_ms = omc_now_ms() + wait / 2 + (int64_t) ((c->jitter >> 33) % (uint64_t) (wait / 2 + 1));
}

void omc_connect_if_due(omni_client *c, int64_t now) {
        if (c->state == OMC_IDLE ? !c->wanted : c->state != OMC_AWAY || now < c->retry_at_ms)
                return;
        struct om_error e = OM_ERROR_INIT;
        c->attempts++;
        int r = open_socket(c, &e);
        struct omc_call *hello = r < 0 ? NULL : omc_call_new(c, OMC_HELLO);
        if (r < 0) {
                connect_failed(c, r, &e);
                return;
        }
        c->state = OMC_MEET;
        if (!hello) {
                omc_disconnect(c, -ENOMEM, "out of memory");
                return;
        }
        hello->immediate = true;
        hello->done = done_hello;
        om_rpc_begin_request(&hello->frame, hello->id, "hello");
        om_buf_lit(&hello->frame, "{\"client\":");
        om_buf_json_string(&hello->frame, c->options.client_name, strlen(c->options.client_name));
        om_buf_printf(&hello->frame, ",\"protocol\":%d}", OMC_PROTOCOL);
        if (omc_call_queue(c, hello, true) < 0) {
                omc_call_free(c, hello);
                omc_disconnect(c, -ENOMEM, "out of memory");
        }
}

/* -- out ----------------------------------------------------------------------------------------------------------- */

static void watch_out(omni_client *c, bool on) {
        if (c->watch_out == on)
                return;
        struct epoll_event event = { .events = EPOLLIN | (on ? EPOLLOUT : 0), .data.fd = c->socket_fd };
        if (epoll_ctl(c->epoll_fd, EPOLL_CTL_MOD, c->socket_fd, &event) == 0)
                c->watch_out = on;
}

/* n bytes of the frames from `unsent` on are out. */
static void have_sent(omni_client *c, size_t n) {
        while (n > 0 && c->unsent != &c->calls) {
                struct omc_call *call = omc_of(struct omc_call, link, c->unsent);
                size_t left = call->frame.len - call->sent, part = n < left ? n : left;
                call->sent += part;
                call->ever_sent = true;
                n -= part;
                if (call->sent < call->frame.len)
                        return;
                c->unsent = call->link.next;
                if (call->type == OMC_ONE_WAY) {
                        omc_call_take(c, call);
                        omc_call_free(c, call);
                }
        }
}

void omc_send(omni_client *c) {
        enum { PIECES = 64 };
        while (c->unsent != &c->calls && !c->broken && (c->state == OMC_UP || c->state == OMC_MEET)) {
                struct iovec pieces[PIECES];
                size_t n = 0;
                for (struct omc_link *l = c->unsent; l != &c->calls && n < PIECES; l = l->next) {
                        struct omc_call *call = omc_of(struct omc_call, link, l);
                        if (c->state == OMC_MEET && call->type != OMC_HELLO)
                                break;
                        pieces[n].iov_base = call->frame.data + call->sent;
                        pieces[n++].iov_len = call->frame.len - call->sent;
                }
                if (n == 0)
                        break;
                struct msghdr message = { .msg_iov = pieces, .msg_iovlen = n };
                ssize_t sent = sendmsg(c->socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (sent >= 0) {
                        have_sent(c, (size_t) sent);
                } else if (errno == EAGAIN) {
                        watch_out(c, true);
                        return;
                } else if (errno != EINTR) {
                        c->broken = true; /* what the daemon said before it closed is read first */
                }
        }
        if (c->socket_fd >= 0)
                watch_out(c, false);
}

void omc_finish_frame(omni_client *c) {
        enum { WAIT_MS = 5000 };
        int64_t until = omc_now_ms() + WAIT_MS;
        while (c->unsent != &c->calls && !c->broken && c->state == OMC_UP) {
                struct omc_call *call = omc_of(struct omc_call, link, c->unsent);
                int64_t left = until - omc_now_ms();
                struct pollfd p = { .fd = c->socket_fd, .events = POLLOUT };
                if (call->sent == 0 || left <= 0)
                        return;
                if (poll(&p, 1, (int) left) < 0 && errno != EINTR)
                        return;
                omc_send(c);
        }
}

/* -- in ------------------------------------------------------------------------------------------------------------ */

/* Ends the connection for what the daemon sent. `e` (may be NULL) says more. */
int omc_fault(omni_client *c, struct om_error *e, const char *format, ...) {
        char what[200];
        va_list args;
        va_start(args, format);
        vsnprintf(what, sizeof(what), format, args);
        va_end(args);
        if (e && e->message[0])
                omc_disconnect(c, -EPROTO, "the daemon broke the protocol: %s: %s", what, e->message);
        else
                omc_disconnect(c, -EPROTO, "the daemon broke the protocol: %s", what);
        return -EPROTO;
}

static bool read_id(struct om_span id, uint64_t *ret) {
        uint64_t n = 0;
        if (!id.p || id.len == 0 || id.len > 19)
                return false;
        for (size_t i = 0; i < id.len; i++) {
                if (id.p[i] < '0' || id.p[i] > '9')
                        return false;
                n = n * 10 + (uint64_t) (id.p[i] - '0');
        }
        *ret = n;
        return true;
}

static int take_reply(omni_client *c, const struct om_rpc *rpc) {
        uint64_t id;
        struct omc_call *call = read_id(rpc->id, &id) ? omc_call_find(c, id) : NULL;
        struct om_error e = OM_ERROR_INIT;
        if (!call && rpc->type == OM_RPC_ERROR && om_span_is(rpc->id, "null")) {
                om_rpc_parse_error(rpc->error, &e);
                return omc_fault(c, &e, "it could not read what it was sent");
        }
        if (!call || call->sent < call->frame.len)
                return omc_fault(c, NULL, "an answer to a request that was not made (id %.*s)", rpc->id.len < 40 ? (int) rpc->id.len : 40,
                        rpc->id.p ? rpc->id.p : "");
        if (rpc->type == OM_RPC_RESULT) {
                omc_call_finish(c, call, 0, rpc->result);
                return 0;
        }
        int status = om_rpc_parse_error(rpc->error, &call->error);
        omc_call_finish(c, call, status < 0 ? status : -EIO, rpc->error);
        return 0;
}

/* For omni_on_notification(): method and params, each zero-terminated. Lost when the user lets too many pile up, as watching is in any
 * case. */
static void keep_notice(omni_client *c, const struct om_rpc *rpc) {
        if (!c->on_notification || c->notice_bytes > c->options.buffer_max)
                return;
        struct omc_call *notice = omc_call_new(c, OMC_NOTICE);
        if (!notice)
                return;
        om_buf_put_span(&notice->frame, rpc->method);
        om_buf_putc(&notice->frame, '\0');
        om_buf_put_span(&notice->frame, rpc->params.p ? rpc->params : OM_SPAN("{}"));
        om_buf_putc(&notice->frame, '\0');
        if (!om_buf_ok(&notice->frame)) {
                om_buf_clear(&notice->frame);
                omc_call_free(c, notice);
                return;
        }
        c->notice_bytes += notice->frame.len;
        omc_event_add(c, notice);
}

static int take_notification(omni_client *c, const struct om_rpc *rpc) {
        struct om_error e = OM_ERROR_INIT;
        int r = 0;
        if (om_span_is(rpc->method, "task.deliver"))
                r = omc_deliver(c, rpc->params, &e);
        else if (om_span_is(rpc->method, "task.revoked"))
                r = omc_revoked(c, rpc->params, &e);
        else if (om_span_is(rpc->method, "agent.ended"))
                r = omc_agent_ended(c, rpc->params, &e);
        if (r == -ENOMEM) {
                omc_disconnect(c, -ENOMEM, "out of memory");
                return r;
        }
        if (r < 0)
                return omc_fault(c, &e, "%.*s", OM_PRI(rpc->method));
        if (!om_span_is(rpc->method, "task.deliver") && !om_span_is(rpc->method, "task.revoked"))
                keep_notice(c, rpc);
        return 0;
}

static int take_body(omni_client *c, struct om_span body) {
        struct om_rpc rpc;
        struct om_error e = OM_ERROR_INIT;
        if (om_rpc_parse_sent(body, &rpc, &e) < 0)
                return omc_fault(c, &e, "a message that is none");
        switch (rpc.type) {
        case OM_RPC_RESULT:
        case OM_RPC_ERROR:
                return take_reply(c, &rpc);
        case OM_RPC_NOTIFICATION:
                return take_notification(c, &rpc);
        case OM_RPC_REQUEST:
                break;
        }
        return omc_fault(c, NULL, "a request (%.*s); only a client makes them", rpc.method.len < 40 ? (int) rpc.method.len : 40,
                rpc.method.p ? rpc.method.p : "");
}

/* All whole frames in c->in. */
static int take_frames(omni_client *c) {
        size_t at = 0;
        int fd = c->socket_fd;
        for (;;) {
                struct om_span body;
                struct om_error e = OM_ERROR_INIT;
                size_t max = c->frame_max > OMC_INBOUND_MAX ? c->frame_max : OMC_INBOUND_MAX;
                int r = om_frame_peek(c->in.data + at, c->in.len - at, max, &body, &e);
                if (r < 0)
                        return omc_fault(c, &e, "a frame of a wrong length");
                if (r == 0)
                        break;
                r = take_body(c, body);
                if (r < 0)
                        return r;
                if (c->socket_fd != fd) /* the answer to hello ended it */
                        return c->away_status == -EPROTO || c->away_status == -ENOMEM ? c->away_status : 0;
                at += OM_FRAME_HEADER + body.len;
        }
        om_buf_consume(&c->in, at);
        if (c->in.len == 0)
                om_buf_shrink(&c->in, 4 * OMC_READ_BYTES);
        return 0;
}

int omc_receive(omni_client *c) {
        for (size_t total = 0; c->socket_fd >= 0 && total < OMC_TURN_BYTES;) {
                char *into = om_buf_reserve(&c->in, OMC_READ_BYTES);
                if (!into) {
                        omc_disconnect(c, -ENOMEM, "out of memory");
                        return -ENOMEM;
                }
                size_t room = c->in.cap - c->in.len;
                ssize_t n = recv(c->socket_fd, into, room, MSG_DONTWAIT);
                if (n > 0) {
                        c->in.len += (size_t) n;
                        total += (size_t) n;
                        int r = take_frames(c);
                        if (r < 0)
                                return r;
                        if ((size_t) n < room)
                                break; /* that was all; epoll says when there is more */
                } else if (n == 0) {
                        omc_disconnect(c, -ECONNRESET, "the daemon closed the connection");
                } else if (errno == EAGAIN) {
                        break;
                } else if (errno != EINTR) {
                        omc_disconnect(c, -ECONNRESET, "the connection broke: %s", strerrordesc_np(errno));
                }
        }
        if (c->broken && c->socket_fd >= 0)
                omc_disconnect(c, -ECONNRESET, "the daemon closed the connection");
        return 0;
}

/* -- the end ------------------------------------------------------------------------------------------------------- */

/* What becomes of a call when its connection ends; true: it stays, to be sent again. */
static bool survives(struct omc_call *call, bool fatal) {
        switch (call->type) {
        case OMC_REQUEST:
                return !fatal && (call->repeat || !call->sent);
        case OMC_PUBLISH:
                return !fatal && (call->repeat || !call->sent);
        case OMC_REGISTER:
                return !fatal && !call->agent->leaving;
        default: /* about leases and subscriptions that are over */
                return false;
        }
}

void omc_lease_over(struct omc_call *call, const char *reason) {
        om_error_set(&call->error, OM_CONFLICT, "the lease ended with the connection (%s): the task is delivered again", reason);
}

static void end_call(omni_client *c, struct omc_call *call, int status, const char *reason) {
        if (call->type == OMC_ONE_WAY) {
                omc_call_take(c, call);
                omc_call_free(c, call);
                return;
        }
        if (call->type == OMC_ACK || call->type == OMC_FAIL)
                omc_lease_over(call, reason);
        else if (status == -ECONNRESET)
                om_error_set(&call->error, OM_UNAVAILABLE, "%s before the answer came: the outcome is unknown", reason);
        else
                om_error_set(&call->error, om_kind_of_errno(status), "%s", reason);
        omc_call_finish(c, call, call->type == OMC_ACK || call->type == OMC_FAIL ? -ESTALE : status, OM_SPAN_NONE);
}

static void end_calls(omni_client *c, int status, const char *reason) {
        bool fatal = status == -EPROTO || status == -ENOMEM || status == -ECANCELED;
        /* What finishing one call does may put others on the list (an agent that is registered again): those stay behind `last`. */
        struct omc_link *last = c->calls.prev, *l = c->calls.next;
        while (!omc_list_empty(&c->calls)) {
                struct omc_link *next = l->next;
                bool was_last = l == last;
                struct omc_call *call = omc_of(struct omc_call, link, l);
                if (survives(call, fatal))
                        call->sent = 0;
                else
                        end_call(c, call, status, reason);
                if (was_last)
                        break;
                l = next;
        }
        c->unsent = c->calls.next;
        for (l = c->later.next; l != &c->later;) {
                struct omc_call *call = omc_of(struct omc_call, link, l);
                l = l->next;
                if (!survives(call, fatal))
                        end_call(c, call, status, reason);
        }
        struct omc_call *ack = c->open_ack;
        c->open_ack = NULL;
        if (ack) {
                omc_lease_over(ack, reason);
                omc_call_finish(c, ack, -ESTALE, OM_SPAN_NONE);
        }
}

void omc_disconnect(omni_client *c, int status, const char *format, ...) {
        struct om_error e = OM_ERROR_INIT;
        char reason[400];
        va_list args;
        va_start(args, format);
        vsnprintf(reason, sizeof(reason), format, args);
        va_end(args);
        bool was_up = c->state == OMC_UP;
        if (c->socket_fd >= 0)
                close(c->socket_fd); /* epoll forgets it */
        c->socket_fd = -1;
        c->broken = c->watch_out = false;
        om_buf_clear(&c->in);
        om_buf_shrink(&c->in, OMC_READ_BYTES);
        om_error_set(&e, om_kind_of_errno(status), "%s", reason);
        connect_failed(c, status, &e);
        omc_agents_down(c);
        end_calls(c, status, reason);
        if (was_up && c->on_connection) {
                struct omc_call *change = omc_call_new(c, OMC_CHANGE);
                if (change) {
                        change->status = status;
                        change->error = e;
                        omc_event_add(c, change);
                }
        }
        if (status == -EPROTO || status == -ENOMEM)
                omc_fail(c, status, "%s", reason);
}
