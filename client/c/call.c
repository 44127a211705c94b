/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls: what was asked of the daemon and is not answered yet.
 *
 * Always true:
 *   - a call owns its frame until it is answered, so that what can be repeated is sent again after a reconnect as the same bytes, under the
 *     same id, without having been copied;
 *   - `calls` holds them in the order in which they go out; those before `unsent` are with the daemon and stand in `buckets` too;
 *   - every call is finished exactly once: by its answer, by the end of the connection, by a blocking call that gave up, or by omni_free();
 *   - finishing runs no code of the user's unless nothing else is on the stack: see internal.h.
 *
 * An id that nobody asked under is a fault of the daemon. A call whose caller gave up stays until it is answered, for that reason.
 */
#include "internal.h"

#include <stdio.h>

/* -- making -------------------------------------------------------------------------------------------------------- */

struct omc_call *omc_call_new(omni_client *c, enum omc_type type) {
        struct omc_call *call;
        if (!omc_list_empty(&c->spare)) {
                call = omc_of(struct omc_call, link, c->spare.next);
                omc_unlink(&call->link);
                c->n_spare--;
        } else {
                call = calloc(1, sizeof(*call));
                if (!call)
                        return NULL;
        }
        call->type = type;
        if (type != OMC_ONE_WAY && type < OMC_NOTICE)
                call->id = ++c->last_id;
        return call;
}

void omc_call_free(omni_client *c, struct omc_call *call) {
        if (!call)
                return;
        if (call->type == OMC_NOTICE)
                c->notice_bytes -= call->frame.len;
        struct om_buf frame = call->frame;
        struct omc_entry *entries = call->entries;
        size_t cap = call->entries_cap;
        if (c->n_spare >= OMC_SPARE_MAX || frame.cap > OMC_SPARE_BYTES) {
                om_buf_deinit(&frame);
                free(entries);
                free(call);
                return;
        }
        om_buf_clear(&frame);
        *call = (struct omc_call){ .frame = frame, .entries = entries, .entries_cap = cap };
        omc_append(&c->spare, &call->link);
        c->n_spare++;
}

struct omc_entry *omc_entry_add(struct omc_call *call) {
        if (call->n_entries == call->entries_cap) {
                size_t cap = call->entries_cap ? call->entries_cap * 2 : 16;
                struct omc_entry *more = realloc(call->entries, cap * sizeof(*more));
                if (!more)
                        return NULL;
                call->entries = more;
                call->entries_cap = cap;
        }
        struct omc_entry *entry = &call->entries[call->n_entries++];
        *entry = (struct omc_entry){ 0 };
        return entry;
}

/* -- the lists ----------------------------------------------------------------------------------------------------- */

static struct omc_call **bucket_of(omni_client *c, uint64_t id) { return &c->buckets[id % OMC_BUCKETS]; }

struct omc_call *omc_call_find(omni_client *c, uint64_t id) {
        struct omc_call *call = *bucket_of(c, id);
        while (call && call->id != id)
                call = call->chain;
        return call;
}

static void table_add(omni_client *c, struct omc_call *call) {
        struct omc_call **at = bucket_of(c, call->id);
        while (*at) /* at the end: answers mostly come in order, and the oldest is then found first */
                at = &(*at)->chain;
        call->chain = NULL;
        *at = call;
}

static void table_remove(omni_client *c, struct omc_call *call) {
        struct omc_call **at = bucket_of(c, call->id);
        while (*at && *at != call)
                at = &(*at)->chain;
        if (*at)
                *at = call->chain;
        call->chain = NULL;
}

static void put_on_calls(omni_client *c, struct omc_call *call, bool in_front) {
        call->sent = 0;
        /* In front of all that is not begun: a frame of which a part is out must be finished first. */
        struct omc_link *place = &c->calls;
        if (in_front) {
                place = c->unsent;
                if (place != &c->calls && omc_of(struct omc_call, link, place)->sent)
                        place = place->next;
        }
        omc_link_before(place, &call->link);
        call->place = OMC_ON_CALLS;
        if (c->unsent == place)
                c->unsent = &call->link;
        c->n_calls++;
        c->bytes += call->frame.len;
        if (call->id)
                table_add(c, call);
        c->wanted = true;
}

