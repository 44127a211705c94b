/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H
/*
 * What every bus and every storage must pass, as one program: cases (B: bus, S: storage, W: whole) that are the same for all backends,
 * driven through the socket of a real daemon by libomniclient. README.md lists them and says how to run them.
 *
 * A case runs in a process of its own, with a folder, a daemon and topics of its own, so that cases run beside each other and none stops
 * the rest. It returns when all was as it must be; everything else ends the process: MUST() says what was wrong, not_applicable() why the
 * backend cannot be asked.
 *
 * Thread: one a process. Memory of a case is not given back; the process ends.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum conf_family { CONF_BUS = 'B', CONF_STORAGE = 'S', CONF_WHOLE = 'W' };

struct om_test_server;

struct conf_backend {       /* a column of the table */
        const char *name;   /* "redis:cluster", or the URL as it was given */
        const char *url;    /* "{case}" in it stands for the case's tag */
        const char *system; /* "redis:cluster": what tests/servers started; NULL: a URL of the caller's */
        const struct om_test_server *server;
};

struct conf_case {
        const char *id; /* "B07"; its letter is the family */
        const char *sentence;
        void (*run)(void);      /* NULL: nothing runs it yet, for the reason in `never` */
        unsigned seconds;       /* it is killed after so long; ten times as long at full scale */
        const char *capability; /* of the bus; where it lacks it the case is n/a. NULL: none needed */
        const char *embedded;   /* why it is n/a where bus (B) or storage (S) is inside the daemon; NULL: it runs there too */
        const char *never;
        bool pairs; /* W: on every bus with every storage; else on the first of both */
};

/* Each file's cases, ended by id == NULL. */
extern const struct conf_case conf_bus_basic[], conf_bus_order[], conf_bus_retry[], conf_bus_lease[], conf_bus_fault[], conf_bus_extras[],
        conf_bus_load[], conf_storage[], conf_storage_fault[], conf_storage_pair[], conf_whole[];

/* What a case is run with; set by the runner before it. */
struct conf_run {
        const struct conf_case *c;
        const struct conf_backend *bus, *storage;
        const char *bus_url, *storage_url; /* of these; or of the case's own server */
        const char *folder;                /* its own, empty; removed afterwards */
        char tag[40];                      /* unique to this run of this case: the beginning of its topics */
        bool full;                         /* the numbers of the case's sentence; else smaller ones */
};
extern struct conf_run conf_run;

/* A count or a time of the sentence, and what short runs make of it. */
#define SCALE(full_, short_) (conf_run.full ? (full_) : (short_))

_Noreturn void conf_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The case's verdict: when not `condition`, it failed, and the rest of the arguments say as what. */
#define MUST(condition, ...)                                        \
        do {                                                        \
                if (!(condition))                                   \
                        conf_fail(__FILE__, __LINE__, __VA_ARGS__); \
        } while (0)
#define MUST_BE(a, b)                                                            \
        do {                                                                     \
                long long a_ = (long long) (a), b_ = (long long) (b);            \
                MUST(a_ == b_, "%s is %lld, must be %s (%lld)", #a, a_, #b, b_); \
        } while (0)
_Noreturn void not_applicable(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Exit statuses of a case's process. The reason of CONF_NA is in the file FOLDER/reason. */
enum { CONF_OK = 0, CONF_FAILED = 1, CONF_NA = 77 };

#endif
