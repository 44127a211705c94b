/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_SUITE_H
#define TEST_SUITE_H
#include <check.h>

/* Runs the suite, which it takes, as the environment says (CK_*): what main() of a test program returns. */
int om_test_main(Suite *suite);

#if defined(__has_feature) && !defined(__SANITIZE_THREAD__)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1 /* as gcc calls it */
#endif
#endif

#endif
