/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing: put, and put_if_absent.
 *
 * Puts of one kind that wait for the connection go in one statement, in the order in which they came. Where the server refuses it because
 * of a value, the entries go one by one, and the one at fault a second time without its JSONB; what is refused then too gets its own
 * outcome, and the others theirs.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "errors.h"
#include "store_state.h"

enum { TOGETHER_MAX = 5000, TOGETHER_BYTES = 8 << 20, ENTRIES_MAX = 65535 /* of one statement: statements.c's SEQ */ };

struct put {
        struct om_pg_job j; /* first */
        struct om_store_put *op;
        enum om_store_kind kind;
        struct om_arena arena;
        struct om_store_entry *entries;
        struct om_outcome *outcomes; /* n_outcomes of them, as the core has them; entry i is of outcome place[i] */
        size_t *place;
        size_t n, n_outcomes, at;
        size_t bytes, together;  /* with those that go along; only grows */
        bool alone;              /* one entry after the other, from `at` */
        bool plain;              /* this one without its JSONB */
        struct put *with, *last; /* those that go along in the same statement, and the end of that list */
};

static void put_free(struct om_job *job) {
        struct put *p = (struct put *) (void *) job;

        om_arena_deinit(&p->arena);
        free(p);
}

/* -- what is sent ------------------------------------------------------------------------------------------------------ */

enum column { KEYS, NAMES, TOPICS, STATUSES, VALUES, PLAIN, SAVED, EXPIRES, COLUMNS };

static void put_element(struct om_pg_params *params, enum column column, const struct om_store_entry *e, bool plain) {
        switch (column) {
        case KEYS:
                om_pg_array_key(params, e->key);
                break;
        case NAMES:
                om_pg_array_key(params, e->name);
                break;
        case TOPICS:
                om_pg_array_key(params, e->topic);
                break;
        case STATUSES:
                om_pg_array_key(params, e->status);
                break;
        case VALUES:
                om_pg_array_text(params, e->value);
                break;
        case PLAIN:
                om_pg_array_bool(params, plain);
                break;
        case SAVED:
                om_pg_array_time(params, e->saved_ms);
                break;
        case EXPIRES:
                om_pg_array_time(params, e->expires_ms ? e->expires_ms : OM_PG_NEVER);
                break;
        case COLUMNS:
                break;
        }
}

static int fill(struct om_pg_request *r, struct om_pg_params *params) {
        static const enum om_pg_type types[COLUMNS] = { OM_PG_TEXT, OM_PG_TEXT, OM_PG_TEXT, OM_PG_TEXT, OM_PG_TEXT, OM_PG_BOOL, OM_PG_TIME,
                OM_PG_TIME };
        const struct put *first = OM_PG_JOB_OF(r, const struct put);
        size_t n = 0;

        for (const struct put *p = first; p; p = p->with)
                n += p->alone ? 1 : p->n;
        for (int column = 0; column < COLUMNS; column++) {
                om_pg_array_begin(params, types[column], n);
                for (const struct put *p = first; p; p = p->with)
                        for (size_t i = p->at; i < (p->alone ? p->at + 1 : p->n); i++)
                                put_element(params, (enum column) column, &p->entries[i], p->plain);
                om_pg_array_end(params);
        }
        return 0;
}

static void answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e);

static bool absorb(struct om_pg_request *r, struct om_pg_request *other) {
        struct put *p = OM_PG_JOB_OF(r, struct put), *o;

        if (other->answer != answer || other->statement != r->statement || other->dropped(other))
                return false;
        o = OM_PG_JOB_OF(other, struct put);
        if (p->alone || o->alone || p->together + o->n > TOGETHER_MAX || p->bytes + o->bytes > TOGETHER_BYTES)
                return false;
        (p->last ? p->last : p)->with = o;
        p->last = o;
        p->bytes += o->bytes;
        p->together += o->n;
        return true;
}

/* With others in its statement it goes whatever became of its own operation. */
static bool is_dropped(const struct om_pg_request *r) {
        const struct put *p = OM_PG_JOB_OF(r, const struct put);

        return !p->with && om_job_is_cancelled(&p->j.job);
}

