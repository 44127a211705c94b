/* SPDX-License-Identifier: Apache-2.0 */
/*
 * make bench: what the daemon does a second, beside what the disk and LMDB do alone in the same run.
 *
 * Each case starts a daemon of its own in a fresh folder (built binaries, no configuration but what the case names), drives it through
 * libomniclient as a user would, and stops it. A case runs several times; medians are printed, as a table and, with --json FILE, as JSON.
 * Ratios are between figures of one run on one machine and are what counts; README.md beside this file says how to read them.
 *
 *   bench [--runs N] [--only WORD] [--json FILE] [--quick]
 */
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../client/c/omniclient.h"

enum { CONTENT_BYTES = 300, BATCH = 100, IN_FLIGHT = 16, RUNS_MAX = 31 };

static const char *bin_dir = "build/bin";
static int runs = 5;
static double scale = 1;

static double now_s(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static void die(const char *what, const char *why) {
        fprintf(stderr, "bench: %s: %s\n", what, why);
        exit(1);
}

/* -- a folder and a daemon ----------------------------------------------------------------------------------------- */

struct daemon {
        char folder[64], socket[96];
        pid_t pid;
};

static void folder_new(char path[64]) {
        const char *base = getenv("BENCH_DIR");
        snprintf(path, 64, "%s/omni-bench-XXXXXX",
                base && strlen(base) < 32 ? base : "/var/tmp"); /* /tmp may be memory; an fsync there costs nothing */
        if (!mkdtemp(path))
                die(path, strerror(errno));
}

static void folder_remove(const char *path) {
        pid_t pid = fork();
        if (pid == 0) {
                execlp("rm", "rm", "-rf", path, (char *) NULL);
                _exit(127);
        }
        waitpid(pid, NULL, 0);
}

static omni_client *client_new(const struct daemon *d) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = d->socket;
        options.connect_timeout_ms = 10000;
        omni_client *client;
        if (omni_new(&options, &client) < 0)
                die("client", "out of memory");
        return client;
}

static void daemon_start(struct daemon *d, const char *bus_url) {
        folder_new(d->folder);
        snprintf(d->socket, sizeof(d->socket), "%s/d.sock", d->folder);
        d->pid = fork();
        if (d->pid == 0) {
                char path[4096];
                if (!realpath(bin_dir, path))
                        _exit(127);
                strncat(path, "/omnidaemond", sizeof(path) - strlen(path) - 1);
                int log = open("/dev/null", O_RDWR);
                dup2(log, 1);
                dup2(log, 2);
                setenv("OMNIDAEMON_SOCKET", d->socket, 1);
                if (chdir(d->folder) == 0)
                        execl(path, path, "--event-bus-url", bus_url, (char *) NULL);
                _exit(127);
        }
        omni_client *client = client_new(d);
        if (omni_connect(client, 10000) < 0)
                die("daemon", omni_strerror(client));
        omni_free(client);
}

