/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_PUBLISH_H
#define OM_CTL_PUBLISH_H
/* task publish: what one task and many have in common. Thread: one. */
#include "ctl.h"

/* Everything but the content, from the command line; `memory` holds what had to be composed. 0 or an exit code. */
int publish_options(struct ctl *ctl, omni_publish_options *ret, struct om_buf memory[2]);
/* Makes the content's JSON from what was given, by --json and --text; `ret` may be `given` itself or in `b`. 0, or -EINVAL with `e`. */
int publish_content(struct ctl *ctl, struct om_span given, struct om_buf *b, struct om_span *ret, struct om_error *e);
enum { PUBLISH_WAIT_MS = 30000 };

/* --lines, --each-file: publish_many.c. */
int publish_many(struct ctl *ctl, const omni_publish_options *task);

#endif