/* -- what comes back --------------------------------------------------------------------------------------------------- */

static void over(struct put *p, int status, const struct om_error *e) {
        if (status == 0 && !om_job_is_cancelled(&p->j.job) && p->n_outcomes)
                memcpy(p->op->outcomes, p->outcomes, p->n_outcomes * sizeof *p->outcomes);
        om_pg_job_over(&p->j, status, e);
}

static const char *why_refused(const char *state) {
        return strncmp(state, "54", 2) == 0 ? "too large for PostgreSQL" : "PostgreSQL cannot hold it: a zero byte, or no UTF-8";
}

/* One of them is at fault: from now on one by one, in the same order, before what waits. */
static void part(struct put *p) {
        struct put *next = p->with;

        p->with = p->last = NULL;
        p->alone = true;
        if (next)
                part(next); /* the last is put back first */
        om_pg_job_send(&p->j, true);
}

static void step(struct put *p) {
        p->plain = false;
        if (++p->at < p->n)
                om_pg_job_send(&p->j, true);
        else
                over(p, 0, NULL);
}

static void answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct put *p = OM_PG_JOB_OF(r, struct put), *next;

        if (status < 0 && om_pg_is_of_value(state)) {
                if (!p->alone && (p->with || p->n > 1))
                        part(p);
                else if (!p->plain) {
                        p->alone = p->plain = true;
                        om_pg_job_send(&p->j, true);
                } else {
                        p->outcomes[p->place[p->at]].status = -EINVAL;
                        p->outcomes[p->place[p->at]].why = why_refused(state);
                        step(p);
                }
                return;
        }
        if (status == 0 && p->alone) {
                step(p);
                return;
        }
        for (; p; p = next) {
                next = p->with;
                over(p, status, e);
        }
}

/* -- put --------------------------------------------------------------------------------------------------------------- */

static int keep(struct put *p, const struct om_store_entry *from, struct om_store_entry *to) {
        const struct om_span *in[] = { &from->key, &from->name, &from->value, &from->topic, &from->status };
        struct om_span *out[] = { &to->key, &to->name, &to->value, &to->topic, &to->status };

        *to = *from;
        for (size_t i = 0; i < sizeof in / sizeof *in; i++) {
                *out[i] = om_arena_copy(&p->arena, *in[i]);
                if (in[i]->p && !out[i]->p)
                        return -ENOMEM;
        }
        return 0;
}

/* Those that cannot be written have their outcome now. */
static int keep_all(struct put *p, const struct om_store_put *op) {
        int r = 0;

        p->entries = om_arena_alloc(&p->arena, (op->n + 1) * sizeof *p->entries);
        p->outcomes = om_arena_alloc(&p->arena, (op->n + 1) * sizeof *p->outcomes);
        p->place = om_arena_alloc(&p->arena, (op->n + 1) * sizeof *p->place);
        if (!p->entries || !p->outcomes || !p->place)
                return -ENOMEM;
        memset(p->outcomes, 0, (op->n + 1) * sizeof *p->outcomes);
        for (size_t i = 0; r == 0 && i < op->n; i++) {
                if (op->entries[i].key.len > OM_STORE_KEY_MAX || op->entries[i].name.len > OM_STORE_KEY_MAX) {
                        p->outcomes[i].status = -EINVAL;
                        p->outcomes[i].why = "its key is longer than 1024 bytes";
                        continue;
                }
                r = keep(p, &op->entries[i], &p->entries[p->n]);
                p->place[p->n++] = i;
        }
        p->n_outcomes = op->n;
        p->together = p->n;
        return r;
}

static size_t bytes_of(const struct om_store_put *op) {
        size_t bytes = op->n * sizeof(struct om_store_entry);

        for (size_t i = 0; i < op->n; i++)
                bytes += op->entries[i].key.len + op->entries[i].name.len + op->entries[i].value.len + op->entries[i].topic.len + 64;
        return bytes;
}

