/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage migrate|status|verify|switch|abort and export|import. The daemon does the work, whoever watches it: these start it, wait until it
 * tells that something has changed, and show it.
 *
 * An export is JSON lines: a header with the format's version, a record a line, and a trailer with how many there were of each kind. A file
 * without its trailer, or with another number of records, is refused before anything of it is imported. Neither holds more than a page.
 */
#include "doc.h"
#include "input.h"
#include "progress.h"
#include "view.h"
#include "../../proto/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FORMAT_VERSION = 1, IMPORT_BATCH = 100, IMPORT_BYTES = 1 << 20 };

static const char *const kinds[] = { "config", "agents", "keys", "results", "metrics", NULL };
enum { N_KINDS = 5 };

/* -- status -------------------------------------------------------------------------------------------------------- */

static const struct view_column status_columns[] = { { "PHASE", "phase", VIEW_TEXT }, { "ROLE", "role", VIEW_TEXT },
        { "STORAGE", "storage", VIEW_TEXT }, { "FROM", "from", VIEW_TEXT }, { "TO", "to", VIEW_TEXT },
        { "STARTED", "started_at", VIEW_TIME }, { "COPIED", "done", VIEW_NUMBER }, { "OF", "total", VIEW_NUMBER },
        { "RATE", "rate_per_s", VIEW_NUMBER }, { "LEFT", "left_s", VIEW_SECONDS }, { "CHANGES WAITING", "queued", VIEW_NUMBER },
        { "REFUSED", "refused", VIEW_BAD }, { "ERROR", "error", VIEW_TEXT }, { "LAST TROUBLE", "trouble", VIEW_TEXT }, { NULL, NULL, 0 } };

struct answer {
        char *json;
        struct om_span text;
        struct om_json_value root;
};

static void answer_free(struct answer *a) {
        free(a->json);
        *a = (struct answer){ NULL };
}

/* Calls a method that answers with the status. */
static int ask(struct ctl *ctl, const char *method, struct om_buf *params, struct answer *a) {
        int r;

        answer_free(a);
        r = ctl_call_buf(ctl, method, params, &a->json, &a->text);
        if (r == 0) {
                a->root = doc_root(a->text);
        }
        return r;
}

/* The status once more, when it is another one than `a`; at the latest after a second. */
static int ask_again(struct ctl *ctl, struct answer *a) {
        struct om_buf params = OM_BUF_INIT;

        om_buf_printf(&params, "{\"seen\":%lld,\"wait_ms\":1000}", (long long) doc_int(doc_get(a->root, "revision"), 0));
        return ask(ctl, "storage.status", &params, a);
}

static int call(struct ctl *ctl, const char *method, struct answer *a) {
        struct om_buf params = OM_BUF_INIT;

        om_buf_lit(&params, "{}");
        return ask(ctl, method, &params, a);
}

static bool phase_is(const struct answer *a, const char *phase) { return doc_is(doc_get(a->root, "phase"), phase); }

/* Why the last step did not come to its end, if it did not: told, and the exit code. */
static int trouble(struct ctl *ctl, const struct answer *a) {
        struct om_arena arena = { 0 };
        struct om_json_value why = doc_get(a->root, "trouble");
        struct om_span text;
        int r = 0;

        if (doc_there(why)) {
                text = doc_text(why, &arena);
                r = ctl_fail(ctl, doc_is(doc_get(a->root, "trouble_kind"), "unavailable") ? CTL_UNAVAILABLE : CTL_FAILED, "%.*s",
                        (int) text.len, text.p);
        }
        om_arena_deinit(&arena);
        return r;
}

int cmd_storage_status(struct ctl *ctl) {
        struct answer a = { NULL };
        int r = call(ctl, "storage.status", &a);

        if (r == 0) {
                view_record(ctl, a.text, status_columns);
        }
        answer_free(&a);
        return r;
}

/* -- migrate ------------------------------------------------------------------------------------------------------- */

static int follow_copy(struct ctl *ctl, struct answer *a) {
        struct progress progress;
        int r = 0;

        progress_begin(&progress, ctl, "copying", 0);
        while (r == 0 && (phase_is(a, "check") || phase_is(a, "copy") || phase_is(a, "ending"))) {
                progress.total = (uint64_t) doc_int(doc_get(a->root, "total"), 0);
                progress_set(&progress, (uint64_t) doc_int(doc_get(a->root, "done"), 0));
                r = ask_again(ctl, a);
        }
        progress_end(&progress);
        return r ? r : trouble(ctl, a);
}

