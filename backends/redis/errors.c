/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server's error means, and what to mend. An error of Redis begins with a word in capitals; the words here are those of its
 * documentation and source. What the server says itself is quoted only where we have no better word, as one line without what is no text.
 *
 * Called for each error reply. Any thread.
 */
#include <ctype.h>
#include <errno.h>

#include "link.h"

struct meaning {
        const char *word;
        enum om_kind kind;
        const char *help; /* NULL: what the server says */
};

static const struct meaning meanings[] = {
        { "NOAUTH", OM_DENIED, "the server wants a password: write it into the URL, redis://USER:PASSWORD@HOST" },
        { "WRONGPASS", OM_DENIED, "the user or the password in the URL is wrong, or the user is disabled" },
        { "NOPERM", OM_DENIED, NULL },
        { "READONLY", OM_UNAVAILABLE,
                "the server is a read-only replica: the URL must name the primary, or use redis+sentinel:// or redis+cluster:// to follow "
                "it" },
        { "LOADING", OM_UNAVAILABLE, "the server is loading its data into memory" },
        { "MASTERDOWN", OM_UNAVAILABLE, "the server is a replica that has lost its primary" },
        { "CLUSTERDOWN", OM_UNAVAILABLE, "the cluster is down or does not cover this slot: see CLUSTER INFO" },
        { "TRYAGAIN", OM_UNAVAILABLE, "the cluster is moving these keys" },
        { "MOVED", OM_UNAVAILABLE, "the server belongs to a cluster: use redis+cluster://" },
        { "ASK", OM_UNAVAILABLE, "the server belongs to a cluster: use redis+cluster://" },
        { "BUSY", OM_UNAVAILABLE, "the server is busy with a script" },
        { "NOREPLICAS", OM_UNAVAILABLE, "the server has fewer good replicas than min-replicas-to-write demands" },
        { "UNBLOCKED", OM_UNAVAILABLE, NULL },
        { "NOMASTERLINK", OM_UNAVAILABLE, NULL },
        { "IDONTKNOW", OM_UNAVAILABLE, NULL },
        { "OOM", OM_LIMIT, "the server's memory is full: maxmemory is reached" },
        { "WRONGTYPE", OM_INVALID,
                "holds another kind of value than OmniDaemon keeps there: another program uses the same names; give it, or us, another "
                "database (db in the URL)" },
        { "NOGROUP", OM_NOT_FOUND, NULL },
        { "NOSCRIPT", OM_UNAVAILABLE, NULL },
        { "BUSYGROUP", OM_EXISTS, NULL },
        { "EXECABORT", OM_INTERNAL, NULL },
        { "CROSSSLOT", OM_INTERNAL, NULL },
        { NULL },
};

/* "ERR …" has no word of its own: the few texts that a setting can mend. */
static const struct meaning texts[] = {
        { "DB index is out of range", OM_INVALID,
                "the server has no database of that number: mend the path or db of the URL, or `databases`" },
        { "invalid DB index", OM_INVALID, "the server has no database of that number: mend the path or db of the URL, or `databases`" },
        { "SELECT is not allowed in cluster mode", OM_INVALID, "a cluster has database 0 only: mend the path or db of the URL" },
        { "without any password configured", OM_DENIED,
                "the URL has a password, but the server's user \"default\" has none: take it out of the URL, or set requirepass" },
        { "max number of clients reached", OM_UNAVAILABLE, "the server has as many connections as maxclients allows" },
        { "cluster support disabled", OM_INVALID, "the server is no cluster: write redis:// instead of redis+cluster:// in the URL" },
        { "no such key", OM_NOT_FOUND, NULL },
        { "unknown command", OM_UNSUPPORTED, NULL },
        { "unknown subcommand", OM_UNSUPPORTED, NULL },
        { "wrong number of arguments", OM_UNSUPPORTED, NULL },
        { "syntax error", OM_UNSUPPORTED, NULL },
        { NULL },
};

static bool holds(struct om_span text, const char *part) { return memmem(text.p, text.len, part, strlen(part)); }

/* A script's error comes as "ERR user_script:1: …" or with the word in front; the word of the command inside counts wherever it stands. */
static const struct meaning *find(const struct om_redis_reply *reply) {
        for (const struct meaning *m = meanings; m->word; m++)
                if (om_redis_is_error(reply, m->word))
                        return m;
        if (om_redis_is_error(reply, "MISCONF")) {
                static const struct meaning misconf = { "MISCONF", OM_UNAVAILABLE,
                        "the server cannot write its data to disk and so takes no writes: see its log, and stop-writes-on-bgsave-error" };
                return &misconf;
        }
        for (const struct meaning *m = texts; m->word; m++)
                if (holds(reply->text, m->word))
                        return m;
        return NULL;
}

/* One line of printable text: a hostile server must not write into a log. */
static void quote(struct om_span text, char *out, size_t room) {
        size_t n = 0;

        for (size_t i = 0; i < text.len && n + 1 < room; i++)
                out[n++] = isprint((unsigned char) text.p[i]) ? text.p[i] : '?';
        out[n] = 0;
}

int om_redis_error(const struct om_redis_reply *reply, const char *name, struct om_span key, const char *where, struct om_error *e) {
        const struct meaning *m = find(reply);
        char said[200];

        if (m && strcmp(m->word, "WRONGTYPE") == 0) {
                quote(key, said, sizeof said);
                return om_error_set(
                        e, m->kind, "redis %s: the key %s%s %s", where, said, key.len ? ", or one that goes with it," : "", m->help);
        }
        quote(reply->text, said, sizeof said);
        if (m && m->help)
                return om_error_set(e, m->kind, "redis %s: %s", where, m->help);
        return om_error_set(e, m ? m->kind : OM_INTERNAL, "redis %s: %s: %s", where, name, said);
}
