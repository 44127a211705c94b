/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OMNICLIENT_H
#define OMNICLIENT_H
/*
 * libomniclient: agents and publishers of OmniDaemon, in C.
 *
 * A first agent:
 *
 *     static void greet(omni_agent *agent, omni_task *task, void *user) {
 *             omni_task_ack(task, "{\"greeting\":\"hello\"}", OMNI_STR);
 *     }
 *     int main(void) {
 *             omni_client *client = omni_default();
 *             omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
 *             options.topic = "greet";
 *             options.name = "greeter";
 *             if (!client || omni_agent_register(client, &options, greet, NULL, NULL) < 0 || omni_run(client) < 0) {
 *                     fprintf(stderr, "%s\n", omni_strerror(client));
 *                     return 1;
 *             }
 *             return 0;
 *     }
 *
 *     cc agent.c $(pkg-config --cflags --libs omniclient) -o agent
 *
 * A client is one connection to the daemon. It connects when first needed, connects again with backoff when the daemon went away, registers
 * its agents again, and sends again what had not been answered and can be repeated. All policy (retries, dead letters, leases) is in the
 * daemon.
 *
 * WHEN THE CONNECTION ENDS (the daemon restarts, dies, or hangs up), what was under way becomes:
 *   publishes: sent again with the same task ids. Nothing is lost. A task may be published twice only if the daemon took it and died before
 * it answered; both have the same id, and with an idempotency_key the second is recognised and publishes nothing (status 1). calls that
 * only read (task.get, agent.list, health …): asked again. Other calls: -ECONNRESET, the outcome is unknown. tasks held: lost
 * (omni_task_lost()); the daemon gives them to another worker, or to this one again. The pointers stay good until settled. acks and fails
 * without answer: -ESTALE to their callback: if they did not arrive, the task is delivered again. agents: registered again as soon as there
 * is a connection; what the daemon refuses for good (not allowed any more) ends the agent. What was not sent yet waits for the next
 * connection, within pending_max and buffer_max. A daemon that sends what the protocol does not know (broken, or not an OmniDaemon) is
 * disconnected: everything under way fails with -EPROTO, and the next call on the client tries again.
 *
 * THREADS. A client belongs to one thread at a time: no two calls on it, or on its agents and tasks, may run at once. Different clients are
 * independent. Only omni_wakeup() and omni_stop() may be called from any thread, and from a signal handler. The library starts no threads
 * and touches no signal dispositions (it sends with MSG_NOSIGNAL). Do not use a client on both sides of a fork(): in the child, omni_free()
 * only closes its descriptors and frees its memory, and omni_default() is a new client.
 *
 * HANDLERS AND CALLBACKS are called from within omni_run(), omni_run_once(), omni_process(), or a blocking call, one at a time, never one
 * inside another. A blocking call from inside one is allowed (omni_publish() in a handler is common): it serves the socket and returns with
 * its answer, while everything else that arrives waits until the handler has returned. Not allowed inside (-EBUSY): omni_run(),
 * omni_run_once(), omni_process(); and omni_free(), which then does nothing. An agent may be unregistered from inside its own handler.
 *
 * TWO WAYS OF USE.
 *   Blocking: omni_publish(), omni_result_get(), omni_call() send, serve what arrives meanwhile (handlers run), and return with the answer;
 * omni_run() serves until omni_stop(). In a caller's own loop: wait for omni_fd() with omni_events() for at most omni_timeout_ms(), then
 * call omni_process(); use omni_publish_async() and omni_call_async(). None of these blocks. Sending happens in turns: what *_async() and
 * acks have queued goes out at the end of omni_process() or the next blocking call (omni_timeout_ms() is 0 while something waits), and what
 * one turn has gathered travels together.
 *
 * RETURN VALUES. 0 or positive on success, a negative errno on failure, with a text for people in omni_strerror(). What the daemon refuses
 * has these: -EINVAL invalid · -ENOENT not_found · -EEXIST exists · -EACCES denied · -EOPNOTSUPP unsupported · -EAGAIN unavailable ·
 * -ETIMEDOUT timeout · -ENOBUFS limit · -ESTALE conflict · -EIO internal. From the library itself also: -ENOMEM, -ECONNREFUSED or -ENOENT
 * (no daemon at the socket), -ECONNRESET (the connection ended before the answer came), -EPROTO (it does not speak the protocol),
 * -ECANCELED (omni_stop() or omni_free() meanwhile), -EBUSY (a call that is not allowed from a handler).
 *
 * TEXT. Strings are UTF-8. Lengths are bytes; OMNI_STR for a zero-terminated string. JSON goes in as text and comes out as text, byte for
 * byte. Pointers that the library hands out live as long as said at each function and are never the caller's to free, unless it is said.
 *
 * Formats and meanings: the protocol document, PROTOCOL.md, installed beside this library's documentation.
 */
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OMNI_API __attribute__((visibility("default")))
#define OMNI_STR ((size_t) -1) /* a length: "up to the zero byte" */

