/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second storage follows the first, key by key; storage_internal.h says why this is right whatever happens in between.
 *
 * A key's life:
 *
 *   (absent) ─ write begins ─▶ marked, writes 1 ─ write completes ─▶ dirty, in the line ─ pump ─▶ busy: get from the source, then put into
 *   the target or delete there ─▶ clean ─▶ (absent), unless it became dirty meanwhile: in the line again
 *
 * Always true:
 *   - a key that is dirty, and neither busy nor being written nor refused, is in the line;
 *   - at most SYNC_MAX keys are busy by syncs; after a failure none is begun before the pause is over, or the target says that it is back;
 *   - the marks of all keys that are dirty are in the file, unless that is broken: then it is written anew as soon as it can be;
 *   - keys take at most STORAGE_QUEUE_BYTES; beyond it a kind is dirty as a whole, and its keys that nobody works on are dropped.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <utlist.h>

#include "../backends/journal.h"
#include "storage_internal.h"

enum { SYNC_MAX = 64, RETRY_MIN_MS = 500, RETRY_MAX_MS = 30000, MARK_BYTES = 96, REWRITE_MIN = 1 << 20, TRUNCATE_MIN = 64 << 10 };

/* -- keys ---------------------------------------------------------------------------------------------------------- */

static size_t cost_of(const struct key *k) { return sizeof *k + k->text_len + MARK_BYTES; }

struct key *mirror_key(struct mirror *m, enum om_store_kind kind, struct om_span key, struct om_span name, bool make) {
        size_t len = 2 + key.len + name.len;
        struct key *k, *found = NULL;

        k = calloc(1, sizeof *k + len + 1);
        if (!k)
                return NULL;
        k->kind = (uint8_t) kind;
        k->has_name = name.p != NULL;
        k->key_len = (uint32_t) key.len;
        k->name_len = (uint32_t) name.len;
        k->text_len = (uint32_t) len;
        /* The lengths are not in the text: two keys with the same text differ in where the name begins, which the first bytes tell. */
        k->text[0] = (char) ((unsigned) kind | (unsigned) k->has_name << 3 | (unsigned) (key.len >> 8) << 4);
        k->text[1] = (char) key.len;
        if (key.len)
                memcpy(k->text + 2, key.p, key.len);
        if (name.len)
                memcpy(k->text + 2 + key.len, name.p, name.len);
        HASH_FIND(hh, m->keys, k->text, len, found);
        if (found || !make) {
                free(k);
                return found;
        }
        HASH_ADD_KEYPTR(hh, m->keys, k->text, k->text_len, k);
        if (!k->hh.tbl) {
                free(k);
                return NULL;
        }
        m->n_keys++;
        m->bytes += cost_of(k);
        return k;
}

static struct key **line_of(struct mirror *m, const struct key *k) { return k->kind == OM_STORE_METRICS ? &m->metrics_line : &m->line; }

static void out_of_line(struct mirror *m, struct key *k) {
        struct key **line = line_of(m, k);

        if (k->lined)
                DL_DELETE(*line, k);
        k->lined = false;
}

static void key_free(struct mirror *m, struct key *k) {
        out_of_line(m, k);
        HASH_DEL(m->keys, k);
        m->n_keys--;
        m->bytes -= cost_of(k);
        free(k);
}

static void set_dirty(struct mirror *m, struct key *k, bool dirty) {
        if (k->dirty == dirty)
                return;
        k->dirty = dirty;
        m->n_dirty += dirty ? 1 : (size_t) -1;
        m->kinds[k->kind].n_dirty += dirty ? 1u : -1u;
}

static void set_refused(struct mirror *m, struct key *k, bool refused) {
        if (k->refused == refused)
                return;
        k->refused = refused;
        m->n_refused += refused ? 1 : (size_t) -1;
}

static void set_busy(struct mirror *m, struct key *k, bool busy) {
        if (k->busy == busy)
                return;
        k->busy = busy;
        m->kinds[k->kind].n_busy += busy ? 1u : -1u;
}

static void shrink_file(struct mirror *m);

