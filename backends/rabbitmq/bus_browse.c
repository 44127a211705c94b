/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking through a queue or a log. AMQP has no way to look into a queue but to take messages out: they are consumed, what is to go is
 * acknowledged, and the rest is given back, to where it was. Meanwhile it is nobody else's to see, so there is one browse at a time, on one
 * channel, and it sees 65535 messages at most. A log (a stream) is read without taking anything, up to `end`.
 *
 * Always true: `first` of the list is the one that has the channel, from rmq_browse_start() until what rmq_browse_end() was given is
 * called.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { QUEUE_PREFETCH = 65535, LOG_PREFETCH = 200, LOG_ACK_EVERY = 50, QUIET_MS = 1000, QUIETS = 3, QUIETS_MAX = 20, LOOKS_MAX = 2000 };

struct browser {
        struct rmq_channel *channel;
        struct browse *list;
        unsigned unacked;
        uint64_t tags;       /* consumers of logs */
        struct event *timer; /* less comes than was thought */
        uint64_t quiet_tag;
        void (*ended)(struct browse *w);
};

static void start_next(struct om_bus *b);

static void done(struct browse *w, int status, const struct om_error *e) {
        if (w->ended)
                return;
        w->ended = true;
        if (!w->consuming) {
                w->done(w, status, e);
                return;
        }
        /* Its messages may come before the broker says that it consumes; a channel that is closed in between leaves a consumer behind. */
        w->late = status;
        if (e)
                w->late_error = *e;
}

static void failed(struct browse *w, int status) {
        struct om_error e = OM_ERROR_INIT;

        om_error_set(&e, om_kind_of_errno(status), "RabbitMQ: %s", status == -EAGAIN ? "not connected" : "out of memory");
        done(w, status, &e);
}

static void arm(struct browser *browser) {
        struct timeval tv = { QUIET_MS / 1000, QUIET_MS % 1000 * 1000 };

        event_add(browser->timer, &tv);
}

/* A queue that another looks through, too, gives less than was counted; a busy broker gives it late. What it has left tells them apart,
 * asked more than once, for what is on its way is neither left nor here. */
static void quiet_counted(void *ctx, const struct rmq_answer *answer) {
        struct om_bus *b = ctx;
        struct browser *browser = b->browser;
        struct browse *w = browser->list;
        struct om_error e = OM_ERROR_INIT;

        if (!w || !w->started || w->ended || browser->quiet_tag != browser->tags)
                return;
        if (answer->status < 0)
                done(w, answer->status, answer->error);
        else if (++w->quiets >= QUIETS && ((amqp_queue_declare_ok_t *) answer->event->method)->message_count == 0)
                done(w, 0, NULL);
        else if (w->quiets < QUIETS_MAX)
                arm(browser);
        else {
                om_error_set(&e, OM_UNAVAILABLE, "RabbitMQ: the broker gives nothing of the queue %s", w->queue);
                done(w, -EAGAIN, &e);
        }
}

static void on_quiet(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct browser *browser = b->browser;
        struct browse *w = browser->list;
        amqp_queue_declare_t m = { .passive = 1 };

        if (!w || !w->started || w->ended)
                return;
        if (w->log) {
                if (++w->quiets >= QUIETS)
                        done(w, 0, NULL);
                else
                        arm(browser);
                return;
        }
        m.queue = rmq_text(w->queue);
        browser->quiet_tag = browser->tags;
        if (rmq_call(browser->channel, AMQP_QUEUE_DECLARE_METHOD, &m, quiet_counted, b) < 0)
                failed(w, -EAGAIN);
}

/* -- reading ------------------------------------------------------------------------------------------------------------ */

static void consumed(void *ctx, const struct rmq_answer *answer) {
        struct om_bus *b = ctx;
        struct browse *w = b->browser->list;

        if (!w || !w->consuming)
                return;
        w->consuming = false;
        if (w->ended)
                w->done(w, w->late, w->late < 0 ? &w->late_error : NULL);
        else if (answer->status < 0)
                done(w, answer->status, answer->error);
}

static void consume(struct browse *w) {
        struct browser *browser = w->bus->browser;
        struct rmq_table table = { .n = 0 };
        amqp_basic_qos_t qos = { .prefetch_count = w->log ? LOG_PREFETCH : QUEUE_PREFETCH };
        char tag[32];
        amqp_basic_consume_t m = { .queue = rmq_text(w->queue) };

        snprintf(tag, sizeof tag, "b%llu", (unsigned long long) ++browser->tags);
        m.consumer_tag = rmq_text(tag);
        if (w->log && w->from)
                rmq_table_int(&table, "x-stream-offset", (int64_t) w->from);
        else if (w->log)
                rmq_table_text(&table, "x-stream-offset", OM_SPAN("first"));
        m.arguments = rmq_table(&table);
        browser->unacked = 0;
        arm(browser);
        w->consuming = true;
        if (rmq_call(browser->channel, AMQP_BASIC_QOS_METHOD, &qos, NULL, NULL) < 0 ||
                rmq_call(browser->channel, AMQP_BASIC_CONSUME_METHOD, &m, consumed, w->bus) < 0) {
                w->consuming = false;
                failed(w, -EAGAIN);
        }
}

