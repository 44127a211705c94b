/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deadlines of calls: a list in order of time and one timer. Starting and stopping one costs no system call: the timer stays set for the
 * oldest that there was, finds that one gone when it fires, and is set again for the oldest that there is then.
 *
 * A reload may shorten the timeout: then a younger deadline may wait for an older, longer one. It is never early.
 */
#include <errno.h>

#include "deadline.h"

static void arm(struct om_deadlines *q) {
        int64_t left = q->first->at_ms - om_clock_ms();
        struct timeval tv;

        if (left < 0)
                left = 0;
        tv = (struct timeval){ .tv_sec = left / 1000, .tv_usec = left % 1000 * 1000 };
        q->armed = event_add(q->timer, &tv) == 0;
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_deadlines *q = ctx;
        int64_t now = om_clock_ms();

        q->armed = false;
        while (q->first && q->first->at_ms <= now) {
                struct om_deadline *dl = q->first;

                om_deadline_stop(q, dl);
                dl->late(dl);
        }
        if (q->first && !q->armed)
                arm(q);
}

int om_deadlines_init(struct om_deadlines *q, struct event_base *base) {
        *q = (struct om_deadlines){ 0 };
        q->timer = evtimer_new(base, on_timer, q);
        return q->timer ? 0 : -ENOMEM;
}

void om_deadlines_deinit(struct om_deadlines *q) {
        if (q->timer)
                event_free(q->timer);
        *q = (struct om_deadlines){ 0 };
}

void om_deadline_start(struct om_deadlines *q, struct om_deadline *dl, int64_t timeout_ms, void (*late)(struct om_deadline *dl)) {
        dl->late = late;
        dl->at_ms = om_clock_ms() + timeout_ms;
        dl->next = NULL;
        dl->prev = q->last;
        if (q->last)
                q->last->next = dl;
        else
                q->first = dl;
        q->last = dl;
        if (!q->armed)
                arm(q);
}

static void cancel_op(struct om_deadline *dl) { om_op_cancel(dl->op); }

void om_deadline_start_op(struct om_deadlines *q, struct om_deadline *dl, int64_t timeout_ms, struct om_op *op) {
        dl->op = op;
        om_deadline_start(q, dl, timeout_ms, cancel_op);
}

void om_deadline_stop(struct om_deadlines *q, struct om_deadline *dl) {
        if (!dl->at_ms)
                return;
        if (dl->prev)
                dl->prev->next = dl->next;
        else
                q->first = dl->next;
        if (dl->next)
                dl->next->prev = dl->prev;
        else
                q->last = dl->prev;
        dl->prev = dl->next = NULL;
        dl->at_ms = 0;
        if (!q->first && q->armed) {
                /* An idle daemon has no timer. */
                event_del(q->timer);
                q->armed = false;
        }
}
