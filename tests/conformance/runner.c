/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the cases, some at a time, each in a process group of its own with a folder, a deadline and its output in a file; then report.c says
 * what became of them.
 *
 *   conformance [--bus URL]… [--storage URL]… [--system NAME[:KIND]]… [--only B07,S0]… [--scale short|full] [--jobs N] [--json FILE]
 * [--tap]
 *               [--keep]
 *
 * Cases of the bus run on every bus (with the first storage), cases of the storage on every storage (with the first bus), those of the
 * whole on the first of both, or on every pair where the case says so. Ends with 0 when nothing failed. The binaries of the daemon are
 * looked for in $OMNI_BIN, build/bin by default.
 */
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../lib/server.h"
#include "rig.h"

enum { LISTS_MAX = 64, FULL_SCALE_TIME = 10 };

struct conf_run conf_run;

static const struct conf_case *const families[] = { conf_bus_basic, conf_bus_order, conf_bus_retry, conf_bus_lease, conf_bus_fault,
        conf_bus_extras, conf_bus_load, conf_storage, conf_storage_fault, conf_storage_pair, conf_whole };

static struct {
        struct conf_backend buses[LISTS_MAX + 1], storages[LISTS_MAX + 1];
        const char *systems[LISTS_MAX + 1], *only[LISTS_MAX * 8 + 1], *json;
        bool full, tap, keep;
        unsigned jobs;
        char folder[64];
} options = { .jobs = 4 };

/* -- in a case's process ------------------------------------------------------------------------------------------------------------ */

void conf_fail(const char *file, int line, const char *format, ...) {
        va_list args;
        const char *name = strrchr(file, '/');
        fflush(stdout);
        fprintf(stderr, "%s:%d: ", name ? name + 1 : file, line);
        va_start(args, format);
        vfprintf(stderr, format, args);
        va_end(args);
        fputc('\n', stderr);
        fflush(stderr);
        _exit(CONF_FAILED);
}

void not_applicable(const char *format, ...) {
        char path[256];
        va_list args;
        snprintf(path, sizeof(path), "%s/reason", conf_run.folder);
        FILE *f = fopen(path, "we");
        MUST(f, "%s: %s", path, strerror(errno));
        va_start(args, format);
        vfprintf(f, format, args);
        va_end(args);
        fclose(f);
        if (rig_daemon)
                om_test_daemon_kill9(rig_daemon);
        _exit(CONF_NA);
}

static void case_process(const struct outcome *o, pid_t runner) {
        char output[256];
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != runner)
                _exit(CONF_FAILED);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        snprintf(output, sizeof(output), "%s/output", o->folder);
        int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_APPEND, 0600);
        if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
                _exit(CONF_FAILED);
        setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* it forks, and ends by _exit() */
        srandom((unsigned) getpid() ^ (unsigned) time(NULL));
        conf_run = (struct conf_run){ .c = o->c,
                .bus = o->bus,
                .storage = o->storage,
                .bus_url = o->bus->url,
                .storage_url = o->storage->url,
                .folder = o->folder,
                .full = options.full };
        snprintf(conf_run.tag, sizeof(conf_run.tag), "%s-%lx-%x", o->c->id, (long) time(NULL), (unsigned) getpid());
        MUST(o->c->run, "nobody has written this case yet");
        o->c->run();
        rig_down();
        _exit(CONF_OK);
}

/* -- around it ---------------------------------------------------------------------------------------------------------------------- */

static double now_s(void) { return now_ms() / 1e3; }

static void start(struct outcome *o) {
        snprintf(o->folder, sizeof(o->folder), "%s/%s-%u", options.folder, o->c->id, o->number);
        if (mkdir(o->folder, 0700) < 0) {
                perror(o->folder);
                exit(2);
        }
        pid_t self = getpid();
        o->started_s = now_s();
        o->deadline_s = o->started_s + o->c->seconds * (options.full ? FULL_SCALE_TIME : 1);
        o->pid = fork();
        if (o->pid < 0) {
                perror("fork");
                exit(2);
        }
        if (o->pid == 0)
                case_process(o, self);
        setpgid(o->pid, o->pid); /* as the child does: whichever comes first */
}

