/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON reader: what it takes and refuses, where it says that values stand, and what it makes of them. Jansson is the
 * second opinion: on generated and on mutated texts both must agree, and where they accept, on every value.
 */
#include "../../proto/json_scan.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

/* A copy of exactly its size, so that a sanitizer sees any read beyond the end. */
static struct om_span exact_copy(const char *data, size_t n) {
        char *p = malloc(n ? n : 1);
        memcpy(p, data, n);
        return (struct om_span){ p, n };
}

static int check_copy(const char *data, size_t n, unsigned max_depth, struct om_error *e) {
        struct om_span s = exact_copy(data, n);
        int r = om_json_check(s, max_depth, e);
        free((void *) s.p);
        return r;
}

static const char *const good[] = { "null", "true", "false", "0", "-0", "1", "-1", "10", "1234567890", "0.0", "-0.5", "1.25", "1e1", "1E1",
        "1e+1", "1e-1", "1E+05", "1.5e300", "1e400", "-1e-400", "123456789012345678901234567890", "\"\"", "\"a\"", "\"\\\"\"", "\"\\\\\"",
        "\"\\/\"", "\"\\b\\f\\n\\r\\t\"", "\"\\u0000\"", "\"\\u00e9\"", "\"\\uD83D\\uDE00\"", "\"\\uFFFF\"", "\"\\ud7ff\\ue000\"",
        "\"\x7f\"", "\"\xc3\xa9\"", "\"\xe6\xbc\xa2\xe5\xad\x97\"", "\"\xf0\x9f\x98\x80\"", "\"\xef\xbf\xbf\"", "\"\xf4\x8f\xbf\xbf\"",
        "\"\xed\x9f\xbf\"", "\"\xee\x80\x80\"", "[]", "[ ]", "{}", "{ }", "[1]", "[1,2]", "[ 1 , 2 ]", "[[]]", "[[],[]]", "{\"a\":1}",
        "{\"a\":1,\"b\":2}", "{\"a\":1,\"a\":2}", "{\"\":0}", "{\"a\":{\"b\":[{}]}}", "[null,true,false,0,\"\",[],{}]", " \t\r\n1 \t\r\n",
        "{\n\t\"a\" :\r 1 }", "[\"]\",\"}\",\"\\\"\"]", "\"0123456789abcdef0123456789abcdef0123456789abcdef\"",
        "[\"0123456789abcde\",\"0123456789abcd\",\"0123456789abc\\n\"]" };

static const char *const bad[] = { "", " ", "\n", "nul", "nulll", "Null", "tru", "truee", "fals", "falsee", "n", "t", "f", "NaN",
        "Infinity", "-", "+1", "-a", "--1", "01", "-01", "00", "1.", ".5", "-.5", "1.e1", "1e", "1e+", "1e-", "1e1.5", "1ee1", "0x1", "0b1",
        "1_0", "1 2", "1,", ",1", "1a", "\"", "\"a", "a\"", "\"\\\"", "\"\\", "\"\\x\"", "\"\\u\"", "\"\\u1\"", "\"\\u12\"", "\"\\u123\"",
        "\"\\u123g\"", "\"\\U0041\"", "\"\\'\"", "\"\\0\"", "\"\\ud800\"", "\"\\udfff\"", "\"\\ud800\\u0041\"", "\"\\ud800\\ud800\"",
        "\"\\ud800a\"", "\"\\ud800\\", "\"\\ud800\\u", "\"\\ud800\\udc0\"", "\"\\udc00\\ud800\"", "\"\\ud83d\\n\"", "\"\n\"", "\"\t\"",
        "\"\x01\"", "\"\x1f\"", "'a'", "\"\x80\"", "\"\xbf\"", "\"\xc0\x80\"", "\"\xc1\xbf\"", "\"\xc2\"", "\"\xc2", "\"\xe0\x80\x80\"",
        "\"\xe0\x9f\xbf\"", "\"\xe2\x82\"", "\"\xe2\x82", "\"\xed\xa0\x80\"", "\"\xed\xbf\xbf\"", "\"\xf0\x80\x80\x80\"",
        "\"\xf0\x8f\xbf\xbf\"", "\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"", "\"\xf8\x88\x80\x80\x80\"", "\"\xfc\"", "\"\xfe\"",
        "\"\xff\"", "\"\xf0\x9f\x98",
        "\xef\xbb\xbf"
        "1",
        "\xc2\xa0"
        "1",
        "1\xc2\xa0", "\f1", "\v1", "[", "]", "{", "}", "[1", "[1,", "[1,]", "[,1]", "[,]", "[1 2]", "[1}", "{1}", "[1]]", "[[1]", "[1],",
        "{\"a\"}", "{\"a\":}", "{\"a\" 1}", "{\"a\":1,}", "{,\"a\":1}", "{\"a\":1 \"b\":2}", "{\"a\":1]", "{a:1}", "{1:1}", "{null:1}",
        "{\"a\"=1}", "{\"a\":1}}", "{\"a\":1}{}", "{\"a\":1", "{\"a\":", "{\"a\"", "{\"a", "{\"", "{\"a\"::1}", "{\"a\":1,,\"b\":2}",
        "[1,,2]", "//x\n1", "1 //x", "/*x*/1", "[1 /*x*/]", "#1", "undefined", "[\"a\":1]", "{[]:1}", "{{}:1}", "\"a\" \"b\"", "[\"\n\"]",
        "{\"\n\":1}", "{\"a\\\":1}", "[1\f]" };

