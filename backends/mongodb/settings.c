/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a mongodb URL: see settings.h.
 *
 * The URL is put together again for libmongoc, percent-encoded, without the parameters that are ours; what nobody knows is refused with the
 * nearest name. Loop thread, once for each storage that is opened.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "settings.h"

enum { SELECTION_MS = 5000, CONNECT_MS = 2500 };

#define OURS(field) offsetof(struct om_mongo_settings, field)
#define PASSED(i, name, text) \
        { name, OM_OPTION_STRING, OURS(passed) + (i) * sizeof(char *), NULL, NULL, 0, 0, text }
const struct om_option om_mongo_options[] = {
        { "connections", OM_OPTION_INT, OURS(connections), "4", NULL, 2, 100,
                "Threads that speak to the server, each with a connection: one writes, the others read. Queries of storage.query have one "
                "of "
                "their own, for as long as they run." },
        { "collection_prefix", OM_OPTION_STRING, OURS(collection_prefix), "", NULL, 0, 0,
                "What the names of its collections begin with, to keep several apart in one database." },
        { "text_index", OM_OPTION_BOOL, OURS(text_index), "true", NULL, 0, 0,
                "Make a text index over results for task.search. Without one, or where the server has none, words are looked for by a "
                "regular "
                "expression that reads every result." },
        { "sweep_interval", OM_OPTION_MS, OURS(sweep_interval_ms), "60s", NULL, 100, 86400000,
                "How often what has expired is deleted where the server refuses TTL indexes; it is never read once it has expired." },
        { "max_metrics", OM_OPTION_INT, OURS(max_metrics), "100000", NULL, 1, 1000000000,
                "About how many metrics are kept; the oldest go." },
        { "answer_timeout", OM_OPTION_MS, OURS(answer_timeout_ms), "10s", NULL, 500, 3600000,
                "How long one answer of the server may take: libmongoc's socketTimeoutMS where the URL has none." },
        PASSED(0, "tls", "libmongoc's: true for TLS; the server's certificate and name are checked."),
        PASSED(1, "tlsCAFile", "libmongoc's: a file of authorities that the server's certificate must be signed by."),
        PASSED(2, "tlsCertificateKeyFile", "libmongoc's: a file with the client's certificate and its key."),
        PASSED(3, "authSource", "libmongoc's: the database that knows the user; admin, or the URL's database."),
        PASSED(4, "authMechanism", "libmongoc's: SCRAM-SHA-256, SCRAM-SHA-1, MONGODB-X509, PLAIN …"),
        PASSED(5, "replicaSet", "libmongoc's: the name of the replica set."),
        PASSED(6, "w", "libmongoc's: who must have a write: majority (the default here), or a number."),
        PASSED(7, "journal", "libmongoc's: whether a write waits for the journal; true here."),
        PASSED(8, "retryWrites", "libmongoc's: true by default, where the server can."),
        PASSED(9, "serverSelectionTimeoutMS", "libmongoc's: how long to look for a server that takes writes; 5000 here."),
        PASSED(10, "connectTimeoutMS", "libmongoc's: how long to wait for a connection; 2500 here."),
        PASSED(11, "socketTimeoutMS", "libmongoc's: how long to wait for an answer; `answer_timeout` without it."),
        { NULL },
};

static void encode(struct om_buf *b, const char *text) {
        for (; *text; text++) {
                unsigned char c = (unsigned char) *text;

                if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || strchr("-._~", c))
                        om_buf_putc(b, (char) c);
                else
                        om_buf_printf(b, "%%%02X", c);
        }
}

static void put_hosts(struct om_buf *b, const struct om_url *url) {
        for (size_t i = 0; i < url->n_hosts; i++) {
                const struct om_url_host *h = &url->hosts[i];

                om_buf_puts(b, i ? "," : "");
                if (strchr(h->name, ':'))
                        om_buf_printf(b, "[%s]", h->name);
                else
                        encode(b, h->name);
                if (h->port)
                        om_buf_printf(b, ":%u", (unsigned) h->port);
        }
}

static bool is_known(const char *name) {
        static const char *const more[] = { "readPreferenceTags", "readPreference", "readConcernLevel", "w", "journal", "wtimeoutMS",
                "authSource", "authMechanism", "authMechanismProperties", "compressors", "zlibCompressionLevel", "ssl" };

        for (size_t i = 0; i < sizeof more / sizeof *more; i++)
                if (strcasecmp(more[i], name) == 0)
                        return true;
        return mongoc_uri_option_is_int32(name) || mongoc_uri_option_is_int64(name) || mongoc_uri_option_is_bool(name) ||
                mongoc_uri_option_is_utf8(name);
}

/* The URL again, with what is libmongoc's. */
static void put_uri(struct om_buf *b, struct om_url *url) {
        const char *path = url->path ? url->path : "";
        bool any = false;

        om_buf_printf(b, "%s://", url->scheme);
        if (url->user) {
                encode(b, url->user);
                if (url->password) {
                        om_buf_putc(b, ':');
                        encode(b, url->password);
                }
                om_buf_putc(b, '@');
        }
        put_hosts(b, url);
        om_buf_putc(b, '/');
        path += path[0] == '/';
        encode(b, path);
        for (size_t i = 0; i < url->n_params; i++) {
                struct om_url_param *p = &url->params[i];

                if (!is_known(p->name))
                        continue;
                p->used = true;
                om_buf_printf(b, "%s%s=", any ? "&" : "?", p->name);
                encode(b, p->value);
                any = true;
        }
        om_buf_putc(b, 0);
}

static void default_int(mongoc_uri_t *uri, const char *name, int64_t value) {
        if (!mongoc_uri_has_option(uri, name))
                mongoc_uri_set_option_as_int32(uri, name, (int32_t) value);
}

