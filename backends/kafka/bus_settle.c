/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verdicts, and the commits that make them true.
 *
 * Always true:
 *   - a verdict changes what the next commit of its partition says, and has its outcome when a commit that says so has been answered; a
 *     dead letter is on its topic before that;
 *   - one plain commit is under way at a time, for all partitions that have something to say, and one transaction;
 *   - a delivery is the backend's again after the core was told: it is freed, or comes back, when the operation's done() has returned. If
 * the core gave up the operation before that, the delivery is still the core's, and settling it again tells what became of it.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { AGAIN_MS = 100 };

struct settle {
        struct job job; /* first */
        struct om_settlement *items;
        size_t n, left;
        struct ending { /* what becomes of the delivery after done() */
                struct delivery *delivery;
                enum om_verdict kind;
                int64_t due_ms;
        } endings[];
};

static void end_delivery(struct delivery *d, enum om_verdict kind, int64_t due_ms) {
        if (d->state != D_ORPHAN && d->part && (kind == OM_RETRY || kind == OM_RELEASE))
                kafka_delivery_again(d, kind == OM_RELEASE ? d->attempts - 1 : d->attempts, kind == OM_RETRY ? due_ms : 0);
        else
                kafka_delivery_over(d);
}

static void settle_free(struct om_job *j) {
        struct settle *s = (struct settle *) j;
        struct om_bus *b = s->job.bus;

        for (size_t i = 0; i < s->n; i++)
                if (s->endings[i].delivery)
                        end_delivery(s->endings[i].delivery, s->endings[i].kind, s->endings[i].due_ms);
        free(s);
        kafka_revoke_check(b);
}

static void let_go(struct settle *s) {
        if (--s->left == 0)
                kafka_job_over(&s->job, 0, NULL);
}

static void verdict_free(struct verdict *v) {
        if (v->outputs) {
                v->outputs->verdict = NULL;
                kafka_outputs_unref(v->outputs);
        }
        free(v);
}

/* The verdict has its outcome. */
void kafka_verdict_over(struct verdict *v, int status, const char *why) {
        struct settle *s = v->settle;
        struct delivery *d = v->delivery;
        bool told = s && !job_is_cancelled(&s->job), ours = status == 0 || status == -ESTALE;

        d->verdict = NULL;
        if (told) {
                s->items[v->index].outcome.status = status;
                s->items[v->index].outcome.why = why;
        }
        if (told && ours)
                s->endings[v->index] = (struct ending){ d, v->kind, v->due_ms };
        else if (status == 0) {
                d->state = D_LATE;
                d->late = v->kind;
                d->due_ms = v->due_ms;
        } else if (d->state != D_ORPHAN)
                d->state = D_LEASED;
        if (s)
                let_go(s);
        verdict_free(v);
}

void kafka_commit_lost(struct part *p) {
        struct verdict *v, *next;

        DL_FOREACH (p->group->bus->sending, v)
                if (v->part == p)
                        v->part = NULL; /* told when the letter is there */

        for (int i = 0; i < 2; i++) {
                struct verdict **list = i ? &p->committing : &p->pending;

                DL_FOREACH_SAFE (*list, v, next) {
                        DL_DELETE(*list, v);
                        v->part = NULL;
                        kafka_verdict_over(v, -ESTALE, "Kafka: the partition went to another daemon");
                }
        }
}

/* -- one verdict ---------------------------------------------------------------------------------------------------------- */

static void is_pending(struct verdict *v) {
        struct part *p = v->part;

        p->dirty = true;
        DL_APPEND(p->pending, v);
        kafka_commit_soon(p->group->bus);
}

static void is_finished(struct verdict *v) {
        struct part *p = v->part;
        struct delivery *d = v->delivery;

        if (!kafka_track_done(&p->at[d->which].pos.track, d->offset, d->offset + 1)) {
                kafka_verdict_over(v, -ENOMEM, "out of memory");
                return;
        }
        p->finished += !v->moved;
        is_pending(v);
}

