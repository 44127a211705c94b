/* SPDX-License-Identifier: Apache-2.0 */
/*
 * URL and parameters as properties of librdkafka: see settings.h. What is true: each refusal names the parameter to mend; a property that
 * the URL sets wins over ours, but for those on which the promises stand. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "settings.h"

#define PROPERTY "rdkafka."

static const char *const sasls[] = { "plain", "scram-sha-256", "scram-sha-512", NULL };
static const char *const mechanisms[] = { "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512" };
static const char *const formats[] = { "task", "raw", NULL };
#define FIELD(name) offsetof(struct kafka_settings, name)

const struct om_option kafka_options[] = {
        { "sasl", OM_OPTION_ENUM, FIELD(sasl), "plain", sasls, 0, 0,
                "How the URL's user and password are shown to the brokers; other mechanisms by rdkafka.sasl.mechanisms." },
        { "tls", OM_OPTION_BOOL, FIELD(tls), "false", NULL, 0, 0, "Whether connections are TLS." },
        { "tls_ca_file", OM_OPTION_STRING, FIELD(tls_ca_file), "", NULL, 0, 0,
                "Certificates of the authorities to trust; without it, the system's." },
        { "tls_cert_file", OM_OPTION_STRING, FIELD(tls_cert_file), "", NULL, 0, 0,
                "Our certificate, where the brokers want one; goes with tls_key_file." },
        { "tls_key_file", OM_OPTION_STRING, FIELD(tls_key_file), "", NULL, 0, 0, "Its private key." },
        { "tls_verify", OM_OPTION_BOOL, FIELD(tls_verify), "true", NULL, 0, 0, "Whether the brokers' certificates are verified." },
        { "prefix", OM_OPTION_STRING, FIELD(prefix), "", NULL, 0, 0,
                "What the names of our topics begin with, a dot after it; empty: a topic is the Kafka topic of that name." },
        { "group", OM_OPTION_STRING, FIELD(group), "omnidaemon", NULL, 0, 0,
                "The consumer group in which the daemons share the partitions; daemons with the same prefix have the same." },
        { "instance", OM_OPTION_STRING, FIELD(instance), "", NULL, 0, 0,
                "This daemon's name as a static member; without it, one that is made once and kept in the state folder." },
        { "partitions", OM_OPTION_INT, FIELD(partitions), "1", NULL, 1, 10000,
                "Of topics that are made from now on. With more than one, order is kept per key only, and as many daemons can share a "
                "group." },
        { "replicas", OM_OPTION_INT, FIELD(replicas), "0", NULL, 0, 100,
                "Replication factor of topics that are made; 0: the brokers' default." },
        { "retention_ms", OM_OPTION_MS, FIELD(retention_ms), "0", NULL, 0, 0,
                "How long finished tasks are kept for replay, at least; 0 drops them. What is not finished is kept however long it "
                "takes." },
        { "max_message_bytes", OM_OPTION_BYTES, FIELD(max_message_bytes), "17M", NULL, 1024, 1000000000,
                "The largest task; of topics that are made from now on it is their max.message.bytes." },
        { "session_timeout_ms", OM_OPTION_MS, FIELD(session_timeout_ms), "10s", NULL, 1000, 3600000,
                "After how long a silent daemon counts as dead; within the brokers' group.min. and group.max.session.timeout.ms." },
        { "rebalance_grace_ms", OM_OPTION_MS, FIELD(rebalance_grace_ms), "5s", NULL, 0, 600000,
                "How long a partition that goes to another daemon waits for tasks that workers have." },
        { "format", OM_OPTION_ENUM, FIELD(format), "task", formats, 0, 0,
                "task: messages are tasks as JSON; raw: the content alone is published, for programs that know nothing of tasks." },
        { "cloudevents", OM_OPTION_BOOL, FIELD(cloudevents), "false", NULL, 0, 0,
                "Whether messages carry the attributes of CloudEvents (ce_id, ce_type …) as headers." },
        { PROPERTY "*", OM_OPTION_STRING, 0, "", NULL, 0, 0,
                "Any property of librdkafka by its own name, as rdkafka.linger.ms=5; but for those by which nothing is lost, it wins over "
                "ours." },
        { .name = NULL },
};

void kafka_settings_where(const struct om_url *url, char *out, size_t size) {
        size_t n = 0;

        out[0] = 0;
        for (size_t i = 0; i < url->n_hosts && n < size; i++) {
                bool six = strchr(url->hosts[i].name, ':') != NULL;

                n += (size_t) snprintf(out + n, size - n, "%s%s%.200s%s:%u", i ? "," : "", six ? "[" : "", url->hosts[i].name,
                        six ? "]" : "", url->hosts[i].port ? url->hosts[i].port : 9092u);
        }
}

bool kafka_settings_has(const struct om_url *url, const char *property) {
        for (size_t i = 0; i < url->n_params; i++)
                if (strncmp(url->params[i].name, PROPERTY, sizeof PROPERTY - 1) == 0 &&
                        strcmp(url->params[i].name + sizeof PROPERTY - 1, property) == 0)
                        return true;
        return false;
}

int kafka_conf_set(rd_kafka_conf_t *conf, const char *name, const char *value, struct om_error *e) {
        char why[300];

        if (rd_kafka_conf_set(conf, name, value, why, sizeof why) == RD_KAFKA_CONF_OK)
                return 0;
        return om_error_set(e, OM_INVALID, "Kafka: rdkafka.%s: %s", name, why);
}

int kafka_conf_set_int(rd_kafka_conf_t *conf, const char *name, int64_t value, struct om_error *e) {
        char text[24];

        snprintf(text, sizeof text, "%lld", (long long) value);
        return kafka_conf_set(conf, name, text, e);
}

static bool is_name(const char *s) {
        for (; *s; s++)
                if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') || strchr("-_.", *s)))
                        return false;
        return true;
}

static int check(const struct kafka_settings *s, const struct om_url *url, struct om_error *e) {
        const char *const files[][2] = { { "tls_ca_file", s->tls_ca_file }, { "tls_cert_file", s->tls_cert_file },
                { "tls_key_file", s->tls_key_file } };

        if (!url->n_hosts)
                return om_error_set(e, OM_INVALID, "Kafka: a broker is expected, as in kafka://localhost:9092");
        if (strlen(url->path) > 1)
                return om_error_set(e, OM_INVALID, "Kafka: nothing is expected behind the brokers, but the URL says %.100s", url->path);
        if (!is_name(s->prefix) || strlen(s->prefix) > 40)
                return om_error_set(
                        e, OM_INVALID, "Kafka: prefix=%.60s: letters, digits, \"-\", \"_\" and \".\" are expected, at most 40", s->prefix);
        if (!*s->group || strlen(s->group) > 200 || strlen(s->instance) > 200)
                return om_error_set(e, OM_INVALID, "Kafka: group and instance: at most 200 bytes, and group not empty");
        if (!url->user != !url->password)
                return om_error_set(e, OM_INVALID, "Kafka: user and password belong together: kafka://USER:PASSWORD@HOST");
        if (!*s->tls_cert_file != !*s->tls_key_file)
                return om_error_set(e, OM_INVALID, "Kafka: tls_cert_file and tls_key_file belong together");
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
                if (*files[i][1] && !s->tls)
                        return om_error_set(e, OM_INVALID, "Kafka: %s goes with tls=true", files[i][0]);
                else if (*files[i][1] && access(files[i][1], R_OK) < 0)
                        return om_error_set(
                                e, OM_INVALID, "Kafka: %s=%.200s cannot be read: %s", files[i][0], files[i][1], strerror(errno));
        return 0;
}

static int set_security(rd_kafka_conf_t *c, const struct kafka_settings *s, const struct om_url *url, struct om_error *e) {
        static const char *const protocols[2][2] = { { "plaintext", "ssl" }, { "sasl_plaintext", "sasl_ssl" } };
        int r = kafka_conf_set(c, "security.protocol", protocols[url->user != NULL][s->tls], e);

        if (!r && url->user)
                r = kafka_conf_set(c, "sasl.mechanisms", mechanisms[s->sasl], e);
        if (!r && url->user)
                r = kafka_conf_set(c, "sasl.username", url->user, e);
        if (!r && url->user)
                r = kafka_conf_set(c, "sasl.password", url->password, e);
        if (!r && *s->tls_ca_file)
                r = kafka_conf_set(c, "ssl.ca.location", s->tls_ca_file, e);
        if (!r && *s->tls_cert_file)
                r = kafka_conf_set(c, "ssl.certificate.location", s->tls_cert_file, e);
        if (!r && *s->tls_key_file)
                r = kafka_conf_set(c, "ssl.key.location", s->tls_key_file, e);
        if (!r)
                r = kafka_conf_set(c, "enable.ssl.certificate.verification", s->tls_verify ? "true" : "false", e);
        return r;
}

/* Of waiting: a broker that is back is met within a second; sockets that are silent are given up; nothing is logged behind our back. */
static const char *const ours[][2] = { { "client.id", "omnidaemon" }, { "reconnect.backoff.ms", "50" },
        { "reconnect.backoff.max.ms", "1000" }, { "socket.timeout.ms", "10000" }, { "socket.connection.setup.timeout.ms", "5000" },
        { "socket.keepalive.enable", "true" }, { "socket.nagle.disable", "true" }, { "log.connection.close", "false" },
        { "retry.backoff.ms", "50" }, { "broker.address.ttl", "10000" }, { "topic.metadata.refresh.interval.ms", "60000" },
        { "allow.auto.create.topics", "false" } };

int kafka_settings_apply(const struct kafka_settings *s, const struct om_url *url, rd_kafka_conf_t **ret, struct om_error *e) {
        char where[OM_URL_MAX];
        rd_kafka_conf_t *c;
        int r = check(s, url, e);

        if (r < 0)
                return r;
        c = rd_kafka_conf_new();
        kafka_settings_where(url, where, sizeof where);
        r = kafka_conf_set(c, "bootstrap.servers", where, e);
        for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]) && !r; i++)
                r = kafka_conf_set(c, ours[i][0], ours[i][1], e);
        if (!r)
                r = set_security(c, s, url, e);
        for (size_t i = 0; i < url->n_params && !r; i++)
                if (strncmp(url->params[i].name, PROPERTY, sizeof PROPERTY - 1) == 0)
                        r = kafka_conf_set(c, url->params[i].name + sizeof PROPERTY - 1, url->params[i].value, e);
        if (r < 0)
                rd_kafka_conf_destroy(c);
        else
                *ret = c;
        return r;
}
