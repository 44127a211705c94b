/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry: agents by HGETALL, settings and keys by GET, results by GET of the newest and HGET of the agent's among the earlier
 * ones, in one round trip. Where the newest has expired and others have not, the newest of those is looked for in a second one.
 *
 * Called by the core through store.c's table. Loop thread.
 */
#include <errno.h>

#include "store_state.h"

struct get {
        struct om_store_get *op;
        struct om_span key, name;
        struct om_span newest, other; /* texts of results */
        int64_t pttl_ms;
        struct om_store_entry best;
        bool found;
};

static int not_found(struct om_redis_job *job) {
        static const char *const names[] = { "agents", "results", "metrics", "settings", "keys" };
        const struct get *g = job->data;
        struct om_error e;
        int r = om_error_set(&e, OM_NOT_FOUND, "there is no such entry among the %s", names[g->op->kind]);

        om_redis_job_fail(job, r, &e);
        return r;
}

static void give(struct om_redis_job *job, const struct om_store_entry *entry) {
        struct get *g = job->data;

        if (om_redis_entry_copy(&g->op->arena, entry, &g->op->entry) < 0)
                om_redis_job_no_memory(job);
}

/* -- results --------------------------------------------------------------------------------------------------------- */

/* One of the task's records: whether it is the one that is asked for, or the best so far. */
static void candidate(struct om_redis_job *job, struct om_span text, int64_t pttl_ms) {
        struct get *g = job->data;
        struct om_store_entry entry;
        struct om_error e;
        int r;

        if (!text.p)
                return;
        r = om_redis_record_read(om_redis_key_result(job->store, g->key), text, g->key, pttl_ms, &job->arena, &entry, &e);
        if (r < 0) {
                om_redis_job_fail(job, r, &e);
                return;
        }
        if (om_redis_expired(&entry, om_now_ms()) || (g->name.p && !om_span_eq(entry.name, g->name)))
                return;
        if (g->found && entry.saved_ms <= g->best.saved_ms)
                return;
        g->best = entry;
        g->found = true;
}

static void on_text(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct get *g = job->data;

        if (reply->type == OM_REDIS_STRING)
                *(i == 0 ? &g->newest : &g->other) = om_redis_job_keep(job, reply->text);
}

static void on_pttl(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct get *g = job->data;

        g->pttl_ms = om_redis_int(reply, -1);
}

static void on_all(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        for (size_t k = 1; k < reply->n && job->status == 0; k += 2)
                candidate(job, om_redis_job_keep(job, om_redis_at(reply, k)->text), -1);
}

static void result_chosen(struct om_redis_job *job) {
        const struct get *g = job->data;

        if (g->found)
                give(job, &g->best);
        else
                not_found(job);
}

static void result_read(struct om_redis_job *job) {
        struct get *g = job->data;
        struct om_redis_cmd *c;

        if (!g->newest.p) { /* without it there are none */
                not_found(job);
                return;
        }
        candidate(job, g->newest, g->pttl_ms);
        candidate(job, g->other, -1);
        if (job->status < 0)
                return;
        if (g->found || g->name.p) {
                result_chosen(job);
                return;
        }
        c = om_redis_cmd_new("HGETALL");
        om_redis_key(c, om_redis_key_earlier(job->store, g->key));
        job->next = result_chosen;
        om_redis_job_send(job, c, om_redis_key_earlier(job->store, g->key), on_all, 0);
}

static void ask(
        struct om_redis_job *job, const char *name, struct om_span key, struct om_span field, om_redis_job_answer_fn *fn, size_t i) {
        struct om_redis_cmd *c = om_redis_cmd_new(name);

        om_redis_key(c, key);
        if (field.p)
                om_redis_arg(c, field);
        om_redis_job_send(job, c, key, fn, i);
}

static void get_result(struct om_redis_job *job) {
        struct om_store *s = job->store;
        const struct get *g = job->data;

        ask(job, "GET", om_redis_key_result(s, g->key), OM_SPAN_NONE, on_text, 0);
        ask(job, "PTTL", om_redis_key_result(s, g->key), OM_SPAN_NONE, on_pttl, 0);
        if (g->name.p)
                ask(job, "HGET", om_redis_key_earlier(s, g->key), g->name, on_text, 1);
        job->next = result_read;
}

/* -- the others ------------------------------------------------------------------------------------------------------ */

static void on_agent(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct get *g = job->data;
        int r = om_redis_agent_read(reply, g->key, g->name, &g->op->arena, &g->op->entry);

        if (r == -ENOENT)
                not_found(job);
        else if (r < 0)
                om_redis_job_no_memory(job);
}

static void on_value(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct get *g = job->data;

        if (reply->type == OM_REDIS_STRING)
                give(job, &(struct om_store_entry){ .key = g->key, .value = reply->text });
        else
                not_found(job);
}

/* Comes after the value. */
static void on_value_pttl(
        struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct get *g = job->data;
        int64_t ms = om_redis_int(reply, -1);

        if (ms > 0)
                g->op->entry.expires_ms = om_now_ms() + ms + 1;
}

int om_redis_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        struct om_redis_job *job;
        struct get *g;
        int r = om_redis_job_new(s, &op->op, sizeof *g, op->key.len + op->name.len, &job, e);

        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->entry = (struct om_store_entry){ .saved_ms = 0 };
        g = job->data;
        g->op = op;
        g->key = om_redis_job_keep(job, op->key.p ? op->key : OM_SPAN(""));
        g->name = om_redis_job_keep(job, op->name);
        if (job->status < 0)
                return om_redis_job_start(job, e);
        if (op->kind == OM_STORE_RESULTS) {
                get_result(job);
        } else if (op->kind == OM_STORE_AGENTS) {
                ask(job, "HGETALL", om_redis_key_agent(s, g->key, g->name), OM_SPAN_NONE, on_agent, 0);
        } else if (op->kind == OM_STORE_METRICS) {
                not_found(job); /* they have no keys */
        } else {
                ask(job, "GET", om_redis_key_named(s, op->kind, g->key), OM_SPAN_NONE, on_value, 0);
                if (op->kind == OM_STORE_KEYS)
                        ask(job, "PTTL", om_redis_key_named(s, op->kind, g->key), OM_SPAN_NONE, on_value_pttl, 0);
        }
        return om_redis_job_start(job, e);
}
