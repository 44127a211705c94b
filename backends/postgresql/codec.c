/* SPDX-License-Identifier: Apache-2.0 */
/* PostgreSQL's binary form: see codec.h. */
#include <endian.h>
#include <errno.h>

#include "codec.h"

enum { EPOCH_S = 946684800 };       /* 2000-01-01 in Unix seconds: the server counts from there */
#define MS_MIN (-210000000000000LL) /* before the earliest that a timestamptz can be (4713 BC) nobody saved anything */
#define MS_MAX 9000000000000000LL

static void put32(struct om_buf *b, uint32_t v) {
        v = htobe32(v);
        om_buf_put(b, &v, sizeof v);
}
static void put64(struct om_buf *b, int64_t value) {
        uint64_t v = htobe64((uint64_t) value);

        om_buf_put(b, &v, sizeof v);
}

/* -- times ----------------------------------------------------------------------------------------------------------- */

/* The ends are the server's -infinity and infinity. */
int64_t om_pg_micros_of(int64_t ms) { return ms < MS_MIN ? INT64_MIN : ms > MS_MAX ? INT64_MAX : (ms - EPOCH_S * 1000LL) * 1000; }
int64_t om_pg_ms_of(int64_t micros) {
        if (micros == INT64_MIN || micros == INT64_MAX)
                return micros;
        return (micros >= 0 ? micros / 1000 : -((999 - micros) / 1000)) + EPOCH_S * 1000LL;
}

/* -- keys ------------------------------------------------------------------------------------------------------------ */

static bool is_plain(struct om_span key) { return !key.len || (!memchr(key.p, 0, key.len) && !memchr(key.p, 1, key.len)); }

void om_pg_key_encode(struct om_buf *b, struct om_span key) {
        if (is_plain(key)) {
                om_buf_put_span(b, key);
                return;
        }
        for (size_t i = 0; i < key.len; i++)
                if (key.p[i] == 0 || key.p[i] == 1)
                        om_buf_puts(b, key.p[i] ? "\1\2" : "\1\1");
                else
                        om_buf_putc(b, key.p[i]);
}

struct om_span om_pg_key_decode(struct om_span text, struct om_arena *arena) {
        struct om_span copy = om_arena_copy(arena, text);
        char *to = (char *) copy.p;
        size_t n = 0;

        if (!to || is_plain(text))
                return copy;
        for (size_t i = 0; i < text.len; i++) {
                bool escape = text.p[i] == 1 && i + 1 < text.len;

                to[n++] = escape ? (char) (text.p[++i] - 1) : text.p[i];
        }
        to[n] = 0;
        return (struct om_span){ to, n };
}

/* -- parameters ------------------------------------------------------------------------------------------------------ */

void om_pg_params_free(struct om_pg_params *p) {
        om_buf_deinit(&p->bytes);
        p->n = 0;
}

static void begin(struct om_pg_params *p) { p->offset[p->n] = p->bytes.len; }
static void end(struct om_pg_params *p) {
        p->length[p->n] = (int) (p->bytes.len - p->offset[p->n]);
        p->n++;
}

void om_pg_put_null(struct om_pg_params *p) {
        begin(p);
        p->length[p->n++] = -1;
}
void om_pg_put_text(struct om_pg_params *p, struct om_span text) {
        if (!text.p) {
                om_pg_put_null(p);
                return;
        }
        begin(p);
        om_buf_put_span(&p->bytes, text);
        end(p);
}
void om_pg_put_key(struct om_pg_params *p, struct om_span key) {
        if (!key.p) {
                om_pg_put_null(p);
                return;
        }
        begin(p);
        om_pg_key_encode(&p->bytes, key);
        end(p);
}
void om_pg_put_int(struct om_pg_params *p, int64_t value) {
        begin(p);
        put64(&p->bytes, value);
        end(p);
}
void om_pg_put_micros(struct om_pg_params *p, int64_t micros) { om_pg_put_int(p, micros); }
void om_pg_put_time(struct om_pg_params *p, int64_t ms) { om_pg_put_int(p, om_pg_micros_of(ms)); }

