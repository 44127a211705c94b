/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A storage in memory, the plainest that keeps the contract of store.h: an array, searched from end to end. One core, three fronts
 * (front.h). It is what a test of the contract is tested with, and a model of what any storage answers.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/registry.h"
#include "front.h"
#include "test_store.h"

struct row {
        struct row *next; /* newest first in (time, sequence) */
        struct om_arena arena;
        struct om_store_entry entry;
        enum om_store_kind kind;
        uint64_t sequence;
};

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct front *front;
        struct row *rows;
        uint64_t sequence;
        struct om_post ready, stopped;
        struct om_op *closing;
};

enum type { PUT, GET, LIST, REMOVE, PUT_IF_ABSENT, HEALTH };

struct job {
        struct front_job job; /* first */
        struct om_store *store;
        enum type type;
        struct om_op *op;
        atomic_bool cancelled;
        struct om_arena arena;
        enum om_store_kind kind;
        struct om_store_entry *entries; /* of a put; else the first one has key, name, topic, status as filters */
        size_t n;
        struct om_span cursor;
        int result;
        struct om_error error;
};

/* -- the core: one job at a time ----------------------------------------------------------------------------------- */

static bool alive(const struct row *r, int64_t now) { return r->entry.expires_ms == 0 || r->entry.expires_ms > now; }

static bool by_time(enum om_store_kind kind) { return kind == OM_STORE_RESULTS || kind == OM_STORE_METRICS; }

static bool newer(const struct row *a, int64_t time_ms, uint64_t sequence) {
        int64_t t = by_time(a->kind) ? a->entry.saved_ms : 0;
        return t != time_ms ? t > time_ms : a->sequence > sequence;
}

static void row_free(struct row *r) {
        om_arena_deinit(&r->arena);
        free(r);
}

/* Removes those of a kind with this key and name, where given; returns how many were alive. */
static uint64_t forget(struct om_store *s, enum om_store_kind kind, struct om_span key, struct om_span name, uint64_t *ret_sequence) {
        int64_t now = om_now_ms();
        uint64_t n = 0;
        for (struct row **link = &s->rows, *r; (r = *link);) {
                bool same = r->kind == kind && (!key.p || om_span_eq(r->entry.key, key)) && (!name.p || om_span_eq(r->entry.name, name));
                if (!same) {
                        link = &r->next;
                        continue;
                }
                n += alive(r, now);
                if (ret_sequence)
                        *ret_sequence = r->sequence;
                *link = r->next;
                row_free(r);
        }
        return n;
}

static void put(struct om_store *s, enum om_store_kind kind, const struct om_store_entry *e) {
        struct row *r = calloc(1, sizeof(*r)), **link = &s->rows;
        uint64_t kept = 0;
        r->kind = kind;
        r->entry = *e;
        r->entry.key = om_arena_copy(&r->arena, e->key);
        r->entry.name = om_arena_copy(&r->arena, e->name);
        r->entry.value = om_arena_copy(&r->arena, e->value);
        r->entry.topic = om_arena_copy(&r->arena, e->topic);
        r->entry.status = om_arena_copy(&r->arena, e->status);
        if (kind != OM_STORE_METRICS)
                forget(s, kind, e->key, e->name.p ? e->name : OM_SPAN_NONE, by_time(kind) ? NULL : &kept);
        r->sequence = kept ? kept : ++s->sequence;
        while (*link && ((*link)->kind != kind || newer(*link, by_time(kind) ? e->saved_ms : 0, r->sequence)))
                link = &(*link)->next;
        r->next = *link;
        *link = r;
}

static struct row *find(struct om_store *s, enum om_store_kind kind, struct om_span key, struct om_span name) {
        int64_t now = om_now_ms();
        for (struct row *r = s->rows; r; r = r->next)
                if (r->kind == kind && alive(r, now) && om_span_eq(r->entry.key, key) && (!name.p || om_span_eq(r->entry.name, name)))
                        return r;
        return NULL;
}

static void show(struct om_arena *a, const struct row *r, struct om_store_entry *ret) {
        *ret = r->entry;
        ret->key = om_arena_copy(a, r->entry.key);
        ret->name = om_arena_copy(a, r->entry.name);
        ret->value = om_arena_copy(a, r->entry.value);
        ret->topic = om_arena_copy(a, r->entry.topic);
        ret->status = om_arena_copy(a, r->entry.status);
}

static bool begins(struct om_span text, struct om_span prefix) {
        return text.len >= prefix.len && memcmp(text.p, prefix.p, prefix.len) == 0;
}

