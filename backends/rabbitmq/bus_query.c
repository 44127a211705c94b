/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions: topics, groups, what a topic holds, dead letters, health. What each row is made of:
 *
 *   published   the length of the topic's log
 *   lag         messages that are ready in the group's queue and its front queue, and those that wait in this daemon
 *   leased      with this daemon's workers: AMQP does not tell what others have. While other daemons serve the group too, what they have is
 *               in `finished`
 *   retrying    in the group's wait queues, or in memory for the last milliseconds
 *   finished    published since the group began, less all of these; without a log, and for a pattern, what this daemon has seen finished
 *   expired     what this daemon has seen expire
 *   depth       of the group that has the most to do; before the first group, in the holding queue
 *
 * What a topic holds is its log, which has what is finished too, until it is trimmed.
 *
 * Loop thread.
 */
#include "bus_state.h"

struct tally { /* of a group */
        struct group *group;
        uint64_t ready, front, dead, levels[LEVEL_MAX + 1];
};
struct topic_tally {
        struct topic *topic;
        uint64_t log, hold, levels[LEVEL_MAX + 1];
        struct tally *groups;
        size_t n_groups;
};
struct query {
        struct om_job job; /* first */
        struct om_bus *bus;
        struct om_bus_query *op;
        struct om_arena arena;
        enum om_bus_query_type type;
        size_t limit, n, cap;
        struct topic_tally *tallies;
        size_t n_tallies;
        struct counting counting;
        uint64_t directory;
        struct browse browse;
        char **ids;
        size_t n_ids;
        struct topic *topic;
        union {
                struct om_bus_topic_row *topics;
                struct om_bus_group_row *groups;
                struct om_bus_held_row *held;
                struct om_dead_letter *dead;
        };
        struct om_span cursor, info;
        int64_t asked_ms;
        int status;
        struct om_error error;
};

static void query_free(struct om_job *j) {
        struct query *q = (struct query *) j;

        rmq_count_deinit(&q->counting);
        om_arena_deinit(&q->arena);
        free(q);
}

static void over(struct query *q, int status, const struct om_error *e) {
        struct om_bus_query *op = q->op;

        if (!om_job_is_cancelled(&q->job) && status == 0) {
                op->arena = q->arena;
                q->arena = (struct om_arena){ 0 };
                op->dead = q->dead;
                op->n = q->n;
                op->next_cursor = q->cursor;
                op->info = q->info;
        }
        om_job_over(&q->job, status, e);
}

static void no_memory(struct query *q) {
        struct om_error e = OM_ERROR_INIT;

        over(q, om_error_set_errno(&e, ENOMEM, "RabbitMQ"), &e);
}

/* Room for another row; false: out of memory. */
static bool room(struct query *q, size_t size) {
        size_t cap = q->cap ? q->cap * 2 : 16;
        void *rows;

        if (q->n < q->cap)
                return true;
        rows = om_arena_alloc(&q->arena, cap * size);
        if (!rows)
                return false;
        if (q->n)
                memcpy(rows, q->dead, q->n * size);
        q->dead = rows;
        q->cap = cap;
        return true;
}

/* -- counting ---------------------------------------------------------------------------------------------------------- */

static bool counted_here(const struct topic *t) { return t->bus->settings.log && !t->pattern && !t->foreign; }

static int count_levels(struct query *q, struct topic *t, struct group *g, uint64_t bits, uint64_t *to) {
        char name[QUEUE_NAME_MAX];
        int r = 0;

        for (unsigned k = LEVEL_MIN; k <= LEVEL_MAX && r == 0; k++)
                if ((bits >> k) & 1) {
                        rmq_queue_name(name, t, g, QUEUE_WAIT, k);
                        r = rmq_count_add(&q->counting, name, &to[k]);
                }
        return r;
}

