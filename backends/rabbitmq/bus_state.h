/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RABBITMQ_BUS_STATE_H
#define OM_RABBITMQ_BUS_STATE_H
/*
 * What the files of the RabbitMQ bus share. Everything is the loop's.
 *
 * On the broker, with the prefix "omni" (NT, NA: topic and agent as safe_name.h writes them):
 *
 *   exchange omni              what tasks are published to, with the topic as routing key (or the exchange that the URL names)
 *   omni.t.NT[.N]
 *       a topic's holding queue, bound from its first task on. The first group takes it over and works from it, so that nothing is moved;
 *       when the last group is deleted a fresh one, N, is bound before its queue goes
 *   omni.g.NT.NA               the queue of a later group, or of a pattern
 *   omni.l.NT                  a stream: the topic's log, for counting, inspecting, starting in the past and replay
 *   omni.f.NT.NA
 *       a group's front queue: what was given back, is due again, or was replayed; served before the others
 *   omni.w.NT.NA.K             what waits for a retry: after 2^K ms it is dead-lettered to the front queue
 *   omni.w.NT.K                what waits for its delay_ms: after 2^K ms to the exchange
 *   omni.d.NT.NA               a group's dead letters
 *   omni.directory             a stream: which topics, groups and queues there are (bus_directory.c). AMQP cannot list any of it
 *
 * All but the two streams are quorum queues (queue_type=classic: the groups' and holding queues are classic, with x-max-priority), durable,
 * made when first needed. Topics named "queue:NAME" are queues of other programs, used as they are.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "../../proto/hash.h"
#include "../bus.h"
#include "../job.h"
#include "../letter.h"
#include "../safe_name.h"
#include "link.h"
#include "message.h"

enum {
        OPS_MAX = 8192,
        NAME_PART_MAX = 90,
        QUEUE_NAME_MAX = 256,
        LEVEL_MIN = 6, /* shorter delays are waited for in memory */
        LEVEL_MAX = 35,
};

struct om_bus;
struct group;

/* -- publishing with confirms (bus_confirm.c) ------------------------------------------------------------------------ */

/* One message on its way. done() is called once, by whoever has the confirm or knows that there will be none; 0, or a status with static
 * text. -ENOENT: no queue is bound. */
struct publication {
        struct om_bus *bus;
        struct om_buf frames; /* until it is confirmed: it may have to be sent again */
        void (*done)(struct publication *p, int status, const char *why);
        void *ctx;
        const char *id; /* the owner's; message-id */
        bool hurry;     /* somebody waits: done with -EAGAIN when no confirm comes in time */
        bool returned;
        size_t body_bytes;
        int64_t sent_ms;
};
/* Makes it ready. -ENOMEM; -E2BIG: larger than the broker takes. */
int rmq_publication_init(struct publication *p, struct om_bus *b, struct om_span exchange, struct om_span key, const char *id,
        struct rmq_props *props, struct om_span body);
void rmq_publication_deinit(struct publication *p);
void rmq_publication_send(struct publication *p); /* done() may be called before it returns */
int rmq_confirm_open(struct om_bus *b);
void rmq_confirm_up(struct om_bus *b);
void rmq_confirm_down(struct om_bus *b, const struct om_error *e);
void rmq_confirm_blocked(struct om_bus *b);
void rmq_confirm_free(struct om_bus *b);
/* Why nothing can be published now: NULL, it can. */
const char *rmq_confirm_refuses(const struct om_bus *b);

/* -- the directory (bus_directory.c) --------------------------------------------------------------------------------- */

