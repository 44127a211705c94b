/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes: groups and topics deleted, dead letters replayed and purged.
 *
 * A group's deletion is an event in the directory first, so that every daemon that serves it stops; then its queues go. Before the last
 * group of a topic goes a fresh holding queue is bound and in the directory: nothing that is published meanwhile is missed.
 *
 * A replay copies the letter's record to the group's front queue, and acknowledges the letter when the copy is confirmed.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { BATCH = 500 };

struct change;
struct replay {                 /* of one letter */
        struct publication pub; /* first */
        struct change *change;
        uint64_t tag;
        char id[OM_NAME_MAX + 1];
};
struct change {
        struct om_job job; /* first */
        struct om_bus *bus;
        struct om_bus_change *op;
        enum om_bus_change_type type;
        struct topic *topic;
        struct group *group;
        bool delete_dead;
        uint64_t n_done, to_do; /* of letters */
        char **ids;
        size_t n_ids, n_found;
        struct om_arena arena;
        struct browse browse;
        struct wait wait;
        unsigned open; /* copies, deletions */
        uint64_t *acks;
        size_t n_taken;
        char (*queues)[QUEUE_NAME_MAX]; /* to be deleted */
        size_t n_queues, cap_queues;
        char hold[QUEUE_NAME_MAX];
        int status;
        struct om_error error;
};

static void change_free(struct om_job *j) {
        struct change *c = (struct change *) j;

        om_arena_deinit(&c->arena);
        free(c->queues);
        free(c);
}

static void over(struct change *c, int status, const struct om_error *e) {
        if (!om_job_is_cancelled(&c->job))
                c->op->ret_n = c->n_done;
        om_job_over(&c->job, status, e);
}

static void failed(struct change *c, int r) {
        struct om_error e = OM_ERROR_INIT;

        over(c, om_error_set(&e, om_kind_of_errno(r), "RabbitMQ: %s", r == -EAGAIN ? "not connected" : "out of memory"), &e);
}

/* -- deleting ------------------------------------------------------------------------------------------------------------ */

static bool to_delete(struct change *c, const char *queue) {
        if (!queue[0])
                return true;
        if (c->n_queues == c->cap_queues) {
                size_t cap = c->cap_queues ? c->cap_queues * 2 : 16;
                void *more = reallocarray(c->queues, cap, sizeof *c->queues);

                if (!more)
                        return false;
                c->queues = more;
                c->cap_queues = cap;
        }
        snprintf(c->queues[c->n_queues++], QUEUE_NAME_MAX, "%s", queue);
        return true;
}

static bool levels_to_delete(struct change *c, struct topic *t, struct group *g, uint64_t bits) {
        char name[QUEUE_NAME_MAX];

        for (unsigned k = LEVEL_MIN; k <= LEVEL_MAX; k++)
                if ((bits >> k) & 1) {
                        rmq_queue_name(name, t, g, QUEUE_WAIT, k);
                        if (!to_delete(c, name))
                                return false;
                }
        return true;
}

/* Wait queues first: what falls out of them must not find the front queue made anew. */
static bool group_to_delete(struct change *c, struct group *g) {
        char name[QUEUE_NAME_MAX];
        bool ok = levels_to_delete(c, g->topic, g, g->levels);

        if (ok && g->front) {
                rmq_queue_name(name, g->topic, g, QUEUE_FRONT, 0);
                ok = to_delete(c, name);
        }
        if (ok && g->dead && c->delete_dead) {
                rmq_queue_name(name, g->topic, g, QUEUE_DEAD, 0);
                ok = to_delete(c, name);
        }
        return ok && (g->topic->foreign || !g->listed || to_delete(c, g->queue));
}

static bool topic_to_delete(struct change *c) {
        struct topic *t = c->topic;
        struct group *g;
        char name[QUEUE_NAME_MAX];
        bool ok = levels_to_delete(c, t, NULL, t->levels);

        DL_FOREACH (t->groups, g)
                if (ok && (g->listed || g->dead))
                        ok = group_to_delete(c, g);
        if (ok && t->hold[0] && !t->owner)
                ok = to_delete(c, t->hold);
        if (ok && c->bus->settings.log && !t->pattern && !t->foreign) {
                rmq_log_name(name, t);
                ok = to_delete(c, name);
        }
        return ok;
}

