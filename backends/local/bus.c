/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The embedded bus as the core sees it: each call becomes a message to the bus thread, each turn of that thread comes back as one post.
 *
 * Always true:
 *   - inputs are copied into the message before a call returns; the bus thread reads nothing of the core's, and writes only outputs that
 * are ours until done();
 *   - messages are answered in the order in which turns took them; within a post completions come before deliveries, so a subscribe() is
 *     complete before its first delivery, and after what was taken back: a settlement of the same turn frees the delivery;
 *   - want() costs an exchange of one word: at most one message a sub is under way, and it carries how many deliveries the core had got
 * when it was said, so that those still on the way are not given twice;
 *   - a sub and what was on its way to it are freed when the bus thread has let go of it, at the end of that post.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "state.h"

enum { OPS_MAX = 8192 };
#define BYTES_MAX ((size_t) 64 << 20)
#define WANT_UNDER_WAY ((uint64_t) 1 << 63)

/* -- messages ------------------------------------------------------------------------------------------------------ */

static int admit(struct om_bus *b, size_t bytes, struct om_error *e) {
        if (b->in_flight >= OPS_MAX || (b->in_flight && b->in_flight_bytes + bytes > BYTES_MAX))
                return om_error_set(e, OM_LIMIT, "embedded bus: too much is under way");
        return 0;
}

static void submit(struct om_bus *b, struct msg *m, enum msg_type type, struct om_op *op, size_t bytes) {
        m->type = type;
        m->bus = b;
        m->op = op;
        m->bytes = bytes;
        m->error = (struct om_error) OM_ERROR_INIT;
        if (op) {
                op->cancel = NULL; /* the disk answers, or fails, in its own time */
                op->backend = m;
        }
        b->in_flight++;
        b->in_flight_bytes += bytes;
        b->host->ops->worker_submit(b->worker, &m->work);
}

static struct om_span put_span(char **p, struct om_span s) {
        struct om_span copy = { s.p ? *p : NULL, s.len };

        if (s.len)
                memcpy(*p, s.p, s.len);
        *p += s.len;
        return copy;
}

static int task_check(const struct om_bus_task *t, struct om_error *e) {
        const struct om_task *task = t->task;

        if (task->topic.len == 0 || task->topic.len > OM_TOPIC_MAX || task->id.len > OM_NAME_MAX ||
                task->idempotency_key.len > OM_NAME_MAX || task->priority > OM_PRIORITY_MAX || task->ttl_ms < 0 || task->delay_ms < 0 ||
                !t->record.p || t->record.len > UINT32_MAX / 2)
                return om_error_set(e, OM_INVALID, "embedded bus: not a checked task");
        return 0;
}

static size_t task_bytes(const struct om_bus_task *t) {
        return t->record.len + t->task->topic.len + (t->task->idempotency_key.p ? t->task->idempotency_key.len + t->task->id.len : 0);
}

static void task_copy(struct publish_item *to, const struct publish_item *before, const struct om_bus_task *t, char **p) {
        const struct om_task *task = t->task;

        /* Tasks of a batch mostly share their topic. */
        to->topic = before && om_span_eq(before->topic, task->topic) ? before->topic : put_span(p, task->topic);
        to->record = put_span(p, t->record);
        if (task->idempotency_key.p) {
                to->idempotency_key = put_span(p, task->idempotency_key);
                to->id = put_span(p, task->id);
        }
        if (task->key.p) {
                to->key = hash64(task->key.p, task->key.len, 0);
                to->key += to->key == 0;
        }
        to->ttl_ms = task->ttl_ms;
        to->delay_ms = task->delay_ms;
        to->lane = (uint8_t) (OM_PRIORITY_MAX - task->priority);
}

/* -- opening and closing ------------------------------------------------------------------------------------------- */

