/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Topics: their streams, made when first needed, and the sweep that drops what every group has finished.
 *
 * Always true:
 *   - a topic is THERE when the server has said so since the connection was made; a publish that nobody answers makes it UNKNOWN again;
 *   - the sweep purges below the lowest ack floor of all groups, and only where there is a group (B3, B4). With retention_ms it purges what
 * was below that floor retention_ms ago, as far as this daemon has seen: later rather than early;
 *   - its timer runs only while a topic is dirty: something was finished since it was looked at.
 *
 * Loop thread.
 */

#include "bus_state.h"

enum { SWEEP_MS = 200 };

static void text_of(char *out, size_t size, struct om_buf *b) {
        snprintf(out, size, "%.*s", (int) b->len, b->data ? b->data : "");
        om_buf_deinit(b);
}

struct topic *nats_topic_get(struct om_bus *b, struct om_span name) {
        struct om_buf nt = OM_BUF_INIT, subject = OM_BUF_INIT;
        struct topic *t = NULL;

        if (name.len == 0 || name.len > OM_TOPIC_MAX)
                return NULL;
        HASH_FIND(hh, b->topics, name.p, name.len, t);
        if (t || !(t = calloc(1, sizeof *t)))
                return t;
        nats_name_encode(&nt, name);
        om_buf_printf(&subject, "%s.t.", b->settings.c.prefix);
        nats_subject_encode(&subject, name);
        if (!om_buf_ok(&nt) || !om_buf_ok(&subject)) {
                om_buf_deinit(&nt);
                om_buf_deinit(&subject);
                free(t);
                return NULL;
        }
        t->bus = b;
        memcpy(t->name, name.p, name.len);
        text_of(t->nt, sizeof t->nt, &nt);
        text_of(t->subject, sizeof t->subject, &subject);
        snprintf(t->stream, sizeof t->stream, "%s-t-%s", b->settings.c.prefix, t->nt);
        HASH_ADD(hh, b->topics, name, name.len, t);
        if (!t->hh.tbl) {
                free(t);
                return NULL;
        }
        return t;
}

struct topic *nats_dead_get(struct om_bus *b, const struct topic *of, const char *na) {
        char stream[STREAM_NAME_MAX];
        struct topic *t = NULL;

        nats_group_stream(stream, sizeof stream, b, 'd', of->nt, na);
        HASH_FIND(hh, b->deads, stream, strlen(stream), t);
        if (t || !(t = calloc(1, sizeof *t)))
                return t;
        t->bus = b;
        t->kind = STREAM_GROUP;
        memcpy(t->name, of->name, sizeof t->name);
        memcpy(t->stream, stream, sizeof t->stream);
        snprintf(t->subject, sizeof t->subject, "%s.d.%s.%s.*", b->settings.c.prefix, of->nt, na);
        HASH_ADD(hh, b->deads, stream, strlen(stream), t);
        if (!t->hh.tbl) {
                free(t);
                return NULL;
        }
        return t;
}

void nats_topics_free(struct om_bus *b) {
        struct topic *t, *tmp;

        HASH_ITER (hh, b->deads, t, tmp) {
                HASH_DEL(b->deads, t);
                free(t);
        }

        HASH_ITER (hh, b->topics, t, tmp) {
                HASH_DEL(b->topics, t);
                free(t);
        }
}

/* -- streams ------------------------------------------------------------------------------------------------------- */

void nats_put_stream_config(
        struct om_buf *body, const struct om_bus *b, const char *name, const char *subject, const char *topic, enum stream_kind kind) {
        const struct bus_settings *s = &b->settings;
        bool log = kind == STREAM_LOG;

        om_buf_lit(body, "{\"name\":");
        om_buf_json_span(body, om_span_of(name));
        om_buf_lit(body, ",\"subjects\":[");
        om_buf_json_span(body, om_span_of(subject));
        om_buf_printf(body,
                "],\"retention\":\"limits\",\"discard\":\"new\",\"storage\":\"%s\",\"num_replicas\":%lld,\"max_consumers\":-1,\"max_age\":%"
                "lld,"
                "\"allow_direct\":true,\"duplicate_window\":%lld000000,\"max_msgs\":%lld,\"max_bytes\":%lld,\"max_msg_size\":-1",
                nats_storages[s->c.storage], (long long) s->c.replicas,
                kind == STREAM_KEYS ? (long long) s->idempotency_window_ms * 1000000 : 0LL,
                log || s->dedupe_window_ms < 1000 ? (long long) s->dedupe_window_ms : 1000LL,
                log && s->max_topic_tasks ? (long long) s->max_topic_tasks : -1LL,
                log && s->max_topic_bytes ? (long long) s->max_topic_bytes : -1LL);
        if (kind == STREAM_STATE || kind == STREAM_KEYS) /* the last word on each subject */
                om_buf_lit(body, ",\"max_msgs_per_subject\":1");
        om_buf_lit(body, ",\"metadata\":{\"omni_prefix\":");
        om_buf_json_span(body, om_span_of(s->c.prefix));
        if (topic) {
                om_buf_lit(body, ",\"omni_topic\":");
                om_buf_json_span(body, om_span_of(topic));
        }
        om_buf_lit(body, "}}");
}

static void tell(struct topic *t, int status, const struct om_error *e) {
        struct topic_wait *w = t->waits, *next;

        for (t->waits = NULL; w; w = next) {
                next = w->next;
                w->fn(w, status, e);
        }
}

