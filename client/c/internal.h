/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OMNICLIENT_INTERNAL_H
#define OMNICLIENT_INTERNAL_H
/*
 * What the files of libomniclient share. Nothing here is exported; names begin with omc_.
 *
 *   client.c   making and freeing a client, one turn of service, waiting, omni_run(), the caller's own loop
 *   conn.c     the socket: where it is, connecting with backoff, hello, sending, receiving, what a lost connection does to all else
 *   call.c     requests: their frames, matching replies, repeating; omni_call(), omni_result_get()
 *   agent.c    agents: registering (again), ended, unregistering
 *   task.c     deliveries: reading them, what is held, what is lost
 *   settle.c   ack, fail, extend, and what the daemon says to it
 *   publish.c  publishing: batches, what became of each task
 *   default.c  the process's own client
 *
 * The rule that keeps re-entry harmless: bytes that arrive are read completely before any code of the user runs. What the user is to be
 * told waits in `events` (replies, notifications, the connection's coming and going) and `ready` (tasks), and only the outermost call on
 * the client takes from these lists, one at a time, touching nothing of the element afterwards. A blocking call inside a handler therefore
 * serves the socket and its own answer, and nothing else happens under the handler's feet.
 */
#include "../../proto/buf.h"
#include "../../proto/error.h"
#include "../../proto/frame.h"
#include "../../proto/json_scan.h"
#include "../../proto/rpc.h"
#include "../../proto/task.h"
#include "omniclient.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/types.h>

enum {
        OMC_PROTOCOL = 1,
        OMC_BUCKETS = 256,         /* of the table of calls by id */
        OMC_SPARE_MAX = 64,        /* calls kept for use again */
        OMC_SPARE_BYTES = 1 << 16, /* memory that a spare call keeps */
        OMC_BATCH_BEFORE_HELLO = 100,
        OMC_READ_BYTES = 1 << 16,
        OMC_TURN_BYTES = 1 << 20, /* read from the socket in one turn */
        OMC_TURN_MS = 2,          /* handlers run this long before what they made is sent */
};
#define OMC_BATCH_BYTES ((size_t) 1 << 18) /* of a frame of publishes, or of acks, before the next is begun */
#define OMC_INBOUND_MAX ((size_t) 64 << 20)

/* -- lists --------------------------------------------------------------------------------------------------------- */

struct omc_link {
        struct omc_link *prev, *next; /* both NULL: on no list */
};
static inline void omc_list_init(struct omc_link *head) { head->prev = head->next = head; }
static inline bool omc_list_empty(const struct omc_link *head) { return head->next == head; }
static inline bool omc_linked(const struct omc_link *link) { return link->next; }
static inline void omc_link_before(struct omc_link *place, struct omc_link *link) {
        link->prev = place->prev;
        link->next = place;
        place->prev->next = link;
        place->prev = link;
}
static inline void omc_append(struct omc_link *head, struct omc_link *link) { omc_link_before(head, link); }
static inline void omc_unlink(struct omc_link *link) {
        if (!link->next)
                return;
        link->prev->next = link->next;
        link->next->prev = link->prev;
        link->prev = link->next = NULL;
}
#define omc_of(type, member, pointer) ((type *) (void *) ((char *) (pointer) -offsetof(type, member)))

/* -- calls --------------------------------------------------------------------------------------------------------- */

enum omc_type {
        OMC_REQUEST,    /* of omni_call() and the like */
        OMC_HELLO,      /* the first of each connection */
        OMC_PUBLISH,    /* task.publish with tasks[]; an entry each */
        OMC_ACK,        /* task.ack; an entry each */
        OMC_FAIL,       /* task.fail; one entry */
        OMC_REGISTER,   /* agent.register of call->agent */
        OMC_UNREGISTER, /* agent.unregister of call->agent */
        OMC_ONE_WAY,    /* a notification to the daemon: gone once it is sent */
        OMC_NOTICE,     /* never sent: a notification of the daemon, waiting in `events`; fn is omni_notification_fn's */
        OMC_CHANGE,     /* never sent: the connection came (status 0) or went, waiting in `events` */
};

/* One task of a batch. */
struct omc_entry {
        uint64_t delivery;     /* OMC_ACK, OMC_FAIL */
        size_t offset, length; /* OMC_ACK: where its JSON stands in the frame, to send it again */
        void (*fn)(void);      /* omni_published_fn or omni_settled_fn, or NULL */
        void *user;
        int status; /* OMC_ACK, OMC_FAIL: what became of it */
};

enum omc_place { OMC_NOWHERE, OMC_ON_CALLS, OMC_ON_LATER, OMC_ON_EVENTS };

struct omc_call;
/* What to do with an answer. `answer` is the result where call->status is 0, the error object where the daemon refused, else absent. */
typedef void omc_done_fn(omni_client *c, struct omc_call *call, struct om_span answer);

