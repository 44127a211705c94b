/* SPDX-License-Identifier: Apache-2.0 */
/* Deaths, of the daemon and of agents, and orderly stops. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "oracle.h"

/* While a broker is away, other calls than publishing have this long. */
#define AWAY_CALL_MS 2000
#define AWAY_CALL_TIMEOUT "CALL_TIMEOUT=2s"

/* -- dead letters ------------------------------------------------------------------------------------------------------------------------
 */

/* Marks which of the contents 0 … n-1 are held by the topic, and which are dead. */
static void where_they_are(const char *t, unsigned char *held, unsigned char *dead, int n) {
        char *cursor = NULL;
        json_t *e;
        size_t i;
        memset(held, 0, (size_t) n);
        memset(dead, 0, (size_t) n);
        do {
                json_t *page = rpc(rig_client, "bus.inspect", "{s:s,s:i,s:s*}", "topic", t, "limit", 1000, "cursor", cursor);
                json_array_foreach(at(page, "entries"), i, e) held[num(e, "task.payload.content")]++;
                cursor = at(page, "cursor") ? rig_text("%s", str(page, "cursor")) : NULL;
        } while (cursor);
        json_t *letters = dead_letters(t, "a");
        json_array_foreach(letters, i, e) dead[num(e, "task.payload.content")]++;
}

static int missing_among(const unsigned char *count, int n) {
        int missing = 0;
        for (int i = 0; i < n; i++)
                missing += !count[i];
        return missing;
}

static void killed_while_moving(void) {
        enum { EACH = 60, ROUNDS_MAX = 50, PREFETCH = 3 };
        static unsigned char held[EACH * ROUNDS_MAX], dead[EACH * ROUNDS_MAX];
        int rounds = SCALE(ROUNDS_MAX, 16), between = 0;
        rig_up(NULL);
        const char *t = topic("t");
        omni_agent_options o = agent_options(t, "a");
        o.prefetch = PREFETCH;
        o.dlq_retry_limit = 1000;
        struct worker *w = serve_with(&o, act_fail_for_good);
        for (int round = 0; round < rounds; round++) {
                int n = (round + 1) * EACH;
                publish_numbers(t, n - EACH, EACH);
                size_t target = w->n + 1 + any(EACH);
                MUST(UNTIL(w->n >= target, 10000), "%zu of %zu are delivered", w->n, target);
                om_test_daemon_kill9(rig_daemon);
                om_test_daemon_up(rig_daemon);
                where_they_are(t, held, dead, n);
                int died = 0;
                for (int i = 0; i < n; i++) {
                        MUST(held[i] || dead[i], "task %d is in neither place after kill %d", i, round + 1);
                        died += dead[i] > 0;
                }
                between += died > n - EACH && died < n;
        }
        MUST(UNTIL_SLOWLY(group_n(t, "a", "dead") >= rounds * EACH, 20000), "%lld of %d dead in the end",
                (long long) group_n(t, "a", "dead"), rounds * EACH);
        /* One that died twice makes up in number for one that is between the two places as long as it is looked at. */
        MUST(UNTIL_SLOWLY((where_they_are(t, held, dead, rounds * EACH), missing_among(dead, rounds * EACH) == 0), 20000),
                "%d are not dead in the end", missing_among(dead, rounds * EACH));
        MUST(UNTIL_SLOWLY(group_n(t, "a", "leased") + group_n(t, "a", "lag") == 0, 20000), "not at rest in the end");
        where_they_are(t, held, dead, rounds * EACH);
        for (int i = 0; i < rounds * EACH; i++)
                MUST(dead[i] == 1 || (dead[i] > 1 && !rig_has("exactly_once")), "task %d is %d times in the dead letters", i, dead[i]);
        printf("%d of %d kills were amid a move\n", between, rounds);
}

/* -- none lost
 * ------------------------------------------------------------------------------------------------------------------------------- */

