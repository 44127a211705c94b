/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FILE_RECORD_H
#define OM_FILE_RECORD_H
/*
 * What the records of a journal say (journal.h has how they are framed): {"op":"put",…}, {"op":"delete",…}, {"op":"held",…}.
 *
 * No state; any thread.
 */
#include "../store.h"

/* A put as a record; gives where in `b` its value stands. */
void om_file_record_put(struct om_buf *b, const struct om_store_entry *entry, uint64_t sequence, uint64_t synced, size_t *ret_value);
/* A delete: of all (no key), of a key, of a key's entry of this name. */
void om_file_record_delete(struct om_buf *b, struct om_span key, struct om_span name, uint64_t synced);
/* The end of a journal of metrics: "the file with this number and size holds all that stands before". */
void om_file_record_held(struct om_buf *b, uint64_t inode, uint64_t size);

enum om_file_record { OM_FILE_RECORD_UNKNOWN, OM_FILE_RECORD_PUT, OM_FILE_RECORD_DELETE, OM_FILE_RECORD_HELD };

/*
 * Reads one whose checksum was right. Of a put, all of `ret` but the sequence (at least 1) is an entry, whose value stands in `json`; texts
 * with escapes are in `arena`. Of a delete, key and name. One of enum om_file_record, or -ENOMEM.
 */
int om_file_record_read(struct om_span json, struct om_arena *arena, struct om_store_entry *ret, uint64_t *ret_sequence);
/* Of a record that is HELD. */
bool om_file_record_is_held(struct om_span json, uint64_t *ret_inode, uint64_t *ret_size);

#endif
