/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy of whole kinds, one kind and one page at a time; storage_internal.h has the steps and why a page replaces nothing newer.
 *
 * Always true:
 *   - a kind is begun when no write is under way that has no key (`untracked`), so that none slips in behind the page that would have had
 * it;
 *   - at most STORAGE_COPY_RATE records a second are read and copied, and one page is in memory, which is written PUT_MAX at a time: a
 *     page is large since finding it may cost more than reading it;
 *   - a page that the target could not take is kept and tried again after the pause.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "../backends/journal.h"
#include "storage_internal.h"

enum { PAGE = 1000, PUT_MAX = 200, PENDING_MAX = 256, SAVE_EVERY_MS = 2000, TARGET_DONE = 1 };

static const enum om_store_kind order[KINDS] = { OM_STORE_CONFIG, OM_STORE_AGENTS, OM_STORE_KEYS, OM_STORE_RESULTS, OM_STORE_METRICS };

static bool by_time(enum om_store_kind kind) { return kind == OM_STORE_RESULTS || kind == OM_STORE_METRICS; }

static void on_saved(struct om_queue_wait *w, int status, const struct om_error *e) {
        ((struct walk *) (void *) ((char *) w - offsetof(struct walk, wait)))->saving = false;
}

static void save(struct walk *w, const struct om_queue_record *record) {
        om_queue_add(w->m->queue, record);
        if (w->saving)
                return;
        w->saving = true;
        w->wait.fn = on_saved;
        om_queue_sync(w->m->queue, &w->wait);
}

static void save_progress(struct walk *w, int64_t at_ms) {
        w->m->kinds[w->kind].done_ms = at_ms;
        save(w, &(struct om_queue_record){ .op = OM_QUEUE_PROGRESS, .kind = w->kind, .at_ms = at_ms });
}

/* Holds the next page back so long as n records may take. */
static void pace(struct walk *w, size_t n) {
        int64_t rate = w->m->r->settings->storage_copy_rate;
        int64_t us = rate > 0 ? (int64_t) n * 1000000 / rate : 0;
        struct timeval tv = { .tv_sec = us / 1000000, .tv_usec = us % 1000000 };

        if (us > 0)
                w->timer_armed = event_add(w->timer, &tv) == 0;
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct walk *w = ctx;

        w->timer_armed = false;
        mirror_pump(w->m);
}

static void cursors_clear(struct walk *w) {
        om_arena_deinit(&w->cursors);
        w->cursor = OM_SPAN_NONE;
        w->n_pages = 0;
}

static void page_drop(struct walk *w) {
        om_arena_deinit(&w->page);
        free(w->chosen);
        free(w->outcomes);
        free(w->keys);
        w->chosen = NULL;
        w->outcomes = NULL;
        w->keys = NULL;
        w->has_page = false;
        w->n = w->at = w->n_chosen = 0;
}

/* -- submitting ---------------------------------------------------------------------------------------------------- */

/* 0: on its way. */
static int submit(struct walk *w, struct part *p, om_op_done_fn *done) {
        struct om_error e = OM_ERROR_INIT;
        int status = part_check(p, &e);

        w->part = p;
        w->op.done = done;
        if (status == 0) {
                if (w->step == WALK_CLEAR)
                        status = p->ops->remove(p->store, &w->remove, &e);
                else if (w->has_page)
                        status = p->ops->put(p->store, &w->put, &e);
                else
                        status = p->ops->list(p->store, &w->list, &e);
        }
        if (status == 0) {
                w->out = true;
                mirror_op_begun(w->m, p, &w->deadline, &w->op);
        } else if (status != -ENOBUFS || p->n_out == 0) {
                mirror_trouble(w->m, p, status, &e);
        }
        return status;
}

static void ended(struct walk *w) {
        w->out = false;
        mirror_op_done(w->m, w->part, &w->deadline);
}

static void list(struct walk *w, struct part *p, om_op_done_fn *done) {
        w->list = (struct om_store_list){ .kind = w->kind,
                .cursor = w->cursor,
                .limit = PAGE,
                .keys_only = w->step != WALK_COPY && w->kind != OM_STORE_METRICS,
                .stale_ok = w->step == WALK_SURVEY || (w->step == WALK_TARGET && w->kind != OM_STORE_METRICS) };
        if (p != w->m->target && by_time(w->kind))
                w->list.since_ms = w->since_ms;
        submit(w, p, done);
}

