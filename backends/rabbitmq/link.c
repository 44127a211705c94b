/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection's life: see link.h. Its channels are channel.c's.
 *
 *     WAITING ─▶ CONNECTING ─▶ GREETING ─▶ UP ─▶ CLOSING
 *        ▲            │            │        │
 *        └────────────┴────────────┴────────┘   any failure, with backoff
 *
 * Always true:
 *   - the owner's functions are called last in an event, and after each `epoch` and `dead` are looked at: the owner may have ended the
 *     connection or freed the link, which lives until the end of the turn;
 *   - `beat` runs only while UP, at half of what was agreed on; `timer` only while something is awaited.
 *
 * Loop thread.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "link_state.h"

enum { BACKOFF_BASE_MS = 50, BACKOFF_MAX_MS = 1000, READ_BYTES = 256 << 10, GOODBYE_MS = 1000 };

static void arm(struct event *timer, int64_t ms) {
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        event_add(timer, &tv);
}

/* -- writing --------------------------------------------------------------------------------------------------------- */

int rmq_write(struct rmq_link *l, struct om_span bytes) {
        if (evbuffer_add(bufferevent_get_output(l->bev), bytes.p, bytes.len) < 0)
                return -ENOMEM;
        l->written_ms = om_clock_ms();
        return 0;
}

/* Half a frame on the wire would be the end of it: evbuffer_add() takes all or nothing. */
int rmq_write_method(struct rmq_link *l, uint16_t channel, amqp_method_number_t id, void *method) {
        int r;

        om_buf_clear(&l->out);
        r = rmq_put_method(&l->out, channel, id, method);
        return r < 0 ? r : rmq_write(l, om_buf_span(&l->out));
}

/* -- ends ------------------------------------------------------------------------------------------------------------ */

static void connect_next(struct rmq_link *l);

static void disconnect(struct rmq_link *l) {
        l->epoch++;
        l->blocked = l->probing = false;
        if (l->bev)
                bufferevent_free(l->bev);
        l->bev = NULL;
        l->ssl = NULL;
        event_del(l->beat);
        event_del(l->timer);
}

static void give_up(struct rmq_link *l, const struct om_error *e) {
        for (unsigned i = 1; i <= l->n_channels; i++)
                rmq_channel_lost(l->channels[i]);
        for (unsigned i = 1; i <= l->n_channels && !l->dead; i++)
                rmq_channel_give_up(l->channels[i], e);
}

static void is_closed(struct rmq_link *l) {
        void (*closed)(void *) = l->closed;

        disconnect(l);
        l->state = LINK_WAITING;
        l->closed = NULL;
        if (closed)
                closed(l->ctx);
}

static void fail(struct rmq_link *l, const struct om_error *error) {
        struct om_error e = *error;

        if (l->state == LINK_CLOSING) {
                is_closed(l);
                return;
        }
        disconnect(l);
        l->state = LINK_WAITING;
        l->at = (l->at + 1) % l->settings->n_hosts;
        arm(l->timer, om_backoff_ms(BACKOFF_BASE_MS, BACKOFF_MAX_MS, l->tries++ / (unsigned) l->settings->n_hosts));
        if (e.kind == OM_OK)
                e.kind = OM_UNAVAILABLE;
        give_up(l, &e);
        if (!l->dead)
                l->events->down(l->ctx, &e);
}

void rmq_link_fail(struct rmq_link *l, const struct om_error *e) {
        if (l->state == LINK_UP || l->state == LINK_GREETING)
                fail(l, e);
}

static void fail_text(struct rmq_link *l, enum om_kind kind, const char *text) {
        struct om_error e = OM_ERROR_INIT;

        om_error_set(&e, kind, "RabbitMQ at %s: %s", l->where, text);
        fail(l, &e);
}

void rmq_link_no_memory(struct rmq_link *l) { fail_text(l, OM_UNAVAILABLE, "out of memory"); }

/* -- the greeting ----------------------------------------------------------------------------------------------------- */

static struct om_span text_of(const amqp_field_value_t *v) {
        return v && v->kind == AMQP_FIELD_KIND_UTF8 ? rmq_span(v->value.bytes) : OM_SPAN("");
}