/* The URL of --to: "-" is a line of standard input. One that is an argument is hidden from the list of processes as soon as it is read;
 * before that, and in the shell's history, it stands there with its password. */
static int read_url(struct ctl *ctl, struct om_buf *url) {
        const char *to = args_text(&ctl->args, "to");
        struct input_lines in;
        struct om_span line;
        int r = 0;

        if (!to) {
                return 0;
        }
        if (strcmp(to, "-") != 0) {
                om_buf_puts(url, to);
                for (char *secret = strstr(to, "://"); secret && *secret; secret++) {
                        *secret = '*';
                }
                return 0;
        }
        if (input_lines_open(&in, "-") < 0 || input_lines_next(&in, &line) <= 0) {
                r = ctl_usage(ctl, "--to -: no URL on standard input");
        } else {
                om_buf_put_span(url, line);
        }
        input_lines_close(&in);
        return r;
}

int cmd_storage_migrate(struct ctl *ctl) {
        struct om_buf url = OM_BUF_INIT, params = OM_BUF_INIT;
        struct answer a = { NULL };
        int r = read_url(ctl, &url);

        if (r == 0 && args_has(&ctl->args, "replace")) {
                r = ctl_confirm(ctl, "Delete from the new storage what this one does not hold?");
        }
        om_buf_putc(&params, '{');
        if (url.len) {
                om_buf_lit(&params, "\"to\":");
                om_buf_json_span(&params, om_buf_span(&url));
        }
        if (args_has(&ctl->args, "replace")) {
                ctl_put_raw(&params, "replace", "true");
        }
        om_buf_putc(&params, '}');
        if (r == 0) {
                r = ask(ctl, "storage.migrate", &params, &a);
        }
        if (r == 0 && !args_has(&ctl->args, "detach")) {
                r = follow_copy(ctl, &a);
        }
        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, a.root);
        } else if (r == 0 && phase_is(&a, "ready")) {
                ctl_say(ctl, "Copied %lld records; what is written from now on goes to both. Next: omnictl storage verify, then switch.",
                        (long long) doc_int(doc_get(a.root, "done"), 0));
        } else if (r == 0 && args_has(&ctl->args, "detach")) {
                ctl_say(ctl, "Under way; omnictl storage status shows how far it is.");
        }
        answer_free(&a);
        om_buf_deinit(&url);
        om_buf_deinit(&params);
        return r;
}

/* -- verify -------------------------------------------------------------------------------------------------------- */

static int put_differences(struct ctl *ctl, const struct answer *a) {
        struct om_json_value verify = doc_get(a->root, "verify");
        long long n = (long long) doc_int(doc_get(verify, "differences"), 0);
        struct doc_each each = doc_each(doc_get(verify, "shown"));
        static const char *const members[] = { "what", "kind", "key", "name" };

        if (ctl->format == FORMAT_JSON) {
                view_put_json(ctl, verify);
                return n ? CTL_FAILED : 0;
        }
        while (doc_next(&each)) {
                for (size_t i = 0; i < 4; i++) {
                        if (i) {
                                om_buf_putc(&ctl->out, '\t');
                        }
                        if (doc_there(doc_get(each.value, members[i]))) {
                                view_put_raw(&ctl->out, doc_get(each.value, members[i]));
                        }
                }
                om_buf_putc(&ctl->out, '\n');
        }
        if (n) {
                return ctl_fail(ctl, CTL_FAILED, "%lld differences in %lld records%s", n,
                        (long long) doc_int(doc_get(verify, "compared"), 0), n > 100 ? "; the first 100 are listed" : "");
        }
        ctl_say(ctl, "Both hold the same: %lld records compared.", (long long) doc_int(doc_get(verify, "compared"), 0));
        return 0;
}

