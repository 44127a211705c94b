/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REDIS_BUS_STATE_H
#define OM_REDIS_BUS_STATE_H
/*
 * What the bus's files share.
 *
 *   bus.c          the ops, opening and closing; how the promises of bus.h are kept
 *   bus_work.c     operations under way
 *   bus_keys.c     names of keys                  bus_form.c     tasks and dead letters as the Python OmniDaemon writes them
 *   bus_script.c   all Lua                        bus_publish.c  publishing
 *   bus_group.c    serving a group                bus_read.c     getting tasks: reads, waiting, what is due, what was left behind
 *   bus_deliver.c  deliveries, from an entry of a stream to the core
 *   bus_settle.c   verdicts and leases            bus_trim.c     forgetting what all have finished
 *   bus_query.c    looking in                     bus_change.c   deleting, replaying, purging, seeking
 *   bus_health.c   what the server promises       bus_wait.c     waiting for replicas, and for those that are missing
 *
 * Loop thread.
 */
#include <event2/event.h>

#include "../../proto/hash.h"
#include "../bus.h"
#include "conn.h"

struct bus_settings {
        struct om_redis_settings redis;
        int64_t retention_ms, max_topic_tasks, maxlen, idempotency_window_ms;
        int64_t wait_replicas, wait_timeout_ms;
        bool wait_fsync;
};

enum {
        LEASE_MS = 1500,      /* how often, at the latest, we show that we live; nobody takes over sooner */
        RECLAIM_MS = 180000,  /* the Python one's */
        ID_MAX = 44,          /* of a stream's entry: two numbers of 64 bits and a dash */
        CLAIM_AT_ONCE = 100,  /* entries that a takeover, or looking for what is due, brings */
        IDS_AT_ONCE = 500,    /* ids in one script's arguments */
        OPS_MAX = 8192,       /* operations under way */
        TASKS_MAX = 32768,    /* their tasks */
        READ_AT_ONCE = 512,   /* entries of one read */
        READ_BYTES = 8 << 20, /* and their bytes, as far as the last reads tell */
};

/* -- operations under way (bus_work.c) ------------------------------------------------------------------------------- */

struct work;
typedef void work_end_fn(struct work *w);
/* An operation's work. `end` fills the core's outputs (w->op is NULL where it was told already), `free` what the work has of its own after
 * the core was told; both may be NULL. */
struct work {
        struct om_bus *bus;
        struct om_op *op; /* NULL once the core was told: its outputs are not ours any more */
        unsigned open;    /* commands under way, and 1 for the call itself */
        unsigned n_tasks;
        int status;
        struct om_error error;
        work_end_fn *end, *free;
        struct om_post post;
        bool posted, cancelled;
};
/* Makes room for an operation. NULL: refused, with `ret` and `e`. `size` of the struct that begins with a work; zeroed. */
void *om_redis_work_begin(struct om_bus *b, struct om_op *op, size_t size, size_t n_tasks, work_end_fn *end, int *ret, struct om_error *e);
/* The call is through. If no command is under way, the end comes in a later turn. Returns 0, for the call to return. */
int om_redis_work_called(struct work *w);
void om_redis_work_hold(struct work *w);
void om_redis_work_release(struct work *w);
void om_redis_work_fail(struct work *w, int status, const struct om_error *e); /* the first failure counts */
/* Sends a command of this work; a refusal is its failure. Whether it was sent. `done`'s ctx is the work; it ends with
 * om_redis_work_release(). */
bool om_redis_work_send(struct work *w, struct om_redis_cmd *c, om_redis_done_fn *done);
bool om_redis_work_send_node(struct work *w, struct om_redis_node *node, struct om_redis_cmd *c, om_redis_done_fn *done);

/* -- the bus --------------------------------------------------------------------------------------------------------- */

struct bus_reader_place {
        struct om_redis_node *node;
        intptr_t slot; /* -1: no cluster, and the server's whole */
};

