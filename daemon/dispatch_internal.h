/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_DISPATCH_INTERNAL_H
#define OM_DISPATCH_INTERNAL_H
/*
 * What the dispatcher's files share. Nobody else includes it but results.c (waiters hang on a client) and methods_task.c.
 *
 *   dispatch.c            the dispatcher, its groups, registering, pausing, ending, stopping
 *   dispatch_client.c     a connection's subscriptions, from registering to closing
 *   dispatch_deliver.c    credit, handing out, task.deliver frames
 *   lease.c               pool of leases, delivery numbers, signs of life
 *   dispatch_finish.c     ack, fail, extend; the stages of a verdict; what happens when one cannot be carried out
 *   dispatch_settle.c     the batches of settlements
 *   dispatch_publish.c    the batches of tasks to publish
 *   dispatch_dedupe.c     idempotency keys on a bus that has none
 *   outputs.c             what an ack publishes; output_id.c: under which ids
 *
 * Loop thread.
 */
#include "call.h"
#include "chunks.h"
#include "deadline.h"
#include "dispatch.h"
#include "../proto/hash.h"
#include "log.h"
#include "metrics.h"
#include "results.h"
#include "watch.h"

/* -- leases -------------------------------------------------------------------------------------------------------- */

enum om_lease_state {
        OM_LEASE_FREE,      /* in the pool */
        OM_LEASE_WAITING,   /* in its group's queue, for a subscription with credit */
        OM_LEASE_HELD,      /* a subscription works on it */
        OM_LEASE_FINISHING, /* the subscription has acked or failed it, and that is being carried out; it still takes credit */
        OM_LEASE_SETTLING,  /* the daemon's own verdict is being carried out; no subscription has to do with it */
};
/* Where a verdict is. Each stage begins when the one before is durable. */
enum om_stage {
        OM_STAGE_SAVE,    /* the result record is being saved */
        OM_STAGE_PUBLISH, /* outputs are being published */
        OM_STAGE_SETTLE,  /* the bus is being told */
};

/* What goes into dead letters and result records, kept while a verdict is carried out; one block with its texts. */
struct om_note {
        struct om_dead_letter letter; /* error, error_type, worker */
        struct om_span result;        /* of an ack that the daemon itself may have to repeat */
        char text[];
};

struct om_lease {
        struct om_delivery *delivery;
        struct om_group *group;
        struct om_subscription *sub;  /* HELD, FINISHING; NULL once its connection is gone */
        struct om_lease *prev, *next; /* the group's waiting or held list, or the parked list */
        struct om_lease *sub_prev, *sub_next;
        struct om_lease *bucket_next; /* the client's table of numbers */
        uint64_t number;              /* the delivery number on its connection */
        uint64_t delivered_ns;        /* when it was written to the client; 0: not yet */
        int64_t touched_ms;           /* last sign of life */
        enum om_lease_state state;
        enum om_stage stage;
        enum om_verdict verdict;
        int64_t due_ms;     /* of OM_RETRY */
        int64_t give_up_ms; /* until when the daemon repeats the verdict itself; 0: its client does; INT64_MAX: for ever */
        struct om_ack *ack; /* the request to answer; NULL for a notification and for the daemon's verdicts */
        struct om_note *note;
        struct om_outputs *outputs;
        struct om_result_save save;
};
struct om_lease_list {
        struct om_lease *first, *last;
        unsigned n;
};
static inline void om_lease_append(struct om_lease_list *list, struct om_lease *lease) {
        lease->next = NULL;
        lease->prev = list->last;
        *(list->last ? &list->last->next : &list->first) = lease;
        list->last = lease;
        list->n++;
}
static inline void om_lease_prepend(struct om_lease_list *list, struct om_lease *lease) {
        lease->prev = NULL;
        lease->next = list->first;
        *(list->first ? &list->first->prev : &list->last) = lease;
        list->first = lease;
        list->n++;
}
static inline void om_lease_unlink(struct om_lease_list *list, struct om_lease *lease) {
        *(lease->prev ? &lease->prev->next : &list->first) = lease->next;
        *(lease->next ? &lease->next->prev : &list->last) = lease->prev;
        lease->prev = lease->next = NULL;
        list->n--;
}

/* A request that is about deliveries: answered when none is open. */
struct om_ack {
        struct om_request *req;
        struct om_dispatch *d;
        struct om_ack *next; /* free list */
        unsigned open;
        bool several;          /* the request named several: an error lists those that failed */
        struct om_error error; /* the first */
        struct om_buf failed;  /* their numbers, with commas */
};

/* -- connections, subscriptions, groups ---------------------------------------------------------------------------- */

