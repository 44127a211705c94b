/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_MONGO_ERRORS_H
#define OM_MONGO_ERRORS_H
/* What libmongoc and the server say, as errors for people and for the core. Any thread. */
#include "settings.h"

/* The code of a server's error; 0: it is none of the server's. */
uint32_t om_mongo_code(const bson_error_t *why);
/* The server did not answer, or cannot now: the connection is to be looked at before it is used again. */
bool om_mongo_is_away(const bson_error_t *why);
/* The value, and nothing else, was refused. */
bool om_mongo_is_of_value(uint32_t code);
/* Fills `e` from what went wrong at `doing` ("saving"); the setting to mend is named. Returns the negative errno. */
int om_mongo_error(const struct om_mongo_settings *s, const bson_error_t *why, const char *doing, struct om_error *e);

enum { OM_MONGO_DUPLICATE = 11000, OM_MONGO_MAX_TIME = 50, OM_MONGO_UNAUTHORIZED = 13 };

#endif
