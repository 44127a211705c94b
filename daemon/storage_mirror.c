/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second storage follows the first, key by key; storage_internal.h says why this is right whatever happens in between.
 *
 * A key's life:
 *
 *   (absent) ─ write begins ─▶ marked, writes 1 ─ write completes ─▶ dirty, in the line ─ pump ─▶ busy: get from the source, then put into
 *   the target or delete there ─▶ clean ─▶ (absent), unless it became dirty meanwhile: in the line again
 *
 * The keys and their marks are storage_keys.c's, bringing one over is storage_sync.c's. Here: what a write does to them, when they are
 * brought over, what happens when that fails, and the mirror's own life.
 *
 * Always true: at most SYNC_MAX keys are busy by syncs; after a failure none is begun before the pause is over, or the target says that it
 * is back.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "storage_internal.h"

enum { SYNC_MAX = 64, RETRY_MIN_MS = 500, RETRY_MAX_MS = 30000 };

/* -- writes -------------------------------------------------------------------------------------------------------- */

/* Whether a write has marks of its own: not where its whole kind will be walked anyway. */
bool mirror_follows(const struct mirror *m, enum om_store_kind kind) {
        const struct kind_state *ks = &m->kinds[kind];

        return !m->ended && !m->checking && m->mask & 1u << kind && !(ks->dirty && ks->covered && !ks->walking && !ks->tracking);
}

/* The key of a whole kind, while that is being cleared. */
static bool is_whole(const struct key *k) { return k->has_name && k->key_len == 0 && k->name_len == 0; }

static int touch(struct mirror *m, struct route *route, enum om_store_kind kind, struct om_span key, struct om_span name) {
        struct key *k = mirror_key(m, kind, key, name, true);

        if (!k)
                return -ENOMEM;
        k->writes++;
        m->kinds[kind].n_writes++;
        k->epoch = m->epoch;
        mirror_out_of_line(m, k);
        if (!is_whole(k))
                mirror_mark(m, k);
        route->keys[route->n_keys++] = k;
        return 0;
}

static struct om_span time_key(char out[32], int64_t ms) {
        int n = snprintf(out, 32, "%lld", (long long) ms);

        return (struct om_span){ out, (size_t) n };
}

static int touch_all(struct mirror *m, struct route *route) {
        char text[32];
        int status = 0;

        switch (route->type) {
        case ROUTE_PUT:
                for (size_t i = 0; status == 0 && i < route->put.n; i++) {
                        const struct om_store_entry *entry = &route->put.entries[i];
                        bool named = route->kind == OM_STORE_AGENTS || route->kind == OM_STORE_RESULTS;
                        struct om_span key = route->kind == OM_STORE_METRICS ? time_key(text, entry->saved_ms) : entry->key;

                        status = touch(m, route, route->kind, key, !named ? OM_SPAN_NONE : entry->name.p ? entry->name : OM_SPAN(""));
                }
                return status;
        case ROUTE_REMOVE:
                if (route->remove.key.p && route->kind != OM_STORE_METRICS)
                        return touch(m, route, route->kind, route->remove.key, route->remove.name);
                mirror_mark_kind(m, route->kind);                              /* all of it */
                return touch(m, route, route->kind, OM_SPAN(""), OM_SPAN("")); /* so that the walk waits until it has completed */
        case ROUTE_PUT_IF_ABSENT:
                return touch(m, route, OM_STORE_KEYS, route->put_if_absent.key, OM_SPAN_NONE);
        default:
                return -EINVAL;
        }
}

int mirror_write_begin(struct mirror *m, struct route *route) {
        size_t n = route->type == ROUTE_PUT ? route->put.n : 1;
        int status;

        route->keys = calloc(n + 1, sizeof(struct key *));
        status = route->keys ? touch_all(m, route) : -ENOMEM;
        if (status < 0) {
                mirror_write_end(m, route);
                return status;
        }
        if (m->bytes > (size_t) m->r->settings->storage_queue_bytes)
                mirror_overflow(m, route->kind);
        if (om_queue_is_broken(m->queue)) { /* no write waits for a disk that is full */
                m->n_lost_marks++;
                return 1;
        }
        om_queue_sync(m->queue, &route->wait);
        return 0;
}

