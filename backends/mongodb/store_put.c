/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing entries, and put_if_absent. The writing thread's, but for where an operation begins and is given back.
 *
 * What waits goes together: one ordered bulk write for entries of a kind, as many as the server writes in a small part of the time that an
 * answer may take. Where those before were new they are inserted, and replaced where
 * they are there; where those before were there they are replaced, or inserted where they are new. Where the
 * server refuses one of them the bulk stops there; that one is tried again without its `doc`, which the server may not be able to hold,
 * then has its own outcome, and the rest goes on. A write that is refused for another reason fails what had not been written.
 *
 * A key is claimed by inserting it. Where it is there, what has expired is deleted, with its expiry in the filter, and the claim is made
 * again: whoever inserts has won.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

/* FerretDB 1 holds a connection of the hundred that it has to its own database for each document that a command replaces, until all are. */
enum { FERRET_REPLACED = 32 };
enum { ENTRIES_MAX = 20000, BULK_MAX = 1000, BULK_BYTES = 24 << 20, AGAIN_MAX = 5, ASKED_MAX = 20, TRIM_EVERY = 1000, REPLACED_TOO = 16 };

struct put {
        struct om_mongo_job j; /* first */
        struct om_store_put *op;
        struct om_store_entry *entries;
        struct om_outcome *outcomes;
        size_t n;
};

/* One entry of a bulk. */
struct item {
        struct put *put;
        size_t place;
        bool plain, insert;
        unsigned again;
};

static void refuse(const struct item *i, const char *why) {
        i->put->outcomes[i->place].status = -EINVAL;
        i->put->outcomes[i->place].why = why;
}

/* Adds it to the bulk; false: it has its outcome now. */
static bool add(struct om_store *s, mongoc_bulk_operation_t *bulk, const struct item *i, size_t *bytes) {
        struct put *p = i->put;
        const struct om_store_entry *e = &p->entries[i->place];
        char place[OM_MONGO_PLACE];
        struct om_buf id = OM_BUF_INIT;
        bson_t doc, find, opts = BSON_INITIALIZER;
        bson_error_t why;
        const char *refusal;
        bool ok = false;

        om_mongo_place(place, e->saved_ms, ++s->seq, s->writer);
        om_mongo_id(&id, p->j.kind, e->key, e->name);
        bson_init(&doc);
        if (e->key.len > OM_STORE_KEY_MAX || e->name.len > OM_STORE_KEY_MAX)
                refusal = "its key is longer than 1024 bytes";
        else
                refusal = om_buf_ok(&id) ? om_mongo_document(&doc, p->j.kind, e, place, om_buf_span(&id), i->plain) : "out of memory";
        /* The library would refuse names that it takes for mistakes, such as an empty one: whether they can be is the server's to say. */
        BSON_APPEND_BOOL(&opts, "validate", false);
        if (!refusal && i->insert) {
                ok = mongoc_bulk_operation_insert_with_opts(bulk, &doc, &opts, &why);
        } else if (!refusal) {
                BSON_APPEND_BOOL(&opts, "upsert", true);
                bson_init(&find);
                bson_append_utf8(&find, "_id", 3, om_buf_span(&id).p, (int) id.len);
                ok = mongoc_bulk_operation_replace_one_with_opts(bulk, &find, &doc, &opts, &why);
                bson_destroy(&find);
        }
        if (!ok)
                refuse(i, refusal ? refusal : "MongoDB does not take it");
        *bytes += doc.len;
        bson_destroy(&doc);
        bson_destroy(&opts);
        om_buf_deinit(&id);
        return ok;
}

/* The first write error of a reply; false: there is none. */
static bool first_error(const bson_t *reply, uint32_t *index, uint32_t *code) {
        bson_iter_t i, list, field;

        if (!bson_iter_init_find(&i, reply, "writeErrors") || !bson_iter_recurse(&i, &list) || !bson_iter_next(&list))
                return false;
        *index = *code = 0;
        if (bson_iter_recurse(&list, &field))
                while (bson_iter_next(&field)) {
                        if (strcmp(bson_iter_key(&field), "index") == 0)
                                *index = (uint32_t) bson_iter_as_int64(&field);
                        else if (strcmp(bson_iter_key(&field), "code") == 0)
                                *code = (uint32_t) bson_iter_as_int64(&field);
                }
        return true;
}