static void made(struct nats_request *r, const struct nats_reply *reply) {
        struct topic *t = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(
                reply, t->kind == STREAM_LOG ? "making the stream of a topic" : "making the stream of a group's dead letters", &e);

        if (status < 0 && nats_error_code(reply->data) == NATS_ERR_STREAM_EXISTS)
                status = 0; /* made with other settings: they stay as they are */
        if (status == 0 && t->kind == STREAM_LOG && nats_json_true(reply->data, "did_create"))
                nats_patterns_join(t);
        else
                nats_topic_made(t, status, &e);
}

void nats_topic_made(struct topic *t, int status, const struct om_error *e) {
        t->state = status < 0 ? TOPIC_UNKNOWN : TOPIC_THERE;
        tell(t, status, e);
}

void nats_topic_need(struct topic *t, struct topic_wait *w) {
        struct om_buf body = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (t->state == TOPIC_THERE) {
                w->fn(w, 0, NULL);
                return;
        }
        w->next = NULL;
        LL_APPEND(t->waits, w);
        if (t->state == TOPIC_MAKING)
                return;
        t->state = TOPIC_MAKING;
        nats_put_stream_config(&body, t->bus, t->stream, t->subject, t->name, t->kind);
        r = nats_call(t->bus->link, &t->make, made, t, om_buf_span(&body), "STREAM.CREATE.%s", t->stream);
        om_buf_deinit(&body);
        if (r == 0)
                return;
        t->state = TOPIC_UNKNOWN;
        if (r == -EAGAIN)
                om_error_set(&e, OM_UNAVAILABLE, "NATS: not connected");
        else
                om_error_set_errno(&e, r, "NATS");
        tell(t, r, &e);
}

/* Another server may answer next, or one that lost its memory. */
void nats_topics_down(struct om_bus *b) {
        for (struct topic *t = b->topics; t; t = t->hh.next)
                if (t->state == TOPIC_THERE)
                        t->state = TOPIC_UNKNOWN;
        for (struct topic *t = b->deads; t; t = t->hh.next)
                if (t->state == TOPIC_THERE)
                        t->state = TOPIC_UNKNOWN;
}

/* -- sweeping ------------------------------------------------------------------------------------------------------ */

static void sweep_arm(struct om_bus *b, int64_t ms) {
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

        if (!b->closing && !event_pending(b->sweep_timer, EV_TIMEOUT, NULL))
                event_add(b->sweep_timer, &tv);
}

void nats_topic_touch(struct topic *t) {
        struct om_bus *b = t->bus;

        if (t->dirty)
                return;
        t->dirty = true;
        t->dirty_next = b->dirty;
        b->dirty = t;
        sweep_arm(b, SWEEP_MS);
}

uint64_t nats_lowest_floor(struct om_span answer, size_t *ret_n) {
        uint64_t lowest = UINT64_MAX;
        struct om_span consumer;
        struct nats_walk w;

        *ret_n = 0;
        nats_walk_init(&w, nats_json_get(answer, "consumers"));
        while (nats_walk_next(&w, &consumer, NULL)) {
                uint64_t floor = nats_json_u64(consumer, "ack_floor.stream_seq");

                /* What acknowledges nothing, a mirror's say, finishes nothing. */
                if (!om_span_is(nats_json_get(consumer, "config.ack_policy"), "\"explicit\""))
                        continue;
                lowest = floor < lowest ? floor : lowest;
                (*ret_n)++;
        }
        return lowest;
}

static void swept(struct nats_request *r, const struct nats_reply *reply) {
        struct topic *t = r->ctx;

        t->sweeping = false;
}

static void sweep_to(struct topic *t, uint64_t floor) {
        char body[64];

        snprintf(body, sizeof body, "{\"seq\":%llu}", (unsigned long long) floor + 1);
        if (nats_call(t->bus->link, &t->sweep, swept, t, om_span_of(body), "STREAM.PURGE.%s", t->stream) < 0)
                t->sweeping = false;
}

static void looked(struct nats_request *r, const struct nats_reply *reply) {
        struct topic *t = r->ctx;
        int64_t now = om_clock_ms(), keep = t->bus->settings.retention_ms;
        size_t n = 0;
        uint64_t floor = reply->status == 0 ? nats_lowest_floor(reply->data, &n) : 0;
        bool all = nats_json_u64(reply->data, "total") <= nats_json_u64(reply->data, "limit");

        if (reply->status < 0 || !n || !all || !floor) {
                t->sweeping = false;
                return;
        }
        if (keep == 0) {
                sweep_to(t, floor);
                return;
        }
        if (t->floor && t->floor_ms + keep <= now) {
                sweep_to(t, t->floor);
                t->floor = 0;
        } else
                t->sweeping = false;
        if (!t->floor && floor) {
                t->floor = floor;
                t->floor_ms = now;
        }
        nats_topic_touch(t);
}

void nats_on_sweep_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct topic *t, *list = b->dirty;
        int64_t now = om_clock_ms(), keep = b->settings.retention_ms, next = INT64_MAX;

        b->dirty = NULL;
        while ((t = list)) {
                list = t->dirty_next;
                t->dirty = false;
                if (!nats_link_is_up(b->link))
                        continue; /* when something is finished again */
                if (t->sweeping || (keep && t->floor && t->floor_ms + keep > now)) {
                        t->dirty = true;
                        t->dirty_next = b->dirty;
                        b->dirty = t;
                        next = t->sweeping ? SWEEP_MS : t->floor_ms + keep - now < next ? t->floor_ms + keep - now : next;
                        continue;
                }
                t->sweeping = true;
                if (nats_call(b->link, &t->sweep, looked, t, OM_SPAN_NONE, "CONSUMER.LIST.%s", t->stream) < 0)
                        t->sweeping = false;
        }
        if (next != INT64_MAX)
                sweep_arm(b, next < SWEEP_MS ? SWEEP_MS : next > 60000 ? 60000 : next);
}