int cmd_storage_verify(struct ctl *ctl) {
        struct answer a = { NULL };
        struct progress progress;
        struct om_arena arena = { 0 };
        struct om_buf params = OM_BUF_INIT;
        int r;

        om_buf_puts(&params, args_has(&ctl->args, "repair") ? "{\"repair\":true}" : "{}");
        r = ask(ctl, "storage.verify", &params, &a);
        om_buf_deinit(&params);

        progress_begin(&progress, ctl, "comparing", 0);
        while (r == 0 && doc_true(doc_get(a.root, "verify.running"))) {
                progress_set(&progress, (uint64_t) doc_int(doc_get(a.root, "verify.compared"), 0));
                r = ask_again(ctl, &a);
        }
        progress_end(&progress);
        if (r == 0 && !doc_there(doc_get(a.root, "verify"))) {
                r = ctl_fail(ctl, CTL_UNAVAILABLE, "the daemon was started anew meanwhile; verify again");
        } else if (r == 0 && doc_there(doc_get(a.root, "verify.error"))) {
                struct om_span why = doc_text(doc_get(a.root, "verify.error"), &arena);

                r = ctl_fail(ctl, CTL_UNAVAILABLE, "not all could be compared: %.*s", (int) why.len, why.p);
        } else if (r == 0) {
                r = put_differences(ctl, &a);
        }
        om_arena_deinit(&arena);
        answer_free(&a);
        return r;
}

/* -- switch, abort ------------------------------------------------------------------------------------------------- */

static int steer(struct ctl *ctl, const char *method, struct answer *a) {
        int r = call(ctl, method, a);

        while (r == 0 && (doc_true(doc_get(a->root, "switching")) || phase_is(a, "ending"))) {
                r = ask_again(ctl, a);
        }
        return r ? r : trouble(ctl, a);
}

int cmd_storage_switch(struct ctl *ctl) {
        struct answer a = { NULL };
        int r = 0;

        if (call(ctl, "storage.status", &a) == 0 && phase_is(&a, "primary")) {
                r = ctl_confirm(ctl, "Let go of the old storage? From then on it gets nothing, and there is no way back.");
        }
        if (r == 0) {
                r = steer(ctl, "storage.switch", &a);
        }
        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, a.root);
        } else if (r == 0) {
                ctl_say(ctl, "%s",
                        phase_is(&a, "read") ? "Reads come from the new storage; the old one is written first. Next: switch again."
                                : phase_is(&a, "primary")
                                ? "The new storage is the primary; the old one follows. Next: set STORAGE_URL to the new one; "
                                  "switch again lets go of the old one, abort goes back."
                                : "The old storage is let go. STORAGE_URL must name the new one.");
        }
        answer_free(&a);
        return r;
}

int cmd_storage_abort(struct ctl *ctl) {
        struct answer a = { NULL };
        int r = ctl_confirm(ctl, "Go back to the old storage alone?");

        if (r == 0) {
                r = steer(ctl, "storage.abort", &a);
        }
        if (r == 0) {
                ctl_say(ctl, "Aborted: the old storage is in use alone. What the new one was given stays there.");
        }
        answer_free(&a);
        return r;
}

/* -- export -------------------------------------------------------------------------------------------------------- */

struct export {
        struct ctl *ctl;
        FILE *file;
        const char *name;
        struct progress progress;
        uint64_t counts[N_KINDS], total;
        struct om_buf line;
};

static int put_line(struct export *x) {
        om_buf_putc(&x->line, '\n');
        if (!om_buf_ok(&x->line) || fwrite(x->line.data, 1, x->line.len, x->file) != x->line.len) {
                return ctl_fail(x->ctl, CTL_FAILED, "cannot write %s: %s", x->name, strerror(om_buf_ok(&x->line) ? errno : ENOMEM));
        }
        om_buf_clear(&x->line);
        return 0;
}

static int export_page(struct export *x, size_t kind, struct om_buf *cursor, bool *ret_end) {
        struct om_buf params = OM_BUF_INIT;
        struct om_arena arena = { 0 };
        struct om_json_value next;
        struct answer a = { NULL };
        struct doc_each each;
        int r;

        om_buf_printf(&params, "{\"kind\":\"%s\"", kinds[kind]);
        if (cursor->len) {
                om_buf_lit(&params, ",\"cursor\":");
                om_buf_json_span(&params, om_buf_span(cursor));
        }
        om_buf_putc(&params, '}');
        r = ask(x->ctl, "storage.export", &params, &a);
        if (r == 0) {
                each = doc_each(doc_get(a.root, "entries"));
                while (r == 0 && doc_next(&each)) {
                        om_buf_printf(&x->line, "{\"kind\":\"%s\",\"entry\":", kinds[kind]);
                        om_buf_put_span(&x->line, each.value.text);
                        om_buf_putc(&x->line, '}');
                        r = put_line(x);
                        x->counts[kind]++;
                        x->total++;
                }
                next = doc_get(a.root, "cursor");
                *ret_end = !doc_there(next);
                om_buf_clear(cursor);
                om_buf_put_span(cursor, doc_text(next, &arena));
                progress_set(&x->progress, x->total);
        }
        om_arena_deinit(&arena);
        om_buf_deinit(&params);
        answer_free(&a);
        return r;
}

