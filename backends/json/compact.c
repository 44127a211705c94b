/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compaction: writing a table's file anew, so that its journal can go; and forgetting what has expired.
 *
 * A large file takes seconds, so it is written a slice at a time between the turns that serve requests. What makes that safe:
 *   - at the start the journal becomes NAME.journal.old, and what is written from then on goes to a new journal. NAME.json, the old journal
 *     and the new one together hold everything, at every moment until the rename;
 *   - only what has a sequence of before the start goes into the new file, in order, each entry's place moving as it is written. What the
 *     pass missed (an entry that was to be written together with a newer one of its task, which was replaced meanwhile) goes to the
 *     new journal at the end;
 *   - the new file is synced, then renamed, then the folder synced, and only then the old journal goes. A death in between leaves an old
 *     journal beside the file that holds it: replaying it is harmless, table.h says why.
 * Whatever fails, the files are as they were: the table is opened anew from them, and the next attempt waits until the journal has doubled.
 *
 * Runs on the storage's worker.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "record.h"
#include "table.h"

/* What comes meanwhile waits for a slice (256 KiB take about a millisecond). Where much is written, slices are larger: the new journal must
 * not outgrow the file before that is written. */
enum { SLICE_MIN_BYTES = 256 << 10, SLICE_MAX_BYTES = 4 << 20, SLICE_OF_WRITTEN = 4 };
enum { SWEEP_AT_LEAST_MS = 60000, SWEEP_AT_MOST_MS = 1 << 30 };

/* NAME.json is synced whatever the durability: a file that was torn by a power failure could not be opened again. */
static int sync_always(int fd, const char *path, struct om_error *e) {
        return om_file_sync(fd) == 0 ? 0 : om_file_error(e, errno, "sync", path);
}

static unsigned other_journal(const struct om_file_table *t) { return 5 - t->journal; }

/* -- the pass ------------------------------------------------------------------------------------------------------ */

static int rotate(struct om_file_table *t, struct om_error *e) {
        char path[PATH_MAX], old[PATH_MAX];
        int r = om_file_table_sync(t, e);
        if (r < 0)
                return r;
        if (rename(om_file_path(t, OM_FILE_JOURNAL, path), om_file_path(t, OM_FILE_JOURNAL_OLD, old)) < 0)
                return om_file_error(e, errno, "rename", path);
        t->old_journal = true;
        t->old_bytes = t->journal_bytes;
        t->journal = other_journal(t);
        t->journal_bytes = t->journal_synced = 0;
        return sync_always(t->folder_fd, t->folder, e);
}

static int start(struct om_file_table *t, bool keep_writing, struct om_error *e) {
        char path[PATH_MAX];
        int fd = open(om_file_path(t, OM_FILE_BASE_NEW, path), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0)
                return om_file_error(e, errno, "make", path);
        unsigned slot = 1 - t->base;
        t->fds[slot] = fd;
        t->compacting = true;
        om_index_file_begin(t, &t->writer.index);
        t->writer = (struct om_file_writer){
                .buf = t->writer.buf, .window = t->writer.window, .index = t->writer.index, .fd = fd, .slot = slot
        };
        om_buf_clear(&t->writer.buf);
        om_buf_clear(&t->writer.window);
        t->snapshot = t->next_sequence;
        t->started_ms = om_now_ms();
        t->at_time = INT64_MIN;
        t->at_sequence = 0;
        t->slice_journal = 0;
        om_file_base_begin(t, &t->writer);
        return keep_writing && t->fds[t->journal] >= 0 ? rotate(t, e) : 0;
}

/* Writes about `budget` bytes. 1: that was the last of it. */
static int slice(struct om_file_table *t, uint64_t budget, struct om_error *e) {
        struct om_file_writer *w = &t->writer;
        uint64_t stop = w->flushed + budget;
        struct om_file_entry *entry = om_file_index_after(&t->index, t->at_time, t->at_sequence);
        if (t->kind == OM_STORE_AGENTS) {
                int r = om_file_base_write_agents(t, w, e);
                entry = NULL;
                if (r < 0)
                        return r;
        }
        for (; entry && w->flushed + w->buf.len < stop; entry = entry->newer[0]) {
                t->at_time = om_file_time(&t->index, entry);
                t->at_sequence = entry->sequence;
                if (!om_file_eligible(t, entry))
                        continue;
                int r = om_file_base_write(t, w, entry, e);
                if (r == 0 && w->buf.len > 256 * 1024)
                        r = om_file_writer_flush(t, w, e);
                if (r < 0)
                        return r;
        }
        if (!entry)
                om_file_base_end(t, w);
        int r = om_file_writer_flush(t, w, e); /* places moved to it: they must be readable */
        if (r == 0)
                sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* begins; the sync at the end then finds little */
        return r < 0 ? r : !entry;
}

