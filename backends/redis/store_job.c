/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An operation under way (store_state.h): commands out, answers in, the end.
 *
 * Always true:
 *   - every accepted operation completes exactly once, never from within the call that started it;
 *   - what is under way is bounded: JOBS_MAX operations, their inputs by max_pending_bytes, and of commands OUT_MAX with half of
 *     max_pending_bytes, so that the connection's own bound is not met; a job that finds no room waits in `stalled` for an answer to any
 * command;
 *   - a job is freed when it has completed, nothing of it is under way, and it is not posted.
 *
 * Called by the files of operations. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

enum { JOBS_MAX = 4096, OUT_MAX = 16384, WINDOW = 1024 };

/* A command under way. */
struct part {
        struct om_redis_job *job;
        om_redis_job_answer_fn *fn;
        size_t i, bytes, key_len;
        char key[];
};

static void pump(struct om_redis_job *job);

/* -- room ------------------------------------------------------------------------------------------------------------ */

static bool store_room(const struct om_store *s, size_t bytes) {
        return s->n_out == 0 || (s->n_out < OUT_MAX && s->bytes_out + bytes <= (size_t) s->settings.redis.max_pending_bytes / 2);
}

bool om_redis_job_room(const struct om_redis_job *job, size_t bytes) { return job->waiting < WINDOW && store_room(job->store, bytes); }

static void wait_in_line(struct om_redis_job *job) {
        struct om_store *s = job->store;

        if (job->stalled || job->waiting >= WINDOW)
                return; /* its own answers wake it */
        job->stalled = true;
        job->stalled_next = NULL;
        *s->stalled_end = job;
        s->stalled_end = &job->stalled_next;
        s->n_stalled++;
}

static void leave_line(struct om_redis_job *job) {
        struct om_store *s = job->store;
        struct om_redis_job **link = &s->stalled;

        if (!job->stalled)
                return;
        while (*link != job)
                link = &(*link)->stalled_next;
        *link = job->stalled_next;
        if (!*link)
                s->stalled_end = link;
        s->n_stalled--;
        job->stalled = false;
}

/* Each of them once: one that finds no room stands at the end again. */
static void wake(struct om_store *s) {
        size_t n = s->n_stalled;
        struct om_redis_job *job;

        while (n-- && (job = s->stalled) && store_room(s, 0)) {
                leave_line(job);
                pump(job);
        }
}

/* -- the end --------------------------------------------------------------------------------------------------------- */

static void close_posted(struct om_post *post);

void om_redis_close_when_idle(struct om_store *s) {
        if (!s->closing || s->jobs)
                return;
        s->close_post.fn = close_posted;
        om_host_post(s->host, &s->close_post);
}

/* The client ends in turns of its own: closing is over when those are. */
static void close_posted(struct om_post *post) {
        struct om_store *s = (void *) ((char *) post - offsetof(struct om_store, close_post));
        struct om_op *op = s->closing;
        struct om_error none = OM_ERROR_INIT;

        if (s->closing_turns == 0) {
                om_redis_free(s->redis);
                s->redis = NULL;
        }
        if (s->closing_turns++ < 4) {
                om_host_post(s->host, &s->close_post);
                return;
        }
        s->closing = NULL;
        op->done(op, 0, &none);
}

static void job_free(struct om_redis_job *job) {
        struct om_store *s = job->store;

        leave_line(job);
        if (job->all_prev)
                job->all_prev->all_next = job->all_next;
        else
                s->jobs = job->all_next;
        if (job->all_next)
                job->all_next->all_prev = job->all_prev;
        if (job->release)
                job->release(job);
        om_arena_deinit(&job->arena);
        free(job);
        om_redis_close_when_idle(s);
}

static void complete(struct om_redis_job *job, int status) {
        struct om_op *op = job->op;

        job->op = NULL;
        job->store->n_jobs--;
        job->store->bytes_held -= job->bytes;
        op->done(op, status, &job->error);
}

static void on_posted(struct om_post *post) {
        struct om_redis_job *job = (void *) ((char *) post - offsetof(struct om_redis_job, post));

        job->posted = false;
        if (job->op && job->cancelled) {
                om_error_set_errno(&job->error, ECANCELED, "the operation was cancelled");
                leave_line(job);
                complete(job, -ECANCELED);
        }
        pump(job);
}

static void post(struct om_redis_job *job) {
        if (job->posted)
                return;
        job->posted = true;
        job->post.fn = on_posted;
        om_host_post(job->store->host, &job->post);
}

static void end(struct om_redis_job *job) {
        if (job->starting) {
                if (job->status == 0 || job->sent)
                        post(job);
                return;
        }
        if (job->op) {
                if (job->status == 0 && job->finish)
                        job->finish(job);
                complete(job, job->status);
        }
        if (!job->posted)
                job_free(job);
}

/* Sends what there is to send; ends the job when nothing is left. The job may be gone after it. */
static void pump(struct om_redis_job *job) {
        for (;;) {
                while (job->more && job->status == 0 && job->op) {
                        enum om_redis_more more = om_redis_job_room(job, 256) ? job->more(job) : OM_REDIS_STALLED;

                        if (more == OM_REDIS_NO_MORE)
                                job->more = NULL;
                        if (more == OM_REDIS_STALLED) {
                                wait_in_line(job);
                                return;
                        }
                }
                if (job->waiting || job->posted)
                        return;
                if (job->next && job->status == 0 && job->op) {
                        void (*next)(struct om_redis_job *) = job->next;

                        job->next = NULL;
                        next(job);
                        if (job->status == 0 && (job->more || job->waiting || job->next))
                                continue;
                        if (job->waiting)
                                return;
                }
                end(job);
                return;
        }
}

