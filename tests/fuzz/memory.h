/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_FUZZ_MEMORY_H
#define OM_FUZZ_MEMORY_H
/*
 * Memory that runs out when an input says so. Programs with a fuzz target are linked with --wrap for malloc(3) and its like, so that every
 * allocation of ours, and none of a library's, comes by here.
 */

/* Has the n-th allocation of this thread from now fail, once; 0: none. Returns what was left to count, to put it back. */
unsigned fuzz_fail_allocation(unsigned n);

#endif
