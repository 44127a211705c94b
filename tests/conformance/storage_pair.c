/* SPDX-License-Identifier: Apache-2.0 */
/* Two storages behind one daemon: a folder of JSON, and beside it the one under test. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

enum { KEYS = 50, FOLLOW_MS = 120000 };

static int values[KEYS]; /* the newest of each key that was acknowledged */
static int n_written;

/* The one under test, whose URL the daemon is given beside its own. */
static const char *second_url(void) {
        const char *url = rig_url(conf_run.storage_url);
        return strncmp(url, "json:", 5) == 0 ? rig_text("json:%s/second", conf_run.folder) : url;
}

static void write_one(void) {
        int key = n_written % KEYS;
        rpc(rig_client, "config.set", "{s:s,s:i}", "key", rig_text("k%d", key), "value", ++n_written);
        values[key] = n_written;
}

static void write_some(int n) {
        while (n-- > 0)
                write_one();
}

static void must_have_all(const char *when) {
        json_t *all = at(rpc(rig_client, "config.list", "{s:s}", "prefix", "k"), "config");
        for (int i = 0; i < KEYS && i < n_written; i++)
                MUST(json_integer_value(json_object_get(all, rig_text("k%d", i))) == values[i], "%s: k%d is %s, must be %d", when, i,
                        dump(json_object_get(all, rig_text("k%d", i))), values[i]);
}

/* Results of so many tasks. */
static void work(const char *t, int from, int n) {
        struct worker *w = serve(t, "a", act_ack);
        publish_numbers(t, from, n);
        MUST(UNTIL(w->acked == n, 60000), "%ld of %d are handled", w->acked, n);
        worker_close(w);
}

static int results_of(const char *t) {
        char *cursor = NULL;
        size_t n = 0;
        do {
                json_t *page = rpc(rig_client, "task.list", "{s:s,s:i,s:s*}", "topic", t, "limit", 1000, "cursor", cursor);
                n += json_array_size(at(page, "tasks"));
                cursor = at(page, "cursor") ? rig_text("%s", str(page, "cursor")) : NULL;
        } while (cursor);
        return (int) n;
}

/* -- the move ----------------------------------------------------------------------------------------------------------------------- */

static bool in_sync(json_t *s) {
        const char *name, *state;
        json_t *kind;
        if (strcmp(str(s, "phase"), "check") == 0 || strcmp(str(s, "phase"), "copy") == 0 || num(s, "queued"))
                return false;
        json_object_foreach(at(s, "kinds"), name, kind) {
                state = str(kind, "state");
                if (strcmp(state, "copied") != 0 && strcmp(state, "follows") != 0)
                        return false;
        }
        return true;
}

static bool verified(json_t *s) { return at(s, "verify") && !json_is_true(at(s, "verify.running")); }
static bool switched(json_t *s) { return !json_is_true(at(s, "switching")); }

/* The status as soon as it is so: the daemon tells. */
static json_t *follow(bool (*so)(json_t *), const char *what) {
        json_t *s = rpc(rig_client, "storage.status", NULL);
        double until = now_ms() + FOLLOW_MS;
        while (!so(s)) {
                MUST(now_ms() < until, "%s: %s", what, dump(s));
                s = rpc(rig_client, "storage.status", "{s:I,s:i}", "seen", (json_int_t) num(s, "revision"), "wait_ms", 2000);
        }
        return s;
}

static void must_differ_in(int64_t n, const char *when) {
        rpc(rig_client, "storage.verify", NULL);
        json_t *v = at(follow(verified, "it is still comparing"), "verify");
        MUST(!at(v, "error"), "verify: %s", dump(v));
        MUST(num(v, "differences") == n, "%s they differ in %s, must in %lld", when, dump(v), (long long) n);
}

static bool phase_is(const char *phase) { return strcmp(str(rpc(rig_client, "storage.status", NULL), "phase"), phase) == 0; }

static void switch_to(const char *phase) {
        for (int i = 0; i < 20 && !phase_is(phase); i++) { /* it says so where the other one is behind at that moment */
                json_t *none;
                rpc_try(rig_client, &none, "storage.switch", NULL);
                follow(switched, "it does not switch");
                write_one();
        }
        MUST(phase_is(phase), "it is not switched: %s", dump(rpc(rig_client, "storage.status", NULL)));
}

/* Killed on the way, and what is written meanwhile is there too. */
static void moves(const char *second, const char *t, int n_results) {
        int kills = SCALE(10, 3), more = 0;
        rpc(rig_client, "storage.migrate", "{s:s}", "to", second);
        for (int i = 0; i < kills; i++) {
                double until = now_ms() + any(250);
                do
                        write_one();
                while (now_ms() < until);
                om_test_daemon_kill9(rig_daemon);
                rig_again();
                work(t, n_results + more, 5);
                more += 5;
        }
        if (phase_is("none")) /* it died before the beginning was durable */
                rpc(rig_client, "storage.migrate", "{s:s}", "to", second);
        follow(in_sync, "the two are not equal");
        must_differ_in(0, "copied:");
        switch_to("read");
        write_some(KEYS);
        must_have_all("read from the new one");
        switch_to("primary");
        write_some(KEYS);
        follow(in_sync, "the old one is behind");
        must_differ_in(0, "switched:");
        switch_to("none");
        write_some(KEYS);
        rig_down();
        conf_run.storage_url = second;
        rig_up(NULL);
        must_have_all("on the new one alone");
        MUST_BE(results_of(t), n_results + more);
        rig_down();
}