/* A connection on which we wait, and the groups for which we do: see bus_reader.c. */
struct bus_reader {
        UT_hash_handle hh; /* of a bus, by `at` */
        struct bus_reader_place at;
        struct om_bus *bus;
        struct om_bus_sub *subs; /* by peer_next: whose keys are there */
        struct om_redis_reader *reader;
        bool blocked;    /* a blocking command is under way */
        bool unblocking; /* and the server has been told to end it */
        unsigned unblock_tries;
        struct om_bus_sub *direct; /* it reads for this one, which is held */
        unsigned direct_count;
        struct om_bus_sub **watch; /* or waits for news of these: an array of n_watch; NULL where one has gone */
        size_t n_watch, cap_watch;
        bool asking;         /* it has no connection: its groups ask when `retry` is over */
        struct event *retry; /* to tell the server again; after an error, to wait again */
};

/* A topic that has seen acknowledgements since it was last trimmed. */
struct bus_trim {
        UT_hash_handle hh;
        struct om_bus *bus;
        unsigned n; /* how many */
        bool under_way;
        char stream[];
};

struct om_bus {
        struct om_host *host;
        const struct om_bus_events *events;
        void *core;
        struct bus_settings settings;
        struct om_redis *redis;
        char name[96];      /* of this daemon's, over restarts */
        char consumer[128]; /* and of this life */
        int lock_fd;
        unsigned n_ops, n_tasks;
        struct om_bus_sub *subs;
        struct bus_reader *readers;
        struct bus_shortage *shortages; /* servers that lack replicas */
        struct event *sweep;            /* when others may have died, a third of the least reclaim_idle_ms */
        struct event *idle_backlog;
        struct bus_trim *trims;
        struct event *trim_timer;
        struct om_post pump;
        bool pumping; /* posted */
        bool moved;   /* keys may be elsewhere */
        bool told;    /* that some reader has no connection */
        struct om_op *closing;
        unsigned n_internal; /* commands of no operation */
        bool closed;
};

/* -- groups ---------------------------------------------------------------------------------------------------------- */

struct bus_names { /* keys of a topic's group; see bus_keys.c */
        struct om_buf text;
        struct om_span topic, agent, group, stream, again, due, stats, runs, counts, dead, dead_ids;
};
int om_redis_bus_names_make(struct bus_names *n, struct om_span topic, struct om_span agent); /* -ENOMEM */
void om_redis_bus_names_deinit(struct bus_names *n);
void om_redis_bus_topic_stream(struct om_buf *b, struct om_span topic);
void om_redis_bus_topic_runs(struct om_buf *b, struct om_span topic);
struct om_span om_redis_bus_stream_topic(struct om_span key); /* absent: no topic's */
extern const char om_redis_bus_retry_consumer[];

struct bus_delivery {
        struct om_delivery delivery;      /* first */
        struct bus_delivery *prev, *next; /* the backlog, or what the core has */
        UT_hash_handle hh;
        int64_t renewed_ms;
        bool with_core;
        bool listed;         /* in by_id; not from the moment on when it may come again */
        bool finished;       /* the core is told; what is under way still names it */
        unsigned settling;   /* settlements under way: a cancelled one goes on beside the next */
        bool uncertain;      /* a settlement was sent and its answer lost: "nothing to settle" then means that it held */
        bool again;          /* an entry of the group's own stream */
        char id[ID_MAX + 3]; /* the entry's, with "r:" before it where `again`: its name in the group's keys */
        char record[];
};
static inline const char *delivery_entry(const struct bus_delivery *d) { return d->again ? d->id + 2 : d->id; }
static inline struct om_span delivery_key(const struct bus_delivery *d);

