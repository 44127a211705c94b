/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of patterns. Where such a group starts differs from topic to topic, so it has a consumer on each topic that matches, and is
 * written down in the state stream, so that whoever makes a topic gives it its consumers before anything is published there. Two may do so
 * at the same time: the one that is there first is the group's.
 *
 * Nothing is missed: the group is written down first and the topics are listed then; a topic is made first and the groups are read then.
 * Whichever comes second sees the other. A daemon that serves the group hears of a new topic by a note, and after a broken connection by
 * listing them again.
 *
 * Loop thread.
 */
#include "bus_state.h"

/* -- a group comes --------------------------------------------------------------------------------------------------- */

struct pattern_join {
        struct om_bus *bus;
        struct om_bus_sub *sub;
        struct survey survey;
        struct nats_request req;
        enum om_start start;
        int64_t start_ms;
        struct start_find find;
        bool created;
        size_t at;
        char subject[SUBJECT_MAX];
        void (*done)(void *ctx, int status, const struct om_error *e, bool created);
        void *ctx;
};

static void pattern_over(struct pattern_join *p, int status, const struct om_error *e) {
        void (*done)(void *, int, const struct om_error *, bool) = p->done;
        void *ctx = p->ctx;
        bool created = p->created;

        nats_survey_free(&p->survey);
        free(p);
        done(ctx, status, e, created);
}

static void pattern_failed(struct pattern_join *p, int r) {
        struct om_error e;

        nats_unsent(r, &e);
        pattern_over(p, r, &e);
}

static void next_topic(struct pattern_join *p);

static void consumer_made(struct nats_request *r, const struct nats_reply *reply) {
        struct pattern_join *p = r->ctx;
        struct om_error e;
        int status = nats_error(reply, "making the consumer of a pattern", &e);

        if (status < 0 && status != -ENOENT && nats_error_code(reply->data) != NATS_ERR_CONSUMER_EXISTS)
                pattern_over(p, status, &e);
        else
                next_topic(p);
}

/* It starts there; the topic may have been deleted meanwhile. */
static void start_found(struct start_find *f, int status, const struct om_error *e) {
        struct pattern_join *p = f->ctx;
        struct om_buf body = OM_BUF_INIT;
        char consumer[CONSUMER_NAME_MAX];
        int r = -ENOMEM;

        if (status < 0) {
                pattern_over(p, status, e);
                return;
        }
        if (nats_consumer_name(consumer, sizeof consumer, f->topic, p->sub->topic->name, p->sub->agent)) {
                nats_put_group_config(&body, f->topic, consumer, p->sub->agent, p->sub->topic->name, f->start, p->sub->lease_ms);
                r = nats_call(p->bus->link, &p->req, consumer_made, p, om_buf_span(&body), "CONSUMER.CREATE.%s.%s", f->topic->log->name,
                        consumer);
                om_buf_deinit(&body);
        }
        if (r < 0)
                pattern_failed(p, r);
}

static void next_topic(struct pattern_join *p) {
        while (p->at < p->survey.n) {
                const struct found_topic *found = p->survey.topics[p->at++];
                struct topic *t;
                bool has = false;

                if (!om_topic_matches(om_span_of(p->sub->topic->name), om_span_of(found->topic)))
                        continue;
                t = nats_topic_get(p->bus, om_span_of(found->topic));
                if (!t || nats_sub_attach(p->sub, t) < 0) {
                        pattern_failed(p, -ENOMEM);
                        return;
                }
                for (size_t i = 0; i < found->n_groups; i++)
                        has |= nats_group_is(&found->groups[i], p->sub->topic->name, p->sub->agent);
                if (has)
                        continue;
                p->find.done = start_found;
                p->find.ctx = p;
                nats_start_find(&p->find, t, found, p->start, p->start_ms);
                return;
        }
        pattern_over(p, 0, NULL);
}

static void topics_listed(struct survey *s) {
        struct pattern_join *p = s->ctx;

        if (s->status < 0)
                pattern_over(p, s->status, &s->error);
        else
                next_topic(p);
}

