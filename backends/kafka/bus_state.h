/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_BUS_STATE_H
#define OM_KAFKA_BUS_STATE_H
/*
 * What the files of the Kafka bus share. Everything is the loop's but for what `struct call` says.
 *
 * Handles of the library, each of which has threads of its own, so there are few:
 *
 *   producer    idempotent, acks=all; administration goes through it too
 *   member      this daemon's membership in the consumer group `group`: cooperative, static. It is given partitions of the groups' retry
 *               topics (names.h), and fetches nothing: to own partition p of a group's retry topic is to serve p of its topic. All commits
 *               are made in this group, under the retry topic's name, with the member's generation: who lost a partition cannot commit for
 *               it. The committed offset is the retry topic's; the metadata has the topic's (offsets.h)
 *   lanes       consumers without a group that read what is owned. A partition is in one lane once, so the second group of a topic reads in
 *               the second lane, and so on
 *   txn         transactional, made by the first ack that publishes
 *
 * A fetch waits at the broker until there is something of what it asked for, and what is added meanwhile waits for it: each lane also reads
 * the wake topic, to which a message is sent then.
 */
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <librdkafka/rdkafka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "../../proto/hash.h"
#include "../bus.h"
#include "../job.h"
#include "../record.h"
#include "names.h"
#include "offsets.h"
#include "settings.h"

enum { OPS_MAX = 8192, LANES_MAX = 200, INSTANCE_MAX = 200, RETIRED_MAX = 8, ADMIN_MS = 5000, PROPAGATION_MS = 5000 };
#define BYTES_MAX ((size_t) 64 << 20)

/* -- work for threads that may block (link.c) ------------------------------------------------------------------------- */

/* run() is called on a worker and touches only what is in the call, and handles; done() on the loop after it, always. */
struct call {
        union {
                struct om_work work;
                struct om_post post;
        };
        struct om_bus *bus;
        void (*run)(struct call *c);
        void (*done)(struct call *c);
        int status;
        struct om_error error;
};
enum worker_id {
        WORKER_CALLS,  /* what is asked for: it may take as long as it takes */
        WORKER_MEMBER, /* what groups that are served wait for */
        WORKER_PROBE,
        WORKER_TXN,
        N_WORKERS,
};
/* 0, or a negative errno with `e`: there is no thread, or the bus is closing. */
int kafka_call(struct om_bus *b, enum worker_id which, struct call *c, struct om_error *e);

/* -- operations (bus.c) ----------------------------------------------------------------------------------------------- */

/* Embedded, first, in what works for an operation. Completions come by a post, always. */
struct job {
        struct om_job job; /* first */
        struct om_bus *bus;
};
int kafka_refuse(struct om_bus *b, struct om_error *e); /* -EAGAIN while not ready, else 0 */
int kafka_job_admit(struct om_bus *b, size_t bytes, struct om_error *e);
void kafka_job_begin(struct om_bus *b, struct job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *));
void kafka_job_over(struct job *j, int status, const struct om_error *e); /* e may be &j->job.error */
static inline bool job_is_cancelled(const struct job *j) { return om_job_is_cancelled(&j->job); }

/* -- topics (bus_topic.c) --------------------------------------------------------------------------------------------- */

