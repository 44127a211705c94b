/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REDIS_CLIENT_H
#define OM_REDIS_CLIENT_H
/*
 * What conn.c, cluster.c and sentinel.c share: the client and its nodes. Loop thread.
 */
#include <event2/event.h>

#include "link.h"

enum { OM_REDIS_SLOTS = 16384, OM_REDIS_NODES_MAX = 1024 };

struct om_redis_node {
        struct om_redis *r;
        struct om_redis_address address; /* host is ours */
        struct om_redis_link *link;
        struct om_redis_reader *readers;
        bool primary; /* has slots now; of one server: always */
        bool marked;  /* while a map is read */
        bool failed;  /* its link has failed at least once since it was primary */
};

struct om_redis_reader {
        struct om_redis_reader *next;
        struct om_redis_node *node;
        const struct om_redis_reader_events *events;
        void *ctx;
        struct om_redis_link *link;
};

struct om_redis {
        struct om_host *host;
        const struct om_redis_settings *settings;
        const struct om_redis_events *events;
        void *ctx;
        struct evdns_base *dns, *own_dns;
        struct ssl_ctx_st *tls;
        bool dead, leaving, ready;
        struct om_error why;
        size_t pending;
        struct om_redis_node **nodes; /* of one server: exactly one */
        size_t n_nodes;
        struct om_post gone;

        /* cluster.c */
        struct om_redis_node **slots; /* OM_REDIS_SLOTS of them; NULL: nobody's, or unknown */
        bool map_known, map_asked, map_stale;
        unsigned map_tries;
        size_t ask_at; /* whom to ask next */
        struct event *map_timer;

        /* sentinel.c */
        struct om_redis_link *sentinel;
        struct event *sentinel_timer;
        unsigned sentinel_tries;
};

/* -- conn.c -- */
int om_redis_node_add(struct om_redis *r, const char *host, uint16_t port, struct om_redis_node **ret); /* -ENOMEM, -ENOBUFS */
struct om_redis_node *om_redis_node_find(struct om_redis *r, struct om_span host, uint16_t port);
void om_redis_node_go(struct om_redis_node *node, bool anew);                   /* it and its readers connect to its address */
void om_redis_told(struct om_redis *r, bool ready, const struct om_error *why); /* tells the owner what is new; it may free the client */
int om_redis_node_dispatch(struct om_redis_node *node, struct om_redis_cmd *c, struct om_error *e); /* owner, done are set */

/* -- cluster.c -- */
int om_redis_cluster_start(struct om_redis *r, struct om_error *e);
void om_redis_cluster_stop(struct om_redis *r);
void om_redis_cluster_node_state(struct om_redis_node *node, enum om_redis_state state, const struct om_error *error);
struct om_redis_node *om_redis_cluster_node(struct om_redis *r, int slot); /* slot < 0: any */
/* The map is wrong: asks for it anew, soon. */
void om_redis_cluster_stale(struct om_redis *r);
/* "MOVED 3999 host:port", "ASK 3999 host:port": the node that is meant; NULL where it cannot be read. `from` names an empty host. */
struct om_redis_node *om_redis_cluster_redirect(struct om_redis_node *from, struct om_span text, int *ret_slot);

/* -- sentinel.c -- */
int om_redis_sentinel_start(struct om_redis *r, struct om_error *e);
void om_redis_sentinel_stop(struct om_redis *r);
void om_redis_sentinel_ask(struct om_redis *r);   /* the primary does not answer: asks who it is, with backoff */
void om_redis_sentinel_found(struct om_redis *r); /* the primary answers */

#endif
