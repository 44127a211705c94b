/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent run: any program is an agent.
 *
 * One poll() waits for everything: the client's descriptor, signals (signalfd), and the pipes of the programs (child.c). Nothing blocks, so
 * a program that hangs, floods or ignores its input delays nobody, and the library keeps the leases alive however long a program works.
 *
 *   a task    waits in `queue` until a worker is free → runs → is settled (run_settle.c) as its program ended
 *
 * Always true:
 *   - a task that was started is settled exactly once, or its lease is over;
 *   - not more than `workers` programs run; the queue holds what the daemon sent beyond that (prefetch), never started after a stop;
 *   - while we stop, what waits is given back when the last program has ended: unregistering hands it to other workers, uncounted.
 */
#include "run.h"
#include "term.h"
#include "text.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { WORKERS_MAX = 1000, KILL_AFTER_MS = 5000, MAX_OUTPUT = 1 << 20, FLUSH_MS = 10000 };

/* -- tasks --------------------------------------------------------------------------------------------------------- */

static void on_task(omni_agent *agent, omni_task *task, void *user) {
        struct run *run = user;

        if (run->n_queue == run->cap_queue) {
                size_t cap = run->cap_queue ? 2 * run->cap_queue : 16;
                omni_task **more = realloc(run->queue, cap * sizeof(*more));

                if (!more) {
                        omni_task_fail(task, "omnictl: out of memory", "internal", -1, 0);
                        return;
                }
                run->queue = more;
                run->cap_queue = cap;
        }
        run->queue[run->n_queue++] = task;
}

/* The content as the program gets it: with --raw a JSON string is its text. */
static struct om_span make_input(struct run *run, struct worker *w) {
        size_t len;
        const char *content = omni_task_content(w->task, &len);
        struct om_span text = { content, len };

        if (run->raw) {
                struct om_json j;
                struct om_json_value v;

                om_json_init_valid(&j, text);
                if (om_json_value(&j, &v) == 0 && v.type == OM_JSON_STRING) {
                        char *to = om_buf_reserve(&w->input, v.text.len);

                        if (to) {
                                w->input.len += om_json_decode(v, to);
                                text = om_buf_span(&w->input);
                        }
                }
        }
        return text;
}

static void start(struct run *run, struct worker *w, omni_task *task) {
        char attempt[16], priority[16], created[32];
        const char *headers = omni_task_headers(task);
        const char *const environment[][2] = {
                { "OMNI_TASK_ID", omni_task_id(task) },
                { "OMNI_TASK_TOPIC", omni_task_topic(task) },
                { "OMNI_TASK_ATTEMPT", attempt },
                { "OMNI_TASK_KEY", omni_task_key(task) },
                { "OMNI_TASK_PRIORITY", priority },
                { "OMNI_TASK_CREATED_AT", created },
                { "OMNI_TASK_CORRELATION_ID", omni_task_correlation_id(task) },
                { "OMNI_TASK_CAUSATION_ID", omni_task_causation_id(task) },
                { "OMNI_TASK_REPLY_TO", omni_task_reply_to(task) },
                { "OMNI_TASK_SOURCE", omni_task_source(task) },
                { "OMNI_TASK_TENANT_ID", omni_task_tenant_id(task) },
                /* The system carries no variable above 128 KiB. */
                { "OMNI_TASK_HEADERS", headers && strlen(headers) < 100 << 10 ? headers : NULL },
                { "OMNI_AGENT", omni_agent_name(run->agent) },
                { "OMNI_TOPIC", omni_agent_topic(run->agent) },
                { "TRACEPARENT", omni_task_traceparent(task) },
                { "OMNIDAEMON_SOCKET", ctl_socket(run->ctl) },
                { NULL, NULL },
        };
        int r;

        snprintf(attempt, sizeof(attempt), "%d", omni_task_attempt(task));
        snprintf(priority, sizeof(priority), "%d", omni_task_priority(task));
        snprintf(created, sizeof(created), "%.6f", omni_task_created_at(task));
        w->task = task;
        w->setup = run->setup;
        w->setup.environment = environment;
        r = child_start(&w->child, &w->setup, make_input(run, w));
        w->setup.environment = NULL;
        run->started++;
        if (r < 0) {
                run_settle_unstarted(run, w, r);
                return;
        }
        run->running++;
}

