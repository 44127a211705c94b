/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Result records: composed from the task's record, saved in batches, and handed to those who wait for them.
 *
 * Always true:
 *   - what one turn saves is one put; several puts may be under way. One that the storage has no room for waits, those behind it too;
 *   - a waiter is registered before the storage is asked, so a record saved in between is not missed;
 *   - a waiter is answered once: by a save of this daemon, by the storage, by its time, or by the end of its connection;
 *   - the storage is asked again only where other daemons can write to it (OM_STORE_SHARED), with growing pauses.
 *
 * Called by dispatch_finish.c (save) and methods_task.c (get). Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <utlist.h>

#include "dispatch_internal.h"

enum { POLL_MIN_MS = 50, POLL_MAX_MS = 2000 };

struct save_batch {
        struct om_store_put op; /* first: an op is its batch */
        struct om_results *r;
        struct save_batch *next;
        struct om_deadline deadline;
        struct om_chunks text;
        struct om_store_entry *entries;
        struct om_result_save **saves;
        size_t n, cap;
};

struct om_result_waiter {
        struct om_results *r;
        struct om_request *req; /* NULL: answered; it stays only for the storage's answer */
        struct om_client *client;
        struct om_result_waiter *client_prev, *client_next;
        struct om_result_waiter *id_prev, *id_next;
        struct waiters *of; /* of one task */
        struct event *timer;
        bool reading;
        int64_t until_ms, poll_ms;
        size_t agent_len; /* 0: any agent's */
        char agent[OM_NAME_MAX + 1];
};
struct waiters {
        UT_hash_handle hh;
        struct om_result_waiter *list;
        size_t len;
        char id[OM_NAME_MAX + 1];
};

struct om_results {
        struct om_core *core;
        struct om_turn_end turn_end;
        struct om_deadlines deadlines;
        struct save_batch *gathering, *queue, *last, *free;
        unsigned n_sent;
        bool held;                      /* the storage had no room: until something completes */
        struct om_result_save *unsaved; /* no memory for them */
        struct waiters *waiters;
};

static void wake(struct om_results *r, const struct om_store_entry *entry);

/* -- composing ----------------------------------------------------------------------------------------------------- */

/* `name` with what stands around it. */
static void member_raw(struct om_buf *b, struct om_span name, struct om_span raw) {
        om_buf_put_span(b, name);
        if (raw.p)
                om_buf_put_span(b, raw);
        else
                om_buf_lit(b, "null");
}

static void member_text(struct om_buf *b, struct om_span name, struct om_span text) {
        om_buf_put_span(b, name);
        if (text.p)
                om_buf_json_span(b, text);
        else
                om_buf_lit(b, "null");
}

static void write_result(struct om_buf *b, const struct om_core *core, const struct om_result *result, const struct om_task *t) {
        member_text(b, OM_SPAN("{\"task_id\":"), t->id);
        member_text(b, OM_SPAN(",\"topic\":"), t->topic);
        member_raw(b, OM_SPAN(",\"content\":"), t->content);
        member_raw(b, OM_SPAN(",\"webhook\":"), t->webhook);
        member_text(b, OM_SPAN(",\"reply_to\":"), t->reply_to);
        member_text(b, OM_SPAN(",\"correlation_id\":"), t->correlation_id);
        member_text(b, OM_SPAN(",\"causation_id\":"), t->causation_id);
        member_text(b, OM_SPAN(",\"source\":"), t->source);
        member_text(b, OM_SPAN(",\"tenant_id\":"), t->tenant_id);
        member_raw(b, OM_SPAN(",\"created_at\":"), t->created_at);
        om_buf_lit(b, ",\"delivery_attempts\":");
        om_buf_u64(b, t->delivery_attempts);
        member_text(b, OM_SPAN(",\"agent\":"), result->agent);
        member_text(b, OM_SPAN(",\"worker\":"), result->worker);
        member_text(b, OM_SPAN(",\"runner_id\":"), om_span_of(core->runner_id));
        om_buf_lit(b, ",\"attempts\":");
        om_buf_u64(b, result->attempts);
        if (result->result.p) {
                om_buf_lit(b, ",\"status\":\"completed\",\"result\":");
                om_buf_put_span(b, result->result);
        } else {
                member_text(b, OM_SPAN(",\"status\":\"failed\",\"error\":"), result->error);
                member_text(b, OM_SPAN(",\"error_type\":"), result->error_type);
        }
        om_buf_lit(b, ",\"timestamp\":");
        om_buf_json_time(b, result->at_ms);
        om_buf_putc(b, '}');
}

