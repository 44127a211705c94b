/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walking through all keys of all servers, by SCAN: for what no index finds. SCAN gives every key that is there all the time at least once,
 * and perhaps more often. When keys have moved to other servers meanwhile, some may have been missed, and it begins anew.
 *
 * Called by lists and by clearing. Loop thread.
 */
#include <stdio.h>

#include "store_state.h"

enum { COUNT = 1000, ROUNDS = 4 };

static void walk_on(struct om_redis_job *job);

static void on_scanned(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct om_redis_walk *w = job->walk;
        const struct om_redis_reply *cursor = om_redis_at(reply, 0), *keys = om_redis_at(reply, 1);

        snprintf(w->cursor, sizeof w->cursor, "%.*s", OM_PRI(cursor->text));
        if (!w->cursor[0] || strcmp(w->cursor, "0") == 0) {
                w->node++;
                strcpy(w->cursor, "0");
        }
        job->next = walk_on;
        for (size_t k = 0; k < keys->n && job->status == 0; k++)
                w->found(job, om_redis_at(keys, k)->text);
}

static void walk_on(struct om_redis_job *job) {
        struct om_redis_walk *w = job->walk;
        struct om_store *s = job->store;
        struct om_redis_node *node = om_redis_node_at(s->redis, w->node);
        struct om_redis_cmd *c;
        struct om_error e;

        if (!node && w->moves != s->moves) {
                if (w->rounds >= ROUNDS) {
                        om_redis_job_fail(job,
                                om_error_set(&e, OM_UNAVAILABLE, "the cluster keeps moving its keys; ask again when it has settled"), &e);
                        return;
                }
                if (w->again)
                        w->again(job);
                om_redis_walk_begin(job, w);
                return;
        }
        if (!node) {
                w->over(job);
                return;
        }
        c = om_redis_cmd_new("SCAN");
        om_redis_arg_text(c, w->cursor);
        om_redis_arg_text(c, "MATCH");
        om_redis_arg(c, w->pattern);
        om_redis_arg_text(c, "COUNT");
        om_redis_arg_int(c, COUNT);
        om_redis_job_send_node(job, node, c, on_scanned, 0);
}

void om_redis_walk_begin(struct om_redis_job *job, struct om_redis_walk *walk) {
        job->walk = walk;
        walk->node = 0;
        walk->moves = job->store->moves;
        walk->rounds++;
        strcpy(walk->cursor, "0");
        walk_on(job);
}
