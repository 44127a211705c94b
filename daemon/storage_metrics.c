/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metrics have no key, so they are brought over by comparing: what both sides hold of a span of time is read, and what the target lacks is
 * appended, each as often as the source has it. Done twice it appends nothing.
 *
 * Always true: one at a time, since two that compare the same time would both append. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage_internal.h"

enum { SLACK_MS = 2, PAGE = 500 }; /* a storage may round the time */

struct metrics_sync {
        union { /* first */
                struct om_op op;
                struct om_store_list list;
                struct om_store_put put;
        };
        struct mirror *m;
        struct part *part;
        struct om_deadline deadline;
        struct om_arena arena;
        struct om_store_entry *ours;
        size_t n_ours, max_ours;
        bool *there;
        struct om_outcome *outcomes;
        int64_t since_ms, until_ms;
        bool of_target; /* which side is being read: the one that ours are looked for in */
        bool reverse;   /* ours are the target's, and are looked for in the source */
        bool only_look; /* nothing is put */
        struct om_span cursor;
        metrics_sync_done_fn *done;
        void *ctx;
        struct om_post post;
        int status;
        struct om_error error;
};

static void over(struct metrics_sync *s, int status, const struct om_error *e) {
        struct mirror *m = s->m;

        m->metrics_busy = false;
        if (status < 0)
                mirror_trouble(m, s->part, status, e);
        else
                mirror_worked(m);
        s->done(m, s->ctx, status);
        om_arena_deinit(&s->arena);
        free(s->ours);
        free(s->there);
        free(s->outcomes);
        free(s);
}

static void submit(struct metrics_sync *s, struct part *p, bool put, om_op_done_fn *done) {
        struct om_error e = OM_ERROR_INIT;
        int status;

        s->part = p;
        status = s->m->stopping ? -ECANCELED : part_check(p, &e);
        s->op.done = done;
        if (status == 0)
                status = put ? p->ops->put(p->store, &s->put, &e) : p->ops->list(p->store, &s->list, &e);
        if (status < 0) {
                over(s, status, &e);
                return;
        }
        mirror_op_begun(s->m, p, &s->deadline, &s->op);
}

static void on_put(struct om_op *op, int status, const struct om_error *e) {
        struct metrics_sync *s = (struct metrics_sync *) op;

        mirror_op_done(s->m, s->part, &s->deadline);
        for (size_t i = 0; status == 0 && i < s->put.n; i++)
                status = s->outcomes[i].status;
        over(s, status, e);
}

/* What the target lacks is moved to the front, and put. */
static void put_missing(struct metrics_sync *s) {
        size_t n = 0;

        for (size_t i = 0; i < s->n_ours; i++)
                if (!s->there[i])
                        s->ours[n++] = s->ours[i];
        if (n == 0 || s->only_look) {
                over(s, n > 0, NULL);
                return;
        }
        s->outcomes = calloc(n, sizeof *s->outcomes);
        if (!s->outcomes) {
                over(s, -ENOMEM, NULL);
                return;
        }
        s->put = (struct om_store_put){ .kind = OM_STORE_METRICS, .entries = s->ours, .n = n, .outcomes = s->outcomes };
        submit(s, s->m->target, true, on_put);
}

static int keep(struct metrics_sync *s, const struct om_store_entry *entry) {
        struct om_store_entry *to;

        if (s->n_ours == s->max_ours) {
                size_t max = s->max_ours ? 2 * s->max_ours : 64;

                to = reallocarray(s->ours, max, sizeof *to);
                if (!to)
                        return -ENOMEM;
                s->ours = to;
                s->max_ours = max;
        }
        to = &s->ours[s->n_ours++];
        *to = *entry;
        to->value = om_arena_copy(&s->arena, entry->value);
        to->topic = om_arena_copy(&s->arena, entry->topic);
        to->name = om_arena_copy(&s->arena, entry->name);
        to->status = om_arena_copy(&s->arena, entry->status);
        to->key = OM_SPAN_NONE;
        return to->value.p ? 0 : -ENOMEM;
}