/* The dispatcher's state on a session: in its dispatch slot, from the first need to the session's end. */
struct om_client {
        struct om_client *prev, *next; /* all of them */
        struct om_session *session;
        struct om_dispatch *d;
        struct om_subscription *subs; /* a list; at most OM_SUBSCRIPTIONS_MAX */
        unsigned n_subs;
        int64_t last_subscription;
        uint64_t last_number;      /* of a delivery; every number up to it has been given */
        struct om_lease **buckets; /* HELD and FINISHING leases by number; a power of two of them, 0 before the first */
        size_t n_buckets, n_leases;
        struct om_result_waiter *waiters; /* results.c's */
};

struct om_subscription {
        struct om_client *client;
        struct om_group *group;
        struct om_subscription *client_prev, *client_next;
        struct om_subscription *group_prev, *group_next; /* of the group, or of those that wait for its subscribe */
        struct om_subscription *free_prev, *free_next;   /* of the group's list of those with credit */
        struct om_subscription *turn_next;               /* has frames to write at the end of the turn */
        bool in_turn, ended;
        struct om_request *registering; /* to answer when the bus serves the group */
        int64_t number;
        unsigned prefetch, held;               /* held: HELD and FINISHING */
        unsigned credit;                       /* what it adds to its group's credit now; in the list of those with credit if not 0 */
        bool blocked;                          /* its session takes no deliveries at present */
        bool suspect;                          /* let a lease run out and has shown no sign of life since */
        struct om_lease *leases, *leases_last; /* by sub_next: HELD and FINISHING, oldest first */
        struct om_lease *fresh;                /* the first of them that is not written to the client yet; all after it are not */
        struct om_buf revoked;                 /* numbers, with commas, to tell the client */
        char worker[OM_NAME_MAX + 1];
};

enum om_group_state {
        OM_GROUP_NEW,         /* the bus has not been asked yet */
        OM_GROUP_SUBSCRIBING, /* the bus is making or finding it; registrations wait */
        OM_GROUP_SERVING,
        OM_GROUP_ENDING, /* deleted: leases go back, then the bus's subscription ends; registrations wait and begin anew */
};
struct om_group {
        UT_hash_handle hh; /* by name */
        struct om_dispatch *d;
        struct om_span topic, agent;
        enum om_group_state state;
        struct om_bus_sub *bus_sub;
        struct om_agent_config config; /* the newest registration's */
        bool created;                  /* the bus made it; told once */
        bool paused, in_turn, in_check;
        struct om_call *subscribing;
        struct om_subscription *subs, *pending;
        unsigned n_subs, prefetch;                      /* the sum of theirs */
        struct om_subscription *free_first, *free_last; /* those with credit, taken in turns */
        struct om_subscription *free_suspects;          /* the first of the suspects among them, which stand last */
        unsigned n_free, credit;                        /* their number, the sum of theirs */
        unsigned wanted;                                /* what the bus thinks that we want */
        unsigned promised;                  /* leases kept for it: at least `wanted`, and what may be on its way from a larger want */
        struct om_lease_list waiting, held; /* held: HELD only, oldest sign of life first */
        unsigned n_leases;                  /* all that are not free */
        unsigned n_leased;                  /* with a subscription */
        struct event *reclaim_timer;
        bool reclaim_armed;
        struct om_group *turn_next, *check_next;
        struct om_end_link *ends; /* who waits for its end */
        struct om_topic_metrics *topic_metrics;
        struct om_agent_metrics *agent_metrics;
        char name[]; /* topic, 0x1f, agent */
};

struct om_dispatch {
        struct om_core *core;
        struct om_turn_end turn_end;
        struct om_deadlines publish_deadlines, call_deadlines;

        struct om_group *groups; /* by name */
        struct om_client *clients;
        struct om_group *turn_groups;
        struct om_subscription *turn_subs;

        /* lease.c */
        struct om_lease_slab *slabs;
        struct om_lease *free_leases;
        unsigned n_slots, n_leases, promised; /* all leases, those in use, those kept for what was wanted */
        struct event *extend_timer;
        bool extend_armed;

        /* dispatch_finish.c */
        struct om_ack *free_acks;
        struct om_lease_list parked; /* verdicts to be carried out again */
        struct event *park_timer;
        unsigned park_tries;
        bool starved; /* a group wants less than it could, for want of memory */

        /* dispatch_settle.c */
        struct om_settle_batch *settling;                   /* gathers */
        struct om_settle_batch *settle_queue, *settle_last; /* the bus had no room */
        struct om_settle_batch *free_settles;
        unsigned n_settles_sent; /* batches with the bus */
        bool settle_held;

        /* dispatch_publish.c */
        struct om_publish_batch *publishing;
        struct om_publish_batch *publish_queue, *publish_last;
        struct om_publish_batch *free_publishes;
        unsigned n_publishes, n_publishes_sent; /* batches with tasks in them; those with the bus */
        bool publish_held;                      /* the bus had no room: until something completes */
        size_t publish_bytes, publish_tasks;    /* gathered, queued and with the bus */
        struct om_dedupe_key *dedupe_keys;      /* under way */

