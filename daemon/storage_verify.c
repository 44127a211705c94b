/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storage.verify: every record of either side is looked for on the other and compared.
 *
 *   for each kind:  pages of the source, each record read from the target and compared; then pages of the target, each record that the
 *                   source lacks is one too many. Metrics: pages of both sides, looked for on the other by time and value.
 *
 * It compares while others write: a record that is different, or missing, and whose key is being written or is still to be synced, is
 * looked at again when that is over, so that what is under way is no difference. Found differences are counted, the first SHOWN of them
 * kept. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage_internal.h"

enum { PAGE = 200, READS_MAX = 32, SHOWN = 100, TIME_SLACK_MS = 2000 };

struct difference {
        enum om_store_kind kind;
        const char *what; /* "missing", "different", "extra" */
        struct om_span key, name;
};

struct read;
struct verify {
        union { /* first */
                struct om_op op;
                struct om_store_list list;
        };
        struct mirror *m;
        struct part *part;
        struct om_deadline deadline;
        bool running, out, failed;
        bool repair;    /* what differs is dirty from then on, and so brought over again */
        int kind;       /* below KINDS */
        bool of_target; /* whose pages are being read */
        struct om_span cursor;
        struct om_arena cursors, page;
        struct om_store_entry *entries;
        size_t n, at; /* of the page, and the next to look at */
        struct om_span next_cursor;
        bool has_page;
        struct read *again; /* waiting for their key to be clean */
        unsigned n_reads;
        uint64_t n_compared, n_differences, per_kind[KINDS];
        struct difference shown[SHOWN];
        size_t n_shown;
        struct om_arena arena; /* of the shown ones */
        struct om_error error;
        int64_t started_ms, finished_ms;
};

/* One record that is looked up on the other side. */
struct read {
        struct om_store_get get; /* first */
        struct verify *v;
        struct part *part;
        struct om_deadline deadline;
        struct om_arena arena;
        struct om_store_entry entry; /* as the page had it */
        bool of_target;
        bool both; /* the page's is stale: both sides are asked */
        bool got;  /* and the source has answered */
        bool none; /* with nothing */
        struct read *next;
};

static bool named(int kind) { return kind == OM_STORE_AGENTS || kind == OM_STORE_RESULTS; }

static void make_dirty(struct verify *v, struct om_span key, struct om_span name) {
        struct key *k = mirror_key(v->m, (enum om_store_kind) v->kind, key, name, true);

        if (!k)
                return;
        mirror_mark(v->m, k);
        mirror_dirty(v->m, k);
}

/* Of metrics it is not known which of the page it was. */
static void repair_metrics(struct verify *v) {
        char text[32];

        if (v->of_target) { /* one too many: all are compared, and the target's go */
                mirror_mark_kind(v->m, OM_STORE_METRICS);
                return;
        }
        for (size_t i = 0; i < v->n; i++)
                make_dirty(v, (struct om_span){ text, (size_t) snprintf(text, sizeof text, "%lld", (long long) v->entries[i].saved_ms) },
                        OM_SPAN_NONE);
}

static void note(struct verify *v, const char *what, const struct om_store_entry *entry) {
        struct difference *d;

        v->n_differences++;
        if (v->repair && v->kind != OM_STORE_METRICS)
                make_dirty(v, entry->key, named(v->kind) ? entry->name : OM_SPAN_NONE);
        if (v->n_shown == SHOWN)
                return;
        d = &v->shown[v->n_shown++];
        d->kind = (enum om_store_kind) v->kind;
        d->what = what;
        d->key = om_arena_copy(&v->arena, entry->key);
        d->name = om_arena_copy(&v->arena, entry->name);
}

static void fail(struct verify *v, const struct part *p, int status, const struct om_error *e) {
        if (v->failed)
                return;
        v->failed = true;
        if (status == -ECANCELED)
                om_error_set(
                        &v->error, OM_TIMEOUT, "no answer within %lld ms (CALL_TIMEOUT)", (long long) v->m->r->settings->call_timeout_ms);
        else if (e && e->message[0])
                v->error = *e;
        else
                om_error_set_errno(&v->error, status, "verify");
        part_name_error(p, &v->error);
}

