/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker of the JSON storage: a turn takes every job that was submitted since the last, appends what they write, syncs each journal
 * that was touched once, and only then posts the jobs back. Reads of the turn wait for the same sync, so nobody sees what is not durable.
 *
 * After a failed sync nothing of that turn is acknowledged and nothing is written any more: the storage says OM_STORE_FAILED, cuts the
 * journals back to what had been synced, opens everything anew, and says OM_STORE_READY. A sync that failed is never repeated in the hope
 * of a better answer: the kernel has dropped the pages by then, and would say yes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "work.h"

enum { PAGE = 100, PAGE_MAX = 10000, PAGE_BYTES = 16 << 20, TELL_AGAIN_MS = 100 };

/* -- reading ------------------------------------------------------------------------------------------------------- */

/* Copies an entry into `a`, its value read if that is wanted. */
static int show(struct om_file_table *t, const struct om_file_entry *entry, bool value, struct om_arena *a, struct om_store_entry *ret,
        struct om_error *e) {
        ret->key = om_arena_copy(a, om_file_key(entry));
        ret->name = om_arena_copy(a, om_file_name(entry));
        ret->topic = om_arena_copy(a, om_file_topic(entry));
        ret->status = om_arena_copy(a, om_file_status(entry));
        ret->saved_ms = entry->saved_ms;
        ret->expires_ms = entry->expires_ms;
        ret->value = OM_SPAN_NONE;
        return value ? om_file_table_read(t, entry, a, &ret->value, e) : 0;
}

static int run_get(struct om_file_table *t, struct om_file_job *job) {
        struct om_store_get *op = (struct om_store_get *) job->op;
        int64_t now = om_now_ms();
        struct om_file_entry *entry =
                job->name.p ? om_file_index_find(&t->index, job->key, job->name) : om_file_index_newest(&t->index, job->key, now);
        if (!entry || !om_file_alive(entry, now))
                return om_error_set(&job->error, OM_NOT_FOUND, "there is no such entry in %s", t->name);
        return show(t, entry, true, &op->arena, &op->entry, &job->error);
}

static bool wanted(const struct om_file_table *t, const struct om_file_job *job, const struct om_file_entry *entry, int64_t now) {
        const struct om_store_list *op = (const struct om_store_list *) job->op;
        struct om_span key = om_file_key(entry);
        if (!om_file_alive(entry, now) || (job->key.p && !om_span_eq(key, job->key)))
                return false;
        if (job->kind == OM_STORE_CONFIG) {
                if (job->name.p && (key.len < job->name.len || memcmp(key.p, job->name.p, job->name.len) != 0))
                        return false;
        } else if (job->name.p && !om_span_eq(om_file_name(entry), job->name))
                return false;
        if ((job->topic.p && !om_span_eq(om_file_topic(entry), job->topic)) ||
                (job->status.p && !om_span_eq(om_file_status(entry), job->status)))
                return false;
        return (!op->since_ms || entry->saved_ms >= op->since_ms) && (!op->until_ms || entry->saved_ms < op->until_ms);
}

/* The entry to begin with. A cursor is "TIME.SEQUENCE" of the last entry that was given. */
static int list_from(struct om_file_table *t, struct om_file_job *job, struct om_file_entry **ret) {
        const struct om_store_list *op = (const struct om_store_list *) job->op;
        char text[48];
        int end = 0;
        int64_t time_ms;
        uint64_t sequence;
        if (!job->cursor.p) {
                bool until = op->until_ms && t->index.by_time;
                *ret = until ? om_file_index_before(&t->index, op->until_ms, 0) : t->index.last[0];
                return 0;
        }
        snprintf(text, sizeof(text), "%.*s", OM_PRI(job->cursor));
        if (sscanf(text, "%" SCNd64 ".%" SCNu64 "%n", &time_ms, &sequence, &end) != 2 || (size_t) end != job->cursor.len)
                return om_error_set(&job->error, OM_INVALID, "this cursor is none that the storage gave");
        *ret = om_file_index_before(&t->index, time_ms, sequence);
        return 0;
}

static int run_list(struct om_file_table *t, struct om_file_job *job) {
        struct om_store_list *op = (struct om_store_list *) job->op;
        size_t limit = op->limit == 0 ? PAGE : op->limit < PAGE_MAX ? op->limit : PAGE_MAX, bytes = 0;
        struct om_file_entry *entry = NULL, *last = NULL;
        int64_t now = om_now_ms();
        int r = list_from(t, job, &entry);
        if (r < 0)
                return r;
        if (limit > t->index.n)
                limit = t->index.n;
        op->entries = om_arena_alloc(&op->arena, (limit + 1) * sizeof(op->entries[0]));
        if (!op->entries)
                return om_error_set_errno(&job->error, ENOMEM, "cannot list %s", t->name);
        for (; entry; entry = entry->older) {
                if (t->index.by_time && entry->saved_ms < op->since_ms)
                        break;
                if (!wanted(t, job, entry, now))
                        continue;
                if (op->n >= limit || bytes > PAGE_BYTES) {
                        char cursor[48];
                        snprintf(cursor, sizeof(cursor), "%" PRId64 ".%" PRIu64, om_file_time(&t->index, last), last->sequence);
                        op->next_cursor = om_arena_copy(&op->arena, om_span_of(cursor));
                        break;
                }
                r = show(t, entry, !op->keys_only, &op->arena, &op->entries[op->n], &job->error);
                if (r < 0)
                        return r;
                op->n++;
                bytes += entry->length;
                last = entry;
        }
        return 0;
}

