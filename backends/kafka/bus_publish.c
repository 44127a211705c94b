/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: each task is one message to its topic, all of a call go out in one turn, and the call completes with the last word of the
 * brokers.
 *
 * Always true: a send's done() is called once, when the brokers have answered or are known to be away; its memory is free()d when the
 * library has let go of it, which may be later.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { BEAT_US = 100000 };

/* -- one message ---------------------------------------------------------------------------------------------------------- */

void kafka_send_drop(struct send *s) {
        free(s->value);
        free(s->key);
        if (s->headers)
                rd_kafka_headers_destroy(s->headers);
        s->value = s->key = NULL;
        s->headers = NULL;
}

static void tell(struct send *s, int status, const char *why) {
        if (s->told)
                return;
        s->told = true;
        s->done(s, status, why);
}

static void over(struct send *s, int status, const char *why) {
        kafka_send_drop(s);
        tell(s, status, why);
        s->free(s);
}

static void produce(struct send *s) {
        struct om_bus *b = s->bus;
        rd_kafka_topic_t *rkt = s->topic->rkt ? s->topic->rkt : rd_kafka_topic_new(b->producer, s->topic->kname, NULL);
        rd_kafka_vu_t parts[] = { { RD_KAFKA_VTYPE_RKT, { .rkt = rkt } }, { RD_KAFKA_VTYPE_PARTITION, { .i32 = s->partition } },
                { RD_KAFKA_VTYPE_MSGFLAGS, { .i = s->value ? RD_KAFKA_MSG_F_FREE : 0 } },
                { RD_KAFKA_VTYPE_VALUE, { .mem = { s->value, s->len } } }, { RD_KAFKA_VTYPE_KEY, { .mem = { s->key, s->key_len } } },
                { RD_KAFKA_VTYPE_OPAQUE, { .ptr = s } }, { RD_KAFKA_VTYPE_HEADERS, { .headers = s->headers } } };
        rd_kafka_error_t *error;

        s->topic->rkt = rkt;
        if (!rkt) {
                over(s, -ENOMEM, "Kafka: out of memory");
                return;
        }
        error = rd_kafka_produceva(b->producer, parts, s->headers ? 7 : 6);
        if (error && kafka_topic_unknown(rd_kafka_error_code(error)) && !s->again) { /* somebody deleted it: made again */
                rd_kafka_error_destroy(error);
                s->again = true;
                kafka_topic_forget(s->topic);
                kafka_send(s);
                return;
        }
        if (error) {
                const char *why;
                int status = kafka_send_error(rd_kafka_error_code(error), &why);

                if (rd_kafka_error_code(error) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
                        status = -ENOBUFS;
                rd_kafka_error_destroy(error);
                over(s, status, why);
                return;
        }
        /* Value and headers are the library's now. */
        s->value = NULL;
        s->headers = NULL;
        s->sent_ms = om_clock_ms();
        s->flying = true;
        if (!b->flying)
                evtimer_add(b->beat, (&(struct timeval){ 0, BEAT_US }));
        DL_APPEND(b->flying, s);
}

static void is_there(struct topic_wait *w, int status, const struct om_error *e) {
        struct send *s = CONTAINER(w, struct send, wait);

        if (status == 0)
                produce(s);
        else {
                struct om_bus *b = s->bus;

                b->send_error = *e;
                over(s, status, b->send_error.message);
        }
}

void kafka_send(struct send *s) {
        s->wait.fn = is_there;
        kafka_topic_need(s->topic, &s->wait);
}

void kafka_delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
        struct send *s = m->_private;
        struct om_bus *b = opaque;
        const char *why;
        int status;

        if (!s)
                return;
        DL_DELETE(b->flying, s);
        s->flying = false;
        if (!m->err)
                b->heard_ms = om_clock_ms();
        s->offset = m->offset;
        if (kafka_topic_unknown(m->err))
                kafka_topic_forget(s->topic); /* it was deleted meanwhile */
        status = kafka_send_error(m->err, &why);
        if (m->err == RD_KAFKA_RESP_ERR__TRANSPORT || m->err == RD_KAFKA_RESP_ERR__MSG_TIMED_OUT)
                kafka_link_suspect(b);
        over(s, status, why);
}

void kafka_sends_fail(struct om_bus *b) {
        struct send *s, *next;

        DL_FOREACH_SAFE (b->flying, s, next)
                tell(s, -EAGAIN, "Kafka: the brokers do not answer; the task may have been published");
}

/* -- a task as a message ---------------------------------------------------------------------------------------------------- */

static int put_header(void *ctx, struct om_span name, struct om_span value) {
        char text[256];

        if (name.len >= sizeof text || memchr(name.p, 0, name.len))
                return 0; /* the record has it */
        memcpy(text, name.p, name.len);
        text[name.len] = 0;
        return rd_kafka_header_add(ctx, text, (ssize_t) name.len, value.p, (ssize_t) value.len) ? -ENOMEM : 0;
}

