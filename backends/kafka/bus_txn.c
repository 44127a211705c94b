/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exactly once: what an ack publishes and the commit that says it is finished are one transaction.
 *
 * A group one of whose acks has published makes all its commits so, from then on: the two kinds would overtake each other. One transaction
 * is under way at a time, for all such groups; the library's calls block, so they are made on a thread of their own. The offsets go with
 * the member's generation: a daemon that lost its partitions commits nothing any more. The transactional id is the daemon's name: the same
 * daemon, started again, ends what was open.
 *
 * A transaction that fails is aborted and tried again with what is to be said by then; who waits, waits. Only an output that can never be
 * published fails its ack.
 *
 * Loop thread, but for run().
 */
#include "bus_state.h"

enum { TXN_MS = 10000, AGAIN_MS = 100 };

struct txn {
        struct call call; /* first */
        rd_kafka_t *rk;   /* made by the first */
        rd_kafka_topic_partition_list_t *offsets;
        rd_kafka_consumer_group_metadata_t *member;
        struct part_ref {
                uint32_t slot, term;
        } parts[64];
        size_t n_parts;
        struct outputs **outputs; /* references */
        size_t n_outputs, cap_outputs;
        size_t bad; /* place in outputs + 1 of what can never be published; 0: none */
        rd_kafka_resp_err_t bad_err;
        bool fatal;
};

void kafka_outputs_unref(struct outputs *o) {
        if (--o->refs)
                return;
        for (size_t i = 0; i < o->n; i++) {
                free(o->items[i].value);
                free(o->items[i].key);
                if (o->items[i].headers)
                        rd_kafka_headers_destroy(o->items[i].headers);
        }
        free(o);
}

static void topic_there(struct topic_wait *w, int status, const struct om_error *e) {
        struct outputs *o = ((struct output *) w)->of;

        if (status < 0 && !o->status) {
                o->status = status;
                o->error = *e;
        }
        if (--o->missing == 0 && o->verdict)
                kafka_outputs_there(o->verdict, o->status, o->error.message);
        kafka_outputs_unref(o);
}

/* Copies what the ack publishes, and calls kafka_outputs_there() when the topics are. With v->outputs set, its status is what is wrong. */
int kafka_outputs_copy(struct verdict *v, const struct om_settlement *item) {
        struct outputs *o = calloc(1, sizeof *o + item->n_outputs * sizeof o->items[0]);
        int r = 0;

        if (!o)
                return -ENOMEM;
        o->refs = 1;
        o->verdict = v;
        v->outputs = o;
        for (; o->n < item->n_outputs && !r; o->n++) {
                struct send s = { .bus = v->bus };

                r = kafka_send_task(&s, v->bus, &item->outputs[o->n]);
                o->items[o->n] = (struct output){
                        .of = o, .topic = s.topic, .value = s.value, .len = s.len, .key_len = s.key_len, .key = s.key, .headers = s.headers
                };
        }
        if (r < 0) {
                o->status = r;
                return r;
        }
        o->missing = o->n;
        o->refs += (int) o->n + 1;
        for (size_t i = 0; i < o->n; i++) {
                o->items[i].wait.fn = topic_there;
                kafka_topic_need(o->items[i].topic, &o->items[i].wait);
        }
        kafka_outputs_unref(o);
        return 0;
}

/* -- on the thread ---------------------------------------------------------------------------------------------------------- */

static int failed(struct txn *t, rd_kafka_error_t *error, const char *what) {
        if (!error)
                return 0;
        t->call.status = kafka_error(rd_kafka_error_code(error), rd_kafka_error_string(error), what, &t->call.error);
        if (!t->call.status)
                t->call.status = -EIO;
        t->fatal |= rd_kafka_error_is_fatal(error);
        rd_kafka_error_destroy(error);
        return -1;
}

static rd_kafka_t *transactional(struct om_bus *b, struct om_error *e) {
        char timeout[16], id[sizeof b->group_id + sizeof b->instance + 2];
        const char *const properties[][2] = { { "transactional.id", id }, { "transaction.timeout.ms", timeout },
                { "enable.idempotence", "true" }, { "acks", "all" }, { "message.timeout.ms", timeout }, { NULL, NULL } };

        snprintf(id, sizeof id, "%s-%s", b->group_id, b->instance);
        snprintf(timeout, sizeof timeout, "%d", TXN_MS);
        return kafka_handle(b, HANDLE_TRANSACTS, properties, e);
}

