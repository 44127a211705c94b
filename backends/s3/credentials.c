/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain of credentials: see credentials.h. Always true: a secret is in no message; a fetch is under way at most once, and all who wait
 * share it; what has failed is tried again by the next who asks, not sooner than a backoff allows.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "credentials.h"
#include "sign.h"
#include "xml.h"

enum { REFRESH_MS = 5 * 60 * 1000, FETCH_MS = 2000, STS_MS = 10000, FETCHES_MAX = 3, AGAIN_MS = 200, AGAIN_MAX_MS = 5000 };

enum source { NONE, FROM_URL, FROM_ENVIRONMENT, FROM_WEB_IDENTITY, FROM_FILES, FROM_CONTAINER, FROM_INSTANCE };
static const char *const source_names[] = { "none", "url", "environment", "web identity", "files", "container", "instance" };

/* Which request is under way. */
enum step { IDLE, STS, CONTAINER, INSTANCE_TOKEN, INSTANCE_ROLE, INSTANCE_SECRET };

struct s3_chain {
        struct om_host *host;
        struct s3_http *http;
        const struct s3_settings *settings;
        char *url_key, *url_secret;
        char region[64];
        enum source source;
        struct s3_secret secret;
        int64_t refresh_ms; /* when others are got; 0: never */
        enum step step;
        struct s3_http_request req;
        struct om_buf url, body, header, imds_token, role;
        unsigned tries;  /* of this step */
        unsigned failed; /* in a row */
        int64_t not_before_ms;
        struct om_error why;
        TAILQ_HEAD(, s3_wait) waiting;
        struct om_post post;
        bool posted, gone;
};

static void fetch(struct s3_chain *c);

const char *s3_chain_source(const struct s3_chain *c) { return source_names[c ? c->source : NONE]; }

static const char *variable(const char *name) {
        const char *text = getenv(name);

        return text && *text ? text : NULL;
}

/* -- who waits --------------------------------------------------------------------------------------------------------------- */

static void tell(struct om_post *post) {
        struct s3_chain *c = CONTAINER(post, struct s3_chain, post);
        struct s3_wait *w;
        struct om_error why = c->why;
        bool ok = c->secret.key_id != NULL && c->why.kind == OM_OK;

        c->posted = false;
        if (c->gone) {
                free(c);
                return;
        }
        if (!ok && why.kind == OM_OK) { /* refused since they came */
                if (c->step == IDLE && !TAILQ_EMPTY(&c->waiting))
                        fetch(c);
                return;
        }
        /* One who is told may take others out of the line, or ask anew: then the rest wait for that. */
        while (c->step == IDLE && !c->posted && (w = TAILQ_FIRST(&c->waiting))) {
                TAILQ_REMOVE(&c->waiting, w, link);
                w->fn(w, ok ? NULL : &why);
        }
}

static void post(struct s3_chain *c) {
        if (c->posted)
                return;
        c->posted = true;
        c->post.fn = tell;
        om_host_post(c->host, &c->post);
}

static void have(struct s3_chain *c, struct s3_secret *s) {
        int64_t now = om_now_ms(), left = s->expires_ms - now;

        s3_secret_free(&c->secret);
        c->secret = *s;
        *s = (struct s3_secret){ .expires_ms = 0 };
        c->refresh_ms = c->secret.expires_ms ? c->secret.expires_ms - (left / 4 < REFRESH_MS ? left / 4 : REFRESH_MS) : 0;
        c->step = IDLE;
        c->failed = 0;
        c->not_before_ms = 0;
        c->why = (struct om_error) OM_ERROR_INIT;
        post(c);
}

static void failed(struct s3_chain *c) {
        c->step = IDLE;
        c->not_before_ms = om_clock_ms() + om_backoff_ms(AGAIN_MS, AGAIN_MAX_MS, c->failed++);
        if (c->secret.key_id && c->secret.expires_ms > om_now_ms()) { /* the old ones are still good */
                om_host_log(c->host, OM_LOG_WARNING, "%s; those of before are still good", c->why.message);
                c->why = (struct om_error) OM_ERROR_INIT;
        }
        post(c);
}