struct topic_wait { /* who waits for it to be there */
        void (*fn)(struct topic_wait *w, int status, const struct om_error *e);
        struct topic_wait *next;
};
enum topic_state { TOPIC_UNKNOWN, TOPIC_MAKING, TOPIC_THERE };
struct topic {
        UT_hash_handle hh;
        struct om_bus *bus;
        char kname[KAFKA_NAME_MAX + 1];
        char name[OM_TOPIC_MAX + 1]; /* of KAFKA_LOG */
        enum kafka_kind kind;
        bool lost; /* it was there and was deleted, not by us */
        enum topic_state state;
        bool asked; /* TOPIC_MAKING: by a call */
        struct topic_wait *waits, *last_wait;
        rd_kafka_topic_t *rkt; /* the producer's, NULL: nothing was sent there yet. It looks at all it has for each message */
};
struct topic *kafka_topic_get(struct om_bus *b, enum kafka_kind kind, struct om_span topic, struct om_span agent); /* NULL: no memory */
void kafka_topic_need(struct topic *t, struct topic_wait *w); /* calls w->fn, now or later */
void kafka_topic_forget(struct topic *t);                     /* it was deleted: made again when it is needed */
bool kafka_topic_unknown(rd_kafka_resp_err_t err);            /* whether that says so */
void kafka_topic_seen(struct topic *t);                       /* it is there */
void kafka_topics_free(struct om_bus *b);
/* On a worker. Makes topics: 0 or a negative errno for each; *ret_made, may be NULL, whether it was not there. */
struct making {
        const char *kname;
        struct om_span topic; /* KAFKA_LOG: its whole name */
        enum kafka_kind kind;
        int partitions;
        bool again; /* it was there before */
        bool made;
        int status;
        struct om_error error;
};
int kafka_make_topics(struct om_bus *b, struct making *m, size_t n, struct om_error *e);

/* -- sending (bus_publish.c) ------------------------------------------------------------------------------------------ */

/* One message to a topic, which is made where it is missing. */
struct send {
        struct topic_wait wait; /* first */
        struct om_bus *bus;
        struct topic *topic;
        int partition; /* −1: by key */
        void *value;   /* malloc'ed, NULL: a tombstone */
        size_t len, key_len;
        char *key;
        rd_kafka_headers_t *headers;
        void (*done)(struct send *s, int status, const char *why); /* once; `why` static */
        void *ctx;
        int64_t offset; /* after success */
        int64_t sent_ms;
        bool flying, told, again;
        void (*free)(struct send *s); /* when the library has let go of it: after done(), and maybe much later */
        struct send *prev, *next;
};
int kafka_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e);
void kafka_send(struct send *s);
int kafka_send_task(struct send *s, struct om_bus *b, const struct om_bus_task *t); /* fills; 0, -ENOMEM, -EMSGSIZE */
int kafka_task_headers(const struct om_bus *b, const struct om_task *t, rd_kafka_headers_t **ret);
struct om_span kafka_task_value(const struct om_bus *b, const struct om_bus_task *t);
void kafka_send_drop(struct send *s);    /* what it holds */
void kafka_sends_fail(struct om_bus *b); /* the brokers are away: all that are under way */
int kafka_send_error(rd_kafka_resp_err_t err, const char **ret_why);
void kafka_delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque); /* the library's callback */

/* -- handles (link.c) ------------------------------------------------------------------------------------------------- */

struct lane {
        rd_kafka_t *rk;
        rd_kafka_topic_t *wake;
        rd_kafka_queue_t *queue, *main;
        bool ready; /* the wake topic is being fetched: what is added from now on is not waited for */
        int64_t since_ms;
};
struct lane *kafka_lane(struct om_bus *b, unsigned i, struct om_error *e); /* made if need be */
int kafka_member(struct om_bus *b, struct om_error *e);                    /* likewise b->member */
void kafka_wake(struct om_bus *b);                                         /* fetches that wait end */
/* The first three are served on the loop, the others on the thread that has them. */
enum handle_use { HANDLE_SENDS, HANDLE_MEMBER, HANDLE_READS, HANDLE_TRANSACTS, HANDLE_CALL };
rd_kafka_t *kafka_handle(struct om_bus *b, enum handle_use use, const char *const (*properties)[2], struct om_error *e);
void kafka_watch(struct om_bus *b, rd_kafka_queue_t *q, uint32_t code);
enum { CODE_PART = 256 }; /* from here on, two for each partition */
int kafka_link_open(struct om_bus *b, struct om_error *e);
void kafka_give_up(struct om_bus *b, rd_kafka_t *rk); /* the library says that nothing goes on with this handle */
void kafka_link_suspect(struct om_bus *b);            /* something says that the brokers are away: asked */
void kafka_link_close(struct om_bus *b);              /* ends with b->close_op's completion */
int kafka_error(rd_kafka_resp_err_t err, const char *text, const char *what, struct om_error *e);

