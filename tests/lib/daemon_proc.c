/* SPDX-License-Identifier: Apache-2.0 */
/* A real daemon under a test's control: see daemon_proc.h. Ready means that a connection is accepted: nothing here sleeps for a guess. */
#include "daemon_proc.h"

#include <errno.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READY_MS = 30000, LOG_SHOWN = 4000 };

struct om_test_daemon {
        char *dir, *socket, *log;
        char **args, **env;
        bool own_dir;
        pid_t pid;
};

static void *must(void *p) {
        if (!p) {
                fprintf(stderr, "daemon_proc: out of memory\n");
                abort();
        }
        return p;
}

static void show_log(const struct om_test_daemon *d) {
        char text[LOG_SHOWN + 1];
        FILE *f = fopen(d->log, "r");
        if (!f)
                return;
        if (fseek(f, -LOG_SHOWN, SEEK_END) < 0)
                rewind(f);
        text[fread(text, 1, LOG_SHOWN, f)] = '\0';
        fclose(f);
        fprintf(stderr, "%s", text);
}

static void die(const struct om_test_daemon *d, const char *what, long n) {
        fprintf(stderr, "daemon_proc: %s (%ld); its log ends:\n", what, n);
        show_log(d);
        abort();
}

static char **copy_list(const char *const *list, const char *first, size_t extra) {
        size_t n = 0;
        while (list && list[n])
                n++;
        char **copy = must(calloc(n + extra + 2, sizeof(*copy)));
        size_t at = 0;
        if (first)
                copy[at++] = must(strdup(first));
        for (size_t i = 0; i < n; i++)
                copy[at++] = must(strdup(list[i]));
        return copy;
}

static void free_list(char **list) {
        for (size_t i = 0; list && list[i]; i++)
                free(list[i]);
        free(list);
}

static char *joined(const char *a, const char *b) {
        char *s;
        if (asprintf(&s, "%s%s", a, b) < 0)
                s = NULL;
        return must(s);
}

static char *program(void) {
        const char *bin = getenv("OMNI_BIN");
        return joined(bin && *bin ? bin : "build/bin", "/omnidaemond");
}

static void become_daemon(const struct om_test_daemon *d, pid_t parent, bool main_thread) {
        /* The signal comes when the *thread* that forked ends: for another thread than the main one that would be too early. */
        if (main_thread)
                prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
                _exit(127);
        int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0 || chdir(d->dir) < 0)
                _exit(127);
        unsetenv("NOTIFY_SOCKET");
        unsetenv("XDG_RUNTIME_DIR");
        setenv("OMNIDAEMON_SOCKET", d->socket, 1);
        for (size_t i = 0; d->env[i]; i++)
                putenv(d->env[i]);
        execv(d->args[0], d->args);
        fprintf(stderr, "daemon_proc: %s: %s\n", d->args[0], strerror(errno));
        _exit(127);
}

static bool accepts(const struct om_test_daemon *d) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", d->socket);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool ok = connect(fd, (struct sockaddr *) &address, sizeof(address)) == 0;
        close(fd);
        return ok;
}

static long since_ms(const struct timespec *start) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (now.tv_sec - start->tv_sec) * 1000 + (now.tv_nsec - start->tv_nsec) / 1000000;
}

static void begin(struct om_test_daemon *d) {
        pid_t parent = getpid();
        bool main_thread = gettid() == parent;
        d->pid = fork();
        if (d->pid < 0)
                die(d, "fork failed", errno);
        if (d->pid == 0)
                become_daemon(d, parent, main_thread);
}

void om_test_daemon_up(struct om_test_daemon *d) {
        struct timespec start;
        clock_gettime(CLOCK_MONOTONIC, &start);
        begin(d);
        while (!accepts(d)) {
                int status;
                if (waitpid(d->pid, &status, WNOHANG) == d->pid)
                        die(d, "the daemon ended instead of becoming ready; wait status", status);
                if (since_ms(&start) > READY_MS)
                        die(d, "the daemon does not become ready; milliseconds waited", since_ms(&start));
                poll(NULL, 0, 2);
        }
}

