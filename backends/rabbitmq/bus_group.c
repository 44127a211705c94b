/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups: made where there is none, served, left again. What they are served with is bus_consume.c.
 *
 * A group is new to the broker when the directory has none. It then claims the topic's holding queue, or has a queue declared and bound,
 * gets what it starts with out of the log, and is put into the directory; what others claimed first is theirs (bus_directory.c).
 *
 * Loop thread.
 */
#include "bus_state.h"

/* -- subscribing ----------------------------------------------------------------------------------------------------- */

struct subscribe {
        struct om_job job; /* first */
        struct om_bus_subscribe *op;
        struct om_bus *bus;
        struct topic *topic;
        char agent[OM_NAME_MAX + 1], queue[QUEUE_NAME_MAX];
        void *core;
        enum om_start start;
        int64_t start_ms;
        bool created, claims;
        struct wait wait;
        uint64_t before, held, copied; /* tasks of the log, of the holding queue */
        struct counting counting;
        struct browse browse;
        struct copy *copies;
        unsigned copying;
        int status;
        const char *why;
};

static void subscribe_free(struct om_job *j) {
        struct subscribe *m = (struct subscribe *) j;

        rmq_count_deinit(&m->counting);
        free(m);
}

static void over(struct subscribe *m, int status, const struct om_error *e) { om_job_over(&m->job, status, e); }

static void no_memory(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;

        over(m, om_error_set_errno(&e, ENOMEM, "RabbitMQ"), &e);
}

static void attach(struct subscribe *m, struct group *g) {
        struct om_bus *b = m->bus;
        struct om_bus_sub *s;

        if (om_job_is_cancelled(&m->job)) {
                over(m, 0, NULL);
                return;
        }
        s = calloc(1, sizeof *s);
        if (s)
                s->lane = rmq_lane_take(b);
        if (!s || !s->lane) {
                free(s);
                no_memory(m);
                return;
        }
        s->bus = b;
        s->core = m->core;
        s->group = g;
        g->sub = s;
        DL_APPEND(b->subs, s);
        m->op->ret_sub = s;
        m->op->ret_created = m->created;
        over(m, 0, NULL);
}

static void begin(struct subscribe *m);

static void group_listed(void *ctx, int status, const struct om_error *e) {
        struct subscribe *m = ctx;
        struct group *g = rmq_group_find(m->topic, om_span_of(m->agent));

        if (status < 0)
                over(m, status, e);
        else if (g && g->listed) {
                m->created = true;
                attach(m, g);
        } else
                begin(m); /* another was first to claim the holding queue, or the topic is gone */
}

static void list(struct subscribe *m, uint64_t from) {
        struct om_buf text = OM_BUF_INIT;

        om_buf_lit(&text, "\"e\":\"group\",\"topic\":");
        om_buf_json_span(&text, om_span_of(m->topic->name));
        om_buf_lit(&text, ",\"agent\":");
        om_buf_json_span(&text, om_span_of(m->agent));
        om_buf_lit(&text, ",\"queue\":");
        om_buf_json_span(&text, om_span_of(m->queue));
        om_buf_printf(&text, ",\"from\":%llu,\"since\":%lld", (unsigned long long) from,
                m->claims && m->start == OM_START_TIME ? (long long) m->start_ms : 0LL);
        if (om_buf_ok(&text))
                rmq_directory_add(m->bus, om_buf_span(&text), group_listed, m);
        else
                no_memory(m);
        om_buf_deinit(&text);
}

/* -- what a later group starts with ---------------------------------------------------------------------------------- */

struct copy {                   /* of a task of the log, on its way into the group's queue */
        struct publication pub; /* first */
        struct subscribe *m;
        char id[RMQ_SHORT_MAX + 1];
};

static void copied_all(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;

        if (m->status < 0)
                over(m, om_error_set(&e, om_kind_of_errno(m->status), "%s", m->why), &e);
        else
                list(m, m->before > m->copied ? m->before - m->copied : 0);
}

static void copy_one_less(struct subscribe *m) {
        if (--m->copying == 0)
                copied_all(m);
}