int omc_call_queue(omni_client *c, struct omc_call *call, bool in_front) {
        int r = om_rpc_end(&call->frame, 0, c->frame_max);
        if (r < 0)
                return r;
        put_on_calls(c, call, in_front);
        return 0;
}

void omc_call_take(omni_client *c, struct omc_call *call) {
        if (call->place == OMC_ON_CALLS) {
                if (c->unsent == &call->link)
                        c->unsent = call->link.next;
                c->n_calls--;
                c->bytes -= call->frame.len;
                if (call->id)
                        table_remove(c, call);
        }
        if (call->place != OMC_NOWHERE)
                omc_unlink(&call->link);
        call->place = OMC_NOWHERE;
}

/* Refused as unavailable: the same again, after a while that grows. */
void omc_call_later(omni_client *c, struct omc_call *call) {
        unsigned n = call->tries < 6 ? call->tries : 6;
        call->tries++;
        call->due_ms = omc_now_ms() + (100 << n);
        call->place = OMC_ON_LATER;
        omc_append(&c->later, &call->link);
}

void omc_call_again(omni_client *c, struct omc_call *call) {
        omc_call_take(c, call);
        put_on_calls(c, call, false);
}

void omc_event_add(omni_client *c, struct omc_call *call) {
        call->place = OMC_ON_EVENTS;
        omc_append(&c->events, &call->link);
}

/* -- the end of a call --------------------------------------------------------------------------------------------- */

void omc_call_finish(omni_client *c, struct omc_call *call, int status, struct om_span answer) {
        omc_call_take(c, call);
        call->status = status;
        if (call->type == OMC_PUBLISH && !call->owner && call->n_fns == 0)
                call->done = NULL;
        if (call->immediate || !call->done) {
                if (call->done)
                        call->done(c, call, answer);
                else
                        omc_call_free(c, call);
                return;
        }
        /* For the user, later: the answer moves into the frame's memory, which has served. */
        om_buf_clear(&call->frame);
        om_buf_put_span(&call->frame, answer);
        om_buf_putc(&call->frame, '\0');
        call->has_answer = answer.p && om_buf_ok(&call->frame);
        if (!om_buf_ok(&call->frame) && status == 0) {
                call->status = -ENOMEM;
                om_error_set_errno(&call->error, ENOMEM, "answer");
        }
        omc_event_add(c, call);
}

/* One element of `events`, taken off it. The only place, with the handlers' in client.c, where the user's code runs. */
void omc_event_run(omni_client *c, struct omc_call *call) {
        struct om_span answer = OM_SPAN_NONE;
        if (call->has_answer)
                answer = (struct om_span){ call->frame.data, call->frame.len - 1 };
        c->depth++;
        if (call->type == OMC_NOTICE) {
                const char *method = call->frame.data, *params = method + strlen(method) + 1;
                if (c->on_notification)
                        c->on_notification(c, method, params, call->frame.len - (size_t) (params - method) - 1, c->on_notification_user);
                omc_call_free(c, call);
        } else if (call->type == OMC_CHANGE) {
                if (c->on_connection)
                        c->on_connection(c, call->status == 0, call->error.message, c->on_connection_user);
                omc_call_free(c, call);
        } else {
                call->done(c, call, answer);
        }
        c->depth--;
}

bool omc_detach(omni_client *c, void *owner) {
        bool acted = false;
        for (struct omc_link *l = c->calls.next, *next; l != &c->calls; l = next) {
                next = l->next;
                struct omc_call *call = omc_of(struct omc_call, link, l);
                if (call->owner != owner)
                        continue;
                acted |= call->ever_sent;
                call->owner = NULL;
                call->repeat = false;
                if (call->agent)
                        continue; /* its agent is `leaving` and follows what becomes of it */
                call->done = NULL;
                if (call->sent == 0) {
                        omc_call_take(c, call);
                        omc_call_free(c, call);
                }
        }
        return acted;
}

void omc_done_wait(omni_client *c, struct omc_call *call, struct om_span answer) {
        struct omc_waiter *w = call->owner;
        if (w) {
                w->status = call->status;
                w->error = call->error;
                if (answer.p && call->status == 0) {
                        om_buf_put_span(&w->answer, answer);
                        om_buf_putc(&w->answer, '\0');
                }
                w->left--;
        }
        omc_call_free(c, call);
}

