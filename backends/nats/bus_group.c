/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups as this daemon serves them: their consumers, and the pull requests that bring messages.
 *
 * Always true:
 *   - a source is in the table while it is served, and after that while messages may come that were asked for; these go to whoever serves
 * it then, and else go back (nats_release_delivery);
 *   - `asked` is what the server owes a source: it falls with every message, by what a request that ended unfilled says of itself, and to
 *     nothing when the connection goes;
 *   - more is asked for when less is owed than wanted. Small differences wait while anything is owed: with many small requests the server
 *     would have to keep many.
 *
 * A cluster's consumer may move to another server without our connection noticing, and the hub of a domain may go away behind it: there,
 * and only there, requests have heartbeats, and a source that misses them asks again.
 *
 * Loop thread.
 */

#include "bus_state.h"

enum { PULL_MS = 600000, BEAT_MS = 1000, BEAT_EACH_MS = 800 /* the more sources, the rarer: they wake us */, LOST_MS = 500 };

/* -- sources -------------------------------------------------------------------------------------------------------- */

static void on_pull(struct nats_request *r, const struct nats_reply *reply);

struct source *nats_source_find(struct om_bus *b, const char *stream, const char *consumer) {
        char key[sizeof((struct source *) 0)->key];
        struct source *s = NULL;

        snprintf(key, sizeof key, "%s\037%s", stream, consumer);
        HASH_FIND_STR(b->sources, key, s);
        return s;
}

struct source *nats_source_get(struct om_bus *b, const char *stream, const char *consumer) {
        struct source *s = nats_source_find(b, stream, consumer);

        if (s || !(s = calloc(1, sizeof *s)))
                return s;
        s->bus = b;
        snprintf(s->key, sizeof s->key, "%s\037%s", stream, consumer);
        snprintf(s->stream, sizeof s->stream, "%s", stream);
        snprintf(s->consumer, sizeof s->consumer, "%s", consumer);
        s->inbox.fn = on_pull;
        s->inbox.ctx = s;
        s->inbox.open = s->inbox.quiet = true;
        HASH_ADD_STR(b->sources, key, s);
        if (!s->hh.tbl) {
                free(s);
                return NULL;
        }
        return s;
}

void nats_source_free(struct source *s) {
        HASH_DEL(s->bus->sources, s);
        nats_verdicts_forget(s);
        if (!s->bus->closing) {
                nats_request_end(s->bus->link, &s->inbox);
                nats_request_end(s->bus->link, &s->look);
        }
        free(s);
}

static int beat_ms(const struct om_bus *b) {
        unsigned n = HASH_COUNT(b->sources);

        return n * BEAT_EACH_MS > BEAT_MS ? (int) (n * BEAT_EACH_MS > 30000 ? 30000 : n * BEAT_EACH_MS) : BEAT_MS;
}

static void beat_arm(struct om_bus *b, int ms) {
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

        if (!event_pending(b->beat_timer, EV_TIMEOUT, NULL))
                event_add(b->beat_timer, &tv);
}

static void pull(struct source *s, unsigned n) {
        char body[160], subject[SUBJECT_MAX];
        struct om_bus *b = s->bus;
        natsMsg *msg;
        int len;

        len = snprintf(body, sizeof body, "{\"batch\":%u,\"expires\":%d000000", n, PULL_MS);
        if (b->remote)
                len += snprintf(body + len, sizeof body - (size_t) len, ",\"idle_heartbeat\":%d000000", beat_ms(b));
        body[len++] = '}';
        snprintf(subject, sizeof subject, "%s.CONSUMER.MSG.NEXT.%s.%s", nats_link_api(b->link), s->stream, s->consumer);
        msg = nats_request_new(b->link, &s->inbox, subject, (struct om_span){ body, (size_t) len });
        if (!msg || nats_request_send(b->link, &s->inbox, msg) < 0)
                return;
        s->asked += n;
        s->heard_ms = om_clock_ms();
        if (b->remote)
                beat_arm(b, beat_ms(b));
}

