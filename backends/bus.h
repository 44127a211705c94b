/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_BUS_H
#define OM_BUS_H
/*
 * The contract of a bus.
 *
 * A bus keeps topics, and groups that each get every task of a topic. The core (daemon/dispatch.c) does everything that is the same on all
 * buses: workers, credit, leases, when to retry and when to give up. The bus keeps tasks durably, hands them out, and remembers per group
 * what is finished, what waits for a retry and which attempt it is.
 *
 * The words:
 *   log        what a topic holds, in publish order
 *   group      a cursor into one topic (or all topics of a pattern) with what is pending; "group:{topic}:{agent}"
 *   delivery   one attempt at one task for one group. It belongs to the core from deliver() until settled.
 *   settle     ack (finished), retry (later, the attempt counted), release (now, not counted), dead (to the group's dead letters)
 *
 * Promises that a backend keeps (the others are the core's):
 *   B1  publish completes with 0 only when the task survives the death of every process involved, as far as `durability` says.
 *   B2  a settled verdict likewise; until then the task comes back after a death, whatever else happened.
 *   B3  the first group of a topic starts with all that the topic still holds; a later one with what comes after subscribe() completed.
 *   B4  no task that some group has not finished is ever dropped: a full topic refuses publish with -ENOBUFS (outcome).
 *   B5  at most `want` deliveries are handed over beyond those that the core holds (a bus with requests under way may exceed it by those).
 *   B6  attempts are counted in the bus and survive it.
 *   B7  moving to the dead letters is never seen in neither place.
 *   B8  without `key`, tasks of one priority are handed out in publish order, retries apart; with OM_BUS_KEYS no two tasks of one key are
 * out at a time in one group, and they keep their order.
 *
 * The rules of operations (threads, completion, ownership) are host.h's.
 */
#include "../proto/task.h"
#include "host.h"
#include "options.h"

/* Capabilities: what the bus does natively. Their names, in this order, are the `capabilities` of `hello`. */
enum {
        OM_BUS_PRIORITY = 1 << 0,
        OM_BUS_TTL = 1 << 1,
        OM_BUS_DELAY = 1 << 2,
        OM_BUS_KEYS = 1 << 3,
        OM_BUS_PATTERNS = 1 << 4,
        OM_BUS_DEDUPE = 1 << 5,
        OM_BUS_EXACTLY_ONCE = 1 << 6, /* settle() publishes an ack's outputs in the same transaction */
        OM_BUS_REPLAY = 1 << 7,
        OM_BUS_CONFIGURE = 1 << 8, /* OM_CHANGE_CONFIGURE: topics have settings of their own */
};

struct om_bus;     /* one bus; the backend's */
struct om_bus_sub; /* one group served by this daemon; the backend's */

/* -- publishing ---------------------------------------------------------------------------------------------------- */

struct om_bus_task {
        const struct om_task *task; /* its parts; id, topic, created_ms are set */
        struct om_span record;      /* what is kept and delivered (om_task_write) */
};
struct om_bus_publish {
        struct om_op op;
        const struct om_bus_task *tasks; /* borrowed until publish() returns */
        size_t n;
        struct om_outcome *outcomes; /* n of them, the core's */
};

/* -- groups and deliveries ----------------------------------------------------------------------------------------- */

enum om_start {
        OM_START_DEFAULT, /* B3 */
        OM_START_FIRST,   /* everything the topic still holds */
        OM_START_NEW,     /* only what comes after */
        OM_START_TIME,    /* what was published at or after start_ms */
};
struct om_bus_subscribe {
        struct om_op op;
        /* borrowed until subscribe() returns */
        struct om_span topic; /* or a pattern, with OM_BUS_PATTERNS */
        struct om_span agent;
        enum om_start start; /* used only when the group is new */
        int64_t start_ms;
        int64_t reclaim_idle_ms; /* after how long a dead daemon's tasks are taken over; 0: the backend's default */
        void *core;              /* given back in every event of this group */
        /* filled before done(…, 0) */
        struct om_bus_sub *ret_sub;
        bool ret_created; /* the group is new */
};

/* One attempt at a task. Allocated by the backend, the core's until a settlement that names it comes out as 0 or -ESTALE; then the
 * backend's again. */
