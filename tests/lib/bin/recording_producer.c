/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A producer for the tests: `recording_producer TOPIC COUNT FILE [RATE]` publishes COUNT tasks, several hundred in flight, and writes the
 * id of each that was acknowledged into FILE. It goes on through restarts of the daemon; a publish that fails for good is an error.
 *
 * With RATE it publishes so many a second, under the ids TOPIC-0, TOPIC-1 …, which are idempotency keys too: whoever reads FILE then knows
 * what was attempted, and a task that is handled twice was delivered twice, not published twice.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../../client/c/omniclient.h"

static FILE *record;
static long answered, failed;

static void published(omni_client *client, int status, const char *id, const char *error, void *user) {
        (void) client, (void) user;
        answered++;
        if (status < 0) {
                failed++;
                fprintf(stderr, "recording_producer: %s\n", error);
        } else
                fprintf(record, "%s\n", id);
}

static double now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* How many may have been sent by now. */
static long allowed(long count, double rate, double start) {
        double n = rate > 0 ? (now() - start) * rate : (double) count;
        return n < (double) count ? (long) n : count;
}

int main(int argc, char **argv) {
        if (argc != 4 && argc != 5) {
                fprintf(stderr, "usage: recording_producer TOPIC COUNT FILE [RATE]\n");
                return 2;
        }
        long count = atol(argv[2]);
        double rate = argc == 5 ? atof(argv[4]) : 0, start = now();
        record = fopen(argv[3], "we");
        omni_client *client = omni_default();
        if (!record || !client) {
                perror("recording_producer");
                return 1;
        }
        for (long sent = 0; sent < count;) {
                char content[400];
                snprintf(content, sizeof(content), "{\"n\":%ld,\"filling\":\"%0250d\"}", sent, 0);
                omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
                task.topic = argv[1];
                task.content = content;
                char id[OMNI_ID_SIZE];
                if (rate > 0) {
                        snprintf(id, sizeof(id), "%.150s-%ld", argv[1], sent);
                        task.id = task.idempotency_key = id;
                }
                bool early = sent >= allowed(count, rate, start);
                int r = !early && sent - answered < 500 ? omni_publish_async(client, &task, published, NULL) : -ENOBUFS;
                if (r >= 0)
                        sent++;
                else if (r != -ENOBUFS || omni_run_once(client, early ? 5 : 1000) < 0) {
                        fprintf(stderr, "recording_producer: %s\n", omni_strerror(client));
                        return 1;
                }
        }
        if (omni_flush(client, 60000) < 0) {
                fprintf(stderr, "recording_producer: %ld of %ld are unanswered\n", count - answered, count);
                return 1;
        }
        omni_free(client);
        return fclose(record) == 0 && failed == 0 ? 0 : 1;
}
