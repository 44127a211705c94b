/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The storage on NATS as the core sees it: `nats+kv://HOST/BUCKET`, or `tls+kv://…` (store_state.h has the layout). How it keeps the
 * promises of store.h:
 *
 *   S1  a write completes with the PubAck; what that is worth is said as the bus says it (bus.c).  S2  what expires says when in its
 * envelope, to the millisecond, and is not read after it; the server drops it by its Nats-TTL soon after, for which it must be 2.11 or
 * newer. S3  put_if_absent publishes on the condition that its subject has no message, or no other than the expired one.  S4  store_list.c.
 *   S5  a message that is not there is the server's error 10037, and nothing else is taken for it.
 *
 * Connected, the four streams are made, or found as they must be, one after the other; then it is READY.
 *
 * Loop thread.
 */
#include "store_state.h"

enum { OPS_MAX = 2048, VALUE_BYTES_MAX = 64 << 20 };

int nats_store_admit(struct om_store *s, size_t bytes, struct om_error *e) {
        if (s->state == OM_STORE_READY && nats_link_is_up(s->link))
                return om_job_admit(&s->jobs, OPS_MAX, VALUE_BYTES_MAX, bytes, "NATS", e);
        *e = s->why;
        return om_error_set(e, OM_UNAVAILABLE, "%s", s->why.message);
}

void nats_store_begin(struct om_store *s, struct job *j, struct om_op *op, size_t bytes, void (*free_it)(struct om_job *)) {
        j->store = s;
        om_job_begin(&s->jobs, &j->base, op, bytes, free_it);
}

void nats_stream_name(char *out, size_t size, const struct om_store *s, enum store_stream stream) {
        static const char *const suffixes[] = {
                [IN_MAIN] = "", [IN_RESULTS] = "_results", [IN_METRICS] = "_metrics", [IN_PARTS] = "_parts"
        };

        snprintf(out, size, "KV_%s%s", s->bucket, suffixes[stream]);
}

/* -- streams ----------------------------------------------------------------------------------------------------------- */

enum { HISTORY_MAX = 64 }; /* of a bucket; there is one message of each key, as store_put.c says */

static void put_config(struct om_buf *b, const struct om_store *s, enum store_stream stream) {
        const struct store_settings *c = &s->settings;
        char name[BUCKET_MAX + 16];

        nats_stream_name(name, sizeof name, s, stream);
        om_buf_printf(b, "{\"name\":\"%s\",\"subjects\":[\"$KV.%s.>\"],\"retention\":\"limits\",\"discard\":\"%s\",\"storage\":\"%s\"",
                name, name + strlen("KV_"), stream == IN_METRICS ? "old" : "new", nats_storages[c->c.storage]);
        om_buf_printf(b, ",\"num_replicas\":%lld,\"max_consumers\":-1,\"max_age\":0,\"duplicate_window\":100000000,\"max_msg_size\":-1",
                (long long) c->c.replicas);
        om_buf_printf(b, ",\"max_msgs\":%lld,\"max_bytes\":%lld,\"max_msgs_per_subject\":%d",
                stream == IN_METRICS ? (long long) c->max_metrics : -1LL,
                stream != IN_METRICS && c->max_bytes ? (long long) c->max_bytes : -1LL, stream == IN_METRICS ? -1 : HISTORY_MAX);
        om_buf_lit(b, ",\"allow_direct\":true,\"allow_rollup_hdrs\":true,\"allow_msg_ttl\":true}");
}

static void useless(struct om_store *s, const struct om_error *e) { nats_link_fail(s->link, e); }

static void make(struct om_store *s);

static void note_version(struct om_store *s, struct om_span metadata) {
        struct om_arena arena = { 0 };
        struct om_span value, text;
        struct om_json_value key;
        struct nats_walk w;

        nats_walk_init(&w, metadata);
        while (w.object && nats_walk_next(&w, &value, &key))
                if (om_json_string_is(key, "_nats.ver") && value.len > 2) {
                        text = om_json_string((struct om_json_value){ OM_JSON_STRING, false, value }, &arena);
                        snprintf(s->version, sizeof s->version, "%.*s", OM_PRI(text));
                }
        om_arena_deinit(&arena);
}

