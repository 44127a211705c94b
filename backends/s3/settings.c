/* SPDX-License-Identifier: Apache-2.0 */
/* URLs: see settings.h. What is true: no message holds a secret; what a name or a host is put together from was checked here. */
#include <stdio.h>
#include <stdlib.h>

#include "settings.h"

static const char *const styles[] = { "auto", "virtual", "path", NULL };
static const char *const encryptions[] = { "default", "AES256", "aws:kms", NULL };

#define TEXT(name, field, doc) \
        { name, OM_OPTION_STRING, offsetof(struct s3_settings, field), NULL, NULL, 0, 0, doc }

const struct om_option s3_options[] = {
        TEXT("region", region,
                "Region of the bucket. Without it AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1, which other servers take."),
        TEXT("endpoint", endpoint,
                "URL of a server other than Amazon's: http://HOST:PORT. Without it AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL."),
        { "addressing", OM_OPTION_ENUM, offsetof(struct s3_settings, addressing), "auto", styles, 0, 0,
                "Where the bucket's name stands: virtual (in the host), path, or auto: path with an endpoint or a dot in the name." },
        TEXT("profile", profile, "Profile of the shared files that has the credentials. Without it AWS_PROFILE, or \"default\"."),
        TEXT("session_token", session_token, "Goes with temporary credentials as user and password of the URL."),
        TEXT("tls_ca_file", tls_ca_file, "Certificates of the authorities to trust. Without it AWS_CA_BUNDLE, or the system's."),
        { "tls_verify", OM_OPTION_BOOL, offsetof(struct s3_settings, tls_verify), "true", NULL, 0, 0,
                "Whether the server's certificate is verified." },
        TEXT("storage_class", storage_class, "Storage class of what is written, STANDARD_IA say. Without it the bucket's own."),
        { "encryption", OM_OPTION_ENUM, offsetof(struct s3_settings, encryption), "default", encryptions, 0, 0,
                "Server-side encryption: AES256, aws:kms, or default: what the bucket says." },
        TEXT("kms_id", kms_id, "With encryption=aws:kms: identifier of the key; without it the account's."),
        TEXT("replica", replica,
                "s3:// URL of a copy, read when this bucket cannot be; the prefix is the same unless it names one. It has no user and "
                "password: "
                "the credentials are the same, or those of its profile."),
        { "manage_lifecycle", OM_OPTION_BOOL, offsetof(struct s3_settings, manage_lifecycle), "false", NULL, 0, 0,
                "Whether the bucket gets lifecycle rules that delete what has expired; without them it is swept." },
        { "sweep_interval", OM_OPTION_MS, offsetof(struct s3_settings, sweep_ms), "1h", NULL, 100, (int64_t) 30 * 86400000,
                "Without lifecycle rules: how long after a write that expires the bucket is looked through for what has expired." },
        { "metrics_ttl", OM_OPTION_MS, offsetof(struct s3_settings, metrics_ttl_ms), "30d", NULL, 0, 0,
                "How long metrics are kept. 0: for ever." },
        { "connections", OM_OPTION_INT, offsetof(struct s3_settings, connections), "32", NULL, 1, 1000,
                "Requests that are under way at a time." },
        { "retries", OM_OPTION_INT, offsetof(struct s3_settings, retries), "5", NULL, 0, 20,
                "How often a request is repeated that the server could not serve or wants later." },
        { "connect_timeout", OM_OPTION_MS, offsetof(struct s3_settings, connect_ms), "5s", NULL, 100, 300000,
                "How long connecting may take." },
        { "stall_timeout", OM_OPTION_MS, offsetof(struct s3_settings, stall_ms), "30s", NULL, 1000, 3600000,
                "After how long without a byte a request counts as lost." },
        { "part_size", OM_OPTION_BYTES, offsetof(struct s3_settings, part_bytes), "8M", NULL, 5 << 20, (int64_t) 1 << 30,
                "What is larger is written in parts of this size." },
        { .name = NULL },
};

static bool only(const char *text, const char *allowed) { return text[strspn(text, allowed)] == 0; }

#define ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

static int read_names(struct s3_place *p, const struct om_url *url, struct om_error *e) {
        const char *path = url->path[0] == '/' ? url->path + 1 : url->path;
        size_t len = strlen(path);

        if (url->n_hosts != 1 || url->hosts[0].port)
                return om_error_set(e, OM_INVALID, "S3: the URL is s3://BUCKET/PREFIX; a server is named by endpoint=http://HOST:PORT");
        snprintf(p->bucket, sizeof p->bucket, "%s", url->hosts[0].name);
        if (strlen(p->bucket) < 3 || strlen(url->hosts[0].name) > 255 || !only(p->bucket, ALNUM "-._"))
                return om_error_set(
                        e, OM_INVALID, "S3: bucket \"%.80s\": letters, digits, \"-\" and \".\" are expected, 3 at least", p->bucket);
        while (len && path[len - 1] == '/')
                len--;
        if (len > S3_PREFIX_MAX || strspn(path, ALNUM "-._=+~/") < len || strstr(path, "//") || strstr(path, "/.") || path[0] == '.')
                return om_error_set(e, OM_INVALID,
                        "S3: prefix \"%.100s\": letters, digits, \"-._=+~\" and single slashes are expected, at most %d bytes, no part "
                        "beginning "
                        "with a dot",
                        path, S3_PREFIX_MAX);
        if (len)
                snprintf(p->prefix, sizeof p->prefix, "%.*s/", (int) len, path);
        else
                snprintf(p->prefix, sizeof p->prefix, "omnidaemon/");
        return 0;
}

