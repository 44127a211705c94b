/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One file of the JSON storage with its journal: opening, appending, reading (table.h says which files there are).
 *
 * Always true:
 *   - the journal is written before the index changes, so that a write that failed (a full disk) has happened nowhere;
 *   - a journal that could not be cut back after a failed write, or not synced, is not written again before it was opened anew;
 *   - every place in the index points into a file that is open.
 *
 * Runs on the storage's worker; everything here may block.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../proto/json_scan.h"
#include "../journal.h"
#include "record.h"
#include "table.h"

int (*om_file_sync)(int fd) = fdatasync;
ssize_t (*om_file_write)(int fd, const void *data, size_t len, off_t offset) = pwrite;

const char *om_file_path(const struct om_file_table *t, enum om_file_part part, char out[]) {
        static const char *const endings[] = { ".json", ".json.tmp", ".journal", ".journal.old", ".index", ".index.tmp" };
        snprintf(out, PATH_MAX, "%s/%s%s", t->folder, t->name, endings[part]);
        return out;
}

int om_file_error(struct om_error *e, int error, const char *what, const char *path) {
        char reason[128];
        const char *text = strerror_r(error, reason, sizeof(reason));
        if (error == ENOSPC || error == EDQUOT || error == EFBIG)
                return om_error_set(e, OM_LIMIT, "cannot %s %s: %s", what, path, text);
        return om_error_set(e, OM_UNAVAILABLE, "cannot %s %s: %s", what, path, text);
}

int om_file_sync_fd(const struct om_file_table *t, int fd, const char *path, struct om_error *e) {
        if (t->settings->durability == OM_DURABILITY_MEMORY || om_file_sync(fd) == 0)
                return 0;
        return om_file_error(e, errno, "sync", path);
}

/* -- opening ------------------------------------------------------------------------------------------------------- */

void om_file_table_init(struct om_file_table *t) {
        for (int i = 0; i < 4; i++)
                t->fds[i] = -1;
        t->writer.index.fd = -1;
        t->index.by_time = t->kind == OM_STORE_RESULTS || t->kind == OM_STORE_METRICS;
        t->index.name_in_hash = t->kind == OM_STORE_AGENTS;
        t->index.nameless = t->kind != OM_STORE_AGENTS && t->kind != OM_STORE_RESULTS;
        t->index.keyless = t->kind == OM_STORE_METRICS;
}

void om_file_table_close(struct om_file_table *t) {
        for (int i = 0; i < 4; i++) {
                if (t->fds[i] >= 0)
                        close(t->fds[i]);
                t->fds[i] = -1;
        }
        om_file_index_clear(&t->index);
        om_buf_deinit(&t->writer.buf);
        om_buf_deinit(&t->writer.window);
        om_index_file_drop(t, &t->writer.index);
        t->base = 0;
        t->journal = 2;
        t->base_bytes = t->journal_bytes = t->journal_synced = t->old_bytes = t->next_sequence = 0;
        t->old_journal = t->dirty = t->sync_failed = t->compacting = false;
        t->sweep_ms = 0;
}

