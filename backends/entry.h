/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_ENTRY_H
#define OM_ENTRY_H
/* What every storage does with entries (store.h): copies of them, and whether one is over. Pure; thread: any. */
#include "store.h"

static inline bool om_entry_expired(const struct om_store_entry *entry, int64_t now_ms) {
        return entry->expires_ms && entry->expires_ms <= now_ms;
}
/* Copies all spans into the arena. False: out of memory. */
bool om_entry_copy(struct om_arena *arena, const struct om_store_entry *from, struct om_store_entry *ret);

#endif