/* After anything about a key has changed: into the line, out of memory, or neither. */
void mirror_settle(struct mirror *m, struct key *k) {
        struct key **line = line_of(m, k);
        bool idle = !k->busy && k->writes == 0;

        if (k->dirty && idle && !k->refused && !k->lined) {
                DL_APPEND(*line, k);
                k->lined = true;
        }
        if (k->by_walk && idle && (!k->dirty || k->refused)) {
                k->by_walk = false;
                walk_key_settled(m, k);
        }
        if (k->dirty || !idle)
                return;
        set_refused(m, k, false);
        if (m->walk.page_active && k->epoch == m->epoch) {
                if (!k->lingers) {
                        k->lingers = true;
                        k->next_lingering = m->lingering;
                        m->lingering = k;
                }
                return;
        }
        if (!k->lingers)
                key_free(m, k);
        if (m->n_dirty == 0)
                shrink_file(m);
}

/* The page is over: what was kept for it goes. */
void mirror_page_over(struct mirror *m) {
        struct key *k = m->lingering, *next;

        m->walk.page_active = false;
        m->lingering = NULL;
        for (; k; k = next) {
                next = k->next_lingering;
                k->lingers = false;
                mirror_settle(m, k);
        }
}

void mirror_dirty(struct mirror *m, struct key *k) {
        set_refused(m, k, false);
        set_dirty(m, k, true);
        mirror_settle(m, k);
}

void mirror_mark(struct mirror *m, struct key *k) {
        if (k->marked)
                return;
        k->marked = true;
        om_queue_add(m->queue,
                &(struct om_queue_record){
                        .op = OM_QUEUE_MARK, .kind = (enum om_store_kind) k->kind, .key = key_key(k), .name = key_name(k) });
}

/* -- the file ------------------------------------------------------------------------------------------------------ */

static void rewritten(struct om_queue_wait *w, int status, const struct om_error *e) {
        struct mirror *m = (void *) ((char *) w - offsetof(struct mirror, rewrite_wait));

        m->rewriting = false;
        for (int kind = 0; kind < KINDS && status == 0; kind++)
                m->kinds[kind].covered = m->kinds[kind].dirty && m->kinds[kind].in_rewrite;
        if (status < 0) {
                m->n_lost_marks++;
                om_log_error(OM_LOG_ERROR, e,
                        "the second storage's marks; what changes meanwhile is compared as a whole when it can be written");
                for (int kind = 0; kind < KINDS; kind++)
                        if (m->mask & 1u << kind && m->phase != PHASE_FOLLOW)
                                m->kinds[kind].dirty = true;
        }
        routes_changed(m->r);
        mirror_pump(m);
}

/* Everything that is dirty, and nothing else. */
static void rewrite(struct mirror *m) {
        struct key *k, *next;

        if (m->rewriting)
                return;
        m->rewriting = true;
        om_queue_rewrite_begin(m->queue);
        for (int kind = 0; kind < KINDS; kind++) {
                struct om_queue_record record = { .kind = (enum om_store_kind) kind };

                m->kinds[kind].in_rewrite = m->kinds[kind].dirty;
                if (!m->kinds[kind].dirty && !m->kinds[kind].walking)
                        continue;
                om_queue_add(m->queue, &record);
                record.op = OM_QUEUE_PROGRESS;
                record.at_ms = m->kinds[kind].dirty ? 0 : m->kinds[kind].done_ms;
                if (record.at_ms)
                        om_queue_add(m->queue, &record);
        }
        HASH_ITER (hh, m->keys, k, next) {
                k->marked = false;
                if (k->dirty || k->busy || k->writes)
                        mirror_mark(m, k);
        }
        om_queue_rewrite_end(m->queue);
        m->rewrite_wait.fn = rewritten;
        om_queue_sync(m->queue, &m->rewrite_wait);
}

/* A file of which little is wanted any more. What is stale in it does no harm, so it is let grow a while. */
static void shrink_file(struct mirror *m) {
        uint64_t bytes = om_queue_bytes(m->queue);

        if (m->stopping || m->rewriting)
                return;
        if ((m->n_keys == 0 && bytes > TRUNCATE_MIN) || bytes > 2 * (uint64_t) m->bytes + REWRITE_MIN)
                rewrite(m);
}