static const char *const durabilities[] = { "always", "interval", "memory", NULL };
static const struct om_option options[] = {
        { "durability", OM_OPTION_ENUM, offsetof(struct local_settings, durability), "always", durabilities, 0, 0,
                "always: synced before it is acknowledged; interval: synced within sync_interval_ms; memory: left to the kernel." },
        { "sync_interval_ms", OM_OPTION_MS, offsetof(struct local_settings, sync_interval_ms), "1000", NULL, 1, 3600000,
                "With durability=interval, how long a power cut may reach back." },
        { "retention_ms", OM_OPTION_MS, offsetof(struct local_settings, retention_ms), "0", NULL, 0, 0,
                "How long finished tasks are kept for replay; 0 deletes them at once." },
        { "max_bytes", OM_OPTION_BYTES, offsetof(struct local_settings, max_bytes), "256G", NULL, 0, 0,
                "Bytes of tasks that all topics together may hold; above it a publish is refused. 0: no limit." },
        { "max_topic_bytes", OM_OPTION_BYTES, offsetof(struct local_settings, max_topic_bytes), "0", NULL, 0, 0,
                "Bytes of tasks that one topic may hold; above it a publish is refused. 0: no limit." },
        { "idempotency_window_ms", OM_OPTION_MS, offsetof(struct local_settings, idempotency_window_ms), "24h", NULL, 0, 0,
                "How long an idempotency key is remembered; 0: not at all." },
        { .name = NULL },
};

static void bus_free(struct om_bus *b) {
        env_unlock(b);
        free(b->heap);
        free(b->redelivered);
        free(b->path);
        free(b);
}

static void ready(struct om_post *post) {
        struct om_bus *b = (struct om_bus *) (void *) ((char *) post - offsetof(struct om_bus, ready));

        b->events->state(b->core, OM_BUS_READY, NULL);
}

static int find_folder(struct om_bus *b, struct om_url *url, struct om_error *e) {
        int r;

        if (url->n_hosts || url->user)
                return om_error_set(e, OM_INVALID,
                        "embedded bus: a folder is expected after \"local:\", as in local:/var/lib/omnidaemon/bus, not a host");
        if (url->path && url->path[0])
                b->path = strdup(url->path);
        else if (asprintf(&b->path, "%s/bus", b->host->state_dir) < 0)
                b->path = NULL;
        if (!b->path)
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        r = om_mkdirs(b->path, e);
        return r ? r : env_lock(b, e);
}

static int local_open(
        struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        struct om_bus *b = calloc(1, sizeof *b);
        int r;

        if (!b)
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        if (!om_local_seed)
                om_local_seed = om_random_u64() | 1;
        b->host = host;
        b->events = events;
        b->core = core;
        b->lock_fd = -1;
        b->jobs_end = &b->jobs;
        b->done_end = &b->done;
        b->marks_due = b->sync_due = INT64_MAX;
        b->due_delayed = b->due_ttl = b->due_dedupe = b->due_kept = INT64_MAX;
        b->now_ms = om_now_ms();
        b->ready.fn = ready;
        r = om_options_read(options, url, &b->settings, e);
        if (!r)
                r = find_folder(b, url, e);
        if (!r && env_open(b, e))
                r = om_kind_errno(OM_UNAVAILABLE);
        if (!r) {
                int code = model_load(b);

                if (code)
                        r = env_error(e, b, code, "cannot read");
        }
        if (!r)
                r = host->ops->worker_new(host, "bus-local", bus_turn, b, &b->worker, e);
        if (r) {
                model_free(b);
                env_close(b);
                bus_free(b);
                return r;
        }
        om_host_post(host, &b->ready);
        *ret = b;
        /* Jobs that a death interrupted, and timers, are found by a first turn. */
        b->start_msg.type = MSG_START;
        host->ops->worker_submit(b->worker, &b->start_msg.work);
        return 0;
}

static void stopped(struct om_post *post) {
        struct om_bus *b = (struct om_bus *) (void *) ((char *) post - offsetof(struct om_bus, stopped));
        struct om_op *op = b->close_op;

        op->done(op, b->close_msg.status, &b->close_msg.error);
}

static int local_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        b->close_op = op;
        op->cancel = NULL;
        submit(b, &b->close_msg, MSG_CLOSE, NULL, 0);
        b->stopped.fn = stopped;
        b->host->ops->worker_stop(b->worker, &b->stopped);
        return 0;
}

/* -- operations ---------------------------------------------------------------------------------------------------- */