void om_result_write(struct om_buf *b, const struct om_core *core, const struct om_result *result) {
        struct om_task task = { .delivery_attempts = 0 };

        if (om_task_parse(result->record, "task", &task, NULL) < 0)
                task = (struct om_task){ 0 };
        write_result(b, core, result, &task);
        om_task_deinit(&task);
}

static size_t result_bound(const struct om_result *result) {
        /* Strings of the record may need escapes once more than they have; content and webhook go out as they came. */
        return 2048 + 6 * (result->record.len < 4096 ? result->record.len : 4096) + result->record.len + result->result.len +
                6 * (result->agent.len + result->worker.len + result->error.len + result->error_type.len);
}

/* -- saving -------------------------------------------------------------------------------------------------------- */

static void batch_free(struct save_batch *b) {
        om_chunks_deinit(&b->text);
        free(b->op.outcomes);
        free(b->entries);
        free(b->saves);
        free(b);
}

static struct save_batch *batch_gathering(struct om_results *r) {
        struct save_batch *b = r->gathering;

        if (b)
                return b;
        b = r->free;
        if (b)
                r->free = b->next;
        else
                b = calloc(1, sizeof *b);
        if (!b)
                return NULL;
        b->r = r;
        b->next = NULL;
        r->gathering = b;
        return b;
}

static int batch_grow(struct save_batch *b) {
        size_t cap = b->cap ? b->cap * 2 : 32;
        struct om_store_entry *entries = reallocarray(b->entries, cap, sizeof *entries);
        struct om_result_save **saves;
        struct om_outcome *outcomes;

        if (!entries)
                return -ENOMEM;
        b->entries = entries;
        saves = reallocarray(b->saves, cap, sizeof *saves);
        if (!saves)
                return -ENOMEM;
        b->saves = saves;
        outcomes = reallocarray(b->op.outcomes, cap, sizeof *outcomes);
        if (!outcomes)
                return -ENOMEM;
        b->op.outcomes = outcomes;
        b->cap = cap;
        return 0;
}

static int batch_add(struct save_batch *b, const struct om_result *result, struct om_result_save *save) {
        struct om_core *core = b->r->core;
        struct om_store_entry *entry;
        struct om_task task = { .delivery_attempts = 0 };
        struct om_span value;
        struct om_buf *text;
        size_t start;
        int r = -ENOMEM;

        if (b->n == b->cap && batch_grow(b) < 0)
                return -ENOMEM;
        if (om_task_parse(result->record, "task", &task, NULL) < 0)
                task = (struct om_task){ 0 };
        text = om_chunks_room(&b->text, result_bound(result));
        if (!text)
                goto out;
        start = text->len;
        write_result(text, core, result, &task);
        if (!om_buf_ok(text))
                goto out;
        value = (struct om_span){ text->data + start, text->len - start };
        entry = &b->entries[b->n];
        *entry = (struct om_store_entry){
                .value = value,
                .key = om_chunks_copy(&b->text, task.id.p ? task.id : OM_SPAN("")),
                .name = om_chunks_copy(&b->text, result->agent),
                .topic = om_chunks_copy(&b->text, task.topic),
                .status = result->result.p ? OM_SPAN("completed") : OM_SPAN("failed"),
                .saved_ms = result->at_ms,
                .expires_ms = core->settings->result_ttl_ms ? result->at_ms + core->settings->result_ttl_ms : 0,
        };
        if (!entry->key.p || !entry->name.p)
                goto out;
        b->saves[b->n++] = save;
        r = 0;
out:
        om_task_deinit(&task);
        return r;
}

