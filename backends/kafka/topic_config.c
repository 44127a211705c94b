/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long what is finished of a topic is kept, where that is the topic's own and not the URL's (retention_ms).
 *
 * It stands in the topic's configuration as delete.retention.ms, where every tool of Kafka shows it: what that is for, compaction, our
 * topics do not have (cleanup.policy=delete). retention.ms would delete what nobody has finished.
 *
 * Always true: a topic's other configuration stays as it is. AlterConfigs replaces all of it, so what was set before is sent along; between
 * the two requests somebody else's change is lost (IncrementalAlterConfigs is not in every librdkafka that we run with). Worker.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "admin.h"

#define OURS "delete.retention.ms"

/* The configurations of these topics: an answer, in *ask until that is ended. */
static int describe(struct om_bus *b, char (*knames)[KAFKA_NAME_MAX + 1], size_t n, struct admin_ask *ask,
        const rd_kafka_ConfigResource_t ***ret_topics, size_t *ret_n, struct om_error *e) {
        rd_kafka_ConfigResource_t **topics = calloc(n + 1, sizeof(rd_kafka_ConfigResource_t *));
        int r;

        if (!topics)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        for (size_t i = 0; i < n; i++)
                topics[i] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, knames[i]);
        kafka_ask_init(ask, b->asker, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
        rd_kafka_DescribeConfigs(b->asker, topics, n, ask->options, ask->queue);
        r = kafka_ask_wait(ask, "asking how a topic is configured", e);
        rd_kafka_ConfigResource_destroy_array(topics, n);
        free(topics);
        if (r < 0)
                kafka_ask_deinit(ask);
        else
                *ret_topics = rd_kafka_DescribeConfigs_result_resources(rd_kafka_event_DescribeConfigs_result(ask->answer), ret_n);
        return r;
}

static bool is_set(const rd_kafka_ConfigEntry_t *entry) {
        return rd_kafka_ConfigEntry_source(entry) == RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG && rd_kafka_ConfigEntry_value(entry);
}

static int64_t own_retention(const rd_kafka_ConfigResource_t *topic) {
        size_t n = 0;
        const rd_kafka_ConfigEntry_t **entries = rd_kafka_ConfigResource_configs(topic, &n);

        for (size_t i = 0; i < n; i++)
                if (strcmp(rd_kafka_ConfigEntry_name(entries[i]), OURS) == 0 && is_set(entries[i]))
                        return strtoll(rd_kafka_ConfigEntry_value(entries[i]), NULL, 10);
        return -1;
}

int kafka_retentions(struct om_bus *b, char (*knames)[KAFKA_NAME_MAX + 1], size_t n, int64_t *ret, struct om_error *e) {
        const rd_kafka_ConfigResource_t **topics;
        struct admin_ask ask;
        size_t n_topics;
        int r;

        for (size_t i = 0; i < n; i++)
                ret[i] = b->settings.retention_ms;
        if (!n)
                return 0;
        r = describe(b, knames, n, &ask, &topics, &n_topics, e);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n_topics; i++)
                for (size_t j = 0; j < n; j++) { /* the answers come in the order of the questions */
                        size_t k = (i + j) % n;
                        int64_t own;

                        if (strcmp(rd_kafka_ConfigResource_name(topics[i]), knames[k]) != 0)
                                continue;
                        own = rd_kafka_ConfigResource_error(topics[i]) ? -1 : own_retention(topics[i]);
                        if (own >= 0)
                                ret[k] = own;
                        break;
                }
        kafka_ask_deinit(&ask);
        return 0;
}

static int alter(struct om_bus *b, rd_kafka_ConfigResource_t *topic, struct om_error *e) {
        char what[KAFKA_NAME_MAX + 80];
        const rd_kafka_ConfigResource_t **done;
        struct admin_ask ask;
        size_t n = 0;
        int r;

        snprintf(what, sizeof what, "configuring the topic %s (takes the right AlterConfigs)", rd_kafka_ConfigResource_name(topic));
        kafka_ask_init(&ask, b->asker, RD_KAFKA_ADMIN_OP_ALTERCONFIGS);
        rd_kafka_AlterConfigs(b->asker, &topic, 1, ask.options, ask.queue);
        r = kafka_ask_wait(&ask, what, e);
        done = r == 0 ? rd_kafka_AlterConfigs_result_resources(rd_kafka_event_AlterConfigs_result(ask.answer), &n) : NULL;
        if (n)
                r = kafka_error(rd_kafka_ConfigResource_error(done[0]), rd_kafka_ConfigResource_error_string(done[0]), what, e);
        kafka_ask_deinit(&ask);
        return r;
}

int kafka_retention_set(struct om_bus *b, const char *kname, int64_t ms, struct om_error *e) {
        char names[1][KAFKA_NAME_MAX + 1], text[24], what[KAFKA_NAME_MAX + 80];
        const rd_kafka_ConfigResource_t **topics;
        rd_kafka_ConfigResource_t *topic;
        const rd_kafka_ConfigEntry_t **entries;
        struct admin_ask ask;
        int64_t by = om_clock_ms() + ADMIN_MS;
        size_t n_topics, n = 0;
        int r;

        snprintf(names[0], sizeof names[0], "%s", kname);
        /* One that was just made is not known to every broker yet. */
        while ((r = describe(b, names, 1, &ask, &topics, &n_topics, e)) == 0 && n_topics &&
                rd_kafka_ConfigResource_error(topics[0]) == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART && om_clock_ms() < by) {
                kafka_ask_deinit(&ask);
                usleep(10000);
        }
        if (r < 0)
                return r;
        if (!n_topics || rd_kafka_ConfigResource_error(topics[0])) {
                snprintf(what, sizeof what, "asking how the topic %s is configured (takes the right DescribeConfigs)", kname);
                r = kafka_error(n_topics ? rd_kafka_ConfigResource_error(topics[0]) : RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
                        n_topics ? rd_kafka_ConfigResource_error_string(topics[0]) : NULL, what, e);
                kafka_ask_deinit(&ask);
                return r;
        }
        topic = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, kname);
        entries = rd_kafka_ConfigResource_configs(topics[0], &n);
        for (size_t i = 0; i < n; i++)
                if (is_set(entries[i]) && strcmp(rd_kafka_ConfigEntry_name(entries[i]), OURS) != 0)
                        rd_kafka_ConfigResource_set_config(
                                topic, rd_kafka_ConfigEntry_name(entries[i]), rd_kafka_ConfigEntry_value(entries[i]));
        snprintf(text, sizeof text, "%lld", (long long) ms);
        rd_kafka_ConfigResource_set_config(topic, OURS, text);
        kafka_ask_deinit(&ask);
        r = alter(b, topic, e);
        rd_kafka_ConfigResource_destroy(topic);
        return r;
}
