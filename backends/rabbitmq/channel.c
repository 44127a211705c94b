/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels: calls out, answers in. See link.h.
 *
 * Always true:
 *   - a channel's `first` … `last` are the calls that the broker owes an answer, oldest first, each with its frame, so that it can be made
 *     again;
 *   - who called is told last in an event, and after that the link's `epoch` and `dead` are looked at.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "link_state.h"

struct call {
        struct call *next;
        amqp_method_number_t id;
        rmq_answer_fn *fn; /* NULL: nobody waits */
        void *ctx;
        size_t len;
        char frame[];
};
struct rmq_channel {
        struct rmq_link *link;
        uint16_t number;
        bool sturdy;
        const struct rmq_channel_events *events;
        void *ctx;
        struct call *first, *last;
        unsigned skip; /* answers to come that belong to nobody: of an opening */
        bool closing;  /* we have closed it: what comes before close-ok is old */
};

/* -- opening and losing it ------------------------------------------------------------------------------------------- */

int rmq_channel_open(struct rmq_channel *c) {
        amqp_channel_open_t open = { .out_of_band = amqp_empty_bytes };
        int r = rmq_write_method(c->link, c->number, AMQP_CHANNEL_OPEN_METHOD, &open);

        if (r == 0)
                c->skip++;
        return r;
}

/* The list is taken first: who is told may call. */
void rmq_channel_give_up(struct rmq_channel *c, const struct om_error *e) {
        struct call *call = c->first, *next;

        c->first = c->last = NULL;
        for (; call; call = next) {
                next = call->next;
                if (call->fn && !c->link->dead)
                        call->fn(call->ctx, &(struct rmq_answer){ .status = -EAGAIN, .error = e });
                free(call);
        }
}

void rmq_channel_lost(struct rmq_channel *c) {
        c->skip = 0;
        c->closing = false;
}

/* -- what comes --------------------------------------------------------------------------------------------- */

/* Takes a call out of those that wait; `before` is the one before it, or NULL. */
static struct call *take_out(struct rmq_channel *c, struct call *before, struct call *call) {
        *(before ? &before->next : &c->first) = call->next;
        if (c->last == call)
                c->last = before;
        return call;
}

/* The consumer's tag in the frame of a basic.consume or basic.cancel: a length and so many bytes, after head, method and what comes first.
 */
static bool is_of_consumer(const struct call *call, amqp_bytes_t tag) {
        size_t at = 7 + 4;

        if (call->id == AMQP_BASIC_CONSUME_METHOD) { /* a ticket and the queue */
                at += 2;
                at += 1 + (unsigned char) call->frame[at];
        }
        return call->len > at + tag.len && (unsigned char) call->frame[at] == tag.len &&
                memcmp(call->frame + at + 1, tag.bytes, tag.len) == 0;
}

/* In AMQP the answer to a method is the next number, and the one after that when there is nothing to get. */
static bool answers(const struct call *call, const struct rmq_event *ev) {
        if (ev->id != call->id + 1 && (call->id != AMQP_BASIC_GET_METHOD || ev->id != AMQP_BASIC_GET_EMPTY_METHOD))
                return false;
        if (ev->id == AMQP_BASIC_CONSUME_OK_METHOD)
                return is_of_consumer(call, ((amqp_basic_consume_ok_t *) ev->method)->consumer_tag);
        return ev->id != AMQP_BASIC_CANCEL_OK_METHOD || is_of_consumer(call, ((amqp_basic_cancel_ok_t *) ev->method)->consumer_tag);
}

/* RabbitMQ lets the answers of queues, to consume and cancel, be overtaken by its own to what came later: the oldest that it answers. */
static struct call *answered_by(struct rmq_channel *c, const struct rmq_event *ev) {
        struct call *before = NULL, *call = c->first;

        for (; call && !answers(call, ev); call = call->next)
                before = call;
        return call ? take_out(c, before, call) : NULL;
}

static void answer(struct rmq_channel *c, struct rmq_event *ev) {
        struct call *call;

        if (c->skip && ev->id == AMQP_CHANNEL_OPEN_OK_METHOD) {
                c->skip--;
                return;
        }
        call = answered_by(c, ev);
        if (call && call->fn)
                call->fn(call->ctx, &(struct rmq_answer){ .event = ev });
        else if (!call && ev->id != AMQP_BASIC_CANCEL_OK_METHOD) /* that one comes twice when the queue is deleted meanwhile (3.10) */
                rmq_link_nobody_asked(c->link, ev->id);
        free(call);
}

/* The call for which the broker closes the channel, where it is one: what is wrong with a publish or an ack nobody waits for here. */
static struct call *guilty_of(struct rmq_channel *c, const amqp_channel_close_t *close) {
        amqp_method_number_t id = (amqp_method_number_t) close->class_id << 16 | close->method_id;
        struct call *before = NULL, *call = c->first;

        for (; call && call->id != id; call = call->next)
                before = call;
        return call ? take_out(c, before, call) : NULL;
}

/* The channel is opened anew; on a sturdy one the calls that the broker threw away are made again. */
static int reopen(struct rmq_channel *c) {
        int r = rmq_channel_open(c);

        for (struct call *call = c->first; call && r == 0; call = call->next)
                r = rmq_write(c->link, (struct om_span){ call->frame, call->len });
        return r;
}

