/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_STORAGE_ROUTES_H
#define OM_STORAGE_ROUTES_H
/*
 * The storage that the core sees: one om_store_ops over up to three opened storages.
 *
 *   core ─▶ routes ─┬─▶ the storage (STORAGE_URL)                 agents, metrics, config, keys, and results unless
 *                   ├─▶ the result storage (RESULT_STORAGE_URL)   … it is set
 *                   └─▶ the second storage (STORAGE_BACKUP_URL, or the target of a migration)   everything once more
 *
 * An operation goes to the one storage that its kind belongs to; nobody waits for a storage that he does not need. The second storage is
 * written behind the others' back (storage_internal.h says how), so that nobody waits for it, and a failure of it fails nothing.
 *
 * Loop thread.
 */
#include "../backends/store.h"
#include "settings.h"

/*
 * Opens what the settings name, and goes on with a migration that the state folder tells of. *ret_ops holds name, schemes and capabilities
 * of the storage as it is now: they change with a switch, of which events->state(READY) tells. < 0: settings that can never work.
 */
int om_routes_open(struct om_host *host, const struct om_settings *settings, const struct om_store_events *events, void *core,
        const struct om_store_ops **ret_ops, struct om_store **ret, struct om_error *e);
/* The storage's URL without its password; until the next switch. */
const char *om_routes_url(const struct om_store *s);

/* -- migration (methods_migrate.c) --------------------------------------------------------------------------------- */

/* Begins to copy to `url` (absent: to the backup), or goes on. `replace`: what the new storage holds and the old one does not is deleted;
 * without it one that holds something is refused. 0: under way, om_routes_status() tells; < 0: refused. */
int om_routes_migrate(struct om_store *s, struct om_span url, bool replace, struct om_error *e);
/* The next step: reads from the new one; then the new one is the primary; then the old one is let go. 0: done, or under way (`switching`).
 */
int om_routes_switch(struct om_store *s, struct om_error *e);
/* Back to the old storage alone. */
int om_routes_abort(struct om_store *s, struct om_error *e);
/* Compares both storages record by record; `repair`: what differs is brought to the second one again. 0: under way. */
int om_routes_verify(struct om_store *s, bool repair, struct om_error *e);
/* One JSON object: what the methods answer. */
void om_routes_status(const struct om_store *s, struct om_buf *b);

/* Who waits for the status to change; embedded. fn is called once, on the loop, when the revision is no longer `seen`. */
struct om_routes_wait {
        void (*fn)(struct om_routes_wait *w);
        uint64_t seen;
        struct om_routes_wait *prev, *next;
};
uint64_t om_routes_revision(const struct om_store *s);
void om_routes_wait(struct om_store *s, struct om_routes_wait *w);
void om_routes_wait_stop(struct om_store *s, struct om_routes_wait *w);

#endif
