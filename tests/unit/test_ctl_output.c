/* SPDX-License-Identifier: Apache-2.0 */
/* What omnictl shows: widths, cutting, escaping, tables, trees, JSON, times, the progress bar, lines of input. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../client/ctl/ctl.h"
#include "../../client/ctl/doc.h"
#include "../../client/ctl/input.h"
#include "../../client/ctl/progress.h"
#include "../../client/ctl/table.h"
#include "../../client/ctl/text.h"
#include "../../client/ctl/view.h"
#include "../lib/suite.h"

static struct ctl ctl;
static struct om_buf b;

static void setup(void) {
        memset(&ctl, 0, sizeof(ctl));
        ctl.program = "omnictl";
        ctl.now = 1795425242;
}

static void teardown(void) {
        om_buf_deinit(&b);
        om_buf_deinit(&ctl.out);
}

static const char *text(struct om_buf *buf) { return ctl_text(buf); }

START_TEST(test_width_counts_columns_not_bytes) {
        ck_assert_uint_eq(text_width(OM_SPAN("abc")), 3);
        ck_assert_uint_eq(text_width(OM_SPAN("äöü")), 3);
        ck_assert_uint_eq(text_width(OM_SPAN("日本")), 4);
        ck_assert_uint_eq(text_width(OM_SPAN("e\xcc\x81")), 1); /* a combining accent */
        ck_assert_uint_eq(text_width(OM_SPAN("😀")), 2);
        ck_assert_uint_eq(text_width(OM_SPAN("\xff\xfe")), 2); /* no UTF-8: a replacement each */
}
END_TEST

START_TEST(test_nothing_that_moves_the_cursor_gets_through) {
        text_put_safe(&b, OM_SPAN("a\033[2Jb\r\n\tc\x7f"));
        ck_assert_str_eq(text(&b), "a\\x1b[2Jb\\r\\n\\tc\\x7f");
        om_buf_clear(&b);
        text_put_safe(&b,
                OM_SPAN("\xc2\x9b"
                        "31m \xe2\x80\xae \xe2\x80\x8b \xff"));
        ck_assert_str_eq(text(&b), "\\u009b31m \\u202e \\u200b \xef\xbf\xbd");
        om_buf_clear(&b);
        text_put_safe(&b, (struct om_span){ "a\0b", 3 });
        ck_assert_str_eq(text(&b), "a\\x00b");
        om_buf_clear(&b);
        text_put_field(&b, OM_SPAN("a\\n\tb"));
        ck_assert_str_eq(text(&b), "a\\\\n\\tb");
}
END_TEST

START_TEST(test_cutting_never_splits_a_character) {
        ck_assert_uint_eq(text_put_cut(&b, OM_SPAN("日本語"), 4, false), 3);
        ck_assert_str_eq(text(&b), "日…");
        om_buf_clear(&b);
        ck_assert_uint_eq(text_put_cut(&b, OM_SPAN("abcdef"), 5, true), 5);
        ck_assert_str_eq(text(&b), "ab...");
        om_buf_clear(&b);
        ck_assert_uint_eq(text_put_cut(&b, OM_SPAN("abc"), 3, false), 3);
        ck_assert_str_eq(text(&b), "abc");
}
END_TEST

static const char *ago(double seconds) {
        om_buf_clear(&b);
        text_put_ago(&b, 1000000 - seconds, 1000000);
        return text(&b);
}

START_TEST(test_times_read_as_people_say_them) {
        ck_assert_str_eq(ago(0.4), "now");
        ck_assert_str_eq(ago(12), "12 s ago");
        ck_assert_str_eq(ago(200), "3 min ago");
        ck_assert_str_eq(ago(7300), "2 h ago");
        ck_assert_str_eq(ago(5 * 86400 + 5), "5 days ago");
        ck_assert_str_eq(ago(-200), "in 3 min");
        om_buf_clear(&b);
        text_put_duration(&b, 0.000850, true);
        ck_assert_str_eq(text(&b), "850 us");
        om_buf_clear(&b);
        text_put_duration(&b, 7500, false);
        ck_assert_str_eq(text(&b), "2 h 5 min");
        om_buf_clear(&b);
        text_put_size(&b, 3200000);
        ck_assert_str_eq(text(&b), "3.1 MiB");
        om_buf_clear(&b);
        text_put_size(&b, 312);
        ck_assert_str_eq(text(&b), "312 B");
}
END_TEST

