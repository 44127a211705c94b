/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verdicts. Each ends with an ack of the message on the channel that it came on; before that what it becomes is in another queue,
 * confirmed:
 *
 *   ack       ack
 *   retry     copy with the attempts and the due time ──▶ queue of the highest level that is not longer, or the front queue ──▶ ack
 *   release   copy with the attempts less this one ──▶ front queue ──▶ ack
 *   dead      letter ──▶ the group's dead letters ──▶ ack
 *
 * So a message is never in neither place; it may be in both when we, or the broker, die in between. A broker does not confirm acks: a call
 * that is answered in order follows those of one turn on the same channel, and its answer says that they have been taken. An ack that a
 * broker loses by dying right after that comes as one more delivery.
 *
 * (A nack with requeue would count: quorum queues count what is given back as they count what was lost.)
 *
 * Always true: a delivery whose copy is where it belongs is `moved`: whatever becomes of the operation, no second copy is made.
 *
 * Loop thread.
 */
#include "bus_state.h"

struct settle;
struct item {
        struct publication pub; /* first */
        struct wait wait;
        struct settle *job;
        struct delivery *d;
        enum om_verdict verdict;
        enum queue_kind kind;
        unsigned level;
        int64_t due_ms;
        uint32_t attempts;
        struct om_buf letter;
        char name[RMQ_SHORT_MAX + 1]; /* message-id of the copy */
        int status;
        const char *why;
        struct item *next; /* acked in the same turn */
};
struct settle {
        struct om_job job; /* first */
        struct om_bus *bus;
        struct om_bus_settle *op; /* NULL: ours alone */
        size_t n, left;
        struct item items[];
};
struct sync { /* acks of one turn on one channel */
        struct item *items;
};

/* -- the end of one ------------------------------------------------------------------------------------------------- */

static bool is_final(const struct settle *m, const struct item *it) {
        return !m->op || (m->job.status == 0 && (it->status == 0 || it->status == -ESTALE));
}

static void settle_free(struct om_job *j) {
        struct settle *m = (struct settle *) j;

        for (size_t i = 0; i < m->n; i++) {
                struct item *it = &m->items[i];
                struct delivery *d = it->d;

                om_buf_deinit(&it->letter);
                rmq_publication_deinit(&it->pub);
                if (d->sub && d->given)
                        d->sub->n_settling--;
                if (--d->settling == 0)
                        rmq_consumer_settling(d, -1);
                if (d->over || is_final(m, it))
                        rmq_delivery_free(d);
        }
        if (!m->op && --m->bus->returning == 0)
                rmq_close_on(m->bus);
        free(m);
}

static void one_less(struct settle *m) {
        bool cancelled = m->op && om_job_is_cancelled(&m->job);

        if (--m->left)
                return;
        if (m->op && !cancelled)
                for (size_t i = 0; i < m->n; i++) {
                        m->op->items[i].outcome.status = m->items[i].status;
                        m->op->items[i].outcome.why = m->items[i].why;
                }
        om_job_over(&m->job, cancelled ? -ECANCELED : 0, NULL);
}

static void item_done(struct item *it, int status, const char *why) {
        it->status = status;
        it->why = why;
        one_less(it->job);
}

static void is_stale(struct item *it) {
        if (it->d->delivery.gone)
                item_done(it, -ESTALE, NULL);
        else
                item_done(it, -EAGAIN, "RabbitMQ: the connection that the task came on is gone; it comes again");
}

/* -- acks ------------------------------------------------------------------------------------------------------------ */

static void synced(void *ctx, const struct rmq_answer *answer) {
        struct sync *sync = ctx;
        struct item *it = sync->items, *next;

        free(sync);
        for (; it; it = next) {
                next = it->next;
                if (answer->status == 0) {
                        it->d->acked = true;
                        it->d->group->finished += it->verdict == OM_ACK || it->verdict == OM_DEAD;
                        item_done(it, 0, NULL);
                } else
                        is_stale(it);
        }
}

static void ack(struct item *it) {
        struct delivery *d = it->d;
        amqp_basic_ack_t m = { .delivery_tag = d->tag };

        if (d->acked)
                item_done(it, 0, NULL);
        else if (rmq_delivery_is_stale(d) || rmq_cast(d->lane->channel, AMQP_BASIC_ACK_METHOD, &m) < 0)
                is_stale(it);
        else {
                LL_PREPEND(d->lane->acked, it);
                rmq_turn(d->bus);
        }
}

/* Those whose channel was closed after the ack went out were not taken. */
static struct item *take_acked(struct lane *lane) {
        struct item *list = lane->acked, *good = NULL, *it, *next;

        lane->acked = NULL;
        for (it = list; it; it = next) {
                next = it->next;
                if (rmq_delivery_is_stale(it->d))
                        is_stale(it);
                else
                        LL_PREPEND(good, it);
        }
        return good;
}

/* At the end of the turn. */
void rmq_sync_acks(struct om_bus *b) {
        struct lane *lane;

        LL_FOREACH (b->lanes, lane) {
                amqp_basic_qos_t qos = { .prefetch_count = 1 }; /* of consumers to come, which say their own */
                struct item *it = take_acked(lane), *next;
                struct sync *sync;

                if (!it)
                        continue;
                sync = malloc(sizeof *sync);
                if (sync) {
                        sync->items = it;
                        if (rmq_call(lane->channel, AMQP_BASIC_QOS_METHOD, &qos, synced, sync) == 0)
                                continue;
                }
                free(sync);
                for (; it; it = next) {
                        next = it->next;
                        is_stale(it);
                }
        }
}

