/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Topics and the queues that belong to them, made when first needed.
 *
 * Always true:
 *   - a topic is THERE when the directory has it, or when its queues and bindings have been made since it was lost; something is bound for
 *     each of its tasks then: its holding queue, the queue of a group, or of a pattern's group that was there before it;
 *   - a queue that is there with other arguments than we would give it stays as it is;
 *   - a queue that others must know of is in the directory before the first message is put into it.
 *
 * Loop thread.
 */
#include "bus_state.h"

struct making { /* of a topic */
        struct topic *topic;
        unsigned left;
        int status;
        struct om_error error;
};
struct need { /* of a further queue */
        struct topic *topic;
        struct group *group;
        enum queue_kind kind;
        unsigned level;
        struct wait *waits;
        struct need *prev, *next;
};

static const char *const kinds[] = { "front", "dead", "wait" };

/* -- names --------------------------------------------------------------------------------------------------------- */

void rmq_queue_name(char out[QUEUE_NAME_MAX], const struct topic *t, const struct group *g, enum queue_kind kind, unsigned k) {
        const char *prefix = t->bus->settings.prefix;

        if (!g)
                snprintf(out, QUEUE_NAME_MAX, "%s.w.%s.%u", prefix, t->nt, k);
        else if (kind == QUEUE_WAIT)
                snprintf(out, QUEUE_NAME_MAX, "%s.w.%s.%s.%u", prefix, t->nt, g->na, k);
        else
                snprintf(out, QUEUE_NAME_MAX, "%s.%c.%s.%s", prefix, kind == QUEUE_FRONT ? 'f' : 'd', t->nt, g->na);
}

void rmq_log_name(char out[QUEUE_NAME_MAX], const struct topic *t) {
        snprintf(out, QUEUE_NAME_MAX, "%s.l.%s", t->bus->settings.prefix, t->nt);
}

unsigned rmq_level(int64_t ms) {
        unsigned k = LEVEL_MIN;

        if (ms < (int64_t) 1 << LEVEL_MIN)
                return 0;
        while (k < LEVEL_MAX && (int64_t) 1 << (k + 1) <= ms)
                k++;
        return k;
}

/* -- declaring ----------------------------------------------------------------------------------------------------- */

static int declare(struct om_bus *b, const char *queue, struct rmq_table *table, rmq_answer_fn *fn, void *ctx) {
        amqp_queue_declare_t m = { .queue = rmq_text(queue), .durable = 1, .arguments = rmq_table(table) };

        return rmq_call(b->control, AMQP_QUEUE_DECLARE_METHOD, &m, fn, ctx);
}

int rmq_declare_group_queue(struct om_bus *b, const char *queue, rmq_answer_fn *fn, void *ctx) {
        const struct rmq_settings *s = &b->settings;
        struct rmq_table table = { .n = 0 };

        rmq_table_text(&table, "x-queue-type", s->queue_type == RMQ_CLASSIC ? OM_SPAN("classic") : OM_SPAN("quorum"));
        if (s->queue_type == RMQ_CLASSIC)
                rmq_table_int(&table, "x-max-priority", OM_PRIORITY_MAX);
        if (s->max_topic_tasks)
                rmq_table_int(&table, "x-max-length", s->max_topic_tasks);
        if (s->max_topic_bytes)
                rmq_table_int(&table, "x-max-length-bytes", s->max_topic_bytes);
        if (s->max_topic_tasks || s->max_topic_bytes)
                rmq_table_text(&table, "x-overflow", OM_SPAN("reject-publish"));
        if (s->message_ttl_ms)
                rmq_table_int(&table, "x-message-ttl", s->message_ttl_ms);
        return declare(b, queue, &table, fn, ctx);
}

