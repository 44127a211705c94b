/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists. The reading threads', but for where an operation begins and is given back.
 *
 * A list's cursor is ID:PLACE, with the `place` of the last entry that was given, of what has none its _id: each is the order of the list.
 * So each page can be found anew, whoever asks for it. Of a walk that may meet what was (stale_ok) the server's own cursor is kept from
 * page to page by the thread that read the first, OM_MONGO_KEPT of them at most; it has the ID, else that is empty. The page then need not
 * be found. A kept cursor is of one walk's one page, so that nobody meets what was before his own walk began; one that the server has given
 * up costs a page found anew.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

enum { PAGE = 1000, PAGE_MAX = 10000, PAGE_BYTES = 16 << 20, IDLE_MS = 60000 };

struct list {
        struct om_mongo_job j; /* first */
        struct om_store_list *op;
        struct om_store_list in; /* its inputs, in the arena */
        struct om_store_entry *entries;
        size_t n, limit;
        struct om_span next;  /* the place where the next page begins */
        uint64_t id, next_id; /* of the kept cursor; 0: none */
};

static void equal(bson_t *find, const char *field, struct om_span value) {
        if (value.p)
                bson_append_utf8(find, field, -1, value.p, (int) value.len);
}

/* A word in a JSON text, as a regular expression that is nothing but that word. */
static void put_word(struct om_buf *b, struct om_span word) {
        struct om_buf json = OM_BUF_INIT;

        om_buf_json_span(&json, word);
        for (size_t i = 1; i + 1 < json.len; i++) {
                if (strchr("\\^$.|?*+()[]{}", json.data[i]))
                        om_buf_putc(b, '\\');
                om_buf_putc(b, json.data[i]);
        }
        om_buf_putc(b, 0);
        om_buf_deinit(&json);
}

static bool next_word(struct om_span *rest, struct om_span *ret) {
        while (rest->len && strchr(" \t\r\n", *rest->p))
                rest->p++, rest->len--;
        *ret = (struct om_span){ rest->p, 0 };
        while (ret->len < rest->len && !strchr(" \t\r\n", rest->p[ret->len]))
                ret->len++;
        rest->p += ret->len;
        rest->len -= ret->len;
        return ret->len > 0;
}

/* All words must be there. With the server's index each is a phrase, as only those are all wanted. */
static void put_words(bson_t *find, const struct om_store *s, struct om_span text) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span word;
        bson_t search, all, one, in;
        uint32_t n = 0;

        if (atomic_load(&s->text)) {
                while (next_word(&text, &word)) {
                        om_buf_puts(&b, n++ ? " \"" : "\"");
                        for (size_t i = 0; i < word.len; i++)
                                om_buf_putc(&b, word.p[i] == '"' || word.p[i] == '\\' ? ' ' : word.p[i]);
                        om_buf_putc(&b, '"');
                }
                BSON_APPEND_DOCUMENT_BEGIN(find, "$text", &search);
                bson_append_utf8(&search, "$search", -1, om_buf_span(&b).p, (int) b.len);
                bson_append_document_end(find, &search);
        } else {
                BSON_APPEND_ARRAY_BEGIN(find, "$or", &in); /* of one: $and may be the filter's */
                BSON_APPEND_DOCUMENT_BEGIN(&in, "0", &one);
                BSON_APPEND_ARRAY_BEGIN(&one, "$and", &all);
                while (next_word(&text, &word)) {
                        char room[16];
                        const char *key;
                        bson_t has;

                        om_buf_clear(&b);
                        put_word(&b, word);
                        bson_uint32_to_string(n++, &key, room, sizeof room);
                        bson_append_document_begin(&all, key, -1, &has);
                        BSON_APPEND_REGEX(&has, "text", om_buf_ok(&b) ? b.data : "", "i");
                        bson_append_document_end(&all, &has);
                }
                bson_append_array_end(&one, &all);
                bson_append_document_end(&in, &one);
                bson_append_array_end(find, &in);
        }
        om_buf_deinit(&b);
}

