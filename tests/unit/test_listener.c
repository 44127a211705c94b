/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listener: who may be where, what is left behind, what a connection too many is told, and sockets from systemd.
 */
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../daemon/listener.h"
#include "../../daemon/log.h"
#include "../../proto/frame.h"
#include "../../proto/rpc.h"
#include "../lib/suite.h"

static char folder[64], path[100];
static struct om_loop *loop;
static struct om_listener *listener;
static struct om_error error;
static int accepted[512];
static unsigned n_accepted, max_accepted;

static int take(void *ctx, int fd) {
        accepted[n_accepted++] = fd;
        return 0;
}
static unsigned room(void *ctx, unsigned *ret_max) {
        *ret_max = max_accepted;
        return max_accepted - n_accepted;
}
static struct om_listener_options options;

static void set_up(void) {
        strcpy(folder, "/tmp/omni-test-listener-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        snprintf(path, sizeof path, "%s/run/d.sock", folder);
        om_log_open(OM_LOG_STDERR, OM_LOG_ERROR);
        ck_assert_msg(om_loop_new(&loop, folder, &error) == 0, "%s", error.message);
        options = (struct om_listener_options){ .path = path, .mode = 0660, .accept = take, .room = room };
        n_accepted = 0;
        max_accepted = 400;
        error = (struct om_error) OM_ERROR_INIT;
}

static void close_accepted(void) {
        while (n_accepted > 0)
                close(accepted[--n_accepted]);
}

static void tear_down(void) {
        char command[100];

        close_accepted();
        om_listener_free(listener);
        listener = NULL;
        om_loop_free(loop);
        snprintf(command, sizeof command, "rm -rf %s", folder);
        ck_assert_int_eq(system(command), 0);
}

static void open_listener(void) {
        ck_assert_msg(om_listener_open(loop, &options, &listener, &error) == 0, "%s", error.message);
        om_listener_start(listener);
}

static int client(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        strcpy(address.sun_path, path);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(connect(fd, (struct sockaddr *) &address, sizeof address), 0);
        return fd;
}

static mode_t mode_of(const char *name) {
        struct stat st;

        ck_assert_int_eq(lstat(name, &st), 0);
        return st.st_mode & 07777;
}

static void assert_refused(const char *word) {
        struct om_listener *other = NULL;

        ck_assert_int_lt(om_listener_open(loop, &options, &other, &error), 0);
        ck_assert_ptr_null(other);
        ck_assert_msg(strstr(error.message, word), "\"%s\" is not in \"%s\"", word, error.message);
}

/* -- the path ------------------------------------------------------------------------------------------------------ */

START_TEST(test_the_socket_has_its_mode_and_its_folder_can_be_entered) {
        mode_t before = umask(0), after;

        open_listener();
        after = umask(before);
        ck_assert_int_eq(after, 0); /* the umask is as it was */
        ck_assert_int_eq(mode_of(path), 0660);
        *strrchr(path, '/') = 0;
        ck_assert_int_eq(mode_of(path), 0755);
}
END_TEST

START_TEST(test_the_socket_is_removed_at_the_end) {
        open_listener();
        om_listener_free(listener);
        listener = NULL;
        ck_assert_int_lt(access(path, F_OK), 0);
}
END_TEST

START_TEST(test_a_socket_that_somebody_else_put_there_is_not_removed) {
        open_listener();
        ck_assert_int_eq(unlink(path), 0);
        close(open(path, O_CREAT | O_WRONLY, 0600));
        om_listener_free(listener);
        listener = NULL;
        ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(test_a_live_daemon_is_left_alone_and_named) {
        char number[32];

        open_listener();
        snprintf(number, sizeof number, "process %d", (int) getpid());
        assert_refused(number);
        ck_assert_ptr_nonnull(strstr(error.message, "already"));
        ck_assert_int_eq(error.kind, OM_EXISTS);
        close(client()); /* still served */
}
END_TEST

START_TEST(test_the_socket_of_a_daemon_that_died_is_replaced) {
        pid_t child = fork();
        int status;

        if (child == 0) {
                if (om_listener_open(loop, &options, &listener, &error) < 0)
                        _exit(1);
                kill(getpid(), SIGKILL);
        }
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFSIGNALED(status));
        ck_assert_int_eq(access(path, F_OK), 0);
        open_listener();
        close(client());
}
END_TEST

START_TEST(test_another_program_that_listens_without_the_lock_is_left_alone) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        snprintf(path, sizeof path, "%s/x", folder);
        strcpy(address.sun_path, path);
        ck_assert_int_eq(bind(fd, (struct sockaddr *) &address, sizeof address), 0);
        ck_assert_int_eq(listen(fd, 1), 0);
        assert_refused("already");
        ck_assert_int_eq(access(path, F_OK), 0);
        close(fd);
}
END_TEST