/* -- requests ---------------------------------------------------------------------------------------------------------------- */

static bool add_header(struct s3_chain *c, const char *name, struct om_span value) {
        struct curl_slist *more;

        om_buf_clear(&c->header);
        om_buf_printf(&c->header, "%s: %.*s", name, OM_PRI(value));
        om_buf_putc(&c->header, 0);
        more = om_buf_ok(&c->header) ? curl_slist_append(c->req.headers, c->header.data) : NULL;
        if (more)
                c->req.headers = more;
        return more != NULL;
}

static void send_step(struct s3_chain *c, const char *method, enum step step, bool ok) {
        om_buf_putc(&c->url, 0);
        if (!ok || !om_buf_ok(&c->url) || !om_buf_ok(&c->body)) {
                curl_slist_free_all(c->req.headers);
                c->req.headers = NULL;
                om_error_set_errno(&c->why, ENOMEM, "S3: credentials");
                failed(c);
                return;
        }
        if (c->step != step)
                c->tries = 0;
        c->step = step;
        c->req.method = method;
        c->req.url = c->url.data;
        c->req.body = c->body.len ? om_buf_span(&c->body) : OM_SPAN_NONE;
        c->req.timeout_ms = step == STS ? STS_MS : FETCH_MS;
        c->req.direct = step != STS;
        s3_http_start(c->http, &c->req);
}

static void container(struct s3_chain *c) {
        const char *relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), *full = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        const char *token = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"), *file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        struct om_buf text = OM_BUF_INIT;
        bool ok = true;

        om_buf_clear(&c->url);
        om_buf_clear(&c->body);
        om_buf_printf(&c->url, "%s%s", relative ? "http://169.254.170.2" : "", relative ? relative : full);
        if (file && s3_read_file(file, &text, &c->why) < 0) {
                om_error_prefix(&c->why, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
                om_buf_deinit(&text);
                failed(c);
                return;
        }
        while (text.len && strchr("\r\n \t", text.data[text.len - 1]))
                text.len--;
        if (file || token)
                ok = add_header(c, "Authorization", file ? om_buf_span(&text) : om_span_of(token));
        om_buf_deinit(&text);
        send_step(c, "GET", CONTAINER, ok);
}

static void instance(struct s3_chain *c, enum step step) {
        const char *base = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        bool ok;

        om_buf_clear(&c->url);
        om_buf_clear(&c->body);
        om_buf_puts(&c->url, base ? base : "http://169.254.169.254");
        if (c->url.len && c->url.data[c->url.len - 1] == '/')
                c->url.len--;
        if (step == INSTANCE_TOKEN) {
                om_buf_lit(&c->url, "/latest/api/token");
                ok = add_header(c, "X-aws-ec2-metadata-token-ttl-seconds", OM_SPAN("21600"));
        } else {
                om_buf_lit(&c->url, "/latest/meta-data/iam/security-credentials/");
                if (step == INSTANCE_SECRET)
                        s3_url_encode(&c->url, om_buf_span(&c->role), false);
                ok = add_header(c, "X-aws-ec2-metadata-token", om_buf_span(&c->imds_token));
        }
        send_step(c, step == INSTANCE_TOKEN ? "PUT" : "GET", step, ok);
}

static void put_field(struct om_buf *b, const char *name, struct om_span value) {
        om_buf_printf(b, "&%s=", name);
        s3_url_encode(b, value, false);
}

