/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The records of topics in a shared stream, "P.s.top.NT" in the state stream:
 *
 *   {"topic":NAME,"life":WHEN THE SHARED STREAM WAS MADE,"born_ms":N,"joined":BOOL,"floor":SEQ,"gone":N}
 *
 * Always true:
 *   - it is read from the stream's leader, and written on condition that it is as it was read: nobody's change is lost;
 *   - a record of another life of the stream is none: with its stream the topic was gone, and its groups.
 *
 * Loop thread.
 */
#include "bus_state.h"

int nats_record_read(const struct topic *t, struct nats_request *r, nats_reply_fn *fn, void *ctx) {
        char body[SUBJECT_MAX];

        snprintf(body, sizeof body, "{\"last_by_subj\":\"%s.s.top.%s\"}", t->bus->settings.c.prefix, t->nt);
        return nats_call(t->bus->link, r, fn, ctx, om_span_of(body), "STREAM.MSG.GET.%s", t->bus->state_stream);
}

bool nats_record_text(const struct nats_reply *reply, struct om_buf *ret) {
        struct om_arena arena = { 0 };
        struct om_span data = nats_json_text(reply->data, "message.data", &arena);
        bool ok = data.p && nats_base64_decode(data, ret) && nats_json_ok(om_buf_span(ret));

        om_arena_deinit(&arena);
        return ok;
}

bool nats_record_came(const struct topic *t, const struct nats_reply *reply, struct record *ret) {
        struct om_arena arena = { 0 };
        struct om_buf text = OM_BUF_INIT;
        bool ours = false;

        *ret = (struct record){ .seq = nats_json_u64(reply->data, "message.seq") };
        if (nats_record_text(reply, &text)) {
                struct om_span record = om_buf_span(&text), life = nats_json_text(record, "life", &arena);

                ours = life.p && om_span_is(life, t->log->life);
                if (ours) {
                        ret->born_ms = (int64_t) nats_json_u64(record, "born_ms");
                        ret->floor = nats_json_u64(record, "floor");
                        ret->gone = nats_json_u64(record, "gone");
                        ret->joined = nats_json_true(record, "joined");
                }
        }
        om_buf_deinit(&text);
        om_arena_deinit(&arena);
        return ours;
}

int nats_record_write(const struct topic *t, const struct record *record, struct nats_request *r, nats_reply_fn *fn, void *ctx) {
        struct om_bus *b = t->bus;
        struct om_buf body = OM_BUF_INIT;
        char subject[SUBJECT_MAX], seq[24];
        natsMsg *msg;

        om_buf_lit(&body, "{\"topic\":");
        om_buf_json_span(&body, om_span_of(t->name));
        om_buf_lit(&body, ",\"life\":");
        om_buf_json_span(&body, om_span_of(t->log->life));
        om_buf_printf(&body, ",\"born_ms\":%lld,\"joined\":%s,\"floor\":%llu,\"gone\":%llu}", (long long) record->born_ms,
                record->joined ? "true" : "false", (unsigned long long) record->floor, (unsigned long long) record->gone);
        snprintf(subject, sizeof subject, "%s.s.top.%s", b->settings.c.prefix, t->nt);
        snprintf(seq, sizeof seq, "%llu", (unsigned long long) record->seq);
        r->fn = fn;
        r->ctx = ctx;
        msg = om_buf_ok(&body) ? nats_request_new(b->link, r, subject, om_buf_span(&body)) : NULL;
        om_buf_deinit(&body);
        if (!msg)
                return -ENOMEM;
        if (natsMsgHeader_Set(msg, "Nats-Expected-Last-Subject-Sequence", seq) == NATS_OK)
                return nats_request_send(b->link, r, msg);
        natsMsg_Destroy(msg);
        nats_request_end(b->link, r);
        return -ENOMEM;
}

int nats_record_written(struct record *record, const struct nats_reply *reply, const char **ret_why) {
        unsigned code = reply->status == 0 ? nats_error_code(reply->data) : 0;
        int status = nats_publish_answer(reply, ret_why);

        if (reply->status == -ENOENT || code == NATS_ERR_WRONG_LAST_SEQUENCE || code == NATS_ERR_WRONG_LAST_SEQUENCE_CONSTANT)
                return -ESTALE; /* or a server of the cluster does not know yet who takes it */
        if (status == 0)
                record->seq = nats_json_u64(reply->data, "seq");
        return status;
}
