/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks: read from a delivery, held, settled.
 *
 * Always true:
 *   - a task is one piece of memory with copies of all that its functions give out, so that it outlives the frame that it came in;
 *   - it is on its agent's list until the user settles it; when its lease ends before (`lost`) the pointer stays good, and settling it only
 *     frees it; a lost task whose handler was not called yet is dropped at once;
 *   - acks of one turn travel in one request. An answer that is an error concerns single tasks: those are asked about again, one by one, so
 *     that each has its own outcome; `unavailable` is tried again for as long as the connection lives, because the lease does; what the
 * daemon refuses for good (a result that is too large) is failed with its message, so that no task stays leased for nothing.
 */
#include "internal.h"

#include <stdio.h>

/* -- deliveries ------------------------------------------------------------------------------------------------------- */

enum {
        F_DELIVERY,
        F_ATTEMPT,
        F_CREATED_AT,
        F_PRIORITY,
        F_PAYLOAD,
        F_HEADERS,
        F_ID,
        F_TOPIC,
        F_KEY,
        F_CORRELATION_ID,
        F_CAUSATION_ID,
        F_SOURCE,
        F_TENANT_ID,
        F_TRACEPARENT,
        F_CONTENT,
        F_WEBHOOK,
        F_REPLY_TO,
        F_COUNT,
        F_OF_PAYLOAD = F_CONTENT, /* from here on they stand in payload */
};
#define FIELD(name, types) \
        { name, sizeof(name) - 1, types }
static const struct {
        const char *name;
        size_t len;
        unsigned types;
} fields[F_COUNT] = {
        [F_DELIVERY] = FIELD("delivery", OM_JSON_NUMBER),
        [F_ATTEMPT] = FIELD("attempt", OM_JSON_NUMBER),
        [F_CREATED_AT] = FIELD("created_at", OM_JSON_NUMBER),
        [F_PRIORITY] = FIELD("priority", OM_JSON_NUMBER),
        [F_PAYLOAD] = FIELD("payload", OM_JSON_OBJECT),
        [F_HEADERS] = FIELD("headers", OM_JSON_OBJECT),
        [F_ID] = FIELD("id", OM_JSON_STRING),
        [F_TOPIC] = FIELD("topic", OM_JSON_STRING),
        [F_KEY] = FIELD("key", OM_JSON_STRING),
        [F_CORRELATION_ID] = FIELD("correlation_id", OM_JSON_STRING),
        [F_CAUSATION_ID] = FIELD("causation_id", OM_JSON_STRING),
        [F_SOURCE] = FIELD("source", OM_JSON_STRING),
        [F_TENANT_ID] = FIELD("tenant_id", OM_JSON_STRING),
        [F_TRACEPARENT] = FIELD("traceparent", OM_JSON_STRING),
        [F_CONTENT] = FIELD("content", OM_JSON_ANY),
        [F_WEBHOOK] = FIELD("webhook", OM_JSON_STRING | OM_JSON_OBJECT),
        [F_REPLY_TO] = FIELD("reply_to", OM_JSON_STRING),
};

/*
 * Goes through an object in place and keeps the members first … end-1 of `fields`; null counts as absent, except as content. The reader
 * ends behind the object: a frame of many large tasks is gone through once.
 */
