/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See store_user.h. What a rule of the contract forbids ends the test at once, by ck_assert.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store_user.h"

void user_turn(struct user *u, const int *until) {
        while (!*until)
                om_loop_run_once(u->loop, true);
}

static void on_timeout(evutil_socket_t fd, short what, void *arg) { *(int *) arg = 1; }

void user_sleep(struct user *u, int ms) {
        int over = 0;
        struct timeval tv = { ms / 1000, (ms % 1000) * 1000 };
        ck_assert_int_eq(event_base_once(om_loop_base(u->loop), -1, EV_TIMEOUT, on_timeout, &over, &tv), 0);
        user_turn(u, &over);
}

static void on_state(void *core, enum om_store_state state, const struct om_error *error) {
        struct user *u = core;
        ck_assert(pthread_equal(u->thread, pthread_self()));
        ck_assert_msg(u->store, "state() came from within open()");
        u->state = state;
        u->states++;
        if (error)
                u->state_error = *error;
}

static void complete(struct wait *w, int status, const struct om_error *error) {
        ck_assert_msg(w->returned, "done() before the call had returned");
        ck_assert_msg(pthread_equal(w->user->thread, pthread_self()), "done() on another thread");
        w->completions++;
        ck_assert_msg(w->completions == 1, "done() twice");
        w->status = status;
        if (status < 0) {
                ck_assert_ptr_nonnull(error);
                w->error = *error;
        }
}

int user_finish(struct user *u, struct wait *w, int started) {
        w->returned = true;
        if (started < 0)
                return started;
        ck_assert_int_eq(started, 0);
        user_turn(u, &w->completions);
        if (w->status < 0)
                u->error = w->error;
        return w->status;
}

int user_open(struct user *u, const char *text) {
        static const struct om_store_events events = { on_state };
        struct om_url *url;
        struct om_store *store;
        *u = (struct user){ .thread = pthread_self() };
        int r = om_url_parse(text, &url, &u->error);
        ck_assert_msg(r == 0, "%s: %s", text, u->error.message);
        r = om_registry_store(url, "STORAGE_URL", &u->ops, &u->error);
        ck_assert_msg(r == 0, "%s: %s", text, u->error.message);
        ck_assert_int_eq(om_loop_new(&u->loop, "/tmp", &u->error), 0);
        r = u->ops->open(om_loop_host(u->loop), url, &events, u, &store, &u->error);
        om_url_free(url);
        if (r < 0) {
                om_loop_free(u->loop);
                return r;
        }
        u->store = store;
        user_turn(u, (const int *) &u->states);
        return 0;
}

struct plain_op {
        struct om_op op;
        struct wait wait;
};
static void plain_done(struct om_op *op, int status, const struct om_error *error) {
        complete(&((struct plain_op *) op)->wait, status, error);
}

void user_close(struct user *u) {
        struct plain_op close = { .op.done = plain_done, .wait.user = u };
        ck_assert_int_eq(user_finish(u, &close.wait, u->ops->close(u->store, &close.op, &u->error)), 0);
        u->ops->destroy(u->store);
        om_arena_deinit(&u->arena);
        om_loop_free(u->loop);
}

/* Arenas of several operations end as one: their chunks are of malloc, so the newest chunk is simply kept in a list of its own. */
static struct om_span keep(struct user *u, struct om_span s) { return om_arena_copy(&u->arena, s); }

static struct om_store_entry keep_entry(struct user *u, struct om_store_entry e) {
        e.key = keep(u, e.key);
        e.name = keep(u, e.name);
        e.value = keep(u, e.value);
        e.topic = keep(u, e.topic);
        e.status = keep(u, e.status);
        return e;
}

static void put_done(struct om_op *op, int status, const struct om_error *error) {
        complete(&((struct user_put *) op)->wait, status, error);
}

int user_put_start(struct user *u, struct user_put *p, enum om_store_kind kind, const struct om_store_entry *entry) {
        *p = (struct user_put){ .wait.user = u, .entry = *entry };
        p->put = (struct om_store_put){ .op.done = put_done, .kind = kind, .entries = &p->entry, .n = 1, .outcomes = &p->outcome };
        int r = u->ops->put(u->store, &p->put, &u->error);
        p->wait.returned = true;
        return r;
}

int user_put(struct user *u, enum om_store_kind kind, const struct om_store_entry *entry) {
        struct user_put p;
        int r = user_finish(u, &p.wait, user_put_start(u, &p, kind, entry));
        return r < 0 ? r : p.outcome.status;
}

int user_put_many(struct user *u, enum om_store_kind kind, const struct om_store_entry *entries, size_t n, struct om_outcome *outcomes) {
        struct user_put p = { .wait.user = u };
        p.put = (struct om_store_put){ .op.done = put_done, .kind = kind, .entries = entries, .n = n, .outcomes = outcomes };
        return user_finish(u, &p.wait, u->ops->put(u->store, &p.put, &u->error));
}

int user_result(struct user *u, const char *id, const char *agent, const char *value, int64_t saved_ms, int64_t expires_ms) {
        struct om_store_entry e = { .key = om_span_of(id),
                .name = om_span_of(agent),
                .value = om_span_of(value),
                .saved_ms = saved_ms,
                .expires_ms = expires_ms,
                .topic = OM_SPAN("greet"),
                .status = OM_SPAN("completed") };
        return user_put(u, OM_STORE_RESULTS, &e);
}