struct om_bus_sub {
        struct om_bus_sub *prev, *next;
        struct om_bus *bus;
        void *core;
        struct bus_names names;
        int64_t reclaim_ms;
        unsigned refs;             /* commands under way, and 1 while it is served */
        bool ended;                /* no events any more */
        bool deleted;              /* the group is gone, by our own hand: it is not made again */
        bool recovering;           /* its own entries are being read, after a start or a broken connection: nothing else is */
        bool unrecovered;          /* they could not be read: once more as soon as that can be */
        struct bus_reader *reader; /* where its keys are; NULL: to be looked up */
        struct om_bus_sub *peer_prev, *peer_next; /* of that reader */
        bool reading;                             /* a read is under way */
        bool claiming;                            /* what is due is being claimed */
        bool dry;                                 /* the last read brought nothing: it waits for news */
        bool woken;                               /* there should be some; when a read finds none, somebody else was faster */
        bool waiting;                             /* in what its reader waits for now */
        unsigned want;
        size_t entry_bytes;                    /* of late, in the mean */
        char last[ID_MAX], last_again[ID_MAX]; /* what the group was last given, as far as we know */
        char own[ID_MAX], own_again[ID_MAX];   /* how far recovering has come */
        struct event *due;
        int64_t due_at_ms;            /* monotonic; INT64_MAX: nothing, as far as we know */
        struct bus_delivery *backlog; /* ours, and not wanted yet: oldest first */
        struct bus_delivery *out;     /* the core's */
        struct bus_delivery *by_id;   /* of both, those that are listed */
        unsigned n_backlog, n_coming; /* coming: their attempts are being looked up */
        unsigned asked;               /* by the read under way */
        bool sick;                    /* nothing can be read for it now: tried again when `due` fires */
};
static inline struct om_span delivery_key(const struct bus_delivery *d) {
        return d->again ? d->delivery.sub->names.again : d->delivery.sub->names.stream;
}
void om_redis_sub_hold(struct om_bus_sub *s);
void om_redis_sub_release(struct om_bus_sub *s);
/* A command for a group that belongs to no operation; done()'s ctx is the sub, and it ends with om_redis_sub_release(). Whether it was
 * sent. */
bool om_redis_sub_send(struct om_bus_sub *s, struct om_redis_cmd *c, om_redis_done_fn *done);

int om_redis_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e);
void om_redis_bus_unsubscribe(struct om_bus_sub *s);
void om_redis_sub_repair(struct om_bus_sub *s);                       /* the server does not know the group: makes it again where we were */
void om_redis_sub_drop_deliveries(struct om_bus_sub *s, bool revoke); /* the group is gone: what is out is nobody's */

/* -- getting tasks (bus_read.c) -------------------------------------------------------------------------------------- */
void om_redis_bus_want(struct om_bus_sub *s, unsigned n);
void om_redis_bus_pump_soon(struct om_bus *b); /* looks at all groups in a later turn */
void om_redis_bus_pump(struct om_post *post);
void om_redis_sub_recover(struct om_bus_sub *s); /* reads what is pending under our own name: answers may have been lost */
void om_redis_sub_sick(
        struct om_bus_sub *s, int status, const struct om_error *error); /* not at once again: in half a second, or in five */
void om_redis_sub_takeover(struct om_bus_sub *s);                        /* what dead daemons held */
void om_redis_sub_due(struct om_bus_sub *s, int64_t in_ms);              /* something is due in so many milliseconds */
void om_redis_bus_sweep_arm(struct om_bus *b);
void om_redis_bus_on_sweep(evutil_socket_t fd, short what, void *ctx);
void om_redis_bus_moved(struct om_bus *b); /* keys may be elsewhere */
bool om_redis_sub_wants(const struct om_bus_sub *s);
unsigned om_redis_sub_asks(const struct om_bus_sub *s); /* for how many entries, at once */
/* XREADGROUP; block_ms < 0: it does not wait. Its answer, to be taken: whether some stream gave as much as was asked for. */
struct om_redis_cmd *om_redis_sub_read_cmd(
        const struct om_bus_sub *s, unsigned count, int64_t block_ms, const char *from, const char *from_again);
bool om_redis_sub_take_read(struct om_bus_sub *s, const struct om_redis_reply *reply, unsigned count);

/* -- waiting for them (bus_reader.c) --------------------------------------------------------------------------------- */
bool om_redis_sub_place(struct om_bus_sub *s);        /* gives it to the reader where its keys are; whether they were elsewhere */
void om_redis_sub_forget(struct om_bus_sub *s);       /* it is no longer waited for */
bool om_redis_sub_direct(const struct om_bus_sub *s); /* what is waited for comes to it without a read */
void om_redis_sub_unblock(struct om_bus_sub *s);      /* ends that wait */
void om_redis_bus_readers_pump(struct om_bus *b);
void om_redis_bus_readers_stop(struct om_bus *b); /* ends waiting; what is under way on other connections may still name a reader */
void om_redis_bus_readers_free(struct om_bus *b);

