/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_DISPATCH_H
#define OM_DISPATCH_H
/*
 * The dispatcher: groups that this daemon serves, the workers of each, what they hold, and what becomes of it.
 *
 *   group         (topic, agent): one struct om_bus_sub; its want() is the free credit of its workers
 *   subscription  a connection that serves a group: `prefetch`, what it holds
 *   lease         a delivery that a subscription holds
 *
 * Always true:
 *   - a delivery of the bus is in exactly one place: waiting in its group for a worker, leased to one subscription, or being settled;
 *   - the order of effects of an ack is: result saved, outputs on the bus, acknowledged on the bus, reply. A death between any two repeats,
 * never loses;
 *   - a subscription never holds more than its prefetch; the group never asks the bus for more than the sum of free credit;
 *   - when a session closes, or its client ends its input, every lease of it is settled as a failed attempt.
 * What one turn gathered goes to the bus in one publish and one settle.
 *
 * Loop thread.
 */
#include "session.h"

int om_dispatch_new(struct om_core *core, struct om_dispatch **ret);
void om_dispatch_free(struct om_dispatch *d);

/* The bus's events for om_bus_ops.open (deliver, revoked, expired); state() is the core's, which then calls om_dispatch_bus_state(). */
extern const struct om_bus_events om_dispatch_events;
void om_dispatch_bus_state(struct om_dispatch *d, enum om_bus_state state);

/* -- publishing ---------------------------------------------------------------------------------------------------- */

/* A batch to publish for somebody; done(ctx) is called once when each outcome is known. Tasks are copied as records at once: nothing is
 * borrowed after the call. */
struct om_publish_ticket {
        void (*done)(struct om_publish_ticket *t);
        size_t n;
        struct om_outcome *outcomes;  /* n; the caller's */
        char (*ids)[OM_NAME_MAX + 1]; /* n; filled by the call: the id that each task got */
        size_t n_open;                /* the dispatcher's, as `next` is */
        struct om_publish_ticket *next;
};
/* Each task checked by om_task_parse(); fills id and created_ms where absent. Outcomes of tasks that cannot be published at all
 * (unsupported, unavailable) are set at once. done() is never called before the call returns. 0, or -ENOBUFS when too much is in flight
 * (nothing was taken). */
int om_dispatch_publish(struct om_dispatch *d, struct om_publish_ticket *ticket, struct om_task *tasks, struct om_error *e);

/* -- agents -------------------------------------------------------------------------------------------------------- */

struct om_agent_config {
        unsigned prefetch, dlq_retry_limit;
        int64_t retry_backoff_ms, retry_backoff_max_ms, reclaim_idle_ms, start_ms;
        enum om_start start;
        bool save_results;
};
struct om_registration {
        struct om_span topic, name, worker; /* borrowed */
        struct om_agent_config config;
        bool paused; /* as the storage has it */
};
/* Serves a group from the request's session and answers the request (`subscription`, `group`, `created`, `paused`). Takes req. */
void om_dispatch_register(struct om_dispatch *d, const struct om_registration *r, struct om_request *req);
/* -ENOENT when the session has no such subscription. */
int om_dispatch_unregister(struct om_dispatch *d, struct om_session *s, int64_t subscription);
void om_dispatch_pause(struct om_dispatch *d, struct om_span topic, struct om_span agent, bool paused);
/* Ends the group here: its connections get agent.ended, its leases are released, the bus's subscription ends; then done (a post),
 * at the latest after call_timeout_ms: a bus that is away takes no leases back. For agent.delete and topic.delete (agent absent: all of the
 * topic). */
void om_dispatch_end(struct om_dispatch *d, struct om_span topic, struct om_span agent, const char *reason, struct om_post *done);
/* Workers and leases of a group here. */
void om_dispatch_count(struct om_dispatch *d, struct om_span topic, struct om_span agent, unsigned *ret_workers, unsigned *ret_leased);
unsigned om_dispatch_groups(struct om_dispatch *d);

/* -- sessions ------------------------------------------------------------------------------------------------------ */
void om_dispatch_session_closed(struct om_dispatch *d, struct om_session *s);
/* Its client sends nothing more, so it can settle nothing: what it works on goes to others, as if it had closed. What it has acked and what
 * it waits for is still answered. */
void om_dispatch_session_mute(struct om_dispatch *d, struct om_session *s);
void om_dispatch_session_ready(struct om_dispatch *d, struct om_session *s);

/* Graceful stop: no more deliveries; waits until nothing is leased or grace_ms are over; releases the rest (uncounted); waits for what is
 * being settled; then done. */
void om_dispatch_stop(struct om_dispatch *d, int64_t grace_ms, struct om_post *done);

#endif
