/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Agents: registered, registered again after each reconnect, ended, unregistered.
 *
 * Always true:
 *   - an agent that the user knows is on `agents`, and is registered on every connection until the daemon says that it was deleted or
 * refuses it for good (`ended`);
 *   - an agent that the user knows no more but that the daemon may still serve is `leaving`: what is delivered to it is dropped, which is
 *     right because the daemon takes it back; it is freed when the daemon has answered or the connection is gone;
 *   - a registration that is refused as unavailable is made again, later.
 */
#include "internal.h"

#include <stdio.h>
#include <unistd.h>

/* -- making -------------------------------------------------------------------------------------------------------- */

static int check_json(omni_client *c, const char *text, unsigned type, const char *what) {
        struct om_error e = OM_ERROR_INIT;
        struct om_json j;
        if (om_json_check(om_span_of(text), OM_DEPTH_MAX - 3, &e) < 0) {
                om_error_prefix(&e, "%s", what);
                return omc_fail_error(c, -EINVAL, &e);
        }
        om_json_init_valid(&j, om_span_of(text));
        if (om_json_peek(&j) != type)
                return omc_fail(c, -EINVAL, "%s: not %s", what, om_json_type_name(type));
        return 0;
}

static void put_string(struct om_buf *b, const char *name, const char *value) {
        if (!value)
                return;
        om_buf_printf(b, ",\"%s\":", name);
        om_buf_json_string(b, value, strlen(value));
}

/* The members between an object's braces. */
static struct om_span inside(const char *object) {
        const char *p = strchr(object, '{') + 1, *end = strrchr(object, '}');
        while (p < end && strchr(" \t\r\n", *p))
                p++;
        return (struct om_span){ p, (size_t) (end - p) };
}

static int put_config(omni_client *c, struct om_buf *b, const omni_agent_options *o) {
        size_t mark = b->len;
        if (o->prefetch)
                om_buf_printf(b, ",\"prefetch\":%d", o->prefetch);
        if (o->dlq_retry_limit >= 0)
                om_buf_printf(b, ",\"dlq_retry_limit\":%d", o->dlq_retry_limit);
        if (o->retry_backoff_ms >= 0)
                om_buf_printf(b, ",\"retry_backoff_ms\":%lld", (long long) o->retry_backoff_ms);
        if (o->retry_backoff_max_ms >= 0)
                om_buf_printf(b, ",\"retry_backoff_max_ms\":%lld", (long long) o->retry_backoff_max_ms);
        if (o->reclaim_idle_ms)
                om_buf_printf(b, ",\"reclaim_idle_ms\":%lld", (long long) o->reclaim_idle_ms);
        if (o->start && (!strcmp(o->start, "first") || !strcmp(o->start, "new"))) {
                put_string(b, "start", o->start);
        } else if (o->start) {
                if (check_json(c, o->start, OM_JSON_NUMBER, "start (first, new, or a Unix time)") < 0)
                        return -EINVAL;
                om_buf_printf(b, ",\"start\":%s", o->start);
        }
        if (o->config) {
                if (check_json(c, o->config, OM_JSON_OBJECT, "config") < 0)
                        return -EINVAL;
                struct om_span more = inside(o->config);
                if (more.len) {
                        om_buf_putc(b, ',');
                        om_buf_put_span(b, more);
                }
        }
        if (om_buf_ok(b) && b->len > mark)
                b->data[mark] = ' '; /* the first comma */
        return 0;
}

static int put_params(omni_client *c, struct om_buf *b, const omni_agent_options *o) {
        om_buf_lit(b, "{\"name\":");
        om_buf_json_string(b, o->name, strlen(o->name));
        put_string(b, "topic", o->topic);
        put_string(b, "description", o->description);
        if (o->tools) {
                if (check_json(c, o->tools, OM_JSON_ARRAY, "tools") < 0)
                        return -EINVAL;
                om_buf_lit(b, ",\"tools\":");
                om_buf_puts(b, o->tools);
        }
        char worker[OM_NAME_MAX + 1];
        if (!o->worker) {
                char host[128] = "";
                if (gethostname(host, sizeof(host) - 1) < 0 || !host[0])
                        snprintf(host, sizeof(host), "localhost");
                snprintf(worker, sizeof(worker), "%s-%ld", host, (long) getpid());
        }
        put_string(b, "worker", o->worker ? o->worker : worker);
        om_buf_lit(b, ",\"config\":{");
        if (put_config(c, b, o) < 0)
                return -EINVAL;
        om_buf_lit(b, "}}");
        return 0;
}

