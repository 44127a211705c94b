/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of omnictl: what is understood, what is refused and how, and that the table of commands is sound. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../client/ctl/ctl.h"
#include "../../client/ctl/help.h"
#include "../lib/suite.h"

static struct args a;
static struct om_error e;

/* Parses words parted by blanks, up to 31; '~' in a word stands for a blank. */
static int parse(const char *line) {
        static char copy[1000];
        static char *words[32];
        int n = 0;

        args_deinit(&a);
        e = (struct om_error) OM_ERROR_INIT;
        snprintf(copy, sizeof(copy), "%s", line);
        for (char *w = strtok(copy, " "); w; w = strtok(NULL, " ")) {
                words[n++] = w;
                for (; *w; w++) {
                        *w = *w == '~' ? ' ' : *w;
                }
        }
        return args_parse(n, words, ctl_commands, ctl_global_options, &a, &e);
}

static void teardown(void) { args_deinit(&a); }

START_TEST(test_arguments_stand_by_position_or_by_name) {
        ck_assert_int_eq(parse("agent get greet greeter"), 0);
        ck_assert_str_eq(a.command->path, "agent get");
        ck_assert_str_eq(args_text(&a, "topic"), "greet");
        ck_assert_str_eq(args_text(&a, "name"), "greeter");
        ck_assert_int_eq(parse("agent get --name greeter --topic greet"), 0);
        ck_assert_str_eq(args_text(&a, "name"), "greeter");
        ck_assert_int_eq(parse("agent get --name greeter greet"), 0);
        ck_assert_str_eq(args_text(&a, "topic"), "greet");
}
END_TEST

START_TEST(test_options_stand_anywhere_and_double_dash_ends_them) {
        ck_assert_int_eq(parse("-q task -f json publish -t x --priority=3 -- --5"), 0);
        ck_assert(args_has(&a, "quiet"));
        ck_assert_str_eq(args_text(&a, "format"), "json");
        ck_assert_int_eq(args_number(&a, "priority", 0), 3);
        ck_assert_str_eq(args_text(&a, "content"), "--5");
        ck_assert_int_eq(parse("health -qy"), 0);
        ck_assert(args_has(&a, "yes") && args_has(&a, "quiet"));
        ck_assert_int_eq(parse("task publish -tx 1"), 0);
        ck_assert_str_eq(args_text(&a, "topic"), "x");
}
END_TEST

START_TEST(test_a_long_option_may_be_shortened_while_it_is_clear) {
        ck_assert_int_eq(parse("task publish --top x --idem k 1"), 0);
        ck_assert_str_eq(args_text(&a, "idempotency-key"), "k");
        ck_assert_int_eq(parse("task publish --t x 1"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "several"));
}
END_TEST

START_TEST(test_a_mistyped_word_gets_the_nearest_one_offered) {
        ck_assert_int_eq(parse("helth"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "\"health\""));
        ck_assert_int_eq(parse("task publsh"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "\"task publish\""));
        ck_assert_int_eq(parse("publish"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "\"task publish\""));
        ck_assert_int_eq(parse("task publish --topci x"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "--topic"));
        ck_assert_int_eq(parse("health --format jsn"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "\"json\""));
}
END_TEST

START_TEST(test_what_is_missing_or_too_much_is_named) {
        ck_assert_int_eq(parse("agent get greet"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "NAME"));
        ck_assert_int_eq(parse("task publish 1"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "--topic"));
        ck_assert_int_eq(parse("agent get a b c"), -EINVAL);
        ck_assert_ptr_nonnull(strstr(e.message, "\"c\""));
        ck_assert_int_eq(parse("task publish --topic"), -EINVAL);
        ck_assert_int_eq(parse("health --quiet=1"), -EINVAL);
        ck_assert_int_eq(parse("task publish -t x --priority 10 1"), -EINVAL);
        ck_assert_int_eq(parse("task publish -t x --priority 3x 1"), -EINVAL);
        ck_assert_int_eq(parse("task list -n 99999999999999999999"), -EINVAL);
}
END_TEST

START_TEST(test_help_needs_nothing_else) {
        ck_assert_int_eq(parse("agent get --help"), 0);
        ck_assert(a.help);
        ck_assert_int_eq(parse("task -h"), 0);
        ck_assert_str_eq(a.command->path, "task");
        ck_assert_ptr_null(a.command->run);
}
END_TEST

