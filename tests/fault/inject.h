/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_INJECT_H
#define OM_INJECT_H
/*
 * Faults that a test orders in a running daemon.
 *
 * The test maps the file that OM_INJECT names and writes a struct control into it; the program maps it too, when it starts, so that a
 * failure can be ordered before the start and at any moment later. While `armed`, calls of the kinds in `kinds` are counted, on descriptors
 * of the kind `scope`; those from number `nth` on, `times` of them, fail with `error`, or, when that is 0, take part of what they were
 * given only. With `every`, each such one does. A call that fails has no effect at all. With the error INJECT_DIE the process dies there
 * (SIGKILL), before the call.
 *
 *   inject.c          system calls, in a library to preload
 *   inject_memory.c   allocations: in that library too; with a sanitizer, whose allocator comes before every library, in the daemon itself
 *   inject_control.c  what both ask
 *
 * Any thread; nothing here allocates.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* The same order as KINDS in inject.py. */
enum kind { FSYNC, WRITE, OPEN, ACCEPT, READ, TRUNCATE, RENAME, SEND, RECEIVE, WAIT, LOCK, MAP, ALLOCATE, N_KINDS };
enum { INJECT_DIE = -9 };
enum scope { ANY, UNDER_PATH, SOCKETS, ELSEWHERE };

struct control {
        _Atomic uint32_t armed;
        uint32_t kinds; /* bits, 1 << kind */
        uint32_t scope;
        int32_t error;
        int64_t nth, times, every;
        _Atomic int64_t seen, failed;
        char under[256];
};

extern struct control *inject_control; /* NULL: nothing was ordered, or the program has not begun yet */

/* Whether a call of this kind is looked at now. */
bool inject_watched(enum kind kind);
/* Counts a call, and says whether it is one that fails. */
bool inject_hit(void);

#endif