/* -- opening groups (bus_open.c) ----------------------------------------------------------------------------------------- */

/* A group that is about to be served, made on the brokers where it is not there. */
struct opening {
        struct topic *log, *retry;
        const char *agent;
        enum om_start start;
        int64_t start_ms;
        void (*done)(struct opening *o);
        /* the answer, and the worker's until then */
        int status;
        struct om_error error;
        int n_parts;     /* of the topic */
        bool made;       /* it was not there */
        int64_t *starts; /* where it begins then, by partition: malloc'ed, the owner's */
        int awaited;
        struct opening *prev, *next;
};
void kafka_open(struct om_bus *b, struct opening *o); /* done() is called later */

/* -- groups and their partitions (bus_group.c, bus_member.c, bus_load.c, bus_part.c, bus_deliver.c) ------------------- */

struct key {
        UT_hash_handle hh;
        struct delivery *busy; /* out, or about to be, or between retries */
        struct delivery *held; /* wait for it, in order */
        unsigned n;
        char text[1];
};
enum delivery_state {
        D_READY,   /* in memory, for the next who wants; in part->ready */
        D_HELD,    /* another of its key is out */
        D_WAITING, /* for its time */
        D_LEASED,  /* with the core */
        D_SETTLED, /* with the core, which has settled it: a verdict is on its way */
        D_LATE,    /* with the core, which had given up a verdict that came true after that */
        D_ORPHAN,  /* with the core; not ours any more */
};
struct delivery {
        struct om_delivery delivery; /* first */
        struct part *part;
        int which; /* KAFKA_AT_ */
        enum delivery_state state;
        int64_t offset;
        rd_kafka_message_t *msg;
        struct om_arena arena; /* a record that we made ourselves */
        uint32_t attempts;     /* begun */
        int64_t due_ms;
        struct event timer;
        bool timed; /* `timer` was made */
        struct key *key;
        struct verdict *verdict;
        enum om_verdict late;           /* D_LATE */
        struct delivery *prev, *next;   /* part->open */
        struct delivery *rprev, *rnext; /* part->ready, or key->held */
};
struct stream { /* one of the two topics in a partition */
        rd_kafka_topic_t *rkt;
        rd_kafka_queue_t *queue;
        unsigned lane;
        struct kafka_position pos; /* marks: of the owner before, until its message is read */
        int64_t inherited_next;    /* below, something may have been begun by the owner before */
        int64_t read;              /* up to here messages have come */
        uint32_t burst;            /* bytes read since the queue was empty */
        bool started, more;
        bool postponed; /* until its lane is ready */
        bool seen;      /* it is being fetched */
};
enum part_state {
        PART_IDLE,    /* not ours */
        PART_LOADING, /* ours; what was committed is asked for */
        PART_RUNNING,
        PART_LEAVING,   /* nothing more is handed out; what is out may be settled */
        PART_SUSPENDED, /* the membership was lost, maybe to be had again: nothing is handed out or committed until that is known */
};
struct part {
        UT_hash_handle hh; /* b->parts_by_slot */
        struct group *group;
        int32_t p;
        uint32_t slot;
        enum part_state state;
        uint32_t term; /* counts ownerships: an answer to an older one is dropped */
        struct stream at[2];
        uint64_t finished;
        int64_t hold_until_ms; /* what was with workers of the owner before comes after this */
        struct delivery *open, *ready;
        struct key *keys;
        unsigned n_leased, n_open[2];
        bool dirty, in_commit, in_txn, clean;
        bool resuming;    /* PART_SUSPENDED: it is ours again, if nobody had it meanwhile, which is asked for */
        bool astray;      /* the brokers have not got the place that it was read up to: what was committed is looked at again */
        bool log_deleted; /* … since the log was deleted, and is made anew */
        bool full;        /* the metadata has hardly room for more holes */
        bool crowded;     /* … or for more attempts */
        struct verdict *pending, *committing;
};
struct group {
        UT_hash_handle hh;
        struct om_bus *bus;
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
        char kname[KAFKA_NAME_MAX + 1]; /* of the retry topic */
        char log[KAFKA_NAME_MAX + 1];
        struct om_bus_sub *sub; /* NULL: nobody serves it */
        bool unswept;           /* something was finished */
        struct part **parts;    /* each its own memory: there may be more of them later */
        int n_parts, n_starts, turn;
        unsigned lane;
        bool exactly_once; /* its commits are transactions */
        bool leaving;
        bool gone; /* deleted */
        int64_t reclaim_idle_ms;
        int64_t *starts; /* of each partition, where this daemon made the group */
        struct event *linger;
};
struct om_bus_sub {
        struct group *group; /* NULL: it was deleted */
        struct om_bus *bus;  /* then */
        void *core;
        unsigned want;
        struct om_delivery **fresh; /* for the core at the end of this turn */
        size_t n_fresh, cap_fresh;
        struct om_bus_sub *prev, *next;
};
int kafka_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e);
void kafka_bus_unsubscribe(struct om_bus_sub *s);
void kafka_bus_want(struct om_bus_sub *s, unsigned n);
struct group *kafka_group_find(struct om_bus *b, struct om_span topic, struct om_span agent);
void kafka_group_gone(struct group *g); /* deleted: revokes what is out, and leaves */
void kafka_group_free(struct group *g);
void kafka_group_leave_now(struct group *g);
int kafka_group_add_parts(struct group *g, int n); /* up to n; -ENOMEM */
void kafka_groups_close(struct om_bus *b);         /* ends with kafka_bus_let_go() */
void kafka_groups_free(struct om_bus *b);
void kafka_bus_let_go(struct om_bus *b);
void kafka_bus_transacts(struct om_bus *b); /* kept in the state folder, for the next life */
#define KAFKA_START_KEY "omni-start"        /* of the message in a retry partition that says from where on the group reads the topic's */

