/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3: signatures against the vectors that Amazon has published, what is wrong with a URL, shared files, names, lifecycle rules; credentials
 * of metadata services and STS, which are a small HTTP server here; and on a real server what the contract's test does not ask.
 */
#include <check.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/http.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../backends/s3/store_rules.h"
#include "../../backends/s3/store_state.h"
#include "../../backends/s3/xml.h"
#include "../lib/server.h"
#include "../lib/store_user.h"
#include "../lib/suite.h"

/* -- signatures -------------------------------------------------------------------------------------------------------------------- */

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define WELCOME "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"

/* https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "Examples: Signature Calculations" */
static const struct {
        const char *method, *path, *query, *body_sha256;
        struct s3_pair headers[6];
        const char *signature;
} vectors[] = {
        { "GET", "/test.txt", "", EMPTY,
                { { "host", "examplebucket.s3.amazonaws.com" }, { "range", "bytes=0-9" }, { "x-amz-content-sha256", EMPTY },
                        { "x-amz-date", "20130524T000000Z" } },
                "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
                "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41" },
        { "PUT", "/test%24file.text", "", WELCOME,
                { { "date", "Fri, 24 May 2013 00:00:00 GMT" }, { "host", "examplebucket.s3.amazonaws.com" },
                        { "x-amz-content-sha256", WELCOME }, { "x-amz-date", "20130524T000000Z" },
                        { "x-amz-storage-class", "REDUCED_REDUNDANCY" } },
                "SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class,"
                "Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd" },
        { "GET", "/", "lifecycle", EMPTY,
                { { "host", "examplebucket.s3.amazonaws.com" }, { "x-amz-content-sha256", EMPTY }, { "x-amz-date", "20130524T000000Z" } },
                "SignedHeaders=host;x-amz-content-sha256;x-amz-date,"
                "Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543" },
        { "GET", "/", "max-keys=2&prefix=J", EMPTY,
                { { "host", "examplebucket.s3.amazonaws.com" }, { "x-amz-content-sha256", EMPTY }, { "x-amz-date", "20130524T000000Z" } },
                "SignedHeaders=host;x-amz-content-sha256;x-amz-date,"
                "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7" },
};

