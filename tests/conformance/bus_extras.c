/* SPDX-License-Identifier: Apache-2.0 */
/* What buses have beside delivery: pausing, deleting, time, idempotency, replay, and numbers that are right. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static void pause_and_resume(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        publish_numbers(t, 0, 5);
        MUST(UNTIL(w->acked == 5, 10000), "%ld of 5 before the pause", w->acked);
        rpc(rig_client, "agent.pause", "{s:s,s:s}", "topic", t, "name", "a");
        publish_numbers(t, 5, 20);
        serve_for(400);
        MUST(w->n == 5, "%zu deliveries while paused", w->n - 5);
        MUST_BE(group_n(t, "a", "lag"), 20);
        om_test_daemon_restart(rig_daemon);
        serve_for(400); /* the worker is back by then */
        MUST(w->n == 5 && omni_agent_active(w->agent), "%zu deliveries after a restart while paused", w->n - 5);
        rpc(rig_client, "agent.resume", "{s:s,s:s}", "topic", t, "name", "a");
        MUST(UNTIL(w->acked == 25, 10000), "%ld of 25 after resuming", w->acked);
        MUST_BE(w->n, 25);
}

static long ended;
static void count_ended(omni_client *c, const char *method, const char *params, size_t len, void *user) {
        ended += strcmp(method, "agent.ended") == 0;
}

static void delete_and_recreate(void) {
        rig_up(NULL);
        const char *t = long_name(topic("t")), *g = long_name("gone");
        struct worker *stays = serve(t, "stays", act_ack), *gone = serve(t, g, act_hold);
        omni_on_notification(gone->client, count_ended, NULL);
        publish_numbers(t, 0, 30);
        MUST(UNTIL(stays->acked == 30 && gone->n == 10, 10000), "%ld and %zu", stays->acked, gone->n);
        rpc(rig_client, "agent.delete", "{s:s,s:s}", "topic", t, "name", g);
        MUST(UNTIL(ended == 1, 5000), "its worker is not told");
        json_t *none;
        MUST_BE(rpc_try(rig_client, &none, "agent.get", "{s:s,s:s}", "topic", t, "name", g), -ENOENT);
        MUST_BE(rpc_try(rig_client, &none, "agent.delete", "{s:s,s:s}", "topic", t, "name", g), -ENOENT);
        MUST_BE(topic_n(t, "depth"), 0);
        struct worker *anew = serve(t, g, act_ack);
        publish_numbers(t, 30, 5);
        MUST(UNTIL(anew->acked == 5 && stays->acked == 35, 10000), "%ld and %ld", anew->acked, stays->acked);
        serve_for(200);
        MUST_BE(anew->n, 5);
        MUST(anew->seen[0].attempt == 1 && atoi(anew->seen[0].content) == 30, "it begins with task %s", anew->seen[0].content);

        /* A whole topic, dead letters and all. */
        anew->act = act_fail_for_good;
        publish_numbers(t, 35, 3);
        MUST(UNTIL_SLOWLY(group_n(t, g, "dead") == 3, 10000), "no dead letters");
        json_t *r = rpc(rig_client, "topic.delete", "{s:s,s:b}", "topic", t, "delete_dead_letters", 1);
        MUST_BE(num(r, "agents"), 2);
        MUST_BE(rpc_try(rig_client, &none, "topic.delete", "{s:s}", "topic", t), -ENOENT);
        MUST_BE(topic_n(t, "published"), 0);
        publish_numbers(t, 100, 2);
        struct worker *fresh = serve(t, g, act_ack);
        MUST(UNTIL(fresh->acked == 2, 10000), "%ld of 2 after recreating", fresh->acked);
        serve_for(200);
        MUST(fresh->n == 2 && fresh->seen[0].attempt == 1, "%zu deliveries after recreating", fresh->n);
        MUST_BE(json_array_size(dead_letters(t, g)), 0);
        MUST_BE(topic_n(t, "published"), 2);
}

/* -- time ----------------------------------------------------------------------------------------------------------------------------- */

static char *publish_delayed(const char *t, int delay_ms, double *ret_sent, double *ret_answered) {
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = t;
        task.content = rig_text("%d", delay_ms);
        task.delay_ms = delay_ms;
        *ret_sent = now_ms();
        char *id = publish_with(task);
        *ret_answered = now_ms();
        return id;
}

static int by_size(const void *a, const void *b) { return *(const double *) a < *(const double *) b ? -1 : 1; }