struct wait { /* who waits for something to be made */
        void (*fn)(struct wait *w, int status, const struct om_error *e);
        struct wait *next;
};
enum topic_state { TOPIC_UNKNOWN, TOPIC_MAKING, TOPIC_THERE };
struct topic {
        UT_hash_handle hh;
        struct om_bus *bus;
        char name[OM_TOPIC_MAX + 1], nt[NAME_PART_MAX + 1];
        bool pattern, foreign;
        enum topic_state state; /* THERE: what its tasks are routed to is bound */
        bool listed;            /* in the directory */
        struct wait *waits;
        char hold[QUEUE_NAME_MAX]; /* "": none */
        struct group *owner;       /* of the holding queue */
        unsigned generation;       /* of holding queues */
        struct group *groups;
        uint64_t levels; /* of delays that have a queue */
        /* of the log (bus_count.c) */
        bool log_known;
        uint64_t log_base, log_own; /* tasks that were there; of ours, since */
        unsigned publishing;        /* under way */
};
struct group {
        struct group *prev, *next;
        struct topic *topic;
        char agent[OM_NAME_MAX + 1], na[NAME_PART_MAX + 1];
        char queue[QUEUE_NAME_MAX];
        bool listed; /* false: deleted; its dead letters may be there still */
        bool front, dead;
        uint64_t levels;
        uint64_t from; /* tasks of the log that were before it */
        int64_t since_ms;
        uint64_t expired, finished; /* seen by this daemon */
        struct om_bus_sub *sub;
};
enum queue_kind { QUEUE_FRONT, QUEUE_DEAD, QUEUE_WAIT };
int rmq_directory_open(struct om_bus *b);
void rmq_directory_up(struct om_bus *b); /* both links are: reads it, then rmq_bus_ready() */
void rmq_directory_down(struct om_bus *b);
void rmq_directory_free(struct om_bus *b);
/* Appends an event; done when it has been read back, with what stands before it. `text` is borrowed. */
void rmq_directory_add(struct om_bus *b, struct om_span text, void (*done)(void *ctx, int status, const struct om_error *e), void *ctx);
struct topic *rmq_topic_get(struct om_bus *b, struct om_span name); /* made if need be; NULL: out of memory */
struct group *rmq_group_find(const struct topic *t, struct om_span agent);
struct group *rmq_group_get(struct topic *t, struct om_span agent); /* made if need be */

/* -- topics and their queues (bus_topic.c) --------------------------------------------------------------------------- */

/* Calls w->fn, now or later, when the topic's queues are bound, or cannot be. */
void rmq_topic_need(struct topic *t, struct wait *w);
void rmq_topic_lost(struct topic *t); /* nothing is bound any more */
/* The same for a queue of a group (or, with g NULL, of a topic's delays), level k. */
void rmq_queue_need(struct topic *t, struct group *g, enum queue_kind kind, unsigned k, struct wait *w);
void rmq_queue_name(char out[QUEUE_NAME_MAX], const struct topic *t, const struct group *g, enum queue_kind kind, unsigned k);
void rmq_log_name(char out[QUEUE_NAME_MAX], const struct topic *t);
unsigned rmq_level(int64_t ms); /* the highest that is not longer; 0: shorter than the lowest */
int rmq_declare_group_queue(struct om_bus *b, const char *queue, rmq_answer_fn *fn, void *ctx);
int rmq_bind(struct om_bus *b, const struct topic *t, const char *queue, rmq_answer_fn *fn, void *ctx);
void rmq_needs_down(struct om_bus *b);

/* -- groups and deliveries (bus_group.c, bus_consume.c, bus_deliver.c) ------------------------------------------------ */

