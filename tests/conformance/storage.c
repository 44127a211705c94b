/* SPDX-License-Identifier: Apache-2.0 */
/* What the storage keeps, through the methods that read and write it: agents, results, settings. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static size_t count_agents(const char *topic) {
        return json_array_size(at(rpc(rig_client, "agent.list", topic ? "{s:s}" : "{}", "topic", topic), "agents"));
}

static bool config_delete(const char *key) {
        json_t *r = rpc(rig_client, "config.delete", "{s:s}", "key", key);
        return json_is_true(at(r, "deleted"));
}

/* Without the daemon's own, which start with `_`. */
static size_t count_settings(const char *prefix) {
        json_t *all = at(rpc(rig_client, "config.list", prefix ? "{s:s}" : "{}", "prefix", prefix), "config"), *value;
        const char *key;
        size_t n = 0;
        json_object_foreach(all, key, value) n += key[0] != '_';
        return n;
}

static void agents(void) {
        rig_up(NULL);
        const char *t = topic("t"), *u = topic("u");
        omni_agent_options o = agent_options(t, "a");
        o.description = "the first";
        o.tools = "[\"hammer\",{\"name\":\"saw\"}]";
        serve_with(&o, act_ack);
        json_t *a = rpc(rig_client, "agent.get", "{s:s,s:s}", "topic", t, "name", "a");
        double created = json_number_value(at(a, "created_at"));
        MUST(strcmp(str(a, "description"), "the first") == 0 && json_array_size(at(a, "tools")) == 2 && created > 0, "added as %s",
                dump(a));
        serve_for(20);
        o.description = "the second";
        o.tools = "[]";
        serve_with(&o, act_ack);
        a = rpc(rig_client, "agent.get", "{s:s,s:s}", "topic", t, "name", "a");
        MUST(strcmp(str(a, "description"), "the second") == 0 && json_array_size(at(a, "tools")) == 0, "replaced by %s", dump(a));
        serve(t, "b", act_ack);
        serve(u, "a", act_ack);
        MUST_BE(count_agents(t), 2);
        MUST_BE(count_agents(u), 1);
        MUST_BE(count_agents(NULL), 3);
        rig_restart();
        MUST_BE(count_agents(NULL), 3);
        rpc(rig_client, "agent.delete", "{s:s,s:s}", "topic", t, "name", "b");
        MUST_BE(count_agents(t), 1);
        MUST_BE(num(rpc(rig_client, "topic.delete", "{s:s}", "topic", t), "agents"), 1);
        MUST_BE(count_agents(t), 0);
        MUST_BE(count_agents(NULL), 1);
}

static void unknown_keys(void) {
        rig_up(NULL);
        const char *t = topic("t");
        serve(t, "a", act_ack);
        json_t *none;
        MUST_BE(rpc_try(rig_client, &none, "task.get", "{s:s}", "id", "no such task"), -ENOENT);
        MUST_BE(rpc_try(rig_client, &none, "task.get", "{s:s,s:s}", "id", "no such task", "agent", "a"), -ENOENT);
        MUST_BE(rpc_try(rig_client, &none, "agent.get", "{s:s,s:s}", "topic", t, "name", "b"), -ENOENT);
        MUST_BE(rpc_try(rig_client, &none, "agent.get", "{s:s,s:s}", "topic", "no such topic", "name", "a"), -ENOENT);
        MUST_BE(rpc_try(rig_client, &none, "config.get", "{s:s}", "key", "no such key"), -ENOENT);
        MUST_BE(num(rpc(rig_client, "task.delete", "{s:s}", "id", "no such task"), "deleted"), 0);
        MUST(!config_delete("no such key"), "config.delete found one");
        MUST_BE(count_settings("no such"), 0);
        MUST_BE(count_agents("no such topic"), 0);
}

static const char *result_of(const char *id, const char *agent) {
        json_t *r = rpc(rig_client, "task.get", "{s:s,s:s*}", "id", id, "agent", agent);
        MUST(strcmp(str(r, "task_id"), id) == 0 && strcmp(str(r, "status"), "completed") == 0, "the record is %s", dump(r));
        return str(r, "agent");
}

