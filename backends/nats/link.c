/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests and their answers, and the life of the connection: see link.h. What the library's threads and the worker do is session.c's.
 *
 *   DOWN ── the worker connects ──▶ UP ── it breaks, is silent, or the owner finds it useless ──▶ DOWN, again after a backoff
 *
 * Always true:
 *   - a request is in the table under its slot from nats_request_new() until its fn was called or it was ended; what comes for a slot under
 * an older serial comes too late and is dropped;
 *   - requests that wait for an answer are in the list `waiting` of their kind, oldest first; when the connection goes each gets -EAGAIN
 * before `down`. All of a kind get it too when the server lives and has answered none of them for a while, and one that later ones have
 * overtaken: then it is not a slow disk, but nobody there to answer. The more is under way, the longer that takes to tell. With one server,
 * messages wait as long as its disk takes;
 *   - a server that is far away or busy is slow, not silent: the patience with silence doubles when it runs out, and that with a kind when
 * what was given up is answered after all, up to PATIENCE_MAX times; a prompt answer ends that. A cluster without a leader answers nothing
 * late, so there it stays short;
 *   - the watch's timer runs only while something is waited for. It counts its own ticks, not time: a daemon that was stopped itself does
 * not blame the server.
 *
 * Loop thread.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "json.h"
#include "session.h"

enum {
        TICK_MS = 100,
        PROBE_TICKS = 3,                  /* silent for so many: asked whether it lives */
        LOST_TICKS = 7,                   /* silent for so many: lost */
        STUCK_TICKS = 8,                  /* none of a kind answered for so many: a cluster without a leader, say */
        CALL_TICKS = 30,                  /* the same where there is one server: it may be busy, but not for ever */
        STUCK_MS = STUCK_TICKS * TICK_MS, /* this one not, and ones that were asked OVERTAKEN_MS later are: its stream has none */
        OVERTAKEN_MS = 200,
        FEW = 256,           /* messages under way, for which the ticks above suffice on any disk */
        A_MESSAGE_US = 5000, /* what one may take for each further message that waits, and for all bytes: */
        BYTES_A_MS = 1000,
        A_MAKING_MS = 50, /* and a cluster to agree about a stream */
        WORK_MAX_MS = 5000,
        PATIENCE_MAX = 4,
        BACKOFF_BASE_MS = 100,
        BACKOFF_MAX_MS = 1000,
};

/* Each kind is answered about in order: questions by any server, what is made by who leads the cluster, messages by who leads their stream.
 */
enum { QUESTIONS, MAKING, MESSAGES, N_KINDS };

struct slot {
        struct nats_request *r;
        uint32_t serial;
        uint32_t given_up; /* the serial of the last that was not waited for any longer; its kind: */
        int kind;
};

struct nats_link {
        struct om_host *host;
        const struct nats_link_events *events;
        void *ctx;
        char where[400], api[80], inbox[NATS_INBOX_MAX - 40];
        struct session_worker *worker;
        struct session *session; /* NULL: down */
        struct om_error reason;  /* why it is down */
        unsigned tries;
        bool closing;
        struct om_post *closed;
        struct event *again, *watch;
        unsigned ticks;                          /* of the watch, while it runs */
        unsigned silent;                         /* ticks since anything came */
        unsigned stuck[N_KINDS];                 /* ticks since one of the kind was answered */
        int64_t answered_ms[N_KINDS];            /* when the latest of those that were answered had been sent */
        unsigned patience, patience_of[N_KINDS]; /* times the ticks above: with silence, with a kind */
        struct slot *slots;
        size_t n_slots, next_free; /* where to look for a free one */
        size_t n_used;
        struct nats_request *waiting[N_KINDS];
        size_t n_waiting[N_KINDS], message_bytes;
        int64_t max_payload;
        bool clustered;
};

bool nats_link_is_up(const struct nats_link *l) { return l->session != NULL; }
const char *nats_link_where(const struct nats_link *l) { return l->where; }
void nats_link_clustered(struct nats_link *l) { l->clustered = true; }
const char *nats_link_api(const struct nats_link *l) { return l->api; }
int64_t nats_link_max_payload(const struct nats_link *l) { return l->max_payload; }

/* -- slots --------------------------------------------------------------------------------------------------------- */

