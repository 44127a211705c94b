/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A storage that the routes have opened: who uses it, what state it is in, and its end.
 *
 * Always true: it is closed when no operation is under way in it, and destroyed a turn after that has completed; an error that leaves it
 * says which storage it is, where there are several. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "../backends/journal.h"
#include "../backends/registry.h"
#include "storage_internal.h"

static void on_state(void *ctx, enum om_store_state state, const struct om_error *error) {
        struct part *p = ctx;

        p->state = state;
        p->has_spoken = true;
        p->error = error && state != OM_STORE_READY ? *error : (struct om_error) OM_ERROR_INIT;
        if (!p->closing)
                routes_part_state(p);
}

static const struct om_store_events events = { .state = on_state };

int part_new(struct routes *r, const char *what, const char *setting, const char *text, struct part **ret, struct om_error *e) {
        struct part *p = calloc(1, sizeof *p);
        int status = 0;

        if (!p || !(p->text = strdup(text))) {
                free(p);
                return om_error_set_errno(e, ENOMEM, "the %s", what);
        }
        p->routes = r;
        p->what = what;
        p->setting = setting;
        status = om_url_parse(text, &p->url, e);
        if (status < 0)
                om_error_prefix(e, "%s", setting);
        else
                status = om_registry_store(p->url, setting, &p->ops, e);
        if (status < 0) {
                part_free(p);
                return status;
        }
        snprintf(p->tag, sizeof p->tag, "%05x.", om_crc32(p->url->redacted, strlen(p->url->redacted)) & 0xfffff);
        *ret = p;
        return 0;
}

int part_open(struct part *p, struct om_error *e) {
        int r = p->ops->open(p->routes->host, p->url, &events, p, &p->store, e);

        if (r < 0) {
                p->store = NULL;
                p->state = OM_STORE_FAILED;
                p->has_spoken = true;
                om_error_prefix(e, "%s %s", p->setting, p->url->redacted);
                if (e)
                        p->error = *e;
        }
        return r;
}

void part_free(struct part *p) {
        if (!p)
                return;
        om_url_free(p->url);
        if (p->text)
                explicit_bzero(p->text, strlen(p->text));
        free(p->text);
        free(p);
}

int part_check(const struct part *p, struct om_error *e) {
        if (p->store && p->state == OM_STORE_READY)
                return 0;
        om_error_set(e, OM_UNAVAILABLE, "%s", p->error.message[0] ? p->error.message : "the storage is not ready yet");
        part_name_error(p, e);
        return -EAGAIN;
}

void part_name_error(const struct part *p, struct om_error *e) {
        const struct routes *r = p->routes;

        if (e && e->kind != OM_NOT_FOUND && (r->results || r->mirror) && !strstr(e->message, p->url->redacted))
                om_error_prefix(e, "the %s %s (%s)", p->what, p->url->redacted, p->setting);
}

/* -- closing ------------------------------------------------------------------------------------------------------- */

static void destroy(struct om_post *post) {
        struct part *p = (void *) ((char *) post - offsetof(struct part, gone));
        struct om_host *host = p->routes->host;
        struct om_post *closed = p->closed;

        if (p->store)
                p->ops->destroy(p->store);
        part_free(p);
        if (closed)
                om_host_post(host, closed);
}

static void destroy_later(struct part *p) {
        p->gone.fn = destroy;
        om_host_post(p->routes->host, &p->gone);
}

static void on_closed(struct om_op *op, int status, const struct om_error *e) {
        struct part *p = (void *) ((char *) op - offsetof(struct part, close_op));

        if (status < 0 && e)
                om_log_error(OM_LOG_WARNING, e, "closing a storage");
        destroy_later(p);
}

static void close_when_idle(struct part *p) {
        struct om_error e = OM_ERROR_INIT;

        if (p->n_out > 0)
                return;
        p->close_op = (struct om_op){ .done = on_closed };
        if (!p->store || p->ops->close(p->store, &p->close_op, &e) < 0)
                destroy_later(p);
}

void part_close(struct part *p, struct om_post *closed) {
        p->closed = closed;
        p->closing = true;
        close_when_idle(p);
}

void part_done(struct part *p) {
        p->n_out--;
        if (p->closing)
                close_when_idle(p);
}
