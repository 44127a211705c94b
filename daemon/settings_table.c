/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of settings. Flags, environment, file, --help, --check, conf/omnidaemond.conf and the man page are all made from it: a setting
 * is added here, to struct om_settings and to enum om_setting_id, and nowhere else.
 *
 * A row that is `reloadable` promises that its users read struct om_settings anew each time. Static data; any thread.
 */
#include "settings_table.h"

const char *const om_setting_group_titles[OM_GROUPS] = {
        [OM_GROUP_PLACES] = "Bus, storage, files",
        [OM_GROUP_SOCKET] = "The socket",
        [OM_GROUP_AGENTS] = "Defaults for agents",
        [OM_GROUP_TASKS] = "Tasks, results, metrics",
        [OM_GROUP_LIMITS] = "Limits for clients",
        [OM_GROUP_LOG] = "The log",
        [OM_GROUP_PYTHON] = "Names of the Python OmniDaemon",
};

static const char *const log_levels[] = { "error", "warning", "notice", "info", "debug", NULL };
static const char *const log_targets[] = { "auto", "stderr", "journal", NULL };

#define FIELD(member) offsetof(struct om_settings, member)
#define SECOND INT64_C(1000)
#define HOUR (3600 * SECOND)
#define DAY (24 * HOUR)
#define KIB INT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define STRING(name_, field_, default_) .option = { .name = name_, .type = OM_OPTION_STRING, .offset = field_, .default_text = default_ }
#define NUMBER(name_, type_, field_, default_, min_, max_) \
        .option = { .name = name_, .type = type_, .offset = field_, .default_text = default_, .min = min_, .max = max_ }
#define DURATION(name_, field_, default_, min_, max_) .value_name = "DURATION", NUMBER(name_, OM_OPTION_MS, field_, default_, min_, max_)
#define BYTES(name_, field_, default_, min_, max_) .value_name = "BYTES", NUMBER(name_, OM_OPTION_BYTES, field_, default_, min_, max_)
#define COUNT(name_, field_, default_, min_, max_) .value_name = "N", NUMBER(name_, OM_OPTION_INT, field_, default_, min_, max_)
#define CHOICE(name_, field_, default_, choices_) \
        .value_name = "WORD",                     \
        .option = { .name = name_, .type = OM_OPTION_ENUM, .offset = field_, .default_text = default_, .choices = choices_ }

