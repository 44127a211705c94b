/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies: hiredis' reader makes them, in an arena, within a budget of bytes.
 *
 * Always true: a reply and all in it are of one arena, which is freed at once; a reply that would take more than the budget ends the
 * reading, and so does a line without an end; a size that a server announces allocates nothing before it was held against the budget.
 * hiredis itself bounds the depth (7). Tested by tests/fuzz/fuzz_redis.c. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "link.h"

enum { LINE_MAX_BYTES = 64 << 10 };

static const struct om_redis_reply nil = { .type = OM_REDIS_NIL };

/* -- reading --------------------------------------------------------------------------------------------------------- */

static void *take(struct om_redis_in *in, size_t n) {
        void *p = n <= in->budget ? om_arena_alloc(&in->arena, n) : NULL;

        if (!p) {
                in->over = true;
                return NULL;
        }
        in->budget -= n;
        return p;
}

static struct om_redis_reply *make(const redisReadTask *task, enum om_redis_type type) {
        struct om_redis_in *in = task->privdata;
        struct om_redis_reply *r = take(in, sizeof *r), *parent = task->parent ? task->parent->obj : NULL;

        if (!r)
                return NULL;
        *r = (struct om_redis_reply){ .type = type };
        if (parent)
                parent->elements[task->idx] = r;
        return r;
}

static void *make_string(const redisReadTask *task, char *text, size_t len) {
        enum om_redis_type type = task->type == REDIS_REPLY_ERROR ? OM_REDIS_ERROR
                : task->type == REDIS_REPLY_STATUS                ? OM_REDIS_STATUS
                                                                  : OM_REDIS_STRING;
        struct om_redis_reply *r = make(task, type);
        char *copy = r ? take(task->privdata, len + 1) : NULL;

        if (!copy)
                return NULL;
        memcpy(copy, text, len);
        copy[len] = 0;
        r->text = (struct om_span){ copy, len };
        return r;
}

static void *make_array(const redisReadTask *task, int n) {
        struct om_redis_reply *r = make(task, OM_REDIS_ARRAY);
        struct om_redis_in *in = task->privdata;

        /* Each element takes room of its own later, so a number that cannot be kept is refused before its table is made. */
        if (!r || n < 0 || (size_t) n > in->budget / sizeof *r)
                return in->over = true, NULL;
        r->elements = take(in, ((size_t) n + 1) * sizeof(struct om_redis_reply *));
        if (!r->elements)
                return NULL;
        memset(r->elements, 0, ((size_t) n + 1) * sizeof(struct om_redis_reply *));
        r->n = (size_t) n;
        return r;
}

static void *make_integer(const redisReadTask *task, long long value) {
        struct om_redis_reply *r = make(task, OM_REDIS_INTEGER);

        if (r)
                r->integer = value;
        return r;
}

static void *make_nil(const redisReadTask *task) { return make(task, OM_REDIS_NIL); }

static void free_nothing(void *reply) {} /* the arena goes as a whole */

static redisReplyObjectFunctions functions = { make_string, make_array, make_integer, make_nil, free_nothing };

int om_redis_in_init(struct om_redis_in *in, size_t max_bytes) {
        *in = (struct om_redis_in){ .budget = max_bytes, .max = max_bytes };
        in->reader = redisReaderCreateWithFunctions(&functions);
        if (!in->reader)
                return -ENOMEM;
        in->reader->privdata = in;
        return 0;
}

void om_redis_in_deinit(struct om_redis_in *in) {
        if (in->reader)
                redisReaderFree(in->reader);
        in->reader = NULL;
        om_arena_deinit(&in->arena);
}

int om_redis_in_feed(struct om_redis_in *in, const char *bytes, size_t n) {
        redisReader *r = in->reader;

        if (r->len - r->pos + n > in->max) {
                in->over = true;
                return -EMSGSIZE;
        }
        return redisReaderFeed(r, bytes, n) == REDIS_OK ? 0 : -EPROTO;
}

/* What waits for more bytes must have the end of its first line by now. */
static bool line_is_endless(const redisReader *r) {
        size_t n = r->len - r->pos;

        return n >= LINE_MAX_BYTES && !memchr(r->buf + r->pos, '\n', LINE_MAX_BYTES);
}

int om_redis_in_next(struct om_redis_in *in, struct om_redis_reply **ret) {
        void *reply = NULL;

        if (redisReaderGetReply(in->reader, &reply) != REDIS_OK)
                return in->over ? -EMSGSIZE : -EPROTO;
        if (!reply)
                return line_is_endless(in->reader) ? -EPROTO : 0;
        *ret = reply;
        return 1;
}

void om_redis_in_done(struct om_redis_in *in) {
        om_arena_deinit(&in->arena);
        in->budget = in->max;
}

const char *om_redis_in_fault(const struct om_redis_in *in) {
        return in->reader->err && !in->over ? in->reader->errstr : "a line without an end";
}

/* -- looking --------------------------------------------------------------------------------------------------------- */

const struct om_redis_reply *om_redis_at(const struct om_redis_reply *r, size_t i) {
        return r && r->type == OM_REDIS_ARRAY && i < r->n && r->elements[i] ? r->elements[i] : &nil;
}

int64_t om_redis_int(const struct om_redis_reply *r, int64_t otherwise) {
        long long n;
        char *end;

        if (!r)
                return otherwise;
        if (r->type == OM_REDIS_INTEGER)
                return r->integer;
        if ((r->type != OM_REDIS_STRING && r->type != OM_REDIS_STATUS) || !r->text.len)
                return otherwise;
        errno = 0;
        n = strtoll(r->text.p, &end, 10);
        return errno || end != r->text.p + r->text.len ? otherwise : n;
}

const struct om_redis_reply *om_redis_field(const struct om_redis_reply *r, const char *name) {
        for (size_t i = 0; r && r->type == OM_REDIS_ARRAY && i + 1 < r->n; i += 2)
                if (om_span_is(om_redis_at(r, i)->text, name))
                        return om_redis_at(r, i + 1);
        return &nil;
}

struct om_span om_redis_info(struct om_span info, const char *name) {
        size_t n = strlen(name);
        const char *end;

        if (!info.p)
                return OM_SPAN_NONE;
        end = info.p + info.len;
        for (const char *p = info.p; p < end;) {
                const char *stop = memchr(p, '\n', (size_t) (end - p)), *next = stop ? stop + 1 : end;
                size_t len = (size_t) ((stop ? stop : end) - p);

                if (len && p[len - 1] == '\r')
                        len--;
                if (len > n && memcmp(p, name, n) == 0 && p[n] == ':')
                        return (struct om_span){ p + n + 1, len - n - 1 };
                p = next;
        }
        return OM_SPAN_NONE;
}

bool om_redis_is_error(const struct om_redis_reply *r, const char *word) {
        size_t n = strlen(word);

        return r && r->type == OM_REDIS_ERROR && r->text.len >= n && memcmp(r->text.p, word, n) == 0 &&
                (r->text.len == n || r->text.p[n] == ' ');
}