START_TEST(test_signatures_are_those_that_amazon_has_published) {
        struct s3_signable r = { vectors[_i].method, vectors[_i].path, vectors[_i].query, vectors[_i].headers, 0, vectors[_i].body_sha256,
                "20130524T000000Z", "us-east-1", "s3", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" };
        struct om_buf b = OM_BUF_INIT;
        while (r.n_headers < 6 && vectors[_i].headers[r.n_headers].name)
                r.n_headers++;
        s3_sign(&b, &r);
        om_buf_putc(&b, 0);
        ck_assert_msg(strstr(b.data, vectors[_i].signature), "%s", b.data);
        ck_assert_ptr_eq(strstr(b.data, "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"), b.data);
        ck_assert(!strstr(b.data, "wJalrXU"));
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_hashes_dates_and_encodings) {
        char hash[S3_SHA256_HEX + 1], md5[25], date[S3_AMZ_DATE + 1];
        struct om_buf b = OM_BUF_INIT;
        s3_sha256_hex(hash, OM_SPAN("Welcome to Amazon S3."));
        ck_assert_str_eq(hash, WELCOME);
        s3_sha256_hex(hash, OM_SPAN_NONE);
        ck_assert_str_eq(hash, EMPTY);
        s3_md5_base64(md5, OM_SPAN(""));
        ck_assert_str_eq(md5, "1B2M2Y8AsgTpgAmY7PhCfg==");
        s3_amz_date(date, 1369353600000);
        ck_assert_str_eq(date, "20130524T000000Z");
        s3_url_encode(&b, OM_SPAN("a/b c+=~\xc3\xa9"), true);
        ck_assert(om_span_is(om_buf_span(&b), "a/b%20c%2B%3D~%C3%A9"));
        ck_assert_int_eq(s3_parse_time(OM_SPAN("2013-05-24T00:00:00Z")), 1369353600000);
        ck_assert_int_eq(s3_parse_time(OM_SPAN("2013-05-24T00:00:00.123Z")), 1369353600000);
        ck_assert_int_eq(s3_parse_time(OM_SPAN("yesterday")), -1);
        om_buf_deinit(&b);
}
END_TEST

/* -- URLs ------------------------------------------------------------------------------------------------------------------------------ */

static int place_of(const char *text, struct s3_place *p, struct om_error *e) {
        struct s3_settings s;
        struct om_url *url;
        int r = om_url_parse(text, &url, e);
        ck_assert_msg(r == 0, "%s: %s", text, e->message);
        r = om_options_read(s3_options, url, &s, e);
        if (r == 0)
                r = s3_place_read(p, url, &s, NULL, NULL, e);
        om_url_free(url);
        return r;
}

static const struct {
        const char *url, *base, *root, *prefix, *region;
} places[] = {
        { "s3://bucket", "https://bucket.s3.us-east-1.amazonaws.com", "", "omnidaemon/", "us-east-1" },
        { "s3://bucket/a/b/?region=eu-central-1", "https://bucket.s3.eu-central-1.amazonaws.com", "", "a/b/", "eu-central-1" },
        { "s3://my.bucket?region=eu-west-1", "https://s3.eu-west-1.amazonaws.com", "/my.bucket", "omnidaemon/", "eu-west-1" },
        { "s3://bucket?region=cn-north-1&addressing=path", "https://s3.cn-north-1.amazonaws.com.cn", "/bucket", "omnidaemon/",
                "cn-north-1" },
        { "s3://bucket/p?endpoint=http://127.0.0.1:9000", "http://127.0.0.1:9000", "/bucket", "p/", "us-east-1" },
        { "s3://bucket?endpoint=https://minio.local:443/", "https://minio.local", "/bucket", "omnidaemon/", "us-east-1" },
        { "s3://bucket?endpoint=http://[::1]:9000", "http://[::1]:9000", "/bucket", "omnidaemon/", "us-east-1" },
        { "s3://bucket?endpoint=http://h:9000&addressing=virtual", "http://bucket.h:9000", "", "omnidaemon/", "us-east-1" },
};
START_TEST(test_a_url_says_where_the_bucket_is) {
        struct s3_place p;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_msg(place_of(places[_i].url, &p, &e) == 0, "%s", e.message);
        ck_assert_str_eq(p.base, places[_i].base);
        ck_assert_str_eq(p.root, places[_i].root);
        ck_assert_str_eq(p.prefix, places[_i].prefix);
        ck_assert_str_eq(p.region, places[_i].region);
}
END_TEST

static const char *const wrong[][2] = { { "s3://b", "bucket" }, { "s3:bucket", "s3://BUCKET" }, { "s3://one,two", "s3://BUCKET" },
        { "s3://bucket:9000", "endpoint" }, { "s3://bucket/a//b", "prefix" }, { "s3://bucket/../x", "prefix" },
        { "s3://bucket/a b", "prefix" }, { "s3://bucket?region=eu%20west", "region" }, { "s3://bucket?endpoint=h:9000", "endpoint" },
        { "s3://bucket?endpoint=ftp://h", "endpoint" }, { "s3://bucket?endpoint=http://h/path", "endpoint" },
        { "s3://bucket?addressing_=path", "addressing" }, { "s3://bucket?encryption=rot13", "aws:kms" },
        { "s3://bucket?part_size=1M", "part_size" } };
START_TEST(test_what_is_wrong_with_a_url_is_named) {
        struct s3_place p;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(place_of(wrong[_i][0], &p, &e), -EINVAL);
        ck_assert_msg(strstr(e.message, wrong[_i][1]), "%s: %s", wrong[_i][0], e.message);
}
END_TEST

/* -- shared files and answers with credentials -------------------------------------------------------------------------------------------
 */

START_TEST(test_profiles_are_read_as_amazons_tools_read_them) {
        static const char credentials[] = "# mine\n[default]\naws_access_key_id=AK1\naws_secret_access_key = se/cr+et= \r\n\n[other]\n"
                                          "aws_access_key_id = AK2\nrole_arn =\n  nested = 1\n[profile x]\naws_access_key_id=no\n";
        static const char config[] = "[default]\nregion = eu-1\naws_access_key_id = late\n[profile other]\nregion= eu-2 \n"
                                     "s3 =\n  region = nested\n[x]\nregion=no\n[ profile  x ]\nendpoint_url = http://h:1\n";
        struct om_arena arena = { 0 };
        struct s3_profile p = { .found = false };
        s3_profile_parse(&p, OM_SPAN(credentials), "default", false, &arena);
        s3_profile_parse(&p, OM_SPAN(config), "default", true, &arena);
        ck_assert(
                p.found && om_span_is(p.key_id, "AK1") && om_span_is(p.secret, "se/cr+et=") && om_span_is(p.region, "eu-1") && !p.token.p);
        p = (struct s3_profile){ .found = false };
        s3_profile_parse(&p, OM_SPAN(credentials), "other", false, &arena);
        s3_profile_parse(&p, OM_SPAN(config), "other", true, &arena);
        ck_assert(p.found && om_span_is(p.key_id, "AK2") && !p.secret.p && om_span_is(p.region, "eu-2") && !p.role_arn.p);
        p = (struct s3_profile){ .found = false };
        s3_profile_parse(&p, OM_SPAN(credentials), "x", false, &arena);
        ck_assert(!p.found);
        s3_profile_parse(&p, OM_SPAN(config), "x", true, &arena);
        ck_assert(p.found && om_span_is(p.endpoint, "http://h:1") && !p.region.p);
        om_arena_deinit(&arena);
}
END_TEST

#define STS(body)                                                                                 \
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">" \
        "<AssumeRoleWithWebIdentityResult><Credentials>" body                                     \
        "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"

START_TEST(test_answers_with_credentials_are_read_and_others_refused) {
        static const char *const none[] = { "", "[]", "{}", "{\"AccessKeyId\":\"a\"}",
                "{\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"b\\r\\nX: y\"}",
                "{\"AccessKeyId\":\"a\",\"AccessKeyId\":\"b\",\"SecretAccessKey\":\"c\"}",
                "{\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"b\",\"Expiration\":\"soon\"}" };
        struct s3_secret s;
        ck_assert_int_eq(
                s3_secret_from_json(OM_SPAN("{\"Code\":\"Success\",\"Type\":{\"x\":1},\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"b\","
                                            "\"Token\":\"c\",\"Expiration\":\"2030-01-01T00:00:00Z\"}"),
                        &s),
                0);
        ck_assert_str_eq(s.key_id, "a");
        ck_assert_str_eq(s.secret, "b");
        ck_assert_str_eq(s.token, "c");
        ck_assert_int_eq(s.expires_ms, 1893456000000);
        s3_secret_free(&s);
        for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
                ck_assert_msg(s3_secret_from_json(om_span_of(none[i]), &s) == -EINVAL, "%s", none[i]);
        ck_assert_int_eq(s3_secret_from_sts(OM_SPAN(STS("<AccessKeyId>a</AccessKeyId><SecretAccessKey>b</SecretAccessKey>"
                                                        "<SessionToken>c</SessionToken><Expiration>2030-01-01T00:00:00Z</Expiration>")),
                                 &s),
                0);
        ck_assert_str_eq(s.token, "c");
        s3_secret_free(&s);
        ck_assert_int_eq(s3_secret_from_sts(OM_SPAN(STS("<AccessKeyId>a</AccessKeyId>")), &s), -EINVAL);
        ck_assert_int_eq(s3_secret_from_sts(OM_SPAN("<Credentials><AccessKeyId>a</AccessKeyId>"), &s), -EINVAL);
}
END_TEST

/* -- XML, rules, names --------------------------------------------------------------------------------------------------------------------
 */

static void collect(void *ctx, const char *path, struct om_span text) { om_buf_printf(ctx, "%s=%.*s;", path, OM_PRI(text)); }

START_TEST(test_xml_is_read_and_document_types_are_refused) {
        static const char *const bad[] = { "", "<a>", "<a></b>", "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>", "<a>&undefined;</a>",
                "<a/><b/>",
                "<a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a></a></a></a></a></a></a></a></a></a></a></a></a></a></a></a></a></a>" };
        struct om_buf b = OM_BUF_INIT;
        char root[40];
        ck_assert_int_eq(s3_xml_read(OM_SPAN("<?xml version=\"1.0\"?><R x=\"1\"><A>1<B>2</B>3</A><A>&lt;&#65;</A></R>"), collect, &b, root,
                                 sizeof root),
                0);
        om_buf_putc(&b, 0);
        ck_assert_str_eq(root, "R");
        ck_assert_str_eq(b.data, "A/B=2;A=13;A=<A;=;");
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
                ck_assert_msg(s3_xml_read(om_span_of(bad[i]), NULL, NULL, NULL, 0) == -EINVAL, "%s", bad[i]);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_our_rules_are_merged_and_those_of_others_left_byte_for_byte) {
        static const char others[] =
                "<?xml version=\"1.0\"?>\n<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule>"
                "<ID>logs &amp; more</ID> <Status>Enabled</Status><Filter><Prefix>logs/</Prefix></Filter>"
                "<Expiration><Days>7</Days></Expiration></Rule></LifecycleConfiguration>\n";
        static const char rule[] = "<ID>logs &amp; more</ID> <Status>Enabled</Status>";
        struct om_buf one = OM_BUF_INIT, two = OM_BUF_INIT, from_none = OM_BUF_INIT;
        ck_assert_int_eq(s3_rules_check(OM_SPAN(""), "p/"), 0);
        ck_assert_int_eq(s3_rules_check(OM_SPAN(others), "p/"), 0);
        ck_assert_int_eq(s3_rules_merge(&one, OM_SPAN(others), "p/"), 0);
        ck_assert_int_eq(s3_rules_check(om_buf_span(&one), "p/"), 1);
        ck_assert_int_eq(s3_rules_check(om_buf_span(&one), "q/"), 0);
        ck_assert_ptr_nonnull(memmem(one.data, one.len, rule, strlen(rule)));
        ck_assert_int_eq(s3_rules_merge(&two, om_buf_span(&one), "p/"), 0); /* ours are replaced, not doubled */
        ck_assert_uint_eq(two.len, one.len);
        om_buf_clear(&two);
        ck_assert_int_eq(s3_rules_merge(&two, om_buf_span(&one), "q/"), 0); /* of another daemon's prefix: both stay */
        ck_assert(s3_rules_check(om_buf_span(&two), "p/") == 1 && s3_rules_check(om_buf_span(&two), "q/") == 1);
        ck_assert_int_eq(s3_rules_merge(&from_none, OM_SPAN(""), "p/"), 0);
        ck_assert_int_eq(s3_rules_check(om_buf_span(&from_none), "p/"), 1);
        ck_assert_int_eq(s3_rules_merge(&from_none, OM_SPAN("<LifecycleConfiguration>"), "p/"), -EINVAL);
        om_buf_deinit(&one);
        om_buf_deinit(&two);
        om_buf_deinit(&from_none);
}
END_TEST

START_TEST(test_a_rule_that_is_disabled_or_too_early_does_not_count) {
        struct om_buf b = OM_BUF_INIT;
        char *at;
        ck_assert_int_eq(s3_rules_merge(&b, OM_SPAN(""), "p/"), 0);
        om_buf_putc(&b, 0);
        at = strstr(b.data, "Enabled");
        memcpy(at, "Xnabled", 7);
        ck_assert_int_eq(s3_rules_check(om_span_of(b.data), "p/"), 0);
        memcpy(at, "Enabled", 7);
        ck_assert_int_eq(s3_rules_check(om_span_of(b.data), "p/"), 1);
        at = strstr(b.data, "<Days>11<");
        ck_assert_ptr_nonnull(at);
        memcpy(at, "<Days>10<", 9);
        ck_assert_int_eq(s3_rules_check(om_span_of(b.data), "p/"), 0);
        om_buf_deinit(&b);
}
END_TEST

START_TEST(test_names_stand_newest_first_and_say_what_they_are_of) {
        struct om_store_entry e = { .topic = OM_SPAN("t"),
                .name = OM_SPAN("agent"),
                .status = OM_SPAN("failed"),
                .value = OM_SPAN("[1,2]"),
                .saved_ms = 1000,
                .expires_ms = 5000 };
        char a[S3_NAME_MAX], b[S3_NAME_MAX], name[S3_NAME_MAX];
        struct s3_index i;
        static char longest[OM_STORE_KEY_MAX];
        memset(longest, '/', sizeof longest);
        s3_entry_name(name, OM_STORE_RESULTS, (struct om_span){ longest, sizeof longest }, (struct om_span){ longest, sizeof longest });
        s3_index_name(a, OM_STORE_RESULTS, &e, 7, name + 2);
        ck_assert(s3_index_read(a, &i) && i.saved_ms == 1000 && i.expires_ms == 5000 && i.version == 7 && i.size == 5);
        ck_assert(strcmp(i.rest, name + 2) == 0 && i.topic == s3_name_hash(OM_SPAN("t")) && i.status == s3_name_hash(OM_SPAN("failed")));
        ck_assert_uint_le(strlen(a) - 2, 255);
        s3_index_name(b, OM_STORE_RESULTS, &e, 8, name + 2);
        ck_assert_int_lt(strcmp(b, a), 0); /* the later write */
        e.saved_ms = 999;
        s3_index_name(b, OM_STORE_RESULTS, &e, 9, name + 2);
        ck_assert_int_gt(strcmp(b, a), 0);
        s3_index_until(name, OM_STORE_RESULTS, 1000); /* before 1000: not `a`, but `b` */
        ck_assert(strcmp(a, name) < 0 && strcmp(b, name) > 0);
        ck_assert(!s3_index_read("t/", &i) && !s3_index_read("r/x", &i) && !s3_index_read("t/0123", &i) && !s3_index_read("", &i));
        s3_entry_name(a, OM_STORE_AGENTS, OM_SPAN("a.b"), OM_SPAN("c"));
        s3_entry_name(b, OM_STORE_AGENTS, OM_SPAN("a"), OM_SPAN("b.c"));
        ck_assert_str_ne(a, b);
        s3_kind_prefix(name, OM_STORE_AGENTS, OM_SPAN("a.b"));
        ck_assert(strncmp(a, name, strlen(name)) == 0 && strncmp(b, name, strlen(name)) != 0);
}
END_TEST

START_TEST(test_a_name_says_its_key_and_name_unless_it_was_cut) {
        static const char *const pairs[][2] = { { "task-1", "agent" }, { "a.b/c", "" }, { "=41 %~+", "\xc3\xa9.\xff" }, { "", "n" } };
        static const char *const none[] = { "", "nodot", "a.b.c", "a=4.b", "a=4g.b", "a=.b", "a~.b", "a/b.c" };
        char name[S3_NAME_MAX], longest[200];
        struct om_buf key = OM_BUF_INIT, agent = OM_BUF_INIT;
        for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
                s3_entry_name(name, OM_STORE_RESULTS, om_span_of(pairs[i][0]), om_span_of(pairs[i][1]));
                ck_assert(s3_entry_read(name + 2, &key, &agent));
                ck_assert(om_span_is(om_buf_span(&key), pairs[i][0]) && om_span_is(om_buf_span(&agent), pairs[i][1]));
                om_buf_clear(&key);
                om_buf_clear(&agent);
        }
        for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
                ck_assert_msg(!s3_entry_read(none[i], &key, &agent), "%s", none[i]);
                om_buf_clear(&key);
                om_buf_clear(&agent);
        }
        memset(longest, 'x', sizeof longest);
        s3_entry_name(name, OM_STORE_RESULTS, (struct om_span){ longest, sizeof longest }, OM_SPAN("agent"));
        ck_assert(!s3_entry_read(name + 2, &key, &agent));
        om_buf_deinit(&key);
        om_buf_deinit(&agent);
}
END_TEST

