/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls to the daemon, and what a failure means to a script.
 *
 * A command that asks once does not wait for a daemon that is away: nobody at the socket is exit code 3, at once. Commands that serve
 * (agent run, watch, top) use a client that waits. Everything blocks; one thread.
 */
#include "ctl.h"
#include "doc.h"
#include "progress.h"
#include "text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE_MAX = 1000 }; /* the protocol's largest `limit` */

const char *ctl_socket(struct ctl *ctl) {
        static char path[512];
        const char *text = args_text(&ctl->args, "socket");

        if (!text || !*text) {
                text = getenv("OMNIDAEMON_SOCKET");
        }
        if (text && *text) {
                return text;
        }
        text = getenv("XDG_RUNTIME_DIR");
        if (text && *text) {
                snprintf(path, sizeof(path), "%s/omnidaemon/omnidaemon.sock", text);
                if (access(path, F_OK) == 0) {
                        return path;
                }
        }
        return "/run/omnidaemon/omnidaemon.sock";
}

int ctl_exit_code(int status) {
        switch (status) {
        case -ENOENT:
                return CTL_NOT_FOUND;
        case -ETIMEDOUT:
                return CTL_TIMEOUT;
        case -EACCES:
                return CTL_DENIED;
        case -EAGAIN:
        case -ENOBUFS:
                return CTL_UNAVAILABLE;
        case -ECONNREFUSED:
                return CTL_NO_DAEMON;
        default:
                return status < 0 ? CTL_FAILED : CTL_OK;
        }
}

int ctl_report(struct ctl *ctl, int status, const char *text) {
        return ctl_fail(ctl, ctl_exit_code(status), "%s", text && *text ? text : strerror(-status));
}

static int no_daemon(struct ctl *ctl, int status) {
        const char *why = status == -ENOENT ? "no such file"
                : status == -ECONNREFUSED   ? "nobody listens there"
                                            : omni_strerror(ctl->client);

        if (status == -EACCES) {
                return ctl_fail(ctl, CTL_DENIED,
                        "%s: permission denied; the daemon's group may connect: add yourself to the group of the socket", ctl_socket(ctl));
        }
        if (status == -EPROTO) {
                return ctl_fail(ctl, CTL_NO_DAEMON, "%s: %s", ctl_socket(ctl), omni_strerror(ctl->client));
        }
        return ctl_fail(ctl, CTL_NO_DAEMON,
                "no OmniDaemon at %s (%s): start one with \"omnidaemond\", or set OMNIDAEMON_SOCKET or --socket", ctl_socket(ctl), why);
}

static int make_client(struct ctl *ctl, int64_t connect_timeout_ms) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;

        if (ctl->client) {
                return 0;
        }
        options.socket_path = args_text(&ctl->args, "socket");
        options.client_name = "omnictl";
        options.connect_timeout_ms = connect_timeout_ms;
        options.call_timeout_ms = ctl->timeout_ms;
        return omni_new(&options, &ctl->client);
}

int ctl_connect(struct ctl *ctl) {
        int r = make_client(ctl, 0);

        if (r < 0) {
                return ctl_fail(ctl, CTL_FAILED, "cannot make a client: %s", strerror(-r));
        }
        r = omni_connect(ctl->client, 0);
        return r < 0 ? no_daemon(ctl, r) : 0;
}

int ctl_connect_patient(struct ctl *ctl, int64_t patience_ms) {
        int r = make_client(ctl, patience_ms);

        if (r < 0) {
                return ctl_fail(ctl, CTL_FAILED, "cannot make a client: %s", strerror(-r));
        }
        /* The first time somebody must be there: a mistyped socket is told at once. A millisecond is one attempt. */
        r = omni_connect(ctl->client, 1);
        if (r == -ETIMEDOUT) {
                r = omni_connect(ctl->client, ctl->timeout_ms);
        }
        return r < 0 ? no_daemon(ctl, r) : 0;
}

int ctl_call(struct ctl *ctl, const char *method, const char *params, char **ret, struct om_span *ret_text) {
        size_t len = 0;
        int r = ctl_connect(ctl);

        if (r) {
                return r;
        }
        r = omni_call(ctl->client, method, params, ret, &len);
        if (r < 0) {
                return ctl_report(ctl, r, omni_strerror(ctl->client));
        }
        *ret_text = (struct om_span){ *ret, len };
        return 0;
}

