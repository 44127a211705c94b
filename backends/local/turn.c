/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A turn of the bus thread: everything that was submitted since the last one, in one transaction, with one sync.
 *
 *   take the messages ─▶ apply ─▶ flush ─▶ commit ─▶ complete ─▶ hand out ─▶ answer queries ─▶ one post to the loop
 *
 * Always true:
 *   - nothing is completed or handed out before the commit that holds it;
 *   - a transaction that fails is undone by forgetting all memory and reading the disk again. When it failed because the map was full, the
 *     map grows and the turn is applied again; for any other reason its operations fail with `unavailable`, the environment is closed and
 *     opened again, and a trial commit must succeed before anything else is taken. A sync that failed is never repeated;
 *   - what the core holds stays the core's through all that, as long as its rows are there.
 *
 * Bus thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "state.h"

enum { GROWTHS_MAX = 48, REOPEN_MIN_MS = 100, REOPEN_MAX_MS = 10000 };
#define MAP_SPARE ((size_t) 16 << 20)

/* -- what goes to the loop ----------------------------------------------------------------------------------------- */

struct news *bus_news(struct om_bus *b) {
        if (!b->news) {
                b->news = calloc(1, sizeof *b->news);
                if (!b->news)
                        return NULL;
                b->news->post.fn = news_run;
                b->news->bus = b;
                b->news->batches_end = &b->news->batches;
        }
        return b->news;
}

/* Without memory for it, the next turn tries again. */
static void tell_what_is_untold(struct om_bus *b) {
        struct news *n = b->untold ? bus_news(b) : NULL;

        if (!n)
                return;
        n->state_changed = true;
        n->state = b->new_state;
        n->error = b->new_error;
        b->untold = false;
}

void bus_state(struct om_bus *b, enum om_bus_state state, const struct om_error *error) {
        b->untold = true;
        b->new_state = state;
        b->new_error = error ? *error : (struct om_error) OM_ERROR_INIT;
        tell_what_is_untold(b);
}

struct batch *news_batch(struct om_bus *b, struct om_bus_sub *sub, bool revoked, struct batch *last) {
        struct news *n;
        struct batch *batch;
        size_t cap;

        if (last && last->n < last->cap && last->revoked == revoked)
                return last;
        n = bus_news(b);
        cap = revoked ? 64 : sub->want < 1024 ? sub->want : 1024;
        batch = n ? malloc(sizeof *batch + cap * sizeof(struct om_delivery *)) : NULL;
        if (!batch)
                return NULL;
        *batch = (struct batch){ .sub = sub, .cap = cap, .revoked = revoked };
        *n->batches_end = batch;
        n->batches_end = &batch->next;
        return batch;
}

void sub_expired(struct om_bus *b, struct group *g, uint64_t n) {
        struct om_bus_sub *s = g->sub;

        if (!s)
                return;
        s->expired += n;
        if (!s->expired_queued) {
                s->expired_queued = true;
                s->expired_next = b->expired_subs;
                b->expired_subs = s;
        }
}

static void forget_expired(struct om_bus *b) {
        for (struct om_bus_sub *s = b->expired_subs; s; s = s->expired_next) {
                s->expired_queued = false;
                s->expired = 0;
        }
        b->expired_subs = NULL;
}

static void report_expired(struct om_bus *b) {
        for (struct om_bus_sub *s = b->expired_subs; s; s = s->expired_next) {
                struct news *n = bus_news(b);
                struct expired_note *note = n ? malloc(sizeof *note) : NULL;

                if (!note)
                        continue;
                *note = (struct expired_note){ n->expired, s, s->expired };
                n->expired = note;
        }
        forget_expired(b);
}

void msg_done(struct om_bus *b, struct msg *m, int status) {
        if (status && !m->status)
                m->status = status;
        m->next = NULL;
        *b->done_end = m;
        b->done_end = &m->next;
}

static void run_done(struct om_post *post) {
        struct msg *m = (struct msg *) (void *) ((char *) post - offsetof(struct msg, post));
        struct news n = { .bus = m->bus, .done = m };

        news_run(&n.post);
}

