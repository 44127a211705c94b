/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a redis URL says, beside its parameters: mode, TLS, hosts, who logs in, which database.
 *
 * Always true: after om_redis_settings_take() nothing points into the URL; every message names the part to mend and holds no password.
 * Called once for each bus and storage that is opened. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <stdio.h>
#include <strings.h>
#include <sys/un.h>

#include "link.h"

enum { PORT = 6379, SENTINEL_PORT = 26379 };

static int no_memory(struct om_error *e) { return om_error_set_errno(e, ENOMEM, "redis: settings"); }

static int copy(const char *text, char **ret) {
        *ret = text ? strdup(text) : NULL;
        return text && !*ret ? -ENOMEM : 0;
}

/* Options point into the URL or the table: from now on into memory of ours. */
static int keep(const char **text) {
        char *mine;
        int r = copy(*text, &mine);

        *text = mine;
        return r;
}

static int take_texts(struct om_redis_settings *s, const struct om_url *url, struct om_error *e) {
        /* every one is made ours, so that freeing needs no knowledge of where it failed */
        int r = keep(&s->tls_ca_file);

        r |= keep(&s->tls_cert_file);
        r |= keep(&s->tls_key_file);
        r |= keep(&s->tls_server_name);
        r |= keep(&s->sentinel_user);
        r |= keep(&s->sentinel_password);
        r |= copy(url->user, &s->user);
        r |= copy(url->password, &s->password);
        r |= copy(url->redacted, &s->redacted);
        return r ? no_memory(e) : 0;
}

/* redis://SECRET@HOST is a password without a user, and so is redis://:SECRET@HOST. */
static void sort_login(struct om_redis_settings *s) {
        if (s->user && !s->user[0]) {
                free(s->user);
                s->user = NULL;
        }
        if (s->user && !s->password) {
                s->password = s->user;
                s->user = NULL;
        }
}

static int take_hosts(struct om_redis_settings *s, const struct om_url *url, struct om_error *e) {
        uint16_t port = s->mode == OM_REDIS_SENTINEL ? SENTINEL_PORT : PORT;

        if (s->mode == OM_REDIS_SINGLE && url->n_hosts > 1)
                return om_error_set(e, OM_INVALID,
                        "%s: several hosts are a cluster or sentinels: write %s+cluster://… or %s+sentinel://HOST,HOST/SERVICE",
                        s->redacted, url->scheme, url->scheme);
        s->hosts = calloc(url->n_hosts + 1, sizeof *s->hosts);
        if (!s->hosts)
                return no_memory(e);
        for (size_t i = 0; i < url->n_hosts; i++) {
                if (!url->hosts[i].name[0])
                        return om_error_set(e, OM_INVALID, "%s: a host is missing", s->redacted);
                s->n_hosts++;
                s->hosts[i].port = url->hosts[i].port ? url->hosts[i].port : port;
                if (copy(url->hosts[i].name, &s->hosts[i].host) < 0)
                        return no_memory(e);
        }
        if (s->n_hosts)
                return 0;
        if (s->mode != OM_REDIS_SINGLE)
                return om_error_set(e, OM_INVALID, "%s: a host is missing", s->redacted);
        s->n_hosts = 1;
        s->hosts[0].port = port;
        return copy("localhost", &s->hosts[0].host) < 0 ? no_memory(e) : 0;
}

static int take_socket(struct om_redis_settings *s, const struct om_url *url, struct om_error *e) {
        struct sockaddr_un address;

        if (url->n_hosts > 1 || (url->n_hosts && url->hosts[0].name[0]))
                return om_error_set(e, OM_INVALID, "%s: a socket has a path and no host: write redis+unix:///PATH", s->redacted);
        if (url->path[0] != '/' || !url->path[1])
                return om_error_set(e, OM_INVALID, "%s: the socket's path is missing: write redis+unix:///PATH", s->redacted);
        if (strlen(url->path) >= sizeof address.sun_path)
                return om_error_set(
                        e, OM_INVALID, "%s: the socket's path is longer than %zu bytes", s->redacted, sizeof address.sun_path - 1);
        s->hosts = calloc(1, sizeof *s->hosts);
        s->n_hosts = s->hosts ? 1 : 0;
        return !s->hosts || copy(url->path, &s->socket_path) < 0 ? no_memory(e) : 0;
}

