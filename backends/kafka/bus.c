/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bus on Kafka as the core sees it. How the promises of bus.h are kept, in Kafka's words (bus_state.h has the layout):
 *
 *   B1  publish completes when all replicas in sync have the message (acks=all), sent by an idempotent producer.
 *   B2  a verdict has completed when a commit that says it is answered; a commit holds the whole state of a partition (offsets.h).
 *   B3  a topic keeps everything until a group is there. A new group writes where it starts into its retry topic, as the first message of
 *       each partition: at the beginning if no other group of the topic is there, else at the end.
 *   B4  topics have no retention of time or size; the sweep deletes records below what all groups have finished.
 *   B5  messages are taken from the library as they are wanted.
 *   B6  the attempts of what is not finished are in the commit's metadata: those that a worker begins are committed a moment later, those
 *       that failed before the verdict completes. What does not fit there goes to the retry topic, with its attempts in a header.
 *   B7  a dead letter is on the dead-letter topic before its offset counts as finished; one that is there twice, after a death between the
 *       two, is shown once: it carries the place of its message.
 *   B8  a partition is read in order. What has a key is in that key's partition, and waits in memory while another of its key is out, or
 *       between retries.
 *
 * Leases. A partition is one daemon's, as long as its heartbeats come; with a clean end it goes to another at once, otherwise after
 * session_timeout_ms, and what workers had then comes after reclaim_idle_ms in all. The same daemon started again is the same static member
 * and goes on at once. Who lost a partition cannot commit: its generation is over.
 *
 * Loop thread.
 */
#include <fcntl.h>
#include <unistd.h>

#include "bus_state.h"

/* -- operations ---------------------------------------------------------------------------------------------------- */

int kafka_refuse(struct om_bus *b, struct om_error *e) {
        if (b->state == OM_BUS_READY)
                return 0;
        return om_error_set(e, OM_UNAVAILABLE, "%s", b->reason.message);
}

int kafka_job_admit(struct om_bus *b, size_t bytes, struct om_error *e) {
        int r = kafka_refuse(b, e);

        if (r < 0)
                return r;
        return om_job_admit(&b->jobs, OPS_MAX, BYTES_MAX, bytes, "Kafka", e);
}

void kafka_job_begin(struct om_bus *b, struct job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *)) {
        j->bus = b;
        om_job_begin(&b->jobs, &j->job, op, bytes, free_it);
}

void kafka_job_over(struct job *j, int status, const struct om_error *e) { om_job_over(&j->job, status, e); }

/* -- opening ----------------------------------------------------------------------------------------------------------- */

/* Ours over restarts: kept in the state folder, 16 hexadecimal digits, and a "t" where it was used for transactions. Where that cannot be,
 * a name for this life. */
static int instance_file(struct om_bus *b, int flags) {
        char path[4096];

        if (snprintf(path, sizeof path, "%s/kafka-instance", b->host->state_dir) >= (int) sizeof path)
                return -1;
        return open(path, flags | O_CLOEXEC, 0600);
}

static void name_it(struct om_bus *b) {
        char id[18] = "";
        int fd = instance_file(b, O_RDWR | O_CREAT);
        ssize_t n = fd >= 0 ? pread(fd, id, 17, 0) : 0;

        b->transacted = b->recover = n == 17 && id[16] == 't';
        id[16] = 0;
        if (n < 16 || strspn(id, "0123456789abcdef") != 16) {
                snprintf(id, sizeof id, "%016llx", (unsigned long long) om_random_u64());
                if (fd < 0 || pwrite(fd, id, 16, 0) != 16)
                        om_host_log(b->host, OM_LOG_WARNING, "Kafka: cannot keep our name in the state folder %s", b->host->state_dir);
        }
        if (fd >= 0)
                close(fd);
        if (*b->settings.instance)
                snprintf(b->instance, sizeof b->instance, "%s", b->settings.instance);
        else
                snprintf(b->instance, sizeof b->instance, "omnidaemon-%s", id);
}

void kafka_bus_transacts(struct om_bus *b) {
        int fd = b->transacted ? -1 : instance_file(b, O_RDWR);

        if (fd >= 0 && pwrite(fd, "t", 1, 16) != 1)
                om_host_log(b->host, OM_LOG_WARNING, "Kafka: cannot keep in the state folder %s that there are transactions",
                        b->host->state_dir);
        if (fd >= 0)
                close(fd);
        b->transacted = true;
}

/* Of the settings' texts these are used after opening; the others would point into a URL that is gone. */
static int keep_texts(struct om_bus *b) {
        const char **kept[] = { &b->settings.prefix, &b->settings.group, &b->settings.instance };

        for (size_t i = 0; i < 3; i++) {
                b->texts[i] = strdup(*kept[i]);
                if (!b->texts[i])
                        return -ENOMEM;
                *kept[i] = b->texts[i];
        }
        return 0;
}

