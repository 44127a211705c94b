/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting one entry, a topic's agents, a task's results, or a whole kind.
 *
 * Always true:
 *   - what finds a thing goes after the thing itself where one is deleted, so that a failure in between leaves nothing that cannot be
 * found; where a whole kind is cleared the index goes first, so that what is written meanwhile is found;
 *   - a topic that has lost its last agent leaves the set of topics, and is put back when it turns out that one came meanwhile.
 *
 * Called by the core through store.c's table. Loop thread.
 */
#include <errno.h>

#include "../../proto/buf.h"
#include "store_state.h"

struct topic {
        struct om_span name;
        struct om_span *agents; /* that go */
        size_t n;
};
struct removal {
        struct om_store_delete *op;
        struct om_span key, name;
        struct om_redis_walk walk;
        /* agents: topic after topic */
        struct topic *topics;
        size_t n_topics, at;
};

static void command(
        struct om_redis_job *job, const char *name, struct om_span key, struct om_span argument, om_redis_job_answer_fn *fn, size_t i) {
        struct om_redis_cmd *c = om_redis_cmd_new(name);

        om_redis_key(c, key);
        if (argument.p)
                om_redis_arg(c, argument);
        om_redis_job_send(job, c, key, fn, i);
}

static void on_count(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct removal *m = job->data;

        m->op->ret_n += (uint64_t) om_redis_int(reply, 0);
}

/* -- agents ---------------------------------------------------------------------------------------------------------- */

static void next_topic(struct om_redis_job *job);

static void on_left_again(
        struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct removal *m = job->data;
        struct om_span topic = m->topics[i].name;

        if (om_redis_int(reply, 0) > 0)
                command(job, "SADD", om_redis_key_topics(job->store), topic, NULL, 0);
}

static void on_topic_out(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct removal *m = job->data;

        command(job, "SCARD", om_redis_key_agents(job->store, m->topics[i].name), OM_SPAN_NONE, on_left_again, i);
}

static void on_left(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct removal *m = job->data;

        if (om_redis_int(reply, 1) == 0)
                command(job, "SREM", om_redis_key_topics(job->store), m->topics[i].name, on_topic_out, i);
}

static void topic_emptied(struct om_redis_job *job) {
        const struct removal *m = job->data;

        job->next = next_topic;
        command(job, "SCARD", om_redis_key_agents(job->store, m->topics[m->at - 1].name), OM_SPAN_NONE, on_left, m->at - 1);
}

static enum om_redis_more more_agents(struct om_redis_job *job) {
        const struct removal *m = job->data;
        const struct topic *t = &m->topics[m->at - 1];

        if (job->at >= t->n)
                return OM_REDIS_NO_MORE;
        command(job, "UNLINK", om_redis_key_agent(job->store, t->name, t->agents[job->at]), OM_SPAN_NONE, on_count, 0);
        command(job, "SREM", om_redis_key_agents(job->store, t->name), t->agents[job->at], NULL, 0);
        job->at++;
        return OM_REDIS_SENT;
}

static void delete_agents(struct om_redis_job *job) {
        job->at = 0;
        job->more = more_agents;
        job->next = topic_emptied;
}

static void on_agents(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct removal *m = job->data;
        struct topic *t = &m->topics[i];

        t->agents = om_arena_alloc(&job->arena, (reply->n + 1) * sizeof *t->agents);
        if (!t->agents) {
                om_redis_job_no_memory(job);
                return;
        }
        for (t->n = 0; t->n < reply->n && job->status == 0; t->n++)
                t->agents[t->n] = om_redis_job_keep(job, om_redis_at(reply, t->n)->text);
        job->next = delete_agents;
}

static void next_topic(struct om_redis_job *job) {
        struct removal *m = job->data;

        if (m->at >= m->n_topics)
                return;
        m->at++;
        command(job, "SMEMBERS", om_redis_key_agents(job->store, m->topics[m->at - 1].name), OM_SPAN_NONE, on_agents, m->at - 1);
}

static void on_topics(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct removal *m = job->data;

        m->topics = om_arena_alloc(&job->arena, (reply->n + 1) * sizeof *m->topics);
        if (!m->topics) {
                om_redis_job_no_memory(job);
                return;
        }
        for (m->n_topics = 0; m->n_topics < reply->n && job->status == 0; m->n_topics++)
                m->topics[m->n_topics] = (struct topic){ .name = om_redis_job_keep(job, om_redis_at(reply, m->n_topics)->text) };
        job->next = next_topic;
}

