/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REDIS_LINK_H
#define OM_REDIS_LINK_H
/*
 * What the files of the connection layer share: one connection to one server (link.c, dial.c), commands (cmd.c), replies (reply.c).
 * The bus and the storage see conn.h alone. Loop thread.
 *
 *   settings.c   the URL                     link.c      a connection's life: connecting, logging in, sending, silence, reconnecting
 *   cmd.c        making commands             dial.c      from a name to a connected socket
 *   reply.c      reading replies             conn.c      the client: nodes, routing, redirects, readers
 *   errors.c     what a server's error means cluster.c   a cluster's map     sentinel.c   whom the sentinels call primary
 *   slot.c       hash slots                  ../tls.c    TLS contexts, and what their errors mean
 */
#include <hiredis/read.h>

#include "../tls.h"
#include "conn.h"

struct bufferevent;
struct evdns_base;
struct ssl_ctx_st;
struct ssl_st;

/* -- commands -------------------------------------------------------------------------------------------------------- */

/* Told of a command's end: the next to know, a link's owner or the greeting. The command is the callee's. `reply` NULL: none came. */
typedef void om_redis_answer_fn(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error);

struct om_redis_cmd {
        struct om_redis_cmd *next; /* of its link, in the order of sending */
        struct om_buf body;        /* arguments after the name, or after the script's hash */
        unsigned n_args;           /* the name and the hash included */
        bool failed;
        const char *name;
        struct om_redis_script *script;
        bool hurry;
        bool whole; /* the script's text instead of its hash */
        bool has_key;
        size_t key_at, key_len; /* the first key, in `body`: what a cluster goes by (om_redis_cmd_slot()) */
        int64_t patience_ms;
        size_t arg_start, arg_len; /* of an argument that is being made of pieces */

        om_redis_answer_fn *answer;
        void *owner; /* answer's */
        om_redis_done_fn *done;
        void *ctx;
        unsigned redirects;
        int64_t sent_ms;
        size_t bytes; /* on the wire */
        size_t skip;  /* answers that come before its own, to commands that were given up */
};
/* Appends the command to a buffer of libevent. 0 or -ENOMEM. */
struct evbuffer;
int om_redis_cmd_write(struct om_redis_cmd *c, struct evbuffer *out);
/* Calls done() if there still is one, and frees. An om_redis_answer_fn. */
void om_redis_cmd_finish(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error);

/* -- replies --------------------------------------------------------------------------------------------------------- */

/* Reads replies out of a stream of bytes, within bounds. */
struct om_redis_in {
        redisReader *reader;
        struct om_arena arena; /* of the reply that is being read */
        size_t budget, max;    /* bytes that it may still take */
        bool over;             /* it wanted more */
};
int om_redis_in_init(struct om_redis_in *in, size_t max_bytes);
void om_redis_in_deinit(struct om_redis_in *in);
/* Adds bytes: at most OM_REDIS_FEED at a time. 0; -EPROTO or -EMSGSIZE, after which only deinit is allowed. */
enum { OM_REDIS_FEED = 16 << 10 };
int om_redis_in_feed(struct om_redis_in *in, const char *bytes, size_t n);
/* The next whole reply. 1; 0: not yet; as feed. It lives until om_redis_in_done(). */
int om_redis_in_next(struct om_redis_in *in, struct om_redis_reply **ret);
void om_redis_in_done(struct om_redis_in *in);
const char *om_redis_in_fault(const struct om_redis_in *in); /* after a failure, for people */

/* What a server's error means: fills `e`, returns the status (conn.h). `name`: the command's; `key`: its first, or nothing; `where`: the
 * server. */
int om_redis_error(const struct om_redis_reply *reply, const char *name, struct om_span key, const char *where, struct om_error *e);

/* -- TLS: backends/tls.h --------------------------------------------------------------------------------------------- */

struct om_tls_settings om_redis_tls(const struct om_redis_settings *s);

/* -- from a name to a socket ----------------------------------------------------------------------------------------- */

struct om_redis_dial;
/* fd >= 0: connected, non-blocking, the callee's. < 0: a negative errno with `error`. The dial is over and freed. */
typedef void om_redis_dialed_fn(void *ctx, int fd, const struct om_error *error);
/* Resolves and connects, address after address. fn may be called before it returns; *slot holds the dial until then. 0, or -ENOMEM, when fn
 * is not called. */
int om_redis_dial(struct event_base *base, struct evdns_base *dns, const struct om_redis_settings *s,
        const struct om_redis_address *address, om_redis_dialed_fn *fn, void *ctx, struct om_redis_dial **slot);
void om_redis_dial_cancel(struct om_redis_dial **slot); /* fn is not called; one that is over is no fault */

/* -- one connection -------------------------------------------------------------------------------------------------- */

struct om_redis_link;
struct om_redis_link_config {
        struct om_host *host;
        struct evdns_base *dns;
        const struct om_redis_settings *settings;
        struct ssl_ctx_st *tls; /* NULL: none */
        const char *user, *password;
        int64_t db;
        bool wants_id;   /* asks for its number */
        bool wants_role; /* a server that is no primary counts as a failure */
        /* All are called on the loop, never from within a call of the owner; the owner may free the link in them. */
        void (*state)(void *ctx, enum om_redis_state state, const struct om_error *error); /* CONNECTING: at every failure */
        void (*push)(void *ctx, const struct om_redis_reply *reply); /* a reply that nobody asked for; NULL: a fault of the server */
        void *ctx;
};
/* Of no address at first: om_redis_link_go(). */
int om_redis_link_new(const struct om_redis_link_config *config, struct om_redis_link **ret, struct om_error *e);
void om_redis_link_free(struct om_redis_link *l); /* commands are answered with -ECANCELED within; NULL-safe */
/* From now on to one of these, in turn; borrowed. What is connected elsewhere, or `anew`, is ended; commands under way get -EAGAIN in a
 * later turn. */
void om_redis_link_go(struct om_redis_link *l, const struct om_redis_address *addresses, size_t n, bool anew);
void om_redis_link_next(struct om_redis_link *l); /* the same, to the next of its addresses */
/* Takes c unless it returns < 0: -EAGAIN, -ENOBUFS, -ENOMEM with `e`. c->answer will be called. */
int om_redis_link_send(struct om_redis_link *l, struct om_redis_cmd *c, struct om_error *e);
bool om_redis_link_ready(const struct om_redis_link *l);
bool om_redis_link_silent(const struct om_redis_link *l); /* connected, and owes an answer for too long; or it is being left */
const struct om_error *om_redis_link_why(const struct om_redis_link *l);
const char *om_redis_link_name(const struct om_redis_link *l); /* where it goes, for messages */
int64_t om_redis_link_id(const struct om_redis_link *l);
size_t om_redis_link_pending(const struct om_redis_link *l);

#endif