/* Short runs share two cores with three other cases: there the median keeps to 50 ms, and nothing is early. */
static void delays(void) {
        enum { N = 9, LATE = 50 };
        double sent[N], answered[N], late[N];
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        for (int i = 0; i < N; i++)
                publish_delayed(t, 200 + i * 100, &sent[i], &answered[i]);
        publish(t, "0");
        bool early = now_ms() - sent[0] < 150; /* else a busy machine has let the first of them become due before */
        MUST(UNTIL(w->acked == N + 1, 10000), "%ld of %d", w->acked, N + 1);
        MUST(!early || strcmp(w->seen[0].content, "0") == 0, "the delayed ones held up another");
        for (int i = 0; i < N; i++) {
                const struct seen *s = seen_content(w, rig_text("%d", 200 + i * 100), 1);
                MUST(s, "a delayed task is missing");
                MUST(s->at_ms - sent[i] >= 200 + i * 100 - 1, "a delay of %d ms took %.1f ms", 200 + i * 100, s->at_ms - sent[i]);
                late[i] = s->at_ms - answered[i] - (200 + i * 100);
                MUST(!conf_run.full || late[i] <= LATE, "a delay of %d ms took %.1f ms more", 200 + i * 100, late[i]);
        }
        qsort(late, N, sizeof(*late), by_size);
        MUST(late[N / 2] <= LATE, "delays last %.1f ms longer than asked for (median)", late[N / 2]);

        /* Across restarts: one due while the daemon is down comes with it; one due later at its time. */
        publish_delayed(t, 300, &sent[0], &answered[0]);
        publish_delayed(t, 2500, &sent[1], &answered[1]);
        om_test_daemon_kill9(rig_daemon);
        while (now_ms() - sent[0] < 400)
                serve_for(10);
        om_test_daemon_up(rig_daemon);
        MUST(UNTIL(w->acked == N + 3, 10000), "%ld of %d after the restart", w->acked, N + 3);
        double took = w->seen[N + 2].at_ms - sent[1];
        MUST(strcmp(w->seen[N + 2].content, "2500") == 0 && took >= 2499, "the later one came after %.1f ms", took);
        MUST(took <= 2500 + (conf_run.full ? LATE : 4 * LATE) + answered[1] - sent[1], "the later one came after %.1f ms", took);
}

static void time_to_live(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        omni_agent_unregister(w->agent);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = t;
        task.content = "\"short\"";
        task.ttl_ms = 200;
        publish_with(task);
        publish_with(task);
        task.content = "\"long\"";
        task.ttl_ms = 60000;
        publish_with(task);
        serve_for(400);
        struct worker *late = serve(t, "a", act_ack);
        MUST(UNTIL(late->acked == 1, 10000), "the one that lives longer is not delivered");
        serve_for(200);
        MUST(late->n == 1 && strcmp(late->seen[0].content, "\"long\"") == 0, "%zu deliveries, the first is %s", late->n,
                late->seen[0].content);
        MUST(UNTIL_SLOWLY(group_n(t, "a", "expired") == 2, 5000), "%lld counted as expired, must be 2",
                (long long) group_n(t, "a", "expired"));
        MUST_BE(topic_n(t, "depth"), 0);
        task.content = "\"in time\"";
        task.ttl_ms = 5000;
        publish_with(task);
        MUST(UNTIL(late->acked == 2, 3000), "not delivered within its time");
}

/* -- once -------------------------------------------------------------------------------------------------------------------------------
 */

static void idempotency(void) {
        enum { RACERS = 32 };
        rig_up(NULL);
        const char *t = topic("t"), *u = topic("u");
        struct worker *w = serve(t, "a", act_ack), *x = serve(u, "a", act_ack);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        char first[OMNI_ID_SIZE], second[OMNI_ID_SIZE];
        task.topic = t;
        task.content = "1";
        task.idempotency_key = "order 17: \"paid\"";
        MUST_BE(omni_publish(rig_client, &task, first), 0);
        task.content = "2";
        MUST_BE(omni_publish(rig_client, &task, second), 1);
        MUST(strcmp(first, second) == 0, "the second publish is told %s, the first was %s", second, first);
        json_t *raw = rpc(rig_client, "task.publish", "{s:{s:s,s:{s:i},s:s}}", "task", "topic", t, "payload", "content", 3,
                "idempotency_key", task.idempotency_key);
        MUST(json_is_true(at(raw, "duplicate")) && strcmp(str(raw, "id"), first) == 0, "the answer is %s", dump(raw));
        MUST(UNTIL(w->acked == 1, 10000), "not delivered");
        om_test_daemon_restart(rig_daemon);
        MUST(omni_publish(rig_client, &task, second) == 1 && strcmp(first, second) == 0, "forgotten by a restart");
        om_test_daemon_kill9(rig_daemon);
        om_test_daemon_up(rig_daemon);
        MUST(omni_publish(rig_client, &task, second) == 1 && strcmp(first, second) == 0, "forgotten by a kill");
        task.topic = u; /* another topic: another task */
        MUST_BE(omni_publish(rig_client, &task, second), 0);
        MUST(UNTIL(x->acked == 1, 10000), "not delivered");
        serve_for(200);
        MUST_BE(w->n, 1);

        /* Many at once. */
        publish_race(t, "raced for", RACERS);
        MUST(UNTIL(w->acked == 2, 10000), "the winner's task is not delivered");
        serve_for(200);
        MUST_BE(w->n, 2);
}

