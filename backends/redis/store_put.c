/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing: entries of every kind, and put_if_absent.
 *
 * Always true:
 *   - an entry's outcome is 0 only when the server has answered all that it takes: the record first, then what finds it, so that a walk
 * never finds a place without a record that was saved;
 *   - what the server says of one entry is that entry's outcome; when the server is away the whole batch fails, and the core saves it
 * again: every write here may be repeated;
 *   - entries that do not leave at once are copied, for the caller's are borrowed.
 *
 * Called by the core through store.c's table. Loop thread.
 */
#include <errno.h>

#include "store_state.h"

/* -- entries --------------------------------------------------------------------------------------------------------- */

struct put {
        struct om_store_put *op;
        const struct om_store_entry *entries; /* the caller's until the first turn is over, then ours */
        bool kept;
};

/* A time that no other result of this storage has, as long as they are no more than a thousand a millisecond: so lists have an order. */
static int64_t unique_us(struct om_store *s, int64_t saved_ms) {
        const int64_t most = (int64_t) 4 << 50;

        saved_ms = saved_ms < 0 ? 0 : saved_ms > most / 1000 ? most / 1000 : saved_ms;
        if (saved_ms != s->last_saved_ms) {
                s->last_saved_ms = saved_ms;
                s->last_saved_n = 0;
        }
        return saved_ms * 1000 + (s->last_saved_n < 999 ? s->last_saved_n++ : 999);
}

static void outcome(struct om_redis_job *job, size_t i, int status, const struct om_error *error) {
        const struct put *put = job->data;
        struct om_outcome *o = &put->op->outcomes[i];
        struct om_span why;

        if (status == 0 || o->status < 0)
                return;
        o->status = status;
        why = error ? om_arena_copy(&job->arena, om_span_of(error->message)) : OM_SPAN_NONE;
        o->why = why.p ? why.p : "the server refused it";
}

static void on_written(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        outcome(job, i, status, error);
}

static void on_saved(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        const struct put *put = job->data;

        outcome(job, i, status, error);
        if (status == 0)
                om_redis_follow(job, put->entries[i].key, reply, true, on_written, i);
}

static void put_result(struct om_redis_job *job, size_t i, const struct om_store_entry *entry) {
        struct om_store *s = job->store;
        struct om_redis_cmd *c = om_redis_script_on(s, &om_redis_script_save, entry->key);
        struct om_buf record = OM_BUF_INIT, saved = OM_BUF_INIT;
        int64_t us = unique_us(s, entry->saved_ms);

        om_redis_record_put(&record, entry, us);
        om_redis_time_put(&saved, us);
        om_redis_arg(c, om_buf_span(&record));
        om_redis_arg(c, entry->name.p ? entry->name : OM_SPAN(""));
        om_redis_arg(c, om_buf_span(&saved));
        om_redis_arg_int(c, entry->expires_ms > 0 ? entry->expires_ms : 0);
        om_redis_arg(c, entry->key);
        if (om_buf_ok(&record) && om_buf_ok(&saved)) {
                om_redis_job_send(job, c, om_redis_key_result(s, entry->key), on_saved, i);
        } else {
                om_redis_cmd_free(c);
                om_redis_job_no_memory(job);
        }
        om_buf_deinit(&record);
        om_buf_deinit(&saved);
}

static void add_to_set(struct om_redis_job *job, size_t i, bool topics, const struct om_store_entry *entry) {
        struct om_store *s = job->store;
        struct om_redis_cmd *c = om_redis_cmd_new("SADD");

        om_redis_key(c, topics ? om_redis_key_topics(s) : om_redis_key_agents(s, entry->key));
        om_redis_arg(c, topics ? entry->key : entry->name);
        om_redis_job_send(job, c, topics ? om_redis_key_topics(s) : om_redis_key_agents(s, entry->key), on_written, i);
}