static bool wanted(const struct job *job, const struct row *r, int64_t now) {
        const struct om_store_list *op = (const struct om_store_list *) job->op;
        const struct om_store_entry *f = &job->entries[0], *e = &r->entry;
        if (r->kind != job->kind || !alive(r, now) || (f->key.p && !om_span_eq(e->key, f->key)))
                return false;
        if (f->name.p && !(job->kind == OM_STORE_CONFIG ? begins(e->key, f->name) : om_span_eq(e->name, f->name)))
                return false;
        return (!f->topic.p || om_span_eq(e->topic, f->topic)) && (!f->status.p || om_span_eq(e->status, f->status)) &&
                (!op->since_ms || e->saved_ms >= op->since_ms) && (!op->until_ms || e->saved_ms < op->until_ms);
}

static int run_list(struct om_store *s, struct job *job) {
        struct om_store_list *op = (struct om_store_list *) job->op;
        size_t limit = op->limit ? op->limit : 100;
        int64_t now = om_now_ms(), time_ms = INT64_MAX;
        uint64_t sequence = UINT64_MAX;
        const struct row *last = NULL;
        if (job->cursor.p && sscanf(job->cursor.p, "%" SCNd64 ".%" SCNu64, &time_ms, &sequence) != 2)
                return om_error_set(&job->error, OM_INVALID, "bad cursor");
        op->entries = om_arena_alloc(&op->arena, (s->sequence + 1 < limit ? s->sequence + 1 : limit) * sizeof(op->entries[0]));
        for (const struct row *r = s->rows; r; r = r->next) {
                if (!wanted(job, r, now) || newer(r, time_ms, sequence) || (r->sequence == sequence))
                        continue;
                if (op->n == limit) {
                        char text[48];
                        snprintf(
                                text, sizeof(text), "%" PRId64 ".%" PRIu64, by_time(last->kind) ? last->entry.saved_ms : 0, last->sequence);
                        op->next_cursor = om_arena_copy(&op->arena, om_span_of(text));
                        break;
                }
                show(&op->arena, r, &op->entries[op->n++]);
                last = r;
        }
        return 0;
}

static int run_put(struct om_store *s, struct job *job) {
        struct om_store_put *op = (struct om_store_put *) job->op;
        for (size_t i = 0; i < job->n; i++) {
                op->outcomes[i] = (struct om_outcome){ 0 };
                if (job->entries[i].key.len > OM_STORE_KEY_MAX) {
                        op->outcomes[i].status = -EINVAL;
                        op->outcomes[i].why = "key too long";
                } else
                        put(s, job->kind, &job->entries[i]);
        }
        return 0;
}

static int run_put_if_absent(struct om_store *s, struct job *job) {
        struct om_store_put_if_absent *op = (struct om_store_put_if_absent *) job->op;
        struct row *there = find(s, OM_STORE_KEYS, job->entries[0].key, OM_SPAN_NONE);
        if (there)
                op->ret_value = om_arena_copy(&op->arena, there->entry.value);
        else
                put(s, OM_STORE_KEYS, &job->entries[0]);
        op->ret_stored = !there;
        return 0;
}

static int run_one(struct om_store *s, struct job *job) {
        struct om_store_entry *in = &job->entries[0];
        struct row *r;
        if (atomic_load(&job->cancelled))
                return om_error_set_errno(&job->error, ECANCELED, "cancelled");
        switch (job->type) {
        case PUT:
                return run_put(s, job);
        case GET:
                r = find(s, job->kind, in->key, in->name);
                if (!r)
                        return om_error_set(&job->error, OM_NOT_FOUND, "not there");
                show(&((struct om_store_get *) job->op)->arena, r, &((struct om_store_get *) job->op)->entry);
                return 0;
        case LIST:
                return run_list(s, job);
        case REMOVE:
                ((struct om_store_delete *) job->op)->ret_n = forget(s, job->kind, in->key, in->name, NULL);
                return 0;
        case PUT_IF_ABSENT:
                return run_put_if_absent(s, job);
        case HEALTH:
                ((struct om_store_health *) job->op)->info =
                        om_arena_copy(&((struct om_store_health *) job->op)->arena, OM_SPAN("{\"durability\":\"memory\"}"));
                return 0;
        }
        return -EINVAL;
}

/* -- the contract -------------------------------------------------------------------------------------------------- */

static void run(struct front_job *f) {
        struct job *job = (struct job *) f;
        job->result = run_one(job->store, job);
}

static void done(struct front_job *f) {
        struct job *job = (struct job *) f;
        job->op->done(job->op, job->result, &job->error);
        om_arena_deinit(&job->arena);
        free(job);
}

static void cancel(struct om_op *op) { atomic_store(&((struct job *) op->backend)->cancelled, true); }