/* What consumers and producers are told unless the URL says otherwise. */
static int set_defaults(struct om_bus *b, const struct om_url *url, struct om_error *e) {
        static const char *const defaults[][2] = { { "linger.ms", "0" }, { "message.timeout.ms", "30000" },
                { "queue.buffering.max.messages", "200000" }, { "queue.buffering.max.kbytes", "262144" },
                { "partitioner", "murmur2_random" }, { "fetch.wait.max.ms", "5000" }, { "fetch.error.backoff.ms", "100" },
                { "queued.min.messages", "10000" }, { "queued.max.messages.kbytes", "2048" }, { "fetch.max.bytes", "4194304" },
                { "fetch.message.max.bytes", "1048576" } };
        int r = 0;

        for (size_t i = 0; i < sizeof(defaults) / sizeof(defaults[0]) && !r; i++)
                if (!kafka_settings_has(url, defaults[i][0]))
                        r = kafka_conf_set(b->conf, defaults[i][0], defaults[i][1], e);
        return r;
}

static void bus_free(struct om_bus *b) {
        struct event **events[] = { &b->readable, &b->beat, &b->commit_timer, &b->poll_timer, &b->subscribe_timer, &b->revoke_timer,
                &b->sweep_timer, &b->probe_timer, &b->wake_timer };

        for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++)
                if (*events[i])
                        event_free(*events[i]);
        if (b->conf)
                rd_kafka_conf_destroy(b->conf);
        for (int i = 0; i < 2; i++)
                if (b->pipe[i] >= 0)
                        close(b->pipe[i]);
        for (int i = 0; i < 3; i++)
                free(b->texts[i]);
        free(b);
}

static int bus_prepare(struct om_bus *b, struct om_url *url, struct om_error *e) {
        int r;

        r = om_options_read(kafka_options, url, &b->settings, e);
        if (!r)
                r = kafka_settings_apply(&b->settings, url, &b->conf, e);
        if (!r)
                r = set_defaults(b, url, e);
        if (!r && keep_texts(b) < 0)
                r = om_error_set_errno(e, ENOMEM, "Kafka");
        if (r < 0)
                return r;
        kafka_settings_where(url, b->where, sizeof b->where);
        om_error_set(&b->reason, OM_UNAVAILABLE, "Kafka: %s: connecting", b->where);
        snprintf(b->group_id, sizeof b->group_id, "%s%s%s", b->settings.prefix, *b->settings.prefix ? "." : "", b->settings.group);
        name_it(b);
        b->owner = 0xcbf29ce484222325u;
        for (const char *p = b->instance; *p; p++)
                b->owner = (b->owner ^ (unsigned char) *p) * 0x100000001b3u;
        r = kafka_member_timers(b, e);
        return r ? r : kafka_link_open(b, e);
}

static int bus_open(
        struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        struct om_bus *b = calloc(1, sizeof *b);
        int r;

        if (!b)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        b->host = host;
        b->jobs = (struct om_jobs){ .host = host, .in_call = true };
        b->events = events;
        b->core = core;
        b->state = OM_BUS_CONNECTING;
        b->opened_ms = om_clock_ms();
        b->pipe[0] = b->pipe[1] = -1;
        r = bus_prepare(b, url, e);
        if (!r && !(b->wake = kafka_topic_get(b, KAFKA_WAKE, OM_SPAN_NONE, OM_SPAN_NONE))) {
                r = om_error_set_errno(e, ENOMEM, "Kafka");
                rd_kafka_queue_destroy(b->producer_queue);
                rd_kafka_destroy(b->producer);
        }
        if (r < 0) {
                bus_free(b);
                return r;
        }
        *ret = b;
        return 0;
}

/* -- closing ----------------------------------------------------------------------------------------------------------- */

/* What is finished is committed already; that the partitions are let go of in order is said by one commit more, if the brokers are there.
 */
static int bus_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        op->cancel = NULL;
        b->close_op = op;
        kafka_groups_close(b);
        return 0;
}

void kafka_bus_let_go(struct om_bus *b) {
        b->closing = true;
        kafka_txn_close(b);
        kafka_groups_free(b);
        kafka_link_close(b);
}

static void bus_destroy(struct om_bus *b) {
        kafka_dead_free(b);
        kafka_whole_names_free(b);
        kafka_topics_free(b);
        bus_free(b);
}

/* -- the contract -------------------------------------------------------------------------------------------------- */

static const char *const schemes[] = { "kafka", NULL };
OM_MODULE const struct om_bus_ops om_kafka_bus_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "kafka",
        .schemes = schemes,
        .doc = "Kafka topics and consumer groups, with transactions.",
        .capabilities = OM_BUS_KEYS | OM_BUS_EXACTLY_ONCE | OM_BUS_REPLAY | OM_BUS_CONFIGURE,
        .options = kafka_options,
        .lease_ms = 0,
        .open = bus_open,
        .publish = kafka_bus_publish,
        .subscribe = kafka_bus_subscribe,
        .unsubscribe = kafka_bus_unsubscribe,
        .want = kafka_bus_want,
        .settle = kafka_bus_settle,
        .extend = NULL,
        .query = kafka_bus_query,
        .change = kafka_bus_change,
        .close = bus_close,
        .destroy = bus_destroy,
};
