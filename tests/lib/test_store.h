/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_STORE_H
#define TEST_STORE_H
/* Registers the storages test-loop:, test-thread: and test-worker:, in memory, for as long as they are open. */
void test_stores_register(void);
#endif
