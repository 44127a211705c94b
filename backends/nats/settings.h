/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_SETTINGS_H
#define OM_NATS_SETTINGS_H
/*
 * What a URL of NATS says, as the library wants it: hosts, credentials, TLS, and the parameters that the bus and the storage share.
 */
#include <nats/nats.h>

#include "../options.h"

/* The parameters of the connection; first in the settings of bus and storage. */
struct nats_settings {
        const char *token, *nkey, *nkey_file, *credentials_file;
        const char *tls_ca_file, *tls_cert_file, *tls_key_file, *tls_hostname;
        const char *domain, *prefix, *inbox_prefix;
        bool tls_verify;
        int storage; /* place in nats_storages */
        int sync;    /* place in nats_syncs */
        int64_t replicas;
};
extern const char *const nats_storages[]; /* file memory */
extern const char *const nats_syncs[];    /* unknown always */
enum { NATS_STORAGE_FILE, NATS_STORAGE_MEMORY };
enum { NATS_SYNC_UNKNOWN, NATS_SYNC_ALWAYS };

#define NATS_OPTIONS(type)                                                                                                          \
        { "token", OM_OPTION_STRING, offsetof(type, c.token), "", NULL, 0, 0,                                                       \
                "Token that the server wants instead of user and password." },                                                      \
                { "nkey", OM_OPTION_STRING, offsetof(type, c.nkey), "", NULL, 0, 0, "Public NKey (\"U…\"); goes with nkey_file." }, \
                { "nkey_file", OM_OPTION_STRING, offsetof(type, c.nkey_file), "", NULL, 0, 0, "File with the seed of the NKey." },  \
                { "credentials_file", OM_OPTION_STRING, offsetof(type, c.credentials_file), "", NULL, 0, 0,                         \
                        "File with the user's JWT and seed, as `nsc` writes it." },                                                 \
                { "tls_ca_file", OM_OPTION_STRING, offsetof(type, c.tls_ca_file), "", NULL, 0, 0,                                   \
                        "Certificates of the authorities to trust; without it, the system's." },                                    \
                { "tls_cert_file", OM_OPTION_STRING, offsetof(type, c.tls_cert_file), "", NULL, 0, 0,                               \
                        "Our certificate, where the server wants one; goes with tls_key_file." },                                   \
                { "tls_key_file", OM_OPTION_STRING, offsetof(type, c.tls_key_file), "", NULL, 0, 0, "Its private key." },           \
                { "tls_hostname", OM_OPTION_STRING, offsetof(type, c.tls_hostname), "", NULL, 0, 0,                                 \
                        "The name that the server's certificate must have; without it, the URL's host." },                          \
                { "tls_verify", OM_OPTION_BOOL, offsetof(type, c.tls_verify), "true", NULL, 0, 0,                                   \
                        "Whether the server's certificate is verified." },                                                          \
                { "domain", OM_OPTION_STRING, offsetof(type, c.domain), "", NULL, 0, 0,                                             \
                        "JetStream domain, for a hub that is reached through a leaf node or the other way round." },                \
                { "prefix", OM_OPTION_STRING, offsetof(type, c.prefix), "omni", NULL, 0, 0,                                         \
                        "What the names of our streams and subjects begin with." },                                                 \
                { "inbox_prefix", OM_OPTION_STRING, offsetof(type, c.inbox_prefix), "_INBOX", NULL, 0, 0,                           \
                        "What the subjects of answers begin with, where the user may subscribe to some only." },                    \
                { "storage", OM_OPTION_ENUM, offsetof(type, c.storage), "file", nats_storages, 0, 0,                                \
                        "file, or memory, which does not survive the server." },                                                    \
                { "replicas", OM_OPTION_INT, offsetof(type, c.replicas), "1", NULL, 1, 5,                                           \
                        "On how many servers of a cluster each stream is kept; for streams that are made from now on." },           \
        {                                                                                                                           \
                "sync", OM_OPTION_ENUM, offsetof(type, c.sync), "unknown", nats_syncs, 0, 0,                                        \
                        "always, where the servers have `sync_interval: always`: a client cannot ask them, and health goes by it."  \
        }

/* Checks what options alone cannot say, and makes the library's options. They are the caller's: natsOptions_Destroy(). */
int nats_settings_apply(const struct nats_settings *s, const struct om_url *url, natsOptions **ret, struct om_error *e);

/* Whether it is letters, digits and what `more` has, from 1 to `max` of them. */
bool nats_settings_word(const char *s, const char *more, size_t max);
bool nats_settings_tls(const struct om_url *url); /* whether the scheme says so */
/* Why what is kept may be lost although it was acknowledged; NULL: it cannot. */
const char *nats_settings_weak(const struct nats_settings *s);

/* "host:port, host:port" of the URL, for messages. */
void nats_settings_where(const struct om_url *url, char *out, size_t size);

#endif
