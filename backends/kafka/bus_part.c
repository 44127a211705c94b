/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One partition of a group that is ours, from being given to us to being let go of: how far it is read, and what a commit says of it.
 *
 * Always true:
 *   - the log is read as far as somebody wants it, the retry topic as it comes: what it holds waits for its time;
 *   - offsets that no message comes for (what another has finished, marks of transactions) are finished as they are passed.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { BATCH = 128, TOUCH_MS = 100, BURST = 1 << 20, LANE_MS = 2000 };

/* -- reading -------------------------------------------------------------------------------------------------------------------- */

static void finished_gap(struct part *p, struct stream *s, int64_t to) {
        if (to <= s->read)
                return;
        kafka_track_done(&s->pos.track, s->read, to);
        if (s->pos.next < to && !p->open)
                s->pos.next = to;
        s->read = to;
        kafka_part_touch(p);
}

static void read_one(struct part *p, int which, rd_kafka_message_t *m) {
        struct stream *s = &p->at[which];

        s->seen |= !m->err || m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF;
        if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
                finished_gap(p, s, m->offset); /* transactions' marks are offsets too */
        else if (m->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET)
                p->astray = p->group->bus->any_astray = true;
        else if (m->err && m->err != RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART && m->err != RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION)
                om_host_log(p->group->bus->host, OM_LOG_WARNING, "Kafka: reading %s [%d]: %s", which ? p->group->kname : p->group->log,
                        (int) p->p, rd_kafka_message_errstr(m));
        if (m->err) {
                rd_kafka_message_destroy(m);
                return;
        }
        finished_gap(p, s, m->offset);
        s->read = m->offset + 1;
        s->burst += 512 + (uint32_t) m->len;
        if (kafka_track_is_done(&s->pos.track, m->offset))
                rd_kafka_message_destroy(m);
        else if (which == KAFKA_AT_RETRY && m->offset == 0 && m->key_len == sizeof KAFKA_START_KEY - 1 &&
                memcmp(m->key, KAFKA_START_KEY, m->key_len) == 0) {
                kafka_track_done(&s->pos.track, 0, 1);
                if (s->pos.next < 1)
                        s->pos.next = 1;
                rd_kafka_message_destroy(m);
        } else
                kafka_delivery_arrived(p, which, m);
}

void kafka_part_read(struct part *p, int which, size_t n) {
        struct stream *s = &p->at[which];
        rd_kafka_message_t *m[BATCH];
        ssize_t got = rd_kafka_consume_batch_queue(s->queue, 0, m, n < BATCH ? n : BATCH);

        for (ssize_t i = 0; i < got; i++)
                read_one(p, which, m[i]);
        if (got > 0)
                return;
        s->more = false;
        if (s->burst > BURST) /* the library may have stopped asking for it, and wait for others */
                kafka_wake(p->group->bus);
        s->burst = 0;
}

void kafka_part_readable(struct om_bus *b, uint32_t code) {
        uint32_t slot = code / 2;
        struct part *p = NULL;

        HASH_FIND(hh, b->parts_by_slot, &slot, sizeof slot, p);
        if (p && p->at[code % 2].started)
                p->at[code % 2].more = true;
}

/* -- what a commit says --------------------------------------------------------------------------------------------------------- */

