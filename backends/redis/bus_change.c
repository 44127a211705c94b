/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deleting groups and topics, replaying and purging dead letters, seeking.
 *
 * Always true:
 *   - a letter that is replayed is in the group's own stream before it leaves the dead letters: a death between leaves it in both, and it
 * may come twice, but it is never in neither;
 *   - a group that is deleted or sought here has what is out with workers revoked here; on other daemons that is found when they extend or
 *     settle. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>

#include "bus_state.h"

enum { LETTERS_AT_ONCE = 100 };

struct change;
struct change_group {
        struct change *change;
        struct bus_names names;
};
struct change {
        struct work w; /* first */
        enum om_bus_change_type type;
        bool letters, found;
        uint64_t n;
        struct bus_names names;
        /* of a topic */
        struct change_group *groups;
        size_t n_groups, open_groups;
        /* of dead letters */
        struct om_arena arena;
        struct om_span *ids;
        size_t n_ids, at;
        char last[ID_MAX], end[ID_MAX]; /* how far all of them have been read; where they ended at the begin */
        unsigned adding;
        enum om_start start;
        int64_t start_ms;
};
/* A letter on its way back. */
struct back {
        struct change *change;
        char id[ID_MAX];
};

static void change_end(struct work *w) {
        struct change *c = (struct change *) w;
        struct om_bus_change *op = (struct om_bus_change *) w->op;
        struct om_error e;

        if (w->status == 0 && !c->found)
                om_redis_work_fail(w,
                        c->names.agent.len && c->type != OM_CHANGE_DELETE_TOPIC
                                ? om_error_set(&e, OM_NOT_FOUND, "no group \"%.*s\" on the topic \"%.*s\"", OM_PRI(c->names.agent),
                                          OM_PRI(c->names.topic))
                                : om_error_set(&e, OM_NOT_FOUND, "no topic \"%.*s\"", OM_PRI(c->names.topic)),
                        &e);
        if (op)
                op->ret_n = c->n;
}

static void change_free(struct work *w) {
        struct change *c = (struct change *) w;

        for (size_t i = 0; i < c->n_groups; i++)
                om_redis_bus_names_deinit(&c->groups[i].names);
        free(c->groups);
        om_redis_bus_names_deinit(&c->names);
        om_arena_deinit(&c->arena);
}

static bool send_of(struct change *c, struct om_redis_cmd *cmd, om_redis_done_fn *done, void *ctx) {
        struct om_error e = OM_ERROR_INIT;
        int r = om_redis_send(c->w.bus->redis, cmd, done, ctx, &e);

        if (r < 0)
                om_redis_work_fail(&c->w, r, &e);
        else
                om_redis_work_hold(&c->w);
        return r == 0;
}

static struct om_bus_sub *served(struct om_bus *b, struct om_span group) {
        struct om_bus_sub *s;

        DL_FOREACH (b->subs, s)
                if (om_span_eq(s->names.group, group))
                        return s;
        return NULL;
}

/* -- deleting -------------------------------------------------------------------------------------------------------- */

static void on_dropped(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        om_redis_work_release(&c->w);
}

static void on_letters_dropped(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        else if (om_redis_int(reply, 0) > 0)
                c->found = true;
        om_redis_work_release(&c->w);
}

static struct om_redis_cmd *purge_cmd(const struct bus_names *n) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_letters_purge, 2);

        om_redis_key(c, n->dead);
        om_redis_key(c, n->dead_ids);
        return c;
}

static void finish_topic(struct change *c);

static void on_group_deleted(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change_group *g = ctx;
        struct change *c = g->change;
        struct om_bus_sub *s = status == 0 ? served(c->w.bus, g->names.group) : NULL;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        else if (om_redis_int(om_redis_at(reply, 0), 0)) {
                c->found = true;
                if (c->type == OM_CHANGE_DELETE_GROUP)
                        c->n = (uint64_t) om_redis_int(om_redis_at(reply, 1), 0);
        }
        if (s) {
                s->deleted = true;
                om_redis_sub_forget(s);
                om_redis_sub_drop_deliveries(s, true);
        }
        if (--c->open_groups == 0 && c->type == OM_CHANGE_DELETE_TOPIC && c->w.status == 0)
                finish_topic(c);
        om_redis_work_release(&c->w);
}