static void results(void) {
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *first = serve(t, "first", act_ack), *second = serve(t, "second", act_hold);
        char *id = publish(t, "{\"n\":[1,2.50]}");
        MUST(UNTIL(first->acked == 1 && second->n == 1, 10000), "not handled");
        MUST(strcmp(result_of(id, NULL), "first") == 0 && strcmp(result_of(id, "first"), "first") == 0, "the only result is not found");
        json_t *none;
        MUST_BE(rpc_try(rig_client, &none, "task.get", "{s:s,s:s}", "id", id, "agent", "second"), -ENOENT);
        serve_for(5);
        ack_held(second, 0);
        MUST(UNTIL(second->acked == 1, 10000), "not acknowledged");
        MUST(strcmp(result_of(id, NULL), "second") == 0, "the newest is of %s", result_of(id, NULL));
        rig_restart();
        MUST(strcmp(result_of(id, NULL), "second") == 0, "the newest is of %s after a restart", result_of(id, NULL));
        MUST(strcmp(result_of(id, "first"), "first") == 0 && strcmp(result_of(id, "second"), "second") == 0, "by agent: the wrong ones");
        json_t *r = rpc(rig_client, "task.get", "{s:s,s:s}", "id", id, "agent", "first"), *sent = json_pack("{s:[i,f]}", "n", 1, 2.5);
        MUST(json_equal(at(r, "result"), sent) && json_equal(at(r, "content"), sent), "the record is %s", dump(r));
}

static void time_to_live(void) {
        enum { TTL = 3000, SLACK = 300 };
        rig_up((const char *const[]){ rig_text("RESULT_TTL=%dms", TTL), NULL });
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        json_t *r;
        double published = now_ms();
        char *id = publish(t, "1");
        MUST(UNTIL(w->acked == 1, 10000), "not handled");
        double saved = now_ms();
        bool restarted = false;
        do {
                int status = rpc_try(rig_client, &r, "task.get", "{s:s}", "id", id);
                /* Asked before and answered before: a slow machine must not be blamed. */
                MUST(status == 0 || now_ms() - published >= TTL, "gone after %.0f ms, must be there for %d", now_ms() - published, TTL);
                if (!restarted && now_ms() - published > TTL / 3.0) {
                        rig_restart();
                        restarted = true;
                }
                serve_for(20);
        } while (now_ms() - published < TTL - 50);
        MUST(restarted, "the restart was not tried");
        while (now_ms() - saved < TTL + SLACK)
                serve_for(20);
        MUST_BE(rpc_try(rig_client, &r, "task.get", "{s:s}", "id", id), -ENOENT);
        MUST_BE(json_array_size(at(rpc(rig_client, "task.list", "{s:s}", "topic", t), "tasks")), 0);
        rig_restart();
        MUST_BE(rpc_try(rig_client, &r, "task.get", "{s:s}", "id", id), -ENOENT);
}

/* Contents are numbers: those below `n` were there when the walk began. */
static void walk(void) {
        int n = SCALE(10000, 2500), more = n;
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        publish_numbers(t, 0, n);
        MUST(UNTIL(w->acked == n, 120000), "%ld of %d handled", w->acked, n);
        unsigned char *seen = calloc((size_t) n * 2, 1);
        double last = 1e300;
        char *cursor = NULL;
        unsigned pages = 0;
        do {
                json_t *page = rpc(rig_client, "task.list", "{s:s,s:i,s:s*}", "topic", t, "limit", 100, "cursor", cursor), *r;
                size_t i;
                MUST(json_array_size(at(page, "tasks")) <= 100, "%zu in a page of 100", json_array_size(at(page, "tasks")));
                json_array_foreach(at(page, "tasks"), i, r) {
                        double when = json_number_value(at(r, "timestamp"));
                        MUST(when <= last, "not newest first: %.3f after %.3f", when, last);
                        last = when;
                        seen[num(r, "content")]++;
                }
                cursor = at(page, "cursor") ? rig_text("%s", str(page, "cursor")) : NULL;
                json_decref(page);
                if (++pages % 4 == 0 && more < 2 * n - 10) {
                        publish_numbers(t, more, 10);
                        more += 10;
                        serve_for(5);
                }
        } while (cursor);
        for (int i = 0; i < n; i++)
                MUST(seen[i] == 1, "result %d is on %d pages", i, seen[i]);
        MUST(more > n && UNTIL(w->acked == more, 20000), "nothing was written meanwhile");
        MUST_BE(json_array_size(at(rpc(rig_client, "task.list", "{s:s,s:i}", "topic", t, "limit", 7), "tasks")), 7);
}

