/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_REDIS_CONN_H
#define OM_REDIS_CONN_H
/*
 * Redis as the bus and the storage see it: commands in, replies out. Whether one server answers, a Sentinel's primary or a cluster, is
 * decided by the URL and hidden here; so are connecting, TLS, logging in, reconnecting, redirects and deadlines.
 *
 *     struct om_redis_cmd *c = om_redis_cmd_new("HSET");
 *     om_redis_key(c, key);                            the key decides which server of a cluster gets it
 *     om_redis_arg(c, field);
 *     om_redis_arg(c, value);
 *     r = om_redis_send(redis, c, done, ctx, e);       takes the command, whatever it returns
 *
 * What holds:
 *   - commands that go to one server are answered in the order in which they were sent (redirects of a cluster apart); all that one turn
 *     of the loop sends leaves in one write;
 *   - done() is called exactly once for a command that was taken (a return of 0), never from within om_redis_send(), and not after
 *     om_redis_abandon();
 *   - while the server is away a command is refused at once with -EAGAIN and the reason. Those under way when it goes away are done with
 *     -EAGAIN: they may have taken effect. A server that falls silent counts as away after `answer_timeout_ms` (om_redis_hurry()), or twice
 *     what it took when that was longer (link.c), and its connection is given up after `connect_timeout_ms` more; it is watched only while
 * it owes an answer, so an idle connection costs no wake-up (the kernel's keep-alive finds a dead peer under a blocking read);
 *   - what is under way is bounded, in commands and bytes: -ENOBUFS above it; so is a reply, in bytes and depth, whoever sends it;
 *   - an error of the server is a status below 0 with a message that says what to mend; the reply is there as well, to be looked at.
 *
 * Thread: the loop's. Nothing blocks. Callbacks may send, and may free the client.
 */
#include "../host.h"
#include "../options.h"

/* -- settings: what the URL says ------------------------------------------------------------------------------------ */

/*
 *   redis://[[USER:]PASSWORD@]HOST[:6379][/DB]            rediss:// the same with TLS
 *   redis+unix://[[USER]:PASSWORD@]/PATH/TO/SOCKET        db by parameter
 *   redis+cluster://HOST[:6379],HOST…                     seeds; the rest is found.   rediss+cluster://
 *   redis+sentinel://HOST[:26379],HOST…/SERVICE[/DB]      SERVICE: the primary's name. rediss+sentinel://: TLS to sentinels and servers
 * redis://:PASSWORD@HOST logs in as user "default".
 */
enum om_redis_mode { OM_REDIS_SINGLE, OM_REDIS_CLUSTER, OM_REDIS_SENTINEL };

struct om_redis_settings {
        /* by OM_REDIS_OPTIONS; strings point into the URL until om_redis_settings_take() has copied them */
        int64_t db;
        int64_t connect_timeout_ms, answer_timeout_ms;
        int64_t max_reply_bytes, max_pending_bytes;
        const char *tls_ca_file, *tls_cert_file, *tls_key_file, *tls_server_name;
        bool tls_verify;
        const char *sentinel_user, *sentinel_password;
        /* by om_redis_settings_take() */
        enum om_redis_mode mode;
        bool tls;
        char *user, *password, *service, *socket_path;
        struct om_redis_address *hosts;
        size_t n_hosts;
        char *redacted; /* the URL for messages */
};
struct om_redis_address {
        char *host; /* name or number; NULL: the settings' socket_path */
        uint16_t port;
};

