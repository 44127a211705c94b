/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_DEADLINE_H
#define OM_DEADLINE_H
/*
 * Deadlines of the core's calls into a bus or a storage. All of one queue wait equally long, so the queue is a list in order of time and
 * needs one timer, set only while something is under way. Loop thread.
 */
#include <event2/event.h>

#include "../backends/host.h"

struct om_deadline {
        struct om_deadline *prev, *next;
        int64_t at_ms; /* monotonic; 0: not running */
        /* Its time has come; it is no longer running. */
        void (*late)(struct om_deadline *dl);
        struct om_op *op; /* of om_deadline_start_op() */
};
struct om_deadlines {
        struct om_deadline *first, *last;
        struct event *timer;
        bool armed;
};

int om_deadlines_init(struct om_deadlines *q, struct event_base *base);
void om_deadlines_deinit(struct om_deadlines *q); /* running ones are forgotten */
void om_deadline_start(struct om_deadlines *q, struct om_deadline *dl, int64_t timeout_ms, void (*late)(struct om_deadline *dl));
/* The usual one: cancels the operation, whose completion then comes with -ECANCELED. */
void om_deadline_start_op(struct om_deadlines *q, struct om_deadline *dl, int64_t timeout_ms, struct om_op *op);
void om_deadline_stop(struct om_deadlines *q, struct om_deadline *dl); /* also when not running */

#endif