static bool has_concern_error(const bson_t *reply) {
        bson_iter_t i, list;

        return bson_iter_init_find(&i, reply, "writeConcernErrors") && bson_iter_recurse(&i, &list) && bson_iter_next(&list);
}

static size_t upserted(const bson_t *reply) {
        bson_iter_t i;

        return bson_iter_init_find(&i, reply, "nUpserted") ? (size_t) bson_iter_as_int64(&i) : 0;
}

/* It is there already. Where one is, more will be: a batch that is saved again. */
static void replace(struct item *items, size_t from, size_t n) {
        for (size_t i = from; i < n && i < from + REPLACED_TOO; i++)
                items[i].insert = false;
}

static void adapt(struct om_store *s, int64_t took_ms) {
        if (took_ms > s->settings.answer_timeout_ms / 8 && s->bulk > 1)
                s->bulk /= 2;
        else if (took_ms < s->settings.answer_timeout_ms / 32 && s->bulk < BULK_MAX)
                s->bulk = s->bulk * 2 < BULK_MAX ? s->bulk * 2 : BULK_MAX;
}

/* From items[from] on as many as fit. Returns where to go on, or -1 with `why`: what was not written will not be. */
static long write_some(struct om_mongo_thread *t, mongoc_collection_t *c, struct item *items, size_t from, size_t n, bson_error_t *why) {
        bson_t reply;
        mongoc_bulk_operation_t *bulk = mongoc_collection_create_bulk_operation_with_opts(c, NULL);
        size_t to = from, bytes = 0, sent[BULK_MAX], n_sent = 0, replaced = atomic_load(&t->store->ferret) ? FERRET_REPLACED : BULK_MAX;
        int64_t begun = om_clock_ms();
        uint32_t index, code;
        long next;

        for (; to < n && n_sent < t->store->bulk && replaced && bytes < BULK_BYTES; to++)
                if (add(t->store, bulk, &items[to], &bytes)) {
                        sent[n_sent++] = to;
                        replaced -= !items[to].insert;
                }
        next = (long) to;
        if (n_sent > 0) {
                bool ok = mongoc_bulk_operation_execute(bulk, &reply, why) != 0;

                if (!ok && first_error(&reply, &index, &code) && index < n_sent && !has_concern_error(&reply)) {
                        struct item *i = &items[sent[index]];

                        next = (long) sent[index];
                        if (code == OM_MONGO_DUPLICATE && i->insert) {
                                replace(items, (size_t) next, n);
                                t->store->known[i->put->j.kind] = true;
                        } else if (code == OM_MONGO_DUPLICATE && i->again < AGAIN_MAX)
                                i->again++; /* somebody inserted it at the same time: now it is there */
                        else if (om_mongo_is_of_value(code) && !i->plain)
                                i->plain = true;
                        else if (om_mongo_is_of_value(code)) {
                                refuse(i, "MongoDB refuses it");
                                next++;
                        } else
                                next = -1;
                } else if (!ok)
                        next = -1;
                else if (upserted(&reply) * 2 > n_sent)
                        t->store->known[items[from].put->j.kind] = false;
                bson_destroy(&reply);
                adapt(t->store, om_clock_ms() - begun);
        }
        mongoc_bulk_operation_destroy(bulk);
        return next;
}

static void trim_sometimes(struct om_mongo_thread *t, size_t n) {
        struct om_store *s = t->store;

        s->metrics_until_trim -= (int64_t) n;
        if (s->metrics_until_trim > 0)
                return;
        s->metrics_until_trim = TRIM_EVERY;
        om_mongo_trim(s, t->client);
}

