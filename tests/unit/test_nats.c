/* SPDX-License-Identifier: Apache-2.0 */
/* NATS: what is pure. How topics become subjects and names, what a delivery's reply subject says, what answers hold, and what is wrong with
 * a URL. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/nats/json.h"
#include "../../backends/nats/names.h"
#include "../../backends/nats/settings.h"
#include "../../backends/nats/store_state.h"
#include "../../proto/task.h"
#include "../lib/suite.h"

/* -- names ----------------------------------------------------------------------------------------------------------- */

static void subject_is(const char *topic, size_t len, const char *expected) {
        struct om_buf b = OM_BUF_INIT, back = OM_BUF_INIT;
        nats_subject_encode(&b, (struct om_span){ topic, len });
        ck_assert_msg(om_span_is(om_buf_span(&b), expected), "%.*s", OM_PRI(om_buf_span(&b)));
        ck_assert(nats_subject_decode(&back, om_buf_span(&b)));
        ck_assert(om_span_eq(om_buf_span(&back), (struct om_span){ topic, len }));
        om_buf_deinit(&b);
        om_buf_deinit(&back);
}

START_TEST(test_topics_are_subjects_that_other_programs_would_write) {
        subject_is("greet", 5, "greet");
        subject_is("orders.eu.new", 13, "orders.eu.new");
        subject_is("gr\xc3\xbc\xc3\x9f", 6, "gr\xc3\xbc\xc3\x9f");
}
END_TEST

START_TEST(test_what_a_subject_cannot_hold_is_escaped_and_comes_back) {
        subject_is("a b*c>d%e", 9, "a%20b%2Ac%3Ed%25e");
        subject_is("a\0b\tc\x7f", 6, "a%00b%09c%7F");
        subject_is(".a..b.", 6, "%2Ea.%2Eb%2E");
        subject_is(".", 1, "%2E");
}
END_TEST

START_TEST(test_any_bytes_make_a_legal_subject_that_reads_back) {
        unsigned char topic[OM_TOPIC_MAX];
        for (unsigned seed = 1; seed < 3000; seed++) {
                size_t len = 1 + seed % OM_TOPIC_MAX;
                struct om_buf b = OM_BUF_INIT, back = OM_BUF_INIT;
                unsigned x = seed;
                for (size_t i = 0; i < len; i++) {
                        x = x * 1103515245u + 12345u;
                        topic[i] = seed % 2 ? (unsigned char) (x >> 16) : (unsigned char) ".*> %a\n"[(x >> 16) % 7];
                }
                nats_subject_encode(&b, (struct om_span){ (char *) topic, len });
                ck_assert(om_buf_ok(&b) && b.len > 0 && b.data[0] != '.' && b.data[b.len - 1] != '.');
                for (size_t i = 0; i < b.len; i++)
                        ck_assert((unsigned char) b.data[i] > ' ' && b.data[i] != '*' && b.data[i] != '>' && b.data[i] != 0x7f &&
                                !(b.data[i] == '.' && b.data[i + 1 < b.len ? i + 1 : i] == '.' && i + 1 < b.len));
                ck_assert(nats_subject_decode(&back, om_buf_span(&b)));
                ck_assert(om_span_eq(om_buf_span(&back), (struct om_span){ (char *) topic, len }));
                om_buf_deinit(&b);
                om_buf_deinit(&back);
        }
}
END_TEST

START_TEST(test_no_subject_of_ours_is_told_from_one) {
        struct om_buf b = OM_BUF_INIT;
        ck_assert(!nats_subject_decode(&b, OM_SPAN("a%2")));
        ck_assert(!nats_subject_decode(&b, OM_SPAN("a%zz")));
        ck_assert(!nats_subject_decode(&b, OM_SPAN("a%")));
        om_buf_deinit(&b);
}
END_TEST

static bool covers(const char *filter, const char *subject) { return nats_subject_covers(om_span_of(filter), om_span_of(subject)); }

START_TEST(test_filters_cover_subjects_and_narrower_filters) {
        ck_assert(covers("a.b", "a.b") && covers("a.*", "a.b") && covers("a.>", "a.b") && covers("a.>", "a.b.c") && covers(">", "a"));
        ck_assert(covers("a.t.>", "a.t.>") && covers("a.>", "a.t.>") && covers("a.*.>", "a.t.>") && covers("a.>", "a.*.b"));
        ck_assert(!covers("a.b", "a.c") && !covers("a.b", "a.b.c") && !covers("a.b.c", "a.b") && !covers("a.*", "a.b.c") &&
                !covers("a.>", "a"));
        ck_assert(!covers("a.*", "a.>") && !covers("a.b", "a.*") && !covers("a.b", "a.bc") && !covers("", "a") && !covers("a", ""));
}
END_TEST