static void clearing(void) {
        rig_up((const char *const[]){ "METRICS_INTERVAL=1s", NULL });
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        char *id = publish(t, "1");
        publish_numbers(t, 2, 4);
        MUST(UNTIL(w->acked == 5, 10000), "not handled");
        rpc(rig_client, "config.set", "{s:s,s:i}", "key", "one", "value", 1);
        rpc(rig_client, "config.set", "{s:s,s:i}", "key", "two", "value", 2);
        json_t *r;
        MUST_BE(num(rpc(rig_client, "task.delete", "{s:s}", "id", id), "deleted"), 1);
        MUST_BE(rpc_try(rig_client, &r, "task.get", "{s:s}", "id", id), -ENOENT);
        worker_close(w);
        MUST(UNTIL_SLOWLY(num(rpc(rig_client, "storage.health", NULL), "metrics") > 0, 10000), "no metrics are written");
        MUST_BE(num(rpc(rig_client, "storage.clear", "{s:s}", "what", "results"), "cleared.results"), 4);
        MUST_BE(json_array_size(at(rpc(rig_client, "task.list", NULL), "tasks")), 0);
        MUST_BE(count_agents(NULL), 1);
        MUST_BE(num(rpc(rig_client, "storage.clear", "{s:s}", "what", "agents"), "cleared.agents"), 1);
        MUST_BE(count_agents(NULL), 0);
        MUST(num(rpc(rig_client, "storage.clear", "{s:s}", "what", "metrics"), "cleared.metrics") > 0, "no metrics cleared");
        MUST_BE(count_settings(NULL), 2);
        /* The daemon keeps some of its own there. */
        MUST(num(rpc(rig_client, "storage.clear", "{s:s}", "what", "config"), "cleared.config") >= 2, "settings are not cleared");
        MUST_BE(rpc_try(rig_client, &r, "config.get", "{s:s}", "key", "one"), -ENOENT);
        w = serve(t, "a", act_ack);
        publish(t, "9");
        MUST(UNTIL(w->acked == 1, 10000), "not handled after clearing");
        rpc(rig_client, "config.set", "{s:s,s:i}", "key", "one", "value", 1);
        r = rpc(rig_client, "storage.clear", "{s:s}", "what", "all");
        MUST(num(r, "cleared.agents") == 1 && num(r, "cleared.results") == 1 && num(r, "cleared.config") >= 1, "clear all says %s",
                dump(r));
        rig_restart();
        MUST(count_agents(NULL) <= 1, "agents come back"); /* the one that is connected registers again */
        MUST_BE(json_array_size(at(rpc(rig_client, "task.list", NULL), "tasks")), 0);
        MUST_BE(count_settings(NULL), 0);
}

/* -- settings ----------------------------------------------------------------------------------------------------------------------------
 */

static void config_set_raw(const char *key, const char *value) {
        char *params = rig_text("{\"key\":\"%s\",\"value\":%s}", key, value);
        MUST(omni_call(rig_client, "config.set", params, NULL, NULL) == 0, "config.set %s: %s", key, omni_strerror(rig_client));
        free(params);
}

static char *config_get_raw(const char *key) {
        char *params = rig_text("{\"key\":\"%s\"}", key), *result;
        MUST(omni_call(rig_client, "config.get", params, &result, NULL) == 0, "config.get %s: %s", key, omni_strerror(rig_client));
        free(params);
        return result;
}

