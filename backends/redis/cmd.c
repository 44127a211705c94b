/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making commands. A command keeps its bytes until it is answered, because a cluster may send it elsewhere and a server may not know a
 * script; so what is written to a socket is a copy.
 *
 * Always true: `body` holds the arguments after the name, each as RESP's bulk string (Redis serialization protocol specification); what
 * comes before is written when it is sent. Memory that was missing is remembered in `failed` and refused at sending. Loop thread.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#include "link.h"

struct om_redis_cmd *om_redis_cmd_new(const char *name) {
        struct om_redis_cmd *c = calloc(1, sizeof *c);

        if (!c)
                return NULL;
        c->name = name;
        c->n_args = 1;
        return c;
}

static int script_hash(struct om_redis_script *s) {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned n = 0;

        if (s->sha[0])
                return 0;
        if (EVP_Digest(s->text, strlen(s->text), digest, &n, EVP_sha1(), NULL) != 1 || n != 20)
                return -ENOMEM;
        for (unsigned i = 0; i < n; i++)
                snprintf(s->sha + 2 * i, 3, "%02x", digest[i]);
        return 0;
}

struct om_redis_cmd *om_redis_script_new(struct om_redis_script *script, unsigned n_keys) {
        struct om_redis_cmd *c = om_redis_cmd_new("EVALSHA");

        if (!c)
                return NULL;
        c->script = script;
        c->n_args = 2;
        c->failed = script_hash(script) < 0;
        om_redis_arg_int(c, n_keys);
        return c;
}

void om_redis_arg(struct om_redis_cmd *c, struct om_span arg) {
        if (!c)
                return;
        om_buf_putc(&c->body, '$');
        om_buf_u64(&c->body, arg.len);
        om_buf_lit(&c->body, "\r\n");
        om_buf_put_span(&c->body, arg);
        om_buf_lit(&c->body, "\r\n");
        c->n_args++;
}

void om_redis_arg_text(struct om_redis_cmd *c, const char *arg) { om_redis_arg(c, om_span_of(arg)); }

void om_redis_arg_int(struct om_redis_cmd *c, int64_t arg) {
        char text[24];
        int n = snprintf(text, sizeof text, "%lld", (long long) arg);

        om_redis_arg(c, (struct om_span){ text, (size_t) n });
}

void om_redis_key(struct om_redis_cmd *c, struct om_span key) {
        om_redis_arg(c, key);
        if (c && !c->has_key && om_buf_ok(&c->body)) {
                c->has_key = true;
                c->key_len = key.len;
                c->key_at = c->body.len - key.len - 2;
        }
}

struct om_span om_redis_cmd_key(const struct om_redis_cmd *c) {
        return c->has_key ? (struct om_span){ c->body.data + c->key_at, c->key_len } : OM_SPAN_NONE;
}

int om_redis_cmd_slot(const struct om_redis_cmd *c) { return c && c->has_key ? (int) om_redis_slot(om_redis_cmd_key(c)) : -1; }

struct om_buf *om_redis_arg_begin(struct om_redis_cmd *c, size_t len) {
        static struct om_buf nowhere = { NULL, 0, 0, true }; /* appending to what has failed does nothing */

        if (!c)
                return &nowhere;
        om_buf_putc(&c->body, '$');
        om_buf_u64(&c->body, len);
        om_buf_lit(&c->body, "\r\n");
        c->arg_start = c->body.len;
        c->arg_len = len;
        om_buf_reserve(&c->body, len + 2);
        return &c->body;
}

void om_redis_arg_end(struct om_redis_cmd *c) {
        if (!c)
                return;
        if (c->body.len - c->arg_start != c->arg_len)
                c->failed = true; /* the server would read arguments that nobody meant */
        om_buf_lit(&c->body, "\r\n");
        c->n_args++;
}

void om_redis_patience(struct om_redis_cmd *c, int64_t ms) {
        if (c)
                c->patience_ms = ms;
}

void om_redis_hurry(struct om_redis_cmd *c) {
        if (c)
                c->hurry = true;
}

size_t om_redis_cmd_bytes(const struct om_redis_cmd *c) { return c ? sizeof *c + c->body.len : 0; }

void om_redis_cmd_free(struct om_redis_cmd *c) {
        if (!c)
                return;
        om_buf_deinit(&c->body);
        free(c);
}

int om_redis_cmd_write(struct om_redis_cmd *c, struct evbuffer *out) {
        const char *second = !c->script ? "" : c->whole ? c->script->text : c->script->sha, *name = c->whole ? "EVAL" : c->name;
        char head[96];
        int n = snprintf(head, sizeof head, "*%u\r\n$%zu\r\n%.40s\r\n", c->n_args, strlen(name), name);
        int r;

        if (c->script)
                n += snprintf(head + n, sizeof head - (size_t) n, "$%zu\r\n", strlen(second));
        r = evbuffer_add(out, head, (size_t) n);
        if (r == 0 && c->script)
                r = evbuffer_add(out, second, strlen(second)) || evbuffer_add(out, "\r\n", 2);
        if (r == 0 && c->body.len)
                r = evbuffer_add(out, c->body.data, c->body.len);
        return r ? -ENOMEM : 0;
}

void om_redis_cmd_finish(struct om_redis_cmd *c, int status, const struct om_redis_reply *reply, const struct om_error *error) {
        om_redis_done_fn *done = c->done;
        void *ctx = c->ctx;

        om_redis_cmd_free(c);
        if (done)
                done(ctx, status, reply, error);
}

void om_redis_abandon(struct om_redis_cmd *c) {
        if (c)
                c->done = NULL;
}