static int agent_new(omni_client *c, const omni_agent_options *options, omni_handler_fn *handler, void *user, omni_agent **ret) {
        omni_agent_options o = OMNI_AGENT_OPTIONS_INIT;
        if (!options || !handler)
                return omc_fail(c, -EINVAL, "an agent needs options and a handler");
        omc_copy_options(&o, sizeof(o), options);
        struct om_error e = OM_ERROR_INIT;
        if (om_name_check(om_span_of(o.name), "name", &e) < 0 || om_name_check(om_span_of(o.topic), "topic", &e) < 0)
                return omc_fail_error(c, -EINVAL, &e);
        if (o.prefetch < 0 || o.reclaim_idle_ms < 0)
                return omc_fail(c, -EINVAL, "prefetch and reclaim_idle_ms are not negative");
        omni_agent *a = calloc(1, sizeof(*a));
        if (!a)
                return omc_fail(c, -ENOMEM, "out of memory");
        a->client = c;
        a->handler = handler;
        a->user = user;
        omc_list_init(&a->tasks);
        a->name = strdup(o.name);
        a->topic = strdup(o.topic);
        struct om_buf group = OM_BUF_INIT;
        om_group_name(&group, om_span_of(o.topic), om_span_of(o.name));
        om_buf_putc(&group, '\0');
        a->group = group.data;
        int r = put_params(c, &a->params, &o);
        if (r == 0 && (!a->name || !a->topic || !om_buf_ok(&group) || !om_buf_ok(&a->params)))
                r = omc_fail(c, -ENOMEM, "out of memory");
        if (r < 0) {
                omc_agent_free(a);
                return r;
        }
        if (o.reclaim_idle_ms > 0 && !o.manual_extend)
                a->extend_every_ms = o.reclaim_idle_ms / 3 > 0 ? o.reclaim_idle_ms / 3 : 1;
        a->held_max = o.prefetch && !o.config ? (size_t) o.prefetch : 0;
        omc_append(&c->agents, &a->link);
        *ret = a;
        return 0;
}

void omc_agent_free(omni_agent *a) {
        omc_unlink(&a->link);
        while (a->tasks.next && !omc_list_empty(&a->tasks))
                omc_task_free(omc_of(omni_task, link, a->tasks.next));
        om_buf_deinit(&a->params);
        free(a->name);
        free(a->topic);
        free(a->group);
        free(a->reason);
        free(a);
}

omni_agent *omc_agent_of(omni_client *c, int64_t subscription) {
        for (struct omc_link *l = c->agents.next; l != &c->agents; l = l->next) {
                omni_agent *a = omc_of(omni_agent, link, l);
                if (a->active && a->subscription == subscription)
                        return a;
        }
        return NULL;
}

/* -- registering --------------------------------------------------------------------------------------------------- */

static void unregister_silently(omni_client *c, omni_agent *a);

static void end_agent(omni_agent *a, int status, const char *reason) {
        a->ended = true;
        a->ended_status = status;
        free(a->reason);
        a->reason = strdup(reason);
}

static bool take_registration(omni_client *c, omni_agent *a, struct om_span answer) {
        struct om_json_value v, group;
        int64_t subscription;
        if (!omc_get(answer, "subscription", OM_JSON_NUMBER, &v) || om_json_int64(v, &subscription) < 0 || omc_agent_of(c, subscription))
                return false;
        if (omc_get(answer, "group", OM_JSON_STRING, &group)) {
                char *name = malloc(group.text.len);
                if (name) {
                        name[om_json_decode(group, name)] = '\0';
                        free(a->group);
                        a->group = name;
                }
        }
        a->subscription = subscription;
        a->active = true;
        a->extend_at_ms = 0;
        return true;
}

