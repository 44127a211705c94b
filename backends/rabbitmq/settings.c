/* SPDX-License-Identifier: Apache-2.0 */
/* URL and parameters: see settings.h. Loop thread. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "settings.h"

enum { PORT = 5672, TLS_PORT = 5671, HOSTS_MAX = 32, PREFIX_MAX = 40, EXCHANGE_MAX = 200 };

const char *const rmq_exchange_types[] = { "topic", "direct", "fanout", "headers", NULL };
static const char *const queue_types[] = { "quorum", "classic", NULL };
static const char *const formats[] = { "task", "raw", NULL };
static const char *const auths[] = { "plain", "external", NULL };

#define FIELD(name) offsetof(struct rmq_settings, name)
const struct om_option rmq_options[] = {
        { "prefix", OM_OPTION_STRING, FIELD(prefix), "omni", NULL, 0, 0,
                "Begins the name of every queue and exchange; daemons with another prefix see nothing of each other." },
        { "exchange", OM_OPTION_STRING, FIELD(exchange), NULL, NULL, 0, 0,
                "The exchange that tasks are published to, with the topic as routing key; may be another program's. Default: the prefix." },
        { "exchange_type", OM_OPTION_ENUM, FIELD(exchange_type), "topic", rmq_exchange_types, 0, 0,
                "The type of the exchange: topic (has patterns), direct, fanout (every group gets every task), headers (bound by "
                "omni-topic)." },
        { "queue_type", OM_OPTION_ENUM, FIELD(queue_type), "quorum", queue_types, 0, 0,
                "quorum: replicated; classic: on one node, with priorities (x-max-priority). For queues that are made from now on." },
        { "log", OM_OPTION_BOOL, FIELD(log), "true", NULL, 0, 0,
                "Whether each topic has a stream beside its queues, for counting, inspecting, `start` first or a time, and replay; false "
                "publishes "
                "faster." },
        { "retention_ms", OM_OPTION_MS, FIELD(retention_ms), "0", NULL, 0, 0,
                "After how long the log may drop tasks; 0: by log_bytes only. Queues keep what is not finished in any case." },
        { "log_bytes", OM_OPTION_BYTES, FIELD(log_bytes), "256M", NULL, 1 << 20, (int64_t) 1 << 50,
                "How large a topic's log grows before its oldest part is dropped." },
        { "max_topic_tasks", OM_OPTION_INT, FIELD(max_topic_tasks), "0", NULL, 0, 0,
                "Tasks that may wait for one group; above it a publish is refused. 0: no limit. For queues that are made from now on." },
        { "max_topic_bytes", OM_OPTION_BYTES, FIELD(max_topic_bytes), "0", NULL, 0, 0, "Bytes that may wait for one group; likewise." },
        { "message_ttl_ms", OM_OPTION_MS, FIELD(message_ttl_ms), "0", NULL, 0, 0,
                "After how long a group's queue drops what nobody took (x-message-ttl); 0: never. For queues that are made from now on." },
        { "format", OM_OPTION_ENUM, FIELD(format), "task", formats, 0, 0,
                "task: messages are tasks as JSON; raw: the content alone is published, for programs that know nothing of tasks." },
        { "cloudevents", OM_OPTION_BOOL, FIELD(cloudevents), "false", NULL, 0, 0,
                "Whether messages carry the attributes of CloudEvents (cloudEvents:id, cloudEvents:type …) as headers." },
        { "auth", OM_OPTION_ENUM, FIELD(auth), "plain", auths, 0, 0, "plain: user and password; external: the client's certificate." },
        { "heartbeat_ms", OM_OPTION_MS, FIELD(heartbeat_ms), "10s", NULL, 1000, 600000,
                "How often the connection must show signs of life; one that is silent for twice as long is made anew." },
        { "connect_timeout_ms", OM_OPTION_MS, FIELD(connect_timeout_ms), "5s", NULL, 50, 600000,
                "How long connecting and logging in may take before it is tried anew." },
        { "answer_timeout_ms", OM_OPTION_MS, FIELD(answer_timeout_ms), "800ms", NULL, 50, 600000,
                "How long the broker may confirm nothing before publishes fail with `unavailable`; longer while it is slow." },
        { "max_message_bytes", OM_OPTION_BYTES, FIELD(max_message_bytes), "64M", NULL, 65536, (int64_t) 1 << 31,
                "The largest message that is read." },
        { "max_pending_bytes", OM_OPTION_BYTES, FIELD(max_pending_bytes), "64M", NULL, 65536, (int64_t) 1 << 32,
                "Bytes that may wait for confirms; above it publishers are held back." },
        { "tls_ca_file", OM_OPTION_STRING, FIELD(tls_ca_file), NULL, NULL, 0, 0,
                "PEM file of the authorities that the server's certificate is checked against; default: the system's." },
        { "tls_cert_file", OM_OPTION_STRING, FIELD(tls_cert_file), NULL, NULL, 0, 0, "PEM file of the client's certificate." },
        { "tls_key_file", OM_OPTION_STRING, FIELD(tls_key_file), NULL, NULL, 0, 0,
                "PEM file of the client's private key; default: in tls_cert_file." },
        { "tls_server_name", OM_OPTION_STRING, FIELD(tls_server_name), NULL, NULL, 0, 0,
                "The name that the server's certificate must bear; default: the host of the URL." },
        { "tls_verify", OM_OPTION_BOOL, FIELD(tls_verify), "true", NULL, 0, 0,
                "Whether the server's certificate is checked; false only for tests." },
        { .name = NULL },
};

static int no_memory(struct om_error *e) { return om_error_set_errno(e, ENOMEM, "RabbitMQ: settings"); }

static bool is_prefix(const char *s) {
        size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");

        return n > 0 && n <= PREFIX_MAX && !s[n] && strncmp(s, "amq.", 4) != 0;
}

/* Options point into the URL or the table: from now on into memory of ours. Each is made ours, whether another fails or not. */
static int keep_texts(struct rmq_settings *s, const struct om_url *url) {
        const char **const texts[] = { &s->prefix, &s->exchange, &s->tls_ca_file, &s->tls_cert_file, &s->tls_key_file,
                &s->tls_server_name };
        const char *path = url->path ? url->path : "";
        int r = 0;

        s->own_exchange = !s->exchange;
        if (!s->exchange)
                s->exchange = s->prefix;
        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
                if (*texts[i] && !(*texts[i] = strdup(*texts[i])))
                        r = -ENOMEM;
        s->user = strdup(url->user ? url->user : "guest");
        s->password = strdup(url->password ? url->password : url->user ? "" : "guest");
        s->vhost = strdup(path[0] == '/' && path[1] ? path + 1 : "/");
        s->redacted = strdup(url->redacted);
        return s->user && s->password && s->vhost && s->redacted ? r : -ENOMEM;
}

