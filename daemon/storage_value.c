/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether two JSON texts say the same: a storage may give a value back with its members in another order, other white space, or other
 * escapes. Numbers are the same when their text is, or what they round to. Any thread.
 */
#include "../proto/json_scan.h"
#include "storage_internal.h"

enum { DEPTH = 200 };

static bool same_string(struct om_json_value a, struct om_json_value b) {
        struct om_arena arena = { 0 };
        bool same = om_span_eq(a.text, b.text);

        if (!same) {
                struct om_span x = om_json_string(a, &arena), y = om_json_string(b, &arena);

                same = x.p && y.p && om_span_eq(x, y);
        }
        om_arena_deinit(&arena);
        return same;
}

static bool same_number(struct om_json_value a, struct om_json_value b) {
        double x, y;

        return om_span_eq(a.text, b.text) || (om_json_double(a, &x) == 0 && om_json_double(b, &y) == 0 && x == y);
}

static bool same(struct om_json_value a, struct om_json_value b, unsigned depth);

static bool same_arrays(struct om_span a, struct om_span b, unsigned depth) {
        struct om_json x, y;
        struct om_json_value v, w;
        int more;

        om_json_init_valid(&x, a);
        om_json_init_valid(&y, b);
        om_json_enter_array(&x);
        om_json_enter_array(&y);
        while ((more = om_json_next_element(&x)) > 0)
                if (om_json_next_element(&y) <= 0 || om_json_value(&x, &v) < 0 || om_json_value(&y, &w) < 0 || !same(v, w, depth))
                        return false;
        return more == 0 && om_json_next_element(&y) == 0;
}

/* The member called so, however that is spelt. */
static bool find(struct om_span object, struct om_json_value name, struct om_json_value *ret) {
        struct om_json j;
        struct om_json_value key;

        om_json_init_valid(&j, object);
        om_json_enter_object(&j);
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, ret) == 0)
                if (same_string(key, name))
                        return true;
        return false;
}

static size_t count(struct om_span object) {
        struct om_json j;
        struct om_json_value v;
        size_t n = 0;

        om_json_init_valid(&j, object);
        om_json_enter_object(&j);
        while (om_json_next_key(&j, &v) > 0 && om_json_value(&j, &v) == 0)
                n++;
        return n;
}

static bool same_objects(struct om_span a, struct om_span b, unsigned depth) {
        struct om_json j;
        struct om_json_value key, v, w;

        if (count(a) != count(b))
                return false;
        om_json_init_valid(&j, a);
        om_json_enter_object(&j);
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &v) == 0)
                if (!find(b, key, &w) || !same(v, w, depth))
                        return false;
        return true;
}

static bool same(struct om_json_value a, struct om_json_value b, unsigned depth) {
        if (om_span_eq(a.text, b.text))
                return true;
        if (a.type != b.type || depth == 0)
                return false;
        switch (a.type) {
        case OM_JSON_STRING:
                return same_string(a, b);
        case OM_JSON_NUMBER:
                return same_number(a, b);
        case OM_JSON_ARRAY:
                return same_arrays(a.text, b.text, depth - 1);
        case OM_JSON_OBJECT:
                return same_objects(a.text, b.text, depth - 1);
        default:
                return true; /* null, true, false */
        }
}

bool same_value(struct om_span a, struct om_span b) {
        struct om_json x, y;
        struct om_json_value v, w;

        if (om_span_eq(a, b))
                return true;
        om_json_init(&x, a, DEPTH);
        om_json_init(&y, b, DEPTH);
        return om_json_value(&x, &v) == 0 && om_json_value(&y, &w) == 0 && same(v, w, DEPTH);
}