static struct om_buf name_of(struct om_span text) {
        struct om_buf b = OM_BUF_INIT;
        nats_name_encode(&b, text);
        ck_assert(om_buf_ok(&b) && b.len <= NATS_NAME_MAX);
        for (size_t i = 0; i < b.len; i++)
                ck_assert(b.data[i] > ' ' && b.data[i] < 0x7f && !strchr(".*>/\\", b.data[i]));
        return b;
}

START_TEST(test_names_hold_what_a_stream_may_be_called) {
        struct om_buf b = name_of(OM_SPAN("orders.eu/a b+c=d"));
        ck_assert_msg(om_span_is(om_buf_span(&b), "orders+eu=2Fa=20b=2Bc=3Dd"), "%.*s", OM_PRI(om_buf_span(&b)));
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_long_names_are_cut_and_stay_apart) {
        char one[OM_TOPIC_MAX], two[OM_TOPIC_MAX];
        memset(one, 'x', sizeof(one));
        memset(two, 'x', sizeof(two));
        two[sizeof(two) - 1] = 'y';
        struct om_buf a = name_of((struct om_span){ one, sizeof(one) }), b = name_of((struct om_span){ two, sizeof(two) }),
                      c = name_of((struct om_span){ one, sizeof(one) - 1 });
        ck_assert(a.len == NATS_NAME_MAX && !om_span_eq(om_buf_span(&a), om_buf_span(&b)) && !om_span_eq(om_buf_span(&a), om_buf_span(&c)));
        om_buf_deinit(&a);
        om_buf_deinit(&b);
        om_buf_deinit(&c);
}
END_TEST

START_TEST(test_reply_subject_of_a_delivery_old_and_new) {
        struct nats_ack a;
        ck_assert(nats_ack_parse(OM_SPAN("$JS.ACK.omni-t-greet.one.3.17.42.1795579637123487253.5"), &a));
        ck_assert(om_span_is(a.stream, "omni-t-greet") && om_span_is(a.consumer, "one"));
        ck_assert(a.delivered == 3 && a.stream_seq == 17 && a.consumer_seq == 42 && a.time_ns == 1795579637123487253);
        ck_assert(nats_ack_parse(OM_SPAN("$JS.ACK.hub.Zxy12.omni-t-greet.one.3.17.42.1795579637123487253.5"), &a));
        ck_assert(om_span_is(a.stream, "omni-t-greet") && a.stream_seq == 17);
        ck_assert(nats_ack_parse(OM_SPAN("$JS.ACK.hub.Zxy12.omni-t-greet.one.3.17.42.1795579637123487253.5.random"), &a));
        ck_assert(om_span_is(a.consumer, "one"));
        ck_assert(!nats_ack_parse(OM_SPAN("$JS.ACK.s.c.3.17.42.1"), &a));
        ck_assert(!nats_ack_parse(OM_SPAN("$JS.ACK.s.c.x.17.42.1.5"), &a));
        ck_assert(!nats_ack_parse(OM_SPAN("$JS.API.s.c.3.17.42.1.5"), &a));
        ck_assert(!nats_ack_parse(OM_SPAN(""), &a));
}
END_TEST

/* -- answers --------------------------------------------------------------------------------------------------------- */

START_TEST(test_answers_are_read_by_path) {
        struct om_arena arena = { 0 };
        struct om_span text = OM_SPAN("{\"a\":{\"b\":[1,{\"c\":7}],\"n\":12,\"t\":true},\"s\":\"x\\ny\",\"a2\":null}"), value;
        struct nats_walk w;
        ck_assert(nats_json_ok(text));
        ck_assert_uint_eq(nats_json_u64(text, "a.n"), 12);
        ck_assert(nats_json_true(text, "a.t") && !nats_json_true(text, "a.n"));
        ck_assert(om_span_is(nats_json_text(text, "s", &arena), "x\ny"));
        ck_assert(!nats_json_get(text, "a.missing").p && !nats_json_get(text, "s.deeper").p && !nats_json_get(OM_SPAN_NONE, "a").p);
        ck_assert_uint_eq(nats_json_u64(text, "a.missing"), 0);
        nats_walk_init(&w, nats_json_get(text, "a.b"));
        ck_assert(nats_walk_next(&w, &value, NULL) && om_span_is(value, "1"));
        ck_assert(nats_walk_next(&w, &value, NULL) && nats_json_u64(value, "c") == 7);
        ck_assert(!nats_walk_next(&w, &value, NULL));
        nats_walk_init(&w, nats_json_get(text, "a.missing"));
        ck_assert(!nats_walk_next(&w, &value, NULL));
        om_arena_deinit(&arena);
}
END_TEST