START_TEST(test_texts_of_rfc_8259_are_accepted) {
        struct om_error e;
        ck_assert_msg(check_copy(good[_i], strlen(good[_i]), 64, &e) == 0, "%s: %s", good[_i], e.message);
}
END_TEST

START_TEST(test_other_texts_are_refused_with_a_reason) {
        struct om_error e = OM_ERROR_INIT;
        ck_assert_msg(check_copy(bad[_i], strlen(bad[_i]), 64, &e) == -EINVAL, "%s", bad[_i]);
        ck_assert_int_eq(e.kind, OM_INVALID);
        ck_assert_msg(strstr(e.message, " at byte ") != NULL, "%s", e.message);
}
END_TEST

START_TEST(test_zero_bytes_are_refused_everywhere) {
        static const char text[] = "{\"a\":[1,\"b\"]}";
        char copy[sizeof text];
        for (size_t i = 0; i < sizeof text - 1; i++) {
                memcpy(copy, text, sizeof text);
                copy[i] = '\0';
                ck_assert_int_eq(check_copy(copy, sizeof text - 1, 64, NULL), -EINVAL);
        }
        ck_assert_int_eq(check_copy("1\0", 2, 64, NULL), -EINVAL);
}
END_TEST

START_TEST(test_a_fault_says_where_it_is) {
        static const struct {
                const char *text, *message;
        } cases[] = {
                { "{\"a\":01}", "JSON: a number with a leading zero at byte 6" },
                { "[1,2,]", "JSON: no value can start with this character at byte 5" },
                { "[1 2]", "JSON: neither a comma nor ] after an element at byte 3" },
                { "{\"a\" 1}", "JSON: no colon after the name of a member at byte 5" },
                { "\"ab\x01\"", "JSON: control character in a string, not escaped at byte 3" },
                { "\"ab\xff\"", "JSON: not UTF-8 at byte 3" },
                { "[\"ab", "JSON: the text ends inside a string at byte 4" },
                { "[1", "JSON: the text ends inside an array at byte 2" },
                { "{\"a\":1", "JSON: the text ends inside an object at byte 6" },
                { "1 x", "JSON: something follows the value at byte 2" },
                { "\xef\xbb\xbf{}", "JSON: a byte order mark at byte 0" },
                { "[[[1]]]", "JSON: arrays and objects nested too deep at byte 2" },
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                struct om_error e = OM_ERROR_INIT;
                ck_assert_int_lt(om_json_check(om_span_of(cases[i].text), 2, &e), 0);
                ck_assert_str_eq(e.message, cases[i].message);
        }
}
END_TEST

START_TEST(test_a_text_cut_anywhere_is_refused_and_nothing_behind_it_is_read) {
        static const char text[] =
                "{\"name\":\"w\\u00f6rld \xf0\x9f\x98\x80 \\ud83d\\ude00 0123456789abcdef\",\"list\":[1,-2.5e+10,true,false,null,[],{}],"
                "\"deep\":{\"a\":{\"b\":[[[\"\\\\\\\"\"]]]}}}";
        size_t n = sizeof text - 1;
        ck_assert_int_eq(check_copy(text, n, 64, NULL), 0);
        for (size_t cut = 0; cut < n; cut++) {
                ck_assert_msg(check_copy(text, cut, 64, NULL) == -EINVAL, "cut at %zu", cut);
                /* the mode that trusts the text must not read beyond it either */
                struct om_span s = exact_copy(text, cut);
                struct om_json j;
                om_json_init_valid(&j, s);
                ck_assert_int_eq(om_json_value(&j, NULL), -EINVAL);
                free((void *) s.p);
        }
}
END_TEST

START_TEST(test_depth_is_counted_exactly) {
        static const unsigned depths[] = { 1, 2, 63, 64, 65, 127, 128, 129, 1023, 1024 };
        char text[5 * 1025 + 8];
        for (size_t i = 0; i < sizeof depths / sizeof depths[0]; i++)
                for (int kind = 0; kind < 3; kind++) {
                        unsigned d = depths[i];
                        size_t n = 0;
                        for (unsigned k = 0; k < d; k++)
                                n += (size_t) sprintf(text + n, "%s", kind == 0 || (kind == 2 && k % 2) ? "[" : k + 1 < d ? "{\"\":" : "{");
                        for (unsigned k = d; k-- > 0;)
                                text[n++] = kind == 0 || (kind == 2 && k % 2) ? ']' : '}';
                        ck_assert_int_eq(check_copy(text, n, d, NULL), 0);
                        ck_assert_int_eq(check_copy(text, n, d - 1, NULL), -E2BIG);
                        ck_assert_int_eq(check_copy(text, n, 100000, NULL), 0);
                }
        memset(text, '[', 1025);
        memset(text + 1025, ']', 1025);
        ck_assert_int_eq(check_copy(text, 2050, 100000, NULL), -E2BIG); /* whatever was asked for */
}
END_TEST

