/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading what is on the server: which topics there are and their groups (survey), and messages one after the other (fetch).
 *
 * A survey asks for the topics, and for the lists of dead letters, of replays and of releases beside one another, then for the consumers.
 * Topics are the streams with their subjects, and each has its consumers; or those of a shared stream that have a record of its life, of
 * each of which the messages above its floor are counted, and whose consumers are known by their filters. Lists come in pages. What is
 * counted where tasks are moving is counted at slightly different moments; at rest it is exact.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { LISTS = 4, TOPICS, DEAD, AGAIN, RELEASED };
enum { AT_ONCE = 64, READ_AT_ONCE = 1000 };

/* -- survey --------------------------------------------------------------------------------------------------------- */

void nats_survey_free(struct survey *s) {
        HASH_CLEAR(hh, s->by_name);
        for (size_t i = 0; i < s->n; i++)
                free(s->topics[i]);
        free(s->topics);
        om_arena_deinit(&s->arena);
}

static void ask_each(struct survey *s);

static void ask_shared_groups(struct survey *s);

static void one_over(struct survey *s) {
        if (--s->open)
                return;
        if (s->bus->shared && !s->grouped && s->status == 0)
                ask_shared_groups(s);
        else
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

static struct found_topic *add_topic(struct survey *s, char *name, char *stream) {
        struct found_topic *t;

        if (s->n == s->cap) {
                size_t cap = s->cap ? s->cap * 2 : 16;
                struct found_topic **topics = reallocarray(s->topics, cap, sizeof(struct found_topic *));

                if (!topics)
                        return NULL;
                s->topics = topics;
                s->cap = cap;
        }
        t = calloc(1, sizeof *t);
        if (!t)
                return NULL;
        t->survey = s;
        t->topic = name;
        t->stream = stream;
        s->topics[s->n++] = t;
        return t;
}

/* The topic whose stream this is; NULL: none of ours. Who else makes a topic's stream, or out of a mirror, need not know what ours says. */
static char *topic_of_stream(struct survey *s, struct om_span info) {
        char *topic = text_in(s, info, "config.metadata.omni_topic");
        struct om_buf name = OM_BUF_INIT, stream = OM_BUF_INIT;
        struct nats_walk w;
        struct om_span subject;

        if (topic)
                return topic;
        nats_walk_init(&w, nats_json_get(info, "config.subjects"));
        if (nats_walk_next(&w, &subject, NULL) && nats_topic_name(s->bus, nats_json_text(subject, "", &s->arena), &name)) {
                om_buf_printf(&stream, "%s-t-", s->bus->settings.c.prefix);
                nats_name_encode(&stream, om_buf_span(&name));
                if (om_buf_ok(&stream) && om_span_eq(om_buf_span(&stream), nats_json_text(info, "config.name", &s->arena)))
                        topic = (char *) om_arena_copy(&s->arena, om_buf_span(&name)).p;
        }
        om_buf_deinit(&name);
        om_buf_deinit(&stream);
        return topic;
}

static int add_stream(struct survey *s, struct om_span info) {
        char *name = topic_of_stream(s, info), *stream = text_in(s, info, "config.name");
        struct found_topic *t;

        if (!name || !stream)
                return 0; /* another program's */
        t = add_topic(s, name, stream);
        if (!t)
                return -ENOMEM;
        t->first = nats_json_u64(info, "state.first_seq");
        t->last = t->published = nats_json_u64(info, "state.last_seq");
        t->messages = nats_json_u64(info, "state.messages");
        t->gone = t->first ? t->first - 1 : 0;
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
        char stream[STREAM_NAME_MAX], prefix[SUBJECT_MAX];
        struct om_buf nt = OM_BUF_INIT, na = OM_BUF_INIT;

        nats_name_encode(&nt, om_span_of(g->pattern ? g->pattern : t->topic));
        om_buf_putc(&nt, 0);
        nats_name_encode(&na, om_span_of(g->agent));
        om_buf_putc(&na, 0);
        if (om_buf_ok(&nt) && om_buf_ok(&na)) {
                nats_group_stream(stream, sizeof stream, s->bus, 'd', nt.data, na.data);
                g->dead = messages_of(s->dead, stream);
                nats_group_stream(stream, sizeof stream, s->bus, 'a', nt.data, na.data);
                g->again = messages_of(s->again, stream);
        }
        om_buf_deinit(&nt);
        om_buf_deinit(&na);
        snprintf(prefix, sizeof prefix, "%s.s.rel.%s.%s.", s->bus->settings.c.prefix, t->stream, g->consumer);
        g->released = released_of(s->released, prefix);
}

static int add_group(struct survey *s, struct found_topic *t, struct om_span consumer) {
        char *agent = text_in(s, consumer, "config.metadata.omni_agent"), *start = text_in(s, consumer, "config.metadata.omni_start"),
             *name = text_in(s, consumer, "name");
        struct found_group *groups, *g;

        nats_floor_add(&t->lowest, consumer);
        if (!agent || !name)
                return 0;
        groups = om_arena_alloc(&s->arena, (t->n_groups + 1) * sizeof *groups);
        if (!groups)
                return -ENOMEM;
        if (t->n_groups)
                memcpy(groups, t->groups, t->n_groups * sizeof *groups);
        t->groups = groups;
        g = &groups[t->n_groups++];
        *g = (struct found_group){ .agent = agent,
                .consumer = name,
                .pattern = text_in(s, consumer, "config.metadata.omni_pattern"),
                .floor = nats_json_u64(consumer, "ack_floor.stream_seq"),
                .start = start ? strtoull(start, NULL, 10) : 1,
                .pending = nats_json_u64(consumer, "num_pending"),
                .unacked = nats_json_u64(consumer, "num_ack_pending") };
        if (!s->plain)
                count_beside(s, t, g);
        return 0;
}

/* -- groups ---------------------------------------------------------------------------------------------------------- */

static void fail_errno(struct survey *s, int r) {
        struct om_error e;

        om_error_set_errno(&e, r, "NATS");
        fail(s, r, &e);
}

static struct found_topic *topic_of(struct survey *s, struct om_span subject) {
        struct om_buf name = OM_BUF_INIT;
        struct found_topic *t = NULL;

        if (nats_topic_name(s->bus, subject, &name))
                HASH_FIND(hh, s->by_name, name.data, name.len, t);
        om_buf_deinit(&name);
        return t;
}

static void group_came(struct roll *r, struct om_span info) {
        struct found_topic *t = r->ctx;
        int status = add_group(t->survey, t, info);

        if (status < 0)
                fail_errno(t->survey, status);
}

static void groups_came(struct roll *r, int status, const struct om_error *e) {
        struct found_topic *t = r->ctx;
        struct survey *s = t->survey;

        t->above = t->last > t->lowest.seq ? t->last - t->lowest.seq : 0;
        if (status < 0 && status != -ENOENT) /* deleted meanwhile */
                fail(s, status, e);
        ask_each(s);
        one_over(s);
}

static void count_above(struct found_topic *t, uint64_t seq) {
        struct survey *s = t->survey;
        struct om_buf subject = OM_BUF_INIT;

        om_buf_printf(&subject, "%s.t.", s->bus->settings.c.prefix);
        nats_subject_encode(&subject, om_span_of(t->topic));
        om_buf_putc(&subject, 0);
        if (om_buf_ok(&subject))
                nats_count_start(&t->fetch, s->bus, t->stream, subject.data, seq + 1);
        else {
                fail_errno(s, -ENOMEM);
                one_over(s);
        }
        om_buf_deinit(&subject);
}

static void counted(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct found_topic *t = f->ctx;
        struct survey *s = t->survey;

        *(s->grouped ? &t->above : &t->messages) = f->got + f->left;
        if (status < 0)
                fail(s, status, e);
        ask_each(s);
        one_over(s);
}

/* The groups of a topic's own stream. In a shared one first what is there, and when the groups are known, what several of them have left.
 */
static void ask_each(struct survey *s) {
        while (s->asked < s->n && s->open < AT_ONCE && s->status == 0) {
                struct found_topic *t = s->topics[s->asked++];

                if (s->grouped && t->n_groups < 2)
                        continue;
                s->open++;
                t->fetch = (struct fetch){ .done = counted, .ctx = t };
                t->roll = (struct roll){ .each = group_came, .done = groups_came, .ctx = t };
                if (s->bus->shared)
                        count_above(t, s->grouped ? t->lowest.seq : t->floor);
                else
                        nats_roll_start(&t->roll, s->bus, t->stream, NULL);
        }
}

static void shared_group_came(struct roll *r, struct om_span info) {
        struct survey *s = r->ctx;
        struct om_arena arena = { 0 };
        struct found_topic *t = topic_of(s, nats_json_text(info, "config.filter_subject", &arena));
        int status = t ? add_group(s, t, info) : 0;

        if (status < 0)
                fail_errno(s, status);
        om_arena_deinit(&arena);
}

static void shared_groups_came(struct roll *r, int status, const struct om_error *e) {
        struct survey *s = r->ctx;

        if (status < 0 && status != -ENOENT)
                fail(s, status, e);
        ask_each(s);
        one_over(s);
}

static void ask_shared_groups(struct survey *s) {
        char names[CONSUMER_NAME_MAX];
        struct topic *t = s->topic[0] ? nats_topic_get(s->bus, om_span_of(s->topic)) : NULL;

        for (size_t i = 0; i < s->n; i++)
                s->topics[i]->published = s->topics[i]->gone + s->topics[i]->messages;
        s->grouped = true;
        s->asked = 0;
        s->open = 1;
        s->roll = (struct roll){ .each = shared_group_came, .done = shared_groups_came, .ctx = s };
        nats_roll_start(&s->roll, s->bus, s->bus->shared->name, t && nats_consumer_name(names, sizeof names, t, NULL, NULL) ? names : NULL);
}

static void lists_are_there(struct survey *s) {
        s->open = 1;
        ask_each(s);
        one_over(s);
}

/* -- topics of a shared stream --------------------------------------------------------------------------------------- */

static void one_list_over(struct survey *s) {
        if (--s->open == 0)
                lists_are_there(s);
}

static struct found_topic *add_name(struct survey *s, char *name) {
        struct found_topic *t = name ? add_topic(s, name, s->bus->shared->name) : NULL;

        if (t)
                HASH_ADD_KEYPTR(hh, s->by_name, t->topic, strlen(t->topic), t);
        return t && t->hh.tbl ? t : NULL;
}

/* One that is written while they are read comes twice. */
static void add_record(struct survey *s, struct om_span record) {
        char *name = text_in(s, record, "topic"), *life = text_in(s, record, "life");
        struct found_topic *t = NULL;

        if (name)
                HASH_FIND_STR(s->by_name, name, t);
        if (!life || (!t && !(t = add_name(s, name)))) {
                fail_errno(s, -ENOMEM);
                return;
        }
        t->life = life;
        t->floor = nats_json_u64(record, "floor");
        t->gone = nats_json_u64(record, "gone");
}

static bool record_read(struct fetch *f, natsMsg *msg, uint64_t seq) {
        struct survey *s = f->ctx;
        struct om_span record = { natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) };

        s->from = seq + 1;
        if (nats_json_ok(record))
                add_record(s, record);
        return s->status == 0;
}

