/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A producer for the tests: `recording_producer TOPIC COUNT FILE` publishes COUNT tasks, several hundred in flight, and writes the id of
 * each that was acknowledged into FILE. It goes on through restarts of the daemon; a publish that fails for good is an error.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

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

int main(int argc, char **argv) {
        if (argc != 4) {
                fprintf(stderr, "usage: recording_producer TOPIC COUNT FILE\n");
                return 2;
        }
        long count = atol(argv[2]);
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
                int r = sent - answered < 500 ? omni_publish_async(client, &task, published, NULL) : -ENOBUFS;
                if (r >= 0)
                        sent++;
                else if (r != -ENOBUFS || omni_run_once(client, 1000) < 0) {
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
