/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of agents, settings and keys, in the order of their names.
 *
 * Their names come in no order: agents from sets, settings and keys from a walk through all keys, for the Python OmniDaemon keeps no index
 * of its settings. So of all names after the cursor the first ones are kept, each once, a page of them and one more; then these are read.
 * The cursor is the last name. What is there all the time is thus on exactly one page, whatever is written meanwhile, and memory is a
 * page's.
 *
 * The settings `_subscription_active:…` are asked for every few seconds by every daemon: those are not looked for among all keys, but found
 * through the agents, which have one each.
 *
 * Called by store_list.c. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "../../proto/task.h"
#include "store_state.h"

enum { NAMES_PAGE = 1000 };
#define SUBSCRIPTIONS "_subscription_active:"

struct name {
        struct om_span text; /* of an agent: topic, zero byte, name */
        size_t topic_len;
};
struct names {
        struct om_store_list *op;
        struct om_span topic, agent, begin, cursor;
        size_t limit, bytes;
        struct om_redis_walk walk;
        bool subscriptions;
        struct om_span *topics;
        size_t n_topics, topic_at;
        /* the names so far, not sorted: those beyond limit + 1 go from time to time */
        struct name *names;
        size_t n, room;
        struct om_arena text, spare; /* of the names */
        struct om_store_entry *entries;
        bool *there;
};

/* -- keeping the first names ----------------------------------------------------------------------------------------- */

static int compare(const void *va, const void *vb) {
        const struct name *a = va, *b = vb;
        size_t n = a->text.len < b->text.len ? a->text.len : b->text.len;
        int r = n ? memcmp(a->text.p, b->text.p, n) : 0;

        return r ? r : (a->text.len > b->text.len) - (a->text.len < b->text.len);
}

/* Sorts, drops repeats and what is beyond the page, and gives the memory of what was dropped back. */
static void tidy(struct om_redis_job *job) {
        struct names *l = job->data;
        size_t n = 0;

        if (l->n)
                qsort(l->names, l->n, sizeof *l->names, compare);
        l->spare = (struct om_arena){ 0 };
        for (size_t i = 0; i < l->n && n <= l->limit; i++) {
                if (n && compare(&l->names[n - 1], &l->names[i]) == 0)
                        continue;
                l->names[n] = l->names[i];
                l->names[n].text = om_arena_copy(&l->spare, l->names[i].text);
                if (!l->names[n++].text.p)
                        om_redis_job_no_memory(job);
        }
        l->n = n;
        om_arena_deinit(&l->text);
        l->text = l->spare;
        l->spare = (struct om_arena){ 0 };
}

static void add(struct om_redis_job *job, struct om_span text, size_t topic_len) {
        struct names *l = job->data;
        struct name name = { text, topic_len };

        if (l->cursor.p && compare(&name, &(struct name){ .text = l->cursor }) <= 0)
                return;
        if (l->n == l->room)
                tidy(job);
        name.text = om_arena_copy(&l->text, text);
        if (!name.text.p)
                om_redis_job_no_memory(job);
        else if (job->status == 0)
                l->names[l->n++] = name;
}

static void forget(struct om_redis_job *job) {
        struct names *l = job->data;

        l->n = 0;
        om_arena_deinit(&l->text);
}

/* -- reading them ---------------------------------------------------------------------------------------------------- */

static void on_read(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct names *l = job->data;
        const struct name *name = &l->names[i];
        struct om_store_entry *entry = &l->entries[i];
        int r = 0;

        if (i >= l->limit)
                return; /* the page ended before this one */
        if (l->op->kind == OM_STORE_AGENTS) {
                struct om_span topic = { name->text.p, name->topic_len };
                struct om_span agent = { name->text.p + name->topic_len + 1, name->text.len - name->topic_len - 1 };

                r = om_redis_agent_read(reply, topic, agent, &l->op->arena, entry);
        } else if (reply->type == OM_REDIS_STRING) {
                r = om_redis_entry_copy(&l->op->arena, &(struct om_store_entry){ .key = name->text, .value = reply->text }, entry);
        } else {
                r = -ENOENT; /* deleted meanwhile */
        }
        if (r == -ENOMEM)
                om_redis_job_no_memory(job);
        l->there[i] = r == 0;
        l->bytes += r == 0 ? entry->value.len : 0;
        if (l->bytes > OM_REDIS_PAGE_BYTES)
                l->limit = i + 1; /* those before it are still to come where they are on other servers */
}