static void put_times(bson_t *find, const struct list *l) {
        char place[OM_MONGO_PLACE], until[OM_MONGO_PLACE];
        struct om_span below = l->in.cursor;
        bson_t at;

        if (l->in.until_ms) {
                om_mongo_place(until, l->in.until_ms, 0, 0);
                if (!below.p || strcmp(until, below.p) < 0)
                        below = om_span_of(until);
        }
        if (!below.p && !l->in.since_ms)
                return;
        BSON_APPEND_DOCUMENT_BEGIN(find, "place", &at);
        if (l->in.since_ms) {
                om_mongo_place(place, l->in.since_ms, 0, 0);
                BSON_APPEND_UTF8(&at, "$gte", place);
        }
        if (below.p)
                bson_append_utf8(&at, "$lt", -1, below.p, (int) below.len);
        bson_append_document_end(find, &at);
}

/* Where lists by name begin. */
static void put_names(bson_t *find, const struct list *l) {
        struct om_span prefix = l->in.kind == OM_STORE_CONFIG ? l->in.name : OM_SPAN_NONE;
        bson_t at;

        if (l->in.kind == OM_STORE_AGENTS)
                equal(find, "topic", l->in.key);
        if (!l->in.cursor.p && !prefix.p)
                return;
        BSON_APPEND_DOCUMENT_BEGIN(find, "_id", &at);
        if (l->in.cursor.p)
                bson_append_utf8(&at, "$gt", -1, l->in.cursor.p, (int) l->in.cursor.len);
        else
                bson_append_utf8(&at, "$gte", -1, prefix.p, (int) prefix.len);
        bson_append_document_end(find, &at);
}

static int put_find(bson_t *find, struct list *l) {
        const struct om_store_list *in = &l->in;
        int r = 0;

        if (!om_mongo_is_by_time(in->kind)) {
                put_names(find, l);
                return 0;
        }
        equal(find, "topic", in->topic);
        equal(find, "status", in->status);
        put_times(find, l);
        if (in->kind == OM_STORE_METRICS)
                return 0;
        equal(find, "task_id", in->key);
        equal(find, "agent", in->name);
        if (in->text.p)
                put_words(find, l->j.store, in->text);
        if (in->filter.p)
                r = om_mongo_filter(find, in->filter, &l->j.error);
        return r;
}

static bool begins(struct om_span text, struct om_span prefix) {
        return text.len >= prefix.len && memcmp(text.p, prefix.p, prefix.len) == 0;
}

/* Where the list goes on behind this document. */
static struct om_span place_of(struct list *l, const bson_t *doc) {
        bson_iter_t i;
        uint32_t len;

        if (!bson_iter_init_find(&i, doc, om_mongo_is_by_time(l->in.kind) ? "place" : "_id") || !BSON_ITER_HOLDS_UTF8(&i))
                return OM_SPAN_NONE;
        const char *text = bson_iter_utf8(&i, &len);
        return om_arena_copy(&l->j.out, (struct om_span){ text, len });
}

/* The page, from the cursor's next document on; with `resumed` from its current one. */
static int take_page(struct list *l, mongoc_cursor_t *cursor, bool resumed) {
        size_t size = 0, bytes = 0;
        struct om_span last = OM_SPAN_NONE;
        const bson_t *doc = resumed ? mongoc_cursor_current(cursor) : NULL;

        for (; doc || mongoc_cursor_next(cursor, &doc); doc = NULL) {
                struct om_store_entry e;
                int r = om_mongo_entry(doc, l->in.kind, &l->j.out, &e);

                if (r < 0)
                        return r;
                if (om_mongo_is_expired(&e))
                        continue;
                if (l->in.kind == OM_STORE_CONFIG && l->in.name.p && !begins(e.key, l->in.name))
                        break;
                if (l->n == l->limit || bytes > PAGE_BYTES) {
                        l->next = last;
                        break;
                }
                if (l->n == size) {
                        struct om_store_entry *more = om_arena_alloc(&l->j.out, (size = size * 2 + 64) * sizeof *more);

                        if (!more)
                                return -ENOMEM;
                        if (l->n)
                                memcpy(more, l->entries, l->n * sizeof *more);
                        l->entries = more;
                }
                l->entries[l->n++] = e;
                bytes += e.value.len;
                last = place_of(l, doc);
                if (!last.p)
                        return -EIO;
        }
        return 0;
}

/* -- the cursors that are kept --------------------------------------------------------------------------------------------- */

static void drop(struct om_mongo_kept *k) {
        if (k->cursor)
                mongoc_cursor_destroy(k->cursor);
        k->cursor = NULL;
}

void om_mongo_drop_kept(struct om_mongo_thread *t, int64_t before_ms) {
        for (size_t i = 0; i < OM_MONGO_KEPT; i++)
                if (t->kept[i].cursor && t->kept[i].used_ms < before_ms)
                        drop(&t->kept[i]);
}

