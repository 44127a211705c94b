/* SPDX-License-Identifier: Apache-2.0 */
/* Frames: read from any cut of the bytes, never beyond them; written whole or not at all. */
#include "../../proto/frame.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>

START_TEST(test_a_frame_is_whole_only_with_its_last_byte) {
        static const char bytes[] = "\0\0\0\5hello\0\0\0\1x";
        for (size_t n = 0; n < sizeof bytes - 1; n++) {
                char *copy = malloc(n ? n : 1);
                struct om_span body;
                memcpy(copy, bytes, n);
                int r = om_frame_peek(copy, n, 5, &body, NULL);
                ck_assert_int_eq(r, n >= 9);
                if (r == 1)
                        ck_assert(body.p == copy + 4 && om_span_is(body, "hello"));
                else {
                        ck_assert_ptr_null(body.p);
                        ck_assert_uint_eq(body.len, n >= 4 ? 5 : 0);
                }
                free(copy);
        }
}
END_TEST

START_TEST(test_a_body_of_no_bytes_is_refused) {
        struct om_error e = OM_ERROR_INIT;
        struct om_span body;
        ck_assert_int_eq(om_frame_peek("\0\0\0\0", 4, 100, &body, &e), -EINVAL);
        ck_assert_int_eq(e.code, OM_CODE_REQUEST);
        ck_assert_int_eq(e.kind, OM_INVALID);
        ck_assert_int_eq(om_frame_peek("\0\0\0\0", 4, 100, &body, NULL), -EINVAL);
}
END_TEST

START_TEST(test_a_body_above_the_limit_is_refused_by_its_header_alone) {
        struct om_error e = OM_ERROR_INIT;
        struct om_span body;
        ck_assert_int_eq(om_frame_peek("\0\0\0\x64", 4, 100, &body, &e), 0);
        ck_assert_uint_eq(body.len, 100);
        ck_assert_int_eq(om_frame_peek("\0\0\0\x65", 4, 100, &body, &e), -EMSGSIZE);
        ck_assert_int_eq(e.code, OM_CODE_REQUEST);
        ck_assert_int_eq(e.kind, OM_LIMIT);
        ck_assert_str_eq(e.message, "frame: a length of 101 bytes; frame_bytes, the limit, is 100");
        ck_assert_int_eq(om_frame_peek("\xff\xff\xff\xff", 4, OM_FRAME_MAX_DEFAULT, &body, NULL), -EMSGSIZE);
        ck_assert_int_eq(om_frame_peek("\xff\xff\xff\xff", 4, SIZE_MAX, &body, NULL), 0);
        ck_assert_uint_eq(body.len, 0xffffffff);
}
END_TEST

START_TEST(test_what_is_written_is_read_again) {
        static const size_t sizes[] = { 1, 2, 255, 256, 65535, 65536, 1 << 20 };
        struct om_buf b = OM_BUF_INIT;
        om_buf_lit(&b, "before");
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
                size_t mark = om_frame_begin(&b);
                char *body = om_buf_reserve(&b, sizes[i]);
                ck_assert_ptr_nonnull(body);
                memset(body, 'a' + (int) i, sizes[i]);
                b.len += sizes[i];
                ck_assert_int_eq(om_frame_end(&b, mark, OM_FRAME_MAX_DEFAULT), 0);
        }
        size_t at = 6;
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
                struct om_span body;
                ck_assert_int_eq(om_frame_peek(b.data + at, b.len - at, OM_FRAME_MAX_DEFAULT, &body, NULL), 1);
                ck_assert_uint_eq(body.len, sizes[i]);
                ck_assert_int_eq(body.p[body.len - 1], 'a' + (int) i);
                at += OM_FRAME_HEADER + body.len;
        }
        ck_assert_uint_eq(at, b.len);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_a_frame_that_grew_too_long_is_taken_out_again) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_lit(&b, "before");
        size_t mark = om_frame_begin(&b);
        om_buf_lit(&b, "12345");
        ck_assert_int_eq(om_frame_end(&b, mark, 4), -EMSGSIZE);
        ck_assert(om_span_is(om_buf_span(&b), "before"));
        mark = om_frame_begin(&b);
        ck_assert_int_eq(om_frame_end(&b, mark, 4), -EINVAL); /* no body at all */
        ck_assert(om_span_is(om_buf_span(&b), "before"));
        mark = om_frame_begin(&b);
        om_buf_lit(&b, "1234");
        ck_assert_int_eq(om_frame_end(&b, mark, 4), 0);
        b.failed = true;
        ck_assert_int_eq(om_frame_end(&b, mark, 4), -ENOMEM);
        om_buf_deinit(&b);
}
END_TEST

int main(void) {
        Suite *s = suite_create("frame");
        TCase *c = tcase_create("frame");
        tcase_add_test(c, test_a_frame_is_whole_only_with_its_last_byte);
        tcase_add_test(c, test_a_body_of_no_bytes_is_refused);
        tcase_add_test(c, test_a_body_above_the_limit_is_refused_by_its_header_alone);
        tcase_add_test(c, test_what_is_written_is_read_again);
        tcase_add_test(c, test_a_frame_that_grew_too_long_is_taken_out_again);
        suite_add_tcase(s, c);
        return om_test_main(s);
}
