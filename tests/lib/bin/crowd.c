/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A crowd of clients that misbehave, for the tests: `crowd SOCKET KIND N` opens N connections, says "ready" on standard output once each
 * has done its worst, goes on until its standard input ends, and then says how many of its connections the daemon had ended.
 *
 *   idle     connect and say nothing
 *   silent   ask for as much as their sockets take, and for more whenever they take more; never read
 *   greedy   the same, and the answers are long
 *   publish  the same, with tasks to publish
 *   slow     send a byte a second each, of a frame that is right
 *   half     send the first 64 KiB of a frame of 960 KiB, and no more
 *   half=N   the first N bytes of it
 *   away     connect, ask for as much as their sockets take, and go, again and again
 *
 * It runs at the lowest priority and rests between bursts, so that on a machine of two processors it is the daemon that is measured, not
 * the crowd's own hunger. One thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BURST = 64, REST_NS = 1000000, BLOCK_BYTES = 4096, HALF_FRAME = 15 << 16, HALF_BYTES = 64 << 10 };

struct client {
        int fd; /* -1: it is over */
        size_t at;
        bool full;
};

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static const char *kind;
static struct client *clients;
static size_t n_clients, n_ended, n_full;
static int epoll_fd;
static char *text; /* what each sends; all but the halves again and again */
static size_t text_len;

static bool is(const char *name) { return strcmp(kind, name) == 0; }

static void die(const char *what) {
        perror(what);
        exit(1);
}

static void rest(long ns) { nanosleep(&(struct timespec){ .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 }, NULL); }

static bool over(void) {
        struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };

        return poll(&p, 1, 0) > 0;
}

static void put(const char *body) {
        uint32_t len = (uint32_t) strlen(body);
        unsigned char header[] = { (unsigned char) (len >> 24), (unsigned char) (len >> 16), (unsigned char) (len >> 8),
                (unsigned char) len };

        memcpy(text + text_len, header, sizeof header);
        memcpy(text + text_len + sizeof header, body, len);
        text_len += sizeof header + len;
}

static void make_text(void) {
        char body[256];
        int at;

        text = calloc(1, HALF_FRAME + 4);
        if (!text)
                die("calloc");
        if (strncmp(kind, "half", 4) == 0) {
                text[1] = HALF_FRAME >> 16;
                memset(text + 4, ' ', HALF_FRAME);
                text_len = kind[4] == '=' ? (size_t) atol(kind + 5) : HALF_BYTES;
                return;
        }
        if (is("publish"))
                at = snprintf(body, sizeof body,
                        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"task.publish\",\"params\":{\"task\":{\"topic\":\"crowd\",\"payload\":{"
                        "\"content\":1}}}}");
        else
                at = snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\"}", is("greedy") ? "health" : "ping");
        if (at < 0)
                die("snprintf");
        do
                put(body);
        while (!is("slow") && text_len < BLOCK_BYTES);
}

static void note_full(struct client *c) {
        n_full += !c->full;
        c->full = true;
}

static void note_end(struct client *c) {
        close(c->fd);
        c->fd = -1;
        n_ended++;
        note_full(c);
}

static void open_one(struct client *c) {
        c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0)
                die("socket");
        c->at = 0;
        /* Waits while the queue of the listening socket is full. */
        if (connect(c->fd, (struct sockaddr *) &address, sizeof address) < 0)
                die("connect");
        if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0)
                die("fcntl");
}

static void watch(struct client *c, uint32_t events) {
        struct epoll_event e = { .events = events | EPOLLRDHUP | EPOLLET, .data.ptr = c };

        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e) < 0)
                die("epoll_ctl");
}

/* Sends at most `max` bytes, or until the socket is full. */
static void fill(struct client *c, size_t max) {
        bool once = strncmp(kind, "half", 4) == 0;

        while (max > 0) {
                size_t n = text_len - c->at < max ? text_len - c->at : max;
                ssize_t sent = n ? send(c->fd, text + c->at, n, MSG_NOSIGNAL) : 0;

                if (n == 0 || (sent < 0 && (errno == EAGAIN || errno == EINTR))) {
                        note_full(c);
                        return;
                }
                if (sent < 0) {
                        note_end(c);
                        return;
                }
                c->at += (size_t) sent;
                max -= (size_t) sent;
                if (c->at == text_len && !once)
                        c->at = 0;
        }
}

/* Those whose sockets have room or are over, at most a burst of them. */
static void serve_events(int timeout_ms) {
        struct epoll_event events[BURST];
        int n = epoll_wait(epoll_fd, events, BURST, timeout_ms);

        for (int i = 0; i < n; i++) {
                struct client *c = events[i].data.ptr;

                if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                        note_end(c);
                else
                        fill(c, SIZE_MAX);
        }
}

/* Each sends its byte in its own moment of the second. */
static void drip(void) {
        for (size_t i = 0; i < n_clients && !over(); i++) {
                if (clients[i].fd >= 0)
                        fill(&clients[i], 1);
                rest(1000000000L / (long) n_clients);
                serve_events(0);
        }
}

static void come_and_go(void) {
        for (size_t i = 0; i < n_clients && !over(); i++) {
                close(clients[i].fd);
                open_one(&clients[i]);
                fill(&clients[i], SIZE_MAX);
                if (i % 8 == 0)
                        rest(REST_NS);
        }
}

static void come(void) {
        for (size_t i = 0; i < n_clients; i++) {
                open_one(&clients[i]);
                if (is("away"))
                        fill(&clients[i], SIZE_MAX);
                else
                        watch(&clients[i], is("idle") || is("slow") ? 0 : EPOLLOUT);
                if (is("idle") || is("slow") || is("away"))
                        note_full(&clients[i]);
                if (i % BURST == 0) {
                        serve_events(0);
                        rest(REST_NS);
                }
        }
        while (n_full < n_clients) {
                serve_events(1000);
                rest(REST_NS);
        }
}

int main(int argc, char **argv) {
        struct rlimit limit;

        if (argc != 4 || strlen(argv[1]) >= sizeof address.sun_path) {
                fprintf(stderr, "usage: crowd SOCKET KIND N\n");
                return 2;
        }
        strcpy(address.sun_path, argv[1]);
        kind = argv[2];
        n_clients = (size_t) atol(argv[3]);
        if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < n_clients + 64) {
                limit.rlim_cur = n_clients + 64;
                if (limit.rlim_max < limit.rlim_cur)
                        limit.rlim_max = limit.rlim_cur;
                if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
                        die("setrlimit");
        }
        if (setpriority(PRIO_PROCESS, 0, 19) < 0)
                die("setpriority");
        clients = calloc(n_clients, sizeof *clients);
        epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        if (!clients || epoll_fd < 0)
                die("crowd");
        make_text();
        come();
        puts("ready");
        fflush(stdout);
        while (!over()) {
                if (is("slow"))
                        drip();
                else if (is("away"))
                        come_and_go();
                else {
                        serve_events(50);
                        rest(REST_NS);
                }
        }
        printf("%zu ended\n", n_ended);
        return 0;
}