/* The cursor that stands where the page begins, the caller's from now on; NULL: none. */
static mongoc_cursor_t *take_kept(struct om_mongo_thread *t, const struct list *l) {
        for (size_t i = 0; l->id && i < OM_MONGO_KEPT; i++) {
                struct om_mongo_kept *k = &t->kept[i];

                if (k->cursor && k->id == l->id && k->kind == l->in.kind) {
                        mongoc_cursor_t *cursor = k->cursor;

                        k->cursor = NULL;
                        return cursor;
                }
        }
        return NULL;
}

/* Keeps it in place of what was used longest ago. */
static void keep(struct om_mongo_thread *t, struct list *l, mongoc_cursor_t *cursor) {
        struct om_mongo_kept *oldest = t->kept;

        for (size_t i = 1; i < OM_MONGO_KEPT; i++)
                if (oldest->cursor && (!t->kept[i].cursor || t->kept[i].used_ms < oldest->used_ms))
                        oldest = &t->kept[i];
        drop(oldest);
        l->next_id = (om_random_u64() & ~(uint64_t) 0xff) | (uint64_t) (t - t->store->threads);
        *oldest = (struct om_mongo_kept){ .cursor = cursor, .kind = l->in.kind, .id = l->next_id, .used_ms = om_clock_ms() };
}

/* -- lists ------------------------------------------------------------------------------------------------------------------ */

/* The server says that it takes too long before the connection is given up, and with it all else that waits for the server. */
static int64_t patience_ms(const struct om_store *s) { return s->settings.answer_timeout_ms - s->settings.answer_timeout_ms / 4; }

static mongoc_cursor_t *find(struct om_mongo_thread *t, struct list *l) {
        bool by_time = om_mongo_is_by_time(l->in.kind);
        mongoc_collection_t *c = om_mongo_collection(t->store, t->client, l->in.kind);
        bson_t find = BSON_INITIALIZER,
               *opts = BCON_NEW("sort", "{", by_time ? "place" : "_id", BCON_INT32(by_time ? -1 : 1), "}", "batchSize",
                       BCON_INT32((int32_t) l->limit + 1), "maxTimeMS", BCON_INT64(patience_ms(t->store)), "projection", "{", "doc",
                       BCON_BOOL(false), "}");
        mongoc_cursor_t *cursor = NULL;
        int r = put_find(&find, l);

        if (r < 0)
                l->j.status = r;
        else
                cursor = mongoc_collection_find_with_opts(c, &find, opts, NULL);
        bson_destroy(&find);
        bson_destroy(opts);
        mongoc_collection_destroy(c);
        return cursor;
}

/* The page from a kept cursor; false: there is none, or the server has given it up. */
static bool go_on(struct om_mongo_thread *t, struct list *l) {
        mongoc_cursor_t *cursor = take_kept(t, l);
        bool ok;

        if (!cursor)
                return false;
        ok = take_page(l, cursor, true) == 0 && !mongoc_cursor_error(cursor, NULL);
        if (ok && l->next.p) {
                keep(t, l, cursor);
                return true;
        }
        mongoc_cursor_destroy(cursor);
        if (!ok) {
                om_arena_deinit(&l->j.out);
                l->entries = NULL;
                l->n = 0;
                l->next = OM_SPAN_NONE;
        }
        return ok;
}

static void list_run(struct om_mongo_thread *t, struct om_mongo_job *j) {
        struct list *l = (struct list *) j;
        bson_error_t why = { 0 };
        mongoc_cursor_t *cursor;
        int r;

        if (l->in.stale_ok) {
                om_mongo_drop_kept(t, om_clock_ms() - IDLE_MS);
                if (go_on(t, l))
                        return;
        }
        cursor = find(t, l);
        if (!cursor)
                return;
        r = take_page(l, cursor, false);
        if (mongoc_cursor_error(cursor, &why) && om_mongo_code(&why) == OM_MONGO_MAX_TIME)
                j->status = om_error_set(&j->error, OM_TIMEOUT,
                        "MongoDB: %s: listing took the server longer than %lld ms, three quarters of answer_timeout: raise it in the URL",
                        t->store->settings.where, (long long) patience_ms(t->store));
        else if (mongoc_cursor_error(cursor, &why))
                om_mongo_fail(j, &why, "listing");
        else if (r < 0)
                j->status = om_mongo_not_ours(j, r);
        else if (l->in.stale_ok && l->next.p) {
                keep(t, l, cursor);
                return;
        }
        mongoc_cursor_destroy(cursor);
}

