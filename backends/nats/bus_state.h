/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_BUS_STATE_H
#define OM_NATS_BUS_STATE_H
/*
 * What the files of the NATS bus share. Everything is the loop's.
 *
 * On the server, with the prefix "omni" (NT, NA: topic and agent as names, S: the topic as a subject; names.h), these streams with these
 * subjects:
 *
 *   omni-t-NT: omni.t.S
 *       a topic's log: these messages and no others, so that its sequence numbers count them. Its consumers are the groups: NA, or for the
 *       group of a pattern NT@NA. Their metadata hold the agent, the pattern, and the number of the task that the group began with
 *   or, with stream=NAME, NAME: omni.t.>
 *       the logs of all topics. The consumers of a topic's groups take its subject only: NT@NA, or NT@PATTERN@NA. Nats-Msg-Id is NT@BORN@ID
 *   omni-state: omni.s.top.NT
 *       with stream=NAME, a topic (bus_record.c)
 *   omni-d-NT@NA: omni.d.NT.NA.STREAM-SEQ
 *       a group's dead letters, each by the message that it was; made when the first is there
 *   omni-a-NT@NA: omni.a.NT.NA.SEQ
 *       dead letters given back to the group alone, and a consumer "again" for them; an ack deletes
 *   omni-state: omni.s.rel.STREAM.CONSUMER.SEQ
 *       a message that was given back without counting and waits: how many of its deliveries do not count
 *   omni-state: omni.s.off.STREAM.CONSUMER.SEQ
 *       the same of one that does not wait for that reason any more
 *   omni-state: omni.s.pat.NT.NA
 *       the group of a pattern
 *   omni-keys: omni.k.NT.KEY
 *       an idempotency key: the id of the task that was published first, for idempotency_window_ms
 *
 * On the subject omni.note, told and not kept: "STREAM", these replays have a consumer now; "join TOPIC", groups of patterns have one
 * there; "forget", a topic of a shared stream was deleted, or the stream: what is there has to be looked after again; "gone TOPIC", it is
 * being deleted, or was.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "../../proto/hash.h"
#include "../bus.h"
#include "../job.h"
#include "json.h"
#include "link.h"
#include "names.h"

enum {
        OPS_MAX = 8192,
        SHARED_STREAM_MAX = 100,
        STREAM_NAME_MAX = 40 + 3 + 2 * NATS_NAME_MAX + 2,
        CONSUMER_NAME_MAX = 3 * 80 + 2 + 1, /* not less than of two names */
        SUBJECT_MAX = 40 + 3 + 3 * OM_TOPIC_MAX + 2,
};
#define BYTES_MAX ((size_t) 64 << 20)

struct bus_settings {
        struct nats_settings c; /* first */
        const char *stream;
        int64_t retention_ms, max_topic_bytes, max_topic_tasks, dedupe_window_ms, idempotency_window_ms, ack_wait_ms;
        int format;
        bool cloudevents;
};
enum { FORMAT_TASK, FORMAT_RAW };

/* -- operations ---------------------------------------------------------------------------------------------------- */

struct job { /* of an operation; embedded, first */
        struct om_job base;
        struct om_bus *bus;
};

int nats_job_admit(struct om_bus *b, size_t bytes, struct om_error *e);
void nats_job_begin(struct om_bus *b, struct job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *));

/* -- consumers of a stream (bus_roll.c) ----------------------------------------------------------------------------- */

/* Reads them one after the other; answers by `done`. */
struct roll {
        struct om_bus *bus;
        const char *stream; /* the caller's, as long as it runs */
        char *names;        /* those whose names begin so, which are few; NULL: all */
        struct om_arena arena;
        struct named {
                struct named *next;
                const char *name;
        } * named;
        struct nats_request req;
        void (*each)(struct roll *r, struct om_span info);
        void (*done)(struct roll *r, int status, const struct om_error *e); /* -ENOENT: the stream is not there */
        void *ctx;
};
void nats_roll_start(struct roll *r, struct om_bus *b, const char *stream, const char *names);
/* Whether a consumer's messages are those of the subject, maybe among others. */
bool nats_consumer_takes(struct om_span info, const char *subject);
/* The lowest sequence number that all of them have finished. */
struct floor {
        uint64_t seq;
        size_t n;
};
void nats_floor_add(struct floor *f, struct om_span info);

