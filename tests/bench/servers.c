/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Folders, daemons and other servers of the benchmark: started, measured from outside, stopped.
 *
 * A daemon gets no setting but its bus and its socket, and the environment as it is: STORAGE_URL and the like reach it. What was started
 * here dies with the benchmark.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

void folder_new(char path[64]) {
        const char *base = getenv("BENCH_DIR");
        snprintf(path, 64, "%s/omni-bench-XXXXXX",
                base && strlen(base) < 32 ? base : "/var/tmp"); /* /tmp may be memory; an fsync there costs nothing */
        if (!mkdtemp(path))
                die(path, strerror(errno));
}

void folder_remove(const char *path) {
        pid_t pid = fork();
        if (pid == 0) {
                execlp("rm", "rm", "-rf", path, (char *) NULL);
                _exit(127);
        }
        waitpid(pid, NULL, 0);
}

pid_t child_start(const char *folder, const char *const argv[]) {
        pid_t pid = fork();
        if (pid == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (chdir(folder) != 0)
                        _exit(127);
                int log = open("log", O_WRONLY | O_CREAT | O_TRUNC, 0600);
                dup2(log, 1);
                dup2(log, 2);
                execvp(argv[0], (char *const *) argv);
                _exit(127);
        }
        if (pid < 0)
                die(argv[0], strerror(errno));
        return pid;
}

void child_stop(pid_t pid) {
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
}

omni_client *client_new(const struct daemon *d) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        options.socket_path = d->socket;
        options.connect_timeout_ms = 120000;
        omni_client *client;
        if (omni_new(&options, &client) < 0)
                die("client", "out of memory");
        return client;
}

int socket_connect(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        if (fd >= 0 && connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0) {
                close(fd);
                return -1;
        }
        return fd;
}

void daemon_again(struct daemon *d) {
        char path[4096];
        if (!realpath(bin_dir, path))
                die(bin_dir, strerror(errno));
        strncat(path, "/omnidaemond", sizeof(path) - strlen(path) - 1);
        setenv("OMNIDAEMON_SOCKET", d->socket, 1);
        double start = now_s();
        d->pid = child_start(d->folder, (const char *const[]){ path, "--event-bus-url", d->bus, NULL });
        int fd;
        for (; (fd = socket_connect(d->socket)) < 0; usleep(200)) { /* the library's own pauses are longer than the start */
                if (waitpid(d->pid, NULL, WNOHANG) != 0 || now_s() - start > 120)
                        die("the daemon did not start; its log is in", d->folder);
        }
        close(fd);
        omni_client *client = client_new(d);
        if (omni_call(client, "ping", NULL, NULL, NULL) < 0)
                die("ping", omni_strerror(client));
        d->ready_ms = (now_s() - start) * 1e3;
        omni_free(client);
}

void daemon_start(struct daemon *d, const char *bus_url) {
        folder_new(d->folder);
        snprintf(d->socket, sizeof(d->socket), "%s/d.sock", d->folder);
        snprintf(d->bus, sizeof(d->bus), "%s", bus_url);
        daemon_again(d);
}

void daemon_end(struct daemon *d) {
        int status;
        kill(d->pid, SIGTERM);
        waitpid(d->pid, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                die("the daemon did not stop cleanly; its log is in", d->folder);
}

void daemon_stop(struct daemon *d) {
        daemon_end(d);
        folder_remove(d->folder);
}

/* Without pages of mapped files: those of LMDB are the kernel's cache, and go when it wants them. */
double daemon_rss_mib(const struct daemon *d) {
        char path[64], line[256];
        long kib = 0, one;
        snprintf(path, sizeof(path), "/proc/%d/status", (int) d->pid);
        FILE *f = fopen(path, "re");
        while (f && fgets(line, sizeof(line), f))
                if (sscanf(line, "RssAnon: %ld", &one) == 1 || sscanf(line, "RssShmem: %ld", &one) == 1)
                        kib += one;
        if (f)
                fclose(f);
        return (double) kib / 1024;
}
