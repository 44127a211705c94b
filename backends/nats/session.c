/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections of the library: see session.h.
 *
 * Threads: the worker connects, writes and closes, so that nothing of the library ever blocks the loop; the library's own threads call back
 * with messages, errors and the end, and do nothing but put it into the session and post. The loop does the rest.
 *
 * Always true:
 *   - a session is freed, on the loop, when three have let go of it: the worker has destroyed the library's connection, the closed callback
 * has come, and the subscriptions have said that they are complete. None of their posts can come later;
 *   - messages come to the loop in the order in which the library got them, all that gathered in one post.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "session.h"

enum { WORK_CONNECT, WORK_SEND, WORK_CLOSE, WORK_STOP };
enum { FLUSH_MS = 650, CONNECT_MS = 2000, CONNECT_MAX_MS = 4000 };

struct session {
        struct om_work close_work; /* first */
        int close_type;
        struct session_worker *worker;
        natsConnection *nc;        /* the worker's */
        natsSubscription *subs[2]; /* the worker's */
        unsigned holders;          /* the loop's */
        bool abandoned;            /* the loop's */
        int64_t max_payload;
        atomic_bool heard; /* set by the worker, when the server has answered to all that was written */
        pthread_mutex_t lock;
        natsMsg **in; /* under the lock, as the rest */
        size_t n_in, cap_in;
        bool posted;
        char why[256];
        struct om_post in_post, connected_post, closed_post, destroyed_post, complete_posts[2];
};

struct session_worker {
        struct om_work connect_work; /* first */
        int connect_type;
        struct om_host *host;
        struct nats_link *link;
        struct om_url url; /* hosts only, for messages */
        natsOptions *options;
        char inbox[NATS_INBOX_MAX], notes[100], where[400];
        struct om_worker *worker;
        struct om_work stop_work;
        int stop_type;
        struct session *last; /* the worker's: not destroyed yet */
        int64_t connect_ms;   /* the worker's: how long a server may take until it has let us in; longer after one that took it all */
        struct om_post failed_post, stopped_post;
        struct om_error failure;
        unsigned n_sessions; /* the loop's */
        bool stopped;
};

struct work_head {
        struct om_work work;
        int type;
};

#define OF(post, type, member) ((type *) (void *) ((char *) (post) -offsetof(type, member)))

void nats_out_unref(struct nats_out *out) {
        if (atomic_fetch_sub(&out->refs, 1) > 1)
                return;
        natsMsg_Destroy(out->msg);
        free(out);
}

/* -- on the loop --------------------------------------------------------------------------------------------------- */

static void worker_check(struct session_worker *w) {
        struct nats_link *l = w->link;

        if (!w->stopped || w->n_sessions)
                return;
        natsOptions_Destroy(w->options);
        for (size_t i = 0; i < w->url.n_hosts; i++)
                free(w->url.hosts[i].name);
        free(w->url.hosts);
        free(w);
        nats_link_stopped(l);
}

static void session_release(struct session *s) {
        struct session_worker *w = s->worker;

        if (--s->holders)
                return;
        for (size_t i = 0; i < s->n_in; i++)
                natsMsg_Destroy(s->in[i]);
        free(s->in);
        pthread_mutex_destroy(&s->lock);
        free(s);
        w->n_sessions--;
        worker_check(w);
}

static void messages_came(struct om_post *post) {
        struct session *s = OF(post, struct session, in_post);
        struct nats_link *l = s->worker->link;
        natsMsg **in;
        size_t n;

        pthread_mutex_lock(&s->lock);
        in = s->in;
        n = s->n_in;
        s->in = NULL;
        s->n_in = s->cap_in = 0;
        s->posted = false;
        pthread_mutex_unlock(&s->lock);
        for (size_t i = 0; i < n; i++) {
                if (s->abandoned)
                        natsMsg_Destroy(in[i]);
                else
                        nats_link_message(l, s, in[i]);
        }
        free(in);
        if (!s->abandoned)
                nats_link_turn(l);
}

static void connected(struct om_post *post) {
        struct session *s = OF(post, struct session, connected_post);

        if (!s->abandoned)
                nats_link_connected(s->worker->link, s, s->max_payload);
}

static void is_closed(struct om_post *post) {
        struct session *s = OF(post, struct session, closed_post);

        if (!s->abandoned)
                nats_link_broken(s->worker->link, s, s->why);
        session_release(s);
}

static void is_destroyed(struct om_post *post) { session_release(OF(post, struct session, destroyed_post)); }
static void is_complete_0(struct om_post *post) { session_release(OF(post, struct session, complete_posts[0])); }
static void is_complete_1(struct om_post *post) { session_release(OF(post, struct session, complete_posts[1])); }

static void has_failed(struct om_post *post) {
        struct session_worker *w = OF(post, struct session_worker, failed_post);
        struct om_error e = w->failure;

        w->n_sessions--;
        nats_link_not_connected(w->link, &e);
        worker_check(w);
}

