/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead letters: the text of one, and which of a dead-letter topic are still there.
 *
 * A dead-letter topic has one partition. A letter's key is the place of its message ("l0:17": offset 17 of partition 0 of the log; "r…": of
 * the retry topic), by which one that was written twice is known. A message with that key and no value takes it out.
 *
 * On the worker of calls, but for kafka_letter().
 */
#include "admin.h"

void kafka_letter(struct om_buf *out, const struct om_dead_letter *l, const struct delivery *d, char *ret_place, size_t size) {
        const struct group *g = d->part->group;

        snprintf(ret_place, size, "%c%d:%lld", d->which == KAFKA_AT_LOG ? 'l' : 'r', (int) d->part->p, (long long) d->offset);
        om_buf_lit(out, "{\"topic\":");
        om_buf_json_span(out, om_span_of(g->topic));
        om_buf_lit(out, ",\"original_stream\":");
        om_buf_json_span(out, om_span_of(d->which == KAFKA_AT_LOG ? g->log : g->kname));
        om_buf_printf(out, ",\"original_id\":\"%d:%lld\",\"failed_message\":", (int) d->part->p, (long long) d->offset);
        om_buf_put_span(out, l->record);
        om_buf_lit(out, ",\"error\":");
        om_buf_json_span(out, l->error);
        om_buf_printf(out, ",\"retry_count\":%u,\"failed_at\":", l->attempts ? l->attempts - 1 : 0);
        om_buf_json_time(out, l->failed_ms);
        om_buf_lit(out, ",\"error_type\":");
        om_buf_json_span(out, l->error_type);
        om_buf_lit(out, ",\"worker\":");
        om_buf_json_span(out, l->worker);
        om_buf_printf(out, ",\"attempts\":%u,\"failed_ms\":%lld}", l->attempts, (long long) l->failed_ms);
}

bool kafka_letter_read(const rd_kafka_message_t *m, struct om_arena *arena, struct om_dead_letter *ret) {
        struct om_span text = om_arena_copy(arena, (struct om_span){ m->payload, m->len });
        static const char *const names[] = { "failed_message", "error", "error_type", "worker", "attempts", "failed_ms" };
        struct om_json_value v[6] = { { 0 } }, key, value;
        struct om_span *const texts[] = { &ret->error, &ret->error_type, &ret->worker };
        struct om_json j;
        char id[24];
        int64_t n = 0;

        if (!m->payload || !text.p || om_json_check(text, 70, NULL) < 0)
                return false;
        om_json_init_valid(&j, text);
        if (om_json_enter_object(&j) < 0)
                return false;
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &value) == 0) /* others may stand there too */
                for (int i = 0; i < 6; i++)
                        if (om_json_string_is(key, names[i]))
                                v[i] = value;
        if (v[0].type != OM_JSON_OBJECT)
                return false;
        snprintf(id, sizeof id, "%lld", (long long) m->offset);
        *ret = (struct om_dead_letter){ .id = om_arena_copy(arena, om_span_of(id)), .record = v[0].text };
        for (int i = 0; i < 3; i++)
                if (v[i + 1].type == OM_JSON_STRING)
                        *texts[i] = om_json_string(v[i + 1], arena);
        if (v[4].type == OM_JSON_NUMBER && om_json_int64(v[4], &n) == 0)
                ret->attempts = (uint32_t) n;
        if (v[5].type == OM_JSON_NUMBER)
                om_json_int64(v[5], &ret->failed_ms);
        return true;
}

/* -- the index -------------------------------------------------------------------------------------------------------------- */

static void empty(struct dead_topic *t) {
        struct dead_entry *e, *next;

        HASH_CLEAR(hh, t->by_place);
        DL_FOREACH_SAFE (t->list, e, next)
                free(e);
        t->list = NULL;
        t->n = 0;
        t->next = 0;
}

void kafka_dead_free(struct om_bus *b) {
        struct dead_topic *t, *next;

        HASH_ITER (hh, b->dead, t, next) {
                HASH_DEL(b->dead, t);
                empty(t);
                free(t);
        }
}

void kafka_dead_forget(struct om_bus *b, const char *kname) {
        struct dead_topic *t = NULL;

        HASH_FIND_STR(b->dead, kname, t);
        if (t)
                empty(t);
}

static bool note(void *ctx, const rd_kafka_message_t *m) {
        struct dead_topic *t = ctx;
        struct dead_entry *e = NULL;
        char place[48];

        t->next = m->offset + 1;
        if (!m->key_len || m->key_len >= sizeof place)
                return true;
        memcpy(place, m->key, m->key_len);
        place[m->key_len] = 0;
        HASH_FIND_STR(t->by_place, place, e);
        if (e && !m->payload) {
                HASH_DEL(t->by_place, e);
                DL_DELETE(t->list, e);
                t->n--;
                free(e);
        } else if (!e && m->payload && (e = calloc(1, sizeof *e))) {
                memcpy(e->place, place, sizeof place);
                e->offset = m->offset;
                HASH_ADD_STR(t->by_place, place, e);
                if (!e->hh.tbl) { /* read again by the next scan */
                        free(e);
                        t->next = m->offset;
                        return false;
                }
                DL_APPEND(t->list, e);
                t->n++;
        }
        return true;
}

int kafka_dead_scan(struct om_bus *b, const char *kname, struct dead_topic **ret, struct om_error *e) {
        struct dead_topic *t = NULL;
        int64_t low, high;
        int r = kafka_bounds(b, kname, &low, &high, e);

        if (r < 0)
                return r;
        HASH_FIND_STR(b->dead, kname, t);
        if (!t) {
                t = calloc(1, sizeof *t);
                if (!t)
                        return om_error_set_errno(e, ENOMEM, "Kafka");
                snprintf(t->kname, sizeof t->kname, "%s", kname);
                HASH_ADD_STR(b->dead, kname, t);
                if (!t->hh.tbl) {
                        free(t);
                        return om_error_set_errno(e, ENOMEM, "Kafka");
                }
        }
        if (high < t->next || low > t->next) /* another topic of this name, or what is gone */
                empty(t);
        r = kafka_read(b, kname, 0, t->next > low ? t->next : low, high, note, t, e);
        *ret = t;
        return r;
}
