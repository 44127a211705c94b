/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus.*: what the bus holds, together with what only the daemon knows (workers here, which groups are paused); a topic's own settings.
 *
 * bus.groups and bus.stats ask the bus for its rows, then the storage for the settings of paused groups; where the storage is away, what
 * this daemon remembers of its own groups is told instead. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "agents.h"
#include "methods.h"

static void put_number(struct om_buf *b, const char *name, uint64_t n) {
        om_buf_lit(b, ",\"");
        om_buf_puts(b, name);
        om_buf_lit(b, "\":");
        om_buf_u64(b, n);
}

/* Without the closing brace, and without `groups`. */
static void put_topic(struct om_buf *b, const struct om_bus_topic_row *row) {
        om_buf_lit(b, "{\"topic\":");
        om_buf_json_span(b, row->topic);
        put_number(b, "depth", row->depth);
        put_number(b, "delayed", row->delayed);
        put_number(b, "published", row->published);
}

/* -- bus.topics, bus.inspect --------------------------------------------------------------------------------------- */

static void put_topic_row(struct om_buf *b, const struct om_call *c, size_t i) {
        put_topic(b, &c->query.topics[i]);
        put_number(b, "groups", c->query.topics[i].groups);
        om_buf_putc(b, '}');
}

static void on_topics(struct om_call *c, int status, const struct om_error *e) { om_call_put_page(c, status, e, "topics", put_topic_row); }

static void put_held_row(struct om_buf *b, const struct om_call *c, size_t i) {
        om_buf_lit(b, "{\"entry\":");
        om_buf_json_span(b, c->query.held[i].id);
        om_buf_lit(b, ",\"task\":");
        om_buf_put_span(b, c->query.held[i].record);
        om_buf_putc(b, '}');
}

static void on_held(struct om_call *c, int status, const struct om_error *e) { om_call_put_page(c, status, e, "entries", put_held_row); }

static int read_page(struct om_call *c, struct om_span params, bool topic_required, struct om_error *e) {
        struct om_json_member m[] = { { "topic", OM_JSON_STRING, topic_required }, { "limit", OM_JSON_NUMBER },
                { "cursor", OM_JSON_STRING }, { NULL } };
        int r;

        if ((r = om_json_members(params, "params", m, e)) == 0 && (r = om_param_topic(&m[0], &c->arena, &c->query.topic, e)) == 0 &&
                (r = om_param_limit(&m[1], &c->query.limit, e)) == 0)
                r = om_param_cursor(&m[2], &c->arena, &c->query.cursor, e);
        return r;
}

static int read_topics(struct om_call *c, struct om_span params, struct om_error *e) {
        c->query.type = OM_QUERY_TOPICS;
        return read_page(c, params, false, e);
}

static int read_held(struct om_call *c, struct om_span params, struct om_error *e) {
        c->query.type = OM_QUERY_HELD;
        return read_page(c, params, true, e);
}

static void bus_topics(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_BUS_QUERY, read_topics, on_topics);
}
static void bus_inspect(struct om_request *req, struct om_span params) { om_call_for(req, params, OM_CALL_BUS_QUERY, read_held, on_held); }

/* -- bus.configure ------------------------------------------------------------------------------------------------- */

static int read_configure(struct om_call *c, struct om_span params, struct om_error *e) {
        enum { TOPIC, PARTITIONS, RETENTION, N };
        struct om_json_member m[N + 1] = {
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [PARTITIONS] = { "partitions", OM_JSON_NUMBER },
                [RETENTION] = { "retention_ms", OM_JSON_NUMBER },
        };
        struct om_bus_change *change = &c->change;
        int r;

        *change = (struct om_bus_change){ .op = change->op, .type = OM_CHANGE_CONFIGURE, .retention_ms = -1 };
        if ((r = om_json_members(params, "params", m, e)) < 0 || (r = om_param_topic(&m[TOPIC], &c->arena, &change->topic, e)) < 0 ||
                (r = om_param_int(&m[PARTITIONS], 1, 10000, &change->partitions, e)) < 0 ||
                (r = om_param_int(&m[RETENTION], 0, OM_DELAY_MAX_MS, &change->retention_ms, e)) < 0)
                return r;
        if (!(c->core->bus_ops->capabilities & OM_BUS_CONFIGURE))
                return om_error_set(e, OM_UNSUPPORTED,
                        "the bus \"%s\" has no settings for each topic; its own are in its URL: `omnictl backends` shows them",
                        c->core->bus_ops->name);
        return 0;
}

