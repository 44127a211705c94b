/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes: groups and topics deleted, dead letters given back or dropped, a group that starts again elsewhere, a topic's partitions and
 * retention.
 *
 * Deleting a group is deleting its retry topic: what was committed goes with it, and other daemons lose its partitions. A dead letter that
 * is given back is on the retry topic before it is taken out of the dead letters. Partitions are added to the topic first and then to the
 * groups' retry topics: a group that has fewer when we die between the two gets its others when it is next registered, and starts in each
 * with its first task.
 *
 * Loop thread, but for run() of calls.
 */
#include <unistd.h>

#include "admin.h"
#include "look.h"

struct letter {
        struct change *change;
        char place[48];
        void *record; /* of a replay */
        size_t len;
        struct send send;
        bool back; /* it is on the retry topic */
        int status;
};
/* A partition of a group's retry topic that was added, and gets the message that says where the group starts. */
struct added {
        struct change *change;
        struct om_span agent;
        int partition;
        struct send send;
};
struct change {
        struct job job; /* first */
        struct call call;
        struct om_bus_change *op;
        enum om_bus_change_type type;
        struct om_span topic, agent, *ids;
        size_t n_ids;
        bool delete_dead_letters;
        enum om_start start;
        int64_t start_ms;
        struct om_arena arena;
        char retry[KAFKA_NAME_MAX + 1], dead[KAFKA_NAME_MAX + 1], log[KAFKA_NAME_MAX + 1];
        int n_parts;
        int64_t *starts;
        /* a topic's own settings */
        int64_t partitions, retention_ms;
        struct added *added;
        size_t n_added;
        /* dead letters */
        struct letter *letters;
        struct dead_entry *next;
        size_t n, left;
        uint64_t done;
        struct om_error error;
        int status;
};

static void change_free(struct om_job *j) {
        struct change *c = (struct change *) j;

        for (size_t i = 0; i < c->n; i++)
                free(c->letters[i].record);
        free(c->letters);
        free(c->added);
        free(c->starts);
        om_arena_deinit(&c->arena);
        free(c);
}

static void change_over(struct change *c, int status, const struct om_error *e, uint64_t n) {
        if (!job_is_cancelled(&c->job))
                c->op->ret_n = n;
        kafka_job_over(&c->job, status, e);
}

/* -- dead letters, on the worker ------------------------------------------------------------------------------------------------- */

static bool is_chosen(const struct change *c, const struct dead_entry *e) {
        char id[24];

        snprintf(id, sizeof id, "%lld", (long long) e->offset);
        for (size_t i = 0; i < c->n_ids; i++)
                if (om_span_is(c->ids[i], id))
                        return true;
        return c->n_ids == 0;
}

static bool keep_record(void *ctx, const rd_kafka_message_t *m) {
        struct change *c = ctx;
        struct om_arena arena = { NULL, 0 };
        struct om_dead_letter letter;

        while (c->next && (c->next->offset < m->offset || !is_chosen(c, c->next)))
                c->next = c->next->next;
        if (!c->next)
                return false;
        if (c->next->offset != m->offset)
                return true;
        for (size_t i = 0; i < c->n; i++) {
                struct letter *l = &c->letters[i];

                if (strcmp(l->place, c->next->place) != 0 || !kafka_letter_read(m, &arena, &letter) ||
                        !(l->record = malloc(letter.record.len + 1)))
                        continue;
                memcpy(l->record, letter.record.p, letter.record.len);
                l->len = letter.record.len;
        }
        om_arena_deinit(&arena);
        c->next = c->next->next;
        return c->next != NULL;
}

