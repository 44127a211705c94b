/* SPDX-License-Identifier: Apache-2.0 */
/* Histograms against sorted samples; cells; snapshots in the storage, and that an unchanged daemon writes none. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../daemon/metrics.h"
#include "../lib/fake_core.h"
#include "../lib/suite.h"

/* -- histograms ---------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return (x > y) - (x < y);
}

START_TEST(test_a_quantile_is_at_most_one_sixteenth_above_the_sample_of_that_rank) {
        enum { N = 20000 };
        static uint64_t samples[N];
        static const double qs[] = { 0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1 };
        struct om_histogram *h = calloc(1, sizeof *h);

        for (int i = 0; i < N; i++) {
                samples[i] = om_random_u64() >> (30 + om_random_u64() % 34);
                om_histogram_add(h, samples[i]);
        }
        qsort(samples, N, sizeof *samples, by_size);
        for (size_t i = 0; i < sizeof qs / sizeof *qs; i++) {
                size_t rank = (size_t) (qs[i] * N);
                uint64_t exact = samples[rank > 0 ? rank - 1 : 0], got = om_histogram_quantile(h, qs[i]);

                ck_assert_msg(got >= exact && got <= exact + exact / 16, "q %g: %llu, exactly %llu", qs[i], (unsigned long long) got,
                        (unsigned long long) exact);
        }
        free(h);
}
END_TEST

START_TEST(test_small_latencies_are_exact) {
        struct om_histogram *h = calloc(1, sizeof *h);

        for (uint64_t us = 0; us < 16; us++)
                om_histogram_add(h, us);
        for (unsigned i = 1; i <= 16; i++)
                ck_assert_uint_eq(om_histogram_quantile(h, i / 16.0), i - 1);
        free(h);
}
END_TEST

START_TEST(test_an_empty_histogram_and_one_with_a_week_in_it) {
        struct om_histogram *h = calloc(1, sizeof *h);
        uint64_t week = 7ull * 24 * 3600 * 1000000;

        ck_assert_uint_eq(om_histogram_quantile(h, 0.5), 0);
        om_histogram_add(h, week);
        om_histogram_add(h, UINT64_MAX);
        om_histogram_add(h, 5);
        ck_assert_uint_eq(om_histogram_quantile(h, 0.3), 5);
        ck_assert_uint_eq(om_histogram_quantile(h, 1), UINT64_MAX);
        free(h);
}
END_TEST

/* -- cells and snapshots ------------------------------------------------------------------------------------------- */

static struct om_span span(const char *text) { return om_span_of(text); }

static const char *written(const char *topic) {
        static struct om_buf b;

        om_buf_clear(&b);
        om_metrics_write(fake.core->metrics, span(topic), &b);
        om_buf_putc(&b, '\0');
        ck_assert_int_eq(om_json_check((struct om_span){ b.data, b.len - 1 }, 10, NULL), 0);
        return b.data;
}

START_TEST(test_a_cell_is_found_again_and_never_moves) {
        struct om_metrics *m = fake.core->metrics;
        struct om_topic_metrics *first = om_metrics_topic(m, span("t")), *other;
        char name[20];

        for (int i = 0; i < 1000; i++) {
                snprintf(name, sizeof name, "t%d", i);
                other = om_metrics_topic(m, span(name));
                ck_assert_ptr_ne(other, first);
        }
        ck_assert_ptr_eq(om_metrics_topic(m, span("t")), first);
        ck_assert_ptr_ne(om_metrics_agent(m, span("a"), span("bc")), om_metrics_agent(m, span("ab"), span("c")));
        ck_assert_ptr_eq(om_metrics_agent(m, span("a"), span("bc")), om_metrics_agent(m, span("a"), span("bc")));
}
END_TEST

START_TEST(test_topics_beyond_the_bound_are_counted_together) {
        struct om_metrics *m = fake.core->metrics;
        struct om_topic_metrics *last = NULL, *cell;
        char name[20];

        for (int i = 0; i < 50010; i++) {
                snprintf(name, sizeof name, "t%d", i);
                cell = om_metrics_topic(m, span(name));
                if (i > 50000)
                        ck_assert_ptr_eq(cell, last);
                last = cell;
        }
        ck_assert_ptr_eq(om_metrics_topic(m, span("(others)")), last);
}
END_TEST

