/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.*: settings of users, kept in the storage. Keys that start with "_" are the daemon's own (which groups are paused …): they can be
 * read, and are changed by the methods that they belong to. Loop thread.
 */
#include <errno.h>

#include "methods.h"

static int check_own(struct om_span key, struct om_error *e) {
        if (key.p[0] != '_')
                return 0;
        return om_error_set(e, OM_DENIED,
                "key \"%.*s\": keys that start with \"_\" are the daemon's own; agent.pause and the like change them",
                key.len > 100 ? 100 : (int) key.len, key.p);
}

/* -- get ----------------------------------------------------------------------------------------------------------- */

static void on_got(struct om_call *c, int status, const struct om_error *e) {
        struct om_error none;
        struct om_buf *b;

        if (status == -ENOENT) {
                om_error_set(&none, OM_NOT_FOUND, "no setting \"%.*s\"", c->get.key.len > 200 ? 200 : (int) c->get.key.len, c->get.key.p);
                e = &none;
        }
        b = om_call_begin(c, status, e);
        if (!b)
                return;
        om_buf_lit(b, "{\"key\":");
        om_buf_json_span(b, c->get.key);
        om_buf_lit(b, ",\"value\":");
        om_buf_put_span(b, c->get.entry.value);
        om_buf_putc(b, '}');
        om_call_end(c);
}

static int read_key(struct om_span params, struct om_arena *arena, struct om_span *ret, struct om_error *e) {
        struct om_json_member m[] = { { "key", OM_JSON_STRING, true }, { NULL } };
        int r = om_json_members(params, "params", m, e);

        return r < 0 ? r : om_param_key(&m[0], arena, ret, e);
}

static int read_get(struct om_call *c, struct om_span params, struct om_error *e) {
        c->get.kind = OM_STORE_CONFIG;
        return read_key(params, &c->arena, &c->get.key, e);
}

static void config_get(struct om_request *req, struct om_span params) { om_call_for(req, params, OM_CALL_STORE_GET, read_get, on_got); }

/* -- set, delete --------------------------------------------------------------------------------------------------- */

static void on_set(struct om_call *c, int status, const struct om_error *e) {
        if (status < 0)
                om_call_fail(c, e);
        else
                om_call_ok(c);
}

static void config_set(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "key", OM_JSON_STRING, true }, { "value", OM_JSON_ANY, true }, { NULL } };
        struct om_call *c = om_call_new(req->core, req, OM_CALL_NONE, NULL);
        struct om_store_entry entry = { .saved_ms = 0 };
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (!c)
                return;
        if ((r = om_json_members(params, "params", m, &e)) == 0 && (r = om_param_key(&m[0], &c->arena, &entry.key, &e)) == 0 &&
                (r = check_own(entry.key, &e)) == 0) {
                entry.value = om_call_copy(c, m[1].value.text);
                if (!entry.value.p)
                        r = om_error_set_errno(&e, ENOMEM, "the value");
        }
        if (r < 0)
                om_call_fail(c, &e);
        else
                om_call_put_one(c, OM_STORE_CONFIG, &entry, on_set);
}

static void on_deleted(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b;

        b = om_call_begin(c, status == -ENOENT ? 0 : status, e);
        if (!b)
                return;
        om_buf_puts(b, status == 0 && c->remove.ret_n > 0 ? "{\"deleted\":true}" : "{\"deleted\":false}");
        om_call_end(c);
}

static int read_delete(struct om_call *c, struct om_span params, struct om_error *e) {
        int r = read_key(params, &c->arena, &c->remove.key, e);

        c->remove.kind = OM_STORE_CONFIG;
        return r < 0 ? r : check_own(c->remove.key, e);
}

static void config_delete(struct om_request *req, struct om_span params) {
        om_call_for(req, params, OM_CALL_STORE_DELETE, read_delete, on_deleted);
}

/* -- list ---------------------------------------------------------------------------------------------------------- */

static void on_listed(struct om_call *c, int status, const struct om_error *e) {
        struct om_buf *b = om_call_begin(c, status, e);

        if (!b)
                return;
        om_buf_lit(b, "{\"config\":{");
        for (size_t i = 0; i < c->n_rows; i++) {
                if (i > 0)
                        om_buf_putc(b, ',');
                om_buf_json_span(b, c->rows[i].key);
                om_buf_putc(b, ':');
                om_buf_put_span(b, c->rows[i].value);
        }
        om_buf_lit(b, "}}");
        om_call_end(c);
}

static void config_list(struct om_request *req, struct om_span params) {
        struct om_json_member m[] = { { "prefix", OM_JSON_STRING }, { NULL } };
        struct om_call *c = om_call_new(req->core, req, OM_CALL_STORE_LIST, on_listed);
        struct om_error e = OM_ERROR_INIT;

        if (!c)
                return;
        c->list.kind = OM_STORE_CONFIG;
        if (om_json_members(params, "params", m, &e) < 0 || om_param_text(&m[0], OM_STORE_KEY_MAX, &c->arena, &c->list.name, &e) < 0) {
                om_call_fail(c, &e);
                return;
        }
        om_call_collect(c);
}

const struct om_method om_config_methods[] = {
        { "config.get", config_get },
        { "config.set", config_set },
        { "config.delete", config_delete },
        { "config.list", config_list },
        { NULL, NULL },
};
