/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages on their way to the core: whose they are, which attempt they are, and the record that they become.
 *
 * Always true:
 *   - a message that came is a delivery, in the list of the sub that serves its source, until its verdict is on the server; one that nobody
 *     serves or wants goes back at once, uncounted;
 *   - one that was delivered before waits for what the state stream says of it: how many deliveries do not count;
 *   - the core gets what one turn of the loop brought as one array a group.
 *
 * Loop thread.
 */
#include <ctype.h>

#include "bus_state.h"

/* -- records -------------------------------------------------------------------------------------------------------- */

static bool is_record(struct om_span data, const char *topic) {
        struct om_task task;
        bool ok;

        if (data.len < 8 || memcmp(data.p, "{\"id\":\"", 7) != 0 || om_json_check(data, 64, NULL) < 0)
                return false;
        if (om_task_parse(data, "task", &task, NULL) < 0)
                return false;
        ok = task.id.p && (!topic || om_span_is(task.topic, topic));
        om_task_deinit(&task);
        return ok;
}

static void put_header_text(struct om_buf *b, natsMsg *msg, const char *header, const char *member) {
        const char *value = NULL;

        if (natsMsgHeader_Get(msg, header, &value) != NATS_OK || !value || !*value || strlen(value) > OM_NAME_MAX)
                return;
        om_buf_printf(b, ",\"%s\":", member);
        om_buf_json_span(b, om_span_of(value));
}

static void put_foreign_headers(struct om_buf *b, natsMsg *msg) {
        const char **keys = NULL, *value;
        int n = 0, written = 0;

        if (natsMsgHeader_Keys(msg, &keys, &n) != NATS_OK)
                return;
        for (int i = 0; i < n; i++) {
                if (strncasecmp(keys[i], "nats-", 5) == 0 || strcasecmp(keys[i], "traceparent") == 0 ||
                        natsMsgHeader_Get(msg, keys[i], &value) != NATS_OK || !value)
                        continue;
                om_buf_puts(b, written++ ? "," : ",\"headers\":{");
                om_buf_json_span(b, om_span_of(keys[i]));
                om_buf_putc(b, ':');
                om_buf_json_span(b, om_span_of(value));
        }
        if (written)
                om_buf_putc(b, '}');
        free((void *) keys);
}

/* Another program's message: JSON is the content, and what is no JSON is a string. Its id is its own, or follows from its place. */
static struct om_span made_record(natsMsg *msg, struct om_span data, const struct topic *t, const char *stream, uint64_t seq,
        int64_t time_ns, struct om_arena *arena) {
        const char *id = NULL;
        struct om_buf b = OM_BUF_INIT;
        struct om_span copy = OM_SPAN_NONE;

        om_buf_lit(&b, "{\"id\":");
        if ((natsMsgHeader_Get(msg, "Nats-Msg-Id", &id) == NATS_OK || natsMsgHeader_Get(msg, "ce-id", &id) == NATS_OK) && id && *id &&
                strlen(id) <= OM_NAME_MAX)
                om_buf_json_span(&b, om_span_of(t ? nats_bare_id(t, id) : id));
        else
                om_buf_printf(&b, "\"%.170s:%llu\"", stream, (unsigned long long) seq);
        om_buf_lit(&b, ",\"topic\":");
        om_buf_json_span(&b, om_span_of(t ? t->name : stream));
        om_buf_lit(&b, ",\"payload\":{\"content\":");
        if (data.len && om_json_check(data, 60, NULL) == 0)
                om_buf_put_span(&b, data);
        else
                om_buf_json_span(&b, data);
        om_buf_lit(&b, "},\"created_at\":");
        om_buf_json_time(&b, time_ns ? time_ns / 1000000 : om_now_ms());
        put_header_text(&b, msg, "ce-source", "source");
        put_header_text(&b, msg, "traceparent", "traceparent");
        put_foreign_headers(&b, msg);
        om_buf_putc(&b, '}');
        if (om_buf_ok(&b))
                copy = om_arena_copy(arena, om_buf_span(&b));
        om_buf_deinit(&b);
        return copy;
}

