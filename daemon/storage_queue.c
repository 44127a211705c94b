/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of marks: see storage_queue.h. One job at a time is at the worker; what comes meanwhile is gathered and goes with the next, so
 * that the file has one writer and the order of its records is the order in which they were added.
 *
 * After a failed write nobody knows what the file holds: it is broken, and only a rewrite makes it whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../backends/journal.h"
#include "../proto/json_scan.h"
#include "storage_queue.h"

const char *const om_store_kind_names[] = { "agents", "results", "metrics", "config", "keys", NULL };
static const char *const op_names[] = { "mark", "progress", "clean", NULL };

struct job {
        struct om_work work; /* first */
        struct om_post post;
        struct om_queue *q;
        struct om_buf text;
        bool replace;
        struct om_queue_wait *waits;
        int status;
        struct om_error error;
};

struct om_queue {
        struct om_host *host;
        struct om_worker *worker;
        char *path;
        /* the loop's */
        struct job job; /* the one at the worker, while `busy` */
        bool busy, broken, rewriting, replace;
        struct om_buf pending;
        struct om_queue_wait *waits, **last;
        uint64_t bytes, synced;
        struct om_post *closed;
        /* the worker's */
        int fd;
        uint64_t end;
};

/* -- the worker's side --------------------------------------------------------------------------------------------- */

static int write_all(int fd, struct om_span text, off_t at) {
        while (text.len) {
                ssize_t n = pwrite(fd, text.p, text.len, at);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : -EIO;
                text.p += n;
                text.len -= (size_t) n;
                at += n;
        }
        return 0;
}

static int sync_folder_of(const char *path) {
        char folder[4096];
        const char *slash = strrchr(path, '/');
        int fd, r;

        snprintf(folder, sizeof folder, "%.*s", slash ? (int) (slash - path) + 1 : 1, slash ? path : ".");
        fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        r = fsync(fd) < 0 ? -errno : 0;
        close(fd);
        return r;
}

