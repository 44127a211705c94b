/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verdicts: each is one answer to the message's own subject, which the server confirms, and what must be on the server before it.
 *
 *   ack       outputs published (exactly-once by their ids) ──▶ +ACK
 *   retry     ──▶ -NAK with the delay
 *   release   one delivery more that does not count is written down ──▶ -NAK
 *   dead      the dead letter published, unless it is there ──▶ +TERM
 *
 * Always true:
 *   - a verdict has held when its outcome is 0; a message that nobody would take an answer for is somebody else's now only if its consumer
 * is gone (-ESTALE). While a cluster elects a leader nobody answers either: that is -EAGAIN, and the core tries again;
 *   - a server that was killed may have forgotten its last deliveries. It takes no answer to them and says nothing; where an answer is not
 *     confirmed in time, the consumer's own count shows whether it is so: then the message comes again, and this one is -ESTALE;
 *   - what is in time grows while answers are confirmed too late, and shrinks when one comes promptly: far away, or on a busy disk, a
 * second answer would be late as the first was;
 *   - a delivery is freed after the verdicts that name it: one that was cancelled may still be under way when the next is.
 *
 * Loop thread.
 */
#include "bus_state.h"

struct item {
        struct settle *job;
        struct delivery *d;
        struct stream *dead; /* OM_DEAD: of its letters */
        struct stream_wait wait;
        bool again;
        enum om_verdict verdict;
        int64_t due_ms;
        struct nats_request req;
        struct om_buf letter;
        struct publication *outputs;
        size_t n_outputs, outputs_left;
        bool confirming, late;
        int64_t asked_ms;
        char text[64]; /* the answer */
        struct item *prev, *next;
        int status;
        const char *why;
};
enum { CONFIRM_MAX_MS = 3200, HAND_BACK_MS = 250 };
struct settle {
        struct job job; /* first */
        struct om_settlement *items_out;
        size_t n, left;
        struct item items[];
};

void nats_put_place(char *out, size_t size, const struct delivery *d) {
        snprintf(out, size, "%s.%s.%llu", d->stream, d->consumer, (unsigned long long) d->seq);
}

void nats_call_and_forget(struct om_bus *b, const char *what, const char *body) {
        struct nats_request *r = calloc(1, sizeof *r);

        if (r && nats_call(b->link, r, nats_request_forget, NULL, om_span_of(body), "%s", what) < 0)
                free(r);
}

static void drop_records(struct om_bus *b, const char *kind, const struct delivery *d) {
        char body[SUBJECT_MAX + 128], place[SUBJECT_MAX], what[STREAM_NAME_MAX + 20];

        nats_put_place(place, sizeof place, d);
        snprintf(body, sizeof body, "{\"filter\":\"%s.s.%s.%s\"}", b->settings.c.prefix, kind, place);
        snprintf(what, sizeof what, "STREAM.PURGE.%s", b->state_stream);
        nats_call_and_forget(b, what, body);
}

/* -- the end of one ------------------------------------------------------------------------------------------------- */

static void settle_free(struct om_job *j) {
        struct settle *m = (struct settle *) j;

        for (size_t i = 0; i < m->n; i++) {
                struct delivery *d = m->items[i].d;

                om_buf_deinit(&m->items[i].letter);
                free(m->items[i].outputs);
                d->settling--;
                if (d->over || (m->job.base.status == 0 && m->items_out && (m->items[i].status == 0 || m->items[i].status == -ESTALE)) ||
                        !m->items_out)
                        nats_delivery_free(d);
        }
        free(m);
}