struct om_delivery {
        struct om_bus_sub *sub;
        struct om_span record; /* valid until settled */
        uint32_t attempt;      /* 1 for the first */
        bool gone;             /* set by the backend before revoked(): the bus gave it to somebody else; settling answers -ESTALE */
        void *core;            /* the core's */
};

/* What a bus tells the core. All on the loop thread, never from within a call of the core into the bus. */
enum om_bus_state {
        OM_BUS_CONNECTING, /* not usable; publish answers -EAGAIN; the backend goes on trying, with backoff */
        OM_BUS_READY,
        OM_BUS_FAILED, /* will not recover by itself, say after a failed fsync: the reason is in `error` */
};
struct om_bus_events {
        /* n deliveries for one group; the array is borrowed */
        void (*deliver)(void *sub_core, struct om_delivery *const *deliveries, size_t n);
        /* the bus took these back; each has `gone` set and is still to be settled (the outcome is -ESTALE) */
        void (*revoked)(void *sub_core, struct om_delivery *const *deliveries, size_t n);
        /* tasks ended without a delivery because their ttl was over */
        void (*expired)(void *sub_core, uint64_t n);
        void (*state)(void *bus_core, enum om_bus_state state, const struct om_error *error);
};

enum om_verdict {
        OM_ACK,
        OM_RETRY,   /* comes back at due_ms with attempt + 1 */
        OM_RELEASE, /* comes back at once with the same attempt */
        OM_DEAD,    /* to the group's dead letters; finished for the group */
};

/* A dead letter. Spans are borrowed (in) or live in the query's arena (out). */
struct om_dead_letter {
        struct om_span id;     /* out: the bus's name for it, unique in the group */
        struct om_span record; /* the task's */
        struct om_span error, error_type, worker;
        uint32_t attempts;
        int64_t failed_ms;
};

struct om_settlement {
        struct om_delivery *delivery;
        enum om_verdict verdict;
        int64_t due_ms;                      /* OM_RETRY: wall clock */
        const struct om_dead_letter *letter; /* OM_DEAD; borrowed until settle() returns, as outputs are */
        const struct om_bus_task *outputs;   /* OM_ACK with OM_BUS_EXACTLY_ONCE: published if and only if the ack holds */
        size_t n_outputs;
        /* 0: done, -ESTALE: no longer ours; after both the delivery is the backend's again. Any other leaves it with the core. */
        struct om_outcome outcome;
};
/* One that fails as a whole, whether refused by the call or completed with a status below 0, leaves every delivery in it with the core.
 * After a completion the verdicts may have held nevertheless (a connection that broke before the answer): settling again is harmless. */
struct om_bus_settle {
        struct om_op op;
        struct om_settlement *items; /* the core's, kept until done */
        size_t n;
};

/* -- looking in ---------------------------------------------------------------------------------------------------- */

struct om_bus_topic_row {
        struct om_span topic;
        uint64_t depth;     /* tasks held: waiting, leased or between retries for some group, or for a first group */
        uint64_t delayed;   /* of a delay_ms that is not over; not in depth */
        uint64_t published; /* since the topic exists */
        uint32_t groups;
};
struct om_bus_group_row {
        struct om_span topic, agent;
        uint64_t lag;      /* not yet delivered to the group */
        uint64_t leased;   /* with a worker now */
        uint64_t retrying; /* waiting for a retry */
        uint64_t dead;     /* dead letters */
        uint64_t finished; /* since the group exists */
        uint64_t expired;
};
struct om_bus_held_row {   /* for bus.inspect */
        struct om_span id; /* the bus's name for the entry: a sequence number, a stream id, partition:offset */
        struct om_span record;
};

enum om_bus_query_type {
        OM_QUERY_TOPICS, /* in: topic (absent: all), limit, cursor → topics */
        OM_QUERY_GROUPS, /* in: topic (absent: all) → groups */
        OM_QUERY_HELD,   /* in: topic, limit, cursor → held, oldest first */
        OM_QUERY_DEAD,   /* in: topic, agent, limit, cursor; or ids → dead, oldest first; -ENOENT for an unknown group */
        OM_QUERY_HEALTH, /* → info: one JSON object of facts ({"durability":"strong","path":…}) */
};
struct om_bus_query {
        struct om_op op;
        enum om_bus_query_type type;
        /* in; borrowed until query() returns */
        struct om_span topic, agent, cursor;
        size_t limit; /* 0: no limit */
        const struct om_span *ids;
        size_t n_ids;
        /* out; in `arena`, which the core frees */
        struct om_arena arena;
        union {
                struct om_bus_topic_row *topics;
                struct om_bus_group_row *groups;
                struct om_bus_held_row *held;
                struct om_dead_letter *dead;
        };
        size_t n;
        struct om_span next_cursor; /* absent: that was the end */
        struct om_span info;
};