START_TEST(test_metrics_are_told_for_all_topics_or_one) {
        struct om_metrics *m = fake.core->metrics;
        struct om_agent_metrics *agent = om_metrics_agent(m, span("a\"b"), span("worker"));
        const char *text;

        om_metrics_topic(m, span("a\"b"))->published = 7;
        om_metrics_topic(m, span("c"))->published = 9;
        agent->processed = 2;
        agent->latency = calloc(1, sizeof *agent->latency);
        om_histogram_add(agent->latency, 1500);
        text = written(NULL);
        ck_assert_ptr_nonnull(strstr(text, "{\"topic\":\"a\\\"b\",\"published\":7,"));
        ck_assert_ptr_nonnull(strstr(text, "{\"topic\":\"c\",\"published\":9,"));
        ck_assert_ptr_nonnull(strstr(text, "\"latency_ms\":{\"p50\":1.5,\"p99\":1.5,\"p999\":1.5,\"max\":1.5}"));
        text = written("c");
        ck_assert_ptr_null(strstr(text, "worker"));
        ck_assert_ptr_nonnull(strstr(text, "\"topics\":[{\"topic\":\"c\",\"published\":9,"));
}
END_TEST

START_TEST(test_what_changed_is_snapshotted_and_nothing_is_written_afterwards) {
        struct om_metrics *m = fake.core->metrics;

        om_metrics_topic(m, span("t"))->published = 3;
        om_metrics_topic(m, span("quiet"));
        om_metrics_changed(m);
        fake_run_ms(60);
        ck_assert_uint_eq(mem.entries, 1);
        ck_assert_ptr_nonnull(
                strstr(mem_stored(OM_STORE_METRICS, "", ""), "{\"event\":\"topic_snapshot\",\"topic\":\"t\",\"published\":3,"));
        ck_assert_int_eq(om_json_check(span(mem_stored(OM_STORE_METRICS, "", "")), 10, NULL), 0);
        fake_run_ms(60);
        ck_assert_uint_eq(mem.entries, 1);
}
END_TEST

START_TEST(test_a_snapshot_of_many_cells_is_spread_over_intervals) {
        struct om_metrics *m = fake.core->metrics;
        char name[20];

        for (int i = 0; i < 1200; i++) {
                snprintf(name, sizeof name, "t%d", i);
                om_metrics_topic(m, span(name))->published = 1;
        }
        om_metrics_changed(m);
        for (int ms = 0; ms < 5000 && mem.entries < 1200; ms += 10)
                fake_run_ms(10);
        ck_assert_uint_eq(mem.entries, 1200);
}
END_TEST

START_TEST(test_a_snapshot_waits_for_the_storage) {
        struct om_metrics *m = fake.core->metrics;

        mem_store_state(OM_STORE_CONNECTING);
        om_metrics_topic(m, span("t"))->published = 3;
        om_metrics_changed(m);
        fake_run_ms(50);
        ck_assert_uint_eq(mem.entries, 0);
        mem_store_state(OM_STORE_READY);
        fake_run_ms(50);
        ck_assert_uint_eq(mem.entries, 1);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("metrics");
        TCase *histograms = tcase_create("histograms"), *cells = tcase_create("cells");

        tcase_add_test(histograms, test_a_quantile_is_at_most_one_sixteenth_above_the_sample_of_that_rank);
        tcase_add_test(histograms, test_small_latencies_are_exact);
        tcase_add_test(histograms, test_an_empty_histogram_and_one_with_a_week_in_it);
        tcase_add_checked_fixture(cells, fake_set_up, fake_tear_down);
        tcase_add_test(cells, test_a_cell_is_found_again_and_never_moves);
        tcase_add_test(cells, test_topics_beyond_the_bound_are_counted_together);
        tcase_add_test(cells, test_metrics_are_told_for_all_topics_or_one);
        tcase_add_test(cells, test_what_changed_is_snapshotted_and_nothing_is_written_afterwards);
        tcase_add_test(cells, test_a_snapshot_of_many_cells_is_spread_over_intervals);
        tcase_add_test(cells, test_a_snapshot_waits_for_the_storage);
        suite_add_tcase(suite, histograms);
        suite_add_tcase(suite, cells);
        return om_test_main(suite);
}
