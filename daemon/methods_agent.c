/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent.* and topic.delete.
 *
 * Deleting is a chain whose last step removes what its first step looks for, the agents' records: a chain that ends half-way, in whatever
 * way, leaves the records, and a repeat finishes it.
 *
 *   are there records? ─▶ workers here are sent away ─▶ the bus deletes ─▶ the settings go ─▶ the records go
 *
 * Loop thread.
 */
#include <errno.h>
#include <inttypes.h>

#include "agents.h"
#include "methods.h"
#include "registration.h"

/* -- register, unregister ------------------------------------------------------------------------------------------ */

static void agent_register(struct om_request *req, struct om_span params) { om_agents_register(req->core, req, params); }

static void agent_unregister(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "subscription", OM_JSON_NUMBER, true }, { NULL } };
        struct om_error e = OM_ERROR_INIT;
        int64_t subscription = 0;
        int r;

        if ((r = om_json_members(params, "params", m, &e)) == 0 && (r = om_param_int(&m[0], 0, INT64_MAX, &subscription, &e)) == 0 &&
                (r = om_dispatch_unregister(req->core->dispatch, req->session, subscription)) < 0)
                om_error_set(&e, OM_NOT_FOUND, "this connection has no subscription %lld", (long long) subscription);
        if (r < 0)
                om_request_error(req, &e);
        else
                om_request_ok(req);
}

/* -- list, get ----------------------------------------------------------------------------------------------------- */

static void put_raw(struct om_buf *b, const char *name, struct om_span record, const char *fallback) {
        struct om_json_value value;

        om_buf_lit(b, ",\"");
        om_buf_puts(b, name);
        om_buf_lit(b, "\":");
        if (om_object_get(record, name, &value))
                om_buf_put_span(b, value.text);
        else
                om_buf_puts(b, fallback);
}

static void put_agent(struct om_buf *b, struct om_core *core, const struct om_store_entry *row, bool paused) {
        unsigned workers = 0, leased = 0;
        struct om_buf group = OM_BUF_INIT;

        om_dispatch_count(core->dispatch, row->key, row->name, &workers, &leased);
        om_group_name(&group, row->key, row->name);
        om_buf_lit(b, "{\"name\":");
        om_buf_json_span(b, row->name);
        om_put_member(b, "topic", row->key);
        om_put_member(b, "group", om_buf_span(&group));
        put_raw(b, "callback_name", row->value, "null");
        put_raw(b, "description", row->value, "null");
        put_raw(b, "tools", row->value, "[]");
        put_raw(b, "config", row->value, "{}");
        put_raw(b, "created_at", row->value, "null");
        om_buf_printf(b, ",\"paused\":%s,\"workers\":%u,\"leased\":%u}", paused ? "true" : "false", workers, leased);
        om_buf_deinit(&group);
}

static void on_agents_listed(struct om_call *c, int status, const struct om_error *e) {
        struct om_call *settings = c->data;
        struct om_paused paused;
        struct om_buf *b;

        if (status < 0) {
                om_call_free(settings);
                om_call_fail(c, e);
                return;
        }
        paused = om_paused_of(settings);
        b = om_request_begin(c->req);
        if (b) {
                om_buf_lit(b, "{\"agents\":[");
                for (size_t i = 0; i < c->n_rows; i++) {
                        const struct om_store_entry *row = &c->rows[i];

                        if (i > 0)
                                om_buf_putc(b, ',');
                        put_agent(b, c->core, row, om_paused_has(&paused, row->key, row->name));
                }
                om_buf_lit(b, "]}");
        }
        om_call_free(settings);
        om_call_end(c);
}

static void on_settings_listed(struct om_call *settings, int status, const struct om_error *e) {
        struct om_call *c = settings->data;

        if (status < 0) {
                om_call_fail(c, e);
                om_call_free(settings);
                return;
        }
        c->data = settings;
        om_call_collect(c);
}

