/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Topics, made when first needed: that their messages are taken, and that groups of patterns get them.
 *
 * Always true:
 *   - a topic is THERE when its stream is, and the groups of patterns that match it have their consumers;
 *   - where it has a stream of its own, whoever makes that makes the topic. In a shared stream it is made by a record in the state stream,
 * of this life of the shared one; who finds none, or one that says that the consumers may be missing, goes on from there: all of them do
 * the same, and the record is written only on condition that it is as it was read.
 *
 * Loop thread.
 */
#include "../safe_name.h"

#include "bus_state.h"

enum { TRIES = 100, SHARED_NAME_MAX = 80 /* of three in a consumer's name */ };

static bool text_of(char *out, size_t size, struct om_buf *b) {
        bool ok = om_buf_ok(b);

        snprintf(out, size, "%.*s", ok ? (int) b->len : 0, b->data ? b->data : "");
        om_buf_deinit(b);
        return ok;
}

static struct stream *own_stream(struct topic *t) {
        char name[STREAM_NAME_MAX];

        snprintf(name, sizeof name, "%s-t-%s", t->bus->settings.c.prefix, t->nt);
        return nats_stream_new(t->bus, STREAM_LOG, name, t->subject, t->name);
}

static bool shares(const struct topic *t) { return t->log == t->bus->shared; }

static void topic_free(struct topic *t) {
        if (!shares(t))
                nats_stream_free(t->log);
        free(t);
}

static void log_there(struct stream_wait *w, int status, const struct om_error *e);

struct topic *nats_topic_get(struct om_bus *b, struct om_span name) {
        struct om_buf nt = OM_BUF_INIT, subject = OM_BUF_INIT;
        struct topic *t = NULL;
        bool named;

        if (name.len == 0 || name.len > OM_TOPIC_MAX)
                return NULL;
        HASH_FIND(hh, b->topics, name.p, name.len, t);
        if (t || !(t = calloc(1, sizeof *t)))
                return t;
        t->bus = b;
        t->log_wait.fn = log_there;
        memcpy(t->name, name.p, name.len);
        nats_name_encode(&nt, name);
        om_buf_printf(&subject, "%s.t.", b->settings.c.prefix);
        nats_subject_encode(&subject, name);
        named = text_of(t->nt, sizeof t->nt, &nt);
        if (text_of(t->subject, sizeof t->subject, &subject) && named)
                t->log = b->shared ? b->shared : own_stream(t);
        if (t->log)
                HASH_ADD(hh, b->topics, name, name.len, t);
        if (t->hh.tbl)
                return t;
        topic_free(t);
        return NULL;
}

void nats_topics_free(struct om_bus *b) {
        struct stream *s, *next;
        struct topic *t, *tmp;

        HASH_ITER (hh, b->deads, s, next) {
                HASH_DEL(b->deads, s);
                nats_stream_free(s);
        }
        HASH_ITER (hh, b->topics, t, tmp) {
                HASH_DEL(b->topics, t);
                topic_free(t);
        }
}

struct topic *nats_topic_of(struct om_bus *b, struct om_span subject) {
        struct om_buf name = OM_BUF_INIT;
        struct topic *t = NULL;

        if (nats_topic_name(b, subject, &name))
                HASH_FIND(hh, b->topics, name.data, name.len, t);
        om_buf_deinit(&name);
        return t && om_span_is(subject, t->subject) ? t : NULL;
}

bool nats_topic_name(const struct om_bus *b, struct om_span subject, struct om_buf *ret) {
        size_t len = strlen(b->settings.c.prefix);

        if (subject.len < len + 3 || memcmp(subject.p, b->settings.c.prefix, len) != 0 || memcmp(subject.p + len, ".t.", 3) != 0)
                return false;
        return nats_subject_decode(ret, (struct om_span){ subject.p + len + 3, subject.len - len - 3 }) && om_buf_ok(ret) && ret->len;
}

const char *nats_topic_filter(const struct topic *t) { return shares(t) ? t->subject : NULL; }

