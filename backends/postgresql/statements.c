/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The statements: see statements.h.
 *
 * Writes take arrays, so that a batch is one statement, one transaction and one sync of the server's log. Its rows are written in the order
 * of their keys, so that two batches cannot wait for each other; of rows with the same key the last one counts. Lists go by a key that an
 * index has, never by an offset; what they look for is in tests/unit/test_postgresql.c, with the plans that the server makes.
 */
#include <stdlib.h>

#include "../../proto/buf.h"
#include "statements.h"

#define BATCH "1000"
_Static_assert(OM_PG_BATCH == 1000, "BATCH is its text");

/* What a put is given, whatever its kind. */
#define ENTRIES                                                                                                                      \
        " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bool[], $7::timestamptz[], $8::timestamptz[])" \
        " WITH ORDINALITY AS e(key, name, topic, status, value, plain, saved_at, expires_at, place)"
/* OFFSET 0: the text is made JSONB once, however often doc is used. */
#define DOC " CROSS JOIN LATERAL (SELECT CASE WHEN NOT e.plain THEN e.value::jsonb END AS doc OFFSET 0) AS d"
#define SEQ "(SELECT nextval('write_order')) * 65536 + e.place"

#define UNEXPIRED(now) "(expires_at IS NULL OR expires_at > " now ")"

/* Rows of lists: each with how many there were before the page was cut at so many bytes. The limit is one more than is given back. */
#define PAGE(columns, from, order)                                                                                                       \
        "SELECT key, name, topic, status, value, saved_at, expires_at, seq, found FROM ("                                                \
        "SELECT p.*, count(*) OVER () AS found, row_number() OVER w AS place, sum(octet_length(value)) OVER w - octet_length(value) AS " \
        "before"                                                                                                                         \
        " FROM (SELECT " columns " " from " ORDER BY " order " LIMIT $1) AS p WINDOW w AS (ORDER BY " order                              \
        " ROWS UNBOUNDED PRECEDING)) AS q"                                                                                               \
        " WHERE place < $1 AND before < $2 ORDER BY " order
#define NEWEST "saved_at DESC, seq DESC"
#define RESULT_COLUMNS "task_id AS key, nullif(agent, '') AS name, topic, status, value, saved_at, expires_at, seq"
#define AGENT_COLUMNS "topic AS key, name, topic, NULL::text AS status, value, saved_at, NULL::timestamptz AS expires_at, 0::bigint AS seq"
#define METRIC_COLUMNS "NULL::text AS key, NULL::text AS name, topic, status, value, saved_at, expires_at, seq"
#define CONFIG_COLUMNS                                                                                                                     \
        "key, NULL::text AS name, NULL::text AS topic, NULL::text AS status, value, saved_at, NULL::timestamptz AS expires_at, 0::bigint " \
        "AS seq"
#define KEY_COLUMNS                                                                                                                        \
        "key, NULL::text AS name, NULL::text AS topic, NULL::text AS status, value, NULL::timestamptz AS saved_at, expires_at, 0::bigint " \
        "AS seq"

#define COUNTED(delete, now) \
        "WITH d AS (" delete " RETURNING expires_at) SELECT count(*), count(*) FILTER (WHERE " UNEXPIRED(now) ") FROM d"
#define COUNTED_ALL(delete) "WITH d AS (" delete " RETURNING 1) SELECT count(*), count(*) FROM d"
#define SOME(table, which) "DELETE FROM " table " WHERE ctid = ANY (ARRAY(SELECT ctid FROM " table " " which " LIMIT " BATCH
/* What a writer holds just now is left for the next time. */
#define SWEEP(table, which) SOME(table, which) " FOR UPDATE SKIP LOCKED))"

#define ESTIMATE(table)                                                                                                                 \
        "(SELECT CASE WHEN n <= 100000 THEN n ELSE greatest(n, (SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('" table \
        "'))) END"                                                                                                                      \
        " FROM (SELECT count(*) AS n FROM (SELECT 1 FROM " table " LIMIT 100001) AS x) AS y)::text"