typedef struct omni_client omni_client;
typedef struct omni_agent omni_agent;
typedef struct omni_task omni_task;

/* -- a client ------------------------------------------------------------------------------------------------------ */

typedef struct omni_client_options {
        size_t size;                /* sizeof(omni_client_options): set by OMNI_CLIENT_OPTIONS_INIT; fields may be added behind */
        const char *socket_path;    /* NULL: $OMNIDAEMON_SOCKET, $XDG_RUNTIME_DIR/omnidaemon/omnidaemon.sock where it exists,
                                       /run/omnidaemon/omnidaemon.sock */
        const char *client_name;    /* told to the daemon; NULL: the program's name */
        int64_t connect_timeout_ms; /* how long a blocking call waits for a daemon that is away; 0: one attempt; default 5000; -1: for ever
                                     */
        int64_t call_timeout_ms;    /* how long a blocking call takes at most, connecting included; default 30000; -1: for ever */
        int64_t reconnect_min_ms;   /* backoff between attempts to connect again, with jitter; default 50 */
        int64_t reconnect_max_ms;   /* default 5000 */
        size_t pending_max; /* requests (a batch of publishes is one) unanswered at once before *_async() returns -ENOBUFS; default 1000 */
        size_t buffer_max;  /* bytes of requests not answered, sent or not, before *_async() returns -ENOBUFS; default 64 MiB */
} omni_client_options;
#define OMNI_CLIENT_OPTIONS_INIT \
        { sizeof(omni_client_options), NULL, NULL, 5000, 30000, 50, 5000, 1000, (size_t) 64 << 20 }

/* Makes a client; connects to nothing yet. `options` may be NULL (defaults); it is copied. Returns 0 and the client in *ret (free it with
 * omni_free()), or -EINVAL (a size of 0, a name that is empty or has control characters, a limit of 0), -ENOMEM, -EMFILE. It has three
 * descriptors, all close-on-exec. */
OMNI_API int omni_new(const omni_client_options *options, omni_client **ret);

/* The process's own client, made at the first call from the environment: OMNIDAEMON_SOCKET, OMNIDAEMON_CLIENT_NAME,
 * OMNIDAEMON_CONNECT_TIMEOUT_MS, OMNIDAEMON_CALL_TIMEOUT_MS. The same one every time; safe to call from several threads, but the client
 * itself still belongs to one at a time. NULL with errno set when the environment is wrong or memory is short. Freed at exit; omni_free()
 * on it is allowed and the next call makes a new one. */
OMNI_API omni_client *omni_default(void);

/* Closes the connection and frees everything of the client: agents, tasks not settled (the daemon hands them to others), requests under way
 * (their callbacks are called with -ECANCELED first; acks with -ESTALE). What is queued goes out if the socket takes it at once, and no
 * answer is awaited: omni_flush() before, where it matters. NULL is ignored. From a handler or callback it does nothing. Does not block. */
