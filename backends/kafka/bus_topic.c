/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Kafka topics that this daemon has to do with, made when they are first needed.
 *
 * A topic of ours keeps everything (retention.ms −1): what all groups have finished is deleted by our own sweep (bus_query.c has the
 * offsets). One that is there already is taken as it is, whoever made it. All that a turn of the loop needs is made by one request.
 *
 * Loop thread, but for kafka_make_topics().
 */
#include "admin.h"

enum { TOPICS_MAX = 100 }; /* of one request: brokers take some milliseconds for each */

struct topic *kafka_topic_get(struct om_bus *b, enum kafka_kind kind, struct om_span topic, struct om_span agent) {
        char kname[KAFKA_NAME_MAX + 1];
        struct topic *t = NULL;

        if (!kafka_name(kname, b->settings.prefix, kind, topic, agent))
                return NULL;
        HASH_FIND_STR(b->topics, kname, t);
        if (t || !(t = calloc(1, sizeof *t)))
                return t;
        t->bus = b;
        t->kind = kind;
        memcpy(t->kname, kname, sizeof kname);
        if (kind == KAFKA_LOG)
                snprintf(t->name, sizeof t->name, "%.*s", OM_PRI(topic));
        HASH_ADD_STR(b->topics, kname, t);
        if (!t->hh.tbl) {
                free(t);
                return NULL;
        }
        return t;
}

void kafka_topics_free(struct om_bus *b) {
        struct topic *t, *next;

        HASH_ITER (hh, b->topics, t, next) {
                HASH_DEL(b->topics, t);
                if (t->rkt)
                        rd_kafka_topic_destroy(t->rkt);
                free(t);
        }
}

bool kafka_topic_unknown(rd_kafka_resp_err_t err) {
        return err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC || err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION ||
                err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
}

void kafka_topic_forget(struct topic *t) {
        t->lost = true;
        if (t->state == TOPIC_THERE)
                t->state = TOPIC_UNKNOWN;
}

void kafka_topic_seen(struct topic *t) {
        if (t->state == TOPIC_UNKNOWN)
                t->state = TOPIC_THERE;
}

/* -- making, on a worker ------------------------------------------------------------------------------------------------- */

static rd_kafka_NewTopic_t *new_topic(struct om_bus *b, const struct making *m) {
        char why[200], bytes[24];
        int replicas = b->settings.replicas ? (int) b->settings.replicas : -1;
        rd_kafka_NewTopic_t *t = rd_kafka_NewTopic_new(m->kname, m->partitions, replicas, why, sizeof why);

        if (!t)
                return NULL;
        snprintf(bytes, sizeof bytes, "%lld", (long long) b->settings.max_message_bytes);
        rd_kafka_NewTopic_set_config(t, "cleanup.policy", m->kind == KAFKA_NAMES ? "compact" : "delete");
        rd_kafka_NewTopic_set_config(t, "retention.ms", m->kind == KAFKA_WAKE ? "3600000" : "-1");
        rd_kafka_NewTopic_set_config(t, "retention.bytes", "-1");
        rd_kafka_NewTopic_set_config(t, "max.message.bytes", bytes);
        rd_kafka_NewTopic_set_config(t, "message.timestamp.type", "CreateTime");
        return t;
}

static bool is_there(struct om_bus *b, const char *kname) {
        rd_kafka_topic_t *t = rd_kafka_topic_new(b->asker, kname, NULL);
        const struct rd_kafka_metadata *md;
        bool there = false;

        if (t && rd_kafka_metadata(b->asker, 0, t, &md, ADMIN_MS) == RD_KAFKA_RESP_ERR_NO_ERROR) {
                there = md->topic_cnt == 1 && !md->topics[0].err;
                rd_kafka_metadata_destroy(md);
        }
        if (t)
                rd_kafka_topic_destroy(t);
        return there;
}

static void made_one(struct om_bus *b, struct making *m, const rd_kafka_topic_result_t *r) {
        rd_kafka_resp_err_t err = rd_kafka_topic_result_error(r);
        bool denied = err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED || err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        char what[KAFKA_NAME_MAX + 80];

        m->made = !err;
        /* Whether one may be made is looked at before whether it is there: where others make the topics, that is no error. */
        if (!err || err == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS || (denied && is_there(b, m->kname)))
                return;
        snprintf(what, sizeof what, "making the topic %s%s", m->kname, denied ? " (takes the right Create)" : "");
        m->status = kafka_error(err, rd_kafka_topic_result_error_string(r), what, &m->error);
}

