/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweep, which drops what every group has finished, and the one way in which a topic's messages are dropped.
 *
 * Always true:
 *   - the sweep purges below the lowest ack floor of all groups, and only where there is a group (B3, B4). With retention_ms it purges what
 * was below that floor retention_ms ago, as far as this daemon has seen: later rather than early;
 *   - what it looked at before a topic was deleted, or meanwhile, purges nothing: a topic that is made anew counts from 1 again;
 *   - its timer runs only while a topic is dirty: something was finished since it was looked at;
 *   - a round looks at all dirty topics of a stream at once. That of a stream with many consumers takes time, and then rests for longer;
 *   - in a shared stream a topic's record says up to where its messages count as gone, and how many they are, before they are dropped: at
 * no time are they counted twice, or not at all. What was published while they were counted makes the number wrong; the server says how
 * many it has dropped, and it is mended. A daemon that dies between the two leaves it wrong.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { SWEEP_MS = 200, REST = 8 /* times what a round took */, TRIES = 100 };

/* -- dropping -------------------------------------------------------------------------------------------------------- */

static void purge_over(struct purge *p) { p->done(p); }

static void read_record(struct purge *p, nats_reply_fn *fn) {
        if (nats_record_read(p->topic, &p->req, fn, p) < 0)
                purge_over(p);
}

static void mended(struct nats_request *r, const struct nats_reply *reply);

static void record_to_mend(struct nats_request *r, const struct nats_reply *reply) {
        struct purge *p = r->ctx;
        bool known = nats_record_came(p->topic, reply, &p->record);

        p->record.gone += (uint64_t) p->n;
        if (!known || nats_record_write(p->topic, &p->record, &p->req, mended, p) < 0)
                purge_over(p); /* deleted meanwhile, or not connected */
}

static void mended(struct nats_request *r, const struct nats_reply *reply) {
        struct purge *p = r->ctx;
        const char *why;

        if (nats_record_written(&p->record, reply, &why) == -ESTALE && p->tries++ < TRIES)
                read_record(p, record_to_mend);
        else
                purge_over(p);
}

/* Of what stands in the way of deleting what passes is not told, and the rest once. */
static void in_the_way(const struct topic *t, const struct om_error *e) {
        struct om_bus *b = t->bus;

        if (e->kind == OM_UNAVAILABLE || e->kind == OM_TIMEOUT || e->kind == OM_NOT_FOUND)
                return;
        om_host_log(b->host, b->undeleted ? OM_LOG_DEBUG : OM_LOG_WARNING, "what is finished of topic %s stays: %s", t->name, e->message);
        b->undeleted = true;
}

static void purged(struct nats_request *r, const struct nats_reply *reply) {
        struct purge *p = r->ctx;
        struct om_error e = OM_ERROR_INIT;

        if (nats_error(reply, "purging its stream", &e) < 0)
                in_the_way(p->topic, &e);
        else
                p->topic->bus->undeleted = false;
        p->n = (int64_t) nats_json_u64(reply->data, "purged") - p->n;
        if (p->n && nats_topic_filter(p->topic) && nats_json_true(reply->data, "success"))
                read_record(p, record_to_mend);
        else
                purge_over(p);
}

static void purge(struct purge *p) {
        const struct topic *t = p->topic;
        struct om_buf body = OM_BUF_INIT;
        int r;

        om_buf_printf(&body, "{\"seq\":%llu", (unsigned long long) p->floor + 1);
        if (nats_topic_filter(t)) {
                om_buf_lit(&body, ",\"filter\":");
                om_buf_json_span(&body, om_span_of(nats_topic_filter(t)));
        }
        om_buf_putc(&body, '}');
        r = om_buf_ok(&body) ? nats_call(t->bus->link, &p->req, purged, p, om_buf_span(&body), "STREAM.PURGE.%s", t->log->name) : -ENOMEM;
        om_buf_deinit(&body);
        if (r < 0)
                purge_over(p);
}

static void record_came(struct nats_request *r, const struct nats_reply *reply);

static void written(struct nats_request *r, const struct nats_reply *reply) {
        struct purge *p = r->ctx;
        const char *why;
        int status = nats_record_written(&p->record, reply, &why);

        if (status == -ESTALE && p->tries++ < TRIES)
                read_record(p, record_came);
        else if (status < 0)
                purge_over(p); /* another time */
        else
                purge(p);
}

static void count(struct purge *p, uint64_t above, void (*done)(struct fetch *, int, const struct om_error *, bool)) {
        p->fetch.done = done;
        p->fetch.ctx = p;
        nats_count_start(&p->fetch, p->topic->bus, p->topic->log->name, p->topic->subject, above + 1);
}

static void counted_all(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct purge *p = f->ctx;
        uint64_t n = f->got + f->left;

        if (status < 0) {
                purge_over(p);
                return;
        }
        p->n = n > p->above ? (int64_t) (n - p->above) : 0;
        p->record.gone += (uint64_t) p->n;
        p->record.floor = p->floor;
        if (nats_record_write(p->topic, &p->record, &p->req, written, p) < 0)
                purge_over(p);
}