static void copy_done(struct publication *p, int status, const char *why) {
        struct copy *copy = (struct copy *) p;
        struct subscribe *m = copy->m;

        if (status < 0 && m->status == 0) {
                m->status = status;
                m->why = why;
        }
        rmq_publication_deinit(p);
        free(copy);
        copy_one_less(m);
}

static bool copy_it(struct browse *w, struct rmq_event *ev, uint64_t place, uint64_t tag) {
        struct subscribe *m = w->ctx;
        struct rmq_meta meta = rmq_meta_of(ev->props);
        struct rmq_props props = { .p = *ev->props };
        struct copy *copy;
        struct om_span id = ev->props->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ? rmq_span(ev->props->message_id) : OM_SPAN("");

        if (m->start == OM_START_TIME && meta.time_ms < m->start_ms)
                return true;
        copy = calloc(1, sizeof *copy);
        if (!copy) {
                m->status = -ENOMEM;
                m->why = "out of memory";
                return false;
        }
        copy->m = m;
        snprintf(copy->id, sizeof copy->id, "%.*s", OM_PRI(id));
        copy->pub.done = copy_done;
        m->copying++;
        m->copied++;
        /* its headers as they are: nothing is added, and so nothing is closed */
        if (rmq_publication_init(&copy->pub, m->bus, OM_SPAN(""), om_span_of(m->queue), copy->id, &props, om_buf_span(ev->body)) == 0)
                rmq_publication_send(&copy->pub);
        else
                copy_done(&copy->pub, -ENOMEM, "out of memory");
        return m->status == 0;
}

static void browse_ended(struct browse *w) { copy_one_less(w->ctx); }

static void browsed(struct browse *w, int status, const struct om_error *e) {
        struct subscribe *m = w->ctx;

        if (status < 0 && m->status == 0) {
                m->status = status;
                m->why = "RabbitMQ: the topic's log cannot be read";
        }
        rmq_browse_end(w, browse_ended);
}

static void later_counted(struct counting *c) {
        struct subscribe *m = c->ctx;

        if (c->status < 0) {
                over(m, c->status, &c->error);
                return;
        }
        if (m->start != OM_START_FIRST && m->start != OM_START_TIME) {
                list(m, m->before);
                return;
        }
        m->browse = (struct browse){ .bus = m->bus, .log = true, .end = m->before, .each = copy_it, .done = browsed, .ctx = m };
        rmq_log_name(m->browse.queue, m->topic);
        m->copying = 1;
        rmq_browse_start(&m->browse);
}

static void later_bound(void *ctx, const struct rmq_answer *answer) {
        struct subscribe *m = ctx;
        if (answer->status < 0) {
                over(m, answer->status, answer->error);
                return;
        }
        if (m->topic->pattern || !m->bus->settings.log) {
                list(m, 0);
                return;
        }
        m->counting.done = later_counted;
        if (rmq_count_log(&m->counting, m->topic, &m->before) < 0)
                no_memory(m);
        else
                rmq_count_start(&m->counting);
}

static void later_declared(void *ctx, const struct rmq_answer *answer) {
        struct subscribe *m = ctx;

        if (answer->status < 0 && !strstr(answer->error->message, "inequivalent"))
                over(m, answer->status, answer->error);
        else if (rmq_bind(m->bus, m->topic, m->queue, later_bound, m) < 0)
                no_memory(m);
}

static void later_group(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;
        struct group *g = rmq_group_get(m->topic, om_span_of(m->agent));

        if (!g) {
                no_memory(m);
                return;
        }
        if ((m->start == OM_START_FIRST || m->start == OM_START_TIME) && (!m->bus->settings.log || m->topic->pattern)) {
                over(m,
                        om_error_set(&e, OM_UNSUPPORTED, "RabbitMQ: a later group starts in the past by the topic's log: %s",
                                m->topic->pattern ? "a pattern has none" : "set log=true in the URL"),
                        &e);
                return;
        }
        snprintf(m->queue, sizeof m->queue, "%s.g.%s.%s", m->bus->settings.prefix, m->topic->nt, g->na);
        if (rmq_declare_group_queue(m->bus, m->queue, later_declared, m) < 0)
                no_memory(m);
}

/* -- the first group -------------------------------------------------------------------------------------------------- */

