/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_STORE_STATE_H
#define OM_NATS_STORE_STATE_H
/*
 * What the files of the NATS storage share. Everything is the loop's.
 *
 * On the server, for the bucket B (the URL's path, or its prefix), four streams in the form of NATS's key-value buckets, so that its own
 * tools look into them. K and N are a key and a name as nats_name_encode() writes them, "=" where there is none:
 *
 *   KV_B           $KV.B.a.K.N agents (topic, name)    $KV.B.c.K settings    $KV.B.k.K put_if_absent
 *   KV_B_results   $KV.B_results.K.N                   (task, agent)
 *   KV_B_metrics   $KV.B_metrics.K                     (topic)
 *   KV_B_parts     $KV.B_parts.[acrk].K.N.GENERATION.I pieces of values that are larger than a message may be
 *
 * A message is an envelope (store_record.c): the key, the name and what lists filter by, then the value or how many pieces it has.
 *
 *   store.c         opening, states, health, closing        store_record.c  subjects and envelopes
 *   store_load.c    reads one entry, pieces included        store_put.c     writing; put_if_absent
 *   store_get.c     reading and deleting                    store_list.c    lists
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../entry.h"
#include "../job.h"
#include "json.h"
#include "link.h"
#include "names.h"

enum {
        BUCKET_MAX = 40,
        SUBJECT_MAX = 5 + BUCKET_MAX + 12 + 2 * (NATS_NAME_MAX + 1) + 40,
        PART_BYTES = 512 << 10,
        PARTS_MAX = 1 << 16,
        AROUND_BYTES = 8 << 10, /* what a message has besides its value, at most */
        DEPTH = 80,
};

enum store_stream { IN_MAIN, IN_RESULTS, IN_METRICS, IN_PARTS, N_STREAMS };

struct store_settings {
        struct nats_settings c; /* first */
        int64_t max_metrics, max_bytes;
};

/* The times of messages that lists have read: see store_list.c. */
struct store_window {
        int64_t min_ms, max_ms;
};
struct store_times {
        char created[48];
        uint64_t base; /* the number of the first window; they are of 64 messages */
        struct store_window *windows;
        size_t n, cap;
};

struct om_store {
        struct om_host *host;
        const struct om_store_events *events;
        void *core;
        struct store_settings settings;
        struct nats_link *link;
        struct om_jobs jobs;
        enum om_store_state state;
        struct om_error why; /* while it is not ready */
        char bucket[BUCKET_MAX + 1];
        char version[32];
        bool clustered, closing, has_domain;
        struct store_times times[2]; /* of results, metrics */
        bool has_parts;              /* of some value; what is replaced may have had some */
        struct nats_request hello;
        int making; /* the stream that is being made */
        struct om_op *close_op;
        struct om_post closed_post;
};

struct job { /* of an operation; embedded, first */
        struct om_job base;
        struct om_store *store;
};

int nats_store_admit(struct om_store *s, size_t bytes, struct om_error *e);
void nats_store_begin(struct om_store *s, struct job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *));
void nats_stream_name(char *out, size_t size, const struct om_store *s, enum store_stream stream);

/* -- subjects and envelopes (store_record.c) ------------------------------------------------------------------------- */

enum store_stream nats_stream_of(enum om_store_kind kind);
/* The subject of an entry; `name` absent: of all names under the key, where the kind has names; both absent: of the whole kind. */
void nats_entry_subject(
        char out[static SUBJECT_MAX], const struct om_store *s, enum om_store_kind kind, struct om_span key, struct om_span name);
/* Of the pieces of these entries; `generation` and `i` where it is one piece. */
void nats_parts_subject(char out[static SUBJECT_MAX], const struct om_store *s, enum om_store_kind kind, struct om_span key,
        struct om_span name, const char *generation, unsigned i);
/* What is wrong with a key or name. NULL: nothing. */
const char *nats_entry_fault(const struct om_store_entry *entry);

struct envelope {
        struct om_store_entry entry;
        char generation[20]; /* with pieces: of which write they are */
        unsigned n_parts;
        size_t size; /* of the value */
};
void nats_envelope_put(struct om_buf *b, const struct om_store_entry *entry, const char *generation, unsigned n_parts);
/* Spans point into `text` or are in `arena`. 0; -EINVAL: not of our making; -ENOMEM. */
int nats_envelope_read(struct om_span text, struct om_arena *arena, struct envelope *ret);

/* -- reading one (store_load.c) --------------------------------------------------------------------------------------- */

/* Embedded in what reads; zeroed at first. */
struct load {
        struct om_store *store;
        enum om_store_kind kind;
        bool whole; /* the value too, where it is in pieces */
        void (*done)(struct load *l, int status, const struct om_error *e);
        void *ctx;
        /* out, until nats_load_free(): 0 has them; -ENOENT: there is no message; -EINVAL: one that is not ours */
        uint64_t seq;
        struct envelope envelope;
        /* its own */
        struct nats_request req;
        struct om_buf text, value;
        struct om_arena arena;
        struct part_load *parts;
        unsigned parts_open, tries;
        int parts_status;
        char body[SUBJECT_MAX + 80];
};
/* The last message of a subject; the first from a sequence number on that matches; the one with this number. */
void nats_load_subject(struct load *l, const char *subject);
void nats_load_next(struct load *l, const char *subject, uint64_t seq);
void nats_load_seq(struct load *l, uint64_t seq);
void nats_load_free(struct load *l); /* also one that was never started, not one under way */

/* -- the entries of the contract -------------------------------------------------------------------------------------- */

int nats_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e);
int nats_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e);
int nats_store_get(struct om_store *s, struct om_store_get *op, struct om_error *e);
int nats_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e);
int nats_store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e);
/* Drops pieces, of all writes before the message `below` (0: of all), without waiting. */
void nats_parts_drop(struct om_store *s, const char *filter, uint64_t below);

#define CONTAINER(p, type, member) ((type *) (void *) ((char *) (p) -offsetof(type, member)))

#endif