static void counted_left(struct fetch *f, int status, const struct om_error *e, bool more) {
        struct purge *p = f->ctx;

        p->above = f->got + f->left;
        if (status < 0)
                purge_over(p);
        else
                count(p, p->record.floor, counted_all);
}

static void record_came(struct nats_request *r, const struct nats_reply *reply) {
        struct purge *p = r->ctx;

        p->n = 0;
        if (!nats_record_came(p->topic, reply, &p->record))
                purge_over(p); /* deleted meanwhile, or not connected */
        else if (p->record.floor >= p->floor)
                purge(p);
        else
                count(p, p->floor, counted_left);
}

void nats_purge_start(struct purge *p, struct topic *t, uint64_t floor, void (*done)(struct purge *p), void *ctx) {
        *p = (struct purge){ .topic = t, .floor = floor, .done = done, .ctx = ctx };
        if (nats_topic_filter(t))
                read_record(p, record_came);
        else
                purge(p);
}

/* -- sweeping ------------------------------------------------------------------------------------------------------ */

static void sweep_arm(struct om_bus *b, int64_t ms) {
        struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

        if (!b->closing && !event_pending(b->sweep_timer, EV_TIMEOUT, NULL))
                event_add(b->sweep_timer, &tv);
}

static void make_dirty(struct topic *t) {
        t->dirty = true;
        t->dirty_next = t->bus->dirty;
        t->bus->dirty = t;
}

void nats_topic_touch(struct topic *t) {
        if (t->dirty)
                return;
        make_dirty(t);
        sweep_arm(t->bus, SWEEP_MS);
}

static void swept(struct purge *p) { p->topic->sweeping = false; }

static void looked(struct topic *t) {
        int64_t now = om_clock_ms(), keep = t->bus->settings.retention_ms;
        uint64_t floor = t->lowest.n ? t->lowest.seq : 0;

        t->sweeping = false;
        if (!nats_topic_lasts(t, t->looked)) {
                t->floor = 0;
                nats_topic_touch(t);
                return;
        }
        if (!floor)
                return;
        if (keep == 0 || (t->floor && t->floor_ms + keep <= now)) {
                t->sweeping = true;
                nats_purge_start(&t->sweep, t, keep && t->floor < floor ? t->floor : floor, swept, NULL);
                t->floor = 0;
        }
        if (keep == 0)
                return;
        if (!t->floor) {
                t->floor = floor;
                t->floor_ms = now;
        }
        nats_topic_touch(t);
}

static void consumer_came(struct roll *r, struct om_span info) {
        struct stream *s = r->ctx;
        struct om_arena arena = { 0 };
        struct topic *t = nats_topic_of(s->bus, nats_json_text(info, "config.filter_subject", &arena));

        if (t && t->sweeping && t->log == s) /* most are of one topic, and know which */
                nats_floor_add(&t->lowest, info);
        for (struct topic *each = t ? NULL : s->due; each; each = each->due_next)
                if (nats_consumer_takes(info, each->subject))
                        nats_floor_add(&each->lowest, info);
        om_arena_deinit(&arena);
}

static void consumers_came(struct roll *r, int status, const struct om_error *e) {
        struct stream *s = r->ctx;
        struct topic *list = s->due, *t;
        int64_t now = om_clock_ms();

        s->looking = false;
        s->due = NULL;
        s->rest_until_ms = now + (now - s->began_ms) * REST;
        while ((t = list)) {
                list = t->due_next;
                if (status == 0) {
                        looked(t);
                } else {
                        in_the_way(t, e);
                        t->sweeping = false;
                }
        }
}

static void look(struct stream *s) {
        s->looking = true;
        s->began_ms = om_clock_ms();
        s->roll = (struct roll){ .each = consumer_came, .done = consumers_came, .ctx = s };
        nats_roll_start(&s->roll, s->bus, s->name, NULL);
}

/* When it is to be looked at; 0: now. */
static int64_t wait_of(const struct topic *t, int64_t now, int64_t keep) {
        if (keep && t->floor && t->floor_ms + keep > now)
                return t->floor_ms + keep - now;
        if (t->sweeping || t->log->looking)
                return SWEEP_MS;
        return t->log->rest_until_ms > now ? t->log->rest_until_ms - now : 0;
}

void nats_on_sweep_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct topic *t, *list = b->dirty;
        struct stream *streams = NULL, *s;
        int64_t now = om_clock_ms(), next = INT64_MAX, wait;

        b->dirty = NULL;
        while ((t = list)) {
                list = t->dirty_next;
                t->dirty = false;
                if (!nats_link_is_up(b->link))
                        continue; /* when something is finished again */
                wait = wait_of(t, now, b->settings.retention_ms);
                if (wait) {
                        make_dirty(t);
                        next = wait < next ? wait : next;
                        continue;
                }
                if (!t->log->due)
                        LL_PREPEND(streams, t->log);
                t->sweeping = true;
                t->lowest = (struct floor){ 0 };
                t->looked = t->deletions;
                t->due_next = t->log->due;
                t->log->due = t;
        }
        while ((s = streams)) {
                streams = s->next;
                look(s);
        }
        if (next != INT64_MAX)
                sweep_arm(b, next < SWEEP_MS ? SWEEP_MS : next > 60000 ? 60000 : next);
}
