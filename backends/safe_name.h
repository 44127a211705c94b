/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SAFE_NAME_H
#define OM_SAFE_NAME_H
/*
 * Topics and agents as parts of names on a server, which may be files there too: letters, digits, `-` and `_` stay, a dot becomes `+`, all
 * else =XX. Injective: a name that would be longer than `max` (at least 64) is cut and ends with `~` and a hash of 128 bits of the whole.
 * Pure; thread: any.
 */
#include "../proto/buf.h"

void om_safe_name(struct om_buf *b, struct om_span text, size_t max);
/* The text again. False where the name was cut, or is none of these. */
bool om_safe_name_read(struct om_buf *b, struct om_span name);

#endif