static void on_pttl(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct names *l = job->data;
        int64_t ms = om_redis_int(reply, -1);

        if (ms > 0)
                l->entries[i].expires_ms = om_now_ms() + ms + 1;
}

static enum om_redis_more more_values(struct om_redis_job *job) {
        const struct names *l = job->data;
        struct om_store *s = job->store;
        const struct name *name = &l->names[job->at];
        struct om_redis_cmd *c;

        if (job->at >= l->n || job->at >= l->limit)
                return OM_REDIS_NO_MORE;
        if (l->op->kind == OM_STORE_AGENTS) {
                struct om_span topic = { name->text.p, name->topic_len };
                struct om_span agent = { name->text.p + name->topic_len + 1, name->text.len - name->topic_len - 1 };

                c = om_redis_cmd_new("HGETALL");
                om_redis_key(c, om_redis_key_agent(s, topic, agent));
                om_redis_job_send(job, c, om_redis_key_agent(s, topic, agent), on_read, job->at++);
                return OM_REDIS_SENT;
        }
        c = om_redis_cmd_new("GET");
        om_redis_key(c, om_redis_key_named(s, l->op->kind, name->text));
        om_redis_job_send(job, c, om_redis_key_named(s, l->op->kind, name->text), on_read, job->at);
        if (l->op->kind == OM_STORE_KEYS) {
                c = om_redis_cmd_new("PTTL");
                om_redis_key(c, om_redis_key_named(s, l->op->kind, name->text));
                om_redis_job_send(job, c, om_redis_key_named(s, l->op->kind, name->text), on_pttl, job->at);
        }
        job->at++;
        return OM_REDIS_SENT;
}

static void give(struct om_redis_job *job) {
        struct names *l = job->data;
        size_t n = l->n < l->limit ? l->n : l->limit;

        for (size_t i = 0; i < n; i++)
                if (l->there[i])
                        l->op->entries[l->op->n++] = l->entries[i];
        if (l->n <= l->limit)
                return;
        l->op->next_cursor = om_arena_copy(&l->op->arena, l->names[l->limit - 1].text);
        if (!l->op->next_cursor.p)
                om_redis_job_no_memory(job);
}

static void read_them(struct om_redis_job *job) {
        struct names *l = job->data;

        tidy(job);
        if (job->status < 0)
                return;
        l->entries = om_arena_alloc(&job->arena, (l->n + 1) * sizeof *l->entries);
        l->there = om_arena_alloc(&job->arena, l->n + 1);
        l->op->entries = om_arena_alloc(&l->op->arena, (l->n + 1) * sizeof *l->entries);
        if (!l->entries || !l->there || !l->op->entries) {
                om_redis_job_no_memory(job);
                return;
        }
        memset(l->entries, 0, (l->n + 1) * sizeof *l->entries);
        memset(l->there, 0, l->n + 1);
        job->at = 0;
        job->more = more_values;
        job->next = give;
}

/* -- agents ---------------------------------------------------------------------------------------------------------- */

static void add_subscription(struct om_redis_job *job, struct om_span topic, struct om_span agent) {
        const struct names *l = job->data;
        struct om_buf b = OM_BUF_INIT;

        om_buf_lit(&b, SUBSCRIPTIONS);
        om_group_name(&b, topic, agent);
        if (!om_buf_ok(&b))
                om_redis_job_no_memory(job);
        else if (b.len >= l->begin.len && memcmp(b.data, l->begin.p, l->begin.len) == 0)
                add(job, om_buf_span(&b), 0);
        om_buf_deinit(&b);
}

static void on_agents(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct names *l = job->data;
        struct om_span topic = l->topics[i];
        struct om_buf b = OM_BUF_INIT;

        for (size_t k = 0; k < reply->n && job->status == 0; k++) {
                struct om_span agent = om_redis_at(reply, k)->text;

                if (l->subscriptions) {
                        add_subscription(job, topic, agent);
                        continue;
                }
                if (l->agent.p && !om_span_eq(l->agent, agent))
                        continue;
                om_buf_clear(&b);
                om_buf_put_span(&b, topic);
                om_buf_putc(&b, 0);
                om_buf_put_span(&b, agent);
                if (om_buf_ok(&b))
                        add(job, om_buf_span(&b), topic.len);
                else
                        om_redis_job_no_memory(job);
        }
        om_buf_deinit(&b);
}

