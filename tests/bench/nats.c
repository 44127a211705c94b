/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NATS. What JetStream does alone beside our embedded bus: js_PublishAsync of libnats to a nats-server with file storage, as many in flight
 * as our batches have. The server's defaults: it writes its files and leaves syncing them to the kernel for two minutes, which our bus does
 * not.
 *
 * And the daemon on a NATS bus, beside libnats alone on the same server: a stream of files, records as large as ours, a durable pull
 * consumer whose messages are acknowledged one by one. Its acknowledgements are not confirmed by the server; ours are. First on a server
 * that syncs every write, one sync a message, so that the disk decides; then on one that leaves syncing to the kernel, which shows what the
 * daemon itself costs.
 *
 * nats-server is $NATS_SERVER, which tests/servers/nats.sh builds and prints; libnats is Debian's (HAVE_NATS is said by the Makefile).
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_NATS
#include <nats/nats.h>
#include <sys/eventfd.h>

static int free_port(void) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t len = sizeof(a);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(fd, (struct sockaddr *) &a, sizeof(a)) < 0 || getsockname(fd, (struct sockaddr *) &a, &len) < 0)
                die("nats", "no free port");
        close(fd);
        return ntohs(a.sin_port);
}

/* Puts a second; 0: it gave up, as it does where the machine is so busy that an answer takes seconds. `ids`: each has an id as long as a
 * task's, by which the server drops a repeat. */
static double publish(jsCtx *js, const char *subject, long total, bool ids) {
        char value[RECORD_BYTES], id[40];
        jsPubOptions options;
        memset(value, 'x', sizeof(value));
        jsPubOptions_Init(&options);
        options.MsgId = id;
        double start = now_s();
        for (long i = 0; i < total; i++) {
                if (ids)
                        snprintf(id, sizeof(id), "%036ld", i);
                natsStatus s = js_PublishAsync(js, subject, value, sizeof(value), ids ? &options : NULL);
                if (s != NATS_OK)
                        return 0;
        }
        return js_PublishAsyncComplete(js, NULL) == NATS_OK ? (double) total / (now_s() - start) : 0;
}

void case_nats(void) {
        const char *server = getenv("NATS_SERVER");
        char folder[64], port[16], url[64];
        natsConnection *nc = NULL;
        jsCtx *js = NULL;
        jsOptions options;
        jsStreamConfig stream;
        jsErrCode code;
        long total = scaled(300000);
        double puts;
        if (!server || !*server) {
                figure_missing("nats_puts", "no nats-server: tests/servers/nats.sh could not build it");
                return;
        }
        folder_new(folder);
        snprintf(port, sizeof(port), "%d", free_port());
        snprintf(url, sizeof(url), "nats://127.0.0.1:%s", port);
        pid_t pid = child_start(folder, (const char *const[]){ server, "-a", "127.0.0.1", "-p", port, "-js", "-sd", folder, NULL });
        for (double until = now_s() + 10; now_s() < until && natsConnection_ConnectTo(&nc, url) != NATS_OK;)
                usleep(20000);
        jsOptions_Init(&options);
        options.PublishAsync.MaxPending = BATCH * IN_FLIGHT;
        jsStreamConfig_Init(&stream);
        stream.Name = "BENCH";
        stream.Subjects = (const char *[]){ "bench" };
        stream.SubjectsLen = 1;
        stream.Storage = js_FileStorage;
        if (!nc || natsConnection_JetStream(&js, nc, &options) != NATS_OK || js_AddStream(NULL, js, &stream, NULL, &code) != NATS_OK) {
                figure_missing("nats_puts", "nats-server did not take a stream");
        } else if ((puts = publish(js, "bench", total, false)) > 0) {
                figure("nats_puts", puts);
                figure("nats_ours", figure_last("publish_100x16"));
        } else {
                figure_missing("nats_puts", "js_PublishAsync gave up in a round");
        }
        jsCtx_Destroy(js);
        natsConnection_Destroy(nc);
        child_stop(pid);
        folder_remove(folder);
}
/* -- the bus, beside libnats alone ------------------------------------------------------------------------------------------ */

static char folder[64];
static struct om_test_server *server;

static void must(natsStatus s, const char *what) {
        if (s != NATS_OK)
                die(what, nats_GetLastError(NULL) ? nats_GetLastError(NULL) : natsStatus_GetText(s));
}

struct native {
        natsConnection *nc;
        jsCtx *js;
};

