/* SPDX-License-Identifier: Apache-2.0 */
/*
 * top: topics, their agents and rates on a full screen.
 *
 * Each picture is made from three answers (health, bus.stats, metrics.get); rates are the difference of the counters to those of the
 * picture before. Topics are shown by what column the user sorts by. In a pipe one picture is printed, measured over one interval. A daemon
 * that is away is said so on the screen, and waited for.
 */
#include "ctl.h"
#include "doc.h"
#include "table.h"
#include "term.h"
#include "text.h"
#include "view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INTERVAL_MS = 1000 };

/* One reading of the daemon. */
struct sample {
        double at; /* term_seconds() */
        char *health, *stats, *metrics;
        struct om_json_value health_root, stats_root, metrics_root;
};

/* A line that can be sorted: a topic with its agents below. */
struct line {
        struct om_json_value topic; /* of bus.stats */
        double key;
};

enum sort { SORT_NAME, SORT_TASKS, SORT_LAG, SORT_PUBLISHED, SORT_DONE, SORT_FAILED, N_SORTS };
static const char *const sort_names[] = { "name", "tasks", "lag", "published", "done", "failed" };

struct top {
        struct ctl *ctl;
        struct sample now, before;
        enum sort sort;
        size_t scroll;
        int64_t interval_ms;
};

static void sample_deinit(struct sample *s) {
        free(s->health);
        free(s->stats);
        free(s->metrics);
        *s = (struct sample){ 0 };
}

static int ask(struct top *t, const char *method, char **ret, struct om_json_value *ret_root) {
        size_t len = 0;
        int r = omni_call(t->ctl->client, method, NULL, ret, &len);

        if (r >= 0) {
                *ret_root = doc_root((struct om_span){ *ret, len });
        }
        return r;
}

static int take_sample(struct top *t) {
        struct sample s = { .at = term_seconds() };
        int r = ask(t, "health", &s.health, &s.health_root);

        r = r < 0 ? r : ask(t, "bus.stats", &s.stats, &s.stats_root);
        r = r < 0 ? r : ask(t, "metrics.get", &s.metrics, &s.metrics_root);
        if (r < 0) {
                sample_deinit(&s);
                return r;
        }
        sample_deinit(&t->before);
        t->before = t->now;
        t->now = s;
        return 0;
}

/* -- rates --------------------------------------------------------------------------------------------------------- */

/* The element of `array` whose members `topic` and, where given, `agent` are these (raw JSON). */
static struct om_json_value find(struct om_json_value array, struct om_json_value topic, struct om_json_value agent) {
        struct doc_each each = doc_each(array);

        while (doc_next(&each)) {
                if (om_span_eq(doc_get(each.value, "topic").text, topic.text) &&
                        (!agent.type || om_span_eq(doc_get(each.value, "agent").text, agent.text))) {
                        return each.value;
                }
        }
        return (struct om_json_value){ 0 };
}

/* A counter's rate between the two samples; -1 where it is not known. A counter that fell is a daemon that was started anew. */
static double rate(struct top *t, const char *array, struct om_json_value topic, struct om_json_value agent, const char *counter) {
        double now = doc_number(doc_get(find(doc_get(t->now.metrics_root, array), topic, agent), counter), -1);
        double before = doc_number(doc_get(find(doc_get(t->before.metrics_root, array), topic, agent), counter), 0);
        double seconds = t->now.at - t->before.at;

        if (now < 0 || !t->before.metrics || seconds <= 0) {
                return -1;
        }
        return (now >= before ? now - before : now) / seconds;
}

static double total_rate(struct top *t, const char *counter) {
        struct doc_each each = doc_each(doc_get(t->now.metrics_root, "topics"));
        double sum = 0;

        if (!t->before.metrics) {
                return -1;
        }
        while (doc_next(&each)) {
                double r = rate(t, "topics", doc_get(each.value, "topic"), (struct om_json_value){ 0 }, counter);

                sum += r > 0 ? r : 0;
        }
        return sum;
}

static void put_rate(struct om_buf *b, double r) {
        if (r < 0) {
                om_buf_puts(b, "-");
        } else {
                text_put_rate(b, r);
        }
}

/* -- the table ----------------------------------------------------------------------------------------------------- */

