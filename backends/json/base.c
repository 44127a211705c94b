/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The form of NAME.json, read and written: the Python OmniDaemon's, so that either opens the other's folder.
 *
 *   agents.json   {topic: [agent, …]}
 *   results.json  {task_id: {task_id, agent, topic, status, result, saved_at, expires_at, seq, earlier}}
 *   metrics.json  [metric, …]
 *   config.json   {key: value}
 *   keys.json     {key: {value, saved_at, expires_at, seq}}     put_if_absent's; the Python one has none
 *
 * The outer structure is indented by two and each value stands on its line as it came, not indented anew: numbers, escapes and white space
 * of a value survive every rewrite byte for byte. `result` is the newest record of a task, `earlier` an array of the other agents' records
 * in the same form. `agent`, `topic`, `status` and `seq` (the order among what was saved in one millisecond) are ours; where they are
 * missing, as in a file of the Python one, the first three are taken from the record, and the place in the file gives the order. What has
 * no place in that form is not kept over a reopening: when an agent or a setting was saved.
 *
 * An agent stands there as its JSON object, whose `name` is its name; one whose object lacks it or says otherwise is wrapped as
 * {"name": …, "omnidaemon:value": …}.
 *
 * A reading fault names file, line and column, and nothing is changed: somebody has edited the file, and can mend it.
 */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../proto/json_scan.h"
#include "table.h"

enum { DEPTH = 200 }; /* a record nested to the wire's limit, what stands around it, and what people write by hand */
#define WRAPPED "omnidaemon:value"

/* -- reading ------------------------------------------------------------------------------------------------------- */

struct reading {
        struct om_file_table *t;
        struct om_span text;
        unsigned slot;
        struct om_json j;
        struct om_arena arena; /* of the entry that is being read */
        struct om_error *e;
};

static int fault_at(const struct reading *r, const char *p, const char *what) {
        char path[PATH_MAX];
        size_t line = 1;
        const char *start = r->text.p;
        for (const char *n = start; (n = memchr(n, '\n', (size_t) (p - n))); start = ++n)
                line++;
        return om_error_set(r->e, OM_INVALID, "%s, line %zu, column %zu: %s; mend the file or move it away, it was not touched",
                om_file_path(r->t, OM_FILE_BASE, path), line, (size_t) (p - start) + 1, what);
}

static int fault(const struct reading *r) { return fault_at(r, r->j.p, r->j.fault ? r->j.fault : "nested too deep"); }

static int out_of_memory(struct om_error *e) { return om_error_set_errno(e, ENOMEM, "cannot read the JSON storage"); }

static int read_string(struct reading *r, struct om_json_value v, struct om_span *ret) {
        *ret = om_json_string(v, &r->arena);
        return ret->p ? 0 : out_of_memory(r->e);
}

/* Seconds as a number, or null. */
static int read_time(struct reading *r, struct om_json_value v, int64_t *ret_ms) {
        double seconds;
        if (v.type == OM_JSON_NULL)
                return 0;
        if (v.type != OM_JSON_NUMBER || om_json_double(v, &seconds) < 0 || fabs(seconds) > 9.3e15)
                return fault_at(r, v.text.p, "not a time in seconds");
        /* Every time that we can write can be read, the largest included. */
        *ret_ms = seconds >= 9.2e15 ? INT64_MAX : seconds <= -9.2e15 ? INT64_MIN : llround(seconds * 1000);
        return 0;
}