const char *ctl_text(struct om_buf *b) {
        char *p = om_buf_reserve(b, 1);

        if (!p || !om_buf_ok(b)) {
                return NULL;
        }
        *p = '\0';
        return b->data;
}

int ctl_call_buf(struct ctl *ctl, const char *method, struct om_buf *params, char **ret, struct om_span *ret_text) {
        const char *text = ctl_text(params);
        int r = text ? ctl_call(ctl, method, text, ret, ret_text) : ctl_fail(ctl, CTL_FAILED, "out of memory");

        om_buf_deinit(params);
        return r;
}

int ctl_call_text(struct ctl *ctl, const char *method, const char *name, const char *value, char **ret, struct om_span *ret_text) {
        struct om_buf params = OM_BUF_INIT;

        om_buf_putc(&params, '{');
        ctl_put_text(&params, name, value);
        om_buf_putc(&params, '}');
        return ctl_call_buf(ctl, method, &params, ret, ret_text);
}

/* -- pages --------------------------------------------------------------------------------------------------------- */

struct pages {
        const char *array;
        int64_t left;
        uint64_t got;
        char *cursor; /* of the next page; NULL: that was the last */
};

/* Appends one page's elements and keeps its cursor. */
static void take_page(struct pages *pages, struct om_span text, struct om_buf *ret) {
        struct om_json_value root = doc_root(text), cursor = doc_get(root, "cursor");
        struct doc_each each = doc_each(doc_get(root, pages->array));

        while (pages->left > 0 && doc_next(&each)) {
                if (pages->got++) {
                        om_buf_putc(ret, ',');
                }
                om_buf_put_span(ret, each.value.text);
                pages->left--;
        }
        free(pages->cursor);
        pages->cursor = doc_there(cursor) ? strndup(cursor.text.p, cursor.text.len) : NULL;
}

int ctl_call_pages(
        struct ctl *ctl, const char *method, const char *params, const char *array, int64_t limit, const char *cursor, struct om_buf *ret) {
        struct pages pages = { .array = array, .left = limit };
        struct progress progress;
        int r = 0;

        if (cursor) {
                struct om_buf quoted = OM_BUF_INIT;

                om_buf_json_string(&quoted, cursor, strlen(cursor));
                pages.cursor = om_buf_ok(&quoted) ? strndup(quoted.data, quoted.len) : NULL;
                om_buf_deinit(&quoted);
        }
        progress_begin(&progress, ctl, "fetching", limit == INT64_MAX ? 0 : (uint64_t) limit);
        om_buf_printf(ret, "{\"%s\":[", array);
        do {
                struct om_buf call = OM_BUF_INIT;
                struct om_span text = OM_SPAN_NONE;
                char *answer = NULL;

                om_buf_printf(&call, "{%s%s\"limit\":%" PRId64, params, *params ? "," : "", pages.left < PAGE_MAX ? pages.left : PAGE_MAX);
                ctl_put_raw(&call, "cursor", pages.cursor);
                om_buf_putc(&call, '}');
                r = ctl_call_buf(ctl, method, &call, &answer, &text);
                if (r == 0) {
                        take_page(&pages, text, ret);
                        progress_set(&progress, pages.got);
                }
                free(answer);
        } while (r == 0 && pages.cursor && pages.left > 0);
        progress_end(&progress);
        om_buf_putc(ret, ']');
        ctl_put_raw(ret, "cursor", pages.cursor);
        om_buf_putc(ret, '}');
        free(pages.cursor);
        return r || om_buf_ok(ret) ? r : ctl_fail(ctl, CTL_FAILED, "out of memory");
}

/* -- params -------------------------------------------------------------------------------------------------------- */

static void put_name(struct om_buf *b, const char *name) {
        char last = b->len ? b->data[b->len - 1] : '{';

        if (last != '{' && last != ',') {
                om_buf_putc(b, ',');
        }
        om_buf_printf(b, "\"%s\":", name);
}

void ctl_put_text(struct om_buf *b, const char *name, const char *value) {
        if (value) {
                put_name(b, name);
                om_buf_json_string(b, value, strlen(value));
        }
}

void ctl_put_int(struct om_buf *b, const char *name, int64_t value) {
        put_name(b, name);
        om_buf_i64(b, value);
}

void ctl_put_raw(struct om_buf *b, const char *name, const char *json) {
        if (json) {
                put_name(b, name);
                om_buf_puts(b, json);
        }
}