static void web_identity(struct s3_chain *c, const struct s3_profile *p) {
        const char *file = variable("AWS_WEB_IDENTITY_TOKEN_FILE"), *role = variable("AWS_ROLE_ARN");
        const char *session = variable("AWS_ROLE_SESSION_NAME"), *base = variable("AWS_ENDPOINT_URL_STS");
        struct om_span token;
        struct om_buf text = OM_BUF_INIT;

        if (!file || !role)
                file = p->token_file.p, role = p->role_arn.p, session = session ? session : p->session_name.p;
        if (s3_read_file(file, &text, &c->why) < 0) {
                om_error_prefix(&c->why, "AWS_WEB_IDENTITY_TOKEN_FILE");
                om_buf_deinit(&text);
                failed(c);
                return;
        }
        token = om_buf_span(&text);
        while (token.len && strchr("\r\n \t", token.p[token.len - 1]))
                token.len--;
        om_buf_clear(&c->url);
        om_buf_clear(&c->body);
        if (base)
                om_buf_printf(&c->url, "%s%s", base, base[strlen(base) - 1] == '/' ? "" : "/");
        else
                om_buf_printf(&c->url, "https://sts.%s.amazonaws.com%s/", c->region, strncmp(c->region, "cn-", 3) == 0 ? ".cn" : "");
        om_buf_lit(&c->body, "Action=AssumeRoleWithWebIdentity&Version=2011-06-15");
        put_field(&c->body, "RoleArn", om_span_of(role));
        put_field(&c->body, "RoleSessionName", om_span_of(session ? session : "omnidaemon"));
        put_field(&c->body, "WebIdentityToken", token);
        if (text.data)
                explicit_bzero(text.data, text.len);
        om_buf_deinit(&text);
        send_step(c, "POST", STS, add_header(c, "Content-Type", OM_SPAN("application/x-www-form-urlencoded")));
}

/* -- answers ----------------------------------------------------------------------------------------------------------------- */

struct sts_error {
        char code[80];
};

static void sts_error_element(void *ctx, const char *path, struct om_span text) {
        struct sts_error *e = ctx;

        if (strcmp(path, "Error/Code") == 0)
                for (size_t i = 0; i < text.len && i + 1 < sizeof e->code; i++)
                        e->code[i] = text.p[i] > ' ' && text.p[i] <= '~' ? text.p[i] : '?';
}

static void explain(struct s3_chain *c) {
        static const char *const services[] = { [STS] = "AssumeRoleWithWebIdentity (AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE)",
                [CONTAINER] = "the container's metadata service (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, _FULL_URI)",
                [INSTANCE_TOKEN] = "the instance metadata service",
                [INSTANCE_ROLE] = "the instance metadata service",
                [INSTANCE_SECRET] = "the instance metadata service" };
        const struct s3_http_request *r = &c->req;
        struct sts_error sts = { "" };

        if (c->step == STS && r->http)
                s3_xml_read(om_buf_span(&r->answer), sts_error_element, &sts, NULL, 0);
        if (c->source == FROM_INSTANCE && (!r->http || r->http == 404) && !c->secret.key_id)
                om_error_set(&c->why, r->http ? OM_DENIED : OM_UNAVAILABLE,
                        "S3: no credentials: none in the URL (s3://KEY_ID:SECRET@BUCKET), in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                        "in the "
                        "profile of ~/.aws/credentials, of a container or a web identity; and the instance metadata service %s",
                        r->http ? "has no role" : "does not answer");
        else if (!r->http)
                om_error_set(&c->why, OM_UNAVAILABLE, "S3: credentials: %s does not answer: %.150s", services[c->step],
                        *r->why ? r->why : curl_easy_strerror(r->code));
        else
                om_error_set(&c->why, r->http >= 500 || r->http == 429 ? OM_UNAVAILABLE : OM_DENIED, "S3: credentials: %s answers %d%s%s",
                        services[c->step], r->http, *sts.code ? " " : "", sts.code);
}

static bool is_passing(const struct s3_http_request *r) { return !r->http || r->http >= 500 || r->http == 429; }

static void again(struct s3_chain *c) {
        switch (c->step) {
        case CONTAINER:
                container(c);
                break;
        case INSTANCE_TOKEN:
        case INSTANCE_ROLE:
        case INSTANCE_SECRET:
                instance(c, c->step);
                break;
        default:
                failed(c);
        }
}

static void keep_line(struct om_buf *to, const struct om_buf *from) {
        om_buf_clear(to);
        om_buf_put(to, from->data, strcspn(from->len ? from->data : "", "\r\n"));
}

