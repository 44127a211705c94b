/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection layer of Redis (backends/redis/conn.h) against servers that do what they are told: on the same loop, in this process, each
 * a listener and a function that answers commands. What a real server does is tested elsewhere; here are the things that it seldom does.
 */
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/redis/conn.h"
#include "../../daemon/loop.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

enum { ARGS_MAX = 16, SERVERS_MAX = 3 };

/* -- a server that does what it is told -------------------------------------------------------------------------------- */

struct fake;
struct peer {
        struct fake *server;
        struct bufferevent *bev;
        struct peer *next;
};
static struct peer *peers; /* as long as the test */
struct fake {
        struct evconnlistener *listener;
        uint16_t port;
        /* Answers one command: bytes, or NULL for silence. */
        const char *(*answer)(struct fake *f, struct peer *p, char **args, int n);
        int connections, commands;
        struct peer *last;
        bool silent;
};
static struct fake servers[SERVERS_MAX];
static struct om_loop *loop;
static char *folder;

/* The words of the greeting, which every answer function leaves to this. */
static const char *greeting(char **args) {
        if (strcmp(args[0], "CLIENT") == 0)
                return strcmp(args[1], "ID") == 0 ? ":7\r\n" : "+OK\r\n";
        if (strcmp(args[0], "PING") == 0)
                return "+PONG\r\n";
        if (strcmp(args[0], "SELECT") == 0 || strcmp(args[0], "AUTH") == 0)
                return "+OK\r\n";
        if (strcmp(args[0], "ROLE") == 0)
                return "*1\r\n$6\r\nmaster\r\n";
        return NULL;
}

/* One whole command off the front of the input; the number of its arguments, 0: not yet. */
static int take_command(struct evbuffer *in, char **args) {
        char *all = (char *) evbuffer_pullup(in, -1), *p = all, *end;
        size_t len = evbuffer_get_length(in);
        const char *last = len ? memrchr(all, '\n', len) : NULL; /* numbers are read up to the end of their line */
        int n;

        if (!last || all[0] != '*' || (n = (int) strtol(all + 1, NULL, 10)) > ARGS_MAX)
                return 0;
        p = memmem(p, len, "\r\n", 2);
        for (int i = 0; p && i < n; i++) {
                p += 2;
                if (p > last)
                        return 0;
                size_t size = strtoul(p + 1, &end, 10);
                if (p >= all + len || end + 2 + size + 2 > all + len)
                        return 0;
                args[i] = strndup(end + 2, size);
                p = end + 2 + size;
        }
        evbuffer_drain(in, (size_t) (p + 2 - all));
        return n;
}

static void peer_read(struct bufferevent *bev, void *ctx) {
        struct peer *p = ctx;
        struct fake *f = p->server;
        char *args[ARGS_MAX];
        int n;

        while (!f->silent && (n = take_command(bufferevent_get_input(bev), args)) > 0) {
                const char *answer = greeting(args);
                if (!answer) {
                        f->commands++;
                        answer = f->answer(f, p, args, n);
                }
                for (int i = 0; i < n; i++)
                        free(args[i]);
                if (answer)
                        evbuffer_add(bufferevent_get_output(bev), answer, strlen(answer));
                if (!p->bev)
                        return;
        }
}
static void peer_close(struct peer *p) {
        bufferevent_free(p->bev);
        p->bev = NULL;
        if (p->server->last == p)
                p->server->last = NULL;
}
static void peer_event(struct bufferevent *bev, short what, void *ctx) {
        struct peer *p = ctx;
        if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) && p->bev)
                peer_close(p);
}
static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *a, int len, void *ctx) {
        struct fake *f = ctx;
        struct peer *p = calloc(1, sizeof(*p));
        p->server = f;
        p->next = peers;
        peers = p;
        p->bev = bufferevent_socket_new(om_loop_base(loop), fd, BEV_OPT_CLOSE_ON_FREE);
        bufferevent_setcb(p->bev, peer_read, NULL, peer_event, p);
        bufferevent_enable(p->bev, EV_READ | EV_WRITE);
        f->connections++;
        f->last = p;
}

