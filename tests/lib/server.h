/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_TEST_SERVER_H
#define OM_TEST_SERVER_H
/*
 * A real server for a test written in C: held by one of the scripts of tests/servers, whose lib.sh says what they are told and answer.
 *
 * The server ends with om_test_server_stop(), and with the test's process however that ends: the script sees the end of its input. What
 * goes wrong in here ends the program with a message. Thread: any, one at a time.
 */
#include <stdbool.h>
#include <stddef.h>

struct om_test_server;

/* `system`: "redis", or with a kind, "redis:cluster". `dir`: a folder of its own, made if it is missing; the caller's to remove. Returns
 * when the server answers. The scripts are looked for in $OMNI_SERVERS, tests/servers without it. */
struct om_test_server *om_test_server_start(const char *system, const char *dir);

/* What it printed: "bus_url", "store_url". NULL: nothing of that name. */
const char *om_test_server_value(const struct om_test_server *s, const char *name);
/* The i-th of several, "wrong_bus" say; NULL after the last. */
const char *om_test_server_nth(const struct om_test_server *s, const char *name, size_t i);

/* Has a command done: "kill", "up 2". False where the script says that it failed. Returns when it is done. */
bool om_test_server_try(struct om_test_server *s, const char *command);
void om_test_server_do(struct om_test_server *s, const char *command); /* must succeed */

void om_test_server_stop(struct om_test_server *s); /* NULL is ignored */

#endif