/* `asap`: written at once; else the library gathers what is published within a millisecond. */
static struct native connect_to(bool asap) {
        struct native n = { NULL };
        natsOptions *connection = NULL;
        char url[128];
        jsOptions options;
        snprintf(url, sizeof(url), "%s", om_test_server_value(server, "bus_url"));
        url[strcspn(url, "?")] = '\0';
        must(natsOptions_Create(&connection), "libnats");
        must(natsOptions_SetURL(connection, url), "libnats");
        must(natsOptions_SetSendAsap(connection, asap), "libnats");
        must(natsConnection_Connect(&n.nc, connection), "libnats");
        natsOptions_Destroy(connection);
        jsOptions_Init(&options);
        options.PublishAsync.MaxPending = BATCH * IN_FLIGHT;
        options.PublishAsync.StallWait = 60000; /* a disk that is asked to sync takes its time */
        must(natsConnection_JetStream(&n.js, n.nc, &options), "libnats");
        return n;
}

static void disconnect(struct native n) {
        jsCtx_Destroy(n.js);
        natsConnection_Destroy(n.nc);
}

static void fresh_stream(struct native n) {
        jsStreamConfig stream;
        jsErrCode code;
        js_DeleteStream(n.js, "NATIVE", NULL, &code);
        jsStreamConfig_Init(&stream);
        stream.Name = "NATIVE";
        stream.Subjects = (const char *[]){ "native" };
        stream.SubjectsLen = 1;
        stream.Storage = js_FileStorage;
        must(js_AddStream(NULL, n.js, &stream, NULL, &code), "libnats: a stream");
}

struct reader {
        long total, done;
        double *us, *sent_at; /* NULL: not timed */
        int came;             /* an eventfd, written after each; only where timed */
};

static void *read_native(void *arg) {
        struct reader *r = arg;
        struct native n = connect_to(r->us != NULL);
        natsSubscription *sub = NULL;
        jsSubOptions options;
        jsErrCode code;
        jsSubOptions_Init(&options);
        options.Config.MaxAckPending = -1;
        must(js_PullSubscribe(&sub, n.js, "native", "reader", NULL, &options, &code), "libnats: a consumer");
        while (r->done < r->total) {
                natsMsgList list = { NULL };
                must(natsSubscription_Fetch(&list, sub, r->us ? 1 : 1000, 60000, &code), "libnats: nothing came within a minute");
                if (r->us)
                        r->us[r->done] = (now_s() - *r->sent_at) * 1e6;
                for (int i = 0; i < list.Count; i++)
                        must(natsMsg_Ack(list.Msgs[i], NULL), "libnats: an ack");
                r->done += list.Count;
                natsMsgList_Destroy(&list);
                if (r->us)
                        eventfd_write(r->came, 1);
        }
        must(natsConnection_Flush(n.nc), "libnats: the last acks");
        natsSubscription_Destroy(sub);
        disconnect(n);
        return NULL;
}

/* Seconds; 0: it gave up. */
static double whole_way_native(long total) {
        struct native n = connect_to(false);
        struct reader r = { .total = total };
        pthread_t thread;
        fresh_stream(n);
        pthread_create(&thread, NULL, read_native, &r);
        double start = now_s(), rate = publish(n.js, "native", total, false);
        if (rate == 0)
                die("js_PublishAsync", "it gave up; the reader would wait for ever");
        pthread_join(thread, NULL);
        double seconds = now_s() - start;
        disconnect(n);
        return seconds;
}

static void latency_native(long total, double *us) {
        struct native n = connect_to(true);
        double sent_at = 0;
        struct reader r = { .total = total, .us = us, .sent_at = &sent_at, .came = eventfd(0, EFD_CLOEXEC) };
        char value[RECORD_BYTES];
        eventfd_t number;
        pthread_t thread;
        memset(value, 'x', sizeof(value));
        fresh_stream(n);
        pthread_create(&thread, NULL, read_native, &r);
        for (long i = 0; i < total; i++) {
                sent_at = now_s();
                must(js_Publish(NULL, n.js, "native", value, sizeof(value), NULL, NULL), "js_Publish");
                eventfd_read(r.came, &number);
        }
        pthread_join(thread, NULL);
        close(r.came);
        disconnect(n);
}

static double publish_alone(long total, bool ids) {
        struct native native = connect_to(false);
        fresh_stream(native);
        double rate = publish(native.js, "native", total, ids);
        disconnect(native);
        if (rate == 0)
                die("js_PublishAsync", "it gave up");
        return rate;
}

