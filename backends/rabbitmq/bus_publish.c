/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: each task is one message to the exchange with its topic as the routing key, all of a call go out in one turn, and the call
 * completes with the last confirm. One with a delay goes to the topic's queue of the highest level that is not longer, and from there to
 * the exchange; what is left of the delay is waited for by each group (bus_deliver.c). What no queue was bound for comes back: the topic's
 * queues are made again, and it is sent once more.
 *
 * Loop thread.
 */
#include "bus_state.h"

struct publish;
struct item {
        struct publication pub; /* first */
        struct wait wait, delay_wait;
        struct publish *job;
        struct topic *topic;
        unsigned level;
        bool again;
        char id[OM_NAME_MAX + 1];
};
struct publish {
        struct om_job job; /* first */
        struct om_outcome *outcomes;
        size_t n, left, refused;
        struct om_error error;
        struct item items[];
};

static void publish_free(struct om_job *j) {
        struct publish *m = (struct publish *) j;

        for (size_t i = 0; i < m->n; i++)
                rmq_publication_deinit(&m->items[i].pub);
        free(m);
}

static void finished(struct publish *m) {
        /* Away is away for all of it. */
        if (m->refused == m->n && m->n)
                om_job_over(&m->job, om_kind_errno(OM_UNAVAILABLE), &m->error);
        else
                om_job_over(&m->job, 0, NULL);
}

static void item_done(struct item *it, int status, const char *why) {
        struct publish *m = it->job;
        size_t i = (size_t) (it - m->items);

        if (!om_job_is_cancelled(&m->job)) {
                m->outcomes[i].status = status;
                m->outcomes[i].why = why;
        }
        if (status == -EAGAIN) {
                m->refused++;
                om_error_set(&m->error, OM_UNAVAILABLE, "%s", why ? why : "RabbitMQ: not connected");
        }
        if (--m->left == 0)
                finished(m);
}

static void sent(struct publication *p, int status, const char *why) {
        struct item *it = (struct item *) p;

        it->topic->publishing--;
        if (status == 0 && !it->level)
                it->topic->log_own++;
        if (status == -ENOENT && it->topic->foreign)
                why = "RabbitMQ: there is no queue of this name (queue:NAME publishes to one that is there)";
        else if (status == -ENOENT && !it->again) {
                it->again = true;
                rmq_topic_lost(it->topic);
                rmq_topic_need(it->topic, &it->wait);
                return;
        }
        item_done(it, status, why);
}

static void cannot(struct item *it, int status, const struct om_error *e) {
        if (status != -EAGAIN)
                om_host_log(it->pub.bus->host, OM_LOG_WARNING, "topic %s: %s", it->topic->name, e->message);
        item_done(it, status,
                status == -EAGAIN           ? "RabbitMQ: not connected"
                        : status == -ENOMEM ? "out of memory"
                        : status == -ENOBUFS
                        ? "RabbitMQ: a limit of the virtual host is reached: it takes no more queues (set_vhost_limits)"
                        : status == -EACCES
                        ? "RabbitMQ: the user of the URL lacks a permission to make the topic's queues; the log of the daemon says which"
                        : status == -ENOENT ? "RabbitMQ: there is no queue of this name"
                                            : "RabbitMQ: the topic's queues cannot be made; the log of the daemon says why");
}

static void go(struct item *it) {
        it->topic->publishing++;
        rmq_publication_send(&it->pub);
}

static void delay_there(struct wait *w, int status, const struct om_error *e) {
        struct item *it = (void *) ((char *) w - offsetof(struct item, delay_wait));

        if (status < 0)
                cannot(it, status, e);
        else
                go(it);
}

static void topic_there(struct wait *w, int status, const struct om_error *e) {
        struct item *it = (void *) ((char *) w - offsetof(struct item, wait));

        if (status < 0)
                cannot(it, status, e);
        else if (it->level)
                rmq_queue_need(it->topic, NULL, QUEUE_WAIT, it->level, &it->delay_wait);
        else
                go(it);
}

static int item_init(struct item *it, struct om_bus *b, const struct om_bus_task *t) {
        const struct rmq_settings *s = &b->settings;
        const struct om_task *task = t->task;
        int64_t now = om_now_ms();
        struct om_span exchange = om_span_of(s->exchange), key = task->topic;
        char queue[QUEUE_NAME_MAX], ttl[24];
        struct rmq_props props;
        int r;

        it->pub.bus = b;
        it->pub.done = sent;
        it->pub.hurry = true;
        it->wait.fn = topic_there;
        it->delay_wait.fn = delay_there;
        it->topic = rmq_topic_get(b, task->topic);
        if (!it->topic)
                return -ENOMEM;
        if (it->topic->pattern)
                return -EINVAL;
        snprintf(it->id, sizeof it->id, "%.*s", OM_PRI(task->id));
        rmq_props_of_task(&props, s, task);
        rmq_table_int(&props.table, "omni-time", now);
        if (task->delay_ms) {
                rmq_table_int(&props.table, "omni-due", now + task->delay_ms);
                it->level = rmq_level(task->delay_ms);
        }
        if (task->ttl_ms)
                rmq_table_int(&props.table, "omni-expires", now + task->ttl_ms);
        if (it->topic->foreign) {
                exchange = OM_SPAN("");
                key = om_span_of(it->topic->name + 6);
        }
        if (it->topic->foreign && task->ttl_ms) { /* nobody else would look at our header */
                snprintf(ttl, sizeof ttl, "%lld", (long long) task->ttl_ms);
                props.p.expiration = rmq_text(ttl);
                props.p._flags |= AMQP_BASIC_EXPIRATION_FLAG;
        }
        if (it->level) {
                exchange = OM_SPAN("");
                rmq_queue_name(queue, it->topic, NULL, QUEUE_WAIT, it->level);
                key = om_span_of(queue);
        }
        r = rmq_publication_init(&it->pub, b, exchange, key, it->id, &props, s->format == FORMAT_RAW ? task->content : t->record);
        rmq_props_deinit(&props);
        return r;
}

static void refused(struct item *it, int r) {
        if (r == -E2BIG)
                item_done(
                        it, -ENOBUFS, "RabbitMQ: the task is larger than the broker takes (max_message_size), or its headers than a frame");
        else
                item_done(it, r, r == -EINVAL ? "RabbitMQ: a pattern is no topic to publish to" : "out of memory");
}

int rmq_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        const char *refuses;
        size_t bytes = 0;
        struct publish *m;
        int r;

        for (size_t i = 0; i < op->n; i++)
                bytes += op->tasks[i].record.len + 512;
        r = rmq_admit(b, bytes, e);
        if (r == 0 && (refuses = rmq_confirm_refuses(b)))
                r = om_error_set(e, OM_UNAVAILABLE, "%s", refuses);
        if (r < 0)
                return r;
        m = calloc(1, sizeof *m + op->n * sizeof m->items[0]);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        m->outcomes = op->outcomes;
        m->n = op->n;
        m->left = op->n + 1;
        om_job_begin(&b->jobs, &m->job, &op->op, bytes, publish_free);
        for (size_t i = 0; i < op->n; i++) {
                struct item *it = &m->items[i];

                op->outcomes[i] = (struct om_outcome){ .status = 0 };
                it->job = m;
                r = item_init(it, b, &op->tasks[i]);
                if (r == 0)
                        rmq_topic_need(it->topic, &it->wait);
                else
                        refused(it, r);
        }
        if (--m->left == 0)
                finished(m);
        return 0;
}
