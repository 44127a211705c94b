/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Idempotency keys on a bus that has none (no OM_BUS_DEDUPE), with two records in the storage per key, kept for idempotency_window_ms:
 *
 *     idempotency/…   the id under which the first publish with the key began; put_if_absent, so one wins
 *     published/…     that it reached the bus
 *
 * A publish whose key is new writes the first record, publishes, and is answered when the second is written. One that finds both is a
 * duplicate. One that finds only the first follows a death in between (or a failed publish): it publishes under the first one's id, so
 * that nothing is lost and a repeat can be recognised. Two at once with one key in this daemon: the second is not published, it gets the
 * first one's outcome. Its batch does not wait for that to publish the rest, so no two batches can wait for each other.
 *
 * Called by dispatch_publish.c. Loop thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "dispatch_internal.h"

struct om_dedupe_key {
        UT_hash_handle hh;
        char text[OM_STORE_KEY_MAX]; /* what stands behind the prefix */
        size_t len;
};
struct follower { /* waits for the outcome of a publish with its key */
        struct follower *next;
        struct om_publish_batch *batch; /* held */
        struct om_publish_ticket *ticket;
        size_t index; /* in the ticket */
};
struct om_dedupe {
        struct om_dedupe_key key; /* first */
        struct om_dispatch *d;
        struct om_publish_batch *batch;
        size_t index;
        struct om_publish_ticket *ticket;
        struct follower *followers;
        char id[OM_NAME_MAX + 1]; /* under which it is published */
};

static struct om_call *call(struct om_dedupe *check, enum om_call_type type, om_call_done_fn *done) {
        struct om_call *c = om_call_new(check->d->core, NULL, type, done);

        if (c)
                c->data = check;
        return c;
}

static struct om_span name(struct om_call *c, const struct om_dedupe *check, const char *prefix) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_puts(&b, prefix);
        om_buf_put(&b, check->key.text, check->key.len);
        return om_call_keep(c, &b);
}

static void answered(struct om_dedupe *check, int status, const struct om_error *e, bool duplicate) {
        om_publish_checked(check->batch, check->index, status, e, duplicate, om_span_of(check->id));
}

/* Values are JSON texts. */
static int id_read(struct om_dedupe *check, struct om_span value) {
        struct om_json j;
        struct om_json_value v;

        om_json_init(&j, value, 1);
        if (value.len > sizeof check->id || om_json_value(&j, &v) < 0 || v.type != OM_JSON_STRING)
                return -EINVAL;
        check->id[om_json_decode(v, check->id)] = '\0';
        return 0;
}

static struct om_span id_value(struct om_call *c, const struct om_dedupe *check) {
        struct om_buf b = OM_BUF_INIT;

        om_buf_json_span(&b, om_span_of(check->id));
        return om_call_keep(c, &b);
}

/* -- before the publish -------------------------------------------------------------------------------------------- */

static void on_published_read(struct om_call *c, int status, const struct om_error *e) {
        struct om_dedupe *check = c->data;

        if (status == -ENOENT)
                answered(check, 0, NULL, false);
        else
                answered(check, status, e, true);
        om_call_free(c);
}

static void on_begun(struct om_call *c, int status, const struct om_error *e) {
        struct om_dedupe *check = c->data;
        struct om_error bad;

        if (status < 0 || c->put_if_absent.ret_stored) {
                answered(check, status, e, false);
                om_call_free(c);
                return;
        }
        if (id_read(check, c->put_if_absent.ret_value) < 0) {
                answered(check, om_error_set(&bad, OM_INTERNAL, "the storage returned no id for an idempotency key"), &bad, false);
                om_call_free(c);
                return;
        }
        om_call_reset(c, OM_CALL_STORE_GET, on_published_read);
        c->get.kind = OM_STORE_KEYS;
        c->get.key = name(c, check, "published/");
        om_call_start(c);
}

static int follow(
        struct om_dedupe *first, struct om_publish_batch *batch, struct om_publish_ticket *ticket, size_t index, struct om_error *e) {
        struct follower *f = malloc(sizeof *f);

        if (!f)
                return om_error_set_errno(e, ENOMEM, "an idempotency key");
        *f = (struct follower){ first->followers, batch, ticket, index };
        first->followers = f;
        om_publish_hold(batch);
        return 1;
}

