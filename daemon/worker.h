/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_WORKER_H
#define OM_WORKER_H
/*
 * Worker threads: the part of om_host_ops that backends reach as host->ops->worker_new, worker_submit and worker_stop. The contract is
 * host.h's; all three are called on the loop thread.
 */
#include "../backends/host.h"

int om_worker_new(struct om_host *host, const char *name, om_worker_turn_fn *turn, void *ctx, struct om_worker **ret, struct om_error *e);
void om_worker_submit(struct om_worker *w, struct om_work *work);
void om_worker_stop(struct om_worker *w, struct om_post *stopped);

#endif
