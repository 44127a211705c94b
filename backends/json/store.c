/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON storage: `json:DIR`. Readable files in a folder, shared with the Python OmniDaemon, each with a journal (table.h has the files,
 * base.c their form, journal.h the journal's, compact.c how the one becomes the other). This file is the loop's side: it takes operations,
 * hands them to the worker (work.c), and completes them.
 *
 * Always true: one daemon has the folder, by a lock on omnidaemon.lock, which the kernel takes back when the daemon dies; what is in flight
 * is bounded in number and bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "work.h"

enum { JOBS_MAX = 4096, BYTES_MAX = 64 << 20 };

static const char *const durabilities[] = { "always", "interval", "memory", NULL };
static const struct om_option options[] = {
        { "durability", OM_OPTION_ENUM, offsetof(struct om_file_settings, durability), "always", durabilities, 0, 0,
                "When a write is acknowledged: after it was synced (always), before, and synced every sync_interval_ms (interval), or "
                "never "
                "synced "
                "(memory)." },
        { "sync_interval_ms", OM_OPTION_MS, offsetof(struct om_file_settings, sync_interval_ms), "1s", NULL, 1, 3600000,
                "How often durability=interval syncs." },
        { "compact_min_bytes", OM_OPTION_BYTES, offsetof(struct om_file_settings, compact_min_bytes), "1M", NULL, 4096, INT64_MAX,
                "A journal smaller than this is not compacted before the daemon stops." },
        { "max_metrics", OM_OPTION_INT, offsetof(struct om_file_settings, max_metrics), "10000", NULL, 1, 100000000,
                "How many metrics are kept; the oldest go." },
        { NULL },
};

/* -- jobs ---------------------------------------------------------------------------------------------------------- */

static void job_free(struct om_file_job *job) {
        if (!job)
                return;
        om_arena_deinit(&job->arena);
        free(job);
}

static struct om_span keep(struct om_file_job *job, struct om_span s, bool *failed) {
        struct om_span copy = om_arena_copy(&job->arena, s);
        *failed |= s.p && !copy.p;
        job->bytes += s.len;
        return copy;
}

static void job_cancel(struct om_op *op) {
        struct om_file_job *job = op->backend;
        atomic_store(&job->cancelled, true);
}

/* A job for an operation, if one more is allowed now. */
static int job_new(struct om_store *s, enum om_file_job_type type, struct om_op *op, struct om_file_job **ret, struct om_error *e) {
        if (s->state != OM_STORE_READY)
                return om_error_set(e, OM_UNAVAILABLE, "%s",
                        s->state == OM_STORE_FAILED ? s->state_error.message : "the storage is still opening its files");
        if (s->in_flight >= JOBS_MAX || s->bytes_in_flight >= BYTES_MAX)
                return om_error_set(e, OM_LIMIT, "the storage has %zu operations with %zu bytes in flight, no more are taken for now",
                        s->in_flight, s->bytes_in_flight);
        struct om_file_job *job = calloc(1, sizeof(*job));
        if (!job)
                return om_error_set_errno(e, ENOMEM, "storage");
        job->store = s;
        job->type = type;
        job->op = op;
        *ret = job;
        return 0;
}

static int submit(struct om_file_job *job, bool failed, struct om_error *e) {
        struct om_store *s = job->store;
        if (failed) {
                job_free(job);
                return om_error_set_errno(e, ENOMEM, "storage");
        }
        job->op->backend = job;
        job->op->cancel = job_cancel;
        s->in_flight++;
        s->bytes_in_flight += job->bytes;
        s->host->ops->worker_submit(s->worker, &job->work);
        return 0;
}

void om_file_jobs_done(struct om_post *post) {
        struct om_file_job *job = (void *) ((char *) post - offsetof(struct om_file_job, post)), *next;
        for (; job; job = next) {
                struct om_store *s = job->store;
                next = job->next;
                if (job->type == OM_FILE_CLOSE) { /* completes when the thread has ended; it is the last of its turn */
                        s->host->ops->worker_stop(s->worker, &s->stopped);
                        continue;
                }
                if (job->op) {
                        s->in_flight--;
                        s->bytes_in_flight -= job->bytes;
                        job->op->done(job->op, job->result, &job->error);
                }
                job_free(job);
        }
}

void om_file_state_changed(struct om_store *s, enum om_store_state state, const struct om_error *error) {
        s->state = state;
        s->state_error = *error;
        s->events->state(s->core, state, error);
}

/* -- operations ---------------------------------------------------------------------------------------------------- */

static int store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        struct om_file_job *job;
        bool failed = false;
        int r = job_new(s, OM_FILE_PUT, &op->op, &job, e);
        if (r < 0)
                return r;
        struct om_store_entry *entries = om_arena_alloc(&job->arena, (op->n + 1) * sizeof(*entries));
        for (size_t i = 0; i < op->n && entries; i++) {
                const struct om_store_entry *from = &op->entries[i];
                entries[i] = *from;
                entries[i].key = keep(job, from->key, &failed);
                entries[i].name = keep(job, from->name, &failed);
                entries[i].value = keep(job, from->value, &failed);
                entries[i].topic = keep(job, from->topic, &failed);
                entries[i].status = keep(job, from->status, &failed);
        }
        job->kind = op->kind;
        job->entries = entries;
        job->n = op->n;
        return submit(job, failed || !entries, e);
}