START_TEST(test_a_program_keeps_its_own_options) {
        ck_assert_int_eq(parse("agent run -t x --name n ./p --help -q --"), 0);
        ck_assert(!a.help && !args_has(&a, "quiet"));
        ck_assert_uint_eq(args_count(&a, "program"), 4);
        ck_assert_str_eq(args_nth(&a, "program", 1), "--help");
        ck_assert_str_eq(args_nth(&a, "program", 3), "--");
        ck_assert_int_eq(parse("agent run -t x --name n -- ./p -- -q"), 0);
        ck_assert_uint_eq(args_count(&a, "program"), 3);
        ck_assert_ptr_null(args_nth(&a, "program", 3));
}
END_TEST

START_TEST(test_a_value_that_may_be_left_out_takes_only_a_time) {
        ck_assert_int_eq(parse("task publish -t x --wait 5 1"), 0);
        ck_assert_int_eq(args_number(&a, "wait", 0), 5000);
        ck_assert_str_eq(args_text(&a, "content"), "1");
        ck_assert_int_eq(parse("task publish -t x --wait {}"), 0);
        ck_assert(args_has(&a, "wait"));
        ck_assert_int_eq(args_number(&a, "wait", 7), 7);
        ck_assert_str_eq(args_text(&a, "content"), "{}");
        ck_assert_int_eq(parse("health --watch=0.5"), 0);
        ck_assert_int_eq(args_number(&a, "watch", 0), 500);
        ck_assert_int_eq(parse("health -w"), 0);
        ck_assert(args_has(&a, "watch"));
        ck_assert_int_eq(parse("bus stats -w 1 words"), 0);
        ck_assert_int_eq(args_number(&a, "watch", 0), 1000);
        ck_assert_str_eq(args_text(&a, "topic"), "words");
}
END_TEST

START_TEST(test_names_of_the_python_omnidaemon_work) {
        ck_assert_int_eq(parse("agent unsubscribe --topic a --name b"), 0);
        ck_assert_str_eq(a.command->path, "agent pause");
        ck_assert_int_eq(parse("bus list"), 0);
        ck_assert_str_eq(a.command->path, "bus topics");
        ck_assert_int_eq(parse("bus inspect --stream words --limit 10"), 0);
        ck_assert_str_eq(args_text(&a, "topic"), "words");
        ck_assert_int_eq(parse("task result --task-id 1"), 0);
        ck_assert_str_eq(args_text(&a, "id"), "1");
        ck_assert_int_eq(parse("storage clear-all --yes"), 0);
        ck_assert_int_eq(parse("task publish --topic a --content {}"), 0);
        ck_assert_str_eq(args_text(&a, "content"), "{}");
}
END_TEST

START_TEST(test_times_and_sizes_have_units) {
        int64_t v;

        ck_assert_int_eq(args_parse_time("2", &v), 0);
        ck_assert_int_eq(v, 2000);
        ck_assert_int_eq(args_parse_time("500ms", &v), 0);
        ck_assert_int_eq(v, 500);
        ck_assert_int_eq(args_parse_time("1.5min", &v), 0);
        ck_assert_int_eq(v, 90000);
        ck_assert_int_eq(args_parse_time("1d", &v), 0);
        ck_assert_int_eq(v, 86400000);
        ck_assert_int_eq(args_parse_time("", &v), -EINVAL);
        ck_assert_int_eq(args_parse_time("-1", &v), -EINVAL);
        ck_assert_int_eq(args_parse_time("nan", &v), -EINVAL);
        ck_assert_int_eq(args_parse_time("1 s", &v), -EINVAL);
        ck_assert_int_eq(args_parse_time("9e30", &v), -ERANGE);
        ck_assert_int_eq(args_parse_size("64k", &v), 0);
        ck_assert_int_eq(v, 65536);
        ck_assert_int_eq(args_parse_size("1M", &v), 0);
        ck_assert_int_eq(v, 1048576);
        ck_assert_int_eq(args_parse_size("1X", &v), -EINVAL);
}
END_TEST

/* -- the table ----------------------------------------------------------------------------------------------------- */