OMNI_API void omni_free(omni_client *client);

/* What went wrong in the last call on this client that failed, as a sentence; "" before. Valid until the next call on the client. NULL
 * gives "out of memory". */
OMNI_API const char *omni_strerror(omni_client *client);

/* "0.1.0". Static. */
OMNI_API const char *omni_version(void);

/* Connects now rather than at the first need, waiting at most timeout_ms (-1: for ever, 0: as connect_timeout_ms). 0, or -ECONNREFUSED,
 * -ENOENT, -EACCES, -ETIMEDOUT (it listens, but does not answer), -EPROTO. Once a client has needed a connection it keeps one: it connects
 * again by itself whenever it is served. Blocks. */
OMNI_API int omni_connect(omni_client *client, int64_t timeout_ms);

/* Called whenever the connection comes (up = 1, `reason` is "") or goes (up = 0, `reason` a sentence valid during the call). What the
 * daemon keeps for a connection other than agents (daemon.watch) is to be asked for again here, with omni_call_async(). */
typedef void omni_connection_fn(omni_client *client, int up, const char *reason, void *user);
OMNI_API void omni_on_connection(omni_client *client, omni_connection_fn *fn, void *user);

/* -- publishing ---------------------------------------------------------------------------------------------------- */

/* What to publish. Everything but topic and content is optional: NULL or 0. Borrowed during the call. */
typedef struct omni_publish_options {
        size_t size; /* set by OMNI_PUBLISH_OPTIONS_INIT */
        const char *topic;
        const char *content;         /* JSON text */
        size_t content_len;          /* bytes, or OMNI_STR */
        const char *id;              /* NULL: made by this library, so that a publish repeated after a lost connection has the same */
        const char *key;             /* tasks of one key are handled in order (where the bus has keys) */
        const char *idempotency_key; /* makes a repeated publish harmless, this library's repeats after a lost connection included */
        const char *reply_to;
        const char *webhook; /* JSON text: a string or an object */
        const char *correlation_id, *causation_id, *source, *tenant_id, *traceparent;
        const char *headers; /* JSON text: an object of strings */
        int priority;        /* 0 to 9, 9 first */
        int64_t ttl_ms, delay_ms;
} omni_publish_options;
#define OMNI_PUBLISH_OPTIONS_INIT \
        { sizeof(omni_publish_options), NULL, NULL, OMNI_STR, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0 }

#define OMNI_ID_SIZE 201 /* bytes of an id with its zero */

/* Publishes one task and waits until the daemon has it durably. ret_id (OMNI_ID_SIZE bytes, or NULL) gets its id. 0, or 1 when the
 * idempotency key was known (ret_id is the first task's); negative on failure, and then it was not published, except: after -ETIMEDOUT,
 * -ECANCELED and -EPROTO it may have been. -EAGAIN: the bus or the daemon (stopping) cannot take it now; try again later. Blocks. */
OMNI_API int omni_publish(omni_client *client, const omni_publish_options *task, char ret_id[OMNI_ID_SIZE]);

/* The short form. */
OMNI_API int omni_publish_json(omni_client *client, const char *topic, const char *content_json, char ret_id[OMNI_ID_SIZE]);

typedef struct omni_publish_result {
        int status;            /* 0, 1 (duplicate) or a negative errno */
        char id[OMNI_ID_SIZE]; /* where status >= 0 */
        char error[256];       /* where status < 0 */
} omni_publish_result;

/* Publishes n tasks (any number: they are sent in batches, several in flight) and waits for all. ret_results has n entries, in order; one
 * bad task does not keep the others. `size` of tasks[0] is taken as the distance between them. Returns how many were published (duplicates
 * included; omni_strerror() is of the last that was not), or a negative errno when the call as a whole failed (each entry then says what
 * became of it). call_timeout_ms is for each answer, not for all. Blocks. */
OMNI_API int64_t omni_publish_many(omni_client *client, const omni_publish_options *tasks, size_t n, omni_publish_result *ret_results);