static void post_news(struct om_bus *b) {
        report_expired(b);
        tell_what_is_untold(b);
        for (struct batch *batch = b->news ? b->news->batches : NULL; batch; batch = batch->next)
                batch->sub->batch = NULL;
        if (b->done && !bus_news(b)) { /* no memory: the first message carries the others */
                b->done->post.fn = run_done;
                om_host_post(b->host, &b->done->post);
        } else if (b->news) {
                b->news->done = b->done;
                om_host_post(b->host, &b->news->post);
        }
        b->news = NULL;
        b->done = NULL;
        b->done_end = &b->done;
}

/* -- groups served ------------------------------------------------------------------------------------------------- */

/* 1: not now, rows of a group before it are still being deleted. */
static int subscribe_apply(struct om_bus *b, struct msg_subscribe *m) {
        struct om_span topic = { m->topic, m->topic_len }, agent = { m->agent, m->agent_len };
        struct group *g = group_find(b, topic, agent);
        int r = 0;

        m->m.status = 0;
        m->created = !g || g->deleted;
        if (g && g->sub && !g->sub->leaving) {
                m->m.status = om_error_set(&m->m.error, OM_EXISTS, "the group is served already");
                return 0;
        }
        if (!m->created) {
                m->group_id = g->id;
                return group_load(b, b->txn, g);
        }
        if (jobs_block_start(b))
                return -1;
        if (!g) {
                r = group_make(b, topic, agent, &g);
        } else {
                g->deleted = false;
                g->loaded = true;
                g->finished = g->expired = 0;
                g->created_ms = b->now_ms;
                group_dirty(b, g);
        }
        if (!r)
                r = group_start(b, g, m->start, m->start_ms);
        if (!r)
                m->group_id = g->id;
        return r;
}

static void subscribe_committed(struct om_bus *b, struct msg_subscribe *m) {
        struct om_bus_sub *s = m->sub;

        if (m->m.status)
                return;
        s->group_id = m->group_id;
        s->group = group_by_id(b, m->group_id);
        if (s->group && s->group->deleted) /* by a change in the same turn */
                s->group = NULL;
        if (s->group)
                s->group->sub = s;
        s->next = b->subs;
        if (b->subs)
                b->subs->prev = s;
        b->subs = s;
}

static int never_out_one(struct om_bus *b, struct held *h) {
        bool below = h->id.seq < h->at->lanes[h->id.lane].handed;

        return below && h->key && !h->has_pend && !h->attempts ? pend_put(b, h, 0, 0) : 0;
}

/* Those that wait for their key, or did and were not handed out since, stand below the mark where others of their lane were handed out:
 * without a word they would come back as a second attempt. */
static int never_out(struct om_bus *b, struct group *g) {
        struct key_queue *q, *tmp;
        int r = 0;

        for (unsigned i = 0; i < LANES; i++)
                for (struct held *h = g->ready[i]; h && !r; h = h->q_next)
                        r = never_out_one(b, h);
        HASH_ITER (hh, g->keys, q, tmp)
                for (struct held *h = q->first; h && !r; h = h->q_next)
                        r = never_out_one(b, h);
        return r;
}

/* What was on its way to a group that is not served any more comes back, not counted. */
static int unsubscribe_apply(struct om_bus *b, struct om_bus_sub *s) {
        s->leaving = true;
        if (s->group && s->group->keys) {
                int r = never_out(b, s->group);

                if (r)
                        return r;
        }
        for (struct local_delivery *d = s->out; d; d = d->next) {
                struct held *h = d->held;
                int r;

                if (!h)
                        continue;
                held_not_redelivered(b, h); /* or the flush would count it after all */
                r = pend_put(b, h, h->attempts, 0);
                if (r)
                        return r;
        }
        return 0;
}

/* Its deliveries stay on `out`: the loop gives their memory back. */
static void unsubscribe_end(struct om_bus *b, struct om_bus_sub *s) {
        bool linked = s->prev || b->subs == s;

        if (s->group && s->group->sub == s)
                s->group->sub = NULL;
        s->group = NULL;
        for (struct local_delivery *d = s->out; d; d = d->next)
                if (d->held) {
                        d->held->delivery = NULL;
                        held_ready(b, d->held);
                        d->held = NULL;
                }
        if (!linked)
                return;
        if (s->prev)
                s->prev->next = s->next;
        else
                b->subs = s->next;
        if (s->next)
                s->next->prev = s->prev;
        s->prev = s->next = NULL;
}

