/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_LOG_H
#define OM_LOG_H
/*
 * The one sink of log lines: the journal when standard error is the journal's (or LOG_TARGET=journal), else standard error. Every line
 * passes om_url_redact(). Any thread; a line is one write.
 */
#include "../backends/host.h"

enum om_log_target { OM_LOG_AUTO, OM_LOG_STDERR, OM_LOG_JOURNAL };
void om_log_open(enum om_log_target target, enum om_level max_level);
void om_log_set_level(enum om_level max_level);
bool om_log_enabled(enum om_level level);
void om_log(enum om_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "context: message" of an error. */
void om_log_error(enum om_level level, const struct om_error *e, const char *context);

#endif
