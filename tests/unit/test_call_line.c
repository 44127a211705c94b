/* SPDX-License-Identifier: Apache-2.0 */
/* The line of calls that wait: whose turn it is, and that nothing is lost or left behind when each allocation in turn fails. */
#include <check.h>
#include <stdlib.h>

#include "../lib/suite.h"

static unsigned allocations, failing; /* the how manieth fails; 0: none */
static long held;

static void *of_ours(void *p) {
        held += p != NULL;
        return p;
}
static void *test_malloc(size_t n) { return ++allocations == failing ? NULL : of_ours(malloc(n)); }
static void *test_calloc(size_t n, size_t size) { return ++allocations == failing ? NULL : of_ours(calloc(n, size)); }
static void test_free(void *p) {
        held -= p != NULL;
        free(p);
}
#define malloc test_malloc
#define calloc test_calloc
#define free test_free
#include "../../daemon/call_line.c" /* NOLINT(bugprone-suspicious-include): so that its allocations can fail */
#undef malloc
#undef calloc
#undef free

START_TEST(test_who_asks_now_and_then_comes_before_who_asks_much) {
        struct om_call_line line = { NULL };
        struct om_call much[8] = { 0 }, now_and_then = { .serial = 2 }, own = { .serial = 0 };
        for (int i = 0; i < 8; i++) {
                much[i].serial = 1;
                om_call_line_put(&line, &much[i]);
        }
        om_call_line_put(&line, &now_and_then);
        om_call_line_put(&line, &own);
        struct om_call *const expected[] = { &much[0], &now_and_then, &own, &much[1], &much[2], &much[3], &much[4], &much[5], &much[6],
                &much[7] };
        for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
                if (i == 4) { /* what could not go out is the next again */
                        struct om_call *c = om_call_line_next(&line);
                        om_call_line_put_back(&line, c);
                }
                ck_assert_ptr_eq(om_call_line_next(&line), expected[i]);
        }
        ck_assert(om_call_line_is_empty(&line));
        ck_assert_int_eq(held, 0);
}
END_TEST

START_TEST(test_without_memory_nothing_is_lost_or_left_behind) {
        enum { N = 12 };
        for (failing = 1;; failing++) {
                struct om_call_line line = { NULL };
                struct om_call calls[N] = { 0 }, *c;
                unsigned seen[3] = { 0 };
                allocations = 0;
                for (unsigned i = 0; i < N; i++) {
                        calls[i].serial = i % 3;
                        om_call_line_put(&line, &calls[i]);
                        if (i % 5 == 4) {
                                c = om_call_line_next(&line);
                                om_call_line_put_back(&line, c);
                        }
                }
                om_call_line_remove(&line, &calls[7]);
                while ((c = om_call_line_next(&line)))
                        seen[c->serial]++;
                ck_assert_uint_eq(seen[0], 4);
                ck_assert_uint_eq(seen[1], 3);
                ck_assert_uint_eq(seen[2], 4);
                ck_assert_msg(held == 0 && !line.askers, "allocation %u fails: %ld are left", failing, held);
                if (allocations < failing)
                        break;
        }
        ck_assert_uint_gt(failing, 4);
}
END_TEST

int main(void) {
        Suite *s = suite_create("call line");
        TCase *t = tcase_create("line");
        tcase_add_test(t, test_who_asks_now_and_then_comes_before_who_asks_much);
        tcase_add_test(t, test_without_memory_nothing_is_lost_or_left_behind);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
