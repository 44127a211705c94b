/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client: nodes, which of them gets a command, redirects, readers.
 *
 * Always true:
 *   - a command that was taken is under way on exactly one link, and counted in `pending`, until its done(); a redirect moves it, a script
 * that the server does not know is sent again as a whole;
 *   - nodes are never freed before the client, so pointers to them stay good; their number is bounded;
 *   - the owner is told last in an event, and after it `dead` is looked at.
 *
 * Loop thread.
 */
#include <errno.h>
#include <event2/dns.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"

enum { REDIRECTS_MAX = 8 };

/* -- telling the owner ----------------------------------------------------------------------------------------------- */

void om_redis_told(struct om_redis *r, bool ready, const struct om_error *why) {
        if (r->dead || (ready && r->ready))
                return;
        r->ready = ready;
        r->why = why ? *why : (struct om_error) OM_ERROR_INIT;
        r->events->state(r->ctx, ready ? OM_REDIS_READY : OM_REDIS_CONNECTING, ready ? NULL : why);
}

static void on_node_state(void *ctx, enum om_redis_state state, const struct om_error *error) {
        struct om_redis_node *node = ctx;
        struct om_redis *r = node->r;

        if (state == OM_REDIS_READY && r->events->node_ready)
                r->events->node_ready(r->ctx, node);
        /* A reader waits without a deadline: what broke the node's connection may have broken its one, and nobody told it. */
        if (state != OM_REDIS_READY && !om_redis_link_silent(node->link))
                for (struct om_redis_reader *reader = node->readers; reader; reader = reader->next)
                        om_redis_reader_anew(reader);
        if (r->dead)
                return;
        if (r->settings->mode == OM_REDIS_CLUSTER) {
                om_redis_cluster_node_state(node, state, error);
                return;
        }
        if (r->settings->mode == OM_REDIS_SENTINEL)
                (state == OM_REDIS_READY ? om_redis_sentinel_found : om_redis_sentinel_ask)(r);
        om_redis_told(r, state == OM_REDIS_READY, error);
}

/* -- nodes ----------------------------------------------------------------------------------------------------------- */

static int link_new(struct om_redis_node *node, bool reader, void (*state)(void *, enum om_redis_state, const struct om_error *), void *ctx,
        struct om_redis_link **ret, struct om_error *e) {
        const struct om_redis *r = node->r;
        const struct om_redis_link_config config = {
                .host = r->host,
                .dns = r->dns,
                .settings = r->settings,
                .tls = r->tls,
                .user = r->settings->user,
                .password = r->settings->password,
                .db = r->settings->db,
                .wants_id = reader,
                .wants_role = r->settings->mode == OM_REDIS_SENTINEL,
                .state = state,
                .ctx = ctx,
        };

        return om_redis_link_new(&config, ret, e);
}

struct om_redis_node *om_redis_node_find(struct om_redis *r, struct om_span host, uint16_t port) {
        for (size_t i = 0; i < r->n_nodes; i++)
                if (r->nodes[i]->address.port == port && r->nodes[i]->address.host && om_span_is(host, r->nodes[i]->address.host))
                        return r->nodes[i];
        return NULL;
}

static void node_free(struct om_redis_node *node) {
        om_redis_link_free(node->link);
        free(node->address.host);
        free(node);
}

int om_redis_node_add(struct om_redis *r, const char *host, uint16_t port, struct om_redis_node **ret) {
        struct om_redis_node **nodes, *node;
        struct om_error e;

        if (r->n_nodes >= OM_REDIS_NODES_MAX)
                return -ENOBUFS;
        nodes = reallocarray(r->nodes, r->n_nodes + 1, sizeof(struct om_redis_node *));
        if (!nodes)
                return -ENOMEM;
        r->nodes = nodes;
        node = calloc(1, sizeof *node);
        if (!node)
                return -ENOMEM;
        node->r = r;
        node->address.port = port;
        node->address.host = host ? strdup(host) : NULL;
        if ((host && !node->address.host) || link_new(node, false, on_node_state, node, &node->link, &e) < 0) {
                node_free(node);
                return -ENOMEM;
        }
        r->nodes[r->n_nodes++] = node;
        *ret = node;
        return 0;
}

