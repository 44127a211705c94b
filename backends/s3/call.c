/* SPDX-License-Identifier: Apache-2.0 */
/* Requests to S3: see call.h. */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>

#include "call.h"

enum { BASE_MS = 50, MAX_MS = 5000, SIGNED_MAX = S3_HEADERS_MAX + 5 };

static void attempt(struct s3_call *c);

void s3_call_header(struct s3_call *c, const char *name, const char *value) {
        if (c->n_headers < S3_HEADERS_MAX)
                c->headers[c->n_headers++] = (struct s3_pair){ name, value };
}

bool s3_call_etag(const struct s3_call *c, char out[static S3_ETAG_MAX]) {
        struct om_span etag = s3_http_header(&c->req, "etag");

        snprintf(out, S3_ETAG_MAX, "%.*s", OM_PRI(etag));
        return etag.len > 0 && etag.len < S3_ETAG_MAX;
}

/* -- the end ------------------------------------------------------------------------------------------------------------------ */

void s3_call_clear(struct s3_call *c) {
        s3_http_clear(&c->req);
        om_buf_deinit(&c->url);
        if (c->timer)
                event_free(c->timer);
        c->timer = NULL;
}

static void over(struct s3_call *c, int status, const struct om_error *e) {
        c->active = false;
        TAILQ_REMOVE(&c->client->calls, c, link);
        c->done(c, status, e);
}

void s3_call_abort(struct s3_call *c) {
        if (c->active) {
                c->active = false;
                TAILQ_REMOVE(&c->client->calls, c, link);
                s3_http_abort(&c->req);
                if (c->waits)
                        s3_chain_leave(c->client->chain, &c->wait);
                c->waits = false;
        }
        s3_call_clear(c);
}

/* -- again -------------------------------------------------------------------------------------------------------------------- */

static void on_timer(evutil_socket_t fd, short what, void *ctx) { attempt(ctx); }

static bool later(struct s3_call *c, int64_t ms) {
        struct timeval tv = { ms / 1000, (ms % 1000) * 1000 };

        if (!c->timer)
                c->timer = evtimer_new(c->client->host->base, on_timer, c);
        return c->timer && event_add(c->timer, &tv) == 0;
}

void s3_call_clock(struct s3_call *c) {
        enum { SLIGHT_MS = 2000, WORTH_SAYING_MS = 60000 };
        int64_t before = c->client->skew_ms, skew;
        struct om_span date = s3_http_header(&c->req, "date");
        char text[64];
        time_t now;

        snprintf(text, sizeof text, "%.*s", OM_PRI(date));
        now = curl_getdate(text, NULL);
        if (now <= 0)
                return;
        skew = (int64_t) now * 1000 - om_now_ms();
        if (llabs((long long) (skew - before)) <= SLIGHT_MS)
                return;
        c->client->skew_ms = llabs((long long) skew) <= SLIGHT_MS ? 0 : skew;
        if (llabs((long long) skew) > WORTH_SAYING_MS)
                om_host_log(c->client->host, OM_LOG_WARNING,
                        "S3: %s: this machine's clock is %lld s from the server's; requests are dated by the server's",
                        c->client->place.where, (long long) (-c->client->skew_ms / 1000));
}

/* Whether another attempt is on its way. */
static bool repeat(struct s3_call *c, enum s3_next next) {
        if (next == S3_OVER || c->client->closing)
                return false;
        if (next == S3_SKEWED && !c->corrected) {
                c->corrected = true;
                s3_call_clock(c);
                return later(c, 0);
        }
        if (next == S3_EXPIRED && !c->renewed) {
                c->renewed = true;
                s3_chain_refused(c->client->chain);
                return later(c, 0);
        }
        if (next != S3_REPEAT || c->quick || c->tries > c->client->settings->retries)
                return false;
        return later(c, om_backoff_ms(BASE_MS, MAX_MS, c->tries - 1));
}

static void answered(struct s3_http_request *r) {
        struct s3_call *c = r->ctx;
        struct om_error e = OM_ERROR_INIT;
        enum s3_next next;
        int status = s3_answer(c, &e, &next);
        bool lost = !r->http && (r->code != CURLE_WRITE_ERROR && r->code != CURLE_OUT_OF_MEMORY);

        c->repeated |= r->sent > 1 || (next == S3_REPEAT && (r->http ? r->http >= 500 : r->sent > 0));
        if (repeat(c, next))
                return;
        if (lost && c->client->lost)
                c->client->lost(c->client->ctx, &e);
        else if (r->http && c->client->reached)
                c->client->reached(c->client->ctx);
        over(c, status, &e);
}

