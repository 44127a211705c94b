/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage.migrate, switch, abort, verify, status; storage.export and import. The first four only start or steer what storage_routes.h does,
 * and answer with the status; who wants to see it go on asks storage.status with what it has seen, and is answered when that has changed.
 *
 * An export is read page by page by the client, so that neither side holds more than a page. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "methods.h"
#include "storage_internal.h"

enum { WAIT_MAX_MS = 60000, PAGE = 200 };

/* -- status -------------------------------------------------------------------------------------------------------- */

static void answer_status(struct om_request *req) {
        struct om_buf *b = om_request_begin(req);

        if (b)
                om_routes_status(req->core->store, b);
        om_request_end(req);
}

struct status_wait {
        struct om_routes_wait wait; /* first */
        struct om_request *req;
        struct event *timer;
        struct om_core *core;
};

static void status_answer(struct status_wait *w) {
        event_free(w->timer);
        answer_status(w->req);
        free(w);
}

static void on_changed(struct om_routes_wait *wait) { status_answer((struct status_wait *) wait); }

static void on_status_timer(evutil_socket_t fd, short what, void *ctx) {
        struct status_wait *w = ctx;

        om_routes_wait_stop(w->core->store, &w->wait);
        status_answer(w);
}

static void wait_for_change(struct om_request *req, int64_t seen, int64_t wait_ms) {
        struct timeval tv = { .tv_sec = wait_ms / 1000, .tv_usec = wait_ms % 1000 * 1000 };
        struct status_wait *w = calloc(1, sizeof *w);
        struct om_error e;

        if (w)
                w->timer = event_new(om_loop_base(req->core->loop), -1, 0, on_status_timer, w);
        if (!w || !w->timer || event_add(w->timer, &tv) < 0) {
                if (w && w->timer)
                        event_free(w->timer);
                free(w);
                om_error_set_errno(&e, ENOMEM, "storage.status");
                om_request_error(req, &e);
                return;
        }
        w->core = req->core;
        w->req = req;
        w->wait.fn = on_changed;
        w->wait.seen = (uint64_t) seen;
        om_request_takes(req, sizeof *w);
        om_routes_wait(req->core->store, &w->wait);
}

static bool is_open(struct om_request *req) {
        struct om_error e;

        if (req->core->store && !req->core->stopping)
                return true;
        om_error_set(&e, OM_UNAVAILABLE, "the storage is closed: the daemon is stopping");
        om_request_error(req, &e);
        return false;
}

static void storage_status(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "seen", OM_JSON_NUMBER }, { "wait_ms", OM_JSON_NUMBER }, { NULL } };
        struct om_error e = OM_ERROR_INIT;
        int64_t seen = 0, wait_ms = 0;

        if (om_json_members(params, "params", m, &e) < 0 || om_param_int(&m[0], 0, INT64_MAX, &seen, &e) < 0 ||
                om_param_int(&m[1], 0, WAIT_MAX_MS, &wait_ms, &e) < 0)
                om_request_error(req, &e);
        else if (!is_open(req))
                return;
        else if (wait_ms > 0 && (uint64_t) seen == om_routes_revision(req->core->store))
                wait_for_change(req, seen, wait_ms);
        else
                answer_status(req);
}

/* -- steering ------------------------------------------------------------------------------------------------------ */

static void storage_migrate(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "to", OM_JSON_STRING }, { "replace", OM_JSON_BOOL }, { NULL } };
        struct om_error e = OM_ERROR_INIT;
        struct om_arena arena = { 0 };
        struct om_span to = OM_SPAN_NONE;
        bool replace = false;
        int r;

        if (!is_open(req))
                return;
        r = om_json_members(params, "params", m, &e);
        if (r == 0)
                r = om_param_text(&m[0], OM_URL_MAX, &arena, &to, &e);
        om_param_bool(&m[1], &replace);
        if (r == 0)
                r = om_routes_migrate(req->core->store, to, replace, &e);
        if (to.p)
                explicit_bzero((char *) (uintptr_t) to.p, to.len);
        om_arena_deinit(&arena);
        if (r < 0)
                om_request_error(req, &e);
        else
                answer_status(req);
}

