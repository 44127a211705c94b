/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RABBITMQ_SETTINGS_H
#define OM_RABBITMQ_SETTINGS_H
/*
 * What the URL says.
 *
 *     amqp://[USER:PASSWORD@]HOST[:5672][,HOST…][/VHOST][?…]       guest:guest without a user; VHOST is / without a path
 *     amqps://…[:5671]                                              the same with TLS
 *
 * Always true: after rmq_settings_take() nothing points into the URL; every message names the part to mend and holds no password.
 */
#include "../options.h"
#include "../tls.h"

enum rmq_exchange { RMQ_TOPIC, RMQ_DIRECT, RMQ_FANOUT, RMQ_HEADERS };
extern const char *const rmq_exchange_types[];
enum rmq_queue { RMQ_QUORUM, RMQ_CLASSIC };
enum { FORMAT_TASK, FORMAT_RAW };

struct rmq_settings {
        /* by the table of options */
        const char *prefix, *exchange;
        const char *tls_ca_file, *tls_cert_file, *tls_key_file, *tls_server_name;
        bool tls_verify, cloudevents, log;
        int exchange_type, queue_type, format, auth;
        int64_t connect_timeout_ms, answer_timeout_ms, heartbeat_ms, max_message_bytes, max_pending_bytes;
        int64_t retention_ms, log_bytes, max_topic_tasks, max_topic_bytes, message_ttl_ms;
        /* by rmq_settings_take() */
        bool tls, own_exchange; /* the exchange is of our making */
        char *user, *password, *vhost, *redacted;
        struct rmq_address {
                char *host;
                uint16_t port;
        } * hosts;
        size_t n_hosts;
};
extern const struct om_option rmq_options[];

/* After om_options_read(). -EINVAL with `e` naming the part to mend. Free it whether it failed or not. */
int rmq_settings_take(struct rmq_settings *s, const struct om_url *url, struct om_error *e);
void rmq_settings_free(struct rmq_settings *s);
struct om_tls_settings rmq_tls(const struct rmq_settings *s);

#endif
