/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose turn it is: the loop's time, shared by sessions, so that a client that asks little is answered soon however many others ask much.
 *
 * A session whose socket becomes readable is served at once while the turn has time. When it has none left, and when a session has more
 * than it may handle in one turn, it stands in a line:
 *
 *     fresh    it was quiet, and has not been served since it woke
 *     busy     it was served and has more
 *
 * The next turns serve the fresh ones first, then the busy ones, each line in the order of coming; who has still more goes to the end of
 * the busy line. So ten thousand clients that ask without end are a long line beside which one that asks now and then walks past.
 *
 * What is always true:
 *   - all sessions together have OM_SLICE_NS of a turn, plus what the last one of them takes; one of each line is served in any case, so
 *     that neither waits for ever;
 *   - a session that waits in a line is not watched for input, or at the next event no more: that many wait is nothing to epoll;
 *   - while anybody waits the loop does not sleep;
 *   - when some still wait at the end of a turn, each is given less at a time, and so has its turn sooner.
 *
 * Loop thread.
 */
#include <stddef.h>
#include <utlist.h>

#include "session_internal.h"

bool om_session_turn_has_time(struct om_session_pool *p) {
        uint64_t now = om_clock_ns();

        if (p->slice_end_ns == 0) {
                p->slice_end_ns = now + OM_SLICE_NS;
                om_loop_at_turn_end(p->core->loop, &p->turn_over);
        }
        return now < p->slice_end_ns;
}

void om_session_turn_over(struct om_turn_end *t) {
        struct om_session_pool *p = (void *) ((char *) t - offsetof(struct om_session_pool, turn_over));

        p->slice_end_ns = 0;
        p->crowded = p->lines[OM_LINE_FRESH] || p->lines[OM_LINE_BUSY];
}

size_t om_session_turn_read_bytes(const struct om_session_pool *p) {
        size_t share = p->crowded ? 2 * OM_LEAST_READ_BYTES : OM_SCRATCH_BYTES, memory = om_session_memory_share(p);

        if (share > memory)
                share = memory;
        return share > OM_LEAST_READ_BYTES ? share : OM_LEAST_READ_BYTES;
}

unsigned om_session_turn_frames(const struct om_session_pool *p) { return p->crowded ? OM_LEAST_FRAMES_AT_ONCE : OM_FRAMES_AT_ONCE; }

void om_session_enter_line(struct om_session *s, enum om_session_line line) {
        if (s->line != OM_LINE_NONE)
                return;
        s->line = line;
        DL_APPEND2(s->pool->lines[line], s, line_prev, line_next);
        om_session_want_work(s->pool);
}

void om_session_leave_line(struct om_session *s) {
        if (s->line == OM_LINE_NONE)
                return;
        DL_DELETE2(s->pool->lines[s->line], s, line_prev, line_next);
        s->line = OM_LINE_NONE;
}

static void serve_line(struct om_session_pool *p, enum om_session_line line) {
        struct om_session *s;

        for (bool first = true; (s = p->lines[line]) && (om_session_turn_has_time(p) || first); first = false) {
                om_session_leave_line(s);
                om_session_serve(s);
        }
}

void om_session_serve_lines(struct om_session_pool *p) {
        serve_line(p, OM_LINE_FRESH);
        serve_line(p, OM_LINE_BUSY);
        if (p->lines[OM_LINE_FRESH] || p->lines[OM_LINE_BUSY])
                om_session_want_work(p);
}