static int find_fields(struct om_json *j, int first, int end, struct om_json_value *values, struct om_error *e) {
        struct om_json_value key, value;
        if (om_json_enter_object(j) < 0)
                return om_error_set(e, OM_INVALID, "%s that is no object", first ? "a payload" : "a task");
        int r;
        while ((r = om_json_next_key(j, &key)) > 0) {
                struct om_span name = om_json_inner(key);
                int i = first;
                while (i < end && (name.len != fields[i].len || memcmp(name.p, fields[i].name, name.len) != 0))
                        i++;
                if (i == F_PAYLOAD && om_json_peek(j) == OM_JSON_OBJECT) {
                        r = find_fields(j, F_OF_PAYLOAD, F_COUNT, values, e);
                        if (r < 0)
                                return r;
                        continue;
                }
                if (om_json_value(j, &value) < 0)
                        return om_error_set(e, OM_INVALID, "a task that cannot be read");
                if (i == end)
                        continue;
                if (value.type & fields[i].types)
                        values[i] = value;
                else if (value.type != OM_JSON_NULL)
                        return om_error_set(e, OM_INVALID, "a task whose %s is %s", fields[i].name, om_json_type_name(value.type));
        }
        return r < 0 ? om_error_set(e, OM_INVALID, "a task that cannot be read") : 0;
}

/* A string decoded, anything else as its text; zero-terminated. */
static const char *place(char **at, struct om_json_value v, bool decode) {
        if (!v.type)
                return NULL;
        char *p = *at;
        size_t n = v.text.len;
        if (decode)
                n = om_json_decode(v, p);
        else
                memcpy(p, v.text.p, n);
        p[n] = '\0';
        *at = p + n + 1;
        return p;
}

static int32_t small_int(struct om_json_value v, int32_t otherwise) {
        int64_t n;
        return v.type && om_json_int64(v, &n) == 0 && n >= 0 && n <= INT32_MAX ? (int32_t) n : otherwise;
}

static int take_task(omni_agent *a, struct om_json *j, struct om_error *e) {
        struct om_json_value v[F_COUNT] = { 0 };
        om_json_peek(j); /* over white space */
        struct om_span object = { j->p, 0 };
        int r = find_fields(j, 0, F_OF_PAYLOAD, v, e);
        if (r < 0)
                return r;
        object.len = (size_t) (j->p - object.p);
        int64_t delivery;
        if (!v[F_DELIVERY].type || om_json_int64(v[F_DELIVERY], &delivery) < 0 || delivery < 0)
                return om_error_set(e, OM_INVALID, "a task without a delivery number");
        if (!v[F_ID].type || !v[F_TOPIC].type || !v[F_CONTENT].type)
                return om_error_set(e, OM_INVALID, "a task without id, topic or content");
        size_t max = a->held_max ? a->held_max : a->client->prefetch_max;
        if (a->held >= max)
                return om_error_set(e, OM_LIMIT, "more tasks than the %zu that agent %s takes at once", max, a->name);

        size_t size = object.len + 1;
        for (int i = F_HEADERS; i < F_COUNT; i++)
                size += v[i].text.len + 1;
        omni_task *t = malloc(sizeof(*t) + size);
        if (!t)
                return -ENOMEM;
        memset(t, 0, sizeof(*t));
        t->agent = a;
        t->delivery = (uint64_t) delivery;
        t->attempt = small_int(v[F_ATTEMPT], 1);
        t->priority = small_int(v[F_PRIORITY], 0);
        char *at = t->text;
        t->json = place(&at, (struct om_json_value){ .type = OM_JSON_OBJECT, .text = object }, false);
        t->json_len = object.len;
        if (v[F_CREATED_AT].type)
                t->created_at = (struct om_span){ t->json + (v[F_CREATED_AT].text.p - object.p), v[F_CREATED_AT].text.len };
        t->content = place(&at, v[F_CONTENT], false);
        t->content_len = v[F_CONTENT].text.len;
        t->headers = place(&at, v[F_HEADERS], false);
        t->webhook = place(&at, v[F_WEBHOOK], false);
        t->id = place(&at, v[F_ID], true);
        t->topic = place(&at, v[F_TOPIC], true);
        t->key = place(&at, v[F_KEY], true);
        t->correlation_id = place(&at, v[F_CORRELATION_ID], true);
        t->causation_id = place(&at, v[F_CAUSATION_ID], true);
        t->source = place(&at, v[F_SOURCE], true);
        t->tenant_id = place(&at, v[F_TENANT_ID], true);
        t->traceparent = place(&at, v[F_TRACEPARENT], true);
        t->reply_to = place(&at, v[F_REPLY_TO], true);
        omc_append(&a->tasks, &t->link);
        omc_append(&a->client->ready, &t->ready);
        a->held++;
        return 0;
}

