/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ops that the core calls: each operation goes to the part that its kind belongs to, as it came, and its completion goes back. Where a
 * second storage follows, a write waits until its marks are on the disk; then it is sent, and completes when the first storage says so,
 * whatever the second one does.
 *
 * Always true:
 *   - the core's op is completed once, by the part's completion, or by the failure to send it;
 *   - an operation that no mirror follows costs no copy of its inputs;
 *   - what waits for marks or for a switch is bounded in bytes (WAITING_BYTES), beyond it the core gets -ENOBUFS.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "storage_internal.h"

enum { WAITING_BYTES = 64 << 20, WAKE_MS = 100 };

static struct routes *routes_of(struct om_store *s) { return (struct routes *) s; }
static struct routes *routes_of_const(const struct om_store *s) { return (struct routes *) (uintptr_t) s; }

struct part *source_of(const struct routes *r, enum om_store_kind kind) {
        return kind == OM_STORE_RESULTS && r->results ? r->results : r->main;
}

/* -- one operation ------------------------------------------------------------------------------------------------- */

static void route_free(struct route *route) {
        struct routes *r = route->r;

        r->held_bytes -= route->bytes;
        om_arena_deinit(&route->arena);
        free(route->keys);
        free(route);
        routes_go_on(r);
}

/* Hands the outputs over to the core's op. */
static void give_back(struct route *route) {
        switch (route->type) {
        case ROUTE_GET:
                ((struct om_store_get *) route->parent)->arena = route->get.arena;
                ((struct om_store_get *) route->parent)->entry = route->get.entry;
                break;
        case ROUTE_LIST: {
                struct om_store_list *to = (struct om_store_list *) route->parent;

                to->arena = route->list.arena;
                to->entries = route->list.entries;
                to->n = route->list.n;
                to->next_cursor = route->list.next_cursor;
                break;
        }
        case ROUTE_REMOVE:
                ((struct om_store_delete *) route->parent)->ret_n = route->remove.ret_n;
                break;
        case ROUTE_PUT_IF_ABSENT: {
                struct om_store_put_if_absent *to = (struct om_store_put_if_absent *) route->parent;

                to->arena = route->put_if_absent.arena;
                to->ret_stored = route->put_if_absent.ret_stored;
                to->ret_value = route->put_if_absent.ret_value;
                break;
        }
        case ROUTE_PUT:
                break;
        }
}

static bool is_write(const struct route *route) { return route->type != ROUTE_GET && route->type != ROUTE_LIST; }

/* The end of a route: the mirror is told, then the core. */
static void route_end(struct route *route, int status, const struct om_error *e) {
        struct routes *r = route->r;
        struct om_op *parent = route->parent;

        if (route->tracked)
                mirror_write_end(r->mirror, route);
        else if (is_write(route))
                r->untracked[route->kind]--;
        parent->cancel = NULL;
        parent->done(parent, status, e);
        route_free(route);
}

/* A cursor belongs to the part that gave it: its tag is put before it. */
static int tag_cursor(struct route *route, struct om_error *e) {
        struct om_span cursor = route->list.next_cursor;
        size_t len = strlen(route->part->tag);
        char *text;

        if (!cursor.p)
                return 0;
        text = om_arena_alloc(&route->list.arena, len + cursor.len + 1);
        if (!text)
                return om_error_set_errno(e, ENOMEM, "the storage");
        memcpy(text, route->part->tag, len);
        memcpy(text + len, cursor.p, cursor.len);
        text[len + cursor.len] = 0;
        route->list.next_cursor = (struct om_span){ text, len + cursor.len };
        return 0;
}

static int submit(struct route *route, struct om_error *e);

