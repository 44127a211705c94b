/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking in: topics, groups, what a topic holds, dead letters.
 *
 * Numbers come from the server's own books (XINFO, XPENDING) and are exact at rest:
 *     depth      not delivered to the group that is least far, and what is pending before that in any; what was replayed
 *     lag        not delivered, and given back      leased     pending, but for what waits     retrying   waits with a due time
 *     finished   counted by each acknowledgement    dead       entries of the dead letters
 * Topics are found by SCAN on every server: that is the one step whose cost grows with all keys of the database.
 *
 * Always true: rows come in the order of names, so a cursor is the last name. Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bus_state.h"

struct look;
struct look_group {
        struct look *look;
        struct look_topic *topic;
        struct bus_names names;
        struct om_bus_group_row row;
        int64_t held;
};
struct look_topic {
        struct look *look;
        char *name;
        bool there;
        struct om_bus_topic_row row;
        struct look_group *groups;
        size_t n_groups;
};
struct look {
        struct work w; /* first */
        bool want_groups;
        struct om_arena arena;
        struct om_span topic, cursor;
        size_t limit;
        char **names;
        size_t n_names, cap_names;
        unsigned scans; /* under way */
        struct look_topic *topics;
        size_t n_topics;
        bool more;
};

/* An op may be used again, with the last answer still in it. */
static void no_answer(struct om_bus_query *op) {
        op->topics = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        op->info = OM_SPAN_NONE;
}

/* -- the answer ------------------------------------------------------------------------------------------------------ */

static void look_end(struct work *w) {
        struct look *l = (struct look *) w;
        struct om_bus_query *op = (struct om_bus_query *) w->op;
        size_t n = 0, groups = 0;

        if (!op || w->status < 0)
                return;
        for (size_t i = 0; i < l->n_topics; i++)
                groups += l->topics[i].n_groups;
        if (l->want_groups)
                op->groups = om_arena_alloc(&op->arena, (groups + 1) * sizeof *op->groups);
        else
                op->topics = om_arena_alloc(&op->arena, (l->n_topics + 1) * sizeof *op->topics);
        for (size_t i = 0; i < l->n_topics && (op->groups || op->topics); i++) {
                struct look_topic *t = &l->topics[i];

                if (!t->there)
                        continue;
                t->row.topic = om_arena_copy(&op->arena, om_span_of(t->name));
                for (size_t k = 0; k < t->n_groups; k++)
                        t->row.depth += (uint64_t) t->groups[k].held;
                if (!l->want_groups) {
                        op->topics[n++] = t->row;
                        continue;
                }
                for (size_t k = 0; k < t->n_groups; k++) {
                        struct om_bus_group_row row = t->groups[k].row;

                        row.topic = t->row.topic;
                        row.agent = om_arena_copy(&op->arena, t->groups[k].names.agent);
                        op->groups[n++] = row;
                }
        }
        op->n = n;
        if (l->more && l->n_topics)
                op->next_cursor = om_arena_copy(&op->arena, om_span_of(l->topics[l->n_topics - 1].name));
}

static void look_free(struct work *w) {
        struct look *l = (struct look *) w;

        for (size_t i = 0; i < l->n_topics; i++) {
                for (size_t k = 0; k < l->topics[i].n_groups; k++)
                        om_redis_bus_names_deinit(&l->topics[i].groups[k].names);
                free(l->topics[i].groups);
        }
        for (size_t i = 0; i < l->n_names; i++)
                free(l->names[i]);
        free(l->names);
        free(l->topics);
        om_arena_deinit(&l->arena);
}

static bool send_of(struct look *l, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx) {
        struct om_error e = OM_ERROR_INIT;
        int r = om_redis_send(l->w.bus->redis, c, done, ctx, &e);

        if (r < 0)
                om_redis_work_fail(&l->w, r, &e);
        else
                om_redis_work_hold(&l->w);
        return r == 0;
}

/* -- one group ------------------------------------------------------------------------------------------------------- */

