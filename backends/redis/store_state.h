/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REDIS_STORE_STATE_H
#define OM_REDIS_STORE_STATE_H
/*
 * What the files of the storage share: the storage, its jobs, its keys, its scripts. Loop thread.
 *
 *   store.c          opening, states, closing, the table of ops         store_put.c     writing entries; put_if_absent
 *   store_job.c      an operation under way: commands out, answers in   store_get.c     reading one
 *   store_keys.c     names of keys                                      store_remove.c  deleting, clearing
 *   store_record.c   the text of a result, the hash of an agent         store_list.c    lists of results and metrics
 *   store_script.c   what the server does in one step                   store_names.c   lists of agents, settings and keys, in order of
 * their names store_health.c   health                                             store_sweep.c   keeps the index free of what has expired
 */
#include "../store.h"
#include "conn.h"
#include "durable.h"

struct om_redis_job;

struct om_redis_store_settings {
        struct om_redis_settings redis;
        const char *prefix; /* ours after opening */
        int64_t max_metrics;
};

struct om_redis_sweep; /* store_sweep.c */

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct om_redis_store_settings settings;
        struct om_redis *redis;
        enum om_store_state state;
        struct om_error why;   /* while it is not ready */
        bool apart;            /* keys of one result and of the index may be on different servers */
        unsigned moves;        /* how often keys may have changed servers */
        struct om_buf scratch; /* of key(): valid until the next */
        int64_t last_saved_ms; /* the last result's time, and how many had the same */
        unsigned last_saved_n;

        struct om_redis_job *jobs;                   /* all, in a list by all_next/all_prev */
        struct om_redis_job *stalled, **stalled_end; /* those that wait for room, oldest first */
        size_t n_stalled;
        size_t n_jobs;           /* accepted and not completed */
        size_t bytes_held;       /* of inputs that jobs keep */
        size_t n_out, bytes_out; /* commands under way */

        struct om_redis_sweep *sweep;
        struct om_op *closing;
        unsigned closing_turns;
        struct om_post close_post;
};

/* -- jobs ------------------------------------------------------------------------------------------------------------ */

enum om_redis_more {
        OM_REDIS_SENT,    /* call again: there may be more */
        OM_REDIS_STALLED, /* no room for the next one now */
        OM_REDIS_NO_MORE, /* all are sent */
};

/* The answer to the job's command with this number. status < 0 comes here only where `takes_errors` is set and the server itself said it.
 */
typedef void om_redis_job_answer_fn(
        struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error);

/*
 * An operation under way. It sends commands as long as more() has any and there is room, and when all are answered next() begins another
 * round; when nothing is left, finish() fills the outputs, and the operation completes. The first failure ends it: nothing is sent after
 * it, and it completes when what is under way is answered.
 *
 * Always true: done() has not been called while `op` is there; after it (a cancel) the op's memory is not touched.
 */
struct om_redis_job {
        struct om_redis_job *all_next, *all_prev, *stalled_next;
        struct om_store *store;
        struct om_op *op; /* NULL: completed; its commands are still under way */
        struct om_arena arena;
        enum om_redis_more (*more)(struct om_redis_job *job);
        void (*next)(struct om_redis_job *job);
        void (*finish)(struct om_redis_job *job);
        void (*release)(struct om_redis_job *job); /* frees what is not in the arena */
        size_t waiting;                            /* answers that are owed */
        size_t bytes;                              /* inputs that it keeps */
        bool sent, starting, stalled, posted, cancelled, takes_errors;
        int status;
        struct om_error error;
        struct om_post post;
        struct om_redis_walk *walk; /* of store_walk.c */
        void *data;                 /* of the operation's own file; in the arena */
        size_t at;                  /* for more(): the next one to send */
};

/* A job for `op`, if one more is allowed now and the server is there. `size`: of its data, zeroed; `bytes`: of the inputs it will keep. */
int om_redis_job_new(struct om_store *s, struct om_op *op, size_t size, size_t bytes, struct om_redis_job **ret, struct om_error *e);
/* Starts it: the return value of the operation. */
int om_redis_job_start(struct om_redis_job *job, struct om_error *e);
/* Sends a command, which it takes; `key` is for messages. A failure is the job's. fn NULL: only a failure matters. */
void om_redis_job_send(struct om_redis_job *job, struct om_redis_cmd *c, struct om_span key, om_redis_job_answer_fn *fn, size_t i);
void om_redis_job_send_node(
        struct om_redis_job *job, struct om_redis_node *node, struct om_redis_cmd *c, om_redis_job_answer_fn *fn, size_t i);
bool om_redis_job_room(const struct om_redis_job *job, size_t bytes);
void om_redis_job_fail(struct om_redis_job *job, int status, const struct om_error *error);
void om_redis_job_no_memory(struct om_redis_job *job);
void om_redis_close_when_idle(struct om_store *s);                            /* completes the close that waits, when no job is left */
struct om_span om_redis_job_keep(struct om_redis_job *job, struct om_span s); /* a copy; without memory the job has failed */

/* -- keys (store_keys.c says which there are) ------------------------------------------------------------------------ */