/* The target could not answer: the source can. */
static bool fall_back(struct route *route, int status) {
        struct om_error e = OM_ERROR_INIT;
        struct om_span cursor = route->list.cursor;

        if (!route->second || status == 0 || status == -ENOENT || route->cancelled || (route->type == ROUTE_LIST && cursor.p))
                return false;
        route->second = false;
        route->part = source_of(route->r, route->kind);
        if (route->type == ROUTE_GET)
                om_arena_deinit(&route->get.arena);
        else
                om_arena_deinit(&route->list.arena);
        return submit(route, &e) == 0;
}

static void route_done(struct om_op *op, int status, const struct om_error *e) {
        struct route *route = (struct route *) op;
        struct om_error named = OM_ERROR_INIT;

        part_done(route->part);
        if (fall_back(route, status))
                return;
        if (status < 0 && e) {
                named = *e;
                part_name_error(route->part, &named);
                e = &named;
        }
        if (route->type == ROUTE_LIST && status == 0 && tag_cursor(route, &named) < 0) {
                status = -ENOMEM;
                e = &named;
        }
        give_back(route);
        route_end(route, status, e);
}

static int submit(struct route *route, struct om_error *e) {
        struct part *p = route->part;
        int r = -EINVAL;

        if (!p->store)
                return part_check(p, e);
        route->op = (struct om_op){ .done = route_done };
        switch (route->type) {
        case ROUTE_PUT:
                r = p->ops->put(p->store, &route->put, e);
                break;
        case ROUTE_GET:
                r = p->ops->get(p->store, &route->get, e);
                break;
        case ROUTE_LIST:
                r = p->ops->list(p->store, &route->list, e);
                break;
        case ROUTE_REMOVE:
                r = p->ops->remove(p->store, &route->remove, e);
                break;
        case ROUTE_PUT_IF_ABSENT:
                r = p->ops->put_if_absent(p->store, &route->put_if_absent, e);
                break;
        }
        if (r == 0)
                p->n_out++;
        else
                part_name_error(p, e);
        return r;
}

static void cancel(struct om_op *parent) {
        struct route *route = parent->backend;

        route->cancelled = true;
        if (route->part && route->op.cancel)
                om_op_cancel(&route->op);
}

static struct route *route_new(struct routes *r, enum route_type type, enum om_store_kind kind, struct om_op *parent, struct om_error *e) {
        struct route *route = calloc(1, sizeof *route);

        if (!route) {
                om_error_set_errno(e, ENOMEM, "the storage");
                return NULL;
        }
        route->r = r;
        route->type = type;
        route->kind = kind;
        route->parent = parent;
        return route;
}

static void accept_op(struct route *route) {
        route->parent->backend = route;
        route->parent->cancel = cancel;
}

static int refuse(struct route *route, int status) {
        om_arena_deinit(&route->arena);
        free(route->keys);
        free(route);
        return status;
}

/* As it came, its inputs still the caller's. */
static int forward(struct route *route, struct om_error *e) {
        int status;

        route->part = source_of(route->r, route->kind);
        status = submit(route, e);
        if (status < 0)
                return refuse(route, status);
        if (is_write(route))
                route->r->untracked[route->kind]++;
        accept_op(route);
        return 0;
}

/* -- writes that a mirror follows ---------------------------------------------------------------------------------- */

static bool keep(struct route *route, struct om_span *s) {
        struct om_span copy = om_arena_copy(&route->arena, *s);

        route->bytes += s->len;
        if (s->p && !copy.p)
                return false;
        *s = copy;
        return true;
}

static bool keep_entries(struct route *route) {
        size_t n = route->put.n;
        struct om_store_entry *entries = om_arena_alloc(&route->arena, (n + 1) * sizeof *entries);

        if (!entries)
                return false;
        for (size_t i = 0; i < n; i++) {
                struct om_store_entry *to = &entries[i];

                *to = route->put.entries[i];
                if (!keep(route, &to->key) || !keep(route, &to->name) || !keep(route, &to->value) || !keep(route, &to->topic) ||
                        !keep(route, &to->status))
                        return false;
        }
        route->put.entries = entries;
        return true;
}

