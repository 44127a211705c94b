/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FILE_JOURNAL_H
#define OM_FILE_JOURNAL_H
/*
 * The text of a journal: one record a line,
 *
 *   CRC SYNCED LENGTH {"op":"put","key":"…",…,"value":…}\n
 *
 * CRC: 8 hexadecimal digits, CRC-32 (IEEE 802.3) of all behind it but the line's end. SYNCED, 16 digits: every byte of the journal before
 * this offset was on the disk when the record was written. LENGTH, 8 digits: bytes of the JSON, which may itself hold line ends.
 *
 * SYNCED tells a torn tail from damage: a record that cannot be read lies in a tail that was being written when the machine stopped, unless
 * a good one behind it says that this place had been on the disk. No state; any thread.
 */
#include "../proto/buf.h"
#include "../proto/error.h"

enum { OM_JOURNAL_HEADER = 8 + 1 + 16 + 1 + 8 + 1 };

uint32_t om_crc32(const void *data, size_t len);

/* Writes a record into `b`: the JSON is appended between the two calls; begin returns the mark for end. */
size_t om_journal_begin(struct om_buf *b);
void om_journal_end(struct om_buf *b, size_t mark, uint64_t synced);

/* Checks a whole journal. Gives how many good records there are and where they end: less than `len` where the tail is torn. -EIO with `e`
 * naming file, line and byte where it is damaged before that. */
int om_journal_check(const char *path, struct om_span journal, size_t *ret_end, size_t *ret_n, struct om_error *e);
/* The JSON of the record at *pos of a journal that was checked; moves *pos behind it. */
struct om_span om_journal_next(struct om_span journal, size_t *pos);

#endif