/* The connection's part of a table of options: `OM_REDIS_OPTIONS(struct bus_settings, redis)`, with a comma after it. */
#define OM_REDIS_OPTIONS(type, field)                                                                                                   \
        { "db", OM_OPTION_INT, offsetof(type, field.db), "-1", NULL, -1, 1 << 20,                                                       \
                "Number of the database; also as the path, redis://HOST/3. -1: as the path says, else 0." },                            \
                { "connect_timeout_ms", OM_OPTION_MS, offsetof(type, field.connect_timeout_ms), "5s", NULL, 50, 600000,                 \
                        "How long connecting and logging in may take before it is tried anew." },                                       \
                { "answer_timeout_ms", OM_OPTION_MS, offsetof(type, field.answer_timeout_ms), "800ms", NULL, 50, 600000,                \
                        "How long a server that owes an answer may be silent before calls fail with `unavailable`; longer while it is " \
                        "slow." },                                                                                                      \
                { "max_reply_bytes", OM_OPTION_BYTES, offsetof(type, field.max_reply_bytes), "256M", NULL, 65536, (int64_t) 1 << 32,    \
                        "The largest reply that is read; a server that sends more is disconnected." },                                  \
                { "max_pending_bytes", OM_OPTION_BYTES, offsetof(type, field.max_pending_bytes), "64M", NULL, 65536, (int64_t) 1 << 32, \
                        "Bytes of commands that may wait for answers on one connection; above it calls are held back." },               \
                { "tls_ca_file", OM_OPTION_STRING, offsetof(type, field.tls_ca_file), NULL, NULL, 0, 0,                                 \
                        "PEM file of the authorities that the server's certificate is checked against; default: the system's." },       \
                { "tls_cert_file", OM_OPTION_STRING, offsetof(type, field.tls_cert_file), NULL, NULL, 0, 0,                             \
                        "PEM file of the client's certificate." },                                                                      \
                { "tls_key_file", OM_OPTION_STRING, offsetof(type, field.tls_key_file), NULL, NULL, 0, 0,                               \
                        "PEM file of the client's private key; default: in tls_cert_file." },                                           \
                { "tls_server_name", OM_OPTION_STRING, offsetof(type, field.tls_server_name), NULL, NULL, 0, 0,                         \
                        "The name that the server's certificate must bear; default: the host of the URL." },                            \
                { "tls_verify", OM_OPTION_BOOL, offsetof(type, field.tls_verify), "true", NULL, 0, 0,                                   \
                        "Whether the server's certificate is checked; false only for tests." },                                         \
                { "sentinel_user", OM_OPTION_STRING, offsetof(type, field.sentinel_user), NULL, NULL, 0, 0,                             \
                        "User for the sentinels themselves." },                                                                         \
        {                                                                                                                               \
                "sentinel_password", OM_OPTION_STRING, offsetof(type, field.sentinel_password), NULL, NULL, 0, 0,                       \
                        "Password for the sentinels themselves."                                                                        \
        }

/* After om_options_read() has filled the options: adds what the URL's other parts say and copies all texts. -EINVAL with `e` naming the
 * part to mend. Free with om_redis_settings_free(), whether it failed or not. */
int om_redis_settings_take(struct om_redis_settings *s, const struct om_url *url, struct om_error *e);
void om_redis_settings_free(struct om_redis_settings *s);

/* -- replies --------------------------------------------------------------------------------------------------------- */

enum om_redis_type { OM_REDIS_NIL, OM_REDIS_STRING, OM_REDIS_STATUS, OM_REDIS_ERROR, OM_REDIS_INTEGER, OM_REDIS_ARRAY };

/* Lives until done() returns: copy what is needed longer. */
struct om_redis_reply {
        enum om_redis_type type;
        struct om_span text; /* STRING, STATUS, ERROR; zero-terminated */
        int64_t integer;     /* INTEGER */
        struct om_redis_reply **elements;
        size_t n; /* ARRAY */
};
/* Element i of an array; a reply of type NIL where `r` is NULL, no array, or too short: a chain of these never crashes. */
const struct om_redis_reply *om_redis_at(const struct om_redis_reply *r, size_t i);
/* An INTEGER, or text that is one; `otherwise` for all else. */
int64_t om_redis_int(const struct om_redis_reply *r, int64_t otherwise);
/* The value after `name` in a flat array of names and values (XINFO, CONFIG GET, HGETALL); NIL when it is not there. */
const struct om_redis_reply *om_redis_field(const struct om_redis_reply *r, const char *name);
/* The value of "name:value\r\n" in the text of INFO; absent when it is not there. */
struct om_span om_redis_info(struct om_span info, const char *name);
/* Whether it is an error that begins with this word, "NOGROUP". NULL-safe. */
bool om_redis_is_error(const struct om_redis_reply *r, const char *word);

