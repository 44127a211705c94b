/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: each task is one message to its topic's log, all of a call go out in one turn, and the call completes with the last PubAck.
 *
 * Where the server has made a stream, others of its cluster may not know yet who takes its messages, and a message whose like is just being
 * stored is refused: both pass within moments, so it is sent again for as long as RETRY_MS, then it is `unavailable`.
 *
 * The message is the record. Its id goes along as Nats-Msg-Id, by which the server drops a repeat within dedupe_window_ms; the ids of one
 * topic are not those of another, so in a shared stream it says whose id it is. The task's
 * headers and traceparent go along as headers, for programs that know nothing of tasks.
 *
 * Loop thread.
 */
#include "bus_state.h"

enum { RETRY_MS = 700, RETRY_FIRST_MS = 5 };

struct publish {
        struct job job; /* first */
        struct om_outcome *outcomes;
        size_t n, left, refused;
        struct om_error error;
        struct publication items[];
};

/* -- one task ------------------------------------------------------------------------------------------------------- */

static bool header_name_ok(struct om_span s) {
        for (size_t i = 0; i < s.len; i++)
                if (s.p[i] <= ' ' || s.p[i] == ':' || s.p[i] == 0x7f)
                        return false;
        return s.len > 0;
}

/* Library and protocol take lines: what breaks one, or would be trimmed, is not carried as a header. The record has it. */
static natsStatus put_header(natsMsg *msg, const char *name, struct om_span value) {
        char text[512];

        if (!value.p || value.len >= sizeof text || memchr(value.p, '\r', value.len) || memchr(value.p, '\n', value.len) ||
                memchr(value.p, 0, value.len))
                return NATS_OK;
        memcpy(text, value.p, value.len);
        text[value.len] = 0;
        return natsMsgHeader_Set(msg, name, text);
}

static natsStatus put_task_headers(natsMsg *msg, struct om_span headers) {
        struct om_arena arena = { 0 };
        struct om_json_value key;
        struct om_span value;
        struct nats_walk w;
        natsStatus s = NATS_OK;

        nats_walk_init(&w, headers);
        while (s == NATS_OK && nats_walk_next(&w, &value, &key)) {
                struct om_span name = om_arena_copy(&arena, om_json_string(key, &arena));

                /* Those that begin so are the server's: they would steer it. */
                if (name.p && header_name_ok(name) && strncasecmp(name.p, "nats-", 5) != 0 && value.len >= 2 && value.p[0] == '"')
                        s = put_header(msg, name.p,
                                om_json_string(
                                        (struct om_json_value){ OM_JSON_STRING, memchr(value.p, '\\', value.len) != NULL, value }, &arena));
        }
        om_arena_deinit(&arena);
        return s;
}

static natsStatus put_cloudevents(natsMsg *msg, const struct om_task *t) {
        natsStatus s = natsMsgHeader_Set(msg, "ce-specversion", "1.0");

        if (s == NATS_OK)
                s = put_header(msg, "ce-id", t->id);
        if (s == NATS_OK)
                s = put_header(msg, "ce-type", t->topic);
        if (s == NATS_OK)
                s = put_header(msg, "ce-source", t->source.p ? t->source : OM_SPAN("omnidaemon"));
        if (s == NATS_OK)
                s = natsMsgHeader_Set(msg, "ce-datacontenttype", "application/json");
        return s;
}

static natsStatus put_headers(natsMsg *msg, const struct om_bus *b, const struct om_task *t, struct om_span once) {
        natsStatus s = put_header(msg, "Nats-Msg-Id", once);

        if (s == NATS_OK && t->traceparent.p)
                s = put_header(msg, "traceparent", t->traceparent);
        if (s == NATS_OK && b->settings.cloudevents)
                s = put_cloudevents(msg, t);
        if (s == NATS_OK && t->headers.p)
                s = put_task_headers(msg, t->headers);
        return s;
}