/* -- the end of it ------------------------------------------------------------------------------------------------- */

static int keep_in_journal(struct om_file_table *t, struct om_file_entry *entry, struct om_error *e) {
        struct om_store_entry copy = { .key = om_file_key(entry),
                .name = om_file_name(entry),
                .topic = om_file_topic(entry),
                .status = om_file_status(entry),
                .saved_ms = entry->saved_ms,
                .expires_ms = entry->expires_ms };
        struct om_arena arena = { 0 };
        struct om_buf b = OM_BUF_INIT;
        size_t value = 0;
        int r = om_file_table_read(t, entry, &arena, &copy.value, e);
        if (r == 0) {
                om_file_record_put(&b, &copy, entry->sequence, t->journal_synced, &value);
                r = om_file_append(t, &b, e);
        }
        if (r == 0)
                entry->place = OM_FILE_PLACE(t->journal, t->journal_bytes - b.len + value);
        om_arena_deinit(&arena);
        om_buf_deinit(&b);
        return r;
}

static int keep_what_was_missed(struct om_file_table *t, bool journal_stays, struct om_error *e) {
        for (struct om_file_entry *entry = t->index.first[0], *next; entry; entry = next) {
                unsigned slot = om_file_slot(entry);
                next = entry->newer[0];
                if (slot == t->writer.slot || (journal_stays && slot == t->journal))
                        continue;
                if (!om_file_alive(entry, t->started_ms)) {
                        om_file_index_remove(&t->index, entry);
                        continue;
                }
                int r = keep_in_journal(t, entry, e);
                if (r < 0)
                        return r;
        }
        return om_file_table_sync(t, e);
}

/* The end of a journal of metrics that the new file holds. */
static int say_held(struct om_file_table *t, unsigned slot, uint64_t at, struct om_error *e) {
        char path[PATH_MAX];
        struct stat st;
        struct om_buf b = OM_BUF_INIT;
        if (t->kind != OM_STORE_METRICS || t->fds[slot] < 0)
                return 0;
        om_file_path(t, slot == t->journal ? OM_FILE_JOURNAL : OM_FILE_JOURNAL_OLD, path);
        if (fstat(t->writer.fd, &st) < 0)
                return om_file_error(e, errno, "read", path);
        om_file_record_held(&b, st.st_ino, (uint64_t) st.st_size);
        int r = 0;
        if (!om_buf_ok(&b) || om_file_write(t->fds[slot], b.data, b.len, (off_t) at) != (ssize_t) b.len)
                r = om_file_error(e, om_buf_ok(&b) ? ENOSPC : ENOMEM, "write", path);
        else
                r = sync_always(t->fds[slot], path, e);
        om_buf_deinit(&b);
        return r;
}

static void drop_file(struct om_file_table *t, unsigned slot, enum om_file_part part) {
        char path[PATH_MAX];
        if (t->fds[slot] < 0)
                return;
        close(t->fds[slot]);
        t->fds[slot] = -1;
        unlink(om_file_path(t, part, path));
}

static int finish(struct om_file_table *t, bool journal_stays, struct om_error *e) {
        char path[PATH_MAX], tmp[PATH_MAX];
        om_file_path(t, OM_FILE_BASE, path);
        int r = keep_what_was_missed(t, journal_stays, e);
        if (r == 0)
                r = sync_always(t->writer.fd, om_file_path(t, OM_FILE_BASE_NEW, tmp), e);
        if (r == 0 && t->old_journal)
                r = say_held(t, other_journal(t), t->old_bytes, e);
        if (r == 0 && !journal_stays)
                r = say_held(t, t->journal, t->journal_bytes, e);
        if (r < 0)
                return r;
        if (rename(tmp, path) < 0)
                return om_file_error(e, errno, "rename", tmp);
        r = sync_always(t->folder_fd, t->folder, e);
        if (r < 0)
                return r;
        om_index_file_end(t, &t->writer.index, t->writer.fd);
        if (t->fds[t->base] >= 0)
                close(t->fds[t->base]);
        t->fds[t->base] = -1;
        t->base = t->writer.slot;
        t->base_bytes = t->writer.flushed;
        t->base_live = t->index.live_bytes;
        drop_file(t, other_journal(t), OM_FILE_JOURNAL_OLD);
        t->old_journal = false;
        t->old_bytes = 0;
        if (!journal_stays) {
                drop_file(t, t->journal, OM_FILE_JOURNAL);
                t->journal_bytes = t->journal_synced = 0;
                t->dirty = false;
        }
        t->compacting = false;
        t->compact_after = 0;
        om_buf_deinit(&t->writer.buf);
        om_buf_deinit(&t->writer.window);
        return 0;
}