static void source_pull(struct source *s, unsigned want) {
        unsigned lacking = want > s->asked ? want - s->asked : 0;

        if (lacking && (!s->asked || lacking * 4 >= want))
                pull(s, lacking > 1000 ? 1000 : lacking);
}

void nats_sub_pull(struct om_bus_sub *s) {
        unsigned n = 0;

        if (s->bus->state != OM_BUS_READY || !nats_link_is_up(s->bus->link))
                return;
        for (struct source *source = s->sources; source; source = source->next)
                n++;
        for (struct source *source = s->sources; source; source = source->next)
                source_pull(source, s->want > n ? s->want / n : s->want > 0);
        if (s->again)
                source_pull(s->again, s->want);
}

static void is_away(struct source *s, int64_t since_ms) {
        if (!s->away_ms)
                s->away_ms = since_ms;
}

static void is_lost(struct source *s) {
        s->lost = true;
        beat_arm(s->bus, LOST_MS);
}

bool nats_is_from(const struct delivery *d, const struct source *s) {
        return strcmp(d->stream, s->stream) == 0 && strcmp(d->consumer, s->consumer) == 0;
}

static void revoke(struct om_bus_sub *s, const struct source *from);

/* A consumer that was made anew numbers its messages anew: no answer to one of the former must reach it. */
static void is_there(struct source *s, struct om_span life) {
        int64_t away_ms = s->away_ms;

        s->away_ms = 0;
        if (*s->life && !om_span_is(life, s->life)) {
                nats_verdicts_forget(s);
                revoke(s->sub, s);
        } else if (*s->life && away_ms)
                nats_verdicts_repeat(s, away_ms);
        snprintf(s->life, sizeof s->life, "%.*s", OM_PRI(life));
        nats_sub_pull(s->sub);
}

/* Whether the consumer is still there, or there again. */
static void looked_for(struct nats_request *r, const struct nats_reply *reply) {
        struct source *s = r->ctx;

        if (!s->sub || !nats_link_is_up(s->bus->link))
                return;
        if (reply->status == 0 && !nats_json_get(reply->data, "error").p)
                is_there(s, nats_json_get(reply->data, "created"));
        else if (nats_json_u64(reply->data, "error.code") != 404)
                is_lost(s);
        else if (!s->again && !s->sub->pattern) {
                om_host_log(s->bus->host, OM_LOG_WARNING, "topic %s: the group %s was deleted by somebody else", s->sub->topic->name,
                        s->sub->agent);
                nats_sub_revoke(s->sub);
        }
}

void nats_source_look(struct source *s) {
        s->lost = false;
        if (!s->look.active && s->sub &&
                nats_call(s->bus->link, &s->look, looked_for, s, OM_SPAN_NONE, "CONSUMER.INFO.%s.%s", s->stream, s->consumer) == -ENOMEM)
                is_lost(s);
}

/* What the server says of a pull request: 100 it waits, 404 and 408 it is over, 409 it is over for a reason. */
static void on_pull(struct nats_request *r, const struct nats_reply *reply) {
        struct source *s = r->ctx;
        const char *pending = NULL, *text = NULL;
        unsigned left;

        s->heard_ms = om_clock_ms();
        if (reply->status < 0 || reply->code == 100 || reply->code == 0)
                return;
        natsMsgHeader_Get(reply->msg, "Nats-Pending-Messages", &pending);
        natsMsgHeader_Get(reply->msg, "Description", &text);
        left = pending ? (unsigned) atoi(pending) : s->asked;
        s->asked -= left < s->asked ? left : s->asked;
        if (reply->code == 408 || reply->code == 404) {
                if (s->sub)
                        nats_sub_pull(s->sub);
        } else if (reply->code == 503 || reply->code == 409) {
                if (text && strcasestr(text, "deleted") && s->sub && !s->again && !s->sub->pattern)
                        nats_sub_revoke(s->sub);
                if (reply->code == 503) {
                        s->asked = 0;
                        is_away(s, s->heard_ms);
                }
                nats_source_look(s);
        }
}