START_TEST(test_records_read_back_the_same_and_what_is_none_is_refused) {
        static const char *const none[] = { "", "x", "7", "{}", "{\"saved_ms\":1}", "{\"saved_ms\":1,\"value\":1,\"more\":2}",
                "{\"saved_ms\":\"1\",\"value\":1}", "{\"saved_ms\":1,\"value\":1}}" };
        struct om_store_entry entry = { .key = OM_SPAN("a \"key\""),
                .name = OM_SPAN(""),
                .value = OM_SPAN("[1e400, 0.10]"),
                .saved_ms = -5,
                .expires_ms = 7,
                .topic = OM_SPAN("t\n"),
                .status = OM_SPAN("completed") },
                              got;
        struct om_buf b = OM_BUF_INIT;
        struct om_arena arena = { 0 };
        s3_record_put(&b, &entry);
        ck_assert_int_eq(s3_record_read(om_buf_span(&b), &arena, &got), 0);
        ck_assert(om_span_eq(got.key, entry.key) && om_span_eq(got.name, entry.name) && got.name.p && om_span_eq(got.value, entry.value));
        ck_assert(om_span_eq(got.topic, entry.topic) && om_span_eq(got.status, entry.status) && got.saved_ms == -5 && got.expires_ms == 7);
        for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
                ck_assert_msg(s3_record_read(om_span_of(none[i]), &arena, &got) == -EINVAL, "%s", none[i]);
        om_buf_deinit(&b);
        om_arena_deinit(&arena);
}
END_TEST

