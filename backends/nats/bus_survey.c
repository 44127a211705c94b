/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading what is on the server: which topics there are and their groups (survey), and messages one after the other (fetch).
 *
 * A survey asks for the list of streams, of dead letters, of replays and of releases beside one another, then for the consumers of each
 * topic. Lists come in pages. What is counted where tasks are moving is counted at slightly different moments; at rest it is exact.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { LISTS = 4, TOPICS, DEAD, AGAIN, RELEASED };
enum { AT_ONCE = 64 };

/* -- survey --------------------------------------------------------------------------------------------------------- */

void nats_survey_free(struct survey *s) {
        for (size_t i = 0; i < s->n; i++)
                free(s->topics[i]);
        free(s->topics);
        om_arena_deinit(&s->arena);
}

static void ask_groups(struct survey *s);

static void one_over(struct survey *s) {
        if (--s->open == 0)
                s->done(s);
}

static void fail(struct survey *s, int status, const struct om_error *e) {
        if (s->status == 0) {
                s->status = status;
                s->error = *e;
        }
}

static char *text_in(struct survey *s, struct om_span object, const char *path) {
        struct om_span text = om_arena_copy(&s->arena, nats_json_text(object, path, &s->arena));

        return (char *) text.p;
}

static int add_topic(struct survey *s, struct om_span info) {
        char *name = text_in(s, info, "config.metadata.omni_topic"), *stream = text_in(s, info, "config.name");
        struct found_topic *t;

        if (!name || !stream)
                return 0; /* another program's */
        if (s->n == s->cap) {
                size_t cap = s->cap ? s->cap * 2 : 16;
                struct found_topic **topics = reallocarray(s->topics, cap, sizeof(struct found_topic *));

                if (!topics)
                        return -ENOMEM;
                s->topics = topics;
                s->cap = cap;
        }
        t = calloc(1, sizeof *t);
        if (!t)
                return -ENOMEM;
        t->survey = s;
        t->topic = name;
        t->stream = stream;
        t->first = nats_json_u64(info, "state.first_seq");
        t->last = nats_json_u64(info, "state.last_seq");
        t->messages = nats_json_u64(info, "state.messages");
        s->topics[s->n++] = t;
        return 0;
}

/* -- counts beside the topics ---------------------------------------------------------------------------------------- */

/* The number of messages of a stream in a STREAM.LIST answer. */
static uint64_t messages_of(struct om_span list, const char *stream) {
        struct om_span info;
        struct nats_walk w;
        struct om_arena arena = { 0 };
        uint64_t n = 0;

        nats_walk_init(&w, nats_json_get(list, "streams"));
        while (nats_walk_next(&w, &info, NULL))
                if (om_span_is(nats_json_text(info, "config.name", &arena), stream))
                        n = nats_json_u64(info, "state.messages");
        om_arena_deinit(&arena);
        return n;
}

static uint64_t released_of(struct om_span info, const char *prefix) {
        struct om_span count;
        struct om_json_value key;
        struct nats_walk w;
        size_t len = strlen(prefix);
        uint64_t n = 0;

        nats_walk_init(&w, nats_json_get(info, "state.subjects"));
        while (nats_walk_next(&w, &count, &key)) {
                struct om_span subject = om_json_inner(key);

                n += subject.len > len && memcmp(subject.p, prefix, len) == 0;
        }
        return n;
}

static void count_beside(struct survey *s, struct found_topic *t, struct found_group *g) {
        char stream[STREAM_NAME_MAX], prefix[SUBJECT_MAX], na[NATS_NAME_MAX + 1];
        struct om_buf b = OM_BUF_INIT;
        char consumer[CONSUMER_NAME_MAX];
        const struct topic *of = g->pattern ? nats_topic_get(s->bus, om_span_of(g->pattern)) : NULL;
        const char *nt = of ? of->nt : t->stream + strlen(s->bus->settings.c.prefix) + 3;

        nats_name_encode(&b, om_span_of(g->agent));
        snprintf(na, sizeof na, "%.*s", (int) b.len, b.data ? b.data : "");
        om_buf_deinit(&b);
        nats_group_stream(stream, sizeof stream, s->bus, 'd', nt, na);
        g->dead = messages_of(s->dead, stream);
        nats_group_stream(stream, sizeof stream, s->bus, 'a', nt, na);
        g->again = messages_of(s->again, stream);
        nats_pattern_consumer(consumer, sizeof consumer, nt, na);
        snprintf(prefix, sizeof prefix, "%s.s.rel.%s.%s.", s->bus->settings.c.prefix, t->stream, of ? consumer : na);
        g->released = released_of(s->released, prefix);
}