/* -- deliveries (bus_deliver.c) -------------------------------------------------------------------------------------- */
/* Takes an entry, [id, [field, value, …]], of one of the group's streams. attempt 0: to be looked up; `recount`: with one more. */
void om_redis_sub_take(struct om_bus_sub *s, const struct om_redis_reply *entry, bool again, uint32_t attempt, bool recount);
void om_redis_sub_deliver(struct om_bus_sub *s); /* hands over what is wanted */
void om_redis_delivery_free(struct bus_delivery *d);
void om_redis_sub_let_go(struct om_bus_sub *s); /* frees all its deliveries: nobody will ask for them */
bool om_redis_sub_knows(struct om_bus_sub *s, const char *id);
void om_redis_bus_on_idle_backlog(evutil_socket_t fd, short what, void *ctx);
void om_redis_sub_give_back(struct om_bus_sub *s); /* the backlog */

/* -- verdicts (bus_settle.c) ----------------------------------------------------------------------------------------- */
int om_redis_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e);
void om_redis_bus_extend(struct om_bus *b, struct om_delivery *const *deliveries, size_t n);
struct om_redis_cmd *om_redis_bus_park_cmd(const struct om_bus_sub *s, bool again, const char *entry, const char *member, int64_t delay_ms);

/* -- the rest -------------------------------------------------------------------------------------------------------- */
int om_redis_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e);
int om_redis_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e);
int om_redis_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e);
int om_redis_bus_query_health(struct om_bus *b, struct om_bus_query *op, struct om_error *e);
void om_redis_bus_trim_later(struct om_bus *b, struct om_span stream, unsigned n);
void om_redis_bus_on_trim(evutil_socket_t fd, short what, void *ctx);
struct om_redis_cmd *om_redis_bus_trim_cmd(struct om_bus *b, struct om_span stream);
void om_redis_bus_trims_free(struct om_bus *b);

/* -- replicas (bus_wait.c) ------------------------------------------------------------------------------------------- */
enum { OM_REDIS_SHORT_MAX = 160 };
/* WAIT or WAITAOF, as the URL asks. */
struct om_redis_cmd *om_redis_wait_cmd(const struct om_bus *b, int64_t ms);
/* Whether its reply is enough; else `why` says what is lacking. */
bool om_redis_wait_enough(const struct om_bus *b, const struct om_redis_reply *reply, char why[OM_REDIS_SHORT_MAX]);
/* From now on nothing is published to that server until it has enough of them. */
void om_redis_bus_is_short(struct om_bus *b, struct om_redis_node *node, const char *why);
const char *om_redis_bus_short_of(const struct om_bus *b, const struct om_redis_node *node); /* why nothing is; NULL: it has enough */
void om_redis_bus_shortages_free(struct om_bus *b);

/* -- forms (bus_form.c) ---------------------------------------------------------------------------------------------- */
/* Appends a task as the Python OmniDaemon writes it. */
void om_redis_bus_form_write(struct om_buf *b, const struct om_task *t);
/* Reads one that Python, or we, wrote, and appends our record of it. `topic` is the stream's; `entry` names one without id. -EINVAL: no
 * task, with `e`. */
int om_redis_bus_form_read(struct om_span data, struct om_span topic, const char *entry, struct om_buf *record, struct om_error *e);
/* Appends a dead letter. letter->record absent: `raw` is what failed, as it came. */
void om_redis_bus_letter_write(struct om_buf *b, struct om_span topic, struct om_span stream, const char *entry,
        const struct om_dead_letter *letter, struct om_span raw);
/* The task within, in Python's form: what goes back to the group. Absent: none. In the arena where it had to be decoded. */
struct om_span om_redis_bus_letter_task(struct om_span data, struct om_arena *arena);
/* Fills all but the id; in the arena. -EINVAL where it is no letter. */
int om_redis_bus_letter_read(struct om_span data, struct om_span topic, struct om_arena *arena, struct om_dead_letter *ret);

/* -- scripts (bus_script.c); what each takes and returns stands there ------------------------------------------------- */
extern struct om_redis_script om_redis_script_publish, om_redis_script_subscribe, om_redis_script_leave, om_redis_script_ack,
        om_redis_script_park, om_redis_script_due, om_redis_script_takeover, om_redis_script_extend, om_redis_script_trim,
        om_redis_script_look, om_redis_script_delete_group, om_redis_script_delete_topic, om_redis_script_dead, om_redis_script_letter_drop,
        om_redis_script_letters_purge, om_redis_script_seek, om_redis_script_last, om_redis_script_nudge, om_redis_script_repair,
        om_redis_script_look_group;

#endif