struct om_span nats_message_record(natsMsg *msg, const struct topic *t, const char *stream, uint64_t seq, struct om_arena *arena) {
        struct om_span data = { natsMsg_GetData(msg), (size_t) natsMsg_GetDataLength(msg) };
        struct nats_ack ack = { .time_ns = 0 };

        if (is_record(data, t ? t->name : NULL))
                return data;
        if (natsMsg_GetReply(msg))
                nats_ack_parse(om_span_of(natsMsg_GetReply(msg)), &ack);
        return made_record(msg, data, t, stream, seq, ack.time_ns, arena);
}

/* -- deliveries ------------------------------------------------------------------------------------------------------ */

void nats_delivery_free(struct delivery *d) {
        if (d->sub)
                DL_DELETE(d->sub->out, d);
        d->sub = NULL;
        d->over = true;
        nats_lease_forget(d);
        if (d->settling)
                return;
        natsMsg_Destroy(d->msg);
        om_arena_deinit(&d->arena);
        free(d->names);
        free(d);
}

static void give(struct delivery *d) {
        struct om_bus_sub *s = d->sub;

        if (!s) {
                nats_release_delivery(d);
                return;
        }
        if (s->n_fresh == s->cap_fresh) {
                size_t cap = s->cap_fresh ? s->cap_fresh * 2 : 16;
                struct om_delivery **fresh = reallocarray(s->fresh, cap, sizeof(struct om_delivery *));

                if (!fresh) {
                        nats_release_delivery(d);
                        return;
                }
                s->fresh = fresh;
                s->cap_fresh = cap;
        }
        s->fresh[s->n_fresh++] = &d->delivery;
}

void nats_turn_over(void *ctx) {
        struct om_bus *b = ctx;

        for (struct om_bus_sub *s = b->subs, *next; s; s = next) {
                size_t n = s->n_fresh;

                next = s->next;
                if (!n)
                        continue;
                for (size_t i = 0; i < n; i++)
                        ((struct delivery *) s->fresh[i])->given = true;
                s->n_fresh = 0;
                b->events->deliver(s->core, s->fresh, n);
        }
}

static void looked(struct delivery *d) {
        if (--d->n_look)
                return;
        if (d->look_failed) { /* nobody knows; it comes again when AckWait is over */
                if (d->sub)
                        d->sub->want++;
                nats_delivery_free(d);
                return;
        }
        d->delivery.attempt = d->delivered > d->uncounted ? d->delivered - d->uncounted : 1;
        give(d);
}

static void count_known(struct nats_request *r, const struct nats_reply *reply) {
        struct delivery *d = r->ctx;
        bool rel = r == &d->look[0];

        if (reply->status == 0 && reply->code == 0 && reply->data.len && reply->data.len < 12) {
                uint32_t n = 0;

                for (size_t i = 0; i < reply->data.len && isdigit((unsigned char) reply->data.p[i]); i++)
                        n = n * 10 + (uint32_t) (reply->data.p[i] - '0');
                if (n > d->uncounted)
                        d->uncounted = n;
                *(rel ? &d->has_rel : &d->has_off) = true;
        }
        d->look_failed |= reply->status == -EAGAIN;
        looked(d);
}

static void ask_count(struct delivery *d) {
        static const char *const kinds[] = { "rel", "off" };
        char place[SUBJECT_MAX];

        nats_put_place(place, sizeof place, d);
        d->n_look = 3; /* one is ours, until both are asked */
        for (int i = 0; i < 2; i++) {
                if (nats_call(d->bus->link, &d->look[i], count_known, d, OM_SPAN_NONE, "DIRECT.GET.%s.%s.s.%s.%s", d->bus->state_stream,
                            d->bus->settings.c.prefix, kinds[i], place) < 0) {
                        d->look_failed = true;
                        d->n_look--;
                }
        }
        looked(d);
}

