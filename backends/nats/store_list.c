/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists. Results and metrics go from the newest message of their stream downwards, by number: newest first is the order in which the server
 * stored them. Agents, settings and keys go by their subjects, which the server names all at once, in order.
 *
 * Always true:
 *   - a cursor is the place itself, the next number or the last subject, and nothing is kept for it: what was there when the walk began
 *     and is not written anew meanwhile is met once;
 *   - a page ends at its limit, or at PAGE_BYTES of values;
 *   - numbers under which there is nothing any more are stepped over in strides that double, not one by one;
 *   - where a span of time is asked for, WINDOW numbers at a time of whose times it is known that they are outside are not read again. That
 *     is remembered from lists of a span: a number's message never changes, it only goes.
 *
 * Loop thread.
 */
#include "store_state.h"

enum { WINDOW = 64, PAGE = 1000, PAGE_BYTES = 16 << 20, NAMES_AT_ONCE = 100000 };

struct list {
        struct job job; /* first */
        struct om_store_list *op;
        enum om_store_kind kind;
        struct om_arena in; /* the filters, copied */
        struct om_span key, name, topic, status;
        int64_t since_ms, until_ms;
        size_t limit;
        struct nats_request req;
        struct om_arena arena; /* what goes to the core */
        struct om_store_entry *entries;
        size_t n, cap, bytes;
        char cursor[SUBJECT_MAX]; /* where the next page begins; empty: this was the end */
        /* by number */
        uint64_t first, at; /* the next one to look at */
        uint64_t stride;
        bool shrinking;
        /* by name */
        char **names;
        size_t n_names, cap_names, at_name, offset;
        char after[SUBJECT_MAX];
        char prefix[SUBJECT_MAX]; /* what subjects begin with, where they were not cut */
        /* what is being read */
        size_t n_loads, open;
        int load_status;
        struct om_error error;
        struct load loads[WINDOW];
};

static bool by_number(const struct list *l) { return l->kind == OM_STORE_RESULTS || l->kind == OM_STORE_METRICS; }

static void loads_free(struct list *l) {
        for (size_t i = 0; i < l->n_loads; i++)
                nats_load_free(&l->loads[i]);
        l->n_loads = 0;
}

static void list_free(struct om_job *j) {
        struct list *l = (struct list *) j;

        loads_free(l);
        for (size_t i = 0; i < l->n_names; i++)
                free(l->names[i]);
        free(l->names);
        free(l->entries);
        om_arena_deinit(&l->arena);
        om_arena_deinit(&l->in);
        free(l);
}

/* -- times of windows -------------------------------------------------------------------------------------------------- */

enum { UNKNOWN_MIN = 0, UNKNOWN_MAX = -1 };

static bool is_span(const struct list *l) { return by_number(l) && (l->since_ms > 0 || l->until_ms > 0); }

static struct store_times *times_of(const struct list *l) { return &l->job.store->times[l->kind == OM_STORE_METRICS]; }

/* What is known is of a stream of this time of creation, from the window on that has its first message. */
static void times_are_of(struct store_times *t, struct om_span created, uint64_t first) {
        uint64_t base = (first - 1) / WINDOW;

        if (!om_span_is(created, t->created)) {
                t->n = 0;
                snprintf(t->created, sizeof t->created, "%.*s", OM_PRI(created));
        }
        if (t->n && base > t->base) {
                size_t gone = base - t->base < t->n ? (size_t) (base - t->base) : t->n;

                t->n -= gone;
                memmove(t->windows, t->windows + gone, t->n * sizeof t->windows[0]);
        }
        if (!t->n || base > t->base)
                t->base = base;
}

/* The window whose last number this is; NULL: none, or it is not known. */
static struct store_window *window_times(const struct store_times *t, uint64_t last) {
        uint64_t i = last / WINDOW - 1 - t->base;
        struct store_window *w;

        if (last % WINDOW || last / WINDOW <= t->base || i >= t->n)
                return NULL;
        w = &t->windows[i];
        return w->min_ms == UNKNOWN_MIN && w->max_ms == UNKNOWN_MAX ? NULL : w;
}

