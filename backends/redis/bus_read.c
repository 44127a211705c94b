/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Getting tasks: for each group that wants some, first what is due, then what is new.
 *
 *     want ─▶ due? ─▶ XREADGROUP ─▶ something: deliver, read on
 *                          └──────▶ nothing: the group is dry, and a reader waits for it (bus_reader.c)
 *
 * Always true:
 *   - at most one read, or one claim of what is due, is under way for a group, and none asks for more than is wanted;
 *   - nothing is asked for while nothing happens. The one timer beside those of due retries is the sweep: every third of the shortest
 *     reclaim_idle_ms it looks for what dead daemons held;
 *   - after a connection broke, what is pending under our own name and unknown to us is taken up: its answer was lost on the way.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

static unsigned missing(const struct om_bus_sub *s) {
        unsigned have = s->n_backlog + s->n_coming;

        return s->want > have ? s->want - have : 0;
}

bool om_redis_sub_wants(const struct om_bus_sub *s) { return !s->ended && !s->deleted && !s->sick && missing(s); }

void om_redis_bus_pump_soon(struct om_bus *b) {
        if (b->pumping || b->closed)
                return;
        b->pumping = true;
        om_host_post(b->host, &b->pump);
}

void om_redis_bus_want(struct om_bus_sub *s, unsigned n) {
        s->want = n;
        om_redis_bus_pump_soon(s->bus);
}

/* -- reading --------------------------------------------------------------------------------------------------------- */

unsigned om_redis_sub_asks(const struct om_bus_sub *s) {
        size_t n = missing(s), fit = READ_BYTES / s->entry_bytes + 1;

        n = n < READ_AT_ONCE ? n : READ_AT_ONCE;
        return (unsigned) (n < fit ? n : fit);
}

static void remember(char last[static ID_MAX], const struct om_redis_reply *entry) {
        struct om_span id = om_redis_at(entry, 0)->text;

        if (id.len && id.len < ID_MAX)
                snprintf(last, ID_MAX, "%.*s", OM_PRI(id));
}

bool om_redis_sub_take_read(struct om_bus_sub *s, const struct om_redis_reply *reply, unsigned count) {
        bool full = false;

        for (size_t i = 0; reply && i < reply->n; i++) {
                const struct om_redis_reply *stream = om_redis_at(reply, i), *entries = om_redis_at(stream, 1);
                bool again = om_span_eq(om_redis_at(stream, 0)->text, s->names.again);

                full |= entries->n >= count;
                for (size_t k = 0; k < entries->n; k++) {
                        remember(again ? s->last_again : s->last, om_redis_at(entries, k));
                        om_redis_sub_take(s, om_redis_at(entries, k), again, 1, false);
                }
        }
        return full;
}

/* Refused by the server, or sent to one that is not connected yet: asking at once would only be refused again. */
void om_redis_sub_sick(struct om_bus_sub *s, int status, const struct om_error *error) {
        const struct timeval tv = { .tv_sec = status == -EAGAIN ? 0 : 5, .tv_usec = status == -EAGAIN ? 500000 : 0 };

        if (s->ended)
                return;
        if (status != -EAGAIN)
                om_host_log(s->bus->host, OM_LOG_WARNING, "reading for %.*s: %s", OM_PRI(s->names.group), error->message);
        s->sick = true;
        event_add(s->due, &tv);
}

static void on_last(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;

        s->reading = false;
        if (status == 0) {
                snprintf(s->last, sizeof s->last, "%.*s", OM_PRI(om_redis_at(reply, 0)->text));
                snprintf(s->last_again, sizeof s->last_again, "%.*s", OM_PRI(om_redis_at(reply, 1)->text));
                s->dry = true;
                om_redis_bus_pump_soon(s->bus);
        } else if (status == -ENOENT) {
                om_redis_sub_repair(s);
        } else {
                om_redis_sub_sick(s, status, error);
        }
        om_redis_sub_release(s);
}

/* There was news, and somebody else had it first: from where on is it news for us? */
static void ask_last(struct om_bus_sub *s) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_last, 2);

        om_redis_key(c, s->names.stream);
        om_redis_key(c, s->names.again);
        om_redis_arg(c, s->names.group);
        s->reading = om_redis_sub_send(s, c, on_last);
}

static void on_read(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;
        bool any = status == 0 && reply->type == OM_REDIS_ARRAY && reply->n;

        s->reading = false;
        if (status == -ENOENT) {
                om_redis_sub_repair(s);
        } else if (status < 0) {
                om_redis_sub_sick(s, status, error);
        } else if (any) {
                s->woken = false;
                s->dry = !om_redis_sub_take_read(s, reply, s->asked);
                om_redis_bus_pump_soon(s->bus);
        } else if (s->woken && !s->ended) {
                s->woken = false;
                ask_last(s);
        } else {
                s->dry = true;
                om_redis_bus_pump_soon(s->bus);
        }
        om_redis_sub_release(s);
}