/* -- metadata services: an HTTP server of ours, on the same loop
 * ------------------------------------------------------------------------------ */

static struct {
        struct om_loop *loop;
        struct evhttp *server;
        char base[60];
        struct s3_http *http;
        struct s3_chain *chain;
        struct s3_settings settings;
        struct om_url *url;
        struct s3_wait wait;
        int told;
        struct om_error error;
        /* the service */
        int requests, lifetime_s, fail;
        char last[2000]; /* of the last request: "METHOD PATH|header|body" */
} m;

static const char *header(struct evhttp_request *r, const char *name) {
        const char *value = evhttp_find_header(evhttp_request_get_input_headers(r), name);
        return value ? value : "-";
}

static void reply(struct evhttp_request *r, int status, const char *text) {
        struct evbuffer *b = evbuffer_new();
        evbuffer_add(b, text, strlen(text));
        evhttp_send_reply(r, status, "", b);
        evbuffer_free(b);
}

static void secret_text(char *out, size_t size, bool sts) {
        char when[40];
        time_t at = time(NULL) + m.lifetime_s;
        struct tm tm;
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&at, &tm));
        if (sts)
                snprintf(out, size,
                        STS("<AccessKeyId>KEY%d</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
                            "<Expiration>%s</Expiration>"),
                        m.requests, when);
        else
                snprintf(out, size, "{\"AccessKeyId\":\"KEY%d\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\"Expiration\":\"%s\"}",
                        m.requests, when);
}

static void service(struct evhttp_request *r, void *arg) {
        const char *path = evhttp_request_get_uri(r);
        char text[1000];
        struct evbuffer *in = evhttp_request_get_input_buffer(r);
        int n = snprintf(m.last, sizeof m.last, "%d %s|%s|", evhttp_request_get_command(r), path, header(r, "Authorization"));
        m.last[n + (int) evbuffer_copyout(in, m.last + n, sizeof m.last - (size_t) n - 1)] = 0;
        m.requests++;
        if (m.fail > 0) {
                m.fail--;
                reply(r, 503, "later");
        } else if (strcmp(path, "/latest/api/token") == 0)
                reply(r, strcmp(header(r, "X-aws-ec2-metadata-token-ttl-seconds"), "-") ? 200 : 400, "imds token");
        else if (strncmp(path, "/latest/meta-data/iam/", 22) == 0 && strcmp(header(r, "X-aws-ec2-metadata-token"), "imds token") != 0)
                reply(r, 401, "");
        else if (strcmp(path, "/latest/meta-data/iam/security-credentials/") == 0)
                reply(r, 200, "the-role\n");
        else if (strcmp(path, "/latest/meta-data/iam/security-credentials/the-role") == 0 || strcmp(path, "/container") == 0 ||
                strcmp(path, "/") == 0) {
                secret_text(text, sizeof text, strcmp(path, "/") == 0);
                reply(r, 200, text);
        } else
                reply(r, 404, "");
}

static void on_told(struct s3_wait *w, const struct om_error *e) {
        m.told++;
        m.error = e ? *e : (struct om_error) OM_ERROR_INIT;
}

