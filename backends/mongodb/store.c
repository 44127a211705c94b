/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The storage on MongoDB: `mongodb://USER@HOST/DATABASE`. The documents are document.h's. This file opens it, keeps its threads, and closes
 * it.
 *
 * How it keeps the promises of store.h:
 *   S1  a write completes when the server has acknowledged it with the URL's write concern: majority and journal, unless it says otherwise;
 *   S2  what expires says when in its document, and is not read after it, by the clock of the daemon that reads. A TTL index deletes it a
 *       minute later, so that a server whose clock is ahead deletes nothing early; where the server refuses one the admin thread sweeps;
 *   S3  an insert with the key as _id;  S4  a cursor holds the place itself, or the _id, in an order that an index has;
 *   S5  what is not there is an answer without documents.
 *
 * libmongoc blocks, so there is a thread for writes, which go in the order in which they came and as many in one round trip as wait;
 * threads for reads; and one, the admin, that connects and looks after the server when it was away. Each has a client of one pool, whose
 * monitoring they share. A server that is silent holds a thread for as long as one answer may take, and nobody else: an operation that the
 * core gives up completes at once, and when one thread has found the server away, what waits for the others fails without asking it again.
 *
 * Loop thread, but for what is said to be the threads'.
 */
#include <errno.h>
#include <stdlib.h>

#include "store_state.h"

enum { OPS_MAX = 4096, BYTES_MAX = 128 << 20, BACKOFF_MS = 100, BACKOFF_MAX_MS = 2000, TTL_GRACE_S = 60, TURN_MAX = 1024, BULK_FIRST = 64 };

static void check_closed(struct om_store *s);

#define CONTAINER(pointer, type, field) ((type *) (void *) ((char *) (pointer) -offsetof(type, field)))

/* -- states ----------------------------------------------------------------------------------------------------------- */

/* A thread's word to the loop. It comes before the thread's end does, so the store is there. */
struct news {
        struct om_post post;
        struct om_store *store;
        enum om_store_state state;
        struct om_error error;
};

static void set_state(struct om_store *s, enum om_store_state state, const struct om_error *e) {
        bool same = s->state == state && (state == OM_STORE_READY || strcmp(s->why.message, e->message) == 0);

        s->state = state;
        s->why = state == OM_STORE_READY ? (struct om_error) OM_ERROR_INIT : *e;
        if (!same && !s->closing)
                s->events->state(s->core, state, state == OM_STORE_READY ? NULL : e);
}

static void on_news(struct om_post *post) {
        struct news *n = (struct news *) post;
        struct om_store *s = n->store;

        if (n->state == OM_STORE_READY) {
                s->checking = false;
                atomic_store(&s->up, !s->ending); /* here, so that no thread finds the server away before it is known to be there */
        } else if (!s->checking && !s->ending) {
                s->checking = true;
                s->host->ops->worker_submit(s->admin.worker, &s->check);
        }
        set_state(s, n->state, &n->error);
        free(n);
}

/* A thread's. */
static struct news *news_new(struct om_store *s, enum om_store_state state, const struct om_error *e) {
        struct news *n = calloc(1, sizeof *n);

        if (n) {
                n->post.fn = on_news;
                n->store = s;
                n->state = state;
                if (e)
                        n->error = *e;
        }
        return n;
}

/* Waiting will not help where the server is there and says no. */
static enum om_store_state state_of(const struct om_error *e) {
        return e->kind == OM_UNAVAILABLE || e->kind == OM_TIMEOUT ? OM_STORE_CONNECTING : OM_STORE_FAILED;
}

/* -- jobs ------------------------------------------------------------------------------------------------------------- */

static void job_free(struct om_job *job) {
        struct om_mongo_job *j = (struct om_mongo_job *) (void *) job;

        om_arena_deinit(&j->in);
        om_arena_deinit(&j->out);
        free(j);
}

static void on_cancel(struct om_op *op) {
        struct om_mongo_job *j = op->backend;

        atomic_store(&j->cancelled, true);
        j->cancel_job(op);
}

static void on_back(struct om_post *post) {
        struct om_mongo_job *j = CONTAINER(post, struct om_mongo_job, back);
        struct om_store *s = j->store;

        if (j->thread)
                j->thread->load--;
        if (j->status == 0 && !om_job_is_cancelled(&j->job))
                j->give(j);
        om_job_over(&j->job, j->status, &j->error);
        if (s->closing)
                check_closed(s);
}

