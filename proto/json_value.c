/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands in the values that the scanner found: strings decoded, numbers read, an object's members by name.
 *
 * Always true: everything here works on text that om_json_* accepted, and reads inside the value's span only. Numbers are
 * read exactly (rounded once, to the nearest double), however many digits they have and whatever the locale of the process.
 *
 * Called where requests and tasks are taken apart, on any thread.
 */
#include "json_scan.h"
#include "locale_c.h"
#include "text.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* -- strings ------------------------------------------------------------------------------------------------------- */

static unsigned hex4(const char *p) {
        unsigned value = 0;
        for (int i = 0; i < 4; i++)
                value = value << 4 | (unsigned) (p[i] <= '9' ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
        return value;
}

static size_t put_utf8(char *out, unsigned c) {
        if (c < 0x80) {
                out[0] = (char) c;
                return 1;
        }
        if (c < 0x800) {
                out[0] = (char) (0xc0 | c >> 6);
                out[1] = (char) (0x80 | (c & 0x3f));
                return 2;
        }
        if (c < 0x10000) {
                out[0] = (char) (0xe0 | c >> 12);
                out[1] = (char) (0x80 | (c >> 6 & 0x3f));
                out[2] = (char) (0x80 | (c & 0x3f));
                return 3;
        }
        out[0] = (char) (0xf0 | c >> 18);
        out[1] = (char) (0x80 | (c >> 12 & 0x3f));
        out[2] = (char) (0x80 | (c >> 6 & 0x3f));
        out[3] = (char) (0x80 | (c & 0x3f));
        return 4;
}

/* Decodes the escape at *p (at its backslash) into `out`, at most 4 bytes, and steps over it. An escape is longer than what it means. */
static size_t decode_escape(const char **p, char *out) {
        char c = (*p)[1];
        if (c != 'u') {
                *p += 2;
                out[0] = c;
                switch (c) {
                case 'b':
                        out[0] = '\b';
                        break;
                case 'f':
                        out[0] = '\f';
                        break;
                case 'n':
                        out[0] = '\n';
                        break;
                case 'r':
                        out[0] = '\r';
                        break;
                case 't':
                        out[0] = '\t';
                        break;
                }
                return 1;
        }
        unsigned unit = hex4(*p + 2);
        *p += 6;
        if (unit >= 0xd800 && unit <= 0xdbff) {
                unit = 0x10000 + ((unit & 0x3ff) << 10) + (hex4(*p + 2) & 0x3ff);
                *p += 6;
        }
        return put_utf8(out, unit);
}

size_t om_json_decode(struct om_json_value v, char *out) {
        struct om_span inner = om_json_inner(v);
        const char *p = inner.p, *end = p + inner.len;
        char *to = out;
        while (p < end) {
                const char *run = p;
                p = v.escaped ? memchr(p, '\\', (size_t) (end - p)) : NULL;
                if (!p)
                        p = end;
                memcpy(to, run, (size_t) (p - run));
                to += p - run;
                if (p < end)
                        to += decode_escape(&p, to);
        }
        return (size_t) (to - out);
}

struct om_span om_json_string(struct om_json_value v, struct om_arena *arena) {
        if (!v.escaped)
                return om_json_inner(v);
        char *out = om_arena_alloc(arena, v.text.len);
        if (!out)
                return OM_SPAN_NONE;
        return (struct om_span){ out, om_json_decode(v, out) };
}

bool om_json_string_is(struct om_json_value v, const char *text) {
        struct om_span inner = om_json_inner(v);
        const char *p = inner.p, *end = p + inner.len;
        size_t left = strlen(text);
        if (!v.escaped)
                return inner.len == left && memcmp(p, text, left) == 0;
        while (p < end) {
                char c[4] = { *p };
                size_t n = 1;
                if (*p == '\\')
                        n = decode_escape(&p, c);
                else
                        p++;
                if (n > left || memcmp(c, text, n) != 0)
                        return false;
                text += n;
                left -= n;
        }
        return left == 0;
}

/* -- numbers ------------------------------------------------------------------------------------------------------- */

int om_json_int64(struct om_json_value v, int64_t *ret) {
        if (v.type != OM_JSON_NUMBER) /* an absent member has no text at all */
                return -EINVAL;
        const char *p = v.text.p, *end = p + v.text.len;
        bool negative = *p == '-', fits = true;
        int64_t value = 0;
        for (p += negative; p < end; p++) {
                if (*p < '0' || *p > '9')
                        return -EINVAL;
                /* counted downwards, where there is room for one more than upwards */
                fits = fits && !__builtin_mul_overflow(value, 10, &value) && !__builtin_sub_overflow(value, *p - '0', &value);
        }
        if (!fits || (!negative && value == INT64_MIN))
                return -ERANGE;
        *ret = negative ? value : -value;
        return 0;
}

locale_t om_locale_c(void) {
        static locale_t c;
        locale_t made = __atomic_load_n(&c, __ATOMIC_ACQUIRE), none = (locale_t) 0;
        if (made)
                return made;
        made = newlocale(LC_ALL_MASK, "C", (locale_t) 0);
        if (made && !__atomic_compare_exchange_n(&c, &none, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
                freelocale(made);
                made = none; /* another thread's, which came first */
        }
        return made;
}

/*
 * A number's significant digits and its exponent of ten. 768 digits and one more that says "something follows" decide the
 * nearest double (no double lies nearer to the middle of its neighbours than that), so longer numbers are cut there.
 */
enum { DIGITS_MAX = 768 };
struct decimal {
        char digits[DIGITS_MAX + 1];
        int n;
        int64_t exponent; /* value = digits * 10^exponent */
};

static void decimal_digit(struct decimal *d, char c, bool after_point) {
        if (d->n == 0 && c == '0') { /* leading zero */
                d->exponent -= after_point;
                return;
        }
        if (d->n < DIGITS_MAX) {
                d->digits[d->n++] = c;
                d->exponent -= after_point;
                return;
        }
        if (c != '0') {
                if (d->n == DIGITS_MAX) {
                        d->digits[d->n++] = '1';
                        d->exponent--; /* the digit stands behind all others */
                }
        }
        d->exponent += !after_point;
}

static void decimal_read(struct decimal *d, const char *p, const char *end) {
        bool after_point = false;
        d->n = 0;
        d->exponent = 0;
        for (; p < end && (*p | 0x20) != 'e'; p++) {
                if (*p == '.')
                        after_point = true;
                else
                        decimal_digit(d, *p, after_point);
        }
        if (p == end)
                return;
        bool negative = *++p == '-';
        if (*p == '-' || *p == '+')
                p++;
        int64_t exponent = 0;
        for (; p < end; p++)
                if (exponent < INT64_C(1000000000000)) /* beyond this no number of digits in memory makes up for it */
                        exponent = exponent * 10 + (*p - '0');
        d->exponent += negative ? -exponent : exponent;
}

int om_json_double(struct om_json_value v, double *ret) {
        static const double tens[] = { 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17,
                1e18, 1e19, 1e20, 1e21, 1e22 };
        if (v.type != OM_JSON_NUMBER)
                return -EINVAL;
        bool negative = v.text.p[0] == '-';
        struct decimal d;
        decimal_read(&d, v.text.p + negative, v.text.p + v.text.len);
        double value = 0;
        if (d.n > 0 && d.n <= 15 && d.exponent >= -22 && d.exponent <= 22) {
                /* both are doubles exactly, so the one operation rounds once (Clinger, "How to read floating point numbers accurately") */
                uint64_t digits = 0;
                for (int i = 0; i < d.n; i++)
                        digits = digits * 10 + (uint64_t) (d.digits[i] - '0');
                value = d.exponent < 0 ? (double) digits / tens[-d.exponent] : (double) digits * tens[d.exponent];
        } else if (d.n > 0) {
                char text[DIGITS_MAX + 16];
                int exponent = d.exponent > 5000 ? 5000 : d.exponent < -5000 ? -5000 : (int) d.exponent;
                memcpy(text, d.digits, (size_t) d.n);
                char *p = text + d.n;
                *p++ = 'e';
                *p++ = exponent < 0 ? '-' : '+';
                exponent = abs(exponent);
                for (int place = 1000; place > 0; place /= 10)
                        *p++ = (char) ('0' + exponent / place % 10);
                *p = '\0';
                locale_t c = om_locale_c();
                value = c ? strtod_l(text, NULL, c) : strtod(text, NULL); /* no decimal point in it: no locale matters much */
        }
        if (isinf(value))
                return -ERANGE;
        *ret = negative ? -value : value;
        return 0;
}

/* -- objects by name ----------------------------------------------------------------------------------------------- */

enum { SHOWN_MAX = 60 }; /* bytes of a foreign name that a message shows */

static const struct {
        unsigned type;
        const char *name;
} type_names[] = {
        { OM_JSON_BOOL, "a boolean" },
        { OM_JSON_TRUE, "true" },
        { OM_JSON_FALSE, "false" },
        { OM_JSON_NUMBER, "a number" },
        { OM_JSON_STRING, "a string" },
        { OM_JSON_ARRAY, "an array" },
        { OM_JSON_OBJECT, "an object" },
        { OM_JSON_NULL, "null" },
};
enum { N_TYPE_NAMES = sizeof type_names / sizeof type_names[0] };

const char *om_json_type_name(unsigned type) {
        for (int i = 0; i < N_TYPE_NAMES; i++)
                if (type_names[i].type == type)
                        return type_names[i].name;
        return type == 0 ? "nothing" : "a value";
}

/* "a string", "a string or an object", "a number, a string or null" */
static void types_text(unsigned types, char *out, size_t size) {
        const char *names[N_TYPE_NAMES];
        int n = 0;
        for (int i = 0; i < N_TYPE_NAMES; i++)
                if ((types & type_names[i].type) == type_names[i].type) {
                        names[n++] = type_names[i].name;
                        types &= ~type_names[i].type;
                }
        out[0] = '\0';
        for (int i = 0; i < n; i++) {
                size_t used = strlen(out);
                const char *glue = i == 0 ? "" : i == n - 1 ? " or " : ", ";
                if (used + strlen(glue) + strlen(names[i]) < size) {
                        strcpy(out + used, glue);
                        strcat(out, names[i]);
                }
        }
}

static int wrong_type(const char *where, const struct om_json_member *m, const struct om_json_value *v, struct om_error *e) {
        char wanted[96];
        types_text(m->types, wanted, sizeof wanted);
        return om_error_set_code(
                e, OM_CODE_PARAMS, OM_INVALID, "%s: \"%s\" must be %s, not %s", where, m->name, wanted, om_json_type_name(v->type));
}

static int unknown_member(const char *where, struct om_json_value key, const struct om_json_member *members, struct om_error *e) {
        const char *names[64 + 1]; /* of which the nearest is offered; no object of ours has as many */
        char word[SHOWN_MAX + 1];
        struct om_span inner = om_json_inner(key);
        size_t n = 0, shown = om_text_cut(inner.p, inner.len, SHOWN_MAX);
        while (members[n].name && n < 64) {
                names[n] = members[n].name;
                n++;
        }
        names[n] = NULL;
        memcpy(word, inner.p, shown);
        word[shown] = '\0';
        const char *nearest = shown == inner.len ? om_nearest(word, names) : NULL;
        if (nearest)
                return om_error_set_code(
                        e, OM_CODE_PARAMS, OM_INVALID, "%s: unknown member \"%s\"; did you mean \"%s\"?", where, word, nearest);
        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: unknown member \"%s%s\"", where, word, shown < inner.len ? "…" : "");
}

/* The member of that name; the search starts at `from`, where the last one was found: members mostly come in our order. */
static struct om_json_member *find_member(struct om_json_member *members, struct om_json_member *from, struct om_json_value key) {
        struct om_span name = om_json_inner(key);
        struct om_json_member *m = from;
        do {
                if (!m->name) {
                        m = members;
                        if (!m->name)
                                return NULL;
                        if (m == from)
                                break;
                        continue;
                }
                if (key.escaped ? om_json_string_is(key, m->name)
                                : name.len > 0 && m->name[0] == name.p[0] && strncmp(m->name, name.p, name.len) == 0 && !m->name[name.len])
                        return m;
                m++;
        } while (m != from);
        return NULL;
}

/* `where` and the member's name joined; no printf, since every task comes by here. */
void om_json_where(char out[static OM_JSON_WHERE_MAX], const char *where, const char *name) {
        size_t n = strlen(name), max = n < OM_JSON_WHERE_MAX - 2 ? OM_JSON_WHERE_MAX - 2 - n : 0, before = strnlen(where, max);
        memcpy(out, where, before);
        out[before] = '.';
        memcpy(out + before + 1, name, n + 1);
}

static int read_value(struct om_json *j, const char *where, struct om_json_member *m, struct om_json_value *ret, struct om_error *e) {
        char inner[OM_JSON_WHERE_MAX];
        if (!m->inside || om_json_peek(j) != OM_JSON_OBJECT)
                return om_json_value(j, ret);
        const char *start = j->p;
        om_json_where(inner, where, m->name);
        int r = om_json_members_at(j, inner, m->inside, e);
        *ret = (struct om_json_value){ .type = OM_JSON_OBJECT, .text = { start, (size_t) (j->p - start) } };
        return r;
}

int om_json_members_at(struct om_json *j, const char *where, struct om_json_member *members, struct om_error *e) {
        struct om_json_value key, v;
        struct om_json_member *m = members, *last = members;
        int r;
        for (; m->name; m++)
                m->value = (struct om_json_value){ 0 };
        if (om_json_peek(j) != OM_JSON_OBJECT)
                return om_error_set_code(
                        e, OM_CODE_PARAMS, OM_INVALID, "%s must be an object, not %s", where, om_json_type_name(om_json_peek(j)));
        r = om_json_enter_object(j);
        while (r >= 0 && (r = om_json_next_key(j, &key)) > 0) {
                m = find_member(members, last, key);
                if (!m)
                        return unknown_member(where, key, members, e);
                if (m->value.text.p)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: \"%s\" stands twice", where, m->name);
                r = read_value(j, where, m, &v, e);
                if (r < 0 && !j->fault)
                        return r; /* one of the members inside, and `e` says which */
                if (r < 0)
                        break;
                if (!(m->types & v.type)) {
                        if (v.type != OM_JSON_NULL || m->required)
                                return wrong_type(where, m, &v, e);
                        v.type = 0; /* as good as absent; its text says that it was there, until the end */
                }
                m->value = v;
                last = m + 1;
        }
        if (r < 0) {
                om_json_fault(j, where, e);
                return -EINVAL;
        }
        for (m = members; m->name; m++) {
                if (m->value.type)
                        continue;
                m->value = (struct om_json_value){ 0 };
                if (m->required)
                        return om_error_set_code(e, OM_CODE_PARAMS, OM_INVALID, "%s: \"%s\" is missing", where, m->name);
        }
        return 0;
}

int om_json_members(struct om_span object, const char *where, struct om_json_member *members, struct om_error *e) {
        struct om_json j;
        om_json_init_valid(&j, object);
        return om_json_members_at(&j, where, members, e);
}
