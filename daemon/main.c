/* SPDX-License-Identifier: Apache-2.0 */
/*
 * omnidaemond: from the command line to a clean end.
 *
 *   settings ─▶ log ─▶ loop ─▶ socket ─▶ core (opens bus and storage) ─▶ accept ─▶ ready ─▶ … ─▶ signal ─▶ stop ─▶ free
 *
 * What is always true:
 *   - the socket is taken before bus and storage are opened: a second daemon ends before it touches anything of the first;
 *   - clients wait in the socket's queue until bus and storage are ready, so that nobody who starts the daemon and asks at once is refused.
 *     When a server stays away for READY_WAIT_MS they are served all the same: the daemon answers `unavailable` and goes on trying. The
 *     service manager hears READY=1 at that moment too, since this is no reason to be restarted;
 *   - the first SIGTERM or SIGINT stops gracefully, a second one at once: a death is what every part is written for;
 *   - a reload either takes effect as a whole or not at all.
 *
 * Exit status: 0 a clean stop, 1 something failed, 2 a wrong flag or setting.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "../backends/module.h"
#include "../backends/url.h"
#include "core.h"
#include "inventory.h"
#include "listener.h"
#include "log.h"
#include "session.h"

enum { EXIT_RUNTIME = 1, EXIT_SETTINGS = 2 };
enum { READY_WAIT_MS = 1000 };
enum { OTHER_FILES = 1024, LEAST_OTHER_FILES = 64 }; /* descriptors for all but clients' connections: asked for, kept */

struct daemon {
        char **arguments;
        struct om_settings *settings;
        struct om_loop *loop;
        struct om_listener *listener;
        struct om_core *core;

        struct event *signals, *watchdog, *late;
        int signal_fd;
        struct timeval watchdog_interval;

        struct om_post ready, stopped;
        uint64_t started_ns;
        unsigned max_connections; /* the setting, or what the limit of open files leaves of it */
        bool is_ready, stopping;
};
static struct daemon the_daemon = { .signal_fd = -1 };

/* -- telling people ------------------------------------------------------------------------------------------------ */

/* Before there is a daemon: a line for who typed the command, or for the journal of who starts services. */
static void complain(const struct om_error *e, const char *context) {
        struct om_buf clean = OM_BUF_INIT;

        if (getenv("JOURNAL_STREAM") && !isatty(STDERR_FILENO)) {
                om_log_error(OM_LOG_ERROR, e, context);
                return;
        }
        om_url_redact(&clean, e->message, strlen(e->message));
        fprintf(stderr, "omnidaemond: %s%s%.*s\n", context ? context : "", context ? ": " : "", OM_PRI(om_buf_span(&clean)));
        om_buf_deinit(&clean);
}

/* What `ps` shows from now on has no passwords: the arguments are read from a copy, which lives as long as the process does, and in the
 * originals the secrets of URLs are overwritten. */
static char **keep_arguments(int argc, char **argv) {
        char **kept = calloc((size_t) argc + 1, sizeof *kept);

        for (int i = 0; kept && i < argc; i++) {
                struct om_buf clean = OM_BUF_INIT;
                size_t len = strlen(argv[i]);
                struct om_span shown;

                kept[i] = strdup(argv[i]);
                om_url_redact(&clean, argv[i], len);
                shown = om_buf_span(&clean);
                if (!kept[i] || !om_buf_ok(&clean))
                        return NULL;
                memset(argv[i], 0, len);
                memcpy(argv[i], shown.p, shown.len < len ? shown.len : len);
                om_buf_deinit(&clean);
        }
        return kept;
}

static int exit_status(const struct om_error *e) {
        return e->kind == OM_INVALID || e->kind == OM_UNSUPPORTED ? EXIT_SETTINGS : EXIT_RUNTIME;
}

static void say_where_we_are(const struct daemon *d) {
        const char *file = om_settings_file(d->settings);

        om_log(OM_LOG_NOTICE, "omnidaemond %s: socket %s%s, event bus %s, storage %s%s%s", OM_VERSION, om_listener_path(d->listener),
                om_listener_is_handed(d->listener) ? " (handed over)" : "", d->settings->event_bus_url, d->settings->storage_url,
                file ? ", settings from " : "", file ? file : "");
        if (isatty(STDERR_FILENO))
                fprintf(stderr, "Look at it from another terminal: %s%s%somnictl health. Ctrl-C stops it.\n",
                        strcmp(om_settings_source(d->settings, "SOCKET_PATH"), "default") ? "OMNIDAEMON_SOCKET=" : "",
                        strcmp(om_settings_source(d->settings, "SOCKET_PATH"), "default") ? om_listener_path(d->listener) : "",
                        strcmp(om_settings_source(d->settings, "SOCKET_PATH"), "default") ? " " : "");
}

