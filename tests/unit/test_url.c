/* SPDX-License-Identifier: Apache-2.0 */
/* URLs: their parts, what is refused, and that no message, log line or redacted text shows a secret. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "../../backends/host.h"
#include "../../backends/url.h"
#include "../lib/suite.h"

static struct om_url *parse(const char *text) {
        struct om_url *u = NULL;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_msg(om_url_parse(text, &u, &e) == 0, "%s: %s", text, e.message);
        return u;
}

START_TEST(test_all_parts_are_found_and_decoded) {
        struct om_url *u = parse("Redis+Cluster://us%65r:p%40ss%2Fw%3Ard@h1:6379,h2,[::1]:7000,[fe80::1%25eth0]/0%2f1?a=b%20c&d=&e=f+g=h");
        ck_assert_str_eq(u->scheme, "redis+cluster");
        ck_assert_str_eq(u->user, "user");
        ck_assert_str_eq(u->password, "p@ss/w:rd");
        ck_assert_uint_eq(u->n_hosts, 4);
        ck_assert_str_eq(u->hosts[0].name, "h1");
        ck_assert_uint_eq(u->hosts[0].port, 6379);
        ck_assert_str_eq(u->hosts[1].name, "h2");
        ck_assert_uint_eq(u->hosts[1].port, 0);
        ck_assert_str_eq(u->hosts[2].name, "::1");
        ck_assert_uint_eq(u->hosts[2].port, 7000);
        ck_assert_str_eq(u->hosts[3].name, "fe80::1%eth0");
        ck_assert_str_eq(u->path, "/0/1");
        ck_assert_str_eq(om_url_param(u, "a"), "b c");
        ck_assert_str_eq(om_url_param(u, "d"), "");
        ck_assert_str_eq(om_url_param(u, "e"), "f+g=h");
        ck_assert_ptr_null(om_url_param(u, "z"));
        ck_assert(u->params[0].used);
        om_url_free(u);
}
END_TEST

START_TEST(test_short_forms) {
        struct om_url *u = parse("local:");
        ck_assert_str_eq(u->scheme, "local");
        ck_assert_str_eq(u->path, "");
        ck_assert_uint_eq(u->n_hosts, 0);
        ck_assert_ptr_null(u->user);
        ck_assert_ptr_null(u->password);
        ck_assert_str_eq(u->redacted, "local:");
        om_url_free(u);
        u = parse("json:./my folder/é%3F?durability=memory");
        ck_assert_str_eq(u->path, "./my folder/é?");
        om_url_free(u);
        u = parse("json:///var/lib/x");
        ck_assert_str_eq(u->path, "/var/lib/x");
        ck_assert_uint_eq(u->n_hosts, 0);
        om_url_free(u);
        u = parse("redis://:secret@h");
        ck_assert_ptr_null(u->user);
        ck_assert_str_eq(u->password, "secret");
        om_url_free(u);
        u = parse("redis+unix://u:p@/run/redis.sock");
        ck_assert_uint_eq(u->n_hosts, 0);
        ck_assert_str_eq(u->path, "/run/redis.sock");
        om_url_free(u);
        u = parse("redis://h:/1");
        ck_assert_uint_eq(u->hosts[0].port, 0);
        om_url_free(u);
}
END_TEST

static const char *const bad[] = { "", "redis", ":", "//h", "1redis://h", "re dis://h", "redis://h:0", "redis://h:65536",
        "redis://h:99999999999999999999", "redis://h:1x", "redis://h:-1", "redis://h,", "redis://,h", "redis://:6379", "redis://[::1",
        "redis://[::1]x", "redis://[1.2.3.4]", "redis://[::1%25]", "redis://::1", "redis://h o", "redis://h/%", "redis://h/%2",
        "redis://h/%zz", "redis://h/%00", "redis://h?a=%00", "redis://u%00:p@h", "redis://h#x", "redis://h/#", "redis://h?a=1&a=2",
        "redis://h?a", "redis://h?=1", "redis://h?a=1&&b=2", "redis://h\n", "redis://h/a\tb", "redis://h%2Fx", "redis://h?a=1&%61=2",
        "redis://u v:p@h", "redis://u:p q@h", "redis://h?a=b c", "redis://h?a b=c" };

START_TEST(test_what_is_no_url_is_refused_with_a_reason) {
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                struct om_error e = OM_ERROR_INIT;
                struct om_url *u = NULL;
                ck_assert_msg(om_url_parse(bad[i], &u, &e) == -EINVAL, "%s was accepted", bad[i]);
                ck_assert_ptr_null(u);
                ck_assert_int_gt((int) strlen(e.message), 10);
                ck_assert_int_eq(e.kind, OM_INVALID);
        }
        char *longest = malloc(OM_URL_MAX + 10);
        struct om_error e = OM_ERROR_INIT;
        struct om_url *u = NULL;
        memset(longest, 'a', OM_URL_MAX + 9);
        memcpy(longest, "json:", 5);
        longest[OM_URL_MAX + 1] = 0;
        ck_assert_int_eq(om_url_parse(longest, &u, &e), -EINVAL);
        longest[OM_URL_MAX] = 0;
        ck_assert_int_eq(om_url_parse(longest, &u, &e), 0);
        om_url_free(u);
        free(longest);
}
END_TEST

static const char *const port_range[] = { "redis://h:1", "redis://h:65535" };
START_TEST(test_first_and_last_port) {
        struct om_url *u = parse(port_range[_i]);
        ck_assert_uint_eq(u->hosts[0].port, _i ? 65535 : 1);
        om_url_free(u);
}
END_TEST

/* hunter2 is the secret in each of these, whether it can be read or not. */
static const char *const secret[] = { "redis://user:hunter2@h", "redis://:hunter2@h:6379/0", "redis://u:a@hunter2@h",
        "redis://u:hunter2@b@h", "redis://u:a/hunter2@h/0", "redis://u:12/hunter2@h", "redis://u:hunter2/x@h", "redis://u:a?hunter2@h",
        "redis://u:a#hunter2@h", "redis://u:hunter2", "amqp://user:hunter2/vhost", "nats://hunter2@h:4222", "tls://hunter2@h",
        "redis://h?password=hunter2", "redis://h?x=1&sasl_PASSWORD=hunter2&y=2", "redis://h?api_key=hunter2",
        "s3:bucket?secret_access_key=hunter2", "kafka://h?oauth_token=hunter2", "redis://h?pass%77ord=hunter2", "redis://u:%zzhunter2@h",
        "redis://u:hunter2%00@h", "user:hunter2@h", "redis://u:a@x/hunter2@h", "redis://u:p@h:hunter2", "redis://[x]:hunter2@h",
        "redis://u:x://hunter2@h", "s3://b?replica=s3%3A%2F%2Fk%3Ahunter2%40c%2Fp&x=1",
        "s3://b?replica=s3%253A%252F%252Fk%253Ahunter2%2540c" };

