/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The line of calls that wait for room. A connection that asks for much at once has one call among the first ones and all others behind;
 * one that asks now and then always stands among the first.
 *
 * What is always true:
 *   - the calls of one connection keep their order: one is among the first calls only if none of the same connection waited when it came;
 *   - where both kinds wait, of FIRST_IN_A_ROW + 1 that go out one is of the others, so that nobody waits for ever;
 *   - there is an asker for each connection that has counted calls waiting, and for no other. The daemon's own calls are not counted, and
 * are first calls; nor is one for which there was no memory.
 *
 * Called by call.c. Loop thread.
 */
#include <stdlib.h>
#include <utlist.h>

#include "call_line.h"
#include "../proto/hash.h"

enum { FIRST_IN_A_ROW = 3 };

struct om_call_asker {
        UT_hash_handle hh; /* by serial */
        uint64_t serial;
        unsigned n;
};

bool om_call_line_is_empty(const struct om_call_line *line) { return !line->first_calls && !line->more_calls; }

/* One more call of this connection waits. Whether it is its only one; not when there is no memory to know, and then it is not counted. */
static bool count_in(struct om_call_line *line, struct om_call *c) {
        struct om_call_asker *asker = NULL;

        c->is_counted = false;
        if (c->serial == 0)
                return true;
        HASH_FIND(hh, line->askers, &c->serial, sizeof c->serial, asker);
        if (!asker) {
                asker = calloc(1, sizeof *asker);
                if (!asker)
                        return false;
                asker->serial = c->serial;
                HASH_ADD(hh, line->askers, serial, sizeof asker->serial, asker);
                if (!asker->hh.tbl) {
                        free(asker);
                        return false;
                }
        }
        c->is_counted = true;
        return ++asker->n == 1;
}

static void count_out(struct om_call_line *line, const struct om_call *c) {
        struct om_call_asker *asker = NULL;

        if (!c->is_counted)
                return;
        HASH_FIND(hh, line->askers, &c->serial, sizeof c->serial, asker);
        if (--asker->n > 0)
                return;
        HASH_DEL(line->askers, asker);
        free(asker);
}

static struct om_call **list_of(struct om_call_line *line, const struct om_call *c) {
        return c->is_first ? &line->first_calls : &line->more_calls;
}

void om_call_line_put(struct om_call_line *line, struct om_call *c) {
        struct om_call **list;

        c->is_first = count_in(line, c);
        list = list_of(line, c);
        DL_APPEND(*list, c);
}

void om_call_line_remove(struct om_call_line *line, struct om_call *c) {
        struct om_call **list = list_of(line, c);

        DL_DELETE(*list, c);
        count_out(line, c);
}

struct om_call *om_call_line_next(struct om_call_line *line) {
        bool more = line->more_calls && (!line->first_calls || line->in_a_row >= FIRST_IN_A_ROW);
        struct om_call *c = more ? line->more_calls : line->first_calls;

        if (!c)
                return NULL;
        line->in_a_row = more ? 0 : line->in_a_row + (line->more_calls != NULL);
        om_call_line_remove(line, c);
        return c;
}

void om_call_line_put_back(struct om_call_line *line, struct om_call *c) {
        struct om_call **list = list_of(line, c);

        count_in(line, c);
        DL_PREPEND(*list, c);
}