static void remember(struct store_times *t, uint64_t last, int64_t min_ms, int64_t max_ms) {
        uint64_t i = last / WINDOW - 1 - t->base;

        if (last % WINDOW || last / WINDOW <= t->base || i >= SIZE_MAX / sizeof t->windows[0])
                return;
        if (i >= t->cap) {
                size_t cap = t->cap * 2 > i ? t->cap * 2 : (size_t) i + 64;
                struct store_window *more = reallocarray(t->windows, cap, sizeof *more);

                if (!more) /* then it is read again */
                        return;
                t->windows = more;
                t->cap = cap;
        }
        while (t->n <= i)
                t->windows[t->n++] = (struct store_window){ UNKNOWN_MIN, UNKNOWN_MAX };
        t->windows[i] = (struct store_window){ min_ms, max_ms };
}

static void skip_windows(struct list *l) {
        const struct store_window *w;

        while (is_span(l) && l->at >= l->first && (w = window_times(times_of(l), l->at)) &&
                (w->max_ms < l->since_ms || (l->until_ms && w->min_ms >= l->until_ms)))
                l->at -= WINDOW;
}

static void remember_window(struct list *l) {
        int64_t min_ms = INT64_MAX, max_ms = INT64_MIN;

        if (!is_span(l) || l->n_loads != WINDOW)
                return;
        for (size_t i = 0; i < WINDOW; i++) {
                const struct load *load = &l->loads[i];
                int64_t at_ms = load->envelope.entry.saved_ms;

                if (!load->seq || at_ms == INT64_MIN)
                        continue;
                min_ms = at_ms < min_ms ? at_ms : min_ms;
                max_ms = at_ms > max_ms ? at_ms : max_ms;
        }
        remember(times_of(l), l->at, min_ms, max_ms);
}

/* -- the end ----------------------------------------------------------------------------------------------------------- */

static void over(struct list *l, int status, const struct om_error *e) {
        struct om_store_list *op = l->op;
        struct om_error mine;

        if (status == 0 && !om_job_is_cancelled(&l->job.base)) {
                size_t size = l->n * sizeof l->entries[0];
                void *entries = om_arena_alloc(&l->arena, size ? size : 1);
                struct om_span next = l->cursor[0] ? om_arena_copy(&l->arena, om_span_of(l->cursor)) : OM_SPAN_NONE;

                if (!entries || (l->cursor[0] && !next.p))
                        status = om_error_set_errno(&mine, ENOMEM, "NATS"), e = &mine;
                else {
                        if (size)
                                memcpy(entries, l->entries, size);
                        op->entries = entries;
                        op->n = l->n;
                        op->next_cursor = next;
                        op->arena = l->arena;
                        l->arena = (struct om_arena){ 0 };
                }
        }
        om_job_over(&l->job.base, status, e);
}

static void away(struct list *l, int r) {
        struct om_error e;

        nats_unsent(r, &e);
        over(l, r, &e);
}

/* -- what was read ----------------------------------------------------------------------------------------------------- */

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
                struct om_store_entry *entries = reallocarray(l->entries, cap, sizeof l->entries[0]);

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
        size_t i, n = l->n_loads;
        bool any = false;

        if (l->load_status < 0) {
                over(l, l->load_status, &l->error);
                return;
        }
        remember_window(l);
        for (i = 0; i < n && !is_full(l); i++) {
                struct load *load = &l->loads[i];

                any |= load->seq != 0;
                if (load->seq && load->envelope.entry.saved_ms != INT64_MIN && matches(l, &load->envelope.entry) &&
                        !add(l, &load->envelope.entry)) {
                        away(l, -ENOMEM);
                        return;
                }
        }
        loads_free(l);
        if (by_number(l)) {
                l->at -= i;
                if (!any && i == n)
                        l->stride = 2 * WINDOW;
        } else
                l->at_name += i;
        go_on(l);
}

static void one_came(struct load *load, int status, const struct om_error *e) {
        struct list *l = load->ctx;

        if (status == -ENOENT)
                load->seq = 0;
        else if (status == -EINVAL) /* there is something, and it is nothing of ours */
                load->envelope.entry.saved_ms = INT64_MIN;
        else if (status < 0 && l->load_status == 0) {
                l->load_status = status;
                l->error = *e;
        }
        if (--l->open == 0)
                window_over(l);
}