static void start_waiting(struct run *run) {
        size_t taken = 0;

        for (size_t i = 0; i < run->n_workers && taken < run->n_queue; i++) {
                struct worker *w = &run->workers[i];

                if (run->stopping || (run->once && run->started >= run->once)) {
                        break;
                }
                while (!w->task && taken < run->n_queue) {
                        omni_task *task = run->queue[taken++];

                        if (omni_task_lost(task)) { /* somebody else has it by now */
                                omni_task_fail(task, "lost", "lost", -1, 0);
                        } else {
                                start(run, w, task);
                        }
                }
        }
        if (taken) {
                run->n_queue -= taken;
                memmove(run->queue, run->queue + taken, run->n_queue * sizeof(*run->queue));
        }
}

/* -- the loop ------------------------------------------------------------------------------------------------------ */

/* Programs whose task belongs to somebody else now are ended: nobody wants their result. */
static void end_lost(struct run *run) {
        for (size_t i = 0; i < run->n_workers; i++) {
                struct worker *w = &run->workers[i];

                if (w->task && omni_task_lost(w->task)) {
                        child_terminate(&w->child, CHILD_CALLED);
                }
        }
}

static void on_connection(omni_client *client, int up, const char *reason, void *user) {
        struct run *run = user;

        if (!up && !run->leaving) {
                ctl_note(run->ctl, "The connection is gone (%s); waiting for the daemon.", reason);
                run->away = true;
        } else if (up && run->away) {
                ctl_note(run->ctl, "Connected again.");
                run->away = false;
        }
}

static void take_signals(struct run *run) {
        struct signalfd_siginfo info;
        bool children = false;

        while (read(run->signal_fd, &info, sizeof(info)) == (ssize_t) sizeof(info)) {
                if (info.ssi_signo == SIGCHLD) {
                        children = true;
                } else if (!run->stopping) {
                        run->stopping = true;
                        if (run->running) {
                                ctl_note(run->ctl, "Stopping when %zu running task%s finished; once more ends %s.", run->running,
                                        run->running == 1 ? " is" : "s are", run->running == 1 ? "it" : "them");
                        }
                } else {
                        run->forced = (int) info.ssi_signo;
                }
        }
        for (size_t i = 0; children && i < run->n_workers; i++) {
                if (run->workers[i].task) {
                        child_exited(&run->workers[i].child);
                }
        }
}

static int64_t next_timeout(struct run *run) {
        int64_t timeout = omni_timeout_ms(run->ctl->client);
        double now = term_seconds();

        for (size_t i = 0; i < run->n_workers; i++) {
                double due = run->workers[i].task ? child_due(&run->workers[i].child) : 0;
                int64_t ms = due > now ? (int64_t) ((due - now) * 1000) + 1 : 0;

                if (due > 0 && (timeout < 0 || ms < timeout)) {
                        timeout = ms;
                }
        }
        return timeout > 3600000 ? 3600000 : timeout;
}

