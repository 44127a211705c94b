/* SPDX-License-Identifier: Apache-2.0 */
/* Deaths of the daemon amid writes, disks that are full or closed, servers that are away. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

/* -- kill -9 ----------------------------------------------------------------------------------------------------------------------------
 */

enum { KEYS = 200, UNDER_WAY = 100 };
static struct { int sent, acknowledged; /* the newest value of the key that was */ } keys[KEYS];
static long answers;
static int under_way;

struct write {
        int key, value;
};

static void written(omni_client *c, int status, const char *result, size_t len, const char *error, void *user) {
        struct write *w = user;
        under_way--;
        answers++;
        if (status == 0 && w->value > keys[w->key].acknowledged)
                keys[w->key].acknowledged = w->value;
        MUST(status == 0 || status == -ECONNRESET, "config.set: %s", error);
        free(w);
}

static void write_one(omni_client *c) {
        static int next;
        char params[400];
        struct write *w = malloc(sizeof(*w));
        *w = (struct write){ next % KEYS, next / KEYS + 1 };
        next++;
        keys[w->key].sent = w->value;
        snprintf(params, sizeof(params), "{\"key\":\"k%d\",\"value\":[%d,\"%0250d\"]}", w->key, w->value, w->value);
        MUST(omni_call_async(c, "config.set", params, written, w) == 0, "config.set: %s", omni_strerror(c));
        under_way++;
}

/* What a hand or a script would read: whole JSON, at any moment. */
static unsigned files_are_readable(void) {
        if (strncmp(conf_run.storage_url, "json:", 5) != 0)
                return 0;
        char *folder = rig_text("%s/%s", conf_run.folder, conf_run.storage_url[5] ? conf_run.storage_url + 5 : ".omnidaemon_data");
        DIR *d = opendir(conf_run.storage_url[5] == '/' ? conf_run.storage_url + 5 : folder);
        unsigned n = 0;
        MUST(d, "%s: %s", folder, strerror(errno));
        for (struct dirent *e; (e = readdir(d));) {
                size_t len = strlen(e->d_name);
                if (len < 5 || strcmp(e->d_name + len - 5, ".json") != 0)
                        continue;
                json_error_t error;
                json_t *j = json_load_file(rig_text("%s/%s", folder, e->d_name), 0, &error);
                MUST(j, "%s is no JSON: %s", e->d_name, error.text);
                json_decref(j);
                n++;
        }
        closedir(d);
        return n;
}

static void killed_while_writing(void) {
        int kills = SCALE(30, 6);
        rig_up(NULL);
        const char *t = topic("t");
        omni_client *writer = client_new();
        struct worker *w = serve(t, "a", act_ack);
        for (int round = 1; round <= kills; round++) {
                long target = answers + 300 + any(500);
                publish_numbers(t, round * 1000, 50);
                while (answers < target) {
                        while (under_way < UNDER_WAY)
                                write_one(writer);
                        serve_once(1000);
                }
                om_test_daemon_kill9(rig_daemon);
                files_are_readable();
                rig_again();
                json_t *all = at(rpc(rig_client, "config.list", "{s:s}", "prefix", "k"), "config");
                for (int i = 0; i < KEYS; i++) {
                        json_t *value = json_object_get(all, rig_text("k%d", i));
                        int now = (int) json_integer_value(json_array_get(value, 0));
                        MUST(now >= keys[i].acknowledged && now <= keys[i].sent, "kill %d: key %d is %d; %d was acknowledged, %d sent",
                                round, i, now, keys[i].acknowledged, keys[i].sent);
                        MUST(now == 0 || strcmp(json_string_value(json_array_get(value, 1)), rig_text("%0250d", now)) == 0,
                                "key %d is torn", i);
                }
        }
        MUST(UNTIL(under_way == 0, 10000), "%d writes are not answered", under_way);
        MUST(UNTIL_SLOWLY(group_n(t, "a", "lag") + group_n(t, "a", "leased") + group_n(t, "a", "retrying") == 0, 20000), "tasks are left");
        for (size_t i = 0; i < w->n; i++) /* whatever was handled has a result: the ack was answered, or the task came again */
                rpc(rig_client, "task.get", "{s:s}", "id", w->seen[i].id);
        om_test_daemon_down(rig_daemon);
        MUST(strncmp(conf_run.storage_url, "json:", 5) != 0 || files_are_readable() > 0, "no files after a clean stop");
        rig_again();
}

