/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions of a whole daemon, embedded bus and JSON storage included, on a real loop, fed with anything. It must not crash; whatever it
 * sends is a frame that holds a message of the protocol; a request is answered once, with its own id, and a notification never.
 *
 * The core lives across inputs and is made anew now and then, so that a run costs what its requests cost. Two clients are connected, so
 * that what one publishes the other is given.
 *
 * The input is pieces (pieces.h): `f` a frame of the first client, `g` of the second; `r` raw bytes, `b` raw bytes one at a time (both end
 * the counting of answers: what they are is not known); `m` a frame of the first client many times at once (its first byte says how many),
 * `q` it stops reading, or goes on, `w` nobody waits for one that does not read or is slow to write (these end the counting too); `t` turns
 * until all is answered; `h` the first client closes its side, `c` it goes and comes again; `z` has an allocation of the loop's thread
 * fail, which ends the counting, `s` ends the daemon and starts it anew with an allocation failing, and `e` ends it, and with it the input.
 * In frames $S is the newest subscription, $D the newest delivery, $T the newest task id. An input that begins with another byte is one
 * frame.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "../../daemon/core.h"
#include "../../daemon/log.h"
#include "../../daemon/session.h"
#include "../../proto/frame.h"
#include "../../proto/task.h"
#include "folder.h"
#include "memory.h"
#include "pieces.h"

enum {
        CLIENTS = 2,
        WANTED_MAX = 512,
        INPUTS_A_CORE = 500,
        PATIENCE_TICKS = 500,
        TICK_MS = 20,
        FRAME_MAX = 1 << 20,
        STALLED_MS = 5000,
        SLOW_MS = 30000
};

static struct om_loop *loop;
static struct om_core *core;
static struct event *ticker;
static unsigned ticks, inputs;
static bool flag;

/* An answer that is owed. */
struct wanted {
        char id[OM_RPC_ID_MAX + 1];
        bool may_wait; /* it waits for something that may not come */
};

static struct client {
        int fd;
        bool shut;     /* it says nothing more */
        bool deaf;     /* it reads nothing for now */
        bool counting; /* every answer is accounted for */
        struct wanted wanted[WANTED_MAX];
        unsigned n_wanted;
        struct om_buf heard;
} clients[CLIENTS];

static bool starved; /* an allocation may fail in this input, and a request with it */

static char subscription[24], delivery[24], task_id[OM_NAME_MAX + 1];

/* -- the core --------------------------------------------------------------------------------------------------------------- */

static void raise_flag(struct om_post *post) { flag = true; }
static struct om_post flag_post = { .fn = raise_flag };

static void run_until_flag(void) {
        for (ticks = 0; !flag; om_loop_run_once(loop, true))
                MUST(ticks < PATIENCE_TICKS);
        flag = false;
}

static void on_tick(evutil_socket_t fd, short what, void *arg) { ticks++; }

static char bus_url[128], store_url[128];
static struct om_settings settings = { .event_bus_url = bus_url,
        .storage_url = store_url,
        .max_connections = 100,
        .max_frame_bytes = FRAME_MAX,
        .prefetch = 10,
        .dlq_retry_limit = 1,
        .reclaim_idle_ms = 180000,
        .retry_backoff_ms = 1,
        .retry_backoff_max_ms = 2,
        .result_ttl_ms = 86400000,
        .idempotency_window_ms = 86400000,
        .publish_timeout_ms = 5000,
        .call_timeout_ms = 5000,
        .stop_grace_ms = 0,
        .stalled_client_ms = STALLED_MS,
        .session_output_bytes = 64 << 10, /* soon above */
        .slow_client_ms = SLOW_MS,
        .session_total_bytes = 256 << 20,
        .metrics_interval_ms = 3600000 };

/* om_core_stop() has been called. */
static void core_end_stopped(void) {
        run_until_flag();
        om_core_free(core);
        event_free(ticker);
        om_loop_free(loop);
        core = NULL;
        fuzz_folder_empty();
}

static void core_end(void) {
        if (!core)
                return;
        om_core_stop(core, &flag_post);
        core_end_stopped();
}