/* Called once with what became of a publish; `id` and `error` are valid during the call. */
typedef void omni_published_fn(omni_client *client, int status, const char *id, const char *error, void *user);

/* Publishes without waiting; `fn` (may be NULL, but then a refusal is not heard of) is called from a later call on the client, unless this
 * one fails. Single publishes that are queued together are sent as one batch. 0, or -EINVAL, -ENOMEM, -ENOBUFS (pending_max or buffer_max
 * reached, or the task is too large for a frame: omni_strerror() says which; serve the client, then try again). Waits for a daemon that is
 * away without limit of time. Does not block. */
OMNI_API int omni_publish_async(omni_client *client, const omni_publish_options *task, omni_published_fn *fn, void *user);

/* Waits until nothing that was started with *_async(), and no ack or fail, is unanswered, at most timeout_ms (-1: for ever). 0 or
 * -ETIMEDOUT, -ECANCELED, -EPROTO. Blocks. */
OMNI_API int omni_flush(omni_client *client, int64_t timeout_ms);

/* -- agents -------------------------------------------------------------------------------------------------------- */

typedef struct omni_agent_options {
        size_t size;       /* set by OMNI_AGENT_OPTIONS_INIT */
        const char *topic; /* or a pattern, where the bus has them */
        const char *name;
        const char *description;
        const char *tools;                              /* JSON text: an array */
        const char *worker;                             /* this worker's name in results and dead letters; NULL: "host-pid" */
        int prefetch;                                   /* tasks held at once; 0: the daemon's default (10) */
        int dlq_retry_limit;                            /* -1: the daemon's default (3) */
        int64_t retry_backoff_ms, retry_backoff_max_ms; /* -1: the daemon's defaults */
        int64_t reclaim_idle_ms;                        /* 0: a lease ends with the connection only */
        const char *start;                              /* NULL, "first", "new", or a Unix time as text: where a new group starts */
        const char *config;                             /* JSON text: an object of further members of `config` than the fields here; NULL */
        int manual_extend; /* 0: with reclaim_idle_ms the library extends the tasks that are held every third of it, whenever the client is
                              served (a handler that computes for longer calls omni_task_extend() itself, or the task is given to another);
                              1: only you do, with omni_task_extend() */
} omni_agent_options;
#define OMNI_AGENT_OPTIONS_INIT \
        { sizeof(omni_agent_options), NULL, NULL, NULL, NULL, NULL, 0, -1, -1, -1, 0, NULL, NULL, 0 }

/* Handles one task. The task is the handler's until it is settled: ack or fail it now, or keep the pointer and do so later, from wherever
 * the client may be used. A task that is neither stays leased. */
typedef void omni_handler_fn(omni_agent *agent, omni_task *task, void *user);

/* Registers an agent and waits for the daemon's answer; registers it again after every reconnect. *ret (may be NULL) is the agent, the
 * client's until omni_agent_unregister() or omni_free(). Several agents on one client are fine. `options` is copied. 0; -EINVAL, -EACCES, …
 * as the daemon says, -ENOENT or -ECONNREFUSED without one. Blocks. */
OMNI_API int omni_agent_register(
        omni_client *client, const omni_agent_options *options, omni_handler_fn *handler, void *user, omni_agent **ret);

/* Ends serving it; the group and its tasks stay. Tasks held go back to the daemon, and their pointers and the agent's are dead, whatever is
 * returned. 0, also when the connection is away (the daemon has ended it then); negative when the answer did not come. Blocks. */
OMNI_API int omni_agent_unregister(omni_agent *agent);

OMNI_API const char *omni_agent_name(const omni_agent *agent);
OMNI_API const char *omni_agent_topic(const omni_agent *agent);
OMNI_API const char *omni_agent_group(const omni_agent *agent); /* "group:{topic}:{name}" */
OMNI_API omni_client *omni_agent_client(const omni_agent *agent);
/* 1 while the daemon serves it on this connection; 0 while away, or after it was deleted there or refused (omni_strerror() says which). */
OMNI_API int omni_agent_active(const omni_agent *agent);

