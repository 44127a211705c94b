/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What NATS JetStream does alone: js_PublishAsync of libnats to a nats-server with file storage, as many in flight as our batches have.
 * The server's defaults: it writes its files and leaves syncing them to the kernel for two minutes, which our bus does not.
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

#include "bench.h"

#ifdef HAVE_NATS
#include <nats/nats.h>

static int free_port(void) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t len = sizeof(a);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(fd, (struct sockaddr *) &a, sizeof(a)) < 0 || getsockname(fd, (struct sockaddr *) &a, &len) < 0)
                die("nats", "no free port");
        close(fd);
        return ntohs(a.sin_port);
}

static double publish(jsCtx *js, long total) {
        char value[RECORD_BYTES];
        memset(value, 'x', sizeof(value));
        double start = now_s();
        for (long i = 0; i < total; i++) {
                natsStatus s = js_PublishAsync(js, "bench", value, sizeof(value), NULL);
                if (s != NATS_OK)
                        die("js_PublishAsync", natsStatus_GetText(s));
        }
        natsStatus s = js_PublishAsyncComplete(js, NULL);
        if (s != NATS_OK)
                die("js_PublishAsyncComplete", natsStatus_GetText(s));
        return now_s() - start;
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
        } else {
                figure("nats_puts", (double) total / publish(js, total));
                figure("nats_ours", figure_last("publish_100x16"));
        }
        jsCtx_Destroy(js);
        natsConnection_Destroy(nc);
        child_stop(pid);
        folder_remove(folder);
}
#else
void case_nats(void) { figure_missing("nats_puts", "built without libnats; packaging/install-deps.sh bench installs it"); }
#endif
