/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The figures: what each is called, what it is compared with, what was measured, and how that is shown.
 *
 * Always true: a figure that is compared stands after what it is compared with, and both were measured in each round, so their n-th values
 * belong together. A comparison is the median of the rounds' own, not one of medians.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { ROUNDS_MAX = 64 };
enum how { ALONE, TIMES, PLUS, FLAT }; /* beside another: how many times as much; how much more; a cost that should not grow */
#define GROWTH_MAX 1.5                 /* what counts as flat: two probes of one and the same thing differ by as much on a shared machine */

static struct figure {
        const char *name, *unit, *what;
        const char *beside;
        enum how how;
        double target;       /* TIMES: at least so many; FLAT: at most; PLUS: at most so much more; ALONE: at most. 0: none */
        const char *promise; /* what the target is about, for the table of targets */
        bool wanted;
        char missing[160];
        int n;
        double values[ROUNDS_MAX], sorted[ROUNDS_MAX];
} figures[] = {
        { "raw_lmdb_puts_1600", "puts/s", "LMDB alone, 1,600 puts a commit (16 x 100)" },
        { "raw_lmdb_puts_100", "puts/s", "LMDB alone, 100 puts a commit" },
        { "publish_100x16", "tasks/s", "durable publish, tasks[] of 100, 16 in flight", "raw_lmdb_puts_1600", TIMES, 0.5,
                .promise = "durable publish, beside LMDB at the same batch" },
        { "publish_1x1000", "tasks/s", "single, 1,000 in flight", "raw_lmdb_puts_1600", TIMES },
        { "publish_1x100", "tasks/s", "single, 100 in flight", "raw_lmdb_puts_100", TIMES },
        { "publish_1x1", "tasks/s", "one at a time" },
        { "publish_memory_100x16", "tasks/s", "tasks[] of 100, 16 in flight, without fsync" },
        { "whole_way_plain", "tasks/s", "publish, deliver, ack; durable; no results", "raw_lmdb_puts_1600", TIMES, 0.2,
                .promise = "publish, deliver, ack, durable, beside LMDB" },
        { "whole_way_results", "tasks/s", "the same, each result saved durably", "raw_lmdb_puts_1600", TIMES },
        { "beanstalkd_puts", "puts/s", "beanstalkd -f0, 100 to 200 puts pipelined" },
        { "beanstalkd_ours", "tasks/s", "publish_100x16 beside it", "beanstalkd_puts", TIMES, 50,
                .promise = "durable publish, beside beanstalkd -f0" },
        { "nats_puts", "puts/s", "NATS JetStream js_PublishAsync, file storage, not synced" },
        { "nats_ours", "tasks/s", "publish_100x16 beside it", "nats_puts", TIMES, 2,
                .promise = "durable publish, beside NATS, which does not sync" },
        { "mongodb_native_set", "writes/s", "libmongoc alone: a setting each, one at a time, on FerretDB" },
        { "mongodb_set", "writes/s", "config.set through the daemon, 64 under way; what waits is one bulk", "mongodb_native_set", TIMES },
        { "mongodb_native_get", "reads/s", "libmongoc alone: a setting each, one at a time" },
        { "mongodb_get", "reads/s", "config.get through the daemon, 64 under way, on three connections", "mongodb_native_get", TIMES },
        { "redis_native_publish", "XADD/s", "hiredis alone, 1,600 XADD pipelined; appendfsync always" },
        { "redis_publish", "tasks/s", "publish through the daemon, tasks[] of 100, 16 in flight", "redis_native_publish", TIMES, 0.8,
                .promise = "Redis: publish, beside hiredis alone" },
        { "redis_native_whole_way", "tasks/s", "hiredis alone: XADD, XREADGROUP, XACK" },
        { "redis_whole_way", "tasks/s", "publish, deliver, ack through the daemon; no results", "redis_native_whole_way", TIMES },
        { "redis_store_native_set", "writes/s", "hiredis alone: a setting each, 64 pipelined; appendfsync always" },
        { "redis_store_set", "writes/s", "config.set through the daemon, 64 under way", "redis_store_native_set", TIMES },
        { "redis_store_native_get", "reads/s", "hiredis alone: a setting each, 64 pipelined" },
        { "redis_store_get", "reads/s", "config.get through the daemon, 64 under way", "redis_store_native_get", TIMES },
        { "nats_kv_native_set", "writes/s", "libnats alone: a setting each, one at a time; sync_interval always" },
        { "nats_kv_set", "writes/s", "config.set through the daemon, 64 under way", "nats_kv_native_set", TIMES },
        { "nats_kv_native_get", "reads/s", "libnats alone: a setting each, one at a time" },
        { "nats_kv_get", "reads/s", "config.get through the daemon, 64 under way", "nats_kv_native_get", TIMES },
        { "pg_native_set", "writes/s", "libpq alone: a setting each, 64 transactions pipelined; fsync on" },
        { "pg_set", "writes/s", "config.set through the daemon, 64 under way; what waits is one transaction", "pg_native_set", TIMES },
        { "pg_native_get", "reads/s", "libpq alone: a setting each, 64 pipelined" },
        { "pg_get", "reads/s", "config.get through the daemon, 64 under way", "pg_native_get", TIMES },
        { "pg_native_results", "results/s", "libpq alone: 100 results a transaction, 4 pipelined" },
        { "pg_results", "tasks/s", "publish, deliver, ack through the daemon, bus in memory, each result saved", "pg_native_results",
                TIMES },
        { "kafka_native_publish", "messages/s", "librdkafka alone, 1,600 in flight; idempotent, acks=all" },
        { "kafka_publish", "tasks/s", "publish through the daemon, tasks[] of 100, 16 in flight", "kafka_native_publish", TIMES, 0.6,
                .promise = "Kafka: publish, beside librdkafka alone" },
        { "kafka_native_whole_way", "messages/s", "librdkafka alone: produce, consume in a group, commit a batch" },
        { "kafka_whole_way", "tasks/s", "publish, deliver, ack through the daemon; no results", "kafka_native_whole_way", TIMES },
        { "kafka_native_latency_p50", "us", "librdkafka alone: produce to the consumer, one at a time" },
        { "kafka_native_latency_p99", "us", "" },
        { "kafka_native_latency_p999", "us", "" },
        { "kafka_latency_p50", "us", "publish to handler through the daemon, one at a time", "kafka_native_latency_p50", PLUS, 60,
                .promise = "Kafka: added latency, p50" },
        { "kafka_latency_p99", "us", "", "kafka_native_latency_p99", PLUS, 250, .promise = "Kafka: added latency, p99" },
        { "kafka_latency_p999", "us", "", "kafka_native_latency_p999", PLUS },
        { "rabbitmq_native_publish", "messages/s", "librabbitmq alone, 1,600 in flight; quorum queue, confirms" },
        { "rabbitmq_native_as_ours_publish", "messages/s", "the same by a topic exchange, with a task's properties",
                "rabbitmq_native_publish", TIMES },
        { "rabbitmq_without_log_publish", "tasks/s", "publish through the daemon, tasks[] of 100, 16 in flight; log=false",
                "rabbitmq_native_publish", TIMES, 1, .promise = "RabbitMQ: publish, beside librabbitmq alone" },
        { "rabbitmq_publish", "tasks/s", "the same with the log, as is the default: a stream beside the queue", "rabbitmq_native_publish",
                TIMES },
        { "rabbitmq_native_whole_way", "messages/s", "librabbitmq alone: publish, consume, acknowledge what came at once" },
        { "rabbitmq_without_log_whole_way", "tasks/s", "publish, deliver, ack through the daemon; no results, log=false",
                "rabbitmq_native_whole_way", TIMES },
        { "rabbitmq_whole_way", "tasks/s", "the same with the log", "rabbitmq_native_whole_way", TIMES },
        { "latency_rabbitmq_native_p50", "us", "librabbitmq alone: publish to the consumer, one at a time" },
        { "latency_rabbitmq_native_p99", "us", "" },
        { "latency_rabbitmq_native_p999", "us", "" },
        { "latency_rabbitmq_p50", "us", "publish to handler through the daemon, one at a time; log=false", "latency_rabbitmq_native_p50",
                PLUS, 60, .promise = "RabbitMQ: added latency, p50" },
        { "latency_rabbitmq_p99", "us", "", "latency_rabbitmq_native_p99", PLUS, 250, .promise = "RabbitMQ: added latency, p99" },
        { "latency_rabbitmq_p999", "us", "", "latency_rabbitmq_native_p999", PLUS },
        { "redis_python", "tasks/s", "the Python OmniDaemon, end to end with results, Redis for bus and storage" },
        { "redis_beside_python", "tasks/s", "ours, the same on the same server", "redis_python", TIMES, 50,
                .promise = "Redis: end to end, beside the Python OmniDaemon" },
        { "nats_native_publish", "puts/s", "libnats alone, js_PublishAsync, 1,600 in flight; sync_interval always" },
        { "nats_publish", "tasks/s", "publish through the daemon, tasks[] of 100, 16 in flight", "nats_native_publish", TIMES, 0.9,
                .promise = "NATS: publish, beside libnats alone" },
        { "nats_native_whole_way", "tasks/s", "libnats alone: js_PublishAsync, a pull consumer, acks that nobody confirms" },
        { "nats_whole_way", "tasks/s", "publish, deliver, ack (confirmed) through the daemon; no results", "nats_native_whole_way", TIMES },
        { "nats_native_unsynced_publish", "puts/s", "libnats alone, the same; a server that does not sync" },
        { "nats_native_ids_unsynced_publish", "puts/s", "the same with an id each, by which the server drops a repeat",
                "nats_native_unsynced_publish", TIMES },
        { "nats_unsynced_publish", "tasks/s", "publish through the daemon, likewise", "nats_native_unsynced_publish", TIMES, 0.9,
                .promise = "NATS, not synced: publish, beside libnats alone" },
        { "nats_native_unsynced_whole_way", "tasks/s", "libnats alone: publish, pull consumer, acks; not synced" },
        { "nats_unsynced_whole_way", "tasks/s", "publish, deliver, ack through the daemon; not synced", "nats_native_unsynced_whole_way",
                TIMES },
        { "latency_pg_native_set_p50", "us", "libpq alone: a setting written, one at a time; fsync on" },
        { "latency_pg_native_set_p99", "us", "" },
        { "latency_pg_native_set_p999", "us", "" },
        { "latency_pg_set_p50", "us", "config.set through the daemon, one at a time", "latency_pg_native_set_p50", PLUS },
        { "latency_pg_set_p99", "us", "", "latency_pg_native_set_p99", PLUS },
        { "latency_pg_set_p999", "us", "", "latency_pg_native_set_p999", PLUS },
        { "latency_pg_native_get_p50", "us", "libpq alone: a setting read, one at a time" },
        { "latency_pg_native_get_p99", "us", "" },
        { "latency_pg_native_get_p999", "us", "" },
        { "latency_pg_get_p50", "us", "config.get through the daemon, one at a time", "latency_pg_native_get_p50", PLUS },
        { "latency_pg_get_p99", "us", "", "latency_pg_native_get_p99", PLUS },
        { "latency_pg_get_p999", "us", "", "latency_pg_native_get_p999", PLUS },
        { "s3_native_write", "PUT/s", "libcurl alone, 32 under way, conditional; MinIO" },
        { "s3_write", "writes/s", "config.set through the daemon, 32 under way", "s3_native_write", TIMES },
        { "s3_native_read", "GET/s", "libcurl alone, 32 under way" },
        { "s3_read", "reads/s", "config.get through the daemon, 32 under way", "s3_native_read", TIMES },
        { "latency_mongodb_native_set_p50", "us", "libmongoc alone: a setting written, one at a time, on FerretDB" },
        { "latency_mongodb_native_set_p99", "us", "" },
        { "latency_mongodb_native_set_p999", "us", "" },
        { "latency_mongodb_set_p50", "us", "config.set through the daemon, one at a time", "latency_mongodb_native_set_p50", PLUS },
        { "latency_mongodb_set_p99", "us", "", "latency_mongodb_native_set_p99", PLUS },
        { "latency_mongodb_set_p999", "us", "", "latency_mongodb_native_set_p999", PLUS },
        { "latency_mongodb_native_get_p50", "us", "libmongoc alone: a setting read, one at a time, on FerretDB" },
        { "latency_mongodb_native_get_p99", "us", "" },
        { "latency_mongodb_native_get_p999", "us", "" },
        { "latency_mongodb_get_p50", "us", "config.get through the daemon, one at a time", "latency_mongodb_native_get_p50", PLUS },
        { "latency_mongodb_get_p99", "us", "", "latency_mongodb_native_get_p99", PLUS },
        { "latency_mongodb_get_p999", "us", "", "latency_mongodb_native_get_p999", PLUS },
        { "latency_redis_store_native_set_p50", "us", "hiredis alone: a setting written, one at a time" },
        { "latency_redis_store_native_set_p99", "us", "" },
        { "latency_redis_store_native_set_p999", "us", "" },
        { "latency_redis_store_set_p50", "us", "config.set through the daemon, one at a time", "latency_redis_store_native_set_p50", PLUS },
        { "latency_redis_store_set_p99", "us", "", "latency_redis_store_native_set_p99", PLUS },
        { "latency_redis_store_set_p999", "us", "", "latency_redis_store_native_set_p999", PLUS },
        { "latency_redis_store_native_get_p50", "us", "hiredis alone: a setting read, one at a time" },
        { "latency_redis_store_native_get_p99", "us", "" },
        { "latency_redis_store_native_get_p999", "us", "" },
        { "latency_redis_store_get_p50", "us", "config.get through the daemon, one at a time", "latency_redis_store_native_get_p50", PLUS },
        { "latency_redis_store_get_p99", "us", "", "latency_redis_store_native_get_p99", PLUS },
        { "latency_redis_store_get_p999", "us", "", "latency_redis_store_native_get_p999", PLUS },
        { "latency_nats_kv_native_set_p50", "us", "libnats alone: a setting written, one at a time" },
        { "latency_nats_kv_native_set_p99", "us", "" },
        { "latency_nats_kv_native_set_p999", "us", "" },
        { "latency_nats_kv_set_p50", "us", "config.set through the daemon, one at a time", "latency_nats_kv_native_set_p50", PLUS },
        { "latency_nats_kv_set_p99", "us", "", "latency_nats_kv_native_set_p99", PLUS },
        { "latency_nats_kv_set_p999", "us", "", "latency_nats_kv_native_set_p999", PLUS },
        { "latency_nats_kv_native_get_p50", "us", "libnats alone: a setting read, one at a time" },
        { "latency_nats_kv_native_get_p99", "us", "" },
        { "latency_nats_kv_native_get_p999", "us", "" },
        { "latency_nats_kv_get_p50", "us", "config.get through the daemon, one at a time", "latency_nats_kv_native_get_p50", PLUS },
        { "latency_nats_kv_get_p99", "us", "", "latency_nats_kv_native_get_p99", PLUS },
        { "latency_nats_kv_get_p999", "us", "", "latency_nats_kv_native_get_p999", PLUS },
        { "latency_redis_native_p50", "us", "hiredis alone: XADD to the reader, one at a time" },
        { "latency_redis_native_p99", "us", "" },
        { "latency_redis_native_p999", "us", "" },
        { "latency_redis_p50", "us", "publish to handler through the daemon, one at a time", "latency_redis_native_p50", PLUS, 60,
                .promise = "Redis: added latency, p50" },
        { "latency_redis_p99", "us", "", "latency_redis_native_p99", PLUS, 250, .promise = "Redis: added latency, p99" },
        { "latency_redis_p999", "us", "", "latency_redis_native_p999", PLUS },
        { "latency_nats_native_p50", "us", "libnats alone: js_Publish to the pull consumer, one at a time; not synced" },
        { "latency_nats_native_p99", "us", "" },
        { "latency_nats_native_p999", "us", "" },
        { "latency_nats_p50", "us", "publish to handler through the daemon, one at a time", "latency_nats_native_p50", PLUS, 60,
                .promise = "NATS: added latency, p50" },
        { "latency_nats_p99", "us", "", "latency_nats_native_p99", PLUS, 250, .promise = "NATS: added latency, p99" },
        { "latency_nats_p999", "us", "", "latency_nats_native_p999", PLUS },
        { "latency_s3_native_write_p50", "us", "libcurl alone: one PUT at a time; MinIO" },
        { "latency_s3_native_write_p99", "us", "" },
        { "latency_s3_native_write_p999", "us", "" },
        { "latency_s3_write_p50", "us", "config.set through the daemon, one at a time", "latency_s3_native_write_p50", PLUS },
        { "latency_s3_write_p99", "us", "", "latency_s3_native_write_p99", PLUS },
        { "latency_s3_write_p999", "us", "", "latency_s3_native_write_p999", PLUS },
        { "latency_s3_native_read_p50", "us", "libcurl alone: one GET at a time; MinIO" },
        { "latency_s3_native_read_p99", "us", "" },
        { "latency_s3_native_read_p999", "us", "" },
        { "latency_s3_read_p50", "us", "config.get through the daemon, one at a time", "latency_s3_native_read_p50", PLUS },
        { "latency_s3_read_p99", "us", "", "latency_s3_native_read_p99", PLUS },
        { "latency_s3_read_p999", "us", "", "latency_s3_native_read_p999", PLUS },
        { "raw_lmdb_commit_p50", "us", "LMDB alone, one put a commit" },
        { "raw_lmdb_commit_p99", "us", "" },
        { "raw_lmdb_commit_p999", "us", "" },
        { "latency_durable_p50", "us", "publish to handler, one at a time, durable", "raw_lmdb_commit_p50", PLUS, 80,
                .promise = "publish to handler, durable, over one commit of LMDB" },
        { "latency_durable_p99", "us", "", "raw_lmdb_commit_p99", PLUS },
        { "latency_durable_p999", "us", "", "raw_lmdb_commit_p999", PLUS },
        { "latency_memory_p50", "us", "the same without fsync: what the daemon itself adds", NULL, ALONE, 60,
                .promise = "added latency, p50" },
        { "latency_memory_p99", "us", "", NULL, ALONE, 250, .promise = "added latency, p99" },
        { "latency_memory_p999", "us", "" },
        { "ping_p50", "us", "a frame there and back" },
        { "ping_p99", "us", "" },
        { "ping_p999", "us", "" },
        { "hop_p50", "us", "a byte there and back between two processes on two cores, nothing else" },
        { "hop_p99", "us", "" },
        { "hop_p999", "us", "" },
        { "two_cores_memory_p50", "us", "latency_memory on two cores, by four such hops", "hop_p50", TIMES },
        { "two_cores_memory_p99", "us", "", "hop_p99", TIMES },
        { "two_cores_memory_p999", "us", "" },
        { "idle_memory", "MiB", "resident, no client", NULL, ALONE, 8, .promise = "idle daemon, resident" },
        { "idle_ready", "ms", "from the start of the program to its first answer, empty", NULL, ALONE, 30,
                .promise = "idle daemon, ready" },
        { "held_1000_publish", "us/task", "with 10^3 tasks held: publishing 20,000 more (no fsync, as all of held_)" },
        { "held_1000000_publish", "us/task", "with 10^6", "held_1000_publish", FLAT, GROWTH_MAX,
                .promise = "growth: publishing, 10^3 to 10^6 tasks held" },
        { "held_10000000_publish", "us/task", "with 10^7", "held_1000_publish", FLAT, GROWTH_MAX,
                .promise = "growth: publishing, 10^3 to 10^7 tasks held" },
        { "held_1000_whole_way", "us/task", "a task's whole way on another topic, 10^3 held" },
        { "held_1000000_whole_way", "us/task", "with 10^6", "held_1000_whole_way", FLAT, GROWTH_MAX,
                .promise = "growth: whole way, 10^3 to 10^6 tasks held" },
        { "held_10000000_whole_way", "us/task", "with 10^7", "held_1000_whole_way", FLAT, GROWTH_MAX,
                .promise = "growth: whole way, 10^3 to 10^7 tasks held" },
        { "held_1000000_drain", "us/task", "delivering and acknowledging the first 20,000 of 10^6 held" },
        { "held_10000000_drain", "us/task", "the first 20,000 of 10^7", "held_1000000_drain", FLAT },
        { "held_1000000_memory", "MiB", "resident before that, file pages of LMDB left out" },
        { "held_10000000_memory", "MiB", "with 10^7" },
        { "held_1000000_ready", "ms", "start to first answer with 10^6 tasks held" },
        { "held_10000000_ready", "ms", "with 10^7" },
        { "topics_1", "us/task", "whole way over 1 topic, the agent on a pattern (no fsync)" },
        { "topics_100", "us/task", "over 100", "topics_1", TIMES },
        { "topics_10000", "us/task", "over 10,000", "topics_1", FLAT, GROWTH_MAX, .promise = "growth: whole way, 1 to 10^4 topics" },
        { "connections_1", "us/task", "whole way, nobody else connected (no fsync)" },
        { "connections_10000", "us/task", "beside 10,000 idle connections", "connections_1", FLAT, GROWTH_MAX,
                .promise = "growth: whole way, 1 to 10^4 connections" },
        { "connections_memory", "KiB", "resident for each idle connection" },
        { "results_1000_save", "us/task", "whole way with results, 10^3 records there (nothing is synced)" },
        { "results_1000000_save", "us/task", "with 10^6", "results_1000_save", FLAT, GROWTH_MAX,
                .promise = "growth: whole way with results, 10^3 to 10^6 kept" },
        { "results_1000_get_p50", "us", "task.get, one at a time, 10^3 records there" },
        { "results_1000_get_p99", "us", "" },
        { "results_1000_get_p999", "us", "" },
        { "results_1000000_get_p50", "us", "with 10^6; the file is compacted meanwhile, or not", "results_1000_get_p50", FLAT, GROWTH_MAX,
                .promise = "growth: task.get, 10^3 to 10^6 results kept" },
        { "results_1000000_get_p99", "us", "", "results_1000_get_p99", TIMES },
        { "results_1000000_get_p999", "us", "" },
        { "results_1000000_memory", "MiB", "resident, with 10^6 records there" },
        { "results_1000000_ready", "ms", "start to first answer with 10^6 records" },
};
enum { N_FIGURES = sizeof(figures) / sizeof(figures[0]) };
static bool chosen;

