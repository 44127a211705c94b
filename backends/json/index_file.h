/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_INDEX_FILE_H
#define OM_INDEX_FILE_H
/*
 * NAME.index: the index of a large NAME.json, so that opening does not read all of that file.
 *
 * It is worth nothing by itself. A compaction writes it beside the file that it makes; opening uses it when it speaks of exactly the
 * NAME.json that is there (its inode, size and time of change) and every block's checksum is right. Else the JSON is read, which says the
 * same. So nobody syncs it, no failure to write it is anybody's fault, and it may be deleted at any time. A hand that edits NAME.json need
 * not know.
 *
 *   block    length and CRC-32 of what follows, then entries: struct om_index_record, then key, name, topic, status, padded to 8 bytes
 *   ending   struct om_index_ending, the last bytes of the file
 *
 * Numbers are as the machine has them: the ending's magic, read on another kind of machine, is another number.
 *
 * Only kinds whose entries are wholly told by the JSON have one: results and keys.
 *
 * Thread: the storage's worker.
 */
#include "../../proto/buf.h"
#include "index.h"

struct om_file_table;

/* One that is being written. */
struct om_index_writer {
        struct om_buf buf; /* the block that is being filled */
        int fd;            /* -1: nothing was written yet: a file that has less than a block is read as fast without an index */
        bool off;          /* this one goes without */
        uint64_t bytes, entries;
};

void om_index_file_begin(struct om_file_table *t, struct om_index_writer *w);
/* The entry stands in the new NAME.json, at its place. */
void om_index_file_add(struct om_file_table *t, struct om_index_writer *w, const struct om_file_entry *entry);
/* NAME.json, open as base_fd, is whole and has its name: its index gets its own, or there is none. */
void om_index_file_end(struct om_file_table *t, struct om_index_writer *w, int base_fd);
/* Forgets what was written. Also of a writer that is all zero but for `fd` -1. */
void om_index_file_drop(struct om_file_table *t, struct om_index_writer *w);

/* Fills the table's empty index with what stands in NAME.json, open in `slot`. 1; 0: the JSON must be read, and the index is empty. */
int om_index_file_read(struct om_file_table *t, unsigned slot);

#endif
