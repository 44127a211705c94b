/* SPDX-License-Identifier: Apache-2.0 */
/* Codes of the server (its error_codes.yml) and libmongoc's domains: see errors.h. */
#include <stdio.h>
#include <string.h>

#include "errors.h"

static const struct {
        uint32_t code;
        enum om_kind kind;
        const char *hint;
} meanings[] = {
        { 13, OM_DENIED, "the user in the URL lacks a privilege: it needs the role readWrite on the database" },
        { 18, OM_DENIED, "the user or the password in the URL is wrong, or authSource names another database" },
        { 11, OM_DENIED, "the user in the URL is not known to authSource" },
        { 6, OM_UNAVAILABLE, NULL },
        { 7, OM_UNAVAILABLE, NULL },
        { 64, OM_UNAVAILABLE, "not as many members as `w` in the URL asks for have the write: see the replica set" },
        { 79, OM_INVALID, "`w` in the URL" },
        { 100, OM_INVALID, "the replica set has fewer members than `w` in the URL" },
        { 50, OM_TIMEOUT, NULL },
        { 262, OM_UNAVAILABLE, NULL },
        { 89, OM_UNAVAILABLE, NULL },
        { 91, OM_UNAVAILABLE, "the server is shutting down" },
        { 189, OM_UNAVAILABLE, NULL },
        { 9001, OM_UNAVAILABLE, NULL },
        { 10107, OM_UNAVAILABLE, "this member is not the primary: name all hosts, and replicaSet" },
        { 11600, OM_UNAVAILABLE, NULL },
        { 11602, OM_UNAVAILABLE, NULL },
        { 13435, OM_UNAVAILABLE, "this member is not the primary: name all hosts, and replicaSet" },
        { 13436, OM_UNAVAILABLE, NULL },
        { 14031, OM_UNAVAILABLE, "the server's disk is full" },
        { 10334, OM_LIMIT, NULL },
        { 17419, OM_LIMIT, NULL },
        { 17420, OM_LIMIT, NULL },
        { 292, OM_LIMIT, "the server refused to use more memory or disk for it" },
        { 2, OM_INVALID, NULL },
        { 9, OM_INVALID, NULL },
        { 14, OM_INVALID, NULL },
        { 59, OM_UNSUPPORTED, "the server does not know the command" },
        { 115, OM_UNSUPPORTED, NULL },
        { 238, OM_UNSUPPORTED, NULL },
        { 73, OM_INVALID, "the database or collection_prefix in the URL is no name that the server takes" },
};

uint32_t om_mongo_code(const bson_error_t *why) {
        return why->domain == MONGOC_ERROR_SERVER || why->domain == MONGOC_ERROR_WRITE_CONCERN || why->domain == MONGOC_ERROR_COMMAND ||
                        why->domain == MONGOC_ERROR_QUERY
                ? why->code
                : 0;
}

static const char *hint_of(uint32_t code, enum om_kind *kind) {
        for (size_t i = 0; code && i < sizeof meanings / sizeof *meanings; i++)
                if (meanings[i].code == code) {
                        *kind = meanings[i].kind;
                        return meanings[i].hint;
                }
        return NULL;
}

bool om_mongo_is_away(const bson_error_t *why) {
        enum om_kind kind = OM_INVALID;

        if (why->domain == MONGOC_ERROR_STREAM || why->domain == MONGOC_ERROR_SERVER_SELECTION || why->domain == MONGOC_ERROR_CLIENT ||
                why->domain == MONGOC_ERROR_PROTOCOL)
                return true;
        hint_of(om_mongo_code(why), &kind);
        return kind == OM_UNAVAILABLE && om_mongo_code(why) != 64 && om_mongo_code(why) != 14031;
}

/* Not the user's rights, not the server's state. What is not known is taken for one of the value: it is tried again, plainer. */
bool om_mongo_is_of_value(uint32_t code) {
        enum om_kind kind = OM_INVALID;

        hint_of(code, &kind);
        return code != OM_MONGO_DUPLICATE && (kind == OM_INVALID || kind == OM_LIMIT);
}

/* What fails before the server says anything: by libmongoc's words. */
static const char *local_hint(const struct om_mongo_settings *s, const char *text, enum om_kind *kind) {
        static const struct {
                const char *words;
                enum om_kind kind;
                const char *hint;
        } hints[] = {
                { "certificate has expired", OM_INVALID, "the server's certificate has expired" },
                { "certificate verify failed", OM_INVALID,
                        "the server's certificate is not signed by tlsCAFile, or not valid for this host and now" },
                { "Cannot find certificate", OM_INVALID, "tlsCertificateKeyFile in the URL" },
                { "Cannot load Certificate Authorities", OM_INVALID, "tlsCAFile in the URL" },
                { "certificate", OM_INVALID, "the certificates: tlsCAFile and tlsCertificateKeyFile in the URL" },
                { "TLS handshake failed", OM_UNAVAILABLE,
                        "the server has no TLS, or refuses the certificate: tls, tlsCAFile and tlsCertificateKeyFile in the URL" },
                { "Failed to resolve", OM_UNAVAILABLE, "the host in the URL cannot be resolved" },
                { "Failed to look up SRV", OM_UNAVAILABLE, "the host of a mongodb+srv URL must have SRV records" },
                { "connection refused", OM_UNAVAILABLE, "nobody listens there: host and port in the URL" },
        };

        for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
                if (strcasestr(text, hints[i].words)) {
                        *kind = hints[i].kind;
                        return hints[i].hint;
                }
        if (s->tls)
                return "tls=true in the URL: does the server speak TLS, and does it ask for a certificate (tlsCertificateKeyFile)?";
        if (s->uri && mongoc_uri_get_replica_set(s->uri))
                return "replicaSet in the URL must be the name of the set that the hosts are members of";
        return "is the server there, and does it want TLS (tls=true in the URL)?";
}

static void one_line(const char *from, char *to, size_t size) {
        size_t n = 0;

        for (; *from && n + 1 < size; from++)
                to[n++] = *from == '\n' || *from == '\r' ? ' ' : *from;
        to[n] = 0;
}

int om_mongo_error(const struct om_mongo_settings *s, const bson_error_t *why, const char *doing, struct om_error *e) {
        enum om_kind kind = OM_UNAVAILABLE;
        const char *hint;
        char text[240];

        one_line(why->message, text, sizeof text);
        if (om_mongo_code(why)) {
                kind = OM_INVALID;
                hint = hint_of(why->code, &kind);
        } else if (why->domain == MONGOC_ERROR_CLIENT && why->code == MONGOC_ERROR_CLIENT_AUTHENTICATE) {
                kind = OM_DENIED;
                hint = "the user or the password in the URL is wrong, or authSource names another database";
        } else if (why->domain == MONGOC_ERROR_BSON)
                kind = OM_INVALID, hint = NULL;
        else
                hint = local_hint(s, text, &kind);
        return om_error_set(e, kind, "MongoDB: %.80s: %s: %s%s%s", s->where, doing, text, hint ? "; " : "", hint ? hint : "");
}
