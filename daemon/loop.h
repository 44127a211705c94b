/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LOOP_H
#define OM_LOOP_H
/*
 * The daemon's loop: one thread that owns everything but what worker threads hold, and the `host` that backends see.
 *
 * A turn is what happens between two waits: posts, readable sockets, timers. What a turn gathered (tasks to publish, acks, frames to send)
 * goes out together at its end: whoever gathers asks for om_loop_at_turn_end(). An idle loop sleeps without any timer.
 */
#include <event2/event.h>

#include "../backends/host.h"

struct om_loop;

/* So many timers can be set at once without memory, so that those of which the daemon has one each cannot fail. Whoever sets one for each
 * request, session or call looks at what event_add() says. */
enum { OM_LOOP_TIMERS = 64 };

/* Makes the loop and its host. `log` is the sink. 0 or -errno. */
int om_loop_new(struct om_loop **ret, const char *state_dir, struct om_error *e);
void om_loop_free(struct om_loop *l);
struct om_host *om_loop_host(struct om_loop *l);
struct event_base *om_loop_base(struct om_loop *l);
int om_loop_run(struct om_loop *l);                  /* until om_loop_stop() */
int om_loop_run_once(struct om_loop *l, bool block); /* one turn; for tests */
void om_loop_stop(struct om_loop *l);                /* loop thread */

/* Has fn called once at the end of this turn (after every event that is ready now). Embedded; asking twice in a turn is the same as once.
 */
struct om_turn_end {
        void (*fn)(struct om_turn_end *t);
        struct om_turn_end *next;
        bool queued;
};
void om_loop_at_turn_end(struct om_loop *l, struct om_turn_end *t);
/* Before its memory goes: it is not called any more. */
void om_loop_forget_turn_end(struct om_loop *l, struct om_turn_end *t);

#endif
