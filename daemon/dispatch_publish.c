/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: tasks of all sessions, gathered into batches.
 *
 * Always true:
 *   - a batch gathers what comes until the bus takes it: at the end of the turn when there is room, later when batches are under way
 *     and the bus, or BATCHES_SENT, says wait; so batches grow exactly when round trips are slow;
 *   - batches leave in the order in which they were filled and a ticket's tasks are in one batch: the order of one connection's publishes
 *     is kept;
 *   - a task is copied once, as its record, into the batch's text; nothing is allocated for a task, batches and their memory are used
 * again;
 *   - publish_timeout_ms counts from the first task of a batch, whether it is with the bus by then or not;
 *   - what is gathered and under way is bounded by PENDING_BYTES and PENDING_TASKS; above that a publish is refused with `limit`.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "dispatch_internal.h"

enum {
        BATCHES_SENT = 32,     /* with the bus at a time */
        BATCH_BYTES = 4 << 20, /* a batch that waits is closed at this size, and at so many tasks */
        BATCH_TASKS = 8192,
        PENDING_BYTES = 128 << 20,
        PENDING_TASKS = 1 << 18,
        ENVELOPE_BYTES = 2 << 10, /* what stands around one task in a task.deliver, and more */
};

struct om_publish_slot {
        struct om_publish_ticket *ticket; /* NULL: answered already */
        size_t index;                     /* in the ticket */
        struct om_dedupe *check;
};
struct om_publish_batch {
        struct om_bus_publish op; /* first: an op is its batch */
        struct om_dispatch *d;
        struct om_publish_batch *next;
        struct om_deadline deadline;
        enum { BATCH_GATHERING, BATCH_QUEUED, BATCH_SENT } state;
        bool gaps; /* some tasks were answered by their keys */
        bool late; /* its time is over; it waits only for the checks of its keys */
        unsigned n_checks;
        unsigned n_holds; /* tickets of its tasks that get an outcome after the bus's answer, and may look at texts of this batch then */
        bool over;        /* all else is done */
        struct om_chunks text;
        size_t n, cap;
        size_t bytes;
        struct om_task *parts;
        struct om_bus_task *tasks;
        struct om_outcome *outcomes;
        struct om_publish_slot *slots;
        struct om_publish_ticket *early; /* tickets that need no bus: answered at the end of the turn */
};

/* -- records ------------------------------------------------------------------------------------------------------- */

/* The session allows a notification some KiB more than a frame of the client's, so what fitted a publish fits a delivery. */
size_t om_record_max(const struct om_core *core) { return (size_t) core->settings->max_frame_bytes + ENVELOPE_BYTES; }

static size_t record_bound(const struct om_task *t) {
        size_t text = t->id.len + t->topic.len + t->key.len + t->idempotency_key.len + t->correlation_id.len + t->causation_id.len +
                t->source.len + t->tenant_id.len + t->traceparent.len + t->reply_to.len;

        return 1024 + 6 * text + t->content.len + t->webhook.len + t->headers.len + t->created_at.len;
}

/* Where `part` stands in the record right after `*at`; the way the records are written, id, topic and content are found at once. */
static struct om_span found(struct om_span record, const char *before, size_t *at, struct om_span part) {
        size_t n = strlen(before);

        if (part.len + n > record.len - *at || memcmp(record.p + *at, before, n) != 0 || memcmp(record.p + *at + n, part.p, part.len) != 0)
                return OM_SPAN_NONE;
        *at += n + part.len;
        return (struct om_span){ record.p + *at - part.len, part.len };
}

static bool copy_part(struct om_chunks *text, struct om_span *part) {
        if (!part->p)
                return true;
        *part = om_chunks_copy(text, *part);
        return part->p != NULL;
}