static bool slots_grow(struct nats_link *l) {
        size_t n = l->n_slots ? l->n_slots * 2 : 256;
        struct slot *slots = reallocarray(l->slots, n, sizeof *slots);

        if (!slots)
                return false;
        memset(slots + l->n_slots, 0, (n - l->n_slots) * sizeof *slots);
        l->slots = slots;
        l->next_free = l->n_slots;
        l->n_slots = n;
        return true;
}

/* Kept at most half full, so that a free one is near. */
static bool slot_take(struct nats_link *l, struct nats_request *r) {
        if (l->n_used * 2 >= l->n_slots && !slots_grow(l))
                return false;
        while (l->slots[l->next_free % l->n_slots].r)
                l->next_free++;
        r->slot = (uint32_t) (l->next_free++ % l->n_slots);
        r->serial = ++l->slots[r->slot].serial;
        l->slots[r->slot].r = r;
        l->n_used++;
        r->active = true;
        return true;
}

static bool any_waits(const struct nats_link *l) { return l->waiting[QUESTIONS] || l->waiting[MAKING] || l->waiting[MESSAGES]; }

static void count(struct nats_link *l, const struct nats_request *r, int sign) {
        l->n_waiting[r->kind] += (size_t) sign;
        if (r->kind == MESSAGES && r->out)
                l->message_bytes += (size_t) (sign * natsMsg_GetDataLength(r->out->msg));
}

/* How long what is under way may keep disks busy, above what a request takes by itself. */
static int64_t work_ms(const struct nats_link *l, int kind) {
        size_t n = l->n_waiting[kind], ms = 0;

        if (kind == MESSAGES)
                ms = (n > FEW ? n - FEW : 0) * A_MESSAGE_US / 1000 + l->message_bytes / BYTES_A_MS;
        else if (kind == MAKING)
                ms = n * A_MAKING_MS;

        return ms < WORK_MAX_MS ? (int64_t) ms : WORK_MAX_MS;
}

/* How long it may be busy reading that: before it is through, it answers to nothing behind it. */
static int64_t read_ms(const struct nats_link *l) {
        return l->message_bytes / BYTES_A_MS < WORK_MAX_MS ? (int64_t) (l->message_bytes / BYTES_A_MS) : WORK_MAX_MS;
}

static void watch_arm(struct nats_link *l) {
        struct timeval tv = { 0, TICK_MS * 1000 };

        if (any_waits(l) && !event_pending(l->watch, EV_TIMEOUT, NULL))
                event_add(l->watch, &tv);
}

void nats_request_end(struct nats_link *l, struct nats_request *r) {
        if (!r->active)
                return;
        l->slots[r->slot].r = NULL;
        l->n_used--;
        if (r->sent && !r->quiet) {
                DL_DELETE(l->waiting[r->kind], r);
                count(l, r, -1);
        }
        r->active = r->sent = false;
        if (r->out)
                nats_out_unref(r->out);
        r->out = NULL;
}

static unsigned grown(unsigned patience) { return patience < PATIENCE_MAX ? patience * 2 : PATIENCE_MAX; }

static void answer(struct nats_link *l, struct nats_request *r, const struct nats_reply *reply) {
        if (reply->status != -EAGAIN) {
                if (l->ticks - r->sent_tick <= STUCK_TICKS / 2)
                        l->patience_of[r->kind] = 1;
                l->stuck[r->kind] = 0;
                if (r->sent_ms > l->answered_ms[r->kind])
                        l->answered_ms[r->kind] = r->sent_ms;
        }
        if (!r->open || (reply->status < 0 && reply->status != -ENOENT))
                nats_request_end(l, r);
        r->fn(r, reply);
}

/* -- sending ------------------------------------------------------------------------------------------------------- */

void nats_request_inbox(struct nats_link *l, struct nats_request *r, char *out, size_t size) {
        if (!r->active && !slot_take(l, r)) {
                out[0] = 0;
                return;
        }
        snprintf(out, size, "%s.%x.%x", l->inbox, r->slot, r->serial);
}

static natsMsg *request_new(struct nats_link *l, struct nats_request *r, const char *subject, struct om_span data) {
        char inbox[NATS_INBOX_MAX];
        natsMsg *msg = NULL;

        nats_request_inbox(l, r, inbox, sizeof inbox);
        if (!r->active)
                return NULL;
        if (natsMsg_Create(&msg, subject, inbox, data.len ? data.p : "", (int) data.len) != NATS_OK) {
                nats_request_end(l, r);
                return NULL;
        }
        return msg;
}