/* -- tables -------------------------------------------------------------------------------------------------------- */

static const struct table_column columns[] = { { "ID", false, true }, { "N", true, false }, { "NOTE", false, false },
        { "EMPTY", false, false } };

static void add_row(struct table *t, const char *id, const char *n, const char *note) {
        table_add(t, om_span_of(id), STYLE_NONE);
        table_add(t, om_span_of(n), STYLE_NONE);
        table_add(t, om_span_of(note), STYLE_NONE);
        table_add(t, OM_SPAN(""), STYLE_NONE);
}

START_TEST(test_a_table_lines_up_and_leaves_out_what_is_empty) {
        struct table t;

        table_init(&t, columns, 4);
        add_row(&t, "a", "1", "日本");
        add_row(&t, "bbb", "100", "x");
        table_put(&ctl, &b, &t, 0);
        ck_assert_str_eq(text(&b),
                "ID     N  NOTE\n"
                "a      1  日本\n"
                "bbb  100  x\n");
        table_deinit(&t);
}
END_TEST

START_TEST(test_a_table_fits_by_cutting_the_widest_and_ids_last) {
        unsigned widths[4];
        struct table t;

        table_init(&t, columns, 4);
        add_row(&t, "7d0f1e9a-5b7c-4c4e-9d53-3f1d2b8a9c10", "1", "a long remark that takes a lot of columns in the table");
        table_fit(&t, 60, widths);
        ck_assert_uint_eq(widths[0], 36);
        ck_assert_uint_eq(widths[2], 60 - 36 - 1 - 4);
        table_fit(&t, 30, widths);
        ck_assert_uint_eq(widths[2], 8);
        ck_assert_uint_eq(widths[0], 30 - 8 - 1 - 4);
        ck_assert_uint_eq(widths[3], 0);
        table_fit(&t, 0, widths);
        ck_assert_uint_gt(widths[2], 50);
        table_deinit(&t);
}
END_TEST

static const struct view_column view[] = { { "ID", "id", VIEW_ID }, { "WHEN", "at", VIEW_TIME }, { "STATE", "state", VIEW_STATUS },
        { "SIZE", "n.bytes", VIEW_SIZE }, { "WHAT", "what", VIEW_JSON }, { NULL, NULL, 0 } };
static const char answer[] = "{\"list\":[{\"id\":\"a\\tb\",\"at\":1795425182,\"state\":\"failed\",\"n\":{\"bytes\":2048},\"what\":{\"big\" "
                             ": 123456789012345678901234567890 , "
                             "\"x\":1.10}},{\"id\":\"c\",\"at\":null,\"state\":\"up\",\"what\":\"\\u001b[2J\xc2\x9b\"}]}";

START_TEST(test_a_list_is_shown_in_each_format) {
        struct om_span s = OM_SPAN(answer);

        ctl.format = FORMAT_TABLE;
        view_list(&ctl, s, "list", view, "none");
        ck_assert_str_eq(text(&ctl.out),
                "ID    WHEN       STATE      SIZE  WHAT\n"
                "a\\tb  1 min ago  failed  2.0 KiB  {\"big\":123456789012345678901234567890,\"x\":1.10}\n"
                "c                up               \"\\u001b[2J\\u009b\"\n");
        om_buf_clear(&ctl.out);
        ctl.format = FORMAT_COMPACT;
        view_list(&ctl, s, "list", view, "none");
        ck_assert_str_eq(text(&ctl.out),
                "a\\tb\t1795425182\tfailed\t2048\t{\"big\":123456789012345678901234567890,\"x\":1.10}\n"
                "c\t\tup\t\t\\x1b[2J\\u009b\n");
}
END_TEST

