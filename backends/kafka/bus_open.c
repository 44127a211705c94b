/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups on the brokers: a topic and the group's retry topic, made where they are missing, the one with as many partitions as the other,
 * and where a group that was made begins.
 *
 * What waits goes with the next call, OPENINGS_MAX at a time: the brokers are asked for all of it together, as often as for one.
 *
 * Always true: groups are opened in the order in which they came, so that the first group of a topic is the one that came first.
 *
 * Loop thread, but for run() of calls and what it calls.
 */
#include <unistd.h>

#include "admin.h"
#include "look.h"

enum { OPENINGS_MAX = 100, LOOK_MS = 2, LOOK_MAX_MS = 128, STARTS_MS = 10000 };

struct batch {
        struct call call; /* first */
        size_t n;
        struct opening *of[OPENINGS_MAX];
};

/* -- what is there, on a worker ---------------------------------------------------------------------------------------------- */

static struct topic *topic_of(const struct opening *o, enum kafka_kind kind) { return kind == KAFKA_LOG ? o->log : o->retry; }

/* 0: it is not there. */
static int partitions(const struct seen *s, const struct opening *o, enum kafka_kind kind) {
        const struct seen_topic *t = kind == KAFKA_LOG ? kafka_seen_topic(s, o->log->kname) : NULL;
        const struct seen_group *g = kind == KAFKA_RETRY ? kafka_seen_group(s, o->retry->kname) : NULL;

        return t ? t->n_parts : g ? g->n_parts : 0;
}

static int look(struct om_bus *b, struct seen *s, struct om_error *e) {
        static const struct om_span any = { NULL, 0 };

        return kafka_look_names(b, kafka_is_topic, &any, s, e);
}

/* What was just made, not every broker has heard of: until all of it is seen, or PROPAGATION_MS. */
static int look_for_made(struct batch *t, enum kafka_kind kind, struct seen *s, struct om_error *e) {
        int64_t by = om_clock_ms() + PROPAGATION_MS;

        for (useconds_t ms = LOOK_MS;; ms = ms < LOOK_MAX_MS ? ms * 2 : ms) {
                int r = look(t->call.bus, s, e);
                bool all = true;

                for (size_t i = 0; i < t->n && r == 0; i++)
                        all = all && (t->of[i]->status < 0 || partitions(s, t->of[i], kind) >= t->of[i]->awaited);
                if (r < 0 || all || om_clock_ms() >= by)
                        return r;
                kafka_seen_deinit(s);
                usleep(ms * 1000);
        }
}

static struct making *making_of(struct making *m, size_t n, const char *kname) {
        for (size_t i = 0; i < n; i++)
                if (m[i].kname == kname)
                        return &m[i];
        return NULL;
}

/* Makes what was not seen, and looks again. Without success there is nothing seen. */
static int make(struct batch *t, enum kafka_kind kind, struct seen *s, struct om_error *e) {
        struct making m[OPENINGS_MAX], *of;
        size_t n = 0;
        int r;

        for (size_t i = 0; i < t->n; i++) {
                struct opening *o = t->of[i];
                const char *kname = topic_of(o, kind)->kname;
                int want = kind == KAFKA_LOG ? (int) t->call.bus->settings.partitions : o->n_parts;

                o->awaited = o->status < 0 || partitions(s, o, kind) ? 0 : want;
                if (o->awaited && !making_of(m, n, kname))
                        m[n++] = (struct making){ .kname = kname, .kind = kind, .partitions = want };
        }
        if (!n)
                return 0;
        kafka_seen_deinit(s);
        r = kafka_make_topics(t->call.bus, m, n, e);
        if (r < 0)
                return r;
        for (size_t i = 0; i < t->n; i++) {
                struct opening *o = t->of[i];

                of = o->awaited ? making_of(m, n, topic_of(o, kind)->kname) : NULL;
                if (!of)
                        continue;
                if (of->status < 0) {
                        o->status = of->status;
                        o->error = of->error;
                } else if (!of->made)
                        o->awaited = 1; /* somebody else has made it: as many as that gave it */
                if (kind == KAFKA_RETRY) {
                        o->made = of->made;
                        of->made = false; /* by one of those who want it */
                }
        }
        return look_for_made(t, kind, s, e);
}

static int lacking(struct opening *o, enum kafka_kind kind) {
        return om_error_set(&o->error, OM_UNAVAILABLE, "Kafka: %s has not got its partitions", topic_of(o, kind)->kname);
}

static void plan(struct opening *o, const struct seen *s) {
        struct seen_topic *t = kafka_seen_topic(s, o->log->kname);

        if (o->status < 0)
                return;
        if (!t || !t->n_parts) {
                o->status = lacking(o, KAFKA_LOG);
                return;
        }
        o->n_parts = t->n_parts;
        if (o->start == OM_START_DEFAULT)
                o->start = t->n_groups ? OM_START_NEW : OM_START_FIRST;
        if (!partitions(s, o, KAFKA_RETRY))
                t->n_groups++; /* for those who come after it */
}

static void widen(struct om_bus *b, struct opening *o, const struct seen *s) {
        int has = partitions(s, o, KAFKA_RETRY);

        if (o->status < 0)
                return;
        if (!has)
                o->status = lacking(o, KAFKA_RETRY);
        else if (has < o->n_parts)
                o->status = kafka_grow_topic(b, o->retry->kname, o->n_parts, &o->error);
}

/* -- where a group that was made begins, on a worker ---------------------------------------------------------------------------- */

static void start_alone(struct om_bus *b, struct opening *o) {
        o->status = kafka_find_offsets(b, o->log->kname, o->n_parts, o->start, o->start_ms, o->starts, &o->error);
}

