/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vectors of proto/vectors, run through the code in proto/: what any client may test itself with must hold here first.
 * Each entry is told by its name when it fails. Run from the top folder of the project.
 */
#include "../../proto/frame.h"
#include "../../proto/rpc.h"
#include "../../proto/task.h"
#include "../lib/suite.h"

#include <check.h>
#include <errno.h>
#include <jansson.h>

#define FOLDER "proto/vectors/"

static json_t *load(const char *path) {
        json_error_t error;
        json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
        ck_assert_msg(root != NULL, "%s: %s", path, error.text);
        return root;
}

static const char *text_of(json_t *entry, const char *name) {
        const char *text = json_string_value(json_object_get(entry, name));
        ck_assert_msg(text != NULL, "%s: no \"%s\"", json_string_value(json_object_get(entry, "name")), name);
        return text;
}

static int base64_digit(char c) {
        const char *digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", *at = c ? strchr(digits, c) : NULL;
        return at ? (int) (at - digits) : -1;
}

static void put_base64(struct om_buf *b, const char *text) {
        unsigned bits = 0, n = 0;
        for (; *text && *text != '='; text++) {
                int digit = base64_digit(*text);
                ck_assert_int_ge(digit, 0);
                bits = (bits << 6 | (unsigned) digit) & 0xffff;
                n += 6;
                if (n >= 8)
                        om_buf_putc(b, (char) (bits >> (n -= 8)));
        }
}

/* The bytes of `name`, or of `name`_base64. */
static struct om_buf bytes_of(json_t *entry, const char *name, const char *base64_name) {
        struct om_buf b = OM_BUF_INIT;
        json_t *text = json_object_get(entry, name);
        if (text)
                om_buf_put(&b, json_string_value(text), json_string_length(text));
        else
                put_base64(&b, text_of(entry, base64_name));
        ck_assert(om_buf_ok(&b));
        return b;
}

static void check_error(json_t *expected, const char *name, const struct om_error *e) {
        ck_assert_msg(e->code == json_integer_value(json_object_get(expected, "code")), "%s: code %d (%s)", name, e->code, e->message);
        ck_assert_msg(strcmp(om_kind_name(e->kind), text_of(expected, "kind")) == 0, "%s: kind %s", name, om_kind_name(e->kind));
        ck_assert_msg(strlen(e->message) > 8, "%s: no message", name);
        json_t *check = json_string(e->message);
        ck_assert_msg(check != NULL, "%s: the message is not UTF-8", name);
        json_decref(check);
}

/* As the daemon's side of the envelope: 0 with a request or notification, or an error that is to be sent. */
static int read_request(struct om_span body, struct om_rpc *r, struct om_error *e) {
        int rc = om_rpc_parse(body, r, e);
        if (rc == 0 && (r->type == OM_RPC_RESULT || r->type == OM_RPC_ERROR))
                return om_error_set_code(e, OM_CODE_REQUEST, OM_INVALID, "message: a reply, and nothing was asked");
        return rc;
}

static bool is_answered(int rc, const struct om_rpc *r, const struct om_error *e) {
        return !(r->type == OM_RPC_NOTIFICATION && (rc == 0 || e->code == OM_CODE_PARAMS));
}

static void check_reply(json_t *reply, const char *name, bool envelope, int rc, const struct om_rpc *r, const struct om_error *e) {
        if (json_is_null(reply)) {
                ck_assert_msg(!is_answered(rc, r, e), "%s: it would be answered", name);
                return;
        }
        ck_assert_msg(is_answered(rc, r, e), "%s: it would not be answered", name);
        struct om_span id = r->id.p ? r->id : OM_SPAN("null");
        ck_assert_msg(om_span_is(id, text_of(reply, "id_json")), "%s: id %.*s", name, OM_PRI(id));
        if (envelope && json_object_get(reply, "code")) {
                ck_assert_msg(rc < 0, "%s: accepted", name);
                check_error(reply, name, e);
        } else
                ck_assert_msg(rc == 0, "%s: refused: %s", name, e->message);
}