static struct oracle_verdict verdict(struct oracle *o, long n) {
        struct oracle_verdict v = oracle_check(o);
        printf("attempted %ld, acknowledged %ld, deliveries %ld, handled %ld, lost %ld, early %ld, unknown %ld\n", v.attempted,
                v.acknowledged, v.deliveries, v.handled, v.lost, v.early, v.unknown);
        MUST(v.lost == 0, "%ld acknowledged tasks were never handled, %s first", v.lost, v.first_lost);
        MUST_BE(v.attempted, n);
        MUST_BE(v.acknowledged, n);
        MUST_BE(v.unknown, 0);
        return v;
}

/* Who is killed, and is there again when it returns. */
static void kill_daemon(struct om_test_server *none) {
        om_test_daemon_kill9(rig_daemon);
        om_test_daemon_up(rig_daemon);
}

static void kill_broker(struct om_test_server *broker) {
        om_test_server_do(broker, "kill");
        om_test_server_do(broker, "up");
}

static void killed_while_publishing(void (*kill_it)(struct om_test_server *), struct om_test_server *broker) {
        enum { WINDOW = 200, PREFETCH = 20, AGENTS = 2 };
        int n = SCALE(20000, 5000), kills = SCALE(10, 4);
        rig_up(NULL);
        struct oracle *o = oracle_new(topic("t"), "a");
        for (int i = 0; i < AGENTS; i++)
                oracle_agent(o, PREFETCH, 0, NULL);
        pid_t producer = oracle_producer(o, n, WINDOW);
        for (int i = 1; i <= kills; i++) {
                long when = (long) n * i / (kills + 1) + any(100);
                while (o->progress->acknowledged < when)
                        serve_for(1);
                kill_it(broker);
        }
        oracle_wait(o, producer, 60000);
        oracle_settle(o, 60000);
        struct oracle_verdict v = verdict(o, n);
        long window = WINDOW + AGENTS * PREFETCH;
        MUST(v.early <= window * kills, "%ld early deliveries, %d kills explain %ld", v.early, kills, window * kills);
}

static void daemon_killed_while_publishing(void) { killed_while_publishing(kill_daemon, NULL); }

static void broker_killed_while_publishing(void) { killed_while_publishing(kill_broker, rig_own_server(CONF_BUS)); }

/* -- the broker is away
 * ------------------------------------------------------------------------------------------------------------------------------ */

static int publish_one(const char *t) {
        json_t *none;
        return rpc_try(rig_client, &none, "task.publish", "{s:{s:s,s:{s:s}}}", "task", "topic", t, "payload", "content", "x");
}

/* Publishes fail within a second, and every other call by its deadline, for so long. */
static void must_be_away(const char *t, double ms) {
        static const char *const questions[] = { "bus.stats", "bus.topics", "bus.groups", "health" };
        double until = now_ms() + ms;
        do {
                double start = now_ms();
                int r = publish_one(t);
                MUST(r == -EAGAIN, "a publish is answered with %s: %s", strerror(-r), omni_strerror(rig_client));
                MUST(now_ms() - start < 1000, "it failed after %.0f ms only", now_ms() - start);
                for (size_t i = 0; i < sizeof(questions) / sizeof(*questions); i++) {
                        json_t *none;
                        start = now_ms();
                        rpc_try(rig_client, &none, questions[i], NULL);
                        MUST(now_ms() - start < AWAY_CALL_MS + 1000, "%s hung for %.0f ms", questions[i], now_ms() - start);
                }
                serve_for(50);
        } while (now_ms() < until);
}

static void must_resume(const char *t, struct worker *w, const char *u, int held) {
        double back = now_ms();
        long before = w->acked;
        MUST(UNTIL_SLOWLY(publish_one(t) == 0, 5000), "no publish succeeds 5 s after it came back: %s", omni_strerror(rig_client));
        MUST(UNTIL(w->acked > before, back + 5000 - now_ms()), "nothing is delivered 5 s after it came back");
        printf("delivered again %.0f ms after it came back\n", now_ms() - back);
        struct worker *late = serve(u, "late", act_ack);
        MUST(UNTIL(late->acked >= held, 10000), "%ld of %d that waited meanwhile", late->acked, held);
        worker_close(late);
}