static void has_stopped(struct om_post *post) {
        struct session_worker *w = OF(post, struct session_worker, stopped_post);

        w->stopped = true;
        worker_check(w);
}

struct denied_note {
        struct om_post post;
        struct session *session;
        char text[256];
};
static void is_denied(struct om_post *post) {
        struct denied_note *n = (struct denied_note *) post;

        if (!n->session->abandoned)
                nats_link_denied(n->session->worker->link, n->session, n->text);
        free(n);
}

/* -- on the library's threads -------------------------------------------------------------------------------------- */

static void on_message(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *ctx) {
        struct session *s = ctx;
        bool post;

        pthread_mutex_lock(&s->lock);
        if (s->n_in == s->cap_in) {
                size_t cap = s->cap_in ? s->cap_in * 2 : 64;
                natsMsg **in = reallocarray(s->in, cap, sizeof(natsMsg *));

                if (!in) { /* it comes again, or its request runs out of time */
                        pthread_mutex_unlock(&s->lock);
                        natsMsg_Destroy(msg);
                        return;
                }
                s->in = in;
                s->cap_in = cap;
        }
        s->in[s->n_in++] = msg;
        post = !s->posted;
        s->posted = true;
        pthread_mutex_unlock(&s->lock);
        if (post)
                om_host_post(s->worker->host, &s->in_post);
}

static void on_closed(natsConnection *nc, void *ctx) {
        struct session *s = ctx;
        const char *text = NULL;

        if (natsConnection_GetLastError(nc, &text) != NATS_OK && text)
                snprintf(s->why, sizeof s->why, "%.250s", text);
        om_host_post(s->worker->host, &s->closed_post);
}

/* Before the closed callback, on the same thread, so the session is there. */
static void on_error(natsConnection *nc, natsSubscription *sub, natsStatus err, void *ctx) {
        struct session *s = ctx;
        const char *text = nats_GetLastError(NULL);
        struct denied_note *n;

        if (err != NATS_NOT_PERMITTED || !(n = calloc(1, sizeof *n)))
                return;
        n->post.fn = is_denied;
        n->session = s;
        snprintf(n->text, sizeof n->text, "%.250s", text ? text : "");
        om_host_post(s->worker->host, &n->post);
}

static void on_complete_0(void *ctx) { om_host_post(((struct session *) ctx)->worker->host, &((struct session *) ctx)->complete_posts[0]); }
static void on_complete_1(void *ctx) { om_host_post(((struct session *) ctx)->worker->host, &((struct session *) ctx)->complete_posts[1]); }

/* -- on the worker ------------------------------------------------------------------------------------------------- */

static natsStatus subscribe(struct session *s, int i, const char *subject) {
        natsStatus st = natsConnection_Subscribe(&s->subs[i], s->nc, subject, on_message, s);

        if (st == NATS_OK) {
                natsSubscription_SetPendingLimits(s->subs[i], -1, -1);
                st = natsSubscription_SetOnCompleteCB(s->subs[i], i ? on_complete_1 : on_complete_0, s);
        }
        if (st != NATS_OK) /* nobody will say that it is complete, but nothing comes of it either */
                om_host_post(s->worker->host, &s->complete_posts[i]);
        return st;
}

static void run_connect(struct session_worker *w) {
        struct session *s = calloc(1, sizeof *s);
        char subject[NATS_INBOX_MAX + 4];
        natsStatus st = NATS_NO_MEMORY;
        int64_t began_ms = om_clock_ms();

        if (s) {
                s->worker = w;
                pthread_mutex_init(&s->lock, NULL);
                s->in_post.fn = messages_came;
                s->connected_post.fn = connected;
                s->closed_post.fn = is_closed;
                s->destroyed_post.fn = is_destroyed;
                s->complete_posts[0].fn = is_complete_0;
                s->complete_posts[1].fn = is_complete_1;
                s->close_type = WORK_CLOSE;
                s->holders = w->notes[0] ? 4 : 3;
                st = natsOptions_SetClosedCB(w->options, on_closed, s);
                if (st == NATS_OK)
                        st = natsOptions_SetTimeout(w->options, w->connect_ms);
                if (st == NATS_OK)
                        st = natsOptions_SetErrorHandler(w->options, on_error, s);
                if (st == NATS_OK)
                        st = natsConnection_Connect(&s->nc, w->options);
        }
        if (st != NATS_OK) {
                const char *text = nats_GetLastError(NULL);

                if (om_clock_ms() - began_ms >= w->connect_ms) {
                        st = NATS_TIMEOUT; /* the library names what it was waiting for */
                        w->connect_ms = CONNECT_MAX_MS;
                }
                nats_connect_error(st, text ? text : "", &w->url, w->where, &w->failure);
                if (s)
                        pthread_mutex_destroy(&s->lock);
                free(s);
                om_host_post(w->host, &w->failed_post);
                return;
        }
        if (2 * (om_clock_ms() - began_ms) < CONNECT_MS)
                w->connect_ms = CONNECT_MS;
        snprintf(subject, sizeof subject, "%s.>", w->inbox);
        s->max_payload = natsConnection_GetMaxPayload(s->nc);
        w->last = s;
        om_host_post(w->host, &s->connected_post);
        st = subscribe(s, 0, subject);
        if (w->notes[0] && subscribe(s, 1, w->notes) != NATS_OK)
                st = NATS_ERR;
        if (st != NATS_OK)
                natsConnection_Close(s->nc);
}