static int take_tasks(omni_client *c, int64_t subscription, struct om_json *j, struct om_error *e) {
        omni_agent *a = omc_agent_of(c, subscription);
        if (!a)
                return om_error_set(e, OM_INVALID, "tasks for subscription %lld, which there is not", (long long) subscription);
        if (a->leaving)
                return om_json_value(j, NULL);
        if (om_json_enter_array(j) < 0)
                return om_error_set(e, OM_INVALID, "tasks that are no array");
        int r;
        while ((r = om_json_next_element(j)) > 0) {
                r = take_task(a, j, e);
                if (r < 0)
                        return r;
        }
        return r;
}

int omc_deliver(omni_client *c, struct om_span params, struct om_error *e) {
        int64_t subscription = 0;
        bool have_subscription = false, taken = false;
        struct om_json_value key, v, tasks = { 0 };
        struct om_json j;
        om_json_init_valid(&j, params.p ? params : OM_SPAN("{}"));
        om_json_enter_object(&j);
        while (om_json_next_key(&j, &key) > 0) {
                if (have_subscription && !taken && om_json_string_is(key, "tasks")) {
                        int r = take_tasks(c, subscription, &j, e);
                        if (r < 0)
                                return r;
                        taken = true;
                        continue;
                }
                if (om_json_value(&j, &v) < 0)
                        return -EINVAL;
                if (om_json_string_is(key, "tasks"))
                        tasks = v;
                else if (om_json_string_is(key, "subscription"))
                        have_subscription = v.type == OM_JSON_NUMBER && om_json_int64(v, &subscription) == 0;
        }
        if (taken)
                return 0;
        if (!have_subscription || !tasks.type)
                return om_error_set(e, OM_INVALID, "no subscription or no tasks");
        om_json_init_valid(&j, tasks.text);
        return take_tasks(c, subscription, &j, e);
}

/* -- lost ------------------------------------------------------------------------------------------------------------- */

void omc_task_free(omni_task *t) {
        if (!t->lost)
                t->agent->held--;
        omc_unlink(&t->link);
        omc_unlink(&t->ready);
        free(t);
}

static void lose(omni_task *t) {
        if (omc_linked(&t->ready)) { /* nobody has seen it */
                omc_task_free(t);
        } else if (!t->lost) {
                t->lost = true;
                t->agent->held--;
        }
}

void omc_agent_lose_tasks(omni_agent *a) {
        for (struct omc_link *l = a->tasks.next, *next; l != &a->tasks; l = next) {
                next = l->next;
                lose(omc_of(omni_task, link, l));
        }
}

int omc_revoked(omni_client *c, struct om_span params, struct om_error *e) {
        int64_t subscription, delivery;
        struct om_json_value v;
        struct om_json j;
        int r;
        if (!params.p || !omc_get(params, "subscription", OM_JSON_NUMBER, &v) || om_json_int64(v, &subscription) < 0)
                return om_error_set(e, OM_INVALID, "no subscription");
        if (!omc_get(params, "deliveries", OM_JSON_ARRAY, &v))
                return om_error_set(e, OM_INVALID, "no deliveries");
        om_json_init_valid(&j, v.text);
        om_json_enter_array(&j);
        omni_agent *a = omc_agent_of(c, subscription);
        while ((r = om_json_next_element(&j)) > 0) {
                if (om_json_value(&j, &v) < 0 || v.type != OM_JSON_NUMBER || om_json_int64(v, &delivery) < 0)
                        return om_error_set(e, OM_INVALID, "a delivery that is no number");
                for (struct omc_link *l = a ? a->tasks.next : NULL; a && l != &a->tasks; l = l->next) {
                        omni_task *t = omc_of(omni_task, link, l);
                        if (!t->lost && t->delivery == (uint64_t) delivery) {
                                lose(t);
                                break;
                        }
                }
        }
        return r;
}