static int declare_log(struct topic *t, rmq_answer_fn *fn, void *ctx) {
        const struct rmq_settings *s = &t->bus->settings;
        struct rmq_table table = { .n = 0 };
        char name[QUEUE_NAME_MAX], age[32];

        rmq_log_name(name, t);
        rmq_table_text(&table, "x-queue-type", OM_SPAN("stream"));
        rmq_table_int(&table, "x-max-length-bytes", s->log_bytes);
        rmq_table_int(&table, "x-stream-max-segment-size-bytes", s->log_bytes / 4 < 64 << 20 ? s->log_bytes / 4 : 64 << 20);
        if (s->retention_ms) {
                snprintf(age, sizeof age, "%llds", (long long) (s->retention_ms + 999) / 1000);
                rmq_table_text(&table, "x-max-age", om_span_of(age));
        }
        return declare(t->bus, name, &table, fn, ctx);
}

int rmq_bind(struct om_bus *b, const struct topic *t, const char *queue, rmq_answer_fn *fn, void *ctx) {
        struct rmq_table table = { .n = 0 };
        amqp_queue_bind_t m = { .queue = rmq_text(queue), .exchange = rmq_text(b->settings.exchange), .routing_key = rmq_text(t->name) };

        if (b->settings.exchange_type == RMQ_HEADERS) {
                rmq_table_text(&table, "x-match", OM_SPAN("all"));
                rmq_table_text(&table, "omni-topic", om_span_of(t->name));
        }
        m.arguments = rmq_table(&table);
        return rmq_call(b->control, AMQP_QUEUE_BIND_METHOD, &m, fn, ctx);
}

/* There with other arguments: made with other settings, or by somebody else. */
static bool is_as_good(const struct rmq_answer *answer) {
        return answer->status == 0 || (answer->status == -EINVAL && strstr(answer->error->message, "inequivalent"));
}

/* -- topics -------------------------------------------------------------------------------------------------------- */

static void tell(struct wait *w, int status, const struct om_error *e) {
        for (struct wait *next; w; w = next) {
                next = w->next;
                w->fn(w, status, e);
        }
}

static void made(struct topic *t, int status, const struct om_error *e) {
        struct wait *w = t->waits;

        t->waits = NULL;
        t->state = status < 0 ? TOPIC_UNKNOWN : TOPIC_THERE;
        tell(w, status, e);
}

static void listed(void *ctx, int status, const struct om_error *e) { made(ctx, status, e); }

/* A pattern's group takes what is published to it: it needs no queue of its own. */
static bool pattern_takes(const struct topic *t) {
        for (const struct topic *p = t->bus->topics; p; p = p->hh.next) {
                const struct group *g;

                if (!p->pattern || !om_topic_matches(om_span_of(p->name), om_span_of(t->name)))
                        continue;
                DL_FOREACH (p->groups, g)
                        if (g->listed)
                                return true;
        }
        return false;
}

static void list(struct topic *t, const char *hold) {
        struct om_buf text = OM_BUF_INIT;

        t->log_known = true; /* it is new, and empty */
        om_buf_lit(&text, "\"e\":\"topic\",\"topic\":");
        om_buf_json_span(&text, om_span_of(t->name));
        om_buf_lit(&text, ",\"hold\":");
        om_buf_json_span(&text, om_span_of(hold));
        rmq_directory_add(t->bus, om_buf_span(&text), listed, t);
        om_buf_deinit(&text);
}

static void hold_name(char out[QUEUE_NAME_MAX], const struct topic *t) {
        if (t->pattern || t->foreign || (!t->listed && pattern_takes(t)))
                out[0] = 0;
        else if (t->listed)
                snprintf(out, QUEUE_NAME_MAX, "%s", t->hold);
        else
                snprintf(out, QUEUE_NAME_MAX, "%s.t.%s", t->bus->settings.prefix, t->nt);
}

static void step_done(void *ctx, const struct rmq_answer *answer) {
        struct making *m = ctx;
        struct topic *t = m->topic;
        char hold[QUEUE_NAME_MAX];

        if (!is_as_good(answer) && m->status == 0) {
                m->status = answer->status;
                m->error = *answer->error;
        }
        if (--m->left)
                return;
        hold_name(hold, t);
        if (m->status < 0 || t->listed)
                made(t, m->status, &m->error);
        else
                list(t, hold);
        free(m);
}

