/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bus on NATS JetStream as the core sees it. How the promises of bus.h are kept, in JetStream's words (bus_state.h has the layout):
 *
 *   B1  publish completes with the PubAck, which JetStream gives when the message is stored, on a majority of `replicas`; synced to the
 * disk only where the server says `sync_interval: always`, which a client cannot see: `sync=always` in the URL says so, and health goes by
 * it. B2  an ack is a double ack: it has completed when the server has answered it. B3  a topic's stream keeps everything until the first
 * group is there: nothing is dropped but by our own sweep, and that needs a group. A group is a durable pull consumer that begins at the
 * first message, or after the last. B4  limits retention with discard=new: a full stream refuses. The sweep purges below the lowest ack
 * floor of all consumers. B5  pull requests ask for what is wanted and not yet asked for. B6  num_delivered of the server is the attempt,
 * less what was given back without counting: such a release is first written to the state stream, then the message is returned. B7  a dead
 * letter is published under a subject made of the message's place, with "no message before it" as its condition, and only then is the
 * message terminated: a repeat finds it there. Replaying is the same the other way round. B8  messages of a consumer come in stream order;
 * what is returned comes first.
 *
 * With stream=NAME all topics are in one stream, and "a topic's stream" is its part of that: the messages with its subject, and the
 * consumers that take them. bus_topic.c knows which it is; bus_record.c has what a stream of its own would say by being there.
 *
 * Leases. The server redelivers what was not answered for within AckWait. That is short, a few seconds, so that what was on its way to a
 * daemon that died or a connection that broke is not out for long. What a daemon has got it keeps by a delayed Nak: in JetStream this
 * leaves the message pending, to be acknowledged as before, and moves its redelivery to after the delay, here reclaim_idle_ms. So a daemon
 * that is cut off keeps its tasks for that long, and a dead one loses them after it. (InProgress could only give AckWait again.)
 *
 * Loop thread.
 */

#include "bus_state.h"

/* -- operations ---------------------------------------------------------------------------------------------------- */

int nats_bus_refuse(struct om_bus *b, struct om_error *e) {
        if (b->state == OM_BUS_READY && nats_link_is_up(b->link))
                return 0;
        *e = b->reason;
        return om_error_set(e, OM_UNAVAILABLE, "%s", b->reason.message);
}

int nats_job_admit(struct om_bus *b, size_t bytes, struct om_error *e) {
        int r = nats_bus_refuse(b, e);

        return r < 0 ? r : om_job_admit(&b->jobs, OPS_MAX, BYTES_MAX, bytes, "NATS", e);
}

void nats_job_begin(struct om_bus *b, struct job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *)) {
        j->bus = b;
        om_job_begin(&b->jobs, &j->base, op, bytes, free_it);
}

void nats_group_stream(char *out, size_t size, const struct om_bus *b, char what, const char *nt, const char *na) {
        snprintf(out, size, "%s-%c-%s@%s", b->settings.c.prefix, what, nt, na); /* a dot of either name is a + in it */
}

void nats_tell(struct om_bus *b, const char *note) {
        natsMsg *msg = NULL;

        if (natsMsg_Create(&msg, b->note_subject, NULL, note, (int) strlen(note)) == NATS_OK)
                nats_send(b->link, msg);
}

/* -- up and down --------------------------------------------------------------------------------------------------- */

static void is_ready(struct om_bus *b) {
        b->state = OM_BUS_READY;
        nats_link_works(b->link);
        nats_leases_return(b);
        nats_subs_up(b);
        b->events->state(b->core, OM_BUS_READY, NULL);
}

static void shared_there(struct stream_wait *w, int status, const struct om_error *e) {
        struct om_bus *b = CONTAINER(w, struct om_bus, shared_wait);

        if (status == 0)
                is_ready(b);
        else
                nats_link_fail(b->link, e);
}

static void state_made(struct nats_request *r, const struct nats_reply *reply) {
        struct om_bus *b = r->ctx;
        struct om_error e = OM_ERROR_INIT;

        if (nats_error(reply, "making the stream of our state", &e) < 0 && nats_error_code(reply->data) != NATS_ERR_STREAM_EXISTS) {
                nats_link_fail(b->link, &e);
                return;
        }
        b->clustered = nats_json_get(reply->data, "cluster.leader").p != NULL;
        b->remote = b->clustered || b->has_domain;
        if (b->remote)
                nats_link_clustered(b->link);
        if (b->shared)
                nats_stream_need(b->shared, &b->shared_wait);
        else
                is_ready(b);
}

static void greeted(struct nats_request *r, const struct nats_reply *reply) {
        struct om_bus *b = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        struct om_buf body = OM_BUF_INIT;
        char subject[64];

        if (nats_error(reply, "asking for JetStream", &e) < 0) {
                nats_link_fail(b->link, &e);
                return;
        }
        snprintf(subject, sizeof subject, "%s.s.>", b->settings.c.prefix);
        nats_put_stream_config(&body, b, b->state_stream, subject, NULL, STREAM_STATE);
        if (nats_call(b->link, &b->hello, state_made, b, om_buf_span(&body), "STREAM.CREATE.%s", b->state_stream) == -ENOMEM) {
                om_error_set_errno(&e, ENOMEM, "NATS");
                nats_link_fail(b->link, &e);
        }
        om_buf_deinit(&body);
}