/* -- extending -------------------------------------------------------------------------------------------------------- */

static int send_extend(omni_client *c, omni_agent *a, omni_task *only) {
        size_t n = 0;
        struct omc_call *call = NULL;
        for (struct omc_link *l = a->tasks.next;; l = l->next) {
                omni_task *t = l == &a->tasks ? NULL : omc_of(omni_task, link, l);
                if (call && (!t || n == c->batch_max)) {
                        om_buf_lit(&call->frame, "]}");
                        int r = omc_call_queue(c, call, false);
                        if (r < 0) {
                                omc_call_free(c, call);
                                return r;
                        }
                        call = NULL;
                }
                if (!t)
                        return 0;
                if (t->lost || (only && t != only))
                        continue;
                if (!call) {
                        call = omc_call_new(c, OMC_ONE_WAY);
                        if (!call)
                                return -ENOMEM;
                        om_rpc_begin_notification(&call->frame, "task.extend");
                        om_buf_lit(&call->frame, "{\"deliveries\":[");
                        n = 0;
                }
                if (n++)
                        om_buf_putc(&call->frame, ',');
                om_buf_u64(&call->frame, t->delivery);
        }
}

void omc_extend_due(omni_client *c, int64_t now) {
        for (struct omc_link *l = c->agents.next; l != &c->agents; l = l->next) {
                omni_agent *a = omc_of(omni_agent, link, l);
                if (!a->extend_every_ms)
                        continue;
                if (!a->active || a->leaving || !a->held) {
                        a->extend_at_ms = 0;
                } else if (!a->extend_at_ms) {
                        a->extend_at_ms = now + a->extend_every_ms;
                } else if (now >= a->extend_at_ms) {
                        send_extend(c, a, NULL);
                        a->extend_at_ms = now + a->extend_every_ms;
                }
        }
}

int omni_task_extend(omni_task *t) {
        omni_client *c = t->agent->client;
        if (t->lost)
                return omc_fail(c, -ESTALE, "the lease of task %s is over", t->id);
        int r = send_extend(c, t->agent, t);
        if (r < 0)
                return omc_fail(c, r, "out of memory");
        omc_close_batches(c);
        omc_send(c); /* now: the handler may go on for long */
        return 0;
}

/* -- failing ---------------------------------------------------------------------------------------------------------- */

enum {
        MESSAGE_MAX = 60000, /* bytes of an error message that are sent */
        TRIES_MAX = 10,      /* of a task.fail that the daemon does not take */
};

/* Memory ran out with a lease in hand: without the connection the daemon gives the tasks to others, which is what must happen to them. */
static int out_of_memory(omni_client *c) {
        omc_disconnect(c, -ENOMEM, "out of memory");
        return omc_fail(c, -ENOMEM, "out of memory: the tasks held are given back");
}

static int fail_delivery(omni_client *c, uint64_t delivery, const char *message, const char *type, int64_t delay_ms, bool retry) {
        omc_publish_close(c);
        struct omc_call *call = omc_call_new(c, OMC_FAIL);
        struct omc_entry *entry = call ? omc_entry_add(call) : NULL;
        if (!entry) {
                omc_call_free(c, call);
                return out_of_memory(c);
        }
        entry->delivery = delivery;
        call->immediate = true;
        call->done = omc_done_ack;
        size_t n = message && *message ? strlen(message) : 0;
        if (n > MESSAGE_MAX)
                for (n = MESSAGE_MAX; n > 0 && ((unsigned char) message[n] & 0xc0) == 0x80;)
                        n--;
        struct om_buf *b = &call->frame;
        om_rpc_begin_request(b, call->id, "task.fail");
        om_buf_lit(b, "{\"delivery\":");
        om_buf_u64(b, delivery);
        om_buf_lit(b, ",\"error\":{\"message\":");
        om_buf_json_string(b, n ? message : "failed", n ? n : 6);
        if (type && *type) {
                om_buf_lit(b, ",\"type\":");
                om_buf_json_string(b, type, strlen(type));
        }
        om_buf_puts(b, retry ? "}" : "},\"retry\":false");
        if (delay_ms >= 0)
                om_buf_printf(b, ",\"delay_ms\":%lld", (long long) delay_ms);
        om_buf_putc(b, '}');
        if (omc_call_queue(c, call, false) < 0) {
                omc_call_free(c, call);
                return out_of_memory(c);
        }
        return 0;
}

