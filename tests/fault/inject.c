/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library to preload (LD_PRELOAD) that makes system calls and allocations fail when a test says so.
 *
 * The test maps the file that OM_INJECT names and writes a struct control into it; this library maps it too, when the program starts, so
 * that a failure can be ordered before the start and at any moment later. While `armed`, calls of the kinds in `kinds` are counted, on
 * descriptors of the kind `scope`; those from number `nth` on, `times` of them, fail with `error`, or, when that is 0, take part of what
 * they were given only. With `every`, each such one does. A call that fails has no effect at all.
 *
 * Works by the names of the C library that the daemon, LMDB and libevent call; what the C library does inside itself (stdio,
 * getaddrinfo) is not seen, except its allocations. Any thread; nothing here allocates.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The same order as KINDS in inject.py. */
enum kind { FSYNC, WRITE, OPEN, ACCEPT, READ, TRUNCATE, RENAME, SEND, RECEIVE, WAIT, LOCK, MAP, ALLOCATE, N_KINDS };
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

static struct control *control;

__attribute__((constructor)) static void begin(void) {
        const char *name = getenv("OM_INJECT");
        int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
        void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

        if (fd >= 0)
                close(fd);
        if (p != MAP_FAILED)
                control = p;
}

static bool in_scope_path(const char *path) { return strncmp(path, control->under, strlen(control->under)) == 0; }

static bool in_scope(int fd) {
        char name[32], path[PATH_MAX];
        struct stat st;
        ssize_t n;

        if (control->scope == ANY)
                return true;
        if (control->scope == SOCKETS)
                return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        n = readlink(name, path, sizeof path - 1);
        path[n > 0 ? n : 0] = '\0';
        return in_scope_path(path) == (control->scope == UNDER_PATH);
}

/* Whether a call of this kind is looked at now. */
static bool watched(enum kind kind) { return control && control->armed && (control->kinds & 1u << kind) != 0; }

/* Counts a call, and says whether it is one that fails. */
static bool hit(void) {
        int64_t n = ++control->seen;
        bool fails =
                control->every ? n % control->every == 0 : n >= control->nth && (control->times < 0 || n < control->nth + control->times);

        if (fails)
                control->failed++;
        return fails;
}

static bool strikes(enum kind kind, int fd) {
        int before = errno;
        bool fails = watched(kind) && in_scope(fd) && hit();

        errno = before;
        return fails;
}

static bool strikes_path(enum kind kind, const char *path) {
        return watched(kind) &&
                (control->scope == ANY || (control->scope != SOCKETS && in_scope_path(path) == (control->scope == UNDER_PATH))) && hit();
}

static int failure(void) {
        errno = control->error ? control->error : EIO;
        return -1;
}

/* A count that is short. Of files half, of what comes and goes by sockets less than a frame's header and its first word. */
static size_t part(enum kind kind, size_t n) {
        size_t some = kind == WRITE ? n / 2 : 7;

        return some && some < n ? some : n;
}

#define REAL(name)                     \
        static __typeof__(&name) real; \
        if (!real)                     \
        real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

#define EXPORT __attribute__((visibility("default")))

/* -- syncs ------------------------------------------------------------------------------------------------------------------ */

EXPORT int fsync(int fd) {
        REAL(fsync);
        return strikes(FSYNC, fd) ? failure() : real(fd);
}

EXPORT int fdatasync(int fd) {
        REAL(fdatasync);
        return strikes(FSYNC, fd) ? failure() : real(fd);
}

EXPORT int msync(void *p, size_t n, int flags) {
        REAL(msync);
        return watched(FSYNC) && hit() ? failure() : real(p, n, flags);
}

/* -- one buffer ------------------------------------------------------------------------------------------------------------- */

#define SIMPLE(kind, result, name, declared, fd, len, ...) \
        EXPORT result name declared {                      \
                REAL(name);                                \
                if (strikes(kind, fd)) {                   \
                        if (control->error)                \
                                return failure();          \
                        len = part(kind, len);             \
                }                                          \
                return real(__VA_ARGS__);                  \
        }

SIMPLE(WRITE, ssize_t, write, (int fd, const void *p, size_t n), fd, n, fd, p, n)
SIMPLE(WRITE, ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), fd, n, fd, p, n, at)
SIMPLE(WRITE, ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t at), fd, n, fd, p, n, at)
SIMPLE(READ, ssize_t, read, (int fd, void *p, size_t n), fd, n, fd, p, n)
SIMPLE(READ, ssize_t, pread, (int fd, void *p, size_t n, off_t at), fd, n, fd, p, n, at)
SIMPLE(READ, ssize_t, pread64, (int fd, void *p, size_t n, off64_t at), fd, n, fd, p, n, at)
SIMPLE(SEND, ssize_t, send, (int fd, const void *p, size_t n, int flags), fd, n, fd, p, n, flags)
SIMPLE(RECEIVE, ssize_t, recv, (int fd, void *p, size_t n, int flags), fd, n, fd, p, n, flags)

/* -- several buffers -------------------------------------------------------------------------------------------------------- */

/* Short: a part of the first buffer that has room. */
static int part_of(enum kind kind, const struct iovec *v, int n, struct iovec *ret) {
        while (n > 1 && v->iov_len == 0)
                v++, n--;
        *ret = *v;
        ret->iov_len = part(kind, ret->iov_len);
        return 1;
}

