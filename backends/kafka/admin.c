/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked of the brokers: see admin.h. */
#include <unistd.h>

#include "admin.h"

/* -- one question --------------------------------------------------------------------------------------------------------------- */

void kafka_ask_init(struct admin_ask *a, rd_kafka_t *rk, rd_kafka_admin_op_t op) {
        a->queue = rd_kafka_queue_new(rk);
        a->options = rd_kafka_AdminOptions_new(rk, op);
        a->answer = NULL;
        rd_kafka_AdminOptions_set_request_timeout(a->options, ADMIN_MS, NULL, 0);
        rd_kafka_AdminOptions_set_operation_timeout(a->options, ADMIN_MS, NULL, 0); /* where the operation has one */
}

/* Longer than the library takes to say that it took too long. */
int kafka_ask_wait(struct admin_ask *a, const char *what, struct om_error *e) {
        rd_kafka_resp_err_t err;

        a->answer = rd_kafka_queue_poll(a->queue, ADMIN_MS + 1000);
        if (!a->answer)
                return kafka_error(RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, what, e);
        err = rd_kafka_event_error(a->answer);
        return err ? kafka_error(err, rd_kafka_event_error_string(a->answer), what, e) : 0;
}

void kafka_ask_deinit(struct admin_ask *a) {
        if (a->answer)
                rd_kafka_event_destroy(a->answer);
        rd_kafka_AdminOptions_destroy(a->options);
        rd_kafka_queue_destroy(a->queue);
}

/* -- what stands in a partition ------------------------------------------------------------------------------------------------- */

int kafka_watermarks(
        struct om_bus *b, rd_kafka_topic_partition_list_t *ends, rd_kafka_topic_partition_list_t *begins, int ms, struct om_error *e) {
        rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;

        for (int i = 0; i < ends->cnt; i++) {
                ends->elems[i].offset = RD_KAFKA_OFFSET_END;
                begins->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING;
        }
        if (ends->cnt)
                err = rd_kafka_offsets_for_times(b->asker, ends, ms);
        if (!err && begins->cnt)
                err = rd_kafka_offsets_for_times(b->asker, begins, ms);
        return err ? kafka_error(err, NULL, "asking for offsets", e) : 0;
}

int kafka_bounds(struct om_bus *b, const char *kname, int64_t *ret_low, int64_t *ret_high, struct om_error *e) {
        rd_kafka_topic_partition_list_t *ends = rd_kafka_topic_partition_list_new(1), *begins;
        int r;

        rd_kafka_topic_partition_list_add(ends, kname, 0);
        begins = rd_kafka_topic_partition_list_copy(ends);
        r = kafka_watermarks(b, ends, begins, ADMIN_MS, e);
        *ret_high = ends->elems[0].err || ends->elems[0].offset < 0 ? 0 : ends->elems[0].offset;
        *ret_low = begins->elems[0].err || begins->elems[0].offset < 0 ? 0 : begins->elems[0].offset;
        rd_kafka_topic_partition_list_destroy(ends);
        rd_kafka_topic_partition_list_destroy(begins);
        return r;
}

const rd_kafka_topic_partition_t *kafka_in_list(const rd_kafka_topic_partition_list_t *list, const char *kname, int32_t p, int *at) {
        for (int i = 0; i < list->cnt; i++) {
                int k = (*at + i) % list->cnt;

                if (list->elems[k].partition == p && strcmp(list->elems[k].topic, kname) == 0) {
                        *at = k + 1;
                        return &list->elems[k];
                }
        }
        return NULL;
}

