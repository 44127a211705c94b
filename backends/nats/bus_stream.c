/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams, made when first needed: a topic's own, the one that topics share, a group's dead letters.
 *
 * Always true:
 *   - a stream is THERE when the server has said so since the connection was made; a publish that nobody answers makes it UNKNOWN again;
 *   - one that is there with other settings stays as it is. The shared one has a name that somebody chose: it is used only if it takes our
 * subjects and drops nothing by itself.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { CONSUMERS_MAX = 1000000 /* the topics' stream has more than the thousand that a server gives one that does not say */ };

/* -- what is needed -------------------------------------------------------------------------------------------------- */

bool nats_needed_ask(struct needed *n, struct stream_wait *w) {
        if (n->state == NEEDED_THERE) {
                w->fn(w, 0, NULL);
                return false;
        }
        w->next = NULL;
        LL_APPEND(n->waits, w);
        if (n->state == NEEDED_MAKING)
                return false;
        n->state = NEEDED_MAKING;
        n->again = false;
        return true;
}

void nats_needed_made(struct needed *n, int status, const struct om_error *e) {
        struct stream_wait *w = n->waits, *next;

        n->state = status < 0 || n->again ? NEEDED_UNKNOWN : NEEDED_THERE;
        for (n->waits = NULL; w; w = next) {
                next = w->next;
                w->fn(w, status, e);
        }
}

void nats_needed_forget(struct needed *n) {
        if (n->state == NEEDED_THERE)
                n->state = NEEDED_UNKNOWN;
        n->again = true;
}

/* -- streams ------------------------------------------------------------------------------------------------------- */

struct stream *nats_stream_new(struct om_bus *b, enum stream_kind kind, const char *name, const char *subject, const char *topic) {
        struct stream *s = calloc(1, sizeof *s);

        if (!s || !(s->subject = strdup(subject))) {
                free(s);
                return NULL;
        }
        s->bus = b;
        s->kind = kind;
        s->topic = topic;
        snprintf(s->name, sizeof s->name, "%s", name);
        return s;
}

void nats_stream_free(struct stream *s) {
        if (!s)
                return;
        free(s->subject);
        free(s);
}

struct stream *nats_dead_get(struct om_bus *b, const struct topic *of, const char *na) {
        char name[STREAM_NAME_MAX], subject[SUBJECT_MAX];
        struct stream *s = NULL;

        nats_group_stream(name, sizeof name, b, 'd', of->nt, na);
        HASH_FIND_STR(b->deads, name, s);
        if (s)
                return s;
        snprintf(subject, sizeof subject, "%s.d.%s.%s.*", b->settings.c.prefix, of->nt, na);
        s = nats_stream_new(b, STREAM_GROUP, name, subject, of->name);
        if (!s)
                return NULL;
        HASH_ADD_STR(b->deads, name, s);
        if (!s->hh.tbl) {
                nats_stream_free(s);
                return NULL;
        }
        return s;
}

void nats_put_stream_config(
        struct om_buf *body, const struct om_bus *b, const char *name, const char *subject, const char *topic, enum stream_kind kind) {
        const struct bus_settings *s = &b->settings;
        bool log = kind == STREAM_LOG || kind == STREAM_SHARED;

        om_buf_lit(body, "{\"name\":");
        om_buf_json_span(body, om_span_of(name));
        om_buf_lit(body, ",\"subjects\":[");
        om_buf_json_span(body, om_span_of(subject));
        om_buf_printf(body,
                "],\"retention\":\"limits\",\"discard\":\"new\",\"storage\":\"%s\",\"num_replicas\":%lld,\"max_consumers\":%d,\"max_age\":%"
                "lld,"
                "\"allow_direct\":true,\"duplicate_window\":%lld000000,\"max_msgs\":%lld,\"max_bytes\":%lld,\"max_msg_size\":-1",
                nats_storages[s->c.storage], (long long) s->c.replicas, kind == STREAM_SHARED && !b->account_counts ? CONSUMERS_MAX : -1,
                kind == STREAM_KEYS ? (long long) s->idempotency_window_ms * 1000000 : 0LL,
                log || s->dedupe_window_ms < 1000 ? (long long) s->dedupe_window_ms : 1000LL,
                kind == STREAM_LOG && s->max_topic_tasks ? (long long) s->max_topic_tasks : -1LL,
                log && s->max_topic_bytes ? (long long) s->max_topic_bytes : -1LL);
        if (kind == STREAM_STATE || kind == STREAM_KEYS) /* the last word on each subject */
                om_buf_lit(body, ",\"max_msgs_per_subject\":1");
        if (kind == STREAM_SHARED && s->max_topic_tasks)
                om_buf_printf(body, ",\"max_msgs_per_subject\":%lld,\"discard_new_per_subject\":true", (long long) s->max_topic_tasks);
        om_buf_lit(body, ",\"metadata\":{\"omni_prefix\":");
        om_buf_json_span(body, om_span_of(s->c.prefix));
        if (topic) {
                om_buf_lit(body, ",\"omni_topic\":");
                om_buf_json_span(body, om_span_of(topic));
        }
        om_buf_lit(body, "}}");
}