void om_redis_node_go(struct om_redis_node *node, bool anew) {
        om_redis_link_go(node->link, &node->address, 1, anew);
        for (struct om_redis_reader *reader = node->readers; reader; reader = reader->next)
                om_redis_link_go(reader->link, &node->address, 1, anew);
}

int om_redis_slot_of(const struct om_redis *r, struct om_span key) {
        return r->settings->mode == OM_REDIS_CLUSTER ? (int) om_redis_slot(key) : -1;
}

struct om_redis_node *om_redis_node_of(struct om_redis *r, struct om_span key) {
        int slot = om_redis_slot_of(r, key);

        return slot >= 0 ? om_redis_cluster_node(r, slot) : r->nodes[0];
}

struct om_redis_node *om_redis_node_at(struct om_redis *r, size_t i) {
        for (size_t k = 0; k < r->n_nodes; k++)
                if (r->nodes[k]->primary && i-- == 0)
                        return r->nodes[k];
        return NULL;
}

bool om_redis_node_ready(const struct om_redis_node *node) { return om_redis_link_ready(node->link); }
const char *om_redis_node_name(const struct om_redis_node *node) { return om_redis_link_name(node->link); }

/* -- commands -------------------------------------------------------------------------------------------------------- */

static void finish(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis_node *node = c->owner;

        node->r->pending--;
        om_redis_cmd_finish(c, status, reply, error);
}

static void on_asking(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_cmd_free(c); /* what follows it says how it went */
}

/* To where a redirect points. 0 when it is on its way. */
static int follow(struct om_redis_cmd *c, const struct om_redis_reply *reply, struct om_error *e) {
        struct om_redis_node *node = c->owner, *to;
        struct om_redis *r = node->r;
        bool ask = om_redis_is_error(reply, "ASK");
        struct om_redis_cmd *asking;
        int slot;

        if (r->settings->mode != OM_REDIS_CLUSTER || (!ask && !om_redis_is_error(reply, "MOVED")))
                return -ENOENT;
        to = om_redis_cluster_redirect(node, reply->text, &slot);
        if (!ask) {
                if (to && r->slots[slot] != to) {
                        r->slots[slot] = to;
                        if (r->events->moved)
                                r->events->moved(r->ctx);
                }
                om_redis_cluster_stale(r);
        }
        if (!to || ++c->redirects > REDIRECTS_MAX)
                return -ENOENT;
        if (ask) {
                asking = om_redis_cmd_new("ASKING");
                if (!asking)
                        return -ENOMEM;
                asking->answer = on_asking;
                if (om_redis_link_send(to->link, asking, e) < 0) {
                        om_redis_cmd_free(asking);
                        return -EAGAIN;
                }
        }
        c->owner = to;
        return om_redis_link_send(to->link, c, e);
}

static void on_answer(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis_node *node = c->owner;
        struct om_redis *r = node->r;
        struct om_error e = OM_ERROR_INIT;

        if (status == 0 || !reply || r->dead) {
                finish(c, status, reply, error);
                return;
        }
        if (c->script && !c->whole && om_redis_is_error(reply, "NOSCRIPT")) {
                c->whole = true;
                if (om_redis_link_send(node->link, c, &e) == 0)
                        return;
        }
        if (follow(c, reply, &e) == 0)
                return;
        if (e.kind != OM_OK) {
                finish(c, om_kind_errno(e.kind), NULL, &e);
                return;
        }
        if (om_redis_is_error(reply, "CLUSTERDOWN") && r->settings->mode == OM_REDIS_CLUSTER)
                om_redis_cluster_stale(r);
        if (om_redis_is_error(reply, "READONLY") && r->settings->mode == OM_REDIS_SENTINEL)
                om_redis_sentinel_ask(r);
        finish(c, status, reply, error);
}