/* Out of memory: told like a storage that is away, at the end of the turn. */
void om_results_save(struct om_results *r, const struct om_result *result, struct om_result_save *save) {
        struct save_batch *b = batch_gathering(r);

        if (!b || batch_add(b, result, save) < 0) {
                save->next = r->unsaved;
                r->unsaved = save;
        }
        om_loop_at_turn_end(r->core->loop, &r->turn_end);
}

static void batch_recycle(struct save_batch *b) {
        om_chunks_clear(&b->text);
        b->n = 0;
        b->next = b->r->free;
        b->r->free = b;
}

static void batch_failed(struct save_batch *b, int status, const struct om_error *e) {
        for (size_t i = 0; i < b->n; i++)
                b->saves[i]->done(b->saves[i], status, e);
        batch_recycle(b);
}

static void batch_close(struct save_batch *b) {
        struct om_error e = OM_ERROR_INIT;

        for (size_t i = 0; i < b->n; i++) {
                const struct om_outcome *outcome = &b->op.outcomes[i];

                if (outcome->status < 0)
                        om_error_set(&e, om_kind_of_errno(outcome->status), "the result could not be saved: %s",
                                outcome->why ? outcome->why : strerror(-outcome->status));
                else
                        wake(b->r, &b->entries[i]);
                b->saves[i]->done(b->saves[i], outcome->status, outcome->status < 0 ? &e : NULL);
        }
        batch_recycle(b);
}

static void batch_done(struct om_op *op, int status, const struct om_error *error) {
        struct save_batch *b = (struct save_batch *) op;
        struct om_results *r = b->r;
        struct om_error e = OM_ERROR_INIT;

        r->n_sent--;
        r->held = false;
        om_deadline_stop(&r->deadlines, &b->deadline);
        om_loop_at_turn_end(r->core->loop, &r->turn_end);
        om_calls_kick(r->core);
        if (status == 0) {
                batch_close(b);
                return;
        }
        if (error)
                e = *error;
        if (status == -ECANCELED)
                status = om_error_set(&e, OM_TIMEOUT, "the storage did not confirm within %lld ms (CALL_TIMEOUT_MS)",
                        (long long) r->core->settings->call_timeout_ms);
        else
                om_error_prefix(&e, "the result could not be saved");
        batch_failed(b, status, &e);
}

static int batch_send(struct save_batch *b) {
        struct om_results *r = b->r;
        struct om_error e = OM_ERROR_INIT;
        int status;

        for (size_t i = 0; i < b->n; i++) {
                b->op.outcomes[i].status = 0;
                b->op.outcomes[i].why = NULL;
        }
        b->op.op = (struct om_op){ .done = batch_done };
        b->op.kind = OM_STORE_RESULTS;
        b->op.entries = b->entries;
        b->op.n = b->n;
        status = r->core->store_ops->put(r->core->store, &b->op, &e);
        if (status == 0) {
                r->n_sent++;
                om_deadline_start_op(&r->deadlines, &b->deadline, r->core->settings->call_timeout_ms, &b->op.op);
                return 0;
        }
        if (status == -ENOBUFS && r->n_sent > 0)
                return status;
        if (e.kind == OM_OK)
                om_error_set_errno(&e, status, "the storage");
        om_error_prefix(&e, "the result could not be saved");
        batch_failed(b, status, &e);
        return 0;
}

static void turn_end(struct om_turn_end *t) {
        struct om_results *r = (void *) ((char *) t - offsetof(struct om_results, turn_end));
        struct om_result_save *save;
        struct save_batch *b = r->gathering;
        struct om_error e;

        while ((save = r->unsaved)) {
                r->unsaved = save->next;
                save->done(save, om_error_set_errno(&e, ENOMEM, "the result could not be saved"), &e);
        }
        if (b && b->n) {
                r->gathering = NULL;
                *(r->queue ? &r->last->next : &r->queue) = b;
                r->last = b;
        }
        while ((b = r->queue) && !r->held) {
                r->queue = b->next;
                b->next = NULL;
                if (batch_send(b) == -ENOBUFS) {
                        b->next = r->queue;
                        r->queue = b;
                        if (!b->next)
                                r->last = b;
                        r->held = true;
                }
        }
}

/* -- waiting ------------------------------------------------------------------------------------------------------- */

static void waiter_free(struct om_result_waiter *w) {
        event_free(w->timer);
        free(w);
}

