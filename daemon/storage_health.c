/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the storages say of themselves. Each is asked at once, and none waits for another: one that has not answered after HEALTH_WAIT_MS is
 * shown as down, and its answer thrown away when it comes.
 *
 * The first storage's facts stand at the top, as if there were no other; where there are others, all stand in `parts`, and the second
 * storage's business in `mirror`. `away` has a sentence for each thing that is not as it should be. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "methods.h"
#include "storage_internal.h"

enum { HEALTH_WAIT_MS = 5000, PARTS_MAX = 3 };

struct checkup;
struct question {
        struct om_store_health op; /* first */
        struct checkup *checkup;
        struct part *part;
        const char *role;
        bool out;
        int status;
        struct om_error error;
        uint64_t started_ns, latency_ns;
        struct om_deadline deadline;
};
struct checkup {
        struct routes *r;
        struct om_op *parent; /* NULL: answered */
        struct question questions[PARTS_MAX];
        size_t n;
        unsigned n_out;
        struct event *timer;
        struct om_post post;
        /* taken at the beginning: a part can be gone at the end */
        struct om_buf urls[PARTS_MAX];
        const char *names[PARTS_MAX];
};

static void put_part(struct om_buf *b, const struct checkup *c, size_t i) {
        const struct question *q = &c->questions[i];

        om_buf_printf(b, "{\"role\":\"%s\",\"name\":\"%s\"", q->role, c->names[i]);
        om_put_member(b, "url", om_buf_span(&c->urls[i]));
        om_buf_printf(b, ",\"status\":\"%s\",\"latency_ms\":", q->status == 0 ? "up" : "down");
        if (q->status == 0) {
                om_buf_json_double(b, (double) q->latency_ns / 1e6);
                om_put_facts(b, q->op.info);
        } else {
                om_buf_lit(b, "null");
                om_put_member(b, "error", om_span_of(q->error.message));
        }
        om_buf_putc(b, '}');
}

void health_mirror(struct om_buf *b, const struct mirror *m) {
        om_buf_printf(b, "{\"role\":\"%s\",\"phase\":\"%s\",\"queued\":%zu,\"whole_kinds\":[", m->is_backup ? "backup" : "migration",
                m->checking ? "check" : phase_names[m->phase], m->n_dirty);
        for (int kind = 0, n = 0; kind < KINDS; kind++)
                if (m->kinds[kind].dirty || m->kinds[kind].walking)
                        om_buf_printf(b, "%s\"%s\"", n++ ? "," : "", om_store_kind_names[kind]);
        om_buf_printf(b,
                "],\"queue_bytes\":%zu,\"queue_limit_bytes\":%lld,\"queue_file_bytes\":%llu,\"synced\":%llu,\"failures\":%llu,\"refused\":%"
                "zu,"
                "\"overflows\":%llu,\"undurable\":%llu",
                m->bytes, (long long) m->r->settings->storage_queue_bytes, m->queue ? (unsigned long long) om_queue_bytes(m->queue) : 0,
                (unsigned long long) m->n_synced, (unsigned long long) m->n_failed, m->n_refused, (unsigned long long) m->n_overflows,
                (unsigned long long) m->n_lost_marks);
        if (m->failing_since_ms) {
                om_buf_lit(b, ",\"failing_since\":");
                om_buf_json_time(b, m->failing_since_ms);
                om_put_member(b, "error", om_span_of(m->error.message));
        }
        if (m->n_refused)
                om_put_member(b, "refusal", om_span_of(m->refusal.message));
        om_buf_putc(b, '}');
}

static void put_sentence(struct om_buf *b, const char **comma, const char *text, struct om_span url, const char *why) {
        struct om_buf line = OM_BUF_INIT;

        om_buf_printf(&line, "the %s ", text);
        om_buf_put_span(&line, url);
        om_buf_printf(&line, " %s", why);
        om_buf_puts(b, *comma);
        om_buf_json_span(b, om_buf_span(&line));
        om_buf_deinit(&line);
        *comma = ",";
}

static void put_away(struct om_buf *b, const struct checkup *c) {
        const struct mirror *m = c->r->mirror;
        const char *comma = "";
        char why[600];

        for (size_t i = 1; i < c->n; i++)
                if (c->questions[i].status < 0) {
                        snprintf(why, sizeof why, "is away: %s", c->questions[i].error.message);
                        put_sentence(b, &comma, c->questions[i].role, om_buf_span(&c->urls[i]), why);
                }
        if (!m || m->checking)
                return;
        if (m->failing_since_ms || m->n_refused) {
                snprintf(why, sizeof why, "lacks %zu changes: %.400s", m->n_dirty, m->n_refused ? m->refusal.message : m->error.message);
                put_sentence(b, &comma, m->target->what, om_span_of(m->target->url->redacted), why);
        }
}

