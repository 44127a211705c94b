/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for tasks without asking again and again. What no group got at its last read is waited for on a reader, a connection of its own:
 *
 *     one dry group        XREADGROUP … BLOCK 0: the task itself wakes us
 *     several              XREAD … BLOCK 0 over their streams: news wakes us, and they read
 *
 * A command names keys of one server; in a cluster, of one slot. So there is one reader for all groups of a server, and in a cluster one
 * for those of each slot that has a topic.
 *
 * Always true:
 *   - a dry group that wants something is in what its reader waits for, or that wait is being ended (CLIENT UNBLOCK) so that it will be, or
 *     the reader has no connection, and the group asks once a second;
 *   - a reader without groups is freed, but not before its wait is over: what that brings is given back, not lost on the way.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

/* -- ending a wait --------------------------------------------------------------------------------------------------- */

static void reader_pump(struct bus_reader *n);

static void on_unblocked(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct bus_reader *n = ctx;
        struct timeval tv = { 0 };

        n->bus->n_internal--;
        n->unblocking = false;
        if (!n->blocked || om_redis_int(reply, 0) == 1) {
                om_redis_bus_pump_soon(n->bus); /* it may be without groups */
                return;
        }
        /* The server had not got to the wait yet: the two come over different connections. */
        tv.tv_usec = 1000 << (n->unblock_tries < 7 ? n->unblock_tries : 7);
        n->unblock_tries++;
        event_add(n->retry, &tv);
}

static void unblock(struct bus_reader *n) {
        int64_t id = n->reader ? om_redis_reader_id(n->reader) : 0;
        struct om_redis_cmd *c;
        struct om_error e;

        if (n->unblocking || !id || evtimer_pending(n->retry, NULL))
                return;
        c = om_redis_cmd_new("CLIENT");
        om_redis_arg_text(c, "UNBLOCK");
        om_redis_arg_int(c, id);
        n->unblocking = om_redis_send_node(n->at.node, c, on_unblocked, n, &e) == 0;
        n->bus->n_internal += n->unblocking;
        if (!n->unblocking) /* it does not answer, and what waits there may be served elsewhere by now */
                om_redis_reader_anew(n->reader);
}

bool om_redis_sub_direct(const struct om_bus_sub *s) { return s->reader && s->reader->direct == s; }
void om_redis_sub_unblock(struct om_bus_sub *s) { unblock(s->reader); }

/* -- waiting --------------------------------------------------------------------------------------------------------- */

static void over(struct bus_reader *n) {
        for (size_t i = 0; i < n->n_watch; i++)
                if (n->watch[i])
                        n->watch[i]->waiting = false;
        n->n_watch = 0;
        n->blocked = false;
        n->unblock_tries = 0;
        event_del(n->retry);
        n->bus->n_internal--;
        om_redis_bus_pump_soon(n->bus);
}

static void on_direct(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct bus_reader *n = ctx;
        struct om_bus_sub *s = n->direct;
        unsigned count = n->direct_count;

        n->direct = NULL;
        s->waiting = false;
        over(n);
        if (status == -ENOENT)
                om_redis_sub_repair(s);
        else if (status < 0 && !om_redis_is_error(reply, "UNBLOCKED"))
                om_redis_sub_recover(s); /* what it brought may be ours by now */
        else if (status == 0 && reply->type == OM_REDIS_ARRAY)
                s->dry = !om_redis_sub_take_read(s, reply, count);
        om_redis_sub_release(s);
}

static void on_news(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct bus_reader *n = ctx;
        size_t at = 0;

        /* The answer names streams in the order in which we did. */
        for (size_t i = 0; status == 0 && i < reply->n; i++) {
                struct om_span key = om_redis_at(om_redis_at(reply, i), 0)->text;

                for (size_t tried = 0; tried < 2 * n->n_watch; tried++, at = (at + 1) % (2 * n->n_watch)) {
                        struct om_bus_sub *s = n->watch[at / 2];

                        if (!s || !om_span_eq(key, at % 2 ? s->names.again : s->names.stream))
                                continue;
                        s->dry = false;
                        s->woken = true;
                        at = (at + 1) % (2 * n->n_watch);
                        break;
                }
        }
        if (status < 0 && reply) {
                /* One of the keys is at fault, or the user may not: each group's own read says which. */
                for (size_t i = 0; i < n->n_watch; i++)
                        if (n->watch[i])
                                n->watch[i]->dry = false;
        }
        over(n);
        if (status < 0 && reply && !om_redis_is_error(reply, "UNBLOCKED"))
                event_add(n->retry, &(struct timeval){ .tv_sec = 1 });
}

