/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers, the JSON written into them, arenas, and errors. */
#include "../../proto/json_scan.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

static void check_is(struct om_buf *b, const char *expected) {
        ck_assert_msg(om_span_is(om_buf_span(b), expected), "%.*s", OM_PRI(om_buf_span(b)));
        om_buf_clear(b);
}

START_TEST(test_appending_grows_and_keeps_what_was_there) {
        struct om_buf b = OM_BUF_INIT;
        size_t n = 0;
        for (int i = 0; i < 10000; i++) {
                om_buf_printf(&b, "%d,", i % 10);
                n += 2;
        }
        ck_assert_uint_eq(b.len, n);
        ck_assert_uint_le(b.cap, 4 * n);
        for (size_t i = 0; i < n; i++)
                if (b.data[i] != (i % 2 ? ',' : (char) ('0' + i / 2 % 10)))
                        ck_abort_msg("byte %zu", i);
        om_buf_consume(&b, 19998);
        check_is(&b, "9,");
        om_buf_consume(&b, 5);
        om_buf_put(&b, NULL, 0);
        ck_assert_uint_eq(b.len, 0);
        om_buf_shrink(&b, b.cap);
        ck_assert_ptr_nonnull(b.data);
        om_buf_putc(&b, 'x');
        om_buf_shrink(&b, 0);
        check_is(&b, "x");
        om_buf_shrink(&b, 100);
        ck_assert(b.data == NULL && b.cap == 0);
        ck_assert(om_span_is(om_buf_span(&b), ""));
        om_buf_deinit(&b);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_long_formats_are_written_whole) {
        struct om_buf b = OM_BUF_INIT;
        for (int n = 250; n < 262; n++) {
                om_buf_printf(&b, "%*d", n, 7);
                ck_assert_uint_eq(b.len, (size_t) n);
                ck_assert_int_eq(b.data[n - 1], '7');
                om_buf_clear(&b);
        }
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_a_failed_allocation_is_remembered_until_cleared) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_lit(&b, "abc");
        ck_assert_ptr_null(om_buf_reserve(&b, SIZE_MAX - 1));
        ck_assert(!om_buf_ok(&b));
        om_buf_lit(&b, "def");
        om_buf_putc(&b, 'g');
        om_buf_json_string(&b, "h", 1);
        om_buf_printf(&b, "%d", 1);
        ck_assert(om_span_is(om_buf_span(&b), "abc"));
        om_buf_clear(&b);
        ck_assert(om_buf_ok(&b));
        om_buf_lit(&b, "x");
        check_is(&b, "x");
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_integers_are_written) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_u64(&b, 0);
        check_is(&b, "0");
        om_buf_u64(&b, UINT64_MAX);
        check_is(&b, "18446744073709551615");
        om_buf_i64(&b, INT64_MIN);
        check_is(&b, "-9223372036854775808");
        om_buf_i64(&b, INT64_MAX);
        check_is(&b, "9223372036854775807");
        om_buf_i64(&b, -1);
        check_is(&b, "-1");
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_strings_are_escaped_only_where_they_must_be) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_json_span(&b, OM_SPAN(""));
        check_is(&b, "\"\"");
        om_buf_json_span(&b, OM_SPAN_NONE);
        check_is(&b, "\"\"");
        om_buf_json_span(&b, OM_SPAN("a\"\\/\b\f\n\r\t\0\x1f\x7f"));
        check_is(&b, "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\"");
        om_buf_json_span(&b, OM_SPAN("\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80 0123456789abcdef0123456789abcdef\""));
        check_is(&b, "\"\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80 0123456789abcdef0123456789abcdef\\\"\"");
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_bytes_that_are_not_utf8_become_the_replacement_character) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_json_span(&b,
                OM_SPAN("\xff"
                        "a\xc3(\xed\xa0\x80\xf0\x9f\x98"));
        check_is(&b,
                "\"\xef\xbf\xbd"
                "a\xef\xbf\xbd(\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
        om_buf_deinit(&b);
}
END_TEST

