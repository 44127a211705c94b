/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values that follow from other values: defaults that depend on where we run, URLs in files of their own, and the names of the Python
 * OmniDaemon.
 *
 * What is always true:
 *   - a URL setting beats EVENT_BUS_URL_FILE's and the Python names' at the same level or a lower one; a setting and its _FILE at one level
 *     contradict each other, which is an error;
 *   - what is made stands at the level of the setting that asked for it (EVENT_BUS_TYPE, say), and its source says so;
 *   - afterwards each row with a field has a text, but SOCKET_GROUP, MODULE_DIR, RESULT_STORAGE_URL and STORAGE_BACKUP_URL.
 *
 * Called by settings.c, once for each reading.
 */
#include <errno.h>
#include <strings.h>
#include <unistd.h>

#include "settings_table.h"

/* -- shared by bus and storage ------------------------------------------------------------------------------------- */

static const char *text_of(struct om_settings_more *m, enum om_setting_id id) {
        m->values[id].used = m->values[id].text;
        return m->values[id].text;
}

static const char *text_or(struct om_settings_more *m, enum om_setting_id id, const char *otherwise) {
        const char *text = text_of(m, id);

        return text ? text : otherwise;
}

static int keep_made(struct om_settings_more *m, enum om_setting_id id, enum om_setting_id from, const char *text, struct om_error *e) {
        const struct om_setting_value *asked = &m->values[from];

        /* Not om_settings_keep(): the caller has compared the levels. */
        if (m->values[id].level >= asked->level)
                return 0;
        return om_settings_keep(
                m, id, asked->level, text, om_settings_format(m, "%s, %s", asked->source, om_settings_table[from].option.name), e);
}

/* A URL that stands in a file: the first line that is not blank, white space around it taken off. */
static int url_from_file(struct om_settings_more *m, enum om_setting_id url, enum om_setting_id file, struct om_error *e) {
        const struct om_setting_value *asked = &m->values[file];
        const char *path = asked->text, *folder = om_settings_getenv(m, "CREDENTIALS_DIRECTORY"), *text;
        const char *name = om_settings_table[file].option.name, *url_name = om_settings_table[url].option.name;
        struct om_buf content = OM_BUF_INIT;
        size_t len;
        int r;

        if (!path || m->values[url].level > asked->level)
                return 0;
        if (m->values[url].level == asked->level)
                return om_error_set(e, OM_INVALID, "%s: %s and %s are both set; keep one", asked->source, url_name, name);
        if (folder && !strchr(path, '/'))
                path = om_settings_format(m, "%s/%s", folder, path);
        if (!path)
                return om_error_set_errno(e, ENOMEM, "settings");
        r = om_settings_slurp(path, &content, e);
        if (r < 0) {
                om_error_prefix(e, "%s: %s", asked->source, name);
                goto out;
        }
        om_buf_putc(&content, 0);
        text = content.data ? content.data + strspn(content.data, " \t\r\n") : "";
        len = strcspn(text, " \t\r\n");
        if (len == 0 || text[len + strspn(text + len, " \t\r\n")])
                r = om_error_set(e, OM_INVALID, "%s: %s: %s must hold one URL and nothing else", asked->source, name, path);
        else
                r = keep_made(m, url, file, om_settings_format(m, "%.*s", (int) len, text), e);
        m->values[file].used = true;
out:
        om_buf_deinit(&content);
        return r;
}

/* The URL in a Python setting, whose scheme must be one of `schemes`: it names this system and no other. */
static int url_of(struct om_settings_more *m, enum om_setting_id id, const char *otherwise, const char *const *schemes, const char **ret,
        struct om_error *e) {
        const char *url = text_or(m, id, otherwise);

        for (size_t i = 0; schemes[i]; i++) {
                size_t len = strlen(schemes[i]);

                if (strncmp(url, schemes[i], len) == 0 && strncmp(url + len, "://", 3) == 0) {
                        *ret = url;
                        return 0;
                }
        }
        return om_error_set(e, OM_INVALID, "%s: %s: the URL must start with %s://", m->values[id].source, om_settings_table[id].option.name,
                schemes[0]);
}