static int count_group(struct query *q, struct tally *tally, struct group *g) {
        char name[QUEUE_NAME_MAX];
        int r = rmq_count_add(&q->counting, g->queue, &tally->ready);

        tally->group = g;
        if (r == 0 && g->front) {
                rmq_queue_name(name, g->topic, g, QUEUE_FRONT, 0);
                r = rmq_count_add(&q->counting, name, &tally->front);
        }
        if (r == 0 && g->dead) {
                rmq_queue_name(name, g->topic, g, QUEUE_DEAD, 0);
                r = rmq_count_add(&q->counting, name, &tally->dead);
        }
        return r < 0 ? r : count_levels(q, g->topic, g, g->levels, tally->levels);
}

static int count_topic(struct query *q, struct topic_tally *tally, struct topic *t) {
        struct group *g;
        size_t n = 0;
        int r = 0;

        tally->topic = t;
        DL_FOREACH (t->groups, g)
                n += g->listed;
        tally->groups = om_arena_alloc(&q->arena, (n + 1) * sizeof *tally->groups);
        if (!tally->groups)
                return -ENOMEM;
        memset(tally->groups, 0, (n + 1) * sizeof *tally->groups);
        if (counted_here(t))
                r = rmq_count_log(&q->counting, t, &tally->log);
        if (r == 0 && t->hold[0] && !t->owner)
                r = rmq_count_add(&q->counting, t->hold, &tally->hold);
        DL_FOREACH (t->groups, g)
                if (r == 0 && g->listed)
                        r = count_group(q, &tally->groups[tally->n_groups++], g);
        return r < 0 ? r : count_levels(q, t, NULL, t->levels, tally->levels);
}

static int by_name(const void *a, const void *b) {
        const struct topic *const *one = a, *const *two = b;

        return strcmp((*one)->name, (*two)->name);
}

static bool wanted(const struct query *q, const struct topic *t) {
        return t->listed && (q->op->topic.p ? om_span_is(q->op->topic, t->name) : q->type == OM_QUERY_GROUPS || !t->pattern);
}

/* In the order of their names, from behind the cursor on. */
static int count_all(struct query *q) {
        const struct om_bus_query *op = q->op;
        size_t n = 0, all = HASH_COUNT(q->bus->topics);
        struct topic **list = calloc(all + 1, sizeof(struct topic *));
        int r = list ? 0 : -ENOMEM;

        for (struct topic *t = q->bus->topics; t && list; t = t->hh.next)
                if (wanted(q, t) &&
                        (!op->cursor.p || strncmp(t->name, op->cursor.p, op->cursor.len) > 0 ||
                                (strncmp(t->name, op->cursor.p, op->cursor.len) == 0 && strlen(t->name) > op->cursor.len)))
                        list[n++] = t;
        if (list)
                qsort(list, n, sizeof(struct topic *), by_name);
        if (q->limit && n > q->limit && q->type == OM_QUERY_TOPICS && r == 0) {
                n = q->limit;
                q->cursor = om_arena_copy(&q->arena, om_span_of(list[n - 1]->name));
        }
        q->tallies = om_arena_alloc(&q->arena, (n + 1) * sizeof *q->tallies);
        if (!q->tallies)
                r = -ENOMEM;
        else
                memset(q->tallies, 0, (n + 1) * sizeof *q->tallies);
        for (size_t i = 0; i < n && r == 0; i++)
                r = count_topic(q, &q->tallies[q->n_tallies++], list[i]);
        free(list);
        return r;
}

static uint64_t sum(const uint64_t levels[LEVEL_MAX + 1]) {
        uint64_t n = 0;

        for (unsigned k = LEVEL_MIN; k <= LEVEL_MAX; k++)
                n += levels[k];
        return n;
}