/* What the finished task leaves to be tidied; best effort, a remainder does no harm. */
static void tidy(struct item *it) {
        struct om_bus *b = it->job->job.bus;
        struct delivery *d = it->d;

        if (it->verdict == OM_RETRY)
                return;
        if (it->verdict == OM_RELEASE) {
                if (d->has_off)
                        drop_records(b, "off", d);
                return;
        }
        if (d->has_rel || d->has_off)
                drop_records(b, "*", d);
        if (d->again) {
                char what[STREAM_NAME_MAX + 40], body[64];

                snprintf(what, sizeof what, "STREAM.MSG.DELETE.%s", d->stream);
                snprintf(body, sizeof body, "{\"seq\":%llu,\"no_erase\":true}", (unsigned long long) d->seq);
                nats_call_and_forget(b, what, body);
        } else if (d->topic)
                nats_topic_touch(d->topic);
}

static void one_less(struct settle *m) {
        if (--m->left)
                return;
        if (m->items_out && !om_job_is_cancelled(&m->job.base))
                for (size_t i = 0; i < m->n; i++) {
                        m->items_out[i].outcome.status = m->items[i].status;
                        m->items_out[i].outcome.why = m->items[i].why;
                }
        /* What was cancelled is with the core again, whatever became of it. */
        om_job_over(&m->job.base, m->items_out && om_job_is_cancelled(&m->job.base) ? -ECANCELED : 0, NULL);
}

static void item_done(struct item *it, int status, const char *why) {
        it->status = status;
        it->why = why;
        if (status == 0)
                tidy(it);
        one_less(it->job);
}

static void failed(struct item *it, int r) {
        item_done(it, r, r == -EAGAIN ? "NATS: the connection is gone; the verdict may have held" : r == -ENOMEM ? "out of memory" : NULL);
}

/* -- the answer ----------------------------------------------------------------------------------------------------- */

static void answer(struct item *it, const char *text);

static void leave(struct item *it) {
        if (it->confirming)
                DL_DELETE(it->job->job.bus->confirming, it);
        it->confirming = false;
}

/* The server was only slow. Those that were asked before the last growth say nothing about it. */
static void wait_longer(struct item *it) {
        struct om_bus *b = it->job->job.bus;

        if (it->asked_ms < b->confirm_since_ms)
                return;
        b->confirm_since_ms = om_clock_ms();
        b->confirm_ms = b->confirm_ms < CONFIRM_MAX_MS ? 2 * b->confirm_ms : CONFIRM_MAX_MS;
}

static void consumer_looked_for(struct nats_request *r, const struct nats_reply *reply) {
        struct item *it = r->ctx;
        uint64_t delivered = nats_json_u64(reply->data, "delivered.consumer_seq");

        if (reply->status == 0 && nats_json_u64(reply->data, "error.code") == 404)
                item_done(it, -ESTALE, "NATS: the group was deleted");
        else if (reply->status == 0 && nats_json_get(reply->data, "delivered").p && delivered < it->d->consumer_seq)
                item_done(it, -ESTALE, "NATS: the server has forgotten that it gave the task away; it comes again");
        else if (reply->status == 0 && it->late) {
                wait_longer(it);
                answer(it, it->text);
        } else
                item_done(it, -EAGAIN, "NATS: nobody takes the verdict now");
}

static void look(struct item *it) {
        int r = nats_call(it->job->job.bus->link, &it->req, consumer_looked_for, it, OM_SPAN_NONE, "CONSUMER.INFO.%s.%s", it->d->stream,
                it->d->consumer);

        if (r < 0)
                failed(it, r);
}

static void confirmed(struct nats_request *r, const struct nats_reply *reply) {
        struct item *it = r->ctx;

        leave(it);
        if (reply->status == 0) {
                if (om_clock_ms() - it->asked_ms < NATS_CONFIRM_MS / 2)
                        it->job->job.bus->confirm_ms = NATS_CONFIRM_MS;
                nats_verdict_note(it->d, it->text, it->due_ms);
                item_done(it, 0, NULL);
        } else if (reply->status == -ENOENT) {
                it->late = false;
                look(it);
        } else
                failed(it, reply->status);
}