        /* methods_publish.c: what requests use again */
        struct om_publish_call *free_calls;
        unsigned n_free_calls;
        struct om_task *scratch;
        size_t n_scratch;

        /* stopping */
        bool stopping, draining;
        struct om_post *stopped;
        struct event *grace_timer;
};

static inline void om_dispatch_turn(struct om_dispatch *d) { om_loop_at_turn_end(d->core->loop, &d->turn_end); }
/* Its credit or its queue changed, or it may be over: looked at by the end of the turn, and never freed before. */
void om_group_touch(struct om_group *g);

/* -- dispatch_client.c --------------------------------------------------------------------------------------------- */
struct om_client *om_client_of(struct om_dispatch *d, struct om_session *s); /* made when there is none; NULL: out of memory */
struct om_client *om_client_find(struct om_session *s);
void om_client_free(struct om_client *c);
void om_subscription_serve(struct om_subscription *sub, bool created); /* the bus serves its group: answers */
struct om_subscription *om_subscription_new(
        struct om_client *c, struct om_group *g, const struct om_registration *r, struct om_request *req);
void om_subscription_refuse(struct om_subscription *sub, const struct om_error *e);
void om_subscription_credit(struct om_subscription *sub); /* reckons its credit anew */
void om_subscription_turn(struct om_subscription *sub);
void om_subscription_suspect(struct om_subscription *sub, bool suspect);
void om_subscription_revoke(struct om_subscription *sub, const struct om_lease *lease); /* the client is told, if it has seen it */
/* Takes it out of its group and client and frees it; its leases end with `verdict`: OM_RETRY (worker_lost) or OM_RELEASE. */
void om_subscription_swept(struct om_subscription *sub); /* one that ended is no longer in the turn: frees it */
void om_subscription_end(struct om_subscription *sub, enum om_verdict verdict);

/* -- dispatch_deliver.c -------------------------------------------------------------------------------------------- */
void om_group_deliver(struct om_group *g);               /* at the end of a turn: hands out, tells the bus what is wanted */
void om_subscription_write(struct om_subscription *sub); /* at the end of a turn: the frames */

/* -- lease.c ------------------------------------------------------------------------------------------------------- */
/* Keeps leases for n tasks that the group is about to want. Returns for how many there are: fewer without memory. */
unsigned om_leases_promise(struct om_group *g, unsigned n);
void om_leases_unpromise(struct om_group *g); /* nothing comes any more */
struct om_lease *om_lease_new(struct om_group *g, struct om_delivery *delivery);
void om_lease_free(struct om_lease *lease);
int om_lease_give(struct om_lease *lease, struct om_subscription *sub); /* then unlink it from waiting, and hold it; < 0: it waits still */
void om_lease_take(struct om_lease *lease);                             /* HELD, FINISHING: no longer the subscription's */
void om_lease_hold(struct om_lease *lease);                             /* FINISHING → HELD again */
void om_lease_unhold(struct om_lease *lease);                           /* out of the group's held list */
void om_lease_touch(struct om_lease *lease);
/* The lease with that number on this connection. -ENOENT: never given. -ESTALE: over. */
int om_lease_find(struct om_session *s, int64_t number, struct om_lease **ret, struct om_error *e);
int om_leases_init(struct om_dispatch *d);
void om_leases_deinit(struct om_dispatch *d);
void om_group_reclaim_arm(struct om_group *g);

/* -- dispatch_finish.c --------------------------------------------------------------------------------------------- */
struct om_ack *om_ack_new(struct om_dispatch *d, struct om_request *req, bool several); /* takes req; NULL (answered): no memory */
void om_ack_fail(struct om_ack *ack, int64_t number, const struct om_error *e);
void om_ack_release(struct om_ack *ack); /* the method is through with it; answers when nothing is open */
/* Ack of one delivery. result, publish: raw JSON or absent; borrowed. `ack` is told. */
void om_dispatch_ack(struct om_dispatch *d, struct om_ack *ack, int64_t number, struct om_span result, struct om_span publish);
struct om_fail {
        struct om_span message, type;
        bool retry;
        int64_t delay_ms; /* -1: the backoff */
};
void om_dispatch_fail(struct om_dispatch *d, struct om_ack *ack, int64_t number, const struct om_fail *fail);
void om_dispatch_extend(struct om_dispatch *d, struct om_ack *ack, int64_t number);
/* The daemon's own verdicts; the lease is WAITING, HELD or FINISHING with nobody behind it, and unlinked by these. */
void om_lease_release(struct om_lease *lease);
void om_lease_lost(struct om_lease *lease, const char *error_type, const char *message);
/* dispatch_settle.c tells what became of a settlement. */
void om_lease_settled(struct om_lease *lease, int status, const struct om_error *e);
void om_parked_run(struct om_dispatch *d);
void om_starved(struct om_dispatch *d); /* groups look again, soon, at what they want */
void om_parked_drop(struct om_dispatch *d);
/* A task that can be given to nobody, say one too large for a frame: to the dead letters. */
void om_lease_unfit(struct om_lease *lease, const char *error_type, const char *message);
int om_finish_init(struct om_dispatch *d);
void om_finish_deinit(struct om_dispatch *d);

