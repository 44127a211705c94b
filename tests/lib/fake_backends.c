/* SPDX-License-Identifier: Apache-2.0 */
/* See fake_backends.h. */
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../backends/registry.h"
#include "../../daemon/log.h"
#include "../../proto/frame.h"
#include "fake_backends.h"

struct fake fake;

/* -- completing later ---------------------------------------------------------------------------------------------- */

struct completion {
        struct om_post post;
        struct om_op *op;
        int status;
};

static void on_completion(struct om_post *post) {
        struct completion *c = (struct completion *) post;
        struct om_error e = OM_ERROR_INIT;
        struct om_op *op = c->op;
        int status = c->status;

        free(c);
        if (status < 0)
                om_error_set_errno(&e, status, "fake");
        op->done(op, status, status < 0 ? &e : NULL);
}

static int complete(struct om_op *op, int status) {
        struct completion *c = calloc(1, sizeof *c);

        op->cancel = NULL;
        *c = (struct completion){ .post = { .fn = on_completion }, .op = op, .status = status };
        om_host_post(fake.core ? fake.core->host : om_loop_host(fake.loop), &c->post);
        return 0;
}

/* -- the bus ------------------------------------------------------------------------------------------------------- */

struct om_bus {
        struct om_post ready;
        const struct om_bus_events *events;
        void *core;
};
static struct om_bus the_bus;
static struct om_bus_sub *the_sub = (struct om_bus_sub *) &the_bus;

enum { HELD_MAX = 2048 };
static struct om_bus_query *held[HELD_MAX];

static void bus_ready(struct om_post *post) { the_bus.events->state(the_bus.core, OM_BUS_READY, NULL); }

static int bus_open(
        struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        the_bus = (struct om_bus){ .ready = { .fn = bus_ready }, .events = events, .core = core };
        om_host_post(host, &the_bus.ready);
        *ret = &the_bus;
        return 0;
}

static int bus_publish(struct om_bus *bus, struct om_bus_publish *op, struct om_error *e) {
        for (size_t i = 0; i < op->n; i++)
                op->outcomes[i] = (struct om_outcome){ .status = 0 };
        return complete(&op->op, 0);
}

static int bus_subscribe(struct om_bus *bus, struct om_bus_subscribe *op, struct om_error *e) {
        op->ret_sub = the_sub;
        op->ret_created = true;
        return complete(&op->op, 0);
}

static void bus_unsubscribe(struct om_bus_sub *sub) {}
static void bus_want(struct om_bus_sub *sub, unsigned n) {}

static int bus_settle(struct om_bus *bus, struct om_bus_settle *op, struct om_error *e) {
        for (size_t i = 0; i < op->n; i++)
                op->items[i].outcome = (struct om_outcome){ .status = 0 };
        return complete(&op->op, 0);
}

static void cancel_held(struct om_op *op) {
        for (unsigned i = 0; i < fake.n_held; i++)
                if (&held[i]->op == op) {
                        memmove(held + i, held + i + 1, (fake.n_held - i - 1) * sizeof *held);
                        fake.n_held--;
                        complete(op, -ECANCELED);
                        return;
                }
}

static int bus_query(struct om_bus *bus, struct om_bus_query *op, struct om_error *e) {
        if (fake.refuse > 0) {
                fake.refuse--;
                return om_error_set(e, OM_LIMIT, "fake: full");
        }
        if (op->type == OM_QUERY_HEALTH) {
                if (!fake.bus_health)
                        return om_error_set(e, OM_UNAVAILABLE, "fake: away");
                op->info = om_arena_copy(&op->arena, om_span_of(fake.bus_health));
                return complete(&op->op, 0);
        }
        if (op->type == OM_QUERY_TOPICS && fake.hold_queries) {
                ck_assert_uint_lt(fake.n_held, HELD_MAX);
                op->op.cancel = fake.no_cancel ? NULL : cancel_held;
                held[fake.n_held++] = op;
                return 0;
        }
        return complete(&op->op, 0);
}

