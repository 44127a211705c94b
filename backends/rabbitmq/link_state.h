/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RABBITMQ_LINK_STATE_H
#define OM_RABBITMQ_LINK_STATE_H
/*
 * What a connection (link.c) and its channels (channel.c) know of each other; nobody else includes it. Everything is the loop's.
 */
#include <event2/event.h>

#include "link.h"

enum link_state { LINK_WAITING, LINK_CONNECTING, LINK_GREETING, LINK_UP, LINK_CLOSING };

struct rmq_link {
        struct om_host *host;
        struct evdns_base *dns;
        const struct rmq_settings *settings;
        struct ssl_ctx_st *tls;
        const char *client_name;
        const struct rmq_link_events *events;
        void *ctx;
        enum link_state state;
        bool dead, heard, blocked, probing;
        unsigned epoch; /* of the connection */
        size_t at;      /* which host */
        unsigned tries;
        char where[280], version[80];
        struct bufferevent *bev;
        struct ssl_st *ssl; /* bev's */
        struct rmq_in in;
        struct om_buf out; /* scratch */
        struct event *timer, *beat;
        int64_t read_ms, written_ms;
        unsigned beat_ms;
        size_t frame_max;
        struct rmq_channel *channels[RMQ_CHANNEL_MAX + 1];
        struct rmq_channel *prober; /* nothing else is asked on it, so nothing holds an answer up */
        unsigned n_channels, channel_max;
        void (*closed)(void *ctx);
        struct om_post gone;
};

/* -- for channels -------------------------------------------------------------------------------------------------- */

/* All of it leaves, in one piece with what else this turn sends, or nothing. -ENOMEM. */
int rmq_write(struct rmq_link *l, struct om_span bytes);
int rmq_write_method(struct rmq_link *l, uint16_t channel, amqp_method_number_t id, void *method);
/* The connection is of no use any more. */
void rmq_link_no_memory(struct rmq_link *l);
void rmq_link_nobody_asked(struct rmq_link *l, amqp_method_number_t id);

/* -- of channels --------------------------------------------------------------------------------------------------- */

int rmq_channel_open(struct rmq_channel *c); /* on the broker */
void rmq_channel_take(struct rmq_channel *c, struct rmq_event *ev);
void rmq_channel_lost(struct rmq_channel *c); /* with the connection */
void rmq_channel_give_up(struct rmq_channel *c, const struct om_error *e);

#endif
