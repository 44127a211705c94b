/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an answer of S3 means: a status, a message that names the setting to mend, and whether to try again. Codes are of
 * https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and of MinIO where they begin with XMinio.
 *
 * Always true: nothing of the answer's free text is repeated but the code, the region and the resource's name; no secret was ever in them.
 */
#include <errno.h>
#include <stdio.h>

#include "call.h"
#include "xml.h"

struct told {
        char code[80], region[64];
};

/* Only what a name has goes into a message. */
static void keep(char *out, size_t size, struct om_span text) {
        size_t n = 0;

        for (; n < text.len && n + 1 < size; n++) {
                unsigned char c = (unsigned char) text.p[n];

                out[n] = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || strchr("-._", c) ? (char) c : '?';
        }
        out[n] = 0;
}

static void element(void *ctx, const char *path, struct om_span text) {
        struct told *t = ctx;

        if (strcmp(path, "Code") == 0)
                keep(t->code, sizeof t->code, text);
        else if (strcmp(path, "Region") == 0)
                keep(t->region, sizeof t->region, text);
}

static bool is(const struct told *t, const char *code) { return strcmp(t->code, code) == 0; }

static int not_reached(const struct s3_call *c, struct om_error *e, enum s3_next *next) {
        const struct s3_http_request *r = &c->req;
        const char *where = c->client->place.where, *why = *r->why ? r->why : curl_easy_strerror(r->code);

        switch (r->code) {
        case CURLE_COULDNT_RESOLVE_HOST:
                return om_error_set(
                        e, OM_UNAVAILABLE, "S3: %s: cannot resolve the host; mend endpoint (S3_ENDPOINT) or region (S3_REGION)", where);
        case CURLE_COULDNT_CONNECT:
                return om_error_set(e, OM_UNAVAILABLE, "S3: no server answers for %s: %.150s", where, why);
        case CURLE_OPERATION_TIMEDOUT:
                return om_error_set(e, OM_UNAVAILABLE, "S3: %s does not answer in time: %.150s", where, why);
        case CURLE_PEER_FAILED_VERIFICATION:
                if (strstr(why, "expired"))
                        return om_error_set(e, OM_DENIED, "S3: %s: the server's certificate has expired: renew it on the server", where);
                if (strstr(why, "does not match") || strstr(why, "no alternative"))
                        return om_error_set(e, OM_DENIED,
                                "S3: %s: the server's certificate bears another name: mend the endpoint's host, or use addressing=path",
                                where);
                return om_error_set(e, OM_DENIED,
                        "S3: %s: the server's certificate is not trusted (%.120s): name its authority in tls_ca_file", where, why);
        case CURLE_SSL_CACERT_BADFILE:
                return om_error_set(e, OM_INVALID, "S3: tls_ca_file cannot be used: %.150s", why);
        case CURLE_SSL_CONNECT_ERROR:
                return om_error_set(
                        e, OM_UNAVAILABLE, "S3: %s: TLS fails: %.150s; where the server speaks none, endpoint is http://…", where, why);
        case CURLE_WRITE_ERROR:
                return om_error_set(e, OM_LIMIT, "S3: %s: an answer is larger than is taken", where);
        case CURLE_OUT_OF_MEMORY:
                return om_error_set_errno(e, ENOMEM, "S3");
        default:
                *next = S3_REPEAT;
                return om_error_set(e, OM_UNAVAILABLE, "S3: %s: the connection broke: %.150s", where, why);
        }
}

static const char *action_of(const struct s3_call *c) {
        if (c->action)
                return c->action;
        if (strcmp(c->method, "PUT") == 0)
                return "s3:PutObject";
        if (strcmp(c->method, "DELETE") == 0)
                return "s3:DeleteObject";
        return c->name ? "s3:GetObject (and s3:ListBucket)" : "s3:ListBucket";
}

static int denied(const struct s3_call *c, const struct told *t, struct om_error *e) {
        const struct s3_place *p = &c->client->place;
        const char *source = s3_chain_source(c->client->chain);

        if (is(t, "InvalidAccessKeyId"))
                return om_error_set(e, OM_DENIED,
                        "S3: %s: the server does not know the access key ID (credentials of the %s): mend AWS_ACCESS_KEY_ID or the URL's "
                        "user",
                        p->where, source);
        if (is(t, "SignatureDoesNotMatch"))
                return om_error_set(e, OM_DENIED,
                        "S3: %s: the secret access key is wrong (credentials of the %s): mend AWS_SECRET_ACCESS_KEY or the URL's password, "
                        "where "
                        "/ is written %%2F and + as it is",
                        p->where, source);
        if (is(t, "InvalidToken") || is(t, "ExpiredToken") || is(t, "TokenRefreshRequired"))
                return om_error_set(e, OM_DENIED, "S3: %s: the session token is %s (credentials of the %s): get new ones", p->where,
                        is(t, "InvalidToken") ? "not valid" : "expired", source);
        if (is(t, "AccountProblem") || is(t, "InvalidPayer") || is(t, "AllAccessDisabled"))
                return om_error_set(e, OM_DENIED, "S3: %s: %s: look at the account", p->where, t->code);
        return om_error_set(e, OM_DENIED,
                "S3: %s: access denied: the policy of the credentials (of the %s) or of the bucket must allow %s on %s%s%s", p->where,
                source, action_of(c), p->bucket, c->name ? "/" : "", c->name ? p->prefix : "");
}