/* What libmongoc would do otherwise: wait long or for ever, and acknowledge early. */
static int set_defaults(struct om_mongo_settings *s, struct om_url *url, struct om_error *e) {
        const mongoc_write_concern_t *given = mongoc_uri_get_write_concern(s->uri);
        mongoc_write_concern_t *wc = given ? mongoc_write_concern_copy(given) : mongoc_write_concern_new();
        int64_t answer_ms;

        default_int(s->uri, MONGOC_URI_SERVERSELECTIONTIMEOUTMS, SELECTION_MS);
        default_int(s->uri, MONGOC_URI_CONNECTTIMEOUTMS, CONNECT_MS);
        default_int(s->uri, MONGOC_URI_SOCKETTIMEOUTMS, s->answer_timeout_ms);
        answer_ms = mongoc_uri_get_option_as_int32(s->uri, MONGOC_URI_SOCKETTIMEOUTMS, (int32_t) s->answer_timeout_ms);
        s->answer_timeout_ms = answer_ms > 0 ? answer_ms : s->answer_timeout_ms;
        mongoc_uri_set_option_as_int32(s->uri, MONGOC_URI_MAXPOOLSIZE, (int32_t) s->connections + 2);
        mongoc_uri_set_option_as_int32(s->uri, MONGOC_URI_WAITQUEUETIMEOUTMS, SELECTION_MS);
        if (!mongoc_uri_has_option(s->uri, MONGOC_URI_RETRYWRITES))
                mongoc_uri_set_option_as_bool(s->uri, MONGOC_URI_RETRYWRITES, true);
        if (!mongoc_uri_get_appname(s->uri))
                mongoc_uri_set_appname(s->uri, "omnidaemon");
        if (!om_url_param(url, "w"))
                mongoc_write_concern_set_wmajority(wc, 0);
        if (!om_url_param(url, "journal") && mongoc_write_concern_get_w(wc) != 0)
                mongoc_write_concern_set_journal(wc, true);
        if (mongoc_write_concern_get_wtimeout_int64(wc) <= 0) /* before the socket's, so that the server says what is amiss */
                mongoc_write_concern_set_wtimeout_int64(wc, s->answer_timeout_ms - s->answer_timeout_ms / 4);
        s->majority = mongoc_write_concern_get_wmajority(wc);
        s->journal = mongoc_write_concern_get_journal(wc);
        bool acknowledged = mongoc_write_concern_is_acknowledged(wc);
        mongoc_uri_set_write_concern(s->uri, wc);
        mongoc_write_concern_destroy(wc);
        s->tls = mongoc_uri_get_tls(s->uri);
        return acknowledged ? 0 : om_error_set(e, OM_INVALID, "MongoDB: w=0: a storage must know what became of a write; w=majority, or 1");
}

static int set_names(struct om_mongo_settings *s, const struct om_url *url, const char *prefix, struct om_error *e) {
        const char *database = mongoc_uri_get_database(s->uri);
        struct om_buf b = OM_BUF_INIT;

        s->database = strdup(database && database[0] ? database : "omnidaemon");
        s->collection_prefix = strdup(prefix);
        om_buf_printf(&b, "database %s at ", s->database ? s->database : "");
        for (size_t i = 0; i < url->n_hosts; i++) {
                om_buf_printf(&b, "%s%s", i ? "," : "", url->hosts[i].name);
                if (url->hosts[i].port)
                        om_buf_printf(&b, ":%u", (unsigned) url->hosts[i].port);
        }
        om_buf_putc(&b, 0);
        if (om_buf_ok(&b))
                s->where = b.data;
        else
                om_buf_deinit(&b);
        memset(s->passed, 0, sizeof s->passed);
        if (!s->database || !s->collection_prefix || !s->where)
                return om_error_set_errno(e, ENOMEM, "MongoDB");
        if (strlen(prefix) > 60 || strchr(prefix, '$') || strncmp(prefix, "system.", 7) == 0)
                return om_error_set(
                        e, OM_INVALID, "MongoDB: collection_prefix=%.60s: at most 60 bytes, no $, not beginning with system.", prefix);
        return 0;
}

int om_mongo_settings_read(struct om_mongo_settings *s, struct om_url *url, struct om_error *e) {
        struct om_buf b = OM_BUF_INIT;
        const char *prefix;
        bson_error_t why = { 0 };
        int r;

        memset(s, 0, sizeof *s);
        put_uri(&b, url);
        r = om_buf_ok(&b) ? om_options_read(om_mongo_options, url, s, e) : om_error_set_errno(e, ENOMEM, "MongoDB");
        prefix = s->collection_prefix;
        s->collection_prefix = NULL;
        if (r == 0 && (url->n_hosts == 0 || !url->hosts[0].name[0]))
                r = om_error_set(e, OM_INVALID, "MongoDB: the URL names no host: mongodb://HOST/DATABASE");
        if (r == 0 && !(s->uri = mongoc_uri_new_with_error(b.data, &why)))
                r = om_error_set(e, OM_INVALID, "MongoDB: %.300s", why.message);
        if (b.data)
                memset(b.data, 0, b.len); /* it holds the password */
        om_buf_deinit(&b);
        if (r == 0)
                r = set_defaults(s, url, e);
        if (r == 0)
                r = set_names(s, url, prefix, e);
        if (r < 0)
                om_mongo_settings_free(s);
        return r;
}

void om_mongo_settings_free(struct om_mongo_settings *s) {
        if (s->uri)
                mongoc_uri_destroy(s->uri);
        free(s->database);
        free(s->where);
        free((char *) s->collection_prefix);
        memset(s, 0, sizeof *s);
}
