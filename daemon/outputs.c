/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an ack publishes: the tasks of its `publish`, and the reply that the task asked for.
 *
 * Always true:
 *   - everything is checked when the ack comes, so that an ack with a bad output changes nothing;
 *   - an output without an id of its own gets one that follows from the task, the agent and its place (output_id.c); the reply's place is
 *     behind any that a client may name;
 *   - texts are copied once, since the ack's frame is gone when the outputs go to the bus.
 * A task without `publish` and without `reply_to` costs a search for seven letters.
 *
 * Called by dispatch_finish.c. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "dispatch_internal.h"

#define REPLY_PLACE UINT64_MAX

/* By its underscore, which is rare in a record: a search for the whole word took six times as long. */
static bool asks_reply(struct om_span record) {
        static const char name[] = "\"reply_to\":";
        const char *end = record.p + record.len;

        for (const char *p = record.p; (p = memchr(p, '_', (size_t) (end - p))); p++)
                if (p - record.p >= 6 && end - p >= 5 && memcmp(p - 6, name, sizeof name - 1) == 0)
                        return true;
        return false;
}

void om_outputs_free(struct om_outputs *o) {
        if (!o)
                return;
        for (size_t i = 0; i < o->n; i++)
                om_task_deinit(&o->tasks[i]);
        free(o->tasks);
        free(o->bus_tasks);
        free(o->ticket.outcomes);
        free(o->ticket.ids);
        om_chunks_deinit(&o->text);
        free(o);
}

static int count_elements(struct om_span array, size_t *ret) {
        struct om_json j;
        struct om_json_value v;
        size_t n = 0;

        om_json_init_valid(&j, array);
        if (om_json_enter_array(&j) < 0)
                return -EINVAL;
        while (om_json_next_element(&j) > 0 && om_json_value(&j, &v) == 0)
                n++;
        *ret = n;
        return 0;
}

static struct om_outputs *outputs_alloc(struct om_lease *lease, size_t n) {
        struct om_outputs *o = calloc(1, sizeof *o);

        if (!o)
                return NULL;
        o->lease = lease;
        o->tasks = calloc(n, sizeof *o->tasks);
        o->ticket.outcomes = calloc(n, sizeof *o->ticket.outcomes);
        o->ticket.ids = calloc(n, sizeof *o->ticket.ids);
        if (o->tasks && o->ticket.outcomes && o->ticket.ids)
                return o;
        om_outputs_free(o);
        return NULL;
}

/* Fills in what follows from the task: id, causation, correlation, time. */
static int complete(struct om_outputs *o, struct om_task *output, const struct om_task *task, uint64_t place) {
        char id[OM_ID_LEN + 1];

        if (!output->id.p) {
                om_task_id_derive(task->id, o->lease->group->agent, place, id);
                output->id = om_chunks_copy(&o->text, om_span_of(id));
        }
        if (!output->causation_id.p)
                output->causation_id = om_chunks_copy(&o->text, task->id);
        if (!output->correlation_id.p)
                output->correlation_id = om_chunks_copy(&o->text, task->correlation_id);
        if (!output->created_at.p)
                output->created_ms = om_now_ms();
        return output->id.p && output->causation_id.p && (output->correlation_id.p || !task->correlation_id.p) ? 0 : -ENOMEM;
}

static int check(struct om_dispatch *d, const struct om_task *output, const char *where, struct om_error *e) {
        unsigned can = d->core->bus_ops->capabilities;
        int r = om_publish_supported(d, output, e);

        if (r == 0 && output->idempotency_key.p && (can & OM_BUS_EXACTLY_ONCE) && !(can & OM_BUS_DEDUPE))
                r = om_error_set(
                        e, OM_UNSUPPORTED, "the bus \"%s\" has no idempotency_key for what an ack publishes", d->core->bus_ops->name);
        if (r < 0)
                om_error_prefix(e, "%s", where);
        return r;
}

