/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on the loop: see job.h. */
#include <errno.h>

#include "job.h"

int om_job_admit(const struct om_jobs *jobs, size_t max_jobs, size_t max_bytes, size_t bytes, const char *system, struct om_error *e) {
        if (jobs->n >= max_jobs || (jobs->n && jobs->bytes + bytes > max_bytes))
                return om_error_set(e, OM_LIMIT, "%s: too much is under way", system);
        return 0;
}

static void end(struct om_job *j) {
        j->jobs->n--;
        j->jobs->bytes -= j->bytes;
        j->free(j);
}

static void posted(struct om_post *post) {
        struct om_job *j = (struct om_job *) post;
        struct om_op *op = j->op;
        struct om_error e = j->error;

        j->posted = false;
        j->op = NULL;
        if (op && j->cancelled) {
                om_error_set(&e, OM_UNAVAILABLE, "cancelled");
                op->done(op, -ECANCELED, &e);
        } else if (op)
                op->done(op, j->status, &e);
        if (j->over)
                end(j);
}

static void cancel(struct om_op *op) {
        struct om_job *j = op->backend;

        if (j->posted)
                return;
        j->cancelled = j->posted = true;
        om_host_post(j->jobs->host, &j->post);
}

void om_job_begin(struct om_jobs *jobs, struct om_job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *)) {
        j->jobs = jobs;
        j->op = op;
        j->bytes = bytes;
        j->free = free_it;
        j->post.fn = posted;
        jobs->n++;
        jobs->bytes += bytes;
        if (op) {
                op->backend = j;
                op->cancel = cancel;
        }
}

void om_job_over(struct om_job *j, int status, const struct om_error *e) {
        j->over = true;
        j->status = status;
        if (e)
                j->error = *e;
        if (j->posted)
                return;
        if (j->jobs->in_call) {
                j->posted = true;
                om_host_post(j->jobs->host, &j->post);
        } else
                posted(&j->post);
}