/* -- settings in force --------------------------------------------------------------------------------------------- */

static enum om_level level_of(const char *word) {
        static const struct {
                const char *word;
                enum om_level level;
        } levels[] = { { "error", OM_LOG_ERROR }, { "warning", OM_LOG_WARNING }, { "notice", OM_LOG_NOTICE }, { "debug", OM_LOG_DEBUG } };

        for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
                if (strcmp(levels[i].word, word) == 0)
                        return levels[i].level;
        return OM_LOG_INFO;
}

static enum om_log_target target_of(const char *word) {
        return strcmp(word, "journal") == 0 ? OM_LOG_JOURNAL : strcmp(word, "stderr") == 0 ? OM_LOG_STDERR : OM_LOG_AUTO;
}

/* Room for MAX_CONNECTIONS, as far as the system gives it. Some descriptors are kept from clients: bus and storage open files too. */
static void raise_file_limit(struct daemon *d) {
        rlim_t wanted = (rlim_t) d->settings->max_connections + OTHER_FILES;
        struct rlimit limit;

        d->max_connections = (unsigned) d->settings->max_connections;
        if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
                return;
        if (setrlimit(RLIMIT_NOFILE, &(struct rlimit){ wanted, limit.rlim_max > wanted ? limit.rlim_max : wanted }) == 0)
                return;
        if (setrlimit(RLIMIT_NOFILE, &(struct rlimit){ limit.rlim_max, limit.rlim_max }) == 0)
                limit.rlim_cur = limit.rlim_max;
        if (limit.rlim_cur < d->max_connections + LEAST_OTHER_FILES) {
                d->max_connections = limit.rlim_cur > 2 * LEAST_OTHER_FILES ? (unsigned) limit.rlim_cur - LEAST_OTHER_FILES
                                                                            : (unsigned) limit.rlim_cur / 2;
                om_log(OM_LOG_WARNING,
                        "MAX_CONNECTIONS is %" PRId64 ", but the system allows %ju open files: more than %u connections are refused",
                        d->settings->max_connections, (uintmax_t) limit.rlim_cur, d->max_connections);
        }
}

static void log_names(const char *text, const char **names) {
        for (; *names; names++)
                om_log(OM_LOG_NOTICE, "%s%s", text, *names);
}

static void log_notes(const struct om_settings *s) {
        for (const char *note = NULL; (note = om_settings_next_note(s, note));)
                om_log(OM_LOG_WARNING, "%s", note);
}

/* SIGHUP's, and the core's for daemon.reload. */
static int reload(struct om_core *core, const char ***ret_changed, const char ***ret_restart, struct om_error *e) {
        struct daemon *d = &the_daemon;
        struct om_settings *next = NULL;
        int r;

        r = om_settings_reload(d->settings, &next, ret_changed, ret_restart, e);
        if (r < 0) {
                om_log_error(OM_LOG_ERROR, e, "settings not reloaded, the old ones stay in force");
                return r;
        }
        /* In place: everybody points to this struct. */
        om_settings_swap(d->settings, next);
        om_settings_free(next);
        om_log_set_level(level_of(d->settings->log_level));
        raise_file_limit(d);
        log_notes(d->settings);
        om_log(OM_LOG_NOTICE, "settings reloaded");
        log_names("changed: ", *ret_changed);
        log_names("changed, needs a restart: ", *ret_restart);
        return 0;
}

static void reload_on_signal(struct daemon *d) {
        const char **changed = NULL, **restart = NULL;
        struct om_error e = OM_ERROR_INIT;

        sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, om_clock_ns() / 1000);
        reload(d->core, &changed, &restart, &e);
        free(changed);
        free(restart);
        sd_notify(0, "READY=1");
}

/* -- ready --------------------------------------------------------------------------------------------------------- */

/* Serves from now on, and says so. */
static void serve_clients(struct daemon *d) {
        om_listener_start(d->listener);
        event_del(d->late);
        sd_notifyf(0, "READY=1\nSTATUS=%s: event bus %s, storage %s", d->is_ready ? "Serving" : "Waiting for a server", d->core->bus_url,
                d->core->store_url);
}

