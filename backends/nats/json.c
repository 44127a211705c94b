/* SPDX-License-Identifier: Apache-2.0 */
/* Looking into answers: see json.h. */
#include "json.h"

bool nats_json_ok(struct om_span text) { return om_json_check(text, 64, NULL) == 0; }

void nats_walk_init(struct nats_walk *w, struct om_span text) {
        om_json_init_valid(&w->json, text.p ? text : OM_SPAN("[]"));
        w->object = om_json_peek(&w->json) == OM_JSON_OBJECT;
        if (w->object)
                om_json_enter_object(&w->json);
        else if (om_json_peek(&w->json) == OM_JSON_ARRAY)
                om_json_enter_array(&w->json);
        else
                nats_walk_init(w, OM_SPAN("[]"));
}

bool nats_walk_next(struct nats_walk *w, struct om_span *ret_value, struct om_json_value *ret_key) {
        struct om_json_value key = { 0 }, value;
        int r = w->object ? om_json_next_key(&w->json, &key) : om_json_next_element(&w->json);

        if (r <= 0 || om_json_value(&w->json, &value) < 0)
                return false;
        *ret_value = value.text;
        if (ret_key)
                *ret_key = key;
        return true;
}

struct om_span nats_json_get(struct om_span object, const char *path) {
        while (object.p && *path) {
                size_t len = strcspn(path, ".");
                struct om_span found = OM_SPAN_NONE, value;
                struct om_json_value key;
                struct nats_walk w;

                nats_walk_init(&w, object);
                while (w.object && !found.p && nats_walk_next(&w, &value, &key))
                        if (om_span_eq(om_json_inner(key), (struct om_span){ path, len }))
                                found = value;
                object = found;
                path += len + (path[len] == '.');
        }
        return object;
}

uint64_t nats_json_u64(struct om_span object, const char *path) {
        struct om_span s = nats_json_get(object, path);
        uint64_t n = 0;

        for (size_t i = 0; i < s.len && s.p[i] >= '0' && s.p[i] <= '9'; i++)
                n = n * 10 + (uint64_t) (s.p[i] - '0');
        return n;
}

bool nats_json_true(struct om_span object, const char *path) { return om_span_is(nats_json_get(object, path), "true"); }

struct om_span nats_json_text(struct om_span object, const char *path, struct om_arena *arena) {
        struct om_span s = nats_json_get(object, path);

        if (s.len < 2 || s.p[0] != '"')
                return OM_SPAN_NONE;
        return om_json_string((struct om_json_value){ OM_JSON_STRING, memchr(s.p, '\\', s.len) != NULL, s }, arena);
}