static void first_counted(struct counting *c) {
        struct subscribe *m = c->ctx;

        if (c->status < 0)
                over(m, c->status, &c->error);
        else
                list(m, m->before > m->held ? m->before - m->held : 0);
}

static void first_count(struct subscribe *m) {
        m->counting.done = first_counted;
        if (rmq_count_add(&m->counting, m->queue, &m->held) < 0 || rmq_count_log(&m->counting, m->topic, &m->before) < 0)
                no_memory(m);
        else
                rmq_count_start(&m->counting);
}

static void purged(void *ctx, const struct rmq_answer *answer) {
        struct subscribe *m = ctx;

        if (answer->status < 0)
                over(m, answer->status, answer->error);
        else
                first_count(m);
}

static void first_group(struct subscribe *m) {
        amqp_queue_purge_t purge = { .queue = rmq_text(m->queue) };

        m->claims = true;
        snprintf(m->queue, sizeof m->queue, "%s", m->topic->hold);
        purge.queue = rmq_text(m->queue);
        if (m->start == OM_START_NEW) {
                if (rmq_call(m->bus->control, AMQP_QUEUE_PURGE_METHOD, &purge, purged, m) < 0)
                        no_memory(m);
        } else if (m->topic->generation == 0 || !m->bus->settings.log)
                list(m, 0);
        else
                first_count(m);
}

/* A queue of another program's has one group: more would take tasks from each other. */
static void foreign_group(struct subscribe *m) {
        struct om_error e = OM_ERROR_INIT;
        struct group *g;

        DL_FOREACH (m->topic->groups, g)
                if (g->listed) {
                        over(m,
                                om_error_set(&e, OM_UNSUPPORTED,
                                        "RabbitMQ: the queue %.100s is served by the agent %.60s already, and gives a task once only",
                                        m->topic->name + 6, g->agent),
                                &e);
                        return;
                }
        snprintf(m->queue, sizeof m->queue, "%s", m->topic->name + 6);
        list(m, 0);
}

static void begin(struct subscribe *m) {
        struct group *g = rmq_group_find(m->topic, om_span_of(m->agent));

        m->claims = false;
        m->copied = m->before = m->held = 0;
        m->counting.n = 0;
        if (g && g->listed)
                attach(m, g);
        else if (m->topic->foreign)
                foreign_group(m);
        else if (m->topic->hold[0] && !m->topic->owner)
                first_group(m);
        else
                later_group(m);
}

static void topic_there(struct wait *w, int status, const struct om_error *e) {
        struct subscribe *m = (void *) ((char *) w - offsetof(struct subscribe, wait));

        if (status < 0)
                over(m, status, e);
        else
                begin(m);
}

int rmq_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        int r = rmq_admit(b, 0, e);
        struct topic *t;
        struct subscribe *m;

        if (r < 0)
                return r;
        if (om_topic_is_pattern(op->topic) && b->settings.exchange_type != RMQ_TOPIC)
                return om_error_set(e, OM_UNSUPPORTED, "RabbitMQ: patterns need an exchange of the type topic; exchange_type is %s",
                        rmq_exchange_types[b->settings.exchange_type]);
        t = rmq_topic_get(b, op->topic);
        m = calloc(1, sizeof *m);
        if (!t || !m || op->agent.len > OM_NAME_MAX) {
                free(m);
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        }
        m->op = op;
        m->bus = b;
        m->topic = t;
        m->core = op->core;
        m->start = op->start;
        m->start_ms = op->start_ms;
        memcpy(m->agent, op->agent.p, op->agent.len);
        m->counting.bus = b;
        m->counting.ctx = m;
        m->wait.fn = topic_there;
        om_job_begin(&b->jobs, &m->job, &op->op, 0, subscribe_free);
        rmq_topic_need(t, &m->wait);
        return 0;
}

/* -- the end ----------------------------------------------------------------------------------------------------------- */

void rmq_bus_unsubscribe(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;

        DL_DELETE(b->subs, s);
        if (s->dirty)
                LL_DELETE2(b->dirty, s, dirty_next);
        if (s->group->sub == s)
                s->group->sub = NULL;
        s->lane->n_subs--;
        rmq_sub_part(s);
        rmq_sub_leave(s);
        free(s);
}
