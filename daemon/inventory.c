/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inventory of backends: see inventory.h.
 *
 *   nobody asked ─▶ the program runs, its output is gathered ─▶ it ends: all who asked meanwhile are answered
 *
 * What is always true:
 *   - at most one such program runs, however many ask;
 *   - a waiting request is answered once: with what was printed, or with why it was not;
 *   - the program inherits nothing but the two ends of this: no environment, no descriptors (all of ours are close-on-exec), no signal
 * mask.
 *
 * Called by methods_health.c and, for printing, by main.c. Loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../backends/registry.h"
#include "inventory.h"
#include "log.h"
#include "methods.h"

enum { OUTPUT_MAX = 1 << 20, WAITING_MAX = 1024 };

/* -- printing ------------------------------------------------------------------------------------------------------ */

static void put_options(struct om_buf *b, const struct om_option *options) {
        static const char *const types[] = { [OM_OPTION_STRING] = "string",
                [OM_OPTION_BOOL] = "bool",
                [OM_OPTION_INT] = "int",
                [OM_OPTION_MS] = "ms",
                [OM_OPTION_BYTES] = "bytes",
                [OM_OPTION_ENUM] = "enum" };

        for (const struct om_option *o = options; o && o->name; o++) {
                om_buf_puts(b, o == options ? "{\"name\":" : ",{\"name\":");
                om_buf_json_span(b, om_span_of(o->name));
                om_put_member(b, "type", om_span_of(types[o->type]));
                om_put_member(b, "default", om_span_of(o->default_text));
                if (o->type == OM_OPTION_ENUM) {
                        om_buf_lit(b, ",\"choices\":[");
                        for (const char *const *choice = o->choices; *choice; choice++) {
                                if (choice != o->choices)
                                        om_buf_putc(b, ',');
                                om_buf_json_span(b, om_span_of(*choice));
                        }
                        om_buf_putc(b, ']');
                }
                om_put_member(b, "doc", om_span_of(o->doc));
                om_buf_putc(b, '}');
        }
}

static bool has_scheme(const struct om_backend_entry *entry, const char *scheme) {
        for (const char *const *s = entry->schemes; *s; s++)
                if (strcmp(*s, scheme) == 0)
                        return true;
        return false;
}

static void put_backend(struct om_buf *b, struct om_backend_entry *t, const char *scheme_in_use) {
        struct om_error e = OM_ERROR_INIT;
        bool installed = om_registry_load(t, &e) == 0;

        om_buf_lit(b, "{\"name\":");
        om_buf_json_span(b, om_span_of(t->name));
        om_buf_lit(b, ",\"schemes\":[");
        for (const char *const *scheme = t->schemes; *scheme; scheme++) {
                if (scheme != t->schemes)
                        om_buf_putc(b, ',');
                om_buf_json_span(b, om_span_of(*scheme));
        }
        om_buf_printf(b, "],\"installed\":%s,\"in_use\":%s,\"capabilities\":[", installed ? "true" : "false",
                has_scheme(t, scheme_in_use) ? "true" : "false");
        om_put_capabilities(b, t->bus ? t->bus->capabilities : 0, t->store ? t->store->capabilities : 0);
        om_buf_putc(b, ']');
        om_put_member(b, "doc", om_span_of(t->doc));
        if (!installed)
                om_put_member(b, "why", om_span_of(e.message));
        om_buf_lit(b, ",\"settings\":[");
        put_options(b, t->bus ? t->bus->options : t->store ? t->store->options : NULL);
        om_buf_lit(b, "]}");
}

static void put_backends(struct om_buf *b, struct om_backend_entry *table, const char *scheme_in_use) {
        for (struct om_backend_entry *t = table; t->name; t++) {
                if (t != table)
                        om_buf_putc(b, ',');
                put_backend(b, t, scheme_in_use);
        }
}

void om_inventory_print(const char *bus_scheme, const char *store_scheme, FILE *out) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_lit(&b, "{\"buses\":[");
        put_backends(&b, om_buses, bus_scheme);
        om_buf_lit(&b, "],\"storages\":[");
        put_backends(&b, om_stores, store_scheme);
        om_buf_lit(&b, "]}\n");
        if (om_buf_ok(&b))
                fwrite(b.data, 1, b.len, out);
        om_buf_deinit(&b);
}

/* -- asking -------------------------------------------------------------------------------------------------------- */

struct om_inventory {
        struct om_core *core;
        pid_t pid; /* 0: none runs */
        int fd;    /* its output */
        struct event *output, *deadline;
        struct om_buf text;
        struct om_request *waiting[WAITING_MAX];
        unsigned n_waiting;
};

static void answer_all(struct om_inventory *i, const struct om_error *e) {
        for (unsigned k = 0; k < i->n_waiting; k++) {
                struct om_buf *b;

                if (e) {
                        om_request_error(i->waiting[k], e);
                        continue;
                }
                b = om_request_begin(i->waiting[k]);
                if (b)
                        om_buf_put_span(b, om_buf_span(&i->text));
                om_request_end(i->waiting[k]);
        }
        i->n_waiting = 0;
}

/* Ends what runs, whatever it is doing, and forgets it. Its exit status. */
static int reap(struct om_inventory *i) {
        int status = 0;

        event_del(i->output);
        event_del(i->deadline);
        close(i->fd);
        kill(i->pid, SIGKILL);
        while (waitpid(i->pid, &status, 0) < 0 && errno == EINTR)
                ;
        i->pid = 0;
        return status;
}

