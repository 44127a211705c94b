/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making the socket: at a path that one daemon serves at a time.
 *
 * What is always true:
 *   - a lock on PATH.lock is held for as long as we serve PATH, so that of two daemons that start at once one is refused, and a socket that
 *     is found under the lock was left by one that died. It is removed only if nobody answers there all the same;
 *   - the socket is never more open than it is meant to be: it is made with mode 0600 and opened up when its group is set;
 *   - only the socket that we made is removed at the end, not one that somebody put in its place.
 *
 * The lock file stays: removing a lock file races with who opens it. Called by listener.c, before there are other threads (umask).
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "listener_open.h"

/* -- handed over --------------------------------------------------------------------------------------------------- */

/* 1: taken; 0: nothing was handed to us. */
static int take_from_systemd(struct om_listener_socket *s, struct om_error *e) {
        struct sockaddr_un address = { 0 };
        socklen_t len = sizeof address;
        int n = sd_listen_fds(1);

        if (n < 0)
                return om_error_set_errno(e, n, "the sockets from systemd");
        if (n == 0)
                return 0;
        if (n > 1)
                return om_error_set(e, OM_INVALID, "%d sockets were handed over; one ListenStream= is served", n);
        if (sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_STREAM, 1, NULL, 0) <= 0)
                return om_error_set(e, OM_INVALID, "what was handed over is no listening Unix stream socket");
        s->fd = SD_LISTEN_FDS_START;
        fcntl(s->fd, F_SETFL, fcntl(s->fd, F_GETFL) | O_NONBLOCK);
        if (getsockname(s->fd, (struct sockaddr *) &address, &len) == 0 && address.sun_path[0])
                snprintf(s->path, sizeof s->path, "%.*s", (int) sizeof address.sun_path - 1, address.sun_path);
        return 1;
}

/* -- made by us ---------------------------------------------------------------------------------------------------- */

/* The folder of the socket; when it is made, others must be able to reach what is in it. */
static int make_parent(const char *path, struct om_error *e) {
        char folder[108];
        const char *slash = strrchr(path, '/');
        struct stat st;
        int r;

        if (!slash || slash == path)
                return 0;
        snprintf(folder, sizeof folder, "%.*s", (int) (slash - path), path);
        if (stat(folder, &st) == 0)
                return 0;
        r = om_mkdirs(folder, e);
        if (r == 0 && chmod(folder, 0755) < 0)
                r = om_error_set_errno(e, errno, "chmod %s", folder);
        return r;
}

/* Who listens at `path`: its process, 0 when that cannot be said; -ECONNREFUSED nobody; -ENOENT, -errno. */
static int ask_who_is_there(const struct sockaddr_un *address) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r = 0;
        struct ucred peer = { .pid = 0 };
        socklen_t len = sizeof peer;

        if (fd < 0)
                return -errno;
        if (connect(fd, (const struct sockaddr *) address, sizeof *address) < 0)
                r = errno == EAGAIN ? 0 : -errno; /* its queue is full: somebody listens */
        else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0)
                r = (int) peer.pid;
        close(fd);
        return r;
}

static int refuse(const char *path, int pid, struct om_error *e) {
        char by[32] = "a process";

        if (pid > 0)
                snprintf(by, sizeof by, "process %d", pid);
        return om_error_set(e, OM_EXISTS,
                "%s is served already, by %s; stop that one, or choose another socket with --socket-path or OMNIDAEMON_SOCKET", path, by);
}

static int lock_path(struct om_listener_socket *s, const struct sockaddr_un *address, struct om_error *e) {
        char lock[sizeof s->path + 8];

        snprintf(lock, sizeof lock, "%s.lock", s->path);
        s->lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (s->lock_fd < 0)
                return om_error_set_errno(e, errno, "%s", lock);
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0)
                return 0;
        if (errno != EWOULDBLOCK)
                return om_error_set_errno(e, errno, "%s", lock);
        return refuse(s->path, ask_who_is_there(address), e);
}