static struct figure *find(const char *name) {
        for (int i = 0; name && i < N_FIGURES; i++)
                if (strcmp(figures[i].name, name) == 0)
                        return &figures[i];
        return NULL;
}

static struct figure *get(const char *name) {
        struct figure *f = find(name);
        if (!f)
                die("no such figure", name);
        return f;
}

void figure(const char *name, double value) {
        struct figure *f = get(name);
        if (f->n < ROUNDS_MAX)
                f->values[f->n++] = value;
}

double figure_last(const char *name) {
        struct figure *f = get(name);
        return f->n ? f->values[f->n - 1] : 0;
}

void figure_missing(const char *name, const char *why) {
        struct figure *f = get(name);
        snprintf(f->missing, sizeof(f->missing), "%s", why);
}

static int by_value(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;
        return x < y ? -1 : x > y;
}

void figure_quantiles(const char *name, double *values, long n) {
        static const struct {
                const char *ending;
                double q;
        } quantiles[] = { { "p50", 0.5 }, { "p99", 0.99 }, { "p999", 0.999 } };
        char full[64];
        qsort(values, (size_t) n, sizeof(double), by_value);
        for (int i = 0; i < 3; i++) {
                snprintf(full, sizeof(full), "%s_%s", name, quantiles[i].ending);
                figure(full, values[(long) (quantiles[i].q * (double) (n - 1))]);
        }
}