static void delete_group(struct change_group *g) {
        struct change *c = g->change;
        struct om_redis_cmd *cmd = om_redis_script_new(&om_redis_script_delete_group, 5);
        char floor[32] = "";

        if (c->w.bus->settings.retention_ms)
                snprintf(floor, sizeof floor, "%lld-0", (long long) (om_now_ms() - c->w.bus->settings.retention_ms));
        om_redis_key(cmd, g->names.stream);
        om_redis_key(cmd, g->names.again);
        om_redis_key(cmd, g->names.due);
        om_redis_key(cmd, g->names.stats);
        om_redis_key(cmd, g->names.runs);
        om_redis_arg(cmd, g->names.group);
        om_redis_arg_text(cmd, floor);
        c->open_groups += send_of(c, cmd, on_group_deleted, g);
        cmd = om_redis_cmd_new("DEL");
        om_redis_key(cmd, g->names.counts);
        send_of(c, cmd, on_dropped, c);
        if (c->letters)
                send_of(c, purge_cmd(&g->names), on_letters_dropped, c);
}

static void on_topic_deleted(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        else if (om_redis_int(reply, 0))
                c->found = true;
        om_redis_work_release(&c->w);
}

static void finish_topic(struct change *c) {
        struct om_redis_cmd *cmd = om_redis_script_new(&om_redis_script_delete_topic, 2);

        om_redis_key(cmd, c->names.stream);
        om_redis_key(cmd, c->names.runs);
        send_of(c, cmd, on_topic_deleted, c);
}

static void on_topic_looked_at(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;
        struct om_span prefix = { c->names.group.p, c->names.group.len - c->names.agent.len }; /* "group:TOPIC:" */

        if (status < 0) {
                om_redis_work_fail(&c->w, status, error);
        } else if (reply->type == OM_REDIS_ARRAY) {
                c->n = (uint64_t) om_redis_int(om_redis_at(reply, 1), 0);
                c->groups = calloc(reply->n, sizeof *c->groups);
                for (size_t i = 2; i < reply->n && c->groups; i++) {
                        struct om_span group = om_redis_at(om_redis_at(reply, i), 0)->text, agent;
                        struct change_group *g = &c->groups[c->n_groups];

                        if (group.len <= prefix.len || memcmp(group.p, prefix.p, prefix.len) != 0)
                                continue;
                        agent = (struct om_span){ group.p + prefix.len, group.len - prefix.len };
                        if (om_redis_bus_names_make(&g->names, c->names.topic, agent) < 0)
                                continue;
                        g->change = c;
                        c->n_groups++;
                }
                c->open_groups = 1;
                for (size_t i = 0; i < c->n_groups; i++)
                        delete_group(&c->groups[i]);
                if (--c->open_groups == 0 && c->w.status == 0)
                        finish_topic(c);
        }
        om_redis_work_release(&c->w);
}

static void delete_topic(struct change *c) {
        struct om_redis_cmd *cmd = om_redis_script_new(&om_redis_script_look, 2);

        om_redis_key(cmd, c->names.stream);
        om_redis_key(cmd, c->names.runs);
        send_of(c, cmd, on_topic_looked_at, c);
}

static void delete_one_group(struct change *c) {
        struct om_error e;

        c->groups = calloc(1, sizeof *c->groups);
        if (!c->groups || om_redis_bus_names_make(&c->groups->names, c->names.topic, c->names.agent) < 0) {
                om_redis_work_fail(&c->w, om_error_set_errno(&e, ENOMEM, "redis"), &e);
                return;
        }
        c->n_groups = 1;
        c->groups->change = c;
        delete_group(c->groups);
}

/* -- dead letters ---------------------------------------------------------------------------------------------------- */

static void next_letters(struct change *c);

static void on_letter_gone(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        else
                c->n += (uint64_t) om_redis_int(reply, 0);
        if (--c->adding == 0)
                next_letters(c);
        om_redis_work_release(&c->w);
}

static struct om_redis_cmd *drop_cmd(const struct bus_names *n) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_letter_drop, 2);

        om_redis_key(c, n->dead);
        om_redis_key(c, n->dead_ids);
        return c;
}

static void on_added_again(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct back *k = ctx;
        struct change *c = k->change;
        struct om_redis_cmd *cmd;

        if (status < 0) {
                om_redis_work_fail(&c->w, status, error);
                c->adding--;
        } else {
                cmd = drop_cmd(&c->names);
                om_redis_arg_text(cmd, k->id);
                if (!send_of(c, cmd, on_letter_gone, c))
                        c->adding--;
        }
        free(k);
        om_redis_work_release(&c->w);
}

