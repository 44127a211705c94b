/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An answer as a tree: --format tree.
 *
 * What is simple stands on the line of its object; objects and arrays are branches. An element of an array goes by its name, agent, id or
 * topic. An object whose only branch is an array shows that array's elements as its own: topics → groups.
 */
#include "doc.h"
#include "text.h"
#include "view.h"

enum { VALUE_MAX = 72 }; /* columns of a text value in a line */

struct tree {
        struct ctl *ctl;
        struct om_buf prefix; /* what stands before the lines of the present depth */
};

/* The member by which an element is called; NULL: none. */
static const char *label_member(struct om_json_value v) {
        static const char *const members[] = { "name", "agent", "task_id", "id", "entry", "topic", "key", NULL };

        for (size_t i = 0; members[i]; i++) {
                struct om_json_value m = doc_get(v, members[i]);

                if (doc_there(m) && doc_scalar(m)) {
                        return members[i];
                }
        }
        return NULL;
}

static void put_simple(struct ctl *ctl, struct om_json_value v, enum ctl_style style) {
        struct om_buf text = OM_BUF_INIT, safe = OM_BUF_INIT;
        struct om_arena arena = { 0 };

        text_put_safe(&safe, doc_text(v, &arena));
        text_put_cut(&text, om_buf_span(&safe), ctl->out_tty ? VALUE_MAX : 1u << 30, ctl->ascii);
        ctl_style(ctl, &ctl->out, style);
        om_buf_put_span(&ctl->out, om_buf_span(&text));
        ctl_style_end(ctl, &ctl->out);
        om_arena_deinit(&arena);
        om_buf_deinit(&text);
        om_buf_deinit(&safe);
}

/* An array of simple values stands on a line as they do. */
static bool is_simple(struct om_json_value v) {
        struct doc_each each = doc_each(v);

        if (v.type != OM_JSON_ARRAY) {
                return doc_scalar(v);
        }
        while (doc_next(&each)) {
                if (!doc_scalar(each.value)) {
                        return false;
                }
        }
        return true;
}

static void put_inline(struct ctl *ctl, struct om_json_value v, const char *but) {
        struct doc_each each = doc_each(v);
        const char *gap = "  ";

        while (v.type == OM_JSON_OBJECT && doc_next(&each)) {
                if (!is_simple(each.value) || !doc_there(each.value) || (but && om_json_string_is(each.key, but)) ||
                        (each.value.type == OM_JSON_ARRAY && doc_count(each.value) == 0)) {
                        continue;
                }
                om_buf_puts(&ctl->out, gap);
                gap = ctl->ascii ? ", " : " · ";
                put_simple(ctl, each.key, STYLE_DIM);
                om_buf_putc(&ctl->out, ' ');
                if (each.value.type == OM_JSON_ARRAY) {
                        struct doc_each element = doc_each(each.value);
                        const char *comma = "";

                        while (doc_next(&element)) {
                                om_buf_puts(&ctl->out, comma);
                                put_simple(ctl, element.value, STYLE_NONE);
                                comma = ", ";
                        }
                } else {
                        put_simple(ctl, each.value, view_status_style(each.value));
                }
        }
}

static void put_children(struct tree *t, struct om_json_value v, bool root);

/* One node: its label, what is simple, and its branches below. */
static void put_node(struct tree *t, struct om_json_value label, struct om_json_value v, const char *label_is, size_t number) {
        struct ctl *ctl = t->ctl;

        if (label.type) {
                put_simple(ctl, label, STYLE_NAME);
        } else if (!doc_scalar(v)) {
                om_buf_printf(&ctl->out, "#%zu", number);
        }
        if (doc_scalar(v)) {
                om_buf_puts(&ctl->out, label.type ? "  " : "");
                put_simple(ctl, v, view_status_style(v));
        } else {
                put_inline(ctl, v, label_is);
        }
        om_buf_putc(&ctl->out, '\n');
        if (!doc_scalar(v)) {
                put_children(t, v, false);
        }
}

/* The branches of `v`; of an object whose only branch is an array, that array. */
static struct om_json_value branches(struct om_json_value v) {
        struct doc_each each = doc_each(v);
        struct om_json_value only = { 0 };
        size_t n = 0;

        if (v.type != OM_JSON_OBJECT) {
                return v;
        }
        while (doc_next(&each)) {
                if (!is_simple(each.value)) {
                        only = each.value;
                        n++;
                }
        }
        return n == 1 && only.type == OM_JSON_ARRAY ? only : v;
}

static bool is_branch(const struct doc_each *each, bool root) {
        return each->object ? (root || !is_simple(each->value)) && doc_there(each->value) : true;
}

static void put_children(struct tree *t, struct om_json_value v, bool root) {
        struct om_json_value of = root ? v : branches(v);
        struct doc_each each = doc_each(of), count = each;
        size_t n = 0, i = 0, len = t->prefix.len;

        while (doc_next(&count)) {
                n += is_branch(&count, root);
        }
        while (doc_next(&each)) {
                const char *label_is = each.object ? NULL : label_member(each.value);
                struct om_json_value label = each.object ? each.key
                        : label_is                       ? doc_get(each.value, label_is)
                                                         : (struct om_json_value){ 0 };
                bool ascii = t->ctl->ascii;

                if (!is_branch(&each, root)) {
                        continue;
                }
                i++;
                om_buf_put_span(&t->ctl->out, om_buf_span(&t->prefix));
                if (!root) {
                        om_buf_puts(&t->ctl->out, ascii ? (i == n ? "`- " : "|- ") : i == n ? "└─ " : "├─ ");
                        om_buf_puts(&t->prefix, i == n ? "   " : ascii ? "|  " : "│  ");
                }
                put_node(t, label, each.value, label_is, i);
                t->prefix.len = len;
        }
}

void view_put_tree(struct ctl *ctl, struct om_json_value v) {
        struct tree t = { .ctl = ctl };

        if (doc_scalar(v)) {
                put_simple(ctl, v, STYLE_NONE);
                om_buf_putc(&ctl->out, '\n');
        } else {
                put_children(&t, v, v.type == OM_JSON_OBJECT);
        }
        ctl->out.failed |= t.prefix.failed;
        om_buf_deinit(&t.prefix);
}