/* With the n-th allocation of the start failing; 0: none. What cannot start then starts the next time. */
static void core_start(unsigned n) {
        static const struct timeval tick = { 0, TICK_MS * 1000 };
        struct om_error e = OM_ERROR_INIT;
        int r;

        fuzz_folder_make();
        snprintf(bus_url, sizeof bus_url, "local:%s/bus?durability=memory", fuzz_folder);
        snprintf(store_url, sizeof store_url, "json:%s/store?durability=memory", fuzz_folder);
        om_log_open(OM_LOG_STDERR, OM_LOG_ERROR);
        MUST(om_loop_new(&loop, fuzz_folder, &e) == 0);
        ticker = event_new(om_loop_base(loop), -1, EV_PERSIST, on_tick, NULL);
        MUST(ticker && event_add(ticker, &tick) == 0);
        fuzz_fail_allocation(n);
        r = om_core_new(loop, &settings, &flag_post, &core, &e);
        fuzz_fail_allocation(0);
        if (r < 0 && n) {
                MUST(e.message[0]);
                r = om_core_new(loop, &settings, &flag_post, &core, &e);
        }
        MUST(r == 0);
        run_until_flag();
}

/* -- what the daemon says ---------------------------------------------------------------------------------------------------- */

/* Of several with this id one that does not wait: the other may have no answer for long. */
static void answered(struct client *c, struct om_span id) {
        unsigned at = c->n_wanted;

        for (unsigned i = 0; i < c->n_wanted; i++)
                if (om_span_is(id, c->wanted[i].id) && (at == c->n_wanted || c->wanted[at].may_wait))
                        at = i;
        if (at < c->n_wanted)
                c->wanted[at] = c->wanted[--c->n_wanted];
        else
                MUST(!c->counting); /* an answer to nothing, or a second one */
}

/* The number or the text behind the last `name` in a body, for later frames. */
static void pick(struct om_span body, const char *name, char *out, size_t size) {
        const char *at = memmem(body.p, body.len, name, strlen(name)), *end = body.p + body.len;
        size_t n = 0;

        if (!at)
                return;
        at += strlen(name);
        while (at + n < end && n < size - 1 && strchr("0123456789abcdef-", at[n]) && at[n])
                n++;
        if (n == 0)
                return;
        memcpy(out, at, n);
        out[n] = '\0';
}

static void hear_body(struct client *c, struct om_span body) {
        struct om_error e = OM_ERROR_INIT;
        struct om_rpc rpc;

        MUST(om_rpc_parse_sent(body, &rpc, &e) == 0 && rpc.type != OM_RPC_REQUEST);
        pick(body, "\"subscription\":", subscription, sizeof subscription);
        pick(body, "\"delivery\":", delivery, sizeof delivery);
        if (rpc.type != OM_RPC_NOTIFICATION) {
                pick(body, "\"id\":\"", task_id, sizeof task_id);
                answered(c, rpc.id.p ? rpc.id : OM_SPAN("null"));
        }
}

static void hear(struct client *c) {
        struct om_error e = OM_ERROR_INIT;
        struct om_span body;
        size_t at = 0;
        ssize_t n;
        int r = 0;

        while (c->fd >= 0 && !c->deaf && (n = recv(c->fd, om_buf_reserve(&c->heard, 1 << 16), 1 << 16, MSG_DONTWAIT)) > 0)
                c->heard.len += (size_t) n;
        while (at < c->heard.len && (r = om_frame_peek(c->heard.data + at, c->heard.len - at, 17 << 20, &body, &e)) == 1) {
                hear_body(c, body);
                at += OM_FRAME_HEADER + body.len;
        }
        MUST(r >= 0);
        om_buf_consume(&c->heard, at);
}

/* -- what the clients say ------------------------------------------------------------------------------------------------------- */

static unsigned fail_at; /* only what the daemon does runs out of memory */

static void connect_client(struct client *c) {
        struct om_session *s;
        int fds[2], small = 16 << 10, r;

        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
        MUST(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0); /* soon full */
        fuzz_fail_allocation(fail_at);
        r = om_session_new(core, fds[0], &s);
        fail_at = fuzz_fail_allocation(0);
        MUST(r == 0 || (r == -ENOMEM && starved));
        c->fd = fds[1];
        c->counting = !starved;
        c->deaf = false;
        c->shut = r < 0;
        c->n_wanted = 0;
        om_buf_clear(&c->heard);
}