static void give_back(struct change *c, const struct om_redis_reply *entry) {
        struct om_span id = om_redis_at(entry, 0)->text;
        struct om_arena arena = { 0 };
        struct om_span task = om_redis_bus_letter_task(om_redis_field(om_redis_at(entry, 1), "data")->text, &arena);
        struct back *k = task.p && id.len < ID_MAX ? calloc(1, sizeof *k) : NULL;
        struct om_redis_cmd *cmd;

        if (k) {
                k->change = c;
                snprintf(k->id, sizeof k->id, "%.*s", OM_PRI(id));
                cmd = om_redis_cmd_new("XADD");
                om_redis_key(cmd, c->names.again);
                om_redis_arg_text(cmd, "*");
                om_redis_arg_text(cmd, "data");
                om_redis_arg(cmd, task);
                if (send_of(c, cmd, on_added_again, k))
                        c->adding++;
                else
                        free(k);
        }
        om_arena_deinit(&arena);
}

static void on_letters(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;
        size_t n = status == 0 ? reply->n : 0;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        c->adding = 1;
        for (size_t i = 0; i < n; i++) {
                struct om_span id = om_redis_at(om_redis_at(reply, i), 0)->text;

                if (id.len && id.len < ID_MAX && !c->n_ids)
                        snprintf(c->last, sizeof c->last, "%.*s", OM_PRI(id));
                give_back(c, om_redis_at(reply, i));
        }
        if (!n && !c->n_ids)
                c->last[0] = 0; /* that was all */
        if (--c->adding == 0)
                next_letters(c);
        om_redis_work_release(&c->w);
}

/* Of all: a page at a time. Of named ones: one after the other. */
static void next_letters(struct change *c) {
        struct om_redis_cmd *cmd;
        char from[ID_MAX + 1];

        if (c->w.status < 0)
                return;
        if (c->n_ids ? c->at >= c->n_ids : !c->last[0])
                return;
        cmd = om_redis_cmd_new("XRANGE");
        om_redis_key(cmd, c->names.dead);
        if (c->n_ids) {
                om_redis_arg(cmd, c->ids[c->at]);
                om_redis_arg(cmd, c->ids[c->at++]);
        } else {
                snprintf(from, sizeof from, "(%s", c->last);
                om_redis_arg_text(cmd, from);
                om_redis_arg_text(cmd, c->end);
                om_redis_arg_text(cmd, "COUNT");
                om_redis_arg_int(cmd, LETTERS_AT_ONCE);
        }
        send_of(c, cmd, on_letters, c);
}

static void on_purged(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        else
                c->n += (uint64_t) om_redis_int(reply, 0);
        om_redis_work_release(&c->w);
}

static void purge(struct change *c) {
        struct om_redis_cmd *cmd;

        if (!c->n_ids) {
                send_of(c, purge_cmd(&c->names), on_purged, c);
                return;
        }
        for (size_t i = 0; i < c->n_ids; i += IDS_AT_ONCE) {
                cmd = drop_cmd(&c->names);
                for (size_t k = i; k < c->n_ids && k < i + IDS_AT_ONCE; k++)
                        om_redis_arg(cmd, c->ids[k]);
                send_of(c, cmd, on_purged, c);
        }
}

/* The group, and its last letter: what dies meanwhile is not given back again and again. */
static void on_group_found(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;
        bool group = false;

        for (size_t i = 0; status == 0 && i < reply->n; i++)
                group |= om_span_eq(om_redis_field(om_redis_at(reply, i), "name")->text, c->names.group);
        if (status < 0 && status != -ENOENT)
                om_redis_work_fail(&c->w, status, error);
        c->found |= group;
        if (c->type == OM_CHANGE_REPLAY_DEAD && group)
                next_letters(c);
        om_redis_work_release(&c->w);
}

static void on_last_letter(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;
        struct om_span id = om_redis_at(om_redis_at(reply, 0), 0)->text;
        struct om_redis_cmd *cmd;

        if (status < 0)
                om_redis_work_fail(&c->w, status, error);
        if (id.len && id.len < ID_MAX) {
                snprintf(c->end, sizeof c->end, "%.*s", OM_PRI(id));
                strcpy(c->last, "0-0");
                c->found |= c->type == OM_CHANGE_PURGE_DEAD; /* the letters of a group that was deleted */
        }
        if (c->type == OM_CHANGE_PURGE_DEAD && id.len)
                purge(c);
        cmd = om_redis_cmd_new("XINFO");
        om_redis_arg_text(cmd, "GROUPS");
        om_redis_key(cmd, c->names.stream);
        send_of(c, cmd, on_group_found, c);
        om_redis_work_release(&c->w);
}