void table_choose(const char *word) {
        chosen = true;
        for (int i = N_FIGURES - 1; i >= 0; i--) {
                if (strstr(figures[i].name, word))
                        figures[i].wanted = true;
                if (figures[i].wanted && figures[i].beside)
                        find(figures[i].beside)->wanted = true;
                if (figures[i].wanted && strstr(figures[i].name, "_ours"))
                        find("publish_100x16")->wanted = true;
        }
}

bool table_wants(const char *name) {
        for (int i = 0; i < N_FIGURES; i++)
                if (strncmp(figures[i].name, name, strlen(name)) == 0 && (!chosen || figures[i].wanted))
                        return true;
        return false;
}

static double median(struct figure *f) {
        memcpy(f->sorted, f->values, (size_t) f->n * sizeof(double));
        qsort(f->sorted, (size_t) f->n, sizeof(double), by_value);
        return f->sorted[f->n / 2];
}

/* What it is in comparison; false: nothing was measured to compare it with. */
static bool compared(struct figure *f, double *ret) {
        struct figure *beside = find(f->beside), rounds = { .n = 0 };
        if (!beside || f->n == 0 || beside->n < f->n)
                return false;
        for (; rounds.n < f->n; rounds.n++) {
                double a = f->values[rounds.n], b = beside->values[rounds.n];
                rounds.values[rounds.n] = f->how == PLUS ? a - b : a / b;
        }
        *ret = median(&rounds);
        return true;
}

