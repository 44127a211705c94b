/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_HASH_H
#define OM_HASH_H
/* uthash (https://troydhanson.github.io/uthash/) with a hash function that both compilers accept: its own choice falls through switch
 * labels, which clang warns of. The keys are short. */
#define HASH_FUNCTION(key, len, hash) HASH_FNV(key, len, hash)
#include <uthash.h>

#endif
