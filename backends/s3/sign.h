/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_SIGN_H
#define OM_S3_SIGN_H
/*
 * AWS Signature Version 4 (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html): what the header Authorization
 * says of a request. Pure; thread: any.
 *
 * It is ours and not libcurl's CURLOPT_AWS_SIGV4, because that of Debian 12 (7.88) neither sorts nor encodes the query and hashes no body
 * but that of a POST.
 */
#include "../../proto/buf.h"

enum { S3_SHA256_HEX = 64, S3_AMZ_DATE = 16 };

struct s3_pair {
        const char *name, *value;
};
struct s3_signable {
        const char *method;
        const char *path;              /* encoded as it is sent, from its slash on */
        const char *query;             /* without the question mark: encoded, sorted by name; "" is none */
        const struct s3_pair *headers; /* all that are signed, `host` among them: names in lower case, sorted */
        size_t n_headers;
        const char *body_sha256;      /* in hexadecimal */
        const char *amz_date;         /* "20130524T000000Z" */
        const char *region, *service; /* "s3" */
        const char *key_id, *secret;
};
/* Appends "AWS4-HMAC-SHA256 Credential=…". */
void s3_sign(struct om_buf *b, const struct s3_signable *r);

void s3_sha256_hex(char out[static S3_SHA256_HEX + 1], struct om_span data);
/* RFC 1864: what Content-MD5 is of these bytes. */
void s3_md5_base64(char out[static 25], struct om_span data);
void s3_amz_date(char out[static S3_AMZ_DATE + 1], int64_t now_ms);
/* RFC 3986's unreserved characters stay; `slash` too where it is to. */
void s3_url_encode(struct om_buf *b, struct om_span text, bool slash);

#endif