static void want(struct om_bus *b, struct om_bus_sub *s) {
        uint64_t word = atomic_exchange(&s->want_word, 0);
        unsigned n = (unsigned) (word >> 32) & 0x7fffffff;
        uint32_t on_the_way = s->sent - (uint32_t) word;

        s->want = n > on_the_way ? n - on_the_way : 0;
        if (s->group)
                group_wake(b, s->group);
}

/* -- the transaction ----------------------------------------------------------------------------------------------- */

struct turn {
        struct msg *writes, **writes_end;
        struct msg *queries, **queries_end;
        struct msg *close;
        size_t bytes;
};

static int apply_all(struct om_bus *b, struct turn *t) {
        int r = 0;

        b->last_log = NULL;
        for (struct msg *m = t->writes; m && !r; m = m->next) {
                switch (m->type) {
                case MSG_PUBLISH:
                        r = publish_apply(b, (struct msg_publish *) m);
                        break;
                case MSG_SETTLE:
                        r = settle_apply(b, (struct msg_settle *) m);
                        break;
                case MSG_SUBSCRIBE:
                        r = subscribe_apply(b, (struct msg_subscribe *) m);
                        m->again = r == -1;
                        r = r == -1 ? 0 : r;
                        break;
                case MSG_UNSUBSCRIBE:
                        r = unsubscribe_apply(b, m->sub);
                        break;
                case MSG_CHANGE:
                        r = change_apply(b, (struct msg_change *) m);
                        break;
                case MSG_WANT:
                case MSG_QUERY:
                case MSG_START:
                case MSG_CLOSE:
                        break;
                }
        }
        if (!r)
                r = sweep_apply(b);
        if (!r)
                r = jobs_slice(b);
        return r ? r : model_flush(b);
}

/* Changes that wait for jobs lose them when memory is forgotten: the dying marks have made new ones, letters get theirs again. */
static int readopt(struct om_bus *b) {
        for (struct msg *m = b->waiters; m; m = m->next) {
                struct msg_change *c = (struct msg_change *) m;
                int r = 0;

                c->n_slice = 0;
                if (c->end_id > c->next_id)
                        r = job_add(b, JOB_LETTERS, NULL, NULL, NULL, c);
                if (r)
                        return r;
                m->serial = b->next_serial - 1;
        }
        return 0;
}

static int transact(struct om_bus *b, struct turn *t) {
        uint64_t tasks = b->commit_tasks;
        int r;

        for (unsigned i = 0; i < GROWTHS_MAX; i++) {
                r = env_grow(b, MAP_SPARE + 4 * t->bytes);
                if (!r)
                        r = txn_begin(b);
                if (!r) {
                        r = apply_all(b, t);
                        if (r)
                                txn_abort(b);
                        else
                                r = txn_commit(b);
                }
                if (r != MDB_MAP_FULL)
                        break;
                b->commit_tasks = tasks;
                forget_expired(b);
                r = env_grow(b, b->map_bytes);
                if (!r)
                        r = model_reload(b);
                if (!r)
                        r = readopt(b);
                if (r)
                        break;
        }
        if (r)
                b->commit_tasks = tasks;
        return r;
}

static void change_committed(struct om_bus *b, struct msg_change *m) {
        if (m->m.status || !b->jobs) {
                m->n += m->n_slice;
                m->n_slice = 0;
                msg_done(b, &m->m, 0);
                return;
        }
        m->m.serial = b->next_serial - 1;
        m->m.next = b->waiters;
        b->waiters = &m->m;
}