/* Under the lock: removes what a daemon that died left behind. */
static int clear_path(const struct om_listener_socket *s, const struct sockaddr_un *address, struct om_error *e) {
        struct stat st;
        int there;

        if (lstat(s->path, &st) < 0)
                return errno == ENOENT ? 0 : om_error_set_errno(e, errno, "%s", s->path);
        if (!S_ISSOCK(st.st_mode))
                return om_error_set(
                        e, OM_EXISTS, "%s is there and is no socket; choose another path with --socket-path or OMNIDAEMON_SOCKET", s->path);
        there = ask_who_is_there(address);
        if (there >= 0)
                return refuse(s->path, there, e);
        if (there != -ECONNREFUSED && there != -ENOENT)
                return om_error_set_errno(e, there, "asking who serves %s", s->path);
        if (unlink(s->path) < 0 && errno != ENOENT)
                return om_error_set_errno(e, errno, "removing the stale socket %s", s->path);
        return 0;
}

static int group_id(const char *name, gid_t *ret, struct om_error *e) {
        struct group entry, *found = NULL;
        char buffer[4096], *end;
        unsigned long number;
        int r;

        number = strtoul(name, &end, 10);
        if (*end == 0) {
                *ret = (gid_t) number;
                return 0;
        }
        r = getgrnam_r(name, &entry, buffer, sizeof buffer, &found);
        if (!found)
                return om_error_set(
                        e, OM_INVALID, "SOCKET_GROUP: there is no group \"%.60s\"%s%s", name, r ? ": " : "", r ? strerror(r) : "");
        *ret = found->gr_gid;
        return 0;
}

static int open_up(const struct om_listener_options *o, const char *path, struct om_error *e) {
        gid_t gid;
        int r;

        if (o->group) {
                r = group_id(o->group, &gid, e);
                if (r < 0)
                        return r;
                if (chown(path, (uid_t) -1, gid) < 0)
                        return om_error_set_errno(e, errno, "SOCKET_GROUP: giving %s to group %.60s", path, o->group);
        }
        if (chmod(path, o->mode) < 0)
                return om_error_set_errno(e, errno, "chmod %s", path);
        return 0;
}

static int bind_and_listen(
        const struct om_listener_options *o, struct om_listener_socket *s, const struct sockaddr_un *address, struct om_error *e) {
        mode_t before;
        struct stat st;
        int r;

        s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (s->fd < 0)
                return om_error_set_errno(e, errno, "socket");
        before = umask(0177);
        r = bind(s->fd, (const struct sockaddr *) address, sizeof *address) < 0 ? errno : 0;
        umask(before);
        if (r != 0)
                return om_error_set_errno(e, r, "making the socket %s", s->path);
        if (lstat(s->path, &st) == 0) {
                s->device = st.st_dev;
                s->inode = st.st_ino;
        }
        if (listen(s->fd, SOMAXCONN) < 0)
                return om_error_set_errno(e, errno, "listening on %s", s->path);
        return open_up(o, s->path, e);
}

int om_listener_socket_open(const struct om_listener_options *o, struct om_listener_socket *ret, struct om_error *e) {
        struct om_listener_socket s = { .fd = -1, .lock_fd = -1 };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int r;

        r = take_from_systemd(&s, e);
        if (r > 0)
                *ret = s;
        if (r != 0)
                return r < 0 ? r : 0;

        if (strlen(o->path) >= sizeof address.sun_path)
                return om_error_set(e, OM_INVALID, "SOCKET_PATH: %.120s… is too long; a socket's path has at most %zu bytes", o->path,
                        sizeof address.sun_path - 1);
        memcpy(s.path, o->path, strlen(o->path));
        memcpy(address.sun_path, o->path, strlen(o->path));
        r = make_parent(s.path, e);
        if (r == 0)
                r = lock_path(&s, &address, e);
        if (r == 0)
                r = clear_path(&s, &address, e);
        if (r == 0)
                r = bind_and_listen(o, &s, &address, e);
        if (r < 0)
                om_listener_socket_close(&s);
        else
                *ret = s;
        return r;
}

void om_listener_socket_close(struct om_listener_socket *s) {
        struct stat st;

        if (s->inode && lstat(s->path, &st) == 0 && st.st_dev == s->device && st.st_ino == s->inode)
                unlink(s->path);
        if (s->fd >= 0)
                close(s->fd);
        if (s->lock_fd >= 0)
                close(s->lock_fd);
        s->fd = s->lock_fd = -1;
        s->inode = 0;
}
