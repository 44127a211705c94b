/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json_scan against jansson: both say the same of validity, and every value that they find is the same. They part by design, and only,
 * here:
 *
 *   - jansson drops a zero byte behind a number or a word, where RFC 8259 has no place for one: we must refuse any text with a zero byte,
 *     whatever jansson says of it;
 *   - it reads 2048 levels; we read what the caller allows, and OM_JSON_DEPTH_LIMIT at most;
 *   - told to, it refuses repeated members, which we carry as they came;
 *   - it refuses \u0000 in keys, and numbers beyond its types.
 *
 * A text where they part is held to the rule that parts them, and is not compared further.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "../../proto/json_scan.h"
#include "../../proto/rpc.h"
#include "fuzz.h"

static void compare(struct om_json *j, const json_t *tree);

/* A number that we write reads back as the same one. */
static void write_again(double d) {
        struct om_buf b = OM_BUF_INIT;
        struct om_json j;
        struct om_json_value v;
        double back;

        om_buf_json_double(&b, d);
        om_json_init(&j, om_buf_span(&b), 1);
        MUST(om_buf_ok(&b) && om_json_value(&j, &v) == 0 && om_json_finish(&j) == 0);
        MUST(om_json_double(v, &back) == 0 && back == d);
        om_buf_clear(&b);
        if (d > -9e15 && d < 9e15) {
                om_buf_json_time(&b, (int64_t) d);
                MUST(om_json_check(om_buf_span(&b), 1, NULL) == 0);
        }
        om_buf_deinit(&b);
}

static void compare_scalar(struct om_json_value v, const json_t *tree) {
        struct om_arena arena = { 0 };
        int64_t i;
        double d;

        switch (json_typeof(tree)) {
        case JSON_STRING: {
                struct om_span s = om_json_string(v, &arena);
                MUST(v.type == OM_JSON_STRING && s.len == json_string_length(tree) && memcmp(s.p, json_string_value(tree), s.len) == 0);
                break;
        }
        case JSON_INTEGER:
                MUST(v.type == OM_JSON_NUMBER && om_json_int64(v, &i) == 0 && i == json_integer_value(tree));
                break;
        case JSON_REAL:
                MUST(v.type == OM_JSON_NUMBER && om_json_double(v, &d) == 0 && d == json_real_value(tree));
                write_again(d);
                break;
        case JSON_TRUE:
                MUST(v.type == OM_JSON_TRUE);
                break;
        case JSON_FALSE:
                MUST(v.type == OM_JSON_FALSE);
                break;
        default:
                MUST(v.type == OM_JSON_NULL);
        }
        om_arena_deinit(&arena);
}

static void compare_object(struct om_json *j, const json_t *tree) {
        struct om_arena arena = { 0 };
        struct om_json_value key;
        size_t n = 0;
        int r;

        MUST(om_json_enter_object(j) == 0);
        while ((r = om_json_next_key(j, &key)) == 1) {
                struct om_span name = om_json_string(key, &arena);
                const json_t *member = json_object_getn(tree, name.p, name.len);
                MUST(member);
                compare(j, member);
                n++;
        }
        MUST(r == 0 && n == json_object_size(tree));
        om_arena_deinit(&arena);
}

static void compare(struct om_json *j, const json_t *tree) {
        struct om_json_value v;
        size_t n = 0;
        int r;

        if (json_is_object(tree)) {
                compare_object(j, tree);
        } else if (json_is_array(tree)) {
                MUST(om_json_enter_array(j) == 0);
                while ((r = om_json_next_element(j)) == 1)
                        compare(j, json_array_get(tree, n++));
                MUST(r == 0 && n == json_array_size(tree));
        } else {
                MUST(om_json_value(j, &v) == 0);
                compare_scalar(v, tree);
        }
}

static unsigned depth_of(const json_t *tree) {
        unsigned deepest = 0, depth;
        const char *key;
        json_t *member;
        size_t i;

        if (!json_is_object(tree) && !json_is_array(tree))
                return 0;
        json_object_foreach((json_t *) tree, key, member) deepest = (depth = depth_of(member)) > deepest ? depth : deepest;
        json_array_foreach(tree, i, member) deepest = (depth = depth_of(member)) > deepest ? depth : deepest;
        return deepest + 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct om_span text = { (const char *) data, size };
        struct om_json j;
        struct om_json_value v;
        struct om_error e = OM_ERROR_INIT;
        json_error_t why;

        om_json_init(&j, text, OM_DEPTH_MAX);
        int valid = om_json_value(&j, &v) == 0 && om_json_finish(&j) == 0;
        MUST(valid == (om_json_check(text, OM_DEPTH_MAX, &e) == 0));
        MUST(valid || e.message[0]);
        if (valid) { /* what was accepted can be stepped over without checking, to the same end */
                struct om_json again;
                struct om_json_value w;
                om_json_init_valid(&again, v.text);
                MUST(om_json_value(&again, &w) == 0 && w.text.p == v.text.p && w.text.len == v.text.len && w.type == v.type);
                MUST(om_json_finish(&again) == 0);
        }
        if (size && memchr(data, 0, size)) {
                MUST(!valid);
                return 0;
        }
        json_t *tree = json_loadb((const char *) data, size, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
        if (tree && valid) {
                om_json_init(&j, text, OM_DEPTH_MAX);
                compare(&j, tree);
        } else if (tree) {
                unsigned depth = depth_of(tree);
                MUST(depth > OM_DEPTH_MAX);
                MUST((om_json_check(text, depth, &e) == 0) == (depth <= OM_JSON_DEPTH_LIMIT));
        } else if (valid) {
                enum json_error_code code = json_error_code(&why);
                MUST(code == json_error_duplicate_key || code == json_error_numeric_overflow || code == json_error_null_byte_in_key);
        }
        json_decref(tree);
        return 0;
}