void omc_done_reply(omni_client *c, struct omc_call *call, struct om_span answer) {
        omni_reply_fn *fn = (omni_reply_fn *) call->fn;
        if (call->status == 0)
                fn(c, 0, answer.p, answer.len, NULL, call->user);
        else
                fn(c, call->status, NULL, 0, call->error.message, call->user);
        omc_call_free(c, call);
}

/* Publishes go before acks: an ack never overtakes what its handler published before it. */
void omc_close_batches(omni_client *c) {
        omc_publish_close(c);
        omc_ack_close(c);
}

/* -- reading answers ----------------------------------------------------------------------------------------------- */

bool omc_get(struct om_span object, const char *name, unsigned types, struct om_json_value *ret) {
        struct om_json j;
        struct om_json_value key;
        om_json_init_valid(&j, object);
        if (om_json_enter_object(&j) < 0)
                return false;
        while (om_json_next_key(&j, &key) > 0) {
                struct om_json_value value;
                if (om_json_value(&j, &value) < 0)
                        return false;
                if (om_json_string_is(key, name)) {
                        if (!(value.type & types))
                                return false;
                        *ret = value;
                        return true;
                }
        }
        return false;
}

/* -- any method ---------------------------------------------------------------------------------------------------- */

/* Methods that only read: to ask twice does no harm. */
static bool only_reads(const char *method) {
        static const char *const names[] = { "ping", "task.get", "task.list", "task.search", "agent.list", "agent.get", "bus.topics",
                "bus.groups", "bus.inspect", "bus.stats", "dlq.list", "dlq.get", "storage.health", "config.get", "config.list",
                "metrics.get", "health", "backends", NULL };
        for (const char *const *name = names; *name; name++)
                if (!strcmp(*name, method))
                        return true;
        return false;
}

static int check_call(omni_client *c, const char *method, struct om_span params) {
        struct om_error e = OM_ERROR_INIT;
        if (!method || om_name_check(om_span_of(method), "method", &e) < 0)
                return omc_fail(c, -EINVAL, "a call needs the name of a method");
        if (!strcmp(method, "hello") || !strcmp(method, "agent.register") || !strcmp(method, "agent.unregister"))
                return omc_fail(c, -EINVAL, "%s is the library's own business: see omni_connect(), omni_agent_register()", method);
        if (om_json_check(params, OM_DEPTH_MAX - 1, &e) < 0) {
                om_error_prefix(&e, "%s: params", method);
                return omc_fail_error(c, -EINVAL, &e);
        }
        struct om_json j;
        om_json_init_valid(&j, params);
        if (om_json_peek(&j) != OM_JSON_OBJECT)
                return omc_fail(c, -EINVAL, "%s: params are no JSON object", method);
        return 0;
}

/* NULL with the text kept and the errno in *ret_status. */
static struct omc_call *queue_call(omni_client *c, const char *method, struct om_span params, int *ret_status) {
        omc_close_batches(c);
        struct omc_call *call = omc_call_new(c, OMC_REQUEST);
        if (!call) {
                *ret_status = omc_fail(c, -ENOMEM, "out of memory");
                return NULL;
        }
        call->repeat = only_reads(method);
        om_rpc_begin_request(&call->frame, call->id, method);
        om_buf_put_span(&call->frame, params);
        int r = omc_call_queue(c, call, false);
        if (r == 0)
                return call;
        omc_call_free(c, call);
        if (r == -EMSGSIZE)
                *ret_status = omc_fail(c, -ENOBUFS, "%s: above the daemon's limit of %zu bytes", method, c->frame_max);
        else
                *ret_status = omc_fail(c, r, "out of memory");
        return NULL;
}

int omni_call_async(omni_client *c, const char *method, const char *params_json, omni_reply_fn *fn, void *user) {
        struct om_span params = om_span_of(params_json ? params_json : "{}");
        int r = check_call(c, method, params);
        if (r < 0)
                return r;
        if (c->n_calls >= c->options.pending_max || c->bytes + params.len > c->options.buffer_max)
                return omc_fail(c, -ENOBUFS, "too much is unanswered: let omni_process() or omni_run_once() work, then try again");
        struct omc_call *call = queue_call(c, method, params, &r);
        if (!call)
                return r;
        call->fn = (void (*)(void)) fn;
        call->user = user;
        call->done = fn ? omc_done_reply : NULL;
        return 0;
}