/* -- sending ------------------------------------------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b) { return strcmp(((const struct s3_pair *) a)->name, ((const struct s3_pair *) b)->name); }

static bool add(struct s3_call *c, struct om_buf *line, const char *name, const char *value) {
        struct curl_slist *more;

        om_buf_clear(line);
        om_buf_printf(line, "%s:%s%s", name, *value ? " " : "", value);
        om_buf_putc(line, 0);
        more = om_buf_ok(line) ? curl_slist_append(c->req.headers, line->data) : NULL;
        if (more)
                c->req.headers = more;
        return more != NULL;
}

/* False: out of memory. */
static bool make(struct s3_call *c, const struct s3_secret *secret) {
        const struct s3_place *p = &c->client->place;
        struct s3_pair headers[SIGNED_MAX];
        struct om_buf path = OM_BUF_INIT, line = OM_BUF_INIT, authorization = OM_BUF_INIT;
        char hash[S3_SHA256_HEX + 1], date[S3_AMZ_DATE + 1];
        size_t n = 0;
        bool ok;

        s3_sha256_hex(hash, c->body);
        s3_amz_date(date, s3_now_ms(c->client));
        headers[n++] = (struct s3_pair){ "host", p->host };
        headers[n++] = (struct s3_pair){ "x-amz-content-sha256", hash };
        headers[n++] = (struct s3_pair){ "x-amz-date", date };
        if (secret->token)
                headers[n++] = (struct s3_pair){ "x-amz-security-token", secret->token };
        memcpy(headers + n, c->headers, c->n_headers * sizeof headers[0]);
        n += c->n_headers;
        qsort(headers, n, sizeof headers[0], by_name);
        om_buf_printf(&path, "%s/", p->root);
        if (c->name) {
                s3_url_encode(&path, om_span_of(p->prefix), true);
                s3_url_encode(&path, om_span_of(c->name), true);
        }
        om_buf_putc(&path, 0);
        if (om_buf_ok(&path))
                s3_sign(&authorization,
                        &(struct s3_signable){ c->method, path.data, c->query ? c->query : "", headers, n, hash, date, p->region, "s3",
                                secret->key_id, secret->secret });
        om_buf_putc(&authorization, 0);
        om_buf_clear(&c->url);
        ok = om_buf_ok(&path) && om_buf_ok(&authorization);
        if (ok)
                om_buf_printf(&c->url, "%s%s%s%s", p->base, path.data, c->query && *c->query ? "?" : "", c->query ? c->query : "");
        om_buf_putc(&c->url, 0);
        ok = ok && om_buf_ok(&c->url) && add(c, &line, "authorization", authorization.data) && add(c, &line, "expect", "");
        if (ok && c->body.p)
                ok = add(c, &line, "content-type", "");
        for (size_t i = 0; i < n && ok; i++)
                if (strcmp(headers[i].name, "host") != 0)
                        ok = add(c, &line, headers[i].name, headers[i].value);
        om_buf_deinit(&path);
        om_buf_deinit(&line);
        om_buf_deinit(&authorization);
        return ok;
}

static void got_credentials(struct s3_wait *w, const struct om_error *e) {
        struct s3_call *c = CONTAINER(w, struct s3_call, wait);

        c->waits = false;
        if (e)
                over(c, om_kind_errno(e->kind), e);
        else
                attempt(c);
}

static void attempt(struct s3_call *c) {
        const struct s3_secret *secret = s3_chain_now(c->client->chain, om_now_ms());
        struct om_error e;

        if (!secret) {
                c->waits = true;
                c->wait.fn = got_credentials;
                s3_chain_wait(c->client->chain, &c->wait);
                return;
        }
        c->tries++;
        if (!make(c, secret)) {
                curl_slist_free_all(c->req.headers);
                c->req.headers = NULL;
                /* Another time: a completion from within a start would break the rule. */
                if (c->tries <= c->client->settings->retries && later(c, BASE_MS))
                        return;
                over(c, om_error_set_errno(&e, ENOMEM, "S3"), &e);
                return;
        }
        c->req.method = c->method;
        c->req.url = c->url.data;
        c->req.body = c->body;
        c->req.max_bytes = c->max_bytes;
        c->req.timeout_ms = c->quick ? c->client->settings->connect_ms : 0;
        c->req.done = answered;
        c->req.ctx = c;
        s3_http_start(c->client->http, &c->req);
}

void s3_client_close(struct s3_client *client) {
        struct s3_call *c;

        client->closing = true;
        TAILQ_FOREACH(c, &client->calls, link)
        if (c->timer && event_pending(c->timer, EV_TIMEOUT, NULL))
                later(c, 0);
}

void s3_call_start(struct s3_call *c) {
        c->active = true;
        c->repeated = c->renewed = c->corrected = false;
        c->tries = 0;
        TAILQ_INSERT_TAIL(&c->client->calls, c, link);
        attempt(c);
}