START_TEST(test_levels_entered_count_as_depth) {
        struct om_json j;
        struct om_json_value key;
        om_json_init(&j, OM_SPAN("{\"a\":[[1]]}"), 3);
        ck_assert_int_eq(om_json_enter_object(&j), 0);
        ck_assert_int_eq(om_json_next_key(&j, &key), 1);
        ck_assert_int_eq(om_json_value(&j, NULL), 0);
        ck_assert_int_eq(om_json_next_key(&j, &key), 0);
        ck_assert_int_eq(om_json_finish(&j), 0);
        om_json_init(&j, OM_SPAN("{\"a\":[[1]]}"), 2);
        ck_assert_int_eq(om_json_enter_object(&j), 0);
        ck_assert_int_eq(om_json_next_key(&j, &key), 1);
        ck_assert_int_eq(om_json_value(&j, NULL), -E2BIG);
        om_json_init(&j, OM_SPAN("[[]]"), 1);
        ck_assert_int_eq(om_json_enter_array(&j), 0);
        ck_assert_int_eq(om_json_next_element(&j), 1);
        ck_assert_int_eq(om_json_enter_array(&j), -E2BIG);
}
END_TEST

/* -- against jansson ----------------------------------------------------------------------------------------------- */

static uint64_t seed = 0x2545f4914f6cdd1d;
static unsigned any(unsigned below) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        return (unsigned) (seed >> 11) % below;
}

static void put_space(struct om_buf *b) {
        if (any(8) == 0)
                for (unsigned n = any(5); n > 0; n--)
                        om_buf_putc(b, " \t\n\r"[any(4)]);
}

static void put_string(struct om_buf *b) {
        static const char *const pieces[] = { "\\n", "\\\\", "\\\"", "\\/", "\\u0041", "\\u00e9", "\\u6f22", "\\ud83d\\ude00", "\\t", "[",
                "]", "{", "}", ",", ":", "\xc3\xa9", "\xe6\xbc\xa2", "\xf0\x9f\x98\x80", "\x7f", "\\uffff", "\\b\\f\\r", "'", "/", " " };
        om_buf_putc(b, '"');
        unsigned rare = 1 + any(6);
        for (unsigned n = any(any(4) ? 12 : 90); n > 0; n--)
                if (any(rare) == 0)
                        om_buf_puts(b, pieces[any(sizeof pieces / sizeof pieces[0])]);
                else
                        om_buf_putc(b, (char) ('a' + any(26)));
        om_buf_putc(b, '"');
}

static void put_number(struct om_buf *b) {
        if (any(2))
                om_buf_putc(b, '-');
        if (any(4) == 0)
                om_buf_putc(b, '0');
        else {
                om_buf_putc(b, (char) ('1' + any(9)));
                for (unsigned n = any(any(10) ? 6 : 17); n > 0; n--)
                        om_buf_putc(b, (char) ('0' + any(10)));
        }
        if (any(3) == 0) {
                om_buf_putc(b, '.');
                for (unsigned n = 1 + any(any(10) ? 5 : 40); n > 0; n--)
                        om_buf_putc(b, (char) ('0' + any(10)));
        }
        if (any(4) == 0)
                om_buf_printf(
                        b, "%c%s%u", "eE" [any(2)], (const char *[]) { "", "+", "-" }[any(3)], any(any(10) ? 40 : 330));
}

static void put_value(struct om_buf *b, unsigned depth) {
        put_space(b);
        unsigned what = any(depth ? 10 : 7);
        if (what < 3)
                om_buf_puts(b, (const char *[]){ "null", "true", "false" }[what]);
        else if (what < 5)
                put_number(b);
        else if (what < 7)
                put_string(b);
        else {
                bool object = what == 7;
                om_buf_putc(b, object ? '{' : '[');
                put_space(b);
                for (unsigned n = any(6), first = 1; n > 0; n--, first = 0) {
                        if (!first)
                                om_buf_putc(b, ',');
                        if (object) {
                                put_space(b);
                                put_string(b);
                                put_space(b);
                                om_buf_putc(b, ':');
                        }
                        put_value(b, depth - 1);
                }
                om_buf_putc(b, object ? '}' : ']');
        }
        put_space(b);
}

/* The value at `j` as a tree of jansson's, read with our functions. */
static json_t *tree_of(struct om_json *j, struct om_arena *arena);

static json_t *tree_of_scalar(struct om_json *j, struct om_arena *arena) {
        struct om_json_value v;
        int64_t i;
        double d;
        ck_assert_int_eq(om_json_value(j, &v), 0);
        switch (v.type) {
        case OM_JSON_NULL:
                return json_null();
        case OM_JSON_TRUE:
                return json_true();
        case OM_JSON_FALSE:
                return json_false();
        case OM_JSON_STRING: {
                struct om_span s = om_json_string(v, arena);
                return json_stringn(s.p, s.len);
        }
        default:
                ck_assert_int_eq(v.type, OM_JSON_NUMBER);
                if (om_json_int64(v, &i) == 0)
                        return json_integer(i);
                ck_assert_int_eq(om_json_double(v, &d), 0);
                return json_real(d);
        }
}

