/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LOCAL_STATE_H
#define OM_LOCAL_STATE_H
/*
 * The embedded bus: what its files share.
 *
 *   loop thread                                bus thread (all of struct bus but what is marked)
 *   bus.c: copies a call into a message ─────▶ turn.c: all messages of a turn in one LMDB transaction, one fsync
 *   bus.c: completions, deliveries      ◀───── one post a turn
 *
 *   env.c      the folder, its lock, LMDB, the tables, growth            model.c    logs, groups, attachments: records, loading, flushing
 *   publish.c  tasks into logs; dedupe; delay                            group.c    start positions; what a group had before a start
 *   held.c     rows met and not finished: keys, retries                  fill.c     handing out
 *   settle.c   verdicts; finishing a row; dead letters                   sweep.c    what time ends
 *   change.c   deleting, replaying, seeking                              jobs.c     large deletions, in slices
 *   query.c    looking in
 *
 * The words, beside bus.h's:
 *   log      the rows of one topic, or a group's private one (dead letters given back by replay). Rows are (lane, seq).
 *   lane     9 − priority: lane 0 is served first. A log numbers its rows through all lanes.
 *   attach   one group reading one log: per lane a floor, a cursor, a mark. A group of a pattern has many.
 *   floor    below it the group has finished everything (or never had it)
 *   mark     below it rows may have been handed out, as the disk knows: after a death an unfinished row below it has lost an attempt
 *   held     a row that the group has met and not finished: with a worker, waiting for a retry, for its key, or for credit
 *
 * Always true of the disk, after every commit:
 *   - a row is there while some attachment needs it: seq ≥ its floor, and no done mark of it;
 *   - finished for an attachment: row gone, or seq < floor, or done mark. Done marks exist only above the floor;
 *   - an attempt count that is neither 0 nor told by the mark stands in a pend row;
 *   - what is being deleted is marked dying in the same commit that took its name away, and is deleted in slices, also after a death.
 * Always true in memory: whatever is derived can be thrown away and read again from the disk (model_reload), leases included. That is how a
 * failed transaction is undone: nothing else undoes anything.
 */
#include <lmdb.h>
#include <stdatomic.h>

/* An allocation that fails inside uthash must not end the daemon, and nobody outside may choose names that share a hash. */
#define HASH_NONFATAL_OOM 1
#define HASH_FUNCTION(key, len, hash) (hash) = (unsigned) hash64(key, len, om_local_seed)
#include <uthash.h>

#include "../bus.h"

extern uint64_t om_local_seed; /* chosen once a process, before the first table */
uint64_t hash64(const void *data, size_t n, uint64_t seed);

enum { LANES = OM_PRIORITY_MAX + 1, PARKED_MAX = 65536, SLICE_ROWS = 4000 };

enum local_durability { DURABILITY_ALWAYS, DURABILITY_INTERVAL, DURABILITY_MEMORY };
struct local_settings {
        int durability;
        int64_t sync_interval_ms;
        int64_t retention_ms;
        int64_t max_bytes, max_topic_bytes; /* of tasks held; 0: no limit */
        int64_t idempotency_window_ms;
};

/* -- keys and records ---------------------------------------------------------------------------------------------- */

static inline void be32(uint8_t *p, uint32_t v) {
        v = __builtin_bswap32(v);
        memcpy(p, &v, 4);
}
static inline void be64(uint8_t *p, uint64_t v) {
        v = __builtin_bswap64(v);
        memcpy(p, &v, 8);
}
static inline uint32_t rd32(const void *p) {
        uint32_t v;
        memcpy(&v, p, 4);
        return __builtin_bswap32(v);
}
static inline uint64_t rd64(const void *p) {
        uint64_t v;
        memcpy(&v, p, 8);
        return __builtin_bswap64(v);
}

enum { ROW_KEY = 13 }; /* (log or attach u32, lane u8, seq u64), big-endian: LMDB's order is ours */
static inline void row_key(uint8_t key[ROW_KEY], uint32_t owner, uint8_t lane, uint64_t seq) {
        be32(key, owner);
        key[4] = lane;
        be64(key + 5, seq);
}

/* A row of a log, read. On disk: flags u8, published_ms, then expires_ms and key where the flags say so, then the record. */
enum { ROW_EXPIRES = 1, ROW_KEYED = 2 };
struct row {
        int64_t published_ms, expires_ms; /* 0: never */
        uint64_t key;                     /* hash of the task's key; 0: none */
        struct om_span record;
};
/* -MDB_CORRUPTED for bytes that are no row. */
int row_read(const MDB_val *v, struct row *ret);

