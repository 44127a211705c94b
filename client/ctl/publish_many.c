/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task publish --lines and --each-file: many tasks in one stream.
 *
 * Up to WINDOW publishes are unanswered at once, in a ring in the order of the input: ids and faults are printed in that order, and memory
 * is bounded however long the input is. A line that cannot be published (not JSON, say) is reported and left out; what would hit every task
 * (the daemon refuses, a server is away) ends it. With --wait the results are then fetched, again WINDOW at once; only for that the ids are
 * kept.
 */
#include "doc.h"
#include "input.h"
#include "progress.h"
#include "publish.h"
#include "text.h"
#include "view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { WINDOW = 512, FAULTS_SHOWN = 10, OUT_FLUSH = 32 << 10 };

struct many;
struct slot {
        struct many *many;
        bool done;
        int status;
        uint64_t number; /* of the line or the file */
        char *text;      /* the id or what went wrong; with --wait the record */
        size_t len;
};

struct many {
        struct ctl *ctl;
        omni_publish_options task;
        struct slot ring[WINDOW];
        uint64_t head, tail; /* the oldest slot in use; the next free one */
        struct progress progress;
        uint64_t sent, published, refused, completed, failed;
        int code;     /* the exit code of the first fault */
        bool stop;    /* nothing more is sent */
        bool print;   /* ids go to standard output */
        bool waiting; /* the second half: results */
        char **ids;   /* for --wait */
        size_t n_ids, cap_ids;
        struct om_buf failures; /* records of failed tasks, for the table at the end */
};

static const char *unit(const struct many *m) { return args_has(&m->ctl->args, "lines") ? "line" : "file"; }

static void fault(struct many *m, int code, uint64_t number, const char *text) {
        if (m->code == 0) {
                m->code = code;
        }
        if (m->refused++ < FAULTS_SHOWN) {
                progress_end(&m->progress);
                if (m->waiting) {
                        ctl_fail(m->ctl, code, "%s", text);
                } else if (args_has(&m->ctl->args, "each-file")) {
                        const char *path = args_nth(&m->ctl->args, "content", (size_t) number - 1);

                        ctl_fail(m->ctl, code, "%s: %s", path ? path : "?", text);
                } else {
                        ctl_fail(m->ctl, code, "line %" PRIu64 ": %s", number, text);
                }
        } else if (m->refused == FAULTS_SHOWN + 1) {
                ctl_fail(m->ctl, code, "and more like these");
        }
}

static int keep_id(struct many *m, char *id) {
        if (m->n_ids == m->cap_ids) {
                size_t cap = m->cap_ids ? 2 * m->cap_ids : 1024;
                char **more = realloc(m->ids, cap * sizeof(*more));

                if (!more) {
                        return -ENOMEM;
                }
                m->ids = more;
                m->cap_ids = cap;
        }
        m->ids[m->n_ids++] = id;
        return 0;
}

/* The oldest publish is answered: its id is printed, kept, or its fault told. */
static void take_published(struct many *m, struct slot *s) {
        struct ctl *ctl = m->ctl;

        if (s->status < 0) {
                fault(m, ctl_exit_code(s->status), s->number, s->text ? s->text : strerror(-s->status));
                m->stop |= s->status != -EINVAL;
                return;
        }
        m->published++;
        if (m->print && ctl->format_given && ctl->format == FORMAT_JSON) {
                om_buf_puts(&ctl->out, "{\"id\":");
                om_buf_json_string(&ctl->out, s->text, s->len);
                om_buf_puts(&ctl->out, "}\n");
        } else if (m->print) {
                om_buf_printf(&ctl->out, "%s\n", s->text);
        }
        if (args_has(&ctl->args, "wait")) {
                if (keep_id(m, s->text) < 0) {
                        fault(m, CTL_FAILED, s->number, "out of memory");
                        return;
                }
                s->text = NULL;
        }
}