static void window(struct list *l) {
        size_t left = l->limit - l->n, n = is_span(l) ? (l->at - 1) % WINDOW + 1 : left < WINDOW ? left : WINDOW;
        uint64_t there = by_number(l) ? l->at - l->first + 1 : l->n_names - l->at_name;

        n = n < there ? n : (size_t) there;
        l->open = n + 1;
        l->load_status = 0;
        l->n_loads = n;
        for (size_t i = 0; i < n; i++)
                l->loads[i] = (struct load){ .store = l->job.store, .kind = l->kind, .whole = true, .done = one_came, .ctx = l };
        for (size_t i = 0; i < n; i++)
                if (by_number(l))
                        nats_load_seq(&l->loads[i], l->at - i);
                else
                        nats_load_subject(&l->loads[i], l->names[l->at_name + i]);
        if (--l->open == 0)
                window_over(l);
}

/* -- stepping over gaps ------------------------------------------------------------------------------------------------ */

static void probed(struct nats_request *r, const struct nats_reply *reply) {
        struct list *l = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        uint64_t from = l->at - l->first + 1 > l->stride ? l->at - l->stride + 1 : l->first, found;
        int status = nats_error(reply, "reading a message", &e);

        if (status < 0 && nats_error_code(reply->data) != NATS_ERR_NO_MESSAGE) {
                over(l, status, &e);
                return;
        }
        found = status == 0 ? nats_json_u64(reply->data, "message.seq") : UINT64_MAX;
        if (found > l->at) { /* nothing there */
                l->at = from - 1;
                l->stride = l->shrinking ? l->stride : l->stride * 2;
        } else {
                l->shrinking = true;
                l->stride /= 2;
        }
        if (l->stride < WINDOW) {
                l->stride = 0;
                l->shrinking = false;
        }
        go_on(l);
}

static void probe(struct list *l) {
        uint64_t from = l->at - l->first + 1 > l->stride ? l->at - l->stride + 1 : l->first;
        char stream[BUCKET_MAX + 16], body[64];
        int r;

        nats_stream_name(stream, sizeof stream, l->job.store, nats_stream_of(l->kind));
        snprintf(body, sizeof body, "{\"seq\":%llu,\"next_by_subj\":\">\"}", (unsigned long long) from);
        r = nats_call(l->job.store->link, &l->req, probed, l, om_span_of(body), "STREAM.MSG.GET.%s", stream);
        if (r < 0)
                away(l, r);
}

static void go_on(struct list *l) {
        bool end;

        skip_windows(l);
        end = by_number(l) ? l->at < l->first || !l->at : l->at_name >= l->n_names;

        if (!end && is_full(l)) {
                if (by_number(l))
                        snprintf(l->cursor, sizeof l->cursor, "%llu", (unsigned long long) l->at);
                else
                        snprintf(l->cursor, sizeof l->cursor, "%s", l->names[l->at_name - 1]);
        }
        if (end || is_full(l))
                over(l, 0, NULL);
        else if (l->stride)
                probe(l);
        else
                window(l);
}

/* -- names ------------------------------------------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *) a, *(char *const *) b); }

/* What was cut may begin with anything behind the part that is left. */
static bool may_match(const struct list *l, const char *subject) {
        enum { SURE = NATS_NAME_MAX - 33 };
        size_t base = strlen("$KV..c.") + strlen(l->job.store->bucket), n = strlen(l->prefix);

        n = n < base + SURE ? n : base + SURE;
        return strncmp(subject, l->prefix, n) == 0;
}

static bool take_name(struct list *l, struct om_json_value key) {
        struct om_span text = om_json_inner(key);
        char *copy;

        if (l->n_names == l->cap_names) {
                size_t cap = l->cap_names ? l->cap_names * 2 : 256;
                char **names = reallocarray(l->names, cap, sizeof l->names[0]);

                if (!names)
                        return false;
                l->names = names;
                l->cap_names = cap;
        }
        copy = strndup(text.p, text.len);
        if (!copy)
                return false;
        if (strcmp(copy, l->after) <= 0 || !may_match(l, copy)) {
                free(copy);
                return true;
        }
        l->names[l->n_names++] = copy;
        return true;
}

static void ask(struct list *l);