START_TEST(test_json_keeps_every_number_and_order) {
        struct om_span s = OM_SPAN("{\"b\":[1.10,{}, [ ]],\"a\":1e400,\"a\":\"\\u00e4\"}");

        ctl.format = FORMAT_JSON;
        view_list(&ctl, s, "b", view, "none");
        ck_assert_str_eq(text(&ctl.out), "{\n  \"b\": [\n    1.10,\n    {},\n    []\n  ],\n  \"a\": 1e400,\n  \"a\": \"\\u00e4\"\n}\n");
}
END_TEST

START_TEST(test_json_on_a_terminal_escapes_what_is_not_safe) {
        struct om_json_value v = doc_root(OM_SPAN("\"\xc2\x9b \xe2\x80\xae \xf3\xa0\x80\x81 ok\""));

        doc_put_line(&b, v, DOC_SAFE);
        ck_assert_str_eq(text(&b), "\"\\u009b \\u202e \\udb40\\udc01 ok\"");
        ck_assert_int_eq(om_json_check(om_buf_span(&b), 4, NULL), 0);
        om_buf_clear(&b);
        doc_put_line(&b, v, 0);
        ck_assert_str_eq(text(&b), "\"\xc2\x9b \xe2\x80\xae \xf3\xa0\x80\x81 ok\"");
}
END_TEST

START_TEST(test_an_empty_list_says_so_but_not_in_json) {
        view_list(&ctl, OM_SPAN("{\"list\":[]}"), "list", view, "No things.");
        ck_assert_str_eq(text(&ctl.out), "No things.\n");
        om_buf_clear(&ctl.out);
        ctl.format = FORMAT_COMPACT;
        view_list(&ctl, OM_SPAN("{\"list\":[]}"), "list", view, "No things.");
        ck_assert_uint_eq(ctl.out.len, 0);
        ctl.format = FORMAT_JSON;
        view_list(&ctl, OM_SPAN("{\"list\":[]}"), "list", view, "No things.");
        ck_assert_str_eq(text(&ctl.out), "{\n  \"list\": []\n}\n");
}
END_TEST

START_TEST(test_a_tree_shows_topics_with_their_groups) {
        view_put_tree(&ctl,
                doc_root(OM_SPAN("{\"topics\":[{\"topic\":\"words\",\"depth\":3,\"groups\":[{\"topic\":\"words\",\"agent\":\"a\",\"lag\":1}"
                                 ",{\"topic\":\"words\",\"agent\":"
                                 "\"b\",\"lag\":2}]},{\"topic\":\"x\",\"depth\":0,\"groups\":[]}],\"totals\":{\"topics\":2}}")));
        ck_assert_str_eq(text(&ctl.out),
                "topics\n"
                "├─ words  depth 3\n"
                "│  ├─ a  topic words · lag 1\n"
                "│  └─ b  topic words · lag 2\n"
                "└─ x  depth 0\n"
                "totals  topics 2\n");
}
END_TEST

START_TEST(test_colour_only_where_it_is_on) {
        ctl.format = FORMAT_TABLE;
        view_list(&ctl, OM_SPAN(answer), "list", view, "");
        ck_assert_ptr_null(memchr(ctl.out.data, 033, ctl.out.len));
        om_buf_clear(&ctl.out);
        ctl.color = true;
        view_list(&ctl, OM_SPAN(answer), "list", view, "");
        ck_assert_ptr_nonnull(strstr(text(&ctl.out), "\033[31mfailed\033[0m"));
}
END_TEST

START_TEST(test_doc_finds_members_by_path) {
        struct om_json_value v = doc_root(OM_SPAN("{\"a\":{\"b\":[1,2]},\"c\":null}"));

        ck_assert_uint_eq(doc_count(doc_get(v, "a.b")), 2);
        ck_assert_int_eq(doc_get(v, "a.x").type, 0);
        ck_assert_int_eq(doc_get(v, "a.b.c").type, 0);
        ck_assert(!doc_there(doc_get(v, "c")));
        ck_assert_int_eq(doc_root(OM_SPAN("")).type, 0);
}
END_TEST

/* -- the rest ------------------------------------------------------------------------------------------------------ */