/* -- what is in memory --------------------------------------------------------------------------------------------- */

struct log {
        uint32_t id;
        bool dying, dirty, private, gone; /* gone: its record was deleted in this transaction */
        uint16_t lanes;                   /* bit i: lane i was ever used */
        char name[OM_TOPIC_MAX + 1];
        size_t name_len;             /* 0: private */
        uint64_t next_seq, in_total; /* in_total: rows ever put */
        uint64_t published, rows, depth, delayed, bytes;
        uint64_t orphan_floor; /* where a first group starts: below it rows belonged to groups that were deleted */
        int64_t created_ms;
        uint64_t lane_end[LANES]; /* one above the last row that can be in the lane */
        struct attach *attaches, *dying_attaches;
        unsigned n_attaches; /* live ones */
        struct log *dirty_next;
        UT_hash_handle hh_id, hh_name;
};

struct lane {
        uint64_t floor, mark, handed, cursor;
        struct held *first, *last; /* by seq */
};
struct attach {
        uint32_t id;
        bool dying, dirty, gone, active; /* active: on its group's list of attachments whose cursors have something before them */
        struct log *log;
        struct group *group;
        uint64_t base, finished; /* remaining = log.in_total − base − finished */
        uint64_t n_done, n_pend;
        uint64_t start, end; /* floors at creation; when dying: where its rows ended */
        struct lane lanes[LANES];
        struct attach *log_next, *group_next, *dirty_next, *active_next;
        UT_hash_handle hh_id;
};

struct key_queue {
        uint64_t key;
        bool busy;           /* one of the key is out, waits for a retry, or is ready */
        struct held *holder; /* NULL while only a delivery is known (loading) */
        struct held *first, *last;
        UT_hash_handle hh;
};

struct group {
        uint32_t id, private_log;
        bool pattern, deleted, purge, loaded, dirty, gone, queued; /* queued: on the fill list */
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
        size_t topic_len, agent_len;
        char name[OM_TOPIC_MAX + OM_NAME_MAX + 2]; /* topic, zero byte, agent: the hash's key */
        uint64_t finished, expired, dead, dlq_next;
        int64_t created_ms;
        uint16_t lanes; /* that a log of its attachments ever used */
        struct attach *attaches, *active, *active_last;
        struct om_bus_sub *sub; /* served here */
        struct held *ready[LANES], *ready_last[LANES];
        struct key_queue *keys;
        unsigned n_parked;
        uint64_t leased, retrying;
        struct group *dirty_next, *fill_next, *pattern_next;
        UT_hash_handle hh_id, hh_name;
};

enum held_state {
        HELD_LOOSE,  /* nowhere: being handled right now */
        HELD_READY,  /* would go out with the next credit: on the group's ready list */
        HELD_LEASED, /* with the core: `delivery` is set */
        HELD_RETRY,  /* until due_ms: in the heap */
        HELD_PARKED, /* its key is busy: in the key's queue */
};
struct held_id {
        uint32_t attach, lane;
        uint64_t seq;
};
struct held {
        struct held_id id;
        struct attach *at;
        enum held_state state;
        bool has_pend;
        uint32_t attempts; /* that ended, or were interrupted */
        uint32_t size;     /* of the row on disk, counted in log.bytes */
        int64_t expires_ms, due_ms;
        uint64_t key;
        struct held *prev, *next;     /* in the lane */
        struct held *q_prev, *q_next; /* ready list or key queue */
        size_t heap_index;
        size_t redelivered_slot; /* place in bus.redelivered + 1; 0: not there */
        struct local_delivery *delivery;
        UT_hash_handle hh;
};

/* -- deliveries ---------------------------------------------------------------------------------------------------- */

/* Memory of deliveries: carved by the bus thread, given back on the loop when the last one was settled. */
struct slab {
        size_t refs; /* the bus thread's until posted, then the loop's */
        size_t used, cap;
        char data[];
};
struct local_delivery {
        struct om_delivery d;
        struct slab *slab;
        /* the bus thread's: */
        struct held *held; /* NULL: no longer ours */
        struct held_id id;
        uint32_t attempts;
        uint64_t key;
        struct local_delivery *prev, *next; /* outstanding ones of the sub */
};