static struct om_test_daemon *make(const char *dir, const char *const *args, const char *const *env) {
        struct om_test_daemon *d = must(calloc(1, sizeof(*d)));
        char made[] = "/tmp/omni-test-XXXXXX";
        d->own_dir = !dir;
        if (!dir)
                dir = must(mkdtemp(made));
        char *real = must(realpath(dir, NULL));
        d->dir = real;
        d->socket = joined(d->dir, "/d.sock");
        d->log = joined(d->dir, "/log");
        char *name = program(), *path = realpath(name, NULL);
        if (!path) {
                fprintf(stderr, "daemon_proc: %s is not there: set OMNI_BIN to the folder of the binaries\n", name);
                abort();
        }
        d->args = copy_list(args, path, 1);
        d->env = copy_list(env, NULL, 0);
        free(name);
        free(path);
        return d;
}

struct om_test_daemon *om_test_daemon_start(const char *dir, const char *const *args, const char *const *env) {
        struct om_test_daemon *d = make(dir, args, env);
        om_test_daemon_up(d);
        return d;
}

static void unmake(struct om_test_daemon *d) {
        free_list(d->args);
        free_list(d->env);
        free(d->dir);
        free(d->socket);
        free(d->log);
        free(d);
}

int om_test_daemon_refuses(const char *dir, const char *const *args, const char *const *env, char **ret_output) {
        struct om_test_daemon *d = make(dir, args, env);
        int status, log = open(d->log, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (log < 0)
                die(d, "cannot make its log", errno);
        begin(d);
        int child = pidfd_open(d->pid, 0);
        struct pollfd ended = { .fd = child, .events = POLLIN };
        if (child < 0 || poll(&ended, 1, READY_MS) <= 0) {
                kill(d->pid, SIGKILL);
                die(d, "the daemon goes on although it was to end; milliseconds waited", READY_MS);
        }
        if (waitpid(d->pid, &status, 0) != d->pid)
                die(d, "waitpid failed", errno);
        struct stat size;
        *ret_output = must(calloc(1, fstat(log, &size) == 0 ? (size_t) size.st_size + 1 : 1));
        if (read(log, *ret_output, (size_t) size.st_size) != size.st_size)
                die(d, "cannot read its log", errno);
        close(child);
        close(log);
        unmake(d);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

const char *om_test_daemon_dir(const struct om_test_daemon *d) { return d->dir; }
const char *om_test_daemon_socket(const struct om_test_daemon *d) { return d->socket; }
pid_t om_test_daemon_pid(const struct om_test_daemon *d) { return d->pid; }

static int end(struct om_test_daemon *d, int number) {
        int status = 0;
        if (!d->pid)
                return 0;
        kill(d->pid, number);
        if (waitpid(d->pid, &status, 0) != d->pid)
                die(d, "waitpid failed", errno);
        d->pid = 0;
        return status;
}

void om_test_daemon_kill9(struct om_test_daemon *d) { end(d, SIGKILL); }

void om_test_daemon_down(struct om_test_daemon *d) {
        int status = end(d, SIGTERM);
        if (status != 0) /* a sanitizer's report shows here too */
                die(d, "the daemon did not end well; wait status", status);
}

void om_test_daemon_restart(struct om_test_daemon *d) {
        om_test_daemon_down(d);
        om_test_daemon_up(d);
}

bool om_test_daemon_log_has(const struct om_test_daemon *d, const char *text) {
        FILE *f = fopen(d->log, "r");
        char *line = NULL;
        size_t size = 0;
        bool found = false;
        while (f && !found && getline(&line, &size, f) >= 0)
                found = strstr(line, text) != NULL;
        free(line);
        if (f)
                fclose(f);
        return found;
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *where) { return remove(path); }

void om_test_daemon_stop(struct om_test_daemon *d) {
        if (!d)
                return;
        om_test_daemon_down(d);
        if (d->own_dir)
                nftw(d->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        unmake(d);
}
