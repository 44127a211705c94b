/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RabbitMQ: the daemon on a RabbitMQ bus, beside librabbitmq alone, both on one broker and with the same durability: a quorum queue,
 * persistent messages, publisher confirms.
 *
 * What librabbitmq does alone is what our bus must do for a task at the least: publish to a queue and wait for the confirm, as many under
 * way as our batches have tasks; consume it on a connection of its own with as large a prefetch as our agent has; acknowledge what came at
 * once by one `multiple`. Our bus also keeps a log of each topic, a stream: `_without_log_` are measured with log=false, which is what is
 * compared.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_RABBITMQ
#include <amqp.h>
#include <amqp_tcp_socket.h>

enum { CHANNEL = 1, PREFETCH = 1000, CONFIRMS = 1 << 13 };

static char folder[64], host[100];
static int port;
static struct om_test_server *server;

/* -- librabbitmq alone ------------------------------------------------------------------------------------------------------- */

struct native {
        amqp_connection_state_t conn;
        amqp_bytes_t queue, exchange; /* the default one, which goes by the queue's name, or `as_ours` */
        bool as_ours;                 /* by a topic exchange, with the properties that a task has */
        uint64_t sent, confirmed;     /* delivery tags: all up to `confirmed` are */
        bool is[CONFIRMS];            /* that of tag % CONFIRMS */
};

static void must(int status, const char *what) {
        if (status < 0)
                die(what, amqp_error_string2(status));
}

