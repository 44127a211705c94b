/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes: groups and topics deleted, groups sent back, dead letters replayed and purged.
 *
 * Each is a list of calls to the server's interface, one after the other, in an order in which a death in between leaves nothing that a
 * repeat does not mend. What is not there (404) is as good as deleted.
 *
 * A replay copies letters to the group's stream of replays, under a subject made of the letter's place and on condition that it is not
 * there yet, and deletes them when the copies are stored.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { BATCH = 100 };

struct step {
        struct step *next;
        const char *what, *body; /* in the arena */
};
struct letter {
        struct change *change;
        struct nats_request req;
        uint64_t seq;
        struct om_span record;
        bool copied;
};
struct change {
        struct job job; /* first */
        struct survey survey;
        struct om_arena arena;
        enum om_bus_change_type type;
        char topic[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1], nt[NATS_NAME_MAX + 1], na[NATS_NAME_MAX + 1];
        struct topic *t;
        char dead[STREAM_NAME_MAX], again[STREAM_NAME_MAX];
        bool delete_dead, deletes; /* the topic, now */
        unsigned deletions;        /* of the topic, when its other groups were asked for */
        enum om_start start;
        int64_t start_ms;
        uint64_t *ids, n_done;
        size_t n_ids, at;
        struct step *steps;
        struct nats_request req;
        struct roll roll;
        struct floor lowest;
        struct purge purge;
        struct start_find find;
        void (*then)(struct change *c, const struct nats_reply *last); /* after the last step */
        void (*stepped)(struct change *c, const struct nats_reply *reply);
        struct fetch fetch;
        struct letter letters[BATCH];
        size_t n_letters, open;
        uint64_t from, last;
        bool more;
};

static void change_free(struct om_job *j) {
        struct change *c = (struct change *) j;

        nats_survey_free(&c->survey);
        om_arena_deinit(&c->arena);
        free(c->ids);
        free(c);
}

static void over(struct change *c, int status, const struct om_error *e) {
        struct om_bus_change *op = (struct om_bus_change *) c->job.base.op;

        if (op)
                op->ret_n = c->n_done;
        if (c->deletes)
                nats_topic_deletion(c->t, false);
        om_job_over(&c->job.base, status, e);
}

static void broken(struct change *c, int r) {
        struct om_error e;

        over(c, om_error_set_errno(&e, r, "NATS"), &e);
}

/* -- steps ----------------------------------------------------------------------------------------------------------- */

static void add(struct change *c, const char *body, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void add(struct change *c, const char *body, const char *format, ...) {
        struct step *s = om_arena_alloc(&c->arena, sizeof *s);
        char what[2 * STREAM_NAME_MAX];
        va_list ap;

        va_start(ap, format);
        vsnprintf(what, sizeof what, format, ap);
        va_end(ap);
        if (!s)
                return;
        *s = (struct step){ .what = om_arena_copy(&c->arena, om_span_of(what)).p, .body = om_arena_copy(&c->arena, om_span_of(body)).p };
        LL_APPEND(c->steps, s);
}

static void next_step(struct change *c, const struct nats_reply *last);

static void step_done(struct nats_request *r, const struct nats_reply *reply) {
        struct change *c = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "changing", &e);

        if (status < 0 && status != -ENOENT && nats_error_code(reply->data) != NATS_ERR_STREAM_EXISTS) {
                over(c, status, &e);
                return;
        }
        if (c->stepped)
                c->stepped(c, reply);
        next_step(c, reply);
}

static void next_step(struct change *c, const struct nats_reply *last) {
        struct step *s = c->steps;
        int r;

        if (!s) {
                c->then(c, last);
                return;
        }
        c->steps = s->next;
        r = s->what ? nats_call(c->job.bus->link, &c->req, step_done, c, om_span_of(s->body), "%s", s->what) : -ENOMEM;
        if (r < 0)
                broken(c, r);
}

static void run(struct change *c, void (*then)(struct change *, const struct nats_reply *)) {
        const struct nats_reply none = { .status = 0 };

        c->then = then;
        next_step(c, &none);
}