static void remove_agents(struct om_redis_job *job) {
        struct removal *m = job->data;
        struct topic *t;

        if (!m->key.p) {
                command(job, "SMEMBERS", om_redis_key_topics(job->store), OM_SPAN_NONE, on_topics, 0);
                return;
        }
        t = om_arena_alloc(&job->arena, sizeof *t);
        if (!t) {
                om_redis_job_no_memory(job);
                return;
        }
        *t = (struct topic){ .name = m->key, .agents = &m->name, .n = 1 };
        m->topics = t;
        m->n_topics = 1;
        if (!m->name.p) {
                next_topic(job);
                return;
        }
        m->at = 1;
        delete_agents(job);
}

/* -- results --------------------------------------------------------------------------------------------------------- */

static void on_deleted(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct removal *m = job->data;

        on_count(job, i, status, om_redis_at(reply, 0), error);
        om_redis_follow(job, m->key, reply, false, NULL, 0);
}

static void remove_results(struct om_redis_job *job) {
        const struct removal *m = job->data;
        struct om_redis_cmd *c = om_redis_script_on(job->store, &om_redis_script_delete, m->key);
        struct om_buf now = OM_BUF_INIT;

        om_buf_json_time(&now, om_now_ms());
        om_redis_arg(c, m->key);
        om_redis_arg(c, om_buf_span(&now));
        if (m->name.p)
                om_redis_arg(c, m->name);
        if (om_buf_ok(&now)) {
                om_redis_job_send(job, c, om_redis_key_result(job->store, m->key), on_deleted, 0);
        } else {
                om_redis_cmd_free(c);
                om_redis_job_no_memory(job);
        }
        om_buf_deinit(&now);
}

/* -- whole kinds ----------------------------------------------------------------------------------------------------- */

static void found(struct om_redis_job *job, struct om_span key) {
        const struct removal *m = job->data;
        struct om_store *s = job->store;

        if (m->op->kind != OM_STORE_RESULTS || om_redis_key_rest(s, key, "result:").p) {
                command(job, "UNLINK", key, OM_SPAN_NONE, on_count, 0);
        } else if (om_redis_key_rest(s, key, "results:earlier:").p) {
                command(job, "HLEN", key, OM_SPAN_NONE, on_count, 0);
                command(job, "UNLINK", key, OM_SPAN_NONE, NULL, 0);
        }
}

static void over(struct om_redis_job *job) {}

static void walk(struct om_redis_job *job) {
        struct removal *m = job->data;
        const char *what = m->op->kind == OM_STORE_RESULTS ? "result" : m->op->kind == OM_STORE_CONFIG ? "config:" : "key:";

        m->walk.pattern = om_redis_job_keep(job, om_redis_key_pattern(job->store, what, OM_SPAN("")));
        m->walk.found = found;
        m->walk.over = over;
        if (job->status == 0)
                om_redis_walk_begin(job, &m->walk);
}

static void clear(struct om_redis_job *job) {
        const struct removal *m = job->data;
        struct om_store *s = job->store;

        if (m->op->kind == OM_STORE_METRICS) {
                command(job, "XLEN", om_redis_key_metrics(s), OM_SPAN_NONE, on_count, 0);
                command(job, "UNLINK", om_redis_key_metrics(s), OM_SPAN_NONE, NULL, 0);
                return;
        }
        if (m->op->kind == OM_STORE_RESULTS) {
                command(job, "UNLINK", om_redis_key_index(s, false), OM_SPAN_NONE, NULL, 0);
                command(job, "UNLINK", om_redis_key_index(s, true), OM_SPAN_NONE, NULL, 0);
        }
        job->next = walk;
}

int om_redis_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        struct om_redis_job *job;
        struct removal *m;
        int r;

        if (op->name.p && !op->key.p)
                return om_error_set(e, OM_INVALID, "a name alone deletes nothing: its key is missing");
        r = om_redis_job_new(s, &op->op, sizeof *m, op->key.len + op->name.len, &job, e);
        if (r < 0)
                return r;
        op->ret_n = 0;
        m = job->data;
        m->op = op;
        m->key = om_redis_job_keep(job, op->key);
        m->name = om_redis_job_keep(job, op->name);
        if (job->status < 0)
                return om_redis_job_start(job, e);
        if (op->kind == OM_STORE_AGENTS)
                remove_agents(job);
        else if (!op->key.p || op->kind == OM_STORE_METRICS)
                clear(job);
        else if (op->kind == OM_STORE_RESULTS)
                remove_results(job);
        else
                command(job, "UNLINK", om_redis_key_named(s, op->kind, m->key), OM_SPAN_NONE, on_count, 0);
        return om_redis_job_start(job, e);
}
