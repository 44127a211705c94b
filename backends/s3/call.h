/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_CALL_H
#define OM_S3_CALL_H
/*
 * One request to S3, signed, repeated where that may help, its answer typed.
 *
 *   wanting credentials ──▶ under way ──▶ done
 *          ▲                    │
 *          └──── backing off ◀──┘   500, 502, 503, 504, 429, 409 (conditional conflict), a connection that broke; at once: a clock that the
 *                                   server calls wrong (ours is corrected by its Date), credentials that have expired
 *
 * Always true: a request that may have taken effect before it was repeated says so (`repeated`), for conditions are then to be read with
 * care; what is not to be mended by waiting is not repeated. Loop thread.
 */
#include "credentials.h"
#include "sign.h"

struct s3_call;
struct s3_client {
        struct om_host *host;
        struct s3_http *http;
        struct s3_chain *chain;
        const struct s3_settings *settings;
        struct s3_place place;
        int64_t skew_ms;             /* the server's clock less ours */
        bool closing;                /* nothing is repeated any more */
        TAILQ_HEAD(, s3_call) calls; /* under way */
        /* The server cannot be reached; it has answered. Never from within s3_call_start(). */
        void (*lost)(void *ctx, const struct om_error *e);
        void (*reached)(void *ctx);
        void *ctx;
};
static inline int64_t s3_now_ms(const struct s3_client *c) { return om_now_ms() + c->skew_ms; }

enum { S3_NAME_MAX = 256, S3_HEADERS_MAX = 10, S3_ETAG_MAX = 128 };

/* Embedded in what waits for it; zeroed at first. */
struct s3_call {
        /* in; borrowed until done() */
        struct s3_client *client;
        const char *method;
        const char *name;                       /* of the object, below the place's prefix; NULL: the bucket */
        const char *query;                      /* encoded and sorted; NULL: none */
        struct om_span body;                    /* absent: none */
        struct s3_pair headers[S3_HEADERS_MAX]; /* more: names in lower case */
        size_t n_headers;
        const char *action; /* of a policy: what is named where it is denied */
        size_t max_bytes;
        bool quick; /* not repeated: a probe */
        /* 0: 2xx; -ENOENT: no such object; -ESTALE: a condition did not hold; else what `e` says. The answer stays until s3_call_clear().
         */
        void (*done)(struct s3_call *c, int status, const struct om_error *e);
        void *ctx;
        /* out */
        struct s3_http_request req;
        bool repeated;
        /* its own */
        unsigned tries;
        bool renewed, corrected;
        struct s3_wait wait;
        struct event *timer;
        struct om_buf url;
        bool waits, active;
        TAILQ_ENTRY(s3_call) link;
};
void s3_call_header(struct s3_call *c, const char *name, const char *value);
/* done() never comes from within. */
void s3_call_start(struct s3_call *c);
void s3_call_clear(struct s3_call *c); /* not one under way */
/* Ends one without done(): it is cleared. */
void s3_call_abort(struct s3_call *c);
/* What waits to be repeated ends now, as failed; the rest is s3_http_close()'s. */
void s3_client_close(struct s3_client *c);
/* Sets the client's idea of the server's clock by the answer's Date. */
void s3_call_clock(struct s3_call *c);
/* The answer's ETag, quotes included. False: it has none. */
bool s3_call_etag(const struct s3_call *c, char out[static S3_ETAG_MAX]);

/* -- what an answer means (errors.c) --------------------------------------------------------------------------------------- */

enum s3_next { S3_OVER, S3_REPEAT, S3_SKEWED, S3_EXPIRED };
/* Fills `e` and returns the status (0 for 2xx), and what is to be done. */
int s3_answer(const struct s3_call *c, struct om_error *e, enum s3_next *ret_next);

#endif
