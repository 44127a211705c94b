/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweep: where no lifecycle rules delete what has expired, it is looked for, sweep_interval after something was written that expires,
 * or when the first of what is left expires, if that is later. Without such writes nothing runs.
 *
 *   places of results ──▶ for each that has expired: its result, where that names it, then the place
 *   metrics           ──▶ those that have expired, together
 *   keys              ──▶ for each: when does it expire? ──▶ deleted GRACE_MS after that
 *
 * Always true: what has not expired is not deleted; a key that was claimed again just now is not either, for it would have to be within the
 * moment between the look and the deletion, and GRACE_MS after it was free. One request at a time: it is in no hurry.
 *
 * Loop thread.
 */
#include "store_state.h"

enum { GRACE_MS = 3600 * 1000 };
enum phase { RESULTS, METRICS, KEYS, PHASES };

struct s3_sweep {
        struct om_store *store;
        struct event *timer;
        bool runs;
        enum phase phase;
        struct s3_page page;
        struct s3_drop drop;
        struct s3_call call;
        size_t at;
        char name[S3_NAME_MAX];
        int64_t next_ms; /* when the first of what is left expires; 0: nothing will */
        uint64_t swept;
};

static void step(struct s3_sweep *w);

static void arm(struct s3_sweep *w, int64_t ms) {
        struct timeval tv;

        ms = ms / 2 + (int64_t) (om_random_u64() % (uint64_t) (ms / 2 + 1)); /* several daemons need not do it at once */
        tv = (struct timeval){ ms / 1000, (ms % 1000) * 1000 };
        event_add(w->timer, &tv);
}

static void over(struct s3_sweep *w, int status) {
        int64_t left = w->next_ms - om_now_ms(), every = w->store->settings.sweep_ms;

        w->runs = false;
        s3_page_clear(&w->page);
        if (w->swept)
                om_host_log(w->store->host, OM_LOG_DEBUG, "S3: %llu expired objects are deleted", (unsigned long long) w->swept);
        if (status < 0)
                arm(w, 2 * every);
        else if (w->next_ms)
                arm(w, 2 * (left > every ? left : every));
}

static void expires_later(struct s3_sweep *w, int64_t ms) {
        if (ms && (!w->next_ms || ms < w->next_ms))
                w->next_ms = ms;
}

static void request(
        struct s3_sweep *w, const char *method, const char *name, void (*done)(struct s3_call *, int, const struct om_error *)) {
        s3_call_clear(&w->call);
        w->call = (struct s3_call){ .client = &w->store->primary, .method = method, .name = name, .done = done, .ctx = w };
        s3_call_start(&w->call);
}

/* -- one after the other --------------------------------------------------------------------------------------------------------------- */

static const char *current(const struct s3_sweep *w) { return w->page.names[w->at].name; }

static void next(struct s3_sweep *w) {
        w->at++;
        step(w);
}

static void place_deleted(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_sweep *w = c->ctx;

        if (status < 0 && status != -ENOENT) {
                over(w, status);
                return;
        }
        w->swept++;
        next(w);
}

static void result_deleted(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_sweep *w = c->ctx;

        if (status < 0 && status != -ENOENT)
                over(w, status);
        else
                request(w, "DELETE", current(w), place_deleted);
}

static void result_seen(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_sweep *w = c->ctx;
        char index[S3_NAME_MAX];

        s3_meta(c, "index", index, sizeof index);
        if (status < 0 && status != -ENOENT)
                over(w, status);
        else if (status == 0 && strcmp(index, current(w)) == 0)
                request(w, "DELETE", w->name, result_deleted);
        else /* written anew since, or gone */
                request(w, "DELETE", current(w), place_deleted);
}

