/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CONFORMANCE_RIG_H
#define CONFORMANCE_RIG_H
/*
 * What cases are made of: the daemon under test, clients, workers that write down what they were given, and questions to the daemon.
 *
 * Everything ends the case with a message when it does not work, unless it is said otherwise. Clients are served by UNTIL() and
 * serve_for(), all of them together; a blocking call serves its own client only.
 */
#include <jansson.h>
#include <sys/types.h>

#include "../../client/c/omniclient.h"
#include "../lib/daemon_proc.h"
#include "../lib/server.h"
#include "conformance.h"

/* -- the daemon ----------------------------------------------------------------------------------------------------------- */

/* Starts the case's daemon with the case's URLs and these settings ("RESULT_TTL=2s", NULL-terminated; or NULL), and looks whether its bus
 * has what the case needs. */
struct om_test_daemon *rig_up(const char *const *settings);
void rig_again(void);   /* starts it where it has ended, and waits until bus and storage are up */
void rig_restart(void); /* ends it first */
extern struct om_test_daemon *rig_daemon;
/* The parameter is added to the bus's URL by the next rig_up() ("retention_ms=60000"). */
void rig_bus_parameter(const char *parameter);
/* A server of the case's own, to be stopped and killed: the bus's (or the storage's), whose URL is the case's from now on. Before rig_up().
 * Fails where the server is somebody else's. It ends with the case. */
struct om_test_server *rig_own_server(enum conf_family of);
/* Frees every client, stops the daemon; its exit status must be 0. Done after each case. */
void rig_down(void);
/* With each URL that the system says cannot work ("wrong_bus", "wrong_store"): the daemon names what to mend, in its health and to who
 * asks, or refuses to start and names it. */
void wrong_settings(enum conf_family of);
bool rig_has(const char *capability);
/* For cases that measure the daemon's memory: what a sanitizer keeps of what was freed is not the daemon's. */
#define RIG_MEASURED "ASAN_OPTIONS=quarantine_size_mb=1:thread_local_quarantine_size_kb=64"
size_t rig_anonymous_bytes(void); /* of the daemon: what it has allocated, files not counted */
/* The case's URL for a further daemon. */
char *rig_url(const char *url);
char *rig_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* -- clients -------------------------------------------------------------------------------------------------------------- */

omni_client *client_new(void);
omni_client *client_to(struct om_test_daemon *d); /* the rig's, or another */
/* A client that nothing serves but its own calls. */
omni_client *client_unserved(void);
void client_close(omni_client *c); /* at once, whatever it holds */
extern omni_client *rig_client;    /* one that is always there after rig_up(), for publishing and asking */

/* Serves all clients until the condition holds or `ms` are over; whether it holds. */
#define UNTIL(condition, ms)                              \
        ({                                                \
                double until_ = now_ms() + (ms);          \
                while (!(condition) && now_ms() < until_) \
                        serve_once(until_ - now_ms());    \
                (bool) (condition);                       \
        })
/* The same for a condition that asks the daemon: looked at some times a second rather than after each event. */
#define UNTIL_SLOWLY(condition, ms)                                  \
        ({                                                           \
                double until_ = now_ms() + (ms);                     \
                bool holds_;                                         \
                while (!(holds_ = (condition)) && now_ms() < until_) \
                        serve_for(20);                               \
                holds_;                                              \
        })
void serve_once(double at_most_ms);
void serve_for(double ms);
double now_ms(void);          /* monotonic */
double wall_s(void);          /* Unix time */
unsigned any(unsigned below); /* a random number */

/* -- asking ---------------------------------------------------------------------------------------------------------------- */

/* Calls a method; params by json_pack()'s format, NULL for none. Its result. What is answered `unavailable` is asked again, for five
 * seconds: a server that was slow once is not what these cases are about. */
json_t *rpc(omni_client *c, const char *method, const char *format, ...);
/* The same; the negative errno, and NULL in *ret, where the daemon refuses. */
int rpc_try(omni_client *c, json_t **ret, const char *method, const char *format, ...);
/* Members, by path with dots ("error.message"). */
json_t *at(json_t *j, const char *path);
int64_t num(json_t *j, const char *path);
const char *str(json_t *j, const char *path); /* "" where it is no string */
const char *dump(json_t *j);

int64_t group_n(const char *topic, const char *agent, const char *what); /* of bus.groups: "lag", "leased" … */
int64_t topic_n(const char *topic, const char *what);                    /* of bus.topics; 0 where the topic is not */
json_t *dead_letters(const char *topic, const char *agent);              /* all: an array */

/* -- publishing ------------------------------------------------------------------------------------------------------------- */

enum { LONG_NAME_BYTES = 200 };
/* As long as a name of a topic or an agent may be, of characters that few servers take in theirs; two differ at the end only. */
const char *long_name(const char *name);
const char *topic(const char *name); /* a topic of this case alone */
/* What is answered `unavailable` is published again, as is told, for five seconds; the bus may hold both, so tasks want an id of their
 * caller's where they are counted. */
char *publish(const char *topic, const char *content_format, ...) __attribute__((format(printf, 2, 3))); /* its id */
char *publish_with(omni_publish_options task);
int publish_all(const omni_publish_options *tasks, int n); /* in one go; how many were published again */
void publish_numbers(const char *topic, int from, int n);  /* contents FROM, FROM+1 … by publish_all() */

/* So many clients publish with one idempotency key at once: one wins, all are told the same id. */
void publish_race(const char *topic, const char *key, int racers);

/* -- workers ----------------------------------------------------------------------------------------------------------------- */

struct seen { /* one delivery */
        char *id, *content, *json;
        size_t content_len;
        int attempt;
        double at_ms;
};
struct worker;
typedef void worker_act(struct worker *w, omni_task *task, const struct seen *seen);
struct worker {
        omni_client *client;
        omni_agent *agent;
        worker_act *act;
        struct seen *seen; /* in the order in which they came */
        size_t n, room;
        omni_task **held; /* by act_hold */
        size_t n_held, held_room;
        long acked, refused; /* of act_ack: answers to its acks */
        void *user;
};
/* A worker on a connection of its own. */
struct worker *serve(const char *topic, const char *agent, worker_act *act);
struct worker *serve_with(const omni_agent_options *options, worker_act *act);
struct worker *serve_on(omni_client *c, const omni_agent_options *options, worker_act *act);
omni_agent_options agent_options(const char *topic, const char *agent); /* backoff 20 ms, at most 40; else the defaults */
void worker_close(struct worker *w);                                    /* its connection ends; what it saw stays */
size_t seen_distinct(struct worker *const *workers, size_t n);          /* different ids, of all of them together */
const struct seen *seen_content(const struct worker *w, const char *content, int attempt); /* NULL: not; attempt 0: any */

worker_act act_ack;  /* with the content as the result */
worker_act act_hold; /* keeps it */
worker_act act_fail; /* with "on purpose", type Planned */
worker_act act_fail_for_good;
void ack_held(struct worker *w, size_t i);

#endif
