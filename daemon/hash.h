/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_HASH_H
#define OM_HASH_H
/* uthash (https://troydhanson.github.io/uthash/) with a hash function that both compilers accept: its own choice falls through switch
 * labels, which clang warns of. The keys are short. Without memory for a table the daemon ends, with a word: what it held comes again. */
#include <stdlib.h>

#include "log.h"

#define HASH_FUNCTION(key, len, hash) HASH_FNV(key, len, hash)
#define uthash_fatal(msg) (om_log(OM_LOG_ERROR, "cannot go on: %s", msg), exit(EXIT_FAILURE))
#include <uthash.h>

#endif