int kafka_read(struct om_bus *b, const char *kname, int32_t p, int64_t from, int64_t to, bool (*fn)(void *ctx, const rd_kafka_message_t *m),
        void *ctx, struct om_error *e) {
        static const char *const properties[][2] = { { "enable.auto.commit", "false" }, { "enable.partition.eof", "true" },
                { "auto.offset.reset", "earliest" }, { "fetch.wait.max.ms", "50" }, { "isolation.level", "read_committed" },
                { NULL, NULL } };
        rd_kafka_t *rk;
        rd_kafka_topic_t *t;
        int64_t by = om_clock_ms() + ADMIN_MS;
        bool more = from < to;
        int r = 0;

        if (!more)
                return 0;
        rk = kafka_handle(b, HANDLE_CALL, properties, e);
        if (!rk)
                return -EINVAL;
        t = rd_kafka_topic_new(rk, kname, NULL);
        if (!t || rd_kafka_consume_start(t, p, from))
                r = kafka_error(rd_kafka_last_error(), NULL, kname, e);
        while (!r && more) {
                rd_kafka_message_t *m = rd_kafka_consume(t, p, 200);

                if (m && !m->err) {
                        more = m->offset < to && fn(ctx, m) && m->offset + 1 < to;
                        by = om_clock_ms() + ADMIN_MS;
                } else if (m && m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
                        more = false;
                else if (m && m->err != RD_KAFKA_RESP_ERR__TRANSPORT && m->err != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
                        r = kafka_error(m->err, rd_kafka_message_errstr(m), kname, e);
                else if (om_clock_ms() > by)
                        r = kafka_error(RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, kname, e);
                if (m)
                        rd_kafka_message_destroy(m);
        }
        if (t) {
                rd_kafka_consume_stop(t, p);
                rd_kafka_topic_destroy(t);
        }
        rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        return r;
}

/* -- deleting ---------------------------------------------------------------------------------------------------------------------- */

int kafka_delete_topics(struct om_bus *b, const char *const *knames, size_t n, size_t *ret_deleted, struct om_error *e) {
        rd_kafka_DeleteTopic_t **topics = calloc(n + 1, sizeof(rd_kafka_DeleteTopic_t *));
        struct admin_ask ask;
        size_t count = 0;
        int r = topics ? 0 : om_error_set_errno(e, ENOMEM, "Kafka");

        *ret_deleted = 0;
        kafka_ask_init(&ask, b->asker, RD_KAFKA_ADMIN_OP_DELETETOPICS);
        for (size_t i = 0; !r && i < n; i++)
                topics[i] = rd_kafka_DeleteTopic_new(knames[i]);
        if (!r && n) {
                rd_kafka_DeleteTopics(b->asker, topics, n, ask.options, ask.queue);
                r = kafka_ask_wait(&ask, "deleting topics", e);
        }
        if (!r && n) {
                const rd_kafka_topic_result_t **t =
                        rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(ask.answer), &count);

                for (size_t i = 0; i < count; i++) {
                        rd_kafka_resp_err_t err = rd_kafka_topic_result_error(t[i]);

                        *ret_deleted += !err;
                        if (err && err != RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
                                r = kafka_error(err, rd_kafka_topic_result_error_string(t[i]), rd_kafka_topic_result_name(t[i]), e);
                }
        }
        if (topics)
                rd_kafka_DeleteTopic_destroy_array(topics, n);
        free(topics);
        kafka_ask_deinit(&ask);
        return r;
}

int kafka_delete_records(struct om_bus *b, rd_kafka_topic_partition_list_t *before, struct om_error *e) {
        rd_kafka_DeleteRecords_t *del = rd_kafka_DeleteRecords_new(before);
        const rd_kafka_topic_partition_list_t *done;
        char what[KAFKA_NAME_MAX + 80];
        struct admin_ask ask;
        int r;

        kafka_ask_init(&ask, b->asker, RD_KAFKA_ADMIN_OP_DELETERECORDS);
        rd_kafka_DeleteRecords(b->asker, &del, 1, ask.options, ask.queue);
        r = kafka_ask_wait(&ask, "deleting what is finished", e);
        done = r == 0 ? rd_kafka_DeleteRecords_result_offsets(rd_kafka_event_DeleteRecords_result(ask.answer)) : NULL;
        for (int i = 0; done && i < done->cnt; i++) {
                /* The first error is told, but for a missing right, which lasts. */
                if (!done->elems[i].err || (r < 0 && done->elems[i].err != RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED))
                        continue;
                snprintf(what, sizeof what, "deleting what is finished of the topic %s (takes the right Delete)", done->elems[i].topic);
                r = kafka_error(done->elems[i].err, NULL, what, e);
        }
        kafka_ask_deinit(&ask);
        rd_kafka_DeleteRecords_destroy(del);
        return r;
}

/* -- partitions, offsets ---------------------------------------------------------------------------------------------------------- */

int kafka_partitions_of(struct om_bus *b, const char *kname, int least, struct om_error *e) {
        rd_kafka_topic_t *t = rd_kafka_topic_new(b->asker, kname, NULL);
        int64_t by = om_clock_ms() + PROPAGATION_MS;
        const struct rd_kafka_metadata *md;
        rd_kafka_resp_err_t err;
        int n = 0;

        if (!t)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        for (;;) {
                err = rd_kafka_metadata(b->asker, 0, t, &md, ADMIN_MS);
                if (!err) {
                        err = md->topic_cnt ? md->topics[0].err : RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
                        n = err ? 0 : md->topics[0].partition_cnt;
                        rd_kafka_metadata_destroy(md);
                }
                if (n >= least || om_clock_ms() >= by)
                        break;
                usleep(10000);
        }
        rd_kafka_topic_destroy(t);
        if (n >= least)
                return n;
        return err ? kafka_error(err, NULL, kname, e) : om_error_set(e, OM_UNAVAILABLE, "Kafka: %s has not got its partitions", kname);
}

int kafka_grow_topic(struct om_bus *b, const char *kname, int n, struct om_error *e) {
        char why[200], what[KAFKA_NAME_MAX + 80];
        rd_kafka_NewPartitions_t *more = rd_kafka_NewPartitions_new(kname, (size_t) n, why, sizeof why);
        const rd_kafka_topic_result_t **t;
        struct admin_ask ask;
        size_t count;
        int r;

        if (!more)
                return om_error_set(e, OM_INVALID, "Kafka: %s", why);
        snprintf(what, sizeof what, "adding partitions to the topic %s (takes the right Alter)", kname);
        kafka_ask_init(&ask, b->asker, RD_KAFKA_ADMIN_OP_CREATEPARTITIONS);
        rd_kafka_CreatePartitions(b->asker, &more, 1, ask.options, ask.queue);
        r = kafka_ask_wait(&ask, what, e);
        t = r == 0 ? rd_kafka_CreatePartitions_result_topics(rd_kafka_event_CreatePartitions_result(ask.answer), &count) : NULL;
        if (t && count)
                r = kafka_error(rd_kafka_topic_result_error(t[0]), rd_kafka_topic_result_error_string(t[0]), what, e);
        kafka_ask_deinit(&ask);
        rd_kafka_NewPartitions_destroy(more);
        return r;
}

/* What is said of a topic of which not all have heard yet. */
static bool is_new(rd_kafka_resp_err_t err) {
        return err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION || err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
                err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART || err == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
                err == RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
}

int kafka_find_offsets(struct om_bus *b, const char *log, int n, enum om_start start, int64_t start_ms, int64_t *ret, struct om_error *e) {
        rd_kafka_topic_partition_list_t *times = NULL;
        int64_t by = om_clock_ms() + PROPAGATION_MS;
        rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;

        if (start == OM_START_TIME) {
                times = rd_kafka_topic_partition_list_new(n);
                for (int i = 0; i < n; i++)
                        rd_kafka_topic_partition_list_add(times, log, i)->offset = start_ms;
                err = rd_kafka_offsets_for_times(b->asker, times, ADMIN_MS);
        }
        for (int i = 0; i < n && !err; i++) {
                int64_t low, high;

                while ((err = rd_kafka_query_watermark_offsets(b->asker, log, i, &low, &high, ADMIN_MS)) && is_new(err) &&
                        om_clock_ms() < by)
                        usleep(10000);
                ret[i] = start == OM_START_FIRST ? low : high;
                if (times) {
                        const rd_kafka_topic_partition_t *tp = rd_kafka_topic_partition_list_find(times, log, i);

                        if (tp && !tp->err && tp->offset >= 0)
                                ret[i] = tp->offset;
                }
        }
        if (times)
                rd_kafka_topic_partition_list_destroy(times);
        return err ? kafka_error(err, NULL, "asking for offsets", e) : 0;
}
