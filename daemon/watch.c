/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon.watch: who looks on, and telling them.
 *
 * What is always true:
 *   - `mask` is the union of what the watchers want: where nobody watches, an event costs one test of it;
 *   - an event may be emitted anywhere, also while a reply or a delivery is being written: what a turn emitted is gathered and goes to the
 *     sessions at its end;
 *   - nothing is kept for a watcher that does not keep up but a number: an event that its session cannot take is counted, and the number is
 *     sent, as the event "lost", before the next event that it can take. Tasks come first: watch events use the session's output only while
 *     it is below its limit;
 *   - a watcher ends with its session.
 *
 * Called by session.c, dispatch and methods_health.c. Loop thread.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <utlist.h>

#include "watch.h"

enum { WATCHES_MAX = 16 /* of one connection */, TURN_BYTES = 256 << 10 /* gathered in one turn for one watcher */ };

struct watcher {
        struct watcher *next, *prev; /* of all */
        struct watcher *sibling;     /* of the same session; the first is in its slot */
        struct om_session *session;
        uint64_t id, lost;
        struct om_buf frames; /* of this turn's events; no memory between turns */
        unsigned n_frames;
        unsigned mask;
        size_t topic_len; /* 0: all topics */
        char topic[];
};

struct om_watch {
        struct om_core *core;
        struct watcher *watchers;
        unsigned mask;
        uint64_t next_id;
        struct om_turn_end turn_end;
};

const char *const om_event_names[] = { "publish", "deliver", "ack", "fail", "dead_letter", "expired", "connect", "disconnect", "register",
        NULL };

static void on_turn_end(struct om_turn_end *t);

static void watcher_free(struct watcher *one) {
        om_buf_deinit(&one->frames);
        free(one);
}

int om_watch_new(struct om_core *core, struct om_watch **ret) {
        struct om_watch *w = calloc(1, sizeof *w);

        if (!w)
                return -ENOMEM;
        w->core = core;
        w->turn_end.fn = on_turn_end;
        *ret = w;
        return 0;
}

void om_watch_free(struct om_watch *w) {
        struct watcher *one, *next;

        if (!w)
                return;
        om_loop_forget_turn_end(w->core->loop, &w->turn_end);
        DL_FOREACH_SAFE (w->watchers, one, next) {
                *om_session_watch_slot(one->session) = NULL;
                watcher_free(one);
        }
        free(w);
}

unsigned om_watch_mask(const struct om_watch *w) { return w->mask; }

void om_watch_start(struct om_watch *w, struct om_request *req, unsigned mask, struct om_span topic) {
        void **slot = om_session_watch_slot(req->session);
        struct watcher *one;
        struct om_error e;
        struct om_buf *b;
        unsigned n = 0;

        for (one = *slot; one; one = one->sibling)
                n++;
        if (n >= WATCHES_MAX) {
                om_error_set(&e, OM_LIMIT, "this connection has %d watches already, which is the most", WATCHES_MAX);
                om_request_error(req, &e);
                return;
        }
        one = calloc(1, sizeof *one + topic.len);
        if (!one) {
                om_error_set_errno(&e, ENOMEM, "the watch");
                om_request_error(req, &e);
                return;
        }
        one->session = req->session;
        one->id = ++w->next_id;
        one->mask = mask;
        one->topic_len = topic.len;
        if (topic.len > 0)
                memcpy(one->topic, topic.p, topic.len);
        one->sibling = *slot;
        *slot = one;
        DL_APPEND(w->watchers, one);
        w->mask |= mask;

        b = om_request_begin(req);
        if (b) {
                om_buf_lit(b, "{\"watch\":");
                om_buf_u64(b, one->id);
                om_buf_putc(b, '}');
        }
        om_request_end(req);
}

void om_watch_session_closed(struct om_watch *w, struct om_session *s) {
        void **slot = om_session_watch_slot(s);
        struct watcher *one, *next;

        if (!*slot)
                return;
        for (one = *slot; one; one = next) {
                next = one->sibling;
                DL_DELETE(w->watchers, one);
                watcher_free(one);
        }
        *slot = NULL;
        w->mask = 0;
        DL_FOREACH (w->watchers, one)
                w->mask |= one->mask;
}

/* -- events -------------------------------------------------------------------------------------------------------- */