static void steer(struct om_request *req, struct om_span params, int (*step)(struct om_store *s, struct om_error *e)) {
        struct om_json_member m[] = { { NULL } };
        struct om_error e = OM_ERROR_INIT;

        if (!is_open(req))
                return;
        if (om_json_members(params, "params", m, &e) < 0 || step(req->core->store, &e) < 0)
                om_request_error(req, &e);
        else
                answer_status(req);
}

static void storage_switch(struct om_request *req, struct om_span params) { steer(req, params, om_routes_switch); }
static void storage_abort(struct om_request *req, struct om_span params) { steer(req, params, om_routes_abort); }

static void storage_verify(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "repair", OM_JSON_BOOL }, { NULL } };
        struct om_error e = OM_ERROR_INIT;
        bool repair = false;
        int r;

        if (!is_open(req))
                return;
        r = om_json_members(params, "params", m, &e);
        om_param_bool(&m[0], &repair);
        if (r < 0 || om_routes_verify(req->core->store, repair, &e) < 0)
                om_request_error(req, &e);
        else
                answer_status(req);
}

/* -- export -------------------------------------------------------------------------------------------------------- */

static int read_kind(struct om_json_value v, enum om_store_kind *ret, struct om_error *e) {
        for (int i = 0; om_store_kind_names[i]; i++)
                if (om_json_string_is(v, om_store_kind_names[i])) {
                        *ret = (enum om_store_kind) i;
                        return 0;
                }
        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "kind: must be agents, results, metrics, config or keys");
}

static void put_text(struct om_buf *b, const char *name, struct om_span text) {
        if (text.p)
                om_put_member(b, name, text);
}

static void put_entry(struct om_buf *b, const struct om_store_entry *entry) {
        om_buf_printf(b, "{\"saved_ms\":%lld", (long long) entry->saved_ms);
        put_text(b, "key", entry->key);
        put_text(b, "name", entry->name);
        put_text(b, "topic", entry->topic);
        put_text(b, "status", entry->status);
        if (entry->expires_ms)
                om_buf_printf(b, ",\"expires_ms\":%lld", (long long) entry->expires_ms);
        om_buf_lit(b, ",\"value\":");
        om_buf_put_span(b, entry->value);
        om_buf_putc(b, '}');
}

static void on_exported(struct om_call *c, int status, const struct om_error *e);

/* A page that no frame holds is asked for again, half as long. */
static bool too_long(struct om_call *c) {
        struct om_store_list again = { .kind = c->list.kind, .cursor = c->list.cursor, .limit = c->list.n / 2, .stale_ok = true };
        size_t bytes = 0;

        for (size_t i = 0; i < c->list.n; i++)
                bytes += c->list.entries[i].value.len + 6 * (c->list.entries[i].key.len + c->list.entries[i].name.len) + 200;
        if (c->list.n <= 1 || bytes < (size_t) c->core->settings->max_frame_bytes - 4096)
                return false;
        om_call_reset(c, OM_CALL_STORE_LIST, on_exported);
        c->list = again;
        om_call_start(c);
        return true;
}

static void on_exported(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b;

        if (status == 0 && too_long(c))
                return;
        b = om_call_begin(c, status, e);
        if (!b)
                return;
        om_buf_lit(b, "{\"entries\":[");
        for (size_t i = 0; i < c->list.n; i++) {
                if (i)
                        om_buf_putc(b, ',');
                put_entry(b, &c->list.entries[i]);
        }
        om_buf_putc(b, ']');
        if (c->list.next_cursor.p)
                om_put_member(b, "cursor", c->list.next_cursor);
        om_buf_putc(b, '}');
        om_call_end(c);
}

