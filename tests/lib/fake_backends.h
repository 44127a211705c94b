/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_FAKE_BACKENDS_H
#define TESTS_FAKE_BACKENDS_H
/*
 * A bus and a storage without a server, whose completions a test holds back and whose failures it chooses; and a core on top of them with
 * clients on socketpairs. The storage keeps what it is given in memory. The bus keeps nothing: it says yes.
 *
 * One at a time in a process. Loop thread.
 */
#include "../../daemon/core.h"
#include "../../daemon/session.h"

struct fake {
        struct om_loop *loop;
        struct om_core *core;
        struct om_settings settings;
        char folder[64];

        /* of the bus */
        bool hold_queries;      /* OM_QUERY_TOPICS is held until fake_release() */
        unsigned n_held;        /* held now */
        unsigned refuse;        /* so many queries are refused with -ENOBUFS */
        const char *bus_health; /* JSON; NULL: the query fails as unavailable */
        bool no_cancel;         /* a held query cannot be cancelled */

        /* of the storage */
        bool store_away; /* every operation is refused as unavailable */
        unsigned n_puts; /* entries written so far */
        const char *store_health;
};
extern struct fake fake;

void fake_set_up(void);    /* the core is ready */
void fake_tear_down(void); /* stops the core in order */
void fake_turn(void);      /* what is ready now, and what that leads to */
void fake_run_ms(int ms);  /* turns for so long */
/* Completes the i-th held query (in the order in which they came), with so many topics of 100 bytes. */
void fake_release(unsigned i, unsigned n_topics);
void fake_store_state(enum om_store_state state); /* what the storage tells the core */
/* A stored value: zero-terminated, NULL when there is none. Good until the next change. */
const char *fake_stored(enum om_store_kind kind, const char *key, const char *name);
void fake_store(enum om_store_kind kind, const char *key, const char *name, const char *value);

/* -- clients: the other ends of socketpairs, blocking nowhere ------------------------------------------------------ */

int fake_connect(void);                     /* returns the client's descriptor */
void client_send(int fd, const char *body); /* one frame */
void client_send_raw(int fd, const void *data, size_t n);
/* The next frame's body, zero-terminated, in a static buffer that grows; turns the loop until it is there, at most 5 s. NULL at the end of
 * input or a reset. */
const char *client_read(int fd);
bool client_at_end(int fd); /* turns the loop until the end of input comes, at most 5 s */
bool client_quiet(int fd);  /* nothing to read after some turns */

#endif
