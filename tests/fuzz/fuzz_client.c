/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libomniclient against a daemon that sends anything. It must not crash, leak, hang or spin; what it sends is always sound; every callback
 * that it took is called exactly once.
 *
 * The system calls are the seam: this file has its own connect(2), which makes a socket pair and keeps the daemon's end; its own
 * epoll_wait(2) and poll(2), in which the daemon takes its next step, and in which time passes when nothing else does; and its own clock.
 * So a blocking call runs against the script in one thread, a timeout of 30 s costs nothing, and the same input always does the same.
 *
 * The input is pieces (pieces.h). Small letters are steps of the daemon:
 *   m answers hello as a daemon does · f a frame · r raw bytes · a answers the oldest request with this result, e with this error object ·
 *   c closes · q reads nothing from now on, until the client comes again · w waits a turn
 *   n lets one attempt to connect fail: as if nobody was there, or, by its first byte, with no right to (a), no room for it (b), no
 *     descriptor left (s), or none to watch (w)
 * Capital letters are the program that uses the library; see act(). One that stands first may be V, the client's options; see start().
 * Without pieces all of it is one frame, sent to a client with an agent.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../client/c/omniclient.h"
#include "../../proto/frame.h"
#include "../../proto/rpc.h"
#include "fuzz.h"
#include "memory.h"
#include "pieces.h"

enum { HELD_MAX = 64, AGENTS_MAX = 8, IDS_MAX = 256, WAITS_MAX = 20000 };

static struct pieces script;
static bool virtual; /* the client is running: time and the daemon are ours */
static int64_t clock_ms;
static unsigned waits, idle;

static omni_client *client;
static omni_agent *agents[AGENTS_MAX];
static unsigned n_agents;
static omni_task *held[HELD_MAX];
static unsigned n_held;
static int handler_mode;
static long callbacks_due; /* promised and not called yet */

/* -- the daemon ----------------------------------------------------------------------------------------------------------- */

static int daemon_fd = -1;
static char refuse; /* the next attempt, and how */
static bool deaf;   /* what the client sends stays in the socket */
static struct om_buf heard;
static uint64_t ids[IDS_MAX]; /* of requests not answered yet */
static unsigned n_ids;

static void daemon_close(void) {
        if (daemon_fd >= 0)
                close(daemon_fd);
        daemon_fd = -1;
        n_ids = 0;
        om_buf_clear(&heard);
}