static void step(struct making *m, int r) {
        if (r == 0)
                m->left++;
        else if (m->status == 0) {
                m->status = r;
                om_error_set_errno(&m->error, r, "RabbitMQ");
        }
}

static void bind_queue(struct making *m, const char *queue, bool declared) {
        struct topic *t = m->topic;

        if (!declared)
                step(m, rmq_declare_group_queue(t->bus, queue, step_done, m));
        step(m, rmq_bind(t->bus, t, queue, step_done, m));
}

/* All at once: what is called later on the channel is done later. Of a topic that the directory has, what it says is made again. */
static void make(struct topic *t) {
        struct making *m = calloc(1, sizeof *m);
        struct om_error e = OM_ERROR_INIT;
        char name[QUEUE_NAME_MAX];
        struct group *g;

        t->state = TOPIC_MAKING;
        if (!m) {
                made(t, om_error_set_errno(&e, ENOMEM, "RabbitMQ"), &e);
                return;
        }
        m->topic = t;
        m->left = 1;
        if (t->foreign) {
                amqp_queue_declare_t passive = { .queue = rmq_text(t->name + 6), .passive = 1 };

                step(m, rmq_call(t->bus->control, AMQP_QUEUE_DECLARE_METHOD, &passive, step_done, m));
        }
        hold_name(name, t);
        if (name[0])
                bind_queue(m, name, false);
        if (!t->foreign)
                DL_FOREACH (t->groups, g)
                        if (g->listed && strcmp(g->queue, name) != 0)
                                bind_queue(m, g->queue, false);
        if (t->bus->settings.log && !t->foreign && !t->pattern) {
                rmq_log_name(name, t);
                step(m, declare_log(t, step_done, m));
                bind_queue(m, name, true);
        }
        step_done(m, &(struct rmq_answer){ .status = 0 });
}

void rmq_topic_need(struct topic *t, struct wait *w) {
        if (t->state == TOPIC_THERE) {
                w->fn(w, 0, NULL);
                return;
        }
        w->next = NULL;
        LL_APPEND(t->waits, w);
        if (t->state == TOPIC_UNKNOWN)
                make(t);
}

void rmq_topic_lost(struct topic *t) {
        if (t->state == TOPIC_THERE)
                t->state = TOPIC_UNKNOWN;
}

/* -- further queues ------------------------------------------------------------------------------------------------ */

static void need_over(struct need *n, int status, const struct om_error *e) {
        struct om_bus *b = n->topic->bus;
        struct wait *w = n->waits;

        DL_DELETE(b->needs, n);
        free(n);
        tell(w, status, e);
}

static void queue_listed(void *ctx, int status, const struct om_error *e) { need_over(ctx, status, e); }

static void queue_declared(void *ctx, const struct rmq_answer *answer) {
        struct need *n = ctx;
        struct om_buf text = OM_BUF_INIT;

        if (!is_as_good(answer)) {
                need_over(n, answer->status, answer->error);
                return;
        }
        om_buf_lit(&text, "\"e\":\"queue\",\"topic\":");
        om_buf_json_span(&text, om_span_of(n->topic->name));
        if (n->group) {
                om_buf_lit(&text, ",\"agent\":");
                om_buf_json_span(&text, om_span_of(n->group->agent));
        }
        om_buf_printf(&text, ",\"kind\":\"%s\",\"level\":%u", kinds[n->kind], n->level);
        rmq_directory_add(n->topic->bus, om_buf_span(&text), queue_listed, n);
        om_buf_deinit(&text);
}

