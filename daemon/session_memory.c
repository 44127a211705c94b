/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What sessions hold: input that is no whole frame yet or waits for its turn, requests that are not answered yet, output that is not sent
 * yet. All of them together may hold session_total_bytes (or four of the largest frames, when that is more).
 *
 * Half of that is for clients that let things pile up, the other half for those that have something large to say or to hear. While less
 * than half is held, each session may hold an eighth of what is left of that half: alone it may have much, in a crowd each has little, and
 * however large the crowd, the half is never quite full. Who holds more is not read until it is less. So nobody need be ended because
 * others do not read; who does not read is ended in time by stalled_client_ms.
 *
 * That bounds what a session may begin, not what it has begun: frames, and answers that come from bus and storage, may be large. When
 * everything is held all the same, those that hold most are ended, with a line in the log, until an eighth is free again.
 *
 * What is always true:
 *   - `held_bytes` of the pool is the sum of that of its sessions: a session is counted anew whenever its buffers or requests changed;
 *   - a session that holds OM_CLASSED_BYTES or more is in the list of its size class, so that one that holds most, to a factor of two, is
 *     found without looking at them all;
 *   - the request of a client that is gone is counted until it is done, so that going away does not make room for more of the same; but
 *     nobody is ended for it.
 *
 * Loop thread.
 */
#include <sys/socket.h>
#include <utlist.h>

#include "log.h"
#include "session_internal.h"

enum { OM_CLASSED_BYTES = 4 << 10 };

static size_t total_limit(const struct om_session_pool *p) {
        size_t total = (size_t) p->core->settings->session_total_bytes, frames = 4 * (size_t) p->core->settings->max_frame_bytes;

        return total > frames ? total : frames;
}

size_t om_session_memory_share(const struct om_session_pool *p) {
        size_t half = total_limit(p) / 2, held = p->held_bytes + p->orphan_bytes;

        return held < half ? (half - held) / 8 : 0;
}

size_t om_session_output_limit(const struct om_session *s) {
        size_t share = om_session_memory_share(s->pool), most = (size_t) s->core->settings->session_output_bytes;

        if (share > most)
                return most;
        return share > OM_LEAST_OUTPUT_BYTES ? share : OM_LEAST_OUTPUT_BYTES;
}

size_t om_session_request_limit(const struct om_session_pool *p) {
        size_t share = om_session_memory_share(p), least = OM_LEAST_REQUESTS * (size_t) OM_REQUEST_BYTES;

        return share > least ? share : least;
}

static unsigned class_of(size_t bytes) {
        unsigned n = bytes < OM_CLASSED_BYTES ? 0 : (unsigned) (63 - __builtin_clzll(bytes / OM_CLASSED_BYTES)) + 1;

        return n < OM_SIZE_CLASSES ? n : OM_SIZE_CLASSES - 1;
}

static void set_class(struct om_session *s, unsigned class) {
        struct om_session_pool *p = s->pool;

        if (s->size_class == class)
                return;
        if (s->size_class > 0)
                DL_DELETE2(p->sizes[s->size_class], s, size_prev, size_next);
        if (class > 0)
                DL_APPEND2(p->sizes[class], s, size_prev, size_next);
        s->size_class = class;
        if (class > p->top_class)
                p->top_class = class;
}

static void set_held(struct om_session *s, size_t bytes) {
        s->pool->held_bytes = s->pool->held_bytes - s->held_bytes + bytes;
        s->held_bytes = bytes;
        set_class(s, class_of(bytes));
}

void om_session_count(struct om_session *s) {
        struct om_session_pool *p = s->pool;
        size_t bytes = s->in.cap + s->out.cap + s->request_bytes;

        if (bytes == s->held_bytes || s->state == OM_SESSION_CLOSED)
                return;
        set_held(s, bytes);
        if (!p->shedding && p->held_bytes > total_limit(p)) {
                p->shedding = true;
                om_session_want_work(p);
        }
}

void om_session_uncount(struct om_session *s) {
        s->pool->orphan_bytes += s->request_bytes;
        s->request_bytes = 0;
        set_held(s, 0);
}

void om_session_uncount_orphan(struct om_session_pool *p, const struct om_request *req) { p->orphan_bytes -= req->bytes; }

/* The system's memory is not in `held_bytes`, but it is the daemon that has it taken: some 200 KiB for each client that does not read. The
 * more clients there are, the less for a new one. Linux doubles what it is given, for its own needs. */
void om_session_limit_socket(const struct om_session *s) {
        size_t share = total_limit(s->pool) / (s->core->n_sessions + 1);
        int now = 0, less = (int) (share > 2 * OM_LEAST_OUTPUT_BYTES ? share / 2 : OM_LEAST_OUTPUT_BYTES);
        socklen_t len = sizeof now;

        if (share < OM_SCRATCH_BYTES && getsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &now, &len) == 0 && now > 2 * less)
                setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &less, sizeof less);
}

static struct om_session *largest(struct om_session_pool *p) {
        while (p->top_class > 0 && !p->sizes[p->top_class])
                p->top_class--;
        return p->top_class > 0 ? p->sizes[p->top_class] : NULL;
}

void om_session_shed(struct om_session_pool *p) {
        size_t limit = total_limit(p);
        struct om_session *s;

        for (bool first = true; p->shedding && (first || om_session_turn_has_time(p)); first = false) {
                s = p->held_bytes > limit - limit / 8 ? largest(p) : NULL;
                p->shedding = s;
                if (s)
                        om_session_close(
                                s, "the daemon holds all that it may for its clients (SESSION_TOTAL_BYTES), and this one has most of it");
        }
        if (p->shedding)
                om_session_want_work(p);
}