static void one_is_there(struct om_store *s, const struct nats_reply *reply) {
        char name[BUCKET_MAX + 16];
        struct om_error e;

        nats_stream_name(name, sizeof name, s, (enum store_stream) s->making);
        if (!nats_json_true(reply->data, "config.allow_msg_ttl")) {
                om_error_set(&e, OM_UNSUPPORTED,
                        "NATS: the stream %s has no allow_msg_ttl: the server must be 2.11 or newer, and a bucket that somebody else has "
                        "made needs "
                        "it; name another bucket in the URL, or edit the stream",
                        name);
                useless(s, &e);
                return;
        }
        if (s->making != IN_METRICS && nats_json_u64(reply->data, "config.max_msgs_per_subject") == 1)
                om_host_log(s->host, OM_LOG_WARNING,
                        "storage nats: the stream %s has a history of 1: should the server be killed, what was written twice and deleted "
                        "since may come back; give it one of %d (max_msgs_per_subject)",
                        name, HISTORY_MAX);
        note_version(s, nats_json_get(reply->data, "config.metadata"));
        s->clustered = nats_json_get(reply->data, "cluster.leader").p != NULL;
        if (s->clustered || s->has_domain)
                nats_link_clustered(s->link);
        if (s->making == IN_PARTS)
                s->has_parts |= nats_json_u64(reply->data, "state.messages") > 0;
        s->making++;
        make(s);
}

static void looked(struct nats_request *r, const struct nats_reply *reply) {
        struct om_store *s = r->ctx;
        struct om_error e = OM_ERROR_INIT;

        if (nats_error(reply, "looking at a stream of the bucket", &e) < 0)
                useless(s, &e);
        else
                one_is_there(s, reply);
}

static void made(struct nats_request *r, const struct nats_reply *reply) {
        struct om_store *s = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        char name[BUCKET_MAX + 16];

        if (nats_error(reply, "making a stream of the bucket", &e) == 0) {
                one_is_there(s, reply);
                return;
        }
        if (nats_error_code(reply->data) != NATS_ERR_STREAM_EXISTS) {
                useless(s, &e);
                return;
        }
        nats_stream_name(name, sizeof name, s, (enum store_stream) s->making);
        if (nats_call(s->link, &s->hello, looked, s, OM_SPAN_NONE, "STREAM.INFO.%s", name) == -ENOMEM) {
                om_error_set_errno(&e, ENOMEM, "NATS");
                useless(s, &e);
        }
}

static void make(struct om_store *s) {
        struct om_buf body = OM_BUF_INIT;
        struct om_error e;
        char name[BUCKET_MAX + 16];

        if (s->making == N_STREAMS) {
                s->state = OM_STORE_READY;
                nats_link_works(s->link);
                s->events->state(s->core, OM_STORE_READY, NULL);
                return;
        }
        nats_stream_name(name, sizeof name, s, (enum store_stream) s->making);
        put_config(&body, s, (enum store_stream) s->making);
        if (!om_buf_ok(&body) || nats_call(s->link, &s->hello, made, s, om_buf_span(&body), "STREAM.CREATE.%s", name) == -ENOMEM) {
                om_error_set_errno(&e, ENOMEM, "NATS");
                useless(s, &e);
        }
        om_buf_deinit(&body);
}

/* -- states ------------------------------------------------------------------------------------------------------------ */

static void greeted(struct nats_request *r, const struct nats_reply *reply) {
        struct om_store *s = r->ctx;
        struct om_error e = OM_ERROR_INIT;

        s->making = 0;
        if (nats_error(reply, "asking for JetStream", &e) < 0)
                useless(s, &e);
        else
                make(s);
}

static void on_up(void *ctx) {
        struct om_store *s = ctx;
        struct om_error e;

        if (nats_call(s->link, &s->hello, greeted, s, OM_SPAN_NONE, "INFO") == -ENOMEM) {
                om_error_set_errno(&e, ENOMEM, "NATS");
                useless(s, &e);
        }
}

static void on_down(void *ctx, const struct om_error *e) {
        struct om_store *s = ctx;
        enum om_store_state state = e->kind == OM_UNAVAILABLE ? OM_STORE_CONNECTING : OM_STORE_FAILED; /* else waiting will not help */
        bool same = s->state == state && strcmp(s->why.message, e->message) == 0;

        s->state = state;
        s->why = *e;
        if (!same && !s->closing)
                s->events->state(s->core, state, e);
}

static void on_message(void *ctx, natsMsg *msg) { natsMsg_Destroy(msg); }
static void on_turn(void *ctx) {}
static void on_note(void *ctx, natsMsg *msg) {}

static const struct nats_link_events link_events = { on_up, on_down, on_message, on_turn, on_note };

