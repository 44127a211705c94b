/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_MONGO_SETTINGS_H
#define OM_MONGO_SETTINGS_H
/*
 * What a mongodb URL says: ours, and what libmongoc is told. Every option of MongoDB's connection strings that this libmongoc knows may
 * stand in the URL.
 *
 * Always true: nothing points into the URL after reading; messages name the part to mend and hold no password.
 */
#include <mongoc/mongoc.h>

#include "../options.h"

enum { OM_MONGO_PASSED = 12 }; /* rows of libmongoc's options in the table */

struct om_mongo_settings {
        int64_t connections;
        const char *collection_prefix; /* ours after reading */
        int64_t sweep_interval_ms, max_metrics, answer_timeout_ms;
        bool text_index;
        const char *passed[OM_MONGO_PASSED]; /* of the table alone */

        mongoc_uri_t *uri;
        char *database;
        char *where; /* for messages: "database d at h:27017" */
        bool tls, majority, journal;
};

extern const struct om_option om_mongo_options[];

/* Reads the URL. -EINVAL with `e`, and nothing to free; else om_mongo_settings_free(). mongoc_init() was called. */
int om_mongo_settings_read(struct om_mongo_settings *s, struct om_url *url, struct om_error *e);
void om_mongo_settings_free(struct om_mongo_settings *s);

#endif