enum om_bus_change_type {
        OM_CHANGE_DELETE_GROUP, /* topic, agent: the group and what waits for it alone; dead letters too with delete_dead_letters, else they
                                   stay readable */
        OM_CHANGE_DELETE_TOPIC, /* topic: its tasks, groups, and dead letters with delete_dead_letters */
        OM_CHANGE_REPLAY_DEAD,  /* topic, agent, ids or all: back to that group alone, attempts anew; never in neither place */
        OM_CHANGE_PURGE_DEAD,   /* topic, agent, ids or all */
        OM_CHANGE_SEEK,         /* topic, agent, start, start_ms: the group starts there again (OM_BUS_REPLAY) */
        OM_CHANGE_CONFIGURE,    /* topic, made where it is missing, partitions, retention_ms; tells both (OM_BUS_CONFIGURE) */
};
struct om_bus_change {
        struct om_op op;
        enum om_bus_change_type type;
        struct om_span topic, agent;
        const struct om_span *ids;
        size_t n_ids; /* 0: all */
        bool delete_dead_letters;
        enum om_start start;
        int64_t start_ms;
        int64_t partitions;   /* 0: as they are */
        int64_t retention_ms; /* of what is finished; -1: as it is */
        uint64_t ret_n;       /* how many it was about; seek: how many come */
        int64_t ret_partitions, ret_retention_ms;
};

/* -- the contract -------------------------------------------------------------------------------------------------- */

struct om_bus_ops {
        unsigned abi;               /* OM_BACKEND_ABI */
        const char *name;           /* "local" */
        const char *const *schemes; /* NULL-terminated */
        const char *doc;            /* one line */
        unsigned capabilities;
        const struct om_option *options;
        /* How often extend() must be called for a delivery to stay ours; 0: never, the bus has no lease of its own. */
        int64_t lease_ms;

        /*
         * Makes the bus and starts to connect; state() tells when it is ready (an embedded bus may do its work here, or on its thread
         * before OM_BUS_READY). `url` is borrowed; `events` and `core` live as long as the bus. -EINVAL and the like for settings that can
         * never work, with `e` naming the part of the URL to mend.
         */
        int (*open)(struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret,
                struct om_error *e);

        int (*publish)(struct om_bus *bus, struct om_bus_publish *op, struct om_error *e);

        /* Makes the group if there is none, and serves it; no delivery comes before want() was called. */
        int (*subscribe)(struct om_bus *bus, struct om_bus_subscribe *op, struct om_error *e);
        /* Ends serving it; the group stays. Its deliveries have been settled by now. Events for it end at once; frees `sub`. */
        void (*unsubscribe)(struct om_bus_sub *sub);
        /* The core takes up to n more deliveries from now on; n replaces what was left of the last call. Cheap; called often. */
        void (*want)(struct om_bus_sub *sub, unsigned n);
        int (*settle)(struct om_bus *bus, struct om_bus_settle *op, struct om_error *e);
        /* The workers of these deliveries live: keep the bus's lease. No completion; best effort. NULL where lease_ms is 0. */
        void (*extend)(struct om_bus *bus, struct om_delivery *const *deliveries, size_t n);

        int (*query)(struct om_bus *bus, struct om_bus_query *op, struct om_error *e);
        int (*change)(struct om_bus *bus, struct om_bus_change *op, struct om_error *e);

        /* After every operation has completed: finishes what is buffered, lets go of groups and connections. No other call but destroy()
         * after it. */
        int (*close)(struct om_bus *bus, struct om_op *op, struct om_error *e);
        /* After close has completed. Does not block. */
        void (*destroy)(struct om_bus *bus);
        /* Of this bus, where its settings decide (queues with priorities, say); may be NULL: those above. */
        unsigned (*capabilities_of)(const struct om_bus *bus);
};

#endif