static void broker_away(const char *leave, const char *come_back, double ms) {
        enum { HELD = 50 };
        struct om_test_server *broker = rig_own_server(CONF_BUS);
        rig_up((const char *const[]){ AWAY_CALL_TIMEOUT, NULL });
        const char *t = topic("t"), *u = topic("u");
        struct worker *w = serve(t, "a", act_ack);
        publish(t, "1");
        publish_numbers(u, 0, HELD);
        MUST(UNTIL(w->acked == 1, 10000), "not delivered");
        om_test_server_do(broker, leave);
        must_be_away(t, ms);
        om_test_server_do(broker, come_back);
        must_resume(t, w, u, HELD);
        om_test_daemon_restart(rig_daemon);
}

/* One of the system's faults, "kill 1;up 1": its commands one after the other. While it lasts a publish is answered within a second,
 * whatever the answer; when it is over a publish succeeds and is delivered within five. */
static void suffer(struct om_test_server *broker, const char *fault, const char *probe, struct worker *w) {
        char *commands = rig_text("%s", fault), *next = commands, *command;
        while ((command = strsep(&next, ";"))) {
                om_test_server_do(broker, command);
                if (!next)
                        break;
                for (double until = now_ms() + 1000; now_ms() < until; serve_for(20)) {
                        double start = now_ms();
                        publish_one(probe);
                        MUST(now_ms() - start < 1000, "%s: a publish was answered after %.0f ms", command, now_ms() - start);
                }
        }
        double back = now_ms();
        MUST(UNTIL_SLOWLY(publish_one(probe) == 0, 5000), "\"%s\": no publish succeeds 5 s after it: %s", fault, omni_strerror(rig_client));
        long before = w->acked; /* the first one may be among them, and the next be refused once more */
        MUST(UNTIL_SLOWLY(publish_one(probe) == 0, back + 5000 - now_ms()), "\"%s\": only one publish succeeds within 5 s after it: %s",
                fault, omni_strerror(rig_client));
        MUST(UNTIL(w->acked > before, back + 5000 - now_ms()), "\"%s\": nothing is delivered 5 s after it", fault);
        printf("\"%s\": delivered again after %.0f ms\n", fault, now_ms() - back);
}

static void faults_in_mid_stream(void) {
        enum { WINDOW = 200, PREFETCH = 20, AGENTS = 2 };
        struct om_test_server *broker = rig_own_server(CONF_BUS);
        size_t kinds = 0;
        while (om_test_server_nth(broker, "fault", kinds))
                kinds++;
        MUST(kinds > 0, "its script names no faults");
        int n = SCALE(100000, 8000), rounds = SCALE(20, (int) kinds);
        rig_up((const char *const[]){ AWAY_CALL_TIMEOUT, NULL });
        const char *probe = topic("probe");
        /* A broker that has just started may take longer than that over its first topic. */
        MUST(UNTIL_SLOWLY(publish_one(probe) == 0, 20000), "nothing can be published: %s", omni_strerror(rig_client));
        struct oracle *o = oracle_new(topic("t"), "a");
        for (int i = 0; i < AGENTS; i++)
                oracle_agent(o, PREFETCH, 0, NULL);
        pid_t producer = oracle_producer(o, n, WINDOW);
        struct worker *w = serve(probe, "prober", act_ack);
        for (int i = 1; i <= rounds; i++) {
                while (o->progress->acknowledged < (long) n * i / (rounds + 1))
                        serve_for(1);
                suffer(broker, om_test_server_nth(broker, "fault", (size_t) (i - 1) % kinds), probe, w);
        }
        oracle_wait(o, producer, 120000);
        oracle_settle(o, 60000);
        struct oracle_verdict v = verdict(o, n);
        long window = WINDOW + AGENTS * PREFETCH;
        /* One that takes over and has not heard of the last acknowledgements gives those tasks again: how many no window bounds. */
        MUST(om_test_server_value(broker, "acks") || v.early <= window * rounds, "%ld early deliveries, %d faults explain %ld", v.early,
                rounds, window * rounds);
}