static json_t *tree_of(struct om_json *j, struct om_arena *arena) {
        enum om_json_type type = om_json_peek(j);
        struct om_json_value key;
        json_t *tree;
        int r;
        if (type == OM_JSON_OBJECT) {
                tree = json_object();
                ck_assert_int_eq(om_json_enter_object(j), 0);
                while ((r = om_json_next_key(j, &key)) > 0) {
                        struct om_span name = om_json_string(key, arena);
                        ck_assert_int_eq(json_object_setn_new(tree, name.p, name.len, tree_of(j, arena)), 0);
                }
                ck_assert_int_eq(r, 0);
                return tree;
        }
        if (type == OM_JSON_ARRAY) {
                tree = json_array();
                ck_assert_int_eq(om_json_enter_array(j), 0);
                while ((r = om_json_next_element(j)) > 0)
                        json_array_append_new(tree, tree_of(j, arena));
                ck_assert_int_eq(r, 0);
                return tree;
        }
        return tree_of_scalar(j, arena);
}

static void check_same_tree(struct om_span text, json_t *theirs, bool valid) {
        struct om_arena arena = { 0 };
        struct om_json j;
        if (valid)
                om_json_init_valid(&j, text);
        else
                om_json_init(&j, text, 64);
        json_t *ours = tree_of(&j, &arena);
        ck_assert_int_eq(om_json_finish(&j), 0);
        ck_assert_msg(json_equal(ours, theirs), "%.*s", OM_PRI(text));
        json_decref(ours);
        om_arena_deinit(&arena);
}

static unsigned accepted, refused, not_compared;

/*
 * Both read the text; both must think the same of it. What jansson refuses and RFC 8259 allows is left out of the comparison: numbers
 * beyond its ranges, and zero characters in names; what it takes and the RFC does not: a zero byte after the value. Nothing else is.
 */
