/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists. Results and metrics go by their names in t/ and m/, whose order is newest first and which tell by hashes what a filter leaves out,
 * so that only what is probably wanted is read. Agents, settings and keys go by their names.
 *
 * Always true:
 *   - a cursor is the last name that was looked at, and nothing is kept for it: what was there when the walk began and is not written anew
 *     meanwhile is met once;
 *   - a page ends at its limit, or at PAGE_BYTES of values;
 *   - a place whose result is gone, or names another place, is stepped over.
 *
 * Loop thread.
 */
#include "store_state.h"

enum { WINDOW = 32, PAGE = 1000, PAGE_BYTES = 16 << 20 };

struct list {
        struct om_job job; /* first */
        struct om_store *store;
        struct s3_client *client;
        struct om_store_list *op;
        enum om_store_kind kind;
        struct om_arena in; /* the filters, copied */
        struct om_span key, name, topic, status;
        int64_t since_ms, until_ms;
        size_t limit;
        bool names_do;           /* a place says all that is wanted */
        char first[S3_NAME_MAX]; /* the cursor that was given, or where `until` begins */
        struct om_arena arena;   /* what goes to the core */
        struct om_store_entry *entries;
        size_t n, cap, bytes;
        char cursor[S3_NAME_MAX]; /* the last name that was looked at */
        bool more;
        struct s3_page page;
        size_t at, n_names;     /* of its names: the next one, and how many count */
        char task[S3_NAME_MAX]; /* results of one task: what the end of their places begins with */
        size_t n_loads, open;
        int load_status;
        struct om_error error;
        struct {
                struct s3_load load;
                const char *place; /* the name by which it was found */
                bool there;
        } window[WINDOW];
};

static bool in_time(const struct list *l) { return l->kind == OM_STORE_RESULTS || l->kind == OM_STORE_METRICS; }

static void loads_free(struct list *l) {
        for (size_t i = 0; i < l->n_loads; i++)
                s3_load_clear(&l->window[i].load);
        l->n_loads = 0;
}

static void list_free(struct om_job *j) {
        struct list *l = (struct list *) j;
        struct om_store *s = l->store;

        loads_free(l);
        s3_page_clear(&l->page);
        free(l->entries);
        om_arena_deinit(&l->arena);
        om_arena_deinit(&l->in);
        free(l);
        s3_store_is_closed(s);
}

/* -- the end ----------------------------------------------------------------------------------------------------------------------- */

static void begin(struct list *l);

/* Into the op. -ENOMEM. */
static int hand_over(struct list *l, struct om_error *e) {
        struct om_store_list *op = l->op;
        size_t size = l->n * sizeof l->entries[0];
        void *entries = om_arena_alloc(&l->arena, size ? size : 1);
        struct om_span next = l->more ? om_arena_copy(&l->arena, om_span_of(l->cursor)) : OM_SPAN_NONE;

        if (!entries || (l->more && !next.p))
                return om_error_set_errno(e, ENOMEM, "S3");
        if (size)
                memcpy(entries, l->entries, size);
        op->entries = entries;
        op->n = l->n;
        op->next_cursor = next;
        op->arena = l->arena;
        l->arena = (struct om_arena){ 0 };
        return 0;
}

static void over(struct list *l, int status, const struct om_error *e) {
        struct om_error copy = e ? *e : (struct om_error) OM_ERROR_INIT;

        if (s3_store_falls_back(l->store, &l->client, status)) {
                loads_free(l);
                om_arena_deinit(&l->arena);
                l->n = l->bytes = 0;
                begin(l);
                return;
        }
        if (status == 0 && !om_job_is_cancelled(&l->job))
                status = hand_over(l, &copy);
        om_job_over(&l->job, status, &copy);
}

/* -- what was read ------------------------------------------------------------------------------------------------------------------ */

static bool matches(const struct list *l, const struct om_store_entry *e) {
        if (om_entry_expired(e, om_now_ms()) || e->saved_ms < l->since_ms || (l->until_ms && e->saved_ms >= l->until_ms))
                return false;
        if ((l->topic.p && !om_span_eq(e->topic, l->topic)) || (l->status.p && !om_span_eq(e->status, l->status)))
                return false;
        if (l->kind == OM_STORE_CONFIG)
                return !l->name.p || (e->key.len >= l->name.len && memcmp(e->key.p, l->name.p, l->name.len) == 0);
        return (l->kind == OM_STORE_METRICS || !l->key.p || om_span_eq(e->key, l->key)) && (!l->name.p || om_span_eq(e->name, l->name));
}

/* False: out of memory. */
static bool add(struct list *l, const struct om_store_entry *e) {
        if (l->n == l->cap) {
                size_t cap = l->cap ? l->cap * 2 : 64;
                struct om_store_entry *entries = reallocarray(l->entries, cap, sizeof entries[0]);

                if (!entries)
                        return false;
                l->entries = entries;
                l->cap = cap;
        }
        if (!om_entry_copy(&l->arena, e, &l->entries[l->n]))
                return false;
        if (l->kind == OM_STORE_METRICS)
                l->entries[l->n].key = OM_SPAN_NONE;
        l->bytes += e->value.len;
        l->n++;
        return true;
}

