/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scanner: checks JSON and finds where its values stand.
 *
 * Two ways over a value. The checking one (check_value) goes over text that nobody has seen, as one loop over values with a
 * bit a level for "this is an object": no recursion, so hostile nesting costs a counter and not the stack. The other
 * (skip_value) goes over text that has been checked and looks at quotes and brackets only. Both read between p and end and
 * nowhere else, and both say so when a text ends too early, even the second, which should never see that.
 *
 * Strings are most of what tasks are made of, so their bytes are looked at 16 at a time (text.h).
 *
 * Called for every frame, by the daemon's sessions and by clients, on any thread. Nothing is allocated.
 */
#include "json_scan.h"
#include "text.h"

#include <errno.h>

static const char too_deep[] = "arrays and objects nested too deep";

static inline const char *skip_space(const char *p, const char *end) {
        while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t'))
                p++;
        return p;
}

/* Notes what is wrong and where; returns NULL, so that a step that fails can return it. */
static const char *wrong(struct om_json *j, const char *p, const char *why) {
        j->p = p;
        j->fault = why;
        return NULL;
}

static int fail(struct om_json *j, const char *p, const char *why) {
        wrong(j, p, why);
        return -EINVAL;
}

/* -- scalars, checked ---------------------------------------------------------------------------------------------- */

/* Four hexadecimal digits as a number, or -1. */
static int hex4(const char *p, const char *end) {
        int value = 0;
        if (end - p < 4)
                return -1;
        for (int i = 0; i < 4; i++) {
                char c = p[i];
                if (c >= '0' && c <= '9')
                        value = value << 4 | (c - '0');
                else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
                        value = value << 4 | ((c | 0x20) - 'a' + 10);
                else
                        return -1;
        }
        return value;
}

/* `p` is at a backslash; returns what follows the escape. */
static const char *check_escape(struct om_json *j, const char *p) {
        if (j->end - p < 2)
                return wrong(j, j->end, "the text ends inside a string");
        switch (p[1]) {
        case '"':
        case '\\':
        case '/':
        case 'b':
        case 'f':
        case 'n':
        case 'r':
        case 't':
                return p + 2;
        case 'u':
                break;
        default:
                return wrong(j, p, "unknown escape in a string");
        }
        int unit = hex4(p + 2, j->end);
        if (unit < 0)
                return wrong(j, p, "\\u without four hexadecimal digits");
        if (unit >= 0xdc00 && unit <= 0xdfff)
                return wrong(j, p, "\\u escape of a low surrogate without a high one before it");
        if (unit < 0xd800 || unit > 0xdbff)
                return p + 6;
        int low = j->end - p >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, j->end) : -1;
        if (low < 0xdc00 || low > 0xdfff)
                return wrong(j, p, "\\u escape of a high surrogate without a low one after it");
        return p + 12;
}

/* `p` is after the opening quote; returns what follows the closing one. */
static const char *check_string(struct om_json *j, const char *p, bool *ret_escaped) {
        const char *end = j->end;
        bool escaped = false;
        for (;;) {
                p = om_text_skip_plain(p, end);
                if (p == end)
                        return wrong(j, p, "the text ends inside a string");
                if (*p == '"') {
                        *ret_escaped = escaped;
                        return p + 1;
                }
                if (*p == '\\') {
                        escaped = true;
                        p = check_escape(j, p);
                        if (!p)
                                return NULL;
                        continue;
                }
                if ((unsigned char) *p < 0x20)
                        return wrong(j, p, "control character in a string, not escaped");
                do {
                        size_t len = om_text_utf8(p, end);
                        if (len == 0)
                                return wrong(j, p, "not UTF-8");
                        p += len;
                } while (p < end && (signed char) *p < 0);
        }
}

static inline bool is_digit(const char *p, const char *end) { return p < end && *p >= '0' && *p <= '9'; }

static const char *check_number(struct om_json *j, const char *p) {
        const char *end = j->end;
        if (*p == '-')
                p++;
        if (!is_digit(p, end))
                return wrong(j, p, "a minus sign without a number");
        if (*p == '0') {
                p++;
                if (is_digit(p, end))
                        return wrong(j, p, "a number with a leading zero");
        }
        while (is_digit(p, end))
                p++;
        if (p < end && *p == '.') {
                p++;
                if (!is_digit(p, end))
                        return wrong(j, p, "a number with no digit after its point");
                while (is_digit(p, end))
                        p++;
        }
        if (p < end && (*p == 'e' || *p == 'E')) {
                p++;
                if (p < end && (*p == '+' || *p == '-'))
                        p++;
                if (!is_digit(p, end))
                        return wrong(j, p, "a number with an exponent without digits");
                while (is_digit(p, end))
                        p++;
        }
        return p;
}