/* -- replay ------------------------------------------------------------------------------------------------------------------------------
 */

/* One that is served starts again: at the time, after which there are n tasks, at the first of 2 n, and at what is new. */
static void seek(const char *t, struct worker *w, const char *time, int n) {
        json_t *answer;
        size_t had = w->n;
        int r = rpc_try(rig_client, &answer, "agent.seek", "{s:s,s:s,s:f}", "topic", t, "name", "a", "start", atof(time));
        if (r == -EOPNOTSUPP) {
                printf("a group cannot be sent back: %s\n", omni_strerror(rig_client));
                return;
        }
        MUST(r == 0, "agent.seek: %s", omni_strerror(rig_client));
        MUST_BE(num(answer, "tasks"), n);
        MUST(UNTIL(w->n == had + (size_t) n && w->acked == (long) w->n, 15000), "from the time %zu of %d came again", w->n - had, n);
        MUST_BE(num(rpc(rig_client, "agent.seek", "{s:s,s:s,s:s}", "topic", t, "name", "a", "start", "first"), "tasks"), 2 * n);
        MUST(UNTIL(w->n == had + 3 * (size_t) n && w->acked == (long) w->n, 15000), "from the first %zu of %d came again",
                w->n - had - (size_t) n, 2 * n);
        worker_close(w);
        /* What a worker holds is taken from it, and what waits is left out. */
        struct worker *holds = serve(t, "a", act_hold);
        publish_numbers(t, 1000, 3 * n);
        MUST(UNTIL(holds->n_held > 0, 10000), "nothing is held");
        MUST_BE(num(rpc(rig_client, "agent.seek", "{s:s,s:s,s:s}", "topic", t, "name", "a", "start", "new"), "tasks"), 0);
        ack_held(holds, 0);
        MUST(UNTIL(holds->acked + holds->refused == 1, 10000), "the ack is not answered");
        MUST(holds->refused == 1, "what was held before the group started elsewhere is acknowledged");
        had = holds->n;
        publish_numbers(t, 2000, 1);
        MUST(UNTIL(holds->n > had, 10000), "what is new does not come");
        MUST(holds->n == had + 1 && seen_content(holds, "2000", 1), "%zu came, one is new", holds->n - had);
        r = rpc_try(rig_client, &answer, "agent.seek", "{s:s,s:s,s:s}", "topic", t, "name", "nobody", "start", "first");
        MUST(r == -ENOENT || r == -ESTALE, "an agent that is not there: %s", strerror(-r));
}

static void replay(void) {
        enum { N = 20 };
        rig_bus_parameter("retention_ms=600000");
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        publish_numbers(t, 0, N);
        serve_for(50);
        char *between = rig_text("%.3f", wall_s());
        serve_for(50);
        publish_numbers(t, N, N);
        MUST(UNTIL(w->acked == 2 * N, 10000), "%ld of %d", w->acked, 2 * N);
        omni_agent_options all = agent_options(t, "all"), later = agent_options(t, "later");
        all.start = "first";
        later.start = between;
        struct worker *from_first = serve_with(&all, act_ack), *from_time = serve_with(&later, act_ack);
        MUST(UNTIL(from_first->acked == 2 * N && from_time->acked == N, 10000), "from the beginning %ld of %d, from the time %ld of %d",
                from_first->acked, 2 * N, from_time->acked, N);
        serve_for(200);
        MUST(from_first->n == 2 * N && from_time->n == N && seen_content(from_time, rig_text("%d", N), 1), "%zu and %zu", from_first->n,
                from_time->n);
        MUST(w->n == 2 * N, "replaying for one group gave tasks to another");
        seek(t, w, between, N);
}