static int letters_run(struct change *c, struct om_error *e) {
        struct dead_topic *t = NULL;
        struct dead_entry *entry;
        struct seen s;
        const struct seen_group *g;
        bool there, group;
        int r = kafka_look_names(c->job.bus, kafka_is_topic, &c->topic, &s, e);

        if (r < 0)
                return r;
        there = kafka_seen_dead(&s, c->dead);
        g = kafka_seen_group(&s, c->retry);
        group = g != NULL;
        if (g)
                c->n_parts = g->n_parts;
        kafka_seen_deinit(&s);
        if (!group && (!there || c->type == OM_CHANGE_REPLAY_DEAD))
                return om_error_set(e, OM_NOT_FOUND, "there is no group of \"%.*s\" on \"%.*s\"", OM_PRI(c->agent), OM_PRI(c->topic));
        if (!there)
                return 0;
        r = kafka_dead_scan(c->job.bus, c->dead, &t, e);
        if (r < 0 || !t->n)
                return r;
        c->letters = calloc(t->n, sizeof *c->letters);
        if (!c->letters)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        DL_FOREACH (t->list, entry)
                if (is_chosen(c, entry)) {
                        memcpy(c->letters[c->n].place, entry->place, sizeof entry->place);
                        c->letters[c->n++].change = c;
                }
        if (!c->n || c->type == OM_CHANGE_PURGE_DEAD)
                return 0;
        c->next = t->list;
        return kafka_read(c->job.bus, c->dead, 0, t->list->offset, t->list->prev->offset + 1, keep_record, c, e);
}

/* -- dead letters, on the loop ------------------------------------------------------------------------------------------------------ */

static void letter_told(struct send *s, int status, const char *why) {
        struct letter *l = s->ctx;

        l->status = status;
        if (status < 0 && !l->change->status) {
                l->change->status = status;
                om_error_set(&l->change->error, om_kind_of_errno(status), "%s", why ? why : "Kafka: a dead letter cannot be written");
        }
}

static void take_out(struct letter *l);

static void letter_free(struct send *s) {
        struct letter *l = s->ctx;
        struct change *c = l->change;

        if (l->status == 0 && !l->back) {
                l->back = true;
                take_out(l);
                return;
        }
        c->done += l->status == 0;
        if (--c->left == 0)
                change_over(c, c->status, &c->error, c->done);
}

static void take_out(struct letter *l) {
        struct change *c = l->change;

        l->send = (struct send){ .bus = c->job.bus,
                .topic = kafka_topic_get(c->job.bus, KAFKA_DEAD, c->topic, c->agent),
                .key = strdup(l->place),
                .key_len = strlen(l->place),
                .done = letter_told,
                .free = letter_free,
                .ctx = l };
        kafka_send(&l->send);
}

static void give_back(struct letter *l) {
        struct change *c = l->change;
        int p = atoi(l->place + 1);

        l->send = (struct send){ .bus = c->job.bus,
                .topic = kafka_topic_get(c->job.bus, KAFKA_RETRY, c->topic, c->agent),
                .value = l->record,
                .len = l->len,
                .key = strdup("omni-again"),
                .key_len = 10,
                .partition = p < c->n_parts ? p : 0,
                .done = letter_told,
                .free = letter_free,
                .ctx = l };
        l->record = NULL;
        kafka_send(&l->send);
}

static void letters_done(struct change *c) {
        c->left = c->n + 1;
        for (size_t i = 0; i < c->n; i++) {
                struct letter *l = &c->letters[i];

                if (c->type == OM_CHANGE_REPLAY_DEAD && l->record)
                        give_back(l);
                else if (c->type == OM_CHANGE_PURGE_DEAD) {
                        l->back = true;
                        take_out(l);
                } else
                        c->left--;
        }
        if (--c->left == 0)
                change_over(c, c->status, &c->error, c->done);
}

/* -- deleting ---------------------------------------------------------------------------------------------------------------------------
 */

/* Deletes these; who looks after it does not see them any more, though a broker may list for a moment what the controller has deleted. */
static int delete_all(struct change *c, const char *const *names, size_t n, struct om_error *e) {
        int64_t by = om_clock_ms() + PROPAGATION_MS;
        struct om_error ignored;
        bool listed = true;
        size_t deleted;
        struct seen s;
        int r = kafka_delete_topics(c->job.bus, names, n, &deleted, e);

        if (r == 0 && deleted == 0)
                r = om_error_set(e, OM_NOT_FOUND, "it was deleted by somebody else");
        while (r == 0 && listed && om_clock_ms() < by && kafka_look_names(c->job.bus, kafka_is_topic, &c->topic, &s, &ignored) == 0) {
                listed = false;
                for (size_t i = 0; i < n && !listed; i++)
                        listed = kafka_seen_topic(&s, names[i]) || kafka_seen_group(&s, names[i]) || kafka_seen_dead(&s, names[i]);
                kafka_seen_deinit(&s);
                if (listed)
                        usleep(10000);
        }
        return r;
}

