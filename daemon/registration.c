/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What agent.register is given: read, checked, completed by the daemon's settings, and written as the record that the storage keeps. No
 * state. Called by agents.c. Loop thread.
 */
#include <errno.h>

#include "methods.h"
#include "registration.h"

enum { DESCRIPTION_MAX = 16 << 10 };

int om_param_start(const struct om_json_member *m, enum om_start *ret, int64_t *ret_ms, struct om_error *e) {
        if (m->value.type == 0)
                return 0;
        if (m->value.type == OM_JSON_NUMBER) {
                *ret = OM_START_TIME;
                return om_param_time(m, ret_ms, e);
        }
        if (om_json_string_is(m->value, "first"))
                *ret = OM_START_FIRST;
        else if (om_json_string_is(m->value, "new"))
                *ret = OM_START_NEW;
        else
                return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s must be \"first\", \"new\" or a Unix time in seconds", m->name);
        return 0;
}

static void put_setting(struct om_buf *b, const char *name, int64_t value) {
        om_buf_puts(b, name);
        om_buf_i64(b, value);
}

/* What is in force, defaults included: a listing shows how the group really behaves. */
static void put_config(struct om_buf *b, const struct om_agent_config *config, const struct om_json_member *start) {
        put_setting(b, "{\"prefetch\":", config->prefetch);
        put_setting(b, ",\"dlq_retry_limit\":", config->dlq_retry_limit);
        put_setting(b, ",\"retry_backoff_ms\":", config->retry_backoff_ms);
        put_setting(b, ",\"retry_backoff_max_ms\":", config->retry_backoff_max_ms);
        put_setting(b, ",\"reclaim_idle_ms\":", config->reclaim_idle_ms);
        if (start->value.type != 0) {
                om_buf_lit(b, ",\"start\":");
                om_buf_put_span(b, start->value.text);
        }
        om_buf_puts(b, config->save_results ? ",\"save_results\":true}" : ",\"save_results\":false}");
}

/* Reads `config` and writes it, with what it left out, to the record. */
static int read_config(struct om_call *c, struct om_span text, struct om_agent_config *config, struct om_span *ret_callback,
        struct om_buf *record, struct om_error *e) {
        enum { PREFETCH, RETRIES, BACKOFF, BACKOFF_MAX, RECLAIM, START, SAVE, CALLBACK, N };
        struct om_json_member m[N + 1] = {
                [PREFETCH] = { "prefetch", OM_JSON_NUMBER },
                [RETRIES] = { "dlq_retry_limit", OM_JSON_NUMBER },
                [BACKOFF] = { "retry_backoff_ms", OM_JSON_NUMBER },
                [BACKOFF_MAX] = { "retry_backoff_max_ms", OM_JSON_NUMBER },
                [RECLAIM] = { "reclaim_idle_ms", OM_JSON_NUMBER },
                [START] = { "start", OM_JSON_NUMBER | OM_JSON_STRING },
                [SAVE] = { "save_results", OM_JSON_BOOL },
                [CALLBACK] = { "callback_name", OM_JSON_STRING },
        };
        const struct om_settings *s = c->core->settings;
        int64_t prefetch = s->prefetch, retries = s->dlq_retry_limit;
        int r;

        /* reclaim_idle_ms is off unless asked for: an agent may work as long as its connection lives. (The setting RECLAIM_IDLE is about
         * daemons that died.) */
        *config = (struct om_agent_config){ .retry_backoff_ms = s->retry_backoff_ms,
                .retry_backoff_max_ms = s->retry_backoff_max_ms,
                .start = OM_START_DEFAULT,
                .save_results = true };
        if (text.p && (r = om_json_members(text, "params.config", m, e)) < 0)
                return r;
        if ((r = om_param_int(&m[PREFETCH], 1, OM_PREFETCH_MAX, &prefetch, e)) < 0 ||
                (r = om_param_int(&m[RETRIES], 0, 1000, &retries, e)) < 0 ||
                (r = om_param_int(&m[BACKOFF], 0, 3600000, &config->retry_backoff_ms, e)) < 0 ||
                (r = om_param_int(&m[BACKOFF_MAX], 0, 86400000, &config->retry_backoff_max_ms, e)) < 0 ||
                (r = om_param_int(&m[RECLAIM], 0, OM_DELAY_MAX_MS, &config->reclaim_idle_ms, e)) < 0 ||
                (r = om_param_start(&m[START], &config->start, &config->start_ms, e)) < 0 ||
                (r = om_param_name(&m[CALLBACK], &c->arena, ret_callback, e)) < 0)
                return r;
        config->prefetch = (unsigned) prefetch;
        config->dlq_retry_limit = (unsigned) retries;
        om_param_bool(&m[SAVE], &config->save_results);
        put_config(record, config, &m[START]);
        return 0;
}

static int check_topic(struct om_core *core, struct om_span topic, struct om_error *e) {
        if (!om_topic_is_pattern(topic) || core->bus_ops->capabilities & OM_BUS_PATTERNS)
                return 0;
        return om_error_set(e, OM_UNSUPPORTED, "topic \"%.*s\" is a pattern; the bus \"%s\" has none: register on a topic", OM_PRI(topic),
                core->bus_ops->name);
}

int om_registration_read(struct om_call *c, struct om_span params, struct om_registration *r, struct om_buf *head, struct om_error *e) {
        enum { NAME, TOPIC, DESCRIPTION, TOOLS, WORKER, CONFIG, N };
        struct om_json_member m[N + 1] = {
                [NAME] = { "name", OM_JSON_STRING, true },
                [TOPIC] = { "topic", OM_JSON_STRING, true },
                [DESCRIPTION] = { "description", OM_JSON_STRING },
                [TOOLS] = { "tools", OM_JSON_ARRAY },
                [WORKER] = { "worker", OM_JSON_STRING },
                [CONFIG] = { "config", OM_JSON_OBJECT },
        };
        struct om_span callback = OM_SPAN_NONE, description = OM_SPAN_NONE;
        struct om_buf config = OM_BUF_INIT;
        int res;

        if ((res = om_json_members(params, "params", m, e)) < 0 || (res = om_param_name(&m[NAME], &c->arena, &r->name, e)) < 0 ||
                (res = om_param_topic(&m[TOPIC], &c->arena, &r->topic, e)) < 0 || (res = check_topic(c->core, r->topic, e)) < 0 ||
                (res = om_param_text(&m[DESCRIPTION], DESCRIPTION_MAX, &c->arena, &description, e)) < 0 ||
                (res = om_param_name(&m[WORKER], &c->arena, &r->worker, e)) < 0)
                return res;
        if (!r->worker.p)
                r->worker = om_call_copy(c, om_span_of(om_session_name(c->req->session)));

        res = read_config(c, m[CONFIG].value.type ? m[CONFIG].value.text : OM_SPAN_NONE, &r->config, &callback, &config, e);
        if (res == 0) {
                om_buf_lit(head, "{\"name\":");
                om_buf_json_span(head, r->name);
                om_put_member(head, "topic", r->topic);
                om_put_member(head, "callback_name", callback);
                om_put_member(head, "description", description);
                om_buf_lit(head, ",\"tools\":");
                om_buf_put_span(head, m[TOOLS].value.type ? m[TOOLS].value.text : OM_SPAN("[]"));
                om_buf_lit(head, ",\"config\":");
                om_buf_put_span(head, om_buf_span(&config));
                if (!om_buf_ok(head) || !om_buf_ok(&config) || !r->worker.p)
                        res = om_error_set_errno(e, ENOMEM, "the registration");
        }
        om_buf_deinit(&config);
        return res;
}