static void letter_told(struct send *s, int status, const char *why) {
        struct verdict *v = s->ctx;

        v->letter_status = status;
        v->letter_why = why;
}

/* What had to be there before the commit is, or cannot be. */
static void arrived(struct verdict *v, int status, const char *why) {
        DL_DELETE(v->bus->sending, v);
        if (!v->part)
                kafka_verdict_over(v, -ESTALE, "Kafka: the partition went to another daemon");
        else if (status < 0)
                kafka_verdict_over(v, status, why);
        else
                is_finished(v);
}
static void letter_free(struct send *s) {
        struct verdict *v = s->ctx;

        arrived(v, v->letter_status, v->letter_why);
}
void kafka_outputs_there(struct verdict *v, int status, const char *why) { arrived(v, status, why); }

static int send_away(struct verdict *v, struct topic *t, struct om_buf *value, int partition, const char *key) {
        struct om_bus *b = v->part->group->bus;

        if (!t || !om_buf_ok(value) || !(v->letter.key = strdup(key)) || !(v->letter.value = malloc(value->len + 1)))
                return -ENOMEM;
        memcpy(v->letter.value, value->data, value->len);
        v->letter.len = value->len;
        v->letter.key_len = strlen(key);
        v->letter.bus = b;
        v->letter.topic = t;
        v->letter.partition = partition;
        v->letter.done = letter_told;
        v->letter.free = letter_free;
        v->letter.ctx = v;
        DL_APPEND(b->sending, v);
        kafka_send(&v->letter);
        return 0;
}

static int bury(struct verdict *v, const struct om_dead_letter *letter) {
        struct group *g = v->part->group;
        struct topic *t = kafka_topic_get(g->bus, KAFKA_DEAD, om_span_of(g->topic), om_span_of(g->agent));
        struct om_buf text = OM_BUF_INIT;
        char place[64];
        int r;

        kafka_letter(&text, letter, v->delivery, place, sizeof place);
        r = send_away(v, t, &text, 0, place);
        om_buf_deinit(&text);
        return r;
}

/* A retry that the metadata has no room for waits in the retry topic. */
static int move(struct verdict *v) {
        struct group *g = v->part->group;
        struct delivery *d = v->delivery;
        struct topic *t = kafka_topic_get(g->bus, KAFKA_RETRY, om_span_of(g->topic), om_span_of(g->agent));
        struct om_buf text = OM_BUF_INIT;
        char number[24];
        int r;

        v->moved = true;
        om_buf_put_span(&text, d->delivery.record);
        v->letter.headers = rd_kafka_headers_new(2);
        snprintf(number, sizeof number, "%u", d->attempts);
        rd_kafka_header_add(v->letter.headers, "omni-attempts", -1, number, -1);
        snprintf(number, sizeof number, "%lld", (long long) v->due_ms);
        rd_kafka_header_add(v->letter.headers, "omni-due", -1, number, -1);
        r = send_away(v, t, &text, v->part->p, "omni-retry");
        om_buf_deinit(&text);
        return r;
}

static int begin(struct verdict *v, const struct om_settlement *item) {
        struct part *p = v->part;

        if (v->kind == OM_DEAD)
                return bury(v, item->letter);
        if (v->kind == OM_RETRY && p->crowded && !v->delivery->key) {
                v->kind = OM_DEAD; /* as far as the offset goes */
                return move(v);
        }
        if (v->kind == OM_ACK && item->n_outputs) {
                p->group->exactly_once = true;
                DL_APPEND(v->bus->sending, v);
                if (kafka_outputs_copy(v, item) == 0)
                        return 0;
                DL_DELETE(v->bus->sending, v);
                return v->outputs ? v->outputs->status : -ENOMEM;
        }
        if (v->kind == OM_ACK)
                is_finished(v);
        else
                is_pending(v);
        return 0;
}