static bool same_expiry(int64_t a, int64_t b) { return (a == 0) == (b == 0) && llabs((long long) (a - b)) <= TIME_SLACK_MS; }

static bool same_entry(int kind, const struct om_store_entry *a, const struct om_store_entry *b) {
        if (!same_value(a->value, b->value))
                return false;
        return (kind != OM_STORE_RESULTS && kind != OM_STORE_KEYS) || same_expiry(a->expires_ms, b->expires_ms);
}

/* -- one record ---------------------------------------------------------------------------------------------------- */

static void read_free(struct read *rd) {
        om_arena_deinit(&rd->get.arena);
        om_arena_deinit(&rd->arena);
        free(rd);
}

static bool in_flux(const struct read *rd) {
        struct mirror *m = rd->v->m;
        const struct key *k = mirror_key(m, rd->get.kind, rd->entry.key, named((int) rd->get.kind) ? rd->entry.name : OM_SPAN_NONE, false);

        if (k && (k->writes || k->busy || (k->dirty && !k->refused)))
                return true;
        return named((int) rd->get.kind) && mirror_key(m, rd->get.kind, rd->entry.key, OM_SPAN_NONE, false);
}

static void on_read(struct om_op *op, int status, const struct om_error *e);

static void ask(struct read *rd, struct part *p) {
        struct verify *v = rd->v;
        struct om_error error = OM_ERROR_INIT;
        int status;

        rd->part = p;
        om_arena_deinit(&rd->get.arena);
        rd->get = (struct om_store_get){ .op = { .done = on_read },
                .kind = (enum om_store_kind) v->kind,
                .key = rd->entry.key,
                .name = named(v->kind) ? rd->entry.name : OM_SPAN_NONE };
        status = v->m->stopping ? -ECANCELED : part_check(p, &error);
        if (status == 0)
                status = p->ops->get(p->store, &rd->get, &error);
        if (status == 0) {
                v->n_reads++;
                mirror_op_begun(v->m, p, &rd->deadline, &rd->get.op);
                return;
        }
        fail(v, p, status, &error);
        read_free(rd);
}

/* Both sides have been seen. */
static void judge(struct read *rd, const char *what) {
        struct verify *v = rd->v;

        if (what &&
                (!rd->both ||
                        in_flux(rd))) { /* perhaps it changed after the page was read: both sides are asked, when nothing is under way */
                rd->both = true;
                rd->got = false;
                rd->next = v->again;
                v->again = rd;
                return;
        }
        if (what)
                note(v, what, &rd->entry);
        read_free(rd);
}

static void on_read(struct om_op *op, int status, const struct om_error *e) {
        struct read *rd = (struct read *) op;
        struct verify *v = rd->v;
        struct mirror *m = v->m;

        v->n_reads--;
        mirror_op_done(m, rd->part, &rd->deadline);
        if (status < 0 && status != -ENOENT) {
                fail(v, rd->part, status, e);
                read_free(rd);
        } else if (rd->both && !rd->got) { /* the source's answer */
                rd->got = true;
                rd->none = status == -ENOENT;
                if (!rd->none) {
                        rd->entry.value = om_arena_copy(&rd->arena, rd->get.entry.value);
                        rd->entry.expires_ms = rd->get.entry.expires_ms;
                }
                ask(rd, m->target);
        } else if (rd->both) {
                judge(rd,
                        rd->none && status == 0                                                 ? "extra"
                                : !rd->none && status < 0                                       ? "missing"
                                : !rd->none && !same_entry(v->kind, &rd->entry, &rd->get.entry) ? "different"
                                                                                                : NULL);
        } else if (status == -ENOENT) {
                judge(rd, rd->of_target ? "extra" : "missing");
        } else {
                judge(rd, rd->of_target || same_entry(v->kind, &rd->entry, &rd->get.entry) ? NULL : "different");
        }
        mirror_pump(m);
}

