/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metrics: cells for topics, agents and the daemon, and snapshots of them in the storage.
 *
 * What is always true:
 *   - a cell never moves and never goes: who counts finds it once and keeps it. Their number is bounded, since clients name topics: what
 * comes after the first CELLS_MAX is counted together, under the name "(others)";
 *   - the snapshot timer runs only while something has changed since the last snapshot;
 *   - counters start at zero with the daemon. A snapshot holds them as they stand, with runner_id, so that two of one run can be
 * subtracted.
 *
 * Called by dispatch (cells), methods_health.c, core.c (flush). Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include "../proto/hash.h"

#include "call.h"
#include "log.h"
#include "metrics.h"

enum { CELLS_MAX = 50000, SNAPSHOT_BATCH = 500, N_BUCKETS = sizeof((struct om_histogram *) 0)->buckets / sizeof(uint32_t) };

struct topic_cell {
        struct om_topic_metrics now, saved;
        UT_hash_handle hh;
        size_t len;
        char topic[];
};

struct agent_cell {
        struct om_agent_metrics now, saved;
        UT_hash_handle hh;
        size_t topic_len, len; /* len: of both, without a zero byte between */
        char key[];            /* topic, zero byte, agent: neither holds one */
};

struct om_metrics {
        struct om_core *core;
        struct om_daemon_metrics daemon;
        struct topic_cell *topics;
        struct agent_cell *agents;
        struct event timer;
        bool armed, out; /* the timer is set; a snapshot is on its way */
        bool changed;    /* since the last snapshot was composed */
        struct om_post *flushed;
};

/* -- histograms ---------------------------------------------------------------------------------------------------- */

/* Below 16 µs a bucket each; above, 16 buckets to a power of two: the four bits after the first. */
static unsigned bucket_of(uint64_t us) {
        unsigned log2, index;

        if (us < 16)
                return (unsigned) us;
        log2 = 63 - (unsigned) __builtin_clzll(us);
        index = (log2 - 3) * 16 + (unsigned) (us >> (log2 - 4) & 15);
        return index < N_BUCKETS ? index : N_BUCKETS - 1;
}

/* The largest value that falls into a bucket; the last one takes whatever is larger. */
static uint64_t bucket_top(unsigned index) {
        unsigned log2 = index / 16 + 3;

        if (index == N_BUCKETS - 1)
                return UINT64_MAX;
        if (index < 16)
                return index;
        return ((uint64_t) (16 + index % 16 + 1) << (log2 - 4)) - 1;
}

void om_histogram_add(struct om_histogram *h, uint64_t us) {
        h->n++;
        h->buckets[bucket_of(us)]++;
        if (us > h->max_us)
                h->max_us = us;
}

uint64_t om_histogram_quantile(const struct om_histogram *h, double q) {
        uint64_t rank, seen = 0;

        if (h->n == 0)
                return 0;
        /* The rank-th smallest, counted from 1: the smallest value that at least a share q of all does not exceed. */
        rank = (uint64_t) (q * (double) h->n);
        if ((double) rank < q * (double) h->n || rank == 0)
                rank++;
        for (unsigned i = 0; i < N_BUCKETS; i++) {
                seen += h->buckets[i];
                if (seen >= rank)
                        return bucket_top(i) < h->max_us ? bucket_top(i) : h->max_us;
        }
        return h->max_us;
}

/* -- cells --------------------------------------------------------------------------------------------------------- */

struct om_daemon_metrics *om_metrics_daemon(struct om_metrics *m) {
        return &m->daemon;
}

struct om_topic_metrics *om_metrics_topic(struct om_metrics *m, struct om_span topic) {
        struct topic_cell *c;