/* -- messages ------------------------------------------------------------------------------------------------------ */

enum msg_type { MSG_PUBLISH, MSG_SUBSCRIBE, MSG_UNSUBSCRIBE, MSG_WANT, MSG_SETTLE, MSG_QUERY, MSG_CHANGE, MSG_START, MSG_CLOSE };

struct msg {
        struct om_work work; /* first */
        enum msg_type type;
        struct om_bus *bus;
        struct om_op *op;
        struct om_post post;    /* used where there is no memory for a struct news */
        struct msg *next;       /* of a turn, of the waiters, of what is posted */
        struct om_bus_sub *sub; /* MSG_WANT, MSG_UNSUBSCRIBE */
        int status;
        bool again; /* a subscribe() that must wait for a job */
        struct om_error error;
        size_t bytes;    /* counted as in flight */
        uint64_t serial; /* a change: complete when jobs up to this one are over */
};

struct publish_item {
        struct om_span topic, record, id, idempotency_key;
        uint64_t key;
        int64_t ttl_ms, delay_ms;
        uint8_t lane;
};
struct msg_publish {
        struct msg m;
        struct om_outcome *outcomes; /* the core's */
        size_t n;
        struct publish_item items[]; /* then the bytes */
};

struct settle_item {
        struct local_delivery *delivery;
        enum om_verdict verdict;
        int64_t due_ms;
        struct om_dead_letter letter;
        struct publish_item *outputs;
        size_t n_outputs;
        int status;
        const char *why;
};
struct msg_settle {
        struct msg m;
        size_t n;
        struct settle_item items[]; /* then outputs, then the bytes */
};

struct msg_subscribe {
        struct msg m;
        struct om_bus_sub *sub;
        enum om_start start;
        int64_t start_ms;
        bool created;
        uint32_t group_id;
        size_t topic_len, agent_len;
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
};
struct msg_query {
        struct msg m;
        struct om_span topic, agent, cursor; /* copies behind */
        struct om_span *ids;
        size_t n_ids;
};
struct msg_change {
        struct msg m;
        enum om_bus_change_type what;
        enum om_start start;
        int64_t start_ms;
        bool delete_dead_letters;
        struct om_span topic, agent;
        struct om_span *ids;
        size_t n_ids;
        uint64_t n, n_slice;      /* done and committed; of the transaction under way */
        uint64_t next_id, end_id; /* all dead letters: the range still to do, as the last commit left it */
        uint64_t slice_id;        /* and as the transaction under way leaves it */
        uint32_t group_id;
};

/* A group served. Loop and bus thread each have their half. */
struct om_bus_sub {
        /* loop */
        struct om_bus *bus;
        void *core;
        bool closed;
        uint32_t delivered; /* handed to the core, ever (wraps) */
        struct msg want_msg, close_msg;
        /* both: bit 63 set while want_msg is under way, 31 bits of n, 32 bits of `delivered` when it was said */
        _Atomic uint64_t want_word;
        /* bus thread */
        struct group *group;
        uint32_t group_id;
        uint32_t sent; /* handed over, ever (wraps) */
        unsigned want;
        struct local_delivery *out;
        uint64_t n_out;
        struct batch *batch; /* of this turn */
        uint64_t expired;    /* of this turn */
        bool expired_queued;
        bool leaving; /* its unsubscribe() is being applied: the group may be served anew in the same turn */
        struct om_bus_sub *prev, *next, *expired_next;
};

/* What one turn sends to the loop. */
struct batch {
        struct batch *next;
        struct om_bus_sub *sub;
        size_t n, cap;
        bool revoked;
        struct om_delivery *items[];
};
struct news {
        struct om_post post;
        struct om_bus *bus;
        struct msg *done;
        struct batch *batches, **batches_end;
        struct expired_note {
                struct expired_note *next;
                struct om_bus_sub *sub;
                uint64_t n;
        } * expired;
        bool state_changed;
        enum om_bus_state state;
        struct om_error error;
};

/* Work in slices, oldest first. */
enum job_type { JOB_LOG, JOB_ATTACH, JOB_PURGE_GROUP, JOB_LETTERS };
struct job {
        struct job *next;
        enum job_type type;
        uint64_t serial;
        struct log *log;
        struct attach *attach;
        struct group *group;
        struct msg_change *msg;
        uint8_t at[16]; /* JOB_LOG: how far through the delayed tasks */
        bool finished;  /* in this transaction: freed after its commit */
};

