/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing: entries of every kind, and put_if_absent.
 *
 *   put            pieces, where the value is large ──▶ the message ──▶ pieces of an earlier value dropped
 *   put_if_absent  the message, if there is none ──▶ there is: read it ──▶ expired: the message, if that is still the last one
 *
 * Always true:
 *   - an outcome is 0 only when the server has acknowledged the message; its pieces were acknowledged before it;
 *   - a message takes the place of the one before of its subject by Nats-Rollup, not by a limit of the stream: what a limit drops the
 *     server writes down minutes later, so that one that is killed after the newest was deleted has the one before again (2.15);
 *   - what expires has Nats-TTL, in whole seconds and never too short: the server drops it a little late, and nobody reads it meanwhile;
 *   - every write here may be repeated.
 *
 * Loop thread.
 */
#include "store_state.h"

struct put_part {
        struct put_item *item;
        struct nats_request req;
};
struct put_item {
        struct put *put;
        struct nats_request req;
        struct put_part *parts;
        unsigned n_parts, parts_open;
        uint64_t first_part; /* its number in the stream */
        natsMsg *msg;        /* waits for the pieces */
        char parts_filter[SUBJECT_MAX];
        bool replaces; /* pieces of an earlier value may be there */
        int status;
        const char *why;
};
struct put {
        struct job job; /* first */
        struct om_outcome *outcomes;
        size_t n, left;
        struct om_error away; /* the last that was -EAGAIN */
        size_t n_away;
        struct put_item items[];
};

static const char *why_of(int status) {
        switch (status) {
        case -EAGAIN:
                return "NATS: the connection broke before the answer, or the cluster has no leader; it may have been saved";
        case -ENOBUFS:
                return "NATS: the bucket is full, or the account or the server takes no more bytes: raise max_bytes of the bucket's "
                       "streams, or "
                       "the limits of the account";
        case -EACCES:
                return "NATS: the user of the URL lacks the permission to publish to the subjects of the bucket ($KV.BUCKET.>)";
        case -ENOMEM:
                return "out of memory";
        default:
                return "NATS: the server refuses it; the log of the daemon says why";
        }
}

static int answer_of(struct om_store *s, const struct nats_reply *reply, struct om_error *e) {
        int status = nats_error(reply, "saving", e);

        if (status < 0 && status != -EAGAIN && status != -ENOBUFS && status != -ESTALE)
                om_host_log(s->host, OM_LOG_WARNING, "%s", e->message);
        return status;
}

void nats_parts_drop(struct om_store *s, const char *filter, uint64_t below) {
        struct nats_request *r = calloc(1, sizeof *r);
        char stream[BUCKET_MAX + 16], body[SUBJECT_MAX + 60], seq[40] = "";

        nats_stream_name(stream, sizeof stream, s, IN_PARTS);
        if (below)
                snprintf(seq, sizeof seq, ",\"seq\":%llu", (unsigned long long) below);
        snprintf(body, sizeof body, "{\"filter\":\"%s\"%s}", filter, seq);
        if (r && nats_call(s->link, r, nats_request_forget, NULL, om_span_of(body), "STREAM.PURGE.%s", stream) < 0)
                free(r);
}

/* To a domain's bucket messages go by its interface: what is behind a leaf node has a $KV of its own. */
static natsMsg *message_new(struct om_store *s, struct nats_request *r, const char *subject, struct om_span data) {
        char through[SUBJECT_MAX + 80];

        if (!s->has_domain)
                return nats_request_new(s->link, r, subject, data);
        snprintf(through, sizeof through, "%s.%s", nats_link_api(s->link), subject);
        return nats_request_new(s->link, r, through, data);
}

/* -- messages ---------------------------------------------------------------------------------------------------------- */

static natsStatus put_ttl(natsMsg *msg, int64_t expires_ms) {
        int64_t ms = expires_ms - om_now_ms();
        char text[32];

        if (!expires_ms)
                return NATS_OK;
        snprintf(text, sizeof text, "%llds", (long long) (ms > 0 ? ms / 1000 + 2 : 1));
        return natsMsgHeader_Set(msg, "Nats-TTL", text);
}