/* -- one that is there already --------------------------------------------------------------------------------------- */

static bool takes(struct om_span config, const char *subject) {
        struct om_arena arena = { 0 };
        struct om_span value;
        struct nats_walk w;
        bool ok = false;

        nats_walk_init(&w, nats_json_get(config, "subjects"));
        while (!ok && nats_walk_next(&w, &value, NULL))
                ok = nats_subject_covers(nats_json_text(value, "", &arena), om_span_of(subject));
        om_arena_deinit(&arena);
        return ok;
}

static bool keeps(struct om_span config) {
        uint64_t per_subject = nats_json_u64(config, "max_msgs_per_subject"); /* -1 and nothing read as 0 */

        return om_span_is(nats_json_get(config, "retention"), "\"limits\"") && om_span_is(nats_json_get(config, "discard"), "\"new\"") &&
                !nats_json_u64(config, "max_age") && (!per_subject || nats_json_true(config, "discard_new_per_subject"));
}

/* Whether the topics' stream, as it is there, can be what stream= says. */
static int check(const struct stream *s, struct om_span info, struct om_error *e) {
        struct om_span config = nats_json_get(info, "config");

        if (!takes(config, s->subject))
                return om_error_set(e, OM_INVALID,
                        "NATS: stream=%s: this stream is there already and does not take %s: choose another stream or prefix in the URL, "
                        "or "
                        "give the stream this subject",
                        s->name, s->subject);
        if (!keeps(config) || !nats_json_true(config, "allow_direct"))
                return om_error_set(e, OM_INVALID,
                        "NATS: stream=%s: this stream is there already and has settings that would lose tasks: it needs retention limits, "
                        "discard new (per subject too, with max_msgs_per_subject), no max_age, and allow_direct",
                        s->name);
        return 0;
}

/* -- making ---------------------------------------------------------------------------------------------------------- */

static void over(struct stream *s, int status, const struct om_error *e) {
        nats_needed_made(&s->needed, status, e);
        s->fresh = false;
}

/* What others know of topics was of the stream before. */
static void is_shared(struct stream *s, struct om_span info) {
        struct om_arena arena = { 0 };
        struct om_bus *b = s->bus;

        snprintf(s->life, sizeof s->life, "%.*s", OM_PRI(nats_json_text(info, "created", &arena)));
        om_arena_deinit(&arena);
        if (s->fresh)
                nats_tell(b, "forget");
        over(s, 0, NULL);
}

static void inspected(struct nats_request *r, const struct nats_reply *reply) {
        struct stream *s = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "looking at the topics' stream", &e);

        if (status == 0)
                status = check(s, reply->data, &e);
        if (status == 0)
                is_shared(s, reply->data);
        else
                over(s, status, &e);
}

static void failed(struct stream *s, int r) {
        struct om_error e;

        nats_unsent(r, &e);
        over(s, r, &e);
}

static void create(struct stream *s);

static void made(struct nats_request *r, const struct nats_reply *reply) {
        static const char *const what[] = { [STREAM_LOG] = "making the stream of a topic",
                [STREAM_SHARED] = "making the topics' stream",
                [STREAM_GROUP] = "making the stream of a group's dead letters" };
        struct stream *s = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, what[s->kind], &e);
        bool other = status < 0 && nats_error_code(reply->data) == NATS_ERR_STREAM_EXISTS;

        s->fresh = status == 0 && nats_json_true(reply->data, "did_create");
        if (s->kind == STREAM_SHARED && !s->bus->account_counts && nats_error_code(reply->data) == NATS_ERR_CONSUMERS_LIMIT) {
                s->bus->account_counts = true; /* a stream may not ask for more than its account has */
                create(s);
                return;
        }
        if (other && s->kind == STREAM_SHARED) {
                status = nats_call(s->bus->link, &s->make, inspected, s, OM_SPAN_NONE, "STREAM.INFO.%s", s->name);
                if (status < 0)
                        failed(s, status);
        } else if (status == 0 && s->kind == STREAM_SHARED)
                is_shared(s, reply->data);
        else /* made with other settings: they stay as they are */
                over(s, other ? 0 : status, &e);
}

static void create(struct stream *s) {
        struct om_buf body = OM_BUF_INIT;
        int r;

        nats_put_stream_config(&body, s->bus, s->name, s->subject, s->topic, s->kind);
        r = nats_call(s->bus->link, &s->make, made, s, om_buf_span(&body), "STREAM.CREATE.%s", s->name);
        om_buf_deinit(&body);
        if (r < 0)
                failed(s, r);
}

void nats_stream_need(struct stream *s, struct stream_wait *w) {
        if (nats_needed_ask(&s->needed, w))
                create(s);
}