/* -- dispatch_settle.c --------------------------------------------------------------------------------------------- */
void om_settle(struct om_lease *lease); /* with verdict, due_ms, note, outputs; with the others of this turn */
void om_settle_flush(struct om_dispatch *d);
void om_room(struct om_dispatch *d); /* something of ours completed: the bus has room again */
/* From now on settle() is not called: nothing gathers any more. */
void om_settle_deinit(struct om_dispatch *d);

/* -- dispatch_publish.c -------------------------------------------------------------------------------------------- */
void om_publish_flush(struct om_dispatch *d);
void om_publish_deinit(struct om_dispatch *d);
/* Whether this bus can take such a task: 0, or -EOPNOTSUPP with `e` naming what it lacks. */
int om_publish_supported(struct om_dispatch *d, const struct om_task *task, struct om_error *e);
/* The largest record that can be delivered: a frame less its envelope. */
size_t om_record_max(const struct om_core *core);
/* Copies of the parts of a task for a batch, and its record. -ENOMEM. */
int om_publish_copy(struct om_chunks *text, const struct om_task *task, struct om_task *ret_parts, struct om_span *ret_record);

/* -- dispatch_dedupe.c --------------------------------------------------------------------------------------------- */
struct om_dedupe;
/* Asks the storage about the idempotency key of the task at `index` of a batch. 0: om_publish_checked() is called with the answer, never
 * before the return. 1: another publish with the key is under way; the task is not for the batch, its ticket gets that one's outcome. < 0
 * with `e`: it cannot be asked, and nothing is called. */
int om_dedupe_check(struct om_dispatch *d, struct om_publish_batch *batch, size_t index, const struct om_task *task,
        struct om_publish_ticket *ticket, size_t ticket_index, struct om_dedupe **ret, struct om_error *e);
/* The answer. status < 0: the task is not published, for the reason in `e`. first: the id under which it is to be published, or, with
 * duplicate, was. */
void om_publish_checked(
        struct om_publish_batch *batch, size_t index, int status, const struct om_error *e, bool duplicate, struct om_span first);
/* What became of the publish. Takes the check. ticket->n_open counts down when that is remembered. */
void om_dedupe_published(struct om_dedupe *check, int status, struct om_publish_ticket *ticket);
/* It is known what became of the key, or of the try: those that waited for it are told. Takes the check. */
void om_dedupe_over(struct om_dedupe *check, int status);
void om_publish_ticket_close(struct om_publish_ticket *ticket); /* one task less is open */
/* The texts of a batch's outcomes stay until it is released as often, and the bus has answered. */
void om_publish_hold(struct om_publish_batch *batch);
void om_publish_release(struct om_publish_batch *batch);

/* -- methods_publish.c --------------------------------------------------------------------------------------------- */
void om_publish_calls_deinit(struct om_dispatch *d);

/* -- outputs.c ----------------------------------------------------------------------------------------------------- */
struct om_outputs {
        struct om_publish_ticket ticket;
        struct om_lease *lease;
        size_t n;
        struct om_task *tasks;         /* spans into `text` */
        struct om_bus_task *bus_tasks; /* made for a settlement that publishes them */
        struct om_chunks text;
};
/* Reads `publish` (an array of tasks, or absent) and, when the record asks for it, adds the reply. *ret is NULL when there is nothing. */
int om_outputs_new(struct om_lease *lease, struct om_span publish, struct om_span result, struct om_outputs **ret, struct om_error *e);
void om_outputs_free(struct om_outputs *o);
int om_outputs_bus_tasks(struct om_outputs *o); /* fills bus_tasks; -ENOMEM */
/* output_id.c: a UUID (RFC 9562, version 8) that is the same for the same three. */
void om_task_id_derive(struct om_span task_id, struct om_span agent, uint64_t n, char ret_id[OM_ID_LEN + 1]);

/* -- results.c ----------------------------------------------------------------------------------------------------- */
void om_results_client_closed(struct om_results *r, struct om_client *client);

/* The id of a record, for events. Absent when it has none. */
struct om_span om_record_id(struct om_span record);

#endif