/* -- disks --------------------------------------------------------------------------------------------------------------------------------
 */

static bool into_own_mounts(void) {
        uid_t uid = geteuid();
        gid_t gid = getegid();
        if (unshare(CLONE_NEWNS) < 0) {
                if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
                        return false;
                const char *const files[] = { "/proc/self/setgroups", "/proc/self/uid_map", "/proc/self/gid_map" };
                char *const texts[] = { rig_text("deny"), rig_text("0 %u 1", uid), rig_text("0 %u 1", gid) };
                for (int i = 0; i < 3; i++) {
                        int fd = open(files[i], O_WRONLY | O_CLOEXEC);
                        if (fd < 0 || write(fd, texts[i], strlen(texts[i])) < 0)
                                return false;
                        close(fd);
                }
        }
        return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

static int set(int key, int value, size_t size) {
        char *filling = malloc(size + 1);
        memset(filling, 'f', size);
        filling[size] = '\0';
        json_t *none;
        int r = rpc_try(rig_client, &none, "config.set", "{s:s,s:[i,s]}", "key", rig_text("k%d", key), "value", value, filling);
        free(filling);
        return r;
}

static void all_there(int n, const char *when) {
        for (int i = 0; i < n; i++) {
                json_t *r = rpc(rig_client, "config.get", "{s:s}", "key", rig_text("k%d", i));
                MUST(json_integer_value(json_array_get(at(r, "value"), 0)) == i, "%s: key %d is %.80s", when, i, dump(r));
        }
}

/* A disk of a megabyte for the storage alone, in mounts that only this case and its daemon see. */
static void full_and_read_only(void) {
        enum { SIZE = 20000, MAX = 1000 };
        if (strncmp(conf_run.storage_url, "json:", 5) != 0)
                not_applicable("the disk is the server's");
        if (!into_own_mounts())
                not_applicable("this machine lets nobody mount a small disk (%s)", strerror(errno));
        char *disk = rig_text("%s/disk", conf_run.folder);
        MUST(mkdir(disk, 0700) == 0 && mount("tmpfs", disk, "tmpfs", 0, "size=1m,mode=0700") == 0, "mount: %s", strerror(errno));
        conf_run.storage_url = rig_text("json:%s", disk);
        rig_up(NULL);
        int n = 0, r = 0;
        while (n < MAX && (r = set(n, n, SIZE)) == 0)
                n++;
        MUST(n > 10 && n < MAX, "%d writes of %d bytes on a disk of 1 MiB", n, SIZE);
        MUST(r == -ENOBUFS || r == -EAGAIN, "a full disk is answered with %s: %s", strerror(-r), omni_strerror(rig_client));
        printf("full: %s\n", omni_strerror(rig_client));
        all_there(n, "on the full disk");
        MUST(set(n, n, SIZE) < 0, "a write on a full disk is acknowledged");
        om_test_daemon_kill9(rig_daemon);
        rig_again();
        all_there(n, "after a kill on the full disk");
        /* Room again: it goes on by itself. */
        MUST(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=64m,mode=0700") == 0, "remount: %s", strerror(errno));
        MUST(UNTIL_SLOWLY(set(n, n, SIZE) == 0, 10000), "no write succeeds when there is room again: %s", omni_strerror(rig_client));
        all_there(n + 1, "with room again");

        /* Read-only: said at the start, by the setting's name. */
        om_test_daemon_down(rig_daemon);
        MUST(mount("tmpfs", disk, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=64m,mode=0700") == 0, "remount: %s", strerror(errno));
        char *said;
        int status = om_test_daemon_refuses(conf_run.folder, NULL,
                (const char *const[]){
                        rig_text("STORAGE_URL=%s", conf_run.storage_url), rig_text("EVENT_BUS_URL=%s", conf_run.bus_url), NULL },
                &said);
        MUST(status > 0 && strstr(said, "STORAGE_URL") && strstr(said, disk), "on a read-only folder it ends with %d and says: %s", status,
                said);
        printf("read-only: %s", said);
        MUST(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=64m,mode=0700") == 0, "remount: %s", strerror(errno));
        rig_again();
        all_there(n + 1, "after having been read-only");
        rig_down();
        umount2(disk, MNT_DETACH);
}

/* One that is back may need a moment for all of its keys: a cluster's servers come back one by one. What is not there yet is told as such.
 */
static bool all_back(int n) {
        for (int i = 0; i < n; i++) {
                json_t *none;
                int r = rpc_try(rig_client, &none, "config.get", "{s:s}", "key", rig_text("k%d", i));
                MUST(r == 0 || r == -EAGAIN, "key %d: %s", i, omni_strerror(rig_client));
                if (r < 0)
                        return false;
        }
        return true;
}

/* -- the server is away -----------------------------------------------------------------------------------------------------------------
 */

enum { AWAY_CALL_MS = 2000 };

static void must_be_away(double ms) {
        static const char *const questions[] = { "config.list", "task.list", "agent.list", "storage.health", "health" };
        double until = now_ms() + ms;
        do {
                double start = now_ms();
                int r = set(0, 0, 10);
                MUST(r == -EAGAIN || r == -ETIMEDOUT, "a write is answered with %s: %s", strerror(-r), omni_strerror(rig_client));
                MUST(now_ms() - start < AWAY_CALL_MS + 1000, "it failed after %.0f ms only", now_ms() - start);
                for (size_t i = 0; i < sizeof(questions) / sizeof(*questions); i++) {
                        json_t *none;
                        start = now_ms();
                        rpc_try(rig_client, &none, questions[i], NULL);
                        MUST(now_ms() - start < AWAY_CALL_MS + 1000, "%s hung for %.0f ms", questions[i], now_ms() - start);
                }
                serve_for(50);
        } while (now_ms() < until);
}

/* Killed, stopped and frozen, one after the other; results of work done meanwhile are saved once it is back. */
static void server_away(void) {
        static const char *const ways[][2] = { { "down", "up" }, { "kill", "up" }, { "pause", "resume" } };
        enum { N = 20 };
        struct om_test_server *server = rig_own_server(CONF_STORAGE);
        rig_up((const char *const[]){ "CALL_TIMEOUT=2s", NULL });
        const char *t = topic("t");
        struct worker *w = serve(t, "a", act_ack);
        for (int i = 0; i < N; i++)
                MUST(set(i, i, 100) == 0, "config.set: %s", omni_strerror(rig_client));
        for (int way = 0; way < 3; way++) {
                om_test_server_do(server, ways[way][0]);
                publish_numbers(t, 100 * way, N); /* the bus is there */
                must_be_away(SCALE(5000, 1500));
                om_test_server_do(server, ways[way][1]);
                double back = now_ms();
                MUST(UNTIL_SLOWLY(set(0, 0, 100) == 0, 5000), "%s: no write succeeds 5 s after it came back: %s", ways[way][0],
                        omni_strerror(rig_client));
                MUST(UNTIL_SLOWLY(all_back(N), 5000), "%s: not all can be read 5 s after it came back: %s", ways[way][0],
                        omni_strerror(rig_client));
                printf("%s: written again after %.0f ms\n", ways[way][0], now_ms() - back);
                all_there(N, ways[way][0]);
                MUST(UNTIL_SLOWLY(group_n(t, "a", "lag") + group_n(t, "a", "leased") + group_n(t, "a", "retrying") == 0, 30000),
                        "%s: tasks are left", ways[way][0]);
        }
        for (size_t i = 0; i < w->n; i++)
                rpc(rig_client, "task.get", "{s:s}", "id", w->seen[i].id);
}

static void wrong_storage_settings(void) { wrong_settings(CONF_STORAGE); }

#define EMBEDDED "the storage is inside the daemon: there is no server that could go away"

const struct conf_case conf_storage_fault[] = {
        { "S12", "kill -9 during writes: all acknowledged there after restart, files readable", killed_while_writing, 60 },
        { "S13", "server restarted, stopped, gone: typed error within the deadline, recovery without restart", server_away, 90,
                .embedded = EMBEDDED },
        { "S14", "wrong password, missing database or bucket, bad certificate: the setting to mend is named", wrong_storage_settings, 60,
                .embedded = "the storage is inside the daemon: it has no password, database or certificate (a folder it cannot use: S20)" },
        { "S20", "full disk and read-only folder (JSON): typed error, old data intact", full_and_read_only, 30 },
        { NULL },
};