static void agent_list(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "topic", OM_JSON_STRING }, { NULL } };
        struct om_call *c = om_call_new(req->core, req, OM_CALL_STORE_LIST, on_agents_listed), *settings;
        struct om_error e = OM_ERROR_INIT;

        if (!c)
                return;
        if (om_json_members(params, "params", m, &e) < 0 || om_param_topic(&m[0], &c->arena, &c->list.key, &e) < 0) {
                om_call_fail(c, &e);
                return;
        }
        c->list.kind = OM_STORE_AGENTS;
        settings = om_call_new(c->core, NULL, OM_CALL_STORE_LIST, on_settings_listed);
        if (!settings) {
                om_error_set_errno(&e, ENOMEM, "agent.list");
                om_call_fail(c, &e);
                return;
        }
        settings->data = c;
        om_paused_list(settings);
        om_call_collect(settings);
}

/* Topic and name of an agent, as most methods here have them. */
struct named {
        struct om_span topic, name;
        bool flag; /* paused; delete_dead_letters */
        bool found;
        struct om_store_entry row; /* its record */
        uint64_t n_tasks;
        size_t at; /* of the records: the next whose setting goes */
        struct om_post post;
        struct om_call *call;
        struct om_agent_deletion deletion;
};

static struct named *new_named(struct om_call *c) {
        struct named *n = om_arena_alloc(&c->arena, sizeof *n);

        if (!n)
                return NULL;
        memset(n, 0, sizeof *n);
        n->call = c;
        c->data = n;
        return n;
}

/* Reads topic and name (where there is one); answers the request and returns NULL when they are wrong. */
static struct named *read_named(struct om_call *c, struct om_span params, bool has_name, bool deletes) {
        enum { TOPIC, NAME_OR_DEAD, DEAD, N };
        struct om_json_member m[N + 1] = { [TOPIC] = { "topic", OM_JSON_STRING, true } };
        struct om_error e = OM_ERROR_INIT;
        struct named *n = new_named(c);
        int at = NAME_OR_DEAD, r;

        if (has_name)
                m[at++] = (struct om_json_member){ "name", OM_JSON_STRING, true };
        if (deletes)
                m[at] = (struct om_json_member){ "delete_dead_letters", OM_JSON_BOOL };
        if (!n)
                r = om_error_set_errno(&e, ENOMEM, "the request");
        else if ((r = om_json_members(params, "params", m, &e)) == 0 && (r = om_param_topic(&m[TOPIC], &c->arena, &n->topic, &e)) == 0 &&
                has_name)
                r = om_param_name(&m[NAME_OR_DEAD], &c->arena, &n->name, &e);
        if (r < 0) {
                om_call_fail(c, &e);
                return NULL;
        }
        if (deletes)
                om_param_bool(&m[at], &n->flag);
        return n;
}

static void fail_not_found(struct om_call *c) {
        const struct named *n = c->data;
        struct om_error e;

        if (n->name.p)
                om_error_set(&e, OM_NOT_FOUND, "no agent \"%.*s\" on topic \"%.*s\"", OM_PRI(n->name), OM_PRI(n->topic));
        else
                om_error_set(&e, OM_NOT_FOUND, "no topic \"%.*s\"", OM_PRI(n->topic));
        om_call_fail(c, &e);
}

/* Asks for the agent's record, or its group's setting. */
static void get_record(struct om_call *c, om_call_done_fn *done) {
        const struct named *n = c->data;

        om_call_reset(c, OM_CALL_STORE_GET, done);
        c->get.kind = OM_STORE_AGENTS;
        c->get.key = n->topic;
        c->get.name = n->name;
        om_call_start(c);
}

static void get_setting(struct om_call *c, om_call_done_fn *done) {
        const struct named *n = c->data;

        om_call_reset(c, OM_CALL_STORE_GET, done);
        c->get.kind = OM_STORE_CONFIG;
        c->get.key = om_agents_setting(c, n->topic, n->name);
        om_call_start(c);
}

static void on_get_setting(struct om_call *c, int status, const struct om_error *e) {
        const struct named *n = c->data;
        bool paused = status == 0 && om_span_is(c->get.entry.value, "false");
        struct om_buf *b;

        b = om_call_begin(c, status == -ENOENT ? 0 : status, e);
        if (!b)
                return;
        put_agent(b, c->core, &n->row, paused);
        om_call_end(c);
}