struct om_redis_cmd *om_redis_sub_read_cmd(
        const struct om_bus_sub *s, unsigned count, int64_t block_ms, const char *from, const char *from_again) {
        struct om_redis_cmd *c = om_redis_cmd_new("XREADGROUP");

        om_redis_arg_text(c, "GROUP");
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, s->bus->consumer);
        om_redis_arg_text(c, "COUNT");
        om_redis_arg_int(c, count);
        if (block_ms >= 0) {
                om_redis_arg_text(c, "BLOCK");
                om_redis_arg_int(c, block_ms);
        }
        om_redis_arg_text(c, "STREAMS");
        om_redis_key(c, s->names.stream);
        om_redis_key(c, s->names.again);
        om_redis_arg_text(c, from);
        om_redis_arg_text(c, from_again);
        return c;
}

/* -- what is due ----------------------------------------------------------------------------------------------------- */

void om_redis_sub_due(struct om_bus_sub *s, int64_t in_ms) {
        int64_t at = om_clock_ms() + (in_ms > 0 ? in_ms : 0);
        struct timeval tv;

        if (s->ended || at >= s->due_at_ms)
                return;
        s->due_at_ms = at;
        if (in_ms <= 0) {
                om_redis_bus_pump_soon(s->bus);
                return;
        }
        if (s->sick) /* then its time comes first, and that looks at this one */
                return;
        tv.tv_sec = in_ms / 1000;
        tv.tv_usec = in_ms % 1000 * 1000;
        event_add(s->due, &tv);
}

static void on_due(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;
        int64_t next;

        s->claiming = false;
        if (status == -ENOENT)
                om_redis_sub_repair(s);
        else if (status < 0)
                om_redis_sub_due(s, 1000);
        for (size_t i = 1; status == 0 && i < reply->n; i++) {
                struct om_span name = om_redis_at(om_redis_at(reply, i), 0)->text;

                om_redis_sub_take(s, om_redis_at(om_redis_at(reply, i), 1), name.len > 2 && memcmp(name.p, "r:", 2) == 0, 0, false);
        }
        if (s->ended)
                s->due_at_ms = INT64_MAX;
        next = status == 0 ? om_redis_int(om_redis_at(reply, 0), -1) : -1;
        if (next >= 0)
                om_redis_sub_due(s, next);
        om_redis_bus_pump_soon(s->bus);
        om_redis_sub_release(s);
}

static void claim_due(struct om_bus_sub *s, unsigned n) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_due, 3);

        om_redis_key(c, s->names.stream);
        om_redis_key(c, s->names.again);
        om_redis_key(c, s->names.due);
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, s->bus->consumer);
        om_redis_arg_text(c, om_redis_bus_retry_consumer);
        om_redis_arg_int(c, n < CLAIM_AT_ONCE ? n : CLAIM_AT_ONCE);
        s->claiming = om_redis_sub_send(s, c, on_due);
        if (s->claiming)
                s->due_at_ms = INT64_MAX;
}

static void on_nudged(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;

        if (status < 0)
                om_redis_sub_due(s, 1000);
        om_redis_sub_release(s);
}

/* Something is due, and nobody here wants it: whoever wants something, here or elsewhere, shall look. */
static void nudge(struct om_bus_sub *s) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_nudge, 1);

        om_redis_key(c, s->names.again);
        om_redis_arg(c, s->names.group);
        if (om_redis_sub_send(s, c, on_nudged))
                s->due_at_ms = INT64_MAX;
}

/* -- what others left ------------------------------------------------------------------------------------------------ */

static void on_taken(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;

        for (int again = 0; status == 0 && again < 2; again++) {
                const struct om_redis_reply *entries = om_redis_at(reply, (size_t) again);

                for (size_t i = 0; i < entries->n; i++)
                        om_redis_sub_take(s, om_redis_at(entries, i), again, 0, true);
                if (entries->n)
                        om_host_log(s->bus->host, OM_LOG_NOTICE, "redis: took over %zu tasks of %.*s from a daemon that is gone",
                                entries->n, OM_PRI(s->names.group));
                if (entries->n >= CLAIM_AT_ONCE)
                        om_redis_sub_takeover(s);
        }
        /* More is ours than we know of: an answer is on its way, or was lost. */
        if (om_redis_int(om_redis_at(reply, 2), 0) > (int64_t) HASH_COUNT(s->by_id))
                om_redis_sub_recover(s);
        om_redis_sub_release(s);
}

