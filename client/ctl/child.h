/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_CHILD_H
#define OM_CTL_CHILD_H
/*
 * One running program: its process group, its three pipes, and how it ended.
 *
 * Nothing here blocks. The caller waits for the descriptors of child_polls(), calls child_io() for what is ready, child_exited() after a
 * SIGCHLD and child_tick() when child_due() has come, until child_over(). The process stays a zombie until child_deinit(), so that its
 * number, which is its group's too, cannot belong to anybody else while it may still be signalled. One thread.
 */
#include "../../proto/buf.h"

#include <poll.h>
#include <sys/types.h>

enum {
        CHILD_STDERR_KEPT = 8 << 10, /* the last bytes of standard error */
        CHILD_POLLS = 3,
};

enum child_end {
        CHILD_BY_ITSELF,
        CHILD_TIMEOUT, /* it ran longer than it may */
        CHILD_OUTPUT,  /* it wrote more than it may */
        CHILD_CALLED,  /* the caller ended it: the result is of no use any more */
};

struct child_setup {
        char *const *argv;
        const char *const (*environment)[2]; /* names and values, NULL value: not set; ended by a NULL name */
        int64_t timeout_ms;                  /* 0: none */
        int64_t kill_after_ms;
        size_t max_output;
};

struct child {
        pid_t pid; /* 0: not running */
        int in, out, err;
        struct om_span input; /* what is left to be written to its standard input */
        struct om_buf output, errors;
        bool errors_cut; /* `errors` is the end of more */
        const struct child_setup *setup;
        enum child_end end;
        double started, deadline, kill_at, linger_until; /* term_seconds(); 0: not set */
        bool exited;
        int code, signal; /* once exited: the exit status, or the signal that ended it */
};

/* Starts the program with `input` (borrowed while it runs) on its standard input. 0 or -errno (EAGAIN, ENOMEM, EMFILE). A program that
 * cannot be run exits with 127, having said why on standard error. */
int child_start(struct child *c, const struct child_setup *setup, struct om_span input);
/* Ends what is left of its process group and gives everything back. */
void child_deinit(struct child *c);

/* Fills up to CHILD_POLLS entries; returns how many. */
size_t child_polls(const struct child *c, struct pollfd *polls);
/* Handles one descriptor that is ready. New bytes of standard error are the last ones of c->errors; returns how many came. */
size_t child_io(struct child *c, const struct pollfd *poll);
/* Looks whether it has exited. */
void child_exited(struct child *c);
/* When child_tick() wants to be called, by term_seconds(); 0: never. */
double child_due(const struct child *c);
void child_tick(struct child *c, double now);
/* Asks it to end: SIGTERM, later SIGKILL. `end`: why. */
void child_terminate(struct child *c, enum child_end end);
void child_kill(struct child *c);
/* It has exited and its output is complete. */
bool child_over(const struct child *c);

#endif