/* Topics of a stream before this one are none. */
static void shared_came(struct nats_request *r, const struct nats_reply *reply) {
        struct survey *s = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        struct om_arena arena = { 0 };
        struct om_span life = nats_json_text(reply->data, "created", &arena);
        int status = nats_error(reply, "looking at the topics' stream", &e);
        size_t n = 0;

        if (status < 0 && nats_json_u64(reply->data, "error.code") != 404)
                fail(s, status, &e);
        for (size_t i = 0; i < s->n; i++) {
                struct found_topic *t = s->topics[i];

                if (!life.p || !om_span_is(life, t->life)) {
                        HASH_DEL(s->by_name, t);
                        free(t);
                        continue;
                }
                t->first = nats_json_u64(reply->data, "state.first_seq");
                t->last = nats_json_u64(reply->data, "state.last_seq");
                s->topics[n++] = t;
        }
        s->n = n;
        om_arena_deinit(&arena);
        one_list_over(s);
}

static void ask_for_shared(struct survey *s) {
        int r = nats_call(s->bus->link, &s->req[0], shared_came, s, OM_SPAN_NONE, "STREAM.INFO.%s", s->bus->shared->name);

        if (r == 0)
                return;
        fail_errno(s, r);
        one_list_over(s);
}

static void ask_records(struct survey *s);

