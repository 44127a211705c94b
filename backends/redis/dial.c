/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a name to a connected socket, without blocking: evdns resolves, every address is tried in turn.
 *
 * Always true: a dial ends in exactly one call of its function, or in om_redis_dial_cancel(); it has no deadline of its own, its link has.
 * Loop thread.
 */
#include <errno.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <event2/util.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "link.h"

struct om_redis_dial {
        struct event_base *base;
        const struct om_redis_settings *settings;
        const struct om_redis_address *address;
        om_redis_dialed_fn *fn;
        void *ctx;
        struct om_redis_dial **slot;
        struct evdns_getaddrinfo_request *request;
        bool resolving; /* within evdns_getaddrinfo(), which may answer at once */
        struct evutil_addrinfo *found, *next;
        struct event *event;
        int fd;
        struct om_error error; /* of the last address */
};

static void dial_free(struct om_redis_dial *d) {
        if (d->event)
                event_free(d->event);
        if (d->fd >= 0)
                close(d->fd);
        if (d->found)
                evutil_freeaddrinfo(d->found);
        free(d);
}

static void over(struct om_redis_dial *d, int fd) {
        om_redis_dialed_fn *fn = d->fn;
        void *ctx = d->ctx;
        struct om_error e = d->error;

        *d->slot = NULL;
        d->fd = -1;
        dial_free(d);
        fn(ctx, fd, &e);
}

/* A dead peer under a blocking read is found by the kernel, in about a minute; unanswered bytes in 30 seconds. */
static void set_options(int fd) {
        const int yes = 1, idle = 30, interval = 10, count = 3, unanswered_ms = 30000;

        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
}

static void try_next(struct om_redis_dial *d);

static void failed(struct om_redis_dial *d, int error) {
        const char *help = error == ECONNREFUSED || error == ENOENT ? " (is the server running, and does the URL name its port?)" : "";

        if (d->settings->socket_path)
                om_error_set(&d->error, OM_UNAVAILABLE, "redis %s: cannot connect: %s%s", d->settings->socket_path, strerror(error), help);
        else
                om_error_set(&d->error, OM_UNAVAILABLE, "redis %s:%u: cannot connect: %s%s", d->address->host, d->address->port,
                        strerror(error), help);
        if (d->fd >= 0)
                close(d->fd);
        d->fd = -1;
}

static void on_writable(evutil_socket_t fd, short what, void *ctx) {
        struct om_redis_dial *d = ctx;
        int error = 0;
        socklen_t len = sizeof error;

        event_free(d->event);
        d->event = NULL;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
                error = errno;
        if (error) {
                failed(d, error);
                try_next(d);
                return;
        }
        over(d, d->fd);
}

/* Whether an answer is on its way, or here. */
static bool try_one(struct om_redis_dial *d, int family, const struct sockaddr *address, socklen_t len) {
        d->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (d->fd < 0) {
                failed(d, errno);
                return false;
        }
        if (family != AF_UNIX)
                set_options(d->fd);
        if (connect(d->fd, address, len) < 0 && errno != EINPROGRESS) {
                failed(d, errno);
                return false;
        }
        d->event = event_new(d->base, d->fd, EV_WRITE, on_writable, d);
        if (!d->event || event_add(d->event, NULL) < 0) {
                failed(d, ENOMEM);
                return false;
        }
        return true;
}

static void try_next(struct om_redis_dial *d) {
        while (d->next) {
                const struct evutil_addrinfo *a = d->next;

                d->next = a->ai_next;
                if (try_one(d, a->ai_family, a->ai_addr, a->ai_addrlen))
                        return;
        }
        over(d, -EAGAIN);
}

static void on_resolved(int result, struct evutil_addrinfo *found, void *ctx) {
        struct om_redis_dial *d = ctx;

        d->request = NULL;
        d->found = d->next = found;
        if (result == EVUTIL_EAI_CANCEL) {
                dial_free(d);
                return;
        }
        if (result)
                om_error_set(&d->error, OM_UNAVAILABLE, "redis %s:%u: the name cannot be resolved: %s", d->address->host, d->address->port,
                        evutil_gai_strerror(result));
        if (!d->resolving)
                try_next(d);
}

static bool dial_unix(struct om_redis_dial *d) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        snprintf(address.sun_path, sizeof address.sun_path, "%s", d->settings->socket_path);
        return try_one(d, AF_UNIX, (const struct sockaddr *) &address, sizeof address);
}

int om_redis_dial(struct event_base *base, struct evdns_base *dns, const struct om_redis_settings *s,
        const struct om_redis_address *address, om_redis_dialed_fn *fn, void *ctx, struct om_redis_dial **slot) {
        struct om_redis_dial *d = calloc(1, sizeof *d);
        struct evutil_addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_TCP };
        char port[8];

        if (!d)
                return -ENOMEM;
        *slot = d;
        d->slot = slot;
        d->base = base;
        d->settings = s;
        d->address = address;
        d->fn = fn;
        d->ctx = ctx;
        d->fd = -1;
        if (!address->host) {
                if (!dial_unix(d))
                        over(d, -EAGAIN);
                return 0;
        }
        snprintf(port, sizeof port, "%u", address->port);
        d->resolving = true;
        d->request = evdns_getaddrinfo(dns, address->host, port, &hints, on_resolved, d);
        d->resolving = false;
        if (!d->request)
                try_next(d);
        return 0;
}

void om_redis_dial_cancel(struct om_redis_dial **slot) {
        struct om_redis_dial *d = *slot;

        *slot = NULL;
        if (!d)
                return;
        if (d->request)
                evdns_getaddrinfo_cancel(d->request); /* answers with EVUTIL_EAI_CANCEL, and that frees it */
        else
                dial_free(d);
}