static void settings(void) {
        static const char *const values[] = { "null", "true", "false", "0", "-1", "1.50", "\"\"", "\"text \\u00e9 \\\"quoted\\\"\"", "[]",
                "[1,[2,{\"a\":null}]]", "{}", "{\"b\":1,\"a\":{\"c\":[true]}}" };
        enum { N = sizeof(values) / sizeof(*values) };
        rig_up(NULL);
        for (int round = 0; round < 2; round++) { /* the second overwrites by another type */
                for (int i = 0; i < N; i++)
                        config_set_raw(rig_text("types.%d", i), values[(i + round) % N]);
                for (int i = 0; i < N; i++) {
                        char *got = config_get_raw(rig_text("types.%d", i)), *expected = rig_text("\"value\":%s", values[(i + round) % N]);
                        MUST(strstr(got, expected), "%s was set, config.get says %s", values[(i + round) % N], got);
                }
        }
        config_set_raw("large", "[18446744073709551616,1e400,0.10]"); /* not for jansson: it reads lists below */
        MUST(strstr(config_get_raw("large"), "\"value\":[18446744073709551616,1e400,0.10]"), "numbers are not kept: %s",
                config_get_raw("large"));
        MUST(config_delete("large"), "not deleted");
        config_set_raw("other", "1");
        MUST_BE(count_settings("types."), N);
        MUST_BE(count_settings("types.1"), 3); /* 1, 10, 11 */
        MUST_BE(count_settings(NULL), N + 1);
        MUST(config_delete("types.3") && !config_delete("types.3"), "not deleted, or twice");
        MUST_BE(count_settings("types."), N - 1);
        rig_restart();
        MUST_BE(count_settings(NULL), N);
        json_t *none;
        MUST_BE(rpc_try(rig_client, &none, "config.set", "{s:s,s:i}", "key", "_own", "value", 1), -EACCES);
}

static const char *const odd[] = { "a:b", "a", "a/b", "/", "//", ".", "..", "../../etc/passwd", "a/../b", "%", "%2e%2e%2f", "%s%n", " ",
        " a ", "it's \"quoted\"", "back\\slash", "\xf0\x9f\xa6\x8a\xf0\x9f\x8f\xb3\xef\xb8\x8f\xe2\x80\x8d\xf0\x9f\x8c\x88", "\xc3\xa9",
        "e\xcc\x81", "'; DROP TABLE agents; --", "$where", "a.b", "{\"$gt\":\"\"}", ".*[a-z]+(", "\\", "**", "?", "[", "~", "A",
        "agents.json", "results", "null", "0", "-", "a\xc2\xa0z" };
enum { N_ODD = sizeof(odd) / sizeof(*odd) };

static void odd_names(void) {
        rig_up(NULL);
        json_t *r;
        char long_key[501] = "";
        memset(long_key, 'k', 500);
        long_key[250] = '/';
        for (int i = 0; i <= N_ODD; i++)
                rpc(rig_client, "config.set", "{s:s,s:i}", "key", i < N_ODD ? odd[i] : long_key, "value", i);
        long_key[499] = 'x'; /* differs in its last byte */
        rpc(rig_client, "config.set", "{s:s,s:i}", "key", long_key, "value", N_ODD + 1);
        rig_restart();
        json_t *all = at(rpc(rig_client, "config.list", NULL), "config");
        MUST_BE(json_object_size(all), N_ODD + 2);
        for (int i = 0; i < N_ODD; i++) {
                r = rpc(rig_client, "config.get", "{s:s}", "key", odd[i]);
                MUST(num(r, "value") == i && strcmp(str(r, "key"), odd[i]) == 0 && json_integer_value(json_object_get(all, odd[i])) == i,
                        "key %s: %s", odd[i], dump(r));
        }
        MUST_BE(num(rpc(rig_client, "config.get", "{s:s}", "key", long_key), "value"), N_ODD + 1);
        for (int i = 0; i < N_ODD; i += 2)
                MUST(config_delete(odd[i]), "key %s is not deleted", odd[i]);
        MUST_BE(count_settings(NULL), N_ODD / 2 + 2);
        json_t *prefixed = at(rpc(rig_client, "config.list", "{s:s}", "prefix", "%"), "config"), *value;
        const char *key;
        json_object_foreach(prefixed, key, value) MUST(key[0] == '%', "prefix %% finds %s", key);

        /* As topic, as agent's name, as a task's id: two that a careless join of parts would confuse are among them. */
        for (int i = 0; i < N_ODD; i++) {
                omni_agent_options o = agent_options(odd[i], odd[(i + 1) % N_ODD]);
                omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
                struct worker *w = serve_with(&o, act_ack);
                task.topic = odd[i];
                task.id = odd[(i + 2) % N_ODD];
                task.content = rig_text("%d", i);
                publish_with(task);
                MUST(UNTIL(w->acked == 1, 10000), "topic %s, agent %s: not handled", odd[i], o.name);
        }
        for (int i = 0; i < N_ODD; i++) {
                const char *agent = odd[(i + 1) % N_ODD], *id = odd[(i + 2) % N_ODD];
                json_t *list = at(rpc(rig_client, "agent.list", "{s:s}", "topic", odd[i]), "agents");
                MUST(json_array_size(list) == 1 && strcmp(str(json_array_get(list, 0), "name"), agent) == 0, "agents of %s: %s", odd[i],
                        dump(list));
                r = rpc(rig_client, "task.get", "{s:s,s:s}", "id", id, "agent", agent);
                MUST(num(r, "result") == i && strcmp(str(r, "topic"), odd[i]) == 0, "result of task %s: %s", id, dump(r));
                MUST_BE(rpc_try(rig_client, &r, "task.get", "{s:s,s:s}", "id", id, "agent", "somebody else"), -ENOENT);
                MUST_BE(num(rpc(rig_client, "task.delete", "{s:s}", "id", id), "deleted"), 1);
        }
}