static uint64_t seed = 0x9e3779b97f4a7c15;
static uint64_t any64(void) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        return seed;
}

START_TEST(test_any_bytes_become_a_json_string_that_reads_back) {
        for (int i = 0; i < 20000; i++) {
                struct om_buf b = OM_BUF_INIT;
                struct om_arena arena = { 0 };
                struct om_json j;
                struct om_json_value v;
                size_t n = any64() % 80;
                char *text = malloc(n ? n : 1);
                bool ascii = i % 2;
                for (size_t k = 0; k < n; k++)
                        text[k] = (char) (any64() & (ascii ? 0x7f : 0xff));
                om_buf_json_string(&b, text, n);
                om_json_init(&j, om_buf_span(&b), 0);
                if (om_json_value(&j, &v) < 0 || om_json_finish(&j) < 0)
                        ck_abort_msg("not JSON: %.*s", OM_PRI(om_buf_span(&b)));
                if (ascii && !om_span_eq(om_json_string(v, &arena), (struct om_span){ text, n }))
                        ck_abort_msg("another string: %.*s", OM_PRI(om_buf_span(&b)));
                free(text);
                om_arena_deinit(&arena);
                om_buf_deinit(&b);
        }
}
END_TEST

START_TEST(test_doubles_are_written_short) {
        static const struct {
                double value;
                const char *text;
        } cases[] = { { 0, "0" }, { -0.0, "-0" }, { 1, "1" }, { -1.5, "-1.5" }, { 0.1, "0.1" }, { 1.0 / 3, "0.3333333333333333" },
                { 1e5, "100000" }, { 1e21, "1e21" }, { 1e22, "1e22" }, { 1e-7, "1e-7" }, { 1.5e-10, "1.5e-10" }, { 1e100, "1e100" },
                { DBL_MAX, "1.7976931348623157e308" }, { DBL_MIN, "2.2250738585072014e-308" }, { 5e-324, "5e-324" },
                { 1795425242.137, "1795425242.137" }, { NAN, "null" }, { INFINITY, "null" }, { -INFINITY, "null" },
                { 9007199254740993.0, "9007199254740992" } };
        struct om_buf b = OM_BUF_INIT;
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                om_buf_json_double(&b, cases[i].value);
                check_is(&b, cases[i].text);
        }
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_every_double_reads_back_the_same) {
        struct om_buf b = OM_BUF_INIT;
        for (int i = 0; i < 50000; i++) {
                uint64_t bits = any64();
                double value, back = 0;
                if (i % 4 == 0)
                        bits &= 0x800fffffffffffff; /* denormals */
                memcpy(&value, &bits, sizeof value);
                if (!isfinite(value))
                        continue;
                struct om_json j;
                struct om_json_value v;
                om_buf_clear(&b);
                om_buf_json_double(&b, value);
                om_json_init(&j, om_buf_span(&b), 0);
                if (om_json_value(&j, &v) < 0 || om_json_finish(&j) < 0 || om_json_double(v, &back) < 0 ||
                        memcmp(&value, &back, sizeof value) != 0)
                        ck_abort_msg("%a: %.*s", value, OM_PRI(om_buf_span(&b)));
        }
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_times_have_three_decimals) {
        struct om_buf b = OM_BUF_INIT;
        om_buf_json_time(&b, 1795425242137);
        check_is(&b, "1795425242.137");
        om_buf_json_time(&b, 1005);
        check_is(&b, "1.005");
        om_buf_json_time(&b, 0);
        check_is(&b, "0.000");
        om_buf_json_time(&b, -1);
        check_is(&b, "-0.001");
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_an_arena_keeps_all_pieces_apart_and_aligned) {
        struct om_arena a = { 0 };
        struct {
                unsigned char *p;
                size_t n;
        } pieces[500];
        for (int i = 0; i < 500; i++) {
                pieces[i].n = any64() % (i % 50 == 0 ? 200000 : 100);
                pieces[i].p = om_arena_alloc(&a, pieces[i].n);
                ck_assert_ptr_nonnull(pieces[i].p);
                ck_assert_uint_eq((uintptr_t) pieces[i].p % 16, 0);
                memset(pieces[i].p, i & 0xff, pieces[i].n);
        }
        for (int i = 0; i < 500; i++)
                for (size_t k = 0; k < pieces[i].n; k++)
                        if (pieces[i].p[k] != (i & 0xff))
                                ck_abort_msg("piece %d was overwritten", i);
        ck_assert_ptr_null(om_arena_alloc(&a, SIZE_MAX));
        struct om_span copy = om_arena_copy(&a, OM_SPAN("a\0b"));
        ck_assert(om_span_eq(copy, OM_SPAN("a\0b")) && copy.p[3] == '\0');
        ck_assert_ptr_null(om_arena_copy(&a, OM_SPAN_NONE).p);
        ck_assert_ptr_nonnull(om_arena_copy(&a, OM_SPAN("")).p);
        om_arena_deinit(&a);
        om_arena_deinit(&a);
}
END_TEST