/* bus_member.c */
void kafka_member_poll(struct om_bus *b);
void kafka_member_take(struct om_bus *b, const struct group *g); /* what is ours of a group that is served from now on */
void kafka_rebalanced(rd_kafka_t *rk, rd_kafka_resp_err_t err, rd_kafka_topic_partition_list_t *list, void *opaque);
void kafka_revoke_check(struct om_bus *b); /* whether what goes to another daemon may go now */
void kafka_subscription_soon(struct om_bus *b);
int kafka_member_timers(struct om_bus *b, struct om_error *e);

/* bus_load.c */
void kafka_parts_load(struct om_bus *b, struct part **parts, size_t n);
void kafka_parts_find_again(struct om_bus *b);                /* those that are astray */
void kafka_parts_log_anew(struct om_bus *b, const char *log); /* it was deleted, and is made anew */

/* bus_part.c */
int kafka_part_start(struct part *p, struct kafka_state *s, struct om_error *e); /* takes s */
void kafka_part_suspend(struct part *p);
void kafka_part_resume(struct part *p);
void kafka_part_stop(struct part *p); /* reads no more */
void kafka_part_lose(struct part *p); /* not ours: what is out is revoked */
void kafka_lane_ready(struct om_bus *b, struct lane *l);
void kafka_on_wake_timer(evutil_socket_t fd, short what, void *ctx);
void kafka_part_readable(struct om_bus *b, uint32_t code);
void kafka_part_read(struct part *p, int which, size_t n); /* what has come, at most so many messages */
void kafka_part_touch(struct part *p);                     /* something changed that a commit should say, soon */
void kafka_part_pack(struct part *p, struct om_buf *b, bool clean);
int kafka_part_state(const struct part *p, bool clean, struct kafka_state *ret); /* borrows the runs */
void kafka_part_state_free(struct kafka_state *s);