static bool take_starts(struct opening *o, const rd_kafka_topic_partition_list_t *list, int *at) {
        for (int p = 0; p < o->n_parts; p++) {
                const rd_kafka_topic_partition_t *tp = kafka_in_list(list, o->log->kname, p, at);

                if (!tp || tp->err || tp->offset < 0)
                        return false;
                o->starts[p] = tp->offset;
        }
        return true;
}

/* For all at once; those for which that was no answer are asked about one by one, as long as there is time. */
static void find_starts(struct batch *t) {
        rd_kafka_topic_partition_list_t *lists[2] = { rd_kafka_topic_partition_list_new(16), rd_kafka_topic_partition_list_new(16) };
        int64_t by = om_clock_ms() + STARTS_MS;
        struct om_error e = OM_ERROR_INIT;
        int at[2] = { 0, 0 }, r;

        for (size_t i = 0; i < t->n; i++) {
                struct opening *o = t->of[i];
                rd_kafka_topic_partition_list_t *list = lists[o->start == OM_START_FIRST];
                bool listed = o->start == OM_START_TIME;

                if (o->status < 0 || !o->made)
                        continue;
                o->starts = calloc((size_t) o->n_parts, sizeof(int64_t));
                if (!o->starts)
                        o->status = om_error_set_errno(&o->error, ENOMEM, "Kafka");
                for (size_t k = 0; k < i; k++)
                        listed = listed || (t->of[k]->starts && t->of[k]->log == o->log && t->of[k]->start == o->start);
                for (int p = 0; p < o->n_parts && !listed; p++)
                        rd_kafka_topic_partition_list_add(list, o->log->kname, p);
        }
        r = kafka_watermarks(t->call.bus, lists[0], lists[1], ADMIN_MS, &e);
        for (size_t i = 0; i < t->n; i++) {
                struct opening *o = t->of[i];
                bool first = o->start == OM_START_FIRST;

                if (o->status < 0 || !o->starts || (r == 0 && o->start != OM_START_TIME && take_starts(o, lists[first], &at[first])))
                        continue;
                if (r < 0 && om_clock_ms() >= by) {
                        o->status = r;
                        o->error = e;
                } else
                        start_alone(t->call.bus, o);
        }
        rd_kafka_topic_partition_list_destroy(lists[0]);
        rd_kafka_topic_partition_list_destroy(lists[1]);
}

static void note_names(struct batch *t) {
        for (size_t i = 0; i < t->n; i++) {
                const struct opening *o = t->of[i];

                if (o->status < 0)
                        continue;
                kafka_whole_name_note(t->call.bus, o->log->kname, om_span_of(o->log->name), OM_SPAN(""));
                kafka_whole_name_note(t->call.bus, o->retry->kname, om_span_of(o->log->name), om_span_of(o->agent));
        }
}

static int open_all(struct batch *t, struct om_error *e) {
        struct seen s;
        int r = look(t->call.bus, &s, e);

        if (r == 0)
                r = make(t, KAFKA_LOG, &s, e);
        for (size_t i = 0; i < t->n && r == 0; i++)
                plan(t->of[i], &s);
        if (r == 0)
                r = make(t, KAFKA_RETRY, &s, e);
        for (size_t i = 0; i < t->n && r == 0; i++)
                widen(t->call.bus, t->of[i], &s);
        if (r == 0) {
                kafka_seen_deinit(&s);
                note_names(t);
                find_starts(t);
        }
        return r;
}

static void open_run(struct call *c) {
        struct batch *t = (struct batch *) c;

        c->status = open_all(t, &c->error);
}

/* -- on the loop -------------------------------------------------------------------------------------------------------------- */

static void go(struct om_bus *b);

static void told(struct batch *t) {
        size_t made = 0;

        for (size_t i = 0; i < t->n; i++)
                made += t->of[i]->made;
        om_host_log(t->call.bus->host, OM_LOG_DEBUG, "Kafka: %zu groups opened at once, %zu of them new", t->n, made);
        for (size_t i = 0; i < t->n; i++) {
                struct opening *o = t->of[i];

                if (t->call.status < 0 && !o->status) {
                        o->status = t->call.status;
                        o->error = t->call.error;
                }
                if (o->status == 0) {
                        kafka_topic_seen(o->log);
                        kafka_topic_seen(o->retry);
                }
                o->done(o);
        }
        free(t);
}

static void open_done(struct call *c) {
        struct om_bus *b = c->bus;

        b->opening = false;
        told((struct batch *) c);
        go(b);
}

static void go(struct om_bus *b) {
        while (b->openings && !b->opening) {
                struct batch *t = calloc(1, sizeof *t);
                struct om_error e;
                int r;

                if (!t) {
                        struct opening *o = b->openings;

                        DL_DELETE(b->openings, o);
                        o->status = om_error_set_errno(&o->error, ENOMEM, "Kafka");
                        o->done(o);
                        continue;
                }
                while (b->openings && t->n < OPENINGS_MAX) {
                        struct opening *o = b->openings;

                        DL_DELETE(b->openings, o);
                        t->of[t->n++] = o;
                }
                t->call.bus = b;
                t->call.run = open_run;
                t->call.done = open_done;
                r = kafka_call(b, WORKER_CALLS, &t->call, &e);
                b->opening = r == 0;
                if (r < 0) {
                        t->call.status = r;
                        t->call.error = e;
                        told(t);
                }
        }
}

static void go_posted(struct om_post *post) {
        struct om_bus *b = CONTAINER(post, struct om_bus, open_post);

        b->open_posted = false;
        go(b);
}

void kafka_open(struct om_bus *b, struct opening *o) {
        DL_APPEND(b->openings, o);
        if (b->open_posted)
                return;
        b->open_posted = true;
        b->open_post.fn = go_posted;
        om_host_post(b->host, &b->open_post);
}
