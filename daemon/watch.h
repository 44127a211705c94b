/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_WATCH_H
#define OM_WATCH_H
/*
 * daemon.watch: events for operators who look on. Costs one test of a mask where nobody watches. A watcher that does not keep up loses
 * events and is told how many. Loop thread.
 */
#include "session.h"

enum om_event {
        OM_EVENT_PUBLISH = 1 << 0,
        OM_EVENT_DELIVER = 1 << 1,
        OM_EVENT_ACK = 1 << 2,
        OM_EVENT_FAIL = 1 << 3,
        OM_EVENT_DEAD_LETTER = 1 << 4,
        OM_EVENT_EXPIRED = 1 << 5,
        OM_EVENT_CONNECT = 1 << 6,
        OM_EVENT_DISCONNECT = 1 << 7,
        OM_EVENT_REGISTER = 1 << 8,
};
int om_watch_new(struct om_core *core, struct om_watch **ret);
void om_watch_free(struct om_watch *w);
extern const char *const om_event_names[]; /* by bit, NULL-terminated */
/* Starts a watch for the request's session and answers it. Takes req. */
void om_watch_start(struct om_watch *w, struct om_request *req, unsigned mask, struct om_span topic);
void om_watch_session_closed(struct om_watch *w, struct om_session *s);
void om_watch_session_ready(struct om_watch *w, struct om_session *s); /* its output has come down: tells what it lost */
unsigned om_watch_mask(const struct om_watch *w);                      /* what anybody watches: test before composing an event */
struct om_watch_event {
        struct om_span topic, agent, id, detail; /* detail: raw JSON members after a comma, or absent */
};
void om_watch_emit(struct om_watch *w, enum om_event event, const struct om_watch_event *what);

#endif