static void records_read(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct survey *s = f->ctx;

        if (status < 0)
                fail(s, status, e);
        if (s->status < 0)
                one_list_over(s);
        else if (more)
                ask_records(s);
        else
                ask_for_shared(s);
}

static void ask_records(struct survey *s) {
        s->fetch.each = record_read;
        s->fetch.done = records_read;
        s->fetch.ctx = s;
        nats_fetch_start(&s->fetch, s->bus, s->bus->state_stream, s->records, s->from, READ_AT_ONCE);
}

static void record_came(struct nats_request *r, const struct nats_reply *reply) {
        struct survey *s = r->ctx;
        struct om_buf record = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "reading the record of a topic", &e);

        if (status < 0 && nats_error_code(reply->data) != NATS_ERR_NO_MESSAGE)
                fail(s, status, &e);
        else if (nats_record_text(reply, &record))
                add_record(s, om_buf_span(&record));
        om_buf_deinit(&record);
        if (s->status < 0)
                one_list_over(s);
        else
                ask_for_shared(s);
}

/* -- asking ---------------------------------------------------------------------------------------------------------- */

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
                status = add_stream(s, reply->data);
        else if (status == 0 && list == TOPICS) {
                nats_walk_init(&w, nats_json_get(reply->data, "streams"));
                while (status == 0 && nats_walk_next(&w, &info, NULL)) {
                        status = add_stream(s, info);
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
        one_list_over(s);
}

static void ask_list(struct survey *s, int list, size_t offset) {
        static const char *const subjects[] = { [TOPICS] = "t.>", [DEAD] = "d.>", [AGAIN] = "a.>", [RELEASED] = "s.rel.>" };
        struct om_bus *b = s->bus;
        struct nats_request *r = &s->req[list - TOPICS];
        char body[200];
        int status;

        snprintf(body, sizeof body, list == RELEASED ? "{\"subjects_filter\":\"%s.%s\"}" : "{\"subject\":\"%s.%s\",\"offset\":%zu}",
                b->settings.c.prefix, subjects[list], offset);
        if (list == TOPICS && s->topic[0]) {
                struct topic *t = nats_topic_get(b, om_span_of(s->topic));

                status = t ? nats_call(b->link, r, list_came, s, OM_SPAN_NONE, "STREAM.INFO.%s", t->log->name) : -ENOMEM;
        } else if (list == RELEASED)
                status = nats_call(b->link, r, list_came, s, om_span_of(body), "STREAM.INFO.%s", b->state_stream);
        else
                status = nats_call(b->link, r, list_came, s, om_span_of(body), "STREAM.LIST");
        if (status == 0)
                return;
        fail_errno(s, status);
        one_list_over(s);
}

/* All topics, or one. */
static void ask_shared(struct survey *s) {
        struct topic *t = s->topic[0] ? nats_topic_get(s->bus, om_span_of(s->topic)) : NULL;
        int r;

        snprintf(s->records, sizeof s->records, "%s.s.top.>", s->bus->settings.c.prefix);
        s->from = 1;
        if (!s->topic[0]) {
                ask_records(s);
                return;
        }
        r = t ? nats_record_read(t, &s->req[0], record_came, s) : -ENOMEM;
        if (r == 0)
                return;
        fail_errno(s, r);
        one_list_over(s);
}

void nats_survey_start(struct survey *s, struct om_bus *b, struct om_span topic, void (*done)(struct survey *), void *ctx) {
        s->bus = b;
        s->done = done;
        s->ctx = ctx;
        if (!om_topic_is_pattern(topic))
                snprintf(s->topic, sizeof s->topic, "%.*s", OM_PRI(topic));
        s->open = (s->plain ? 1 : LISTS) + 1;
        if (b->shared)
                ask_shared(s);
        else
                ask_list(s, TOPICS, 0);
        for (int list = DEAD; list <= RELEASED && !s->plain; list++)
                ask_list(s, list, 0);
        one_list_over(s);
}

bool nats_group_is(const struct found_group *g, const char *topic, const char *agent) {
        bool pattern = om_topic_is_pattern(om_span_of(topic));

        return strcmp(g->agent, agent) == 0 && (pattern ? g->pattern && strcmp(g->pattern, topic) == 0 : !g->pattern);
}

/* With one group what it has left. With several the tasks that at least one has left lie between the most that one has and the sum, and are
 * no more than what lies above the lowest floor. */
uint64_t nats_survey_depth(const struct found_topic *t) {
        uint64_t most = 0, sum = 0;

        if (!t->n_groups)
                return t->messages;
        for (size_t i = 0; i < t->n_groups; i++) {
                uint64_t left = t->groups[i].pending + t->groups[i].unacked;

                most = left > most ? left : most;
                sum += left;
        }
        if (t->n_groups == 1 || t->above < most)
                return most;
        return t->above < sum ? t->above : sum;
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
        om_buf_json_span(&text, om_span_of(filter ? filter : ">"));
        snprintf(subject, sizeof subject, "%s.DIRECT.GET.%s", nats_link_api(b->link), stream);
        snprintf(body, sizeof body, "{\"seq\":%llu,\"batch\":%zu,\"next_by_subj\":%.*s}", (unsigned long long) (from ? from : 1), n,
                OM_PRI(om_buf_span(&text)));
        om_buf_deinit(&text);
        msg = nats_request_new(b->link, &f->req, subject, om_span_of(body));
        r = msg ? nats_request_send(b->link, &f->req, msg) : -ENOMEM;
        if (r < 0)
                f->done(f, r, (om_error_set_errno(&e, r, "NATS"), &e), false);
}

static bool count_one(struct fetch *f, natsMsg *msg, uint64_t seq) { return false; }

void nats_count_start(struct fetch *f, struct om_bus *b, const char *stream, const char *filter, uint64_t from) {
        f->each = count_one;
        nats_fetch_start(f, b, stream, filter, from, 1);
}