int om_publish_copy(struct om_chunks *text, const struct om_task *task, struct om_task *ret_parts, struct om_span *ret_record) {
        struct om_buf *b = om_chunks_room(text, record_bound(task));
        size_t start, at = 0;
        struct om_span record, id, topic, content;

        if (!b)
                return -ENOMEM;
        start = b->len;
        om_task_write(b, task);
        if (!om_buf_ok(b))
                return -ENOMEM;
        record = (struct om_span){ b->data + start, b->len - start };

        *ret_record = record;
        *ret_parts = *task;
        ret_parts->arena = (struct om_arena){ 0 };
        id = found(record, "{\"id\":\"", &at, task->id);
        topic = id.p ? found(record, "\",\"topic\":\"", &at, task->topic) : OM_SPAN_NONE;
        content = topic.p ? found(record, "\",\"payload\":{\"content\":", &at, task->content) : OM_SPAN_NONE;
        if (id.p)
                ret_parts->id = id;
        if (topic.p)
                ret_parts->topic = topic;
        if (content.p)
                ret_parts->content = content;
        if ((!id.p && !copy_part(text, &ret_parts->id)) || (!topic.p && !copy_part(text, &ret_parts->topic)) ||
                (!content.p && !copy_part(text, &ret_parts->content)) || !copy_part(text, &ret_parts->key) ||
                !copy_part(text, &ret_parts->idempotency_key) || !copy_part(text, &ret_parts->correlation_id) ||
                !copy_part(text, &ret_parts->causation_id) || !copy_part(text, &ret_parts->source) ||
                !copy_part(text, &ret_parts->tenant_id) || !copy_part(text, &ret_parts->traceparent) ||
                !copy_part(text, &ret_parts->reply_to) || !copy_part(text, &ret_parts->webhook) || !copy_part(text, &ret_parts->headers) ||
                !copy_part(text, &ret_parts->created_at))
                return -ENOMEM;
        return 0;
}

int om_publish_supported(struct om_dispatch *d, const struct om_task *task, struct om_error *e) {
        const struct om_bus_ops *ops = d->core->bus_ops;
        const char *lacks = task->key.p && !(ops->capabilities & OM_BUS_KEYS)              ? "key"
                : task->priority && !(om_core_bus_capabilities(d->core) & OM_BUS_PRIORITY) ? "priority"
                : task->ttl_ms && !(ops->capabilities & OM_BUS_TTL)                        ? "ttl_ms"
                : task->delay_ms && !(ops->capabilities & OM_BUS_DELAY)                    ? "delay_ms"
                                                                                           : NULL;

        if (lacks)
                return om_error_set(e, OM_UNSUPPORTED, "the bus \"%s\" has no %s: publish the task without it, or use a bus that has",
                        ops->name, lacks);
        return 0;
}

/* -- batches ------------------------------------------------------------------------------------------------------- */

static void batch_free(struct om_publish_batch *b) {
        om_chunks_deinit(&b->text);
        free(b->parts);
        free(b->tasks);
        free(b->outcomes);
        free(b->slots);
        free(b);
}

static void batch_recycle(struct om_publish_batch *b) {
        struct om_dispatch *d = b->d;

        om_deadline_stop(&d->publish_deadlines, &b->deadline);
        b->over = b->n_holds > 0;
        if (b->over)
                return;
        om_chunks_clear(&b->text);
        d->publish_bytes -= b->bytes;
        d->publish_tasks -= b->n;
        d->n_publishes--;
        b->n = b->bytes = 0;
        b->late = false;
        b->next = d->free_publishes;
        d->free_publishes = b;
        om_dispatch_turn(d);
}

void om_publish_hold(struct om_publish_batch *b) { b->n_holds++; }

void om_publish_release(struct om_publish_batch *b) {
        if (--b->n_holds == 0 && b->over)
                batch_recycle(b);
}

static struct om_publish_batch *batch_gathering(struct om_dispatch *d) {
        struct om_publish_batch *b = d->publishing;

        if (b)
                return b;
        b = d->free_publishes;
        if (b)
                d->free_publishes = b->next;
        else
                b = calloc(1, sizeof *b);
        if (!b)
                return NULL;
        b->d = d;
        b->next = NULL;
        b->state = BATCH_GATHERING;
        d->publishing = b;
        d->n_publishes++;
        om_dispatch_turn(d);
        return b;
}

static int grow(void *array, size_t cap, size_t size) {
        void **p = array;
        void *bigger = reallocarray(*p, cap, size);

        if (!bigger)
                return -ENOMEM;
        *p = bigger;
        return 0;
}

static int batch_grow(struct om_publish_batch *b) {
        size_t cap = b->cap ? b->cap * 2 : 32;

        if (grow(&b->parts, cap, sizeof *b->parts) < 0 || grow(&b->tasks, cap, sizeof *b->tasks) < 0 ||
                grow(&b->outcomes, cap, sizeof *b->outcomes) < 0 || grow(&b->slots, cap, sizeof *b->slots) < 0)
                return -ENOMEM;
        b->cap = cap;
        return 0;
}

/* The text of an outcome: it lives as long as its batch, and that longer than the ticket's done(). */
static void outcome_set(struct om_publish_batch *b, struct om_outcome *outcome, int status, const char *why) {
        outcome->status = status;
        outcome->why = om_chunks_copy(&b->text, om_span_of(why)).p;
}

