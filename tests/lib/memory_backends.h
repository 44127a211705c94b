/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_MEMORY_BACKENDS_H
#define OM_MEMORY_BACKENDS_H
/*
 * A bus and a storage in memory for tests of the daemon's core: `membus:` and `memstore:`. They complete a turn later, write down in
 * which order things took effect, and fail where they are told to. Of what the bus can be asked it knows its health; every list is empty,
 * and every change says that it found one. One of each at a time in a process. Loop thread.
 */
#include "../../backends/bus.h"
#include "../../backends/store.h"

enum { FAKE_LOG_MAX = 1 << 16 };

struct mem_faults {
        int publish_refuse, settle_refuse, put_refuse; /* returned by the call; -ENOBUFS until mem_room() */
        int publish_fail, settle_fail, put_fail;       /* completes with it */
        int settle_outcome, put_outcome;               /* of one item: */
        const char *settle_outcome_id;                 /* the task it is about */
        bool publish_hold, settle_hold, put_hold;      /* not completed until mem_release() */
        bool subscribe_hold;                           /* likewise */
        bool query_hold;                               /* of topics; until mem_release_topics() */
        bool no_cancel;                                /* a held operation cannot be cancelled */
        unsigned query_refuse;                         /* so many queries are refused with -ENOBUFS */
        bool store_away;                               /* every operation of the storage is refused as unavailable */
};
struct mem {
        struct mem_faults faults;
        unsigned capabilities;  /* of the bus; taken over by mem_use() */
        char log[FAKE_LOG_MAX]; /* "put ID;publish ID;ack ID;retry ID;dead ID;release ID;want AGENT N;batch PUT|SETTLE|PUBLISH N;" */
        size_t log_len;
        unsigned max_out; /* deliveries out at once, the most that there were */
        unsigned out;
        unsigned puts, settles, publishes, cancels, subscribes, unsubscribes;
        unsigned entries;                      /* written to the storage so far */
        const char *bus_health, *store_health; /* JSON; NULL: unavailable */
        size_t query_limit;                    /* of the last query, and its time */
        int64_t query_timeout_ms;
};
extern struct mem mem;

/* Registers both with the registry and forgets everything of a former test. */
void mem_use(unsigned bus_capabilities);
/* From the next mem_use() on the storage has a query language: it answers with the query's text as the only value. */
void mem_can_query(void);
void mem_release(void); /* completes what is held */
unsigned mem_held(void);
/* Completes the i-th held query (in the order in which they came), with so many topics of 100 bytes. */
void mem_release_topics(unsigned i, unsigned n_topics);
void mem_bus_state(enum om_bus_state state);
void mem_store_state(enum om_store_state state); /* what the storage tells the core; it is away unless ready */
/* A stored value: zero-terminated, NULL when there is none; name NULL: of any name. Good until the next change. */
const char *mem_stored(enum om_store_kind kind, const char *key, const char *name);
void mem_store(enum om_store_kind kind, const char *key, const char *name, const char *value);
void mem_revoke(const char *task_id); /* the bus gives it to somebody else */
unsigned mem_waiting(const char *topic, const char *agent);
unsigned mem_dead(const char *topic, const char *agent);
void mem_log_clear(void);
/* Whether the text stands in the log, and whether `first` stands before `then`. */
bool mem_logged(const char *text);
bool mem_before(const char *first, const char *then);

#endif
