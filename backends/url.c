/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the URLs that choose a bus or a storage, and hides the secrets of URLs wherever they stand in a text.
 *
 * The grammar is RFC 3986's (section 3; host list as many systems extend it), with three things stricter than there, because each of them
 * is how a password with a special character comes to be read as something else, and then to be printed:
 *   - a raw `@` stands only between user information and host; elsewhere it is written %40;
 *   - a fragment is refused; `#` is written %23;
 *   - every parameter is name=value, and a name stands once. `+` in a value is a plus.
 * On the other hand bytes above 127 may stand anywhere, and spaces in paths, as file names have them; elsewhere a space would end what is
 * hidden of a secret in a line of text.
 *
 * Always true: a message names the part and the byte where it is, and never quotes what stands there; `redacted` and om_url_redact() come
 * from one function, which looks at the text alone, so that a URL that cannot be read is hidden as well as one that can. No state; any
 * thread.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <strings.h>

#include "url.h"

/* -- percent-decoding ---------------------------------------------------------------------------------------------- */

static int hex_digit(char c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        c = (char) (c | 0x20);
        return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A reader's state: the text and where in it the part begins that is being read. */
struct reader {
        const char *text;
        struct om_error *e;
};

static size_t place_of(const struct reader *r, const char *p) { return (size_t) (p - r->text) + 1; }

/* A decoded copy of [p, end). */
static int decode(const struct reader *r, const char *part, const char *p, const char *end, char **ret) {
        char *out = malloc((size_t) (end - p) + 1), *o = out;
        if (!out)
                return om_error_set_errno(r->e, ENOMEM, "cannot read a URL");
        for (; p < end; p++) {
                if (*p != '%') {
                        *o++ = *p;
                        continue;
                }
                int high = end - p > 2 ? hex_digit(p[1]) : -1, low = high >= 0 ? hex_digit(p[2]) : -1;
                if (low < 0 || (high | low) == 0) {
                        free(out);
                        return om_error_set(r->e, OM_INVALID,
                                low < 0 ? "%s of the URL: the %% at byte %zu is not followed by two hexadecimal digits; a %% itself is %%25"
                                        : "%s of the URL: %%00 at byte %zu; there can be no zero byte in it",
                                part, place_of(r, p));
                }
                *o++ = (char) (high << 4 | low);
                p += 2;
        }
        *o = 0;
        *ret = out;
        return 0;
}

/* -- parts --------------------------------------------------------------------------------------------------------- */

static int read_scheme(const struct reader *r, struct om_url *u, const char **p) {
        const char *s = r->text;
        while (isalnum((unsigned char) *s) || (*s && strchr("+-.", *s)))
                s++;
        if (*s != ':' || s == r->text || !isalpha((unsigned char) r->text[0]))
                return om_error_set(
                        r->e, OM_INVALID, "the URL does not begin with a scheme and a colon, as local: or redis://host:6379 do");
        u->scheme = strndup(r->text, (size_t) (s - r->text));
        if (!u->scheme)
                return om_error_set_errno(r->e, ENOMEM, "cannot read a URL");
        for (char *c = u->scheme; *c; c++)
                *c = (char) tolower((unsigned char) *c);
        *p = s + 1;
        return 0;
}

static int refuse_space(const struct reader *r, const char *part, const char *p, const char *end) {
        const char *space = memchr(p, ' ', (size_t) (end - p));
        return space
                ? om_error_set(r->e, OM_INVALID, "%s of the URL: a space at byte %zu; here it is written %%20", part, place_of(r, space))
                : 0;
}

static int read_user(const struct reader *r, struct om_url *u, const char *p, const char *end) {
        const char *colon = memchr(p, ':', (size_t) (end - p));
        int x = refuse_space(r, "the user information", p, end);
        if (x == 0 && (colon ? colon : end) > p)
                x = decode(r, "the user", p, colon ? colon : end, &u->user);
        if (x == 0 && colon)
                x = decode(r, "the password", colon + 1, end, &u->password);
        return x;
}

static int read_port(const struct reader *r, size_t n, const char *p, const char *end, uint16_t *ret) {
        unsigned long port = 0;
        const char *start = p;
        for (; p < end && isdigit((unsigned char) *p) && port <= 65535; p++)
                port = port * 10 + (unsigned long) (*p - '0');
        if (p < end || (port == 0 && p > start) || port > 65535)
                return om_error_set(r->e, OM_INVALID,
                        "the port of host %zu (byte %zu of the URL) is not a number from 1 to 65535; in a password / is written %%2F and @ "
                        "%%40",
                        n, place_of(r, start));
        *ret = (uint16_t) port;
        return 0;
}

/* [p, end) is what stands between brackets: an address, perhaps with a zone (RFC 6874). */
static int read_ipv6(const struct reader *r, size_t n, const char *p, const char *end, char **ret) {
        char *name, address[INET6_ADDRSTRLEN + 1];
        struct in6_addr ignored;
        int x = decode(r, "a host", p, end, &name);
        if (x < 0)
                return x;
        size_t len = strcspn(name, "%");
        if (len < sizeof(address) && (name[len] == 0 || name[len + 1] != 0)) {
                memcpy(address, name, len);
                address[len] = 0;
                if (inet_pton(AF_INET6, address, &ignored) == 1) {
                        *ret = name;
                        return 0;
                }
        }
        free(name);
        return om_error_set(r->e, OM_INVALID, "host %zu (byte %zu of the URL) is not an IPv6 address", n, place_of(r, p));
}

static bool host_char(unsigned char c) { return isalnum(c) || c >= 0x80 || (c && strchr("-._~", c)); }

static int read_host(const struct reader *r, size_t n, const char *p, const char *end, struct om_url_host *ret) {
        const char *name_end = end, *after = p;
        int x;
        if (p < end && *p == '[') {
                name_end = memchr(p, ']', (size_t) (end - p));
                if (!name_end)
                        return om_error_set(r->e, OM_INVALID, "host %zu (byte %zu of the URL) has no closing bracket", n, place_of(r, p));
                x = read_ipv6(r, n, p + 1, name_end, &ret->name);
                after = name_end + 1;
        } else {
                const char *colon = memchr(p, ':', (size_t) (end - p));
                if (colon)
                        name_end = colon;
                if (name_end == p)
                        return om_error_set(r->e, OM_INVALID, "host %zu (byte %zu of the URL) is empty", n, place_of(r, p));
                x = decode(r, "a host", p, name_end, &ret->name);
                for (const char *c = ret->name; x == 0 && *c; c++)
                        if (!host_char((unsigned char) *c))
                                x = om_error_set(r->e, OM_INVALID,
                                        "host %zu (byte %zu of the URL) has a character that no host name has; an IPv6 address stands in "
                                        "brackets",
                                        n, place_of(r, p));
                after = name_end;
        }
        if (x < 0 || after == end)
                return x;
        if (*after != ':')
                return om_error_set(r->e, OM_INVALID, "byte %zu of the URL: only a port can follow host %zu", place_of(r, after), n);
        return read_port(r, n, after + 1, end, &ret->port);
}

static int read_authority(const struct reader *r, struct om_url *u, const char *p, const char *end) {
        const char *at = memchr(p, '@', (size_t) (end - p));
        if (at) {
                const char *again = memchr(at + 1, '@', (size_t) (end - at - 1));
                if (again)
                        return om_error_set(r->e, OM_INVALID, "byte %zu of the URL: a second @; in a user or password it is written %%40",
                                place_of(r, again));
                int x = read_user(r, u, p, at);
                if (x < 0)
                        return x;
                p = at + 1;
        }
        if (p == end)
                return 0; /* a path only, as in redis+unix:///run/redis.sock */
        size_t commas = 0;
        for (const char *c = p; c < end; c++)
                commas += *c == ',';
        u->hosts = calloc(commas + 1, sizeof(*u->hosts));
        if (!u->hosts)
                return om_error_set_errno(r->e, ENOMEM, "cannot read a URL");
        while (p <= end) {
                const char *comma = memchr(p, ',', (size_t) (end - p)), *stop = comma ? comma : end;
                u->n_hosts++; /* before it is read, so that om_url_free() finds its name */
                int x = read_host(r, u->n_hosts, p, stop, &u->hosts[u->n_hosts - 1]);
                if (x < 0)
                        return x;
                p = stop + 1;
        }
        return 0;
}

static int read_param(const struct reader *r, struct om_url *u, const char *p, const char *end) {
        const char *equals = memchr(p, '=', (size_t) (end - p));
        if (!equals || equals == p)
                return om_error_set(r->e, OM_INVALID, "byte %zu of the URL: a parameter is name=value", place_of(r, p));
        struct om_url_param *param = &u->params[u->n_params++];
        int x = refuse_space(r, "a parameter", p, end);
        if (x == 0)
                x = decode(r, "a parameter's name", p, equals, &param->name);
        if (x == 0)
                x = decode(r, "a parameter's value", equals + 1, end, &param->value);
        for (size_t i = 0; x == 0 && i + 1 < u->n_params; i++)
                if (strcmp(u->params[i].name, param->name) == 0)
                        x = om_error_set(r->e, OM_INVALID, "byte %zu of the URL: parameter \"%.60s\" stands there twice", place_of(r, p),
                                param->name);
        return x;
}

static int read_query(const struct reader *r, struct om_url *u, const char *p) {
        const char *end = p + strlen(p);
        size_t n = 1;
        for (const char *c = p; c < end; c++)
                n += *c == '&';
        u->params = calloc(n, sizeof(*u->params));
        if (!u->params)
                return om_error_set_errno(r->e, ENOMEM, "cannot read a URL");
        while (p < end) {
                const char *and = memchr(p, '&', (size_t) (end - p)), *stop = and? and : end;
                int x = read_param(r, u, p, stop);
                if (x < 0)
                        return x;
                p = stop + 1;
        }
        return 0;
}

/* What can be said of the text before its parts are looked at. */
static int check_text(const struct reader *r) {
        size_t len = strlen(r->text);
        if (len > OM_URL_MAX)
                return om_error_set(r->e, OM_INVALID, "the URL has %zu bytes; %d at most", len, OM_URL_MAX);
        for (const char *p = r->text; *p; p++)
                if ((unsigned char) *p < 0x20 || *p == 0x7f)
                        return om_error_set(r->e, OM_INVALID, "byte %zu of the URL is a control character", place_of(r, p));
        const char *fragment = strchr(r->text, '#');
        if (fragment)
                return om_error_set(r->e, OM_INVALID, "byte %zu of the URL: there can be no fragment; in a password # is written %%23",
                        place_of(r, fragment));
        return 0;
}

static int read_all(const struct reader *r, struct om_url *u) {
        const char *p = r->text;
        int x = check_text(r);
        if (x == 0)
                x = read_scheme(r, u, &p);
        if (x < 0)
                return x;
        bool authority = strncmp(p, "//", 2) == 0;
        if (authority) {
                const char *end = p + 2 + strcspn(p + 2, "/?");
                x = read_authority(r, u, p + 2, end);
                if (x < 0)
                        return x;
                p = end;
        }
        /* Without an authority an @ before any slash is a forgotten "//": user:password@host. */
        const char *stray = authority ? strchr(p, '@') : memchr(p, '@', strcspn(p, "/?"));
        if (stray)
                return om_error_set(r->e, OM_INVALID,
                        "byte %zu of the URL: an @ where none can be; a user and password stand after //, and in them / is written %%2F, ? "
                        "%%3F, @ %%40",
                        place_of(r, stray));
        size_t len = strcspn(p, "?");
        x = decode(r, "the path", p, p + len, &u->path);
        if (x == 0 && p[len] == '?')
                x = read_query(r, u, p + len + 1);
        return x;
}

int om_url_parse(const char *text, struct om_url **ret, struct om_error *e) {
        struct reader r = { text, e };
        struct om_buf redacted = OM_BUF_INIT;
        struct om_url *u = calloc(1, sizeof(*u));
        if (!u)
                return om_error_set_errno(e, ENOMEM, "cannot read a URL");
        int x = read_all(&r, u);
        if (x < 0)
                goto fail;
        om_url_redact(&redacted, text, strlen(text));
        om_buf_putc(&redacted, 0);
        if (!om_buf_ok(&redacted)) {
                om_buf_deinit(&redacted);
                x = om_error_set_errno(e, ENOMEM, "cannot read a URL");
                goto fail;
        }
        u->redacted = redacted.data;
        *ret = u;
        return 0;
fail:
        om_url_free(u);
        return x;
}

void om_url_free(struct om_url *u) {
        if (!u)
                return;
        /* The only copies of a password that we made. */
        if (u->password)
                explicit_bzero(u->password, strlen(u->password));
        for (size_t i = 0; i < u->n_hosts; i++)
                free(u->hosts[i].name);
        for (size_t i = 0; i < u->n_params; i++) {
                if (u->params[i].value)
                        explicit_bzero(u->params[i].value, strlen(u->params[i].value));
                free(u->params[i].name);
                free(u->params[i].value);
        }
        free(u->scheme);
        free(u->user);
        free(u->password);
        free(u->hosts);
        free(u->path);
        free(u->params);
        free(u->redacted);
        free(u);
}

const char *om_url_param(struct om_url *u, const char *name) {
        for (size_t i = 0; i < u->n_params; i++)
                if (strcmp(u->params[i].name, name) == 0) {
                        u->params[i].used = true;
                        return u->params[i].value;
                }
        return NULL;
}

/* -- redaction ----------------------------------------------------------------------------------------------------- */

static bool is_blank(char c) { return (unsigned char) c <= ' ' || c == 0x7f; }

/* Whether a parameter's name, as written, is one of a secret. A percent escape in it is decoded, so that pass%77ord hides too. */
static bool secret_name(const char *p, const char *end) {
        static const char *const words[] = { "password", "passwd", "secret", "token", "key" };
        char name[128];
        size_t n = 0;
        for (; p < end && n + 1 < sizeof(name); p++) {
                int high = *p == '%' && end - p > 2 ? hex_digit(p[1]) : -1, low = high >= 0 ? hex_digit(p[2]) : -1;
                name[n++] = (char) tolower(low >= 0 ? high << 4 | low : (unsigned char) *p);
                if (low >= 0)
                        p += 2;
        }
        name[n] = 0;
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
                if (strstr(name, words[i]))
                        return true;
        return p < end; /* a name too long to look at */
}

/* Whether a parameter's value has an escaped `@`, once or twice: it may be a URL with a password of its own. */
static bool may_be_a_url(const char *p, const char *end) {
        for (; p < end && *p != '&' && !is_blank(*p); p++)
                if (*p == '%') {
                        const char *digits = end - p >= 5 && memcmp(p + 1, "25", 2) == 0 ? p + 3 : p + 1;
                        if (end - digits >= 2 && memcmp(digits, "40", 2) == 0)
                                return true;
                }
        return false;
}

/* Copies [p, end), which has no user information, with the values of secret parameters hidden. */
static void redact_params(struct om_buf *out, const char *p, const char *end) {
        bool query = false;
        while (p < end) {
                const char *name = p;
                query |= *p == '?';
                om_buf_putc(out, *p++);
                if (!query || (*name != '?' && *name != '&'))
                        continue;
                const char *equals = p;
                while (equals < end && *equals != '=' && *equals != '&' && !is_blank(*equals))
                        equals++;
                if (equals == end || *equals != '=' || !(secret_name(p, equals) || may_be_a_url(equals, end)))
                        continue;
                om_buf_put(out, p, (size_t) (equals - p) + 1);
                om_buf_lit(out, "***");
                for (p = equals; p < end && *p != '&' && !is_blank(*p);)
                        p++;
        }
}

/* A host whose port is no number: "redis://user:secret" with the host forgotten. Copies the hosts, such ports hidden; returns their end. */
static const char *redact_ports(struct om_buf *out, const char *p, const char *end) {
        bool bracket = false;
        for (; p < end && *p != '/' && *p != '?'; p++) {
                bracket = (bracket || *p == '[') && *p != ']';
                om_buf_putc(out, *p);
                if (*p != ':' || bracket)
                        continue;
                const char *port = p + 1, *stop = port;
                while (stop < end && isdigit((unsigned char) *stop))
                        stop++;
                if (stop < end && isalnum((unsigned char) *stop)) {
                        om_buf_lit(out, "***");
                        while (stop < end && *stop != ',')
                                stop++;
                } else
                        om_buf_put(out, port, (size_t) (stop - port));
                p = stop - 1;
        }
        return p;
}

/* The bytes after "://" up to the next blank. Where a password ends nobody can know if it holds raw `@` or `/`: everything from the first
 * colon to the last `@` goes, which hides too much now and then, and never too little. */
static void redact_token(struct om_buf *out, bool user_is_secret, const char *p, const char *end) {
        const char *at = memrchr(p, '@', (size_t) (end - p));
        if (at) {
                const char *colon = memchr(p, ':', (size_t) (at - p));
                if (colon)
                        om_buf_put(out, p, (size_t) (colon - p) + 1);
                if (colon || (user_is_secret && at > p))
                        om_buf_lit(out, "***");
                else
                        om_buf_put(out, p, (size_t) (at - p));
                om_buf_putc(out, '@');
                p = at + 1;
        }
        p = redact_ports(out, p, end);
        redact_params(out, p, end);
}

void om_url_redact(struct om_buf *out, const char *text, size_t len) {
        const char *p = text, *end = text + len;
        while (p < end) {
                const char *token = memmem(p, (size_t) (end - p), "://", 3);
                const char *stop = token ? token + 3 : end;
                redact_params(out, p, stop);
                if (!token)
                        return;
                const char *scheme = token;
                while (scheme > p && (isalnum((unsigned char) scheme[-1]) || strchr("+-.", scheme[-1])))
                        scheme--;
                /* A lone user of NATS is its token. */
                bool nats = strncasecmp(scheme, "nats", 4) == 0 || strncasecmp(scheme, "tls", 3) == 0;
                const char *blank = stop;
                while (blank < end && !is_blank(*blank))
                        blank++;
                redact_token(out, nats, stop, blank);
                p = blank;
        }
}
