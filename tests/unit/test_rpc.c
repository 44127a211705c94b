/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Envelopes. The vectors (test_vectors.c) hold most of what is accepted and refused; here is what they cannot say: where the
 * spans stand, what the client's side reads, what is written, and that mutated bodies are never read past their end.
 */
#include "../../proto/frame.h"
#include "../../proto/rpc.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>

START_TEST(test_a_request_is_taken_apart_in_place) {
        static const char body[] = "{\"params\" : {\"a\":[1]} , \"id\":\"x\\n\",\"method\":\"task.get\",\"jsonrpc\":\"2.0\"}";
        struct om_rpc r;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(om_rpc_parse(OM_SPAN(body), &r, &e), 0);
        ck_assert_int_eq(r.type, OM_RPC_REQUEST);
        ck_assert(om_span_is(r.params, "{\"a\":[1]}") && r.params.p == body + 12);
        ck_assert(om_span_is(r.id, "\"x\\n\""));
        ck_assert(om_span_is(r.method, "task.get"));
        ck_assert_ptr_null(r.result.p);
        ck_assert_ptr_null(r.error.p);
}
END_TEST

START_TEST(test_replies_are_read) {
        struct om_rpc r;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(om_rpc_parse_sent(OM_SPAN("{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":null}"), &r, &e), 0);
        ck_assert_int_eq(r.type, OM_RPC_RESULT);
        ck_assert(om_span_is(r.id, "7") && om_span_is(r.result, "null") && !r.error.p);
        ck_assert_int_eq(om_rpc_parse_sent(OM_SPAN("{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":1}}"), &r, &e), 0);
        ck_assert_int_eq(r.type, OM_RPC_ERROR);
        ck_assert(om_span_is(r.id, "null") && om_span_is(r.error, "{\"code\":1}") && !r.result.p);
        ck_assert_int_eq(om_rpc_parse_sent(OM_SPAN("{\"jsonrpc\":\"2.0\",\"method\":\"task.deliver\",\"params\":{}}"), &r, &e), 0);
        ck_assert_int_eq(r.type, OM_RPC_NOTIFICATION);
        ck_assert_ptr_null(r.id.p);
}
END_TEST

/* A task nested as deep as it can be published stands deeper where the daemon sends it on. */
START_TEST(test_what_the_daemon_sends_may_be_deeper_than_what_it_takes) {
        static const char *const around[][2] = {
                { "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"task.publish\",\"params\":{\"task\":{\"topic\":\"a\",\"payload\":{"
                  "\"content\":",
                        "}}}}" },
                { "{\"jsonrpc\":\"2.0\",\"method\":\"task.deliver\",\"params\":{\"tasks\":[{\"topic\":\"a\",\"payload\":{\"content\":",
                        "}}]}}" },
                { "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"dead_letters\":[{\"task\":{\"topic\":\"a\",\"payload\":{\"content\":",
                        "}}}]}}" },
        };
        for (size_t i = 0; i < 3; i++) {
                struct om_buf b = OM_BUF_INIT;
                struct om_rpc r;
                om_buf_puts(&b, around[i][0]);
                for (int k = 0; k < OM_DEPTH_MAX - 4; k++)
                        om_buf_putc(&b, '[');
                for (int k = 0; k < OM_DEPTH_MAX - 4; k++)
                        om_buf_putc(&b, ']');
                om_buf_puts(&b, around[i][1]);
                ck_assert_int_eq(om_rpc_parse(om_buf_span(&b), &r, NULL), i == 0 ? 0 : -EINVAL);
                ck_assert_int_eq(om_rpc_parse_sent(om_buf_span(&b), &r, NULL), 0);
                om_buf_deinit(&b);
        }
}
END_TEST

START_TEST(test_messages_of_refusals_help) {
        static const struct {
                const char *body;
                int code;
                const char *message;
        } cases[] = {
                { "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"parms\":{}}", -32600,
                        "message: unknown member \"parms\"; did you mean \"params\"?" },
                { "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"zebra\":{}}", -32600, "message: unknown member \"zebra\"" },
                { "{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":1,\"method\":\"a\"}", -32600, "message: \"id\" stands twice" },
                { "{\"id\":1,\"method\":\"a\"}", -32600, "message: \"jsonrpc\" must be \"2.0\"" },
                { "{\"jsonrpc\":\"2.0\",\"id\":[],\"method\":\"a\"}", -32600, "message: \"id\" must be a string, a number or null" },
                { "[1]", -32600, "message: an array; batches are not spoken here, send one object a frame" },
                { "\"x\"", -32600, "message must be an object, not a string" },
                { "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"params\":[]}", -32602, "params must be an object, not an array" },
                { "{\"jsonrpc\":\"2.0\",\"id\":1,}", -32700, "body: the name of a member must be a string at byte 24" },
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                struct om_rpc r;
                struct om_error e = OM_ERROR_INIT;
                ck_assert_int_eq(om_rpc_parse(om_span_of(cases[i].body), &r, &e), -EINVAL);
                ck_assert_str_eq(e.message, cases[i].message);
                ck_assert_int_eq(e.code, cases[i].code);
                ck_assert_int_eq(om_rpc_parse(om_span_of(cases[i].body), &r, NULL), -EINVAL);
        }
}
END_TEST

START_TEST(test_mutated_bodies_are_read_within_their_bytes) {
        static const char body[] =
                "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"task.get\",\"params\":{\"id\":\"a\\u00e9\",\"x\":[1.5,null]}}";
        size_t n = sizeof body - 1;
        unsigned seed = 1;
        for (int i = 0; i < 30000; i++) {
                size_t len = i % 3 ? n : (size_t) i / 3 % n;
                char *copy = malloc(len ? len : 1);
                struct om_rpc r;
                struct om_error e = OM_ERROR_INIT;
                memcpy(copy, body, len);
                seed = seed * 1103515245 + 12345;
                if (len)
                        copy[(seed >> 8) % len] = (char) (seed >> 20);
                if (om_rpc_parse((struct om_span){ copy, len }, &r, &e) < 0 && (e.message[0] == '\0' || e.kind != OM_INVALID))
                        ck_abort_msg("refused without a reason: %.*s", (int) len, copy);
                if (r.id.p && (r.id.p < copy || r.id.p + r.id.len > copy + len))
                        ck_abort_msg("an id outside the body");
                free(copy);
        }
}
END_TEST

START_TEST(test_errors_travel_as_they_were) {
        for (unsigned k = OM_INVALID; k <= OM_INTERNAL; k++) {
                struct om_buf b = OM_BUF_INIT;
                struct om_error e, back = OM_ERROR_INIT;
                struct om_span body;
                struct om_rpc r;
                om_error_set(&e, (enum om_kind) k, "what \"%s\" is \\ wrong \xc3\xa9", "it");
                om_rpc_put_error(&b, OM_SPAN("\"id\""), &e);
                ck_assert_int_eq(om_frame_peek(b.data, b.len, 10000, &body, NULL), 1);
                ck_assert_uint_eq(body.len + 4, b.len);
                ck_assert_int_eq(om_rpc_parse_sent(body, &r, NULL), 0);
                ck_assert_int_eq(r.type, OM_RPC_ERROR);
                ck_assert(om_span_is(r.id, "\"id\""));
                ck_assert_int_eq(om_rpc_parse_error(r.error, &back), om_kind_errno((enum om_kind) k));
                ck_assert_int_eq(back.kind, k);
                ck_assert_int_eq(back.code, OM_CODE_KIND);
                ck_assert_str_eq(back.message, e.message);
                om_buf_deinit(&b);
        }
}
END_TEST

START_TEST(test_foreign_errors_are_understood_as_far_as_they_go) {
        static const struct {
                const char *text;
                int code;
                enum om_kind kind;
                const char *message;
        } cases[] = {
                { "{\"code\":-32601,\"message\":\"no\"}", -32601, OM_UNSUPPORTED, "no" },
                { "{\"code\":-32602,\"message\":\"a\\nb\"}", -32602, OM_INVALID, "a?b" },
                { "{\"code\":-32000,\"message\":\"x\",\"data\":{\"more\":[],\"kind\":\"conflict\"}}", -32000, OM_CONFLICT, "x" },
                { "{\"data\":{\"kind\":\"limit\"},\"extra\":1,\"message\":\"x\",\"code\":-32000}", -32000, OM_LIMIT, "x" },
                { "{\"code\":5,\"message\":\"x\",\"data\":{\"kind\":\"of a newer version\"}}", 5, OM_INTERNAL, "x" },
                { "{\"code\":5,\"message\":\"x\",\"data\":{\"kind\":\"ok\"}}", 5, OM_INTERNAL, "x" },
                { "{\"code\":99999999999,\"message\":\"x\",\"data\":1}", -32603, OM_INTERNAL, "x" },
                { "{}", -32603, OM_INTERNAL, "an error without a message" },
                { "{\"code\":\"1\",\"message\":1}", -32603, OM_INTERNAL, "an error without a message" },
                { "[]", -32603, OM_INTERNAL, "the error in a reply is no object" },
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                struct om_error e = OM_ERROR_INIT;
                ck_assert_int_eq(om_rpc_parse_error(om_span_of(cases[i].text), &e), om_kind_errno(cases[i].kind));
                ck_assert_int_eq(e.code, cases[i].code);
                ck_assert_int_eq(e.kind, cases[i].kind);
                ck_assert_str_eq(e.message, cases[i].message);
        }
}
END_TEST

START_TEST(test_messages_are_written_as_the_protocol_shows_them) {
        struct om_buf b = OM_BUF_INIT;
        struct om_error nothing = OM_ERROR_INIT;
        size_t mark = om_rpc_begin_request(&b, 1, "ping");
        om_buf_lit(&b, "{}");
        ck_assert_int_eq(om_rpc_end(&b, mark, 1000), 0);
        mark = om_rpc_begin_notification(&b, "task.revoked");
        om_buf_lit(&b, "{}");
        ck_assert_int_eq(om_rpc_end(&b, mark, 1000), 0);
        mark = om_rpc_begin_result(&b, OM_SPAN("\"x\""));
        om_buf_lit(&b, "[]");
        ck_assert_int_eq(om_rpc_end(&b, mark, 1000), 0);
        om_rpc_put_error(&b, OM_SPAN_NONE, &nothing);
        ck_assert(om_span_eq(om_buf_span(&b),
                OM_SPAN("\0\0\0\x34{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{}}"
                        "\0\0\0\x35{\"jsonrpc\":\"2.0\",\"method\":\"task.revoked\",\"params\":{}}"
                        "\0\0\0\x26{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"result\":[]}"
                        "\0\0\0\x5b{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32000,\"message\":\"\",\"data\":{\"kind\":"
                        "\"internal\"}}}")));
        size_t before = b.len;
        mark = om_rpc_begin_result(&b, OM_SPAN("1"));
        om_buf_lit(&b, "\"a long result\"");
        ck_assert_int_eq(om_rpc_end(&b, mark, 20), -EMSGSIZE);
        ck_assert_uint_eq(b.len, before);
        om_buf_deinit(&b);
}
END_TEST

int main(void) {
        Suite *s = suite_create("rpc");
        TCase *c = tcase_create("rpc");
        tcase_add_test(c, test_a_request_is_taken_apart_in_place);
        tcase_add_test(c, test_replies_are_read);
        tcase_add_test(c, test_what_the_daemon_sends_may_be_deeper_than_what_it_takes);
        tcase_add_test(c, test_messages_of_refusals_help);
        tcase_add_test(c, test_mutated_bodies_are_read_within_their_bytes);
        tcase_add_test(c, test_errors_travel_as_they_were);
        tcase_add_test(c, test_foreign_errors_are_understood_as_far_as_they_go);
        tcase_add_test(c, test_messages_are_written_as_the_protocol_shows_them);
        suite_add_tcase(s, c);
        return om_test_main(s);
}
