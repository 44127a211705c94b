/* SPDX-License-Identifier: Apache-2.0 */
/* The whole of it: started with nothing, started with mistakes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
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
        rig_restart();
        json_t *r = rpc(rig_client, "task.get", "{s:s}", "id", id);
        MUST(strcmp(str(r, "result.name"), "world") == 0, "the result is %s", dump(r));
        MUST(stat(rig_text("%s/.omnidaemon_data", conf_run.folder), &s) == 0 && S_ISDIR(s.st_mode), "its state is not in .omnidaemon_data");
        MUST((s.st_mode & 077) == 0, "others may look into its state: mode %o", s.st_mode & 07777);
        om_test_daemon_down(rig_daemon);
        MUST(access(rig_text("%s/.omnidaemon_data/results.json", conf_run.folder), R_OK) == 0,
                "there is no results.json after a clean stop");
        rig_again();
}

/* What an agent and who asks it see, whatever is behind the daemon. */
static void use(const char *name) {
        const char *t = topic(name);
        omni_agent_options o = agent_options(t, "a");
        o.dlq_retry_limit = 0;
        struct worker *good = serve(t, "a", act_ack);
        char *id = publish(t, "{\"n\":1,\"s\":\"\\u00e9\"}");
        MUST(UNTIL(good->acked == 1, 10000), "not handled");
        json_t *r = rpc(rig_client, "task.get", "{s:s,s:i}", "id", id, "wait_ms", 5000);
        MUST(strcmp(str(r, "status"), "completed") == 0 && strcmp(str(r, "agent"), "a") == 0, "the result is %s", dump(r));
        worker_close(good);
        struct worker *bad = serve_with(&o, act_fail);
        publish(t, "2");
        MUST(UNTIL_SLOWLY(bad->n > 0 && group_n(t, "a", "dead") == 1, 10000), "no dead letter");
        MUST(strcmp(str(json_array_get(dead_letters(t, "a"), 0), "error"), "on purpose") == 0 ||
                        strcmp(str(json_array_get(dead_letters(t, "a"), 0), "error.message"), "on purpose") == 0,
                "the dead letter is %s", dump(dead_letters(t, "a")));
        worker_close(bad);
        rig_restart();
        r = rpc(rig_client, "task.get", "{s:s}", "id", id);
        MUST(strcmp(str(r, "status"), "completed") == 0, "the result is gone after a restart: %s", dump(r));
        MUST_BE(group_n(t, "a", "dead"), 1);
        json_t *h = rpc(rig_client, "health", NULL);
        MUST(strcmp(str(h, "bus.status"), "up") == 0 && strcmp(str(h, "storage.status"), "up") == 0, "not healthy: %s", dump(h));
}

/* The variables of one side: the system's, or the embedded one's. */
static size_t python_names(const struct conf_backend *b, const char *name, const char *embedded, const char **env, size_t n) {
        const char *line;
        if (!b->server)
                env[n++] = embedded;
        else
                for (size_t i = 0; (line = om_test_server_nth(b->server, name, i)); i++)
                        env[n++] = rig_url(line);
        return n;
}

static void every_pair(void) {
        const char *env[16] = { 0 };
        rig_up(NULL);
        use("by-url");
        rig_down();
        size_t n = python_names(conf_run.bus, "bus_env", "EVENT_BUS_TYPE=local", env, 0), bus = n;
        n = python_names(conf_run.storage, "store_env", "STORAGE_BACKEND=json", env, n);
        if (bus == 0 || n == bus) {
                printf("the Python one has no variables for this\n");
                return;
        }
        rig_daemon = om_test_daemon_start(conf_run.folder, NULL, env);
        rig_client = client_new();
        use("by-names");
}

static bool is_system(const struct conf_backend *b, const char *name) { return b->system && strcmp(b->system, name) == 0; }

/* A suite of its own drives the real package: it starts a server, and daemons of ours beside the Python one on it. */
static void beside_python(void) {
        const char *servers = getenv("OMNI_SERVERS");
        char *script = rig_text("%s/../integration/test_python_redis.py", servers ? servers : "tests/servers");
        if (!is_system(conf_run.bus, "redis") || !is_system(conf_run.storage, "redis"))
                not_applicable("it is for bus and storage on one single Redis");
        pid_t pid = fork();
        MUST(pid >= 0, "fork: %s", strerror(errno));
        if (pid == 0) {
                execl(script, script, (char *) NULL);
                fprintf(stderr, "%s: %s\n", script, strerror(errno));
                _exit(127);
        }
        int status;
        MUST(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
        MUST(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s fails, see its output above", script);
}

const struct conf_case conf_whole[] = {
        { "W01", "the same agent on every bus and storage, by URL alone and by the Python one's variables", every_pair, 60, .pairs = true },
        { "W02", "a typo in a scheme or a type names the known ones", typos, 20 },
        { "W03", "Python OmniDaemon and ours on one Redis, both directions", beside_python, 240, .pairs = true },
        { "W04", "first start with nothing installed or configured: works on local: and JSON", first_start, 20 },
        { NULL },
};