static struct fake *serve(int i, const char *(*answer)(struct fake *, struct peer *, char **, int) ) {
        struct fake *f = &servers[i];
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t len = sizeof(address);
        *f = (struct fake){ .answer = answer };
        f->listener = evconnlistener_new_bind(
                om_loop_base(loop), on_accept, f, LEV_OPT_CLOSE_ON_FREE, -1, (struct sockaddr *) &address, sizeof(address));
        ck_assert_ptr_nonnull(f->listener);
        getsockname(evconnlistener_get_fd(f->listener), (struct sockaddr *) &address, &len);
        f->port = ntohs(address.sin_port);
        return f;
}

/* -- a client ------------------------------------------------------------------------------------------------------------ */

struct settings {
        struct om_redis_settings redis;
};
static const struct om_option options[] = { OM_REDIS_OPTIONS(struct settings, redis), { .name = NULL } };
static struct settings settings;
static struct om_redis *redis;
static enum om_redis_state state;
static int n_states, n_ready, n_moved;
static struct om_error why;

static void on_state(void *ctx, enum om_redis_state now, const struct om_error *error) {
        state = now;
        n_states++;
        n_ready += now == OM_REDIS_READY;
        if (error)
                why = *error;
}
static void on_moved(void *ctx) { n_moved++; }
static const struct om_redis_events events = { .state = on_state, .moved = on_moved };

static void turn(void) { om_loop_run_once(loop, true); }
static void on_time(evutil_socket_t fd, short what, void *ctx) { *(bool *) ctx = true; }
static void rest(int ms) {
        bool over = false;
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };
        event_base_once(om_loop_base(loop), -1, EV_TIMEOUT, on_time, &over, &tv);
        while (!over)
                turn();
}

static int read_settings(const char *text, struct om_error *e) {
        struct om_url *url;
        memset(&settings, 0, sizeof(settings));
        int r = om_url_parse(text, &url, e);
        if (r < 0)
                return r;
        r = om_options_read(options, url, &settings, e);
        if (r == 0)
                r = om_redis_settings_take(&settings.redis, url, e);
        om_url_free(url);
        return r;
}

static void begin(void) {
        struct om_error e;
        folder = test_folder();
        ck_assert_int_eq(om_loop_new(&loop, folder, &e), 0);
        n_states = n_ready = n_moved = 0;
        why = (struct om_error) OM_ERROR_INIT;
        redis = NULL;
}
static void open_url(const char *text) {
        struct om_error e = OM_ERROR_INIT;
        ck_assert_msg(read_settings(text, &e) == 0, "%s", e.message);
        ck_assert_msg(om_redis_new(om_loop_host(loop), &settings.redis, &events, NULL, &redis, &e) == 0, "%s", e.message);
        ck_assert_int_eq(n_states, 0);
}
static void open_server(const struct fake *f, const char *parameters) {
        char url[200];
        snprintf(url, sizeof(url), "redis://127.0.0.1:%u%s", f->port, parameters);
        open_url(url);
}
static void await_ready(void) {
        while (state != OM_REDIS_READY || !n_ready)
                turn();
}
static void end(void) {
        om_redis_free(redis);
        rest(10); /* what is freed a turn later */
        om_redis_settings_free(&settings.redis);
        for (int i = 0; i < SERVERS_MAX; i++) {
                if (servers[i].listener)
                        evconnlistener_free(servers[i].listener);
                if (servers[i].last && servers[i].last->bev)
                        peer_close(servers[i].last);
                servers[i] = (struct fake){ 0 };
        }
        om_loop_free(loop);
        test_folder_remove(folder);
}

struct answer {
        int times, status, order;
        char text[sizeof(((struct om_error *) 0)->message)];
        int64_t integer;
        enum om_redis_type type;
};
static int order;
static void on_done(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct answer *a = ctx;
        ck_assert_int_eq(++a->times, 1);
        a->status = status;
        a->order = ++order;
        if (status < 0)
                snprintf(a->text, sizeof(a->text), "%s", error->message);
        else
                snprintf(a->text, sizeof(a->text), "%.*s", OM_PRI(reply->text));
        if (reply) {
                a->integer = reply->integer;
                a->type = reply->type;
        }
}
static int ask(struct answer *a, struct om_redis_cmd *c) {
        struct om_error e = OM_ERROR_INIT;
        *a = (struct answer){ 0 };
        int r = om_redis_send(redis, c, on_done, a, &e);
        ck_assert_int_eq(a->times, 0);
        if (r < 0)
                snprintf(a->text, sizeof(a->text), "%s", e.message);
        return r;
}
static struct om_redis_cmd *get(const char *key) {
        struct om_redis_cmd *c = om_redis_cmd_new("GET");
        om_redis_key(c, om_span_of(key));
        return c;
}
static void await(struct answer *a) {
        while (!a->times)
                turn();
}