int om_redis_prefix_check(const char *prefix, struct om_error *e);
/* Spans into s->scratch, valid until the next call. */
struct om_span om_redis_key_agent(struct om_store *s, struct om_span topic, struct om_span name);
struct om_span om_redis_key_agents(struct om_store *s, struct om_span topic);
struct om_span om_redis_key_topics(struct om_store *s);
struct om_span om_redis_key_result(struct om_store *s, struct om_span id);
struct om_span om_redis_key_earlier(struct om_store *s, struct om_span id); /* the hash of the other agents' records */
struct om_span om_redis_key_index(struct om_store *s, bool earlier);
struct om_span om_redis_key_metrics(struct om_store *s);
struct om_span om_redis_key_named(struct om_store *s, enum om_store_kind kind, struct om_span key); /* settings, keys */
/* What SCAN is to match: all keys that begin with `prefix` of a kind ("config:", "result"). */
struct om_span om_redis_key_pattern(struct om_store *s, const char *what, struct om_span begin);
/* What follows "{prefix}:{what}" in a key; absent when it begins otherwise. */
struct om_span om_redis_key_rest(const struct om_store *s, struct om_span key, const char *what);

/* A member of the index of earlier records: the task's id and the agent, in an order that is first the id's. */
void om_redis_member_put(struct om_buf *b, struct om_span id, struct om_span agent);
/* 0, or -EINVAL for one that is none; the spans are in `arena`. */
int om_redis_member_read(struct om_span member, struct om_arena *arena, struct om_span *ret_id, struct om_span *ret_agent);

/* -- records --------------------------------------------------------------------------------------------------------- */

/* The text of a result: the Python OmniDaemon's, with members of ours. `saved_us`: Unix microseconds. */
void om_redis_record_put(struct om_buf *b, const struct om_store_entry *entry, int64_t saved_us);
void om_redis_time_put(struct om_buf *b, int64_t us); /* 1795425242.131001 */
/* Reads it, whoever wrote it; spans point into `text` or are in `arena`. `pttl_ms`: the key's time to live as PTTL says, for a record that
 * does not say when it expires. 0; -EINVAL with `e`, which names the key; -ENOMEM. */
int om_redis_record_read(struct om_span key, struct om_span text, struct om_span id, int64_t pttl_ms, struct om_arena *arena,
        struct om_store_entry *ret, struct om_error *e);
bool om_redis_expired(const struct om_store_entry *entry, int64_t now_ms);
/* Copies the entry's spans into the arena of an operation. */
int om_redis_entry_copy(struct om_arena *to, const struct om_store_entry *from, struct om_store_entry *ret);

/* Appends the fields of an agent's hash to HSET. */
int om_redis_agent_put(struct om_redis_cmd *c, const struct om_store_entry *entry);
/* The entry that HGETALL's reply is; -ENOENT where the key is not there; spans in `arena`. */
int om_redis_agent_read(
        const struct om_redis_reply *hash, struct om_span topic, struct om_span name, struct om_arena *arena, struct om_store_entry *ret);
/* A metric of the stream. */
int om_redis_metric_read(const struct om_redis_reply *row, struct om_arena *arena, struct om_store_entry *ret);

/* -- scripts --------------------------------------------------------------------------------------------------------- */

/* Saves a record, keeping the other agents'. Keys, arguments and replies: store_script.c. */
extern struct om_redis_script om_redis_script_save, om_redis_script_delete;
/* A page of an index after (score, member), newest first. */
extern struct om_redis_script om_redis_script_page;

/* What remains to be done to the indexes after a save or a delete of a task's records: nothing where the script could do it itself. fn is
 * told of each command's answer. */
void om_redis_follow(
        struct om_redis_job *job, struct om_span id, const struct om_redis_reply *reply, bool saving, om_redis_job_answer_fn *fn, size_t i);
struct om_redis_cmd *om_redis_script_on(struct om_store *s, struct om_redis_script *script, struct om_span id);

/* -- operations ------------------------------------------------------------------------------------------------------ */

int om_redis_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e);
int om_redis_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e);
int om_redis_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e);
int om_redis_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e);
int om_redis_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e);
int om_redis_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e);

enum { OM_REDIS_PAGE = 100, OM_REDIS_PAGE_MAX = 10000, OM_REDIS_PAGE_BYTES = 16 << 20 };
int om_redis_list_names(struct om_store *s, struct om_store_list *op, struct om_error *e); /* agents, settings, keys */

/* -- walking through all keys ---------------------------------------------------------------------------------------- */

/* Looks at every key of every server that matches, one server after the other. found() is told of each, some more than once; it may send.
 */
struct om_redis_walk {
        struct om_span pattern; /* in the job's arena */
        void (*found)(struct om_redis_job *job, struct om_span key);
        void (*over)(struct om_redis_job *job);  /* all were seen, and all that was sent is answered: next() */
        void (*again)(struct om_redis_job *job); /* keys have moved to other servers meanwhile: it begins anew; NULL: nothing to forget */
        size_t node;
        char cursor[24];
        unsigned moves, rounds;
};
void om_redis_walk_begin(struct om_redis_job *job, struct om_redis_walk *walk);

/* -- keeping the index clean ----------------------------------------------------------------------------------------- */

int om_redis_sweep_new(struct om_store *s);
void om_redis_sweep_free(struct om_store *s);
/* This member of an index has no record: it is taken out after om_redis_sweep_found(), unless a record comes meanwhile. May drop it where
 * too many wait. */
void om_redis_sweep_add(struct om_store *s, bool earlier, struct om_span member);
void om_redis_sweep_found(struct om_store *s);
/* So many results were written: looks at as many members of the index. */
void om_redis_sweep_written(struct om_store *s, size_t n);

#endif
