/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_LINK_H
#define OM_NATS_LINK_H
/*
 * The connection to the server: one at a time, made again with backoff for as long as the link is open; requests, each with its answers.
 *
 * Everything here is called on the loop and calls back on it. The library's own calls are made on one worker thread, which may block in
 * them: what a turn of the loop has sent goes out in one turn of the worker, and its messages come back in one post.
 *
 * A server that is silent while something is asked is given up for lost within a second, or later where it has megabytes to read or has
 * been slow before (link.c): an answer that is late is waited for only as long as the server returns what we send to ourselves, and some of
 * its kind are answered.
 */
#include <stdatomic.h>

#include "../host.h"
#include "settings.h"

struct nats_link;
struct nats_request;

struct nats_reply {
        int status;   /* 0: an answer. -EAGAIN: the connection is gone, or nobody there answers. -ENOENT: nobody answers to the subject.
                         -EACCES: we may not ask */
        int code;     /* the answer's Status header, 0 without one (100 heartbeat, 404 nothing there, 408 over, 409 …) */
        natsMsg *msg; /* borrowed; NULL unless status is 0 */
        struct om_span data;
};
typedef void nats_reply_fn(struct nats_request *r, const struct nats_reply *reply);

/* Embedded in what asks. Zeroed at first; free again once fn was called (unless `open`). */
struct nats_request {
        nats_reply_fn *fn;
        void *ctx;
        bool open;  /* stays for further answers, and after -ENOENT, until nats_request_end() */
        bool quiet; /* open without being waited for: a silent server is none of its business, and a broken connection does not end it */
        /* the link's */
        uint32_t slot, serial;
        int kind;
        bool active, sent;
        int64_t sent_ms;
        unsigned sent_tick;
        struct nats_out *out;
        struct nats_request *prev, *next;
};

struct nats_link_events {
        void (*up)(void *ctx);                             /* connected; `down` comes before the next */
        void (*down)(void *ctx, const struct om_error *e); /* after the open requests got -EAGAIN; also when a try to connect has failed */
        void (*message)(void *ctx, natsMsg *msg);          /* what came to us with "$JS.ACK.…" to answer to; the callee's */
        void (*turn)(void *ctx);                           /* after the messages of one post */
        void (*note)(void *ctx, natsMsg *msg);             /* from the subject of notes; borrowed */
};

/* Starts to connect. `options` are taken. `notes`: a subject to listen to besides, or NULL. */
int nats_link_new(struct om_host *host, const struct nats_settings *s, const struct om_url *url, natsOptions *options, const char *notes,
        const struct nats_link_events *events, void *ctx, struct nats_link **ret, struct om_error *e);
/* Nothing comes any more; `closed` is posted when the library has let go. Frees the link. */
void nats_link_close(struct nats_link *l, struct om_post *closed);

bool nats_link_is_up(const struct nats_link *l);
const char *nats_link_where(const struct nats_link *l);
const char *nats_link_api(const struct nats_link *l); /* "$JS.API", or a domain's */
int64_t nats_link_max_payload(const struct nats_link *l);
/* The owner found that this connection is of no use; as if it had broken, with this reason. */
void nats_link_fail(struct nats_link *l, const struct om_error *e);
void nats_link_works(struct nats_link *l); /* and that it is good: the backoff begins anew */

void nats_link_clustered(struct nats_link *l); /* it has learnt that what answers may be another server than ours */

/* A message that asks for an answer to `r`. NULL: out of memory. The request is active from here on: send it or end it. */
natsMsg *nats_request_new(struct nats_link *l, struct nats_request *r, const char *subject, struct om_span data);
/* The subject that answers to `r` come to; makes an open one active. */
void nats_request_inbox(struct nats_link *l, struct nats_request *r, char *out, size_t size);
enum { NATS_INBOX_MAX = 200 };
/* Sends what nats_request_new() made, with its answer expected; -EAGAIN: not connected, and the request is over without a call. */
int nats_request_send(struct nats_link *l, struct nats_request *r, natsMsg *msg);
/* The same message once more, of an open request that got -ENOENT. -EAGAIN: not connected, and it is over without a call. */
int nats_request_resend(struct nats_link *l, struct nats_request *r);
void nats_request_end(struct nats_link *l, struct nats_request *r); /* no answer any more */
/* Sends what asks nothing. The message is taken. */
void nats_send(struct nats_link *l, natsMsg *msg);
/* Calls the server's interface: "STREAM.INFO.name". Its answer is checked JSON, or empty. 0, -EAGAIN, -ENOMEM. */
int nats_call(struct nats_link *l, struct nats_request *r, nats_reply_fn *fn, void *ctx, struct om_span body, const char *format, ...)
        __attribute__((format(printf, 6, 7)));

/* For answers that nobody waits for: frees a request that stands in memory of its own. */
void nats_request_forget(struct nats_request *r, const struct nats_reply *reply);

/* -- errors (errors.c) --------------------------------------------------------------------------------------------- */

/* What JetStream says in an answer: its own number, 0 for none. https://github.com/nats-io/nats-server/blob/main/server/errors.json */
enum {
        NATS_ERR_CONSUMER_NOT_FOUND = 10014,
        NATS_ERR_NOT_ENABLED_FOR_ACCOUNT = 10039,
        NATS_ERR_NO_MESSAGE = 10037,
        NATS_ERR_STREAM_EXISTS = 10058,
        NATS_ERR_STREAM_NOT_FOUND = 10059,
        NATS_ERR_WRONG_LAST_SEQUENCE = 10071,
        NATS_ERR_CONSUMERS_LIMIT = 10026,
        NATS_ERR_CONSUMER_EXISTS = 10148,
        NATS_ERR_WRONG_LAST_SEQUENCE_CONSTANT = 10164,
        NATS_ERR_DUPLICATE_UNDER_WAY = 10158,
        NATS_ERR_NOT_ENABLED = 10076,
        NATS_ERR_STORE_FAILED = 10077,
};
unsigned nats_error_code(struct om_span answer);
/* Fills `e` from an answer or the lack of one; 0 where it is no error. `what` says what was tried. */
int nats_error(const struct nats_reply *reply, const char *what, struct om_error *e);
/* Of a request that nats_call() or nats_request_send() refused with r: the error of that, and r. */
int nats_unsent(int r, struct om_error *e);
/* Fills `e` from a failed connect. Worker thread. */
void nats_connect_error(natsStatus s, const char *text, const struct om_url *url, const char *where, struct om_error *e);

#endif