static bool is_full(const struct list *l) { return l->n >= l->limit || l->bytes >= PAGE_BYTES; }

static void go_on(struct list *l);

static void window_over(struct list *l) {
        struct om_error e;

        if (l->load_status < 0) {
                e = l->error;
                over(l, l->load_status, &e);
                return;
        }
        for (size_t i = 0; i < l->n_loads && !is_full(l); i++) {
                const struct s3_load *load = &l->window[i].load;
                bool stale = l->kind == OM_STORE_RESULTS && strcmp(load->index, l->window[i].place) != 0;

                snprintf(l->cursor, sizeof l->cursor, "%s", l->window[i].place);
                if (l->window[i].there && !stale && matches(l, &load->entry) && !add(l, &load->entry)) {
                        over(l, om_error_set_errno(&e, ENOMEM, "S3"), &e);
                        return;
                }
        }
        loads_free(l);
        if (is_full(l)) {
                /* Names behind the last one that was taken are looked at again by whoever comes with the cursor. */
                l->more = l->page.more || strcmp(l->cursor, l->n_names ? l->page.names[l->n_names - 1].name : "") != 0;
                over(l, 0, NULL);
                return;
        }
        go_on(l);
}

static void one_came(struct s3_load *load, int status, const struct om_error *e) {
        struct list *l = load->ctx;

        for (size_t i = 0; i < l->n_loads; i++)
                if (&l->window[i].load == load)
                        l->window[i].there = status == 0;
        if (status < 0 && status != -ENOENT && status != -EINVAL && l->load_status == 0) {
                l->load_status = status;
                l->error = *e;
        }
        if (--l->open == 0)
                window_over(l);
}

static bool may_match(const struct list *l, const struct s3_index *i) {
        if (i->expires_ms && i->expires_ms <= om_now_ms())
                return false;
        if (l->task[0] && strncmp(i->rest, l->task, strlen(l->task)) != 0)
                return false;
        return (!l->topic.p || i->topic == s3_name_hash(l->topic)) && (!l->name.p || i->agent == s3_name_hash(l->name)) &&
                (!l->status.p || i->status == s3_name_hash(l->status));
}

enum { TAKE, SKIP, STOP };
static int look_at(const struct list *l, const struct s3_listed *listed, struct s3_index *i, size_t *ret_size) {
        *ret_size = listed->size;
        if (!in_time(l))
                return TAKE;
        if (!s3_index_read(listed->name, i))
                return SKIP;
        *ret_size = i->size;
        if (i->saved_ms < l->since_ms)
                return STOP;
        return may_match(l, i) ? TAKE : SKIP;
}

/* Without reading a result: 1; 0: its names were cut; -ENOMEM. */
static int add_name(struct list *l, const struct s3_index *i) {
        struct om_buf key = OM_BUF_INIT, name = OM_BUF_INIT;
        struct om_store_entry e = { .saved_ms = i->saved_ms, .expires_ms = i->expires_ms };
        int r = 0;

        if (s3_entry_read(i->rest, &key, &name)) {
                e.key = om_buf_span(&key);
                e.name = om_buf_span(&name);
                r = add(l, &e) ? 1 : -ENOMEM;
        }
        om_buf_deinit(&key);
        om_buf_deinit(&name);
        return r;
}

/* Those at the beginning whose names are enough. */
static int take_names(struct list *l) {
        struct s3_index index;
        size_t size;
        int r = 1;

        while (l->names_do && l->at < l->n_names && !is_full(l)) {
                const struct s3_listed *listed = &l->page.names[l->at];
                int what = look_at(l, listed, &index, &size);

                if (what == TAKE)
                        r = add_name(l, &index);
                if (what == STOP || r <= 0)
                        break;
                snprintf(l->cursor, sizeof l->cursor, "%s", listed->name);
                l->at++;
        }
        return r;
}

/* The next ones that may match, as many as the page has room for. */
static void window(struct list *l) {
        size_t room, bytes, size;
        struct s3_index index;
        struct om_error e;
        bool stopped = false;

        l->load_status = 0;
        if (take_names(l) < 0) {
                over(l, om_error_set_errno(&e, ENOMEM, "S3"), &e);
                return;
        }
        room = l->limit - l->n < WINDOW ? l->limit - l->n : WINDOW;
        bytes = l->bytes;
        while (l->at < l->n_names && l->n_loads < room && (bytes < PAGE_BYTES || !l->n_loads)) {
                const struct s3_listed *listed = &l->page.names[l->at];
                int what = look_at(l, listed, &index, &size);

                if (what == STOP) {
                        stopped = true;
                        break;
                }
                l->at++;
                if (what == SKIP) {
                        if (!l->n_loads)
                                snprintf(l->cursor, sizeof l->cursor, "%s", listed->name);
                        continue;
                }
                l->window[l->n_loads].load = (struct s3_load){ .client = l->client, .done = one_came, .ctx = l };
                l->window[l->n_loads].place = listed->name;
                l->window[l->n_loads].there = false;
                if (l->kind == OM_STORE_RESULTS)
                        snprintf(l->window[l->n_loads].load.name, S3_NAME_MAX, "r/%.250s", index.rest);
                else
                        snprintf(l->window[l->n_loads].load.name, S3_NAME_MAX, "%.255s", listed->name);
                l->n_loads++;
                bytes += size;
        }
        if (stopped) { /* nothing behind this is wanted */
                l->n_names = l->at;
                l->page.more = false;
        }
        l->open = l->n_loads + 1;
        for (size_t i = 0; i < l->n_loads; i++)
                s3_load_start(&l->window[i].load);
        if (--l->open == 0)
                window_over(l);
}

