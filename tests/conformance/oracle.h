/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CONFORMANCE_ORACLE_H
#define CONFORMANCE_ORACLE_H
/*
 * Who says what was lost. Producers and agents are processes of their own that write down, outside the daemon, what they attempted, what
 * was acknowledged to them, and what they handled; a third one compares the records when all is over: lost      acknowledged to the
 * producer and handled by nobody early     deliveries beyond the first, which the faults must explain unknown   handled, and never
 * attempted by a producer
 */
#include "rig.h"

struct oracle {
        char *topic, *agent;      /* of all its producers and agents */
        char *attempts, *handled; /* the records: files that all of a kind append to */
        struct oracle_progress *progress;
        pid_t pids[16];
        unsigned n_pids;
};
struct oracle_progress { /* shared with the processes; only for waiting: verdicts come from the records */
        volatile long acknowledged, handled;
};
struct oracle *oracle_new(const char *topic, const char *agent);

/* Publishes n tasks, at most `window` of them unanswered at a time; what the daemon refuses is published again, with the same id. */
pid_t oracle_producer(struct oracle *o, int n, int window);
/* Serves until SIGTERM, through any number of restarts; works for `work_ms` on each task, one after another. With `output` each ack
 * publishes a task with the same content there. */
pid_t oracle_agent(struct oracle *o, int prefetch, int work_ms, const char *output);
void oracle_end(struct oracle *o, pid_t pid);  /* SIGTERM; it must end well */
void oracle_kill(struct oracle *o, pid_t pid); /* SIGKILL */
/* Serves the case's own clients until the producer has ended, well. */
void oracle_wait(struct oracle *o, pid_t producer, double ms);
/* Waits until the group has nothing left, as long as it gets less within `ms`, and ends the agents. */
void oracle_settle(struct oracle *o, double ms);

struct oracle_verdict {
        long attempted, acknowledged, deliveries, handled, lost, early, unknown;
        char first_lost[OMNI_ID_SIZE];
};
struct oracle_verdict oracle_check(const struct oracle *o);

#endif