/*
 * `status` 0: `reply` is what the server answered, never an ERROR. Below 0: `error` is filled, and `reply` is the server's error, or NULL
 * where none came. An error within an array (of EXEC, or of a script) is the caller's to find.
 *   -EAGAIN    away, loading, failing over, read-only replica, MISCONF, CLUSTERDOWN: may work later
 *   -ENOBUFS   OOM: the server's maxmemory is reached
 *   -EACCES    NOAUTH, WRONGPASS, NOPERM
 *   -EINVAL    WRONGTYPE, and a command that the server does not understand
 *   -ENOENT    NOGROUP, "no such key";  -EEXIST  BUSYGROUP
 *   -ECANCELED the client was freed
 *   -EIO       any other
 */
typedef void om_redis_done_fn(void *ctx, int status, const struct om_redis_reply *reply, const struct om_error *error);

/* -- commands -------------------------------------------------------------------------------------------------------- */

struct om_redis;
struct om_redis_node;
struct om_redis_cmd;

/* A Lua script: sent by its hash, and whole where the server does not know it. Static; the hash is made at the first use. */
struct om_redis_script {
        const char *text;
        char sha[41]; /* empty before */
};
/* All below never fail: memory that is missing shows in om_redis_send(). NULL commands are allowed everywhere. */
struct om_redis_cmd *om_redis_cmd_new(const char *name); /* one word; a subcommand is an argument */
/* EVALSHA; then the number of keys has been written, and exactly that many om_redis_key() follow, then arguments. */
struct om_redis_cmd *om_redis_script_new(struct om_redis_script *script, unsigned n_keys);
void om_redis_arg(struct om_redis_cmd *c, struct om_span arg);
void om_redis_arg_text(struct om_redis_cmd *c, const char *arg);
void om_redis_arg_int(struct om_redis_cmd *c, int64_t arg);
void om_redis_key(struct om_redis_cmd *c, struct om_span key); /* an argument that is a key; the first one routes */
/* An argument made of pieces: begin gives the buffer that `len` bytes are appended to, and then end is called. */
struct om_buf *om_redis_arg_begin(struct om_redis_cmd *c, size_t len);
void om_redis_arg_end(struct om_redis_cmd *c);
/* How much longer than answer_timeout_ms the server may take (WAIT); -1: for ever. */
void om_redis_patience(struct om_redis_cmd *c, int64_t ms);
/* Whoever waits for this shall hear within answer_timeout_ms when the server falls silent: it is then done with -EAGAIN, and may take
 * effect. Commands without it are kept: they are answered when the server goes on, or done with -EAGAIN when the connection is given up. */
void om_redis_hurry(struct om_redis_cmd *c);
size_t om_redis_cmd_bytes(const struct om_redis_cmd *c);
struct om_span om_redis_cmd_key(const struct om_redis_cmd *c); /* its first; c's */
int om_redis_cmd_slot(const struct om_redis_cmd *c);           /* of that; -1: it has none */
void om_redis_cmd_free(struct om_redis_cmd *c);                /* of one that was not sent */

/* Takes `c`. 0: done() will be called. -EAGAIN: away; -ENOBUFS: too much is under way; -ENOMEM. A command without a key goes to any server
 * of a cluster. */
int om_redis_send(struct om_redis *r, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx, struct om_error *e);
/* To this server, whatever its keys are; redirects are followed all the same. */
int om_redis_send_node(struct om_redis_node *node, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx, struct om_error *e);
/* done() will not be called for a command that was taken and is not done. It may still take effect. */
void om_redis_abandon(struct om_redis_cmd *c);