int omni_task_fail(omni_task *t, const char *message, const char *type, int64_t delay_ms, unsigned flags) {
        omni_client *c = t->agent->client;
        int r = t->lost ? omc_fail(c, -ESTALE, "the lease is over: the task was or will be delivered again")
                        : fail_delivery(c, t->delivery, message, type, delay_ms, !(flags & OMNI_FAIL_NO_RETRY));
        omc_task_free(t); /* last: the texts may point into it */
        return r;
}

/* -- acknowledging ---------------------------------------------------------------------------------------------------- */

enum {
        RESULT_DEPTH = OM_DEPTH_MAX - 4, /* body, params, deliveries, delivery */
        OUTPUT_DEPTH = OM_DEPTH_MAX - 7, /* … publish, task, payload */
        ACK_OVERHEAD = 256,              /* of a frame around its entries */
};

static struct omc_call *ack_new(omni_client *c) {
        struct omc_call *call = omc_call_new(c, OMC_ACK);
        if (!call)
                return NULL;
        call->immediate = true;
        call->done = omc_done_ack;
        om_rpc_begin_request(&call->frame, call->id, "task.ack");
        om_buf_lit(&call->frame, "{\"deliveries\":[");
        return call;
}

static int ack_queue(omni_client *c, struct omc_call *call) {
        om_buf_lit(&call->frame, "]}");
        int r = omc_call_queue(c, call, false);
        if (r < 0) {
                om_error_set(&call->error, OM_INTERNAL, "out of memory");
                omc_call_finish(c, call, -ENOMEM, OM_SPAN_NONE);
                return out_of_memory(c);
        }
        return 0;
}

int omc_ack_close(omni_client *c) {
        struct omc_call *call = c->open_ack;
        c->open_ack = NULL;
        return call ? ack_queue(c, call) : 0;
}

static int put_ack(omni_client *c, struct om_buf *b, uint64_t delivery, struct om_span result, const omni_publish_options *outputs,
        size_t n_outputs, struct om_error *e) {
        om_buf_lit(b, "{\"delivery\":");
        om_buf_u64(b, delivery);
        if (result.p) {
                om_buf_lit(b, ",\"result\":");
                om_buf_put_span(b, result);
        }
        size_t stride = n_outputs ? outputs->size : 0;
        for (size_t i = 0; i < n_outputs; i++) {
                om_buf_puts(b, i ? "," : ",\"publish\":[");
                const void *output = (const char *) (const void *) outputs + i * stride;
                if (omc_put_task(c, b, output, OUTPUT_DEPTH) < 0)
                        return om_error_set(e, OM_INVALID, "output %zu: %s", i, c->error.message);
        }
        om_buf_puts(b, n_outputs ? "]}" : "}");
        return 0;
}

