/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REDIS_DURABLE_H
#define OM_REDIS_DURABLE_H
/*
 * Whether what a server acknowledges survives its death, as its own settings say. For the health of bus and storage. Any thread.
 */
#include "conn.h"

enum om_redis_durable { OM_REDIS_DURABLE_INFO, OM_REDIS_DURABLE_FSYNC, OM_REDIS_DURABLE_RIGHTS, OM_REDIS_DURABLE_N };
enum { OM_REDIS_WHY_MAX = 240 };

/* The questions, each a command for the server that is meant. */
struct om_redis_cmd *om_redis_durable_cmd(enum om_redis_durable question);
/* Takes an answer in: `why` gets the reason why writes may be lost, one sentence without a full stop, where it has none yet and this is
 * one. `reply` NULL: the server refuses to tell. With all taken in, an empty `why` means durable. */
void om_redis_durable_take(enum om_redis_durable question, const struct om_redis_reply *reply, char why[OM_REDIS_WHY_MAX]);

#endif
