/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon itself: health, backends, metrics, reload, version, and any method by name. */
#include "doc.h"
#include "input.h"
#include "text.h"
#include "view.h"
#include "../../proto/rpc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- health -------------------------------------------------------------------------------------------------------- */

enum { HEALTH_TITLES = sizeof("CONNECTIONS") - 1 }; /* the widest title below */

static const struct view_column health_columns[] = {
        { "STATUS", "status", VIEW_STATUS },
        { "WHY", "reasons", VIEW_LIST },
        { "VERSION", "version", VIEW_TEXT },
        { "PID", "pid", VIEW_NUMBER },
        { "UP", "uptime_s", VIEW_SECONDS },
        { "AGENTS", "agents", VIEW_NUMBER },
        { "CONNECTIONS", "connections", VIEW_NUMBER },
        { "MEMORY", "memory_bytes", VIEW_SIZE },
        { NULL, NULL, 0 },
};

/* "BUS      local  up  local:  durability strong": numbers of the backend's own are for --format json. */
static void put_part(struct ctl *ctl, const char *title, unsigned width, struct om_json_value part) {
        static const char *const first[] = { "name", "status", "url", NULL };
        struct doc_each each = doc_each(part);

        if (part.type != OM_JSON_OBJECT) {
                return;
        }
        ctl_style(ctl, &ctl->out, STYLE_HEAD);
        om_buf_puts(&ctl->out, title);
        ctl_style_end(ctl, &ctl->out);
        text_put_spaces(&ctl->out, width - strlen(title));
        for (size_t i = 0; first[i]; i++) {
                struct om_json_value v = doc_get(part, first[i]);

                if (doc_there(v)) {
                        om_buf_puts(&ctl->out, "  ");
                        ctl_style(ctl, &ctl->out, i == 1 ? view_status_style(v) : STYLE_NONE);
                        view_put_raw(&ctl->out, v);
                        ctl_style_end(ctl, &ctl->out);
                }
        }
        while (doc_next(&each)) {
                bool known =
                        om_json_string_is(each.key, "name") || om_json_string_is(each.key, "status") || om_json_string_is(each.key, "url");

                if (!known && each.value.type == OM_JSON_STRING) {
                        om_buf_puts(&ctl->out, "  ");
                        ctl_style(ctl, &ctl->out, STYLE_DIM);
                        view_put_raw(&ctl->out, each.key);
                        ctl_style_end(ctl, &ctl->out);
                        om_buf_putc(&ctl->out, ' ');
                        ctl_style(ctl, &ctl->out, view_status_style(each.value));
                        view_put_raw(&ctl->out, each.value);
                        ctl_style_end(ctl, &ctl->out);
                }
        }
        om_buf_putc(&ctl->out, '\n');
}

int cmd_health(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call(ctl, "health", NULL, &answer, &text);

        if (r == 0) {
                struct om_json_value root = doc_root(text), status = doc_get(root, "status");

                if (!ctl->quiet) {
                        view_record(ctl, text, health_columns);
                        if (ctl->format == FORMAT_TABLE) {
                                put_part(ctl, "BUS", HEALTH_TITLES, doc_get(root, "bus"));
                                put_part(ctl, "STORAGE", HEALTH_TITLES, doc_get(root, "storage"));
                        }
                }
                r = doc_is(status, "down") || doc_is(status, "stopping") ? CTL_FAILED : CTL_OK;
        }
        free(answer);
        return r;
}

/* -- backends ------------------------------------------------------------------------------------------------------ */

