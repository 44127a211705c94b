/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks: read from a delivery, held, lost.
 *
 * Always true:
 *   - a task is one piece of memory with copies of all that its functions give out, so that it outlives the frame that it came in;
 *   - it is on its agent's list until the user settles it (settle.c); when its lease ends before (`lost`) the pointer stays good, and
 * settling it only frees it; a lost task whose handler was not called yet is dropped at once;
 *   - an agent is never given more than it asked for: a daemon that does so is at fault, and memory stays bounded.
 */
#include "internal.h"

/* -- deliveries ---------------------------------------------------------------------------------------------------- */

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

/* -- lost ---------------------------------------------------------------------------------------------------------- */

void omc_task_free(omni_task *t) {
        if (!t->lost)
                t->agent->held--;
        omc_unlink(&t->link);
        omc_unlink(&t->ready);
        free(t);
}

static void lose(omni_task *t) {
        if (!t->lost)
                t->agent->held--;
        t->lost = true;
}

/* What is lost and was not given to a handler yet: nobody has seen it. */
static void drop_unseen(omni_agent *a) {
        for (struct omc_link *l = a->tasks.next, *next; l != &a->tasks; l = next) {
                next = l->next;
                omni_task *t = omc_of(omni_task, link, l);
                if (t->lost && omc_linked(&t->ready))
                        omc_task_free(t);
        }
}

void omc_agent_lose_tasks(omni_agent *a) {
        for (struct omc_link *l = a->tasks.next; l != &a->tasks; l = l->next)
                lose(omc_of(omni_task, link, l));
        drop_unseen(a);
}

static void lose_delivery(omni_agent *a, uint64_t delivery) {
        for (struct omc_link *l = a->tasks.next; l != &a->tasks; l = l->next) {
                omni_task *t = omc_of(omni_task, link, l);
                if (!t->lost && t->delivery == delivery) {
                        lose(t);
                        return;
                }
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
                if (a)
                        lose_delivery(a, (uint64_t) delivery);
        }
        if (a)
                drop_unseen(a);
        return r;
}

/* -- asking -------------------------------------------------------------------------------------------------------- */

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
