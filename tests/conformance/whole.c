/* SPDX-License-Identifier: Apache-2.0 */
/* The whole of it: started with nothing, started with mistakes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

static void typos(void) {
        static const struct {
                const char *set, *named, *meant, *known[3];
        } typos[] = {
                { "EVENT_BUS_URL=kafk://h:9092", "EVENT_BUS_URL", "kafka", { "local", "redis", "nats" } },
                { "EVENT_BUS_URL=locale:", "EVENT_BUS_URL", "local", { "local", "rabbitmq", "kafka" } },
                { "STORAGE_URL=jsno:data", "STORAGE_URL", "json", { "json", "postgresql", "mongodb" } },
                { "STORAGE_URL=postgres-sql://h/db", "STORAGE_URL", "postgresql", { "json", "s3", "mongodb" } },
                { "EVENT_BUS_TYPE=redis_strem", "EVENT_BUS_TYPE", "redis_stream", { "local", "redis_stream", "nats" } },
                { "STORAGE_BACKEND=mongdb", "STORAGE_BACKEND", "mongodb", { "json", "redis", "s3" } },
        };
        for (size_t i = 0; i < sizeof(typos) / sizeof(*typos); i++) {
                char *said;
                int status = om_test_daemon_refuses(conf_run.folder, NULL, (const char *const[]){ typos[i].set, NULL }, &said);
                MUST(status > 0 && status < 126, "%s: it ends with %d and says: %s", typos[i].set, status, said);
                MUST(strstr(said, typos[i].named), "%s: the setting is not named: %s", typos[i].set, said);
                MUST(strstr(said, typos[i].meant), "%s: what was meant is not named: %s", typos[i].set, said);
                for (int k = 0; k < 3; k++)
                        MUST(strstr(said, typos[i].known[k]), "%s: %s is not named as known: %s", typos[i].set, typos[i].known[k], said);
        }
}

/* No setting, no file, an empty folder: the rig's own URLs are left out. */
static void first_start(void) {
        struct stat s;
        static const char *const names[] = { "EVENT_BUS_URL", "STORAGE_URL", "EVENT_BUS_TYPE", "STORAGE_BACKEND", "JSON_STORAGE_DIR",
                "STATE_DIR", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY" };
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
                unsetenv(names[i]);
        double start = now_ms();
        rig_daemon = om_test_daemon_start(conf_run.folder, NULL, NULL);
        rig_client = client_new();
        const char *t = topic("greet");
        json_t *h = rpc(rig_client, "health", NULL);
        MUST(strcmp(str(h, "bus.name"), "local") == 0 && strcmp(str(h, "bus.url"), "local:") == 0, "the bus is %s", dump(at(h, "bus")));
        MUST(strcmp(str(h, "storage.name"), "json") == 0, "the storage is %s", dump(at(h, "storage")));
        MUST(strcmp(str(h, "status"), "running") == 0, "the status is %s", dump(h));
        struct worker *w = serve(t, "greeter", act_ack);
        char *id = publish(t, "{\"name\":\"world\"}");
        MUST(UNTIL(w->acked == 1, 10000), "not handled");
        printf("from nothing to the first task handled: %.0f ms\n", now_ms() - start);
        MUST(strcmp(str(rpc(rig_client, "health", NULL), "status"), "ready") == 0, "not ready with an agent");
        om_test_daemon_restart(rig_daemon);
        json_t *r = rpc(rig_client, "task.get", "{s:s}", "id", id);
        MUST(strcmp(str(r, "result.name"), "world") == 0, "the result is %s", dump(r));
        MUST(stat(rig_text("%s/.omnidaemon_data", conf_run.folder), &s) == 0 && S_ISDIR(s.st_mode), "its state is not in .omnidaemon_data");
        MUST((s.st_mode & 077) == 0, "others may look into its state: mode %o", s.st_mode & 07777);
        om_test_daemon_down(rig_daemon);
        MUST(access(rig_text("%s/.omnidaemon_data/results.json", conf_run.folder), R_OK) == 0,
                "there is no results.json after a clean stop");
        om_test_daemon_up(rig_daemon);
}

const struct conf_case conf_whole[] = {
        { "W01", "the same agent on every bus and storage, by URL alone and by the Python one's variables",
                .never = "there is one bus and one storage so far" },
        { "W02", "a typo in a scheme or a type names the known ones", typos, 20 },
        { "W03", "Python OmniDaemon and ours on one Redis, both directions", .never = "there is no Redis bus so far" },
        { "W04", "first start with nothing installed or configured: works on local: and JSON", first_start, 20 },
        { NULL },
};
