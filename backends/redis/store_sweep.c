/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps the indexes free of what has expired: the server drops a record by itself, but not the place that finds it.
 *
 * Two ways, both bounded: lists hand over the places where they found no record, MAX at a time; and for every result that is written two
 * places are looked at, the oldest first, going round, so that the index never holds much more than what is alive. Without writes and lists
 * nothing runs.
 *
 * Always true: no place is lost whose record is there. Somebody else may write the record between our look and the removal; so it is looked
 * at again after the removal, and the place put back when there is one (who writes puts the record first and the place second). This needs
 * no command that touches two servers of a cluster.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "store_state.h"

enum { MAX = 256, EVERY = 64, LOOK_AT = 2 * EVERY };

struct member {
        struct om_span text, id, agent;
        bool gone;
};
/* One run: over places that have no record, or over the next ones in line. */
struct run {
        bool earlier;
        struct member members[MAX];
        size_t n, at, alive;
};
struct om_redis_sweep {
        struct om_op op;
        bool running;
        size_t written;
        int64_t rank[2];        /* where the next look begins */
        unsigned turn;          /* which index is next */
        struct om_arena memory; /* of what waits */
        bool earlier;
        struct om_span waiting[MAX];
        size_t n_waiting;
};

int om_redis_sweep_new(struct om_store *s) {
        s->sweep = calloc(1, sizeof *s->sweep);
        return s->sweep ? 0 : -ENOMEM;
}

void om_redis_sweep_free(struct om_store *s) {
        if (s->sweep)
                om_arena_deinit(&s->sweep->memory);
        free(s->sweep);
        s->sweep = NULL;
}

/* -- taking out ------------------------------------------------------------------------------------------------------ */

static void look(struct om_redis_job *job, size_t i, const char *command, om_redis_job_answer_fn *fn);

/* It came back while it was taken out: an earlier one only if its task has a newest one. */
static void on_look_again(
        struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct run *run = job->data;
        const struct member *m = &run->members[i];
        struct om_store_entry entry;
        struct om_redis_cmd *c;
        char score[40];

        if (reply->type == OM_REDIS_INTEGER && reply->integer > 0)
                look(job, i, "HGET", on_look_again);
        if (reply->type != OM_REDIS_STRING ||
                om_redis_record_read(om_redis_key_result(job->store, m->id), reply->text, m->id, -1, &job->arena, &entry, NULL) < 0)
                return;
        snprintf(score, sizeof score, "%lld.%03d", (long long) (entry.saved_ms / 1000), (int) (entry.saved_ms % 1000));
        c = om_redis_cmd_new("ZADD");
        om_redis_key(c, om_redis_key_index(job->store, run->earlier));
        om_redis_arg_text(c, "NX");
        om_redis_arg_text(c, score);
        om_redis_arg(c, m->text);
        om_redis_job_send(job, c, om_redis_key_index(job->store, run->earlier), NULL, 0);
}

/* EXISTS or GET of the task's newest record, or HGET of an earlier one. */
static void look(struct om_redis_job *job, size_t i, const char *command, om_redis_job_answer_fn *fn) {
        const struct run *run = job->data;
        const struct member *m = &run->members[i];
        bool earlier = strcmp(command, "HGET") == 0;
        struct om_redis_cmd *c = om_redis_cmd_new(command);

        om_redis_key(c, earlier ? om_redis_key_earlier(job->store, m->id) : om_redis_key_result(job->store, m->id));
        if (earlier)
                om_redis_arg(c, m->agent);
        om_redis_job_send(job, c, om_redis_key_result(job->store, m->id), fn, i);
}

static void look_again(struct om_redis_job *job) {
        const struct run *run = job->data;

        for (size_t i = 0; i < run->n && job->status == 0; i++)
                if (run->members[i].gone)
                        look(job, i, run->earlier ? "EXISTS" : "GET", on_look_again);
}

