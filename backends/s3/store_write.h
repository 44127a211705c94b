/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_STORE_WRITE_H
#define OM_S3_STORE_WRITE_H
/* Writing one entry: see store_put.c. Loop thread. */
#include "store_state.h"

/* Embedded; zeroed at first. */
struct s3_write {
        struct om_store *store;
        enum om_store_kind kind;
        void (*done)(struct s3_write *w, int status, const struct om_error *e);
        void *ctx;
        const struct om_job *job; /* whose it is: what was cancelled before its turn is not written */
        /* its own */
        struct om_store_entry entry; /* all but the value, which is in `body`; texts in `arena` */
        struct om_arena arena;
        struct om_buf body;
        struct s3_lock lock;
        char name[S3_NAME_MAX], index[S3_NAME_MAX], old_index[S3_NAME_MAX];
        char token[S3_TOKEN_MAX], expires[24], etag[S3_ETAG_MAX];
        struct s3_upload up;
        struct s3_call call;
        unsigned tries;
        bool locked;
};
/* Copies the entry. -ENOMEM. */
int s3_write_init(struct s3_write *w, struct om_store *s, enum om_store_kind kind, const struct om_store_entry *entry);
void s3_write_start(struct s3_write *w);
void s3_write_clear(struct s3_write *w);
/* "0000…-nonce" of a write that begins now. */
void s3_write_token(struct om_store *s, char out[static S3_TOKEN_MAX], uint64_t *ret_version);

#endif
