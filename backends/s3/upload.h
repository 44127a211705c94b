/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_UPLOAD_H
#define OM_S3_UPLOAD_H
/*
 * Writes one object: by one request, or in parts where it is larger than part_size; then either all of it is there or nothing, and what was
 * sent for nothing is dropped. The condition is of the whole. Loop thread.
 */
#include "call.h"

#define S3_TAGGED_PUT "s3:PutObject and s3:PutObjectTagging"

enum { S3_PARTS_AT_ONCE = 4 };
struct s3_upload_part {
        struct s3_call call;
        unsigned number;
        char query[S3_URL_MAX / 4 + 40];
};
/* Embedded; zeroed at first. */
struct s3_upload {
        /* in; borrowed until done() */
        struct s3_client *client;
        const char *name;
        struct om_span body;
        const char *if_match; /* an ETag; NULL: none */
        bool if_none_match;   /* only where there is no such object */
        struct s3_pair metadata[4];
        size_t n_metadata;
        const char *tagging; /* NULL: none */
        /* 0; -ESTALE: the condition did not hold, or, with `repeated`, perhaps it did: an earlier try may have written it; -ENOENT: with
         * if_match there is no such object */
        void (*done)(struct s3_upload *u, int status, const struct om_error *e);
        void *ctx;
        /* out */
        bool repeated;
        char etag[S3_ETAG_MAX];
        /* its own */
        struct s3_call call; /* of the whole */
        struct s3_upload_part *parts;
        char (*etags)[S3_ETAG_MAX];
        unsigned n_parts, next_part, open, n_slots;
        char id[1024];
        char query[S3_URL_MAX / 4];
        struct om_buf completion;
        int status;
        struct om_error error;
};
void s3_upload_start(struct s3_upload *u);
void s3_upload_clear(struct s3_upload *u);

#endif