static void on_get_record(struct om_call *c, int status, const struct om_error *e) {
        struct named *n = c->data;

        if (status == -ENOENT) {
                fail_not_found(c);
        } else if (status < 0) {
                om_call_fail(c, e);
        } else {
                n->row = (struct om_store_entry){ .key = n->topic, .name = n->name, .value = om_call_copy(c, c->get.entry.value) };
                get_setting(c, on_get_setting);
        }
}

static void agent_get(struct om_request *req, struct om_span params) {
        struct om_call *c = om_call_new(req->core, req, OM_CALL_NONE, NULL);

        if (c && read_named(c, params, true, false))
                get_record(c, on_get_record);
}

/* -- pause, resume ------------------------------------------------------------------------------------------------- */

static void on_pause_written(struct om_call *c, int status, const struct om_error *e) {
        const struct named *n = c->data;

        if (status < 0) {
                om_call_fail(c, e);
                return;
        }
        om_agents_set_paused(c->core->agents, n->topic, n->name, n->flag);
        om_call_ok(c);
}

static void on_pause_record(struct om_call *c, int status, const struct om_error *e) {
        const struct named *n = c->data;
        bool paused = n->flag;

        if (status == -ENOENT)
                fail_not_found(c);
        else if (status < 0)
                om_call_fail(c, e);
        else
                om_call_put_one(c, OM_STORE_CONFIG,
                        &(struct om_store_entry){
                                .key = om_agents_setting(c, n->topic, n->name), .value = om_span_of(paused ? "false" : "true") },
                        on_pause_written);
}

static void set_paused(struct om_request *req, struct om_span params, bool paused) {
        struct om_call *c = om_call_new(req->core, req, OM_CALL_NONE, NULL);
        struct named *n = c ? read_named(c, params, true, false) : NULL;

        if (!n)
                return;
        n->flag = paused;
        get_record(c, on_pause_record);
}

static void agent_pause(struct om_request *req, struct om_span params) { set_paused(req, params, true); }
static void agent_resume(struct om_request *req, struct om_span params) { set_paused(req, params, false); }

/* -- delete -------------------------------------------------------------------------------------------------------- */

static void on_records_deleted(struct om_call *c, int status, const struct om_error *e) {
        struct named *n = c->data;
        struct om_buf *b;

        om_agents_end_deletion(c->core->agents, &n->deletion);
        if (status < 0) {
                om_call_fail(c, e);
        } else if (!n->found) {
                fail_not_found(c);
        } else if (n->name.p) {
                om_call_ok(c);
        } else {
                b = om_request_begin(c->req);
                if (b)
                        om_buf_printf(b, "{\"tasks\":%llu,\"agents\":%zu}", (unsigned long long) n->n_tasks, c->n_rows);
                om_call_end(c);
        }
}

static void fail_deletion(struct om_call *c, const struct om_error *e) {
        struct named *n = c->data;

        om_agents_end_deletion(c->core->agents, &n->deletion);
        om_call_fail(c, e);
}

/* The settings one by one, then all records at once. */
static void delete_next(struct om_call *c, int status, const struct om_error *e) {
        struct named *n = c->data;

        if (status < 0 && status != -ENOENT) {
                fail_deletion(c, e);
                return;
        }
        if (n->at < c->n_rows) {
                const struct om_store_entry *row = &c->rows[n->at++];

                om_call_reset(c, OM_CALL_STORE_DELETE, delete_next);
                c->remove.kind = OM_STORE_CONFIG;
                c->remove.key = om_agents_setting(c, n->topic, row->name);
        } else {
                om_agents_forget(c->core->agents, n->topic, n->name);
                om_call_reset(c, OM_CALL_STORE_DELETE, on_records_deleted);
                c->remove.kind = OM_STORE_AGENTS;
                c->remove.key = n->topic;
                c->remove.name = n->name;
        }
        om_call_start(c);
}

static void on_bus_deleted(struct om_call *c, int status, const struct om_error *e) {
        struct named *n = c->data;

        if (status < 0 && status != -ENOENT) {
                fail_deletion(c, e);
                return;
        }
        n->found |= status == 0;
        n->n_tasks = status == 0 ? c->change.ret_n : 0;
        delete_next(c, 0, NULL);
}

