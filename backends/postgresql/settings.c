/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a postgresql URL: see settings.h.
 *
 * The parts before the question mark become libpq's keywords host, port, user, password and dbname; a parameter that libpq knows becomes
 * that keyword, and the rest are ours. Loop thread, once for each storage that is opened.
 */
#include <errno.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>

#include "settings.h"

const char *const om_pg_commits[] = { "on", "remote_apply", "remote_write", "local", "off", NULL };

enum { CONNECT_TIMEOUT_MS = 10000, SCHEMA_MAX = 63 /* NAMEDATALEN - 1 */ };

#define OURS(field) offsetof(struct om_pg_settings, field)
#define LIBPQ(i, name, text) \
        { name, OM_OPTION_STRING, OURS(passed) + (i) * sizeof(char *), NULL, NULL, 0, 0, text }
const struct om_option om_pg_options[] = {
        { "connections", OM_OPTION_INT, OURS(connections), "3", NULL, 1, 100,
                "Connections to the server: one writes, the others read. Queries of storage.query have one of their own, for as long as "
                "they run." },
        { "schema", OM_OPTION_STRING, OURS(schema), "omnidaemon", NULL, 0, 0, "The schema that holds its tables; made when missing." },
        { "language", OM_OPTION_STRING, OURS(language), "simple", NULL, 0, 0,
                "The server's text search configuration for task.search: simple takes words as they are, english (and others) finds "
                "inflected ones." },
        { "synchronous_commit", OM_OPTION_ENUM, OURS(synchronous_commit), "on", om_pg_commits, 0, 0,
                "What a write waits for, as PostgreSQL's setting of this name. off: acknowledged writes can be lost with the server." },
        { "sweep_interval", OM_OPTION_MS, OURS(sweep_interval_ms), "60s", NULL, 100, 86400000,
                "How often what has expired is deleted; it is never read once it has expired." },
        { "max_metrics", OM_OPTION_INT, OURS(max_metrics), "100000", NULL, 1, 1000000000,
                "About how many metrics are kept; the oldest go." },
        { "answer_timeout", OM_OPTION_MS, OURS(answer_timeout_ms), "30s", NULL, 1000, 3600000,
                "How long a statement may take, by the server's clock; a connection that is silent for longer is given up for another." },
        LIBPQ(0, "sslmode",
                "libpq's: disable, allow, prefer, require, verify-ca, verify-full. With sslrootcert the default is verify-full, else "
                "prefer."),
        LIBPQ(1, "sslrootcert", "libpq's: a file of authorities that the server's certificate must be signed by."),
        LIBPQ(2, "sslcert", "libpq's: a file with the client's certificate."),
        LIBPQ(3, "sslkey", "libpq's: the file with its key; nobody else may read it."),
        LIBPQ(4, "target_session_attrs", "libpq's: which of several hosts will do: read-write (the default here), primary or any."),
        LIBPQ(5, "connect_timeout", "libpq's: seconds for each host; 10 without it."),
        LIBPQ(6, "service", "libpq's: the name of a group of parameters in the service file."),
        LIBPQ(7, "passfile", "libpq's: a file of passwords (~/.pgpass)."),
        LIBPQ(8, "host", "libpq's: hosts, parted by commas; a path is the folder of a Unix socket."),
        LIBPQ(9, "hostaddr", "libpq's: their addresses, where names are not to be resolved."),
        LIBPQ(10, "port", "libpq's: their ports, parted by commas."),
        LIBPQ(11, "dbname", "libpq's: the database, when it is not the URL's path."),
        LIBPQ(12, "user", "libpq's: the user, when it does not stand before the host."),
        LIBPQ(13, "password", "libpq's: the password, when it does not stand before the host."),
        LIBPQ(14, "application_name", "libpq's: how the server names these connections; omnidaemon without it."),
        LIBPQ(15, "options", "libpq's: settings for the session: -c name=value."),
        LIBPQ(16, "gssencmode", "libpq's: disable, prefer, require; disable without it."),
        LIBPQ(17, "tcp_user_timeout", "libpq's: milliseconds until what nobody acknowledges ends the connection; 30000 without it."),
        { NULL },
};

/* -- keywords -------------------------------------------------------------------------------------------------------- */

