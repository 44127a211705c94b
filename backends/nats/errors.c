/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What went wrong, and what to mend: connections that are not made, and answers of JetStream that are none.
 * Any thread.
 */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>

#include "json.h"
#include "link.h"

unsigned nats_error_code(struct om_span answer) { return (unsigned) nats_json_u64(answer, "error.err_code"); }

struct meaning {
        unsigned code;
        enum om_kind kind;
        const char *help;
};
static const struct meaning meanings[] = {
        { NATS_ERR_NOT_ENABLED_FOR_ACCOUNT, OM_UNSUPPORTED,
                "JetStream is not enabled for this account: give the account a `jetstream` setting on the server" },
        { NATS_ERR_NOT_ENABLED, OM_UNSUPPORTED,
                "JetStream is not enabled: start the server with -js, or with a `jetstream` block in its configuration" },
        { NATS_ERR_CONSUMER_NOT_FOUND, OM_NOT_FOUND, "there is no such consumer" },
        { NATS_ERR_STREAM_NOT_FOUND, OM_NOT_FOUND, "there is no such stream" },
        { NATS_ERR_NO_MESSAGE, OM_NOT_FOUND, "there is no such message" },
        { NATS_ERR_STREAM_EXISTS, OM_EXISTS, "a stream of this name exists with other settings" },
        { 10002, OM_LIMIT,
                "the account's storage quota is used up: raise max_file or max_mem of the account on the server, or purge "
                "streams" }, /* JSAccountResourcesExceededErr
                              */
        { 10005, OM_INVALID, "no server of the cluster can take it: lower replicas in the URL, or look at the cluster" },
        { 10008, OM_UNAVAILABLE, "JetStream is not available: the cluster has no leader now" },
        { 10009, OM_UNAVAILABLE, "this server does not lead; ask again" },
        { 10023, OM_LIMIT, "the server's JetStream resources are used up: raise max_file_store or max_memory_store" },
        { NATS_ERR_CONSUMERS_LIMIT, OM_LIMIT, "the stream or its account has as many consumers as it may: raise max_consumers of either" },
        { 10027, OM_LIMIT, "the account has as many streams as it may: raise max_streams of the account" },
        { 10028, OM_LIMIT, "the server's memory for JetStream is used up: raise max_memory_store" },
        { 10047, OM_LIMIT, "the server's storage quota for JetStream is used up: raise max_file_store, or purge streams" },
        { 10054, OM_LIMIT, "the message is larger than the stream takes" },
        { 10065, OM_EXISTS,
                "another stream has these subjects already: mend stream= in the URL, which all daemons with this prefix must say alike or "
                "leave out, or choose another prefix" },
        { 10074, OM_INVALID, "replicas in the URL is more than this server can: it is no cluster" },
        { 10121, OM_LIMIT, "the stream asks for more bytes than max_stream_bytes or the account allows: set max_topic_bytes in the URL" },
        { NATS_ERR_DUPLICATE_UNDER_WAY, OM_UNAVAILABLE, "another message with this id is being stored" },
        { 10167, OM_UNAVAILABLE, "the stream has more waiting to be stored than the server lets it: max_buffered_msgs, max_buffered_size" },
        { 0 },
};

static int from_answer(struct om_span answer, const char *what, struct om_error *e) {
        struct om_arena arena = { 0 };
        unsigned code = nats_error_code(answer);
        uint64_t status = nats_json_u64(answer, "error.code");
        struct om_span text = nats_json_text(answer, "error.description", &arena);
        enum om_kind kind = status == 404 ? OM_NOT_FOUND : status == 503 ? OM_UNAVAILABLE : status == 400 ? OM_INVALID : OM_INTERNAL;
        const struct meaning *m = meanings;
        int r;

        while (m->code && m->code != code)
                m++;
        if (code == NATS_ERR_STORE_FAILED)
                kind = memmem(text.p, text.len, "maximum", 7) || memmem(text.p, text.len, "exceeded", 8) ? OM_LIMIT : OM_UNAVAILABLE;
        if (m->code)
                r = om_error_set(e, m->kind, "NATS: %s: %s (%.*s)", what, m->help, OM_PRI(text));
        else
                r = om_error_set(e, kind, "NATS: %s: %.*s", what, OM_PRI(text));
        om_arena_deinit(&arena);
        return r;
}

int nats_error(const struct nats_reply *reply, const char *what, struct om_error *e) {
        if (reply->status == -EAGAIN)
                return om_error_set(
                        e, OM_UNAVAILABLE, "NATS: %s: the connection to the server is gone, or the cluster has no leader", what);
        if (reply->status == -ENOENT)
                return om_error_set(e, OM_UNAVAILABLE,
                        "NATS: %s: nobody answers: JetStream is not enabled on this server (start it with -js), or not for this account, "
                        "or the "
                        "domain of the URL is another",
                        what);
        if (reply->status == -EACCES)
                return om_error_set(e, OM_DENIED,
                        "NATS: %s: the server denies it: the user of the URL lacks the permission to publish to this subject", what);
        if (reply->status < 0)
                return om_error_set_errno(e, reply->status, "NATS: %s", what);
        if (nats_json_get(reply->data, "error").p)
                return from_answer(reply->data, what, e);
        return 0;
}

/* The host that does not resolve, if that is it. */
static const char *unresolved(const struct om_url *url) {
        struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;

        for (size_t i = 0; i < url->n_hosts; i++) {
                int r = getaddrinfo(url->hosts[i].name, NULL, &hints, &found);

                if (r == 0)
                        freeaddrinfo(found);
                else
                        return url->hosts[i].name;
        }
        return NULL;
}

int nats_unsent(int r, struct om_error *e) {
        return r == -EAGAIN ? om_error_set(e, OM_UNAVAILABLE, "NATS: not connected") : om_error_set_errno(e, r, "NATS");
}

void nats_connect_error(natsStatus s, const char *text, const struct om_url *url, const char *where, struct om_error *e) {
        const char *host;

        if (s == NATS_CONNECTION_AUTH_FAILED || strcasestr(text, "authorization violation"))
                om_error_set(e, OM_DENIED,
                        "NATS at %s: the server refuses the credentials: mend user and password, token, nkey or credentials_file of the "
                        "URL",
                        where);
        else if (s == NATS_SECURE_CONNECTION_WANTED)
                om_error_set(e, OM_UNAVAILABLE, "NATS at %s: the server does not speak TLS here: use nats:// instead of tls://", where);
        else if (s == NATS_SECURE_CONNECTION_REQUIRED)
                om_error_set(e, OM_UNAVAILABLE, "NATS at %s: the server wants TLS: use tls://", where);
        else if (s == NATS_SSL_ERROR || strcasestr(text, "ssl") || strcasestr(text, "certificate"))
                om_error_set(e, OM_UNAVAILABLE,
                        "NATS at %s: TLS fails: %.200s; look at tls_ca_file, tls_cert_file with tls_key_file, and tls_hostname, and at the "
                        "certificate of the server",
                        where, text);
        else if ((host = unresolved(url)))
                om_error_set(e, OM_UNAVAILABLE, "NATS: cannot resolve the host %.100s of the URL", host);
        else if (s == NATS_TIMEOUT)
                om_error_set(e, OM_UNAVAILABLE, "NATS at %s: the server did not answer in time while connecting (%.200s)", where, text);
        else if (s == NATS_NO_SERVER)
                om_error_set(e, OM_UNAVAILABLE, "NATS: no server answers at %s", where);
        else
                om_error_set(e, OM_UNAVAILABLE, "NATS at %s: %.250s", where, *text ? text : natsStatus_GetText(s));
}
