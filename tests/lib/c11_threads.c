/* SPDX-License-Identifier: Apache-2.0 */
/*
 * C11's threads as POSIX ones, for daemons that are built with ThreadSanitizer: it knows pthread_create() and does not know thrd_create(),
 * which librdkafka uses; a thread that it has not seen begin ends the program. The daemon's own symbols come before those of libraries, so
 * being linked into it is enough. glibc's types of both are the same (nptl/thrd_priv.h: it casts as we do).
 *
 * What librdkafka does within itself is its own affair, and it was not built for TSan: its atomics are not seen. What is reported is
 * where a race's top frame is ours.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <threads.h>

const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) {
        return "called_from_lib:librdkafka.so.1\n"
               "race_top:librdkafka.so.1\n"
               "race:^mtx_\n" /* who calls these is that library */
               "race:^cnd_\n";
}

struct start {
        thrd_start_t fn;
        void *arg;
};

static void *run(void *ctx) {
        struct start s = *(struct start *) ctx;

        free(ctx);
        return (void *) (intptr_t) s.fn(s.arg);
}

static int told(int err) { return err == 0 ? thrd_success : err == ETIMEDOUT ? thrd_timedout : err == EBUSY ? thrd_busy : thrd_error; }

int thrd_create(thrd_t *t, thrd_start_t fn, void *arg) {
        struct start *s = malloc(sizeof *s);
        int err;

        if (!s)
                return thrd_nomem;
        *s = (struct start){ fn, arg };
        err = pthread_create(t, NULL, run, s);
        if (err)
                free(s);
        return told(err);
}

int thrd_join(thrd_t t, int *ret) {
        void *value = NULL;
        int err = pthread_join(t, &value);

        if (ret)
                *ret = (int) (intptr_t) value;
        return told(err);
}

int thrd_detach(thrd_t t) { return told(pthread_detach(t)); }

int mtx_init(mtx_t *m, int type) {
        pthread_mutexattr_t a;
        int err;

        pthread_mutexattr_init(&a);
        if (type & mtx_recursive)
                pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
        err = pthread_mutex_init((pthread_mutex_t *) m, &a);
        pthread_mutexattr_destroy(&a);
        return told(err);
}

void mtx_destroy(mtx_t *m) { pthread_mutex_destroy((pthread_mutex_t *) m); }
int mtx_lock(mtx_t *m) { return told(pthread_mutex_lock((pthread_mutex_t *) m)); }
int mtx_trylock(mtx_t *m) { return told(pthread_mutex_trylock((pthread_mutex_t *) m)); }
int mtx_unlock(mtx_t *m) { return told(pthread_mutex_unlock((pthread_mutex_t *) m)); }

int cnd_init(cnd_t *c) { return told(pthread_cond_init((pthread_cond_t *) c, NULL)); }
void cnd_destroy(cnd_t *c) { pthread_cond_destroy((pthread_cond_t *) c); }
int cnd_signal(cnd_t *c) { return told(pthread_cond_signal((pthread_cond_t *) c)); }
int cnd_broadcast(cnd_t *c) { return told(pthread_cond_broadcast((pthread_cond_t *) c)); }
int cnd_wait(cnd_t *c, mtx_t *m) { return told(pthread_cond_wait((pthread_cond_t *) c, (pthread_mutex_t *) m)); }

int cnd_timedwait(cnd_t *restrict c, mtx_t *restrict m, const struct timespec *restrict until) {
        return told(pthread_cond_timedwait((pthread_cond_t *) c, (pthread_mutex_t *) m, until));
}