static void on_up(void *ctx) {
        struct om_bus *b = ctx;
        struct om_error e;

        if (nats_call(b->link, &b->hello, greeted, b, OM_SPAN_NONE, "INFO") == -ENOMEM) {
                om_error_set_errno(&e, ENOMEM, "NATS");
                nats_link_fail(b->link, &e);
        }
}

static void on_down(void *ctx, const struct om_error *e) {
        struct om_bus *b = ctx;
        bool same = b->state == OM_BUS_CONNECTING && strcmp(b->reason.message, e->message) == 0;

        b->state = OM_BUS_CONNECTING;
        b->reason = *e;
        nats_subs_down(b);
        nats_topics_down(b);
        nats_publications_down(b);
        b->keys_made = false;
        if (!same)
                b->events->state(b->core, OM_BUS_CONNECTING, e);
}

/* -- opening and closing ------------------------------------------------------------------------------------------- */

static const char *const formats[] = { "task", "raw", NULL };
static const struct om_option options[] = {
        NATS_OPTIONS(struct bus_settings),
        { "stream", OM_OPTION_STRING, offsetof(struct bus_settings, stream), "", NULL, 0, 0,
                "Name of one stream for all topics, for accounts that allow few; without it, each topic has its own. All daemons with this "
                "prefix must say the same." },
        { "retention_ms", OM_OPTION_MS, offsetof(struct bus_settings, retention_ms), "0", NULL, 0, 0,
                "How long finished tasks are kept for replay, at least; 0 drops them." },
        { "max_topic_bytes", OM_OPTION_BYTES, offsetof(struct bus_settings, max_topic_bytes), "0", NULL, 0, 0,
                "Bytes that one topic may hold, or with stream=, all of them; above it a publish is refused. 0: no limit. For streams that "
                "are made "
                "from now on." },
        { "max_topic_tasks", OM_OPTION_INT, offsetof(struct bus_settings, max_topic_tasks), "0", NULL, 0, 0,
                "Tasks that one topic may hold; likewise." },
        { "dedupe_window_ms", OM_OPTION_MS, offsetof(struct bus_settings, dedupe_window_ms), "4m", NULL, 100, 7 * 86400000LL,
                "How long the server remembers ids of tasks; a repeat within it is not stored. Must be longer than reclaim_idle_ms for "
                "exactly-once." },
        { "idempotency_window_ms", OM_OPTION_MS, offsetof(struct bus_settings, idempotency_window_ms), "24h", NULL, 1000, 366 * 86400000LL,
                "How long an idempotency key is remembered." },
        { "ack_wait_ms", OM_OPTION_MS, offsetof(struct bus_settings, ack_wait_ms), "5s", NULL, 2000, 3600000,
                "After how long a task that got lost on its way to a daemon is delivered again." },
        { "format", OM_OPTION_ENUM, offsetof(struct bus_settings, format), "task", formats, 0, 0,
                "task: messages are tasks as JSON; raw: the content alone is published, for programs that know nothing of tasks." },
        { "cloudevents", OM_OPTION_BOOL, offsetof(struct bus_settings, cloudevents), "false", NULL, 0, 0,
                "Whether messages carry the attributes of CloudEvents (ce-id, ce-type …) as headers." },
        { .name = NULL },
};

static const struct nats_link_events link_events = { on_up, on_down, nats_message_came, nats_turn_over, nats_note_came };

/* Of the settings' texts only the prefix is used after opening; the others would point into a URL that is gone. */
static int keep_prefix(struct om_bus *b) {
        b->texts = strdup(b->settings.c.prefix);
        if (b->texts)
                b->settings.c.prefix = b->texts;
        return b->texts ? 0 : -ENOMEM;
}

static int share_stream(struct om_bus *b, struct om_error *e) {
        const char *name = b->settings.stream;
        char subject[64];

        if (!*name)
                return 0;
        if (!nats_settings_word(name, "-_", SHARED_STREAM_MAX))
                return om_error_set(e, OM_INVALID, "NATS: stream=%.100s: letters, digits, \"-\" and \"_\" are expected, at most %d", name,
                        SHARED_STREAM_MAX);
        snprintf(subject, sizeof subject, "%s.t.>", b->settings.c.prefix);
        b->shared = nats_stream_new(b, STREAM_SHARED, name, subject, NULL);
        b->shared_wait.fn = shared_there;
        return b->shared ? 0 : om_error_set_errno(e, ENOMEM, "NATS");
}

static void bus_free(struct om_bus *b) {
        if (b->sweep_timer)
                event_free(b->sweep_timer);
        if (b->beat_timer)
                event_free(b->beat_timer);
        if (b->confirm_timer)
                event_free(b->confirm_timer);
        if (b->retry_timer)
                event_free(b->retry_timer);
        nats_leases_close(b);
        nats_stream_free(b->shared);
        free(b->texts);
        free(b);
}

