/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task publish: one task. Many of them are publish_many.c.
 *
 * Standard output is the id (or, with --wait, the result) and nothing else, so that `id=$(omnictl task publish …)` works. A content that is
 * not JSON is refused rather than guessed at: a forgotten quote would otherwise arrive as text.
 */
#include "publish.h"
#include "doc.h"
#include "input.h"
#include "view.h"
#include "../../proto/rpc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int put_headers(struct ctl *ctl, struct om_buf *b) {
        const char *text;

        om_buf_putc(b, '{');
        for (size_t i = 0; (text = args_nth(&ctl->args, "header", i)); i++) {
                const char *equals = strchr(text, '=');

                if (!equals || equals == text) {
                        return ctl_usage(ctl, "--header is NAME=VALUE, not \"%s\"", text);
                }
                om_buf_puts(b, i ? "," : "");
                om_buf_json_string(b, text, (size_t) (equals - text));
                om_buf_putc(b, ':');
                om_buf_json_span(b, om_span_of(equals + 1));
        }
        om_buf_putc(b, '}');
        return 0;
}

int publish_options(struct ctl *ctl, omni_publish_options *ret, struct om_buf memory[2]) {
        const struct args *a = &ctl->args;
        const char *webhook = args_text(a, "webhook");
        int r;

        *ret = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
        ret->topic = args_text(a, "topic");
        ret->id = args_text(a, "id");
        ret->key = args_text(a, "key");
        ret->idempotency_key = args_text(a, "idempotency-key");
        ret->reply_to = args_text(a, "reply-to");
        ret->correlation_id = args_text(a, "correlation-id");
        ret->causation_id = args_text(a, "causation-id");
        ret->source = args_text(a, "source");
        ret->tenant_id = args_text(a, "tenant-id");
        ret->traceparent = args_text(a, "traceparent");
        ret->priority = (int) args_number(a, "priority", 0);
        ret->ttl_ms = args_number(a, "ttl", 0);
        ret->delay_ms = args_number(a, "delay", 0);
        if (args_has(a, "header")) {
                r = put_headers(ctl, &memory[0]);
                if (r) {
                        return r;
                }
                ret->headers = ctl_text(&memory[0]);
        }
        if (webhook && (webhook[0] == '{' || webhook[0] == '"')) { /* JSON as the protocol has it: an object with a secret, say */
                ret->webhook = webhook;
        } else if (webhook) {
                om_buf_json_span(&memory[1], om_span_of(webhook));
                ret->webhook = ctl_text(&memory[1]);
        }
        return om_buf_ok(&memory[0]) && om_buf_ok(&memory[1]) ? 0 : ctl_fail(ctl, CTL_FAILED, "out of memory");
}

int publish_content(struct ctl *ctl, struct om_span given, struct om_buf *b, struct om_span *ret, struct om_error *e) {
        if (args_has(&ctl->args, "text")) {
                if (!input_is_text(given)) {
                        return om_error_set(e, OM_INVALID, "it is not text in UTF-8");
                }
                om_buf_clear(b);
                om_buf_json_span(b, given);
                *ret = om_buf_span(b);
                return om_buf_ok(b) ? 0 : -ENOMEM;
        }
        *ret = given;
        int r = om_json_check(given, OM_DEPTH_MAX - 4, e);
        if (r < 0 && !args_has(&ctl->args, "json")) {
                om_error_prefix(e, "not JSON (use --text to publish it as a string)");
        }
        return r;
}

/* The content as it was given: an argument, a file, or standard input. */
static int get_given(struct ctl *ctl, struct om_buf *b, struct om_span *ret) {
        const char *file = args_text(&ctl->args, "file"), *content = args_text(&ctl->args, "content");
        size_t n = args_count(&ctl->args, "content");
        int r;

        if (n > 1) {
                return ctl_usage(ctl, "one content at a time: quote it, or use --lines or --each-file for many");
        }
        if (n && file) {
                return ctl_usage(ctl, "say the content or --file, not both");
        }
        if (n && strcmp(content, "-") != 0) {
                *ret = om_span_of(content);
                return 0;
        }
        if (!file && !n && isatty(STDIN_FILENO)) {
                return ctl_usage(ctl, "the content is missing: write it, or name a --file, or send it on standard input");
        }
        r = input_read_file(file ? file : "-", b);
        if (r < 0) {
                return ctl_fail(ctl, CTL_FAILED, "%s: %s", file ? file : "standard input",
                        r == -EFBIG ? "larger than the 16 MiB of one task" : strerror(-r));
        }
        *ret = om_buf_span(b);
        /* The newline at the end of what an editor or `echo` wrote is not meant. */
        if (args_has(&ctl->args, "text") && ret->len && ret->p[ret->len - 1] == '\n') {
                ret->len--;
        }
        return 0;
}