/* -- streams (bus_stream.c) ------------------------------------------------------------------------------------------ */

enum stream_kind { STREAM_LOG, STREAM_SHARED, STREAM_GROUP, STREAM_STATE, STREAM_KEYS };
struct stream_wait { /* who waits for a stream or a topic */
        void (*fn)(struct stream_wait *w, int status, const struct om_error *e);
        struct stream_wait *next;
};
struct needed { /* made when first needed, and looked after again when it may be gone */
        enum { NEEDED_UNKNOWN, NEEDED_MAKING, NEEDED_THERE } state;
        bool again; /* while it was made it may have gone */
        struct stream_wait *waits;
};
/* True: the caller makes it and says so by nats_needed_made(); w->fn is called then, or has been. */
bool nats_needed_ask(struct needed *n, struct stream_wait *w);
void nats_needed_made(struct needed *n, int status, const struct om_error *e);
void nats_needed_forget(struct needed *n);

struct stream {
        UT_hash_handle hh;
        struct om_bus *bus;
        enum stream_kind kind;
        char name[STREAM_NAME_MAX];
        char *subject;
        const char *topic; /* whose it is alone; NULL: of many */
        struct needed needed;
        bool fresh;    /* it was made just now, by us */
        char life[40]; /* STREAM_SHARED: when it was made; another is another stream */
        struct nats_request make;
        /* the sweep */
        struct roll roll;
        bool looking;
        struct topic *due; /* to be looked at in this round */
        int64_t began_ms, rest_until_ms;
        struct stream *next;
};
struct stream *nats_stream_new(struct om_bus *b, enum stream_kind kind, const char *name, const char *subject, const char *topic);
void nats_stream_free(struct stream *s);
/* The stream of a group's dead letters. */
struct stream *nats_dead_get(struct om_bus *b, const struct topic *t, const char *na);
/* Calls w->fn, now or later, when the stream is there or cannot be made. */
void nats_stream_need(struct stream *s, struct stream_wait *w);
void nats_put_stream_config(
        struct om_buf *body, const struct om_bus *b, const char *name, const char *subject, const char *topic, enum stream_kind kind);

/* -- messages (bus_survey.c) ---------------------------------------------------------------------------------------- */

/* From a sequence number on, in batches. */
struct fetch {
        struct om_bus *bus;
        struct nats_request req;
        bool (*each)(struct fetch *f, natsMsg *msg, uint64_t seq); /* false: enough */
        void (*done)(struct fetch *f, int status, const struct om_error *e, bool more);
        void *ctx;
        size_t got;
        bool enough;
        uint64_t left; /* behind what came */
};
/* `filter`: their subject; NULL: any. */
void nats_fetch_start(struct fetch *f, struct om_bus *b, const char *stream, const char *filter, uint64_t from, size_t n);
/* How many there are: f->got + f->left. */
void nats_count_start(struct fetch *f, struct om_bus *b, const char *stream, const char *filter, uint64_t from);
uint64_t nats_message_seq(natsMsg *msg);

/* -- topics (bus_topic.c, bus_sweep.c) ------------------------------------------------------------------------------ */

