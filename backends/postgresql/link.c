/* SPDX-License-Identifier: Apache-2.0 */
/* A connection on the loop: see link.h. */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>

#include "errors.h"
#include "link.h"
#include "statements.h"

/* SILENCE_MS: how long after the server's own time-out for a statement (answer_timeout) it must have said so. FLYING_MAX: requests whose
 * answers are owed. Few, so that what comes meanwhile gathers into one statement. TRIES: where the server asks for it. */
enum { SILENCE_MS = 1000, FLYING_MAX = 4, TRIES = 4, FORMAT_BINARY = 1 };

struct queue {
        struct om_pg_request *first, **end;
        size_t n;
};

struct om_pg_link {
        struct om_host *host;
        const struct om_pg_settings *settings;
        struct om_pg_link_owner owner;
        PGconn *conn; /* NULL: none */
        struct event *readable, *writable, *silence;
        struct queue waiting, flying;
        bool prepared[OM_PG_STATEMENTS];
        /* Of the first that flies: */
        bool preparing;   /* its statement's own answer is still to come */
        PGresult *result; /* its rows, or its first error */
        bool pumping;     /* posted */
        struct om_post post;
        char version[32], host_name[128];
};

/* -- queues ---------------------------------------------------------------------------------------------------------- */

static void queue_init(struct queue *q) { *q = (struct queue){ NULL, &q->first, 0 }; }
static void push(struct queue *q, struct om_pg_request *r) {
        r->next = NULL;
        *q->end = r;
        q->end = &r->next;
        q->n++;
}
static void push_first(struct queue *q, struct om_pg_request *r) {
        r->next = q->first;
        if (!q->first)
                q->end = &r->next;
        q->first = r;
        q->n++;
}
static struct om_pg_request *pop(struct queue *q) {
        struct om_pg_request *r = q->first;

        if (!r)
                return NULL;
        q->first = r->next;
        if (!q->first)
                q->end = &q->first;
        q->n--;
        return r;
}

bool om_pg_link_is_up(const struct om_pg_link *l) { return l->conn; }
size_t om_pg_link_load(const struct om_pg_link *l) { return l->waiting.n + l->flying.n; }

/* -- the end --------------------------------------------------------------------------------------------------------- */

static void no_events(struct om_pg_link *l) {
        struct event **events[] = { &l->readable, &l->writable };

        for (size_t i = 0; i < 2; i++)
                if (*events[i]) {
                        event_free(*events[i]);
                        *events[i] = NULL;
                }
        if (l->silence)
                event_del(l->silence);
}

void om_pg_link_end(struct om_pg_link *l, const struct om_error *error) {
        struct om_error e = *error;
        struct om_pg_request *r;
        struct queue unsent;

        if (!l->conn)
                return;
        no_events(l);
        PQclear(l->result);
        l->result = NULL;
        PQfinish(l->conn);
        l->conn = NULL;
        memset(l->prepared, 0, sizeof l->prepared);
        e.kind = OM_UNAVAILABLE;
        while ((r = pop(&l->flying)))
                r->answer(r, -EAGAIN, "", NULL, &e);
        queue_init(&unsent);
        while ((r = pop(&l->waiting)))
                push(&unsent, r);
        l->owner.down(l->owner.ctx, l, error);
        while ((r = pop(&unsent)))
                l->owner.unsent(l->owner.ctx, r, &e);
}

static void lost(struct om_pg_link *l) {
        struct om_error e;

        om_pg_result_error(l->result, l->conn, l->settings->where, &e);
        om_pg_link_end(l, &e);
}

/* -- sending --------------------------------------------------------------------------------------------------------- */