/* -- sizes
 * ------------------------------------------------------------------------------------------------------------------------------------ */

static char *sized(size_t size) {
        char *s = malloc(size + 3);
        MUST(s, "out of memory");
        memset(s, 'v', size + 2);
        s[0] = s[size + 1] = '"';
        s[size + 2] = '\0';
        return s;
}

static void act_result(struct worker *w, omni_task *task, const struct seen *seen) {
        MUST(omni_task_ack(task, w->user, OMNI_STR) == 0, "ack: %s", omni_strerror(w->client));
}

static void sizes(void) {
        static const size_t size[] = { 0, 1, 10 << 20 };
        rig_up(NULL);
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_result);
        char *ids[3], *values[3];
        for (int i = 0; i < 3; i++) {
                values[i] = sized(size[i]);
                config_set_raw(rig_text("size.%d", i), values[i]);
                w->user = values[i];
                ids[i] = publish(t, "%d", i);
                MUST(UNTIL(w->n == (size_t) i + 1, 10000), "not delivered");
                MUST(omni_flush(w->client, 30000) == 0, "the ack with %zu bytes: %s", size[i], omni_strerror(w->client));
        }
        for (int round = 0; round < 2; round++) {
                for (int i = 0; i < 3; i++) {
                        char *got = config_get_raw(rig_text("size.%d", i)), *at = strstr(got, "\"value\":"), *record;
                        MUST(at && strncmp(at + 8, values[i], size[i] + 2) == 0, "the setting of %zu bytes is another", size[i]);
                        free(got);
                        MUST(omni_result_get(rig_client, ids[i], "a", 0, &record, NULL) == 0, "result: %s", omni_strerror(rig_client));
                        at = strstr(record, "\"result\":");
                        MUST(at && strncmp(at + 9, values[i], size[i] + 2) == 0, "the result of %zu bytes is another", size[i]);
                        free(record);
                }
                if (round == 0)
                        rig_restart();
        }
}

/* -- many at once
 * ------------------------------------------------------------------------------------------------------------------------------- */

static long set_done;
static void was_set(omni_client *c, int status, const char *result, size_t len, const char *error, void *user) {
        MUST(status == 0, "config.set: %s", error);
        set_done++;
}

