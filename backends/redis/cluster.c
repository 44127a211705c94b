/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cluster's map: which server has which slots (CLUSTER SLOTS), kept right by redirects, failures and asking again.
 *
 * Always true:
 *   - a slot points to the node that was last said to have it. A MOVED mends its slot at once and has the whole map asked for, soon;
 *   - while a server that has slots does not answer, or the map is not known, the map is asked for again and again, with backoff, from one
 *     reachable node after another: that is how a failover is found;
 *   - at rest no timer runs;
 *   - the client is READY when the map is known, a primary answers, and every other has been tried.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"

enum { ASK_BASE_MS = 100, ASK_MAX_MS = 1000 };

static void ask_later(struct om_redis *r, int64_t ms) {
        struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

        if (!evtimer_pending(r->map_timer, NULL))
                event_add(r->map_timer, &tv);
}

static int64_t backoff(struct om_redis *r) {
        int64_t ms = om_backoff_ms(ASK_BASE_MS, ASK_MAX_MS, r->map_tries < 8 ? r->map_tries : 8);

        r->map_tries++;
        return ms;
}

void om_redis_cluster_stale(struct om_redis *r) {
        r->map_stale = true;
        ask_later(r, r->map_tries ? backoff(r) : (r->map_tries = 1, 1));
}

struct om_redis_node *om_redis_cluster_node(struct om_redis *r, int slot) {
        if (!r->map_known)
                return NULL;
        if (slot >= 0)
                return r->slots[slot];
        for (size_t i = 0; i < r->n_nodes; i++)
                if (r->nodes[i]->primary && om_redis_link_ready(r->nodes[i]->link))
                        return r->nodes[i];
        return NULL;
}

/* -- state ----------------------------------------------------------------------------------------------------------- */

static void look(struct om_redis *r, const struct om_error *why) {
        size_t ready = 0, untried = 0;
        struct om_error e;

        for (size_t i = 0; i < r->n_nodes; i++) {
                const struct om_redis_node *node = r->nodes[i];

                if (!node->primary)
                        continue;
                if (om_redis_link_ready(node->link))
                        ready++;
                else if (!node->failed)
                        untried++;
        }
        if (r->map_known && ready && (!untried || r->ready)) {
                om_redis_told(r, true, NULL);
                return;
        }
        if (!why && !r->ready)
                return;
        if (!why) {
                om_error_set(&e, OM_UNAVAILABLE, "redis: no server of the cluster answers");
                why = &e;
        }
        om_redis_told(r, false, why);
}

/* -- the map --------------------------------------------------------------------------------------------------------- */

static struct om_redis_node *node_for(struct om_redis *r, struct om_span host, int64_t port) {
        struct om_redis_node *node;
        char name[256];

        if (!host.len || host.len >= sizeof name || memchr(host.p, 0, host.len) || port < 1 || port > UINT16_MAX)
                return NULL;
        node = om_redis_node_find(r, host, (uint16_t) port);
        if (node)
                return node;
        memcpy(name, host.p, host.len);
        name[host.len] = 0;
        if (om_redis_node_add(r, name, (uint16_t) port, &node) < 0)
                return NULL;
        return node;
}

struct om_redis_node *om_redis_cluster_redirect(struct om_redis_node *from, struct om_span text, int *ret_slot) {
        const char *space = memchr(text.p, ' ', text.len), *colon = NULL;
        struct om_redis_node *node;
        struct om_span host;
        char *end;
        long slot, port;

        if (!space)
                return NULL;
        slot = strtol(space + 1, &end, 10); /* the text ends with a zero */
        if (*end != ' ' || slot < 0 || slot >= OM_REDIS_SLOTS)
                return NULL;
        for (const char *p = end; *p; p++)
                if (*p == ':')
                        colon = p;
        if (!colon)
                return NULL;
        host = (struct om_span){ end + 1, (size_t) (colon - end - 1) };
        port = strtol(colon + 1, NULL, 10);
        if (!host.len)
                host = om_span_of(from->address.host);
        node = node_for(from->r, host, port);
        if (!node)
                return NULL;
        *ret_slot = (int) slot;
        if (!node->primary) {
                node->primary = true;
                node->failed = false;
        }
        om_redis_link_go(node->link, &node->address, 1, false);
        return node;
}

static bool read_range(struct om_redis *r, const struct om_redis_reply *range, struct om_span asked, struct om_redis_node **slots) {
        int64_t from = om_redis_int(om_redis_at(range, 0), -1), to = om_redis_int(om_redis_at(range, 1), -1);
        const struct om_redis_reply *primary = om_redis_at(range, 2);
        struct om_span host = om_redis_at(primary, 0)->text;
        struct om_redis_node *node;

        if (from < 0 || to < from || to >= OM_REDIS_SLOTS)
                return false;
        node = node_for(r, host.len && !om_span_is(host, "?") ? host : asked, om_redis_int(om_redis_at(primary, 1), 0));
        if (!node)
                return false;
        node->marked = true;
        for (int64_t i = from; i <= to; i++)
                slots[i] = node;
        return true;
}

