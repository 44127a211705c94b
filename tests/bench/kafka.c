/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kafka: the daemon on a Kafka bus, beside librdkafka alone, both on one broker and with the same durability: idempotent, acks=all.
 *
 * What librdkafka does alone is what our bus must do for a task at the least: produce the record and wait for the broker's word, as many
 * under way as our batches have tasks; consume it in a group; commit, asynchronously, after each batch that came.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_RDKAFKA
#include <librdkafka/rdkafka.h>

static char folder[64], brokers[200];
static struct om_test_server *server;

/* -- librdkafka alone -------------------------------------------------------------------------------------------------------- */

static void delivered_one(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
        if (m->err)
                die("librdkafka", rd_kafka_err2str(m->err));
        ++*(long *) opaque;
}

static rd_kafka_t *handle(rd_kafka_type_t type, const char *const (*properties)[2], long *delivered) {
        rd_kafka_conf_t *c = rd_kafka_conf_new();
        char why[200];
        rd_kafka_conf_set(c, "bootstrap.servers", brokers, NULL, 0);
        for (; (*properties)[0]; properties++)
                if (rd_kafka_conf_set(c, (*properties)[0], (*properties)[1], why, sizeof(why)) != RD_KAFKA_CONF_OK)
                        die("librdkafka", why);
        if (type == RD_KAFKA_PRODUCER)
                rd_kafka_conf_set_dr_msg_cb(c, delivered_one);
        rd_kafka_conf_set_opaque(c, delivered);
        rd_kafka_t *rk = rd_kafka_new(type, c, why, sizeof(why));
        if (!rk)
                die("librdkafka", why);
        return rk;
}

static rd_kafka_t *producer(long *delivered) {
        static const char *const properties[][2] = { { "enable.idempotence", "true" }, { "acks", "all" }, { "linger.ms", "0" },
                { NULL, NULL } };
        return handle(RD_KAFKA_PRODUCER, properties, delivered);
}

static void make_topic(rd_kafka_t *rk, const char *name) {
        rd_kafka_NewTopic_t *t = rd_kafka_NewTopic_new(name, 1, 1, NULL, 0);
        rd_kafka_queue_t *q = rd_kafka_queue_new(rk);
        rd_kafka_CreateTopics(rk, &t, 1, NULL, q);
        rd_kafka_event_t *ev = rd_kafka_queue_poll(q, 10000);
        if (!ev || rd_kafka_event_error(ev))
                die("librdkafka", "the topic cannot be made");
        rd_kafka_event_destroy(ev);
        rd_kafka_queue_destroy(q);
        rd_kafka_NewTopic_destroy(t);
}

static void publish_native(rd_kafka_t *rk, const char *topic, long *delivered, long total, int in_flight) {
        char record[RECORD_BYTES];
        long sent = 0, before = *delivered;
        memset(record, 'x', sizeof(record));
        while (*delivered - before < total) {
                while (sent < total && sent - (*delivered - before) < in_flight) {
                        if (rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_VALUE(record, sizeof(record)),
                                    RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END))
                                die("librdkafka", "produce failed");
                        sent++;
                }
                rd_kafka_poll(rk, 1000);
        }
}

static rd_kafka_t *consumer(const char *topic) {
        static const char *const properties[][2] = { { "group.id", "native" }, { "enable.auto.commit", "false" },
                { "auto.offset.reset", "earliest" }, { "fetch.wait.max.ms", "1000" }, { NULL, NULL } };
        rd_kafka_t *rk = handle(RD_KAFKA_CONSUMER, properties, NULL);
        rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
        rd_kafka_poll_set_consumer(rk);
        rd_kafka_topic_partition_list_add(list, topic, RD_KAFKA_PARTITION_UA);
        if (rd_kafka_subscribe(rk, list))
                die("librdkafka", "subscribe failed");
        rd_kafka_topic_partition_list_destroy(list);
        return rk;
}