static void on_configured(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b = om_call_begin(c, status, e);

        if (!b)
                return;
        om_buf_lit(b, "{\"topic\":");
        om_buf_json_span(b, c->change.topic);
        put_number(b, "partitions", (uint64_t) c->change.ret_partitions);
        put_number(b, "retention_ms", (uint64_t) c->change.ret_retention_ms);
        om_buf_putc(b, '}');
        om_call_end(c);
}

static void bus_configure(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_BUS_CHANGE, read_configure, on_configured);
}

/* -- bus.groups, bus.stats ----------------------------------------------------------------------------------------- */

/* What the calls of one request gather; each lives until the reply. In the arena of `groups`. */
struct look {
        struct om_request *req;
        struct om_core *core;
        bool stats;
        struct om_span topic;
        struct om_call *groups, *topics, *settings; /* topics: of bus.stats only */
        struct om_paused paused;
        bool paused_known;
};

static void look_over(struct look *l) {
        struct om_call *groups = l->groups;

        om_call_free(l->topics);
        om_call_free(l->settings);
        om_call_free(groups); /* and with it `l` */
}

static void look_failed(struct look *l, const struct om_error *e) {
        om_request_error(l->req, e);
        look_over(l);
}

static void put_group(struct om_buf *b, const struct look *l, const struct om_bus_group_row *row) {
        struct om_buf group = OM_BUF_INIT;
        unsigned workers = 0, leased = 0;
        bool paused;

        om_dispatch_count(l->core->dispatch, row->topic, row->agent, &workers, &leased);
        paused = l->paused_known ? om_paused_has(&l->paused, row->topic, row->agent)
                                 : om_agents_is_paused(l->core->agents, row->topic, row->agent);
        om_group_name(&group, row->topic, row->agent);
        om_buf_lit(b, "{\"topic\":");
        om_buf_json_span(b, row->topic);
        om_put_member(b, "agent", row->agent);
        om_put_member(b, "group", om_buf_span(&group));
        put_number(b, "lag", row->lag);
        put_number(b, "leased", row->leased);
        put_number(b, "retrying", row->retrying);
        put_number(b, "dead", row->dead);
        put_number(b, "finished", row->finished);
        put_number(b, "expired", row->expired);
        put_number(b, "workers", workers);
        om_buf_puts(b, paused ? ",\"paused\":true}" : ",\"paused\":false}");
        om_buf_deinit(&group);
}

static void put_groups(struct om_buf *b, const struct look *l, const struct om_bus_group_row *rows, size_t n) {
        om_buf_putc(b, '[');
        for (size_t i = 0; i < n; i++) {
                if (i > 0)
                        om_buf_putc(b, ',');
                put_group(b, l, &rows[i]);
        }
        om_buf_putc(b, ']');
}

static int compare(struct om_span a, struct om_span b) {
        int r = memcmp(a.p, b.p, a.len < b.len ? a.len : b.len);

        return r != 0 ? r : (a.len > b.len) - (a.len < b.len);
}

static int by_topic_row(const void *a, const void *b) {
        return compare(((const struct om_bus_topic_row *) a)->topic, ((const struct om_bus_topic_row *) b)->topic);
}

static int by_group_row(const void *va, const void *vb) {
        const struct om_bus_group_row *a = va, *b = vb;
        int r = compare(a->topic, b->topic);

        return r != 0 ? r : compare(a->agent, b->agent);
}

/* Both are sorted by topic. A group whose topic is not listed, one of a pattern, gets an entry of its own: no group is left out. */
static void put_stats(struct om_buf *b, const struct look *l) {
        struct om_bus_topic_row *topics = l->topics->query.topics, total = { .depth = 0 }, pattern;
        struct om_bus_group_row *groups = l->groups->query.groups, group_total = { .lag = 0 };
        size_t n_topics = l->topics->query.n, n_groups = l->groups->query.n, t = 0, g = 0, n, rows = 0;

        if (n_topics > 1)
                qsort(topics, n_topics, sizeof *topics, by_topic_row);
        if (n_groups > 1)
                qsort(groups, n_groups, sizeof *groups, by_group_row);
        om_buf_lit(b, "{\"topics\":[");
        while (t < n_topics || g < n_groups) {
                const struct om_bus_topic_row *row = &pattern;

                if (t < n_topics && (g == n_groups || compare(topics[t].topic, groups[g].topic) <= 0))
                        row = &topics[t++];
                else
                        pattern = (struct om_bus_topic_row){ .topic = groups[g].topic };
                for (n = 0; g + n < n_groups && om_span_eq(groups[g + n].topic, row->topic); n++) {
                        group_total.lag += groups[g + n].lag;
                        group_total.leased += groups[g + n].leased;
                        group_total.retrying += groups[g + n].retrying;
                        group_total.dead += groups[g + n].dead;
                }
                if (rows++ > 0)
                        om_buf_putc(b, ',');
                put_topic(b, row);
                om_buf_lit(b, ",\"groups\":");
                put_groups(b, l, &groups[g], n);
                om_buf_putc(b, '}');
                total.depth += row->depth;
                total.delayed += row->delayed;
                total.published += row->published;
                g += n;
        }
        om_buf_lit(b, "],\"totals\":{\"topics\":");
        om_buf_u64(b, n_topics);
        put_number(b, "depth", total.depth);
        put_number(b, "delayed", total.delayed);
        put_number(b, "published", total.published);
        put_number(b, "groups", n_groups);
        put_number(b, "lag", group_total.lag);
        put_number(b, "leased", group_total.leased);
        put_number(b, "retrying", group_total.retrying);
        put_number(b, "dead", group_total.dead);
        om_buf_lit(b, "}}");
}