static const char *const statements[] = {
        [OM_PG_PUT_AGENTS] =
                "INSERT INTO agents (topic, name, value, doc, saved_at)"
                " SELECT DISTINCT ON (key, name) e.key, e.name, e.value, d.doc, e.saved_at" ENTRIES DOC " ORDER BY key, name, place DESC"
                " ON CONFLICT (topic, name) DO UPDATE SET value = excluded.value, doc = excluded.doc, saved_at = excluded.saved_at",
        [OM_PG_PUT_RESULTS] =
                "INSERT INTO results (task_id, agent, topic, status, value, doc, words, saved_at, expires_at, seq)"
                " SELECT DISTINCT ON (key, name) e.key, coalesce(e.name, ''), e.topic, e.status, e.value, d.doc, words_of(e.value, d.doc),"
                " e.saved_at, e.expires_at, " SEQ ENTRIES DOC " ORDER BY key, name, place DESC"
                " ON CONFLICT (task_id, agent) DO UPDATE SET topic = excluded.topic, status = excluded.status, value = excluded.value,"
                " doc = excluded.doc, words = excluded.words, saved_at = excluded.saved_at, expires_at = excluded.expires_at, seq = "
                "excluded.seq",
        [OM_PG_PUT_METRICS] = "INSERT INTO metrics (topic, status, value, doc, saved_at, expires_at, seq)"
                              " SELECT e.topic, e.status, e.value, d.doc, e.saved_at, e.expires_at, " SEQ ENTRIES DOC,
        [OM_PG_PUT_CONFIG] =
                "INSERT INTO config (key, value, doc, saved_at) SELECT DISTINCT ON (key) e.key, e.value, d.doc, e.saved_at" ENTRIES DOC
                " ORDER BY key, place DESC"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value, doc = excluded.doc, saved_at = excluded.saved_at",
        /* No row: the other one's was not committed when this began. It is asked again then. */
        [OM_PG_PUT_IF_ABSENT] =
                "WITH mine AS (INSERT INTO keys AS k (key, value, expires_at) VALUES ($1, $2, $3)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at WHERE k.expires_at <= $4"
                " RETURNING 1) SELECT true, NULL::text FROM mine UNION ALL"
                " SELECT false, value FROM keys WHERE key = $1 AND " UNEXPIRED("$4") " AND NOT EXISTS (SELECT FROM mine)",
        [OM_PG_GET_AGENT] = "SELECT " AGENT_COLUMNS " FROM agents WHERE topic = $1 AND name = $2",
        [OM_PG_GET_RESULT] = "SELECT " RESULT_COLUMNS " FROM results WHERE task_id = $1 AND agent = $2 AND " UNEXPIRED("$3"),
        [OM_PG_GET_NEWEST] =
                "SELECT " RESULT_COLUMNS " FROM results WHERE task_id = $1 AND " UNEXPIRED("$2") " ORDER BY " NEWEST " LIMIT 1",
        [OM_PG_GET_CONFIG] = "SELECT " CONFIG_COLUMNS " FROM config WHERE key = $1",
        [OM_PG_GET_KEY] = "SELECT " KEY_COLUMNS " FROM keys WHERE key = $1 AND " UNEXPIRED("$2"),
        [OM_PG_LIST_AGENTS] = PAGE(
                AGENT_COLUMNS, "FROM agents WHERE (topic, name) >= ($3::text, $4::text) AND ($5::text IS NULL OR name = $5)", "key, name"),
        [OM_PG_LIST_TOPIC_AGENTS] =
                PAGE(AGENT_COLUMNS, "FROM agents WHERE topic = $3 AND name >= $4::text AND ($5::text IS NULL OR name = $5)", "key, name"),
        [OM_PG_LIST_CONFIG] = PAGE(CONFIG_COLUMNS, "FROM config WHERE key >= $3::text AND key < $4::text", "key"),
        [OM_PG_LIST_KEYS] = PAGE(KEY_COLUMNS, "FROM keys WHERE key >= $3::text AND " UNEXPIRED("$4"), "key"),
        [OM_PG_LIST_METRICS] = PAGE(METRIC_COLUMNS,
                "FROM metrics WHERE (saved_at, seq) < ($3::timestamptz, $4::bigint) AND saved_at >= $5 AND " UNEXPIRED("$6"), NEWEST),
        [OM_PG_LIST_TOPIC_METRICS] = PAGE(METRIC_COLUMNS,
                "FROM metrics WHERE (saved_at, seq) < ($3::timestamptz, $4::bigint) AND saved_at >= $5 AND " UNEXPIRED(
                        "$6") " AND topic = $7",
                NEWEST),
        [OM_PG_DELETE_AGENT] = COUNTED_ALL("DELETE FROM agents WHERE topic = $1 AND name = $2"),
        [OM_PG_DELETE_TOPIC_AGENTS] = COUNTED_ALL("DELETE FROM agents WHERE topic = $1"),
        [OM_PG_DELETE_RESULT] = COUNTED("DELETE FROM results WHERE task_id = $1 AND agent = $2", "$3"),
        [OM_PG_DELETE_RESULTS] = COUNTED("DELETE FROM results WHERE task_id = $1", "$2"),
        [OM_PG_DELETE_CONFIG] = COUNTED_ALL("DELETE FROM config WHERE key = $1"),
        [OM_PG_DELETE_KEY] = COUNTED("DELETE FROM keys WHERE key = $1", "$2"),
        [OM_PG_CLEAR_AGENTS] = COUNTED_ALL(SOME("agents", "") "))"),
        [OM_PG_CLEAR_RESULTS] = COUNTED(SOME("results", "") "))", "$1"),
        [OM_PG_CLEAR_METRICS] = COUNTED_ALL(SOME("metrics", "") "))"),
        [OM_PG_CLEAR_CONFIG] = COUNTED_ALL(SOME("config", "") "))"),
        [OM_PG_CLEAR_KEYS] = COUNTED(SOME("keys", "") "))", "$1"),
        /* The earlier of two clocks: a server that is ahead deletes nothing that the daemons would still read. */
        [OM_PG_SWEEP_RESULTS] = COUNTED_ALL(SWEEP("results", "WHERE expires_at <= least($1, now()) ORDER BY expires_at")),
        [OM_PG_SWEEP_KEYS] = COUNTED_ALL(SWEEP("keys", "WHERE expires_at <= least($1, now()) ORDER BY expires_at")),
        [OM_PG_SWEEP_METRICS] =
                COUNTED_ALL(SWEEP("metrics", "WHERE seq <= (SELECT seq FROM metrics ORDER BY seq DESC OFFSET $1 LIMIT 1) ORDER BY seq")),
        [OM_PG_HEALTH] =
                "SELECT current_setting('server_version'), current_setting('synchronous_commit'), current_setting('fsync'),"
                " current_setting('full_page_writes'), current_setting('max_connections'), pg_is_in_recovery()::text,"
                " (SELECT max(version) FROM schema_version)::text, " ESTIMATE("agents") ", " ESTIMATE("results") ", " ESTIMATE(
                        "metrics") ", (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class AS c WHERE c.relkind = 'r'"
                                   " AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('results')))::text, "
                                   "current_database()::text",
};