static int local_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        size_t bytes = sizeof(struct msg_publish) + op->n * sizeof(struct publish_item);
        struct msg_publish *m;
        int r = 0;
        char *p;

        for (size_t i = 0; i < op->n && !r; i++) {
                r = task_check(&op->tasks[i], e);
                bytes += r ? 0 : task_bytes(&op->tasks[i]);
        }
        if (!r)
                r = admit(b, bytes, e);
        if (r)
                return r;
        m = malloc(bytes);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        memset(m, 0, sizeof *m + op->n * sizeof m->items[0]);
        m->outcomes = op->outcomes;
        m->n = op->n;
        p = (char *) &m->items[op->n];
        for (size_t i = 0; i < op->n; i++)
                task_copy(&m->items[i], i ? &m->items[i - 1] : NULL, &op->tasks[i], &p);
        submit(b, &m->m, MSG_PUBLISH, &op->op, bytes);
        return 0;
}

static int local_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        struct msg_subscribe *m;
        int r = admit(b, sizeof *m, e);

        if (r)
                return r;
        if (op->topic.len == 0 || op->topic.len > OM_TOPIC_MAX || op->agent.len == 0 || op->agent.len > OM_NAME_MAX)
                return om_error_set(e, OM_INVALID, "embedded bus: topic or agent is empty or too long");
        m = calloc(1, sizeof *m);
        if (m)
                m->sub = calloc(1, sizeof *m->sub);
        if (!m || !m->sub) {
                free(m);
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        }
        m->sub->bus = b;
        m->sub->core = op->core;
        m->start = op->start;
        m->start_ms = op->start_ms;
        m->topic_len = op->topic.len;
        memcpy(m->topic, op->topic.p, op->topic.len);
        m->agent_len = op->agent.len;
        memcpy(m->agent, op->agent.p, op->agent.len);
        submit(b, &m->m, MSG_SUBSCRIBE, &op->op, sizeof *m);
        return 0;
}

static void local_unsubscribe(struct om_bus_sub *s) {
        s->closed = true;
        s->close_msg.sub = s;
        submit(s->bus, &s->close_msg, MSG_UNSUBSCRIBE, NULL, 0);
}

static void local_want(struct om_bus_sub *s, unsigned n) {
        uint64_t word = WANT_UNDER_WAY | (uint64_t) (n & 0x7fffffff) << 32 | s->delivered;

        if (atomic_exchange(&s->want_word, word) & WANT_UNDER_WAY)
                return;
        s->want_msg.type = MSG_WANT;
        s->want_msg.sub = s;
        s->bus->host->ops->worker_submit(s->bus->worker, &s->want_msg.work);
}

static size_t letter_bytes(const struct om_dead_letter *l) { return l->record.len + l->error.len + l->error_type.len + l->worker.len; }

static int settle_measure(struct om_bus_settle *op, size_t *ret_bytes, size_t *ret_outputs, struct om_error *e) {
        size_t bytes = sizeof(struct msg_settle) + op->n * sizeof(struct settle_item), n = 0;

        for (size_t i = 0; i < op->n; i++) {
                const struct om_settlement *s = &op->items[i];

                if ((unsigned) s->verdict > OM_DEAD || (s->verdict == OM_DEAD && !s->letter))
                        return om_error_set(e, OM_INVALID, "embedded bus: not a verdict");
                if (s->verdict == OM_DEAD)
                        bytes += letter_bytes(s->letter) + (s->letter->record.p ? 0 : s->delivery->record.len);
                for (size_t j = 0; s->verdict == OM_ACK && j < s->n_outputs; j++, n++) {
                        int r = task_check(&s->outputs[j], e);

                        if (r)
                                return r;
                        bytes += sizeof(struct publish_item) + task_bytes(&s->outputs[j]);
                }
        }
        *ret_bytes = bytes;
        *ret_outputs = n;
        return 0;
}