int om_mongo_job_new(struct om_store *s, struct om_op *op, size_t size, size_t bytes, void *ret, struct om_error *e) {
        struct om_mongo_job *j;
        int r;

        if (s->state != OM_STORE_READY) {
                if (e)
                        *e = s->why;
                return om_error_set(e, OM_UNAVAILABLE, "%s", s->why.message);
        }
        r = om_job_admit(&s->jobs, OPS_MAX, BYTES_MAX, bytes, "MongoDB", e);
        if (r < 0)
                return r;
        j = calloc(1, size);
        if (!j)
                return om_error_set_errno(e, ENOMEM, "MongoDB");
        j->store = s;
        j->back.fn = on_back;
        om_job_begin(&s->jobs, &j->job, op, bytes, job_free);
        j->cancel_job = op->cancel;
        op->cancel = on_cancel;
        *(void **) ret = j;
        return 0;
}

bool om_mongo_keep(struct om_mongo_job *j, struct om_span from, struct om_span *to) {
        *to = om_arena_copy(&j->in, from);
        return !from.p || to->p;
}

static void give(struct om_mongo_job *j, struct om_mongo_thread *t) {
        t->load++;
        j->thread = t;
        j->store->host->ops->worker_submit(t->worker, &j->work);
}

void om_mongo_submit(struct om_mongo_job *j, bool writes) {
        struct om_store *s = j->store;
        struct om_mongo_thread *best = s->threads;

        if (!writes) {
                best = &s->threads[1];
                for (int64_t i = 2; i < s->settings.connections; i++)
                        if (s->threads[i].load < best->load)
                                best = &s->threads[i];
        }
        give(j, best);
}

void om_mongo_submit_to(struct om_mongo_job *j, size_t thread) {
        if (thread > 0 && thread < (size_t) j->store->settings.connections)
                give(j, &j->store->threads[thread]);
        else
                om_mongo_submit(j, false);
}

void om_mongo_finish(struct om_mongo_job *j) { om_host_post(j->store->host, &j->back); }

void om_mongo_fail_memory(struct om_mongo_job *j) { j->status = om_error_set_errno(&j->error, ENOMEM, "MongoDB"); }

void om_mongo_fail(struct om_mongo_job *j, const bson_error_t *why, const char *doing) {
        struct om_store *s = j->store;
        struct news *n;

        j->status = om_mongo_error(&s->settings, why, doing, &j->error);
        if (!om_mongo_is_away(why) || !atomic_exchange(&s->up, false))
                return;
        n = news_new(s, OM_STORE_CONNECTING, &j->error);
        if (!n) {
                atomic_store(&s->up, true); /* the next one tells it */
                return;
        }
        n->error.kind = OM_UNAVAILABLE;
        om_host_post(s->host, &n->post);
}

mongoc_collection_t *om_mongo_collection(struct om_store *s, mongoc_client_t *client, enum om_store_kind kind) {
        char name[128];

        snprintf(name, sizeof name, "%s%s", s->settings.collection_prefix, om_mongo_name(kind));
        return mongoc_client_get_collection(client, s->settings.database, name);
}

/* -- the threads of jobs ------------------------------------------------------------------------------------------------ */

/* What need not be asked: nobody waits for it, or the server is away. */
static bool is_moot(struct om_mongo_job *j) {
        struct om_store *s = j->store;

        if (atomic_load(&j->cancelled))
                j->status = om_error_set_errno(&j->error, ECANCELED, "MongoDB");
        else if (!atomic_load(&s->up))
                j->status = om_error_set(&j->error, OM_UNAVAILABLE, "MongoDB: %s: the server is away", s->settings.where);
        else
                return false;
        om_mongo_finish(j);
        return true;
}

static void run_jobs(struct om_mongo_thread *t, struct om_mongo_job **jobs, size_t n) {
        for (size_t i = 0, to; i < n; i = to) {
                to = i + 1;
                while (jobs[i]->many && to < n && jobs[to]->many == jobs[i]->many && jobs[to]->kind == jobs[i]->kind)
                        to++;
                if (jobs[i]->many)
                        jobs[i]->many(t, &jobs[i], to - i);
                else
                        jobs[i]->run(t, jobs[i]);
                for (size_t k = i; k < to; k++)
                        om_mongo_finish(jobs[k]);
        }
}