/* Too many: the kind with all of it instead. */
static void overflow(struct mirror *m, enum om_store_kind kind) {
        struct key *k, *next;

        m->n_overflows++;
        om_log(OM_LOG_WARNING,
                "the %s lacks more changes than STORAGE_QUEUE_BYTES (%lld) can name: all %s will be compared when it can be written",
                m->target->what, (long long) m->r->settings->storage_queue_bytes, om_store_kind_names[kind]);
        mirror_mark_kind(m, kind);
        HASH_ITER (hh, m->keys, k, next)
                if (k->kind == kind && !k->busy && k->writes == 0 && !k->lingers && !k->by_walk) {
                        set_dirty(m, k, false);
                        set_refused(m, k, false);
                        key_free(m, k);
                }
        rewrite(m);
}

void mirror_mark_kind(struct mirror *m, enum om_store_kind kind) {
        struct kind_state *ks = &m->kinds[kind];

        if (ks->dirty)
                return;
        ks->dirty = true;
        ks->covered = ks->tracking = ks->in_rewrite = false;
        ks->done_ms = 0;
        om_queue_add(m->queue, &(struct om_queue_record){ .kind = kind });
}

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
        out_of_line(m, k);
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
                overflow(m, route->kind);
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

void mirror_refuse(struct mirror *m, struct key *k, int status, const char *why) {
        char key[80];

        snprintf(key, sizeof key, "%.60s", key_key(k).p);
        om_error_set(&m->refusal, om_kind_of_errno(status), "the %s refuses %s \"%s\": %s", m->target->what, om_store_kind_names[k->kind],
                key, why && why[0] ? why : strerror(-status));
        om_log_error(OM_LOG_ERROR, &m->refusal, NULL);
        set_dirty(m, k, true);
        set_refused(m, k, true);
        mirror_mark(m, k);
        mirror_settle(m, k);
}

void mirror_retry_refused(struct mirror *m) {
        struct key *k, *next;

        HASH_ITER (hh, m->keys, k, next)
                if (k->refused)
                        mirror_dirty(m, k);
}

/* -- one key is brought over --------------------------------------------------------------------------------------- */

struct sync {
        union { /* first */
                struct om_op op;
                struct om_store_get get;
                struct om_store_put put;
                struct om_store_delete remove;
                struct om_store_list list;
        };
        struct mirror *m;
        struct key *key;
        struct part *part;
        struct om_deadline deadline;
        struct om_arena arena; /* what was read */
        struct om_store_entry entry;
        struct om_outcome outcome;
        struct om_span cursor;
};

static void sync_free(struct sync *s) {
        struct mirror *m = s->m;

        m->n_sync--;
        om_arena_deinit(&s->arena);
        free(s);
}

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

/* 0: the target has it, as the source had it when it was read. */
static void sync_end(struct sync *s, int status, const struct om_error *e) {
        struct mirror *m = s->m;
        struct key *k = s->key;

        set_busy(m, k, false);
        k->epoch = m->epoch;
        if (status < 0 && s->part == m->target && is_refusal(status) && status != -ENOBUFS) {
                mirror_refuse(m, k, status, e ? e->message : NULL);
        } else if (status < 0) {
                set_dirty(m, k, true);
                if (status != -ENOBUFS || s->part->n_out == 0)
                        mirror_trouble(m, s->part, status, e);
        } else {
                m->n_synced++;
                mirror_worked(m);
        }
        sync_free(s);
        mirror_settle(m, k);
        routes_changed(m->r);
        mirror_pump(m);
}

static int sync_submit(
        struct sync *s, struct part *p, int (*call)(struct sync *s, struct part *p, struct om_error *e), om_op_done_fn *done) {
        struct om_error e = OM_ERROR_INIT;
        int status;

        s->part = p;
        status = s->m->stopping ? -ECANCELED : part_check(p, &e);
        if (status == 0) {
                s->op.done = done;
                status = call(s, p, &e);
        }
        if (status == 0) {
                mirror_op_begun(s->m, p, &s->deadline, &s->op);
        } else {
                sync_end(s, status, &e);
        }
        return status;
}

