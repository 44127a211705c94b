/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_STORAGE_QUEUE_H
#define OM_STORAGE_QUEUE_H
/*
 * The file that remembers what a second storage lacks: marks, never values. A mark says that the records under a key must be compared
 * again; whoever reads it takes them from the storage that is right. So a mark that stands there twice, or that is stale, does no harm, and
 * one thing alone must hold: a mark is on the disk before the write that it is for is sent anywhere.
 *
 *   FILE      lines of backends/journal.h, each {"op":…,"kind":…,"key":…,"name":…}; mode 0600; read once, at the start
 *   FILE.new  its successor while it is written
 *
 * What one turn adds shares one write and one fsync. All calls on the loop thread; a worker of its own writes.
 */
#include "../backends/store.h"

enum om_queue_op {
        OM_QUEUE_MARK,     /* kind and key (and name), or key alone: all of its names, or neither: the whole kind */
        OM_QUEUE_PROGRESS, /* of the copy of a kind that was marked whole: all up to at_ms is there */
        OM_QUEUE_CLEAN,    /* the copy of a kind that was marked whole is complete */
};
struct om_queue_record {
        enum om_queue_op op;
        enum om_store_kind kind;
        struct om_span key, name;
        int64_t at_ms;
};

/* One that waits; embedded. status < 0: what was added before is not on the disk. */
struct om_queue_wait {
        void (*fn)(struct om_queue_wait *w, int status, const struct om_error *e);
        struct om_queue_wait *next;
};

struct om_queue;
typedef void om_queue_replay_fn(void *ctx, const struct om_queue_record *record);
/*
 * Opens the file, makes it when there is none, and gives each of its records to `replay`, in order. *ret_damaged: something that had been
 * on the disk cannot be read; what was read is all there is. Blocks while it reads: call it at the start, or where there is no file.
 */
int om_queue_open(struct om_host *host, const char *path, om_queue_replay_fn *replay, void *ctx, bool *ret_damaged, struct om_queue **ret,
        struct om_error *e);
/* Adds a record; it is on its way with the next om_queue_sync(). */
void om_queue_add(struct om_queue *q, const struct om_queue_record *record);
/* Has w->fn called once all that was added is on the disk, or cannot be. Never before it returns. */
void om_queue_sync(struct om_queue *q, struct om_queue_wait *w);
/* Replaces the file by what is added between the two. What was added before and not synced is dropped; its waits wait for the new file. */
void om_queue_rewrite_begin(struct om_queue *q);
void om_queue_rewrite_end(struct om_queue *q);
uint64_t om_queue_bytes(const struct om_queue *q);
/* Whether a write failed, and everything since: om_queue_rewrite_begin() is the way out. */
bool om_queue_is_broken(const struct om_queue *q);
/* Ends the worker after all that was added has been written; `closed` is posted. Then free it. */
void om_queue_close(struct om_queue *q, struct om_post *closed);
void om_queue_free(struct om_queue *q);

/* "results" of OM_STORE_RESULTS. */
extern const char *const om_store_kind_names[];

/* A file that is replaced as a whole: written beside, synced, renamed, the folder synced; mode 0600. Blocks. */
int om_file_replace(const char *path, struct om_span text, struct om_error *e);

#endif