static void done_register(omni_client *c, struct omc_call *call, struct om_span answer) {
        omni_agent *a = call->agent;
        struct omc_waiter *w = call->owner;
        int status = call->status;
        bool bad = false;
        a->registering = false;
        if (status == 0 && !take_registration(c, a, answer)) {
                bad = true;
                status = call->status = -EPROTO;
                om_error_set(&call->error, OM_INTERNAL, "the answer to agent.register names no subscription");
        }
        if (w) {
                omc_done_wait(c, call, OM_SPAN_NONE);
        } else {
                bool again = status == -EAGAIN || status == -ETIMEDOUT || status == -ENOBUFS;
                if (a->leaving && status == 0) {
                        unregister_silently(c, a);
                } else if (a->leaving) {
                        call->agent = NULL;
                        omc_agent_free(a);
                } else if (status < 0 && again) {
                        a->registering = true;
                        omc_call_later(c, call);
                        return;
                } else if (status < 0 && status != -ECANCELED && status != -ECONNRESET) {
                        end_agent(a, status, call->error.message);
                }
                omc_call_free(c, call);
        }
        if (bad && c->socket_fd >= 0)
                omc_disconnect(c, -EPROTO, "the daemon broke the protocol: the answer to agent.register names no subscription");
}

static int start_register(omni_client *c, omni_agent *a, void *owner, bool in_front) {
        struct omc_call *call = omc_call_new(c, OMC_REGISTER);
        if (!call)
                return -ENOMEM;
        call->immediate = true;
        call->done = done_register;
        call->agent = a;
        call->owner = owner;
        om_rpc_begin_request(&call->frame, call->id, "agent.register");
        om_buf_put_span(&call->frame, om_buf_span(&a->params));
        int r = omc_call_queue(c, call, in_front);
        if (r < 0)
                omc_call_free(c, call);
        else
                a->registering = true;
        return r;
}

void omc_agents_register(omni_client *c) {
        /* From the last to the first, each in front of the one before: they register in their own order. */
        for (struct omc_link *l = c->agents.prev; l != &c->agents; l = l->prev) {
                omni_agent *a = omc_of(omni_agent, link, l);
                if (a->registering || a->ended || a->leaving)
                        continue;
                int r = start_register(c, a, NULL, true);
                if (r < 0)
                        end_agent(a, r, r == -EMSGSIZE ? "its registration is above the daemon's limit of a frame" : "out of memory");
        }
}

void omc_agents_down(omni_client *c) {
        for (struct omc_link *l = c->agents.next; l != &c->agents; l = l->next) {
                omni_agent *a = omc_of(omni_agent, link, l);
                a->active = false;
                omc_agent_lose_tasks(a);
        }
}

int omni_agent_register(omni_client *c, const omni_agent_options *options, omni_handler_fn *handler, void *user, omni_agent **ret) {
        omni_agent *a = NULL;
        int r = agent_new(c, options, handler, user, &a);
        if (!a)
                return r;
        struct omc_waiter w = { .left = 1 };
        omc_close_batches(c);
        r = start_register(c, a, &w, false);
        if (r < 0) {
                omc_agent_free(a);
                return omc_fail(c, r == -EMSGSIZE ? -ENOBUFS : r, "agent.register: %s", r == -EMSGSIZE ? "too large" : "out of memory");
        }
        r = omc_wait(c, &w, omc_deadline(c), c->options.connect_timeout_ms);
        if (r < 0 && w.left) {
                /* The answer may still come: until then it is known under `leaving`. What was not sent is taken back. */
                a->leaving = true;
                omc_detach(c, &w);
                for (struct omc_link *l = c->calls.next; l != &c->calls; l = l->next) {
                        struct omc_call *call = omc_of(struct omc_call, link, l);
                        if (call->agent == a && call->sent == 0) {
                                omc_call_take(c, call);
                                omc_call_free(c, call);
                                omc_agent_free(a);
                                break;
                        }
                }
                return r;
        }
        if (w.status < 0) {
                omc_agent_free(a);
                return omc_fail_error(c, w.status, &w.error);
        }
        if (ret)
                *ret = a;
        return 0;
}

/* -- ending -------------------------------------------------------------------------------------------------------- */

/* `agent.ended`: somebody deleted it. 0, or -EINVAL. */
int omc_agent_ended(omni_client *c, struct om_span params, struct om_error *e) {
        struct om_json_value v;
        int64_t subscription;
        if (!params.p || !omc_get(params, "subscription", OM_JSON_NUMBER, &v) || om_json_int64(v, &subscription) < 0)
                return om_error_set(e, OM_INVALID, "no subscription");
        omni_agent *a = omc_agent_of(c, subscription);
        if (!a)
                return 0; /* unregistered meanwhile */
        char why[200] = "deleted";
        if (omc_get(params, "reason", OM_JSON_STRING, &v) && v.text.len < sizeof(why))
                why[om_json_decode(v, why)] = '\0';
        char reason[500];
        snprintf(reason, sizeof(reason), "agent %.120s on %.120s was ended by the daemon: %s", a->name, a->topic, why);
        a->active = false;
        omc_agent_lose_tasks(a);
        if (!a->leaving)
                end_agent(a, -ENOENT, reason);
        return 0;
}

