/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON-RPC 2.0 envelopes (https://www.jsonrpc.org/specification), read in one pass and written as text.
 *
 * Always true: a body is read once, from end to end, before anything is said about it, so "not JSON" wins over "no request",
 * which wins over "wrong params", in whatever order the members came; an id is handed back only if it is one and stands once.
 *
 * Called for every frame, by the daemon's sessions and by clients. Thread: any.
 */
#include "rpc.h"
#include "frame.h"
#include "text.h"

#include <errno.h>

enum { JSONRPC, ID, METHOD, PARAMS, RESULT, ERROR, N_MEMBERS };
static const char *const member_names[] = { "jsonrpc", "id", "method", "params", "result", "error", NULL };

struct envelope {
        struct om_json_value members[N_MEMBERS]; /* type 0: not there */
        bool id_twice;
        bool refused; /* `e` holds a fault of the envelope already: the first one is told */
};

static int find_name(struct om_json_value key) {
        for (int i = 0; i < N_MEMBERS; i++)
                if (om_json_string_is(key, member_names[i]))
                        return i;
        return -1;
}

static int refuse(struct om_error *e, const char *why) { return om_error_set_code(e, OM_CODE_REQUEST, OM_INVALID, "%s", why); }

/* Notes a member that must not be there; reading goes on, because the text may not even be JSON further on. */
static void refuse_member(struct envelope *v, struct om_json_value key, bool twice, struct om_error *e) {
        struct om_span name = om_json_inner(key);
        size_t shown = om_text_cut(name.p, name.len, 60);
        char word[61];
        if (v->refused)
                return;
        v->refused = true;
        memcpy(word, name.p, shown);
        word[shown] = '\0';
        const char *nearest = twice ? NULL : om_nearest(word, member_names), *cut = shown < name.len ? "…" : "";
        if (twice)
                om_error_set_code(e, OM_CODE_REQUEST, OM_INVALID, "message: \"%s\" stands twice", word);
        else if (nearest)
                om_error_set_code(
                        e, OM_CODE_REQUEST, OM_INVALID, "message: unknown member \"%s%s\"; did you mean \"%s\"?", word, cut, nearest);
        else
                om_error_set_code(e, OM_CODE_REQUEST, OM_INVALID, "message: unknown member \"%s%s\"", word, cut);
}

static int read_members(struct om_json *j, struct envelope *v, struct om_error *e) {
        struct om_json_value key, value;
        int r = om_json_enter_object(j);
        while (r >= 0 && (r = om_json_next_key(j, &key)) > 0) {
                r = om_json_value(j, &value);
                if (r < 0)
                        break;
                int i = find_name(key);
                if (i >= 0 && !v->members[i].type) {
                        v->members[i] = value;
                        continue;
                }
                v->id_twice |= i == ID;
                refuse_member(v, key, i >= 0, e);
        }
        return r < 0 ? r : om_json_finish(j);
}

static struct om_span usable_id(const struct envelope *v) {
        const struct om_json_value *id = &v->members[ID];
        if (v->id_twice || !(id->type & (OM_JSON_STRING | OM_JSON_NUMBER | OM_JSON_NULL)) || id->text.len > OM_RPC_ID_MAX)
                return OM_SPAN_NONE;
        return id->text;
}

/* What the members together mean. `ret->id` is set. */
static int judge(const struct envelope *v, struct om_rpc *ret, struct om_error *e) {
        const struct om_json_value *m = v->members;
        if (v->refused)
                return -EINVAL;
        if (m[JSONRPC].type != OM_JSON_STRING || !om_json_string_is(m[JSONRPC], "2.0"))
                return refuse(e, "message: \"jsonrpc\" must be \"2.0\"");
        if (m[ID].type && !ret->id.p)
                return refuse(e,
                        m[ID].text.len > OM_RPC_ID_MAX ? "message: \"id\" is longer than 256 bytes"
                                                       : "message: \"id\" must be a string, a number or null");
        if (m[RESULT].type || m[ERROR].type) {
                if (m[METHOD].type || m[PARAMS].type)
                        return refuse(e, "message: a reply has no \"method\" and no \"params\"");
                if (m[RESULT].type && m[ERROR].type)
                        return refuse(e, "message: a reply has \"result\" or \"error\", not both");
                if (!m[ID].type)
                        return refuse(e, "message: a reply needs an \"id\"");
                if (m[ERROR].type && m[ERROR].type != OM_JSON_OBJECT)
                        return refuse(e, "message: \"error\" must be an object");
                ret->type = m[RESULT].type ? OM_RPC_RESULT : OM_RPC_ERROR;
                ret->result = m[RESULT].text;
                ret->error = m[ERROR].text;
                return 0;
        }
        if (!m[METHOD].type)
                return refuse(e, "message: \"method\" is missing");
        if (m[METHOD].type != OM_JSON_STRING)
                return refuse(e, "message: \"method\" must be a string");
        ret->type = m[ID].type ? OM_RPC_REQUEST : OM_RPC_NOTIFICATION;
        ret->method = om_json_inner(m[METHOD]);
        if (m[PARAMS].type && m[PARAMS].type != OM_JSON_OBJECT)
                return om_error_set_code(
                        e, OM_CODE_PARAMS, OM_INVALID, "params must be an object, not %s", om_json_type_name(m[PARAMS].type));
        ret->params = m[PARAMS].text;
        return 0;
}

static int not_json(const struct om_json *j, struct om_error *e) {
        om_json_fault(j, "body", e);
        if (e)
                e->code = OM_CODE_PARSE;
        return -EINVAL;
}

static int parse(struct om_span body, unsigned max_depth, struct om_rpc *ret, struct om_error *e) {
        struct envelope v;
        struct om_json j;
        *ret = (struct om_rpc){ .type = OM_RPC_REQUEST };
        memset(&v, 0, sizeof v);
        om_json_init(&j, body, max_depth);
        enum om_json_type type = om_json_peek(&j);
        if (type == OM_JSON_OBJECT) {
                if (read_members(&j, &v, e) < 0)
                        return not_json(&j, e);
                ret->id = usable_id(&v);
                return judge(&v, ret, e);
        }
        if (om_json_value(&j, NULL) < 0 || om_json_finish(&j) < 0)
                return not_json(&j, e);
        if (type == OM_JSON_ARRAY)
                return refuse(e, "message: an array; batches are not spoken here, send one object a frame");
        return om_error_set_code(e, OM_CODE_REQUEST, OM_INVALID, "message must be an object, not %s", om_json_type_name(type));
}

int om_rpc_parse(struct om_span body, struct om_rpc *ret, struct om_error *e) { return parse(body, OM_DEPTH_MAX, ret, e); }
int om_rpc_parse_sent(struct om_span body, struct om_rpc *ret, struct om_error *e) { return parse(body, OM_DEPTH_SENT_MAX, ret, e); }

/* -- the error of a reply ------------------------------------------------------------------------------------------ */

/* The kind of an error without a `data.kind` that we know: a newer daemon's, or another program's. */
static enum om_kind kind_of_code(int64_t code) {
        switch (code) {
        case OM_CODE_PARSE:
        case OM_CODE_REQUEST:
        case OM_CODE_PARAMS:
                return OM_INVALID;
        case OM_CODE_METHOD:
                return OM_UNSUPPORTED;
        default:
                return OM_INTERNAL;
        }
}

static int find_kind(struct om_span data, enum om_kind *ret) {
        struct om_json j;
        struct om_json_value key, v;
        om_json_init_valid(&j, data);
        if (om_json_peek(&j) != OM_JSON_OBJECT || om_json_enter_object(&j) < 0)
                return -EINVAL;
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &v) == 0)
                if (v.type == OM_JSON_STRING && om_json_string_is(key, "kind")) {
                        struct om_span name = om_json_inner(v);
                        return om_kind_parse(name.p, name.len, ret);
                }
        return -EINVAL;
}