static void broker_gone(void) { broker_away("down", "up", SCALE(10000, 1500)); }

static void broker_silent(void) { broker_away("pause", "resume", SCALE(10000, 3000)); }

/* -- settings that cannot work
 * ------------------------------------------------------------------------------------------------------------------------------ */

static void wrong_bus_settings(void) { wrong_settings(CONF_BUS); }

/* -- exactly once
 * ------------------------------------------------------------------------------------------------------------------------------ */

static void count_outputs(const char *out, unsigned char *count, int n) {
        char *cursor = NULL;
        json_t *e;
        size_t i;
        memset(count, 0, (size_t) n);
        do {
                json_t *page = rpc(rig_client, "bus.inspect", "{s:s,s:i,s:s*}", "topic", out, "limit", 1000, "cursor", cursor);
                json_array_foreach(at(page, "entries"), i, e) {
                        int64_t number = num(e, "task.payload.content");
                        MUST(number >= 0 && number < n && count[number] < 255, "an output nobody asked for: %s", dump(e));
                        count[number]++;
                }
                cursor = at(page, "cursor") ? rig_text("%s", str(page, "cursor")) : NULL;
        } while (cursor);
}

/* Kills the agent and the daemon in turns, a random moment after work was there: between handling and ack as often as not. */
static void exactly_once(void) {
        enum { EACH = 100, KILLS_MAX = 50 };
        static unsigned char count[EACH * (KILLS_MAX + 1)];
        int kills = SCALE(KILLS_MAX, 20);
        rig_up(NULL);
        const char *t = topic("t"), *out = topic("out");
        struct oracle *o = oracle_new(t, "a");
        pid_t agent = oracle_agent(o, 10, 1, out);
        for (int i = 0; i < kills; i++) {
                publish_numbers(t, i * EACH, EACH);
                long before = o->progress->handled;
                while (o->progress->handled == before)
                        serve_for(1);
                serve_for(any(60));
                if (i % 2) {
                        oracle_kill(o, agent);
                        agent = oracle_agent(o, 10, 1, out);
                } else {
                        om_test_daemon_kill9(rig_daemon);
                        om_test_daemon_up(rig_daemon);
                }
        }
        publish_numbers(t, kills * EACH, EACH);
        oracle_settle(o, 60000);
        int n = (kills + 1) * EACH;
        count_outputs(out, count, n);
        for (int i = 0; i < n; i++)
                MUST(count[i] == 1, "the output of task %d is there %d times", i, count[i]);
        printf("%ld deliveries of %d tasks\n", o->progress->handled, n);
}

/* -- an orderly stop
 * ------------------------------------------------------------------------------------------------------------------------------ */

static void graceful_stop(void) {
        enum { WINDOW = 32, PREFETCH = 10, HELD = 3, GRACE = 1500 };
        int n = SCALE(5000, 1500);
        rig_up((const char *const[]){ rig_text("STOP_GRACE=%dms", GRACE), NULL });
        struct oracle *o = oracle_new(topic("t"), "a");
        const char *u = topic("u");
        struct worker *never = serve(u, "never", act_hold);
        publish_numbers(u, 0, HELD);
        MUST(UNTIL(never->n == HELD, 10000), "not delivered");
        oracle_agent(o, PREFETCH, 1, NULL);
        pid_t producer = oracle_producer(o, n, WINDOW);
        while (o->progress->handled < n / 4)
                serve_for(1);
        double start = now_ms();
        om_test_daemon_down(rig_daemon); /* its exit status must be 0 */
        double took = now_ms() - start;
        MUST(took < GRACE + 1000, "it stopped after %.0f ms; the grace is %d", took, GRACE);
        om_test_daemon_up(rig_daemon);
        MUST(UNTIL(never->n == 2 * HELD, 10000), "what was handed back does not come again: %zu deliveries", never->n);
        for (int i = 0; i < HELD; i++)
                MUST_BE(never->seen[HELD + i].attempt, 1);
        oracle_wait(o, producer, 60000);
        oracle_settle(o, 60000);
        struct oracle_verdict v = verdict(o, n);
        MUST(v.early == 0, "%ld tasks were handled twice although their worker was finishing them within the grace", v.early);
}