static int submit(struct om_store *s, enum type type, struct om_op *op, enum om_store_kind kind, const struct om_store_entry *entries,
        size_t n, struct om_span cursor, struct om_error *e) {
        struct job *job = calloc(1, sizeof(*job));
        job->job.run = run;
        job->job.done = done;
        job->store = s;
        job->type = type;
        job->op = op;
        job->kind = kind;
        job->n = n;
        job->cursor = om_arena_copy(&job->arena, cursor);
        job->entries = om_arena_alloc(&job->arena, (n + 1) * sizeof(entries[0]));
        for (size_t i = 0; i < n; i++) {
                struct row from = { .entry = entries[i] };
                show(&job->arena, &from, &job->entries[i]);
        }
        int r = front_submit(s->front, &job->job);
        if (r < 0) {
                om_arena_deinit(&job->arena);
                free(job);
                return om_error_set(e, OM_LIMIT, "too much in flight");
        }
        op->cancel = cancel;
        op->backend = job;
        return 0;
}

static int store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        return submit(s, PUT, &op->op, op->kind, op->entries, op->n, OM_SPAN_NONE, e);
}

static int store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        struct om_store_entry in = { .key = op->key, .name = op->name };
        op->arena = (struct om_arena){ 0 };
        return submit(s, GET, &op->op, op->kind, &in, 1, OM_SPAN_NONE, e);
}

static int store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct om_store_entry in = { .key = op->key, .name = op->name, .topic = op->topic, .status = op->status };
        op->arena = (struct om_arena){ 0 };
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        return submit(s, LIST, &op->op, op->kind, &in, 1, op->cursor, e);
}

static int store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        struct om_store_entry in = { .key = op->key, .name = op->name };
        return submit(s, REMOVE, &op->op, op->kind, &in, 1, OM_SPAN_NONE, e);
}

static int store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct om_store_entry in = { .key = op->key, .value = op->value, .expires_ms = op->expires_ms };
        op->arena = (struct om_arena){ 0 };
        return submit(s, PUT_IF_ABSENT, &op->op, OM_STORE_KEYS, &in, 1, OM_SPAN_NONE, e);
}

static int store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        op->arena = (struct om_arena){ 0 };
        return submit(s, HEALTH, &op->op, OM_STORE_AGENTS, NULL, 0, OM_SPAN_NONE, e);
}

static void ready(struct om_post *post) {
        struct om_store *s = (void *) ((char *) post - offsetof(struct om_store, ready));
        s->events->state(s->core, OM_STORE_READY, NULL);
}

static void stopped(struct om_post *post) {
        struct om_store *s = (void *) ((char *) post - offsetof(struct om_store, stopped));
        s->closing->done(s->closing, 0, NULL);
}

static int open_kind(enum front_kind kind, struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core,
        struct om_store **ret, struct om_error *e) {
        struct om_store *s = calloc(1, sizeof(*s));
        int r = om_options_read(NULL, url, NULL, e);
        if (r == 0)
                r = front_new(kind, host, &s->front, e);
        if (r < 0) {
                free(s);
                return r;
        }
        s->host = host;
        s->events = events;
        s->core = core;
        s->ready.fn = ready;
        s->stopped.fn = stopped;
        om_host_post(host, &s->ready);
        *ret = s;
        return 0;
}

static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        s->closing = op;
        front_stop(s->front, &s->stopped);
        return 0;
}

static void store_destroy(struct om_store *s) {
        for (struct row *r = s->rows, *next; r; r = next) {
                next = r->next;
                row_free(r);
        }
        front_free(s->front);
        free(s);
}

#define OPEN(kind, front)                                                                                                  \
        static int open_##kind(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, \
                struct om_store **ret, struct om_error *e) {                                                               \
                return open_kind(front, host, url, events, core, ret, e);                                                  \
        }
OPEN(loop, FRONT_LOOP)
OPEN(thread, FRONT_THREAD)
OPEN(worker, FRONT_WORKER)

#define OPS(kind)                                                                                                                          \
        {                                                                                                                                  \
                .abi = OM_BACKEND_ABI, .name = "test-" #kind, .schemes = (const char *const[]){ "test-" #kind, NULL }, .doc = "for tests", \
                .open = open_##kind, .put = store_put, .get = store_get, .list = store_list, .remove = store_remove,                       \
                .put_if_absent = store_put_if_absent, .health = store_health, .close = store_close, .destroy = store_destroy               \
        }
static const struct om_store_ops ops[] = { OPS(loop), OPS(thread), OPS(worker) };

void test_stores_register(void) {
        for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
                om_registry_add_store(&ops[i]);
}
