/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The embedded bus against a model: random operations through the contract, and beside them a table that knows for each task and group what
 * must hold. Checked all the time: no task comes that the model has elsewhere, attempts count, order within priority and key, one of a key
 * at a time, repeats of an idempotency key. Checked at rest: every counter of every topic and group, and at the end that all tasks have
 * ended.
 *
 * A death is a copy of the folder that the next open uses, taken between two commits: what a killed daemon would leave. Some commits find
 * the map full, so that turns are undone and applied again.
 *
 * MODEL_SEED=N repeats one run; without it seeds are drawn, and printed, for about MODEL_MS (4000) milliseconds.
 */
#include <check.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../lib/bus_user.h"
#include "../lib/suite.h"

extern const struct om_bus_ops om_local_bus_ops;
extern int (*om_local_commit)(MDB_txn *txn);

enum { TASKS = 1500, TOPICS = 2, GROUPS = 4, KEYS = 3, IDEMS = 6, STEPS = 500, NEAR_MS = 40, LATE_MS = 2000, FULL_MAX = 4 };
enum state { NOT_THERE, WAITS, OUT, RETRIES, DEAD, ENDED };

struct task {
        int topic, key, priority; /* key: 0 for none */
        int64_t expires_ms, due_ms;
        bool orphan; /* waits for a first group */
        struct {
                enum state state;
                bool replayed, met; /* met: was out before, so its order says nothing any more */
                unsigned low, high; /* the attempt that comes next */
        } in[GROUPS];
};
static const char *const topics[TOPICS] = { "m.one", "m.two" };
static struct group {
        const char *topic, *agent;
        bool reads[TOPICS]; /* which topics it would read */
        bool exists, attached[TOPICS];
        struct bus_group *served;
        size_t n_known; /* of what served->got has */
        uint64_t finished, expired;
        int last[TOPICS][10]; /* the newest first delivery by topic and priority */
} groups[GROUPS];
static struct task tasks[TASKS];
static int n_tasks, idems[TOPICS][IDEMS];
static uint64_t published[TOPICS], seed, state_of_chance;
static char folder[64], url[200];
static unsigned n_folders, n_full_left, chance_of_full;
static bool undone; /* under `commits` */
static pthread_mutex_t commits = PTHREAD_MUTEX_INITIALIZER;
static struct bus_user u;

#define SAY(cond, text, ...) ck_assert_msg(cond, "seed %llu: " text, __VA_ARGS__)
#define SEED (unsigned long long) seed

static unsigned draw(unsigned n) { /* splitmix64 */
        uint64_t z = state_of_chance += 0x9e3779b97f4a7c15u;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return (unsigned) ((z ^ z >> 31) >> 32) % n;
}

static int commit(MDB_txn *txn) {
        int r;

        pthread_mutex_lock(&commits);
        if (n_full_left > 0 && chance_of_full++ % 37 == 36) {
                n_full_left--;
                undone = true;
                mdb_txn_abort(txn);
                r = MDB_MAP_FULL;
        } else {
                r = mdb_txn_commit(txn);
        }
        pthread_mutex_unlock(&commits);
        return r;
}

/* -- the folder ---------------------------------------------------------------------------------------------------- */

static void shell(const char *command) { ck_assert_int_eq(system(command), 0); }

static void open_bus(void) {
        snprintf(url, sizeof url, "local:%s/%u?durability=memory", folder, n_folders);
        n_full_left = FULL_MAX;
        ck_assert_msg(bus_open(&u, &om_local_bus_ops, url, folder) == 0, "%s", u.error.message);
}

/* -- the model ----------------------------------------------------------------------------------------------------- */

static bool is_open(enum state s) { return s == WAITS || s == OUT || s == RETRIES; }

static unsigned readers(int topic) {
        unsigned n = 0;

        for (int g = 0; g < GROUPS; g++)
                n += groups[g].exists && groups[g].attached[topic];
        return n;
}