natsMsg *nats_request_new(struct nats_link *l, struct nats_request *r, const char *subject, struct om_span data) {
        if (!r->sent)
                r->kind = MESSAGES;
        return request_new(l, r, subject, data);
}

int nats_request_send(struct nats_link *l, struct nats_request *r, natsMsg *msg) {
        if (!l->session) {
                natsMsg_Destroy(msg);
                nats_request_end(l, r);
                return -EAGAIN;
        }
        r->out = nats_session_send(l->session, msg, !r->quiet);
        if (!r->out && !r->quiet) {
                nats_request_end(l, r);
                return -ENOMEM;
        }
        if (!r->quiet && !r->sent) {
                if (!any_waits(l))
                        l->silent = 0;
                if (!l->waiting[r->kind])
                        l->stuck[r->kind] = 0;
                r->sent_ms = om_clock_ms();
                r->sent_tick = l->ticks;
                DL_APPEND(l->waiting[r->kind], r);
                count(l, r, 1);
                watch_arm(l);
        }
        r->sent = true;
        return 0;
}

int nats_request_resend(struct nats_link *l, struct nats_request *r) {
        if (!l->session || !r->out) {
                nats_request_end(l, r);
                return -EAGAIN;
        }
        nats_session_resend(l->session, r->out);
        return 0;
}

void nats_send(struct nats_link *l, natsMsg *msg) {
        if (!l->session)
                natsMsg_Destroy(msg);
        else
                nats_session_send(l->session, msg, false);
}

int nats_call(struct nats_link *l, struct nats_request *r, nats_reply_fn *fn, void *ctx, struct om_span body, const char *format, ...) {
        char subject[1024];
        int n = snprintf(subject, sizeof subject, "%s.", l->api);
        natsMsg *msg;
        va_list ap;

        va_start(ap, format);
        vsnprintf(subject + n, sizeof subject - (size_t) n, format, ap);
        va_end(ap);
        r->fn = fn;
        r->ctx = ctx;
        r->open = r->quiet = false;
        r->kind = strstr(format, ".CREATE.") ? MAKING : QUESTIONS;
        msg = request_new(l, r, subject, body);
        return msg ? nats_request_send(l, r, msg) : -ENOMEM;
}

void nats_request_forget(struct nats_request *r, const struct nats_reply *reply) { free(r); }

/* -- up and down --------------------------------------------------------------------------------------------------- */

static void give_up(struct nats_link *l, struct nats_request *r) {
        const struct nats_reply gone = { .status = -EAGAIN };

        l->slots[r->slot].given_up = r->serial;
        l->slots[r->slot].kind = r->kind;
        answer(l, r, &gone);
}

/* Those that are asked meanwhile, by what answers here, are not among them. */
static void fail_kind(struct nats_link *l, int kind) {
        struct nats_request *r, *last = l->waiting[kind] ? l->waiting[kind]->prev : NULL;
        bool over = !last;

        while (!over && (r = l->waiting[kind])) {
                over = r == last;
                give_up(l, r);
        }
}

static void fail_all(struct nats_link *l) {
        for (int kind = 0; kind < N_KINDS; kind++)
                while (l->waiting[kind])
                        fail_kind(l, kind);
}

static void connect_later(struct nats_link *l) {
        int64_t ms = om_backoff_ms(BACKOFF_BASE_MS, BACKOFF_MAX_MS, l->tries < 10 ? l->tries : 10);
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

        l->tries++;
        event_add(l->again, &tv);
}

static void on_again(evutil_socket_t fd, short what, void *ctx) {
        struct nats_link *l = ctx;

        nats_session_connect(l->worker);
}

void nats_link_fail(struct nats_link *l, const struct om_error *e) {
        struct session *s = l->session;
        struct om_error copy = *e;

        if (!s || l->closing)
                return;
        l->session = NULL;
        nats_session_abandon(s);
        event_del(l->watch);
        fail_all(l);
        connect_later(l);
        l->events->down(l->ctx, &copy);
}