/* One of the target's is one of ours, if ours is not taken yet. */
static void match(struct metrics_sync *s, const struct om_store_entry *theirs) {
        for (size_t i = 0; i < s->n_ours; i++)
                if (!s->there[i] && llabs((long long) (s->ours[i].saved_ms - theirs->saved_ms)) <= SLACK_MS &&
                        same_value(s->ours[i].value, theirs->value)) {
                        s->there[i] = true;
                        return;
                }
}

static void on_page(struct om_op *op, int status, const struct om_error *e);

static void read_page(struct metrics_sync *s) {
        s->list = (struct om_store_list){ .kind = OM_STORE_METRICS,
                .since_ms = s->since_ms - (s->of_target ? SLACK_MS : 0),
                .until_ms = s->until_ms + (s->of_target ? SLACK_MS : 0),
                .cursor = s->cursor,
                .limit = PAGE };
        if (s->list.since_ms < 0)
                s->list.since_ms = 0;
        submit(s, s->of_target != s->reverse ? s->m->target : source_of(s->m->r, OM_STORE_METRICS), false, on_page);
}

static void read_target(struct metrics_sync *s) {
        s->of_target = true;
        s->cursor = OM_SPAN_NONE;
        s->there = calloc(s->n_ours + 1, sizeof *s->there);
        if (!s->there)
                over(s, -ENOMEM, NULL);
        else if (s->n_ours == 0)
                over(s, 0, NULL);
        else
                read_page(s);
}

static void on_page(struct om_op *op, int status, const struct om_error *e) {
        struct metrics_sync *s = (struct metrics_sync *) op;
        struct om_span next = OM_SPAN_NONE;

        mirror_op_done(s->m, s->part, &s->deadline);
        for (size_t i = 0; status == 0 && i < s->list.n; i++) {
                if (s->of_target)
                        match(s, &s->list.entries[i]);
                else
                        status = keep(s, &s->list.entries[i]);
        }
        if (status == 0 && s->list.next_cursor.p) {
                next = om_arena_copy(&s->arena, s->list.next_cursor);
                status = next.p ? 0 : -ENOMEM;
        }
        om_arena_deinit(&s->list.arena);
        s->cursor = next;
        if (status < 0)
                over(s, status, e);
        else if (next.p)
                read_page(s);
        else if (s->of_target)
                put_missing(s);
        else
                read_target(s);
}

static void start(struct om_post *post) {
        struct metrics_sync *s = (void *) ((char *) post - offsetof(struct metrics_sync, post));

        if (s->n_ours)
                read_target(s);
        else
                read_page(s);
}

static int begin(struct mirror *m, const struct om_store_entry *entries, size_t n, int64_t at_ms, bool reverse, bool only_look,
        metrics_sync_done_fn *done, void *ctx) {
        struct metrics_sync *s = calloc(1, sizeof *s);
        int status = 0;

        if (!s)
                return -ENOMEM;
        s->m = m;
        s->part = m->target;
        s->done = done;
        s->ctx = ctx;
        s->reverse = reverse;
        s->only_look = only_look;
        s->since_ms = n ? entries[0].saved_ms : at_ms;
        s->until_ms = s->since_ms + 1;
        for (size_t i = 0; status == 0 && i < n; i++) {
                s->since_ms = entries[i].saved_ms < s->since_ms ? entries[i].saved_ms : s->since_ms;
                s->until_ms = entries[i].saved_ms >= s->until_ms ? entries[i].saved_ms + 1 : s->until_ms;
                status = keep(s, &entries[i]);
        }
        if (status < 0) {
                om_arena_deinit(&s->arena);
                free(s->ours);
                free(s);
                return status;
        }
        m->metrics_busy = true;
        s->post.fn = start;
        om_host_post(m->r->host, &s->post);
        return 0;
}

int metrics_sync(struct mirror *m, const struct om_store_entry *entries, size_t n, int64_t at_ms, metrics_sync_done_fn *done, void *ctx) {
        return begin(m, entries, n, at_ms, false, false, done, ctx);
}

int metrics_check(struct mirror *m, const struct om_store_entry *entries, size_t n, metrics_sync_done_fn *done, void *ctx) {
        return metrics_compare(m, entries, n, true, done, ctx);
}

int metrics_compare(
        struct mirror *m, const struct om_store_entry *entries, size_t n, bool of_target, metrics_sync_done_fn *done, void *ctx) {
        return begin(m, entries, n, 0, of_target, true, done, ctx);
}