static int local_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        struct publish_item *outputs;
        struct msg_settle *m;
        size_t bytes = 0, n_outputs = 0;
        char *p;
        int r = settle_measure(op, &bytes, &n_outputs, e);

        if (!r)
                r = admit(b, bytes, e);
        if (r)
                return r;
        m = malloc(bytes);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        memset(m, 0, sizeof *m + op->n * sizeof m->items[0] + n_outputs * sizeof *outputs);
        m->n = op->n;
        outputs = (struct publish_item *) &m->items[op->n];
        p = (char *) (outputs + n_outputs);
        for (size_t i = 0; i < op->n; i++) {
                const struct om_settlement *s = &op->items[i];
                struct settle_item *item = &m->items[i];

                item->delivery = (struct local_delivery *) s->delivery;
                item->verdict = s->verdict;
                item->due_ms = s->due_ms;
                if (s->verdict == OM_DEAD) {
                        item->letter = *s->letter;
                        item->letter.record = put_span(&p, s->letter->record.p ? s->letter->record : s->delivery->record);
                        item->letter.error = put_span(&p, s->letter->error);
                        item->letter.error_type = put_span(&p, s->letter->error_type);
                        item->letter.worker = put_span(&p, s->letter->worker);
                }
                if (s->verdict != OM_ACK || !s->n_outputs)
                        continue;
                item->outputs = outputs;
                item->n_outputs = s->n_outputs;
                for (size_t j = 0; j < s->n_outputs; j++)
                        task_copy(outputs++, j ? &item->outputs[j - 1] : NULL, &s->outputs[j], &p);
        }
        submit(b, &m->m, MSG_SETTLE, &op->op, bytes);
        return 0;
}

static size_t ids_bytes(const struct om_span *ids, size_t n) {
        size_t bytes = n * sizeof *ids;

        for (size_t i = 0; i < n; i++)
                bytes += ids[i].len;
        return bytes;
}

static struct om_span *put_ids(struct om_span *to, const struct om_span *ids, size_t n, char **p) {
        for (size_t i = 0; i < n; i++)
                to[i] = put_span(p, ids[i]);
        return to;
}

static int local_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        size_t bytes = sizeof(struct msg_query) + op->topic.len + op->agent.len + op->cursor.len + ids_bytes(op->ids, op->n_ids);
        struct msg_query *m;
        int r = admit(b, bytes, e);
        char *p;

        if (r)
                return r;
        m = calloc(1, bytes);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        p = (char *) (m + 1) + op->n_ids * sizeof *op->ids;
        m->ids = put_ids((struct om_span *) (m + 1), op->ids, op->n_ids, &p);
        m->n_ids = op->n_ids;
        m->topic = put_span(&p, op->topic);
        m->agent = put_span(&p, op->agent);
        m->cursor = put_span(&p, op->cursor);
        submit(b, &m->m, MSG_QUERY, &op->op, bytes);
        return 0;
}

static int local_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        size_t bytes = sizeof(struct msg_change) + op->topic.len + op->agent.len + ids_bytes(op->ids, op->n_ids);
        struct msg_change *m;
        int r = admit(b, bytes, e);
        char *p;

        if (!r && (unsigned) op->type > OM_CHANGE_SEEK)
                r = om_error_set(e, OM_INVALID, "embedded bus: not a change");
        if (r)
                return r;
        m = calloc(1, bytes);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "embedded bus");
        p = (char *) (m + 1) + op->n_ids * sizeof *op->ids;
        m->ids = put_ids((struct om_span *) (m + 1), op->ids, op->n_ids, &p);
        m->n_ids = op->n_ids;
        m->topic = put_span(&p, op->topic);
        m->agent = put_span(&p, op->agent);
        m->what = op->type;
        m->start = op->start;
        m->start_ms = op->start_ms;
        m->delete_dead_letters = op->delete_dead_letters;
        submit(b, &m->m, MSG_CHANGE, &op->op, bytes);
        return 0;
}

/* -- what comes back ----------------------------------------------------------------------------------------------- */

void slab_unref(struct slab *s) {
        if (--s->refs == 0)
                free(s);
}

static void settle_done(struct msg_settle *m) {
        struct om_bus_settle *op = (struct om_bus_settle *) m->m.op;
        int status = m->m.status;

        for (size_t i = 0; i < m->n && !status; i++) {
                op->items[i].outcome.status = m->items[i].status;
                op->items[i].outcome.why = m->items[i].why;
        }
        op->op.done(&op->op, status, &m->m.error);
        /* A verdict that was not taken leaves the delivery with the core. */
        for (size_t i = 0; i < m->n && !status; i++)
                if (m->items[i].status == 0 || m->items[i].status == -ESTALE)
                        slab_unref(m->items[i].delivery->slab);
}