static int call_get(struct sync *s, struct part *p, struct om_error *e) { return p->ops->get(p->store, &s->get, e); }
static int call_put(struct sync *s, struct part *p, struct om_error *e) { return p->ops->put(p->store, &s->put, e); }
static int call_remove(struct sync *s, struct part *p, struct om_error *e) { return p->ops->remove(p->store, &s->remove, e); }
static int call_list(struct sync *s, struct part *p, struct om_error *e) { return p->ops->list(p->store, &s->list, e); }

static void on_written(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct om_error mine = OM_ERROR_INIT;

        mirror_op_done(s->m, s->part, &s->deadline);
        if (status == 0 && s->outcome.status < 0) {
                status = s->outcome.status;
                om_error_set(&mine, om_kind_of_errno(status), "%s", s->outcome.why ? s->outcome.why : strerror(-status));
                e = &mine;
        }
        sync_end(s, status, e);
}

static void on_read(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct key *k = s->key;
        enum om_store_kind kind = (enum om_store_kind) k->kind;

        mirror_op_done(s->m, s->part, &s->deadline);
        if (status < 0 && status != -ENOENT) {
                om_arena_deinit(&s->get.arena);
                sync_end(s, status, e);
                return;
        }
        if (status == -ENOENT) {
                om_arena_deinit(&s->get.arena);
                s->remove = (struct om_store_delete){ .kind = kind, .key = key_key(k), .name = key_name(k) };
                sync_submit(s, s->m->target, call_remove, on_written);
                return;
        }
        s->arena = s->get.arena;
        s->entry = s->get.entry;
        s->entry.key = key_key(k);
        s->put = (struct om_store_put){ .kind = kind, .entries = &s->entry, .n = 1, .outcomes = &s->outcome };
        sync_submit(s, s->m->target, call_put, on_written);
}

/* -- what was deleted with all of its names ------------------------------------------------------------------------ */

static void on_listed(struct om_op *op, int status, const struct om_error *e);

static void list_names(struct sync *s) {
        s->list = (struct om_store_list){ .kind = (enum om_store_kind) s->key->kind, .key = key_key(s->key), .cursor = s->cursor };
        sync_submit(s, s->m->target, call_list, on_listed);
}

/* Each name that the target has under it is a key to be synced. */
static int take_name(struct mirror *m, enum om_store_kind kind, struct om_span key, struct om_span name) {
        struct key *k = mirror_key(m, kind, key, name.p ? name : OM_SPAN(""), true);

        if (!k)
                return -ENOMEM;
        k->epoch = m->epoch;
        mirror_mark(m, k);
        mirror_dirty(m, k);
        return 0;
}

static void on_listed(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct om_span next = OM_SPAN_NONE;

        mirror_op_done(s->m, s->part, &s->deadline);
        for (size_t i = 0; status == 0 && i < s->list.n; i++)
                if (om_span_eq(s->list.entries[i].key, key_key(s->key)))
                        status = take_name(s->m, s->list.kind, s->list.entries[i].key, s->list.entries[i].name);
        if (status == 0 && s->list.next_cursor.p) {
                next = om_arena_copy(&s->arena, s->list.next_cursor);
                status = next.p ? 0 : -ENOMEM;
        }
        om_arena_deinit(&s->list.arena);
        s->cursor = next;
        if (status == 0 && next.p)
                list_names(s);
        else
                sync_end(s, status, e);
}

/* Results are asked for the newest, again and again, which costs little; where that one stays, all are listed. */
static void on_newest(struct om_op *op, int status, const struct om_error *e) {
        struct sync *s = (struct sync *) op;
        struct om_span name = s->get.entry.name.p ? s->get.entry.name : OM_SPAN("");
        uint64_t met = 0;

        mirror_op_done(s->m, s->part, &s->deadline);
        if (status == 0) {
                met = (uint64_t) om_crc32(name.p, name.len) | UINT64_C(1) << 32;
                status = take_name(s->m, OM_STORE_RESULTS, key_key(s->key), name);
        }
        om_arena_deinit(&s->get.arena);
        if (status == 0 && met == s->key->asked) {
                list_names(s);
                return;
        }
        s->key->asked = met;
        if (status == 0)
                set_dirty(s->m, s->key, true); /* again, behind that one */
        sync_end(s, status == -ENOENT ? 0 : status, e);
}