static void start_ok(struct rmq_link *l, const amqp_connection_start_t *start) {
        static const char *const abilities[] = { "publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify",
                "connection.blocked", "authentication_failure_close" };
        struct rmq_table can = { .n = 0 }, who = { .n = 0 };
        const amqp_field_value_t *product = rmq_table_get(&start->server_properties, "product"),
                                 *version = rmq_table_get(&start->server_properties, "version");
        const char *mechanism = l->settings->auth ? "EXTERNAL" : "PLAIN";
        struct om_buf secret = OM_BUF_INIT;
        amqp_connection_start_ok_t ok = { .mechanism = rmq_text(mechanism), .locale = rmq_text("en_US") };

        snprintf(l->version, sizeof l->version, "%.*s %.*s", OM_PRI(text_of(product)), OM_PRI(text_of(version)));
        if (!memmem(start->mechanisms.bytes, start->mechanisms.len, mechanism, strlen(mechanism))) {
                fail_text(l, OM_DENIED,
                        l->settings->auth ? "the broker has no login by certificate (auth=external)"
                                          : "the broker has no login by user and password");
                return;
        }
        for (size_t i = 0; i < sizeof(abilities) / sizeof(abilities[0]); i++)
                rmq_table_bool(&can, abilities[i], true);
        rmq_table_text(&who, "product", OM_SPAN("OmniDaemon"));
        rmq_table_text(&who, "connection_name", om_span_of(l->client_name));
        who.entries[who.n].key = rmq_text("capabilities");
        who.entries[who.n].value.kind = AMQP_FIELD_KIND_TABLE;
        who.entries[who.n++].value.value.table = rmq_table(&can);
        ok.client_properties = rmq_table(&who);
        om_buf_putc(&secret, 0);
        om_buf_puts(&secret, l->settings->user);
        om_buf_putc(&secret, 0);
        om_buf_puts(&secret, l->settings->password);
        ok.response = l->settings->auth ? rmq_text("") : rmq_bytes(om_buf_span(&secret));
        if (!om_buf_ok(&secret) || rmq_write_method(l, 0, AMQP_CONNECTION_START_OK_METHOD, &ok) < 0)
                rmq_link_no_memory(l);
        om_buf_deinit(&secret);
}

static void tune_ok(struct rmq_link *l, const amqp_connection_tune_t *tune) {
        amqp_connection_tune_ok_t ok = { .channel_max = RMQ_CHANNEL_MAX, .frame_max = RMQ_FRAME_MAX };
        amqp_connection_open_t open = { .virtual_host = rmq_text(l->settings->vhost) };

        if (tune->channel_max && tune->channel_max < ok.channel_max)
                ok.channel_max = tune->channel_max;
        if (tune->frame_max && tune->frame_max < ok.frame_max)
                ok.frame_max = tune->frame_max < RMQ_FRAME_MIN ? RMQ_FRAME_MIN : tune->frame_max;
        ok.heartbeat = (uint16_t) ((l->settings->heartbeat_ms + 999) / 1000);
        l->channel_max = ok.channel_max;
        l->frame_max = l->in.frame_max = ok.frame_max;
        l->beat_ms = ok.heartbeat * 1000u;
        if (rmq_write_method(l, 0, AMQP_CONNECTION_TUNE_OK_METHOD, &ok) < 0 ||
                rmq_write_method(l, 0, AMQP_CONNECTION_OPEN_METHOD, &open) < 0)
                rmq_link_no_memory(l);
}

static void is_up(struct rmq_link *l) {
        l->state = LINK_UP;
        event_del(l->timer);
        arm(l->beat, l->beat_ms / 2);
        for (unsigned i = 1; i <= l->n_channels; i++)
                if (rmq_channel_open(l->channels[i]) < 0) {
                        rmq_link_no_memory(l);
                        return;
                }
        l->events->up(l->ctx);
}

/* -- what comes on channel 0 ------------------------------------------------------------------------------------------ */

static void on_close(struct rmq_link *l, const amqp_connection_close_t *close) {
        amqp_connection_close_ok_t ok = { 0 };
        struct om_error e = OM_ERROR_INIT;

        rmq_error(close->reply_code, rmq_span(close->reply_text), l->where, l->settings, l->state == LINK_GREETING, &e);
        rmq_write_method(l, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &ok); /* best effort: the broker is leaving */
        bufferevent_flush(l->bev, EV_WRITE, BEV_FLUSH);
        fail(l, &e);
}

static void on_blocked(struct rmq_link *l, bool blocked, struct om_span reason) {
        char text[200];

        snprintf(text, sizeof text, "%.*s", OM_PRI(reason));
        l->blocked = blocked;
        if (l->state == LINK_UP)
                l->events->blocked(l->ctx, blocked, text);
}

void rmq_link_nobody_asked(struct rmq_link *l, amqp_method_number_t id) {
        const char *name = amqp_method_name(id);
        char text[80];

        snprintf(text, sizeof text, "the broker says what nobody asked (%s)", name ? name : "a method that is not known");
        fail_text(l, OM_UNAVAILABLE, text);
}