static int delete_group_run(struct change *c, struct om_error *e) {
        const char *names[2] = { c->retry, c->dead };
        struct seen s;
        bool there;
        int r = kafka_look_names(c->job.bus, kafka_is_topic, &c->topic, &s, e);

        if (r < 0)
                return r;
        there = kafka_seen_group(&s, c->retry) != NULL;
        kafka_seen_deinit(&s);
        if (!there)
                return om_error_set(e, OM_NOT_FOUND, "there is no group of \"%.*s\" on \"%.*s\"", OM_PRI(c->agent), OM_PRI(c->topic));
        if (c->delete_dead_letters)
                kafka_dead_forget(c->job.bus, c->dead);
        return delete_all(c, names, c->delete_dead_letters ? 2 : 1, e);
}

static int delete_topic_run(struct change *c, struct om_error *e) {
        struct seen s;
        const char **names;
        size_t n = 0;
        int r = kafka_look_names(c->job.bus, kafka_is_topic, &c->topic, &s, e);

        if (r < 0)
                return r;
        names = calloc(s.n_topics + s.n_groups + s.n_dead + 1, sizeof(char *));
        for (size_t i = 0; names && i < s.n_groups; i++)
                names[n++] = s.groups[i].kname;
        c->done = n;
        for (size_t i = 0; names && i < s.n_topics; i++)
                names[n++] = s.topics[i].kname;
        for (size_t i = 0; names && i < s.n_dead && c->delete_dead_letters; i++) {
                names[n++] = s.dead[i];
                kafka_dead_forget(c->job.bus, s.dead[i]);
        }
        if (!names)
                r = om_error_set_errno(e, ENOMEM, "Kafka");
        else if (!n)
                r = om_error_set(e, OM_NOT_FOUND, "there is no topic \"%.*s\"", OM_PRI(c->topic));
        else
                r = delete_all(c, names, n, e);
        free(names);
        kafka_seen_deinit(&s);
        return r;
}

static void deleted(struct change *c) {
        struct om_bus *b = c->job.bus;
        struct group *g, *next;

        HASH_ITER (hh, b->groups, g, next)
                if (om_span_is(c->topic, g->topic) && (c->type == OM_CHANGE_DELETE_TOPIC || om_span_is(c->agent, g->agent)))
                        kafka_group_gone(g);
        for (struct topic *t = b->topics; t; t = t->hh.next) {
                struct kafka_named n;

                if (kafka_name_read(t->kname, b->settings.prefix, &n) && kafka_name_is_of(&n, c->topic) &&
                        (c->type == OM_CHANGE_DELETE_TOPIC || n.kind != KAFKA_LOG))
                        kafka_topic_forget(t);
        }
        change_over(c, 0, NULL, c->type == OM_CHANGE_DELETE_TOPIC ? c->done : 1);
}

/* -- elsewhere
 * ----------------------------------------------------------------------------------------------------------------------------- */

static int seek_run(struct change *c, struct om_error *e) {
        int64_t *ends;
        int r;

        if (c->n_parts == 0)
                return om_error_set(e, OM_CONFLICT,
                        "Kafka: a group starts elsewhere where it is served: register the agent on this daemon first, and on no other");
        c->starts = calloc(2 * (size_t) c->n_parts, sizeof(int64_t));
        if (!c->starts)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        ends = c->starts + c->n_parts;
        r = kafka_find_offsets(
                c->job.bus, c->log, c->n_parts, c->start == OM_START_DEFAULT ? OM_START_FIRST : c->start, c->start_ms, c->starts, e);
        if (r == 0)
                r = kafka_find_offsets(c->job.bus, c->log, c->n_parts, OM_START_NEW, 0, ends, e);
        for (int i = 0; i < c->n_parts && r == 0; i++)
                c->done += ends[i] > c->starts[i] ? (uint64_t) (ends[i] - c->starts[i]) : 0;
        return r;
}