/* What a record says about itself, for fields that nobody has said yet. */
static int read_labels(struct reading *r, struct om_json_value record, struct om_store_entry *entry) {
        struct om_json j;
        struct om_json_value key, v;
        if (record.type != OM_JSON_OBJECT)
                return 0;
        om_json_init_valid(&j, record.text);
        om_json_enter_object(&j);
        while (om_json_next_key(&j, &key) > 0) {
                if (om_json_value(&j, &v) < 0)
                        return fault(r);
                struct om_span *field = NULL;
                if (r->t->kind != OM_STORE_METRICS && om_json_string_is(key, "agent"))
                        field = &entry->name;
                else if (om_json_string_is(key, "topic"))
                        field = &entry->topic;
                else if (om_json_string_is(key, "status"))
                        field = &entry->status;
                int x = 0;
                if (field && !field->p && v.type == OM_JSON_STRING)
                        x = read_string(r, v, field);
                else if (r->t->kind == OM_STORE_METRICS && (om_json_string_is(key, "saved_at") || om_json_string_is(key, "timestamp")) &&
                        v.type == OM_JSON_NUMBER)
                        x = read_time(r, v, &entry->saved_ms);
                if (x < 0)
                        return x;
        }
        return 0;
}

static int add(struct reading *r, const struct om_store_entry *entry, uint64_t sequence, const char *where) {
        struct om_file_table *t = r->t;
        if (entry->key.len > UINT16_MAX || entry->value.len > UINT32_MAX)
                return fault_at(r, where, "too long");
        if (sequence == 0 || om_file_index_taken(&t->index, entry->saved_ms, sequence, NULL))
                sequence = t->next_sequence + 1;
        if (sequence > t->next_sequence)
                t->next_sequence = sequence;
        uint64_t offset = (uint64_t) (entry->value.p - r->text.p);
        return om_file_index_put(&t->index, entry, sequence, OM_FILE_PLACE(r->slot, offset), (uint32_t) entry->value.len) < 0
                ? out_of_memory(r->e)
                : 0;
}

static int read_record(struct reading *r, struct om_json *j, struct om_span key, bool outer);

static int read_earlier(struct reading *r, struct om_json_value v, struct om_span key) {
        struct om_json j;
        if (v.type != OM_JSON_ARRAY)
                return fault_at(r, v.text.p, "not an array");
        om_json_init_valid(&j, v.text);
        om_json_enter_array(&j);
        while (om_json_next_element(&j) > 0) {
                int x = read_record(r, &j, key, false);
                if (x < 0)
                        return x;
        }
        return 0;
}

/* One member of a record's entry. */
static int read_member(struct reading *r, struct om_json_value name, struct om_json_value v, struct om_store_entry *entry,
        struct om_json_value *record, uint64_t *sequence) {
        int64_t number;
        if (om_json_string_is(name, r->t->kind == OM_STORE_KEYS ? "value" : "result"))
                *record = v;
        else if (om_json_string_is(name, "saved_at"))
                return read_time(r, v, &entry->saved_ms);
        else if (om_json_string_is(name, "expires_at"))
                return read_time(r, v, &entry->expires_ms);
        else if (om_json_string_is(name, "agent") && v.type == OM_JSON_STRING)
                return read_string(r, v, &entry->name);
        else if (om_json_string_is(name, "topic") && v.type == OM_JSON_STRING)
                return read_string(r, v, &entry->topic);
        else if (om_json_string_is(name, "status") && v.type == OM_JSON_STRING)
                return read_string(r, v, &entry->status);
        else if (om_json_string_is(name, "seq") && v.type == OM_JSON_NUMBER && om_json_int64(v, &number) == 0 && number > 0 &&
                number < INT64_MAX / 2)
                *sequence = (uint64_t) number;
        return 0;
}