static int read_export(struct om_call *c, struct om_span params, struct om_error *e) {
        struct om_json_member m[] = { { "kind", OM_JSON_STRING, true }, { "cursor", OM_JSON_STRING }, { "limit", OM_JSON_NUMBER },
                { NULL } };
        int r = om_json_members(params, "params", m, e);

        c->list.limit = PAGE;
        c->list.stale_ok = true;
        if (r == 0)
                r = read_kind(m[0].value, &c->list.kind, e);
        if (r == 0)
                r = om_param_text(&m[1], 8192, &c->arena, &c->list.cursor, e);
        if (r == 0 && m[2].value.type)
                r = om_param_limit(&m[2], &c->list.limit, e);
        return r;
}

static void storage_export(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_STORE_LIST, read_export, on_exported);
}

/* -- import -------------------------------------------------------------------------------------------------------- */

struct import {
        enum om_store_kind kind;
        struct om_store_entry *entries;
        struct om_outcome *outcomes;
        size_t n, n_all;
};

static void answer_import(struct om_call *c, size_t stored) {
        const struct import *import = c->data;
        struct om_buf *b = om_request_begin(c->req);

        if (b)
                om_buf_printf(b, "{\"stored\":%zu,\"there\":%zu}", stored, import->n_all - import->n);
        om_call_end(c);
}

static void on_imported(struct om_call *c, int status, const struct om_error *e) {
        const struct import *import = c->data;
        struct om_error mine;

        for (size_t i = 0; status == 0 && i < import->n; i++) {
                const struct om_outcome *outcome = &import->outcomes[i];

                if (outcome->status == 0)
                        continue;
                status = outcome->status;
                om_error_set(&mine, om_kind_of_errno(status), "the storage refused an entry of %s, \"%.*s\": %s",
                        om_store_kind_names[import->kind], import->entries[i].key.len > 100 ? 100 : (int) import->entries[i].key.len,
                        import->entries[i].key.p ? import->entries[i].key.p : "", outcome->why ? outcome->why : strerror(-status));
                e = &mine;
        }
        if (status < 0)
                om_call_fail(c, e);
        else
                answer_import(c, import->n);
}

static void put_import(struct om_call *c) {
        struct import *import = c->data;

        if (import->n == 0) {
                answer_import(c, 0);
                return;
        }
        om_call_reset(c, OM_CALL_STORE_PUT, on_imported);
        c->put.kind = import->kind;
        c->put.entries = import->entries;
        c->put.n = import->n;
        c->put.outcomes = import->outcomes;
        om_call_start(c);
}

/* Metrics have no key: those that are there are not appended once more. */
static void on_there(struct om_call *c, int status, const struct om_error *e) {
        struct import *import = c->data;
        size_t n = 0;

        if (status < 0) {
                om_call_fail(c, e);
                return;
        }
        for (size_t i = 0; i < import->n; i++) {
                bool there = false;

                for (size_t k = 0; k < c->n_rows && !there; k++)
                        there = llabs((long long) (c->rows[k].saved_ms - import->entries[i].saved_ms)) <= 2 &&
                                same_value(c->rows[k].value, import->entries[i].value);
                if (!there)
                        import->entries[n++] = import->entries[i];
        }
        import->n = n;
        put_import(c);
}

static void look_for_metrics(struct om_call *c) {
        const struct import *import = c->data;
        int64_t since = INT64_MAX, until = 0;

        for (size_t i = 0; i < import->n; i++) {
                since = import->entries[i].saved_ms < since ? import->entries[i].saved_ms : since;
                until = import->entries[i].saved_ms > until ? import->entries[i].saved_ms : until;
        }
        om_call_reset(c, OM_CALL_STORE_LIST, on_there);
        c->list.kind = OM_STORE_METRICS;
        c->list.since_ms = since > 2 ? since - 2 : 0;
        c->list.until_ms = until + 3;
        om_call_collect(c);
}