static int add_groups(struct survey *s, struct found_topic *t, struct om_span answer) {
        struct om_span consumer;
        struct nats_walk w;
        size_t n = 0;

        t->lowest = nats_lowest_floor(answer, &n);
        nats_walk_init(&w, nats_json_get(answer, "consumers"));
        while (nats_walk_next(&w, &consumer, NULL)) {
                char *agent = text_in(s, consumer, "config.metadata.omni_agent"),
                     *start = text_in(s, consumer, "config.metadata.omni_start");
                struct found_group *groups, *g;

                if (!agent)
                        continue;
                groups = om_arena_alloc(&s->arena, (t->n_groups + 1) * sizeof *groups);
                if (!groups)
                        return -ENOMEM;
                if (t->n_groups)
                        memcpy(groups, t->groups, t->n_groups * sizeof *groups);
                t->groups = groups;
                g = &groups[t->n_groups++];
                *g = (struct found_group){ .agent = agent,
                        .pattern = text_in(s, consumer, "config.metadata.omni_pattern"),
                        .floor = nats_json_u64(consumer, "ack_floor.stream_seq"),
                        .start = start ? strtoull(start, NULL, 10) : 1,
                        .pending = nats_json_u64(consumer, "num_pending"),
                        .unacked = nats_json_u64(consumer, "num_ack_pending") };
                count_beside(s, t, g);
        }
        return 0;
}

/* -- asking ---------------------------------------------------------------------------------------------------------- */

static void groups_came(struct nats_request *r, const struct nats_reply *reply) {
        struct found_topic *t = r->ctx;
        struct survey *s = t->survey;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "listing groups", &e);

        if (status == -ENOENT)
                status = 0; /* deleted meanwhile */
        else if (status == 0 && (status = add_groups(s, t, reply->data)) < 0)
                om_error_set_errno(&e, status, "NATS");
        if (status < 0)
                fail(s, status, &e);
        ask_groups(s);
        one_over(s);
}

static void ask_groups(struct survey *s) {
        while (s->asked < s->n && s->open < AT_ONCE && s->status == 0) {
                struct found_topic *t = s->topics[s->asked++];
                struct om_error e;
                int r = nats_call(s->bus->link, &t->req, groups_came, t, OM_SPAN_NONE, "CONSUMER.LIST.%s", t->stream);

                if (r < 0) {
                        om_error_set_errno(&e, r, "NATS");
                        fail(s, r, &e);
                } else
                        s->open++;
        }
}

static void lists_are_there(struct survey *s) {
        s->open = 1;
        ask_groups(s);
        one_over(s);
}

static void ask_list(struct survey *s, int list, size_t offset);

static void list_came(struct nats_request *r, const struct nats_reply *reply) {
        struct survey *s = r->ctx;
        int list = (int) (r - s->req) + TOPICS, status;
        struct om_error e = OM_ERROR_INIT;
        struct om_span info;
        struct nats_walk w;
        size_t n = 0, offset = (size_t) nats_json_u64(reply->data, "offset"), total;

        status = nats_error(reply, "listing topics", &e);
        if (status == -ENOENT) /* one topic, which is not there */
                status = 0;
        else if (status == 0 && list == TOPICS && s->topic[0])
                status = add_topic(s, reply->data);
        else if (status == 0 && list == TOPICS) {
                nats_walk_init(&w, nats_json_get(reply->data, "streams"));
                while (status == 0 && nats_walk_next(&w, &info, NULL)) {
                        status = add_topic(s, info);
                        n++;
                }
                total = (size_t) nats_json_u64(reply->data, "total");
                if (status == 0 && n && offset + n < total) {
                        ask_list(s, list, offset + n);
                        return;
                }
        } else if (status == 0)
                *(list == DEAD ? &s->dead : list == AGAIN ? &s->again : &s->released) = om_arena_copy(&s->arena, reply->data);
        if (status < 0) {
                if (!e.message[0])
                        om_error_set_errno(&e, status, "NATS");
                fail(s, status, &e);
        }
        if (--s->open == 0)
                lists_are_there(s);
}

static void ask_list(struct survey *s, int list, size_t offset) {
        static const char *const subjects[] = { [TOPICS] = "t.>", [DEAD] = "d.>", [AGAIN] = "a.>", [RELEASED] = "s.rel.>" };
        struct om_bus *b = s->bus;
        struct nats_request *r = &s->req[list - TOPICS];
        char body[200];
        struct om_error e;
        int status;

        snprintf(body, sizeof body, list == RELEASED ? "{\"subjects_filter\":\"%s.%s\"}" : "{\"subject\":\"%s.%s\",\"offset\":%zu}",
                b->settings.c.prefix, subjects[list], offset);
        if (list == TOPICS && s->topic[0]) {
                struct topic *t = nats_topic_get(b, om_span_of(s->topic));

                status = t ? nats_call(b->link, r, list_came, s, OM_SPAN_NONE, "STREAM.INFO.%s", t->stream) : -ENOMEM;
        } else if (list == RELEASED)
                status = nats_call(b->link, r, list_came, s, om_span_of(body), "STREAM.INFO.%s", b->state_stream);
        else
                status = nats_call(b->link, r, list_came, s, om_span_of(body), "STREAM.LIST");
        if (status == 0)
                return;
        om_error_set_errno(&e, status, "NATS");
        fail(s, status, &e);
        s->open--;
}