/* -- lists of results, by the filters that there are ------------------------------------------------------------------- */

static char *result_lists[32];

static char *make_list(unsigned filters) {
        static const char *const conditions[] = { "topic = $", "agent = $", "status = $", "words @@ websearch_to_tsquery($", "doc @> ($" };
        static const char *const ends[] = { "", "", "", "::text)", "::text)::jsonb" };
        struct om_buf where = OM_BUF_INIT, b = OM_BUF_INIT;
        unsigned n = 7;

        for (unsigned i = 0; i < 5; i++)
                if (filters & 1u << i)
                        om_buf_printf(&where, " AND %s%u%s", conditions[i], n++, ends[i]);
        om_buf_putc(&where, 0);
        if (om_buf_ok(&where))
                om_buf_printf(&b,
                        PAGE(RESULT_COLUMNS,
                                "FROM results WHERE (saved_at, seq) < ($3::timestamptz, $4::bigint) AND saved_at >= $5 AND " UNEXPIRED(
                                        "$6") "%s",
                                NEWEST),
                        where.data);
        om_buf_putc(&b, 0);
        om_buf_deinit(&where);
        if (om_buf_ok(&b))
                return b.data;
        om_buf_deinit(&b);
        return NULL;
}

const char *om_pg_statement(unsigned statement) {
        unsigned filters = statement - OM_PG_LIST_RESULTS;

        if (statement < OM_PG_LIST_RESULTS)
                return statements[statement];
        if (!result_lists[filters])
                result_lists[filters] = make_list(filters);
        return result_lists[filters];
}