static int job_turn(void *ctx, struct om_work *list) {
        struct om_mongo_thread *t = ctx;

        while (list) {
                struct om_mongo_job *jobs[TURN_MAX];
                size_t n = 0;

                for (struct om_work *next; list && n < TURN_MAX; list = next) {
                        next = list->next;
                        if (list == &t->leave) {
                                om_mongo_drop_kept(t, INT64_MAX);
                                if (t->client)
                                        mongoc_client_pool_push(t->store->pool, t->client);
                                t->client = NULL;
                                continue;
                        }
                        jobs[n] = CONTAINER(list, struct om_mongo_job, work);
                        if (!is_moot(jobs[n]))
                                n++;
                }
                if (n > 0 && !t->client)
                        t->client = mongoc_client_pool_pop(t->store->pool);
                run_jobs(t, jobs, n);
        }
        return -1;
}

/* -- the admin: connecting ---------------------------------------------------------------------------------------------- */

static bool command(struct om_store *s, mongoc_client_t *client, const bson_t *cmd, bson_t *reply, bson_error_t *why) {
        return mongoc_client_command_simple(client, s->settings.database, cmd, NULL, reply, why);
}

static void read_version(struct om_store *s, const bson_t *reply) {
        bson_iter_t i;

        if (bson_iter_init_find(&i, reply, "version") && BSON_ITER_HOLDS_UTF8(&i))
                snprintf(s->version, sizeof s->version, "%.60s", bson_iter_utf8(&i, NULL));
        atomic_store(&s->ferret, bson_has_field(reply, "ferretdbVersion") || bson_has_field(reply, "ferretdb"));
}

static bool make_index(struct om_store *s, mongoc_client_t *client, enum om_store_kind kind, const char *name, const bson_t *keys,
        const bson_t *more, bson_error_t *why) {
        char collection[128];
        bson_t cmd, list, index, reply;
        bool ok;

        snprintf(collection, sizeof collection, "%s%s", s->settings.collection_prefix, om_mongo_name(kind));
        bson_init(&cmd);
        BSON_APPEND_UTF8(&cmd, "createIndexes", collection);
        bson_append_array_begin(&cmd, "indexes", -1, &list);
        bson_append_document_begin(&list, "0", -1, &index);
        BSON_APPEND_DOCUMENT(&index, "key", keys);
        BSON_APPEND_UTF8(&index, "name", name);
        if (more)
                bson_concat(&index, more);
        bson_append_document_end(&list, &index);
        bson_append_array_end(&cmd, &list);
        ok = command(s, client, &cmd, &reply, why);
        bson_destroy(&reply);
        bson_destroy(&cmd);
        return ok;
}

static bool make_plain(struct om_store *s, mongoc_client_t *client, enum om_store_kind kind, const char *name, const char *first,
        const char *second, bson_error_t *why) {
        bson_t keys;
        bool ok;

        bson_init(&keys);
        if (first)
                BSON_APPEND_INT32(&keys, first, 1);
        if (second)
                BSON_APPEND_INT32(&keys, second, -1);
        ok = make_index(s, client, kind, name, &keys, NULL, why);
        bson_destroy(&keys);
        return ok;
}

/* False, and no error of ours, where the server has none: FerretDB. */
static bool make_ttl(struct om_store *s, mongoc_client_t *client, enum om_store_kind kind, bson_error_t *why) {
        bson_t *keys = BCON_NEW("expires_at", BCON_INT32(1)), *more = BCON_NEW("expireAfterSeconds", BCON_INT32(TTL_GRACE_S));
        bool ok = make_index(s, client, kind, "expires_at", keys, more, why);

        bson_destroy(keys);
        bson_destroy(more);
        return ok;
}

static bool make_words(struct om_store *s, mongoc_client_t *client, bson_error_t *why) {
        bson_t *keys = BCON_NEW("text", BCON_UTF8("text")),
               *more = BCON_NEW("default_language", BCON_UTF8("none"), "language_override", BCON_UTF8("-"));
        bool ok = make_index(s, client, OM_STORE_RESULTS, "words", keys, more, why);

        bson_destroy(keys);
        bson_destroy(more);
        return ok;
}

/* Whether this answer means that the server has no such index, and not that something is amiss. */
static bool is_lack(const bson_error_t *why) {
        uint32_t code = om_mongo_code(why);

        return code && code != OM_MONGO_UNAUTHORIZED && !om_mongo_is_away(why);
}