static void enter(int g, int t) {
        tasks[t].in[g].state = WAITS;
        tasks[t].in[g].replayed = tasks[t].in[g].met = false;
        tasks[t].in[g].low = tasks[t].in[g].high = 1;
}

/* A group begins to read a topic: the first one with what waits there, others with what comes. */
static void attach(int g, int topic) {
        bool first = readers(topic) == 0;

        groups[g].attached[topic] = true;
        for (int i = 0; i < 10; i++)
                groups[g].last[topic][i] = -1;
        for (int t = 0; t < n_tasks && first; t++)
                if (tasks[t].topic == topic && tasks[t].orphan) {
                        tasks[t].orphan = false;
                        enter(g, t);
                }
}

static void model_publish(int t) {
        bool anybody = false;

        for (int g = 0; g < GROUPS; g++)
                if (groups[g].exists && groups[g].attached[tasks[t].topic]) {
                        enter(g, t);
                        anybody = true;
                }
        tasks[t].orphan = !anybody;
}

static void note_deliveries(void);

/* Delays are short: who comes or goes does so when none is under way, so that it is clear who gets them. */
static void wait_for_delays(void) {
        int64_t end = om_clock_ms() + 5000;

        for (;;) {
                uint64_t n = 0;

                for (int i = 0; i < TOPICS; i++)
                        n += bus_topic(&u, topics[i]).delayed;
                if (n == 0)
                        break;
                SAY(om_clock_ms() < end, "delayed tasks do not come", SEED);
                bus_run(&u, 10);
        }
        note_deliveries(); /* what was on its way came before the answers */
}

/* Until no time to live is about to be over or has just been. */
static void wait_for_clear_time(void) {
        for (bool near = true; near;) {
                int64_t now = om_now_ms();

                near = false;
                for (int t = 0; t < n_tasks && !near; t++)
                        near = tasks[t].expires_ms > now - NEAR_MS && tasks[t].expires_ms < now + NEAR_MS / 4;
                if (near)
                        bus_run(&u, NEAR_MS / 2);
        }
}

static void model_expire(void) {
        int64_t now = om_now_ms();

        for (int t = 0; t < n_tasks; t++) {
                if (!tasks[t].expires_ms || tasks[t].expires_ms > now)
                        continue;
                tasks[t].orphan = false;
                for (int g = 0; g < GROUPS; g++)
                        if ((tasks[t].in[g].state == WAITS || tasks[t].in[g].state == RETRIES) && !tasks[t].in[g].replayed) {
                                tasks[t].in[g].state = ENDED;
                                groups[g].expired++;
                        }
        }
}

/* -- what is checked ----------------------------------------------------------------------------------------------- */

static void check_delivery(int g, const struct om_delivery *d) {
        int t = bus_content(d), topic = tasks[t].topic;
        int *last = &groups[g].last[topic][tasks[t].priority];

        SAY(tasks[t].in[g].state == WAITS || tasks[t].in[g].state == RETRIES, "task %d came to %d in state %d", SEED, t, g,
                tasks[t].in[g].state);
        SAY(d->attempt >= tasks[t].in[g].low && d->attempt <= tasks[t].in[g].high,
                "task %d (key %d, priority %d) in %d: attempt %u, not %u to %u", SEED, t, tasks[t].key, tasks[t].priority, g, d->attempt,
                tasks[t].in[g].low, tasks[t].in[g].high);
        SAY(tasks[t].in[g].replayed || !tasks[t].expires_ms || om_now_ms() < tasks[t].expires_ms + LATE_MS, "task %d is stale", SEED, t);
        if (!tasks[t].due_ms && !tasks[t].in[g].replayed && !tasks[t].key && !tasks[t].in[g].met) {
                SAY(t > *last, "in %d task %d came after %d", SEED, g, t, *last);
                *last = t;
        }
        for (int o = 0; tasks[t].key && o < n_tasks; o++) {
                bool same = o != t && tasks[o].key == tasks[t].key;

                SAY(!same || tasks[o].in[g].state != OUT, "tasks %d and %d of one key are out in %d", SEED, o, t, g);
                if (same && o < t && tasks[o].topic == topic && tasks[o].priority == tasks[t].priority && !tasks[o].due_ms &&
                        !tasks[t].due_ms && !tasks[o].in[g].replayed && !tasks[t].in[g].replayed && !tasks[o].expires_ms)
                        SAY(!is_open(tasks[o].in[g].state), "in %d task %d came before %d of its key", SEED, g, t, o);
        }
        tasks[t].in[g].state = OUT;
        tasks[t].in[g].met = true;
        tasks[t].in[g].high = d->attempt;
        if (!tasks[t].key) /* one that is counted too much is so in memory only */
                tasks[t].in[g].low = d->attempt;
}