int omni_task_ack_publish(omni_task *t, const char *result_json, size_t result_len, const omni_publish_options *outputs, size_t n_outputs,
        omni_settled_fn *fn, void *user) {
        omni_client *c = t->agent->client;
        uint64_t delivery = t->delivery;
        bool lost = t->lost;
        struct om_span result = { result_json, !result_json ? 0 : result_len == OMNI_STR ? strlen(result_json) : result_len };
        struct om_error e = OM_ERROR_INIT;
        if (lost) {
                omc_task_free(t);
                return omc_fail(c, -ESTALE, "the lease is over: the task was or will be delivered again");
        }
        if (c->open_ack && (c->open_ack->n_entries >= c->batch_max || c->open_ack->frame.len + result.len > OMC_BATCH_BYTES))
                omc_close_batches(c);
        int r = result.p ? om_json_check(result, RESULT_DEPTH, &e) : 0;
        if (r < 0)
                om_error_prefix(&e, "result");
        struct omc_call *call = c->open_ack ? c->open_ack : ack_new(c);
        struct omc_entry *entry = call ? omc_entry_add(call) : NULL;
        c->open_ack = call;
        if (!entry) {
                omc_task_free(t);
                return out_of_memory(c); /* what the batch has so far is told that it is stale */
        }
        struct om_buf *b = &call->frame;
        size_t mark = b->len;
        if (call->n_entries > 1)
                om_buf_putc(b, ',');
        entry->offset = b->len;
        if (r == 0)
                r = put_ack(c, b, delivery, result, outputs, n_outputs, &e);
        if (r == 0 && om_buf_ok(b) && b->len - mark + ACK_OVERHEAD > c->frame_max)
                r = om_error_set(&e, OM_LIMIT, "the result has %zu bytes; a frame has %zu at most", b->len - mark, c->frame_max);
        /* The result may stand in the task's own content: it goes only now. */
        omc_task_free(t);
        if (r < 0 || !om_buf_ok(b)) {
                bool memory = !om_buf_ok(b);
                b->failed = false; /* what stood there before still does */
                b->len = mark;
                if (--call->n_entries == 0) { /* a request about nothing is none */
                        omc_call_free(c, call);
                        c->open_ack = NULL;
                }
                if (memory)
                        return out_of_memory(c);
                int failed = fail_delivery(c, delivery, e.message, "invalid_result", -1, true);
                return failed < 0 ? failed : omc_fail_error(c, r, &e);
        }
        entry->length = b->len - entry->offset;
        entry->delivery = delivery;
        entry->fn = (void (*)(void)) fn;
        entry->user = user;
        call->n_fns += fn != NULL;
        return 0;
}

int omni_task_ack(omni_task *t, const char *result_json, size_t result_len) {
        return omni_task_ack_publish(t, result_json, result_len, NULL, 0, NULL, NULL);
}

/* -- what became of it ------------------------------------------------------------------------------------------------ */

static bool has_delivery(struct om_span array, uint64_t delivery) {
        struct om_json j;
        om_json_init_valid(&j, array);
        if (om_json_enter_array(&j) < 0)
                return true;
        struct om_json_value v;
        int64_t n;
        while (om_json_next_element(&j) > 0 && om_json_value(&j, &v) == 0)
                if (v.type == OM_JSON_NUMBER && om_json_int64(v, &n) == 0 && (uint64_t) n == delivery)
                        return true;
        return false;
}

/* One delivery's ack as a request of its own. */
static void ask_alone(omni_client *c, const struct omc_entry *entry, struct om_span text) {
        struct omc_call *call = ack_new(c);
        struct omc_entry *own = call ? omc_entry_add(call) : NULL;
        if (!own) {
                omc_call_free(c, call);
                out_of_memory(c);
                return;
        }
        *own = *entry;
        own->offset = call->frame.len;
        call->n_fns = entry->fn != NULL;
        om_buf_put_span(&call->frame, text);
        ack_queue(c, call);
}

/* A request about one delivery was refused. True: the same goes out again later, because the lease goes on and it may succeed. */
static bool try_later(omni_client *c, struct omc_call *call) {
        int status = call->status;
        bool away = status == -EAGAIN || status == -ETIMEDOUT;
        bool once_more = call->type == OMC_FAIL && status != -ESTALE && status != -ENOENT && call->tries < TRIES_MAX;
        if (c->state != OMC_UP || (!away && !once_more))
                return false;
        call->status = 0;
        omc_call_later(c, call);
        return true;
}

