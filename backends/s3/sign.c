/* SPDX-License-Identifier: Apache-2.0 */
/* Signatures: see sign.h. What is true: the canonical request is made of exactly the bytes that are sent; the secret is in no output. */
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <time.h>

#include "sign.h"

static void to_hex(char *out, const unsigned char *data, size_t n) {
        static const char digits[] = "0123456789abcdef";

        for (size_t i = 0; i < n; i++) {
                *out++ = digits[data[i] >> 4];
                *out++ = digits[data[i] & 15];
        }
        *out = 0;
}

void s3_sha256_hex(char out[static S3_SHA256_HEX + 1], struct om_span data) {
        unsigned char digest[EVP_MAX_MD_SIZE] = { 0 };

        EVP_Digest(data.len ? data.p : "", data.len, digest, NULL, EVP_sha256(), NULL);
        to_hex(out, digest, 32);
}

void s3_md5_base64(char out[static 25], struct om_span data) {
        unsigned char digest[EVP_MAX_MD_SIZE] = { 0 };

        EVP_Digest(data.len ? data.p : "", data.len, digest, NULL, EVP_md5(), NULL);
        EVP_EncodeBlock((unsigned char *) out, digest, 16);
}

void s3_amz_date(char out[static S3_AMZ_DATE + 1], int64_t now_ms) {
        time_t now = (time_t) (now_ms / 1000);
        struct tm tm;

        gmtime_r(&now, &tm);
        strftime(out, S3_AMZ_DATE + 1, "%Y%m%dT%H%M%SZ", &tm);
}

void s3_url_encode(struct om_buf *b, struct om_span text, bool slash) {
        for (size_t i = 0; i < text.len; i++) {
                unsigned char c = (unsigned char) text.p[i];
                bool plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
                        c == '.' || c == '~' || (slash && c == '/');

                if (plain)
                        om_buf_putc(b, (char) c);
                else
                        om_buf_printf(b, "%%%02X", c);
        }
}

static void hmac(unsigned char out[static 32], const void *key, size_t key_len, const char *text, size_t len) {
        unsigned n = 32;

        HMAC(EVP_sha256(), key, (int) key_len, (const unsigned char *) text, len, out, &n);
}

/* "host;x-amz-date" */
static void put_names(struct om_buf *b, const struct s3_signable *r) {
        for (size_t i = 0; i < r->n_headers; i++) {
                if (i)
                        om_buf_putc(b, ';');
                om_buf_puts(b, r->headers[i].name);
        }
}

/* A header's value without the white space around it, and single spaces within. */
static void put_trimmed(struct om_buf *b, const char *value) {
        bool space = false, any = false;

        for (; *value; value++) {
                if (*value == ' ' || *value == '\t') {
                        space = true;
                        continue;
                }
                if (space && any)
                        om_buf_putc(b, ' ');
                om_buf_putc(b, *value);
                space = false;
                any = true;
        }
}

static void put_canonical(struct om_buf *b, const struct s3_signable *r) {
        om_buf_printf(b, "%s\n%s\n", r->method, r->path);
        /* A parameter without a value is signed with the equals sign. */
        for (const char *p = r->query; *p;) {
                size_t n = strcspn(p, "&");

                om_buf_put(b, p, n);
                if (!memchr(p, '=', n))
                        om_buf_putc(b, '=');
                p += n;
                if (*p)
                        om_buf_putc(b, *p++);
        }
        om_buf_putc(b, '\n');
        for (size_t i = 0; i < r->n_headers; i++) {
                om_buf_printf(b, "%s:", r->headers[i].name);
                put_trimmed(b, r->headers[i].value);
                om_buf_putc(b, '\n');
        }
        om_buf_putc(b, '\n');
        put_names(b, r);
        om_buf_printf(b, "\n%s", r->body_sha256);
}

void s3_sign(struct om_buf *b, const struct s3_signable *r) {
        struct om_buf text = OM_BUF_INIT, key = OM_BUF_INIT;
        char scope[200], hash[S3_SHA256_HEX + 1], signature[S3_SHA256_HEX + 1];
        unsigned char k[32];

        put_canonical(&text, r);
        s3_sha256_hex(hash, om_buf_span(&text));
        snprintf(scope, sizeof scope, "%.8s/%s/%s/aws4_request", r->amz_date, r->region, r->service);
        b->failed |= !om_buf_ok(&text);
        om_buf_clear(&text);
        om_buf_printf(&text, "AWS4-HMAC-SHA256\n%s\n%s\n%s", r->amz_date, scope, hash);
        om_buf_printf(&key, "AWS4%s", r->secret);
        b->failed |= !om_buf_ok(&text) || !om_buf_ok(&key);
        if (om_buf_ok(b)) {
                hmac(k, key.data, key.len, r->amz_date, 8);
                hmac(k, k, sizeof k, r->region, strlen(r->region));
                hmac(k, k, sizeof k, r->service, strlen(r->service));
                hmac(k, k, sizeof k, "aws4_request", strlen("aws4_request"));
                hmac(k, k, sizeof k, text.data, text.len);
                to_hex(signature, k, sizeof k);
                om_buf_printf(b, "AWS4-HMAC-SHA256 Credential=%s/%s,SignedHeaders=", r->key_id, scope);
                put_names(b, r);
                om_buf_printf(b, ",Signature=%s", signature);
        }
        if (key.data)
                explicit_bzero(key.data, key.len);
        explicit_bzero(k, sizeof k);
        om_buf_deinit(&key);
        om_buf_deinit(&text);
}