/* Waits, then does what has become due. 0, or a negative errno when the client cannot go on. */
static int turn(struct run *run) {
        struct pollfd *polls = run->polls;
        size_t n = 2;
        double now;
        int r;

        polls[0] = (struct pollfd){ .fd = run->signal_fd, .events = POLLIN };
        polls[1] = (struct pollfd){ .fd = omni_fd(run->ctl->client), .events = omni_events(run->ctl->client) };
        for (size_t i = 0; i < run->n_workers; i++) {
                struct worker *w = &run->workers[i];

                w->first_poll = n;
                w->n_polls = w->task ? child_polls(&w->child, polls + n) : 0;
                n += w->n_polls;
        }
        r = poll(polls, n, (int) next_timeout(run));
        if (r < 0 && errno != EINTR) {
                return -errno;
        }
        for (size_t i = 0; r > 0 && i < run->n_workers; i++) {
                struct worker *w = &run->workers[i];

                for (size_t k = 0; k < w->n_polls; k++) {
                        if (polls[w->first_poll + k].revents) {
                                run_show_errors(run, w, child_io(&w->child, &polls[w->first_poll + k]));
                        }
                }
        }
        take_signals(run);
        r = omni_run_once(run->ctl->client, 0);
        if (r >= 0 && !omni_agent_active(run->agent)) {
                r = omni_run_once(run->ctl->client, 0); /* says at its beginning whether the agent was deleted */
        }
        end_lost(run);
        now = term_seconds();
        for (size_t i = 0; i < run->n_workers; i++) {
                struct worker *w = &run->workers[i];

                if (w->task && child_due(&w->child) > 0 && now >= child_due(&w->child)) {
                        child_tick(&w->child, now);
                }
                if (w->task && child_over(&w->child)) {
                        run_settle(run, w);
                        run->running--;
                }
        }
        return r < 0 ? r : 0;
}

static bool done(const struct run *run) {
        return run->forced || (run->running == 0 && (run->stopping || (run->once && run->settled >= run->once)));
}

static int serve(struct run *run) {
        struct ctl *ctl = run->ctl;
        int r = 0;

        while (!done(run)) {
                start_waiting(run);
                r = turn(run);
                if (r < 0) {
                        r = ctl_report(ctl, r, omni_strerror(ctl->client));
                        break;
                }
                if (ctl->out.len && ctl_flush(ctl)) { /* nobody reads our lines any more: that is no reason to stop working */
                        ctl->quiet = true;
                }
        }
        return r;
}

/* -- from the command line ----------------------------------------------------------------------------------------- */

/* A program that is not there is told before any task is taken for it. */
static int check_program(struct ctl *ctl, const char *name) {
        const char *path = getenv("PATH"), *end;

        if (!name) {
                return ctl_usage(ctl, "the program is missing");
        }
        if (strchr(name, '/')) {
                return access(name, X_OK) == 0 ? 0 : ctl_fail(ctl, CTL_USAGE, "cannot run %s: %s", name, strerror(errno));
        }
        for (path = path ? path : "/usr/bin:/bin"; path; path = *end ? end + 1 : NULL) {
                char full[4096];

                end = strchrnul(path, ':');
                snprintf(full, sizeof(full), "%.*s/%s", end == path ? 1 : (int) (end - path), end == path ? "." : path, name);
                if (access(full, X_OK) == 0) {
                        return 0;
                }
        }
        return ctl_fail(ctl, CTL_USAGE, "cannot run %s: no such program in PATH", name);
}

static int make_tools(struct ctl *ctl, struct om_buf *b) {
        const char *tool;

        om_buf_putc(b, '[');
        for (size_t i = 0; (tool = args_nth(&ctl->args, "tool", i)); i++) {
                om_buf_puts(b, i ? "," : "");
                om_buf_json_span(b, om_span_of(tool));
        }
        om_buf_putc(b, ']');
        return ctl_text(b) ? 0 : ctl_fail(ctl, CTL_FAILED, "out of memory");
}

static int register_agent(struct run *run) {
        const struct args *a = &run->ctl->args;
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        size_t hold = run->once && run->once < run->n_workers ? run->once : run->n_workers;
        struct om_buf tools = OM_BUF_INIT;
        int r = make_tools(run->ctl, &tools);

        if (r == 0) {
                options.topic = args_text(a, "topic");
                options.name = args_text(a, "name");
                options.description = args_text(a, "description");
                options.tools = args_has(a, "tool") ? tools.data : NULL;
                options.prefetch = (int) args_number(a, "prefetch", (int64_t) hold);
                options.dlq_retry_limit = (int) args_number(a, "retry-limit", -1);
                options.retry_backoff_ms = args_number(a, "retry-backoff", -1);
                options.reclaim_idle_ms = args_number(a, "reclaim-idle", 0);
                options.start = args_text(a, "start");
                omni_on_connection(run->ctl->client, on_connection, run);
                r = omni_agent_register(run->ctl->client, &options, on_task, run, &run->agent);
                r = r < 0 ? ctl_report(run->ctl, r, omni_strerror(run->ctl->client)) : 0;
        }
        om_buf_deinit(&tools);
        return r;
}

