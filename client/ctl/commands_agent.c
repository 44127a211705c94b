/* SPDX-License-Identifier: Apache-2.0 */
/* agent list|get|pause|resume|delete and topic delete. `agent run` is run.c. */
#include "doc.h"
#include "view.h"

#include <inttypes.h>
#include <stdlib.h>

static const struct view_column list_columns[] = {
        { "TOPIC", "topic", VIEW_ID },
        { "NAME", "name", VIEW_ID },
        { "WORKERS", "workers", VIEW_NUMBER },
        { "LEASED", "leased", VIEW_NUMBER },
        { "PAUSED", "paused", VIEW_YES },
        { "TOOLS", "tools", VIEW_LIST },
        { "DESCRIPTION", "description", VIEW_TEXT },
        { "CREATED", "created_at", VIEW_TIME },
        { NULL, NULL, 0 },
};
static const struct view_column record_columns[] = {
        { "TOPIC", "topic", VIEW_ID },
        { "NAME", "name", VIEW_ID },
        { "GROUP", "group", VIEW_TEXT },
        { "DESCRIPTION", "description", VIEW_TEXT },
        { "TOOLS", "tools", VIEW_LIST },
        { "WORKERS", "workers", VIEW_NUMBER },
        { "LEASED", "leased", VIEW_NUMBER },
        { "PAUSED", "paused", VIEW_YES },
        { "CREATED", "created_at", VIEW_TIME },
        { "CONFIG", "config", VIEW_JSON },
        { NULL, NULL, 0 },
};

int cmd_agent_list(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_call_text(ctl, "agent.list", "topic", args_text(&ctl->args, "topic"), &answer, &text);

        if (r == 0) {
                view_list(
                        ctl, text, "agents", list_columns, "No agents. Start one: omnictl agent run --topic TOPIC --name NAME -- PROGRAM");
        }
        free(answer);
        return r;
}

static bool is_number(const char *text) { return *text && text[strspn(text, "0123456789.")] == '\0'; }

/* A method about one agent; its answer, where somebody wants it. */
static int call_agent(struct ctl *ctl, const char *method, bool dead_letters, char **ret, struct om_span *ret_text) {
        struct om_buf params = OM_BUF_INIT;

        om_buf_putc(&params, '{');
        ctl_put_text(&params, "topic", args_text(&ctl->args, "topic"));
        ctl_put_text(&params, "name", args_text(&ctl->args, "name"));
        ctl_put_raw(&params, "delete_dead_letters", dead_letters ? "true" : NULL);
        if (args_has(&ctl->args, "to")) {
                const char *to = args_text(&ctl->args, "to");

                (is_number(to) ? ctl_put_raw : ctl_put_text)(&params, "start", to);
        }
        om_buf_putc(&params, '}');
        return ctl_call_buf(ctl, method, &params, ret, ret_text);
}

int cmd_agent_get(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = call_agent(ctl, "agent.get", false, &answer, &text);

        if (r == 0) {
                view_record(ctl, text, record_columns);
        }
        free(answer);
        return r;
}

/* What was done, for people; the daemon's answer where JSON was asked for by name. */
static int act(struct ctl *ctl, const char *method, const char *done) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = call_agent(ctl, method, args_has(&ctl->args, "dead-letters"), &answer, &text);

        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, doc_root(text));
        } else if (r == 0) {
                ctl_say(ctl, "%s %s on %s.", done, args_text(&ctl->args, "name"), args_text(&ctl->args, "topic"));
        }
        free(answer);
        return r;
}

int cmd_agent_pause(struct ctl *ctl) { return act(ctl, "agent.pause", "Paused"); }

int cmd_agent_resume(struct ctl *ctl) { return act(ctl, "agent.resume", "Resumed"); }

/* What all have finished is gone where the bus keeps it no longer: without a word it would look as if nothing had happened. */
static void say_sought(struct ctl *ctl, struct om_span answer) {
        int64_t tasks = doc_int(doc_get(doc_root(answer), "tasks"), -1);
        const char *name = args_text(&ctl->args, "name"), *topic = args_text(&ctl->args, "topic");

        if (tasks < 0) {
                ctl_say(ctl, "Started again: %s on %s.", name, topic);
        } else if (tasks == 0 && strcmp(args_text(&ctl->args, "to"), "new") != 0) {
                ctl_say(ctl,
                        "Started again: %s on %s. No task comes: from there on the bus has none. It keeps what all agents have finished "
                        "for retention_ms in its URL.",
                        name, topic);
        } else {
                ctl_say(ctl, "Started again: %s on %s. %" PRId64 " task%s.", name, topic, tasks, tasks == 1 ? " comes" : "s come");
        }
}

int cmd_agent_seek(struct ctl *ctl) {
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_confirm(ctl, "Take what %s on %s holds from its workers, and start again at %s?", args_text(&ctl->args, "name"),
                args_text(&ctl->args, "topic"), args_text(&ctl->args, "to"));

        if (r == 0) {
                r = call_agent(ctl, "agent.seek", false, &answer, &text);
        }
        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, doc_root(text));
        } else if (r == 0) {
                say_sought(ctl, text);
        }
        free(answer);
        return r;
}

int cmd_agent_delete(struct ctl *ctl) {
        int r = ctl_confirm(ctl, "Delete the agent %s on %s%s?", args_text(&ctl->args, "name"), args_text(&ctl->args, "topic"),
                args_has(&ctl->args, "dead-letters") ? ", and its dead letters" : "");

        return r ? r : act(ctl, "agent.delete", "Deleted");
}

int cmd_topic_delete(struct ctl *ctl) {
        const char *topic = args_text(&ctl->args, "topic");
        struct om_buf params = OM_BUF_INIT;
        struct om_span text = OM_SPAN_NONE;
        char *answer = NULL;
        int r = ctl_confirm(ctl, "Delete the topic %s with its tasks and its agents%s?", topic,
                args_has(&ctl->args, "dead-letters") ? ", and their dead letters" : "");

        if (r) {
                return r;
        }
        om_buf_putc(&params, '{');
        ctl_put_text(&params, "topic", topic);
        ctl_put_raw(&params, "delete_dead_letters", args_has(&ctl->args, "dead-letters") ? "true" : NULL);
        om_buf_putc(&params, '}');
        r = ctl_call_buf(ctl, "topic.delete", &params, &answer, &text);
        if (r == 0 && ctl->format_given && ctl->format == FORMAT_JSON) {
                view_put_json(ctl, doc_root(text));
        } else if (r == 0) {
                struct om_json_value root = doc_root(text);

                ctl_say(ctl, "Deleted %s: %" PRId64 " tasks, %" PRId64 " agents.", topic, doc_int(doc_get(root, "tasks"), 0),
                        doc_int(doc_get(root, "agents"), 0));
        }
        free(answer);
        return r;
}