static void on_channel_close(struct rmq_channel *c, const amqp_channel_close_t *close) {
        struct rmq_link *l = c->link;
        amqp_channel_close_ok_t ok = { 0 };
        struct om_error e = OM_ERROR_INIT;
        struct call *guilty = guilty_of(c, close);
        unsigned epoch = l->epoch;
        int status = rmq_error(close->reply_code, rmq_span(close->reply_text), l->where, l->settings, false, &e);

        c->skip = 0;
        c->closing = false;
        if (rmq_write_method(l, c->number, AMQP_CHANNEL_CLOSE_OK_METHOD, &ok) < 0 || (c->sturdy ? reopen(c) : rmq_channel_open(c)) < 0) {
                free(guilty);
                rmq_link_no_memory(l);
                return;
        }
        if (!c->sturdy)
                rmq_channel_give_up(c, &e);
        if (guilty && guilty->fn && !l->dead && l->epoch == epoch)
                guilty->fn(guilty->ctx, &(struct rmq_answer){ .status = status, .error = &e });
        free(guilty);
        if (!l->dead && l->epoch == epoch && c->events && c->events->closed)
                c->events->closed(c->ctx, status, &e);
}

static void on_confirm(struct rmq_channel *c, uint64_t tag, bool multiple, bool ok) {
        if (c->events && c->events->confirmed)
                c->events->confirmed(c->ctx, tag, multiple, ok);
}

void rmq_channel_take(struct rmq_channel *c, struct rmq_event *ev) {
        if (c->closing && ev->id != AMQP_CHANNEL_CLOSE_OK_METHOD && ev->id != AMQP_CHANNEL_CLOSE_METHOD)
                return;
        switch (ev->id) {
        case AMQP_BASIC_DELIVER_METHOD:
                if (c->events && c->events->delivered)
                        c->events->delivered(c->ctx, ev);
                break;
        case AMQP_BASIC_RETURN_METHOD:
                if (c->events && c->events->returned)
                        c->events->returned(c->ctx, ev);
                break;
        case AMQP_BASIC_ACK_METHOD: {
                const amqp_basic_ack_t *m = ev->method;
                on_confirm(c, m->delivery_tag, m->multiple, true);
                break;
        }
        case AMQP_BASIC_NACK_METHOD: {
                const amqp_basic_nack_t *m = ev->method;
                on_confirm(c, m->delivery_tag, m->multiple, false);
                break;
        }
        case AMQP_BASIC_CANCEL_METHOD:
                if (c->events && c->events->cancelled)
                        c->events->cancelled(c->ctx, rmq_span(((amqp_basic_cancel_t *) ev->method)->consumer_tag));
                break;
        case AMQP_CHANNEL_CLOSE_METHOD:
                on_channel_close(c, ev->method);
                break;
        case AMQP_CHANNEL_FLOW_METHOD:
                break; /* RabbitMQ does not send it */
        case AMQP_CHANNEL_CLOSE_OK_METHOD:
                if (c->closing) {
                        c->closing = false;
                        if (reopen(c) < 0) /* with what was called meanwhile */
                                rmq_link_no_memory(c->link);
                }
                break;
        default:
                answer(c, ev);
                break;
        }
}

/* -- for the owner ----------------------------------------------------------------------------------------------------- */

struct rmq_channel *rmq_channel_new(struct rmq_link *l, bool sturdy, const struct rmq_channel_events *events, void *ctx) {
        struct rmq_channel *c;

        if (l->n_channels >= l->channel_max || !(c = calloc(1, sizeof *c)))
                return NULL;
        c->link = l;
        c->number = (uint16_t) (l->n_channels + 1);
        c->sturdy = sturdy;
        c->events = events;
        c->ctx = ctx;
        if (l->state == LINK_UP && rmq_channel_open(c) < 0) {
                free(c);
                return NULL;
        }
        l->channels[++l->n_channels] = c;
        return c;
}

uint16_t rmq_channel_number(const struct rmq_channel *c) { return c->number; }

int rmq_call(struct rmq_channel *c, amqp_method_number_t id, void *method, rmq_answer_fn *fn, void *ctx) {
        struct rmq_link *l = c->link;
        struct call *call;
        int r;

        if (l->state != LINK_UP)
                return -EAGAIN;
        om_buf_clear(&l->out);
        r = rmq_put_method(&l->out, c->number, id, method);
        if (r < 0)
                return r;
        call = malloc(sizeof *call + l->out.len);
        if (!call)
                return -ENOMEM;
        *call = (struct call){ .id = id, .fn = fn, .ctx = ctx, .len = l->out.len };
        memcpy(call->frame, l->out.data, l->out.len);
        if (!c->closing && rmq_write(l, om_buf_span(&l->out)) < 0) {
                free(call);
                return -ENOMEM;
        }
        *(c->last ? &c->last->next : &c->first) = call;
        c->last = call;
        return 0;
}

int rmq_cast(struct rmq_channel *c, amqp_method_number_t id, void *method) {
        if (c->link->state != LINK_UP || c->closing)
                return -EAGAIN;
        return rmq_write_method(c->link, c->number, id, method);
}

int rmq_send(struct rmq_channel *c, struct om_span frames) {
        if (c->link->state != LINK_UP || c->closing)
                return -EAGAIN;
        return rmq_write(c->link, frames);
}

void rmq_channel_reset(struct rmq_channel *c) {
        amqp_channel_close_t close = { .reply_code = AMQP_REPLY_SUCCESS, .reply_text = rmq_text("") };
        struct om_error e = OM_ERROR_INIT;

        if (c->link->state != LINK_UP || c->closing)
                return;
        if (rmq_write_method(c->link, c->number, AMQP_CHANNEL_CLOSE_METHOD, &close) < 0) {
                rmq_link_no_memory(c->link);
                return;
        }
        c->closing = true;
        c->skip = 0;
        om_error_set(&e, OM_UNAVAILABLE, "RabbitMQ: the channel was closed by us");
        rmq_channel_give_up(c, &e);
}