static bool keep_inputs(struct route *route) {
        switch (route->type) {
        case ROUTE_PUT:
                return keep_entries(route);
        case ROUTE_GET:
                return keep(route, &route->get.key) && keep(route, &route->get.name);
        case ROUTE_LIST:
                return keep(route, &route->list.key) && keep(route, &route->list.name) && keep(route, &route->list.topic) &&
                        keep(route, &route->list.status) && keep(route, &route->list.cursor) && keep(route, &route->list.text) &&
                        keep(route, &route->list.filter);
        case ROUTE_REMOVE:
                return keep(route, &route->remove.key) && keep(route, &route->remove.name);
        case ROUTE_PUT_IF_ABSENT:
                return keep(route, &route->put_if_absent.key) && keep(route, &route->put_if_absent.value);
        }
        return false;
}

void routes_send(struct route *route) {
        struct om_error e = OM_ERROR_INIT;
        int status = -ECANCELED;

        if (route->cancelled)
                om_error_set(&e, OM_UNAVAILABLE, "cancelled");
        else
                status = submit(route, &e);
        if (status == -ENOBUFS && route->part->n_out > 0)
                DL_APPEND(route->r->waiting, route);
        else if (status < 0)
                route_end(route, status, &e);
}

static void marked(struct om_queue_wait *w, int status, const struct om_error *e) {
        /* A file that cannot be written fails no write: the mirror knows, and compares everything when it can again. */
        routes_send((void *) ((char *) w - offsetof(struct route, wait)));
}

/* Out of the core's call. */
static void start_write(struct route *route) {
        struct routes *r = route->r;
        struct om_error e;
        int status;

        route->part = source_of(r, route->kind);
        if (!r->mirror || !mirror_follows(r->mirror, route->kind)) {
                r->untracked[route->kind]++;
                routes_send(route);
                return;
        }
        route->wait.fn = marked;
        status = mirror_write_begin(r->mirror, route);
        if (status >= 0) {
                route->tracked = true;
                if (status > 0)
                        routes_send(route);
                return;
        }
        r->untracked[route->kind]++;
        route_end(route, status, (om_error_set_errno(&e, status, "the storage"), &e));
}

static void started(struct om_post *post) { start_write((void *) ((char *) post - offsetof(struct route, post))); }

static int write_op(struct route *route, struct om_error *e) {
        struct routes *r = route->r;
        struct part *p = source_of(r, route->kind);
        int status;

        if (!r->mirror || (!mirror_follows(r->mirror, route->kind) && !r->mirror->holding))
                return forward(route, e);
        status = part_check(p, e);
        if (status == 0 && r->held_bytes > WAITING_BYTES)
                status = om_error_set(e, OM_LIMIT, "writes of %zu bytes wait for the second storage's marks", r->held_bytes);
        if (status == 0 && !keep_inputs(route))
                status = om_error_set_errno(e, ENOMEM, "the storage");
        if (status < 0)
                return refuse(route, status);
        r->held_bytes += route->bytes;
        accept_op(route);
        if (r->mirror->holding) {
                DL_APPEND(r->held, route);
                return 0;
        }
        route->post.fn = started;
        om_host_post(r->host, &route->post);
        return 0;
}

void routes_release(struct routes *r) {
        struct route *route, *next, *held = r->held;

        r->held = NULL;
        DL_FOREACH_SAFE (held, route, next) {
                DL_DELETE(held, route);
                start_write(route);
        }
}

static int routes_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        struct route *route = route_new(routes_of(s), ROUTE_PUT, op->kind, &op->op, e);

        if (!route)
                return -ENOMEM;
        route->put = *op;
        return write_op(route, e);
}

static int routes_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        struct route *route = route_new(routes_of(s), ROUTE_REMOVE, op->kind, &op->op, e);

        if (!route)
                return -ENOMEM;
        op->ret_n = 0;
        route->remove = *op;
        return write_op(route, e);
}