void nats_survey_start(struct survey *s, struct om_bus *b, struct om_span topic, void (*done)(struct survey *), void *ctx) {
        s->bus = b;
        s->done = done;
        s->ctx = ctx;
        if (!om_topic_is_pattern(topic))
                snprintf(s->topic, sizeof s->topic, "%.*s", OM_PRI(topic));
        s->open = LISTS + 1;
        for (int list = TOPICS; list <= RELEASED; list++)
                ask_list(s, list, 0);
        if (--s->open == 0)
                lists_are_there(s);
}

bool nats_group_is(const struct found_group *g, const char *topic, const char *agent) {
        bool pattern = om_topic_is_pattern(om_span_of(topic));

        return strcmp(g->agent, agent) == 0 && (pattern ? g->pattern && strcmp(g->pattern, topic) == 0 : !g->pattern);
}

/* With one group what it has left. With several the tasks that at least one has left lie between the most that one has and the sum, and are
 * no more than what lies above the lowest floor. */
uint64_t nats_survey_depth(const struct found_topic *t) {
        uint64_t most = 0, sum = 0, above;

        if (!t->n_groups)
                return t->messages;
        for (size_t i = 0; i < t->n_groups; i++) {
                uint64_t left = t->groups[i].pending + t->groups[i].unacked;

                most = left > most ? left : most;
                sum += left;
        }
        above = t->last > t->lowest ? t->last - t->lowest : 0;
        if (t->n_groups == 1 || above < most)
                return most;
        return above < sum ? above : sum;
}

uint64_t nats_number_of(struct om_span s) {
        uint64_t n = 0;

        if (!s.len || s.len > 19)
                return 0;
        for (size_t i = 0; i < s.len; i++) {
                if (s.p[i] < '0' || s.p[i] > '9')
                        return 0;
                n = n * 10 + (uint64_t) (s.p[i] - '0');
        }
        return n;
}

/* -- messages -------------------------------------------------------------------------------------------------------- */

uint64_t nats_message_seq(natsMsg *msg) {
        const char *text = NULL;

        return natsMsgHeader_Get(msg, "Nats-Sequence", &text) == NATS_OK && text ? strtoull(text, NULL, 10) : 0;
}

static void fetched(struct nats_request *r, const struct nats_reply *reply) {
        struct fetch *f = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        const char *left = NULL;

        if (reply->status == 0 && reply->code == 0) {
                if (natsMsgHeader_Get(reply->msg, "Nats-Num-Pending", &left) == NATS_OK && left)
                        f->left = strtoull(left, NULL, 10);
                f->got++;
                f->enough = f->enough || !f->each(f, reply->msg, nats_message_seq(reply->msg));
                return;
        }
        nats_request_end(f->bus->link, r);
        if (reply->status == -ENOENT || reply->code == 404 || reply->code == 204)
                f->done(f, 0, NULL, f->got && f->left > 0);
        else if (reply->status < 0)
                f->done(f, nats_error(reply, "reading messages", &e), &e, false);
        else
                f->done(f, om_error_set(&e, OM_INTERNAL, "NATS: reading messages is answered with %d", reply->code), &e, false);
}

void nats_fetch_start(struct fetch *f, struct om_bus *b, const char *stream, const char *filter, uint64_t from, size_t n) {
        char subject[SUBJECT_MAX], body[SUBJECT_MAX + 120];
        struct om_buf text = OM_BUF_INIT;
        struct om_error e;
        natsMsg *msg;
        int r;

        f->bus = b;
        f->got = 0;
        f->left = 0;
        f->enough = false;
        f->req.fn = fetched;
        f->req.ctx = f;
        f->req.open = true;
        om_buf_json_span(&text, om_span_of(filter));
        snprintf(subject, sizeof subject, "%s.DIRECT.GET.%s", nats_link_api(b->link), stream);
        snprintf(body, sizeof body, "{\"seq\":%llu,\"batch\":%zu,\"next_by_subj\":%.*s}", (unsigned long long) (from ? from : 1), n,
                OM_PRI(om_buf_span(&text)));
        om_buf_deinit(&text);
        msg = nats_request_new(b->link, &f->req, subject, om_span_of(body));
        r = msg ? nats_request_send(b->link, &f->req, msg) : -ENOMEM;
        if (r < 0)
                f->done(f, r, (om_error_set_errno(&e, r, "NATS"), &e), false);
}
