/* SPDX-License-Identifier: Apache-2.0 */
/* A stream of frames as a session or a client reads it: framing, envelope, error objects, and the tasks inside; a task that is accepted
 * gives a record that reads back as the same task. */
#include <string.h>

#include "../../proto/frame.h"
#include "../../proto/rpc.h"
#include "../../proto/task.h"
#include "fuzz.h"

static void task(struct om_span object) {
        struct om_task t, again;
        struct om_error e = OM_ERROR_INIT;
        struct om_buf record = OM_BUF_INIT, second = OM_BUF_INIT;

        if (om_task_parse(object, "task", &t, &e) < 0) {
                MUST(e.message[0]);
                return;
        }
        char id[OM_ID_LEN + 1] = "11111111-2222-4333-8444-555555555555";
        if (!t.id.p)
                t.id = om_span_of(id);
        om_task_write(&record, &t);
        MUST(om_buf_ok(&record) && om_json_check(om_buf_span(&record), OM_DEPTH_MAX, &e) == 0);
        MUST(om_task_parse(om_buf_span(&record), "record", &again, &e) == 0);
        MUST(om_span_eq(t.content, again.content) && om_span_eq(t.topic, again.topic) && om_span_eq(t.id, again.id) &&
                om_span_eq(t.key, again.key));
        if (t.key.p) { /* any two names will do */
                MUST(om_topic_is_pattern(t.key) || om_topic_matches(t.key, t.topic) == om_span_eq(t.key, t.topic));
                MUST(om_topic_matches(OM_SPAN("#"), t.key));
                om_topic_matches(t.key, t.topic);
        }
        MUST(om_span_eq(t.headers, again.headers) && om_span_eq(t.webhook, again.webhook) && om_span_eq(t.reply_to, again.reply_to));
        MUST(t.priority == again.priority && t.ttl_ms == again.ttl_ms && t.delay_ms == again.delay_ms &&
                t.delivery_attempts == again.delivery_attempts);
        om_task_write(&second, &again);
        MUST(om_span_eq(om_buf_span(&record), om_buf_span(&second)));
        om_task_deinit(&again);
        om_task_deinit(&t);
        om_buf_deinit(&record);
        om_buf_deinit(&second);
}

static void body(struct om_span text) {
        struct om_rpc rpc;
        struct om_error e = OM_ERROR_INIT;

        if (om_rpc_parse(text, &rpc, &e) < 0) {
                struct om_buf reply = OM_BUF_INIT;
                MUST(e.code != 0 && e.kind != OM_OK && e.message[0]);
                om_rpc_put_error(&reply, rpc.id, &e);
                struct om_span whole;
                MUST(om_frame_peek(reply.data, reply.len, OM_FRAME_MAX_DEFAULT, &whole, &e) == 1);
                MUST(om_json_check(whole, OM_DEPTH_MAX, &e) == 0); /* whatever came, the answer is JSON */
                om_buf_deinit(&reply);
                return;
        }
        if (rpc.type == OM_RPC_ERROR)
                om_rpc_parse_error(rpc.error, &e);
        if (rpc.params.p) {
                struct om_json_member members[] = { { "task", OM_JSON_OBJECT, true, { 0 } }, { NULL, 0, false, { 0 } } };
                if (om_json_members(rpc.params, "params", members, &e) == 0)
                        task(members[0].value.text);
        }
}

/* No buffer has room for more than there can be; it says so, and keeps what it has. */
static void ask_too_much(struct om_span text) {
        struct om_buf grown = OM_BUF_INIT, fitted = OM_BUF_INIT;

        om_buf_put_span(&grown, text);
        om_buf_put_span(&fitted, text);
        MUST(!om_buf_grow(&grown, SIZE_MAX - text.len / 2) && !om_buf_ok(&grown) && grown.len == text.len);
        MUST(!om_buf_fit(&fitted, SIZE_MAX - text.len / 2) && !om_buf_ok(&fitted) && fitted.len == text.len);
        MUST(!om_buf_fit(&fitted, 1)); /* and stays so */
        om_buf_deinit(&grown);
        om_buf_deinit(&fitted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const char *p = (const char *) data, *end = p + size;
        struct om_error e = OM_ERROR_INIT;
        struct om_span whole;

        ask_too_much((struct om_span){ p, size < 64 ? size : 64 });
        while (om_frame_peek(p, (size_t) (end - p), 1 << 20, &whole, &e) == 1) {
                MUST(whole.p >= p && whole.p + whole.len <= end && whole.len > 0);
                body(whole);
                p = whole.p + whole.len;
        }
        body((struct om_span){ (const char *) data, size }); /* and the whole as a body, so that the fuzzer need not learn lengths */
        return 0;
}