static int routes_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct route *route = route_new(routes_of(s), ROUTE_PUT_IF_ABSENT, OM_STORE_KEYS, &op->op, e);

        if (!route)
                return -ENOMEM;
        op->arena = (struct om_arena){ 0 };
        op->ret_stored = false;
        op->ret_value = OM_SPAN_NONE;
        route->put_if_absent = *op;
        return write_op(route, e);
}

/* -- reads --------------------------------------------------------------------------------------------------------- */

/* From the target where it is the one that is read, and has what the source has. */
static int read_op(struct route *route, struct om_span key, struct om_span name, struct om_error *e) {
        const struct mirror *m = route->r->mirror;
        int status;

        if (!m || m->phase != PHASE_READ || !mirror_may_read(m, route->kind, key, name) || part_check(m->target, NULL) < 0)
                return forward(route, e);
        if (!keep_inputs(route))
                return refuse(route, om_error_set_errno(e, ENOMEM, "the storage"));
        route->r->held_bytes += route->bytes;
        route->part = m->target;
        route->second = true;
        status = submit(route, e);
        if (status < 0) {
                route->second = false;
                route->part = source_of(route->r, route->kind);
                status = submit(route, e);
        }
        if (status < 0) {
                route->r->held_bytes -= route->bytes;
                return refuse(route, status);
        }
        accept_op(route);
        return 0;
}

static int routes_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        struct route *route = route_new(routes_of(s), ROUTE_GET, op->kind, &op->op, e);

        if (!route)
                return -ENOMEM;
        op->arena = (struct om_arena){ 0 };
        op->entry = (struct om_store_entry){ 0 };
        route->get = *op;
        return read_op(route, op->key, op->name, e);
}

static bool has_tag(const struct part *p, struct om_span cursor) {
        size_t len = p ? strlen(p->tag) : 0;

        return p && cursor.len > len && memcmp(cursor.p, p->tag, len) == 0;
}

/* The rest of a walk comes from where it began. */
static int list_on(struct route *route, struct om_error *e) {
        struct routes *r = route->r;
        struct om_span *cursor = &route->list.cursor;
        struct part *parts[] = { source_of(r, route->kind), r->mirror ? r->mirror->target : NULL };

        for (size_t i = 0; i < 2; i++) {
                if (!has_tag(parts[i], *cursor))
                        continue;
                cursor->p += strlen(parts[i]->tag);
                cursor->len -= strlen(parts[i]->tag);
                if (i == 0)
                        return forward(route, e);
                route->part = parts[i];
                if (submit(route, e) < 0)
                        break;
                accept_op(route);
                return 0;
        }
        return refuse(route, om_error_set(e, OM_INVALID, "this cursor is none that the storage gave"));
}

static int routes_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct route *route = route_new(routes_of(s), ROUTE_LIST, op->kind, &op->op, e);

        if (!route)
                return -ENOMEM;
        op->arena = (struct om_arena){ 0 };
        op->entries = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        route->list = *op;
        return op->cursor.p ? list_on(route, e) : read_op(route, op->kind == OM_STORE_AGENTS ? op->key : OM_SPAN_NONE, OM_SPAN_NONE, e);
}

/* Of the results' storage: that is what people ask about. The operation is the backend's from here on. */
static int routes_query(struct om_store *s, struct om_store_query *op, struct om_error *e) {
        const struct part *p = source_of(routes_of(s), OM_STORE_RESULTS);
        int r = part_check(p, e);

        if (r == 0 && !p->ops->query)
                r = om_error_set(e, OM_UNSUPPORTED, "the storage \"%s\" has no query language", p->ops->name);
        return r < 0 ? r : p->ops->query(p->store, op, e);
}

/* -- going on ------------------------------------------------------------------------------------------------------ */