/* The request is active from here on. NULL: out of memory. */
static natsMsg *entry_message(struct om_store *s, struct nats_request *r, enum om_store_kind kind, const char *subject,
        const struct om_store_entry *entry, const char *generation, unsigned n_parts) {
        struct om_buf b = OM_BUF_INIT;
        natsMsg *msg = NULL;

        nats_envelope_put(&b, entry, generation, n_parts);
        if (om_buf_ok(&b))
                msg = message_new(s, r, subject, om_buf_span(&b));
        om_buf_deinit(&b);
        if (msg &&
                (put_ttl(msg, entry->expires_ms) != NATS_OK ||
                        (kind != OM_STORE_METRICS && natsMsgHeader_Set(msg, "Nats-Rollup", "sub") != NATS_OK))) {
                nats_request_end(s->link, r);
                natsMsg_Destroy(msg);
                msg = NULL;
        }
        return msg;
}

/* -- a batch ----------------------------------------------------------------------------------------------------------- */

static void put_free(struct om_job *j) {
        struct put *p = (struct put *) j;

        for (size_t i = 0; i < p->n; i++)
                free(p->items[i].parts);
        free(p);
}

static void one_less(struct put *p) {
        if (--p->left)
                return;
        if (!om_job_is_cancelled(&p->job.base))
                for (size_t i = 0; i < p->n; i++) {
                        p->outcomes[i].status = p->items[i].status;
                        p->outcomes[i].why = p->items[i].why;
                }
        /* Away is away for all of it. */
        if (p->n && p->n_away == p->n)
                om_job_over(&p->job.base, -EAGAIN, &p->away);
        else
                om_job_over(&p->job.base, 0, NULL);
}

static void item_over(struct put_item *it, int status, const struct om_error *e) {
        struct put *p = it->put;

        it->status = status;
        it->why = status < 0 ? why_of(status) : NULL;
        if (status == -EAGAIN) {
                p->n_away++;
                if (e)
                        p->away = *e;
                else
                        om_error_set(&p->away, OM_UNAVAILABLE, "NATS: not connected");
        }
        one_less(p);
}

static void saved(struct nats_request *r, const struct nats_reply *reply) {
        struct put_item *it = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = answer_of(it->put->job.store, reply, &e);

        if (status == 0 && it->replaces)
                nats_parts_drop(it->put->job.store, it->parts_filter, it->first_part);
        item_over(it, status, &e);
}

static void send_entry(struct put_item *it) {
        natsMsg *msg = it->msg;
        int r;

        it->msg = NULL;
        r = nats_request_send(it->put->job.store->link, &it->req, msg);
        if (r < 0)
                item_over(it, r, NULL);
}

static void parts_over(struct put_item *it) {
        if (it->status == 0) {
                send_entry(it);
                return;
        }
        natsMsg_Destroy(it->msg);
        it->msg = NULL;
        nats_request_end(it->put->job.store->link, &it->req);
        item_over(it, it->status, NULL);
}

static void part_saved(struct nats_request *r, const struct nats_reply *reply) {
        struct put_part *part = r->ctx;
        struct put_item *it = part->item;
        struct om_error e;
        int status = answer_of(it->put->job.store, reply, &e);

        if (status < 0)
                it->status = status;
        else if (part == it->parts)
                it->first_part = nats_json_u64(reply->data, "seq");
        if (--it->parts_open == 0)
                parts_over(it);
}

static int part_send(struct put_item *it, unsigned i, const char *subject, struct om_span data, int64_t expires_ms) {
        struct om_store *s = it->put->job.store;
        struct put_part *part = &it->parts[i];
        natsMsg *msg;

        part->item = it;
        part->req.fn = part_saved;
        part->req.ctx = part;
        msg = message_new(s, &part->req, subject, data);
        if (msg && put_ttl(msg, expires_ms) != NATS_OK) {
                nats_request_end(s->link, &part->req);
                natsMsg_Destroy(msg);
                msg = NULL;
        }
        return msg ? nats_request_send(s->link, &part->req, msg) : -ENOMEM;
}

static size_t part_bytes(const struct om_store *s) {
        int64_t room = nats_link_max_payload(s->link) - AROUND_BYTES;

        return room <= 0 ? 1024 : room < PART_BYTES ? (size_t) room : PART_BYTES;
}