void om_redis_job_fail(struct om_redis_job *job, int status, const struct om_error *error) {
        if (job->status < 0)
                return;
        job->status = status;
        if (error)
                job->error = *error;
        if (!job->stalled)
                return;
        leave_line(job);
        post(job); /* nobody else would look at it */
}

void om_redis_job_no_memory(struct om_redis_job *job) {
        struct om_error e;

        om_redis_job_fail(job, om_error_set_errno(&e, ENOMEM, "the storage"), &e);
}

struct om_span om_redis_job_keep(struct om_redis_job *job, struct om_span s) {
        struct om_span copy = om_arena_copy(&job->arena, s);

        if (s.p && !copy.p)
                om_redis_job_no_memory(job);
        return copy;
}

/* -- commands -------------------------------------------------------------------------------------------------------- */

static void on_answer(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct part *part = ctx;
        struct om_redis_job *job = part->job;
        struct om_store *s = job->store;
        struct om_error e;

        job->waiting--;
        s->n_out--;
        s->bytes_out -= part->bytes;
        if (status < 0 && reply && part->key_len) { /* what the server says of a key */
                e = *error;
                om_error_prefix(&e, "key %.*s", (int) (part->key_len < 200 ? part->key_len : 200), part->key);
                error = &e;
        }
        if (job->op && status < 0 && !(job->takes_errors && reply))
                om_redis_job_fail(job, status, error);
        else if (job->op && job->status == 0 && part->fn)
                part->fn(job, part->i, status, reply, error);
        free(part);
        pump(job);
        wake(s);
}

static struct part *part_new(
        struct om_redis_job *job, const struct om_redis_cmd *c, struct om_span key, om_redis_job_answer_fn *fn, size_t i) {
        struct part *part = malloc(sizeof *part + key.len);

        if (!part)
                return NULL;
        *part = (struct part){ .job = job, .fn = fn, .i = i, .bytes = om_redis_cmd_bytes(c), .key_len = key.len };
        if (key.len)
                memcpy(part->key, key.p, key.len);
        return part;
}

static void sent(struct om_redis_job *job, struct part *part, int status, const struct om_error *e) {
        if (status < 0) {
                free(part);
                om_redis_job_fail(job, status, e);
                return;
        }
        job->sent = true;
        job->waiting++;
        job->store->n_out++;
        job->store->bytes_out += part->bytes;
}

void om_redis_job_send(struct om_redis_job *job, struct om_redis_cmd *c, struct om_span key, om_redis_job_answer_fn *fn, size_t i) {
        struct part *part = c ? part_new(job, c, key, fn, i) : NULL;
        struct om_error e;

        if (!part) {
                om_redis_cmd_free(c);
                om_redis_job_no_memory(job);
                return;
        }
        sent(job, part, om_redis_send(job->store->redis, c, on_answer, part, &e), &e);
}

void om_redis_job_send_node(
        struct om_redis_job *job, struct om_redis_node *node, struct om_redis_cmd *c, om_redis_job_answer_fn *fn, size_t i) {
        struct part *part = c ? part_new(job, c, OM_SPAN_NONE, fn, i) : NULL;
        struct om_error e;

        if (!part) {
                om_redis_cmd_free(c);
                om_redis_job_no_memory(job);
                return;
        }
        sent(job, part, om_redis_send_node(node, c, on_answer, part, &e), &e);
}

/* -- the beginning --------------------------------------------------------------------------------------------------- */

static void on_cancel(struct om_op *op) {
        struct om_redis_job *job = op->backend;

        job->cancelled = true;
        post(job);
}

int om_redis_job_new(struct om_store *s, struct om_op *op, size_t size, size_t bytes, struct om_redis_job **ret, struct om_error *e) {
        struct om_redis_job *job;

        if (s->state != OM_STORE_READY)
                return om_error_set(e, OM_UNAVAILABLE, "%s", s->why.message[0] ? s->why.message : "the storage is not connected yet");
        if (s->n_jobs >= JOBS_MAX || (s->n_jobs && s->bytes_held + bytes > (size_t) s->settings.redis.max_pending_bytes))
                return om_error_set(e, OM_LIMIT, "the storage has %zu operations with %zu bytes in flight, no more are taken for now",
                        s->n_jobs, s->bytes_held);
        job = calloc(1, sizeof *job);
        if (job && size)
                job->data = om_arena_alloc(&job->arena, size);
        if (!job || (size && !job->data)) {
                free(job);
                return om_error_set_errno(e, ENOMEM, "the storage");
        }
        if (size)
                memset(job->data, 0, size);
        job->store = s;
        job->op = op;
        job->bytes = bytes;
        job->all_next = s->jobs;
        if (s->jobs)
                s->jobs->all_prev = job;
        s->jobs = job;
        s->n_jobs++;
        s->bytes_held += bytes;
        op->backend = job;
        op->cancel = on_cancel;
        *ret = job;
        return 0;
}

int om_redis_job_start(struct om_redis_job *job, struct om_error *e) {
        struct om_store *s = job->store;
        int status;

        job->starting = true;
        if (job->status == 0)
                pump(job);
        job->starting = false;
        if (job->status < 0 && !job->sent && !job->posted) { /* nothing has begun: it is refused */
                status = job->status;
                if (e)
                        *e = job->error;
                s->n_jobs--;
                s->bytes_held -= job->bytes;
                job->op->cancel = NULL;
                job->op = NULL;
                job_free(job);
                return status;
        }
        return 0;
}