static void one_deleted(void *ctx, const struct rmq_answer *answer) {
        struct change *c = ctx;

        if (answer->status < 0 && answer->status != -ENOENT && c->status == 0) {
                c->status = answer->status;
                c->error = *answer->error;
        }
        if (--c->open == 0)
                over(c, c->status, &c->error);
}

static void delete_queues(void *ctx, int status, const struct om_error *e) {
        struct change *c = ctx;

        if (status < 0) {
                over(c, status, e);
                return;
        }
        c->open = 1;
        c->n_done = 1;
        for (size_t i = 0; i < c->n_queues; i++) {
                amqp_queue_delete_t m = { .queue = rmq_text(c->queues[i]) };

                if (rmq_call(c->bus->control, AMQP_QUEUE_DELETE_METHOD, &m, one_deleted, c) == 0)
                        c->open++;
        }
        one_deleted(c, &(struct rmq_answer){ .status = 0 });
}

static void put_event(struct change *c, const char *what, void (*then)(void *, int, const struct om_error *)) {
        struct om_buf text = OM_BUF_INIT;

        om_buf_printf(&text, "\"e\":\"%s\",\"topic\":", what);
        om_buf_json_span(&text, om_span_of(c->topic->name));
        if (c->group) {
                om_buf_lit(&text, ",\"agent\":");
                om_buf_json_span(&text, om_span_of(c->group->agent));
        }
        if (strcmp(what, "hold") == 0) {
                om_buf_lit(&text, ",\"hold\":");
                om_buf_json_span(&text, om_span_of(c->hold));
        } else
                om_buf_printf(&text, ",\"dead\":%s", c->delete_dead ? "true" : "false");
        if (om_buf_ok(&text))
                rmq_directory_add(c->bus, om_buf_span(&text), then, c);
        else
                failed(c, -ENOMEM);
        om_buf_deinit(&text);
}

static void hold_listed(void *ctx, int status, const struct om_error *e) {
        if (status < 0)
                over(ctx, status, e);
        else
                put_event(ctx, "gone", delete_queues);
}

static void hold_bound(void *ctx, const struct rmq_answer *answer) {
        struct change *c = ctx;

        if (answer->status < 0)
                over(c, answer->status, answer->error);
        else
                put_event(c, "hold", hold_listed);
}

static void hold_declared(void *ctx, const struct rmq_answer *answer) {
        struct change *c = ctx;

        if (answer->status < 0)
                over(c, answer->status, answer->error);
        else if (rmq_bind(c->bus, c->topic, c->hold, hold_bound, c) < 0)
                failed(c, -EAGAIN);
}

static bool is_last(const struct group *g) {
        const struct group *other;

        if (g->topic->pattern || g->topic->foreign)
                return false;
        DL_FOREACH (g->topic->groups, other)
                if (other != g && other->listed)
                        return false;
        return true;
}

static void delete_group(struct change *c) {
        struct topic *t = c->topic;
        int r;

        if (!group_to_delete(c, c->group)) {
                failed(c, -ENOMEM);
                return;
        }
        if (!is_last(c->group)) {
                put_event(c, "gone", delete_queues);
                return;
        }
        snprintf(c->hold, sizeof c->hold, "%s.t.%s.%u", c->bus->settings.prefix, t->nt, t->generation + 1);
        r = rmq_declare_group_queue(c->bus, c->hold, hold_declared, c);
        if (r < 0)
                failed(c, r);
}

static void delete_topic(struct change *c) {
        c->group = NULL;
        if (topic_to_delete(c))
                put_event(c, "deleted", delete_queues);
        else
                failed(c, -ENOMEM);
}

/* -- dead letters -------------------------------------------------------------------------------------------------------- */

static void browse(struct change *c);