static int ready(struct txn *t) {
        if (t->rk)
                return 0;
        t->rk = transactional(t->call.bus, &t->call.error);
        if (!t->rk) {
                t->call.status = -EINVAL;
                return -1;
        }
        if (failed(t, rd_kafka_init_transactions(t->rk, TXN_MS), "beginning with transactions") == 0)
                return 0;
        t->fatal = true;
        return -1;
}

void kafka_txn_recover(struct om_bus *b) {
        struct om_error e;
        rd_kafka_t *rk = transactional(b, &e);
        rd_kafka_error_t *error = rk ? rd_kafka_init_transactions(rk, TXN_MS) : NULL;

        if (error)
                rd_kafka_error_destroy(error);
        if (rk)
                rd_kafka_destroy(rk);
}

static void is_bad(struct txn *t, size_t place, rd_kafka_resp_err_t err) {
        if (t->bad ||
                (err != RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE && err != RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED &&
                        err != RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION && err != RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC))
                return;
        t->bad = place;
        t->bad_err = err;
}

void kafka_txn_delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
        struct om_bus *b = opaque;

        if (m->err)
                is_bad(b->txn, (size_t) (uintptr_t) m->_private, m->err);
}

static int produce(struct txn *t, const struct output *o, size_t place) {
        rd_kafka_headers_t *headers = o->headers ? rd_kafka_headers_copy(o->headers) : NULL;
        rd_kafka_vu_t parts[] = { { RD_KAFKA_VTYPE_TOPIC, { .cstr = o->topic->kname } },
                { RD_KAFKA_VTYPE_MSGFLAGS, { .i = RD_KAFKA_MSG_F_COPY | RD_KAFKA_MSG_F_BLOCK } },
                { RD_KAFKA_VTYPE_VALUE, { .mem = { o->value, o->len } } }, { RD_KAFKA_VTYPE_KEY, { .mem = { o->key, o->key_len } } },
                { RD_KAFKA_VTYPE_OPAQUE, { .ptr = (void *) (uintptr_t) place } }, { RD_KAFKA_VTYPE_HEADERS, { .headers = headers } } };
        rd_kafka_error_t *error = rd_kafka_produceva(t->rk, parts, headers ? 6 : 5);

        if (!error)
                return 0;
        is_bad(t, place, rd_kafka_error_code(error));
        if (headers)
                rd_kafka_headers_destroy(headers);
        return failed(t, error, "publishing an output");
}

static int produce_all(struct txn *t) {
        int r = 0;

        for (size_t i = 0; i < t->n_outputs && !r; i++)
                for (size_t k = 0; k < t->outputs[i]->n && !r; k++)
                        r = produce(t, &t->outputs[i]->items[k], i + 1);
        return r;
}

static void txn_run(struct call *c) {
        struct txn *t = (struct txn *) c;
        bool begun = false;
        int r = ready(t);

        if (!r)
                r = failed(t, rd_kafka_begin_transaction(t->rk), "beginning a transaction");
        begun = !r;
        if (!r)
                r = produce_all(t);
        if (!r)
                r = failed(t, rd_kafka_send_offsets_to_transaction(t->rk, t->offsets, t->member, TXN_MS), "committing in a transaction");
        if (!r)
                r = failed(t, rd_kafka_commit_transaction(t->rk, TXN_MS), "committing a transaction");
        if (r && begun && !t->fatal) {
                rd_kafka_error_t *error = rd_kafka_abort_transaction(t->rk, TXN_MS);

                if (error) {
                        t->fatal = true; /* whatever is open ends with the next one of this name */
                        rd_kafka_error_destroy(error);
                }
        }
        if (t->fatal && t->rk) {
                rd_kafka_destroy(t->rk);
                t->rk = NULL;
        }
        t->fatal = false;
        rd_kafka_topic_partition_list_destroy(t->offsets);
        rd_kafka_consumer_group_metadata_destroy(t->member);
}

/* -- on the loop ---------------------------------------------------------------------------------------------------------- */

static struct part *still(struct om_bus *b, const struct part_ref *ref) {
        struct part *p = NULL;

        HASH_FIND(hh, b->parts_by_slot, &ref->slot, sizeof ref->slot, p);
        return p && p->term == ref->term && p->state != PART_IDLE ? p : NULL;
}

