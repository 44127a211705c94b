/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many messages are ready in queues, and how many tasks a topic's log has seen.
 *
 * Queues: passive declarations on a channel of their own, all at once. One of a queue that is not there closes the channel, which makes the
 * others again (link.h, sturdy).
 *
 * Logs: of a stream the broker tells what it counted at its last look, some seconds ago. So its last chunk is read once for each topic that
 * is asked about, until nothing came for QUIET_MS; from then on what this daemon publishes is added. What others publish shows when the
 * broker has looked again. A number is never less than what was told before. Each segment of a stream but the first begins with a
 * record of the broker's own, which has an offset too and is counted with the tasks: one for each file of the log (declare_log() has
 * their size).
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { QUIET_MS = 120, FIND_MAX_MS = 2000, FIND_PREFETCH = 200, FIND_ACK_EVERY = 50 };

struct asked {
        struct counting *c;
        uint64_t *to;
};
struct finder {
        struct om_bus *bus;
        struct rmq_channel *channel;
        struct counting *first; /* who waits; the first is worked for */
        struct event *timer;
        unsigned run, unanswered, unacked;
        bool again;
        int64_t started_ms;
};
struct sought {
        struct finder *f;
        struct topic *topic;
        unsigned run;
};

static int add(struct counting *c, const char *queue, struct topic *log, uint64_t *to) {
        if (c->n == c->cap) {
                size_t cap = c->cap ? c->cap * 2 : 8;
                struct count *counts = reallocarray(c->counts, cap, sizeof *counts);

                if (!counts)
                        return -ENOMEM;
                c->counts = counts;
                c->cap = cap;
        }
        *to = 0;
        snprintf(c->counts[c->n].queue, sizeof c->counts[c->n].queue, "%s", queue);
        c->counts[c->n].log = log;
        c->counts[c->n++].to = to;
        return 0;
}

int rmq_count_add(struct counting *c, const char *queue, uint64_t *to) { return add(c, queue, NULL, to); }

int rmq_count_log(struct counting *c, struct topic *t, uint64_t *to) {
        char name[QUEUE_NAME_MAX];

        rmq_log_name(name, t);
        return add(c, name, t, to);
}

void rmq_count_deinit(struct counting *c) { free(c->counts); }

static void failed(struct counting *c, int status, const struct om_error *e) {
        if (c->status < 0)
                return;
        c->status = status;
        if (e)
                c->error = *e;
        else
                om_error_set(&c->error, om_kind_of_errno(status), "RabbitMQ: %s", status == -EAGAIN ? "not connected" : "out of memory");
}

/* -- asking -------------------------------------------------------------------------------------------------------------- */

static void one_less(struct counting *c) {
        if (--c->open)
                return;
        for (size_t i = 0; i < c->n; i++) {
                struct topic *t = c->counts[i].log;

                if (!t)
                        continue;
                if (t->log_base + t->log_own < *c->counts[i].to) {
                        t->log_base = *c->counts[i].to;
                        t->log_own = 0;
                }
                *c->counts[i].to = t->log_base + t->log_own;
        }
        c->done(c);
}

static void counted(void *ctx, const struct rmq_answer *answer) {
        struct asked *asked = ctx;
        struct counting *c = asked->c;

        if (answer->status == 0)
                *asked->to = ((amqp_queue_declare_ok_t *) answer->event->method)->message_count;
        else if (answer->status != -ENOENT)
                failed(c, answer->status, answer->error);
        free(asked);
        one_less(c);
}

static void ask(struct counting *c) {
        c->open = 1;
        for (size_t i = 0; i < c->n; i++) {
                amqp_queue_declare_t m = { .queue = rmq_text(c->counts[i].queue), .passive = 1 };
                struct asked *asked = malloc(sizeof *asked);
                int r = -ENOMEM;

                if (asked) {
                        *asked = (struct asked){ c, c->counts[i].to };
                        r = rmq_call(c->bus->counter, AMQP_QUEUE_DECLARE_METHOD, &m, counted, asked);
                }
                if (r == 0)
                        c->open++;
                else {
                        free(asked);
                        failed(c, r, NULL);
                }
        }
        one_less(c);
}

/* -- the ends of logs ------------------------------------------------------------------------------------------------------ */

static void find(struct finder *f);

static void arm(struct finder *f) {
        struct timeval tv = { 0, QUIET_MS * 1000 };

        event_add(f->timer, &tv);
}

static void found_all(struct finder *f) {
        struct counting *c = f->first;

        f->first = c->next;
        f->run++;
        rmq_channel_reset(f->channel);
        for (size_t i = 0; i < c->n; i++)
                if (c->counts[i].log && c->status == 0)
                        c->counts[i].log->log_known = true;
        ask(c);
        if (f->first)
                find(f);
}