static void on_touch(struct part *p) {
        struct om_bus *b = p->group->bus;

        if (!event_pending(b->commit_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->commit_timer, (&(struct timeval){ 0, TOUCH_MS * 1000 }));
}

void kafka_part_touch(struct part *p) {
        p->dirty = true;
        on_touch(p);
}

/* The attempts of what is open, unless they follow from its place: below `next`, and with a worker for the first time. */
static int add_marks(struct kafka_state *s, const struct part *p, bool clean) {
        const struct delivery *d;

        for (int i = 0; i < 2; i++) {
                const struct kafka_position *pos = &p->at[i].pos;
                size_t n = pos->n_marks;

                s->at[i].track = pos->track;
                s->at[i].next = pos->next;
                s->at[i].marks = calloc(n + p->n_open[i] + 1, sizeof(struct kafka_mark));
                if (!s->at[i].marks)
                        return -ENOMEM;
                if (n)
                        memcpy(s->at[i].marks, pos->marks, n * sizeof(struct kafka_mark));
                s->at[i].n_marks = n;
        }
        DL_FOREACH (p->open, d) {
                struct kafka_position *pos = &s->at[d->which];
                struct kafka_mark m = { .offset = d->offset, .attempts = d->attempts, .waiting = true, .due_ms = d->due_ms };

                if (d->offset >= pos->next || kafka_track_is_done(&pos->track, d->offset))
                        continue;
                if (d->state == D_LEASED || d->state == D_LATE || d->state == D_SETTLED) {
                        const struct verdict *v = d->verdict;

                        m.waiting = v && (v->kind == OM_RETRY || v->kind == OM_RELEASE);
                        m.due_ms = m.waiting && v->kind == OM_RETRY ? v->due_ms : 0;
                        if (m.waiting && v->kind == OM_RELEASE)
                                m.attempts--;
                        if (!m.waiting && d->which == KAFKA_AT_LOG && m.attempts == 1)
                                continue;
                } else if (m.due_ms <= om_now_ms())
                        m.due_ms = 0;
                pos->marks[pos->n_marks++] = m;
        }
        return 0;
}

int kafka_part_state(const struct part *p, bool clean, struct kafka_state *ret) {
        *ret = (struct kafka_state){ .owner = p->group->bus->owner, .finished = p->finished, .clean = clean };
        if (add_marks(ret, p, clean) == 0)
                return 0;
        kafka_part_state_free(ret);
        return -ENOMEM;
}

void kafka_part_state_free(struct kafka_state *s) { /* the runs are the part's */
        for (int i = 0; i < 2; i++)
                free(s->at[i].marks);
}

void kafka_part_pack(struct part *p, struct om_buf *b, bool clean) {
        struct kafka_state s;
        size_t least;

        if (kafka_part_state(p, clean, &s) < 0) {
                b->failed = true;
                return;
        }
        least = kafka_state_pack(b, &s, KAFKA_METADATA_MAX);
        /* Too many holes: nothing more is handed out until some of them are closed. */
        p->full = least > KAFKA_METADATA_MAX * 3 / 4;
        p->crowded = b->len > KAFKA_METADATA_MAX / 2;
        kafka_part_state_free(&s);
}

/* -- beginning and ending --------------------------------------------------------------------------------------------------------- */

static void stream_begin(struct part *p, int which) {
        struct stream *s = &p->at[which];
        struct om_bus *b = p->group->bus;

        s->postponed = false;
        if (rd_kafka_consume_start_queue(s->rkt, p->p, s->pos.track.low, s->queue)) {
                om_host_log(b->host, OM_LOG_ERROR, "Kafka: reading %s [%d]: %s", rd_kafka_topic_name(s->rkt), (int) p->p,
                        rd_kafka_err2str(rd_kafka_last_error()));
                return;
        }
        s->started = s->more = true;
}

static void wake_until_seen(struct om_bus *b) {
        b->wake_ms = 5;
        evtimer_add(b->wake_timer, (&(struct timeval){ 0, 5000 }));
}

void kafka_lane_ready(struct om_bus *b, struct lane *l) {
        for (struct part *p = b->parts_by_slot; p; p = p->hh.next)
                for (int i = 0; i < 2; i++)
                        if (p->at[i].postponed && b->lanes[p->at[i].lane] == l)
                                stream_begin(p, i);
        wake_until_seen(b);
}

/* The library begins to ask for a partition in its own time, and the fetch that is under way then must end: told until it was answered. */
void kafka_on_wake_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        bool unseen = false;
        int64_t ms;

        for (struct part *p = b->parts_by_slot; p && !unseen; p = p->hh.next)
                for (int i = 0; i < 2; i++)
                        unseen |= p->at[i].postponed || (p->at[i].started && !p->at[i].seen);
        for (unsigned i = 0; i < b->n_lanes; i++) /* the wake topic may be forbidden: it goes on without, if more slowly */
                if (!b->lanes[i]->ready && om_clock_ms() - b->lanes[i]->since_ms > LANE_MS) {
                        b->lanes[i]->ready = true;
                        kafka_lane_ready(b, b->lanes[i]);
                }
        if (!unseen || b->closing || b->state != OM_BUS_READY)
                return;
        kafka_wake(b);
        ms = b->wake_ms = b->wake_ms * 2 < 1000 ? b->wake_ms * 2 : 1000;
        evtimer_add(b->wake_timer, (&(struct timeval){ ms / 1000, ms % 1000 * 1000 }));
}

/* Where a log has not got the place that we ask for, it is not the one that we know: that is to be told. */
static rd_kafka_topic_t *open_log(rd_kafka_t *rk, const char *kname) {
        rd_kafka_topic_conf_t *conf = rd_kafka_default_topic_conf_dup(rk);

        rd_kafka_topic_conf_set(conf, "auto.offset.reset", "error", NULL, 0);
        return rd_kafka_topic_new(rk, kname, conf);
}

static int stream_start(struct part *p, int which, struct om_error *e) {
        struct om_bus *b = p->group->bus;
        struct stream *s = &p->at[which];
        struct lane *l;

        s->lane = which == KAFKA_AT_LOG ? p->group->lane : 0;
        l = kafka_lane(b, s->lane, e);
        if (!l)
                return -ENOBUFS;
        s->rkt = which == KAFKA_AT_LOG ? open_log(l->rk, p->group->log) : rd_kafka_topic_new(l->rk, p->group->kname, NULL);
        s->queue = rd_kafka_queue_new(l->rk);
        if (!s->rkt)
                return om_error_set(e, OM_INTERNAL, "Kafka: %s", rd_kafka_err2str(rd_kafka_last_error()));
        kafka_watch(b, s->queue, CODE_PART + p->slot * 2 + (uint32_t) which);
        s->postponed = !l->ready;
        if (l->ready)
                stream_begin(p, which);
        return 0;
}

