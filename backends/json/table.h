/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FILE_TABLE_H
#define OM_FILE_TABLE_H
/*
 * One kind of thing in the JSON storage: a file NAME.json, its journal NAME.journal, and the index of both.
 *
 *   NAME.json          what the last compaction wrote, as the Python OmniDaemon writes it; read once, at open, then only values out of it
 *   NAME.journal       what came since, appended
 *   NAME.journal.old   while a compaction runs: the journal that the new NAME.json will hold
 *   NAME.json.tmp      the new NAME.json while it is written; worth nothing until it is renamed
 *   NAME.index         what opening would find by reading a large NAME.json; worth nothing beside any other one (index_file.h)
 *
 * Opening reads NAME.json, NAME.journal.old, NAME.journal in this order; each is right to be replayed over a newer file than it was written
 * for, because the last word on a key is always in the newest. Only metrics have no key: the old journal ends with a record that names the
 * file which holds it all, and is skipped where that file is in place.
 *
 * Thread: the storage's worker.
 */
#include "index_file.h"

struct om_file_writer {
        struct om_buf buf;
        uint64_t flushed; /* bytes of the file before buf */
        int fd;
        unsigned slot;
        bool some; /* an entry was written: the next one follows a comma */
        /* A piece of the file that values are copied from: they stand there one after the other, mostly. */
        struct om_buf window;
        unsigned window_slot;
        uint64_t window_at;
        struct om_index_writer index;
};

struct om_file_settings {
        int durability; /* enum om_durability */
        int64_t sync_interval_ms;
        int64_t compact_min_bytes;
        int64_t max_metrics;
};
enum om_durability { OM_DURABILITY_ALWAYS, OM_DURABILITY_INTERVAL, OM_DURABILITY_MEMORY };

struct om_file_table {
        enum om_store_kind kind;
        const char *name; /* "results" */
        struct om_host *host;
        const struct om_file_settings *settings;
        const char *folder;
        int folder_fd;

        struct om_file_index index;
        int fds[4];             /* by slot; -1: not open. 0 and 1 are NAME.json and its successor in turn, 2 and 3 journals likewise */
        unsigned base, journal; /* the slots in use */
        uint64_t base_bytes, journal_bytes, journal_synced;
        uint64_t base_live; /* index.live_bytes when NAME.json was written or read */
        bool old_journal;   /* there is a NAME.journal.old, in the other journal slot */
        uint64_t old_bytes;
        bool dirty;       /* the journal has bytes that were not synced */
        bool sync_failed; /* and never will be: what is behind journal_synced may be in memory only, whatever a later sync says */
        uint64_t next_sequence;

        /* a compaction that is under way, a slice at a time */
        bool compacting;
        struct om_file_writer writer;
        int64_t at_time, started_ms;
        uint64_t slice_journal;         /* journal_bytes at the last slice */
        uint64_t at_sequence, snapshot; /* what has a higher sequence than this is in the new journal */
        uint64_t compact_after;         /* after one that failed: not before the journal has so many bytes */

        int64_t sweep_ms; /* monotonic: when to look for what has expired; 0: nothing will */
};

/* Where tests put a full or a broken disk in place. */
extern int (*om_file_sync)(int fd);
extern ssize_t (*om_file_write)(int fd, const void *data, size_t len, off_t offset);

void om_file_table_init(struct om_file_table *t);
/* Reads the files. What fails leaves the table closed. */
int om_file_table_open(struct om_file_table *t, struct om_error *e);
/* Closes without writing anything. */
void om_file_table_close(struct om_file_table *t);
/* After a failed sync, or an append that returned -EIO: cuts the journal back to what is known to be right, and opens anew. */
int om_file_table_recover(struct om_file_table *t, struct om_error *e);

/* Appends to the journal, then changes the index: after a failure nothing has changed. Not durable before om_file_table_sync(). */
int om_file_table_put(
        struct om_file_table *t, const struct om_store_entry *entries, size_t n, struct om_outcome *outcomes, struct om_error *e);
int om_file_table_delete(struct om_file_table *t, struct om_span key, struct om_span name, uint64_t *ret_n, struct om_error *e);
/* Reads a value into `out`, which has room for entry->length bytes; or into `a`. */
int om_file_table_read_into(const struct om_file_table *t, const struct om_file_entry *entry, char *out, struct om_error *e);
int om_file_table_read(
        struct om_file_table *t, const struct om_file_entry *entry, struct om_arena *a, struct om_span *ret, struct om_error *e);
int om_file_table_sync(struct om_file_table *t, struct om_error *e);

/* What need not be done at once: starts a compaction where one is worthwhile, or does a slice of it; sweeps. *ret_wait_ms: when it wants
 * to be called again; -1: not before something is written. After an error the table was opened anew, or is closed if that failed too. */
int om_file_table_maintain(struct om_file_table *t, int *ret_wait_ms, struct om_error *e);
/* Writes everything into NAME.json and removes the journals, if there are any. */
int om_file_table_settle(struct om_file_table *t, struct om_error *e);

/* -- shared by table.c, compact.c and base.c ----------------------------------------------------------------------- */

/* FOLDER/NAME.json and its like, in a buffer of PATH_MAX. */
enum om_file_part { OM_FILE_BASE, OM_FILE_BASE_NEW, OM_FILE_JOURNAL, OM_FILE_JOURNAL_OLD, OM_FILE_INDEX, OM_FILE_INDEX_NEW };
const char *om_file_path(const struct om_file_table *t, enum om_file_part part, char out[]);
/* -EIO: the journal can be written no more before om_file_table_recover(). */
int om_file_append(struct om_file_table *t, const struct om_buf *records, struct om_error *e);
/* "cannot WHAT PATH: …", of the kind that fits: a full disk is `limit`, what else goes wrong with files `unavailable`. Returns -errno. */
int om_file_error(struct om_error *e, int error, const char *what, const char *path);
int om_file_sync_fd(const struct om_file_table *t, int fd, const char *path, struct om_error *e);

/* base.c: the form of NAME.json. */
int om_file_base_read(struct om_file_table *t, struct om_span text, unsigned slot, struct om_error *e);
void om_file_base_begin(struct om_file_table *t, struct om_file_writer *w);
/* Writes an entry (of results: all of its key, where it is the newest of them) and moves its place to the new file. */
int om_file_base_write(struct om_file_table *t, struct om_file_writer *w, struct om_file_entry *entry, struct om_error *e);
/* Writes all agents, by topic. */
int om_file_base_write_agents(struct om_file_table *t, struct om_file_writer *w, struct om_error *e);
void om_file_base_end(struct om_file_table *t, struct om_file_writer *w);
int om_file_writer_flush(struct om_file_table *t, struct om_file_writer *w, struct om_error *e);
bool om_file_eligible(const struct om_file_table *t, const struct om_file_entry *entry);

#endif