static int make_some(struct om_bus *b, struct making *m, size_t n, struct om_error *e) {
        rd_kafka_NewTopic_t **topics = calloc(n, sizeof(rd_kafka_NewTopic_t *));
        const rd_kafka_topic_result_t **made;
        struct admin_ask ask;
        size_t n_topics = 0, n_made = 0;
        int r = 0;

        kafka_ask_init(&ask, b->asker, RD_KAFKA_ADMIN_OP_CREATETOPICS);
        for (size_t i = 0; topics && i < n; i++)
                if ((topics[n_topics] = new_topic(b, &m[i])))
                        n_topics++;
        if (n_topics < n || !topics)
                r = om_error_set_errno(e, ENOMEM, "Kafka");
        else {
                rd_kafka_CreateTopics(b->asker, topics, n, ask.options, ask.queue);
                r = kafka_ask_wait(&ask, "making topics", e);
        }
        made = r == 0 ? rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(ask.answer), &n_made) : NULL;
        for (size_t i = 0; i < n_made; i++)
                for (size_t k = 0; k < n; k++)
                        if (strcmp(m[k].kname, rd_kafka_topic_result_name(made[i])) == 0)
                                made_one(b, &m[k], made[i]);
        if (topics)
                rd_kafka_NewTopic_destroy_array(topics, n_topics);
        free(topics);
        kafka_ask_deinit(&ask);
        return r;
}

int kafka_make_topics(struct om_bus *b, struct making *m, size_t n, struct om_error *e) {
        int r = 0;

        for (size_t i = 0; i < n && r == 0; i += TOPICS_MAX)
                r = make_some(b, m + i, n - i < TOPICS_MAX ? n - i : TOPICS_MAX, e);
        return r;
}

/* -- needing -------------------------------------------------------------------------------------------------------------- */

struct need {
        struct call call; /* first */
        size_t n;
        struct topic **topics;
        struct making *making;
};

static void need_run(struct call *c) {
        struct need *n = (struct need *) c;

        c->status = kafka_make_topics(c->bus, n->making, n->n, &c->error);
        for (size_t i = 0; i < n->n && c->status == 0; i++) {
                struct om_error ignored;

                if (n->making[i].kind == KAFKA_LOG && n->making[i].status == 0)
                        kafka_whole_name_note(c->bus, n->making[i].kname, n->making[i].topic, OM_SPAN(""));
                if (n->making[i].again) /* the library remembers for a while that it was not there */
                        kafka_partitions_of(c->bus, n->making[i].kname, 1, &ignored);
        }
}

static void tell(struct topic *t, int status, const struct om_error *e) {
        struct topic_wait *waits = t->waits, *w;

        t->waits = NULL;
        t->state = status == 0 ? TOPIC_THERE : TOPIC_UNKNOWN;
        t->lost &= status < 0;
        while ((w = waits)) {
                waits = w->next;
                w->fn(w, status, e);
        }
}

static void need_done(struct call *c) {
        struct need *n = (struct need *) c;

        for (size_t i = 0; i < n->n; i++) {
                if (n->making[i].again && n->making[i].made)
                        kafka_parts_log_anew(c->bus, n->making[i].kname);
                tell(n->topics[i], c->status ? c->status : n->making[i].status, c->status ? &c->error : &n->making[i].error);
        }
        free(n->topics);
        free(n->making);
        free(n);
}

/* All that this turn asked for. */
static void needs_go(struct om_post *post) {
        struct om_bus *b = CONTAINER(post, struct om_bus, need_post);
        struct need *n = calloc(1, sizeof *n);
        struct om_error e = OM_ERROR_INIT;
        size_t count = 0;
        int r = -ENOMEM;

        b->need_posted = false;
        for (struct topic *t = b->topics; t; t = t->hh.next)
                count += t->state == TOPIC_MAKING && !t->asked;
        if (n && count) {
                n->topics = calloc(count, sizeof(struct topic *));
                n->making = calloc(count, sizeof(struct making));
        }
        if (n && n->topics && n->making) {
                for (struct topic *t = b->topics; t; t = t->hh.next)
                        if (t->state == TOPIC_MAKING && !t->asked) {
                                n->topics[n->n] = t;
                                n->making[n->n++] = (struct making){ .kname = t->kname,
                                        .topic = om_span_of(t->name),
                                        .kind = t->kind,
                                        .again = t->lost,
                                        .partitions = t->kind == KAFKA_LOG ? (int) b->settings.partitions : 1 };
                                t->asked = true;
                        }
                n->call.run = need_run;
                n->call.done = need_done;
                r = kafka_call(b, WORKER_CALLS, &n->call, &e);
                if (r == 0)
                        goto out;
        }
        om_error_set_errno(&e, ENOMEM, "Kafka");
        for (struct topic *t = b->topics, *next; t; t = next) {
                next = t->hh.next;
                if (t->state == TOPIC_MAKING && (!t->asked || r < 0))
                        tell(t, -ENOMEM, &e);
        }
        if (n) {
                free(n->topics);
                free(n->making);
                free(n);
        }
out:
        for (struct topic *t = b->topics; t; t = t->hh.next)
                t->asked = t->asked && t->state == TOPIC_MAKING;
}

void kafka_topic_need(struct topic *t, struct topic_wait *w) {
        struct om_bus *b = t->bus;

        if (t->state == TOPIC_THERE) {
                w->fn(w, 0, NULL);
                return;
        }
        w->next = NULL;
        if (t->waits)
                t->last_wait->next = w;
        else
                t->waits = w;
        t->last_wait = w;
        if (t->state == TOPIC_MAKING)
                return;
        t->state = TOPIC_MAKING;
        t->asked = false;
        if (b->need_posted)
                return;
        b->need_posted = true;
        b->need_post.fn = needs_go;
        om_host_post(b->host, &b->need_post);
}
