/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_HTTP_H
#define OM_S3_HTTP_H
/*
 * HTTP requests by libcurl's multi interface on the loop. Names are resolved by libcurl's own threads: nothing here blocks.
 *
 * A request is embedded in what waits for it, and belongs to this from its start until done() or s3_http_abort(). At most `connections` are
 * with the server at a time; the others wait in the order in which they came. done() is never called from within s3_http_start().
 *
 * Loop thread.
 */
#include <curl/curl.h>
#include <sys/queue.h>

#include "../host.h"

struct s3_http;
struct s3_http_settings {
        const char *ca_file; /* NULL: the system's authorities */
        bool verify;
        long connections, connect_ms, stall_ms;
};

#define CONTAINER(p, type, member) ((type *) (void *) ((char *) (p) -offsetof(type, member)))

enum { S3_URL_MAX = 6000 };

struct s3_http_request {
        /* in; borrowed until done() */
        const char *method, *url;
        struct curl_slist *headers; /* this frees them */
        struct om_span body;        /* absent: none */
        size_t max_bytes;           /* of the answer; 0: 1 MiB */
        long timeout_ms;            /* 0: none, as long as bytes come */
        bool direct;                /* through no proxy: services of the machine itself */
        void (*done)(struct s3_http_request *r);
        void *ctx;
        /* out */
        int http;      /* the status; 0: there was no answer, and then */
        CURLcode code; /* why, and */
        char why[CURL_ERROR_SIZE];
        unsigned sent; /* how often it was: libcurl repeats by itself what went into a connection that the server had closed */
        struct om_buf answer, answer_headers; /* "name: value\n", names in lower case; the owner frees them by s3_http_clear() */
        /* its own */
        struct s3_http *http_owner;
        CURL *easy;
        bool active;
        TAILQ_ENTRY(s3_http_request) link;
};

int s3_http_new(struct om_host *host, const struct s3_http_settings *s, struct s3_http **ret, struct om_error *e);
void s3_http_start(struct s3_http *h, struct s3_http_request *r);
/* Ends one without done(). */
void s3_http_abort(struct s3_http_request *r);
void s3_http_clear(struct s3_http_request *r);
/* A header of the answer; absent where it has none. */
struct om_span s3_http_header(const struct s3_http_request *r, const char *name);
/* Every request ends soon with CURLE_ABORTED_BY_CALLBACK, and so does each that is started from now on. */
void s3_http_close(struct s3_http *h);
/* There must be no request any more. */
void s3_http_free(struct s3_http *h);

#endif
