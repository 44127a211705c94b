/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_TEST_FAKE_DAEMON_H
#define OM_TEST_FAKE_DAEMON_H
/*
 * A daemon that says what a test tells it to, byte for byte: what clients must survive is easier to say than to provoke.
 *
 * The script runs on a thread of its own beside the test's; it accepts connections, reads frames, sends frames or rubbish, and hangs up. A
 * function that fails ends the program with a message: a script that goes wrong must not look like a client that does.
 */
#include <stdbool.h>
#include <stddef.h>

struct fake;
typedef void fake_script(struct fake *f);

struct fake *fake_start(fake_script *script, void *user); /* listens before it returns */
const char *fake_path(const struct fake *f);
void *fake_user(const struct fake *f);
void fake_finish(struct fake *f); /* waits for the script's end, frees */

/* For scripts. */
void fake_accept(struct fake *f); /* the next connection, the one before is closed */
void fake_meet(struct fake *f);   /* fake_accept(), and hello is answered */
void fake_close(struct fake *f);
void fake_mute(struct fake *f, bool on); /* on: nobody listens at the path (ENOENT) */
const char *fake_read(struct fake *f);   /* the next frame's body, until the next fake_read(); NULL at the end of the connection */
const char *fake_expect(struct fake *f, const char *method); /* the same; it must be a request or notification of that method */
const char *fake_body(const struct fake *f);                 /* of the last frame; "" without one */
long fake_id(struct fake *f);                                /* of the last frame */
bool fake_has(struct fake *f, const char *text);             /* the last frame has this in it */
void fake_send(struct fake *f, const char *format, ...) __attribute__((format(printf, 2, 3)));  /* a body, with its length */
void fake_reply(struct fake *f, const char *format, ...) __attribute__((format(printf, 2, 3))); /* a result for the last frame */
void fake_error(struct fake *f, const char *kind, const char *message);
void fake_raw(struct fake *f, const void *data, size_t n);

#endif
