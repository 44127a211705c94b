/* SPDX-License-Identifier: Apache-2.0 */
/* A real server behind a script of tests/servers: see server.h. The pipe to the script is close-on-exec, so that no daemon keeps it open.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct om_test_server {
        char *system;
        pid_t pid;
        FILE *to, *from;
        char **lines; /* "name=value" */
        size_t n;
};

static void die(const struct om_test_server *s, const char *what) {
        fprintf(stderr, "server %s: %s: %s\n", s->system, what, strerror(errno));
        abort();
}

static void become_script(const char *system, const char *dir, int in, int out) {
        const char *folder = getenv("OMNI_SERVERS"), *colon = strchr(system, ':');
        size_t len = colon ? (size_t) (colon - system) : strlen(system);
        char *path;
        if (asprintf(&path, "%s/%.*s.sh", folder ? folder : "tests/servers", (int) len, system) < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0)
                _exit(127);
        execl(path, path, "serve", dir, colon ? colon + 1 : "plain", (char *) NULL);
        fprintf(stderr, "server: %s: %s\n", path, strerror(errno));
        _exit(127);
}

/* The script's next line, without its end; NULL: it has ended. */
static char *next_line(struct om_test_server *s) {
        char *line = NULL;
        size_t room = 0;
        ssize_t n = getline(&line, &room, s->from);
        if (n <= 0) {
                free(line);
                return NULL;
        }
        line[strcspn(line, "\n")] = 0;
        return line;
}

struct om_test_server *om_test_server_start(const char *system, const char *dir) {
        struct om_test_server *s = calloc(1, sizeof(*s));
        int to[2], from[2];
        if (!s || !(s->system = strdup(system)))
                abort();
        if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
                die(s, "pipe");
        s->pid = fork();
        if (s->pid < 0)
                die(s, "fork");
        if (s->pid == 0)
                become_script(system, dir, to[0], from[1]);
        close(to[0]);
        close(from[1]);
        s->to = fdopen(to[1], "we");
        s->from = fdopen(from[0], "re");
        char *line;
        while ((line = next_line(s)) && strcmp(line, "ready") != 0) {
                s->lines = realloc(s->lines, (s->n + 1) * sizeof(*s->lines));
                s->lines[s->n++] = line;
        }
        free(line);
        if (feof(s->from)) {
                errno = ECHILD;
                die(s, "it did not start (its own words are above)");
        }
        return s;
}

const char *om_test_server_nth(const struct om_test_server *s, const char *name, size_t i) {
        size_t len = strlen(name);
        for (size_t k = 0; k < s->n; k++)
                if (strncmp(s->lines[k], name, len) == 0 && s->lines[k][len] == '=' && i-- == 0)
                        return s->lines[k] + len + 1;
        return NULL;
}

const char *om_test_server_value(const struct om_test_server *s, const char *name) { return om_test_server_nth(s, name, 0); }

bool om_test_server_try(struct om_test_server *s, const char *command) {
        if (fprintf(s->to, "%s\n", command) < 0 || fflush(s->to) != 0)
                die(s, command);
        char *line = next_line(s);
        if (!line)
                die(s, command);
        bool ok = strcmp(line, "ok") == 0;
        free(line);
        return ok;
}

void om_test_server_do(struct om_test_server *s, const char *command) {
        if (!om_test_server_try(s, command)) {
                errno = EIO;
                die(s, command);
        }
}

void om_test_server_stop(struct om_test_server *s) {
        if (!s)
                return;
        fclose(s->to);
        while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
                ;
        fclose(s->from);
        for (size_t i = 0; i < s->n; i++)
                free(s->lines[i]);
        free(s->lines);
        free(s->system);
        free(s);
}