int om_dedupe_check(struct om_dispatch *d, struct om_publish_batch *batch, size_t index, const struct om_task *task,
        struct om_publish_ticket *ticket, size_t ticket_index, struct om_dedupe **ret, struct om_error *e) {
        struct om_dedupe *check = calloc(1, sizeof *check);
        struct om_dedupe_key *other, *key = check ? &check->key : NULL;
        struct om_call *c;

        if (!check)
                return om_error_set_errno(e, ENOMEM, "an idempotency key");
        check->d = d;
        check->batch = batch;
        check->index = index;
        memcpy(check->id, task->id.p, task->id.len);
        /* The length of the topic parts it from the key without doubt. */
        check->key.len = (size_t) snprintf(check->key.text, sizeof check->key.text, "%zu/%.*s/%.*s", task->topic.len, OM_PRI(task->topic),
                OM_PRI(task->idempotency_key));
        HASH_FIND(hh, d->dedupe_keys, check->key.text, check->key.len, other);
        if (other) {
                free(check);
                return follow((struct om_dedupe *) other, batch, ticket, ticket_index, e);
        }
        HASH_ADD(hh, d->dedupe_keys, text, check->key.len, key);
        c = key->hh.tbl ? call(check, OM_CALL_STORE_PUT_IF_ABSENT, on_begun) : NULL;
        if (!c) {
                if (key->hh.tbl)
                        HASH_DEL(d->dedupe_keys, key);
                free(check);
                return om_error_set_errno(e, ENOMEM, "an idempotency key");
        }
        c->put_if_absent.key = name(c, check, "idempotency/");
        c->put_if_absent.value = id_value(c, check);
        c->put_if_absent.expires_ms = om_now_ms() + d->core->settings->idempotency_window_ms;
        om_call_start(c);
        *ret = check;
        return 0;
}

/* -- after it ------------------------------------------------------------------------------------------------------ */

static void tell(const struct follower *f, int status, const char *id) {
        struct om_outcome *outcome = &f->ticket->outcomes[f->index];

        outcome->status = status == 0 ? 0 : -EAGAIN;
        outcome->duplicate = status == 0;
        if (status == 0)
                snprintf(outcome->id, sizeof outcome->id, "%s", id);
        else
                outcome->why = "the publish with this idempotency key that was under way failed: publish again";
        om_publish_ticket_close(f->ticket);
        om_publish_release(f->batch);
}

/* Who is told may publish with the key again: it is free before. */
void om_dedupe_over(struct om_dedupe *check, int status) {
        struct follower *f, *next;

        HASH_DEL(check->d->dedupe_keys, &check->key);
        for (f = check->followers; f; f = next) {
                next = f->next;
                tell(f, status, check->id);
                free(f);
        }
        free(check);
}

static void on_remembered(struct om_call *c, int status, const struct om_error *e) {
        struct om_dedupe *check = c->data;
        struct om_publish_ticket *ticket = check->ticket;
        struct om_publish_batch *batch = check->batch;

        /* The task is on the bus, so the publisher is told so; a repeat would be published again, under the same id. */
        if (status < 0)
                om_log_error(OM_LOG_WARNING, e, "remembering an idempotency key");
        om_call_free(c);
        om_dedupe_over(check, 0);
        om_publish_ticket_close(ticket);
        om_publish_release(batch);
}

void om_dedupe_published(struct om_dedupe *check, int status, struct om_publish_ticket *ticket) {
        struct om_call *c = status == 0 ? call(check, OM_CALL_STORE_PUT_IF_ABSENT, on_remembered) : NULL;

        if (!c) {
                om_dedupe_over(check, status);
                om_publish_ticket_close(ticket);
                return;
        }
        check->ticket = ticket;
        om_publish_hold(check->batch);
        c->put_if_absent.key = name(c, check, "published/");
        c->put_if_absent.value = id_value(c, check);
        c->put_if_absent.expires_ms = om_now_ms() + check->d->core->settings->idempotency_window_ms;
        om_call_start(c);
}