/* -- copies ---------------------------------------------------------------------------------------------------------- */

static void copied(struct publication *p, int status, const char *why) {
        struct item *it = (struct item *) p;

        if (status < 0) {
                item_done(it, status == -ENOENT ? -EAGAIN : status, why);
                return;
        }
        it->d->moved = true;
        ack(it);
}

static void copy(struct wait *w, int status, const struct om_error *e) {
        struct item *it = (void *) ((char *) w - offsetof(struct item, wait));
        struct delivery *d = it->d;
        struct om_bus *b = d->bus;
        char queue[QUEUE_NAME_MAX];
        struct rmq_props props;
        int r;

        if (status < 0) {
                if (status != -EAGAIN)
                        om_host_log(b->host, OM_LOG_WARNING, "%s", e->message);
                item_done(it, status,
                        status == -EAGAIN ? "RabbitMQ: not connected"
                                          : "RabbitMQ: a queue of the group cannot be made; the log of the daemon says why");
                return;
        }
        rmq_queue_name(queue, d->group->topic, d->group, it->kind, it->level);
        rmq_props_of_move(&props, om_span_of(it->name), it->attempts, it->due_ms, it->verdict == OM_DEAD ? 0 : d->meta.expires_ms);
        if (d->meta.time_ms)
                rmq_table_int(&props.table, "omni-time", d->meta.time_ms);
        r = rmq_publication_init(&it->pub, b, OM_SPAN(""), om_span_of(queue), it->name, &props,
                it->verdict == OM_DEAD ? om_buf_span(&it->letter) : d->delivery.record);
        rmq_props_deinit(&props);
        it->pub.done = copied;
        if (r == 0)
                rmq_publication_send(&it->pub);
        else
                item_done(it, r == -E2BIG ? -ENOBUFS : r,
                        r == -E2BIG ? "RabbitMQ: larger than the broker takes (max_message_size)" : "out of memory");
}

static void start(struct item *it) {
        struct delivery *d = it->d;
        int64_t now = om_now_ms();

        if (it->status < 0)
                item_done(it, it->status, "out of memory");
        else if (d->delivery.gone || (rmq_delivery_is_stale(d) && !d->acked))
                is_stale(it);
        else if (it->verdict == OM_ACK || d->moved)
                ack(it);
        else {
                it->kind = it->verdict == OM_DEAD ? QUEUE_DEAD : QUEUE_FRONT;
                if (it->due_ms > now && (it->level = rmq_level(it->due_ms - now)))
                        it->kind = QUEUE_WAIT;
                rmq_queue_need(d->group->topic, d->group, it->kind, it->level, &it->wait);
        }
}

/* -- all of them ------------------------------------------------------------------------------------------------------ */

static struct settle *settle_new(struct om_bus *b, size_t n) {
        struct settle *m = calloc(1, sizeof *m + n * sizeof m->items[0]);

        if (m) {
                m->bus = b;
                m->n = n;
                m->left = n + 1;
        }
        return m;
}

static void item_init(struct settle *m, size_t i, struct delivery *d, enum om_verdict verdict) {
        struct item *it = &m->items[i];

        *it = (struct item){ .job = m, .d = d, .verdict = verdict, .wait.fn = copy, .attempts = d->delivery.attempt };
        snprintf(it->name, sizeof it->name, "%.*s", OM_PRI(d->id));
        if (d->settling++ == 0)
                rmq_consumer_settling(d, 1);
        if (d->sub && d->given)
                d->sub->n_settling++;
}

static void run(struct settle *m) {
        for (size_t i = 0, n = m->n; i < n; i++)
                start(&m->items[i]);
        one_less(m);
}

int rmq_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        size_t bytes = 0;
        struct settle *m;
        int r;

        for (size_t i = 0; i < op->n; i++)
                bytes += op->items[i].verdict == OM_ACK ? 64 : op->items[i].delivery->record.len + 512;
        r = rmq_admit(b, bytes, e);
        if (r < 0)
                return r;
        m = settle_new(b, op->n);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "RabbitMQ");
        m->op = op;
        om_job_begin(&b->jobs, &m->job, &op->op, bytes, settle_free);
        for (size_t i = 0; i < op->n; i++) {
                const struct om_settlement *s = &op->items[i];
                struct item *it = &m->items[i];

                item_init(m, i, (struct delivery *) s->delivery, s->verdict);
                if (s->verdict == OM_RETRY)
                        it->due_ms = s->due_ms;
                if (s->verdict == OM_RELEASE)
                        it->attempts--;
                if (s->verdict == OM_DEAD) {
                        om_letter_write(&it->letter, s->letter, s->delivery->record);
                        om_task_id_new(it->name);
                        it->status = om_buf_ok(&it->letter) ? 0 : -ENOMEM;
                }
        }
        run(m);
        return 0;
}

void rmq_delivery_return(struct delivery *d, enum give_up how) {
        struct settle *m = settle_new(d->bus, 1);

        d->sub = NULL;
        d->delivery.sub = NULL;
        if (!m) { /* the broker has it until the connection ends */
                rmq_delivery_free(d);
                return;
        }
        d->bus->returning++;
        om_job_begin(&d->bus->jobs, &m->job, NULL, 0, settle_free);
        item_init(m, 0, d, how == GIVE_UP ? OM_ACK : OM_RELEASE);
        m->items[0].attempts--;
        if (how == GIVE_LATER)
                m->items[0].due_ms = d->meta.due_ms;
        run(m);
}