START_TEST(test_what_is_no_socket_is_not_removed) {
        snprintf(path, sizeof path, "%s/file", folder);
        close(open(path, O_CREAT | O_WRONLY, 0600));
        assert_refused("no socket");
        ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(test_a_path_that_is_too_long_is_refused) {
        char *name = calloc(1, 300);

        memset(name, 'x', 299);
        name[0] = '/';
        options.path = name;
        assert_refused("too long");
        free(name);
}
END_TEST

START_TEST(test_an_unknown_group_is_refused_and_nothing_is_left) {
        options.group = "no-such-group-here";
        assert_refused("no-such-group-here");
        ck_assert_int_lt(access(path, F_OK), 0);
        options.group = NULL;
        open_listener();
}
END_TEST

START_TEST(test_a_group_may_be_a_number) {
        char number[16];

        snprintf(number, sizeof number, "%d", (int) getgid());
        options.group = number;
        open_listener();
        ck_assert_int_eq(mode_of(path), 0660);
}
END_TEST

/* -- connections --------------------------------------------------------------------------------------------------- */

START_TEST(test_connections_are_handed_over_ready_for_the_loop) {
        int fds[100];

        open_listener();
        for (int i = 0; i < 100; i++)
                fds[i] = client();
        while (n_accepted < 100)
                om_loop_run_once(loop, true);
        ck_assert_int_ne(fcntl(accepted[0], F_GETFL) & O_NONBLOCK, 0);
        ck_assert_int_ne(fcntl(accepted[0], F_GETFD) & FD_CLOEXEC, 0);
        for (int i = 0; i < 100; i++)
                close(fds[i]);
}
END_TEST

START_TEST(test_before_the_start_and_after_the_stop_clients_wait) {
        int fd;

        ck_assert_int_eq(om_listener_open(loop, &options, &listener, &error), 0);
        fd = client();
        om_loop_run_once(loop, false);
        ck_assert_uint_eq(n_accepted, 0);
        om_listener_start(listener);
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_accepted, 1);
        close(fd);
        om_listener_stop(listener);
        fd = client();
        om_loop_run_once(loop, false);
        ck_assert_uint_eq(n_accepted, 1);
        close(fd);
}
END_TEST

static void assert_told_limit(int fd, const char *word) {
        struct om_span body;
        struct om_rpc rpc;
        struct om_error told = OM_ERROR_INIT;
        char reply[1000];
        ssize_t n = recv(fd, reply, sizeof reply, 0);

        ck_assert_int_gt(n, 0);
        ck_assert_int_eq(om_frame_peek(reply, (size_t) n, OM_FRAME_MAX_DEFAULT, &body, &told), 1);
        ck_assert_int_eq(om_rpc_parse(body, &rpc, &told), 0);
        ck_assert_int_eq(rpc.type, OM_RPC_ERROR);
        om_rpc_parse_error(rpc.error, &told);
        ck_assert_int_eq(told.kind, OM_LIMIT);
        ck_assert_msg(strstr(told.message, word), "%s", told.message);
        ck_assert_int_eq(recv(fd, reply, sizeof reply, 0), 0);
}

START_TEST(test_a_connection_too_many_is_told_the_limit_and_closed) {
        int fds[3];

        max_accepted = 2;
        open_listener();
        for (int i = 0; i < 3; i++)
                fds[i] = client();
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_accepted, 2);
        assert_told_limit(fds[2], "MAX_CONNECTIONS");
        close_accepted();
        close(fds[2]);
        fds[2] = client();
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_accepted, 1);
        for (int i = 0; i < 3; i++)
                close(fds[i]);
}
END_TEST