struct get_op {
        struct om_store_get get;
        struct wait wait;
};
static void get_done(struct om_op *op, int status, const struct om_error *error) { complete(&((struct get_op *) op)->wait, status, error); }

int user_get(struct user *u, enum om_store_kind kind, struct om_span key, struct om_span name, struct om_store_entry *ret) {
        struct get_op g = { .get = { .op.done = get_done, .kind = kind, .key = key, .name = name }, .wait.user = u };
        int r = user_finish(u, &g.wait, u->ops->get(u->store, &g.get, &u->error));
        if (r == 0)
                *ret = keep_entry(u, g.get.entry);
        om_arena_deinit(&g.get.arena);
        return r;
}

const char *user_value(struct user *u, enum om_store_kind kind, const char *key, const char *name) {
        struct om_store_entry e;
        int r = user_get(u, kind, om_span_of(key), om_span_of(name), &e);
        ck_assert_msg(r == 0 || r == -ENOENT, "%s: %s", key, u->error.message);
        return r == 0 ? e.value.p : "none";
}

struct list_op {
        struct om_store_list list;
        struct wait wait;
};
static void list_done(struct om_op *op, int status, const struct om_error *error) {
        complete(&((struct list_op *) op)->wait, status, error);
}

int user_list(struct user *u, struct om_store_list *in) {
        struct list_op l = { .list = *in, .wait.user = u };
        l.list.op.done = list_done;
        int r = user_finish(u, &l.wait, u->ops->list(u->store, &l.list, &u->error));
        in->n = r == 0 ? l.list.n : 0;
        in->next_cursor = r == 0 ? keep(u, l.list.next_cursor) : OM_SPAN_NONE;
        in->entries = om_arena_alloc(&u->arena, (in->n + 1) * sizeof(in->entries[0]));
        for (size_t i = 0; i < in->n; i++)
                in->entries[i] = keep_entry(u, l.list.entries[i]);
        om_arena_deinit(&l.list.arena);
        return r;
}

struct delete_op {
        struct om_store_delete delete;
        struct wait wait;
};
static void delete_done(struct om_op *op, int status, const struct om_error *error) {
        complete(&((struct delete_op *) op)->wait, status, error);
}

int64_t user_delete(struct user *u, enum om_store_kind kind, const char *key, const char *name) {
        struct delete_op d = { .delete = { .op.done = delete_done, .kind = kind, .key = om_span_of(key), .name = om_span_of(name) },
                .wait.user = u };
        int r = user_finish(u, &d.wait, u->ops->remove(u->store, &d.delete, &u->error));
        return r < 0 ? r : (int64_t) d.delete.ret_n;
}

struct absent_op {
        struct om_store_put_if_absent put;
        struct wait wait;
};
static void absent_done(struct om_op *op, int status, const struct om_error *error) {
        complete(&((struct absent_op *) op)->wait, status, error);
}

int user_put_if_absent(struct user *u, const char *key, const char *value, int64_t expires_ms, const char **ret_value) {
        struct absent_op a = {
                .put = { .op.done = absent_done, .key = om_span_of(key), .value = om_span_of(value), .expires_ms = expires_ms },
                .wait.user = u
        };
        int r = user_finish(u, &a.wait, u->ops->put_if_absent(u->store, &a.put, &u->error));
        if (r == 0 && !a.put.ret_stored && ret_value)
                *ret_value = keep(u, a.put.ret_value).p;
        om_arena_deinit(&a.put.arena);
        return r < 0 ? r : a.put.ret_stored;
}

struct health_op {
        struct om_store_health health;
        struct wait wait;
};
static void health_done(struct om_op *op, int status, const struct om_error *error) {
        complete(&((struct health_op *) op)->wait, status, error);
}

const char *user_health(struct user *u) {
        struct health_op h = { .health.op.done = health_done, .wait.user = u };
        int r = user_finish(u, &h.wait, u->ops->health(u->store, &h.health, &u->error));
        ck_assert_msg(r == 0, "%s", u->error.message);
        const char *text = keep(u, h.health.info).p;
        om_arena_deinit(&h.health.arena);
        return text;
}

/* -- files --------------------------------------------------------------------------------------------------------- */

char *test_folder(void) {
        char *folder = strdup("/tmp/omni-test-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        return folder;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) { return remove(path); }

void test_folder_remove(char *folder) {
        nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
        free(folder);
}

static int open_in(const char *folder, const char *name, int flags) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s", folder, name);
        return open(path, flags | O_CLOEXEC, 0600);
}

char *test_read_file(const char *folder, const char *name, size_t *ret_len) {
        struct stat st;
        int fd = open_in(folder, name, O_RDONLY);
        if (fd < 0)
                return NULL;
        ck_assert_int_eq(fstat(fd, &st), 0);
        char *data = calloc(1, (size_t) st.st_size + 1);
        ck_assert_int_eq(read(fd, data, (size_t) st.st_size), st.st_size);
        close(fd);
        if (ret_len)
                *ret_len = (size_t) st.st_size;
        return data;
}

void test_write_file(const char *folder, const char *name, const void *data, size_t len) {
        int fd = open_in(folder, name, O_WRONLY | O_CREAT | O_TRUNC);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, data, len), (ssize_t) len);
        close(fd);
}

bool test_file_exists(const char *folder, const char *name) {
        int fd = open_in(folder, name, O_RDONLY);
        if (fd >= 0)
                close(fd);
        return fd >= 0;
}