void fake_release(unsigned i, unsigned n_topics) {
        static char name[101];
        struct om_bus_query *op = held[i];

        ck_assert_uint_lt(i, fake.n_held);
        memset(name, 'x', 100);
        memmove(held + i, held + i + 1, (fake.n_held - i - 1) * sizeof *held);
        fake.n_held--;
        op->topics = om_arena_alloc(&op->arena, (n_topics + 1) * sizeof *op->topics);
        op->n = n_topics;
        for (unsigned t = 0; t < n_topics; t++)
                op->topics[t] = (struct om_bus_topic_row){ .topic = { name, 100 } };
        complete(&op->op, 0);
}

static int bus_change(struct om_bus *bus, struct om_bus_change *op, struct om_error *e) {
        op->ret_n = 1;
        return complete(&op->op, 0);
}

static int bus_close(struct om_bus *bus, struct om_op *op, struct om_error *e) {
        ck_assert_uint_eq(fake.n_held, 0); /* no operation of the core is under way */
        return complete(op, 0);
}
static void bus_destroy(struct om_bus *bus) {}

static const char *const bus_schemes[] = { "fakebus", NULL };
static const struct om_bus_ops bus_ops = { .abi = OM_BACKEND_ABI,
        .name = "fakebus",
        .schemes = bus_schemes,
        .doc = "for tests",
        .capabilities = OM_BUS_PRIORITY | OM_BUS_KEYS,
        .open = bus_open,
        .publish = bus_publish,
        .subscribe = bus_subscribe,
        .unsubscribe = bus_unsubscribe,
        .want = bus_want,
        .settle = bus_settle,
        .query = bus_query,
        .change = bus_change,
        .close = bus_close,
        .destroy = bus_destroy };

/* -- the storage --------------------------------------------------------------------------------------------------- */

struct om_store {
        struct om_post ready;
        const struct om_store_events *events;
        void *core;
};
static struct om_store the_store;

struct stored {
        enum om_store_kind kind;
        char *key, *name, *value;
};
static struct stored *rows;
static size_t n_rows;

static struct om_span span(const char *text) { return om_span_of(text); }

static bool matches(const struct stored *row, enum om_store_kind kind, struct om_span key, struct om_span name) {
        return row->kind == kind && (!key.p || om_span_eq(span(row->key), key)) && (!name.p || om_span_eq(span(row->name), name));
}

static char *text_of(struct om_span s) { return s.p ? strndup(s.p, s.len) : strdup(""); }

static void free_row(struct stored *row) {
        free(row->key);
        free(row->name);
        free(row->value);
}

static void put_row(enum om_store_kind kind, struct om_span key, struct om_span name, struct om_span value) {
        for (size_t i = 0; i < n_rows; i++)
                if (kind != OM_STORE_METRICS && matches(&rows[i], kind, key, name.p ? name : OM_SPAN(""))) {
                        free(rows[i].value);
                        rows[i].value = text_of(value);
                        return;
                }
        rows = realloc(rows, (n_rows + 1) * sizeof *rows);
        rows[n_rows++] = (struct stored){ kind, text_of(key), text_of(name), text_of(value) };
}

void fake_store(enum om_store_kind kind, const char *key, const char *name, const char *value) {
        put_row(kind, span(key), span(name), span(value));
}

const char *fake_stored(enum om_store_kind kind, const char *key, const char *name) {
        for (size_t i = 0; i < n_rows; i++)
                if (matches(&rows[i], kind, span(key), span(name)))
                        return rows[i].value;
        return NULL;
}

static void store_ready(struct om_post *post) { the_store.events->state(the_store.core, OM_STORE_READY, NULL); }

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        the_store = (struct om_store){ .ready = { .fn = store_ready }, .events = events, .core = core };
        om_host_post(host, &the_store.ready);
        *ret = &the_store;
        return 0;
}

void fake_store_state(enum om_store_state state) {
        struct om_error e;

        om_error_set(&e, OM_UNAVAILABLE, "fake: away");
        fake.store_away = state != OM_STORE_READY;
        the_store.events->state(the_store.core, state, &e);
}

static int away(struct om_error *e) { return om_error_set(e, OM_UNAVAILABLE, "fake: away"); }

