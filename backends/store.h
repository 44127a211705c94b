/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_STORE_H
#define OM_STORE_H
/*
 * The contract of a storage: agents, results, metrics, settings, and a put-if-absent.
 *
 * Values are JSON text that the core made or checked; a storage keeps and returns them whole and never needs to read inside, except for
 * the fields that its own format wants apart. Keys are any bytes of UTF-8 up to OM_STORE_KEY_MAX, slashes, quotes and `..` included: a
 * backend encodes them where its system is less liberal.
 *
 * Promises:
 *   S1  a write completes with 0 only when it survives the death of every process involved, as far as `durability` says.
 *   S2  a result is never returned after its expiry and never gone before it.
 *   S3  put_if_absent has one winner, however many race.
 *   S4  a cursor walks every entry that was there when the walk began, once, while others are written; an opaque text.
 *   S5  unknown keys complete with -ENOENT; nothing of a server's own errors reaches the caller for that.
 *
 * The rules of operations (threads, completion, ownership) are host.h's.
 */
#include "host.h"
#include "options.h"

enum { OM_STORE_KEY_MAX = 1024 };

enum {
        OM_STORE_TTL = 1 << 0,    /* the system expires by itself */
        OM_STORE_SEARCH = 1 << 1, /* search over results: task.search */
        OM_STORE_SHARED = 1 << 2, /* several daemons may use it at once */
        OM_STORE_QUERY = 1 << 3,  /* answers queries in its own language: storage.query */
};

struct om_store;

/* A saved thing, in and out. Which fields count is said at each request. */
struct om_store_entry {
        struct om_span key;   /* agents: topic · results: task id · config: key · metrics: absent */
        struct om_span name;  /* agents and results: the agent's name */
        struct om_span value; /* JSON text */
        int64_t saved_ms;     /* wall clock; set by the core on writes */
        int64_t expires_ms;   /* 0: never */
        /* results and metrics: also found by these, so that the value need not be read */
        struct om_span topic, status;
};

enum om_store_kind { OM_STORE_AGENTS, OM_STORE_RESULTS, OM_STORE_METRICS, OM_STORE_CONFIG, OM_STORE_KEYS /* of put_if_absent */ };

/* Writes entries of one kind, each with its outcome; those of one batch reach the disk or the server together. agents: (key, name)
 * replaced; results: (key, name) replaced; metrics: appended; config: replaced; keys: replaced, with their expiry (for migration). */
struct om_store_put {
        struct om_op op;
        enum om_store_kind kind;
        const struct om_store_entry *entries; /* borrowed until the call returns */
        size_t n;
        struct om_outcome *outcomes; /* n of them, the core's */
};
/* Reads one. agents: key, name · results: key and name, or without name the newest · config: key · keys: key. */
struct om_store_get {
        struct om_op op;
        enum om_store_kind kind;
        struct om_span key, name; /* borrowed */
        struct om_arena arena;    /* out: the entry's spans; the core frees it */
        struct om_store_entry entry;
};
/* Reads many. agents: key (topic) or all · results, metrics: newest first, filtered · config: name = prefix · keys: all (for migration). */
struct om_store_list {
        struct om_op op;
        enum om_store_kind kind;
        /* in; borrowed; absent or 0: not filtered */
        struct om_span key, name, topic, status, cursor;
        struct om_span text, filter; /* results, with OM_STORE_SEARCH: words to look for; a JSON object to be contained in the record */
        int64_t since_ms, until_ms;  /* saved_ms within [since, until) */
        size_t limit;                /* 0: the backend's page size */
        /* Not of metrics. Key, name and times are enough: the rest may be absent, and what is gone may still be met. A storage that reads
         * each value by itself spares that; others need not look at it. */
        bool keys_only;
        /* A page behind the first may be as it was when the walk began: what was changed since may be met as it was, what is gone as if it
         * were there. A system that finds a page only by reading from the beginning spares that; others need not look at it. */
        bool stale_ok;
        /* out; in the arena, which the core frees */
        struct om_arena arena;
        struct om_store_entry *entries;
        size_t n;
        struct om_span next_cursor; /* absent: that was the end */
};
/* Deletes. agents: key and name, or key alone for a topic's · results: key (all agents' or name's) · config: key · whole kind with neither
 * (clear) · keys: key (for migration). */
struct om_store_delete {
        struct om_op op;
        enum om_store_kind kind;
        struct om_span key, name; /* borrowed */
        uint64_t ret_n;           /* how many there were; 0 is no error */
};
/* Saves value under key unless there is one that has not expired. */
struct om_store_put_if_absent {
        struct om_op op;
        struct om_span key, value; /* borrowed */
        int64_t expires_ms;        /* 0: never */
        bool ret_stored;
        struct om_arena arena; /* out, when not stored: what is there */
        struct om_span ret_value;
};
struct om_store_health {
        struct om_op op;
        struct om_arena arena;
        struct om_span info; /* one JSON object: {"durability":"strong","path":…,"agents":3,"results":100,…} */
};

enum { OM_STORE_QUERY_ROWS_MAX = 10000, OM_STORE_QUERY_BYTES_MAX = 8 << 20 };
/*
 * A query in the system's own language, for people who look into their data. It can only read: the backend sees to it that the system
 * itself refuses every write, however the text is made.
 *
 * -EINVAL: the text is wrong, with the system's own words. -ETIMEDOUT: it took longer than timeout_ms, and the system has stopped it.
 */
struct om_store_query {
        struct om_op op;
        struct om_span text; /* borrowed */
        int64_t timeout_ms;  /* at least 1 */
        size_t limit;        /* rows, 1 to OM_STORE_QUERY_ROWS_MAX */
        struct om_arena arena;
        /* out: {"columns":["a",…],"rows":[[1,…],…],"truncated":false}: one JSON text of at most about OM_STORE_QUERY_BYTES_MAX; truncated:
         * there are more rows than `limit` or than fit. Values have their JSON type where the system's type has one, else they are strings.
         */
        struct om_span answer;
};

enum om_store_state { OM_STORE_CONNECTING, OM_STORE_READY, OM_STORE_FAILED };
struct om_store_events {
        void (*state)(void *core, enum om_store_state state, const struct om_error *error);
};

struct om_store_ops {
        unsigned abi; /* OM_BACKEND_ABI */
        const char *name;
        const char *const *schemes;
        const char *doc;
        unsigned capabilities;
        const struct om_option *options;

        int (*open)(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
                struct om_error *e);
        int (*put)(struct om_store *s, struct om_store_put *op, struct om_error *e);
        int (*get)(struct om_store *s, struct om_store_get *op, struct om_error *e);
        int (*list)(struct om_store *s, struct om_store_list *op, struct om_error *e);
        int (*remove)(struct om_store *s, struct om_store_delete *op, struct om_error *e);
        int (*put_if_absent)(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e);
        int (*health)(struct om_store *s, struct om_store_health *op, struct om_error *e);
        int (*query)(struct om_store *s, struct om_store_query *op, struct om_error *e); /* with OM_STORE_QUERY; else NULL */
        /* As om_bus_ops.close and destroy. */
        int (*close)(struct om_store *s, struct om_op *op, struct om_error *e);
        void (*destroy)(struct om_store *s);
};

#endif
