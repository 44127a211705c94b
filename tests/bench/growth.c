/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of memory, start-up and a task's cost as things grow: tasks held, topics, connections, results. Nothing is synced in these
 * cases but where the start is timed: it is the daemon's work that is to stay flat, not the disk's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench.h"

enum {
        PROBE = 20000, /* tasks of a measurement */
        PROBES = 3,    /* of which the least counts: what else the machine does only ever adds */
};
#define MEMORY_BUS "local:?durability=memory"
#define MEMORY_STORAGE "json:.omnidaemon_data?durability=memory"

void case_memory_idle(void) {
        struct daemon d;
        char path[64], line[128];
        long kib = 0;
        daemon_start(&d, "local:");
        figure("idle_ready", d.ready_ms);
        snprintf(path, sizeof(path), "/proc/%d/status", (int) d.pid);
        FILE *f = fopen(path, "re"); /* all that is resident, here: libraries too */
        while (f && fgets(line, sizeof(line), f) && sscanf(line, "VmRSS: %ld", &kib) != 1)
                ;
        if (f)
                fclose(f);
        figure("idle_memory", (double) kib / 1024);
        daemon_stop(&d);
}

static double publish_us(const struct daemon *d, const char *topic, long n) {
        struct load load = { .daemon = d, .topic = topic, .total = n, .batch = BATCH, .in_flight = IN_FLIGHT };
        publish_load(&load);
        return load.seconds / (double) load.done * 1e6;
}

static double least_publish_us(const struct daemon *d, const char *topic) {
        double least = publish_us(d, topic, PROBE);
        for (int i = 1; i < PROBES; i++) {
                double us = publish_us(d, topic, PROBE);
                least = us < least ? us : least;
        }
        return least;
}

static double whole_way_us(const struct daemon *d, const char *topic, int topics, bool results) {
        double least = 0;
        for (int i = 0; i < PROBES; i++) {
                double us = whole_way_seconds(d, topic, topics, results, PROBE) / PROBE * 1e6;
                least = i == 0 || us < least ? us : least;
        }
        return least;
}

/* "10^6" is a tenth of it in a quick run, and so is "10^7"; the names stay. */
static long largest(void) { return quick() ? 100000 : 1000000; }

static void held(struct daemon *d, long before, long n, const char *name) {
        char row[64];
#define ROW(what) (snprintf(row, sizeof(row), "held_%s_%s", name, what), row)
        publish_us(d, "held", n - before);
        sync(); /* else the kernel slows the probe down for what it still has to write of all those before */
        figure(ROW("publish"), least_publish_us(d, "held"));
        figure(ROW("whole_way"), whole_way_us(d, "other", 1, false));
        figure(ROW("memory"), daemon_rss_mib(d));
        daemon_end(d);
        daemon_again(d);
        figure(ROW("ready"), d->ready_ms);
        figure(ROW("drain"), drain_seconds(d, "held", false, PROBE) / PROBE * 1e6);
#undef ROW
}

void case_held(void) {
        struct daemon d;
        long most = largest();
        daemon_start(&d, MEMORY_BUS);
        publish_us(&d, "held", 1000);
        figure("held_1000_publish", least_publish_us(&d, "held"));
        figure("held_1000_whole_way", whole_way_us(&d, "other", 1, false));
        held(&d, 1000 + PROBES * PROBE, most, "1000000");
        held(&d, most + (PROBES - 1) * PROBE, 10 * most, "10000000");
        daemon_stop(&d);
}

static void topics(const char *name, int n) {
        struct daemon d;
        daemon_start(&d, MEMORY_BUS);
        figure(name, whole_way_us(&d, "topic.%d", n, false));
        daemon_stop(&d);
}

void case_topics(void) {
        topics("topics_1", 1);
        topics("topics_100", 100);
        topics("topics_10000", 10000);
}

static int *connections_open(const struct daemon *d, int n) {
        int *fds = calloc((size_t) n, sizeof(int));
        for (int i = 0; i < n; i++)
                if ((fds[i] = socket_connect(d->socket)) < 0)
                        die("connections", strerror(errno));
        return fds;
}

void case_connections(void) {
        struct daemon d;
        struct rlimit limit;
        int n = 10000;
        getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        if (limit.rlim_max < (rlim_t) n + 100) {
                figure_missing("connections_10000", "the system allows too few open files");
                return;
        }
        daemon_start(&d, MEMORY_BUS);
        figure("connections_1", whole_way_us(&d, "bench", 1, false));
        double before = daemon_rss_mib(&d);
        int *fds = connections_open(&d, n);
        /* The second whole way ends after all of them were accepted: they came first. */
        figure("connections_10000", whole_way_us(&d, "bench", 1, false));
        figure("connections_memory", (daemon_rss_mib(&d) - before) * 1024 / n);
        for (int i = 0; i < n; i++)
                close(fds[i]);
        free(fds);
        daemon_stop(&d);
}

/* task.get of one record, again and again, one at a time. */
static void gets(const char *name, const struct daemon *d) {
        enum { GETS = 5000 };
        static double us[GETS];
        omni_client *client = client_new(d);
        char *result = NULL, id[64], params[128];
        if (omni_call(client, "task.list", "{\"limit\":1}", &result, NULL) < 0)
                die("task.list", omni_strerror(client));
        const char *at = strstr(result, "\"task_id\":\"");
        if (!at || sscanf(at, "\"task_id\":\"%63[^\"]", id) != 1)
                die("task.list", result);
        free(result);
        snprintf(params, sizeof(params), "{\"id\":\"%s\"}", id);
        for (int i = 0; i < GETS; i++) {
                double start = now_s();
                if (omni_call(client, "task.get", params, &result, NULL) < 0)
                        die("task.get", omni_strerror(client));
                us[i] = (now_s() - start) * 1e6;
                free(result);
        }
        figure_quantiles(name, us, GETS);
        omni_free(client);
}

void case_results(void) {
        struct daemon d;
        setenv("STORAGE_URL", MEMORY_STORAGE, 1);
        daemon_start(&d, MEMORY_BUS);
        whole_way_seconds(&d, "bench", 1, true, 1000);
        gets("results_1000_get", &d);
        figure("results_1000_save", whole_way_us(&d, "bench", 1, true));
        whole_way_seconds(&d, "bench", 1, true, largest() - 1000 - PROBE);
        gets("results_1000000_get", &d);
        figure("results_1000000_save", whole_way_us(&d, "bench", 1, true));
        figure("results_1000000_memory", daemon_rss_mib(&d));
        daemon_end(&d);
        daemon_again(&d);
        figure("results_1000000_ready", d.ready_ms);
        daemon_stop(&d);
        unsetenv("STORAGE_URL");
}
