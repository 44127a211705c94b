/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_BUS_H
#define TEST_BUS_H
/* Registers the buses test-loop:, test-thread: and test-worker:, in memory, for as long as they are open. */
void test_buses_register(void);
#endif