static void key_seen(struct s3_call *c, int status, const struct om_error *e) {
        struct s3_sweep *w = c->ctx;
        char text[24];
        int64_t expires;

        s3_meta(c, "expires", text, sizeof text);
        expires = strtoll(text, NULL, 10);
        if (status < 0 && status != -ENOENT)
                over(w, status);
        else if (status == 0 && expires && expires + GRACE_MS <= om_now_ms())
                request(w, "DELETE", current(w), place_deleted);
        else {
                if (status == 0 && expires)
                        expires_later(w, expires + GRACE_MS);
                next(w);
        }
}

/* -- pages -------------------------------------------------------------------------------------------------------------------------------
 */

static void ask(struct s3_sweep *w) {
        static const char *const prefixes[PHASES] = { "t/", "m/", "k/" };

        w->at = 0;
        snprintf(w->page.prefix, sizeof w->page.prefix, "%s", prefixes[w->phase]);
        s3_page_start(&w->page);
}

static void page_over(struct s3_sweep *w) {
        if (w->page.more && w->page.n)
                snprintf(w->page.after, sizeof w->page.after, "%s", w->page.names[w->page.n - 1].name);
        else {
                w->page.after[0] = 0;
                if (++w->phase == PHASES) {
                        over(w, 0);
                        return;
                }
        }
        ask(w);
}

static void dropped(struct s3_drop *d, int status, const struct om_error *e) {
        struct s3_sweep *w = d->ctx;

        if (status < 0)
                over(w, status);
        else
                page_over(w);
}

static void step(struct s3_sweep *w) {
        int64_t now = om_now_ms();
        struct s3_index index;

        for (; w->at < w->page.n; w->at++) {
                if (w->phase == KEYS) {
                        request(w, "HEAD", current(w), key_seen);
                        return;
                }
                if (!s3_index_read(current(w), &index) || !index.expires_ms)
                        continue;
                if (index.expires_ms > now)
                        expires_later(w, index.expires_ms);
                else if (w->phase == METRICS) {
                        s3_drop_add(&w->drop, current(w));
                        w->swept++;
                } else {
                        snprintf(w->name, sizeof w->name, "r/%.250s", index.rest);
                        request(w, "HEAD", w->name, result_seen);
                        return;
                }
        }
        s3_drop_start(&w->drop);
}

static void named(struct s3_page *p, int status, const struct om_error *e) {
        struct s3_sweep *w = p->ctx;

        if (status < 0)
                over(w, status);
        else
                step(w);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx) {
        struct s3_sweep *w = ctx;

        if (w->runs || w->store->closing)
                return;
        w->runs = true;
        w->phase = RESULTS;
        w->next_ms = 0;
        w->swept = 0;
        w->page.after[0] = 0;
        ask(w);
}

/* -- the entries --------------------------------------------------------------------------------------------------------------------------
 */

void s3_sweep_due(struct om_store *s) {
        struct s3_sweep *w = s->sweep;

        if (s->rules == RULES_SET || s->closing)
                return;
        if (!w) {
                w = calloc(1, sizeof *w);
                if (!w)
                        return;
                w->store = s;
                w->page = (struct s3_page){ .client = &s->primary, .done = named, .ctx = w };
                w->drop = (struct s3_drop){ .client = &s->primary, .done = dropped, .ctx = w };
                w->timer = evtimer_new(s->host->base, on_timer, w);
                if (!w->timer) {
                        free(w);
                        return;
                }
                s->sweep = w;
        }
        if (!w->runs && !event_pending(w->timer, EV_TIMEOUT, NULL))
                arm(w, s->settings.sweep_ms);
}

bool s3_sweep_runs(const struct om_store *s) { return s->sweep && s->sweep->runs; }

void s3_sweep_free(struct om_store *s) {
        struct s3_sweep *w = s->sweep;

        if (!w)
                return;
        s3_call_abort(&w->call);
        s3_page_abort(&w->page);
        s3_call_abort(&w->drop.call);
        s3_drop_clear(&w->drop);
        event_free(w->timer);
        free(w);
        s->sweep = NULL;
}