START_TEST(test_secret_is_in_no_message_and_in_no_redacted_text) {
        struct om_error e = OM_ERROR_INIT;
        struct om_url *u = NULL;
        struct om_buf b = OM_BUF_INIT;
        if (om_url_parse(secret[_i], &u, &e) == 0) {
                ck_assert_msg(!strstr(u->redacted, "hunter2"), "%s → %s", secret[_i], u->redacted);
                ck_assert(strstr(u->redacted, "***"));
        } else
                ck_assert_msg(!strstr(e.message, "hunter2"), "%s → %s", secret[_i], e.message);
        om_url_free(u);
        if (!strstr(secret[_i], "://") && !strchr(secret[_i], '?'))
                return; /* in a line of a log nobody could tell it from other text */
        om_buf_printf(&b, "cannot connect to \"%s\", or to %s: refused", secret[_i], secret[_i]);
        struct om_buf out = OM_BUF_INIT;
        om_url_redact(&out, b.data, b.len);
        om_buf_putc(&out, 0);
        ck_assert_msg(!strstr(out.data, "hunter2"), "%s → %s", secret[_i], out.data);
        om_buf_deinit(&b);
        om_buf_deinit(&out);
}
END_TEST

static const char *const lines[][2] = {
        { "no URL here: a:b@c, 50%", "no URL here: a:b@c, 50%" },
        { "connected to redis://h:6379: ready", "connected to redis://h:6379: ready" },
        { "(kafka://h1:9092,h2:9092/?acks=all)", "(kafka://h1:9092,h2:9092/?acks=all)" },
        { "from redis://u:p@h:1/0?x=1 to amqps://v:q@[::1]:5671/%2F.", "from redis://u:***@h:1/0?x=1 to amqps://v:***@[::1]:5671/%2F." },
        { "redis://u@h and nats://t@h", "redis://u@h and nats://***@h" },
        { "a?token=x&b=y c", "a?token=***&b=y c" },
        { "http://[::1]:80/x", "http://[::1]:80/x" },
        { "://", "://" },
        { "", "" },
};
START_TEST(test_lines_are_redacted_and_otherwise_left_alone) {
        struct om_buf out = OM_BUF_INIT;
        om_url_redact(&out, lines[_i][0], strlen(lines[_i][0]));
        om_buf_putc(&out, 0);
        ck_assert_str_eq(out.data, lines[_i][1]);
        om_buf_deinit(&out);
}
END_TEST

START_TEST(test_any_bytes_are_read_or_refused_without_harm) {
        static const char alphabet[] = "redis://u:p@h1,[::1]:%2F0?a=b&#/ \n\xff@@::";
        for (int round = 0; round < 200000; round++) {
                char text[48];
                size_t len = om_random_u64() % (sizeof(text) - 1);
                for (size_t i = 0; i < len; i++)
                        text[i] = alphabet[om_random_u64() % (sizeof(alphabet) - 1)];
                text[len] = 0;
                if (round & 1 && len > 8)
                        memcpy(text, "redis://", 8);
                struct om_error e = OM_ERROR_INIT;
                struct om_url *u = NULL;
                struct om_buf out = OM_BUF_INIT;
                if (om_url_parse(text, &u, &e) == 0) {
                        ck_assert_ptr_nonnull(u->path);
                        ck_assert_ptr_nonnull(u->redacted);
                        om_url_free(u);
                }
                om_url_redact(&out, text, len);
                om_buf_deinit(&out);
        }
}
END_TEST

int main(void) {
        Suite *s = suite_create("url");
        TCase *t = tcase_create("url");
        tcase_add_test(t, test_all_parts_are_found_and_decoded);
        tcase_add_test(t, test_short_forms);
        tcase_add_test(t, test_what_is_no_url_is_refused_with_a_reason);
        tcase_add_loop_test(t, test_first_and_last_port, 0, 2);
        tcase_add_loop_test(t, test_secret_is_in_no_message_and_in_no_redacted_text, 0, sizeof(secret) / sizeof(secret[0]));
        tcase_add_loop_test(t, test_lines_are_redacted_and_otherwise_left_alone, 0, sizeof(lines) / sizeof(lines[0]));
        tcase_add_test(t, test_any_bytes_are_read_or_refused_without_harm);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
