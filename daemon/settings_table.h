/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SETTINGS_TABLE_H
#define OM_SETTINGS_TABLE_H
/*
 * What the settings*.c share: the table, and what was read for each of its rows. No other file includes this.
 *
 *   settings_table.c    the rows: name, type, default, doc
 *   settings.c          who wins: flag > environment > file > default; values into struct om_settings; reload
 *   settings_file.c     the file's syntax
 *   settings_compose.c  values that follow from others: defaults that depend on where we run, URL files, the names of the Python OmniDaemon
 *   settings_print.c    --check and conf/omnidaemond.conf
 *   settings_help.c     --help and the man page
 */
#include <stdio.h>

#include "settings.h"

enum om_setting_group {
        OM_GROUP_PLACES, /* bus, storage, files */
        OM_GROUP_SOCKET,
        OM_GROUP_AGENTS,
        OM_GROUP_TASKS,
        OM_GROUP_LIMITS,
        OM_GROUP_LOG,
        OM_GROUP_PYTHON,
        OM_GROUPS,
};
extern const char *const om_setting_group_titles[OM_GROUPS];

#define OM_NO_FIELD SIZE_MAX
struct om_setting {
        struct om_option option; /* the field is in struct om_settings, OM_NO_FIELD: only other settings are made from it. An ENUM's field
                                    is a char * that gets the choice. default_text NULL: unset, or made by settings_compose.c */
        const char *alias;       /* another name for it, read from environment and file; beats the name */
        const char *doc;         /* a sentence or three */
        const char *value_name;  /* what --help writes for the value */
        const char *default_doc; /* the default in words, where default_text is not the whole truth */
        enum om_setting_group group;
        bool reloadable; /* takes effect on SIGHUP; whoever uses it reads struct om_settings each time */
        bool octal;      /* an OM_OPTION_INT written as file modes are */
        bool url;        /* may hold a password */
};

enum om_setting_id {
        OM_SET_EVENT_BUS_URL,
        OM_SET_STORAGE_URL,
        OM_SET_EVENT_BUS_URL_FILE,
        OM_SET_STORAGE_URL_FILE,
        OM_SET_RESULT_STORAGE_URL,
        OM_SET_RESULT_STORAGE_URL_FILE,
        OM_SET_STORAGE_BACKUP_URL,
        OM_SET_STORAGE_BACKUP_URL_FILE,
        OM_SET_STORAGE_QUEUE_BYTES,
        OM_SET_STORAGE_COPY_RATE,
        OM_SET_STATE_DIR,
        OM_SET_MODULE_DIR,
        OM_SET_SOCKET_PATH,
        OM_SET_SOCKET_MODE,
        OM_SET_SOCKET_GROUP,
        OM_SET_PREFETCH,
        OM_SET_DLQ_RETRY_LIMIT,
        OM_SET_RETRY_BACKOFF,
        OM_SET_RETRY_BACKOFF_MAX,
        OM_SET_RECLAIM_IDLE,
        OM_SET_RESULT_TTL,
        OM_SET_IDEMPOTENCY_WINDOW,
        OM_SET_PUBLISH_TIMEOUT,
        OM_SET_CALL_TIMEOUT,
        OM_SET_STOP_GRACE,
        OM_SET_METRICS_INTERVAL,
        OM_SET_MAX_CONNECTIONS,
        OM_SET_MAX_FRAME_BYTES,
        OM_SET_SESSION_OUTPUT_BYTES,
        OM_SET_SESSION_TOTAL_BYTES,
        OM_SET_STALLED_CLIENT,
        OM_SET_SLOW_CLIENT,
        OM_SET_LOG_LEVEL,
        OM_SET_LOG_TARGET,
        OM_SET_EVENT_BUS_TYPE,
        OM_SET_STORAGE_BACKEND,
        OM_SET_RESULT_STORAGE,
        OM_SET_STORAGE_BACKEND_BACKUP,
        OM_SET_REDIS_URL,
        OM_SET_REDIS_KEY_PREFIX,
        OM_SET_REDIS_STREAM_MAXLEN,
        OM_SET_KAFKA_SERVERS,
        OM_SET_RABBITMQ_URL,
        OM_SET_NATS_URL,
        OM_SET_JSON_STORAGE_DIR,
        OM_SET_POSTGRES_URL,
        OM_SET_MONGODB_URI,
        OM_SET_S3_BUCKET,
        OM_SET_S3_REGION,
        OM_SET_S3_ENDPOINT,
        OM_SET_S3_REPLICA_URL,
        OM_SET_S3_MANAGE_LIFECYCLE,
        OM_SETTINGS,
};
extern const struct om_setting om_settings_table[OM_SETTINGS];

/* Names that are ours and no settings of the daemon: of clients, of the tests of --config, of what the Python OmniDaemon has and we lack.
 */
struct om_foreign_name {
        const char *name;
        const char *note; /* NULL: nothing to say */
};
extern const struct om_foreign_name om_foreign_names[];

/* -- what was read ------------------------------------------------------------------------------------------------- */

enum om_level_of_setting { OM_FROM_NOWHERE, OM_FROM_DEFAULT, OM_FROM_FILE, OM_FROM_ENVIRONMENT, OM_FROM_FLAG };

struct om_setting_value {
        enum om_level_of_setting level;
        const char *text;   /* NULL: not set. In the arena, or static */
        const char *source; /* for people: "default", "environment", "file X line N", "flag" */
        bool used;          /* a row without a field: something was made from it */
};

struct om_settings_more {
        struct om_arena arena; /* all strings */
        struct om_setting_value values[OM_SETTINGS];
        struct om_buf notes; /* zero-terminated lines, one after the other */
        const char *file;    /* what was read; NULL: no file */
        bool strict_file;    /* every unknown name in it is an error */
        bool service;        /* started by a service manager */
        int argc;            /* the caller's, for a reload */
        char **argv, **env;
        struct om_flags flags;
};
static inline struct om_settings_more *om_more(const struct om_settings *s) { return s->more; }

/* A formatted string in the arena; NULL when out of memory. */
const char *om_settings_format(struct om_settings_more *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Adds a line that the daemon logs at its start. */
void om_settings_note(struct om_settings_more *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* getenv() in m->env; empty is unset. */
const char *om_settings_getenv(const struct om_settings_more *m, const char *name);
/* Keeps `text` for a row unless a higher level did; a copy is made. -ENOMEM. */
int om_settings_keep(struct om_settings_more *m, enum om_setting_id id, enum om_level_of_setting level, const char *text,
        const char *source, struct om_error *e);
/* The row called `name` (or by its alias, *ret_alias then), or -1. */
int om_settings_find(const char *name, bool *ret_alias);
/* The flag of a row, "--event-bus-url", into `out`. */
const char *om_settings_flag(enum om_setting_id id, char out[48]);
/* Refuses a name that is no setting (strict), or only one that looks like a slip (not strict). 0: let it pass. `warn`: a note, never an
 * error. */
int om_settings_unknown(struct om_settings_more *m, const char *name, bool strict, bool warn, const char *where, struct om_error *e);

bool om_settings_is_file(const char *path); /* exists, and is no folder (a Python environment may be called .env) */
/* Reads a whole file of text. Fills `e` with its path. */
int om_settings_slurp(const char *path, struct om_buf *out, struct om_error *e);

/* Reads m->file, when there is one. */
int om_settings_read_file(struct om_settings_more *m, struct om_error *e);
/* Makes what follows from other values; afterwards every row with a field has a text, but SOCKET_GROUP and MODULE_DIR. */
int om_settings_compose(struct om_settings_more *m, struct om_error *e);

#endif
