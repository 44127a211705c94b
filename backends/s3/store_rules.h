/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_S3_STORE_RULES_H
#define OM_S3_STORE_RULES_H
/* Lifecycle configurations as text: see store_rules.c. Pure. */
#include "../../proto/buf.h"

/* Whether a configuration has all of our rules for this prefix, enabled. `xml` "" is none. -EINVAL. */
int s3_rules_check(struct om_span xml, const char *prefix);
/* Appends the same configuration with our rules in it, and everybody else's as they were. -EINVAL. */
int s3_rules_merge(struct om_buf *b, struct om_span xml, const char *prefix);

#endif
