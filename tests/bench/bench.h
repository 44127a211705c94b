/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_BENCH_H
#define OM_BENCH_H
/*
 * What the parts of the benchmark share: figures (table.c), daemons and other servers (servers.c, nats.c), loads (load.c), and the cases
 * (cases.c: speed; growth.c: memory, start-up and what becomes of a task's cost; beside.c: LMDB, beanstalkd and NATS alone).
 *
 * A case is a function that measures once and says what it found by figure(). The runner (bench.c) calls every case once a round, so that
 * what is compared was measured in the same seconds: the disk of a shared machine is another one a minute later.
 *
 * Whatever goes wrong ends the program with a message: a benchmark that went wrong has no figures. Thread: each load its own.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "../../client/c/omniclient.h"

enum { CONTENT_BYTES = 300, BATCH = 100, IN_FLIGHT = 16 };
/* A task's record as the bus keeps it, to give LMDB, beanstalkd and NATS as many bytes for each: the content, an id, a topic, a time. */
enum { RECORD_BYTES = CONTENT_BYTES + 100 };

/* -- bench.c ------------------------------------------------------------------------------------------------------------- */

double now_s(void);
void die(const char *what, const char *why) __attribute__((noreturn));
long scaled(long n);        /* n, or less of it with --quick */
bool quick(void);           /* for cases that leave their largest sizes out */
extern const char *bin_dir; /* where omnidaemond is */

/* -- table.c ------------------------------------------------------------------------------------------------------------- */

/* One more measurement of the figure of that name. */
void figure(const char *name, double value);
/* The newest measurement of one; 0: none yet. */
double figure_last(const char *name);
/* There is none, and why: shown in its row. */
void figure_missing(const char *name, const char *why);
/* p50, p99 and p99.9 of n values (sorted in place), as NAME_p50, NAME_p99, NAME_p999. */
void figure_quantiles(const char *name, double *values, long n);

void table_choose(const char *word); /* only figures with that in their names, and what they are compared with */
bool table_wants(const char *name);  /* by its beginning: of "latency", latency_p50 too */
void table_print(void);
void table_json(const char *path, int rounds);

/* -- servers.c ----------------------------------------------------------------------------------------------------------- */

struct daemon {
        char folder[64], socket[96];
        char bus[96];
        pid_t pid;
        double ready_ms; /* from the start of the program to the answer to a first request */
};

void folder_new(char path[64]); /* a fresh one on a real disk: BENCH_DIR, or /var/tmp */
void folder_remove(const char *path);
void daemon_start(struct daemon *d, const char *bus_url);
void daemon_end(struct daemon *d);   /* stops it; the folder stays */
void daemon_again(struct daemon *d); /* starts it in the same folder */
void daemon_stop(struct daemon *d);  /* stops it and removes the folder */
double daemon_rss_mib(const struct daemon *d);
/* Runs a program of $PATH or by its path, its output in FOLDER/log; ended by child_stop(). */
pid_t child_start(const char *folder, const char *const argv[]);
void child_stop(pid_t pid);
int socket_connect(const char *path); /* a Unix stream socket, or -1 */
omni_client *client_new(const struct daemon *d);

/* -- load.c -------------------------------------------------------------------------------------------------------------- */

struct load {
        const struct daemon *daemon;
        const char *topic; /* or a format with one %d, for topics of them */
        long total;        /* tasks */
        int batch, in_flight, topics;
        long open, done; /* requests under way; tasks answered */
        double seconds;
};
void publish_load(struct load *load);

enum { KEYS = 1000 };
const char *value_text(void); /* of a setting: a JSON string of CONTENT_BYTES; static */
/* config.set or config.get of KEYS keys in turn, so many under way. Seconds; `us` (NULL: not wanted), with one under way: how long each
 * took. */
double settings_seconds(const struct daemon *d, const char *method, long total, int under_way, double *us);

/* The same by a system's client library alone: seconds, and how long each took, as settings_seconds(). */
typedef double settings_alone_fn(bool writes, long total, int under_way, double *us);
/* Figures SYSTEM_native_set, SYSTEM_set, SYSTEM_native_get, SYSTEM_get: the library with so many under way, the daemon, which has its
 * storage there, with 64. */
void settings_rates(const struct daemon *d, const char *system, settings_alone_fn *alone, int under_way, long total);
/* latency_SYSTEM_native_set_p50 and so on, one at a time. */
void settings_latencies(const struct daemon *d, const char *system, settings_alone_fn *alone, long total);

struct work {
        const struct daemon *daemon;
        const char *topic;
        const char *config; /* JSON, or NULL */
        long total, done;
        bool with_result;
        double seconds;
        pthread_barrier_t *ready;
};

/* Publishes `total` tasks while an agent takes them, each side on a thread and a connection of its own; seconds from the first publish to
 * the answer to the last ack. */
double whole_way_seconds(const struct daemon *d, const char *topic, int topics, bool results, long total);
/* An agent alone, for `total` tasks that are there already. */
double drain_seconds(const struct daemon *d, const char *topic, bool results, long total);
void latency_load(const struct daemon *d, long total, double *us);   /* cases.c */
char *batch_params(const char *topic, int topics, int first, int n); /* params of a task.publish with n tasks; free() */

/* -- cases --------------------------------------------------------------------------------------------------------------- */

void case_raw_lmdb(void); /* beside.c */
void case_raw_lmdb_commit(void);
void case_beanstalkd(void);
void case_nats(void); /* nats.c */
void case_nats_bus(void);
void case_nats_latency(void);
void case_nats_kv(void);
void case_nats_kv_latency(void);
void case_kafka(void);    /* kafka.c */
void case_rabbitmq(void); /* rabbitmq.c */
void case_rabbitmq_latency(void);
void case_s3(void); /* s3.c */
void case_s3_latency(void);
void case_redis(void); /* redis.c */
void case_redis_python(void);
void case_redis_latency(void);
void case_redis_store(void);
void case_redis_store_latency(void);
void case_postgresql(void); /* postgresql.c */
void case_postgresql_latency(void);
void case_mongodb(void); /* mongodb.c */
void case_mongodb_latency(void);
void case_ping(void); /* cases.c */
void case_publish(void);
void case_whole_way(void);
void case_whole_way_results(void);
void case_latency(void);
void case_latency_memory(void);
void case_latency_two_cores(void);
void case_hop(void);
void case_memory_idle(void); /* growth.c */
void case_held(void);
void case_topics(void);
void case_connections(void);
void case_results(void);

#endif
