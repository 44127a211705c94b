/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_H
#define OM_CTL_H
/*
 * What every command of omnictl is given, and what it may call.
 *
 * A command is a row of the table in commands.c: a function that reads its arguments (args.h), calls the daemon (call.c) and puts what came
 * into ctl->out (view.h). main.c writes that out: once, or again and again with --watch. One thread; nothing here is shared.
 */
#include "../../proto/buf.h"
#include "../../proto/error.h"
#include "../../proto/json_scan.h"
#include "../c/omniclient.h"
#include "args.h"

/* Exit codes: told in --help and in the man page (help.c), so that scripts can rely on them. */
enum {
        CTL_OK = 0,
        CTL_FAILED = 1,      /* the daemon said no, the task failed, or something broke on the way */
        CTL_USAGE = 2,       /* the command line is wrong, or a confirmation is missing */
        CTL_NO_DAEMON = 3,   /* nobody answers at the socket */
        CTL_NOT_FOUND = 4,   /* no such task, agent, topic, key … */
        CTL_TIMEOUT = 5,     /* it did not come in time */
        CTL_DENIED = 6,      /* not allowed for this user */
        CTL_UNAVAILABLE = 7, /* a server is away or something is full: the same command may work later */
};

enum ctl_format { FORMAT_TABLE, FORMAT_JSON, FORMAT_COMPACT, FORMAT_TREE, FORMAT_CSV /* with CMD_CSV */ };

enum ctl_style { STYLE_NONE, STYLE_HEAD, STYLE_DIM, STYLE_GOOD, STYLE_WARN, STYLE_BAD, STYLE_NAME };

struct ctl {
        const char *program; /* "omnictl" or "omnidaemon", as it was called */
        struct args args;
        omni_client *client; /* made at the first call */

        struct om_buf out; /* what the command has to say on standard output */
        enum ctl_format format;
        bool format_given; /* --format stood on the command line */
        bool out_tty, err_tty;
        bool color, err_color, ascii; /* ascii: the locale asks for no UTF-8, so lines and dots are drawn with ASCII */
        bool quiet, yes;
        unsigned width;       /* columns of the terminal; 0 where standard output is none */
        int64_t timeout_ms;   /* of one call */
        int64_t watch_ms;     /* --watch: 0 without */
        double now;           /* Unix time at which this frame began: what "3 min ago" counts from */
        const char *last_sgr; /* what the last ctl_style() must be ended with; NULL for nothing */
};

/* -- call.c: the daemon -------------------------------------------------------------------------------------------- */

/* Connects when that has not been done. 0, or an exit code with the reason told on standard error. */
int ctl_connect(struct ctl *ctl);
/* The same for a command that goes on for longer: once connected, its calls wait up to `patience_ms` (-1: for ever) for a daemon that went
 * away. */
int ctl_connect_patient(struct ctl *ctl, int64_t patience_ms);
/* Calls `method`; *ret (free()) is its result as JSON. 0, or an exit code with the reason told. */
int ctl_call(struct ctl *ctl, const char *method, const char *params, char **ret, struct om_span *ret_text);
/* The same, its params built in `params` (which is emptied). */
int ctl_call_buf(struct ctl *ctl, const char *method, struct om_buf *params, char **ret, struct om_span *ret_text);
/* The same with one param, a text; none where it is NULL. */
int ctl_call_text(struct ctl *ctl, const char *method, const char *name, const char *value, char **ret, struct om_span *ret_text);
/*
 * Calls a method that answers in pages until `limit` elements are there (INT64_MAX: all) and joins the pages into one object in `ret`:
 * {"ARRAY":[…],"cursor":…}. `params` are members of an object without braces, "" for none. 0 or an exit code.
 */
int ctl_call_pages(
        struct ctl *ctl, const char *method, const char *params, const char *array, int64_t limit, const char *cursor, struct om_buf *ret);
/* Says on standard error why a call failed (a negative errno, its text) and returns the exit code for it. */
int ctl_report(struct ctl *ctl, int status, const char *text);
int ctl_exit_code(int status);
/* Where the daemon's socket is looked for: what was given, or what the library finds by itself. Static or the caller's text. */
const char *ctl_socket(struct ctl *ctl);

/* -- say.c: standard error, and questions -------------------------------------------------------------------------- */

