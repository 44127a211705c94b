/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where partitions of a group go on: what was committed for those that are ours now, whoever had them before.
 *
 * Always true:
 *   - a partition is started once what is committed for it has been read, or, where nothing is, where its group starts;
 *   - what is committed holds for the log of which it was: where the brokers have not got its place, that is looked at, and a log that is
 *     another one is begun with. A partition whose log says so while it is read is astray: it is let go of and loaded again.
 *
 * Loop thread, but for run() of calls.
 */
#include <unistd.h>

#include "admin.h"

enum { CHECK_MS = 1000 };

struct load_item {
        uint32_t slot, term;
        bool has_start, found;
        int64_t start;
        char kname[KAFKA_NAME_MAX + 1], log[KAFKA_NAME_MAX + 1];
        int32_t p;
        bool was_deleted; /* its log, which is told */
        bool anew;        /* the log is not the one of which something is committed */
        struct kafka_state state;
};
struct load {
        struct call call; /* first */
        size_t n;
        bool recover; /* a transaction of our life before may be open */
        struct load_item items[];
};

/* Where the group starts, as who made it wrote. Waits for it: it may be writing. */
static int read_start(struct om_bus *b, struct load_item *item, struct om_error *e) {
        static const char *const properties[][2] = { { "enable.auto.commit", "false" }, { "auto.offset.reset", "earliest" },
                { "fetch.wait.max.ms", "100" }, { NULL, NULL } };
        rd_kafka_t *rk = kafka_handle(b, HANDLE_CALL, properties, e);
        rd_kafka_topic_t *t = rk ? rd_kafka_topic_new(rk, item->kname, NULL) : NULL;
        rd_kafka_message_t *m = NULL;
        int64_t by = om_clock_ms() + PROPAGATION_MS;

        if (t && rd_kafka_consume_start(t, item->p, RD_KAFKA_OFFSET_BEGINNING) == 0) {
                do {
                        if (m)
                                rd_kafka_message_destroy(m);
                        m = rd_kafka_consume(t, item->p, 500);
                } while (om_clock_ms() < by && (!m || m->err));
                rd_kafka_consume_stop(t, item->p);
        }
        if (m && !m->err && m->key_len == sizeof KAFKA_START_KEY - 1 && memcmp(m->key, KAFKA_START_KEY, m->key_len) == 0 && m->len < 20) {
                char text[24];

                snprintf(text, sizeof text, "%.*s", (int) m->len, (const char *) m->payload);
                item->start = atoll(text);
        } else
                item->start = 0; /* what the topic still holds was not finished by this group */
        item->has_start = true;
        if (m)
                rd_kafka_message_destroy(m);
        if (t)
                rd_kafka_topic_destroy(t);
        if (rk)
                rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        return rk ? 0 : -EINVAL;
}

/* The log of which that was committed had all of these. */
static int64_t known_end(const struct kafka_position *log) {
        int64_t end = log->track.n ? log->track.runs[log->track.n - 1].to : log->track.low;

        return end > log->next ? end : log->next;
}

/*
 * A log that ends before what the group has been given is another one of that name, made since, or one that has lost its end: its offsets
 * say nothing of what was finished, and the group begins with all that it holds. (One that has grown beyond that place since is not told
 * from the old one: Kafka's offsets have no more to go by.) Of a log that was cut in front the group begins with what is left.
 */
static bool check_logs(struct om_bus *b, struct load *l) {
        rd_kafka_topic_partition_list_t *ends = rd_kafka_topic_partition_list_new((int) l->n), *begins;
        struct om_error ignored; /* then they are taken for what they were, or asked about again */
        int end = 0, begin = 0;
        bool known, deleted = false;

        for (size_t i = 0; i < l->n; i++) {
                deleted |= l->items[i].was_deleted;
                if (!rd_kafka_topic_partition_list_find(ends, l->items[i].log, l->items[i].p))
                        rd_kafka_topic_partition_list_add(ends, l->items[i].log, l->items[i].p);
        }
        begins = rd_kafka_topic_partition_list_copy(ends);
        known = kafka_watermarks(b, ends, begins, CHECK_MS, &ignored) == 0;
        for (size_t i = 0; i < l->n && known; i++) {
                struct load_item *item = &l->items[i];
                struct kafka_position *log = &item->state.at[KAFKA_AT_LOG];
                const rd_kafka_topic_partition_t *to = kafka_in_list(ends, item->log, item->p, &end);
                const rd_kafka_topic_partition_t *from = kafka_in_list(begins, item->log, item->p, &begin);

                if (!to || !from || to->err || from->err || to->offset < 0 || from->offset < 0)
                        continue;
                item->anew = to->offset < (item->found ? known_end(log) : item->start) || (item->found && item->was_deleted);
                if (!item->found && (item->anew || item->start < from->offset))
                        item->start = from->offset;
                else if (!item->found)
                        continue;
                else if (item->anew) {
                        kafka_track_deinit(&log->track);
                        free(log->marks);
                        *log = (struct kafka_position){ .track.low = from->offset, .next = from->offset };
                } else if (from->offset > log->track.low) {
                        kafka_track_done(&log->track, log->track.low, from->offset);
                        if (log->next < from->offset)
                                log->next = from->offset;
                }
        }
        rd_kafka_topic_partition_list_destroy(ends);
        rd_kafka_topic_partition_list_destroy(begins);
        return known || !deleted;
}