/* A turn that was undone reads again what is below the mark, as after a death: group.c says what that makes of those that waited for their
 * key. */
static void note_undone(void) {
        bool now;

        pthread_mutex_lock(&commits);
        now = undone;
        undone = false;
        pthread_mutex_unlock(&commits);
        for (int t = 0; t < n_tasks && now; t++)
                for (int g = 0; g < GROUPS; g++)
                        if (tasks[t].in[g].state == WAITS && tasks[t].key && tasks[t].in[g].high == 1)
                                tasks[t].in[g].high = 2;
}

static void note_deliveries(void) {
        note_undone();
        for (int g = 0; g < GROUPS; g++)
                while (groups[g].served && groups[g].n_known < groups[g].served->n_got)
                        check_delivery(g, groups[g].served->got[groups[g].n_known++]);
}

static void check_group(int g) {
        struct om_bus_group_row row = bus_group_row(&u, groups[g].topic, groups[g].agent);
        uint64_t n[ENDED + 1] = { 0 };

        for (int t = 0; t < n_tasks; t++)
                n[tasks[t].in[g].state]++;
        SAY(row.leased == n[OUT], "%d has %llu leased, not %llu", SEED, g, (unsigned long long) row.leased, (unsigned long long) n[OUT]);
        SAY(row.lag + row.retrying == n[WAITS] + n[RETRIES], "%d has lag %llu and %llu retrying, not %llu together", SEED, g,
                (unsigned long long) row.lag, (unsigned long long) row.retrying, (unsigned long long) (n[WAITS] + n[RETRIES]));
        SAY(row.retrying <= n[RETRIES], "%d has %llu retrying", SEED, g, (unsigned long long) row.retrying);
        SAY(row.dead == n[DEAD], "%d has %llu dead, not %llu", SEED, g, (unsigned long long) row.dead, (unsigned long long) n[DEAD]);
        SAY(row.finished == groups[g].finished, "%d has %llu finished, not %llu", SEED, g, (unsigned long long) row.finished,
                (unsigned long long) groups[g].finished);
        SAY(row.expired == groups[g].expired, "%d has %llu expired, not %llu", SEED, g, (unsigned long long) row.expired,
                (unsigned long long) groups[g].expired);
}

static void check_at_rest(void) {
        wait_for_delays();
        wait_for_clear_time();
        model_expire();
        for (int g = 0; g < GROUPS; g++)
                if (groups[g].exists)
                        check_group(g);
        for (int i = 0; i < TOPICS; i++) {
                struct om_bus_topic_row row = bus_topic(&u, topics[i]);
                uint64_t depth = 0;

                for (int t = 0; t < n_tasks; t++) {
                        bool needed = tasks[t].orphan;

                        for (int g = 0; g < GROUPS; g++)
                                needed |= is_open(tasks[t].in[g].state) && !tasks[t].in[g].replayed;
                        depth += needed && tasks[t].topic == i;
                }
                SAY(row.depth == depth, "%s holds %llu, not %llu", SEED, topics[i], (unsigned long long) row.depth,
                        (unsigned long long) depth);
                SAY(row.published == published[i], "%s has %llu published", SEED, topics[i], (unsigned long long) row.published);
        }
}

/* -- operations ---------------------------------------------------------------------------------------------------- */