void nats_on_beat(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        int64_t now = om_clock_ms(), late = beat_ms(b) * 2 + 300;
        bool beats = false;

        if (!nats_link_is_up(b->link))
                return;
        for (struct source *s = b->sources; s; s = s->hh.next) {
                bool silent = b->remote && s->asked && now - s->heard_ms >= late;

                beats |= b->remote && s->asked;
                if (silent) {
                        s->asked = 0;
                        is_away(s, s->heard_ms);
                }
                if (silent || s->lost)
                        nats_source_look(s);
        }
        if (beats)
                beat_arm(b, beat_ms(b));
}

/* -- subscribing ----------------------------------------------------------------------------------------------------- */

struct subscribe {
        struct job job; /* first */
        struct stream_wait wait;
        struct om_bus_sub *sub;
        enum om_start start;
        int64_t start_ms;
        char consumer[CONSUMER_NAME_MAX];
        struct survey survey;
        struct start_find find;
        bool created;
        struct nats_request req;
};

static void source_leave(struct source *s) {
        if (!s)
                return;
        s->sub = NULL;
        if (!s->asked || s->bus->closing) {
                nats_source_free(s);
                return;
        }
        nats_request_end(s->bus->link, &s->look);
        nats_verdicts_forget(s);
        *s->life = 0; /* who serves it next may have made it */
}

static void leave_all(struct om_bus_sub *s) {
        for (struct source *source = s->sources, *next; source; source = next) {
                next = source->next;
                source_leave(source);
        }
        source_leave(s->again);
}

static void subscribe_free(struct om_job *j) {
        struct subscribe *m = (struct subscribe *) j;

        if (m->sub) /* cancelled or failed; a pattern's may have some already */
                leave_all(m->sub);
        nats_survey_free(&m->survey);
        free(m->sub);
        free(m);
}

static void subscribe_failed(struct subscribe *m, int status, const struct om_error *e) { om_job_over(&m->job.base, status, e); }

static void call_failed(struct subscribe *m, int r) {
        struct om_error e;

        nats_unsent(r, &e);
        subscribe_failed(m, r, &e);
}

int nats_sub_attach(struct om_bus_sub *s, struct topic *t) {
        char consumer[CONSUMER_NAME_MAX];
        struct source *source = nats_consumer_name(consumer, sizeof consumer, t, s->pattern ? s->topic->name : NULL, s->agent)
                ? nats_source_get(s->bus, t->log->name, consumer)
                : NULL;

        if (!source)
                return -ENOMEM;
        if (source->sub == s)
                return 0;
        source->sub = s;
        source->topic = t;
        source->next = s->sources;
        s->sources = source;
        return 0;
}

static void serve(struct subscribe *m, struct om_span info) {
        struct om_bus_sub *s = m->sub;
        struct om_bus *b = s->bus;
        struct om_bus_subscribe *op = (struct om_bus_subscribe *) m->job.base.op;
        int64_t wait_ms = (int64_t) (nats_json_u64(info, "config.ack_wait") / 1000000);

        if (!op) { /* cancelled: the group stays, unserved */
                om_job_over(&m->job.base, -ECANCELED, NULL);
                return;
        }
        if (info.p && nats_sub_attach(s, s->topic) < 0) {
                call_failed(m, -ENOMEM);
                return;
        }
        if (wait_ms && wait_ms < 2000)
                om_host_log(b->host, OM_LOG_WARNING, "topic %s: the consumer of group %s has an ack_wait of %lld ms, too short for leases",
                        s->topic->name, s->agent, (long long) wait_ms);
        DL_APPEND(b->subs, s);
        op->ret_sub = s;
        op->ret_created = m->created;
        m->sub = NULL;
        nats_sub_find_again(s);
        om_job_over(&m->job.base, 0, NULL);
}

static void look_for_group(struct subscribe *m);

