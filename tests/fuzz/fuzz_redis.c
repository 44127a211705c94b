/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a Redis server, or whoever sits in its place, may send: bytes of replies, and what stands in its streams.
 *
 * The first byte says how the rest is cut and read: as a stream of replies, in pieces of that many bytes, each reply walked to its ends and
 * held against its bound (a low one for one length in four); as an error and as the text of INFO; and as a task and a dead letter of the
 * Python OmniDaemon. A task that is accepted makes a record that om_task_parse() accepts, and what we write of that is read again as the
 * same record.
 */
#include <errno.h>
#include <string.h>

#include "../../backends/redis/bus_state.h"
#include "../../backends/redis/link.h"
#include "fuzz.h"

enum { BOUND = 1 << 16, LOW_BOUND = 400, DEPTH = 9 };

static size_t walk(const struct om_redis_reply *r, int depth) {
        size_t n = 1;

        MUST(depth < DEPTH);
        MUST(r->type <= OM_REDIS_ARRAY);
        if (r->text.p)
                MUST(r->text.p[r->text.len] == 0);
        om_redis_int(r, 0);
        om_redis_field(r, "data");
        for (size_t i = 0; i < r->n; i++)
                n += walk(om_redis_at(r, i), depth + 1);
        return n;
}

static void look_at(struct om_redis_reply *r, size_t bound) {
        struct om_error e = OM_ERROR_INIT;

        MUST(walk(r, 0) * sizeof *r <= bound);
        if (r->type == OM_REDIS_ERROR) {
                MUST(om_redis_error(r, "GET", OM_SPAN("omni:\x01k"), "h:1", &e) < 0);
                for (const char *p = e.message; *p; p++)
                        MUST((unsigned char) *p >= 0x20);
        }
        om_redis_info(r->text, "role");
}

static void replies(const uint8_t *data, size_t size, size_t piece) {
        struct om_redis_in in;
        struct om_redis_reply *r;
        size_t bound = size % 4 ? BOUND : LOW_BOUND;
        int status = om_redis_in_init(&in, bound);

        for (size_t at = 0; status == 0 && at < size; at += piece) {
                size_t n = size - at < piece ? size - at : piece;

                status = om_redis_in_feed(&in, (const char *) data + at, n);
                while (status == 0 && (status = om_redis_in_next(&in, &r)) > 0) {
                        look_at(r, bound);
                        om_redis_in_done(&in);
                        status = 0;
                }
        }
        MUST(status == 0 || status == -EPROTO || status == -EMSGSIZE || status == -ENOMEM);
        if (status == -EPROTO)
                om_redis_in_fault(&in);
        om_redis_in_deinit(&in);
}

static void task(struct om_span text) {
        struct om_buf record = OM_BUF_INIT, form = OM_BUF_INIT, again = OM_BUF_INIT;
        struct om_error e = OM_ERROR_INIT;
        struct om_task t;

        if (om_redis_bus_form_read(text, OM_SPAN("greet"), "12-3", &record, &e) == 0 && om_buf_ok(&record)) {
                int r = om_task_parse(om_buf_span(&record), "task", &t, &e);

                MUST(r == 0 || strstr(e.message, "memory"));
                if (r == 0) {
                        om_redis_bus_form_write(&form, &t);
                        om_task_deinit(&t);
                        if (om_buf_ok(&form) && om_redis_bus_form_read(om_buf_span(&form), OM_SPAN("greet"), "99-9", &again, &e) == 0 &&
                                om_buf_ok(&again))
                                MUST(om_span_eq(om_buf_span(&record), om_buf_span(&again)));
                }
        }
        om_buf_deinit(&record);
        om_buf_deinit(&form);
        om_buf_deinit(&again);
}

static void letter(struct om_span text) {
        struct om_dead_letter l;
        struct om_arena arena = { 0 };
        struct om_task t;
        struct om_error e = OM_ERROR_INIT;

        om_redis_bus_letter_task(text, &arena);
        if (om_redis_bus_letter_read(text, OM_SPAN("greet"), &arena, &l) == 0 && l.record.p) {
                int r = om_task_parse(l.record, "task", &t, &e);

                MUST(r == 0 || strstr(e.message, "memory"));
                if (r == 0)
                        om_task_deinit(&t);
        }
        om_arena_deinit(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *copy;

        if (size < 1)
                return 0;
        copy = malloc(size); /* of just its length: what reads beyond it is found */
        if (!copy)
                return 0;
        memcpy(copy, data + 1, size - 1);
        replies((const uint8_t *) copy, size - 1, data[0] ? data[0] : OM_REDIS_FEED);
        task((struct om_span){ copy, size - 1 });
        letter((struct om_span){ copy, size - 1 });
        free(copy);
        return 0;
}