struct lane { /* a channel for consumers; what is delivered on it is settled on it */
        struct om_bus *bus;
        struct rmq_channel *channel;
        unsigned epoch; /* deliveries of an earlier one cannot be settled any more */
        unsigned n_subs;
        struct item *acked; /* in this turn */
        struct lane *next;
};
struct consumer {
        UT_hash_handle hh;
        uint64_t tag;
        struct om_bus_sub *sub; /* NULL: being cancelled, and nobody serves it */
        struct group *group;
        struct lane *lane;
        bool front, began, cancelling;
        unsigned prefetch, held, settling; /* the core has so many of it, and settles so many of these */
        struct consumer *next;             /* of the sub's */
};
struct delivery {
        struct om_delivery delivery; /* first */
        struct om_bus *bus;
        struct om_bus_sub *sub; /* NULL: nobody's */
        struct group *group;
        struct lane *lane;
        unsigned epoch;
        uint64_t tag, consumer;
        struct om_buf body;
        struct om_arena arena;
        struct om_span id;
        struct rmq_meta meta;
        bool front, given /* to the core */, held /* counted by its consumer */,
                moved /* a copy is where the verdict wants it: only the ack is left */, acked, over;
        unsigned settling;
        struct delivery *prev, *next;
};
struct om_bus_sub {
        struct om_bus *bus;
        void *core;
        struct group *group;
        struct lane *lane;
        struct consumer *consumers;
        unsigned want, n_given, n_settling;
        struct delivery *out;     /* with the core */
        struct delivery *waiting; /* for the core, front first */
        struct delivery *early;   /* for their due time */
        bool dirty;
        struct om_bus_sub *dirty_next;
        int64_t limbo_until_ms; /* 0: nothing is in limbo */
        struct om_bus_sub *prev, *next;
};
int rmq_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e);
void rmq_bus_unsubscribe(struct om_bus_sub *s);
void rmq_bus_want(struct om_bus_sub *s, unsigned n);
struct lane *rmq_lane_take(struct om_bus *b);
void rmq_sub_tune(struct om_bus_sub *s);   /* its consumers to what the core wants */
void rmq_sub_part(struct om_bus_sub *s);   /* from its consumers: nobody is served any more */
void rmq_sub_revoke(struct om_bus_sub *s); /* its group is gone */
void rmq_sub_dirty(struct om_bus_sub *s);  /* handed out at the end of the turn */
void rmq_subs_up(struct om_bus *b);
void rmq_subs_down(struct om_bus *b);
void rmq_group_changed(struct group *g); /* it has a front queue now */
void rmq_delivery_free(struct delivery *d);
bool rmq_delivery_is_stale(const struct delivery *d);
void rmq_deliveries_free(struct om_bus *b);
void rmq_on_delivered(void *ctx, struct rmq_event *ev);
struct consumer *rmq_consumer_of(struct om_bus *b, struct om_span name);
void rmq_consumer_hold(struct delivery *d);                 /* counted by its consumer, if that is there: the core has it */
void rmq_consumer_release(struct delivery *d);              /* no longer */
void rmq_consumer_settling(struct delivery *d, int change); /* 1: begins to be settled, -1: is not any more */
void rmq_sub_return_waiting(struct om_bus_sub *s);          /* what the core does not want any more goes back */
void rmq_sub_limbo(struct om_bus_sub *s);                   /* its channel is lost: what the core has is looked for when it is back */
void rmq_limbo_from(struct om_bus_sub *s, int64_t until_ms);
void rmq_sub_leave(struct om_bus_sub *s);
void rmq_sub_revoke_all(struct om_bus_sub *s);
void rmq_hand_out_all(struct om_bus *b);
void rmq_on_due_timer(evutil_socket_t fd, short what, void *ctx);
void rmq_lanes_free(struct om_bus *b);

/* -- verdicts (bus_settle.c) ----------------------------------------------------------------------------------------- */

int rmq_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e);
/* What the core never had, or has not any more. */
enum give_up { GIVE_BACK, GIVE_LATER /* at its due time */, GIVE_UP /* acknowledged */ };
void rmq_delivery_return(struct delivery *d, enum give_up how);

/* -- the rest -------------------------------------------------------------------------------------------------------- */

int rmq_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e);
int rmq_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e);
int rmq_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e);

