/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_METRICS_H
#define OM_METRICS_H
/*
 * Counters and latency histograms, in memory; a snapshot of what changed goes to the storage every metrics_interval_ms, and only when
 * something did: an idle daemon sets no timer. Cells are found once (per topic, per group) and kept by whoever counts. Loop thread.
 */
#include "core.h"

/* Latency in microseconds, log-linear buckets (16 a power of two: at most 6.25 % off), from 1 µs to about an hour. */
struct om_histogram {
        uint64_t n, max_us;
        uint32_t buckets[16 * 33];
};
void om_histogram_add(struct om_histogram *h, uint64_t us);
uint64_t om_histogram_quantile(const struct om_histogram *h, double q);

struct om_topic_metrics {
        uint64_t published, delivered, acked, failed, retried, dead, expired;
};
struct om_agent_metrics {
        uint64_t received, processed, failed, dead;
        struct om_histogram *latency; /* made at the first ack */
};
struct om_daemon_metrics {
        uint64_t frames_in, frames_out, bytes_in, bytes_out, requests, errors, connections, bus_batches, bus_tasks;
};

int om_metrics_new(struct om_core *core, struct om_metrics **ret);
void om_metrics_free(struct om_metrics *m);
/* The cell; made when new; never moves while the daemon runs. NULL when out of memory. */
struct om_topic_metrics *om_metrics_topic(struct om_metrics *m, struct om_span topic);
struct om_agent_metrics *om_metrics_agent(struct om_metrics *m, struct om_span topic, struct om_span agent);
struct om_daemon_metrics *om_metrics_daemon(struct om_metrics *m);
/* The last snapshot, when something changed; then `done` is posted, whatever came of it. */
void om_metrics_flush(struct om_metrics *m, struct om_post *done);
void om_metrics_changed(struct om_metrics *m);                                       /* arms the snapshot timer; cheap */
void om_metrics_write(struct om_metrics *m, struct om_span topic, struct om_buf *b); /* the result of metrics.get */

#endif
