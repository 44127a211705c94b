/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection and the daemon itself: hello, ping, health, backends, metrics.get, daemon.reload, daemon.watch. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "dispatch.h"
#include "inventory.h"
#include "methods.h"
#include "metrics.h"
#include "watch.h"

enum { PROTOCOL = 1 };

/* -- hello, ping --------------------------------------------------------------------------------------------------- */

static void put_hello(struct om_buf *b, const struct om_core *core) {
        om_buf_lit(b, "{\"server\":\"omnidaemond\",\"version\":\"" OM_VERSION "\",\"protocol\":1,\"bus\":{\"name\":");
        om_buf_json_span(b, om_span_of(core->bus_ops->name));
        om_put_member(b, "url", om_span_of(core->bus_url));
        om_buf_lit(b, "},\"storage\":{\"name\":");
        om_buf_json_span(b, om_span_of(core->store_ops->name));
        om_put_member(b, "url", om_span_of(core->store_url));
        om_buf_lit(b, "},\"capabilities\":[");
        om_put_capabilities(b, om_core_bus_capabilities(core), core->store_ops->capabilities);
        om_buf_printf(b, "],\"limits\":{\"frame_bytes\":%lld,\"depth\":%d,\"batch\":%d,\"prefetch\":%d,\"in_flight\":%d}",
                (long long) core->settings->max_frame_bytes, OM_DEPTH_MAX, OM_BATCH_MAX, OM_PREFETCH_MAX, OM_IN_FLIGHT);
        om_buf_printf(b, ",\"pid\":%ld,\"runner_id\":\"%s\"}", (long) getpid(), core->runner_id);
}

static void hello(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "client", OM_JSON_STRING }, { "protocol", OM_JSON_NUMBER }, { NULL } };
        struct om_arena arena = { 0 };
        struct om_span client = OM_SPAN_NONE;
        struct om_error e = OM_ERROR_INIT;
        int64_t protocol = PROTOCOL;
        struct om_buf *b;
        int r;

        if ((r = om_json_members(params, "params", m, &e)) == 0 && (r = om_param_name(&m[0], &arena, &client, &e)) == 0 &&
                (r = om_param_int(&m[1], 0, INT32_MAX, &protocol, &e)) == 0 && protocol != PROTOCOL)
                r = om_error_set(&e, OM_UNSUPPORTED, "protocol %lld is not spoken here; this daemon speaks 1", (long long) protocol);
        if (r == 0 && client.p)
                r = om_session_set_name(req->session, client);
        om_arena_deinit(&arena);
        if (r < 0) {
                if (e.kind == OM_OK)
                        om_error_set_errno(&e, r, "hello");
                om_request_error(req, &e);
                return;
        }
        b = om_request_begin(req);
        if (b)
                put_hello(b, req->core);
        om_request_end(req);
}

/* Params of methods that have none. */
static bool no_params(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { NULL } };
        struct om_error e = OM_ERROR_INIT;

        if (om_json_members(params, "params", m, &e) == 0)
                return true;
        om_request_error(req, &e);
        return false;
}

static void ping(struct om_request *req, struct om_span params) {
        if (no_params(req, params))
                om_request_ok(req);
}

/* -- health -------------------------------------------------------------------------------------------------------- */

/* What both sides said; of a side that is away, why. In the arena of the bus's call. */
struct checkup {
        struct om_call *bus, *store;
        struct om_request *req;
        bool bus_up, store_up;
        struct om_error bus_error, store_error;
};

/* Resident pages: the second number of /proc/self/statm, proc_pid_statm(5). */
static uint64_t memory_bytes(void) {
        unsigned long long total, resident = 0;
        FILE *f = fopen("/proc/self/statm", "re");

        if (f && fscanf(f, "%llu %llu", &total, &resident) != 2)
                resident = 0;
        if (f)
                fclose(f);
        return resident * (uint64_t) sysconf(_SC_PAGESIZE);
}

static bool is_weak(struct om_span info) {
        struct om_json_value durability;

        return info.p && om_object_get(info, "durability", &durability) && durability.type == OM_JSON_STRING &&
                om_json_string_is(durability, "weak");
}

static void put_reason(struct om_buf *b, const char *text, struct om_span more) {
        struct om_buf line = OM_BUF_INIT;

        om_buf_puts(&line, text);
        om_buf_put_span(&line, more);
        if (b->len > 0)
                om_buf_putc(b, ',');
        om_buf_json_span(b, om_buf_span(&line));
        om_buf_deinit(&line);
}

static void put_weakness(struct om_buf *b, const char *what, struct om_span info) {
        struct om_json_value why;
        struct om_arena arena = { 0 };
        struct om_span text = OM_SPAN("what it acknowledged can be lost");

        if (om_object_get(info, "why", &why) && why.type == OM_JSON_STRING)
                text = om_json_string(why, &arena);
        put_reason(b, what, text);
        om_arena_deinit(&arena);
}