/* -- errors -------------------------------------------------------------------------------------------------------- */

START_TEST(test_kind_errno_and_name_agree) {
        for (unsigned k = OM_OK; k <= OM_INTERNAL; k++) {
                enum om_kind back = OM_OK;
                const char *name = om_kind_name((enum om_kind) k);
                ck_assert_int_eq(om_kind_of_errno(om_kind_errno((enum om_kind) k)), k);
                ck_assert_int_eq(om_kind_of_errno(-om_kind_errno((enum om_kind) k)), k);
                ck_assert_int_eq(om_kind_parse(name, strlen(name), &back), 0);
                ck_assert_int_eq(back, k);
        }
        enum om_kind kind;
        ck_assert_int_eq(om_kind_parse("not_foun", 8, &kind), -EINVAL);
        ck_assert_int_eq(om_kind_parse("not_found2", 10, &kind), -EINVAL);
        ck_assert_int_eq(om_kind_parse("", 0, &kind), -EINVAL);
        ck_assert_str_eq(om_kind_name((enum om_kind) 99), "internal");
        ck_assert_int_eq(om_kind_errno((enum om_kind) 99), -EIO);
        ck_assert_int_eq(om_kind_of_errno(ECONNREFUSED), OM_UNAVAILABLE);
        ck_assert_int_eq(om_kind_of_errno(-ENOSPC), OM_LIMIT);
        ck_assert_int_eq(om_kind_of_errno(EPERM), OM_DENIED);
        ck_assert_int_eq(om_kind_of_errno(ENOMEM), OM_INTERNAL);
        ck_assert_int_eq(om_kind_of_errno(0), OM_OK);
}
END_TEST

START_TEST(test_errors_are_filled_and_prefixed) {
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(om_error_set(&e, OM_NOT_FOUND, "no task %d", 7), -ENOENT);
        ck_assert_int_eq(e.code, OM_CODE_KIND);
        om_error_prefix(&e, "task.%s", "get");
        ck_assert_str_eq(e.message, "task.get: no task 7");
        ck_assert_int_eq(e.kind, OM_NOT_FOUND);
        ck_assert_int_eq(om_error_set_code(&e, OM_CODE_METHOD, OM_UNSUPPORTED, "in \"%s\"", e.message), -EOPNOTSUPP);
        ck_assert_str_eq(e.message, "in \"task.get: no task 7\"");
        ck_assert_int_eq(e.code, OM_CODE_METHOD);
        ck_assert_int_eq(om_error_set_errno(&e, -ECONNREFUSED, "connecting to %s", "x"), -ECONNREFUSED);
        ck_assert_str_eq(e.message, "connecting to x: Connection refused");
        ck_assert_int_eq(e.kind, OM_UNAVAILABLE);
        ck_assert_int_eq(om_error_set_errno(&e, 123456, "x"), -123456);
        ck_assert_str_eq(e.message, "x: errno 123456");
        ck_assert_int_eq(om_error_set_errno(&e, 0, "x"), -EIO);
        ck_assert_int_eq(om_error_set(NULL, OM_LIMIT, "x"), -ENOBUFS);
        ck_assert_int_eq(om_error_set_errno(NULL, EEXIST, "x"), -EEXIST);
        om_error_prefix(NULL, "x");
}
END_TEST