static void put_many(struct om_mongo_thread *t, struct om_mongo_job **jobs, size_t n_jobs) {
        mongoc_collection_t *c = om_mongo_collection(t->store, t->client, jobs[0]->kind);
        bson_error_t why = { 0 };
        struct item *items;
        size_t n = 0, k = 0, end = 0;
        long at = 0;

        for (size_t i = 0; i < n_jobs; i++)
                n += ((struct put *) jobs[i])->n;
        items = calloc(n + 1, sizeof *items);
        for (size_t i = 0; items && i < n_jobs; i++)
                for (size_t e = 0; e < ((struct put *) jobs[i])->n; e++)
                        items[k++] = (struct item){ .put = (struct put *) jobs[i], .place = e, .insert = !t->store->known[jobs[0]->kind] };
        while (items && at >= 0 && (size_t) at < n) {
                long next = write_some(t, c, items, (size_t) at, n, &why);

                if (next < 0)
                        break;
                at = next;
        }
        for (size_t i = 0; i < n_jobs; i++) {
                struct put *p = (struct put *) jobs[i];

                if (!items)
                        om_mongo_fail_memory(jobs[i]);
                else if ((end += p->n) > (size_t) at) /* what came before `at` is written, and completes so */
                        om_mongo_fail(jobs[i], &why, "saving");
        }
        if (jobs[0]->kind == OM_STORE_METRICS && items && (size_t) at >= n)
                trim_sometimes(t, n);
        free(items);
        mongoc_collection_destroy(c);
}

static void put_give(struct om_mongo_job *j) {
        struct put *p = (struct put *) j;

        if (p->n)
                memcpy(p->op->outcomes, p->outcomes, p->n * sizeof *p->outcomes);
}

static bool keep_all(struct put *p, const struct om_store_put *op) {
        p->entries = om_arena_alloc(&p->j.in, (op->n + 1) * sizeof *p->entries);
        p->outcomes = om_arena_alloc(&p->j.in, (op->n + 1) * sizeof *p->outcomes);
        if (!p->entries || !p->outcomes)
                return false;
        memset(p->outcomes, 0, (op->n + 1) * sizeof *p->outcomes);
        for (p->n = 0; p->n < op->n; p->n++) {
                const struct om_store_entry *from = &op->entries[p->n];
                struct om_store_entry *to = &p->entries[p->n];

                *to = *from;
                if (!om_mongo_keep(&p->j, from->key, &to->key) || !om_mongo_keep(&p->j, from->name, &to->name) ||
                        !om_mongo_keep(&p->j, from->value, &to->value) || !om_mongo_keep(&p->j, from->topic, &to->topic) ||
                        !om_mongo_keep(&p->j, from->status, &to->status))
                        return false;
        }
        return true;
}

int om_mongo_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        size_t bytes = op->n * sizeof(struct om_store_entry);
        struct put *p;
        int r;

        if (op->kind > OM_STORE_CONFIG || op->n > ENTRIES_MAX)
                return om_error_set(e, OM_INVALID, "MongoDB: at most %d entries at once, and keys by put_if_absent", ENTRIES_MAX);
        for (size_t i = 0; i < op->n; i++)
                bytes += op->entries[i].key.len + op->entries[i].name.len + op->entries[i].value.len + op->entries[i].topic.len + 64;
        r = om_mongo_job_new(s, &op->op, sizeof *p, bytes, &p, e);
        if (r < 0)
                return r;
        p->op = op;
        p->j.kind = op->kind;
        p->j.many = put_many;
        p->j.give = put_give;
        if (!keep_all(p, op)) {
                om_mongo_fail_memory(&p->j);
                om_mongo_finish(&p->j);
                return 0;
        }
        om_mongo_submit(&p->j, true);
        return 0;
}

/* -- put_if_absent ------------------------------------------------------------------------------------------------------ */

struct claim {
        struct om_mongo_job j; /* first */
        struct om_store_put_if_absent *op;
        struct om_store_entry entry;
        bool stored;
        struct om_span there;
};

static bool insert(struct claim *c, mongoc_collection_t *in, bool *plain, bson_error_t *why) {
        static const char validate[] = "validate";
        bson_t *opts = BCON_NEW(validate, BCON_BOOL(false)), doc;
        const char *refusal;
        bool ok = false;

        bson_init(&doc);
        refusal = om_mongo_document(&doc, OM_STORE_KEYS, &c->entry, "", c->entry.key, *plain);
        if (refusal)
                c->j.status = om_error_set(&c->j.error, OM_INVALID, "MongoDB: %s", refusal);
        else
                ok = mongoc_collection_insert_one(in, &doc, opts, NULL, why);
        bson_destroy(&doc);
        bson_destroy(opts);
        return ok;
}

