/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cases of speed: publishing, a task's whole way, latency. Each measures once.
 */
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

static double publish_rate(const char *bus, int batch, int in_flight, long total) {
        struct daemon d;
        daemon_start(&d, bus);
        struct load load = { .daemon = &d, .topic = "bench", .total = total, .batch = batch, .in_flight = in_flight };
        publish_load(&load);
        daemon_stop(&d);
        return (double) load.done / load.seconds;
}

void case_publish(void) {
        figure("publish_100x16", publish_rate("local:", BATCH, IN_FLIGHT, scaled(300000)));
        figure("publish_1x1000", publish_rate("local:", 1, 1000, scaled(100000)));
        figure("publish_1x100", publish_rate("local:", 1, 100, scaled(50000)));
        figure("publish_1x1", publish_rate("local:", 1, 1, scaled(1000)));
        figure("publish_memory_100x16", publish_rate("local:?durability=memory", BATCH, IN_FLIGHT, scaled(300000)));
}

static void whole_way(const char *name, bool results, long total) {
        struct daemon d;
        daemon_start(&d, "local:");
        figure(name, (double) total / whole_way_seconds(&d, "bench", 1, results, total));
        daemon_stop(&d);
}
void case_whole_way(void) { whole_way("whole_way_plain", false, scaled(200000)); }
void case_whole_way_results(void) { whole_way("whole_way_results", true, scaled(200000)); }

/* -- latency -------------------------------------------------------------------------------------------------------------- */

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

static void on_published(omni_client *client, int status, const char *result, size_t len, const char *error, void *user) {
        (void) client, (void) result, (void) len, (void) user;
        if (status < 0)
                die("publish", error);
}

/* The next task is published when the last is acknowledged: nothing waits in line. Microseconds of each into `us`. */
void latency_load(const struct daemon *d, long total, double *us) {
        omni_client *agent = client_new(d), *publisher = client_new(d);
        struct ping ping = { .us = us };
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "bench";
        options.name = "bench";
        options.config = "{\"save_results\":false}";
        if (omni_agent_register(agent, &options, on_timed_task, &ping, NULL) < 0 || omni_connect(publisher, 10000) < 0)
                die("latency", "register");
        char *params = batch_params("bench", 1, 0, 1);
        while (ping.n < total) {
                ping.waiting = 1;
                ping.sent_at = now_s();
                if (omni_call_async(publisher, "task.publish", params, on_published, NULL) < 0 || omni_process(publisher) < 0)
                        die("latency", omni_strerror(publisher));
                while (ping.waiting)
                        if (omni_run_once(agent, 10000) < 0)
                                die("latency", omni_strerror(agent));
                if (omni_flush(agent, 10000) < 0 || omni_flush(publisher, 10000) < 0)
                        die("latency", "flush");
        }
        free(params);
        omni_free(agent);
        omni_free(publisher);
}

static void latency(const char *name, const char *bus, long total) {
        struct daemon d;
        double *us = calloc((size_t) total, sizeof(double));
        daemon_start(&d, bus);
        latency_load(&d, total, us);
        figure_quantiles(name, us, total);
        free(us);
        daemon_stop(&d);
}
void case_latency(void) { latency("latency_durable", "local:", scaled(2000)); }
void case_latency_memory(void) { latency("latency_memory", "local:?durability=memory", scaled(10000)); }
void case_latency_two_cores(void) { latency("two_cores_memory", "local:?durability=memory", scaled(10000)); }

/* A byte there and back between two processes, each wherever the kernel puts it: what this machine takes for two of the four hops of a
 * task. */
void case_hop(void) {
        long total = scaled(20000);
        double *us = calloc((size_t) total, sizeof(double));
        char byte = 0;
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                die("hop", "socketpair");
        pid_t child = fork();
        if (child == 0) {
                close(pair[0]);
                while (read(pair[1], &byte, 1) == 1 && write(pair[1], &byte, 1) == 1)
                        ;
                _exit(0);
        }
        close(pair[1]);
        for (long i = 0; i < total; i++) {
                double start = now_s();
                if (write(pair[0], &byte, 1) != 1 || read(pair[0], &byte, 1) != 1)
                        die("hop", "the other process has ended");
                us[i] = (now_s() - start) * 1e6;
        }
        close(pair[0]);
        waitpid(child, NULL, 0);
        figure_quantiles("hop", us, total);
        free(us);
}

static void on_pong(omni_client *client, int status, const char *result, size_t len, const char *error, void *user) {
        (void) client, (void) result, (void) len;
        if (status < 0)
                die("ping", error);
        --*(long *) user;
}

void case_ping(void) {
        struct daemon d;
        long total = scaled(20000);
        double *us = calloc((size_t) total, sizeof(double));
        daemon_start(&d, "local:");
        omni_client *client = client_new(&d);
        if (omni_connect(client, 10000) < 0)
                die("ping", omni_strerror(client));
        for (long i = 0; i < total; i++) {
                long open = 1;
                double start = now_s();
                if (omni_call_async(client, "ping", NULL, on_pong, &open) < 0)
                        die("ping", omni_strerror(client));
                while (open)
                        if (omni_run_once(client, 10000) < 0)
                                die("ping", omni_strerror(client));
                us[i] = (now_s() - start) * 1e6;
        }
        figure_quantiles("ping", us, total);
        free(us);
        omni_free(client);
        daemon_stop(&d);
}