static void list_topics(struct pattern_join *p) { nats_survey_start(&p->survey, p->bus, OM_SPAN_NONE, topics_listed, p); }

static void written(struct nats_request *r, const struct nats_reply *reply) {
        struct pattern_join *p = r->ctx;
        struct om_error e;
        const char *why;
        int status = nats_publish_answer(reply, &why);

        if (status < 0)
                pattern_over(p, om_error_set(&e, om_kind_of_errno(status), "%s", why ? why : "NATS"), &e);
        else
                list_topics(p);
}

static void known(struct nats_request *r, const struct nats_reply *reply) {
        struct pattern_join *p = r->ctx;
        struct om_buf body = OM_BUF_INIT;
        natsMsg *msg;
        int status;

        if (reply->status == 0 && reply->code == 0) {
                list_topics(p);
                return;
        }
        p->created = true;
        om_buf_lit(&body, "{\"pattern\":");
        om_buf_json_span(&body, om_span_of(p->sub->topic->name));
        om_buf_lit(&body, ",\"agent\":");
        om_buf_json_span(&body, om_span_of(p->sub->agent));
        om_buf_printf(&body, ",\"lease_ms\":%lld}", (long long) p->sub->lease_ms);
        p->req.fn = written;
        msg = nats_request_new(p->bus->link, &p->req, p->subject, om_buf_span(&body));
        om_buf_deinit(&body);
        status = msg ? nats_request_send(p->bus->link, &p->req, msg) : -ENOMEM;
        if (status < 0)
                pattern_failed(p, status);
}

void nats_pattern_subscribe(struct om_bus_sub *s, enum om_start start, int64_t start_ms,
        void (*done)(void *ctx, int status, const struct om_error *e, bool created), void *ctx) {
        struct pattern_join *p = calloc(1, sizeof *p);
        struct om_error e;
        int r;

        if (!p) {
                done(ctx, om_error_set_errno(&e, ENOMEM, "NATS"), &e, false);
                return;
        }
        *p = (struct pattern_join){ .bus = s->bus, .sub = s, .start = start, .start_ms = start_ms, .done = done, .ctx = ctx };
        snprintf(p->subject, sizeof p->subject, "%s.s.pat.%s.%s", s->bus->settings.c.prefix, s->topic->nt, s->na);
        r = nats_call(s->bus->link, &p->req, known, p, OM_SPAN_NONE, "DIRECT.GET.%s.%s", s->bus->state_stream, p->subject);
        if (r < 0)
                pattern_failed(p, r);
}

/* -- connected again --------------------------------------------------------------------------------------------------- */

struct pattern_find {
        struct survey survey;
        char pattern[OM_TOPIC_MAX + 1], agent[OM_NAME_MAX + 1];
};

static void found(struct survey *s) {
        struct pattern_find *f = s->ctx;
        struct om_bus *b = s->bus;

        for (struct om_bus_sub *sub = b->subs; sub && s->status == 0; sub = sub->next) {
                if (!sub->pattern || strcmp(sub->topic->name, f->pattern) != 0 || strcmp(sub->agent, f->agent) != 0)
                        continue;
                for (size_t n = 0; n < s->n; n++)
                        for (size_t i = 0; i < s->topics[n]->n_groups; i++) {
                                struct topic *t = nats_group_is(&s->topics[n]->groups[i], f->pattern, f->agent)
                                        ? nats_topic_get(b, om_span_of(s->topics[n]->topic))
                                        : NULL;

                                if (t)
                                        nats_sub_attach(sub, t);
                        }
                nats_sub_pull(sub);
        }
        nats_survey_free(&f->survey);
        free(f);
}

void nats_pattern_find(struct om_bus_sub *s) {
        struct pattern_find *f = calloc(1, sizeof *f);

        if (!f)
                return;
        snprintf(f->pattern, sizeof f->pattern, "%s", s->topic->name);
        snprintf(f->agent, sizeof f->agent, "%s", s->agent);
        nats_survey_start(&f->survey, s->bus, OM_SPAN_NONE, found, f);
}