static void daemon_send(const void *data, size_t n) {
        if (daemon_fd >= 0 && send(daemon_fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
                daemon_close();
}

static void daemon_frame(struct om_span body) {
        struct om_buf b = OM_BUF_INIT;
        uint32_t len = htonl((uint32_t) body.len);

        om_buf_put(&b, &len, 4);
        om_buf_put_span(&b, body);
        daemon_send(b.data, b.len);
        om_buf_deinit(&b);
}

static void daemon_answer(const char *member, struct om_span text) {
        struct om_buf b = OM_BUF_INIT;

        if (n_ids == 0)
                return;
        om_buf_printf(&b, "{\"jsonrpc\":\"2.0\",\"id\":%llu,\"%s\":", (unsigned long long) ids[0], member);
        memmove(ids, ids + 1, --n_ids * sizeof *ids);
        om_buf_put_span(&b, text.len ? text : OM_SPAN("{}"));
        om_buf_putc(&b, '}');
        daemon_frame(om_buf_span(&b));
        om_buf_deinit(&b);
}

/* What the client says must be sound, whatever it was told before. */
static void daemon_hear(void) {
        struct om_error e = OM_ERROR_INIT;
        struct om_span body;
        struct om_rpc rpc;
        size_t at = 0;
        ssize_t n;

        while (daemon_fd >= 0 && !deaf && (n = recv(daemon_fd, om_buf_reserve(&heard, 1 << 16), 1 << 16, MSG_DONTWAIT)) > 0)
                heard.len += (size_t) n;
        while (at < heard.len && om_frame_peek(heard.data + at, heard.len - at, SIZE_MAX / 2, &body, &e) == 1) {
                MUST(om_rpc_parse(body, &rpc, &e) == 0 && (rpc.type == OM_RPC_REQUEST || rpc.type == OM_RPC_NOTIFICATION));
                if (rpc.type == OM_RPC_REQUEST && n_ids < IDS_MAX)
                        ids[n_ids++] = strtoull(rpc.id.p, NULL, 10);
                at += OM_FRAME_HEADER + body.len;
        }
        om_buf_consume(&heard, at);
}

static bool is_daemons(uint8_t letter) { return 'a' <= letter && letter <= 'z'; }
static uint8_t next_letter(void) { return script.end - script.p < 2 ? 0 : script.p[1]; }

static void daemon_say(uint8_t letter, struct om_span text) {
        if (letter == 'm')
                daemon_answer("result", OM_SPAN("{\"protocol\":1,\"limits\":{\"frame_bytes\":1048576,\"batch\":1000,\"prefetch\":100}}"));
        else if (letter == 'f')
                daemon_frame(text);
        else if (letter == 'r')
                daemon_send(text.p, text.len);
        else if (letter == 'a')
                daemon_answer("result", text);
        else if (letter == 'e')
                daemon_answer("error", text);
        else if (letter == 'c')
                daemon_close();
        else if (letter == 'q')
                deaf = true;
        else if (letter == 'n')
                refuse = text.len && text.p[0] ? text.p[0] : 'n';
}

static void daemon_step(void) {
        struct om_span text = OM_SPAN_NONE;
        uint8_t letter = next_letter();
        unsigned left = fuzz_fail_allocation(0); /* the daemon has memory */

        daemon_hear();
        if (is_daemons(letter)) {
                pieces_next(&script, &text);
                daemon_say(letter, text);
        }
        fuzz_fail_allocation(left);
}

/* -- the system, as the client sees it -------------------------------------------------------------------------------------- */

/* Whether the attempt fails in this way. */
static bool refused(char way) {
        if (!virtual || refuse != way)
                return false;
        refuse = 0;
        return true;
}

int socket(int domain, int type, int protocol) {
        if (refused('s')) {
                errno = EMFILE;
                return -1;
        }
        return (int) syscall(SYS_socket, domain, type, protocol);
}

int epoll_ctl(int fd, int op, int of, struct epoll_event *event) {
        if (op == EPOLL_CTL_ADD && refused('w')) {
                errno = ENOSPC;
                return -1;
        }
        return (int) syscall(SYS_epoll_ctl, fd, op, of, event);
}

/* Where the library looks for a socket there is one. */
int access(const char *path, int mode) { return virtual ? 0 : (int) syscall(SYS_access, path, mode); }

int connect(int fd, __CONST_SOCKADDR_ARG address, socklen_t len) {
        int pair[2], small = 1; /* the least that the system has */

        if (!virtual)
                return (int) syscall(SYS_connect, fd, address, len);
        daemon_close();
        deaf = false;
        if (refuse && refuse != 'w') {
                errno = refuse == 'a' ? EACCES : refuse == 'b' ? EAGAIN : ECONNREFUSED;
                refuse = 0;
                return -1;
        }
        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
        MUST(dup3(pair[0], fd, O_CLOEXEC) == fd);
        close(pair[0]);
        MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
        daemon_fd = pair[1];
        return 0;
}

int clock_gettime(clockid_t id, struct timespec *ret) {
        if (!virtual)
                return (int) syscall(SYS_clock_gettime, id, ret);
        *ret = (struct timespec){ .tv_sec = clock_ms / 1000, .tv_nsec = clock_ms % 1000 * 1000000 };
        return 0;
}

int epoll_wait(int fd, struct epoll_event *events, int n, int timeout) {
        int r;

        if (!virtual)
                return (int) syscall(SYS_epoll_pwait, fd, events, n, timeout, NULL, 8);
        MUST(++waits < WAITS_MAX); /* it spins */
        daemon_step();
        r = (int) syscall(SYS_epoll_pwait, fd, events, n, 0, NULL, 8);
        if (r != 0 || timeout == 0)
                return r;
        clock_ms += timeout > 0 ? timeout : 60000;
        if (is_daemons(next_letter()))
                return 0;
        /* Nothing comes any more. What waits for ever loses its connection; what has timers without end is stopped at last. */
        if (timeout < 0)
                daemon_close();
        if (++idle % (timeout < 0 ? 4 : 300) == 0)
                omni_stop(client);
        return 0;
}

int poll(struct pollfd *fds, nfds_t n, int timeout) {
        int r;

        if (!virtual)
                return (int) syscall(SYS_poll, fds, n, timeout);
        MUST(++waits < WAITS_MAX);
        daemon_step();
        r = (int) syscall(SYS_poll, fds, n, 0);
        if (r == 0)
                clock_ms += timeout;
        return r;
}

/* -- the program ----------------------------------------------------------------------------------------------------------------- */

static void on_published(omni_client *c, int status, const char *id, const char *error, void *user) {
        callbacks_due--;
        MUST(status < 0 ? error && *error : id && *id);
}
static void on_settled(omni_client *c, int status, const char *error, void *user) {
        callbacks_due--;
        MUST(status == 0 || (status < 0 && error && *error));
}
static void on_reply(omni_client *c, int status, const char *result, size_t len, const char *error, void *user) {
        struct om_error e = OM_ERROR_INIT;

        callbacks_due--;
        if (status == 0)
                MUST(strlen(result) == len && om_json_check((struct om_span){ result, len }, OM_DEPTH_SENT_MAX, &e) == 0);
        else
                MUST(status < 0 && error && *error);
}
static void on_notification(omni_client *c, const char *method, const char *params, size_t len, void *user) {
        struct om_error e = OM_ERROR_INIT;

        MUST(strlen(params) == len && om_json_check((struct om_span){ params, len }, OM_DEPTH_SENT_MAX, &e) == 0);
}
static void on_connection(omni_client *c, int up, const char *reason, void *user) { MUST(up ? !*reason : *reason != 0); }

/* Everything that a task says of itself. */
static void look_at(const omni_task *t) {
        const char *texts[] = { omni_task_id(t), omni_task_topic(t), omni_task_key(t), omni_task_reply_to(t), omni_task_correlation_id(t),
                omni_task_causation_id(t), omni_task_source(t), omni_task_tenant_id(t), omni_task_traceparent(t), omni_task_headers(t),
                omni_task_webhook(t) };
        struct om_error e = OM_ERROR_INIT;
        size_t total = 0, len;
        const char *json = omni_task_json(t, &len);

        MUST(om_json_check((struct om_span){ json, len }, OM_DEPTH_SENT_MAX, &e) == 0);
        const char *content = omni_task_content(t, &len);
        MUST(strlen(content) == len && om_json_check((struct om_span){ content, len }, OM_DEPTH_SENT_MAX, &e) == 0);
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
                total += texts[i] ? strlen(texts[i]) : 0;
        MUST(total < 1 << 24 && texts[0]);
        MUST(omni_task_attempt(t) >= 0 && omni_task_priority(t) >= 0 && omni_task_created_at(t) >= 0);
        omni_task_lost(t);
}

static void drop(omni_task *t) {
        for (unsigned i = 0; i < n_held; i++)
                if (held[i] == t)
                        held[i--] = held[--n_held];
}

static void unregister(omni_agent *a) {
        for (unsigned i = 0; i < n_held; i++)
                if (omni_task_agent(held[i]) == a)
                        held[i--] = held[--n_held];
        for (unsigned i = 0; i < n_agents; i++)
                if (agents[i] == a)
                        agents[i--] = agents[--n_agents];
        omni_agent_unregister(a);
}

static void handle(omni_agent *a, omni_task *t, void *user) {
        char id[OMNI_ID_SIZE];

        look_at(t);
        MUST(omni_task_agent(t) == a && omni_agent_client(a) == client && strlen(omni_agent_group(a)) > 6);
        switch (handler_mode) {
        case 1:
                omni_task_ack(t, omni_task_content(t, NULL), OMNI_STR);
                return;
        case 2:
                omni_task_fail(t, omni_task_topic(t), "type", 5, OMNI_FAIL_NO_RETRY);
                return;
        case 3:
                omni_publish_json(client, "next", omni_task_content(t, NULL), id);
                break;
        case 4:
                unregister(a); /* the task goes with it */
                return;
        case 5:
                omni_call(client, "health", NULL, NULL, NULL);
                break;
        case 6:
                omni_task_extend(t);
                break;
        case 7:
                MUST(omni_run_once(client, 0) == -EBUSY);
                omni_free(client); /* does nothing here */
                omni_stop(client);
                break;
        }
        if (n_held < HELD_MAX)
                held[n_held++] = t;
        else
                omni_task_fail(t, "too many", NULL, -1, 0);
}

/* The piece up to a newline, and what follows it, each zero-terminated in `a`. */
static const char *first_line(struct om_arena *a, struct om_span text, const char **rest) {
        const char *end = text.len ? memchr(text.p, '\n', text.len) : NULL;
        size_t n = end ? (size_t) (end - text.p) : text.len;

        *rest = end ? om_arena_copy(a, (struct om_span){ end + 1, text.len - n - 1 }).p : NULL;
        return om_arena_copy(a, (struct om_span){ text.p, n }).p;
}

enum { WIDE = 70000 }; /* bytes: more than an error's text may have, less than a batch */

/* A JSON string of WIDE bytes or a little more: the text again and again, without what a string may not have in it. */
static char *wide(struct om_span text) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_putc(&b, '"');
        do
                om_buf_json_span(&b, text.len ? text : OM_SPAN("x"));
        while (b.len < WIDE && om_buf_ok(&b));
        MUST(om_buf_ok(&b));
        for (size_t i = 1; i < b.len; i++) /* of each piece's own quotes */
                b.data[i] = b.data[i] == '"' || b.data[i] == '\\' ? ' ' : b.data[i];
        om_buf_put(&b, "\"", 2);
        return b.data;
}

/* What a program must not do. */
static void publish_wrongly(uint8_t letter) {
        omni_publish_options small = { .size = offsetof(omni_publish_options, content) };
        omni_publish_result results[1];
        char id[OMNI_ID_SIZE];

        if (letter == 'P') {
                small.topic = "t";
                MUST(omni_publish_async(client, &small, on_published, NULL) < 0);
                return;
        }
        MUST(omni_publish(client, NULL, id) == -EINVAL);
        MUST(omni_publish_many(client, NULL, 1, results) == -EINVAL && omni_publish_many(client, NULL, 0, results) == 0);
}

static void publish(uint8_t letter, struct om_span text, const char *line, const char *rest) {
        omni_publish_options o = OMNI_PUBLISH_OPTIONS_INIT, many[3];
        omni_publish_result results[3];
        char id[OMNI_ID_SIZE];

        if (text.len == 0) {
                publish_wrongly(letter);
                return;
        }
        o.topic = rest ? line : "t";
        o.content = rest ? rest : line;
        if (text.len % 2)
                o.key = o.idempotency_key = o.source = o.topic;
        if (text.len % 3 == 0) {
                o.id = o.reply_to = o.topic;
                o.webhook = o.headers = line;
                o.ttl_ms = o.delay_ms = (int64_t) text.len;
        }
        if (letter == 'P' || letter == 'W') {
                if (omni_publish_async(client, &o, on_published, NULL) == 0)
                        callbacks_due++;
                return;
        }
        if (letter == 'Q') {
                omni_publish(client, &o, id);
                return;
        }
        for (int i = 0; i < 3; i++)
                many[i] = o;
        many[1].content = "{}";
        many[2].priority = (int) (text.len % 12);
        omni_publish_many(client, many, 3, results);
        for (int i = 0; i < 3; i++)
                MUST(results[i].status < 0 ? results[i].error[0] : results[i].id[0]);
}

static void settle(uint8_t letter, struct om_span text) {
        omni_publish_options output = OMNI_PUBLISH_OPTIONS_INIT;
        omni_task *t = n_held ? held[0] : NULL;

        if (!t)
                return;
        look_at(t);
        if (letter == 'X') {
                omni_task_extend(t);
                return;
        }
        drop(t);
        if (letter == 'K') {
                omni_task_ack(t, text.len ? text.p : NULL, text.len);
        } else if (letter == 'O') {
                output.topic = "out";
                output.content = text.p;
                output.content_len = text.len;
                if (omni_task_ack_publish(t, "1", OMNI_STR, &output, 1, on_settled, NULL) >= 0)
                        callbacks_due++;
        } else {
                omni_task_fail(t, text.len > WIDE ? text.p : text.len ? "no" : "", NULL, (int64_t) text.len, 0);
        }
}

static void add_agent(struct om_span text, const char *line, const char *rest) {
        omni_agent_options o = OMNI_AGENT_OPTIONS_INIT;
        omni_agent *agent;

        if (n_agents == AGENTS_MAX)
                return;
        o.topic = *line ? line : "greet";
        o.name = "greeter";
        o.config = rest;
        o.reclaim_idle_ms = (int64_t) (text.len % 4) * 3000;
        o.manual_extend = text.len % 8 == 7;
        if (text.len % 7 == 3) {
                o.prefetch = 3;
                o.dlq_retry_limit = 1;
                o.retry_backoff_ms = o.retry_backoff_max_ms = 10;
                o.start = *line == 'n' ? "new" : line;
                o.description = o.tools = o.worker = rest;
        }
        if (omni_agent_register(client, &o, handle, NULL, &agent) < 0) {
                MUST(*omni_strerror(client));
                return;
        }
        agents[n_agents++] = agent;
        MUST(strcmp(omni_agent_name(agent), o.name) == 0 && strcmp(omni_agent_topic(agent), o.topic) == 0);
}

/* One step of the program. */
static void act(uint8_t letter, struct om_span text) {
        struct om_arena arena = { 0 };
        unsigned left = fuzz_fail_allocation(0);
        const char *rest, *line = first_line(&arena, text, &rest);
        char *result = NULL, *large = memchr("WBI", letter, 3) ? wide(text) : NULL;

        fuzz_fail_allocation(left);

        switch (letter) {
        case 'A':
                add_agent(text, line, rest);
                break;
        case 'U':
                if (n_agents)
                        unregister(agents[n_agents - 1]);
                break;
        case 'P':
        case 'Q':
        case 'M':
                publish(letter, text, line, rest);
                break;
        case 'W': /* one of many bytes */
                publish(letter, text, "t", large);
                break;
        case 'K':
        case 'O':
        case 'F':
        case 'X':
                settle(letter, text);
                break;
        case 'B': /* fails with a long text, */
                settle('F', om_span_of(large));
                break;
        case 'I': /* is done with a large result */
                settle('K', om_span_of(large));
                break;
        case 'J': /* the daemon goes between two turns */
                daemon_close();
                break;
        case 'C':
                if (omni_call(client, line, rest, &result, NULL) < 0)
                        MUST(*omni_strerror(client));
                break;
        case 'D':
                if (omni_call_async(client, line, rest, on_reply, NULL) == 0)
                        callbacks_due++;
                break;
        case 'G':
                omni_result_get(client, line, rest, (int64_t) (text.len % 3) * 1000, &result, NULL);
                break;
        case 'H':
                handler_mode = text.len ? text.p[0] & 7 : 0;
                break;
        case 'L':
                omni_flush(client, 100);
                break;
        case 'N':
                omni_run_once(client, 50);
                break;
        case 'R':
                omni_run(client);
                break;
        case 'S':
                omni_stop(client);
                break;
        case 'T':
                clock_ms += (int64_t) text.len * 1000;
                break;
        case 'Y':
                omni_connect(client, 100);
                break;
        case 'Z': /* the memory is nearly full */
                fuzz_fail_allocation(text.len ? (unsigned) (text.p[0] & 63) + 1 : 1);
                break;
        default:
                for (unsigned i = 0; i < n_agents; i++)
                        MUST(omni_agent_active(agents[i]) || *omni_strerror(client));
                omni_wakeup(client);
        }
        free(result);
        free(large);
        om_arena_deinit(&arena);
}

/* The piece V: where the socket is said to be (e: in the environment, x: in the user's folder, d: nowhere, l: a path too long), and what
 * else is unlike the others (t: little may wait, u: nobody listens). */
static void choose(omni_client_options *o, struct om_span text) {
        static char path[200];

        memset(path, 'l', sizeof path - 1);
        for (size_t i = 0; i < text.len; i++)
                switch (text.p[i]) {
                case 'e':
                        setenv("OMNIDAEMON_SOCKET", "/nowhere", 1);
                        o->socket_path = NULL;
                        break;
                case 'x':
                        setenv("XDG_RUNTIME_DIR", "/nowhere", 1);
                        o->socket_path = NULL;
                        break;
                case 'd':
                        o->socket_path = NULL;
                        break;
                case 'l':
                        o->socket_path = path;
                        break;
                case 't':
                        o->pending_max = 2;
                        o->buffer_max = 300;
                        break;
                }
}

static void start(void) {
        omni_client_options o = OMNI_CLIENT_OPTIONS_INIT;
        struct om_span text = OM_SPAN_NONE;

        clock_ms = 1000000;
        waits = idle = 0;
        callbacks_due = 0;
        n_agents = n_held = 0;
        handler_mode = 0;
        refuse = 0;
        unsetenv("OMNIDAEMON_SOCKET");
        unsetenv("XDG_RUNTIME_DIR");
        o.socket_path = "/nowhere";
        o.client_name = "fuzz";
        o.buffer_max = 1 << 20;
        if (next_letter() == 'V') {
                pieces_next(&script, &text);
                choose(&o, text);
        }
        MUST(omni_new(&o, &client) == 0);
        if (!text.len || !memchr(text.p, 'u', text.len))
                omni_on_notification(client, on_notification, NULL);
        omni_on_connection(client, on_connection, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct om_buf whole = OM_BUF_INIT;
        struct om_span text;

        script = pieces_of(data, size);
        if (script.p == script.end) {
                om_buf_puts(&whole,
                        "\xff"
                        "Agreet\xffm\xff"
                        "a{\"subscription\":1}\xff"
                        "f");
                om_buf_put(&whole, data, size);
                om_buf_puts(&whole, "\xffN");
                script = pieces_of((const uint8_t *) whole.data, whole.len);
        }
        virtual = true;
        start();
        for (uint8_t letter; (letter = next_letter());) {
                const uint8_t *before = script.p;

                if (!is_daemons(letter)) {
                        letter = pieces_next(&script, &text);
                        act(letter, text);
                } else {
                        omni_process(client);
                }
                if (script.p == before)
                        pieces_next(&script, &text);
        }
        fuzz_fail_allocation(0);
        omni_run_once(client, 1000);
        omni_free(client);
        MUST(callbacks_due == 0);
        daemon_close();
        om_buf_deinit(&heard);
        om_buf_deinit(&whole);
        virtual = false;
        return 0;
}