START_TEST(test_every_command_has_help_and_examples_that_parse) {
        for (const struct command *c = ctl_commands; c->path; c++) {
                ck_assert_msg(c->summary && *c->summary, "%s has no summary", c->path);
                if (!c->run || (c->flags & CMD_HIDDEN)) {
                        continue;
                }
                ck_assert_msg(c->about && c->examples, "%s has no help or no example", c->path);
                for (const struct example *x = c->examples; x->command; x++) {
                        char line[500], *cut;
                        bool quoted = false;

                        snprintf(line, sizeof(line), "%s", x->command);
                        for (char *p = line; *p; p++) { /* blanks in quotes belong to a word */
                                quoted ^= *p == '\'';
                                *p = quoted && *p == ' ' ? '~' : *p;
                        }
                        for (const char *const *end = (const char *const[]){ " | ", " > ", " < ", " && ", " >/", NULL }; *end; end++) {
                                cut = strstr(line, *end);
                                if (cut) {
                                        *cut = '\0'; /* the shell's part */
                                }
                        }
                        ck_assert_msg(parse(line) == 0, "the example \"%s\": %s", x->command, e.message);
                        ck_assert_msg(a.command == c, "the example \"%s\" is of %s", x->command, a.command->path);
                }
        }
}
END_TEST

START_TEST(test_names_and_letters_of_options_are_unique) {
        for (const struct command *c = ctl_commands; c->path; c++) {
                ck_assert_ptr_eq(args_find(ctl_commands, c->path), c);
                for (const struct option *o = c->options; o && o->name; o++) {
                        ck_assert_msg(o->help && *o->help, "%s --%s has no help", c->path, o->name);
                        ck_assert_msg((o->type == OPT_FLAG) == !o->value, "%s --%s: a value and no flag, or the other way round", c->path,
                                o->name);
                        for (const struct option *p = o + 1; p->name; p++) {
                                ck_assert_msg(strcmp(o->name, p->name) != 0, "%s --%s stands twice", c->path, o->name);
                                ck_assert_msg(!o->letter || o->letter != p->letter, "%s -%c stands twice", c->path, o->letter);
                        }
                        for (const struct option *g = ctl_global_options; g->name; g++) {
                                ck_assert_msg(!o->letter || o->letter != g->letter, "%s -%c is a global option", c->path, o->letter);
                        }
                }
        }
}
END_TEST

START_TEST(test_help_shows_every_option_of_a_command) {
        struct ctl ctl = { .program = "omnictl" };

        for (const struct command *c = ctl_commands; c->path; c++) {
                struct om_buf b = OM_BUF_INIT;

                help_put(&ctl, &b, c);
                ck_assert_ptr_nonnull(ctl_text(&b));
                for (const struct option *o = c->options; o && o->name && c->run; o++) {
                        ck_assert_msg(
                                strstr(b.data, o->flags & OPT_POSITION ? o->value : o->name), "help of %s lacks %s", c->path, o->name);
                }
                om_buf_deinit(&b);
        }
}
END_TEST

int main(void) {
        Suite *s = suite_create("ctl_args");
        TCase *t = tcase_create("args");

        tcase_add_checked_fixture(t, NULL, teardown);
        tcase_add_test(t, test_arguments_stand_by_position_or_by_name);
        tcase_add_test(t, test_options_stand_anywhere_and_double_dash_ends_them);
        tcase_add_test(t, test_a_long_option_may_be_shortened_while_it_is_clear);
        tcase_add_test(t, test_a_mistyped_word_gets_the_nearest_one_offered);
        tcase_add_test(t, test_what_is_missing_or_too_much_is_named);
        tcase_add_test(t, test_help_needs_nothing_else);
        tcase_add_test(t, test_a_program_keeps_its_own_options);
        tcase_add_test(t, test_a_value_that_may_be_left_out_takes_only_a_time);
        tcase_add_test(t, test_names_of_the_python_omnidaemon_work);
        tcase_add_test(t, test_times_and_sizes_have_units);
        tcase_add_test(t, test_every_command_has_help_and_examples_that_parse);
        tcase_add_test(t, test_names_and_letters_of_options_are_unique);
        tcase_add_test(t, test_help_shows_every_option_of_a_command);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
