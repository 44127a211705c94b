/* SPDX-License-Identifier: Apache-2.0 */
/*
 * URL and parameters as options of the library: see settings.h. What is true: each refusal names the parameter to mend; nothing is
 * connected here. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "settings.h"

enum { HOSTS_MAX = 32, PING_MS = 20000, WRITE_MS = 1000 };

const char *const nats_storages[] = { "file", "memory", NULL };
const char *const nats_syncs[] = { "unknown", "always", NULL };

void nats_settings_where(const struct om_url *url, char *out, size_t size) {
        size_t n = 0;

        out[0] = 0;
        for (size_t i = 0; i < url->n_hosts && n < size; i++)
                n += (size_t) snprintf(out + n, size - n, "%s%.100s:%u", i ? ", " : "", url->hosts[i].name,
                        url->hosts[i].port ? url->hosts[i].port : 4222u);
}

bool nats_settings_tls(const struct om_url *url) { return strncmp(url->scheme, "tls", 3) == 0; }

const char *nats_settings_weak(const struct nats_settings *s) {
        if (s->storage == NATS_STORAGE_MEMORY)
                return "storage=memory: nothing survives the server";
        if (s->sync != NATS_SYNC_ALWAYS)
                return "the server does not tell its clients whether it syncs every write: give it sync_interval: always, and say "
                       "sync=always "
                       "in the URL";
        return NULL;
}

bool nats_settings_word(const char *s, const char *more, size_t max) {
        if (!*s || strlen(s) > max)
                return false;
        for (; *s; s++)
                if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') || strchr(more, *s)))
                        return false;
        return true;
}

static int check(const struct nats_settings *s, const struct om_url *url, struct om_error *e) {
        const char *const files[][2] = { { "nkey_file", s->nkey_file }, { "credentials_file", s->credentials_file },
                { "tls_ca_file", s->tls_ca_file }, { "tls_cert_file", s->tls_cert_file }, { "tls_key_file", s->tls_key_file } };
        int ways = (url->user != NULL) + (*s->token != 0) + (*s->nkey_file != 0) + (*s->credentials_file != 0);

        if (!url->n_hosts)
                return om_error_set(e, OM_INVALID, "NATS: a host is expected, as in nats://localhost:4222");
        if (url->n_hosts > HOSTS_MAX)
                return om_error_set(e, OM_INVALID, "NATS: at most %d hosts", HOSTS_MAX);
        if (!nats_settings_word(s->prefix, "-_", 40))
                return om_error_set(
                        e, OM_INVALID, "NATS: prefix=%.60s: letters, digits, \"-\" and \"_\" are expected, at most 40", s->prefix);
        if (!nats_settings_word(s->inbox_prefix, "-_.", 100))
                return om_error_set(e, OM_INVALID, "NATS: inbox_prefix=%.60s is no subject", s->inbox_prefix);
        if (*s->domain && !nats_settings_word(s->domain, "-_", SIZE_MAX))
                return om_error_set(e, OM_INVALID, "NATS: domain=%.60s is no name of a domain", s->domain);
        if (ways > 1)
                return om_error_set(e, OM_INVALID, "NATS: user and password, token, nkey and credentials_file exclude one another");
        if (!*s->nkey != !*s->nkey_file)
                return om_error_set(e, OM_INVALID, "NATS: nkey and nkey_file belong together");
        if (!*s->tls_cert_file != !*s->tls_key_file)
                return om_error_set(e, OM_INVALID, "NATS: tls_cert_file and tls_key_file belong together");
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
                if (*files[i][1] && access(files[i][1], R_OK) < 0)
                        return om_error_set(e, OM_INVALID, "NATS: %s=%.200s cannot be read: %s", files[i][0], files[i][1], strerror(errno));
        return 0;
}

static natsStatus set_servers(natsOptions *o, const struct om_url *url) {
        char *urls[HOSTS_MAX];
        size_t n = 0;
        natsStatus s = NATS_OK;

        for (; n < url->n_hosts; n++) {
                const char *name = url->hosts[n].name;
                bool six = strchr(name, ':') != NULL;

                if (asprintf(&urls[n], "%s://%s%s%s:%u", nats_settings_tls(url) ? "tls" : "nats", six ? "[" : "", name, six ? "]" : "",
                            url->hosts[n].port ? url->hosts[n].port : 4222u) < 0) {
                        s = NATS_NO_MEMORY;
                        break;
                }
        }
        if (s == NATS_OK)
                s = natsOptions_SetServers(o, (const char **) urls, (int) n);
        while (n)
                free(urls[--n]);
        return s;
}

static natsStatus set_credentials(natsOptions *o, const struct nats_settings *s, const struct om_url *url) {
        if (url->user && url->password)
                return natsOptions_SetUserInfo(o, url->user, url->password);
        if (url->user || *s->token) /* nats://TOKEN@HOST is NATS's own way to write it */
                return natsOptions_SetToken(o, url->user ? url->user : s->token);
        if (*s->nkey_file)
                return natsOptions_SetNKeyFromSeed(o, s->nkey, s->nkey_file);
        if (*s->credentials_file)
                return natsOptions_SetUserCredentialsFromFiles(o, s->credentials_file, NULL);
        return NATS_OK;
}