/* What a backend needs that has no default; `from` asks for it. */
static int required(struct om_settings_more *m, enum om_setting_id id, enum om_setting_id from, const char *kind, const char **ret,
        struct om_error *e) {
        *ret = text_of(m, id);
        if (*ret)
                return 0;
        return om_error_set(e, OM_INVALID, "%s: %s=%s needs %s", m->values[from].source, om_settings_table[from].option.name, kind,
                om_settings_table[id].option.name);
}

static void put_encoded(struct om_buf *b, const char *text) {
        for (; *text; text++)
                if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/", *text))
                        om_buf_putc(b, *text);
                else
                        om_buf_printf(b, "%%%02X", (unsigned char) *text);
}

static void put_parameter(struct om_buf *b, const char *name, const char *value) {
        if (!value)
                return;
        om_buf_printf(b, "%c%s=", b->len && memchr(b->data, '?', b->len) ? '&' : '?', name);
        put_encoded(b, value);
}

/* -- the bus ------------------------------------------------------------------------------------------------------- */

enum bus { BUS_LOCAL, BUS_REDIS, BUS_KAFKA, BUS_RABBITMQ, BUS_NATS };
static const struct word {
        const char *word;
        int value;
} buses[] = { { "local", BUS_LOCAL }, { "redis_stream", BUS_REDIS }, { "kafka", BUS_KAFKA }, { "rabbitmq", BUS_RABBITMQ },
        { "nats", BUS_NATS }, { "redis", BUS_REDIS }, { NULL, 0 } };

enum storage { STORAGE_JSON, STORAGE_REDIS, STORAGE_POSTGRESQL, STORAGE_MONGODB, STORAGE_S3, STORAGE_NATS };
static const struct word storages[] = { { "json", STORAGE_JSON }, { "redis", STORAGE_REDIS }, { "postgresql", STORAGE_POSTGRESQL },
        { "mongodb", STORAGE_MONGODB }, { "s3", STORAGE_S3 }, { "nats", STORAGE_NATS }, { "postgres", STORAGE_POSTGRESQL }, { NULL, 0 } };

static const char *const redis_schemes[] = { "redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel",
        "redis+unix", NULL };
static const char *const nats_schemes[] = { "nats", "tls", NULL };