static const char *check_word(struct om_json *j, const char *p, const char *word, size_t len) {
        if ((size_t) (j->end - p) < len || memcmp(p, word, len) != 0)
                return wrong(j, p, "a word that is not null, true or false");
        return p + len;
}

static const char *no_value(struct om_json *j, const char *p) {
        if (p == j->end)
                return wrong(j, p, "the text ends where a value should stand");
        if (j->end - p >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0)
                return wrong(j, p, "a byte order mark");
        return wrong(j, p, "no value can start with this character");
}

/* `p` is where a value that is neither array nor object must stand. */
static const char *check_scalar(struct om_json *j, const char *p, struct om_json_value *v) {
        if (p == j->end)
                return no_value(j, p);
        switch (*p) {
        case '"':
                v->type = OM_JSON_STRING;
                return check_string(j, p + 1, &v->escaped);
        case 'n':
                v->type = OM_JSON_NULL;
                return check_word(j, p, "null", 4);
        case 't':
                v->type = OM_JSON_TRUE;
                return check_word(j, p, "true", 4);
        case 'f':
                v->type = OM_JSON_FALSE;
                return check_word(j, p, "false", 5);
        case '-':
        case '0':
        case '1':
        case '2':
        case '3':
        case '4':
        case '5':
        case '6':
        case '7':
        case '8':
        case '9':
                v->type = OM_JSON_NUMBER;
                return check_number(j, p);
        default:
                return no_value(j, p);
        }
}

/* -- arrays and objects, checked ----------------------------------------------------------------------------------- */

/* `p` is where a key must stand; returns where its value must. */
static const char *check_key(struct om_json *j, const char *p, struct om_json_value *key) {
        const char *start = p;
        if (p == j->end)
                return wrong(j, p, "the text ends inside an object");
        if (*p != '"')
                return wrong(j, p, "the name of a member must be a string");
        p = check_string(j, p + 1, &key->escaped);
        if (!p)
                return NULL;
        key->type = OM_JSON_STRING;
        key->text = (struct om_span){ start, (size_t) (p - start) };
        p = skip_space(p, j->end);
        if (p == j->end)
                return wrong(j, p, "the text ends inside an object");
        if (*p != ':')
                return wrong(j, p, "no colon after the name of a member");
        return skip_space(p + 1, j->end);
}

/* After a value inside an array or object: at the next value (true), or after the closing bracket (false). NULL on a fault. */
static const char *check_next(struct om_json *j, const char *p, bool object, bool *ret_more) {
        struct om_json_value key;
        p = skip_space(p, j->end);
        if (p == j->end)
                return wrong(j, p, object ? "the text ends inside an object" : "the text ends inside an array");
        *ret_more = *p == ',';
        if (*p == (object ? '}' : ']'))
                return p + 1;
        if (*p != ',')
                return wrong(j, p, object ? "neither a comma nor } after a member" : "neither a comma nor ] after an element");
        p = skip_space(p + 1, j->end);
        return object ? check_key(j, p, &key) : p;
}

/* The levels that are open: whether each is an object. */
struct levels {
        uint64_t objects[OM_JSON_DEPTH_LIMIT / 64];
        unsigned n, allowed;
};

static inline void levels_push(struct levels *l, bool object) {
        uint64_t bit = UINT64_C(1) << (l->n % 64), *word = &l->objects[l->n / 64];
        *word = (l->n % 64 ? *word & ~bit : 0) | (object ? bit : 0); /* a word is written whole when its first level opens */
        l->n++;
}
static inline bool levels_top(const struct levels *l) { return l->objects[(l->n - 1) / 64] >> ((l->n - 1) % 64) & 1; }

/* `p` is at an opening bracket. Goes in: *ret_empty says that it has been closed again at once. */
static const char *check_open(struct om_json *j, const char *p, struct levels *l, bool *ret_empty) {
        struct om_json_value key;
        bool object = *p == '{';
        if (l->n == l->allowed)
                return wrong(j, p, too_deep);
        p = skip_space(p + 1, j->end);
        *ret_empty = p < j->end && *p == (object ? '}' : ']');
        if (*ret_empty)
                return p + 1;
        levels_push(l, object);
        return object ? check_key(j, p, &key) : p;
}

