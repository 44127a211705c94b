/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_RECORD_H
#define OM_S3_RECORD_H
/* What an object of ours holds: one JSON object, the value last, so that a person who looks into the bucket reads it. Pure. */
#include "../store.h"

enum { S3_TOKEN_MAX = 40 };

void s3_record_put(struct om_buf *b, const struct om_store_entry *entry);
/* Spans point into `text` or are in `arena`. 0; -EINVAL: not of our making; -ENOMEM. */
int s3_record_read(struct om_span text, struct om_arena *arena, struct om_store_entry *ret);

#endif