struct omc_call {
        struct omc_link link;
        enum omc_place place;   /* the list that it is on */
        struct omc_call *chain; /* next in its bucket */
        enum omc_type type;
        uint64_t id;
        struct om_buf frame; /* as it goes out; once answered, the answer */
        size_t sent;         /* bytes of it that this connection has taken */
        bool ever_sent;      /* some connection has taken some of it: the daemon may have acted on it */
        bool repeat;         /* may be sent again on another connection */
        bool has_answer;     /* frame holds the answer */
        omc_done_fn *done;   /* NULL: nobody wants to know */
        bool immediate;      /* done runs no code of the user's: it is called at once, at any depth */
        void *owner;         /* the blocking call that waits for it (a struct omc_waiter) */
        omni_agent *agent;   /* OMC_REGISTER, OMC_UNREGISTER */
        void (*fn)(void);    /* the user's callback */
        void *user;          /* its argument, or done's */
        struct omc_entry *entries;
        size_t n_entries, entries_cap;
        size_t n_fns;   /* entries with a callback */
        unsigned tries; /* refusals with `unavailable` so far */
        int64_t due_ms; /* on `later`: when to send it again */
        int status;
        struct om_error error;
};

/* What a blocking call waits for. */
enum omc_want {
        OMC_ANSWERS,   /* until not more than `enough` of its calls are left */
        OMC_CONNECTED, /* a connection that has been met */
        OMC_QUIET,     /* nothing unanswered or unsent */
        OMC_SETTLED,   /* no ack or fail unanswered, or no connection */
};
struct omc_waiter {
        enum omc_want want;
        size_t left, enough;
        int status;
        struct om_buf answer;
        struct om_error error;
};

/* -- agents and tasks ---------------------------------------------------------------------------------------------- */

struct omni_agent {
        struct omc_link link; /* in client->agents */
        omni_client *client;
        char *name, *topic, *group;
        struct om_buf params; /* of agent.register */
        omni_handler_fn *handler;
        void *user;
        int64_t subscription; /* while active */
        bool active;          /* this connection serves it */
        bool registering;     /* an OMC_REGISTER of it is on calls or later */
        bool ended;           /* deleted or refused there: not registered again; `reason` says why */
        bool leaving;         /* the user has no pointer to it any more; freed once the daemon has answered */
        int ended_status;
        char *reason;
        struct omc_link tasks; /* that the user or `ready` holds */
        size_t held;           /* of them not lost */
        size_t held_max;
        int64_t extend_every_ms, extend_at_ms; /* 0: the library does not extend */
};

struct omni_task {
        struct omc_link link;  /* in agent->tasks */
        struct omc_link ready; /* in client->ready until its handler is called */
        omni_agent *agent;
        uint64_t delivery;
        bool lost;
        int attempt, priority;
        struct om_span created_at; /* in json; few ask for it */
        size_t json_len, content_len;
        const char *json, *content, *id, *topic, *key, *reply_to, *correlation_id, *causation_id, *source, *tenant_id, *traceparent,
                *headers, *webhook; /* all in `text`, zero-terminated */
        char text[];
};

/* -- the client ---------------------------------------------------------------------------------------------------- */

enum omc_state {
        OMC_IDLE, /* no socket, and nothing has needed one yet; left by the first need */
        OMC_AWAY, /* no socket: the next attempt is at retry_at_ms; left by a connect() that succeeds */
        OMC_MEET, /* connected; only hello goes out; left by its answer */
        OMC_UP,   /* all goes out */
};

struct omni_client {
        omni_client_options options; /* strings are ours */
        pid_t pid;                   /* of the process that made it */
        enum omc_state state;
        bool wanted; /* something has needed a connection: keep one from now on */
        bool broken; /* sending failed: read what is left, then disconnect */
        bool ever_up;
        int epoll_fd, wake_fd, socket_fd;
        bool watch_out; /* the socket took not all: epoll tells when it takes more */
        atomic_int stop;
        unsigned depth;  /* codes of the user's on the stack */
        bool winding_up; /* omni_run() returns: no more handlers are called */
        bool woken;      /* omni_wakeup() was called, and no omni_run_once() or omni_process() has seen it yet */

        char path[108]; /* of the last attempt */
        int64_t retry_at_ms;
        unsigned failures; /* attempts in a row */
        uint64_t attempts;
        int away_status; /* why there is no connection */
        struct om_error away;
        uint64_t jitter;

        size_t frame_max, batch_max, prefetch_max; /* the daemon's limits */

        struct om_buf in;
        struct omc_link calls;   /* in the order of sending; those up to `unsent` are with the daemon */
        struct omc_link *unsent; /* the first not wholly sent; &calls when none */
        struct omc_link later;   /* refused as unavailable: to be sent again */
        struct omc_link events;  /* for the user */
        struct omc_link ready;   /* tasks whose handler is to be called */
        struct omc_link spare;
        size_t n_calls, n_spare;
        size_t bytes;        /* of frames in calls, open batches included */
        size_t notice_bytes; /* of OMC_NOTICE in events */
        struct omc_call *buckets[OMC_BUCKETS];
        uint64_t last_id;
        struct omc_call *open_publish, *open_ack; /* batches that still grow; not on calls */

