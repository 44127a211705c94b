/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LISTENER_OPEN_H
#define OM_LISTENER_OPEN_H
/*
 * Making the socket of listener.c. No other file includes this.
 */
#include "listener.h"

struct om_listener_socket {
        int fd;      /* listening, non-blocking, close-on-exec */
        int lock_fd; /* held as long as we serve `path`; -1: handed to us */
        char path[108];
        dev_t device; /* of the socket that we made: only that one is removed */
        ino_t inode;
};

/* Makes, or takes over from systemd. On failure nothing is left behind but the lock file. */
int om_listener_socket_open(const struct om_listener_options *o, struct om_listener_socket *ret, struct om_error *e);
void om_listener_socket_close(struct om_listener_socket *s);

#endif