static int catch_signals(struct run *run) {
        sigset_t set;

        sigemptyset(&set);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGHUP);
        sigaddset(&set, SIGCHLD);
        signal(SIGPIPE, SIG_IGN); /* programs may close their input early */
        if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) {
                return -errno;
        }
        run->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
        return run->signal_fd < 0 ? -errno : 0;
}

static int set_up(struct run *run) {
        const struct args *a = &run->ctl->args;
        size_t n = args_count(a, "program");

        run->argv = calloc(n + 1, sizeof(*run->argv));
        run->n_workers = (size_t) args_number(a, "workers", 1);
        run->workers = calloc(run->n_workers, sizeof(*run->workers));
        run->polls = calloc(2 + CHILD_POLLS * run->n_workers, sizeof(*run->polls));
        if (!run->argv || !run->workers || !run->polls) {
                return ctl_fail(run->ctl, CTL_FAILED, "out of memory");
        }
        for (size_t i = 0; i < n; i++) {
                run->argv[i] = (char *) args_nth(a, "program", i);
        }
        run->setup = (struct child_setup){ .argv = run->argv,
                .timeout_ms = args_number(a, "timeout", 0),
                .kill_after_ms = args_number(a, "kill-after", KILL_AFTER_MS),
                .max_output = (size_t) args_number(a, "max-output", MAX_OUTPUT) };
        run->raw = args_has(a, "raw");
        run->text = args_has(a, "text");
        run->show_stderr = args_has(a, "show-stderr");
        run->once = args_has(a, "once") ? (uint64_t) args_number(a, "once", 1) : 0;
        return check_program(run->ctl, run->argv[0]);
}

/* What runs is ended, what waits goes back, and what was settled reaches the daemon before we go. */
static void leave(struct run *run) {
        run->leaving = true;
        for (size_t i = 0; i < run->n_workers; i++) {
                if (run->workers[i].task) {
                        child_deinit(&run->workers[i].child);
                        om_buf_deinit(&run->workers[i].input);
                }
        }
        if (run->agent && omni_agent_active(run->agent)) {
                omni_flush(run->ctl->client, FLUSH_MS);
                omni_agent_unregister(run->agent);
        }
}

int cmd_agent_run(struct ctl *ctl) {
        struct run run = { .ctl = ctl, .signal_fd = -1 };
        int r = set_up(&run);

        r = r ? r : ctl_connect_patient(ctl, -1);
        r = r ? r : register_agent(&run);
        if (r == 0) {
                int error = catch_signals(&run);

                r = error < 0 ? ctl_fail(ctl, CTL_FAILED, "signalfd: %s", strerror(-error)) : 0;
        }
        if (r == 0) {
                if (ctl->err_tty) {
                        ctl_note(ctl, "Serving %s as %s with %zu worker%s; Ctrl-C stops.", omni_agent_topic(run.agent),
                                omni_agent_name(run.agent), run.n_workers, run.n_workers == 1 ? "" : "s");
                }
                r = serve(&run);
        }
        leave(&run);
        r = run.forced ? 128 + run.forced : r;
        omni_free(ctl->client); /* callbacks that are left use `run` */
        ctl->client = NULL;
        if (run.signal_fd >= 0) {
                close(run.signal_fd);
        }
        free(run.argv);
        free(run.workers);
        free(run.polls);
        free(run.queue);
        return r;
}
