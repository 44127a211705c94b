/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_CODEC_H
#define OM_PG_CODEC_H
/*
 * Parameters and rows in PostgreSQL's binary form, so that texts need no quoting and times no rounding: text as its bytes, int8 and
 * timestamptz (microseconds since 2000) as 8 bytes big-endian, arrays of these.
 *
 * Thread: any, one at a time.
 */
#include <libpq-fe.h>

#include "../store.h"

enum { OM_PG_PARAMS_MAX = 12 };
/* The parameters of one statement. Zero-initialised is empty. */
struct om_pg_params {
        struct om_buf bytes;
        size_t offset[OM_PG_PARAMS_MAX];
        int length[OM_PG_PARAMS_MAX]; /* -1: null */
        int n;
};
void om_pg_params_free(struct om_pg_params *p);
void om_pg_put_text(struct om_pg_params *p, struct om_span text); /* absent: null */
void om_pg_put_key(struct om_pg_params *p, struct om_span key);   /* a name of any bytes */
void om_pg_put_int(struct om_pg_params *p, int64_t value);
void om_pg_put_time(struct om_pg_params *p, int64_t ms);
void om_pg_put_null(struct om_pg_params *p);

/* An array: begin, an element each, end. */
enum om_pg_type { OM_PG_TEXT = 25, OM_PG_BOOL = 16, OM_PG_INT8 = 20, OM_PG_TIME = 1184 };
void om_pg_array_begin(struct om_pg_params *p, enum om_pg_type element, size_t n);
void om_pg_array_text(struct om_pg_params *p, struct om_span text);
void om_pg_array_key(struct om_pg_params *p, struct om_span key);
void om_pg_array_bool(struct om_pg_params *p, bool value);
void om_pg_array_time(struct om_pg_params *p, int64_t ms); /* INT64_MIN: null */
void om_pg_array_end(struct om_pg_params *p);

/*
 * A key, an agent's name, a topic as the server's text, which has no zero byte: 0 becomes the bytes 1 1, and 1 becomes 1 2. The order of
 * keys is theirs. The writing appends; reading gives a copy in the arena (absent when out of memory).
 */
void om_pg_key_encode(struct om_buf *b, struct om_span key);
struct om_span om_pg_key_decode(struct om_span text, struct om_arena *arena);

/* Values that stand for "no bound". */
#define OM_PG_EVER INT64_MAX
#define OM_PG_NEVER INT64_MIN

/* A field of a row; null gives absent, 0. */
struct om_span om_pg_text(const PGresult *res, int row, int column);
int64_t om_pg_int(const PGresult *res, int row, int column);
bool om_pg_bool(const PGresult *res, int row, int column);
int64_t om_pg_micros(const PGresult *res, int row, int column); /* as stored */
int64_t om_pg_ms_of(int64_t micros);
int64_t om_pg_micros_of(int64_t ms);
void om_pg_put_micros(struct om_pg_params *p, int64_t micros);

/* A row of (key, name, topic, status, value, saved_at, expires_at, seq) as an entry in the arena. -ENOMEM. */
enum { OM_PG_KEY, OM_PG_NAME, OM_PG_TOPIC, OM_PG_STATUS, OM_PG_VALUE, OM_PG_SAVED, OM_PG_EXPIRES, OM_PG_SEQ, OM_PG_FOUND };
int om_pg_entry(const PGresult *res, int row, struct om_arena *arena, struct om_store_entry *ret);

#endif
