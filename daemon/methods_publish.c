/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task.publish: reads the tasks, hands them to the dispatcher, answers when each outcome is known. Tasks of one request that are wrong are
 * answered in their places; the others are published.
 *
 * The state of a request under way, with room for its outcomes, is taken from a pool and given back: a publish of few tasks allocates
 * nothing. Called by session_read.c. Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "dispatch_internal.h"
#include "methods.h"
#include "methods_task.h"

enum { POOL_CALLS = 256, POOL_TASKS = 128 /* larger ones are freed */ };

/* A task of the request that was not one. */
struct bad {
        struct bad *next;
        size_t index;
        struct om_error error;
};
struct om_publish_call {
        struct om_publish_ticket ticket; /* first: a ticket is its call */
        struct om_request *req;
        struct om_publish_call *next;
        struct bad *bad, **bad_tail; /* in order */
        size_t n, cap;               /* tasks of the request, bad ones included */
        bool several;
};

/* -- the pool ------------------------------------------------------------------------------------------------------ */

static void call_destroy(struct om_publish_call *p) {
        free(p->ticket.outcomes);
        free(p->ticket.ids);
        free(p);
}

static void call_free(struct om_dispatch *d, struct om_publish_call *p) {
        struct bad *next;

        for (struct bad *bad = p->bad; bad; bad = next) {
                next = bad->next;
                free(bad);
        }
        if (p->cap > POOL_TASKS || d->n_free_calls >= POOL_CALLS) {
                call_destroy(p);
                return;
        }
        p->next = d->free_calls;
        d->free_calls = p;
        d->n_free_calls++;
}

static struct om_publish_call *call_new(struct om_dispatch *d, struct om_request *req) {
        struct om_publish_call *p = d->free_calls;

        if (p) {
                d->free_calls = p->next;
                d->n_free_calls--;
        } else {
                p = calloc(1, sizeof *p);
        }
        if (!p)
                return NULL;
        p->req = req;
        p->bad = NULL;
        p->bad_tail = &p->bad;
        p->n = p->ticket.n = 0;
        return p;
}

/* Room for the outcomes of the tasks that were read. */
static int call_reserve(struct om_publish_call *p) {
        size_t cap = p->ticket.n < 4 ? 4 : p->ticket.n;

        if (p->cap >= p->ticket.n)
                return 0;
        free(p->ticket.outcomes);
        free(p->ticket.ids);
        p->ticket.outcomes = malloc(cap * sizeof *p->ticket.outcomes);
        p->ticket.ids = malloc(cap * sizeof *p->ticket.ids);
        p->cap = p->ticket.outcomes && p->ticket.ids ? cap : 0;
        return p->cap ? 0 : -ENOMEM;
}

/* Room for one more task of the request being read, used again: tasks are needed only while it is read. NULL: out of memory. */
static struct om_task *scratch(struct om_dispatch *d, size_t n) {
        size_t cap = d->n_scratch ? d->n_scratch * 2 : 16;
        struct om_task *tasks;

        if (n < d->n_scratch)
                return &d->scratch[n];
        tasks = reallocarray(d->scratch, cap, sizeof *tasks);
        if (!tasks)
                return NULL;
        d->scratch = tasks;
        d->n_scratch = cap;
        return &tasks[n];
}

void om_publish_calls_deinit(struct om_dispatch *d) {
        struct om_publish_call *next;

        for (struct om_publish_call *p = d->free_calls; p; p = next) {
                next = p->next;
                call_destroy(p);
        }
        d->free_calls = NULL;
        free(d->scratch);
        d->scratch = NULL;
}

/* -- answering ----------------------------------------------------------------------------------------------------- */

static void outcome_error(const struct om_outcome *outcome, struct om_error *e) {
        om_error_set(e, om_kind_of_errno(outcome->status), "%s", outcome->why ? outcome->why : strerror(-outcome->status));
}

static void put_task(struct om_buf *b, const struct om_publish_call *p, size_t i) {
        const struct om_outcome *outcome = &p->ticket.outcomes[i];
        struct om_error e;

        if (outcome->status < 0) {
                outcome_error(outcome, &e);
                om_buf_lit(b, "{\"error\":");
                om_rpc_put_error_object(b, &e);
                om_buf_putc(b, '}');
                return;
        }
        om_buf_lit(b, "{\"id\":");
        om_buf_json_span(b, om_span_of(outcome->duplicate ? outcome->id : p->ticket.ids[i]));
        om_buf_puts(b, outcome->duplicate ? ",\"duplicate\":true}" : "}");
}

static void put_results(struct om_buf *b, const struct om_publish_call *p) {
        const struct bad *bad = p->bad;
        size_t good = 0;

        om_buf_lit(b, "{\"results\":[");
        for (size_t i = 0; i < p->n; i++) {
                if (i)
                        om_buf_putc(b, ',');
                if (!bad || bad->index != i) {
                        put_task(b, p, good++);
                        continue;
                }
                om_buf_lit(b, "{\"error\":");
                om_rpc_put_error_object(b, &bad->error);
                om_buf_putc(b, '}');
                bad = bad->next;
        }
        om_buf_lit(b, "]}");
}

