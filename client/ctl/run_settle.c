/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent run: how a program's end becomes a task's end.
 *
 *   exit 0              ack; the output is the result
 *   exit 100            fail, no retry; the message is what it wrote on standard error
 *   another exit        fail, retried; type "exit_N"
 *   a signal            fail, retried; type "signal"
 *   too long            fail, retried; type "timeout"
 *   too much output     fail, retried; type "output"
 *   the lease is over   nothing: another worker has the task
 */
#include "doc.h"
#include "run.h"
#include "term.h"
#include "text.h"
#include "../../proto/rpc.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_NO_RETRY = 100, RESULT_DEPTH = OM_DEPTH_MAX - 4 };

/* What is told about a task when the daemon has answered. */
struct report {
        struct run *run;
        double seconds;
        int attempt;
        char id[];
};

/* -- lines for people ---------------------------------------------------------------------------------------------- */

static void put_line(struct run *run, const char *id, bool good, double seconds, int attempt, const char *why) {
        struct ctl *ctl = run->ctl;
        struct om_buf *b = &ctl->out;

        if (ctl->quiet) {
                return;
        }
        if (ctl->format_given && ctl->format == FORMAT_JSON) {
                om_buf_puts(b, "{\"id\":");
                om_buf_json_span(b, om_span_of(id));
                om_buf_printf(b, ",\"outcome\":\"%s\",\"ms\":%.3f,\"attempt\":%d", good ? "done" : "failed", seconds * 1000, attempt);
                ctl_put_text(b, "error", good ? NULL : why);
                om_buf_puts(b, "}\n");
                return;
        }
        if (!ctl->out_tty) { /* in a log only what went wrong is worth a line */
                if (!good) {
                        ctl_note(ctl, "task %s failed (attempt %d): %s", id, attempt, why);
                }
                return;
        }
        ctl_style(ctl, b, good ? STYLE_GOOD : STYLE_BAD);
        om_buf_puts(b, good ? "done  " : "failed");
        ctl_style_end(ctl, b);
        om_buf_puts(b, "  ");
        text_put_safe(b, om_span_of(id));
        om_buf_puts(b, "  ");
        text_put_duration(b, seconds, ctl->ascii);
        if (attempt > 1) {
                om_buf_printf(b, "  attempt %d", attempt);
        }
        if (!good) {
                struct om_buf safe = OM_BUF_INIT;

                om_buf_puts(b, "  ");
                text_put_safe(&safe, om_span_of(why));
                text_put_cut(b, om_buf_span(&safe), 200, ctl->ascii);
                om_buf_deinit(&safe);
        }
        om_buf_putc(b, '\n');
}

static void on_settled(omni_client *client, int status, const char *error, void *user) {
        struct report *report = user;

        if (!report->run->leaving || status == 0) {
                put_line(report->run, report->id, status == 0, report->seconds, report->attempt, error ? error : strerror(-status));
        }
        report->run->settled++;
        free(report);
}

/* -- results ------------------------------------------------------------------------------------------------------- */

/* The output as JSON: itself where it is JSON, else a string without the newline at its end; nothing is null. 0, -E2BIG, -ENOMEM. */
static int make_result(struct run *run, struct om_span output, struct om_buf *b, struct om_span *ret) {
        struct om_span trimmed = output;
        struct om_json j;
        struct om_json_value v;
        int r = -EINVAL;

        while (trimmed.len && isspace((unsigned char) trimmed.p[trimmed.len - 1])) {
                trimmed.len--;
        }
        if (trimmed.len == 0 && !run->text) {
                *ret = OM_SPAN("null");
                return 0;
        }
        if (!run->text) {
                om_json_init(&j, trimmed, RESULT_DEPTH);
                r = om_json_value(&j, &v);
                r = r < 0 ? r : om_json_finish(&j);
                if (r != -EINVAL) {
                        *ret = trimmed;
                        return r;
                }
        }
        if (output.len && output.p[output.len - 1] == '\n') {
                output.len--;
        }
        om_buf_json_span(b, output);
        *ret = om_buf_span(b);
        return om_buf_ok(b) ? 0 : -ENOMEM;
}

/* -- failures ------------------------------------------------------------------------------------------------------ */

/* The end of standard error, from a line's beginning where it was cut. */
static struct om_span last_errors(const struct child *c) {
        struct om_span s = om_buf_span(&c->errors);
        bool cut = c->errors_cut || s.len > CHILD_STDERR_KEPT;

        if (s.len > CHILD_STDERR_KEPT) {
                s = (struct om_span){ s.p + s.len - CHILD_STDERR_KEPT, CHILD_STDERR_KEPT };
        }
        if (cut) {
                const char *line = memchr(s.p, '\n', s.len);

                if (line && line + 1 < s.p + s.len) {
                        s = (struct om_span){ line + 1, (size_t) (s.p + s.len - line - 1) };
                }
                while (s.len && ((unsigned char) *s.p & 0xc0) == 0x80) { /* not in the middle of a character */
                        s = (struct om_span){ s.p + 1, s.len - 1 };
                }
        }
        while (s.len && isspace((unsigned char) s.p[s.len - 1])) {
                s.len--;
        }
        return s;
}

/* Appends what standard error said; zero bytes would end the text early. */
static void put_errors(struct om_buf *b, struct om_span errors) {
        for (size_t i = 0; i < errors.len; i++) {
                om_buf_putc(b, errors.p[i] ? errors.p[i] : ' ');
        }
}