static int store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        struct om_file_job *job;
        bool failed = false;
        int r = job_new(s, OM_FILE_GET, &op->op, &job, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->entry = (struct om_store_entry){ 0 };
        job->kind = op->kind;
        job->key = keep(job, op->key, &failed);
        job->name = keep(job, op->name, &failed);
        return submit(job, failed, e);
}

static int store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct om_file_job *job;
        bool failed = false;
        int r = job_new(s, OM_FILE_LIST, &op->op, &job, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->entries = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        job->kind = op->kind;
        job->key = keep(job, op->key, &failed);
        job->name = keep(job, op->name, &failed);
        job->topic = keep(job, op->topic, &failed);
        job->status = keep(job, op->status, &failed);
        job->cursor = keep(job, op->cursor, &failed);
        return submit(job, failed, e);
}

static int store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        struct om_file_job *job;
        bool failed = false;
        if (op->name.p && !op->key.p)
                return om_error_set(e, OM_INVALID, "a name alone deletes nothing: its key is missing");
        int r = job_new(s, OM_FILE_DELETE, &op->op, &job, e);
        if (r < 0)
                return r;
        op->ret_n = 0;
        job->kind = op->kind;
        job->key = keep(job, op->key, &failed);
        job->name = keep(job, op->name, &failed);
        return submit(job, failed, e);
}

static int store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct om_file_job *job;
        bool failed = false;
        int r = job_new(s, OM_FILE_PUT_IF_ABSENT, &op->op, &job, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->ret_stored = false;
        op->ret_value = OM_SPAN_NONE;
        job->kind = OM_STORE_KEYS;
        job->key = keep(job, op->key, &failed);
        job->value = keep(job, op->value, &failed);
        job->expires_ms = op->expires_ms;
        return submit(job, failed, e);
}

static int store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        struct om_file_job *job;
        int r = job_new(s, OM_FILE_HEALTH, &op->op, &job, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        return submit(job, false, e);
}

/* -- opening and closing ------------------------------------------------------------------------------------------- */

static int take_lock(struct om_store *s, struct om_error *e) {
        char pid[32] = "";
        s->lock_fd = openat(s->folder_fd, "omnidaemon.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (s->lock_fd < 0)
                return om_file_error(e, errno, "write in folder", s->folder);
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
                ssize_t n = pread(s->lock_fd, pid, sizeof(pid) - 1, 0);
                pid[n > 0 ? n : 0] = 0;
                pid[strcspn(pid, "\n")] = 0;
                return om_error_set(e, OM_UNAVAILABLE, "folder %s is in use by another daemon (process %s); give each its own", s->folder,
                        pid[0] ? pid : "unknown");
        }
        int len = snprintf(pid, sizeof(pid), "%ld\n", (long) getpid());
        if (ftruncate(s->lock_fd, 0) < 0 || pwrite(s->lock_fd, pid, (size_t) len, 0) < 0)
                om_host_log(s->host, OM_LOG_DEBUG, "%s/omnidaemon.lock: cannot write the process number", s->folder);
        return 0;
}

