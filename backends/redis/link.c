/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection to one server: connecting, logging in, sending and matching answers, noticing silence, reconnecting.
 *
 *     WAITING ─▶ DIALING ─▶ SECURING ─▶ GREETING ─▶ READY ⇄ SILENT
 *        ▲           │          │           │         │       │
 *        └───────────┴──────────┴───────────┴─────────┴───────┘  any failure, with backoff
 *
 * Always true:
 *   - `first` … `last` are the commands that the server owes an answer, oldest first; between them stand, as numbers (`skip`), the answers
 * to commands that were given up. What is answered is never answered twice;
 *   - the owner's functions are called last in an event, and after each `dead` is looked at: the owner may have freed the link, which lives
 *     until the end of the turn;
 *   - in SILENT nothing is sent. The server had answered nothing for answer_timeout_ms though it owed something: commands in a hurry are
 * given up with -EAGAIN, so that publishers hear within that time, and the connection is kept: one that was only slow is used again when it
 *     has caught up. One that stays silent for connect_timeout_ms more is made anew, and all is given up;
 *   - one that has caught up is given twice the time that it took, until it answers promptly: a server that is far away or busy is slow,
 *     not silent;
 *   - a timer runs only while something is awaited: a connection, an answer, the end of a backoff.
 *
 * Loop thread.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "link.h"

enum { BACKOFF_BASE_MS = 50, BACKOFF_MAX_MS = 1000, COMMANDS_MAX = 1 << 16, READ_BYTES = 256 << 10 };

enum link_state {
        LINK_IDLE,     /* has nowhere to go */
        LINK_WAITING,  /* for the end of a backoff: `timer` */
        LINK_DIALING,  /* `dial`, with a deadline: `timer` */
        LINK_SECURING, /* TLS's handshake, within the same deadline */
        LINK_GREETING, /* logging in, within the same deadline */
        LINK_READY,    /* `answer_timer` while something is owed */
        LINK_SILENT,   /* `timer`: until it is given up */
};

struct om_redis_link {
        struct om_redis_link_config config;
        enum link_state state;
        bool dead;
        bool leaving; /* SILENT, and will not be READY again on this connection */
        const struct om_redis_address *addresses;
        size_t n_addresses, at;
        char name[300];
        unsigned tries;
        struct om_error why;
        struct om_redis_dial *dial;
        struct bufferevent *bev;
        struct ssl_st *ssl; /* bev's */
        struct om_redis_in in;
        struct om_redis_cmd *first, *last;
        size_t n, bytes;
        size_t skip_last, skipping; /* answers owed after the last of them; all of those that nobody waits for any more */
        unsigned greeting;          /* answers of the greeting that are owed */
        bool heard;                 /* anything, on this connection */
        int64_t progress_ms;
        int64_t silent_since_ms; /* SILENT: when that which is not answered was sent */
        int64_t late_ms;         /* what it took the last time that it caught up; 0: it is prompt */
        size_t unsent;           /* at the last look */
        struct event *timer, *answer_timer;
        bool answer_armed;
        int64_t id;
        struct om_post gone;
};

static void fail(struct om_redis_link *l, const struct om_error *e);

static void arm(struct event *timer, int64_t ms) {
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        event_add(timer, &tv);
}

/* -- commands under way ---------------------------------------------------------------------------------------------- */

static struct om_redis_cmd *shift(struct om_redis_link *l) {
        struct om_redis_cmd *c = l->first;

        l->first = c->next;
        if (!l->first)
                l->last = NULL;
        l->n--;
        l->bytes -= c->bytes;
        return c;
}

/* All that is owed is given up. The list is taken first: who is told may send. */
static void give_up(struct om_redis_link *l, int status, const struct om_error *e) {
        struct om_redis_cmd *c = l->first, *next;
        struct om_error copy = *e;

        l->first = l->last = NULL;
        l->n = l->bytes = l->skip_last = l->skipping = 0;
        for (; c; c = next) {
                next = c->next;
                c->answer(c, status, NULL, &copy);
        }
}