/* Where the next page begins; false: no memory. */
static bool go_to(struct walk *w, struct om_span cursor) {
        w->cursor = om_arena_copy(&w->cursors, cursor);
        return !cursor.p || w->cursor.p;
}

static bool failed(struct walk *w, int status, const struct om_error *e) {
        if (status == 0)
                return false;
        om_arena_deinit(&w->list.arena);
        mirror_trouble(w->m, w->part, status, e);
        mirror_pump(w->m);
        return true;
}

/* -- the target's keys --------------------------------------------------------------------------------------------- */

void walk_key_settled(struct mirror *m, struct key *k) {
        if (m->walk.pending)
                m->walk.pending--;
}

static bool take_key(struct walk *w, const struct om_store_entry *entry) {
        bool named = w->kind == OM_STORE_AGENTS || w->kind == OM_STORE_RESULTS;
        struct om_span name = !named ? OM_SPAN_NONE : entry->name.p ? entry->name : OM_SPAN("");
        struct key *k = mirror_key(w->m, w->kind, entry->key, name, true);

        if (!k)
                return false;
        if (!k->by_walk) {
                k->by_walk = true;
                w->pending++;
        }
        mirror_dirty(w->m, k);
        return true;
}

static void target_next(struct walk *w, struct om_span next) {
        if (w->cursor.p || next.p) { /* the old ones are of no use */
                struct om_arena old = w->cursors;

                w->cursors = (struct om_arena){ 0 };
                if (!go_to(w, next))
                        w->cursor = OM_SPAN_NONE;
                om_arena_deinit(&old);
        }
        if (!next.p)
                w->step = WALK_SETTLE;
}

static void on_checked(struct mirror *m, void *ctx, int status) {
        struct walk *w = ctx;
        struct om_span next = w->next_cursor;

        w->out = false;
        if (status >= 0 && w->step == WALK_TARGET) {
                w->extraneous |= status > 0;
                target_next(w, w->extraneous ? OM_SPAN_NONE : next);
        }
        page_drop(w);
        mirror_pump(m);
}

/* Metrics cannot be deleted one by one: whether there is one too many is all that is asked. */
static void check_metrics(struct walk *w) {
        w->page = w->list.arena;
        w->next_cursor = w->list.next_cursor;
        if (w->list.n == 0) {
                target_next(w, w->next_cursor);
                page_drop(w);
                mirror_pump(w->m);
                return;
        }
        if (w->m->metrics_busy) { /* read again when it is not */
                page_drop(w);
                return;
        }
        w->out = metrics_check(w->m, w->list.entries, w->list.n, on_checked, w) == 0;
        if (!w->out)
                page_drop(w);
}

static void on_target(struct om_op *op, int status, const struct om_error *e) {
        struct walk *w = (struct walk *) op;

        ended(w);
        if (failed(w, status, e))
                return;
        pace(w, w->list.n);
        if (w->kind == OM_STORE_METRICS) {
                check_metrics(w);
                return;
        }
        for (size_t i = 0; i < w->list.n; i++)
                take_key(w, &w->list.entries[i]);
        target_next(w, w->list.next_cursor);
        om_arena_deinit(&w->list.arena);
        mirror_pump(w->m);
}

static void on_cleared(struct om_op *op, int status, const struct om_error *e) {
        struct walk *w = (struct walk *) op;

        ended(w);
        if (status < 0) {
                mirror_trouble(w->m, w->part, status, e);
        } else {
                save_progress(w, TARGET_DONE);
                w->step = WALK_SURVEY;
        }
        mirror_pump(w->m);
}

/* -- the survey ---------------------------------------------------------------------------------------------------- */

static uint32_t identity(enum om_store_kind kind, const struct om_store_entry *entry) {
        if (kind == OM_STORE_METRICS)
                return om_crc32(entry->value.p, entry->value.len);
        return om_crc32(entry->key.p, entry->key.len) * 31 + om_crc32(entry->name.p, entry->name.len);
}

