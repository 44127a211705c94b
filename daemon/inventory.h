/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_INVENTORY_H
#define OM_INVENTORY_H
/*
 * Which backends there are, what each can do and how it is set: the answer to `backends`, and what `omnidaemond --print-backends` prints.
 *
 * To know a module is to load it, and a daemon loads only what it uses. So it runs its own program for that, which loads them all, prints,
 * and ends; whatever a module does to the process that loads it, it does to that one. Loop thread.
 */
#include <stdio.h>

#include "session.h"

/* Writes the result of the method `backends` as one line. Loads every module that is there. The two schemes are of the URLs in use. */
void om_inventory_print(const char *bus_scheme, const char *store_scheme, FILE *out);

struct om_inventory;
int om_inventory_new(struct om_core *core, struct om_inventory **ret);
/* Whoever still waits goes unanswered. NULL-safe. */
void om_inventory_free(struct om_inventory *i);
/* Answers req once the program has printed: at the latest after call_timeout_ms, with `timeout`. All who ask meanwhile get one answer. */
void om_inventory_answer(struct om_inventory *i, struct om_request *req);

#endif