static void take_own(struct rmq_link *l, const struct rmq_event *ev) {
        switch (ev->id) {
        case 0:
                break;
        case AMQP_CONNECTION_START_METHOD:
                start_ok(l, ev->method);
                break;
        case AMQP_CONNECTION_TUNE_METHOD:
                tune_ok(l, ev->method);
                break;
        case AMQP_CONNECTION_OPEN_OK_METHOD:
                if (l->state == LINK_GREETING)
                        is_up(l);
                break;
        case AMQP_CONNECTION_CLOSE_METHOD:
                on_close(l, ev->method);
                break;
        case AMQP_CONNECTION_CLOSE_OK_METHOD:
                if (l->state == LINK_CLOSING)
                        is_closed(l);
                break;
        case AMQP_CONNECTION_BLOCKED_METHOD:
                on_blocked(l, true, rmq_span(((amqp_connection_blocked_t *) ev->method)->reason));
                break;
        case AMQP_CONNECTION_UNBLOCKED_METHOD:
                on_blocked(l, false, OM_SPAN(""));
                break;
        default:
                rmq_link_nobody_asked(l, ev->id);
                break;
        }
}

static void take(struct rmq_link *l, struct rmq_event *ev) {
        if (ev->channel == 0)
                take_own(l, ev);
        else if (l->state == LINK_UP && ev->channel <= l->n_channels)
                rmq_channel_take(l->channels[ev->channel], ev);
        else if (l->state != LINK_CLOSING)
                fail_text(l, OM_UNAVAILABLE, "the broker uses a channel that nobody opened");
}

/* -- bytes ----------------------------------------------------------------------------------------------------------- */

static void unreadable(struct rmq_link *l, int r, struct evbuffer *input) {
        unsigned char first[4] = { 0 };
        char text[200];

        evbuffer_copyout(input, first, sizeof first);
        if (r == -ENOMEM)
                rmq_link_no_memory(l);
        else if (l->heard || r == -EMSGSIZE) {
                snprintf(text, sizeof text, "what the broker sends is no AMQP: %s", l->in.fault);
                fail_text(l, r == -EMSGSIZE ? OM_LIMIT : OM_UNAVAILABLE, r == -EMSGSIZE ? l->in.fault : text);
        } else if (first[0] == 0x15 || first[0] == 0x16)
                fail_text(l, OM_UNAVAILABLE, "the port speaks TLS: write amqps instead of amqp in the URL");
        else
                fail_text(l, OM_UNAVAILABLE, "the port does not speak AMQP 0-9-1: is it RabbitMQ's?");
}

static void on_read(struct bufferevent *bev, void *ctx) {
        struct rmq_link *l = ctx;
        struct evbuffer *input = bufferevent_get_input(bev);
        unsigned epoch = l->epoch;
        struct rmq_event ev;
        unsigned char first[4] = { 0 };
        int r = 0;

        l->read_ms = om_clock_ms();
        if (!l->heard && evbuffer_copyout(input, first, 4) == 4 && (memcmp(first, "AMQP", 4) == 0 || first[0] == 0x15)) {
                unreadable(l, -EPROTO, input);
                return;
        }
        while ((r = rmq_in_next(&l->in, input, &ev)) > 0) {
                l->heard = true;
                take(l, &ev);
                if (l->dead || l->epoch != epoch)
                        return; /* input and what was decoded are gone, or go with the link */
                rmq_in_done(&l->in, input);
        }
        if (r < 0)
                unreadable(l, r, input);
}

static void greet(struct rmq_link *l) {
        const int yes = 1, idle = 30, interval = 10, count = 3, unanswered_ms = 30000;
        int fd = bufferevent_getfd(l->bev);

        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
        l->state = LINK_GREETING;
        if (rmq_write(l, (struct om_span){ RMQ_HEADER, RMQ_HEADER_LEN }) < 0)
                rmq_link_no_memory(l);
}

static void connecting_failed(struct rmq_link *l, int error) {
        int dns = bufferevent_socket_get_dns_error(l->bev);
        struct om_error e = OM_ERROR_INIT;

        if (dns)
                om_error_set(
                        &e, OM_UNAVAILABLE, "RabbitMQ at %s: the host's name cannot be resolved: %s", l->where, evutil_gai_strerror(dns));
        else
                om_error_set(&e, OM_UNAVAILABLE, "RabbitMQ at %s: cannot connect: %s%s", l->where, strerror(error),
                        error == ECONNREFUSED ? " (is the broker running, and does the URL name its port?)" : "");
        fail(l, &e);
}

