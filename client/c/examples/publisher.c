/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A publisher: one task with its result awaited, then many at once.
 *
 *     cc publisher.c $(pkg-config --cflags --libs omniclient) -o publisher
 *     ./publisher [HOW_MANY]          (with ./agent running, or the result does not come)
 */
#include <omniclient.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int publish_one(omni_client *client) {
        char id[OMNI_ID_SIZE], *record;
        if (omni_publish_json(client, "greet", "{\"name\":\"world\"}", id) < 0)
                return -1;
        printf("published %s\n", id);
        int r = omni_result_get(client, id, NULL, 5000, &record, NULL);
        if (r == -ETIMEDOUT) {
                printf("no result within 5 s: is an agent serving the topic \"greet\"?\n");
                return 0;
        }
        if (r < 0)
                return -1;
        printf("result: %s\n", record);
        free(record);
        return 0;
}

static int publish_many(omni_client *client, size_t n) {
        omni_publish_options *tasks = calloc(n, sizeof(*tasks));
        omni_publish_result *results = calloc(n, sizeof(*results));
        int64_t published = -ENOMEM;
        if (tasks && results) {
                for (size_t i = 0; i < n; i++) {
                        tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                        tasks[i].topic = "greet";
                        tasks[i].content = "{\"name\":\"everybody\"}";
                }
                published = omni_publish_many(client, tasks, n, results);
                printf("published %lld of %zu\n", (long long) published, n);
        }
        free(tasks);
        free(results);
        return published == (int64_t) n ? 0 : -1;
}

int main(int argc, char **argv) {
        omni_client *client = omni_default();
        long n = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
        if (!client || publish_one(client) < 0 || (n > 0 && publish_many(client, (size_t) n) < 0)) {
                fprintf(stderr, "%s\n", omni_strerror(client));
                return 1;
        }
        return 0;
}