static int store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        if (fake.store_away)
                return away(e);
        for (size_t i = 0; i < op->n; i++) {
                put_row(op->kind, op->entries[i].key, op->entries[i].name, op->entries[i].value);
                op->outcomes[i] = (struct om_outcome){ .status = 0 };
                fake.n_puts++;
        }
        return complete(&op->op, 0);
}

static struct om_store_entry entry_of(const struct stored *row, struct om_arena *arena) {
        return (struct om_store_entry){ .key = om_arena_copy(arena, span(row->key)),
                .name = om_arena_copy(arena, span(row->name)),
                .value = om_arena_copy(arena, span(row->value)) };
}

static int store_get(struct om_store *s, struct om_store_get *op, struct om_error *e) {
        if (fake.store_away)
                return away(e);
        for (size_t i = 0; i < n_rows; i++)
                if (matches(&rows[i], op->kind, op->key, op->name)) {
                        op->entry = entry_of(&rows[i], &op->arena);
                        return complete(&op->op, 0);
                }
        return complete(&op->op, -ENOENT);
}

/* Pages of two, so that cursors are met. */
static int store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        size_t from = op->cursor.p ? (size_t) atoi(op->cursor.p) : 0, i;
        bool config = op->kind == OM_STORE_CONFIG;
        char cursor[24];

        if (fake.store_away)
                return away(e);
        op->entries = om_arena_alloc(&op->arena, 2 * sizeof *op->entries);
        for (i = from; i < n_rows && op->n < 2; i++)
                if (matches(&rows[i], op->kind, op->key, config ? OM_SPAN_NONE : op->name) &&
                        (!config || !op->name.p || strncmp(rows[i].key, op->name.p, op->name.len) == 0))
                        op->entries[op->n++] = entry_of(&rows[i], &op->arena);
        snprintf(cursor, sizeof cursor, "%zu", i);
        if (i < n_rows)
                op->next_cursor = om_arena_copy(&op->arena, span(cursor));
        return complete(&op->op, 0);
}

static int store_remove(struct om_store *s, struct om_store_delete *op, struct om_error *e) {
        size_t kept = 0;

        if (fake.store_away)
                return away(e);
        for (size_t i = 0; i < n_rows; i++)
                if (matches(&rows[i], op->kind, op->key, op->name)) {
                        free_row(&rows[i]);
                        op->ret_n++;
                } else {
                        rows[kept++] = rows[i];
                }
        n_rows = kept;
        return complete(&op->op, 0);
}

static int store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        op->ret_stored = true;
        return complete(&op->op, 0);
}

static int store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        if (fake.store_away)
                return away(e);
        op->info = om_arena_copy(&op->arena, span(fake.store_health));
        return complete(&op->op, 0);
}

static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) { return complete(op, 0); }
static void store_destroy(struct om_store *s) {}

static const char *const store_schemes[] = { "fakestore", NULL };
static const struct om_store_ops store_ops = { .abi = OM_BACKEND_ABI,
        .name = "fakestore",
        .schemes = store_schemes,
        .doc = "for tests",
        .open = store_open,
        .put = store_put,
        .get = store_get,
        .list = store_list,
        .remove = store_remove,
        .put_if_absent = store_put_if_absent,
        .health = store_health,
        .close = store_close,
        .destroy = store_destroy };

/* -- the core ------------------------------------------------------------------------------------------------------ */

static bool flag;
static void raise_flag(struct om_post *post) { flag = true; }
static struct om_post flag_post = { .fn = raise_flag };

static void run_until_flag(void) {
        while (!flag)
                om_loop_run_once(fake.loop, true);
        flag = false;
}

