/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a group starts on a topic: at a sequence number of its stream, and at a task of the topic, counted from its first.
 * In a stream of its own the one is the other.
 *
 * Loop thread.
 */
#include "bus_state.h"

static void over(struct start_find *f, int status, const struct om_error *e) { f->done(f, status, e); }

static void counted(struct fetch *fetch, int status, const struct om_error *e, bool more) {
        struct start_find *f = fetch->ctx;

        f->start.number = f->found->published + 1 - fetch->got - fetch->left;
        over(f, status, e);
}

static void timed(struct nats_request *r, const struct nats_reply *reply) {
        struct start_find *f = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        int status = nats_error(reply, "looking for the time to start at", &e);

        if (status < 0) {
                over(f, nats_json_u64(reply->data, "error.code") == 404 ? 0 : status, &e); /* nothing from then on: behind the last */
                return;
        }
        f->start.seq = f->start.number = nats_json_u64(reply->data, "message.seq");
        if (!nats_topic_filter(f->topic)) {
                over(f, 0, NULL);
                return;
        }
        f->fetch.done = counted;
        f->fetch.ctx = f;
        nats_count_start(&f->fetch, f->bus, f->topic->log->name, f->topic->subject, f->start.seq);
}

static void ask_time(struct start_find *f, int64_t ms) {
        const char *filter = nats_topic_filter(f->topic);
        struct om_buf body = OM_BUF_INIT;
        struct om_error e;
        char when[40];
        int r;

        nats_put_time(when, sizeof when, ms);
        om_buf_printf(&body, "{\"start_time\":\"%s\",\"next_by_subj\":", when);
        om_buf_json_span(&body, om_span_of(filter ? filter : ">"));
        om_buf_putc(&body, '}');
        r = om_buf_ok(&body) ? nats_call(f->bus->link, &f->req, timed, f, om_buf_span(&body), "STREAM.MSG.GET.%s", f->topic->log->name)
                             : -ENOMEM;
        om_buf_deinit(&body);
        if (r == -EAGAIN)
                over(f, om_error_set(&e, OM_UNAVAILABLE, "NATS: not connected"), &e);
        else if (r < 0)
                over(f, om_error_set_errno(&e, r, "NATS"), &e);
}

void nats_start_find(struct start_find *f, struct topic *t, const struct found_topic *found, enum om_start start, int64_t start_ms) {
        f->bus = t->bus;
        f->topic = t;
        f->found = found;
        f->start = (struct start){ found->last + 1, found->published + 1 };
        if (start == OM_START_FIRST || (start == OM_START_DEFAULT && !found->n_groups))
                f->start = (struct start){ found->first ? found->first : 1, found->gone + 1 };
        if (start == OM_START_TIME)
                ask_time(f, start_ms);
        else
                over(f, 0, NULL);
}

void nats_put_time(char *out, size_t size, int64_t ms) {
        time_t seconds = ms / 1000;
        struct tm tm;

        gmtime_r(&seconds, &tm);
        snprintf(out, size, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min,
                tm.tm_sec, (int) (ms % 1000));
}