void om_pg_array_begin(struct om_pg_params *p, enum om_pg_type element, size_t n) {
        begin(p);
        put32(&p->bytes, 1); /* dimensions */
        put32(&p->bytes, 1); /* nulls may be there */
        put32(&p->bytes, element);
        put32(&p->bytes, (uint32_t) n);
        put32(&p->bytes, 1); /* the first one's number */
}
static void put_null(struct om_pg_params *p) { put32(&p->bytes, UINT32_MAX); }
void om_pg_array_text(struct om_pg_params *p, struct om_span text) {
        if (!text.p) {
                put_null(p);
                return;
        }
        put32(&p->bytes, (uint32_t) text.len);
        om_buf_put_span(&p->bytes, text);
}
void om_pg_array_key(struct om_pg_params *p, struct om_span key) {
        size_t mark = p->bytes.len;
        uint32_t len;

        if (!key.p || is_plain(key)) {
                om_pg_array_text(p, key);
                return;
        }
        put32(&p->bytes, 0);
        om_pg_key_encode(&p->bytes, key);
        len = htobe32((uint32_t) (p->bytes.len - mark - sizeof len));
        if (om_buf_ok(&p->bytes))
                memcpy(p->bytes.data + mark, &len, sizeof len);
}
void om_pg_array_bool(struct om_pg_params *p, bool value) {
        put32(&p->bytes, 1);
        om_buf_putc(&p->bytes, value ? 1 : 0);
}
void om_pg_array_time(struct om_pg_params *p, int64_t ms) {
        if (ms == INT64_MIN) {
                put_null(p);
                return;
        }
        put32(&p->bytes, 8);
        put64(&p->bytes, om_pg_micros_of(ms));
}
void om_pg_array_end(struct om_pg_params *p) { end(p); }

/* -- rows ------------------------------------------------------------------------------------------------------------ */

struct om_span om_pg_text(const PGresult *res, int row, int column) {
        if (PQgetisnull(res, row, column))
                return OM_SPAN_NONE;
        return (struct om_span){ PQgetvalue(res, row, column), (size_t) PQgetlength(res, row, column) };
}
int64_t om_pg_int(const PGresult *res, int row, int column) {
        uint64_t v = 0;

        if (PQgetisnull(res, row, column) || PQgetlength(res, row, column) != sizeof v)
                return 0;
        memcpy(&v, PQgetvalue(res, row, column), sizeof v);
        return (int64_t) be64toh(v);
}
bool om_pg_bool(const PGresult *res, int row, int column) {
        return !PQgetisnull(res, row, column) && PQgetlength(res, row, column) == 1 && PQgetvalue(res, row, column)[0];
}
int64_t om_pg_micros(const PGresult *res, int row, int column) { return om_pg_int(res, row, column); }

int om_pg_entry(const PGresult *res, int row, struct om_arena *arena, struct om_store_entry *ret) {
        struct om_span *fields[] = { &ret->key, &ret->name, &ret->topic, &ret->status, &ret->value };

        *ret = (struct om_store_entry){ 0 };
        for (int i = 0; i < 5; i++) {
                struct om_span text = om_pg_text(res, row, OM_PG_KEY + i);

                *fields[i] = i + OM_PG_KEY == OM_PG_VALUE ? om_arena_copy(arena, text) : om_pg_key_decode(text, arena);
                if (text.p && !fields[i]->p)
                        return -ENOMEM;
        }
        ret->saved_ms = PQgetisnull(res, row, OM_PG_SAVED) ? 0 : om_pg_ms_of(om_pg_micros(res, row, OM_PG_SAVED));
        if (!PQgetisnull(res, row, OM_PG_EXPIRES) && om_pg_micros(res, row, OM_PG_EXPIRES) != INT64_MAX)
                ret->expires_ms = om_pg_ms_of(om_pg_micros(res, row, OM_PG_EXPIRES));
        return 0;
}