static void batch_ended(struct browse *w) {
        struct change *c = w->ctx;
        bool all = !c->n_ids, more = c->n_taken && (all ? c->n_done < c->to_do : c->n_found < c->n_ids);

        if (c->status < 0 || !more)
                over(c, c->status, &c->error);
        else
                browse(c);
}

static void end_batch(struct change *c) { rmq_browse_end(&c->browse, batch_ended); }

static void replay_over(struct replay *r, int status, const char *why) {
        struct change *c = r->change;

        if (status == 0) {
                rmq_browse_ack(&c->browse, r->tag);
                c->n_done++;
        } else if (c->status == 0)
                c->status = om_error_set(&c->error, om_kind_of_errno(status), "%s", why);
        rmq_publication_deinit(&r->pub);
        free(r);
        if (--c->open == 0)
                end_batch(c);
}

static void replayed(struct publication *p, int status, const char *why) { replay_over((struct replay *) p, status, why); }

/* Attempts anew: none before. A letter that is none of ours goes back as it is. */
static void replay(struct change *c, struct rmq_event *ev, uint64_t tag) {
        struct replay *r = calloc(1, sizeof *r);
        struct om_arena arena = { 0 };
        struct om_dead_letter letter;
        struct om_span body = om_buf_span(ev->body), record, id = OM_SPAN_NONE;
        struct rmq_props props;
        char front[QUEUE_NAME_MAX];
        int status;

        if (!r) {
                c->status = om_error_set_errno(&c->error, ENOMEM, "RabbitMQ");
                return;
        }
        r->change = c;
        r->tag = tag;
        r->pub.done = replayed;
        c->open++;
        record = om_letter_read(body, &arena, &letter) ? letter.record : body;
        rmq_record(record, ev->props, NULL, OM_SPAN(""), &arena, &id);
        snprintf(r->id, sizeof r->id, "%.*s", OM_PRI(id));
        rmq_queue_name(front, c->topic, c->group, QUEUE_FRONT, 0);
        rmq_props_of_move(&props, om_span_of(r->id), 0, 0, 0);
        status = rmq_publication_init(&r->pub, c->bus, OM_SPAN(""), om_span_of(front), r->id, &props, record);
        rmq_props_deinit(&props);
        if (status == 0)
                rmq_publication_send(&r->pub);
        else
                replay_over(r, status, "out of memory");
        om_arena_deinit(&arena);
}

static bool wanted(struct change *c, const struct rmq_event *ev) {
        struct om_span id = ev->props->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ? rmq_span(ev->props->message_id) : OM_SPAN("");

        for (size_t i = 0; i < c->n_ids; i++)
                if (c->ids[i] && om_span_is(id, c->ids[i])) {
                        c->ids[i] = NULL;
                        c->n_found++;
                        return true;
                }
        return c->n_ids == 0;
}

static bool letter_came(struct browse *w, struct rmq_event *ev, uint64_t place, uint64_t tag) {
        struct change *c = w->ctx;

        if (!c->to_do && !c->n_ids)
                c->to_do = w->count;
        if (wanted(c, ev)) {
                c->n_taken++;
                if (c->type == OM_CHANGE_REPLAY_DEAD)
                        replay(c, ev, tag);
                else {
                        rmq_browse_ack(w, tag);
                        c->n_done++;
                }
        }
        return c->status == 0 && c->n_taken < BATCH && (!c->n_ids || c->n_found < c->n_ids) &&
                (c->n_ids || c->n_done + c->open - 1 < c->to_do);
}

static void browsed(struct browse *w, int status, const struct om_error *e) {
        struct change *c = w->ctx;

        if (status < 0 && status != -ENOENT && c->status == 0) {
                c->status = status;
                c->error = *e;
        }
        if (--c->open == 0)
                end_batch(c);
}

static void browse(struct change *c) {
        c->n_taken = 0;
        c->open = 1;
        c->browse = (struct browse){ .bus = c->bus, .each = letter_came, .done = browsed, .ctx = c };
        rmq_queue_name(c->browse.queue, c->topic, c->group, QUEUE_DEAD, 0);
        rmq_browse_start(&c->browse);
}

