/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_SUITE_H
#define TEST_SUITE_H
#include <check.h>

/* Runs the suite, which it takes, as the environment says (CK_*): what main() of a test program returns. */
int om_test_main(Suite *suite);

#endif