static bool make_indexes(struct om_store *s, mongoc_client_t *client, bson_error_t *why) {
        static const struct {
                enum om_store_kind kind;
                const char *name, *first, *second;
        } plain[] = {
                { OM_STORE_AGENTS, "topic", "topic", NULL },
                { OM_STORE_RESULTS, "place", NULL, "place" },
                { OM_STORE_RESULTS, "task", "task_id", "place" },
                { OM_STORE_RESULTS, "topic", "topic", "place" },
                { OM_STORE_RESULTS, "agent", "agent", "place" },
                { OM_STORE_METRICS, "place", NULL, "place" },
                { OM_STORE_METRICS, "topic", "topic", "place" },
        };
        bool ttl;

        for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
                if (!make_plain(s, client, plain[i].kind, plain[i].name, plain[i].first, plain[i].second, why))
                        return false;
        ttl = make_ttl(s, client, OM_STORE_RESULTS, why) && make_ttl(s, client, OM_STORE_KEYS, why) &&
                make_ttl(s, client, OM_STORE_METRICS, why);
        if (!ttl && !is_lack(why))
                return false;
        atomic_store(&s->ttl, ttl);
        if (!s->settings.text_index)
                return true;
        atomic_store(&s->text, make_words(s, client, why));
        return atomic_load(&s->text) || is_lack(why);
}

static bool connect_server(struct om_store *s, struct om_error *e) {
        bson_error_t why = { 0 };
        bson_t *ask = BCON_NEW("buildInfo", BCON_INT32(1)), reply;
        bool ok;

        if (!s->pool) {
                s->pool = mongoc_client_pool_new_with_error(s->settings.uri, &why);
                if (s->pool)
                        mongoc_client_pool_set_error_api(s->pool, MONGOC_ERROR_API_VERSION_2);
        }
        if (s->pool && !s->admin.client)
                s->admin.client = mongoc_client_pool_pop(s->pool);
        ok = s->admin.client && command(s, s->admin.client, ask, &reply, &why);
        if (ok)
                read_version(s, &reply);
        if (s->admin.client)
                bson_destroy(&reply);
        bson_destroy(ask);
        ok = ok && make_indexes(s, s->admin.client, &why);
        if (!ok)
                om_mongo_error(&s->settings, &why, "connecting", e);
        return ok;
}

/* -- the admin's turn ------------------------------------------------------------------------------------------------------ */

static void tell(struct om_store *s, enum om_store_state state, const struct om_error *e) {
        struct news *n = news_new(s, state, e);

        if (n)
                om_host_post(s->host, &n->post);
        else
                s->check_at_ms = om_clock_ms() + BACKOFF_MS; /* and is told then */
}

static void check(struct om_store *s) {
        struct om_error e = OM_ERROR_INIT;

        if (connect_server(s, &e)) {
                s->attempts = 0;
                s->check_at_ms = 0;
                s->sweep_at_ms = atomic_load(&s->ttl) ? 0 : om_clock_ms() + s->settings.sweep_interval_ms;
                tell(s, OM_STORE_READY, NULL);
                return;
        }
        s->check_at_ms = om_clock_ms() + om_backoff_ms(BACKOFF_MS, BACKOFF_MAX_MS, s->attempts++);
        s->sweep_at_ms = 0;
        tell(s, state_of(&e), &e);
}

static void sweep(struct om_store *s) {
        bson_error_t why = { 0 };
        struct om_error e;

        s->sweep_at_ms = om_clock_ms() + s->settings.sweep_interval_ms;
        if (!atomic_load(&s->up) || om_mongo_sweep(s, s->admin.client, &why))
                return;
        om_mongo_error(&s->settings, &why, "deleting what has expired", &e);
        om_host_log(s->host, OM_LOG_WARNING, "%s", e.message);
}

static void leave(struct om_store *s) {
        if (s->admin.client)
                mongoc_client_pool_push(s->pool, s->admin.client);
        s->admin.client = NULL;
        if (s->pool)
                mongoc_client_pool_destroy(s->pool);
        s->pool = NULL;
        s->check_at_ms = s->sweep_at_ms = 0;
}

static int admin_turn(void *ctx, struct om_work *list) {
        struct om_store *s = ctx;
        int64_t now = om_clock_ms(), next;

        for (struct om_work *w = list, *after; w; w = after) {
                after = w->next;
                if (w == &s->admin.leave) {
                        leave(s);
                        return -1;
                }
                s->check_at_ms = now;
        }
        if (s->check_at_ms && s->check_at_ms <= now)
                check(s);
        if (s->sweep_at_ms && s->sweep_at_ms <= now)
                sweep(s);
        next = s->check_at_ms && (!s->sweep_at_ms || s->check_at_ms < s->sweep_at_ms) ? s->check_at_ms : s->sweep_at_ms;
        now = om_clock_ms();
        return next == 0 ? -1 : next <= now ? 0 : (int) (next - now);
}

/* -- opening ------------------------------------------------------------------------------------------------------------ */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void init_library(void) {
        mongoc_log_set_handler(NULL, NULL); /* errors come back from the calls; standard error is the daemon's */
        mongoc_init();
}

