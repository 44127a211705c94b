/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_AGENTS_H
#define OM_AGENTS_H
/*
 * What the storage knows of agents: their records (name, topic, description, tools, config, created_at, callback_name) and whether they are
 * paused (setting
 * `_subscription_active:{group}`, as in the Python OmniDaemon). Loop thread.
 */
#include "dispatch.h"

int om_agents_new(struct om_core *core, struct om_agents **ret);
void om_agents_free(struct om_agents *a);
/* The storage came or went: what could not be saved or read meanwhile is done now. */
void om_agents_store_state(struct om_agents *a, enum om_store_state state);

/* Checks a registration's params, saves the agent's record, reads whether it is paused, hands it to om_dispatch_register(). Takes req. When
 * the storage is away a registration is still served: the record is saved when it is back. */
void om_agents_register(struct om_core *core, struct om_request *req, struct om_span params);

#endif