/* Messages that are ready in queues, all asked for in one go; a queue that is not there has none (bus_count.c). */
struct count {
        char queue[QUEUE_NAME_MAX];
        struct topic *log; /* NULL: a queue */
        uint64_t *to;
};
struct counting {
        struct om_bus *bus;
        struct count *counts;
        size_t n, cap, open;
        int status;
        struct om_error error;
        void (*done)(struct counting *c);
        void *ctx;
        struct counting *next;
};
int rmq_count_add(struct counting *c, const char *queue, uint64_t *to); /* -ENOMEM */
int rmq_count_log(struct counting *c, struct topic *t, uint64_t *to);   /* tasks that the topic's log has seen */
int rmq_count_open(struct om_bus *b);
void rmq_count_free(struct om_bus *b);
void rmq_count_start(struct counting *c);
void rmq_count_deinit(struct counting *c);

/* Looking through a queue, or a log, by one user of the channel at a time (bus_browse.c). */
struct browse {
        struct om_bus *bus;
        char queue[QUEUE_NAME_MAX];
        bool log; /* a stream: from offset `from` on */
        uint64_t from;
        uint64_t count; /* messages of a queue that there are */
        uint64_t end;   /* log: the offset after the last that is wanted */
        /* false: enough. */
        bool (*each)(struct browse *w, struct rmq_event *ev, uint64_t place, uint64_t tag);
        /* What came stays ours until rmq_browse_end(). -ENOENT: no such queue. */
        void (*done)(struct browse *w, int status, const struct om_error *e);
        void *ctx;
        unsigned looks, quiets;
        bool started, ended, consuming;
        int late; /* it ended, with this, before the broker said that it consumes */
        struct om_error late_error;
        uint64_t place, acked;
        struct browse *next;
};
void rmq_browse_start(struct browse *w);
void rmq_browse_ack(struct browse *w, uint64_t tag); /* in or after done() */
/* The rest goes back; fn is called when that, and the acks, have been seen by the broker. */
void rmq_browse_end(struct browse *w, void (*fn)(struct browse *w));
int rmq_browse_open(struct om_bus *b);
void rmq_browse_down(struct om_bus *b);
void rmq_browse_free(struct om_bus *b);

struct om_bus {
        struct om_host *host;
        const struct om_bus_events *events;
        void *core;
        struct rmq_settings settings;
        struct om_jobs jobs;
        struct ssl_ctx_st *tls;
        struct evdns_base *own_dns;
        struct rmq_link *main, *pub;
        bool main_up, pub_up, loaded; /* the directory is */
        enum om_bus_state state;
        struct om_error reason;
        bool closing;
        struct om_op *close_op;
        unsigned open_links;
        struct om_post closed_post, turn_post;
        bool turn_posted;

        struct rmq_channel *control, *counter; /* sturdy */
        struct lane *lanes;
        unsigned n_lanes;
        struct consumer *consumers; /* by tag */
        uint64_t last_tag;
        struct om_bus_sub *subs, *dirty;
        struct event *due_timer;
        unsigned returning; /* deliveries on their way back */

        struct confirms *confirms;
        struct directory *directory;
        struct topic *topics;
        struct need *needs;
        struct browser *browser;
        struct finder *finder;
        uint64_t too_large; /* bytes of a body that the broker did not take; 0: not known */
};
void rmq_turn(struct om_bus *b); /* at the end of the turn deliveries are handed out and acks confirmed */
void rmq_sync_acks(struct om_bus *b);
void rmq_close_on(struct om_bus *b); /* something that closing waits for is over */
int rmq_bus_refuse(struct om_bus *b, struct om_error *e);
void rmq_bus_ready(struct om_bus *b);
void rmq_bus_check(struct om_bus *b);                          /* whether it can be used has changed */
void rmq_bus_fail(struct om_bus *b, const struct om_error *e); /* the broker will not have it: tried again with backoff */
static inline int rmq_admit(struct om_bus *b, size_t bytes, struct om_error *e) {
        int r = rmq_bus_refuse(b, e);

        return r < 0 ? r : om_job_admit(&b->jobs, OPS_MAX, (size_t) b->settings.max_pending_bytes, bytes, "RabbitMQ", e);
}

#endif