static int set_tls(natsOptions *o, const struct nats_settings *s, const struct om_url *url, struct om_error *e) {
        static const char system_ca[] = "/etc/ssl/certs/ca-certificates.crt";
        const char *ca = *s->tls_ca_file ? s->tls_ca_file : access(system_ca, R_OK) == 0 ? system_ca : NULL;

        if (!nats_settings_tls(url) && !*s->tls_ca_file && !*s->tls_cert_file)
                return 0;
        if (natsOptions_SetSecure(o, true) != NATS_OK)
                return om_error_set(e, OM_INTERNAL, "NATS: TLS: %s", nats_GetLastError(NULL));
        if (s->tls_verify && ca && natsOptions_LoadCATrustedCertificates(o, ca) != NATS_OK)
                return om_error_set(e, OM_INVALID, "NATS: tls_ca_file=%.200s: %s", ca, nats_GetLastError(NULL));
        if (*s->tls_cert_file && natsOptions_LoadCertificatesChain(o, s->tls_cert_file, s->tls_key_file) != NATS_OK)
                return om_error_set(e, OM_INVALID, "NATS: tls_cert_file=%.150s with tls_key_file=%.150s: %s", s->tls_cert_file,
                        s->tls_key_file, nats_GetLastError(NULL));
        if (!s->tls_verify && natsOptions_SkipServerVerification(o, true) != NATS_OK)
                return om_error_set(e, OM_INTERNAL, "NATS: tls_verify: %s", nats_GetLastError(NULL));
        if (*s->tls_hostname && natsOptions_SetExpectedHostname(o, s->tls_hostname) != NATS_OK)
                return om_error_set(e, OM_INTERNAL, "NATS: tls_hostname: %s", nats_GetLastError(NULL));
        return 0;
}

int nats_settings_apply(const struct nats_settings *s, const struct om_url *url, natsOptions **ret, struct om_error *e) {
        natsOptions *o = NULL;
        int r = check(s, url, e);

        if (r < 0)
                return r;
        if (natsOptions_Create(&o) != NATS_OK)
                return om_error_set_errno(e, ENOMEM, "NATS");
        /* Reconnecting is ours: the library would hold its lock, and who calls it, while it tries. */
        if (natsOptions_SetAllowReconnect(o, false) != NATS_OK || natsOptions_SetWriteDeadline(o, WRITE_MS) != NATS_OK ||
                natsOptions_SetPingInterval(o, PING_MS) != NATS_OK || natsOptions_SetMaxPingsOut(o, 2) != NATS_OK ||
                natsOptions_SetName(o, "omnidaemon") != NATS_OK || natsOptions_SetIOBufSize(o, 128 * 1024) != NATS_OK ||
                set_servers(o, url) != NATS_OK)
                r = om_error_set(e, OM_INVALID, "NATS: %s", nats_GetLastError(NULL));
        else if (set_credentials(o, s, url) != NATS_OK)
                r = om_error_set(e, OM_INVALID, "NATS: the credentials cannot be used: %s", nats_GetLastError(NULL));
        else
                r = set_tls(o, s, url, e);
        if (r < 0)
                natsOptions_Destroy(o);
        else
                *ret = o;
        return r;
}