/* A user who may not ask for the connection's number cannot end a wait: then it ends by itself. */
static int64_t block_ms(const struct bus_reader *n) { return om_redis_reader_id(n->reader) ? 0 : 1000; }

static bool wait_direct(struct bus_reader *n, struct om_bus_sub *s) {
        struct om_redis_cmd *c;
        struct om_error e;

        n->direct_count = om_redis_sub_asks(s);
        c = om_redis_sub_read_cmd(s, n->direct_count, block_ms(n), ">", ">");
        om_redis_patience(c, -1);
        if (om_redis_reader_send(n->reader, c, on_direct, n, &e) < 0)
                return false;
        n->direct = s;
        s->waiting = true;
        om_redis_sub_hold(s);
        return true;
}

static bool wait_watch(struct bus_reader *n) {
        struct om_redis_cmd *c = om_redis_cmd_new("XREAD");
        struct om_error e;

        om_redis_arg_text(c, "COUNT");
        om_redis_arg_int(c, 1);
        om_redis_arg_text(c, "BLOCK");
        om_redis_arg_int(c, block_ms(n));
        om_redis_arg_text(c, "STREAMS");
        for (size_t i = 0; i < n->n_watch; i++) {
                om_redis_key(c, n->watch[i]->names.stream);
                om_redis_key(c, n->watch[i]->names.again);
        }
        for (size_t i = 0; i < n->n_watch; i++) {
                om_redis_arg_text(c, n->watch[i]->last);
                om_redis_arg_text(c, n->watch[i]->last_again);
        }
        om_redis_patience(c, -1);
        if (om_redis_reader_send(n->reader, c, on_news, n, &e) < 0) {
                n->n_watch = 0;
                return false;
        }
        for (size_t i = 0; i < n->n_watch; i++)
                n->watch[i]->waiting = true;
        return true;
}

static bool is_dry(const struct om_bus_sub *s) { return s->dry && om_redis_sub_wants(s) && !s->reading && !s->recovering && !s->claiming; }

static int watch_add(struct bus_reader *n, struct om_bus_sub *s) {
        if (n->n_watch == n->cap_watch) {
                size_t cap = n->cap_watch ? 2 * n->cap_watch : 4;
                struct om_bus_sub **more = reallocarray(n->watch, cap, sizeof(struct om_bus_sub *));

                if (!more)
                        return -ENOMEM;
                n->watch = more;
                n->cap_watch = cap;
        }
        n->watch[n->n_watch++] = s;
        return 0;
}

/* Whether each group that is waited for is still one to wait for, and none is left out. */
static bool is_right(const struct bus_reader *n) {
        const struct om_bus_sub *s;

        if (n->direct && !(n->direct->reader == n && n->direct->dry && om_redis_sub_wants(n->direct)))
                return false;
        for (size_t i = 0; i < n->n_watch; i++)
                if (n->watch[i] && !(n->watch[i]->reader == n && n->watch[i]->dry))
                        return false;
        DL_FOREACH2(n->subs, s, peer_next)
        if (!s->waiting && is_dry(s))
                return false;
        return n->subs;
}

/* Waits for what is dry, or ends a wait that is not the right one any more. */
static void reader_pump(struct bus_reader *n) {
        struct om_bus_sub *s;

        if (n->blocked) {
                if (!is_right(n))
                        unblock(n);
                return;
        }
        if (evtimer_pending(n->retry, NULL))
                return;
        n->n_watch = 0;
        DL_FOREACH2(n->subs, s, peer_next)
        if (is_dry(s) && watch_add(n, s) < 0)
                break;
        if (n->n_watch == 0)
                return;
        if (n->n_watch == 1) {
                n->n_watch = 0;
                n->blocked = wait_direct(n, n->watch[0]);
        } else {
                n->blocked = wait_watch(n);
        }
        n->bus->n_internal += n->blocked;
        n->asking = !n->blocked;
        if (n->asking)
                event_add(n->retry, &(struct timeval){ .tv_sec = 1 });
}

