/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which groups are paused, as the settings in the storage say: one for each group, `_subscription_active:{group}`, the Python OmniDaemon's.
 * Called by agents.c and the methods that list groups. Loop thread.
 */
#include <stdlib.h>

#include "agents.h"

struct om_span om_agents_setting(struct om_call *c, struct om_span topic, struct om_span agent) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span key = OM_SPAN_NONE;

        om_buf_lit(&b, OM_SUBSCRIPTION_ACTIVE);
        om_group_name(&b, topic, agent);
        if (om_buf_ok(&b))
                key = om_call_copy(c, om_buf_span(&b));
        om_buf_deinit(&b);
        return key;
}

static int compare_spans(const void *va, const void *vb) {
        const struct om_span *a = va, *b = vb;
        int r = memcmp(a->p, b->p, a->len < b->len ? a->len : b->len);

        return r != 0 ? r : (a->len > b->len) - (a->len < b->len);
}

void om_paused_list(struct om_call *c) {
        c->list.kind = OM_STORE_CONFIG;
        c->list.name = OM_SPAN(OM_SUBSCRIPTION_ACTIVE);
}

struct om_paused om_paused_of(struct om_call *collected) {
        size_t skip = sizeof OM_SUBSCRIPTION_ACTIVE - 1;
        struct om_paused p = { NULL, 0 };

        p.groups = collected->n_rows ? om_arena_alloc(&collected->arena, collected->n_rows * sizeof *p.groups) : NULL;
        for (size_t i = 0; p.groups && i < collected->n_rows; i++) {
                const struct om_store_entry *row = &collected->rows[i];

                if (row->key.len > skip && om_span_is(row->value, "false"))
                        p.groups[p.n++] = (struct om_span){ row->key.p + skip, row->key.len - skip };
        }
        if (p.n > 1)
                qsort(p.groups, p.n, sizeof *p.groups, compare_spans);
        return p;
}

bool om_paused_has(const struct om_paused *p, struct om_span topic, struct om_span agent) {
        struct om_buf b = OM_BUF_INIT;
        struct om_span group;
        bool has;

        if (p->n == 0)
                return false;
        om_group_name(&b, topic, agent);
        group = om_buf_span(&b);
        has = om_buf_ok(&b) && bsearch(&group, p->groups, p->n, sizeof *p->groups, compare_spans);
        om_buf_deinit(&b);
        return has;
}