int om_pg_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        static const unsigned statements[] = { [OM_STORE_AGENTS] = OM_PG_PUT_AGENTS,
                [OM_STORE_RESULTS] = OM_PG_PUT_RESULTS,
                [OM_STORE_METRICS] = OM_PG_PUT_METRICS,
                [OM_STORE_CONFIG] = OM_PG_PUT_CONFIG };
        size_t bytes = bytes_of(op);
        struct put *p;
        int r;

        if (op->kind > OM_STORE_CONFIG || op->n > ENTRIES_MAX)
                return om_error_set(e, OM_INVALID, "PostgreSQL: at most %d entries at once, and keys by put_if_absent", ENTRIES_MAX);
        r = om_pg_job_new(s, &op->op, sizeof *p, bytes, put_free, &p, e);
        if (r < 0)
                return r;
        s->jobs.in_call = true;
        p->op = op;
        p->kind = op->kind;
        p->bytes = bytes;
        p->j.writes = true;
        p->j.req.statement = statements[op->kind];
        p->j.req.fill = fill;
        p->j.req.answer = answer;
        p->j.req.absorb = absorb;
        p->j.req.dropped = is_dropped;
        p->j.req.doing = "saving";
        if (keep_all(p, op) < 0)
                om_pg_job_no_memory(&p->j);
        else if (!p->n)
                over(p, 0, NULL);
        else
                om_pg_job_send(&p->j, false);
        s->jobs.in_call = false;
        return 0;
}

/* -- put_if_absent ------------------------------------------------------------------------------------------------------ */

enum { ASKED_AGAIN_MAX = 20 };

struct claim {
        struct om_pg_job j; /* first */
        struct om_store_put_if_absent *op;
        struct om_arena arena;
        struct om_span key, value;
        int64_t expires_ms;
        unsigned asked;
};

static void claim_free(struct om_job *job) {
        struct claim *c = (struct claim *) (void *) job;

        om_arena_deinit(&c->arena);
        free(c);
}

static int claim_fill(struct om_pg_request *r, struct om_pg_params *params) {
        const struct claim *c = OM_PG_JOB_OF(r, const struct claim);

        om_pg_put_key(params, c->key);
        om_pg_put_text(params, c->value);
        if (c->expires_ms)
                om_pg_put_time(params, c->expires_ms);
        else
                om_pg_put_null(params);
        om_pg_put_time(params, om_now_ms());
        return 0;
}

static void claim_answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct claim *c = OM_PG_JOB_OF(r, struct claim);
        struct om_error conflict;

        if (status == 0 && PQntuples(res) == 0) {
                if (c->asked++ < ASKED_AGAIN_MAX) {
                        om_pg_job_send(&c->j, true);
                        return;
                }
                status = om_error_set(&conflict, OM_UNAVAILABLE, "PostgreSQL: others write the same key all the time");
                e = &conflict;
        }
        if (status == 0 && !om_job_is_cancelled(&c->j.job)) {
                c->op->ret_stored = om_pg_bool(res, 0, 0);
                c->op->ret_value = c->op->ret_stored ? OM_SPAN_NONE : om_arena_copy(&c->op->arena, om_pg_text(res, 0, 1));
                if (!c->op->ret_stored && !c->op->ret_value.p) {
                        om_pg_job_no_memory(&c->j);
                        return;
                }
        }
        om_pg_job_over(&c->j, status, e);
}

int om_pg_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct claim *c;
        int r = om_pg_job_new(s, &op->op, sizeof *c, op->key.len + op->value.len, claim_free, &c, e);

        if (r < 0)
                return r;
        s->jobs.in_call = true;
        op->arena = (struct om_arena){ 0 };
        op->ret_stored = false;
        op->ret_value = OM_SPAN_NONE;
        c->op = op;
        c->expires_ms = op->expires_ms;
        c->key = om_arena_copy(&c->arena, op->key);
        c->value = om_arena_copy(&c->arena, op->value);
        c->j.writes = true;
        c->j.req.statement = OM_PG_PUT_IF_ABSENT;
        c->j.req.fill = claim_fill;
        c->j.req.answer = claim_answer;
        c->j.req.doing = "claiming a key";
        if (!c->key.p || !c->value.p)
                om_pg_job_no_memory(&c->j);
        else
                om_pg_job_send(&c->j, false);
        s->jobs.in_call = false;
        return 0;
}
