/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_METHODS_TASK_H
#define OM_METHODS_TASK_H
/* The methods of tasks that have files of their own; methods_task.c has the table. Loop thread. */
#include "session.h"

void om_task_publish(struct om_request *req, struct om_span params); /* methods_publish.c */
void om_task_ack(struct om_request *req, struct om_span params);     /* methods_ack.c */
void om_task_fail(struct om_request *req, struct om_span params);
void om_task_extend(struct om_request *req, struct om_span params);

#endif