static void seek_done(struct change *c) {
        struct group *g = kafka_group_find(c->job.bus, c->topic, c->agent);
        struct om_error e = OM_ERROR_INIT;
        int r = 0;

        for (int i = 0; g && i < g->n_parts; i++)
                if (g->parts[i]->state != PART_RUNNING)
                        g = NULL;
        if (!g || g->n_parts != c->n_parts) {
                r = om_error_set(&e, OM_CONFLICT, "Kafka: other daemons have partitions of the group now: stop them first");
                change_over(c, r, &e, 0);
                return;
        }
        for (int i = 0; i < g->n_parts && r == 0; i++) {
                struct part *p = g->parts[i];
                struct kafka_state s = { .owner = g->bus->owner, .finished = p->finished, .clean = true };
                int64_t retry = p->at[KAFKA_AT_RETRY].pos.track.low;

                kafka_part_lose(p);
                s.at[KAFKA_AT_LOG].track.low = s.at[KAFKA_AT_LOG].next = c->starts[i];
                s.at[KAFKA_AT_RETRY].track.low = s.at[KAFKA_AT_RETRY].next = retry;
                r = kafka_part_start(p, &s, &e);
                if (r == 0)
                        kafka_part_touch(p);
        }
        change_over(c, r, &e, c->done);
}

/* -- a topic's own settings
 * ---------------------------------------------------------------------------------------------------------------- */

static int grow_group(struct change *c, const struct seen_group *g, struct om_error *e) {
        struct om_bus *b = c->job.bus;
        size_t n = (size_t) (c->partitions - g->n_parts);
        struct added *more = reallocarray(c->added, c->n_added + n, sizeof *more);
        int r;

        if (!more)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        c->added = more;
        r = kafka_grow_topic(b, g->kname, (int) c->partitions, e);
        if (r < 0)
                return r;
        r = kafka_partitions_of(b, g->kname, (int) c->partitions, e);
        for (size_t i = 0; r >= 0 && i < n; i++)
                c->added[c->n_added++] =
                        (struct added){ .change = c, .agent = om_arena_copy(&c->arena, g->agent), .partition = g->n_parts + (int) i };
        return r < 0 ? r : 0;
}

static int grow(struct change *c, const struct seen *s, struct om_error *e) {
        struct om_bus *b = c->job.bus;
        int r = 0;

        if (c->partitions < s->topics[0].n_parts)
                return om_error_set(
                        e, OM_INVALID, "partitions: \"%.*s\" has %d, and Kafka can only add some", OM_PRI(c->topic), s->topics[0].n_parts);
        if (c->partitions > s->topics[0].n_parts)
                r = kafka_grow_topic(b, c->log, (int) c->partitions, e);
        for (size_t i = 0; i < s->n_groups && r == 0; i++)
                if (s->groups[i].n_parts < c->partitions)
                        r = grow_group(c, &s->groups[i], e);
        return r;
}

static int make(struct change *c, struct om_error *e) {
        struct making m = { .kname = c->log, .kind = KAFKA_LOG };
        int r;

        m.partitions = (int) (c->partitions ? c->partitions : c->job.bus->settings.partitions);
        r = kafka_make_topics(c->job.bus, &m, 1, e);
        if (r == 0 && m.status < 0) {
                *e = m.error;
                r = m.status;
        }
        c->partitions = m.partitions;
        if (r == 0)
                kafka_whole_name_note(c->job.bus, c->log, c->topic, OM_SPAN(""));
        return r;
}