void om_redis_sub_takeover(struct om_bus_sub *s) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_takeover, 3);

        om_redis_key(c, s->names.stream);
        om_redis_key(c, s->names.again);
        om_redis_key(c, s->names.due);
        om_redis_arg(c, s->names.group);
        om_redis_arg_text(c, s->bus->consumer);
        om_redis_arg_text(c, om_redis_bus_retry_consumer);
        om_redis_arg_int(c, s->reclaim_ms);
        om_redis_arg_int(c, CLAIM_AT_ONCE);
        om_redis_arg_text(c, s->bus->name);
        om_redis_sub_send(s, c, on_taken);
}

void om_redis_bus_sweep_arm(struct om_bus *b) {
        struct om_bus_sub *s;
        int64_t ms = INT64_MAX;
        struct timeval tv;

        DL_FOREACH (b->subs, s)
                ms = s->reclaim_ms / 3 < ms ? s->reclaim_ms / 3 : ms;
        if (ms == INT64_MAX) {
                event_del(b->sweep);
                return;
        }
        tv.tv_sec = ms / 1000;
        tv.tv_usec = ms % 1000 * 1000;
        event_add(b->sweep, &tv);
}

void om_redis_bus_on_sweep(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct om_bus_sub *s;

        DL_FOREACH (b->subs, s) {
                if (s->deleted || !om_redis_ready(b->redis))
                        continue;
                om_redis_sub_takeover(s);
                om_redis_sub_due(s, 0); /* others may have parked what they did not live to serve */
        }
        om_redis_bus_sweep_arm(b);
}

/* -- what was lost on the way ---------------------------------------------------------------------------------------- */

static void recover_more(struct om_bus_sub *s);

static void on_own(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_bus_sub *s = ctx;
        size_t n = 0;

        for (size_t i = 0; status == 0 && i < reply->n; i++) {
                const struct om_redis_reply *stream = om_redis_at(reply, i), *entries = om_redis_at(stream, 1);
                bool again = om_span_eq(om_redis_at(stream, 0)->text, s->names.again);

                for (size_t k = 0; k < entries->n; k++, n++) {
                        remember(again ? s->own_again : s->own, om_redis_at(entries, k));
                        om_redis_sub_take(s, om_redis_at(entries, k), again, 0, false);
                }
        }
        if (n && !s->ended) {
                recover_more(s);
        } else {
                s->recovering = false;
                if (status == -ENOENT) {
                        om_redis_sub_repair(s);
                } else if (status < 0) {
                        s->unrecovered = true;
                        om_redis_sub_sick(s, status, error);
                }
                om_redis_bus_pump_soon(s->bus);
        }
        om_redis_sub_release(s);
}

static void recover_more(struct om_bus_sub *s) {
        s->recovering = om_redis_sub_send(s, om_redis_sub_read_cmd(s, CLAIM_AT_ONCE, -1, s->own, s->own_again), on_own);
        s->unrecovered = !s->recovering;
}

void om_redis_sub_recover(struct om_bus_sub *s) {
        if (s->ended || s->deleted || s->recovering)
                return;
        strcpy(s->own, "0-0");
        strcpy(s->own_again, "0-0");
        recover_more(s);
}

/* -- the pump -------------------------------------------------------------------------------------------------------- */

static void sub_pump(struct om_bus_sub *s) {
        bool due = s->due_at_ms <= om_clock_ms();

        om_redis_sub_deliver(s);
        if (s->unrecovered && !s->sick && om_redis_ready(s->bus->redis))
                om_redis_sub_recover(s);
        if (s->ended || s->deleted || s->recovering || s->claiming || s->reading || !om_redis_ready(s->bus->redis))
                return;
        if (!om_redis_sub_wants(s)) {
                if (due)
                        nudge(s);
                return;
        }
        if (due && !s->waiting)
                claim_due(s, missing(s));
        else if (!s->dry && !s->waiting) {
                s->asked = om_redis_sub_asks(s);
                s->reading = om_redis_sub_send(s, om_redis_sub_read_cmd(s, s->asked, -1, ">", ">"), on_read);
        }
        if (due && s->waiting && om_redis_sub_direct(s))
                om_redis_sub_unblock(s); /* what it waits for counts against what is wanted */
        else if (due && s->waiting)
                claim_due(s, missing(s));
}

void om_redis_bus_moved(struct om_bus *b) {
        b->moved = true;
        om_redis_bus_pump_soon(b);
}

void om_redis_bus_pump(struct om_post *post) {
        struct om_bus *b = (void *) ((char *) post - offsetof(struct om_bus, pump));
        struct om_bus_sub *s, *tmp;

        b->pumping = false;
        if (b->closed)
                return;
        DL_FOREACH_SAFE (b->subs, s, tmp) {
                /* Another server than before may not know all that the one before had told us, and that one's last answers may not have
                 * come. */
                if ((b->moved || !s->reader) && om_redis_sub_place(s)) {
                        s->dry = s->sick = false;
                        om_redis_sub_recover(s);
                        om_redis_sub_due(s, 0);
                }
                sub_pump(s);
        }
        b->moved = false;
        om_redis_bus_readers_pump(b);
}