static void confirm_arm(struct om_bus *b) {
        struct timeval tv = { 0, NATS_CONFIRM_MS * 1000 };

        if (b->confirming && !event_pending(b->confirm_timer, EV_TIMEOUT, NULL))
                event_add(b->confirm_timer, &tv);
}

void nats_on_confirm_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct item *it;
        int64_t now = om_clock_ms();

        while ((it = b->confirming) && now - it->asked_ms >= b->confirm_ms) {
                leave(it);
                nats_request_end(b->link, &it->req);
                it->late = true;
                look(it);
        }
        confirm_arm(b);
}

static void answer(struct item *it, const char *text) {
        struct om_bus *b = it->job->job.bus;
        natsMsg *msg;
        int r;

        if (text != it->text)
                snprintf(it->text, sizeof it->text, "%s", text);
        it->req.fn = confirmed;
        it->req.ctx = it;
        it->req.open = false;
        msg = nats_request_new(b->link, &it->req, it->d->ack, om_span_of(it->text));
        r = msg ? nats_request_send(b->link, &it->req, msg) : -ENOMEM;
        if (r < 0) {
                failed(it, r);
                return;
        }
        it->asked_ms = om_clock_ms();
        it->confirming = true;
        DL_APPEND(b->confirming, it);
        confirm_arm(b);
}

/* A delay of nothing would be kept in the server's memory only; any other is in the consumer's state and survives. */
static void give_back(struct item *it, int64_t delay_ms) {
        char text[64];

        snprintf(text, sizeof text, "-NAK {\"delay\":%lld000000}", (long long) (delay_ms < 1 ? 1 : delay_ms));
        it->due_ms = om_now_ms() + delay_ms;
        answer(it, text);
}

static void retry(struct item *it) { give_back(it, it->due_ms - om_now_ms()); }

/* -- what does not count -------------------------------------------------------------------------------------------- */

static void noted(struct nats_request *r, const struct nats_reply *reply) {
        struct item *it = r->ctx;
        const char *why;
        int status = nats_publish_answer(reply, &why);

        if (status < 0) {
                item_done(it, status, why);
                return;
        }
        if (it->verdict == OM_RELEASE) {
                /* Where nobody here wants one, what goes back at once comes back at once, for what we have asked for cannot be taken back:
                 * a daemon that ends would be given it once more on its way out. */
                bool unwanted = it->job->items_out && (!it->d->sub || it->d->sub->want == 0);

                give_back(it, unwanted ? HAND_BACK_MS : 0);
                return;
        }
        drop_records(it->job->job.bus, "rel", it->d);
        retry(it);
}

static void note(struct item *it, const char *kind, uint32_t n) {
        struct om_bus *b = it->job->job.bus;
        char subject[2 * SUBJECT_MAX], place[SUBJECT_MAX], text[16];
        natsMsg *msg;
        int r;

        nats_put_place(place, sizeof place, it->d);
        snprintf(subject, sizeof subject, "%s.s.%s.%s", b->settings.c.prefix, kind, place);
        snprintf(text, sizeof text, "%u", n);
        it->req.fn = noted;
        it->req.ctx = it;
        msg = nats_request_new(b->link, &it->req, subject, om_span_of(text));
        r = msg ? nats_request_send(b->link, &it->req, msg) : -ENOMEM;
        if (r < 0)
                failed(it, r);
}

/* -- dead letters --------------------------------------------------------------------------------------------------- */

static void letter_published(struct nats_request *r, const struct nats_reply *reply) {
        struct item *it = r->ctx;
        unsigned code = reply->status == 0 ? nats_error_code(reply->data) : 0;
        const char *why;
        int status;

        if (reply->status == -ENOENT && !it->again) {
                it->again = true;
                nats_needed_forget(&it->dead->needed);
                nats_stream_need(it->dead, &it->wait);
                return;
        }
        status = code == NATS_ERR_WRONG_LAST_SEQUENCE || code == NATS_ERR_WRONG_LAST_SEQUENCE_CONSTANT ? 0
                                                                                                       : nats_publish_answer(reply, &why);
        if (status < 0)
                item_done(it, status, why);
        else
                answer(it, "+TERM dead-lettered");
}