static void answered(struct s3_http_request *r) {
        struct s3_chain *c = r->ctx;
        struct s3_secret s;
        int status;

        om_buf_putc(&r->answer, 0);
        if (om_buf_ok(&r->answer))
                r->answer.len--;
        if (r->http != 200 || !om_buf_ok(&r->answer)) {
                explain(c);
                if (is_passing(r) && ++c->tries < FETCHES_MAX && c->step != STS && c->step != INSTANCE_TOKEN)
                        again(c);
                else
                        failed(c);
                return;
        }
        if (c->step == INSTANCE_TOKEN || c->step == INSTANCE_ROLE) {
                enum step next = c->step == INSTANCE_TOKEN ? INSTANCE_ROLE : INSTANCE_SECRET;

                keep_line(c->step == INSTANCE_TOKEN ? &c->imds_token : &c->role, &r->answer);
                instance(c, next);
                return;
        }
        status = c->step == STS ? s3_secret_from_sts(om_buf_span(&r->answer), &s) : s3_secret_from_json(om_buf_span(&r->answer), &s);
        explicit_bzero(r->answer.data, r->answer.len);
        if (status == 0) {
                have(c, &s);
                return;
        }
        om_error_set(&c->why, OM_DENIED, "S3: credentials: the answer of the %s source has no usable AccessKeyId and SecretAccessKey",
                source_names[c->source]);
        failed(c);
}

/* -- choosing ---------------------------------------------------------------------------------------------------------------- */

/* These may come as plain texts only over TLS or from the machine itself. */
static bool is_trusted(const char *uri) {
        static const char *const plain[] = { "http://127.", "http://localhost", "http://[::1]", "http://169.254.170.2",
                "http://169.254.170.23", "http://[fd00:ec2::23]" };

        for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
                size_t n = strlen(plain[i]);

                if (strncmp(uri, plain[i], n) == 0 && (plain[i][n - 1] == '.' || strchr(":/", uri[n])))
                        return true;
        }
        return strncmp(uri, "https://", 8) == 0;
}

static void use(struct s3_chain *c, struct om_span key_id, struct om_span secret, struct om_span token) {
        struct s3_secret s = { strndup(key_id.p, key_id.len), strndup(secret.p, secret.len),
                token.p && token.len ? strndup(token.p, token.len) : NULL, 0 };

        if (s.key_id && s.secret && (s.token || !token.len)) {
                have(c, &s);
                return;
        }
        s3_secret_free(&s);
        om_error_set_errno(&c->why, ENOMEM, "S3: credentials");
        failed(c);
}

