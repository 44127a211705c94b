/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_STORE_STATE_H
#define OM_S3_STORE_STATE_H
/*
 * What the files of the S3 storage share. Everything is the loop's.
 *
 * In the bucket, below the prefix. K and N are a key and a name as om_safe_name() writes them, cut with a hash where they are long:
 *
 *   a/K.N   agents (topic, name)     c/K   settings     k/K   put_if_absent
 *   r/K.N   results (task, agent)
 *   t/TV.E.HHH.S.K.N   an empty object for each result, whose name says all that a list wants to know: T when it was saved and V by which
 *           write, both inverted, so that the order of names is newest first; E when it expires; H hashes of topic, agent and status; S the
 *           size of the value
 *   m/TV.E.HHH.S.X     metrics, named the same way
 *   x/conditional      written on the condition that it is not there, to see whether the server minds (store.c)
 *
 * An object is an envelope (record.c): the key, the name and what lists filter by, then the value. Its metadata has what is asked for
 * without reading it: omni-write (which write it is), omni-expires, and for results omni-index, the name in t/ that belongs to it.
 *
 * A result is written in two steps, its place in t/ first. A process that dies in between leaves a place without a result, or one that the
 * result of before does not name: lists step over both, and the sweep takes them out. There is never a result that no list shows.
 *
 *   store.c         opening, states, closing             store_names.c   names of objects
 *   store_lock.c    writes of one name in their order    store_put.c     writing
 *   store_keys.c    put_if_absent                        store_get.c     reading
 *   store_list.c    lists                                store_remove.c  deleting
 *   store_sweep.c   what has expired                     store_rules.c   lifecycle rules
 *   store_health.c  health
 */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>

#include "../entry.h"
#include "../job.h"
#include "../safe_name.h"
#include "bucket.h"
#include "record.h"
#include "upload.h"

enum { KINDS = OM_STORE_KEYS + 1, LOCK_BUCKETS = 256, ETAGS = 1024, OBJECT_MAX = 256 << 20 };

/* -- names (store_names.c) ---------------------------------------------------------------------------------------------------- */

void s3_entry_name(char out[static S3_NAME_MAX], enum om_store_kind kind, struct om_span key, struct om_span name);
/* Key and name of a result again, from the K.N of its names; false where that was cut. */
bool s3_entry_read(const char *rest, struct om_buf *key, struct om_buf *name);
/* What all names of a kind begin with, those of one key where it is given; of settings: of those whose key may begin with `key`. */
void s3_kind_prefix(char out[static S3_NAME_MAX], enum om_store_kind kind, struct om_span key);
uint32_t s3_name_hash(struct om_span text);

/* A name in t/ or m/. */
struct s3_index {
        int64_t saved_ms, expires_ms;
        uint64_t version;
        uint32_t topic, agent, status;
        size_t size;
        const char *rest; /* K.N */
};
void s3_index_name(
        char out[static S3_NAME_MAX], enum om_store_kind kind, const struct om_store_entry *e, uint64_t version, const char *rest);
bool s3_index_read(const char *name, struct s3_index *ret);
/* Before all of what was saved before `until_ms`. */
void s3_index_until(char out[static S3_NAME_MAX], enum om_store_kind kind, int64_t until_ms);

/* -- writes of one name in their order (store_lock.c) ------------------------------------------------------------------------ */

/* Embedded in what writes; one that has been taken is dropped. */
struct s3_lock {
        enum om_store_kind kind;
        uint64_t hash;
        bool whole;                         /* of the whole kind: alone */
        void (*granted)(struct s3_lock *l); /* from within take() or drop() */
        bool held;
        TAILQ_ENTRY(s3_lock) link, ready;
};
TAILQ_HEAD(s3_lock_list, s3_lock);
struct s3_locks {
        struct s3_lock_list buckets[LOCK_BUCKETS]; /* held, and those of the same name behind them */
        struct s3_lock_list waiting;               /* one of the whole kind, and all that came after it */
        struct s3_lock *whole;                     /* held */
        size_t n;                                  /* in buckets */
        TAILQ_HEAD(, s3_lock) ready;               /* about to be told */
        bool telling;
};
void s3_locks_init(struct s3_locks *locks);
void s3_lock_take(struct om_store *s, struct s3_lock *l, const char *name);
void s3_lock_drop(struct om_store *s, struct s3_lock *l);

