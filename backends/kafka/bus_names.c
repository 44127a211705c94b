/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole of names that were cut (names.h): on a compacted topic, from which every daemon reads what it has not read yet when it sees a
 * name that it does not know. They are shown only: nothing is found by them. So one that could not be written is no error, and stands as it
 * was cut.
 *
 * A record: the key is the name of the Kafka topic, the value {"topic":…,"agent":…}.
 *
 * On the worker of calls.
 */
#include "admin.h"

static struct whole_name *find(struct om_bus *b, const char *kname) {
        struct whole_name *w = NULL;

        HASH_FIND_STR(b->whole_names, kname, w);
        return w;
}

static void keep(struct om_bus *b, struct om_span kname, struct om_span topic, struct om_span agent) {
        struct whole_name *w;

        if (kname.len > KAFKA_NAME_MAX || topic.len > OM_TOPIC_MAX || agent.len > OM_NAME_MAX || !(w = calloc(1, sizeof *w)))
                return;
        snprintf(w->kname, sizeof w->kname, "%.*s", OM_PRI(kname));
        if (find(b, w->kname)) {
                free(w);
                return;
        }
        snprintf(w->topic, sizeof w->topic, "%.*s", OM_PRI(topic));
        snprintf(w->agent, sizeof w->agent, "%.*s", OM_PRI(agent));
        HASH_ADD_STR(b->whole_names, kname, w);
        if (!w->hh.tbl)
                free(w);
}

static void forget_all(struct om_bus *b) {
        struct whole_name *w, *next;

        HASH_ITER (hh, b->whole_names, w, next) {
                HASH_DEL(b->whole_names, w);
                free(w);
        }
        b->whole_next = 0;
}

void kafka_whole_names_free(struct om_bus *b) { forget_all(b); }

static bool take(void *ctx, const rd_kafka_message_t *m) {
        struct om_bus *b = ctx;
        struct om_arena arena = { NULL, 0 };
        struct om_span text = { m->payload, m->len }, names[2] = { OM_SPAN(""), OM_SPAN("") };
        struct om_json_value key, value;
        struct om_json j;

        b->whole_next = m->offset + 1;
        if (m->key && m->payload && om_json_check(text, 10, NULL) == 0) {
                om_json_init_valid(&j, text);
                if (om_json_enter_object(&j) == 0)
                        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &value) == 0)
                                for (int i = 0; i < 2 && value.type == OM_JSON_STRING; i++)
                                        if (om_json_string_is(key, i ? "agent" : "topic"))
                                                names[i] = om_json_string(value, &arena);
                keep(b, (struct om_span){ m->key, m->key_len }, names[0], names[1]);
        }
        om_arena_deinit(&arena);
        return true;
}

static void read_more(struct om_bus *b, const char *kname) {
        struct om_error e = OM_ERROR_INIT;
        int64_t low, high;
        int r = kafka_bounds(b, kname, &low, &high, &e);

        if (r == 0 && high < b->whole_next) /* another topic of this name */
                forget_all(b);
        if (r == 0)
                r = kafka_read(b, kname, 0, b->whole_next > low ? b->whole_next : low, high, take, b, &e);
        if (r < 0)
                om_host_log(b->host, OM_LOG_DEBUG, "%s", e.message);
}

const struct whole_name *kafka_whole_name(struct om_bus *b, const char *kname, bool read) {
        char names[KAFKA_NAME_MAX + 1];
        struct whole_name *w = find(b, kname);

        if (!w && read && kafka_name(names, b->settings.prefix, KAFKA_NAMES, OM_SPAN_NONE, OM_SPAN_NONE)) {
                read_more(b, names);
                w = find(b, kname);
        }
        return w;
}

static bool made(struct om_bus *b, const char *names) {
        struct making m = { .kname = names, .kind = KAFKA_NAMES, .partitions = 1 };
        struct om_error e = OM_ERROR_INIT;
        int r;

        if (b->whole_there)
                return true;
        r = kafka_make_topics(b, &m, 1, &e);
        if (r < 0 || m.status < 0)
                om_host_log(b->host, OM_LOG_DEBUG, "%s", r < 0 ? e.message : m.error.message);
        b->whole_there = r == 0 && m.status == 0;
        return b->whole_there;
}

void kafka_whole_name_note(struct om_bus *b, const char *kname, struct om_span topic, struct om_span agent) {
        char names[KAFKA_NAME_MAX + 1];
        struct om_buf text = OM_BUF_INIT;
        struct kafka_named n;

        if (!kafka_name_read(kname, b->settings.prefix, &n) || (!kafka_name_is_cut(n.topic) && !kafka_name_is_cut(n.agent)) ||
                find(b, kname) || !kafka_name(names, b->settings.prefix, KAFKA_NAMES, OM_SPAN_NONE, OM_SPAN_NONE) || !made(b, names) ||
                kafka_whole_name(b, kname, true))
                return;
        om_buf_lit(&text, "{\"topic\":");
        om_buf_json_span(&text, topic);
        om_buf_lit(&text, ",\"agent\":");
        om_buf_json_span(&text, agent);
        om_buf_lit(&text, "}");
        if (om_buf_ok(&text) &&
                rd_kafka_producev(b->producer, RD_KAFKA_V_TOPIC(names), RD_KAFKA_V_KEY(kname, strlen(kname)),
                        RD_KAFKA_V_VALUE(text.data, text.len), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END) == 0)
                keep(b, om_span_of(kname), topic, agent);
        om_buf_deinit(&text);
}
