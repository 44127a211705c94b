/* SPDX-License-Identifier: Apache-2.0 */
/* RabbitMQ: what is pure. Frames in and out, what breaks them, messages as records, levels of delay, what is wrong with a URL. */
#include <check.h>
#include <errno.h>
#include <event2/buffer.h>
#include <stdio.h>

#include "../../backends/rabbitmq/link.h"
#include "../../backends/rabbitmq/message.h"
#include "../lib/suite.h"

unsigned rmq_level(int64_t ms); /* bus_state.h has much that no test needs */

static struct rmq_in in;
static struct evbuffer *bytes;

static void begin(void) {
        rmq_in_init(&in, 1 << 20);
        bytes = evbuffer_new();
}
static void end(void) {
        rmq_in_deinit(&in);
        evbuffer_free(bytes);
}

/* basic.publish and basic.deliver have their content in the same form: one is rewritten as the other. */
static void put_delivery(struct om_buf *b, uint16_t channel, struct om_span body, size_t frame_max) {
        amqp_basic_deliver_t m = { .consumer_tag = rmq_text("c1"), .delivery_tag = 7, .routing_key = rmq_text("t") };
        struct om_buf publish = OM_BUF_INIT;
        struct rmq_props props;
        size_t method;
        rmq_props_of_move(&props, OM_SPAN("17"), 2, 1000, 0);
        rmq_props_close(&props);
        ck_assert_int_eq(rmq_put_publish(&publish, channel, frame_max, OM_SPAN(""), OM_SPAN("t"), true, &props.p, body), 0);
        rmq_props_deinit(&props);
        ck_assert_int_eq(rmq_put_method(b, channel, AMQP_BASIC_DELIVER_METHOD, &m), 0);
        method = 8 + ((size_t) (unsigned char) publish.data[5] << 8 | (unsigned char) publish.data[6]);
        om_buf_put(b, publish.data + method, publish.len - method);
        om_buf_deinit(&publish);
}

START_TEST(test_content_in_any_pieces_is_put_together) {
        char body[10000];
        for (size_t i = 0; i < sizeof body; i++)
                body[i] = (char) ('a' + i % 26);
        for (size_t piece = 1; piece < 6000; piece = piece * 3 + 1) {
                struct om_buf b = OM_BUF_INIT;
                struct rmq_event ev;
                int r = 0;
                begin();
                put_delivery(&b, 3, (struct om_span){ body, sizeof body }, RMQ_FRAME_MIN);
                for (size_t at = 0; at < b.len && r == 0; at += piece) {
                        evbuffer_add(bytes, b.data + at, b.len - at < piece ? b.len - at : piece);
                        r = rmq_in_next(&in, bytes, &ev);
                }
                ck_assert_int_eq(r, 1);
                ck_assert_uint_eq(ev.channel, 3);
                ck_assert_uint_eq(ev.id, AMQP_BASIC_DELIVER_METHOD);
                ck_assert(om_span_eq(om_buf_span(ev.body), (struct om_span){ body, sizeof body }));
                struct rmq_meta meta = rmq_meta_of(ev.props);
                ck_assert_uint_eq(meta.attempts, 2);
                ck_assert_int_eq(meta.due_ms, 1000);
                rmq_in_done(&in, bytes);
                ck_assert_uint_eq(evbuffer_get_length(bytes), 0);
                om_buf_deinit(&b);
                end();
        }
}
END_TEST

static int read_bytes(const char *data, size_t len) {
        struct rmq_event ev;
        int r;
        begin();
        evbuffer_add(bytes, data, len);
        while ((r = rmq_in_next(&in, bytes, &ev)) > 0)
                rmq_in_done(&in, bytes);
        if (r < 0 && r != -ENOMEM)
                ck_assert_ptr_nonnull(in.fault);
        end();
        return r;
}

START_TEST(test_what_is_no_frame_is_refused) {
        ck_assert_int_eq(read_bytes("\1\0\0\xff\xff\xff\xff", 7), -EPROTO);          /* longer than agreed */
        ck_assert_int_eq(read_bytes("\x08\0\0\0\0\0\0\xcf", 8), -EPROTO);            /* no end */
        ck_assert_int_eq(read_bytes("\x09\0\1\0\0\0\0\xce", 8), -EPROTO);            /* no known type */
        ck_assert_int_eq(read_bytes("\3\0\1\0\0\0\1x\xce", 9), -EPROTO);             /* a body of nothing */
        ck_assert_int_eq(read_bytes("\1\0\1\0\0\0\4\0\x3c\0\x50\xce", 12), -EPROTO); /* a method cut short */
        ck_assert_int_eq(read_bytes("\x08\0\0\0\0\0\0\xce", 8), 0);                  /* a heartbeat */
}
END_TEST

