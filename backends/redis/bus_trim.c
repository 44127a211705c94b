/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forgetting: what every group has finished, and retention_ms does not keep, is trimmed from its topic.
 *
 * Always true: a script decides on the server what is finished, over all groups there are at that moment, those of the Python OmniDaemon
 * included; nothing that is pending or not delivered for some group goes. It runs a second after acknowledgements began, or after
 * TRIM_EVERY of them; where nothing is acknowledged no timer runs. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bus_state.h"

enum { TRIM_EVERY = 5000 };

struct om_redis_cmd *om_redis_bus_trim_cmd(struct om_bus *b, struct om_span stream) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_trim, 1);
        char floor[32] = "";

        if (b->settings.retention_ms)
                snprintf(floor, sizeof floor, "%lld-0", (long long) (om_now_ms() - b->settings.retention_ms));
        om_redis_key(c, stream);
        om_redis_arg_text(c, floor);
        return c;
}

static void on_trimmed(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct bus_trim *t = ctx;

        struct om_bus *b = t->bus;

        t->under_way = false;
        b->n_internal--;
        if (status == -EAGAIN && !b->closed)
                om_redis_bus_trim_later(b, om_span_of(t->stream), 1); /* of one server of a cluster, say, that is away */
}

static void trim(struct om_bus *b, struct bus_trim *t) {
        struct om_error e;

        if (t->under_way)
                return;
        t->n = 0;
        t->under_way = om_redis_send(b->redis, om_redis_bus_trim_cmd(b, om_span_of(t->stream)), on_trimmed, t, &e) == 0;
        b->n_internal += t->under_way;
}

void om_redis_bus_trim_later(struct om_bus *b, struct om_span stream, unsigned n) {
        const struct timeval second = { .tv_sec = 1 };
        struct bus_trim *t;

        HASH_FIND(hh, b->trims, stream.p, stream.len, t);
        if (!t) {
                t = calloc(1, sizeof *t + stream.len + 1);
                if (!t)
                        return;
                t->bus = b;
                memcpy(t->stream, stream.p, stream.len);
                HASH_ADD(hh, b->trims, stream, stream.len, t);
                if (!t->hh.tbl) {
                        free(t);
                        return;
                }
        }
        t->n += n;
        if (t->n >= TRIM_EVERY)
                trim(b, t);
        else if (!evtimer_pending(b->trim_timer, NULL))
                event_add(b->trim_timer, &second);
}

void om_redis_bus_on_trim(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct bus_trim *t, *tmp;

        HASH_ITER (hh, b->trims, t, tmp) {
                if (t->n) {
                        trim(b, t);
                } else if (!t->under_way) {
                        HASH_DEL(b->trims, t);
                        free(t);
                }
        }
}

void om_redis_bus_trims_free(struct om_bus *b) {
        struct bus_trim *t, *tmp;

        HASH_ITER (hh, b->trims, t, tmp) {
                HASH_DEL(b->trims, t);
                free(t);
        }
}
