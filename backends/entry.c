/* SPDX-License-Identifier: Apache-2.0 */
/* Entries: see entry.h. */
#include "entry.h"

bool om_entry_copy(struct om_arena *arena, const struct om_store_entry *from, struct om_store_entry *ret) {
        *ret = *from;
        ret->key = om_arena_copy(arena, from->key);
        ret->name = om_arena_copy(arena, from->name);
        ret->value = om_arena_copy(arena, from->value);
        ret->topic = om_arena_copy(arena, from->topic);
        ret->status = om_arena_copy(arena, from->status);
        return (!from->key.p || ret->key.p) && (!from->name.p || ret->name.p) && (!from->value.p || ret->value.p) &&
                (!from->topic.p || ret->topic.p) && (!from->status.p || ret->status.p);
}
