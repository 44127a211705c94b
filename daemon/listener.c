/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accepting connections.
 *
 * What is always true:
 *   - a turn accepts a bounded number of connections, so that a flood of them does not hold up the clients that are there;
 *   - a connection for which there is no room is told so in a frame of the protocol and closed: a client must not hang in the queue of a
 * full daemon. A descriptor is kept in reserve for that, so that it works too when the process has no more of them;
 *   - where even that fails, accepting pauses for a moment instead of spinning on a socket that stays readable. Only then is there a timer;
 *   - it is never deaf for want of memory: what listening takes was taken when the socket was opened, and it pauses only when the timer
 * that ends the pause runs;
 *   - what is refused is logged once until it gets better.
 *
 * Loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../proto/rpc.h"
#include "listener_open.h"
#include "log.h"

enum { ACCEPT_BUDGET = 16, PAUSE_MS = 200 };

struct om_listener {
        struct om_listener_options options; /* its strings are not ours */
        struct om_listener_socket socket;
        struct event *readable, *pause;
        int spare_fd;  /* -1: used up */
        bool refusing; /* the last connection was refused, and that was logged */
};

/* -- refusing ------------------------------------------------------------------------------------------------------ */

static void log_refusal(struct om_listener *l, const char *why) {
        if (!l->refusing)
                om_log(OM_LOG_WARNING, "connections are refused: %s", why);
        l->refusing = true;
}

static void reject(struct om_listener *l, int fd, const char *why) {
        struct om_buf frame = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        char waste[4096];

        log_refusal(l, why);
        om_error_set(&e, OM_LIMIT, "%s; try again later", why);
        om_rpc_put_error(&frame, OM_SPAN_NONE, &e);
        if (om_buf_ok(&frame) && send(fd, frame.data, frame.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                om_log(OM_LOG_DEBUG, "a refused client went away before it was told");
        /* Closing with unread input would make the client's next write fail before it reads why. */
        if (recv(fd, waste, sizeof waste, MSG_DONTWAIT) >= 0)
                shutdown(fd, SHUT_WR);
        close(fd);
        om_buf_deinit(&frame);
}

static bool pause_accepting(struct om_listener *l) {
        struct timeval soon = { .tv_usec = PAUSE_MS * 1000 };

        return event_add(l->pause, &soon) == 0 && event_del(l->readable) == 0;
}

static void on_pause_over(evutil_socket_t fd, short what, void *ctx) {
        struct om_listener *l = ctx;

        if (l->spare_fd < 0)
                l->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        om_listener_start(l);
}

/* There is no descriptor for the next connection: the spare one is given up for a moment to tell the client. False: nothing helps now. */
static bool reject_without_descriptors(struct om_listener *l, int error) {
        char why[96];
        int fd;

        snprintf(why, sizeof why, "the daemon has no more open files (%s)", error == EMFILE ? "its own limit" : "the system's limit");
        log_refusal(l, why);
        if (l->spare_fd < 0)
                return false;
        close(l->spare_fd);
        fd = accept4(l->socket.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0)
                reject(l, fd, why);
        l->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        return fd >= 0;
}

/* -- accepting ----------------------------------------------------------------------------------------------------- */

/* False: no more in this turn. */
static bool accept_one(struct om_listener *l) {
        int fd = accept4(l->socket.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        unsigned max = 0;
        char why[64];

        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
                return true;
        if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                return false;
        if (fd < 0 && (errno == EMFILE || errno == ENFILE) && reject_without_descriptors(l, errno))
                return true;
        if (fd < 0) {
                log_refusal(l, strerror(errno));
                pause_accepting(l);
                return false;
        }
        if (l->options.room(l->options.ctx, &max) == 0) {
                snprintf(why, sizeof why, "all %u connections are taken (MAX_CONNECTIONS)", max);
                reject(l, fd, why);
                return true;
        }
        l->refusing = false;
        if (l->options.accept(l->options.ctx, fd) == -ENOMEM)
                log_refusal(l, "out of memory");
        return true;
}

static void on_connection(evutil_socket_t fd, short what, void *ctx) {
        struct om_listener *l = ctx;

        for (int i = 0; i < ACCEPT_BUDGET && accept_one(l); i++)
                ;
}

/* -- making and ending --------------------------------------------------------------------------------------------- */

int om_listener_open(struct om_loop *loop, const struct om_listener_options *options, struct om_listener **ret, struct om_error *e) {
        struct om_listener *l = calloc(1, sizeof *l);
        int r;

        if (!l)
                return om_error_set_errno(e, ENOMEM, "the socket");
        l->options = *options;
        l->socket.fd = l->socket.lock_fd = -1;
        l->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        r = om_listener_socket_open(options, &l->socket, e);
        if (r < 0)
                goto failed;
        l->readable = event_new(om_loop_base(loop), l->socket.fd, EV_READ | EV_PERSIST, on_connection, l);
        l->pause = evtimer_new(om_loop_base(loop), on_pause_over, l);
        /* Added for a moment: libevent keeps what it allocates for a descriptor. */
        if (!l->readable || !l->pause || event_add(l->readable, NULL) < 0 || event_del(l->readable) < 0) {
                r = om_error_set_errno(e, ENOMEM, "the socket");
                goto failed;
        }
        *ret = l;
        return 0;
failed:
        om_listener_free(l);
        return r;
}

void om_listener_start(struct om_listener *l) {
        if (event_add(l->readable, NULL) < 0 && !pause_accepting(l))
                om_log(OM_LOG_ERROR, "the socket cannot be listened to: %s", strerror(errno));
}

void om_listener_stop(struct om_listener *l) {
        event_del(l->readable);
        event_del(l->pause);
}

void om_listener_free(struct om_listener *l) {
        if (!l)
                return;
        if (l->readable)
                event_free(l->readable);
        if (l->pause)
                event_free(l->pause);
        om_listener_socket_close(&l->socket);
        if (l->spare_fd >= 0)
                close(l->spare_fd);
        free(l);
}

const char *om_listener_path(const struct om_listener *l) { return l->socket.path; }
bool om_listener_is_handed(const struct om_listener *l) { return l->socket.lock_fd < 0; }
