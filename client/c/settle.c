/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settling tasks: extend, fail, ack, and what the daemon says to it.
 *
 * Always true:
 *   - acks of one turn travel in one request, behind what was published in that turn;
 *   - an answer that is an error concerns single tasks: those are asked about again, one by one, so that each has its own outcome;
 * `unavailable` is tried again for as long as the connection lives, because the lease does; what the daemon refuses for good (a result that
 * is too large) is failed with its message, so that no task stays leased for nothing;
 *   - where memory runs out with a lease in hand, the connection is given up: the daemon gives the tasks to others.
 */
#include "internal.h"

/* -- extending ----------------------------------------------------------------------------------------------------- */

static struct omc_call *extend_begin(omni_client *c) {
        struct omc_call *call = omc_call_new(c, OMC_ONE_WAY);
        if (!call)
                return NULL;
        om_rpc_begin_notification(&call->frame, "task.extend");
        om_buf_lit(&call->frame, "{\"deliveries\":[");
        return call;
}

static int extend_end(omni_client *c, struct omc_call *call) {
        om_buf_lit(&call->frame, "]}");
        int r = omc_call_queue(c, call, false);
        if (r < 0)
                omc_call_free(c, call);
        return r;
}

/* All tasks that the agent holds, in as many frames as the daemon's limit asks for. */
static int extend_all(omni_client *c, omni_agent *a) {
        struct omc_link *l = a->tasks.next;
        while (l != &a->tasks) {
                struct omc_call *call = extend_begin(c);
                if (!call)
                        return -ENOMEM;
                size_t n = 0;
                for (; l != &a->tasks && n < c->batch_max; l = l->next) {
                        const omni_task *t = omc_of(omni_task, link, l);
                        if (t->lost)
                                continue;
                        if (n++)
                                om_buf_putc(&call->frame, ',');
                        om_buf_u64(&call->frame, t->delivery);
                }
                if (n == 0) {
                        omc_call_free(c, call);
                        return 0;
                }
                int r = extend_end(c, call);
                if (r < 0)
                        return r;
        }
        return 0;
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
                        extend_all(c, a);
                        a->extend_at_ms = now + a->extend_every_ms;
                }
        }
}

int omni_task_extend(omni_task *t) {
        omni_client *c = t->agent->client;
        if (t->lost)
                return omc_fail(c, -ESTALE, "the lease of task %s is over", t->id);
        struct omc_call *call = extend_begin(c);
        if (!call)
                return omc_fail(c, -ENOMEM, "out of memory");
        om_buf_u64(&call->frame, t->delivery);
        int r = extend_end(c, call);
        if (r < 0)
                return omc_fail(c, r, "out of memory");
        omc_close_batches(c);
        omc_send(c); /* now: the handler may go on for long */
        return 0;
}

static void done_ack(omni_client *c, struct omc_call *call, struct om_span answer);

/* -- failing ------------------------------------------------------------------------------------------------------- */

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
        call->done = done_ack;
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

/* -- acknowledging ------------------------------------------------------------------------------------------------- */

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
        call->done = done_ack;
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

/* -- what became of it --------------------------------------------------------------------------------------------- */

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

/* One delivery's ack as a request of its own, which tells what became of it. False: it was not asked, since the connection is over: another
 * one must not hear of its deliveries. */
static bool ask_alone(omni_client *c, const struct omc_entry *entry, struct om_span text) {
        if (c->state != OMC_UP)
                return false;
        struct omc_call *call = ack_new(c);
        struct omc_entry *own = call ? omc_entry_add(call) : NULL;
        if (!own) {
                omc_call_free(c, call);
                out_of_memory(c);
                return false;
        }
        *own = *entry;
        own->offset = call->frame.len;
        call->n_fns = entry->fn != NULL;
        om_buf_put_span(&call->frame, text);
        ack_queue(c, call);
        return true;
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

static void done_ack(omni_client *c, struct omc_call *call, struct om_span answer) {
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
                } else if (many && ask_alone(c, entry, (struct om_span){ call->frame.data + entry->offset, entry->length })) {
                        call->n_fns -= entry->fn != NULL;
                        entry->fn = NULL;
                } else if (many) {
                        entry->status = -ESTALE;
                        omc_lease_over(call, "out of memory");
                }
        }
        tell_later(c, call);
}