/* An entry of results.json or keys.json; `earlier` is read last, so that it is older where nothing says so. */
static int read_record(struct reading *r, struct om_json *j, struct om_span key, bool outer) {
        struct om_store_entry entry = { .key = key };
        struct om_json_value name, v, record = { 0 }, earlier = { 0 };
        uint64_t sequence = 0;
        const char *where = j->p;
        int more, x = 0;
        if (om_json_enter_object(j) < 0)
                return fault_at(r, j->p, "not an object");
        while ((more = om_json_next_key(j, &name)) > 0) {
                if (om_json_value(j, &v) < 0)
                        return fault_at(r, j->p, j->fault ? j->fault : "nested too deep");
                if (outer && om_json_string_is(name, "earlier"))
                        earlier = v;
                else if ((x = read_member(r, name, v, &entry, &record, &sequence)) < 0)
                        return x;
        }
        if (more < 0)
                return fault_at(r, j->p, j->fault ? j->fault : "nested too deep");
        if (!record.type)
                return fault_at(r, where, r->t->kind == OM_STORE_KEYS ? "an entry without value" : "an entry without result");
        if (earlier.type && (x = read_earlier(r, earlier, key)) < 0)
                return x;
        if (r->t->kind == OM_STORE_RESULTS && (!entry.name.p || !entry.topic.p || !entry.status.p))
                x = read_labels(r, record, &entry);
        entry.value = record.text;
        return x < 0 ? x : add(r, &entry, sequence, where);
}

static int read_setting(struct reading *r, struct om_span key) {
        struct om_json_value v;
        if (om_json_value(&r->j, &v) < 0)
                return fault(r);
        return add(r, &(struct om_store_entry){ .key = key, .value = v.text }, 0, v.text.p);
}

static int read_agent(struct reading *r, struct om_span topic) {
        struct om_json_value agent, name, v;
        struct om_store_entry entry = { .key = topic };
        struct om_json j;
        if (om_json_value(&r->j, &agent) < 0)
                return fault(r);
        if (agent.type != OM_JSON_OBJECT)
                return fault_at(r, agent.text.p, "an agent that is not an object");
        entry.value = agent.text;
        om_json_init_valid(&j, agent.text);
        om_json_enter_object(&j);
        while (om_json_next_key(&j, &name) > 0 && om_json_value(&j, &v) == 0) {
                if (om_json_string_is(name, "name") && v.type == OM_JSON_STRING && read_string(r, v, &entry.name) < 0)
                        return -ENOMEM;
                if (om_json_string_is(name, WRAPPED))
                        entry.value = v.text;
        }
        return add(r, &entry, 0, agent.text.p);
}

static int read_topic(struct reading *r, struct om_span topic) {
        int more, x = 0;
        if (om_json_enter_array(&r->j) < 0)
                return fault_at(r, r->j.p, "the agents of a topic are not an array");
        while ((more = om_json_next_element(&r->j)) > 0 && x == 0)
                x = read_agent(r, topic);
        return more < 0 ? fault(r) : x;
}

static int read_metric(struct reading *r) {
        struct om_json_value v;
        struct om_store_entry entry = { .saved_ms = 0 };
        if (om_json_value(&r->j, &v) < 0)
                return fault(r);
        int x = read_labels(r, v, &entry);
        entry.value = v.text;
        return x < 0 ? x : add(r, &entry, 0, v.text.p);
}

static int read_metrics(struct reading *r) {
        int more, x = 0;
        if (om_json_enter_array(&r->j) < 0)
                return fault_at(r, r->j.p, "not an array");
        while (x == 0 && (more = om_json_next_element(&r->j)) != 0) {
                x = more < 0 ? fault(r) : read_metric(r);
                om_arena_deinit(&r->arena);
        }
        return x;
}

static int read_members(struct reading *r) {
        struct om_json_value name;
        struct om_span key;
        int more, x = 0;
        if (om_json_enter_object(&r->j) < 0)
                return fault_at(r, r->j.p, "not an object");
        while (x == 0 && (more = om_json_next_key(&r->j, &name)) != 0) {
                if (more < 0)
                        return fault(r);
                x = read_string(r, name, &key);
                if (x == 0 && om_file_index_of_key(&r->t->index, key) && r->t->kind != OM_STORE_AGENTS)
                        x = fault_at(r, name.text.p, "this key stands there twice");
                if (x < 0)
                        break;
                if (r->t->kind == OM_STORE_CONFIG)
                        x = read_setting(r, key);
                else if (r->t->kind == OM_STORE_AGENTS)
                        x = read_topic(r, key);
                else
                        x = read_record(r, &r->j, key, true);
                om_arena_deinit(&r->arena);
        }
        return x;
}