static char *read_file(const char *folder, const char *name) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", folder, name);
        char *text = calloc(1, 65536);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
                struct stat s;
                if (fstat(fd, &s) == 0 && s.st_size > 65535)
                        lseek(fd, -65535, SEEK_END);
                ssize_t n = read(fd, text, 65535);
                text[n < 0 ? 0 : n] = '\0';
                close(fd);
        }
        return text;
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *where) { return remove(path); }
static void remove_folder(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT); }

/* The last line that it printed is why it failed, unless it was ended. */
static const char *why_failed(const struct outcome *o, int status) {
        const char *end = o->text + strlen(o->text), *line;
        if (o->killed)
                return "it did not end in time and was killed";
        if (WIFSIGNALED(status))
                return rig_text("ended by signal %d", WTERMSIG(status));
        while (end > o->text && end[-1] == '\n')
                end--;
        for (line = end; line > o->text && line[-1] != '\n';)
                line--;
        return rig_text("%.*s", (int) (end - line), line);
}

static void ended(struct outcome *o, int status) {
        kill(-o->pid, SIGKILL); /* what it started and did not end */
        o->pid = 0;
        o->seconds = now_s() - o->started_s;
        o->text = read_file(o->folder, "output");
        if (WIFEXITED(status) && WEXITSTATUS(status) == CONF_OK)
                o->verdict = VERDICT_OK;
        else if (WIFEXITED(status) && WEXITSTATUS(status) == CONF_NA) {
                o->verdict = VERDICT_NA;
                free((char *) o->text);
                o->text = read_file(o->folder, "reason");
        } else {
                char *log = read_file(o->folder, "log"), *output = (char *) o->text;
                size_t n = strlen(log);
                o->verdict = VERDICT_FAILED;
                o->why = why_failed(o, status);
                o->text = rig_text(
                        "%s%s\n%s%s", output, o->why, n ? "the daemon's log ends:\n" : "", n ? log + (n > 1500 ? n - 1500 : 0) : "");
                free(output);
                free(log);
        }
        if (!options.keep)
                remove_folder(o->folder);
}

static unsigned kill_late(struct outcome *all, size_t n) {
        double next = now_s() + 3600;
        for (size_t i = 0; i < n; i++) {
                if (!all[i].pid)
                        continue;
                if (all[i].deadline_s <= now_s()) {
                        all[i].killed = true;
                        kill(-all[i].pid, SIGKILL);
                } else if (all[i].deadline_s < next)
                        next = all[i].deadline_s;
        }
        double wait = (next - now_s()) * 1e3;
        return wait < 1 ? 1 : (unsigned) wait;
}

static struct outcome *reap(struct outcome *all, size_t n) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        for (size_t i = 0; pid > 0 && i < n; i++)
                if (all[i].pid == pid) {
                        ended(&all[i], status);
                        return &all[i];
                }
        return NULL;
}

/* The long ones first, so that the last to end is not one that could have begun earlier. */
static struct outcome *longest_waiting(struct outcome *all, size_t n) {
        struct outcome *best = NULL;
        for (size_t i = 0; i < n; i++)
                if (all[i].verdict == VERDICT_WAITING && !all[i].pid && (!best || all[i].c->seconds > best->c->seconds))
                        best = &all[i];
        return best;
}

static bool stopped;