static void done(struct change *c, const struct nats_reply *last) { over(c, 0, NULL); }

/* -- deleting -------------------------------------------------------------------------------------------------------- */

static void add_records(struct change *c, const char *of) {
        char body[SUBJECT_MAX + 40];

        snprintf(body, sizeof body, "{\"filter\":\"%s.s.*.%s.>\"}", c->job.bus->settings.c.prefix, of);
        add(c, body, "STREAM.PURGE.%s", c->job.bus->state_stream);
}

static void revoke(struct change *c) {
        struct om_bus_sub *next;

        for (struct om_bus_sub *s = c->job.bus->subs; s; s = next) {
                next = s->next;
                if (strcmp(s->topic->name, c->topic) == 0 && (c->type == OM_CHANGE_DELETE_TOPIC || strcmp(s->agent, c->agent) == 0))
                        nats_sub_revoke(s);
        }
}

static const struct found_group *group_of(struct change *c) {
        for (size_t n = 0; n < c->survey.n; n++) {
                const struct found_topic *t = c->survey.topics[n];

                for (size_t i = 0; i < t->n_groups; i++)
                        if (nats_group_is(&t->groups[i], c->topic, c->agent))
                                return &t->groups[i];
        }
        return NULL;
}

/* A group's consumer on a topic, and what is noted of its deliveries. */
static void add_consumer(struct change *c, const struct found_topic *t, const struct found_group *g) {
        char of[STREAM_NAME_MAX + CONSUMER_NAME_MAX + 2];

        snprintf(of, sizeof of, "%s.%s", t->stream, g->consumer);
        add(c, "", "CONSUMER.DELETE.%s", of);
        add_records(c, of);
}

/* What waited for the group alone goes with it. */
static void group_deleted(struct purge *p) { over(p->ctx, 0, NULL); }

static void other_group_came(struct roll *r, struct om_span info) {
        struct change *c = r->ctx;

        if (nats_consumer_takes(info, c->t->subject))
                nats_floor_add(&c->lowest, info);
}

static void other_groups_came(struct roll *r, int status, const struct om_error *e) {
        struct change *c = r->ctx;

        revoke(c);
        if (status < 0 && status != -ENOENT)
                over(c, status, e);
        else if ((c->lowest.n && !c->lowest.seq) || !nats_topic_lasts(c->t, c->deletions))
                over(c, 0, NULL);
        else
                nats_purge_start(&c->purge, c->t, c->lowest.n ? c->lowest.seq : c->survey.topics[0]->last, group_deleted, c);
}

static void consumer_deleted(struct change *c, const struct nats_reply *last) {
        c->deletions = c->t->deletions;
        c->roll = (struct roll){ .each = other_group_came, .done = other_groups_came, .ctx = c };
        nats_roll_start(&c->roll, c->job.bus, c->t->log->name, NULL);
}

/* A pattern's group: a consumer on each log. What was kept for it alone is swept away. */
static void pattern_deleted(struct change *c, const struct nats_reply *last) {
        for (size_t n = 0; n < c->survey.n; n++) {
                struct topic *t = nats_topic_get(c->job.bus, om_span_of(c->survey.topics[n]->topic));

                if (t)
                        nats_topic_touch(t);
        }
        revoke(c);
        done(c, last);
}

static void delete_pattern(struct change *c) {
        char body[SUBJECT_MAX];
        bool any = false;
        struct om_error e;

        snprintf(body, sizeof body, "{\"filter\":\"%s.s.pat.%s.%s\"}", c->job.bus->settings.c.prefix, c->nt, c->na);
        add(c, body, "STREAM.PURGE.%s", c->job.bus->state_stream);
        for (size_t n = 0; n < c->survey.n; n++) {
                const struct found_topic *t = c->survey.topics[n];

                for (size_t i = 0; i < t->n_groups; i++) {
                        if (!nats_group_is(&t->groups[i], c->topic, c->agent))
                                continue;
                        any = true;
                        c->n_done += t->groups[i].pending + t->groups[i].unacked;
                        add_consumer(c, t, &t->groups[i]);
                }
        }
        add(c, "", "STREAM.DELETE.%s", c->again);
        if (c->delete_dead)
                add(c, "", "STREAM.DELETE.%s", c->dead);
        if (!any && !c->delete_dead)
                over(c, om_error_set(&e, OM_NOT_FOUND, "no group %s on topic %s", c->agent, c->topic), &e);
        else
                run(c, pattern_deleted);
}