/* -- statistics
 * ---------------------------------------------------------------------------------------------------------------------------- */

static void by_content(struct worker *w, omni_task *task, const struct seen *seen) {
        int n = atoi(seen->content);
        if (n < 4)
                act_ack(w, task, seen);
        else if (n < 6)
                act_fail_for_good(w, task, seen);
        else if (n < 9)
                MUST(omni_task_fail(task, "later", "Planned", 3600000, 0) == 0, "fail");
        else
                act_hold(w, task, seen);
}

struct counts {
        int lag, leased, retrying, dead, finished;
};

static void expect(const char *t, const char *agent, struct counts c, const char *when) {
        int64_t lag = group_n(t, agent, "lag"), leased = group_n(t, agent, "leased"), retrying = group_n(t, agent, "retrying"),
                dead = group_n(t, agent, "dead"), finished = group_n(t, agent, "finished");
        MUST(lag == c.lag && leased == c.leased && retrying == c.retrying && dead == c.dead && finished == c.finished,
                "%s: group %s has lag %lld (%d), leased %lld (%d), retrying %lld (%d), dead %lld (%d), finished %lld (%d)", when, agent,
                (long long) lag, c.lag, (long long) leased, c.leased, (long long) retrying, c.retrying, (long long) dead, c.dead,
                (long long) finished, c.finished);
}

/* 4 acknowledged, 2 dead, 3 between retries, 5 with the worker, 6 not delivered: 20 of one group; nothing done by the other. */
static void statistics(void) {
        rig_up(NULL);
        const char *t = long_name(topic("t")), *a = long_name("a"), *idle_name = long_name("idle");
        omni_agent_options o = agent_options(t, a);
        o.prefetch = 5;
        struct worker *w = serve_with(&o, by_content), *idle = serve(t, idle_name, act_hold);
        omni_agent_unregister(idle->agent);
        publish_numbers(t, 0, 20);
        MUST(UNTIL(w->acked == 4 && w->n_held == 5, 10000), "%ld acknowledged, %zu held", w->acked, w->n_held);
        serve_for(100);
        const struct counts busy = { 6, 5, 3, 2, 6 }, none = { 20, 0, 0, 0, 0 }, unserved = { 11, 0, 3, 2, 6 };
        expect(t, a, busy, "with a worker");
        expect(t, idle_name, none, "with a worker");
        MUST_BE(topic_n(t, "depth"), 20); /* the other group needs them all */
        MUST_BE(topic_n(t, "published"), 20);
        MUST_BE(topic_n(t, "groups"), 2);
        json_t *s = rpc(rig_client, "bus.stats", "{s:s}", "topic", t);
        MUST(num(s, "totals.depth") == 20 && num(s, "totals.published") == 20 && num(s, "totals.groups") == 2 &&
                        num(s, "totals.lag") == 26 && num(s, "totals.leased") == 5 && num(s, "totals.retrying") == 3 &&
                        num(s, "totals.dead") == 2,
                "the totals are %s", dump(at(s, "totals")));
        omni_agent_unregister(w->agent);
        serve_for(100);
        expect(t, a, unserved, "without a worker");
        om_test_daemon_restart(rig_daemon);
        expect(t, a, unserved, "after a restart");
        om_test_daemon_kill9(rig_daemon);
        om_test_daemon_up(rig_daemon);
        expect(t, a, unserved, "after a kill");
        expect(t, idle_name, none, "after a kill");
        MUST_BE(topic_n(t, "depth"), 20);
        rpc(rig_client, "agent.delete", "{s:s,s:s}", "topic", t, "name", idle_name);
        MUST_BE(topic_n(t, "depth"), 14); /* 6 finished or dead */
}

const struct conf_case conf_bus_extras[] = {
        { "B22", "pause stops delivery and keeps tasks; resume delivers them", pause_and_resume, 20 },
        { "B23", "delete group, delete topic; recreating starts clean", delete_and_recreate, 20 },
        { "B29", "delay +-50 ms and across a restart", delays, 30, "delay" },
        { "B30", "ttl: not delivered after expiry, counted", time_to_live, 20, "ttl" },
        { "B32", "same idempotency_key twice: one task, the first id returned, `duplicate: true`", idempotency, 30 },
        { "B35", "replay from the beginning and from a time, for a new agent and for one that is served", replay, 30, "replay" },
        { "B36", "stats: depth, pending, lag, dead letters are exact at rest", statistics, 20 },
        { NULL },
};
