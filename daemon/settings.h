/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SETTINGS_H
#define OM_SETTINGS_H
/*
 * The daemon's settings: one table (settings_table.c) of name, type, default, doc and whether it can be reloaded. It reads flags,
 * environment and file, and prints --help, --check, conf/omnidaemond.conf and the man page. Precedence, for each setting: flag >
 * environment > file > default. A setting EVENT_BUS_URL is the flag --event-bus-url.
 *
 * The file is the one of --config, else of $OMNIDAEMON_CONFIG, else as a service /etc/omnidaemon/omnidaemond.conf, else `.env` in the
 * working folder; the last two only if they exist. An unknown name in it is an error; in `.env`, which other programs share, only one that
 * is a single slip away from a setting or starts with OMNIDAEMON_. Such a name in the environment is noted in the log.
 *
 * "As a service" means: started by a service manager ($SYSTEMD_EXEC_PID is this process, or $NOTIFY_SOCKET is set). $INVOCATION_ID alone
 * does not say so: every shell inside a service has it.
 *
 * The names of the Python OmniDaemon are understood too (EVENT_BUS_TYPE with REDIS_URL, STORAGE_BACKEND with JSON_STORAGE_DIR …) and become
 * event_bus_url and storage_url; a URL setting beats them when both stand at the same level or it stands above.
 *
 * Loop thread; read-only for everyone but reload.
 */
#include <stdio.h>

#include "../backends/options.h"

struct om_settings {
        char *event_bus_url, *storage_url;             /* never NULL */
        char *result_storage_url, *storage_backup_url; /* NULL: none */
        char *socket_path;
        char *state_dir;
        char *module_dir;   /* NULL: beside the program */
        char *socket_group; /* NULL: unchanged */
        char *log_target, *log_level;
        int64_t socket_mode; /* 0660 */
        int64_t max_connections, max_frame_bytes;
        int64_t prefetch, dlq_retry_limit, retry_backoff_ms, retry_backoff_max_ms, reclaim_idle_ms;
        int64_t result_ttl_ms, idempotency_window_ms;
        int64_t storage_queue_bytes, storage_copy_rate;
        int64_t publish_timeout_ms, call_timeout_ms; /* the core's deadlines for a bus and a storage */
        int64_t stop_grace_ms, metrics_interval_ms;
        int64_t stalled_client_ms, slow_client_ms, session_output_bytes, session_total_bytes;
        void *more; /* settings.c's: sources, strings */
};

struct om_flags { /* flags that are no settings */
        bool help, version, check, print_conf, print_man, print_backends;
        const char *config_path; /* --config, or NULL: the default places */
};
/*
 * Reads everything. `env` as environ(7); argv and env are borrowed until om_settings_free(). With help, version, print_conf or print_man
 * nothing else is read and *ret is NULL. -EINVAL, -ENOENT …: `e` names the setting, where it stands, and what it may be.
 */
int om_settings_read(int argc, char **argv, char **env, struct om_flags *ret_flags, struct om_settings **ret, struct om_error *e);
void om_settings_free(struct om_settings *s);

/*
 * Reads the sources again; the new settings are in *ret, with the old values of what cannot be reloaded. Names (NULL-terminated, the
 * caller's to free as one block) of what changed and took effect, and of what needs a restart. On failure nothing is touched.
 */
int om_settings_reload(
        const struct om_settings *now, struct om_settings **ret, const char ***ret_changed, const char ***ret_restart, struct om_error *e);

/* Exchanges what two structs hold, so that those who point to one of them see the other's values. */
void om_settings_swap(struct om_settings *a, struct om_settings *b);

/* Whether the URLs name a bus and a storage that are known and installed, with parameters that they know. Connects nothing. */
int om_settings_check_urls(const struct om_settings *s, struct om_error *e);

/* Where a setting comes from: "default", "flag", "environment", "file X line N"; NULL for a name that is none. */
const char *om_settings_source(const struct om_settings *s, const char *name);
/* The file that was read, NULL if none. Whether a service manager started us. */
const char *om_settings_file(const struct om_settings *s);
bool om_settings_service(const struct om_settings *s);
/* What the log should say of the settings, line by line: *at is NULL at first; NULL is the end. */
const char *om_settings_next_note(const struct om_settings *s, const char *at);

/* -- as text (settings_print.c, settings_help.c) ------------------------------------------------------------------- */
void om_settings_print_check(const struct om_settings *s, FILE *out); /* what is in force and where it comes from; secrets as *** */
void om_settings_print_conf(FILE *out);                               /* conf/omnidaemond.conf */
void om_settings_print_help(FILE *out, unsigned width);
void om_settings_print_man(FILE *out); /* packaging/man/omnidaemond.8 */

#endif
