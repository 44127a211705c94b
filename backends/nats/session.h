/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_SESSION_H
#define OM_NATS_SESSION_H
/*
 * One connection of the library after the other, and the worker thread that makes its calls: what link.c stands on.
 */
#include "link.h"

struct session;
struct session_worker;

/* A message on its way out. The worker has one reference until it is written, the request that waits for its answer another. */
struct nats_out {
        struct om_work work; /* first: all that the worker gets begins so */
        int type;
        struct session *session;
        natsMsg *msg;
        atomic_int refs;
};
void nats_out_unref(struct nats_out *out); /* any thread */

/* Takes options; copies of url's parts are its own. */
int nats_session_worker_new(struct om_host *host, struct nats_link *l, const struct om_url *url, natsOptions *options, const char *inbox,
        const char *notes, const char *where, struct session_worker **ret, struct om_error *e);
void nats_session_connect(struct session_worker *w);     /* answered by nats_link_connected() or nats_link_not_connected() */
void nats_session_worker_stop(struct session_worker *w); /* nats_link_stopped() when all sessions are gone; frees w */
struct nats_out *nats_session_send(
        struct session *s, natsMsg *msg, bool keep);               /* the message is taken; with `keep` a reference is returned */
void nats_session_resend(struct session *s, struct nats_out *out); /* that was written and is kept */
bool nats_session_heard(struct session *s);                        /* whether the server has answered to the worker since this was asked */
void nats_session_abandon(struct session *s);                      /* closed in its own time; nothing of it comes any more */

/* link.c's, called on the loop. */
void nats_link_connected(struct nats_link *l, struct session *s, int64_t max_payload);
void nats_link_not_connected(struct nats_link *l, const struct om_error *e);
void nats_link_broken(struct nats_link *l, struct session *s, const char *why);
void nats_link_denied(struct nats_link *l, struct session *s, const char *text);
void nats_link_message(struct nats_link *l, struct session *s, natsMsg *msg);
void nats_link_turn(struct nats_link *l);
void nats_link_stopped(struct nats_link *l);

#endif