/* Runs the users' functions, from `events`. */
static void done_settled(omni_client *c, struct omc_call *call, struct om_span answer) {
        for (size_t i = 0; i < call->n_entries; i++) {
                struct omc_entry *entry = &call->entries[i];
                if (entry->fn)
                        ((omni_settled_fn *) entry->fn)(c, entry->status, entry->status < 0 ? call->error.message : NULL, entry->user);
        }
        omc_call_free(c, call);
}

static void tell_later(omni_client *c, struct omc_call *call) {
        if (call->n_fns == 0) {
                omc_call_free(c, call);
                return;
        }
        call->immediate = false;
        call->done = done_settled;
        omc_event_add(c, call);
}

void omc_done_ack(omni_client *c, struct omc_call *call, struct om_span answer) {
        int status = call->status;
        bool refused = status < 0 && answer.p && c->state == OMC_UP; /* by the daemon; else the connection is over */
        if (refused && call->n_entries == 1) {
                if (try_later(c, call))
                        return;
                if (call->type == OMC_ACK && status != -ESTALE && status != -ENOENT)
                        fail_delivery(c, call->entries[0].delivery, call->error.message, "ack_refused", -1, true);
        }
        struct om_json_value data, failed;
        bool many = refused && call->n_entries > 1;
        bool listed = many && omc_get(answer, "data", OM_JSON_OBJECT, &data) && omc_get(data.text, "deliveries", OM_JSON_ARRAY, &failed);
        for (size_t i = 0; i < call->n_entries; i++) {
                struct omc_entry *entry = &call->entries[i];
                entry->status = status;
                if (many && listed && !has_delivery(failed.text, entry->delivery)) {
                        entry->status = 0;
                } else if (many) {
                        ask_alone(c, entry, (struct om_span){ call->frame.data + entry->offset, entry->length });
                        call->n_fns -= entry->fn != NULL;
                        entry->fn = NULL;
                }
        }
        tell_later(c, call);
}

/* -- asking ----------------------------------------------------------------------------------------------------------- */

const char *omni_task_id(const omni_task *t) { return t->id; }
const char *omni_task_topic(const omni_task *t) { return t->topic; }
const char *omni_task_content(const omni_task *t, size_t *ret_len) {
        if (ret_len)
                *ret_len = t->content_len;
        return t->content;
}
const char *omni_task_json(const omni_task *t, size_t *ret_len) {
        if (ret_len)
                *ret_len = t->json_len;
        return t->json;
}
const char *omni_task_key(const omni_task *t) { return t->key; }
const char *omni_task_reply_to(const omni_task *t) { return t->reply_to; }
const char *omni_task_correlation_id(const omni_task *t) { return t->correlation_id; }
const char *omni_task_causation_id(const omni_task *t) { return t->causation_id; }
const char *omni_task_source(const omni_task *t) { return t->source; }
const char *omni_task_tenant_id(const omni_task *t) { return t->tenant_id; }
const char *omni_task_traceparent(const omni_task *t) { return t->traceparent; }
const char *omni_task_headers(const omni_task *t) { return t->headers; }
const char *omni_task_webhook(const omni_task *t) { return t->webhook; }
double omni_task_created_at(const omni_task *t) {
        double seconds = 0;
        if (t->created_at.p)
                om_json_double((struct om_json_value){ .type = OM_JSON_NUMBER, .text = t->created_at }, &seconds);
        return seconds;
}
int omni_task_attempt(const omni_task *t) { return t->attempt; }
int omni_task_priority(const omni_task *t) { return t->priority; }
int omni_task_lost(const omni_task *t) { return t->lost; }
omni_agent *omni_task_agent(const omni_task *t) { return t->agent; }