static enum om_redis_more more_topics(struct om_redis_job *job) {
        struct names *l = job->data;
        struct om_redis_cmd *c;

        if (l->topic_at >= l->n_topics)
                return OM_REDIS_NO_MORE;
        c = om_redis_cmd_new("SMEMBERS");
        om_redis_key(c, om_redis_key_agents(job->store, l->topics[l->topic_at]));
        om_redis_job_send(job, c, om_redis_key_agents(job->store, l->topics[l->topic_at]), on_agents, l->topic_at);
        l->topic_at++;
        return OM_REDIS_SENT;
}

static void on_topics(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct names *l = job->data;

        l->topics = om_arena_alloc(&job->arena, (reply->n + 1) * sizeof *l->topics);
        if (!l->topics) {
                om_redis_job_no_memory(job);
                return;
        }
        for (l->n_topics = 0; l->n_topics < reply->n && job->status == 0; l->n_topics++)
                l->topics[l->n_topics] = om_redis_job_keep(job, om_redis_at(reply, l->n_topics)->text);
        job->more = more_topics;
        job->next = read_them;
}

static void find_agents(struct om_redis_job *job) {
        struct names *l = job->data;
        struct om_redis_cmd *c;

        if (l->topic.p) {
                l->topics = &l->topic;
                l->n_topics = 1;
                job->more = more_topics;
                job->next = read_them;
                return;
        }
        c = om_redis_cmd_new("SMEMBERS");
        om_redis_key(c, om_redis_key_topics(job->store));
        om_redis_job_send(job, c, om_redis_key_topics(job->store), on_topics, 0);
}

/* -- settings and keys ----------------------------------------------------------------------------------------------- */

static void found(struct om_redis_job *job, struct om_span key) {
        const struct names *l = job->data;
        struct om_span name = om_redis_key_rest(job->store, key, l->op->kind == OM_STORE_CONFIG ? "config:" : "key:");

        if (name.p)
                add(job, name, 0);
}

static void find_keys(struct om_redis_job *job) {
        struct names *l = job->data;

        l->walk.pattern =
                om_redis_job_keep(job, om_redis_key_pattern(job->store, l->op->kind == OM_STORE_CONFIG ? "config:" : "key:", l->begin));
        l->walk.found = found;
        l->walk.over = read_them;
        l->walk.again = forget;
        if (job->status == 0)
                om_redis_walk_begin(job, &l->walk);
}

static void names_free(struct om_redis_job *job) {
        struct names *l = job->data;

        om_arena_deinit(&l->text);
        free(l->names);
}

int om_redis_list_names(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        struct om_redis_job *job;
        struct names *l;
        int r = om_redis_job_new(s, &op->op, sizeof *l, 0, &job, e);

        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->entries = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        l = job->data;
        job->release = names_free;
        l->op = op;
        l->limit = op->limit == 0 ? NAMES_PAGE : op->limit < OM_REDIS_PAGE_MAX ? op->limit : OM_REDIS_PAGE_MAX;
        l->room = 2 * l->limit + 16;
        l->names = calloc(l->room, sizeof *l->names);
        if (!l->names)
                om_redis_job_no_memory(job);
        l->cursor = om_redis_job_keep(job, op->cursor);
        if (op->kind == OM_STORE_AGENTS) {
                l->topic = om_redis_job_keep(job, op->key);
                l->agent = om_redis_job_keep(job, op->name);
        } else {
                l->begin = om_redis_job_keep(job, op->name.p ? op->name : OM_SPAN(""));
        }
        l->subscriptions = op->kind == OM_STORE_CONFIG && l->begin.len >= sizeof SUBSCRIPTIONS - 1 &&
                memcmp(l->begin.p, SUBSCRIPTIONS, sizeof SUBSCRIPTIONS - 1) == 0;
        if (job->status == 0)
                (op->kind == OM_STORE_AGENTS || l->subscriptions ? find_agents : find_keys)(job);
        return om_redis_job_start(job, e);
}