static void service_up(const char *url) {
        static const char *const variables[] = { "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
                "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                "AWS_EC2_METADATA_DISABLED" };
        struct s3_http_settings http = { NULL, true, 4, 1000, 5000 };
        struct om_error e;
        struct evhttp_bound_socket *bound;
        struct sockaddr_in address;
        socklen_t size = sizeof address;
        for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
                unsetenv(variables[i]);
        setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials", 1);
        setenv("AWS_CONFIG_FILE", "/nonexistent/config", 1);
        memset(&m, 0, sizeof m);
        m.lifetime_s = 3600;
        ck_assert_int_eq(om_loop_new(&m.loop, "/tmp", &e), 0);
        m.server = evhttp_new(om_loop_base(m.loop));
        evhttp_set_allowed_methods(m.server, EVHTTP_REQ_GET | EVHTTP_REQ_PUT | EVHTTP_REQ_POST);
        evhttp_set_gencb(m.server, service, NULL);
        bound = evhttp_bind_socket_with_handle(m.server, "127.0.0.1", 0);
        ck_assert_ptr_nonnull(bound);
        ck_assert_int_eq(getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *) &address, &size), 0);
        snprintf(m.base, sizeof m.base, "http://127.0.0.1:%d", ntohs(address.sin_port));
        setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", m.base, 1);
        setenv("AWS_ENDPOINT_URL_STS", m.base, 1);
        ck_assert_int_eq(om_url_parse(url, &m.url, &e), 0);
        ck_assert_int_eq(om_options_read(s3_options, m.url, &m.settings, &e), 0);
        ck_assert_int_eq(s3_http_new(om_loop_host(m.loop), &http, &m.http, &e), 0);
        ck_assert_int_eq(s3_chain_new(om_loop_host(m.loop), m.http, m.url, &m.settings, "eu-1", &m.chain, &e), 0);
}

static void service_down(void) {
        s3_chain_free(m.chain);
        s3_http_free(m.http);
        evhttp_free(m.server);
        om_loop_run_once(m.loop, false);
        om_loop_free(m.loop);
        om_url_free(m.url);
}

/* The key that is to be had now; waits for it. "" with m.error: none. */
static const char *key_now(void) {
        const struct s3_secret *s = s3_chain_now(m.chain, om_now_ms());
        if (!s) {
                int before = m.told;
                m.wait.fn = on_told;
                s3_chain_wait(m.chain, &m.wait);
                ck_assert_int_eq(m.told, before); /* never from within */
                while (m.told == before)
                        om_loop_run_once(m.loop, true);
                s = s3_chain_now(m.chain, om_now_ms());
        }
        return s ? s->key_id : "";
}

static void source_is(const char *key, const char *source) {
        ck_assert_str_eq(key_now(), key);
        ck_assert_str_eq(s3_chain_source(m.chain), source);
        service_down();
}

START_TEST(test_credentials_of_the_url_come_before_the_environments) {
        service_up("s3://AK:se%2Fcret@bucket");
        setenv("AWS_ACCESS_KEY_ID", "other", 1);
        setenv("AWS_SECRET_ACCESS_KEY", "other", 1);
        source_is("AK", "url");
}
END_TEST

START_TEST(test_credentials_of_the_environment_come_before_the_files) {
        service_up("s3://bucket");
        setenv("AWS_ACCESS_KEY_ID", "env", 1);
        setenv("AWS_SECRET_ACCESS_KEY", "x", 1);
        source_is("env", "environment");
}
END_TEST

START_TEST(test_a_profile_of_the_files_is_used) {
        char *folder = test_folder(), path[200];
        static const char text[] =
                "[default]\naws_access_key_id=D\naws_secret_access_key=x\n[p]\naws_access_key_id=P\naws_secret_access_key=y\n";
        test_write_file(folder, "credentials", text, strlen(text));
        snprintf(path, sizeof path, "%s/credentials", folder);
        service_up("s3://bucket?profile=p");
        setenv("AWS_ACCESS_KEY_ID", "env", 1); /* the URL's profile comes before it */
        setenv("AWS_SECRET_ACCESS_KEY", "x", 1);
        setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
        source_is("P", "files");
        service_up("s3://bucket");
        setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
        source_is("D", "files");
        service_up("s3://bucket");
        setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
        setenv("AWS_PROFILE", "missing", 1);
        ck_assert_str_eq(key_now(), "");
        ck_assert_msg(strstr(m.error.message, "missing") && strstr(m.error.message, "AWS_PROFILE"), "%s", m.error.message);
        service_down();
        test_folder_remove(folder);
}
END_TEST

START_TEST(test_credentials_of_a_container_come_with_its_token) {
        char uri[100], *folder = test_folder(), path[200];
        service_up("s3://bucket");
        snprintf(uri, sizeof uri, "%s/container", m.base);
        setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri, 1);
        test_write_file(folder, "token", "from a file\n", 12);
        snprintf(path, sizeof path, "%s/token", folder);
        setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path, 1);
        m.fail = 1; /* once is asked again */
        ck_assert_str_eq(key_now(), "KEY2");
        ck_assert_msg(strstr(m.last, "/container|from a file|"), "%s", m.last);
        ck_assert_int_eq(m.requests, 2);
        service_down();
        service_up("s3://bucket");
        setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://example.com/x", 1);
        ck_assert_str_eq(key_now(), "");
        ck_assert_msg(strstr(m.error.message, "FULL_URI"), "%s", m.error.message);
        service_down();
        test_folder_remove(folder);
}
END_TEST

START_TEST(test_credentials_of_an_instance_need_a_session_of_its_service) {
        service_up("s3://bucket");
        ck_assert_str_eq(key_now(), "KEY3");
        ck_assert_int_eq(m.requests, 3); /* token, role, credentials */
        source_is("KEY3", "instance");
        service_up("s3://bucket");
        setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
        ck_assert_str_eq(key_now(), "");
        ck_assert_msg(strstr(m.error.message, "AWS_ACCESS_KEY_ID") && m.requests == 0, "%s", m.error.message);
        service_down();
}
END_TEST