static void on_retry(evutil_socket_t fd, short what, void *ctx) {
        struct bus_reader *n = ctx;
        struct om_bus_sub *s;

        if (n->asking) {
                n->asking = false;
                DL_FOREACH2(n->subs, s, peer_next)
                s->dry = false;
        }
        om_redis_bus_pump_soon(n->bus);
}

/* -- readers --------------------------------------------------------------------------------------------------------- */

static void on_reader(void *ctx, enum om_redis_state state, const struct om_error *error) {
        struct bus_reader *n = ctx;

        if (state == OM_REDIS_READY) {
                n->bus->told = n->asking = false;
                event_del(n->retry);
        } else if (error && om_redis_node_ready(n->at.node) && !n->bus->told) {
                n->bus->told = true;
                om_host_log(n->bus->host, OM_LOG_WARNING,
                        "event bus redis: redis %s: no connection to wait for tasks on, so the server is asked once a second: %s",
                        om_redis_node_name(n->at.node), error->message);
        }
        om_redis_bus_pump_soon(n->bus);
}
static const struct om_redis_reader_events reader_events = { on_reader };

static void reader_free(struct bus_reader *n) {
        struct om_redis_reader *reader = n->reader;

        HASH_DEL(n->bus->readers, n);
        n->reader = NULL;
        om_redis_reader_free(reader);
        event_free(n->retry);
        free(n->watch);
        free(n);
}

static struct bus_reader *reader_of(struct om_bus *b, const struct om_bus_sub *s) {
        struct bus_reader_place at = { om_redis_node_of(b->redis, s->names.stream), om_redis_slot_of(b->redis, s->names.stream) };
        struct bus_reader *n = NULL;
        struct om_error e;

        if (at.node)
                HASH_FIND(hh, b->readers, &at, sizeof at, n);
        if (n || !at.node)
                return n;
        n = calloc(1, sizeof *n);
        if (!n)
                return NULL;
        n->bus = b;
        n->at = at;
        n->retry = evtimer_new(b->host->base, on_retry, n);
        if (!n->retry || om_redis_reader_new(at.node, &reader_events, n, &n->reader, &e) < 0) {
                if (n->retry)
                        event_free(n->retry);
                free(n);
                return NULL;
        }
        HASH_ADD(hh, b->readers, at, sizeof n->at, n);
        return n;
}

static void leave(struct om_bus_sub *s) {
        struct bus_reader *n = s->reader;

        if (!n)
                return;
        for (size_t i = 0; i < n->n_watch; i++) {
                if (n->watch[i] != s)
                        continue;
                n->watch[i] = NULL;
                s->waiting = false;
        }
        DL_DELETE2(n->subs, s, peer_prev, peer_next);
        s->reader = NULL;
}

bool om_redis_sub_place(struct om_bus_sub *s) {
        struct bus_reader *n = reader_of(s->bus, s);
        bool moved = s->reader && n && n != s->reader;

        if (!n || n == s->reader)
                return false;
        leave(s);
        DL_APPEND2(n->subs, s, peer_prev, peer_next);
        s->reader = n;
        return moved;
}

void om_redis_sub_forget(struct om_bus_sub *s) {
        leave(s);
        om_redis_bus_pump_soon(s->bus);
}

void om_redis_bus_readers_pump(struct om_bus *b) {
        struct bus_reader *n, *tmp;

        HASH_ITER (hh, b->readers, n, tmp) {
                if (n->subs || n->blocked || n->unblocking)
                        reader_pump(n);
                else
                        reader_free(n);
        }
}

void om_redis_bus_readers_stop(struct om_bus *b) {
        struct bus_reader *n, *tmp;

        HASH_ITER (hh, b->readers, n, tmp) {
                struct om_redis_reader *reader = n->reader;

                n->reader = NULL;
                om_redis_reader_free(reader);
        }
}

void om_redis_bus_readers_free(struct om_bus *b) {
        struct bus_reader *n, *tmp;

        HASH_ITER (hh, b->readers, n, tmp)
                reader_free(n);
}