static bool remember_page(struct walk *w) {
        const struct om_store_entry *last = w->list.n ? &w->list.entries[w->list.n - 1] : NULL;

        if (w->n_pages == w->max_pages) {
                size_t max = w->max_pages ? 2 * w->max_pages : 64;
                struct survey_page *pages = reallocarray(w->pages, max, sizeof *pages);

                if (!pages)
                        return false;
                w->pages = pages;
                w->max_pages = max;
        }
        w->pages[w->n_pages++] = (struct survey_page){
                .cursor = w->cursor, .last_ms = last ? last->saved_ms : INT64_MAX, .last = last ? identity(w->kind, last) : 0
        };
        return true;
}

static void on_survey(struct om_op *op, int status, const struct om_error *e) {
        struct walk *w = (struct walk *) op;
        struct om_error oom;
        struct om_span next;

        ended(w);
        if (status == 0 && !remember_page(w)) {
                status = om_error_set_errno(&oom, ENOMEM, "the copy");
                e = &oom;
        }
        if (failed(w, status, e))
                return;
        for (size_t i = 0; i < w->list.n; i++) {
                w->unsorted |= w->list.entries[i].saved_ms > w->last_ms;
                w->last_ms = w->list.entries[i].saved_ms;
        }
        w->m->kinds[w->kind].n_total += w->list.n;
        pace(w, w->list.n);
        next = w->list.next_cursor;
        if (!go_to(w, next)) { /* again from the beginning */
                cursors_clear(w);
                w->m->kinds[w->kind].n_total = 0;
        } else if (!next.p) {
                w->step = WALK_COPY;
        }
        om_arena_deinit(&w->list.arena);
        routes_changed(w->m->r);
        mirror_pump(w->m);
}

/* -- the copy ------------------------------------------------------------------------------------------------------ */

static void finish(struct walk *w) {
        struct mirror *m = w->m;
        struct kind_state *ks = &m->kinds[w->kind];

        w->step = WALK_NONE;
        ks->walking = false;
        ks->done_ms = 0;
        ks->n_total = ks->n_done;
        cursors_clear(w);
        om_log(OM_LOG_NOTICE, "the %s has all %s: %llu copied", m->target->what, om_store_kind_names[w->kind],
                (unsigned long long) ks->n_done);
        if (!ks->dirty)
                save(w, &(struct om_queue_record){ .op = OM_QUEUE_CLEAN, .kind = w->kind });
        routes_changed(m->r);
        migrate_copied(m);
}

/* The page is in the target. */
static void page_done(struct walk *w) {
        struct mirror *m = w->m;
        struct kind_state *ks = &m->kinds[w->kind];
        int64_t now = om_clock_ms();
        bool last;

        ks->n_done += w->n;
        ks->n_total = ks->n_done > ks->n_total ? ks->n_done : ks->n_total; /* what was written since the survey comes along */
        w->n_run += w->n;
        for (size_t i = 0; i < w->n; i++)
                w->at_ms = w->entries[i].saved_ms > w->at_ms ? w->entries[i].saved_ms : w->at_ms;
        pace(w, w->n);
        if (by_time(w->kind)) {
                last = w->n_pages == 0 && !w->going_on;
                if (!w->going_on && !w->unsorted && w->at_ms > 0 && now - w->saved_at_ms >= SAVE_EVERY_MS && !last) {
                        w->saved_at_ms = now;
                        save_progress(w, w->at_ms);
                }
        } else {
                last = !w->next_cursor.p;
                ks->n_total = ks->n_done;
                if (!last) {
                        struct om_arena old = w->cursors;

                        w->cursors = (struct om_arena){ 0 };
                        go_to(w, w->next_cursor);
                        om_arena_deinit(&old);
                }
        }
        page_drop(w);
        mirror_page_over(m);
        if (last)
                finish(w);
        routes_changed(m->r);
        mirror_pump(m);
}

static void on_put(struct om_op *op, int status, const struct om_error *e) {
        struct walk *w = (struct walk *) op;
        struct mirror *m = w->m;

        ended(w);
        for (size_t i = 0; i < w->n_chosen; i++) {
                struct key *k = w->keys[i];
                int outcome = status < 0 ? status : w->outcomes[i].status;

                mirror_give(m, k, false);
                k->epoch = m->epoch;
                if (outcome == 0) {
                        mirror_settle(m, k);
                } else if (is_refusal(outcome) && outcome != -ENOBUFS && status == 0) {
                        mirror_refuse(m, k, outcome, w->outcomes[i].why);
                } else { /* its own sync sees to it */
                        mirror_mark(m, k);
                        mirror_dirty(m, k);
                }
        }
        w->n_chosen = 0;
        if (status < 0)
                mirror_trouble(m, w->part, status, e);
        else
                mirror_worked(m);
        if (w->at == w->n)
                page_done(w);
        else
                mirror_pump(m);
}