static bool look_up(struct verify *v, const struct om_store_entry *entry) {
        struct read *rd = calloc(1, sizeof *rd);

        if (!rd)
                return false;
        rd->v = v;
        rd->of_target = v->of_target;
        rd->entry = *entry;
        rd->entry.key = om_arena_copy(&rd->arena, entry->key);
        rd->entry.name = om_arena_copy(&rd->arena, entry->name.p ? entry->name : OM_SPAN(""));
        rd->entry.value = om_arena_copy(&rd->arena, entry->value);
        if (!v->of_target || entry->key.p)
                v->n_compared += !v->of_target;
        v->per_kind[v->kind] += !v->of_target;
        ask(rd, v->of_target ? source_of(v->m->r, (enum om_store_kind) v->kind) : v->m->target);
        return true;
}

/* -- pages --------------------------------------------------------------------------------------------------------- */

static void page_drop(struct verify *v) {
        om_arena_deinit(&v->page);
        v->has_page = false;
        v->n = v->at = 0;
}

static void next_page(struct verify *v) {
        struct om_arena old = v->cursors;

        v->cursors = (struct om_arena){ 0 };
        v->cursor = om_arena_copy(&v->cursors, v->next_cursor);
        om_arena_deinit(&old);
        page_drop(v);
        if (v->cursor.p)
                return;
        if (v->of_target)
                do
                        v->kind++;
                while (v->kind < KINDS && !(v->m->mask & 1u << v->kind));
        v->of_target = !v->of_target;
}

static void on_metrics(struct mirror *m, void *ctx, int status) {
        struct verify *v = ctx;

        v->out = false;
        if (status < 0) {
                fail(v, m->target, status, NULL);
        } else {
                if (status > 0)
                        note(v, v->of_target ? "extra" : "missing", &v->entries[0]);
                if (status > 0 && v->repair)
                        repair_metrics(v);
                v->n_compared += v->of_target ? 0 : v->n;
                v->per_kind[OM_STORE_METRICS] += v->of_target ? 0 : v->n;
        }
        next_page(v);
        mirror_pump(m);
}

static void on_page(struct om_op *op, int status, const struct om_error *e) {
        struct verify *v = (struct verify *) op;

        v->out = false;
        mirror_op_done(v->m, v->part, &v->deadline);
        if (status < 0) {
                om_arena_deinit(&v->list.arena);
                fail(v, v->part, status, e);
        } else {
                v->page = v->list.arena;
                v->entries = v->list.entries;
                v->n = v->list.n;
                v->next_cursor = v->list.next_cursor;
                v->at = 0;
                v->has_page = true;
        }
        mirror_pump(v->m);
}

static void read_page(struct verify *v) {
        struct part *p = v->of_target ? v->m->target : source_of(v->m->r, (enum om_store_kind) v->kind);
        struct om_error error = OM_ERROR_INIT;
        int status = part_check(p, &error);

        v->part = p;
        v->list = (struct om_store_list){
                .op = { .done = on_page },
                .kind = (enum om_store_kind) v->kind,
                .cursor = v->cursor,
                .limit = PAGE,
                .keys_only = v->of_target && v->kind != OM_STORE_METRICS, /* the source's were compared, value by value */
                .stale_ok = v->kind != OM_STORE_METRICS                   /* what seems different is looked at again */
        };
        if (status == 0)
                status = p->ops->list(p->store, &v->list, &error);
        if (status == 0) {
                v->out = true;
                mirror_op_begun(v->m, p, &v->deadline, &v->op);
        } else if (status != -ENOBUFS || p->n_out == 0) {
                fail(v, p, status, &error);
        }
}

/* -- the pump ------------------------------------------------------------------------------------------------------ */

static void end(struct verify *v) {
        struct read *rd;

        while ((rd = v->again)) {
                v->again = rd->next;
                read_free(rd);
        }
        page_drop(v);
        om_arena_deinit(&v->cursors);
        v->running = false;
        v->finished_ms = om_now_ms();
        routes_changed(v->m->r);
}

static void look_again(struct verify *v) {
        struct read **at = &v->again, *rd;

        while ((rd = *at) && v->n_reads < READS_MAX) {
                if (in_flux(rd)) {
                        at = &rd->next;
                        continue;
                }
                *at = rd->next;
                ask(rd, source_of(v->m->r, (enum om_store_kind) v->kind));
                at = &v->again;
        }
}