int om_redis_send_node(struct om_redis_node *node, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx, struct om_error *e) {
        int r;

        if (!c)
                return om_error_set_errno(e, ENOMEM, "redis: a command");
        if (node->r->dead) {
                om_redis_cmd_free(c);
                return om_error_set(e, OM_UNAVAILABLE, "redis: the connection was closed by us");
        }
        c->answer = on_answer;
        c->owner = node;
        c->done = done;
        c->ctx = ctx;
        r = om_redis_link_send(node->link, c, e);
        if (r < 0)
                om_redis_cmd_free(c);
        else
                node->r->pending++;
        return r;
}

int om_redis_send(struct om_redis *r, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx, struct om_error *e) {
        struct om_redis_node *node =
                r->settings->mode == OM_REDIS_CLUSTER && !r->dead ? om_redis_cluster_node(r, om_redis_cmd_slot(c)) : r->nodes[0];

        if (node)
                return om_redis_send_node(node, c, done, ctx, e);
        om_redis_cmd_free(c);
        if (r->why.kind != OM_OK && e) {
                *e = r->why;
                e->kind = OM_UNAVAILABLE;
                return -EAGAIN;
        }
        return om_error_set(e, OM_UNAVAILABLE, "redis: %s",
                r->map_known ? "the cluster has no server for this key's slot" : "not connected to the cluster yet");
}

/* -- readers --------------------------------------------------------------------------------------------------------- */

static void on_reader_state(void *ctx, enum om_redis_state state, const struct om_error *error) {
        struct om_redis_reader *reader = ctx;

        if (reader->events && reader->events->state)
                reader->events->state(reader->ctx, state, error);
}

int om_redis_reader_new(struct om_redis_node *node, const struct om_redis_reader_events *events, void *ctx, struct om_redis_reader **ret,
        struct om_error *e) {
        struct om_redis_reader *reader = node->r->dead ? NULL : calloc(1, sizeof *reader);
        int r;

        if (!reader)
                return om_error_set_errno(e, ENOMEM, "redis");
        reader->node = node;
        reader->events = events;
        reader->ctx = ctx;
        r = link_new(node, true, on_reader_state, reader, &reader->link, e);
        if (r < 0) {
                free(reader);
                return r;
        }
        reader->next = node->readers;
        node->readers = reader;
        om_redis_link_go(reader->link, &node->address, node->address.port || !node->address.host ? 1 : 0, false);
        *ret = reader;
        return 0;
}

void om_redis_reader_free(struct om_redis_reader *reader) {
        struct om_redis_reader **link;

        if (!reader)
                return;
        link = &reader->node->readers;
        while (*link != reader)
                link = &(*link)->next;
        *link = reader->next;
        reader->events = NULL;
        om_redis_link_free(reader->link); /* its commands end within */
        free(reader);
}

static void on_reader_answer(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis_reader *reader = c->owner;
        struct om_redis *r = reader->node->r;

        if (reply && om_redis_is_error(reply, "NOSCRIPT") && c->script && !c->whole) {
                struct om_error e;

                c->whole = true;
                if (om_redis_link_send(reader->link, c, &e) == 0)
                        return;
        }
        if (status < 0 && reply && r->settings->mode == OM_REDIS_CLUSTER &&
                (om_redis_is_error(reply, "MOVED") || om_redis_is_error(reply, "CLUSTERDOWN")))
                om_redis_cluster_stale(r);
        om_redis_cmd_finish(c, status, reply, error);
}

int om_redis_reader_send(struct om_redis_reader *reader, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx, struct om_error *e) {
        int r;

        if (!c)
                return om_error_set_errno(e, ENOMEM, "redis: a command");
        if (reader->node->r->dead) {
                om_redis_cmd_free(c);
                return om_error_set(e, OM_UNAVAILABLE, "redis: the connection was closed by us");
        }
        c->answer = on_reader_answer;
        c->owner = reader;
        c->done = done;
        c->ctx = ctx;
        r = om_redis_link_send(reader->link, c, e);
        if (r < 0)
                om_redis_cmd_free(c);
        return r;
}