static void complete(struct om_bus *b, struct msg *m) {
        struct om_op *op = m->op;

        b->in_flight--;
        b->in_flight_bytes -= m->bytes;
        switch (m->type) {
        case MSG_SETTLE:
                settle_done((struct msg_settle *) m);
                break;
        case MSG_SUBSCRIBE:
                if (m->status) {
                        free(((struct msg_subscribe *) m)->sub);
                } else {
                        ((struct om_bus_subscribe *) op)->ret_sub = ((struct msg_subscribe *) m)->sub;
                        ((struct om_bus_subscribe *) op)->ret_created = ((struct msg_subscribe *) m)->created;
                }
                op->done(op, m->status, &m->error);
                break;
        case MSG_CHANGE:
                ((struct om_bus_change *) op)->ret_n = ((struct msg_change *) m)->n;
                op->done(op, m->status, &m->error);
                break;
        case MSG_PUBLISH:
        case MSG_QUERY:
                op->done(op, m->status, &m->error);
                break;
        case MSG_UNSUBSCRIBE:
        case MSG_WANT:
        case MSG_START:
        case MSG_CLOSE:
                return;
        }
        free(m);
}

static void sub_free(struct om_bus_sub *s) {
        struct local_delivery *next;

        for (struct local_delivery *d = s->out; d; d = next) {
                next = d->next;
                slab_unref(d->slab);
        }
        free(s);
}

/* After close: groups that were still served, with what was out, end here. */
static void local_destroy(struct om_bus *b) {
        while (b->subs) {
                struct om_bus_sub *s = b->subs;

                b->subs = s->next;
                sub_free(s);
        }
        bus_free(b);
}

static void run_batch(struct om_bus *b, struct batch *batch) {
        struct om_bus_sub *s = batch->sub;

        if (s->closed || !batch->n)
                return;
        if (batch->revoked) {
                for (size_t i = 0; i < batch->n; i++)
                        batch->items[i]->gone = true;
                b->events->revoked(s->core, batch->items, batch->n);
                return;
        }
        s->delivered += (uint32_t) batch->n;
        b->events->deliver(s->core, batch->items, batch->n);
}

static void run_batches(struct om_bus *b, struct news *n, bool revoked) {
        for (struct batch **p = &n->batches; *p;) {
                struct batch *batch = *p;

                if (batch->revoked != revoked) {
                        p = &batch->next;
                        continue;
                }
                *p = batch->next;
                run_batch(b, batch);
                free(batch);
        }
}

void news_run(struct om_post *post) {
        struct news *n = (struct news *) (void *) ((char *) post - offsetof(struct news, post));
        struct om_bus *b = n->bus;
        struct msg *next_msg, *ended = NULL;

        if (n->state_changed)
                b->events->state(b->core, n->state, &n->error);
        run_batches(b, n, true);
        for (struct msg *m = n->done; m; m = next_msg) {
                next_msg = m->next;
                if (m->type == MSG_UNSUBSCRIBE) { /* batches below may still name it */
                        m->next = ended;
                        ended = m;
                }
                complete(b, m);
        }
        run_batches(b, n, false);
        for (struct expired_note *x = n->expired, *next; x; x = next) {
                next = x->next;
                if (!x->sub->closed)
                        b->events->expired(x->sub->core, x->n);
                free(x);
        }
        for (; ended; ended = next_msg) {
                next_msg = ended->next;
                sub_free(ended->sub);
        }
        if (post->fn == news_run)
                free(n);
}

static const char *const schemes[] = { "local", NULL };
extern const struct om_bus_ops om_local_bus_ops; /* the registry's */
const struct om_bus_ops om_local_bus_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "local",
        .schemes = schemes,
        .doc = "Embedded: LMDB in a folder of this host, no server; one daemon a folder.",
        .capabilities = OM_BUS_PRIORITY | OM_BUS_TTL | OM_BUS_DELAY | OM_BUS_KEYS | OM_BUS_PATTERNS | OM_BUS_DEDUPE | OM_BUS_EXACTLY_ONCE |
                OM_BUS_REPLAY,
        .options = options,
        .lease_ms = 0,
        .open = local_open,
        .publish = local_publish,
        .subscribe = local_subscribe,
        .unsubscribe = local_unsubscribe,
        .want = local_want,
        .settle = local_settle,
        .query = local_query,
        .change = local_change,
        .close = local_close,
        .destroy = local_destroy,
};