/* The members that every event has. */
static size_t begin(struct om_buf *b, const struct watcher *one, const char *event) {
        size_t mark = om_rpc_begin_notification(b, "watch.event");

        om_buf_lit(b, "{\"watch\":");
        om_buf_u64(b, one->id);
        om_buf_lit(b, ",\"event\":\"");
        om_buf_puts(b, event);
        om_buf_lit(b, "\",\"at\":");
        om_buf_json_time(b, om_now_ms());
        return mark;
}

static void lose(struct watcher *one) {
        one->lost += one->n_frames;
        one->n_frames = 0;
        om_buf_deinit(&one->frames);
}

static void tell_lost(struct watcher *one) {
        struct om_buf b = OM_BUF_INIT;
        size_t mark;

        if (one->lost == 0)
                return;
        mark = begin(&b, one, "lost");
        om_buf_lit(&b, ",\"n\":");
        om_buf_u64(&b, one->lost);
        om_buf_putc(&b, '}');
        if (om_rpc_end(&b, mark, SIZE_MAX) == 0) {
                one->lost = 0;
                om_session_append(one->session, om_buf_span(&b), 1);
        }
        om_buf_deinit(&b);
}

/* What this turn gathered for one watcher, then what was lost, which came after. Writing may close the session, and with that free its
 * watchers. */
static void tell(struct watcher *one) {
        struct om_session *session = one->session;
        struct om_buf frames = one->frames;
        unsigned n = one->n_frames;

        if (!om_session_can_deliver(session)) {
                lose(one);
                return;
        }
        one->frames = (struct om_buf) OM_BUF_INIT;
        one->n_frames = 0;
        if (n > 0)
                om_session_append(session, om_buf_span(&frames), n);
        om_buf_deinit(&frames);
        if (om_session_can_deliver(session))
                tell_lost(one);
}

static void on_turn_end(struct om_turn_end *t) {
        struct om_watch *w = (void *) ((char *) t - offsetof(struct om_watch, turn_end));
        struct watcher *one, *next;

        DL_FOREACH_SAFE (w->watchers, one, next) {
                struct om_session *session = one->session;

                if ((one->n_frames == 0 && one->lost == 0) || !om_session_is_open(session))
                        continue;
                tell(one);
                if (!om_session_is_open(session)) {
                        om_loop_at_turn_end(w->core->loop, t); /* `next` may be gone: from the beginning, for the others */
                        return;
                }
        }
}

void om_watch_session_ready(struct om_watch *w, struct om_session *s) {
        struct watcher *one, *next;

        /* Writing may close the session, and with that free its watchers. */
        for (one = *om_session_watch_slot(s); om_session_can_deliver(s) && one; one = next) {
                next = one->sibling;
                tell_lost(one);
        }
}

static void put(struct om_buf *b, const char *name, struct om_span value) {
        if (!value.p)
                return;
        om_buf_lit(b, ",\"");
        om_buf_puts(b, name);
        om_buf_lit(b, "\":");
        om_buf_json_span(b, value);
}

static void gather(struct watcher *one, const char *name, const struct om_watch_event *what) {
        struct om_buf *b = &one->frames;
        size_t mark;

        /* What could not be taken is told first: until that has gone out nothing else is gathered. */
        if (one->lost > 0 || b->len > TURN_BYTES || !om_session_can_deliver(one->session)) {
                one->lost++;
                return;
        }
        mark = begin(b, one, name);
        put(b, "topic", what->topic);
        put(b, "agent", what->agent);
        put(b, "id", what->id);
        if (what->detail.p)
                om_buf_put_span(b, what->detail);
        om_buf_putc(b, '}');
        one->n_frames++;
        if (om_rpc_end(b, mark, SIZE_MAX) < 0)
                lose(one);
}

void om_watch_emit(struct om_watch *w, enum om_event event, const struct om_watch_event *what) {
        const char *name = om_event_names[__builtin_ctz(event)];
        struct watcher *one;

        if (!(w->mask & event))
                return;
        om_loop_at_turn_end(w->core->loop, &w->turn_end);
        DL_FOREACH (w->watchers, one) {
                if (!(one->mask & event))
                        continue;
                if (one->topic_len > 0 && !om_span_eq((struct om_span){ one->topic, one->topic_len }, what->topic))
                        continue;
                gather(one, name, what);
        }
}
