/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_RUN_H
#define OM_CTL_RUN_H
/* agent run, inside: the loop (run.c) and how tasks end (run_settle.c). One thread. */
#include "child.h"
#include "ctl.h"

/* One place for a program. `task` is set from the start of the program until the task is settled. */
struct worker {
        omni_task *task;
        struct child child;
        struct child_setup setup;
        struct om_buf input; /* --raw: the decoded string */
        struct om_buf line;  /* --show-stderr: a line that has not ended */
        size_t first_poll, n_polls;
};

struct run {
        struct ctl *ctl;
        omni_agent *agent;
        char **argv;
        struct child_setup setup;
        bool raw, text, show_stderr;
        uint64_t once; /* end after so many tasks; 0: never */

        struct worker *workers;
        size_t n_workers, running;
        omni_task **queue; /* tasks that wait for a worker, oldest first */
        size_t n_queue, cap_queue;
        struct pollfd *polls;
        int signal_fd;

        uint64_t started, settled;
        bool stopping; /* a first signal came: nothing is started */
        int forced;    /* the second one */
        bool away;     /* the daemon is; told to the user */
        bool leaving;
};

/* Acks or fails the task of a program that is over, tells about it, and frees the place. */
void run_settle(struct run *run, struct worker *w);
/* The program could not even be started (-errno). */
void run_settle_unstarted(struct run *run, struct worker *w, int status);
/* --show-stderr: the last `n` bytes of what the program wrote. */
void run_show_errors(struct run *run, struct worker *w, size_t n);

#endif
