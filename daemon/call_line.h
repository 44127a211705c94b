/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CALL_LINE_H
#define OM_CALL_LINE_H
/*
 * Calls that wait for room in a backend, in the order in which they are to go out. Zero-initialised is empty. Loop thread.
 */
#include "call.h"

struct om_call_asker;
struct om_call_line {
        struct om_call *first_calls, *more_calls; /* of those who had none waiting; of those who had */
        struct om_call_asker *askers;             /* by connection: how many of its calls wait */
        unsigned in_a_row;                        /* first calls taken while others waited */
};

bool om_call_line_is_empty(const struct om_call_line *line);
void om_call_line_put(struct om_call_line *line, struct om_call *c);
/* Takes out the one whose turn it is; NULL when there is none. */
struct om_call *om_call_line_next(struct om_call_line *line);
/* It could not go out: it is the next again. */
void om_call_line_put_back(struct om_call_line *line, struct om_call *c);
void om_call_line_remove(struct om_call_line *line, struct om_call *c);

#endif