/* Opens a file into a slot and maps it. No file: 0 bytes and fd -1. An empty map is "". */
static int map_file(struct om_file_table *t, enum om_file_part part, unsigned slot, struct om_span *ret, struct om_error *e) {
        char path[PATH_MAX];
        struct stat st;
        *ret = OM_SPAN("");
        int fd = open(om_file_path(t, part, path), O_RDWR | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? 0 : om_file_error(e, errno, "open", path);
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
                close(fd);
                return om_error_set(e, OM_UNAVAILABLE, "cannot open %s: not a regular file", path);
        }
        t->fds[slot] = fd;
        if (st.st_size == 0)
                return 0;
        void *map = mmap(NULL, (size_t) st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
                return om_file_error(e, errno, "read", path);
        madvise(map, (size_t) st.st_size, MADV_SEQUENTIAL);
        *ret = (struct om_span){ map, (size_t) st.st_size };
        return 0;
}

static void unmap(struct om_span map) {
        if (map.len)
                munmap((void *) (uintptr_t) map.p, map.len);
}

static void trim_metrics(struct om_file_table *t) {
        while (t->kind == OM_STORE_METRICS && t->index.n > (uint64_t) t->settings->max_metrics)
                om_file_index_remove(&t->index, t->index.first[0]);
}

/* Removes what a record of a delete is about; returns how many of it were alive. */
static uint64_t forget(struct om_file_table *t, struct om_span key, struct om_span name, int64_t now_ms) {
        struct om_file_index *x = &t->index;
        uint64_t n = 0;
        struct om_file_entry *e, *next;
        if (!key.p) {
                for (e = x->first[0]; e; e = e->newer[0])
                        n += om_file_alive(e, now_ms);
                om_file_index_clear(x);
                return n;
        }
        for (e = om_file_index_of_key(x, key); e; e = next) {
                next = om_file_index_next_of_key(x, e);
                if (name.p && !om_span_eq(om_file_name(e), name))
                        continue;
                n += om_file_alive(e, now_ms);
                om_file_index_remove(x, e);
        }
        return n;
}

static int bad_record(const char *path, struct om_span json, struct om_span journal, struct om_error *e) {
        return om_error_set(e, OM_INTERNAL,
                "%s: the record at byte %zu is none that this version knows; a newer version may have written it", path,
                (size_t) (json.p - journal.p) + 1);
}

static int replay_put(struct om_file_table *t, const char *path, const struct om_store_entry *entry, uint64_t sequence, uint64_t place,
        struct om_error *e) {
        const struct om_file_entry *old = t->index.keyless ? NULL : om_file_index_find(&t->index, entry->key, entry->name);
        /* NAME.json may have numbered its entries anew: the place that this one once had is another's now. */
        if (om_file_index_taken(&t->index, entry->saved_ms, sequence, old))
                sequence = t->next_sequence + 1;
        if (om_file_index_put(&t->index, entry, sequence, place, (uint32_t) entry->value.len) < 0)
                return om_error_set_errno(e, ENOMEM, "cannot read %s", path);
        if (sequence > t->next_sequence)
                t->next_sequence = sequence;
        return 0;
}

static int replay_record(
        struct om_file_table *t, const char *path, struct om_span json, struct om_span journal, unsigned slot, struct om_error *e) {
        struct om_store_entry entry;
        struct om_arena arena = { 0 };
        uint64_t sequence;
        int r = om_file_record_read(json, &arena, &entry, &sequence);
        if (r == OM_FILE_RECORD_PUT && entry.key.len <= UINT16_MAX && entry.value.len <= UINT32_MAX)
                r = replay_put(t, path, &entry, sequence, OM_FILE_PLACE(slot, entry.value.p - journal.p), e);
        else if (r == OM_FILE_RECORD_DELETE)
                r = (forget(t, entry.key, entry.name, 0), 0);
        else if (r == OM_FILE_RECORD_HELD)
                r = 0;
        else
                r = r < 0 ? om_error_set_errno(e, ENOMEM, "cannot read %s", path) : bad_record(path, json, journal, e);
        om_arena_deinit(&arena);
        trim_metrics(t);
        return r;
}

/* Whether the last record says that all of the journal is in NAME.json already. */
static bool held_already(const struct om_file_table *t, struct om_span journal) {
        struct om_span last = OM_SPAN_NONE;
        uint64_t inode, size;
        struct stat st;
        if (t->kind != OM_STORE_METRICS)
                return false;
        for (size_t pos = 0; pos < journal.len;)
                last = om_journal_next(journal, &pos);
        return last.p && om_file_record_is_held(last, &inode, &size) && t->fds[t->base] >= 0 && fstat(t->fds[t->base], &st) == 0 &&
                st.st_ino == inode && (uint64_t) st.st_size == size;
}

static int replay(struct om_file_table *t, enum om_file_part part, unsigned slot, uint64_t *ret_bytes, struct om_error *e) {
        char path[PATH_MAX];
        struct om_span map;
        size_t end = 0, n = 0;
        int r = map_file(t, part, slot, &map, e);
        om_file_path(t, part, path);
        if (r == 0 && map.len)
                r = om_journal_check(path, map, &end, &n, e);
        struct om_span good = { map.p, end };
        if (r == 0 && t->kind == OM_STORE_RESULTS && om_file_index_reserve(&t->index, t->index.n + n) < 0)
                r = om_error_set_errno(e, ENOMEM, "cannot read %s", path);
        if (r == 0 && !held_already(t, good))
                for (size_t pos = 0; pos < end && r == 0;)
                        r = replay_record(t, path, om_journal_next(good, &pos), good, slot, e);
        unmap(map);
        if (r < 0 || t->fds[slot] < 0)
                return r;
        if (end < map.len) {
                om_host_log(t->host, OM_LOG_WARNING,
                        "%s: cut %zu bytes off its end, a write that was not finished when the daemon or the machine stopped", path,
                        map.len - end);
                if (ftruncate(t->fds[slot], (off_t) end) < 0)
                        return om_file_error(e, errno, "cut", path);
        }
        /* It was read from memory, perhaps: what is shown to anybody must be on the disk. */
        *ret_bytes = end;
        return map.len ? om_file_sync_fd(t, t->fds[slot], path, e) : 0;
}

static int read_base(struct om_file_table *t, struct om_error *e) {
        struct om_span map;
        int r = map_file(t, OM_FILE_BASE, t->base, &map, e);
        if (r == 0 && map.len && !om_index_file_read(t, t->base))
                r = om_file_base_read(t, map, t->base, e);
        t->base_bytes = map.len;
        t->base_live = t->index.live_bytes;
        unmap(map);
        trim_metrics(t);
        return r;
}

int om_file_table_open(struct om_file_table *t, struct om_error *e) {
        char path[PATH_MAX];
        om_file_table_close(t);
        unlink(om_file_path(t, OM_FILE_BASE_NEW, path));
        unlink(om_file_path(t, OM_FILE_INDEX_NEW, path));
        int r = read_base(t, e);
        if (r == 0)
                r = replay(t, OM_FILE_JOURNAL_OLD, 3, &t->old_bytes, e);
        if (r == 0)
                r = replay(t, OM_FILE_JOURNAL, 2, &t->journal_bytes, e);
        if (r < 0) {
                om_file_table_close(t);
                return r;
        }
        t->old_journal = t->fds[3] >= 0;
        t->journal_synced = t->settings->durability == OM_DURABILITY_MEMORY ? 0 : t->journal_bytes;
        if (t->index.n && t->kind != OM_STORE_METRICS)
                t->sweep_ms = om_clock_ms();
        return 0;
}

int om_file_table_recover(struct om_file_table *t, struct om_error *e) {
        char path[PATH_MAX];
        uint64_t keep = t->sync_failed ? t->journal_synced : t->journal_bytes;
        if (t->fds[t->journal] >= 0 && ftruncate(t->fds[t->journal], (off_t) keep) < 0)
                return om_file_error(e, errno, "cut", om_file_path(t, OM_FILE_JOURNAL, path));
        return om_file_table_open(t, e);
}

/* -- the journal --------------------------------------------------------------------------------------------------- */

static int open_journal(struct om_file_table *t, struct om_error *e) {
        char path[PATH_MAX];
        int fd = open(om_file_path(t, OM_FILE_JOURNAL, path), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0)
                return om_file_error(e, errno, "make", path);
        if (om_file_sync_fd(t, t->folder_fd, t->folder, e) < 0) { /* its name must survive as its content does */
                close(fd);
                unlink(path);
                return om_kind_errno(OM_UNAVAILABLE);
        }
        t->fds[t->journal] = fd;
        t->journal_bytes = t->journal_synced = 0;
        return 0;
}

int om_file_append(struct om_file_table *t, const struct om_buf *records, struct om_error *e) {
        char path[PATH_MAX];
        om_file_path(t, OM_FILE_JOURNAL, path);
        if (!om_buf_ok(records))
                return om_error_set_errno(e, ENOMEM, "cannot write %s", path);
        int r = t->fds[t->journal] < 0 ? open_journal(t, e) : 0;
        if (r < 0)
                return r;
        for (size_t done = 0; done < records->len;) {
                ssize_t n = om_file_write(t->fds[t->journal], records->data + done, records->len - done, (off_t) (t->journal_bytes + done));
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0) {
                        r = om_file_error(e, n < 0 ? errno : ENOSPC, "write", path);
                        /* What was half written would be taken for a torn tail, and what comes after it be lost. */
                        if (done > 0 && ftruncate(t->fds[t->journal], (off_t) t->journal_bytes) < 0)
                                return -EIO;
                        return r;
                }
                done += (size_t) n;
        }
        t->journal_bytes += records->len;
        t->dirty = true;
        return 0;
}