static bool group_row(struct query *q, const struct topic_tally *t, const struct tally *tally, struct om_bus_group_row *row) {
        const struct group *g = tally->group;
        const struct om_bus_sub *s = g->sub;
        const struct delivery *d;
        uint64_t waiting = 0, early = 0, gone = 0, undone, past;

        if (s) {
                DL_COUNT(s->waiting, d, waiting);
                DL_COUNT(s->early, d, early);
                DL_FOREACH (s->out, d)
                        gone += d->delivery.gone;
        }
        *row = (struct om_bus_group_row){ .topic = om_arena_copy(&q->arena, om_span_of(t->topic->name)),
                .agent = om_arena_copy(&q->arena, om_span_of(g->agent)),
                .lag = tally->ready + tally->front + waiting,
                .leased = s ? s->n_given - gone : 0,
                .retrying = sum(tally->levels) + early,
                .dead = tally->dead,
                .expired = g->expired,
                .finished = g->finished };
        undone = row->lag + row->leased + row->retrying + g->expired;
        past = t->log > g->from ? t->log - g->from : 0;
        if (counted_here(t->topic))
                row->finished = past > undone ? past - undone : 0;
        return row->topic.p && row->agent.p;
}

static bool topic_row(struct query *q, const struct topic_tally *t) {
        struct om_bus_topic_row *row = &q->topics[q->n];
        uint64_t finished = 0;

        *row = (struct om_bus_topic_row){ .topic = om_arena_copy(&q->arena, om_span_of(t->topic->name)),
                .published = t->log,
                .depth = t->hold,
                .delayed = sum(t->levels),
                .groups = (uint32_t) t->n_groups };
        for (size_t i = 0; i < t->n_groups; i++) {
                struct om_bus_group_row g;
                uint64_t undone;

                if (!group_row(q, t, &t->groups[i], &g))
                        return false;
                undone = g.lag + g.leased + g.retrying;
                if (undone > row->depth)
                        row->depth = undone;
                if (undone + g.finished > finished)
                        finished = undone + g.finished;
        }
        if (!counted_here(t->topic))
                row->published = finished;
        q->n++;
        return row->topic.p;
}

static void all_counted(struct counting *c) {
        struct query *q = c->ctx;
        bool ok = true;

        if (c->status < 0) {
                over(q, c->status, &c->error);
                return;
        }
        for (size_t i = 0; i < q->n_tallies && ok; i++) {
                const struct topic_tally *t = &q->tallies[i];

                if (q->type == OM_QUERY_TOPICS)
                        ok = room(q, sizeof q->topics[0]) && topic_row(q, t);
                else
                        for (size_t k = 0; k < t->n_groups && ok; k++) {
                                ok = room(q, sizeof q->groups[0]) && group_row(q, t, &t->groups[k], &q->groups[q->n]);
                                q->n += ok;
                        }
        }
        if (ok)
                over(q, 0, NULL);
        else
                no_memory(q);
}

/* -- a topic's log, and dead letters -------------------------------------------------------------------------------------- */

static void browse_ended(struct browse *w) {
        struct query *q = w->ctx;

        over(q, q->status, q->status < 0 ? &q->error : NULL);
}

static void browsed(struct browse *w, int status, const struct om_error *e) {
        struct query *q = w->ctx;

        if (status < 0 && status != -ENOENT && q->status == 0) { /* a queue that is not there has nothing */
                q->status = status;
                q->error = *e;
        }
        rmq_browse_end(w, browse_ended);
}

static bool stop(struct query *q) {
        q->status = om_error_set_errno(&q->error, ENOMEM, "RabbitMQ");
        return false;
}

static bool held_came(struct browse *w, struct rmq_event *ev, uint64_t place, uint64_t tag) {
        struct query *q = w->ctx;
        char text[64];
        struct om_span id, body;
        const amqp_basic_deliver_t *m = ev->method;

        if (q->limit && q->n == q->limit) {
                snprintf(text, sizeof text, "%llu-%llu", (unsigned long long) place, (unsigned long long) w->end);
                q->cursor = om_arena_copy(&q->arena, om_span_of(text));
                return false;
        }
        snprintf(text, sizeof text, "%llu", (unsigned long long) place);
        body = om_arena_copy(&q->arena, om_buf_span(ev->body));
        if (!body.p || !room(q, sizeof q->held[0]))
                return stop(q);
        q->held[q->n].id = om_arena_copy(&q->arena, om_span_of(text));
        q->held[q->n].record = rmq_record(body, ev->props, q->topic->name, rmq_span(m->routing_key), &q->arena, &id);
        if (!q->held[q->n].id.p || !q->held[q->n].record.p)
                return stop(q);
        q->n++;
        return true;
}