static void must_reply(amqp_connection_state_t conn, const char *what) {
        amqp_rpc_reply_t r = amqp_get_rpc_reply(conn);
        if (r.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
                die(what, amqp_error_string2(r.library_error));
        if (r.reply_type != AMQP_RESPONSE_NORMAL)
                die(what, "the broker refuses it");
}

static void native_open(struct native *n, const char *queue, bool confirms) {
        static amqp_table_entry_t type = { .value = { .kind = AMQP_FIELD_KIND_UTF8 } };
        amqp_table_t arguments = { .num_entries = 1, .entries = &type };
        *n = (struct native){ .conn = amqp_new_connection(), .queue = amqp_cstring_bytes(queue) };
        must(amqp_socket_open(amqp_tcp_socket_new(n->conn), host, port), "librabbitmq: connect");
        if (amqp_login(n->conn, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest").reply_type != AMQP_RESPONSE_NORMAL)
                die("librabbitmq", "login failed");
        amqp_channel_open(n->conn, CHANNEL);
        must_reply(n->conn, "librabbitmq: channel");
        type.key = amqp_cstring_bytes("x-queue-type");
        type.value.value.bytes = amqp_cstring_bytes("quorum");
        amqp_queue_declare(n->conn, CHANNEL, n->queue, 0, 1, 0, 0, arguments);
        must_reply(n->conn, "librabbitmq: queue");
        if (confirms)
                amqp_confirm_select(n->conn, CHANNEL);
        else
                amqp_basic_qos(n->conn, CHANNEL, 0, PREFETCH, 0);
        must_reply(n->conn, "librabbitmq: channel");
        if (!confirms) {
                amqp_basic_consume(n->conn, CHANNEL, n->queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
                must_reply(n->conn, "librabbitmq: consume");
        }
}

static void native_close(struct native *n) {
        amqp_connection_close(n->conn, AMQP_REPLY_SUCCESS);
        amqp_destroy_connection(n->conn);
}

static void one_confirm(struct native *n) {
        amqp_frame_t frame;
        amqp_basic_ack_t *ack;
        amqp_maybe_release_buffers(n->conn);
        must(amqp_simple_wait_frame(n->conn, &frame), "librabbitmq: confirms");
        if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
                die("librabbitmq", "something else than a confirm came");
        ack = frame.payload.method.decoded;
        for (uint64_t tag = ack->multiple ? n->confirmed + 1 : ack->delivery_tag; tag <= ack->delivery_tag; tag++)
                n->is[tag % CONFIRMS] = true;
        while (n->is[(n->confirmed + 1) % CONFIRMS])
                n->is[++n->confirmed % CONFIRMS] = false;
}

static void as_ours(struct native *n) {
        n->as_ours = true;
        n->exchange = amqp_cstring_bytes("native-exchange");
        amqp_exchange_declare(n->conn, CHANNEL, n->exchange, amqp_cstring_bytes("topic"), 0, 1, 0, 0, amqp_empty_table);
        must_reply(n->conn, "librabbitmq: exchange");
        amqp_queue_bind(n->conn, CHANNEL, n->queue, n->exchange, n->queue, amqp_empty_table);
        must_reply(n->conn, "librabbitmq: bind");
}

static void publish_native(struct native *n, long total, int in_flight) {
        static char record[RECORD_BYTES];
        amqp_table_entry_t topic = { .key = amqp_cstring_bytes("omni-topic"),
                .value = { .kind = AMQP_FIELD_KIND_UTF8, .value = { .bytes = n->queue } } };
        amqp_basic_properties_t p = { ._flags = AMQP_BASIC_DELIVERY_MODE_FLAG,
                .delivery_mode = AMQP_DELIVERY_PERSISTENT,
                .content_type = amqp_cstring_bytes("application/json"),
                .message_id = amqp_cstring_bytes("7d0f1e9a-5b7c-4c4e-9d53-3f1d2b8a9c10"),
                .timestamp = 1800000000,
                .headers = { .num_entries = 1, .entries = &topic } };
        if (n->as_ours)
                p._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_HEADERS_FLAG;
        uint64_t until = n->sent + (uint64_t) total;
        memset(record, 'x', sizeof(record));
        while (n->confirmed < until) {
                while (n->sent < until && n->sent - n->confirmed < (uint64_t) in_flight) {
                        must(amqp_basic_publish(n->conn, CHANNEL, n->exchange, n->queue, 1, 0, &p,
                                     (amqp_bytes_t){ .len = sizeof(record), .bytes = record }),
                                "librabbitmq: publish");
                        n->sent++;
                }
                one_confirm(n);
        }
}

static void read_native(struct native *n, long total) {
        for (long done = 0; done < total;) {
                amqp_envelope_t e;
                amqp_maybe_release_buffers(n->conn);
                if (amqp_consume_message(n->conn, &e, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL)
                        die("librabbitmq", "consuming failed");
                done++;
                if (done == total || (!amqp_frames_enqueued(n->conn) && !amqp_data_in_buffer(n->conn)))
                        must(amqp_basic_ack(n->conn, CHANNEL, e.delivery_tag, 1), "librabbitmq: ack");
                amqp_destroy_envelope(&e);
        }
}

struct reader {
        struct native *native;
        long total;
};
static void *reading(void *arg) {
        struct reader *r = arg;
        read_native(r->native, r->total);
        return NULL;
}

static double publish_alone(long total, bool like_us) {
        struct native n;
        native_open(&n, like_us ? "native-publish-as-ours" : "native-publish", true);
        if (like_us)
                as_ours(&n);
        publish_native(&n, 1, 1);
        double start = now_s();
        publish_native(&n, total, BATCH * IN_FLIGHT);
        double seconds = now_s() - start;
        native_close(&n);
        return seconds;
}

static double whole_way_alone(long total) {
        struct native from, to;
        struct reader r = { &to, total };
        pthread_t thread;
        native_open(&from, "native-way", true);
        native_open(&to, "native-way", false);
        double start = now_s();
        pthread_create(&thread, NULL, reading, &r);
        publish_native(&from, total, BATCH * IN_FLIGHT);
        pthread_join(thread, NULL);
        double seconds = now_s() - start;
        native_close(&from);
        native_close(&to);
        return seconds;
}

static void latency_alone(long total, double *us) {
        struct native from, to;
        native_open(&from, "native-latency", true);
        native_open(&to, "native-latency", false);
        for (long i = 0; i < total; i++) {
                double start = now_s();
                publish_native(&from, 1, 1);
                read_native(&to, 1);
                us[i] = (now_s() - start) * 1e6;
        }
        native_close(&from);
        native_close(&to);
}

/* -- beside ours -------------------------------------------------------------------------------------------------------------- */

static void start(void) {
        folder_new(folder);
        server = om_test_server_start("rabbitmq", folder);
        if (sscanf(om_test_server_value(server, "bus_url"), "amqp://%99[^:]:%d", host, &port) != 2)
                die("rabbitmq", "its URL is not as expected");
}

static void daemon_on_it(struct daemon *d, const char *prefix, bool log) {
        char url[200];
        snprintf(url, sizeof(url), "amqp://%s:%d?prefix=%s%s", host, port, prefix, log ? "" : "&log=false");
        daemon_start(d, url);
}

static void stop(void) {
        om_test_server_stop(server);
        folder_remove(folder);
}

static double published(struct daemon *d, long total) {
        struct load first = { .daemon = d, .topic = "publish", .total = BATCH, .batch = BATCH, .in_flight = 1 };
        publish_load(&first); /* makes the queue */
        struct load load = { .daemon = d, .topic = "publish", .total = total, .batch = BATCH, .in_flight = IN_FLIGHT };
        publish_load(&load);
        return (double) load.done / load.seconds;
}

void case_rabbitmq(void) {
        long total = scaled(100000);
        struct daemon d;
        start();
        figure("rabbitmq_native_publish", (double) total / publish_alone(total, false));
        figure("rabbitmq_native_as_ours_publish", (double) total / publish_alone(total, true));
        daemon_on_it(&d, "plain", false);
        figure("rabbitmq_without_log_publish", published(&d, total));
        figure("rabbitmq_native_whole_way", (double) total / whole_way_alone(total));
        figure("rabbitmq_without_log_whole_way", (double) total / whole_way_seconds(&d, "whole", 1, false, total));
        daemon_stop(&d);
        daemon_on_it(&d, "logged", true);
        figure("rabbitmq_publish", published(&d, total));
        figure("rabbitmq_whole_way", (double) total / whole_way_seconds(&d, "whole", 1, false, total));
        daemon_stop(&d);
        stop();
}

void case_rabbitmq_latency(void) {
        long n = scaled(2000);
        double *us = calloc((size_t) n, sizeof(double));
        struct daemon d;
        start();
        latency_alone(n, us);
        figure_quantiles("latency_rabbitmq_native", us, n);
        daemon_on_it(&d, "plain", false);
        latency_load(&d, n, us);
        figure_quantiles("latency_rabbitmq", us, n);
        daemon_stop(&d);
        stop();
        free(us);
}
#else
void case_rabbitmq(void) {
        figure_missing("rabbitmq_native_publish", "built without librabbitmq; packaging/install-deps.sh bench installs it");
}
void case_rabbitmq_latency(void) {
        figure_missing("latency_rabbitmq_native_p50", "built without librabbitmq; packaging/install-deps.sh bench installs it");
}
#endif