static void on_metrics(struct mirror *m, void *ctx, int status) {
        struct walk *w = ctx;

        w->out = false;
        if (status < 0)
                mirror_pump(m);
        else
                page_done(w);
}

static int compare_age(const void *a, const void *b) {
        const struct om_store_entry *x = a, *y = b;

        return (x->saved_ms > y->saved_ms) - (x->saved_ms < y->saved_ms);
}

/* The next of the page, PUT_MAX at most, up to *ret_at: those of them that nobody else sees to become busy. */
static int choose(struct walk *w, size_t *ret_at) {
        struct mirror *m = w->m;
        bool named = w->kind == OM_STORE_AGENTS || w->kind == OM_STORE_RESULTS;

        free(w->chosen);
        free(w->outcomes);
        free(w->keys);
        w->chosen = calloc(PUT_MAX, sizeof *w->chosen);
        w->outcomes = calloc(PUT_MAX, sizeof *w->outcomes);
        w->keys = calloc(PUT_MAX, sizeof(struct key *));
        w->n_chosen = 0;
        if (!w->chosen || !w->outcomes || !w->keys)
                return -ENOMEM;
        for (*ret_at = w->at; *ret_at < w->n && w->n_chosen < PUT_MAX; ++*ret_at) {
                const struct om_store_entry *entry = &w->entries[*ret_at];
                struct om_span name = !named ? OM_SPAN_NONE : entry->name.p ? entry->name : OM_SPAN("");
                struct key *k = mirror_key(m, w->kind, entry->key, name, false);

                if (k && (k->dirty || k->busy || k->writes || k->epoch == m->epoch))
                        continue;
                if (named && mirror_key(m, w->kind, entry->key, OM_SPAN_NONE, false)) {
                        /* All of its names are being deleted: the key's own sync finds out whether it was. */
                        k = mirror_key(m, w->kind, entry->key, name, true);
                        if (!k)
                                return -ENOMEM;
                        mirror_mark(m, k);
                        mirror_dirty(m, k);
                        continue;
                }
                k = mirror_key(m, w->kind, entry->key, name, true);
                if (!k)
                        return -ENOMEM;
                mirror_take(m, k);
                w->keys[w->n_chosen] = k;
                w->chosen[w->n_chosen++] = *entry;
        }
        return 0;
}

static void unchoose(struct walk *w) {
        for (size_t i = 0; i < w->n_chosen; i++) {
                mirror_give(w->m, w->keys[i], false);
                mirror_settle(w->m, w->keys[i]);
        }
        w->n_chosen = 0;
}

static void put_page(struct walk *w) {
        struct mirror *m = w->m;
        size_t at;

        if (w->kind == OM_STORE_METRICS) {
                if (!m->metrics_busy && w->n)
                        w->out = metrics_sync(m, w->entries, w->n, 0, on_metrics, w) == 0;
                else if (!w->n)
                        page_done(w);
                return;
        }
        if (choose(w, &at) < 0) {
                unchoose(w);
                mirror_trouble(m, m->target, -ENOMEM, NULL);
                return;
        }
        if (w->n_chosen == 0) {
                page_done(w);
                return;
        }
        w->put = (struct om_store_put){ .kind = w->kind, .entries = w->chosen, .n = w->n_chosen, .outcomes = w->outcomes };
        if (submit(w, m->target, on_put) < 0)
                unchoose(w);
        else
                w->at = at;
}

/* Whether the page has come to its end, or more of it follows. */
static void look_for_last(struct walk *w) {
        const struct survey_page *page = &w->pages[w->n_pages];

        w->going_on = w->next_cursor.p && page->last_ms != INT64_MAX;
        for (size_t i = 0; w->going_on && i < w->n; i++)
                if ((!w->unsorted && w->entries[i].saved_ms < page->last_ms) ||
                        (w->entries[i].saved_ms == page->last_ms && identity(w->kind, &w->entries[i]) == page->last))
                        w->going_on = false;
        if (w->going_on && !go_to(w, w->next_cursor)) {
                w->going_on = false;
                w->n_pages++; /* no memory: all of it again */
        }
}