/* Slots of a cluster (Redis Cluster specification, "Key distribution model"): CRC16 of the key, or of what stands in its first {}. */
unsigned om_redis_slot(struct om_span key);
/* Appends "{…}", a hash tag that puts a key in which it stands first into the slot of `key`: so that our own keys beside one of the Python
 * OmniDaemon's can be changed by one script, in a cluster too. */
void om_redis_tag(struct om_buf *b, struct om_span key);

/* -- the client ------------------------------------------------------------------------------------------------------ */

enum om_redis_state {
        OM_REDIS_CONNECTING, /* commands are refused with -EAGAIN; it goes on trying, with backoff and jitter */
        OM_REDIS_READY,      /* of a cluster: its map is known, and a primary answers; commands for another may be refused all the same */
};
struct om_redis_events {
        /* Told when it changes, and again with CONNECTING when the reason does. `error` with CONNECTING: why, or NULL at the first try. */
        void (*state)(void *ctx, enum om_redis_state state, const struct om_error *error);
        /* Keys may be served by other nodes than before (a cluster's map changed, a primary was replaced); may be NULL. */
        void (*moved)(void *ctx);
        /* A server can be sent commands, again or at first; before state() where both are news. Answers may have been lost on the way. May
         * be NULL. */
        void (*node_ready)(void *ctx, struct om_redis_node *node);
};
/* Begins to connect; no event comes before it has returned. `settings`, `events` live as long as the client. -EINVAL with `e`: a
 * certificate or key file that cannot be used. */
int om_redis_new(struct om_host *host, const struct om_redis_settings *settings, const struct om_redis_events *events, void *ctx,
        struct om_redis **ret, struct om_error *e);
/* Ends all connections; commands under way are done with -ECANCELED before it returns. NULL-safe. */
void om_redis_free(struct om_redis *r);
bool om_redis_ready(const struct om_redis *r);
/* Why it is not ready; OM_OK while it is. */
const struct om_error *om_redis_why(const struct om_redis *r);
size_t om_redis_pending(const struct om_redis *r); /* commands under way */

/* -- nodes: for what one server of a cluster must be asked ----------------------------------------------------------- */

/* The server that has the key; NULL while it is not known. A node lives as long as its client; on one server it is always the same. */
struct om_redis_node *om_redis_node_of(struct om_redis *r, struct om_span key);
int om_redis_slot_of(const struct om_redis *r, struct om_span key); /* keys of one command are of one slot; -1: this is no cluster */
/* Servers that have keys: the i-th of them; NULL after the last. Changes with moved(). */
struct om_redis_node *om_redis_node_at(struct om_redis *r, size_t i);
bool om_redis_node_ready(const struct om_redis_node *node);
const char *om_redis_node_name(const struct om_redis_node *node); /* "host:port", for messages */

/* A second connection to a node's server, for commands that block there. Reconnects by itself, and follows the node. */
struct om_redis_reader;
struct om_redis_reader_events {
        void (*state)(void *ctx, enum om_redis_state state, const struct om_error *error);
};
int om_redis_reader_new(struct om_redis_node *node, const struct om_redis_reader_events *events, void *ctx, struct om_redis_reader **ret,
        struct om_error *e);
void om_redis_reader_free(struct om_redis_reader *reader); /* as om_redis_free() */
/* As om_redis_send(), on this connection; not redirected (a MOVED is -EAGAIN, and moved() follows). */
int om_redis_reader_send(struct om_redis_reader *reader, struct om_redis_cmd *c, om_redis_done_fn *done, void *ctx, struct om_error *e);
/* Makes the connection anew where there is one: what was sent on it ends with -EAGAIN in a later turn. */
void om_redis_reader_anew(struct om_redis_reader *reader);
/* The number by which the server knows this connection, for CLIENT UNBLOCK on the node; 0: not connected, or the user may not ask. */
int64_t om_redis_reader_id(const struct om_redis_reader *reader);

#endif