static void created(struct nats_request *r, const struct nats_reply *reply) {
        struct subscribe *m = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "making a group's consumer", &e);

        if (status < 0 && nats_error_code(reply->data) == NATS_ERR_CONSUMER_EXISTS)
                look_for_group(m); /* another daemon was faster: the group starts where that says */
        else if (status < 0)
                subscribe_failed(m, status, &e);
        else {
                m->created = true;
                serve(m, reply->data);
        }
}

/* Behind the request's first brace. */
static void put_consumer_config(struct om_buf *body, const struct om_bus *b, const char *stream, const char *filter, const char *consumer,
        const char *agent, const char *pattern, struct start start, int64_t lease_ms) {
        int64_t wait_ms = lease_ms < b->settings.ack_wait_ms ? lease_ms : b->settings.ack_wait_ms;

        om_buf_lit(body, "\"stream_name\":");
        om_buf_json_span(body, om_span_of(stream));
        om_buf_lit(body, ",\"config\":{\"durable_name\":");
        om_buf_json_span(body, om_span_of(consumer));
        if (filter) {
                om_buf_lit(body, ",\"filter_subject\":");
                om_buf_json_span(body, om_span_of(filter));
        }
        om_buf_printf(body,
                ",\"deliver_policy\":\"by_start_sequence\",\"opt_start_seq\":%llu,\"ack_policy\":\"explicit\",\"ack_wait\":%lld000000,"
                "\"max_deliver\":-1,\"max_ack_pending\":-1,\"max_waiting\":2048,\"replay_policy\":\"instant\",\"num_replicas\":0,"
                "\"metadata\":{"
                "\"omni_start\":\"%llu\",\"omni_agent\":",
                (unsigned long long) (start.seq ? start.seq : 1), (long long) (wait_ms < 2000 ? 2000 : wait_ms),
                (unsigned long long) start.number);
        om_buf_json_span(body, om_span_of(agent));
        if (pattern) {
                om_buf_lit(body, ",\"omni_pattern\":");
                om_buf_json_span(body, om_span_of(pattern));
        }
        om_buf_lit(body, "}}}");
}

void nats_put_group_config(struct om_buf *body, const struct topic *t, const char *consumer, const char *agent, const char *pattern,
        struct start start, int64_t lease_ms) {
        om_buf_lit(body, "{\"action\":\"create\",");
        put_consumer_config(body, t->bus, t->log->name, nats_topic_filter(t), consumer, agent, pattern, start, lease_ms);
}

void nats_put_again_config(struct om_buf *body, const struct om_bus *b, const char *stream, const char *agent) {
        om_buf_putc(body, '{');
        put_consumer_config(body, b, stream, NULL, "again", agent, NULL, (struct start){ 1, 1 }, 180000);
}

static void start_found(struct start_find *f, int status, const struct om_error *e) {
        struct subscribe *m = f->ctx;
        struct om_bus_sub *s = m->sub;
        struct om_buf body = OM_BUF_INIT;
        int r;

        if (status < 0) {
                subscribe_failed(m, status, e);
                return;
        }
        nats_put_group_config(&body, s->topic, m->consumer, s->agent, NULL, f->start, s->lease_ms);
        r = nats_call(s->bus->link, &m->req, created, m, om_buf_span(&body), "CONSUMER.CREATE.%s.%s", s->topic->log->name, m->consumer);
        om_buf_deinit(&body);
        if (r < 0)
                call_failed(m, r);
}

static void surveyed(struct survey *s) {
        struct subscribe *m = s->ctx;
        struct om_error e;

        if (s->status < 0)
                subscribe_failed(m, s->status, &s->error);
        else if (!s->n)
                subscribe_failed(m, om_error_set(&e, OM_UNAVAILABLE, "NATS: the topic is being deleted"), &e);
        else {
                m->find.done = start_found;
                m->find.ctx = m;
                nats_start_find(&m->find, m->sub->topic, s->topics[0], m->start, m->start_ms);
        }
}