/* Those in a hurry, when the server has fallen silent. Their answers may come still. */
static void give_up_hurried(struct om_redis_link *l, const struct om_error *e) {
        struct om_redis_cmd *gone = NULL, **end = &gone, **p = &l->first;
        size_t skip = 0;

        l->last = NULL;
        while (*p) {
                struct om_redis_cmd *c = *p;

                c->skip += skip;
                skip = 0;
                if (!c->hurry) {
                        l->last = c;
                        p = &c->next;
                        continue;
                }
                *p = c->next;
                skip = c->skip + 1;
                l->skipping++;
                l->n--;
                l->bytes -= c->bytes;
                c->next = NULL;
                *end = c;
                end = &c->next;
        }
        l->skip_last += skip;
        for (struct om_redis_cmd *c = gone, *next; c; c = next) {
                next = c->next;
                c->answer(c, -EAGAIN, NULL, e);
        }
}

/* How long an answer to it may take. */
static int64_t limit_ms(const struct om_redis_link *l, const struct om_redis_cmd *c) {
        const struct om_redis_settings *s = l->config.settings;
        int64_t most = s->connect_timeout_ms > s->answer_timeout_ms ? s->connect_timeout_ms : s->answer_timeout_ms;
        int64_t ms = 2 * l->late_ms > s->answer_timeout_ms ? 2 * l->late_ms : s->answer_timeout_ms;

        return (ms < most ? ms : most) + c->patience_ms;
}

static void answer_arm(struct om_redis_link *l) {
        const struct om_redis_cmd *c = l->first;
        int64_t since, left;

        if (l->answer_armed || !c || c->patience_ms < 0 || l->state != LINK_READY)
                return;
        since = c->sent_ms > l->progress_ms ? c->sent_ms : l->progress_ms;
        left = since + limit_ms(l, c) - om_clock_ms();
        arm(l->answer_timer, left > 0 ? left : 0);
        l->answer_armed = true;
}

int om_redis_link_send(struct om_redis_link *l, struct om_redis_cmd *c, struct om_error *e) {
        struct evbuffer *out;
        size_t before;

        if (l->state != LINK_READY) {
                if (l->why.kind == OM_OK)
                        return om_error_set(e, OM_UNAVAILABLE, "redis %s: not connected yet", l->name);
                if (e)
                        *e = l->why;
                if (e && e->kind != OM_UNAVAILABLE)
                        e->kind = OM_UNAVAILABLE; /* it may be mended meanwhile: the errno says "later" */
                return -EAGAIN;
        }
        if (c->failed || !om_buf_ok(&c->body))
                return om_error_set_errno(e, ENOMEM, "redis: a command");
        if (l->n + l->skipping >= COMMANDS_MAX || (l->n && l->bytes + c->body.len > (size_t) l->config.settings->max_pending_bytes))
                return om_error_set(e, OM_LIMIT, "redis %s: too much is under way", l->name);
        out = bufferevent_get_output(l->bev);
        before = evbuffer_get_length(out);
        if (om_redis_cmd_write(c, out) < 0) {
                /* What was written of it would be read as the next one's begin. */
                l->state = LINK_SILENT;
                l->leaving = true;
                om_error_set_errno(&l->why, ENOMEM, "redis %s", l->name);
                arm(l->timer, 0);
                return om_error_set_errno(e, ENOMEM, "redis %s", l->name);
        }
        c->bytes = evbuffer_get_length(out) - before;
        c->sent_ms = om_clock_ms();
        c->next = NULL;
        c->skip = l->skip_last;
        l->skip_last = 0;
        *(l->last ? &l->last->next : &l->first) = c;
        l->last = c;
        l->n++;
        l->bytes += c->bytes;
        answer_arm(l);
        return 0;
}

/* -- states ---------------------------------------------------------------------------------------------------------- */

static void tell(struct om_redis_link *l, enum om_redis_state state, const struct om_error *e) {
        if (!l->dead && l->config.state)
                l->config.state(l->config.ctx, state, e);
}

static void disconnect(struct om_redis_link *l) {
        om_redis_dial_cancel(&l->dial);
        if (l->bev) {
                if (l->ssl)
                        SSL_set_quiet_shutdown(l->ssl, 1);
                bufferevent_free(l->bev);
        }
        l->bev = NULL;
        l->ssl = NULL;
        om_redis_in_deinit(&l->in);
        event_del(l->timer);
        event_del(l->answer_timer);
        l->answer_armed = false;
        l->leaving = false;
        l->greeting = 0;
        l->id = 0;
}

