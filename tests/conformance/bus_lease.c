/* SPDX-License-Identifier: Apache-2.0 */
/* Leases, credit, and outputs that depend on them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static void connection_closes(void) {
        enum { HELD = 10 };
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *first = serve(t, "a", act_hold);
        publish_numbers(t, 0, HELD);
        MUST(UNTIL(first->n == HELD, 10000), "the first worker holds %zu", first->n);
        struct worker *second = serve(t, "a", act_ack);
        serve_for(200);
        MUST_BE(second->n, 0);
        double closed = now_ms();
        worker_close(first);
        MUST(UNTIL(second->n == HELD, 10000), "the second worker has %zu of %d", second->n, HELD);
        for (int i = 0; i < HELD; i++) {
                MUST(second->seen[i].at_ms - closed <= 1000, "task %s came after %.0f ms", second->seen[i].content,
                        second->seen[i].at_ms - closed);
                MUST_BE(second->seen[i].attempt, 2);
        }
        MUST(UNTIL(second->acked == HELD, 10000), "%ld acknowledged", second->acked);
        MUST_BE(seen_distinct(&second, 1), HELD);
}

/* The lease on the bus is the daemon's to keep: RECLAIM_IDLE is what other daemons go by. */
static void works_for_long(void) {
        double idle = SCALE(3000, 1000);
        rig_up((const char *const[]){ rig_text("RECLAIM_IDLE=%.0fms", idle), NULL });
        const char *t = topic("t"), *u = topic("u");
        struct worker *busy = serve(t, "a", act_hold);
        omni_agent_options o = agent_options(u, "a");
        o.reclaim_idle_ms = (int64_t) idle;
        struct worker *extending = serve_with(&o, act_hold); /* the library extends */
        publish(t, "1");
        publish(u, "1");
        MUST(UNTIL(busy->n == 1 && extending->n == 1, 10000), "not delivered");
        struct worker *other = serve(t, "a", act_ack), *other_extending = serve_with(&o, act_ack);
        serve_for(3 * idle + 200);
        MUST(other->n == 0 && busy->n == 1, "delivered again while its worker was alive");
        MUST(other_extending->n == 0 && extending->n == 1, "delivered again while its worker extended");
        ack_held(busy, 0);
        ack_held(extending, 0);
        MUST(UNTIL(busy->acked == 1 && extending->acked == 1, 10000), "its late ack is not taken");
        serve_for(200);
        MUST_BE(other->n + other_extending->n, 0);
}

static int64_t delivery_number(const struct seen *s) {
        const char *at = strstr(s->json, "\"delivery\":");
        MUST(at, "a delivery without number: %s", s->json);
        return strtoll(at + 11, NULL, 10);
}

static void hung_worker(void) {
        enum { IDLE = 500 };
        rig_up(NULL);
        const char *t = topic("t");
        omni_agent_options o = agent_options(t, "a");
        o.reclaim_idle_ms = IDLE;
        o.manual_extend = 1;
        struct worker *hung = serve_with(&o, act_hold);
        publish(t, "1");
        MUST(UNTIL(hung->n == 1, 10000), "not delivered");
        struct worker *other = serve_with(&o, act_ack);
        MUST(UNTIL(other->acked == 1, 10 * IDLE), "the other worker does not get it");
        double waited = other->seen[0].at_ms - hung->seen[0].at_ms;
        MUST(waited >= IDLE - 20, "it was taken away after %.0f ms of %d", waited, IDLE);
        MUST_BE(other->seen[0].attempt, 2);
        MUST(omni_task_lost(hung->held[0]), "its worker is not told");
        json_t *none;
        int64_t number = delivery_number(&hung->seen[0]);
        MUST_BE(rpc_try(hung->client, &none, "task.ack", "{s:[{s:I}]}", "deliveries", "delivery", (json_int_t) number), -ESTALE);
        MUST_BE(rpc_try(hung->client, &none, "task.fail", "{s:I,s:{s:s}}", "delivery", (json_int_t) number, "error", "message", "late"),
                -ESTALE);
        MUST_BE(rpc_try(hung->client, &none, "task.extend", "{s:[I]}", "deliveries", (json_int_t) number), -ESTALE);
        MUST_BE(rpc_try(hung->client, &none, "task.ack", "{s:[{s:I}]}", "deliveries", "delivery", (json_int_t) number + 1000), -ENOENT);
        MUST_BE(group_n(t, "a", "finished"), 1);
}