static int read_publish(struct om_outputs *o, struct om_span publish, const struct om_task *task, struct om_error *e) {
        struct om_span copy = om_chunks_copy(&o->text, publish);
        struct om_json j;
        struct om_json_value v;
        char where[40];
        int r;

        if (!copy.p)
                return om_error_set_errno(e, ENOMEM, "publish");
        om_json_init_valid(&j, copy);
        om_json_enter_array(&j);
        while (om_json_next_element(&j) > 0) {
                snprintf(where, sizeof where, "publish[%zu]", o->n);
                if (om_json_value(&j, &v) < 0)
                        return om_json_fault(&j, where, e);
                r = om_task_parse(v.text, where, &o->tasks[o->n], e);
                if (r < 0)
                        return r;
                o->n++;
                if (complete(o, &o->tasks[o->n - 1], task, o->n - 1) < 0)
                        return om_error_set_errno(e, ENOMEM, "publish");
                r = check(o->lease->group->d, &o->tasks[o->n - 1], where, e);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int add_reply(struct om_outputs *o, struct om_span result, const struct om_task *task, struct om_error *e) {
        struct om_task *reply = &o->tasks[o->n];

        *reply = (struct om_task){
                .topic = om_chunks_copy(&o->text, task->reply_to),
                .content = om_chunks_copy(&o->text, result),
                .tenant_id = om_chunks_copy(&o->text, task->tenant_id),
                .source = om_chunks_copy(&o->text, task->source),
                .webhook = om_chunks_copy(&o->text, task->webhook),
                .traceparent = om_chunks_copy(&o->text, task->traceparent),
        };
        o->n++;
        if (!reply->topic.p || !reply->content.p || complete(o, reply, task, REPLY_PLACE) < 0)
                return om_error_set_errno(e, ENOMEM, "a reply");
        return 0;
}

int om_outputs_new(struct om_lease *lease, struct om_span publish, struct om_span result, struct om_outputs **ret, struct om_error *e) {
        struct om_span record = lease->delivery->record;
        struct om_outputs *o = NULL;
        struct om_task task;
        size_t n = 0;
        int r;

        *ret = NULL;
        if (publish.p && count_elements(publish, &n) < 0)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "publish must be an array of tasks");
        if (n > OM_BATCH_MAX)
                return om_error_set(e, OM_LIMIT, "publish has %zu tasks; at most %d go with one ack", n, OM_BATCH_MAX);
        if (n == 0 && !asks_reply(record))
                return 0;
        r = om_task_parse(record, "task", &task, e);
        if (r < 0)
                return r;
        if (n == 0 && !task.reply_to.p)
                goto out;
        o = outputs_alloc(lease, n + 1);
        r = o ? 0 : om_error_set_errno(e, ENOMEM, "publish");
        if (r == 0 && n)
                r = read_publish(o, publish, &task, e);
        if (r == 0 && task.reply_to.p)
                r = add_reply(o, result, &task, e);
        if (r == 0) {
                o->ticket.n = o->n;
                *ret = o;
                o = NULL;
        }
out:
        om_outputs_free(o);
        om_task_deinit(&task);
        return r;
}

int om_outputs_bus_tasks(struct om_outputs *o) {
        struct om_task parts;

        if (o->bus_tasks)
                return 0;
        o->bus_tasks = calloc(o->n, sizeof *o->bus_tasks);
        if (!o->bus_tasks)
                return -ENOMEM;
        for (size_t i = 0; i < o->n; i++) {
                o->bus_tasks[i].task = &o->tasks[i];
                if (om_publish_copy(&o->text, &o->tasks[i], &parts, &o->bus_tasks[i].record) < 0) {
                        free(o->bus_tasks);
                        o->bus_tasks = NULL;
                        return -ENOMEM;
                }
        }
        return 0;
}

struct om_span om_record_id(struct om_span record) {
        /* The records that we write begin with it; one that a stranger wrote need not. */
        static const char head[] = "{\"id\":\"";
        const char *start, *end;

        if (record.len < sizeof head || memcmp(record.p, head, sizeof head - 1) != 0)
                return OM_SPAN_NONE;
        start = record.p + sizeof head - 1;
        end = memchr(start, '"', record.len - (sizeof head - 1));
        if (!end || memchr(start, '\\', (size_t) (end - start)))
                return OM_SPAN_NONE;
        return (struct om_span){ start, (size_t) (end - start) };
}
