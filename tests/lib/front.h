/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_FRONT_H
#define TEST_FRONT_H
/*
 * Three ways to do the same work behind a contract, as the real systems' libraries come: on the loop by events (hiredis, libpq), on a
 * thread of the library that posts back (nats.c), blocking on a worker (librabbitmq, libmongoc). The test bus and the test storage have one
 * core each, with these three in front, so that the contract is seen to fit all of them.
 */
#include "../../backends/host.h"

enum front_kind { FRONT_LOOP, FRONT_THREAD, FRONT_WORKER };

enum { FRONT_JOBS_MAX = 512 };

struct front;
struct front_job {
        struct om_work work; /* first */
        struct om_post post;
        struct front *front;
        void (*run)(struct front_job *job);  /* where the front runs things, one at a time, in order */
        void (*done)(struct front_job *job); /* on the loop, in a later turn; frees the job */
};

int front_new(enum front_kind kind, struct om_host *host, struct front **ret, struct om_error *e);
/* Loop thread. -ENOBUFS above FRONT_JOBS_MAX. */
int front_submit(struct front *f, struct front_job *job);
/* The same without that bound, for what is no operation of the core's. */
void front_submit_always(struct front *f, struct front_job *job);
size_t front_count(const struct front *f); /* jobs that are not done */
/* After every job is done: ends what runs, then calls stopped->fn on the loop. */
void front_stop(struct front *f, struct om_post *stopped);
void front_free(struct front *f);

#endif