static int run_health(struct om_store *s, struct om_file_job *job) {
        struct om_store_health *op = (struct om_store_health *) job->op;
        static const char *const weak[] = { NULL, "writes are acknowledged before they are synced (durability=interval)",
                "writes are never synced (durability=memory)" };
        struct om_buf b = OM_BUF_INIT;
        uint64_t files = 0, journals = 0;
        const char *why = weak[s->settings.durability];
        om_buf_printf(&b, "{\"version\":\"" OM_VERSION "\",\"durability\":\"%s\"", why ? "weak" : "strong");
        if (why)
                om_buf_printf(&b, ",\"why\":\"%s\"", why);
        om_buf_lit(&b, ",\"path\":");
        om_buf_json_span(&b, om_span_of(s->folder));
        for (int i = 0; i < OM_FILE_KINDS; i++) {
                om_buf_printf(&b, ",\"%s\":%zu", s->tables[i].name, s->tables[i].index.n);
                files += s->tables[i].base_bytes;
                journals += s->tables[i].journal_bytes + s->tables[i].old_bytes;
        }
        om_buf_printf(&b, ",\"file_bytes\":%" PRIu64 ",\"journal_bytes\":%" PRIu64 "}", files, journals);
        op->info = om_buf_ok(&b) ? om_arena_copy(&op->arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        return op->info.p ? 0 : om_error_set_errno(&job->error, ENOMEM, "cannot tell the storage's health");
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

static int run_put_if_absent(struct om_file_table *t, struct om_file_job *job) {
        struct om_store_put_if_absent *op = (struct om_store_put_if_absent *) job->op;
        int64_t now = om_now_ms();
        struct om_file_entry *there = om_file_index_newest(&t->index, job->key, now);
        if (there)
                return om_file_table_read(t, there, &op->arena, &op->ret_value, &job->error);
        struct om_store_entry entry = { .key = job->key, .value = job->value, .saved_ms = now, .expires_ms = job->expires_ms };
        struct om_outcome outcome = { 0 };
        int r = om_file_table_put(t, &entry, 1, &outcome, &job->error);
        if (r == 0 && outcome.status < 0)
                return om_error_set(&job->error, OM_INVALID, "%s", outcome.why);
        op->ret_stored = r == 0;
        return r;
}

static int run_delete(struct om_file_table *t, struct om_file_job *job) {
        struct om_store_delete *op = (struct om_store_delete *) job->op;
        return om_file_table_delete(t, job->key, job->name, &op->ret_n, &job->error);
}

static int run_close(struct om_store *s) {
        struct om_error e = OM_ERROR_INIT;
        for (int i = 0; i < OM_FILE_KINDS; i++) {
                struct om_file_table *t = &s->tables[i];
                /* What cannot be written into NAME.json stays in the journal, which is as safe. */
                if (s->usable && om_file_table_settle(t, &e) < 0)
                        om_host_log(s->host, OM_LOG_WARNING, "%s; what is in %s/%s.journal stays there", e.message, s->folder, t->name);
                om_file_table_close(t);
        }
        s->usable = false;
        s->retry_at_ms = INT64_MAX;
        om_error_set(&s->failure, OM_UNAVAILABLE, "the storage is closed");
        return 0;
}

static int run(struct om_store *s, struct om_file_job *job) {
        struct om_file_table *t = &s->tables[job->kind];
        if (job->type == OM_FILE_OPEN)
                return 0;
        if (job->type == OM_FILE_CLOSE)
                return run_close(s);
        if (atomic_load(&job->cancelled))
                return om_error_set_errno(&job->error, ECANCELED, "the operation was cancelled");
        if (!s->usable) {
                job->error = s->failure;
                return -EAGAIN;
        }
        switch (job->type) {
        case OM_FILE_PUT:
                return om_file_table_put(t, job->entries, job->n, ((struct om_store_put *) job->op)->outcomes, &job->error);
        case OM_FILE_GET:
                return run_get(t, job);
        case OM_FILE_LIST:
                return run_list(t, job);
        case OM_FILE_DELETE:
                return run_delete(t, job);
        case OM_FILE_PUT_IF_ABSENT:
                return run_put_if_absent(t, job);
        default:
                return run_health(s, job);
        }
}

/* -- states -------------------------------------------------------------------------------------------------------- */

struct state_post {
        struct om_post post;
        struct om_store *store;
        enum om_store_state state;
        struct om_error error;
};

static void state_arrived(struct om_post *post) {
        struct state_post *p = (struct state_post *) post;
        om_file_state_changed(p->store, p->state, &p->error);
        free(p);
}

/* Without memory for it, the next turn tries again. */
static void tell_what_is_untold(struct om_store *s) {
        struct state_post *p = s->untold ? calloc(1, sizeof(*p)) : NULL;
        if (!p)
                return;
        p->post.fn = state_arrived;
        p->store = s;
        p->state = s->new_state;
        p->error = s->new_error;
        s->untold = false;
        om_host_post(s->host, &p->post);
}

static void tell_state(struct om_store *s, enum om_store_state state, const struct om_error *error) {
        s->untold = true;
        s->new_state = state;
        s->new_error = *error;
        tell_what_is_untold(s);
}

static void fail(struct om_store *s, const struct om_error *error) {
        s->usable = false;
        s->failure = *error;
        s->failure.kind = OM_UNAVAILABLE;
        s->retry_at_ms = om_clock_ms() + om_backoff_ms(1000, 60000, s->attempts++);
        om_host_log(s->host, OM_LOG_ERROR, "%s; the storage is closed until its files can be opened again", error->message);
        tell_state(s, OM_STORE_FAILED, error);
}

static void try_open(struct om_store *s) {
        struct om_error e = OM_ERROR_INIT;
        for (int i = 0; i < OM_FILE_KINDS; i++)
                if (om_file_table_recover(&s->tables[i], &e) < 0) {
                        fail(s, &e);
                        return;
                }
        s->usable = true;
        s->attempts = 0;
        s->sync_at_ms = 0;
        tell_state(s, OM_STORE_READY, &e);
}

/* -- the turn ------------------------------------------------------------------------------------------------------ */

static int sync_all(struct om_store *s, struct om_error *e) {
        bool dirty = false;
        for (int i = 0; i < OM_FILE_KINDS; i++)
                dirty |= s->tables[i].dirty;
        if (!dirty)
                return 0;
        if (s->settings.durability == OM_DURABILITY_INTERVAL) {
                int64_t now = om_clock_ms();
                if (s->sync_at_ms == 0)
                        s->sync_at_ms = now + s->settings.sync_interval_ms;
                if (now < s->sync_at_ms)
                        return 0;
                s->sync_at_ms = 0;
        }
        for (int i = 0; i < OM_FILE_KINDS; i++) {
                int r = om_file_table_sync(&s->tables[i], e);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Nothing of this turn holds. */
static void refuse_all(struct om_file_job *jobs, const struct om_error *why) {
        for (struct om_file_job *job = jobs; job; job = job->next)
                if (job->result == 0 && job->type != OM_FILE_OPEN && job->type != OM_FILE_CLOSE) {
                        job->result = -EAGAIN;
                        job->error = *why;
                        job->error.kind = OM_UNAVAILABLE;
                }
}

static void run_jobs(struct om_store *s, struct om_file_job *jobs) {
        struct om_error e = OM_ERROR_INIT;
        bool broken = false;
        for (struct om_file_job *job = jobs; job; job = (struct om_file_job *) job->work.next) {
                job->next = (struct om_file_job *) job->work.next;
                job->result = run(s, job);
                if (job->result == -EIO && s->usable && !broken) {
                        broken = true;
                        e = job->error;
                }
        }
        if (s->usable && (broken || sync_all(s, &e) < 0)) {
                refuse_all(jobs, &e);
                fail(s, &e);
        }
        if (jobs) {
                jobs->post.fn = om_file_jobs_done;
                om_host_post(s->host, &jobs->post);
        }
}

/* Compaction and sweeping. Returns when they want to go on. */
static int maintain(struct om_store *s) {
        struct om_error e = OM_ERROR_INIT;
        int soonest = -1;
        for (int i = 0; i < OM_FILE_KINDS && s->usable; i++) {
                int wait, r = om_file_table_maintain(&s->tables[i], &wait, &e);
                if (r == -EIO)
                        fail(s, &e);
                else if (r < 0)
                        om_host_log(s->host, OM_LOG_WARNING, "%s; %s.json stays as it was, with its journal", e.message, s->tables[i].name);
                if (wait >= 0 && (soonest < 0 || wait < soonest))
                        soonest = wait;
        }
        return soonest;
}

int om_file_turn(void *ctx, struct om_work *list) {
        struct om_store *s = ctx;
        tell_what_is_untold(s);
        if (!s->usable && s->retry_at_ms <= om_clock_ms())
                try_open(s);
        run_jobs(s, (struct om_file_job *) list);
        int wait = s->usable ? maintain(s) : -1;
        if (s->retry_at_ms == INT64_MAX) /* closed: this was the last turn */
                s->untold = false;
        int64_t now = om_clock_ms(), due = s->usable ? s->sync_at_ms : s->retry_at_ms;
        if (due && due != INT64_MAX) {
                int left = due > now ? (int) (due - now) : 0;
                wait = wait < 0 || left < wait ? left : wait;
        }
        return s->untold && (wait < 0 || wait > TELL_AGAIN_MS) ? TELL_AGAIN_MS : wait;
}