int nats_publish_answer(const struct nats_reply *reply, const char **ret_why) {
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "publish", &e);

        *ret_why = NULL;
        if (status == 0)
                return 0;
        switch (reply->status < 0 ? 0 : nats_error_code(reply->data)) {
        case NATS_ERR_STORE_FAILED:
                *ret_why = status == -ENOBUFS ? "NATS: the topic is full (max_topic_bytes, max_topic_tasks): tasks must be finished first"
                                              : "NATS: the server cannot store it";
                break;
        case 10054:
                *ret_why = "NATS: the task is larger than the stream takes (max_msg_size)";
                break;
        case 10002:
        case 10023:
        case 10028:
        case 10047:
                *ret_why = "NATS: the storage quota of the account or of the server is used up: raise max_file, max_file_store or the "
                           "like, or purge "
                           "streams";
                break;
        case NATS_ERR_DUPLICATE_UNDER_WAY:
                *ret_why = "NATS: another message with this id or idempotency key is being stored";
                break;
        case 10167:
                *ret_why =
                        "NATS: more is waiting to be stored than the server lets it: max_buffered_msgs, max_buffered_size of its settings";
                break;
        default:
                *ret_why = reply->status == -EAGAIN ? "NATS: the connection broke before the answer; the task may have been published"
                        : reply->status == -EACCES  ? "NATS: the user of the URL lacks the permission to publish to this topic's subject"
                        : reply->status == -ENOENT  ? "NATS: no stream takes this topic now"
                                                    : "NATS: the server refuses the task; its log says why";
        }
        return status;
}

/* -- once more ------------------------------------------------------------------------------------------------------ */

static void leave(struct publication *p) {
        if (p->retry)
                DL_DELETE(p->bus->retrying, p);
        p->retry = NULL;
}

static void retry_arm(struct om_bus *b, int64_t due_ms) {
        int64_t ms = due_ms - om_clock_ms();
        struct timeval tv = { 0, ms > 0 ? (suseconds_t) (ms * 1000) : 0 };

        if (event_pending(b->retry_timer, EV_TIMEOUT, NULL) && b->retry_ms <= due_ms)
                return;
        b->retry_ms = due_ms;
        event_add(b->retry_timer, &tv);
}

bool nats_publication_later(struct publication *p, void (*retry)(struct publication *p)) {
        struct om_bus *b = p->bus;
        int64_t now = om_clock_ms(), ms = RETRY_FIRST_MS << (p->tries < 4 ? p->tries : 4);

        if (!p->tries++)
                p->since_ms = now;
        if (now - p->since_ms + ms > RETRY_MS || !nats_link_is_up(b->link))
                return false;
        p->retry = retry;
        p->due_ms = now + ms;
        DL_APPEND(b->retrying, p);
        retry_arm(b, p->due_ms);
        return true;
}

void nats_on_retry_timer(evutil_socket_t fd, short what, void *ctx) {
        struct om_bus *b = ctx;
        struct publication *p = b->retrying;
        int64_t now = om_clock_ms(), next = INT64_MAX;

        while (p) {
                void (*retry)(struct publication *) = p->retry;

                if (p->due_ms > now) {
                        next = p->due_ms < next ? p->due_ms : next;
                        p = p->next;
                        continue;
                }
                leave(p);
                retry(p); /* what it does to the list is unknown */
                p = b->retrying;
                next = INT64_MAX;
        }
        if (next != INT64_MAX)
                retry_arm(b, next);
}

/* Those whose request is open hear of it as everybody does. */
void nats_publications_down(struct om_bus *b) {
        struct publication *p, *next;

        DL_FOREACH_SAFE (b->retrying, p, next)
                if (!p->req.active)
                        nats_publication_over(p, -EAGAIN, "NATS: not connected");
}

static void send_again(struct publication *p) {
        if (nats_request_resend(p->bus->link, &p->req) < 0)
                nats_publication_over(p, -EAGAIN, "NATS: not connected");
}

void nats_publication_drop(struct publication *p) {
        natsMsg_Destroy(p->msg);
        p->msg = NULL;
        nats_request_end(p->bus->link, &p->req);
        free(p->key);
        p->key = NULL;
}