START_TEST(test_without_descriptors_a_client_is_told_and_later_ones_are_served) {
        struct rlimit before, little;
        int fd, hole, waste[64], n = 0;

        open_listener();
        fd = client();
        getrlimit(RLIMIT_NOFILE, &before);
        hole = dup(fd);
        close(hole);
        little = before;
        little.rlim_cur = (rlim_t) hole + 8;
        setrlimit(RLIMIT_NOFILE, &little);
        while ((waste[n] = dup(fd)) >= 0)
                n++;
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_accepted, 0);
        assert_told_limit(fd, "open files");
        while (n > 0)
                close(waste[--n]);
        setrlimit(RLIMIT_NOFILE, &before);
        close(fd);
        fd = client();
        while (n_accepted == 0)
                om_loop_run_once(loop, true);
        close(fd);
}
END_TEST

/* -- from systemd -------------------------------------------------------------------------------------------------- */

static void hand_over(int type) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, type, 0);
        char pid[16];

        snprintf(path, sizeof path, "%s/handed", folder);
        strcpy(address.sun_path, path);
        ck_assert_int_eq(bind(fd, (struct sockaddr *) &address, sizeof address), 0);
        if (type == SOCK_STREAM)
                ck_assert_int_eq(listen(fd, 5), 0);
        ck_assert_int_eq(dup2(fd, 3), 3); /* SD_LISTEN_FDS_START */
        if (fd != 3)
                close(fd);
        snprintf(pid, sizeof pid, "%d", (int) getpid());
        setenv("LISTEN_PID", pid, 1);
        setenv("LISTEN_FDS", "1", 1);
}

/* Descriptor 3 may be the loop's: it is moved out of the way by making the socket before the loop. */
START_TEST(test_a_socket_from_systemd_is_served_and_not_removed) {
        int fd;

        om_loop_free(loop);
        hand_over(SOCK_STREAM);
        ck_assert_int_eq(om_loop_new(&loop, folder, &error), 0);
        options.path = "/nowhere/at/all";
        fd = client(); /* waits since before we were there */
        open_listener();
        ck_assert(om_listener_is_handed(listener));
        ck_assert_str_eq(om_listener_path(listener), path);
        ck_assert_ptr_null(getenv("LISTEN_FDS"));
        om_loop_run_once(loop, true);
        ck_assert_uint_eq(n_accepted, 1);
        close(fd);
        om_listener_free(listener);
        listener = NULL;
        ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(test_what_systemd_hands_over_must_be_a_stream_socket) {
        om_loop_free(loop);
        hand_over(SOCK_DGRAM);
        ck_assert_int_eq(om_loop_new(&loop, folder, &error), 0);
        assert_refused("stream socket");
}
END_TEST

int main(void) {
        Suite *s = suite_create("listener");
        TCase *t = tcase_create("listener");

        tcase_add_checked_fixture(t, set_up, tear_down);
        tcase_add_test(t, test_the_socket_has_its_mode_and_its_folder_can_be_entered);
        tcase_add_test(t, test_the_socket_is_removed_at_the_end);
        tcase_add_test(t, test_a_socket_that_somebody_else_put_there_is_not_removed);
        tcase_add_test(t, test_a_live_daemon_is_left_alone_and_named);
        tcase_add_test(t, test_the_socket_of_a_daemon_that_died_is_replaced);
        tcase_add_test(t, test_another_program_that_listens_without_the_lock_is_left_alone);
        tcase_add_test(t, test_what_is_no_socket_is_not_removed);
        tcase_add_test(t, test_a_path_that_is_too_long_is_refused);
        tcase_add_test(t, test_an_unknown_group_is_refused_and_nothing_is_left);
        tcase_add_test(t, test_a_group_may_be_a_number);
        tcase_add_test(t, test_connections_are_handed_over_ready_for_the_loop);
        tcase_add_test(t, test_before_the_start_and_after_the_stop_clients_wait);
        tcase_add_test(t, test_a_connection_too_many_is_told_the_limit_and_closed);
        tcase_add_test(t, test_without_descriptors_a_client_is_told_and_later_ones_are_served);
        tcase_add_test(t, test_a_socket_from_systemd_is_served_and_not_removed);
        tcase_add_test(t, test_what_systemd_hands_over_must_be_a_stream_socket);
        suite_add_tcase(s, t);
        return om_test_main(s);
}