static void op_publish(void) {
        struct task *task = &tasks[n_tasks];
        int topic = (int) draw(TOPICS), idem = draw(4) == 0 ? 1 + (int) draw(IDEMS) : 0, ttl = draw(6) == 0 ? 20 + (int) draw(300) : 0;
        int delay = draw(8) == 0 ? 1 + (int) draw(30) : 0;
        struct om_outcome outcome;
        char json[300], extra[200] = "", id[OM_NAME_MAX + 1];
        int n = 0, before = idem ? idems[topic][idem - 1] : -1;

        if (n_tasks == TASKS)
                return;
        *task = (struct task){ .topic = topic, .key = draw(3) == 0 ? 1 + (int) draw(KEYS) : 0, .priority = draw(4) ? 0 : (int) draw(10) };
        if (task->key)
                n += snprintf(extra + n, sizeof extra - (size_t) n, ",\"key\":\"k%d\"", task->key);
        if (task->priority)
                n += snprintf(extra + n, sizeof extra - (size_t) n, ",\"priority\":%d", task->priority);
        if (ttl)
                n += snprintf(extra + n, sizeof extra - (size_t) n, ",\"ttl_ms\":%d", ttl);
        if (delay)
                n += snprintf(extra + n, sizeof extra - (size_t) n, ",\"delay_ms\":%d", delay);
        if (idem)
                snprintf(extra + n, sizeof extra - (size_t) n, ",\"idempotency_key\":\"i%d\"", idem);
        snprintf(json, sizeof json, "{\"id\":\"id-%d\",\"topic\":\"%s\",\"payload\":{\"content\":%d}%s}", n_tasks, topics[topic], n_tasks,
                extra);
        ck_assert_int_eq(bus_put(&u, json, &outcome), 0);
        SAY(outcome.duplicate == (before >= 0), "task %d: duplicate %d", SEED, n_tasks, outcome.duplicate);
        if (before >= 0) {
                snprintf(id, sizeof id, "id-%d", before);
                ck_assert_str_eq(outcome.id, id);
                return;
        }
        if (idem)
                idems[topic][idem - 1] = n_tasks;
        /* The bus reckoned these a moment ago. */
        task->expires_ms = ttl ? om_now_ms() + ttl : 0;
        task->due_ms = delay ? om_now_ms() + delay : 0;
        published[topic]++;
        model_publish(n_tasks++);
}

static void op_take(int g) {
        bus_take(groups[g].served, 1 + draw(8), draw(4) ? 2 : 15);
        note_deliveries();
}

static void op_settle_range(int g, size_t from, size_t n, enum om_verdict verdict) {
        struct bus_group *b = groups[g].served;
        int64_t now = om_now_ms(), due = now + (int64_t) draw(30);
        int which[64];

        if (n > 64)
                n = 64;
        for (size_t i = 0; i < n; i++)
                which[i] = bus_content(b->got[from + i]);
        ck_assert_int_eq(bus_settle(b, from, n, verdict, due), 0);
        groups[g].n_known -= n;
        for (size_t i = 0; i < n; i++) {
                struct task *t = &tasks[which[i]];

                switch (verdict) {
                case OM_ACK:
                        t->in[g].state = ENDED;
                        groups[g].finished++;
                        break;
                case OM_DEAD:
                        t->in[g].state = DEAD;
                        groups[g].finished++;
                        break;
                case OM_RETRY:
                        t->in[g].low++;
                        t->in[g].high++;
                        t->in[g].state = RETRIES;
                        break;
                case OM_RELEASE:
                        t->in[g].state = WAITS;
                        break;
                }
        }
}

static void op_settle(int g) {
        static const enum om_verdict verdicts[] = { OM_ACK, OM_ACK, OM_ACK, OM_RETRY, OM_RELEASE, OM_DEAD };
        struct bus_group *b = groups[g].served;
        size_t from;

        note_deliveries();
        if (!b->n_got)
                return;
        from = draw((unsigned) b->n_got);
        op_settle_range(g, from, 1 + draw((unsigned) (b->n_got - from)), verdicts[draw(6)]);
}