static void extending(void) {
        enum { IDLE = 400 };
        rig_up(NULL);
        const char *t = topic("t");
        omni_agent_options o = agent_options(t, "a");
        o.reclaim_idle_ms = IDLE;
        o.manual_extend = 1;
        struct worker *slow = serve_with(&o, act_hold);
        publish(t, "1");
        MUST(UNTIL(slow->n == 1, 10000), "not delivered");
        struct worker *other = serve_with(&o, act_ack);
        for (double end = now_ms() + 4 * IDLE; now_ms() < end;) {
                MUST(omni_task_extend(slow->held[0]) == 0, "extend: %s", omni_strerror(slow->client));
                serve_for(IDLE / 5.0);
                MUST(other->n == 0, "given to another although it was extended");
        }
        /* And it is the extending that kept it. */
        double stopped = now_ms();
        MUST(UNTIL(other->acked == 1, 10 * IDLE), "never given to another after the last extend");
        MUST(other->seen[0].at_ms - stopped >= IDLE / 2.0, "lost %.0f ms after the last extend", other->seen[0].at_ms - stopped);
}

/* -- credit ------------------------------------------------------------------------------------------------------------------------- */

static void publish_large(const char *t, int n, size_t size) {
        char *content = malloc(size + 1);
        MUST(content, "out of memory");
        memset(content, 'x', size);
        content[0] = content[size - 1] = '"';
        content[size] = '\0';
        omni_publish_options tasks[200];
        for (int done = 0; done < n;) {
                int now = n - done < 200 ? n - done : 200;
                for (int i = 0; i < now; i++) {
                        tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                        tasks[i].topic = t;
                        tasks[i].content = content;
                }
                publish_all(tasks, now);
                done += now;
        }
        free(content);
}

static void credit(void) {
        enum { HELD = 5, SIZE = 10000, ROOM = 16 << 20 };
        int n = SCALE(20000, 4000);
        rig_up((const char *const[]){ RIG_MEASURED, NULL });
        const char *t = topic("t");
        omni_agent_options o = agent_options(t, "a");
        o.prefetch = HELD;
        struct worker *w = serve_with(&o, act_hold);
        publish_large(t, 200, SIZE); /* what it grows to for publishing at all */
        size_t before = rig_anonymous_bytes();
        publish_large(t, n - 200, SIZE);
        MUST(UNTIL(w->n == HELD, 10000), "%zu delivered", w->n);
        serve_for(300);
        MUST_BE(w->n, HELD);
        MUST_BE(group_n(t, "a", "leased"), HELD);
        MUST_BE(group_n(t, "a", "lag"), n - HELD);
        MUST_BE(topic_n(t, "depth"), n);
        size_t after = rig_anonymous_bytes();
        MUST(after < before + ROOM, "the daemon's memory grew from %zu to %zu bytes while %d tasks of %d bytes wait", before, after, n,
                SIZE);
        ack_held(w, 0);
        MUST(UNTIL(w->n == HELD + 1, 10000), "an ack brings no new task");
        serve_for(100);
        MUST_BE(w->n, HELD + 1);
}

/* -- outputs of an ack ----------------------------------------------------------------------------------------------------------------- */