START_TEST(test_progress_shows_share_rate_and_what_is_left) {
        struct progress p = { .ctl = &ctl, .label = "publishing", .total = 300, .done = 150 };

        ctl.ascii = true;
        progress_draw(&p, &b, 10, 200);
        ck_assert_str_eq(text(&b), "publishing  ############............  150/300  50 %  15/s  10 s left");
        om_buf_clear(&b);
        p.total = 0;
        progress_draw(&p, &b, 10, 200);
        ck_assert_str_eq(text(&b), "publishing  150  15/s");
        om_buf_clear(&b);
        progress_draw(&p, &b, 10, 12);
        ck_assert_str_eq(text(&b), "publishin...");
}
END_TEST

START_TEST(test_lines_end_with_lf_crlf_or_the_file) {
        static const char content[] = "one\r\n\ntwo\nthree";
        char path[] = "/tmp/test-ctl-XXXXXX";
        const char *expected[] = { "one", "", "two", "three" };
        struct input_lines in;
        struct om_span line;
        int fd = mkstemp(path);

        ck_assert_int_eq(write(fd, content, sizeof(content) - 1), sizeof(content) - 1);
        close(fd);
        ck_assert_int_eq(input_lines_open(&in, path), 0);
        for (size_t i = 0; i < 4; i++) {
                ck_assert_int_eq(input_lines_next(&in, &line), 1);
                ck_assert_uint_eq(in.number, i + 1);
                ck_assert(om_span_is(line, expected[i]));
        }
        ck_assert_int_eq(input_lines_next(&in, &line), 0);
        ck_assert_int_eq(input_lines_next(&in, &line), 0);
        input_lines_close(&in);
        unlink(path);
        ck_assert_int_eq(input_lines_open(&in, path), -ENOENT);
}
END_TEST

START_TEST(test_a_line_that_never_ends_is_refused) {
        struct input_lines in;
        struct om_span line;

        ck_assert_int_eq(input_lines_open(&in, "/dev/zero"), 0);
        ck_assert_int_eq(input_lines_next(&in, &line), -EFBIG);
        input_lines_close(&in);
}
END_TEST

START_TEST(test_params_are_written_with_commas_and_escapes) {
        om_buf_putc(&b, '{');
        ctl_put_text(&b, "a", "x\"y");
        ctl_put_text(&b, "b", NULL);
        ctl_put_int(&b, "c", -5);
        ctl_put_raw(&b, "d", "{}");
        om_buf_putc(&b, '}');
        ck_assert_str_eq(text(&b), "{\"a\":\"x\\\"y\",\"c\":-5,\"d\":{}}");
}
END_TEST

int main(void) {
        Suite *s = suite_create("ctl_output");
        TCase *t = tcase_create("output");

        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_test(t, test_width_counts_columns_not_bytes);
        tcase_add_test(t, test_nothing_that_moves_the_cursor_gets_through);
        tcase_add_test(t, test_cutting_never_splits_a_character);
        tcase_add_test(t, test_times_read_as_people_say_them);
        tcase_add_test(t, test_a_table_lines_up_and_leaves_out_what_is_empty);
        tcase_add_test(t, test_a_table_fits_by_cutting_the_widest_and_ids_last);
        tcase_add_test(t, test_a_list_is_shown_in_each_format);
        tcase_add_test(t, test_json_keeps_every_number_and_order);
        tcase_add_test(t, test_json_on_a_terminal_escapes_what_is_not_safe);
        tcase_add_test(t, test_an_empty_list_says_so_but_not_in_json);
        tcase_add_test(t, test_a_tree_shows_topics_with_their_groups);
        tcase_add_test(t, test_colour_only_where_it_is_on);
        tcase_add_test(t, test_doc_finds_members_by_path);
        tcase_add_test(t, test_progress_shows_share_rate_and_what_is_left);
        tcase_add_test(t, test_lines_end_with_lf_crlf_or_the_file);
        tcase_add_test(t, test_a_line_that_never_ends_is_refused);
        tcase_add_test(t, test_params_are_written_with_commas_and_escapes);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