/* bus_deliver.c */
void kafka_delivery_arrived(struct part *p, int which, rd_kafka_message_t *m);    /* takes it */
void kafka_delivery_ready(struct delivery *d);                                    /* for the core, in its place */
void kafka_delivery_again(struct delivery *d, uint32_t attempts, int64_t due_ms); /* settled so */
void kafka_delivery_over(struct delivery *d);                                     /* finished, or not ours */
void kafka_delivery_free(struct delivery *d);                                     /* one of no partition */
void kafka_pump_soon(struct om_bus *b);
void kafka_sub_forget(struct om_bus_sub *s); /* nobody serves its group: what was on its way to the core stays */
void kafka_revoked_soon(struct om_bus *b, struct group *g, struct om_delivery **out, size_t n);
void kafka_revoked_except(struct om_bus *b, const struct om_delivery *d, const struct om_bus_sub *sub);

/* -- settling (bus_settle.c, bus_txn.c) ---------------------------------------------------------------------------------- */

struct output {
        struct topic_wait wait; /* first; for its topic */
        struct outputs *of;
        struct topic *topic;
        void *value;
        size_t len, key_len;
        char *key;
        rd_kafka_headers_t *headers;
};
struct outputs { /* of one ack; the transaction under way has a reference of its own */
        int refs;
        struct verdict *verdict; /* NULL: it is over */
        size_t n, missing;       /* topics that are not known to be there */
        int status;
        struct om_error error;
        struct output items[];
};
struct verdict {
        struct om_bus *bus;
        struct settle *settle; /* NULL: nobody waits */
        size_t index;
        struct delivery *delivery;
        struct part *part; /* NULL: it was lost */
        enum om_verdict kind;
        bool moved; /* to the retry topic */
        int64_t due_ms;
        struct send letter; /* OM_DEAD */
        int letter_status;
        const char *letter_why;
        struct outputs *outputs;
        struct verdict *prev, *next; /* bus->sending, part->pending or part->committing */
};
int kafka_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e);
void kafka_commit_soon(struct om_bus *b);
void kafka_sweep_soon(struct om_bus *b); /* something was finished: what nobody needs is deleted in a while */
void kafka_on_sweep_timer(evutil_socket_t fd, short what, void *ctx);
void kafka_on_commit_timer(evutil_socket_t fd, short what, void *ctx);
void kafka_commit_lost(struct part *p); /* its verdicts end as -ESTALE */
void kafka_verdict_over(struct verdict *v, int status, const char *why);
void kafka_commit_done(struct om_bus *b, struct part *p, bool ok);
bool kafka_commit_idle(const struct om_bus *b);
void kafka_commit_entry(struct part *p, rd_kafka_topic_partition_list_t *list);
int kafka_outputs_copy(struct verdict *v, const struct om_settlement *item);
void kafka_outputs_unref(struct outputs *o);
void kafka_outputs_there(struct verdict *v, int status, const char *why);            /* the topics are, or cannot be made */
void kafka_txn_delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque); /* the library's, on the transaction's thread */
void kafka_txn_commit(struct om_bus *b, struct part **parts, size_t n);
void kafka_txn_close(struct om_bus *b);
/* On a worker: ends a transaction that this daemon left open when it died; what is committed is not known before. */
void kafka_txn_recover(struct om_bus *b);

/* -- dead letters (bus_dead.c), looking in (bus_query.c), changes (bus_change.c) ------------------------------------------ */

struct dead_topic;
void kafka_dead_forget(struct om_bus *b, const char *kname);
void kafka_dead_free(struct om_bus *b);
void kafka_whole_names_free(struct om_bus *b);
/* The text of a dead letter, and the place of its message, which is its key. */
void kafka_letter(struct om_buf *out, const struct om_dead_letter *l, const struct delivery *d, char *ret_place, size_t size);
int kafka_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e);
int kafka_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e);
/* Gives a topic's groups as many partitions as it has, without waiting. */
void kafka_catch_up(struct om_bus *b, const char *topic, int partitions);

/* A message as the core sees it; `topic` NULL: of any. In `arena` unless the message is it. */
struct om_span kafka_message_record(const rd_kafka_message_t *m, const char *topic, bool any_topic, struct om_arena *arena);
struct om_span kafka_message_header(const rd_kafka_message_t *m, const char *name);