static void letter_publish(struct stream_wait *w, int status, const struct om_error *e) {
        struct item *it = CONTAINER(w, struct item, wait);
        struct om_bus *b = it->job->job.bus;
        char subject[SUBJECT_MAX];
        natsMsg *msg;
        int r = -ENOMEM;

        if (status < 0) {
                if (status != -EAGAIN)
                        om_host_log(b->host, OM_LOG_WARNING, "%s", e->message);
                item_done(it, status, "NATS: the stream of the group's dead letters cannot be made; the log of the daemon says why");
                return;
        }
        /* Of one log, or of many under a pattern: the stream says which. */
        snprintf(subject, sizeof subject, "%.*s%s-%llu", (int) strlen(it->dead->subject) - 1, it->dead->subject, it->d->stream,
                (unsigned long long) it->d->seq);
        it->req.fn = letter_published;
        it->req.ctx = it;
        msg = nats_request_new(b->link, &it->req, subject, om_buf_span(&it->letter));
        if (msg && natsMsgHeader_Set(msg, "Nats-Expected-Last-Subject-Sequence", "0") == NATS_OK)
                r = nats_request_send(b->link, &it->req, msg);
        else if (msg) {
                natsMsg_Destroy(msg);
                nats_request_end(b->link, &it->req);
        }
        if (r < 0)
                failed(it, r);
}

/* The record last, so that it is found without looking through it. */
static void put_letter(struct om_buf *b, const struct om_dead_letter *l, struct om_span record) {
        om_buf_lit(b, "{\"error\":");
        om_buf_json_span(b, l->error);
        om_buf_lit(b, ",\"error_type\":");
        om_buf_json_span(b, l->error_type);
        om_buf_lit(b, ",\"worker\":");
        om_buf_json_span(b, l->worker);
        om_buf_printf(b, ",\"attempts\":%u,\"failed_ms\":%lld,\"record\":", l->attempts, (long long) l->failed_ms);
        om_buf_put_span(b, l->record.p ? l->record : record);
        om_buf_putc(b, '}');
}

/* -- outputs -------------------------------------------------------------------------------------------------------- */

static void output_done(struct publication *p, int status, const char *why) {
        struct item *it = p->ctx;

        if (status < 0 && it->status == 0) {
                it->status = status;
                it->why = why;
        }
        if (--it->outputs_left)
                return;
        if (it->status < 0)
                item_done(it, it->status, it->why);
        else
                answer(it, "+ACK");
}

static int prepare_outputs(struct item *it, const struct om_settlement *s) {
        it->outputs = calloc(s->n_outputs, sizeof it->outputs[0]);
        if (!it->outputs)
                return -ENOMEM;
        for (size_t i = 0; i < s->n_outputs; i++) {
                char once[STREAM_NAME_MAX + NATS_NAME_MAX + 64];
                int r;

                /* Known by what it is an output of: whoever handles the task again may give it another id. */
                snprintf(once, sizeof once, "out:%s:%s:%llu:%zu", it->d->stream, it->d->consumer, (unsigned long long) it->d->seq, i);
                r = nats_publication_init(&it->outputs[i], it->job->job.bus, &s->outputs[i], once);
                if (r < 0) {
                        while (i--)
                                nats_publication_drop(&it->outputs[i]);
                        return r;
                }
                it->outputs[i].done = output_done;
                it->outputs[i].ctx = it;
        }
        it->n_outputs = it->outputs_left = s->n_outputs;
        return 0;
}

/* -- all of them ---------------------------------------------------------------------------------------------------- */