static void read_native(rd_kafka_t *rk, long total) {
        rd_kafka_queue_t *q = rd_kafka_queue_get_consumer(rk);
        rd_kafka_message_t *m[1000];
        for (long done = 0; done < total;) {
                ssize_t n = rd_kafka_consume_batch_queue(q, done ? 100 : 1000, m, 1), more = 0;
                if (n > 0)
                        more = rd_kafka_consume_batch_queue(q, 0, m + 1, 999);
                n += more > 0 ? more : 0;
                for (ssize_t i = 0; i < n; i++) {
                        done += !m[i]->err;
                        if (i == n - 1 && !m[i]->err)
                                rd_kafka_commit_message(rk, m[i], 1);
                        rd_kafka_message_destroy(m[i]);
                }
        }
        rd_kafka_queue_destroy(q);
}

struct reader {
        rd_kafka_t *rk;
        long total;
};
static void *reading(void *arg) {
        struct reader *r = arg;
        read_native(r->rk, r->total);
        return NULL;
}

static void consumer_close(rd_kafka_t *rk) {
        rd_kafka_consumer_close(rk);
        rd_kafka_destroy(rk);
}

/* A first message goes the whole way before the clock starts: joining a group is not what is measured. */
static rd_kafka_t *warm_consumer(rd_kafka_t *p, const char *topic, long *delivered) {
        rd_kafka_t *c;
        make_topic(p, topic);
        c = consumer(topic);
        publish_native(p, topic, delivered, 1, 1);
        read_native(c, 1);
        return c;
}

static double whole_way_native(long total) {
        long delivered = 0;
        rd_kafka_t *p = producer(&delivered), *c = warm_consumer(p, "native-way", &delivered);
        struct reader r = { c, total };
        pthread_t thread;
        double start = now_s();
        pthread_create(&thread, NULL, reading, &r);
        publish_native(p, "native-way", &delivered, total, BATCH * IN_FLIGHT);
        pthread_join(thread, NULL);
        double seconds = now_s() - start;
        consumer_close(c);
        rd_kafka_destroy(p);
        return seconds;
}

static void latency_native(long total, double *us) {
        long delivered = 0;
        rd_kafka_t *p = producer(&delivered), *c = warm_consumer(p, "native-latency", &delivered);
        for (long i = 0; i < total; i++) {
                double start = now_s();
                publish_native(p, "native-latency", &delivered, 1, 1);
                read_native(c, 1);
                us[i] = (now_s() - start) * 1e6;
        }
        consumer_close(c);
        rd_kafka_destroy(p);
}

static double publish_alone(long total) {
        long delivered = 0;
        rd_kafka_t *p = producer(&delivered);
        make_topic(p, "native-publish");
        publish_native(p, "native-publish", &delivered, 1, 1);
        double start = now_s();
        publish_native(p, "native-publish", &delivered, total, BATCH * IN_FLIGHT);
        double seconds = now_s() - start;
        rd_kafka_destroy(p);
        return seconds;
}

/* -- beside ours -------------------------------------------------------------------------------------------------------------- */

void case_kafka(void) {
        long total = scaled(100000), n = scaled(2000);
        double *us = calloc((size_t) n, sizeof(double));
        char url[200];
        struct daemon d;
        folder_new(folder);
        server = om_test_server_start("kafka", folder);
        snprintf(url, sizeof(url), "%.*s", (int) strcspn(om_test_server_value(server, "bus_url"), "?"),
                om_test_server_value(server, "bus_url"));
        snprintf(brokers, sizeof(brokers), "%s", url + strlen("kafka://"));
        figure("kafka_native_publish", (double) total / publish_alone(total));
        daemon_start(&d, url);
        struct load first = { .daemon = &d, .topic = "publish", .total = BATCH, .batch = BATCH, .in_flight = 1 };
        publish_load(&first); /* makes the topic */
        struct load load = { .daemon = &d, .topic = "publish", .total = total, .batch = BATCH, .in_flight = IN_FLIGHT };
        publish_load(&load);
        figure("kafka_publish", (double) load.done / load.seconds);
        figure("kafka_native_whole_way", (double) total / whole_way_native(total));
        figure("kafka_whole_way", (double) total / whole_way_seconds(&d, "whole", 1, false, total));
        latency_native(n, us);
        figure_quantiles("kafka_native_latency", us, n);
        latency_load(&d, n, us);
        figure_quantiles("kafka_latency", us, n);
        free(us);
        daemon_stop(&d);
        om_test_server_stop(server);
        folder_remove(folder);
}
#else
void case_kafka(void) { figure_missing("kafka_native_publish", "built without librdkafka; packaging/install-deps.sh bench installs it"); }
#endif