static void name_it(struct om_redis_link *l) {
        const struct om_redis_address *a = &l->addresses[l->at];

        if (!a->host)
                snprintf(l->name, sizeof l->name, "%.280s", l->config.settings->socket_path);
        else
                snprintf(l->name, sizeof l->name, strchr(a->host, ':') ? "[%.280s]:%u" : "%.280s:%u", a->host, a->port);
}

static void wait_then_dial(struct om_redis_link *l, int64_t ms) {
        l->state = l->n_addresses ? LINK_WAITING : LINK_IDLE;
        if (l->n_addresses)
                arm(l->timer, ms);
}

/* The connection is over, or never came about: what was under way is given up, the owner told, and it is tried again. */
static void fail(struct om_redis_link *l, const struct om_error *error) {
        struct om_error e = *error;

        disconnect(l);
        l->why = e;
        if (l->n_addresses > 1)
                l->at = (l->at + 1) % l->n_addresses;
        wait_then_dial(l, om_backoff_ms(BACKOFF_BASE_MS, BACKOFF_MAX_MS, l->tries < 16 ? l->tries : 16));
        l->tries++;
        give_up(l, -EAGAIN, &e);
        tell(l, OM_REDIS_CONNECTING, &e);
}

static void fail_text(struct om_redis_link *l, enum om_kind kind, const char *what) {
        struct om_error e;

        om_error_set(&e, kind, "redis %s: %s", l->name, what);
        fail(l, &e);
}

static void ready(struct om_redis_link *l) {
        l->state = LINK_READY;
        l->tries = 0;
        l->why = (struct om_error) OM_ERROR_INIT;
        l->progress_ms = om_clock_ms();
        event_del(l->timer);
        tell(l, OM_REDIS_READY, NULL);
}

static void on_answer_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_redis_link *l = ctx;
        const struct om_redis_cmd *c = l->first;
        size_t unsent = l->bev ? evbuffer_get_length(bufferevent_get_output(l->bev)) : 0;
        int64_t since, limit, now = om_clock_ms();
        struct om_error e;

        l->answer_armed = false;
        if (l->state != LINK_READY || !c || c->patience_ms < 0)
                return;
        if (unsent < l->unsent)
                l->progress_ms = now; /* a large command is still on its way */
        l->unsent = unsent;
        since = c->sent_ms > l->progress_ms ? c->sent_ms : l->progress_ms;
        limit = limit_ms(l, c);
        if (now < since + limit) {
                answer_arm(l);
                return;
        }
        l->state = LINK_SILENT;
        l->silent_since_ms = since;
        om_error_set(&e, OM_UNAVAILABLE, "redis %s: the server has not answered for %lld ms (answer_timeout_ms); it may still take effect",
                l->name, (long long) limit);
        l->why = e;
        arm(l->timer, l->config.settings->connect_timeout_ms);
        give_up_hurried(l, &e);
        if (l->dead)
                return;
        om_error_set(&e, OM_UNAVAILABLE, "redis %s: the server does not answer", l->name);
        l->why = e;
        tell(l, OM_REDIS_CONNECTING, &e);
}

/* -- what comes in --------------------------------------------------------------------------------------------------- */

/* The server was only slow, when all that it owes was asked for after it fell silent: that is, when it owes nothing. */
static void caught_up(struct om_redis_link *l) {
        if (l->state != LINK_SILENT || l->leaving || l->skipping || l->first)
                return;
        l->late_ms = om_clock_ms() - l->silent_since_ms;
        ready(l);
}

/* One reply. The link may be dead, or disconnected, after it. */
static void take(struct om_redis_link *l, const struct om_redis_reply *reply) {
        struct om_redis_cmd *c;
        struct om_error e;
        int status;

        if (l->first ? l->first->skip : l->skip_last) {
                (*(l->first ? &l->first->skip : &l->skip_last))--;
                l->skipping--;
                caught_up(l);
                return;
        }
        if (!l->first) {
                if (l->config.push && l->state == LINK_READY)
                        l->config.push(l->config.ctx, reply);
                else if (reply->type == OM_REDIS_ERROR) {
                        om_redis_error(reply, "connecting", OM_SPAN_NONE, l->name, &e); /* as "max number of clients reached" */
                        fail(l, &e);
                } else
                        fail_text(l, OM_INTERNAL, "the server answers what nobody asked: is it a Redis server?");
                return;
        }
        c = shift(l);
        if (l->late_ms && !c->patience_ms && 2 * (l->progress_ms - c->sent_ms) < l->config.settings->answer_timeout_ms)
                l->late_ms = 0;
        status = reply->type == OM_REDIS_ERROR ? om_redis_error(reply, c->name, om_redis_cmd_key(c), l->name, &e) : 0;
        c->answer(c, status, reply, status < 0 ? &e : NULL);
        if (!l->dead)
                caught_up(l);
}