static int take_db(struct om_redis_settings *s, const char *text, struct om_error *e) {
        int64_t db = 0;

        if (text[0]) {
                const struct om_option option = { "path", OM_OPTION_INT, 0, NULL, NULL, 0, 1 << 20, NULL };

                if (om_option_parse(&option, text, &db, NULL) < 0)
                        return om_error_set(
                                e, OM_INVALID, "%s: the path is not the number of a database, as in redis://HOST/0", s->redacted);
                if (s->db >= 0 && s->db != db)
                        return om_error_set(e, OM_INVALID, "%s: the path says database %lld and the parameter db says %lld", s->redacted,
                                (long long) db, (long long) s->db);
                s->db = db;
        }
        if (s->db < 0)
                s->db = 0;
        if (s->db && s->mode == OM_REDIS_CLUSTER)
                return om_error_set(e, OM_INVALID, "%s: a cluster has database 0 only", s->redacted);
        return 0;
}

/* "/SERVICE" or "/SERVICE/DB". */
static int take_service(struct om_redis_settings *s, const char *path, struct om_error *e) {
        const char *slash;

        path += path[0] == '/';
        slash = strchr(path, '/');
        if (!path[0] || slash == path)
                return om_error_set(
                        e, OM_INVALID, "%s: the primary's name is missing: write redis+sentinel://HOST,HOST/SERVICE", s->redacted);
        s->service = strndup(path, slash ? (size_t) (slash - path) : strlen(path));
        return s->service ? take_db(s, slash ? slash + 1 : "", e) : no_memory(e);
}

int om_redis_settings_take(struct om_redis_settings *s, const struct om_url *url, struct om_error *e) {
        const char *path = url->path ? url->path : "", *plus = strchr(url->scheme, '+');
        bool is_unix = plus && strcmp(plus, "+unix") == 0;
        int r;

        s->mode = plus && strcmp(plus, "+cluster") == 0  ? OM_REDIS_CLUSTER
                : plus && strcmp(plus, "+sentinel") == 0 ? OM_REDIS_SENTINEL
                                                         : OM_REDIS_SINGLE;
        s->tls = strncmp(url->scheme, "rediss", 6) == 0;
        r = take_texts(s, url, e);
        if (r < 0)
                return r;
        sort_login(s);
        if (!s->tls && (s->tls_ca_file || s->tls_cert_file || s->tls_key_file || s->tls_server_name || !s->tls_verify))
                return om_error_set(e, OM_INVALID, "%s: tls_… parameters need TLS: write rediss instead of redis", s->redacted);
        if (s->tls_key_file && !s->tls_cert_file)
                return om_error_set(e, OM_INVALID, "%s: tls_key_file needs tls_cert_file", s->redacted);
        if (s->mode != OM_REDIS_SENTINEL && (s->sentinel_user || s->sentinel_password))
                return om_error_set(e, OM_INVALID, "%s: sentinel_… parameters are for redis+sentinel://", s->redacted);
        r = is_unix ? take_socket(s, url, e) : take_hosts(s, url, e);
        if (r < 0)
                return r;
        if (s->mode == OM_REDIS_SENTINEL)
                return take_service(s, path, e);
        return take_db(s, is_unix ? "" : path + (path[0] == '/'), e);
}

struct om_tls_settings om_redis_tls(const struct om_redis_settings *s) {
        return (struct om_tls_settings){ "redis", "redis", "rediss", s->tls_ca_file, s->tls_cert_file, s->tls_key_file, s->tls_server_name,
                s->tls_verify };
}

void om_redis_settings_free(struct om_redis_settings *s) {
        if (!s->redacted)
                return; /* take() was not called, so no text is ours */
        free((char *) s->tls_ca_file);
        free((char *) s->tls_cert_file);
        free((char *) s->tls_key_file);
        free((char *) s->tls_server_name);
        free((char *) s->sentinel_user);
        free((char *) s->sentinel_password);
        free(s->user);
        free(s->password);
        free(s->service);
        free(s->socket_path);
        for (size_t i = 0; i < s->n_hosts; i++)
                free(s->hosts[i].host);
        free(s->hosts);
        free(s->redacted);
        memset(s, 0, sizeof *s);
}
