/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes and reads NAME.index; index_file.h says what it is and why it may fail without a word.
 *
 * Always true of reading: nothing of the file is believed before its checksum was right, and no place is taken over that is not inside
 * NAME.json, whatever the checksum says.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../journal.h"
#include "table.h"

enum { BLOCK_BYTES = 256 * 1024 };

struct om_index_block {
        uint32_t bytes, crc;
};

struct om_index_record {
        int64_t saved_ms, expires_ms;
        uint64_t sequence, offset;
        uint32_t length, key_len, name_len, topic_len, status_len, zero;
};

struct om_index_ending {
        uint64_t magic;
        uint64_t inode, size, changed_s, changed_ns; /* of NAME.json */
        uint64_t entries, bytes;                     /* of the blocks */
        uint32_t crc, zero;                          /* of what stands before it in this struct */
};
#define MAGIC 0x31786564696e6d6full /* "omindex1" */

static size_t padded(size_t n) { return (n + 7) & ~(size_t) 7; }

static struct om_index_ending ending_of(const struct stat *base, uint64_t entries, uint64_t bytes) {
        struct om_index_ending end = { .magic = MAGIC,
                .inode = base->st_ino,
                .size = (uint64_t) base->st_size,
                .changed_s = (uint64_t) base->st_mtim.tv_sec,
                .changed_ns = (uint64_t) base->st_mtim.tv_nsec,
                .entries = entries,
                .bytes = bytes };
        end.crc = om_crc32(&end, offsetof(struct om_index_ending, crc));
        return end;
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

void om_index_file_drop(struct om_file_table *t, struct om_index_writer *w) {
        char path[PATH_MAX];
        if (w->fd >= 0) {
                close(w->fd);
                unlink(om_file_path(t, OM_FILE_INDEX_NEW, path));
        }
        w->fd = -1;
        w->off = true;
        om_buf_deinit(&w->buf);
}

static bool has_one(const struct om_file_table *t) { return t->kind == OM_STORE_RESULTS || t->kind == OM_STORE_KEYS; }

void om_index_file_begin(struct om_file_table *t, struct om_index_writer *w) {
        om_index_file_drop(t, w);
        w->bytes = w->entries = 0;
        w->off = !has_one(t);
}

static bool write_all(struct om_index_writer *w, const void *data, size_t len) {
        for (size_t done = 0; done < len;) {
                ssize_t n = om_file_write(w->fd, (const char *) data + done, len - done, (off_t) (w->bytes + done));
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return false;
                done += (size_t) n;
        }
        w->bytes += len;
        return true;
}

static bool flush(struct om_file_table *t, struct om_index_writer *w) {
        char path[PATH_MAX];
        struct om_index_block block = { .bytes = (uint32_t) w->buf.len, .crc = om_crc32(w->buf.data, w->buf.len) };
        if (w->fd < 0)
                w->fd = open(om_file_path(t, OM_FILE_INDEX_NEW, path), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        bool written = w->fd >= 0 && write_all(w, &block, sizeof(block)) && write_all(w, w->buf.data, w->buf.len);
        om_buf_clear(&w->buf);
        return written;
}

void om_index_file_add(struct om_file_table *t, struct om_index_writer *w, const struct om_file_entry *entry) {
        static const char zeros[8];
        if (w->off)
                return;
        struct om_span texts[] = { om_file_key(entry), om_file_name(entry), om_file_topic(entry), om_file_status(entry) };
        struct om_index_record record = { .saved_ms = entry->saved_ms,
                .expires_ms = entry->expires_ms,
                .sequence = entry->sequence,
                .offset = om_file_offset(entry),
                .length = entry->length,
                .key_len = (uint32_t) texts[0].len,
                .name_len = (uint32_t) texts[1].len,
                .topic_len = (uint32_t) texts[2].len,
                .status_len = (uint32_t) texts[3].len };
        size_t len = texts[0].len + texts[1].len + texts[2].len + texts[3].len;
        om_buf_put(&w->buf, &record, sizeof(record));
        for (int i = 0; i < 4; i++)
                om_buf_put_span(&w->buf, texts[i]);
        om_buf_put(&w->buf, zeros, padded(len) - len);
        w->entries++;
        if (!om_buf_ok(&w->buf) || (w->buf.len >= BLOCK_BYTES && !flush(t, w)))
                om_index_file_drop(t, w);
}

void om_index_file_end(struct om_file_table *t, struct om_index_writer *w, int base_fd) {
        char new[PATH_MAX], path[PATH_MAX];
        struct stat st;
        om_file_path(t, OM_FILE_INDEX_NEW, new);
        om_file_path(t, OM_FILE_INDEX, path);
        bool good = !w->off && w->fd >= 0 && (w->buf.len == 0 || flush(t, w)) && fstat(base_fd, &st) == 0;
        if (good) {
                struct om_index_ending end = ending_of(&st, w->entries, w->bytes);
                good = write_all(w, &end, sizeof(end)) && rename(new, path) == 0;
        }
        if (good) {
                close(w->fd);
                w->fd = -1;
        } else if (has_one(t))
                unlink(path); /* that of a file which is no more */
        om_index_file_drop(t, w);
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

/* One entry at the beginning of `text`: its size there; 0: there is none, or no memory for it. */
static size_t read_entry(struct om_file_table *t, unsigned slot, uint64_t base_bytes, struct om_span text) {
        struct om_index_record record;
        if (text.len < sizeof(record))
                return 0;
        memcpy(&record, text.p, sizeof(record));
        uint64_t len = (uint64_t) record.key_len + record.name_len + record.topic_len + record.status_len;
        if (record.key_len > UINT16_MAX || record.sequence == 0 || padded(len) > text.len - sizeof(record) || record.offset > base_bytes ||
                record.length > base_bytes - record.offset)
                return 0;
        struct om_store_entry entry = { .saved_ms = record.saved_ms, .expires_ms = record.expires_ms };
        const char *p = text.p + sizeof(record);
        entry.key = (struct om_span){ p, record.key_len };
        entry.name = (struct om_span){ p += record.key_len, record.name_len };
        entry.topic = (struct om_span){ p += record.name_len, record.topic_len };
        entry.status = (struct om_span){ p + record.topic_len, record.status_len };
        if (om_file_index_add(&t->index, &entry, record.sequence, OM_FILE_PLACE(slot, record.offset), record.length) < 0)
                return 0;
        if (record.sequence > t->next_sequence)
                t->next_sequence = record.sequence;
        return sizeof(record) + padded(len);
}

static bool read_blocks(struct om_file_table *t, unsigned slot, const struct om_index_ending *end, struct om_span blocks) {
        if (om_file_index_reserve(&t->index, end->entries) < 0)
                return false;
        while (blocks.len >= sizeof(struct om_index_block)) {
                struct om_index_block block;
                memcpy(&block, blocks.p, sizeof(block));
                blocks = (struct om_span){ blocks.p + sizeof(block), blocks.len - sizeof(block) };
                if (block.bytes > blocks.len || om_crc32(blocks.p, block.bytes) != block.crc)
                        return false;
                for (size_t at = 0, n; at < block.bytes; at += n) {
                        n = read_entry(t, slot, end->size, (struct om_span){ blocks.p + at, block.bytes - at });
                        if (n == 0)
                                return false;
                }
                blocks = (struct om_span){ blocks.p + block.bytes, blocks.len - block.bytes };
        }
        return blocks.len == 0 && t->index.n == end->entries;
}

static bool is_of(const struct om_index_ending *end, int base_fd, size_t blocks) {
        struct stat st;
        if (fstat(base_fd, &st) < 0)
                return false;
        struct om_index_ending expected = ending_of(&st, end->entries, blocks);
        return memcmp(end, &expected, sizeof(expected)) == 0;
}

int om_index_file_read(struct om_file_table *t, unsigned slot) {
        char path[PATH_MAX];
        struct om_index_ending end;
        struct stat st;
        int fd = has_one(t) ? open(om_file_path(t, OM_FILE_INDEX, path), O_RDONLY | O_CLOEXEC) : -1;
        if (fd < 0)
                return 0;
        void *map = MAP_FAILED;
        size_t size = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (size_t) st.st_size : 0, blocks = size - sizeof(end);
        if (size >= sizeof(end))
                map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        close(fd);
        if (map == MAP_FAILED)
                return 0;
        madvise(map, size, MADV_WILLNEED);
        memcpy(&end, (const char *) map + blocks, sizeof(end));
        bool good = is_of(&end, t->fds[slot], blocks) && read_blocks(t, slot, &end, (struct om_span){ map, blocks });
        munmap(map, size);
        if (!good) {
                om_file_index_clear(&t->index);
                t->next_sequence = 0;
        }
        return good;
}
