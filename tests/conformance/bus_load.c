/* SPDX-License-Identifier: Apache-2.0 */
/* Many: workers that never read, topics and groups. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static int by_size(const void *a, const void *b) { return *(const double *) a < *(const double *) b ? -1 : 1; }

/* One task at a time, publish to ack: the median, in ms. */
static double round_trip_ms(struct worker *w, const char *t) {
        enum { N = 101 };
        double took[N];
        for (int i = 0; i < N; i++) {
                long before = w->acked;
                double start = now_ms();
                publish(t, "%d", i);
                MUST(UNTIL(w->acked > before, 10000), "task %d is not handled", i);
                took[i] = now_ms() - start;
        }
        qsort(took, N, sizeof(*took), by_size);
        return took[N / 2];
}

static void ignore(omni_agent *agent, omni_task *task, void *user) {}

/* Their clients are served by nobody once they are registered: each socket fills, and what is beyond must not pile up anywhere. */
static void sleepers(void) {
        enum { SIZE = 10000, PREFETCH = 100, BATCH = 100, ROOM = 16 << 20, OUTPUT = 128 << 10, SOCKET = 256 << 10 };
        int n = SCALE(500, 50), tasks = n * PREFETCH;
        rig_up((const char *const[]){
                rig_text("SESSION_OUTPUT_BYTES=%d", OUTPUT), "STOP_GRACE=0", "STALLED_CLIENT=10m", RIG_MEASURED, NULL });
        const char *t = topic("awake"), *u = topic("asleep");
        struct worker *awake = serve(t, "a", act_ack), *beside = serve(u, "awake", act_ack);
        double alone = round_trip_ms(awake, t);
        omni_agent_options o = agent_options(u, "asleep");
        o.prefetch = PREFETCH;
        for (int i = 0; i < n; i++) {
                omni_client *c = client_unserved();
                MUST(omni_agent_register(c, &o, ignore, NULL, NULL) == 0, "sleeper %d: %s", i, omni_strerror(c));
        }
        size_t before = rig_anonymous_bytes();
        char *content = malloc(SIZE + 1);
        memset(content, 'x', SIZE);
        content[0] = content[SIZE - 1] = '"';
        content[SIZE] = '\0';
        omni_publish_options batch[BATCH];
        char ids[BATCH][OMNI_ID_SIZE];
        int again = 0;
        for (int done = 0; done < tasks; done += BATCH) {
                for (int i = 0; i < BATCH; i++) {
                        snprintf(ids[i], sizeof(ids[i]), "%s.%d", u, done + i);
                        batch[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                        batch[i].topic = u;
                        batch[i].content = content;
                        batch[i].id = ids[i];
                }
                again += publish_all(batch, BATCH);
                serve_for(0);
        }
        /* A task that a slow server refused and had all the same is there twice. */
        MUST(UNTIL(beside->acked >= tasks && (!again || (int) seen_distinct(&beside, 1) == tasks), SCALE(300000, 60000)),
                "the other group of their topic has %ld of %d, %d published again", beside->acked, tasks, again);
        MUST(beside->acked <= tasks + again, "the other group of their topic has %ld of %d", beside->acked, tasks);
        MUST(group_n(u, "asleep", "leased") >= n, "nothing was tried: only %lld tasks are with the sleepers",
                (long long) group_n(u, "asleep", "leased"));
        double with = round_trip_ms(awake, t);
        size_t grown = rig_anonymous_bytes() - before;
        printf("round trip %.2f ms alone, %.2f ms beside %d sleepers; memory grew by %zu bytes\n", alone, with, n, grown);
        MUST(with < 3 * alone + 20, "a round trip takes %.1f ms beside them, %.1f ms alone", with, alone);
        /* What a socket and the daemon's own queue take of each, as the task and as the message. */
        MUST(grown < ROOM + (size_t) n * 2 * (OUTPUT + SOCKET), "the daemon's memory grew by %zu bytes", grown);
        MUST_BE(group_n(u, "asleep", "finished"), 0);
}

static long acked_of(struct worker *const *workers, int n) {
        long total = 0;
        for (int i = 0; i < n; i++)
                total += workers[i]->acked;
        return total;
}

static int publish_to_each(char *const *topics, int n, const char *content) {
        omni_publish_options *tasks = calloc((size_t) n, sizeof(*tasks));
        for (int i = 0; i < n; i++) {
                tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                tasks[i].topic = topics[i];
                tasks[i].content = content;
        }
        int again = publish_all(tasks, n);
        free(tasks);
        return again;
}

static int how_many_saw(struct worker *const *workers, int n, const char *content) {
        int saw = 0;
        for (int i = 0; i < n; i++)
                saw += seen_content(workers[i], content, 0) != NULL;
        return saw;
}

static long repeats_of(struct worker *const *workers, int n) {
        long repeats = 0;
        for (int i = 0; i < n; i++)
                for (size_t k = 0; k < workers[i]->n; k++)
                        repeats += workers[i]->seen[k].attempt > 1;
        return repeats;
}

static void many_topics(void) {
        enum { GROUPS = 2, A_CLIENT = 200, TOPICS_MAX = 1000 };
        static char *topics[TOPICS_MAX];
        static struct worker *workers[TOPICS_MAX * GROUPS];
        int n = SCALE(TOPICS_MAX, 250);
        omni_client *c = NULL;
        rig_up(NULL);
        for (int i = 0; i < n; i++) {
                topics[i] = (char *) topic(rig_text("t%d", i));
                for (int g = 0; g < GROUPS; g++) {
                        int k = i * GROUPS + g;
                        if (k % A_CLIENT == 0)
                                c = client_new();
                        omni_agent_options o = agent_options(topics[i], g ? "b" : "a");
                        workers[k] = serve_on(c, &o, act_ack);
                }
        }
        int again = 0;
        for (int round = 1; round <= 3; round++) {
                const char *content = rig_text("%d", round);
                again += publish_to_each(topics, n, content);
                MUST(UNTIL(acked_of(workers, n * GROUPS) >= (long) round * n * GROUPS &&
                                     how_many_saw(workers, n * GROUPS, content) == n * GROUPS,
                             60000),
                        "round %d: %ld of %d, by %d of %d groups", round, acked_of(workers, n * GROUPS), round * n * GROUPS,
                        how_many_saw(workers, n * GROUPS, content), n * GROUPS);
                /* A task that a slow server refused and had all the same is there twice. Three servers in one machine may also take longer
                 * over the acks of all groups at once than they keep a task from others: these come again, as a second attempt. */
                long repeats = repeats_of(workers, n * GROUPS);
                MUST(repeats <= SCALE(LONG_MAX, 0), "round %d: %ld tasks came again", round, repeats);
                MUST(acked_of(workers, n * GROUPS) <= ((long) round * n + again) * GROUPS + repeats,
                        "round %d: %ld of %d, %d published again, %ld came again", round, acked_of(workers, n * GROUPS), round * n * GROUPS,
                        again, repeats);
                for (int k = 0; k < n * GROUPS; k++)
                        MUST(again || (long) workers[k]->n - repeats_of(&workers[k], 1) == round, "round %d: group %d of topic %d got %zu",
                                round, k % GROUPS, k / GROUPS, workers[k]->n);
                if (again || repeats)
                        printf("round %d: %d published again, %ld came again\n", round, again, repeats);
                if (round == 1)
                        om_test_daemon_restart(rig_daemon);
                else if (round == 2) {
                        om_test_daemon_kill9(rig_daemon);
                        om_test_daemon_up(rig_daemon);
                }
        }
        json_t *s = rpc(rig_client, "bus.stats", NULL);
        MUST(num(s, "totals.topics") >= n && num(s, "totals.groups") >= n * GROUPS, "the totals are %s", dump(at(s, "totals")));
}

const struct conf_case conf_bus_load[] = {
        { "B28", "500 workers that never read: others unaffected", sleepers, 90 },
        { "B37", "1,000 topics x 2 groups work, and a restart recovers them", many_topics, 90 },
        { NULL },
};