#define VECTOR(kind, name, declared, ...)                \
        EXPORT ssize_t name declared {                   \
                struct iovec first;                      \
                REAL(name);                              \
                if (n > 0 && strikes(kind, fd)) {        \
                        if (control->error)              \
                                return failure();        \
                        n = part_of(kind, v, n, &first); \
                        v = &first;                      \
                }                                        \
                return real(__VA_ARGS__);                \
        }

VECTOR(WRITE, writev, (int fd, const struct iovec *v, int n), fd, v, n)
VECTOR(WRITE, pwritev, (int fd, const struct iovec *v, int n, off_t at), fd, v, n, at)
VECTOR(WRITE, pwritev64, (int fd, const struct iovec *v, int n, off64_t at), fd, v, n, at)
VECTOR(READ, readv, (int fd, const struct iovec *v, int n), fd, v, n)

EXPORT ssize_t sendmsg(int fd, const struct msghdr *m, int flags) {
        struct msghdr shorter = *m;
        struct iovec first;
        REAL(sendmsg);

        if (m->msg_iovlen > 0 && strikes(SEND, fd)) {
                if (control->error)
                        return failure();
                shorter.msg_iovlen = (size_t) part_of(SEND, m->msg_iov, (int) m->msg_iovlen, &first);
                shorter.msg_iov = &first;
        }
        return real(fd, &shorter, flags);
}

/* -- files ------------------------------------------------------------------------------------------------------------------ */

#define OPENS(name)                                                                    \
        EXPORT int name(const char *path, int flags, ...) {                            \
                va_list more;                                                          \
                mode_t mode;                                                           \
                REAL(name);                                                            \
                va_start(more, flags);                                                 \
                mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;       \
                va_end(more);                                                          \
                return strikes_path(OPEN, path) ? failure() : real(path, flags, mode); \
        }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                                                            \
        EXPORT int name(int at, const char *path, int flags, ...) {                                                               \
                va_list more;                                                                                                     \
                mode_t mode;                                                                                                      \
                REAL(name);                                                                                                       \
                va_start(more, flags);                                                                                            \
                mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                                                  \
                va_end(more);                                                                                                     \
                return (path[0] == '/' ? strikes_path(OPEN, path) : strikes(OPEN, at)) ? failure() : real(at, path, flags, mode); \
        }
OPENS_AT(openat)
OPENS_AT(openat64)

EXPORT int ftruncate(int fd, off_t n) {
        REAL(ftruncate);
        return strikes(TRUNCATE, fd) ? failure() : real(fd, n);
}

EXPORT int ftruncate64(int fd, off64_t n) {
        REAL(ftruncate64);
        return strikes(TRUNCATE, fd) ? failure() : real(fd, n);
}

EXPORT int fallocate(int fd, int mode, off_t at, off_t n) {
        REAL(fallocate);
        return strikes(TRUNCATE, fd) ? failure() : real(fd, mode, at, n);
}

EXPORT int rename(const char *from, const char *to) {
        REAL(rename);
        return strikes_path(RENAME, to) ? failure() : real(from, to);
}

EXPORT int renameat(int from_fd, const char *from, int to_fd, const char *to) {
        REAL(renameat);
        return (to[0] == '/' ? strikes_path(RENAME, to) : strikes(RENAME, to_fd)) ? failure() : real(from_fd, from, to_fd, to);
}

EXPORT int flock(int fd, int operation) {
        REAL(flock);
        return strikes(LOCK, fd) ? failure() : real(fd, operation);
}

EXPORT void *mmap(void *p, size_t n, int protection, int flags, int fd, off_t at) {
        REAL(mmap);
        if (fd < 0 || !strikes(MAP, fd))
                return real(p, n, protection, flags, fd, at);
        failure();
        return MAP_FAILED;
}

/* -- connections and waiting -------------------------------------------------------------------------------------------------- */

EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *len, int flags) {
        REAL(accept4);
        return strikes(ACCEPT, fd) ? failure() : real(fd, address, len, flags);
}

EXPORT int poll(struct pollfd *fds, nfds_t n, int timeout) {
        REAL(poll);
        return watched(WAIT) && hit() ? failure() : real(fds, n, timeout);
}

EXPORT int epoll_wait(int fd, struct epoll_event *events, int n, int timeout) {
        REAL(epoll_wait);
        return watched(WAIT) && hit() ? failure() : real(fd, events, n, timeout);
}

/* -- memory ----------------------------------------------------------------------------------------------------------------- */

#ifndef OM_INJECT_NO_MEMORY
/* The C library's own, under the names that it keeps for those who replace malloc(): dlsym() may allocate. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static bool no_memory(void) {
        if (!watched(ALLOCATE) || !hit())
                return false;
        errno = ENOMEM;
        return true;
}

EXPORT void *malloc(size_t n) { return no_memory() ? NULL : __libc_malloc(n); }
EXPORT void *calloc(size_t n, size_t size) { return no_memory() ? NULL : __libc_calloc(n, size); }
EXPORT void *realloc(void *p, size_t n) { return no_memory() ? NULL : __libc_realloc(p, n); }
EXPORT void *aligned_alloc(size_t alignment, size_t n) { return no_memory() ? NULL : __libc_memalign(alignment, n); }
EXPORT void *memalign(size_t alignment, size_t n) { return no_memory() ? NULL : __libc_memalign(alignment, n); }

EXPORT int posix_memalign(void **ret, size_t alignment, size_t n) {
        void *p = no_memory() ? NULL : __libc_memalign(alignment, n);

        if (!p)
                return ENOMEM;
        *ret = p;
        return 0;
}
#endif
