/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_FAKE_CORE_H
#define TESTS_FAKE_CORE_H
/*
 * A core on the backends in memory, and its clients: the other ends of socketpairs. One at a time in a process. Loop thread.
 */
#include "../../daemon/core.h"
#include "../../daemon/session.h"
#include "memory_backends.h"

struct fake {
        struct om_loop *loop;
        struct om_core *core;
        struct om_settings settings;
        char folder[64];
};
extern struct fake fake;

void fake_set_up(void);    /* the core is ready */
void fake_tear_down(void); /* stops the core in order */
void fake_turn(void);      /* what is ready now, and what that leads to */
void fake_run_ms(int ms);  /* turns for so long */

/* -- clients, blocking nowhere ---------------------------------------------------------------------------------------- */

int fake_connect(void);                     /* returns the client's descriptor */
void client_send(int fd, const char *body); /* one frame */
void client_send_raw(int fd, const void *data, size_t n);
/* The next frame's body, zero-terminated, in a static buffer that grows; turns the loop until it is there, at most 5 s. NULL at the end of
 * input or a reset. */
const char *client_read(int fd);
bool client_at_end(int fd); /* turns the loop until the end of input comes, at most 5 s */
bool client_quiet(int fd);  /* nothing to read after some turns */

#endif
