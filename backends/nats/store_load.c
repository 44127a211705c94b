/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one entry: the message with its envelope, then, where the value is in pieces, those.
 *
 * Always true:
 *   - it is the leader of the stream that is asked (STREAM.MSG.GET): what was acknowledged to anybody is read by everybody;
 *   - pieces that are gone belong to a value that was replaced or deleted meanwhile: the entry is read again, a few times.
 *
 * Loop thread.
 */
#include "store_state.h"

enum { TRIES = 5 };

struct part_load {
        struct load *load;
        struct nats_request req;
        struct om_buf data;
};

static void over(struct load *l, int status, const struct om_error *e) { l->done(l, status, e); }

static void parts_free(struct load *l) {
        for (unsigned i = 0; l->parts && i < l->envelope.n_parts; i++)
                om_buf_deinit(&l->parts[i].data);
        free(l->parts);
        l->parts = NULL;
}

void nats_load_free(struct load *l) {
        parts_free(l);
        om_buf_deinit(&l->text);
        om_buf_deinit(&l->value);
        om_arena_deinit(&l->arena);
}

/* The message's bytes. 0, -ENOENT, or another failure with `e`. */
static int take(const struct nats_reply *reply, struct om_buf *out, uint64_t *ret_seq, struct om_error *e) {
        struct om_arena arena = { 0 };
        struct om_span data;
        int status = nats_error(reply, "reading a message", e);

        if (status < 0)
                return nats_error_code(reply->data) == NATS_ERR_NO_MESSAGE ? -ENOENT : status;
        if (ret_seq)
                *ret_seq = nats_json_u64(reply->data, "message.seq");
        data = nats_json_text(reply->data, "message.data", &arena);
        if (data.p && !nats_base64_decode(data, out))
                status = om_buf_ok(out) ? om_error_set(e, OM_INTERNAL, "NATS: a message cannot be read")
                                        : om_error_set_errno(e, ENOMEM, "NATS");
        om_arena_deinit(&arena);
        return status;
}

/* -- pieces ------------------------------------------------------------------------------------------------------------- */

static void start(struct load *l);

static void parts_over(struct load *l) {
        struct om_error e = OM_ERROR_INIT;
        int status = l->parts_status;

        if (status == -ENOENT && ++l->tries < TRIES) {
                parts_free(l);
                start(l);
                return;
        }
        for (unsigned i = 0; status == 0 && i < l->envelope.n_parts; i++)
                om_buf_put_span(&l->value, om_buf_span(&l->parts[i].data));
        parts_free(l);
        if (status == 0 && !om_buf_ok(&l->value))
                status = om_error_set_errno(&e, ENOMEM, "NATS");
        else if (status == 0 && l->value.len != l->envelope.size)
                status = om_error_set(&e, OM_INTERNAL, "NATS: a value of %zu bytes has %zu in its pieces", l->envelope.size, l->value.len);
        else if (status == -ENOENT)
                status = om_error_set(&e, OM_UNAVAILABLE, "NATS: a value is being replaced; ask again");
        else if (status < 0)
                om_error_set(&e, OM_UNAVAILABLE, "NATS: the pieces of a value cannot be read now");
        l->envelope.entry.value = om_buf_span(&l->value);
        over(l, status, &e);
}

static void part_came(struct nats_request *r, const struct nats_reply *reply) {
        struct part_load *p = r->ctx;
        struct load *l = p->load;
        struct om_error e;
        int status = take(reply, &p->data, NULL, &e);

        if (status < 0 && l->parts_status == 0)
                l->parts_status = status;
        if (--l->parts_open == 0)
                parts_over(l);
}

static void load_parts(struct load *l) {
        struct om_store *s = l->store;
        char stream[BUCKET_MAX + 16], subject[SUBJECT_MAX], body[SUBJECT_MAX + 40];

        l->parts_status = 0;
        om_buf_clear(&l->value);
        l->parts = calloc(l->envelope.n_parts, sizeof l->parts[0]);
        l->parts_open = 1;
        if (!l->parts)
                l->parts_status = -ENOMEM;
        nats_stream_name(stream, sizeof stream, s, IN_PARTS);
        for (unsigned i = 0; l->parts && i < l->envelope.n_parts; i++) {
                struct part_load *p = &l->parts[i];

                p->load = l;
                nats_parts_subject(subject, s, l->kind, l->envelope.entry.key, l->envelope.entry.name, l->envelope.generation, i);
                snprintf(body, sizeof body, "{\"last_by_subj\":\"%s\"}", subject);
                l->parts_open++;
                if (nats_call(s->link, &p->req, part_came, p, om_span_of(body), "STREAM.MSG.GET.%s", stream) < 0) {
                        l->parts_status = -EAGAIN;
                        l->parts_open--;
                }
        }
        if (--l->parts_open == 0)
                parts_over(l);
}

/* -- the message ------------------------------------------------------------------------------------------------------- */

static void came(struct nats_request *r, const struct nats_reply *reply) {
        struct load *l = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = take(reply, &l->text, &l->seq, &e);

        if (status == 0)
                status = nats_envelope_read(om_buf_span(&l->text), &l->arena, &l->envelope);
        if (status == -EINVAL)
                om_host_log(l->store->host, OM_LOG_WARNING, "NATS: message %llu of the bucket %s is not of this storage's making",
                        (unsigned long long) l->seq, l->store->bucket);
        if (status == 0 && l->whole && l->envelope.n_parts && !om_entry_expired(&l->envelope.entry, om_now_ms()))
                load_parts(l);
        else
                over(l, status, &e);
}

static void start(struct load *l) {
        struct om_store *s = l->store;
        struct om_error e;
        char stream[BUCKET_MAX + 16];
        int r;

        nats_stream_name(stream, sizeof stream, s, nats_stream_of(l->kind));
        om_buf_clear(&l->text);
        r = nats_call(s->link, &l->req, came, l, om_span_of(l->body), "STREAM.MSG.GET.%s", stream);
        if (r < 0) {
                nats_unsent(r, &e);
                over(l, r, &e);
        }
}

void nats_load_subject(struct load *l, const char *subject) {
        snprintf(l->body, sizeof l->body, "{\"last_by_subj\":\"%s\"}", subject);
        start(l);
}

void nats_load_next(struct load *l, const char *subject, uint64_t seq) {
        snprintf(l->body, sizeof l->body, "{\"seq\":%llu,\"next_by_subj\":\"%s\"}", (unsigned long long) seq, subject);
        start(l);
}

void nats_load_seq(struct load *l, uint64_t seq) {
        snprintf(l->body, sizeof l->body, "{\"seq\":%llu}", (unsigned long long) seq);
        start(l);
}
