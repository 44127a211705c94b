/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process's own client: made at the first call, from the environment; freed at exit.
 *
 * The mutex guards the pointer only: the client itself belongs to one thread at a time, as every client. In a fork's child the parent's
 * client is left alone (its descriptors are closed by omni_free(), which knows) and a new one is made.
 */
#include "internal.h"

#include <pthread.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static omni_client *the_client;

static void free_at_exit(void) { omni_free(the_client); }

void omc_default_forget(omni_client *c) {
        pthread_mutex_lock(&lock);
        if (the_client == c)
                the_client = NULL;
        pthread_mutex_unlock(&lock);
}

/* A number of milliseconds, -1 included. Absent and empty leave *value as it is. */
static int env_ms(const char *name, int64_t *value) {
        const char *text = getenv(name);
        if (!text || !*text)
                return 0;
        char *end;
        errno = 0;
        long long n = strtoll(text, &end, 10);
        if (errno || *end || n < -1)
                return -EINVAL;
        *value = n;
        return 0;
}

static int make(omni_client **ret) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        const char *name = getenv("OMNIDAEMON_CLIENT_NAME");
        if (name && *name)
                options.client_name = name;
        if (env_ms("OMNIDAEMON_CONNECT_TIMEOUT_MS", &options.connect_timeout_ms) < 0 ||
                env_ms("OMNIDAEMON_CALL_TIMEOUT_MS", &options.call_timeout_ms) < 0)
                return -EINVAL;
        return omni_new(&options, ret);
}

omni_client *omni_default(void) {
        static bool at_exit;
        pthread_mutex_lock(&lock);
        omni_client *old = the_client && the_client->pid != getpid() ? the_client : NULL;
        if (old)
                the_client = NULL;
        int r = 0;
        if (!the_client)
                r = make(&the_client);
        if (r == 0 && !at_exit)
                at_exit = atexit(free_at_exit) == 0;
        omni_client *c = r == 0 ? the_client : NULL;
        pthread_mutex_unlock(&lock);
        omni_free(old);
        if (!c)
                errno = -r;
        return c;
}
