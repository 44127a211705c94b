/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core: makes the parts, opens bus and storage, keeps their states, and takes everything down again in order.
 *
 * Stopping is a chain; each step begins when the one before it has completed:
 *
 *   clients are told ─▶ dispatch stops (leases end or are handed back) ─▶ metrics' last snapshot ─▶ calls under way end ─▶ bus closed
 *   ─▶ storage closed ─▶ requests still open are answered, sessions send what they have and close ─▶ stopped
 *
 * What is always true:
 *   - a backend is closed only when no operation of ours is under way in it, and destroyed a turn after its close completed;
 *   - a step that a server holds up is cancelled after call_timeout_ms, so that a stop ends;
 *   - a state that did not change is not logged.
 *
 * Called by main.c. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "../backends/registry.h"
#include "agents.h"
#include "call.h"
#include "dispatch.h"
#include "inventory.h"
#include "log.h"
#include "metrics.h"
#include "results.h"
#include "storage_routes.h"
#include "watch.h"

/* What the core keeps while it opens and while it stops. */
struct om_core_private {
        struct om_core core; /* first: a core is one of these */
        struct om_url *bus_address;
        struct om_post *ready;
        struct om_bus_events bus_events;
        /* stopping */
        struct om_post step, *stopped;
        struct om_op closing;
        struct event deadline;
};

static struct om_core_private *private_of(struct om_core *core) { return (struct om_core_private *) core; }

/* -- states -------------------------------------------------------------------------------------------------------- */

static const char *const state_words[] = { "connecting", "ready", "failed" }; /* of enum om_bus_state and om_store_state alike */

static void log_state(const char *what, const char *name, int before, int now, const struct om_error *e) {
        if (before == now)
                return;
        if (e && e->message[0])
                om_log(now == OM_BUS_READY ? OM_LOG_NOTICE : OM_LOG_WARNING, "%s %s: %s: %s", what, name, state_words[now], e->message);
        else
                om_log(now == OM_BUS_FAILED ? OM_LOG_WARNING : OM_LOG_NOTICE, "%s %s: %s", what, name, state_words[now]);
}

static void tell_when_ready(struct om_core *core) {
        struct om_core_private *p = private_of(core);
        struct om_post *ready = p->ready;

        if (!ready || core->bus_state != OM_BUS_READY || core->store_state != OM_STORE_READY)
                return;
        p->ready = NULL;
        om_host_post(core->host, ready);
}

static void on_bus_state(void *ctx, enum om_bus_state state, const struct om_error *e) {
        struct om_core *core = ctx;

        log_state("event bus", core->bus_ops->name, (int) core->bus_state, (int) state, e);
        core->bus_state = state;
        core->bus_error = e && state != OM_BUS_READY ? *e : (struct om_error) OM_ERROR_INIT;
        if (core->dispatch)
                om_dispatch_bus_state(core->dispatch, state);
        tell_when_ready(core);
        om_calls_kick(core);
}

/* A switch of storages changes it. */
static int note_store_url(struct om_core *core) {
        const char *now = om_routes_url(core->store);
        char *copy;

        if (core->store_url && strcmp(core->store_url, now) == 0)
                return 0;
        copy = strdup(now);
        if (!copy)
                return core->store_url ? 0 : -ENOMEM;
        free(core->store_url);
        core->store_url = copy;
        return 0;
}

static void on_store_state(void *ctx, enum om_store_state state, const struct om_error *e) {
        struct om_core *core = ctx;

        note_store_url(core);
        log_state("storage", core->store_ops->name, (int) core->store_state, (int) state, e);
        core->store_state = state;
        core->store_error = e && state != OM_STORE_READY ? *e : (struct om_error) OM_ERROR_INIT;
        if (core->agents)
                om_agents_store_state(core->agents, state);
        tell_when_ready(core);
        om_calls_kick(core);
}

static const struct om_store_events store_events = { .state = on_store_state };

/* -- opening ------------------------------------------------------------------------------------------------------- */

static int find_bus(struct om_core *core, struct om_error *e) {
        struct om_core_private *p = private_of(core);
        int r;

        r = om_url_parse(core->settings->event_bus_url, &p->bus_address, e);
        if (r < 0) {
                om_error_prefix(e, "EVENT_BUS_URL");
                return r;
        }
        r = om_registry_bus(p->bus_address, "EVENT_BUS_URL", &core->bus_ops, e);
        if (r < 0)
                return r;
        core->bus_url = strdup(p->bus_address->redacted);
        return core->bus_url ? 0 : om_error_set_errno(e, ENOMEM, "the core");
}

