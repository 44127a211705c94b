/* SPDX-License-Identifier: Apache-2.0 */
#ifndef OM_URL_H
#define OM_URL_H
/*
 * URLs that select a bus or a storage (RFC 3986, with several hosts in the authority).
 *
 *   scheme ":" [ "//" [ user [ ":" password ] "@" ] host [ ":" port ] { "," host [ ":" port ] } ] path [ "?" name "=" value { "&" … } ] [
 * "#" … ] scheme ":" path            as in `local:`, `local:/var/lib/x`, `json:DIR`
 *
 * Parts are percent-decoded; hosts may be names, IPv4, or IPv6 in brackets. A fragment is refused. Thread: any.
 */
#include "../proto/buf.h"
#include "../proto/error.h"

enum { OM_URL_MAX = 8192 };

struct om_url_host {
        char *name;    /* without brackets */
        uint16_t port; /* 0: not given */
};
struct om_url_param {
        char *name, *value;
        bool used; /* set by om_url_param(); om_options_read() refuses what nobody asked for */
};
struct om_url {
        char *scheme;          /* lower case */
        char *user, *password; /* NULL: not given */
        struct om_url_host *hosts;
        size_t n_hosts;
        char *path; /* decoded; "" when empty; with an authority it keeps its leading slash */
        struct om_url_param *params;
        size_t n_params;
        char *redacted; /* the whole URL with the password, and the value of any parameter named *password*, *secret*, *token* or *key*, as
                           "***" */
};

/* Reads a URL. -EINVAL with `e` naming the part and the place; the message never holds a password. The struct is the caller's:
 * om_url_free(). */
int om_url_parse(const char *text, struct om_url **ret, struct om_error *e);
void om_url_free(struct om_url *u);

/* A parameter's value, or NULL; marks it used. */
const char *om_url_param(struct om_url *u, const char *name);

/* Copies `text` with the secrets of every URL in it replaced by "***": for log lines and messages. */
void om_url_redact(struct om_buf *out, const char *text, size_t len);

#endif
