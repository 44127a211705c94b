/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_JOB_H
#define OM_JOB_H
/*
 * What a backend on the loop does for an operation, with host.h's rules kept: completed once, not from within the call, early when it is
 * cancelled; what is in flight counted, so that it can be bounded.
 *
 * A job is embedded, first, in what works for an operation. It may outlive the operation, when that was cancelled: it ends when its work
 * does. Loop thread.
 */
#include "host.h"

struct om_job;
struct om_jobs {
        struct om_host *host;
        size_t n, bytes; /* in flight */
        bool in_call;    /* the core is calling the backend: what completes at once completes by a post. The backend's to set */
};
struct om_job {
        struct om_post post;
        struct om_jobs *jobs;
        struct om_op *op; /* NULL: none, or completed */
        void (*free)(struct om_job *);
        size_t bytes;
        int status;
        struct om_error error;
        bool posted, over, cancelled;
};

/* -ENOBUFS with `e` where another of so many bytes would be too much. One alone is always taken. */
int om_job_admit(const struct om_jobs *jobs, size_t max_jobs, size_t max_bytes, size_t bytes, const char *system, struct om_error *e);
/* From now on the job has the op (NULL: none). free_it frees what it is embedded in. */
void om_job_begin(struct om_jobs *jobs, struct om_job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *));
/* The work has ended with this; the job is freed, now or later. */
void om_job_over(struct om_job *j, int status, const struct om_error *e);
/* From the call of cancel() on, though the op is told by a post. */
static inline bool om_job_is_cancelled(const struct om_job *j) { return !j->op || j->cancelled; }

#endif