/* -- metrics ------------------------------------------------------------------------------------------------------- */

static void metrics_over(struct mirror *m, void *ctx, int status) {
        struct key *k = ctx;

        set_busy(m, k, false);
        k->epoch = m->epoch;
        if (status < 0)
                set_dirty(m, k, true);
        else
                m->n_synced++;
        mirror_settle(m, k);
        routes_changed(m->r);
        mirror_pump(m);
}

static void post_stop(struct mirror *m);

/* -- the pump ------------------------------------------------------------------------------------------------------ */

static int begin(struct mirror *m, struct key *k) {
        struct sync *s = calloc(1, sizeof *s);
        enum om_store_kind kind = (enum om_store_kind) k->kind;

        if (!s)
                return -ENOMEM;
        out_of_line(m, k);
        set_dirty(m, k, false);
        set_busy(m, k, true);
        s->m = m;
        s->key = k;
        m->n_sync++;
        if (k->has_name || (kind != OM_STORE_AGENTS && kind != OM_STORE_RESULTS)) {
                s->get = (struct om_store_get){ .kind = kind, .key = key_key(k), .name = key_name(k) };
                return sync_submit(s, source_of(m->r, kind), call_get, on_read);
        }
        if (kind == OM_STORE_AGENTS) {
                list_names(s);
                return 0;
        }
        s->get = (struct om_store_get){ .kind = kind, .key = key_key(k) };
        return sync_submit(s, m->target, call_get, on_newest);
}

static void begin_metrics(struct mirror *m) {
        struct key *k = m->metrics_line;

        out_of_line(m, k);
        set_dirty(m, k, false);
        set_busy(m, k, true);
        if (metrics_sync(m, NULL, 0, strtoll(key_key(k).p, NULL, 10), metrics_over, k) < 0) {
                set_busy(m, k, false);
                set_dirty(m, k, true);
                mirror_settle(m, k);
        }
}

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
                rewrite(m);
        }
        if (!m->waiting && m->target->store && m->target->state == OM_STORE_READY) {
                while (m->line && m->n_sync < SYNC_MAX && !m->waiting && begin(m, m->line) == 0)
                        ;
                if (m->metrics_line && !m->metrics_busy && !m->waiting)
                        begin_metrics(m);
                walk_pump(m);
                if (m->phase == PHASE_COPY && !m->waiting)
                        migrate_copied(m);
        }
        verify_pump(m);
        migrate_pump(m);
}

/* -- making and ending it ------------------------------------------------------------------------------------------ */

static void replay(void *ctx, const struct om_queue_record *record) {
        struct mirror *m = ctx;
        struct kind_state *ks = &m->kinds[record->kind];
        struct key *k;

        if (!(m->mask & 1u << record->kind))
                return;
        if (record->op == OM_QUEUE_CLEAN) {
                ks->dirty = false;
        } else if (record->op == OM_QUEUE_PROGRESS) {
                ks->done_ms = record->at_ms;
        } else if (!record->key.p) {
                ks->dirty = true;
                ks->done_ms = 0;
        } else {
                k = mirror_key(m, record->kind, record->key, record->name, true);
                if (!k) {
                        ks->dirty = true;
                        return;
                }
                k->marked = true;
                mirror_dirty(m, k);
        }
}

int mirror_load(struct mirror *m, struct om_error *e) {
        bool damaged = false;
        int status = om_queue_open(m->r->host, m->r->queue_path, replay, m, &damaged, &m->queue, e);

        if (status == 0 && damaged)
                for (int kind = 0; kind < KINDS; kind++)
                        if (m->mask & 1u << kind)
                                mirror_mark_kind(m, (enum om_store_kind) kind);
        return status;
}

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
