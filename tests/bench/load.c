/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loads: publishers and agents, each on a thread and a connection of its own, through libomniclient as a user would.
 *
 * A topic's name may be a format with one %d: tasks then go round over `topics` topics, and the agent serves the pattern of them all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* formats are the cases' own */

char *batch_params(const char *topic, int topics, int first, int n) {
        size_t size = 64 + (size_t) n * (CONTENT_BYTES + 128), at = 0;
        char *p = malloc(size), name[64];
        at += (size_t) snprintf(p, size, "{\"tasks\":[");
        for (int i = 0; i < n; i++) {
                snprintf(name, sizeof(name), topic, (first + i) % (topics ? topics : 1));
                at += (size_t) snprintf(p + at, size - at, "%s{\"topic\":\"%s\",\"payload\":{\"content\":\"%0*d\"}}", i ? "," : "", name,
                        CONTENT_BYTES - 2, i);
        }
        snprintf(p + at, size - at, "]}");
        return p;
}

static void on_reply(omni_client *client, int status, const char *result, size_t len, const char *error, void *user) {
        (void) client, (void) len;
        struct load *load = user;
        if (status < 0 || strstr(result, "\"error\""))
                die("publish", status < 0 ? error : result);
        load->open--;
        load->done += load->batch;
}

void publish_load(struct load *load) {
        omni_client *client = client_new(load->daemon);
        int variants = load->topics > load->batch ? load->topics / load->batch : 1;
        char **params = calloc((size_t) variants, sizeof(*params));
        for (int i = 0; i < variants; i++)
                params[i] = batch_params(load->topic, load->topics, i * load->batch, load->batch);
        if (omni_connect(client, 10000) < 0)
                die("connect", omni_strerror(client));
        double start = now_s();
        for (long sent = 0; load->done < load->total;) {
                while (load->open < load->in_flight && sent < load->total) {
                        if (omni_call_async(client, "task.publish", params[sent / load->batch % variants], on_reply, load) < 0)
                                die("publish", omni_strerror(client));
                        load->open++;
                        sent += load->batch;
                }
                if (omni_run_once(client, 60000) < 0)
                        die("publish", omni_strerror(client));
        }
        load->seconds = now_s() - start;
        for (int i = 0; i < variants; i++)
                free(params[i]);
        free(params);
        omni_free(client);
}

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
        if (work->ready)
                pthread_barrier_wait(work->ready);
        double start = now_s();
        if (omni_run(client) < 0 || omni_flush(client, 60000) < 0)
                die("work", omni_strerror(client));
        work->seconds = now_s() - start;
        omni_free(client);
        return NULL;
}

static const char *config_of(bool results) { return results ? NULL : "{\"save_results\":false}"; }

double whole_way_seconds(const struct daemon *d, const char *topic, int topics, bool results, long total) {
        pthread_barrier_t ready;
        pthread_t worker;
        char pattern[64], *number;
        snprintf(pattern, sizeof(pattern), "%s", topic);
        if ((number = strstr(pattern, "%d")))
                memcpy(number, "*", 2);
        struct work work = {
                .daemon = d, .topic = pattern, .config = config_of(results), .total = total, .with_result = results, .ready = &ready
        };
        struct load load = { .daemon = d, .topic = topic, .topics = topics, .total = total, .batch = BATCH, .in_flight = IN_FLIGHT };
        pthread_barrier_init(&ready, NULL, 2);
        pthread_create(&worker, NULL, work_load, &work);
        pthread_barrier_wait(&ready);
        publish_load(&load);
        pthread_join(worker, NULL);
        pthread_barrier_destroy(&ready);
        return work.seconds;
}

double drain_seconds(const struct daemon *d, const char *topic, bool results, long total) {
        struct work work = { .daemon = d, .topic = topic, .config = config_of(results), .total = total, .with_result = results };
        work_load(&work);
        return work.seconds;
}

/* -- settings, as what a storage is asked for ------------------------------------------------------------------------------------ */

enum { SETTINGS_UNDER_WAY = 64 };

const char *value_text(void) {
        static char value[CONTENT_BYTES + 1];
        memset(value, 'x', CONTENT_BYTES);
        value[0] = value[CONTENT_BYTES - 1] = '"';
        return value;
}

struct calls {
        long total, sent, done;
};

static void was_answered(omni_client *c, int status, const char *result, size_t len, const char *error, void *user) {
        struct calls *calls = user;
        if (status < 0)
                die("storage", error);
        calls->done++;
}

double settings_seconds(const struct daemon *d, const char *method, long total, int under_way, double *us) {
        struct calls calls = { .total = total };
        omni_client *client = client_new(d);
        double start = now_s(), sent_at = start;
        while (calls.done < total) {
                for (; calls.sent < total && calls.sent - calls.done < under_way; calls.sent++) {
                        char params[CONTENT_BYTES + 64];
                        snprintf(params, sizeof(params),
                                strcmp(method, "config.set") == 0 ? "{\"key\":\"k%ld\",\"value\":%s}" : "{\"key\":\"k%ld\"}",
                                calls.sent % KEYS, value_text());
                        sent_at = now_s();
                        if (omni_call_async(client, method, params, was_answered, &calls) < 0)
                                die(method, omni_strerror(client));
                }
                long before = calls.done;
                if (omni_run_once(client, 60000) < 0)
                        die(method, omni_strerror(client));
                if (us && calls.done > before)
                        us[before] = (now_s() - sent_at) * 1e6;
        }
        double seconds = now_s() - start;
        omni_free(client);
        return seconds;
}

static void rate_of(const char *system, const char *what, long total, double seconds) {
        char name[64];
        snprintf(name, sizeof(name), "%s_%s", system, what);
        figure(name, (double) total / seconds);
}

static void keys_are_there(const struct daemon *d, settings_alone_fn *alone, int under_way) {
        settings_seconds(d, "config.set", KEYS, SETTINGS_UNDER_WAY, NULL);
        alone(true, KEYS, under_way, NULL);
}

void settings_rates(const struct daemon *d, const char *system, settings_alone_fn *alone, int under_way, long total) {
        keys_are_there(d, alone, under_way);
        rate_of(system, "native_set", total, alone(true, total, under_way, NULL));
        rate_of(system, "set", total, settings_seconds(d, "config.set", total, SETTINGS_UNDER_WAY, NULL));
        rate_of(system, "native_get", total, alone(false, total, under_way, NULL));
        rate_of(system, "get", total, settings_seconds(d, "config.get", total, SETTINGS_UNDER_WAY, NULL));
}

static void latency_of(const char *system, const char *what, double *us, long total) {
        char name[64];
        snprintf(name, sizeof(name), "latency_%s_%s", system, what);
        figure_quantiles(name, us, total);
}

void settings_latencies(const struct daemon *d, const char *system, settings_alone_fn *alone, long total) {
        double *us = calloc((size_t) total, sizeof(double));
        keys_are_there(d, alone, 1);
        alone(true, total, 1, us);
        latency_of(system, "native_set", us, total);
        settings_seconds(d, "config.set", total, 1, us);
        latency_of(system, "set", us, total);
        alone(false, total, 1, us);
        latency_of(system, "native_get", us, total);
        settings_seconds(d, "config.get", total, 1, us);
        latency_of(system, "get", us, total);
        free(us);
}
