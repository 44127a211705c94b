/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocations that fail when a test says so (inject.h): every one of the program, of its libraries and of the C library, for all of them
 * call these names.
 *
 * What stands behind them has other names: the C library's own, kept for those who replace malloc() (dlsym() may allocate), or, where the
 * program has a sanitizer (OM_INJECT_SANITIZED), that one's; its allocator is in the program or before every other library, so this file is
 * linked into the program then. The sanitizer takes strdup() and its like for itself, so they are here too.
 */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "inject.h"

#ifdef OM_INJECT_SANITIZED
#define REAL(name) __interceptor_##name
#else
#define REAL(name) __libc_##name
#endif

void *REAL(malloc)(size_t n);
void *REAL(calloc)(size_t n, size_t size);
void *REAL(realloc)(void *p, size_t n);
void *REAL(memalign)(size_t alignment, size_t n);

static bool no_memory(void) {
        if (!inject_watched(ALLOCATE) || !inject_hit())
                return false;
        errno = ENOMEM;
        return true;
}

EXPORT void *malloc(size_t n) { return no_memory() ? NULL : REAL(malloc)(n); }
EXPORT void *calloc(size_t n, size_t size) { return no_memory() ? NULL : REAL(calloc)(n, size); }
EXPORT void *realloc(void *p, size_t n) { return no_memory() ? NULL : REAL(realloc)(p, n); }
EXPORT void *aligned_alloc(size_t alignment, size_t n) { return no_memory() ? NULL : REAL(memalign)(alignment, n); }
EXPORT void *memalign(size_t alignment, size_t n) { return no_memory() ? NULL : REAL(memalign)(alignment, n); }

EXPORT int posix_memalign(void **ret, size_t alignment, size_t n) {
        void *p = no_memory() ? NULL : REAL(memalign)(alignment, n);

        if (!p)
                return ENOMEM;
        *ret = p;
        return 0;
}

#ifdef OM_INJECT_SANITIZED
EXPORT char *strndup(const char *s, size_t n) {
        size_t len = strnlen(s, n);
        char *copy = malloc(len + 1);

        if (!copy)
                return NULL;
        memcpy(copy, s, len);
        copy[len] = '\0';
        return copy;
}
EXPORT char *strdup(const char *s) { return strndup(s, strlen(s)); }
#endif
