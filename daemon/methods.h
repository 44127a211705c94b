/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_METHODS_H
#define OM_METHODS_H
/*
 * What the methods share: reading params, and pieces of JSON that several results have. Each om_param_* takes a member that
 * om_json_members() has filled; an absent one leaves *ret as it is and is no error. Strings are decoded and copied into `arena`. Errors
 * have the code OM_CODE_PARAMS and name the member. Loop thread.
 */
#include "call.h"

/* A name, a topic, an opaque cursor (1 to 1024 bytes), a storage key (1 to OM_STORE_KEY_MAX bytes, no control characters). 0, -EINVAL,
 * -ENOMEM. */
int om_param_name(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e);
int om_param_topic(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e);
int om_param_cursor(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e);
int om_param_key(const struct om_json_member *m, struct om_arena *arena, struct om_span *ret, struct om_error *e);
/* Any text up to max bytes. */
int om_param_text(const struct om_json_member *m, size_t max, struct om_arena *arena, struct om_span *ret, struct om_error *e);
/* An integer from min to max. */
int om_param_int(const struct om_json_member *m, int64_t min, int64_t max, int64_t *ret, struct om_error *e);
/* A limit of PROTOCOL.md: 1 to 1000; an absent one sets the default, 100. */
int om_param_limit(const struct om_json_member *m, size_t *ret, struct om_error *e);
/* A time in Unix seconds, as milliseconds. */
int om_param_time(const struct om_json_member *m, int64_t *ret_ms, struct om_error *e);
void om_param_bool(const struct om_json_member *m, bool *ret);

/* Member `name` of a checked object, whatever else stands in it: 1, or 0 where it has none. */
int om_object_get(struct om_span object, const char *name, struct om_json_value *ret);

/* Writes row i of what the call returned. */
typedef void om_put_row_fn(struct om_buf *b, const struct om_call *c, size_t i);
/* Answers a bus query or a list of the storage with its page, {"NAME":[rows],"cursor":"…"}, and frees the call. Status and error are
 * done()'s: a cursor that the backend does not know is a wrong param. */
void om_call_put_page(struct om_call *c, int status, const struct om_error *e, const char *name, om_put_row_fn *put_row);
/* "name":"value" with a comma in front; null when the value is absent. `name` needs no escapes. */
void om_put_member(struct om_buf *b, const char *name, struct om_span value);
/* The members of a checked object, each with a comma in front: a backend's own facts. */
void om_put_facts(struct om_buf *b, struct om_span object);
/* 0, or OM_UNSUPPORTED with `e` where the storage lacks this capability (OM_STORE_SEARCH, …); `what` names it: "search". */
int om_storage_must(const struct om_core *core, unsigned capability, const char *what, struct om_error *e);
/* The names of a bus's capabilities (and `search` and `query` of a storage that can) as elements of a JSON array. */
void om_put_capabilities(struct om_buf *b, unsigned bus_capabilities, unsigned store_capabilities);

#endif
