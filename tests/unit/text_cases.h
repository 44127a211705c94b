/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loops of text.h against loops that look at one byte at a time. Included by two programs: one has SSE2 where the
 * machine has it, the other takes the portable way. Every text is a block of its own size, so that a sanitizer sees any read beyond it.
 */
#include "../../proto/text.h"
#include "../lib/suite.h"

#include <check.h>
#include <stdlib.h>

static uint64_t text_seed = 88172645463325252;
static unsigned text_random(unsigned below) {
        text_seed ^= text_seed << 13;
        text_seed ^= text_seed >> 7;
        text_seed ^= text_seed << 17;
        return (unsigned) (text_seed >> 11) % below;
}

/* Mostly dull bytes, with the special ones and those next to them strewn in. */
static char *random_text(size_t n) {
        static const char special[] = "\"\\[]{}\x1f\x20\x21\x23\x5a\x5e\x7a\x7c\x7e\x7f\x80\xff\x02\x3b\xdb\xfb\xfd\xa2\xdc\x00\x0d\x5f";
        char *text = malloc(n ? n : 1);
        unsigned rare = 1 + text_random(text_random(4) ? 40 : 400); /* a string of some hundred bytes goes by in steps of 64 */
        for (size_t i = 0; i < n; i++)
                text[i] = text_random(rare) == 0 ? special[text_random(sizeof special - 1)] : (char) ('a' + text_random(26));
        return text;
}

START_TEST(test_runs_end_where_a_loop_over_bytes_says) {
        for (int turn = 0; turn < 30000; turn++) {
                size_t n = text_random(300), plain = 0, quote = 0;
                char *text = random_text(n);
                while (plain < n && (unsigned char) text[plain] >= 0x20 && (unsigned char) text[plain] < 0x80 && text[plain] != '"' &&
                        text[plain] != '\\')
                        plain++;
                while (quote < n && text[quote] != '"' && text[quote] != '\\')
                        quote++;
                ck_assert_uint_eq((size_t) (om_text_skip_plain(text, text + n) - text), plain);
                ck_assert_uint_eq((size_t) (om_text_find_quote(text, text + n) - text), quote);
                free(text);
        }
}
END_TEST

/* The same four marks, a byte at a time. */
static struct om_text_marks marks_by_bytes(const char *p) {
        struct om_text_marks m = { 0, 0, 0, 0 };
        for (int i = 0; i < 64; i++) {
                m.backslash |= (uint64_t) (p[i] == '\\') << i;
                m.quote |= (uint64_t) (p[i] == '"') << i;
                m.open |= (uint64_t) (p[i] == '[' || p[i] == '{') << i;
                m.close |= (uint64_t) (p[i] == ']' || p[i] == '}') << i;
        }
        return m;
}

START_TEST(test_marks_of_64_bytes_are_where_a_loop_over_bytes_says) {
        for (int turn = 0; turn < 30000; turn++) {
                char *text = random_text(64);
                struct om_text_marks m = om_text_mark64(text), expected = marks_by_bytes(text);
                ck_assert_mem_eq(&m, &expected, sizeof m);
                free(text);
        }
}
END_TEST

static size_t encode(uint32_t c, char *out) {
        int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        static const unsigned char first[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
        for (int i = n - 1; i > 0; i--, c >>= 6)
                out[i] = (char) (0x80 | (c & 0x3f));
        out[0] = (char) (first[n] | c);
        return (size_t) n;
}

START_TEST(test_every_character_is_utf8_and_no_surrogate_is) {
        uint32_t wrong = 0; /* counted: an assertion for each would take minutes */
        for (uint32_t c = 0; c < 0x120000; c++) {
                char text[4];
                size_t n = encode(c, text);
                bool good = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
                wrong += om_text_utf8(text, text + n) != (good ? n : 0);
                wrong += n > 1 && om_text_utf8(text, text + n - 1) != 0;
                wrong += good && om_text_is_control(text, n) != (c < 0x20 || (c >= 0x7f && c < 0xa0));
        }
        ck_assert_uint_eq(wrong, 0);
}
END_TEST

START_TEST(test_sequences_of_bytes_that_are_no_character_are_refused) {
        uint32_t wrong = 0;
        /* all first and second bytes with sixteen third ones: only what encode() makes may pass */
        for (uint32_t bytes = 0; bytes < 0x1000000; bytes += 0x100 / 16) {
                char text[4] = { (char) (bytes >> 16), (char) (bytes >> 8), (char) bytes, (char) 0x80 }, again[4];
                size_t n = om_text_utf8(text, text + 4);
                if (n == 0)
                        continue;
                uint32_t c = (unsigned char) text[0];
                if (n > 1)
                        c &= 0xffu >> (n + 1);
                for (size_t i = 1; i < n; i++)
                        c = c << 6 | (text[i] & 0x3f);
                wrong += encode(c, again) != n || memcmp(again, text, n) != 0;
        }
        ck_assert_uint_eq(wrong, 0);
}
END_TEST

START_TEST(test_text_is_cut_between_characters) {
        const char *text = "a\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80";
        static const size_t expected[] = { 0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10 };
        for (size_t max = 0; max < 12; max++)
                ck_assert_uint_eq(om_text_cut(text, 10, max), expected[max]);
}
END_TEST

static int text_main(const char *name) {
        Suite *s = suite_create(name);
        TCase *c = tcase_create(name);
        tcase_add_test(c, test_runs_end_where_a_loop_over_bytes_says);
        tcase_add_test(c, test_marks_of_64_bytes_are_where_a_loop_over_bytes_says);
        tcase_add_test(c, test_every_character_is_utf8_and_no_surrogate_is);
        tcase_add_test(c, test_sequences_of_bytes_that_are_no_character_are_refused);
        tcase_add_test(c, test_text_is_cut_between_characters);
        suite_add_tcase(s, c);
        return om_test_main(s);
}