static void fail_overtaken(struct nats_link *l, int kind) {
        int64_t before = l->answered_ms[kind] - OVERTAKEN_MS, limit = STUCK_MS * l->patience_of[kind] + work_ms(l, kind);
        struct nats_request *r;

        while ((r = l->waiting[kind]) && (int64_t) (l->ticks - r->sent_tick) * TICK_MS >= limit && r->sent_ms < before)
                give_up(l, r);
}

static unsigned stuck_ticks(const struct nats_link *l, int kind) {
        if (!l->clustered)
                return CALL_TICKS * l->patience_of[kind];
        return STUCK_TICKS * l->patience_of[kind] + (unsigned) work_ms(l, kind) / TICK_MS;
}

static void on_watch(evutil_socket_t fd, short what, void *ctx) {
        struct nats_link *l = ctx;
        struct om_error e;
        natsMsg *msg;
        char probe[NATS_INBOX_MAX];

        if (!l->session || !any_waits(l))
                return;
        l->ticks++;
        l->silent++;
        if (nats_session_heard(l->session)) { /* within less than LOST_TICKS, however much it has to do */
                l->silent = 0;
                l->patience = 1;
        }
        if (l->silent >= LOST_TICKS * l->patience + read_ms(l) / TICK_MS) {
                l->patience = grown(l->patience);
                om_error_set(&e, OM_UNAVAILABLE, "NATS at %s: the server does not answer", l->where);
                nats_link_fail(l, &e);
                return;
        }
        snprintf(probe, sizeof probe, "%s.live", l->inbox);
        for (int kind = 0; kind < N_KINDS; kind++) {
                if (!l->clustered && kind == MESSAGES)
                        continue;
                if (l->clustered)
                        fail_overtaken(l, kind);
                if (l->waiting[kind] && ++l->stuck[kind] >= stuck_ticks(l, kind)) {
                        l->stuck[kind] = 0;
                        fail_kind(l, kind);
                }
        }
        if (!l->session)
                return;
        if (l->silent == PROBE_TICKS && natsMsg_Create(&msg, probe, NULL, "", 0) == NATS_OK)
                nats_session_send(l->session, msg, false);
        watch_arm(l);
}

/* -- what the session tells ---------------------------------------------------------------------------------------- */

void nats_link_connected(struct nats_link *l, struct session *s, int64_t max_payload) {
        if (l->closing)
                return; /* the worker ends it when it stops */
        l->session = s;
        l->max_payload = max_payload;
        l->silent = 0;
        l->events->up(l->ctx);
}

void nats_link_not_connected(struct nats_link *l, const struct om_error *e) {
        if (l->closing)
                return;
        connect_later(l);
        l->events->down(l->ctx, e);
}

void nats_link_works(struct nats_link *l) { l->tries = 0; }

void nats_link_broken(struct nats_link *l, struct session *s, const char *why) {
        struct om_error e;

        if (l->session != s)
                return;
        if (strcasestr(why, "authorization") || strcasestr(why, "authentication"))
                om_error_set(&e, OM_DENIED, "NATS at %s: the server has ended the connection: %.200s; look at the credentials of the URL",
                        l->where, why);
        else
                om_error_set(&e, OM_UNAVAILABLE, "NATS at %s: the connection broke%s%.200s", l->where, *why ? ": " : "", why);
        nats_link_fail(l, &e);
}

/* "Permissions Violation for Publish to "SUBJECT"": nobody will answer to it. */
void nats_link_denied(struct nats_link *l, struct session *s, const char *text) {
        const struct nats_reply denied = { .status = -EACCES };
        const char *quote = strchr(text, '"');
        size_t len = quote ? strcspn(quote + 1, "\"") : 0;
        struct nats_request *r;
        struct om_error e;

        if (l->session != s)
                return;
        if (strcasestr(text, "subscription")) {
                om_error_set(&e, OM_DENIED,
                        "NATS at %s: the user lacks the permission to subscribe to %.*s: allow it, or set inbox_prefix in the URL",
                        l->where, (int) len, quote ? quote + 1 : "");
                nats_link_fail(l, &e);
                return;
        }
        for (int kind = 0; kind < N_KINDS; kind++)
                for (r = l->waiting[kind]; r && quote; r = r->next)
                        if (om_span_eq(om_span_of(natsMsg_GetSubject(r->out->msg)), (struct om_span){ quote + 1, len })) {
                                answer(l, r, &denied);
                                return; /* one error, one request */
                        }
        om_host_log(l->host, OM_LOG_WARNING, "NATS at %s: %s", l->where, text);
}