static void on_consumed(void *ctx, const struct rmq_answer *answer) {
        struct sought *s = ctx;
        struct finder *f = s->f;
        bool now = s->run == f->run;

        if (now && answer->status == -ENOENT)
                s->topic->log_known = true; /* there is none: nothing was counted */
        else if (now && answer->status < 0)
                f->again = true;
        free(s);
        if (!now || --f->unanswered)
                return;
        if (!rmq_link_is_up(f->bus->main)) {
                failed(f->first, -EAGAIN, NULL);
                found_all(f);
        } else if (f->again)
                find(f);
        else
                arm(f);
}

static void on_delivered(void *ctx, struct rmq_event *ev) {
        struct finder *f = ctx;
        const amqp_basic_deliver_t *m = ev->method;
        amqp_basic_ack_t ack = { .delivery_tag = m->delivery_tag, .multiple = 1 };
        char tag[32];
        int64_t offset;
        size_t i;

        snprintf(tag, sizeof tag, "%.*s", OM_PRI(rmq_span(m->consumer_tag)));
        if (!f->first || strtoul(tag, NULL, 10) != f->run || !strchr(tag, '-'))
                return;
        i = strtoul(strchr(tag, '-') + 1, NULL, 10);
        if (++f->unacked >= FIND_ACK_EVERY && rmq_cast(f->channel, AMQP_BASIC_ACK_METHOD, &ack) == 0)
                f->unacked = 0;
        if (i >= f->first->n || !f->first->counts[i].log || !(ev->props->_flags & AMQP_BASIC_HEADERS_FLAG) ||
                !rmq_field_int(rmq_table_get(&ev->props->headers, "x-stream-offset"), &offset))
                return;
        if ((uint64_t) offset + 1 > f->first->counts[i].log->log_base)
                f->first->counts[i].log->log_base = (uint64_t) offset + 1;
        f->first->counts[i].log->log_own = 0;
        if (!f->unanswered)
                arm(f);
}

static void on_quiet(evutil_socket_t fd, short what, void *ctx) {
        struct finder *f = ctx;

        if (!f->first || f->unanswered)
                return;
        for (size_t i = 0; i < f->first->n; i++)
                if (f->first->counts[i].log && f->first->counts[i].log->publishing && om_clock_ms() - f->started_ms < FIND_MAX_MS) {
                        arm(f); /* not quiet: what is confirmed later would be counted twice */
                        return;
                }
        found_all(f);
}

static int seek(struct finder *f, size_t i) {
        struct counting *c = f->first;
        struct rmq_table table = { .n = 0 };
        char tag[32];
        amqp_basic_consume_t m = { .queue = rmq_text(c->counts[i].queue) };
        struct sought *s = malloc(sizeof *s);
        int r = -ENOMEM;

        snprintf(tag, sizeof tag, "%u-%zu", f->run, i);
        m.consumer_tag = rmq_text(tag);
        rmq_table_text(&table, "x-stream-offset", OM_SPAN("last"));
        m.arguments = rmq_table(&table);
        if (s) {
                *s = (struct sought){ f, c->counts[i].log, f->run };
                r = rmq_call(f->channel, AMQP_BASIC_CONSUME_METHOD, &m, on_consumed, s);
        }
        if (r < 0)
                free(s);
        return r;
}

static void find(struct finder *f) {
        struct counting *c = f->first;
        amqp_basic_qos_t qos = { .prefetch_count = FIND_PREFETCH };
        unsigned n = 0;
        int r = 0;

        f->run++;
        f->again = false;
        f->unacked = 0;
        f->started_ms = om_clock_ms();
        for (size_t i = 0; i < c->n && r == 0; i++) {
                if (!c->counts[i].log || c->counts[i].log->log_known)
                        continue;
                if (!n)
                        r = rmq_call(f->channel, AMQP_BASIC_QOS_METHOD, &qos, NULL, NULL);
                if (r == 0)
                        r = seek(f, i);
                n += r == 0;
        }
        if (r < 0) {
                f->run++;
                failed(c, r, NULL);
                n = 0;
        }
        f->unanswered = n;
        if (!n)
                found_all(f);
}

void rmq_count_start(struct counting *c) {
        struct finder *f = c->bus->finder;
        bool known = true, idle = !f->first;

        c->status = 0;
        c->next = NULL;
        for (size_t i = 0; i < c->n; i++)
                known = known && (!c->counts[i].log || c->counts[i].log->log_known);
        if (known) {
                ask(c);
                return;
        }
        LL_APPEND(f->first, c);
        if (idle)
                find(f);
}

int rmq_count_open(struct om_bus *b) {
        static const struct rmq_channel_events events = { .delivered = on_delivered };
        struct finder *f = calloc(1, sizeof *f);

        if (!f)
                return -ENOMEM;
        b->finder = f;
        f->bus = b;
        f->channel = rmq_channel_new(b->main, false, &events, f);
        f->timer = evtimer_new(b->host->base, on_quiet, f);
        return f->channel && f->timer ? 0 : -ENOMEM;
}

void rmq_count_free(struct om_bus *b) {
        if (b->finder && b->finder->timer)
                event_free(b->finder->timer);
        free(b->finder);
}