void verify_pump(struct mirror *m) {
        struct verify *v = m->verify;

        if (!v || !v->running || v->out)
                return;
        if (v->failed || m->stopping) {
                if (v->n_reads == 0)
                        end(v);
                return;
        }
        look_again(v);
        if (!v->has_page) {
                if (v->n_reads || v->again) /* those of the page before */
                        return;
                if (v->kind >= KINDS)
                        end(v);
                else
                        read_page(v);
                return;
        }
        if (v->kind == OM_STORE_METRICS && v->n) {
                /* What is dirty is not there yet. */
                if (m->metrics_busy || m->metrics_line || m->kinds[OM_STORE_METRICS].n_writes)
                        return;
                v->out = metrics_compare(m, v->entries, v->n, v->of_target, on_metrics, v) == 0;
                if (!v->out)
                        fail(v, m->target, -ENOMEM, NULL);
                return;
        }
        while (v->at < v->n && v->n_reads < READS_MAX && !v->failed)
                if (!look_up(v, &v->entries[v->at++]))
                        fail(v, m->target, -ENOMEM, NULL);
        if (v->at == v->n && v->n_reads == 0 && !v->again) {
                next_page(v);
                routes_changed(m->r);
                verify_pump(m);
        }
}

bool verify_is_running(const struct mirror *m) { return m->verify && m->verify->running; }

bool verify_is_idle(const struct mirror *m) { return !m->verify || (!m->verify->out && m->verify->n_reads == 0); }

static struct verify *verify_new(struct mirror *m, bool repair) {
        struct verify *v = calloc(1, sizeof *v);

        if (!v)
                return NULL;
        v->m = m;
        v->started_ms = om_now_ms();
        v->repair = repair;
        v->running = true;
        while (v->kind < KINDS && !(m->mask & 1u << v->kind))
                v->kind++;
        return v;
}

int verify_start(struct mirror *m, bool repair, struct om_error *e) {
        struct verify *v;

        if (m->verify && m->verify->running)
                return 0;
        v = verify_new(m, repair);
        if (!v)
                return om_error_set_errno(e, ENOMEM, "storage.verify");
        verify_free(m);
        m->verify = v;
        routes_changed(m->r);
        mirror_pump(m);
        return 0;
}

void verify_free(struct mirror *m) {
        struct verify *v = m->verify;
        struct read *rd;

        if (!v)
                return;
        while ((rd = v->again)) {
                v->again = rd->next;
                read_free(rd);
        }
        om_arena_deinit(&v->page);
        om_arena_deinit(&v->cursors);
        om_arena_deinit(&v->arena);
        free(v);
        m->verify = NULL;
}

void verify_put(const struct mirror *m, struct om_buf *b) {
        const struct verify *v = m->verify;

        if (!v) {
                om_buf_lit(b, "null");
                return;
        }
        om_buf_printf(b, "{\"running\":%s,\"compared\":%llu,\"differences\":%llu,\"kinds\":{", v->running ? "true" : "false",
                (unsigned long long) v->n_compared, (unsigned long long) v->n_differences);
        for (int i = 0, n = 0; i < KINDS; i++)
                if (m->mask & 1u << i)
                        om_buf_printf(b, "%s\"%s\":%llu", n++ ? "," : "", om_store_kind_names[i], (unsigned long long) v->per_kind[i]);
        om_buf_lit(b, "},\"shown\":[");
        for (size_t i = 0; i < v->n_shown; i++) {
                const struct difference *d = &v->shown[i];

                om_buf_printf(b, "%s{\"kind\":\"%s\",\"what\":\"%s\"", i ? "," : "", om_store_kind_names[d->kind], d->what);
                if (d->key.p) {
                        om_buf_lit(b, ",\"key\":");
                        om_buf_json_span(b, d->key);
                }
                if (d->name.len) {
                        om_buf_lit(b, ",\"name\":");
                        om_buf_json_span(b, d->name);
                }
                om_buf_putc(b, '}');
        }
        om_buf_lit(b, "],\"started_at\":");
        om_buf_json_time(b, v->started_ms);
        om_buf_lit(b, ",\"finished_at\":");
        if (v->finished_ms)
                om_buf_json_time(b, v->finished_ms);
        else
                om_buf_lit(b, "null");
        if (v->failed) {
                om_buf_lit(b, ",\"error\":");
                om_buf_json_span(b, om_span_of(v->error.message));
        }
        om_buf_putc(b, '}');
}