/* -- the bus ------------------------------------------------------------------------------------------------------------- */

struct om_bus {
        struct om_host *host;
        const struct om_bus_events *events;
        void *core;
        struct kafka_settings settings;
        char *texts[3]; /* of the settings, that are used after opening */
        char where[400], group_id[300], instance[INSTANCE_MAX + 1];
        uint64_t owner; /* of the instance */
        rd_kafka_conf_t *conf;
        rd_kafka_t *member;
        rd_kafka_t *_Atomic producer; /* sends: the loop's, and of whole names the worker's; one that was given up is retired */
        rd_kafka_t *asker;            /* the first one: all calls ask with it, from any thread, as long as the bus is open */
        struct {
                rd_kafka_t *rk;
                rd_kafka_queue_t *queue;
        } retired[RETIRED_MAX];
        unsigned n_retired;
        rd_kafka_queue_t *member_queue, *producer_queue;
        struct lane *lanes[LANES_MAX];
        unsigned n_lanes;
        int pipe[2];
        struct event *readable, *beat, *commit_timer, *poll_timer, *subscribe_timer, *revoke_timer, *sweep_timer, *wake_timer;
        struct om_worker *workers[N_WORKERS];

        enum om_bus_state state;
        struct om_error reason, last_error, send_error;
        struct call probe, end;
        bool probing, probe_ok, told, closing, member_closed;
        unsigned probe_n, n_measured;
        int probe_limit_ms, probe_grown_ms; /* how long this one may take; what the next may at least, while none has answered */
        int64_t probe_took_ms;              /* the probe's thread's, until it is done */
        int64_t slow_ms;                    /* what brokers take that are not prompt; 0: they are */
        struct event *probe_timer;

        struct om_jobs jobs;
        struct topic *topics, *wake;
        struct om_post need_post; /* a turn's topics are made by one call */
        bool need_posted;
        struct send *flying;
        int64_t heard_ms; /* from the brokers */
        struct send wake_send;
        bool waking, wake_again;
        int64_t wake_ms;

        struct opening *openings; /* that wait for the one call */
        struct om_post open_post;
        bool open_posted, opening;

        struct group *groups;
        struct om_bus_sub *subs;
        struct part *parts_by_slot;
        uint32_t next_slot;
        rd_kafka_topic_partition_list_t *assigned, *revoking;
        int64_t revoke_by_ms;
        struct call subscribe;
        rd_kafka_topic_partition_list_t *subscribing_to; /* NULL: no subscription is under way */
        bool subscribe_again;
        int64_t subscribe_ms, gather_ms; /* how long the last one took; how long groups are waited for before all are subscribed to */
        struct om_post pump;
        bool pump_posted, in_rebalance, any_astray;

        struct om_post commit_post;
        bool commit_posted, committing;
        atomic_bool joining;         /* the member's generation is about to change: no commits */
        atomic_bool join_unanswered; /* the member has once asked to join and got no answer: it may have joined all the same */
        struct call renewal;
        bool renewing; /* the member is the worker's, which makes it anew */
        bool renewed;  /* that was done once */
        int64_t opened_ms;
        int64_t commit_after_ms;
        struct txn *txn;
        bool txn_busy, sweeping, undeleted; /* the last sweep may not delete */
        int64_t sweep_ms;                   /* how long the last one took */
        int64_t catch_up_from_ms;           /* groups are not given more partitions before */
        bool transacted, recover;           /* our name was used for transactions; one of a life before may be open */
        struct verdict *sending;            /* whose letter or outputs are on their way */
        struct dead_topic *dead;            /* the worker's of calls, and so are these */
        struct whole_name *whole_names;
        int64_t whole_next;             /* read up to here */
        bool whole_there;               /* their topic */
        struct revocation *revocations; /* posted */

        bool ending; /* closing, while what is ours is let go of */
        int64_t ending_by_ms;
        struct om_op *close_op;
        struct om_post closed;
        int close_step;
};

#define CONTAINER(p, type, member) ((type *) (void *) ((char *) (p) -offsetof(type, member)))

#endif
