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

/* -- base64 ------------------------------------------------------------------------------------------------------------ */

static int sextet(char c) {
        if (c >= 'A' && c <= 'Z')
                return c - 'A';
        if (c >= 'a' && c <= 'z')
                return c - 'a' + 26;
        if (c >= '0' && c <= '9')
                return c - '0' + 52;
        return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool nats_base64_decode(struct om_span text, struct om_buf *out) {
        size_t len = text.len;
        char *to = om_buf_reserve(out, text.len / 4 * 3 + 3);

        if (!to || len % 4)
                return false;
        for (int i = 0; i < 2 && len && text.p[len - 1] == '='; i++)
                len--;
        for (size_t i = 0; i < len; i += 4) {
                size_t n = len - i < 4 ? len - i : 4;
                uint32_t bits = 0;

                for (size_t k = 0; k < 4; k++) {
                        int six = k < n ? sextet(text.p[i + k]) : 0;

                        if (six < 0)
                                return false;
                        bits = bits << 6 | (uint32_t) six;
                }
                for (size_t k = 0; k + 1 < n; k++)
                        *to++ = (char) (bits >> (16 - 8 * k));
        }
        out->len = (size_t) (to - out->data);
        return true;
}