/* Out of what is to be committed: the ack fails, the task is open again. */
static void give_up(struct txn *t) {
        struct verdict *v = t->outputs[t->bad - 1]->verdict;
        const char *why;
        int status = kafka_send_error(t->bad_err, &why);

        if (!v || !v->part) /* it was lost, and is over */
                return;
        DL_DELETE(v->part->pending, v);
        kafka_track_undo(&v->part->at[v->delivery->which].pos.track, v->delivery->offset);
        v->part->finished--;
        kafka_verdict_over(v, status, why);
}

static void txn_done(struct call *c) {
        struct txn *t = (struct txn *) c;
        struct om_bus *b = c->bus;

        b->txn_busy = false;
        if (c->status < 0)
                om_host_log(b->host, OM_LOG_INFO, "%s", c->error.message);
        for (size_t i = 0; i < t->n_parts && !b->closing; i++) {
                struct part *p = still(b, &t->parts[i]);

                if (p)
                        kafka_commit_done(b, p, c->status == 0);
        }
        if (t->bad && c->status < 0 && !b->closing)
                give_up(t);
        for (size_t i = 0; i < t->n_outputs; i++)
                kafka_outputs_unref(t->outputs[i]);
        t->n_outputs = t->bad = 0;
        if (b->closing)
                return;
        if (c->status < 0)
                evtimer_add(b->commit_timer, (&(struct timeval){ 0, AGAIN_MS * 1000 }));
        else {
                b->heard_ms = om_clock_ms();
                kafka_commit_soon(b);
        }
        kafka_revoke_check(b);
}

static bool add_outputs(struct txn *t, struct part *p) {
        struct verdict *v;

        DL_FOREACH (p->committing, v) {
                if (!v->outputs)
                        continue;
                if (t->n_outputs == t->cap_outputs) {
                        size_t cap = t->cap_outputs ? t->cap_outputs * 2 : 64;
                        struct outputs **more = reallocarray(t->outputs, cap, sizeof(struct outputs *));

                        if (!more)
                                return false;
                        t->outputs = more;
                        t->cap_outputs = cap;
                }
                t->outputs[t->n_outputs++] = v->outputs;
                v->outputs->refs++;
        }
        return true;
}

static struct txn *txn_of(struct om_bus *b) {
        struct txn *t = b->txn;

        if (t || !(t = calloc(1, sizeof *t)))
                return t;
        t->call.run = txn_run;
        t->call.done = txn_done;
        b->txn = t;
        return t;
}

void kafka_txn_commit(struct om_bus *b, struct part **parts, size_t n) {
        struct txn *t = txn_of(b);
        struct om_error e;
        bool ok = t != NULL;

        if (!ok) {
                evtimer_add(b->commit_timer, (&(struct timeval){ 0, AGAIN_MS * 1000 }));
                return;
        }
        kafka_bus_transacts(b);
        t->offsets = rd_kafka_topic_partition_list_new((int) n);
        t->n_parts = 0;
        for (size_t i = 0; i < n && ok; i++) {
                kafka_commit_entry(parts[i], t->offsets);
                parts[i]->in_txn = true;
                t->parts[t->n_parts++] = (struct part_ref){ parts[i]->slot, parts[i]->term };
                ok = add_outputs(t, parts[i]);
        }
        t->member = rd_kafka_consumer_group_metadata(b->member);
        t->call.status = 0;
        b->txn_busy = ok && t->member && kafka_call(b, WORKER_TXN, &t->call, &e) == 0;
        if (b->txn_busy)
                return;
        rd_kafka_topic_partition_list_destroy(t->offsets);
        if (t->member)
                rd_kafka_consumer_group_metadata_destroy(t->member);
        t->call.bus = b;
        t->call.status = -ENOMEM;
        om_error_set_errno(&t->call.error, ENOMEM, "Kafka");
        txn_done(&t->call);
}

/* -- closing ---------------------------------------------------------------------------------------------------------------- */

static void close_run(struct call *c) {
        struct txn *t = (struct txn *) c;

        if (t->rk)
                rd_kafka_destroy(t->rk);
        t->rk = NULL;
}

static void close_done(struct call *c) {
        struct txn *t = (struct txn *) c;

        free(t->outputs);
        free(t);
}

void kafka_txn_close(struct om_bus *b) {
        struct txn *t = b->txn;
        struct om_error e;

        if (!t) /* none is under way: that is waited for before */
                return;
        b->txn = NULL;
        t->call.run = close_run;
        t->call.done = close_done;
        if (kafka_call(b, WORKER_TXN, &t->call, &e) < 0) {
                close_run(&t->call);
                close_done(&t->call);
        }
}
