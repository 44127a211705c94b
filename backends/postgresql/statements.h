/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_PG_STATEMENTS_H
#define OM_PG_STATEMENTS_H
/*
 * Every statement that the storage sends, as text with parameters; each is prepared on a connection when it is first used there.
 * Thread: any.
 */
#include <stdbool.h>

enum {
        OM_PG_PUT_AGENTS,
        OM_PG_PUT_RESULTS,
        OM_PG_PUT_METRICS,
        OM_PG_PUT_CONFIG,
        OM_PG_PUT_IF_ABSENT,
        OM_PG_GET_AGENT,
        OM_PG_GET_RESULT,
        OM_PG_GET_NEWEST,
        OM_PG_GET_CONFIG,
        OM_PG_GET_KEY,
        OM_PG_LIST_AGENTS,
        OM_PG_LIST_TOPIC_AGENTS,
        OM_PG_LIST_CONFIG,
        OM_PG_LIST_KEYS,
        OM_PG_DELETE_AGENT,
        OM_PG_DELETE_TOPIC_AGENTS,
        OM_PG_DELETE_RESULT,
        OM_PG_DELETE_RESULTS,
        OM_PG_DELETE_CONFIG,
        OM_PG_DELETE_KEY,
        OM_PG_CLEAR_AGENTS,
        OM_PG_CLEAR_RESULTS,
        OM_PG_CLEAR_METRICS,
        OM_PG_CLEAR_CONFIG,
        OM_PG_CLEAR_KEYS,
        OM_PG_SWEEP_RESULTS,
        OM_PG_SWEEP_KEYS,
        OM_PG_SWEEP_METRICS,
        OM_PG_HEALTH,
        OM_PG_LIST_METRICS,
        OM_PG_LIST_TOPIC_METRICS,
        OM_PG_LIST_RESULTS, /* the first of 32: by which filters there are */
        OM_PG_STATEMENTS = OM_PG_LIST_RESULTS + 32,
};
/* These are planned each time, for their values: a status that few have and one that most have need different indexes. */
static inline bool om_pg_is_planned_anew(unsigned statement) { return statement >= OM_PG_LIST_METRICS; }
/* Filters of a list of results, as bits; their parameters follow the first six in this order. */
enum { OM_PG_BY_TOPIC = 1, OM_PG_BY_AGENT = 2, OM_PG_BY_STATUS = 4, OM_PG_BY_WORDS = 8, OM_PG_BY_DOC = 16 };
enum { OM_PG_BATCH = 1000 /* rows that a sweep or a clearing deletes at once */ };

/* Static text. The ones of OM_PG_LIST_RESULTS are made at the first use: loop thread. NULL: out of memory. */
const char *om_pg_statement(unsigned statement);

#endif
