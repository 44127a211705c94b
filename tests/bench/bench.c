/* SPDX-License-Identifier: Apache-2.0 */
/*
 * make bench: what the daemon does a second, beside what the disk, LMDB, beanstalkd and NATS do alone in the same minutes.
 *
 * Each case starts a daemon of its own in a fresh folder (built binaries, no configuration but what the case names), drives it through
 * libomniclient as a user would, and stops it. All cases run once a round; of several rounds the medians are shown, as a table and, with
 * --json FILE, as JSON. Ratios are medians of each round's ratio: README.md beside this file says how to read them.
 *
 *   bench [--runs N] [--only WORD] [--json FILE] [--quick]
 *   bench --drive publish|whole_way|whole_way_results|topics|latency N     only the load, against the daemon of $OMNIDAEMON_SOCKET
 * (instructions.sh)
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

const char *bin_dir = "build/bin";
static double scale = 1;

double now_s(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

void die(const char *what, const char *why) {
        fprintf(stderr, "bench: %s: %s\n", what, why);
        exit(1);
}

long scaled(long n) { return (long) ((double) n * scale); }
bool quick(void) { return scale < 1; }

static const struct {
        const char *figures; /* the beginning of its figures' names */
        void (*run)(void);
        bool once;     /* long, and of shapes, not of speed: in the first round only */
        bool one_core; /* all its processes on one core: what is timed is small, and waking a sleeping core may cost more (see hop_) */
} cases[] = {
        { "raw_lmdb_puts", case_raw_lmdb },
        { "publish", case_publish },
        { "whole_way_plain", case_whole_way },
        { "whole_way_results", case_whole_way_results },
        { "beanstalkd", case_beanstalkd },
        { "nats_puts", case_nats },
        { "nats_native", case_nats_bus },
        { "redis_native", case_redis },
        { "kafka_native", case_kafka },
        { "rabbitmq_native", case_rabbitmq },
        { "pg_native", case_postgresql },
        { "latency_pg_native", case_postgresql_latency, .one_core = true },
        { "mongodb_native", case_mongodb },
        { "latency_mongodb_native", case_mongodb_latency, .one_core = true },
        { "redis_store_native", case_redis_store },
        { "latency_redis_store_native", case_redis_store_latency, .one_core = true },
        { "nats_kv_native", case_nats_kv },
        { "latency_nats_kv_native", case_nats_kv_latency, .one_core = true },
        { "redis_python", case_redis_python, .once = true },
        { "s3_native", case_s3 },
        { "latency_s3_native", case_s3_latency },
        { "latency_redis_native", case_redis_latency, .one_core = true },
        { "latency_rabbitmq_native", case_rabbitmq_latency },
        { "latency_nats_native", case_nats_latency, .one_core = true },
        { "raw_lmdb_commit", case_raw_lmdb_commit, .one_core = true },
        { "latency_durable", case_latency, .one_core = true },
        { "latency_memory", case_latency_memory, .one_core = true },
        { "ping", case_ping, .one_core = true },
        { "hop", case_hop },
        { "two_cores_memory", case_latency_two_cores },
        { "idle", case_memory_idle },
        { "held", case_held, .once = true, .one_core = true },
        { "topics", case_topics, .once = true, .one_core = true },
        { "connections", case_connections, .once = true, .one_core = true },
        { "results", case_results, .once = true, .one_core = true },
};

/* All that is started from here on runs on the first core that this process was given; or again on all of them. */
static void use_one_core(bool one) {
        static cpu_set_t all;
        cpu_set_t set;
        if (!CPU_COUNT(&all) && sched_getaffinity(0, sizeof(all), &all) < 0)
                die("sched_getaffinity", strerror(errno));
        set = all;
        for (int core = 0; one && core < CPU_SETSIZE; core++)
                if (CPU_ISSET(core, &all)) {
                        CPU_ZERO(&set);
                        CPU_SET(core, &set);
                        break;
                }
        if (sched_setaffinity(0, sizeof(set), &set) < 0)
                die("sched_setaffinity", strerror(errno));
}

static void drive_latency(const struct daemon *d, long n) {
        double *us = calloc((size_t) n, sizeof(double));
        latency_load(d, n, us);
        free(us);
}

static int drive(const char *what, long n) {
        struct daemon d = { .pid = 0 };
        snprintf(d.socket, sizeof(d.socket), "%s", getenv("OMNIDAEMON_SOCKET") ? getenv("OMNIDAEMON_SOCKET") : "");
        if (strcmp(what, "publish") == 0)
                publish_load(&(struct load){ .daemon = &d, .topic = "driven", .total = n, .batch = BATCH, .in_flight = IN_FLIGHT });
        else if (strcmp(what, "whole_way") == 0 || strcmp(what, "whole_way_results") == 0)
                whole_way_seconds(&d, "driven", 1, what[9] == '_', n);
        else if (strcmp(what, "topics") == 0)
                whole_way_seconds(&d, "driven.%d", 10000, false, n);
        else if (strcmp(what, "latency") == 0)
                drive_latency(&d, n);
        else
                die("--drive", "publish, whole_way, whole_way_results, topics or latency");
        return 0;
}

int main(int argc, char **argv) {
        const char *json = NULL;
        int runs = 5;
        if (getenv("OMNI_BIN"))
                bin_dir = getenv("OMNI_BIN");
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "--runs") == 0 && i + 1 < argc)
                        runs = atoi(argv[++i]);
                else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
                        table_choose(argv[++i]);
                else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
                        json = argv[++i];
                else if (strcmp(argv[i], "--quick") == 0)
                        scale = 0.2, runs = 1;
                else if (strcmp(argv[i], "--drive") == 0 && i + 2 < argc)
                        return drive(argv[i + 1], atol(argv[i + 2]));
                else
                        die("usage", "bench [--runs N] [--only WORD] [--json FILE] [--quick]");
        }
        if (runs < 1)
                die("--runs", "at least 1");
        for (int round = 0; round < runs; round++)
                for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                        if (!table_wants(cases[i].figures) || (cases[i].once && round > 0))
                                continue;
                        fprintf(stderr, "round %d of %d: %s        \r", round + 1, runs, cases[i].figures);
                        use_one_core(cases[i].one_core);
                        cases[i].run();
                }
        fprintf(stderr, "\n");
        table_print();
        if (json)
                table_json(json, runs);
        return 0;
}
