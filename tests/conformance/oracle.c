/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See oracle.h. The records are lines: "T id" attempted, "A id" acknowledged, "F id" refused; "H id attempt" handled. T is on the disk
 * before the task is handed to the library, H is written before the ack is: whoever dies between two lines leaves a record that claims no
 * more than was done.
 */
#include "oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct oracle *oracle_new(const char *topic, const char *agent) {
        struct oracle *o = calloc(1, sizeof(*o));
        MUST(o, "out of memory");
        o->topic = rig_text("%s", topic);
        o->agent = rig_text("%s", agent);
        o->attempts = rig_text("%s/%s.attempts", conf_run.folder, topic);
        o->handled = rig_text("%s/%s.handled", conf_run.folder, topic);
        o->progress = mmap(NULL, sizeof(*o->progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        MUST(o->progress != MAP_FAILED, "mmap: %s", strerror(errno));
        return o;
}

static FILE *record(const char *path) {
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        FILE *f = fd < 0 ? NULL : fdopen(fd, "a");
        MUST(f, "%s: %s", path, strerror(errno));
        return f;
}

static void on_disk(FILE *f) { MUST(fflush(f) == 0 && fdatasync(fileno(f)) == 0, "record: %s", strerror(errno)); }

static void line(FILE *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line(FILE *f, const char *format, ...) {
        va_list args;
        va_start(args, format);
        int n = vfprintf(f, format, args);
        va_end(args);
        MUST(n > 0, "record: %s", strerror(errno));
}

static pid_t process(struct oracle *o) {
        pid_t parent = getpid(), pid = fork();
        MUST(pid >= 0, "fork: %s", strerror(errno));
        if (pid == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (getppid() != parent)
                        _exit(CONF_FAILED);
                srandom((unsigned) getpid());
                return 0;
        }
        MUST(o->n_pids < sizeof(o->pids) / sizeof(*o->pids), "too many processes");
        o->pids[o->n_pids++] = pid;
        return pid;
}

/* -- the producer --------------------------------------------------------------------------------------------------------------------- */

struct producer {
        struct oracle *o;
        omni_client *client;
        FILE *record;
        int unanswered, *again, n_again;
};
struct one {
        struct producer *p;
        int number;
};

static void published(omni_client *c, int status, const char *id, const char *error, void *user) {
        struct one *one = user;
        struct producer *p = one->p;
        p->unanswered--;
        if (status >= 0) {
                line(p->record, "A %s\n", id);
                p->o->progress->acknowledged++;
        } else {
                line(p->record, "F %d-%d\n", (int) getpid(), one->number);
                MUST(status == -EAGAIN || status == -ENOBUFS, "publish: %s: %s", strerror(-status), error);
                p->again[p->n_again++] = one->number;
        }
        free(one);
}

static void send_one(struct producer *p, int number) {
        struct one *one = malloc(sizeof(*one));
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        char id[64], content[400];
        snprintf(id, sizeof(id), "%d-%d", (int) getpid(), number);
        snprintf(content, sizeof(content), "{\"n\":%d,\"filling\":\"%0280d\"}", number, 0);
        task.topic = p->o->topic;
        task.id = id;
        task.content = content;
        MUST(one, "out of memory");
        *one = (struct one){ p, number };
        int r = omni_publish_async(p->client, &task, published, one);
        MUST(r == 0, "publish: %s", omni_strerror(p->client));
        p->unanswered++;
}

static void produce(struct oracle *o, int n, int window) {
        struct producer p = { .o = o, .record = record(o->attempts) };
        int batch[1000], sent = 0;
        p.client = client_unserved();
        p.again = calloc((size_t) window, sizeof(*p.again));
        while (sent < n || p.unanswered || p.n_again) {
                int n_batch = 0;
                while (p.unanswered + n_batch < window && n_batch < 1000 && (p.n_again || sent < n)) {
                        batch[n_batch] = p.n_again ? p.again[--p.n_again] : sent++;
                        line(p.record, "T %d-%d\n", (int) getpid(), batch[n_batch++]);
                }
                on_disk(p.record);
                for (int i = 0; i < n_batch; i++)
                        send_one(&p, batch[i]);
                int r = omni_run_once(p.client, 1000);
                MUST(r >= 0, "serve: %s", omni_strerror(p.client));
        }
        on_disk(p.record);
        omni_free(p.client);
        _exit(CONF_OK);
}

pid_t oracle_producer(struct oracle *o, int n, int window) {
        pid_t pid = process(o);
        if (pid == 0)
                produce(o, n, window);
        return pid;
}

/* -- the agent --------------------------------------------------------------------------------------------------------------------------
 */

struct agent {
        struct oracle *o;
        FILE *record;
        int work_ms;
        const char *output;
};
static omni_client *agent_client;

static void on_signal(int number) { omni_stop(agent_client); }

static void handle(omni_agent *omni, omni_task *task, void *user) {
        struct agent *a = user;
        size_t len;
        if (omni_task_lost(task)) {
                omni_task_ack(task, NULL, 0);
                return;
        }
        if (a->work_ms)
                poll(NULL, 0, a->work_ms);
        line(a->record, "H %s %d\n", omni_task_id(task), omni_task_attempt(task));
        MUST(fflush(a->record) == 0, "record: %s", strerror(errno));
        a->o->progress->handled++;
        omni_publish_options out = OMNI_PUBLISH_OPTIONS_INIT;
        out.topic = a->output;
        out.content = omni_task_content(task, &len);
        out.content_len = len;
        int r = omni_task_ack_publish(task, NULL, 0, &out, a->output ? 1 : 0, NULL, NULL);
        MUST(r == 0 || r == -ESTALE, "ack: %s", omni_strerror(agent_client));
}

static void serve_agent(struct oracle *o, int prefetch, int work_ms, const char *output) {
        struct agent a = { o, record(o->handled), work_ms, output };
        omni_agent_options options = agent_options(o->topic, o->agent);
        options.prefetch = prefetch;
        options.dlq_retry_limit = 1000; /* each death counts as an attempt: none of these tasks is to be given up for that */
        struct sigaction action = { .sa_handler = on_signal };
        agent_client = client_unserved();
        sigaction(SIGTERM, &action, NULL);
        int r;
        while ((r = omni_agent_register(agent_client, &options, handle, &a, NULL)) == -ECONNRESET)
                ; /* the daemon was killed meanwhile */
        MUST(r == 0, "register: %s: %s", strerror(-r), omni_strerror(agent_client));
        r = omni_run(agent_client);
        MUST(r == 0 || r == -ECANCELED, "run: %s", omni_strerror(agent_client));
        omni_free(agent_client);
        _exit(CONF_OK);
}

pid_t oracle_agent(struct oracle *o, int prefetch, int work_ms, const char *output) {
        pid_t pid = process(o);
        if (pid == 0)
                serve_agent(o, prefetch, work_ms, output);
        return pid;
}

/* -- their ends ---------------------------------------------------------------------------------------------------------------------------
 */

static void forget(struct oracle *o, pid_t pid) {
        for (unsigned i = 0; i < o->n_pids; i++)
                if (o->pids[i] == pid)
                        o->pids[i] = o->pids[--o->n_pids];
}

static void ended_well(int status, const char *who) {
        MUST(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the %s's process ended with wait status %d", who, status);
}

void oracle_end(struct oracle *o, pid_t pid) {
        int status;
        kill(pid, SIGTERM);
        MUST(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
        ended_well(status, "agent");
        forget(o, pid);
}

void oracle_kill(struct oracle *o, pid_t pid) {
        kill(pid, SIGKILL);
        MUST(waitpid(pid, NULL, 0) == pid, "waitpid: %s", strerror(errno));
        forget(o, pid);
}

void oracle_wait(struct oracle *o, pid_t producer, double ms) {
        int status = 0;
        pid_t r = 0;
        MUST(UNTIL_SLOWLY((r = waitpid(producer, &status, WNOHANG)) != 0, ms), "the producer is not done; %ld acknowledged",
                o->progress->acknowledged);
        MUST(r == producer, "waitpid: %s", strerror(errno));
        ended_well(status, "producer");
        forget(o, producer);
}

/* Tasks that are not at their end; −1: the bus did not say, as it may after a fault. */
static int64_t unfinished(const struct oracle *o) {
        json_t *groups, *g;
        size_t i;
        int r = rpc_try(rig_client, &groups, "bus.groups", "{s:s}", "topic", o->topic);
        if (r == -EAGAIN || r == -ETIMEDOUT)
                return -1;
        MUST(r == 0, "bus.groups: %s", omni_strerror(rig_client));
        json_array_foreach(at(groups, "groups"), i, g) {
                if (strcmp(str(g, "agent"), o->agent) == 0)
                        return num(g, "lag") + num(g, "leased") + num(g, "retrying");
        }
        conf_fail(__FILE__, __LINE__, "bus.groups has no group of %s on %s: %s", o->agent, o->topic, dump(groups));
}

/* An agent writes each task to the disk before it acknowledges it: on a busy one that takes its time. */
void oracle_settle(struct oracle *o, double ms) {
        for (int64_t left, before = INT64_MAX; !UNTIL_SLOWLY((left = unfinished(o)) == 0, ms); before = left)
                MUST(left >= 0 && left < before, "%s: %lld tasks are not finished; %s", o->agent, (long long) left,
                        dump(rpc(rig_client, "bus.groups", "{s:s}", "topic", o->topic)));
        while (o->n_pids)
                oracle_end(o, o->pids[0]);
}

/* -- the verdict
 * ---------------------------------------------------------------------------------------------------------------------------- */

struct entry {
        char *id;
        char what;
};

static int compare(const void *a, const void *b) { return strcmp(((const struct entry *) a)->id, ((const struct entry *) b)->id); }

struct entries {
        struct entry *all;
        size_t n, room;
};

static void add(struct entries *e, struct entry one) {
        if (e->n == e->room) { /* by halves more: tens of thousands were refused where the broker was away */
                e->room += e->room / 2 + 1024;
                e->all = reallocarray(e->all, e->room, sizeof(*e->all));
                MUST(e->all, "out of memory");
        }
        e->all[e->n++] = one;
}

static void read_record(const char *path, struct entries *entries) {
        char *text = NULL, id[OMNI_ID_SIZE], what;
        size_t size = 0;
        FILE *f = fopen(path, "re");
        MUST(f, "%s: %s", path, strerror(errno));
        while (getline(&text, &size, f) > 0) {
                if (!strchr(text, '\n') || sscanf(text, "%c %200s", &what, id) != 2)
                        continue; /* its writer died in it */
                add(entries, (struct entry){ rig_text("%s", id), what });
        }
        free(text);
        fclose(f);
}

static struct oracle_verdict compare_records(const struct oracle *o) {
        struct oracle_verdict v = { 0 };
        struct entries found = { 0 };
        read_record(o->attempts, &found);
        read_record(o->handled, &found);
        struct entry *entries = found.all;
        size_t n = found.n;
        if (n)
                qsort(entries, n, sizeof(*entries), compare);
        for (size_t i = 0, next; i < n; i = next) {
                long tried = 0, acknowledged = 0, handled = 0;
                for (next = i; next < n && strcmp(entries[next].id, entries[i].id) == 0; next++) {
                        tried += entries[next].what == 'T';
                        acknowledged += entries[next].what == 'A';
                        handled += entries[next].what == 'H';
                }
                v.attempted += tried > 0;
                v.acknowledged += acknowledged > 0;
                v.deliveries += handled;
                v.handled += handled > 0;
                v.early += handled > 1 ? handled - 1 : 0;
                v.unknown += handled && !tried;
                if (acknowledged && !handled && v.lost++ == 0)
                        snprintf(v.first_lost, sizeof(v.first_lost), "%s", entries[i].id);
        }
        return v;
}

/* In a process of its own, which has nothing but the records. */
struct oracle_verdict oracle_check(const struct oracle *o) {
        struct oracle_verdict v;
        int fds[2], status;
        MUST(pipe2(fds, O_CLOEXEC) == 0, "pipe: %s", strerror(errno));
        pid_t pid = fork();
        MUST(pid >= 0, "fork: %s", strerror(errno));
        if (pid == 0) {
                v = compare_records(o);
                _exit(write(fds[1], &v, sizeof(v)) == sizeof(v) ? CONF_OK : CONF_FAILED);
        }
        close(fds[1]);
        ssize_t n = read(fds[0], &v, sizeof(v));
        MUST(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
        ended_well(status, "checker");
        MUST(n == sizeof(v), "the checker said %zd bytes", n);
        close(fds[0]);
        return v;
}