static void take_out(struct om_redis_job *job) {
        const struct run *run = job->data;
        struct om_redis_cmd *c;
        size_t n = 0;

        for (size_t i = 0; i < run->n; i++)
                n += run->members[i].gone;
        if (n == 0)
                return;
        c = om_redis_cmd_new("ZREM");
        om_redis_key(c, om_redis_key_index(job->store, run->earlier));
        for (size_t i = 0; i < run->n; i++)
                if (run->members[i].gone)
                        om_redis_arg(c, run->members[i].text);
        job->next = look_again;
        om_redis_job_send(job, c, om_redis_key_index(job->store, run->earlier), NULL, 0);
}

/* -- looking at the next in line ------------------------------------------------------------------------------------- */

static void on_exists(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct run *run = job->data;

        run->members[i].gone = om_redis_int(reply, 1) == 0;
        run->alive += !run->members[i].gone;
}

static void judged(struct om_redis_job *job) {
        const struct run *run = job->data;
        int64_t *rank = &job->store->sweep->rank[run->earlier];

        *rank = run->n < LOOK_AT ? 0 : *rank + (int64_t) run->alive;
        take_out(job);
}

static bool add_member(struct om_redis_job *job, struct om_span text) {
        struct run *run = job->data;
        struct member *m = &run->members[run->n];

        if (run->n >= MAX)
                return false;
        *m = (struct member){ .text = om_redis_job_keep(job, text) };
        m->id = m->text;
        if (run->earlier && om_redis_member_read(m->text, &job->arena, &m->id, &m->agent) < 0)
                return false; /* not one of ours: it stays */
        run->n++;
        return true;
}

static void on_next_in_line(
        struct om_redis_job *job, size_t n, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct run *run = job->data;

        for (size_t i = 0; i < reply->n && job->status == 0; i++)
                add_member(job, om_redis_at(reply, i)->text);
        for (size_t i = 0; i < run->n && job->status == 0; i++)
                look(job, i, "EXISTS", on_exists);
        job->next = judged;
}

static void look_at_next(struct om_redis_job *job) {
        struct om_store *s = job->store;
        struct run *run = job->data;
        struct om_redis_cmd *c = om_redis_cmd_new("ZRANGE");
        int64_t from;

        run->earlier = s->sweep->turn++ & 1;
        from = s->sweep->rank[run->earlier];
        om_redis_key(c, om_redis_key_index(s, run->earlier));
        om_redis_arg_int(c, from);
        om_redis_arg_int(c, from + LOOK_AT - 1);
        om_redis_job_send(job, c, om_redis_key_index(s, run->earlier), on_next_in_line, 0);
}

/* -- when ------------------------------------------------------------------------------------------------------------ */

static void on_done(struct om_op *op, int status, const struct om_error *error) {
        struct om_redis_sweep *w = (struct om_redis_sweep *) op;

        w->running = false; /* a failure is no harm: it comes round again */
}

static void begin(struct om_store *s) {
        struct om_redis_sweep *w = s->sweep;
        struct om_redis_job *job;
        struct run *run;
        struct om_error e;

        if (w->running || s->closing || (w->n_waiting == 0 && w->written < EVERY))
                return;
        w->op = (struct om_op){ .done = on_done };
        if (om_redis_job_new(s, &w->op, sizeof *run, 0, &job, &e) < 0)
                return;
        run = job->data;
        w->running = true;
        if (w->n_waiting) {
                run->earlier = w->earlier;
                for (size_t i = 0; i < w->n_waiting; i++)
                        if (add_member(job, w->waiting[i]))
                                run->members[run->n - 1].gone = true;
                w->n_waiting = 0;
                om_arena_deinit(&w->memory);
                job->next = take_out;
        } else {
                w->written = 0;
                job->next = look_at_next;
        }
        if (om_redis_job_start(job, &e) < 0)
                w->running = false;
}

void om_redis_sweep_add(struct om_store *s, bool earlier, struct om_span member) {
        struct om_redis_sweep *w = s->sweep;

        if (w->n_waiting >= MAX || (w->n_waiting && w->earlier != earlier))
                return; /* the next list finds it again */
        w->waiting[w->n_waiting] = om_arena_copy(&w->memory, member);
        if (!w->waiting[w->n_waiting].p)
                return;
        w->earlier = earlier;
        w->n_waiting++;
}

void om_redis_sweep_written(struct om_store *s, size_t n) {
        s->sweep->written += n;
        begin(s);
}

void om_redis_sweep_found(struct om_store *s) { begin(s); }
