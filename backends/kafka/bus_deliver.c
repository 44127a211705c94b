/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of a partition on their way to the core: the records that they become, whose turn it is, and how the core hears that they went
 * to another daemon.
 *
 * Always true:
 *   - a message that was read and is not finished is a delivery in part->open, in the state that the enum says;
 *   - of the messages of one key one is out, the first; the others are held behind it;
 *   - of what the owner before had open, `pos.marks` keeps the attempts until the message itself has been read;
 *   - the core gets what one turn of the loop brought as one array a group.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { RETRIES_MAX = 10000, HELD_MAX = 4000 };

/* -- messages as records --------------------------------------------------------------------------------------------------- */

struct om_span kafka_message_header(const rd_kafka_message_t *m, const char *name) {
        rd_kafka_headers_t *headers;
        const void *value;
        size_t size;

        if (rd_kafka_message_headers(m, &headers) || rd_kafka_header_get_last(headers, name, &value, &size) || !value)
                return OM_SPAN_NONE;
        return (struct om_span){ value, size };
}

struct om_span kafka_message_record(const rd_kafka_message_t *m, const char *topic, bool any_topic, struct om_arena *arena) {
        struct om_span data = { m->payload, m->len }, id;
        struct om_record_header list[64];
        struct om_record_foreign f = { .data = data, .headers = list };
        rd_kafka_headers_t *headers = NULL;
        const char *name;
        const void *value;
        size_t size;
        char place[KAFKA_NAME_MAX + 40];

        if (data.p && om_record_is(data, any_topic ? NULL : topic))
                return data;
        snprintf(place, sizeof place, "%.140s:%d:%lld", rd_kafka_topic_name(m->rkt), (int) m->partition, (long long) m->offset);
        f.place = om_span_of(place);
        f.topic = om_span_of(topic ? topic : rd_kafka_topic_name(m->rkt));
        f.created_ms = rd_kafka_message_timestamp(m, NULL);
        id = kafka_message_header(m, "omni-id");
        f.id = id.p ? id : kafka_message_header(m, "ce_id");
        f.source = kafka_message_header(m, "ce_source");
        f.traceparent = kafka_message_header(m, "traceparent");
        if (!rd_kafka_message_headers(m, &headers))
                for (size_t i = 0; f.n_headers < 64 && !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++)
                        if (value && strcmp(name, "traceparent") != 0 && strncmp(name, "omni-", 5) != 0)
                                list[f.n_headers++] = (struct om_record_header){ om_span_of(name), { value, size } };
        return om_record_make(&f, arena);
}

static int64_t header_number(const rd_kafka_message_t *m, const char *name) {
        struct om_span s = kafka_message_header(m, name);
        char text[24];

        if (!s.p || s.len >= sizeof text)
                return 0;
        snprintf(text, sizeof text, "%.*s", OM_PRI(s));
        return atoll(text);
}

/* -- keys -------------------------------------------------------------------------------------------------------------------- */

/* Into its key's row. Whether it is the first there, and may go. */
static bool key_join(struct delivery *d) {
        struct part *p = d->part;
        struct key *k = NULL;

        if (d->which != KAFKA_AT_LOG || !d->msg->key_len)
                return true;
        HASH_FIND(hh, p->keys, d->msg->key, d->msg->key_len, k);
        if (!k) {
                k = calloc(1, sizeof *k + d->msg->key_len);
                if (!k)
                        return true;
                memcpy(k->text, d->msg->key, d->msg->key_len);
                HASH_ADD(hh, p->keys, text[0], d->msg->key_len, k);
                if (!k->hh.tbl) {
                        free(k);
                        return true;
                }
        }
        d->key = k;
        k->n++;
        if (!k->busy) {
                k->busy = d;
                return true;
        }
        DL_APPEND2(k->held, d, rprev, rnext);
        return false;
}

static void key_leave(struct delivery *d) {
        struct part *p = d->part;
        struct key *k = d->key;

        if (!k)
                return;
        d->key = NULL;
        if (k->busy != d)
                DL_DELETE2(k->held, d, rprev, rnext);
        else {
                struct delivery *next = k->held;

                k->busy = next;
                if (next) {
                        DL_DELETE2(k->held, next, rprev, rnext);
                        kafka_delivery_ready(next);
                }
        }
        if (--k->n == 0) {
                HASH_DEL(p->keys, k);
                free(k);
        }
}

/* -- deliveries ---------------------------------------------------------------------------------------------------------------- */

static void on_due(evutil_socket_t fd, short what, void *ctx);

