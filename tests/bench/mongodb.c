/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MongoDB: settings written and read through the daemon, beside libmongoc alone with the same operations on the same server: a replace with
 * upsert, a find by _id. Alone, each write is a round trip; through the daemon what waits goes in one. The server is FerretDB
 * (tests/servers/mongodb.sh).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_MONGOC
#include <mongoc/mongoc.h>

static char folder[64], store_url[300];
static struct om_test_server *server;
static int64_t written;

static void server_start(void) {
        folder_new(folder);
        server = om_test_server_start("mongodb", folder);
        const char *url = om_test_server_value(server, "store_url"), *hole = strstr(url, "{case}");
        snprintf(store_url, sizeof(store_url), "%.*sbench%s", (int) (hole - url), url, hole + strlen("{case}"));
        setenv("STORAGE_URL", store_url, 1);
}

static void server_stop(void) {
        unsetenv("STORAGE_URL");
        om_test_server_stop(server);
        folder_remove(folder);
}

/* The library has no more than one under way. */
static double alone(bool writes, long total, int under_way, double *us) {
        mongoc_init();
        mongoc_client_t *client = mongoc_client_new(store_url);
        mongoc_collection_t *c = mongoc_client_get_collection(client, "bench", "native");
        bson_t *upsert = BCON_NEW("upsert", BCON_BOOL(true));
        bson_error_t why;
        double start = now_s();
        for (long i = 0; i < total; i++) {
                char key[32];
                const bson_t *doc;
                double begun = now_s();
                snprintf(key, sizeof(key), "k%ld", i % KEYS);
                bson_t *find = BCON_NEW("_id", BCON_UTF8(key)),
                       *new = BCON_NEW("_id", BCON_UTF8(key), "text", BCON_UTF8(value_text()), "doc", BCON_UTF8(value_text()), "n",
                               BCON_INT64(++written)); /* what is there already would not be written, and not be synced */
                if (writes && !mongoc_collection_replace_one(c, find, new, upsert, NULL, &why))
                        die("libmongoc", why.message);
                if (!writes) {
                        mongoc_cursor_t *cursor = mongoc_collection_find_with_opts(c, find, NULL, NULL);
                        if (!mongoc_cursor_next(cursor, &doc))
                                die("libmongoc", "a key is not there");
                        mongoc_cursor_destroy(cursor);
                }
                bson_destroy(find);
                bson_destroy(new);
                if (us)
                        us[i] = (now_s() - begun) * 1e6;
        }
        double seconds = now_s() - start;
        bson_destroy(upsert);
        mongoc_collection_destroy(c);
        mongoc_client_destroy(client);
        return seconds;
}

void case_mongodb(void) {
        struct daemon d;
        server_start();
        daemon_start(&d, "local:bus?durability=memory");
        settings_rates(&d, "mongodb", alone, 1, scaled(2000));
        daemon_stop(&d);
        server_stop();
}

void case_mongodb_latency(void) {
        struct daemon d;
        server_start();
        daemon_start(&d, "local:bus?durability=memory");
        settings_latencies(&d, "mongodb", alone, scaled(1000));
        daemon_stop(&d);
        server_stop();
}
#else
void case_mongodb_latency(void) {}
void case_mongodb(void) { figure_missing("mongodb_native_set", "built without libmongoc; packaging/install-deps.sh mongodb installs it"); }
#endif