/* -- answers ------------------------------------------------------------------------------------------------------------- */

static const char *echo(struct fake *f, struct peer *p, char **args, int n) {
        static char text[600];
        snprintf(text, sizeof(text), "$%zu\r\n%s\r\n", strlen(args[n - 1]), args[n - 1]);
        return text;
}

START_TEST(test_answers_come_in_order_and_once_each) {
        struct answer a[100];
        char key[20];
        begin();
        open_server(serve(0, echo), "");
        await_ready();
        for (int i = 0; i < 100; i++) {
                snprintf(key, sizeof(key), "k%d", i);
                ck_assert_int_eq(ask(&a[i], get(key)), 0);
        }
        ck_assert_uint_eq(om_redis_pending(redis), 100);
        await(&a[99]);
        for (int i = 0; i < 100; i++) {
                snprintf(key, sizeof(key), "k%d", i);
                ck_assert_str_eq(a[i].text, key);
                ck_assert(i == 0 || a[i].order == a[i - 1].order + 1);
        }
        ck_assert_uint_eq(om_redis_pending(redis), 0);
        end();
}
END_TEST

static const char *knows_no_script(struct fake *f, struct peer *p, char **args, int n) {
        return strcmp(args[0], "EVALSHA") == 0 ? "-NOSCRIPT No matching script.\r\n"
                : strcmp(args[0], "EVAL") == 0 && strcmp(args[1], "return 1") == 0 && strcmp(args[2], "1") == 0 ? "+whole\r\n"
                                                                                                                : "-ERR what?\r\n";
}

START_TEST(test_script_that_the_server_does_not_know_is_sent_whole) {
        static struct om_redis_script script = { .text = "return 1" };
        struct answer a;
        begin();
        open_server(serve(0, knows_no_script), "");
        await_ready();
        struct om_redis_cmd *c = om_redis_script_new(&script, 1);
        om_redis_key(c, OM_SPAN("k"));
        ck_assert_int_eq(ask(&a, c), 0);
        await(&a);
        ck_assert_str_eq(a.text, "whole");
        ck_assert_str_eq(script.sha, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"); /* sha1sum */
        end();
}
END_TEST

static const char *errors[] = { "NOAUTH Authentication required.", "WRONGPASS invalid", "NOPERM this user may not", "READONLY You can't",
        "LOADING Redis is loading", "OOM command not allowed", "WRONGTYPE Operation against", "MISCONF Redis is configured",
        "NOGROUP No such", "BUSYGROUP Consumer", "ERR DB index is out of range", "ERR something" };
static const int statuses[] = { -EACCES, -EACCES, -EACCES, -EAGAIN, -EAGAIN, -ENOBUFS, -EINVAL, -EAGAIN, -ENOENT, -EEXIST, -EINVAL, -EIO };
static const char *const helps[] = { "password", "password", "may not", "replica", "loading", "maxmemory", "another", "disk", "No such",
        "Consumer", "db", "something" };
static const char *fails(struct fake *f, struct peer *p, char **args, int n) {
        static char text[100];
        snprintf(text, sizeof(text), "-%s\r\n", errors[atoi(args[1])]);
        return text;
}

START_TEST(test_error_says_what_to_mend) {
        struct answer a;
        char number[4];
        begin();
        open_server(serve(0, fails), "");
        await_ready();
        for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
                snprintf(number, sizeof(number), "%zu", i);
                ck_assert_int_eq(ask(&a, get(number)), 0);
                await(&a);
                ck_assert_msg(a.status == statuses[i], "%s: %d", errors[i], a.status);
                ck_assert_msg(strstr(a.text, helps[i]), "%s: %s", errors[i], a.text);
                ck_assert_int_eq(a.type, OM_REDIS_ERROR);
        }
        end();
}
END_TEST

/* -- silence ------------------------------------------------------------------------------------------------------------- */

