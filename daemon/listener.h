/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LISTENER_H
#define OM_LISTENER_H
/*
 * The socket that clients connect to: made by us or handed over by systemd (sd_listen_fds(3)), and the accepting of connections. Loop
 * thread.
 */
#include "loop.h"

struct om_listener;
struct om_listener_options {
        const char *path;
        mode_t mode;       /* of the socket: writing is connecting */
        const char *group; /* name or number; NULL: unchanged */
        /* Takes the connection `fd`, non-blocking, close-on-exec; it is the callee's, also when it fails. */
        int (*accept)(void *ctx, int fd);
        /* How many more connections may be taken now, and how many there may be at all. */
        unsigned (*room)(void *ctx, unsigned *ret_max);
        void *ctx;
};

/*
 * Opens the socket; clients can connect from now on and wait in its queue until om_listener_start(). Blocks for some file operations.
 * Strings of `options` are borrowed for the call. -EEXIST: another daemon is there, `e` names its process; other errors name the path.
 */
int om_listener_open(struct om_loop *loop, const struct om_listener_options *options, struct om_listener **ret, struct om_error *e);
void om_listener_start(struct om_listener *l);
/* Takes no more connections; those in the queue stay there for whoever serves the socket next, when it was handed to us. */
void om_listener_stop(struct om_listener *l);
/* Closes it, and removes the socket that we made. */
void om_listener_free(struct om_listener *l);

const char *om_listener_path(const struct om_listener *l);
bool om_listener_is_handed(const struct om_listener *l);

#endif
