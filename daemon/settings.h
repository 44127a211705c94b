/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_SETTINGS_H
#define OM_SETTINGS_H
/*
 * The daemon's settings: one table (settings.c) of name, type, default, doc and whether it can be reloaded. It reads flags, environment and
 * file, and prints --help,
 * --check, conf/omnidaemond.conf and the man page. Precedence: flag > environment > file > default. A setting EVENT_BUS_URL is the flag
 * --event-bus-url.
 *
 * The names of the Python OmniDaemon are understood too (EVENT_BUS_TYPE with REDIS_URL, STORAGE_BACKEND with JSON_STORAGE_DIR …) and become
 * event_bus_url and storage_url; a URL setting beats them when both stand at the same level or it stands above.
 *
 * Loop thread; read-only for everyone but reload.
 */
#include "../backends/options.h"

struct om_settings {
        char *event_bus_url, *storage_url; /* never NULL */
        char *socket_path;
        char *state_dir;
        char *socket_group; /* NULL: unchanged */
        char *log_target, *log_level;
        int64_t socket_mode; /* 0660 */
        int64_t max_connections, max_frame_bytes;
        int64_t prefetch, dlq_retry_limit, retry_backoff_ms, retry_backoff_max_ms, reclaim_idle_ms;
        int64_t result_ttl_ms, idempotency_window_ms;
        int64_t publish_timeout_ms, call_timeout_ms; /* the core's deadlines for a bus and a storage */
        int64_t stop_grace_ms, stalled_client_ms, session_output_bytes, metrics_interval_ms;
        void *more; /* settings.c's: sources, strings */
};

struct om_settings_source { /* of one setting, for --check and `config` */
        const char *name;
        const char *source; /* "default", "environment", "file X line N", "flag" */
};

/* Reads everything. argv's flags that are no settings (--help, --version, --check, --config FILE) are main's: see settings.c's om_flags.
 * `env` as environ(7). */
struct om_flags {
        bool help, version, check, print_conf, print_man;
        const char *config_path; /* --config, or NULL: the default places */
};
int om_settings_read(int argc, char **argv, char **env, struct om_flags *ret_flags, struct om_settings **ret, struct om_error *e);
void om_settings_free(struct om_settings *s);

/* Reads the sources again; the new settings are in *ret. Names (NULL-terminated, the caller's to free as one block) of what changed and
 * took effect, and of what needs a restart. */
int om_settings_reload(
        const struct om_settings *now, struct om_settings **ret, const char ***ret_changed, const char ***ret_restart, struct om_error *e);

#endif
