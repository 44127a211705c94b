/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Health: what the servers are, whether what they acknowledge survives them, and how much there is.
 *
 * Durability is weak where any server that has keys is set so that it can lose what it acknowledged, and where replicas take over: they
 * get writes after the acknowledgement. How many settings there are is not told: nothing counts them but a walk through all keys.
 *
 * Called by the core through store.c's table. Loop thread.
 */
#include <errno.h>
#include <stdio.h>

#include "store_state.h"

enum { NODES = 1024 };

struct health {
        struct om_store_health *op;
        size_t n_nodes;      /* that were asked */
        struct om_span info; /* of the first */
        bool replicas;
        char why[OM_REDIS_WHY_MAX];
        struct om_span *topics;
        size_t n_topics;
        int64_t results, earlier, metrics, agents;
};

static void ask(struct om_redis_job *job, const char *name, struct om_span key, om_redis_job_answer_fn *fn, size_t i) {
        struct om_redis_cmd *c = om_redis_cmd_new(name);

        om_redis_key(c, key);
        om_redis_job_send(job, c, key, fn, i);
}

/* -- how much -------------------------------------------------------------------------------------------------------- */

static void on_number(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct health *h = job->data;
        int64_t *numbers[] = { &h->results, &h->earlier, &h->metrics, &h->agents };

        if (status < 0)
                om_redis_job_fail(job, status, error);
        else
                *numbers[i] += om_redis_int(reply, 0);
}

static enum om_redis_more more_topics(struct om_redis_job *job) {
        const struct health *h = job->data;

        if (job->at >= h->n_topics)
                return OM_REDIS_NO_MORE;
        ask(job, "SCARD", om_redis_key_agents(job->store, h->topics[job->at++]), on_number, 3);
        return OM_REDIS_SENT;
}

static void on_topics(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct health *h = job->data;

        if (status < 0) {
                om_redis_job_fail(job, status, error);
                return;
        }
        h->topics = om_arena_alloc(&job->arena, (reply->n + 1) * sizeof *h->topics);
        if (!h->topics) {
                om_redis_job_no_memory(job);
                return;
        }
        for (h->n_topics = 0; h->n_topics < reply->n && job->status == 0; h->n_topics++)
                h->topics[h->n_topics] = om_redis_job_keep(job, om_redis_at(reply, h->n_topics)->text);
        job->at = 0;
        job->more = more_topics;
}

/* -- the servers ----------------------------------------------------------------------------------------------------- */

static void on_told(
        struct om_redis_job *job, size_t question, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct health *h = job->data;
        bool replicas;

        if (question != OM_REDIS_DURABLE_INFO) {
                om_redis_durable_take((enum om_redis_durable) question, status == 0 ? reply : NULL, h->why);
                return;
        }
        if (status < 0) {
                om_redis_job_fail(job, status, error);
                return;
        }
        if (h->n_nodes == 1)
                h->info = om_redis_job_keep(job, reply->text);
        om_redis_durable_take(OM_REDIS_DURABLE_INFO, reply, h->why);
        replicas = om_redis_int(&(struct om_redis_reply){ .type = OM_REDIS_STRING, .text = om_redis_info(reply->text, "connected_slaves") },
                           0) > 0;
        h->replicas |= replicas && job->store->settings.redis.mode != OM_REDIS_SINGLE;
}

/* One server after the other: what a user may not ask is no failure. */
static void next_node(struct om_redis_job *job) {
        struct health *h = job->data;
        struct om_redis_node *node = h->n_nodes < NODES ? om_redis_node_at(job->store->redis, h->n_nodes) : NULL;

        if (!node)
                return;
        h->n_nodes++;
        job->next = next_node;
        for (int question = 0; question < OM_REDIS_DURABLE_N; question++)
                om_redis_job_send_node(job, node, om_redis_durable_cmd((enum om_redis_durable) question), on_told, (size_t) question);
}

/* -- telling --------------------------------------------------------------------------------------------------------- */

static void put_text(struct om_buf *b, const char *name, struct om_span text) {
        if (!text.p)
                return;
        om_buf_printf(b, ",\"%s\":", name);
        om_buf_json_span(b, text);
}

static void finish(struct om_redis_job *job) {
        static const char *const modes[] = { "single", "cluster", "sentinel" };
        struct health *h = job->data;
        const struct om_store *s = job->store;
        struct om_buf b = OM_BUF_INIT;

        if (h->replicas && !h->why[0])
                snprintf(h->why, sizeof h->why, "a replica that takes over may lack what its primary had acknowledged last");
        om_buf_lit(&b, "{\"version\":");
        om_buf_json_span(&b, om_redis_info(h->info, "redis_version").p ? om_redis_info(h->info, "redis_version") : OM_SPAN(""));
        om_buf_printf(&b, ",\"durability\":\"%s\"", h->why[0] ? "weak" : "strong");
        if (h->why[0])
                put_text(&b, "why", om_span_of(h->why));
        om_buf_printf(&b, ",\"mode\":\"%s\",\"servers\":%zu", modes[s->settings.redis.mode], h->n_nodes);
        put_text(&b, "prefix", om_span_of(s->settings.prefix));
        put_text(&b, "used_memory", om_redis_info(h->info, "used_memory_human"));
        put_text(&b, "connected_clients", om_redis_info(h->info, "connected_clients"));
        om_buf_lit(&b, ",\"agents\":");
        om_buf_i64(&b, h->agents);
        om_buf_lit(&b, ",\"results\":");
        om_buf_i64(&b, h->results + h->earlier);
        om_buf_lit(&b, ",\"metrics\":");
        om_buf_i64(&b, h->metrics);
        om_buf_putc(&b, '}');
        h->op->info = om_buf_ok(&b) ? om_arena_copy(&h->op->arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        if (!h->op->info.p)
                om_redis_job_no_memory(job);
}

int om_redis_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        struct om_redis_job *job;
        struct health *h;
        int r = om_redis_job_new(s, &op->op, sizeof *h, 0, &job, e);

        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        h = job->data;
        h->op = op;
        job->takes_errors = true;
        job->finish = finish;
        job->next = next_node;
        ask(job, "ZCARD", om_redis_key_index(s, false), on_number, 0);
        ask(job, "ZCARD", om_redis_key_index(s, true), on_number, 1);
        ask(job, "XLEN", om_redis_key_metrics(s), on_number, 2);
        ask(job, "SMEMBERS", om_redis_key_topics(s), on_topics, 0);
        return om_redis_job_start(job, e);
}
