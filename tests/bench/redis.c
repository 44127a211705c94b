/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Redis: the daemon on a Redis bus, beside hiredis alone with the same commands, and beside the Python OmniDaemon, all on one server that
 * syncs every write.
 *
 * What hiredis does alone is what our bus must do for a task at the least, in commands that are as large: XADD of the record; XREADGROUP of
 * what is there; XACK of what came. As many commands are under way as our batches have tasks, and a reader's acknowledgements go out
 * together.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_HIREDIS
#include <hiredis/hiredis.h>

static char folder[64];
static struct om_test_server *server;

/* -- hiredis alone ---------------------------------------------------------------------------------------------------------- */

static redisContext *connect_to(void) {
        const char *url = om_test_server_value(server, "bus_url"), *colon = strrchr(url, ':');
        redisContext *c = redisConnect("127.0.0.1", atoi(colon + 1));
        if (!c || c->err)
                die("hiredis", c ? c->errstr : "out of memory");
        return c;
}

static redisReply *reply_of(redisContext *c) {
        redisReply *reply = NULL;
        if (redisGetReply(c, (void **) &reply) != REDIS_OK)
                die("hiredis", c->errstr);
        if (reply->type == REDIS_REPLY_ERROR)
                die("hiredis", reply->str);
        return reply;
}

static void publish_native(redisContext *c, const char *stream, long total, int in_flight) {
        char record[RECORD_BYTES];
        long sent = 0, done = 0;
        memset(record, 'x', sizeof(record));
        while (done < total) {
                while (sent < total && sent - done < in_flight) {
                        redisAppendCommand(c, "XADD %s * data %b", stream, record, sizeof(record));
                        sent++;
                }
                freeReplyObject(reply_of(c));
                done++;
                /* What has come already is read before more is written, so that writes are as large as ours. */
                void *more;
                while (done < sent && redisGetReplyFromReader(c, &more) == REDIS_OK && more) {
                        freeReplyObject(more);
                        done++;
                }
        }
}

struct reader {
        long total, done;
        double *us, *sent_at; /* NULL: not timed */
        int came;             /* an eventfd, written after each; only where timed */
};

/* Takes what there is, acknowledges it all in one command. */
static void *read_native(void *arg) {
        struct reader *r = arg;
        redisContext *c = connect_to();
        while (r->done < r->total) {
                redisReply *got;
                redisAppendCommand(c, "XREADGROUP GROUP g c COUNT 1000 BLOCK 60000 STREAMS native >");
                got = reply_of(c);
                if (got->type != REDIS_REPLY_ARRAY)
                        die("hiredis", "nothing came within a minute");
                redisReply *entries = got->element[0]->element[1];
                const char **args = calloc(entries->elements + 3, sizeof(*args));
                args[0] = "XACK", args[1] = "native", args[2] = "g";
                for (size_t i = 0; i < entries->elements; i++)
                        args[3 + i] = entries->element[i]->element[0]->str;
                if (r->us)
                        r->us[r->done] = (now_s() - *r->sent_at) * 1e6;
                redisAppendCommandArgv(c, (int) entries->elements + 3, args, NULL);
                freeReplyObject(reply_of(c));
                free(args);
                r->done += (long) entries->elements;
                freeReplyObject(got);
                if (r->us)
                        eventfd_write(r->came, 1);
        }
        redisFree(c);
        return NULL;
}

static void fresh_stream(redisContext *c) {
        freeReplyObject(redisCommand(c, "DEL native"));
        freeReplyObject(redisCommand(c, "XGROUP CREATE native g 0 MKSTREAM"));
}

static double whole_way_native(long total) {
        redisContext *c = connect_to();
        struct reader r = { .total = total };
        pthread_t thread;
        fresh_stream(c);
        pthread_create(&thread, NULL, read_native, &r);
        double start = now_s();
        publish_native(c, "native", total, BATCH * IN_FLIGHT);
        pthread_join(thread, NULL);
        double seconds = now_s() - start;
        redisFree(c);
        return seconds;
}

static void latency_native(long total, double *us) {
        redisContext *c = connect_to();
        double sent_at = 0;
        struct reader r = { .total = total, .us = us, .sent_at = &sent_at, .came = eventfd(0, EFD_CLOEXEC) };
        eventfd_t n;
        pthread_t thread;
        fresh_stream(c);
        pthread_create(&thread, NULL, read_native, &r);
        for (long i = 0; i < total; i++) {
                sent_at = now_s();
                publish_native(c, "native", 1, 1);
                eventfd_read(r.came, &n);
        }
        pthread_join(thread, NULL);
        close(r.came);
        redisFree(c);
}

/* -- the server ------------------------------------------------------------------------------------------------------------ */