static void unreadable(struct om_redis_link *l, int r, unsigned char first) {
        char text[200];

        if (r == -EMSGSIZE)
                fail_text(l, OM_LIMIT, "a reply is larger than max_reply_bytes of the URL allows");
        else if (!l->heard && (first == 0x15 || first == 0x16))
                fail_text(l, OM_UNAVAILABLE, "the port speaks TLS: write rediss instead of redis in the URL");
        else {
                snprintf(text, sizeof text, "the server does not speak Redis' protocol: %.100s", om_redis_in_fault(&l->in));
                for (char *p = text; *p; p++)
                        if ((unsigned char) *p < 0x20 || (unsigned char) *p > 0x7e)
                                *p = '?';
                fail_text(l, OM_UNAVAILABLE, text);
        }
}

static void on_read(struct bufferevent *bev, void *ctx) {
        struct om_redis_link *l = ctx;
        struct evbuffer *input = bufferevent_get_input(bev);
        struct om_redis_reply *reply;
        size_t n;

        l->progress_ms = om_clock_ms();
        while (!l->dead && l->bev == bev && (n = evbuffer_get_length(input)) > 0) {
                unsigned char *p;
                int r;

                n = n < OM_REDIS_FEED ? n : OM_REDIS_FEED;
                p = evbuffer_pullup(input, (ssize_t) n);
                r = p ? om_redis_in_feed(&l->in, (const char *) p, n) : -EMSGSIZE;
                while (r == 0 && !l->dead && l->bev == bev && (r = om_redis_in_next(&l->in, &reply)) > 0) {
                        l->heard = true;
                        take(l, reply);
                        if (!l->dead && l->bev == bev)
                                om_redis_in_done(&l->in);
                        r = 0;
                }
                if (l->dead || l->bev != bev)
                        return;
                if (r < 0) {
                        unreadable(l, r, p ? p[0] : 0);
                        return;
                }
                evbuffer_drain(input, n);
        }
}

static void greet(struct om_redis_link *l);

static void tls_failed(struct om_redis_link *l, struct bufferevent *bev, struct om_error *e) {
        const struct om_tls_settings tls = om_redis_tls(l->config.settings);

        om_tls_error(&tls, bev, l->ssl, l->name, e);
}

static void on_event(struct bufferevent *bev, short what, void *ctx) {
        struct om_redis_link *l = ctx;
        int error = errno;
        struct om_error e;

        if (what & BEV_EVENT_CONNECTED) {
                greet(l);
                return;
        }
        if (l->state == LINK_SECURING) {
                tls_failed(l, bev, &e);
                fail(l, &e);
        } else if (l->ssl && !l->heard && bufferevent_get_openssl_error(bev) == 0 && (what & BEV_EVENT_EOF)) {
                fail_text(l, OM_UNAVAILABLE, "the server closed the connection after the TLS handshake");
        } else if (l->ssl && !l->heard) {
                tls_failed(l, bev, &e); /* with TLS 1.3 a refused client certificate shows here */
                fail(l, &e);
        } else if (what & BEV_EVENT_ERROR && error) {
                om_error_set(&e, OM_UNAVAILABLE, "redis %s: the connection broke%s: %s", l->name,
                        l->heard || l->ssl || !l->addresses[l->at].host
                                ? ""
                                : " before it answered (if the port speaks TLS, write rediss in the URL)",
                        strerror(error));
                fail(l, &e);
        } else {
                fail_text(l, OM_UNAVAILABLE,
                        l->heard || l->ssl
                                ? "the server closed the connection"
                                : "the server closed the connection before it answered; if the port speaks TLS, write rediss instead "
                                  "of redis in the URL");
        }
}

/* -- the greeting ---------------------------------------------------------------------------------------------------- */

static bool greeting_is_fatal(const struct om_redis_cmd *c) {
        return strcmp(c->name, "CLIENT") != 0; /* a user may lack the right to it; all works without */
}