static void compare(struct om_span made) {
        struct om_span text = exact_copy(made.p, made.len);
        json_error_t error;
        struct om_error e;
        json_t *theirs = json_loadb(text.p, text.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        int r = om_json_check(text, 64, &e);
        if (memchr(text.p, '\0', text.len)) {
                ck_assert_int_eq(r, -EINVAL);
                not_compared++;
        } else if (theirs) {
                ck_assert_msg(r == 0, "%s: %.*s", e.message, OM_PRI(text));
                check_same_tree(text, theirs, false);
                check_same_tree(text, theirs, true);
                accepted++;
        } else {
                enum json_error_code code = json_error_code(&error);
                if (code == json_error_numeric_overflow || code == json_error_null_byte_in_key)
                        not_compared++;
                else {
                        ck_assert_msg(r < 0, "%s: %.*s", error.text, OM_PRI(text));
                        refused++;
                }
        }
        json_decref(theirs);
        free((void *) text.p);
}

static void mutate(struct om_buf *b) {
        static const char *const pieces[] = { "\"", "\\", "{", "}", "[", "]", ",", ":", "0", "-", ".", "e", "\\u", "\\ud800", "\\udc00",
                "\\u0000", " ", "\n", "\x01", "\xc3", "\xa9", "\xed\xa0\x80", "\xf0\x9f\x98\x80", "\xff", "null", "true", "1e999",
                "99999999999999999999", "/", "\x7f" };
        const char *piece = pieces[any(sizeof pieces / sizeof pieces[0])];
        size_t at = b->len ? any((unsigned) b->len) : 0, n = strlen(piece);
        switch (any(5)) {
        case 0: /* another byte */
                if (b->len)
                        b->data[at] = (char) any(256);
                break;
        case 1: /* one bit */
                if (b->len)
                        b->data[at] = (char) (b->data[at] ^ 1 << any(8));
                break;
        case 2: /* some bytes fewer */
                if (b->len) {
                        n = 1 + any(3);
                        if (n > b->len - at)
                                n = b->len - at;
                        memmove(b->data + at, b->data + at + n, b->len - at - n);
                        b->len -= n;
                }
                break;
        case 3: /* cut */
                b->len = at;
                break;
        default: /* a piece more */
                ck_assert(om_buf_reserve(b, n) != NULL);
                memmove(b->data + at + n, b->data + at, b->len - at);
                memcpy(b->data + at, piece, n);
                b->len += n;
        }
}

START_TEST(test_jansson_agrees_on_generated_texts) {
        struct om_buf b = OM_BUF_INIT;
        for (int i = 0; i < 15000; i++) {
                om_buf_clear(&b);
                put_value(&b, 6);
                compare(om_buf_span(&b));
        }
        om_buf_deinit(&b);
        ck_assert_uint_ge(accepted, 14000);
        ck_assert_uint_eq(refused, 0);
}
END_TEST

START_TEST(test_jansson_agrees_on_mutated_texts) {
        struct om_buf b = OM_BUF_INIT;
        for (int i = 0; i < 60000; i++) {
                om_buf_clear(&b);
                put_value(&b, 5);
                for (unsigned n = 1 + any(3); n > 0; n--)
                        mutate(&b);
                compare(om_buf_span(&b));
        }
        om_buf_deinit(&b);
        ck_assert_uint_ge(accepted, 5000);
        ck_assert_uint_ge(refused, 20000);
        ck_assert_uint_le(not_compared, 6000);
}
END_TEST

START_TEST(test_jansson_agrees_on_the_tables) {
        for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
                compare(om_span_of(good[i]));
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
                compare(om_span_of(bad[i]));
}
END_TEST

/* -- both ways over a value ---------------------------------------------------------------------------------------- */

START_TEST(test_both_modes_find_the_same_end_at_every_alignment) {
        struct om_buf b = OM_BUF_INIT;
        for (int i = 0; i < 20000; i++) {
                struct om_json j;
                struct om_json_value checked, trusted;
                om_buf_clear(&b);
                for (unsigned n = any(70); n > 0; n--)
                        om_buf_putc(&b, ' ');
                om_buf_putc(&b, '[');
                /* runs of backslashes and quotes are what may be miscounted at the edge of a block */
                for (unsigned n = any(4); n > 0; n--) {
                        om_buf_putc(&b, '"');
                        for (unsigned k = any(4) ? 0 : any(200); k > 0; k--) /* or stand behind a long run without any */
                                om_buf_putc(&b, 'x');
                        for (unsigned k = any(70); k > 0; k--)
                                om_buf_puts(&b, (const char *[]){ "\\\\", "\\\"", "]", "x" }[any(4)]);
                        om_buf_lit(&b, "\",");
                }
                put_value(&b, 3);
                om_buf_putc(&b, ']');
                size_t end = b.len;
                om_buf_lit(&b, ",\"]}]}");
                struct om_span text = exact_copy(b.data, b.len);
                om_json_init(&j, text, 64);
                ck_assert_int_eq(om_json_value(&j, &checked), 0);
                ck_assert_ptr_eq(j.p, text.p + end);
                om_json_init_valid(&j, text);
                ck_assert_int_eq(om_json_value(&j, &trusted), 0);
                ck_assert_ptr_eq(j.p, text.p + end);
                ck_assert(om_span_eq(checked.text, trusted.text) && checked.text.p == trusted.text.p && checked.type == trusted.type);
                free((void *) text.p);
        }
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_the_wrong_thing_next_is_refused) {
        struct om_json j;
        struct om_json_value v;
        om_json_init(&j, OM_SPAN(" [1]"), 64);
        ck_assert_int_eq(om_json_enter_object(&j), -EINVAL);
        ck_assert_str_eq(j.fault, "not an object");
        om_json_init(&j, OM_SPAN("{}"), 64);
        ck_assert_int_eq(om_json_enter_array(&j), -EINVAL);
        om_json_init(&j, OM_SPAN("[1,2]"), 64);
        ck_assert_int_eq(om_json_enter_array(&j), 0);
        ck_assert_int_eq(om_json_next_element(&j), 1);
        ck_assert_int_eq(om_json_next_element(&j), -EINVAL); /* the element was not stepped over */
        om_json_init(&j, OM_SPAN("[,1]"), 64);
        ck_assert_int_eq(om_json_enter_array(&j), 0);
        ck_assert_int_eq(om_json_next_element(&j), 1);
        ck_assert_int_eq(om_json_value(&j, &v), -EINVAL);
        om_json_init(&j, OM_SPAN("[1,]"), 64);
        ck_assert_int_eq(om_json_enter_array(&j), 0);
        ck_assert_int_eq(om_json_next_element(&j), 1);
        ck_assert_int_eq(om_json_value(&j, &v), 0);
        ck_assert_int_eq(om_json_next_element(&j), 1);
        ck_assert_int_eq(om_json_value(&j, &v), -EINVAL);
        om_json_init(&j, OM_SPAN(""), 64);
        ck_assert_int_eq(om_json_peek(&j), 0);
        om_json_init(&j, OM_SPAN("x"), 64);
        ck_assert_int_eq(om_json_peek(&j), 0);
}
END_TEST

/* -- strings and numbers ------------------------------------------------------------------------------------------- */

static struct om_json_value value_of(const char *text) {
        struct om_json j;
        struct om_json_value v;
        om_json_init(&j, om_span_of(text), 64);
        ck_assert_int_eq(om_json_value(&j, &v), 0);
        return v;
}

START_TEST(test_strings_are_decoded) {
        struct om_arena arena = { 0 };
        struct om_json_value v = value_of("\"a\\u0000\\n\\ud83d\\ude00\\u00e9\\u6f22/\\/\\\"\\\\\\b\\f\\r\\tz\"");
        struct om_span s = om_json_string(v, &arena);
        ck_assert(v.escaped);
        ck_assert(om_span_eq(s, OM_SPAN("a\0\n\xf0\x9f\x98\x80\xc3\xa9\xe6\xbc\xa2//\"\\\b\f\r\tz")));
        v = value_of("\"plain\"");
        s = om_json_string(v, &arena);
        ck_assert(!v.escaped && s.p == v.text.p + 1 && s.len == 5);
        s = om_json_string(value_of("\"\""), &arena);
        ck_assert(s.p != NULL && s.len == 0);
        om_arena_deinit(&arena);
}
END_TEST

START_TEST(test_strings_are_compared_decoded) {
        ck_assert(om_json_string_is(value_of("\"topic\""), "topic"));
        ck_assert(om_json_string_is(value_of("\"t\\u006fpic\""), "topic"));
        ck_assert(om_json_string_is(value_of("\"\\u6f22\\n\""), "\xe6\xbc\xa2\n"));
        ck_assert(om_json_string_is(value_of("\"\""), ""));
        ck_assert(!om_json_string_is(value_of("\"topi\""), "topic"));
        ck_assert(!om_json_string_is(value_of("\"topics\""), "topic"));
        ck_assert(!om_json_string_is(value_of("\"topi\\u0063s\""), "topic"));
        ck_assert(!om_json_string_is(value_of("\"topi\\u0064\""), "topic"));
        ck_assert(!om_json_string_is(value_of("\"topic\\u0000\""), "topic"));
        ck_assert(!om_json_string_is(value_of("\"t\\u006f\""), "topic"));
}
END_TEST

START_TEST(test_integers_are_read_within_range_only) {
        static const struct {
                const char *text;
                int r;
                int64_t value;
        } cases[] = { { "0", 0, 0 }, { "-0", 0, 0 }, { "1", 0, 1 }, { "-17", 0, -17 }, { "9223372036854775807", 0, INT64_MAX },
                { "-9223372036854775808", 0, INT64_MIN }, { "9223372036854775808", -ERANGE, 0 }, { "-9223372036854775809", -ERANGE, 0 },
                { "18446744073709551616", -ERANGE, 0 }, { "99999999999999999999999999", -ERANGE, 0 }, { "1.0", -EINVAL, 0 },
                { "1e2", -EINVAL, 0 }, { "99999999999999999999999999.5", -EINVAL, 0 }, { "\"1\"", -EINVAL, 0 }, { "true", -EINVAL, 0 } };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                int64_t value = 0;
                ck_assert_msg(om_json_int64(value_of(cases[i].text), &value) == cases[i].r, "%s", cases[i].text);
                ck_assert_msg(value == cases[i].value, "%s", cases[i].text);
        }
}
END_TEST