static void published(struct om_publish_ticket *ticket) {
        struct om_publish_call *p = (struct om_publish_call *) ticket;
        struct om_request *req = p->req;
        struct om_dispatch *d = req->core->dispatch;
        struct om_error e;
        struct om_buf *b;

        if (!p->several && ticket->outcomes[0].status < 0) {
                outcome_error(&ticket->outcomes[0], &e);
                om_request_error(req, &e);
        } else {
                b = om_request_begin(req);
                if (b && p->several)
                        put_results(b, p);
                else if (b)
                        put_task(b, p, 0);
                om_request_end(req);
        }
        call_free(d, p);
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

static int note_bad(struct om_publish_call *p, struct om_json *j) {
        struct bad *bad = calloc(1, sizeof *bad);
        struct om_json_value v;
        struct om_task task;
        char where[32];

        if (!bad)
                return -ENOMEM;
        /* Once more, to have its place in the message; and stepped over whole, wherever in it the fault was. */
        om_json_value(j, &v);
        snprintf(where, sizeof where, "tasks[%zu]", p->n);
        om_task_parse(v.text, where, &task, &bad->error);
        bad->index = p->n;
        *p->bad_tail = bad;
        p->bad_tail = &bad->next;
        return 0;
}

/* The array that comes next. */
static int read_tasks(struct om_dispatch *d, struct om_publish_call *p, struct om_json *j, struct om_error *e) {
        int r = om_json_enter_array(j);

        for (; r == 0 && om_json_next_element(j) > 0; p->n++) {
                struct om_json start = *j;
                struct om_task *task = scratch(d, p->ticket.n);

                if (p->n == OM_BATCH_MAX)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "tasks: at most %d may be published at once", OM_BATCH_MAX);
                if (!task)
                        return om_error_set_errno(e, ENOMEM, "task.publish");
                if (om_task_parse_at(j, "tasks", task, NULL) == 0) {
                        p->ticket.n++;
                        continue;
                }
                *j = start;
                if (note_bad(p, j) < 0)
                        return om_error_set_errno(e, ENOMEM, "task.publish");
        }
        return p->n ? 0 : om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "tasks: empty");
}

static int read_task(struct om_dispatch *d, struct om_publish_call *p, struct om_span object, struct om_error *e) {
        struct om_task *task = scratch(d, 0);
        int r = task ? om_task_parse(object, "task", task, e) : om_error_set_errno(e, ENOMEM, "task.publish");

        if (r == 0)
                p->ticket.n = p->n = 1;
        return r;
}

/* What nearly every request is, `tasks` and nothing else, is read as it comes: stepping over the array first would go over each content
 * once more. */
static int read_params(struct om_dispatch *d, struct om_publish_call *p, struct om_span params, struct om_error *e) {
        struct om_json_member members[] = {
                { .name = "task", .types = OM_JSON_OBJECT },
                { .name = "tasks", .types = OM_JSON_ARRAY },
                { .name = NULL },
        };
        struct om_json_value key;
        struct om_json j;
        bool begun;
        int r;

        om_json_init_valid(&j, params);
        begun = om_json_enter_object(&j) == 0 && om_json_next_key(&j, &key) > 0 && om_json_string_is(key, "tasks") &&
                om_json_peek(&j) == OM_JSON_ARRAY;
        p->several = begun;
        if (begun) {
                r = read_tasks(d, p, &j, e);
                if (r < 0 || om_json_next_key(&j, &key) == 0)
                        return r;
        }
        r = om_json_members(params, "params", members, e);
        if (r < 0)
                return r;
        if (!members[0].value.type == !members[1].value.type)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "params: either `task` or `tasks` must be there");
        if (begun)
                return 0; /* `task` stood beside it, and was null */
        p->several = members[1].value.type;
        if (!p->several)
                return read_task(d, p, members[0].value.text, e);
        om_json_init_valid(&j, members[1].value.text);
        return read_tasks(d, p, &j, e);
}

static int publish(struct om_request *req, struct om_span params, struct om_publish_call *p, struct om_error *e) {
        struct om_dispatch *d = req->core->dispatch;
        int r;

        if (req->core->stopping)
                return om_error_set(e, OM_UNAVAILABLE, "the daemon is stopping");
        p->ticket.done = published;
        r = read_params(d, p, params, e);
        if (r == 0 && call_reserve(p) < 0)
                r = om_error_set_errno(e, ENOMEM, "task.publish");
        if (r == 0 && p->ticket.n)
                r = om_dispatch_publish(d, &p->ticket, d->scratch, e);
        for (size_t i = 0; i < p->ticket.n; i++)
                om_task_deinit(&d->scratch[i]);
        return r;
}

void om_task_publish(struct om_request *req, struct om_span params) {
        struct om_dispatch *d = req->core->dispatch;
        struct om_publish_call *p = call_new(d, req);
        struct om_error e = OM_ERROR_INIT;

        if (!p) {
                om_error_set_errno(&e, ENOMEM, "task.publish");
                om_request_error(req, &e);
        } else if (publish(req, params, p, &e) < 0) {
                call_free(d, p);
                om_request_error(req, &e);
        } else if (p->ticket.n == 0) {
                published(&p->ticket); /* none of them was a task */
        }
}