void mirror_write_end(struct mirror *m, struct route *route) {
        for (size_t i = 0; i < route->n_keys; i++) {
                struct key *k = route->keys[i];

                k->writes--;
                m->kinds[k->kind].n_writes--;
                k->epoch = m->epoch;
                /* Whatever became of it: what timed out may have taken effect. */
                if (is_whole(k))
                        mirror_settle(m, k);
                else
                        mirror_dirty(m, k);
        }
        route->n_keys = 0;
        mirror_pump(m);
}

/* Whether a clear of the kind is under way. */
bool mirror_is_clearing(struct mirror *m, enum om_store_kind kind) {
        const struct key *k = mirror_key(m, kind, OM_SPAN(""), OM_SPAN(""), false);

        return k && k->writes > 0;
}

bool mirror_may_read(const struct mirror *m, enum om_store_kind kind, struct om_span key, struct om_span name) {
        const struct kind_state *ks = &m->kinds[kind];
        struct mirror *mm = (struct mirror *) (uintptr_t) m;

        if (!(m->mask & 1u << kind) || ks->dirty || ks->walking || m->r->untracked[kind])
                return false;
        if (ks->n_dirty + ks->n_busy + ks->n_writes == 0)
                return true;
        return key.p && name.p && !mirror_key(mm, kind, key, name, false) && !mirror_key(mm, kind, key, OM_SPAN_NONE, false);
}

bool mirror_is_clean(const struct mirror *m) {
        if (m->n_dirty || m->n_sync || m->rewriting || m->checking)
                return false;
        for (int kind = 0; kind < KINDS; kind++)
                if (m->mask & 1u << kind &&
                        (m->kinds[kind].dirty || m->kinds[kind].walking || m->kinds[kind].n_busy || m->kinds[kind].n_writes ||
                                m->r->untracked[kind]))
                        return false;
        return true;
}
/* -- failures ------------------------------------------------------------------------------------------------------ */

bool is_refusal(int status) {
        enum om_kind kind = om_kind_of_errno(status);

        return kind == OM_INVALID || kind == OM_UNSUPPORTED || kind == OM_LIMIT || kind == OM_DENIED;
}

static void on_retry(evutil_socket_t fd, short what, void *ctx) {
        struct mirror *m = ctx;

        m->waiting = false;
        mirror_pump(m);
}