static void on_ready(struct om_post *post) {
        struct daemon *d = (void *) ((char *) post - offsetof(struct daemon, ready));

        d->is_ready = true;
        om_log(OM_LOG_INFO, "ready after %.1f ms", (double) (om_clock_ns() - d->started_ns) / 1e6);
        if (!d->stopping)
                serve_clients(d);
}

static void on_late(evutil_socket_t fd, short what, void *ctx) {
        struct daemon *d = ctx;

        om_log(OM_LOG_WARNING, "bus or storage is not ready yet; publishes are answered with `unavailable` until it is");
        serve_clients(d);
}

static void on_watchdog(evutil_socket_t fd, short what, void *ctx) { sd_notify(0, "WATCHDOG=1"); }

/* -- stopping ------------------------------------------------------------------------------------------------------ */

static void on_stopped(struct om_post *post) {
        om_loop_stop(((struct daemon *) (void *) ((char *) post - offsetof(struct daemon, stopped)))->loop);
}

static void stop(struct daemon *d, const char *signal_name) {
        if (d->stopping) {
                om_log(OM_LOG_WARNING, "%s again: stopped at once", signal_name);
                om_listener_free(d->listener);
                _exit(EXIT_RUNTIME);
        }
        d->stopping = true;
        om_log(OM_LOG_NOTICE, "%s: stopping", signal_name);
        /* What the core may take: the grace, and the closing of bus and storage. */
        sd_notifyf(0, "STOPPING=1\nSTATUS=Stopping\nEXTEND_TIMEOUT_USEC=%" PRId64,
                (d->settings->stop_grace_ms + 2 * d->settings->call_timeout_ms + 5000) * 1000);
        event_del(d->late);
        om_listener_stop(d->listener);
        om_core_stop(d->core, &d->stopped);
}

static void on_signal(evutil_socket_t fd, short what, void *ctx) {
        struct daemon *d = ctx;
        struct signalfd_siginfo info;

        while (read(fd, &info, sizeof info) == (ssize_t) sizeof info) {
                if (info.ssi_signo != SIGHUP)
                        stop(d, info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
                else if (!d->stopping)
                        reload_on_signal(d);
        }
}

/* -- starting ------------------------------------------------------------------------------------------------------ */

static int on_accept(void *ctx, int fd) { return om_session_new(((struct daemon *) ctx)->core, fd, NULL); }

static unsigned room(void *ctx, unsigned *ret_max) {
        const struct daemon *d = ctx;

        *ret_max = d->max_connections;
        return d->core->n_sessions < *ret_max ? *ret_max - d->core->n_sessions : 0;
}

static int watch_signals(struct daemon *d, struct om_error *e) {
        sigset_t set;

        signal(SIGPIPE, SIG_IGN);
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGHUP);
        sigprocmask(SIG_BLOCK, &set, NULL);
        d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        if (d->signal_fd < 0)
                return om_error_set_errno(e, errno, "signalfd");
        d->signals = event_new(om_loop_base(d->loop), d->signal_fd, EV_READ | EV_PERSIST, on_signal, d);
        d->late = evtimer_new(om_loop_base(d->loop), on_late, d);
        d->watchdog = event_new(om_loop_base(d->loop), -1, EV_PERSIST, on_watchdog, d);
        if (!d->signals || !d->late || !d->watchdog || event_add(d->signals, NULL) < 0)
                return om_error_set_errno(e, ENOMEM, "the event loop");
        return 0;
}

static void feed_watchdog(struct daemon *d) {
        uint64_t us;

        if (sd_watchdog_enabled(0, &us) <= 0)
                return;
        d->watchdog_interval = (struct timeval){ .tv_sec = (time_t) (us / 2 / 1000000), .tv_usec = (suseconds_t) (us / 2 % 1000000) };
        event_add(d->watchdog, &d->watchdog_interval);
}

static int start(struct daemon *d, struct om_error *e) {
        struct timeval wait = { .tv_sec = READY_WAIT_MS / 1000 };
        struct om_listener_options options = { .path = d->settings->socket_path,
                .mode = (mode_t) d->settings->socket_mode,
                .group = d->settings->socket_group,
                .accept = on_accept,
                .room = room,
                .ctx = d };
        int r;

        r = om_loop_new(&d->loop, d->settings->state_dir, e);
        if (r < 0) {
                om_error_prefix(e, "STATE_DIR");
                return r;
        }
        r = watch_signals(d, e);
        if (r == 0)
                r = om_listener_open(d->loop, &options, &d->listener, e);
        if (r < 0)
                return r;
        d->ready.fn = on_ready;
        d->stopped.fn = on_stopped;
        r = om_core_new(d->loop, d->settings, &d->ready, &d->core, e);
        if (r < 0)
                return r;
        d->core->is_program = true;
        d->core->reload = reload;
        if (event_add(d->late, &wait) < 0)
                return om_error_set_errno(e, ENOMEM, "the event loop");
        feed_watchdog(d);
        say_where_we_are(d);
        return 0;
}