START_TEST(test_silent_server_fails_the_hurried_and_keeps_the_patient) {
        struct answer hurried, patient, refused, later;
        begin();
        struct fake *f = serve(0, echo);
        open_server(f, "?answer_timeout_ms=100&connect_timeout_ms=3000");
        await_ready();
        f->silent = true;
        ck_assert_int_eq(ask(&patient, get("patient")), 0);
        struct om_redis_cmd *c = get("hurried");
        om_redis_hurry(c);
        ck_assert_int_eq(ask(&hurried, c), 0);
        int64_t begun = om_clock_ms();
        await(&hurried);
        ck_assert_int_eq(hurried.status, -EAGAIN);
        ck_assert_ptr_nonnull(strstr(hurried.text, "answer_timeout_ms"));
        ck_assert_int_ge(om_clock_ms() - begun, 90);
        ck_assert_int_eq(state, OM_REDIS_CONNECTING);
        ck_assert_int_eq(ask(&refused, get("refused")), -EAGAIN);
        ck_assert_int_eq(patient.times, 0);
        f->silent = false;
        peer_read(f->last->bev, f->last);
        await(&patient);
        ck_assert_str_eq(patient.text, "patient");
        while (state != OM_REDIS_READY)
                turn();
        ck_assert_int_eq(f->connections, 1); /* the same one */
        ck_assert_int_eq(ask(&later, get("later")), 0);
        await(&later);
        ck_assert_str_eq(later.text, "later");
        end();
}
END_TEST

START_TEST(test_connection_that_stays_silent_is_made_anew) {
        struct answer a, b;
        begin();
        struct fake *f = serve(0, echo);
        open_server(f, "?answer_timeout_ms=50&connect_timeout_ms=100");
        await_ready();
        f->silent = true;
        ck_assert_int_eq(ask(&a, get("a")), 0);
        await(&a);
        ck_assert_int_eq(a.status, -EAGAIN);
        f->silent = false;
        while (state != OM_REDIS_READY)
                turn();
        ck_assert_int_ge(f->connections, 2);
        ck_assert_int_eq(ask(&b, get("b")), 0);
        await(&b);
        ck_assert_str_eq(b.text, "b");
        end();
}
END_TEST

START_TEST(test_idle_connection_sets_no_timer) {
        struct answer a;
        begin();
        open_server(serve(0, echo), "?answer_timeout_ms=60");
        await_ready();
        ck_assert_int_eq(ask(&a, get("a")), 0);
        await(&a);
        rest(150); /* the timer of that command runs out once */
        struct event_base *base = om_loop_base(loop);
        int before = event_base_get_max_events(base, EVENT_BASE_COUNT_ACTIVE, 1);
        rest(300);
        ck_assert_int_ge(before, 0);
        ck_assert_int_le(event_base_get_max_events(base, EVENT_BASE_COUNT_ACTIVE, 0), 1); /* rest()'s own */
        end();
}
END_TEST

/* -- breaking ------------------------------------------------------------------------------------------------------------ */

static const char *closes(struct fake *f, struct peer *p, char **args, int n) {
        if (strcmp(args[1], "close") == 0)
                peer_close(p);
        return strcmp(args[1], "half") == 0 ? "$10\r\nhalf" : NULL;
}

START_TEST(test_broken_connection_answers_all_once_and_comes_back) {
        struct answer a[3];
        begin();
        struct fake *f = serve(0, closes);
        open_server(f, "");
        await_ready();
        ck_assert_int_eq(ask(&a[0], get("half")), 0);
        ck_assert_int_eq(ask(&a[1], get("x")), 0);
        ck_assert_int_eq(ask(&a[2], get("close")), 0);
        await(&a[2]);
        for (int i = 0; i < 3; i++)
                ck_assert_int_eq(a[i].status, -EAGAIN);
        f->answer = echo;
        while (n_ready < 2)
                turn();
        ck_assert_int_eq(ask(&a[0], get("again")), 0);
        await(&a[0]);
        ck_assert_str_eq(a[0].text, "again");
        end();
}
END_TEST

static const char *hostile_text;
static const char *hostile(struct fake *f, struct peer *p, char **args, int n) { return hostile_text; }

static const struct {
        const char *text, *why;
} attacks[] = {
        { "*2147483647\r\n", "max_reply_bytes" },
        { "$2000000000\r\n", NULL }, /* waits for bytes that do not come: bounded by what comes */
        { "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", "protocol" },
        { "HTTP/1.1 400 Bad Request\r\n\r\n", "protocol" },
        { "*-2\r\n", "protocol" },
        { "$-5\r\n", "protocol" },
        { "+ok\r\n+unasked\r\n", "nobody asked" },
};