static int status_of(natsMsg *msg) {
        const char *status;

        return natsMsgHeader_Get(msg, "Status", &status) == NATS_OK ? atoi(status) : 0;
}

static void to_request(struct nats_link *l, natsMsg *msg, const char *where) {
        char *end;
        unsigned long slot = strtoul(where, &end, 16), serial = *end == '.' ? strtoul(end + 1, NULL, 16) : 0;
        struct nats_reply reply = { .msg = msg, .data = { natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) } };
        struct nats_request *r = slot < l->n_slots ? l->slots[slot].r : NULL;

        if (slot < l->n_slots && serial && l->slots[slot].given_up == serial) {
                int kind = l->slots[slot].kind;

                l->slots[slot].given_up = 0;
                l->patience_of[kind] = grown(l->patience_of[kind]);
        }
        if (!r || r->serial != serial)
                return;
        reply.code = status_of(msg);
        if (reply.code == 503 && reply.data.len == 0 && !r->quiet) {
                reply.status = -ENOENT;
                reply.msg = NULL;
        }
        answer(l, r, &reply);
}

void nats_link_message(struct nats_link *l, struct session *s, natsMsg *msg) {
        const char *subject = natsMsg_GetSubject(msg), *reply = natsMsg_GetReply(msg);
        size_t len = strlen(l->inbox);

        l->silent = 0;
        if (l->session != s) {
                natsMsg_Destroy(msg);
                return;
        }
        if (reply && strncmp(reply, "$JS.ACK.", 8) == 0) {
                l->events->message(l->ctx, msg);
                return;
        }
        if (strncmp(subject, l->inbox, len) == 0 && subject[len] == '.')
                to_request(l, msg, subject + len + 1);
        else
                l->events->note(l->ctx, msg);
        natsMsg_Destroy(msg);
}

void nats_link_turn(struct nats_link *l) {
        if (!l->closing)
                l->events->turn(l->ctx);
}

/* -- making and ending --------------------------------------------------------------------------------------------- */

static void link_free(struct nats_link *l) {
        if (l->again)
                event_free(l->again);
        if (l->watch)
                event_free(l->watch);
        free(l->slots);
        free(l);
}

void nats_link_stopped(struct nats_link *l) {
        struct om_post *closed = l->closed;
        struct om_host *host = l->host;

        link_free(l);
        om_host_post(host, closed);
}

int nats_link_new(struct om_host *host, const struct nats_settings *s, const struct om_url *url, natsOptions *options, const char *notes,
        const struct nats_link_events *events, void *ctx, struct nats_link **ret, struct om_error *e) {
        struct nats_link *l = calloc(1, sizeof *l);
        int r = -ENOMEM;

        if (l) {
                l->host = host;
                l->events = events;
                l->ctx = ctx;
                l->clustered = url->n_hosts > 1;
                l->patience = 1;
                for (int kind = 0; kind < N_KINDS; kind++)
                        l->patience_of[kind] = 1;
                l->again = evtimer_new(host->base, on_again, l);
                l->watch = evtimer_new(host->base, on_watch, l);
                nats_settings_where(url, l->where, sizeof l->where);
                snprintf(l->api, sizeof l->api, *s->domain ? "$JS.%s.API" : "$JS.API", s->domain);
                snprintf(l->inbox, sizeof l->inbox, "%s.om%016llx", s->inbox_prefix, (unsigned long long) om_random_u64());
        }
        if (!l || !l->again || !l->watch || !slots_grow(l)) {
                natsOptions_Destroy(options);
                r = om_error_set_errno(e, ENOMEM, "NATS");
        } else
                r = nats_session_worker_new(host, l, url, options, l->inbox, notes, l->where, &l->worker, e);
        if (r < 0) {
                if (l)
                        link_free(l);
                return r;
        }
        nats_session_connect(l->worker);
        *ret = l;
        return 0;
}

void nats_link_close(struct nats_link *l, struct om_post *closed) {
        l->closing = true;
        l->closed = closed;
        event_del(l->again);
        event_del(l->watch);
        if (l->session)
                nats_session_abandon(l->session);
        l->session = NULL;
        fail_all(l);
        nats_session_worker_stop(l->worker);
}
