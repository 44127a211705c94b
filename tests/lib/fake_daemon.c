/* SPDX-License-Identifier: Apache-2.0 */
/* A daemon on a thread that follows a test's script: see fake_daemon.h. It uses none of the project's own code on purpose. */
#include "fake_daemon.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct fake {
        pthread_t thread;
        fake_script *script;
        void *user;
        int listen_fd, fd;
        char dir[64], path[96];
        char *body;
};

static void die(const char *what) {
        fprintf(stderr, "fake daemon: %s: %s\n", what, strerror(errno));
        abort();
}

static void listen_at(struct fake *f) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", f->path);
        f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (f->listen_fd < 0 || bind(f->listen_fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(f->listen_fd, 16) < 0)
                die("listen");
}

static void *run(void *p) {
        struct fake *f = p;
        f->script(f);
        fake_close(f);
        return NULL;
}

struct fake *fake_start(fake_script *script, void *user) {
        struct fake *f = calloc(1, sizeof(*f));
        if (!f)
                die("memory");
        f->script = script;
        f->user = user;
        f->fd = -1;
        snprintf(f->dir, sizeof(f->dir), "/tmp/omni-fake-XXXXXX");
        if (!mkdtemp(f->dir))
                die("mkdtemp");
        snprintf(f->path, sizeof(f->path), "%s/d.sock", f->dir);
        listen_at(f);
        if (pthread_create(&f->thread, NULL, run, f) != 0)
                die("pthread_create");
        return f;
}

const char *fake_path(const struct fake *f) { return f->path; }
void *fake_user(const struct fake *f) { return f->user; }

void fake_finish(struct fake *f) {
        pthread_join(f->thread, NULL);
        fake_close(f);
        fake_mute(f, true);
        rmdir(f->dir);
        free(f->body);
        free(f);
}

void fake_close(struct fake *f) {
        if (f->fd >= 0)
                close(f->fd);
        f->fd = -1;
}

void fake_mute(struct fake *f, bool on) {
        if (on && f->listen_fd >= 0) {
                unlink(f->path);
                close(f->listen_fd);
                f->listen_fd = -1;
        } else if (!on && f->listen_fd < 0) {
                listen_at(f);
        }
}

void fake_accept(struct fake *f) {
        fake_close(f);
        f->fd = accept(f->listen_fd, NULL, NULL);
        if (f->fd < 0)
                die("accept");
}

static bool read_all(struct fake *f, void *into, size_t n) {
        for (size_t at = 0; at < n;) {
                ssize_t r = recv(f->fd, (char *) into + at, n - at, 0);
                if (r <= 0)
                        return false;
                at += (size_t) r;
        }
        return true;
}

const char *fake_read(struct fake *f) {
        unsigned char h[4];
        free(f->body);
        f->body = NULL;
        if (!read_all(f, h, 4))
                return NULL;
        size_t n = (size_t) h[0] << 24 | (size_t) h[1] << 16 | (size_t) h[2] << 8 | h[3];
        f->body = malloc(n + 1);
        if (!f->body)
                die("memory");
        if (!read_all(f, f->body, n))
                return NULL;
        f->body[n] = '\0';
        return f->body;
}

const char *fake_expect(struct fake *f, const char *method) {
        char text[100];
        snprintf(text, sizeof(text), "\"method\":\"%s\"", method);
        if (!fake_read(f) || !strstr(f->body, text)) {
                fprintf(stderr, "fake daemon: expected %s, got %.300s\n", method, f->body ? f->body : "the end");
                abort();
        }
        return f->body;
}

const char *fake_body(const struct fake *f) { return f->body ? f->body : ""; }

long fake_id(struct fake *f) {
        const char *p = f->body ? strstr(f->body, "\"id\":") : NULL;
        return p ? strtol(p + 5, NULL, 10) : -1;
}

bool fake_has(struct fake *f, const char *text) { return f->body && strstr(f->body, text); }

void fake_raw(struct fake *f, const void *data, size_t n) {
        for (size_t at = 0; at < n;) {
                ssize_t r = send(f->fd, (const char *) data + at, n - at, MSG_NOSIGNAL);
                if (r < 0)
                        return; /* the client hung up, as it may */
                at += (size_t) r;
        }
}

static void send_body(struct fake *f, const char *body) {
        size_t n = strlen(body);
        unsigned char h[4] = { (unsigned char) (n >> 24), (unsigned char) (n >> 16), (unsigned char) (n >> 8), (unsigned char) n };
        fake_raw(f, h, 4);
        fake_raw(f, body, n);
}

void fake_send(struct fake *f, const char *format, ...) {
        char *body;
        va_list args;
        va_start(args, format);
        if (vasprintf(&body, format, args) < 0)
                die("memory");
        va_end(args);
        send_body(f, body);
        free(body);
}

void fake_reply(struct fake *f, const char *format, ...) {
        char *result;
        va_list args;
        va_start(args, format);
        if (vasprintf(&result, format, args) < 0)
                die("memory");
        va_end(args);
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":%s}", fake_id(f), result);
        free(result);
}

void fake_error(struct fake *f, const char *kind, const char *message) {
        fake_send(f, "{\"jsonrpc\":\"2.0\",\"id\":%ld,\"error\":{\"code\":-32000,\"message\":\"%s\",\"data\":{\"kind\":\"%s\"}}}",
                fake_id(f), message, kind);
}

void fake_meet(struct fake *f) {
        fake_accept(f);
        fake_expect(f, "hello");
        fake_reply(f,
                "{\"server\":\"omnidaemond\",\"version\":\"0\",\"protocol\":1,\"limits\":{\"frame_bytes\":1048576,\"depth\":64,"
                "\"batch\":1000,\"prefetch\":1000,\"in_flight\":1024}}");
}