static struct om_span cursor_of(struct list *l) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span copy = OM_SPAN_NONE;

        if (l->next_id)
                om_buf_printf(&b, "%llx", (unsigned long long) l->next_id);
        om_buf_putc(&b, ':');
        om_buf_put_span(&b, l->next);
        if (om_buf_ok(&b))
                copy = om_arena_copy(&l->j.out, om_buf_span(&b));
        om_buf_deinit(&b);
        return copy;
}

static void list_give(struct om_mongo_job *j) {
        struct list *l = (struct list *) j;
        struct om_span next = l->next.p ? cursor_of(l) : OM_SPAN_NONE;

        if (l->next.p && !next.p) {
                om_mongo_fail_memory(j);
                return;
        }
        l->op->entries = l->entries;
        l->op->n = l->n;
        l->op->next_cursor = next;
        l->op->arena = j->out;
        j->out = (struct om_arena){ 0 };
}

static bool keep_inputs(struct list *l, const struct om_store_list *op, struct om_span place) {
        const struct om_span *in[] = { &op->key, &op->name, &op->topic, &op->status, &place, &op->text, &op->filter };
        struct om_span *out[] = { &l->in.key, &l->in.name, &l->in.topic, &l->in.status, &l->in.cursor, &l->in.text, &l->in.filter };

        l->in.kind = op->kind;
        l->in.since_ms = op->since_ms;
        l->in.until_ms = op->until_ms;
        l->in.stale_ok = op->stale_ok;
        for (size_t i = 0; i < sizeof in / sizeof *in; i++)
                if (!om_mongo_keep(&l->j, *in[i], out[i]))
                        return false;
        l->limit = op->limit ? op->limit : PAGE;
        l->limit = l->limit < PAGE_MAX ? l->limit : PAGE_MAX;
        return true;
}

/* A place is 12.16.8 hexadecimal digits. */
static bool is_place(struct om_span c) {
        if (c.len != 38)
                return false;
        for (size_t i = 0; i < c.len; i++)
                if (i == 12 || i == 29 ? c.p[i] != '.' : !strchr("0123456789abcdef", c.p[i]) || !c.p[i])
                        return false;
        return true;
}

/* ID:PLACE; -EINVAL. */
static int read_cursor(const struct om_store_list *op, struct om_span *ret_place, uint64_t *ret_id, struct om_error *e) {
        struct om_span c = op->cursor, rest = c;
        uint64_t id = 0;

        *ret_place = OM_SPAN_NONE;
        *ret_id = 0;
        if (!c.p)
                return 0;
        for (; rest.len && *rest.p != ':' && c.len - rest.len < 16; rest.p++, rest.len--) {
                const char *digit = *rest.p ? strchr("0123456789abcdef", *rest.p) : NULL;

                if (!digit)
                        break;
                id = id << 4 | (uint64_t) (digit - "0123456789abcdef");
        }
        if (rest.len && *rest.p == ':') {
                *ret_place = (struct om_span){ rest.p + 1, rest.len - 1 };
                *ret_id = id;
                if (om_mongo_is_by_time(op->kind) ? is_place(*ret_place) : bson_utf8_validate(ret_place->p, ret_place->len, true))
                        return 0;
        }
        return om_error_set(e, OM_INVALID, "\"%.*s\" is none of this storage's", (int) (c.len < 40 ? c.len : 40), c.p);
}

int om_mongo_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct om_span place;
        struct list *l;
        uint64_t id;
        int r = read_cursor(op, &place, &id, e);

        if (r < 0)
                return r;
        r = om_mongo_job_new(s, &op->op, sizeof *l, op->text.len + op->filter.len + 512, &l, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->n = 0;
        op->entries = NULL;
        op->next_cursor = OM_SPAN_NONE;
        l->op = op;
        l->j.kind = op->kind;
        l->j.run = list_run;
        l->j.give = list_give;
        l->id = id;
        if (keep_inputs(l, op, place)) {
                om_mongo_submit_to(&l->j, op->stale_ok ? id & 0xff : 0);
                return 0;
        }
        om_mongo_fail_memory(&l->j);
        om_mongo_finish(&l->j);
        return 0;
}