static void writers(void) {
        enum { WRITERS = 32, UNDER_WAY = 50 };
        int each = SCALE(1000, 200), sent = 0;
        rig_up(NULL);
        omni_client *clients[WRITERS];
        for (int i = 0; i < WRITERS; i++)
                clients[i] = client_new();
        while (set_done < WRITERS * each) {
                for (; sent < WRITERS * each && sent - set_done < WRITERS * UNDER_WAY; sent++) {
                        char params[128];
                        snprintf(params, sizeof(params), "{\"key\":\"w%d.%d\",\"value\":%d}", sent % WRITERS, sent / WRITERS, sent);
                        int r = omni_call_async(clients[sent % WRITERS], "config.set", params, was_set, NULL);
                        MUST(r == 0, "config.set: %s", omni_strerror(clients[sent % WRITERS]));
                }
                serve_once(1000);
        }
        for (int round = 0; round < 2; round++) {
                json_t *all = at(rpc(rig_client, "config.list", "{s:s}", "prefix", "w"), "config");
                MUST_BE(json_object_size(all), WRITERS * each);
                for (int i = 0; i < WRITERS * each; i++) {
                        char key[64];
                        snprintf(key, sizeof(key), "w%d.%d", i % WRITERS, i / WRITERS);
                        MUST(json_integer_value(json_object_get(all, key)) == i, "%s is %s", key, dump(json_object_get(all, key)));
                }
                json_decref(all);
                if (round == 0)
                        rig_restart();
        }
}

static void one_winner(void) {
        enum { RACERS = 32 };
        rig_up(NULL);
        if (rig_has("dedupe"))
                not_applicable(
                        "no method reaches it on a bus that remembers idempotency keys itself (B32); tests/unit/test_contract_store.c: "
                        "put_if_absent_has_one_winner_among_many");
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        publish_race(t, "raced for", RACERS);
        MUST(UNTIL(w->acked == 1, 10000), "the winner's task is not delivered");
        serve_for(200);
        MUST_BE(w->n, 1);
}

static void health(void) {
        rig_up(NULL);
        json_t *h = rpc(rig_client, "storage.health", NULL);
        MUST(*str(h, "name") && strncmp(str(h, "url"), str(h, "name"), strlen(str(h, "name"))) == 0, "kind: %s", dump(h));
        MUST(strcmp(str(h, "status"), "up") == 0, "status: %s", dump(h));
        MUST(json_is_number(at(h, "latency_ms")) && json_number_value(at(h, "latency_ms")) >= 0, "latency: %s", dump(h));
        MUST(*str(h, "version"), "version: %s", dump(h));
        MUST(strcmp(str(h, "durability"), "strong") == 0 || (strcmp(str(h, "durability"), "weak") == 0 && *str(h, "why")),
                "durability is strong, or weak and why: %s", dump(h));
}

#define EMBEDDED "the storage is inside the daemon: there is no server"
#define CONTRACT "no method reads what was appended (metrics.get is of the running daemon); tests/unit/test_contract_store.c: "

const struct conf_case conf_storage[] = {
        { "S01", "agents: add, replace, get, by topic, all, delete, delete topic counts", agents, 20 },
        { "S02", "unknown keys answer `not_found`, not an error of the server", unknown_keys, 20 },
        { "S03", "result saved, read, newest of two agents, by agent", results, 20 },
        { "S04", "TTL: gone after it, also after a restart, never earlier", time_to_live, 20 },
        { "S05", "list newest first, limit, cursor walks 10,000 without gap or repeat while more are written", walk, 60 },
        { "S06", "delete, clear each, clear all", clearing, 30 },
        { "S07", "settings of every JSON type, overwrite, list by prefix, delete", settings, 20 },
        { "S08", "keys with : / .. % spaces, quotes, emoji, 500 bytes, SQL and regex text", odd_names, 60 },
        { "S09", "values of 0, 1 byte, 10 MiB", sizes, 60 },
        { "S10", "32 writers x 1,000 writes: none lost", writers, 120 },
        { "S11", "`put_if_absent` under 32 racers: one winner", one_winner, 30 },
        { "S15", "metrics append and query by topic, newest first",
                .never = CONTRACT "metrics_are_appended_and_read_newest_first_by_topic" },
        { "S16", "health says kind, latency, version, durability", health, 20 },
        { "S17", "schema upgrade from the previous version",
                .never = "tests/unit/test_postgresql.c: a_schema_of_the_version_before_is_upgraded_with_what_it_holds; "
                         "tests/unit/test_json_store.c opens a "
                         "folder of the Python OmniDaemon" },
        { NULL },
};
