/* SPDX-License-Identifier: Apache-2.0 */
/* Order, priority, patterns: what comes when, and to whom. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static void one_worker(void) {
        enum { N = 1000 };
        rig_up(NULL);
        const char *t = topic("t");
        omni_agent_options o = agent_options(t, "a");
        o.prefetch = 1;
        struct worker *w = serve_with(&o, act_ack);
        publish_numbers(t, 0, N / 2);
        for (int i = N / 2; i < N / 2 + 20; i++)
                publish(t, "%d", i);
        publish_numbers(t, N / 2 + 20, N / 2 - 20);
        MUST(UNTIL(w->acked == N, 60000), "%ld of %d", w->acked, N);
        for (int i = 0; i < N; i++)
                MUST(atoi(w->seen[i].content) == i, "delivery %d is task %s", i, w->seen[i].content);
}

/* -- keys -------------------------------------------------------------------------------------------------------------------------- */

enum { KEYS = 10, PER_KEY = 50, KEY_WORKERS = 5 };
static int next_of_key[KEYS], out_of_key[KEYS];
static long keyed_done;

/* Content is key * 1000 + number. Held for a while, some longer, so that what could overtake does. */
static void check_key(struct worker *w, omni_task *task, const struct seen *seen) {
        int key = atoi(seen->content) / 1000, number = atoi(seen->content) % 1000;
        MUST(number == next_of_key[key], "key %d: number %d comes, %d is next", key, number, next_of_key[key]);
        MUST(++out_of_key[key] == 1, "key %d: two tasks are out at once", key);
        act_hold(w, task, seen);
}

static void settle_some(struct worker *const *workers) {
        for (int i = 0; i < KEY_WORKERS; i++) {
                struct worker *w = workers[i];
                if (!w->n_held || any(3) == 0)
                        continue;
                size_t which = any((unsigned) w->n_held);
                int content = atoi(omni_task_content(w->held[which], NULL));
                next_of_key[content / 1000]++;
                out_of_key[content / 1000]--;
                keyed_done++;
                ack_held(w, which);
        }
}

static void order_of_keys(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *workers[KEY_WORKERS];
        for (int i = 0; i < KEY_WORKERS; i++)
                workers[i] = serve(t, "a", check_key);
        omni_publish_options tasks[KEYS * PER_KEY];
        omni_publish_result results[KEYS * PER_KEY];
        for (int i = 0; i < KEYS * PER_KEY; i++) {
                tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                tasks[i].topic = t;
                tasks[i].key = rig_text("key %d", i % KEYS);
                tasks[i].content = rig_text("%d", i % KEYS * 1000 + i / KEYS);
        }
        int64_t r = omni_publish_many(rig_client, tasks, KEYS * PER_KEY, results);
        MUST(r == KEYS * PER_KEY, "%lld published: %s", (long long) r, omni_strerror(rig_client));
        double end = now_ms() + 30000;
        while (keyed_done < KEYS * PER_KEY && now_ms() < end) {
                serve_once(1);
                settle_some(workers);
        }
        MUST_BE(keyed_done, KEYS * PER_KEY);
        unsigned busy = 0;
        for (int i = 0; i < KEY_WORKERS; i++)
                busy += workers[i]->n > 0;
        MUST(busy > 1, "one worker did it all: nothing was tried");
}

/* -- priority, patterns -------------------------------------------------------------------------------------------------------------- */

static void by_priority(void) {
        enum { EACH = 5 };
        rig_up(NULL);
        const char *t = topic("t");
        for (int i = 0; i < 10 * EACH; i++) {
                omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
                task.topic = t;
                task.priority = i * 7 % 10;
                task.content = rig_text("%d", task.priority * 100 + i / 10);
                publish_with(task);
        }
        omni_agent_options o = agent_options(t, "a");
        o.prefetch = 1;
        struct worker *w = serve_with(&o, act_ack);
        MUST(UNTIL(w->acked == 10 * EACH, 20000), "%ld of %d", w->acked, 10 * EACH);
        for (int i = 0; i < 10 * EACH; i++) {
                int expected = (9 - i / EACH) * 100 + i % EACH;
                MUST(atoi(w->seen[i].content) == expected, "delivery %d is %s, must be %d (priority * 100 + number)", i, w->seen[i].content,
                        expected);
        }
}

static void patterns(void) {
        static const struct {
                const char *topic;
                bool star, hash;
        } sent[] = { { "orders.new", true, true }, { "orders.eu.new", false, true }, { "orders", false, true },
                { "orders.old", true, true }, { "ordersx.new", false, false }, { "invoices.new", false, false } };
        rig_up(NULL);
        struct worker *star = serve(topic("orders.*"), "star", act_ack), *hash = serve(topic("orders.#"), "hash", act_ack);
        long stars = 0, hashes = 0;
        for (size_t i = 0; i < sizeof(sent) / sizeof(*sent); i++) {
                publish(topic(sent[i].topic), "\"%s\"", sent[i].topic);
                stars += sent[i].star;
                hashes += sent[i].hash;
        }
        MUST(UNTIL(star->acked == stars && hash->acked == hashes, 10000), "`orders.*` got %ld of %ld, `orders.#` %ld of %ld", star->acked,
                stars, hash->acked, hashes);
        serve_for(300);
        for (size_t i = 0; i < sizeof(sent) / sizeof(*sent); i++) {
                char *content = rig_text("\"%s\"", sent[i].topic);
                MUST(!seen_content(star, content, 0) == !sent[i].star, "%s and `orders.*`: wrong", sent[i].topic);
                MUST(!seen_content(hash, content, 0) == !sent[i].hash, "%s and `orders.#`: wrong", sent[i].topic);
        }
}

const struct conf_case conf_bus_order[] = {
        { "B25", "order with one worker", one_worker, 60 },
        { "B26", "order per key with many workers", order_of_keys, 40, "keys" },
        { "B31", "priority order", by_priority, 30, "priority" },
        { "B33", "patterns: `orders.*`, `orders.#`", patterns, 20, "patterns" },
        { NULL },
};