static void load_run(struct call *c) {
        struct load *l = (struct load *) c;
        struct om_bus *b = c->bus;
        rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int) l->n);
        rd_kafka_resp_err_t err;

        for (size_t i = 0; i < l->n; i++)
                rd_kafka_topic_partition_list_add(list, l->items[i].kname, l->items[i].p);
        if (l->recover)
                kafka_txn_recover(b);
        l->recover = false;
        err = rd_kafka_committed(b->member, list, ADMIN_MS);
        if (err) {
                c->status = kafka_error(err, NULL, "reading what is committed", &c->error);
                usleep(100000);
        }
        for (int i = 0; !c->status && i < list->cnt; i++) {
                struct load_item *item = &l->items[i];
                const rd_kafka_topic_partition_t *tp = rd_kafka_topic_partition_list_find(list, item->kname, item->p);

                if (!tp || tp->err)
                        c->status = kafka_error(tp ? tp->err : RD_KAFKA_RESP_ERR__FAIL, NULL, "reading what is committed", &c->error);
                else if (tp->offset >= 0 && kafka_state_unpack((struct om_span){ tp->metadata, tp->metadata_size }, &item->state) == 0)
                        item->found = true;
                else if (!item->has_start)
                        c->status = read_start(b, item, &c->error);
        }
        rd_kafka_topic_partition_list_destroy(list);
        if (!c->status && !check_logs(b, l)) {
                c->status = -EAGAIN;
                usleep(100000);
        }
}

static struct part *part_of(struct om_bus *b, const struct load_item *item) {
        struct part *p = NULL;

        HASH_FIND(hh, b->parts_by_slot, &item->slot, sizeof item->slot, p);
        return p && p->term == item->term && (p->state == PART_LOADING || p->resuming) ? p : NULL;
}

static void load_done(struct call *c) {
        struct load *l = (struct load *) c;
        struct om_bus *b = c->bus;
        size_t left = 0;

        for (size_t i = 0; i < l->n; i++) {
                struct load_item *item = &l->items[i];
                struct part *p = b->closing ? NULL : part_of(b, item);

                if (p && c->status == 0 && p->resuming) {
                        if (item->found && !item->anew && item->state.owner == b->owner && !item->state.clean) {
                                kafka_part_resume(p);
                                kafka_state_deinit(&item->state);
                                continue;
                        }
                        kafka_part_lose(p);
                }
                if (p && c->status == 0) {
                        if (!item->found) {
                                item->state.clean = true;
                                item->state.at[KAFKA_AT_LOG].track.low = item->state.at[KAFKA_AT_LOG].next = item->start;
                        }
                        if (item->anew)
                                om_host_log(b->host, OM_LOG_WARNING,
                                        "Kafka: the topic %s [%d] was deleted and made anew, or has lost its end: agent %s begins with "
                                        "all that it holds",
                                        p->group->log, (int) p->p, p->group->agent);
                        if (kafka_part_start(p, &item->state, &c->error) < 0)
                                om_host_log(b->host, OM_LOG_ERROR, "%s", c->error.message);
                        continue;
                }
                kafka_state_deinit(&item->state);
                if (p && left++ != i) /* asked for again */
                        l->items[left - 1] = *item;
        }
        if (left) {
                for (size_t i = 0; i < left; i++) {
                        l->items[i].state = (struct kafka_state){ .owner = 0 };
                        l->items[i].found = l->items[i].anew = false;
                }
                l->n = left;
                if (kafka_call(b, WORKER_MEMBER, c, &c->error) == 0)
                        return;
        }
        free(l);
        kafka_pump_soon(b);
}

void kafka_parts_load(struct om_bus *b, struct part **parts, size_t n) {
        struct load *l = calloc(1, sizeof *l + n * sizeof l->items[0]);
        struct om_error e;

        if (!l)
                return;
        l->n = n;
        l->recover = b->recover && !b->txn;
        b->recover = false;
        l->call.run = load_run;
        l->call.done = load_done;
        for (size_t i = 0; i < n; i++) {
                struct group *g = parts[i]->group;

                if (parts[i]->state == PART_SUSPENDED)
                        parts[i]->resuming = true;
                else
                        parts[i]->state = PART_LOADING;
                l->items[i] = (struct load_item){
                        .slot = parts[i]->slot, .term = ++parts[i]->term, .p = parts[i]->p, .was_deleted = parts[i]->log_deleted
                };
                parts[i]->log_deleted = false;
                memcpy(l->items[i].kname, g->kname, sizeof g->kname);
                memcpy(l->items[i].log, g->log, sizeof g->log);
                if (parts[i]->p < g->n_starts) {
                        l->items[i].has_start = true;
                        l->items[i].start = g->starts[parts[i]->p];
                }
        }
        if (kafka_call(b, WORKER_MEMBER, &l->call, &e) < 0)
                free(l);
}

/* -- logs that are not what they were -------------------------------------------------------------------------------------- */

void kafka_parts_find_again(struct om_bus *b) {
        struct part **parts = calloc(HASH_COUNT(b->parts_by_slot) + 1, sizeof(struct part *));
        size_t n = 0;

        b->any_astray = !parts;
        for (struct part *p = b->parts_by_slot; parts && p; p = p->hh.next)
                if (p->astray && (p->state == PART_RUNNING || p->state == PART_LEAVING)) {
                        if (p->state == PART_RUNNING)
                                parts[n++] = p;
                        kafka_part_lose(p);
                }
        if (n)
                kafka_parts_load(b, parts, n);
        free(parts);
}

void kafka_parts_log_anew(struct om_bus *b, const char *log) {
        for (struct part *p = b->parts_by_slot; p; p = p->hh.next)
                if (strcmp(p->group->log, log) == 0)
                        p->astray = p->log_deleted = b->any_astray = true;
        kafka_pump_soon(b);
}