enum table { T_META, T_LOGS, T_GROUPS, T_ATTACHES, T_ROWS, T_PEND, T_DONE, T_DELAYED, T_TTL, T_DEDUPE, T_DEDUPE_TIME, T_DEAD, N_TABLES };

struct om_bus {
        struct om_host *host;
        const struct om_bus_events *events;
        void *core;
        struct om_worker *worker;
        struct local_settings settings;
        char *path;
        int lock_fd;

        /* loop */
        size_t in_flight, in_flight_bytes;
        bool closing;
        struct om_op *close_op;
        struct om_post stopped, ready;
        struct msg start_msg, close_msg;

        /* bus thread, from here on (the loop before the thread's first turn and after its last) */
        MDB_env *env;
        MDB_dbi t[N_TABLES];
        MDB_txn *txn, *reader;
        MDB_cursor *rows; /* of `txn` */
        size_t map_bytes;
        uint8_t top_row[ROW_KEY]; /* no row's key is above it */

        uint32_t next_log, next_group, next_attach;
        uint64_t next_delayed;
        bool meta_dirty;
        struct log *logs, *topics; /* by id, by name (live topics) */
        struct group *groups, *group_names, *patterns;
        struct attach *attach_ids;
        struct log *dirty_logs;
        struct group *dirty_groups;
        struct attach *dirty_attaches;
        struct log *last_log; /* published to last, in this transaction */
        uint64_t bytes;       /* sum of all logs' */

        struct held *helds; /* by id */
        struct held *free_helds;
        unsigned n_free_helds;
        struct held **heap;
        size_t n_heap, heap_cap;
        struct held **redelivered;
        size_t n_redelivered, redelivered_cap;

        struct om_bus_sub *subs;
        struct om_bus_sub *expired_subs;
        struct group *fill;
        struct slab *slab;
        struct news *news;
        struct msg *done, **done_end; /* completed in this turn */
        struct msg *deferred;         /* subscribe() of new groups: until no job runs */

        struct job *jobs, **jobs_end;
        uint64_t next_serial;
        struct msg *waiters;

        int64_t now_ms;                                     /* wall clock of this turn */
        int64_t due_delayed, due_ttl, due_dedupe, due_kept; /* the earliest in each table; INT64_MAX: none */
        int64_t marks_due;                                  /* monotonic: marks in memory are above the disk's; INT64_MAX: they are not */
        int64_t sync_due;                                   /* monotonic; DURABILITY_INTERVAL */
        bool untold;                                        /* the loop has not been told of new_state, for want of memory */
        enum om_bus_state new_state;
        struct om_error new_error;
        bool failed;
        unsigned n_failures;
        int64_t retry_at; /* monotonic: when to try the folder again */
        bool oom;         /* an allocation failed in this transaction */
        int fill_error;   /* of the last turn that handed out */

        uint64_t commits, commit_tasks, last_commit_ns;
};

/* -- env.c --------------------------------------------------------------------------------------------------------- */
/* Faults are injected here by tests: what ends a transaction, and what opens the environment. */
extern int (*om_local_commit)(MDB_txn *txn);

int env_lock(struct om_bus *b, struct om_error *e);
void env_unlock(struct om_bus *b);
int env_open(struct om_bus *b, struct om_error *e); /* 0 or an LMDB code or errno, `e` filled */
void env_close(struct om_bus *b);
int env_grow(struct om_bus *b, size_t need); /* between transactions: at least `need` bytes free; 0 or a code */
int env_error(struct om_error *e, const struct om_bus *b, int code, const char *what); /* negative errno */
int txn_begin(struct om_bus *b);
int txn_commit(struct om_bus *b);
void txn_abort(struct om_bus *b);
int reader_begin(struct om_bus *b);
void reader_end(struct om_bus *b);
uint64_t env_used_bytes(struct om_bus *b);

static inline MDB_val val(const void *p, size_t n) { return (MDB_val){ n, (void *) (uintptr_t) p }; }
int t_put(struct om_bus *b, enum table t, const void *key, size_t key_len, const void *data, size_t len);
int t_get(struct om_bus *b, MDB_txn *txn, enum table t, const void *key, size_t key_len, MDB_val *ret);
int t_del(struct om_bus *b, enum table t, const void *key, size_t key_len); /* 0 also where there was none; *b's txn */