static void op_letters(int g, enum om_bus_change_type type) {
        struct om_bus_change c = { .type = type, .topic = om_span_of(groups[g].topic), .agent = om_span_of(groups[g].agent) };
        uint64_t n = 0;

        ck_assert_int_eq(bus_change(&u, &c), 0);
        for (int t = 0; t < n_tasks; t++)
                if (tasks[t].in[g].state == DEAD) {
                        n++;
                        enter(g, t);
                        tasks[t].in[g].replayed = true;
                        if (type == OM_CHANGE_PURGE_DEAD)
                                tasks[t].in[g].state = ENDED;
                }
        SAY(c.ret_n == n, "a change of %llu dead letters, not %llu", SEED, (unsigned long long) c.ret_n, (unsigned long long) n);
}

static void op_serve(int g) {
        struct group *group = &groups[g];

        wait_for_delays();
        wait_for_clear_time();
        model_expire();
        group->n_known = 0;
        group->served = bus_serve(&u, group->topic, group->agent, OM_START_DEFAULT, 0);
        SAY(group->served != NULL, "%s", SEED, u.error.message);
        SAY(group->served->created == !group->exists, "created: %d", SEED, group->served->created);
        if (group->exists)
                return;
        for (int i = 0; i < TOPICS; i++)
                if (group->reads[i] && (!strchr(group->topic, '*') || published[i]))
                        attach(g, i);
        /* A pattern reads topics that come later from their first task on. */
        for (int i = 0; i < TOPICS; i++) {
                if (group->reads[i] && !group->attached[i])
                        memset(group->last[i], -1, sizeof group->last[i]);
                group->attached[i] = group->reads[i];
        }
        group->exists = true;
        group->finished = group->expired = 0;
}

/* What is out with a time to live is looked at by the sweep only now and then: settled before. */
static void end_mortals(int g) {
        struct bus_group *b = groups[g].served;

        for (size_t i = b->n_got; i-- > 0;)
                if (tasks[bus_content(b->got[i])].expires_ms)
                        op_settle_range(g, i, 1, OM_ACK);
}

static void come_back(int g, unsigned counted) {
        for (int t = 0; t < n_tasks; t++) {
                if (tasks[t].in[g].state == OUT) {
                        tasks[t].in[g].state = WAITS;
                        tasks[t].in[g].high += counted;
                } else if (tasks[t].in[g].state == WAITS && tasks[t].key && tasks[t].in[g].high == 1 && counted) {
                        tasks[t].in[g].high = 2; /* ready, never out, below the mark: group.c says what a death makes of it */
                }
        }
}

static void op_unserve(int g) {
        wait_for_delays();
        end_mortals(g);
        bus_unserve(groups[g].served);
        groups[g].served = NULL;
        come_back(g, 0);
}

static void op_delete(int g) {
        struct om_bus_change c = { .type = OM_CHANGE_DELETE_GROUP,
                .topic = om_span_of(groups[g].topic),
                .agent = om_span_of(groups[g].agent),
                .delete_dead_letters = draw(2) };

        wait_for_delays();
        if (groups[g].served)
                op_unserve(g);
        ck_assert_int_eq(bus_change(&u, &c), 0);
        groups[g].exists = false;
        memset(groups[g].attached, 0, sizeof groups[g].attached);
        for (int t = 0; t < n_tasks; t++)
                if (is_open(tasks[t].in[g].state) || (c.delete_dead_letters && tasks[t].in[g].state == DEAD))
                        tasks[t].in[g].state = ENDED;
}

static void op_restart(bool death) {
        char command[200];

        wait_for_delays();
        for (int g = 0; g < GROUPS; g++)
                if (groups[g].served && !death)
                        op_unserve(g);
                else if (groups[g].served)
                        end_mortals(g);
        if (death) {
                bus_run(&u, (int) draw(80)); /* before or after the marks are on the disk */
                snprintf(command, sizeof command, "cp -r %s/%u %s/%u", folder, n_folders, folder, n_folders + 1);
                pthread_mutex_lock(&commits);
                shell(command);
                pthread_mutex_unlock(&commits);
                n_folders++;
        }
        bus_close(&u);
        for (int g = 0; g < GROUPS; g++)
                if (groups[g].served) {
                        bus_forget(groups[g].served);
                        groups[g].served = NULL;
                }
        for (int g = 0; g < GROUPS && death; g++)
                come_back(g, 1);
        open_bus();
}