const struct om_setting om_settings_table[OM_SETTINGS] = {
        /* -- bus, storage, files */
        [OM_SET_EVENT_BUS_URL] = { STRING("EVENT_BUS_URL", FIELD(event_bus_url), "local:"), .value_name = "URL", .url = true,
                .doc = "The bus. local: is embedded and needs no server; its files are in the state folder, or in DIR with "
                       "local:DIR. `omnictl backends` lists the others and their parameters." },
        [OM_SET_STORAGE_URL] = { STRING("STORAGE_URL", FIELD(storage_url), NULL), .value_name = "URL", .url = true,
                .default_doc = "json: in the state folder",
                .doc = "The storage of agents, results, metrics and configuration. json:DIR keeps readable files in DIR." },
        [OM_SET_EVENT_BUS_URL_FILE] = { STRING("EVENT_BUS_URL_FILE", OM_NO_FIELD, NULL), .value_name = "FILE",
                .doc = "A file that holds EVENT_BUS_URL, for URLs with a password. A name without a slash is looked up in "
                       "$CREDENTIALS_DIRECTORY, where systemd's LoadCredential= puts it." },
        [OM_SET_STORAGE_URL_FILE] = { STRING("STORAGE_URL_FILE", OM_NO_FIELD, NULL), .value_name = "FILE",
                .doc = "The same for STORAGE_URL." },
        [OM_SET_RESULT_STORAGE_URL] = { STRING("RESULT_STORAGE_URL", FIELD(result_storage_url), NULL), .value_name = "URL", .url = true,
                .default_doc = "the storage of STORAGE_URL",
                .doc = "A storage of their own for results: agents, metrics and configuration stay with STORAGE_URL. Either may be away "
                       "without the other." },
        [OM_SET_RESULT_STORAGE_URL_FILE] = { STRING("RESULT_STORAGE_URL_FILE", OM_NO_FIELD, NULL), .value_name = "FILE",
                .doc = "The same for RESULT_STORAGE_URL." },
        [OM_SET_STORAGE_BACKUP_URL] = { STRING("STORAGE_BACKUP_URL", FIELD(storage_backup_url), NULL), .value_name = "URL", .url = true,
                .default_doc = "none",
                .doc = "A second storage that gets everything that is written, behind the first one: nobody waits for it, and what it "
                       "cannot "
                       "take is kept in the state folder until it can. `omnictl storage migrate` copies to it what was there before. It "
                       "belongs to this daemon's data alone." },
        [OM_SET_STORAGE_BACKUP_URL_FILE] = { STRING("STORAGE_BACKUP_URL_FILE", OM_NO_FIELD, NULL), .value_name = "FILE",
                .doc = "The same for STORAGE_BACKUP_URL." },
        [OM_SET_STORAGE_QUEUE_BYTES] = { BYTES("STORAGE_QUEUE_BYTES", FIELD(storage_queue_bytes), "64M", MIB, 16 * GIB), .reloadable = true,
                .doc = "How much may be remembered, in memory and in the state folder, of what a second storage lacks: about 300 bytes a "
                       "record. Beyond it nothing is lost and no write fails: all records of the kind are compared when the second storage "
                       "is back." },
        [OM_SET_STORAGE_COPY_RATE] = { COUNT("STORAGE_COPY_RATE", FIELD(storage_copy_rate), "5000", 0, 10000000), .reloadable = true,
                .doc = "How many records a second `omnictl storage migrate` reads or copies at most, so that agents are not held up. 0: as "
                       "fast as it goes." },
        [OM_SET_STATE_DIR] = { STRING("STATE_DIR", FIELD(state_dir), NULL), .value_name = "DIR",
                .default_doc = ".omnidaemon_data in the working folder; as a service $STATE_DIRECTORY, else /var/lib/omnidaemon",
                .doc = "The folder of the embedded bus and storage." },
        [OM_SET_MODULE_DIR] = { STRING("MODULE_DIR", FIELD(module_dir), NULL), .value_name = "DIR",
                .default_doc = "lib/omnidaemon beside the folder of the program",
                .doc = "The folder of the modules: a bus or storage that is not embedded is loaded from there when a URL asks for it." },

        /* -- the socket */
        [OM_SET_SOCKET_PATH] = { STRING("SOCKET_PATH", FIELD(socket_path), NULL), .group = OM_GROUP_SOCKET, .alias = "OMNIDAEMON_SOCKET",
                .value_name = "PATH",
                .default_doc = "$XDG_RUNTIME_DIR/omnidaemon/omnidaemon.sock; for root and as a service /run/omnidaemon/omnidaemon.sock",
                .doc = "Where clients connect. OMNIDAEMON_SOCKET is another name for it, which clients read too." },
        [OM_SET_SOCKET_MODE] = { NUMBER("SOCKET_MODE", OM_OPTION_INT, FIELD(socket_mode), "0660", 0, 0777), .group = OM_GROUP_SOCKET,
                .value_name = "MODE", .octal = true, .doc = "Who may connect, as a file mode in octal: writing is connecting." },
        [OM_SET_SOCKET_GROUP] = { STRING("SOCKET_GROUP", FIELD(socket_group), NULL), .group = OM_GROUP_SOCKET, .value_name = "GROUP",
                .default_doc = "the daemon's own", .doc = "The group that the socket belongs to, by name or number." },

        /* -- defaults for agents */
        [OM_SET_PREFETCH] = { COUNT("PREFETCH", FIELD(prefetch), "10", 1, 1000), .group = OM_GROUP_AGENTS, .reloadable = true,
                .doc = "Tasks that a worker holds at most, unless its agent says otherwise." },
        [OM_SET_DLQ_RETRY_LIMIT] = { COUNT("DLQ_RETRY_LIMIT", FIELD(dlq_retry_limit), "3", 0, 1000), .group = OM_GROUP_AGENTS,
                .reloadable = true, .doc = "Retries of a failed task before it goes to the dead letters. 0: the first failure does." },
        [OM_SET_RETRY_BACKOFF] = { DURATION("RETRY_BACKOFF", FIELD(retry_backoff_ms), "1s", 0, HOUR), .group = OM_GROUP_AGENTS,
                .reloadable = true,
                .doc = "The wait before the first retry; each further one waits twice as long. Up to half of it is taken off at random." },
        [OM_SET_RETRY_BACKOFF_MAX] = { DURATION("RETRY_BACKOFF_MAX", FIELD(retry_backoff_max_ms), "60s", 0, DAY), .group = OM_GROUP_AGENTS,
                .reloadable = true, .doc = "The longest wait before a retry." },
        [OM_SET_RECLAIM_IDLE] = { DURATION("RECLAIM_IDLE", FIELD(reclaim_idle_ms), "180s", SECOND, DAY), .group = OM_GROUP_AGENTS,
                .reloadable = true,
                .doc = "After how long the tasks of a daemon that died are taken over by another one on the same bus." },

        /* -- tasks, results, metrics */
        [OM_SET_RESULT_TTL] = { DURATION("RESULT_TTL", FIELD(result_ttl_ms), "24h", SECOND, 3650 * DAY), .group = OM_GROUP_TASKS,
                .reloadable = true, .doc = "How long results are kept." },
        [OM_SET_IDEMPOTENCY_WINDOW] = { DURATION("IDEMPOTENCY_WINDOW", FIELD(idempotency_window_ms), "24h", SECOND, 366 * DAY),
                .group = OM_GROUP_TASKS, .reloadable = true, .doc = "How long an idempotency key is remembered." },
        [OM_SET_PUBLISH_TIMEOUT] = { DURATION("PUBLISH_TIMEOUT", FIELD(publish_timeout_ms), "30s", 100, HOUR), .group = OM_GROUP_TASKS,
                .reloadable = true, .doc = "How long a publish may take on the bus before it is answered with a timeout." },
        [OM_SET_CALL_TIMEOUT] = { DURATION("CALL_TIMEOUT", FIELD(call_timeout_ms), "30s", 100, HOUR), .group = OM_GROUP_TASKS,
                .reloadable = true, .doc = "How long any other call to bus or storage may take." },
        [OM_SET_STOP_GRACE] = { DURATION("STOP_GRACE", FIELD(stop_grace_ms), "10s", 0, HOUR), .group = OM_GROUP_TASKS, .reloadable = true,
                .doc = "How long a daemon that stops waits for its workers to finish what they hold. The rest goes back, "
                       "uncounted." },
        [OM_SET_METRICS_INTERVAL] = { DURATION("METRICS_INTERVAL", FIELD(metrics_interval_ms), "60s", SECOND, DAY), .group = OM_GROUP_TASKS,
                .reloadable = true, .doc = "How often metrics are written to the storage, when they have changed." },

        /* -- limits for clients */
        [OM_SET_MAX_CONNECTIONS] = { COUNT("MAX_CONNECTIONS", FIELD(max_connections), "16384", 1, 1000000), .group = OM_GROUP_LIMITS,
                .reloadable = true,
                .doc = "Connections at once. One more is told so and closed. Open files are limited accordingly, as far as the "
                       "system allows." },
        [OM_SET_MAX_FRAME_BYTES] = { BYTES("MAX_FRAME_BYTES", FIELD(max_frame_bytes), "16M", 64 * KIB, GIB), .group = OM_GROUP_LIMITS,
                .doc = "The largest request or reply. Clients are told in `hello`." },
        [OM_SET_SESSION_OUTPUT_BYTES] = { BYTES("SESSION_OUTPUT_BYTES", FIELD(session_output_bytes), "4M", 64 * KIB, GIB),
                .group = OM_GROUP_LIMITS, .reloadable = true,
                .doc = "What may wait for a client that does not read; above it the client is not read and gets no tasks. It is less "
                       "when all clients together have much waiting: see SESSION_TOTAL_BYTES." },
        [OM_SET_SESSION_TOTAL_BYTES] = { BYTES("SESSION_TOTAL_BYTES", FIELD(session_total_bytes), "256M", MIB, 1024 * GIB),
                .group = OM_GROUP_LIMITS, .reloadable = true,
                .doc = "What the daemon may hold for all clients together: frames that are not whole, requests that are not "
                       "answered, answers that are not read; four of the largest frames in any case. The more is held, the less "
                       "a client may leave waiting; when it is all the same too much, those with most are closed." },
        [OM_SET_STALLED_CLIENT] = { DURATION("STALLED_CLIENT", FIELD(stalled_client_ms), "30s", SECOND, HOUR), .group = OM_GROUP_LIMITS,
                .reloadable = true,
                .doc = "After how long a client that has more waiting than it may, its socket taking nothing, is closed." },
        [OM_SET_SLOW_CLIENT] = { DURATION("SLOW_CLIENT", FIELD(slow_client_ms), "30s", SECOND, HOUR), .group = OM_GROUP_LIMITS,
                .reloadable = true, .doc = "After how long a client is closed that began a frame and did not finish it." },

        /* -- the log */
        [OM_SET_LOG_LEVEL] = { CHOICE("LOG_LEVEL", FIELD(log_level), "info", log_levels), .group = OM_GROUP_LOG, .reloadable = true,
                .doc = "The least important lines that are logged." },
        [OM_SET_LOG_TARGET] = { CHOICE("LOG_TARGET", FIELD(log_target), "auto", log_targets), .group = OM_GROUP_LOG,
                .doc = "Where they go. auto: the journal when standard error is connected to it, else standard error." },

        /* -- names of the Python OmniDaemon */
        [OM_SET_EVENT_BUS_TYPE] = { STRING("EVENT_BUS_TYPE", OM_NO_FIELD, NULL), .value_name = "WORD", .group = OM_GROUP_PYTHON,
                .doc = "Makes EVENT_BUS_URL from the names below: local, redis_stream, kafka, rabbitmq or nats." },
        [OM_SET_STORAGE_BACKEND] = { STRING("STORAGE_BACKEND", OM_NO_FIELD, NULL), .value_name = "WORD", .group = OM_GROUP_PYTHON,
                .doc = "Makes STORAGE_URL from the names below: json, redis, postgresql, mongodb, s3 or nats." },
        [OM_SET_RESULT_STORAGE] = { STRING("RESULT_STORAGE", OM_NO_FIELD, NULL), .value_name = "WORD", .group = OM_GROUP_PYTHON,
                .doc = "Makes RESULT_STORAGE_URL from the names below, as STORAGE_BACKEND does STORAGE_URL." },
        [OM_SET_STORAGE_BACKEND_BACKUP] = { STRING("STORAGE_BACKEND_BACKUP", OM_NO_FIELD, NULL), .value_name = "WORD",
                .group = OM_GROUP_PYTHON, .doc = "Makes STORAGE_BACKUP_URL from the names below." },
        [OM_SET_REDIS_URL] = { STRING("REDIS_URL", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .default_doc = "redis://localhost:6379", .doc = "With EVENT_BUS_TYPE=redis_stream and STORAGE_BACKEND=redis." },
        [OM_SET_REDIS_KEY_PREFIX] = { STRING("REDIS_KEY_PREFIX", OM_NO_FIELD, NULL), .value_name = "PREFIX", .group = OM_GROUP_PYTHON,
                .default_doc = "omni", .doc = "With STORAGE_BACKEND=redis: what its keys start with." },
        [OM_SET_REDIS_STREAM_MAXLEN] = { STRING("REDIS_STREAM_MAXLEN", OM_NO_FIELD, NULL), .value_name = "N", .group = OM_GROUP_PYTHON,
                .doc = "With EVENT_BUS_TYPE=redis_stream: streams are cut to about so many entries, whoever has read them. Without it "
                       "nothing is "
                       "dropped that an agent has not finished." },
        [OM_SET_KAFKA_SERVERS] = { STRING("KAFKA_SERVERS", OM_NO_FIELD, NULL), .value_name = "HOSTS", .group = OM_GROUP_PYTHON, .url = true,
                .default_doc = "localhost:9092", .doc = "With EVENT_BUS_TYPE=kafka: HOST:PORT, several with commas." },
        [OM_SET_RABBITMQ_URL] = { STRING("RABBITMQ_URL", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .default_doc = "amqp://guest:guest@localhost:5672/", .doc = "With EVENT_BUS_TYPE=rabbitmq." },
        [OM_SET_NATS_URL] = { STRING("NATS_URL", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .default_doc = "nats://localhost:4222", .doc = "With EVENT_BUS_TYPE=nats and STORAGE_BACKEND=nats." },
        [OM_SET_JSON_STORAGE_DIR] = { STRING("JSON_STORAGE_DIR", OM_NO_FIELD, NULL), .value_name = "DIR", .group = OM_GROUP_PYTHON,
                .default_doc = "the state folder", .doc = "With STORAGE_BACKEND=json, or alone: the folder." },
        [OM_SET_POSTGRES_URL] = { STRING("POSTGRES_URL", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .doc = "With STORAGE_BACKEND=postgresql, which needs it." },
        [OM_SET_MONGODB_URI] = { STRING("MONGODB_URI", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .doc = "With STORAGE_BACKEND=mongodb, which needs it." },
        [OM_SET_S3_BUCKET] = { STRING("S3_BUCKET", OM_NO_FIELD, NULL), .value_name = "NAME", .group = OM_GROUP_PYTHON,
                .doc = "With STORAGE_BACKEND=s3, which needs it." },
        [OM_SET_S3_REGION] = { STRING("S3_REGION", OM_NO_FIELD, NULL), .value_name = "NAME", .group = OM_GROUP_PYTHON,
                .doc = "With STORAGE_BACKEND=s3." },
        [OM_SET_S3_ENDPOINT] = { STRING("S3_ENDPOINT", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .doc = "With STORAGE_BACKEND=s3: a server other than Amazon's." },
        [OM_SET_S3_REPLICA_URL] = { STRING("S3_REPLICA_URL", OM_NO_FIELD, NULL), .value_name = "URL", .group = OM_GROUP_PYTHON, .url = true,
                .doc = "With STORAGE_BACKEND=s3: an s3:// URL of a copy, which is read when the bucket cannot be." },
        [OM_SET_S3_MANAGE_LIFECYCLE] = { STRING("S3_MANAGE_LIFECYCLE", OM_NO_FIELD, NULL), .value_name = "true|false",
                .group = OM_GROUP_PYTHON,
                .doc = "With STORAGE_BACKEND=s3: whether the bucket gets lifecycle rules that delete what has expired." },
};

static const char no_http[] = "HTTP is not in this version; the daemon is reached by its socket only";
const struct om_foreign_name om_foreign_names[] = {
        { "OMNIDAEMON_CONFIG", NULL },
        { "OMNIDAEMON_CLIENT_NAME", NULL },
        { "OMNIDAEMON_CONNECT_TIMEOUT_MS", NULL },
        { "OMNIDAEMON_CALL_TIMEOUT_MS", NULL },
        { "OMNIDAEMON_API_ENABLED", no_http },
        { "OMNIDAEMON_API_PORT", no_http },
        { NULL, NULL },
};
