/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REGISTRY_H
#define OM_REGISTRY_H
/*
 * Which backends there are, installed or not, and which one a URL asks for.
 *
 * `local` and `json` are linked in; every other is a module (module.h), loaded when a URL asks for it and not before. The registry knows
 * all schemes, so that a typo and a missing module get different answers. Loop thread.
 */
#include "bus.h"
#include "module.h"
#include "store.h"

struct om_backend_entry {
        const char *name;           /* "kafka" */
        const char *const *schemes; /* "kafka", NULL */
        const char *doc;
        const char *module;           /* file in the module folder, "bus_kafka.so"; NULL when linked in */
        const struct om_bus_ops *bus; /* set when linked in (or once loaded) */
        const struct om_store_ops *store;
};
/* All that OmniDaemon knows, installed or not: arrays ended by name == NULL. */
extern struct om_backend_entry om_buses[], om_stores[];

/* Registers one more (tests do), or fills the entry of a module that was loaded. 0; -EEXIST: its name or a scheme is taken; -ENOSPC;
 * -EINVAL: of another ABI. `ops` is borrowed for ever. */
int om_registry_add_bus(const struct om_bus_ops *ops);
int om_registry_add_store(const struct om_store_ops *ops);

/* Loads the entry's module unless it is there already. -EOPNOTSUPP: `e` says which file is missing and what brings it, or why it does not
 * load. */
int om_registry_load(struct om_backend_entry *entry, struct om_error *e);

/* The bus for a URL, its module loaded. -EOPNOTSUPP: `unsupported event bus "kafk"; known: local, …; did you mean …?` or the module that is
 * missing. `setting` names where the URL came from, for the message ("EVENT_BUS_URL"). */
int om_registry_bus(const struct om_url *url, const char *setting, const struct om_bus_ops **ret, struct om_error *e);
int om_registry_store(const struct om_url *url, const char *setting, const struct om_store_ops **ret, struct om_error *e);

#endif
