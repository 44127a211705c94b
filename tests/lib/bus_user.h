/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_BUS_USER_H
#define OM_BUS_USER_H
/*
 * Drives a bus through its contract, one call at a time: each function submits, runs the loop until the completion, and returns its status.
 * For tests of backends. Fails the test (Check) where the contract itself is broken: a completion before the call returns, or twice.
 */
#include "../../backends/bus.h"
#include "../../daemon/loop.h"

struct bus_user {
        struct om_loop *loop;
        struct om_host *host;
        const struct om_bus_ops *ops;
        struct om_bus *bus;
        enum om_bus_state state;
        unsigned n_failed; /* how often OM_BUS_FAILED was told */
        struct om_error error;
};
struct bus_group {
        struct bus_user *u;
        struct om_bus_sub *sub;
        bool created;
        struct om_delivery **got; /* oldest first; bus_settle() takes from it */
        size_t n_got, cap;
        unsigned n_ever, n_revoked, n_expired;
};

/* Opens by URL; 0 once ready, or the refusal with u->error. `state_dir` for URLs without a folder. */
int bus_open(struct bus_user *u, const struct om_bus_ops *ops, const char *url, const char *state_dir);
void bus_close(struct bus_user *u);

/* One task as JSON, {"topic":…,"payload":{"content":…},…}; its outcome's status. */
int bus_put(struct bus_user *u, const char *task, struct om_outcome *ret);
/* A batch: contents from, from + 1, … The worst of the outcomes. */
int bus_put_many(struct bus_user *u, const char *topic, int from, int n);

/* NULL with u->error when refused. */
struct bus_group *bus_serve(struct bus_user *u, const char *topic, const char *agent, enum om_start start, int64_t start_ms);
void bus_unserve(struct bus_group *g); /* the bus is run until it has let go; frees g */
void bus_forget(struct bus_group *g);  /* frees g, when its bus was closed under it */
/* Wants n more and waits until that many came or `ms` are over. How many did. */
size_t bus_take(struct bus_group *g, unsigned n, int ms);
int bus_content(const struct om_delivery *d); /* the number that is the task's content */
/* Settles g->got[i] for i in [from, from + n) and takes them out. The worst status. */
int bus_settle(struct bus_group *g, size_t from, size_t n, enum om_verdict verdict, int64_t due_ms);
int bus_ack_publishing(struct bus_group *g, size_t at, const char *const *tasks, size_t n);

int bus_query(struct bus_user *u, struct om_bus_query *q);
struct om_bus_topic_row bus_topic(struct bus_user *u, const char *topic); /* spans are empty */
struct om_bus_group_row bus_group_row(struct bus_user *u, const char *topic, const char *agent);
int bus_change(struct bus_user *u, struct om_bus_change *c);

void bus_run(struct bus_user *u, int ms); /* the loop, for so long */
/* Runs the loop until *flag or `ms` are over; whether it was set. */
bool bus_until(struct bus_user *u, const bool *flag, int ms);

#endif
