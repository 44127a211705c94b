/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of keys. Those that the Python OmniDaemon has are its own; ours stand beside them in the same slot of a cluster, by a hash tag, so
 * that one script can change both.
 *
 *     omni-stream:{topic}            the topic: a stream                                    Python's
 *     group:{topic}:{agent}          the group: a consumer group of it                      Python's
 *     retry_counts:{group}           hash: entry → retries so far                           Python's
 *     omni-dlq:{group}               the group's dead letters: a stream                     Python's
 *     [T]omni-again:{group}          a stream of the group alone: what is replayed, and word that something is due
 *     [T]omni-due:{group}            zset: entry → when it is due (Unix ms of the server); 0: at once, given back
 *     [T]omni-stats:{group}          hash: finished
 *     [T]omni-runs:{topic}           hash: group → the life of the server in which its number of deliveries was put right
 *     [T]omni-idem:{topic}:{key}     string: id of the task that had this idempotency key first
 *     [D]omni-dlq-ids:{group}        hash: original entry → dead letter
 *
 * [T] stands for a tag of the topic's slot, [D] of the dead letters'. An entry is its id in the topic's stream, or "r:" and its id in the
 * group's own. No state; any thread.
 */
#include <errno.h>

#include "bus_state.h"

#define STREAM "omni-stream:"
#define DEAD "omni-dlq:"

const char om_redis_bus_retry_consumer[] = "omnidaemon:retry";

void om_redis_bus_topic_stream(struct om_buf *b, struct om_span topic) {
        om_buf_lit(b, STREAM);
        om_buf_put_span(b, topic);
}

static void own(struct om_buf *b, struct om_span beside, const char *name, struct om_span group) {
        om_redis_tag(b, beside);
        om_buf_puts(b, name);
        om_buf_put_span(b, group);
}

void om_redis_bus_topic_runs(struct om_buf *b, struct om_span topic) {
        struct om_buf stream = OM_BUF_INIT;

        om_redis_bus_topic_stream(&stream, topic);
        own(b, om_buf_span(&stream), "omni-runs:", topic);
        b->failed |= stream.failed;
        om_buf_deinit(&stream);
}

struct om_span om_redis_bus_stream_topic(struct om_span key) {
        size_t n = sizeof STREAM - 1;

        if (key.len <= n || memcmp(key.p, STREAM, n) != 0)
                return OM_SPAN_NONE;
        return (struct om_span){ key.p + n, key.len - n };
}

int om_redis_bus_names_make(struct bus_names *n, struct om_span topic, struct om_span agent) {
        enum { TOPIC, AGENT, GROUP, STREAM_KEY, AGAIN, DUE, STATS, RUNS, COUNTS, DEAD_KEY, DEAD_IDS, N };
        struct om_span *const spans[N] = { &n->topic, &n->agent, &n->group, &n->stream, &n->again, &n->due, &n->stats, &n->runs, &n->counts,
                &n->dead, &n->dead_ids };
        struct om_buf group = OM_BUF_INIT, stream = OM_BUF_INIT, dead = OM_BUF_INIT;
        size_t ends[N];
        int at = 0;
        bool ok;

        om_group_name(&group, topic, agent);
        om_redis_bus_topic_stream(&stream, topic);
        om_buf_lit(&dead, DEAD);
        om_buf_put_span(&dead, om_buf_span(&group));
        n->text = (struct om_buf) OM_BUF_INIT;
#define END() ends[at++] = n->text.len
        om_buf_put_span(&n->text, topic);
        END();
        om_buf_put_span(&n->text, agent);
        END();
        om_buf_put_span(&n->text, om_buf_span(&group));
        END();
        om_buf_put_span(&n->text, om_buf_span(&stream));
        END();
        own(&n->text, om_buf_span(&stream), "omni-again:", om_buf_span(&group));
        END();
        own(&n->text, om_buf_span(&stream), "omni-due:", om_buf_span(&group));
        END();
        own(&n->text, om_buf_span(&stream), "omni-stats:", om_buf_span(&group));
        END();
        om_redis_bus_topic_runs(&n->text, topic);
        END();
        om_buf_lit(&n->text, "retry_counts:");
        om_buf_put_span(&n->text, om_buf_span(&group));
        END();
        om_buf_put_span(&n->text, om_buf_span(&dead));
        END();
        own(&n->text, om_buf_span(&dead), "omni-dlq-ids:", om_buf_span(&group));
        END();
#undef END
        ok = om_buf_ok(&group) && om_buf_ok(&stream) && om_buf_ok(&dead) && om_buf_ok(&n->text);
        om_buf_deinit(&group);
        om_buf_deinit(&stream);
        om_buf_deinit(&dead);
        for (int i = 0; ok && i < N; i++) {
                size_t from = i ? ends[i - 1] : 0;

                *spans[i] = (struct om_span){ n->text.data + from, ends[i] - from };
        }
        if (!ok)
                om_redis_bus_names_deinit(n);
        return ok ? 0 : -ENOMEM;
}

void om_redis_bus_names_deinit(struct bus_names *n) { om_buf_deinit(&n->text); }