        struct omc_link agents;
        omni_connection_fn *on_connection;
        void *on_connection_user;
        omni_notification_fn *on_notification;
        void *on_notification_user;

        struct om_error error; /* omni_strerror() */
};

/* client.c */
int64_t omc_now_ms(void);
/* Keeps the text for omni_strerror() and returns `status`. */
int omc_fail(omni_client *c, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
int omc_fail_error(omni_client *c, int status, const struct om_error *e);
/* Serves until what `w` wants is there. deadline_ms is of omc_now_ms() (-1: none); away_ms is how long there may be no connection (-1: for
 * ever). 0, or negative with the text kept: then the caller detaches what it owns. */
int omc_wait(omni_client *c, struct omc_waiter *w, int64_t deadline_ms, int64_t away_ms);
int64_t omc_deadline(const omni_client *c); /* of a blocking call that begins now */
/* Copies a caller's options struct of any age into one of ours. */
void omc_copy_options(void *ours, size_t size, const void *theirs);

/* conn.c */
void omc_connect_if_due(omni_client *c, int64_t now);
void omc_send(omni_client *c); /* what the socket takes now; a failure sets `broken` */
/* Waits, for some seconds at most, until no frame is half sent: before what may take long, since the daemon waits for the rest of a frame
 * only so long. */
void omc_finish_frame(omni_client *c);
int omc_receive(omni_client *c); /* what is there; 0 or -EPROTO, -ENOMEM after disconnecting */
/* Ends the connection (or an attempt). status -EPROTO, -ENOMEM: every call fails with it; else those that can be repeated stay. */
void omc_disconnect(omni_client *c, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void omc_lease_over(struct omc_call *call, const char *reason); /* says so in its error */
int omc_fault(omni_client *c, struct om_error *e, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* call.c */
struct omc_call *omc_call_new(omni_client *c, enum omc_type type);
void omc_call_free(omni_client *c, struct omc_call *call);
/* Ends the frame (its params are written) and puts it on `calls` behind all others, or in front of what is not sent. 0, or -ENOMEM,
 * -EMSGSIZE with the call untouched but not queued. */
int omc_call_queue(omni_client *c, struct omc_call *call, bool in_front);
void omc_call_take(omni_client *c, struct omc_call *call); /* off whatever list it is on */
void omc_call_finish(omni_client *c, struct omc_call *call, int status, struct om_span answer);
void omc_call_later(omni_client *c, struct omc_call *call);
void omc_call_again(omni_client *c, struct omc_call *call); /* off `later`, to be sent; its frame is ended */
void omc_event_add(omni_client *c, struct omc_call *call);
struct omc_call *omc_call_find(omni_client *c, uint64_t id);
struct omc_entry *omc_entry_add(struct omc_call *call);
/* The blocking call `owner` gives up. Returns whether the daemon may have acted on any of its calls. */
bool omc_detach(omni_client *c, void *owner);
void omc_close_batches(omni_client *c);
void omc_event_run(omni_client *c, struct omc_call *call);
void omc_done_wait(omni_client *c, struct omc_call *call, struct om_span answer);  /* for call->owner */
void omc_done_reply(omni_client *c, struct omc_call *call, struct om_span answer); /* for an omni_reply_fn */
bool omc_get(struct om_span object, const char *name, unsigned types, struct om_json_value *ret);

/* agent.c */
void omc_agents_register(omni_client *c); /* the connection is up */
void omc_agents_down(omni_client *c);     /* it is gone */
int omc_agent_ended(omni_client *c, struct om_span params, struct om_error *e);
void omc_agent_free(omni_agent *a);
omni_agent *omc_agent_of(omni_client *c, int64_t subscription);
/* Agents there are, and none that is or will be served: the reason is kept for omni_strerror() and returned. Else 0. */
int omc_agents_over(omni_client *c);

/* task.c */
int omc_deliver(omni_client *c, struct om_span params, struct om_error *e);
int omc_revoked(omni_client *c, struct om_span params, struct om_error *e);
void omc_task_free(omni_task *t);
void omc_agent_lose_tasks(omni_agent *a);

/* settle.c */
void omc_extend_due(omni_client *c, int64_t now);
int omc_ack_close(omni_client *c);

/* publish.c */
int omc_publish_close(omni_client *c);
/* Appends one task. `depth_left`: arrays and objects that content may nest. ret_id may be NULL. 0, -EINVAL, with the text kept; then what
 * was appended is to be cut off. */
int omc_put_task(omni_client *c, struct om_buf *b, const omni_publish_options *task, unsigned depth_left);

/* default.c */
void omc_default_forget(omni_client *c); /* it is being freed */

#endif