void om_publish_ticket_close(struct om_publish_ticket *ticket) {
        if (--ticket->n_open == 0)
                ticket->done(ticket);
}

/* -- outcomes ------------------------------------------------------------------------------------------------------ */

static void count_published(struct om_publish_batch *b, const struct om_task *t, struct om_topic_metrics **cell, struct om_span *topic) {
        struct om_core *core = b->d->core;

        if (!*cell || !om_span_eq(*topic, t->topic)) {
                *cell = om_metrics_topic(core->metrics, t->topic);
                *topic = t->topic;
        }
        if (*cell)
                (*cell)->published++;
        if (om_watch_mask(core->watch) & OM_EVENT_PUBLISH)
                om_watch_emit(core->watch, OM_EVENT_PUBLISH, &(struct om_watch_event){ .topic = t->topic, .id = t->id });
}

static void slot_close(struct om_publish_slot *slot, const struct om_outcome *outcome) {
        struct om_publish_ticket *ticket = slot->ticket;
        struct om_outcome *ret = &ticket->outcomes[slot->index];
        struct om_dedupe *check = slot->check;

        slot->ticket = NULL;
        slot->check = NULL;
        ret->status = outcome->status;
        ret->duplicate = outcome->duplicate;
        ret->why = outcome->why;
        if (outcome->duplicate)
                memcpy(ret->id, outcome->id, sizeof ret->id);
        if (check)
                om_dedupe_published(check, outcome->status, ticket);
        else
                om_publish_ticket_close(ticket);
}

static void batch_close(struct om_publish_batch *b) {
        struct om_daemon_metrics *m = om_metrics_daemon(b->d->core->metrics);
        struct om_topic_metrics *cell = NULL;
        struct om_span topic = OM_SPAN_NONE;

        m->bus_batches++;
        m->bus_tasks += b->n;
        for (size_t i = 0; i < b->n; i++) {
                if (b->outcomes[i].status == 0 && !b->outcomes[i].duplicate)
                        count_published(b, &b->parts[i], &cell, &topic);
                slot_close(&b->slots[i], &b->outcomes[i]);
        }
        om_metrics_changed(b->d->core->metrics);
        batch_recycle(b);
}

/* Takes out what was answered by its key. */
static void batch_compact(struct om_publish_batch *b) {
        size_t n = 0;

        for (size_t i = 0; i < b->n; i++) {
                if (!b->slots[i].ticket)
                        continue;
                if (n != i) {
                        b->parts[n] = b->parts[i];
                        b->tasks[n] = b->tasks[i];
                        b->slots[n] = b->slots[i];
                }
                n++;
        }
        b->d->publish_tasks -= b->n - n;
        b->n = n;
        b->gaps = false;
}

static void batch_failed(struct om_publish_batch *b, int status, const char *why) {
        if (b->gaps)
                batch_compact(b);
        for (size_t i = 0; i < b->n; i++)
                b->outcomes[i] = (struct om_outcome){ .status = status };
        if (b->n)
                outcome_set(b, &b->outcomes[0], status, why);
        for (size_t i = 1; i < b->n; i++)
                b->outcomes[i].why = b->outcomes[0].why;
        batch_close(b);
}

static void batch_timed_out(struct om_publish_batch *b) {
        char why[160];

        snprintf(why, sizeof why, "the bus did not confirm within %lld ms (PUBLISH_TIMEOUT_MS)%s",
                (long long) b->d->core->settings->publish_timeout_ms, b->state == BATCH_SENT ? "; it may still take effect" : "");
        batch_failed(b, -ETIMEDOUT, why);
}

static void batch_done(struct om_op *op, int status, const struct om_error *error) {
        struct om_publish_batch *b = (struct om_publish_batch *) op;

        b->d->n_publishes_sent--;
        om_room(b->d);
        if (status == -ECANCELED)
                batch_timed_out(b);
        else if (status < 0)
                batch_failed(b, status, error ? error->message : strerror(-status));
        else
                batch_close(b);
}

/* -- sending ------------------------------------------------------------------------------------------------------- */

static void queue_remove(struct om_dispatch *d, struct om_publish_batch *b) {
        struct om_publish_batch **p = &d->publish_queue;

        d->publish_last = NULL;
        while (*p != b) {
                d->publish_last = *p;
                p = &(*p)->next;
        }
        *p = b->next;
        if (*p)
                for (d->publish_last = *p; d->publish_last->next; d->publish_last = d->publish_last->next)
                        ;
        b->next = NULL;
}