/* Takes it out of all lists; the memory goes now, or when the storage has answered. */
static struct om_request *waiter_end(struct om_result_waiter *w) {
        struct om_request *req = w->req;
        struct waiters *of = w->of;

        w->req = NULL;
        event_del(w->timer);
        DL_DELETE2(w->client->waiters, w, client_prev, client_next);
        DL_DELETE2(of->list, w, id_prev, id_next);
        if (!of->list) {
                HASH_DEL(w->r->waiters, of);
                free(of);
        }
        w->of = NULL;
        if (!w->reading)
                waiter_free(w);
        return req;
}

static void reply_record(struct om_request *req, struct om_span record) {
        struct om_buf *b = om_request_begin(req);

        if (!b) {
                om_request_done(req);
                return;
        }
        om_buf_put_span(b, record);
        om_request_end(req);
}

static void wake(struct om_results *r, const struct om_store_entry *entry) {
        struct om_result_waiter *w, *tmp;
        struct waiters *of;

        if (!r->waiters)
                return;
        HASH_FIND(hh, r->waiters, entry->key.p, entry->key.len, of);
        if (!of)
                return;
        /* The last one takes `of` with it, and tmp is NULL by then. */
        DL_FOREACH_SAFE2(of->list, w, tmp, id_next) {
                if (!w->agent_len || om_span_eq((struct om_span){ w->agent, w->agent_len }, entry->name))
                        reply_record(waiter_end(w), entry->value);
        }
}

static void waiter_wait(struct om_result_waiter *w) {
        int64_t left = w->until_ms - om_clock_ms();
        struct om_error e;
        struct timeval tv;

        if (left <= 0) {
                om_error_set(&e, OM_TIMEOUT, "no result for task %s yet", w->of->id);
                om_request_error(waiter_end(w), &e);
                return;
        }
        if ((w->r->core->store_ops->capabilities & OM_STORE_SHARED) && w->poll_ms < left) {
                left = w->poll_ms;
                w->poll_ms = w->poll_ms * 2 < POLL_MAX_MS ? w->poll_ms * 2 : POLL_MAX_MS;
        }
        tv = (struct timeval){ .tv_sec = left / 1000, .tv_usec = left % 1000 * 1000 };
        if (event_add(w->timer, &tv) < 0) {
                om_error_set_errno(&e, ENOMEM, "task.get");
                om_request_error(waiter_end(w), &e);
        }
}

static void waiter_read(struct om_result_waiter *w);

static void waiter_has_read(struct om_call *c, int status, const struct om_error *e) {
        struct om_result_waiter *w = c->data;

        w->reading = false;
        if (!w->req)
                waiter_free(w); /* answered meanwhile */
        else if (status == 0)
                reply_record(waiter_end(w), c->get.entry.value);
        else if (status == -ENOENT || status == -EAGAIN || status == -ETIMEDOUT)
                waiter_wait(w); /* a storage that is away may be back in time */
        else
                om_request_error(waiter_end(w), e);
        om_call_free(c);
}

static void waiter_read(struct om_result_waiter *w) {
        struct om_call *c = om_call_new(w->r->core, NULL, OM_CALL_STORE_GET, waiter_has_read);

        if (!c) {
                waiter_wait(w);
                return;
        }
        c->data = w;
        c->get.kind = OM_STORE_RESULTS;
        c->get.key = om_call_copy(c, (struct om_span){ w->of->id, w->of->len });
        c->get.name = w->agent_len ? om_call_copy(c, (struct om_span){ w->agent, w->agent_len }) : OM_SPAN_NONE;
        w->reading = true;
        om_call_start(c);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_result_waiter *w = ctx;

        if (om_clock_ms() >= w->until_ms)
                waiter_wait(w);
        else
                waiter_read(w);
}

static struct waiters *waiters_of(struct om_results *r, struct om_span id) {
        struct waiters *of = NULL;

        HASH_FIND(hh, r->waiters, id.p, id.len, of);
        if (of)
                return of;
        of = calloc(1, sizeof *of);
        if (!of)
                return NULL;
        memcpy(of->id, id.p, id.len);
        of->len = id.len;
        HASH_ADD(hh, r->waiters, id, of->len, of);
        if (!of->hh.tbl) {
                free(of);
                return NULL;
        }
        return of;
}

