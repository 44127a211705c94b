/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_KAFKA_SETTINGS_H
#define OM_KAFKA_SETTINGS_H
/*
 * What a URL of Kafka says, as the library wants it: brokers, SASL, TLS, the parameters of the bus, and any property of librdkafka's own as
 * `rdkafka.NAME=`.
 */
#include <librdkafka/rdkafka.h>

#include "../options.h"

struct kafka_settings {
        int sasl; /* place in kafka_sasls */
        bool tls, tls_verify, cloudevents;
        const char *tls_ca_file, *tls_cert_file, *tls_key_file;
        const char *prefix, *group, *instance;
        int64_t partitions, replicas, retention_ms, max_message_bytes, session_timeout_ms, rebalance_grace_ms;
        int format;
};
enum { KAFKA_FORMAT_TASK, KAFKA_FORMAT_RAW };
extern const struct om_option kafka_options[];

/* Checks what options alone cannot say, and makes the properties that all handles share; the caller's, rd_kafka_conf_destroy(). Connects
 * nothing. */
int kafka_settings_apply(const struct kafka_settings *s, const struct om_url *url, rd_kafka_conf_t **ret, struct om_error *e);

/* One property; -EINVAL with `e` naming it. */
int kafka_conf_set(rd_kafka_conf_t *conf, const char *name, const char *value, struct om_error *e);
int kafka_conf_set_int(rd_kafka_conf_t *conf, const char *name, int64_t value, struct om_error *e);
/* Whether the URL sets this property itself. */
bool kafka_settings_has(const struct om_url *url, const char *property);

/* "host:port,host:port" of the URL. */
void kafka_settings_where(const struct om_url *url, char *out, size_t size);

#endif
