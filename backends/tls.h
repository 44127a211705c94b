/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_TLS_H
#define OM_TLS_H
/*
 * TLS over libevent's bufferevents, for the backends whose connections are ours: the context that a URL asks for, a connection's part of
 * it, and what its errors mean. Part of each module that names it in the Makefile (SHARED_NAME), not of the daemon, which links no OpenSSL.
 *
 * Always true: unless `verify` is false, a connection is used only when the server's certificate is signed by a known authority, valid now,
 * and bears the host's name (or `server_name`). Loop thread.
 */
#include "../proto/error.h"

struct bufferevent;
struct ssl_ctx_st;
struct ssl_st;

struct om_tls_settings {                                          /* texts are borrowed */
        const char *system;                                       /* begins the messages: "redis" */
        const char *plain_scheme, *tls_scheme;                    /* of URLs, for messages */
        const char *ca_file, *cert_file, *key_file, *server_name; /* the parameters tls_…; NULL: not given */
        bool verify;
};
/* -EINVAL with `e` naming the parameter whose file cannot be used. */
int om_tls_new(const struct om_tls_settings *s, struct ssl_ctx_st **ret, struct om_error *e);
void om_tls_free(struct ssl_ctx_st *ctx); /* NULL-safe */
/* NULL: out of memory, with `e`. */
struct ssl_st *om_tls_connection(struct ssl_ctx_st *ctx, const struct om_tls_settings *s, const char *host, struct om_error *e);
/* Why a handshake with `where` failed. Returns the status. */
int om_tls_error(const struct om_tls_settings *s, struct bufferevent *bev, struct ssl_st *ssl, const char *where, struct om_error *e);

#endif