/* `p` is at an opening bracket; returns what follows its closing one. */
static const char *check_container(struct om_json *j, const char *p) {
        struct om_json_value scalar;
        struct levels l;
        l.n = 0;
        l.allowed = j->max_depth > j->depth ? j->max_depth - j->depth : 0;
        do {
                bool ended = true; /* a value has ended at p; else one must start there */
                if (p < j->end && (*p == '{' || *p == '['))
                        p = check_open(j, p, &l, &ended);
                else
                        p = check_scalar(j, p, &scalar);
                while (p && ended && l.n > 0) {
                        bool more;
                        p = check_next(j, p, levels_top(&l), &more);
                        if (p && more)
                                ended = false;
                        else
                                l.n--;
                }
        } while (p && l.n > 0);
        return p;
}

/* -- text that was checked before ---------------------------------------------------------------------------------- */

/* `p` is after the opening quote. */
static const char *skip_string(struct om_json *j, const char *p, bool *ret_escaped) {
        bool escaped = false;
        while ((p = om_text_find_quote(p, j->end)) < j->end && *p == '\\') {
                escaped = true;
                p += j->end - p >= 2 ? 2 : 1;
        }
        if (p >= j->end)
                return wrong(j, j->end, "the text ends inside a string");
        *ret_escaped = escaped;
        return p + 1;
}

/* Stepping over brackets, 64 bytes a turn. */
struct skipping {
        uint64_t inside;  /* all ones when the block starts inside a string */
        uint64_t escaped; /* 1 when its first byte stands after a backslash */
        size_t open;      /* brackets */
};