/* -- URLs ------------------------------------------------------------------------------------------------------------ */

struct settings {
        struct nats_settings c;
};
static const struct om_option table[] = { NATS_OPTIONS(struct settings), { .name = NULL } };

/* Its refusal must name this; NULL: none. */
static void url_says(const char *text, const char *expected) {
        struct settings s;
        struct om_error e = OM_ERROR_INIT;
        struct om_url *url;
        natsOptions *o = NULL;
        ck_assert_msg(om_url_parse(text, &url, &e) == 0, "%s", e.message);
        int r = om_options_read(table, url, &s, &e);
        if (r == 0)
                r = nats_settings_apply(&s.c, url, &o, &e);
        if (expected)
                ck_assert_msg(r == -EINVAL && strstr(e.message, expected), "%s: %d %s", text, r, e.message);
        else
                ck_assert_msg(r == 0, "%s: %s", text, e.message);
        ck_assert(!strstr(e.message, "s3cret"));
        natsOptions_Destroy(o);
        om_url_free(url);
}

START_TEST(test_urls_that_work_and_urls_that_cannot) {
        url_says("nats://localhost", NULL);
        url_says("nats://u:s3cret@h1:4222,h2,[::1]:4223?prefix=my-app&replicas=3&domain=hub", NULL);
        url_says("nats://TOKEN@localhost", NULL);
        url_says("nats://localhost?token=s3cret", NULL);
        url_says("nats:", "host");
        url_says("nats://localhost?prefix=a.b", "prefix");
        url_says("nats://localhost?domain=a*b", "domain");
        url_says("nats://localhost?inbox_prefix=a%20b", "inbox_prefix");
        url_says("nats://localhost?replicas=6", "replicas");
        url_says("nats://localhost?storage=disk", "storage");
        url_says("nats://u:s3cret@localhost?token=s3cret", "exclude");
        url_says("nats://localhost?nkey_file=/x", "belong together");
        url_says("nats://localhost?tls_key_file=/x", "belong together");
        url_says("nats://localhost?credentials_file=/does/not/exist", "credentials_file");
        url_says("tls://localhost?tls_ca_file=/dev/null", "tls_ca_file");
        url_says("nats://localhost?replica=3", "replicas");
}
END_TEST

/* -- the storage's messages ------------------------------------------------------------------------------------------- */

static void decodes(const char *text, const char *expected) {
        struct om_buf b = OM_BUF_INIT;
        bool ok = nats_base64_decode(om_span_of(text), &b);
        ck_assert_msg(ok == (expected != NULL), "%s", text);
        if (ok)
                ck_assert(om_span_is(om_buf_span(&b), expected));
        om_buf_deinit(&b);
}

START_TEST(test_base64_as_rfc_4648_has_it) {
        decodes("", "");
        decodes("Zg==", "f");
        decodes("Zm8=", "fo");
        decodes("Zm9v", "foo");
        decodes("Zm9vYg==", "foob");
        decodes("Zm9vYmE=", "fooba");
        decodes("Zm9vYmFy", "foobar");
        decodes("+/+/", "\xfb\xff\xbf");
        decodes("Zm9", NULL);
        decodes("Zm9!", NULL);
        decodes("Z=9v", NULL);
        decodes("====", NULL);
}
END_TEST