static void look_reply(struct look *l) {
        struct om_buf *b = om_request_begin(l->req);

        if (b && l->stats) {
                put_stats(b, l);
        } else if (b) {
                om_buf_lit(b, "{\"groups\":");
                put_groups(b, l, l->groups->query.groups, l->groups->query.n);
                om_buf_putc(b, '}');
        }
        om_request_end(l->req);
        look_over(l);
}

static void on_look_settings(struct om_call *c, int status, const struct om_error *e) {
        struct look *l = c->data;

        if (status == 0) {
                l->paused = om_paused_of(c);
                l->paused_known = true;
        }
        look_reply(l);
}

static void look_for_settings(struct look *l) {
        struct om_error e;

        if (l->core->store_state != OM_STORE_READY) {
                look_reply(l);
                return;
        }
        l->settings = om_call_new(l->core, NULL, OM_CALL_STORE_LIST, on_look_settings);
        if (!l->settings) {
                om_error_set_errno(&e, ENOMEM, "the request");
                look_failed(l, &e);
                return;
        }
        l->settings->data = l;
        om_paused_list(l->settings);
        om_call_collect(l->settings);
}

static void on_look_topics(struct om_call *c, int status, const struct om_error *e) {
        struct look *l = c->data;

        if (status < 0)
                look_failed(l, e);
        else
                look_for_settings(l);
}

static void on_look_groups(struct om_call *c, int status, const struct om_error *e) {
        struct look *l = c->data;
        struct om_error oom;

        if (status < 0) {
                look_failed(l, e);
                return;
        }
        if (!l->stats) {
                look_for_settings(l);
                return;
        }
        l->topics = om_call_new(l->core, NULL, OM_CALL_BUS_QUERY, on_look_topics);
        if (!l->topics) {
                om_error_set_errno(&oom, ENOMEM, "the request");
                look_failed(l, &oom);
                return;
        }
        l->topics->data = l;
        l->topics->query.type = OM_QUERY_TOPICS;
        l->topics->query.topic = l->topic;
        om_call_start(l->topics);
}

static void start_look(struct om_request *req, struct om_span params, bool stats) {
        struct om_json_member m[] = { { "topic", OM_JSON_STRING }, { NULL } };
        struct om_call *c = om_call_new(req->core, req, OM_CALL_BUS_QUERY, on_look_groups);
        struct look *l = c ? om_arena_alloc(&c->arena, sizeof *l) : NULL;
        struct om_error e = OM_ERROR_INIT;

        if (!c)
                return;
        if (!l)
                om_error_set_errno(&e, ENOMEM, "the request");
        if (!l || om_json_members(params, "params", m, &e) < 0 || om_param_topic(&m[0], &c->arena, &c->query.topic, &e) < 0) {
                om_call_fail(c, &e);
                return;
        }
        *l = (struct look){ .req = req, .core = req->core, .stats = stats, .topic = c->query.topic, .groups = c };
        c->req = NULL; /* answered from `look` */
        c->data = l;
        c->query.type = OM_QUERY_GROUPS;
        om_call_start(c);
}

static void bus_groups(struct om_request *req, struct om_span params) { start_look(req, params, false); }
static void bus_stats(struct om_request *req, struct om_span params) { start_look(req, params, true); }

const struct om_method om_bus_methods[] = {
        { "bus.topics", bus_topics },
        { "bus.groups", bus_groups },
        { "bus.inspect", bus_inspect },
        { "bus.stats", bus_stats },
        { "bus.configure", bus_configure },
        { NULL, NULL },
};