static void on_greeted(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis_link *l = c->owner;
        bool fatal = greeting_is_fatal(c), is_role = strcmp(c->name, "ROLE") == 0;
        bool lost = status < 0 && !reply;

        if (status == 0 && reply->type == OM_REDIS_INTEGER)
                l->id = reply->integer;
        om_redis_cmd_free(c);
        if (lost)
                return; /* the whole connection has failed, and that has been told */
        if (status < 0 && fatal) {
                fail(l, error);
                return;
        }
        if (is_role && !om_span_is(om_redis_at(reply, 0)->text, "master")) {
                fail_text(l, OM_UNAVAILABLE, "the server is a replica, not the primary");
                return;
        }
        if (--l->greeting == 0)
                ready(l);
}

static void greet_with(struct om_redis_link *l, struct om_redis_cmd *c) {
        struct om_error e;

        l->greeting++; /* without memory it is never over, and the deadline ends it */
        if (!c)
                return;
        c->answer = on_greeted;
        c->owner = l;
        l->state = LINK_READY; /* for this one */
        if (om_redis_link_send(l, c, &e) < 0)
                om_redis_cmd_free(c);
        l->state = LINK_GREETING;
}

static void greet(struct om_redis_link *l) {
        const struct om_redis_link_config *f = &l->config;
        struct om_redis_cmd *c;

        l->state = LINK_GREETING;
        if (f->password) {
                c = om_redis_cmd_new("AUTH");
                if (f->user)
                        om_redis_arg_text(c, f->user);
                om_redis_arg_text(c, f->password);
                greet_with(l, c);
        }
        c = om_redis_cmd_new("CLIENT");
        om_redis_arg_text(c, "SETNAME");
        om_redis_arg_text(c, "omnidaemond");
        greet_with(l, c);
        if (f->db) {
                c = om_redis_cmd_new("SELECT");
                om_redis_arg_int(c, f->db);
                greet_with(l, c);
        }
        if (f->wants_role)
                greet_with(l, om_redis_cmd_new("ROLE"));
        if (f->wants_id) {
                c = om_redis_cmd_new("CLIENT");
                om_redis_arg_text(c, "ID");
                greet_with(l, c);
        }
        greet_with(l, om_redis_cmd_new("PING")); /* it wants a login, and answers LOADING, where CLIENT does not */
        event_del(l->answer_timer);
        l->answer_armed = false;
}

/* -- connecting ------------------------------------------------------------------------------------------------------ */

static void on_dialed(void *ctx, int fd, const struct om_error *error) {
        struct om_redis_link *l = ctx;
        const enum bufferevent_options options = BEV_OPT_CLOSE_ON_FREE;
        struct om_error e;

        if (fd < 0) {
                fail(l, error);
                return;
        }
        om_error_set_errno(&e, ENOMEM, "redis %s", l->name);
        if (l->config.tls) {
                const struct om_tls_settings tls = om_redis_tls(l->config.settings);

                l->ssl = om_tls_connection(l->config.tls, &tls, l->addresses[l->at].host, &e);
                l->bev = l->ssl ? bufferevent_openssl_socket_new(l->config.host->base, fd, l->ssl, BUFFEREVENT_SSL_CONNECTING, options)
                                : NULL;
                if (l->ssl && !l->bev)
                        SSL_free(l->ssl);
        } else {
                l->bev = bufferevent_socket_new(l->config.host->base, fd, options);
        }
        if (!l->bev) {
                l->ssl = NULL;
                close(fd);
        }
        if (!l->bev || om_redis_in_init(&l->in, (size_t) l->config.settings->max_reply_bytes) < 0) {
                fail(l, &e);
                return;
        }
        l->heard = false;
        bufferevent_setcb(l->bev, on_read, NULL, on_event, l);
        bufferevent_set_max_single_read(l->bev, READ_BYTES);
        bufferevent_set_max_single_write(l->bev, READ_BYTES);
        if (l->ssl)
                bufferevent_openssl_set_allow_dirty_shutdown(l->bev, 1);
        bufferevent_enable(l->bev, EV_READ | EV_WRITE);
        l->state = LINK_SECURING;
        if (!l->ssl)
                greet(l);
}