static void compose(struct checkup *c, struct om_buf *b) {
        const struct question *first = &c->questions[0];

        om_buf_putc(b, '{');
        om_buf_lit(b, "\"parts\":[");
        for (size_t i = 0; i < c->n; i++) {
                if (i)
                        om_buf_putc(b, ',');
                put_part(b, c, i);
        }
        om_buf_lit(b, "],\"away\":[");
        put_away(b, c);
        om_buf_putc(b, ']');
        if (c->r->mirror) {
                om_buf_lit(b, ",\"mirror\":");
                health_mirror(b, c->r->mirror);
        }
        if (first->status == 0)
                om_put_facts(b, first->op.info);
        om_buf_putc(b, '}');
}

static void checkup_free(struct checkup *c) {
        for (size_t i = 0; i < c->n; i++) {
                om_arena_deinit(&c->questions[i].op.arena);
                om_buf_deinit(&c->urls[i]);
        }
        event_free(c->timer);
        free(c);
}

static void answer(struct checkup *c) {
        struct om_store_health *op = (struct om_store_health *) c->parent;
        struct question *first = &c->questions[0];
        struct om_buf b = OM_BUF_INIT;
        struct om_error e = first->error;
        int status = first->status;

        c->parent = NULL;
        event_del(c->timer);
        if (c->n == 1 && !c->r->mirror) {
                op->info = om_arena_copy(&op->arena, status == 0 ? first->op.info : OM_SPAN_NONE);
        } else {
                compose(c, &b);
                op->info = om_buf_ok(&b) ? om_arena_copy(&op->arena, om_buf_span(&b)) : OM_SPAN_NONE;
                om_buf_deinit(&b);
        }
        op->op.cancel = NULL;
        op->op.done(&op->op, status, status < 0 ? &e : NULL);
        if (c->n_out == 0)
                checkup_free(c);
}

static void late(struct checkup *c) {
        for (size_t i = 0; i < c->n; i++) {
                struct question *q = &c->questions[i];

                if (!q->out || q->status < 0)
                        continue;
                q->status = om_error_set(&q->error, OM_TIMEOUT, "no answer within %d ms", HEALTH_WAIT_MS);
                om_op_cancel(&q->op.op);
        }
        if (c->parent)
                answer(c);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) { late(ctx); }

static void on_post(struct om_post *post) { answer((void *) ((char *) post - offsetof(struct checkup, post))); }

static void on_answer(struct om_op *op, int status, const struct om_error *e) {
        struct question *q = (struct question *) op;
        struct checkup *c = q->checkup;
        struct routes *r = c->r;

        q->out = false;
        c->n_out--;
        if (c->parent) {
                q->status = status;
                q->latency_ns = om_clock_ns() - q->started_ns;
                if (status < 0 && e)
                        q->error = *e;
        }
        part_done(q->part);
        if (c->n_out == 0) {
                if (c->parent)
                        answer(c);
                else
                        checkup_free(c);
        }
        routes_go_on(r);
}

static void cancel(struct om_op *op) { late(op->backend); }

static void ask(struct checkup *c, struct part *p, const char *role) {
        struct question *q = &c->questions[c->n];

        om_buf_puts(&c->urls[c->n], p->url->redacted);
        c->names[c->n] = p->ops->name;
        c->n++;
        q->checkup = c;
        q->part = p;
        q->role = role;
        q->started_ns = om_clock_ns();
        q->op.op.done = on_answer;
        q->status = p->store ? p->ops->health(p->store, &q->op, &q->error) : part_check(p, &q->error);
        if (q->status < 0)
                return;
        q->out = true;
        c->n_out++;
        p->n_out++;
}