static void check_double(const char *text) {
        double d = 7, expected = strtod(text, NULL);
        int r = om_json_double(value_of(text), &d);
        if (isinf(expected))
                ck_assert_msg(r == -ERANGE && d == 7, "%s", text);
        else
                ck_assert_msg(r == 0 && memcmp(&d, &expected, sizeof d) == 0, "%s: %.17g", text, d);
}

START_TEST(test_doubles_are_the_nearest_ones) {
        static const char *const cases[] = { "0", "-0", "0.0", "-0.0e10", "0e999999999999999999999", "1", "-1.5", "0.1", "1e22", "1e23",
                "123456789012345e-22", "9007199254740993", "9007199254740992.9999999999", "1.7976931348623157e308",
                "1.7976931348623159e308", "1e308", "1e309", "-1e400", "1e-400", "5e-324", "2.4703282292062327e-324",
                "2.4703282292062328e-324", "2.2250738585072011e-308", "4.35", "0.000001", "100000000000000000000000",
                "1e999999999999999999999", "1e-999999999999999999999", "1795425242.137", "8.5e15", "0.30000000000000004" };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
                check_double(cases[i]);
        ck_assert_int_eq(om_json_double(value_of("\"1\""), &(double){ 0 }), -EINVAL);
}
END_TEST

START_TEST(test_doubles_of_many_digits_are_the_nearest_ones) {
        struct om_buf b = OM_BUF_INIT;
        /* the middle of two neighbours, written out, and a little more or less far behind */
        static const char *const tails[] = { "", "0", "000000000000000000001", "1" };
        for (int places = 0; places <= 1200; places += 100)
                for (size_t t = 0; t < sizeof tails / sizeof tails[0]; t++)
                        for (int sign = 0; sign < 2; sign++) {
                                om_buf_clear(&b);
                                om_buf_puts(&b, sign ? "-9007199254740993." : "9007199254740993.");
                                for (int k = 0; k <= places; k++)
                                        om_buf_putc(&b, '0');
                                om_buf_puts(&b, tails[t]);
                                om_buf_putc(&b, '\0');
                                check_double(b.data);
                        }
        for (int i = 0; i < 3000; i++) {
                om_buf_clear(&b);
                for (unsigned n = 1 + any(any(10) ? 30 : 1000), first = 1; n > 0; n--, first = 0)
                        om_buf_putc(&b, (char) (first ? '1' + any(9) : '0' + any(any(2) ? 10 : 1)));
                if (any(2)) {
                        om_buf_putc(&b, '.');
                        for (unsigned n = 1 + any(any(10) ? 30 : 1000); n > 0; n--)
                                om_buf_putc(&b, (char) ('0' + any(any(2) ? 10 : 1)));
                }
                if (any(2))
                        om_buf_printf(&b, "e%d", (int) any(2400) - 1200);
                om_buf_putc(&b, '\0');
                check_double(b.data);
        }
        om_buf_deinit(&b);
}
END_TEST

