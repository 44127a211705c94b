/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The figures: what each is called, what it is compared with, what was measured, and how that is shown.
 *
 * Always true: a figure that is compared stands after what it is compared with, and both were measured in each round, so their n-th values
 * belong together. A comparison is the median of the rounds' own, not one of medians.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { ROUNDS_MAX = 64 };
enum how { ALONE, TIMES, PLUS }; /* beside another: how many times as much; how much more */

static struct figure {
        const char *name, *unit, *what;
        const char *beside;
        enum how how;
        double target; /* TIMES: at least so many; PLUS: at most so much more; ALONE: at most. 0: none */
        bool wanted;
        char missing[160];
        int n;
        double values[ROUNDS_MAX], sorted[ROUNDS_MAX];
} figures[] = {
        { "raw_lmdb_puts_1600", "puts/s", "LMDB alone, 1,600 puts a commit (16 x 100)" },
        { "raw_lmdb_puts_100", "puts/s", "LMDB alone, 100 puts a commit" },
        { "publish_100x16", "tasks/s", "durable publish, tasks[] of 100, 16 in flight", "raw_lmdb_puts_1600", TIMES, 0.5 },
        { "publish_1x1000", "tasks/s", "single, 1,000 in flight", "raw_lmdb_puts_1600", TIMES },
        { "publish_1x100", "tasks/s", "single, 100 in flight", "raw_lmdb_puts_100", TIMES },
        { "publish_1x1", "tasks/s", "one at a time" },
        { "publish_memory_100x16", "tasks/s", "tasks[] of 100, 16 in flight, without fsync" },
        { "whole_way_plain", "tasks/s", "publish, deliver, ack; durable; no results", "raw_lmdb_puts_1600", TIMES, 0.2 },
        { "whole_way_results", "tasks/s", "the same, each result saved durably", "raw_lmdb_puts_1600", TIMES },
        { "beanstalkd_puts", "puts/s", "beanstalkd -f0, 100 to 200 puts pipelined" },
        { "beanstalkd_ours", "tasks/s", "publish_100x16 beside it", "beanstalkd_puts", TIMES, 50 },
        { "nats_puts", "puts/s", "NATS JetStream js_PublishAsync, file storage, not synced" },
        { "nats_ours", "tasks/s", "publish_100x16 beside it", "nats_puts", TIMES, 2 },
        { "raw_lmdb_commit_p50", "us", "LMDB alone, one put a commit" },
        { "raw_lmdb_commit_p99", "us", "" },
        { "raw_lmdb_commit_p999", "us", "" },
        { "latency_durable_p50", "us", "publish to handler, one at a time, durable", "raw_lmdb_commit_p50", PLUS, 80 },
        { "latency_durable_p99", "us", "", "raw_lmdb_commit_p99", PLUS },
        { "latency_durable_p999", "us", "", "raw_lmdb_commit_p999", PLUS },
        { "latency_memory_p50", "us", "the same without fsync: what the daemon itself adds", NULL, ALONE, 60 },
        { "latency_memory_p99", "us", "", NULL, ALONE, 250 },
        { "latency_memory_p999", "us", "" },
        { "ping_p50", "us", "a frame there and back" },
        { "ping_p99", "us", "" },
        { "ping_p999", "us", "" },
        { "idle_memory", "MiB", "resident, no client", NULL, ALONE, 8 },
        { "idle_ready", "ms", "from the start of the program to its first answer, empty", NULL, ALONE, 30 },
        { "held_1000_publish", "us/task", "with 10^3 tasks held: publishing 20,000 more (no fsync, as all of held_)" },
        { "held_1000000_publish", "us/task", "with 10^6", "held_1000_publish", TIMES },
        { "held_1000_whole_way", "us/task", "a task's whole way on another topic, 10^3 held" },
        { "held_1000000_whole_way", "us/task", "with 10^6", "held_1000_whole_way", TIMES },
        { "held_1000000_drain", "us/task", "delivering and acknowledging the first 20,000 of 10^6 held" },
        { "held_1000000_memory", "MiB", "resident after that, file pages of LMDB left out" },
        { "held_1000000_ready", "ms", "start to first answer with 10^6 tasks held" },
        { "topics_1", "us/task", "whole way over 1 topic, the agent on a pattern (no fsync)" },
        { "topics_100", "us/task", "over 100", "topics_1", TIMES },
        { "topics_10000", "us/task", "over 10,000", "topics_1", TIMES },
        { "connections_1", "us/task", "whole way, nobody else connected (no fsync)" },
        { "connections_10000", "us/task", "beside 10,000 idle connections", "connections_1", TIMES },
        { "connections_memory", "KiB", "resident for each idle connection" },
        { "results_1000_save", "us/task", "whole way with results, 10^3 records there (nothing is synced)" },
        { "results_1000000_save", "us/task", "with 10^6", "results_1000_save", TIMES },
        { "results_1000_get", "us", "task.get, one at a time, 10^3 records there" },
        { "results_1000000_get", "us", "with 10^6", "results_1000_get", TIMES },
        { "results_1000000_memory", "MiB", "resident, with 10^6 records there" },
        { "results_1000000_ready", "ms", "start to first answer with 10^6 records" },
};
enum { N_FIGURES = sizeof(figures) / sizeof(figures[0]) };
static bool chosen;

static struct figure *find(const char *name) {
        for (int i = 0; name && i < N_FIGURES; i++)
                if (strcmp(figures[i].name, name) == 0)
                        return &figures[i];
        return NULL;
}

