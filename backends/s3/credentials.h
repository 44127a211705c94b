/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_CREDENTIALS_H
#define OM_S3_CREDENTIALS_H
/*
 * Where credentials come from, in the order of Amazon's own tools; the first that has some is kept to:
 *
 *   url        user and password of the URL (session_token)
 *   environment  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN — not where the URL names a profile
 *   web identity   AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or the profile's web_identity_token_file and role_arn: STS
 *   files      the profile in AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE (~/.aws/…)
 *   container  AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI
 *   instance   the instance metadata service, version 2 — not with AWS_EC2_METADATA_DISABLED
 *
 * Temporary ones are got anew REFRESH_MS before they expire, when a request needs them then: until they are there requests go on with the
 * old ones, and wait only when these have expired. Nothing runs while nobody asks. Loop thread.
 */
#include "http.h"
#include "settings.h"

struct s3_secret {
        char *key_id, *secret, *token; /* token NULL: permanent ones */
        int64_t expires_ms;            /* 0: never */
};

/* What a profile of the shared files says; absent where it says nothing. Texts are in `arena`. */
struct s3_profile {
        struct om_span key_id, secret, token, region, endpoint, role_arn, session_name, token_file;
        bool found;
};
/* Reads a file of profiles. `config`: sections are "profile NAME", but for "default". What an earlier file has said stays. */
void s3_profile_parse(struct s3_profile *p, struct om_span file, const char *name, bool config, struct om_arena *arena);
/* Of the files that the environment names. 0; -EINVAL: one is there and cannot be read, or the profile that somebody named is in neither.
 */
int s3_profile_load(struct s3_profile *p, const char *named, struct om_arena *arena, struct om_error *e);

/* A small local file, appended. 0; -errno with `e`. */
int s3_read_file(const char *path, struct om_buf *b, struct om_error *e);

/* The two answers. -EINVAL. Texts of `ret` are its own: s3_secret_free(). */
int s3_secret_from_json(struct om_span json, struct s3_secret *ret);
int s3_secret_from_sts(struct om_span xml, struct s3_secret *ret);
void s3_secret_free(struct s3_secret *s);
/* "2026-11-28T20:00:00Z" in Unix milliseconds; -1: no such time. */
int64_t s3_parse_time(struct om_span text);

struct s3_chain;
struct s3_wait {                                                 /* embedded in what waits */
        void (*fn)(struct s3_wait *w, const struct om_error *e); /* NULL: there are some now */
        TAILQ_ENTRY(s3_wait) link;
};
/* `s` is borrowed until this is over. -EINVAL with `e`. */
int s3_chain_new(struct om_host *host, struct s3_http *http, const struct om_url *url, const struct s3_settings *s, const char *region,
        struct s3_chain **ret, struct om_error *e);
void s3_chain_free(struct s3_chain *c); /* nobody waits any more */
/* What can sign now; NULL: wait. */
const struct s3_secret *s3_chain_now(struct s3_chain *c, int64_t now_ms);
/* fn is called later, never from within. */
void s3_chain_wait(struct s3_chain *c, struct s3_wait *w);
void s3_chain_leave(struct s3_chain *c, struct s3_wait *w);
/* The server has refused these as expired: others are got. */
void s3_chain_refused(struct s3_chain *c);
/* "environment", "instance" …: which source it is. */
const char *s3_chain_source(const struct s3_chain *c);

#endif