/* The message and the type of what went wrong. */
static void describe(const struct worker *w, struct om_buf *message, char type[32]) {
        const struct child *c = &w->child;
        struct om_span errors = last_errors(c);

        switch (c->end) {
        case CHILD_TIMEOUT:
                snprintf(type, 32, "timeout");
                om_buf_puts(message, "it ran longer than ");
                text_put_duration(message, (double) w->setup.timeout_ms / 1000, true);
                break;
        case CHILD_OUTPUT:
                snprintf(type, 32, "output");
                om_buf_puts(message, "it wrote more than ");
                text_put_size(message, (double) w->setup.max_output);
                om_buf_puts(message, " on standard output (--max-output)");
                break;
        case CHILD_CALLED:
        case CHILD_BY_ITSELF:
                if (c->signal) {
                        const char *name = sigabbrev_np(c->signal);

                        snprintf(type, 32, "signal");
                        om_buf_printf(message, "it was ended by signal %d (%s%s)", c->signal, name ? "SIG" : "", name ? name : "unknown");
                } else {
                        snprintf(type, 32, "exit_%d", c->code);
                        if (errors.len) {
                                put_errors(message, errors);
                                return;
                        }
                        om_buf_printf(message, "it exited with status %d and said nothing on standard error", c->code);
                }
                break;
        }
        if (errors.len) {
                om_buf_puts(message, ": ");
                put_errors(message, errors);
        }
}

/* -- settling ------------------------------------------------------------------------------------------------------ */

static void fail(struct run *run, struct worker *w, const char *message, const char *type, unsigned flags) {
        const char *id = omni_task_id(w->task);
        char *copy = strdup(id ? id : "?");
        int attempt = omni_task_attempt(w->task);

        omni_task_fail(w->task, message, type, -1, flags);
        run->settled++;
        put_line(run, copy ? copy : "?", false, term_seconds() - w->child.started, attempt, message);
        free(copy);
}

static void ack(struct run *run, struct worker *w) {
        const char *id = omni_task_id(w->task);
        struct om_buf made = OM_BUF_INIT;
        struct om_span result;
        int r = make_result(run, om_buf_span(&w->child.output), &made, &result);
        size_t id_size = strlen(id ? id : "?") + 1;
        struct report *report = malloc(sizeof(*report) + id_size);

        if (r < 0 || !report) {
                fail(run, w, r == -E2BIG ? "its output is JSON nested too deep" : "omnictl: out of memory",
                        r == -E2BIG ? "output" : "internal", 0);
                free(report);
        } else {
                *report =
                        (struct report){ .run = run, .seconds = term_seconds() - w->child.started, .attempt = omni_task_attempt(w->task) };
                memcpy(report->id, id ? id : "?", id_size);
                r = omni_task_ack_publish(w->task, result.p, result.len, NULL, 0, on_settled, report);
                if (r < 0) { /* the callback is not called for what was refused at once */
                        put_line(run, report->id, false, report->seconds, report->attempt, omni_strerror(run->ctl->client));
                        run->settled++;
                        free(report);
                }
        }
        om_buf_deinit(&made);
}

static void free_place(struct worker *w) {
        child_deinit(&w->child);
        om_buf_deinit(&w->input);
        om_buf_deinit(&w->line);
        w->task = NULL;
}

void run_settle(struct run *run, struct worker *w) {
        const struct child *c = &w->child;

        if (omni_task_lost(w->task)) {
                put_line(run, omni_task_id(w->task), false, term_seconds() - c->started, omni_task_attempt(w->task),
                        "the lease was over before it was done: another worker gets it");
                omni_task_fail(w->task, "lost", "lost", -1, 0); /* only gives the pointer back */
                run->settled++;
        } else if (c->end == CHILD_BY_ITSELF && !c->signal && c->code == 0) {
                ack(run, w);
        } else {
                struct om_buf message = OM_BUF_INIT;
                char type[32];

                describe(w, &message, type);
                fail(run, w, ctl_text(&message) ? message.data : "it failed", type,
                        c->end == CHILD_BY_ITSELF && !c->signal && c->code == EXIT_NO_RETRY ? OMNI_FAIL_NO_RETRY : 0);
                om_buf_deinit(&message);
        }
        free_place(w);
}

void run_settle_unstarted(struct run *run, struct worker *w, int status) {
        char message[200];

        snprintf(message, sizeof(message), "omnictl cannot start the program: %s", strerror(-status));
        w->child = (struct child){ .in = -1, .out = -1, .err = -1, .started = term_seconds() };
        fail(run, w, message, "start", 0);
        free_place(w);
}

void run_show_errors(struct run *run, struct worker *w, size_t n) {
        const char *from, *end;

        if (!run->show_stderr || n == 0) {
                return;
        }
        om_buf_put(&w->line, w->child.errors.data + w->child.errors.len - n, n);
        from = w->line.data;
        while ((end = memchr(from, '\n', w->line.len - (size_t) (from - w->line.data)))) {
                ctl_note(run->ctl, "%.8s  %.*s", omni_task_id(w->task), (int) (end - from), from);
                from = end + 1;
        }
        om_buf_consume(&w->line, (size_t) (from - w->line.data));
        if (w->line.len > CHILD_STDERR_KEPT) { /* a line without an end is shown in pieces */
                ctl_note(run->ctl, "%.8s  %.*s", omni_task_id(w->task), (int) w->line.len, w->line.data);
                om_buf_clear(&w->line);
        }
}
