/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_AGENTS_H
#define OM_AGENTS_H
/*
 * What the storage knows of agents: their records (name, topic, description, tools, config, created_at, callback_name) and whether they are
 * paused (setting `_subscription_active:{group}`, as in the Python OmniDaemon). Loop thread.
 */
#include "call.h"
#include "dispatch.h"

#define OM_SUBSCRIPTION_ACTIVE "_subscription_active:" /* true while the group is served, false while it is paused */

int om_agents_new(struct om_core *core, struct om_agents **ret);
void om_agents_stop(struct om_agents *a); /* the storage is not asked any more */
void om_agents_free(struct om_agents *a);
/* The storage came or went: what could not be saved or read meanwhile is done now. */
void om_agents_store_state(struct om_agents *a, enum om_store_state state);

/* Checks a registration's params, saves the agent's record, reads whether it is paused, hands it to om_dispatch_register(). Takes req. When
 * the storage is away a registration is still served: the record is saved when it is back. */
void om_agents_register(struct om_core *core, struct om_request *req, struct om_span params);

/* The key of a group's setting, in the arena of a call; absent when out of memory. */
struct om_span om_agents_setting(struct om_call *c, struct om_span topic, struct om_span agent);
/* The setting has been written: here too. */
void om_agents_set_paused(struct om_agents *a, struct om_span topic, struct om_span agent, bool paused);
/* Settings were changed in another way than by om_agents_set_paused(), by another daemon or by a clearing: reads which groups are paused.
 */
void om_agents_read_paused(struct om_agents *a);
/* As this daemon knows it, without asking the storage: of groups that are served here. */
bool om_agents_is_paused(const struct om_agents *a, struct om_span topic, struct om_span agent);
/* Forgets an agent (name absent: all of the topic), so that nothing of it is saved later. */
void om_agents_forget(struct om_agents *a, struct om_span topic, struct om_span agent);

/* A deletion that is under way: what it deletes (agent absent: all of the topic) is not served anew before it is over. Embedded. */
struct om_agent_deletion {
        struct om_span topic, agent;
        struct om_agent_deletion *next, *prev;
};
void om_agents_begin_deletion(struct om_agents *a, struct om_agent_deletion *d);
void om_agents_end_deletion(struct om_agents *a, struct om_agent_deletion *d);

/* Which groups are paused, by the settings. Fill a call's list with om_paused_list(), collect it, then make the set from its rows; it lives
 * as long as the call. */
struct om_paused {
        struct om_span *groups; /* sorted */
        size_t n;
};
void om_paused_list(struct om_call *c);
struct om_paused om_paused_of(struct om_call *collected);
bool om_paused_has(const struct om_paused *p, struct om_span topic, struct om_span agent);

#endif