static void run_all(struct outcome *all, size_t n) {
        sigset_t signals;
        sigemptyset(&signals);
        sigaddset(&signals, SIGCHLD);
        sigaddset(&signals, SIGINT);
        sigaddset(&signals, SIGTERM);
        sigprocmask(SIG_BLOCK, &signals, NULL);
        unsigned running = 0, printed = 0;
        for (size_t i = 0; i < n; i++)
                if (all[i].verdict != VERDICT_WAITING)
                        report_one(&all[i], &printed, options.tap);
        for (;;) {
                struct outcome *o;
                while (running < options.jobs && !stopped && (o = longest_waiting(all, n))) {
                        start(o);
                        running++;
                }
                if (!running)
                        return;
                unsigned ms = kill_late(all, n);
                struct timespec t = { ms / 1000, (long) (ms % 1000) * 1000000 };
                int number = sigtimedwait(&signals, NULL, &t);
                if (number == SIGINT || number == SIGTERM) {
                        stopped = true;
                        for (size_t i = 0; i < n; i++)
                                if (all[i].pid)
                                        kill(-all[i].pid, SIGKILL);
                }
                while ((o = reap(all, n))) {
                        running--;
                        report_one(o, &printed, options.tap);
                }
        }
}

/* -- which cases ----------------------------------------------------------------------------------------------------------------------- */

static bool embedded(const char *url) { return strncmp(url, "local:", 6) == 0 || strncmp(url, "json:", 5) == 0; }

static bool wanted(const char *id) {
        for (size_t i = 0; options.only[i]; i++)
                if (strncasecmp(id, options.only[i], strlen(options.only[i])) == 0)
                        return true;
        return !options.only[0];
}

static void add(
        struct outcome *all, size_t *n, const struct conf_case *c, const struct conf_backend *bus, const struct conf_backend *storage) {
        const struct conf_backend *backend = c->id[0] == CONF_STORAGE ? storage : bus;
        const char *why = c->never ? c->never : c->id[0] != CONF_WHOLE && embedded(backend->url) ? c->embedded : NULL;
        all[*n] = (struct outcome){ .c = c, .bus = bus, .storage = storage, .number = (unsigned) *n };
        all[*n].backend = c->id[0] == CONF_WHOLE ? rig_text("%s %s", bus->name, storage->name) : backend->name;
        if (why) {
                all[*n].verdict = VERDICT_NA;
                all[*n].text = why;
        }
        ++*n;
}

static int by_id(const void *a, const void *b) {
        const struct outcome *x = a, *y = b;
        int r = strcmp(x->c->id, y->c->id);
        return r ? r : (int) x->number - (int) y->number;
}

static size_t choose(struct outcome *all) {
        size_t n = 0;
        for (size_t f = 0; f < sizeof(families) / sizeof(*families); f++)
                for (const struct conf_case *c = families[f]; c->id; c++) {
                        if (!wanted(c->id))
                                continue;
                        for (const struct conf_backend *bus = options.buses; bus->name; bus++)
                                for (const struct conf_backend *storage = options.storages; storage->name; storage++)
                                        if (c->pairs ||
                                                ((c->id[0] == CONF_BUS || bus == options.buses) &&
                                                        (c->id[0] == CONF_STORAGE || storage == options.storages)))
                                                add(all, &n, c, bus, storage);
                }
        qsort(all, n, sizeof(*all), by_id);
        return n;
}

static _Noreturn void too_many(void) {
        fprintf(stderr, "conformance: more than %d of one option\n", LISTS_MAX);
        exit(2);
}

static void append(const char **list, size_t room, const char *what) {
        size_t n = 0;
        while (list[n])
                n++;
        if (n == room)
                too_many();
        list[n] = what;
}

static void append_backend(struct conf_backend *list, const char *name, const char *url, const struct om_test_server *server) {
        size_t n = 0;
        while (list[n].name)
                n++;
        if (n == LISTS_MAX)
                too_many();
        list[n] = (struct conf_backend){ name, url, server ? name : NULL, server };
}

/* One server of each system for all cases but those that stop theirs. */
static struct om_test_server *servers[LISTS_MAX];