/* What is there and has not expired; false: nothing, or `why`. */
static bool find_there(struct claim *c, mongoc_collection_t *in, bson_error_t *why) {
        bson_t find;
        const bson_t *doc;
        mongoc_cursor_t *cursor;
        struct om_store_entry e = { 0 };
        bool found = false;

        bson_init(&find);
        bson_append_utf8(&find, "_id", 3, c->entry.key.p, (int) c->entry.key.len);
        cursor = mongoc_collection_find_with_opts(in, &find, NULL, NULL);
        if (mongoc_cursor_next(cursor, &doc) && om_mongo_entry(doc, OM_STORE_KEYS, &c->j.out, &e) == 0)
                found = !e.expires_ms || e.expires_ms > om_now_ms();
        mongoc_cursor_error(cursor, why);
        mongoc_cursor_destroy(cursor);
        bson_destroy(&find);
        c->there = e.value;
        return found;
}

static bool delete_expired(struct claim *c, mongoc_collection_t *in, bson_error_t *why) {
        bson_t find, at;
        bool ok;

        bson_init(&find);
        bson_append_utf8(&find, "_id", 3, c->entry.key.p, (int) c->entry.key.len);
        BSON_APPEND_DOCUMENT_BEGIN(&find, "expires_at", &at);
        BSON_APPEND_DATE_TIME(&at, "$lte", om_now_ms());
        bson_append_document_end(&find, &at);
        ok = mongoc_collection_delete_one(in, &find, NULL, NULL, why);
        bson_destroy(&find);
        return ok;
}

static void claim_run(struct om_mongo_thread *t, struct om_mongo_job *j) {
        struct claim *c = (struct claim *) j;
        mongoc_collection_t *in = om_mongo_collection(t->store, t->client, OM_STORE_KEYS);
        bool plain = false, over = false;
        bson_error_t why;

        for (int asked = 0; !over && asked < ASKED_MAX; asked++) {
                why = (bson_error_t){ 0 };
                c->stored = insert(c, in, &plain, &why);
                over = c->stored || j->status < 0;
                if (over)
                        break;
                if (om_mongo_code(&why) == OM_MONGO_DUPLICATE || why.code == OM_MONGO_DUPLICATE) {
                        why = (bson_error_t){ 0 };
                        over = find_there(c, in, &why) || why.domain || !delete_expired(c, in, &why);
                } else if (om_mongo_code(&why) && om_mongo_is_of_value(why.code) && !plain) {
                        plain = true;
                        continue;
                } else
                        over = true;
                if (why.domain)
                        om_mongo_fail(j, &why, "claiming a key");
        }
        if (!over)
                j->status = om_error_set(&j->error, OM_UNAVAILABLE, "MongoDB: others write the same key all the time");
        mongoc_collection_destroy(in);
}

static void claim_give(struct om_mongo_job *j) {
        struct claim *c = (struct claim *) j;

        c->op->ret_stored = c->stored;
        c->op->ret_value = c->stored ? OM_SPAN_NONE : c->there;
        c->op->arena = j->out;
        j->out = (struct om_arena){ 0 };
}

int om_mongo_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct claim *c;
        int r;

        if (op->key.len > OM_STORE_KEY_MAX)
                return om_error_set(e, OM_INVALID, "MongoDB: the key is longer than %d bytes", OM_STORE_KEY_MAX);
        r = om_mongo_job_new(s, &op->op, sizeof *c, op->key.len + op->value.len, &c, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->ret_stored = false;
        op->ret_value = OM_SPAN_NONE;
        c->op = op;
        c->j.kind = OM_STORE_KEYS;
        c->j.run = claim_run;
        c->j.give = claim_give;
        c->entry.expires_ms = op->expires_ms;
        c->entry.saved_ms = om_now_ms();
        if (om_mongo_keep(&c->j, op->key, &c->entry.key) && om_mongo_keep(&c->j, op->value, &c->entry.value)) {
                om_mongo_submit(&c->j, true);
                return 0;
        }
        om_mongo_fail_memory(&c->j);
        om_mongo_finish(&c->j);
        return 0;
}
