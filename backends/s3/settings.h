/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_SETTINGS_H
#define OM_S3_SETTINGS_H
/*
 * What a URL of S3 says: s3://[KEY_ID:SECRET@]BUCKET[/PREFIX]?region=…&endpoint=…, and where that is as requests see it. Loop thread.
 */
#include "../options.h"

enum { S3_PREFIX_MAX = 200 };
enum { S3_ADDRESSING_AUTO, S3_ADDRESSING_VIRTUAL, S3_ADDRESSING_PATH };
enum { S3_ENCRYPTION_DEFAULT, S3_ENCRYPTION_AES256, S3_ENCRYPTION_KMS };

struct s3_settings {
        const char *region, *endpoint, *profile, *session_token, *tls_ca_file, *storage_class, *kms_id, *replica;
        int addressing, encryption;
        bool tls_verify, manage_lifecycle;
        int64_t connections, retries, connect_ms, stall_ms, part_bytes, metrics_ttl_ms, sweep_ms;
};
extern const struct om_option s3_options[];

/* A bucket as requests see it. */
struct s3_place {
        char bucket[256], region[64];
        char prefix[S3_PREFIX_MAX + 2]; /* what our names begin with: "" or with a slash at its end */
        char base[400];                 /* "https://HOST:PORT", without a slash */
        char host[400];                 /* as in the header Host */
        char root[300];                 /* of the path: "" or "/BUCKET" */
        char where[700];                /* for messages: "bucket B at HOST" */
        bool aws;                       /* Amazon's own */
};

/* `profile_region`, `profile_endpoint`: what the shared files say, or NULL. -EINVAL with `e` naming the part of the URL. */
int s3_place_read(struct s3_place *p, const struct om_url *url, const struct s3_settings *s, const char *profile_region,
        const char *profile_endpoint, struct om_error *e);

#endif