/* No name has an "@" but between its parts: none is another's, and in a shared stream a topic's consumers are those that begin with it. */
bool nats_consumer_name(char *out, size_t size, const struct topic *t, const char *pattern, const char *agent) {
        struct om_buf b = OM_BUF_INIT;
        size_t max = shares(t) ? SHARED_NAME_MAX : NATS_NAME_MAX;

        if (shares(t)) {
                om_safe_name(&b, om_span_of(t->name), max);
                om_buf_putc(&b, '@');
        }
        if (pattern) {
                om_safe_name(&b, om_span_of(pattern), max);
                om_buf_putc(&b, '@');
        }
        if (agent)
                om_safe_name(&b, om_span_of(agent), max);
        return text_of(out, size, &b);
}

/* -- in a shared stream ---------------------------------------------------------------------------------------------- */

static void made(struct topic *t, int status, const struct om_error *e) { nats_needed_made(&t->needed, status, e); }

static void failed(struct topic *t, int r) {
        struct om_error e;

        nats_unsent(r, &e);
        made(t, r, &e);
}

static void read_record(struct topic *t);

static void record_written(struct nats_request *r, const struct nats_reply *reply) {
        struct topic *t = r->ctx;
        struct om_error e;
        const char *why;
        int status = nats_record_written(&t->record, reply, &why);

        if (status == -ESTALE && t->tries++ < TRIES)
                read_record(t);
        else if (status < 0)
                made(t, om_error_set(&e, OM_UNAVAILABLE, "%s", why ? why : "NATS: the record of the topic cannot be written now"), &e);
        else if (t->record.joined)
                made(t, 0, NULL);
        else
                nats_patterns_join(t);
}

static void write_record(struct topic *t) {
        int r = nats_record_write(t, &t->record, &t->req, record_written, t);

        if (r < 0)
                failed(t, r);
}

static void record_came(struct nats_request *r, const struct nats_reply *reply) {
        struct topic *t = r->ctx;
        struct om_error e;

        int status = nats_error(reply, "reading the record of a topic", &e);

        if (status < 0 && nats_error_code(reply->data) != NATS_ERR_NO_MESSAGE)
                made(t, status, &e);
        else if (!nats_record_came(t, reply, &t->record)) {
                t->record.born_ms = om_now_ms();
                write_record(t);
        } else if (t->record.joined)
                made(t, 0, NULL);
        else
                nats_patterns_join(t);
}

static void read_record(struct topic *t) {
        int r = nats_record_read(t, &t->req, record_came, t);

        if (r < 0)
                failed(t, r);
}

/* -- making ---------------------------------------------------------------------------------------------------------- */

void nats_topic_joined(struct topic *t, int status, const struct om_error *e) {
        if (status < 0 || !shares(t)) {
                made(t, status, e);
                return;
        }
        t->record.joined = true;
        write_record(t);
}

static void log_there(struct stream_wait *w, int status, const struct om_error *e) {
        struct topic *t = CONTAINER(w, struct topic, log_wait);

        if (status < 0)
                made(t, status, e);
        else if (shares(t)) {
                t->tries = 0;
                read_record(t);
        } else if (t->log->fresh)
                nats_patterns_join(t);
        else
                made(t, 0, NULL);
}

void nats_topic_need(struct topic *t, struct stream_wait *w) {
        if (nats_needed_ask(&t->needed, w))
                nats_stream_need(t->log, &t->log_wait);
}

/* What took the messages of one took those of all that share it. */
void nats_topic_gone(struct topic *t) {
        if (shares(t))
                nats_topics_down(t->bus);
        nats_needed_forget(&t->needed);
        nats_needed_forget(&t->log->needed);
}

void nats_topic_deletion(struct topic *t, bool begins) {
        char note[OM_TOPIC_MAX + 8];

        t->deleting += begins ? 1u : -1u;
        t->deletions++;
        snprintf(note, sizeof note, "gone %s", t->name);
        nats_tell(t->bus, note);
}

/* Another server may answer next, or one that lost its memory. */
void nats_topics_down(struct om_bus *b) {
        if (b->shared)
                nats_needed_forget(&b->shared->needed);
        for (struct topic *t = b->topics; t; t = t->hh.next) {
                nats_needed_forget(&t->needed);
                nats_needed_forget(&t->log->needed);
        }
        for (struct stream *s = b->deads; s; s = s->hh.next)
                nats_needed_forget(&s->needed);
}