static void on_dead_counted(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct look_group *g = ctx;

        if (status < 0)
                om_redis_work_fail(&g->look->w, status, error);
        else
                g->row.dead = (uint64_t) om_redis_int(reply, 0);
        om_redis_work_release(&g->look->w);
}

static void on_group(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct look_group *g = ctx;
        int64_t n[6];

        if (status < 0) {
                om_redis_work_fail(&g->look->w, status, error);
        } else {
                for (size_t i = 0; i < 6; i++)
                        n[i] = om_redis_int(om_redis_at(reply, i), 0);
                g->held = n[0];
                g->row.lag += (uint64_t) (n[1] + n[4]);
                g->row.leased += (uint64_t) n[2];
                g->row.leased -= (uint64_t) n[3] < g->row.leased ? (uint64_t) n[3] : g->row.leased;
                g->row.retrying = (uint64_t) (n[3] - n[4]);
                g->row.finished = (uint64_t) n[5];
        }
        om_redis_work_release(&g->look->w);
}

static void look_at_group(struct look_group *g) {
        struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_look_group, 3);

        om_redis_key(c, g->names.again);
        om_redis_key(c, g->names.due);
        om_redis_key(c, g->names.stats);
        om_redis_arg(c, g->names.group);
        send_of(g->look, c, on_group, g);
        if (!g->look->want_groups)
                return;
        c = om_redis_cmd_new("XLEN");
        om_redis_key(c, g->names.dead);
        send_of(g->look, c, on_dead_counted, g);
}

/* -- one topic ------------------------------------------------------------------------------------------------------- */

/* "group:TOPIC:AGENT"; absent where another program named it. */
static struct om_span agent_of(struct om_span group, const char *topic) {
        size_t n = strlen(topic), prefix = sizeof "group:" - 1;

        if (group.len <= prefix + n + 1 || memcmp(group.p, "group:", prefix) != 0 || memcmp(group.p + prefix, topic, n) != 0 ||
                group.p[prefix + n] != ':')
                return OM_SPAN_NONE;
        return (struct om_span){ group.p + prefix + n + 1, group.len - prefix - n - 1 };
}

static void on_topic(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct look_topic *t = ctx;
        struct look *l = t->look;

        if (status < 0) {
                om_redis_work_fail(&l->w, status, error);
        } else if (reply->type == OM_REDIS_ARRAY && reply->n >= 2) {
                t->there = true;
                t->row.published = (uint64_t) om_redis_int(om_redis_at(reply, 0), 0);
                t->row.depth = (uint64_t) om_redis_int(om_redis_at(reply, 1), 0);
                t->groups = calloc(reply->n, sizeof *t->groups);
                for (size_t i = 2; i < reply->n && t->groups; i++) {
                        const struct om_redis_reply *row = om_redis_at(reply, i);
                        struct om_span agent = agent_of(om_redis_at(row, 0)->text, t->name);
                        struct look_group *g = &t->groups[t->n_groups];

                        if (!agent.p || om_redis_bus_names_make(&g->names, om_span_of(t->name), agent) < 0)
                                continue;
                        t->n_groups++;
                        g->look = l;
                        g->topic = t;
                        g->row.lag = (uint64_t) om_redis_int(om_redis_at(row, 1), 0);
                        g->row.leased = (uint64_t) om_redis_int(om_redis_at(row, 2), 0);
                }
                t->row.groups = (uint32_t) t->n_groups;
                for (size_t i = 0; i < t->n_groups; i++)
                        look_at_group(&t->groups[i]);
        }
        om_redis_work_release(&l->w);
}

static void look_at_topics(struct look *l, char **names, size_t n) {
        struct om_buf key = OM_BUF_INIT;

        l->topics = calloc(n + 1, sizeof *l->topics);
        for (size_t i = 0; i < n && l->topics; i++) {
                struct look_topic *t = &l->topics[l->n_topics++];
                struct om_redis_cmd *c = om_redis_script_new(&om_redis_script_look, 2);

                t->look = l;
                t->name = names[i];
                om_buf_clear(&key);
                om_redis_bus_topic_stream(&key, om_span_of(t->name));
                om_redis_key(c, om_buf_span(&key));
                om_buf_clear(&key);
                om_redis_bus_topic_runs(&key, om_span_of(t->name));
                om_redis_key(c, om_buf_span(&key));
                if (!send_of(l, c, on_topic, t))
                        break;
        }
        om_buf_deinit(&key);
}