static void put_agent(struct om_redis_job *job, size_t i, const struct om_store_entry *entry) {
        struct om_store *s = job->store;
        struct om_redis_cmd *c = om_redis_cmd_new("HSET");

        om_redis_key(c, om_redis_key_agent(s, entry->key, entry->name));
        if (om_redis_agent_put(c, entry) < 0) {
                om_redis_cmd_free(c);
                om_redis_job_no_memory(job);
                return;
        }
        om_redis_job_send(job, c, om_redis_key_agent(s, entry->key, entry->name), on_written, i);
        add_to_set(job, i, false, entry);
        add_to_set(job, i, true, entry);
}

static void put_metric(struct om_redis_job *job, size_t i, const struct om_store_entry *entry) {
        struct om_store *s = job->store;
        struct om_redis_cmd *c = om_redis_cmd_new("XADD");

        om_redis_key(c, om_redis_key_metrics(s));
        om_redis_arg_text(c, "MAXLEN");
        om_redis_arg_text(c, "~");
        om_redis_arg_int(c, s->settings.max_metrics);
        om_redis_arg_text(c, "*");
        om_redis_arg_text(c, "data");
        om_redis_arg(c, entry->value);
        om_redis_job_send(job, c, om_redis_key_metrics(s), on_written, i);
}

static void put_named(struct om_redis_job *job, size_t i, enum om_store_kind kind, const struct om_store_entry *entry) {
        struct om_store *s = job->store;
        struct om_redis_cmd *c = om_redis_cmd_new("SET");

        om_redis_key(c, om_redis_key_named(s, kind, entry->key));
        om_redis_arg(c, entry->value);
        if (entry->expires_ms > 0) {
                om_redis_arg_text(c, "PXAT");
                om_redis_arg_int(c, entry->expires_ms > 1 ? entry->expires_ms - 1 : 1);
        }
        om_redis_job_send(job, c, om_redis_key_named(s, kind, entry->key), on_written, i);
}

static size_t entry_bytes(const struct om_store_entry *entry) {
        return entry->key.len + entry->name.len + entry->value.len + entry->topic.len + entry->status.len;
}

static bool refused(struct om_outcome *o, const struct om_store_entry *entry) {
        if (entry->key.len <= OM_STORE_KEY_MAX && entry->name.len <= OM_STORE_KEY_MAX)
                return false;
        o->status = -EINVAL;
        o->why = "its key or name is longer than 1024 bytes";
        return true;
}

static enum om_redis_more put_more(struct om_redis_job *job) {
        struct put *put = job->data;
        size_t i = job->at;

        if (i >= put->op->n)
                return OM_REDIS_NO_MORE;
        if (!om_redis_job_room(job, entry_bytes(&put->entries[i])))
                return OM_REDIS_STALLED;
        job->at++;
        if (refused(&put->op->outcomes[i], &put->entries[i]))
                return OM_REDIS_SENT;
        switch (put->op->kind) {
        case OM_STORE_AGENTS:
                put_agent(job, i, &put->entries[i]);
                break;
        case OM_STORE_RESULTS:
                put_result(job, i, &put->entries[i]);
                break;
        case OM_STORE_METRICS:
                put_metric(job, i, &put->entries[i]);
                break;
        case OM_STORE_CONFIG:
        case OM_STORE_KEYS:
                put_named(job, i, put->op->kind, &put->entries[i]);
                break;
        }
        return OM_REDIS_SENT;
}

/* What is needed after the call has returned: all of what is not sent, and the keys of results, for what follows the script. */
static void keep_entries(struct om_redis_job *job) {
        struct put *put = job->data;
        bool keys = put->op->kind == OM_STORE_RESULTS && job->store->apart;
        struct om_store_entry *kept;

        if (job->at >= put->op->n && !keys)
                return;
        kept = om_arena_alloc(&job->arena, put->op->n * sizeof *kept);
        if (!kept) {
                om_redis_job_no_memory(job);
                return;
        }
        for (size_t i = 0; i < put->op->n; i++) {
                const struct om_store_entry *from = &put->entries[i];

                kept[i] =
                        i < job->at ? (struct om_store_entry){ .key = om_arena_copy(&job->arena, keys ? from->key : OM_SPAN_NONE) } : *from;
                if (i >= job->at && om_redis_entry_copy(&job->arena, from, &kept[i]) < 0)
                        om_redis_job_no_memory(job);
        }
        put->entries = kept;
}