static bool met(struct figure *f, double value) { return f->how == TIMES ? value >= f->target : value <= f->target; }

/* What was promised, and what became of it. */
static void print_targets(void) {
        printf("\n%-54s %10s %16s %18s %10s\n", "target", "", "figure", "beside", "");
        for (int i = 0; i < N_FIGURES; i++) {
                struct figure *f = &figures[i];
                double value = 0;
                char beside[32] = "";
                if (f->target == 0 || f->n == 0)
                        continue;
                bool is = compared(f, &value);
                if (!is && f->how != ALONE)
                        continue;
                if (is)
                        snprintf(beside, sizeof(beside), "%.1f", median(find(f->beside)));
                else
                        value = median(f);
                printf("%-54s %2s %7.4g %16.1f %18s %+10.2f  %s\n", f->promise, f->how == TIMES ? ">=" : "<=", f->target, median(f), beside,
                        value, met(f, value) ? "met" : "MISSED");
        }
}

void table_print(void) {
        printf("%-24s %12s %12s %12s  %-8s %9s %10s  %s\n", "", "median", "least", "most", "unit", "beside", "target", "");
        for (int i = 0; i < N_FIGURES; i++) {
                struct figure *f = &figures[i];
                char comparison[24] = "", target[24] = "";
                double value = 0;
                if (f->missing[0])
                        printf("%-24s %12s %67s  %s\n", f->name, "-", "", f->missing);
                if (f->n == 0)
                        continue;
                bool is = compared(f, &value);
                if (is)
                        snprintf(comparison, sizeof(comparison), f->how == PLUS ? "%+.0f" : "x %.2f", value);
                else
                        value = median(f);
                if (f->target > 0 && (is || f->how == ALONE))
                        snprintf(target, sizeof(target), "%s %g %s", f->how == TIMES ? ">=" : "<=", f->target,
                                met(f, value) ? "ok" : "MISS");
                double m = median(f);
                printf("%-24s %12.1f %12.1f %12.1f  %-8s %9s %10s  %s%s%s\n", f->name, m, f->sorted[0], f->sorted[f->n - 1], f->unit,
                        comparison, target, f->what, is ? "; beside " : "", is ? f->beside : "");
        }
        print_targets();
}

