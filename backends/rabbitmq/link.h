/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RABBITMQ_LINK_H
#define OM_RABBITMQ_LINK_H
/*
 * One connection to a broker, and its channels: methods out, answers in. Connecting, TLS, logging in, heartbeats and reconnecting are
 * hidden here.
 *
 * What holds:
 *   - calls on one channel are answered in the order in which they were made; all that one turn of the loop sends leaves in one write;
 *   - an answer comes exactly once for a call that was taken, never from within rmq_call(): the broker's, or -EAGAIN with the reason when
 *     the connection is lost first (it may have taken effect);
 *   - an error of the broker closes the channel that it happened on. The call at fault gets it; the channel is opened anew at once. On a
 *     `sturdy` channel the calls behind it are made again there, on others they get -EAGAIN and `closed` is told;
 *   - nothing blocks: heartbeats go out and are watched however busy the broker or we are, and a peer that falls silent is found by them.
 *
 * Thread: the loop's.
 */
#include "../host.h"
#include "settings.h"
#include "wire.h"

struct rmq_link;
struct rmq_channel;

struct rmq_answer {
        int status;
        const struct om_error *error; /* with status < 0 */
        struct rmq_event *event;      /* with status 0: the method, and its content where it has one */
};
typedef void rmq_answer_fn(void *ctx, const struct rmq_answer *answer);

struct rmq_link_events {
        void (*up)(void *ctx);                             /* logged in; channels are open and empty */
        void (*down)(void *ctx, const struct om_error *e); /* told at every failure; it goes on trying, with backoff */
        void (*blocked)(void *ctx, bool blocked, const char *reason);
};
/* Begins to connect. `name` is for the broker's list of connections; `settings` live as long as the link. */
int rmq_link_new(struct om_host *host, struct evdns_base *dns, const struct rmq_settings *settings, struct ssl_ctx_st *tls,
        const char *name, const struct rmq_link_events *events, void *ctx, struct rmq_link **ret, struct om_error *e);
/* Ends it at once; calls get no answer any more. NULL-safe. */
void rmq_link_free(struct rmq_link *l);
/* Says goodbye, after what was sent; `closed` is called when the broker has taken it, or would not within a second. No other event. */
void rmq_link_close(struct rmq_link *l, void (*closed)(void *ctx));
bool rmq_link_is_up(const struct rmq_link *l);
void rmq_link_works(struct rmq_link *l);                          /* all is well: backoff begins anew */
void rmq_link_fail(struct rmq_link *l, const struct om_error *e); /* what was said on it makes it useless: made anew */
/* Whether the peer lives: asks it, and makes the connection anew when it does not answer within connect_timeout_ms. */
void rmq_link_probe(struct rmq_link *l);
int64_t rmq_link_silent_ms(const struct rmq_link *l); /* since when nothing was heard */
bool rmq_link_is_blocked(const struct rmq_link *l);
size_t rmq_link_frame_max(const struct rmq_link *l);
const char *rmq_link_where(const struct rmq_link *l);   /* "host:port" */
const char *rmq_link_version(const struct rmq_link *l); /* "RabbitMQ 3.10.8" */

struct rmq_channel_events { /* any may be NULL */
        void (*delivered)(void *ctx, struct rmq_event *ev);
        void (*returned)(void *ctx, struct rmq_event *ev);
        void (*confirmed)(void *ctx, uint64_t tag, bool multiple, bool ok);
        void (*cancelled)(void *ctx, struct om_span consumer_tag); /* by the broker: its queue is gone, or moves */
        void (*closed)(void *ctx, int status, const struct om_error *e);
};
/* A channel for the life of the link; open whenever the link is up. NULL: out of memory, or the broker's channel_max is reached. */
struct rmq_channel *rmq_channel_new(struct rmq_link *l, bool sturdy, const struct rmq_channel_events *events, void *ctx);
/* A method that is answered. 0: taken. -EAGAIN: not connected; -ENOMEM, -E2BIG. */
int rmq_call(struct rmq_channel *c, amqp_method_number_t id, void *method, rmq_answer_fn *fn, void *ctx);
/* One that is not. */
int rmq_cast(struct rmq_channel *c, amqp_method_number_t id, void *method);
/* Frames that were put together for this channel; the bytes are copied. */
int rmq_send(struct rmq_channel *c, struct om_span frames);
uint16_t rmq_channel_number(const struct rmq_channel *c);
/* Closes it and opens it anew: what was delivered on it and not settled goes back. Calls under way are answered with -EAGAIN. */
void rmq_channel_reset(struct rmq_channel *c);

/* What an error of the broker means: fills `e`, returns the status (errors.c). `login`: before the virtual host was open. */
int rmq_error(unsigned code, struct om_span text, const char *where, const struct rmq_settings *s, bool login, struct om_error *e);

#endif