/* What the storage says of others beside it (storage_health.c): a sentence each. */
static bool put_away(struct om_buf *b, struct om_span info) {
        struct om_json_value away, v;
        struct om_arena arena = { 0 };
        struct om_json j;
        bool any = false;

        if (!om_object_get(info, "away", &away) || away.type != OM_JSON_ARRAY)
                return false;
        om_json_init_valid(&j, away.text);
        om_json_enter_array(&j);
        while (om_json_next_element(&j) > 0 && om_json_value(&j, &v) == 0 && v.type == OM_JSON_STRING) {
                put_reason(b, "", om_json_string(v, &arena));
                any = true;
        }
        om_arena_deinit(&arena);
        return any;
}

/* The status of PROTOCOL.md, "health", and the reasons for what is not as it should be. */
static const char *judge(const struct checkup *c, const struct om_core *core, struct om_buf *reasons) {
        bool weak = false;

        if (!c->bus_up)
                put_reason(reasons, "the event bus is away: ", om_span_of(c->bus_error.message));
        if (!c->store_up)
                put_reason(reasons, "the storage is away: ", om_span_of(c->store_error.message));
        if (c->bus_up && is_weak(c->bus->query.info)) {
                weak = true;
                put_weakness(reasons, "the event bus's durability is weak: ", c->bus->query.info);
        }
        if (c->store_up && is_weak(c->store->health.info)) {
                weak = true;
                put_weakness(reasons, "the storage's durability is weak: ", c->store->health.info);
        }
        if (c->store && c->store->health.info.p) /* no memory: no call */
                weak |= put_away(reasons, c->store->health.info);
        if (core->stopping)
                return "stopping";
        if (!c->bus_up)
                return "down";
        if (!c->store_up || weak)
                return "degraded";
        return om_dispatch_groups(core->dispatch) > 0 ? "ready" : "running";
}

static void put_side(struct om_buf *b, const char *name, const char *url, bool up, const struct om_error *e, struct om_span info) {
        om_buf_lit(b, "{\"name\":");
        om_buf_json_span(b, om_span_of(name));
        om_put_member(b, "url", om_span_of(url));
        om_buf_puts(b, up ? ",\"status\":\"up\"" : ",\"status\":\"down\"");
        if (up)
                om_put_facts(b, info);
        else
                om_put_member(b, "error", om_span_of(e->message));
        om_buf_putc(b, '}');
}

static void put_health(struct om_buf *b, const struct checkup *c, const struct om_core *core) {
        struct om_buf reasons = OM_BUF_INIT;
        const char *status = judge(c, core, &reasons);

        om_buf_printf(b, "{\"status\":\"%s\",\"reasons\":[", status);
        om_buf_put_span(b, om_buf_span(&reasons));
        om_buf_printf(
                b, "],\"version\":\"" OM_VERSION "\",\"pid\":%ld,\"runner_id\":\"%s\",\"uptime_s\":", (long) getpid(), core->runner_id);
        om_buf_json_double(b, (double) (om_now_ms() - core->started_ms) / 1000);
        om_buf_lit(b, ",\"bus\":");
        put_side(b, core->bus_ops->name, core->bus_url, c->bus_up, &c->bus_error, c->bus_up ? c->bus->query.info : OM_SPAN_NONE);
        om_buf_lit(b, ",\"storage\":");
        put_side(b, core->store_ops->name, core->store_url, c->store_up, &c->store_error,
                c->store_up ? c->store->health.info : OM_SPAN_NONE);
        om_buf_printf(b, ",\"agents\":%u,\"connections\":%u,\"memory_bytes\":%llu}", om_dispatch_groups(core->dispatch), core->n_sessions,
                (unsigned long long) memory_bytes());
        om_buf_deinit(&reasons);
}

static void checked(struct checkup *c) {
        struct om_call *bus = c->bus;
        struct om_buf *b = om_request_begin(c->req);

        if (b)
                put_health(b, c, bus->core);
        om_request_end(c->req);
        om_call_free(c->store);
        om_call_free(bus); /* and with it `c` */
}

static void on_store_checked(struct om_call *call, int status, const struct om_error *e) {
        struct checkup *c = call->data;

        c->store_up = status == 0;
        if (status < 0)
                c->store_error = *e;
        checked(c);
}

static void on_bus_checked(struct om_call *call, int status, const struct om_error *e) {
        struct checkup *c = call->data;

        c->bus_up = status == 0;
        if (status < 0)
                c->bus_error = *e;
        c->store = om_call_new(call->core, NULL, OM_CALL_STORE_HEALTH, on_store_checked);
        if (!c->store) {
                om_error_set_errno(&c->store_error, ENOMEM, "the check");
                checked(c);
                return;
        }
        c->store->data = c;
        c->store->serial = call->serial;
        om_call_start(c->store);
}