void om_redis_reader_anew(struct om_redis_reader *reader) {
        if (om_redis_link_ready(reader->link))
                om_redis_link_go(reader->link, &reader->node->address, 1, true);
}

int64_t om_redis_reader_id(const struct om_redis_reader *reader) { return om_redis_link_id(reader->link); }

/* -- making and freeing ---------------------------------------------------------------------------------------------- */

static int start(struct om_redis *r, struct om_error *e) {
        const struct om_redis_settings *s = r->settings;
        struct om_redis_node *node;

        if (s->mode == OM_REDIS_CLUSTER)
                return om_redis_cluster_start(r, e);
        if (om_redis_node_add(r, s->mode == OM_REDIS_SENTINEL ? "" : s->hosts[0].host, s->mode == OM_REDIS_SENTINEL ? 0 : s->hosts[0].port,
                    &node) < 0)
                return om_error_set_errno(e, ENOMEM, "redis");
        node->primary = true;
        if (s->mode == OM_REDIS_SENTINEL)
                return om_redis_sentinel_start(r, e);
        om_redis_node_go(node, false);
        return 0;
}

int om_redis_new(struct om_host *host, const struct om_redis_settings *settings, const struct om_redis_events *events, void *ctx,
        struct om_redis **ret, struct om_error *e) {
        const struct om_tls_settings tls = om_redis_tls(settings);
        struct om_redis *r = calloc(1, sizeof *r);
        int status;

        if (!r)
                return om_error_set_errno(e, ENOMEM, "redis");
        r->host = host;
        r->settings = settings;
        r->events = events;
        r->ctx = ctx;
        r->dns = host->dns;
        if (!r->dns && !settings->socket_path) {
                r->own_dns = evdns_base_new(host->base, EVDNS_BASE_DISABLE_WHEN_INACTIVE);
                if (r->own_dns) /* a machine without it resolves what /etc/hosts and numbers say */
                        evdns_base_resolv_conf_parse(r->own_dns, DNS_OPTIONS_ALL, "/etc/resolv.conf");
                r->dns = r->own_dns;
        }
        status = r->dns || settings->socket_path ? 0 : om_error_set_errno(e, ENOMEM, "redis: names");
        if (status == 0 && settings->tls)
                status = om_tls_new(&tls, &r->tls, e);
        if (status == 0)
                status = start(r, e);
        if (status < 0) {
                om_redis_free(r);
                return status;
        }
        *ret = r;
        return 0;
}

/* Two turns after the last call: what was being resolved ends by an event of its own, and needs its base until then. */
static void gone(struct om_post *post) {
        struct om_redis *r = (void *) ((char *) post - offsetof(struct om_redis, gone));

        if (!r->leaving) {
                r->leaving = true;
                om_host_post(r->host, &r->gone);
                return;
        }
        if (r->own_dns)
                evdns_base_free(r->own_dns, 0);
        om_tls_free(r->tls);
        for (size_t i = 0; i < r->n_nodes; i++) {
                free(r->nodes[i]->address.host);
                free(r->nodes[i]);
        }
        free(r->nodes);
        free(r->slots);
        free(r);
}

void om_redis_free(struct om_redis *r) {
        if (!r)
                return;
        r->dead = true;
        om_redis_cluster_stop(r);
        om_redis_sentinel_stop(r);
        for (size_t i = 0; i < r->n_nodes; i++) {
                while (r->nodes[i]->readers)
                        om_redis_reader_free(r->nodes[i]->readers);
                om_redis_link_free(r->nodes[i]->link);
                r->nodes[i]->link = NULL;
        }
        r->gone.fn = gone;
        om_host_post(r->host, &r->gone);
}

bool om_redis_ready(const struct om_redis *r) { return r->ready; }
const struct om_error *om_redis_why(const struct om_redis *r) { return &r->why; }
size_t om_redis_pending(const struct om_redis *r) { return r->pending; }