static void letters(struct change *c) {
        struct om_redis_cmd *cmd = om_redis_cmd_new("XREVRANGE");

        om_redis_key(cmd, c->names.dead);
        om_redis_arg_text(cmd, "+");
        om_redis_arg_text(cmd, "-");
        om_redis_arg_text(cmd, "COUNT");
        om_redis_arg_int(cmd, 1);
        send_of(c, cmd, on_last_letter, c);
}

/* -- seeking --------------------------------------------------------------------------------------------------------- */

static void on_sought(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct change *c = ctx;
        struct om_bus_sub *s = served(c->w.bus, c->names.group);

        if (status < 0) {
                om_redis_work_fail(&c->w, status, error);
        } else if (reply->type == OM_REDIS_ARRAY) {
                c->found = true;
                c->n = (uint64_t) om_redis_int(om_redis_at(reply, 1), 0);
                if (s) {
                        snprintf(s->last, sizeof s->last, "%.*s", OM_PRI(om_redis_at(reply, 0)->text));
                        om_redis_sub_drop_deliveries(s, true);
                        s->dry = false;
                        om_redis_sub_forget(s);
                }
        }
        om_redis_work_release(&c->w);
}

static void seek(struct change *c) {
        struct om_redis_cmd *cmd = om_redis_script_new(&om_redis_script_seek, 4);

        om_redis_key(cmd, c->names.stream);
        om_redis_key(cmd, c->names.due);
        om_redis_key(cmd, c->names.again);
        om_redis_key(cmd, c->names.runs);
        om_redis_arg(cmd, c->names.group);
        om_redis_arg_text(cmd, c->start == OM_START_NEW ? "new" : c->start == OM_START_TIME ? "time" : "first");
        om_redis_arg_int(cmd, c->start_ms);
        send_of(c, cmd, on_sought, c);
}

/* -- the call -------------------------------------------------------------------------------------------------------- */

static bool is_id(struct om_span s) {
        for (size_t i = 0; i < s.len; i++)
                if ((s.p[i] < '0' || s.p[i] > '9') && (s.p[i] != '-' || i == 0 || i + 1 == s.len))
                        return false;
        return s.len > 0 && s.len < ID_MAX;
}

/* Names that can be no entry's are left out: they name none. */
static int take_ids(struct change *c, const struct om_bus_change *op) {
        c->ids = om_arena_alloc(&c->arena, (op->n_ids + 1) * sizeof *c->ids);
        if (!c->ids)
                return -ENOMEM;
        for (size_t i = 0; i < op->n_ids; i++) {
                if (!is_id(op->ids[i]))
                        continue;
                c->ids[c->n_ids] = om_arena_copy(&c->arena, op->ids[i]);
                if (!c->ids[c->n_ids++].p)
                        return -ENOMEM;
        }
        return 0;
}

int om_redis_bus_change(struct om_bus *b, struct om_bus_change *op, struct om_error *e) {
        struct om_error why;
        struct change *c;
        int r;

        if ((unsigned) op->type > OM_CHANGE_SEEK)
                return om_error_set(e, OM_INVALID, "redis: not a change");
        c = om_redis_work_begin(b, &op->op, sizeof *c, 0, change_end, &r, e);
        if (!c)
                return r;
        c->w.free = change_free;
        c->type = op->type;
        c->letters = op->delete_dead_letters;
        c->start = op->start;
        c->start_ms = op->start_ms;
        if (om_redis_bus_names_make(&c->names, op->topic, op->agent) < 0 || take_ids(c, op) < 0) {
                om_redis_work_fail(&c->w, om_error_set_errno(&why, ENOMEM, "redis"), &why);
                return om_redis_work_called(&c->w);
        }
        switch (op->type) {
        case OM_CHANGE_DELETE_GROUP:
                delete_one_group(c);
                break;
        case OM_CHANGE_DELETE_TOPIC:
                delete_topic(c);
                break;
        case OM_CHANGE_REPLAY_DEAD:
        case OM_CHANGE_PURGE_DEAD:
                if (op->n_ids && !c->n_ids)
                        c->ids[c->n_ids++] = OM_SPAN("0-0"); /* none of them can be one; not all, then */
                letters(c);
                break;
        case OM_CHANGE_SEEK:
                seek(c);
                break;
        case OM_CHANGE_CONFIGURE: /* refused above */
                break;
        }
        return om_redis_work_called(&c->w);
}
