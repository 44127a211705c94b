/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_LINK_H
#define OM_PG_LINK_H
/*
 * One connection on the loop, in pipeline mode: requests go out as they come, a few at a time, each ended by a sync, so each is a
 * transaction of its own; answers come in that order.
 *
 * A worker makes the connection (session.h) and hands it over. While it is used, nothing here blocks: what cannot be sent at once waits for
 * the socket, and a result is taken only when it is there.
 *
 * Always true: a request that was taken is answered once, from the loop and never from within a call of its owner; when the connection
 * ends, what was sent is answered with -EAGAIN (it may have taken effect), and what was not goes back to the owner.
 *
 * Loop thread.
 */
#include "codec.h"
#include "settings.h"

struct om_pg_link;
struct om_pg_request {
        struct om_pg_request *next;
        unsigned statement; /* place in om_pg_statements */
        /* Fills the parameters right before it is sent. -ENOMEM. */
        int (*fill)(struct om_pg_request *r, struct om_pg_params *p);
        /* res: rows (borrowed), with status 0; else `e`. `state`: the SQLSTATE or "". The request is the owner's again. */
        void (*answer)(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e);
        /* May another that waits behind it go along in its statement? NULL: none. */
        bool (*absorb)(struct om_pg_request *r, struct om_pg_request *other);
        bool (*dropped)(const struct om_pg_request *r); /* nobody wants the answer any more */
        const char *doing;
        /* link.c's */
        unsigned tries;
        int64_t owed_ms; /* since when it is its turn to be answered */
        bool prepares;   /* its statement is prepared with it */
};

struct om_pg_link_owner {
        void (*down)(void *ctx, struct om_pg_link *link, const struct om_error *e); /* the connection ended; may not free the link */
        void (*unsent)(void *ctx, struct om_pg_request *r, const struct om_error *e);
        void *ctx;
};

int om_pg_link_new(struct om_host *host, const struct om_pg_settings *s, const struct om_pg_link_owner *owner, struct om_pg_link **ret,
        struct om_error *e);
void om_pg_link_free(struct om_pg_link *l); /* no request is in it; NULL-safe */
/* Takes the connection. On failure it is closed. */
int om_pg_link_use(struct om_pg_link *l, PGconn *conn, struct om_error *e);
bool om_pg_link_is_up(const struct om_pg_link *l);
size_t om_pg_link_load(const struct om_pg_link *l); /* requests in it */
void om_pg_link_add(struct om_pg_link *l, struct om_pg_request *r);
void om_pg_link_add_first(struct om_pg_link *l, struct om_pg_request *r); /* before all that waits: it was there before */
void om_pg_link_end(struct om_pg_link *l, const struct om_error *e);      /* ends the connection; down() is called */
void om_pg_link_drop(struct om_pg_link *l); /* what waits and nobody wants any more is answered with -ECANCELED */
/* "TLSv1.3", or NULL without TLS; the server's version ("15.18"), address for messages. While it is up. */
const char *om_pg_link_tls(const struct om_pg_link *l);
const char *om_pg_link_version(const struct om_pg_link *l);
const char *om_pg_link_host(const struct om_pg_link *l);

#endif