const char *om_pg_setting(const struct om_pg_settings *s, const char *keyword) {
        for (size_t i = s->n; i-- > 0;)
                if (strcmp(s->keywords[i], keyword) == 0)
                        return s->values[i];
        return NULL;
}

static int add(struct om_pg_settings *s, const char *keyword, const char *value) {
        char **keywords = realloc(s->keywords, (s->n + 2) * sizeof *keywords), **values;

        if (keywords)
                s->keywords = keywords;
        values = keywords ? realloc(s->values, (s->n + 2) * sizeof *values) : NULL;
        if (!values)
                return -ENOMEM;
        s->values = values;
        keywords[s->n] = strdup(keyword);
        values[s->n] = strdup(value);
        if (!keywords[s->n] || !values[s->n]) {
                free(keywords[s->n]);
                free(values[s->n]);
                return -ENOMEM;
        }
        s->n++;
        keywords[s->n] = values[s->n] = NULL;
        return 0;
}

static int add_missing(struct om_pg_settings *s, const char *keyword, const char *value) {
        return om_pg_setting(s, keyword) ? 0 : add(s, keyword, value);
}

/* Parameters that libpq knows. They count as asked for. */
static int add_params(struct om_pg_settings *s, struct om_url *url, struct om_error *e) {
        PQconninfoOption *known = PQconndefaults();
        int r = known ? 0 : -ENOMEM;

        for (const PQconninfoOption *o = known; r == 0 && o->keyword; o++) {
                const char *value = om_url_param(url, o->keyword);

                if (value)
                        r = add(s, o->keyword, value);
        }
        PQconninfoFree(known);
        return r < 0 ? om_error_set_errno(e, ENOMEM, "PostgreSQL") : 0;
}

static int add_hosts(struct om_pg_settings *s, const struct om_url *url) {
        struct om_buf hosts = OM_BUF_INIT, ports = OM_BUF_INIT;
        bool any_host = false, any_port = false;
        int r = 0;

        for (size_t i = 0; i < url->n_hosts; i++) {
                om_buf_printf(&hosts, "%s%s", i ? "," : "", url->hosts[i].name);
                om_buf_puts(&ports, i ? "," : "");
                if (url->hosts[i].port)
                        om_buf_u64(&ports, url->hosts[i].port);
                any_host |= url->hosts[i].name[0] != 0;
                any_port |= url->hosts[i].port != 0;
        }
        om_buf_putc(&hosts, 0);
        om_buf_putc(&ports, 0);
        if (!om_buf_ok(&hosts) || !om_buf_ok(&ports))
                r = -ENOMEM;
        if (r == 0 && any_host)
                r = add(s, "host", hosts.data);
        if (r == 0 && any_port)
                r = add(s, "port", ports.data);
        om_buf_deinit(&hosts);
        om_buf_deinit(&ports);
        return r;
}

static int add_parts(struct om_pg_settings *s, const struct om_url *url, struct om_error *e) {
        const char *path = url->path ? url->path : "";
        int r = add_hosts(s, url);

        path += path[0] == '/';
        if (r == 0 && url->user && url->user[0])
                r = add(s, "user", url->user);
        if (r == 0 && url->password)
                r = add(s, "password", url->password);
        if (r == 0 && path[0])
                r = add(s, "dbname", path);
        return r < 0 ? om_error_set_errno(e, ENOMEM, "PostgreSQL") : 0;
}

/* What libpq would do otherwise. */
static int add_defaults(struct om_pg_settings *s, struct om_error *e) {
        static const struct {
                const char *keyword, *value;
        } defaults[] = { { "target_session_attrs", "read-write" }, { "application_name", "omnidaemon" }, { "gssencmode", "disable" },
                { "tcp_user_timeout", "30000" }, { "client_encoding", "UTF8" } };
        int r = 0;

        for (size_t i = 0; r == 0 && i < sizeof defaults / sizeof *defaults; i++)
                r = add_missing(s, defaults[i].keyword, defaults[i].value);
        if (r == 0 && om_pg_setting(s, "sslrootcert"))
                r = add_missing(s, "sslmode", "verify-full");
        return r < 0 ? om_error_set_errno(e, ENOMEM, "PostgreSQL") : 0;
}