static void committed(struct om_bus *b, struct turn *t) {
        struct msg *next;

        b->marks_due = INT64_MAX;
        if (b->settings.durability == DURABILITY_INTERVAL && b->sync_due == INT64_MAX)
                b->sync_due = om_clock_ms() + b->settings.sync_interval_ms;
        /* Before jobs_committed(): those that changed something wait with the others for the jobs that they made. */
        for (struct msg *m = t->writes; m; m = next) {
                next = m->next;
                if (m->again) {
                        m->next = b->deferred;
                        b->deferred = m;
                        continue;
                }
                if (m->type == MSG_CHANGE) {
                        change_committed(b, (struct msg_change *) m);
                        continue;
                }
                if (m->type == MSG_SETTLE)
                        settle_committed(b, (struct msg_settle *) m);
                else if (m->type == MSG_SUBSCRIBE)
                        subscribe_committed(b, (struct msg_subscribe *) m);
                else if (m->type == MSG_UNSUBSCRIBE)
                        unsubscribe_end(b, m->sub);
                msg_done(b, m, 0);
        }
        jobs_committed(b);
}

/* -- failing and coming back --------------------------------------------------------------------------------------- */

static void fail_all(struct om_bus *b, struct msg *list, const struct om_error *error) {
        struct msg *next;

        for (struct msg *m = list; m; m = next) {
                next = m->next;
                if (m->type == MSG_UNSUBSCRIBE)
                        unsubscribe_end(b, m->sub);
                m->error = *error;
                m->status = om_kind_errno(error->kind);
                msg_done(b, m, 0);
        }
}

/* A commit of nothing of importance: whether there is room and the disk takes it. */
static int trial(struct om_bus *b) {
        uint8_t v[8];
        int r = txn_begin(b);

        if (r)
                return r;
        be64(v, b->commits);
        r = t_put(b, T_META, "trial", 5, v, sizeof v);
        if (r) {
                txn_abort(b);
                return r;
        }
        return txn_commit(b);
}

static void reopen(struct om_bus *b) {
        struct om_error e = OM_ERROR_INIT;
        int r = env_open(b, &e);

        if (!r) {
                r = trial(b);
                if (!r)
                        r = model_reload(b);
                if (r)
                        env_error(&e, b, r, "trying again");
        }
        if (!r) {
                om_host_log(b->host, OM_LOG_NOTICE, "embedded bus in %s: available again", b->path);
                b->failed = false;
                b->n_failures = 0;
                bus_state(b, OM_BUS_READY, NULL);
                return;
        }
        model_free(b);
        env_close(b);
        b->retry_at = om_clock_ms() + om_backoff_ms(REOPEN_MIN_MS, REOPEN_MAX_MS, b->n_failures++);
}

static void fail(struct om_bus *b, struct turn *t, int code) {
        struct msg *waiters = b->waiters, *deferred = b->deferred;
        struct om_error e = OM_ERROR_INIT;

        env_error(&e, b, code, "cannot commit");
        om_host_log(b->host, OM_LOG_ERROR, "%s", e.message);
        txn_abort(b);
        model_free(b);
        env_close(b);
        b->failed = true;
        b->n_failures = 0;
        b->marks_due = b->sync_due = INT64_MAX;
        b->due_delayed = b->due_ttl = b->due_dedupe = b->due_kept = INT64_MAX;
        b->waiters = b->deferred = NULL;
        forget_expired(b);
        fail_all(b, t->writes, &e);
        fail_all(b, waiters, &e);
        fail_all(b, deferred, &e);
        t->writes = NULL;
        bus_state(b, OM_BUS_FAILED, &e);
        post_news(b);
        reopen(b);
}

/* -- the turn ------------------------------------------------------------------------------------------------------ */

static void sort_messages(struct om_bus *b, struct turn *t, struct om_work *list) {
        struct om_work *next;

        for (struct om_work *w = list; w; w = next) {
                struct msg *m = (struct msg *) w;

                next = w->next; /* the loop may submit a want message again as soon as it is taken */
                switch (m->type) {
                case MSG_WANT:
                        want(b, m->sub);
                        break;
                case MSG_QUERY:
                        m->next = NULL;
                        *t->queries_end = m;
                        t->queries_end = &m->next;
                        break;
                case MSG_START: /* a turn is all that it asks for */
                        break;
                case MSG_CLOSE:
                        t->close = m;
                        break;
                case MSG_PUBLISH:
                case MSG_SUBSCRIBE:
                case MSG_UNSUBSCRIBE:
                case MSG_SETTLE:
                case MSG_CHANGE:
                        m->next = NULL;
                        m->again = false;
                        t->bytes += m->bytes;
                        *t->writes_end = m;
                        t->writes_end = &m->next;
                        break;
                }
        }
        if (!b->failed && b->deferred) {
                *t->writes_end = b->deferred;
                while (*t->writes_end)
                        t->writes_end = &(*t->writes_end)->next;
                b->deferred = NULL;
        }
}