/* The daemon beside libnats alone: publishing, and the whole way. */
static void rates(const struct daemon *d, long total, const char *names[4]) {
        figure(names[0], publish_alone(total, false));
        struct load load = { .daemon = d, .topic = "publish", .total = total, .batch = BATCH, .in_flight = IN_FLIGHT };
        publish_load(&load);
        figure(names[1], (double) load.done / load.seconds);
        figure(names[2], (double) total / whole_way_native(total));
        figure(names[3], (double) total / whole_way_seconds(d, "whole", 1, false, total));
}

static void server_start(const char *kind, struct daemon *d) {
        char url[160];
        folder_new(folder);
        server = om_test_server_start(kind, folder);
        snprintf(url, sizeof(url), "%s", om_test_server_value(server, "bus_url"));
        url[strcspn(url, "{")] = '\0'; /* the prefix, here nobody else's */
        daemon_start(d, strcat(url, "bench"));
}

static void server_stop(struct daemon *d) {
        daemon_stop(d);
        om_test_server_stop(server);
        folder_remove(folder);
}

void case_nats_bus(void) {
        struct daemon d;
        server_start("nats", &d);
        rates(&d, scaled(20000), (const char *[]){ "nats_native_publish", "nats_publish", "nats_native_whole_way", "nats_whole_way" });
        server_stop(&d);
        server_start("nats:weak", &d);
        figure("nats_native_ids_unsynced_publish", publish_alone(scaled(100000), true));
        rates(&d, scaled(100000),
                (const char *[]){ "nats_native_unsynced_publish", "nats_unsynced_publish", "nats_native_unsynced_whole_way",
                        "nats_unsynced_whole_way" });
        server_stop(&d);
}

void case_nats_latency(void) {
        long n = scaled(1000);
        double *us = calloc((size_t) n, sizeof(double));
        struct daemon d;
        server_start("nats:weak", &d);
        latency_native(n, us);
        figure_quantiles("latency_nats_native", us, n);
        latency_load(&d, n, us);
        figure_quantiles("latency_nats", us, n);
        free(us);
        server_stop(&d);
}

/* -- the storage, beside libnats's key-value buckets -------------------------------------------------------------------------- */

/* The library has no more than one under way. */
static double alone(bool writes, long total, int under_way, double *us) {
        struct native n = connect_to(true);
        kvStore *kv = NULL;
        kvConfig config;
        kvConfig_Init(&config);
        config.Bucket = "native";
        config.History = 1;
        config.StorageType = js_FileStorage;
        if (js_KeyValue(&kv, n.js, "native") != NATS_OK)
                must(js_CreateKeyValue(&kv, n.js, &config), "libnats: bucket");
        double start = now_s();
        for (long i = 0; i < total; i++) {
                char key[32];
                kvEntry *entry = NULL;
                double begun = now_s();
                snprintf(key, sizeof(key), "k%ld", i % KEYS);
                must(writes ? kvStore_PutString(NULL, kv, key, value_text()) : kvStore_Get(&entry, kv, key), "libnats: key-value");
                kvEntry_Destroy(entry);
                if (us)
                        us[i] = (now_s() - begun) * 1e6;
        }
        double seconds = now_s() - start;
        kvStore_Destroy(kv);
        disconnect(n);
        return seconds;
}

static void kv_start(struct daemon *d) {
        char url[300];
        folder_new(folder);
        server = om_test_server_start("nats", folder);
        const char *text = om_test_server_value(server, "store_url"), *hole = strstr(text, "{case}");
        snprintf(url, sizeof(url), "%.*sbench%s", (int) (hole - text), text, hole + strlen("{case}"));
        setenv("STORAGE_URL", url, 1);
        daemon_start(d, "local:bus?durability=memory");
}

static void kv_stop(struct daemon *d) {
        unsetenv("STORAGE_URL");
        server_stop(d);
}

void case_nats_kv(void) {
        struct daemon d;
        kv_start(&d);
        settings_rates(&d, "nats_kv", alone, 1, scaled(5000));
        kv_stop(&d);
}

void case_nats_kv_latency(void) {
        struct daemon d;
        kv_start(&d);
        settings_latencies(&d, "nats_kv", alone, scaled(1000));
        kv_stop(&d);
}
#else
void case_nats_latency(void) {}
void case_nats_kv(void) {}
void case_nats_kv_latency(void) {}
void case_nats_bus(void) { figure_missing("nats_native_publish", "built without libnats; packaging/install-deps.sh bench installs it"); }
void case_nats(void) { figure_missing("nats_puts", "built without libnats; packaging/install-deps.sh bench installs it"); }
#endif
