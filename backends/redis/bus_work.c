/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations under way: each is open until its last command is done, and the core is told once.
 *
 * Always true: done() comes on the loop, after the call has returned; a cancelled operation is told of at once (in a later post) and its
 * outputs are not touched after, while its commands go on; what is under way is bounded. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "bus_state.h"

static struct work *work_of(struct om_post *post) { return (void *) ((char *) post - offsetof(struct work, post)); }

static void tell(struct work *w, int status, const struct om_error *e) {
        struct om_op *op = w->op;

        w->op = NULL;
        if (!op)
                return;
        op->cancel = NULL;
        op->done(op, status, e);
}

static void on_cancelled(struct om_post *post) {
        struct work *w = work_of(post);
        struct om_error e;

        w->posted = false;
        om_error_set(&e, OM_TIMEOUT, "redis: cancelled; it may still take effect");
        tell(w, -ECANCELED, &e);
        om_redis_work_release(w);
}

static void on_cancel(struct om_op *op) {
        struct work *w = op->backend;

        if (w->cancelled || w->posted)
                return;
        w->cancelled = w->posted = true;
        om_redis_work_hold(w);
        w->post.fn = on_cancelled;
        om_host_post(w->bus->host, &w->post);
}

void *om_redis_work_begin(struct om_bus *b, struct om_op *op, size_t size, size_t n_tasks, work_end_fn *end, int *ret, struct om_error *e) {
        struct work *w;

        if (b->n_ops >= OPS_MAX || (b->n_ops && b->n_tasks + n_tasks > TASKS_MAX)) {
                *ret = om_error_set(e, OM_LIMIT, "redis: too much is under way");
                return NULL;
        }
        if (!om_redis_ready(b->redis)) {
                const struct om_error *why = om_redis_why(b->redis);

                *ret = om_error_set(e, OM_UNAVAILABLE, "%s", why->kind != OM_OK ? why->message : "redis: not connected yet");
                return NULL;
        }
        w = calloc(1, size);
        if (!w) {
                *ret = om_error_set_errno(e, ENOMEM, "redis");
                return NULL;
        }
        w->bus = b;
        w->op = op;
        w->open = 1;
        w->n_tasks = (unsigned) n_tasks;
        w->end = end;
        op->backend = w;
        op->cancel = on_cancel;
        b->n_ops++;
        b->n_tasks += w->n_tasks;
        return w;
}

void om_redis_work_hold(struct work *w) { w->open++; }

void om_redis_work_release(struct work *w) {
        struct om_bus *b = w->bus;

        if (--w->open)
                return;
        b->n_ops--;
        b->n_tasks -= w->n_tasks;
        if (w->end)
                w->end(w);
        tell(w, w->status, w->status < 0 ? &w->error : NULL);
        if (w->free)
                w->free(w);
        free(w);
}

static void on_called(struct om_post *post) {
        struct work *w = work_of(post);

        w->posted = false;
        om_redis_work_release(w);
}

int om_redis_work_called(struct work *w) {
        if (w->open > 1) {
                om_redis_work_release(w);
                return 0;
        }
        w->posted = true;
        w->post.fn = on_called;
        om_host_post(w->bus->host, &w->post);
        return 0;
}

void om_redis_work_fail(struct work *w, int status, const struct om_error *e) {
        if (w->status == 0) {
                w->status = status;
                w->error = *e;
        }
}

bool om_redis_work_send_node(struct work *w, struct om_redis_node *node, struct om_redis_cmd *c, om_redis_done_fn *done) {
        struct om_error e = OM_ERROR_INIT;
        int r = node ? om_redis_send_node(node, c, done, w, &e) : om_redis_send(w->bus->redis, c, done, w, &e);

        if (r < 0) {
                om_redis_work_fail(w, r, &e);
                return false;
        }
        om_redis_work_hold(w);
        return true;
}

bool om_redis_work_send(struct work *w, struct om_redis_cmd *c, om_redis_done_fn *done) {
        return om_redis_work_send_node(w, NULL, c, done);
}