static inline size_t count_bits(uint64_t x) { /* without a popcnt instruction, which the baseline of x86-64 lacks */
        x -= x >> 1 & 0x5555555555555555;
        x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
        return (size_t) (((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f) * OM_TEXT_ONES >> 56);
}

/* The bytes of a block that stand after a backslash which is not itself escaped. */
static uint64_t find_escaped(struct skipping *s, uint64_t backslash) {
        uint64_t escaped = s->escaped;
        s->escaped = 0;
        backslash &= ~escaped;
        while (backslash) {
                unsigned i = (unsigned) __builtin_ctzll(backslash);
                if (i == 63)
                        s->escaped = 1;
                else
                        escaped |= UINT64_C(2) << i;
                backslash &= ~(UINT64_C(3) << i); /* the backslash, and the next byte, which is no beginning of an escape */
        }
        return escaped;
}

/* The place in the block after the bracket that closes the first one, or 0 when it does not close here. */
static unsigned skip_block(struct skipping *s, const char *p) {
        struct om_text_marks m = om_text_mark64(p);
        if (m.backslash | s->escaped)
                m.quote &= ~find_escaped(s, m.backslash);
        uint64_t inside = m.quote; /* each bit the parity of the quotes up to it: inside a string or not */
        for (int shift = 1; shift < 64; shift *= 2)
                inside ^= inside << shift;
        inside ^= s->inside;
        s->inside = 0 - (inside >> 63);
        m.open &= ~inside;
        m.close &= ~inside;
        size_t closing = count_bits(m.close);
        if (closing < s->open) {
                s->open = s->open - closing + count_bits(m.open);
                return 0;
        }
        for (uint64_t brackets = m.open | m.close; brackets; brackets &= brackets - 1) {
                unsigned i = (unsigned) __builtin_ctzll(brackets);
                if (m.open >> i & 1)
                        s->open++;
                else if (--s->open == 0)
                        return i + 1;
        }
        return 0;
}

/* `p` is at an opening bracket. */
static const char *skip_container(struct om_json *j, const char *p) {
        struct skipping s = { 0, 0, 0 };
        unsigned n;
        while (j->end - p >= 64) {
                if ((n = skip_block(&s, p)))
                        return p + n;
                p += 64;
                if (s.inside && !s.escaped) /* most of a long string: the next block begins at what ends it */
                        p = om_text_find_quote(p, j->end);
        }
        char last[64];
        memset(last, ' ', sizeof last);
        memcpy(last, p, (size_t) (j->end - p));
        n = skip_block(&s, last);
        return n ? p + n : wrong(j, j->end, "the text ends inside an array or object");
}

static const char *skip_scalar(struct om_json *j, const char *p, struct om_json_value *v) {
        if (p < j->end && *p == '"') {
                v->type = OM_JSON_STRING;
                return skip_string(j, p + 1, &v->escaped);
        }
        return check_scalar(j, p, v);
}

/* -- the interface ------------------------------------------------------------------------------------------------- */

static void init(struct om_json *j, struct om_span text, unsigned max_depth, bool valid) {
        const char *p = text.p ? text.p : "";
        if (max_depth > OM_JSON_DEPTH_LIMIT)
                max_depth = OM_JSON_DEPTH_LIMIT;
        *j = (struct om_json){ .start = p, .p = p, .end = p + text.len, .max_depth = max_depth, .valid = valid };
}

void om_json_init(struct om_json *j, struct om_span text, unsigned max_depth) { init(j, text, max_depth, false); }
void om_json_init_valid(struct om_json *j, struct om_span text) { init(j, text, OM_JSON_DEPTH_LIMIT, true); }

int om_json_value(struct om_json *j, struct om_json_value *ret) {
        struct om_json_value v = { .escaped = false };
        const char *start = skip_space(j->p, j->end), *p;
        if (start < j->end && (*start == '{' || *start == '[')) {
                v.type = *start == '{' ? OM_JSON_OBJECT : OM_JSON_ARRAY;
                p = j->valid ? skip_container(j, start) : check_container(j, start);
        } else
                p = j->valid ? skip_scalar(j, start, &v) : check_scalar(j, start, &v);
        if (!p)
                return j->fault == too_deep ? -E2BIG : -EINVAL;
        v.text = (struct om_span){ start, (size_t) (p - start) };
        j->p = p;
        if (ret)
                *ret = v;
        return 0;
}

static int enter(struct om_json *j, char bracket, const char * not ) {
        j->p = skip_space(j->p, j->end);
        if (j->p == j->end || *j->p != bracket)
                return fail(j, j->p, not );
        if (j->depth >= j->max_depth) {
                j->fault = too_deep;
                return -E2BIG;
        }
        j->p++;
        j->depth++;
        j->fresh = true;
        return 0;
}

int om_json_enter_object(struct om_json *j) { return enter(j, '{', "not an object"); }
int om_json_enter_array(struct om_json *j) { return enter(j, '[', "not an array"); }

/* To the next member or element: 1 with the position at it, 0 with the closing bracket stepped over. */
static int step(struct om_json *j, bool object) {
        const char *p = skip_space(j->p, j->end);
        bool first = j->fresh;
        j->fresh = false;
        if (p == j->end)
                return fail(j, p, object ? "the text ends inside an object" : "the text ends inside an array");
        if (*p == (object ? '}' : ']')) {
                j->p = p + 1;
                j->depth--;
                return 0;
        }
        if (!first) {
                if (*p != ',')
                        return fail(j, p, object ? "neither a comma nor } after a member" : "neither a comma nor ] after an element");
                p = skip_space(p + 1, j->end);
        }
        j->p = p;
        return 1;
}

int om_json_next_key(struct om_json *j, struct om_json_value *ret_key) {
        int r = step(j, true);
        if (r <= 0)
                return r;
        struct om_json_value key;
        const char *p = check_key(j, j->p, &key);
        if (!p)
                return -EINVAL;
        j->p = p;
        *ret_key = key;
        return 1;
}

int om_json_next_element(struct om_json *j) {
        int r = step(j, false);
        if (r > 0 && j->p == j->end)
                return fail(j, j->p, "the text ends inside an array");
        return r;
}

enum om_json_type om_json_peek(struct om_json *j) {
        j->p = skip_space(j->p, j->end);
        if (j->p == j->end)
                return 0;
        switch (*j->p) {
        case '{':
                return OM_JSON_OBJECT;
        case '[':
                return OM_JSON_ARRAY;
        case '"':
                return OM_JSON_STRING;
        case 'n':
                return OM_JSON_NULL;
        case 't':
                return OM_JSON_TRUE;
        case 'f':
                return OM_JSON_FALSE;
        default:
                return *j->p == '-' || (*j->p >= '0' && *j->p <= '9') ? OM_JSON_NUMBER : 0;
        }
}

int om_json_finish(struct om_json *j) {
        j->p = skip_space(j->p, j->end);
        return j->p == j->end ? 0 : fail(j, j->p, "something follows the value");
}

int om_json_check(struct om_span text, unsigned max_depth, struct om_error *e) {
        struct om_json j;
        om_json_init(&j, text, max_depth);
        int r = om_json_value(&j, NULL);
        if (r >= 0)
                r = om_json_finish(&j);
        if (r < 0)
                om_json_fault(&j, "JSON", e);
        return r;
}

int om_json_fault(const struct om_json *j, const char *what, struct om_error *e) {
        return om_error_set(e, OM_INVALID, "%s: %s at byte %zu", what, j->fault ? j->fault : "not JSON", (size_t) (j->p - j->start));
}