static void log_came(struct browse *w, struct rmq_event *ev, uint64_t delivery) {
        struct browser *browser = w->bus->browser;
        amqp_basic_ack_t ack = { .delivery_tag = delivery, .multiple = 1 };
        int64_t at;

        if (!(ev->props->_flags & AMQP_BASIC_HEADERS_FLAG) || !rmq_field_int(rmq_table_get(&ev->props->headers, "x-stream-offset"), &at))
                return;
        if (++browser->unacked >= LOG_ACK_EVERY && rmq_cast(browser->channel, AMQP_BASIC_ACK_METHOD, &ack) == 0)
                browser->unacked = 0;
        if ((uint64_t) at >= w->end || ((uint64_t) at >= w->from && !w->each(w, ev, (uint64_t) at, delivery)) ||
                (uint64_t) at + 1 >= w->end)
                done(w, 0, NULL);
}

static void on_delivered(void *ctx, struct rmq_event *ev) {
        struct om_bus *b = ctx;
        struct browse *w = b->browser->list;
        const amqp_basic_deliver_t *m = ev->method;
        char tag[32];

        snprintf(tag, sizeof tag, "b%llu", (unsigned long long) b->browser->tags);
        if (!w || w->ended || !om_span_is(rmq_span(m->consumer_tag), tag))
                return;
        arm(b->browser);
        w->quiets = 0;
        if (w->log)
                log_came(w, ev, m->delivery_tag);
        else if (!w->each(w, ev, w->place++, m->delivery_tag) || w->place >= w->count)
                done(w, 0, NULL);
}

static void counted(void *ctx, const struct rmq_answer *answer) {
        struct browse *w = ctx;

        if (answer->status < 0)
                done(w, answer->status, answer->error);
        else if ((w->count = ((amqp_queue_declare_ok_t *) answer->event->method)->message_count))
                consume(w);
        else
                done(w, 0, NULL);
}

/* -- both ---------------------------------------------------------------------------------------------------------------- */

static void start(struct browse *w) {
        amqp_queue_declare_t m = { .queue = rmq_text(w->queue), .passive = 1 };

        w->started = true;
        if (w->log && w->from < w->end)
                consume(w);
        else if (w->log)
                done(w, 0, NULL);
        else if (rmq_call(w->bus->browser->channel, AMQP_QUEUE_DECLARE_METHOD, &m, counted, w) < 0)
                failed(w, -EAGAIN);
}

static void start_next(struct om_bus *b) {
        if (b->browser->list && !b->browser->list->started)
                start(b->browser->list);
}

void rmq_browse_start(struct browse *w) {

        w->started = w->ended = w->consuming = false;
        w->place = w->acked = 0;
        w->quiets = 0;
        w->next = NULL;
        LL_APPEND(w->bus->browser->list, w);
        start_next(w->bus);
}

void rmq_browse_ack(struct browse *w, uint64_t tag) {
        amqp_basic_ack_t m = { .delivery_tag = tag };

        w->acked++;
        rmq_cast(w->bus->browser->channel, AMQP_BASIC_ACK_METHOD, &m);
}

static void ended(struct browse *w) {
        struct om_bus *b = w->bus;
        void (*fn)(struct browse *) = b->browser->ended;

        LL_DELETE(b->browser->list, w);
        fn(w);
        start_next(b);
}

/* Giving back takes effect some time after it was told: whoever counts next shall see all of it. */
static void look(struct browse *w);

static void looked(void *ctx, const struct rmq_answer *answer) {
        struct browse *w = ctx;

        if (answer->status == 0 && ((amqp_queue_declare_ok_t *) answer->event->method)->message_count < w->count - w->acked &&
                ++w->looks < LOOKS_MAX)
                look(w);
        else
                ended(w);
}

static void look(struct browse *w) {
        amqp_queue_declare_t m = { .queue = rmq_text(w->queue), .passive = 1 };

        if (rmq_call(w->bus->counter, AMQP_QUEUE_DECLARE_METHOD, &m, looked, w) < 0)
                ended(w);
}

static void given_back(void *ctx, const struct rmq_answer *answer) {
        struct browse *w = ctx;

        w->looks = 0;
        if (answer->status == 0 && !w->log && w->count > w->acked)
                look(w);
        else
                ended(w);
}

/* The end of the channel gives back what came on it, in its order; what a nack gives back comes in any. */
void rmq_browse_end(struct browse *w, void (*fn)(struct browse *w)) {
        struct browser *browser = w->bus->browser;
        amqp_basic_qos_t qos = { .prefetch_count = LOG_PREFETCH };

        browser->ended = fn;
        event_del(browser->timer);
        rmq_channel_reset(browser->channel);
        if (rmq_call(browser->channel, AMQP_BASIC_QOS_METHOD, &qos, given_back, w) < 0)
                ended(w);
}

static void on_closed(void *ctx, int status, const struct om_error *e) {
        struct om_bus *b = ctx;
        struct browse *w = b->browser->list;

        if (w && w->started && !w->ended)
                done(w, -EAGAIN, e);
}

void rmq_browse_down(struct om_bus *b) {
        struct om_error e = OM_ERROR_INIT;

        om_error_set(&e, OM_UNAVAILABLE, "RabbitMQ: not connected");
        on_closed(b, -EAGAIN, &e);
}

int rmq_browse_open(struct om_bus *b) {
        static const struct rmq_channel_events events = { .delivered = on_delivered, .closed = on_closed };
        struct browser *browser = calloc(1, sizeof *browser);

        if (!browser)
                return -ENOMEM;
        b->browser = browser;
        browser->channel = rmq_channel_new(b->main, false, &events, b);
        browser->timer = evtimer_new(b->host->base, on_quiet, b);
        return browser->channel && browser->timer ? 0 : -ENOMEM;
}

void rmq_browse_free(struct om_bus *b) {
        if (b->browser && b->browser->timer)
                event_free(b->browser->timer);
        free(b->browser);
}