static int configure_run(struct change *c, struct om_error *e) {
        char names[1][KAFKA_NAME_MAX + 1];
        struct seen s;
        int r = kafka_look_names(c->job.bus, kafka_is_topic, &c->topic, &s, e);
        bool partitioned;

        if (r < 0)
                return r;
        kafka_seen_name(c->job.bus, &s);
        if (!s.n_topics)
                r = make(c, e);
        else if (c->partitions)
                r = grow(c, &s, e);
        else
                c->partitions = s.topics[0].n_parts;
        partitioned = !s.n_topics || c->partitions > s.topics[0].n_parts;
        kafka_seen_deinit(&s);
        if (r < 0)
                return r;
        /* What was just set is not asked for: not every broker knows of it yet. */
        if (c->retention_ms >= 0) {
                r = kafka_retention_set(c->job.bus, c->log, c->retention_ms, e);
                if (r < 0 && partitioned)
                        om_error_prefix(e, "\"%.*s\" has %lld partitions now, its retention is as before", OM_PRI(c->topic),
                                (long long) c->partitions);
                return r;
        }
        memcpy(names[0], c->log, sizeof c->log);
        return kafka_retentions(c->job.bus, names, 1, &c->retention_ms, e);
}

static void added_told(struct send *s, int status, const char *why) {
        struct added *a = s->ctx;

        if (status < 0 && !a->change->status) {
                a->change->status = status;
                om_error_set(
                        &a->change->error, om_kind_of_errno(status), "%s", why ? why : "Kafka: where a group starts cannot be written");
        }
}

static void rejoin_run(struct call *call) {
        const struct rd_kafka_metadata *md;

        /* The library sees that there are more partitions, and joins the consumer group anew; its leader shares them out. */
        if (call->bus->member && rd_kafka_metadata(call->bus->member, 1, NULL, &md, ADMIN_MS) == RD_KAFKA_RESP_ERR_NO_ERROR)
                rd_kafka_metadata_destroy(md);
}

static void rejoin_done(struct call *call) {
        struct change *c = CONTAINER(call, struct change, call);

        if (!job_is_cancelled(&c->job)) {
                c->op->ret_partitions = c->partitions;
                c->op->ret_retention_ms = c->retention_ms;
        }
        change_over(c, c->status, &c->error, 1);
}

static void added_free(struct send *s) {
        struct change *c = ((struct added *) s->ctx)->change;
        struct om_bus *b = c->job.bus;
        struct om_error e;

        if (--c->left)
                return;
        c->call.run = rejoin_run;
        c->call.done = rejoin_done;
        if ((!b->renewing && !b->member) || !c->n_added || kafka_call(b, WORKER_MEMBER, &c->call, &e) < 0)
                rejoin_done(&c->call);
}

static void configured(struct change *c) {
        struct added none = { .change = c };

        c->left = c->n_added + 1;
        for (size_t i = 0; i < c->n_added; i++) {
                struct added *a = &c->added[i];

                a->send = (struct send){ .bus = c->job.bus,
                        .topic = kafka_topic_get(c->job.bus, KAFKA_RETRY, c->topic, a->agent),
                        .partition = a->partition,
                        .value = strdup("0"),
                        .len = 1,
                        .key = strdup(KAFKA_START_KEY),
                        .key_len = sizeof KAFKA_START_KEY - 1,
                        .done = added_told,
                        .free = added_free,
                        .ctx = a };
                kafka_send(&a->send);
        }
        none.send.ctx = &none;
        added_free(&none.send);
}

/* -- a change
 * ------------------------------------------------------------------------------------------------------------------------------- */

static void change_run(struct call *call) {
        struct change *c = CONTAINER(call, struct change, call);

        switch (c->type) {
        case OM_CHANGE_DELETE_GROUP:
                call->status = delete_group_run(c, &call->error);
                c->n = 0;
                break;
        case OM_CHANGE_DELETE_TOPIC:
                call->status = delete_topic_run(c, &call->error);
                break;
        case OM_CHANGE_SEEK:
                call->status = seek_run(c, &call->error);
                break;
        case OM_CHANGE_CONFIGURE:
                call->status = configure_run(c, &call->error);
                break;
        default:
                call->status = letters_run(c, &call->error);
        }
}