/* What comes back comes before what is behind it. */
void kafka_delivery_ready(struct delivery *d) {
        struct part *p = d->part;
        struct delivery *at = p->ready;

        d->state = D_READY;
        if (p->ready && p->ready->rprev->offset <= d->offset)
                at = NULL;
        while (at && (at->which != d->which || at->offset < d->offset))
                at = at->rnext;
        if (at)
                DL_PREPEND_ELEM2(p->ready, at, d, rprev, rnext);
        else
                DL_APPEND2(p->ready, d, rprev, rnext);
        kafka_pump_soon(p->group->bus);
}

static void make_waiting(struct delivery *d) {
        int64_t ms = d->due_ms - om_now_ms();

        if (ms <= 0) {
                kafka_delivery_ready(d);
                return;
        }
        d->state = D_WAITING;
        if (!d->timed)
                evtimer_assign(&d->timer, d->part->group->bus->host->base, on_due, d);
        d->timed = true;
        evtimer_add(&d->timer, (&(struct timeval){ ms / 1000, ms % 1000 * 1000 }));
}

static void on_due(evutil_socket_t fd, short what, void *ctx) { make_waiting(ctx); }

void kafka_delivery_free(struct delivery *d) {
        if (d->timed)
                event_del(&d->timer);
        if (d->msg)
                rd_kafka_message_destroy(d->msg);
        om_arena_deinit(&d->arena);
        free(d);
}

static void delivery_leave(struct delivery *d) {
        struct part *p = d->part;

        if (d->state == D_READY)
                DL_DELETE2(p->ready, d, rprev, rnext);
        if (d->timed)
                event_del(&d->timer);
        key_leave(d);
        DL_DELETE(p->open, d);
        p->n_open[d->which]--;
        d->part = NULL;
}

void kafka_delivery_over(struct delivery *d) {
        if (d->part) {
                if (d->state == D_LEASED || d->state == D_SETTLED || d->state == D_LATE)
                        d->part->n_leased--;
                delivery_leave(d);
        }
        kafka_delivery_free(d);
}

void kafka_delivery_again(struct delivery *d, uint32_t attempts, int64_t due_ms) {
        d->part->n_leased--;
        d->attempts = attempts;
        d->due_ms = due_ms;
        make_waiting(d);
}

/* The mark of the owner before for this offset; taken. */
static bool take_mark(struct kafka_position *pos, int64_t offset, struct kafka_mark *ret) {
        for (size_t i = 0; i < pos->n_marks; i++)
                if (pos->marks[i].offset == offset) {
                        *ret = pos->marks[i];
                        memmove(pos->marks + i, pos->marks + i + 1, (--pos->n_marks - i) * sizeof *pos->marks);
                        return true;
                }
        return false;
}

void kafka_delivery_arrived(struct part *p, int which, rd_kafka_message_t *m) {
        struct stream *s = &p->at[which];
        struct delivery *d = calloc(1, sizeof *d);
        struct kafka_mark mark;
        bool begun = m->offset < s->inherited_next;

        if (!d) { /* read again by who has it next; counted as open */
                rd_kafka_message_destroy(m);
                return;
        }
        d->part = p;
        d->which = which;
        d->msg = m;
        d->offset = m->offset;
        d->delivery.record = kafka_message_record(m, p->group->topic, which == KAFKA_AT_RETRY, &d->arena);
        if (which == KAFKA_AT_RETRY) {
                d->attempts = (uint32_t) header_number(m, "omni-attempts");
                d->due_ms = header_number(m, "omni-due");
        }
        if (begun && take_mark(&s->pos, m->offset, &mark)) {
                d->attempts = mark.attempts;
                d->due_ms = mark.waiting ? mark.due_ms : p->hold_until_ms;
        } else if (begun) {
                d->attempts++;
                d->due_ms = p->hold_until_ms;
        }
        DL_APPEND(p->open, d);
        p->n_open[which]++;
        if (key_join(d))
                make_waiting(d);
        else
                d->state = D_HELD;
}

/* -- to the core ------------------------------------------------------------------------------------------------------------------ */

static bool lease(struct om_bus_sub *sub, struct delivery *d) {
        struct part *p = d->part;
        struct kafka_position *pos = &p->at[d->which].pos;

        if (sub->n_fresh == sub->cap_fresh) {
                size_t cap = sub->cap_fresh ? sub->cap_fresh * 2 : 16;
                struct om_delivery **fresh = reallocarray(sub->fresh, cap, sizeof(struct om_delivery *));

                if (!fresh)
                        return false;
                sub->fresh = fresh;
                sub->cap_fresh = cap;
        }
        DL_DELETE2(p->ready, d, rprev, rnext);
        d->state = D_LEASED;
        d->attempts++;
        d->delivery.attempt = d->attempts;
        d->delivery.sub = sub;
        p->n_leased++;
        if (pos->next <= d->offset)
                pos->next = d->offset + 1;
        sub->fresh[sub->n_fresh++] = &d->delivery;
        sub->want--;
        p->dirty = true; /* that it was begun is committed now, while the worker works */
        kafka_commit_soon(p->group->bus);
        return true;
}

