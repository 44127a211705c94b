/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_NATS_JSON_H
#define OM_NATS_JSON_H
/*
 * Looking into what the server's interface answers, without a tree. The text was checked (nats_json_ok) before; a member that is not there
 * reads as nothing, 0 or false, as the server leaves out what is so. Pure; thread: any.
 */
#include "../../proto/buf.h"
#include "../../proto/json_scan.h"

bool nats_json_ok(struct om_span text);
/* The value at a path of members, "config.metadata"; at "" itself. Absent: none. */
struct om_span nats_json_get(struct om_span object, const char *path);
uint64_t nats_json_u64(struct om_span object, const char *path);
bool nats_json_true(struct om_span object, const char *path);
/* A string, decoded; in the text or in `arena`. Absent: none, or no string. */
struct om_span nats_json_text(struct om_span object, const char *path, struct om_arena *arena);
/* Walks an array or an object: the next element at *pos (absent at first), its key in *ret_key for an object (may be NULL). */
struct nats_walk {
        struct om_json json;
        bool object;
};
void nats_walk_init(struct nats_walk *w, struct om_span text);
bool nats_walk_next(struct nats_walk *w, struct om_span *ret_value, struct om_json_value *ret_key);
/* RFC 4648, as the server writes messages into its answers. False: that is none, or out of memory. */
bool nats_base64_decode(struct om_span text, struct om_buf *out);

#endif
