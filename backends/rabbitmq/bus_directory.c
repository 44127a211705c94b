/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory: a stream of events from which every daemon knows which topics, groups and queues there are. AMQP can list none of them.
 *
 *     {"i":…,"e":"topic","topic":T,"hold":Q}       T has queues; Q holds its tasks until a group takes them ("": a pattern's group does)
 *     {"i":…,"e":"hold","topic":T,"hold":Q}        Q is the holding queue from now on
 *     {"i":…,"e":"group","topic":T,"agent":A,"queue":Q,"from":N,"since":MS}
 *     {"i":…,"e":"queue","topic":T,"agent":A,"kind":KIND,"level":K}     one of front, dead, wait was made; without agent: for delays
 *     {"i":…,"e":"gone","topic":T,"agent":A,"dead":true}                the group was deleted; dead: its dead letters too
 *     {"i":…,"e":"deleted","topic":T,"dead":true}
 *     {"i":…,"e":"hello"}                          a daemon wants to know whether it has read everything
 *
 * Always true:
 *   - what an event says is so from where it stands, for everybody: of two first groups that claim a holding queue the one that is read
 *     first has it, and the other claim is void. A daemon that adds an event goes by it when it has read it back;
 *   - a queue is in the directory before the first message is put into it, and a binding is there before the group is;
 *   - `next` is the offset to go on from: events are read once, over reconnects too.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { PREFETCH = 500, ACK_EVERY = 100, RETRY_MS = 500, HOMELESS_MS = 100, HOMELESS_MAX_MS = 10000 };

struct add {
        struct publication pub; /* first */
        char name[48];
        void (*done)(void *ctx, int status, const struct om_error *e); /* NULL: told */
        void *ctx;
        bool sent, read, homeless; /* homeless: to be sent again, until homeless_until_ms */
        int64_t homeless_until_ms;
        struct add *prev, *next;
};
struct directory {
        struct rmq_channel *channel;
        char stream[64];
        int64_t next;
        struct add *adds;
        uint64_t self, n_adds;
        unsigned unacked;
        bool reading; /* a consumer was asked for */
        struct event *retry, *again;
};

/* -- topics and groups ------------------------------------------------------------------------------------------------ */

static void name_part(char *out, struct om_span text) {
        struct om_buf b = OM_BUF_INIT;

        om_safe_name(&b, text, NAME_PART_MAX);
        snprintf(out, NAME_PART_MAX + 1, "%.*s", OM_PRI(om_buf_span(&b)));
        om_buf_deinit(&b);
}

struct topic *rmq_topic_get(struct om_bus *b, struct om_span name) {
        struct topic *t = NULL;

        if (name.len == 0 || name.len > OM_TOPIC_MAX)
                return NULL;
        HASH_FIND(hh, b->topics, name.p, name.len, t);
        if (t || !(t = calloc(1, sizeof *t)))
                return t;
        t->bus = b;
        memcpy(t->name, name.p, name.len);
        name_part(t->nt, name);
        t->foreign = strncmp(t->name, "queue:", 6) == 0;
        t->pattern = !t->foreign && om_topic_is_pattern(name);
        HASH_ADD(hh, b->topics, name, name.len, t);
        if (!t->hh.tbl) {
                free(t);
                return NULL;
        }
        return t;
}

struct group *rmq_group_find(const struct topic *t, struct om_span agent) {
        struct group *g;

        DL_FOREACH (t->groups, g)
                if (om_span_is(agent, g->agent))
                        return g;
        return NULL;
}

struct group *rmq_group_get(struct topic *t, struct om_span agent) {
        struct group *g = rmq_group_find(t, agent);

        if (g || agent.len == 0 || agent.len > OM_NAME_MAX || !(g = calloc(1, sizeof *g)))
                return g;
        g->topic = t;
        memcpy(g->agent, agent.p, agent.len);
        name_part(g->na, agent);
        DL_APPEND(t->groups, g);
        return g;
}

/* -- what an event says ------------------------------------------------------------------------------------------------ */

enum { IS, E, TOPIC, HOLD, AGENT, QUEUE, FROM, SINCE, KIND, LEVEL, DEAD, N_MEMBERS };

static struct om_span text_of(const struct om_json_member *m, struct om_arena *arena) {
        return m->value.type ? om_json_string(m->value, arena) : OM_SPAN("");
}

static int64_t number_of(const struct om_json_member *m) {
        int64_t n = 0;

        return m->value.type && om_json_int64(m->value, &n) == 0 ? n : 0;
}

static bool set_queue(char to[QUEUE_NAME_MAX], struct om_span name) {
        if (name.len >= QUEUE_NAME_MAX)
                return false;
        memcpy(to, name.p, name.len);
        to[name.len] = 0;
        return true;
}

static void group_gone(struct group *g, bool dead) {
        struct topic *t = g->topic;

        g->listed = g->front = false;
        g->levels = g->from = g->finished = g->expired = 0;
        if (dead)
                g->dead = false;
        if (t->owner == g)
                t->owner = NULL;
        if (strcmp(t->hold, g->queue) == 0)
                t->hold[0] = 0;
        g->queue[0] = 0;
        if (g->sub)
                rmq_sub_revoke(g->sub);
}

static void topic_event(struct topic *t, struct om_span hold) {
        if (t->listed || !set_queue(t->hold, hold))
                return;
        t->listed = true;
        t->owner = NULL;
        if (t->state == TOPIC_UNKNOWN)
                t->state = TOPIC_THERE;
}

static void group_event(struct topic *t, struct om_span agent, struct om_span queue, int64_t from, int64_t since_ms) {
        struct group *g = rmq_group_get(t, agent);
        bool claims = t->hold[0] && om_span_is(queue, t->hold);

        if (!g || g->listed || (claims && t->owner) || !set_queue(g->queue, queue))
                return;
        g->listed = true;
        g->from = from > 0 ? (uint64_t) from : 0;
        g->since_ms = since_ms;
        if (claims)
                t->owner = g;
}

static void queue_event(struct topic *t, struct group *g, struct om_span kind, int64_t level) {
        uint64_t bit = level >= LEVEL_MIN && level <= LEVEL_MAX ? (uint64_t) 1 << level : 0;

        if (!g)
                t->levels |= bit;
        else if (om_span_is(kind, "wait"))
                g->levels |= bit;
        else if (om_span_is(kind, "dead"))
                g->dead = true;
        else if (om_span_is(kind, "front") && !g->front) {
                g->front = true;
                rmq_group_changed(g);
        }
}

static void deleted_event(struct topic *t, bool dead) {
        struct group *g;

        DL_FOREACH (t->groups, g)
                group_gone(g, dead);
        t->listed = false;
        t->hold[0] = 0;
        t->owner = NULL;
        t->levels = t->log_base = t->log_own = 0;
        t->log_known = false;
        if (t->state == TOPIC_THERE)
                t->state = TOPIC_UNKNOWN;
}

static void apply(struct om_bus *b, const struct om_json_member *m, struct om_arena *arena) {
        struct om_span e = text_of(&m[E], arena), agent = text_of(&m[AGENT], arena);
        struct topic *t = m[TOPIC].value.type ? rmq_topic_get(b, text_of(&m[TOPIC], arena)) : NULL;
        struct group *g = t && agent.len ? rmq_group_find(t, agent) : NULL;
        bool dead = m[DEAD].value.type == OM_JSON_TRUE;

        if (!t)
                return;
        if (om_span_is(e, "topic"))
                topic_event(t, text_of(&m[HOLD], arena));
        else if (om_span_is(e, "hold") && t->listed) {
                t->generation++;
                t->owner = NULL;
                set_queue(t->hold, text_of(&m[HOLD], arena));
        } else if (om_span_is(e, "group") && t->listed)
                group_event(t, agent, text_of(&m[QUEUE], arena), number_of(&m[FROM]), number_of(&m[SINCE]));
        else if (om_span_is(e, "queue") && (g || !agent.len))
                queue_event(t, g, text_of(&m[KIND], arena), number_of(&m[LEVEL]));
        else if (om_span_is(e, "gone") && g)
                group_gone(g, dead);
        else if (om_span_is(e, "deleted"))
                deleted_event(t, dead);
}

/* -- adding ------------------------------------------------------------------------------------------------------------ */

static void add_told(struct add *a, int status, const struct om_error *e) {
        void (*done)(void *, int, const struct om_error *) = a->done;

        a->done = NULL;
        if (done)
                done(a->ctx, status, e);
}

static void add_free(struct directory *d, struct add *a) {
        DL_DELETE(d->adds, a);
        rmq_publication_deinit(&a->pub);
        free(a);
}

static void add_published(struct publication *p, int status, const char *why) {
        struct add *a = (struct add *) p;
        struct directory *d = p->bus->directory;
        struct om_error e = OM_ERROR_INIT;

        a->sent = false;
        if (status == 0 && !a->read)
                return; /* it is on its way back */
        if (status == -ENOENT && !a->read && !p->bus->closing) {
                const struct timeval tv = { 0, HOMELESS_MS * 1000 };

                if (!a->homeless_until_ms) {
                        a->homeless_until_ms = om_clock_ms() + HOMELESS_MAX_MS;
                        om_host_log(p->bus->host, OM_LOG_INFO, "RabbitMQ: the stream %s is not there yet: waiting for it", d->stream);
                }
                a->homeless = om_clock_ms() < a->homeless_until_ms;
                if (a->homeless && !event_pending(d->again, EV_TIMEOUT, NULL))
                        event_add(d->again, &tv);
                if (a->homeless)
                        return;
                why = "RabbitMQ: the stream of the directory has not come back";
        }
        if (status < 0 && !a->read) {
                om_error_set(&e, om_kind_of_errno(status), "%s", why);
                add_told(a, status, &e);
        }
        add_free(d, a);
}

/* A broker that has just started may not have its streams yet, and gives back what they should get. */
static void on_again(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct add *a, *next;

        DL_FOREACH_SAFE (b->directory->adds, a, next)
                if (a->homeless) {
                        a->homeless = false;
                        a->sent = true;
                        rmq_publication_send(&a->pub);
                }
}

void rmq_directory_add(struct om_bus *b, struct om_span text, void (*done)(void *ctx, int status, const struct om_error *e), void *ctx) {
        struct directory *d = b->directory;
        struct add *a = calloc(1, sizeof *a);
        struct om_buf body = OM_BUF_INIT;
        struct rmq_props props;
        struct om_error e = OM_ERROR_INIT;
        int r = a ? 0 : -ENOMEM;

        if (r == 0) {
                snprintf(a->name, sizeof a->name, "%016llx-%llu", (unsigned long long) d->self, (unsigned long long) ++d->n_adds);
                om_buf_printf(&body, "{\"i\":\"%s\",", a->name);
                om_buf_put_span(&body, text);
                om_buf_putc(&body, '}');
                rmq_props_of_move(&props, om_span_of(a->name), 0, 0, 0);
                r = om_buf_ok(&body)
                        ? rmq_publication_init(&a->pub, b, OM_SPAN(""), om_span_of(d->stream), a->name, &props, om_buf_span(&body))
                        : -ENOMEM;
                rmq_props_deinit(&props);
                om_buf_deinit(&body);
        }
        if (r < 0) {
                free(a);
                om_error_set_errno(&e, r, "RabbitMQ");
                done(ctx, r, &e);
                return;
        }
        a->done = done;
        a->ctx = ctx;
        a->pub.done = add_published;
        a->sent = true;
        DL_APPEND(d->adds, a);
        rmq_publication_send(&a->pub);
}

static void read_back(struct directory *d, struct om_span name) {
        struct add *a;

        DL_FOREACH (d->adds, a) {
                if (!om_span_is(name, a->name))
                        continue;
                a->read = true;
                add_told(a, 0, NULL);
                if (!a->sent)
                        add_free(d, a);
                return;
        }
}

/* -- reading ----------------------------------------------------------------------------------------------------------- */

static void on_event(struct om_bus *b, struct om_span text) {
        struct om_json_member m[N_MEMBERS + 1] = { [IS] = { .name = "i", .types = OM_JSON_STRING, .required = true },
                [E] = { .name = "e", .types = OM_JSON_STRING, .required = true },
                [TOPIC] = { .name = "topic", .types = OM_JSON_STRING },
                [HOLD] = { .name = "hold", .types = OM_JSON_STRING },
                [AGENT] = { .name = "agent", .types = OM_JSON_STRING },
                [QUEUE] = { .name = "queue", .types = OM_JSON_STRING },
                [FROM] = { .name = "from", .types = OM_JSON_NUMBER },
                [SINCE] = { .name = "since", .types = OM_JSON_NUMBER },
                [KIND] = { .name = "kind", .types = OM_JSON_STRING },
                [LEVEL] = { .name = "level", .types = OM_JSON_NUMBER },
                [DEAD] = { .name = "dead", .types = OM_JSON_BOOL } };
        struct om_arena arena = { 0 };
        struct om_error e = OM_ERROR_INIT;

        if (om_json_check(text, 4, &e) < 0 || om_json_members(text, "event", m, &e) < 0)
                om_host_log(b->host, OM_LOG_WARNING, "RabbitMQ: the directory %s has an event that is none of ours: %s",
                        b->directory->stream, e.message);
        else {
                apply(b, m, &arena);
                read_back(b->directory, text_of(&m[IS], &arena));
        }
        om_arena_deinit(&arena);
}

static void on_delivered(void *ctx, struct rmq_event *ev) {
        struct om_bus *b = ctx;
        struct directory *d = b->directory;
        const amqp_basic_deliver_t *deliver = ev->method;
        amqp_basic_ack_t ack = { .delivery_tag = deliver->delivery_tag, .multiple = 1 };
        int64_t offset = 0;

        if (ev->props->_flags & AMQP_BASIC_HEADERS_FLAG && rmq_field_int(rmq_table_get(&ev->props->headers, "x-stream-offset"), &offset)) {
                if (offset < d->next)
                        return; /* a chunk begins earlier than asked for */
                d->next = offset + 1;
        }
        if (++d->unacked >= ACK_EVERY && rmq_cast(d->channel, AMQP_BASIC_ACK_METHOD, &ack) == 0)
                d->unacked = 0;
        on_event(b, om_buf_span(ev->body));
}

/* -- coming up --------------------------------------------------------------------------------------------------------- */

/* Before it was read once the broker is of no use. Later it is read on when that can be: after a broker's crash its streams take some
 * seconds longer to come back than its queues. */
static void cannot_read(struct om_bus *b, const struct om_error *e) {
        struct timeval tv = { 0, RETRY_MS * 1000 };

        b->directory->reading = false;
        if (!b->loaded)
                rmq_bus_fail(b, e);
        else if (!b->closing)
                event_add(b->directory->retry, &tv);
}

static void on_retry(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;

        if (b->main_up && b->pub_up && !b->closing)
                rmq_directory_up(b);
}

static void hello_read(void *ctx, int status, const struct om_error *e) {
        struct om_bus *b = ctx;

        if (!b->main_up || !b->pub_up || b->loaded)
                return;
        if (status < 0 && status != -EAGAIN)
                cannot_read(b, e);
        else if (status == 0)
                rmq_bus_ready(b);
        else if (rmq_confirm_refuses(b))
                rmq_bus_check(b); /* blocked: said again when that is over */
}

static void say_hello(struct om_bus *b) { rmq_directory_add(b, OM_SPAN("\"e\":\"hello\""), hello_read, b); }

static void step_failed(void *ctx, const struct rmq_answer *answer) {
        struct om_bus *b = ctx;

        if (answer->status < 0 && answer->status != -EAGAIN)
                cannot_read(b, answer->error);
}

static void declared(void *ctx, const struct rmq_answer *answer) {
        struct om_bus *b = ctx;
        struct directory *d = b->directory;
        amqp_basic_qos_t qos = { .prefetch_count = PREFETCH };
        struct rmq_table table = { .n = 0 };
        amqp_basic_consume_t consume = { .queue = rmq_text(d->stream), .consumer_tag = rmq_text("directory") };

        if (answer->status < 0 || d->reading) {
                step_failed(ctx, answer);
                return;
        }
        if (d->next)
                rmq_table_int(&table, "x-stream-offset", d->next);
        else
                rmq_table_text(&table, "x-stream-offset", OM_SPAN("first"));
        consume.arguments = rmq_table(&table);
        d->unacked = 0;
        d->reading = true;
        rmq_call(d->channel, AMQP_BASIC_QOS_METHOD, &qos, step_failed, b);
        rmq_call(d->channel, AMQP_BASIC_CONSUME_METHOD, &consume, step_failed, b);
        if (!b->loaded)
                say_hello(b);
}

static void declare(struct om_bus *b) {
        struct rmq_table table = { .n = 0 };
        amqp_queue_declare_t queue = { .queue = rmq_text(b->directory->stream), .durable = 1 };

        rmq_table_text(&table, "x-queue-type", OM_SPAN("stream"));
        queue.arguments = rmq_table(&table);
        rmq_call(b->control, AMQP_QUEUE_DECLARE_METHOD, &queue, declared, b);
}

static void exchange_there(void *ctx, const struct rmq_answer *answer) {
        if (answer->status < 0)
                step_failed(ctx, answer);
        else
                declare(ctx);
}

/* What we may not make, or what was made with other arguments, is taken as it is; but its type must be what we think. */
static void exchange_declared(void *ctx, const struct rmq_answer *answer) {
        struct om_bus *b = ctx;
        amqp_exchange_declare_t exchange = {
                .exchange = rmq_text(b->settings.exchange), .type = rmq_text(rmq_exchange_types[b->settings.exchange_type]), .passive = 1
        };

        if (answer->status == -EACCES || (answer->status == -EINVAL && !strstr(answer->error->message, "exchange_type")))
                rmq_call(b->control, AMQP_EXCHANGE_DECLARE_METHOD, &exchange, exchange_there, b);
        else
                exchange_there(ctx, answer);
}

void rmq_directory_up(struct om_bus *b) {
        amqp_exchange_declare_t exchange = {
                .exchange = rmq_text(b->settings.exchange), .type = rmq_text(rmq_exchange_types[b->settings.exchange_type]), .durable = 1
        };

        rmq_call(b->control, AMQP_EXCHANGE_DECLARE_METHOD, &exchange, exchange_declared, b);
}

void rmq_directory_down(struct om_bus *b) {
        b->directory->reading = false;
        event_del(b->directory->retry);
}

static void on_closed(void *ctx, int status, const struct om_error *e) { cannot_read(ctx, e); }

/* Its leader's node went, say: read on from another. */
static void on_cancelled(void *ctx, struct om_span tag) {
        struct om_bus *b = ctx;
        struct om_error e = OM_ERROR_INIT;

        om_error_set(
                &e, OM_UNAVAILABLE, "RabbitMQ at %s: the directory %s cannot be read now", rmq_link_where(b->main), b->directory->stream);
        cannot_read(b, &e);
}

int rmq_directory_open(struct om_bus *b) {
        static const struct rmq_channel_events events = { .delivered = on_delivered, .closed = on_closed, .cancelled = on_cancelled };
        struct directory *d = calloc(1, sizeof *d);

        if (!d)
                return -ENOMEM;
        b->directory = d;
        d->self = om_random_u64();
        snprintf(d->stream, sizeof d->stream, "%s.directory", b->settings.prefix);
        d->channel = rmq_channel_new(b->main, false, &events, b);
        d->retry = evtimer_new(b->host->base, on_retry, b);
        d->again = evtimer_new(b->host->base, on_again, b);
        return d->channel && d->retry && d->again ? 0 : -ENOMEM;
}

void rmq_directory_free(struct om_bus *b) {
        struct add *a, *tmp;
        struct topic *t, *next;

        if (b->directory)
                DL_FOREACH_SAFE (b->directory->adds, a, tmp)
                        add_free(b->directory, a);
        if (b->directory && b->directory->retry)
                event_free(b->directory->retry);
        if (b->directory && b->directory->again)
                event_free(b->directory->again);
        free(b->directory);
        b->directory = NULL;
        HASH_ITER (hh, b->topics, t, next) {
                struct group *g, *after;

                HASH_DEL(b->topics, t);
                DL_FOREACH_SAFE (t->groups, g, after)
                        free(g);
                free(t);
        }
}