/* -- names -------------------------------------------------------------------------------------------------------------------------- */

static void ask(struct list *l) {
        bool filtered = l->topic.p || l->name.p || l->status.p || l->key.p;
        size_t want = l->limit - l->n;

        l->at = 0;
        l->page.limit = filtered || want >= S3_PAGE_MAX - 10 ? S3_PAGE_MAX : (unsigned) want + 10;
        snprintf(l->page.after, sizeof l->page.after, "%s", l->cursor);
        s3_page_start(&l->page);
}

static void named(struct s3_page *p, int status, const struct om_error *e) {
        struct list *l = p->ctx;

        if (status < 0)
                over(l, status, e);
        else {
                l->n_names = p->n;
                go_on(l);
        }
}

static void go_on(struct list *l) {
        if (l->at < l->n_names)
                window(l);
        else if (l->page.more) {
                if (l->n_names)
                        snprintf(l->cursor, sizeof l->cursor, "%s", l->page.names[l->n_names - 1].name);
                ask(l);
        } else {
                l->more = false;
                over(l, 0, NULL);
        }
}

static void begin(struct list *l) {
        struct om_span key = l->kind == OM_STORE_CONFIG ? l->name : l->kind == OM_STORE_AGENTS ? l->key : OM_SPAN_NONE;

        if (l->kind == OM_STORE_RESULTS && l->key.p) {
                s3_kind_prefix(l->task, l->kind, l->key);
                memmove(l->task, l->task + 2, strlen(l->task + 2) + 1);
        }
        s3_page_clear(&l->page);
        l->n_names = 0;
        l->page = (struct s3_page){ .client = l->client, .done = named, .ctx = l };
        if (in_time(l))
                snprintf(l->page.prefix, sizeof l->page.prefix, "%s", l->kind == OM_STORE_RESULTS ? "t/" : "m/");
        else
                s3_kind_prefix(l->page.prefix, l->kind, key);
        snprintf(l->cursor, sizeof l->cursor, "%s", l->first);
        ask(l);
}

/* -- the entry ---------------------------------------------------------------------------------------------------------------------- */

static bool copy_filter(struct list *l, struct om_span from, struct om_span *to) {
        *to = om_arena_copy(&l->in, from);
        return !from.p || to->p;
}

static bool read_cursor(struct list *l, struct om_span cursor) {
        static const char letters[KINDS] = {
                [OM_STORE_AGENTS] = 'a', [OM_STORE_RESULTS] = 't', [OM_STORE_METRICS] = 'm', [OM_STORE_CONFIG] = 'c', [OM_STORE_KEYS] = 'k'
        };

        if (l->until_ms && in_time(l))
                s3_index_until(l->first, l->kind, l->until_ms);
        if (!cursor.p)
                return true;
        if (cursor.len >= S3_NAME_MAX || cursor.len < 2 || cursor.p[0] != letters[l->kind] || cursor.p[1] != '/')
                return false;
        snprintf(l->first, sizeof l->first, "%.*s", OM_PRI(cursor));
        return true;
}

int s3_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        int r = s3_store_admit(s, sizeof(struct list), true, e);
        struct list *l;

        if (r < 0)
                return r;
        if (op->text.p || op->filter.p)
                return om_error_set(e, OM_UNSUPPORTED, "S3: this storage cannot search");
        l = calloc(1, sizeof *l);
        if (!l)
                return om_error_set_errno(e, ENOMEM, "S3");
        l->store = s;
        l->client = s3_store_reader(s);
        l->op = op;
        l->kind = op->kind;
        l->since_ms = op->since_ms;
        l->until_ms = op->until_ms;
        l->limit = op->limit ? op->limit : PAGE;
        l->names_do = op->keys_only && l->kind == OM_STORE_RESULTS && !op->key.p && !op->name.p && !op->topic.p && !op->status.p;
        if (!copy_filter(l, op->key, &l->key) || !copy_filter(l, op->name, &l->name) || !copy_filter(l, op->topic, &l->topic) ||
                !copy_filter(l, op->status, &l->status))
                r = om_error_set_errno(e, ENOMEM, "S3");
        else if (!read_cursor(l, op->cursor))
                r = om_error_set(e, OM_INVALID, "cursor: not one of this storage's");
        if (r < 0) {
                om_arena_deinit(&l->in);
                free(l);
                return r;
        }
        op->arena = (struct om_arena){ 0 };
        op->entries = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        om_job_begin(&s->jobs, &l->job, &op->op, sizeof *l, list_free);
        begin(l);
        return 0;
}