int omc_agents_over(omni_client *c) {
        omni_agent *over = NULL;
        for (struct omc_link *l = c->agents.next; l != &c->agents; l = l->next) {
                omni_agent *a = omc_of(omni_agent, link, l);
                if (a->leaving)
                        continue;
                if (!a->ended)
                        return 0;
                over = a;
        }
        return over ? omc_fail(c, over->ended_status, "%s", over->reason ? over->reason : "the agent was ended by the daemon") : 0;
}

static void done_unregister(omni_client *c, struct omc_call *call, struct om_span answer) {
        omni_agent *a = call->agent;
        call->agent = NULL;
        if (call->owner) /* whatever the daemon says, it is over: the subscription is unknown there, or went with the connection */
                omc_done_wait(c, call, OM_SPAN_NONE);
        else
                omc_call_free(c, call);
        omc_agent_free(a);
}

static struct omc_call *start_unregister(omni_client *c, omni_agent *a) {
        struct omc_call *call = omc_call_new(c, OMC_UNREGISTER);
        if (!call)
                return NULL;
        call->immediate = true;
        call->done = done_unregister;
        call->agent = a;
        om_rpc_begin_request(&call->frame, call->id, "agent.unregister");
        om_buf_printf(&call->frame, "{\"subscription\":%lld}", (long long) a->subscription);
        if (omc_call_queue(c, call, false) == 0)
                return call;
        omc_call_free(c, call);
        return NULL;
}

static void unregister_silently(omni_client *c, omni_agent *a) {
        /* Without memory for the request it stays as it is, dropping what it is given, until the connection ends. */
        start_unregister(c, a);
}

static struct omc_call *registration_of(omni_client *c, const omni_agent *a) {
        for (struct omc_link *l = c->calls.next; l != &c->calls; l = l->next)
                if (omc_of(struct omc_call, link, l)->agent == a)
                        return omc_of(struct omc_call, link, l);
        for (struct omc_link *l = c->later.next; l != &c->later; l = l->next)
                if (omc_of(struct omc_call, link, l)->agent == a)
                        return omc_of(struct omc_call, link, l);
        return NULL;
}

int omni_agent_unregister(omni_agent *a) {
        if (!a)
                return -EINVAL;
        omni_client *c = a->client;
        a->leaving = true;
        omc_close_batches(c); /* acks made so far count */
        while (!omc_list_empty(&a->tasks))
                omc_task_free(omc_of(omni_task, link, a->tasks.next));
        struct omc_call *call = registration_of(c, a);
        if (call && call->sent)
                return 0; /* under way after a reconnect: its answer will find `leaving` */
        if (call) {
                omc_call_take(c, call);
                omc_call_free(c, call);
        }
        if (!a->active) {
                omc_agent_free(a);
                return 0;
        }
        call = start_unregister(c, a);
        if (!call)
                return omc_fail(c, -ENOMEM, "out of memory");
        struct omc_waiter w = { .left = 1 };
        call->owner = &w;
        int r = omc_wait(c, &w, omc_deadline(c), c->options.connect_timeout_ms);
        if (r < 0 && w.left) {
                omc_detach(c, &w);
                return r;
        }
        return 0;
}

/* -- asking -------------------------------------------------------------------------------------------------------- */

const char *omni_agent_name(const omni_agent *a) { return a->name; }
const char *omni_agent_topic(const omni_agent *a) { return a->topic; }
const char *omni_agent_group(const omni_agent *a) { return a->group; }
omni_client *omni_agent_client(const omni_agent *a) { return a->client; }

int omni_agent_active(const omni_agent *a) {
        if (a->active)
                return 1;
        if (a->ended)
                omc_fail(a->client, a->ended_status, "%s", a->reason ? a->reason : "the agent was ended by the daemon");
        else
                omc_fail(a->client, -EAGAIN, "not connected: %s",
                        a->client->away.message[0] ? a->client->away.message : "no attempt was made yet");
        return 0;
}