static void put_finish(struct om_redis_job *job) {
        const struct put *put = job->data;

        if (put->op->kind == OM_STORE_RESULTS)
                om_redis_sweep_written(job->store, put->op->n);
}

int om_redis_store_put(struct om_store *s, struct om_store_put *op, struct om_error *e) {
        struct om_redis_job *job;
        struct put *put;
        size_t bytes = 0;
        int r;

        for (size_t i = 0; i < op->n; i++) {
                bytes += entry_bytes(&op->entries[i]);
                op->outcomes[i].status = 0;
                op->outcomes[i].why = NULL;
        }
        r = om_redis_job_new(s, &op->op, sizeof *put, bytes, &job, e);
        if (r < 0)
                return r;
        put = job->data;
        put->op = op;
        put->entries = op->entries;
        job->more = put_more;
        job->finish = put_finish;
        job->takes_errors = true;
        r = om_redis_job_start(job, e);
        if (r == 0)
                keep_entries(job);
        return r;
}

/* -- put_if_absent --------------------------------------------------------------------------------------------------- */

struct absent {
        struct om_store_put_if_absent *op;
        struct om_span key, value;
        unsigned tries;
};

static void try_to_set(struct om_redis_job *job);

/* What was there may expire between the two commands: then it is tried again. */
static void on_there(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct absent *a = job->data;
        struct om_error e;

        if (reply->type == OM_REDIS_STRING) {
                a->op->ret_value = om_arena_copy(&a->op->arena, reply->text);
                if (!a->op->ret_value.p)
                        om_redis_job_no_memory(job);
        } else if (a->tries < 8) {
                try_to_set(job);
        } else {
                om_redis_job_fail(job,
                        om_error_set(&e, OM_UNAVAILABLE, "the key expires as soon as it is written: does the server's clock agree?"), &e);
        }
}

static void on_set(struct om_redis_job *job, size_t i, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        struct absent *a = job->data;
        struct om_redis_cmd *c;

        if (reply->type != OM_REDIS_NIL) {
                a->op->ret_stored = true;
                return;
        }
        c = om_redis_cmd_new("GET");
        om_redis_key(c, om_redis_key_named(job->store, OM_STORE_KEYS, a->key));
        om_redis_job_send(job, c, om_redis_key_named(job->store, OM_STORE_KEYS, a->key), on_there, 0);
}

static void try_to_set(struct om_redis_job *job) {
        struct absent *a = job->data;
        struct om_redis_cmd *c = om_redis_cmd_new("SET");

        a->tries++;
        om_redis_key(c, om_redis_key_named(job->store, OM_STORE_KEYS, a->key));
        om_redis_arg(c, a->value);
        om_redis_arg_text(c, "NX");
        if (a->op->expires_ms > 0) {
                om_redis_arg_text(c, "PXAT"); /* the server's keys live until the millisecond after it */
                om_redis_arg_int(c, a->op->expires_ms > 1 ? a->op->expires_ms - 1 : 1);
        }
        om_redis_job_send(job, c, om_redis_key_named(job->store, OM_STORE_KEYS, a->key), on_set, 0);
}

int om_redis_store_put_if_absent(struct om_store *s, struct om_store_put_if_absent *op, struct om_error *e) {
        struct om_redis_job *job;
        struct absent *a;
        int r;

        if (op->key.len > OM_STORE_KEY_MAX)
                return om_error_set(e, OM_INVALID, "a key is longer than %d bytes", OM_STORE_KEY_MAX);
        r = om_redis_job_new(s, &op->op, sizeof *a, op->key.len + op->value.len, &job, e);
        if (r < 0)
                return r;
        op->arena = (struct om_arena){ 0 };
        op->ret_stored = false;
        op->ret_value = OM_SPAN_NONE;
        a = job->data;
        a->op = op;
        a->key = om_redis_job_keep(job, op->key);
        a->value = om_redis_job_keep(job, op->value);
        if (job->status == 0)
                try_to_set(job);
        return om_redis_job_start(job, e);
}
