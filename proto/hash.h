/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_HASH_H
#define OM_HASH_H
/* uthash (https://troydhanson.github.io/uthash/) with a hash function that both compilers accept: its own choice falls through switch
 * labels, which clang warns of. The keys are short.
 *
 * Without memory it would end the process without a word. Like this, an element that could not be added has a handle whose `tbl` is NULL,
 * and the table is as it was: whoever adds looks. */
#define HASH_NONFATAL_OOM 1
#define HASH_FUNCTION(key, len, hash) HASH_FNV(key, len, hash)
#include <uthash.h>

#endif