static void told(struct nats_request *r, const struct nats_reply *reply) {
        struct list *l = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        struct om_span value;
        struct om_json_value key;
        struct nats_walk w;
        size_t n = 0;
        int status = nats_error(reply, "asking what the bucket holds", &e);

        if (status < 0) {
                over(l, status, &e);
                return;
        }
        if (by_number(l)) {
                uint64_t last = nats_json_u64(reply->data, "state.last_seq");

                l->first = nats_json_u64(reply->data, "state.first_seq");
                l->first = l->first ? l->first : 1;
                l->at = l->at && l->at < last ? l->at : last;
                times_are_of(times_of(l), nats_json_get(reply->data, "created"), l->first);
                go_on(l);
                return;
        }
        nats_walk_init(&w, nats_json_get(reply->data, "state.subjects"));
        while (w.object && nats_walk_next(&w, &value, &key)) {
                n++;
                if (!take_name(l, key)) {
                        away(l, -ENOMEM);
                        return;
                }
        }
        l->offset += n;
        if (n && l->offset < nats_json_u64(reply->data, "total")) {
                ask(l);
                return;
        }
        if (l->n_names)
                qsort(l->names, l->n_names, sizeof l->names[0], by_text);
        go_on(l);
}

static void ask(struct list *l) {
        struct om_store *s = l->job.store;
        char stream[BUCKET_MAX + 16], subject[SUBJECT_MAX], body[SUBJECT_MAX + 60] = "";
        int r;

        nats_stream_name(stream, sizeof stream, s, nats_stream_of(l->kind));
        if (!by_number(l)) {
                nats_entry_subject(subject, s, l->kind, l->kind == OM_STORE_AGENTS ? l->key : OM_SPAN_NONE, OM_SPAN_NONE);
                snprintf(body, sizeof body, "{\"subjects_filter\":\"%s\",\"offset\":%zu}", subject, l->offset);
        }
        r = nats_call(s->link, &l->req, told, l, om_span_of(body), "STREAM.INFO.%s", stream);
        if (r < 0)
                away(l, r);
}

/* -- the entry --------------------------------------------------------------------------------------------------------- */

static bool copy_filter(struct list *l, struct om_span from, struct om_span *to) {
        *to = om_arena_copy(&l->in, from);
        return !from.p || to->p;
}

static bool read_cursor(struct list *l, struct om_span cursor) {
        if (!cursor.p)
                return true;
        if (!by_number(l)) {
                snprintf(l->after, sizeof l->after, "%.*s", OM_PRI(cursor));
                return cursor.len < sizeof l->after && strncmp(l->after, "$KV.", 4) == 0;
        }
        for (size_t i = 0; i < cursor.len; i++) {
                if (cursor.p[i] < '0' || cursor.p[i] > '9' || cursor.len > 19)
                        return false;
                l->at = l->at * 10 + (uint64_t) (cursor.p[i] - '0');
        }
        return l->at > 0;
}

int nats_store_list(struct om_store *s, struct om_store_list *op, struct om_error *e) {
        int r = nats_store_admit(s, 4096, e);
        struct list *l;

        if (r < 0)
                return r;
        if (op->text.p || op->filter.p)
                return om_error_set(e, OM_UNSUPPORTED, "NATS: this storage cannot search");
        l = calloc(1, sizeof *l);
        if (!l)
                return om_error_set_errno(e, ENOMEM, "NATS");
        l->op = op;
        l->kind = op->kind;
        l->since_ms = op->since_ms;
        l->until_ms = op->until_ms;
        l->limit = op->limit ? op->limit : PAGE;
        l->job.store = s; /* for the subject */
        if (!copy_filter(l, op->key, &l->key) || !copy_filter(l, op->name, &l->name) || !copy_filter(l, op->topic, &l->topic) ||
                !copy_filter(l, op->status, &l->status))
                r = om_error_set_errno(e, ENOMEM, "NATS");
        else if (!read_cursor(l, op->cursor))
                r = om_error_set(e, OM_INVALID, "NATS: this cursor is none that a list has given");
        if (r < 0) {
                l->job.base.free = NULL;
                list_free(&l->job.base);
                return r;
        }
        if (l->kind == OM_STORE_CONFIG && l->name.len)
                nats_entry_subject(l->prefix, s, l->kind, l->name, OM_SPAN_NONE);
        op->arena = (struct om_arena){ 0 };
        op->entries = NULL;
        op->n = 0;
        op->next_cursor = OM_SPAN_NONE;
        nats_store_begin(s, &l->job, &op->op, 4096, list_free);
        ask(l);
        return 0;
}