/* -- health ------------------------------------------------------------------------------------------------------------ */

enum { ASK_AGENTS, ASK_RESULTS, ASK_METRICS, N_QUESTIONS };
struct health {
        struct job job; /* first */
        struct om_store_health *op;
        struct nats_request req[N_QUESTIONS];
        uint64_t n[N_QUESTIONS], bytes;
        unsigned open;
        int status;
        struct om_error error;
};

static void health_free(struct om_job *j) { free(j); }

static void health_over(struct health *h) {
        const struct om_store *s = h->job.store;
        const struct store_settings *c = &s->settings;
        const char *why = nats_settings_weak(&c->c);
        struct om_buf b = OM_BUF_INIT;

        if (--h->open)
                return;
        if (h->status < 0 || om_job_is_cancelled(&h->job.base)) {
                om_job_over(&h->job.base, h->status, &h->error);
                return;
        }
        om_buf_printf(&b, "{\"version\":\"%s\",\"durability\":\"%s\"", s->version, why ? "weak" : "strong");
        if (why) {
                om_buf_lit(&b, ",\"why\":");
                om_buf_json_span(&b, om_span_of(why));
        }
        om_buf_lit(&b, ",\"servers\":");
        om_buf_json_span(&b, om_span_of(nats_link_where(s->link)));
        om_buf_printf(&b,
                ",\"bucket\":\"%s\",\"cluster\":%s,\"replicas\":%lld,\"storage\":\"%s\",\"agents\":%llu,\"results\":%llu,\"metrics\":%llu,"
                "\"stored_bytes\":%llu}",
                s->bucket, s->clustered ? "true" : "false", (long long) c->c.replicas, nats_storages[c->c.storage],
                (unsigned long long) h->n[ASK_AGENTS], (unsigned long long) h->n[ASK_RESULTS], (unsigned long long) h->n[ASK_METRICS],
                (unsigned long long) h->bytes);
        h->op->info = om_buf_ok(&b) ? om_arena_copy(&h->op->arena, om_buf_span(&b)) : OM_SPAN_NONE;
        om_buf_deinit(&b);
        if (!h->op->info.p)
                h->status = om_error_set_errno(&h->error, ENOMEM, "NATS");
        om_job_over(&h->job.base, h->status, &h->error);
}

static void health_told(struct nats_request *r, const struct nats_reply *reply) {
        struct health *h = r->ctx;
        struct om_error e;
        size_t i = (size_t) (r - h->req);
        int status = nats_error(reply, "asking for health", &e);

        if (status < 0 && h->status == 0) {
                h->status = status;
                h->error = e;
        }
        if (status == 0) {
                h->n[i] = nats_json_u64(reply->data, i == ASK_AGENTS ? "total" : "state.messages");
                h->bytes += nats_json_u64(reply->data, "state.bytes");
        }
        health_over(h);
}

static int store_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        static const enum store_stream streams[] = { [ASK_AGENTS] = IN_MAIN, [ASK_RESULTS] = IN_RESULTS, [ASK_METRICS] = IN_METRICS };
        int r = nats_store_admit(s, 1024, e);
        struct health *h = r == 0 ? calloc(1, sizeof *h) : NULL;

        if (r < 0)
                return r;
        if (!h)
                return om_error_set_errno(e, ENOMEM, "NATS");
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        h->op = op;
        h->open = N_QUESTIONS + 1;
        nats_store_begin(s, &h->job, &op->op, 1024, health_free);
        for (size_t i = 0; i < N_QUESTIONS; i++) {
                char name[BUCKET_MAX + 16], body[BUCKET_MAX + 80] = "";

                nats_stream_name(name, sizeof name, s, streams[i]);
                if (i == ASK_AGENTS) /* as many as there are, and no names of them */
                        snprintf(body, sizeof body, "{\"subjects_filter\":\"$KV.%s.a.>\",\"offset\":%d}", s->bucket, INT32_MAX);
                r = nats_call(s->link, &h->req[i], health_told, h, om_span_of(body), "STREAM.INFO.%s", name);
                if (r < 0) {
                        h->status = om_error_set(&h->error, OM_UNAVAILABLE, "NATS: not connected");
                        health_over(h);
                }
        }
        health_over(h);
        return 0;
}

/* -- opening and closing ------------------------------------------------------------------------------------------------ */