static void send_parts(struct put_item *it, enum om_store_kind kind, const struct om_store_entry *entry, const char *generation) {
        struct om_store *s = it->put->job.store;
        size_t size = part_bytes(s);
        char subject[SUBJECT_MAX];

        s->has_parts = true;
        it->parts = calloc(it->n_parts, sizeof it->parts[0]);
        it->parts_open = 1;
        it->status = it->parts ? 0 : -ENOMEM;
        for (unsigned i = 0; i < it->n_parts && it->status == 0; i++) {
                size_t from = i * size, len = entry->value.len - from < size ? entry->value.len - from : size;
                int r;

                nats_parts_subject(subject, s, kind, entry->key, entry->name, generation, i);
                it->parts_open++;
                r = part_send(it, i, subject, (struct om_span){ entry->value.p + from, len }, entry->expires_ms);
                if (r < 0) {
                        it->status = r;
                        it->parts_open--;
                }
        }
        if (--it->parts_open == 0)
                parts_over(it);
}

/* A metric has no key of its own: it is kept under its topic. */
static struct om_span key_of(enum om_store_kind kind, const struct om_store_entry *entry) {
        return kind == OM_STORE_METRICS ? entry->topic.p ? entry->topic : OM_SPAN("") : entry->key;
}

static void put_one(struct put_item *it, enum om_store_kind kind, const struct om_store_entry *given) {
        struct om_store *s = it->put->job.store;
        struct om_store_entry entry = *given;
        char subject[SUBJECT_MAX], generation[20] = "";
        const char *fault = nats_entry_fault(given);

        if (fault) {
                it->status = -EINVAL;
                it->why = fault;
                one_less(it->put);
                return;
        }
        entry.key = key_of(kind, given);
        if (!entry.key.p)
                entry.key = OM_SPAN("");
        if ((kind == OM_STORE_AGENTS || kind == OM_STORE_RESULTS) && !entry.name.p)
                entry.name = OM_SPAN("");
        nats_entry_subject(subject, s, kind, entry.key, entry.name);
        nats_parts_subject(it->parts_filter, s, kind, entry.key, entry.name, NULL, 0);
        it->replaces = s->has_parts && kind != OM_STORE_METRICS;
        if (entry.value.len > part_bytes(s)) {
                it->n_parts = (unsigned) ((entry.value.len + part_bytes(s) - 1) / part_bytes(s));
                snprintf(generation, sizeof generation, "%llx", (unsigned long long) om_random_u64());
                it->replaces = true;
        }
        it->req.fn = saved;
        it->req.ctx = it;
        it->msg = entry_message(s, &it->req, kind, subject, &entry, generation, it->n_parts);
        if (!it->msg)
                item_over(it, -ENOMEM, NULL);
        else if (it->n_parts)
                send_parts(it, kind, &entry, generation);
        else
                send_entry(it);
}

int nats_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        size_t bytes = 0;
        struct put *p;
        int r;

        for (size_t i = 0; i < op->n; i++)
                bytes += op->entries[i].value.len + 512;
        r = nats_store_admit(s, bytes, e);
        if (r < 0)
                return r;
        p = calloc(1, sizeof *p + op->n * sizeof p->items[0]);
        if (!p)
                return om_error_set_errno(e, ENOMEM, "NATS");
        p->outcomes = op->outcomes;
        p->n = op->n;
        p->left = op->n + 1;
        nats_store_begin(s, &p->job, &op->op, bytes, put_free);
        for (size_t i = 0; i < op->n; i++) {
                p->outcomes[i] = (struct om_outcome){ .status = 0 };
                p->items[i].put = p;
                put_one(&p->items[i], op->kind, &op->entries[i]);
        }
        one_less(p);
        return 0;
}

/* -- unless there is one ----------------------------------------------------------------------------------------------- */

enum { CLAIMS_MAX = 20 };

struct claim {
        struct job job; /* first */
        struct om_store_put_if_absent *op;
        struct nats_request req;
        struct load load;
        struct om_store_entry entry;
        struct om_arena arena;
        char subject[SUBJECT_MAX];
        unsigned tries;
};

static void claim_free(struct om_job *j) {
        struct claim *c = (struct claim *) j;

        nats_load_free(&c->load);
        om_arena_deinit(&c->arena);
        free(c);
}

static void claim_try(struct claim *c, uint64_t last_seq);