static void server_start(void) {
        folder_new(folder);
        server = om_test_server_start("redis", folder);
}

static void server_stop(void) {
        om_test_server_stop(server);
        folder_remove(folder);
}

static const char *bus_url(void) { return om_test_server_value(server, "bus_url"); }

/* Tasks a second of the Python OmniDaemon; 0, and said, where there is none. */
static double python_rate(long total) {
        const char *python = getenv("PYTHON_OMNIDAEMON");
        char command[512], line[128] = "";
        if (!python || !*python) {
                figure_missing("redis_python", "no Python OmniDaemon: tests/servers/python.sh could not install it");
                return 0;
        }
        snprintf(command, sizeof(command),
                "EVENT_BUS_TYPE=redis_stream STORAGE_BACKEND=redis REDIS_URL=%s exec %s tests/bench/python_omnidaemon.py %ld", bus_url(),
                python, total);
        FILE *out = popen(command, "re");
        if (!out || !fgets(line, sizeof(line), out))
                die("python_omnidaemon.py", "printed nothing");
        pclose(out);
        return atof(line);
}

/* Results are saved too, in the same Redis. */
void case_redis_python(void) {
        struct daemon d;
        long total = scaled(50000);
        server_start();
        double python = python_rate(scaled(2000));
        if (python > 0) {
                figure("redis_python", python);
                setenv("STORAGE_URL", om_test_server_value(server, "bus_url"), 1);
                daemon_start(&d, bus_url());
                figure("redis_beside_python", (double) total / whole_way_seconds(&d, "whole", 1, true, total));
                daemon_stop(&d);
                unsetenv("STORAGE_URL");
        }
        server_stop();
}

void case_redis(void) {
        long total = scaled(100000);
        struct daemon d;
        server_start();
        redisContext *c = connect_to();
        double start = now_s();
        publish_native(c, "publish-native", total, BATCH * IN_FLIGHT);
        figure("redis_native_publish", (double) total / (now_s() - start));
        freeReplyObject(redisCommand(c, "DEL publish-native"));
        redisFree(c);
        daemon_start(&d, bus_url());
        struct load load = { .daemon = &d, .topic = "publish", .total = total, .batch = BATCH, .in_flight = IN_FLIGHT };
        publish_load(&load);
        figure("redis_publish", (double) load.done / load.seconds);
        figure("redis_native_whole_way", (double) total / whole_way_native(total));
        figure("redis_whole_way", (double) total / whole_way_seconds(&d, "whole", 1, false, total));
        daemon_stop(&d);
        server_stop();
}

/* -- the storage ------------------------------------------------------------------------------------------------------------- */

/* SET and GET of keys of its own, pipelined. */
static double alone(bool writes, long total, int under_way, double *us) {
        redisContext *c = connect_to();
        double start = now_s(), sent_at = start;
        for (long sent = 0, done = 0; done < total; done++) {
                for (; sent < total && sent - done < under_way; sent++) {
                        sent_at = now_s();
                        if (writes)
                                redisAppendCommand(c, "SET native:k%ld %s", sent % KEYS, value_text());
                        else
                                redisAppendCommand(c, "GET native:k%ld", sent % KEYS);
                }
                freeReplyObject(reply_of(c));
                if (us)
                        us[done] = (now_s() - sent_at) * 1e6;
        }
        double seconds = now_s() - start;
        redisFree(c);
        return seconds;
}

static void store_start(struct daemon *d) {
        server_start();
        setenv("STORAGE_URL", bus_url(), 1);
        daemon_start(d, "local:bus?durability=memory");
}

static void store_stop(struct daemon *d) {
        daemon_stop(d);
        unsetenv("STORAGE_URL");
        server_stop();
}

void case_redis_store(void) {
        struct daemon d;
        store_start(&d);
        settings_rates(&d, "redis_store", alone, 64, scaled(50000));
        store_stop(&d);
}

void case_redis_store_latency(void) {
        struct daemon d;
        store_start(&d);
        settings_latencies(&d, "redis_store", alone, scaled(2000));
        store_stop(&d);
}

void case_redis_latency(void) {
        long n = scaled(2000);
        double *us = calloc((size_t) n, sizeof(double));
        struct daemon d;
        server_start();
        daemon_start(&d, bus_url());
        latency_native(n, us);
        figure_quantiles("latency_redis_native", us, n);
        latency_load(&d, n, us);
        figure_quantiles("latency_redis", us, n);
        free(us);
        daemon_stop(&d);
        server_stop();
}
#else
void case_redis_latency(void) {}
void case_redis_store(void) {}
void case_redis_store_latency(void) {}
void case_redis_python(void) {}
void case_redis(void) { figure_missing("redis_native_publish", "built without hiredis; packaging/install-deps.sh redis installs it"); }
#endif