static void delete_group(struct change *c) {
        const struct found_group *g = group_of(c);
        char of[STREAM_NAME_MAX + CONSUMER_NAME_MAX + 2];
        struct om_error e;

        if (!c->survey.n || (!g && !c->delete_dead)) {
                over(c, om_error_set(&e, OM_NOT_FOUND, "no group %s on topic %s", c->agent, c->topic), &e);
                return;
        }
        c->n_done = g ? g->pending + g->unacked : 0;
        if (g)
                add_consumer(c, c->survey.topics[0], g);
        add(c, "", "STREAM.DELETE.%s", c->again);
        if (c->delete_dead)
                add(c, "", "STREAM.DELETE.%s", c->dead);
        snprintf(of, sizeof of, "%s.again", c->again);
        add_records(c, of);
        run(c, consumer_deleted);
}

static void topic_deleted(struct change *c, const struct nats_reply *last) {
        nats_topic_gone(c->t);
        c->t->floor = 0;
        revoke(c);
        done(c, last);
}

/* The streams of one kind that belong to the topic. */
static void add_streams(struct change *c, struct om_span list) {
        struct om_span info;
        struct nats_walk w;

        nats_walk_init(&w, nats_json_get(list, "streams"));
        while (nats_walk_next(&w, &info, NULL)) {
                struct om_span name = nats_json_text(info, "config.name", &c->arena);

                if (om_span_is(nats_json_text(info, "config.metadata.omni_topic", &c->arena), c->topic))
                        add(c, "", "STREAM.DELETE.%.*s", OM_PRI(name));
        }
}

/* What a daemon stores that has not heard of it yet goes too; what it stores after that it makes the topic again for (bus_publish.c). */
static void record_deleted(struct change *c, const struct nats_reply *last) {
        struct om_buf body = OM_BUF_INIT;

        nats_tell(c->job.bus, "forget");
        om_buf_lit(&body, "{\"filter\":");
        om_buf_json_span(&body, om_span_of(c->t->subject));
        om_buf_putc(&body, '}');
        om_buf_putc(&body, 0);
        if (om_buf_ok(&body))
                add(c, body.data, "STREAM.PURGE.%s", c->t->log->name);
        om_buf_deinit(&body);
        run(c, topic_deleted);
}

static void delete_topic(struct change *c) {
        const struct found_topic *t = c->survey.n ? c->survey.topics[0] : NULL;
        char body[SUBJECT_MAX];
        struct om_error e;

        if (!t) {
                over(c, om_error_set(&e, OM_NOT_FOUND, "no topic %s", c->topic), &e);
                return;
        }
        c->n_done = t->messages;
        c->deletes = true;
        nats_topic_deletion(c->t, true);
        add_streams(c, c->survey.again);
        if (c->delete_dead)
                add_streams(c, c->survey.dead);
        if (!nats_topic_filter(c->t)) {
                add(c, "", "STREAM.DELETE.%s", t->stream);
                add_records(c, t->stream);
                run(c, topic_deleted);
                return;
        }
        for (size_t i = 0; i < t->n_groups; i++)
                add_consumer(c, t, &t->groups[i]);
        snprintf(body, sizeof body, "{\"filter\":\"%s.s.top.%s\"}", c->job.bus->settings.c.prefix, c->nt);
        add(c, body, "STREAM.PURGE.%s", c->job.bus->state_stream);
        run(c, record_deleted);
}