/* -- records.c ----------------------------------------------------------------------------------------------------- */
int log_write(MDB_cursor *c, const struct log *l); /* a cursor of T_LOGS */
int log_read(struct log *l, MDB_val key, MDB_val v);
int group_write(struct om_bus *b, const struct group *g);
int group_read(struct group *g, MDB_val key, MDB_val v);
void group_set_name(struct group *g); /* from topic and agent */
static inline size_t group_name_len(const struct group *g) { return g->topic_len + 1 + g->agent_len; }
int attach_write(MDB_cursor *c, const struct attach *at); /* of T_ATTACHES */
int attach_read(struct attach *at, MDB_val key, MDB_val v, uint32_t *ret_group, uint32_t *ret_log);

/* -- model.c ------------------------------------------------------------------------------------------------------- */
int model_load(struct om_bus *b);   /* from the disk; 0 or a code */
void model_free(struct om_bus *b);  /* forgets everything but subs and their deliveries */
int model_reload(struct om_bus *b); /* the two, and leases found again */
int model_flush(struct om_bus *b);  /* writes dirty records into the transaction */
struct log *log_find(struct om_bus *b, struct om_span name);
int log_make(struct om_bus *b, struct om_span name, struct log **ret); /* with the attachments of patterns that match */
int log_make_private(struct om_bus *b, struct group *g, struct log **ret);
struct group *group_find(struct om_bus *b, struct om_span topic, struct om_span agent);
struct group *group_by_id(struct om_bus *b, uint32_t id);
int group_make(struct om_bus *b, struct om_span topic, struct om_span agent, struct group **ret);
int attach_make(struct om_bus *b, struct log *l, struct group *g, uint64_t start, uint64_t remaining, struct attach **ret);
void log_unname(struct om_bus *b, struct log *l);
void attach_unlink(struct om_bus *b, struct attach *at); /* off its log's and group's lists of live ones */
void attach_dies(struct om_bus *b, struct attach *at);   /* onto its log's list of dying ones */
void group_free(struct om_bus *b, struct group *g);
void log_free(struct om_bus *b, struct log *l);
void attach_free(struct om_bus *b, struct attach *at);
void log_dirty(struct om_bus *b, struct log *l);
void group_dirty(struct om_bus *b, struct group *g);
void attach_dirty(struct om_bus *b, struct attach *at);
/* The effective floor: what model_flush() will write. */
static inline uint64_t lane_floor(const struct lane *lane) {
        uint64_t floor = lane->first ? lane->first->id.seq : lane->cursor;

        return floor > lane->floor ? floor : lane->floor;
}
static inline uint64_t attach_remaining(const struct attach *at) { return at->log->in_total - at->base - at->finished; }

/* -- publish.c ----------------------------------------------------------------------------------------------------- */
int publish_apply(struct om_bus *b, struct msg_publish *m);
/* What the limits say of these tasks together: 0 or -ENOBUFS with *ret_why. */
int publish_allowed(struct om_bus *b, const struct publish_item *items, size_t n, const char **ret_why);
int publish_one(struct om_bus *b, const struct publish_item *item, struct om_outcome *outcome);
int row_put(struct om_bus *b, struct log *l, uint8_t lane, int64_t published_ms, int64_t expires_ms, uint64_t key, struct om_span record);
int row_delete(struct om_bus *b, struct log *l, uint8_t lane, uint64_t seq, size_t size, int64_t expires_ms);
int delayed_move(struct om_bus *b, bool *ret_more);
int dedupe_sweep(struct om_bus *b, bool *ret_more);

