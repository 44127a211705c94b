/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls that fail when a test says so (inject.h), in a library to preload (LD_PRELOAD).
 *
 * Works by the names of the C library that the daemon, LMDB and libevent call; what the C library does inside itself (stdio,
 * getaddrinfo) is not seen. Any thread; nothing here allocates.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
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

#include "inject.h"

static bool in_scope_path(const char *path) { return strncmp(path, inject_control->under, strlen(inject_control->under)) == 0; }

static bool in_scope(int fd) {
        char name[32], path[PATH_MAX];
        struct stat st;
        ssize_t n;

        if (inject_control->scope == ANY)
                return true;
        if (inject_control->scope == SOCKETS)
                return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        n = readlink(name, path, sizeof path - 1);
        path[n > 0 ? n : 0] = '\0';
        return in_scope_path(path) == (inject_control->scope == UNDER_PATH);
}

static bool strikes(enum kind kind, int fd) {
        int before = errno;
        bool fails = inject_watched(kind) && in_scope(fd) && inject_hit();

        errno = before;
        return fails;
}

static bool strikes_path(enum kind kind, const char *path) {
        return inject_watched(kind) &&
                (inject_control->scope == ANY ||
                        (inject_control->scope != SOCKETS && in_scope_path(path) == (inject_control->scope == UNDER_PATH))) &&
                inject_hit();
}

static int failure(void) {
        errno = inject_control->error ? inject_control->error : EIO;
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
        return inject_watched(FSYNC) && inject_hit() ? failure() : real(p, n, flags);
}

/* -- one buffer ------------------------------------------------------------------------------------------------------------- */

#define SIMPLE(kind, result, name, declared, fd, len, ...) \
        EXPORT result name declared {                      \
                REAL(name);                                \
                if (strikes(kind, fd)) {                   \
                        if (inject_control->error)         \
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
                        if (inject_control->error)       \
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
                if (inject_control->error)
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
        return inject_watched(WAIT) && inject_hit() ? failure() : real(fds, n, timeout);
}

EXPORT int epoll_wait(int fd, struct epoll_event *events, int n, int timeout) {
        REAL(epoll_wait);
        return inject_watched(WAIT) && inject_hit() ? failure() : real(fd, events, n, timeout);
}