/* Something completed: what had no room is tried again. */
void routes_go_on(struct routes *r) {
        struct route *route, *next, *waiting = r->waiting;

        r->waiting = NULL;
        DL_FOREACH_SAFE (waiting, route, next) {
                DL_DELETE(waiting, route);
                routes_send(route);
        }
        if (r->mirror)
                mirror_pump(r->mirror);
}

void routes_refresh(struct routes *r) {
        const struct part *results = source_of(r, OM_STORE_RESULTS);
        unsigned both = r->main->ops->capabilities & results->ops->capabilities,
                 any = r->main->ops->capabilities | results->ops->capabilities;

        r->ops.name = r->main->ops->name;
        r->ops.schemes = r->main->ops->schemes;
        r->ops.doc = r->main->ops->doc;
        r->ops.options = r->main->ops->options;
        r->ops.capabilities =
                (both & OM_STORE_TTL) | (any & OM_STORE_SHARED) | (results->ops->capabilities & (OM_STORE_SEARCH | OM_STORE_QUERY));
}

/* The main storage's state is the core's; at the start it waits for the result storage's first word, so that nobody who asks at once is
 * refused. */
static void tell(struct routes *r) {
        if (r->main->state == OM_STORE_READY && !r->told_ready && r->results && !r->results->has_spoken)
                return;
        r->told_ready |= r->main->state == OM_STORE_READY;
        r->events->state(r->core, r->main->state, &r->main->error);
}

void routes_part_state(struct part *p) {
        struct routes *r = p->routes;
        static const char *const words[] = { "connecting", "ready", "failed" };

        if (p == r->main) {
                tell(r);
        } else {
                om_log(p->state == OM_STORE_READY ? OM_LOG_NOTICE : OM_LOG_WARNING, "%s %s: %s%s%s", p->what, p->ops->name, words[p->state],
                        p->error.message[0] ? ": " : "", p->error.message);
                if (p == r->results && !r->told_ready && r->main->state == OM_STORE_READY)
                        tell(r);
                if (p == r->results && r->told_ready && r->main->state == OM_STORE_READY)
                        r->events->state(r->core, OM_STORE_READY, &r->main->error);
        }
        if (r->mirror && p->state == OM_STORE_READY)
                mirror_worked(r->mirror);
        routes_changed(r);
        if (r->mirror)
                mirror_pump(r->mirror);
}

/* -- who waits for the status -------------------------------------------------------------------------------------- */

static void on_wake(evutil_socket_t fd, short what, void *ctx) {
        struct routes *r = ctx;
        struct om_routes_wait *w, *next;

        r->wake_armed = false;
        DL_FOREACH_SAFE (r->waits, w, next)
                if (w->seen != r->revision) {
                        DL_DELETE(r->waits, w);
                        w->fn(w);
                }
}

static void arm_wake(struct routes *r) {
        struct timeval tv = { .tv_usec = WAKE_MS * 1000 };

        if (r->waits && !r->wake_armed)
                r->wake_armed = event_add(r->wake, &tv) == 0;
}

void routes_changed(struct routes *r) {
        r->revision++;
        arm_wake(r);
}

uint64_t om_routes_revision(const struct om_store *s) { return routes_of_const(s)->revision; }

void om_routes_wait(struct om_store *s, struct om_routes_wait *w) {
        struct routes *r = routes_of(s);

        DL_APPEND(r->waits, w);
        if (w->seen != r->revision)
                arm_wake(r);
}

void om_routes_wait_stop(struct om_store *s, struct om_routes_wait *w) {
        struct routes *r = routes_of(s);

        DL_DELETE(r->waits, w);
}

/* -- opening and closing ------------------------------------------------------------------------------------------- */

static void part_gone(struct om_post *post);

static void closed_if_all(struct routes *r) {
        struct om_op *op = r->close_op;

        if (r->n_closing > 0)
                return;
        op->done(op, 0, NULL);
}

static struct routes *routes_of_post(struct om_post *post, size_t i) {
        return (void *) ((char *) post - offsetof(struct routes, part_gone) - i * sizeof(struct om_post));
}

