/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_CTL_PROGRESS_H
#define OM_CTL_PROGRESS_H
/*
 * A progress bar on standard error: only on a terminal, only for what takes longer than a moment, drawn at most ten times a second, and
 * gone when it ends. Thread: one.
 */
#include "ctl.h"

struct progress {
        struct ctl *ctl;
        const char *label;
        uint64_t total, done; /* total 0: not known */
        double started, drawn;
        bool shown, bytes; /* bytes: counts are sizes */
};

void progress_begin(struct progress *p, struct ctl *ctl, const char *label, uint64_t total);
void progress_set(struct progress *p, uint64_t done);
/* Clears the line, so that what follows stands in its place. */
void progress_end(struct progress *p);
/* Seconds since it began. */
double progress_seconds(const struct progress *p);
/* The bar as text, for tests: appended to `b`. */
void progress_draw(const struct progress *p, struct om_buf *b, double seconds, unsigned width);

#endif
