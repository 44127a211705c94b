/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LETTER_H
#define OM_LETTER_H
/*
 * A dead letter as one JSON object, where a bus keeps it as a message: {"error", "error_type", "worker", "attempts", "failed_ms",
 * "record"}, the record last. Pure; thread: any.
 */
#include "bus.h"

/* `record`: the task's, where the letter has none. */
void om_letter_write(struct om_buf *b, const struct om_dead_letter *l, struct om_span record);
/* All but the id; in the text or in `arena`. False where this is no letter. */
bool om_letter_read(struct om_span text, struct om_arena *arena, struct om_dead_letter *ret);

#endif