/* The files are as they were, the index is not: some of its places are in a file that will not be. */
static int give_up(struct om_file_table *t, int r) {
        char path[PATH_MAX];
        struct om_error ignored = OM_ERROR_INIT;
        uint64_t journal_bytes = t->journal_bytes + t->old_bytes;
        unlink(om_file_path(t, OM_FILE_BASE_NEW, path));
        if (r == -EIO || t->sync_failed || om_file_table_sync(t, &ignored) < 0)
                return -EIO;
        if (om_file_table_open(t, &ignored) < 0)
                return -EIO;
        t->compact_after = journal_bytes * 2 + 1;
        return r;
}

/* -- when ---------------------------------------------------------------------------------------------------------- */

static void sweep(struct om_file_table *t) {
        int64_t now = om_now_ms(), latest = 0;
        for (struct om_file_entry *entry = t->index.first[0], *next; entry; entry = next) {
                next = entry->newer[0];
                if (!om_file_alive(entry, now))
                        om_file_index_remove(&t->index, entry);
                else if (entry->expires_ms > latest)
                        latest = entry->expires_ms;
        }
        t->sweep_ms = 0;
        if (latest) {
                /* Half of what is left, more or less, will have expired by then: the passes are few, and what they free is not. */
                int64_t wait = (latest - now) / 2;
                wait = wait < SWEEP_AT_LEAST_MS ? SWEEP_AT_LEAST_MS : wait;
                t->sweep_ms = om_clock_ms() + (wait > SWEEP_AT_MOST_MS ? SWEEP_AT_MOST_MS : wait);
        }
}

/* Either the journal has outgrown the file, or of what was in the file at the last compaction less than half is still wanted. */
static bool is_worthwhile(const struct om_file_table *t) {
        uint64_t min = (uint64_t) t->settings->compact_min_bytes, journals = t->journal_bytes + t->old_bytes;
        if (t->compact_after && journals < t->compact_after)
                return false;
        return (journals > min && journals > t->base_bytes) || (t->base_bytes + journals > min && t->index.live_bytes < t->base_live / 2);
}

static int run(struct om_file_table *t, bool keep_writing, uint64_t budget, struct om_error *e) {
        int r = t->compacting ? 0 : start(t, keep_writing, e);
        while (r == 0) {
                r = slice(t, budget, e);
                if (r == 0 && keep_writing)
                        return 0;
        }
        if (r > 0)
                r = finish(t, keep_writing, e);
        return r < 0 ? give_up(t, r) : 0;
}

static uint64_t slice_bytes(struct om_file_table *t) {
        if (!t->compacting) /* the first */
                return SLICE_MIN_BYTES;
        uint64_t written = t->journal_bytes - t->slice_journal, bytes = written * SLICE_OF_WRITTEN;
        t->slice_journal = t->journal_bytes;
        return bytes < SLICE_MIN_BYTES ? SLICE_MIN_BYTES : bytes < SLICE_MAX_BYTES ? bytes : SLICE_MAX_BYTES;
}

int om_file_table_maintain(struct om_file_table *t, int *ret_wait_ms, struct om_error *e) {
        int r = 0;
        *ret_wait_ms = -1;
        if (!t->compacting && t->sweep_ms && om_clock_ms() >= t->sweep_ms)
                sweep(t);
        if (t->compacting || is_worthwhile(t)) {
                bool keep_writing = t->compacting || !t->old_journal;
                r = run(t, keep_writing, keep_writing ? slice_bytes(t) : UINT64_MAX / 2, e);
        }
        if (t->compacting)
                *ret_wait_ms = 0;
        else if (t->sweep_ms) {
                int64_t wait = t->sweep_ms - om_clock_ms();
                *ret_wait_ms = wait > 0 ? (int) wait : 0;
        }
        return r;
}

int om_file_table_settle(struct om_file_table *t, struct om_error *e) {
        int r = 0;
        while (t->compacting && r == 0)
                r = run(t, true, SLICE_MAX_BYTES, e);
        if (r == 0 && t->journal_bytes + t->old_bytes > 0)
                r = run(t, false, UINT64_MAX / 2, e);
        if (r == 0 && t->journal_bytes == 0)
                drop_file(t, t->journal, OM_FILE_JOURNAL);
        return r;
}