START_TEST(test_envelope_reads_back_and_what_is_none_is_refused) {
        static const char *const none[] = { "", "x", "7", "[]", "{}", "{\"saved_ms\":1}", "{\"saved_ms\":1,\"value\":1,\"parts\":2}",
                "{\"saved_ms\":1,\"value\":1,\"more\":2}", "{\"saved_ms\":\"1\",\"value\":1}", "{\"saved_ms\":1,\"value\":1}}" };
        struct om_store_entry entry = { .key = OM_SPAN("a \"key\""),
                .name = OM_SPAN(""),
                .value = OM_SPAN("[1e400, 0.10]"),
                .saved_ms = -5,
                .expires_ms = 7,
                .topic = OM_SPAN("t\n"),
                .status = OM_SPAN("completed") };
        struct om_buf b = OM_BUF_INIT;
        struct om_arena arena = { 0 };
        struct envelope got;
        nats_envelope_put(&b, &entry, "", 0);
        ck_assert_int_eq(nats_envelope_read(om_buf_span(&b), &arena, &got), 0);
        ck_assert(om_span_eq(got.entry.key, entry.key) && om_span_eq(got.entry.name, entry.name) && got.entry.name.p);
        ck_assert(om_span_eq(got.entry.value, entry.value) && om_span_eq(got.entry.topic, entry.topic));
        ck_assert(om_span_eq(got.entry.status, entry.status) && got.entry.saved_ms == -5 && got.entry.expires_ms == 7 && !got.n_parts);
        om_buf_clear(&b);
        nats_envelope_put(&b, &entry, "f00", 3);
        ck_assert_int_eq(nats_envelope_read(om_buf_span(&b), &arena, &got), 0);
        ck_assert(got.n_parts == 3 && got.size == entry.value.len && strcmp(got.generation, "f00") == 0 && !got.entry.value.p);
        for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++)
                ck_assert_msg(nats_envelope_read(om_span_of(none[i]), &arena, &got) == -EINVAL, "%s", none[i]);
        om_buf_deinit(&b);
        om_arena_deinit(&arena);
}
END_TEST

START_TEST(test_entries_have_subjects_that_no_other_has) {
        struct om_store s = { .bucket = "b" };
        char subject[SUBJECT_MAX];
        nats_entry_subject(subject, &s, OM_STORE_AGENTS, OM_SPAN("greet.new"), OM_SPAN("one"));
        ck_assert_str_eq(subject, "$KV.b.a.greet+new.one");
        nats_entry_subject(subject, &s, OM_STORE_AGENTS, OM_SPAN("greet"), OM_SPAN_NONE);
        ck_assert_str_eq(subject, "$KV.b.a.greet.*");
        nats_entry_subject(subject, &s, OM_STORE_RESULTS, OM_SPAN("7"), OM_SPAN(""));
        ck_assert_str_eq(subject, "$KV.b_results.7.=");
        nats_entry_subject(subject, &s, OM_STORE_RESULTS, OM_SPAN("7"), OM_SPAN("="));
        ck_assert_str_eq(subject, "$KV.b_results.7.=3D");
        nats_entry_subject(subject, &s, OM_STORE_CONFIG, OM_SPAN(".."), OM_SPAN_NONE);
        ck_assert_str_eq(subject, "$KV.b.c.++");
        nats_entry_subject(subject, &s, OM_STORE_CONFIG, OM_SPAN_NONE, OM_SPAN_NONE);
        ck_assert_str_eq(subject, "$KV.b.c.>");
        nats_parts_subject(subject, &s, OM_STORE_RESULTS, OM_SPAN("7"), OM_SPAN_NONE, NULL, 0);
        ck_assert_str_eq(subject, "$KV.b_parts.r.7.*.>");
        nats_parts_subject(subject, &s, OM_STORE_CONFIG, OM_SPAN("k"), OM_SPAN_NONE, "f00", 2);
        ck_assert_str_eq(subject, "$KV.b_parts.c.k.f00.2");
}
END_TEST

int main(void) {
        Suite *s = suite_create("nats");
        TCase *t = tcase_create("pure");
        tcase_add_test(t, test_topics_are_subjects_that_other_programs_would_write);
        tcase_add_test(t, test_what_a_subject_cannot_hold_is_escaped_and_comes_back);
        tcase_add_test(t, test_any_bytes_make_a_legal_subject_that_reads_back);
        tcase_add_test(t, test_no_subject_of_ours_is_told_from_one);
        tcase_add_test(t, test_filters_cover_subjects_and_narrower_filters);
        tcase_add_test(t, test_names_hold_what_a_stream_may_be_called);
        tcase_add_test(t, test_long_names_are_cut_and_stay_apart);
        tcase_add_test(t, test_reply_subject_of_a_delivery_old_and_new);
        tcase_add_test(t, test_answers_are_read_by_path);
        tcase_add_test(t, test_urls_that_work_and_urls_that_cannot);
        tcase_add_test(t, test_base64_as_rfc_4648_has_it);
        tcase_add_test(t, test_envelope_reads_back_and_what_is_none_is_refused);
        tcase_add_test(t, test_entries_have_subjects_that_no_other_has);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