START_TEST(test_hostile_answer_ends_the_connection_with_a_reason) {
        struct answer a;
        begin();
        hostile_text = attacks[_i].text;
        open_server(serve(0, hostile), "?max_reply_bytes=65536&answer_timeout_ms=100&connect_timeout_ms=100");
        await_ready();
        ck_assert_int_eq(ask(&a, get("a")), 0);
        await(&a);
        ck_assert(a.status == -EAGAIN || strncmp(hostile_text, "+ok", 3) == 0);
        while (state == OM_REDIS_READY)
                turn();
        if (attacks[_i].why)
                ck_assert_msg(strstr(why.message, attacks[_i].why), "%s", why.message);
        end();
}
END_TEST

static char flood[200000];
static const char *floods(struct fake *f, struct peer *p, char **args, int n) { return flood; }

START_TEST(test_line_without_end_and_bulk_above_the_bound_are_refused) {
        struct answer a;
        begin();
        memset(flood, 'x', sizeof(flood) - 1);
        memcpy(flood, _i ? "$199900\r\n" : "+", _i ? 9 : 1);
        open_server(serve(0, floods), "?max_reply_bytes=100000");
        await_ready();
        ck_assert_int_eq(ask(&a, get("a")), 0);
        await(&a);
        ck_assert_int_eq(a.status, -EAGAIN);
        ck_assert_ptr_nonnull(strstr(a.text, _i ? "max_reply_bytes" : "line without an end"));
        end();
}
END_TEST

START_TEST(test_what_is_under_way_is_bounded) {
        static struct answer a[2000];
        char big[1000];
        int taken = 0;
        begin();
        struct fake *f = serve(0, echo);
        open_server(f, "?max_pending_bytes=65536");
        await_ready();
        f->silent = true;
        memset(big, 'k', sizeof(big) - 1);
        big[sizeof(big) - 1] = 0;
        for (int i = 0; i < 2000; i++) {
                int r = ask(&a[i], get(big));
                ck_assert(r == 0 || r == -ENOBUFS);
                taken += r == 0;
        }
        ck_assert_int_ge(taken, 60);
        ck_assert_int_le(taken, 66);
        end(); /* answers the rest */
        for (int i = 0; i < taken; i++)
                ck_assert_int_eq(a[i].status, -ECANCELED);
}
END_TEST

static void free_it(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_free(redis);
        redis = NULL;
        ck_assert(om_span_is(reply->text, "a")); /* still there */
        *(bool *) ctx = true;
}

START_TEST(test_client_may_be_freed_in_an_answer_and_commands_abandoned) {
        struct answer never = { 0 }, other;
        struct om_error e;
        bool freed = false;
        begin();
        open_server(serve(0, echo), "");
        await_ready();
        struct om_redis_cmd *c = get("abandoned");
        ck_assert_int_eq(om_redis_send(redis, c, on_done, &never, &e), 0);
        om_redis_abandon(c);
        ck_assert_int_eq(om_redis_send(redis, get("a"), free_it, &freed, &e), 0);
        ck_assert_int_eq(ask(&other, get("other")), 0);
        while (!freed)
                turn();
        ck_assert_int_eq(never.times, 0);
        ck_assert_int_eq(other.status, -ECANCELED);
        end();
}
END_TEST

static const char *wrong_password(struct fake *f, struct peer *p, char **args, int n) { return NULL; }

START_TEST(test_port_that_nobody_listens_on_is_named) {
        struct answer a;
        begin();
        struct fake *f = serve(0, wrong_password);
        evconnlistener_free(f->listener);
        f->listener = NULL;
        open_server(f, "");
        while (!n_states)
                turn();
        ck_assert_int_eq(state, OM_REDIS_CONNECTING);
        ck_assert_ptr_nonnull(strstr(why.message, "cannot connect"));
        ck_assert_int_eq(ask(&a, get("a")), -EAGAIN);
        ck_assert_ptr_nonnull(strstr(a.text, "cannot connect"));
        end();
}
END_TEST

/* -- a cluster of two ---------------------------------------------------------------------------------------------------- */