/* -- members ------------------------------------------------------------------------------------------------------- */

static int read_members(const char *text, struct om_json_member *m, struct om_error *e) {
        ck_assert_int_eq(om_json_check(om_span_of(text), 64, e), 0);
        return om_json_members(om_span_of(text), "params", m, e);
}

START_TEST(test_members_are_found_by_name_in_any_order) {
        struct om_json_member m[] = { { "topic", OM_JSON_STRING, true }, { "limit", OM_JSON_NUMBER, false }, { "value", OM_JSON_ANY, true },
                { "all", OM_JSON_BOOL, false }, { NULL } };
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(read_members("{\"value\":null,\"limit\":5,\"t\\u006fpic\":\"a\"}", m, &e), 0);
        ck_assert(om_span_is(m[0].value.text, "\"a\""));
        ck_assert(om_span_is(m[1].value.text, "5"));
        ck_assert_int_eq(m[2].value.type, OM_JSON_NULL);
        ck_assert_int_eq(m[3].value.type, 0);
        ck_assert_ptr_null(m[3].value.text.p);
        /* a second reading forgets the first */
        ck_assert_int_eq(read_members("{\"all\":true,\"limit\":null,\"value\":[1],\"topic\":\"b\"}", m, &e), 0);
        ck_assert_int_eq(m[1].value.type, 0);
        ck_assert_ptr_null(m[1].value.text.p);
        ck_assert_int_eq(m[3].value.type, OM_JSON_TRUE);
        struct om_json_member none[] = { { NULL } };
        ck_assert_int_eq(read_members("{}", none, &e), 0);
        ck_assert_int_eq(read_members("{\"a\":1}", none, &e), -EINVAL);
        ck_assert_str_eq(e.message, "params: unknown member \"a\"");
}
END_TEST

START_TEST(test_members_inside_are_read_on_the_way) {
        struct om_json_member inside[] = { { "content", OM_JSON_ANY, true }, { "hook", OM_JSON_STRING, false }, { NULL } };
        struct om_json_member m[] = { { "topic", OM_JSON_STRING, true }, { "payload", OM_JSON_OBJECT, true, .inside = inside }, { NULL } };
        static const struct {
                const char *text, *message;
        } cases[] = {
                { "{\"topic\":\"a\",\"payload\":{}}", "params.payload: \"content\" is missing" },
                { "{\"payload\":{\"content\":1,\"hok\":2},\"topic\":\"a\"}",
                        "params.payload: unknown member \"hok\"; did you mean \"hook\"?" },
                { "{\"payload\":{\"content\":1,\"hook\":2},\"topic\":\"a\"}", "params.payload: \"hook\" must be a string, not a number" },
                { "{\"payload\":{\"content\":1,\"content\":1},\"topic\":\"a\"}", "params.payload: \"content\" stands twice" },
                { "{\"topic\":\"a\",\"payload\":[{\"content\":1}]}", "params: \"payload\" must be an object, not an array" },
                { "{\"payload\":{\"content\":1}}", "params: \"topic\" is missing" },
                { "{\"topic\":\"a\",\"payload\":{\"content\":1},\"payload\":{\"content\":1}}", "params: \"payload\" stands twice" },
        };
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(read_members("{ \"payload\" : { \"content\" : { \"a\":[1] } } , \"topic\":\"b\" }", m, &e), 0);
        ck_assert(om_span_is(m[0].value.text, "\"b\""));
        ck_assert(om_span_is(m[1].value.text, "{ \"content\" : { \"a\":[1] } }"));
        ck_assert(om_span_is(inside[0].value.text, "{ \"a\":[1] }"));
        ck_assert_int_eq(inside[1].value.type, 0);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                ck_assert_int_eq(read_members(cases[i].text, m, &e), -EINVAL);
                ck_assert_str_eq(e.message, cases[i].message);
        }
}
END_TEST

START_TEST(test_members_at_a_place_leave_the_reader_behind_them) {
        struct om_json_member m[] = { { "a", OM_JSON_NUMBER, true }, { NULL } };
        struct om_error e = OM_ERROR_INIT;
        struct om_json j;
        unsigned n = 0;
        om_json_init_valid(&j, OM_SPAN("[{\"a\":0}, {\"a\":1} ,{ \"a\" : 2 }]"));
        ck_assert_int_eq(om_json_enter_array(&j), 0);
        for (; om_json_next_element(&j) > 0; n++) {
                int64_t value;
                ck_assert_int_eq(om_json_members_at(&j, "params", m, &e), 0);
                ck_assert_int_eq(om_json_int64(m[0].value, &value), 0);
                ck_assert_int_eq(value, n);
        }
        ck_assert_uint_eq(n, 3);
        ck_assert_int_eq(om_json_finish(&j), 0);
}
END_TEST

