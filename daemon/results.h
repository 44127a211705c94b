/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_RESULTS_H
#define OM_RESULTS_H
/*
 * Result records: composing and saving them (batched per turn), and waking those who wait for one (task.get with wait_ms). Loop thread.
 */
#include "session.h"

struct om_result {
        struct om_span record; /* the task's record */
        struct om_span agent, worker;
        uint32_t attempts;
        struct om_span result;            /* raw JSON; absent: failed */
        struct om_span error, error_type; /* failed */
        int64_t at_ms;
};
/* One save under way; embedded. done: status 0 once it is durable. */
struct om_result_save {
        void (*done)(struct om_result_save *save, int status, const struct om_error *error);
        struct om_result_save *next; /* results.c's */
        size_t index;
};
int om_results_new(struct om_core *core, struct om_results **ret);
void om_results_free(struct om_results *r);
/* Copies what it needs; done() never before return. */
void om_results_save(struct om_results *r, const struct om_result *result, struct om_result_save *save);
/* Appends the flat record of PROTOCOL.md. */
void om_result_write(struct om_buf *b, const struct om_core *core, const struct om_result *result);
/* Answers the request with the record, waiting at most wait_ms for it. Takes req. */
void om_results_get(struct om_results *r, struct om_request *req, struct om_span id, struct om_span agent, int64_t wait_ms);

#endif