/* The storage first: it is what the bus's events may lead to. */
static int open_backends(struct om_core *core, struct om_error *e) {
        struct om_core_private *p = private_of(core);
        int r;

        r = om_routes_open(core->host, core->settings, &store_events, core, &core->store_ops, &core->store, e);
        if (r == 0)
                r = note_store_url(core);
        if (r == -ENOMEM && e->kind == OM_OK)
                om_error_set_errno(e, ENOMEM, "the storage's URL");
        if (r < 0)
                return r;
        p->bus_events = om_dispatch_events;
        p->bus_events.state = on_bus_state;
        r = core->bus_ops->open(core->host, p->bus_address, &p->bus_events, core, &core->bus, e);
        if (r < 0)
                om_error_prefix(e, "EVENT_BUS_URL %s", core->bus_url);
        return r;
}

static int make_parts(struct om_core *core) {
        int r;

        if ((r = om_calls_new(core, &core->calls)) < 0 || (r = om_metrics_new(core, &core->metrics)) < 0 ||
                (r = om_session_pool_new(core, &core->pool)) < 0 || (r = om_watch_new(core, &core->watch)) < 0 ||
                (r = om_results_new(core, &core->results)) < 0 || (r = om_agents_new(core, &core->agents)) < 0 ||
                (r = om_inventory_new(core, &core->inventory)) < 0)
                return r;
        return om_dispatch_new(core, &core->dispatch);
}

int om_core_new(struct om_loop *loop, struct om_settings *settings, struct om_post *ready, struct om_core **ret, struct om_error *e) {
        struct om_core_private *p = calloc(1, sizeof *p);
        struct om_core *core;
        int r;

        if (!p)
                return om_error_set_errno(e, ENOMEM, "the core");
        core = &p->core;
        core->loop = loop;
        core->host = om_loop_host(loop);
        core->settings = settings;
        core->started_ms = om_now_ms();
        om_task_id_new(core->runner_id);
        p->ready = ready;
        r = find_bus(core, e);
        if (r < 0)
                goto failed;
        r = make_parts(core);
        if (r < 0) {
                om_error_set_errno(e, r, "the core");
                goto failed;
        }
        r = open_backends(core, e);
        if (r < 0)
                goto failed;
        *ret = core;
        return 0;
failed:
        om_core_free(core);
        return r;
}

/* -- closing a backend --------------------------------------------------------------------------------------------- */

static void bus_destroy(struct om_core *core) {
        if (core->bus)
                core->bus_ops->destroy(core->bus);
        core->bus = NULL;
}

static void store_destroy(struct om_core *core) {
        if (core->store)
                core->store_ops->destroy(core->store);
        core->store = NULL;
}

/* -- stopping ------------------------------------------------------------------------------------------------------ */

static void next_step(struct om_core_private *p, void (*fn)(struct om_post *post)) { p->step.fn = fn; }

static struct om_core_private *of_step(struct om_post *post) { return (void *) ((char *) post - offsetof(struct om_core_private, step)); }
static struct om_core_private *of_closing(struct om_op *op) { return (void *) ((char *) op - offsetof(struct om_core_private, closing)); }

static void on_close_deadline(evutil_socket_t fd, short what, void *ctx) {
        struct om_core_private *p = ctx;

        om_log(OM_LOG_WARNING, "closing takes longer than %lld ms; cancelled", (long long) p->core.settings->call_timeout_ms);
        om_op_cancel(&p->closing);
}

static void set_close_deadline(struct om_core_private *p) {
        int64_t ms = p->core.settings->call_timeout_ms;
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        event_assign(&p->deadline, om_loop_base(p->core.loop), -1, 0, on_close_deadline, p);
        event_add(&p->deadline, &tv);
}

/* A backend has closed, or refused to: on to the step that is set, a turn later. */
static void on_closed(struct om_op *op, int status, const struct om_error *e) {
        struct om_core_private *p = of_closing(op);

        event_del(&p->deadline);
        if (status < 0 && e)
                om_log_error(OM_LOG_WARNING, e, "closing");
        om_host_post(p->core.host, &p->step);
}