/* -- all topics ------------------------------------------------------------------------------------------------------ */

struct scan {
        struct look *look;
        struct om_redis_node *node;
};

static int name_add(struct look *l, struct om_span name) {
        if (l->n_names == l->cap_names) {
                size_t cap = l->cap_names ? 2 * l->cap_names : 64;
                char **more = reallocarray(l->names, cap, sizeof(char *));

                if (!more)
                        return -ENOMEM;
                l->names = more;
                l->cap_names = cap;
        }
        l->names[l->n_names] = strndup(name.p, name.len);
        return l->names[l->n_names] ? (l->n_names++, 0) : -ENOMEM;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *) a, *(char *const *) b); }

/* All are found: those after the cursor, and no more than asked for. SCAN may name one twice. */
static void choose(struct look *l) {
        size_t n = 0, from = 0;

        if (l->n_names)
                qsort(l->names, l->n_names, sizeof(char *), by_name);
        for (size_t i = 0; i < l->n_names; i++) {
                if (n && strcmp(l->names[n - 1], l->names[i]) == 0)
                        free(l->names[i]);
                else
                        l->names[n++] = l->names[i];
        }
        l->n_names = n;
        while (l->cursor.p && from < n && strcmp(l->names[from], l->cursor.p) <= 0)
                from++;
        n -= from;
        if (l->limit && n > l->limit) {
                n = l->limit;
                l->more = true;
        }
        look_at_topics(l, l->names + from, n);
}

static void scan_on(struct scan *s, struct om_span from);

static void on_scanned(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct scan *s = ctx;
        struct look *l = s->look;
        const struct om_redis_reply *keys = om_redis_at(reply, 1);
        struct om_span next = om_redis_at(reply, 0)->text;

        if (status < 0)
                om_redis_work_fail(&l->w, status, error);
        for (size_t i = 0; i < keys->n; i++) {
                struct om_span topic = om_redis_bus_stream_topic(om_redis_at(keys, i)->text);

                if (topic.p && !memchr(topic.p, 0, topic.len))
                        name_add(l, topic);
        }
        if (status == 0 && next.p && !om_span_is(next, "0")) {
                scan_on(s, next);
        } else {
                free(s);
                if (--l->scans == 0 && l->w.status == 0)
                        choose(l);
        }
        om_redis_work_release(&l->w);
}

static void scan_on(struct scan *s, struct om_span from) {
        struct om_redis_cmd *c = om_redis_cmd_new("SCAN");
        struct om_error e = OM_ERROR_INIT;
        int r;

        om_redis_arg(c, from);
        om_redis_arg_text(c, "MATCH");
        om_redis_arg_text(c, "omni-stream:*");
        om_redis_arg_text(c, "COUNT");
        om_redis_arg_int(c, 1000);
        om_redis_arg_text(c, "TYPE");
        om_redis_arg_text(c, "stream");
        r = om_redis_send_node(s->node, c, on_scanned, s, &e);
        if (r == 0) {
                om_redis_work_hold(&s->look->w);
                return;
        }
        om_redis_work_fail(&s->look->w, r, &e);
        s->look->scans--;
        free(s);
}

static void scan_all(struct look *l) {
        struct om_redis_node *node;

        l->scans = 1; /* until all have been begun */
        for (size_t i = 0; (node = om_redis_node_at(l->w.bus->redis, i)); i++) {
                struct scan *s = malloc(sizeof *s);

                if (!s)
                        continue;
                *s = (struct scan){ l, node };
                l->scans++;
                scan_on(s, OM_SPAN("0"));
        }
        l->scans--;
}