static int declare_needed(struct need *n) {
        struct om_bus *b = n->topic->bus;
        struct rmq_table table = { .n = 0 };
        char name[QUEUE_NAME_MAX], front[QUEUE_NAME_MAX];

        rmq_queue_name(name, n->topic, n->group, n->kind, n->level);
        rmq_table_text(&table, "x-queue-type", OM_SPAN("quorum"));
        if (n->kind == QUEUE_WAIT) {
                rmq_table_int(&table, "x-message-ttl", (int64_t) 1 << n->level);
                rmq_table_text(&table, "x-dead-letter-strategy", OM_SPAN("at-least-once"));
                rmq_table_text(&table, "x-overflow", OM_SPAN("reject-publish"));
                if (n->group)
                        rmq_queue_name(front, n->topic, n->group, QUEUE_FRONT, 0);
                else
                        snprintf(front, sizeof front, "%s", n->topic->foreign ? n->topic->name + 6 : n->topic->name);
                rmq_table_text(
                        &table, "x-dead-letter-exchange", n->group || n->topic->foreign ? OM_SPAN("") : om_span_of(b->settings.exchange));
                rmq_table_text(&table, "x-dead-letter-routing-key", om_span_of(front));
        }
        return declare(b, name, &table, queue_declared, n);
}

static bool is_there(const struct topic *t, const struct group *g, enum queue_kind kind, unsigned k) {
        if (!g || kind == QUEUE_WAIT)
                return ((g ? g->levels : t->levels) >> k) & 1;
        return kind == QUEUE_FRONT ? g->front : g->dead;
}

struct front_first { /* what waits falls into the front queue, so that comes before */
        struct wait wait;
        struct wait *then;
        struct topic *topic;
        struct group *group;
        unsigned level;
};

static void need_now(struct topic *t, struct group *g, enum queue_kind kind, unsigned k, struct wait *w) {
        struct om_error e = OM_ERROR_INIT;
        struct need *n;
        int r;

        DL_FOREACH (t->bus->needs, n)
                if (n->topic == t && n->group == g && n->kind == kind && n->level == k) {
                        w->next = NULL;
                        LL_APPEND(n->waits, w);
                        return;
                }
        n = calloc(1, sizeof *n);
        if (n) {
                *n = (struct need){ .topic = t, .group = g, .kind = kind, .level = k, .waits = w };
                w->next = NULL;
                DL_APPEND(t->bus->needs, n);
        }
        r = n ? declare_needed(n) : -ENOMEM;
        if (r == 0)
                return;
        om_error_set(&e, om_kind_of_errno(r), "RabbitMQ: %s", r == -EAGAIN ? "not connected" : "out of memory");
        if (n)
                need_over(n, r, &e);
        else
                w->fn(w, r, &e);
}

static void front_is_there(struct wait *w, int status, const struct om_error *e) {
        struct front_first *f = (struct front_first *) w;
        struct front_first copy = *f;

        free(f);
        if (status < 0)
                copy.then->fn(copy.then, status, e);
        else
                need_now(copy.topic, copy.group, QUEUE_WAIT, copy.level, copy.then);
}

void rmq_queue_need(struct topic *t, struct group *g, enum queue_kind kind, unsigned k, struct wait *w) {
        struct om_error e = OM_ERROR_INIT;
        struct front_first *f;

        if (is_there(t, g, kind, k)) {
                w->fn(w, 0, NULL);
                return;
        }
        if (!g || kind != QUEUE_WAIT || g->front) {
                need_now(t, g, kind, k, w);
                return;
        }
        f = calloc(1, sizeof *f);
        if (!f) {
                w->fn(w, om_error_set_errno(&e, ENOMEM, "RabbitMQ"), &e);
                return;
        }
        *f = (struct front_first){ .wait.fn = front_is_there, .then = w, .topic = t, .group = g, .level = k };
        need_now(t, g, QUEUE_FRONT, 0, &f->wait);
}

void rmq_needs_down(struct om_bus *b) {
        for (struct topic *t = b->topics; t; t = t->hh.next)
                if (t->foreign)
                        rmq_topic_lost(t);
}
