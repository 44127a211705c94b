/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small things that every backend needs: log lines, clocks, backoff, random numbers, folders.
 *
 * Nothing here keeps state but the random generator, which is thread-local, so every function may be called on any thread. om_mkdirs() is
 * the only one that blocks.
 */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

void om_host_log(struct om_host *host, enum om_level level, const char *format, ...) {
        /* A line of the log that is longer than this holds somebody's data, not a message. */
        char text[2048];
        va_list ap;
        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        host->ops->log(host, level, text);
}

static int64_t clock_ms(clockid_t id) {
        struct timespec t;
        clock_gettime(id, &t);
        return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t om_now_ms(void) { return clock_ms(CLOCK_REALTIME); }

int64_t om_clock_ms(void) { return clock_ms(CLOCK_MONOTONIC); }

uint64_t om_clock_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}

int64_t om_backoff_ms(int64_t base_ms, int64_t max_ms, unsigned n) {
        if (base_ms <= 0 || max_ms <= 0)
                return 0;
        int64_t delay = base_ms < max_ms ? base_ms : max_ms;
        for (unsigned i = 0; i < n && delay < max_ms; i++)
                delay = delay > max_ms / 2 ? max_ms : delay * 2;
        int64_t half = delay / 2;
        return delay - half + (int64_t) (om_random_u64() % (uint64_t) (half + 1));
}

/* xoshiro256** 1.0 by Blackman and Vigna (https://prng.di.unimi.it/xoshiro256starstar.c, public domain). */
static uint64_t rotate_left(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

/* SplitMix64, which its authors give for filling the state when there is little entropy. */
static uint64_t splitmix(uint64_t *state) {
        uint64_t z = (*state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
}

static void random_seed(uint64_t s[4]) {
        /* A fresh kernel may not have its entropy yet; for jitter the clock and the address of this thread's state are then good enough. */
        if (getrandom(s, 4 * sizeof(s[0]), GRND_NONBLOCK) != (ssize_t) (4 * sizeof(s[0])) || (s[0] | s[1] | s[2] | s[3]) == 0) {
                uint64_t seed = om_clock_ns() ^ (uint64_t) (uintptr_t) s ^ ((uint64_t) getpid() << 32);
                for (int i = 0; i < 4; i++)
                        s[i] = splitmix(&seed);
        }
}

uint64_t om_random_u64(void) {
        static _Thread_local struct {
                uint64_t s[4];
                pid_t pid; /* a forked child must not repeat its parent's numbers */
        } state;
        uint64_t *s = state.s;
        pid_t pid = getpid();
        if (state.pid != pid) {
                random_seed(s);
                state.pid = pid;
        }
        uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = rotate_left(s[3], 45);
        return result;
}

static int make_one(const char *path, struct om_error *e) {
        if (mkdir(path, 0700) == 0)
                return 0;
        int error = errno;
        struct stat st;
        /* Asked only now: a folder that exists in a read-only one fails with EROFS, and a race with another maker is no failure. */
        if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
                return 0;
        if (error == EEXIST)
                error = ENOTDIR;
        return om_error_set_errno(e, error, "cannot make folder %s", path);
}

int om_mkdirs(const char *path, struct om_error *e) {
        size_t len = strlen(path);
        if (len == 0)
                return om_error_set(e, OM_INVALID, "cannot make a folder without a name");
        if (len >= PATH_MAX)
                return om_error_set_errno(e, ENAMETOOLONG, "cannot make folder %.100s…", path);
        char *copy = strdup(path);
        if (!copy)
                return om_error_set_errno(e, ENOMEM, "cannot make folder %s", path);
        int r = 0;
        for (size_t i = 1; i <= len && r == 0; i++) {
                if ((copy[i] != '/' && copy[i] != 0) || copy[i - 1] == '/')
                        continue;
                copy[i] = 0;
                r = make_one(copy, e);
                copy[i] = path[i];
        }
        free(copy);
        return r;
}