static void late(struct om_deadline *dl) {
        struct om_publish_batch *b = (void *) ((char *) dl - offsetof(struct om_publish_batch, deadline));
        struct om_dispatch *d = b->d;

        if (b->state == BATCH_SENT) {
                om_op_cancel(&b->op.op);
                return;
        }
        b->late = true;
        om_dispatch_turn(d);
}

/* The batch is in no list. 0: it has gone, one way or the other; -ENOBUFS: the bus has no room for it now. */
static int batch_send(struct om_publish_batch *b) {
        struct om_dispatch *d = b->d;
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (b->late) {
                batch_timed_out(b);
                return 0;
        }
        if (b->gaps)
                batch_compact(b);
        if (b->n == 0) {
                batch_recycle(b);
                return 0;
        }
        for (size_t i = 0; i < b->n; i++) {
                b->tasks[i].task = &b->parts[i];
                b->outcomes[i].status = 0;
                b->outcomes[i].duplicate = false;
                b->outcomes[i].why = NULL;
        }
        b->op.op = (struct om_op){ .done = batch_done };
        b->op.tasks = b->tasks;
        b->op.n = b->n;
        b->op.outcomes = b->outcomes;
        r = d->core->bus_ops->publish(d->core->bus, &b->op, &e);
        if (r == 0) {
                b->state = BATCH_SENT;
                d->n_publishes_sent++;
                return 0;
        }
        if (r == -ENOBUFS && d->n_settles_sent + d->n_publishes_sent > 0)
                return r;
        batch_failed(b, r, e.kind != OM_OK ? e.message : strerror(-r));
        return 0;
}

static void answer_early(struct om_publish_batch *b) {
        struct om_publish_ticket *ticket;

        while ((ticket = b->early)) {
                b->early = ticket->next;
                ticket->done(ticket);
        }
}

static void batch_queue(struct om_dispatch *d) {
        struct om_publish_batch *b = d->publishing;

        b->state = BATCH_QUEUED;
        b->next = NULL;
        *(d->publish_queue ? &d->publish_last->next : &d->publish_queue) = b;
        d->publish_last = b;
        d->publishing = NULL;
}

static bool may_send(const struct om_dispatch *d) { return !d->publish_held && d->n_publishes_sent < BATCHES_SENT; }

void om_publish_flush(struct om_dispatch *d) {
        struct om_publish_batch *b, *next;

        b = d->publishing;
        if (b) {
                answer_early(b);
                if (b->n == 0 && !b->early) {
                        d->publishing = NULL;
                        batch_recycle(b);
                } else if (may_send(d) || b->late || b->n_checks || b->bytes > BATCH_BYTES || b->n > BATCH_TASKS) {
                        batch_queue(d);
                }
        }
        for (b = d->publish_queue; b; b = next) {
                next = b->next;
                if (b->late && !b->n_checks) {
                        queue_remove(d, b);
                        batch_timed_out(b);
                }
        }
        while ((b = d->publish_queue) && !b->n_checks && may_send(d)) {
                d->publish_queue = b->next;
                b->next = NULL;
                if (batch_send(b) == -ENOBUFS) {
                        b->next = d->publish_queue;
                        d->publish_queue = b;
                        if (!b->next)
                                d->publish_last = b;
                        d->publish_held = true;
                }
        }
}

/* -- gathering ----------------------------------------------------------------------------------------------------- */

static int add_task(
        struct om_publish_batch *b, struct om_publish_ticket *ticket, size_t index, const struct om_task *task, struct om_error *e) {
        struct om_dispatch *d = b->d;
        struct om_publish_slot *slot;
        struct om_bus_task *bus_task;

        if (d->core->bus_state != OM_BUS_READY)
                return om_error_set(e, OM_UNAVAILABLE, "the bus is away: %s",
                        d->core->bus_error.message[0] ? d->core->bus_error.message : "it is not connected yet");
        if (om_publish_supported(d, task, e) < 0)
                return om_kind_errno(e->kind);
        if ((b->n == b->cap && batch_grow(b) < 0) || om_publish_copy(&b->text, task, &b->parts[b->n], &b->tasks[b->n].record) < 0)
                return om_error_set_errno(e, ENOMEM, "a task to publish");
        bus_task = &b->tasks[b->n];
        if (bus_task->record.len > om_record_max(d->core))
                return om_error_set(e, OM_LIMIT, "the task takes %zu bytes, more than a frame may have (%lld)", bus_task->record.len,
                        (long long) d->core->settings->max_frame_bytes);
        slot = &b->slots[b->n];
        *slot = (struct om_publish_slot){ .ticket = ticket, .index = index };
        b->outcomes[b->n].duplicate = false;
        if (task->idempotency_key.p && !(d->core->bus_ops->capabilities & OM_BUS_DEDUPE)) {
                int r = om_dedupe_check(d, b, b->n, &b->parts[b->n], ticket, index, &slot->check, e);
                if (r != 0) {
                        ticket->n_open += r > 0;
                        return r < 0 ? om_kind_errno(e->kind) : 0;
                }
                b->n_checks++;
        }
        if (b->n == 0)
                om_deadline_start(&d->publish_deadlines, &b->deadline, d->core->settings->publish_timeout_ms, late);
        b->n++;
        b->bytes += bus_task->record.len;
        d->publish_tasks++;
        d->publish_bytes += bus_task->record.len;
        ticket->n_open++;
        return 0;
}