static void start(struct item *it) {
        if (it->d->delivery.gone) {
                item_done(it, -ESTALE, NULL);
                return;
        }
        switch (it->verdict) {
        case OM_ACK:
                if (!it->n_outputs)
                        answer(it, "+ACK");
                for (size_t i = 0, n = it->n_outputs; i < n; i++)
                        nats_publication_start(&it->outputs[i]);
                break;
        case OM_RETRY:
                if (it->d->has_rel)
                        note(it, "off", it->d->uncounted);
                else
                        retry(it);
                break;
        case OM_RELEASE:
                note(it, "rel", it->d->uncounted + 1);
                break;
        case OM_DEAD:
                nats_stream_need(it->dead, &it->wait);
        }
}

static struct settle *settle_new(size_t n) {
        struct settle *m = calloc(1, sizeof *m + n * sizeof m->items[0]);

        if (m) {
                m->n = n;
                m->left = n + 1;
        }
        return m;
}

static void item_init(struct settle *m, size_t i, struct delivery *d, enum om_verdict verdict) {
        m->items[i] = (struct item){ .job = m, .d = d, .verdict = verdict, .wait.fn = letter_publish };
        d->settling++;
}

static void settle_run(struct settle *m) {
        for (size_t i = 0; i < m->n; i++) {
                if (m->items[i].status < 0)
                        item_done(&m->items[i], m->items[i].status, m->items[i].why);
                else
                        start(&m->items[i]);
        }
        one_less(m);
}

int nats_bus_settle(struct om_bus *b, struct om_bus_settle *op, struct om_error *e) {
        size_t bytes = 0;
        struct settle *m;
        int r;

        for (size_t i = 0; i < op->n; i++) {
                const struct om_settlement *s = &op->items[i];

                bytes += 256 + (s->verdict == OM_DEAD ? s->delivery->record.len + 1024 : 0);
                for (size_t j = 0; j < s->n_outputs; j++)
                        bytes += s->outputs[j].record.len + 512;
        }
        r = nats_job_admit(b, bytes, e);
        if (r < 0)
                return r;
        m = settle_new(op->n);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "NATS");
        m->items_out = op->items;
        nats_job_begin(b, &m->job, &op->op, bytes, settle_free);
        for (size_t i = 0; i < op->n; i++) {
                const struct om_settlement *s = &op->items[i];
                struct delivery *d = (struct delivery *) s->delivery;
                struct item *it = &m->items[i];

                item_init(m, i, d, s->verdict);
                it->due_ms = s->due_ms;
                if (s->verdict == OM_DEAD) {
                        put_letter(&it->letter, s->letter, d->delivery.record);
                        it->dead = d->sub ? nats_dead_get(b, d->sub->topic, d->sub->na) : NULL;
                        it->status = om_buf_ok(&it->letter) && it->dead ? 0 : -ENOMEM;
                } else if (s->verdict == OM_ACK && s->n_outputs && !d->delivery.gone) {
                        r = prepare_outputs(it, s);
                        it->status = r == -EMSGSIZE ? -ENOBUFS : r;
                        it->why = r == -EMSGSIZE ? "NATS: an output is larger than the server's max_payload" : NULL;
                }
        }
        settle_run(m);
        return 0;
}

void nats_release_delivery(struct delivery *d) {
        struct settle *m = settle_new(1);
        bool in_call = d->bus->jobs.in_call;

        if (!m || !nats_link_is_up(d->bus->link)) {
                free(m);
                nats_delivery_free(d); /* it comes again when AckWait is over */
                return;
        }
        if (d->sub)
                DL_DELETE(d->sub->out, d);
        d->sub = NULL;
        d->over = true;
        nats_job_begin(d->bus, &m->job, NULL, 0, settle_free);
        item_init(m, 0, d, OM_RELEASE);
        d->bus->jobs.in_call = true; /* whatever its end, it is posted */
        settle_run(m);
        d->bus->jobs.in_call = in_call;
}