static void on_workers_gone(struct om_post *post) {
        struct named *n = (void *) ((char *) post - offsetof(struct named, post));
        struct om_call *c = n->call;

        om_call_reset(c, OM_CALL_BUS_CHANGE, on_bus_deleted);
        c->change.type = n->name.p ? OM_CHANGE_DELETE_GROUP : OM_CHANGE_DELETE_TOPIC;
        c->change.topic = n->topic;
        c->change.agent = n->name;
        c->change.delete_dead_letters = n->flag;
        om_call_start(c);
}

/* The records are in c->rows, as far as there are any. */
static void on_records_found(struct om_call *c, int status, const struct om_error *e) {
        struct named *n = c->data;

        if (status < 0) {
                om_call_fail(c, e);
                return;
        }
        /* Of the topic's, those of that name. */
        if (n->name.p) {
                size_t kept = 0;

                for (size_t i = 0; i < c->n_rows; i++)
                        if (om_span_eq(c->rows[i].name, n->name))
                                c->rows[kept++] = c->rows[i];
                c->n_rows = kept;
        }
        n->found = c->n_rows > 0;
        n->post.fn = on_workers_gone;
        n->deletion = (struct om_agent_deletion){ .topic = n->topic, .agent = n->name };
        om_agents_begin_deletion(c->core->agents, &n->deletion);
        om_dispatch_end(c->core->dispatch, n->topic, n->name, n->name.p ? "the agent was deleted" : "the topic was deleted", &n->post);
}

static void start_delete(struct om_request *req, struct om_span params, bool has_name) {
        struct om_call *c = om_call_new(req->core, req, OM_CALL_NONE, NULL);
        struct named *n = c ? read_named(c, params, has_name, true) : NULL;

        if (!n)
                return;
        om_call_reset(c, OM_CALL_STORE_LIST, on_records_found);
        c->list.kind = OM_STORE_AGENTS;
        c->list.key = n->topic;
        om_call_collect(c);
}

static void agent_delete(struct om_request *req, struct om_span params) { start_delete(req, params, true); }
static void topic_delete(struct om_request *req, struct om_span params) { start_delete(req, params, false); }

/* -- seek ---------------------------------------------------------------------------------------------------------- */

static int read_seek(struct om_call *c, struct om_span params, struct om_error *e) {
        enum { TOPIC, NAME, START, N };
        struct om_json_member m[N + 1] = {
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [NAME] = { "name", OM_JSON_STRING, true },
                [START] = { "start", OM_JSON_NUMBER | OM_JSON_STRING, true },
        };
        struct om_bus_change *change = &c->change;
        int r;

        change->type = OM_CHANGE_SEEK;
        if ((r = om_json_members(params, "params", m, e)) < 0 || (r = om_param_topic(&m[TOPIC], &c->arena, &change->topic, e)) < 0 ||
                (r = om_param_name(&m[NAME], &c->arena, &change->agent, e)) < 0 ||
                (r = om_param_start(&m[START], &change->start, &change->start_ms, e)) < 0)
                return r;
        if (!(c->core->bus_ops->capabilities & OM_BUS_REPLAY))
                return om_error_set(e, OM_UNSUPPORTED, "the bus \"%s\" keeps nothing to start again from", c->core->bus_ops->name);
        return 0;
}

static void on_sought(struct om_call *c, int status, const struct om_error *e) {
        struct om_error none;
        struct om_buf *b;

        if (status == -ENOENT) {
                om_error_set(&none, OM_NOT_FOUND, "no agent \"%.*s\" on topic \"%.*s\"", OM_PRI(c->change.agent), OM_PRI(c->change.topic));
                e = &none;
        }
        if (!(b = om_call_begin(c, status, e)))
                return;
        om_buf_printf(b, "{\"tasks\":%" PRIu64 "}", c->change.ret_n);
        om_call_end(c);
}

static void agent_seek(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_BUS_CHANGE, read_seek, on_sought);
}

const struct om_method om_agent_methods[] = {
        { "agent.register", agent_register },
        { "agent.unregister", agent_unregister },
        { "agent.list", agent_list },
        { "agent.get", agent_get },
        { "agent.pause", agent_pause },
        { "agent.resume", agent_resume },
        { "agent.seek", agent_seek },
        { "agent.delete", agent_delete },
        { "topic.delete", topic_delete },
        { NULL, NULL },
};
