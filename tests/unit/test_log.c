/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: a line is a line, carries no secret, cannot steer a terminal, and a reader who does not read does not stop the daemon.
 */
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../daemon/log.h"
#include "../lib/suite.h"

static int pipe_fds[2], real_stderr;
static char text[1 << 16];

/* Standard error becomes a pipe; what was written there is read back with said(). */
static void set_up(void) {
        ck_assert_int_eq(pipe2(pipe_fds, O_CLOEXEC), 0);
        fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
        real_stderr = dup(STDERR_FILENO);
        dup2(pipe_fds[1], STDERR_FILENO);
        om_log_open(OM_LOG_STDERR, OM_LOG_INFO);
}

static void tear_down(void) {
        dup2(real_stderr, STDERR_FILENO);
        close(real_stderr);
        close(pipe_fds[0]);
        close(pipe_fds[1]);
}

static const char *said(void) {
        ssize_t n = read(pipe_fds[0], text, sizeof text - 1);

        text[n < 0 ? 0 : n] = 0;
        return text;
}

#define assert_says(word) ck_assert_msg(strstr(said(), word), "\"%s\" is not in \"%s\"", word, text)

START_TEST(test_a_line_has_time_level_and_message) {
        int year, n = 0;

        om_log(OM_LOG_WARNING, "disk %s is full", "x");
        ck_assert_int_eq(sscanf(said(), "%d-%*d-%*dT%*d:%*d:%*fZ warning disk x is full%n", &year, &n), 1);
        ck_assert_int_gt(n, 0);
        ck_assert_str_eq(text + n, "\n");
}
END_TEST

START_TEST(test_levels_below_the_threshold_are_silent_and_it_can_be_changed) {
        om_log(OM_LOG_DEBUG, "hidden");
        ck_assert_str_eq(said(), "");
        ck_assert(!om_log_enabled(OM_LOG_DEBUG));
        om_log_set_level(OM_LOG_DEBUG);
        om_log(OM_LOG_DEBUG, "shown");
        assert_says("debug   shown\n");
        om_log_set_level(OM_LOG_ERROR);
        om_log(OM_LOG_WARNING, "hidden");
        ck_assert_str_eq(said(), "");
}
END_TEST

START_TEST(test_passwords_in_urls_are_taken_out) {
        struct om_error e = { .kind = OM_UNAVAILABLE, .message = "redis://me:geheim@host:6379/0 refused" };

        om_log(OM_LOG_INFO, "connecting to amqp://u:geheim@h/ and postgresql://u:geheim@h/d");
        ck_assert_ptr_null(strstr(said(), "geheim"));
        om_log_error(OM_LOG_ERROR, &e, "bus");
        ck_assert_ptr_null(strstr(said(), "geheim"));
        ck_assert_ptr_nonnull(strstr(text, "bus: redis://me:***@host"));
}
END_TEST

START_TEST(test_a_message_cannot_forge_a_line_or_steer_a_terminal) {
        om_log(OM_LOG_INFO, "a\nb\tc\rd\033[2Je\x7f \x9b g\xc2\x9bh \xff\xc0\xaf \xed\xa0\x80 gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80");
        assert_says("info    a\\nb\\tc\\x0dd\\x1b[2Je\\x7f \\x9b g\\xc2\\x9bh \\xff\\xc0\\xaf \\xed\\xa0\\x80 gr\xc3\xbc\xc3\x9f "
                    "\xf0\x9f\x98\x80\n");
}
END_TEST

START_TEST(test_a_long_message_is_cut_and_stays_a_line) {
        char *huge = malloc(100000);

        memset(huge, 'x', 99999);
        huge[99999] = 0;
        om_log(OM_LOG_INFO, "%s", huge);
        ck_assert_uint_lt(strlen(said()), 4096);
        ck_assert_int_eq(text[strlen(text) - 1], '\n');
        free(huge);
}
END_TEST

START_TEST(test_a_reader_that_does_not_read_loses_lines_and_is_told_how_many) {
        char line[200];

        memset(line, 'x', sizeof line - 1);
        line[sizeof line - 1] = 0;
        for (int i = 0; i < 2000; i++) /* far more than a pipe holds */
                om_log(OM_LOG_INFO, "%s", line);
        while (*said())
                ;
        om_log(OM_LOG_INFO, "again");
        assert_says("log lines were lost");
        ck_assert_ptr_nonnull(strstr(text, "info    again\n"));
}
END_TEST

static void *log_many(void *arg) {
        for (int i = 0; i < 200; i++)
                om_log(OM_LOG_INFO, "thread %s says number %d and a little more", (const char *) arg, i);
        return NULL;
}

START_TEST(test_lines_of_threads_do_not_mix) {
        pthread_t threads[2];
        int n = 0, number;
        char who;

        pthread_create(&threads[0], NULL, log_many, (void *) (uintptr_t) "a");
        pthread_create(&threads[1], NULL, log_many, (void *) (uintptr_t) "b");
        for (int i = 0; i < 2; i++)
                pthread_join(threads[i], NULL);
        said();
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), n++)
                ck_assert_msg(sscanf(line, "%*s info thread %c says number %d and a little more", &who, &number) == 2, "%s", line);
        ck_assert_int_eq(n, 400);
}
END_TEST

START_TEST(test_a_journal_stream_of_somebody_else_is_not_ours) {
        struct stat st;
        char name[64];

        setenv("JOURNAL_STREAM", "1:1", 1);
        om_log_open(OM_LOG_AUTO, OM_LOG_INFO);
        om_log(OM_LOG_INFO, "here");
        assert_says("here");
        setenv("JOURNAL_STREAM", "nonsense", 1);
        om_log_open(OM_LOG_AUTO, OM_LOG_INFO);
        om_log(OM_LOG_INFO, "here");
        assert_says("here");
        /* Ours, but where no journal runs the line still comes out. */
        ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
        snprintf(name, sizeof name, "%llu:%llu", (unsigned long long) st.st_dev, (unsigned long long) st.st_ino);
        setenv("JOURNAL_STREAM", name, 1);
        om_log_open(OM_LOG_AUTO, OM_LOG_INFO);
        om_log(OM_LOG_INFO, "here");
        if (access("/run/systemd/journal/socket", F_OK) < 0)
                assert_says("here");
        else
                ck_assert_str_eq(said(), "");
}
END_TEST

int main(void) {
        Suite *s = suite_create("log");
        TCase *t = tcase_create("log");

        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_add_test(t, test_a_line_has_time_level_and_message);
        tcase_add_test(t, test_levels_below_the_threshold_are_silent_and_it_can_be_changed);
        tcase_add_test(t, test_passwords_in_urls_are_taken_out);
        tcase_add_test(t, test_a_message_cannot_forge_a_line_or_steer_a_terminal);
        tcase_add_test(t, test_a_long_message_is_cut_and_stays_a_line);
        tcase_add_test(t, test_a_reader_that_does_not_read_loses_lines_and_is_told_how_many);
        tcase_add_test(t, test_lines_of_threads_do_not_mix);
        tcase_add_test(t, test_a_journal_stream_of_somebody_else_is_not_ours);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
