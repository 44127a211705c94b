/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing with confirms: messages go out on one channel and are numbered by it (publisher confirms,
 * https://www.rabbitmq.com/docs/confirms); the broker confirms each when every queue that it was routed to has it, on a majority of its
 * nodes for quorum queues. `mandatory` has it say so when it was routed to none: such a message comes back before its confirm.
 *
 * Always true:
 *   - `ring` holds what was sent and is not confirmed, by number; a hole is one that was given up. Each is done once;
 *   - those in a hurry are given up when they have waited answer_timeout_ms (more where much is under way) and either
 * nothing was confirmed for as long or what was sent after them was: one queue without a majority holds up no other;
 *   - a broker that says nothing for answer_timeout_ms though it owes confirms is `silent`: nothing is published until it speaks again.
 *     Once it has spoken it is given twice the time that it took, until it confirms promptly: it is far away, or busy.
 *     One that is blocked (an alarm) does not read what we send: nothing is published until it is over;
 *   - the timer runs only while something is owed.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { LOT = 250, PATIENCE_MAX_MS = 5000 };

struct confirms {
        struct rmq_channel *channel;
        struct publication **ring; /* number `first` at ring[first & (cap - 1)] */
        size_t cap;
        uint64_t first, next;           /* numbers; next is that of the next to be sent */
        int64_t progress_ms, newest_ms; /* the last confirm came; the newest that was confirmed was sent */
        bool silent, ready;
        int64_t silent_since_ms; /* when that which was not confirmed was sent */
        int64_t late_ms;         /* what it took the last time that it was silent; 0: it is prompt */
        struct event *timer;
        struct om_error refused; /* why the channel was closed */
};

/* How long the broker may confirm nothing. */
static int64_t patience_ms(const struct om_bus *b) {
        int64_t ms = b->settings.answer_timeout_ms, late = 2 * b->confirms->late_ms;
        int64_t most = b->settings.connect_timeout_ms > ms ? b->settings.connect_timeout_ms : ms;

        return late < ms ? ms : late < most ? late : most;
}

static void arm(struct om_bus *b) {
        int64_t ms = b->settings.answer_timeout_ms / 4;
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

        if ((b->confirms->first != b->confirms->next || b->confirms->silent) && !event_pending(b->confirms->timer, EV_TIMEOUT, NULL))
                event_add(b->confirms->timer, &tv);
}

static struct publication **slot(struct confirms *c, uint64_t number) { return &c->ring[number & (c->cap - 1)]; }

static int grow(struct confirms *c) {
        size_t cap = c->cap ? c->cap * 2 : 256;
        struct publication **ring = calloc(cap, sizeof(struct publication *));

        if (!ring)
                return -ENOMEM;
        for (uint64_t n = c->first; n != c->next; n++)
                ring[n & (cap - 1)] = *slot(c, n);
        free(c->ring);
        c->ring = ring;
        c->cap = cap;
        return 0;
}

const char *rmq_confirm_refuses(const struct om_bus *b) {
        if (!b->pub_up || !b->confirms->ready)
                return "RabbitMQ: not connected";
        if (rmq_link_is_blocked(b->pub))
                return "RabbitMQ: the broker takes no messages: a memory or disk alarm is on";
        if (b->confirms->silent)
                return "RabbitMQ: the broker does not answer";
        return NULL;
}

/* -- one message ----------------------------------------------------------------------------------------------------- */

int rmq_publication_init(struct publication *p, struct om_bus *b, struct om_span exchange, struct om_span key, const char *id,
        struct rmq_props *props, struct om_span body) {
        int r;

        p->bus = b;
        p->id = id;
        p->body_bytes = body.len;
        p->returned = false;
        if (b->too_large && body.len >= b->too_large)
                return -E2BIG;
        om_buf_clear(&p->frames);
        rmq_props_close(props);
        r = rmq_put_publish(
                &p->frames, rmq_channel_number(b->confirms->channel), rmq_link_frame_max(b->pub), exchange, key, true, &props->p, body);
        if (r < 0)
                om_buf_deinit(&p->frames);
        return r;
}

void rmq_publication_deinit(struct publication *p) { om_buf_deinit(&p->frames); }

void rmq_publication_send(struct publication *p) {
        struct om_bus *b = p->bus;
        struct confirms *c = b->confirms;
        const char *refuses = rmq_confirm_refuses(b);
        int r = refuses ? -EAGAIN : 0;

        if (r == 0 && (!c->cap || c->next - c->first == c->cap))
                r = grow(c);
        if (r == 0)
                r = rmq_send(c->channel, om_buf_span(&p->frames));
        if (r < 0) {
                p->done(p, r, refuses ? refuses : r == -ENOMEM ? "out of memory" : "RabbitMQ: not connected");
                return;
        }
        p->returned = false;
        p->sent_ms = om_clock_ms();
        *slot(c, c->next++) = p;
        arm(b);
}

/* -- confirms -------------------------------------------------------------------------------------------------------- */

static void finish(struct publication *p, int status, const char *why) {
        if (status == 0 && p->returned)
                p->done(p, -ENOENT, "RabbitMQ: no queue is bound for it");
        else
                p->done(p, status, why);
}

static void confirm(struct confirms *c, uint64_t number, bool ok) {
        struct publication *p;

        if (number < c->first || number >= c->next)
                return; /* who was told has ended the connection */
        p = *slot(c, number);
        *slot(c, number) = NULL;
        while (c->first != c->next && !*slot(c, c->first) && c->first <= number)
                c->first++;
        if (!p)
                return;
        if (p->sent_ms > c->newest_ms)
                c->newest_ms = p->sent_ms;
        if (2 * (c->progress_ms - p->sent_ms) < p->bus->settings.answer_timeout_ms)
                c->late_ms = 0;
        finish(p, ok ? 0 : -ENOBUFS,
                ok ? NULL
                   : "RabbitMQ: a queue refuses it: it is full (max_topic_tasks, max_topic_bytes or a policy): tasks must be finished "
                     "first");
}

static void skip_holes(struct confirms *c) {
        while (c->first != c->next && !*slot(c, c->first))
                c->first++;
}

static void speaks(struct om_bus *b) {
        struct confirms *c = b->confirms;

        c->silent = false;
        c->late_ms = om_clock_ms() - c->silent_since_ms;
}

static void on_confirmed(void *ctx, uint64_t number, bool multiple, bool ok) {
        struct om_bus *b = ctx;
        struct confirms *c = b->confirms;
        bool was_silent = c->silent;

        if (number >= c->next || !number)
                return; /* of nothing that we sent */
        c->progress_ms = om_clock_ms();
        if (was_silent)
                speaks(b);
        /* Who is told may send: the ring may grow, but not below `number`. */
        for (uint64_t n = multiple ? c->first : number; n <= number; n++)
                confirm(c, n, ok);
        skip_holes(c);
        if (c->first == c->next)
                event_del(c->timer);
        if (was_silent)
                rmq_bus_check(b);
}

/* The one that comes back is confirmed next; others with its id are later ones. */
static void on_returned(void *ctx, struct rmq_event *ev) {
        struct om_bus *b = ctx;
        struct confirms *c = b->confirms;
        struct om_span id = ev->props->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ? rmq_span(ev->props->message_id) : OM_SPAN("");

        for (uint64_t n = c->first; n != c->next; n++) {
                struct publication *p = *slot(c, n);

                if (p && !p->returned && p->id && om_span_is(id, p->id)) {
                        p->returned = true;
                        return;
                }
        }
}

/* -- silence, blocking, ends ----------------------------------------------------------------------------------------- */

/* Gives up those in a hurry for which `due` holds, or with `all` everything. */
static void give_up(struct om_bus *b, bool all, int64_t sent_before_ms, int64_t overtaken_ms, const char *why) {
        struct confirms *c = b->confirms;
        uint64_t end = c->next;

        for (uint64_t n = c->first; n < end && n < c->next; n++) {
                struct publication *p = *slot(c, n);

                if (!p || (!all && (!p->hurry || p->sent_ms > sent_before_ms || p->sent_ms >= overtaken_ms)))
                        continue;
                *slot(c, n) = NULL;
                p->done(p, -EAGAIN, why);
        }
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct confirms *c = b->confirms;
        int64_t now = om_clock_ms(), patience = patience_ms(b), most;
        const struct publication *oldest;
        int64_t since;

        skip_holes(c);
        if (c->silent) {
                rmq_link_probe(b->pub);
                if (rmq_link_silent_ms(b->pub) < patience) {
                        speaks(b);
                        rmq_bus_check(b);
                }
        }
        if (c->first == c->next) {
                arm(b);
                return;
        }
        oldest = *slot(c, c->first);
        since = oldest->sent_ms > c->progress_ms ? oldest->sent_ms : c->progress_ms;
        if (now - since >= patience / 4)
                rmq_link_probe(b->pub);
        /* That long for each LOT: a broker that has much to do reads no more for a while, and answers nothing else either. */
        most = patience * (1 + (int64_t) ((c->next - c->first) / LOT));
        if (most > PATIENCE_MAX_MS && most > patience)
                most = PATIENCE_MAX_MS > patience ? PATIENCE_MAX_MS : patience;
        give_up(b, false, now - most, now - since >= most ? INT64_MAX : c->newest_ms - most / 2,
                "RabbitMQ: the broker did not confirm in time (has the queue lost its majority?); the task may have been published");
        if (now - since >= patience && rmq_link_silent_ms(b->pub) >= patience && !c->silent) {
                c->silent = true;
                c->silent_since_ms = since;
                rmq_link_probe(b->main);
                rmq_bus_check(b);
        }
        arm(b);
}

void rmq_confirm_blocked(struct om_bus *b) {
        if (rmq_link_is_blocked(b->pub))
                give_up(b, false, INT64_MAX - 1, INT64_MAX,
                        "RabbitMQ: the broker takes no messages: a memory or disk alarm is on; the task may be published when it is over");
}

static void lost(struct om_bus *b, int status, const char *why) {
        struct confirms *c = b->confirms;
        struct publication **ring = c->ring;
        uint64_t first = c->first, next = c->next;
        size_t cap = c->cap;

        /* Taken first: who is told may send. */
        c->ring = NULL;
        c->cap = 0;
        c->first = c->next = 1;
        event_del(c->timer);
        for (uint64_t n = first; n != next; n++) {
                struct publication *p = ring[n & (cap - 1)];

                if (p)
                        p->done(p, status, why);
        }
        free(ring);
}

static void selected(void *ctx, const struct rmq_answer *answer) {
        struct om_bus *b = ctx;

        if (answer->status < 0 && answer->status != -EAGAIN)
                rmq_link_fail(b->pub, answer->error);
}

static void select_confirms(struct om_bus *b) {
        struct confirms *c = b->confirms;
        amqp_confirm_select_t select = { .nowait = 0 };

        c->first = c->next = 1;
        c->silent = false;
        c->progress_ms = c->newest_ms = 0;
        event_del(c->timer);
        c->ready = rmq_call(c->channel, AMQP_CONFIRM_SELECT_METHOD, &select, selected, b) == 0;
}

/* What was sent and not confirmed may have been refused or not: whoever sent it hears the reason. */
static void on_closed(void *ctx, int status, const struct om_error *e) {
        struct om_bus *b = ctx;
        struct confirms *c = b->confirms;
        uint64_t largest = 0;

        om_host_log(b->host, OM_LOG_WARNING, "%s", e->message);
        c->ready = false;
        for (uint64_t n = c->first; n != c->next; n++) {
                const struct publication *p = *slot(c, n);

                if (p && p->body_bytes > largest)
                        largest = p->body_bytes;
        }
        if (status == -ENOBUFS && strstr(e->message, "max_message_size")) {
                /* Only the largest of them is sure to have been too large. */
                b->too_large = largest;
                for (uint64_t n = c->first; n != c->next; n++) {
                        struct publication *p = *slot(c, n);

                        if (p && p->body_bytes >= largest) {
                                *slot(c, n) = NULL;
                                p->done(p, -ENOBUFS, "RabbitMQ: the task is larger than the broker's max_message_size");
                        }
                }
                lost(b, -EAGAIN, "RabbitMQ: the channel was closed for another task's sake; the task may have been published");
        } else
                lost(b, status == -EACCES ? status : -EAGAIN,
                        status == -EACCES ? "RabbitMQ: the user of the URL lacks the permission to write to the exchange"
                                          : "RabbitMQ: the broker closed the channel; the log of the daemon says why");
        select_confirms(b);
        if (status == -ENOENT) /* the exchange was deleted: all is looked at anew */
                rmq_link_fail(b->pub, e);
}

int rmq_confirm_open(struct om_bus *b) {
        static const struct rmq_channel_events events = { .returned = on_returned, .confirmed = on_confirmed, .closed = on_closed };
        struct confirms *c = calloc(1, sizeof *c);

        if (!c)
                return -ENOMEM;
        b->confirms = c;
        c->first = c->next = 1;
        c->channel = rmq_channel_new(b->pub, false, &events, b);
        c->timer = evtimer_new(b->host->base, on_timer, b);
        return c->channel && c->timer ? 0 : -ENOMEM;
}

void rmq_confirm_up(struct om_bus *b) { select_confirms(b); }

void rmq_confirm_down(struct om_bus *b, const struct om_error *e) {
        b->confirms->ready = false;
        lost(b, -EAGAIN, "RabbitMQ: the connection broke before the confirm; the task may have been published");
}

void rmq_confirm_free(struct om_bus *b) {
        if (!b->confirms)
                return;
        if (b->confirms->timer)
                event_free(b->confirms->timer);
        free(b->confirms->ring);
        free(b->confirms);
        b->confirms = NULL;
}