/* -- checks ---------------------------------------------------------------------------------------------------------- */

static int check_schema(const char *schema, struct om_error *e) {
        if (!schema[0] || strlen(schema) > SCHEMA_MAX)
                return om_error_set(e, OM_INVALID, "PostgreSQL: schema: a name of 1 to %d bytes is expected", SCHEMA_MAX);
        if (strncmp(schema, "pg_", 3) == 0)
                return om_error_set(e, OM_INVALID, "PostgreSQL: schema=%.60s: names that begin with pg_ are the server's own", schema);
        return 0;
}

static int check_libpq(struct om_pg_settings *s, struct om_error *e) {
        const char *attrs = om_pg_setting(s, "target_session_attrs"), *timeout = om_pg_setting(s, "connect_timeout");
        const char *encoding = om_pg_setting(s, "client_encoding");
        const struct om_option seconds = { "connect_timeout", OM_OPTION_INT, 0, NULL, NULL, 0, 3600, NULL };
        int64_t value = 0;

        if (strcmp(attrs, "read-write") != 0 && strcmp(attrs, "primary") != 0 && strcmp(attrs, "any") != 0)
                return om_error_set(
                        e, OM_INVALID, "PostgreSQL: target_session_attrs=%.40s: a storage writes; read-write, primary or any", attrs);
        if (strcasecmp(encoding, "UTF8") != 0 && strcasecmp(encoding, "UTF-8") != 0)
                return om_error_set(e, OM_INVALID, "PostgreSQL: client_encoding=%.40s: only UTF8 will do", encoding);
        if (timeout && om_option_parse(&seconds, timeout, &value, e) < 0)
                return -EINVAL;
        s->connect_timeout_ms = value > 0 ? value * 1000 : CONNECT_TIMEOUT_MS;
        return 0;
}

static int set_where(struct om_pg_settings *s, struct om_error *e) {
        const char *db = om_pg_setting(s, "dbname"), *host = om_pg_setting(s, "host"), *port = om_pg_setting(s, "port");
        const char *service = om_pg_setting(s, "service");
        struct om_buf b = OM_BUF_INIT;

        host = host ? host : om_pg_setting(s, "hostaddr");
        if (db)
                om_buf_printf(&b, "database %s at ", db);
        om_buf_printf(&b, "%s", host ? host : service ? "the hosts of the service" : "the local server");
        if (port && host)
                om_buf_printf(&b, ":%s", port);
        om_buf_putc(&b, 0);
        if (!om_buf_ok(&b)) {
                om_buf_deinit(&b);
                return om_error_set_errno(e, ENOMEM, "PostgreSQL");
        }
        s->where = b.data;
        return 0;
}

static int own_texts(struct om_pg_settings *s, const char *schema, const char *language, struct om_error *e) {
        s->schema = strdup(schema);
        s->language = strdup(language);
        memset(s->passed, 0, sizeof s->passed);
        return s->schema && s->language ? 0 : om_error_set_errno(e, ENOMEM, "PostgreSQL");
}

int om_pg_settings_read(struct om_pg_settings *s, struct om_url *url, struct om_error *e) {
        const char *schema, *language;
        int r;

        memset(s, 0, sizeof *s);
        r = add_parts(s, url, e);
        if (r == 0)
                r = add_params(s, url, e);
        if (r == 0)
                r = om_options_read(om_pg_options, url, s, e);
        schema = s->schema;
        language = s->language;
        s->schema = s->language = NULL;
        if (r == 0)
                r = check_schema(schema, e);
        if (r == 0)
                r = own_texts(s, schema, language, e);
        if (r == 0)
                r = add_defaults(s, e);
        if (r == 0)
                r = check_libpq(s, e);
        if (r == 0)
                r = set_where(s, e);
        if (r < 0)
                om_pg_settings_free(s);
        return r;
}

void om_pg_settings_free(struct om_pg_settings *s) {
        for (size_t i = 0; i < s->n; i++) {
                free(s->keywords[i]);
                free(s->values[i]);
        }
        free(s->keywords);
        free(s->values);
        free(s->where);
        free((char *) s->schema);
        free((char *) s->language);
        memset(s, 0, sizeof *s);
}