/* -- a topic comes ----------------------------------------------------------------------------------------------------- */

enum { READ_AT_ONCE = 1000 };

struct topic_join {
        struct fetch fetch;
        struct topic *topic;
        struct nats_request req;
        struct om_arena arena;
        struct group {
                struct group *next;
                const char *pattern, *agent;
                int64_t lease_ms;
        } * groups;
        bool joined;
};

static void join_over(struct topic_join *j, int status, const struct om_error *e) {
        struct topic *t = j->topic;
        char text[OM_TOPIC_MAX + 6];

        snprintf(text, sizeof text, "join %s", t->name);
        if (j->joined)
                nats_tell(t->bus, text);
        om_arena_deinit(&j->arena);
        free(j);
        nats_topic_joined(t, status, e);
}

static void next_group(struct topic_join *j);

static void group_joined(struct nats_request *r, const struct nats_reply *reply) {
        struct topic_join *j = r->ctx;
        struct om_error e;
        int status = nats_error(reply, "making the consumer of a pattern", &e);

        if (status < 0 && nats_error_code(reply->data) != NATS_ERR_CONSUMER_EXISTS) {
                join_over(j, status, &e);
                return;
        }
        j->joined = true;
        next_group(j);
}

static void next_group(struct topic_join *j) {
        struct group *g = j->groups;
        struct om_bus *b = j->topic->bus;
        struct om_buf body = OM_BUF_INIT;
        char consumer[CONSUMER_NAME_MAX];
        struct om_error e;
        int r = -ENOMEM;

        if (!g) {
                join_over(j, 0, NULL);
                return;
        }
        j->groups = g->next;
        if (nats_consumer_name(consumer, sizeof consumer, j->topic, g->pattern, g->agent)) {
                nats_put_group_config(&body, j->topic, consumer, g->agent, g->pattern, (struct start){ 1, 1 }, g->lease_ms);
                r = nats_call(
                        b->link, &j->req, group_joined, j, om_buf_span(&body), "CONSUMER.CREATE.%s.%s", j->topic->log->name, consumer);
                om_buf_deinit(&body);
        }
        if (r < 0)
                join_over(j, r, (om_error_set_errno(&e, r, "NATS"), &e));
}

static bool group_read(struct fetch *f, natsMsg *msg, uint64_t seq) {
        struct topic_join *j = f->ctx;
        struct om_span data = om_arena_copy(&j->arena, (struct om_span){ natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) });
        struct group *g;

        if (!data.p || !nats_json_ok(data) || !(g = om_arena_alloc(&j->arena, sizeof *g)))
                return true;
        *g = (struct group){ .pattern = om_arena_copy(&j->arena, nats_json_text(data, "pattern", &j->arena)).p,
                .agent = om_arena_copy(&j->arena, nats_json_text(data, "agent", &j->arena)).p,
                .lease_ms = (int64_t) nats_json_u64(data, "lease_ms") };
        if (g->pattern && g->agent && om_topic_matches(om_span_of(g->pattern), om_span_of(j->topic->name)))
                LL_PREPEND(j->groups, g);
        return true;
}

static void groups_read(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct topic_join *j = f->ctx;

        if (status < 0)
                join_over(j, status, e);
        else
                next_group(j);
}

void nats_patterns_join(struct topic *t) {
        struct topic_join *j = calloc(1, sizeof *j);
        char filter[64];
        struct om_error e;

        if (!j) {
                nats_topic_joined(t, om_error_set_errno(&e, ENOMEM, "NATS"), &e);
                return;
        }
        j->topic = t;
        j->fetch.each = group_read;
        j->fetch.done = groups_read;
        j->fetch.ctx = j;
        snprintf(filter, sizeof filter, "%s.s.pat.>", t->bus->settings.c.prefix);
        nats_fetch_start(&j->fetch, t->bus, t->bus->state_stream, filter, 1, READ_AT_ONCE);
}