/* The names of the consumer and what to answer to, each zero-terminated, in one piece of memory. */
static bool keep_names(struct delivery *d, const struct nats_ack *ack) {
        const char *reply = natsMsg_GetReply(d->msg);
        size_t len = strlen(reply) + 1;
        char *p = malloc(ack->stream.len + 1 + ack->consumer.len + 1 + len);

        if (!p)
                return false;
        d->names = p;
        memcpy(p, ack->stream.p, ack->stream.len);
        p[ack->stream.len] = 0;
        d->stream = p;
        p += ack->stream.len + 1;
        memcpy(p, ack->consumer.p, ack->consumer.len);
        p[ack->consumer.len] = 0;
        d->consumer = p;
        p += ack->consumer.len + 1;
        memcpy(p, reply, len);
        d->ack = p;
        return true;
}

void nats_message_came(void *ctx, natsMsg *msg) {
        struct om_bus *b = ctx;
        struct delivery *d;
        struct source *s = NULL;
        struct nats_ack ack;
        char key[sizeof s->key];
        bool wanted;

        if (!nats_ack_parse(om_span_of(natsMsg_GetReply(msg)), &ack) || !(d = calloc(1, sizeof *d))) {
                natsMsg_Destroy(msg);
                return;
        }
        d->bus = b;
        d->msg = msg;
        d->seq = ack.stream_seq;
        d->consumer_seq = ack.consumer_seq;
        d->delivered = (uint32_t) ack.delivered;
        d->delivery.attempt = d->delivered;
        d->touched_ms = om_clock_ms();
        snprintf(key, sizeof key, "%.*s\037%.*s", OM_PRI(ack.stream), OM_PRI(ack.consumer));
        HASH_FIND_STR(b->sources, key, s);
        if (!s || !keep_names(d, &ack)) {
                nats_delivery_free(d); /* not asked for on this connection: it comes again */
                return;
        }
        s->heard_ms = d->touched_ms;
        if (!*s->life)
                nats_source_look(s);
        s->asked -= s->asked > 0;
        d->again = s->again;
        d->sub = s->sub;
        wanted = s->sub && s->sub->want > 0;
        if (s->sub) {
                d->topic = s->topic ? s->topic : s->sub->topic;
                d->delivery.sub = s->sub;
                d->delivery.record = nats_message_record(msg, s->topic ? d->topic : NULL, d->stream, d->seq, &d->arena);
                wanted &= d->delivery.record.p != NULL;
        }
        if (wanted) {
                s->sub->want--;
                DL_APPEND(s->sub->out, d);
        } else
                d->sub = NULL;
        if (d->delivered > 1)
                ask_count(d);
        else
                give(d);
        if (s->sub)
                nats_sub_pull(s->sub);
        else if (!s->asked)
                nats_source_free(s);
}

/* A lease is kept by moving its end, not by InProgress: see bus.c. */
void nats_bus_extend(struct om_bus *b, struct om_delivery *const *deliveries, size_t n) {
        int64_t now = om_clock_ms();
        char text[64];

        if (!nats_link_is_up(b->link))
                return;
        for (size_t i = 0; i < n; i++) {
                struct delivery *d = (struct delivery *) deliveries[i];
                struct om_bus_sub *s = d->sub;
                natsMsg *msg = NULL;

                /* After a verdict the time is the verdict's. */
                if (d->delivery.gone || !s || d->settling || (d->extended && now - d->touched_ms < s->lease_ms / 3))
                        continue;
                snprintf(text, sizeof text, "-NAK {\"delay\":%lld000000}", (long long) s->lease_ms);
                if (natsMsg_Create(&msg, d->ack, NULL, text, (int) strlen(text)) != NATS_OK)
                        return;
                nats_send(b->link, msg);
                d->touched_ms = now;
                d->extended = true;
                nats_lease_note(d);
        }
}