/* -- seeking --------------------------------------------------------------------------------------------------------- */

static void sought(struct change *c, const struct nats_reply *last) {
        revoke(c);
        for (struct om_bus_sub *s = c->job.bus->subs; s; s = s->next)
                if (strcmp(s->topic->name, c->topic) == 0 && strcmp(s->agent, c->agent) == 0)
                        nats_sub_pull(s);
        c->n_done = nats_json_u64(last->data, "num_pending");
        done(c, last);
}

static void start_found(struct start_find *f, int status, const struct om_error *e) {
        struct change *c = f->ctx;
        const struct found_group *g = group_of(c);
        struct om_buf body = OM_BUF_INIT;

        if (status < 0) {
                over(c, status, e);
                return;
        }
        nats_put_group_config(&body, c->t, g->consumer, c->agent, NULL, f->start, 180000);
        om_buf_putc(&body, 0);
        add_consumer(c, c->survey.topics[0], g);
        if (om_buf_ok(&body))
                add(c, body.data, "CONSUMER.CREATE.%s.%s", c->t->log->name, g->consumer);
        om_buf_deinit(&body);
        run(c, sought);
}

static void seek(struct change *c) {
        struct om_error e;

        if (om_topic_is_pattern(om_span_of(c->topic)))
                over(c, om_error_set(&e, OM_UNSUPPORTED, "the group of a pattern cannot be sent back"), &e);
        else if (!group_of(c))
                over(c, om_error_set(&e, OM_NOT_FOUND, "no group %s on topic %s", c->agent, c->topic), &e);
        else {
                c->find.done = start_found;
                c->find.ctx = c;
                nats_start_find(&c->find, c->t, c->survey.topics[0], c->start == OM_START_DEFAULT ? OM_START_FIRST : c->start, c->start_ms);
        }
}

/* -- purging --------------------------------------------------------------------------------------------------------- */

static void count_purged(struct change *c, const struct nats_reply *reply) {
        c->n_done += c->n_ids ? nats_json_true(reply->data, "success") : nats_json_u64(reply->data, "purged");
}

static void purge(struct change *c) {
        char body[48];

        c->stepped = count_purged;
        if (!c->n_ids)
                add(c, "", "STREAM.PURGE.%s", c->dead);
        for (size_t i = 0; i < c->n_ids; i++) {
                snprintf(body, sizeof body, "{\"seq\":%llu,\"no_erase\":true}", (unsigned long long) c->ids[i]);
                if (c->ids[i])
                        add(c, body, "STREAM.MSG.DELETE.%s", c->dead);
        }
        run(c, done);
}

/* -- replaying ------------------------------------------------------------------------------------------------------- */

static void replay_batch(struct change *c);

static void batch_over(struct change *c) {
        if (--c->open)
                return;
        for (size_t i = 0; i < c->n_letters; i++)
                if (!c->letters[i].copied) {
                        struct om_error e;

                        over(c, om_error_set(&e, OM_UNAVAILABLE, "NATS: a dead letter could not be given back; those before it were"), &e);
                        return;
                }
        c->n_done += c->n_letters;
        if (c->more)
                replay_batch(c);
        else
                over(c, 0, NULL);
}

static void letter_deleted(struct nats_request *r, const struct nats_reply *reply) { batch_over(r->ctx); }

static void letter_copied(struct nats_request *r, const struct nats_reply *reply) {
        struct letter *l = r->ctx;
        struct change *c = l->change;
        unsigned code = reply->status == 0 ? nats_error_code(reply->data) : 0;
        const char *why;
        char body[48];

        if (code != NATS_ERR_WRONG_LAST_SEQUENCE && code != NATS_ERR_WRONG_LAST_SEQUENCE_CONSTANT && nats_publish_answer(reply, &why) < 0) {
                batch_over(c);
                return;
        }
        l->copied = true;
        snprintf(body, sizeof body, "{\"seq\":%llu,\"no_erase\":true}", (unsigned long long) l->seq);
        if (nats_call(c->job.bus->link, &l->req, letter_deleted, c, om_span_of(body), "STREAM.MSG.DELETE.%s", c->dead) < 0)
                batch_over(c);
}

