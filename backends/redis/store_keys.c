/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of keys. `p` is the prefix, REDIS_KEY_PREFIX; what stands above the line is the Python OmniDaemon's, read and written by both.
 *
 *   p:agent:TOPIC:NAME         hash     an agent (store_record.c)
 *   p:agents:topic:TOPIC       set      names of the topic's agents
 *   p:topics                   set      topics that have agents
 *   p:result:ID                string   the newest result of a task (store_record.c), with a native time to live
 *   p:results:index            zset     ID by when its newest result was saved, in seconds
 *   p:metrics:stream           stream   field `data`
 *   p:config:KEY               string   a setting's JSON
 *   ----------------------------------------------------------------------------------------------
 *   p:results:earlier:{…}ID    hash     AGENT: the results of a task that are not the newest, where several agents had it. The tag puts it
 * on the server of p:result:ID, so that one script can change both; it lives as long, and counts only with it p:results:earlier zset those:
 * ID and AGENT by when they were saved p:key:KEY                  string   what put_if_absent keeps
 *
 * A topic or name with a colon can have the key of another, as in the Python one: p:agent:a:b:c is b:c of a and c of a:b. An agent's hash
 * says which one it is, so that none is taken for the other; the later one is kept.
 *
 * No two commands need keys of one server but those on one task's results, so all of it works in a cluster. Loop thread.
 */
#include <errno.h>

#include "store_state.h"

enum { PREFIX_MAX = 200 };

int om_redis_prefix_check(const char *prefix, struct om_error *e) {
        const char *open = strchr(prefix, '{'), *close = open ? strchr(open, '}') : NULL;

        if (!prefix[0])
                return om_error_set(e, OM_INVALID, "prefix: empty; what the keys begin with, as in prefix=omni (REDIS_KEY_PREFIX)");
        if (strlen(prefix) > PREFIX_MAX)
                return om_error_set(e, OM_INVALID, "prefix: longer than %d bytes", PREFIX_MAX);
        for (const char *p = prefix; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        return om_error_set(e, OM_INVALID, "prefix: has a control character");
        if (open && (!close || close == open + 1))
                return om_error_set(
                        e, OM_INVALID, "prefix: a brace begins a hash tag of Redis Cluster, which must end and not be empty: {omni}");
        return 0;
}

static struct om_buf *begin(struct om_store *s, const char *what) {
        om_buf_clear(&s->scratch);
        om_buf_puts(&s->scratch, s->settings.prefix);
        om_buf_putc(&s->scratch, ':');
        om_buf_puts(&s->scratch, what);
        return &s->scratch;
}

static struct om_span key(struct om_store *s, const char *what, struct om_span rest) {
        struct om_buf *b = begin(s, what);

        om_buf_put_span(b, rest);
        return om_buf_span(b);
}

struct om_span om_redis_key_agent(struct om_store *s, struct om_span topic, struct om_span name) {
        struct om_buf *b = begin(s, "agent:");

        om_buf_put_span(b, topic);
        om_buf_putc(b, ':');
        om_buf_put_span(b, name);
        return om_buf_span(b);
}

struct om_span om_redis_key_agents(struct om_store *s, struct om_span topic) {
        return key(s, "agents:topic:", topic);
}
struct om_span om_redis_key_topics(struct om_store *s) {
        return key(s, "topics", OM_SPAN(""));
}
struct om_span om_redis_key_result(struct om_store *s, struct om_span id) {
        return key(s, "result:", id);
}
struct om_span om_redis_key_metrics(struct om_store *s) {
        return key(s, "metrics:stream", OM_SPAN(""));
}

struct om_span om_redis_key_index(struct om_store *s, bool earlier) {
        return key(s, earlier ? "results:earlier" : "results:index", OM_SPAN(""));
}

struct om_span om_redis_key_named(struct om_store *s, enum om_store_kind kind, struct om_span name) {
        return key(s, kind == OM_STORE_CONFIG ? "config:" : "key:", name);
}

struct om_span om_redis_key_earlier(struct om_store *s, struct om_span id) {
        struct om_buf result = OM_BUF_INIT, *b;

        om_buf_put_span(&result, om_redis_key_result(s, id));
        b = begin(s, "results:earlier:");
        om_redis_tag(b, om_buf_span(&result));
        om_buf_put_span(b, id);
        b->failed |= !om_buf_ok(&result);
        om_buf_deinit(&result);
        return om_buf_span(b);
}

static void put_literally(struct om_buf *b, const char *p, size_t n) {
        for (size_t i = 0; i < n; i++) {
                if (strchr("*?[]\\^-", p[i]) && p[i])
                        om_buf_putc(b, '\\');
                om_buf_putc(b, p[i]);
        }
}

struct om_span om_redis_key_pattern(struct om_store *s, const char *what, struct om_span start) {
        struct om_buf *b = &s->scratch;

        om_buf_clear(b);
        put_literally(b, s->settings.prefix, strlen(s->settings.prefix));
        om_buf_putc(b, ':');
        om_buf_puts(b, what);
        put_literally(b, start.p, start.len);
        om_buf_putc(b, '*');
        return om_buf_span(b);
}

struct om_span om_redis_key_rest(const struct om_store *s, struct om_span whole, const char *what) {
        size_t p = strlen(s->settings.prefix), w = strlen(what);

        if (whole.len < p + 1 + w || memcmp(whole.p, s->settings.prefix, p) != 0 || whole.p[p] != ':' ||
                memcmp(whole.p + p + 1, what, w) != 0)
                return OM_SPAN_NONE;
        return (struct om_span){ whole.p + p + 1 + w, whole.len - p - 1 - w };
}

/*
 * ID, a zero byte, AGENT. In the id a zero byte becomes 1 1 and a one 1 2, which keeps the order of ids: members of one score come in the
 * order of their ids, as in the index of the newest.
 */
void om_redis_member_put(struct om_buf *b, struct om_span id, struct om_span agent) {
        for (size_t i = 0; i < id.len; i++) {
                if (id.p[i] == 0 || id.p[i] == 1)
                        om_buf_putc(b, 1);
                om_buf_putc(b, id.p[i] == 0 || id.p[i] == 1 ? (char) (id.p[i] + 1) : id.p[i]);
        }
        om_buf_putc(b, 0);
        om_buf_put_span(b, agent);
}

int om_redis_member_read(struct om_span member, struct om_arena *arena, struct om_span *ret_id, struct om_span *ret_agent) {
        const char *zero = member.len ? memchr(member.p, 0, member.len) : NULL;
        char *id = om_arena_alloc(arena, member.len + 1);
        size_t n = 0;

        if (!id)
                return -ENOMEM;
        if (!zero)
                return -EINVAL;
        for (const char *p = member.p; p < zero; p++) {
                char c = *p;

                if (c == 1) {
                        if (++p == zero || *p < 1 || *p > 2)
                                return -EINVAL;
                        c = (char) (*p - 1);
                }
                id[n++] = c;
        }
        id[n] = 0;
        *ret_id = (struct om_span){ id, n };
        *ret_agent = om_arena_copy(arena, (struct om_span){ zero + 1, (size_t) (member.p + member.len - zero - 1) });
        return ret_agent->p ? 0 : -ENOMEM;
}