static int keep_hosts(struct rmq_settings *s, const struct om_url *url, struct om_error *e) {
        size_t n = url->n_hosts ? url->n_hosts : 1;

        if (n > HOSTS_MAX)
                return om_error_set(e, OM_INVALID, "RabbitMQ: at most %d hosts", HOSTS_MAX);
        s->hosts = calloc(n, sizeof *s->hosts);
        if (!s->hosts)
                return no_memory(e);
        for (size_t i = 0; i < n; i++) {
                const char *name = url->n_hosts ? url->hosts[i].name : "";

                s->n_hosts++;
                s->hosts[i].port = url->n_hosts && url->hosts[i].port ? url->hosts[i].port : s->tls ? TLS_PORT : PORT;
                s->hosts[i].host = strdup(*name ? name : "localhost");
                if (!s->hosts[i].host)
                        return no_memory(e);
        }
        return 0;
}

int rmq_settings_take(struct rmq_settings *s, const struct om_url *url, struct om_error *e) {
        int r;

        s->tls = strcmp(url->scheme, "amqps") == 0;
        r = keep_texts(s, url);
        if (r < 0)
                return no_memory(e);
        if (!is_prefix(s->prefix))
                return om_error_set(e, OM_INVALID,
                        "RabbitMQ: prefix=%.60s: letters, digits, \"-\", \"_\" and \".\" are expected, at most %d, not beginning with amq.",
                        s->prefix, PREFIX_MAX);
        if (!*s->exchange || strlen(s->exchange) > EXCHANGE_MAX)
                return om_error_set(e, OM_INVALID, "RabbitMQ: exchange: a name of at most %d bytes is expected", EXCHANGE_MAX);
        if (strlen(s->vhost) > 255)
                return om_error_set(e, OM_INVALID, "RabbitMQ: the virtual host, the path of the URL, is longer than 255 bytes");
        if (!s->tls && (s->tls_ca_file || s->tls_cert_file || s->tls_key_file || s->tls_server_name || !s->tls_verify || s->auth))
                return om_error_set(e, OM_INVALID, "RabbitMQ: tls_… and auth=external need TLS: write amqps instead of amqp");
        if (s->auth && !s->tls_cert_file)
                return om_error_set(e, OM_INVALID, "RabbitMQ: auth=external needs tls_cert_file");
        if (s->tls_key_file && !s->tls_cert_file)
                return om_error_set(e, OM_INVALID, "RabbitMQ: tls_key_file needs tls_cert_file");
        return keep_hosts(s, url, e);
}

void rmq_settings_free(struct rmq_settings *s) {
        if (!s->hosts && !s->redacted && !s->user)
                return; /* take() was not called, so no text is ours */
        free((char *) s->prefix);
        free((char *) s->exchange);
        free((char *) s->tls_ca_file);
        free((char *) s->tls_cert_file);
        free((char *) s->tls_key_file);
        free((char *) s->tls_server_name);
        free(s->user);
        free(s->password);
        free(s->vhost);
        free(s->redacted);
        for (size_t i = 0; i < s->n_hosts; i++)
                free(s->hosts[i].host);
        free(s->hosts);
        memset(s, 0, sizeof *s);
}

struct om_tls_settings rmq_tls(const struct rmq_settings *s) {
        return (struct om_tls_settings){ "RabbitMQ", "amqp", "amqps", s->tls_ca_file, s->tls_cert_file, s->tls_key_file, s->tls_server_name,
                s->tls_verify };
}