/* Leaves of the output the line that is the answer: libraries that are loaded for it may print lines of their own (libmongoc does). */
static bool keep_answer(struct om_buf *b) {
        for (char *line = b->data, *end; line && (end = memchr(line, '\n', b->len - (size_t) (line - b->data))); line = end + 1) {
                struct om_span text = { line, (size_t) (end - line) };

                if (*line != '{' || om_json_check(text, OM_DEPTH_MAX, NULL) < 0)
                        continue;
                memmove(b->data, line, text.len);
                b->len = text.len;
                return true;
        }
        return false;
}

/* It has closed its output: it printed all, or died. */
static void ended(struct om_inventory *i) {
        struct om_error e;

        reap(i);
        if (keep_answer(&i->text)) {
                answer_all(i, NULL);
        } else {
                struct om_span text = om_buf_span(&i->text);

                om_error_set(&e, OM_INTERNAL, "the modules cannot be listed: `omnidaemond --print-backends` failed: %.*s",
                        (int) (text.len < 300 ? text.len : 300), text.p ? text.p : "");
                om_log_error(OM_LOG_WARNING, &e, NULL);
                answer_all(i, &e);
        }
        om_buf_deinit(&i->text);
}

static void on_output(evutil_socket_t fd, short what, void *ctx) {
        struct om_inventory *i = ctx;
        char piece[4096];
        ssize_t n = read(fd, piece, sizeof piece);

        if (n > 0 && i->text.len + (size_t) n <= OUTPUT_MAX) {
                om_buf_put(&i->text, piece, (size_t) n);
                return;
        }
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        ended(i);
}

static void on_deadline(evutil_socket_t fd, short what, void *ctx) {
        struct om_inventory *i = ctx;
        struct om_error e;

        reap(i);
        om_buf_deinit(&i->text);
        om_error_set(&e, OM_TIMEOUT, "loading the modules in %s took longer than %lld ms", om_module_folder(),
                (long long) i->core->settings->call_timeout_ms);
        answer_all(i, &e);
}

int om_inventory_new(struct om_core *core, struct om_inventory **ret) {
        struct om_inventory *i = calloc(1, sizeof *i);

        if (!i)
                return -ENOMEM;
        i->core = core;
        i->output = event_new(om_loop_base(core->loop), -1, 0, on_output, i);
        i->deadline = event_new(om_loop_base(core->loop), -1, 0, on_deadline, i);
        if (!i->output || !i->deadline) {
                om_inventory_free(i);
                return -ENOMEM;
        }
        *ret = i;
        return 0;
}

void om_inventory_free(struct om_inventory *i) {
        if (!i)
                return;
        if (i->pid)
                reap(i);
        for (unsigned k = 0; k < i->n_waiting; k++)
                om_request_done(i->waiting[k]);
        if (i->output)
                event_free(i->output);
        if (i->deadline)
                event_free(i->deadline);
        om_buf_deinit(&i->text);
        free(i);
}

static int spawn(struct om_inventory *i, int out, const char *const *args) {
        posix_spawn_file_actions_t files;
        posix_spawnattr_t attributes;
        char *const no_environment[] = { NULL };
        sigset_t none;
        int r;

        sigemptyset(&none);
        posix_spawn_file_actions_init(&files);
        posix_spawn_file_actions_adddup2(&files, out, STDOUT_FILENO);
        posix_spawn_file_actions_adddup2(&files, out, STDERR_FILENO);
        posix_spawnattr_init(&attributes);
        posix_spawnattr_setsigmask(&attributes, &none);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
        r = posix_spawn(&i->pid, args[0], &files, &attributes, (char *const *) args, no_environment); /* it writes to none of them */
        posix_spawnattr_destroy(&attributes);
        posix_spawn_file_actions_destroy(&files);
        if (r != 0)
                i->pid = 0;
        return -r;
}

/* Our own program, by its name where that still is it (an upgrade may have replaced it), else by the kernel's. */
static const char *own_program(char path[PATH_MAX]) {
        ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);

        path[n > 0 ? n : 0] = 0;
        return n > 0 && access(path, X_OK) == 0 ? path : "/proc/self/exe";
}

static int run(struct om_inventory *i) {
        struct om_core *core = i->core;
        int64_t ms = core->settings->call_timeout_ms;
        struct timeval wait = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
        char path[PATH_MAX], folder[PATH_MAX], bus[32], store[32];
        int ends[2], r;

        snprintf(folder, sizeof folder, "%s", om_module_folder());
        snprintf(bus, sizeof bus, "%s:", core->bus_ops->schemes[0]);
        snprintf(store, sizeof store, "%s:", core->store_ops->schemes[0]);
        const char *const args[] = { own_program(path), "--print-backends", "--config", "/dev/null", "--module-dir", folder,
                "--event-bus-url", bus, "--storage-url", store, NULL };

        if (pipe2(ends, O_CLOEXEC) < 0)
                return -errno;
        r = spawn(i, ends[1], args);
        close(ends[1]);
        if (r < 0) {
                close(ends[0]);
                return r;
        }
        i->fd = ends[0];
        fcntl(i->fd, F_SETFL, O_NONBLOCK);
        event_assign(i->output, om_loop_base(core->loop), i->fd, EV_READ | EV_PERSIST, on_output, i);
        event_add(i->output, NULL);
        event_add(i->deadline, &wait);
        return 0;
}

void om_inventory_answer(struct om_inventory *i, struct om_request *req) {
        struct om_error e;
        int r = 0;

        if (i->n_waiting == WAITING_MAX) {
                om_error_set(&e, OM_LIMIT, "%d requests wait for the list of backends already", WAITING_MAX);
                om_request_error(req, &e);
                return;
        }
        if (!i->pid)
                r = i->core->is_program ? run(i) : -EOPNOTSUPP;
        if (r < 0) {
                om_error_set_errno(&e, r, "the modules cannot be listed");
                om_request_error(req, &e);
                return;
        }
        i->waiting[i->n_waiting++] = req;
}