static void outputs_only_with_the_ack(void) {
        enum { IDLE = 300 };
        rig_up(NULL);
        const char *t = topic("t"), *out = topic("out");
        omni_agent_options o = agent_options(t, "a");
        o.reclaim_idle_ms = IDLE;
        o.manual_extend = 1;
        struct worker *w = serve_with(&o, act_hold), *sink = serve(out, "sink", act_ack);
        json_t *r;

        /* The ack holds: both outputs. */
        char *id = publish(t, "1");
        MUST(UNTIL(w->n == 1, 10000), "not delivered");
        rpc(w->client, "task.ack", "{s:[{s:I,s:[{s:s,s:{s:s}},{s:s,s:{s:s}}]}]}", "deliveries", "delivery",
                (json_int_t) delivery_number(&w->seen[0]), "publish", "topic", out, "payload", "content", "one", "topic", out, "payload",
                "content", "two");
        MUST(UNTIL(sink->acked == 2, 10000), "%ld outputs", sink->acked);
        for (int i = 0; i < 2; i++)
                MUST(strstr(sink->seen[i].json, rig_text("\"causation_id\":\"%s\"", id)), "the output does not name its cause: %s",
                        sink->seen[i].json);

        /* A bad output: nothing is acknowledged or published, and the lease goes on. */
        publish(t, "2");
        MUST(UNTIL(w->n == 2, 10000), "not delivered");
        MUST_BE(rpc_try(w->client, &r, "task.ack", "{s:[{s:I,s:[{s:s,s:{s:s}},{s:s,s:{s:s}}]}]}", "deliveries", "delivery",
                        (json_int_t) delivery_number(&w->seen[1]), "publish", "topic", out, "payload", "content", "good", "topic",
                        "omni-dlq:x", "payload", "content", "bad"),
                -EINVAL);
        MUST_BE(group_n(t, "a", "finished"), 1);
        MUST_BE(group_n(t, "a", "leased"), 1);

        /* The lease is over: refused, nothing published. */
        struct worker *other = serve_with(&o, act_hold);
        MUST(UNTIL(other->n == 1, 10 * IDLE), "the lease is not over");
        MUST_BE(rpc_try(w->client, &r, "task.ack", "{s:[{s:I,s:[{s:s,s:{s:s}}]}]}", "deliveries", "delivery",
                        (json_int_t) delivery_number(&w->seen[1]), "publish", "topic", out, "payload", "content", "late"),
                -ESTALE);
        rpc(other->client, "task.ack", "{s:[{s:I,s:[{s:s,s:{s:s}}]}]}", "deliveries", "delivery",
                (json_int_t) delivery_number(&other->seen[0]), "publish", "topic", out, "payload", "content", "three");
        MUST(UNTIL(sink->acked == 3, 10000), "the third output does not come");
        serve_for(300);
        MUST(sink->n == 3 && strcmp(sink->seen[2].content, "\"three\"") == 0, "%zu outputs, the last is %s", sink->n,
                sink->seen[sink->n - 1].content);
        MUST_BE(group_n(t, "a", "finished"), 2);
}

/* -- replies -----------------------------------------------------------------------------------------------------------------------------
 */

static void reply(void) {
        rig_up(NULL);
        const char *t = topic("t"), *back = topic("back");
        struct worker *w = serve(t, "a", act_ack), *asker = serve(back, "asker", act_ack);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = t;
        task.content = "{\"question\": 42.0}";
        task.reply_to = back;
        task.correlation_id = "the correlation";
        task.causation_id = "what caused the question";
        task.tenant_id = "tenant";
        task.source = "asker";
        char *id = publish_with(task);
        MUST(UNTIL(w->acked == 1 && asker->acked == 1, 10000), "%ld handled, %ld answers", w->acked, asker->acked);
        json_t *answer = json_loads(asker->seen[0].json, 0, NULL);
        MUST(strcmp(asker->seen[0].content, task.content) == 0, "the answer is %s, the result was %s", asker->seen[0].content,
                task.content);
        MUST(strcmp(str(answer, "causation_id"), id) == 0, "caused by `%s`, must be the task %s", str(answer, "causation_id"), id);
        MUST(strcmp(str(answer, "correlation_id"), task.correlation_id) == 0, "correlation `%s`", str(answer, "correlation_id"));
        MUST(strcmp(str(answer, "tenant_id"), task.tenant_id) == 0, "tenant `%s`", str(answer, "tenant_id"));
        MUST(strcmp(str(answer, "id"), id) != 0, "the answer has the id of the question");
        MUST(!*str(answer, "payload.reply_to"), "an answer asks for an answer");
        serve_for(200);
        MUST_BE(asker->n, 1);
}

const struct conf_case conf_bus_lease[] = {
        { "B13", "a connection closes with 10 tasks leased: another worker has them within 1 s", connection_closes, 20 },
        { "B14", "a live worker works three times the reclaim time without acking: no second delivery", works_for_long, 30 },
        { "B15", "a hung worker with reclaim_idle_ms loses the lease; its late ack is a `conflict`", hung_worker, 20 },
        { "B16", "`task.extend` keeps the lease", extending, 20 },
        { "B27", "prefetch 5 that never acks holds 5; the rest stay on the bus; memory bounded", credit, 60 },
        { "B38", "reply_to: correlation and causation right", reply, 20 },
        { "B39", "`publish[]` in an ack appears if and only if the ack succeeded", outputs_only_with_the_ack, 20 },
        { NULL },
};