/* Prints the result of a task, or says why it failed. */
static int put_result(struct ctl *ctl, const char *id) {
        char *record = NULL;
        size_t len = 0;
        int r = omni_result_get(ctl->client, id, NULL, args_number(&ctl->args, "wait", PUBLISH_WAIT_MS), &record, &len);

        if (r == -ETIMEDOUT) {
                return ctl_fail(ctl, CTL_TIMEOUT, "task %s has no result yet; look again: %s task get %s --wait", id, ctl->program, id);
        }
        if (r < 0) {
                return ctl_report(ctl, r, omni_strerror(ctl->client));
        }
        struct om_json_value root = doc_root((struct om_span){ record, len });
        bool failed = doc_is(doc_get(root, "status"), "failed");
        if (ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, root);
        } else if (ctl->format_given && ctl->format == FORMAT_TREE) {
                view_put_tree(ctl, root);
        } else if (!failed && ctl->format == FORMAT_COMPACT) {
                doc_put_line(&ctl->out, doc_get(root, "result"), DOC_SAFE);
                om_buf_putc(&ctl->out, '\n');
        } else if (!failed) {
                view_put_json(ctl, doc_get(root, "result"));
        }
        if (failed) {
                struct om_arena arena = { 0 };
                struct om_span why = doc_text(doc_get(root, "error"), &arena);

                ctl_fail(ctl, CTL_FAILED, "the task failed: %.*s", OM_PRI(why));
                om_arena_deinit(&arena);
        }
        free(record);
        return failed ? CTL_FAILED : 0;
}

static int publish_one(struct ctl *ctl, omni_publish_options *task) {
        struct om_buf input = OM_BUF_INIT, made = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        char id[OMNI_ID_SIZE];
        struct om_span given = OM_SPAN_NONE, content = OM_SPAN_NONE;
        int r = get_given(ctl, &input, &given);

        if (r) {
                goto out;
        }
        r = publish_content(ctl, given, &made, &content, &e);
        if (r < 0) {
                r = ctl_usage(ctl, "the content: %s", e.message);
                goto out;
        }
        r = args_has(&ctl->args, "wait") ? ctl_connect_patient(ctl, ctl->timeout_ms) : ctl_connect(ctl);
        if (r) {
                goto out;
        }
        task->content = content.p;
        task->content_len = content.len;
        r = omni_publish(ctl->client, task, id);
        if (r < 0) {
                r = ctl_report(ctl, r, omni_strerror(ctl->client));
                goto out;
        }
        if (r == 1) {
                ctl_note(ctl, "Published before: this is that task's id.");
        }
        if (args_has(&ctl->args, "wait")) {
                r = put_result(ctl, id);
        } else if (ctl->format_given && ctl->format == FORMAT_JSON) {
                om_buf_puts(&ctl->out, "{\"id\":");
                om_buf_json_span(&ctl->out, om_span_of(id));
                om_buf_puts(&ctl->out, r == 1 ? ",\"duplicate\":true}\n" : "}\n");
                r = 0;
        } else {
                om_buf_printf(&ctl->out, "%s\n", id);
                r = 0;
        }
out:
        om_buf_deinit(&input);
        om_buf_deinit(&made);
        return r;
}

int cmd_task_publish(struct ctl *ctl) {
        const struct args *a = &ctl->args;
        struct om_buf memory[2] = { OM_BUF_INIT, OM_BUF_INIT };
        omni_publish_options task;
        bool many = args_has(a, "lines") || args_has(a, "each-file");
        int r = publish_options(ctl, &task, memory);

        if (r == 0 && args_has(a, "json") && args_has(a, "text")) {
                r = ctl_usage(ctl, "--json and --text say opposite things");
        } else if (r == 0 && args_has(a, "lines") && args_has(a, "each-file")) {
                r = ctl_usage(ctl, "--lines or --each-file, not both");
        } else if (r == 0 && many && task.id) {
                r = ctl_usage(ctl, "--id names one task; with many each gets its own");
        } else if (r == 0 && many && task.idempotency_key) {
                r = ctl_usage(ctl, "--idempotency-key names one task; with many only the first would be published");
        }
        r = r ? r : many ? publish_many(ctl, &task) : publish_one(ctl, &task);
        om_buf_deinit(&memory[0]);
        om_buf_deinit(&memory[1]);
        return r;
}
