/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables, and how an older schema becomes this one.
 *
 * A value is kept twice: as the text that came, which is what is given back, byte for byte, and as JSONB (`doc`), which loses the order of
 * members, repeated ones and the spelling of numbers, for the server to search. `doc` is null where JSONB cannot hold the value (U+0000,
 * half a surrogate pair, a number of a million digits): such a record is kept and read like any other, and not found by its content.
 * `words` is what full-text search looks through: the strings, numbers and truth values of doc; of a value above 256 KiB the first 128 KiB
 * of its text, since the server's limit is 1 MiB of words.
 *
 * Keys are compared by their bytes (COLLATE "C"). `seq` is the order of writes, for those of one microsecond.
 *
 * Migrations are numbered and only ever appended: each is applied once, in order, in one transaction with the note that it was, under an
 * advisory lock, so that of several daemons that start at once one does it and the others find it done. Called by session.c. Thread: a
 * worker's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../host.h"
#include "session.h"

enum { MIGRATION_TIMEOUT_MS = 600000 };

const char *const om_pg_migrations[] = {
        /* 1: everything but full-text search */
        "CREATE SEQUENCE write_order;"
        "CREATE TABLE agents ("
        " topic text COLLATE \"C\" NOT NULL, name text COLLATE \"C\" NOT NULL, value text NOT NULL, doc jsonb,"
        " saved_at timestamptz NOT NULL, PRIMARY KEY (topic, name));"
        "CREATE TABLE results ("
        " task_id text COLLATE \"C\" NOT NULL, agent text COLLATE \"C\" NOT NULL, topic text COLLATE \"C\", status text COLLATE \"C\","
        " value text NOT NULL, doc jsonb, saved_at timestamptz NOT NULL, expires_at timestamptz, seq bigint NOT NULL,"
        " PRIMARY KEY (task_id, agent));"
        "CREATE INDEX results_newest ON results (saved_at DESC, seq DESC);"
        "CREATE INDEX results_topic ON results (topic, saved_at DESC, seq DESC);"
        "CREATE INDEX results_agent ON results (agent, saved_at DESC, seq DESC);"
        "CREATE INDEX results_status ON results (status, saved_at DESC, seq DESC);"
        "CREATE INDEX results_expiry ON results (expires_at) WHERE expires_at IS NOT NULL;"
        "CREATE INDEX results_doc ON results USING gin (doc jsonb_path_ops);"
        "CREATE TABLE metrics ("
        " seq bigint PRIMARY KEY, topic text COLLATE \"C\", status text COLLATE \"C\", value text NOT NULL, doc jsonb,"
        " saved_at timestamptz NOT NULL, expires_at timestamptz);"
        "CREATE INDEX metrics_newest ON metrics (saved_at DESC, seq DESC);"
        "CREATE INDEX metrics_topic ON metrics (topic, saved_at DESC, seq DESC);"
        "CREATE TABLE config (key text COLLATE \"C\" PRIMARY KEY, value text NOT NULL, doc jsonb, saved_at timestamptz NOT NULL);"
        "CREATE TABLE keys (key text COLLATE \"C\" PRIMARY KEY, value text NOT NULL, expires_at timestamptz);"
        "CREATE INDEX keys_expiry ON keys (expires_at) WHERE expires_at IS NOT NULL;",
        /* 2: full-text search */
        "CREATE FUNCTION words_of(value text, doc jsonb) RETURNS tsvector STABLE PARALLEL SAFE LANGUAGE sql AS $$"
        " SELECT CASE WHEN doc IS NULL THEN NULL"
        "  WHEN octet_length(value) <= 262144 THEN jsonb_to_tsvector(doc, '[\"string\", \"numeric\", \"boolean\"]')"
        "  ELSE to_tsvector(left(value, 131072)) END $$;"
        "ALTER TABLE results ADD COLUMN words tsvector;"
        "UPDATE results SET words = words_of(value, doc);"
        "CREATE INDEX results_words ON results USING gin (words);",
        NULL,
};

static int latest(void) {
        int n = 0;

        while (om_pg_migrations[n])
                n++;
        return n;
}