void table_json(const char *path, int rounds) {
        FILE *out = fopen(path, "we");
        if (!out)
                die(path, strerror(errno));
        fprintf(out, "{\"runs\":%d,\"content_bytes\":%d,\"figures\":[", rounds, CONTENT_BYTES);
        const char *comma = "";
        for (int i = 0; i < N_FIGURES; i++) {
                struct figure *f = &figures[i];
                double value;
                if (f->n == 0 && !f->missing[0])
                        continue;
                fprintf(out, "%s\n{\"name\":\"%s\",\"unit\":\"%s\"", comma, f->name, f->unit);
                comma = ",";
                if (f->n == 0) {
                        fprintf(out, ",\"missing\":\"%s\"}", f->missing);
                        continue;
                }
                double m = median(f);
                fprintf(out, ",\"median\":%.2f,\"least\":%.2f,\"most\":%.2f", m, f->sorted[0], f->sorted[f->n - 1]);
                if (compared(f, &value))
                        fprintf(out, ",\"beside\":\"%s\",\"%s\":%.3f", f->beside, f->how == PLUS ? "more" : "ratio", value);
                if (f->target > 0)
                        fprintf(out, ",\"target\":%g", f->target);
                fprintf(out, "}");
        }
        fprintf(out, "\n]}\n");
        if (fclose(out) != 0)
                die(path, strerror(errno));
}
