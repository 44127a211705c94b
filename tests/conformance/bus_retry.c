/* SPDX-License-Identifier: Apache-2.0 */
/* Retries and dead letters. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static void fail_first_of_zero(struct worker *w, omni_task *task, const struct seen *seen) {
        if (strcmp(seen->content, "0") == 0 && seen->attempt == 1)
                act_fail(w, task, seen);
        else
                act_ack(w, task, seen);
}

/* Half of the backoff is fixed, half random: a second comes back after 500 to 1000 ms. */
static void comes_back_after_the_backoff(void) {
        rig_up(NULL);
        const char *t = topic("t");
        omni_agent_options o = agent_options(t, "a");
        o.prefetch = 1;
        o.retry_backoff_ms = 1000;
        o.retry_backoff_max_ms = 60000;
        struct worker *w = serve_with(&o, fail_first_of_zero);
        publish_numbers(t, 0, 20);
        MUST(UNTIL(w->acked == 20, 15000), "%ld of 20 acknowledged", w->acked);
        MUST_BE(w->n, 21);
        const struct seen *first = seen_content(w, "0", 1), *second = seen_content(w, "0", 2);
        MUST(first && second, "attempts 1 and 2 of task 0 are not both there");
        double waited = second->at_ms - first->at_ms;
        MUST(waited >= 499 && waited < 1500, "it came back after %.0f ms; 500 to 1000 are right", waited);
        for (size_t i = 0; i < w->n; i++)
                if (strcmp(w->seen[i].content, "0") != 0)
                        MUST(w->seen[i].attempt == 1 && w->seen[i].at_ms < second->at_ms, "task %s was held up behind the retry",
                                w->seen[i].content);
}

static void fail_twice(struct worker *w, omni_task *task, const struct seen *seen) {
        if (seen->attempt < 3)
                act_fail(w, task, seen);
        else
                act_ack(w, task, seen);
}

static void third_time_lucky(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", fail_twice);
        char *id = publish(t, "1");
        MUST(UNTIL(w->acked == 1, 10000), "not acknowledged after %zu deliveries", w->n);
        serve_for(300);
        MUST_BE(w->n, 3);
        for (int i = 0; i < 3; i++)
                MUST_BE(w->seen[i].attempt, i + 1);
        json_t *record = rpc(rig_client, "task.get", "{s:s,s:i}", "id", id, "wait_ms", 5000);
        MUST(num(record, "attempts") == 3 && strcmp(str(record, "status"), "completed") == 0, "its record is %s", dump(record));
        MUST_BE(group_n(t, "a", "dead"), 0);
        MUST_BE(group_n(t, "a", "retrying"), 0);
}

static void always_failing(void) {
        rig_up(NULL);
        const char *t = topic("t"), *content = "{ \"b\": 1e+05, \"a\":\t[1, 2.0] }";
        omni_agent_options o = agent_options(t, "a");
        o.dlq_retry_limit = 3;
        o.worker = "the worker";
        struct worker *w = serve_with(&o, act_fail);
        double before = wall_s();
        char *id = publish(t, "%s", content);
        MUST(UNTIL_SLOWLY(group_n(t, "a", "dead") == 1, 10000), "not in the dead letters after %zu attempts", w->n);
        double after = wall_s();
        serve_for(200);
        MUST_BE(w->n, 4);
        for (int i = 0; i < 4; i++)
                MUST_BE(w->seen[i].attempt, i + 1);
        json_t *letters = dead_letters(t, "a"), *d = json_array_get(letters, 0);
        MUST_BE(json_array_size(letters), 1);
        MUST(strcmp(str(d, "task.id"), id) == 0 && strcmp(str(d, "task.topic"), t) == 0, "it is about another task: %s", dump(d));
        MUST(strcmp(str(d, "error.message"), "on purpose") == 0 && strcmp(str(d, "error.type"), "Planned") == 0, "its error is wrong: %s",
                dump(d));
        MUST_BE(num(d, "attempts"), 4);
        MUST(strcmp(str(d, "worker"), "the worker") == 0, "its worker is wrong: %s", dump(d));
        double created = json_number_value(at(d, "task.created_at")), failed = json_number_value(at(d, "failed_at"));
        MUST(created >= before - 0.01 && failed >= created && failed <= after + 0.01, "its times are wrong: %s", dump(d));
        char *raw, *params = rig_text("{\"topic\":\"%s\",\"agent\":\"a\",\"id\":\"%s\"}", t, str(d, "id"));
        MUST(omni_call(rig_client, "dlq.get", params, &raw, NULL) == 0, "dlq.get: %s", omni_strerror(rig_client));
        MUST(strstr(raw, content), "the content is not as it was published: %s", raw);
        json_t *record = rpc(rig_client, "task.get", "{s:s,s:i}", "id", id, "wait_ms", 5000);
        MUST(strcmp(str(record, "status"), "failed") == 0 && strcmp(str(record, "error"), "on purpose") == 0, "its record is %s",
                dump(record));
        MUST_BE(group_n(t, "a", "lag") + group_n(t, "a", "leased") + group_n(t, "a", "retrying"), 0);
}

static void no_retry(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_fail_for_good);
        publish(t, "1");
        MUST(UNTIL_SLOWLY(group_n(t, "a", "dead") == 1, 10000), "not in the dead letters after %zu attempts", w->n);
        serve_for(200);
        MUST_BE(w->n, 1);
        MUST_BE(num(json_array_get(dead_letters(t, "a"), 0), "attempts"), 1);
}