void nats_publication_over(struct publication *p, int status, const char *why) {
        leave(p);
        nats_publication_drop(p);
        p->done(p, status, why);
}

/* -- its answer ----------------------------------------------------------------------------------------------------- */

static bool passes_soon(const struct nats_reply *reply) {
        return reply->status == -ENOENT || (reply->status == 0 && nats_error_code(reply->data) == NATS_ERR_DUPLICATE_UNDER_WAY);
}

static void stored(struct publication *p) {
        if (!p->key)
                nats_publication_over(p, 0, NULL);
        else if (p->first_seq)
                nats_key_find_first(p);
        else
                nats_key_put(p);
}

static void there_again(struct stream_wait *w, int status, const struct om_error *e) {
        struct publication *p = (struct publication *) w;

        p->needing = false;
        if (status < 0)
                nats_publication_over(p, status, "NATS: the topic was deleted meanwhile, and cannot be made again now");
        else
                stored(p);
}

static void sent(struct nats_request *r, const struct nats_reply *reply) {
        struct publication *p = r->ctx;
        const char *why;
        int status;

        if (p->needing)
                return;
        leave(p);
        if (reply->status == -ENOENT && !p->again) {
                /* The stream was deleted meanwhile: made again, once. */
                p->again = p->needing = true;
                nats_topic_gone(p->topic);
                nats_topic_need(p->topic, &p->wait);
                return;
        }
        if (passes_soon(reply) && nats_publication_later(p, send_again))
                return;
        status = nats_publish_answer(reply, &why);
        if (status < 0) {
                nats_publication_over(p, status, why);
                return;
        }
        if (nats_json_true(reply->data, "duplicate"))
                p->first_seq = nats_json_u64(reply->data, "seq");
        if (p->topic->needed.state == NEEDED_THERE) {
                stored(p);
                return;
        }
        /* Deleted while it was on its way, and in a shared stream nothing says so: the groups of patterns must have their consumers. */
        p->needing = true;
        p->wait.fn = there_again;
        nats_topic_need(p->topic, &p->wait);
}

/* In a shared stream an id is its topic's, and since the topic was made. */
static int put_whose_id(struct publication *p, natsMsg *msg) {
        char text[NATS_NAME_MAX + 20 + OM_NAME_MAX + 1];
        const char *id = NULL;

        if (!p->by_id || !nats_topic_filter(p->topic) || natsMsgHeader_Get(msg, "Nats-Msg-Id", &id) != NATS_OK)
                return 0;
        snprintf(text, sizeof text, "%s@%llx@%s", p->topic->nt, (unsigned long long) p->topic->record.born_ms, id);
        return natsMsgHeader_Set(msg, "Nats-Msg-Id", text) == NATS_OK ? 0 : -ENOMEM;
}

const char *nats_bare_id(const struct topic *t, const char *id) {
        size_t len = strlen(t->nt);
        const char *second = strncmp(id, t->nt, len) == 0 && id[len] == '@' ? strchr(id + len + 1, '@') : NULL;

        return nats_topic_filter(t) && second && second[1] ? second + 1 : id;
}

static void send_it(struct stream_wait *w, int status, const struct om_error *e) {
        struct publication *p = (struct publication *) w;
        natsMsg *msg = p->msg;
        int r = status;

        p->msg = NULL;
        p->needing = false;
        if (r == 0 && !p->again)
                r = put_whose_id(p, msg);
        if (r == 0)
                r = p->again ? nats_request_resend(p->bus->link, &p->req) : nats_request_send(p->bus->link, &p->req, msg);
        else
                natsMsg_Destroy(msg);
        if (r == 0)
                return;
        if (status < 0 && status != -EAGAIN)
                om_host_log(p->bus->host, OM_LOG_WARNING, "topic %s: %s", p->topic->name, e->message);
        nats_publication_over(p, r,
                r == -EAGAIN            ? "NATS: not connected, or the cluster has no leader to make the topic's stream now"
                        : r == -ENOMEM  ? "out of memory"
                        : r == -ENOBUFS ? "NATS: the account or the server takes no more streams or bytes: raise its limits"
                                        : "NATS: the stream of the topic cannot be made; the log of the daemon says why");
}