static void close_client(struct client *c) {
        if (c->fd >= 0)
                close(c->fd);
        c->fd = -1;
        c->n_wanted = 0;
}

static void turn(bool block) {
        fuzz_fail_allocation(fail_at);
        om_loop_run_once(loop, block);
        fail_at = fuzz_fail_allocation(0);
        for (int i = 0; i < CLIENTS; i++)
                hear(&clients[i]);
}

static void send_bytes(struct client *c, const char *p, size_t n) {
        for (ticks = 0; n > 0 && c->fd >= 0;) {
                ssize_t sent = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (sent < 0 && errno != EAGAIN)
                        return; /* it has closed the connection, as it may after raw bytes */
                if (sent < 0)
                        turn(true);
                MUST(ticks < PATIENCE_TICKS);
                p += sent > 0 ? sent : 0;
                n -= sent > 0 ? (size_t) sent : 0;
        }
}

/* What must come for this body, by the same reading that the session uses; a request is told from what is none by it. */
static void want(struct client *c, struct om_span body) {
        struct om_error e = OM_ERROR_INIT;
        struct om_rpc rpc;
        int r = om_rpc_parse(body, &rpc, &e);
        struct om_span id = rpc.id.p ? rpc.id : OM_SPAN("null");
        struct wanted *w = &c->wanted[c->n_wanted];

        if (r == 0 ? rpc.type == OM_RPC_NOTIFICATION : e.code == OM_CODE_PARAMS && !rpc.id.p)
                return;
        if (c->n_wanted == WANTED_MAX) {
                c->counting = false;
                return;
        }
        snprintf(w->id, sizeof w->id, "%.*s", OM_PRI(id));
        w->may_wait = r == 0 && om_span_is(rpc.method, "task.get");
        c->n_wanted++;
}

/* $S, $D and $T take what was heard last. */
static void put_known(struct om_buf *b, struct om_span text) {
        for (size_t i = 0; i < text.len; i++) {
                char next = i + 1 < text.len && text.p[i] == '$' ? text.p[i + 1] : 0;

                if (next == 'S' || next == 'D' || next == 'T') {
                        om_buf_puts(b, next == 'S' ? subscription : next == 'D' ? delivery : task_id);
                        i++;
                } else {
                        om_buf_putc(b, text.p[i]);
                }
        }
}

static void send_frame(struct client *c, struct om_span text) {
        struct om_buf b = OM_BUF_INIT;
        size_t mark = om_frame_begin(&b);

        hear(c);
        put_known(&b, text);
        if (b.len > OM_FRAME_HEADER && om_frame_end(&b, mark, FRAME_MAX) == 0) {
                want(c, (struct om_span){ b.data + OM_FRAME_HEADER, b.len - OM_FRAME_HEADER });
                send_bytes(c, b.data, b.len);
        }
        om_buf_deinit(&b);
}

/* As many as the socket takes: where the daemon reads no further, the last may be cut off. */
static void send_many(struct client *c, struct om_span text) {
        unsigned n = text.len > 1 ? (unsigned) (text.p[0] & 127) * 16 + 2 : 0;
        struct om_buf b = OM_BUF_INIT;

        c->counting = false;
        for (; n > 0 && b.len < FRAME_MAX; n--) {
                size_t mark = om_frame_begin(&b);

                put_known(&b, (struct om_span){ text.p + 1, text.len - 1 });
                if (om_frame_end(&b, mark, FRAME_MAX) < 0) { /* $D before there is one: nothing */
                        b.len = mark;
                        break;
                }
        }
        if (b.len > 0 && send(c->fd, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t) b.len)
                c->shut = shutdown(c->fd, SHUT_WR) == 0;
        om_buf_deinit(&b);
        turn(false);
}

static bool all_answered(void) {
        for (int i = 0; i < CLIENTS; i++)
                for (unsigned k = 0; k < clients[i].n_wanted; k++)
                        if (clients[i].counting && !clients[i].wanted[k].may_wait)
                                return false;
        return true;
}