/* -- working with dead letters -------------------------------------------------------------------------------------------------------- */

static void walk_pages(const char *t, const char *a, size_t expected) {
        char *cursor = NULL;
        size_t n = 0, i;
        do {
                json_t *page = rpc(rig_client, "dlq.list", "{s:s,s:s,s:i,s:s*}", "topic", t, "agent", a, "limit", 10, "cursor", cursor), *d;
                MUST(json_array_size(at(page, "dead_letters")) <= 10, "a page is larger than the limit");
                json_array_foreach(at(page, "dead_letters"), i, d) {
                        MUST(num(d, "task.payload.content") == (int) n, "dead letter %zu is of task %s: not oldest first", n,
                                dump(at(d, "task.payload")));
                        json_t *got = rpc(rig_client, "dlq.get", "{s:s,s:s,s:s}", "topic", t, "agent", a, "id", str(d, "id"));
                        MUST(json_equal(got, d), "dlq.get says %s, dlq.list %s", dump(got), dump(d));
                        n++;
                }
                cursor = at(page, "cursor") ? rig_text("%s", str(page, "cursor")) : NULL;
        } while (cursor && n <= expected);
        MUST_BE(n, expected);
}

static void dead_letters_by_hand(void) {
        enum { N = 25 };
        rig_up(NULL);
        const char *t = long_name(topic("t")), *a = long_name("a");
        omni_agent_options o = agent_options(t, a);
        o.prefetch = 1; /* the letters in the order of the tasks */
        o.dlq_retry_limit = 1;
        struct worker *w = serve_with(&o, act_fail_for_good), *other = serve(t, long_name("other"), act_ack);
        publish_numbers(t, 0, N);
        MUST(UNTIL_SLOWLY(group_n(t, a, "dead") == N, 10000), "%lld of %d dead letters", (long long) group_n(t, a, "dead"), N);
        MUST(UNTIL(other->acked == N, 10000), "the other group has %ld", other->acked);
        walk_pages(t, a, N);
        json_t *none;
        MUST_BE(rpc_try(rig_client, &none, "dlq.get", "{s:s,s:s,s:s}", "topic", t, "agent", a, "id", "no-such-letter"), -ENOENT);

        /* One: to this group alone, attempts anew: its first failure has the retry again. */
        const char *fifth = str(json_array_get(dead_letters(t, a), 5), "id");
        w->act = act_fail;
        json_t *r = rpc(rig_client, "dlq.replay", "{s:s,s:s,s:[s]}", "topic", t, "agent", a, "ids", fifth);
        MUST_BE(num(r, "replayed"), 1);
        MUST(UNTIL_SLOWLY(group_n(t, a, "dead") == N && w->n == N + 2, 10000), "%zu deliveries, %lld dead", w->n,
                (long long) group_n(t, a, "dead"));
        MUST(strcmp(w->seen[N].content, "5") == 0 && w->seen[N].attempt == 1 && w->seen[N + 1].attempt == 2,
                "task %s with attempt %d, then %d", w->seen[N].content, w->seen[N].attempt, w->seen[N + 1].attempt);

        /* All. */
        w->act = act_ack;
        r = rpc(rig_client, "dlq.replay", "{s:s,s:s,s:b}", "topic", t, "agent", a, "all", 1);
        MUST_BE(num(r, "replayed"), N);
        MUST(UNTIL(w->acked == N, 10000), "%ld of %d replayed and acknowledged", w->acked, N);
        for (size_t i = N + 2; i < w->n; i++)
                MUST_BE(w->seen[i].attempt, 1);
        serve_for(200);
        MUST_BE(w->n, N + 2 + N);
        MUST(other->n == N, "the other group got %zu tasks replayed that are not its own", other->n - N);
        MUST_BE(group_n(t, a, "dead"), 0);

        w->act = act_fail_for_good;
        publish_numbers(t, 0, 4);
        MUST(UNTIL_SLOWLY(group_n(t, a, "dead") == 4, 10000), "not dead again");
        r = rpc(rig_client, "dlq.purge", "{s:s,s:s,s:[s]}", "topic", t, "agent", a, "ids",
                str(json_array_get(dead_letters(t, a), 0), "id"));
        MUST_BE(num(r, "purged"), 1);
        MUST_BE(json_array_size(dead_letters(t, a)), 3);
        r = rpc(rig_client, "dlq.purge", "{s:s,s:s,s:b}", "topic", t, "agent", a, "all", 1);
        MUST_BE(num(r, "purged"), 3);
        MUST_BE(json_array_size(dead_letters(t, a)), 0);
        MUST_BE(group_n(t, a, "dead"), 0);
}

const struct conf_case conf_bus_retry[] = {
        { "B07", "a failed task comes back after the backoff with attempt 2; those behind it are not held up", comes_back_after_the_backoff,
                30 },
        { "B08", "handler fails twice then succeeds: exactly 3 attempts", third_time_lucky, 20 },
        { "B09", "always fails: dlq_retry_limit+1 attempts, then the DLQ with error, worker, times, content", always_failing, 20 },
        { "B10", "`retry: false` goes to the dead letters at once", no_retry, 20 },
        { "B11", "DLQ list with cursor, get, replay one, replay all, purge", dead_letters_by_hand, 40 },
        { NULL },
};