        HASH_FIND(hh, m->topics, topic.p, topic.len, c);
        if (c)
                return &c->now;
        if (HASH_COUNT(m->topics) >= CELLS_MAX && !om_span_is(topic, "(others)"))
                return om_metrics_topic(m, OM_SPAN("(others)"));
        c = calloc(1, sizeof *c + topic.len);
        if (!c)
                return NULL;
        c->len = topic.len;
        memcpy(c->topic, topic.p, topic.len);
        HASH_ADD_KEYPTR(hh, m->topics, c->topic, c->len, c);
        if (!c->hh.tbl) {
                free(c);
                return NULL;
        }
        return &c->now;
}

struct om_agent_metrics *om_metrics_agent(struct om_metrics *m, struct om_span topic, struct om_span agent) {
        size_t len = topic.len + 1 + agent.len;
        struct agent_cell *c, *found;

        c = calloc(1, sizeof *c + len);
        if (!c)
                return NULL;
        c->topic_len = topic.len;
        c->len = len;
        memcpy(c->key, topic.p, topic.len);
        memcpy(c->key + topic.len + 1, agent.p, agent.len);
        HASH_FIND(hh, m->agents, c->key, len, found);
        if (found) {
                free(c);
                return &found->now;
        }
        if (HASH_COUNT(m->agents) >= CELLS_MAX && !om_span_is(topic, "(others)")) {
                free(c);
                return om_metrics_agent(m, OM_SPAN("(others)"), OM_SPAN("(others)"));
        }
        HASH_ADD_KEYPTR(hh, m->agents, c->key, c->len, c);
        if (!c->hh.tbl) {
                free(c);
                return NULL;
        }
        return &c->now;
}