static void name_task(struct om_publish_ticket *ticket, size_t i, struct om_task *task, int64_t now_ms) {
        if (task->id.p) {
                memcpy(ticket->ids[i], task->id.p, task->id.len);
                ticket->ids[i][task->id.len] = '\0';
        } else {
                om_task_id_new(ticket->ids[i]);
                task->id = (struct om_span){ ticket->ids[i], OM_ID_LEN };
        }
        if (!task->created_at.p && !task->created_ms)
                task->created_ms = now_ms;
}

int om_dispatch_publish(struct om_dispatch *d, struct om_publish_ticket *ticket, struct om_task *tasks, struct om_error *e) {
        struct om_publish_batch *b;
        int64_t now_ms = om_now_ms();

        if (d->publish_tasks > PENDING_TASKS || d->publish_bytes > PENDING_BYTES)
                return om_error_set(e, OM_LIMIT, "%zu tasks (%zu bytes) wait for the bus already: publish again when some are answered",
                        d->publish_tasks, d->publish_bytes);
        b = batch_gathering(d);
        if (!b)
                return om_error_set_errno(e, ENOMEM, "a batch");
        ticket->n_open = 0;
        for (size_t i = 0; i < ticket->n; i++) {
                struct om_outcome *outcome = &ticket->outcomes[i];
                struct om_error why = OM_ERROR_INIT;
                int r;

                outcome->status = 0;
                outcome->duplicate = false;
                outcome->why = NULL;
                name_task(ticket, i, &tasks[i], now_ms);
                r = add_task(b, ticket, i, &tasks[i], &why);
                if (r < 0)
                        outcome_set(b, outcome, r, why.message);
        }
        if (ticket->n_open == 0) {
                ticket->next = b->early;
                b->early = ticket;
        }
        om_dispatch_turn(d);
        return 0;
}

void om_publish_checked(
        struct om_publish_batch *b, size_t index, int status, const struct om_error *e, bool duplicate, struct om_span first) {
        struct om_publish_slot *slot = &b->slots[index];
        struct om_task *parts = &b->parts[index];
        struct om_outcome outcome = { .status = 0 };
        struct om_task under_first = *parts;

        b->n_checks--;
        om_dispatch_turn(b->d);
        if (status == 0 && !duplicate) {
                if (om_span_eq(first, parts->id))
                        return;
                /* The first one died before it was published: this one takes its place, under its name. */
                under_first.id = first;
                if (om_publish_copy(&b->text, &under_first, parts, &b->tasks[index].record) == 0) {
                        memcpy(slot->ticket->ids[slot->index], first.p, first.len);
                        slot->ticket->ids[slot->index][first.len] = '\0';
                        return;
                }
                status = -ENOMEM;
        }
        if (status < 0)
                outcome_set(b, &outcome, status, e ? e->message : strerror(-status));
        outcome.duplicate = duplicate;
        if (duplicate)
                memcpy(outcome.id, first.p, first.len);
        om_dedupe_over(slot->check, status);
        slot->check = NULL;
        slot_close(slot, &outcome);
        b->gaps = true;
}

void om_publish_deinit(struct om_dispatch *d) {
        struct om_publish_batch *b, *next;

        if (d->publishing) {
                answer_early(d->publishing);
                batch_queue(d);
        }
        while ((b = d->publish_queue)) {
                d->publish_queue = b->next;
                batch_failed(b, -EAGAIN, "the daemon is stopping");
        }
        for (b = d->free_publishes; b; b = next) {
                next = b->next;
                batch_free(b);
        }
        d->publishing = d->publish_queue = d->free_publishes = NULL;
}