static void run_close(struct session *s) {
        if (s->worker->last == s)
                s->worker->last = NULL;
        natsSubscription_Destroy(s->subs[0]);
        natsSubscription_Destroy(s->subs[1]);
        natsConnection_Destroy(s->nc);
        om_host_post(s->worker->host, &s->destroyed_post);
}

static void run_send(struct nats_out *out, struct session **ret_flush) {
        /* What fails is told by the closed callback: a connection that cannot be written to is closed. */
        if (natsConnection_PublishMsg(out->session->nc, out->msg) == NATS_OK)
                *ret_flush = out->session;
        nats_out_unref(out);
}

static int turn(void *ctx, struct om_work *list) {
        struct session *flush = NULL;

        for (struct om_work *next; list; list = next) {
                next = list->next;
                switch (((struct work_head *) list)->type) {
                case WORK_CONNECT:
                        run_connect(ctx);
                        break;
                case WORK_SEND:
                        run_send((struct nats_out *) list, &flush);
                        break;
                case WORK_STOP: {
                        struct session_worker *w = ctx;

                        flush = NULL;
                        if (w->last)
                                run_close(w->last);
                        nats_ReleaseThreadMemory();
                        break;
                }
                default:
                        flush = NULL;
                        run_close((struct session *) list);
                }
        }
        /* The library's own flusher waits a millisecond for more; what comes meanwhile shares the next turn. */
        if (flush && natsConnection_FlushTimeout(flush->nc, FLUSH_MS) == NATS_OK)
                atomic_store(&flush->heard, true);
        return -1;
}

/* -- called by the link, on the loop ------------------------------------------------------------------------------- */

static int copy_hosts(struct session_worker *w, const struct om_url *url) {
        w->url.hosts = calloc(url->n_hosts, sizeof url->hosts[0]);
        for (size_t i = 0; w->url.hosts && i < url->n_hosts; i++, w->url.n_hosts++)
                if (!(w->url.hosts[i].name = strdup(url->hosts[i].name)))
                        return -ENOMEM;
        return w->url.hosts ? 0 : -ENOMEM;
}

int nats_session_worker_new(struct om_host *host, struct nats_link *l, const struct om_url *url, natsOptions *options, const char *inbox,
        const char *notes, const char *where, struct session_worker **ret, struct om_error *e) {
        struct session_worker *w = calloc(1, sizeof *w);
        int r;

        if (!w || copy_hosts(w, url) < 0) {
                free(w);
                natsOptions_Destroy(options);
                return om_error_set_errno(e, ENOMEM, "NATS");
        }
        w->host = host;
        w->link = l;
        w->options = options;
        w->connect_ms = CONNECT_MS;
        w->connect_type = WORK_CONNECT;
        w->failed_post.fn = has_failed;
        w->stopped_post.fn = has_stopped;
        snprintf(w->inbox, sizeof w->inbox, "%s", inbox);
        snprintf(w->notes, sizeof w->notes, "%s", notes ? notes : "");
        snprintf(w->where, sizeof w->where, "%s", where);
        r = host->ops->worker_new(host, "nats", turn, w, &w->worker, e);
        if (r < 0) {
                natsOptions_Destroy(options);
                free(w);
                return r;
        }
        *ret = w;
        return 0;
}

void nats_session_connect(struct session_worker *w) {
        w->n_sessions++;
        w->host->ops->worker_submit(w->worker, &w->connect_work);
}

struct nats_out *nats_session_send(struct session *s, natsMsg *msg, bool keep) {
        struct nats_out *out = malloc(sizeof *out);

        if (!out) {
                natsMsg_Destroy(msg);
                return NULL;
        }
        out->type = WORK_SEND;
        out->session = s;
        out->msg = msg;
        atomic_init(&out->refs, keep ? 2 : 1);
        s->worker->host->ops->worker_submit(s->worker->worker, &out->work);
        return keep ? out : NULL;
}

void nats_session_resend(struct session *s, struct nats_out *out) {
        out->session = s;
        atomic_fetch_add(&out->refs, 1);
        s->worker->host->ops->worker_submit(s->worker->worker, &out->work);
}

bool nats_session_heard(struct session *s) { return atomic_exchange(&s->heard, false); }

void nats_session_abandon(struct session *s) {
        s->abandoned = true;
        s->worker->host->ops->worker_submit(s->worker->worker, &s->close_work);
}

void nats_session_worker_stop(struct session_worker *w) {
        w->stop_type = WORK_STOP;
        w->host->ops->worker_submit(w->worker, &w->stop_work);
        w->host->ops->worker_stop(w->worker, &w->stopped_post);
}