static enum source choose(struct s3_chain *c, const struct s3_profile *p) {
        if (c->url_key)
                return FROM_URL;
        if (!c->settings->profile && variable("AWS_ACCESS_KEY_ID") && variable("AWS_SECRET_ACCESS_KEY"))
                return FROM_ENVIRONMENT;
        if (!c->settings->profile && variable("AWS_WEB_IDENTITY_TOKEN_FILE") && variable("AWS_ROLE_ARN"))
                return FROM_WEB_IDENTITY;
        if (p->token_file.p && p->role_arn.p)
                return FROM_WEB_IDENTITY;
        if (p->key_id.p && p->secret.p)
                return FROM_FILES;
        if (variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
                return FROM_CONTAINER;
        return FROM_INSTANCE;
}

static void fetch(struct s3_chain *c) {
        const char *disabled = variable("AWS_EC2_METADATA_DISABLED"), *full = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        struct om_arena arena = { 0 };
        struct s3_profile p = { .found = false };

        if (!c->url_key && s3_profile_load(&p, c->settings->profile, &arena, &c->why) < 0) {
                om_arena_deinit(&arena);
                failed(c);
                return;
        }
        c->tries = 0;
        c->source = choose(c, &p);
        switch (c->source) {
        case FROM_URL:
                use(c, om_span_of(c->url_key), om_span_of(c->url_secret), om_span_of(c->settings->session_token));
                break;
        case FROM_ENVIRONMENT:
                use(c, om_span_of(variable("AWS_ACCESS_KEY_ID")), om_span_of(variable("AWS_SECRET_ACCESS_KEY")),
                        om_span_of(variable("AWS_SESSION_TOKEN")));
                break;
        case FROM_FILES:
                use(c, p.key_id, p.secret, p.token);
                break;
        case FROM_WEB_IDENTITY:
                web_identity(c, &p);
                break;
        case FROM_CONTAINER:
                if (variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || is_trusted(full)) {
                        container(c);
                        break;
                }
                om_error_set(&c->why, OM_INVALID,
                        "S3: AWS_CONTAINER_CREDENTIALS_FULL_URI must begin with https://, or be of this machine or 169.254.170.2 or .23");
                failed(c);
                break;
        default:
                if (!disabled || strcasecmp(disabled, "true") != 0) {
                        instance(c, INSTANCE_TOKEN);
                        break;
                }
                om_error_set(&c->why, OM_DENIED,
                        "S3: no credentials: give them in the URL (s3://KEY_ID:SECRET@BUCKET), in AWS_ACCESS_KEY_ID and "
                        "AWS_SECRET_ACCESS_KEY, "
                        "or in the profile of ~/.aws/credentials (AWS_EC2_METADATA_DISABLED is set)");
                failed(c);
        }
        om_arena_deinit(&arena);
}

/* -- the entries ------------------------------------------------------------------------------------------------------------- */

const struct s3_secret *s3_chain_now(struct s3_chain *c, int64_t now_ms) {
        if (!c->secret.key_id || (c->secret.expires_ms && now_ms >= c->secret.expires_ms))
                return NULL;
        if (c->refresh_ms && now_ms >= c->refresh_ms && c->step == IDLE && om_clock_ms() >= c->not_before_ms)
                fetch(c);
        return c->secret.key_id ? &c->secret : NULL;
}

void s3_chain_wait(struct s3_chain *c, struct s3_wait *w) {
        TAILQ_INSERT_TAIL(&c->waiting, w, link);
        if (c->step != IDLE || c->posted)
                return;
        if (c->why.kind != OM_OK && om_clock_ms() < c->not_before_ms)
                post(c);
        else
                fetch(c);
}

void s3_chain_leave(struct s3_chain *c, struct s3_wait *w) { TAILQ_REMOVE(&c->waiting, w, link); }

void s3_chain_refused(struct s3_chain *c) { s3_secret_free(&c->secret); }

int s3_chain_new(struct om_host *host, struct s3_http *http, const struct om_url *url, const struct s3_settings *s, const char *region,
        struct s3_chain **ret, struct om_error *e) {
        struct s3_chain *c = calloc(1, sizeof *c);

        if (!c)
                return om_error_set_errno(e, ENOMEM, "S3");
        c->host = host;
        c->http = http;
        c->settings = s;
        c->req.ctx = c;
        c->req.done = answered;
        TAILQ_INIT(&c->waiting);
        snprintf(c->region, sizeof c->region, "%s", region);
        if (url->user && url->password) {
                c->url_key = strdup(url->user);
                c->url_secret = strdup(url->password);
        } else if (url->user || url->password) {
                free(c);
                return om_error_set(e, OM_INVALID, "S3: the URL has only one of KEY_ID and SECRET: s3://KEY_ID:SECRET@BUCKET");
        }
        if ((url->user && !c->url_key) || (url->password && !c->url_secret)) {
                s3_chain_free(c);
                return om_error_set_errno(e, ENOMEM, "S3");
        }
        *ret = c;
        return 0;
}

void s3_chain_free(struct s3_chain *c) {
        struct om_buf *const bufs[] = { &c->url, &c->body, &c->header, &c->imds_token, &c->role };
        char *const texts[] = { c->url_key, c->url_secret };

        s3_http_abort(&c->req);
        s3_http_clear(&c->req);
        s3_secret_free(&c->secret);
        for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++) {
                if (bufs[i]->data)
                        explicit_bzero(bufs[i]->data, bufs[i]->cap);
                om_buf_deinit(bufs[i]);
        }
        for (size_t i = 0; i < 2; i++) {
                if (texts[i])
                        explicit_bzero(texts[i], strlen(texts[i]));
                free(texts[i]);
        }
        if (c->posted)
                c->gone = true;
        else
                free(c);
}