static void letter_copy(struct letter *l) {
        struct change *c = l->change;
        char subject[SUBJECT_MAX];
        natsMsg *msg;
        int r = -ENOMEM;

        snprintf(subject, sizeof subject, "%s.a.%s.%s.%llu", c->job.bus->settings.c.prefix, c->nt, c->na, (unsigned long long) l->seq);
        l->req = (struct nats_request){ .fn = letter_copied, .ctx = l };
        msg = nats_request_new(c->job.bus->link, &l->req, subject, l->record);
        if (msg && natsMsgHeader_Set(msg, "Nats-Expected-Last-Subject-Sequence", "0") == NATS_OK)
                r = nats_request_send(c->job.bus->link, &l->req, msg);
        else if (msg) {
                natsMsg_Destroy(msg);
                nats_request_end(c->job.bus->link, &l->req);
        }
        if (r < 0)
                batch_over(c);
}

static void copy_letters(struct change *c) {
        c->open = c->n_letters + 1;
        for (size_t i = 0; i < c->n_letters; i++)
                letter_copy(&c->letters[i]);
        batch_over(c);
}

static bool letter_came(struct fetch *f, natsMsg *msg, uint64_t seq) {
        struct change *c = f->ctx;
        struct om_span data = { natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) };
        struct om_dead_letter letter;

        if (seq > c->last || c->n_letters == BATCH)
                return false;
        c->from = seq + 1;
        if (nats_letter_read(data, seq, &c->arena, &letter))
                c->letters[c->n_letters++] = (struct letter){ .change = c, .seq = seq, .record = letter.record };
        return true;
}

static void letters_came(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct change *c = f->ctx;

        if (status < 0) {
                over(c, status, e);
                return;
        }
        c->more = more && !f->enough;
        copy_letters(c);
}

static void one_came(struct nats_request *r, const struct nats_reply *reply) {
        struct change *c = r->ctx;
        struct om_error e = OM_ERROR_INIT;

        if (reply->status < 0 && reply->status != -ENOENT) {
                over(c, nats_error(reply, "reading a dead letter", &e), &e);
                return;
        }
        if (reply->status == 0 && reply->code == 0) {
                c->last = UINT64_MAX;
                c->fetch.ctx = c;
                letter_came(&c->fetch, reply->msg, c->ids[c->at - 1]);
        }
        c->more = c->at < c->n_ids;
        copy_letters(c);
}

static void replay_batch(struct change *c) {
        char body[48];
        int r;

        c->n_letters = 0;
        if (!c->n_ids) {
                c->fetch.each = letter_came;
                c->fetch.done = letters_came;
                c->fetch.ctx = c;
                nats_fetch_start(&c->fetch, c->job.bus, c->dead, ">", c->from, BATCH);
                return;
        }
        while (c->at < c->n_ids && !c->ids[c->at])
                c->at++;
        if (c->at == c->n_ids) {
                over(c, 0, NULL);
                return;
        }
        snprintf(body, sizeof body, "{\"seq\":%llu}", (unsigned long long) c->ids[c->at++]);
        r = nats_call(c->job.bus->link, &c->req, one_came, c, om_span_of(body), "DIRECT.GET.%s", c->dead);
        if (r < 0)
                broken(c, r);
}

static void replays_made(struct change *c, const struct nats_reply *last) {
        struct om_bus *b = c->job.bus;

        for (struct om_bus_sub *s = b->subs; s; s = s->next)
                if (strcmp(s->topic->name, c->topic) == 0 && strcmp(s->agent, c->agent) == 0)
                        nats_sub_find_again(s);
        nats_tell(b, c->again);
        c->last = UINT64_MAX;
        replay_batch(c);
}