static void settle_one(struct settle *s, struct om_bus *b, size_t i) {
        struct om_settlement *item = &s->items[i];
        struct delivery *d = (struct delivery *) item->delivery;
        struct verdict *v;
        int r;

        item->outcome = (struct om_outcome){ .status = 0 };
        if (d->state == D_ORPHAN) {
                kafka_revoked_except(b, &d->delivery, NULL);
                item->outcome.status = -ESTALE;
                item->outcome.why = "Kafka: the partition went to another daemon, or the group was deleted";
                s->endings[i] = (struct ending){ d, OM_ACK, 0 };
                let_go(s);
                return;
        }
        if (d->state == D_LATE) {
                s->endings[i] = (struct ending){ d, d->late, d->due_ms };
                let_go(s);
                return;
        }
        if (d->verdict) { /* given up by the core, but still on its way */
                if (d->verdict->settle)
                        let_go(d->verdict->settle);
                d->verdict->settle = s;
                d->verdict->index = i;
                return;
        }
        v = calloc(1, sizeof *v);
        if (v) {
                *v = (struct verdict){
                        .bus = b, .settle = s, .index = i, .delivery = d, .part = d->part, .kind = item->verdict, .due_ms = item->due_ms
                };
                d->verdict = v;
                d->state = D_SETTLED;
        }
        r = v ? begin(v, item) : -ENOMEM;
        if (r == 0)
                return;
        if (v) {
                kafka_send_drop(&v->letter);
                kafka_verdict_over(v, r, r == -EMSGSIZE ? "Kafka: an output is larger than max_message_bytes of the URL" : "out of memory");
        } else {
                item->outcome.status = r;
                item->outcome.why = "out of memory";
                let_go(s);
        }
}

int kafka_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        struct settle *s;
        int r = kafka_job_admit(b, 0, e);

        if (r < 0)
                return r;
        s = calloc(1, sizeof *s + op->n * sizeof s->endings[0]);
        if (!s)
                return om_error_set_errno(e, ENOMEM, "Kafka");
        s->items = op->items;
        s->n = op->n;
        s->left = op->n + 1;
        kafka_job_begin(b, &s->job, &op->op, 0, settle_free);
        for (size_t i = 0; i < op->n; i++)
                settle_one(s, b, i);
        let_go(s);
        return 0;
}

/* -- commits ---------------------------------------------------------------------------------------------------------------- */

bool kafka_commit_idle(const struct om_bus *b) {
        for (const struct group *g = b->groups; g; g = g->hh.next)
                for (int i = 0; i < g->n_parts; i++)
                        if ((g->parts[i]->state == PART_RUNNING || g->parts[i]->state == PART_LEAVING) &&
                                (g->parts[i]->dirty || g->parts[i]->in_commit))
                                return false;
        return true;
}

void kafka_commit_done(struct om_bus *b, struct part *p, bool ok) {
        struct verdict *v, *next;

        p->in_commit = p->in_txn = false;
        if (!ok) {
                DL_CONCAT(p->committing, p->pending);
                p->pending = p->committing;
                p->committing = NULL;
                p->dirty = true;
                return;
        }
        DL_FOREACH_SAFE (p->committing, v, next) {
                if (v->kind == OM_ACK || v->kind == OM_DEAD) {
                        p->group->unswept = true;
                        kafka_sweep_soon(b);
                }
                DL_DELETE(p->committing, v);
                kafka_verdict_over(v, 0, NULL);
        }
}

static void again(struct om_bus *b) {
        if (!event_pending(b->commit_timer, EV_TIMEOUT, NULL))
                evtimer_add(b->commit_timer, (&(struct timeval){ 0, AGAIN_MS * 1000 }));
}

static struct part *part_named(struct om_bus *b, const rd_kafka_topic_partition_t *tp) {
        struct group *g = NULL;