struct record {          /* what the state stream says of a topic of a shared stream */
        uint64_t seq;    /* of the record; 0: there is none */
        int64_t born_ms; /* when the topic was made */
        uint64_t floor;  /* what is there from here down counts as gone: it is being dropped */
        uint64_t gone;   /* how many of its messages */
        bool joined;     /* the groups of patterns have their consumers */
};
struct purge {
        struct topic *topic;
        struct nats_request req;
        struct fetch fetch;
        struct record record;
        uint64_t floor, above; /* up to where, and how many are left */
        int64_t n;             /* how many were counted as gone, or are to be besides */
        unsigned tries;
        void (*done)(struct purge *p);
        void *ctx;
};
struct topic {
        UT_hash_handle hh;
        struct om_bus *bus;
        char name[OM_TOPIC_MAX + 1];
        char nt[NATS_NAME_MAX + 1], subject[SUBJECT_MAX];
        struct stream *log; /* its own, or the bus's shared one */
        struct needed needed;
        struct stream_wait log_wait;
        struct nats_request req;
        struct record record; /* while it is made */
        unsigned tries;
        /* what every group has finished */
        bool dirty, sweeping;
        struct topic *dirty_next, *due_next;
        struct purge sweep;
        struct floor lowest; /* while sweeping */
        /* A stream that is made anew begins at 1 again: what a sweep saw of the one before says nothing of it. */
        unsigned deleting;          /* deletions of the topic that are under way here */
        unsigned deletions, looked; /* how often one began or ended, here or elsewhere; and that when the sweep began to look */
        uint64_t floor;             /* finished by all at floor_ms */
        int64_t floor_ms;
};
struct topic *nats_topic_get(struct om_bus *b, struct om_span name); /* NULL: out of memory */
/* The one that we know whose subject it is, or NULL; the name that such a subject says. */
struct topic *nats_topic_of(struct om_bus *b, struct om_span subject);
bool nats_topic_name(const struct om_bus *b, struct om_span subject, struct om_buf *ret);
/* What its messages are asked for by in its stream: their subject, or NULL where the stream has no others. */
const char *nats_topic_filter(const struct topic *t);
/* Calls w->fn, now or later, when the topic is there or cannot be made. */
void nats_topic_need(struct topic *t, struct stream_wait *w);
void nats_topic_joined(struct topic *t, int status, const struct om_error *e); /* the groups of patterns have their consumers */
void nats_topic_gone(struct topic *t);                                         /* nobody takes its messages */
/* Whether it is as it was when it had so many `deletions`: what was seen then may be dropped. */
static inline bool nats_topic_lasts(const struct topic *t, unsigned deletions) { return !t->deleting && t->deletions == deletions; }
/* Its deletion begins, or has ended: here and, by a note, on other daemons nothing is dropped for what was seen before. */
void nats_topic_deletion(struct topic *t, bool begins);
void nats_topic_touch(struct topic *t); /* something was finished: what nobody needs is dropped soon */
void nats_topics_down(struct om_bus *b);
void nats_topics_free(struct om_bus *b);
void nats_on_sweep_timer(evutil_socket_t fd, short what, void *ctx);
/* Drops the topic's messages up to a sequence number. */
void nats_purge_start(struct purge *p, struct topic *t, uint64_t floor, void (*done)(struct purge *p), void *ctx);
/* The record of a topic (bus_record.c): read, its JSON, and what it says (false: none of this life of the stream); written on condition
 * that it is as it was read, and whether it was: -ESTALE: to be read and tried again. */
int nats_record_read(const struct topic *t, struct nats_request *r, nats_reply_fn *fn, void *ctx);
bool nats_record_text(const struct nats_reply *reply, struct om_buf *ret);
bool nats_record_came(const struct topic *t, const struct nats_reply *reply, struct record *ret);
int nats_record_write(const struct topic *t, const struct record *record, struct nats_request *r, nats_reply_fn *fn, void *ctx);
int nats_record_written(struct record *record, const struct nats_reply *reply, const char **ret_why);
/* The name of a group's consumer on the topic; of a pattern's, where `pattern` is one. In a shared stream, without an agent: what those of
 * the topic begin with. False: out of memory. */
bool nats_consumer_name(char *out, size_t size, const struct topic *t, const char *pattern, const char *agent);

/* -- groups and deliveries (bus_group.c, bus_deliver.c) ------------------------------------------------------------- */