static void exists(struct nats_request *r, const struct nats_reply *reply) {
        struct subscribe *m = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status;

        if (reply->status == 0 && nats_json_u64(reply->data, "error.code") == 404) {
                nats_survey_free(&m->survey); /* of a time before, when the group was made and deleted meanwhile */
                m->survey = (struct survey){ .plain = true };
                nats_survey_start(&m->survey, m->job.bus, om_span_of(m->sub->topic->name), surveyed, m);
        } else if ((status = nats_error(reply, "reading a group's consumer", &e)) < 0)
                subscribe_failed(m, status, &e);
        else
                serve(m, reply->data);
}

static void look_for_group(struct subscribe *m) {
        int r = nats_call(m->job.bus->link, &m->req, exists, m, OM_SPAN_NONE, "CONSUMER.INFO.%s.%s", m->sub->topic->log->name, m->consumer);

        if (r < 0)
                call_failed(m, r);
}

static void pattern_is_there(void *ctx, int status, const struct om_error *e, bool created) {
        struct subscribe *m = ctx;

        m->created = created;
        if (status < 0)
                subscribe_failed(m, status, e);
        else
                serve(m, OM_SPAN_NONE);
}

static void topic_is_there(struct stream_wait *w, int status, const struct om_error *e) {
        struct subscribe *m = CONTAINER(w, struct subscribe, wait);

        if (status < 0)
                subscribe_failed(m, status, e);
        else if (nats_consumer_name(m->consumer, sizeof m->consumer, m->sub->topic, NULL, m->sub->agent))
                look_for_group(m);
        else
                call_failed(m, -ENOMEM);
}

int nats_bus_subscribe(struct om_bus *b, struct om_bus_subscribe *op, struct om_error *e) {
        struct om_buf na = OM_BUF_INIT;
        struct subscribe *m;
        int r = nats_job_admit(b, sizeof *m, e);

        if (r < 0)
                return r;
        m = calloc(1, sizeof *m);
        if (m)
                m->sub = calloc(1, sizeof *m->sub);
        nats_name_encode(&na, op->agent);
        if (m && m->sub)
                m->sub->topic = nats_topic_get(b, op->topic);
        if (!m || !m->sub || !m->sub->topic || !om_buf_ok(&na) || op->agent.len > OM_NAME_MAX) {
                om_buf_deinit(&na);
                if (m)
                        free(m->sub);
                free(m);
                return om_error_set_errno(e, ENOMEM, "NATS");
        }
        m->sub->bus = b;
        m->sub->core = op->core;
        m->sub->lease_ms = op->reclaim_idle_ms > 0 ? op->reclaim_idle_ms : 180000;
        if (m->sub->lease_ms < 2000)
                m->sub->lease_ms = 2000;
        memcpy(m->sub->agent, op->agent.p, op->agent.len);
        snprintf(m->sub->na, sizeof m->sub->na, "%.*s", (int) na.len, na.data);
        om_buf_deinit(&na);
        m->start = op->start;
        m->start_ms = op->start_ms;
        m->wait.fn = topic_is_there;
        nats_job_begin(b, &m->job, &op->op, sizeof *m, subscribe_free);
        m->sub->pattern = om_topic_is_pattern(op->topic);
        if (m->sub->pattern)
                nats_pattern_subscribe(m->sub, m->start, m->start_ms, pattern_is_there, m);
        else
                nats_topic_need(m->sub->topic, &m->wait);
        return 0;
}

/* -- replays --------------------------------------------------------------------------------------------------------- */

static void again_looked_for(struct nats_request *r, const struct nats_reply *reply) {
        struct om_bus_sub *s = r->ctx;
        char stream[STREAM_NAME_MAX];

        if (reply->status < 0 || nats_json_get(reply->data, "error").p || s->again)
                return;
        nats_group_stream(stream, sizeof stream, s->bus, 'a', s->topic->nt, s->na);
        s->again = nats_source_get(s->bus, stream, "again");
        if (!s->again)
                return;
        s->again->again = true;
        s->again->sub = s;
        nats_sub_pull(s);
}

void nats_sub_find_again(struct om_bus_sub *s) {
        char stream[STREAM_NAME_MAX];

        if (s->again || s->look.active)
                return;
        nats_group_stream(stream, sizeof stream, s->bus, 'a', s->topic->nt, s->na);
        nats_call(s->bus->link, &s->look, again_looked_for, s, OM_SPAN_NONE, "CONSUMER.INFO.%s.again", stream);
}

