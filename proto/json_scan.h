/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_JSON_SCAN_H
#define OM_JSON_SCAN_H
/*
 * A reader of JSON (RFC 8259) that makes nothing: it checks the text and says where each value stands.
 *
 * Always true:
 *   - what it accepts is exactly RFC 8259: strict numbers, valid UTF-8 without surrogates or overlong forms, no control
 *     characters in strings, \u escapes whose surrogates pair up, one value and white space around it;
 *   - nothing is allocated; depth is limited by the caller; time is linear;
 *   - spans point into the caller's text and stay valid as long as it.
 * It does not reject members of one name in an object that it steps over: content is carried as it came. Whoever reads an
 * object's members by name refuses a repeated one (om_json_members does).
 *
 * Thread: any.
 */
#include "buf.h"
#include "error.h"

enum om_json_type {
        OM_JSON_NULL = 1 << 0,
        OM_JSON_FALSE = 1 << 1,
        OM_JSON_TRUE = 1 << 2,
        OM_JSON_BOOL = OM_JSON_FALSE | OM_JSON_TRUE,
        OM_JSON_NUMBER = 1 << 3,
        OM_JSON_STRING = 1 << 4,
        OM_JSON_ARRAY = 1 << 5,
        OM_JSON_OBJECT = 1 << 6,
        OM_JSON_ANY = 0x7f,
};

/* A value that has been stepped over. */
struct om_json_value {
        enum om_json_type type;
        bool escaped;        /* a string with at least one backslash */
        struct om_span text; /* all of it, quotes and brackets included */
};

/* A reading position. */
struct om_json {
        const char *start, *p, *end;
        unsigned depth, max_depth; /* arrays and objects open now; allowed */
        bool valid;                /* the text was checked before: step over values without checking again */
        bool fresh;                /* an array or object was entered and nothing of it has been read */
        const char *fault;         /* what is wrong at `p`, after -EINVAL; static text ("number with a leading zero") */
};

/* Deeper than this no text is read, whatever max_depth says: a bit for each level stands on the stack. */
enum { OM_JSON_DEPTH_LIMIT = 1024 };

/* Starts at a text that nobody has checked; `max_depth` counts nested arrays and objects (64 on the wire). */
void om_json_init(struct om_json *j, struct om_span text, unsigned max_depth);
/* Starts at a value that om_json_* has accepted already. */
void om_json_init_valid(struct om_json *j, struct om_span text);

/* Steps over one whole value, checking it. 0, or -EINVAL with fault and position set, or -E2BIG when too deep. */
int om_json_value(struct om_json *j, struct om_json_value *ret);
/* Goes into an object or array, which must come next (-EINVAL else: fault "not an object"). */
int om_json_enter_object(struct om_json *j);
int om_json_enter_array(struct om_json *j);
/* In an object: the next member's key (the position is then at its value). 1, 0 at the end (which is stepped over), < 0. */
int om_json_next_key(struct om_json *j, struct om_json_value *ret_key);
/* In an array: whether there is another element (the position is at it). 1, 0 at the end (stepped over), < 0. */
int om_json_next_element(struct om_json *j);
/* The type of the value that comes next, by its first character; 0 at the end or where none can start. */
enum om_json_type om_json_peek(struct om_json *j);
/* After the last value: nothing but white space may follow. 0 or -EINVAL. */
int om_json_finish(struct om_json *j);
/* The whole text is one valid value. */
int om_json_check(struct om_span text, unsigned max_depth, struct om_error *e);
/* Fills `e` from a fault: "what (where): <fault> at byte N". `what` names the text, for instance "params". Returns -EINVAL. */
int om_json_fault(const struct om_json *j, const char *what, struct om_error *e);

/* -- strings ------------------------------------------------------------------------------------------------------- */
/* The characters between the quotes. With !escaped they are the string; with escaped they are not yet decoded. */
static inline struct om_span om_json_inner(struct om_json_value v) { return (struct om_span){ v.text.p + 1, v.text.len - 2 }; }
/* Decodes a string's escapes into `out` (at least v.text.len bytes); returns the length. May hold zero bytes. */
size_t om_json_decode(struct om_json_value v, char *out);
/* The string decoded: a span into the text where nothing is escaped, else a copy in `arena`. {NULL,0}: out of memory. */
struct om_span om_json_string(struct om_json_value v, struct om_arena *arena);
bool om_json_string_is(struct om_json_value v, const char *text);

/* -- numbers ------------------------------------------------------------------------------------------------------- */
/* An integer written without fraction or exponent and within range; -EINVAL, -ERANGE. */
int om_json_int64(struct om_json_value v, int64_t *ret);
/* The nearest double; -ERANGE where it would be infinite. Locale-independent. */
int om_json_double(struct om_json_value v, double *ret);

/* -- objects by name ----------------------------------------------------------------------------------------------- */
/* A member that the caller expects. `value.type` is 0 where the object had none (or had null and types lacks OM_JSON_NULL). */
struct om_json_member {
        const char *name;
        unsigned types; /* OR of om_json_type */
        bool required;
        struct om_json_value value;
        struct om_json_member *inside; /* of an object: its own members, read on the way; NULL: it is stepped over */
};
/*
 * Reads an object's members into `members` (ended by name == NULL), resetting their values first. An unknown name, a repeated
 * one, a wrong type and a missing required one are refused, with `e` saying which, in `where` ("task", "params.config"), and
 * the nearest known name offered for an unknown one. null for an optional member counts as absent unless its types allow null.
 * `object` has been checked before. Returns 0 or -EINVAL (code OM_CODE_PARAMS, kind OM_INVALID).
 */
int om_json_members(struct om_span object, const char *where, struct om_json_member *members, struct om_error *e);
/* The same of the object that comes next in a text that was checked: the position is behind it then, and anywhere after an error. */
int om_json_members_at(struct om_json *j, const char *where, struct om_json_member *members, struct om_error *e);

/* The place that a message names, `where` and a member's name: "tasks[3].payload". A long `where` is cut. */
enum { OM_JSON_WHERE_MAX = 128 };
void om_json_where(char out[static OM_JSON_WHERE_MAX], const char *where, const char *name);
/* "an object", "a string": for messages. */
const char *om_json_type_name(unsigned type);

#endif