static int elsewhere(const struct s3_call *c, const struct told *t, struct om_error *e) {
        const struct s3_place *p = &c->client->place;
        struct om_span header = s3_http_header(&c->req, "x-amz-bucket-region");
        char region[64] = "";

        keep(region, sizeof region, header);
        if (!*region)
                snprintf(region, sizeof region, "%s", t->region);
        if (*region && strcmp(region, p->region) != 0)
                return om_error_set(e, OM_INVALID, "S3: %s is in the region %s and not in %s: set region=%s in the URL (S3_REGION)",
                        p->where, region, p->region, region);
        return om_error_set(e, OM_INVALID, "S3: %s is served elsewhere (%s): mend region (S3_REGION) or endpoint (S3_ENDPOINT)", p->where,
                *t->code ? t->code : "a redirect");
}

static bool passes(int http, const struct told *t) {
        return http == 429 || http == 500 || http == 502 || http == 503 || http == 504 || is(t, "SlowDown") || is(t, "RequestTimeout") ||
                is(t, "OperationAborted") || is(t, "ConditionalRequestConflict");
}

static bool is_full(int http, const struct told *t) {
        return http == 507 || is(t, "XMinioStorageFull") || is(t, "XMinioAdminBucketQuotaExceeded") || is(t, "QuotaExceeded") ||
                is(t, "ServiceQuotaExceededException");
}

int s3_answer(const struct s3_call *c, struct om_error *e, enum s3_next *next) {
        const struct s3_place *p = &c->client->place;
        const struct s3_http_request *r = &c->req;
        struct told t = { "", "" };
        char root[64] = "";
        bool is_xml = false;

        *next = S3_OVER;
        if (!r->http)
                return not_reached(c, e, next);
        if (r->http < 200 || r->http > 299 || (r->http == 200 && r->answer.len && strcmp(c->method, "POST") == 0))
                is_xml = r->answer.len && s3_xml_read(om_buf_span(&r->answer), element, &t, root, sizeof root) == 0;
        if (r->http >= 200 && r->http <= 299 && strcmp(root, "Error") != 0) /* CompleteMultipartUpload may say 200 first and fail then */
                return 0;
        if (is(&t, "NoSuchBucket"))
                return om_error_set(e, OM_INVALID, "S3: %s does not exist: make it, or mend the bucket of the URL (S3_BUCKET)", p->where);
        if (is(&t, "NoSuchUpload"))
                return om_error_set(e, OM_UNAVAILABLE, "S3: %s: the upload is gone; it may be tried again", p->where);
        if (r->http == 404 &&
                (!*t.code || is(&t, "NoSuchKey") || is(&t, "NotFound") || strncmp(t.code, "NoSuch", 6) == 0 ||
                        strstr(t.code, "NotFoundError")))
                return om_error_set(e, OM_NOT_FOUND, "not found");
        if (r->http == 412 || r->http == 304)
                return om_error_set(e, OM_CONFLICT, "S3: somebody else has written it meanwhile");
        if (is(&t, "RequestTimeTooSkewed")) {
                *next = S3_SKEWED;
                return om_error_set(e, OM_DENIED, "S3: %s: this machine's clock is too far from the server's: set it", p->where);
        }
        if (is(&t, "ExpiredToken") || is(&t, "TokenRefreshRequired") || is(&t, "InvalidToken"))
                *next = S3_EXPIRED;
        if (is_full(r->http, &t))
                return om_error_set(e, OM_LIMIT, "S3: %s is full (%s): make room on the server, or raise its quota", p->where,
                        *t.code ? t.code : "507");
        if (passes(r->http, &t)) {
                *next = S3_REPEAT;
                return om_error_set(e, OM_UNAVAILABLE, "S3: %s cannot serve now: %d %s", p->where, r->http, t.code);
        }
        if (r->http == 301 || r->http == 307 || is(&t, "AuthorizationHeaderMalformed") || is(&t, "IllegalLocationConstraintException"))
                return elsewhere(c, &t, e);
        if (r->http == 401 || r->http == 403 || *next == S3_EXPIRED)
                return denied(c, &t, e);
        if (r->http == 501 || is(&t, "NotImplemented"))
                return om_error_set(e, OM_UNSUPPORTED, "S3: %s: the server lacks what %s needs (%s)", p->where, action_of(c), t.code);
        if (!is_xml)
                return om_error_set(e, OM_INVALID,
                        "S3: %s answers %d and nothing of S3's: mend endpoint (S3_ENDPOINT): https:// or http://, host and port", p->where,
                        r->http);
        return om_error_set(e, OM_INTERNAL, "S3: %s answers %d %s to %s", p->where, r->http, t.code, action_of(c));
}
