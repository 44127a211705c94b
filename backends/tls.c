/* SPDX-License-Identifier: Apache-2.0 */
/* TLS of a URL: see tls.h. Always true: TLS 1.2 is the least. */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "tls.h"

static int setting_failed(const struct om_tls_settings *s, struct om_error *e, const char *setting, const char *file) {
        unsigned long code = ERR_peek_error(); /* the first is the cause: a missing file, say */
        const char *why = ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code)) : ERR_reason_error_string(code);

        ERR_clear_error();
        return om_error_set(e, OM_INVALID, "%s: %s: cannot use %s: %s", s->system, setting, file, why ? why : "unknown reason");
}

int om_tls_new(const struct om_tls_settings *s, struct ssl_ctx_st **ret, struct om_error *e) {
        SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
        const char *key = s->key_file ? s->key_file : s->cert_file;
        int r = 0;

        if (!ctx)
                return om_error_set_errno(e, ENOMEM, "%s: TLS", s->system);
        SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
        SSL_CTX_set_verify(ctx, s->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
        ERR_clear_error();
        if (s->ca_file && SSL_CTX_load_verify_locations(ctx, s->ca_file, NULL) != 1)
                r = setting_failed(s, e, "tls_ca_file", s->ca_file);
        else if (!s->ca_file && SSL_CTX_set_default_verify_paths(ctx) != 1)
                r = setting_failed(s, e, "tls_ca_file", "the system's authorities");
        else if (s->cert_file && SSL_CTX_use_certificate_chain_file(ctx, s->cert_file) != 1)
                r = setting_failed(s, e, "tls_cert_file", s->cert_file);
        else if (key && SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
                r = setting_failed(s, e, s->key_file ? "tls_key_file" : "tls_cert_file (tls_key_file is not given)", key);
        else if (key && SSL_CTX_check_private_key(ctx) != 1)
                r = setting_failed(s, e, "tls_key_file", key);
        if (r < 0) {
                SSL_CTX_free(ctx);
                return r;
        }
        *ret = ctx;
        return 0;
}

void om_tls_free(struct ssl_ctx_st *ctx) { SSL_CTX_free(ctx); }

struct ssl_st *om_tls_connection(struct ssl_ctx_st *ctx, const struct om_tls_settings *s, const char *host, struct om_error *e) {
        const char *name = s->server_name ? s->server_name : host ? host : "localhost";
        unsigned char number[16];
        bool is_number = inet_pton(AF_INET, name, number) == 1 || inet_pton(AF_INET6, name, number) == 1;
        SSL *ssl = SSL_new(ctx);
        int ok = ssl != NULL;

        if (ok && is_number)
                ok = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name);
        else if (ok)
                ok = SSL_set1_host(ssl, name) && SSL_set_tlsext_host_name(ssl, name);
        if (ok)
                return ssl;
        SSL_free(ssl);
        ERR_clear_error();
        om_error_set_errno(e, ENOMEM, "%s: TLS", s->system);
        return NULL;
}

static int certificate_failed(const struct om_tls_settings *s, long verdict, const char *where, struct om_error *e) {
        const char *why = X509_verify_cert_error_string(verdict);

        switch (verdict) {
        case X509_V_ERR_CERT_HAS_EXPIRED:
                return om_error_set(e, OM_DENIED, "%s %s: the server's certificate has expired: renew it on the server", s->system, where);
        case X509_V_ERR_CERT_NOT_YET_VALID:
                return om_error_set(e, OM_DENIED, "%s %s: the server's certificate is not valid yet: check both clocks", s->system, where);
        case X509_V_ERR_HOSTNAME_MISMATCH:
        case X509_V_ERR_IP_ADDRESS_MISMATCH:
                return om_error_set(e, OM_DENIED,
                        "%s %s: the server's certificate bears another name: mend the URL's host, or set tls_server_name", s->system,
                        where);
        case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
        case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
        case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
        case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
        case X509_V_ERR_CERT_SIGNATURE_FAILURE:
                return om_error_set(e, OM_DENIED,
                        "%s %s: the server's certificate is signed by nobody we know (%s): name its authority in tls_ca_file", s->system,
                        where, why);
        default:
                return om_error_set(e, OM_DENIED, "%s %s: the server's certificate is refused: %s", s->system, where, why);
        }
}

int om_tls_error(const struct om_tls_settings *s, struct bufferevent *bev, struct ssl_st *ssl, const char *where, struct om_error *e) {
        unsigned long code = bufferevent_get_openssl_error(bev);
        long verdict = SSL_get_verify_result(ssl);
        int reason = ERR_GET_REASON(code);
        const char *why = code ? ERR_reason_error_string(code) : NULL;

        if (verdict != X509_V_OK && (SSL_get_verify_mode(ssl) & SSL_VERIFY_PEER))
                return certificate_failed(s, verdict, where, e);
        if (reason == SSL_R_WRONG_VERSION_NUMBER)
                return om_error_set(e, OM_UNAVAILABLE,
                        "%s %s: the port does not speak TLS: write %s instead of %s in the URL, or name the server's TLS port", s->system,
                        where, s->plain_scheme, s->tls_scheme);
        if (reason == SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED || reason == SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE)
                return om_error_set(e, OM_DENIED, "%s %s: the server wants a client's certificate: set tls_cert_file and tls_key_file",
                        s->system, where);
        if (reason == SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED)
                return om_error_set(e, OM_DENIED, "%s %s: the server finds our certificate expired: renew tls_cert_file", s->system, where);
        if (reason == SSL_R_TLSV1_ALERT_UNKNOWN_CA || reason == SSL_R_SSLV3_ALERT_BAD_CERTIFICATE)
                return om_error_set(e, OM_DENIED, "%s %s: the server does not trust our certificate: see tls_cert_file", s->system, where);
        if (why)
                return om_error_set(e, OM_UNAVAILABLE, "%s %s: TLS failed: %s", s->system, where, why);
        return om_error_set(e, OM_UNAVAILABLE,
                "%s %s: TLS failed: the server closed the connection; if its port does not speak TLS, write %s instead of %s in the URL",
                s->system, where, s->plain_scheme, s->tls_scheme);
}