int om_file_base_read(struct om_file_table *t, struct om_span text, unsigned slot, struct om_error *e) {
        struct reading r = { .t = t, .text = text, .slot = slot, .e = e };
        om_json_init(&r.j, text, DEPTH);
        if (om_json_peek(&r.j) == 0 && r.j.p == r.j.end)
                return 0; /* an empty file: what touch(1) leaves */
        int x = t->kind == OM_STORE_METRICS ? read_metrics(&r) : read_members(&r);
        if (x == 0 && om_json_finish(&r.j) < 0)
                x = fault(&r);
        om_arena_deinit(&r.arena);
        return x;
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

int om_file_writer_flush(struct om_file_table *t, struct om_file_writer *w, struct om_error *e) {
        char path[PATH_MAX];
        if (!om_buf_ok(&w->buf))
                return om_error_set_errno(e, ENOMEM, "cannot write %s", om_file_path(t, OM_FILE_BASE_NEW, path));
        for (size_t done = 0; done < w->buf.len;) {
                ssize_t n = om_file_write(w->fd, w->buf.data + done, w->buf.len - done, (off_t) w->flushed);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return om_file_error(e, n < 0 ? errno : ENOSPC, "write", om_file_path(t, OM_FILE_BASE_NEW, path));
                done += (size_t) n;
                w->flushed += (uint64_t) n;
        }
        om_buf_clear(&w->buf);
        return 0;
}

/*
 * Reads a value, through the window where it can: one system call for hundreds. What may still change is read by itself: the journal that
 * is being written (a write that failed is cut off, and another takes its place) and the new file.
 */
static int read_value(struct om_file_table *t, struct om_file_writer *w, const struct om_file_entry *entry, char *to, struct om_error *e) {
        enum { WINDOW = 256 * 1024 };
        unsigned slot = om_file_slot(entry);
        uint64_t at = om_file_offset(entry);
        struct om_buf *window = &w->window;
        if (slot == t->journal || slot == w->slot || entry->length > WINDOW / 4 || !om_buf_reserve(window, WINDOW - window->len))
                return om_file_table_read_into(t, entry, to, e);
        if (w->window_slot != slot || at < w->window_at || at + entry->length > w->window_at + window->len) {
                ssize_t n = pread(t->fds[slot], window->data, WINDOW, (off_t) at);
                w->window_slot = slot;
                w->window_at = at;
                window->len = n > 0 ? (size_t) n : 0;
                if (window->len < entry->length)
                        return om_file_table_read_into(t, entry, to, e); /* which says what is wrong */
        }
        memcpy(to, window->data + (at - w->window_at), entry->length);
        return 0;
}

/* Appends an entry's value; it stands in the new file from now on. */
static int put_value(struct om_file_table *t, struct om_file_writer *w, struct om_file_entry *entry, struct om_error *e) {
        char *to = om_buf_reserve(&w->buf, entry->length);
        int r = to ? read_value(t, w, entry, to, e) : om_error_set_errno(e, ENOMEM, "cannot write %s.json", t->name);
        if (r == 0) {
                entry->place = OM_FILE_PLACE(w->slot, w->flushed + w->buf.len);
                w->buf.len += entry->length;
        }
        return r;
}

static void put_name(struct om_buf *b, struct om_span indent, struct om_span name) {
        om_buf_lit(b, ",\n");
        om_buf_put_span(b, indent);
        om_buf_put_span(b, name);
}

/* `name` with what stands around it: `"name": `. */
static void put_member(struct om_buf *b, struct om_span indent, struct om_span name, struct om_span text) {
        if (!text.len)
                return;
        put_name(b, indent, name);
        om_buf_json_span(b, text);
}

static void put_times(struct om_buf *b, struct om_span indent, const struct om_file_entry *entry) {
        put_name(b, indent, OM_SPAN("\"saved_at\": "));
        om_buf_json_time(b, entry->saved_ms);
        if (entry->expires_ms) {
                put_name(b, indent, OM_SPAN("\"expires_at\": "));
                om_buf_json_time(b, entry->expires_ms);
        }
        put_name(b, indent, OM_SPAN("\"seq\": "));
        om_buf_u64(b, entry->sequence);
}

static int put_record(
        struct om_file_table *t, struct om_file_writer *w, struct om_span indent, struct om_file_entry *entry, struct om_error *e) {
        struct om_buf *b = &w->buf;
        om_buf_put_span(b, indent);
        om_buf_puts(b, t->kind == OM_STORE_KEYS ? "\"value\": " : "\"result\": ");
        int r = put_value(t, w, entry, e);
        if (r == 0)
                om_index_file_add(t, &w->index, entry);
        put_member(b, indent, OM_SPAN("\"agent\": "), om_file_name(entry));
        put_member(b, indent, OM_SPAN("\"topic\": "), om_file_topic(entry));
        put_member(b, indent, OM_SPAN("\"status\": "), om_file_status(entry));
        put_times(b, indent, entry);
        return r;
}

bool om_file_eligible(const struct om_file_table *t, const struct om_file_entry *entry) {
        return entry->sequence <= t->snapshot && om_file_alive(entry, t->started_ms);
}

static int write_result(struct om_file_table *t, struct om_file_writer *w, struct om_file_entry *newest, struct om_error *e) {
        struct om_span key = om_file_key(newest);
        bool earlier = false;
        om_buf_lit(&w->buf, "{\n    \"task_id\": ");
        om_buf_json_span(&w->buf, key);
        om_buf_lit(&w->buf, ",\n");
        int r = put_record(t, w, OM_SPAN("    "), newest, e);
        for (struct om_file_entry *x = om_file_index_of_key(&t->index, key); x && r == 0; x = om_file_index_next_of_key(&t->index, x)) {
                if (x == newest || !om_file_eligible(t, x))
                        continue;
                om_buf_puts(&w->buf, earlier ? ",\n      {\n" : ",\n    \"earlier\": [\n      {\n");
                r = put_record(t, w, OM_SPAN("        "), x, e);
                om_buf_lit(&w->buf, "\n      }");
                earlier = true;
        }
        om_buf_puts(&w->buf, earlier ? "\n    ]\n  }" : "\n  }");
        return r;
}

static bool is_newest(const struct om_file_table *t, const struct om_file_entry *entry) {
        struct om_span key = om_file_key(entry);
        for (struct om_file_entry *x = om_file_index_of_key(&t->index, key); x; x = om_file_index_next_of_key(&t->index, x))
                if (x != entry && om_file_eligible(t, x) && om_file_is_newer(&t->index, x, entry))
                        return false;
        return true;
}

static void next_line(struct om_file_writer *w, const char *indent) {
        om_buf_puts(&w->buf, w->some ? ",\n" : "\n");
        om_buf_puts(&w->buf, indent);
        w->some = true;
}

void om_file_base_begin(struct om_file_table *t, struct om_file_writer *w) {
        om_buf_putc(&w->buf, t->kind == OM_STORE_METRICS ? '[' : '{');
}

void om_file_base_end(struct om_file_table *t, struct om_file_writer *w) {
        om_buf_puts(&w->buf, w->some ? "\n" : "");
        om_buf_puts(&w->buf, t->kind == OM_STORE_METRICS ? "]\n" : "}\n");
}

int om_file_base_write(struct om_file_table *t, struct om_file_writer *w, struct om_file_entry *entry, struct om_error *e) {
        if (t->kind == OM_STORE_RESULTS && !is_newest(t, entry))
                return 0;
        next_line(w, "  ");
        if (t->kind == OM_STORE_METRICS)
                return put_value(t, w, entry, e);
        om_buf_json_span(&w->buf, om_file_key(entry));
        om_buf_lit(&w->buf, ": ");
        if (t->kind == OM_STORE_CONFIG)
                return put_value(t, w, entry, e);
        if (t->kind == OM_STORE_RESULTS)
                return write_result(t, w, entry, e);
        om_buf_lit(&w->buf, "{\n");
        int r = put_record(t, w, OM_SPAN("    "), entry, e);
        om_buf_lit(&w->buf, "\n  }");
        return r;
}

/* Whether an agent's object says the name by which it is kept, and can stand in the file as it is. */
static bool says_its_name(struct om_span value, struct om_span name) {
        struct om_json j;
        struct om_json_value key, v;
        struct om_arena arena = { 0 };
        bool says = false;
        om_json_init_valid(&j, value);
        if (om_json_enter_object(&j) == 0)
                while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &v) == 0) {
                        if (om_json_string_is(key, "name"))
                                says = v.type == OM_JSON_STRING && om_span_eq(om_json_string(v, &arena), name);
                        if (om_json_string_is(key, WRAPPED)) {
                                says = false;
                                break;
                        }
                }
        om_arena_deinit(&arena);
        return says;
}