int kafka_part_start(struct part *p, struct kafka_state *state, struct om_error *e) {
        struct group *g = p->group;
        int64_t wait = g->reclaim_idle_ms - g->bus->settings.session_timeout_ms;
        int r = 0;

        p->finished = state->finished;
        p->clean = p->full = p->crowded = false;
        p->hold_until_ms = state->clean || state->owner == g->bus->owner || wait <= 0 ? 0 : om_now_ms() + wait;
        for (int i = 0; i < 2; i++) {
                p->at[i] = (struct stream){ .pos = state->at[i], .read = state->at[i].track.low, .inherited_next = state->at[i].next };
                state->at[i] = (struct kafka_position){ .next = 0 };
        }
        for (int i = 0; i < 2 && !r; i++)
                r = stream_start(p, i, e);
        p->state = PART_RUNNING;
        if (r < 0)
                kafka_part_lose(p);
        p->dirty = r == 0; /* said to be ours */
        g->bus->any_astray |= p->astray;
        kafka_commit_soon(g->bus);
        wake_until_seen(g->bus);
        kafka_pump_soon(g->bus);
        return r;
}

void kafka_part_suspend(struct part *p) {
        if (p->state == PART_RUNNING || p->state == PART_LEAVING)
                p->state = PART_SUSPENDED;
        else if (p->state == PART_LOADING)
                kafka_part_lose(p);
        p->resuming = false;
}

/* Nobody has committed since: what we know still holds. */
void kafka_part_resume(struct part *p) {
        p->state = p->group->leaving ? PART_LEAVING : PART_RUNNING;
        p->clean = p->group->leaving;
        p->resuming = false;
        p->dirty = true;
        p->group->bus->any_astray |= p->astray;
        kafka_commit_soon(p->group->bus);
        kafka_pump_soon(p->group->bus);
}

void kafka_part_stop(struct part *p) {
        for (int i = 0; i < 2; i++) {
                struct stream *s = &p->at[i];

                if (s->started)
                        rd_kafka_consume_stop(s->rkt, p->p);
                s->started = s->more = false;
                if (s->queue)
                        rd_kafka_queue_destroy(s->queue);
                s->queue = NULL;
        }
}

void kafka_part_lose(struct part *p) {
        struct om_bus *b = p->group->bus;
        struct om_bus_sub *sub = p->group->sub;
        struct om_delivery **out = p->n_leased ? calloc(p->n_leased, sizeof(struct om_delivery *)) : NULL;
        struct delivery *d, *next;
        size_t n = 0;

        if (p->state == PART_IDLE)
                return;
        p->state = PART_IDLE;
        p->resuming = p->astray = false;
        p->term++;
        kafka_part_stop(p);
        kafka_commit_lost(p);
        for (size_t i = 0, kept = 0; sub && i < sub->n_fresh; i++) { /* the core has not got these */
                d = (struct delivery *) sub->fresh[i];
                if (d->part == p) {
                        p->n_leased--;
                        kafka_delivery_ready(d);
                } else
                        sub->fresh[kept++] = sub->fresh[i];
                if (i + 1 == sub->n_fresh)
                        sub->n_fresh = kept;
        }
        DL_FOREACH_SAFE (p->open, d, next) {
                bool with_core = d->state == D_LEASED || d->state == D_LATE || d->state == D_SETTLED;
                bool answered = d->state == D_SETTLED;

                d->key = NULL;
                if (d->state == D_READY)
                        DL_DELETE2(p->ready, d, rprev, rnext);
                if (d->timed)
                        event_del(&d->timer);
                DL_DELETE(p->open, d);
                d->part = NULL;
                if (!with_core) {
                        kafka_delivery_free(d);
                        continue;
                }
                d->state = D_ORPHAN;
                d->delivery.gone = true;
                if (out && !answered)
                        out[n++] = &d->delivery;
        }
        while (p->keys) {
                struct key *k = p->keys;

                HASH_DEL(p->keys, k);
                free(k);
        }
        p->n_leased = p->n_open[0] = p->n_open[1] = 0;
        p->dirty = p->in_commit = p->in_txn = false;
        for (int i = 0; i < 2; i++) {
                if (p->at[i].rkt)
                        rd_kafka_topic_destroy(p->at[i].rkt);
                kafka_track_deinit(&p->at[i].pos.track);
                free(p->at[i].pos.marks);
                p->at[i] = (struct stream){ .read = 0 };
        }
        if (n && sub && !b->closing)
                kafka_revoked_soon(b, p->group, out, n);
        else
                free(out);
}