static int query_rows(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        struct look *l;
        int r;

        l = om_redis_work_begin(b, &op->op, sizeof *l, 0, look_end, &r, e);
        if (!l)
                return r;
        no_answer(op);
        l->w.free = look_free;
        l->want_groups = op->type == OM_QUERY_GROUPS;
        l->limit = l->want_groups ? 0 : op->limit;
        l->cursor = om_arena_copy(&l->arena, op->cursor);
        if (op->topic.p && op->topic.len) {
                if (name_add(l, op->topic) == 0)
                        look_at_topics(l, l->names, 1);
        } else {
                scan_all(l);
        }
        return om_redis_work_called(&l->w);
}

/* -- what a topic holds, and dead letters ---------------------------------------------------------------------------- */

struct page {
        struct work w; /* first */
        bool dead;
        struct om_arena arena;
        struct bus_names names;
        size_t limit;
        size_t n_ids;
        bool group_known;
};

static void put_letter(struct om_bus_query *op, const struct page *p, const struct om_redis_reply *entry) {
        struct om_dead_letter *l = &op->dead[op->n];

        if (om_redis_bus_letter_read(om_redis_field(om_redis_at(entry, 1), "data")->text, p->names.topic, &op->arena, l) < 0) {
                *l = (struct om_dead_letter){ 0 };
                l->record = OM_SPAN("{}");
        }
        l->id = om_arena_copy(&op->arena, om_redis_at(entry, 0)->text);
        op->n++;
}

static void put_held(struct om_bus_query *op, const struct page *p, const struct om_redis_reply *entry) {
        struct om_bus_held_row *row = &op->held[op->n];
        struct om_buf record = OM_BUF_INIT;
        struct om_span id = om_redis_at(entry, 0)->text;

        row->id = om_arena_copy(&op->arena, id);
        if (om_redis_bus_form_read(om_redis_field(om_redis_at(entry, 1), "data")->text, p->names.topic, id.p ? id.p : "", &record, NULL) ==
                        0 &&
                om_buf_ok(&record)) {
                row->record = om_arena_copy(&op->arena, om_buf_span(&record));
                op->n++;
        }
        om_buf_deinit(&record);
}

static void on_page(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct page *p = ctx;
        struct om_bus_query *op = (struct om_bus_query *) p->w.op;
        size_t n;

        if (status < 0)
                om_redis_work_fail(&p->w, status, error);
        n = status == 0 && op ? reply->n : 0;
        if (p->limit && n > p->limit)
                n = p->limit;
        if (n && !p->dead && !op->held)
                op->held = om_arena_alloc(&op->arena, n * sizeof *op->held);
        if (n && p->dead && !op->dead)
                op->dead = om_arena_alloc(&op->arena, (p->n_ids > n ? p->n_ids : n) * sizeof *op->dead);
        for (size_t i = 0; i < n && (p->dead ? op->dead != NULL : op->held != NULL); i++)
                (p->dead ? put_letter : put_held)(op, p, om_redis_at(reply, i));
        if (n && n < reply->n)
                op->next_cursor = om_arena_copy(&op->arena, om_redis_at(om_redis_at(reply, n - 1), 0)->text);
        p->group_known |= n > 0;
        om_redis_work_release(&p->w);
}

static void on_group_known(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct page *p = ctx;

        for (size_t i = 0; status == 0 && i < reply->n; i++)
                p->group_known |= om_span_eq(om_redis_field(om_redis_at(reply, i), "name")->text, p->names.group);
        if (status < 0 && status != -ENOENT)
                om_redis_work_fail(&p->w, status, error);
        om_redis_work_release(&p->w);
}

static void on_held_trimmed(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_work_release(ctx);
}

static void on_letters_exist(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct page *p = ctx;

        p->group_known |= status == 0 && om_redis_int(reply, 0) > 0;
        om_redis_work_release(&p->w);
}

static void page_end(struct work *w) {
        struct page *p = (struct page *) w;
        struct om_error e;

        if (w->status == 0 && p->dead && !p->group_known)
                om_redis_work_fail(w,
                        om_error_set(&e, OM_NOT_FOUND, "no group \"%.*s\" on the topic \"%.*s\"", OM_PRI(p->names.agent),
                                OM_PRI(p->names.topic)),
                        &e);
}

