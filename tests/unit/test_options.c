/* SPDX-License-Identifier: Apache-2.0 */
/* A backend's settings out of a URL: every type, its range, its default, and what a misspelt name is told. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../backends/host.h"
#include "../../backends/options.h"
#include "../lib/suite.h"

static const char *const levels[] = { "always", "interval", "memory", NULL };
struct settings {
        char *name;
        bool on;
        int64_t count, wait_ms, size;
        int level;
};
static const struct om_option table[] = {
        { "name", OM_OPTION_STRING, offsetof(struct settings, name), NULL, NULL, 0, 0, "" },
        { "on", OM_OPTION_BOOL, offsetof(struct settings, on), "yes", NULL, 0, 0, "" },
        { "count", OM_OPTION_INT, offsetof(struct settings, count), "-3", NULL, -5, 5, "" },
        { "wait", OM_OPTION_MS, offsetof(struct settings, wait_ms), "10s", NULL, 0, 0, "" },
        { "size", OM_OPTION_BYTES, offsetof(struct settings, size), "64K", NULL, 0, 0, "" },
        { "durability", OM_OPTION_ENUM, offsetof(struct settings, level), "always", levels, 0, 0, "" },
        { NULL },
};

static int read_url(const char *text, struct settings *s, struct om_error *e) {
        struct om_url *u;
        ck_assert_int_eq(om_url_parse(text, &u, e), 0);
        int r = om_options_read(table, u, s, e);
        if (r == 0 && s->name)
                s->name = strdup(s->name);
        om_url_free(u);
        return r;
}

START_TEST(test_defaults_and_given_values) {
        struct settings s;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(read_url("x:", &s, &e), 0);
        ck_assert_ptr_null(s.name);
        ck_assert(s.on);
        ck_assert_int_eq(s.count, -3);
        ck_assert_int_eq(s.wait_ms, 10000);
        ck_assert_int_eq(s.size, 65536);
        ck_assert_int_eq(s.level, 0);
        ck_assert_int_eq(read_url("x:?name=n&on=off&count=5&wait=2h&size=16M&durability=MEMORY", &s, &e), 0);
        ck_assert_str_eq(s.name, "n");
        ck_assert(!s.on);
        ck_assert_int_eq(s.count, 5);
        ck_assert_int_eq(s.wait_ms, 7200000);
        ck_assert_int_eq(s.size, 16 << 20);
        ck_assert_int_eq(s.level, 2);
        free(s.name);
}
END_TEST

static const struct {
        const char *text;
        int64_t ms;
} durations[] = { { "0", 0 }, { "500", 500 }, { "500ms", 500 }, { "10s", 10000 }, { "5m", 300000 }, { "2h", 7200000 }, { "1d", 86400000 },
        { "", -1 }, { "s", -1 }, { "1.5s", -1 }, { "-1s", -1 }, { "10 s", -1 }, { "10x", -1 }, { "0x10", -1 },
        { "9223372036854775807d", -1 }, { "99999999999999999999", -1 } };
START_TEST(test_durations) {
        int64_t ms = -1;
        struct om_error e = OM_ERROR_INIT;
        int r = om_option_parse(&table[3], durations[_i].text, &ms, &e);
        ck_assert_int_eq(r, durations[_i].ms < 0 ? -EINVAL : 0);
        ck_assert_int_eq(ms, durations[_i].ms);
        if (r < 0)
                ck_assert_msg(strncmp(e.message, "wait: ", 6) == 0, "%s", e.message);
}
END_TEST

static const struct {
        const char *text;
        int64_t bytes;
} sizes[] = { { "1", 1 }, { "64K", 65536 }, { "16m", 16 << 20 }, { "2G", (int64_t) 2 << 30 }, { "1T", (int64_t) 1 << 40 },
        { "8388608T", -1 }, { "64KB", -1 }, { "K", -1 } };
START_TEST(test_sizes) {
        int64_t bytes = -1;
        ck_assert_int_eq(om_option_parse(&table[4], sizes[_i].text, &bytes, NULL), sizes[_i].bytes < 0 ? -EINVAL : 0);
        ck_assert_int_eq(bytes, sizes[_i].bytes);
}
END_TEST

static const char *const refused[][2] = {
        { "x:?durabilty=always", "did you mean durability?" },
        { "x:?zzzzzzzz=1", "known: name, on, count, wait, size, durability" },
        { "x:?durability=allways", "did you mean always?" },
        { "x:?durability=x", "always, interval, memory" },
        { "x:?count=6", "-5 to 5" },
        { "x:?count=five", "\"five\" is not an integer" },
        { "x:?on=maybe", "not true or false" },
};
START_TEST(test_what_is_wrong_is_said_with_what_would_be_right) {
        struct settings s;
        struct om_error e = OM_ERROR_INIT;
        ck_assert_int_eq(read_url(refused[_i][0], &s, &e), -EINVAL);
        ck_assert_msg(strstr(e.message, refused[_i][1]), "%s", e.message);
}
END_TEST

START_TEST(test_backoff_doubles_up_to_its_limit_with_half_of_it_random) {
        for (unsigned n = 0; n < 80; n++) {
                int64_t whole = n < 6 ? 1000 << n : 60000, least = INT64_MAX, most = 0;
                if (whole > 60000)
                        whole = 60000;
                for (int i = 0; i < 300; i++) {
                        int64_t ms = om_backoff_ms(1000, 60000, n);
                        least = ms < least ? ms : least;
                        most = ms > most ? ms : most;
                }
                ck_assert_int_ge(least, whole / 2);
                ck_assert_int_le(most, whole);
                ck_assert_int_gt(most - least, whole / 4);
        }
        ck_assert_int_eq(om_backoff_ms(0, 1000, 5), 0);
        ck_assert_int_le(om_backoff_ms(INT64_MAX, INT64_MAX, 70), INT64_MAX);
}
END_TEST

START_TEST(test_folders_are_made_and_a_file_in_the_way_is_named) {
        struct om_error e = OM_ERROR_INIT;
        char root[] = "/tmp/omni-mkdirs-XXXXXX", path[128];
        ck_assert_ptr_nonnull(mkdtemp(root));
        snprintf(path, sizeof(path), "%s/a//b/c/", root);
        ck_assert_int_eq(om_mkdirs(path, &e), 0);
        ck_assert_int_eq(om_mkdirs(path, &e), 0);
        ck_assert_int_eq(om_mkdirs("/dev/null/x", &e), -ENOTDIR);
        ck_assert(strstr(e.message, "/dev/null"));
        ck_assert_int_lt(om_mkdirs("", &e), 0);
        static const char *const made[] = { "a/b/c", "a/b", "a", "." };
        for (int i = 0; i < 4; i++) {
                snprintf(path, sizeof(path), "%s/%s", root, made[i]);
                ck_assert_int_eq(remove(i < 3 ? path : root), 0);
        }
}
END_TEST

int main(void) {
        Suite *s = suite_create("options");
        TCase *t = tcase_create("options");
        tcase_add_test(t, test_defaults_and_given_values);
        tcase_add_loop_test(t, test_durations, 0, sizeof(durations) / sizeof(durations[0]));
        tcase_add_loop_test(t, test_sizes, 0, sizeof(sizes) / sizeof(sizes[0]));
        tcase_add_loop_test(t, test_what_is_wrong_is_said_with_what_would_be_right, 0, sizeof(refused) / sizeof(refused[0]));
        tcase_add_test(t, test_backoff_doubles_up_to_its_limit_with_half_of_it_random);
        tcase_add_test(t, test_folders_are_made_and_a_file_in_the_way_is_named);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