static void tls_failed(struct rmq_link *l) {
        const struct om_tls_settings tls = rmq_tls(l->settings);
        struct om_error e = OM_ERROR_INIT;

        om_tls_error(&tls, l->bev, l->ssl, l->where, &e);
        fail(l, &e);
}

static void on_event(struct bufferevent *bev, short what, void *ctx) {
        struct rmq_link *l = ctx;
        int error = errno;
        struct om_error e = OM_ERROR_INIT;

        if (what & BEV_EVENT_CONNECTED) {
                greet(l);
                return;
        }
        if (l->state == LINK_CONNECTING &&
                (!l->ssl || bufferevent_socket_get_dns_error(bev) || (error && error != EAGAIN && SSL_get_state(l->ssl) == TLS_ST_BEFORE)))
                connecting_failed(l, error);
        else if (l->ssl && !l->heard && l->state != LINK_CLOSING)
                tls_failed(l); /* with TLS 1.3 a refused client certificate shows after the handshake */
        else if (what & BEV_EVENT_ERROR && error) {
                om_error_set(&e, OM_UNAVAILABLE, "RabbitMQ at %s: the connection broke: %s%s", l->where, strerror(error),
                        l->heard ? "" : " (if the port speaks TLS, write amqps in the URL)");
                fail(l, &e);
        } else if (l->state == LINK_GREETING && l->heard)
                /* what brokers do that know no authentication_failure_close */
                fail_text(l, OM_DENIED,
                        "the broker closed the connection while we logged in: mend user, password and virtual host of the URL");
        else
                fail_text(l, OM_UNAVAILABLE,
                        l->heard ? "the broker closed the connection"
                                 : "the connection was closed before the broker greeted; if the port speaks TLS, write amqps in the URL");
}

/* -- connecting ------------------------------------------------------------------------------------------------------ */

static struct bufferevent *connection_new(struct rmq_link *l, const char *host, struct om_error *e) {
        const struct om_tls_settings tls = rmq_tls(l->settings);
        struct bufferevent *bev;

        if (!l->tls)
                return bufferevent_socket_new(l->host->base, -1, BEV_OPT_CLOSE_ON_FREE);
        l->ssl = om_tls_connection(l->tls, &tls, host, e);
        if (!l->ssl)
                return NULL;
        bev = bufferevent_openssl_socket_new(l->host->base, -1, l->ssl, BUFFEREVENT_SSL_CONNECTING, BEV_OPT_CLOSE_ON_FREE);
        if (bev)
                bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
        else {
                SSL_free(l->ssl);
                l->ssl = NULL;
        }
        return bev;
}

static void connect_next(struct rmq_link *l) {
        const struct rmq_address *a = &l->settings->hosts[l->at];
        struct om_error e = OM_ERROR_INIT;

        snprintf(l->where, sizeof l->where, "%.255s:%u", a->host, a->port);
        l->state = LINK_CONNECTING;
        l->heard = false;
        rmq_in_deinit(&l->in);
        rmq_in_init(&l->in, (size_t) l->settings->max_message_bytes);
        l->bev = connection_new(l, a->host, &e);
        if (!l->bev) {
                rmq_link_no_memory(l);
                return;
        }
        bufferevent_setcb(l->bev, on_read, NULL, on_event, l);
        bufferevent_set_max_single_read(l->bev, READ_BYTES);
        bufferevent_set_max_single_write(l->bev, READ_BYTES);
        bufferevent_enable(l->bev, EV_READ | EV_WRITE);
        arm(l->timer, l->settings->connect_timeout_ms);
        if (bufferevent_socket_connect_hostname(l->bev, l->dns, AF_UNSPEC, a->host, a->port) < 0 && l->state == LINK_CONNECTING)
                fail_text(l, OM_UNAVAILABLE, "cannot connect");
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct rmq_link *l = ctx;
        struct om_error e = OM_ERROR_INIT;

        if (l->state == LINK_WAITING) {
                connect_next(l);
        } else if (l->state == LINK_CLOSING) {
                is_closed(l);
        } else if (l->state == LINK_UP) {
                fail_text(l, OM_UNAVAILABLE, "the broker does not answer");
        } else {
                om_error_set(&e, OM_UNAVAILABLE, "RabbitMQ at %s: %s took longer than %lld ms (connect_timeout_ms)", l->where,
                        l->state == LINK_CONNECTING
                                ? "connecting"
                                : "logging in (if the port speaks TLS, write amqps in the URL; else the broker is overloaded)",
                        (long long) l->settings->connect_timeout_ms);
                fail(l, &e);
        }
}