static void change_done(struct call *call) {
        struct change *c = CONTAINER(call, struct change, call);

        /* Partitions that were added are the groups' all the same, whatever failed after them. */
        if (call->status < 0 && !c->n_added)
                change_over(c, call->status, &call->error, 0);
        else if (c->type == OM_CHANGE_DELETE_GROUP || c->type == OM_CHANGE_DELETE_TOPIC)
                deleted(c);
        else if (c->type == OM_CHANGE_SEEK)
                seek_done(c);
        else if (c->type == OM_CHANGE_CONFIGURE) {
                c->status = call->status;
                c->error = call->error;
                configured(c);
        } else
                letters_done(c);
}

int kafka_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        struct change *c;
        struct group *g;
        int r = kafka_job_admit(b, 0, e);

        if (r < 0)
                return r;
        c = calloc(1, sizeof *c);
        if (!c)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        c->op = op;
        c->type = op->type;
        c->topic = om_arena_copy(&c->arena, op->topic);
        c->agent = om_arena_copy(&c->arena, op->agent);
        c->n_ids = op->n_ids;
        if (op->n_ids && (c->ids = om_arena_alloc(&c->arena, op->n_ids * sizeof *c->ids)))
                for (size_t i = 0; i < op->n_ids; i++)
                        c->ids[i] = om_arena_copy(&c->arena, op->ids[i]);
        c->delete_dead_letters = op->delete_dead_letters;
        c->start = op->start;
        c->start_ms = op->start_ms;
        c->partitions = op->partitions;
        c->retention_ms = op->retention_ms;
        if (!kafka_name(c->retry, b->settings.prefix, KAFKA_RETRY, c->topic, c->agent) ||
                !kafka_name(c->dead, b->settings.prefix, KAFKA_DEAD, c->topic, c->agent) ||
                !kafka_name(c->log, b->settings.prefix, KAFKA_LOG, c->topic, OM_SPAN_NONE) || (op->n_ids && !c->ids)) {
                om_arena_deinit(&c->arena);
                free(c);
                return om_error_set_errno(e, ENOMEM, "Kafka");
        }
        g = c->type == OM_CHANGE_SEEK ? kafka_group_find(b, c->topic, c->agent) : NULL;
        c->n_parts = g ? g->n_parts : 0;
        c->call.run = change_run;
        c->call.done = change_done;
        kafka_job_begin(b, &c->job, &op->op, 0, change_free);
        r = kafka_call(b, WORKER_CALLS, &c->call, e);
        if (r < 0)
                kafka_job_over(&c->job, r, e);
        return 0;
}

/* -- partitions that somebody else added ---------------------------------------------------------------------------------------------- */

enum { CATCH_UP_REST_MS = 60000 };

struct catch_up {
        struct om_bus_change op; /* first */
        struct om_bus *bus;
        char topic[OM_TOPIC_MAX + 1];
};

static void caught_up(struct om_op *op, int status, const struct om_error *e) {
        struct catch_up *u = (struct catch_up *) op;

        if (status == 0)
                om_host_log(u->bus->host, OM_LOG_NOTICE, "Kafka: %s has %lld partitions now, and so have its groups", u->topic,
                        (long long) u->op.partitions);
        else if (status != -ECANCELED) { /* who may not make partitions may not in five seconds either */
                u->bus->catch_up_from_ms = om_clock_ms() + CATCH_UP_REST_MS;
                om_host_log(u->bus->host, OM_LOG_WARNING, "Kafka: %s has %lld partitions now, and its groups cannot be given as many: %s",
                        u->topic, (long long) u->op.partitions, e ? e->message : "");
        }
        free(u);
}

void kafka_catch_up(struct om_bus *b, const char *topic, int partitions) {
        struct catch_up *u = om_clock_ms() >= b->catch_up_from_ms ? calloc(1, sizeof *u) : NULL;
        struct om_error e;

        if (!u)
                return;
        u->bus = b;
        snprintf(u->topic, sizeof u->topic, "%s", topic);
        u->op = (struct om_bus_change){ .op = { .done = caught_up },
                .type = OM_CHANGE_CONFIGURE,
                .topic = om_span_of(u->topic),
                .partitions = partitions,
                .retention_ms = -1 };
        if (kafka_bus_change(b, &u->op, &e) < 0)
                free(u); /* the next sweep sees it again */
}