static void on_page(struct om_op *op, int status, const struct om_error *e) {
        struct walk *w = (struct walk *) op;

        ended(w);
        if (status < 0) {
                if (by_time(w->kind) && !w->going_on)
                        w->n_pages++; /* this one again */
                mirror_page_over(w->m);
                failed(w, status, e);
                return;
        }
        w->page = w->list.arena;
        w->entries = w->list.entries;
        w->n = w->list.n;
        w->next_cursor = w->list.next_cursor;
        w->has_page = true;
        if (by_time(w->kind))
                look_for_last(w);
        if (by_time(w->kind) && w->n)
                qsort(w->entries, w->n, sizeof *w->entries, compare_age);
        mirror_pump(w->m);
}

static void read_page(struct walk *w) {
        struct mirror *m = w->m;

        if (by_time(w->kind) && !w->going_on)
                w->cursor = w->pages[--w->n_pages].cursor;
        m->epoch++;
        w->page_active = true;
        list(w, source_of(m->r, w->kind), on_page);
        if (!w->out) {
                if (by_time(w->kind) && !w->going_on)
                        w->n_pages++;
                mirror_page_over(m);
        }
}

/* -- the pump ------------------------------------------------------------------------------------------------------ */

static bool begin(struct walk *w) {
        struct mirror *m = w->m;

        for (int i = 0; i < KINDS; i++) {
                struct kind_state *ks = &m->kinds[order[i]];

                if (!ks->dirty || !(m->mask & 1u << order[i]))
                        continue;
                ks->tracking = true;
                if (m->r->untracked[order[i]] || mirror_is_clearing(m, order[i]))
                        continue;
                ks->dirty = ks->covered = ks->tracking = false;
                ks->walking = true;
                ks->n_done = ks->n_total = 0;
                w->kind = order[i];
                w->step = ks->done_ms >= TARGET_DONE ? WALK_SETTLE : WALK_TARGET;
                w->since_ms = ks->done_ms > TARGET_DONE ? ks->done_ms : 0;
                w->unsorted = w->extraneous = w->going_on = false;
                w->last_ms = INT64_MAX;
                w->at_ms = 0;
                w->saved_at_ms = om_clock_ms();
                if (!w->began_ms)
                        w->began_ms = om_clock_ms();
                cursors_clear(w);
                return true;
        }
        return false;
}

void walk_pump(struct mirror *m) {
        struct walk *w = &m->walk;

        if (w->out || w->timer_armed || m->waiting || (w->step == WALK_NONE && !begin(w)))
                return;
        switch (w->step) {
        case WALK_TARGET:
                if (w->pending < PENDING_MAX && !(w->kind == OM_STORE_METRICS && m->metrics_busy))
                        list(w, m->target, on_target);
                break;
        case WALK_SETTLE:
                if (w->pending)
                        break;
                cursors_clear(w);
                if (!w->extraneous && m->kinds[w->kind].done_ms < TARGET_DONE)
                        save_progress(w, TARGET_DONE);
                w->step = w->extraneous ? WALK_CLEAR : by_time(w->kind) ? WALK_SURVEY : WALK_COPY;
                walk_pump(m);
                break;
        case WALK_CLEAR:
                w->remove = (struct om_store_delete){ .kind = w->kind };
                if (!m->metrics_busy)
                        submit(w, m->target, on_cleared);
                break;
        case WALK_SURVEY:
                list(w, source_of(m->r, w->kind), on_survey);
                break;
        case WALK_COPY:
                if (w->has_page)
                        put_page(w);
                else
                        read_page(w);
                break;
        case WALK_NONE:
                break;
        }
}

int walk_init(struct mirror *m) {
        m->walk.m = m;
        m->walk.timer = event_new(m->r->host->base, -1, 0, on_timer, &m->walk);
        return m->walk.timer ? 0 : -ENOMEM;
}

void walk_deinit(struct mirror *m) {
        struct walk *w = &m->walk;

        page_drop(w);
        cursors_clear(w);
        free(w->pages);
        event_free(w->timer);
}