void nats_note_came(void *ctx, natsMsg *msg) {
        struct om_bus *b = ctx;
        struct om_span text = { natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) };
        char name[STREAM_NAME_MAX];

        if (om_span_is(text, "forget")) {
                nats_topics_down(b);
                return;
        }
        if (text.len > 5 && memcmp(text.p, "gone ", 5) == 0) {
                struct topic *t; /* one that is not known has nothing to forget */

                HASH_FIND(hh, b->topics, text.p + 5, text.len - 5, t);
                if (t)
                        t->deletions++;
                return;
        }
        if (text.len > 5 && memcmp(text.p, "join ", 5) == 0) {
                struct topic *t = nats_topic_get(b, (struct om_span){ text.p + 5, text.len - 5 });

                for (struct om_bus_sub *s = b->subs; s && t; s = s->next)
                        if (s->pattern && om_topic_matches(om_span_of(s->topic->name), om_span_of(t->name)) && nats_sub_attach(s, t) == 0)
                                nats_sub_pull(s);
                return;
        }
        for (struct om_bus_sub *s = b->subs; s; s = s->next) {
                nats_group_stream(name, sizeof name, b, 'a', s->topic->nt, s->na);
                if (om_span_is(text, name))
                        nats_sub_find_again(s);
        }
}

/* -- the rest of a group's life -------------------------------------------------------------------------------------- */

void nats_bus_unsubscribe(struct om_bus_sub *s) {
        struct om_bus *b = s->bus;
        struct delivery *d, *tmp;

        DL_DELETE(b->subs, s);
        leave_all(s);
        if (!b->closing)
                nats_request_end(b->link, &s->look);
        DL_FOREACH_SAFE (s->out, d, tmp) {
                DL_DELETE(s->out, d);
                d->sub = NULL;
                if (b->closing)
                        nats_delivery_free(d);
                else if (!d->given && !d->n_look) /* the core never had it; those that are looked up go back when that is over */
                        nats_release_delivery(d);
        }
        free(s->fresh);
        free(s);
}

void nats_bus_want(struct om_bus_sub *s, unsigned n) {
        s->want = n;
        nats_sub_pull(s);
}

/* What came from one of its sources; NULL: from all. */
static void revoke(struct om_bus_sub *s, const struct source *from) {
        struct om_delivery **list;
        struct delivery *d;
        size_t n = 0, i = 0;

        nats_turn_over(s->bus);
        DL_COUNT(s->out, d, n);
        list = n ? calloc(n, sizeof(struct om_delivery *)) : NULL;
        if (!list)
                return;
        DL_FOREACH (s->out, d) {
                if (d->delivery.gone || d->n_look || (from && !nats_is_from(d, from)))
                        continue;
                d->delivery.gone = true;
                list[i++] = &d->delivery;
        }
        if (i)
                s->bus->events->revoked(s->core, list, i);
        free(list);
}

void nats_sub_revoke(struct om_bus_sub *s) {
        for (struct source *source = s->sources; source; source = source->next)
                source->asked = 0;
        revoke(s, NULL);
}

void nats_subs_up(struct om_bus *b) {
        for (struct om_bus_sub *s = b->subs; s; s = s->next) {
                nats_sub_find_again(s);
                if (s->pattern)
                        nats_pattern_find(s);
                for (struct source *source = s->sources; source; source = source->next)
                        if (*source->life)
                                nats_source_look(source);
                if (s->again && *s->again->life)
                        nats_source_look(s->again);
                nats_sub_pull(s);
        }
}

void nats_subs_down(struct om_bus *b) {
        struct source *s, *tmp;

        HASH_ITER (hh, b->sources, s, tmp) {
                s->asked = 0;
                s->lost = false;
                is_away(s, om_clock_ms());
                if (!s->sub)
                        nats_source_free(s);
        }
}
