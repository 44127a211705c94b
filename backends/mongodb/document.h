/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_MONGO_DOCUMENT_H
#define OM_MONGO_DOCUMENT_H
/*
 * Between an entry and its document, and between JSON and BSON. Any thread.
 *
 *   agents    _id "TOPIC/NAME", topic, agent, text, doc
 *   results   _id "TASK/AGENT", task_id, agent, topic, status, saved_at, expires_at, place, text, doc
 *   metrics   _id (an ObjectId), topic, saved_at, expires_at, place, text, doc
 *   config    _id KEY, text, doc          keys   _id KEY, expires_at, text, doc
 *
 * `text` is the value as it came, and is what is read. `doc` is the same for people and for searches: BSON cannot hold every number, and no
 * name twice, so it is left out where it would be too large, and what it cannot say is a string in it. In names within `doc` a dot is ．, a
 * $ at the beginning ＄, and a zero byte ␀. In a compound _id, % / and zero bytes are %25 %2F %00.
 *
 * `place` orders newest first: TIME.SEQUENCE.WRITER in hexadecimal, each of fixed width.
 */
#include <mongoc/mongoc.h>

#include "../store.h"

enum { OM_MONGO_DOCUMENT_MAX = (16 << 20) - (16 << 10), OM_MONGO_PLACE = 48 };

/* A collection's name, without the prefix: "results". */
const char *om_mongo_name(enum om_store_kind kind);
/* Whether it is listed newest first. */
static inline bool om_mongo_is_by_time(enum om_store_kind kind) { return kind == OM_STORE_RESULTS || kind == OM_STORE_METRICS; }

/* _id of an entry of agents or results (both), or of config and keys. */
void om_mongo_id(struct om_buf *b, enum om_store_kind kind, struct om_span key, struct om_span name);
/* A new place; the first of a time when `seq` and `writer` are 0. */
void om_mongo_place(char out[OM_MONGO_PLACE], int64_t saved_ms, uint64_t seq, uint32_t writer);

/* Makes the document. `plain`: without `doc`. NULL, or why it cannot be made. */
const char *om_mongo_document(
        bson_t *to, enum om_store_kind kind, const struct om_store_entry *entry, const char *place, struct om_span id, bool plain);
/* Reads it. -EIO: it is none of ours; -ENOMEM. */
int om_mongo_entry(const bson_t *doc, enum om_store_kind kind, struct om_arena *arena, struct om_store_entry *ret);

/* Appends a filter that finds what contains this JSON object, in `doc`. -EINVAL with `e`. */
int om_mongo_filter(bson_t *to, struct om_span json, struct om_error *e);
/* A field as JSON. */
void om_mongo_put_json(struct om_buf *b, const bson_iter_t *field);

#endif