void mirror_trouble(struct mirror *m, const struct part *p, int status, const struct om_error *e) {
        int64_t ms;
        struct timeval tv;

        if (m->stopping)
                return;
        m->n_failed++;
        if (!m->failing_since_ms)
                m->failing_since_ms = om_now_ms();
        if (status == -ECANCELED)
                om_error_set(&m->error, OM_TIMEOUT, "no answer within %lld ms (CALL_TIMEOUT)", (long long) m->r->settings->call_timeout_ms);
        else if (e && e->message[0])
                m->error = *e;
        else
                om_error_set_errno(&m->error, status, "the %s", p->what);
        part_name_error(p, &m->error);
        routes_changed(m->r);
        if (m->waiting)
                return;
        if (m->attempts == 0)
                om_log_error(OM_LOG_WARNING, &m->error, "the second storage waits");
        ms = om_backoff_ms(RETRY_MIN_MS, RETRY_MAX_MS, m->attempts++);
        tv = (struct timeval){ .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
        m->waiting = event_add(m->retry, &tv) == 0;
}

void mirror_worked(struct mirror *m) {
        if (m->attempts || m->waiting) {
                m->attempts = 0;
                event_del(m->retry);
                m->waiting = false;
        }
        m->failing_since_ms = 0;
        m->error.kind = OM_OK;
}

/* -- operations of its own ------------------------------------------------------------------------------------------ */

void mirror_op_begun(struct mirror *m, struct part *p, struct om_deadline *dl, struct om_op *op) {
        p->n_out++;
        m->n_ops++;
        om_deadline_start_op(&m->deadlines, dl, m->r->settings->call_timeout_ms, op);
}

void mirror_op_done(struct mirror *m, struct part *p, struct om_deadline *dl) {
        om_deadline_stop(&m->deadlines, dl);
        m->n_ops--;
        part_done(p);
}

/* -- the pump ------------------------------------------------------------------------------------------------------ */

static void post_stop(struct mirror *m);

void mirror_pump(struct mirror *m) {
        struct om_error e;

        if (m->stopping) {
                post_stop(m);
                return;
        }
        if (m->checking) {
                migrate_pump(m);
                return;
        }
        if (om_queue_is_broken(m->queue) && !m->rewriting && !m->waiting) {
                mirror_trouble(m, m->target, -EIO, (om_error_set(&e, OM_UNAVAILABLE, "%s cannot be written", m->r->queue_path), &e));
                mirror_rewrite(m);
        }
        if (!m->waiting && m->target->store && m->target->state == OM_STORE_READY) {
                while (m->line && m->n_sync < SYNC_MAX && !m->waiting && sync_begin(m, m->line) == 0)
                        ;
                if (m->metrics_line && !m->metrics_busy && !m->waiting)
                        sync_begin_metrics(m);
                walk_pump(m);
                if (m->phase == PHASE_COPY && !m->waiting)
                        migrate_copied(m);
        }
        verify_pump(m);
        migrate_pump(m);
}
/* -- making and ending it ------------------------------------------------------------------------------------------ */

int mirror_new(struct routes *r, struct part *target, enum phase phase, unsigned mask, struct mirror **ret, struct om_error *e) {
        struct mirror *m = calloc(1, sizeof *m);

        if (!m)
                return om_error_set_errno(e, ENOMEM, "the second storage");
        m->r = r;
        m->target = target;
        m->phase = phase;
        m->mask = mask;
        m->started_ms = om_now_ms();
        m->epoch = 1;
        m->retry = event_new(r->host->base, -1, 0, on_retry, m);
        if (!m->retry || om_deadlines_init(&m->deadlines, r->host->base) < 0 || walk_init(m) < 0 || migrate_init(m) < 0) {
                if (m->retry)
                        event_free(m->retry);
                free(m);
                return om_error_set_errno(e, ENOMEM, "the second storage");
        }
        *ret = m;
        return 0;
}

void mirror_free_unopened(struct mirror *m) {
        struct key *k, *next;

        HASH_ITER (hh, m->keys, k, next) {
                HASH_DEL(m->keys, k);
                free(k);
        }
        walk_deinit(m);
        verify_free(m);
        migrate_deinit(m);
        om_deadlines_deinit(&m->deadlines);
        event_free(m->retry);
        om_queue_free(m->queue);
        if (m->drop_file)
                unlink(m->r->queue_path);
        if (m->r->mirror == m)
                m->r->mirror = NULL;
        free(m);
}

static void free_now(struct mirror *m) {
        struct om_post *gone = m->gone;
        struct routes *r = m->r;
        struct part *target = m->target_goes ? m->target : NULL;

        mirror_free_unopened(m);
        if (target)
                part_close(target, gone);
        else if (gone)
                om_host_post(r->host, gone);
        routes_changed(r);
        routes_release(r);
}

static void queue_closed(struct om_post *post) { free_now((void *) ((char *) post - offsetof(struct mirror, queue_closed))); }

/* Looked at again whenever something has ended: mirror_pump() posts it. */
static void stop_when_idle(struct om_post *post) {
        struct mirror *m = (void *) ((char *) post - offsetof(struct mirror, self_post));
        bool busy = m->n_ops || m->n_sync || m->metrics_busy || m->rewriting || m->beginning || m->walk.out || !verify_is_idle(m);

        m->stop_posted = false;
        for (int kind = 0; kind < KINDS; kind++)
                busy |= m->kinds[kind].n_writes > 0;
        if (busy || m->closing_queue)
                return;
        m->closing_queue = true;
        m->queue_closed.fn = queue_closed;
        if (m->queue)
                om_queue_close(m->queue, &m->queue_closed);
        else
                om_host_post(m->r->host, &m->queue_closed);
}

static void post_stop(struct mirror *m) {
        if (m->stop_posted || m->closing_queue)
                return;
        m->stop_posted = true;
        m->self_post.fn = stop_when_idle;
        om_host_post(m->r->host, &m->self_post);
}

void mirror_stop(struct mirror *m, struct om_post *gone) {
        m->stopping = m->ended = true;
        m->gone = gone;
        event_del(m->retry);
        event_del(m->walk.timer);
        event_del(m->switch_timer);
        for (struct om_deadline *dl = m->deadlines.first; dl; dl = dl->next)
                om_op_cancel(dl->op);
        post_stop(m);
}