static void clean_up(struct daemon *d) {
        om_listener_free(d->listener);
        om_core_free(d->core);
        if (d->signals)
                event_free(d->signals);
        if (d->late)
                event_free(d->late);
        if (d->watchdog)
                event_free(d->watchdog);
        if (d->signal_fd >= 0)
                close(d->signal_fd);
        om_loop_free(d->loop);
        om_settings_free(d->settings);
}

static int serve(struct daemon *d) {
        struct om_error e = OM_ERROR_INIT;
        int r;

        d->started_ns = om_clock_ns();
        om_log_open(target_of(d->settings->log_target), level_of(d->settings->log_level));
        log_notes(d->settings);
        raise_file_limit(d);
        r = start(d, &e);
        if (r < 0) {
                complain(&e, NULL);
                r = exit_status(&e);
        } else {
                r = om_loop_run(d->loop);
                if (r < 0)
                        om_log(OM_LOG_ERROR, "the event loop failed");
                else
                        om_log(OM_LOG_NOTICE, "stopped");
                r = r < 0 ? EXIT_RUNTIME : EXIT_SUCCESS;
        }
        clean_up(d);
        return r;
}

/* -- what only prints ---------------------------------------------------------------------------------------------- */

static unsigned terminal_width(void) {
        struct winsize size;

        if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col < 40)
                return 100;
        return size.ws_col < 120 ? size.ws_col : 120;
}

static int print_only(const struct om_flags *flags) {
        if (flags->help)
                om_settings_print_help(stdout, terminal_width());
        else if (flags->version)
                puts("omnidaemond " OM_VERSION);
        else if (flags->print_conf)
                om_settings_print_conf(stdout);
        else
                om_settings_print_man(stdout);
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_RUNTIME;
}

static int check(struct om_settings *s, int status) {
        om_settings_print_check(s, stdout);
        for (const char *note = NULL; (note = om_settings_next_note(s, note));)
                fprintf(stderr, "omnidaemond: %s\n", note);
        om_settings_free(s);
        return fflush(stdout) == 0 ? status : EXIT_RUNTIME;
}

/* What the daemon answers to `backends`, and what runs when it is asked. */
static int print_backends(struct om_settings *s) {
        struct om_url *bus = NULL, *store = NULL;
        struct om_error e = OM_ERROR_INIT;
        int r;

        r = om_url_parse(s->event_bus_url, &bus, &e);
        if (r == 0)
                r = om_url_parse(s->storage_url, &store, &e);
        if (r == 0)
                om_inventory_print(bus->scheme, store->scheme, stdout);
        else
                complain(&e, NULL);
        om_url_free(bus);
        om_url_free(store);
        om_settings_free(s);
        return r < 0 ? EXIT_SETTINGS : fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_RUNTIME;
}

int main(int argc, char **argv) {
        struct daemon *d = &the_daemon;
        struct om_error e = OM_ERROR_INIT;
        struct om_flags flags;
        int r;

        om_log_open(OM_LOG_AUTO, OM_LOG_INFO);
        d->arguments = keep_arguments(argc, argv);
        r = d->arguments ? om_settings_read(argc, d->arguments, environ, &flags, &d->settings, &e)
                         : om_error_set_errno(&e, ENOMEM, "command line");
        if (r == 0 && !d->settings)
                return print_only(&flags);
        if (d->settings)
                om_module_set_folder(d->settings->module_dir);
        if (r == 0 && flags.print_backends)
                return print_backends(d->settings);
        if (r == 0)
                r = om_settings_check_urls(d->settings, &e);
        if (r < 0)
                complain(&e, NULL);
        if (d->settings && flags.check)
                return check(d->settings, r < 0 ? EXIT_SETTINGS : EXIT_SUCCESS);
        if (r < 0) {
                om_settings_free(d->settings);
                return EXIT_SETTINGS;
        }
        return serve(d);
}