        HASH_FIND_STR(b->groups, tp->topic, g);
        return g && tp->partition < g->n_parts && g->parts[tp->partition]->in_commit && !g->parts[tp->partition]->in_txn
                ? g->parts[tp->partition]
                : NULL;
}

static void committed(rd_kafka_t *rk, rd_kafka_resp_err_t err, rd_kafka_topic_partition_list_t *list, void *opaque) {
        struct om_bus *b = opaque;
        bool failed = false;

        if (b->member_closed)
                return;
        b->committing = false;
        for (int i = 0; list && i < list->cnt; i++) {
                struct part *p = part_named(b, &list->elems[i]);
                rd_kafka_resp_err_t e = err ? err : list->elems[i].err;

                if (!p)
                        continue;
                if (e)
                        om_host_log(b->host, OM_LOG_DEBUG, "Kafka: commit of %s [%d]: %s", list->elems[i].topic,
                                (int) list->elems[i].partition, rd_kafka_err2str(e));
                failed |= e != 0;
                kafka_commit_done(b, p, !e);
        }
        if (!err)
                b->heard_ms = om_clock_ms();
        if (failed)
                again(b);
        else
                kafka_commit_soon(b);
        kafka_revoke_check(b);
}

void kafka_commit_entry(struct part *p, rd_kafka_topic_partition_list_t *list) {
        struct om_buf text = OM_BUF_INIT;
        rd_kafka_topic_partition_t *tp = rd_kafka_topic_partition_list_add(list, p->group->kname, p->p);

        kafka_part_pack(p, &text, p->clean);
        tp->offset = p->at[KAFKA_AT_RETRY].pos.track.low;
        if (om_buf_ok(&text) && (tp->metadata = malloc(text.len))) {
                memcpy(tp->metadata, text.data, text.len);
                tp->metadata_size = text.len;
        }
        om_buf_deinit(&text);
        p->dirty = false;
        p->in_commit = true;
        DL_CONCAT(p->committing, p->pending);
        p->pending = NULL;
}

static void over_if_ending(struct om_bus *b) {
        if (!b->ending || b->closing)
                return;
        if (!b->txn_busy && (kafka_commit_idle(b) || om_clock_ms() >= b->ending_by_ms))
                kafka_bus_let_go(b);
        else
                again(b);
}

static void commit(struct om_post *post) {
        struct om_bus *b = CONTAINER(post, struct om_bus, commit_post);
        rd_kafka_topic_partition_list_t *list = NULL;
        struct part *in_txn[64];
        size_t n_txn = 0;

        b->commit_posted = false;
        if (b->closing)
                return;
        if (b->renewing || (atomic_load(&b->joining) && !b->ending)) { /* goes on with the answer */
                over_if_ending(b);
                return;
        }
        for (struct group *g = b->groups; g; g = g->hh.next)
                for (int i = 0; i < g->n_parts; i++) {
                        struct part *p = g->parts[i];

                        if (!p->dirty || p->in_commit || (p->state != PART_RUNNING && p->state != PART_LEAVING))
                                continue;
                        if (g->exactly_once) {
                                if (!b->txn_busy && n_txn < 64)
                                        in_txn[n_txn++] = p;
                        } else if (!b->committing) {
                                if (!list)
                                        list = rd_kafka_topic_partition_list_new(16);
                                kafka_commit_entry(p, list);
                        }
                }
        if (list) {
                b->committing = rd_kafka_commit_queue(b->member, list, b->member_queue, committed, b) == 0;
                rd_kafka_topic_partition_list_destroy(list);
        }
        if (n_txn)
                kafka_txn_commit(b, in_txn, n_txn);
        over_if_ending(b);
}

void kafka_commit_soon(struct om_bus *b) {
        if (b->commit_posted || b->closing)
                return;
        b->commit_posted = true;
        b->commit_post.fn = commit;
        om_host_post(b->host, &b->commit_post);
}
void kafka_on_commit_timer(evutil_socket_t fd, short what, void *ctx) { kafka_commit_soon(ctx); }