START_TEST(test_a_message_beyond_the_limit_is_refused_before_it_is_there) {
        struct om_buf b = OM_BUF_INIT;
        amqp_basic_deliver_t m = { .consumer_tag = rmq_text("c1") };
        rmq_put_method(&b, 1, AMQP_BASIC_DELIVER_METHOD, &m);
        om_buf_put(&b, "\2\0\1\0\0\0\x0e\0\x3c\0\0\0\0\0\0\x7f\xff\xff\xff\0\0\xce", 22);
        ck_assert_int_eq(read_bytes(b.data, b.len), -EMSGSIZE);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_levels_are_powers_of_two_that_are_not_longer) {
        ck_assert_uint_eq(rmq_level(63), 0);
        ck_assert_uint_eq(rmq_level(64), 6);
        ck_assert_uint_eq(rmq_level(1000), 9);
        ck_assert_uint_eq(rmq_level(1024), 10);
        for (int64_t ms = 64; ms <= OM_DELAY_MAX_MS; ms = ms * 5 / 3)
                ck_assert((int64_t) 1 << rmq_level(ms) <= ms && ms < (int64_t) 2 << rmq_level(ms));
}
END_TEST

static const char *wrong(const char *text) {
        static struct om_error e;
        struct rmq_settings s = { .hosts = NULL };
        struct om_url *u;
        e = (struct om_error) OM_ERROR_INIT;
        ck_assert_int_eq(om_url_parse(text, &u, &e), 0);
        if (om_options_read(rmq_options, u, &s, &e) == 0)
                rmq_settings_take(&s, u, &e);
        rmq_settings_free(&s);
        om_url_free(u);
        return e.message;
}

START_TEST(test_a_url_that_cannot_work_names_the_part_to_mend) {
        ck_assert_str_eq(wrong("amqp://user:secret@one,two:5673/team?prefix=a.b"), "");
        ck_assert_ptr_nonnull(strstr(wrong("amqp://h?prefix=a/b"), "prefix"));
        ck_assert_ptr_nonnull(strstr(wrong("amqp://h?prefix=amq.x"), "prefix"));
        ck_assert_ptr_nonnull(strstr(wrong("amqp://h?exchange="), "exchange"));
        ck_assert_ptr_nonnull(strstr(wrong("amqp://h?tls_ca_file=x"), "amqps"));
        ck_assert_ptr_nonnull(strstr(wrong("amqps://h?tls_key_file=x"), "tls_cert_file"));
        ck_assert_ptr_nonnull(strstr(wrong("amqps://h?auth=external"), "tls_cert_file"));
        ck_assert_ptr_nonnull(strstr(wrong("amqp://h?exchange_type=tropic"), "topic"));
        ck_assert_ptr_null(strstr(wrong("amqp://u:geheim@h?prefix=/"), "geheim"));
}
END_TEST

START_TEST(test_errors_of_the_broker_say_what_to_mend) {
        struct rmq_settings s = { .user = (char *) "omni", .vhost = (char *) "team" };
        struct om_error e;
        ck_assert_int_eq(
                rmq_error(403, OM_SPAN("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."), "h:1", &s, true, &e),
                -EACCES);
        ck_assert_ptr_nonnull(strstr(e.message, "password"));
        ck_assert_int_eq(rmq_error(530, OM_SPAN("NOT_ALLOWED - vhost team not found"), "h:1", &s, true, &e), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "virtual host"));
        ck_assert_int_eq(rmq_error(406, OM_SPAN("PRECONDITION_FAILED - queue limit in vhost 'team' (0) is reached"), "h:1", &s, false, &e),
                -ENOBUFS);
        ck_assert_int_eq(rmq_error(404, OM_SPAN("NOT_FOUND\n\x01"), "h:1", &s, false, &e), -ENOENT);
        ck_assert_ptr_null(strchr(e.message, '\n'));
}
END_TEST

int main(void) {
        Suite *s = suite_create("RabbitMQ, pure parts");
        TCase *t = tcase_create("all");
        tcase_add_test(t, test_content_in_any_pieces_is_put_together);
        tcase_add_test(t, test_what_is_no_frame_is_refused);
        tcase_add_test(t, test_a_message_beyond_the_limit_is_refused_before_it_is_there);
        tcase_add_test(t, test_levels_are_powers_of_two_that_are_not_longer);
        tcase_add_test(t, test_a_url_that_cannot_work_names_the_part_to_mend);
        tcase_add_test(t, test_errors_of_the_broker_say_what_to_mend);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