int routes_health(struct om_store *s, struct om_store_health *op, struct om_error *e) {
        struct routes *r = (struct routes *) s;
        struct timeval tv = { .tv_sec = HEALTH_WAIT_MS / 1000 };
        struct checkup *c = calloc(1, sizeof *c);

        if (!c || !(c->timer = event_new(r->host->base, -1, 0, on_timer, c)) || event_add(c->timer, &tv) < 0) {
                if (c && c->timer)
                        event_free(c->timer);
                free(c);
                return om_error_set_errno(e, ENOMEM, "the storage");
        }
        c->r = r;
        c->parent = &op->op;
        op->arena = (struct om_arena){ 0 };
        op->info = OM_SPAN_NONE;
        op->op.backend = c;
        op->op.cancel = cancel;
        ask(c, r->main, "storage");
        if (r->results)
                ask(c, r->results, "results");
        if (r->mirror && !r->mirror->stopping)
                ask(c, r->mirror->target, r->mirror->is_backup ? "backup" : r->mirror->phase == PHASE_PRIMARY ? "old" : "new");
        if (c->n_out == 0) {
                c->post.fn = on_post;
                om_host_post(r->host, &c->post);
        }
        return 0;
}

/* -- storage.status ------------------------------------------------------------------------------------------------ */

static void put_progress(struct om_buf *b, const struct mirror *m) {
        const struct walk *w = &m->walk;
        uint64_t done = 0, total = 0;
        double seconds = w->began_ms ? (double) (om_clock_ms() - w->began_ms) / 1000 : 0,
               rate = seconds > 0 ? (double) w->n_run / seconds : 0;

        om_buf_lit(b, ",\"kinds\":{");
        for (int kind = 0, n = 0; kind < KINDS; kind++) {
                const struct kind_state *ks = &m->kinds[kind];

                if (!(m->mask & 1u << kind))
                        continue;
                om_buf_printf(b, "%s\"%s\":{\"state\":\"%s\",\"done\":%llu,\"total\":%llu}", n++ ? "," : "", om_store_kind_names[kind],
                        ks->walking                        ? "copying"
                                : ks->dirty                ? "waiting"
                                : m->phase == PHASE_FOLLOW ? "follows"
                                                           : "copied",
                        (unsigned long long) ks->n_done, (unsigned long long) ks->n_total);
                done += ks->n_done;
                total += ks->n_total > ks->n_done ? ks->n_total : ks->n_done;
        }
        om_buf_printf(b, "},\"done\":%llu,\"total\":%llu,\"rate_per_s\":", (unsigned long long) done, (unsigned long long) total);
        om_buf_json_double(b, m->phase == PHASE_COPY ? (double) (int64_t) (rate * 10) / 10 : 0);
        om_buf_lit(b, ",\"left_s\":");
        if (m->phase == PHASE_COPY && rate > 0)
                om_buf_json_double(b, (double) (int64_t) ((double) (total - done) / rate * 10) / 10);
        else
                om_buf_lit(b, "null");
}

void om_routes_status(const struct om_store *s, struct om_buf *b) {
        const struct routes *r = (const struct routes *) s;
        const struct mirror *m = r->mirror && !r->mirror->ended ? r->mirror : NULL;
        bool turned = m && m->phase == PHASE_PRIMARY;

        om_buf_printf(b, "{\"revision\":%llu,\"phase\":\"%s\"", (unsigned long long) r->revision,
                m                   ? m->checking ? "check" : phase_names[m->phase]
                                          : r->mirror ? "ending"
                                    : "none");
        om_put_member(b, "storage", om_span_of(r->main->url->redacted));
        if (m) {
                om_put_member(b, "role", m->is_backup ? OM_SPAN("backup") : OM_SPAN("migration"));
                om_put_member(b, "from", om_span_of((turned ? m->target : r->main)->url->redacted));
                om_put_member(b, "to", om_span_of((turned ? r->main : m->target)->url->redacted));
                om_buf_printf(b, ",\"switching\":%s,\"queued\":%zu,\"refused\":%zu,\"started_at\":", m->switching ? "true" : "false",
                        m->n_dirty, m->n_refused);
                om_buf_json_time(b, m->started_ms);
                put_progress(b, m);
                if (m->failing_since_ms)
                        om_put_member(b, "error", om_span_of(m->error.message));
                else if (m->n_refused)
                        om_put_member(b, "error", om_span_of(m->refusal.message));
                om_buf_lit(b, ",\"verify\":");
                verify_put(m, b);
        }
        if (r->last_trouble.kind != OM_OK) {
                om_put_member(b, "trouble", om_span_of(r->last_trouble.message));
                om_put_member(b, "trouble_kind", om_span_of(om_kind_name(r->last_trouble.kind)));
        }
        om_buf_putc(b, '}');
}