static bool asked_for(const struct query *q, struct om_span id) {
        for (size_t i = 0; i < q->n_ids; i++)
                if (om_span_is(id, q->ids[i]))
                        return true;
        return q->n_ids == 0;
}

static bool dead_came(struct browse *w, struct rmq_event *ev, uint64_t place, uint64_t tag) {
        struct query *q = w->ctx;
        struct om_span id = ev->props->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ? rmq_span(ev->props->message_id) : OM_SPAN(""), body;
        struct om_dead_letter *row;
        char text[24];

        if (place < w->from || !asked_for(q, id))
                return true;
        if (q->limit && q->n == q->limit) {
                snprintf(text, sizeof text, "%llu", (unsigned long long) place);
                q->cursor = om_arena_copy(&q->arena, om_span_of(text));
                return false;
        }
        body = om_arena_copy(&q->arena, om_buf_span(ev->body));
        if (!body.p || !room(q, sizeof q->dead[0]))
                return stop(q);
        row = &q->dead[q->n];
        if (om_letter_read(body, &q->arena, row)) {
                row->id = om_arena_copy(&q->arena, id);
                if (!row->id.p)
                        return stop(q);
                q->n++;
        }
        return !q->n_ids || q->n < q->n_ids;
}

static uint64_t number(struct om_span s, char end) {
        uint64_t n = 0;

        for (size_t i = 0; i < s.len && s.p[i] != end; i++)
                if (s.p[i] >= '0' && s.p[i] <= '9' && n < UINT64_MAX / 16)
                        n = n * 10 + (uint64_t) (s.p[i] - '0');
        return n;
}

static void held_counted(struct counting *c) {
        struct query *q = c->ctx;

        if (c->status < 0)
                over(q, c->status, &c->error);
        else
                rmq_browse_start(&q->browse);
}

static int held(struct query *q, struct om_error *e) {
        const struct om_bus_query *op = q->op;
        const char *dash = op->cursor.p ? memchr(op->cursor.p, '-', op->cursor.len) : NULL;

        q->topic = rmq_topic_get(q->bus, op->topic);
        if (!q->topic || !counted_here(q->topic))
                return om_error_set(e, OM_UNSUPPORTED, "RabbitMQ: what a topic holds is read from its log: %s",
                        q->bus->settings.log ? "patterns and queues of other programs have none" : "set log=true in the URL");
        q->browse = (struct browse){ .bus = q->bus, .log = true, .each = held_came, .done = browsed, .ctx = q };
        rmq_log_name(q->browse.queue, q->topic);
        q->browse.from = number(op->cursor, '-');
        q->counting.done = held_counted;
        if (!dash && rmq_count_log(&q->counting, q->topic, &q->browse.end) < 0)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        if (dash)
                q->browse.end = number((struct om_span){ dash + 1, op->cursor.len - (size_t) (dash + 1 - op->cursor.p) }, 0);
        return 0;
}

static int dead(struct query *q, struct om_error *e) {
        const struct om_bus_query *op = q->op;
        struct topic *t = NULL;
        struct group *g;

        HASH_FIND(hh, q->bus->topics, op->topic.p, op->topic.len, t);
        g = t ? rmq_group_find(t, op->agent) : NULL;
        if (!g || (!g->listed && !g->dead))
                return om_error_set(e, OM_NOT_FOUND, "RabbitMQ: no group of the agent %.*s on the topic %.*s",
                        (int) (op->agent.len < 100 ? op->agent.len : 100), op->agent.p, (int) (op->topic.len < 100 ? op->topic.len : 100),
                        op->topic.p);
        q->browse = (struct browse){ .bus = q->bus, .each = dead_came, .done = browsed, .ctx = q, .from = number(op->cursor, 0) };
        if (g->dead)
                rmq_queue_name(q->browse.queue, t, g, QUEUE_DEAD, 0);
        q->ids = om_arena_alloc(&q->arena, (op->n_ids + 1) * sizeof(char *));
        if (!q->ids)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        for (size_t i = 0; i < op->n_ids; i++) {
                struct om_span id = om_arena_copy(&q->arena, op->ids[i]);

                if (!id.p)
                        return om_error_set_errno(e, ENOMEM, "RabbitMQ");
                q->ids[q->n_ids++] = (char *) id.p;
        }
        return 0;
}

