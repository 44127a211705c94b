/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Idempotency keys. The key is the message's Nats-Msg-Id, by which the server drops a repeat within dedupe_window_ms; and for
 * idempotency_window_ms a stream of its own holds, for each key of a topic, the id of the task that was first:
 *
 *   is the key known? ──▶ yes: that id, a duplicate
 *        └─▶ no: publish ──▶ stored: make the key known ──▶ done
 *                   └─▶ dropped as a repeat: somebody else was first; the id is with the key by now, or in the message itself
 *
 * A death between publishing and making known leaves the server's own memory, which is longer than that takes. The stream is made with the
 * first key.
 *
 * Loop thread.
 */
#include "bus_state.h"

int nats_key_init(struct publication *p, const struct om_task *t) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_printf(&b, "%s.k.%s.", p->bus->settings.c.prefix, p->topic->nt);
        nats_name_encode(&b, t->idempotency_key);
        om_buf_putc(&b, 0);
        snprintf(p->id, sizeof p->id, "%.*s", OM_PRI(t->id));
        if (!om_buf_ok(&b)) {
                om_buf_deinit(&b);
                return -ENOMEM;
        }
        p->key = b.data;
        return 0;
}

static void is_duplicate(struct publication *p, struct om_span id) {
        snprintf(p->id, sizeof p->id, "%.*s", OM_PRI(id));
        p->duplicate = true;
        nats_publication_over(p, 0, NULL);
}

static int ask(struct publication *p, nats_reply_fn *fn) {
        return nats_call(p->bus->link, &p->key_req, fn, p, OM_SPAN_NONE, "DIRECT.GET.%s-keys.%s", p->bus->settings.c.prefix, p->key);
}

static void away(struct publication *p) { nats_publication_over(p, -EAGAIN, "NATS: not connected"); }

/* -- before ---------------------------------------------------------------------------------------------------------- */

static void asked(struct nats_request *r, const struct nats_reply *reply) {
        struct publication *p = r->ctx;

        if (reply->status == 0 && reply->code == 0 && reply->data.len)
                is_duplicate(p, reply->data);
        else if (reply->status == -EAGAIN)
                away(p);
        else
                nats_topic_need(p->topic, &p->wait);
}

/* -- after ----------------------------------------------------------------------------------------------------------- */

static void keys_made(struct nats_request *r, const struct nats_reply *reply) {
        struct publication *p = r->ctx;
        struct om_error e;
        int status = nats_error(reply, "making the stream of idempotency keys", &e);

        p->made_keys = true;
        p->bus->keys_made = status == 0 || nats_error_code(reply->data) == NATS_ERR_STREAM_EXISTS;
        if (status < 0 && nats_error_code(reply->data) != NATS_ERR_STREAM_EXISTS) {
                om_host_log(p->bus->host, OM_LOG_WARNING, "%s", e.message);
                nats_publication_over(p, status, "NATS: the stream of idempotency keys cannot be made; the log of the daemon says why");
                return;
        }
        if (p->asked_keys)
                nats_key_put(p);
        else
                nats_key_ask(p);
}

static void make_keys(struct publication *p) {
        struct om_bus *b = p->bus;
        struct om_buf body = OM_BUF_INIT;
        char name[64], subject[64];
        int r;

        snprintf(name, sizeof name, "%s-keys", b->settings.c.prefix);
        snprintf(subject, sizeof subject, "%s.k.>", b->settings.c.prefix);
        nats_put_stream_config(&body, b, name, subject, NULL, STREAM_KEYS);
        r = nats_call(b->link, &p->key_req, keys_made, p, om_buf_span(&body), "STREAM.CREATE.%s", name);
        om_buf_deinit(&body);
        if (r < 0)
                away(p);
}

static void put(struct nats_request *r, const struct nats_reply *reply) {
        struct publication *p = r->ctx;
        const char *why;
        int status;

        if (reply->status == -ENOENT && !p->made_keys) {
                make_keys(p);
                return;
        }
        if (reply->status == -ENOENT && nats_publication_later(p, nats_key_put))
                return;
        /* It is published, whatever this says; the server's own memory goes on for a while. */
        status = nats_publish_answer(reply, &why);
        if (status < 0)
                om_host_log(p->bus->host, OM_LOG_WARNING, "an idempotency key is remembered for a shorter time: %s", why);
        nats_publication_over(p, 0, NULL);
}

void nats_key_put(struct publication *p) {
        natsMsg *msg;

        p->key_req.fn = put;
        p->key_req.ctx = p;
        p->key_req.open = false;
        msg = nats_request_new(p->bus->link, &p->key_req, p->key, om_span_of(p->id));
        if (!msg || nats_request_send(p->bus->link, &p->key_req, msg) < 0)
                nats_publication_over(p, 0, NULL);
}

/* Through a leaf node a stream that is not there does not answer, and nobody says so. */
void nats_key_ask(struct publication *p) {
        if (p->bus->has_domain && !p->bus->keys_made && !p->made_keys)
                make_keys(p);
        else {
                p->asked_keys = true;
                if (ask(p, asked) < 0)
                        away(p);
        }
}

/* -- somebody else was first ------------------------------------------------------------------------------------------ */

static void first_came(struct nats_request *r, const struct nats_reply *reply) {
        struct publication *p = r->ctx;
        struct om_arena arena = { 0 };
        struct om_span id = reply->status == 0 && reply->code == 0 && nats_json_ok(reply->data) ? nats_json_text(reply->data, "id", &arena)
                                                                                                : OM_SPAN_NONE;

        if (id.len)
                is_duplicate(p, id);
        else if (reply->status != 0 || reply->code != 404 ||
                !nats_publication_later(p, nats_key_find_first)) /* a copy that lags knows none */
                nats_publication_over(p, -EAGAIN, "NATS: a publish with this idempotency key was faster; ask again for its id");
        om_arena_deinit(&arena);
}

static void known_now(struct nats_request *r, const struct nats_reply *reply) {
        struct publication *p = r->ctx;
        char body[48];

        if (reply->status == 0 && reply->code == 0 && reply->data.len) {
                is_duplicate(p, reply->data);
                return;
        }
        snprintf(body, sizeof body, "{\"seq\":%llu}", (unsigned long long) p->first_seq);
        if (nats_call(p->bus->link, &p->key_req, first_came, p, om_span_of(body), "DIRECT.GET.%s", p->topic->log->name) < 0)
                away(p);
}

void nats_key_find_first(struct publication *p) {
        if (ask(p, known_now) < 0)
                away(p);
}