struct source { /* a consumer that we ask for messages */
        UT_hash_handle hh;
        struct om_bus *bus;
        char key[STREAM_NAME_MAX + CONSUMER_NAME_MAX + 2]; /* "stream\037consumer" */
        char stream[STREAM_NAME_MAX], consumer[CONSUMER_NAME_MAX];
        struct om_bus_sub *sub; /* NULL: not served any more */
        struct topic *topic;    /* whose messages they are; NULL: of replays, they say it themselves */
        struct source *next;    /* of the sub's */
        struct nats_request inbox, look;
        unsigned asked; /* of messages, and not come */
        int64_t heard_ms;
        bool again;               /* of replayed dead letters */
        bool lost;                /* whether its consumer is there could not be asked: asked again */
        char life[40];            /* when its consumer was made; another is another consumer. Empty: not known, nothing came yet */
        int64_t away_ms;          /* since when the server was away; 0: it is there, with the consumer as it was */
        struct verdict *verdicts; /* the last ones about leases, oldest first */
        size_t n_verdicts;
};
struct om_bus_sub {
        struct om_bus *bus;
        void *core;
        struct topic *topic; /* or the pattern: it has a name, and no stream */
        bool pattern;
        char agent[OM_NAME_MAX + 1], na[NATS_NAME_MAX + 1];
        struct source *sources; /* of the log, or of each log that matches the pattern; and of replays */
        struct source *again;
        unsigned want;
        int64_t lease_ms; /* how long the server waits for a sign of life from a daemon */
        struct delivery *out;
        struct om_delivery **fresh; /* for the core at the end of this turn */
        size_t n_fresh, cap_fresh;
        struct nats_request look;
        struct om_bus_sub *prev, *next;
};
struct delivery {
        struct om_delivery delivery; /* first */
        struct om_bus *bus;
        struct om_bus_sub *sub; /* NULL: nobody's */
        natsMsg *msg;
        struct om_arena arena;               /* a record that we made ourselves */
        const char *stream, *consumer, *ack; /* in the message's reply subject's copy */
        char *names;
        struct topic *topic; /* NULL: of a topic that this daemon has nothing to do with any more */
        bool again, given /* to the core */, extended, has_rel, has_off;
        uint32_t delivered, uncounted;
        uint64_t seq, consumer_seq;
        int64_t touched_ms; /* when the server last heard of it */
        struct nats_request look[2];
        unsigned n_look;
        unsigned settling; /* verdicts under way: it is freed after them */
        uint32_t slot;     /* in the journal of leases, from 1; 0: none */
        bool over;
        bool look_failed;
        struct delivery *prev, *next;
};
int nats_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e);
void nats_bus_unsubscribe(struct om_bus_sub *s);
void nats_bus_want(struct om_bus_sub *s, unsigned n);
void nats_bus_extend(struct om_bus *b, struct om_delivery *const *deliveries, size_t n);
struct source *nats_source_get(struct om_bus *b, const char *stream, const char *consumer); /* made if need be */
struct source *nats_source_find(struct om_bus *b, const char *stream, const char *consumer);
bool nats_is_from(const struct delivery *d, const struct source *s);
void nats_source_look(struct source *s); /* whether its consumer is there, and the same */
void nats_source_free(struct source *s);
void nats_sub_pull(struct om_bus_sub *s);
void nats_sub_revoke(struct om_bus_sub *s); /* its group is gone */
void nats_sub_find_again(struct om_bus_sub *s);
int nats_sub_attach(struct om_bus_sub *s, struct topic *t); /* takes its messages from there too */
/* bus_pattern.c */
/* A topic was made: groups of patterns that match get their consumers before anything is published to it; then nats_topic_joined(). */
void nats_patterns_join(struct topic *t);
/* The group of a pattern: written down, its consumers made on all topics there are, and attached to. */
void nats_pattern_subscribe(struct om_bus_sub *s, enum om_start start, int64_t start_ms,
        void (*done)(void *ctx, int status, const struct om_error *e, bool created), void *ctx);
void nats_pattern_find(struct om_bus_sub *s); /* connected again: which topics there are meanwhile */
void nats_subs_up(struct om_bus *b);
void nats_subs_down(struct om_bus *b);
void nats_message_came(void *ctx, natsMsg *msg);
void nats_turn_over(void *ctx);
void nats_note_came(void *ctx, natsMsg *msg);
void nats_delivery_free(struct delivery *d);
struct start { /* of a group: its first message, and which of the topic's tasks that is, counted from 1 */
        uint64_t seq, number;
};
/* The request that makes a group's consumer on the topic; of a pattern's, where `pattern` is one. It is refused with
 * NATS_ERR_CONSUMER_EXISTS where another has made it meanwhile, which starts elsewhere. */
void nats_put_group_config(struct om_buf *body, const struct topic *t, const char *consumer, const char *agent, const char *pattern,
        struct start start, int64_t lease_ms);
void nats_put_again_config(struct om_buf *body, const struct om_bus *b, const char *stream, const char *agent);
/* The record of a message, ours or another program's; in the message or in `arena`. Absent: out of memory. `t`: its topic, if known. */
struct om_span nats_message_record(natsMsg *msg, const struct topic *t, const char *stream, uint64_t seq, struct om_arena *arena);

/* -- leases when a daemon or a server dies (bus_lease.c) ------------------------------------------------------------- */

