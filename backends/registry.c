/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of every bus and storage that OmniDaemon knows, and the choice of one by a URL's scheme.
 *
 * Always true: a scheme belongs to at most one bus and to at most one storage; an entry without ops is known and not loaded. A scheme
 * that nobody knows, one that is known for the other side only, and one whose module is missing or does not load get different answers, so
 * that the person who reads it knows whether to mend the URL or the machine. Loop thread.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "registry.h"

/* The two that need no server are part of the daemon itself. */
extern const struct om_bus_ops om_local_bus_ops;
extern const struct om_store_ops om_json_store_ops;

enum { ROOM = 24 }; /* entries of each table, what tests add included */

#define SCHEMES(...) \
        (const char *const[]) { __VA_ARGS__, NULL }

struct om_backend_entry om_buses[ROOM + 1] = {
        { "local", SCHEMES("local"), "embedded: tasks in LMDB in a folder of this machine; needs no server", NULL, &om_local_bus_ops },
        { "redis", SCHEMES("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "redis+unix"),
                "Redis streams, shared with the Python OmniDaemon", "bus_redis.so" },
        { "kafka", SCHEMES("kafka"), "Kafka topics and consumer groups, with transactions", "bus_kafka.so" },
        { "rabbitmq", SCHEMES("amqp", "amqps"), "RabbitMQ exchanges and quorum queues", "bus_rabbitmq.so" },
        { "nats", SCHEMES("nats", "tls"), "NATS JetStream streams and pull consumers", "bus_nats.so" },
};
struct om_backend_entry om_stores[ROOM + 1] = {
        { "json", SCHEMES("json"), "embedded: readable JSON files in a folder, shared with the Python OmniDaemon; needs no server", NULL,
                NULL, &om_json_store_ops },
        { "redis", SCHEMES("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "redis+unix"),
                "Redis keys, shared with the Python OmniDaemon", "store_redis.so" },
        { "postgresql", SCHEMES("postgresql", "postgres"), "PostgreSQL tables with JSONB and full-text search", "store_postgresql.so" },
        { "mongodb", SCHEMES("mongodb", "mongodb+srv"), "MongoDB collections with TTL indexes", "store_mongodb.so" },
        { "s3", SCHEMES("s3"), "objects in a bucket of Amazon S3 or a server that speaks its protocol", "store_s3.so" },
        { "nats", SCHEMES("nats+kv", "tls+kv"), "NATS JetStream key-value buckets", "store_nats.so" },
};

static const char *side_name(const struct om_backend_entry *table) { return table == om_buses ? "event bus" : "storage"; }

static bool installed(const struct om_backend_entry *entry) { return entry->bus || entry->store; }

static struct om_backend_entry *find_name(struct om_backend_entry *table, const char *name) {
        for (; table->name; table++)
                if (strcmp(table->name, name) == 0)
                        return table;
        return NULL;
}

static struct om_backend_entry *find_scheme(struct om_backend_entry *table, const char *scheme) {
        for (; table->name; table++)
                for (const char *const *s = table->schemes; *s; s++)
                        if (strcmp(*s, scheme) == 0)
                                return table;
        return NULL;
}

/* The entry to be filled: that of a module by its name, else a fresh one at the end, whose schemes must be new. */
static int place(struct om_backend_entry *table, const char *name, const char *const *schemes, struct om_backend_entry **ret) {
        struct om_backend_entry *entry = find_name(table, name);
        if (entry && installed(entry))
                return -EEXIST;
        for (const char *const *s = schemes; *s; s++) {
                const struct om_backend_entry *other = find_scheme(table, *s);
                if (other && other != entry)
                        return -EEXIST;
        }
        if (!entry) {
                size_t n = 0;
                while (table[n].name)
                        n++;
                if (n >= ROOM)
                        return -ENOSPC;
                entry = &table[n];
        }
        *ret = entry;
        return 0;
}

static int add(struct om_backend_entry *table, const struct om_backend_entry *row, unsigned abi) {
        struct om_backend_entry *entry;
        if (abi != OM_BACKEND_ABI)
                return -EINVAL;
        int r = place(table, row->name, row->schemes, &entry);
        if (r == 0) {
                const char *module = entry->module;
                *entry = *row;
                entry->module = module;
        }
        return r;
}

int om_registry_add_bus(const struct om_bus_ops *ops) {
        return add(om_buses, &(struct om_backend_entry){ ops->name, ops->schemes, ops->doc, NULL, ops, NULL }, ops->abi);
}

int om_registry_add_store(const struct om_store_ops *ops) {
        return add(om_stores, &(struct om_backend_entry){ ops->name, ops->schemes, ops->doc, NULL, NULL, ops }, ops->abi);
}

/* -- modules ------------------------------------------------------------------------------------------------------- */

static bool is_bus(const struct om_backend_entry *entry) { return entry >= om_buses && entry <= om_buses + ROOM; }

static int missing(const struct om_backend_entry *entry, struct om_error *e) {
        char with[32];
        size_t n = 0;
        for (; entry->name[n] && n < sizeof(with) - 1; n++)
                with[n] = (char) toupper((unsigned char) entry->name[n]);
        with[n] = 0;
        return om_error_set(e, OM_UNSUPPORTED, "the module %s is not in %s; install the package omnidaemon-%s, or build with WITH_%s=yes",
                entry->module, om_module_folder(), entry->name, with);
}

/* What a module says of itself must be what the table says of it. */
static int check_module(const struct om_backend_entry *entry, unsigned abi, const char *name, struct om_error *e) {
        if (abi != OM_BACKEND_ABI)
                return om_error_set(e, OM_UNSUPPORTED, "%s/%s has interface number %u, this daemon has %u; install both in one version",
                        om_module_folder(), entry->module, abi, OM_BACKEND_ABI);
        if (strcmp(name, entry->name) != 0)
                return om_error_set(e, OM_UNSUPPORTED, "%s/%s calls itself \"%.60s\"", om_module_folder(), entry->module, name);
        return 0;
}

int om_registry_load(struct om_backend_entry *entry, struct om_error *e) {
        char symbol[80];
        const void *found;
        if (installed(entry))
                return 0;
        snprintf(symbol, sizeof(symbol), "om_%s_%s_ops", entry->name, is_bus(entry) ? "bus" : "store");
        int r = om_module_load(entry->module, symbol, &found, e);
        if (r < 0)
                return r == -ENOENT ? missing(entry, e) : -EOPNOTSUPP;
        const struct om_bus_ops *bus = is_bus(entry) ? found : NULL;
        const struct om_store_ops *store = is_bus(entry) ? NULL : found;
        r = check_module(entry, bus ? bus->abi : store->abi, bus ? bus->name : store->name, e);
        if (r == 0 && (r = bus ? om_registry_add_bus(bus) : om_registry_add_store(store)) < 0)
                r = om_error_set(e, OM_UNSUPPORTED, "%s/%s claims a scheme of another one", om_module_folder(), entry->module);
        return r;
}

/* -- saying why not ------------------------------------------------------------------------------------------------ */

static const char *join_names(const struct om_backend_entry *table, char *out, size_t size) {
        size_t n = 0;
        out[0] = 0;
        for (; table->name && n < size; table++)
                n += (size_t) snprintf(out + n, size - n, "%s%s", n ? ", " : "", table->name);
        return out;
}

/* The scheme to offer for a misspelt one. Schemes and names are both tried: people write rabbitmq: where amqp: is meant. */
static const char *offer(const struct om_backend_entry *table, const char *scheme) {
        const char *words[ROOM * 10 + 1];
        size_t n = 0;
        for (const struct om_backend_entry *t = table; t->name; t++) {
                words[n++] = t->name;
                for (const char *const *s = t->schemes; *s && n < ROOM * 10; s++)
                        words[n++] = *s;
                if (n >= ROOM * 10)
                        break;
        }
        words[n] = NULL;
        const char *near = om_nearest(scheme, words);
        const struct om_backend_entry *entry = near ? find_name((struct om_backend_entry *) table, near) : NULL;
        bool name_is_scheme = !entry || find_scheme((struct om_backend_entry *) table, near) == entry;
        return name_is_scheme ? near : entry->schemes[0];
}

static void unknown(struct om_backend_entry *table, const char *scheme, const char *setting, struct om_error *e) {
        struct om_backend_entry *other = table == om_buses ? om_stores : om_buses;
        char known[200], hint[160] = "";
        const char *near = NULL;
        if (find_scheme(other, scheme))
                snprintf(hint, sizeof(hint), "; it is the URL of %s %s", table == om_buses ? "a" : "an", side_name(other));
        else if ((near = offer(table, scheme)))
                snprintf(hint, sizeof(hint), "; did you mean %.100s?", near);
        om_error_set(e, OM_UNSUPPORTED, "unsupported %s \"%.60s\" in %s; known: %s%s", side_name(table), scheme, setting,
                join_names(table, known, sizeof(known)), hint);
}

/* The loaded entry for a URL; NULL: `e` says why not, as unsupported. */
static const struct om_backend_entry *choose(
        struct om_backend_entry *table, const struct om_url *url, const char *setting, struct om_error *e) {
        struct om_backend_entry *entry = find_scheme(table, url->scheme);
        if (!entry) {
                unknown(table, url->scheme, setting, e);
                return NULL;
        }
        if (om_registry_load(entry, e) < 0) {
                om_error_prefix(e, "%s \"%s\" in %s", side_name(table), entry->name, setting);
                return NULL;
        }
        return entry;
}

int om_registry_bus(const struct om_url *url, const char *setting, const struct om_bus_ops **ret, struct om_error *e) {
        const struct om_backend_entry *entry = choose(om_buses, url, setting, e);
        if (!entry)
                return -EOPNOTSUPP;
        *ret = entry->bus;
        return 0;
}

int om_registry_store(const struct om_url *url, const char *setting, const struct om_store_ops **ret, struct om_error *e) {
        const struct om_backend_entry *entry = choose(om_stores, url, setting, e);
        if (!entry)
                return -EOPNOTSUPP;
        *ret = entry->store;
        return 0;
}