static void start_systems(void) {
        for (size_t i = 0; options.systems[i]; i++) {
                char *folder = rig_text("%s/system-%zu", options.folder, i);
                servers[i] = om_test_server_start(options.systems[i], folder);
                free(folder);
                const char *bus = om_test_server_value(servers[i], "bus_url"), *store = om_test_server_value(servers[i], "store_url");
                if (bus)
                        append_backend(options.buses, options.systems[i], bus, servers[i]);
                if (store)
                        append_backend(options.storages, options.systems[i], store, servers[i]);
        }
        if (!options.buses[0].name)
                append_backend(options.buses, "local:", "local:", NULL);
        if (!options.storages[0].name)
                append_backend(options.storages, "json:", "json:", NULL);
}

static void stop_systems(void) {
        for (size_t i = 0; options.systems[i]; i++)
                om_test_server_stop(servers[i]);
}

static _Noreturn void usage(void) {
        fprintf(stderr,
                "usage: conformance [--bus URL]... [--storage URL]... [--system NAME[:KIND]]... [--only B07,S0]... [--scale short|full] "
                "[--jobs N] [--json FILE]"
                " [--tap] [--keep]\n");
        exit(2);
}

static void arguments(int argc, char **argv) {
        static const struct option known[] = { { "bus", 1, NULL, 'b' }, { "storage", 1, NULL, 's' }, { "system", 1, NULL, 'S' },
                { "only", 1, NULL, 'o' }, { "json", 1, NULL, 'j' }, { "scale", 1, NULL, 'c' }, { "jobs", 1, NULL, 'n' },
                { "tap", 0, NULL, 't' }, { "keep", 0, NULL, 'k' }, { NULL, 0, NULL, 0 } };
        int o;
        while ((o = getopt_long(argc, argv, "", known, NULL)) != -1) {
                if (o == 'b')
                        append_backend(options.buses, optarg, optarg, NULL);
                else if (o == 's')
                        append_backend(options.storages, optarg, optarg, NULL);
                else if (o == 'S')
                        append(options.systems, LISTS_MAX, optarg);
                else if (o == 'o')
                        for (char *word = strtok(optarg, ", "); word; word = strtok(NULL, ", "))
                                append(options.only, LISTS_MAX * 8, word);
                else if (o == 'j')
                        options.json = optarg;
                else if (o == 'c' && (strcmp(optarg, "full") == 0 || strcmp(optarg, "short") == 0))
                        options.full = strcmp(optarg, "full") == 0;
                else if (o == 'n' && atoi(optarg) > 0)
                        options.jobs = (unsigned) atoi(optarg);
                else if (o == 't')
                        options.tap = true;
                else if (o == 'k')
                        options.keep = true;
                else
                        usage();
        }
        if (optind < argc)
                usage();
}

int main(int argc, char **argv) {
        static struct outcome all[4096];
        struct rlimit files;
        arguments(argc, argv);
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
        signal(SIGPIPE, SIG_IGN);
        snprintf(options.folder, sizeof(options.folder), "/tmp/omni-conformance-XXXXXX");
        if (!mkdtemp(options.folder)) {
                perror(options.folder);
                return 2;
        }
        start_systems();
        size_t n = choose(all);
        if (n == 0) {
                fprintf(stderr, "conformance: --only names no case\n");
                rmdir(options.folder);
                return 2;
        }
        double started = now_s();
        run_all(all, n);
        stop_systems();
        if (options.keep)
                fprintf(stderr, "conformance: kept in %s\n", options.folder);
        else
                remove_folder(options.folder);
        int failed = report_all(&(struct report){ all, n, options.buses, options.storages, options.full, options.tap, now_s() - started });
        if (options.json &&
                report_json(&(struct report){ all, n, options.buses, options.storages, options.full, options.tap, now_s() - started },
                        options.json) < 0)
                return 2;
        return failed || stopped;
}