/* -- several daemons
 * -------------------------------------------------------------------------------------------------------------------------------- */

static void one_of_two_daemons_dies(void) {
        enum { IDLE = 2000, HELD = 10 };
        char *settings[] = { rig_text("RECLAIM_IDLE=%dms", IDLE), NULL };
        rig_up((const char *const *) settings);
        const char *t = topic("t");
        char *url = rig_text("EVENT_BUS_URL=%s", rig_url(conf_run.bus_url));
        struct om_test_daemon *second = om_test_daemon_start(NULL, NULL, (const char *const[]){ url, settings[0], NULL });
        omni_agent_options o = agent_options(t, "a");
        struct worker *dying = serve_with(&o, act_hold);
        publish_numbers(t, 0, HELD);
        MUST(UNTIL(dying->n == HELD, 10000), "not delivered");
        struct worker *heir = serve_on(client_to(second), &o, act_ack);
        /* Where the end of a daemon's connection tells the broker that it died, nobody has to wait. */
        bool at_once = strstr(dump(rpc(rig_client, "health", NULL)), "\"takeover\": \"connection\"") ||
                strstr(dump(rpc(rig_client, "health", NULL)), "\"takeover\":\"connection\"");
        om_test_daemon_kill9(rig_daemon);
        worker_close(dying);
        double killed = now_ms();
        MUST(UNTIL(heir->acked == HELD, 5 * IDLE), "the other daemon's worker has %ld of %d", heir->acked, HELD);
        for (int i = 0; i < HELD; i++) {
                MUST(at_once || heir->seen[i].at_ms - killed > IDLE / 2.0, "taken over after %.0f ms, before its time",
                        heir->seen[i].at_ms - killed);
                MUST_BE(heir->seen[i].attempt, 2);
        }
        om_test_daemon_stop(second);
        om_test_daemon_up(rig_daemon);
}

#define NO_BROKER "the bus is inside the daemon: there is no broker that could go away"

const struct conf_case conf_bus_fault[] = {
        { "B12", "kill -9 during the move to the DLQ: never in neither place", killed_while_moving, 60 },
        { "B17", "two daemons on one bus: kill -9 one with tasks leased; the other delivers, attempts counted", one_of_two_daemons_dies, 60,
                .embedded = "the bus is inside the daemon: one daemon a folder, a lock enforces it" },
        { "B18", "kill -9 the daemon during 20,000 publishes, ten times: none lost; early within the window",
                daemon_killed_while_publishing, 90 },
        { "B19", "kill -9 the broker during 20,000 publishes, ten times: none lost; early within the window",
                broker_killed_while_publishing, 90, .embedded = NO_BROKER },
        { "B20", "broker gone: `unavailable` within 1 s; back: delivery within 5 s", broker_gone, 60, .embedded = NO_BROKER },
        { "B21", "broker stopped (SIGSTOP) 10 s: as B20, and no call hangs past its deadline", broker_silent, 60, .embedded = NO_BROKER },
        { "B34", "exactly once: kill -9 between handling and ack, x50: each output exactly once", exactly_once, 90, "exactly_once" },
        { "B40", "graceful stop: in-flight finished or handed back within the grace, nothing lost", graceful_stop, 60 },
        { "B42", "killed, restarted, frozen, failed over 20 times amid 100,000 tasks: none lost; goes on within 5 s", faults_in_mid_stream,
                120, .embedded = NO_BROKER },
        { "B41", "wrong password, database, certificate …: the setting to mend is named, and nothing hangs", wrong_bus_settings, 60,
                .embedded = "the bus is inside the daemon: it has no password, database or certificate" },
        { NULL },
};