static void sessions_drained(struct om_post *post) {
        struct om_core_private *p = of_step(post);

        om_host_post(p->core.host, p->stopped);
}

static void store_closed(struct om_post *post) {
        struct om_core_private *p = of_step(post);
        struct om_core *core = &p->core;

        store_destroy(core);
        next_step(p, sessions_drained);
        om_session_pool_drain(core->pool, &p->step);
}

static void bus_closed(struct om_post *post) {
        struct om_core_private *p = of_step(post);
        struct om_core *core = &p->core;
        struct om_error e = OM_ERROR_INIT;
        int r = -ENOENT;

        bus_destroy(core);
        next_step(p, store_closed);
        p->closing = (struct om_op){ .done = on_closed };
        set_close_deadline(p);
        if (core->store)
                r = core->store_ops->close(core->store, &p->closing, &e);
        if (r < 0)
                on_closed(&p->closing, r, core->store ? &e : NULL);
}

static void calls_ended(struct om_post *post) {
        struct om_core_private *p = of_step(post);
        struct om_core *core = &p->core;
        struct om_error e = OM_ERROR_INIT;
        int r = -ENOENT;

        next_step(p, bus_closed);
        p->closing = (struct om_op){ .done = on_closed };
        set_close_deadline(p);
        if (core->bus)
                r = core->bus_ops->close(core->bus, &p->closing, &e);
        if (r < 0)
                on_closed(&p->closing, r, core->bus ? &e : NULL);
}

static void metrics_flushed(struct om_post *post) {
        struct om_core_private *p = of_step(post);

        om_agents_stop(p->core.agents);
        next_step(p, calls_ended);
        om_calls_stop(p->core.calls, &p->step);
}

/* From here on nothing new comes from clients: their requests would find half of the daemon gone. */
static void dispatch_stopped(struct om_post *post) {
        struct om_core_private *p = of_step(post);

        om_session_pool_quiet(p->core.pool);
        next_step(p, metrics_flushed);
        om_metrics_flush(p->core.metrics, &p->step);
}

void om_core_stop(struct om_core *core, struct om_post *stopped) {
        struct om_core_private *p = private_of(core);
        struct om_buf params = OM_BUF_INIT;

        core->stopping = true;
        p->ready = NULL;
        p->stopped = stopped;
        om_buf_printf(&params, "{\"grace_ms\":%lld}", (long long) core->settings->stop_grace_ms);
        if (om_buf_ok(&params))
                om_session_pool_tell(core->pool, "daemon.stopping", om_buf_span(&params));
        om_buf_deinit(&params);
        next_step(p, dispatch_stopped);
        om_dispatch_stop(core->dispatch, core->settings->stop_grace_ms, &p->step);
}

/* -- without a stop: a start that failed half-way, a test that ends ------------------------------------------------ */

struct close_now {
        struct om_op op;
        bool over;
};

static void on_closed_now(struct om_op *op, int status, const struct om_error *e) { ((struct close_now *) op)->over = true; }

static void wait_until_closed(struct om_core *core, struct close_now *c, int r) {
        while (r == 0 && !c->over && om_loop_run_once(core->loop, true) == 0)
                ;
        om_loop_run_once(core->loop, false);
}

static void close_backends_now(struct om_core *core) {
        struct close_now bus = { .op = { .done = on_closed_now } }, store = bus;

        if (core->bus)
                wait_until_closed(core, &bus, core->bus_ops->close(core->bus, &bus.op, NULL));
        bus_destroy(core);
        if (core->store)
                wait_until_closed(core, &store, core->store_ops->close(core->store, &store.op, NULL));
        store_destroy(core);
}

void om_core_free(struct om_core *core) {
        struct om_core_private *p = private_of(core);

        if (!core)
                return;
        close_backends_now(core);
        /* Whoever holds requests goes before the pool, which takes them back. */
        om_dispatch_free(core->dispatch);
        core->dispatch = NULL;
        om_results_free(core->results);
        core->results = NULL;
        om_agents_free(core->agents);
        core->agents = NULL;
        om_inventory_free(core->inventory);
        core->inventory = NULL;
        om_watch_free(core->watch);
        core->watch = NULL;
        om_session_pool_free(core->pool);
        om_metrics_free(core->metrics);
        om_calls_free(core->calls);
        om_url_free(p->bus_address);
        free(core->bus_url);
        free(core->store_url);
        free(p);
}
