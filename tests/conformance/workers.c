/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that write down what they were given: see rig.h. What was seen is copied: it outlives the task and the connection. */
#include "rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *copied(const char *s, size_t len) {
        char *copy = malloc(len + 1);
        MUST(copy, "out of memory");
        memcpy(copy, s, len);
        copy[len] = '\0';
        return copy;
}

static void handle(omni_agent *agent, omni_task *task, void *user) {
        struct worker *w = user;
        if (w->n == w->room) {
                w->room = w->room ? w->room * 2 : 64;
                w->seen = realloc(w->seen, w->room * sizeof(*w->seen));
                MUST(w->seen, "out of memory");
        }
        struct seen *s = &w->seen[w->n++];
        size_t len, json_len;
        const char *content = omni_task_content(task, &len), *json = omni_task_json(task, &json_len), *id = omni_task_id(task);
        *s = (struct seen){ .id = copied(id, strlen(id)),
                .content = copied(content, len),
                .content_len = len,
                .json = copied(json, json_len),
                .attempt = omni_task_attempt(task),
                .at_ms = now_ms() };
        struct seen copy = *s; /* what an act does may bring more deliveries, and move the array */
        w->act(w, task, &copy);
}

omni_agent_options agent_options(const char *topic, const char *agent) {
        omni_agent_options o = OMNI_AGENT_OPTIONS_INIT;
        o.topic = topic;
        o.name = agent;
        o.retry_backoff_ms = 20;
        o.retry_backoff_max_ms = 40;
        return o;
}

struct worker *serve_on(omni_client *c, const omni_agent_options *options, worker_act *act) {
        struct worker *w = calloc(1, sizeof(*w));
        MUST(w, "out of memory");
        w->client = c;
        w->act = act;
        int r = omni_agent_register(c, options, handle, w, &w->agent);
        MUST(r == 0, "agent %s on %s: %s", options->name, options->topic, omni_strerror(c));
        return w;
}

struct worker *serve_with(const omni_agent_options *options, worker_act *act) {
        return serve_on(client_new(), options, act);
}

struct worker *serve(const char *topic, const char *agent, worker_act *act) {
        omni_agent_options o = agent_options(topic, agent);
        return serve_with(&o, act);
}

void worker_close(struct worker *w) {
        client_close(w->client);
        w->client = NULL;
        w->agent = NULL;
        w->n_held = 0;
}

static int compare(const void *a, const void *b) { return strcmp(*(char *const *) a, *(char *const *) b); }

size_t seen_distinct(struct worker *const *workers, size_t n) {
        size_t total = 0, distinct = 0;
        for (size_t i = 0; i < n; i++)
                total += workers[i]->n;
        char **ids = calloc(total + 1, sizeof(*ids));
        MUST(ids, "out of memory");
        total = 0;
        for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < workers[i]->n; k++)
                        ids[total++] = workers[i]->seen[k].id;
        qsort(ids, total, sizeof(*ids), compare);
        for (size_t i = 0; i < total; i++)
                distinct += i == 0 || strcmp(ids[i], ids[i - 1]) != 0;
        free(ids);
        return distinct;
}

const struct seen *seen_content(const struct worker *w, const char *content, int attempt) {
        for (size_t i = 0; i < w->n; i++)
                if (strcmp(w->seen[i].content, content) == 0 && (!attempt || w->seen[i].attempt == attempt))
                        return &w->seen[i];
        return NULL;
}

/* -- what they do ---------------------------------------------------------------------------------------------------------------- */

static void acked(omni_client *c, int status, const char *error, void *user) {
        struct worker *w = user;
        if (status == 0)
                w->acked++;
        else
                w->refused++;
}

void act_ack(struct worker *w, omni_task *task, const struct seen *seen) {
        int r = omni_task_ack_publish(task, seen->content, seen->content_len, NULL, 0, acked, w);
        if (r == -ESTALE)
                w->refused++;
        else
                MUST(r == 0, "ack: %s: %s", strerror(-r), omni_strerror(w->client));
}

void act_hold(struct worker *w, omni_task *task, const struct seen *seen) {
        if (w->n_held == w->held_room) {
                w->held_room = w->held_room ? w->held_room * 2 : 64;
                w->held = realloc(w->held, w->held_room * sizeof(omni_task *));
                MUST(w->held, "out of memory");
        }
        w->held[w->n_held++] = task;
}

void ack_held(struct worker *w, size_t i) {
        size_t len;
        const char *content = omni_task_content(w->held[i], &len);
        int r = omni_task_ack_publish(w->held[i], content, len, NULL, 0, acked, w);
        w->held[i] = w->held[--w->n_held];
        MUST(r == 0, "ack: %s: %s", strerror(-r), omni_strerror(w->client));
}

void act_fail(struct worker *w, omni_task *task, const struct seen *seen) {
        int r = omni_task_fail(task, "on purpose", "Planned", -1, 0);
        MUST(r == 0 || r == -ESTALE, "fail: %s", omni_strerror(w->client));
}

void act_fail_for_good(struct worker *w, omni_task *task, const struct seen *seen) {
        int r = omni_task_fail(task, "on purpose", "Planned", -1, OMNI_FAIL_NO_RETRY);
        MUST(r == 0 || r == -ESTALE, "fail: %s", omni_strerror(w->client));
}

/* -- racing ---------------------------------------------------------------------------------------------------------------------- */

static struct race {
        long first, second, answers;
        char id[OMNI_ID_SIZE];
} race;

static omni_publish_options race_task;

/* A bus without keys of its own may not know the winner's outcome yet, and says so. */
static void raced(omni_client *c, int status, const char *id, const char *error, void *user) {
        if (status == -EAGAIN) {
                MUST_BE(omni_publish_async(c, &race_task, raced, NULL), 0);
                return;
        }
        MUST(status >= 0, "publish: %s", error);
        race.answers++;
        race.first += status == 0;
        race.second += status == 1;
        if (!*race.id)
                snprintf(race.id, sizeof(race.id), "%s", id);
        MUST(strcmp(race.id, id) == 0, "two racers are told %s and %s", race.id, id);
}

void publish_race(const char *topic, const char *key, int racers) {
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = topic;
        task.content = "1";
        task.idempotency_key = key;
        race = (struct race){ 0 };
        race_task = task;
        for (int i = 0; i < racers; i++)
                MUST_BE(omni_publish_async(client_new(), &task, raced, NULL), 0);
        MUST(UNTIL(race.answers == racers, 20000), "%ld of %d racers are answered", race.answers, racers);
        MUST(race.first == 1 && race.second == racers - 1, "%ld of %d racers won", race.first, racers);
}
