/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CONFORMANCE_REPORT_H
#define CONFORMANCE_REPORT_H
/* What became of the cases, told three ways: a line each as they end (TAP), the table case × backend, and JSON. */
#include <sys/types.h>

#include "conformance.h"

enum verdict { VERDICT_WAITING, VERDICT_OK, VERDICT_FAILED, VERDICT_NA };

struct outcome { /* one case on one backend */
        const struct conf_case *c;
        const struct conf_backend *bus, *storage;
        const char *backend; /* the name of what the case is about */
        unsigned number;
        enum verdict verdict;
        const char *text; /* what it printed; for n/a the reason */
        const char *why;  /* it failed: one line */
        double seconds;
        /* the runner's */
        pid_t pid;
        bool killed;
        double started_s, deadline_s;
        char folder[128];
};
struct report {
        const struct outcome *all; /* by case */
        size_t n;
        const struct conf_backend *buses, *storages; /* ended by name == NULL */
        bool full, tap;
        double seconds;
};

/* Called as each ends. n/a is a comment in TAP: it is neither passed nor skipped. */
void report_one(const struct outcome *o, unsigned *printed, bool tap);
/* The table. How many failed. */
int report_all(const struct report *r);
int report_json(const struct report *r, const char *path);

#endif
