/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_BUCKET_H
#define OM_S3_BUCKET_H
/* Many objects at once: their names in order, and deleting them. Loop thread. */
#include "call.h"

enum { S3_PAGE_MAX = 1000 };

struct s3_listed {
        char *name; /* below the place's prefix */
        size_t size;
        int64_t modified_ms;
};
/* ListObjectsV2: names that begin with `prefix` and come after `after`, in the order of their bytes. Zeroed at first. */
struct s3_page {
        struct s3_client *client;
        char prefix[S3_NAME_MAX], after[S3_NAME_MAX];
        unsigned limit; /* 0: S3_PAGE_MAX */
        bool quick;
        void (*done)(struct s3_page *p, int status, const struct om_error *e);
        void *ctx;
        /* out, until the next start or s3_page_clear() */
        struct s3_listed *names;
        size_t n;
        bool more;
        /* its own */
        struct s3_call call;
        struct om_buf query;
        size_t cap;
        struct s3_listed next;
        bool failed;
};
void s3_page_start(struct s3_page *p);
void s3_page_clear(struct s3_page *p);
void s3_page_abort(struct s3_page *p); /* one under way; cleared */
/* What an answer of ListObjectsV2 says, into an empty page with a client. 0, -EINVAL, -ENOMEM. */
int s3_page_read(struct s3_page *p, struct om_span xml);

/* DeleteObjects of up to S3_PAGE_MAX names. */
struct s3_drop {
        struct s3_client *client;
        void (*done)(struct s3_drop *d, int status, const struct om_error *e);
        void *ctx;
        /* its own */
        struct s3_call call;
        struct om_buf body;
        size_t n;
        char md5[25], code[80];
};
void s3_drop_add(struct s3_drop *d, const char *name); /* a name of ours: nothing in it is escaped */
static inline bool s3_drop_is_full(const struct s3_drop *d) { return d->n >= S3_PAGE_MAX; }
/* Not from within: done() at once where there is none to delete, else later; empty again then. */
void s3_drop_start(struct s3_drop *d);
void s3_drop_clear(struct s3_drop *d);

#endif