static const struct table_column columns[] = { { "TOPIC, AGENT", false, false }, { "WORKERS", true, true }, { "TASKS", true, true },
        { "LAG", true, true }, { "LEASED", true, true }, { "RETRYING", true, true }, { "DEAD", true, true }, { "PUB/S", true, true },
        { "DONE/S", true, true }, { "FAIL/S", true, true }, { "P50", true, true }, { "P99", true, true } };
enum { N_COLUMNS = sizeof(columns) / sizeof(*columns) };

static void add_number(struct ctl *ctl, struct table *table, struct om_json_value v, enum ctl_style style) {
        struct om_buf b = OM_BUF_INIT;

        if (v.type == OM_JSON_NUMBER) {
                view_put_raw(&b, v);
        }
        table_add(table, om_buf_span(&b), doc_number(v, 0) > 0 ? style : STYLE_NONE);
        om_buf_deinit(&b);
}

static void add_rate(struct table *table, double r, enum ctl_style style) {
        struct om_buf b = OM_BUF_INIT;

        put_rate(&b, r);
        table_add(table, om_buf_span(&b), r > 0 ? style : STYLE_NONE);
        om_buf_deinit(&b);
}

static void add_latency(struct ctl *ctl, struct table *table, struct om_json_value v) {
        struct om_buf b = OM_BUF_INIT;

        if (v.type == OM_JSON_NUMBER) {
                text_put_duration(&b, doc_number(v, 0) / 1000, ctl->ascii);
        }
        table_add(table, om_buf_span(&b), STYLE_NONE);
        om_buf_deinit(&b);
}

static void add_name(struct table *table, const char *before, struct om_json_value name, const char *after, enum ctl_style style) {
        struct om_arena arena = { 0 };
        struct om_buf b = OM_BUF_INIT;

        om_buf_puts(&b, before);
        om_buf_put_span(&b, doc_text(name, &arena));
        om_buf_puts(&b, after);
        table_add(table, om_buf_span(&b), style);
        om_arena_deinit(&arena);
        om_buf_deinit(&b);
}

static void add_topic(struct top *t, struct table *table, struct om_json_value topic) {
        struct om_json_value name = doc_get(topic, "topic"), none = { 0 };
        struct doc_each each = doc_each(doc_get(topic, "groups"));
        size_t n = doc_count(doc_get(topic, "groups")), i = 0;
        struct ctl *ctl = t->ctl;

        add_name(table, "", name, "", STYLE_NAME);
        add_number(ctl, table, none, STYLE_NONE);
        add_number(ctl, table, doc_get(topic, "depth"), STYLE_NONE);
        for (int k = 0; k < 4; k++) {
                add_number(ctl, table, none, STYLE_NONE);
        }
        add_rate(table, rate(t, "topics", name, none, "published"), STYLE_NONE);
        add_rate(table, rate(t, "topics", name, none, "acked"), STYLE_GOOD);
        add_rate(table, rate(t, "topics", name, none, "failed"), STYLE_BAD);
        add_number(ctl, table, none, STYLE_NONE);
        add_number(ctl, table, none, STYLE_NONE);
        while (doc_next(&each)) {
                struct om_json_value agent = doc_get(each.value, "agent");
                struct om_json_value cell = find(doc_get(t->now.metrics_root, "agents"), name, agent);
                bool last = ++i == n, paused = doc_true(doc_get(each.value, "paused"));

                add_name(table,
                        ctl->ascii     ? (last ? "`- " : "|- ")
                                : last ? "└─ "
                                       : "├─ ",
                        agent, paused ? " (paused)" : "", paused ? STYLE_WARN : STYLE_NONE);
                add_number(ctl, table, doc_get(each.value, "workers"), STYLE_NONE);
                add_number(ctl, table, none, STYLE_NONE);
                add_number(ctl, table, doc_get(each.value, "lag"), STYLE_NONE);
                add_number(ctl, table, doc_get(each.value, "leased"), STYLE_NONE);
                add_number(ctl, table, doc_get(each.value, "retrying"), STYLE_WARN);
                add_number(ctl, table, doc_get(each.value, "dead"), STYLE_BAD);
                add_number(ctl, table, none, STYLE_NONE);
                add_rate(table, rate(t, "agents", name, agent, "processed"), STYLE_GOOD);
                add_rate(table, rate(t, "agents", name, agent, "failed"), STYLE_BAD);
                add_latency(ctl, table, doc_get(cell, "latency_ms.p50"));
                add_latency(ctl, table, doc_get(cell, "latency_ms.p99"));
        }
}