static struct figure *get(const char *name) {
        struct figure *f = find(name);
        if (!f)
                die("no such figure", name);
        return f;
}

void figure(const char *name, double value) {
        struct figure *f = get(name);
        if (f->n < ROUNDS_MAX)
                f->values[f->n++] = value;
}

double figure_last(const char *name) {
        struct figure *f = get(name);
        return f->n ? f->values[f->n - 1] : 0;
}

void figure_missing(const char *name, const char *why) {
        struct figure *f = get(name);
        snprintf(f->missing, sizeof(f->missing), "%s", why);
}

static int by_value(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;
        return x < y ? -1 : x > y;
}

void figure_quantiles(const char *name, double *values, long n) {
        static const struct {
                const char *ending;
                double q;
        } quantiles[] = { { "p50", 0.5 }, { "p99", 0.99 }, { "p999", 0.999 } };
        char full[64];
        qsort(values, (size_t) n, sizeof(double), by_value);
        for (int i = 0; i < 3; i++) {
                snprintf(full, sizeof(full), "%s_%s", name, quantiles[i].ending);
                figure(full, values[(long) (quantiles[i].q * (double) (n - 1))]);
        }
}

void table_choose(const char *word) {
        chosen = true;
        for (int i = N_FIGURES - 1; i >= 0; i--) {
                if (strstr(figures[i].name, word))
                        figures[i].wanted = true;
                if (figures[i].wanted && figures[i].beside)
                        find(figures[i].beside)->wanted = true;
                if (figures[i].wanted && strstr(figures[i].name, "_ours"))
                        find("publish_100x16")->wanted = true;
        }
}

bool table_wants(const char *name) {
        for (int i = 0; i < N_FIGURES; i++)
                if (strncmp(figures[i].name, name, strlen(name)) == 0 && (!chosen || figures[i].wanted))
                        return true;
        return false;
}

static double median(struct figure *f) {
        memcpy(f->sorted, f->values, (size_t) f->n * sizeof(double));
        qsort(f->sorted, (size_t) f->n, sizeof(double), by_value);
        return f->sorted[f->n / 2];
}

/* What it is in comparison; false: nothing was measured to compare it with. */
static bool compared(struct figure *f, double *ret) {
        struct figure *beside = find(f->beside), rounds = { .n = 0 };
        if (!beside || f->n == 0 || beside->n < f->n)
                return false;
        for (; rounds.n < f->n; rounds.n++) {
                double a = f->values[rounds.n], b = beside->values[rounds.n];
                rounds.values[rounds.n] = f->how == TIMES ? a / b : a - b;
        }
        *ret = median(&rounds);
        return true;
}

static bool met(struct figure *f, double value) { return f->how == TIMES ? value >= f->target : value <= f->target; }

void table_print(void) {
        printf("%-24s %12s %12s %12s  %-8s %9s %10s  %s\n", "", "median", "least", "most", "unit", "beside", "target", "");
        for (int i = 0; i < N_FIGURES; i++) {
                struct figure *f = &figures[i];
                char comparison[24] = "", target[24] = "";
                double value = 0;
                if (f->missing[0])
                        printf("%-24s %12s %67s  %s\n", f->name, "-", "", f->missing);
                if (f->n == 0)
                        continue;
                bool is = compared(f, &value);
                if (is)
                        snprintf(comparison, sizeof(comparison), f->how == TIMES ? "x %.2f" : "%+.0f", value);
                else
                        value = median(f);
                if (f->target > 0 && (is || f->how == ALONE))
                        snprintf(target, sizeof(target), "%s %g %s", f->how == TIMES ? ">=" : "<=", f->target,
                                met(f, value) ? "ok" : "MISS");
                double m = median(f);
                printf("%-24s %12.1f %12.1f %12.1f  %-8s %9s %10s  %s%s%s\n", f->name, m, f->sorted[0], f->sorted[f->n - 1], f->unit,
                        comparison, target, f->what, is ? "; beside " : "", is ? f->beside : "");
        }
}

void table_json(const char *path, int rounds) {
        FILE *out = fopen(path, "we");
        if (!out)
                die(path, strerror(errno));
        fprintf(out, "{\"runs\":%d,\"content_bytes\":%d,\"figures\":[", rounds, CONTENT_BYTES);
        const char *comma = "";
        for (int i = 0; i < N_FIGURES; i++) {
                struct figure *f = &figures[i];
                double value;
                if (f->n == 0 && !f->missing[0])
                        continue;
                fprintf(out, "%s\n{\"name\":\"%s\",\"unit\":\"%s\"", comma, f->name, f->unit);
                comma = ",";
                if (f->n == 0) {
                        fprintf(out, ",\"missing\":\"%s\"}", f->missing);
                        continue;
                }
                double m = median(f);
                fprintf(out, ",\"median\":%.2f,\"least\":%.2f,\"most\":%.2f", m, f->sorted[0], f->sorted[f->n - 1]);
                if (compared(f, &value))
                        fprintf(out, ",\"beside\":\"%s\",\"%s\":%.3f", f->beside, f->how == TIMES ? "ratio" : "more", value);
                if (f->target > 0)
                        fprintf(out, ",\"target\":%g", f->target);
                fprintf(out, "}");
        }
        fprintf(out, "\n]}\n");
        if (fclose(out) != 0)
                die(path, strerror(errno));
}