static int check_frame(json_t *entry) {
        const char *name = text_of(entry, "name"), *end = text_of(entry, "end");
        struct om_buf b = bytes_of(entry, "bytes", "bytes_base64");
        json_t *replies = json_object_get(entry, "replies");
        size_t at = 0, bodies = 0, answered = 0;
        struct om_span body;
        struct om_error e;
        int r;
        while ((r = om_frame_peek(b.data ? b.data + at : "", b.len - at, OM_FRAME_MAX_DEFAULT, &body, &e)) > 0) {
                struct om_rpc m;
                int rc = read_request(body, &m, &e);
                if (is_answered(rc, &m, &e))
                        check_reply(json_array_get(replies, answered++), name, true, rc, &m, &e);
                at += OM_FRAME_HEADER + body.len;
                bodies++;
        }
        ck_assert_msg(bodies == (size_t) json_integer_value(json_object_get(entry, "bodies")), "%s: %zu bodies", name, bodies);
        if (strcmp(end, "closed") == 0) {
                ck_assert_msg(r < 0, "%s: framed", name);
                json_t *last = json_array_get(replies, answered++);
                ck_assert_str_eq(text_of(last, "id_json"), "null");
                check_error(last, name, &e);
        } else {
                ck_assert_msg(r == 0, "%s: %s", name, e.message);
                ck_assert_msg((at == b.len) == (strcmp(end, "open") == 0) || b.len == 0, "%s: not %s", name, end);
        }
        ck_assert_msg(answered == json_array_size(replies), "%s: %zu replies", name, answered);
        om_buf_deinit(&b);
        return r < 0;
}

START_TEST(test_frames_are_read_as_the_vectors_say) {
        json_t *root = load(FOLDER "frames.json"), *entry;
        size_t i;
        int broken = 0;
        json_array_foreach(root, i, entry) broken += check_frame(entry);
        ck_assert_int_ge(broken, 10);
        json_decref(root);
}
END_TEST

START_TEST(test_messages_are_read_as_the_vectors_say) {
        json_t *root = load(FOLDER "messages.json"), *entry;
        size_t i, refused = 0;
        json_array_foreach(root, i, entry) {
                struct om_buf b = bytes_of(entry, "body", "body_base64");
                struct om_error e = OM_ERROR_INIT;
                struct om_rpc r;
                int rc = read_request(om_buf_span(&b), &r, &e);
                bool envelope = strcmp(text_of(entry, "layer"), "envelope") == 0;
                check_reply(json_object_get(entry, "reply"), text_of(entry, "name"), envelope, rc, &r, &e);
                refused += rc < 0;
                om_buf_deinit(&b);
        }
        ck_assert_uint_ge(refused, 100);
        json_decref(root);
}
END_TEST

/* Accepted: the content is where the vector says, and the record is the same task. */
static void check_valid_task(json_t *entry, struct om_span text) {
        const char *name = text_of(entry, "name");
        struct om_buf content = bytes_of(entry, "content", "content_base64"), record = OM_BUF_INIT, again = OM_BUF_INIT;
        struct om_task t, u;
        struct om_error e = OM_ERROR_INIT;
        char id[OM_ID_LEN + 1];
        ck_assert_msg(om_task_parse(text, "task", &t, &e) == 0, "%s: %s", name, e.message);
        ck_assert_msg(om_span_eq(t.content, om_buf_span(&content)), "%s: content %.*s", name, OM_PRI(t.content));
        om_task_id_new(id);
        if (!t.id.p)
                t.id = (struct om_span){ id, OM_ID_LEN };
        om_task_write(&record, &t);
        ck_assert_msg(om_json_check(om_buf_span(&record), OM_DEPTH_MAX, &e) == 0, "%s: record: %s", name, e.message);
        ck_assert_msg(om_task_parse(om_buf_span(&record), "record", &u, &e) == 0, "%s: record: %s", name, e.message);
        ck_assert_msg(om_span_eq(u.content, om_buf_span(&content)), "%s: content of the record %.*s", name, OM_PRI(u.content));
        om_task_write(&again, &u);
        ck_assert_msg(om_span_eq(om_buf_span(&record), om_buf_span(&again)), "%s: the record changed", name);
        om_task_deinit(&t);
        om_task_deinit(&u);
        om_buf_deinit(&content);
        om_buf_deinit(&record);
        om_buf_deinit(&again);
}