static bool hurried; /* the daemon waits for nobody */

static void settle_down(void) {
        for (ticks = 0; !all_answered() || (hurried && ticks < 2); turn(true))
                MUST(ticks < PATIENCE_TICKS); /* a request is not answered */
        for (int i = 0; i < 3; i++)
                turn(false);
}

static void stop_counting(void) {
        for (int i = 0; i < CLIENTS; i++)
                clients[i].counting = false;
}

static void connect_clients(void) {
        for (int i = 0; i < CLIENTS; i++)
                connect_client(&clients[i]);
}

static void close_clients(void) {
        for (int i = 0; i < CLIENTS; i++)
                close_client(&clients[i]);
}

/* The daemon ends with its clients there: they hear of it, and whoever comes now is turned away. */
static void end_daemon(void) {
        struct om_session *s;
        int fds[2];

        stop_counting();
        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
        om_core_stop(core, &flag_post);
        for (ticks = 0; ticks < 5 && !flag; turn(true))
                ; /* those that have nothing to wait for are gone by then */
        if (om_session_new(core, fds[0], &s) == 0)
                om_session_close(s, "too late");
        close(fds[1]);
        close_clients();
        core_end_stopped();
}

static void act(uint8_t letter, struct om_span text) {
        struct client *c = &clients[letter == 'g'];

        if (c->fd < 0 || (c->shut && strchr("fgrbhm", letter)))
                return;
        switch (letter) {
        case 'f':
        case 'g':
                send_frame(c, text);
                return;
        case 'r':
                c->counting = false;
                send_bytes(c, text.p, text.len);
                turn(false);
                return;
        case 'b':
                c->counting = false;
                for (size_t i = 0; i < text.len && i < 4096; i++) {
                        send_bytes(c, text.p + i, 1);
                        turn(false);
                }
                return;
        case 'h':
                c->shut = shutdown(c->fd, SHUT_WR) == 0;
                return;
        case 'c':
                close_client(c);
                turn(false);
                connect_client(c);
                return;
        case 'm':
                send_many(c, text);
                return;
        case 'q':
                c->counting = false;
                c->deaf = !c->deaf;
                return;
        case 'w':
                stop_counting();
                hurried = true;
                settings.stalled_client_ms = settings.slow_client_ms = 1;
                return;
        case 'e':
                end_daemon();
                return;
        case 's':
                end_daemon();
                core_start(text.len ? (uint8_t) text.p[0] + 1u : 1);
                connect_clients();
                return;
        case 'z':
                starved = true;
                stop_counting();
                fail_at = text.len ? (unsigned) (text.p[0] & 63) + 1 : 1;
                return;
        default:
                settle_down();
        }
}

static void start_input(void) {
        hurried = false;
        fail_at = 0;
        settings.stalled_client_ms = STALLED_MS;
        settings.slow_client_ms = SLOW_MS;
        if (inputs++ % INPUTS_A_CORE == 0 || !core) {
                core_end();
                core_start(0);
                if (inputs == 1)
                        atexit(core_end); /* before the folder's, which was made first */
        }
        starved = false;
        strcpy(subscription, "1");
        strcpy(delivery, "1");
        strcpy(task_id, "11111111-2222-4333-8444-555555555555");
        connect_clients();
}

static void end_input(void) {
        for (int i = 0; fail_at && i < 5; i++)
                turn(false);
        fail_at = 0;
        settle_down();
        close_clients();
        for (ticks = 0; core->n_sessions > 0; om_loop_run_once(loop, core->n_sessions > 0))
                MUST(ticks < PATIENCE_TICKS); /* a session that stays */
        om_loop_run_once(loop, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct pieces pieces = pieces_of(data, size);
        struct om_span text;

        start_input();
        if (size && data[0] != 0xff)
                send_frame(&clients[0], (struct om_span){ (const char *) data, size });
        for (uint8_t letter; data && size && data[0] == 0xff && core && (letter = pieces_next(&pieces, &text));)
                act(letter, text);
        if (core)
                end_input();
        return 0;
}