static void claim_over(struct claim *c, int status, const struct om_error *e) { om_job_over(&c->job.base, status, e); }

static void claim_read(struct load *l, int status, const struct om_error *e) {
        struct claim *c = l->ctx;
        struct om_error mine;

        if (status == -ENOENT || (status == 0 && om_entry_expired(&l->envelope.entry, om_now_ms()))) {
                uint64_t seq = status == 0 ? l->seq : 0;

                nats_load_free(l);
                *l = (struct load){ .store = c->job.store };
                if (++c->tries < CLAIMS_MAX)
                        claim_try(c, seq);
                else
                        claim_over(c, om_error_set(&mine, OM_UNAVAILABLE, "NATS: the key changes hands all the time; ask again"), &mine);
                return;
        }
        if (status == -EINVAL)
                status = om_error_set(&mine, OM_INTERNAL, "NATS: the key is there, and not of this storage's making"), e = &mine;
        if (status == 0 && !om_job_is_cancelled(&c->job.base)) {
                c->op->ret_value = om_arena_copy(&c->op->arena, l->envelope.entry.value);
                if (!c->op->ret_value.p)
                        status = om_error_set_errno(&mine, ENOMEM, "NATS"), e = &mine;
        }
        claim_over(c, status, e);
}

static void claimed(struct nats_request *r, const struct nats_reply *reply) {
        struct claim *c = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        unsigned code = reply->status == 0 ? nats_error_code(reply->data) : 0;
        int status;

        if (code == NATS_ERR_WRONG_LAST_SEQUENCE || code == NATS_ERR_WRONG_LAST_SEQUENCE_CONSTANT) {
                c->load.kind = OM_STORE_KEYS;
                c->load.whole = true;
                c->load.done = claim_read;
                c->load.ctx = c;
                nats_load_subject(&c->load, c->subject);
                return;
        }
        status = answer_of(c->job.store, reply, &e);
        if (status == 0 && !om_job_is_cancelled(&c->job.base))
                c->op->ret_stored = true;
        claim_over(c, status, &e);
}

static void claim_try(struct claim *c, uint64_t last_seq) {
        struct om_store *s = c->job.store;
        struct om_error e;
        char text[24];
        natsMsg *msg;
        int r = -ENOMEM;

        c->req = (struct nats_request){ .fn = claimed, .ctx = c };
        snprintf(text, sizeof text, "%llu", (unsigned long long) last_seq);
        msg = entry_message(s, &c->req, OM_STORE_KEYS, c->subject, &c->entry, "", 0);
        if (msg && natsMsgHeader_Set(msg, "Nats-Expected-Last-Subject-Sequence", text) == NATS_OK)
                r = nats_request_send(s->link, &c->req, msg);
        else if (msg) {
                nats_request_end(s->link, &c->req);
                natsMsg_Destroy(msg);
        }
        if (r == 0)
                return;
        nats_unsent(r, &e);
        claim_over(c, r, &e);
}

int nats_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        size_t bytes = op->key.len + op->value.len + 512;
        struct om_store_entry entry = { .key = op->key, .value = op->value, .saved_ms = om_now_ms(), .expires_ms = op->expires_ms };
        int r = nats_store_admit(s, bytes, e);
        struct claim *c;

        if (r < 0)
                return r;
        if (op->key.len > OM_STORE_KEY_MAX)
                return om_error_set(e, OM_INVALID, "a key is longer than %d bytes", OM_STORE_KEY_MAX);
        if (op->value.len > part_bytes(s))
                return om_error_set(e, OM_INVALID, "NATS: a value of put_if_absent is larger than the server's max_payload");
        c = calloc(1, sizeof *c);
        if (!c || !om_entry_copy(&c->arena, &entry, &c->entry)) {
                if (c)
                        om_arena_deinit(&c->arena);
                free(c);
                return om_error_set_errno(e, ENOMEM, "NATS");
        }
        op->ret_stored = false;
        op->arena = (struct om_arena){ 0 };
        op->ret_value = OM_SPAN_NONE;
        c->op = op;
        c->load.store = s;
        nats_entry_subject(c->subject, s, OM_STORE_KEYS, op->key, OM_SPAN_NONE);
        nats_store_begin(s, &c->job, &op->op, bytes, claim_free);
        claim_try(c, 0);
        return 0;
}