static int bus_open(
        struct om_host *host, struct om_url *url, const struct om_bus_events *events, void *core, struct om_bus **ret, struct om_error *e) {
        struct om_bus *b = calloc(1, sizeof *b);
        natsOptions *opts = NULL;
        int r;

        if (!b)
                return om_error_set_errno(e, ENOMEM, "NATS");
        b->host = host;
        b->jobs = (struct om_jobs){ .host = host };
        b->events = events;
        b->core = core;
        b->state = OM_BUS_CONNECTING;
        b->leases_fd = -1;
        b->sweep_timer = evtimer_new(host->base, nats_on_sweep_timer, b);
        b->beat_timer = evtimer_new(host->base, nats_on_beat, b);
        b->confirm_ms = NATS_CONFIRM_MS;
        b->confirm_timer = evtimer_new(host->base, nats_on_confirm_timer, b);
        b->retry_timer = evtimer_new(host->base, nats_on_retry_timer, b);
        r = om_options_read(options, url, &b->settings, e);
        if (!r && strlen(url->path) > 1)
                r = om_error_set(e, OM_INVALID, "NATS: nothing is expected behind the hosts, but the URL says %.100s", url->path);
        if (!r)
                r = nats_settings_apply(&b->settings.c, url, &opts, e);
        if (!r && (r = share_stream(b, e)) < 0)
                natsOptions_Destroy(opts);
        b->has_domain = !r && *b->settings.c.domain;
        if (!r && keep_prefix(b) < 0) {
                natsOptions_Destroy(opts);
                r = om_error_set_errno(e, ENOMEM, "NATS");
        }
        if (!r) {
                char where[400];

                snprintf(b->state_stream, sizeof b->state_stream, "%s-state", b->settings.c.prefix);
                snprintf(b->note_subject, sizeof b->note_subject, "%s.note", b->settings.c.prefix);
                nats_settings_where(url, where, sizeof where);
                om_error_set(&b->reason, OM_UNAVAILABLE, "NATS at %s: connecting", where);
                r = nats_leases_open(b, where, e);
                if (r < 0)
                        natsOptions_Destroy(opts);
                else
                        r = nats_link_new(host, &b->settings.c, url, opts, b->note_subject, &link_events, b, &b->link, e);
        }
        if (r < 0) {
                bus_free(b);
                return r;
        }
        *ret = b;
        return 0;
}

static void is_closed(struct om_post *post) {
        struct om_bus *b = CONTAINER(post, struct om_bus, closed_post);

        b->close_op->done(b->close_op, 0, NULL);
}

static int bus_close(struct om_bus *b, struct om_op *op, struct om_error *e) {
        op->cancel = NULL;
        b->close_op = op;
        b->closing = true;
        b->closed_post.fn = is_closed;
        event_del(b->sweep_timer);
        event_del(b->beat_timer);
        event_del(b->confirm_timer);
        event_del(b->retry_timer);
        nats_subs_down(b);
        nats_publications_down(b);
        nats_link_close(b->link, &b->closed_post);
        return 0;
}

static void bus_destroy(struct om_bus *b) {
        while (b->subs)
                nats_bus_unsubscribe(b->subs);
        while (b->sources)
                nats_source_free(b->sources);
        nats_topics_free(b);
        bus_free(b);
}

/* -- the contract -------------------------------------------------------------------------------------------------- */

/* What completes at once within these completes by a post. */
#define ENTRY(name, type)                                                                         \
        static int enter_##name(struct om_bus *b, struct om_bus_##type *op, struct om_error *e) { \
                int r;                                                                            \
                                                                                                  \
                b->jobs.in_call = true;                                                           \
                r = nats_bus_##name(b, op, e);                                                    \
                b->jobs.in_call = false;                                                          \
                return r;                                                                         \
        }
ENTRY(publish, publish)
ENTRY(subscribe, subscribe)
ENTRY(settle, settle)
ENTRY(query, query)
ENTRY(change, change)

static const char *const schemes[] = { "nats", "tls", NULL };
OM_MODULE const struct om_bus_ops om_nats_bus_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "nats",
        .schemes = schemes,
        .doc = "NATS JetStream: a stream a topic, or one for all, a durable pull consumer a group; clusters, domains.",
        .capabilities = OM_BUS_PATTERNS | OM_BUS_DEDUPE | OM_BUS_EXACTLY_ONCE | OM_BUS_REPLAY,
        .options = options,
        .lease_ms = 1500,
        .open = bus_open,
        .publish = enter_publish,
        .subscribe = enter_subscribe,
        .unsubscribe = nats_bus_unsubscribe,
        .want = nats_bus_want,
        .settle = enter_settle,
        .extend = nats_bus_extend,
        .query = enter_query,
        .change = enter_change,
        .close = bus_close,
        .destroy = bus_destroy,
};