/* 0 where there is no schema yet, or no table of versions in it. */
static int read_version(PGconn *conn, const struct om_pg_settings *s, const struct om_pg_wait *w, int *ret, struct om_error *e) {
        PGresult *res = NULL;
        int r = om_pg_exec(conn, w, "looking for the schema", "SELECT to_regclass(quote_ident($1) || '.schema_version') IS NOT NULL", 1,
                &s->schema, &res, e);
        bool there = r == 0 && PQntuples(res) == 1 && PQgetvalue(res, 0, 0)[0] == 't';

        *ret = 0;
        PQclear(res);
        if (r < 0 || !there)
                return r;
        res = NULL;
        r = om_pg_exec(conn, w, "reading the schema's version", "SELECT coalesce(max(version), 0) FROM schema_version", 0, NULL, &res, e);
        if (r == 0 && PQntuples(res) == 1)
                *ret = atoi(PQgetvalue(res, 0, 0));
        PQclear(res);
        return r;
}

static int make_schema(PGconn *conn, const struct om_pg_settings *s, const struct om_pg_wait *w, struct om_error *e) {
        PGresult *res = NULL;
        int r = om_pg_exec(conn, w, "looking for the schema", "SELECT 1 FROM pg_namespace WHERE nspname = $1", 1, &s->schema, &res, e);
        bool there = r == 0 && PQntuples(res) > 0;

        PQclear(res);
        /* Looked for first: IF NOT EXISTS asks for the privilege to make one all the same. The name goes by a setting: DO has no
         * parameters. */
        if (r == 0 && !there)
                r = om_pg_exec(conn, w, "making the schema", "SELECT set_config('omnidaemon.schema', $1, true)", 1, &s->schema, NULL, e);
        if (r == 0 && !there)
                r = om_pg_exec(conn, w, "making the schema",
                        "DO $$ BEGIN EXECUTE format('CREATE SCHEMA %I', current_setting('omnidaemon.schema')); END $$", 0, NULL, NULL, e);
        if (r == 0)
                r = om_pg_exec(conn, w, "making the schema",
                        "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT "
                        "now())",
                        0, NULL, NULL, e);
        return r;
}

static int apply(PGconn *conn, const struct om_pg_settings *s, const struct om_pg_wait *w, struct om_error *e) {
        int version, r = om_pg_exec(conn, w, "upgrading the schema", "SELECT set_config('statement_timeout', '0', true)", 0, NULL, NULL, e);

        /* Two numbers: one for this program, one for the schema. Held to the end of the transaction. */
        if (r == 0)
                r = om_pg_exec(conn, w, "waiting for another daemon that upgrades the schema",
                        "SELECT pg_advisory_xact_lock(1869440365, hashtext($1))", 1, &s->schema, NULL, e);
        if (r == 0)
                r = make_schema(conn, s, w, e);
        if (r == 0)
                r = read_version(conn, s, w, &version, e);
        for (; r == 0 && version < latest(); version++) {
                char doing[64], number[16];
                const char *values[] = { number };

                snprintf(doing, sizeof doing, "migration %d of the schema", version + 1);
                snprintf(number, sizeof number, "%d", version + 1);
                r = om_pg_exec(conn, w, doing, om_pg_migrations[version], -1, NULL, NULL, e);
                if (r == 0)
                        r = om_pg_exec(conn, w, doing, "INSERT INTO schema_version (version) VALUES ($1::integer)", 1, values, NULL, e);
        }
        return r;
}

int om_pg_migrate(PGconn *conn, const struct om_pg_settings *s, const struct om_pg_wait *w, struct om_error *e) {
        struct om_pg_wait long_wait = { w->abort_fd, om_clock_ms() + MIGRATION_TIMEOUT_MS };
        int version, r = read_version(conn, s, w, &version, e);

        if (r < 0 || version == latest())
                return r;
        if (version > latest())
                return om_error_set(e, OM_UNSUPPORTED,
                        "PostgreSQL: %s: the schema %s has version %d and this OmniDaemon knows %d: upgrade it, or name another schema in "
                        "the URL",
                        s->where, s->schema, version, latest());
        r = om_pg_exec(conn, w, "upgrading the schema", "BEGIN", 0, NULL, NULL, e);
        if (r == 0)
                r = apply(conn, s, &long_wait, e);
        if (r == 0)
                r = om_pg_exec(conn, &long_wait, "upgrading the schema", "COMMIT", 0, NULL, NULL, e);
        return r; /* on failure the connection is closed, and with it the transaction */
}