static const char *first_of(const char *a, const char *b, const char *c, const char *d) { return a ? a : b ? b : c ? c : d; }

static const char *variable(const char *name) {
        const char *text = getenv(name);

        return text && *text ? text : NULL;
}

static int read_region(struct s3_place *p, const struct s3_settings *s, const char *profile_region, struct om_error *e) {
        const char *region = first_of(s->region, variable("AWS_REGION"), variable("AWS_DEFAULT_REGION"), profile_region);

        if (!region)
                region = "us-east-1";
        if (!*region || strlen(region) >= sizeof p->region || !only(region, ALNUM "-"))
                return om_error_set(
                        e, OM_INVALID, "S3: region \"%.60s\": a name as eu-central-1 is expected (region of the URL, S3_REGION)", region);
        snprintf(p->region, sizeof p->region, "%s", region);
        return 0;
}

/* http://HOST[:PORT], as the URL or the environment has it. */
static int read_endpoint(struct s3_place *p, const char *endpoint, const char **ret_scheme, char *host, size_t size, struct om_error *e) {
        struct om_url *url;
        const char *form = "http://HOST:PORT or https://HOST is expected (endpoint of the URL, S3_ENDPOINT)";
        int r = om_url_parse(endpoint, &url, e);

        if (r < 0) {
                om_error_prefix(e, "S3: endpoint");
                return r;
        }
        if ((strcmp(url->scheme, "http") != 0 && strcmp(url->scheme, "https") != 0) || url->n_hosts != 1 || url->user || url->password ||
                url->n_params || (url->path[0] && strcmp(url->path, "/") != 0))
                r = om_error_set(e, OM_INVALID, "S3: endpoint: %s", form);
        else {
                bool v6 = strchr(url->hosts[0].name, ':') != NULL;

                *ret_scheme = strcmp(url->scheme, "http") == 0 ? "http" : "https";
                snprintf(host, size, "%s%s%s", v6 ? "[" : "", url->hosts[0].name, v6 ? "]" : "");
                if (url->hosts[0].port && url->hosts[0].port != (strcmp(*ret_scheme, "http") == 0 ? 80 : 443))
                        snprintf(host + strlen(host), size - strlen(host), ":%u", url->hosts[0].port);
                if (strlen(url->hosts[0].name) > 250)
                        r = om_error_set(e, OM_INVALID, "S3: endpoint: %s", form);
        }
        om_url_free(url);
        return r;
}

int s3_place_read(struct s3_place *p, const struct om_url *url, const struct s3_settings *s, const char *profile_region,
        const char *profile_endpoint, struct om_error *e) {
        const char *endpoint = first_of(s->endpoint, variable("AWS_ENDPOINT_URL_S3"), variable("AWS_ENDPOINT_URL"), profile_endpoint);
        const char *scheme = "https";
        char host[300];
        bool path;
        int r;

        *p = (struct s3_place){ .aws = !endpoint };
        r = read_names(p, url, e);
        if (r == 0)
                r = read_region(p, s, profile_region, e);
        if (r == 0 && endpoint)
                r = read_endpoint(p, endpoint, &scheme, host, sizeof host, e);
        else if (r == 0)
                snprintf(host, sizeof host, "s3.%s.amazonaws.com%s", p->region, strncmp(p->region, "cn-", 3) == 0 ? ".cn" : "");
        if (r < 0)
                return r;
        path = s->addressing == S3_ADDRESSING_PATH || (s->addressing == S3_ADDRESSING_AUTO && (endpoint || strchr(p->bucket, '.')));
        if (path) {
                snprintf(p->host, sizeof p->host, "%s", host);
                snprintf(p->root, sizeof p->root, "/%s", p->bucket);
        } else if (snprintf(p->host, sizeof p->host, "%.120s.%s", p->bucket, host) >= (int) sizeof p->host)
                return om_error_set(e, OM_INVALID, "S3: the bucket's name is too long for a host's; use addressing=path");
        if (snprintf(p->base, sizeof p->base, "%s://%s", scheme, p->host) >= (int) sizeof p->base)
                return om_error_set(e, OM_INVALID, "S3: the endpoint's name is too long");
        snprintf(p->where, sizeof p->where, "bucket %s at %s", p->bucket, host);
        return 0;
}