static double key_of(struct top *t, struct om_json_value topic) {
        static const char *const counters[] = { [SORT_PUBLISHED] = "published", [SORT_DONE] = "acked", [SORT_FAILED] = "failed" };
        struct doc_each each = doc_each(doc_get(topic, "groups"));
        double lag = 0;

        switch (t->sort) {
        case SORT_TASKS:
                return doc_number(doc_get(topic, "depth"), 0);
        case SORT_LAG:
                while (doc_next(&each)) {
                        lag += doc_number(doc_get(each.value, "lag"), 0);
                }
                return lag;
        case SORT_PUBLISHED:
        case SORT_DONE:
        case SORT_FAILED:
                return rate(t, "topics", doc_get(topic, "topic"), (struct om_json_value){ 0 }, counters[t->sort]);
        case SORT_NAME:
        case N_SORTS:
                break;
        }
        return 0;
}

/* By the key, largest first; by name where that is equal. */
static int compare_lines(const void *a, const void *b) {
        const struct line *x = a, *y = b;
        struct om_span p = doc_get(x->topic, "topic").text, q = doc_get(y->topic, "topic").text;
        int r = memcmp(p.p ? p.p : "", q.p ? q.p : "", p.len < q.len ? p.len : q.len);

        if (x->key != y->key) {
                return x->key < y->key ? 1 : -1;
        }
        return r ? r : p.len < q.len ? -1 : p.len > q.len;
}

static void put_table(struct top *t) {
        struct om_json_value topics = doc_get(t->now.stats_root, "topics");
        struct doc_each each = doc_each(topics);
        size_t n = doc_count(topics), i = 0;
        struct line *lines = calloc(n + 1, sizeof(*lines));
        struct ctl *ctl = t->ctl;
        struct table table;

        if (!lines) {
                return;
        }
        for (; i < n && doc_next(&each); i++) {
                lines[i] = (struct line){ .topic = each.value, .key = key_of(t, each.value) };
        }
        qsort(lines, i, sizeof(*lines), compare_lines);
        t->scroll = t->scroll < i ? t->scroll : i ? i - 1 : 0;
        table_init(&table, columns, N_COLUMNS);
        for (size_t k = t->scroll; k < i; k++) {
                add_topic(t, &table, lines[k].topic);
        }
        if (i) {
                table_put(ctl, &ctl->out, &table, ctl->width);
        } else {
                om_buf_puts(&ctl->out, "No topics yet.\n");
        }
        table_deinit(&table);
        free(lines);
}

static void put_head(struct top *t) {
        static const char *const counters[][2] = { { "published", "published" }, { "delivered", "delivered" }, { "acked", "done" },
                { "failed", "failed" } };
        struct om_json_value health = t->now.health_root, status = doc_get(health, "status");
        struct ctl *ctl = t->ctl;
        struct om_buf *b = &ctl->out;

        om_buf_puts(b, "OmniDaemon ");
        view_put_raw(b, doc_get(health, "version"));
        om_buf_puts(b, "  ");
        ctl_style(ctl, b, view_status_style(status));
        view_put_raw(b, status);
        ctl_style_end(ctl, b);
        om_buf_puts(b, "  up ");
        text_put_duration(b, doc_number(doc_get(health, "uptime_s"), 0), ctl->ascii);
        om_buf_puts(b, "  bus ");
        view_put_raw(b, doc_get(health, "bus.name"));
        om_buf_puts(b, "  storage ");
        view_put_raw(b, doc_get(health, "storage.name"));
        om_buf_puts(b, "  connections ");
        view_put_raw(b, doc_get(health, "connections"));
        om_buf_puts(b, "  memory ");
        text_put_size(b, doc_number(doc_get(health, "memory_bytes"), 0));
        om_buf_puts(b, "\nTasks a second ");
        for (size_t i = 0; i < sizeof(counters) / sizeof(*counters); i++) {
                om_buf_printf(b, "  %s ", counters[i][1]);
                ctl_style(ctl, b, STYLE_HEAD);
                put_rate(b, total_rate(t, counters[i][0]));
                ctl_style_end(ctl, b);
        }
        om_buf_puts(b, "\n\n");
}