START_TEST(test_wrong_members_are_refused_with_a_message_that_helps) {
        static const struct {
                const char *text, *message;
        } cases[] = {
                { "{\"topic\":\"a\",\"limt\":1}", "params: unknown member \"limt\"; did you mean \"limit\"?" },
                { "{\"topic\":\"a\",\"Limit\":1}", "params: unknown member \"Limit\"; did you mean \"limit\"?" },
                { "{\"topic\":\"a\",\"zebra\":1}", "params: unknown member \"zebra\"" },
                { "{\"topic\":\"a\",\"\":1}", "params: unknown member \"\"" },
                { "{\"topic\":\"a\",\"limit\":\"1\"}", "params: \"limit\" must be a number, not a string" },
                { "{\"topic\":\"a\",\"all\":1}", "params: \"all\" must be a boolean, not a number" },
                { "{\"topic\":\"a\",\"hook\":[]}", "params: \"hook\" must be a string or an object, not an array" },
                { "{\"topic\":\"a\",\"start\":{}}", "params: \"start\" must be a number, a string or null, not an object" },
                { "{\"topic\":null}", "params: \"topic\" must be a string, not null" },
                { "{\"limit\":1}", "params: \"topic\" is missing" },
                { "{\"topic\":\"a\",\"topic\":\"a\"}", "params: \"topic\" stands twice" },
                { "{\"topic\":\"a\",\"t\\u006fpic\":\"a\"}", "params: \"topic\" stands twice" },
                { "{\"topic\":\"a\",\"limit\":null,\"limit\":null}", "params: \"limit\" stands twice" },
                { "[]", "params must be an object, not an array" },
                { "{\"topic\":\"a\",\"0123456789012345678901234567890123456789012345678901234567\xc3\xa9\xc3\xa9\xc3\xa9\":1}",
                        "params: unknown member \"0123456789012345678901234567890123456789012345678901234567\xc3\xa9…\"" },
                { "{\"topic\":\"a\",\"a\x7f\xc2\x85z\":1}", "params: unknown member \"a??z\"" },
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                struct om_json_member m[] = { { "topic", OM_JSON_STRING, true }, { "limit", OM_JSON_NUMBER, false },
                        { "all", OM_JSON_BOOL, false }, { "hook", OM_JSON_STRING | OM_JSON_OBJECT, false },
                        { "start", OM_JSON_STRING | OM_JSON_NUMBER | OM_JSON_NULL, false }, { NULL } };
                struct om_error e = OM_ERROR_INIT;
                ck_assert_int_eq(read_members(cases[i].text, m, &e), -EINVAL);
                ck_assert_str_eq(e.message, cases[i].message);
                ck_assert_int_eq(e.code, OM_CODE_PARAMS);
                ck_assert_int_eq(e.kind, OM_INVALID);
                ck_assert_int_eq(om_json_members(om_span_of(cases[i].text), "params", m, NULL), -EINVAL);
        }
}
END_TEST

int main(void) {
        Suite *s = suite_create("json_scan");
        TCase *c = tcase_create("json_scan");
        tcase_set_timeout(c, 120);
        tcase_add_loop_test(c, test_texts_of_rfc_8259_are_accepted, 0, (int) (sizeof good / sizeof good[0]));
        tcase_add_loop_test(c, test_other_texts_are_refused_with_a_reason, 0, (int) (sizeof bad / sizeof bad[0]));
        tcase_add_test(c, test_zero_bytes_are_refused_everywhere);
        tcase_add_test(c, test_a_fault_says_where_it_is);
        tcase_add_test(c, test_a_text_cut_anywhere_is_refused_and_nothing_behind_it_is_read);
        tcase_add_test(c, test_depth_is_counted_exactly);
        tcase_add_test(c, test_levels_entered_count_as_depth);
        tcase_add_test(c, test_jansson_agrees_on_generated_texts);
        tcase_add_test(c, test_jansson_agrees_on_mutated_texts);
        tcase_add_test(c, test_jansson_agrees_on_the_tables);
        tcase_add_test(c, test_both_modes_find_the_same_end_at_every_alignment);
        tcase_add_test(c, test_the_wrong_thing_next_is_refused);
        tcase_add_test(c, test_strings_are_decoded);
        tcase_add_test(c, test_strings_are_compared_decoded);
        tcase_add_test(c, test_integers_are_read_within_range_only);
        tcase_add_test(c, test_doubles_are_the_nearest_ones);
        tcase_add_test(c, test_doubles_of_many_digits_are_the_nearest_ones);
        tcase_add_test(c, test_members_are_found_by_name_in_any_order);
        tcase_add_test(c, test_members_inside_are_read_on_the_way);
        tcase_add_test(c, test_members_at_a_place_leave_the_reader_behind_them);
        tcase_add_test(c, test_wrong_members_are_refused_with_a_message_that_helps);
        suite_add_tcase(s, c);
        return om_test_main(s);
}