/* -- a task, in a handler ------------------------------------------------------------------------------------------ */

/* Each valid until the task is settled; NULL where the task has none. */
OMNI_API const char *omni_task_id(const omni_task *task);
OMNI_API const char *omni_task_topic(const omni_task *task);
OMNI_API const char *omni_task_content(
        const omni_task *task, size_t *ret_len); /* JSON text, zero-terminated, as it was published; ret_len may be NULL */
OMNI_API const char *omni_task_json(const omni_task *task, size_t *ret_len); /* the whole task as delivered */
OMNI_API const char *omni_task_key(const omni_task *task);
OMNI_API const char *omni_task_reply_to(const omni_task *task);
OMNI_API const char *omni_task_correlation_id(const omni_task *task);
OMNI_API const char *omni_task_causation_id(const omni_task *task);
OMNI_API const char *omni_task_source(const omni_task *task);
OMNI_API const char *omni_task_tenant_id(const omni_task *task);
OMNI_API const char *omni_task_traceparent(const omni_task *task);
OMNI_API const char *omni_task_headers(const omni_task *task); /* JSON text */
OMNI_API const char *omni_task_webhook(const omni_task *task); /* JSON text */
OMNI_API double omni_task_created_at(const omni_task *task);   /* Unix seconds; 0: unknown */
OMNI_API int omni_task_attempt(const omni_task *task);         /* 1 for the first */
OMNI_API int omni_task_priority(const omni_task *task);
OMNI_API int omni_task_lost(
        const omni_task *task); /* 1 once the lease is over (reconnect, reclaim, deleted): work on it is in vain, ack gives -ESTALE */
OMNI_API omni_agent *omni_task_agent(const omni_task *task);

/* Called once with what became of an ack: 0, -ESTALE when the lease was over, or why the daemon refused it for good (a result that is too
 * large: -ENOBUFS): then the task was failed with that message. While the daemon says `unavailable` the ack is sent again. */
typedef void omni_settled_fn(omni_client *client, int status, const char *error, void *user);

/* Finishes the task with a result (JSON text, copied; NULL: null; it may point into the task). The pointer is dead after, whatever is
 * returned. Acks of one turn are sent together, behind what was published in it. 0; -EINVAL, -ENOBUFS (the result is not JSON, or too
 * large: the task is failed instead, with that message); -ESTALE (lease over); -ENOMEM (all tasks held are given back). Does not block. */
OMNI_API int omni_task_ack(omni_task *task, const char *result_json, size_t result_len);
/* The same with tasks to publish, which appear if and only if the ack holds, and with a callback (may be NULL; not called when this returns
 * negative). `outputs` are copied; a bad one fails the task, as a bad result does. */
OMNI_API int omni_task_ack_publish(omni_task *task, const char *result_json, size_t result_len, const omni_publish_options *outputs,
        size_t n_outputs, omni_settled_fn *fn, void *user);

#define OMNI_FAIL_NO_RETRY 1 /* to the dead letters at once */
/* Fails the task: it comes back later, or goes to the dead letters. `message` says why; `type` (may be NULL) is a short name of the sort of
 * error; both may point into the task. delay_ms: -1 for the group's backoff. The pointer is dead after. Does not block. */
OMNI_API int omni_task_fail(omni_task *task, const char *message, const char *type, int64_t delay_ms, unsigned flags);

/* Still working: the lease starts anew. Needed only with reclaim_idle_ms, when manual_extend is set or a handler computes for long: it is
 * sent at once, with all else that waits. 0, -ESTALE (lease over), -ENOMEM. Does not block. */
OMNI_API int omni_task_extend(omni_task *task);

/* -- results ------------------------------------------------------------------------------------------------------- */