static const struct om_option options[] = {
        NATS_OPTIONS(struct store_settings),
        { "max_metrics", OM_OPTION_INT, offsetof(struct store_settings, max_metrics), "100000", NULL, 1, 1000000000,
                "How many metrics are kept; the oldest go. For buckets that are made from now on." },
        { "max_bytes", OM_OPTION_BYTES, offsetof(struct store_settings, max_bytes), "0", NULL, 0, 0,
                "Bytes that each stream of the bucket may hold; above it writes are refused. 0: no limit. Likewise." },
        { .name = NULL },
};

/* The URL's path, or the prefix. */
static int read_bucket(struct om_store *s, const struct om_url *url, struct om_error *e) {
        const char *name = strlen(url->path) > 1 ? url->path + 1 : s->settings.c.prefix;
        size_t len = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");

        if (name[len] || !len || len > BUCKET_MAX)
                return om_error_set(
                        e, OM_INVALID, "NATS: bucket %.60s: letters, digits, \"-\" and \"_\" are expected, at most %d", name, BUCKET_MAX);
        snprintf(s->bucket, sizeof s->bucket, "%s", name);
        return 0;
}

static int store_open(struct om_host *host, struct om_url *url, const struct om_store_events *events, void *core, struct om_store **ret,
        struct om_error *e) {
        struct om_store *s = calloc(1, sizeof *s);
        natsOptions *opts = NULL;
        char where[400];
        int r;

        if (!s)
                return om_error_set_errno(e, ENOMEM, "NATS");
        s->host = host;
        s->events = events;
        s->core = core;
        s->jobs = (struct om_jobs){ .host = host };
        s->state = OM_STORE_CONNECTING;
        nats_settings_where(url, where, sizeof where);
        om_error_set(&s->why, OM_UNAVAILABLE, "NATS at %s: connecting", where);
        r = om_options_read(options, url, &s->settings, e);
        if (r == 0)
                r = read_bucket(s, url, e);
        s->has_domain = r == 0 && *s->settings.c.domain;
        if (r == 0)
                r = nats_settings_apply(&s->settings.c, url, &opts, e);
        if (r == 0)
                r = nats_link_new(host, &s->settings.c, url, opts, NULL, &link_events, s, &s->link, e);
        if (r < 0) {
                free(s);
                return r;
        }
        *ret = s;
        return 0;
}

static void is_closed(struct om_post *post) {
        struct om_store *s = CONTAINER(post, struct om_store, closed_post);

        s->close_op->done(s->close_op, 0, NULL);
}

static int store_close(struct om_store *s, struct om_op *op, struct om_error *e) {
        op->cancel = NULL;
        s->close_op = op;
        s->closing = true;
        s->state = OM_STORE_CONNECTING;
        om_error_set(&s->why, OM_UNAVAILABLE, "the storage is closing");
        s->closed_post.fn = is_closed;
        s->jobs.in_call = true;
        nats_link_close(s->link, &s->closed_post);
        s->jobs.in_call = false;
        return 0;
}

static void store_destroy(struct om_store *s) {
        for (size_t i = 0; i < sizeof s->times / sizeof s->times[0]; i++)
                free(s->times[i].windows);
        free(s);
}

/* -- the contract ------------------------------------------------------------------------------------------------------ */

/* What completes at once within these completes by a post. */
#define ENTRY(name, type, function)                                                                   \
        static int enter_##name(struct om_store *s, struct om_store_##type *op, struct om_error *e) { \
                int r;                                                                                \
                                                                                                      \
                s->jobs.in_call = true;                                                               \
                r = function(s, op, e);                                                               \
                s->jobs.in_call = false;                                                              \
                return r;                                                                             \
        }
ENTRY(put, put, nats_store_put)
ENTRY(get, get, nats_store_get)
ENTRY(list, list, nats_store_list)
ENTRY(remove, delete, nats_store_remove)
ENTRY(put_if_absent, put_if_absent, nats_store_put_if_absent)
ENTRY(health, health, store_health)

static const char *const schemes[] = { "nats+kv", "tls+kv", NULL };
OM_MODULE const struct om_store_ops om_nats_store_ops = {
        .abi = OM_BACKEND_ABI,
        .name = "nats",
        .schemes = schemes,
        .doc = "NATS JetStream key-value buckets; clusters, domains.",
        .capabilities = OM_STORE_TTL | OM_STORE_SHARED,
        .options = options,
        .open = store_open,
        .put = enter_put,
        .get = enter_get,
        .list = enter_list,
        .remove = enter_remove,
        .put_if_absent = enter_put_if_absent,
        .health = enter_health,
        .close = store_close,
        .destroy = store_destroy,
};