int nats_leases_open(struct om_bus *b, const char *where, struct om_error *e);
void nats_leases_close(struct om_bus *b);
void nats_lease_note(struct delivery *d);
void nats_lease_forget(struct delivery *d);
void nats_leases_return(struct om_bus *b); /* connected: what the last life of this daemon held goes back */
/* The server has confirmed that verdict; `due_ms`: of a -NAK, when the task may come again. */
void nats_verdict_note(struct delivery *d, const char *text, int64_t due_ms);
void nats_verdicts_forget(struct source *s);
/* The server was away from then on and may have forgotten the last ones: they are told again. */
void nats_verdicts_repeat(struct source *s, int64_t away_ms);

/* -- verdicts (bus_settle.c) ---------------------------------------------------------------------------------------- */

int nats_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e);
enum { NATS_CONFIRM_MS = 400 }; /* how long a verdict's confirmation is waited for, at first */
void nats_on_confirm_timer(evutil_socket_t fd, short what, void *ctx);
void nats_release_delivery(struct delivery *d);                        /* that the core never had */
void nats_put_place(char *out, size_t size, const struct delivery *d); /* "STREAM.CONSUMER.SEQ" */
/* Calls the server's interface without waiting for what it says. */
void nats_call_and_forget(struct om_bus *b, const char *what, const char *body);

/* -- publishing (bus_publish.c) ------------------------------------------------------------------------------------- */

int nats_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e);
/* One task on its way to its topic's log. */
struct publication {
        struct stream_wait wait; /* first */
        struct om_bus *bus;
        struct topic *topic;
        struct nats_request req;
        natsMsg *msg; /* until it is sent */
        bool again;
        bool by_id;               /* the server knows it by the task's id */
        bool needing;             /* it waits for its topic to be made again: that answers, whatever becomes of the request */
        char *key;                /* the subject under which its idempotency key is known; NULL: none */
        char id[OM_NAME_MAX + 1]; /* with a key: its id, then the first one's */
        bool duplicate, made_keys, asked_keys;
        uint64_t first_seq; /* of a duplicate: where the first is; else 0 */
        struct nats_request key_req;
        void (*done)(struct publication *p, int status, const char *why);
        void *ctx;
        /* nothing took it yet: tried again, soon */
        void (*retry)(struct publication *p);
        int64_t since_ms, due_ms;
        unsigned tries;
        struct publication *prev, *next;
};
/* `once`: what the server shall know it by instead of its id. NULL: the id. */
int nats_publication_init(struct publication *p, struct om_bus *b, const struct om_bus_task *t, const char *once);
const char *nats_bare_id(const struct topic *t, const char *id); /* what a message's id is without what a shared stream puts before it */
void nats_publication_start(struct publication *p);
/* One that was not started. */
void nats_publication_drop(struct publication *p);
/* bus_keys.c: whether the key is known already, and making it known after publishing. */
int nats_key_init(struct publication *p, const struct om_task *t);
void nats_key_ask(struct publication *p);
void nats_key_put(struct publication *p);
void nats_key_find_first(struct publication *p);
void nats_publication_over(struct publication *p, int status, const char *why);
/* Has retry(p) called in a while. False: it was tried for long enough. */
bool nats_publication_later(struct publication *p, void (*retry)(struct publication *p));
void nats_on_retry_timer(evutil_socket_t fd, short what, void *ctx);
void nats_publications_down(struct om_bus *b);
/* What an answer to a publish means: 0, or a status with static text. */
int nats_publish_answer(const struct nats_reply *reply, const char **ret_why);

/* -- looking in and changing (bus_survey.c, bus_query.c, bus_change.c) ---------------------------------------------- */

int nats_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e);
int nats_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e);

