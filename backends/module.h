/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_MODULE_H
#define OM_MODULE_H
/*
 * Modules: backends in files of their own, `bus_NAME.so` and `store_NAME.so` in one folder, loaded when a URL asks for them.
 *
 * A module exports one symbol, `om_NAME_bus_ops` or `om_NAME_store_ops`, and takes what it needs of proto/ and backends/ from the program
 * that loads it. Loop thread.
 */
#include <stdbool.h>

#include "../proto/error.h"

/* Where modules are looked for: a folder, borrowed for ever. NULL: lib/omnidaemon beside the program's own folder, as in build/bin and
 * build/lib, /usr/bin and /usr/lib. */
void om_module_set_folder(const char *folder);
/* The folder in force, for messages; valid until the next set. */
const char *om_module_folder(void);

/* Whether the file is there; it may still not load. */
bool om_module_is_there(const char *file);

/*
 * Loads `file` ("bus_redis.so") and returns the address of `symbol` ("om_redis_bus_ops"), for the rest of the process's life. -ENOENT:
 * there is no such file; -ELIBBAD: it cannot be loaded, or is no module of this name, with `e` saying why (a library that it needs and that
 * is missing, say).
 */
int om_module_load(const char *file, const char *symbol, const void **ret, struct om_error *e);

#endif