static void put_picture(struct top *t) {
        struct ctl *ctl = t->ctl;

        if (t->now.health) {
                put_head(t);
                put_table(t);
        }
        if (ctl->out_tty) {
                ctl_style(ctl, &ctl->out, STYLE_DIM);
                om_buf_printf(&ctl->out, "\nq ends  s sorts (by %s)  arrows scroll", sort_names[t->sort]);
                ctl_style_end(ctl, &ctl->out);
        }
}

/* -- the loop ------------------------------------------------------------------------------------------------------ */

/* Does what a key says; false ends. */
static bool obey(struct top *t, int key) {
        switch (key) {
        case 'q':
        case 27:
        case -1:
                return false;
        case 's':
                t->sort = (t->sort + 1) % N_SORTS;
                break;
        case TERM_DOWN:
        case 'j':
                t->scroll++;
                break;
        case TERM_UP:
        case 'k':
                t->scroll -= t->scroll > 0;
                break;
        case TERM_PAGE_DOWN:
                t->scroll += 10;
                break;
        case TERM_PAGE_UP:
                t->scroll -= t->scroll > 10 ? 10 : t->scroll;
                break;
        default:
                break;
        }
        return true;
}

static void draw(struct top *t) {
        om_buf_clear(&t->ctl->out);
        put_picture(t);
        if (om_buf_ok(&t->ctl->out)) {
                term_draw(t->ctl->out.data, t->ctl->out.len);
        }
        om_buf_clear(&t->ctl->out);
}

/* Waits for the next picture's time, drawing anew at each key. False: it is to end. */
static bool rest(struct top *t) {
        double until = term_seconds() + (double) t->interval_ms / 1000;

        for (;;) {
                double left = until - term_seconds();
                int key = left > 0 ? term_key((int64_t) (left * 1000) + 1) : 0;

                if (key == 0 && left <= 0) {
                        return true;
                }
                if (key) {
                        t->ctl->width = term_columns(1);
                        if (!obey(t, key)) {
                                return false;
                        }
                        draw(t);
                        if (key == ' ') {
                                return true;
                        }
                }
        }
}

static int run_screen(struct top *t, int64_t count) {
        struct ctl *ctl = t->ctl;

        term_enter(true);
        for (int64_t i = 0; !count || i < count; i++) {
                int r = take_sample(t);

                ctl->now = term_now();
                ctl->width = term_columns(1);
                if (r < 0) {
                        om_buf_clear(&ctl->out);
                        ctl_style(ctl, &ctl->out, STYLE_BAD);
                        om_buf_puts(&ctl->out, "No answer from the daemon: ");
                        text_put_safe(&ctl->out, om_span_of(omni_strerror(ctl->client)));
                        ctl_style_end(ctl, &ctl->out);
                        om_buf_puts(&ctl->out, "\n\n");
                        put_picture(t);
                        if (om_buf_ok(&ctl->out)) {
                                term_draw(ctl->out.data, ctl->out.len);
                        }
                        om_buf_clear(&ctl->out);
                } else {
                        draw(t);
                }
                if ((count && i + 1 == count) || !rest(t)) {
                        break;
                }
        }
        term_leave();
        return 0;
}

static int run_pipe(struct top *t, int64_t count) {
        int r = take_sample(t);

        for (int64_t i = 0; r >= 0 && i < count; i++) {
                term_key(t->interval_ms);
                r = take_sample(t);
                if (r >= 0) {
                        t->ctl->now = term_now();
                        if (i) {
                                om_buf_putc(&t->ctl->out, '\n');
                        }
                        put_picture(t);
                        if (ctl_flush(t->ctl)) {
                                return CTL_FAILED;
                        }
                }
        }
        return r < 0 ? ctl_report(t->ctl, r, omni_strerror(t->ctl->client)) : 0;
}

int cmd_top(struct ctl *ctl) {
        struct top t = { .ctl = ctl, .interval_ms = args_number(&ctl->args, "interval", INTERVAL_MS) };
        int64_t count = args_number(&ctl->args, "count", 0);
        int r = ctl_connect(ctl);

        if (r == 0) {
                r = ctl->out_tty ? run_screen(&t, count) : run_pipe(&t, count ? count : 1);
        }
        sample_deinit(&t.now);
        sample_deinit(&t.before);
        return r;
}