/* Whether it is a map. It is taken over as a whole, or not at all. */
static bool read_map(struct om_redis *r, const struct om_redis_reply *reply, struct om_span asked, bool *ret_changed) {
        struct om_redis_node **slots = calloc(OM_REDIS_SLOTS, sizeof(struct om_redis_node *));
        bool good = slots && reply->type == OM_REDIS_ARRAY && reply->n > 0 && reply->n <= OM_REDIS_SLOTS;

        for (size_t i = 0; i < r->n_nodes; i++)
                r->nodes[i]->marked = false;
        for (size_t i = 0; good && i < reply->n; i++)
                good = read_range(r, om_redis_at(reply, i), asked, slots);
        if (!good) {
                free(slots);
                return false;
        }
        *ret_changed = !r->map_known || memcmp(slots, r->slots, OM_REDIS_SLOTS * sizeof(struct om_redis_node *)) != 0;
        free(r->slots);
        r->slots = slots;
        r->map_known = true;
        for (size_t i = 0; i < r->n_nodes; i++) {
                struct om_redis_node *node = r->nodes[i];

                if (node->marked && !node->primary)
                        node->failed = false;
                node->primary = node->marked;
                if (node->marked)
                        om_redis_link_go(node->link, &node->address, 1, false);
        }
        return true;
}

static bool all_answer(const struct om_redis *r) {
        for (size_t i = 0; i < r->n_nodes; i++)
                if (r->nodes[i]->primary && !om_redis_link_ready(r->nodes[i]->link))
                        return false;
        return r->map_known;
}

static void on_map(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis_node *node = c->owner;
        struct om_redis *r = node->r;
        bool changed = false, good;
        struct om_error e;

        om_redis_cmd_free(c);
        r->map_asked = false;
        if (r->dead)
                return;
        good = status == 0 && read_map(r, reply, om_span_of(node->address.host), &changed);
        r->map_stale = !good;
        if (good && all_answer(r))
                r->map_tries = 0;
        else
                ask_later(r, backoff(r));
        if (changed && r->events->moved)
                r->events->moved(r->ctx);
        if (r->dead)
                return;
        if (good) {
                look(r, NULL);
        } else if (!r->map_known) {
                if (!error || status == 0) {
                        om_error_set(
                                &e, OM_UNAVAILABLE, "redis %s: the server says nothing of a cluster's slots", om_redis_node_name(node));
                        error = &e;
                }
                look(r, error);
        }
}

static void ask(struct om_redis *r) {
        struct om_redis_node *node = NULL;
        struct om_redis_cmd *c;
        struct om_error e;

        if (r->map_asked)
                return;
        for (size_t i = 0; i < r->n_nodes && !node; i++) {
                struct om_redis_node *candidate = r->nodes[(r->ask_at + i) % r->n_nodes];

                if (om_redis_link_ready(candidate->link)) {
                        node = candidate;
                        r->ask_at += i + 1;
                }
        }
        c = node ? om_redis_cmd_new("CLUSTER") : NULL;
        om_redis_arg_text(c, "SLOTS");
        if (c) {
                c->answer = on_map;
                c->owner = node;
                r->map_asked = om_redis_link_send(node->link, c, &e) == 0;
                if (!r->map_asked)
                        om_redis_cmd_free(c);
        }
        if (!r->map_asked)
                ask_later(r, backoff(r));
}

static void on_map_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_redis *r = ctx;

        if (r->map_stale || !all_answer(r))
                ask(r);
}

void om_redis_cluster_node_state(struct om_redis_node *node, enum om_redis_state state, const struct om_error *error) {
        struct om_redis *r = node->r;

        if (state == OM_REDIS_READY) {
                node->failed = false;
                if (!r->map_known)
                        ask(r);
                else if (all_answer(r) && !r->map_stale)
                        r->map_tries = 0;
                look(r, NULL);
                return;
        }
        node->failed = true;
        if (!node->primary && r->map_known) {
                /* Nobody's keys are there any more; the seed stays known, and is tried again when all else fails. */
                return;
        }
        om_redis_cluster_stale(r);
        look(r, r->map_known ? NULL : error);
}

int om_redis_cluster_start(struct om_redis *r, struct om_error *e) {
        const struct om_redis_settings *s = r->settings;
        struct om_redis_node *node;

        r->slots = calloc(OM_REDIS_SLOTS, sizeof(struct om_redis_node *));
        r->map_timer = evtimer_new(r->host->base, on_map_timer, r);
        if (!r->slots || !r->map_timer)
                return om_error_set_errno(e, ENOMEM, "redis: the cluster's map");
        for (size_t i = 0; i < s->n_hosts; i++) {
                if (om_redis_node_find(r, om_span_of(s->hosts[i].host), s->hosts[i].port))
                        continue;
                if (om_redis_node_add(r, s->hosts[i].host, s->hosts[i].port, &node) < 0)
                        return om_error_set_errno(e, ENOMEM, "redis: the cluster's map");
                om_redis_node_go(node, false);
        }
        return 0;
}

void om_redis_cluster_stop(struct om_redis *r) {
        if (r->map_timer)
                event_free(r->map_timer);
        r->map_timer = NULL;
}