void kafka_sub_forget(struct om_bus_sub *s) {
        for (size_t i = 0; i < s->n_fresh; i++) {
                struct delivery *d = (struct delivery *) s->fresh[i];

                if (!d->part) {
                        kafka_delivery_free(d);
                        continue;
                }
                d->part->n_leased--;
                d->attempts--;
                kafka_delivery_ready(d);
        }
        s->n_fresh = 0;
}

static void pump_part(struct om_bus_sub *sub, struct part *p) {
        if (p->state != PART_RUNNING)
                return;
        if (!p->at[KAFKA_AT_LOG].seen && p->at[KAFKA_AT_LOG].more && !p->n_open[KAFKA_AT_LOG])
                kafka_part_read(p, KAFKA_AT_LOG, 1);
        while (p->at[KAFKA_AT_RETRY].more && p->n_open[KAFKA_AT_RETRY] < RETRIES_MAX)
                kafka_part_read(p, KAFKA_AT_RETRY, RETRIES_MAX - p->n_open[KAFKA_AT_RETRY]);
        while (sub->want && !p->full) {
                if (p->ready) {
                        if (!lease(sub, p->ready))
                                return;
                } else if (p->at[KAFKA_AT_LOG].more && p->n_open[KAFKA_AT_LOG] - p->n_leased < HELD_MAX)
                        kafka_part_read(p, KAFKA_AT_LOG, sub->want);
                else
                        return;
        }
}

static void pump(struct om_post *post) {
        struct om_bus *b = CONTAINER(post, struct om_bus, pump);
        struct om_bus_sub *s, *next;

        b->pump_posted = false;
        if (b->ending || b->closing)
                return;
        DL_FOREACH (b->subs, s) {
                struct group *g = s->group;

                for (int i = 0; g && i < g->n_parts; i++)
                        pump_part(s, g->parts[(g->turn + i) % g->n_parts]);
                if (g && g->n_parts)
                        g->turn = (g->turn + 1) % g->n_parts;
        }
        if (b->any_astray)
                kafka_parts_find_again(b);
        DL_FOREACH_SAFE (b->subs, s, next) {
                size_t n = s->n_fresh;

                if (!n)
                        continue;
                s->n_fresh = 0;
                b->events->deliver(s->core, s->fresh, n);
        }
}

void kafka_pump_soon(struct om_bus *b) {
        if (b->pump_posted || b->closing)
                return;
        b->pump_posted = true;
        b->pump.fn = pump;
        om_host_post(b->host, &b->pump);
}

void kafka_bus_want(struct om_bus_sub *s, unsigned n) {
        s->want = n;
        if (n && s->group)
                kafka_pump_soon(s->group->bus);
}

/* -- revoking ------------------------------------------------------------------------------------------------------------------------ */

struct revocation {
        struct om_post post; /* first */
        struct om_bus *bus;
        struct om_bus_sub *sub;
        struct om_delivery **out;
        size_t n;
        struct revocation *prev, *next;
};

static void tell_revoked(struct om_post *post) {
        struct revocation *r = (struct revocation *) post;

        DL_DELETE(r->bus->revocations, r);
        if (r->sub)
                r->bus->events->revoked(r->sub->core, r->out, r->n);
        free(r->out);
        free(r);
}

/* Not from within a call of the core. What it settles meanwhile leaves the list. */
void kafka_revoked_soon(struct om_bus *b, struct group *g, struct om_delivery **out, size_t n) {
        struct revocation *r = calloc(1, sizeof *r);

        if (!r) {
                free(out);
                return;
        }
        *r = (struct revocation){ .post.fn = tell_revoked, .bus = b, .sub = g->sub, .out = out, .n = n };
        DL_APPEND(b->revocations, r);
        om_host_post(b->host, &r->post);
}

void kafka_revoked_except(struct om_bus *b, const struct om_delivery *d, const struct om_bus_sub *sub) {
        struct revocation *r;

        DL_FOREACH (b->revocations, r) {
                if (sub && r->sub == sub)
                        r->sub = NULL;
                for (size_t i = 0; d && i < r->n; i++)
                        if (r->out[i] == d)
                                r->out[i--] = r->out[--r->n];
        }
}