static void replay(struct change *c) {
        struct om_bus *b = c->job.bus;
        struct om_buf body = OM_BUF_INIT;
        char subject[SUBJECT_MAX];
        struct om_error e;

        if (!group_of(c)) {
                over(c, om_error_set(&e, OM_NOT_FOUND, "no group %s on topic %s", c->agent, c->topic), &e);
                return;
        }
        snprintf(subject, sizeof subject, "%s.a.%s.%s.*", b->settings.c.prefix, c->nt, c->na);
        nats_put_stream_config(&body, b, c->again, subject, c->topic, STREAM_GROUP);
        om_buf_putc(&body, 0);
        if (om_buf_ok(&body))
                add(c, body.data, "STREAM.CREATE.%s", c->again);
        om_buf_clear(&body);
        nats_put_again_config(&body, b, c->again, c->agent);
        om_buf_putc(&body, 0);
        if (om_buf_ok(&body))
                add(c, body.data, "CONSUMER.CREATE.%s.again", c->again);
        om_buf_deinit(&body);
        run(c, replays_made);
}

/* -- the entry ------------------------------------------------------------------------------------------------------- */

static void surveyed(struct survey *s) {
        struct change *c = s->ctx;

        if (s->status < 0) {
                over(c, s->status, &s->error);
                return;
        }
        switch (c->type) {
        case OM_CHANGE_DELETE_GROUP:
                om_topic_is_pattern(om_span_of(c->topic)) ? delete_pattern(c) : delete_group(c);
                break;
        case OM_CHANGE_DELETE_TOPIC:
                delete_topic(c);
                break;
        case OM_CHANGE_REPLAY_DEAD:
                replay(c);
                break;
        case OM_CHANGE_PURGE_DEAD:
                purge(c);
                break;
        case OM_CHANGE_SEEK:
                seek(c);
                break;
        case OM_CHANGE_CONFIGURE: /* refused by nats_bus_change() */
                break;
        }
}

static bool names_of(struct change *c, struct om_bus *b) {
        struct om_buf na = OM_BUF_INIT;
        struct topic *t = nats_topic_get(b, om_span_of(c->topic));

        nats_name_encode(&na, om_span_of(c->agent));
        if (t && om_buf_ok(&na)) {
                snprintf(c->nt, sizeof c->nt, "%s", t->nt);
                snprintf(c->na, sizeof c->na, "%.*s", (int) na.len, na.data ? na.data : "");
                c->t = t;
                nats_group_stream(c->dead, sizeof c->dead, b, 'd', c->nt, c->na);
                nats_group_stream(c->again, sizeof c->again, b, 'a', c->nt, c->na);
        }
        om_buf_deinit(&na);
        return c->nt[0];
}

int nats_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        struct change *c;
        int r;

        if ((unsigned) op->type > OM_CHANGE_SEEK)
                return om_error_set(e, OM_INVALID, "NATS: not a change");
        r = nats_job_admit(b, sizeof *c, e);
        if (r < 0)
                return r;
        c = calloc(1, sizeof *c);
        if (c && op->n_ids)
                c->ids = calloc(op->n_ids, sizeof c->ids[0]);
        if (c) {
                snprintf(c->topic, sizeof c->topic, "%.*s", OM_PRI(op->topic));
                snprintf(c->agent, sizeof c->agent, "%.*s", OM_PRI(op->agent));
        }
        if (!c || (op->n_ids && !c->ids) || !names_of(c, b)) {
                if (c)
                        free(c->ids);
                free(c);
                return om_error_set_errno(e, ENOMEM, "NATS");
        }
        c->type = op->type;
        c->delete_dead = op->delete_dead_letters;
        c->start = op->start;
        c->start_ms = op->start_ms;
        c->n_ids = op->n_ids;
        for (size_t i = 0; i < op->n_ids; i++)
                c->ids[i] = nats_number_of(op->ids[i]);
        op->ret_n = 0;
        nats_job_begin(b, &c->job, &op->op, sizeof *c, change_free);
        nats_survey_start(&c->survey, b, op->topic, surveyed, c);
        return 0;
}