/* The oldest result is there. */
static void take_result(struct many *m, struct slot *s) {
        static const struct view_column columns[] = { { "ID", "task_id", VIEW_ID }, { "STATUS", "status", VIEW_STATUS },
                { "RESULT", "result", VIEW_JSON }, { "ERROR", "error", VIEW_TEXT }, { NULL, NULL, 0 } };
        struct om_span text = { s->text, s->len };
        struct om_json_value root;

        if (s->status < 0) {
                char line[400];

                snprintf(line, sizeof(line), "%s: %s", m->ids[s->number],
                        s->status == -ETIMEDOUT ? "no result yet"
                                : s->text       ? s->text
                                                : strerror(-s->status));
                fault(m, ctl_exit_code(s->status), 0, line);
                m->stop |= s->status != -ETIMEDOUT && s->status != -ENOENT;
                return;
        }
        root = doc_root(text);
        if (doc_is(doc_get(root, "status"), "failed")) {
                m->failed++;
                m->code = m->code ? m->code : CTL_FAILED;
                if (m->ctl->format == FORMAT_TABLE) {
                        om_buf_puts(&m->failures, m->failures.len ? "," : "{\"tasks\":[");
                        om_buf_put_span(&m->failures, text);
                }
        } else {
                m->completed++;
        }
        if (m->ctl->format == FORMAT_COMPACT) {
                view_record(m->ctl, text, columns);
        } else if (m->ctl->format == FORMAT_JSON) {
                doc_put_line(&m->ctl->out, root, m->ctl->out_tty ? DOC_SAFE : 0);
                om_buf_putc(&m->ctl->out, '\n');
        } else if (m->ctl->format == FORMAT_TREE) {
                view_put_tree(m->ctl, root);
        }
}

static void take_done(struct many *m) {
        while (m->head < m->tail && m->ring[m->head % WINDOW].done) {
                struct slot *s = &m->ring[m->head++ % WINDOW];

                if (m->waiting) {
                        take_result(m, s);
                } else {
                        take_published(m, s);
                }
                free(s->text);
                s->text = NULL;
        }
        if (m->ctl->out.len > OUT_FLUSH && ctl_flush(m->ctl)) {
                m->code = m->code ? m->code : CTL_FAILED;
                m->stop = true;
        }
}

/* Serves the connection until something was answered. */
static int serve(struct many *m) {
        int r = omni_run_once(m->ctl->client, m->ctl->timeout_ms + (m->waiting ? args_number(&m->ctl->args, "wait", PUBLISH_WAIT_MS) : 0));

        if (r == 0) {
                return ctl_fail(m->ctl, CTL_TIMEOUT, "no answer from the daemon");
        }
        if (r < 0) {
                return ctl_report(m->ctl, r, omni_strerror(m->ctl->client));
        }
        take_done(m);
        return 0;
}

/* A free slot, waiting for one where needed; NULL: it cannot go on. */
static struct slot *free_slot(struct many *m) {
        while (m->tail - m->head >= WINDOW) {
                int code = serve(m);

                if (code) {
                        m->code = m->code ? m->code : code;
                        m->stop = true;
                        return NULL;
                }
        }
        struct slot *s = &m->ring[m->tail % WINDOW];
        *s = (struct slot){ .many = m };
        return s;
}

static void on_published(omni_client *client, int status, const char *id, const char *error, void *user) {
        struct slot *s = user;
        const char *text = status >= 0 ? id : error;

        s->text = text ? strdup(text) : NULL;
        s->len = s->text ? strlen(s->text) : 0;
        s->status = status >= 0 && !s->text ? -ENOMEM : status;
        s->done = true;
}

static void send_one(struct many *m, uint64_t number, struct om_span content) {
        struct slot *s = free_slot(m);
        int r;

        if (!s) {
                return;
        }
        s->number = number;
        m->task.content = content.p;
        m->task.content_len = content.len;
        while ((r = omni_publish_async(m->ctl->client, &m->task, on_published, s)) == -ENOBUFS) {
                int code = serve(m);

                if (code) {
                        m->code = m->code ? m->code : code;
                        m->stop = true;
                        return;
                }
        }
        m->tail++;
        if (r < 0) {
                const char *why = omni_strerror(m->ctl->client);

                s->text = why ? strdup(why) : NULL;
                s->status = r;
                s->done = true;
        }
        m->sent++;
        take_done(m);
}

static void finish_window(struct many *m) {
        while (m->head < m->tail) {
                int code = serve(m);

                if (code) {
                        m->code = m->code ? m->code : code;
                        m->stop = true;
                        return;
                }
                progress_set(&m->progress, m->waiting ? m->head : m->progress.done);
        }
}