static void dial(struct om_redis_link *l) {
        struct om_error e;

        name_it(l);
        l->state = LINK_DIALING;
        arm(l->timer, l->config.settings->connect_timeout_ms);
        if (om_redis_dial(l->config.host->base, l->config.dns, l->config.settings, &l->addresses[l->at], on_dialed, l, &l->dial) < 0) {
                om_error_set_errno(&e, ENOMEM, "redis %s", l->name);
                fail(l, &e);
        }
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_redis_link *l = ctx;
        struct om_error e;
        const char *doing = l->state == LINK_DIALING ? "connecting"
                : l->state == LINK_SECURING          ? "the TLS handshake (if the port does not speak TLS, write redis in the URL)"
                                                     : "logging in (if the port speaks TLS, write rediss in the URL)";

        if (l->state == LINK_WAITING) {
                dial(l);
        } else if (l->state == LINK_SILENT) {
                e = l->why;
                fail(l, &e);
        } else if (l->state != LINK_IDLE && l->state != LINK_READY) {
                om_error_set(&e, OM_UNAVAILABLE, "redis %s: %s took longer than %lld ms (connect_timeout_ms)", l->name, doing,
                        (long long) l->config.settings->connect_timeout_ms);
                fail(l, &e);
        }
}

/* -- for the owner --------------------------------------------------------------------------------------------------- */

void om_redis_link_go(struct om_redis_link *l, const struct om_redis_address *addresses, size_t n, bool anew) {
        const struct om_redis_address *now = l->n_addresses ? &l->addresses[l->at] : NULL;
        bool same = now && n == 1 && now->port == addresses->port &&
                (now->host == addresses->host || (now->host && addresses->host && strcmp(now->host, addresses->host) == 0));

        l->addresses = addresses;
        l->n_addresses = n;
        l->at = 0;
        if (same && !anew)
                return;
        if (n)
                name_it(l);
        if (l->state == LINK_IDLE) {
                wait_then_dial(l, 0);
                return;
        }
        /* What is under way is given up by the timer's event, not from within this call. */
        l->state = LINK_SILENT;
        l->leaving = true;
        om_error_set(&l->why, OM_UNAVAILABLE, "redis %s: the server is another one now", l->name);
        l->tries = 0;
        arm(l->timer, 0);
}

void om_redis_link_next(struct om_redis_link *l) {
        size_t at = l->at;

        om_redis_link_go(l, l->addresses, l->n_addresses, true);
        l->at = at; /* the failure to come takes the next */
}

int om_redis_link_new(const struct om_redis_link_config *config, struct om_redis_link **ret, struct om_error *e) {
        struct om_redis_link *l = calloc(1, sizeof *l);

        if (!l)
                return om_error_set_errno(e, ENOMEM, "redis");
        l->config = *config;
        l->timer = evtimer_new(config->host->base, on_timer, l);
        l->answer_timer = evtimer_new(config->host->base, on_answer_timer, l);
        if (!l->timer || !l->answer_timer) {
                om_redis_link_free(l);
                return om_error_set_errno(e, ENOMEM, "redis");
        }
        *ret = l;
        return 0;
}

static void gone(struct om_post *post) {
        struct om_redis_link *l = (void *) ((char *) post - offsetof(struct om_redis_link, gone));

        om_redis_in_deinit(&l->in);
        free(l);
}

void om_redis_link_free(struct om_redis_link *l) {
        struct om_redis_in in;
        struct om_error e;

        if (!l)
                return;
        l->dead = true;
        l->n_addresses = 0;
        in = l->in; /* a reply of it may be looked at further up */
        l->in = (struct om_redis_in){ 0 };
        if (l->timer && l->answer_timer)
                disconnect(l);
        l->in = in;
        if (l->timer)
                event_free(l->timer);
        if (l->answer_timer)
                event_free(l->answer_timer);
        l->timer = l->answer_timer = NULL;
        l->state = LINK_IDLE;
        om_error_set(&e, OM_UNAVAILABLE, "redis %s: the connection was closed by us", l->name);
        give_up(l, -ECANCELED, &e);
        l->gone.fn = gone;
        om_host_post(l->config.host, &l->gone);
}

bool om_redis_link_ready(const struct om_redis_link *l) { return l->state == LINK_READY; }
bool om_redis_link_silent(const struct om_redis_link *l) { return l->state == LINK_SILENT; }
const struct om_error *om_redis_link_why(const struct om_redis_link *l) { return &l->why; }
const char *om_redis_link_name(const struct om_redis_link *l) { return l->name; }
int64_t om_redis_link_id(const struct om_redis_link *l) { return l->state == LINK_READY ? l->id : 0; }
size_t om_redis_link_pending(const struct om_redis_link *l) { return l->n; }
