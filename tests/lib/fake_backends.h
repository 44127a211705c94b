/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FAKE_BACKENDS_H
#define OM_FAKE_BACKENDS_H
/*
 * A bus and a storage in memory for tests of the daemon's core: `fakebus:` and `fakestore:`. They complete a turn later, write down in
 * which order things took effect, and fail where they are told to. Loop thread.
 */
#include "../../backends/bus.h"
#include "../../backends/store.h"

enum { FAKE_LOG_MAX = 1 << 16 };

struct fake_faults {
        int publish_refuse, settle_refuse, put_refuse; /* returned by the call; -ENOBUFS until fake_room() */
        int publish_fail, settle_fail, put_fail;       /* completes with it */
        int settle_outcome, put_outcome;               /* of one item: */
        const char *settle_outcome_id;                 /* the task it is about */
        bool publish_hold, settle_hold, put_hold;      /* not completed until fake_release() */
};
struct fake {
        struct fake_faults faults;
        unsigned capabilities;  /* of the bus; taken over by fake_use() */
        char log[FAKE_LOG_MAX]; /* "put ID;publish ID;ack ID;retry ID;dead ID;release ID;want AGENT N;batch PUT|SETTLE|PUBLISH N;" */
        size_t log_len;
        unsigned max_out; /* deliveries out at once, the most that there were */
        unsigned out;
        unsigned puts, settles, publishes, cancels, subscribes, unsubscribes;
};
extern struct fake fake;

/* Registers both with the registry and forgets everything of a former test. */
void fake_use(unsigned bus_capabilities);
void fake_release(void); /* completes what is held */
void fake_bus_state(enum om_bus_state state);
void fake_revoke(const char *task_id); /* the bus gives it to somebody else */
unsigned fake_waiting(const char *topic, const char *agent);
unsigned fake_dead(const char *topic, const char *agent);
void fake_log_clear(void);
/* Whether the text stands in the log, and whether `first` stands before `then`. */
bool fake_logged(const char *text);
bool fake_before(const char *first, const char *then);

#endif
