/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon under test, the clients, and the questions: see rig.h. Workers are in workers.c.
 *
 * All clients of a case are in one list and served by one poll(2); that is what lets a case of one thread have hundreds of workers.
 */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct om_test_daemon *rig_daemon;
omni_client *rig_client;

static omni_client **clients;
static size_t n_clients, clients_room;
static const char *bus_parameter;
static json_t *capabilities;

/* -- small things ------------------------------------------------------------------------------------------------------------ */

double now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double) t.tv_sec * 1e3 + (double) t.tv_nsec / 1e6;
}

double wall_s(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

unsigned any(unsigned below) { return (unsigned) (random() % below); }

char *rig_text(const char *format, ...) {
        va_list args;
        char *s;
        va_start(args, format);
        int n = vasprintf(&s, format, args);
        va_end(args);
        MUST(n >= 0, "out of memory");
        return s;
}

/* Each "{case}" becomes the case's tag: its own database, prefix or bucket on a server that others use too. */
char *rig_url(const char *url) {
        const char *mark = strstr(url, "{case}");
        return mark ? rig_text("%.*s%s%s", (int) (mark - url), url, conf_run.tag, rig_url(mark + 6)) : rig_text("%s", url);
}

void rig_bus_parameter(const char *parameter) { bus_parameter = parameter; }

const char *topic(const char *name) { return rig_text("%s.%s", conf_run.tag, name); }

const char *long_name(const char *name) {
        char *text = rig_text("%*s", LONG_NAME_BYTES, name);
        for (size_t i = 0; i + 3 + strlen(name) < LONG_NAME_BYTES; i += 3)
                memcpy(text + i, "\u8a9e", 3);
        return text;
}

/* -- the daemon --------------------------------------------------------------------------------------------------------------- */

static void learn_capabilities(void) {
        json_t *buses = at(rpc(rig_client, "backends", NULL), "buses"), *bus;
        size_t i;
        json_array_foreach(buses, i, bus) {
                if (json_is_true(at(bus, "in_use")))
                        capabilities = at(bus, "capabilities");
        }
        MUST(json_is_array(capabilities), "`backends` names no bus that is in use");
        /* Queues with priorities may be a matter of the bus's URL; its health tells. */
        if (strstr(dump(rpc(rig_client, "health", NULL)), "\"priority\":true"))
                json_array_append_new(capabilities, json_string("priority"));
}

bool rig_has(const char *capability) {
        json_t *c;
        size_t i;
        json_array_foreach(capabilities, i, c) {
                if (strcmp(json_string_value(c), capability) == 0)
                        return true;
        }
        return false;
}

/* The daemon serves before bus and storage are there, when one of them takes long; what a case does at once would be refused. */
static void wait_for_both(void) {
        double until = now_ms() + 30000;
        for (;;) {
                json_t *health = rpc(rig_client, "health", NULL);
                if (strcmp(str(at(health, "bus"), "status"), "up") == 0 && strcmp(str(at(health, "storage"), "status"), "up") == 0)
                        return;
                MUST(now_ms() < until, "the daemon is not ready: %s", dump(health));
                poll(NULL, 0, 10);
        }
}

void rig_again(void) {
        om_test_daemon_up(rig_daemon);
        wait_for_both();
}

void rig_restart(void) {
        om_test_daemon_down(rig_daemon);
        rig_again();
}

struct om_test_daemon *rig_up(const char *const *settings) {
        const char *env[32] = { 0 };
        size_t n = 0;
        char *bus = rig_url(conf_run.bus_url);
        if (bus_parameter)
                bus = rig_text("%s%c%s", bus, strchr(bus, '?') ? '&' : '?', bus_parameter);
        env[n++] = rig_text("EVENT_BUS_URL=%s", bus);
        env[n++] = rig_text("STORAGE_URL=%s", rig_url(conf_run.storage_url));
        for (; settings && *settings && n < 31; settings++)
                env[n++] = *settings;
        rig_daemon = om_test_daemon_start(conf_run.folder, NULL, env);
        rig_client = client_new();
        wait_for_both();
        learn_capabilities();
        if (conf_run.c->capability && !rig_has(conf_run.c->capability))
                not_applicable("the bus lacks `%s`", conf_run.c->capability);
        return rig_daemon;
}

struct om_test_server *rig_own_server(enum conf_family of) {
        const char *system = of == CONF_BUS ? conf_run.bus->system : conf_run.storage->system;
        MUST(system, "its server is not ours to stop: --system NAME starts one that is");
        struct om_test_server *s = om_test_server_start(system, rig_text("%s/server", conf_run.folder));
        if (of == CONF_BUS)
                conf_run.bus_url = om_test_server_value(s, "bus_url");
        else
                conf_run.storage_url = om_test_server_value(s, "store_url");
        return s;
}

void rig_down(void) {
        while (n_clients)
                client_close(clients[0]);
        if (rig_daemon)
                om_test_daemon_stop(rig_daemon);
        rig_daemon = NULL;
}

size_t rig_anonymous_bytes(void) {
        char path[64], line[256];
        size_t kib = 0;
        snprintf(path, sizeof(path), "/proc/%d/status", (int) om_test_daemon_pid(rig_daemon));
        FILE *f = fopen(path, "re");
        MUST(f, "%s: %s", path, strerror(errno));
        while (fgets(line, sizeof(line), f))
                sscanf(line, "RssAnon: %zu", &kib);
        fclose(f);
        MUST(kib > 0, "%s has no RssAnon", path);
        return kib * 1024;
}

/* `line` is "TEXT|URL". */
static void wrong_setting(enum conf_family of, const char *line) {
        const char *bar = strchr(line, '|'), *side = of == CONF_BUS ? "bus" : "storage";
        char *text = rig_text("%.*s", (int) (bar - line), line), *said = NULL;
        char *setting = rig_text("%s=%s", of == CONF_BUS ? "EVENT_BUS_URL" : "STORAGE_URL", rig_url(bar + 1));
        struct om_test_daemon *d = om_test_daemon_start(NULL, NULL, (const char *const[]){ setting, "CALL_TIMEOUT=2s", NULL });
        omni_client *c = client_to(d);
        double until = now_ms() + 10000;
        json_t *none;
        /* It may be trying still; the reason is there once the server has said it. */
        do {
                json_t *health = rpc(c, "health", NULL);
                MUST(strcmp(str(at(health, side), "status"), "down") == 0, "%s: the %s is %s", setting, side, dump(at(health, side)));
                said = rig_text("%s", str(at(health, side), "error"));
        } while (!strcasestr(said, text) && now_ms() < until);
        MUST(strcasestr(said, text), "%s: \"%s\" is not named: %s", setting, text, said);
        double start = now_ms();
        int r = of == CONF_BUS
                ? rpc_try(c, &none, "task.publish", "{s:{s:s,s:{s:i}}}", "task", "topic", topic("t"), "payload", "content", 1)
                : rpc_try(c, &none, "config.set", "{s:s,s:i}", "key", "k", "value", 1);
        MUST(r < 0 && strcasestr(omni_strerror(c), text), "%s: a call is answered with %s", setting, omni_strerror(c));
        MUST(now_ms() - start < 3000, "%s: a call hung for %.0f ms", setting, now_ms() - start);
        printf("%s\n", said);
        client_close(c);
        om_test_daemon_stop(d);
}

void wrong_settings(enum conf_family of) {
        const struct om_test_server *s = of == CONF_BUS ? conf_run.bus->server : conf_run.storage->server;
        const char *line, *name = of == CONF_BUS ? "wrong_bus" : "wrong_store";
        size_t n = 0;
        MUST(s, "what cannot work is known of systems only: --system NAME");
        while ((line = om_test_server_nth(s, name, n))) {
                wrong_setting(of, line);
                n++;
        }
        if (n == 0)
                not_applicable("this kind of server knows no settings that cannot work");
}

/* -- clients -------------------------------------------------------------------------------------------------------------------- */

static omni_client *make_client(struct om_test_daemon *d) {
        omni_client_options options = OMNI_CLIENT_OPTIONS_INIT;
        omni_client *c;
        options.socket_path = om_test_daemon_socket(d);
        options.client_name = conf_run.c->id;
        options.connect_timeout_ms = 30000;
        options.call_timeout_ms = 60000;
        options.reconnect_min_ms = 5;
        options.reconnect_max_ms = 50;
        int r = omni_new(&options, &c);
        MUST(r == 0, "omni_new: %s", strerror(-r));
        return c;
}

omni_client *client_unserved(void) { return make_client(rig_daemon); }

omni_client *client_to(struct om_test_daemon *d) {
        if (n_clients == clients_room) {
                clients_room = clients_room ? clients_room * 2 : 16;
                clients = realloc(clients, clients_room * sizeof(*clients));
                MUST(clients, "out of memory");
        }
        return clients[n_clients++] = make_client(d);
}

omni_client *client_new(void) { return client_to(rig_daemon); }

void client_close(omni_client *c) {
        for (size_t i = 0; i < n_clients; i++)
                if (clients[i] == c) {
                        clients[i] = clients[--n_clients];
                        break;
                }
        omni_free(c);
}

static void process(omni_client *c) {
        int r = omni_process(c);
        MUST(r >= 0, "omni_process: %s: %s", strerror(-r), omni_strerror(c));
}

void serve_once(double at_most_ms) {
        struct pollfd *fds = calloc(n_clients, sizeof(*fds));
        size_t n = n_clients;
        double wait = at_most_ms < 0 ? 0 : at_most_ms;
        bool *due = calloc(n + 1, sizeof(*due));
        MUST(fds && due, "out of memory");
        for (size_t i = 0; i < n; i++) {
                int64_t timeout = omni_timeout_ms(clients[i]);
                fds[i] = (struct pollfd){ .fd = omni_fd(clients[i]), .events = omni_events(clients[i]) };
                if (timeout >= 0 && (double) timeout < wait)
                        wait = (double) timeout;
                due[i] = timeout >= 0;
        }
        poll(fds, n, (int) ceil(wait));
        /* A handler may close a client: what stands in the list then is served in the next turn. */
        for (size_t i = 0; i < n && n == n_clients; i++)
                if (fds[i].revents || due[i])
                        process(clients[i]);
        free(fds);
        free(due);
}

void serve_for(double ms) {
        double until = now_ms() + ms;
        do
                serve_once(until - now_ms());
        while (now_ms() < until);
}

/* -- asking ---------------------------------------------------------------------------------------------------------------------- */

static int call(omni_client *c, json_t **ret, const char *method, const char *format, va_list args) {
        char *params = NULL, *result;
        size_t len;
        json_error_t e;
        *ret = NULL;
        if (format) {
                json_t *j = json_vpack_ex(&e, 0, format, args);
                MUST(j, "params of %s: %s", method, e.text);
                params = json_dumps(j, JSON_COMPACT);
                json_decref(j);
        }
        int r = omni_call(c, method, params, &result, &len);
        free(params);
        if (r < 0)
                return r;
        *ret = json_loadb(result, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
        MUST(*ret, "the result of %s is no JSON: %s: %.200s", method, e.text, result);
        free(result);
        return 0;
}

json_t *rpc(omni_client *c, const char *method, const char *format, ...) {
        va_list args;
        json_t *j;
        int r;
        double until = now_ms() + 5000;
        do {
                va_start(args, format);
                r = call(c, &j, method, format, args);
                va_end(args);
        } while (r == -EAGAIN && now_ms() < until && (usleep(20000), true));
        MUST(r == 0, "%s: %s: %s", method, strerror(-r), omni_strerror(c));
        return j;
}

int rpc_try(omni_client *c, json_t **ret, const char *method, const char *format, ...) {
        va_list args;
        va_start(args, format);
        int r = call(c, ret, method, format, args);
        va_end(args);
        return r;
}

json_t *at(json_t *j, const char *path) {
        while (j && *path) {
                size_t n = strcspn(path, ".");
                char name[64];
                snprintf(name, sizeof(name), "%.*s", (int) n, path);
                j = json_object_get(j, name);
                path += n + (path[n] == '.');
        }
        return j;
}

int64_t num(json_t *j, const char *path) {
        json_t *v = at(j, path);
        MUST(json_is_number(v), "`%s` is no number in %s", path, dump(j));
        return (int64_t) json_number_value(v);
}

const char *str(json_t *j, const char *path) {
        const char *s = json_string_value(at(j, path));
        return s ? s : "";
}

const char *dump(json_t *j) {
        char *s = j ? json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
        return s ? s : "nothing";
}

int64_t group_n(const char *topic, const char *agent, const char *what) {
        json_t *groups = rpc(rig_client, "bus.groups", "{s:s}", "topic", topic), *g;
        size_t i;
        json_array_foreach(at(groups, "groups"), i, g) {
                if (strcmp(str(g, "agent"), agent) == 0) {
                        int64_t n = num(g, what);
                        json_decref(groups);
                        return n;
                }
        }
        conf_fail(__FILE__, __LINE__, "bus.groups has no group of %s on %s: %s", agent, topic, dump(groups));
}

int64_t topic_n(const char *topic, const char *what) {
        json_t *topics = at(rpc(rig_client, "bus.topics", "{s:s}", "topic", topic), "topics");
        return json_array_size(topics) ? num(json_array_get(topics, 0), what) : 0;
}

json_t *dead_letters(const char *topic, const char *agent) {
        json_t *all = json_array(), *page;
        char *cursor = NULL;
        do {
                page = rpc(rig_client, "dlq.list", "{s:s,s:s,s:i,s:s*}", "topic", topic, "agent", agent, "limit", 1000, "cursor", cursor);
                json_array_extend(all, at(page, "dead_letters"));
                cursor = at(page, "cursor") ? rig_text("%s", str(page, "cursor")) : NULL;
        } while (cursor);
        return all;
}

/* -- publishing --------------------------------------------------------------------------------------------------------------------- */

char *publish_with(omni_publish_options task) {
        char *id = malloc(OMNI_ID_SIZE);
        double until = now_ms() + 5000;
        int r;
        while ((r = omni_publish(rig_client, &task, id)) == -EAGAIN && now_ms() < until)
                serve_for(20);
        MUST(r >= 0, "publish on %s: %s", task.topic, omni_strerror(rig_client));
        return id;
}

char *publish(const char *topic, const char *format, ...) {
        va_list args;
        char *content;
        va_start(args, format);
        MUST(vasprintf(&content, format, args) >= 0, "out of memory");
        va_end(args);
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = topic;
        task.content = content;
        char *id = publish_with(task);
        free(content);
        return id;
}

int publish_all(const omni_publish_options *tasks, int n) {
        omni_publish_options *left = calloc((size_t) n, sizeof(*left));
        omni_publish_result *results = calloc((size_t) n, sizeof(*results));
        MUST(left && results, "out of memory");
        memcpy(left, tasks, (size_t) n * sizeof(*left));
        double until = now_ms() + 5000;
        int n_left = n, again = 0;
        for (;;) {
                int64_t r = omni_publish_many(rig_client, left, (size_t) n_left, results);
                int refused = 0;
                for (int i = 0; i < n_left; i++) {
                        if (results[i].status >= 0)
                                continue;
                        MUST(results[i].status == -EAGAIN && now_ms() < until, "%lld of %d published on %s: %s", (long long) r, n_left,
                                left[i].topic, results[i].error);
                        left[refused++] = left[i];
                }
                n_left = refused;
                if (n_left == 0)
                        break;
                again += n_left;
                serve_for(20);
        }
        free(left);
        free(results);
        return again;
}

void publish_numbers(const char *topic, int from, int n) {
        omni_publish_options *tasks = calloc((size_t) n, sizeof(*tasks));
        MUST(tasks, "out of memory");
        for (int i = 0; i < n; i++) {
                tasks[i] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                tasks[i].topic = topic;
                tasks[i].content = rig_text("%d", from + i);
        }
        publish_all(tasks, n);
        for (int i = 0; i < n; i++)
                free((char *) tasks[i].content);
        free(tasks);
}