START_TEST(test_tasks_are_read_as_the_vectors_say) {
        json_t *root = load(FOLDER "tasks.json"), *entry;
        size_t i, refused = 0;
        json_array_foreach(root, i, entry) {
                const char *name = text_of(entry, "name");
                struct om_buf b = bytes_of(entry, "task", "task_base64");
                struct om_error e = OM_ERROR_INIT;
                ck_assert_msg(om_json_check(om_buf_span(&b), OM_DEPTH_MAX, &e) == 0, "%s: %s", name, e.message);
                if (json_is_true(json_object_get(entry, "valid")))
                        check_valid_task(entry, om_buf_span(&b));
                else {
                        struct om_task t;
                        ck_assert_msg(om_task_parse(om_buf_span(&b), "task", &t, &e) == -EINVAL, "%s: accepted", name);
                        check_error(entry, name, &e);
                        ck_assert_msg(strstr(e.message, text_of(entry, "message_has")) != NULL, "%s: message \"%s\"", name, e.message);
                        ck_assert_msg(strncmp(e.message, "task", 4) == 0, "%s: message \"%s\"", name, e.message);
                        refused++;
                }
                om_buf_deinit(&b);
        }
        ck_assert_uint_ge(refused, 100);
        json_decref(root);
}
END_TEST

START_TEST(test_topics_are_judged_as_the_vectors_say) {
        json_t *root = load(FOLDER "topics.json"), *topic;
        size_t i;
        json_array_foreach(json_object_get(root, "valid"), i, topic) {
                struct om_span s = { json_string_value(topic), json_string_length(topic) };
                struct om_error e = OM_ERROR_INIT;
                ck_assert_msg(om_topic_check(s, "topic", &e) == 0, "%.*s: %s", OM_PRI(s), e.message);
        }
        json_array_foreach(json_object_get(root, "invalid"), i, topic) {
                struct om_span s = { json_string_value(topic), json_string_length(topic) };
                struct om_error e = OM_ERROR_INIT;
                ck_assert_msg(om_topic_check(s, "topic", &e) == -EINVAL, "%.*s: accepted", OM_PRI(s));
                ck_assert_int_eq(e.kind, OM_INVALID);
        }
        json_decref(root);
}
END_TEST

START_TEST(test_patterns_match_as_the_vectors_say) {
        json_t *root = load(FOLDER "patterns.json"), *entry;
        size_t i;
        json_array_foreach(root, i, entry) {
                const char *pattern = text_of(entry, "pattern"), *topic = text_of(entry, "topic");
                ck_assert_msg(
                        om_topic_is_pattern(om_span_of(pattern)) == json_is_true(json_object_get(entry, "is_pattern")), "%s", pattern);
                ck_assert_msg(om_topic_matches(om_span_of(pattern), om_span_of(topic)) == json_is_true(json_object_get(entry, "matches")),
                        "%s on %s", pattern, topic);
        }
        json_decref(root);
}
END_TEST

int main(void) {
        Suite *s = suite_create("vectors");
        TCase *c = tcase_create("vectors");
        tcase_add_test(c, test_frames_are_read_as_the_vectors_say);
        tcase_add_test(c, test_messages_are_read_as_the_vectors_say);
        tcase_add_test(c, test_tasks_are_read_as_the_vectors_say);
        tcase_add_test(c, test_topics_are_judged_as_the_vectors_say);
        tcase_add_test(c, test_patterns_match_as_the_vectors_say);
        suite_add_tcase(s, c);
        return om_test_main(s);
}
