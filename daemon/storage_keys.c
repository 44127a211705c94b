/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keys that the second storage lacks, in memory and in the file of marks; storage_mirror.c has a key's life.
 *
 * Always true:
 *   - a key that is dirty, and neither busy nor being written nor refused, is in its line;
 *   - the marks of all keys that are dirty are in the file, unless that is broken: then it is written anew as soon as it can be;
 *   - keys take at most STORAGE_QUEUE_BYTES; beyond it a kind is dirty as a whole, and its keys that nobody works on are dropped;
 *   - the counts (n_dirty, n_refused, n_busy, bytes) are those of the keys: nobody else writes these members.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "storage_internal.h"

enum { MARK_BYTES = 96, REWRITE_MIN = 1 << 20, TRUNCATE_MIN = 64 << 10 };

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

void mirror_out_of_line(struct mirror *m, struct key *k) {
        struct key **line = line_of(m, k);

        if (k->lined)
                DL_DELETE(*line, k);
        k->lined = false;
}

static void key_free(struct mirror *m, struct key *k) {
        mirror_out_of_line(m, k);
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

void mirror_take(struct mirror *m, struct key *k) {
        mirror_out_of_line(m, k);
        set_dirty(m, k, false);
        set_busy(m, k, true);
}

void mirror_give(struct mirror *m, struct key *k, bool again) {
        set_busy(m, k, false);
        if (again)
                set_dirty(m, k, true);
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

void mirror_rewrite(struct mirror *m) {
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
                mirror_rewrite(m);
}

void mirror_overflow(struct mirror *m, enum om_store_kind kind) {
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
        mirror_rewrite(m);
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