static void front_there(struct wait *w, int status, const struct om_error *e) {
        struct change *c = (void *) ((char *) w - offsetof(struct change, wait));

        if (status < 0)
                over(c, status, e);
        else
                browse(c);
}

static void all_purged(void *ctx, const struct rmq_answer *answer) {
        struct change *c = ctx;

        if (answer->status == 0)
                c->n_done = ((amqp_queue_purge_ok_t *) answer->event->method)->message_count;
        over(c, answer->status == -ENOENT ? 0 : answer->status, answer->error);
}

static void purge_all(struct change *c) {
        char name[QUEUE_NAME_MAX];
        amqp_queue_purge_t m = { .ticket = 0 };
        int r;

        rmq_queue_name(name, c->topic, c->group, QUEUE_DEAD, 0);
        m.queue = rmq_text(name);
        r = rmq_call(c->bus->control, AMQP_QUEUE_PURGE_METHOD, &m, all_purged, c);
        if (r < 0)
                failed(c, r);
}

static void dead_letters(struct change *c) {
        if (!c->group->dead)
                over(c, 0, NULL); /* there never was one */
        else if (c->type == OM_CHANGE_REPLAY_DEAD) {
                c->wait.fn = front_there;
                rmq_queue_need(c->topic, c->group, QUEUE_FRONT, 0, &c->wait);
        } else if (c->n_ids)
                browse(c);
        else
                purge_all(c);
}

/* -- the entry ----------------------------------------------------------------------------------------------------------- */

static int find(struct change *c, const struct om_bus_change *op, struct om_error *e) {
        bool letters = op->type == OM_CHANGE_PURGE_DEAD;

        HASH_FIND(hh, c->bus->topics, op->topic.p, op->topic.len, c->topic);
        if (!c->topic || (!c->topic->listed && !letters))
                return om_error_set(
                        e, OM_NOT_FOUND, "RabbitMQ: no topic %.*s", (int) (op->topic.len < 200 ? op->topic.len : 200), op->topic.p);
        if (op->type == OM_CHANGE_DELETE_TOPIC)
                return 0;
        c->group = rmq_group_find(c->topic, op->agent);
        if (!c->group || (!c->group->listed && !(letters && c->group->dead)))
                return om_error_set(e, OM_NOT_FOUND, "RabbitMQ: the agent %.*s has no group there",
                        (int) (op->agent.len < 200 ? op->agent.len : 200), op->agent.p);
        return 0;
}

static int take_ids(struct change *c, const struct om_bus_change *op) {
        c->ids = om_arena_alloc(&c->arena, (op->n_ids + 1) * sizeof(char *));
        if (!c->ids)
                return -ENOMEM;
        for (size_t i = 0; i < op->n_ids; i++) {
                struct om_span id = om_arena_copy(&c->arena, op->ids[i]);

                if (!id.p)
                        return -ENOMEM;
                c->ids[c->n_ids++] = (char *) id.p;
        }
        return 0;
}

int rmq_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        int r = rmq_admit(b, 0, e);
        struct change *c;

        if (r < 0)
                return r;
        if (op->type == OM_CHANGE_SEEK)
                return om_error_set(
                        e, OM_UNSUPPORTED, "RabbitMQ: a group cannot be sent back; a new group with `start` reads the topic's log again");
        if (op->type == OM_CHANGE_CONFIGURE)
                return om_error_set(e, OM_UNSUPPORTED, "RabbitMQ: topics have no settings of their own");
        c = calloc(1, sizeof *c);
        if (!c)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        c->bus = b;
        c->op = op;
        c->type = op->type;
        c->delete_dead = op->delete_dead_letters;
        om_job_begin(&b->jobs, &c->job, &op->op, 0, change_free);
        r = find(c, op, &c->error);
        if (r == 0 && take_ids(c, op) < 0)
                r = om_error_set_errno(&c->error, ENOMEM, "RabbitMQ");
        if (r < 0)
                over(c, r, &c->error);
        else if (c->type == OM_CHANGE_DELETE_GROUP)
                delete_group(c);
        else if (c->type == OM_CHANGE_DELETE_TOPIC)
                delete_topic(c);
        else
                dead_letters(c);
        return 0;
}