/* -- health ------------------------------------------------------------------------------------------------------------ */

static void health_counted(struct counting *c) {
        struct query *q = c->ctx;
        struct om_bus *b = q->bus;
        const char *refuses = rmq_confirm_refuses(b);
        struct om_buf text = OM_BUF_INIT;

        if (c->status < 0) {
                over(q, c->status, &c->error);
                return;
        }
        om_buf_lit(&text, "{\"durability\":\"strong\",\"server\":");
        om_buf_json_span(&text, om_span_of(rmq_link_version(b->main)));
        om_buf_lit(&text, ",\"address\":");
        om_buf_json_span(&text, om_span_of(rmq_link_where(b->main)));
        om_buf_lit(&text, ",\"virtual_host\":");
        om_buf_json_span(&text, om_span_of(b->settings.vhost));
        om_buf_printf(&text, ",\"queues\":\"%s\",\"log\":%s,\"blocked\":%s,\"latency_ms\":%lld,\"takeover\":\"connection\",\"priority\":%s",
                b->settings.queue_type == RMQ_CLASSIC ? "classic" : "quorum", b->settings.log ? "true" : "false",
                rmq_link_is_blocked(b->pub) ? "true" : "false", (long long) (om_clock_ms() - q->asked_ms),
                b->settings.queue_type == RMQ_CLASSIC ? "true" : "false");
        if (refuses) {
                om_buf_lit(&text, ",\"why\":");
                om_buf_json_span(&text, om_span_of(refuses));
        }
        om_buf_putc(&text, '}');
        q->info = om_buf_ok(&text) ? om_arena_copy(&q->arena, om_buf_span(&text)) : OM_SPAN_NONE;
        om_buf_deinit(&text);
        if (q->info.p)
                over(q, 0, NULL);
        else
                no_memory(q);
}

/* -- the entry --------------------------------------------------------------------------------------------------------- */

static int prepare(struct query *q, struct om_error *e) {
        char name[QUEUE_NAME_MAX];
        int r = 0;

        switch (q->type) {
        case OM_QUERY_TOPICS:
        case OM_QUERY_GROUPS:
                q->counting.done = all_counted;
                r = count_all(q);
                break;
        case OM_QUERY_HELD:
                return held(q, e);
        case OM_QUERY_DEAD:
                return dead(q, e);
        case OM_QUERY_HEALTH:
                snprintf(name, sizeof name, "%s.directory", q->bus->settings.prefix);
                q->counting.done = health_counted;
                r = rmq_count_add(&q->counting, name, &q->directory);
                break;
        }
        return r < 0 ? om_error_set_errno(e, r, "RabbitMQ") : 0;
}

int rmq_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        int r = rmq_admit(b, 0, e);
        struct query *q;

        if (r < 0)
                return r;
        q = calloc(1, sizeof *q);
        if (!q)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        q->bus = b;
        q->op = op;
        q->type = op->type;
        q->limit = op->limit;
        q->counting.bus = b;
        q->counting.ctx = q;
        q->asked_ms = om_clock_ms();
        om_job_begin(&b->jobs, &q->job, &op->op, 0, query_free);
        r = prepare(q, &q->error);
        if (r < 0)
                over(q, r, &q->error);
        else if (q->counting.done)
                rmq_count_start(&q->counting);
        else if (!q->browse.queue[0])
                over(q, 0, NULL); /* no letter was ever written */
        else
                rmq_browse_start(&q->browse);
        return 0;
}
