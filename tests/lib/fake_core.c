/* SPDX-License-Identifier: Apache-2.0 */
/* See fake_core.h. */
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../daemon/log.h"
#include "../../proto/frame.h"
#include "fake_core.h"

struct fake fake;

/* -- the core ------------------------------------------------------------------------------------------------------ */

static bool flag;
static void raise_flag(struct om_post *post) { flag = true; }
static struct om_post flag_post = { .fn = raise_flag };

static void run_until_flag(void) {
        while (!flag)
                om_loop_run_once(fake.loop, true);
        flag = false;
}

void fake_set_up(void) {
        struct om_error e = OM_ERROR_INIT;
        static char bus_url[] = "membus:", store_url[] = "memstore:";

        om_log_open(OM_LOG_STDERR, OM_LOG_ERROR);
        mem_use(OM_BUS_PRIORITY | OM_BUS_KEYS);
        memset(&fake, 0, sizeof fake);
        fake.settings = (struct om_settings){ .event_bus_url = bus_url,
                .storage_url = store_url,
                .max_connections = 10000,
                .max_frame_bytes = OM_FRAME_MAX_DEFAULT,
                .prefetch = 10,
                .dlq_retry_limit = 3,
                .reclaim_idle_ms = 180000,
                .retry_backoff_ms = 1000,
                .retry_backoff_max_ms = 60000,
                .result_ttl_ms = 86400000,
                .idempotency_window_ms = 86400000,
                .publish_timeout_ms = 5000,
                .call_timeout_ms = 5000,
                .stop_grace_ms = 50,
                .stalled_client_ms = 200,
                .session_output_bytes = 256 << 10,
                .slow_client_ms = 30000,
                .session_total_bytes = 256 << 20,
                .metrics_interval_ms = 20 };
        strcpy(fake.folder, "/tmp/omni-test-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(fake.folder));
        ck_assert_msg(om_loop_new(&fake.loop, fake.folder, &e) == 0, "%s", e.message);
        ck_assert_msg(om_core_new(fake.loop, &fake.settings, &flag_post, &fake.core, &e) == 0, "%s", e.message);
        run_until_flag();
}

void fake_tear_down(void) {
        om_core_stop(fake.core, &flag_post);
        run_until_flag();
        om_core_free(fake.core);
        fake.core = NULL;
        om_loop_free(fake.loop);
        rmdir(fake.folder);
}

void fake_turn(void) {
        for (int i = 0; i < 10; i++)
                om_loop_run_once(fake.loop, false);
}

void fake_run_ms(int ms) {
        int64_t end = om_clock_ms() + ms;

        while (om_clock_ms() < end) {
                om_loop_run_once(fake.loop, false);
                poll(NULL, 0, 1);
        }
}

/* -- clients ------------------------------------------------------------------------------------------------------- */

int fake_connect(void) {
        int fds[2];

        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        ck_assert_int_eq(om_session_new(fake.core, fds[0], NULL), 0);
        return fds[1];
}

void client_send_raw(int fd, const void *data, size_t n) {
        const char *p = data;
        int64_t end = om_clock_ms() + 5000;

        while (n > 0) {
                ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);

                if (sent < 0) {
                        ck_assert_msg(errno == EAGAIN && om_clock_ms() < end, "send: %s", strerror(errno));
                        fake_turn();
                        continue;
                }
                p += sent;
                n -= (size_t) sent;
        }
}

void client_send(int fd, const char *body) {
        uint32_t len = htonl((uint32_t) strlen(body));
        struct om_buf b = OM_BUF_INIT;

        om_buf_put(&b, &len, 4);
        om_buf_puts(&b, body);
        client_send_raw(fd, b.data, b.len);
        om_buf_deinit(&b);
}

/* n bytes; false at the end of input or a reset. */
static bool read_exactly(int fd, char *out, size_t n) {
        int64_t end = om_clock_ms() + 5000;

        while (n > 0) {
                ssize_t r = recv(fd, out, n, 0);

                if (r == 0 || (r < 0 && errno != EAGAIN))
                        return false;
                if (r < 0) {
                        ck_assert_msg(om_clock_ms() < end, "nothing came within 5 s");
                        fake_turn();
                        poll(NULL, 0, 1);
                        continue;
                }
                out += r;
                n -= (size_t) r;
        }
        return true;
}

const char *client_read(int fd) {
        static char *body;
        uint32_t len;

        if (!read_exactly(fd, (char *) &len, 4))
                return NULL;
        len = ntohl(len);
        body = realloc(body, (size_t) len + 1);
        if (!read_exactly(fd, body, len))
                return NULL;
        body[len] = '\0';
        return body;
}

bool client_at_end(int fd) {
        char c;

        return !read_exactly(fd, &c, 1);
}

bool client_quiet(int fd) {
        char c;

        fake_turn();
        return recv(fd, &c, 1, MSG_PEEK) < 0 && errno == EAGAIN;
}