static void daemon_stop(struct daemon *d) {
        int status;
        kill(d->pid, SIGTERM);
        waitpid(d->pid, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                die("daemon", "did not stop cleanly");
        folder_remove(d->folder);
}

/* -- loads --------------------------------------------------------------------------------------------------------- */

static char *batch_params(const char *topic, int n) { /* params of a task.publish with n tasks */
        size_t size = 64 + (size_t) n * (CONTENT_BYTES + 128), at = 0;
        char *p = malloc(size);
        at += (size_t) snprintf(p, size, "{\"tasks\":[");
        for (int i = 0; i < n; i++)
                at += (size_t) snprintf(p + at, size - at, "%s{\"topic\":\"%s\",\"payload\":{\"content\":\"%0*d\"}}", i ? "," : "", topic,
                        CONTENT_BYTES - 2, i);
        snprintf(p + at, size - at, "]}");
        return p;
}

struct load {
        const struct daemon *daemon;
        const char *topic;
        long total; /* tasks */
        int batch, in_flight;
        long open, done; /* requests under way; tasks answered */
        double seconds;
};

static void on_reply(omni_client *client, int status, const char *result, size_t len, const char *error, void *user) {
        (void) client, (void) len;
        struct load *load = user;
        if (status < 0 || strstr(result, "\"error\""))
                die("publish", status < 0 ? error : result);
        load->open--;
        load->done += load->batch;
}

static void *publish_load(void *arg) {
        struct load *load = arg;
        omni_client *client = client_new(load->daemon);
        char *params = batch_params(load->topic, load->batch);
        if (omni_connect(client, 0) < 0)
                die("connect", omni_strerror(client));
        double start = now_s();
        for (long sent = 0; load->done < load->total;) {
                while (load->open < load->in_flight && sent < load->total) {
                        if (omni_call_async(client, "task.publish", params, on_reply, load) < 0)
                                die("publish", omni_strerror(client));
                        load->open++;
                        sent += load->batch;
                }
                if (omni_run_once(client, 10000) < 0)
                        die("publish", omni_strerror(client));
        }
        load->seconds = now_s() - start;
        free(params);
        omni_free(client);
        return NULL;
}

struct work {
        const struct daemon *daemon;
        const char *topic;
        const char *config;
        long total, done;
        bool with_result;
        double seconds, last_at;
        pthread_barrier_t *ready;
};

static void on_task(omni_agent *agent, omni_task *task, void *user) {
        struct work *work = user;
        omni_task_ack(task, work->with_result ? "{\"ok\":true}" : NULL, OMNI_STR);
        if (++work->done == work->total)
                omni_stop(omni_agent_client(agent));
}

static void *work_load(void *arg) {
        struct work *work = arg;
        omni_client *client = client_new(work->daemon);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = work->topic;
        options.name = "bench";
        options.prefetch = 1000;
        options.config = work->config;
        if (omni_agent_register(client, &options, on_task, work, NULL) < 0)
                die("register", omni_strerror(client));
        pthread_barrier_wait(work->ready);
        double start = now_s();
        if (omni_run(client) < 0 || omni_flush(client, 30000) < 0)
                die("work", omni_strerror(client));
        work->last_at = now_s();
        work->seconds = work->last_at - start;
        omni_free(client);
        return NULL;
}

/* -- cases: each returns its figure of one run --------------------------------------------------------------------- */

static double raw_lmdb(int batch, long total) {
        char folder[64];
        folder_new(folder);
        MDB_env *env;
        MDB_dbi dbi;
        MDB_txn *txn;
        char value[CONTENT_BYTES + 100];
        memset(value, 'x', sizeof(value));
        if (mdb_env_create(&env) || mdb_env_set_mapsize(env, (size_t) 4 << 30) || mdb_env_open(env, folder, MDB_NOTLS, 0600))
                die("LMDB", "open");
        mdb_txn_begin(env, NULL, 0, &txn);
        mdb_dbi_open(txn, NULL, 0, &dbi);
        mdb_txn_commit(txn);
        double start = now_s();
        for (long i = 0; i < total;) {
                if (mdb_txn_begin(env, NULL, 0, &txn))
                        die("LMDB", "begin");
                for (int k = 0; k < batch && i < total; k++, i++) {
                        unsigned char key[13] = { 0 };
                        for (int b = 0; b < 8; b++)
                                key[12 - b] = (unsigned char) ((unsigned long) i >> (8 * b));
                        MDB_val mk = { sizeof(key), key }, mv = { sizeof(value), value };
                        if (mdb_put(txn, dbi, &mk, &mv, 0))
                                die("LMDB", "put");
                }
                if (mdb_txn_commit(txn))
                        die("LMDB", "commit");
        }
        double seconds = now_s() - start;
        mdb_env_close(env);
        folder_remove(folder);
        return seconds;
}

static double case_raw_lmdb_batch(void) {
        long total = (long) (300000 * scale);
        return (double) total / raw_lmdb(BATCH * IN_FLIGHT, total);
}
static double case_raw_lmdb_100(void) {
        long total = (long) (100000 * scale);
        return (double) total / raw_lmdb(BATCH, total);
}
static double case_raw_lmdb_commit_us(void) {
        long total = (long) (2000 * scale);
        return raw_lmdb(1, total) / (double) total * 1e6;
}

static double publish_rate(const char *bus, int batch, int in_flight, long total) {
        struct daemon d;
        daemon_start(&d, bus);
        struct load load = { .daemon = &d, .topic = "bench", .total = total, .batch = batch, .in_flight = in_flight };
        publish_load(&load);
        daemon_stop(&d);
        return (double) load.done / load.seconds;
}
static double case_publish_batch(void) { return publish_rate("local:", BATCH, IN_FLIGHT, (long) (300000 * scale)); }
static double case_publish_single_1000(void) { return publish_rate("local:", 1, 1000, (long) (100000 * scale)); }
static double case_publish_single_100(void) { return publish_rate("local:", 1, 100, (long) (50000 * scale)); }
static double case_publish_single_1(void) { return publish_rate("local:", 1, 1, (long) (2000 * scale)); }
static double case_publish_memory(void) { return publish_rate("local:?durability=memory", BATCH, IN_FLIGHT, (long) (300000 * scale)); }

static double whole_way(const char *bus, const char *config, bool with_result, long total) {
        struct daemon d;
        daemon_start(&d, bus);
        pthread_barrier_t ready;
        pthread_barrier_init(&ready, NULL, 2);
        struct work work = {
                .daemon = &d, .topic = "bench", .config = config, .total = total, .with_result = with_result, .ready = &ready
        };
        struct load load = { .daemon = &d, .topic = "bench", .total = total, .batch = BATCH, .in_flight = IN_FLIGHT };
        pthread_t worker;
        pthread_create(&worker, NULL, work_load, &work);
        pthread_barrier_wait(&ready);
        publish_load(&load);
        pthread_join(worker, NULL);
        pthread_barrier_destroy(&ready);
        daemon_stop(&d);
        return (double) work.done / work.seconds;
}
static double case_whole_way(void) { return whole_way("local:", "{\"save_results\":false}", false, (long) (200000 * scale)); }
static double case_whole_way_results(void) { return whole_way("local:", NULL, true, (long) (100000 * scale)); }

/* -- latency ------------------------------------------------------------------------------------------------------- */

struct ping {
        double sent_at, *us;
        long n;
        int waiting;
};
static void on_timed_task(omni_agent *agent, omni_task *task, void *user) {
        struct ping *ping = user;
        ping->us[ping->n++] = (now_s() - ping->sent_at) * 1e6;
        ping->waiting = 0;
        omni_task_ack(task, NULL, 0);
        (void) agent;
}
static int by_value(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;
        return x < y ? -1 : x > y;
}
static double latency(const char *bus, double quantile, long total) {
        struct daemon d;
        daemon_start(&d, bus);
        omni_client *agent = client_new(&d), *publisher = client_new(&d);
        struct ping ping = { .us = calloc((size_t) total, sizeof(double)) };
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "bench";
        options.name = "bench";
        options.config = "{\"save_results\":false}";
        if (omni_agent_register(agent, &options, on_timed_task, &ping, NULL) < 0 || omni_connect(publisher, 0) < 0)
                die("latency", "register");
        char *params = batch_params("bench", 1);
        struct load load = { .batch = 1 };
        while (ping.n < total) {
                ping.waiting = 1;
                ping.sent_at = now_s();
                load.open++;
                if (omni_call_async(publisher, "task.publish", params, on_reply, &load) < 0 || omni_process(publisher) < 0)
                        die("latency", omni_strerror(publisher));
                while (ping.waiting)
                        if (omni_run_once(agent, 10000) < 0)
                                die("latency", omni_strerror(agent));
                if (omni_flush(agent, 10000) < 0 || omni_flush(publisher, 10000) < 0)
                        die("latency", "flush");
        }
        qsort(ping.us, (size_t) total, sizeof(double), by_value);
        double result = ping.us[(long) (quantile * (double) (total - 1))];
        free(ping.us);
        free(params);
        omni_free(agent);
        omni_free(publisher);
        daemon_stop(&d);
        return result;
}
static double case_latency_p50(void) { return latency("local:", 0.50, (long) (2000 * scale)); }
static double case_latency_p99(void) { return latency("local:", 0.99, (long) (2000 * scale)); }
static double case_latency_memory_p50(void) { return latency("local:?durability=memory", 0.50, (long) (5000 * scale)); }

static void on_pong(omni_client *client, int status, const char *result, size_t len, const char *error, void *user) {
        (void) client, (void) result, (void) len;
        if (status < 0)
                die("ping", error);
        --*(long *) user;
}
static double case_ping(void) {
        struct daemon d;
        daemon_start(&d, "local:");
        omni_client *client = client_new(&d);
        if (omni_connect(client, 0) < 0)
                die("ping", omni_strerror(client));
        long total = (long) (20000 * scale);
        double start = now_s();
        for (long i = 0; i < total; i++) {
                long open = 1;
                if (omni_call_async(client, "ping", NULL, on_pong, &open) < 0)
                        die("ping", omni_strerror(client));
                while (open)
                        if (omni_run_once(client, 10000) < 0)
                                die("ping", omni_strerror(client));
        }
        double us = (now_s() - start) / (double) total * 1e6;
        omni_free(client);
        daemon_stop(&d);
        return us;
}

/* -- the table ----------------------------------------------------------------------------------------------------- */

struct bench {
        const char *name, *unit, *what;
        double (*run)(void);
        const char *beside; /* the case that it is divided by */
        double target;      /* of that ratio; 0: none */
        double median, min, max;
        bool ran;
};
static struct bench benches[] = {
        { "raw_lmdb_1600", "puts/s", "LMDB alone, 1,600 puts a commit (16 x 100)", case_raw_lmdb_batch, NULL, 0, 0, 0, 0, false },
        { "raw_lmdb_100", "puts/s", "LMDB alone, 100 puts a commit", case_raw_lmdb_100, NULL, 0, 0, 0, 0, false },
        { "raw_lmdb_commit", "us", "LMDB alone, one put a commit", case_raw_lmdb_commit_us, NULL, 0, 0, 0, 0, false },
        { "publish_100x16", "tasks/s", "durable publish, tasks[] of 100, 16 in flight", case_publish_batch, "raw_lmdb_1600", 0.5, 0, 0, 0,
                false },
        { "publish_1x1000", "tasks/s", "durable publish, single, 1,000 in flight", case_publish_single_1000, "raw_lmdb_1600", 0, 0, 0, 0,
                false },
        { "publish_1x100", "tasks/s", "durable publish, single, 100 in flight", case_publish_single_100, "raw_lmdb_100", 0, 0, 0, 0,
                false },
        { "publish_1x1", "tasks/s", "durable publish, one at a time", case_publish_single_1, NULL, 0, 0, 0, 0, false },
        { "publish_memory", "tasks/s", "publish without fsync, tasks[] of 100, 16 in flight", case_publish_memory, NULL, 0, 0, 0, 0,
                false },
        { "whole_way", "tasks/s", "publish, deliver, ack; durable; no results", case_whole_way, "raw_lmdb_1600", 0.2, 0, 0, 0, false },
        { "whole_way_results", "tasks/s", "the same, each result saved", case_whole_way_results, "raw_lmdb_1600", 0, 0, 0, 0, false },
        { "latency_p50", "us", "publish to handler, one at a time, durable", case_latency_p50, "raw_lmdb_commit", 0, 0, 0, 0, false },
        { "latency_p99", "us", "the same, 99th percentile", case_latency_p99, "raw_lmdb_commit", 0, 0, 0, 0, false },
        { "latency_memory_p50", "us", "the same without fsync: what the daemon itself adds", case_latency_memory_p50, NULL, 0, 0, 0, 0,
                false },
        { "ping", "us", "one frame there and back", case_ping, NULL, 0, 0, 0, 0, false },
};
enum { N_BENCHES = sizeof(benches) / sizeof(benches[0]) };

static const struct bench *find(const char *name) {
        for (int i = 0; name && i < N_BENCHES; i++)
                if (strcmp(benches[i].name, name) == 0 && benches[i].ran)
                        return &benches[i];
        return NULL;
}

static void print_json(const char *path) {
        FILE *f = fopen(path, "we");
        if (!f)
                die(path, strerror(errno));
        fprintf(f, "{\"runs\":%d,\"content_bytes\":%d,\"cases\":[", runs, CONTENT_BYTES);
        const char *comma = "";
        for (int i = 0; i < N_BENCHES; i++) {
                const struct bench *b = &benches[i], *beside = find(b->beside);
                if (!b->ran)
                        continue;
                fprintf(f, "%s\n{\"name\":\"%s\",\"unit\":\"%s\",\"median\":%.1f,\"min\":%.1f,\"max\":%.1f", comma, b->name, b->unit,
                        b->median, b->min, b->max);
                if (beside)
                        fprintf(f, ",\"beside\":\"%s\",\"ratio\":%.3f", b->beside, b->median / beside->median);
                if (b->target > 0)
                        fprintf(f, ",\"target\":%.2f", b->target);
                fprintf(f, "}");
                comma = ",";
        }
        fprintf(f, "\n]}\n");
        fclose(f);
}

int main(int argc, char **argv) {
        const char *only = "", *json = NULL;
        if (getenv("OMNI_BIN"))
                bin_dir = getenv("OMNI_BIN");
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "--runs") == 0 && i + 1 < argc)
                        runs = atoi(argv[++i]);
                else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
                        only = argv[++i];
                else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
                        json = argv[++i];
                else if (strcmp(argv[i], "--quick") == 0)
                        scale = 0.1, runs = 1;
                else
                        die("usage", "bench [--runs N] [--only WORD] [--json FILE] [--quick]");
        }
        if (runs < 1 || runs > RUNS_MAX)
                die("--runs", "1 to 31");
        printf("%-20s %12s %12s %12s  %-8s %7s %7s  %s\n", "case", "median", "min", "max", "unit", "ratio", "target", "what");
        for (int i = 0; i < N_BENCHES; i++) {
                struct bench *b = &benches[i];
                bool base = false; /* what a chosen case is divided by runs too */
                for (int k = 0; k < N_BENCHES; k++)
                        base = base || (benches[k].beside && strcmp(benches[k].beside, b->name) == 0 && strstr(benches[k].name, only));
                if (!strstr(b->name, only) && !base)
                        continue;
                double figures[RUNS_MAX];
                for (int r = 0; r < runs; r++)
                        figures[r] = b->run();
                qsort(figures, (size_t) runs, sizeof(double), by_value);
                b->median = figures[runs / 2], b->min = figures[0], b->max = figures[runs - 1], b->ran = true;
                const struct bench *beside = find(b->beside);
                char ratio[16] = "", target[16] = "";
                if (beside)
                        snprintf(ratio, sizeof(ratio), "%.2f", b->median / beside->median);
                if (b->target > 0)
                        snprintf(target, sizeof(target), ">= %.2f", b->target);
                printf("%-20s %12.1f %12.1f %12.1f  %-8s %7s %7s  %s\n", b->name, b->median, b->min, b->max, b->unit, ratio, target,
                        b->what);
                fflush(stdout);
        }
        if (json)
                print_json(json);
        return 0;
}
