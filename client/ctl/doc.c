/* SPDX-License-Identifier: Apache-2.0 */
/* Values as spans of checked text: see doc.h. */
#include "doc.h"
#include "ctl.h"
#include "text.h"

struct om_json_value doc_root(struct om_span text) {
        struct om_json j;
        struct om_json_value v = { 0 };

        om_json_init_valid(&j, text);
        if (text.len == 0 || om_json_value(&j, &v) < 0) {
                return (struct om_json_value){ 0 };
        }
        return v;
}

struct doc_each doc_each(struct om_json_value v) {
        struct doc_each e = { .object = v.type == OM_JSON_OBJECT };

        e.end = v.type != OM_JSON_OBJECT && v.type != OM_JSON_ARRAY;
        if (!e.end) {
                om_json_init_valid(&e.json, v.text);
                e.end = (e.object ? om_json_enter_object(&e.json) : om_json_enter_array(&e.json)) < 0;
        }
        return e;
}

bool doc_next(struct doc_each *e) {
        if (e->end) {
                return false;
        }
        int r = e->object ? om_json_next_key(&e->json, &e->key) : om_json_next_element(&e->json);
        if (r <= 0 || om_json_value(&e->json, &e->value) < 0) {
                e->end = true;
                return false;
        }
        return true;
}

struct om_json_value doc_get(struct om_json_value v, const char *path) {
        while (*path) {
                size_t len = strcspn(path, ".");
                struct doc_each each = doc_each(v);
                char name[64];

                if (v.type != OM_JSON_OBJECT || len >= sizeof(name)) {
                        return (struct om_json_value){ 0 };
                }
                memcpy(name, path, len);
                name[len] = '\0';
                v = (struct om_json_value){ 0 };
                while (doc_next(&each)) {
                        if (om_json_string_is(each.key, name)) {
                                v = each.value;
                                break;
                        }
                }
                path += len + (path[len] == '.');
        }
        return v;
}

bool doc_there(struct om_json_value v) { return v.type && v.type != OM_JSON_NULL; }

size_t doc_count(struct om_json_value v) {
        struct doc_each each = doc_each(v);
        size_t n = 0;

        while (doc_next(&each)) {
                n++;
        }
        return n;
}

double doc_number(struct om_json_value v, double otherwise) {
        double d;
        return v.type == OM_JSON_NUMBER && om_json_double(v, &d) == 0 ? d : otherwise;
}

int64_t doc_int(struct om_json_value v, int64_t otherwise) {
        int64_t i;
        return v.type == OM_JSON_NUMBER && om_json_int64(v, &i) == 0 ? i : otherwise;
}

bool doc_true(struct om_json_value v) { return v.type == OM_JSON_TRUE; }

bool doc_is(struct om_json_value v, const char *string) { return v.type == OM_JSON_STRING && om_json_string_is(v, string); }

struct om_span doc_text(struct om_json_value v, struct om_arena *arena) {
        struct om_span s = v.text;

        if (v.type == OM_JSON_STRING) {
                s = om_json_string(v, arena);
        }
        return s.p ? s : OM_SPAN("");
}

bool doc_scalar(struct om_json_value v) { return v.type && v.type != OM_JSON_ARRAY && v.type != OM_JSON_OBJECT; }

/* -- writing ------------------------------------------------------------------------------------------------------- */

/* A scalar or a key. Characters above ASCII stand in strings only, so an escape is allowed where one is. */
static void put_scalar(struct om_buf *b, struct om_json_value v, unsigned flags) {
        size_t len;

        if (!(flags & DOC_SAFE)) {
                om_buf_put_span(b, v.text);
                return;
        }
        for (size_t i = 0; i < v.text.len; i += len) {
                uint32_t c = text_char(v.text.p + i, v.text.len - i, &len);

                if (text_char_safe(c)) {
                        om_buf_put(b, v.text.p + i, len);
                } else if (c < 0x10000) {
                        om_buf_printf(b, "\\u%04x", c);
                } else {
                        om_buf_printf(b, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
                }
        }
}

void doc_put_line(struct om_buf *b, struct om_json_value v, unsigned flags) {
        struct doc_each each = doc_each(v);
        bool object = v.type == OM_JSON_OBJECT, first = true;

        if (!object && v.type != OM_JSON_ARRAY) {
                put_scalar(b, v, flags);
                return;
        }
        om_buf_putc(b, object ? '{' : '[');
        while (doc_next(&each)) {
                if (!first) {
                        om_buf_putc(b, ',');
                }
                first = false;
                if (object) {
                        put_scalar(b, each.key, flags);
                        om_buf_putc(b, ':');
                }
                doc_put_line(b, each.value, flags);
        }
        om_buf_putc(b, object ? '}' : ']');
}

void doc_put_pretty(struct om_buf *b, struct om_json_value v, unsigned flags, struct ctl *ctl, unsigned indent) {
        struct doc_each each = doc_each(v);
        bool object = v.type == OM_JSON_OBJECT, first = true;

        if (!object && v.type != OM_JSON_ARRAY) {
                put_scalar(b, v, flags);
                return;
        }
        om_buf_putc(b, object ? '{' : '[');
        while (doc_next(&each)) {
                om_buf_puts(b, first ? "\n" : ",\n");
                first = false;
                text_put_spaces(b, indent + 2);
                if (object) {
                        if (ctl) {
                                ctl_style(ctl, b, STYLE_NAME);
                        }
                        put_scalar(b, each.key, flags);
                        if (ctl) {
                                ctl_style_end(ctl, b);
                        }
                        om_buf_puts(b, ": ");
                }
                doc_put_pretty(b, each.value, flags, ctl, indent + 2);
        }
        if (!first) {
                om_buf_putc(b, '\n');
                text_put_spaces(b, indent);
        }
        om_buf_putc(b, object ? '}' : ']');
}