static int open_folder(struct om_store *s, struct om_error *e) {
        int r = om_mkdirs(s->folder, e);
        if (r < 0)
                return r;
        s->folder_fd = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (s->folder_fd < 0)
                return om_error_set_errno(e, errno, "cannot open folder %s", s->folder);
        if (faccessat(s->folder_fd, ".", W_OK, AT_EACCESS) < 0)
                return om_error_set_errno(e, errno, "cannot write in folder %s", s->folder);
        return take_lock(s, e);
}

static void free_store(struct om_store *s) {
        if (!s)
                return;
        if (s->lock_fd >= 0)
                close(s->lock_fd); /* and with it the lock goes */
        if (s->folder_fd >= 0)
                close(s->folder_fd);
        job_free(s->close_job);
        free(s->folder);
        free(s);
}

/* The worker's thread has ended. */
static void stopped(struct om_post *post) {
        struct om_store *s = (void *) ((char *) post - offsetof(struct om_store, stopped));
        struct om_file_job *job = s->close_job;
        job->op->done(job->op, job->result, &job->error);
}

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        static const char *const names[OM_FILE_KINDS] = { "agents", "results", "metrics", "config", "keys" };
        struct om_store *s = calloc(1, sizeof(*s));
        struct om_file_job *job = calloc(1, sizeof(*job)), *close_job = calloc(1, sizeof(*close_job));
        int r = 0;
        if (!s || !job || !close_job) {
                free(close_job);
                free(job);
                free(s);
                return om_error_set_errno(e, ENOMEM, "storage");
        }
        s->close_job = close_job;
        s->host = host;
        s->events = events;
        s->core = core;
        s->folder_fd = s->lock_fd = -1;
        s->stopped.fn = stopped;
        if (url->n_hosts)
                r = om_error_set(e, OM_INVALID, "json: takes a folder and no host: json:DIR, or json:///DIR");
        if (r == 0)
                r = om_options_read(options, url, &s->settings, e);
        s->folder = strdup(url->path[0] ? url->path : host->state_dir);
        if (r == 0 && !s->folder)
                r = om_error_set_errno(e, ENOMEM, "storage");
        if (r == 0)
                r = open_folder(s, e);
        for (int i = 0; i < OM_FILE_KINDS; i++) {
                s->tables[i] = (struct om_file_table){ .kind = (enum om_store_kind) i,
                        .name = names[i],
                        .host = host,
                        .settings = &s->settings,
                        .folder = s->folder,
                        .folder_fd = s->folder_fd,
                        .journal = 2 };
                om_file_table_init(&s->tables[i]);
        }
        if (r == 0)
                r = host->ops->worker_new(host, "json", om_file_turn, s, &s->worker, e);
        if (r < 0) {
                free(job);
                free_store(s);
                return r;
        }
        job->store = s;
        job->type = OM_FILE_OPEN;
        host->ops->worker_submit(s->worker, &job->work);
        *ret = s;
        return 0;
}

/* It needs no memory: the thread must end before its storage goes. */
static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        s->close_job->store = s;
        s->close_job->type = OM_FILE_CLOSE;
        s->close_job->op = op;
        op->cancel = NULL;
        s->host->ops->worker_submit(s->worker, &s->close_job->work);
        return 0;
}

const struct om_store_ops om_json_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "json",
        .schemes = (const char *const[]){ "json", NULL },
        .doc = "embedded: readable JSON files in a folder, shared with the Python OmniDaemon; needs no server",
        .capabilities = OM_STORE_TTL,
        .options = options,
        .open = store_open,
        .put = store_put,
        .get = store_get,
        .list = store_list,
        .remove = store_remove,
        .put_if_absent = store_put_if_absent,
        .health = store_health,
        .close = store_close,
        .destroy = free_store,
};