int om_rpc_parse_error(struct om_span error, struct om_error *ret) {
        struct om_json j;
        struct om_json_value key, v, message = { 0 };
        struct om_span data = OM_SPAN_NONE;
        struct om_arena arena = { 0 };
        int64_t code = OM_CODE_INTERNAL;
        enum om_kind kind;
        om_json_init_valid(&j, error);
        if (om_json_peek(&j) != OM_JSON_OBJECT || om_json_enter_object(&j) < 0)
                return om_error_set_code(ret, OM_CODE_INTERNAL, OM_INTERNAL, "the error in a reply is no object");
        while (om_json_next_key(&j, &key) > 0 && om_json_value(&j, &v) == 0) {
                if (v.type == OM_JSON_NUMBER && om_json_string_is(key, "code"))
                        om_json_int64(v, &code);
                else if (v.type == OM_JSON_STRING && om_json_string_is(key, "message"))
                        message = v;
                else if (om_json_string_is(key, "data"))
                        data = v.text;
        }
        if (code < INT32_MIN || code > INT32_MAX)
                code = OM_CODE_INTERNAL;
        if (find_kind(data, &kind) < 0 || kind == OM_OK)
                kind = kind_of_code(code);
        struct om_span text = message.type ? om_json_string(message, &arena) : OM_SPAN("an error without a message");
        int shown = text.len > sizeof ret->message ? (int) sizeof ret->message : (int) text.len;
        int r = om_error_set_code(ret, (int) code, kind, "%.*s", shown, text.p ? text.p : "");
        om_arena_deinit(&arena);
        return r;
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

size_t om_rpc_begin_request(struct om_buf *b, uint64_t id, const char *method) {
        size_t mark = om_frame_begin(b);
        om_buf_lit(b, "{\"jsonrpc\":\"2.0\",\"id\":");
        om_buf_u64(b, id);
        om_buf_lit(b, ",\"method\":");
        om_buf_json_span(b, om_span_of(method));
        om_buf_lit(b, ",\"params\":");
        return mark;
}

size_t om_rpc_begin_notification(struct om_buf *b, const char *method) {
        size_t mark = om_frame_begin(b);
        om_buf_lit(b, "{\"jsonrpc\":\"2.0\",\"method\":");
        om_buf_json_span(b, om_span_of(method));
        om_buf_lit(b, ",\"params\":");
        return mark;
}

static size_t begin_reply(struct om_buf *b, struct om_span id) {
        size_t mark = om_frame_begin(b);
        om_buf_lit(b, "{\"jsonrpc\":\"2.0\",\"id\":");
        om_buf_put_span(b, id.p ? id : OM_SPAN("null"));
        return mark;
}

size_t om_rpc_begin_result(struct om_buf *b, struct om_span id) {
        size_t mark = begin_reply(b, id);
        om_buf_lit(b, ",\"result\":");
        return mark;
}

int om_rpc_end(struct om_buf *b, size_t mark, size_t max_bytes) {
        om_buf_putc(b, '}');
        return om_frame_end(b, mark, max_bytes);
}

void om_rpc_put_error_object(struct om_buf *b, const struct om_error *e) {
        enum om_kind kind = e->kind == OM_OK ? OM_INTERNAL : e->kind; /* an error nobody filled in is a fault of ours */
        om_buf_lit(b, "{\"code\":");
        om_buf_i64(b, e->code ? e->code : OM_CODE_KIND);
        om_buf_lit(b, ",\"message\":");
        om_buf_json_span(b, om_span_of(e->message));
        om_buf_lit(b, ",\"data\":{\"kind\":");
        om_buf_json_span(b, om_span_of(om_kind_name(kind)));
        om_buf_lit(b, "}}");
}

void om_rpc_put_error(struct om_buf *b, struct om_span id, const struct om_error *e) {
        size_t mark = begin_reply(b, id);
        om_buf_lit(b, ",\"error\":");
        om_rpc_put_error_object(b, e);
        om_rpc_end(b, mark, SIZE_MAX);
}