/* Waits until a result record for the task is there, at most wait_ms (-1: for ever). *ret_record: the record as JSON text, the caller's to
 * free(); ret_len may be NULL. `agent` NULL: the newest. 0, -ETIMEDOUT (none came in time), -ENOENT (none is there, with wait_ms 0; or no
 * daemon: omni_strerror() says which). Blocks; survives the daemon's restart. */
OMNI_API int omni_result_get(
        omni_client *client, const char *task_id, const char *agent, int64_t wait_ms, char **ret_record, size_t *ret_len);

/* -- any method of the protocol ------------------------------------------------------------------------------------ */

/* Calls `method` with params (JSON text of an object; NULL: {}) and waits. *ret_result (may be NULL): JSON text, the caller's to free().
 * Not repeated after a lost connection unless the method only reads: else -ECONNRESET. After -ETIMEDOUT, too, the outcome is unknown.
 * hello, agent.register and agent.unregister are the library's own: -EINVAL. Blocks. */
OMNI_API int omni_call(omni_client *client, const char *method, const char *params_json, char **ret_result, size_t *ret_len);

/* `result` (JSON text, result_len bytes, zero-terminated) where status is 0, else `error`; valid during the call. */
typedef void omni_reply_fn(omni_client *client, int status, const char *result, size_t result_len, const char *error, void *user);
/* The same without waiting; `fn` may be NULL. 0, or -EINVAL, -ENOMEM, -ENOBUFS as omni_publish_async(). Does not block. */
OMNI_API int omni_call_async(omni_client *client, const char *method, const char *params_json, omni_reply_fn *fn, void *user);

/* Every notification that is not about tasks of this client (watch.event, agent.ended, daemon.stopping, …), as method and params (JSON
 * text, zero-terminated), valid during the call. When more than buffer_max bytes of them wait for a handler to return, further ones are
 * dropped. */
typedef void omni_notification_fn(omni_client *client, const char *method, const char *params, size_t params_len, void *user);
OMNI_API void omni_on_notification(omni_client *client, omni_notification_fn *fn, void *user);

/* -- serving ------------------------------------------------------------------------------------------------------- */

/* Serves until omni_stop(), reconnecting as needed. 0 after omni_stop(); negative when it cannot go on: -EPROTO, -ENOMEM, -EACCES, or, when
 * every agent of the client was deleted or refused by the daemon, what the last was ended for (-ENOENT: deleted). On the way out, acks that
 * handlers made are sent and their answers awaited; no further handler is called. Blocks. */
OMNI_API int omni_run(omni_client *client);
/* Serves for at most timeout_ms (-1: until something was done). 1: a handler or callback was called; 0: none, or omni_wakeup(); -ECANCELED
 * after omni_stop(); else as omni_run(). Blocks that long. */
OMNI_API int omni_run_once(omni_client *client, int64_t timeout_ms);
/* Makes omni_run(), omni_run_once() or a blocking call return soon: the one that is under way, else the next. From inside a handler: both a
 * blocking call there and the call that runs the handler (which may be an omni_publish(), and then is -ECANCELED). omni_process() takes no
 * notice. Any thread, signal handlers too. */
OMNI_API void omni_stop(omni_client *client);
/* Makes a waiting omni_run_once() return, or omni_fd() readable. Any thread, signal handlers too. */
OMNI_API void omni_wakeup(omni_client *client);

/* In a caller's own loop: a descriptor to wait for (the same one for the client's whole life, across reconnects: an epoll descriptor), with
 * which poll(2) events (POLLIN; it is the library that watches its socket for writing), for how long at most (-1: no limit; ask again after
 * every call on the client), and what to call then. */
OMNI_API int omni_fd(omni_client *client);
OMNI_API short omni_events(omni_client *client);
OMNI_API int64_t omni_timeout_ms(omni_client *client);
/* Sends, receives, calls handlers and callbacks; never blocks. How many of them were called, or a negative errno: -EPROTO, -ENOMEM (the
 * connection was given up; the next calls try again), -EBUSY. */
OMNI_API int omni_process(omni_client *client);

#ifdef __cplusplus
}
#endif
#endif
