/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One running program: see child.h.
 *
 * The program is the leader of its own process group, so that a time limit reaches what it has started and a Ctrl-C on our terminal does
 * not reach it: it is we who decide to let it finish. It dies with us (PR_SET_PDEATHSIG), since its task goes to another worker then.
 */
#include "child.h"
#include "term.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { READ_MAX = 64 << 10 };
static const double linger_s = 1; /* how long output that others hold open is waited for after the program has ended */

static void close_fd(int *fd) {
        if (*fd >= 0) {
                close(*fd);
        }
        *fd = -1;
}

/* In the child. Never returns. */
__attribute__((noreturn)) static void become(const struct child_setup *setup, pid_t parent, int in, int out, int err) {
        sigset_t none;

        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
                _exit(127); /* it died before the line above */
        }
        if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0) {
                _exit(127);
        }
        for (size_t i = 0; setup->environment[i][0]; i++) {
                if (setup->environment[i][1]) {
                        setenv(setup->environment[i][0], setup->environment[i][1], 1);
                } else {
                        unsetenv(setup->environment[i][0]);
                }
        }
        signal(SIGPIPE, SIG_DFL);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execvp(setup->argv[0], setup->argv);
        dprintf(STDERR_FILENO, "cannot run %s: %s\n", setup->argv[0], strerror(errno));
        _exit(127);
}

static int set_nonblocking(int fd) {
        int flags = fcntl(fd, F_GETFL);
        return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

int child_start(struct child *c, const struct child_setup *setup, struct om_span input) {
        int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 }, r = 0;
        pid_t parent = getpid(), pid;

        if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0) {
                r = -errno;
                goto out;
        }
        r = set_nonblocking(in[1]);
        r = r < 0 ? r : set_nonblocking(out[0]);
        r = r < 0 ? r : set_nonblocking(err[0]);
        if (r < 0) {
                goto out;
        }
        pid = fork();
        if (pid < 0) {
                r = -errno;
                goto out;
        }
        if (pid == 0) {
                become(setup, parent, in[0], out[1], err[1]);
        }
        setpgid(pid, pid); /* both sides do it: neither can be too late */
        *c = (struct child){
                .pid = pid, .in = in[1], .out = out[0], .err = err[0], .input = input, .setup = setup, .started = term_seconds()
        };
        c->deadline = setup->timeout_ms ? c->started + (double) setup->timeout_ms / 1000 : 0;
        in[1] = out[0] = err[0] = -1;
out:
        for (int i = 0; i < 2; i++) {
                close_fd(&in[i]);
                close_fd(&out[i]);
                close_fd(&err[i]);
        }
        return r;
}

void child_deinit(struct child *c) {
        if (c->pid) {
                kill(-c->pid, SIGKILL);
                while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
                        ;
                close_fd(&c->in);
                close_fd(&c->out);
                close_fd(&c->err);
        }
        om_buf_deinit(&c->output);
        om_buf_deinit(&c->errors);
        c->pid = 0;
}

size_t child_polls(const struct child *c, struct pollfd *polls) {
        size_t n = 0;

        if (c->in >= 0) {
                polls[n++] = (struct pollfd){ .fd = c->in, .events = POLLOUT };
        }
        if (c->out >= 0) {
                polls[n++] = (struct pollfd){ .fd = c->out, .events = POLLIN };
        }
        if (c->err >= 0) {
                polls[n++] = (struct pollfd){ .fd = c->err, .events = POLLIN };
        }
        return n;
}

/* A program need not read what it is given: that its end of the pipe is closed is no fault. */
static void write_input(struct child *c) {
        while (c->input.len > 0) {
                ssize_t n = write(c->in, c->input.p, c->input.len);

                if (n < 0 && errno == EINTR) {
                        continue;
                }
                if (n < 0 && errno == EAGAIN) {
                        return;
                }
                if (n < 0) {
                        break;
                }
                c->input.p += n;
                c->input.len -= (size_t) n;
        }
        close_fd(&c->in);
}

/* Reads what is there, at most READ_MAX bytes a call, so that one that floods does not starve the others. Bytes read; closes at the end. */
static size_t read_some(int *fd, struct om_buf *b) {
        char *to = om_buf_reserve(b, READ_MAX);
        ssize_t n = to ? read(*fd, to, READ_MAX) : 0;

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                return 0;
        }
        if (n <= 0) {
                close_fd(fd);
                return 0;
        }
        b->len += (size_t) n;
        return (size_t) n;
}

static size_t read_errors(struct child *c) {
        size_t n = read_some(&c->err, &c->errors);

        if (c->errors.len > (size_t) CHILD_STDERR_KEPT + READ_MAX) {
                om_buf_consume(&c->errors, c->errors.len - CHILD_STDERR_KEPT - n);
                c->errors_cut = true;
        }
        return n;
}

size_t child_io(struct child *c, const struct pollfd *poll) {
        if (poll->fd == c->in) {
                write_input(c);
        } else if (poll->fd == c->err) {
                return read_errors(c);
        } else if (poll->fd == c->out) {
                read_some(&c->out, &c->output);
                if (c->output.len > c->setup->max_output && c->end == CHILD_BY_ITSELF) {
                        close_fd(&c->out); /* writing on, it gets SIGPIPE */
                        child_terminate(c, CHILD_OUTPUT);
                } else if (c->end == CHILD_OUTPUT) {
                        close_fd(&c->out);
                }
        }
        return 0;
}

void child_exited(struct child *c) {
        siginfo_t info = { 0 };

        if (c->exited || waitid(P_PID, (id_t) c->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid != c->pid) {
                return;
        }
        c->exited = true;
        c->code = info.si_code == CLD_EXITED ? info.si_status : -1;
        c->signal = info.si_code == CLD_EXITED ? 0 : info.si_status;
        c->linger_until = term_seconds() + linger_s;
        close_fd(&c->in);
}

double child_due(const struct child *c) {
        if (c->exited) {
                return c->linger_until;
        }
        return c->kill_at > 0 ? c->kill_at : c->end == CHILD_BY_ITSELF ? c->deadline : 0;
}

void child_tick(struct child *c, double now) {
        if (c->exited && now >= c->linger_until) {
                close_fd(&c->out);
                close_fd(&c->err);
        } else if (!c->exited && c->kill_at > 0 && now >= c->kill_at) {
                child_kill(c);
                c->kill_at = 0;
        } else if (!c->exited && c->end == CHILD_BY_ITSELF && c->deadline > 0 && now >= c->deadline) {
                child_terminate(c, CHILD_TIMEOUT);
        }
}

void child_terminate(struct child *c, enum child_end end) {
        if (c->exited || c->end != CHILD_BY_ITSELF) {
                return;
        }
        c->end = end;
        c->kill_at = term_seconds() + (double) c->setup->kill_after_ms / 1000;
        kill(-c->pid, SIGTERM);
        kill(-c->pid, SIGCONT); /* one that is stopped could not end */
}

void child_kill(struct child *c) {
        if (c->end == CHILD_BY_ITSELF) {
                c->end = CHILD_CALLED;
        }
        kill(-c->pid, SIGKILL);
}

bool child_over(const struct child *c) { return c->exited && c->out < 0 && c->err < 0; }