/* The new file in place, open; or -errno, and the old one where it was. */
static int replace(const char *path, struct om_span text, int *ret_fd) {
        char new_path[4096];
        int fd, r;

        if (snprintf(new_path, sizeof new_path, "%s.new", path) >= (int) sizeof new_path)
                return -ENAMETOOLONG;
        fd = open(new_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        r = write_all(fd, text, 0);
        if (r == 0 && (fsync(fd) < 0 || rename(new_path, path) < 0))
                r = -errno;
        if (r == 0)
                r = sync_folder_of(path);
        if (r < 0 || !ret_fd)
                close(fd);
        else
                *ret_fd = fd;
        return r;
}

int om_file_replace(const char *path, struct om_span text, struct om_error *e) {
        int r = replace(path, text, NULL);

        return r < 0 ? om_error_set_errno(e, r, "cannot write %s", path) : 0;
}

static int write_job(struct om_queue *q, struct job *job) {
        struct om_span text = om_buf_span(&job->text);
        int r, fd;

        if (job->replace) {
                r = replace(q->path, text, &fd);
                if (r < 0)
                        return r;
                if (q->fd >= 0)
                        close(q->fd);
                q->fd = fd;
                q->end = text.len;
                return 0;
        }
        if (q->fd < 0)
                return -EIO;
        r = write_all(q->fd, text, (off_t) q->end);
        if (r == 0 && fdatasync(q->fd) < 0)
                r = -errno;
        if (r == 0) {
                q->end += text.len;
        } else { /* a sync that failed is not repeated: the pages may be gone, and it would say yes */
                close(q->fd);
                q->fd = -1;
        }
        return r;
}

static int turn(void *ctx, struct om_work *list) {
        struct om_queue *q = ctx;

        for (struct om_work *next; list; list = next) {
                struct job *job = (struct job *) list;
                int r = write_job(q, job);

                next = list->next;
                job->status = r < 0 ? om_error_set_errno(&job->error, r, "cannot write %s", q->path) : 0;
                om_host_post(q->host, &job->post);
        }
        return -1;
}

/* -- the loop's side ----------------------------------------------------------------------------------------------- */

static void send(struct om_queue *q);

static void on_closed_post(struct om_queue *q) {
        struct om_post *closed = q->closed;

        q->closed = NULL;
        q->host->ops->worker_stop(q->worker, closed);
        q->worker = NULL;
}

static void written(struct om_post *post) {
        struct job *job = (void *) ((char *) post - offsetof(struct job, post));
        struct om_queue *q = job->q;
        struct om_queue_wait *w = job->waits, *next;
        struct om_error e = job->error;
        int status = job->status;

        if (status == 0) {
                q->synced = q->bytes = job->replace ? job->text.len : q->synced + job->text.len;
                if (job->replace)
                        q->broken = false;
        } else {
                q->broken = true;
        }
        om_buf_clear(&job->text);
        om_buf_shrink(&job->text, 64 << 10);
        q->busy = false;
        job->waits = NULL;
        send(q);
        for (; w; w = next) {
                next = w->next;
                w->fn(w, status, status < 0 ? &e : NULL);
        }
        if (q->closed && !q->busy)
                on_closed_post(q);
}

/* What was gathered goes to the worker, if that is free and somebody waits. */
static void send(struct om_queue *q) {
        struct om_buf spare = q->job.text;

        if (q->busy || q->rewriting || (!q->waits && !q->replace))
                return;
        q->job = (struct job){ .post = { .fn = written }, .q = q, .text = q->pending, .replace = q->replace, .waits = q->waits };
        q->pending = spare;
        q->waits = NULL;
        q->last = &q->waits;
        q->replace = false;
        q->busy = true;
        if (!om_buf_ok(&q->job.text)) { /* no memory for a mark is as bad as no disk */
                q->job.status = om_error_set_errno(&q->job.error, ENOMEM, "%s", q->path);
                om_host_post(q->host, &q->job.post);
                return;
        }
        q->host->ops->worker_submit(q->worker, &q->job.work);
}

void om_queue_add(struct om_queue *q, const struct om_queue_record *record) {
        size_t before = q->pending.len, mark = om_journal_begin(&q->pending);

        om_buf_printf(&q->pending, "{\"op\":\"%s\",\"kind\":\"%s\"", op_names[record->op], om_store_kind_names[record->kind]);
        if (record->key.p) {
                om_buf_lit(&q->pending, ",\"key\":");
                om_buf_json_span(&q->pending, record->key);
        }
        if (record->name.p) {
                om_buf_lit(&q->pending, ",\"name\":");
                om_buf_json_span(&q->pending, record->name);
        }
        if (record->at_ms)
                om_buf_printf(&q->pending, ",\"at_ms\":%lld", (long long) record->at_ms);
        om_buf_putc(&q->pending, '}');
        om_journal_end(&q->pending, mark, q->rewriting || q->replace ? 0 : q->synced);
        q->bytes += q->pending.len - before;
}

void om_queue_sync(struct om_queue *q, struct om_queue_wait *w) {
        w->next = NULL;
        *q->last = w;
        q->last = &w->next;
        send(q);
}

void om_queue_rewrite_begin(struct om_queue *q) {
        om_buf_clear(&q->pending);
        q->rewriting = true;
        q->bytes = 0;
}

void om_queue_rewrite_end(struct om_queue *q) {
        q->rewriting = false;
        q->replace = true;
        send(q);
}

uint64_t om_queue_bytes(const struct om_queue *q) { return q->bytes; }
bool om_queue_is_broken(const struct om_queue *q) { return q->broken && !q->replace && !(q->busy && q->job.replace); }

/* -- opening ------------------------------------------------------------------------------------------------------- */

static int word(struct om_json_value v, const char *const *names) {
        for (int i = 0; names[i]; i++)
                if (om_json_string_is(v, names[i]))
                        return i;
        return -1;
}

/* False: no record of ours. */
static bool replay_one(struct om_span json, om_queue_replay_fn *replay, void *ctx) {
        struct om_json_member m[] = { { "op", OM_JSON_STRING, true }, { "kind", OM_JSON_STRING, true }, { "key", OM_JSON_STRING },
                { "name", OM_JSON_STRING }, { "at_ms", OM_JSON_NUMBER }, { NULL } };
        struct om_queue_record record = { 0 };
        struct om_arena arena = { 0 };
        int op, kind;

        if (om_json_check(json, 4, NULL) < 0 || om_json_members(json, "record", m, NULL) < 0)
                return false;
        op = word(m[0].value, op_names);
        kind = word(m[1].value, om_store_kind_names);
        if (op < 0 || kind < 0 || (m[4].value.type && om_json_int64(m[4].value, &record.at_ms) < 0))
                return false;
        record.op = (enum om_queue_op) op;
        record.kind = (enum om_store_kind) kind;
        if (m[2].value.type)
                record.key = om_json_string(m[2].value, &arena);
        if (m[3].value.type)
                record.name = om_json_string(m[3].value, &arena);
        if ((m[2].value.type && !record.key.p) || (m[3].value.type && !record.name.p)) {
                om_arena_deinit(&arena);
                return false;
        }
        replay(ctx, &record);
        om_arena_deinit(&arena);
        return true;
}

static int slurp(int fd, struct om_buf *b) {
        struct stat st;
        ssize_t n;

        if (fstat(fd, &st) < 0)
                return -errno;
        if (!om_buf_reserve(b, (size_t) st.st_size + 1))
                return -ENOMEM;
        while (b->len < (size_t) st.st_size) {
                n = pread(fd, b->data + b->len, (size_t) st.st_size - b->len, (off_t) b->len);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : -EIO;
                b->len += (size_t) n;
        }
        return 0;
}

static int read_file(struct om_queue *q, om_queue_replay_fn *fn, void *ctx, bool *ret_damaged, struct om_error *e) {
        struct om_buf text = OM_BUF_INIT;
        struct om_error damage = OM_ERROR_INIT;
        size_t end = 0, n = 0, pos = 0;
        int r;

        q->fd = open(q->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        r = q->fd < 0 ? -errno : slurp(q->fd, &text);
        if (r < 0) {
                om_buf_deinit(&text);
                return om_error_set_errno(e, r, "cannot read %s", q->path);
        }
        if (om_journal_check(q->path, om_buf_span(&text), &end, &n, &damage) < 0) {
                om_host_log(q->host, OM_LOG_ERROR, "%s; everything is compared anew", damage.message);
                *ret_damaged = true;
                end = n = 0;
        }
        while (n-- > 0)
                if (!replay_one(om_journal_next((struct om_span){ text.data, end }, &pos), fn, ctx))
                        *ret_damaged = true;
        om_buf_deinit(&text);
        /* A torn tail was no mark yet: what it was for had not been sent. */
        if (ftruncate(q->fd, (off_t) end) < 0 || fsync(q->fd) < 0 || sync_folder_of(q->path) < 0)
                return om_error_set_errno(e, errno, "cannot write %s", q->path);
        q->end = q->synced = q->bytes = end;
        return 0;
}

int om_queue_open(struct om_host *host, const char *path, om_queue_replay_fn *fn, void *ctx, bool *ret_damaged, struct om_queue **ret,
        struct om_error *e) {
        struct om_queue *q = calloc(1, sizeof *q);
        int r;

        if (!q || !(q->path = strdup(path))) {
                free(q);
                return om_error_set_errno(e, ENOMEM, "%s", path);
        }
        q->host = host;
        q->last = &q->waits;
        q->fd = -1;
        *ret_damaged = false;
        r = read_file(q, fn, ctx, ret_damaged, e);
        if (r == 0)
                r = host->ops->worker_new(host, "storage-queue", turn, q, &q->worker, e);
        if (r < 0) {
                om_queue_free(q);
                return r;
        }
        *ret = q;
        return 0;
}

void om_queue_close(struct om_queue *q, struct om_post *closed) {
        q->closed = closed;
        if (!q->busy && !q->waits)
                on_closed_post(q);
}

void om_queue_free(struct om_queue *q) {
        if (!q)
                return;
        if (q->fd >= 0)
                close(q->fd);
        om_buf_deinit(&q->pending);
        om_buf_deinit(&q->job.text);
        free(q->path);
        free(q);
}
