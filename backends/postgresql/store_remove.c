/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting, clearing, and the sweeper.
 *
 * A whole kind is deleted in batches, each a transaction, so that no writer waits for all of it. The sweeper takes batches of what has
 * expired and leaves out what somebody holds just now; it runs from time to time, and again right away as long as a batch was full. Several
 * daemons may sweep at once: what one has locked the other passes over.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

/* -- deleting ----------------------------------------------------------------------------------------------------------- */

struct removal {
        struct om_pg_job j; /* first */
        struct om_store_delete *op;
        struct om_arena arena;
        struct om_span key, name;
        uint64_t n;
};

static void removal_free(struct om_job *job) {
        struct removal *m = (struct removal *) (void *) job;

        om_arena_deinit(&m->arena);
        free(m);
}

static bool is_counted_by_time(unsigned statement) {
        return statement == OM_PG_DELETE_RESULT || statement == OM_PG_DELETE_RESULTS || statement == OM_PG_DELETE_KEY ||
                statement == OM_PG_CLEAR_RESULTS || statement == OM_PG_CLEAR_KEYS;
}

static int fill(struct om_pg_request *r, struct om_pg_params *params) {
        const struct removal *m = OM_PG_JOB_OF(r, const struct removal);

        if (m->key.p)
                om_pg_put_key(params, m->key);
        if (m->name.p)
                om_pg_put_key(params, m->name);
        if (is_counted_by_time(r->statement))
                om_pg_put_time(params, om_now_ms());
        return 0;
}

static void answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct removal *m = OM_PG_JOB_OF(r, struct removal);

        if (status == 0) {
                m->n += (uint64_t) om_pg_int(res, 0, 1);
                if (!m->key.p && om_pg_int(res, 0, 0) >= OM_PG_BATCH && !om_job_is_cancelled(&m->j.job)) {
                        om_pg_job_send(&m->j, true);
                        return;
                }
        }
        if (status == 0 && !om_job_is_cancelled(&m->j.job))
                m->op->ret_n = m->n;
        om_pg_job_over(&m->j, status, e);
}

static int statement_of(const struct om_store_delete *op, unsigned *ret) {
        static const unsigned all[] = { [OM_STORE_AGENTS] = OM_PG_CLEAR_AGENTS,
                [OM_STORE_RESULTS] = OM_PG_CLEAR_RESULTS,
                [OM_STORE_METRICS] = OM_PG_CLEAR_METRICS,
                [OM_STORE_CONFIG] = OM_PG_CLEAR_CONFIG,
                [OM_STORE_KEYS] = OM_PG_CLEAR_KEYS };

        if (!op->key.p)
                *ret = all[op->kind];
        else if (op->kind == OM_STORE_AGENTS)
                *ret = op->name.p ? OM_PG_DELETE_AGENT : OM_PG_DELETE_TOPIC_AGENTS;
        else if (op->kind == OM_STORE_RESULTS)
                *ret = op->name.p ? OM_PG_DELETE_RESULT : OM_PG_DELETE_RESULTS;
        else if (op->kind == OM_STORE_CONFIG || op->kind == OM_STORE_KEYS)
                *ret = op->kind == OM_STORE_CONFIG ? OM_PG_DELETE_CONFIG : OM_PG_DELETE_KEY;
        else
                return -EINVAL;
        return 0;
}

int om_pg_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        struct removal *m;
        unsigned statement = 0;
        int r;

        if (statement_of(op, &statement) < 0)
                return om_error_set(e, OM_INVALID, "PostgreSQL: metrics are deleted all at once");
        r = om_pg_job_new(s, &op->op, sizeof *m, op->key.len + op->name.len, removal_free, &m, e);
        if (r < 0)
                return r;
        s->jobs.in_call = true;
        op->ret_n = 0;
        m->op = op;
        m->key = om_arena_copy(&m->arena, op->key);
        if (op->kind == OM_STORE_AGENTS || op->kind == OM_STORE_RESULTS)
                m->name = om_arena_copy(&m->arena, op->name);
        m->j.writes = true;
        m->j.req.statement = statement;
        m->j.req.fill = fill;
        m->j.req.answer = answer;
        m->j.req.doing = "deleting";
        if ((op->key.p && !m->key.p) || (op->name.p && !m->name.p && op->kind <= OM_STORE_RESULTS))
                om_pg_job_no_memory(&m->j);
        else
                om_pg_job_send(&m->j, false);
        s->jobs.in_call = false;
        return 0;
}

/* -- the sweeper -------------------------------------------------------------------------------------------------------- */

static const unsigned sweeps[] = { OM_PG_SWEEP_RESULTS, OM_PG_SWEEP_KEYS, OM_PG_SWEEP_METRICS };
enum { N_SWEEPS = sizeof sweeps / sizeof *sweeps };

static int sweep_fill(struct om_pg_request *r, struct om_pg_params *params) {
        const struct om_pg_job *j = OM_PG_JOB_OF(r, const struct om_pg_job);

        if (r->statement == OM_PG_SWEEP_METRICS)
                om_pg_put_int(params, j->store->settings.max_metrics);
        else
                om_pg_put_time(params, om_now_ms());
        return 0;
}

static void sweep_answer(struct om_pg_request *r, int status, const char *state, const PGresult *res, const struct om_error *e) {
        struct om_pg_job *j = OM_PG_JOB_OF(r, struct om_pg_job);
        struct om_store *s = j->store;

        if (status < 0 && status != -EAGAIN)
                om_host_log(s->host, OM_LOG_WARNING, "%s", e->message);
        if (status == 0 && om_pg_int(res, 0, 0) >= OM_PG_BATCH && !s->closing) {
                om_pg_job_send(j, false);
                return;
        }
        s->sweeps--;
        om_pg_job_over(j, 0, NULL);
}

void om_pg_sweep(struct om_store *s) {
        if (s->sweeps || s->closing || s->n_up == 0)
                return;
        for (size_t i = 0; i < N_SWEEPS; i++) {
                struct om_pg_job *j;

                if (om_pg_job_new(s, NULL, sizeof *j, 0, NULL, &j, NULL) < 0)
                        return; /* busy: the next time */
                s->sweeps++;
                j->req.statement = sweeps[i];
                j->req.fill = sweep_fill;
                j->req.answer = sweep_answer;
                j->req.doing = "deleting what has expired";
                om_pg_job_send(j, false);
        }
}