/* Looks the word up; `what` and the first `n_told` words are for the message. */
static int find_word(struct om_settings_more *m, enum om_setting_id id, const struct word *words, size_t n_told, const char *what, int *ret,
        struct om_error *e) {
        const char *text = text_of(m, id), *names[16], *near;
        char known[200] = "";
        size_t n = 0;

        for (; words[n].word; n++) {
                if (strcasecmp(words[n].word, text) == 0) {
                        *ret = words[n].value;
                        return 0;
                }
                names[n] = words[n].word;
                if (n < n_told)
                        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", n ? ", " : "", words[n].word);
        }
        names[n] = NULL;
        near = om_nearest(text, names);
        om_error_set(e, OM_UNSUPPORTED, "%s: unknown %s \"%.60s\"; known: %s%s%s%s", om_settings_table[id].option.name, what, text, known,
                near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
        om_error_prefix(e, "%s", m->values[id].source);
        return -EINVAL;
}

static int put_bus(struct om_settings_more *m, enum bus bus, struct om_buf *b, struct om_error *e) {
        static const char *const amqp[] = { "amqp", "amqps", NULL };
        const char *url = "local:";
        int r = 0;

        switch (bus) {
        case BUS_LOCAL:
                break;
        case BUS_REDIS:
                r = url_of(m, OM_SET_REDIS_URL, "redis://localhost:6379", redis_schemes, &url, e);
                break;
        case BUS_KAFKA:
                url = text_or(m, OM_SET_KAFKA_SERVERS, "localhost:9092");
                om_buf_puts(b, strstr(url, "://") ? "" : "kafka://");
                break;
        case BUS_RABBITMQ:
                r = url_of(m, OM_SET_RABBITMQ_URL, "amqp://guest:guest@localhost:5672/", amqp, &url, e);
                break;
        case BUS_NATS:
                r = url_of(m, OM_SET_NATS_URL, "nats://localhost:4222", nats_schemes, &url, e);
                break;
        }
        if (r < 0)
                return r;
        om_buf_puts(b, url);
        if (bus == BUS_REDIS)
                put_parameter(b, "maxlen", text_of(m, OM_SET_REDIS_STREAM_MAXLEN));
        return 0;
}

/* The URL that was put together, for `id`. */
static int keep_url(struct om_settings_more *m, enum om_setting_id id, enum om_setting_id from, struct om_buf *url, struct om_error *e) {
        om_buf_putc(url, 0);
        return om_buf_ok(url) ? keep_made(m, id, from, url->data, e) : om_error_set_errno(e, ENOMEM, "settings");
}

static int make_bus(struct om_settings_more *m, struct om_error *e) {
        struct om_buf url = OM_BUF_INIT;
        int bus, r;

        if (!m->values[OM_SET_EVENT_BUS_TYPE].text || m->values[OM_SET_EVENT_BUS_URL].level >= m->values[OM_SET_EVENT_BUS_TYPE].level)
                return 0;
        r = find_word(m, OM_SET_EVENT_BUS_TYPE, buses, 5, "event bus", &bus, e);
        if (r == 0)
                r = put_bus(m, (enum bus) bus, &url, e);
        if (r == 0)
                r = keep_url(m, OM_SET_EVENT_BUS_URL, OM_SET_EVENT_BUS_TYPE, &url, e);
        om_buf_deinit(&url);
        return r;
}

/* -- the storage --------------------------------------------------------------------------------------------------- */

static int put_s3(struct om_settings_more *m, const char *bucket, struct om_buf *b, struct om_error *e) {
        const char *replica = text_of(m, OM_SET_S3_REPLICA_URL);

        /* Inside the other URL a password would not be told from the rest, and be printed. */
        if (replica && memchr(replica, '@', strcspn(replica, "?")))
                return om_error_set(e, OM_INVALID, "%s: S3_REPLICA_URL has no user and password: name a profile that has, ?profile=NAME",
                        m->values[OM_SET_S3_REPLICA_URL].source);
        om_buf_lit(b, "s3://");
        put_encoded(b, bucket);
        put_parameter(b, "region", text_of(m, OM_SET_S3_REGION));
        put_parameter(b, "endpoint", text_of(m, OM_SET_S3_ENDPOINT));
        put_parameter(b, "replica", replica);
        put_parameter(b, "manage_lifecycle", text_of(m, OM_SET_S3_MANAGE_LIFECYCLE));
        return 0;
}

/* nats://HOST becomes nats+kv://HOST/omnidaemon. */
static int put_nats(struct om_settings_more *m, struct om_buf *b, struct om_error *e) {
        static const char *const schemes[] = { "nats", NULL };
        const char *url, *path;
        int r = url_of(m, OM_SET_NATS_URL, "nats://localhost:4222", schemes, &url, e);

        if (r < 0)
                return r;
        url += strlen("nats://");
        path = url + strcspn(url, "/?");
        om_buf_printf(b, "nats+kv://%.*s", (int) (path - url), url);
        om_buf_printf(b, "%s%s", path[0] == '/' && path[1] && path[1] != '?' ? "" : "/omnidaemon",
                path + (path[0] == '/' && (!path[1] || path[1] == '?')));
        return 0;
}

static int put_storage(struct om_settings_more *m, enum storage storage, enum om_setting_id from, struct om_buf *b, struct om_error *e) {
        const char *text = NULL;
        int r = 0;

        switch (storage) {
        case STORAGE_JSON:
                om_buf_printf(b, "json:%s", text_or(m, OM_SET_JSON_STORAGE_DIR, m->values[OM_SET_STATE_DIR].text));
                break;
        case STORAGE_REDIS:
                r = url_of(m, OM_SET_REDIS_URL, "redis://localhost:6379", redis_schemes, &text, e);
                if (r == 0) {
                        om_buf_puts(b, text);
                        put_parameter(b, "prefix", text_of(m, OM_SET_REDIS_KEY_PREFIX));
                }
                break;
        case STORAGE_POSTGRESQL:
                r = required(m, OM_SET_POSTGRES_URL, from, "postgresql", &text, e);
                break;
        case STORAGE_MONGODB:
                r = required(m, OM_SET_MONGODB_URI, from, "mongodb", &text, e);
                break;
        case STORAGE_S3:
                r = required(m, OM_SET_S3_BUCKET, from, "s3", &text, e);
                if (r == 0)
                        r = put_s3(m, text, b, e);
                break;
        case STORAGE_NATS:
                r = put_nats(m, b, e);
                break;
        }
        if (r == 0 && text && b->len == 0)
                om_buf_puts(b, text);
        return r;
}

static int make_storage(struct om_settings_more *m, struct om_error *e) {
        enum om_setting_id from = m->values[OM_SET_STORAGE_BACKEND].text ? OM_SET_STORAGE_BACKEND : OM_SET_JSON_STORAGE_DIR;
        struct om_buf url = OM_BUF_INIT;
        int storage = STORAGE_JSON, r = 0;

        if (!m->values[from].text || m->values[OM_SET_STORAGE_URL].level >= m->values[from].level)
                return 0;
        if (from == OM_SET_STORAGE_BACKEND)
                r = find_word(m, from, storages, 6, "storage", &storage, e);
        if (r == 0)
                r = put_storage(m, (enum storage) storage, from, &url, e);
        if (r == 0)
                r = keep_url(m, OM_SET_STORAGE_URL, from, &url, e);
        om_buf_deinit(&url);
        return r;
}

/* RESULT_STORAGE and STORAGE_BACKEND_BACKUP: the words and names of STORAGE_BACKEND. */
static int make_other(struct om_settings_more *m, enum om_setting_id id, enum om_setting_id from, struct om_error *e) {
        struct om_buf url = OM_BUF_INIT;
        int storage, r;

        if (!m->values[from].text || m->values[id].level >= m->values[from].level)
                return 0;
        r = find_word(m, from, storages, 6, "storage", &storage, e);
        if (r == 0)
                r = put_storage(m, (enum storage) storage, from, &url, e);
        if (r == 0)
                r = keep_url(m, id, from, &url, e);
        om_buf_deinit(&url);
        return r;
}

/* -- defaults that depend on where we run -------------------------------------------------------------------------- */

/* The first of a list with colons, as systemd gives folders. */
static const char *first_folder(struct om_settings_more *m, const char *variable) {
        const char *list = m->service ? om_settings_getenv(m, variable) : NULL;

        return list ? om_settings_format(m, "%.*s", (int) strcspn(list, ":"), list) : NULL;
}

static const char *default_state_dir(struct om_settings_more *m) {
        const char *folder = first_folder(m, "STATE_DIRECTORY");

        if (folder)
                return folder;
        return m->service ? "/var/lib/omnidaemon" : ".omnidaemon_data";
}

static const char *default_socket(struct om_settings_more *m) {
        const char *folder = first_folder(m, "RUNTIME_DIRECTORY"), *user = om_settings_getenv(m, "XDG_RUNTIME_DIR");

        if (folder)
                return om_settings_format(m, "%s/omnidaemon.sock", folder);
        if (user)
                return om_settings_format(m, "%s/omnidaemon/omnidaemon.sock", user);
        /* A socket that is handed to us has its path already. */
        if (m->service || geteuid() == 0 || om_settings_getenv(m, "LISTEN_FDS"))
                return "/run/omnidaemon/omnidaemon.sock";
        return NULL;
}

static int keep_default(struct om_settings_more *m, enum om_setting_id id, const char *text, struct om_error *e) {
        return m->values[id].level == OM_FROM_NOWHERE ? om_settings_keep(m, id, OM_FROM_DEFAULT, text, "default", e) : 0;
}

static int keep_plain_defaults(struct om_settings_more *m, struct om_error *e) {
        int r = 0;

        for (int i = 0; r == 0 && i < OM_SETTINGS; i++)
                if (om_settings_table[i].option.default_text)
                        r = keep_default(m, (enum om_setting_id) i, om_settings_table[i].option.default_text, e);
        if (r == 0 && m->values[OM_SET_SOCKET_PATH].level == OM_FROM_NOWHERE && !default_socket(m))
                r = om_error_set(e, OM_INVALID,
                        "no place for the socket: XDG_RUNTIME_DIR is not set; set OMNIDAEMON_SOCKET to a path, for the daemon and for its "
                        "clients");
        if (r == 0)
                r = keep_default(m, OM_SET_SOCKET_PATH, default_socket(m), e);
        return r;
}

/* What asks for a URL and is beaten by another that does. REDIS_URL and the like may be there for other programs: only --check tells. */
static void note_beaten(struct om_settings_more *m, enum om_setting_id id, enum om_setting_id by) {
        const struct om_setting_value *v = &m->values[id];

        if (v->text && !v->used)
                om_settings_note(m, "%s: %s is not used: %s is set too (%s)", v->source, om_settings_table[id].option.name,
                        om_settings_table[by].option.name, m->values[by].source);
}

int om_settings_compose(struct om_settings_more *m, struct om_error *e) {
        int r;

        r = url_from_file(m, OM_SET_EVENT_BUS_URL, OM_SET_EVENT_BUS_URL_FILE, e);
        if (r == 0)
                r = url_from_file(m, OM_SET_STORAGE_URL, OM_SET_STORAGE_URL_FILE, e);
        if (r == 0)
                r = url_from_file(m, OM_SET_RESULT_STORAGE_URL, OM_SET_RESULT_STORAGE_URL_FILE, e);
        if (r == 0)
                r = url_from_file(m, OM_SET_STORAGE_BACKUP_URL, OM_SET_STORAGE_BACKUP_URL_FILE, e);
        if (r == 0)
                r = make_bus(m, e);
        /* The state folder is needed first: json: without a folder is there. */
        if (r == 0)
                r = keep_default(m, OM_SET_STATE_DIR, default_state_dir(m), e);
        if (r == 0)
                r = make_storage(m, e);
        if (r == 0)
                r = make_other(m, OM_SET_RESULT_STORAGE_URL, OM_SET_RESULT_STORAGE, e);
        if (r == 0)
                r = make_other(m, OM_SET_STORAGE_BACKUP_URL, OM_SET_STORAGE_BACKEND_BACKUP, e);
        if (r == 0)
                r = keep_plain_defaults(m, e);
        if (r == 0)
                r = keep_default(m, OM_SET_STORAGE_URL, om_settings_format(m, "json:%s", m->values[OM_SET_STATE_DIR].text), e);
        if (r < 0)
                return r;
        note_beaten(m, OM_SET_EVENT_BUS_TYPE, OM_SET_EVENT_BUS_URL);
        note_beaten(m, OM_SET_EVENT_BUS_URL_FILE, OM_SET_EVENT_BUS_URL);
        note_beaten(m, OM_SET_STORAGE_BACKEND, OM_SET_STORAGE_URL);
        note_beaten(m, OM_SET_STORAGE_URL_FILE, OM_SET_STORAGE_URL);
        note_beaten(m, OM_SET_RESULT_STORAGE, OM_SET_RESULT_STORAGE_URL);
        note_beaten(m, OM_SET_RESULT_STORAGE_URL_FILE, OM_SET_RESULT_STORAGE_URL);
        note_beaten(m, OM_SET_STORAGE_BACKEND_BACKUP, OM_SET_STORAGE_BACKUP_URL);
        note_beaten(m, OM_SET_STORAGE_BACKUP_URL_FILE, OM_SET_STORAGE_BACKUP_URL);
        return 0;
}