static int no_memory(struct publication *p) {
        nats_publication_drop(p);
        return -ENOMEM;
}

int nats_publication_init(struct publication *p, struct om_bus *b, const struct om_bus_task *t, const char *once) {
        struct om_span data = b->settings.format == FORMAT_RAW ? t->task->content : t->record;
        p->bus = b;
        p->wait.fn = send_it;
        p->topic = nats_topic_get(b, t->task->topic);
        if (!p->topic)
                return -ENOMEM;
        if (data.len + 1024 > (size_t) nats_link_max_payload(b->link))
                return -EMSGSIZE;
        p->req.fn = sent;
        p->req.ctx = p;
        p->req.open = true;
        p->msg = nats_request_new(b->link, &p->req, p->topic->subject, data);
        if (!p->msg)
                return -ENOMEM;
        if (t->task->idempotency_key.p)
                return nats_key_init(p, t->task) == 0 && put_headers(p->msg, b, t->task, om_span_of(p->key)) == NATS_OK ? 0 : no_memory(p);
        p->by_id = !once;
        return put_headers(p->msg, b, t->task, once ? om_span_of(once) : t->task->id) == NATS_OK ? 0 : no_memory(p);
}

void nats_publication_start(struct publication *p) {
        if (p->key)
                nats_key_ask(p);
        else
                nats_topic_need(p->topic, &p->wait);
}

/* -- a batch -------------------------------------------------------------------------------------------------------- */

static void publish_free(struct om_job *j) { free(j); }

static void finished(struct publish *m) {
        /* Away is away for all of it. */
        if (m->refused == m->n && m->n)
                om_job_over(&m->job.base, om_kind_errno(OM_UNAVAILABLE), &m->error);
        else
                om_job_over(&m->job.base, 0, NULL);
}

static void one_done(struct publication *p, int status, const char *why) {
        struct publish *m = p->ctx;
        size_t i = (size_t) (p - m->items);

        if (!om_job_is_cancelled(&m->job.base)) {
                m->outcomes[i].status = status;
                m->outcomes[i].why = why;
                if (status == 0 && p->duplicate) {
                        m->outcomes[i].duplicate = true;
                        snprintf(m->outcomes[i].id, sizeof m->outcomes[i].id, "%s", p->id);
                }
        }
        if (status == -EAGAIN) {
                m->refused++;
                om_error_set(&m->error, OM_UNAVAILABLE, "%s", why ? why : "NATS: not connected");
        }
        if (--m->left == 0)
                finished(m);
}

int nats_bus_publish(struct om_bus *b, struct om_bus_publish *op, struct om_error *e) {
        size_t bytes = 0;
        struct publish *m;
        int r;

        for (size_t i = 0; i < op->n; i++)
                bytes += op->tasks[i].record.len + 512;
        r = nats_job_admit(b, bytes, e);
        if (r < 0)
                return r;
        m = calloc(1, sizeof *m + op->n * sizeof m->items[0]);
        if (!m)
                return om_error_set_errno(e, ENOMEM, "NATS");
        m->outcomes = op->outcomes;
        m->n = op->n;
        m->left = op->n + 1;
        nats_job_begin(b, &m->job, &op->op, bytes, publish_free);
        for (size_t i = 0; i < op->n; i++) {
                struct publication *p = &m->items[i];
                int status = nats_publication_init(p, b, &op->tasks[i], NULL);

                op->outcomes[i] = (struct om_outcome){ .status = 0 };
                p->ctx = m;
                p->done = one_done;
                if (status == 0)
                        nats_publication_start(p);
                else
                        one_done(p, status == -EMSGSIZE ? -ENOBUFS : status,
                                status == -EMSGSIZE ? "NATS: the task is larger than the server's max_payload" : "out of memory");
        }
        if (--m->left == 0)
                finished(m);
        return 0;
}
