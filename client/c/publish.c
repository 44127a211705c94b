/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: tasks written as text into a batch that grows until it is sent, and what became of each.
 *
 * Always true:
 *   - a task is checked before it joins a batch, so that it cannot spoil the others' frame: topic and content are right, and every text of
 * JSON that is put in as it came is one value;
 *   - a batch goes out when the turn ends, or when it is full (the daemon's limits.batch, or OMC_BATCH_BYTES); tasks keep their order;
 *   - each task has its id before it goes out, and a batch that was not answered goes out again as the same bytes: never lost, and where it
 * is doubled, both have the same id. With an idempotency key it is not doubled either: the daemon answers with the first.
 *
 * A blocking publish has batches of its own, so that it can take them back when it gives up before they are sent.
 */
#include "internal.h"

enum {
        CONTENT_DEPTH = OM_DEPTH_MAX - 5, /* body, params, tasks, task, payload */
        MANY_BATCH = 200,                 /* of omni_publish_many(): large enough to share a commit, small enough to overlap */
        MANY_IN_FLIGHT = 16,              /* batches */
};

/* -- one task ------------------------------------------------------------------------------------------------------ */

static void put_text(struct om_buf *b, struct om_span label, const char *value) {
        if (!value)
                return;
        om_buf_put_span(b, label);
        om_buf_json_string(b, value, strlen(value));
}
#define PUT_TEXT(b, name, value) put_text((b), OM_SPAN(",\"" name "\":"), (value))

static int put_json(
        omni_client *c, struct om_buf *b, const char *name, struct om_span label, struct om_span value, unsigned depth, unsigned types) {
        struct om_json_value v;
        struct om_json j;
        om_json_init(&j, value, depth);
        if (om_json_value(&j, &v) < 0 || om_json_finish(&j) < 0) {
                struct om_error e = OM_ERROR_INIT;
                om_json_check(value, depth, &e);
                return omc_fail(c, -EINVAL, "%s: %s", name, e.message);
        }
        if (!(v.type & types))
                return omc_fail(c, -EINVAL, "%s: not %s", name, om_json_type_name(types));
        om_buf_put_span(b, label);
        om_buf_put_span(b, value);
        return 0;
}

static int put_more(omni_client *c, struct om_buf *b, const omni_publish_options *o, unsigned depth) {
        PUT_TEXT(b, "key", o->key);
        PUT_TEXT(b, "idempotency_key", o->idempotency_key);
        PUT_TEXT(b, "correlation_id", o->correlation_id);
        PUT_TEXT(b, "causation_id", o->causation_id);
        PUT_TEXT(b, "source", o->source);
        PUT_TEXT(b, "tenant_id", o->tenant_id);
        PUT_TEXT(b, "traceparent", o->traceparent);
        if (o->headers && put_json(c, b, "headers", OM_SPAN(",\"headers\":"), om_span_of(o->headers), depth, OM_JSON_OBJECT) < 0)
                return -EINVAL;
        if (o->priority)
                om_buf_printf(b, ",\"priority\":%d", o->priority);
        if (o->ttl_ms)
                om_buf_printf(b, ",\"ttl_ms\":%lld", (long long) o->ttl_ms);
        if (o->delay_ms)
                om_buf_printf(b, ",\"delay_ms\":%lld", (long long) o->delay_ms);
        return 0;
}

int omc_put_task(omni_client *c, struct om_buf *b, const omni_publish_options *options, unsigned depth) {
        omni_publish_options copy = OMNI_PUBLISH_OPTIONS_INIT;
        const omni_publish_options *o = options;
        struct om_error e = OM_ERROR_INIT;
        if (!o || o->size < sizeof(*o)) {
                omc_copy_options(&copy, sizeof(copy), options);
                o = &copy;
        }
        struct om_span topic = om_span_of(o->topic);
        if (om_topic_check(topic, "topic", &e) < 0)
                return omc_fail_error(c, -EINVAL, &e);
        if (!o->content)
                return omc_fail(c, -EINVAL, "content is missing: it is JSON text, \"null\" at least");
        if (o->id && om_name_check(om_span_of(o->id), "id", &e) < 0)
                return omc_fail_error(c, -EINVAL, &e);
        struct om_span content = { o->content, o->content_len == OMNI_STR ? strlen(o->content) : o->content_len };
        om_buf_lit(b, "{\"id\":");
        if (o->id) {
                om_buf_json_string(b, o->id, strlen(o->id));
        } else {
                char id[OM_ID_LEN + 1];
                om_task_id_new(id);
                om_buf_putc(b, '"');
                om_buf_put(b, id, OM_ID_LEN);
                om_buf_putc(b, '"');
        }
        om_buf_lit(b, ",\"topic\":");
        om_buf_json_span(b, topic);
        if (put_json(c, b, "content", OM_SPAN(",\"payload\":{\"content\":"), content, depth, OM_JSON_ANY) < 0)
                return -EINVAL;
        PUT_TEXT(b, "reply_to", o->reply_to);
        if (o->webhook &&
                put_json(c, b, "webhook", OM_SPAN(",\"webhook\":"), om_span_of(o->webhook), depth, OM_JSON_STRING | OM_JSON_OBJECT) < 0)
                return -EINVAL;
        om_buf_putc(b, '}');
        if (put_more(c, b, o, depth) < 0)
                return -EINVAL;
        om_buf_putc(b, '}');
        return 0;
}

/* -- a batch ------------------------------------------------------------------------------------------------------- */

static void done_publish(omni_client *c, struct omc_call *call, struct om_span answer);

static struct omc_call *batch_new(omni_client *c) {
        struct omc_call *call = omc_call_new(c, OMC_PUBLISH);
        if (!call)
                return NULL;
        call->repeat = true;
        call->done = done_publish;
        om_rpc_begin_request(&call->frame, call->id, "task.publish");
        om_buf_lit(&call->frame, "{\"tasks\":[");
        return call;
}

/* Appends a task to a batch, or leaves the batch as it was. */
static int batch_add(omni_client *c, struct omc_call *call, const omni_publish_options *task, void (*fn)(void), void *user) {
        struct om_buf *b = &call->frame;
        size_t mark = b->len;
        struct omc_entry *entry = omc_entry_add(call);
        if (!entry)
                return omc_fail(c, -ENOMEM, "out of memory");
        if (call->n_entries > 1)
                om_buf_putc(b, ',');
        int r = omc_put_task(c, b, task, CONTENT_DEPTH);
        if (!om_buf_ok(b))
                r = omc_fail(c, -ENOMEM, "out of memory");
        else if (r == 0 && b->len - mark + 256 > c->frame_max)
                r = omc_fail(c, -ENOBUFS, "the task has %zu bytes; a frame has %zu at most", b->len - mark, c->frame_max);
        if (r < 0) {
                b->failed = false; /* what stood there before still does */
                b->len = mark;
                call->n_entries--;
                return r;
        }
        entry->fn = fn;
        entry->user = user;
        call->n_fns += fn != NULL;
        return 0;
}

static bool batch_full(const omni_client *c, const struct omc_call *call, size_t max) {
        return call->n_entries >= (max < c->batch_max ? max : c->batch_max) || call->frame.len >= OMC_BATCH_BYTES;
}

static int batch_queue(omni_client *c, struct omc_call *call) {
        om_buf_lit(&call->frame, "]}");
        int r = omc_call_queue(c, call, false);
        if (r == -EMSGSIZE) {
                r = -ENOBUFS;
                om_error_set(&call->error, OM_LIMIT, "above the daemon's limit of %zu bytes a frame", c->frame_max);
        } else if (r < 0) {
                om_error_set(&call->error, OM_INTERNAL, "out of memory");
        }
        if (r < 0)
                omc_call_finish(c, call, r, OM_SPAN_NONE);
        return r;
}

int omc_publish_close(omni_client *c) {
        struct omc_call *call = c->open_publish;
        c->open_publish = NULL;
        if (!call)
                return 0;
        c->bytes -= call->frame.len; /* as omni_publish_async() counted it; the queue counts it anew */
        return batch_queue(c, call);
}

/* -- what became of it --------------------------------------------------------------------------------------------- */

static void tell(omni_client *c, struct omc_entry *entry, int status, const char *id, const char *error) {
        if (entry->fn)
                ((omni_published_fn *) entry->fn)(c, status, id, error, entry->user);
}

/* One element of `results`: {id}, {id, duplicate} or {error}. Members that it does not know it steps over. False: it cannot be read. */
static bool tell_result(omni_client *c, struct omc_entry *entry, struct om_json *j) {
        struct om_json_value key, v, id = { 0 }, error = { 0 };
        bool duplicate = false;
        if (om_json_enter_object(j) < 0)
                return false;
        int r;
        while ((r = om_json_next_key(j, &key)) > 0) {
                if (om_json_value(j, &v) < 0)
                        return false;
                if (om_json_string_is(key, "id"))
                        id = v;
                else if (om_json_string_is(key, "error"))
                        error = v;
                else if (om_json_string_is(key, "duplicate"))
                        duplicate = v.type == OM_JSON_TRUE;
        }
        if (r < 0)
                return false;
        if (error.type == OM_JSON_OBJECT) {
                struct om_error e = OM_ERROR_INIT;
                int status = om_rpc_parse_error(error.text, &e);
                tell(c, entry, status < 0 ? status : -EIO, NULL, e.message);
                return true;
        }
        char text[6 * OMNI_ID_SIZE]; /* six characters of JSON are one byte at worst */
        size_t n = id.type == OM_JSON_STRING && id.text.len <= sizeof(text) ? om_json_decode(id, text) : 0;
        if (n == 0 || n >= OMNI_ID_SIZE) {
                tell(c, entry, -EPROTO, NULL, "the daemon answered a publish without an id");
        } else {
                text[n] = '\0';
                tell(c, entry, duplicate, text, NULL);
        }
        return true;
}

static void done_publish(omni_client *c, struct omc_call *call, struct om_span answer) {
        struct om_json_value results;
        struct om_json j;
        size_t i = 0;
        bool readable = call->status == 0 && omc_get(answer, "results", OM_JSON_ARRAY, &results);
        if (readable) {
                om_json_init_valid(&j, results.text);
                om_json_enter_array(&j);
                while (i < call->n_entries && om_json_next_element(&j) > 0 && tell_result(c, &call->entries[i], &j))
                        i++;
        }
        int status = call->status < 0 ? call->status : -EPROTO;
        const char *error = call->status < 0 ? call->error.message : "the daemon answered for fewer tasks than were published";
        for (; i < call->n_entries; i++)
                tell(c, &call->entries[i], status, NULL, error);
        struct omc_waiter *w = call->owner;
        if (w)
                w->left--;
        omc_call_free(c, call);
}

/* -- without waiting ----------------------------------------------------------------------------------------------- */

int omni_publish_async(omni_client *c, const omni_publish_options *task, omni_published_fn *fn, void *user) {
        if (c->open_publish && batch_full(c, c->open_publish, SIZE_MAX)) {
                int r = omc_publish_close(c);
                if (r < 0)
                        return omc_fail(c, r, "out of memory");
        }
        if (c->n_calls >= c->options.pending_max || c->bytes >= c->options.buffer_max)
                return omc_fail(c, -ENOBUFS, "too much is unanswered: let omni_process() or omni_run_once() work, then try again");
        if (!c->open_publish && !(c->open_publish = batch_new(c)))
                return omc_fail(c, -ENOMEM, "out of memory");
        struct omc_call *call = c->open_publish;
        size_t before = call->n_entries ? call->frame.len : 0;
        int r = batch_add(c, call, task, (void (*)(void)) fn, user);
        if (call->n_entries == 0) {
                omc_call_free(c, call);
                c->open_publish = NULL;
        }
        if (r == 0) {
                c->bytes += call->frame.len - before;
                c->wanted = true;
        }
        return r;
}

/* -- waiting ------------------------------------------------------------------------------------------------------- */

static void copy_text(char *into, size_t size, const char *text) {
        size_t n = text ? strnlen(text, size - 1) : 0;
        memcpy(into, text ? text : "", n);
        into[n] = '\0';
}

static void set_result(omni_publish_result *r, int status, const char *id, const char *error) {
        r->status = status;
        copy_text(r->id, sizeof(r->id), id);
        copy_text(r->error, sizeof(r->error), error);
}

static void keep_result(omni_client *c, int status, const char *id, const char *error, void *user) { set_result(user, status, id, error); }

/* What every entry says while it is not answered. */
static const int unanswered = INT32_MIN;

/* Fills batches from tasks[*at…] while the window has room. */
static int fill_window(
        omni_client *c, struct omc_waiter *w, const omni_publish_options *tasks, size_t n, size_t *at, omni_publish_result *results) {
        size_t stride = tasks->size;
        while (*at < n && w->left < MANY_IN_FLIGHT) {
                struct omc_call *call = batch_new(c);
                if (!call)
                        return omc_fail(c, -ENOMEM, "out of memory");
                call->immediate = true;
                call->owner = w;
                while (*at < n && !batch_full(c, call, MANY_BATCH)) {
                        const void *task = (const char *) (const void *) tasks + *at * stride;
                        omni_publish_result *result = &results[(*at)++];
                        int r = batch_add(c, call, task, (void (*)(void)) keep_result, result);
                        if (r < 0)
                                set_result(result, r, NULL, c->error.message);
                }
                if (call->n_entries == 0) {
                        omc_call_free(c, call);
                        continue;
                }
                w->left++;
                batch_queue(c, call); /* a failure is in the results */
        }
        return 0;
}

/* Gives up: what is not answered gets `status`, or, when the daemon may have it, says so. */
static void give_up(omni_client *c, struct omc_waiter *w, int *status, omni_publish_result *results, size_t n) {
        struct om_error e = c->error;
        if (omc_detach(c, w) && *status != -ECANCELED && *status != -EPROTO) {
                *status = -ETIMEDOUT;
                om_error_prefix(&c->error, "no answer came, and the task may or may not have been published");
                e = c->error;
        }
        for (size_t i = 0; i < n; i++)
                if (results[i].status == unanswered)
                        set_result(&results[i], *status, NULL, e.message);
}

static int64_t publish_wait(omni_client *c, const omni_publish_options *tasks, size_t n, omni_publish_result *results) {
        struct omc_waiter w = { .left = 0 };
        size_t at = 0;
        omc_close_batches(c);
        for (size_t i = 0; i < n; i++)
                results[i].status = unanswered;
        int r = 0;
        while (r == 0 && (at < n || w.left)) {
                r = fill_window(c, &w, tasks, n, &at, results);
                if (r < 0 || !w.left)
                        continue;
                /* One answer is enough to go on filling. */
                w.enough = at < n ? w.left - 1 : 0;
                r = omc_wait(c, &w, omc_deadline(c), c->options.connect_timeout_ms);
        }
        if (r < 0)
                give_up(c, &w, &r, results, n);
        return r;
}

int64_t omni_publish_many(omni_client *c, const omni_publish_options *tasks, size_t n, omni_publish_result *ret_results) {
        if (n == 0)
                return 0;
        if (!tasks || !ret_results || tasks->size == 0)
                return omc_fail(c, -EINVAL, "tasks and results are needed, and size in each task (OMNI_PUBLISH_OPTIONS_INIT)");
        int64_t r = publish_wait(c, tasks, n, ret_results);
        if (r < 0)
                return r;
        int64_t published = 0;
        for (size_t i = 0; i < n; i++) {
                if (ret_results[i].status >= 0)
                        published++;
                else
                        omc_fail(c, ret_results[i].status, "%s", ret_results[i].error);
        }
        return published;
}

int omni_publish(omni_client *c, const omni_publish_options *task, char ret_id[OMNI_ID_SIZE]) {
        omni_publish_result result;
        if (!task || task->size == 0)
                return omc_fail(c, -EINVAL, "a task needs options made with OMNI_PUBLISH_OPTIONS_INIT");
        int64_t r = publish_wait(c, task, 1, &result);
        if (r < 0)
                return (int) r;
        if (result.status < 0)
                return omc_fail(c, result.status, "%s", result.error);
        if (ret_id)
                memcpy(ret_id, result.id, sizeof(result.id));
        return result.status;
}

int omni_publish_json(omni_client *c, const char *topic, const char *content_json, char ret_id[OMNI_ID_SIZE]) {
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        task.topic = topic;
        task.content = content_json;
        return omni_publish(c, &task, ret_id);
}