static void watch_silence(struct om_pg_link *l) {
        int64_t ms = l->flying.first ? l->flying.first->owed_ms + l->settings->answer_timeout_ms + SILENCE_MS - om_clock_ms() : 0;
        struct timeval tv;

        if (!l->flying.first) {
                event_del(l->silence);
                return;
        }
        ms = ms < 1 ? 1 : ms;
        tv = (struct timeval){ .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
        event_add(l->silence, &tv);
}

/* Writes as much as goes out at once; the rest when the socket takes it. False: the connection ended. */
static bool flush(struct om_pg_link *l) {
        int r = PQflush(l->conn);

        if (r < 0) {
                lost(l);
                return false;
        }
        if (r > 0)
                event_add(l->writable, NULL);
        else
                event_del(l->writable);
        return true;
}

static bool send_statement(struct om_pg_link *l, struct om_pg_request *r, const char *text, const struct om_pg_params *p) {
        const char *values[OM_PG_PARAMS_MAX];
        int formats[OM_PG_PARAMS_MAX];
        char name[16];

        for (int i = 0; i < p->n; i++) {
                values[i] = p->length[i] < 0 ? NULL : om_buf_span(&p->bytes).p + p->offset[i];
                formats[i] = FORMAT_BINARY;
        }
        if (om_pg_is_planned_anew(r->statement))
                return PQsendQueryParams(l->conn, text, p->n, NULL, values, p->length, formats, FORMAT_BINARY) && PQpipelineSync(l->conn);
        snprintf(name, sizeof name, "om%u", r->statement);
        r->prepares = !l->prepared[r->statement];
        if (r->prepares && !PQsendPrepare(l->conn, name, text, 0, NULL))
                return false;
        l->prepared[r->statement] = true;
        return PQsendQueryPrepared(l->conn, name, p->n, values, p->length, formats, FORMAT_BINARY) && PQpipelineSync(l->conn);
}

static int send_request(struct om_pg_link *l, struct om_pg_request *r) {
        const char *text = om_pg_statement(r->statement);
        struct om_pg_params p = { .bytes = OM_BUF_INIT };
        int status = text ? r->fill(r, &p) : -ENOMEM;

        r->prepares = false;
        if (status == 0 && !om_buf_ok(&p.bytes))
                status = -ENOMEM;
        if (status == 0 && !send_statement(l, r, text, &p))
                status = -EPIPE;
        om_pg_params_free(&p);
        return status;
}

/* What waits goes out, as far as the window is open. */
static void pump(struct om_pg_link *l) {
        while (l->conn && l->flying.n < FLYING_MAX && l->waiting.first) {
                struct om_pg_request *r = pop(&l->waiting);
                struct om_error e = OM_ERROR_INIT;
                int status;

                if (r->dropped(r)) {
                        om_error_set(&e, OM_UNAVAILABLE, "cancelled");
                        r->answer(r, -ECANCELED, "", NULL, &e);
                        continue;
                }
                while (r->absorb && l->waiting.first && r->absorb(r, l->waiting.first))
                        pop(&l->waiting);
                status = send_request(l, r);
                if (status == -ENOMEM) {
                        om_error_set_errno(&e, ENOMEM, "PostgreSQL");
                        r->answer(r, -ENOMEM, "", NULL, &e);
                        continue;
                }
                r->owed_ms = om_clock_ms();
                push(&l->flying, r);
                if (l->flying.n == 1)
                        l->preparing = r->prepares;
                if (status < 0) {
                        lost(l);
                        return;
                }
        }
        if (l->conn && flush(l))
                watch_silence(l);
}

static void posted(struct om_post *post) {
        struct om_pg_link *l = (void *) ((char *) post - offsetof(struct om_pg_link, post));

        l->pumping = false;
        pump(l);
}

static void pump_later(struct om_pg_link *l) {
        if (l->pumping)
                return;
        l->pumping = true;
        om_host_post(l->host, &l->post);
}

/* One turn of the loop gathers. */
void om_pg_link_add(struct om_pg_link *l, struct om_pg_request *r) {
        push(&l->waiting, r);
        pump_later(l);
}

void om_pg_link_add_first(struct om_pg_link *l, struct om_pg_request *r) {
        push_first(&l->waiting, r);
        pump_later(l);
}

void om_pg_link_drop(struct om_pg_link *l) {
        struct om_pg_request *r;
        struct om_error e;
        struct queue all = l->waiting;

        if (!l->waiting.first)
                return;
        om_error_set(&e, OM_UNAVAILABLE, "cancelled");
        queue_init(&l->waiting);
        while ((r = pop(&all)))
                if (r->dropped(r))
                        r->answer(r, -ECANCELED, "", NULL, &e);
                else
                        push(&l->waiting, r);
}

/* -- answers --------------------------------------------------------------------------------------------------------- */

static void finish(struct om_pg_link *l) {
        struct om_pg_request *r = pop(&l->flying);
        PGresult *res = l->result;
        ExecStatusType status = PQresultStatus(res);
        bool good = res && (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK);
        char state[6];
        struct om_error e = OM_ERROR_INIT;
        int r_errno = good ? 0 : om_pg_result_error(res, l->conn, r->doing, &e);

        snprintf(state, sizeof state, "%s", om_pg_state(res));
        l->result = NULL;
        if (l->preparing) /* its preparation failed */
                l->prepared[r->statement] = false;
        if (l->flying.first) {
                l->preparing = l->flying.first->prepares;
                l->flying.first->owed_ms = om_clock_ms();
        }
        if (!good && om_pg_is_passing(state) && r->tries < TRIES) {
                r->tries++;
                PQclear(res);
                push_first(&l->waiting, r);
                return;
        }
        r->answer(r, r_errno, state, good ? res : NULL, &e);
        if (!good && om_pg_ends_connection(state) && l->conn)
                om_pg_link_end(l, &e);
        PQclear(res);
}

/* One of the results of the first that flies. False: nothing more is there. */
static bool take(struct om_pg_link *l, bool *was_null) {
        PGresult *res;
        ExecStatusType status;

        if (PQisBusy(l->conn))
                return false;
        res = PQgetResult(l->conn);
        if (!res) { /* parts the results of one statement from those of the next */
                bool twice = *was_null;

                *was_null = true;
                return !twice;
        }
        *was_null = false;
        status = PQresultStatus(res);
        if (status == PGRES_PIPELINE_SYNC) {
                PQclear(res);
                finish(l);
        } else if (status == PGRES_PIPELINE_ABORTED || l->result) {
                PQclear(res); /* because of the error before it */
        } else if (l->preparing && status == PGRES_COMMAND_OK) {
                l->preparing = false;
                PQclear(res);
        } else {
                l->result = res;
        }
        return true;
}

static void on_readable(evutil_socket_t fd, short what, void *ctx) {
        struct om_pg_link *l = ctx;
        bool was_null = false;

        if (!PQconsumeInput(l->conn)) {
                /* What came before the end says why: a server that is stopped tells. */
                while (l->conn && l->flying.first && take(l, &was_null))
                        ;
                if (l->conn)
                        lost(l);
                return;
        }
        while (l->conn && l->flying.first && take(l, &was_null))
                ;
        if (l->conn && PQstatus(l->conn) == CONNECTION_BAD)
                lost(l);
        if (l->conn)
                pump(l);
}

static void on_writable(evutil_socket_t fd, short what, void *ctx) {
        struct om_pg_link *l = ctx;

        flush(l);
}

static void on_silence(evutil_socket_t fd, short what, void *ctx) {
        struct om_pg_link *l = ctx;
        struct om_error e;

        if (!l->conn || !l->flying.first)
                return;
        if (om_clock_ms() - l->flying.first->owed_ms < l->settings->answer_timeout_ms + SILENCE_MS) {
                watch_silence(l);
                return;
        }
        om_error_set(&e, OM_UNAVAILABLE, "PostgreSQL: %s: no answer within %lld ms (answer_timeout)", l->settings->where,
                (long long) l->settings->answer_timeout_ms);
        om_pg_link_end(l, &e);
}

/* -- taking and freeing ---------------------------------------------------------------------------------------------- */

int om_pg_link_new(struct om_host *host, const struct om_pg_settings *s, const struct om_pg_link_owner *owner, struct om_pg_link **ret,
        struct om_error *e) {
        struct om_pg_link *l = calloc(1, sizeof *l);

        if (l)
                l->silence = event_new(host->base, -1, 0, on_silence, l);
        if (!l || !l->silence) {
                free(l);
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        }
        l->host = host;
        l->settings = s;
        l->owner = *owner;
        l->post.fn = posted;
        queue_init(&l->waiting);
        queue_init(&l->flying);
        *ret = l;
        return 0;
}

void om_pg_link_free(struct om_pg_link *l) {
        if (!l)
                return;
        if (l->conn) {
                no_events(l);
                PQfinish(l->conn);
        }
        PQclear(l->result);
        event_free(l->silence);
        free(l);
}

int om_pg_link_use(struct om_pg_link *l, PGconn *conn, struct om_error *e) {
        int fd = PQsocket(conn);

        l->readable = event_new(l->host->base, fd, EV_READ | EV_PERSIST, on_readable, l);
        l->writable = event_new(l->host->base, fd, EV_WRITE | EV_PERSIST, on_writable, l);
        if (!l->readable || !l->writable || event_add(l->readable, NULL) < 0) {
                no_events(l);
                PQfinish(conn);
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        }
        if (!PQenterPipelineMode(conn)) {
                no_events(l);
                PQfinish(conn);
                return om_error_set(e, OM_INTERNAL, "PostgreSQL: no pipeline mode");
        }
        snprintf(l->version, sizeof l->version, "%s",
                PQparameterStatus(conn, "server_version") ? PQparameterStatus(conn, "server_version") : "");
        snprintf(l->host_name, sizeof l->host_name, "%.100s:%.20s", PQhost(conn) ? PQhost(conn) : "", PQport(conn) ? PQport(conn) : "");
        l->conn = conn;
        pump_later(l);
        return 0;
}

const char *om_pg_link_tls(const struct om_pg_link *l) {
        return l->conn && PQsslInUse(l->conn) ? PQsslAttribute(l->conn, "protocol") : NULL;
}
const char *om_pg_link_version(const struct om_pg_link *l) { return l->version; }
const char *om_pg_link_host(const struct om_pg_link *l) { return l->host_name; }