START_TEST(test_a_web_identity_is_changed_for_credentials) {
        char *folder = test_folder(), path[200];
        service_up("s3://bucket");
        test_write_file(folder, "jwt", "a.b/c\n", 6);
        snprintf(path, sizeof path, "%s/jwt", folder);
        setenv("AWS_WEB_IDENTITY_TOKEN_FILE", path, 1);
        setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r", 1);
        ck_assert_str_eq(key_now(), "KEY1");
        ck_assert_msg(strstr(m.last,
                              "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&"
                              "RoleSessionName=omnidaemon&WebIdentityToken=a.b%2Fc"),
                "%s", m.last);
        source_is("KEY1", "web identity");
        test_folder_remove(folder);
}
END_TEST

START_TEST(test_temporary_credentials_are_refreshed_before_they_expire_while_the_old_ones_work) {
        char uri[100];
        int64_t now;
        service_up("s3://bucket");
        snprintf(uri, sizeof uri, "%s/container", m.base);
        setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri, 1);
        ck_assert_str_eq(key_now(), "KEY1");
        now = om_now_ms();
        ck_assert_str_eq(s3_chain_now(m.chain, now + 54 * 60 * 1000)->key_id, "KEY1");
        ck_assert_int_eq(m.requests, 1);
        m.fail = 10;                                                                   /* the service is away: */
        ck_assert_str_eq(s3_chain_now(m.chain, now + 57 * 60 * 1000)->key_id, "KEY1"); /* these still work */
        while (m.fail > 7)
                om_loop_run_once(m.loop, true);
        m.fail = 0;
        for (int i = 0; i < 1000 && strcmp(s3_chain_now(m.chain, now + 57 * 60 * 1000)->key_id, "KEY1") == 0; i++) {
                om_loop_run_once(m.loop, false); /* and are got anew after a backoff */
                usleep(2000);
        }
        ck_assert_str_eq(key_now(), "KEY5");
        ck_assert_ptr_null(s3_chain_now(m.chain, now + 2 * 3600 * 1000)); /* expired ones sign nothing */
        int before = m.requests;
        s3_chain_refused(m.chain);
        ck_assert_str_ne(key_now(), "KEY5");
        ck_assert_int_ge(m.requests, before);
        service_down();
}
END_TEST

/* -- on a real server
 * -------------------------------------------------------------------------------------------------------------------------- */

extern const struct om_store_ops om_s3_store_ops;
static struct om_test_server *server;

static void open_it(struct user *u, const char *more) {
        const char *text = om_test_server_value(server, "store_url"), *hole = strstr(text, "{case}");
        char url[1000];
        snprintf(url, sizeof url, "%.*st%ld%s%s", (int) (hole - text), text, (long) getpid(), hole + strlen("{case}"), more);
        ck_assert_msg(user_open(u, url) == 0, "%s", u->error.message);
        ck_assert_msg(u->state == OM_STORE_READY, "%s", u->state_error.message);
}

struct asking {
        struct s3_call call;
        int over, status;
        char body[4000];
};
static void asked(struct s3_call *c, int status, const struct om_error *e) {
        struct asking *a = c->ctx;
        a->over = 1;
        a->status = status;
        snprintf(a->body, sizeof a->body, "%.*s", OM_PRI(om_buf_span(&c->req.answer)));
}
/* The bucket's answer to a query; the test's own question. */
static const char *ask(struct user *u, struct asking *a, const char *method, const char *name, const char *query) {
        *a = (struct asking){
                .call = { .client = &u->store->primary, .method = method, .name = name, .query = query, .done = asked, .ctx = a }
        };
        s3_call_start(&a->call);
        user_turn(u, &a->over);
        return a->body;
}

static char *large(size_t n, char c) {
        char *text = malloc(n + 3);
        memset(text, c, n + 2);
        text[0] = text[n + 1] = '"';
        text[n + 2] = 0;
        return text;
}

START_TEST(test_large_values_go_in_parts_and_what_failed_leaves_none) {
        enum { N = 17 << 20 };
        struct user u;
        struct asking a;
        char *one = large(N, 'a'), *two = large(N, 'b');
        open_it(&u, "&part_size=5M");
        ck_assert_int_eq(user_result(&u, "t", "a", one, 1000, 0), 0);
        ck_assert_int_eq(user_result(&u, "t", "a", two, 2000, 0), 0); /* on a condition that fails at first: that upload is aborted */
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "t", "a"), two);
        ask(&u, &a, "GET", NULL, "uploads=");
        ck_assert_msg(a.status == 0 && !strstr(a.body, "<Upload>"), "%s", a.body);
        s3_call_clear(&a.call);
        ask(&u, &a, "HEAD", "r/t.a", NULL);
        ck_assert_int_eq(a.status, 0);
        s3_call_clear(&a.call);
        user_close(&u);
        free(one);
        free(two);
}
END_TEST

START_TEST(test_a_wrong_clock_is_corrected_by_the_servers) {
        struct user u;
        open_it(&u, "");
        u.store->primary.skew_ms = -(int64_t) 3600 * 1000; /* as if ours were an hour behind */
        ck_assert_int_eq(user_result(&u, "t", "a", "1", 1000, 0), 0);
        ck_assert_int_lt(llabs((long long) u.store->primary.skew_ms), 60000);
        user_close(&u);
}
END_TEST

START_TEST(test_results_written_anew_leave_one_place_and_deleted_ones_none) {
        struct user u;
        struct asking a;
        struct om_store_list list = { .kind = OM_STORE_RESULTS };
        char query[100];
        open_it(&u, "");
        for (int i = 0; i < 3; i++)
                ck_assert_int_eq(user_result(&u, "t", "a", "1", 1000 + i, 0), 0);
        snprintf(query, sizeof query, "list-type=2&prefix=t%ld%%2Ft%%2F", (long) getpid());
        ck_assert_msg(strstr(ask(&u, &a, "GET", NULL, query), "<KeyCount>1<"), "%s", a.body);
        s3_call_clear(&a.call);
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 1);
        ck_assert_int_eq(list.entries[0].saved_ms, 1002);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, "t", NULL), 1);
        ck_assert_msg(strstr(ask(&u, &a, "GET", NULL, query), "<KeyCount>0<"), "%s", a.body);
        s3_call_clear(&a.call);
        user_close(&u);
}
END_TEST

