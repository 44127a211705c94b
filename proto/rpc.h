/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RPC_H
#define OM_RPC_H
/*
 * JSON-RPC 2.0 envelopes, read without a tree and written as text (PROTOCOL.md, "Messages").
 *
 * Both sides use it: the daemon reads requests and notifications and writes replies, a client the other way round. Batch
 * arrays are refused. Thread: any.
 */
#include "json_scan.h"

enum {
        OM_DEPTH_MAX = 64,      /* arrays and objects, nested, in a body that a client sends */
        OM_DEPTH_SENT_MAX = 72, /* in one that the daemon sends: a task stands deeper in a delivery or a dead letter than in its publish */
        OM_RPC_ID_MAX = 256,    /* bytes of JSON */
};

enum om_rpc_type { OM_RPC_REQUEST, OM_RPC_NOTIFICATION, OM_RPC_RESULT, OM_RPC_ERROR };

struct om_rpc {
        enum om_rpc_type type;
        struct om_span id;     /* raw JSON, string, number or null; absent in a notification */
        struct om_span method; /* its characters; no name of ours needs an escape, one with escapes is refused as unknown */
        struct om_span params; /* raw JSON, an object; absent when the request has none */
        struct om_span result; /* raw JSON of a result */
        struct om_span error;  /* raw JSON of an error object */
};

/*
 * Reads one body. On failure `e` holds the JSON-RPC code (OM_CODE_PARSE for text that is not JSON, OM_CODE_REQUEST for JSON
 * that is no message, OM_CODE_PARAMS for params that are no object), and ret->id the request's id where it could be made out,
 * else absent (reply with null). ret->id, when long (above 256 bytes), is refused as OM_CODE_REQUEST.
 * Failed with OM_CODE_PARAMS, ret->type still tells a request from a notification: the latter is not answered.
 */
int om_rpc_parse(struct om_span body, struct om_rpc *ret, struct om_error *e);
/* The same for what the daemon sent: OM_DEPTH_SENT_MAX instead of OM_DEPTH_MAX. */
int om_rpc_parse_sent(struct om_span body, struct om_rpc *ret, struct om_error *e);

/* Reads the error object of a reply into `ret` (code, kind from data.kind, message). Returns om_kind_errno(kind). */
int om_rpc_parse_error(struct om_span error, struct om_error *ret);

/* -- writing: each opens a frame and leaves the buffer right after the colon of params or result; the caller appends that
 *    value, then calls om_rpc_end() with the mark ---------------------------------------------------------------------- */
size_t om_rpc_begin_request(struct om_buf *b, uint64_t id, const char *method);
size_t om_rpc_begin_notification(struct om_buf *b, const char *method);
size_t om_rpc_begin_result(struct om_buf *b, struct om_span id);
int om_rpc_end(struct om_buf *b, size_t mark, size_t max_bytes); /* as om_frame_end() */

/* A whole error reply; an absent id becomes null. */
void om_rpc_put_error(struct om_buf *b, struct om_span id, const struct om_error *e);
/* The error object alone: {"code":…,"message":…,"data":{"kind":…}} */
void om_rpc_put_error_object(struct om_buf *b, const struct om_error *e);

#endif