static void page_free(struct work *w) {
        struct page *p = (struct page *) w;

        om_redis_bus_names_deinit(&p->names);
        om_arena_deinit(&p->arena);
}

static void range(struct page *p, struct om_span key, struct om_span from, bool after, struct om_span to) {
        struct om_redis_cmd *c = om_redis_cmd_new("XRANGE");
        struct om_buf start = OM_BUF_INIT;

        if (after)
                om_buf_putc(&start, '(');
        om_buf_put_span(&start, from);
        om_redis_key(c, key);
        om_redis_arg(c, om_buf_span(&start));
        om_redis_arg(c, to);
        if (p->limit) {
                om_redis_arg_text(c, "COUNT");
                om_redis_arg_int(c, (int64_t) p->limit + 1);
        }
        om_buf_deinit(&start);
        om_redis_work_send(&p->w, c, on_page);
}

/* A name of an entry as the server has them; anything else names none. */
static bool is_id(struct om_span s) {
        bool dash = false;

        for (size_t i = 0; i < s.len; i++) {
                if (s.p[i] == '-' && !dash && i)
                        dash = true;
                else if (s.p[i] < '0' || s.p[i] > '9')
                        return false;
        }
        return s.len > 0 && s.len < ID_MAX && s.p[s.len - 1] != '-';
}

static void ask_letters(struct page *p, const struct om_bus_query *op) {
        struct om_redis_cmd *c = om_redis_cmd_new("XINFO");

        om_redis_arg_text(c, "GROUPS");
        om_redis_key(c, p->names.stream);
        om_redis_work_send(&p->w, c, on_group_known);
        c = om_redis_cmd_new("EXISTS");
        om_redis_key(c, p->names.dead);
        om_redis_work_send(&p->w, c, on_letters_exist);
        if (!op->n_ids)
                range(p, p->names.dead, op->cursor.len ? op->cursor : OM_SPAN("-"), op->cursor.len > 0, OM_SPAN("+"));
        p->n_ids = op->n_ids;
        for (size_t i = 0; i < op->n_ids; i++)
                if (is_id(op->ids[i]))
                        range(p, p->names.dead, op->ids[i], false, op->ids[i]);
}

static int query_page(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        struct page *p;
        int r;

        if (op->cursor.len && !is_id(op->cursor))
                return om_error_set(e, OM_INVALID, "not a cursor of this bus");
        p = om_redis_work_begin(b, &op->op, sizeof *p, 0, page_end, &r, e);
        if (!p)
                return r;
        no_answer(op);
        p->w.free = page_free;
        p->dead = op->type == OM_QUERY_DEAD;
        p->limit = op->n_ids ? 0 : op->limit;
        if (om_redis_bus_names_make(&p->names, op->topic, op->agent) < 0) {
                struct om_error why;

                om_redis_work_fail(&p->w, om_error_set_errno(&why, ENOMEM, "redis"), &why);
        } else if (p->dead) {
                ask_letters(p, op);
        } else {
                om_redis_work_send(
                        &p->w, om_redis_bus_trim_cmd(b, p->names.stream), on_held_trimmed); /* what all have finished is not held */
                range(p, p->names.stream, op->cursor.len ? op->cursor : OM_SPAN("-"), op->cursor.len > 0, OM_SPAN("+"));
        }
        return om_redis_work_called(&p->w);
}

int om_redis_bus_query(struct om_bus *b, struct om_bus_query *op, struct om_error *e) {
        switch (op->type) {
        case OM_QUERY_TOPICS:
        case OM_QUERY_GROUPS:
                return query_rows(b, op, e);
        case OM_QUERY_HELD:
        case OM_QUERY_DEAD:
                return query_page(b, op, e);
        case OM_QUERY_HEALTH:
                return om_redis_bus_query_health(b, op, e);
        }
        return om_error_set(e, OM_INVALID, "redis: not a query");
}