START_TEST(test_messages_are_cut_between_characters_and_cleaned) {
        struct om_error e = OM_ERROR_INIT;
        char text[700];
        for (size_t shift = 0; shift < 4; shift++) {
                memset(text, 'a', shift);
                for (size_t i = shift; i + 3 < sizeof text; i += 3)
                        memcpy(text + i, "\xe6\xbc\xa2", 4);
                om_error_set(&e, OM_INVALID, "%s", text);
                ck_assert_uint_ge(strlen(e.message), 497);
                ck_assert_uint_le(strlen(e.message), 499);
                ck_assert_uint_eq((strlen(e.message) - shift) % 3, 0);
                om_error_prefix(&e, "%s", text);
                ck_assert_uint_le(strlen(e.message), 499);
                json_t *utf8 = json_string(e.message);
                ck_assert_ptr_nonnull(utf8);
                json_decref(utf8);
        }
        om_error_set(&e, OM_INVALID, "a\nb\x1b[31m\xff\xc2\x85z");
        ck_assert_str_eq(e.message, "a?b?[31m??z");
}
END_TEST

START_TEST(test_the_nearest_name_is_offered_and_none_when_nothing_is_near) {
        static const char *const names[] = { "id", "topic", "payload", "priority", "ttl_ms", "delay_ms", "task.publish", "task.get",
                "REDIS_URL", NULL };
        static const char *const cases[][2] = { { "prority", "priority" }, { "prioirty", "priority" }, { "topics", "topic" },
                { "tpoic", "topic" }, { "Topic", "topic" }, { "redis_url", "REDIS_URL" }, { "task.publsh", "task.publish" },
                { "task.got", "task.get" }, { "ttl_m", "ttl_ms" }, { "di", "id" }, { "zebra", NULL }, { "x", NULL }, { "", NULL },
                { "completely different", NULL } };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                const char *found = om_nearest(cases[i][0], names);
                ck_assert_msg(found == cases[i][1] || (found && cases[i][1] && strcmp(found, cases[i][1]) == 0), "%s: %s", cases[i][0],
                        found ? found : "nothing");
        }
        char word[5000];
        memset(word, 'a', sizeof word - 1);
        word[sizeof word - 1] = '\0';
        ck_assert_ptr_null(om_nearest(word, names));
        ck_assert_ptr_null(om_nearest("topic", (const char *const[]){ NULL }));
}
END_TEST

int main(void) {
        Suite *s = suite_create("buf");
        TCase *c = tcase_create("buf"), *errors = tcase_create("error");
        tcase_set_timeout(c, 60);
        tcase_add_test(c, test_appending_grows_and_keeps_what_was_there);
        tcase_add_test(c, test_long_formats_are_written_whole);
        tcase_add_test(c, test_a_failed_allocation_is_remembered_until_cleared);
        tcase_add_test(c, test_integers_are_written);
        tcase_add_test(c, test_strings_are_escaped_only_where_they_must_be);
        tcase_add_test(c, test_bytes_that_are_not_utf8_become_the_replacement_character);
        tcase_add_test(c, test_any_bytes_become_a_json_string_that_reads_back);
        tcase_add_test(c, test_doubles_are_written_short);
        tcase_add_test(c, test_every_double_reads_back_the_same);
        tcase_add_test(c, test_times_have_three_decimals);
        tcase_add_test(c, test_an_arena_keeps_all_pieces_apart_and_aligned);
        tcase_add_test(errors, test_kind_errno_and_name_agree);
        tcase_add_test(errors, test_errors_are_filled_and_prefixed);
        tcase_add_test(errors, test_messages_are_cut_between_characters_and_cleaned);
        tcase_add_test(errors, test_the_nearest_name_is_offered_and_none_when_nothing_is_near);
        suite_add_tcase(s, c);
        suite_add_tcase(s, errors);
        return om_test_main(s);
}