static void write_all(struct om_bus *b, struct turn *t) {
        struct om_error e;
        bool marks = b->marks_due <= om_clock_ms();
        int r = 0;

        if (b->failed) {
                om_error_set(&e, OM_UNAVAILABLE, "embedded bus in %s: not available", b->path);
                fail_all(b, t->writes, &e);
                return;
        }
        if (t->writes || b->jobs || marks || sweep_due(b)) {
                r = transact(b, t);
                if (r) {
                        fail(b, t, r);
                        return;
                }
                committed(b, t);
        }
        if (b->sync_due <= om_clock_ms()) {
                b->sync_due = INT64_MAX;
                r = mdb_env_sync(b->env, 1);
                if (r)
                        fail(b, &(struct turn){ 0 }, r);
        }
}

static void close_all(struct om_bus *b, struct turn *t) {
        int r = 0;

        if (!b->failed && b->marks_due != INT64_MAX)
                r = transact(b, &(struct turn){ 0 });
        if (!b->failed && !r && b->settings.durability != DURABILITY_ALWAYS)
                r = mdb_env_sync(b->env, 1);
        if (r) {
                t->close->status = env_error(&t->close->error, b, r, "cannot write while closing");
                om_host_log(b->host, OM_LOG_ERROR, "%s", t->close->error.message);
        }
        model_free(b);
        env_close(b);
        b->failed = true;
        b->retry_at = INT64_MAX;
}

static int64_t earlier(int64_t a, int64_t b) { return a < b ? a : b; }

/* In how many milliseconds something is due by itself; -1: nothing is. */
static int next_turn(struct om_bus *b) {
        int64_t wall, in = INT64_MAX, clock = om_clock_ms();

        if (b->failed) {
                if (b->retry_at != INT64_MAX)
                        in = b->retry_at - clock;
        } else {
                if (b->jobs || b->fill)
                        return 0;
                in = earlier(b->marks_due, b->sync_due);
                in = in == INT64_MAX ? in : in - clock;
                wall = sweep_next(b);
                if (b->n_heap)
                        wall = earlier(wall, b->heap[0]->due_ms);
                if (wall != INT64_MAX)
                        in = earlier(in, wall - om_now_ms());
        }
        if (b->untold)
                in = earlier(in, REOPEN_MIN_MS);
        if (in == INT64_MAX)
                return -1;
        return in < 0 ? 0 : in > 3600000 ? 3600000 : (int) in;
}

int bus_turn(void *ctx, struct om_work *list) {
        struct om_bus *b = ctx;
        struct turn t = { 0 };
        bool trouble = false;
        struct msg *next;
        int in;

        t.writes_end = &t.writes;
        t.queries_end = &t.queries;
        b->now_ms = om_now_ms();
        sort_messages(b, &t, list);
        if (b->failed && b->retry_at <= om_clock_ms())
                reopen(b);
        write_all(b, &t);
        if (!b->failed) {
                retries_due(b);
                int r = fill(b);

                if (r && r != b->fill_error) /* out of memory, or a row that cannot be read: tried again every REOPEN_MIN_MS, told once */
                        om_host_log(b->host, OM_LOG_ERROR, "embedded bus in %s: cannot read tasks: %s", b->path, mdb_strerror(r));
                b->fill_error = r;
                trouble = r != 0;
        }
        for (struct msg *m = t.queries; m; m = next) {
                next = m->next;
                query_run(b, (struct msg_query *) m);
                msg_done(b, m, 0);
        }
        if (t.close)
                close_all(b, &t);
        post_news(b);
        in = next_turn(b);
        return trouble && in >= 0 && in < REOPEN_MIN_MS ? REOPEN_MIN_MS : in;
}