/* -- the backup --------------------------------------------------------------------------------------------------------------------- */

static int64_t queued(void) { return num(rpc(rig_client, "storage.status", NULL), "queued"); }

static void misses_nothing(struct om_test_server *server) {
        om_test_server_do(server, "kill");
        double start = now_ms();
        write_some(KEYS);
        MUST(now_ms() - start < 10000, "%d writes took %.0f ms while the backup was away", KEYS, now_ms() - start);
        MUST(UNTIL_SLOWLY(queued() >= KEYS, 10000), "only %lld writes are remembered for the backup", (long long) queued());
        must_have_all("the backup is away");
        om_test_daemon_kill9(rig_daemon);
        rig_again();
        om_test_server_do(server, "up");
        follow(in_sync, "the backup has not caught up");
        must_differ_in(0, "filled:");
}

/* Somebody else writes into the second one: beside us, or where that is a folder while we are away; but then what we wrote of late may be
 * made good before anybody compares. How many differences there are then. */
static int spoil(const char *second) {
        bool folder = strncmp(second, "json:", 5) == 0;
        if (folder)
                om_test_daemon_down(rig_daemon);
        struct om_test_daemon *d = om_test_daemon_start(NULL, NULL, (const char *const[]){ rig_text("STORAGE_URL=%s", second), NULL });
        omni_client *c = client_to(d);
        rpc(c, "config.set", "{s:s,s:i}", "key", "kept by nobody", "value", 1);
        if (!folder) {
                rpc(c, "config.set", "{s:s,s:s}", "key", "k1", "value", "spoilt");
                rpc(c, "config.delete", "{s:s}", "key", "k2");
        }
        client_close(c);
        om_test_daemon_stop(d);
        if (folder) {
                rig_again();
                MUST(UNTIL_SLOWLY(strcmp(str(json_array_get(at(rpc(rig_client, "storage.health", NULL), "parts"), 1), "status"), "up") == 0,
                             10000),
                        "the backup is not up again");
        }
        return folder ? 1 : 3;
}

static void two_storages(void) {
        int n = SCALE(2000, 200);
        struct om_test_server *server = conf_run.storage->system ? rig_own_server(CONF_STORAGE) : NULL;
        const char *second = second_url(), *t = topic("t");
        conf_run.storage_url = "json:first";
        rig_up((const char *const[]){ rig_text("STORAGE_COPY_RATE=%d", n), "METRICS_INTERVAL=1s", NULL });
        work(t, 0, n);
        write_some(2 * KEYS);
        moves(second, t, n);
        conf_run.storage_url = "json:third";
        rig_up((const char *const[]){ rig_text("STORAGE_BACKUP_URL=%s", second), "STORAGE_COPY_RATE=0", NULL });
        write_some(KEYS);
        rpc(rig_client, "storage.migrate", "{s:b}", "replace", 1);
        follow(in_sync, "the backup is not filled");
        must_differ_in(0, "caught up:");
        if (server)
                misses_nothing(server);
        must_differ_in(spoil(second), "spoilt:");
        must_have_all("the backup was spoilt");
}

/* -- each in its own ---------------------------------------------------------------------------------------------------------------- */

static void hybrid(void) {
        enum { N = 100 };
        const char *second = second_url(), *t = topic("t");
        conf_run.storage_url = "json:first";
        rig_up((const char *const[]){ rig_text("RESULT_STORAGE_URL=%s", second), NULL });
        work(t, 0, N);
        write_some(KEYS);
        for (int round = 0; round < 2; round++) {
                json_t *h = rpc(rig_client, "storage.health", NULL), *parts = at(h, "parts");
                MUST(num(json_array_get(parts, 0), "results") == 0 && num(json_array_get(parts, 1), "results") == N,
                        "the results are not in the second one alone: %s", dump(h));
                MUST(num(json_array_get(parts, 0), "config") >= KEYS && num(json_array_get(parts, 0), "agents") == 1,
                        "the rest is not in the first one: %s", dump(h));
                must_have_all("each in its own");
                MUST_BE(results_of(t), N);
                rig_restart();
        }
        rig_down();
        conf_run.storage_url = second;
        rig_up(NULL);
        MUST_BE(results_of(t), N);
        MUST_BE(json_object_size(at(rpc(rig_client, "config.list", "{s:s}", "prefix", "k"), "config")), 0);
}

const struct conf_case conf_storage_pair[] = {
        { "S18", "dual write: both have all; catches up; verify, migrate killed and resumed, switch", two_storages, 120 },
        { "S19", "hybrid: results in one, the rest in another", hybrid, 30 },
        { NULL },
};
