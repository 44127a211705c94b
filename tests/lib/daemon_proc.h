/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_TEST_DAEMON_PROC_H
#define OM_TEST_DAEMON_PROC_H
/*
 * A real omnidaemond for a test written in C: started in a folder of its own, stopped, killed, started again on the same state.
 *
 * The binary is $OMNI_BIN/omnidaemond (tests/run sets it). The daemon sees the test's environment with OMNIDAEMON_SOCKET set to its own
 * socket and without NOTIFY_SOCKET and XDG_RUNTIME_DIR; its output goes to DIR/log. It dies with the test's process. What goes wrong in
 * here ends the program with a message and the end of that log. Thread: that which started it, always the same.
 */
#include <stdbool.h>
#include <sys/types.h>

struct om_test_daemon;

/*
 * Starts a daemon and returns when it accepts connections. `dir`: its working folder, where its state lies; NULL makes a new one under
 * /tmp, which om_test_daemon_stop() removes. `args`: further arguments, NULL-terminated, or NULL. `env`: "NAME=value" strings,
 * NULL-terminated, or NULL.
 */
struct om_test_daemon *om_test_daemon_start(const char *dir, const char *const *args, const char *const *env);

/*
 * Starts a daemon that is to end by itself, as one with wrong settings does, and waits for that (30 s at most). Its exit status, 128 + the
 * signal's number when one ended it; *ret_output (the caller's to free()) is what it printed. Parameters as above; `dir` must be there.
 */
int om_test_daemon_refuses(const char *dir, const char *const *args, const char *const *env, char **ret_output);

const char *om_test_daemon_dir(const struct om_test_daemon *d);
const char *om_test_daemon_socket(const struct om_test_daemon *d);
pid_t om_test_daemon_pid(const struct om_test_daemon *d); /* 0 while it is down */

void om_test_daemon_kill9(struct om_test_daemon *d);   /* no time for anything; om_test_daemon_up() afterwards */
void om_test_daemon_down(struct om_test_daemon *d);    /* SIGTERM; its exit status must be 0 */
void om_test_daemon_up(struct om_test_daemon *d);      /* again, after kill9 or down: same folder, same arguments */
void om_test_daemon_restart(struct om_test_daemon *d); /* down and up */
bool om_test_daemon_log_has(const struct om_test_daemon *d, const char *text);

/* down (if it is up), and frees; removes the folder if it was made here. NULL is ignored. */
void om_test_daemon_stop(struct om_test_daemon *d);

#endif
