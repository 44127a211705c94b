/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a RabbitMQ server, or whoever sits in its place, may send. The first byte says in pieces of how many bytes the rest comes. Frames
 * are read to the end; what comes with content becomes a record, whatever its headers and body are, and a record is a task that
 * om_task_parse() accepts, and the same when it is read again. The whole is also the text of an error, and a dead letter.
 */
#include <event2/buffer.h>
#include <string.h>

#include "../../backends/letter.h"
#include "../../backends/rabbitmq/link.h"
#include "../../backends/rabbitmq/message.h"
#include "fuzz.h"

static void content(struct rmq_event *ev) {
        struct om_arena arena = { 0 };
        struct om_span id, again_id, again, record = rmq_record(om_buf_span(ev->body), ev->props, NULL, OM_SPAN("a.topic"), &arena, &id);
        struct om_task task;

        rmq_meta_of(ev->props);
        if (record.p && id.p) {
                if (om_task_parse(record, "record", &task, NULL) == 0) {
                        MUST(om_span_eq(task.id, id));
                        om_task_deinit(&task);
                        again = rmq_record(record, ev->props, NULL, OM_SPAN("other"), &arena, &again_id);
                        MUST(!again.p || !again_id.p || om_span_eq(again, record));
                }
        }
        om_arena_deinit(&arena);
}

static void frames(const uint8_t *data, size_t size, size_t piece) {
        struct rmq_in in;
        struct evbuffer *bytes = evbuffer_new();
        struct rmq_event ev;
        int r = bytes ? 0 : -1;

        rmq_in_init(&in, 1 << 16);
        for (size_t at = 0; r >= 0 && at < size; at += piece) {
                evbuffer_add(bytes, data + at, size - at < piece ? size - at : piece);
                while ((r = rmq_in_next(&in, bytes, &ev)) > 0) {
                        if (ev.props)
                                content(&ev);
                        rmq_in_done(&in, bytes);
                }
        }
        rmq_in_deinit(&in);
        if (bytes)
                evbuffer_free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const struct rmq_settings settings = { .user = (char *) "omni", .vhost = (char *) "/" };
        struct om_error e = OM_ERROR_INIT;
        struct om_dead_letter letter;
        struct om_arena arena = { 0 };
        struct om_span text;

        if (!size)
                return 0;
        text = (struct om_span){ (const char *) data + 1, size - 1 };
        frames(data + 1, size - 1, 1u + data[0]);
        MUST(rmq_error(300u + data[0], text, "h:1", &settings, size % 2, &e) < 0);
        for (const char *p = e.message; *p; p++)
                MUST((unsigned char) *p >= 0x20);
        om_letter_read(text, &arena, &letter);
        om_arena_deinit(&arena);
        return 0;
}