int om_file_table_sync(struct om_file_table *t, struct om_error *e) {
        char path[PATH_MAX];
        if (!t->dirty)
                return 0;
        int r = om_file_sync_fd(t, t->fds[t->journal], om_file_path(t, OM_FILE_JOURNAL, path), e);
        t->sync_failed = r < 0;
        if (r == 0) {
                t->dirty = false;
                if (t->settings->durability != OM_DURABILITY_MEMORY)
                        t->journal_synced = t->journal_bytes;
        }
        return r;
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

/* Text that would not come back from a file as it is: JSON strings are Unicode. */
static bool is_text(struct om_span s) {
        unsigned char bits = 0;
        bool same;
        for (size_t i = 0; i < s.len; i++)
                bits |= (unsigned char) s.p[i];
        if (bits < 0x80)
                return true;
        struct om_buf b = OM_BUF_INIT;
        struct om_json j;
        struct om_json_value v;
        struct om_arena arena = { 0 };
        om_buf_json_span(&b, s);
        om_json_init(&j, om_buf_span(&b), 1);
        same = om_buf_ok(&b) && om_json_value(&j, &v) == 0 && om_span_eq(om_json_string(v, &arena), s);
        om_arena_deinit(&arena);
        om_buf_deinit(&b);
        return same;
}

static const char *why_not(const struct om_file_table *t, const struct om_store_entry *entry) {
        if (entry->key.len > OM_STORE_KEY_MAX || entry->name.len > OM_STORE_KEY_MAX)
                return "a key of the storage has at most 1024 bytes";
        if (!is_text(entry->key) || !is_text(entry->name) || !is_text(entry->topic) || !is_text(entry->status))
                return "a key of the JSON storage must be UTF-8";
        if (entry->expires_ms && (t->kind == OM_STORE_AGENTS || t->kind == OM_STORE_CONFIG))
                return "agents and settings do not expire in the JSON storage";
        return NULL;
}

int om_file_table_put(
        struct om_file_table *t, const struct om_store_entry *entries, size_t n, struct om_outcome *outcomes, struct om_error *e) {
        struct om_buf b = OM_BUF_INIT;
        size_t *values = calloc(n + 1, sizeof(*values)), bytes = 0;
        uint64_t before = t->next_sequence;
        int r = values ? 0 : om_error_set_errno(e, ENOMEM, "cannot write %s.journal", t->name);
        for (size_t i = 0; i < n; i++)
                bytes += entries[i].key.len + entries[i].value.len + 256;
        om_buf_reserve(&b, bytes); /* at once: a turn's records are up to a megabyte */
        for (size_t i = 0; i < n && r == 0; i++) {
                outcomes[i].why = why_not(t, &entries[i]);
                outcomes[i].status = outcomes[i].why ? -EINVAL : 0;
                if (!outcomes[i].why)
                        om_file_record_put(&b, &entries[i], ++t->next_sequence, t->journal_synced, &values[i]);
        }
        if (r == 0 && (b.len || !om_buf_ok(&b))) /* nothing to append is not the same as no memory for it */
                r = om_file_append(t, &b, e);
        if (r < 0) {
                t->next_sequence = before;
                goto out;
        }
        uint64_t start = t->journal_bytes - b.len, sequence = before;
        for (size_t i = 0; i < n && r == 0; i++) {
                if (outcomes[i].status < 0)
                        continue;
                uint64_t place = OM_FILE_PLACE(t->journal, start + values[i]);
                if (om_file_index_put(&t->index, &entries[i], ++sequence, place, (uint32_t) entries[i].value.len) < 0)
                        r = (om_error_set_errno(e, ENOMEM, "cannot index %s", t->name), -EIO);
                if (entries[i].expires_ms && t->sweep_ms == 0)
                        t->sweep_ms = om_clock_ms() + 60000;
        }
        trim_metrics(t);
out:
        om_buf_deinit(&b);
        free(values);
        return r;
}

int om_file_table_delete(struct om_file_table *t, struct om_span key, struct om_span name, uint64_t *ret_n, struct om_error *e) {
        struct om_buf b = OM_BUF_INIT;
        *ret_n = 0;
        bool any = key.p ? om_file_index_of_key(&t->index, key) != NULL : t->index.n > 0;
        if (!any)
                return 0;
        om_file_record_delete(&b, key, name, t->journal_synced);
        int r = om_file_append(t, &b, e);
        if (r == 0)
                *ret_n = forget(t, key, name, om_now_ms());
        om_buf_deinit(&b);
        return r;
}

int om_file_table_read_into(const struct om_file_table *t, const struct om_file_entry *entry, char *out, struct om_error *e) {
        for (size_t done = 0; done < entry->length;) {
                ssize_t n = pread(t->fds[om_file_slot(entry)], out + done, entry->length - done, (off_t) (om_file_offset(entry) + done));
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return om_error_set(e, OM_UNAVAILABLE, "cannot read %s/%s: %s", t->folder, t->name,
                                n < 0 ? strerror(errno) : "the file is shorter than it was");
                done += (size_t) n;
        }
        return 0;
}

int om_file_table_read(
        struct om_file_table *t, const struct om_file_entry *entry, struct om_arena *a, struct om_span *ret, struct om_error *e) {
        char *out = om_arena_alloc(a, (size_t) entry->length + 1);
        if (!out)
                return om_error_set_errno(e, ENOMEM, "cannot read %s", t->name);
        int r = om_file_table_read_into(t, entry, out, e);
        if (r < 0)
                return r;
        out[entry->length] = 0;
        *ret = (struct om_span){ out, entry->length };
        return 0;
}
