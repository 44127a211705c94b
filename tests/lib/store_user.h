/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_STORE_USER_H
#define TEST_STORE_USER_H
/*
 * A storage as a test uses it: each call starts an operation, turns the loop until it has completed, and checks the rules of host.h on the
 * way: accepted operations complete once, on the loop's thread, never before the call has returned.
 */
#include <pthread.h>

#include "../../backends/registry.h"
#include "../../daemon/loop.h"

struct user {
        struct om_loop *loop;
        const struct om_store_ops *ops;
        struct om_store *store;
        struct om_arena arena; /* what calls gave back, until user_close() */
        pthread_t thread;
        enum om_store_state state;
        struct om_error state_error;
        unsigned states;       /* how many there were */
        struct om_error error; /* of the last call that failed */
};

/* What an operation came to; embedded beside it. */
struct wait {
        struct user *user;
        bool returned; /* the call that started it has */
        int completions, status;
        struct om_error error;
};

/* Opens; waits until the storage is ready or has failed. 0, or what open() refused with. */
int user_open(struct user *u, const char *url);
/* Closes, waits, destroys. */
void user_close(struct user *u);
void user_turn(struct user *u, const int *until);             /* turns the loop until *until is not 0 */
void user_sleep(struct user *u, int ms);                      /* turns the loop for so long */
int user_finish(struct user *u, struct wait *w, int started); /* waits for an operation that began with this return value */

struct user_put {
        struct om_store_put put; /* first */
        struct wait wait;
        struct om_store_entry entry;
        struct om_outcome outcome;
};
/* Starts a put of one entry and returns at once. */
int user_put_start(struct user *u, struct user_put *p, enum om_store_kind kind, const struct om_store_entry *entry);

int user_put(struct user *u, enum om_store_kind kind, const struct om_store_entry *entry);
int user_put_many(struct user *u, enum om_store_kind kind, const struct om_store_entry *entries, size_t n, struct om_outcome *outcomes);
/* A result with the usual fields. */
int user_result(struct user *u, const char *id, const char *agent, const char *value, int64_t saved_ms, int64_t expires_ms);
int user_get(struct user *u, enum om_store_kind kind, struct om_span key, struct om_span name, struct om_store_entry *ret);
/* The value as a string, or "none". */
const char *user_value(struct user *u, enum om_store_kind kind, const char *key, const char *name);
/* `in` gives the filters; its outputs are filled and live until user_close(). */
int user_list(struct user *u, struct om_store_list *in);
int64_t user_delete(struct user *u, enum om_store_kind kind, const char *key, const char *name);
/* 1: stored, 0: not, and *ret_value is what is there; < 0. */
int user_put_if_absent(struct user *u, const char *key, const char *value, int64_t expires_ms, const char **ret_value);
const char *user_health(struct user *u);

/* A fresh folder under /tmp for this test, and its removal with all that is in it. */
char *test_folder(void);
void test_folder_remove(char *folder);
char *test_read_file(const char *folder, const char *name, size_t *ret_len); /* NULL: there is none */
void test_write_file(const char *folder, const char *name, const void *data, size_t len);
bool test_file_exists(const char *folder, const char *name);

#endif