static void step(void) {
        int g = (int) draw(GROUPS);
        struct group *group = &groups[g];
        unsigned what = draw(1000);

        if (what < 350)
                op_publish();
        else if (what < 950 && !group->served)
                op_serve(g);
        else if (what < 620)
                op_take(g);
        else if (what < 890)
                op_settle(g);
        else if (what < 910)
                op_letters(g, OM_CHANGE_REPLAY_DEAD);
        else if (what < 920)
                op_letters(g, OM_CHANGE_PURGE_DEAD);
        else if (what < 950)
                op_unserve(g);
        else if (what < 960 && group->exists)
                op_delete(g);
        else if (what < 968)
                op_restart(false);
        else if (what < 976)
                op_restart(true);
        else if (what < 990)
                check_at_rest();
}

/* Everything ends: what is out is acknowledged until nothing is left. */
static void drain(void) {
        int64_t end = om_clock_ms() + 10000;
        bool open = true;

        while (open) {
                SAY(om_clock_ms() < end, "tasks do not end", SEED);
                open = false;
                for (int g = 0; g < GROUPS; g++) {
                        if (!groups[g].served)
                                op_serve(g);
                        op_take(g);
                        note_deliveries();
                        while (groups[g].served->n_got)
                                op_settle_range(g, 0, groups[g].served->n_got, OM_ACK);
                }
                model_expire();
                for (int t = 0; t < n_tasks; t++)
                        for (int g = 0; g < GROUPS; g++)
                                open |= is_open(tasks[t].in[g].state);
        }
        check_at_rest();
        for (int i = 0; i < TOPICS; i++)
                ck_assert_uint_eq(bus_topic(&u, topics[i]).depth, 0);
}

static void run(uint64_t with) {
        char command[100];

        seed = state_of_chance = with;
        printf("local_bus_model: MODEL_SEED=%llu\n", SEED);
        fflush(stdout);
        strcpy(folder, "/tmp/omni-test-local-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        memset(tasks, 0, sizeof tasks);
        memset(idems, -1, sizeof idems);
        memset(published, 0, sizeof published);
        n_tasks = 0;
        n_folders = 0;
        groups[0] = (struct group){ .topic = topics[0], .agent = "a", .reads = { true, false } };
        groups[1] = (struct group){ .topic = topics[0], .agent = "b", .reads = { true, false } };
        groups[2] = (struct group){ .topic = topics[1], .agent = "a", .reads = { false, true } };
        groups[3] = (struct group){ .topic = "m.*", .agent = "p", .reads = { true, true } };
        open_bus();
        for (int i = 0; i < STEPS; i++) {
                if (getenv("MODEL_TRACE"))
                        printf("step %d, %d tasks\n", i, n_tasks);
                step();
        }
        drain();
        for (int g = 0; g < GROUPS; g++)
                bus_unserve(groups[g].served);
        bus_close(&u);
        snprintf(command, sizeof command, "rm -rf %s", folder);
        shell(command);
}

START_TEST(test_random_operations_agree_with_the_model) {
        const char *one = getenv("MODEL_SEED"), *ms = getenv("MODEL_MS");
        int64_t end = om_clock_ms() + (ms ? atoi(ms) : 4000);

        om_local_commit = commit;
        if (one) {
                run(strtoull(one, NULL, 10));
                return;
        }
        do
                run(om_random_u64() >> 16);
        while (om_clock_ms() < end);
}
END_TEST

int main(void) {
        Suite *s = suite_create("local_bus_model");
        TCase *t = tcase_create("model");

        suite_add_tcase(s, t);
        tcase_set_timeout(t, 600);
        tcase_add_test(t, test_random_operations_agree_with_the_model);
        return om_test_main(s);
}
