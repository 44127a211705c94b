/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch: the daemon's events, a line each, as they happen.
 *
 * A watch belongs to its connection: when the daemon went away and came back, it is asked for again. Events are written out after each
 * turn, so that a reader of a pipe sees them at once. A watcher that is too slow is told by the daemon how many it missed, and tells so.
 */
#include "ctl.h"
#include "doc.h"
#include "text.h"
#include "view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_COLUMNS_MAX = 24 };

struct watch {
        struct ctl *ctl;
        struct om_buf params;
        bool asked; /* daemon.watch is under way or answered on this connection */
        bool away;
        int code; /* a refusal */
        uint64_t seen, count;
        unsigned topic_width, agent_width; /* grow with what comes, so that columns line up */
};

static enum ctl_style event_style(struct om_json_value event) {
        if (doc_is(event, "ack")) {
                return STYLE_GOOD;
        }
        if (doc_is(event, "fail") || doc_is(event, "expired")) {
                return STYLE_WARN;
        }
        if (doc_is(event, "dead_letter")) {
                return STYLE_BAD;
        }
        return doc_is(event, "publish") || doc_is(event, "deliver") ? STYLE_NAME : STYLE_DIM;
}

static void put_padded(struct ctl *ctl, struct om_json_value v, unsigned *width, enum ctl_style style) {
        struct om_buf safe = OM_BUF_INIT;
        struct om_arena arena = { 0 };
        unsigned used;

        text_put_safe(&safe, doc_text(v, &arena));
        used = text_width(om_buf_span(&safe));
        if (used > *width) {
                *width = used < NAME_COLUMNS_MAX ? used : NAME_COLUMNS_MAX;
        }
        ctl_style(ctl, &ctl->out, style);
        used = text_put_cut(&ctl->out, om_buf_span(&safe), *width, ctl->ascii);
        ctl_style_end(ctl, &ctl->out);
        text_put_spaces(&ctl->out, *width - used + 2);
        om_arena_deinit(&arena);
        om_buf_deinit(&safe);
}

/* Members that have no column of their own: "name value". */
static void put_rest(struct ctl *ctl, struct om_json_value event) {
        static const char *const known[] = { "watch", "event", "at", "topic", "agent", "id", NULL };
        struct doc_each each = doc_each(event);

        while (doc_next(&each)) {
                bool rest = true;

                for (size_t i = 0; known[i]; i++) {
                        rest &= !om_json_string_is(each.key, known[i]);
                }
                if (rest && doc_there(each.value)) {
                        om_buf_puts(&ctl->out, "  ");
                        ctl_style(ctl, &ctl->out, STYLE_DIM);
                        view_put_raw(&ctl->out, each.key);
                        ctl_style_end(ctl, &ctl->out);
                        om_buf_putc(&ctl->out, ' ');
                        view_put_raw(&ctl->out, each.value);
                }
        }
}

static void put_event(struct watch *w, struct om_json_value event) {
        static const struct view_column columns[] = { { "AT", "at", VIEW_TIME }, { "EVENT", "event", VIEW_TEXT },
                { "TOPIC", "topic", VIEW_TEXT }, { "AGENT", "agent", VIEW_TEXT }, { "ID", "id", VIEW_ID }, { NULL, NULL, 0 } };
        struct ctl *ctl = w->ctl;
        unsigned width = 11;

        if (ctl->format == FORMAT_JSON) {
                doc_put_line(&ctl->out, event, ctl->out_tty ? DOC_SAFE : 0);
                om_buf_putc(&ctl->out, '\n');
                return;
        }
        if (ctl->format == FORMAT_COMPACT) {
                view_record(ctl, event.text, columns);
                return;
        }
        ctl_style(ctl, &ctl->out, STYLE_DIM);
        text_put_clock(&ctl->out, doc_number(doc_get(event, "at"), ctl->now));
        ctl_style_end(ctl, &ctl->out);
        om_buf_puts(&ctl->out, "  ");
        put_padded(ctl, doc_get(event, "event"), &width, event_style(doc_get(event, "event")));
        put_padded(ctl, doc_get(event, "topic"), &w->topic_width, STYLE_NONE);
        put_padded(ctl, doc_get(event, "agent"), &w->agent_width, STYLE_NONE);
        view_put_raw(&ctl->out, doc_get(event, "id"));
        put_rest(ctl, event);
        om_buf_putc(&ctl->out, '\n');
}

static void on_notification(omni_client *client, const char *method, const char *params, size_t params_len, void *user) {
        struct om_json_value event = doc_root((struct om_span){ params, params_len });
        struct watch *w = user;

        if (strcmp(method, "watch.event") != 0 || (w->count && w->seen >= w->count)) {
                return;
        }
        if (doc_is(doc_get(event, "event"), "lost")) {
                ctl_note(w->ctl, "%" PRId64 " events were lost: this reader is too slow.", doc_int(doc_get(event, "n"), 0));
                return;
        }
        put_event(w, event);
        w->seen++;
}

static void on_connection(omni_client *client, int up, const char *reason, void *user) {
        struct watch *w = user;

        if (!up) {
                w->asked = false;
                w->away = true;
                ctl_note(w->ctl, "The connection is gone (%s); waiting for the daemon.", reason);
        } else if (w->away) {
                w->away = false;
                ctl_note(w->ctl, "Connected again.");
        }
}

static void on_watching(omni_client *client, int status, const char *result, size_t result_len, const char *error, void *user) {
        struct watch *w = user;

        if (status < 0 && status != -ECANCELED && status != -ECONNREFUSED && status != -ENOENT) {
                w->code = ctl_report(w->ctl, status, error);
        } else if (status < 0) {
                w->asked = false;
        }
}

static void put_params(struct watch *w) {
        const char *event;

        om_buf_putc(&w->params, '{');
        ctl_put_text(&w->params, "topic", args_text(&w->ctl->args, "topic"));
        if (args_has(&w->ctl->args, "event")) {
                om_buf_puts(&w->params, w->params.len > 1 ? ",\"events\":[" : "\"events\":[");
                for (size_t i = 0; (event = args_nth(&w->ctl->args, "event", i)); i++) {
                        om_buf_puts(&w->params, i ? "," : "");
                        om_buf_json_span(&w->params, om_span_of(event));
                }
                om_buf_putc(&w->params, ']');
        }
        om_buf_putc(&w->params, '}');
}

int cmd_watch(struct ctl *ctl) {
        struct watch w = { .ctl = ctl, .count = (uint64_t) args_number(&ctl->args, "count", 0) };
        int r = ctl_connect_patient(ctl, -1);
        const char *params;

        put_params(&w);
        params = ctl_text(&w.params);
        if (r == 0 && !params) {
                r = ctl_fail(ctl, CTL_FAILED, "out of memory");
        }
        if (r == 0) {
                omni_on_notification(ctl->client, on_notification, &w);
                omni_on_connection(ctl->client, on_connection, &w);
        }
        while (r == 0 && w.code == 0 && (!w.count || w.seen < w.count)) {
                if (!w.asked && !w.away) {
                        w.asked = true;
                        r = omni_call_async(ctl->client, "daemon.watch", params, on_watching, &w);
                }
                r = r < 0 ? r : omni_run_once(ctl->client, -1);
                if (r < 0) {
                        r = ctl_report(ctl, r, omni_strerror(ctl->client));
                } else {
                        r = ctl->out.len && ctl_flush(ctl) ? CTL_FAILED : 0;
                }
        }
        omni_free(ctl->client); /* callbacks that are left use `w` */
        ctl->client = NULL;
        om_buf_deinit(&w.params);
        return r ? r : w.code;
}