static struct om_span topic_of(const struct agent_cell *c) { return (struct om_span){ c->key, c->topic_len }; }
static struct om_span agent_of(const struct agent_cell *c) {
        return (struct om_span){ c->key + c->topic_len + 1, c->len - c->topic_len - 1 };
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

static void put_count(struct om_buf *b, const char *name, uint64_t n) {
        om_buf_lit(b, ",\"");
        om_buf_puts(b, name);
        om_buf_lit(b, "\":");
        om_buf_u64(b, n);
}

static void put_topic(struct om_buf *b, const struct topic_cell *c) {
        om_buf_lit(b, "\"topic\":");
        om_buf_json_string(b, c->topic, c->len);
        put_count(b, "published", c->now.published);
        put_count(b, "delivered", c->now.delivered);
        put_count(b, "acked", c->now.acked);
        put_count(b, "failed", c->now.failed);
        put_count(b, "retried", c->now.retried);
        put_count(b, "dead", c->now.dead);
        put_count(b, "expired", c->now.expired);
}

static void put_quantile(struct om_buf *b, const char *name, uint64_t us) {
        om_buf_puts(b, name);
        om_buf_json_double(b, (double) us / 1000);
}

static void put_agent(struct om_buf *b, const struct agent_cell *c) {
        const struct om_histogram *h = c->now.latency;

        om_buf_lit(b, "\"topic\":");
        om_buf_json_span(b, topic_of(c));
        om_buf_lit(b, ",\"agent\":");
        om_buf_json_span(b, agent_of(c));
        put_count(b, "received", c->now.received);
        put_count(b, "processed", c->now.processed);
        put_count(b, "failed", c->now.failed);
        put_count(b, "dead", c->now.dead);
        if (!h) {
                om_buf_lit(b, ",\"latency_ms\":null");
                return;
        }
        put_quantile(b, ",\"latency_ms\":{\"p50\":", om_histogram_quantile(h, 0.5));
        put_quantile(b, ",\"p99\":", om_histogram_quantile(h, 0.99));
        put_quantile(b, ",\"p999\":", om_histogram_quantile(h, 0.999));
        put_quantile(b, ",\"max\":", h->max_us);
        om_buf_putc(b, '}');
}

static void put_daemon(struct om_buf *b, const struct om_metrics *m) {
        const struct om_daemon_metrics *d = &m->daemon;

        om_buf_lit(b, "\"uptime_s\":");
        om_buf_json_double(b, (double) (om_now_ms() - m->core->started_ms) / 1000);
        put_count(b, "frames_in", d->frames_in);
        put_count(b, "frames_out", d->frames_out);
        put_count(b, "bytes_in", d->bytes_in);
        put_count(b, "bytes_out", d->bytes_out);
        put_count(b, "requests", d->requests);
        put_count(b, "errors", d->errors);
        put_count(b, "connections", d->connections);
        put_count(b, "bus_batches", d->bus_batches);
        put_count(b, "bus_tasks", d->bus_tasks);
}

void om_metrics_write(struct om_metrics *m, struct om_span topic, struct om_buf *b) {
        struct topic_cell *t, *next_topic;
        struct agent_cell *a, *next_agent;
        const char *comma = "";

        om_buf_lit(b, "{\"daemon\":{");
        put_daemon(b, m);
        om_buf_lit(b, "},\"topics\":[");
        HASH_ITER (hh, m->topics, t, next_topic) {
                if (topic.p && !om_span_eq(topic, (struct om_span){ t->topic, t->len }))
                        continue;
                om_buf_puts(b, comma);
                om_buf_putc(b, '{');
                put_topic(b, t);
                om_buf_putc(b, '}');
                comma = ",";
        }
        om_buf_lit(b, "],\"agents\":[");
        comma = "";
        HASH_ITER (hh, m->agents, a, next_agent) {
                if (topic.p && !om_span_eq(topic, topic_of(a)))
                        continue;
                om_buf_puts(b, comma);
                om_buf_putc(b, '{');
                put_agent(b, a);
                om_buf_putc(b, '}');
                comma = ",";
        }
        om_buf_lit(b, "]}");
}

/* -- snapshots ----------------------------------------------------------------------------------------------------- */

/* One put of at most SNAPSHOT_BATCH entries; what does not fit waits for the next interval. */
struct snapshot {
        struct om_buf text;
        int64_t now_ms; /* one time for all, in the texts and beside them: some storages keep it in the text alone */
        size_t n, ends[SNAPSHOT_BATCH];
        struct om_span topics[SNAPSHOT_BATCH]; /* of the cells, which stay */
        struct om_outcome outcomes[SNAPSHOT_BATCH];
        struct om_store_entry entries[SNAPSHOT_BATCH];
};

static void end_entry(struct om_metrics *m, struct snapshot *s, struct om_span topic) {
        om_buf_lit(&s->text, ",\"runner_id\":\"");
        om_buf_puts(&s->text, m->core->runner_id);
        /* Both, as the Python OmniDaemon's have them. */
        om_buf_lit(&s->text, "\",\"timestamp\":");
        om_buf_json_time(&s->text, s->now_ms);
        om_buf_lit(&s->text, ",\"saved_at\":");
        om_buf_json_time(&s->text, s->now_ms);
        om_buf_putc(&s->text, '}');
        s->topics[s->n] = topic;
        s->ends[s->n++] = s->text.len;
}

/* True when everything that changed is in. */
static bool compose(struct om_metrics *m, struct snapshot *s) {
        struct topic_cell *t, *next_topic;
        struct agent_cell *a, *next_agent;

        HASH_ITER (hh, m->topics, t, next_topic) {
                if (memcmp(&t->now, &t->saved, sizeof t->now) == 0)
                        continue;
                if (s->n == SNAPSHOT_BATCH)
                        return false;
                om_buf_lit(&s->text, "{\"event\":\"topic_snapshot\",");
                put_topic(&s->text, t);
                end_entry(m, s, (struct om_span){ t->topic, t->len });
                t->saved = t->now;
        }
        HASH_ITER (hh, m->agents, a, next_agent) {
                if (memcmp(&a->now, &a->saved, sizeof a->now) == 0)
                        continue;
                if (s->n == SNAPSHOT_BATCH)
                        return false;
                om_buf_lit(&s->text, "{\"event\":\"agent_snapshot\",");
                put_agent(&s->text, a);
                end_entry(m, s, topic_of(a));
                a->saved = a->now;
        }
        return true;
}

static void arm(struct om_metrics *m) {
        int64_t ms = m->core->settings->metrics_interval_ms;
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        if (m->armed || m->out || ms <= 0)
                return;
        m->armed = event_add(&m->timer, &tv) == 0;
}

static void snapshot_over(struct om_metrics *m) {
        struct om_post *flushed = m->flushed;

        m->out = false;
        if (m->changed && !flushed)
                arm(m);
        m->flushed = NULL;
        if (flushed)
                om_host_post(m->core->host, flushed);
}

static void on_saved(struct om_call *c, int status, const struct om_error *e) {
        struct om_metrics *m = c->core->metrics;
        struct snapshot *s = c->data;

        for (size_t i = 0; i < s->n && status == 0; i++)
                status = s->outcomes[i].status;
        /* The counters are in memory still, and in the next snapshot. */
        if (status < 0)
                om_log(OM_LOG_DEBUG, "metrics: snapshot not saved: %s", e ? e->message : strerror(-status));
        om_buf_deinit(&s->text);
        free(s);
        om_call_free(c);
        snapshot_over(m);
}

/* Sends a snapshot, when there is something and the storage is there. */
static bool save(struct om_metrics *m) {
        struct om_call *c = NULL;
        struct snapshot *s;
        size_t start = 0;

        if (!m->changed || m->core->store_state != OM_STORE_READY)
                return false;
        s = calloc(1, sizeof *s);
        if (s)
                c = om_call_new(m->core, NULL, OM_CALL_STORE_PUT, on_saved);
        if (!c) {
                free(s);
                return false;
        }
        s->now_ms = om_now_ms();
        m->changed = !compose(m, s);
        if (s->n == 0 || !om_buf_ok(&s->text)) {
                om_buf_deinit(&s->text);
                free(s);
                om_call_free(c);
                return false;
        }
        for (size_t i = 0; i < s->n; i++) {
                s->entries[i] = (struct om_store_entry){
                        .value = { s->text.data + start, s->ends[i] - start }, .saved_ms = s->now_ms, .topic = s->topics[i]
                };
                start = s->ends[i];
        }
        c->data = s;
        c->put.kind = OM_STORE_METRICS;
        c->put.entries = s->entries;
        c->put.n = s->n;
        c->put.outcomes = s->outcomes;
        m->out = true;
        om_call_start(c);
        return true;
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_metrics *m = ctx;

        m->armed = false;
        if (!save(m) && m->changed)
                arm(m);
}

void om_metrics_changed(struct om_metrics *m) {
        m->changed = true;
        if (!m->armed)
                arm(m);
}

void om_metrics_flush(struct om_metrics *m, struct om_post *done) {
        m->flushed = done;
        event_del(&m->timer);
        m->armed = false;
        if (m->out)
                return; /* its end tells */
        if (m->core->settings->metrics_interval_ms <= 0 || !save(m))
                snapshot_over(m);
}

int om_metrics_new(struct om_core *core, struct om_metrics **ret) {
        struct om_metrics *m = calloc(1, sizeof *m);

        if (!m)
                return -ENOMEM;
        m->core = core;
        event_assign(&m->timer, om_loop_base(core->loop), -1, 0, on_timer, m);
        *ret = m;
        return 0;
}

void om_metrics_free(struct om_metrics *m) {
        struct topic_cell *t, *next_topic;
        struct agent_cell *a, *next_agent;

        if (!m)
                return;
        event_del(&m->timer);
        HASH_ITER (hh, m->topics, t, next_topic) {
                HASH_DEL(m->topics, t);
                free(t);
        }
        HASH_ITER (hh, m->agents, a, next_agent) {
                HASH_DEL(m->agents, a);
                free(a->now.latency);
                free(a);
        }
        free(m);
}