/* Asks the bus, then the storage; a side that is known to be away is asked too: it fails at once and says why. */
static void health(struct om_request *req, struct om_span params) {
        struct om_call *call;
        struct checkup *c;
        struct om_error e;

        if (!no_params(req, params))
                return;
        call = om_call_new(req->core, req, OM_CALL_BUS_QUERY, on_bus_checked);
        if (!call)
                return;
        c = om_arena_alloc(&call->arena, sizeof *c);
        if (!c) {
                om_error_set_errno(&e, ENOMEM, "health");
                om_call_fail(call, &e);
                return;
        }
        memset(c, 0, sizeof *c);
        c->bus = call;
        c->req = req;
        call->req = NULL; /* answered from `c`, whatever becomes of the call */
        call->data = c;
        call->query.type = OM_QUERY_HEALTH;
        om_call_start(call);
}

static void backends(struct om_request *req, struct om_span params) {
        if (no_params(req, params))
                om_inventory_answer(req->core->inventory, req);
}

/* -- metrics.get, daemon.reload, daemon.watch ---------------------------------------------------------------------- */

static void metrics_get(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "topic", OM_JSON_STRING }, { NULL } };
        struct om_arena arena = { 0 };
        struct om_span topic = OM_SPAN_NONE;
        struct om_error e = OM_ERROR_INIT;
        struct om_buf *b;

        if (om_json_members(params, "params", m, &e) < 0 || om_param_topic(&m[0], &arena, &topic, &e) < 0) {
                om_request_error(req, &e);
        } else {
                b = om_request_begin(req);
                if (b)
                        om_metrics_write(req->core->metrics, topic, b);
                om_request_end(req);
        }
        om_arena_deinit(&arena);
}

static void put_names(struct om_buf *b, const char *const *names) {
        for (const char *const *name = names; name && *name; name++) {
                if (name != names)
                        om_buf_putc(b, ',');
                om_buf_json_span(b, om_span_of(*name));
        }
}

static void daemon_reload(struct om_request *req, struct om_span params) {
        const char **changed = NULL, **restart = NULL;
        struct om_error e = OM_ERROR_INIT;
        struct om_buf *b;
        int r;

        if (!no_params(req, params))
                return;
        if (req->core->reload)
                r = req->core->reload(req->core, &changed, &restart, &e);
        else
                r = om_error_set(&e, OM_UNSUPPORTED, "this daemon has no settings to read again");
        if (r < 0) {
                om_error_prefix(&e, "the settings in force stay");
                om_request_error(req, &e);
        } else {
                b = om_request_begin(req);
                if (b) {
                        om_buf_lit(b, "{\"changed\":[");
                        put_names(b, changed);
                        om_buf_lit(b, "],\"restart_needed\":[");
                        put_names(b, restart);
                        om_buf_lit(b, "]}");
                }
                om_request_end(req);
        }
        free(changed);
        free(restart);
}

static int read_events(struct om_json_value array, unsigned *ret_mask, struct om_error *e) {
        struct om_json_value value;
        struct om_json j;
        unsigned i;

        om_json_init_valid(&j, array.text);
        om_json_enter_array(&j);
        *ret_mask = 0;
        while (om_json_next_element(&j) == 1) {
                if (om_json_value(&j, &value) < 0 || value.type != OM_JSON_STRING)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "events: must be strings");
                for (i = 0; om_event_names[i] && !om_json_string_is(value, om_event_names[i]);)
                        i++;
                if (!om_event_names[i])
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID,
                                "events: %.*s is none; there are publish, deliver, ack, fail, dead_letter, expired, connect, disconnect, "
                                "register",
                                value.text.len > 100 ? 100 : (int) value.text.len, value.text.p);
                *ret_mask |= 1u << i;
        }
        if (*ret_mask == 0)
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "events: empty; leave it out to see all");
        return 0;
}

static void daemon_watch(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "events", OM_JSON_ARRAY }, { "topic", OM_JSON_STRING }, { NULL } };
        struct om_arena arena = { 0 };
        struct om_span topic = OM_SPAN_NONE;
        struct om_error e = OM_ERROR_INIT;
        unsigned mask = (OM_EVENT_REGISTER << 1) - 1;
        int r;

        if ((r = om_json_members(params, "params", m, &e)) == 0 && (r = om_param_topic(&m[1], &arena, &topic, &e)) == 0 &&
                m[0].value.type != 0)
                r = read_events(m[0].value, &mask, &e);
        if (r < 0)
                om_request_error(req, &e);
        else
                om_watch_start(req->core->watch, req, mask, topic);
        om_arena_deinit(&arena);
}

const struct om_method om_health_methods[] = {
        { "hello", hello },
        { "ping", ping },
        { "health", health },
        { "backends", backends },
        { "metrics.get", metrics_get },
        { "daemon.reload", daemon_reload },
        { "daemon.watch", daemon_watch },
        { NULL, NULL },
};