static void wait_for(struct om_results *r, struct om_request *req, struct om_span id, struct om_span agent, int64_t wait_ms) {
        struct om_client *client = om_client_of(r->core->dispatch, req->session);
        struct om_result_waiter *w = client ? calloc(1, sizeof *w) : NULL;
        struct om_error e;

        if (w)
                w->timer = evtimer_new(om_loop_base(r->core->loop), on_timer, w);
        if (w && w->timer)
                w->of = waiters_of(r, id);
        if (!w || !w->of) {
                if (w && w->timer)
                        event_free(w->timer);
                free(w);
                om_error_set_errno(&e, ENOMEM, "task.get");
                om_request_error(req, &e);
                return;
        }
        w->r = r;
        w->req = req;
        w->client = client;
        w->until_ms = om_clock_ms() + wait_ms;
        w->poll_ms = POLL_MIN_MS;
        w->agent_len = agent.len;
        if (agent.len)
                memcpy(w->agent, agent.p, agent.len);
        DL_APPEND2(client->waiters, w, client_prev, client_next);
        DL_APPEND2(w->of->list, w, id_prev, id_next);
        waiter_read(w);
}

static void has_read(struct om_call *c, int status, const struct om_error *e) {
        struct om_error none;
        struct om_buf *b;

        if (status == -ENOENT) {
                om_error_set(&none, OM_NOT_FOUND, "no result for task %.*s%s%.*s", OM_PRI(c->get.key), c->get.name.p ? " of agent " : "",
                        OM_PRI(c->get.name));
                e = &none;
        }
        b = om_call_begin(c, status, e);
        if (!b)
                return;
        om_buf_put_span(b, c->get.entry.value);
        om_call_end(c);
}

void om_results_get(struct om_results *r, struct om_request *req, struct om_span id, struct om_span agent, int64_t wait_ms) {
        struct om_call *c;

        if (wait_ms > 0 && req->session && !req->notification) {
                wait_for(r, req, id, agent, wait_ms);
                return;
        }
        c = om_call_new(r->core, req, OM_CALL_STORE_GET, has_read);
        if (!c)
                return;
        c->get.kind = OM_STORE_RESULTS;
        c->get.key = om_call_copy(c, id);
        c->get.name = agent.len ? om_call_copy(c, agent) : OM_SPAN_NONE;
        om_call_start(c);
}

void om_results_client_closed(struct om_results *r, struct om_client *client) {
        struct om_error e;

        om_error_set(&e, OM_UNAVAILABLE, "the connection is closing");
        while (client->waiters)
                om_request_error(waiter_end(client->waiters), &e);
}

/* -- making and freeing -------------------------------------------------------------------------------------------- */

int om_results_new(struct om_core *core, struct om_results **ret) {
        struct om_results *r = calloc(1, sizeof *r);

        if (!r)
                return -ENOMEM;
        r->core = core;
        r->turn_end.fn = turn_end;
        if (om_deadlines_init(&r->deadlines, om_loop_base(core->loop)) < 0) {
                free(r);
                return -ENOMEM;
        }
        *ret = r;
        return 0;
}

void om_results_free(struct om_results *r) {
        struct save_batch *next;
        struct waiters *of, *tmp;
        struct om_error e;

        if (!r)
                return;
        om_error_set(&e, OM_UNAVAILABLE, "the daemon is stopping");
        HASH_ITER (hh, r->waiters, of, tmp) {
                while (of->list->id_next)
                        om_request_error(waiter_end(of->list), &e);
                om_request_error(waiter_end(of->list), &e);
        }
        om_loop_forget_turn_end(r->core->loop, &r->turn_end);
        if (r->gathering)
                batch_free(r->gathering);
        for (struct save_batch *b = r->queue; b; b = next) {
                next = b->next;
                batch_free(b);
        }
        for (struct save_batch *b = r->free; b; b = next) {
                next = b->next;
                batch_free(b);
        }
        om_deadlines_deinit(&r->deadlines);
        free(r);
}
