/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CORE_H
#define OM_CORE_H
/*
 * The core: what every part of the daemon shares. One, made by main.c; everything in it is the loop thread's.
 *
 *   session ─▶ methods ─▶ dispatch ─▶ bus      session*.c read frames, reply.c writes; methods*.c check params;
 *                   └───▶ results, store       dispatch.c has groups, workers, credit, leases; results.c saves and waits
 */
#include "../backends/bus.h"
#include "../backends/store.h"
#include "../proto/rpc.h"
#include "loop.h"
#include "settings.h"

struct om_session;
struct om_session_pool;
struct om_calls;
struct om_dispatch;
struct om_results;
struct om_metrics;
struct om_watch;
struct om_agents;
struct om_inventory;

struct om_core {
        struct om_settings *settings;
        struct om_loop *loop;
        struct om_host *host;

        const struct om_bus_ops *bus_ops;
        struct om_bus *bus;
        char *bus_url; /* redacted */
        enum om_bus_state bus_state;
        struct om_error bus_error; /* why it is not ready */

        const struct om_store_ops *store_ops;
        struct om_store *store;
        char *store_url;
        enum om_store_state store_state;
        struct om_error store_error;

        struct om_dispatch *dispatch;
        struct om_results *results;
        struct om_metrics *metrics;
        struct om_watch *watch;
        struct om_agents *agents; /* the registry of agents, kept in the storage: agents.c */
        struct om_inventory *inventory;

        struct om_session_pool *pool;
        struct om_session *sessions; /* list; session.c's */
        unsigned n_sessions;
        struct om_calls *calls; /* operations under way for requests: call.c */

        char runner_id[40]; /* of this daemon's run: a UUID */
        int64_t started_ms;
        bool stopping;   /* publishes are refused; clients have been told */
        bool is_program; /* main's: our process is omnidaemond, which can be run again to look at its modules; false in tests */
        /* main's: asks for a reload; returns what om_settings_reload() returned. NULL in tests. */
        int (*reload)(struct om_core *core, const char ***ret_changed, const char ***ret_restart, struct om_error *e);
};

/* Makes the core and opens bus and storage; `settings` is borrowed. ready->fn is called once both are OM_*_READY (an embedded one: its
 * files are open and recovered), or never, when a server stays away: then the daemon serves and answers `unavailable`. < 0: settings that
 * can never work. */
int om_core_new(struct om_loop *loop, struct om_settings *settings, struct om_post *ready, struct om_core **ret, struct om_error *e);

/* Graceful stop: tells the clients, waits at most stop_grace_ms for what they hold, hands the rest back, closes bus and storage; then
 * stopped->fn. */
void om_core_stop(struct om_core *core, struct om_post *stopped);
void om_core_free(struct om_core *core);

/* What the bus that is open does natively. */
static inline unsigned om_core_bus_capabilities(const struct om_core *core) {
        return core->bus && core->bus_ops->capabilities_of ? core->bus_ops->capabilities_of(core->bus) : core->bus_ops->capabilities;
}

#endif