/* A process died between the place and the result: nobody sees the place, and writing anew works. */
START_TEST(test_a_place_without_its_result_is_stepped_over) {
        struct user u;
        struct asking a;
        struct om_store_list list = { .kind = OM_STORE_RESULTS };
        open_it(&u, "");
        ck_assert_int_eq(user_result(&u, "t", "a", "1", 1000, 0), 0);
        ck_assert_int_eq(user_result(&u, "u", "a", "1", 2000, 0), 0);
        ask(&u, &a, "DELETE", "r/u.a", NULL);
        s3_call_clear(&a.call);
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 1);
        ck_assert_str_eq(list.entries[0].key.p, "t");
        ck_assert_int_eq(user_result(&u, "u", "a", "2", 1500, 0), 0);
        ck_assert_int_eq(user_list(&u, &list), 0);
        ck_assert_uint_eq(list.n, 2);
        ck_assert_int_eq(user_delete(&u, OM_STORE_RESULTS, NULL, NULL), 2);
        user_close(&u);
}
END_TEST

START_TEST(test_writes_of_one_key_that_overtake_each_other_take_effect_in_order) {
        enum { N = 50 };
        struct user u;
        static struct user_put puts[N];
        static char values[N][8];
        open_it(&u, "");
        for (int i = 0; i < N; i++) {
                struct om_store_entry e = { .key = OM_SPAN("k"), .value = (snprintf(values[i], 8, "%d", i), om_span_of(values[i])) };
                ck_assert_int_eq(user_put_start(&u, &puts[i], OM_STORE_CONFIG, &e), 0);
        }
        for (int i = 0; i < N; i++)
                ck_assert_int_eq(user_finish(&u, &puts[i].wait, 0), 0);
        ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "k", NULL), "49");
        user_close(&u);
}
END_TEST

START_TEST(test_a_write_that_was_cancelled_before_its_turn_is_not_made) {
        enum { N = 3000 };
        struct user u;
        static struct user_put first, others[N];
        struct om_store_entry one = { .key = OM_SPAN("k"), .value = OM_SPAN("1") }, two = { .key = OM_SPAN("k"), .value = OM_SPAN("2") };
        int n = 0;
        open_it(&u, "");
        ck_assert_int_eq(user_put_start(&u, &first, OM_STORE_CONFIG, &one), 0);
        while (n < N && user_put_start(&u, &others[n], OM_STORE_CONFIG, &two) == 0)
                n++;
        ck_assert_int_gt(n, 1000); /* as many as are taken, one behind the other */
        for (int i = 0; i < n; i++)
                om_op_cancel(&others[i].put.op);
        ck_assert_int_eq(user_finish(&u, &first.wait, 0), 0);
        for (int i = 0; i < n; i++)
                ck_assert_int_eq(user_finish(&u, &others[i].wait, 0), -ECANCELED);
        ck_assert_str_eq(user_value(&u, OM_STORE_CONFIG, "k", NULL), "1");
        user_close(&u);
}
END_TEST

START_TEST(test_two_daemons_do_not_trip_over_each_others_settings) {
        struct user a, b;
        struct om_store_entry one = { .key = OM_SPAN("k"), .value = OM_SPAN("1") }, two = { .key = OM_SPAN("k"), .value = OM_SPAN("2") };
        open_it(&a, "");
        open_it(&b, "");
        for (int i = 0; i < 3; i++) { /* each remembers an ETag that the other has made old */
                ck_assert_int_eq(user_put(&a, OM_STORE_CONFIG, &one), 0);
                ck_assert_str_eq(user_value(&b, OM_STORE_CONFIG, "k", NULL), "1");
                ck_assert_int_eq(user_put(&b, OM_STORE_CONFIG, &two), 0);
                ck_assert_str_eq(user_value(&a, OM_STORE_CONFIG, "k", NULL), "2");
        }
        ck_assert_int_eq(user_delete(&a, OM_STORE_CONFIG, "k", NULL), 1);
        ck_assert_int_eq(user_put(&b, OM_STORE_CONFIG, &two), 0); /* what it remembers is gone */
        ck_assert_str_eq(user_value(&a, OM_STORE_CONFIG, "k", NULL), "2");
        user_close(&a);
        user_close(&b);
}
END_TEST

static bool count_is(struct user *u, const char *prefix, int n) {
        struct asking a;
        char query[100], expected[40];
        snprintf(query, sizeof query, "list-type=2&prefix=t%ld%%2F%s%%2F", (long) getpid(), prefix);
        snprintf(expected, sizeof expected, "<KeyCount>%d<", n);
        bool is = strstr(ask(u, &a, "GET", NULL, query), expected) != NULL;
        s3_call_clear(&a.call);
        return is;
}

START_TEST(test_the_sweep_takes_what_has_expired_and_nothing_else) {
        struct user u;
        struct om_store_entry metric = { .topic = OM_SPAN("m"), .value = OM_SPAN("1"), .saved_ms = 1000 };
        int64_t soon;
        open_it(&u, "&sweep_interval=300ms");
        soon = om_now_ms() + 200;
        ck_assert_int_eq(user_result(&u, "gone", "a", "1", 1000, soon), 0);
        ck_assert_int_eq(user_result(&u, "stays", "a", "1", 1000, 0), 0);
        ck_assert_int_eq(user_result(&u, "later", "a", "1", 1000, soon + 3600000), 0);
        metric.expires_ms = soon;
        ck_assert_int_eq(user_put(&u, OM_STORE_METRICS, &metric), 0);
        for (int i = 0; i < 500 && !(count_is(&u, "r", 2) && count_is(&u, "m", 0)); i++)
                user_sleep(&u, 20);
        ck_assert(count_is(&u, "r", 2) && count_is(&u, "t", 2) && count_is(&u, "m", 0));
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "stays", NULL), "1");
        ck_assert_str_eq(user_value(&u, OM_STORE_RESULTS, "later", NULL), "1");
        user_close(&u);
}
END_TEST