int kafka_task_headers(const struct om_bus *b, const struct om_task *t, rd_kafka_headers_t **ret) {
        bool raw = b->settings.format == KAFKA_FORMAT_RAW;
        int r = 0;

        if (!raw && !b->settings.cloudevents && !t->headers.p && !t->traceparent.p)
                return 0;
        *ret = rd_kafka_headers_new(8);
        if (!*ret)
                return -ENOMEM;
        if (raw)
                r = put_header(*ret, OM_SPAN("omni-id"), t->id);
        if (!r)
                r = om_record_headers(t, b->settings.cloudevents, "ce_", put_header, *ret);
        return r;
}

struct om_span kafka_task_value(const struct om_bus *b, const struct om_bus_task *t) {
        return b->settings.format == KAFKA_FORMAT_RAW ? t->task->content : t->record;
}

int kafka_send_task(struct send *s, struct om_bus *b, const struct om_bus_task *t) {
        struct om_span value = kafka_task_value(b, t);

        s->bus = b;
        s->partition = RD_KAFKA_PARTITION_UA;
        if ((int64_t) value.len + 1024 > b->settings.max_message_bytes)
                return -EMSGSIZE;
        s->topic = kafka_topic_get(b, KAFKA_LOG, t->task->topic, OM_SPAN_NONE);
        s->value = malloc(value.len + 1);
        if (!s->topic || !s->value || kafka_task_headers(b, t->task, &s->headers) < 0)
                return -ENOMEM;
        memcpy(s->value, value.p, value.len);
        s->len = value.len;
        if (t->task->key.p) {
                s->key = malloc(t->task->key.len + 1);
                if (!s->key)
                        return -ENOMEM;
                memcpy(s->key, t->task->key.p, t->task->key.len);
                s->key_len = t->task->key.len;
        }
        return 0;
}

/* -- a batch ------------------------------------------------------------------------------------------------------------------ */

struct publish {
        struct job job; /* first */
        struct om_outcome *outcomes;
        size_t n, left, refused, held; /* not answered; by the library or by us */
        bool completed;
        struct om_error error;
        char *texts; /* of the outcomes */
        struct send items[];
};

static void let_go(struct publish *m) {
        if (--m->held)
                return;
        free(m->texts);
        free(m);
}
static void publish_free(struct om_job *j) { let_go((struct publish *) j); }
static void item_free(struct send *s) { let_go(s->ctx); }

static void one_done(struct send *s, int status, const char *why) {
        struct publish *m = s->ctx;
        size_t i = (size_t) (s - m->items);

        if (!job_is_cancelled(&m->job)) {
                m->outcomes[i].status = status;
                m->outcomes[i].why = why;
                if (why && why == s->bus->send_error.message) { /* which the next error overwrites */
                        om_error_set(&m->error, s->bus->send_error.kind, "%s", why);
                        m->outcomes[i].why = m->error.message;
                }
        }
        if (status == -EAGAIN) {
                m->refused++;
                if (!m->error.message[0])
                        om_error_set(&m->error, OM_UNAVAILABLE, "%s", why ? why : "Kafka: the brokers are away");
        }
        if (--m->left == 0) /* away is away for all of it */
                kafka_job_over(&m->job, m->refused == m->n && m->n ? -EAGAIN : 0, &m->error);
}

int kafka_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        size_t bytes = 0;
        struct publish *m;
        int r;

        for (size_t i = 0; i < op->n; i++)
                bytes += op->tasks[i].record.len + 512;
        r = kafka_job_admit(b, bytes, e);
        if (r < 0)
                return r;
        m = calloc(1, sizeof *m + op->n * sizeof m->items[0]);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        m->outcomes = op->outcomes;
        m->n = op->n;
        m->left = m->held = op->n + 1;
        kafka_job_begin(b, &m->job, &op->op, bytes, publish_free);
        for (size_t i = 0; i < op->n; i++) {
                struct send *s = &m->items[i];
                int status = kafka_send_task(s, b, &op->tasks[i]);

                op->outcomes[i] = (struct om_outcome){ .status = 0 };
                s->ctx = m;
                s->done = one_done;
                s->free = item_free;
                if (status == 0)
                        kafka_send(s);
                else
                        over(s, status == -EMSGSIZE ? -ENOBUFS : status,
                                status == -EMSGSIZE ? "Kafka: the task is larger than max_message_bytes of the URL" : "out of memory");
        }
        if (--m->left == 0)
                kafka_job_over(&m->job, m->refused == m->n && m->n ? -EAGAIN : 0, &m->error);
        return 0;
}