/* -- where they come from ------------------------------------------------------------------------------------------ */

static int send_lines(struct many *m) {
        const char *path = args_text(&m->ctl->args, "file");
        struct om_buf made = OM_BUF_INIT;
        struct input_lines in;
        struct om_span line, content;
        struct stat st;
        int r;

        path = path ? path : "-";
        if (args_count(&m->ctl->args, "content") > 1 ||
                (args_has(&m->ctl->args, "content") && strcmp(args_text(&m->ctl->args, "content"), "-") != 0)) {
                return ctl_usage(m->ctl, "--lines reads standard input or --file FILE");
        }
        r = input_lines_open(&in, path);
        if (r < 0) {
                return ctl_fail(m->ctl, CTL_FAILED, "%s: %s", path, strerror(-r));
        }
        progress_begin(&m->progress, m->ctl, "publishing", fstat(in.fd, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t) st.st_size : 0);
        m->progress.bytes = m->progress.total > 0;
        while (!m->stop && (r = input_lines_next(&in, &line)) > 0) {
                struct om_error e = OM_ERROR_INIT;

                if (line.len == 0) {
                        continue; /* nothing is no task */
                }
                if (publish_content(m->ctl, line, &made, &content, &e) < 0) {
                        fault(m, CTL_USAGE, in.number, e.message);
                        continue;
                }
                send_one(m, in.number, content);
                progress_set(&m->progress, m->progress.bytes ? in.bytes : m->sent);
        }
        if (r < 0) {
                fault(m, CTL_FAILED, in.number, r == -EFBIG ? "longer than the 16 MiB of one task" : strerror(-r));
        }
        finish_window(m);
        input_lines_close(&in);
        om_buf_deinit(&made);
        return 0;
}

/* {"file": PATH, "text": …} */
static int file_content(const char *path, struct om_buf *text, struct om_buf *content, struct om_error *e) {
        int r;

        om_buf_clear(text);
        om_buf_clear(content);
        r = input_read_file(path, text);
        if (r < 0) {
                return om_error_set(e, OM_INVALID, "%s", r == -EFBIG ? "larger than the 16 MiB of one task" : strerror(-r));
        }
        if (!input_is_text(om_buf_span(text)) || !input_is_text(om_span_of(path))) {
                return om_error_set(e, OM_INVALID, "it is not text in UTF-8");
        }
        om_buf_puts(content, "{\"file\":");
        om_buf_json_span(content, om_span_of(path));
        om_buf_puts(content, ",\"text\":");
        om_buf_json_span(content, om_buf_span(text));
        om_buf_putc(content, '}');
        return om_buf_ok(content) ? 0 : om_error_set(e, OM_INTERNAL, "out of memory");
}

static int send_files(struct many *m) {
        struct om_buf text = OM_BUF_INIT, content = OM_BUF_INIT;
        size_t n = args_count(&m->ctl->args, "content");

        if (n == 0) {
                return ctl_usage(m->ctl, "--each-file needs files: task publish --topic TOPIC --each-file FILE…");
        }
        progress_begin(&m->progress, m->ctl, "publishing", n);
        for (size_t i = 0; i < n && !m->stop; i++) {
                struct om_error e = OM_ERROR_INIT;

                if (file_content(args_nth(&m->ctl->args, "content", i), &text, &content, &e) < 0) {
                        fault(m, CTL_FAILED, i + 1, e.message);
                        continue;
                }
                send_one(m, i + 1, om_buf_span(&content));
                progress_set(&m->progress, m->sent);
        }
        finish_window(m);
        om_buf_deinit(&text);
        om_buf_deinit(&content);
        return 0;
}

/* -- results ------------------------------------------------------------------------------------------------------- */

static void on_result(omni_client *client, int status, const char *result, size_t result_len, const char *error, void *user) {
        struct slot *s = user;

        if (status < 0) {
                s->text = error ? strdup(error) : NULL;
                s->len = s->text ? strlen(s->text) : 0;
        } else {
                s->text = malloc(result_len + 1);
                s->len = result_len;
                if (s->text) {
                        memcpy(s->text, result, result_len);
                        s->text[result_len] = '\0';
                }
        }
        s->status = status >= 0 && !s->text ? -ENOMEM : status;
        s->done = true;
}