static int read_entry(struct om_call *c, struct om_json *j, struct om_store_entry *entry, enum om_store_kind kind, struct om_error *e) {
        struct om_json_member m[] = { { "key", OM_JSON_STRING }, { "name", OM_JSON_STRING }, { "topic", OM_JSON_STRING },
                { "status", OM_JSON_STRING }, { "saved_ms", OM_JSON_NUMBER, true }, { "expires_ms", OM_JSON_NUMBER },
                { "value", OM_JSON_ANY, true }, { NULL } };
        int r = om_json_members_at(j, "entries", m, e);

        *entry = (struct om_store_entry){ .saved_ms = 0 };
        for (int i = 0; r == 0 && i < 4; i++)
                r = om_param_text(&m[i], OM_STORE_KEY_MAX, &c->arena,
                        i == 0           ? &entry->key
                                : i == 1 ? &entry->name
                                : i == 2 ? &entry->topic
                                         : &entry->status,
                        e);
        if (r == 0)
                r = om_param_int(&m[4], INT64_MIN, INT64_MAX, &entry->saved_ms, e);
        if (r == 0)
                r = om_param_int(&m[5], 0, INT64_MAX, &entry->expires_ms, e);
        if (r == 0 && kind != OM_STORE_METRICS && !entry->key.len)
                r = om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "entries: one without key");
        entry->value = om_call_copy(c, m[6].value.text);
        return r;
}

static int read_entries(struct om_call *c, struct om_span array, struct import *import, struct om_error *e) {
        struct om_json j;
        int r = 0;

        import->entries = om_arena_alloc(&c->arena, OM_BATCH_MAX * sizeof *import->entries);
        import->outcomes = om_arena_alloc(&c->arena, OM_BATCH_MAX * sizeof *import->outcomes);
        if (!import->entries || !import->outcomes)
                return om_error_set_errno(e, ENOMEM, "storage.import");
        memset(import->outcomes, 0, OM_BATCH_MAX * sizeof *import->outcomes);
        om_json_init_valid(&j, array);
        om_json_enter_array(&j);
        while (r == 0 && om_json_next_element(&j) > 0) {
                if (import->n == OM_BATCH_MAX)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "entries: more than %d", OM_BATCH_MAX);
                if (om_json_peek(&j) != OM_JSON_OBJECT)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "entries: must be objects");
                r = read_entry(c, &j, &import->entries[import->n], import->kind, e);
                import->n++;
        }
        import->n_all = import->n;
        return r;
}

static void storage_import(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "kind", OM_JSON_STRING, true }, { "entries", OM_JSON_ARRAY, true }, { NULL } };
        struct om_call *c = om_call_new(req->core, req, OM_CALL_NONE, NULL);
        struct import *import = c ? om_arena_alloc(&c->arena, sizeof *import) : NULL;
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (!c)
                return;
        r = import ? om_json_members(params, "params", m, &e) : om_error_set_errno(&e, ENOMEM, "storage.import");
        if (import)
                *import = (struct import){ .n = 0 };
        if (r == 0)
                r = read_kind(m[0].value, &import->kind, &e);
        if (r == 0)
                r = read_entries(c, m[1].value.text, import, &e);
        if (r < 0) {
                om_call_fail(c, &e);
                return;
        }
        c->data = import;
        if (import->kind == OM_STORE_METRICS && import->n)
                look_for_metrics(c);
        else
                put_import(c);
}

const struct om_method om_migrate_methods[] = {
        { "storage.migrate", storage_migrate },
        { "storage.switch", storage_switch },
        { "storage.abort", storage_abort },
        { "storage.verify", storage_verify },
        { "storage.status", storage_status },
        { "storage.export", storage_export },
        { "storage.import", storage_import },
        { NULL, NULL },
};