static void main_gone(struct om_post *post) {
        struct routes *r = routes_of_post(post, 0);

        r->main = NULL;
        r->n_closing--;
        closed_if_all(r);
}

static void part_gone(struct om_post *post) {
        struct routes *r = routes_of_post(post, 1);

        r->results = NULL;
        r->n_closing--;
        closed_if_all(r);
}

static void close_parts(struct routes *r) {
        r->n_closing = 1 + (r->results != NULL);
        r->part_gone[0].fn = main_gone;
        r->part_gone[1].fn = part_gone;
        if (r->results)
                part_close(r->results, &r->part_gone[1]);
        part_close(r->main, &r->part_gone[0]);
}

static void mirror_gone(struct om_post *post) {
        struct routes *r = (void *) ((char *) post - offsetof(struct routes, mirror_gone));

        close_parts(r);
}

static int routes_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        struct routes *r = routes_of(s);

        struct om_routes_wait *w, *next;

        r->closing = true;
        r->close_op = op;
        DL_FOREACH_SAFE (r->waits, w, next) {
                DL_DELETE(r->waits, w);
                w->fn(w);
        }
        op->cancel = NULL;
        if (!r->mirror) {
                close_parts(r);
                return 0;
        }
        r->mirror_gone.fn = mirror_gone;
        r->mirror->target_goes = true;
        mirror_stop(r->mirror, &r->mirror_gone);
        return 0;
}

static void routes_destroy(struct om_store *s) {
        struct routes *r = routes_of(s);

        if (!r)
                return;
        part_free(r->results);
        part_free(r->main);
        if (r->wake)
                event_free(r->wake);
        free(r->state_path);
        free(r->queue_path);
        free(r);
}

const char *om_routes_url(const struct om_store *s) { return routes_of_const(s)->main->url->redacted; }

/* -- what has to be there before anything is opened ---------------------------------------------------------------- */

static int open_parts(struct routes *r, struct om_error *e) {
        int status = part_open(r->main, e);

        if (status == 0 && r->results)
                status = part_open(r->results, e);
        /* A second storage that cannot be opened fails nothing: it is away, and what it lacks is kept. */
        if (status == 0 && r->mirror) {
                struct om_error away = OM_ERROR_INIT;

                if (part_open(r->mirror->target, &away) < 0)
                        om_log_error(OM_LOG_ERROR, &away, "the second storage cannot be opened");
        }
        return status;
}

int om_routes_open(struct om_host *host, const struct om_settings *settings, const struct om_store_events *events, void *core,
        const struct om_store_ops **ret_ops, struct om_store **ret, struct om_error *e) {
        struct routes *r = calloc(1, sizeof *r);
        int status;

        if (!r)
                return om_error_set_errno(e, ENOMEM, "the storage");
        r->host = host;
        r->settings = settings;
        r->events = events;
        r->core = core;
        r->revision = 1;
        r->ops = (struct om_store_ops){ .abi = OM_BACKEND_ABI,
                .put = routes_put,
                .get = routes_get,
                .list = routes_list,
                .query = routes_query,
                .remove = routes_remove,
                .put_if_absent = routes_put_if_absent,
                .health = routes_health,
                .close = routes_close,
                .destroy = routes_destroy };
        r->wake = event_new(host->base, -1, 0, on_wake, r);
        if (!r->wake || asprintf(&r->state_path, "%s/storage-migration.json", host->state_dir) < 0 ||
                asprintf(&r->queue_path, "%s/storage-marks.journal", host->state_dir) < 0)
                status = om_error_set_errno(e, ENOMEM, "the storage");
        else
                status = migrate_open(r, e);
        if (status < 0) {
                routes_destroy((struct om_store *) r);
                return status;
        }
        routes_refresh(r);
        *ret_ops = &r->ops;
        *ret = (struct om_store *) r;
        return open_parts(r, e);
}