static void on_beat(evutil_socket_t fd, short what, void *ctx) {
        struct rmq_link *l = ctx;
        int64_t now = om_clock_ms();

        if (now - l->read_ms >= 2 * (int64_t) l->beat_ms) {
                fail_text(l, OM_UNAVAILABLE, "the broker is silent: no heartbeat (heartbeat_ms)");
                return;
        }
        if (now - l->written_ms >= l->beat_ms / 2 - 1) {
                om_buf_clear(&l->out);
                rmq_put_heartbeat(&l->out);
                if (om_buf_ok(&l->out))
                        rmq_write(l, om_buf_span(&l->out));
        }
        arm(l->beat, l->beat_ms / 2);
}

/* -- for the owner --------------------------------------------------------------------------------------------------- */

int rmq_link_new(struct om_host *host, struct evdns_base *dns, const struct rmq_settings *settings, struct ssl_ctx_st *tls,
        const char *name, const struct rmq_link_events *events, void *ctx, struct rmq_link **ret, struct om_error *e) {
        struct rmq_link *l = calloc(1, sizeof *l);

        if (!l)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        l->host = host;
        l->dns = dns;
        l->settings = settings;
        l->tls = tls;
        l->client_name = name;
        l->events = events;
        l->ctx = ctx;
        l->channel_max = RMQ_CHANNEL_MAX;
        l->frame_max = RMQ_FRAME_MIN;
        rmq_in_init(&l->in, (size_t) settings->max_message_bytes);
        l->timer = evtimer_new(host->base, on_timer, l);
        l->beat = evtimer_new(host->base, on_beat, l);
        if (!l->timer || !l->beat) {
                rmq_link_free(l);
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        }
        snprintf(l->where, sizeof l->where, "%.255s:%u", settings->hosts[0].host, settings->hosts[0].port);
        l->prober = rmq_channel_new(l, true, NULL, NULL);
        if (!l->prober) {
                rmq_link_free(l);
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        }
        arm(l->timer, 0);
        *ret = l;
        return 0;
}

static void gone(struct om_post *post) {
        struct rmq_link *l = (void *) ((char *) post - offsetof(struct rmq_link, gone));

        for (unsigned i = 1; i <= l->n_channels; i++)
                free(l->channels[i]);
        rmq_in_deinit(&l->in);
        om_buf_deinit(&l->out);
        free(l);
}

void rmq_link_free(struct rmq_link *l) {
        static const struct om_error none = OM_ERROR_INIT;

        if (!l)
                return;
        l->dead = true;
        if (l->timer && l->beat)
                disconnect(l);
        for (unsigned i = 1; i <= l->n_channels; i++)
                rmq_channel_give_up(l->channels[i], &none);
        if (l->timer)
                event_free(l->timer);
        if (l->beat)
                event_free(l->beat);
        l->gone.fn = gone;
        om_host_post(l->host, &l->gone);
}

void rmq_link_close(struct rmq_link *l, void (*closed)(void *ctx)) {
        amqp_connection_close_t close = { .reply_code = AMQP_REPLY_SUCCESS, .reply_text = rmq_text("goodbye") };
        bool said = l->state == LINK_UP && rmq_write_method(l, 0, AMQP_CONNECTION_CLOSE_METHOD, &close) == 0;

        l->closed = closed;
        l->state = LINK_CLOSING;
        event_del(l->beat);
        arm(l->timer, said ? GOODBYE_MS : 0);
}

bool rmq_link_is_up(const struct rmq_link *l) { return l->state == LINK_UP; }
void rmq_link_works(struct rmq_link *l) { l->tries = 0; }
int64_t rmq_link_silent_ms(const struct rmq_link *l) { return om_clock_ms() - l->read_ms; }
bool rmq_link_is_blocked(const struct rmq_link *l) { return l->blocked; }
size_t rmq_link_frame_max(const struct rmq_link *l) { return l->frame_max; }
const char *rmq_link_where(const struct rmq_link *l) { return l->where; }
const char *rmq_link_version(const struct rmq_link *l) { return l->version; }

static void probed(void *ctx, const struct rmq_answer *answer) {
        struct rmq_link *l = ctx;

        if (l->state != LINK_UP || !l->probing)
                return;
        l->probing = false;
        event_del(l->timer);
}

void rmq_link_probe(struct rmq_link *l) {
        amqp_basic_qos_t qos = { .prefetch_count = 1 };

        if (l->state != LINK_UP || l->probing || !l->prober)
                return;
        if (rmq_call(l->prober, AMQP_BASIC_QOS_METHOD, &qos, probed, l) == 0) {
                l->probing = true;
                arm(l->timer, l->settings->connect_timeout_ms);
        }
}