/* -- the store ------------------------------------------------------------------------------------------------------------------ */

enum rules { RULES_UNKNOWN, RULES_SET, RULES_NONE, RULES_DENIED };

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct s3_settings settings;
        struct om_arena memory; /* of the settings */
        struct s3_http *http;
        struct s3_client primary, replica;
        bool has_replica;
        struct om_jobs jobs;
        enum om_store_state state;
        struct om_error why; /* while it is not ready */
        struct s3_locks locks[KINDS];
        uint64_t version; /* of the last write */
        struct {
                uint64_t hash;
                char etag[S3_ETAG_MAX];
        } etags[ETAGS]; /* of agents and settings, as we last saw them; a wrong one costs a request */
        /* being reached */
        struct s3_page probe;
        bool probing;
        struct s3_call marker; /* by which it is seen that the server knows conditional writes */
        unsigned marked;       /* how often it was written */
        bool is_checked;
        struct event *probe_timer;
        unsigned probes_failed;
        /* what expires */
        enum rules rules;
        struct s3_rules *rules_work;
        struct s3_sweep *sweep;
        uint64_t replica_reads;
        /* closing */
        bool closing;
        struct om_op *close_op;
        struct om_post closed_post;
};

int s3_store_admit(struct om_store *s, size_t bytes, bool reads, struct om_error *e);
/* Reads go to the replica: the primary was asked, and is away. */
static inline bool s3_store_reads_replica(const struct om_store *s) {
        return s->has_replica && s->state != OM_STORE_READY && s->probes_failed > 0;
}
static inline struct s3_client *s3_store_reader(struct om_store *s) { return s3_store_reads_replica(s) ? &s->replica : &s->primary; }
/* Whether what failed at `c` is to be asked of the replica. */
bool s3_store_falls_back(struct om_store *s, struct s3_client **c, int status);
uint64_t s3_store_version(struct om_store *s);
void s3_store_is_closed(struct om_store *s);               /* looks whether it is */
char *s3_store_etag(struct om_store *s, const char *name); /* room of an ETag for this name; empty: unknown */
/* "omni-expires=CLASS" where lifecycle rules are in force and it fits one; else NULL. */
const char *s3_rules_tagging(const struct om_store *s, int64_t expires_ms);

/* -- reading one object (store_get.c) ----------------------------------------------------------------------------------------- */

/* Embedded; zeroed at first. */
struct s3_load {
        struct s3_client *client;
        char name[S3_NAME_MAX];
        void (*done)(struct s3_load *l, int status, const struct om_error *e);
        void *ctx;
        /* out, until s3_load_clear(): 0 has them; -ENOENT: there is none; -EINVAL: one that is not ours */
        struct om_store_entry entry;
        char token[S3_TOKEN_MAX], index[S3_NAME_MAX], etag[S3_ETAG_MAX];
        /* its own */
        struct s3_call call;
        struct om_arena arena;
};
void s3_load_start(struct s3_load *l);
void s3_load_clear(struct s3_load *l);
/* A header "x-amz-meta-omni-…". */
void s3_meta(const struct s3_call *c, const char *name, char *out, size_t size);

/* -- the entries of the contract ---------------------------------------------------------------------------------------------- */

int s3_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e);
int s3_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e);
int s3_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e);
int s3_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e);
int s3_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e);
int s3_store_health(struct om_store *s, struct om_store_health *op, struct om_error *e);

/* Sees to rules once the bucket is reached; then `rules` is known. */
void s3_rules_start(struct om_store *s);
void s3_rules_free(struct om_store *s);
/* Something was written that expires: without rules, a sweep is due after sweep_interval. */
void s3_sweep_due(struct om_store *s);
void s3_sweep_free(struct om_store *s);
bool s3_sweep_runs(const struct om_store *s);

/* What is in the way of a key or name; NULL: nothing. */
const char *s3_entry_fault(const struct om_store_entry *entry);

#endif
