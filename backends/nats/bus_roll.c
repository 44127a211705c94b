/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The consumers of a stream, read one after the other: all of them in pages, or those whose names begin in one way by their names.
 * What is made or deleted meanwhile may be in it or not.
 *
 * Loop thread.
 */
#include "bus_state.h"

static void over(struct roll *r, int status, const struct om_error *e) {
        free(r->names);
        r->names = NULL;
        om_arena_deinit(&r->arena);
        r->done(r, status, e);
}

static void broken(struct roll *r, int status) {
        struct om_error e;

        nats_unsent(status, &e);
        over(r, status, &e);
}

static void next_named(struct roll *r);

static void named_came(struct nats_request *req, const struct nats_reply *reply) {
        struct roll *r = req->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "reading a group's consumer", &e);

        if (status < 0 && nats_json_u64(reply->data, "error.code") != 404) { /* which is one that was deleted meanwhile */
                over(r, status, &e);
                return;
        }
        if (status == 0)
                r->each(r, reply->data);
        next_named(r);
}

static void next_named(struct roll *r) {
        const struct named *n = r->named;
        int status;

        if (!n) {
                over(r, 0, NULL);
                return;
        }
        r->named = n->next;
        status = nats_call(r->bus->link, &r->req, named_came, r, OM_SPAN_NONE, "CONSUMER.INFO.%s.%s", r->stream, n->name);
        if (status < 0)
                broken(r, status);
}

static bool keep_name(struct roll *r, struct om_span value) {
        struct om_span name = nats_json_text(value, "", &r->arena);
        size_t len = strlen(r->names);
        struct named *n;

        if (name.len < len || memcmp(name.p, r->names, len) != 0)
                return true;
        n = om_arena_alloc(&r->arena, sizeof *n);
        if (!n || !(n->name = om_arena_copy(&r->arena, name).p))
                return false;
        LL_PREPEND(r->named, n);
        return true;
}

static void ask(struct roll *r, uint64_t offset);

static void page_came(struct nats_request *req, const struct nats_reply *reply) {
        struct roll *r = req->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "listing groups", &e);
        uint64_t n = 0, offset = nats_json_u64(reply->data, "offset");
        struct om_span value;
        struct nats_walk w;
        bool kept = true;

        if (status < 0) {
                over(r, nats_json_u64(reply->data, "error.code") == 404 ? -ENOENT : status, &e);
                return;
        }
        nats_walk_init(&w, nats_json_get(reply->data, "consumers"));
        for (; nats_walk_next(&w, &value, NULL); n++) {
                if (r->names)
                        kept &= keep_name(r, value);
                else
                        r->each(r, value);
        }
        if (!kept)
                broken(r, -ENOMEM);
        else if (n && offset + n < nats_json_u64(reply->data, "total"))
                ask(r, offset + n);
        else
                next_named(r);
}

static void ask(struct roll *r, uint64_t offset) {
        char body[40];
        int status;

        snprintf(body, sizeof body, "{\"offset\":%llu}", (unsigned long long) offset);
        status = nats_call(r->bus->link, &r->req, page_came, r, om_span_of(body), "CONSUMER.%s.%s", r->names ? "NAMES" : "LIST", r->stream);
        if (status < 0)
                broken(r, status);
}

void nats_roll_start(struct roll *r, struct om_bus *b, const char *stream, const char *names) {
        r->bus = b;
        r->stream = stream;
        r->arena = (struct om_arena){ 0 };
        r->named = NULL;
        r->names = names ? strdup(names) : NULL;
        if (names && !r->names)
                broken(r, -ENOMEM);
        else
                ask(r, 0);
}

bool nats_consumer_takes(struct om_span info, const char *subject) {
        struct om_arena arena = { 0 };
        struct om_span one = nats_json_text(info, "config.filter_subject", &arena), many = nats_json_get(info, "config.filter_subjects"),
                       value;
        struct nats_walk w;
        bool takes = one.len ? nats_subject_covers(one, om_span_of(subject)) : !many.p;

        nats_walk_init(&w, many);
        while (!takes && nats_walk_next(&w, &value, NULL))
                takes = nats_subject_covers(nats_json_text(value, "", &arena), om_span_of(subject));
        om_arena_deinit(&arena);
        return takes;
}

void nats_floor_add(struct floor *f, struct om_span info) {
        uint64_t seq = nats_json_u64(info, "ack_floor.stream_seq");

        /* What acknowledges nothing, a mirror's say, finishes nothing. */
        if (!om_span_is(nats_json_get(info, "config.ack_policy"), "\"explicit\""))
                return;
        f->seq = f->n && f->seq < seq ? f->seq : seq;
        f->n++;
}