static void wait_for_results(struct many *m) {
        int64_t wait_ms = args_number(&m->ctl->args, "wait", PUBLISH_WAIT_MS);

        m->waiting = true;
        m->stop = false;
        m->refused = 0;
        m->head = m->tail = 0;
        progress_begin(&m->progress, m->ctl, "waiting for results", m->n_ids);
        for (size_t i = 0; i < m->n_ids && !m->stop; i++) {
                struct om_buf params = OM_BUF_INIT;
                struct slot *s = free_slot(m);
                const char *text;
                int r;

                if (!s) {
                        break;
                }
                s->number = i;
                om_buf_putc(&params, '{');
                ctl_put_text(&params, "id", m->ids[i]);
                ctl_put_int(&params, "wait_ms", wait_ms);
                om_buf_putc(&params, '}');
                text = ctl_text(&params);
                r = text ? omni_call_async(m->ctl->client, "task.get", text, on_result, s) : -ENOMEM;
                om_buf_deinit(&params);
                m->tail++;
                if (r < 0) {
                        s->status = r;
                        s->done = true;
                }
                take_done(m);
                progress_set(&m->progress, m->head);
        }
        finish_window(m);
        progress_end(&m->progress);
}

static void put_summary(struct many *m, double seconds) {
        struct ctl *ctl = m->ctl;
        struct om_buf time = OM_BUF_INIT, rate = OM_BUF_INIT;

        text_put_duration(&time, seconds, ctl->ascii);
        text_put_rate(&rate, seconds > 0 ? (double) m->published / seconds : 0);
        if (ctl_text(&time) && ctl_text(&rate)) {
                ctl_note(ctl, "Published %" PRIu64 " task%s in %s (%s/s)%s", m->published, m->published == 1 ? "" : "s", time.data,
                        rate.data, m->stop ? ", then stopped." : ".");
        }
        om_buf_deinit(&time);
        om_buf_deinit(&rate);
}

int publish_many(struct ctl *ctl, const omni_publish_options *task) {
        static const struct view_column columns[] = { { "ID", "task_id", VIEW_ID }, { "AGENT", "agent", VIEW_TEXT },
                { "ATTEMPTS", "attempts", VIEW_NUMBER }, { "ERROR", "error", VIEW_TEXT }, { NULL, NULL, 0 } };
        struct many *m = calloc(1, sizeof(*m));
        bool wait = args_has(&ctl->args, "wait");
        uint64_t refused;
        int r;

        if (!m) {
                return ctl_fail(ctl, CTL_FAILED, "out of memory");
        }
        m->ctl = ctl;
        m->task = *task;
        m->print = !wait && (!ctl->out_tty || ctl->format_given);
        r = ctl_connect_patient(ctl, ctl->timeout_ms);
        r = r ? r : args_has(&ctl->args, "lines") ? send_lines(m) : send_files(m);
        progress_end(&m->progress);
        if (r == 0) {
                put_summary(m, progress_seconds(&m->progress));
                refused = m->refused;
                if (refused) {
                        ctl_note(ctl, "%" PRIu64 " %s%s not published.", refused, unit(m), refused == 1 ? " was" : "s were");
                }
        }
        if (r == 0 && wait && m->n_ids) {
                wait_for_results(m);
                if (m->failures.len) {
                        om_buf_puts(&m->failures, "]}");
                        view_list(ctl, om_buf_span(&m->failures), "tasks", columns, "");
                }
                ctl_note(ctl, "%" PRIu64 " completed, %" PRIu64 " failed.", m->completed, m->failed);
        }
        r = r ? r : m->code;
        /* Callbacks of what is still unanswered come from omni_free(): they write into `m`, so it goes first. */
        omni_free(ctl->client);
        ctl->client = NULL;
        for (size_t i = 0; i < WINDOW; i++) {
                free(m->ring[i].text);
        }
        for (size_t i = 0; i < m->n_ids; i++) {
                free(m->ids[i]);
        }
        free(m->ids);
        om_buf_deinit(&m->failures);
        free(m);
        return r;
}