int cmd_backends(struct ctl *ctl) {
        static const struct view_column columns[] = { { "NAME", "name", VIEW_ID }, { "IN USE", "in_use", VIEW_YES },
                { "INSTALLED", "installed", VIEW_YES }, { "SCHEMES", "schemes", VIEW_LIST }, { "CAN", "capabilities", VIEW_LIST },
                { "WHAT", "doc", VIEW_TEXT }, { NULL, NULL, 0 } };
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call(ctl, "backends", NULL, &answer, &text);

        if (r == 0 && ctl->format == FORMAT_COMPACT) {
                view_list(ctl, text, "buses", columns, "");
                view_list(ctl, text, "storages", columns, "");
        } else if (r == 0 && !view_plain(ctl, text, NULL, NULL)) {
                ctl_style(ctl, &ctl->out, STYLE_NAME);
                om_buf_puts(&ctl->out, "Event buses");
                ctl_style_end(ctl, &ctl->out);
                om_buf_putc(&ctl->out, '\n');
                view_list(ctl, text, "buses", columns, "none");
                om_buf_putc(&ctl->out, '\n');
                ctl_style(ctl, &ctl->out, STYLE_NAME);
                om_buf_puts(&ctl->out, "Storages");
                ctl_style_end(ctl, &ctl->out);
                om_buf_putc(&ctl->out, '\n');
                view_list(ctl, text, "storages", columns, "none");
                if (memmem(text.p, text.len, "\"installed\":false", strlen("\"installed\":false"))) {
                        om_buf_putc(&ctl->out, '\n');
                        ctl_style(ctl, &ctl->out, STYLE_DIM);
                        om_buf_puts(&ctl->out, "omnictl backends --format tree says what installs the others, and the settings of each.");
                        ctl_style_end(ctl, &ctl->out);
                        om_buf_putc(&ctl->out, '\n');
                }
        }
        free(answer);
        return r;
}

/* -- metrics ------------------------------------------------------------------------------------------------------- */

static const struct view_column metrics_topics[] = {
        { "TOPIC", "topic", VIEW_ID },
        { "PUBLISHED", "published", VIEW_NUMBER },
        { "DELIVERED", "delivered", VIEW_NUMBER },
        { "DONE", "acked", VIEW_NUMBER },
        { "FAILED", "failed", VIEW_BAD },
        { "RETRIED", "retried", VIEW_NUMBER },
        { "DEAD", "dead", VIEW_BAD },
        { "EXPIRED", "expired", VIEW_NUMBER },
        { NULL, NULL, 0 },
};
static const struct view_column metrics_agents[] = {
        { "TOPIC", "topic", VIEW_ID },
        { "AGENT", "agent", VIEW_ID },
        { "RECEIVED", "received", VIEW_NUMBER },
        { "DONE", "processed", VIEW_NUMBER },
        { "FAILED", "failed", VIEW_BAD },
        { "DEAD", "dead", VIEW_BAD },
        { "P50", "latency_ms.p50", VIEW_MS },
        { "P99", "latency_ms.p99", VIEW_MS },
        { "P99.9", "latency_ms.p999", VIEW_MS },
        { "MAX", "latency_ms.max", VIEW_MS },
        { NULL, NULL, 0 },
};

static const struct view_column metrics_daemon[] = {
        { "DAEMON UP", "uptime_s", VIEW_SECONDS },
        { "CONNECTIONS SINCE", "connections", VIEW_NUMBER },
        { "REQUESTS", "requests", VIEW_NUMBER },
        { "ERRORS", "errors", VIEW_NUMBER },
        { "RECEIVED", "bytes_in", VIEW_SIZE },
        { "SENT", "bytes_out", VIEW_SIZE },
        { NULL, NULL, 0 },
};

int cmd_metrics(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call_text(ctl, "metrics.get", "topic", args_text(&ctl->args, "topic"), &answer, &text);

        if (r == 0 && ctl->format == FORMAT_COMPACT) {
                view_list(ctl, text, "agents", metrics_agents, "");
        } else if (r == 0 && !view_plain(ctl, text, NULL, NULL)) {
                view_list(ctl, text, "topics", metrics_topics, "No tasks yet.");
                om_buf_putc(&ctl->out, '\n');
                view_list(ctl, text, "agents", metrics_agents, "No agents yet.");
                om_buf_putc(&ctl->out, '\n');
                view_list(ctl, text, "daemon", metrics_daemon, "");
        }
        free(answer);
        return r;
}