/* "PROGRAM: message" on standard error, control characters made visible. Returns `code`. */
int ctl_fail(struct ctl *ctl, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same for a wrong command line, with where to read on. Returns CTL_USAGE. */
int ctl_usage(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A remark on standard error; nothing with --quiet. */
void ctl_note(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One line on standard output saying what was done; nothing with --quiet. In JSON: {"done": …} is the command's own business. */
void ctl_say(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Asks on the terminal whether to do what destroys. 0 for yes; else an exit code: without a terminal --yes is required. */
int ctl_confirm(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Writes ctl->out to standard output and empties it. 0, or CTL_FAILED with the reason told. */
int ctl_flush(struct ctl *ctl);

/* Appends the escape sequence of a style, or of its end; nothing where colour is off. */
void ctl_style(struct ctl *ctl, struct om_buf *b, enum ctl_style style);
void ctl_style_end(struct ctl *ctl, struct om_buf *b);

/* Appends `"name":` and a string to an object that is being written, with a comma where something stands before; NULL writes nothing. */
void ctl_put_text(struct om_buf *b, const char *name, const char *value);
void ctl_put_int(struct om_buf *b, const char *name, int64_t value);
void ctl_put_raw(struct om_buf *b, const char *name, const char *json);
/* Zero-terminates a buffer; NULL when memory ran out. */
const char *ctl_text(struct om_buf *b);

/* -- the commands -------------------------------------------------------------------------------------------------- */
extern const struct option ctl_global_options[];
extern const struct command ctl_commands[];

int cmd_help(struct ctl *ctl);
int cmd_version(struct ctl *ctl);
int cmd_completion(struct ctl *ctl);
int cmd_complete(struct ctl *ctl);
int cmd_man(struct ctl *ctl);
int cmd_health(struct ctl *ctl);
int cmd_backends(struct ctl *ctl);
int cmd_metrics(struct ctl *ctl);
int cmd_reload(struct ctl *ctl);
int cmd_call(struct ctl *ctl);
int cmd_top(struct ctl *ctl);
int cmd_watch(struct ctl *ctl);
int cmd_agent_list(struct ctl *ctl);
int cmd_agent_get(struct ctl *ctl);
int cmd_agent_pause(struct ctl *ctl);
int cmd_agent_resume(struct ctl *ctl);
int cmd_agent_seek(struct ctl *ctl);
int cmd_agent_delete(struct ctl *ctl);
int cmd_agent_run(struct ctl *ctl);
int cmd_topic_delete(struct ctl *ctl);
int cmd_task_publish(struct ctl *ctl);
int cmd_task_get(struct ctl *ctl);
int cmd_task_list(struct ctl *ctl);
int cmd_task_search(struct ctl *ctl);
int cmd_task_delete(struct ctl *ctl);
int cmd_bus_topics(struct ctl *ctl);
int cmd_bus_inspect(struct ctl *ctl);
int cmd_bus_groups(struct ctl *ctl);
int cmd_bus_stats(struct ctl *ctl);
int cmd_bus_configure(struct ctl *ctl);
int cmd_dlq_list(struct ctl *ctl);
int cmd_dlq_show(struct ctl *ctl);
int cmd_dlq_replay(struct ctl *ctl);
int cmd_dlq_purge(struct ctl *ctl);
int cmd_storage_health(struct ctl *ctl);
int cmd_storage_clear(struct ctl *ctl);
int cmd_storage_clear_agents(struct ctl *ctl);
int cmd_storage_clear_results(struct ctl *ctl);
int cmd_storage_clear_metrics(struct ctl *ctl);
int cmd_storage_clear_all(struct ctl *ctl);
int cmd_storage_query(struct ctl *ctl);
int cmd_storage_migrate(struct ctl *ctl);
int cmd_storage_status(struct ctl *ctl);
int cmd_storage_verify(struct ctl *ctl);
int cmd_storage_switch(struct ctl *ctl);
int cmd_storage_abort(struct ctl *ctl);
int cmd_storage_export(struct ctl *ctl);
int cmd_storage_import(struct ctl *ctl);
int cmd_config_get(struct ctl *ctl);
int cmd_config_set(struct ctl *ctl);
int cmd_config_list(struct ctl *ctl);
int cmd_config_delete(struct ctl *ctl);

#endif