static void store_free(struct om_store *s) {
        if (!s)
                return;
        free(s->threads);
        om_mongo_settings_free(&s->settings);
        free(s);
}

static void on_stopped(struct om_post *post) {
        struct om_mongo_thread *t = CONTAINER(post, struct om_mongo_thread, stopped);
        struct om_store *s = t->store;

        if (++s->stopped < (size_t) s->settings.connections)
                return;
        s->host->ops->worker_submit(s->admin.worker, &s->admin.leave);
        s->host->ops->worker_stop(s->admin.worker, &s->admin.stopped);
}

static void on_admin_stopped(struct om_post *post) {
        struct om_store *s = CONTAINER(CONTAINER(post, struct om_mongo_thread, stopped), struct om_store, admin);
        struct om_op *op = s->closing;

        if (op)
                op->done(op, 0, NULL);
        else
                store_free(s); /* opening failed */
}

static void stop_threads(struct om_store *s) {
        s->ending = true;
        for (int64_t i = 0; i < s->settings.connections; i++) {
                struct om_mongo_thread *t = &s->threads[i];

                if (!t->worker) { /* opening failed before it */
                        on_stopped(&t->stopped);
                        continue;
                }
                s->host->ops->worker_submit(t->worker, &t->leave);
                s->host->ops->worker_stop(t->worker, &t->stopped);
        }
}

static int start(struct om_store *s, struct om_error *e) {
        int r;

        s->threads = calloc((size_t) s->settings.connections, sizeof *s->threads);
        if (!s->threads)
                return om_error_set_errno(e, ENOMEM, "MongoDB");
        s->admin.store = s;
        s->admin.stopped.fn = on_admin_stopped;
        r = s->host->ops->worker_new(s->host, "om-mongo-admin", admin_turn, s, &s->admin.worker, e);
        for (int64_t i = 0; r == 0 && i < s->settings.connections; i++) {
                s->threads[i].store = s;
                s->threads[i].stopped.fn = on_stopped;
                r = s->host->ops->worker_new(
                        s->host, i == 0 ? "om-mongo-write" : "om-mongo-read", job_turn, &s->threads[i], &s->threads[i].worker, e);
        }
        return r;
}

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        struct om_store *s = calloc(1, sizeof *s);
        int r;

        if (!s)
                return om_error_set_errno(e, ENOMEM, "MongoDB");
        pthread_once(&once, init_library);
        s->host = host;
        s->events = events;
        s->core = core;
        s->jobs.host = host;
        s->writer = (uint32_t) om_random_u64();
        s->bulk = BULK_FIRST;
        r = om_mongo_settings_read(&s->settings, url, e);
        if (r == 0)
                r = start(s, e);
        if (r < 0) {
                if (s->admin.worker)
                        stop_threads(s);
                else
                        store_free(s);
                return r;
        }
        om_error_set(&s->why, OM_UNAVAILABLE, "MongoDB: %s: connecting", s->settings.where);
        s->checking = true;
        s->host->ops->worker_submit(s->admin.worker, &s->check);
        *ret = s;
        return 0;
}

/* -- closing ------------------------------------------------------------------------------------------------------------ */

static void check_closed(struct om_store *s) {
        if (!s->ending && s->jobs.n == 0)
                stop_threads(s);
}

static void on_close(struct om_post *post) { check_closed(CONTAINER(post, struct om_store, close_post)); }

/* The core's patience is over: what has not been asked yet is not asked. */
static void close_cancel(struct om_op *op) {
        struct om_store *s = op->backend;

        atomic_store(&s->up, false);
}

static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        op->backend = s;
        op->cancel = close_cancel;
        s->closing = op;
        s->close_post.fn = on_close;
        om_host_post(s->host, &s->close_post);
        return 0;
}

OM_MODULE const struct om_store_ops om_mongodb_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "mongodb",
        .schemes = (const char *const[]){ "mongodb", "mongodb+srv", NULL },
        .doc = "MongoDB collections with TTL indexes",
        .capabilities = OM_STORE_TTL | OM_STORE_SEARCH | OM_STORE_SHARED | OM_STORE_QUERY,
        .options = om_mongo_options,
        .open = store_open,
        .put = om_mongo_store_put,
        .get = om_mongo_store_get,
        .list = om_mongo_store_list,
        .remove = om_mongo_store_remove,
        .put_if_absent = om_mongo_store_put_if_absent,
        .health = om_mongo_store_health,
        .query = om_mongo_store_query,
        .close = store_close,
        .destroy = store_free,
};