START_TEST(test_lifecycle_rules_are_set_checked_and_used) {
        struct user u;
        struct asking a;
        struct om_store_entry e = { .key = OM_SPAN("k"), .value = OM_SPAN("1") };
        open_it(&u, "&manage_lifecycle=true");
        for (int i = 0; i < 500 && u.store->rules_work; i++)
                user_sleep(&u, 10);
        ck_assert_int_eq(u.store->rules, RULES_SET);
        ck_assert_ptr_nonnull(strstr(user_health(&u), "\"expiry\":\"rules\""));
        ck_assert_int_eq(user_result(&u, "t", "a", "1", 1000, om_now_ms() + 2 * 86400000), 0);
        ck_assert_int_eq(user_put(&u, OM_STORE_CONFIG, &e), 0);
        ck_assert_msg(strstr(ask(&u, &a, "GET", "r/t.a", "tagging="), "<Key>omni-expires</Key><Value>3d</Value>"), "%s", a.body);
        s3_call_clear(&a.call);
        ck_assert_msg(!strstr(ask(&u, &a, "GET", "c/k", "tagging="), "omni-expires"), "%s", a.body);
        s3_call_clear(&a.call);
        ck_assert(!u.store->sweep);
        user_close(&u);
        open_it(&u, ""); /* who does not manage them finds them */
        for (int i = 0; i < 500 && u.store->rules_work; i++)
                user_sleep(&u, 10);
        ck_assert_int_eq(u.store->rules, RULES_SET);
        ask(&u, &a, "DELETE", NULL, "lifecycle=");
        s3_call_clear(&a.call);
        user_close(&u);
}
END_TEST

START_TEST(test_closing_does_not_wait_for_a_server_that_hangs) {
        enum { N = 100 };
        struct user u;
        static struct user_put puts[N];
        struct om_store_entry e = { .key = OM_SPAN("k"), .name = OM_SPAN("a"), .value = OM_SPAN("1") };
        open_it(&u, "");
        om_test_server_do(server, "pause");
        for (int i = 0; i < N; i++) /* some are with the server, some wait for these */
                ck_assert_int_eq(user_put_start(&u, &puts[i], i & 1 ? OM_STORE_CONFIG : OM_STORE_RESULTS, &e), 0);
        user_sleep(&u, 50);
        for (int i = 0; i < N; i++)
                om_op_cancel(&puts[i].put.op);
        for (int i = 0; i < N; i++)
                ck_assert_int_eq(user_finish(&u, &puts[i].wait, 0), -ECANCELED);
        int64_t before = om_clock_ms();
        user_close(&u);
        ck_assert_int_lt(om_clock_ms() - before, 5000);
        om_test_server_do(server, "resume");
}
END_TEST

START_TEST(test_no_secret_is_in_errors_or_health) {
        struct user u;
        open_it(&u, "");
        ck_assert_ptr_null(strstr(user_health(&u), "secret"));
        user_close(&u);
}
END_TEST

int main(void) {
        Suite *s = suite_create("S3");
        TCase *pure = tcase_create("pure"), *services = tcase_create("credentials"), *real = tcase_create("a real server");
        char *dir = strdup("/tmp/omni-test-XXXXXX"), of[PATH_MAX];
        tcase_add_loop_test(pure, test_signatures_are_those_that_amazon_has_published, 0, sizeof vectors / sizeof vectors[0]);
        tcase_add_test(pure, test_hashes_dates_and_encodings);
        tcase_add_loop_test(pure, test_a_url_says_where_the_bucket_is, 0, sizeof places / sizeof places[0]);
        tcase_add_loop_test(pure, test_what_is_wrong_with_a_url_is_named, 0, sizeof wrong / sizeof wrong[0]);
        tcase_add_test(pure, test_profiles_are_read_as_amazons_tools_read_them);
        tcase_add_test(pure, test_answers_with_credentials_are_read_and_others_refused);
        tcase_add_test(pure, test_xml_is_read_and_document_types_are_refused);
        tcase_add_test(pure, test_our_rules_are_merged_and_those_of_others_left_byte_for_byte);
        tcase_add_test(pure, test_a_rule_that_is_disabled_or_too_early_does_not_count);
        tcase_add_test(pure, test_names_stand_newest_first_and_say_what_they_are_of);
        tcase_add_test(pure, test_a_name_says_its_key_and_name_unless_it_was_cut);
        tcase_add_test(pure, test_records_read_back_the_same_and_what_is_none_is_refused);
        tcase_add_test(services, test_credentials_of_the_url_come_before_the_environments);
        tcase_add_test(services, test_credentials_of_the_environment_come_before_the_files);
        tcase_add_test(services, test_a_profile_of_the_files_is_used);
        tcase_add_test(services, test_credentials_of_a_container_come_with_its_token);
        tcase_add_test(services, test_credentials_of_an_instance_need_a_session_of_its_service);
        tcase_add_test(services, test_a_web_identity_is_changed_for_credentials);
        tcase_add_test(services, test_temporary_credentials_are_refreshed_before_they_expire_while_the_old_ones_work);
        tcase_add_test(real, test_large_values_go_in_parts_and_what_failed_leaves_none);
        tcase_add_test(real, test_a_wrong_clock_is_corrected_by_the_servers);
        tcase_add_test(real, test_results_written_anew_leave_one_place_and_deleted_ones_none);
        tcase_add_test(real, test_a_place_without_its_result_is_stepped_over);
        tcase_add_test(real, test_writes_of_one_key_that_overtake_each_other_take_effect_in_order);
        tcase_add_test(real, test_a_write_that_was_cancelled_before_its_turn_is_not_made);
        tcase_add_test(real, test_two_daemons_do_not_trip_over_each_others_settings);
        tcase_add_test(real, test_the_sweep_takes_what_has_expired_and_nothing_else);
        tcase_add_test(real, test_lifecycle_rules_are_set_checked_and_used);
        tcase_add_test(real, test_closing_does_not_wait_for_a_server_that_hangs);
        tcase_add_test(real, test_no_secret_is_in_errors_or_health);
        suite_add_tcase(s, pure);
        suite_add_tcase(s, services);
        suite_add_tcase(s, real);
        tcase_set_timeout(services, 30);
        tcase_set_timeout(real, 60);
        om_registry_add_store(&om_s3_store_ops);
        if (!mkdtemp(dir))
                return 1;
        snprintf(of, sizeof of, "%s/s3", dir);
        server = om_test_server_start("s3", of);
        int status = om_test_main(s);
        om_test_server_stop(server);
        test_folder_remove(dir);
        return status;
}