/* -- group.c ------------------------------------------------------------------------------------------------------- */
int group_start(struct om_bus *b, struct group *g, enum om_start start, int64_t start_ms); /* attaches a new group to what is there */
int attach_start(struct om_bus *b, struct group *g, struct log *l, enum om_start start, int64_t start_ms, struct attach **ret);
int group_load(struct om_bus *b, MDB_txn *txn, struct group *g);
void group_wake(struct om_bus *b, struct group *g); /* onto the fill list, if it is served and wants something */
void log_wake(struct om_bus *b, struct log *l);     /* a row was put */
void attach_activate(struct attach *at);
int fill(struct om_bus *b);                         /* hands out what is wanted; after the commit */
void held_is_out(struct om_bus *b, struct held *h); /* the disk learns of the attempt with the next marks */
/* Loose; NULL: no memory. */
struct held *held_new(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, const struct row *row, size_t size);
struct key_queue *key_get(struct group *g, uint64_t key, bool make);
bool key_busy(struct group *g, uint64_t key);
int key_park(struct held *h); /* behind the one that is out */
int key_hold(struct held *h); /* h is the one that is out */
void key_release(struct om_bus *b, struct group *g, uint64_t key);
void attach_forget(struct om_bus *b, struct attach *at); /* all its helds, as if never met */
struct held *held_find(struct om_bus *b, uint32_t attach, uint8_t lane, uint64_t seq);
void held_ready(struct om_bus *b, struct held *h);
int held_retry(struct om_bus *b, struct held *h, int64_t due_ms);
void held_unqueue(struct om_bus *b, struct held *h); /* out of where its state has it: loose */
void held_free(struct om_bus *b, struct held *h);    /* hands its key on */
void retries_due(struct om_bus *b);
int redelivered_flush(struct om_bus *b);
void held_not_redelivered(struct om_bus *b, struct held *h); /* the next flush does not count what is out */
void delivery_unlink(struct local_delivery *d);
void group_revoke(struct om_bus *b, struct group *g, struct attach *only); /* takes back what is out, of one attachment or all */

/* -- settle.c ------------------------------------------------------------------------------------------------------ */
int settle_apply(struct om_bus *b, struct msg_settle *m);
void settle_committed(struct om_bus *b, struct msg_settle *m);
/* The attachment has finished the row: it goes, or a mark stays. `h` is its held, or NULL when it was not met. */
int row_finish(struct om_bus *b, struct attach *at, uint8_t lane, uint64_t seq, struct held *h, size_t size, int64_t expires_ms);
/* Whether an attachment other than `but` needs the row. */
int row_needed(struct om_bus *b, MDB_txn *txn, struct log *l, struct attach *but, uint8_t lane, uint64_t seq, bool *ret);
int pend_put(struct om_bus *b, struct held *h, uint32_t attempts, int64_t due_ms);
int held_release(struct om_bus *b, struct held *h); /* back at once, not counted */
int held_expire(struct om_bus *b, struct held *h);
int letter_read(const MDB_val *v, struct om_dead_letter *ret, uint64_t *ret_key, uint8_t *ret_lane);

/* -- sweep.c ------------------------------------------------------------------------------------------------------- */
bool sweep_due(struct om_bus *b);
void kept_later(struct om_bus *b); /* a finished row stays: somebody must look after retention_ms */
int sweep_apply(struct om_bus *b);
int64_t sweep_next(struct om_bus *b); /* wall clock of what comes next; INT64_MAX: nothing */
int sweep_load(struct om_bus *b, MDB_txn *txn);

/* -- jobs.c -------------------------------------------------------------------------------------------------------- */
int job_add(struct om_bus *b, enum job_type type, struct log *l, struct attach *at, struct group *g, struct msg_change *msg);
int jobs_slice(struct om_bus *b);                     /* one transaction's share of the oldest jobs */
void jobs_committed(struct om_bus *b);                /* frees what is gone, completes the changes that waited for it */
bool jobs_block_start(struct om_bus *b);              /* a new group must wait: rows are being deleted */
int attach_kill(struct om_bus *b, struct attach *at); /* marks it dying, with a job */
int log_kill(struct om_bus *b, struct log *l);        /* after its attachments */
int group_kill(struct om_bus *b, struct group *g);    /* the record and the dead letters; after its attachments and logs */

/* -- query.c, change.c --------------------------------------------------------------------------------------------- */
void query_run(struct om_bus *b, struct msg_query *m);
int change_apply(struct om_bus *b, struct msg_change *m);
int letters_slice(struct om_bus *b, struct job *j, unsigned *budget);

/* -- turn.c -------------------------------------------------------------------------------------------------------- */
int bus_turn(void *ctx, struct om_work *list);
void msg_done(struct om_bus *b, struct msg *m, int status); /* goes to the loop at the end of the turn */
struct news *bus_news(struct om_bus *b);
void bus_state(struct om_bus *b, enum om_bus_state state, const struct om_error *error);
struct batch *news_batch(struct om_bus *b, struct om_bus_sub *sub, bool revoked, struct batch *last);
void sub_expired(struct om_bus *b, struct group *g, uint64_t n);
/* -- bus.c --------------------------------------------------------------------------------------------------------- */
void news_run(struct om_post *post);
void slab_unref(struct slab *s);

#endif