static char map_text[300];
static bool moved_once, asked_once;
static const char *cluster_node(struct fake *f, struct peer *p, char **args, int n) {
        static char text[100];
        static bool asking;
        if (strcmp(args[0], "CLUSTER") == 0)
                return map_text;
        if (strcmp(args[0], "ASKING") == 0) {
                asking = true;
                return "+OK\r\n";
        }
        if (f == &servers[0] && moved_once) {
                snprintf(text, sizeof(text), "-MOVED %u 127.0.0.1:%u\r\n", om_redis_slot(om_span_of(args[1])), servers[1].port);
                return text;
        }
        if (f == &servers[0] && asked_once) {
                snprintf(text, sizeof(text), "-ASK %u 127.0.0.1:%u\r\n", om_redis_slot(om_span_of(args[1])), servers[1].port);
                return text;
        }
        snprintf(text, sizeof(text), "+%d%s\r\n", (int) (f - servers), asking ? " asking" : "");
        asking = false;
        return text;
}

START_TEST(test_cluster_is_followed_by_map_moved_and_ask) {
        struct answer low, high, moved, asked;
        char url[100];
        begin();
        serve(0, cluster_node);
        serve(1, cluster_node);
        moved_once = asked_once = false;
        snprintf(map_text, sizeof(map_text),
                "*2\r\n*3\r\n:0\r\n:8191\r\n*2\r\n$9\r\n127.0.0.1\r\n:%u\r\n*3\r\n:8192\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%u\r\n",
                servers[0].port, servers[1].port);
        snprintf(url, sizeof(url), "redis+cluster://127.0.0.1:%u", servers[0].port);
        open_url(url);
        await_ready();
        ck_assert_int_ge(n_moved, 1);
        ck_assert_uint_lt(om_redis_slot(OM_SPAN("bar")), 8192); /* 5061 */
        ck_assert_uint_ge(om_redis_slot(OM_SPAN("foo")), 8192); /* 12182 */
        ck_assert_int_eq(ask(&low, get("bar")), 0);
        ck_assert_int_eq(ask(&high, get("foo")), 0);
        await(&low);
        await(&high);
        ck_assert_str_eq(low.text, "0");
        ck_assert_str_eq(high.text, "1");
        asked_once = true;
        ck_assert_int_eq(ask(&asked, get("bar")), 0);
        await(&asked);
        ck_assert_str_eq(asked.text, "1 asking");
        asked_once = false;
        moved_once = true;
        ck_assert_int_eq(ask(&moved, get("bar")), 0);
        await(&moved);
        ck_assert_str_eq(moved.text, "1");
        ck_assert_ptr_eq(om_redis_node_of(redis, OM_SPAN("bar")), om_redis_node_of(redis, OM_SPAN("foo")));
        end();
}
END_TEST

/* -- a sentinel ------------------------------------------------------------------------------------------------------------ */

static const char *sentinel(struct fake *f, struct peer *p, char **args, int n) {
        static char text[200];
        char port[8];
        if (strcmp(args[0], "SENTINEL") == 0) {
                snprintf(port, sizeof(port), "%u", servers[1].port);
                snprintf(text, sizeof(text), "*2\r\n$9\r\n127.0.0.1\r\n$%zu\r\n%s\r\n", strlen(port), port);
                return strcmp(args[2], "omni") == 0 ? text : "*-1\r\n";
        }
        return "*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n";
}
static const char *which(struct fake *f, struct peer *p, char **args, int n) { return f == &servers[1] ? "+first\r\n" : "+second\r\n"; }

START_TEST(test_sentinel_is_asked_and_its_word_followed) {
        struct answer a;
        char url[100], push[200], word[100];
        begin();
        serve(0, sentinel);
        serve(1, which);
        serve(2, which);
        snprintf(url, sizeof(url), "redis+sentinel://127.0.0.1:%u/omni", servers[0].port);
        open_url(url);
        await_ready();
        ck_assert_int_eq(ask(&a, get("a")), 0);
        await(&a);
        ck_assert_str_eq(a.text, "first");
        snprintf(word, sizeof(word), "omni 127.0.0.1 %u 127.0.0.1 %u", servers[1].port, servers[2].port);
        snprintf(push, sizeof(push), "*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n$%zu\r\n%s\r\n", strlen(word), word);
        evbuffer_add(bufferevent_get_output(servers[0].last->bev), push, strlen(push));
        while (n_ready < 2)
                turn();
        ck_assert_int_eq(n_moved, 2);
        ck_assert_int_eq(ask(&a, get("a")), 0);
        await(&a);
        ck_assert_str_eq(a.text, "second");
        end();
}
END_TEST