static int export_all(struct export *x) {
        struct om_buf cursor = OM_BUF_INIT;
        int r;

        om_buf_printf(&x->line, "{\"omnidaemon_export\":%d,\"created_at\":", FORMAT_VERSION);
        om_buf_json_time(&x->line, (int64_t) (x->ctl->now * 1000));
        om_buf_putc(&x->line, '}');
        r = put_line(x);
        for (size_t kind = 0; r == 0 && kind < N_KINDS; kind++) {
                bool end = false;

                om_buf_clear(&cursor);
                while (r == 0 && !end) {
                        r = export_page(x, kind, &cursor, &end);
                }
        }
        if (r == 0) {
                om_buf_printf(&x->line, "{\"end\":%llu", (unsigned long long) x->total);
                for (size_t kind = 0; kind < N_KINDS; kind++) {
                        om_buf_printf(&x->line, ",\"%s\":%llu", kinds[kind], (unsigned long long) x->counts[kind]);
                }
                om_buf_putc(&x->line, '}');
                r = put_line(x);
        }
        om_buf_deinit(&cursor);
        return r;
}

/* The file appears under its name when it is whole. */
static int export_file(struct export *x) {
        char part[4096];
        int fd, r;

        if (snprintf(part, sizeof part, "%s.part", x->name) >= (int) sizeof part) {
                return ctl_fail(x->ctl, CTL_USAGE, "the file's name is too long");
        }
        fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        x->file = fd < 0 ? NULL : fdopen(fd, "w");
        if (!x->file) {
                return ctl_fail(x->ctl, CTL_FAILED, "cannot write %s: %s", part, strerror(errno));
        }
        r = export_all(x);
        if (r == 0 && (fflush(x->file) != 0 || fsync(fd) < 0)) {
                r = ctl_fail(x->ctl, CTL_FAILED, "cannot write %s: %s", part, strerror(errno));
        }
        fclose(x->file);
        if (r == 0 && rename(part, x->name) < 0) {
                r = ctl_fail(x->ctl, CTL_FAILED, "cannot rename %s: %s", part, strerror(errno));
        }
        if (r) {
                unlink(part);
        }
        return r;
}

int cmd_storage_export(struct ctl *ctl) {
        struct export x = { .ctl = ctl, .name = args_text(&ctl->args, "file") };
        int r;

        progress_begin(&x.progress, ctl, "exporting", 0);
        if (strcmp(x.name, "-") == 0) {
                x.file = stdout;
                r = export_all(&x);
                if (r == 0 && fflush(stdout) != 0) {
                        r = ctl_fail(ctl, CTL_FAILED, "cannot write: %s", strerror(errno));
                }
        } else {
                r = export_file(&x);
        }
        progress_end(&x.progress);
        om_buf_deinit(&x.line);
        if (r == 0 && strcmp(x.name, "-") != 0) {
                ctl_say(ctl, "Exported %llu records to %s.", (unsigned long long) x.total, x.name);
        }
        return r;
}

/* -- import -------------------------------------------------------------------------------------------------------- */

struct import {
        struct ctl *ctl;
        const char *name;
        bool only_check;
        uint64_t counts[N_KINDS], total, stored;
        bool begun, ended;
        /* the batch */
        size_t kind, n;
        struct om_buf entries;
        struct progress progress;
};

static int bad_line(struct import *x, uint64_t number, const char *why) {
        return ctl_fail(x->ctl, CTL_FAILED, "%s line %llu: %s", x->name, (unsigned long long) number, why);
}