/* -- the rest ------------------------------------------------------------------------------------------------------ */

int cmd_reload(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call(ctl, "daemon.reload", NULL, &answer, &text);
        static const struct view_column columns[] = { { "CHANGED", "changed", VIEW_LIST },
                { "NEED A RESTART", "restart_needed", VIEW_LIST }, { NULL, NULL, 0 } };

        if (r == 0) {
                struct om_json_value root = doc_root(text);

                if (ctl->format == FORMAT_TABLE && !doc_count(doc_get(root, "changed")) && !doc_count(doc_get(root, "restart_needed"))) {
                        ctl_say(ctl, "Nothing changed.");
                } else {
                        view_record(ctl, text, columns);
                }
        }
        free(answer);
        return r;
}

int cmd_version(struct ctl *ctl) {
        struct om_json_value root;
        omni_client *client = NULL;
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        char *answer = NULL;
        size_t len = 0;

        options.socket_path = args_text(&ctl->args, "socket");
        options.connect_timeout_ms = 0; /* a version is asked for where there may be no daemon: that is no failure here */
        options.call_timeout_ms = 2000;
        if (omni_new(&options, &client) < 0 || omni_connect(client, 0) < 0 || omni_call(client, "health", NULL, &answer, &len) < 0) {
                answer = NULL;
        }
        root = doc_root((struct om_span){ answer ? answer : "", answer ? len : 0 });
        if (ctl->format == FORMAT_JSON) {
                om_buf_printf(&ctl->out, "{\"client\":\"%s\",\"daemon\":", omni_version());
                if (root.type) {
                        doc_put_line(&ctl->out, doc_get(root, "version"), 0);
                } else {
                        om_buf_puts(&ctl->out, "null");
                }
                om_buf_puts(&ctl->out, "}\n");
        } else {
                om_buf_printf(&ctl->out, "%s %s\n", ctl->program, omni_version());
                if (root.type) {
                        om_buf_puts(&ctl->out, "omnidaemond ");
                        view_put_raw(&ctl->out, doc_get(root, "version"));
                        om_buf_puts(&ctl->out, ", bus ");
                        view_put_raw(&ctl->out, doc_get(root, "bus.name"));
                        om_buf_puts(&ctl->out, ", storage ");
                        view_put_raw(&ctl->out, doc_get(root, "storage.name"));
                        om_buf_putc(&ctl->out, '\n');
                } else {
                        om_buf_printf(&ctl->out, "no daemon at %s\n", ctl_socket(ctl));
                }
        }
        free(answer);
        omni_free(client);
        return 0;
}

int cmd_call(struct ctl *ctl) {
        const char *params = args_text(&ctl->args, "params");
        struct om_buf input = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = 0;

        if (params && strcmp(params, "-") == 0) {
                r = input_read_file("-", &input);
                params = ctl_text(&input);
        }
        if (r < 0 || (params && om_json_check(om_span_of(params), OM_DEPTH_MAX - 2, &e) < 0)) {
                r = ctl_usage(ctl, "PARAMS: %s", r < 0 ? strerror(-r) : e.message);
        } else {
                r = ctl_call(ctl, args_text(&ctl->args, "method"), params, &answer, &text);
        }
        if (r == 0 && ctl->format == FORMAT_TREE) {
                view_put_tree(ctl, doc_root(text));
        } else if (r == 0 && ctl->format == FORMAT_COMPACT) {
                doc_put_line(&ctl->out, doc_root(text), DOC_SAFE);
                om_buf_putc(&ctl->out, '\n');
        } else if (r == 0) {
                view_put_json(ctl, doc_root(text));
        }
        free(answer);
        om_buf_deinit(&input);
        return r;
}
