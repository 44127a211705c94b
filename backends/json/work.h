/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FILE_WORK_H
#define OM_FILE_WORK_H
/*
 * The JSON storage's two sides and what goes between them.
 *
 * store.c is the loop's: it copies an operation's inputs into a job and submits it. work.c is the worker's: it owns the tables, runs the
 * jobs of a turn, syncs once, and posts them back in one piece. A job, and the operation that it is about, belong to one side at a time.
 */
#include <stdatomic.h>

#include "table.h"

enum { OM_FILE_KINDS = 5 };

enum om_file_job_type {
        OM_FILE_OPEN,
        OM_FILE_PUT,
        OM_FILE_GET,
        OM_FILE_LIST,
        OM_FILE_DELETE,
        OM_FILE_PUT_IF_ABSENT,
        OM_FILE_HEALTH,
        OM_FILE_CLOSE
};

struct om_file_job {
        struct om_work work; /* first */
        struct om_post post; /* used of the first job of a turn */
        struct om_file_job *next;
        struct om_store *store;
        enum om_file_job_type type;
        struct om_op *op;      /* NULL: nobody waits (OM_FILE_OPEN) */
        atomic_bool cancelled; /* the loop asks; a job that has not begun then ends without effect */
        struct om_arena arena; /* of the inputs */
        size_t bytes;          /* of the inputs, for the bound on what is in flight */
        enum om_store_kind kind;
        struct om_span key, name, topic, status, cursor, value;
        const struct om_store_entry *entries; /* of a put */
        size_t n;
        int64_t expires_ms;
        int result; /* what done() will be told */
        struct om_error error;
};

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct om_worker *worker;
        char *folder;
        int folder_fd, lock_fd;
        struct om_file_settings settings;

        /* the loop's */
        enum om_store_state state;
        struct om_error state_error;
        size_t in_flight, bytes_in_flight;
        struct om_file_job *close_job;
        struct om_post stopped;

        /* the worker's */
        struct om_file_table tables[OM_FILE_KINDS]; /* by enum om_store_kind */
        bool usable;
        struct om_error failure; /* why it is not */
        unsigned attempts;       /* to open, that failed */
        int64_t retry_at_ms;     /* monotonic; 0: not opened yet */
        bool untold;             /* the loop has not been told of new_state, for want of memory */
        enum om_store_state new_state;
        struct om_error new_error;
        int64_t sync_at_ms; /* monotonic: OM_DURABILITY_INTERVAL's next sync; 0: nothing is dirty */
};

om_worker_turn_fn om_file_turn;
/* Loop thread: called with the jobs of a turn, and with a new state. */
void om_file_jobs_done(struct om_post *post);
void om_file_state_changed(struct om_store *s, enum om_store_state state, const struct om_error *error);

#endif