struct found_group {
        char *agent, *pattern; /* NULL: of the topic itself */
        char *consumer;
        uint64_t floor, start, pending, unacked, again, dead, released;
};
struct found_topic {
        UT_hash_handle hh;
        char *topic, *stream, *life;
        uint64_t first, last, published;
        uint64_t messages, above; /* that are there, and of them what some group has not finished */
        uint64_t gone, floor;     /* as in the record */
        struct found_group *groups;
        size_t n_groups;
        struct floor lowest; /* of all groups */
        struct survey *survey;
        struct roll roll;
        struct fetch fetch;
};
/* Reads all topics, or one, with their groups; answers by `done`, with what it found until nats_survey_free(). */
struct survey {
        struct om_bus *bus;
        struct om_arena arena;
        char topic[OM_TOPIC_MAX + 1];
        bool plain; /* set before: without letters, replays and releases */
        struct found_topic **topics, *by_name;
        size_t n, cap;
        struct om_span dead, again, released; /* answers, copied */
        struct nats_request req[4];
        char records[SUBJECT_MAX]; /* of a shared stream's topics */
        bool grouped;              /* their groups are asked for, or known */
        struct fetch fetch;
        struct roll roll;
        uint64_t from;
        unsigned open;
        size_t asked; /* topics that were asked for */
        int status;
        struct om_error error;
        void (*done)(struct survey *s);
        void *ctx;
};
void nats_survey_start(struct survey *s, struct om_bus *b, struct om_span topic, void (*done)(struct survey *), void *ctx);
void nats_survey_free(struct survey *s);
/* Whether it is this agent's on this topic, or pattern. */
bool nats_group_is(const struct found_group *g, const char *topic, const char *agent);
uint64_t nats_survey_depth(const struct found_topic *t);

/* Where a group starts on the topic; bus_start.c. */
struct start_find {
        struct om_bus *bus;
        struct topic *topic;
        const struct found_topic *found;
        struct nats_request req;
        struct fetch fetch;
        struct start start;
        void (*done)(struct start_find *f, int status, const struct om_error *e);
        void *ctx;
};
/* The found topic stays the caller's, until it is done. */
void nats_start_find(struct start_find *f, struct topic *t, const struct found_topic *found, enum om_start start, int64_t start_ms);
uint64_t nats_number_of(struct om_span s);              /* 0: none */
void nats_put_time(char *out, size_t size, int64_t ms); /* RFC 3339 */
bool nats_letter_read(struct om_span data, uint64_t seq, struct om_arena *arena, struct om_dead_letter *ret);

/* -- the bus -------------------------------------------------------------------------------------------------------- */

struct om_bus {
        struct om_host *host;
        const struct om_bus_events *events;
        void *core;
        struct bus_settings settings;
        char *texts; /* what the settings' strings point into */
        struct om_url *url;
        struct nats_link *link;
        enum om_bus_state state;
        struct om_error reason;
        bool clustered, closing, has_domain;
        struct stream_wait shared_wait;
        bool remote;    /* our streams are not on the server that we are connected to, or may move */
        bool keys_made; /* the stream of idempotency keys is there */
        char state_stream[STREAM_NAME_MAX], note_subject[64];
        struct nats_request hello;
        struct stream *shared; /* where all topics are; NULL: each has its own */
        bool account_counts;   /* the account says how many consumers a stream may have */
        struct topic *topics, *dirty;
        struct stream *deads; /* of groups' dead letters, by name */
        struct source *sources;
        struct om_bus_sub *subs;
        struct event *sweep_timer, *beat_timer, *confirm_timer, *retry_timer;
        bool undeleted; /* what is finished could not be deleted the last time, and that was said */
        struct publication *retrying;
        int64_t retry_ms;                     /* when its timer is due */
        struct item *confirming;              /* verdicts that the server has not confirmed, oldest first */
        int64_t confirm_ms, confirm_since_ms; /* how long one is waited for, and since when */
        struct om_jobs jobs;
        int leases_fd;
        char *leases; /* the journal, mapped */
        size_t n_leases, next_lease;
        char **inherited; /* subjects to answer to, until they are answered */
        size_t n_inherited;
        uint64_t settled; /* since the last sweep */
        struct om_op *close_op;
        struct om_post closed_post, ready_post;
};
void nats_tell(struct om_bus *b, const char *note);        /* all daemons, this one too */
int nats_bus_refuse(struct om_bus *b, struct om_error *e); /* -EAGAIN with the reason while not ready, else 0 */
void nats_group_stream(char *out, size_t size, const struct om_bus *b, char what, const char *nt, const char *na);
void nats_on_beat(evutil_socket_t fd, short what, void *ctx);

/* From the place in a reply to the whole. */
#define CONTAINER(p, type, member) ((type *) (void *) ((char *) (p) -offsetof(type, member)))

#endif