static int send_batch(struct import *x) {
        struct om_buf params = OM_BUF_INIT;
        struct answer a = { NULL };
        int r = 0;

        if (x->n) {
                om_buf_printf(&params, "{\"kind\":\"%s\",\"entries\":[", kinds[x->kind]);
                om_buf_put_span(&params, om_buf_span(&x->entries));
                om_buf_lit(&params, "]}");
                r = ask(x->ctl, "storage.import", &params, &a);
                if (r == 0) {
                        x->stored += (uint64_t) doc_int(doc_get(a.root, "stored"), 0);
                }
        }
        x->n = 0;
        om_buf_clear(&x->entries);
        om_buf_deinit(&params);
        answer_free(&a);
        return r;
}

static int check_end(struct import *x, struct om_json_value line, uint64_t number) {
        for (size_t i = 0; i < N_KINDS; i++) {
                if ((uint64_t) doc_int(doc_get(line, kinds[i]), -1) != x->counts[i]) {
                        return bad_line(x, number, "the trailer counts other records than there are: something is missing, or too much");
                }
        }
        x->ended = true;
        return x->only_check ? 0 : send_batch(x);
}

static int take_entry(struct import *x, struct om_json_value line, uint64_t number) {
        struct om_json_value entry = doc_get(line, "entry");
        size_t kind = 0;
        int r = 0;

        while (kind < N_KINDS && !doc_is(doc_get(line, "kind"), kinds[kind])) {
                kind++;
        }
        if (kind == N_KINDS || entry.type != OM_JSON_OBJECT) {
                return bad_line(x, number, "no record of an export");
        }
        x->counts[kind]++;
        x->total++;
        if (x->only_check) {
                return 0;
        }
        if (x->n && (kind != x->kind || x->n == IMPORT_BATCH || x->entries.len + entry.text.len > IMPORT_BYTES)) {
                r = send_batch(x);
                progress_set(&x->progress, x->total);
        }
        x->kind = kind;
        if (x->n++) {
                om_buf_putc(&x->entries, ',');
        }
        om_buf_put_span(&x->entries, entry.text);
        return r;
}

static int take_line(struct import *x, struct om_span text, uint64_t number) {
        struct om_json_value line;

        if (x->ended) {
                return bad_line(x, number, "something stands behind the trailer");
        }
        if (om_json_check(text, 2 * OM_DEPTH_MAX, NULL) < 0 || (line = doc_root(text)).type != OM_JSON_OBJECT) {
                return bad_line(x, number, x->begun ? "no JSON object: the file is damaged, or cut off" : "no export of a storage");
        }
        if (!x->begun) {
                if (doc_int(doc_get(line, "omnidaemon_export"), 0) != FORMAT_VERSION) {
                        return bad_line(x, number, "no export of a storage, or of a version that this omnictl does not read");
                }
                x->begun = true;
                return 0;
        }
        return doc_there(doc_get(line, "end")) ? check_end(x, line, number) : take_entry(x, line, number);
}

static int read_through(struct import *x) {
        struct input_lines in;
        struct om_span line;
        int r = input_lines_open(&in, x->name), more = 0;

        if (r < 0) {
                return ctl_fail(x->ctl, CTL_FAILED, "cannot read %s: %s", x->name, strerror(-r));
        }
        while (r == 0 && (more = input_lines_next(&in, &line)) > 0) {
                r = take_line(x, line, in.number);
        }
        if (r == 0 && more < 0) {
                r = ctl_fail(x->ctl, CTL_FAILED, "%s: %s", x->name, strerror(-more));
        } else if (r == 0 && !x->ended) {
                r = ctl_fail(x->ctl, CTL_FAILED, "%s: the trailer is missing: the file is cut off", x->name);
        }
        input_lines_close(&in);
        return r;
}

int cmd_storage_import(struct ctl *ctl) {
        struct import x = { .ctl = ctl, .name = args_text(&ctl->args, "file"), .only_check = true };
        uint64_t total = 0;
        int r = 0;

        if (strcmp(x.name, "-") != 0) { /* from a pipe it is read once: a cut is seen at its end only */
                r = read_through(&x);
                total = x.total;
        }
        if (r == 0) {
                x = (struct import){ .ctl = ctl, .name = x.name };
                progress_begin(&x.progress, ctl, "importing", total);
                r = read_through(&x);
                progress_end(&x.progress);
        }
        om_buf_deinit(&x.entries);
        if (r == 0) {
                ctl_say(ctl, "Imported %llu records.", (unsigned long long) x.total);
        } else if (x.stored) {
                ctl_note(ctl, "%llu records had been imported before that", (unsigned long long) x.stored);
        }
        return r;
}