void fake_set_up(void) {
        struct om_error e = OM_ERROR_INIT;
        static char bus_url[] = "fakebus:", store_url[] = "fakestore:";

        om_log_open(OM_LOG_STDERR, OM_LOG_ERROR);
        om_registry_add_bus(&bus_ops);
        om_registry_add_store(&store_ops);
        memset(&fake, 0, sizeof fake);
        fake.bus_health = fake.store_health = "{\"durability\":\"strong\"}";
        fake.settings = (struct om_settings){ .event_bus_url = bus_url,
                .storage_url = store_url,
                .max_connections = 10000,
                .max_frame_bytes = OM_FRAME_MAX_DEFAULT,
                .prefetch = 10,
                .dlq_retry_limit = 3,
                .reclaim_idle_ms = 180000,
                .retry_backoff_ms = 1000,
                .retry_backoff_max_ms = 60000,
                .result_ttl_ms = 86400000,
                .idempotency_window_ms = 86400000,
                .publish_timeout_ms = 5000,
                .call_timeout_ms = 5000,
                .stop_grace_ms = 50,
                .stalled_client_ms = 200,
                .session_output_bytes = 256 << 10,
                .metrics_interval_ms = 20 };
        strcpy(fake.folder, "/tmp/omni-test-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(fake.folder));
        ck_assert_msg(om_loop_new(&fake.loop, fake.folder, &e) == 0, "%s", e.message);
        ck_assert_msg(om_core_new(fake.loop, &fake.settings, &flag_post, &fake.core, &e) == 0, "%s", e.message);
        run_until_flag();
}

void fake_tear_down(void) {
        om_core_stop(fake.core, &flag_post);
        run_until_flag();
        om_core_free(fake.core);
        fake.core = NULL;
        om_loop_free(fake.loop);
        rmdir(fake.folder);
        while (n_rows > 0)
                free_row(&rows[--n_rows]);
        free(rows);
        rows = NULL;
}

void fake_turn(void) {
        for (int i = 0; i < 10; i++)
                om_loop_run_once(fake.loop, false);
}

void fake_run_ms(int ms) {
        int64_t end = om_clock_ms() + ms;

        while (om_clock_ms() < end) {
                om_loop_run_once(fake.loop, false);
                poll(NULL, 0, 1);
        }
}

/* -- clients ------------------------------------------------------------------------------------------------------- */

int fake_connect(void) {
        int fds[2];

        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        ck_assert_int_eq(om_session_new(fake.core, fds[0], NULL), 0);
        return fds[1];
}

void client_send_raw(int fd, const void *data, size_t n) {
        const char *p = data;
        int64_t end = om_clock_ms() + 5000;

        while (n > 0) {
                ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);

                if (sent < 0) {
                        ck_assert_msg(errno == EAGAIN && om_clock_ms() < end, "send: %s", strerror(errno));
                        fake_turn();
                        continue;
                }
                p += sent;
                n -= (size_t) sent;
        }
}

void client_send(int fd, const char *body) {
        uint32_t len = htonl((uint32_t) strlen(body));
        struct om_buf b = OM_BUF_INIT;

        om_buf_put(&b, &len, 4);
        om_buf_puts(&b, body);
        client_send_raw(fd, b.data, b.len);
        om_buf_deinit(&b);
}

/* n bytes; false at the end of input or a reset. */
static bool read_exactly(int fd, char *out, size_t n) {
        int64_t end = om_clock_ms() + 5000;

        while (n > 0) {
                ssize_t r = recv(fd, out, n, 0);

                if (r == 0 || (r < 0 && errno != EAGAIN))
                        return false;
                if (r < 0) {
                        ck_assert_msg(om_clock_ms() < end, "nothing came within 5 s");
                        fake_turn();
                        poll(NULL, 0, 1);
                        continue;
                }
                out += r;
                n -= (size_t) r;
        }
        return true;
}

const char *client_read(int fd) {
        static char *body;
        uint32_t len;

        if (!read_exactly(fd, (char *) &len, 4))
                return NULL;
        len = ntohl(len);
        body = realloc(body, (size_t) len + 1);
        if (!read_exactly(fd, body, len))
                return NULL;
        body[len] = '\0';
        return body;
}

bool client_at_end(int fd) {
        char c;

        return !read_exactly(fd, &c, 1);
}

bool client_quiet(int fd) {
        char c;

        fake_turn();
        return recv(fd, &c, 1, MSG_PEEK) < 0 && errno == EAGAIN;
}