/* Waits for one call; on success the answer, zero-terminated, is in w->answer. */
static int call_wait(
        omni_client *c, const char *method, struct om_span params, struct omc_waiter *w, int64_t deadline_ms, int64_t away_ms) {
        int r = 0;
        struct omc_call *call = queue_call(c, method, params, &r);
        if (!call)
                return r;
        w->left = 1;
        call->owner = w;
        call->immediate = true;
        call->done = omc_done_wait;
        bool reads = call->repeat;
        r = omc_wait(c, w, deadline_ms, away_ms);
        if (r < 0 && w->left) {
                if (omc_detach(c, w) && !reads)
                        om_error_prefix(&c->error, "%s: the outcome is unknown", method);
                return r;
        }
        if (w->status < 0)
                return omc_fail_error(c, w->status, &w->error);
        if (!om_buf_ok(&w->answer))
                return omc_fail(c, -ENOMEM, "out of memory");
        return 0;
}

static void give_answer(struct omc_waiter *w, char **ret, size_t *ret_len) {
        if (ret_len)
                *ret_len = w->answer.len - 1;
        if (ret)
                *ret = w->answer.data;
        else
                om_buf_deinit(&w->answer);
}

int omni_call(omni_client *c, const char *method, const char *params_json, char **ret_result, size_t *ret_len) {
        struct om_span params = om_span_of(params_json ? params_json : "{}");
        int r = check_call(c, method, params);
        if (r < 0)
                return r;
        struct omc_waiter w = { .answer = OM_BUF_INIT };
        r = call_wait(c, method, params, &w, omc_deadline(c), c->options.connect_timeout_ms);
        if (r < 0) {
                om_buf_deinit(&w.answer);
                return r;
        }
        give_answer(&w, ret_result, ret_len);
        return 0;
}

/* -- results ------------------------------------------------------------------------------------------------------- */

enum {
        WAIT_SLICE_MS = 3600 * 1000, /* the daemon is asked anew so often: it waits a day at most */
        WAIT_GRACE_MS = 2000,        /* for the daemon's own `timeout` to arrive */
};

int omni_result_get(omni_client *c, const char *task_id, const char *agent, int64_t wait_ms, char **ret_record, size_t *ret_len) {
        if (!task_id || !*task_id)
                return omc_fail(c, -EINVAL, "the id of a task is missing");
        int64_t start = omc_now_ms();
        for (;;) {
                int64_t left = wait_ms < 0 ? WAIT_SLICE_MS : wait_ms - (omc_now_ms() - start);
                if (left < 0)
                        left = 0;
                int64_t slice = left < WAIT_SLICE_MS ? left : WAIT_SLICE_MS;
                struct om_buf params = OM_BUF_INIT;
                om_buf_lit(&params, "{\"id\":");
                om_buf_json_string(&params, task_id, strlen(task_id));
                if (agent) {
                        om_buf_lit(&params, ",\"agent\":");
                        om_buf_json_string(&params, agent, strlen(agent));
                }
                if (wait_ms != 0)
                        om_buf_printf(&params, ",\"wait_ms\":%lld", (long long) slice);
                om_buf_putc(&params, '}');
                if (!om_buf_ok(&params)) {
                        om_buf_deinit(&params);
                        return omc_fail(c, -ENOMEM, "out of memory");
                }
                /* A daemon that is met once and restarts may stay away as long as the caller is willing to wait. */
                int64_t away = c->options.connect_timeout_ms;
                if (c->ever_up && away >= 0 && slice > away)
                        away = slice;
                struct omc_waiter w = { .answer = OM_BUF_INIT };
                int64_t deadline = wait_ms != 0 ? omc_now_ms() + slice + WAIT_GRACE_MS : omc_deadline(c);
                int r = call_wait(c, "task.get", om_buf_span(&params), &w, deadline, away);
                om_buf_deinit(&params);
                if (r == 0) {
                        give_answer(&w, ret_record, ret_len);
                        return 0;
                }
                om_buf_deinit(&w.answer);
                bool time_left = wait_ms < 0 || omc_now_ms() - start < wait_ms;
                if (r != -ETIMEDOUT || wait_ms == 0 || !time_left)
                        return r;
                if (slice < WAIT_SLICE_MS && wait_ms >= 0)
                        return r;
        }
}