START_TEST(test_service_that_no_sentinel_knows_is_named) {
        char url[100];
        begin();
        serve(0, sentinel);
        snprintf(url, sizeof(url), "redis+sentinel://127.0.0.1:%u/other", servers[0].port);
        open_url(url);
        while (!n_states)
                turn();
        ck_assert_msg(strstr(why.message, "\"other\""), "%s", why.message);
        end();
}
END_TEST

/* -- settings and slots -------------------------------------------------------------------------------------------------- */

static const struct {
        const char *url, *why; /* NULL: is taken */
} urls[] = {
        { "redis://h", NULL },
        { "redis://secret@h/3", NULL },
        { "redis://user:secret@h:1/0", NULL },
        { "redis+unix:///run/redis.sock?db=2", NULL },
        { "redis+sentinel://a,b:1/omni/2", NULL },
        { "redis://h/x", "path" },
        { "redis://h/1?db=2", "db" },
        { "redis://a,b", "redis+cluster" },
        { "redis+cluster://a,b/1", "database 0" },
        { "redis+sentinel://a,b", "SERVICE" },
        { "redis+unix://h/p", "redis+unix:///" },
        { "redis://h?tls_ca_file=x", "rediss" },
        { "rediss://h?tls_key_file=x", "tls_cert_file" },
        { "redis://h?sentinel_password=x", "sentinel" },
        { "redis://h?answer_timeout=1", "answer_timeout_ms" },
};

START_TEST(test_url_is_taken_or_says_what_to_mend) {
        struct om_error e = OM_ERROR_INIT;
        int r = read_settings(urls[_i].url, &e);
        ck_assert_int_eq(r == 0, urls[_i].why == NULL);
        if (urls[_i].why)
                ck_assert_msg(strstr(e.message, urls[_i].why), "%s", e.message);
        ck_assert_ptr_null(strstr(e.message, "secret"));
        om_redis_settings_free(&settings.redis);
}
END_TEST

START_TEST(test_tag_puts_a_key_into_the_slot_of_another) {
        static const char *const keys[] = { "omni-stream:greet", "omni-stream:a{b}c", "omni-stream:{}x", "a}b", "}", "{", "x{}}", "{a" };
        ck_assert_uint_eq(om_redis_slot(OM_SPAN("123456789")), 0x31c3 % 16384); /* the specification's own example */
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
                struct om_buf b = OM_BUF_INIT;
                om_redis_tag(&b, om_span_of(keys[i]));
                om_buf_puts(&b, "omni-due:{}x}");
                ck_assert_msg(om_redis_slot(om_buf_span(&b)) == om_redis_slot(om_span_of(keys[i])), "%s", keys[i]);
                om_buf_deinit(&b);
        }
}
END_TEST

int main(void) {
        Suite *s = suite_create("connections to Redis");
        TCase *t = tcase_create("conn");
        tcase_add_test(t, test_answers_come_in_order_and_once_each);
        tcase_add_test(t, test_script_that_the_server_does_not_know_is_sent_whole);
        tcase_add_test(t, test_error_says_what_to_mend);
        tcase_add_test(t, test_silent_server_fails_the_hurried_and_keeps_the_patient);
        tcase_add_test(t, test_connection_that_stays_silent_is_made_anew);
        tcase_add_test(t, test_idle_connection_sets_no_timer);
        tcase_add_test(t, test_broken_connection_answers_all_once_and_comes_back);
        tcase_add_loop_test(t, test_hostile_answer_ends_the_connection_with_a_reason, 0, sizeof(attacks) / sizeof(attacks[0]));
        tcase_add_loop_test(t, test_line_without_end_and_bulk_above_the_bound_are_refused, 0, 2);
        tcase_add_test(t, test_what_is_under_way_is_bounded);
        tcase_add_test(t, test_client_may_be_freed_in_an_answer_and_commands_abandoned);
        tcase_add_test(t, test_port_that_nobody_listens_on_is_named);
        tcase_add_test(t, test_cluster_is_followed_by_map_moved_and_ask);
        tcase_add_test(t, test_sentinel_is_asked_and_its_word_followed);
        tcase_add_test(t, test_service_that_no_sentinel_knows_is_named);
        tcase_add_loop_test(t, test_url_is_taken_or_says_what_to_mend, 0, sizeof(urls) / sizeof(urls[0]));
        tcase_add_test(t, test_tag_puts_a_key_into_the_slot_of_another);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