static int write_agent(struct om_file_table *t, struct om_file_writer *w, struct om_file_entry *entry, struct om_error *e) {
        struct om_arena arena = { 0 };
        struct om_span value;
        int r = om_file_table_read(t, entry, &arena, &value, e);
        if (r < 0)
                return r;
        bool plain = says_its_name(value, om_file_name(entry));
        if (!plain) {
                om_buf_lit(&w->buf, "{\"name\": ");
                om_buf_json_span(&w->buf, om_file_name(entry));
                om_buf_lit(&w->buf, ", \"" WRAPPED "\": ");
        }
        entry->place = OM_FILE_PLACE(w->slot, w->flushed + w->buf.len);
        om_buf_put_span(&w->buf, value);
        om_arena_deinit(&arena);
        if (!plain)
                om_buf_putc(&w->buf, '}');
        return 0;
}

static int by_topic(const void *a, const void *b) {
        const struct om_file_entry *x = *(struct om_file_entry *const *) a, *y = *(struct om_file_entry *const *) b;
        struct om_span p = om_file_key(x), q = om_file_key(y);
        int order = memcmp(p.p, q.p, p.len < q.len ? p.len : q.len);
        if (order == 0)
                order = (p.len > q.len) - (p.len < q.len);
        return order ? order : (x->sequence > y->sequence) - (x->sequence < y->sequence);
}

int om_file_base_write_agents(struct om_file_table *t, struct om_file_writer *w, struct om_error *e) {
        size_t n = 0;
        struct om_file_entry **all = malloc((t->index.n + 1) * sizeof(struct om_file_entry *));
        if (!all)
                return om_error_set_errno(e, ENOMEM, "cannot write agents.json");
        for (struct om_file_entry *x = t->index.first[0]; x; x = x->newer[0])
                all[n++] = x;
        qsort(all, n, sizeof(all[0]), by_topic);
        int r = 0;
        for (size_t i = 0; i < n && r == 0; i++) {
                struct om_span topic = om_file_key(all[i]);
                bool first = i == 0 || !om_span_eq(om_file_key(all[i - 1]), topic);
                if (first) {
                        next_line(w, "  ");
                        om_buf_json_span(&w->buf, topic);
                        om_buf_lit(&w->buf, ": [\n    ");
                } else
                        om_buf_lit(&w->buf, ",\n    ");
                r = write_agent(t, w, all[i], e);
                if (i + 1 == n || !om_span_eq(om_file_key(all[i + 1]), topic))
                        om_buf_lit(&w->buf, "\n  ]");
        }
        free(all);
        return r;
}
