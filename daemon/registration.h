/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REGISTRATION_H
#define OM_REGISTRATION_H
#include "call.h"
#include "dispatch.h"

/* Reads the params of the call's request into `r` (zero before; its texts are in the call's arena) and appends the agent's record to
 * `head`, without created_at and the closing brace. 0, or -errno with `e` saying what is wrong. Loop thread. */
int om_registration_read(struct om_call *c, struct om_span params, struct om_registration *r, struct om_buf *head, struct om_error *e);

/* Where a group starts: "first", "new" or a Unix time in seconds (then in ret_ms); untouched where it is not given. 0, or -EINVAL. */
int om_param_start(const struct om_json_member *m, enum om_start *ret, int64_t *ret_ms, struct om_error *e);

#endif
